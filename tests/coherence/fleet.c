/* See fleet.h. */
#include "coherence/fleet.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "l1/entry.h"

enum fleet_sabotage fleet_sabotage;

static int64_t
now_ns(void)
{
    return near__now(&near__clock_system);
}

static void
sleep_us(int64_t us)
{
    nanosleep(&(struct timespec){ us / 1000000, us % 1000000 * 1000 }, NULL);
}

static void
raise_to(_Atomic int64_t *most, int64_t value)
{
    int64_t now = atomic_load_explicit(most, memory_order_relaxed);

    while (value > now && !atomic_compare_exchange_weak(most, &now, value))
        ;
}

/* ---- values that say whose they are */

enum { VALUE_HEAD = 24, VALUE_MOST = 128 };

static uint64_t
mixed(unsigned key, uint64_t version)
{
    uint64_t state = key * UINT64_C(0x100000001B3) ^ version << 20;

    return test_random(&state);
}

static near_bytes
make_value(uint64_t *out, unsigned key, uint64_t version)
{
    size_t words = VALUE_HEAD / 8 + version % 8;

    out[0] = key;
    out[1] = version;
    for (size_t i = 2; i < words; i++)
        out[i] = mixed(key, version) + i;
    return (near_bytes){ out, words * 8 };
}

/* The version; 0: it is not this key's, or not whole. */
static uint64_t
version_of(near_bytes value, unsigned key)
{
    uint64_t words[VALUE_MOST / 8], right[VALUE_MOST / 8];

    if (value.size < VALUE_HEAD || value.size > VALUE_MOST)
        return 0;
    memcpy(words, value.data, value.size);
    if (words[0] != key || make_value(right, key, words[1]).size != value.size ||
        memcmp(words, right, value.size) != 0)
        return 0;
    return words[1];
}

static near_bytes
make_key(char *out, unsigned key)
{
    return (near_bytes){ out, (size_t)sprintf(out, "key%u", key) };
}

static const char *
make_tag(char *out, unsigned key)
{
    sprintf(out, "tag%u", key / FLEET_TAG_KEYS);
    return out;
}

/* ---- a thread's life */

struct tally {
    uint64_t reads, hits, writes, batches, stale_hits, stale_reads, own, backwards, impossible, wrong,
        unjudged, lapped, flagged, failed_reads, failed_writes, skipped_writes, late;
    uint64_t buckets[FLEET_BUCKETS];
};

struct process {
    struct fleet     *fleet;
    unsigned          self;
    near_client      *client;
    near_cache       *cache;
    int64_t           stats_at; /* its first thread's */
    _Atomic uint64_t *seen;     /* per key: the newest version that somebody here has read */
};

struct worker {
    struct process *process;
    unsigned        self;
    enum fleet_op   op; /* under way */
    uint64_t        random;
    struct tally    tally;
    pthread_t       thread;
};

/* Eight buckets for each power of two of 1/16 us. */
static unsigned
bucket_of(int64_t ns)
{
    uint64_t unit = (uint64_t)ns / 64 + 8;
    unsigned high = 63 - (unsigned)__builtin_clzll(unit);
    unsigned at   = (high - 3) * 8 + (unsigned)(unit >> (high - 3) & 7);

    return at < FLEET_BUCKETS ? at : FLEET_BUCKETS - 1;
}

static int64_t
bucket_top(unsigned at)
{
    return (int64_t)((((uint64_t)(at % 8) + 9) << at / 8) - 8) * 64;
}

/* The first few that may not be are described, for whoever has to find out why. */
static void
note(struct worker *w, const char *what, unsigned key, uint64_t version,
     const struct history_verdict *verdict, near_source source, int64_t began, int64_t ended)
{
    struct fleet_page    *page    = w->process->fleet->page;
    const struct history *history = w->process->fleet->history;
    unsigned              at      = page->incidents++;

    if (at >= FLEET_INCIDENTS)
        return;
    snprintf(
        page->incident[at], sizeof(page->incident[at]),
        "%s: process %u, op %d, key %u, version %llu (op %d) from tier %d after version %llu (op %d) had "
        "been "
        "acknowledged for %.3f ms (own %.3f ms); the read took %.3f ms; newest %llu, store %llu; at %.3f ms",
        what, w->process->self, (int)w->op, key, (unsigned long long)version,
        (int)history_how(history, key, version), (int)source, (unsigned long long)verdict->by,
        (int)history_how(history, key, verdict->by), (double)verdict->outdated / 1e6,
        (double)verdict->outdated_by_own / 1e6, (double)(ended - began) / 1e6,
        (unsigned long long)history_newest(history, key), (unsigned long long)page->store[key],
        (double)(began % (1000000 * NEAR_MS)) / 1e6);
}

