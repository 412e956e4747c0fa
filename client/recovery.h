/*
 * Invalidations that are owed: keys whose write failed, or has an unknown outcome, and whose removal could not be confirmed at once;
 * tags, prefixes and clears of which the same is true.
 *
 * A key is kept until it has been removed from L2 and the others have been told, in this order; then our own fence is moved once more.
 * Meanwhile nothing that L2 says of it is believed by this process.  What is owed is the same whatever was to be written, so a
 * key is kept once, and a later write of it that succeeds changes nothing: the one that failed may be executed after it.
 * Entries with a tag that is owed count as outdated, and keys with a prefix that is owed as owed themselves.  Prefixes take longest
 * and are paid last.
 *
 * Bounded by coherence.max_pending: of a cache with more, the whole is owed: a clear, which takes no memory.
 *
 * recovery->lock (a leaf) covers the table, the caches' `owes_clear` and `owing`, and the counts.  One job at a time pays, in the
 * loader pool; keys leave the table by it alone.
 */
#ifndef NEAR_CLIENT_RECOVERY_H
#define NEAR_CLIENT_RECOVERY_H

#include "base/lock.h"
#include "scheduler.h"
#include "workers.h"

#define NEAR__OWED_BUCKETS 1024

struct near__owed;
struct near_client;
struct near_cache;

struct near__recovery {
    struct near__lock   lock;
    pthread_cond_t      rested;  /* `busy` has ended */
    _Atomic size_t      pending; /* keys, tags, prefixes and clears: 0 means that nothing is owed */
    struct near__owed  *buckets[NEAR__OWED_BUCKETS];
    struct near__owed  *first, **last; /* all keys, oldest first */
    struct near__owed  *wide;          /* tags and prefixes, newest first; of more the whole cache is owed */
    size_t              wide_n;
    struct near_cache  *owing; /* caches that owe a clear */
    uint64_t            kept;  /* counts: tells what was kept anew while it was being paid */
    bool                busy, closed;
    int64_t             back_off;
    struct near__timer  timer;
    struct near__job    job;
    struct near_client *client;
};

void near__recovery_init(struct near_client *client);
/* Pay what is owed, until `deadline` and for half a second at most.  How many keys and caches remain. */
size_t near__recovery_close(struct near_client *client, int64_t deadline);
/* After scheduler and pool have stopped: forget what remains. */
void near__recovery_drop(struct near_client *client);
void near__recovery_fini(struct near_client *client);

/* False: nothing may be owed (coherence.max_pending = 0), and what follows keeps nothing. */
bool near__recovery_keeps(const struct near_cache *cache);
/* This key is owed. */
void near__recovery_keep(struct near_cache *cache, near_bytes key, uint64_t hash);
void near__recovery_keep_clear(struct near_cache *cache);
void near__recovery_keep_tag(struct near_cache *cache, near_bytes tag);
void near__recovery_keep_prefix(struct near_cache *cache, near_bytes prefix);
/* Something works again: try now. */
void near__recovery_poke(struct near_client *client);
/* Is this key owed?  Acquire, pairs with the release when it is paid: who sees that nothing is owed reads L2 after it was paid. */
bool near__recovery_owes(struct near_cache *cache, near_bytes key, uint64_t hash);
/* The same of a tag. */
bool near__recovery_owes_tag(struct near_cache *cache, near_bytes tag);

#endif
