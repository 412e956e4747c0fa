/*
 * W-TinyLFU in spirit (Einziger et al., ACM TOS 2017): a small window for new keys, a main part, and between them a contest: the
 * key that leaves the window takes the place of the one that would leave main only if it was asked for more often of late.
 *
 * How often is told by a count-min sketch: 4-bit counters, 8 for each entry, in lines of 64 bytes, four counters of one line for a
 * key; all are halved when there were ten additions an entry.  Readers do not feed it: a new key adds 1 when it enters, and what
 * readers have counted in an entry's mark (at most 3) is added when the entry comes to the front of a queue.
 *
 * Window (1 % of the entries) and main are queues of elements, both with a second chance for what was used.  The entry at main's
 * front that won a contest stays there as the next one's opponent.
 *
 * Marks: bits 0-1 the count, the high nibble the ring's.  Exact tables: the same.
 */
#include "l1/pages.h"
#include "l1/policy.h"
#include "l1/ring.h"

#include <stdlib.h>
#include <string.h>

enum {
    COUNT_MAX      = 3,
    WINDOW_SHARE   = 100, /* 1/100 of the entries, as published for workloads that favour frequency */
    SKETCH_SHARE   = 16,  /* entries to a line of 128 counters */
    SKETCH_LINE    = 64,
    ADDITIONS      = 10,
    SKETCH_MAXIMUM = 15,
    MAIN_TAGS      = 0x80, /* in a mark: main's tags are the upper half */
    WAS_MAIN       = 4,    /* in a warmth */
    REVIVED        = 2     /* uses that a revived entry of main has had at least */
};

struct tinylfu {
    struct near__ring_store store;
    struct near__ring       window, main;
    uint8_t (*sketch)[SKETCH_LINE]; /* NULL: no memory, everybody is equal */
    uint32_t lines;
    size_t   additions, sketch_for;
    uint32_t opponent; /* taken from main, still to leave it ... */
    bool     has_opponent;
    uint32_t any;
};

/* ---- the sketch */

static uint64_t
mix(uint32_t element)
{
    uint64_t x = (element + UINT64_C(1)) * 0x9e3779b97f4a7c15u;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    return x ^ x >> 27;
}

static unsigned
counter_at(const uint8_t *line, unsigned at)
{
    return line[at / 2] >> 4 * (at % 2) & 15;
}

static unsigned
frequency(const struct tinylfu *tiny, uint32_t element)
{
    uint64_t mixed = mix(element);
    unsigned least = SKETCH_MAXIMUM;

    if (tiny->sketch == NULL)
        return 0;
    const uint8_t *line = tiny->sketch[(mixed >> 32) * tiny->lines >> 32];
    for (unsigned i = 0; i < 4; i++) {
        unsigned count = counter_at(line, mixed >> 7 * i & 127);
        least          = count < least ? count : least;
    }
    return least;
}

static void
halve(struct tinylfu *tiny)
{
    uint8_t *bytes = tiny->sketch[0];

    for (size_t i = 0; i < (size_t)tiny->lines * SKETCH_LINE; i++)
        bytes[i] = bytes[i] >> 1 & 0x77;
    tiny->additions /= 2;
}

/* Only the least of a key's counters grow: fewer keys are taken for more frequent than they are. */
static void
add(struct tinylfu *tiny, uint32_t element, unsigned uses)
{
    uint64_t mixed = mix(element);

    if (tiny->sketch == NULL)
        return;
    uint8_t *line = tiny->sketch[(mixed >> 32) * tiny->lines >> 32];
    for (; uses > 0; uses--) {
        unsigned least = frequency(tiny, element);
        if (least == SKETCH_MAXIMUM)
            return;
        for (unsigned i = 0; i < 4; i++) {
            unsigned at = mixed >> 7 * i & 127;
            if (counter_at(line, at) == least)
                line[at / 2] = (uint8_t)(line[at / 2] + (1u << 4 * (at % 2)));
        }
        tiny->additions++;
    }
    if (tiny->additions >= ADDITIONS * tiny->sketch_for)
        halve(tiny);
}

static void
sketch_free(struct tinylfu *tiny)
{
    near__pages_free(tiny->sketch, (size_t)tiny->lines * SKETCH_LINE);
    tiny->sketch = NULL;
}

/* The sketch follows the number of entries where that is not fixed. */
static void
sketch_fit(struct tinylfu *tiny, size_t entries)
{
    if (entries <= tiny->sketch_for / 2 * 3 && entries >= tiny->sketch_for / 2)
        return;
    sketch_free(tiny);
    tiny->lines      = (uint32_t)(entries / SKETCH_SHARE + 1);
    tiny->sketch     = near__lines_new((size_t)tiny->lines * SKETCH_LINE);
    tiny->sketch_for = entries;
    tiny->additions  = 0;
}

/* ---- the policy */

static near_status
tinylfu_open(struct near__order *order)
{
    struct tinylfu *tiny = calloc(1, sizeof(*tiny));

    if (tiny == NULL)
        return NEAR_ERR_NOMEM;
    near__ring_store_init(&tiny->store, order->table->capacity);
    near__ring_init(&tiny->window, 0, 8);
    near__ring_init(&tiny->main, 8, 8);
    near__table_marks(order->table, 0, NEAR__RING_TAG | COUNT_MAX);
    order->state = tiny;
    return NEAR_OK;
}