static void
judge_hit(struct worker *w, const struct history_verdict *verdict, int64_t ended)
{
    const struct fleet *fleet = w->process->fleet;
    int64_t             old   = verdict->outdated;

    w->tally.hits++;
    if (w->tally.hits % 8 == 0)
        atomic_store_explicit(&fleet->page->hit_at[w->process->self], ended, memory_order_relaxed);
    if (old == 0)
        return;
    w->tally.buckets[bucket_of(old)]++;
    raise_to(&fleet->page->worst_hit, old);
    w->tally.stale_hits += old > fleet->plan.window_ms * NEAR_MS;
}

static void
judge_order(struct worker *w, unsigned key, uint64_t version, uint64_t seen)
{
    _Atomic uint64_t *newest = &w->process->seen[key];

    if (version < seen && history_precedes(w->process->fleet->history, key, version, seen))
        w->tally
            .backwards++; /* not promised: of two fills under way the older may land last; gone with the message */
    while (version > seen && !atomic_compare_exchange_weak(newest, &seen, version))
        ;
}

/* Takes the value over.  `seen`: the newest version known here before the read began. */
static void
judge(struct worker *w, unsigned key, uint64_t seen, near_status status, near_value *value, int64_t began,
      int64_t ended)
{
    const struct fleet    *fleet = w->process->fleet;
    near_source            source;
    struct history_verdict verdict;
    uint64_t               version;

    w->tally.reads++;
    if (status != NEAR_OK) {
        w->tally.failed_reads += status < 0;
        return;
    }
    version = version_of(near_value_bytes(value), key);
    source  = (near_source)((uintptr_t)value & NEAR__VALUE_SOURCE); /* near_value_get_info() asks a clock */
    if (version == 0) {
        w->tally.wrong++;
    } else if ((uintptr_t)value & NEAR__VALUE_STALE) {
        w->tally.flagged++;
    } else {
        verdict = history_judge(fleet->history, key, version, w->process->self, began, ended);
        w->tally.impossible += verdict.impossible;
        w->tally.lapped += verdict.lapped;
        w->tally.unjudged += verdict.unjudged;
        w->tally.own += verdict.outdated_by_own > 0;
        if (verdict.outdated > fleet->plan.window_ms * NEAR_MS || verdict.outdated_by_own > 0 ||
            verdict.impossible)
            note(w, "outdated", key, version, &verdict, source, began, ended);
        if (source == NEAR_FROM_L1) {
            judge_hit(w, &verdict, ended);
        } else if (verdict.outdated > 0) {
            raise_to(&fleet->page->worst_read, verdict.outdated);
            w->tally.stale_reads += verdict.outdated > fleet->plan.window_ms * NEAR_MS;
        }
        if (source != NEAR_FROM_LOADER) /* the store may be ahead of what the caches were told */
            judge_order(w, key, version, seen);
    }
    near_value_release(value);
}

/* A call that began at `began` may have taken `parts` deadlines, unless its process was stopped meanwhile. */
static void
keep_time(struct worker *w, int64_t began, int64_t ended, int parts, unsigned stops)
{
    struct fleet_page *page = w->process->fleet->page;
    int64_t            over = ended - began - parts * w->process->fleet->plan.deadline_ms * NEAR_MS;

    if (page->stops[w->process->self] != stops)
        return;
    if (over > page->worst_late)
        page->worst_op = (int)w->op;
    raise_to(&page->worst_late, over);
    w->tally.late += over > 50 * NEAR_MS;
}

static unsigned
any_key(struct worker *w)
{
    return (unsigned)(test_random(&w->random) >> 32) % w->process->fleet->plan.keys;
}

