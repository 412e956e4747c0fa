/*
 * Adaptive: the queues of S3-FIFO (l1/fifos.h) under the rule that does best at present.
 *
 * No policy is right for all traffic, but the queues of S3-FIFO with another share of the small one come close to each: a share of
 * 1 % keeps what is popular for long (as W-TinyLFU does), 10 % is S3-FIFO as published, 25 % is about 2Q's, half leaves room for
 * what comes back soon and not again (as ARC does), and CLOCK stands for LRU.  They share queues, marks and ghost, so the real
 * table changes its rule at no cost and keeps all it has.
 *
 * Which rule does best is tried out.  A pool, one for all shards of an L1, has a shadow for each rule: a small table under the same
 * code, without values, which sees the accesses to a sample of the keys and counts its hits.  The sample is as large a part of the
 * keys as the shadows' capacity is of all entries; up to SHADOW_ENTRIES a cache is followed key by key.  After as many accesses
 * as a shadow has entries the hits are added to what is left of the earlier ones, and the real table takes over the rule that leads
 * by the margin.
 *
 * Readers report only uses that changed the mark, so a hot key costs nothing.  The tick in the marks (2 bits, moved with every
 * quarter of the entries in new keys) lets even the hottest be seen now and then, or the shadows would take it for a cold one.
 * Known limit: the shadows see more of what the real table lacks than of what it has, and the real table carries its past on:
 * in a loop a little longer than the cache an early change of mind costs what a fixed small queue would have kept.
 *
 * In traffic that is nothing but recency CLOCK has up to 7 % fewer hits than LRU.
 *
 * Memory: shadows 19 bytes an entry each, 390 KB in all at most.
 *
 * Locks: the pool's is a leaf that is only tried, for nobody waits for a statistic.  What finds it taken is left in the backlog, to be
 * followed by who comes next (as in X. Ding, S. Jiang, X. Zhang, "BP-Wrapper", ICDE 2009, section 3).  To lose it is not harmless: two
 * busy threads on a small cache lost every third access, which is other traffic than there is, and had six hits in a hundred fewer.
 * Only a backlog that is full, since a thread was stopped while it held the lock, loses the oldest.
 *
 * `leader`, `sample`, the counts of entries and the backlog are atomic (relaxed: they guard nothing; who reads an old rule follows it
 * for one victim more).  `told` is set (release) after the counts it is about, and taken back (acquire) before they are read.
 */
#include "l1/adaptive.h"
#include "l1/fifos.h"
#include "l1/policy.h"

#include "base/lock.h"

#include <stdlib.h>
#include <string.h>

enum {
    /* enough that the difference of two rules is not that of a few keys: with 2048 a cache of 250 000 chose wrongly, with 4096 not;
     * and 3.9 bytes an entry at 100 000 */
    SHADOW_ENTRIES     = 4096,
    SHADOW_CHUNK_SHIFT = 4, /* 1 KiB: the smallest shadows have some hundred entries */
    /* Of the earlier hits 6/7 are kept, so that the last seven turns of a shadow decide.  With one turn alone the leader changes with
     * every burst, and each change costs what the next rule would not have kept; with many it comes late when the traffic changes
     * for good (5/6 to 9/10 differ by 0.1 points on the development traces). */
    DECAY_NUM = 6,
    DECAY_DEN = 7,
    MARGIN    = 50, /* 1/50: rules that differ by less are as good as each other */
    TICKS     = 4,
    TICK_STEP = 4,   /* bits 2-3 of a mark */
    TICK_TURN = 4,   /* ticks for as many new keys as there are entries */
    SCORE     = 16,  /* fraction of a hit that scores are kept to */
    BACKLOG   = 256, /* what threads leave in some 100 us; a power of two */
    CATCH_UP  = 16   /* of it by one thread at a time: some 10 us */
};

/* In the order of the harm they can do: the first is where we start. */
static const struct near__fifos_rule rules[] = { { 10, 2 }, { 1, 2 }, { 25, 2 }, { 50, 2 }, { 0, 1 } };
enum { RULES = NEAR_COUNT_OF(rules) };

struct shadow {
    struct near__table table;
    struct near__fifos fifos;
    uint32_t           hits; /* since the last comparison */
    uint64_t           score;
};

struct pool {
    _Atomic uint8_t   leader;
    atomic_bool       told;   /* entries have changed since the shadows were measured against them */
    _Atomic uint32_t  sample; /* elements whose mix is below are watched; 0: there are no shadows */
    _Atomic uint32_t  orders, reporting; /* open ones, and those that know how many entries they hold */
    _Atomic size_t    entries;           /* of these together */
    _Atomic uint32_t  backlog[BACKLOG];  /* elements; 0: none */
    _Atomic uint32_t  backlog_end;       /* the place after the last one's, counted on and on */
    struct near__lock lock;              /* covers the rest */
    uint32_t          backlog_begin;
    size_t            made_for; /* entries */
    size_t            capacity; /* of a shadow */
    uint32_t          seen;     /* accesses since the last comparison */
    struct shadow     shadows[RULES];
};

