/* See pools.h. */
#include "l1/pools.h"

#include "base/lock.h"
#include "l1/curve.h"
#include "l1/disk.h"
#include "l1/find.h"
#include "l1/table.h"

#include <stdlib.h>
#include <string.h>

enum {
    CACHE_LINE   = 64,
    LOCKS        = 64,    /* as many as an L1 of itself makes shards: writers of different keys seldom meet */
    STRIPES      = 16384, /* 256 KiB, what a large L1 has */
    STRIPES_MIN  = 1024,
    ENTRY_BYTES  = 256, /* expected */
    GROUP        = NEAR__L1_GROUP,
    MISSES       = 4096, /* remembered for the curve, between a miss and its fill */
    POOL_LEAST   = 65536,
    ORDER_BITS   = 4,
    ORDER_FORGET = 2 /* what is older counts half with each upkeep */
};

struct stripe {
    _Atomic uint64_t fence;   /* written under the key's lock, read by anybody */
    uint32_t         writers; /* local writes between begin and end; key's lock */
    _Atomic uint32_t fills; /* admitted since the beginning; written under the key's lock, read by anybody */
};

struct keys {
    struct near__lock lock;
    uint64_t          refused; /* fills */
} __attribute__((aligned(CACHE_LINE)));

struct one {
    struct near__l1 *l1;
    _Atomic size_t   max_bytes;   /* now; changed under `bounds` */
    size_t           max_entries; /* alike */
    uint64_t         hits;        /* that were counted when upkeep looked last ... */
    uint64_t         recent;      /* ... and those of late; under `bounds` */
};

struct near__pools {
    unsigned           n;
    _Atomic uint64_t   order; /* numbers from 0 in the order they are looked into, ORDER_BITS each; a hint */
    struct near__l1   *l1[NEAR__POOLS_MAX]; /* as in of[] */
    size_t             stripe_mask;
    struct stripe     *stripes;
    struct keys       *keys;
    struct one         of[NEAR__POOLS_MAX];
    struct near__lock  bounds;
    _Atomic(uint64_t) *missed; /* hashes; NULL: there is no curve */
    _Atomic uint64_t   epoch;  /* moved by flush: the fence of everything */
    int64_t            ttls;   /* whether any pool has one */
    _Atomic bool      *timed;  /* the L1's: an entry that may expire was admitted */
    unsigned (*pool_of)(void *ctx, near_bytes key, size_t value_size);
    void                     *pool_ctx;
    struct near__label_clock *labels;
    struct near__spill       *spill; /* NULL: no disk tier */
};

static struct stripe *
stripe_of(const struct near__pools *pools, uint64_t hash)
{
    return &pools->stripes[hash & pools->stripe_mask];
}

/* A stripe's keys have one lock: there are no fewer stripes than locks. */
static struct keys *
keys_of(const struct near__pools *pools, uint64_t hash)
{
    return &pools->keys[hash & (LOCKS - 1)];
}

/* No lock may be held: the last holder of an adopted value calls the application. */
static void
let_go(struct near__leaving *leaving)
{
    for (unsigned i = 0; i < leaving->n; i++)
        near__let_go(leaving->what[i]);
    leaving->n = 0;
}

/* ---- birth and end */

static size_t
power_below(size_t n)
{
    return n == 0 ? 1 : (size_t)1 << (63 - __builtin_clzll(n));
}

/* A part of `whole` as `part` is one of `sum`; no less than 1 where there is anything. */
static size_t
part_of(size_t whole, size_t part, size_t sum)
{
    size_t mine = (size_t)((double)whole * ((double)part / (double)sum));

    return whole != 0 && mine == 0 ? 1 : mine;
}

static size_t
sum_of(const struct near__l1_config *config)
{
    size_t sum = 0;

    for (unsigned i = 0; i < config->pools_n; i++)
        sum += config->pools[i].max_bytes;
    return sum;
}

static near_status
open_one(struct near__pools *pools, const struct near__l1_config *config, unsigned i, size_t sum)
{
    const struct near__l1_domain *domain = &config->pools[i];
    struct near__l1_config        one    = *config;
    near_status                   status;

    one.pools_n     = 0;
    one.is_pool     = true;
    one.pool        = (uint8_t)(i + 1);
    one.wrote       = NULL; /* the whole L1 tells of writes */
    one.max_bytes   = domain->max_bytes;
    one.policy      = domain->policy;
    one.ttl         = domain->ttl;
    one.max_entries = part_of(config->max_entries, domain->max_bytes, sum);
    status          = near__l1_new(&pools->l1[i], &one);
    if (status != NEAR_OK)
        return status;
    near__l1_share_labels(pools->l1[i], pools->labels);
    pools->of[i] =
        (struct one){ .l1 = pools->l1[i], .max_bytes = one.max_bytes, .max_entries = one.max_entries };
    pools->ttls |= domain->ttl;
    atomic_fetch_or_explicit(&pools->order, (uint64_t)i << ORDER_BITS * i, memory_order_relaxed);
    pools->n++;
    return NEAR_OK;
}