static void
read_one(struct worker *w, bool fetch)
{
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;
    struct process    *p       = w->process;
    unsigned           key = any_key(w), stops = p->fleet->page->stops[p->self];
    uint64_t           seen = atomic_load_explicit(&p->seen[key], memory_order_relaxed);
    char               name[24];
    near_bytes         bytes = make_key(name, key);
    near_value        *value;
    near_status        status;
    int64_t            began = now_ns(), ended;

    options.timeout_ms = p->fleet->plan.deadline_ms;
    status = fetch ? near_fetch(p->cache, bytes, &options, &value) : near_get(p->cache, bytes, &value);
    ended  = now_ns();
    judge(w, key, seen, status, value, began, ended);
    keep_time(w, began, ended, 1, stops);
    if (status == NEAR_ERR_UNAVAILABLE)
        sleep_us(200); /* as long as the server is known to be away there is nothing to see */
}

static void
read_many(struct worker *w, bool fetch)
{
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;
    struct process    *p       = w->process;
    unsigned           n = p->fleet->plan.batch, stops = p->fleet->page->stops[p->self], key[FLEET_BATCH];
    uint64_t           seen[FLEET_BATCH];
    char               names[FLEET_BATCH][24];
    near_bytes         bytes[FLEET_BATCH];
    near_value        *values[FLEET_BATCH];
    near_status        statuses[FLEET_BATCH];
    int64_t            began, ended;

    for (unsigned i = 0; i < n; i++) {
        key[i]   = any_key(w);
        seen[i]  = atomic_load_explicit(&p->seen[key[i]], memory_order_relaxed);
        bytes[i] = make_key(names[i], key[i]);
    }
    options.timeout_ms = p->fleet->plan.deadline_ms;
    began              = now_ns();
    if (fetch)
        near_fetch_many(p->cache, bytes, n, &options, values, statuses);
    else
        near_get_many(p->cache, bytes, n, values, statuses);
    ended = now_ns();
    for (unsigned i = 0; i < n; i++)
        judge(w, key[i], seen[i], statuses[i], values[i], began, ended);
    keep_time(w, began, ended, 1, stops);
}

/* ---- writes: a new version of each key, into the store, then the library, then acknowledged */

struct pending {
    unsigned n, key[FLEET_BATCH];
    uint64_t version[FLEET_BATCH];
};

static bool
begin_write(struct worker *w, struct pending *pending, unsigned key, enum fleet_op op)
{
    struct process *p = w->process;
    uint64_t        version;

    for (unsigned i = 0; i < pending->n; i++)
        if (pending->key[i] == key)
            return false;
    version = history_begin(p->fleet->history, key, p->self, op);
    if (version == 0) {
        w->tally.skipped_writes++;
        return false;
    }
    atomic_store(&p->fleet->page->store[key], version);
    pending->key[pending->n]       = key;
    pending->version[pending->n++] = version;
    return true;
}

static void
end_write(struct worker *w, const struct pending *pending, unsigned i, near_status status)
{
    history_end(w->process->fleet->history, pending->key[i], pending->version[i], status == NEAR_OK);
    w->tally.writes++;
    w->tally.failed_writes += status != NEAR_OK;
}

static void
put_many(struct worker *w, unsigned n)
{
    struct process *p       = w->process;
    struct pending  pending = { .n = 0 };
    char            names[FLEET_BATCH][24];
    uint64_t        room[FLEET_BATCH][VALUE_MOST / 8];
    near_bytes      keys[FLEET_BATCH], values[FLEET_BATCH];
    near_status     statuses[FLEET_BATCH];
    bool            tagged = p->fleet->plan.weights[FLEET_TAG] > 0;
    unsigned        group  = any_key(w) / FLEET_TAG_KEYS * FLEET_TAG_KEYS;
    char            text[24];
    const char     *tags[] = { make_tag(text, group) };

    near_put_options options = NEAR_PUT_OPTIONS_INIT;

    options.tags      = tags;
    options.tag_count = tagged;
    for (unsigned i = 0; i < n; i++) {
        unsigned key = tagged ? group + any_key(w) % FLEET_TAG_KEYS : any_key(w), at = pending.n;

        if (!begin_write(w, &pending, key, n == 1 ? FLEET_PUT : FLEET_PUT_MANY))
            continue;
        keys[at]   = make_key(names[at], key);
        values[at] = make_value(room[at], key, pending.version[at]);
    }
    if (pending.n == 1)
        statuses[0] = near_put(p->cache, keys[0], values[0], &options);
    else if (pending.n > 0)
        near_put_many(p->cache, keys, values, pending.n, &options, statuses);
    for (unsigned i = 0; i < pending.n; i++)
        end_write(w, &pending, i, statuses[i]);
}

