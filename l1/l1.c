/*
 * The index, the bounds and the fences.
 *
 *   l1 ── shards[]   64-byte aligned; each has a lock, a chained hash table, the policy's queue, its share of
 *     │              the bounds
 *     └── stripes[]  fence and count of local writes under way, for all keys whose hash selects the stripe
 *
 * The low bits of the hash select the stripe, fewer of them the shard, so one stripe lies in one shard and that
 * shard's lock covers it; bits from 32 on select the bucket.  Fences are written under the shard's lock and read
 * without (near__l1_fence).
 *
 * An L1 holds one reference to each linked entry.  What leaves is unlinked under the lock into a chain of the
 * caller's (the `chain` field, free from then on), and let go after the lock was dropped: an adopted value's
 * release function is the application's, and it may come straight back.  That chain is no longer than the shard
 * was, and needs no memory.
 *
 * The fence of a key is the sum of its stripe's counter and the whole cache's epoch.  Both only grow, so an equal
 * sum means that neither has moved, although the two are not read at one moment.  Flush moves the epoch first and
 * then clears shard by shard: an insert that ran in a shard before the clearing is cleared, one that runs after it
 * sees the new epoch (the lock orders them) and is refused.
 *
 * Why nothing older than an acknowledged write can remain
 *
 * Take the order in which L2 executed the writes.  The assumptions: every write, local or foreign, is executed by
 * L2 before its invalidation is sent (race 7), and a local one is executed between its begin and its end.  An
 * acknowledged local write is one whose end has returned; a foreign one counts once its invalidation was applied
 * here.  Claim: L1 never holds a value that L2 wrote before an acknowledged write.  A value gets in by two doors.
 *
 *   Fill: capture, read L2, insert.  Let W be an acknowledged write: its end, or its invalidation here.
 *     W | capture ...       the read comes after W in L2: not older.
 *     capture | W | insert  W moved the fence: refused, whether the key was present or absent, and evicted since
 *                           or not (races 1, 3, 5).
 *     insert | W            W drops the key under the same lock.
 *
 *   Local write A: begin, write L2, end.  B is another local write of the stripe, F a foreign invalidation.
 *     B.end | A.begin            B comes before A in L2: not older.
 *     A.end | B.begin            B's begin drops the key.
 *     A.begin | B.begin | A.end  their order in L2 is unknown, so neither may guess.  B's begin moved the fence:
 *                                A's end does not admit.  B was told `overlapped` at its begin: B's end does not
 *                                admit.  It does not matter which ends first, nor how many more overlap the two.
 *     A.begin | F | A.end        F's write may come before or after A's in L2.  F moved the fence: A's end does not
 *                                admit.
 *     F | A.begin                F's write was applied, so executed, before A's: not older.
 *     A.end | F                  F drops the key, needlessly if A's was the later one.
 *
 *   Each end moves the fence, so a fill that read between A.begin and A's turn in L2 is refused when it comes
 *   after the end (G1).  One that comes before the end is refused because a write is under way: it would be dropped
 *   at the end, and until then two such fills, one that read before A's turn and one after, could follow each
 *   other in the wrong order.  That rule and `overlapped` make reads monotonic, too: without foreign writers L1 is
 *   at every moment empty or equal to L2.  (tests/unit/test_l1_races.c plays all of it in every order.)
 *
 * Two things are left to others.  A write whose outcome is unknown may be executed after its end (which admits
 * nothing): until its invalidation comes back L1 may hold an acknowledged value that L2 has since lost to it; see
 * near__coherence_doubt().  And between a foreign write and its invalidation two fills can bring different values
 * and arrive in the wrong order: that lasts as long as the delivery (G2), and single-flight keeps it rare.
 *
 * Locks: the shard's, rank NEAR__RANK_SHARD, never two at once.  Under it memory is allocated only when a table
 * grows.
 */
#include "l1/l1.h"

#include "base/lock.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

enum {
    CACHE_LINE    = 64,
    SHARD_ENTRIES = 4096,            /* a shard should hold at least so many ... */
    SHARD_BYTES   = 4 * 1024 * 1024, /* ... and so much, so that a value of 1 MiB does not sweep it out */
    SHARDS_MAX    = 64,              /* when chosen here */
    ENTRY_BYTES   = 256,             /* expected, where only bytes are known */
    STRIPES_MIN   = 1024,            /* a batch of writes must not meet itself at every key */
    STRIPES_MAX   = 65536,
    BUCKETS_FIRST = 16, /* size of the first real table */
    BUCKET_SHIFT  = 32,
    MALLOC_HEADER = 8
};

