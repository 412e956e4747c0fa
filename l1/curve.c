/* The hit-rate curve (see the header). */
#include "l1/curve.h"

#include "base/lock.h"
#include "l1/simulate.h"

#include <stdlib.h>

enum {
    SAMPLE =
        2048, /* entries of the ghost of L1's own size: errors of a few tenths of a point on the development traces */
    LEAST  = 64,      /* and no fewer, whatever the load: else the figures mean nothing */
    FIRST  = 1024,    /* entries from which on their mean size is believed */
    MOST   = 4000,    /* samples a second: at 2.1 us (adaptive; lru 0.44) less than a hundredth of a core */
    CALM   = 60,      /* looks with a quarter of that or less until more keys are followed again */
    WINDOW = 1 << 17, /* samples until all counts are halved, so that the figures are of late */
    WAYS   = 4,
    TIMES  = 1 << 15 /* keys whose end is remembered: twice what the largest ghost has; 256 KiB */
};

const double near__curve_factors[NEAR__CURVE_POINTS] = { 0.5, 1, 2, 4 };

/* When a key's value ends; 0: free.  In sets of WAYS, so that few keys are replaced by others: those never end for the ghosts, and look like
 * hits from then on. */
struct end {
    uint32_t key, ms;
};

struct counts {
    double reported; /* hits of L1 that we heard of */
    double missed;   /* of L1 */
    double all_hits; /* of keys that are followed, by L1's count of all */
    double hit_hits[NEAR__CURVE_POINTS], miss_hits[NEAR__CURVE_POINTS]; /* of a ghost, among these two */
};

struct curve {
    struct near__curve      front; /* first */
    const char             *policy;
    struct near__lock       lock;                       /* covers the rest */
    struct near__simulator *ghosts[NEAR__CURVE_POINTS]; /* NULL: there are none */
    size_t                  made_for[NEAR__CURVE_POINTS], entries;
    double                  share, pressure; /* pressure: 1, or the part of the sample that the load allows */
    struct counts           counts;
    double                  counted_share; /* what counts are of */
    double                  fresh;         /* samples since they were halved */
    size_t                  warming;       /* samples that only warm the ghosts */
    uint64_t                samples, seen_samples, seen_hits;
    int64_t                 seen_at;
    unsigned                calm;
    _Atomic uint64_t        lost; /* misses whose reporter did not get the lock */
    struct end             *ends;
};

/* Not near__lock(): a reader does not wait for a statistic, and the ghosts' own leaves are taken under it.  A leaf that is taken by nobody
 * who holds another cannot be part of a circle. */
static bool
try_enter(struct curve *curve) NEAR__TRIES(curve->lock) NEAR__UNFOLLOWED
{
    return pthread_mutex_trylock(&curve->lock.mutex) == 0;
}

static void
enter(struct curve *curve) NEAR__TAKES(curve->lock) NEAR__UNFOLLOWED
{
    pthread_mutex_lock(&curve->lock.mutex);
}

static void
leave(struct curve *curve) NEAR__GIVES(curve->lock) NEAR__UNFOLLOWED
{
    pthread_mutex_unlock(&curve->lock.mutex);
}

/* ---- ghosts */

static void
ghosts_close(struct curve *curve)
{
    for (int i = 0; i < NEAR__CURVE_POINTS; i++)
        near__simulator_close(&curve->ghosts[i]);
    atomic_store_explicit(&curve->front.limit, 0, memory_order_relaxed);
    curve->share = 0;
}

static size_t
ghost_entries(const struct curve *curve, int i)
{
    double n = (double)curve->entries * curve->share * near__curve_factors[i] + 0.5;

    return n < 1 ? 1 : (size_t)n;
}

/* Counts stand for the requests of so large a part of the keys; now for those of another one. */
static void
scale_counts(struct curve *curve, double share)
{
    struct counts *counts = &curve->counts;
    double         factor = curve->counted_share > 0 ? share / curve->counted_share : 1;

    counts->reported *= factor;
    counts->missed *= factor;
    counts->all_hits *= factor;
    for (int i = 0; i < NEAR__CURVE_POINTS; i++) {
        counts->hit_hits[i] *= factor;
        counts->miss_hits[i] *= factor;
    }
    curve->counted_share = share;
}

