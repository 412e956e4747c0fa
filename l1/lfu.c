/*
 * Least frequently used, of late: counts that age, in batches (l1/batch.h).
 *
 * A mark holds a count of uses (at most 15) and the tick of the last one (4 bits, moved every half of the entries in new keys).
 * What counts is the count halved for every two ticks without a use, and among equals the longer unused leaves first.  So a key
 * that was popular is forgotten in some turns of the cache: without ageing it would never leave.  Ages above 11 ticks are held
 * there by a sweep with each tick, and the count itself is halved each time.
 *
 * Exact tables: the same (there is no definition to the letter of this one).
 *
 * Marks: bits 0-3 the count, bits 4-7 the tick.
 */
#include "l1/batch.h"
#include "l1/policy.h"
#include "l1/ring.h"

#include <stdlib.h>

enum { COUNT_MAX = 15, TICK_ONE = 16, AGE_HELD = 11, AGE_HALF = 2 };

struct lfu {
    struct near__batch batch;
    size_t             fresh;
    uint32_t           any;
};

static near_status
lfu_open(struct near__order *order)
{
    order->state = calloc(1, sizeof(struct lfu));
    if (order->state == NULL)
        return NEAR_ERR_NOMEM;
    near__table_marks(order->table, 0, COUNT_MAX);
    return NEAR_OK;
}

static void
lfu_close(struct near__order *order)
{
    struct lfu *lfu = order->state;

    near__batch_fini(&lfu->batch);
    free(lfu);
    order->state = NULL;
}

static void
lfu_reset(struct near__order *order)
{
    struct lfu *lfu = order->state;

    lfu->batch.count = lfu->batch.next = 0;
}

static uint8_t
tick_of(const struct near__table *table)
{
    return atomic_load_explicit(&table->tick, memory_order_relaxed); /* only we move it */
}

static unsigned
age_of(uint8_t mark, uint8_t tick)
{
    return (uint8_t)(tick - (mark & ~COUNT_MAX)) / TICK_ONE;
}

static void
sweep(const struct near__table *table, uint8_t tick)
{
    for (uint32_t home = 0; home < near__table_homes(table); home++) {
        for (struct near__bucket *b = near__table_current(table, home); b != NULL;
             b                      = near__table_after(table, b)) {
            for (unsigned lane = 0; lane < NEAR__LANES; lane++) {
                uint8_t mark = atomic_load_explicit(&b->marks[lane], memory_order_relaxed), held;
                if (age_of(mark, tick) <= AGE_HELD)
                    continue;
                held = (uint8_t)((tick - AGE_HELD * TICK_ONE) | (mark & COUNT_MAX) / 2);
                /* by exchange: a use meanwhile must not be lost */
                atomic_compare_exchange_strong_explicit(&b->marks[lane], &mark, held, memory_order_relaxed,
                                                        memory_order_relaxed);
            }
        }
    }
}

static uint8_t
lfu_enter(struct near__order *order, uint32_t element)
{
    struct lfu         *lfu     = order->state;
    struct near__table *table   = order->table;
    size_t              entries = near__table_fill(table);

    (void)element;
    if (++lfu->fresh * 2 >= entries) {
        lfu->fresh = 0;
        near__table_marks(table, (uint8_t)(tick_of(table) + TICK_ONE), COUNT_MAX);
        sweep(table, tick_of(table));
    }
    return tick_of(table) | 1;
}

/* The count above, the age below. */
static uint8_t
lfu_warmth(const struct near__order *order, uint8_t mark)
{
    unsigned age = age_of(mark, tick_of(order->table));

    return (uint8_t)((mark & COUNT_MAX) << 4 | (AGE_HELD - (age < AGE_HELD ? age : AGE_HELD)));
}

static uint8_t
lfu_revive(struct near__order *order, uint32_t element, uint8_t warmth)
{
    unsigned young = warmth & 15, age = AGE_HELD - (young < AGE_HELD ? young : AGE_HELD);

    (void)element;
    return (uint8_t)((tick_of(order->table) - age * TICK_ONE) | warmth >> 4);
}

static uint8_t
rank(uint8_t mark, uint8_t tick)
{
    unsigned age   = age_of(mark, tick);
    unsigned count = (mark & COUNT_MAX) >> age / AGE_HALF;

    return (uint8_t)((COUNT_MAX - count) * 16 +
                     (age < AGE_HELD ? age : AGE_HELD)); /* as the sweep will have it */
}

static bool
lfu_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    struct lfu *lfu = order->state;

    for (int batches = 0; batches < 3; batches++) {
        if (near__batch_next(&lfu->batch, order->table, rank, place, element))
            return true;
        near__batch_take(&lfu->batch, order->table, rank);
    }
    return near__table_any(order->table, &lfu->any, element, place);
}

static size_t
lfu_bytes(const struct near__order *order)
{
    const struct lfu *lfu = order->state;

    return sizeof(*lfu) + near__batch_bytes(&lfu->batch);
}

const struct near__policy near__lfu = {
    .name   = "lfu",
    .open   = lfu_open,
    .close  = lfu_close,
    .enter  = lfu_enter,
    .victim = lfu_victim,
    .warmth = lfu_warmth,
    .revive = lfu_revive,
    .reset  = lfu_reset,
    .bytes  = lfu_bytes,
};