static void
tinylfu_reset(struct near__order *order)
{
    struct tinylfu *tiny = order->state;

    near__ring_clear(&tiny->store, &tiny->window);
    near__ring_clear(&tiny->store, &tiny->main);
    tiny->has_opponent = false;
}

static void
tinylfu_close(struct near__order *order)
{
    struct tinylfu *tiny = order->state;

    tinylfu_reset(order);
    near__ring_store_fini(&tiny->store);
    sketch_free(tiny);
    free(tiny);
    order->state = NULL;
}

static size_t
entries_of(const struct near__table *table)
{
    return near__table_fill(table);
}

static uint8_t
push(struct near__order *order, struct near__ring *ring, uint32_t element, unsigned uses)
{
    struct tinylfu *tiny = order->state;
    uint8_t         tag;

    if (near__rings_full(tiny->window.count + tiny->main.count, order->table->entries)) {
        near__ring_compact(&tiny->store, &tiny->window, order->table, COUNT_MAX);
        near__ring_compact(&tiny->store, &tiny->main, order->table, COUNT_MAX);
    }
    sketch_fit(tiny, entries_of(order->table));
    add(tiny, element, uses);
    near__ring_push(&tiny->store, ring, element, &tag);
    return tag;
}

static uint8_t
tinylfu_enter(struct near__order *order, uint32_t element)
{
    struct tinylfu *tiny = order->state;

    return push(order, &tiny->window, element, 1);
}

static uint8_t
tinylfu_warmth(const struct near__order *order, uint8_t mark)
{
    (void)order;
    return (uint8_t)((mark & MAIN_TAGS ? WAS_MAIN : 0) | (mark & COUNT_MAX));
}

/* The sketch is not kept: what was in main has won a contest there, so it was asked for more than once. */
static uint8_t
tinylfu_revive(struct near__order *order, uint32_t element, uint8_t warmth)
{
    struct tinylfu *tiny = order->state;
    unsigned        uses = warmth & COUNT_MAX;

    if (warmth & WAS_MAIN)
        return push(order, &tiny->main, element, REVIVED + uses) | (uint8_t)uses;
    return push(order, &tiny->window, element, 1 + uses) | (uint8_t)uses;
}

/* The front of a queue that was not used since it was put there. */
static bool
unused_front(struct tinylfu *tiny, struct near__ring *ring, const struct near__table *table,
             uint32_t *element, struct near__place *place)
{
    unsigned count;

    while (near__ring_live(&tiny->store, ring, table, element, place)) {
        count = near__place_mark(*place) & COUNT_MAX;
        if (count == 0)
            return true;
        add(tiny, *element, count);
        near__ring_push_entry(&tiny->store, ring, *element, *place, 0);
    }
    return false;
}

/* Main's next to leave; it stays linked with the tag it had. */
static bool
opponent(struct tinylfu *tiny, const struct near__table *table, uint32_t *element, struct near__place *place)
{
    unsigned count;

    if (tiny->has_opponent && near__table_locate(table, tiny->opponent, place)) {
        *element = tiny->opponent;
        count    = near__place_mark(*place) & COUNT_MAX;
        if (count == 0)
            return true;
        add(tiny, *element, count);
        near__ring_push_entry(&tiny->store, &tiny->main, *element, *place, 0);
    }
    tiny->has_opponent = unused_front(tiny, &tiny->main, table, element, place);
    tiny->opponent     = *element;
    return tiny->has_opponent;
}

static bool
tinylfu_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    struct tinylfu    *tiny    = order->state;
    size_t             entries = entries_of(order->table), window = entries / WINDOW_SHARE + 1;
    struct near__place candidate;
    uint32_t           newer;

    if (near__rings_short(tiny->window.count + tiny->main.count + tiny->has_opponent, order->table->entries))
        return near__table_any(order->table, &tiny->any, element, place);
    while (tiny->window.count > window || tiny->main.count == 0) {
        if (!unused_front(tiny, &tiny->window, order->table, &newer, &candidate))
            break;
        if (tiny->main.count + tiny->has_opponent + window + 1 < entries) {
            near__ring_push_entry(&tiny->store, &tiny->main, newer, candidate, 0);
            continue;
        }
        if (!opponent(tiny, order->table, element, place) ||
            frequency(tiny, newer) <= frequency(tiny, *element)) {
            *element = newer;
            *place   = candidate;
            return true;
        }
        near__ring_push_entry(&tiny->store, &tiny->main, newer, candidate, 0);
        tiny->has_opponent = false;
        return true;
    }
    if (opponent(tiny, order->table, element, place)) {
        tiny->has_opponent = false;
        return true;
    }
    return near__table_any(order->table, &tiny->any, element, place);
}

static size_t
tinylfu_bytes(const struct near__order *order)
{
    const struct tinylfu *tiny = order->state;

    size_t sketch = tiny->sketch == NULL ? 0 : (size_t)tiny->lines * SKETCH_LINE;

    return sizeof(*tiny) + tiny->store.bytes + near__pages_bytes(sketch);
}

const struct near__policy near__tinylfu = {
    .name   = "tinylfu",
    .open   = tinylfu_open,
    .close  = tinylfu_close,
    .enter  = tinylfu_enter,
    .victim = tinylfu_victim,
    .warmth = tinylfu_warmth,
    .revive = tinylfu_revive,
    .reset  = tinylfu_reset,
    .bytes  = tinylfu_bytes,
};
