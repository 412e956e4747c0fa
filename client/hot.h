/*
 * Which keys of a cache are asked for most: a sample of its hits and misses, counted by "space saving" (A. Metwally, D. Agrawal, A. El
 * Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams", ICDT 2005, section 3): a fixed number of counters, and
 * a new key takes over the smallest.  Every so often all counts are halved, so that what was hot yesterday makes room.
 *
 * One hit in about a thousand is looked at, by the number of the hit; one miss in about 16.  The lock (a leaf) covers everything and is only
 * tried: a sample that finds it taken is lost.
 *
 * Every few samples a hit is looked up once more, to be timed: not the one that was just made, but one of a while ago, whose lines may
 * have left the processor's caches by now as any other's.
 */
#ifndef NEAR_CLIENT_HOT_H
#define NEAR_CLIENT_HOT_H

#include "base/lock.h"

#define NEAR__HOT_COUNTERS 128
#define NEAR__HOT_KEY      112 /* longer keys are remembered by their beginning, and told apart by their hash */

struct near_cache;

struct near__hot_key {
    uint64_t hash;        /* 0: free */
    uint64_t count, over; /* requests, estimated; of which at most so many were another key's */
    uint32_t size;        /* of the key, whole */
    uint8_t  key[NEAR__HOT_KEY];
};

struct near__hot {
    struct near__lock    lock;
    uint64_t             total; /* requests that the counts are out of */
    unsigned             samples;
    struct near__hot_key keys[NEAR__HOT_COUNTERS];
};

void near__hot_init(struct near__hot *hot);
void near__hot_fini(struct near__hot *hot);

/* A hit that stands for NEAR__L1_SAMPLE ones: the callback of an L1. */
void near__hot_hit(void *cache, uint64_t hash, near_bytes key);
/* Something L1 could not answer was asked for. */
void near__hot_miss(struct near_cache *cache, uint64_t hash, near_bytes key);

/* The `n` keys asked for most, most wanted first, and out of how many requests; how many there are. */
size_t near__hot_top(struct near_cache *cache, struct near__hot_key *top, size_t n, uint64_t *total);

#endif