/* The store has changed, and the library is told by one of its invalidations. */
static void
invalidate(struct worker *w, enum fleet_op op)
{
    struct process *p       = w->process;
    struct pending  pending = { .n = 0 };
    unsigned        key     = any_key(w) / FLEET_TAG_KEYS * FLEET_TAG_KEYS;
    unsigned        n       = op == FLEET_TAG ? FLEET_TAG_KEYS : op == FLEET_CLEAR ? 8 : 1;
    char            name[24];
    near_status     status;

    if (n == 1)
        key += (unsigned)(test_random(&w->random) % FLEET_TAG_KEYS);
    for (unsigned i = 0; i < n; i++)
        begin_write(w, &pending, (key + i) % p->fleet->plan.keys, op);
    if (op == FLEET_TAG)
        status = near_invalidate_tag(p->cache, make_tag(name, key));
    else if (op == FLEET_CLEAR)
        status = near_clear(p->cache);
    else if (op == FLEET_EXPIRE)
        status = near_expire(p->cache, make_key(name, key));
    else
        status = near_remove(p->cache, make_key(name, key));
    for (unsigned i = 0; i < pending.n; i++)
        end_write(w, &pending, i, status);
}

/* A pause, and how much longer than that it took. */
static void
pause_for_readers(struct worker *w, unsigned stops)
{
    const struct fleet *fleet = w->process->fleet;
    int64_t             began = now_ns();
    int64_t             us    = (int64_t)(test_random(&w->random) % (2 * (uint64_t)fleet->plan.pause_us));

    sleep_us(us);
    if (fleet->page->stops[w->process->self] == stops)
        raise_to(&fleet->page->worst_noise, now_ns() - began - us * 1000);
}

static void
write_once(struct worker *w, enum fleet_op op)
{
    struct process *p     = w->process;
    unsigned        stops = p->fleet->page->stops[p->self];
    int64_t         began = now_ns();

    if (op == FLEET_PUT || op == FLEET_PUT_MANY)
        put_many(w, op == FLEET_PUT ? 1 : p->fleet->plan.batch);
    else
        invalidate(w, op);
    w->tally.batches++;
    keep_time(w, began, now_ns(), 2, stops); /* once more where its outcome is unknown */
    if (p->fleet->plan.pause_us > 0)
        pause_for_readers(w, stops);
}

static enum fleet_op
next_op(struct worker *w)
{
    const struct fleet_plan *plan  = &w->process->fleet->plan;
    bool                     reads = w->self < plan->readers || w->process->self < plan->only_read;
    unsigned                 ops = reads ? FLEET_PUT : FLEET_OPS, sum = 0, drawn;

    for (unsigned op = 0; op < ops; op++)
        sum += plan->weights[op];
    drawn = (unsigned)(test_random(&w->random) >> 32) % sum;
    for (unsigned op = 0; op < ops; op++) {
        if (drawn < plan->weights[op])
            return (enum fleet_op)op;
        drawn -= plan->weights[op];
    }
    return FLEET_GET;
}

static void
step(struct worker *w)
{
    enum fleet_op op = w->op = next_op(w);

    if (op == FLEET_GET || op == FLEET_FETCH)
        read_one(w, op == FLEET_FETCH);
    else if (op == FLEET_GET_MANY || op == FLEET_FETCH_MANY)
        read_many(w, op == FLEET_FETCH_MANY);
    else
        write_once(w, op);
}

static void
hand_in(struct worker *w)
{
    struct fleet_page *page = w->process->fleet->page;

#define HAND_IN(field) page->field += w->tally.field
    HAND_IN(reads);
    HAND_IN(hits);
    HAND_IN(writes);
    HAND_IN(batches);
    HAND_IN(stale_hits);
    HAND_IN(stale_reads);
    HAND_IN(own);
    HAND_IN(backwards);
    HAND_IN(impossible);
    HAND_IN(wrong);
    HAND_IN(unjudged);
    HAND_IN(lapped);
    HAND_IN(flagged);
    HAND_IN(failed_reads);
    HAND_IN(failed_writes);
    HAND_IN(skipped_writes);
    HAND_IN(late);
#undef HAND_IN
    for (unsigned i = 0; i < FLEET_BUCKETS; i++)
        if (w->tally.buckets[i] > 0)
            page->buckets[i] += w->tally.buckets[i];
    memset(&w->tally, 0, sizeof(w->tally));
}