static bool
is_valid(const struct near__l1_config *config)
{
    if (config->pools_n > NEAR__POOLS_MAX)
        return false;
    for (unsigned i = 0; i < config->pools_n; i++)
        if (config->pools[i].max_bytes < POOL_LEAST)
            return false;
    return true;
}

near_status
near__pools_new(struct near__pools **out, const struct near__l1_config *config,
                struct near__label_clock *labels, _Atomic bool *timed)
{
    size_t              sum = sum_of(config), stripes = power_below(sum / ENTRY_BYTES / 16);
    struct near__pools *pools  = near__zeroed(CACHE_LINE, sizeof(*pools));
    near_status         status = NEAR_OK;

    *out = NULL;
    if (!is_valid(config)) {
        free(pools);
        return NEAR_ERR_INVALID;
    }
    if (pools == NULL)
        return NEAR_ERR_NOMEM;
    stripes            = stripes < STRIPES_MIN ? STRIPES_MIN : stripes > STRIPES ? STRIPES : stripes;
    pools->stripe_mask = stripes - 1;
    pools->labels      = labels;
    pools->timed       = timed;
    pools->pool_of     = config->pool_of;
    pools->pool_ctx    = config->pool_ctx;
    pools->spill       = config->spill;
    pools->stripes     = calloc(stripes, sizeof(*pools->stripes));
    pools->keys        = near__zeroed(CACHE_LINE, LOCKS * sizeof(*pools->keys));
    pools->missed      = config->curve ? calloc(MISSES, sizeof(*pools->missed)) : NULL;
    near__lock_init(&pools->bounds, NEAR__RANK_KEYS);
    for (size_t i = 0; pools->keys != NULL && i < LOCKS; i++)
        near__lock_init(&pools->keys[i].lock, NEAR__RANK_KEYS);
    if (pools->stripes == NULL || pools->keys == NULL || (config->curve && pools->missed == NULL))
        status = NEAR_ERR_NOMEM;
    for (unsigned i = 0; i < config->pools_n && status == NEAR_OK; i++)
        status = open_one(pools, config, i, sum);
    *out = pools;
    if (status != NEAR_OK)
        near__pools_free(out);
    return status;
}

void
near__pools_free(struct near__pools **out)
{
    struct near__pools *pools = *out;

    *out = NULL;
    if (pools == NULL)
        return;
    for (unsigned i = 0; i < pools->n; i++)
        near__l1_free(&pools->l1[i]);
    for (size_t i = 0; pools->keys != NULL && i < LOCKS; i++)
        near__lock_fini(&pools->keys[i].lock);
    near__lock_fini(&pools->bounds);
    free(pools->keys);
    free(pools->stripes);
    free(pools->missed);
    free(pools);
}

/* ---- reading */

static inline struct near__l1_front *
front_of(const struct near__pools *pools, unsigned i)
{
    return (struct near__l1_front *)pools->l1[i];
}

static inline struct near__bucket *
home_of(const struct near__table *table, uint64_t size, uint64_t hash)
{
    return near__table_bucket(table, near__table_home(size, near__element(hash)));
}

/* The key in one pool.  What is not simple is done by near__l1_find(), but a plain miss: it is the usual thing in all pools but one. */
static inline near_value *
find_in(const struct near__pools *pools, unsigned i, uint64_t hash, near_bytes key, int64_t now)
{
    struct near__l1_front *front  = front_of(pools, i);
    struct near__reader   *reader = near__reader_mine;
    struct near__l1_time   time   = { .now = now };
    struct near__table    *table  = &front->path.tables[hash & front->path.shard_mask];
    uint64_t               size   = near__table_size(table);
    struct near__bucket   *home = home_of(table, size, hash), *bucket = home;
    uint16_t               version = near__bucket_version(home);
    struct near__hazard   *hazard;
    struct near__l1_held   held;
    uint32_t               match;

    if (near__bucket_stale(table, home))
        return NULL;
    while ((match = near__bucket_match(bucket, near__tag(near__element(hash)))) == 0) {
        bucket = near__table_after(table, bucket);
        if (bucket == NULL)
            return NEAR__LIKELY(near__table_settled(table, size, home, version))
                       ? NULL
                       : near__l1_find(pools->l1[i], hash, key, now);
    }
    hazard = reader->next;
    /* acquire: as in near__hazard_slot() */
    if (NEAR__UNLIKELY(!front->fast || atomic_load_explicit(&hazard->block, memory_order_acquire) != NULL ||
                       !near__l1_hold(&front->path, front, reader, hazard, table,
                                      (struct near__place){ bucket, NEAR__LANE(match) }, key, time, &held)))
        return near__l1_find(pools->l1[i], hash, key, now);
    if (NEAR__UNLIKELY(held.more))
        near__l1_after(front, held.mark, hash, key);
    return held.value;
}

