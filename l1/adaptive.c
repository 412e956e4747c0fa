/*
 * Adaptive: the queues of S3-FIFO (l1/fifos.h) under the rule that does best at present.
 *
 * No policy is right for all traffic, but the queues of S3-FIFO with another share of the small one come close to each: a share of
 * 1 % keeps what is popular for long (LFU, W-TinyLFU), 10 % is S3-FIFO as published, 25 % is 2Q's, half leaves
 * room for what comes back soon and not again (ARC), and CLOCK stands for LRU.  They share queues, marks and ghost, so the real table
 * changes its rule at no cost and keeps all it has.
 *
 * Which rule does best is tried out: a pool, one for all shards of an L1, has a shadow for each rule, a small table of the same
 * code without values, which sees every access to a sample of the keys and counts its hits.  The sample is as large a part of
 * the keys as the shadows' capacity is of the real one; a cache of up to SHADOW_ENTRIES is followed key by key.
 * Counts are compared every so often and then halved in part (DECAY); the leader must be ahead by a margin to
 * take over.
 *
 * Readers report only uses that changed the mark, so a hot key costs nothing; the tick in the marks (2 bits, moved every TICK_SHARE
 * of the entries in new keys) lets even the hottest be seen now and then, or the shadows would take it for a
 * cold one.
 *
 * Locks: the pool's is a leaf, only tried: when two threads meet, one access goes unseen.  `leader`, `sample` and `entries` are
 * atomic; who reads an old value of one follows an old rule for one key.
 */
#include "l1/fifos.h"
#include "l1/policy.h"

#include "base/lock.h"

#include <stdlib.h>
#include <string.h>

#ifdef TUNE
static int
P(const char *n, int d)
{
    const char *e = getenv(n);
    return e ? atoi(e) : d;
}
#else
#define P(n, d) (d)
#endif

enum { SHADOW_ENTRIES = 4096, SHADOW_CHUNK_SHIFT = 4, TICKS = 4, TICK_STEP = 4 };

static const struct near__fifos_rule rules[] = { { 10, 2 }, { 1, 2 }, { 25, 2 }, { 50, 2 }, { 0, 1 } };
enum { RULES = NEAR_COUNT_OF(rules) };

struct shadow {
    struct near__table table;
    struct near__fifos fifos;
    uint32_t           hits; /* since the last comparison */
    double             score;
};

struct pool {
    _Atomic uint8_t   leader;
    _Atomic uint32_t  sample; /* elements whose mix is not above this are watched */
    struct near__lock lock;   /* covers the rest */
    size_t            capacity;
    uint32_t          seen; /* since the last comparison */
    struct shadow     shadows[RULES];
};

/* ---- shadows */

static void *
shadow_chunk_new(void *ctx)
{
    size_t bytes = sizeof(struct near__bucket) << SHADOW_CHUNK_SHIFT;
    void  *chunk = aligned_alloc(sizeof(struct near__bucket), bytes);

    (void)ctx;
    return chunk == NULL ? NULL : memset(chunk, 0, bytes);
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
    if (shadow->table.chunks == NULL)
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
    near__place_mark_set(place, near__mark_hit(near__place_mark(place), 0, table->count_mask));
    shadow->hits++;
}

/* ---- the pool */

static near_status
adaptive_pool_open(void **out, size_t entries)
{
    struct pool *pool = calloc(1, sizeof(*pool));
    near_status  status = NEAR_OK;

    *out = NULL;
    if (pool == NULL)
        return NEAR_ERR_NOMEM;
    near__lock_init(&pool->lock, NEAR__RANK_LEAF);
    size_t max = (size_t)P("SHADOW", 2048);
    pool->capacity = entries < max ? entries : max;
    atomic_init(&pool->sample, entries <= max ? UINT32_MAX : (uint32_t)((double)max / (double)entries * 4294967295.0));
    for (size_t i = 0; status == NEAR_OK && i < RULES; i++)
        status = shadow_open(&pool->shadows[i], rules[i], pool->capacity);
    *out = pool;
    return status;
}

static void
adaptive_pool_close(void *state)
{
    struct pool *pool = state;

    for (size_t i = 0; i < RULES; i++)
        shadow_close(&pool->shadows[i]);
    near__lock_fini(&pool->lock);
    free(pool);
}