/* Ten times a second. */
static void
hand_in_stats(struct process *p)
{
    near_stats stats = NEAR_STATS_INIT;
    int64_t    now   = now_ns();

    if (now < p->stats_at)
        return;
    p->stats_at = now + 100 * NEAR_MS;
    if (near_stats_get(p->client, &stats) == NEAR_OK)
        p->fleet->page->stats[p->self] = stats;
}

/* ---- L1 beside L2 */

static bool
version_in(struct process *p, unsigned flags, unsigned key, uint64_t *version)
{
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    char             name[24];
    near_value      *value;
    near_status      status;

    options.flags      = flags;
    options.timeout_ms = 5000;
    status             = near_get_with(p->cache, make_key(name, key), &options, &value);
    *version           = status == NEAR_OK ? version_of(near_value_bytes(value), key) : 0;
    near_value_release(value);
    return status >= 0;
}

/* What the loader took for the value in L1 or L2 (`of`), 0: it is no loader's. */
static unsigned long
load_us(const char *explained, const char *of)
{
    const char *at = explained != NULL ? strstr(explained, of) : NULL, *loaded;

    loaded = at != NULL ? strstr(at, "\"load_us\":") : NULL;
    return loaded != NULL ? strtoul(loaded + strlen("\"load_us\":"), NULL, 10) : 0;
}

/* No message is missing where a loader has answered for the one level and not for the other: the store orders two overlapping writes as
 * it likes, and the caches by who came last.  It answers for L1 while L2 cannot be asked, and for L2 when that has lost what it had.
 * But the older of the two is none that an acknowledged write came after. */
static bool
is_ahead(const struct process *p, unsigned key, uint64_t in_l1, uint64_t in_l2, const char *explained)
{
    int64_t                now      = now_ns();
    uint64_t               older    = in_l1 < in_l2 ? in_l1 : in_l2;
    struct history_verdict of_older = history_judge(p->fleet->history, key, older, ~0u, now, now);

    return load_us(explained, in_l1 > in_l2 ? "\"l1\":" : "\"l2\":") > 0 && of_older.outdated == 0;
}

static void
note_difference(struct process *p, unsigned key, uint64_t in_l1, uint64_t in_l2)
{
    struct fleet_page    *page    = p->fleet->page;
    const struct history *history = p->fleet->history;
    int64_t               now     = now_ns();
    char                  one[96], other[96], name[24];
    char                 *explained = near_explain(p->cache, make_key(name, key)); /* its origin, above all */
    unsigned              at;

    if (is_ahead(p, key, in_l1, in_l2, explained)) {
        page->ahead++;
        free(explained);
        return;
    }
    page->inconsistent++;
    at = page->incidents++;
    if (at < FLEET_INCIDENTS)
        snprintf(page->incident[at], sizeof(page->incident[at]),
                 "inconsistent: process %u, key %u: L1 has %s, L2 %s; newest %llu, store %llu; %s", p->self,
                 key, history_describe(history, key, in_l1, now, one, sizeof(one)),
                 history_describe(history, key, in_l2, now, other, sizeof(other)),
                 (unsigned long long)history_newest(history, key), (unsigned long long)page->store[key],
                 explained != NULL ? explained : "");
    free(explained);
}

/* Each thread its share of the keys. */
static void
compare(struct process *p, unsigned self)
{
    struct fleet_page *page = p->fleet->page;
    uint64_t           in_l1, in_l2;

    for (unsigned key = self; key < p->fleet->plan.keys; key += p->fleet->plan.threads) {
        if (!version_in(p, NEAR_ONLY_L1, key, &in_l1) || in_l1 == 0 ||
            !version_in(p, NEAR_SKIP_L1 | NEAR_NO_FILL, key, &in_l2))
            continue;
        page->compared_keys++;
        if (in_l2 != 0 && in_l1 != in_l2)
            note_difference(p, key, in_l1, in_l2);
        page->left += in_l2 == 0;
    }
}

