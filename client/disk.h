/*
 * The disk tier between L1 and L2, as the client sees it: asks answered out of it, and what a former life left.
 *
 * An answer of the disk tier counts as one of L1's: it is given only where L1 might answer (near__disk_may_answer), never past its time,
 * nor when one of its tags was invalidated since; l1/disk.h says why its key cannot have been.  Whoever asks has captured the
 * ask's fence before.
 *
 * A former life.  What other instances did meanwhile nobody here has heard, so of a cache with an L2 every record is compared
 * with L2 first, in batches, in the background, at disk.confirm_rate: only what lies there under the same stamp, and might be
 * served from there and no shorter, may be answered again, and only if the key's fence has not moved since before L2 was asked.  Without an
 * L2 (and a bus) nobody else writes, so what the last clean end listed is right, but for what was touched since; after any other end nothing is
 * taken.  Records with tags, and of caches whose entries have no stamps (l2.envelope = none), are not taken either.
 *
 * After a flush (the bus was lost, something may have been missed) it is the same with what the log holds by then: it is compared, not
 * lost.  A pass that finds nothing right for a while ends: there was a clear.
 *
 * The thread that does this is joined at the cache's close.  tier->lock is a leaf and covers only its stopping.
 */
#ifndef NEAR_CLIENT_DISK_H
#define NEAR_CLIENT_DISK_H

#include "tier.h"

struct near__disk_tier;

/* disk.path is empty, or cannot be used just now (which is logged): there is none, and all else goes on.  What is not NEAR_OK is
 * wrong in the settings. */
near_status near__disk_open(near_cache *cache, near_error *error);
/* Look through the former life. */
void near__disk_start(near_cache *cache);
void near__disk_stop(near_cache *cache);
/* After L1, whose evictions go there. */
void                near__disk_free(near_cache *cache);
struct near__spill *near__disk_spill(const near_cache *cache);

/* Whether it may be asked at all, at that moment. */
bool near__disk_may_answer(const near_cache *cache, int64_t now);
/* Answer what can be answered, all of them together within disk.timeout or `deadline`: FOUND with `disk` set.  How many. */
size_t near__disk_read(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline);
/* One that was answered so is kept in L1; and counted. */
void near__disk_take(near_cache *cache, const struct near__ask *ask, bool fill, int64_t now);

/* Add what it has counted, and its levels. */
void near__disk_count(const near_cache *cache, uint64_t n[]);
/* The cache is being closed: what it has counted is its client's now. */
void near__disk_keep(near_client *client, const near_cache *cache);

#endif
