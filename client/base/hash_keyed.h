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

static inline uint64_t
near__hash_keyed_inline(const struct near__secret *secret, near_bytes key)
{
    return XXH3_64bits_withSecret(key.data, key.size, secret->bytes, sizeof(secret->bytes));
}

#endif