struct stripe {
    _Atomic uint64_t fence;   /* written under the shard's lock, read by anybody */
    uint32_t         writers; /* local writes between begin and end; shard's lock */
};

struct shard {
    struct near__lock     lock; /* covers everything below but the two bounds */
    size_t                mask; /* buckets - 1 */
    struct near__entry  **buckets;
    struct near__entry   *only; /* the table of an empty shard: one bucket that costs nothing */
    struct near__l1_queue queue;
    size_t                hand; /* where the sweep for expired entries goes on */
    struct near__l1_stats stats;
    size_t                max_bytes, max_entries; /* fixed at birth */
} __attribute__((aligned(CACHE_LINE)));

struct near__l1 {
    const struct near__l1_policy *policy;
    size_t                        shard_mask, stripe_mask;
    struct stripe                *stripes;
    _Atomic uint64_t              epoch; /* moved by flush: the fence of everything */
    struct shard                  shards[];
};

/* ---- places */

static struct shard *
shard_of(struct near__l1 *l1, uint64_t hash)
{
    return &l1->shards[hash & l1->shard_mask];
}

static struct stripe *
stripe_of(const struct near__l1 *l1, uint64_t hash)
{
    return &l1->stripes[hash & l1->stripe_mask];
}

static struct near__entry **
bucket_of(struct shard *sh, uint64_t hash)
{
    return &sh->buckets[(hash >> BUCKET_SHIFT) & sh->mask];
}

/* The link that points to the key's entry, or the one that ends its chain.  Equal hashes do not make equal keys
 * (G0). */
static struct near__entry **
lookup_locked(struct shard *sh, uint64_t hash, near_bytes key)
{
    struct near__entry **link = bucket_of(sh, hash);

    while (*link != NULL && ((*link)->hash != hash || !near__bytes_equal(near__entry_key(*link), key)))
        link = &(*link)->chain;
    return link;
}

static struct near__entry **
link_to_locked(struct shard *sh, const struct near__entry *entry)
{
    struct near__entry **link = bucket_of(sh, entry->hash);

    while (*link != entry)
        link = &(*link)->chain;
    return link;
}

/* ---- coming and going */

static size_t
table_cost(const struct shard *sh)
{
    return sh->buckets == &sh->only ? 0 : malloc_usable_size(sh->buckets) + MALLOC_HEADER;
}

/* Room for one more, so that chains stay about one entry long.  Without memory for a bigger table they get longer,
 * and the next insert tries again. */
static void
grow_locked(struct shard *sh)
{
    size_t               count = sh->mask == 0 ? BUCKETS_FIRST : 2 * (sh->mask + 1);
    struct near__entry **buckets, *entry, *next, **to;

    if (sh->stats.entries <= sh->mask)
        return;
    buckets = calloc(count, sizeof(*buckets));
    if (buckets == NULL)
        return;
    for (size_t i = 0; i <= sh->mask; i++) {
        for (entry = sh->buckets[i]; entry != NULL; entry = next) {
            next         = entry->chain;
            to           = &buckets[(entry->hash >> BUCKET_SHIFT) & (count - 1)];
            entry->chain = *to;
            *to          = entry;
        }
    }
    sh->stats.bytes -= table_cost(sh);
    if (sh->buckets != &sh->only)
        free(sh->buckets);
    sh->only    = NULL;
    sh->buckets = buckets;
    sh->mask    = count - 1;
    sh->stats.bytes += table_cost(sh);
}

/* Takes over the caller's reference. */
static void
link_locked(struct near__l1 *l1, struct shard *sh, struct near__entry *entry)
{
    struct near__entry **bucket = bucket_of(sh, entry->hash);

    entry->chain  = *bucket;
    *bucket       = entry;
    entry->linked = true; /* for good */
    sh->stats.entries++;
    sh->stats.bytes += near__entry_cost(entry);
    l1->policy->link(&sh->queue, entry);
}

