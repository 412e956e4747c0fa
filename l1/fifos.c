/* Two queues and a ghost (see the header). */
#include "l1/fifos.h"

enum {
    COUNT_MAX  = 3,
    TICKS      = 4,
    TICK_SHIFT = 2,
    /* Of four values three pass in the life of an entry that is not used: at the front of main, three to four ticks after it was put
     * there, it can be told which of them saw its last use. */
    TICK_TURN = 3
};

void
near__fifos_init(struct near__fifos *fifos, struct near__table *table, struct near__fifos_rule rule,
                 bool ticks)
{
    *fifos = (struct near__fifos){ .rule = rule, .ticks = ticks };
    near__ring_store_init(&fifos->store, table->capacity);
    near__ring_init(&fifos->small, 0, 8);
    near__ring_init(&fifos->main, 8, 8);
    for (unsigned i = 0; i < TICKS; i++)
        near__ring_init(&fifos->used[i], 8, 8);
    /* relaxed: a reader that still sees the zeroes of a new table marks nothing */
    atomic_store_explicit(&table->tick, 0, memory_order_relaxed);
    atomic_store_explicit(&table->count_mask, NEAR__RING_TAG | COUNT_MAX, memory_order_relaxed);
}

void
near__fifos_clear(struct near__fifos *fifos)
{
    near__ring_clear(&fifos->store, &fifos->small);
    near__ring_clear(&fifos->store, &fifos->main);
    for (unsigned i = 0; i < TICKS; i++)
        near__ring_clear(&fifos->store, &fifos->used[i]);
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

static unsigned
tick_of(const struct near__table *table)
{
    return atomic_load_explicit(&table->tick, memory_order_relaxed) >> TICK_SHIFT; /* only we move it */
}

/* All queues by tick behind main, the oldest first. */
static void
unite(struct near__fifos *fifos, const struct near__table *table)
{
    for (unsigned i = 1; i <= TICKS; i++)
        near__ring_append(&fifos->main, &fifos->used[(tick_of(table) + i) % TICKS]);
}

static void
tick_on(struct near__fifos *fifos, struct near__table *table)
{
    unsigned tick = (tick_of(table) + 1) % TICKS;

    if (!fifos->ticks || ++fifos->fresh * TICK_TURN < table->entries)
        return;
    fifos->fresh = 0;
    near__ring_append(&fifos->main, &fifos->used[tick]);
    atomic_store_explicit(&table->tick, (uint8_t)(tick << TICK_SHIFT),
                          memory_order_relaxed); /* carries nothing else */
}

static size_t
elements(const struct near__fifos *fifos)
{
    size_t count = fifos->small.count + fifos->main.count;

    for (unsigned i = 0; i < TICKS; i++)
        count += fifos->used[i].count;
    return count;
}

static void
compact(struct near__fifos *fifos, const struct near__table *table)
{
    near__ring_compact(&fifos->store, &fifos->small, table, (uint8_t)~NEAR__RING_TAG);
    near__ring_compact(&fifos->store, &fifos->main, table, (uint8_t)~NEAR__RING_TAG);
    for (unsigned i = 0; i < TICKS; i++)
        near__ring_compact(&fifos->store, &fifos->used[i], table, (uint8_t)~NEAR__RING_TAG);
}

uint8_t
near__fifos_enter(struct near__fifos *fifos, struct near__table *table, uint32_t element)
{
    bool               known = near__ghost_take(&fifos->ghost, element);
    struct near__ring *ring  = known ? &fifos->main : &fifos->small;
    uint8_t            tag;

    tick_on(fifos, table);
    if (near__rings_full(elements(fifos), table->entries))
        compact(fifos, table);
    if (fifos->rule.share == 0)
        ring = &fifos->used[tick_of(table)];
    near__ring_push(&fifos->store, ring, element, &tag);
    return tag | mark_rest(table, 0);
}

static size_t
entries_of(const struct near__table *table)
{
    return table->capacity != 0 ? table->capacity : table->entries;
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
        if (count == 0)
            return true;
        near__ring_push_entry(&fifos->store, &fifos->main, *element, *place, mark_rest(table, count - 1));
    }
    return false;
}

/* The front of main, or of the oldest queue by tick, that was not used since it was put there. */
static bool
victim_lru(struct near__fifos *fifos, const struct near__table *table, struct near__place *place,
           uint32_t *element)
{
    unsigned tick;

    near__ring_append(&fifos->main, &fifos->small);
    for (unsigned age = TICKS + 1; age > 0;
         age--) { /* the last, of the present tick, twice: its uses are then known */
        while (near__ring_live(&fifos->store, &fifos->main, table, element, place)) {
            if (uses(*place) == 0) {
                near__ghost_add(&fifos->ghost, *element);
                return true;
            }
            tick = near__place_mark(*place) >> TICK_SHIFT & (TICKS - 1);
            near__ring_push_entry(&fifos->store, &fifos->used[tick], *element, *place,
                                  (uint8_t)(tick << TICK_SHIFT));
        }
        for (unsigned i = 1; i <= TICKS && fifos->main.count == 0; i++)
            near__ring_append(&fifos->main, &fifos->used[(tick_of(table) + i) % TICKS]);
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
    if (fifos->rule.share == 0)
        return victim_lru(fifos, table, place, element) ||
               near__table_any(table, &fifos->any, element, place);
    if (fifos->ticks)
        unite(fifos, table);
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
