/* Queues of elements (see the header). */
#include "l1/ring.h"

#include "l1/pages.h"

#include <stdlib.h>

enum {
    CHUNK_MIN   = 12,        /* elements: a chunk of 64 bytes */
    CHUNK_PAGE  = 1020,      /* of 4 KiB */
    CHUNK_MAX   = 16 * 1020, /* of 64 KiB: a system allows some ten thousand pieces of memory */
    CHUNK_SHARE = 32,        /* two part-filled chunks a queue waste 1/16 of 4 bytes an entry */
    TAG_SHIFT   = 4
};

/* A share of `elements`, whole pages where it is as much as one. */
static uint32_t
chunk_room(size_t elements)
{
    size_t share = elements / CHUNK_SHARE;

    if (share > CHUNK_MAX)
        return CHUNK_MAX;
    if (share >= CHUNK_PAGE)
        return (uint32_t)((share / (CHUNK_PAGE + 4) + 1) * (CHUNK_PAGE + 4) - 4);
    return share < CHUNK_MIN ? CHUNK_MIN : (uint32_t)share;
}

/* Of a queue that may grow: pages as soon as two part-filled ones are little, so that malloc does not keep what it leaves when it shrinks. */
static uint32_t
chunk_room_growing(size_t elements)
{
    if (elements < CHUNK_PAGE / 4 * CHUNK_SHARE)
        return CHUNK_PAGE / 4;
    return elements < CHUNK_PAGE * CHUNK_SHARE ? CHUNK_PAGE : chunk_room(elements);
}

void
near__ring_store_init(struct near__ring_store *store, size_t capacity)
{
    *store = (struct near__ring_store){ .chunk_elements = capacity == 0 ? 0 : chunk_room(capacity) };
}

static size_t
chunk_bytes(uint32_t room)
{
    return sizeof(struct near__ring_chunk) + room * sizeof(uint32_t);
}

static void
chunk_delete(struct near__ring_store *store, struct near__ring_chunk *chunk)
{
    if (chunk == NULL)
        return;
    store->bytes -= near__pages_bytes(chunk_bytes(chunk->room));
    near__pages_free(chunk, chunk_bytes(chunk->room));
}

void
near__ring_store_fini(struct near__ring_store *store)
{
    chunk_delete(store, store->spare);
    store->spare = NULL;
}

static struct near__ring_chunk *
chunk_new(struct near__ring_store *store, uint32_t room)
{
    struct near__ring_chunk *chunk = store->spare;

    store->spare = NULL;
    if (chunk != NULL && (chunk->room >= room / 2 && chunk->room <= 2 * room))
        return chunk;
    chunk_delete(store, chunk);
    chunk = near__pages_new(chunk_bytes(room));
    if (chunk == NULL)
        return NULL;
    chunk->room = (uint16_t)room;
    store->bytes += near__pages_bytes(chunk_bytes(room));
    return chunk;
}

static void
chunk_free(struct near__ring_store *store, struct near__ring_chunk *chunk)
{
    if (store->spare == NULL)
        store->spare = chunk;
    else
        chunk_delete(store, chunk);
}

void
near__ring_init(struct near__ring *ring, unsigned tag_base, unsigned tags)
{
    *ring = (struct near__ring){ .tag_base = (uint8_t)tag_base, .tags = (uint8_t)tags };
}

static void
ring_drop_first(struct near__ring_store *store, struct near__ring *ring)
{
    struct near__ring_chunk *chunk = ring->first;

    ring->first = chunk->next;
    if (ring->first == NULL)
        ring->last = NULL;
    chunk_free(store, chunk);
}

void
near__ring_clear(struct near__ring_store *store, struct near__ring *ring)
{
    while (ring->first != NULL)
        ring_drop_first(store, ring);
    ring->count = 0;
}

static bool
ring_grow(struct near__ring_store *store, struct near__ring *ring)
{
    uint32_t room = store->chunk_elements != 0 ? store->chunk_elements : chunk_room_growing(ring->count);
    struct near__ring_chunk *chunk = chunk_new(store, room);

    if (chunk == NULL)
        return false;
    chunk->next  = NULL;
    chunk->begin = chunk->end = 0;
    chunk->tag                = (uint8_t)((ring->tag_base + ring->tag_next) << TAG_SHIFT);
    ring->tag_next            = (uint8_t)((ring->tag_next + 1) % ring->tags);
    if (ring->last != NULL)
        ring->last->next = chunk;
    else
        ring->first = chunk;
    ring->last = chunk;
    return true;
}

bool
near__ring_push(struct near__ring_store *store, struct near__ring *ring, uint32_t element, uint8_t *tag)
{
    *tag = 0;
    if ((ring->last == NULL || ring->last->end == ring->last->room) && !ring_grow(store, ring))
        return false;
    ring->last->at[ring->last->end++] = element;
    ring->count++;
    *tag = ring->last->tag;
    return true;
}

