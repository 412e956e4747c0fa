/*
 * Least recently used, by the tick of each entry's last use (its mark), in batches (l1/batch.h).
 *
 * The tick moves once for every 200th part of the entries in new keys.  Nothing unused outlives as many new keys as there are
 * entries, so in a full cache ages stay about 200 of the 256 that a byte can tell; where they would not (few victims, because keys
 * are removed, or a cache that grows), a sweep that goes round once in 32 ticks holds ages above 216 back to 216.
 *
 * Uses only make younger, so the order is that of LRU but for entries of one tick and, in tables of several regions, for how evenly
 * their keys are spread.  An exact table has a stamp of 32 bits a slot instead: the same batches, the exact order (hit counts
 * are those of a list).
 *
 * Marks: the tick, 8 bits.
 */
#include "l1/batch.h"
#include "l1/policy.h"
#include "l1/ring.h"

#include <stdlib.h>

enum {
    TICKS       = 200, /* in the life of an unused entry; the more, the finer the order, and 256 is the end */
    AGE_HELD    = 216, /* and at most 32 more until the sweep comes round: 248, still no wrap */
    SWEEP_TICKS = 32
};

struct lru {
    struct near__batch batch;
    uint32_t           fresh; /* new keys since the tick moved */
    uint32_t           sweep; /* home where the sweep goes on */
    uint32_t           clock; /* exact: the stamp of the last use */
    uint32_t           any;
};

static near_status
lru_open(struct near__order *order)
{
    order->state = calloc(1, sizeof(struct lru));
    if (order->state == NULL)
        return NEAR_ERR_NOMEM;
    near__table_marks(order->table, 0, 0);
    return NEAR_OK;
}

static void
lru_close(struct near__order *order)
{
    struct lru *lru = order->state;

    near__batch_fini(&lru->batch);
    free(lru);
    order->state = NULL;
}

static void
lru_reset(struct near__order *order)
{
    struct lru *lru = order->state;

    lru->batch.count = lru->batch.next = 0;
}

static uint8_t
tick_of(const struct near__table *table)
{
    return atomic_load_explicit(&table->tick, memory_order_relaxed); /* only we move it */
}

/* Holds the ages in one bucket back; by exchange, so that a use meanwhile is not lost. */
static void
sweep_bucket(struct near__bucket *bucket, uint8_t tick)
{
    for (unsigned lanes = near__bucket_aged(bucket, tick, AGE_HELD + 1); lanes != 0; lanes &= lanes - 1) {
        _Atomic uint8_t *at   = &bucket->marks[__builtin_ctz(lanes)];
        uint8_t          mark = atomic_load_explicit(at, memory_order_relaxed);
        if ((uint8_t)(tick - mark) > AGE_HELD)
            atomic_compare_exchange_strong_explicit(at, &mark, (uint8_t)(tick - AGE_HELD),
                                                    memory_order_relaxed, memory_order_relaxed);
    }
}

/* A 32nd of the homes. */
static void
sweep(struct lru *lru, const struct near__table *table)
{
    uint32_t homes = near__table_homes(table);

    for (uint32_t i = 0; i < homes / SWEEP_TICKS + 1; i++) {
        lru->sweep = lru->sweep + 1 < homes ? lru->sweep + 1 : 0;
        for (struct near__bucket *b = near__table_current(table, lru->sweep); b != NULL;
             b                      = near__table_after(table, b))
            sweep_bucket(b, tick_of(table));
    }
}

static uint8_t
lru_enter(struct near__order *order, uint32_t element)
{
    struct lru         *lru     = order->state;
    struct near__table *table   = order->table;
    size_t              entries = near__table_fill(table);

    (void)element;
    if (++lru->fresh * (size_t)TICKS >= entries) {
        lru->fresh = 0;
        near__table_marks(table, (uint8_t)(tick_of(table) + 1), 0);
        sweep(lru, table);
    }
    return tick_of(table);
}

/* Its age in ticks, from the other end. */
static uint8_t
lru_warmth(const struct near__order *order, uint8_t mark)
{
    return (uint8_t)(UINT8_MAX - (uint8_t)(tick_of(order->table) - mark));
}

/* As old as it was, but not so old that the sweep could not hold it back in time. */
static uint8_t
lru_revive(struct near__order *order, uint32_t element, uint8_t warmth)
{
    unsigned age = UINT8_MAX - warmth;

    (void)element;
    return (uint8_t)(tick_of(order->table) - (age < AGE_HELD ? age : AGE_HELD));
}

static void
batch_by_ticks(struct lru *lru, const struct near__table *table)
{
    struct near__ranks ranks = { .ages = true, .tick = tick_of(table) };

    for (unsigned mark = 0; mark < 256; mark++)
        ranks.of[mark] = (uint8_t)(ranks.tick - mark);
    near__batch_take(&lru->batch, table, &ranks);
}

static int
by_stamp(const void *a, const void *b)
{
    const struct near__batch_row *one = a, *two = b;

    return (one->when > two->when) - (one->when < two->when);
}

static void
batch_by_stamps(struct near__batch *batch, const struct near__table *table)
{
    uint32_t wanted = (uint32_t)(table->entries / NEAR__BATCH_SHARE + 1);

    batch->count = batch->next = 0;
    batch->stamps              = true;
    if (!near__batch_room(batch, (uint32_t)table->entries))
        return;
    for (uint32_t home = 0; home < near__table_homes(table); home++) {
        for (struct near__bucket *b = near__table_current(table, home); b != NULL;
             b                      = near__table_after(table, b)) {
            for (unsigned lanes = near__bucket_occupied(b); lanes != 0 && batch->count < batch->room;
                 lanes &= lanes - 1) {
                struct near__place place    = { b, (unsigned)__builtin_ctz(lanes) };
                batch->rows[batch->count++] = (struct near__batch_row){
                    home, *near__table_stamp(table, place),
                    atomic_load_explicit(&b->tags.lanes[place.lane], memory_order_relaxed), 0
                };
            }
        }
    }
    qsort(batch->rows, batch->count, sizeof(*batch->rows), by_stamp);
    if (batch->count > wanted)
        batch->count = wanted;
}

static bool
lru_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    struct lru *lru = order->state;

    /* A new batch has somebody to give; an empty region among several is as good as impossible. */
    for (int batches = 0; batches < 3; batches++) {
        if (near__batch_next(&lru->batch, order->table, place, element))
            return true;
        if (order->table->exact)
            batch_by_stamps(&lru->batch, order->table);
        else
            batch_by_ticks(lru, order->table);
    }
    return near__table_any(order->table, &lru->any, element, place);
}

/* Exact tables: every use, and the linking of a new entry. */
static void
lru_hit(struct near__order *order, uint32_t element, struct near__place place)
{
    struct lru *lru = order->state;

    (void)element;
    *near__table_stamp(order->table, place) = ++lru->clock;
}

static size_t
lru_bytes(const struct near__order *order)
{
    const struct lru *lru = order->state;

    return sizeof(*lru) + near__batch_bytes(&lru->batch);
}

const struct near__policy near__lru = {
    .name   = "lru",
    .open   = lru_open,
    .close  = lru_close,
    .enter  = lru_enter,
    .victim = lru_victim,
    .warmth = lru_warmth,
    .revive = lru_revive,
    .hit    = lru_hit,
    .reset  = lru_reset,
    .bytes  = lru_bytes,
};
