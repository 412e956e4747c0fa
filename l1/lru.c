/*
 * Least recently used, by the tick of each entry's last use (its mark), in batches (l1/batch.h).
 *
 * The tick moves once for every 180th part of the entries in new keys.  Nothing unused outlives as many new keys as there are
 * entries, so in a full cache ages stay about 180 of the 256 that a byte can tell; where they would not (few victims, because keys
 * are removed, or a cache that grows), a sweep that goes round once in 16 ticks holds ages above 192 back to 192.  While batches find
 * nobody older than that there is no sweep.
 *
 * Uses only make younger, so the order is that of LRU but for entries of one tick and, in tables of several regions, for how evenly
 * their keys are spread.  An exact table has a stamp of 32 bits a slot instead and is sorted by them: the exact order (hit counts are
 * those of a list).
 *
 * Marks: the tick, 8 bits.
 */
#include "l1/batch.h"
#include "l1/policy.h"
#include "l1/ring.h"

#include <stdlib.h>

enum {
    TICKS       = 180, /* in the life of an unused entry; the more, the finer the order, and 256 is the end */
    AGE_HELD    = 192, /* and at most 24 + 16 and 2 more until the sweep has been round: 234, still no wrap */
    SWEEP_TICKS = 16,
    YOUNG_TICKS =
        24, /* nobody need be held back for so long after all were found younger: two laps of batches */
    BATCH_TICKS = 40, /* how long a batch is good: its youngest are far from a wrap */
    ORDER_SHARE = 32  /* of an exact table, sorted at a time */
};

/* An entry of an exact table, by its home and the stamp of its last use, of which no two are alike. */
struct stamped {
    uint32_t home, stamp;
};

struct lru {
    struct near__batch batch;
    uint32_t           fresh;     /* new keys since the tick moved */
    uint32_t           sweep;     /* home where the sweep goes on */
    uint32_t           ticks;     /* that there were */
    uint32_t           taken_at;  /* the batch, in ticks */
    uint32_t           lap_began; /* of batches over the whole table ... */
    uint32_t           lap_homes; /* ... and how many homes there were */
    bool               lap_old;   /* it met somebody older than AGE_HELD, or did not see everybody */
    uint32_t           young_at;  /* nobody was older than AGE_HELD then */
    uint32_t           any;
    struct stamped    *order; /* exact: those whose turn is next */
    uint32_t           order_room, order_n, order_next;
    uint32_t           clock; /* the stamp of the last use */
};

static near_status
lru_open(struct near__order *order)
{
    order->state = calloc(1, sizeof(struct lru));
    if (order->state == NULL)
        return NEAR_ERR_NOMEM;
    ((struct lru *)order->state)->batch.most = AGE_HELD;
    near__table_marks(order->table, 0, 0);
    return NEAR_OK;
}

static void
lru_close(struct near__order *order)
{
    struct lru *lru = order->state;

    near__batch_fini(&lru->batch);
    free(lru->order);
    free(lru);
    order->state = NULL;
}

static void
lru_reset(struct near__order *order)
{
    struct lru *lru = order->state;

    lru->batch.count = lru->batch.next = 0;
    lru->order_n = lru->order_next = 0;
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

/* A part of the homes. */
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
        if (++lru->ticks - lru->young_at > YOUNG_TICKS)
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

/* Every batch looks at its part of the table.  When a lap of them is done, and nobody in it was older than the sweep would hold him to,
 * nobody was when it began. */
static void
looked(struct lru *lru, const struct near__table *table)
{
    uint32_t homes = near__table_homes(table);

    if (lru->batch.first == 0) {
        lru->lap_began = lru->ticks;
        lru->lap_homes = homes;
        lru->lap_old   = false;
    }
    lru->lap_old |=
        lru->batch.count == 0 || !lru->batch.whole || lru->batch.top > AGE_HELD || homes < lru->lap_homes;
    if (lru->batch.region >= homes && !lru->lap_old)
        lru->young_at = lru->lap_began;
}

static bool
victim_by_tick(struct lru *lru, const struct near__table *table, struct near__place *place, uint32_t *element)
{
    if (lru->ticks - lru->taken_at > BATCH_TICKS)
        lru->batch.count = lru->batch.next = 0;
    /* A new batch has somebody to give; an empty region among several is as good as impossible. */
    for (int batches = 0; batches < 3; batches++) {
        if (near__batch_next(&lru->batch, table, NULL, place, element))
            return true;
        near__batch_take(&lru->batch, table, NULL);
        lru->taken_at = lru->ticks;
        looked(lru, table);
    }
    return false;
}

/* ---- exact tables */

static int
by_stamp(const void *a, const void *b)
{
    const struct stamped *one = a, *two = b;

    return (one->stamp > two->stamp) - (one->stamp < two->stamp);
}

static bool
order_room(struct lru *lru, size_t entries)
{
    struct stamped *order;

    if (entries <= lru->order_room)
        return true;
    order = realloc(lru->order, entries * sizeof(*order));
    if (order == NULL)
        return lru->order_room != 0;
    lru->order      = order;
    lru->order_room = (uint32_t)entries;
    return true;
}

static void
order_take(struct lru *lru, const struct near__table *table)
{
    uint32_t wanted = (uint32_t)(table->entries / ORDER_SHARE + 1);

    lru->order_n = lru->order_next = 0;
    if (!order_room(lru, table->entries))
        return;
    for (uint32_t home = 0; home < near__table_homes(table); home++) {
        for (struct near__bucket *b = near__table_current(table, home); b != NULL;
             b                      = near__table_after(table, b)) {
            for (unsigned lanes = near__bucket_occupied(b); lanes != 0 && lru->order_n < lru->order_room;
                 lanes &= lanes - 1) {
                struct near__place place = { b, (unsigned)__builtin_ctz(lanes) };

                lru->order[lru->order_n++] = (struct stamped){ home, *near__table_stamp(table, place) };
            }
        }
    }
    qsort(lru->order, lru->order_n, sizeof(*lru->order), by_stamp);
    if (lru->order_n > wanted)
        lru->order_n = wanted;
}

/* Of those that were not used since. */
static bool
order_next(struct lru *lru, const struct near__table *table, struct near__place *place, uint32_t *element)
{
    while (lru->order_next < lru->order_n) {
        struct stamped next = lru->order[lru->order_next++];

        for (struct near__bucket *b = near__table_current(table, next.home); b != NULL;
             b                      = near__table_after(table, b)) {
            for (unsigned lanes = near__bucket_occupied(b); lanes != 0; lanes &= lanes - 1) {
                *place   = (struct near__place){ b, (unsigned)__builtin_ctz(lanes) };
                *element = near__table_partial(
                    next.home, atomic_load_explicit(&b->tags.lanes[place->lane], memory_order_relaxed));
                if (*near__table_stamp(table, *place) == next.stamp)
                    return true;
            }
        }
    }
    return false;
}

static bool
victim_by_stamp(struct lru *lru, const struct near__table *table, struct near__place *place,
                uint32_t *element)
{
    if (order_next(lru, table, place, element))
        return true;
    order_take(lru, table);
    return order_next(lru, table, place, element);
}

static bool
lru_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    struct lru *lru = order->state;

    return (order->table->exact ? victim_by_stamp(lru, order->table, place, element)
                                : victim_by_tick(lru, order->table, place, element)) ||
           near__table_any(order->table, &lru->any, element, place);
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

    return sizeof(*lru) + near__batch_bytes(&lru->batch) + lru->order_room * sizeof(*lru->order);
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