/* Bring the lines that say whether a key is there. */
static inline void
aim(const struct near__pools *pools, uint64_t hash, struct near__bucket *homes[NEAR__POOLS_MAX])
{
    for (unsigned i = 0; i < pools->n; i++) {
        struct near__l1_front *front = front_of(pools, i);
        struct near__table    *table = &front->path.tables[hash & front->path.shard_mask];

        homes[i] = home_of(table, near__table_size(table), hash);
        __builtin_prefetch(homes[i]);
    }
}

/* One after the other, in full. */
static inline near_value *
find_in_order(const struct near__pools *pools, uint64_t hash, near_bytes key, int64_t now)
{
    /* relaxed: any order is right */
    uint64_t order = atomic_load_explicit(&pools->order, memory_order_relaxed);

    for (unsigned left = pools->n; left > 0; left--, order >>= ORDER_BITS) {
        near_value *value = find_in(pools, order & ((1u << ORDER_BITS) - 1), hash, key, now);

        if (value != NULL)
            return value;
    }
    return NULL;
}

near_value *
near__pools_find(struct near__pools *pools, uint64_t hash, near_bytes key, int64_t now)
{
    struct near__bucket *homes[NEAR__POOLS_MAX];

    aim(pools, hash, homes);
    return find_in_order(pools, hash, key, now);
}

/*
 * Where a key of a group seems to be, of all pools: the first slot with its tag.  The pools' buckets are looked at together, for which pool a
 * key is in cannot be foretold, and a branch by it would be wrong as often as right.
 *
 * A key that is there is what the caller wants, whatever else the other pools' chains hold: no two pools have it.  Only what is not found this
 * way is looked for in order.
 */
struct seeming {
    struct near__l1_front *front; /* NULL: in none of the buckets */
    struct near__table    *table;
    struct near__bucket   *home;
    struct near__place     place;
};

/* In these buckets, one of each pool, of the chains that begin at `homes`; the block's lines are brought.  Whether it seems to be there. */
static inline bool
seek(const struct near__pools *pools, uint64_t hash, struct near__bucket *const *homes,
     struct near__bucket *const *buckets, struct seeming *at)
{
    uint16_t    tag   = near__tag(near__element(hash));
    uint32_t    found = near__bucket_match(buckets[0], tag);
    unsigned    pool  = 0;
    const char *block;

    for (unsigned i = 1; i < pools->n; i++) {
        uint32_t match = near__bucket_match(buckets[i], tag);

        pool  = match != 0 ? i : pool;
        found = match != 0 ? match : found;
    }
    at->front = NULL;
    if (NEAR__UNLIKELY(found == 0))
        return false;
    at->front = front_of(pools, pool);
    at->table = &at->front->path.tables[hash & at->front->path.shard_mask];
    at->home  = homes[pool];
    at->place = (struct near__place){ buckets[pool], NEAR__LANE(found) };
    block     = near__arena_at(&at->front->path.view, near__bucket_ref(at->place.bucket, at->place.lane));
    __builtin_prefetch(block);
    __builtin_prefetch(block + CACHE_LINE);
    return true;
}

/* The first overflow bucket of each chain, on its way now; the home again where there is none. */
static void
go_on(const struct near__pools *pools, uint64_t hash, struct near__bucket *const *homes,
      struct near__bucket **buckets)
{
    for (unsigned i = 0; i < pools->n; i++) {
        struct near__l1_front *front = front_of(pools, i);
        struct near__bucket   *next =
            near__table_after(&front->path.tables[hash & front->path.shard_mask], homes[i]);

        buckets[i] = next != NULL ? next : homes[i];
        __builtin_prefetch(buckets[i]);
    }
}

/* NULL: not so simple, which a miss is, too. */
static inline near_value *
take(const struct seeming *at, uint64_t hash, near_bytes key, int64_t now)
{
    struct near__reader *reader = near__reader_mine;
    struct near__l1_time time   = { .now = now };
    struct near__hazard *hazard = reader->next;
    struct near__l1_held held;

    if (NEAR__UNLIKELY(at->front == NULL || !at->front->fast || near__bucket_stale(at->table, at->home)))
        return NULL;
    /* acquire: as in near__hazard_slot() */
    if (NEAR__UNLIKELY(atomic_load_explicit(&hazard->block, memory_order_acquire) != NULL) ||
        NEAR__UNLIKELY(!near__l1_hold(&at->front->path, at->front, reader, hazard, at->table, at->place, key,
                                      time, &held)))
        return NULL;
    if (NEAR__UNLIKELY(held.more))
        near__l1_after(at->front, held.mark, hash, key);
    return held.value;
}