void
near__ring_push_entry(struct near__ring_store *store, struct near__ring *ring, uint32_t element,
                      struct near__place place, uint8_t rest)
{
    uint8_t tag;

    near__ring_push(store, ring, element, &tag);
    near__place_mark_set(place, (uint8_t)(tag | rest));
}

/* The home of the element that will be popped next: by then its line has come. */
static void
prefetch_next(const struct near__ring *ring, const struct near__table *table)
{
    const struct near__ring_chunk *first = ring->first;

    if (first != NULL && first->begin < first->end)
        __builtin_prefetch(
            near__table_bucket(table, near__table_home(near__table_size(table), first->at[first->begin])));
}

static bool
ring_pop(struct near__ring_store *store, struct near__ring *ring, uint32_t *element, uint8_t *tag)
{
    if (ring->count == 0)
        return false;
    while (ring->first->begin == ring->first->end)
        ring_drop_first(store, ring);
    *element = ring->first->at[ring->first->begin++];
    *tag     = ring->first->tag;
    ring->count--;
    if (ring->first->begin == ring->first->end && ring->first != ring->last)
        ring_drop_first(store, ring);
    return true;
}

/*
 * The entry of this element that carries this tag.  Two keys of one home may share the upper half of their elements (one key in some
 * thousands does, in small tables): those of different tags are told apart, those of one tag stand for each other.  To take
 * the one for a stale element of the other would orphan it: nothing would ever find it in a queue again.
 */
static bool
locate(const struct near__table *table, uint32_t element, uint8_t tag, struct near__place *place)
{
    uint64_t             size   = near__table_size(table);
    struct near__bucket *bucket = near__table_bucket(table, near__table_home(size, element));

    if (near__bucket_stale(table, bucket))
        return false;
    for (; bucket != NULL; bucket = near__table_after(table, bucket)) {
        for (uint32_t match = near__bucket_match(bucket, near__tag(element)); match != 0;
             match          = NEAR__LANE_NEXT(match)) {
            *place = (struct near__place){ bucket, NEAR__LANE(match) };
            if (near__place_ref(*place) != 0 && (near__place_mark(*place) & NEAR__RING_TAG) == tag)
                return true;
        }
    }
    return false;
}

bool
near__ring_live(struct near__ring_store *store, struct near__ring *ring, const struct near__table *table,
                uint32_t *element, struct near__place *place)
{
    uint8_t tag;

    while (ring_pop(store, ring, element, &tag)) {
        prefetch_next(ring, table);
        if (locate(table, *element, tag, place))
            return true;
    }
    return false;
}

void
near__ring_append(struct near__ring *to, struct near__ring *from)
{
    if (from->first == NULL)
        return;
    if (to->last != NULL)
        to->last->next = from->first;
    else
        to->first = from->first;
    to->last = from->last;
    to->count += from->count;
    from->first = from->last = NULL;
    from->count              = 0;
}

void
near__ring_compact(struct near__ring_store *store, struct near__ring *ring, const struct near__table *table,
                   uint8_t rest_mask)
{
    struct near__ring  old = *ring;
    struct near__place place;
    uint32_t           element;

    ring->first = ring->last = NULL;
    ring->count              = 0;
    while (near__ring_live(store, &old, table, &element, &place))
        near__ring_push_entry(store, ring, element, place, near__place_mark(place) & rest_mask);
    near__ring_clear(store, &old);
}

/* The hand counts slots and moves by a home and a lane: an erasure fills its slot again from the chain's end, so whoever took the first
 * lane each time would take what came last and never see the others. */
bool
near__table_any(const struct near__table *table, uint32_t *hand, uint32_t *element, struct near__place *place)
{
    uint32_t             homes = near__table_homes(table), home;
    unsigned             first;
    struct near__bucket *bucket;

    for (uint32_t i = 0; i < 2 * homes; i++) {
        *hand += NEAR__LANES + 1;
        if (*hand / NEAR__LANES >= homes)
            *hand %= NEAR__LANES;
        /* once round from some lane on, which leaves out every ninth home, then all of all homes */
        home   = i < homes ? *hand / NEAR__LANES : i - homes;
        first  = i < homes ? *hand % NEAR__LANES : 0;
        bucket = near__table_bucket(table, home);
        if (near__bucket_stale(table, bucket))
            continue;
        for (; bucket != NULL; bucket = near__table_after(table, bucket), first = 0) {
            for (unsigned lane = first; lane < NEAR__LANES; lane++) {
                *place = (struct near__place){ bucket, lane };
                if (near__place_ref(*place) == 0)
                    continue;
                *element = near__table_partial(
                    home, atomic_load_explicit(&bucket->tags.lanes[lane], memory_order_relaxed));
                return true;
            }
        }
    }
    return false;
}