/* ---- shadows */

static void *
shadow_chunk_new(void *ctx)
{
    size_t bytes = sizeof(struct near__bucket) << SHADOW_CHUNK_SHIFT;

    (void)ctx;
    return near__zeroed(sizeof(struct near__bucket), bytes);
}

static void
shadow_chunk_free(void *ctx, void *chunk)
{
    (void)ctx;
    free(chunk);
}

static uint32_t
shadow_element_of(void *ctx, uint32_t ref)
{
    (void)ctx;
    return ref; /* the element, but 0 is 1: a key in 2^32 is lost by a split */
}

static near_status
shadow_open(struct shadow *shadow, struct near__fifos_rule rule, size_t capacity)
{
    near_status status;

    shadow->hits  = 0;
    shadow->score = 0;
    shadow->table = (struct near__table){
        .capacity    = capacity,
        .chunk_shift = SHADOW_CHUNK_SHIFT,
        .max_chunks  = (capacity >> SHADOW_CHUNK_SHIFT) / 4 + 4,
        .chunk_new   = shadow_chunk_new,
        .chunk_free  = shadow_chunk_free,
        .element_of  = shadow_element_of,
    };
    status = near__table_init(&shadow->table, 1);
    if (status == NEAR_OK)
        near__fifos_init(&shadow->fifos, &shadow->table, rule);
    return status;
}

static void
shadow_close(struct shadow *shadow)
{
    if (shadow->table.home_chunks == 0)
        return;
    near__fifos_fini(&shadow->fifos);
    near__table_fini(&shadow->table);
}

static void
shadow_insert(struct shadow *shadow, uint32_t element)
{
    struct near__table *table = &shadow->table;
    struct near__place  place;
    uint32_t            victim;

    while (table->entries >= table->capacity) {
        table->full = table->entries;
        if (!near__fifos_victim(&shadow->fifos, table, &place, &victim))
            return;
        near__table_erase(table, victim, place);
    }
    near__table_insert(table, element, element + (element == 0),
                       near__fifos_enter(&shadow->fifos, table, element), &place);
    if (near__table_wants(table) > 0)
        near__table_split(table);
}

static void
shadow_access(struct shadow *shadow, uint32_t element)
{
    struct near__table *table = &shadow->table;
    struct near__place  place;

    if (!near__table_locate(table, element, &place)) {
        shadow_insert(shadow, element);
        return;
    }
    near__place_mark_set(place,
                         near__mark_hit(near__place_mark(place), 0,
                                        atomic_load_explicit(&table->count_mask, memory_order_relaxed)));
    shadow->hits++;
}

/* ---- the pool */

static void
shadows_close_locked(struct pool *pool)
{
    atomic_store_explicit(&pool->sample, 0, memory_order_relaxed);
    for (size_t i = 0; i < RULES; i++)
        shadow_close(&pool->shadows[i]);
}

/* Shadows for so many entries in all; what was learnt is forgotten, the rule stays. */
static near_status
shadows_open_locked(struct pool *pool, size_t entries)
{
    near_status status = NEAR_OK;

    pool->made_for = entries;
    pool->capacity = entries < SHADOW_ENTRIES ? entries : SHADOW_ENTRIES;
    pool->seen     = 0;
    for (size_t i = 0; status == NEAR_OK && i < RULES; i++)
        status = shadow_open(&pool->shadows[i], rules[i], pool->capacity);
    if (status != NEAR_OK) {
        shadows_close_locked(pool);
        return status;
    }
    atomic_store_explicit(&pool->sample, (uint32_t)((uint64_t)UINT32_MAX * pool->capacity / entries),
                          memory_order_relaxed);
    return NEAR_OK;
}

/* As many as all orders together have now, if that is much more or less than what the shadows were made for. */
static void
fit_locked(struct pool *pool)
{
    size_t entries;

    if (!atomic_exchange_explicit(&pool->told, false, memory_order_acquire)) /* pairs with report() */
        return;
    entries = atomic_load_explicit(&pool->entries, memory_order_relaxed);
    if (entries <= pool->made_for / 2 * 3 && entries >= pool->made_for / 3 * 2)
        return;
    shadows_close_locked(pool);
    (void)shadows_open_locked(pool, entries); /* without memory for them the rule stays as it is */
}

static void
adaptive_pool_close(void *state)
{
    struct pool *pool = state;

    shadows_close_locked(pool); /* nobody else is left */
    near__lock_fini(&pool->lock);
    free(pool);
}