/* Passes, as find_group() in l1/l1.c makes them. */
static void
find_group(const struct near__pools *pools, const uint64_t *hashes, const near_bytes *keys, size_t n,
           int64_t now, near_value **values)
{
    struct near__bucket *homes[GROUP][NEAR__POOLS_MAX], *further[GROUP][NEAR__POOLS_MAX];
    struct seeming       at[GROUP];
    uint8_t              others[GROUP];
    size_t               others_n = 0;

    for (size_t i = 0; i < n; i++)
        aim(pools, hashes[i], homes[i]);
    for (size_t i = 0; i < n; i++)
        if (NEAR__UNLIKELY(!seek(pools, hashes[i], homes[i], homes[i], &at[i]))) {
            go_on(pools, hashes[i], homes[i], further[i]);
            others[others_n++] = (uint8_t)i;
        }
    for (size_t k = 0; k < others_n; k++)
        (void)seek(pools, hashes[others[k]], homes[others[k]], further[others[k]], &at[others[k]]);
    for (size_t i = 0; i < n; i++) {
        values[i] = take(&at[i], hashes[i], keys[i], now);
        if (NEAR__UNLIKELY(values[i] == NULL))
            values[i] = find_in_order(pools, hashes[i], keys[i], now);
    }
}

void
near__pools_find_many(struct near__pools *pools, const uint64_t *hashes, const near_bytes *keys, size_t n,
                      int64_t now, near_value **values)
{
    if (pools->n == 1) {
        near__l1_find_many(pools->l1[0], hashes, keys, n, now, values);
        return;
    }
    for (size_t at = 0; at < n; at += GROUP)
        find_group(pools, hashes + at, keys + at, n - at < GROUP ? n - at : GROUP, now, values + at);
}

/* ---- fences */

uint64_t
near__pools_fence(const struct near__pools *pools, uint64_t hash)
{
    const struct stripe *stripe = stripe_of(pools, hash);
    /* acquire: the stripe's pairs with fence_move(), the epoch's with near__pools_flush() */
    uint64_t moves = atomic_load_explicit(&stripe->fence, memory_order_acquire) +
                     atomic_load_explicit(&pools->epoch, memory_order_acquire);

    /* acquire: pairs with offer_locked(); who sees a fill asks L2 after it, and gets nothing older */
    return moves << NEAR__L1_FENCE_FILLS |
           (atomic_load_explicit(&stripe->fills, memory_order_acquire) & ((1u << NEAR__L1_FENCE_FILLS) - 1));
}

/* After the key was dropped and forgotten: who captures the new fence may give back what the disk has. */
static void
fence_move(struct near__pools *pools, uint64_t hash)
{
    /* release: who captures the new fence asks L2, or the disk, after everything that came before this invalidation */
    atomic_fetch_add_explicit(&stripe_of(pools, hash)->fence, 1, memory_order_release);
}

/* ---- one key in several pools; its lock is held */

/* Whether the pool may have the key; false: it has not.  Nobody else puts it there meanwhile. */
static bool
may_have_locked(const struct near__pools *pools, unsigned i, uint64_t hash)
{
    return !near__l1_lacks(&front_of(pools, i)->path, hash);
}

/* The disk tier, too.  After the pools: what had it may have evicted it until then. */
static void
forget_locked(const struct near__pools *pools, uint64_t hash)
{
    if (NEAR__UNLIKELY(pools->spill != NULL))
        near__spill_forget(pools->spill, hash);
}

/* From all pools but number `except` (NEAR__POOLS_MAX: from all, and from the disk).  Whether one had it. */
static bool
drop_locked(struct near__pools *pools, uint64_t hash, near_bytes key, unsigned except,
            struct near__leaving *leaving)
{
    bool any = false;

    for (unsigned i = 0; i < pools->n; i++)
        if (i != except && may_have_locked(pools, i, hash))
            any |= near__l1_unseat(pools->l1[i], hash, key, leaving);
    if (except == NEAR__POOLS_MAX)
        forget_locked(pools, hash);
    return any;
}

/* A request that missed is one of the pool that its key then goes to. */
static void
tell_of_miss(const struct near__pools *pools, unsigned to, uint64_t hash)
{
    _Atomic uint64_t *slot;

    if (NEAR__LIKELY(pools->missed == NULL))
        return;
    slot = &pools->missed[(hash >> 32) % MISSES]; /* relaxed: a statistic */
    if (atomic_load_explicit(slot, memory_order_relaxed) != hash)
        return;
    atomic_store_explicit(slot, 0, memory_order_relaxed);
    near__l1_missed(pools->l1[to], hash);
}

/* The fence has been found unmoved.  First out of the others, so that no two have it.  Who looks in between finds nothing: that it was there
 * all the time he is told by a fence that moves after it is there again (NEAR_IF_ABSENT where L1 is all there is). */
static enum near__l1_admission
admit_locked(struct near__pools *pools, unsigned to, struct near__entry *entry, near_bytes key, int64_t now,
             struct near__leaving *leaving)
{
    enum near__l1_admission verdict;
    bool                    moves;

