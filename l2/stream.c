/* See stream.h.  All accesses are relaxed: a message comes back by way of a server, and a claim that is seen late costs a miss. */
#include "l2/stream.h"

#include <stdatomic.h>
#include <stddef.h>

enum { SETS = 1024, WAYS = 4 };

static _Atomic uint64_t claimed[SETS][WAYS];

static _Atomic uint64_t *
find(uint64_t stream, uint64_t what)
{
    _Atomic uint64_t *set = claimed[stream % SETS]; /* streams are random */

    for (unsigned way = 0; way < WAYS; way++)
        if (atomic_load_explicit(&set[way], memory_order_relaxed) == what)
            return &set[way];
    return NULL;
}

bool
near__stream_is_ours(uint64_t stream)
{
    return stream != 0 && find(stream, stream) != NULL; /* 0: an empty place */
}

void
near__stream_claim(uint64_t stream)
{
    _Atomic uint64_t *place = find(stream, stream);

    if (place != NULL)
        return;
    place = find(stream, 0);
    if (place == NULL)
        place = &claimed[stream % SETS][stream / SETS % WAYS]; /* most likely one that has ended */
    atomic_store_explicit(place, stream, memory_order_relaxed);
}

void
near__stream_disclaim(uint64_t stream)
{
    _Atomic uint64_t *place = find(stream, stream);

    if (place != NULL)
        atomic_store_explicit(place, 0, memory_order_relaxed);
}

void
near__stream_disclaim_all(void)
{
    for (unsigned set = 0; set < SETS; set++)
        for (unsigned way = 0; way < WAYS; way++)
            if (atomic_load_explicit(&claimed[set][way], memory_order_relaxed) != 0)
                atomic_store_explicit(&claimed[set][way], 0, memory_order_relaxed);
}
