/*
 * Pools: one L1 made of several, each an eviction domain of its own size, policy and TTL, read as one.
 *
 *   near__l1 ── pools ── keys[]     locks: a key's lock orders what is done to it in all pools, and its fence (stripes[])
 *                    ├── stripes[]  as in l1/l1.c; those of the pools themselves are not used
 *                    └── of[]       a whole near__l1 each: index, arena, policy, upkeep, curve
 *
 * An entry is in the pool that its maker named (near__entry.pool), or else in the one that the configuration's pool_of() says for its key
 * and the size of its value, else in the first.
 *
 * Finding: the pools are looked into one after the other, the one with most hits first, their buckets' lines brought at once; what a key is
 * compared with is a pool's own business.  A batch compares the tags of all pools' buckets together instead, and tries the key where its tag
 * is; only what is not found so is looked for in order.  No pool has a trace of a key of another pool, so a scan through one evicts
 * nothing of the others.
 *
 * Moving: whoever puts a key into one pool first drops it from the others, under the key's lock.  At no moment do two pools hold a key, so a
 * reader that looks into them one after the other finds the one version there is, or, while the key moves, none: as if it had been evicted.
 *
 * The fences are kept here, once for all pools, under the keys' locks as in l1/l1.c under the shards': each proof there reads "key's lock" for
 * "shard's lock".  A flush moves the epoch, then takes every key's lock once, so that who has seen the old epoch has linked his entry, and
 * clears the pools after that.
 *
 * With a disk tier all pools evict to it, each under its shard's lock, and here the key is forgotten there, under the key's: always after it was
 * dropped from the pools that may have had it.  Who had it has evicted it before that, and nobody does after it, so what is forgotten stays so.
 * The fence moves after that: what the disk had until then is given back with an older one.  A flush keeps the tier closed from before the
 * epoch moves until after the last pool is cleared.
 *
 * What can never happen: a key in two pools; an entry linked after its fence moved; the application called with a lock held (counted
 * entries that a pool lets go are handed up in near__leaving and let go when all locks are dropped).
 *
 * Locks: the key's, rank NEAR__RANK_KEYS; under it a shard's of one pool at a time.
 */
#ifndef NEAR_L1_POOLS_H
#define NEAR_L1_POOLS_H

#include "l1/l1.h"

struct near__pools;
struct near__label_clock;

/* What l1/l1.c does for an L1 that has pools.  `labels`: the clock of tags, shared by all of them; `timed`: to be set when an entry that may
 * expire is admitted. */
near_status near__pools_new(struct near__pools **pools, const struct near__l1_config *config,
                            struct near__label_clock *labels, _Atomic bool *timed);
void        near__pools_free(struct near__pools **pools);
near_value *near__pools_find(struct near__pools *pools, uint64_t hash, near_bytes key, int64_t now);
void        near__pools_find_many(struct near__pools *pools, const uint64_t *hashes, const near_bytes *keys,
                                  size_t n, int64_t now, near_value **values);
uint64_t    near__pools_fence(const struct near__pools *pools, uint64_t hash);
enum near__l1_admission near__pools_offer(struct near__pools *pools, struct near__entry *entry,
                                          uint64_t fence, bool is_write, int64_t now);
void                    near__pools_invalidate(struct near__pools *pools, uint64_t hash, near_bytes key);
void                    near__pools_flush(struct near__pools *pools);
struct near__l1_write   near__pools_write_begin(struct near__pools *pools, uint64_t hash, near_bytes key);
void near__pools_write_end(struct near__pools *pools, struct near__l1_write write, uint64_t hash,
                           near_bytes key, struct near__entry *entry, int64_t now);
bool near__pools_store(struct near__pools *pools, struct near__entry *entry, near_bytes key, int64_t now);
bool near__pools_upkeep(struct near__pools *pools, int64_t now, size_t steps);
near_status near__pools_resize(struct near__pools *pools, size_t max_bytes, size_t max_entries);
near_status near__pools_resize_one(struct near__pools *pools, unsigned pool, size_t max_bytes);
void        near__pools_stats(struct near__pools *pools, struct near__l1_stats *stats);
void        near__pools_missed(struct near__pools *pools, uint64_t hash);
bool        near__pools_curve(struct near__pools *pools, struct near__curve_answer *answer);
unsigned    near__pools_count(const struct near__pools *pools);
bool near__pools_walk(struct near__pools *pools, struct near__l1_cursor *cursor, size_t homes, int64_t now,
                      void (*fn)(void *ctx, const struct near__l1_seen *seen), void *ctx);
near_status near__pools_restore_begin(struct near__pools *pools, size_t expected, bool alone);
void        near__pools_restore_end(struct near__pools *pools);
/* As near__l1_return() and near__l1_adopt(), under the key's lock. */
enum near__l1_admission near__pools_return(struct near__pools *pools, struct near__entry *entry,
                                           uint64_t fence, int64_t now);
bool near__pools_adopt(struct near__pools *pools, uint64_t hash, uint64_t fence, uint64_t at, uint32_t size);
/* Where the entry says no pool, pool_of() does. */
enum near__l1_admission near__pools_restore(struct near__pools *pools, struct near__entry *entry,
                                            near_bytes key, uint64_t fence, bool alone, uint8_t warmth,
                                            int64_t now);
bool                    near__pools_copy(const struct near__pools *pools, const struct near__entry *entry);
/* One of them, by its number from 1; NULL: there is none. */
struct near__l1 *near__pools_at(const struct near__pools *pools, unsigned pool, size_t *max_bytes);

/* ---- what l1/l1.c does for pools: one L1 as a pool.  All of it under the key's lock, which its own locks come after */

/* Counted entries that have left and are to be let go once no lock is held: at most 33 of each pool that was asked. */
struct near__leaving {
    unsigned  n;
    uintptr_t what[NEAR__POOLS_MAX * 40]; /* as near__let_go() takes them */
};

/* So many have to be let go that all locks must be dropped for it: the same once more. */
#define NEAR__L1_AGAIN ((enum near__l1_admission)(NEAR__L1_EXPIRED + 1))

/* Admit it, whatever the fence; `key` is its key, which need not lie in it. */
enum near__l1_admission near__l1_seat(struct near__l1 *l1, struct near__entry *entry, near_bytes key,
                                      int64_t now, struct near__leaving *leaving);
/* The same for what comes back from a former life, and the key is in no pool. */
enum near__l1_admission near__l1_reseat(struct near__l1 *l1, struct near__entry *entry, near_bytes key,
                                        uint8_t warmth, int64_t now, struct near__leaving *leaving);
/* Whether the key was filled since near__l1_restore_begin(); of an L1 that is not being restored, true. */
bool near__l1_was_filled(struct near__l1 *l1, uint64_t hash);
/* Whether it was there. */
bool near__l1_unseat(struct near__l1 *l1, uint64_t hash, near_bytes key, struct near__leaving *leaving);
/* The other half of a fill's condition: another version came in from L2, and so recently that which is newer is not known. */
bool near__l1_is_overtaken(struct near__l1 *l1, const struct near__entry *entry, int64_t now);
/* Its clock of tags is somebody else's. */
void near__l1_share_labels(struct near__l1 *l1, struct near__label_clock *labels);

#endif