    if (leaving->n > NEAR_COUNT_OF(leaving->what) / 2)
        return NEAR__L1_AGAIN;
    moves = drop_locked(pools, entry->hash, key, to, leaving);
    tell_of_miss(pools, to, entry->hash);
    if (entry->expires != NEAR_NEVER || pools->ttls != 0) /* relaxed: as in near__l1_timed() */
        atomic_store_explicit(pools->timed, true, memory_order_relaxed);
    verdict = near__l1_seat(pools->l1[to], entry, key, now, leaving);
    forget_locked(pools, entry->hash);
    if (moves)
        fence_move(pools, entry->hash);
    return verdict;
}

/* The pool, from 0, that an entry belongs to.  No lock is held. */
static unsigned
choose(const struct near__pools *pools, const struct near__entry *entry, near_bytes key)
{
    unsigned pool = entry->pool;

    if (pool == 0 && pools->pool_of != NULL)
        pool = pools->pool_of(pools->pool_ctx, key, entry->value_size);
    return pool >= 1 && pool <= pools->n ? pool - 1 : 0;
}

/* ---- filling: as in l1/l1.c, with the key's lock for the shard's */

static bool
is_overtaken_locked(const struct near__pools *pools, const struct near__entry *entry, uint64_t fence,
                    int64_t now)
{
    if (entry->stamp == 0 || near__pools_fence(pools, entry->hash) == fence)
        return false;
    for (unsigned i = 0; i < pools->n; i++)
        if (may_have_locked(pools, i, entry->hash) && near__l1_is_overtaken(pools->l1[i], entry, now))
            return true;
    return false;
}

static enum near__l1_admission
offer_locked(struct near__pools *pools, unsigned to, struct near__entry *entry, uint64_t fence, bool is_write,
             int64_t now, struct near__leaving *leaving)
{
    struct stripe          *stripe = stripe_of(pools, entry->hash);
    near_bytes              key    = near__entry_key(entry);
    enum near__l1_admission verdict;

    if (!near__l1_fence_same(near__pools_fence(pools, entry->hash), fence) || stripe->writers > 0) {
        keys_of(pools, entry->hash)->refused += !is_write;
        return NEAR__L1_FENCED;
    }
    if (!is_write && is_overtaken_locked(pools, entry, fence, now)) {
        drop_locked(pools, entry->hash, key, NEAR__POOLS_MAX, leaving);
        fence_move(pools, entry->hash); /* neither, and no third one from before */
        keys_of(pools, entry->hash)->refused++;
        return NEAR__L1_FENCED;
    }
    verdict = admit_locked(pools, to, entry, key, now, leaving);
    if (is_write && verdict != NEAR__L1_AGAIN)
        fence_move(pools, entry->hash);    /* what was asked for before is older */
    else if (verdict == NEAR__L1_ADMITTED) /* release: pairs with near__pools_fence() */
        atomic_fetch_add_explicit(&stripe->fills, 1, memory_order_release);
    return verdict;
}

enum near__l1_admission
near__pools_offer(struct near__pools *pools, struct near__entry *entry, uint64_t fence, bool is_write,
                  int64_t now)
{
    struct keys            *keys = keys_of(pools, entry->hash);
    unsigned                to   = choose(pools, entry, near__entry_key(entry));
    struct near__leaving    leaving;
    enum near__l1_admission verdict;

    leaving.n = 0;
    do {
        near__lock(&keys->lock);
        verdict = offer_locked(pools, to, entry, fence, is_write, now, &leaving);
        near__unlock(&keys->lock);
        let_go(&leaving);
    } while (verdict == NEAR__L1_AGAIN);
    return verdict;
}

/* ---- invalidating */

void
near__pools_invalidate(struct near__pools *pools, uint64_t hash, near_bytes key)
{
    struct keys         *keys = keys_of(pools, hash);
    struct near__leaving leaving;

    leaving.n = 0;
    near__lock(&keys->lock);
    drop_locked(pools, hash, key, NEAR__POOLS_MAX, &leaving);
    fence_move(pools, hash);
    near__unlock(&keys->lock);
    let_go(&leaving);
}

void
near__pools_flush(struct near__pools *pools)
{
    if (pools->spill != NULL) /* first: nobody gives back with the new fence what the disk had before */
        near__spill_flush_begin(pools->spill);
    /* before the pools, and release: pairs with near__pools_fence(), as in fence_move() */
    atomic_fetch_add_explicit(&pools->epoch, 1, memory_order_release);
    /* Who found the old epoch is past his admission now; who takes a lock after us finds the new one. */
    for (size_t i = 0; i < LOCKS; i++) {
        near__lock(&pools->keys[i].lock);
        near__unlock(&pools->keys[i].lock);
    }
    for (unsigned i = 0; i < pools->n; i++)
        near__l1_flush(pools->l1[i]);
    if (pools->spill != NULL)
        near__spill_flush_end(pools->spill);
}

