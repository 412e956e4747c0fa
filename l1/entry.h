/*
 * An entry: one key with its immutable value, in one block of memory.
 *
 * Born referenced by its creator; linked into at most one L1, at most once; once unlinked it is never linked again.  Key,
 * value and the fields of the first group never change after near__l1_insert() or the first hand-out, so they are read without
 * a lock for as long as somebody holds a reference.  The fields of the last group belong to l1/ and are covered by the shard's
 * lock.  An entry knows neither its L1 nor its client: it outlives both while it is held.
 *
 * The application's near_value is the entry's address with a few low bits saying how this caller came by it (source, stale):
 * entries are aligned to 16, so a hit tells its origin without allocating.
 */
#ifndef NEAR_L1_ENTRY_H
#define NEAR_L1_ENTRY_H

#include "base/base.h"

#include <stdatomic.h>

struct near__entry {
    _Atomic uint32_t refs;
    uint32_t         key_size;
    uint64_t         hash; /* near__hash_keyed of the key */
    size_t           value_size;
    const void      *value;      /* in this block, or adopted */
    void (*release)(void *data); /* adopted values: called once when the last holder has gone; else NULL */
    int64_t  born;               /* when this process got it */
    int64_t  fresh_until;        /* served only as stale from then on: the client's business */
    int64_t  expires;            /* not served from then on; NEAR_NEVER */
    uint64_t stamp;              /* version of the L2 entry, 0: none */
    uint64_t generation;         /* of its cache, when it was read or loaded */
    uint32_t cost_us;            /* of the load that made it */
    bool     negative;           /* "the store has no such thing": no value */
    bool     adopted;            /* value lies in memory that was taken over */

    bool                linked;        /* it was once, and perhaps still is; shard's lock, like all below */
    struct near__entry *chain;         /* next in the bucket */
    struct near__entry *newer, *older; /* the policy's queue */

    unsigned char key[];
};

/* A new entry with room for `value_size` bytes, the key copied in, refs 1, born and expires set by the caller afterwards.
 * `*value` is where the creator writes the bytes before anybody else sees the entry (16-byte aligned, 64 from 4 KiB on; may be
 * NULL when value_size is 0).  NULL: out of memory. */
struct near__entry *near__entry_new(near_bytes key, uint64_t hash, size_t value_size, void **value);
/* A new entry around memory that is taken over: `release(data)` runs once at the end (NULL: nothing runs).  NULL: out of memory,
 * and the data are still the caller's. */
struct near__entry *near__entry_adopt(near_bytes key, uint64_t hash, void *data, size_t size,
                                      void (*release)(void *));

void near__entry_ref(struct near__entry *entry);
/* Lets go and leaves NULL behind; NULL inside is fine.  Must be called without a shard's lock when the entry may be adopted:
 * the last one calls `release`. */
void near__entry_release(struct near__entry **entry);

/* Memory this entry costs: what the allocator gave (its header counted), adopted bytes included. */
size_t near__entry_cost(const struct near__entry *entry);

static inline near_bytes
near__entry_key(const struct near__entry *entry)
{
    return (near_bytes){ entry->key, entry->key_size };
}

/* ---- the application's handle: the address and, in its low bits, how this holder came by it */

#define NEAR__VALUE_SOURCE ((uintptr_t)3)
#define NEAR__VALUE_STALE  ((uintptr_t)4)
#define NEAR__VALUE_BITS   ((uintptr_t)15)

static inline near_value *
near__value_of(struct near__entry *entry, near_source source, bool stale)
{
    return (near_value *)((uintptr_t)entry | (uintptr_t)source | (stale ? NEAR__VALUE_STALE : 0));
}

static inline struct near__entry *
near__value_entry(const near_value *value)
{
    return (struct near__entry *)((uintptr_t)value & ~NEAR__VALUE_BITS);
}

#endif