/* New ones for an L1 of so many entries, which holds `now` of them: what they lack of these must not count as misses. */
static void
ghosts_open(struct curve *curve, size_t entries, size_t now)
{
    double share = (double)SAMPLE / (double)entries;

    ghosts_close(curve);
    curve->entries = entries;
    curve->share   = (share < 1 ? share : 1) * curve->pressure;
    scale_counts(curve, curve->share);
    for (int i = 0; i < NEAR__CURVE_POINTS; i++) {
        struct near__simulator_config config = { .policy   = curve->policy,
                                                 .capacity = ghost_entries(curve, i) };

        curve->made_for[i] = config.capacity;
        if (near__simulator_open(&curve->ghosts[i], &config) != NEAR_OK) {
            ghosts_close(curve);
            return;
        }
    }
    now = now < entries ? now : entries;
    curve->warming =
        (size_t)((double)curve->made_for[NEAR__CURVE_POINTS - 1] * (double)now / (double)entries);
    for (size_t i = 0; i < TIMES; i++)
        curve->ends[i] = (struct end){ 0, 0 };
    atomic_store_explicit(&curve->front.limit,
                          curve->share >= 1 ? UINT32_MAX : (uint32_t)(curve->share * 0x1p32),
                          memory_order_relaxed);
}

/* L1's size has changed: the ghosts follow, or are made anew where they were made for something else altogether. */
static void
ghosts_resize(struct curve *curve, size_t entries, size_t now)
{
    size_t whole;

    curve->entries = entries;
    whole          = ghost_entries(curve, NEAR__CURVE_POINTS - 1);
    if (2 * whole > 3 * curve->made_for[NEAR__CURVE_POINTS - 1] ||
        2 * whole < curve->made_for[NEAR__CURVE_POINTS - 1]) {
        ghosts_open(curve, entries, now);
        return;
    }
    for (int i = 0; i < NEAR__CURVE_POINTS; i++)
        near__simulator_resize(curve->ghosts[i], ghost_entries(curve, i));
}

near_status
near__curve_new(struct near__curve **out, const char *policy, size_t max_entries)
{
    struct curve *curve = calloc(1, sizeof(*curve));

    *out = NULL;
    if (curve == NULL)
        return NEAR_ERR_NOMEM;
    curve->ends = calloc(TIMES, sizeof(*curve->ends));
    if (curve->ends == NULL) {
        free(curve);
        return NEAR_ERR_NOMEM;
    }
    near__lock_init(&curve->lock, NEAR__RANK_LEAF);
    curve->policy   = policy;
    curve->pressure = 1;
    if (max_entries != 0)
        ghosts_open(curve, max_entries, 0);
    *out = &curve->front;
    return NEAR_OK;
}

void
near__curve_free(struct near__curve **out)
{
    struct curve *curve = (struct curve *)*out;

    *out = NULL;
    if (curve == NULL)
        return;
    ghosts_close(curve);
    near__lock_fini(&curve->lock);
    free(curve->ends);
    free(curve);
}

/* ---- requests */

/* L1 has used these bits for shards and homes, and the sample for its choice: others for the ghosts. */
static uint64_t
mixed(uint64_t hash)
{
    hash ^= hash >> 33;
    hash *= UINT64_C(0xff51afd7ed558ccd);
    hash ^= hash >> 29;
    hash *= UINT64_C(0xc4ceb9fe1a85ec53);
    return hash ^ hash >> 32;
}

static struct end *
set_of(const struct curve *curve, uint64_t key)
{
    return &curve->ends[key % (TIMES / WAYS) * WAYS];
}

/* NULL: it has none. */
static struct end *
end_of(const struct curve *curve, uint64_t key)
{
    struct end *set = set_of(curve, key);

    for (int i = 0; i < WAYS; i++)
        if (set[i].ms != 0 && set[i].key == (uint32_t)(key >> 32))
            return &set[i];
    return NULL;
}

static bool
is_sooner(const struct end *one, const struct end *other)
{
    return other->ms != 0 && (one->ms == 0 || (int32_t)(one->ms - other->ms) < 0);
}