/* ---- writing */

struct near__l1_write
near__pools_write_begin(struct near__pools *pools, uint64_t hash, near_bytes key)
{
    struct keys          *keys   = keys_of(pools, hash);
    struct stripe        *stripe = stripe_of(pools, hash);
    struct near__leaving  leaving;
    struct near__l1_write write;

    leaving.n = 0;
    near__lock(&keys->lock);
    drop_locked(pools, hash, key, NEAR__POOLS_MAX, &leaving);
    fence_move(pools, hash);
    write.fence      = near__pools_fence(pools, hash);
    write.overlapped = stripe->writers > 0;
    stripe->writers++;
    near__unlock(&keys->lock);
    let_go(&leaving);
    return write;
}

static bool
is_alone_locked(const struct near__pools *pools, const struct near__l1_write *write, uint64_t hash)
{
    return !write->overlapped && near__l1_fence_same(near__pools_fence(pools, hash), write->fence);
}

void
near__pools_write_end(struct near__pools *pools, struct near__l1_write write, uint64_t hash, near_bytes key,
                      struct near__entry *entry, int64_t now)
{
    struct keys         *keys = keys_of(pools, hash);
    unsigned             to   = entry != NULL ? choose(pools, entry, key) : 0;
    struct near__leaving leaving;
    bool                 alone;

    leaving.n = 0;
    near__lock(&keys->lock);
    alone = is_alone_locked(pools, &write, hash);
    while (entry != NULL && alone &&
           admit_locked(pools, to, entry, near__entry_key(entry), now, &leaving) == NEAR__L1_AGAIN) {
        near__unlock(&keys->lock);
        let_go(&leaving);
        near__lock(&keys->lock);
        alone = is_alone_locked(pools, &write, hash);
    }
    stripe_of(pools, hash)->writers--;
    if (entry == NULL || !alone)
        drop_locked(pools, hash, key, NEAR__POOLS_MAX, &leaving); /* a belt, as in near__l1_write_end() */
    fence_move(pools, hash);
    keys->refused += entry != NULL && !alone;
    near__unlock(&keys->lock);
    let_go(&leaving);
}

bool
near__pools_store(struct near__pools *pools, struct near__entry *entry, near_bytes key, int64_t now)
{
    struct keys         *keys = keys_of(pools, entry->hash);
    unsigned             to   = choose(pools, entry, key);
    struct near__leaving leaving;
    bool                 again;

    leaving.n = 0;
    if (!near__l1_copies(pools->l1[to], entry)) {
        entry->pool = (uint8_t)(to + 1); /* it has been asked for */
        return false;
    }
    do {
        near__lock(&keys->lock);
        fence_move(pools, entry->hash);
        again = false;
        if (stripe_of(pools, entry->hash)->writers == 0)
            again = admit_locked(pools, to, entry, key, now, &leaving) == NEAR__L1_AGAIN;
        else
            drop_locked(pools, entry->hash, key, NEAR__POOLS_MAX, &leaving);
        if (NEAR__UNLIKELY(pools->spill != NULL)) /* once more: it was forgotten after the first */
            fence_move(pools, entry->hash);
        near__unlock(&keys->lock);
        let_go(&leaving);
    } while (again);
    return true;
}

/* ---- what comes back from a former life */

bool
near__pools_walk(struct near__pools *pools, struct near__l1_cursor *cursor, size_t homes, int64_t now,
                 void (*fn)(void *ctx, const struct near__l1_seen *seen), void *ctx)
{
    if (cursor->pool >= pools->n)
        return false;
    if (!near__l1_walk(pools->l1[cursor->pool], cursor, homes, now, fn, ctx))
        *cursor = (struct near__l1_cursor){ cursor->pool + 1, 0, 0 };
    return cursor->pool < pools->n;
}

near_status
near__pools_restore_begin(struct near__pools *pools, size_t expected, bool alone)
{
    size_t      sum    = 0;
    near_status status = NEAR_OK;

    for (unsigned i = 0; i < pools->n; i++)
        sum += pools->of[i].max_bytes;
    for (unsigned i = 0; i < pools->n && status == NEAR_OK; i++)
        status = near__l1_restore_begin(pools->l1[i], part_of(expected, pools->of[i].max_bytes, sum), alone);
    if (status != NEAR_OK)
        near__pools_restore_end(pools);
    return status;
}

void
near__pools_restore_end(struct near__pools *pools)
{
    for (unsigned i = 0; i < pools->n; i++)
        near__l1_restore_end(pools->l1[i]);
}

/* It may be restored only where no newer one is, or was since the beginning: in any pool. */
static bool
is_new_locked(const struct near__pools *pools, uint64_t hash, bool alone)
{
    for (unsigned i = 0; i < pools->n; i++)
        if (may_have_locked(pools, i, hash) || (alone && near__l1_was_filled(pools->l1[i], hash)))
            return false;
    return true;
}

