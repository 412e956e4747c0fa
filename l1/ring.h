/*
 * Queues of elements for the policies that keep one (4 bytes an entry): chunks in a list, appended at the end, taken at the front.
 *
 * A queue is not told of removals: it may name keys that are gone, or gone and back.  To tell, an entry's mark carries the tag of
 * the chunk that holds its element (the high nibble, which uses leave alone, near__mark_hit): an element whose entry carries another
 * tag is stale.  Tags repeat after `tags` chunks; then, one time in `tags`, a key that was removed and filled again leaves as early
 * as its first life would have.  near__ring_live() drops stale elements as they are met, near__rings_full() says when they pile
 * up.
 *
 * The store belongs to one order (shard's lock); its chunks are counted in `bytes`.
 */
#ifndef NEAR_L1_RING_H
#define NEAR_L1_RING_H

#include "l1/table.h"

struct near__ring_chunk {
    struct near__ring_chunk *next;
    uint16_t                 begin, end, room;
    uint8_t                  tag; /* as it stands in marks */
    uint32_t                 at[];
};

struct near__ring_store {
    uint32_t                 chunk_elements; /* 0: by what the queue holds */
    struct near__ring_chunk *spare;          /* one, so that a queue in balance does not ask for memory */
    size_t                   bytes;
};

struct near__ring {
    struct near__ring_chunk *first, *last;
    size_t                   count;
    uint8_t                  tag_base, tags; /* chunks are tagged base .. base + tags - 1 in turn */
    uint8_t                  tag_next;
};

#define NEAR__RING_TAG 0xf0 /* the part of a mark that holds the tag: what rings add to a count mask */

/* `capacity` 0: unknown. */
void near__ring_store_init(struct near__ring_store *store, size_t capacity);
/* Rings must be empty. */
void near__ring_store_fini(struct near__ring_store *store);

/* Tags base .. base + tags - 1, of 16. */
void near__ring_init(struct near__ring *ring, unsigned tag_base, unsigned tags);
void near__ring_clear(struct near__ring_store *store, struct near__ring *ring);
/* The element goes to the end; the tag that its mark must carry.  False: no memory. */
bool near__ring_push(struct near__ring_store *store, struct near__ring *ring, uint32_t element, uint8_t *tag);
/* The same for an entry that is there: writes its mark, with this count. */
void near__ring_push_entry(struct near__ring_store *store, struct near__ring *ring, uint32_t element,
                           struct near__place place, uint8_t rest);
/* The front element that is not stale, with its entry; takes it (and any stale ones before it) off.  False: empty. */
bool near__ring_live(struct near__ring_store *store, struct near__ring *ring, const struct near__table *table,
                     uint32_t *element, struct near__place *place);
/* All of `from` behind what is in `to`; `from` is empty then. */
void near__ring_append(struct near__ring *to, struct near__ring *from);
/* Takes the stale elements out. */
void near__ring_compact(struct near__ring_store *store, struct near__ring *ring,
                        const struct near__table *table, uint8_t rest_mask);

/* Whether so many elements for so many entries are too many: a quarter of them stale, and some. */
static inline bool
near__rings_full(size_t elements, size_t entries)
{
    return elements > entries + entries / 4 + 64;
}

/* Whether so many elements are too few for so many entries: some have lost theirs (no memory for it, or a use that wrote an old tag
 * back).  Then any entry is taken now and then, until those are among them. */
static inline bool
near__rings_short(size_t elements, size_t entries)
{
    return elements + entries / 32 + 16 < entries;
}

/* Any entry at all, for a queue that lost its elements because there was no memory for them.  `hand`: kept by the caller.
 * False: the table is empty. */
bool near__table_any(const struct near__table *table, uint32_t *hand, uint32_t *element,
                     struct near__place *place);

#endif