/* The entry and the L1's reference to it go to `dead`. */
static void
unlink_locked(struct near__l1 *l1, struct shard *sh, struct near__entry **link, struct near__entry **dead)
{
    struct near__entry *entry = *link;

    l1->policy->unlink(&sh->queue, entry);
    *link = entry->chain;
    sh->stats.entries--;
    sh->stats.bytes -= near__entry_cost(entry);
    entry->chain = *dead;
    *dead        = entry;
}

static void
drop_locked(struct near__l1 *l1, struct shard *sh, uint64_t hash, near_bytes key, struct near__entry **dead)
{
    struct near__entry **link = lookup_locked(sh, hash, key);

    if (*link != NULL)
        unlink_locked(l1, sh, link, dead);
}

static void
evict_locked(struct near__l1 *l1, struct shard *sh, size_t cost, struct near__entry **dead)
{
    struct near__entry *victim;

    while (sh->stats.entries >= sh->max_entries || sh->stats.bytes + cost > sh->max_bytes) {
        victim = l1->policy->victim(&sh->queue);
        if (victim == NULL)
            return;
        unlink_locked(l1, sh, link_to_locked(sh, victim), dead);
        sh->stats.evictions++;
    }
}

/* No lock may be held: the last holder of an adopted value calls the application. */
static void
let_go(struct near__entry *dead)
{
    struct near__entry *next;

    for (; dead != NULL; dead = next) {
        next = dead->chain;
        near__entry_release(&dead);
    }
}

/* The lock is held for a few instructions only, however much there is to let go. */
static void
clear(struct shard *sh)
{
    struct near__entry **buckets, *only;
    size_t               mask;

    near__lock(&sh->lock);
    buckets           = sh->buckets;
    only              = sh->only;
    mask              = sh->mask;
    sh->buckets       = &sh->only;
    sh->only          = NULL;
    sh->mask          = 0;
    sh->queue         = (struct near__l1_queue){ NULL, NULL };
    sh->stats.entries = sh->stats.bytes = 0;
    near__unlock(&sh->lock);

    if (buckets == &sh->only) {
        let_go(only);
        return;
    }
    for (size_t i = 0; i <= mask; i++)
        let_go(buckets[i]);
    free(buckets);
}

/* ---- birth and end */

static size_t
smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* The largest power of two that is not above `n`; 1 for 0. */
static size_t
power_below(size_t n)
{
    return n == 0 ? 1 : (size_t)1 << (63 - __builtin_clzll(n));
}

static size_t
choose_shards(const struct near__l1_config *config)
{
    size_t entries = config->max_entries != 0 ? config->max_entries : SIZE_MAX;

    if (config->shards != 0)
        return smaller(config->shards, power_below(entries)); /* each must be allowed one entry */
    return smaller(power_below(smaller(entries / SHARD_ENTRIES, config->max_bytes / SHARD_BYTES)),
                   SHARDS_MAX);
}

static size_t
choose_stripes(const struct near__l1_config *config, size_t shards)
{
    size_t expected = config->max_bytes / ENTRY_BYTES;
    size_t stripes;

    if (config->max_entries != 0)
        expected = smaller(expected, config->max_entries);
    stripes = smaller(power_below(expected / 4), STRIPES_MAX);
    if (stripes < STRIPES_MIN)
        stripes = STRIPES_MIN;
    return stripes < shards ? shards : stripes;
}

static void
shard_init(struct shard *sh, const struct near__l1_config *config, size_t index, size_t shards)
{
    near__lock_init(&sh->lock, NEAR__RANK_SHARD);
    sh->buckets     = &sh->only;
    sh->max_bytes   = config->max_bytes / shards;
    sh->max_entries = SIZE_MAX;
    if (config->max_entries != 0)
        sh->max_entries = config->max_entries / shards + (index < config->max_entries % shards);
}

static bool
config_valid(const struct near__l1_config *config)
{
    return near__l1_policy_named(config->policy) != NULL && config->shards <= STRIPES_MAX &&
           (config->shards & (config->shards - 1)) == 0;
}

