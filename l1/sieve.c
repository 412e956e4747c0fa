/*
 * SIEVE (Zhang et al., NSDI 2024): one queue, new entries at the head, a visited bit, a hand that goes from the tail to the head,
 * clears visited bits and takes the first entry without one; it keeps its place, and at the head starts again at the tail.
 *
 * Here the queue is two: `ahead` holds what lies between the hand and the head, in the hand's order, `passed` what the hand has
 * spared.  The hand takes the front of `ahead`; a visited entry goes to the end of `passed`; a new one to the end of `ahead`; when
 * `ahead` is used up, `passed` takes its place.  That is the same order, with 4 bytes an entry and no links.
 *
 * The guard.  Near the head the hand can meet nothing but new entries that were not used yet, take each at once and so never come
 * to the head: what it has spared is never looked at again, however long ago it was of use (a change of the popular keys, or a
 * loop a little longer than the cache, freezes the cache with dead entries).  So a turn of the hand ends at the latest when it has
 * taken PATIENCE times as many entries as there are: then what was spared comes before the rest of `ahead`, as if the hand
 * had reached the head.  A turn of an undisturbed hand takes about as many entries as it finds unused, less than all of them plus
 * those that came meanwhile, so the guard seldom speaks.  `textbook` orders have none.
 *
 * Marks: bit 0 visited; the high nibble is the ring's.
 */
#include "l1/policy.h"
#include "l1/ring.h"

#include <stdlib.h>

enum { VISITED = 1, PATIENCE = 2 };

struct sieve {
    struct near__ring_store store;
    struct near__ring       ahead, passed;
    size_t                  taken; /* in this turn */
    uint32_t                any;   /* hand of near__table_any() */
};

static near_status
sieve_open(struct near__order *order)
{
    struct sieve *sieve = calloc(1, sizeof(*sieve));

    if (sieve == NULL)
        return NEAR_ERR_NOMEM;
    near__ring_store_init(&sieve->store, order->table->capacity);
    near__ring_init(&sieve->ahead, 0, 8);
    near__ring_init(&sieve->passed, 8, 8);
    near__table_marks(order->table, 0, NEAR__RING_TAG | VISITED);
    order->state = sieve;
    return NEAR_OK;
}

static void
sieve_reset(struct near__order *order)
{
    struct sieve *sieve = order->state;

    near__ring_clear(&sieve->store, &sieve->ahead);
    near__ring_clear(&sieve->store, &sieve->passed);
    sieve->taken = 0;
}

static void
sieve_close(struct near__order *order)
{
    struct sieve *sieve = order->state;

    sieve_reset(order);
    near__ring_store_fini(&sieve->store);
    free(sieve);
    order->state = NULL;
}

static uint8_t
sieve_enter(struct near__order *order, uint32_t element)
{
    struct sieve *sieve = order->state;
    uint8_t       tag;

    if (near__rings_full(sieve->ahead.count + sieve->passed.count, order->table->entries)) {
        near__ring_compact(&sieve->store, &sieve->ahead, order->table, VISITED);
        near__ring_compact(&sieve->store, &sieve->passed, order->table, VISITED);
    }
    near__ring_push(&sieve->store, &sieve->ahead, element, &tag);
    return tag;
}

static uint8_t
sieve_warmth(const struct near__order *order, uint8_t mark)
{
    (void)order;
    return mark & VISITED;
}

static uint8_t
sieve_revive(struct near__order *order, uint32_t element, uint8_t warmth)
{
    return sieve_enter(order, element) | (warmth & VISITED);
}

/* The hand starts again at the tail. */
static void
sieve_turn(struct sieve *sieve)
{
    near__ring_append(&sieve->passed, &sieve->ahead);
    near__ring_append(&sieve->ahead, &sieve->passed);
    sieve->taken = 0;
}

static bool
sieve_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    struct sieve *sieve = order->state;

    if (near__rings_short(sieve->ahead.count + sieve->passed.count, order->table->entries))
        return near__table_any(order->table, &sieve->any, element, place);
    if (!order->textbook && sieve->taken > PATIENCE * order->table->entries)
        sieve_turn(sieve);
    for (int turns = 0; turns < 3;
         turns++) { /* the second meets no visited bits but those of uses meanwhile */
        while (near__ring_live(&sieve->store, &sieve->ahead, order->table, element, place)) {
            if ((near__place_mark(*place) & VISITED) == 0) {
                sieve->taken++;
                if (sieve->ahead.count == 0) /* now, not when the next entry has come in at the head */
                    sieve_turn(sieve);
                return true;
            }
            near__ring_push_entry(&sieve->store, &sieve->passed, *element, *place, 0);
        }
        sieve_turn(sieve);
    }
    return near__table_any(order->table, &sieve->any, element, place);
}

static size_t
sieve_bytes(const struct near__order *order)
{
    const struct sieve *sieve = order->state;

    return sizeof(*sieve) + sieve->store.bytes;
}

const struct near__policy near__sieve = {
    .name   = "sieve",
    .open   = sieve_open,
    .close  = sieve_close,
    .enter  = sieve_enter,
    .victim = sieve_victim,
    .warmth = sieve_warmth,
    .revive = sieve_revive,
    .reset  = sieve_reset,
    .bytes  = sieve_bytes,
};