enum near__l1_admission
near__pools_restore(struct near__pools *pools, struct near__entry *entry, near_bytes key, uint64_t fence,
                    bool alone, uint8_t warmth, int64_t now)
{
    struct keys            *keys   = keys_of(pools, entry->hash);
    unsigned                to     = choose(pools, entry, key);
    struct stripe          *stripe = stripe_of(pools, entry->hash);
    struct near__leaving    leaving;
    enum near__l1_admission verdict;

    leaving.n = 0;
    do {
        near__lock(&keys->lock);
        verdict = NEAR__L1_FENCED;
        if (near__l1_fence_same(near__pools_fence(pools, entry->hash), fence) && stripe->writers == 0 &&
            is_new_locked(pools, entry->hash, alone)) {
            if (entry->expires != NEAR_NEVER || pools->ttls != 0)
                atomic_store_explicit(pools->timed, true, memory_order_relaxed);
            verdict = near__l1_reseat(pools->l1[to], entry, key, warmth, now, &leaving);
            forget_locked(pools, entry->hash);
        }
        if (verdict == NEAR__L1_ADMITTED) /* release: pairs with near__pools_fence() */
            atomic_fetch_add_explicit(&stripe->fills, 1, memory_order_release);
        near__unlock(&keys->lock);
        let_go(&leaving);
    } while (verdict == NEAR__L1_AGAIN);
    return verdict;
}

/* ---- what the disk tier gives back */

static enum near__l1_admission
return_locked(struct near__pools *pools, unsigned to, struct near__entry *entry, uint64_t fence, int64_t now,
              struct near__leaving *leaving)
{
    struct stripe          *stripe = stripe_of(pools, entry->hash);
    enum near__l1_admission verdict;

    if (near__pools_fence(pools, entry->hash) != fence || stripe->writers > 0 ||
        !is_new_locked(pools, entry->hash, false)) {
        keys_of(pools, entry->hash)->refused++;
        return NEAR__L1_FENCED;
    }
    if (entry->expires != NEAR_NEVER || pools->ttls != 0)
        atomic_store_explicit(pools->timed, true, memory_order_relaxed);
    verdict = near__l1_seat(pools->l1[to], entry, near__entry_key(entry), now, leaving);
    if (verdict == NEAR__L1_ADMITTED) /* release: pairs with near__pools_fence() */
        atomic_fetch_add_explicit(&stripe->fills, 1, memory_order_release);
    return verdict;
}

enum near__l1_admission
near__pools_return(struct near__pools *pools, struct near__entry *entry, uint64_t fence, int64_t now)
{
    struct keys            *keys = keys_of(pools, entry->hash);
    unsigned                to   = choose(pools, entry, near__entry_key(entry));
    struct near__leaving    leaving;
    enum near__l1_admission verdict;

    leaving.n = 0;
    do {
        near__lock(&keys->lock);
        verdict = return_locked(pools, to, entry, fence, now, &leaving);
        near__unlock(&keys->lock);
        let_go(&leaving);
    } while (verdict == NEAR__L1_AGAIN);
    return verdict;
}

bool
near__pools_adopt(struct near__pools *pools, uint64_t hash, uint64_t fence, uint64_t at, uint32_t size)
{
    struct keys *keys = keys_of(pools, hash);
    bool         done;

    if (pools->spill == NULL)
        return false;
    near__lock(&keys->lock);
    done = stripe_of(pools, hash)->writers == 0 &&
           (fence == NEAR__L1_UNTOUCHED ? !near__spill_touched(pools->spill, hash)
                                        : near__pools_fence(pools, hash) == fence) &&
           is_new_locked(pools, hash, false) && near__spill_adopt(pools->spill, hash, at, size);
    near__unlock(&keys->lock);
    return done;
}

bool
near__pools_copy(const struct near__pools *pools, const struct near__entry *entry)
{
    for (unsigned i = 0; i < pools->n; i++) /* whichever it will be */
        if (!near__l1_copies(pools->l1[i], entry))
            return false;
    return true;
}

/* ---- upkeep and bounds */

/* The order of looking: who has had most hits of late first. */
static void
rank(struct near__pools *pools)
{
    uint8_t  place[NEAR__POOLS_MAX];
    uint64_t order = 0;

    near__lock(&pools->bounds);
    for (unsigned i = 0; i < pools->n; i++) {
        uint64_t hits = near__hits_sum(front_of(pools, i)->path.number);
        unsigned at   = i;

        pools->of[i].recent = pools->of[i].recent / ORDER_FORGET + (hits - pools->of[i].hits);
        pools->of[i].hits   = hits;
        for (; at > 0 && pools->of[place[at - 1]].recent < pools->of[i].recent; at--)
            place[at] = place[at - 1];
        place[at] = (uint8_t)i;
    }
    for (unsigned at = 0; at < pools->n; at++)
        order |= (uint64_t)place[at] << ORDER_BITS * at;
    atomic_store_explicit(&pools->order, order, memory_order_relaxed);
    near__unlock(&pools->bounds);
}