static size_t
adaptive_pool_bytes(const void *state)
{
    const struct pool *pool  = state;
    size_t             bytes = sizeof(*pool);

    for (size_t i = 0; i < RULES; i++)
        bytes += near__table_bytes(&pool->shadows[i].table) + near__fifos_bytes(&pool->shadows[i].fifos);
    return bytes;
}

static void
compare(struct pool *pool)
{
    unsigned leader = pool->leader, best = leader;
    double decay = P("DECAY", 90) / 100.0;
    for (unsigned i = 0; i < RULES; i++) {
        pool->shadows[i].score = pool->shadows[i].score * decay + pool->shadows[i].hits;
        pool->shadows[i].hits  = 0;
        if (pool->shadows[i].score > pool->shadows[best].score)
            best = i;
    }
    if (P("FORCE", -1) >= 0)
        best = (unsigned)P("FORCE", 0);
    if (pool->shadows[best].score > pool->shadows[leader].score * (1 + P("MARGIN", 20) / 1000.0)) {
#ifdef TUNE
        if (getenv("VERB"))
            { static long n; fprintf(stderr, "%ld: %u -> %u: ", n++, leader, best); for (int i=0;i<RULES;i++) fprintf(stderr," %.0f", pool->shadows[i].score); fputs("\n",stderr);}
#endif
        atomic_store_explicit(&pool->leader, (uint8_t)best, memory_order_relaxed);
    }
}

static void
adaptive_watch(struct near__order *order, uint32_t element, bool hit)
{
    struct pool *pool  = order->pool;
    uint32_t     mixed = element * 0x9e3779b1u;

    (void)hit;
    mixed ^= mixed >> 15;
    mixed *= 0x85ebca6bu;
    if (mixed > atomic_load_explicit(&pool->sample, memory_order_relaxed))
        return;
    if (pthread_mutex_trylock(&pool->lock.mutex) != 0)
        return;
    for (unsigned i = 0; i < RULES; i++)
        shadow_access(&pool->shadows[i], element);
    if (++pool->seen >= pool->capacity * (size_t)P("EPOCH", 100) / 100 + 1) {
        pool->seen = 0;
        compare(pool);
    }
    pthread_mutex_unlock(&pool->lock.mutex);
}

/* ---- one shard */

struct adaptive {
    struct near__fifos fifos;
    size_t             fresh;
};

static near_status
adaptive_open(struct near__order *order)
{
    struct adaptive *adaptive = calloc(1, sizeof(*adaptive));

    if (adaptive == NULL)
        return NEAR_ERR_NOMEM;
    near__fifos_init(&adaptive->fifos, order->table, rules[0]);
    order->state = adaptive;
    return NEAR_OK;
}

static void
adaptive_close(struct near__order *order)
{
    struct adaptive *adaptive = order->state;

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
    unsigned         tick     = order->table->tick;

    if (P("TICKDIV", 4) && ++adaptive->fresh * (size_t)P("TICKDIV", 4) >= order->table->entries) {
        adaptive->fresh = 0;
        atomic_store_explicit(&order->table->tick, (uint8_t)((tick + TICK_STEP) % (TICKS * TICK_STEP)),
                              memory_order_relaxed);
    }
    return near__fifos_enter(&adaptive->fifos, order->table, element);
}

static bool
adaptive_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    struct adaptive *adaptive = order->state;
    struct pool     *pool     = order->pool;

    adaptive->fifos.rule = rules[atomic_load_explicit(&pool->leader, memory_order_relaxed)];
    return near__fifos_victim(&adaptive->fifos, order->table, place, element);
}

static size_t
adaptive_bytes(const struct near__order *order)
{
    const struct adaptive *adaptive = order->state;

    return sizeof(*adaptive) + near__fifos_bytes(&adaptive->fifos);
}

const struct near__policy near__adaptive = {
    .name       = "adaptive",
    .open       = adaptive_open,
    .close      = adaptive_close,
    .enter      = adaptive_enter,
    .victim     = adaptive_victim,
    .reset      = adaptive_reset,
    .bytes      = adaptive_bytes,
    .watch      = adaptive_watch,
    .pool_open  = adaptive_pool_open,
    .pool_close = adaptive_pool_close,
    .pool_bytes = adaptive_pool_bytes,
};