static void *
work(void *ctx)
{
    struct worker     *w    = ctx;
    struct fleet_page *page = w->process->fleet->page;
    unsigned           turn;

    for (;;) {
        switch (atomic_load(&page->phase)) {
        case FLEET_RUN:
            for (unsigned i = 0; i < 16 && page->phase == FLEET_RUN; i++)
                step(w);
            hand_in(w);
            if (w->self == 0)
                hand_in_stats(w->process);
            break;
        case FLEET_END:
            return NULL;
        case FLEET_WAIT:
            sleep_us(100);
            break;
        default:
            turn = page->turn;
            page->quiet++;
            while (page->turn == turn && page->phase != FLEET_COMPARE && page->phase != FLEET_END) {
                if (w->self == 0)
                    hand_in_stats(w->process);
                sleep_us(100);
            }
            if (page->phase == FLEET_COMPARE) {
                compare(w->process, w->self);
                page->compared++;
            }
            while (page->turn == turn && page->phase != FLEET_END)
                sleep_us(100);
        }
    }
}

/* ---- a process's life */

static void
load_from_store(near_load *loads[], size_t n, void *ctx)
{
    struct fleet *fleet = ctx;

    for (size_t i = 0; i < n; i++) {
        near_bytes bytes = near_load_key(loads[i]);
        uint64_t   room[VALUE_MOST / 8], version = 0;
        char       name[24] = "", tag[24];
        unsigned   key      = 0;

        if (bytes.size < sizeof(name)) {
            memcpy(name, bytes.data, bytes.size);
            if (sscanf(name, "key%u", &key) == 1 && key < fleet->plan.keys)
                version = atomic_load(&fleet->page->store[key]);
        }
        if (fleet->plan.weights[FLEET_TAG] > 0)
            near_load_tag(loads[i],
                          make_tag(tag, key)); /* before the store is read would be too late to matter */
        if (version == 0)
            near_load_not_found(loads[i]);
        else
            near_load_set(loads[i], make_value(room, key, version));
    }
}

static bool
open_process(struct process *p)
{
    const struct fleet *fleet  = p->fleet;
    near_config        *config = near_config_new();
    near_error          error;
    bool good = near_config_set(config, "l2.uri", fleet->page->l2[p->self], &error) == NEAR_OK &&
                near_config_set(config, "coherence.uri", fleet->page->bus[p->self], &error) == NEAR_OK;

    for (size_t i = 0; good && fleet->plan.settings != NULL && fleet->plan.settings[i] != NULL; i += 2)
        good =
            near_config_set(config, fleet->plan.settings[i], fleet->plan.settings[i + 1], &error) == NEAR_OK;
    good = good && near_client_open(config, &p->client, &error) == NEAR_OK &&
           near_cache_open(p->client, "things", NULL, &p->cache, &error) == NEAR_OK;
    if (!good)
        print_error("process %u: %s\n", p->self, error.text);
    near_config_free(config);
    p->seen = calloc(fleet->plan.keys, sizeof(*p->seen));
    if (good)
        near_cache_set_loader(p->cache, load_from_store, p->fleet);
    return good && p->seen != NULL;
}

/* Every key once, so that there is something to hit. */
static void
warm_up(struct process *p)
{
    char        name[24];
    near_value *value;

    for (unsigned key = 0; key < p->fleet->plan.keys; key++) {
        near_fetch(p->cache, make_key(name, key), NULL, &value);
        near_value_release(value);
    }
}

static int
live(struct fleet *fleet, unsigned self)
{
    struct process     p = { .fleet = fleet, .self = self };
    struct worker      workers[FLEET_THREADS];
    struct fleet_page *page = fleet->page;

    fleet_sabotage = fleet->plan.sabotage;
    while (page->phase == FLEET_WAIT && page->turn == 0)
        sleep_us(200);
    if (!open_process(&p)) {
        page->failed_to_open = 1;
        page->ready++;
        return 1;
    }
    if (fleet->plan.warm)
        warm_up(&p);
    page->ready++;
    for (unsigned i = 0; i < fleet->plan.threads; i++) {
        workers[i] = (struct worker){ .process = &p, .self = i, .random = (self * 64 + i + 1) << 20 };
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            return 2;
    }
    for (unsigned i = 0; i < fleet->plan.threads; i++)
        pthread_join(workers[i].thread, NULL);
    near_client_close(p.client, NULL);
    free(p.seen);
    return 0;
}

/* ---- what the test does */

