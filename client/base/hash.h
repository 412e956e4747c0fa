/*
 * The hashes of the house.  xxhash is included by hash_keyed.h only (rules X1, X2), so no symbol of it leaves the library.
 *
 * near__hash_keyed   64 bits under a per-client random secret: picks shard, bucket, fence and flight of a key in this
 *                    process.  Never leaves the process and is never an identity: whole keys are compared.
 * near__hash_fixed   XXH64, seed 0: the checksum in an L2 entry.  The same on every machine.
 * near__hash_seeded  XXH64 with a seed: which member owns a key, who takes part in a rollout.  The same on every machine.
 * near__hash_wide    XXH3 128 bits, seed 0, canonical big-endian: the wire form of keys a backend cannot take.
 */
#ifndef NEAR_BASE_HASH_H
#define NEAR_BASE_HASH_H

#include "base/base.h"

#define NEAR__SECRET_SIZE 192
struct near__secret {
    uint8_t bytes[NEAR__SECRET_SIZE];
};

/* Fill from getrandom(2).  NEAR_ERR_UNAVAILABLE when the system gives no random bytes. */
near_status near__secret_init(struct near__secret *secret);
/* Random bytes from the system; false when there are none to be had. */
bool near__random(void *buffer, size_t size);

uint64_t near__hash_keyed(const struct near__secret *secret, near_bytes key);
uint64_t near__hash_fixed(near_bytes bytes);
uint64_t near__hash_seeded(near_bytes bytes, uint64_t seed);
/* XXH64 over two pieces as if they were one. */
uint64_t near__hash_fixed2(near_bytes first, near_bytes second);
void     near__hash_wide(near_bytes bytes, uint8_t out[16]);

#endif
