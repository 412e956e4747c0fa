/*
 * The simulator: table and policies as L1 uses them, without keys, values and memory.  One access is a lookup, and on a miss the
 * key is inserted.  One thread.
 *
 * Production: shards by the low bits of the hash, lock-free marks, everything as in L1.  A key is known by the upper half of its
 * hash, so of a million keys some hundred pairs are taken for one.
 * Exact: one shard, whole hashes, every hit reported, no guards unless asked for: the definitions to the letter.
 */
#ifndef NEAR_L1_SIMULATE_H
#define NEAR_L1_SIMULATE_H

#include "l1/policy.h"

struct near__simulator_config {
    const char *policy;
    size_t      capacity; /* entries, at least 1 */
    unsigned    shards;   /* power of two; 0: as L1 chooses (4096 entries a shard or more, 64 at most) */
    bool        exact;    /* needs shards 0 or 1 */
    bool        guards;   /* exact only: with the guards of production */
};

struct near__simulator;

/* NEAR_ERR_INVALID, NEAR_ERR_NOMEM. */
near_status near__simulator_open(struct near__simulator             **simulator,
                                 const struct near__simulator_config *config);
void        near__simulator_close(struct near__simulator **simulator);
/* Whether the key was there.  `hash` must be good in all its bits. */
bool near__simulator_access(struct near__simulator *simulator, uint64_t hash);
/* The key is put there, if it is not: no request. */
void near__simulator_put(struct near__simulator *simulator, uint64_t hash);
/* The key is removed, as by an invalidation; whether it was there. */
bool near__simulator_remove(struct near__simulator *simulator, uint64_t hash);
/* Another size, up to half as much again as the first; what is too much leaves with the next insertions. */
void near__simulator_resize(struct near__simulator *simulator, size_t capacity);
/* Everything is removed at once. */
void near__simulator_clear(struct near__simulator *simulator);

struct near__simulator_bytes {
    size_t entries;
    size_t index, policy, pool; /* bytes */
};
struct near__simulator_bytes near__simulator_bytes(const struct near__simulator *simulator);

#endif
