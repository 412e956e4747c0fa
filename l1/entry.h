/*
 * An entry: one key with its immutable value, counted, in a block of the heap.
 *
 * What L2, a loader or a writer brings is an entry; its creator references it.  L1 copies it into its arena (l1/block.h), or, if
 * it is too large for that or its bytes were adopted, keeps one more reference.  Nothing of an entry but the count changes after
 * its creator gave it to anybody, so it is read without a lock for as long as somebody holds it.  An entry knows neither its L1
 * nor its client: it outlives both while it is held.
 *
 * The application's near_value is an address with a few low bits that say how this holder came by it: either a counted entry's, or
 * that of the hazard slot (l1/hazard.h) that keeps an arena's block in place.
 */
#ifndef NEAR_L1_ENTRY_H
#define NEAR_L1_ENTRY_H

#include "l1/labels.h"
#include "l1/object.h"

struct near__entry {
    _Atomic uint32_t refs;
    uint32_t         key_size;
    uint64_t         hash; /* near__hash_keyed of the key */
    size_t           value_size;
    const void      *value;      /* in this block, or adopted */
    void (*release)(void *data); /* adopted values: called once when the last holder has gone; else NULL */
    int64_t  born;               /* when this process got it */
    int64_t  expires;            /* not served from then on; NEAR_NEVER */
    int64_t  fresh_until;        /* stale from then on; NEAR_NEVER: as long as it lives */
    uint64_t stamp;              /* version of the L2 entry, 0: none */
    uint64_t generation;         /* of its cache, when it was read or loaded */
    uint32_t cost_us;            /* of the load that made it */
    uint32_t mapped_pages;       /* of 4 KiB: this block came from mmap; 0: from malloc */
    bool     negative;           /* "the store has no such thing": no value */
    bool     adopted;            /* value lies in memory that was taken over */
    uint8_t  origin; /* near_source of what no tier gave, for handles that have none in their bits; else 0 */
    uint8_t  pool;   /* number of the pool that it is meant for (l1/pools.h); 0: not said */

    struct near__labels *labels; /* its own, from malloc; NULL: it has none */
    struct near__object *object; /* a reference: what its bytes were decoded to; NULL: they are the value */

    unsigned char key[];
};

/* A new entry with room for `value_size` bytes, the key copied in, refs 1, born and expires set by the caller afterwards.
 * `*value` is where the creator writes the bytes before anybody else sees the entry (16-byte aligned, 64 from 64 bytes on; may be
 * NULL when value_size is 0).  NULL: out of memory. */
struct near__entry *near__entry_new(near_bytes key, uint64_t hash, size_t value_size, void **value);
/* A new entry around memory that is taken over: `release(data)` runs once at the end (NULL: nothing runs).  NULL: out of memory,
 * and the data are still the caller's. */
struct near__entry *near__entry_adopt(near_bytes key, uint64_t hash, void *data, size_t size,
                                      void (*release)(void *));

void near__entry_ref(struct near__entry *entry);
/* Lets go and leaves NULL behind; NULL inside is fine.  No lock may be held: the last one calls `release`. */
void near__entry_release(struct near__entry **entry);

/* One of either, by its address: an object's is marked.  What must wait for the end of a lock's hold is kept so. */
#define NEAR__LEAVES_OBJECT ((uintptr_t)1)
static inline void
near__let_go(uintptr_t leaves)
{
    struct near__entry  *entry  = (struct near__entry *)leaves;
    struct near__object *object = (struct near__object *)(leaves & ~NEAR__LEAVES_OBJECT);

    if (leaves & NEAR__LEAVES_OBJECT)
        near__object_release(&object);
    else
        near__entry_release(&entry);
}

/* Memory this entry costs: what the allocator gave (its header counted), adopted bytes and its object included. */
size_t near__entry_cost(const struct near__entry *entry);

/* What the value's holder reads: its bytes, or of a decoded one those that were kept. */
static inline near_bytes
near__entry_bytes(const struct near__entry *entry)
{
    return entry->object != NULL ? near__object_bytes(entry->object)
                                 : (near_bytes){ entry->value, entry->value_size };
}

static inline near_bytes
near__entry_key(const struct near__entry *entry)
{
    return (near_bytes){ entry->key, entry->key_size };
}

/* ---- the application's handle */

#define NEAR__VALUE_SOURCE ((uintptr_t)3)
#define NEAR__VALUE_STALE  ((uintptr_t)4)
#define NEAR__VALUE_SLOT   ((uintptr_t)8) /* the address is a hazard slot's */
#define NEAR__VALUE_BITS   ((uintptr_t)15)

static inline near_value *
near__value_of(struct near__entry *entry, near_source source, bool stale)
{
    return (near_value *)((uintptr_t)entry | (uintptr_t)source | (stale ? NEAR__VALUE_STALE : 0));
}

static inline void *
near__value_address(const near_value *value)
{
    return (void *)((uintptr_t)value & ~NEAR__VALUE_BITS);
}

static inline near_source
near__value_source(const near_value *value)
{
    if (((uintptr_t)value & (NEAR__VALUE_SOURCE | NEAR__VALUE_SLOT)) ==
        0) /* of a field: given by its caller, or by declaration */
        return (near_source)((const struct near__entry *)near__value_address(value))->origin;
    return (near_source)((uintptr_t)value & NEAR__VALUE_SOURCE);
}

#endif
