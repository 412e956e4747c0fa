/* Two queues and a ghost (see the header). */
#include "l1/fifos.h"

enum {
    COUNT_MAX = 3,
    MAIN_TAGS = 0x80, /* in a mark: main's tags are the upper half */
    WAS_MAIN  = 4     /* in a warmth */
};

void
near__fifos_init(struct near__fifos *fifos, struct near__table *table, struct near__fifos_rule rule)
{
    *fifos = (struct near__fifos){ .rule = rule };
    near__ring_store_init(&fifos->store, table->capacity);
    near__ring_init(&fifos->small, 0, 8);
    near__ring_init(&fifos->main, 8, 8);
    /* relaxed: a reader that still sees the zeroes of a new table marks nothing */
    near__table_marks(table, 0, NEAR__RING_TAG | COUNT_MAX);
}

void
near__fifos_clear(struct near__fifos *fifos)
{
    near__ring_clear(&fifos->store, &fifos->small);
    near__ring_clear(&fifos->store, &fifos->main);
    near__ghost_clear(&fifos->ghost);
}

void
near__fifos_fini(struct near__fifos *fifos)
{
    near__fifos_clear(fifos);
    near__ghost_fini(&fifos->ghost);
    near__ring_store_fini(&fifos->store);
}

/* What a mark holds beside the tag. */
static uint8_t
mark_rest(const struct near__table *table, unsigned count)
{
    return (uint8_t)(atomic_load_explicit(&table->tick, memory_order_relaxed) | count); /* only we move it */
}

static unsigned
uses(struct near__place place)
{
    return near__place_mark(place) & COUNT_MAX;
}

static uint8_t
push(struct near__fifos *fifos, const struct near__table *table, struct near__ring *ring, uint32_t element,
     unsigned count)
{
    uint8_t tag;

    if (near__rings_full(fifos->small.count + fifos->main.count, table->entries)) {
        near__ring_compact(&fifos->store, &fifos->small, table, (uint8_t)~NEAR__RING_TAG);
        near__ring_compact(&fifos->store, &fifos->main, table, (uint8_t)~NEAR__RING_TAG);
    }
    near__ring_push(&fifos->store, ring, element, &tag);
    return tag | mark_rest(table, count);
}

uint8_t
near__fifos_enter(struct near__fifos *fifos, const struct near__table *table, uint32_t element)
{
    bool known = near__ghost_take(&fifos->ghost, element);

    return push(fifos, table, known || fifos->rule.share == 0 ? &fifos->main : &fifos->small, element, 0);
}

uint8_t
near__fifos_warmth(uint8_t mark)
{
    return (uint8_t)((mark & MAIN_TAGS ? WAS_MAIN : 0) | (mark & COUNT_MAX));
}

uint8_t
near__fifos_revive(struct near__fifos *fifos, const struct near__table *table, uint32_t element,
                   uint8_t warmth)
{
    bool was_main = warmth & WAS_MAIN;

    return push(fifos, table, was_main || fifos->rule.share == 0 ? &fifos->main : &fifos->small, element,
                warmth & COUNT_MAX);
}

static size_t
entries_of(const struct near__table *table)
{
    return near__table_fill(table);
}

/* The ghost follows the number of entries where that is not fixed. */
static void
ghost_fit(struct near__fifos *fifos, const struct near__table *table)
{
    size_t entries = entries_of(table);

    if (entries > fifos->ghost_for / 2 * 3 || entries < fifos->ghost_for / 2) {
        near__ghost_size(&fifos->ghost, entries * 9 / 10, table->exact);
        fifos->ghost_for = entries;
    }
}

static bool
victim_main(struct near__fifos *fifos, const struct near__table *table, struct near__place *place,
            uint32_t *element)
{
    unsigned count;

    while (near__ring_live(&fifos->store, &fifos->main, table, element, place)) {
        count = uses(*place);
        if (count == 0) {
            if (fifos->rule.share == 0)
                near__ghost_add(&fifos->ghost, *element);
            return true;
        }
        near__ring_push_entry(&fifos->store, &fifos->main, *element, *place,
                              mark_rest(table, fifos->rule.share == 0 ? 0 : count - 1));
    }
    return false;
}

static bool
victim_small(struct near__fifos *fifos, const struct near__table *table, struct near__place *place,
             uint32_t *element)
{
    while (near__ring_live(&fifos->store, &fifos->small, table, element, place)) {
        if (uses(*place) < fifos->rule.promote) {
            near__ghost_add(&fifos->ghost, *element);
            return true;
        }
        near__ring_push_entry(&fifos->store, &fifos->main, *element, *place, mark_rest(table, 0));
    }
    return false;
}

bool
near__fifos_victim(struct near__fifos *fifos, const struct near__table *table, struct near__place *place,
                   uint32_t *element)
{
    size_t entries = entries_of(table), share = entries - entries * fifos->rule.share / 100;

    ghost_fit(fifos, table);
    if (near__rings_short(fifos->small.count + fifos->main.count, table->entries))
        return near__table_any(table, &fifos->any, element, place);
    if (fifos->rule.share == 0)
        near__ring_append(&fifos->main, &fifos->small);
    while (fifos->small.count + fifos->main.count > 0) {
        if (fifos->main.count > share || fifos->small.count == 0) {
            if (victim_main(fifos, table, place, element))
                return true;
        } else if (victim_small(fifos, table, place, element)) {
            return true;
        }
    }
    return near__table_any(table, &fifos->any, element, place);
}

size_t
near__fifos_bytes(const struct near__fifos *fifos)
{
    return fifos->store.bytes + near__ghost_bytes(&fifos->ghost);
}