/* 0: none.  In a full set the one that ends first makes room: it mostly has ended. */
static void
end_put(struct curve *curve, uint64_t key, uint32_t ms)
{
    struct end *set = set_of(curve, key), *at = end_of(curve, key);

    if (at == NULL && ms == 0)
        return;
    if (at == NULL) {
        at = set;
        for (int i = 1; i < WAYS; i++)
            if (is_sooner(&set[i], at))
                at = &set[i];
    }
    *at = (struct end){ (uint32_t)(key >> 32), ms };
}

static void
drop_locked(struct curve *curve, uint64_t key) NEAR__NEEDS(curve->lock)
{
    for (int i = 0; i < NEAR__CURVE_POINTS; i++)
        near__simulator_remove(curve->ghosts[i], key);
    end_put(curve, key, 0);
}

static void
halve_locked(struct curve *curve) NEAR__NEEDS(curve->lock)
{
    struct counts *counts = &curve->counts;
    uint64_t       lost   = atomic_load_explicit(&curve->lost, memory_order_relaxed);

    counts->reported /= 2;
    counts->missed /= 2;
    counts->all_hits /= 2;
    for (int i = 0; i < NEAR__CURVE_POINTS; i++) {
        counts->hit_hits[i] /= 2;
        counts->miss_hits[i] /= 2;
    }
    atomic_fetch_sub_explicit(&curve->lost, lost / 2, memory_order_relaxed);
    curve->fresh = 0;
}

static void
note_locked(struct curve *curve, uint64_t key, bool hit, int64_t now) NEAR__NEEDS(curve->lock)
{
    struct counts    *counts = &curve->counts;
    const struct end *end    = end_of(curve, key);
    bool              warm   = curve->warming == 0;

    if (end != NULL && (int32_t)(end->ms - (uint32_t)(now / NEAR_MS)) <= 0) {
        if (hit) /* past its time, so nobody uses it: the miss is about to be told, and only that counts */
            return;
        drop_locked(curve, key);
    }
    curve->samples++;
    curve->warming -= !warm;
    for (int i = 0; i < NEAR__CURVE_POINTS; i++) {
        bool there = near__simulator_access(curve->ghosts[i], key);

        (hit ? counts->hit_hits : counts->miss_hits)[i] += there && warm;
    }
    counts->reported += hit && warm;
    counts->missed += !hit && warm;
    curve->fresh += warm;
}

void
near__curve_note(struct near__curve *front, uint64_t hash, bool hit, int64_t now)
{
    struct curve *curve = (struct curve *)front;

    if (!try_enter(curve)) {
        if (!hit)
            atomic_fetch_add_explicit(&curve->lost, 1, memory_order_relaxed);
        return;
    }
    if (near__curve_follows(front, hash)) /* still */
        note_locked(curve, mixed(hash), hit, now);
    leave(curve);
}

void
near__curve_filled(struct near__curve *front, uint64_t hash, int64_t until)
{
    struct curve *curve = (struct curve *)front;
    uint64_t      key   = mixed(hash);
    uint32_t      ms    = until == NEAR_NEVER ? 0 : (uint32_t)(until / NEAR_MS);

    if (!try_enter(curve))
        return;
    end_put(curve, key, ms + (until != NEAR_NEVER && ms == 0));
    for (int i = 0; i < NEAR__CURVE_POINTS && near__curve_follows(front, hash); i++)
        near__simulator_put(curve->ghosts[i], key); /* a write of what nobody has asked for */
    leave(curve);
}

void
near__curve_drop(struct near__curve *front, uint64_t hash)
{
    struct curve *curve = (struct curve *)front;

    if (!try_enter(curve))
        return;
    if (near__curve_follows(front, hash))
        drop_locked(curve, mixed(hash));
    leave(curve);
}

void
near__curve_clear(struct near__curve *front)
{
    struct curve *curve = (struct curve *)front;

    enter(curve);
    for (int i = 0; i < NEAR__CURVE_POINTS && curve->ghosts[i] != NULL; i++)
        near__simulator_clear(curve->ghosts[i]);
    leave(curve);
}

/* ---- upkeep */