bool
near__pools_upkeep(struct near__pools *pools, int64_t now, size_t steps)
{
    bool more = false;

    for (unsigned i = 0; i < pools->n; i++)
        more |= near__l1_upkeep(pools->l1[i], now, steps);
    rank(pools);
    return more;
}

/* All or none. */
static near_status
resize_locked(struct near__pools *pools, const size_t bytes[], const size_t entries[])
{
    near_status status = NEAR_OK;
    unsigned    done   = 0;

    for (; done < pools->n && status == NEAR_OK; done++)
        status = near__l1_resize(pools->l1[done], bytes[done], entries[done]);
    for (unsigned i = 0; i < done; i++)
        if (status != NEAR_OK) {
            (void)near__l1_resize(pools->l1[i], pools->of[i].max_bytes, pools->of[i].max_entries);
        } else {
            pools->of[i].max_bytes   = bytes[i];
            pools->of[i].max_entries = entries[i];
        }
    return status;
}

near_status
near__pools_resize(struct near__pools *pools, size_t max_bytes, size_t max_entries)
{
    size_t      bytes[NEAR__POOLS_MAX], entries[NEAR__POOLS_MAX], sum = 0;
    near_status status;

    near__lock(&pools->bounds);
    for (unsigned i = 0; i < pools->n; i++)
        sum += pools->of[i].max_bytes;
    for (unsigned i = 0; i < pools->n; i++) {
        bytes[i]   = part_of(max_bytes, pools->of[i].max_bytes, sum);
        entries[i] = part_of(max_entries, pools->of[i].max_bytes, sum);
    }
    status = resize_locked(pools, bytes, entries);
    near__unlock(&pools->bounds);
    return status;
}

near_status
near__pools_resize_one(struct near__pools *pools, unsigned pool, size_t max_bytes)
{
    near_status status = NEAR_ERR_INVALID;

    if (pool < 1 || pool > pools->n || max_bytes < POOL_LEAST)
        return NEAR_ERR_INVALID;
    near__lock(&pools->bounds);
    status = near__l1_resize(pools->l1[pool - 1], max_bytes, pools->of[pool - 1].max_entries);
    if (status == NEAR_OK)
        pools->of[pool - 1].max_bytes = max_bytes;
    near__unlock(&pools->bounds);
    return status;
}

/* ---- what they count */

unsigned
near__pools_count(const struct near__pools *pools)
{
    return pools->n;
}

struct near__l1 *
near__pools_at(const struct near__pools *pools, unsigned pool, size_t *max_bytes)
{
    *max_bytes = pools->of[pool - 1].max_bytes;
    return pools->l1[pool - 1];
}

void
near__pools_stats(struct near__pools *pools, struct near__l1_stats *stats)
{
    for (unsigned i = 0; i < pools->n; i++) {
        struct near__l1_stats one;

        near__l1_stats(pools->l1[i], &one);
        stats->hits += one.hits;
        stats->fills += one.fills;
        stats->evictions += one.evictions;
        stats->expired += one.expired;
        stats->too_large += one.too_large;
        stats->entries += one.entries;
        stats->bytes += one.bytes;
    }
    for (size_t i = 0; i < LOCKS; i++) {
        near__lock(&pools->keys[i].lock);
        stats->fills_refused += pools->keys[i].refused;
        near__unlock(&pools->keys[i].lock);
    }
}

void
near__pools_missed(struct near__pools *pools, uint64_t hash)
{
    if (pools->missed != NULL) /* relaxed: a statistic */
        atomic_store_explicit(&pools->missed[(hash >> 32) % MISSES], hash, memory_order_relaxed);
}

/* Every pool's ratios, by its requests; the whole is followed as well as the pool that is followed least. */
bool
near__pools_curve(struct near__pools *pools, struct near__curve_answer *answer)
{
    *answer = (struct near__curve_answer){ .share = 0 };
    if (pools->missed == NULL)
        return false;
    for (unsigned i = 0; i < pools->n; i++) {
        struct near__curve_answer one;

        near__l1_curve(pools->l1[i], &one);
        answer->entries += one.entries;
        answer->bytes += one.bytes;
        answer->samples += one.samples;
        if (one.share <= 0 || one.requests <= 0)
            continue;
        answer->share = answer->requests <= 0 || one.share < answer->share ? one.share : answer->share;
        answer->requests += one.requests;
        for (int at = 0; at < NEAR__CURVE_POINTS; at++)
            answer->ratio[at] += one.ratio[at] * one.requests;
    }
    for (int at = 0; at < NEAR__CURVE_POINTS && answer->requests > 0; at++)
        answer->ratio[at] /= answer->requests;
    return true;
}