static near_status
adaptive_pool_open(void **out, size_t entries)
{
    struct pool *pool   = calloc(1, sizeof(*pool));
    near_status  status = NEAR_OK;

    *out = NULL;
    if (pool == NULL)
        return NEAR_ERR_NOMEM;
    near__lock_init(&pool->lock, NEAR__RANK_LEAF);
    if (entries != 0)
        status = shadows_open_locked(pool, entries);
    if (status != NEAR_OK) {
        adaptive_pool_close(pool);
        return status;
    }
    *out = pool;
    return NEAR_OK;
}

static size_t
adaptive_pool_bytes(const void *state)
{
    struct pool *pool  = (struct pool *)(uintptr_t)state;
    size_t       bytes = sizeof(*pool);

    near__lock(&pool->lock);
    for (size_t i = 0; i < RULES; i++)
        if (pool->shadows[i].table.home_chunks > 0)
            bytes += near__table_bytes(&pool->shadows[i].table) + near__fifos_bytes(&pool->shadows[i].fifos);
    near__unlock(&pool->lock);
    return bytes;
}

static void
compare_locked(struct pool *pool)
{
    unsigned leader = atomic_load_explicit(&pool->leader, memory_order_relaxed), best = leader;

    for (unsigned i = 0; i < RULES; i++) {
        struct shadow *shadow = &pool->shadows[i];
        shadow->score         = shadow->score * DECAY_NUM / DECAY_DEN + (uint64_t)shadow->hits * SCORE;
        shadow->hits          = 0;
    }
    for (unsigned i = 0; i < RULES; i++)
        if (pool->shadows[i].score > pool->shadows[best].score)
            best = i;
    if (pool->shadows[best].score > pool->shadows[leader].score + pool->shadows[leader].score / MARGIN)
        atomic_store_explicit(&pool->leader, (uint8_t)best, memory_order_relaxed);
    pool->seen = 0;
}

/* Not near__lock(): a reader does not wait for a statistic.  A leaf that is only tried cannot be part of a circle. */
static bool
pool_try(struct pool *pool)
{
    return pthread_mutex_trylock(&pool->lock.mutex) == 0;
}

static void
pool_leave(struct pool *pool)
{
    pthread_mutex_unlock(&pool->lock.mutex);
}

/* Elements have chosen shard and bucket already: their bits are mixed anew. */
static bool
sampled(const struct pool *pool, uint32_t element)
{
    uint32_t mixed = element * 0x9e3779b1u;

    mixed ^= mixed >> 15;
    mixed *= 0x85ebca6bu;
    return mixed < atomic_load_explicit(&pool->sample, memory_order_relaxed);
}

static void
follow_locked(struct pool *pool, uint32_t element)
{
    for (unsigned i = 0; i < RULES; i++)
        shadow_access(&pool->shadows[i], element);
    if (++pool->seen > pool->capacity)
        compare_locked(pool);
}

static void
leave_behind(struct pool *pool, uint32_t element)
{
    uint32_t place = atomic_fetch_add_explicit(&pool->backlog_end, 1, memory_order_relaxed);

    atomic_store_explicit(&pool->backlog[place % BACKLOG], element + (element == 0), memory_order_relaxed);
}

/* A place that was taken and is still empty is passed over; what is put there then waits for the next round. */
static void
catch_up_locked(struct pool *pool)
{
    uint32_t end = atomic_load_explicit(&pool->backlog_end, memory_order_relaxed), element;

    if (end - pool->backlog_begin > BACKLOG)
        pool->backlog_begin = end - BACKLOG;
    for (int i = 0; i < CATCH_UP && pool->backlog_begin != end; i++) {
        element = atomic_exchange_explicit(&pool->backlog[pool->backlog_begin++ % BACKLOG], 0,
                                           memory_order_relaxed);
        if (element != 0)
            follow_locked(pool, element);
    }
}

static void
adaptive_watch(struct near__order *order, uint32_t element, bool hit)
{
    struct pool *pool = order->pool;

    (void)hit;
    if (pool == NULL || !sampled(pool, element))
        return;
    if (!pool_try(pool)) {
        leave_behind(pool, element);
        return;
    }
    if (atomic_load_explicit(&pool->sample, memory_order_relaxed) !=
        0) { /* again: it might have been in vain */
        catch_up_locked(pool);
        follow_locked(pool, element);
    }
    pool_leave(pool);
}

/* ---- one shard */

struct adaptive {
    struct near__fifos fifos;
    size_t             fresh;    /* new keys since the tick moved */
    size_t             reported; /* entries, to the pool; 0: not yet */
};

static near_status
adaptive_open(struct near__order *order)
{
    struct adaptive *adaptive = calloc(1, sizeof(*adaptive));
    struct pool     *pool     = order->pool;

    if (adaptive == NULL)
        return NEAR_ERR_NOMEM;
    near__fifos_init(&adaptive->fifos, order->table, rules[0]);
    order->state = adaptive;
    if (pool != NULL)
        atomic_fetch_add_explicit(&pool->orders, 1, memory_order_relaxed);
    return NEAR_OK;
}

