#include "base/hash_keyed.h"

#include <errno.h>
#include <sys/random.h>

bool
near__random(void *buffer, size_t size)
{
    uint8_t *at = buffer;

    while (size > 0) {
        ssize_t got = getrandom(at, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        at += got;
        size -= (size_t)got;
    }
    return true;
}

near_status
near__secret_init(struct near__secret *secret)
{
    uint8_t seed[64];

    if (!near__random(seed, sizeof(seed)))
        return NEAR_ERR_UNAVAILABLE;
    _Static_assert(NEAR__SECRET_SIZE >= XXH3_SECRET_SIZE_MIN, "rule X4");
    if (XXH3_generateSecret(secret->bytes, sizeof(secret->bytes), seed, sizeof(seed)) != XXH_OK)
        return NEAR_ERR_UNAVAILABLE;
    return NEAR_OK;
}

uint64_t
near__hash_keyed(const struct near__secret *secret, near_bytes key)
{
    return key.size <= 128 ? near__hash_short(secret, key.data, key.size)
                           : XXH3_64bits_withSecret(key.data, key.size, secret->bytes, sizeof(secret->bytes));
}

uint64_t
near__hash_fixed(near_bytes bytes)
{
    return XXH64(bytes.data, bytes.size, 0);
}

uint64_t
near__hash_seeded(near_bytes bytes, uint64_t seed)
{
    return XXH64(bytes.data, bytes.size, seed);
}

uint64_t
near__hash_fixed2(near_bytes first, near_bytes second)
{
    XXH64_state_t state;
    unsigned char whole[512];

    /* in one piece it takes half the time, the copy included */
    if (first.size <= sizeof(whole) && second.size <= sizeof(whole) - first.size) {
        __builtin_memcpy(whole, first.data, first.size);
        if (second.size > 0)
            __builtin_memcpy(whole + first.size, second.data, second.size);
        return XXH64(whole, first.size + second.size, 0);
    }
    XXH64_reset(&state, 0);
    XXH64_update(&state, first.data, first.size);
    if (second.size > 0)
        XXH64_update(&state, second.data, second.size);
    return XXH64_digest(&state);
}

void
near__hash_wide(near_bytes bytes, uint8_t out[16])
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data, bytes.size));
    __builtin_memcpy(out, canonical.digest, sizeof(canonical.digest));
}
