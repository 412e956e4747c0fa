/*
 * near__hash_keyed(), inline, for the file whose path is counted in instructions.  Everything of xxhash is static here: no symbol of
 * it leaves the library (rules X1, X2).
 */
#ifndef NEAR_BASE_HASH_KEYED_H
#define NEAR_BASE_HASH_KEYED_H

#include "base/hash.h"

#define XXH_INLINE_ALL
#define XXH_FORCE_MEMORY_ACCESS 0 /* gcc's own mode breaks strict aliasing when inlined (rule X2) */
#include <xxhash.h>

/* Keys of up to 128 bytes, which takes no loop and no stack.  Everything of xxhash that can be reached from here is inlined, and
 * what longer keys would need falls away because the compiler knows the range. */
static __attribute__((noinline, flatten)) uint64_t
near__hash_short(const struct near__secret *secret, const void *data, size_t size)
{
    if (size > 128)
        __builtin_unreachable(); /* the caller has looked */
    return XXH3_64bits_withSecret(data, size, secret->bytes, sizeof(secret->bytes));
}

/* Keys of a size that the caller has looked at: 9 to 16 or 17 to 32 bytes take no branch.  The caller is `flatten`. */
static inline __attribute__((always_inline)) uint64_t
near__hash_between(const struct near__secret *secret, near_bytes key, size_t least, size_t most)
{
    if (key.size < least || key.size > most)
        __builtin_unreachable();
    return XXH3_64bits_withSecret(key.data, key.size, secret->bytes, sizeof(secret->bytes));
}

static inline uint64_t
near__hash_keyed_inline(const struct near__secret *secret, near_bytes key)
{
    return __builtin_expect(key.size <= 128, 1) ? near__hash_short(secret, key.data, key.size)
                                                : near__hash_keyed(secret, key);
}

#endif