static void
adaptive_close(struct near__order *order)
{
    struct adaptive *adaptive = order->state;
    struct pool     *pool     = order->pool;

    if (pool != NULL) {
        atomic_fetch_sub_explicit(&pool->orders, 1, memory_order_relaxed);
        atomic_fetch_sub_explicit(&pool->reporting, adaptive->reported != 0, memory_order_relaxed);
        atomic_fetch_sub_explicit(&pool->entries, adaptive->reported, memory_order_relaxed);
    }
    near__fifos_fini(&adaptive->fifos);
    free(adaptive);
    order->state = NULL;
}

static void
adaptive_reset(struct near__order *order)
{
    struct adaptive *adaptive = order->state;

    near__fifos_clear(&adaptive->fifos);
}

static uint8_t
adaptive_enter(struct near__order *order, uint32_t element)
{
    struct adaptive *adaptive = order->state;
    unsigned         tick     = atomic_load_explicit(&order->table->tick, memory_order_relaxed); /* ours */

    if (++adaptive->fresh * TICK_TURN >= order->table->entries) {
        adaptive->fresh = 0;
        near__table_marks(order->table, (uint8_t)((tick + TICK_STEP) % (TICKS * TICK_STEP)),
                          atomic_load_explicit(&order->table->count_mask, memory_order_relaxed));
    }
    return near__fifos_enter(&adaptive->fifos, order->table, element);
}

static uint8_t
adaptive_warmth(const struct near__order *order, uint8_t mark)
{
    (void)order;
    return near__fifos_warmth(mark);
}

static uint8_t
adaptive_revive(struct near__order *order, uint32_t element, uint8_t warmth)
{
    struct adaptive *adaptive = order->state;

    return near__fifos_revive(&adaptive->fifos, order->table, element, warmth);
}

/* A full table tells the pool how many entries that is, where it changed much; when all have told, the shadows are made to
 * measure, by the first that finds the pool free.  (Known beforehand is at most a bound, and where memory is the bound not even that.) */
static void
report(struct adaptive *adaptive, struct pool *pool, size_t entries)
{
    size_t last = adaptive->reported;

    if (entries != 0 && (entries < last - last / 4 || entries > last + last / 4)) {
        atomic_fetch_add_explicit(&pool->reporting, last == 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&pool->entries, entries - last, memory_order_relaxed);
        atomic_store_explicit(&pool->told, true, memory_order_release); /* pairs with fit_locked() */
        adaptive->reported = entries;
    }
    if (!atomic_load_explicit(&pool->told, memory_order_relaxed) ||
        atomic_load_explicit(&pool->reporting, memory_order_relaxed) <
            atomic_load_explicit(&pool->orders, memory_order_relaxed) ||
        !pool_try(pool))
        return;
    fit_locked(pool);
    pool_leave(pool);
}

static bool
adaptive_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    struct adaptive *adaptive = order->state;
    struct pool     *pool     = order->pool;

    if (pool != NULL) {
        report(adaptive, pool, order->table->entries);
        adaptive->fifos.rule = rules[atomic_load_explicit(&pool->leader, memory_order_relaxed)];
    }
    return near__fifos_victim(&adaptive->fifos, order->table, place, element);
}

static size_t
adaptive_bytes(const struct near__order *order)
{
    const struct adaptive *adaptive = order->state;

    return sizeof(*adaptive) + near__fifos_bytes(&adaptive->fifos);
}

/* ---- for tests */

unsigned
near__adaptive_leader(const void *state)
{
    const struct pool *pool = state;

    return atomic_load_explicit(&pool->leader, memory_order_relaxed);
}

size_t
near__adaptive_made_for(const void *state)
{
    const struct pool *pool = state;

    return pool->made_for;
}

size_t
near__adaptive_seen(const void *state)
{
    const struct pool *pool = state;

    return pool->seen;
}

bool
near__adaptive_hold(void *state)
{
    return pool_try(state);
}

void
near__adaptive_let_go(void *state)
{
    pool_leave(state);
}

const struct near__policy near__adaptive = {
    .name       = "adaptive",
    .open       = adaptive_open,
    .close      = adaptive_close,
    .enter      = adaptive_enter,
    .victim     = adaptive_victim,
    .warmth     = adaptive_warmth,
    .revive     = adaptive_revive,
    .reset      = adaptive_reset,
    .bytes      = adaptive_bytes,
    .watch      = adaptive_watch,
    .pool_open  = adaptive_pool_open,
    .pool_close = adaptive_pool_close,
    .pool_bytes = adaptive_pool_bytes,
};