/* What L1 has counted since, as far as it is of keys that are followed. */
static void
take_hits_locked(struct curve *curve, uint64_t hits) NEAR__NEEDS(curve->lock)
{
    if (curve->warming == 0 && hits > curve->seen_hits)
        curve->counts.all_hits += curve->share * (double)(hits - curve->seen_hits);
    curve->seen_hits = hits;
    if (curve->fresh >= WINDOW) /* now that all counts are of one moment */
        halve_locked(curve);
}

/* How many entries fill L1; 0: that cannot be told yet. */
static size_t
full_entries(const struct near__curve_levels *levels)
{
    double n = 0;

    if (levels->max_bytes != 0 && levels->bytes != 0 &&
        (levels->entries >= FIRST || levels->bytes > levels->max_bytes / 4))
        n = (double)levels->max_bytes * (double)levels->entries / (double)levels->bytes;
    if (levels->max_entries != 0 && (n == 0 || n > (double)levels->max_entries))
        n = (double)levels->max_entries;
    return (size_t)n;
}

/* Whether the load asks for fewer keys, or allows more again. */
static bool
pressure_changed(struct curve *curve, int64_t now)
{
    double seconds = (double)(now - curve->seen_at) / (double)(1000 * NEAR_MS);
    double rate    = seconds > 0 ? (double)(curve->samples - curve->seen_samples) / seconds : 0;
    bool   first   = curve->seen_at == 0;

    if (!first && seconds < 0.05) /* too soon to tell */
        return false;
    curve->seen_at      = now;
    curve->seen_samples = curve->samples;
    if (first)
        return false;
    curve->calm = rate * 4 < MOST ? curve->calm + 1 : 0;
    if (rate > MOST && (double)curve->entries * curve->share > 2 * LEAST) {
        while (rate > MOST && (double)curve->entries * curve->share > 2 * LEAST) {
            rate /= 2;
            curve->pressure /= 2;
            curve->share /= 2;
        }
        return true;
    }
    if (curve->calm < CALM || curve->pressure >= 1)
        return false;
    curve->calm = 0;
    curve->pressure *= 2;
    return true;
}

void
near__curve_upkeep(struct near__curve *front, const struct near__curve_levels *levels)
{
    struct curve *curve = (struct curve *)front;
    size_t        full  = full_entries(levels);

    enter(curve);
    take_hits_locked(curve, levels->hits);
    if (full == 0) {
        leave(curve);
        return;
    }
    if (curve->ghosts[0] == NULL || pressure_changed(curve, levels->now))
        ghosts_open(curve, full, levels->entries);
    else if (full > curve->entries + curve->entries / 16 || full < curve->entries - curve->entries / 16)
        ghosts_resize(curve, full, levels->entries);
    leave(curve);
}

void
near__curve_read(struct near__curve *front, uint64_t hits, struct near__curve_answer *answer)
{
    struct curve        *curve  = (struct curve *)front;
    const struct counts *counts = &curve->counts;
    double               rest, lost, weight, asked;

    *answer = (struct near__curve_answer){ .share = 0 };
    enter(curve);
    take_hits_locked(curve, hits);
    rest            = counts->all_hits > counts->reported ? counts->all_hits - counts->reported : 0;
    lost            = (double)atomic_load_explicit(&curve->lost, memory_order_relaxed);
    weight          = counts->missed > 0 ? (counts->missed + lost) / counts->missed : 1;
    asked           = rest + counts->reported + counts->missed * weight;
    answer->samples = curve->samples;
    answer->bytes   = sizeof(*curve) + TIMES * sizeof(*curve->ends);
    for (int i = 0; i < NEAR__CURVE_POINTS && curve->ghosts[i] != NULL; i++) {
        struct near__simulator_bytes bytes = near__simulator_bytes(curve->ghosts[i]);

        answer->bytes += bytes.index + bytes.policy + bytes.pool;
    }
    if (asked > 0 && curve->share > 0) {
        answer->share    = curve->share;
        answer->requests = asked / curve->share;
        answer->entries  = curve->entries;
        for (int i = 0; i < NEAR__CURVE_POINTS; i++)
            answer->ratio[i] = (rest + counts->hit_hits[i] + counts->miss_hits[i] * weight) / asked;
    }
    leave(curve);
}
