/*
 * S3-FIFO (Yang et al., SOSP 2023): a small queue of a tenth of the entries, a main queue, and a ghost of the keys that left the
 * small queue.  A new key goes to the small queue, or to main if the ghost knows it.  At the front of the small queue an entry that
 * was used twice or more moves to main, another leaves and its key goes to the ghost.  At the front of main an entry that was
 * used goes back to the end with its counter (at most 3) less by one, another leaves.
 *
 * The ghost is one of fingerprints (l1/ghost.h), for nine tenths of the entries, so its order is first in, first out in each line
 * only.  In exact tables it is a list.
 *
 * Marks: bits 0-1 the counter, the high nibble the ring's.
 */
#include "l1/ghost.h"
#include "l1/policy.h"
#include "l1/ring.h"

#include <stdlib.h>

enum { COUNT_MAX = 3, PROMOTED = 2 };

struct s3fifo {
    struct near__ring_store store;
    struct near__ring       small, main;
    struct near__ghost      ghost;
    size_t                  ghost_for; /* entries that the ghost was made for */
    uint32_t                any;
};

static near_status
s3fifo_open(struct near__order *order)
{
    struct s3fifo *s3 = calloc(1, sizeof(*s3));

    if (s3 == NULL)
        return NEAR_ERR_NOMEM;
    near__ring_store_init(&s3->store, order->table->capacity);
    near__ring_init(&s3->small, 0, 8);
    near__ring_init(&s3->main, 8, 8);
    atomic_store_explicit(&order->table->tick, 0, memory_order_relaxed);
    atomic_store_explicit(&order->table->count_mask, NEAR__RING_TAG | COUNT_MAX, memory_order_relaxed);
    order->state = s3;
    return NEAR_OK;
}

static void
s3fifo_reset(struct near__order *order)
{
    struct s3fifo *s3 = order->state;

    near__ring_clear(&s3->store, &s3->small);
    near__ring_clear(&s3->store, &s3->main);
    near__ghost_clear(&s3->ghost);
}

static void
s3fifo_close(struct near__order *order)
{
    struct s3fifo *s3 = order->state;

    s3fifo_reset(order);
    near__ghost_fini(&s3->ghost);
    near__ring_store_fini(&s3->store);
    free(s3);
    order->state = NULL;
}

static uint8_t
s3fifo_enter(struct near__order *order, uint32_t element)
{
    struct s3fifo *s3 = order->state;
    uint8_t        tag;

    if (near__rings_full(s3->small.count + s3->main.count, order->table->entries)) {
        near__ring_compact(&s3->store, &s3->small, order->table, COUNT_MAX);
        near__ring_compact(&s3->store, &s3->main, order->table, COUNT_MAX);
    }
    near__ring_push(&s3->store, near__ghost_take(&s3->ghost, element) ? &s3->main : &s3->small, element,
                    &tag);
    return tag;
}

/* The ghost follows the number of entries where that is not fixed. */
static void
s3fifo_fit(struct s3fifo *s3, const struct near__table *table)
{
    size_t entries = table->capacity != 0 ? table->capacity : table->entries;

    if (entries > s3->ghost_for / 2 * 3 || entries < s3->ghost_for / 2) {
        near__ghost_size(&s3->ghost, entries * 9 / 10, table->exact);
        s3->ghost_for = entries;
    }
}

static bool
s3fifo_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    struct s3fifo *s3      = order->state;
    size_t         entries = order->table->capacity != 0 ? order->table->capacity : order->table->entries;
    size_t         share   = entries - entries / 10;
    unsigned       count;

    s3fifo_fit(s3, order->table);
    while (s3->small.count + s3->main.count > 0) {
        if (s3->main.count > share || s3->small.count == 0) {
            while (near__ring_live(&s3->store, &s3->main, order->table, element, place)) {
                count = near__place_mark(*place) & COUNT_MAX;
                if (count == 0)
                    return true;
                near__ring_push_entry(&s3->store, &s3->main, *element, *place, (uint8_t)(count - 1));
            }
        } else {
            while (near__ring_live(&s3->store, &s3->small, order->table, element, place)) {
                if ((near__place_mark(*place) & COUNT_MAX) < PROMOTED) {
                    near__ghost_add(&s3->ghost, *element);
                    return true;
                }
                near__ring_push_entry(&s3->store, &s3->main, *element, *place, 0);
            }
        }
    }
    return near__table_any(order->table, &s3->any, element, place);
}

static size_t
s3fifo_bytes(const struct near__order *order)
{
    const struct s3fifo *s3 = order->state;

    return sizeof(*s3) + s3->store.bytes + near__ghost_bytes(&s3->ghost);
}

const struct near__policy near__s3fifo = {
    .name   = "s3fifo",
    .open   = s3fifo_open,
    .close  = s3fifo_close,
    .enter  = s3fifo_enter,
    .victim = s3fifo_victim,
    .reset  = s3fifo_reset,
    .bytes  = s3fifo_bytes,
};