near_status
near__l1_new(struct near__l1 **out, const struct near__l1_config *config)
{
    size_t           shards, stripes, size;
    struct near__l1 *l1;

    *out = NULL;
    if (!config_valid(config))
        return NEAR_ERR_INVALID;
    shards  = choose_shards(config);
    stripes = choose_stripes(config, shards);
    size    = sizeof(*l1) + shards * sizeof(struct shard);
    l1      = aligned_alloc(CACHE_LINE, size);
    if (l1 == NULL)
        return NEAR_ERR_NOMEM;
    memset(l1, 0, size);
    l1->stripes = calloc(stripes, sizeof(*l1->stripes));
    if (l1->stripes == NULL) {
        free(l1);
        return NEAR_ERR_NOMEM;
    }
    l1->policy      = near__l1_policy_named(config->policy);
    l1->shard_mask  = shards - 1;
    l1->stripe_mask = stripes - 1;
    for (size_t i = 0; i < shards; i++)
        shard_init(&l1->shards[i], config, i, shards);
    *out = l1;
    return NEAR_OK;
}

void
near__l1_free(struct near__l1 **out)
{
    struct near__l1 *l1 = *out;

    *out = NULL;
    if (l1 == NULL)
        return;
    for (size_t i = 0; i <= l1->shard_mask; i++) {
        clear(&l1->shards[i]);
        near__lock_fini(&l1->shards[i].lock);
    }
    free(l1->stripes);
    free(l1);
}

/* ---- reading */

struct near__entry *
near__l1_find(struct near__l1 *l1, uint64_t hash, near_bytes key, int64_t now)
{
    struct shard       *sh   = shard_of(l1, hash);
    struct near__entry *dead = NULL, *entry, **link;

    near__lock(&sh->lock);
    link  = lookup_locked(sh, hash, key);
    entry = *link;
    if (entry != NULL && entry->expires <= now) {
        unlink_locked(l1, sh, link, &dead);
        sh->stats.expired++;
        entry = NULL;
    }
    if (entry != NULL) {
        l1->policy->hit(&sh->queue, entry);
        near__entry_ref(entry);
    }
    near__unlock(&sh->lock);
    let_go(dead);
    return entry;
}

uint64_t
near__l1_fence(const struct near__l1 *l1, uint64_t hash)
{
    /* acquire: the stripe's pairs with fence_move_locked(), the epoch's with near__l1_flush() */
    return atomic_load_explicit(&stripe_of(l1, hash)->fence, memory_order_acquire) +
           atomic_load_explicit(&l1->epoch, memory_order_acquire);
}

/* ---- filling */

static void
fence_move_locked(struct near__l1 *l1, uint64_t hash)
{
    /* release: who captures the new fence asks L2 after everything that came before this invalidation */
    atomic_fetch_add_explicit(&stripe_of(l1, hash)->fence, 1, memory_order_release);
}

/* The fence has been found unmoved.  Whatever the answer, an older value of the key is gone afterwards. */
static enum near__l1_admission
admit_locked(struct near__l1 *l1, struct shard *sh, struct near__entry *entry, int64_t now,
             struct near__entry **dead)
{
    size_t cost = near__entry_cost(entry);

    if (entry->linked) /* here already, or gone since and never to come back */
        return *lookup_locked(sh, entry->hash, near__entry_key(entry)) == entry ? NEAR__L1_ADMITTED
                                                                                : NEAR__L1_FENCED;
    drop_locked(l1, sh, entry->hash, near__entry_key(entry), dead);
    if (entry->expires <= now)
        return NEAR__L1_EXPIRED;
    if (cost > sh->max_bytes / 2) {
        sh->stats.too_large++;
        return NEAR__L1_TOO_LARGE;
    }
    evict_locked(l1, sh, cost, dead);
    grow_locked(sh);
    evict_locked(l1, sh, cost, dead); /* the bigger table is paid for, too */
    near__entry_ref(entry);
    link_locked(l1, sh, entry);
    sh->stats.fills++;
    return NEAR__L1_ADMITTED;
}

enum near__l1_admission
near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence, int64_t now)
{
    struct shard           *sh   = shard_of(l1, entry->hash);
    struct near__entry     *dead = NULL;
    enum near__l1_admission verdict;

    near__lock(&sh->lock);
    if (near__l1_fence(l1, entry->hash) != fence || stripe_of(l1, entry->hash)->writers > 0) {
        sh->stats.fills_refused++;
        verdict = NEAR__L1_FENCED;
    } else {
        verdict = admit_locked(l1, sh, entry, now, &dead);
    }
    near__unlock(&sh->lock);
    let_go(dead);
    return verdict;
}