struct fleet *
fleet_new(const struct fleet_plan *plan)
{
    struct fleet *fleet = calloc(1, sizeof(*fleet));

    if (fleet == NULL)
        return NULL;
    fleet->plan      = *plan;
    fleet->page_size = sizeof(*fleet->page) + plan->keys * sizeof(fleet->page->store[0]);
    fleet->page    = mmap(NULL, fleet->page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fleet->history = history_new(plan->keys);
    if (fleet->page == MAP_FAILED || fleet->history == NULL) {
        free(fleet);
        return NULL;
    }
    for (unsigned key = 0; plan->warm && key < plan->keys; key++) {
        fleet->page->store[key] = history_begin(fleet->history, key, 0, FLEET_PUT);
        history_end(fleet->history, key, fleet->page->store[key], true);
    }
    return fleet;
}

void
fleet_launch(struct fleet *fleet)
{
    pid_t parent = getpid();

    fflush(NULL);
    for (unsigned i = 0; i < fleet->plan.processes; i++) {
        fleet->pids[i] = fork();
        assert_true(fleet->pids[i] >= 0);
        if (fleet->pids[i] != 0)
            continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(3);
        _exit(live(fleet, i));
    }
}

void
fleet_lead(struct fleet *fleet, unsigned process, const char *l2, const char *bus)
{
    snprintf(fleet->page->l2[process], sizeof(fleet->page->l2[0]), "%s", l2);
    snprintf(fleet->page->bus[process], sizeof(fleet->page->bus[0]), "%s", bus);
}

static int
are_ready(void *ctx)
{
    struct fleet *fleet = ctx;

    return fleet->page->ready >= fleet->plan.processes;
}

bool
fleet_open(struct fleet *fleet)
{
    fleet->page->turn++;
    return test_wait_for(are_ready, fleet, 20000 * test_slack()) && !fleet->page->failed_to_open;
}

void
fleet_run(struct fleet *fleet)
{
    fleet->page->quiet    = 0;
    fleet->page->compared = 0;
    fleet->page->phase    = FLEET_RUN;
    fleet->page->turn++;
}

static int
are_quiet(void *ctx)
{
    struct fleet *fleet = ctx;

    return fleet->page->quiet >= fleet->plan.processes * fleet->plan.threads;
}

void
fleet_quiet(struct fleet *fleet)
{
    fleet->page->phase = FLEET_QUIET;
    assert_true(test_wait_for(are_quiet, fleet, 30000 * test_slack()));
}

static int
owe_nothing(void *ctx)
{
    const struct fleet *fleet = ctx;
    uint64_t            owed  = 0;

    for (unsigned i = 0; i < fleet->plan.processes; i++)
        owed += fleet->page->stats[i].invalidations_pending;
    return owed == 0;
}

bool
fleet_await_debts(struct fleet *fleet, int64_t ms)
{
    sleep_us(150 * 1000); /* so that what they say of themselves is from after they stood still */
    return test_wait_for(owe_nothing, fleet, ms);
}

static int
have_compared(void *ctx)
{
    struct fleet *fleet = ctx;

    return fleet->page->compared >= fleet->plan.processes * fleet->plan.threads;
}

void
fleet_compare(struct fleet *fleet)
{
    fleet->page->phase = FLEET_COMPARE;
    assert_true(test_wait_for(have_compared, fleet, 60000 * test_slack()));
}

bool
fleet_end(struct fleet *fleet)
{
    bool good = true;
    int  status;

    fleet->page->phase = FLEET_END;
    for (unsigned i = 0; i < fleet->plan.processes; i++) {
        if (fleet->pids[i] <= 0)
            continue;
        good &= waitpid(fleet->pids[i], &status, 0) == fleet->pids[i] && WIFEXITED(status) &&
                WEXITSTATUS(status) == 0;
        fleet->pids[i] = 0;
    }
    return good;
}

void
fleet_free(struct fleet **pfleet)
{
    struct fleet *fleet = *pfleet;

    if (fleet == NULL)
        return;
    for (unsigned i = 0; i < fleet->plan.processes; i++)
        if (fleet->pids[i] > 0) {
            kill(fleet->pids[i], SIGKILL);
            waitpid(fleet->pids[i], NULL, 0);
        }
    munmap(fleet->page, fleet->page_size);
    history_free(&fleet->history);
    free(fleet);
    *pfleet = NULL;
}

void
fleet_stop(struct fleet *fleet, unsigned process)
{
    fleet->page->stops[process]++;
    kill(fleet->pids[process], SIGSTOP);
}

void
fleet_continue(struct fleet *fleet, unsigned process)
{
    fleet->page->stops[process]++;
    kill(fleet->pids[process], SIGCONT);
}

int64_t
fleet_await_hits(struct fleet *fleet, int64_t since, int64_t ms)
{
    for (unsigned i = 0; i < fleet->plan.processes;) {
        if (fleet->page->hit_at[i] > since)
            i++;
        else if (now_ns() - since > ms * NEAR_MS)
            return -1;
        else
            sleep_us(500);
    }
    return now_ns() - since;
}

int64_t
fleet_quantile(const struct fleet *fleet, double share)
{
    const struct fleet_page *page     = fleet->page;
    uint64_t                 outdated = 0, below;

    for (unsigned i = 0; i < FLEET_BUCKETS; i++)
        outdated += page->buckets[i];
    below = page->hits - outdated; /* these were not outdated at all */
    for (unsigned i = 0; i < FLEET_BUCKETS; i++) {
        if ((double)below >= share * (double)page->hits)
            return i == 0 ? 0 : bucket_top(i - 1);
        below += page->buckets[i];
    }
    return page->worst_hit;
}

void
fleet_explain(const struct fleet *fleet)
{
    for (unsigned i = 0; i < fleet->plan.processes; i++) {
        const near_stats *s = &fleet->page->stats[i];

        print_message("    process %u: last hit %.1f ms ago; bus %llu, connects %llu, gaps %llu, bad %llu, "
                      "flushes %llu, "
                      "storms %llu, suspicions %llu; gate closed %llu, fills %llu, refused %llu, entries "
                      "%llu; L2 errors "
                      "%llu, connects %llu, owed %llu of %llu\n",
                      i, (double)(now_ns() - fleet->page->hit_at[i]) / 1e6,
                      (unsigned long long)s->bus_connected, (unsigned long long)s->bus_connects,
                      (unsigned long long)s->bus_gaps, (unsigned long long)s->bus_bad_messages,
                      (unsigned long long)s->bus_flushes, (unsigned long long)s->bus_storms,
                      (unsigned long long)s->bus_suspicions, (unsigned long long)s->gate_closed_reads,
                      (unsigned long long)s->l1_fills, (unsigned long long)s->l1_fills_refused,
                      (unsigned long long)s->l1_entries, (unsigned long long)s->l2_errors,
                      (unsigned long long)s->l2_connects, (unsigned long long)s->invalidations_pending,
                      (unsigned long long)s->invalidations_kept);
    }
}

void
fleet_print(const struct fleet *fleet, const char *what, int64_t ms)
{
    const struct fleet_page *page = fleet->page;

    print_message(
        "%s: %llu writes (%llu not acknowledged), %llu reads, %llu L1 hits checked in %.1f s "
        "(%.0f/s): %llu outdated beyond %lld ms, %llu wrong or impossible, %llu older than their own "
        "process's writes, %llu backwards; outdated p99 %.1f us, p99.99 %.1f us, max %.1f us; "
        "other reads: %llu outdated, max %.1f us; %llu unjudged, %llu flagged, %llu skipped\n",
        what, (unsigned long long)page->writes, (unsigned long long)page->failed_writes,
        (unsigned long long)page->reads, (unsigned long long)page->hits, (double)ms / 1e3,
        (double)page->hits * 1e3 / (double)(ms + 1), (unsigned long long)page->stale_hits,
        (long long)fleet->plan.window_ms, (unsigned long long)(page->wrong + page->impossible),
        (unsigned long long)page->own, (unsigned long long)page->backwards,
        (double)fleet_quantile(fleet, 0.99) / 1e3, (double)fleet_quantile(fleet, 0.9999) / 1e3,
        (double)page->worst_hit / 1e3, (unsigned long long)page->stale_reads, (double)page->worst_read / 1e3,
        (unsigned long long)page->unjudged, (unsigned long long)page->flagged,
        (unsigned long long)page->skipped_writes);
    for (unsigned i = 0; i < page->incidents && i < FLEET_INCIDENTS; i++)
        print_message("    %s\n", page->incident[i]);
}
