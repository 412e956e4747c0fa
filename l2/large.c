/* See large.h.  Everything relaxed: a place is one word, and whatever is read from it is as good as what was written a moment before. */
#include "l2/large.h"

#include "base/hash.h"

static uint64_t
hash_of(near_bytes key)
{
    return near__hash_fixed(key) | 1; /* 0 is an empty place */
}

static size_t
place_of(uint64_t hash)
{
    return (size_t)(hash >> 32) % NEAR__LARGE_PLACES;
}

static bool
is_empty(const struct near__large *large)
{
    return atomic_load_explicit(&large->n, memory_order_relaxed) == 0;
}

void
near__large_note(struct near__large *large, near_bytes key, size_t size)
{
    uint64_t          hash;
    _Atomic uint64_t *place;

    if (size < NEAR__LARGE && is_empty(large))
        return;
    hash  = hash_of(key);
    place = &large->place[place_of(hash)];
    if (size >= NEAR__LARGE) {
        if (atomic_exchange_explicit(place, hash, memory_order_relaxed) == 0)
            atomic_fetch_add_explicit(&large->n, 1, memory_order_relaxed);
    } else if (atomic_compare_exchange_strong_explicit(place, &hash, 0, memory_order_relaxed,
                                                       memory_order_relaxed)) {
        atomic_fetch_sub_explicit(&large->n, 1, memory_order_relaxed);
    }
}

bool
near__large_has(const struct near__large *large, near_bytes key)
{
    uint64_t hash;

    if (is_empty(large))
        return false;
    hash = hash_of(key);
    return atomic_load_explicit(&large->place[place_of(hash)], memory_order_relaxed) == hash;
}