/* ---- invalidating */

void
near__l1_invalidate(struct near__l1 *l1, uint64_t hash, near_bytes key)
{
    struct shard       *sh   = shard_of(l1, hash);
    struct near__entry *dead = NULL;

    near__lock(&sh->lock);
    fence_move_locked(l1, hash);
    drop_locked(l1, sh, hash, key, &dead);
    near__unlock(&sh->lock);
    let_go(dead);
}

void
near__l1_flush(struct near__l1 *l1)
{
    /* first, and release: pairs with near__l1_fence(), as in fence_move_locked() */
    atomic_fetch_add_explicit(&l1->epoch, 1, memory_order_release);
    for (size_t i = 0; i <= l1->shard_mask; i++)
        clear(&l1->shards[i]);
}

/* ---- writing */

struct near__l1_write
near__l1_write_begin(struct near__l1 *l1, uint64_t hash, near_bytes key)
{
    struct shard         *sh     = shard_of(l1, hash);
    struct stripe        *stripe = stripe_of(l1, hash);
    struct near__entry   *dead   = NULL;
    struct near__l1_write write;

    near__lock(&sh->lock);
    fence_move_locked(l1, hash);
    drop_locked(l1, sh, hash, key, &dead);
    write.fence      = near__l1_fence(l1, hash);
    write.overlapped = stripe->writers > 0;
    stripe->writers++;
    near__unlock(&sh->lock);
    let_go(dead);
    return write;
}

void
near__l1_write_end(struct near__l1 *l1, struct near__l1_write write, uint64_t hash, near_bytes key,
                   struct near__entry *entry, int64_t now)
{
    struct shard       *sh   = shard_of(l1, hash);
    struct near__entry *dead = NULL;
    bool                alone;

    near__lock(&sh->lock);
    alone = !write.overlapped && near__l1_fence(l1, hash) == write.fence;
    stripe_of(l1, hash)->writers--;
    fence_move_locked(l1, hash);
    if (entry != NULL && alone)
        admit_locked(l1, sh, entry, now, &dead);
    else
        drop_locked(l1, sh, hash, key,
                    &dead); /* a belt: begin dropped it, and inserts have been refused since */
    sh->stats.fills_refused += entry != NULL && !alone;
    near__unlock(&sh->lock);
    let_go(dead);
}

/* ---- upkeep */

static void
sweep_locked(struct near__l1 *l1, struct shard *sh, int64_t now, size_t budget, struct near__entry **dead)
{
    struct near__entry **link;
    size_t               looks = 0;

    for (size_t left = sh->mask + 1; left > 0 && looks < budget; left--) {
        looks++; /* an empty bucket costs a look, too */
        link = &sh->buckets[sh->hand++ & sh->mask];
        for (; *link != NULL; looks++) {
            if ((*link)->expires > now) {
                link = &(*link)->chain;
                continue;
            }
            unlink_locked(l1, sh, link, dead);
            sh->stats.expired++;
        }
    }
}

void
near__l1_expire(struct near__l1 *l1, int64_t now, size_t budget)
{
    struct near__entry *dead;

    for (size_t i = 0; i <= l1->shard_mask; i++) {
        struct shard *sh = &l1->shards[i];

        dead = NULL;
        near__lock(&sh->lock);
        sweep_locked(l1, sh, now, budget, &dead);
        near__unlock(&sh->lock);
        let_go(dead);
    }
}

void
near__l1_stats(struct near__l1 *l1, struct near__l1_stats *stats)
{
    memset(stats, 0, sizeof(*stats));
    for (size_t i = 0; i <= l1->shard_mask; i++) {
        struct shard *sh = &l1->shards[i];

        near__lock(&sh->lock);
        stats->fills += sh->stats.fills;
        stats->fills_refused += sh->stats.fills_refused;
        stats->evictions += sh->stats.evictions;
        stats->expired += sh->stats.expired;
        stats->too_large += sh->stats.too_large;
        stats->entries += sh->stats.entries;
        stats->bytes += sh->stats.bytes;
        near__unlock(&sh->lock);
    }
}
