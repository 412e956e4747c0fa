/*
 * An object: what a codec made of a value's bytes, counted.
 *
 * One is made when an entry is born (client/codec.c) and never changes.  The entry holds a reference, and so does an L1 that keeps the
 * entry: its block names the object in place of bytes (l1/block.h).  Who holds a hit holds the block, and the block holds the object: so
 * a hit counts nothing here.  Whoever lets go last destroys it, once, with no lock held.
 *
 * `blocks`, `lost` and `next` belong to the shard that names it first, its owner, for good; its lock covers them.  An object is of one key,
 * so there is another shard only where a key goes from pool to pool (l1/pools.h): that gets an object around this one.
 */
#ifndef NEAR_L1_OBJECT_H
#define NEAR_L1_OBJECT_H

#include "base/base.h"

#include <stdatomic.h>

struct near__object {
    _Atomic uint32_t refs;
    _Atomic uint32_t owner;  /* number of the shard that the counts below belong to; 0: none yet */
    uint32_t         blocks; /* that name it: for all of them the shard holds one reference and one charge */
    uint32_t         lost;   /* of them, those that wait for the end of the L1 */
    struct near__object *next; /* of those with lost ones */
    void                *object;
    void (*destroy)(void *object, void *ctx); /* NULL: nothing is called */
    void       *ctx;
    size_t      size;  /* what the object counts for */
    const void *bytes; /* of the original, kept; NULL: not kept, or empty */
    size_t      bytes_size;
};

/* Takes `object` over, with one reference.  `keep`: a copy of these bytes is kept; NULL data: none.  NULL: out of memory, and the object is
 * still the caller's. */
struct near__object *near__object_new(void *object, size_t size, void (*destroy)(void *object, void *ctx),
                                      void *ctx, near_bytes keep);
/* Another counted one that shows the same and holds this one.  NULL: out of memory. */
struct near__object *near__object_around(struct near__object *object);
/* Lets go and leaves NULL behind; NULL inside is fine.  No lock may be held, unless somebody is known to hold it besides. */
void near__object_release(struct near__object **object);
/* Memory that it costs: the codec's word, and what lies here. */
size_t near__object_cost(const struct near__object *object);

static inline struct near__object *
near__object_ref(struct near__object *object)
{
    /* relaxed: the caller holds one already, or a block that does */
    if (object != NULL)
        atomic_fetch_add_explicit(&object->refs, 1, memory_order_relaxed);
    return object;
}

static inline near_bytes
near__object_bytes(const struct near__object *object)
{
    return (near_bytes){ object->bytes, object->bytes_size };
}

#endif
