/*
 * What happened to keys last: a hint for near_explain(), in a small table per cache that forgets.  A slot belongs to whoever wrote it last;
 * its two halves are relaxed atomics, so a reader may, once in a long while, see one key's hash with another's moment.  No lock.
 */
#ifndef NEAR_CLIENT_EXPLAIN_H
#define NEAR_CLIENT_EXPLAIN_H

#include "base/base.h"

#include <stdatomic.h>

enum near__last_source { NEAR__LAST_NONE, NEAR__LAST_WRITE, NEAR__LAST_MESSAGE, NEAR__LAST_SERVER };

#define NEAR__LAST_SLOTS 512
struct near__last {
    struct {
        _Atomic uint64_t hash;
        _Atomic uint64_t moment; /* ns, the low two bits: the source */
    } slots[NEAR__LAST_SLOTS];
};

/* The key was invalidated. */
static inline void
near__last_note(struct near__last *last, uint64_t hash, enum near__last_source source, int64_t now)
{
    size_t slot = hash % NEAR__LAST_SLOTS;

    atomic_store_explicit(&last->slots[slot].hash, hash, memory_order_relaxed);
    atomic_store_explicit(&last->slots[slot].moment, ((uint64_t)now & ~UINT64_C(3)) | source,
                          memory_order_relaxed);
}

#endif
