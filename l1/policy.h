/*
 * The eviction policies, one file each behind one vtable.  A new one is a file, a declaration here and a row in policy.c.
 *
 * A policy decides which entry of a table leaves.  It sees elements and marks (l1/table.h), never keys, values or time.
 *
 * Hits are not reported: the reader itself updates the entry's mark, by near__mark_hit() with the tick and count mask that the
 * policy has put into the table, and stores it only if it changed.  So a policy reads, when it looks for a victim, how often
 * (up to the mask) and how recently (to the tick) an entry was used since the policy last wrote its mark.  Only exact tables (the
 * simulator, one thread) report each hit.
 *
 * All functions run under the shard's lock, call nothing outside l1/ and may be slow only in proportion to what they evict.
 */
#ifndef NEAR_L1_POLICY_H
#define NEAR_L1_POLICY_H

#include "l1/table.h"

struct near__order; /* one policy at work on one table */

struct near__policy {
    const char *name;
    near_status (*open)(struct near__order *order);
    void (*close)(struct near__order *order);
    /* A key that was not there is about to be linked: the mark it begins with.  Called once per new key, after any victims were
     * taken for it.  (An overwritten key keeps its slot's mark: a use.) */
    uint8_t (*enter)(struct near__order *order, uint32_t element);
    /* The next entry to leave.  It is still linked: the caller unlinks it at once.  `element` is good for near__table_erase (and no
     * more: bits that the table does not know may be missing).  False: the table is empty. */
    bool (*victim)(struct near__order *order, struct near__place *place, uint32_t *element);
    /* How much an entry with this mark has been used, for revive(): 0 least.  May be NULL: nothing of that is kept. */
    uint8_t (*warmth)(const struct near__order *order, uint8_t mark);
    /* As enter(), for an entry of a former life that was so warm: no new key, so no time passes by it.  NULL where warmth() is. */
    uint8_t (*revive)(struct near__order *order, uint32_t element, uint8_t warmth);
    /* Exact tables only: a hit on the entry in this place (its mark was updated already), or a new entry was linked there.  May be
     * NULL. */
    void (*hit)(struct near__order *order, uint32_t element, struct near__place place);
    /* The table was cleared. */
    void (*reset)(struct near__order *order);
    /* Bytes of the policy's own state. */
    size_t (*bytes)(const struct near__order *order);
    /* Only for policies that watch single uses: a hit that changed its mark, or a miss, of a sampled element.  Called WITHOUT the
     * shard's lock, from any thread; NULL: never. */
    void (*watch)(struct near__order *order, uint32_t element, bool hit);
    /* What the shards of one L1 share: made before the first order is opened, with the number of entries expected in all shards
     * together (0: unknown), closed after the last one was.  NULL: nothing. */
    near_status (*pool_open)(void **pool, size_t entries);
    void (*pool_close)(void *pool);
    size_t (*pool_bytes)(const void *pool);
};

struct near__order {
    const struct near__policy *policy;
    struct near__table        *table;
    void *pool;  /* what the shards of one L1 share (pool_open), owned by near__l1; may be NULL */
    void *state; /* the policy's own */
    bool
        textbook; /* the definition to the letter, without the guards that a policy needs in practice (the simulator) */
};

extern const struct near__policy *const near__policies[];                     /* ends with NULL */
const struct near__policy              *near__policy_named(const char *name); /* NULL: there is none */

extern const struct near__policy near__lru, near__lfu, near__sieve, near__s3fifo, near__tinylfu,
    near__adaptive;

#endif
