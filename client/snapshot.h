/*
 * Warm start: what a cache's L1 holds goes to a file, at close and on request, and comes back in the background when a cache of that name is
 * opened again (snapshot.path).
 *
 * A value that came back keeps every promise of the others.  What that takes depends on who could have changed it meanwhile:
 *
 *  - *Shared L2* (Redis, memcached, memory:NAME, a backend of an application's): the file says which keys are worth having; what they are is
 *    L2's word.  Keys are read from L2 in batches, their fences and the clock of tags captured before, as for any fill, so that
 *    generation, tags, marks, owed invalidations and expiry are judged where they always are.  A value that L2 has in another version
 *    than the file is taken as L2 has it (snapshot_renewed), one that it does not have is dropped.  With a bus this waits until L1 may
 *    answer, because the flush before that would take it all.  So it does not matter how old the file is or what it is, but for speed.
 *
 *  - *Alone* (none: or memory:, and no bus): nobody else writes, and a file is good exactly if nothing was invalidated or written since
 *    it was made.  It is *live* then: the first write, removal, expiry or invalidation unlinks it before that call returns (and makes a save
 *    under way fail).  Whoever opens it unlinks it before the cache is handed out, so it serves once.  Nothing goes back over what this
 *    process wrote (the fence of a key whose stripe has moved since the L1 was made refuses it) or loaded (l1/l1.h).  Loads do not make a file
 *    void: a value that comes back may be older than one that was loaded after the save, within its TTL, as after any restart.
 *
 *  - *No L2 but a bus*: others may have told us of anything.  There are no snapshots then.
 *
 * The file of a cache that had a codec waits for one to be set (10 s at most), so that objects come back and not bytes, and none goes with
 * the flush that setting it is.
 *
 * TTLs go on while nobody runs: by the kernel's clock where it is the same life of it, else by the wall clock; a file from the future is not
 * believed.  What has expired, and files older than snapshot.max_age, are dropped.
 *
 * Owns: the file's name between open and close; one thread while restoring (near-snapshot), which takes a bounded number of entries a
 * second (snapshot.rate) and is stopped at close.  Lock: a leaf over the states, never held while a file or L2 is asked.
 */
#ifndef NEAR_CLIENT_SNAPSHOT_H
#define NEAR_CLIENT_SNAPSHOT_H

#include "base/base.h"

struct near__snap;
struct near__l1_config;

/* As the cache's settings say: cache->snap stays NULL where they say nothing.  Before its L1 is made: adds to its configuration what it has
 * to tell us.  NEAR_OK, NEAR_ERR_NOMEM. */
near_status near__snap_new(near_cache *cache, struct near__l1_config *config, near_error *error);
/* The cache is there, and nobody has it yet: takes the file, if there is one, and begins to restore it. */
void near__snap_open(near_cache *cache);
/* A codec was set, or taken away, and L1 flushed for it, which counts as no write. */
void near__snap_codec(near_cache *cache);
/* No entry is restored after this.  Waits for one exchange with L2 at most. */
void near__snap_stop(near_cache *cache);
/* Nobody calls any more: saves, if snapshot.at_close says so, for close.timeout at most.  L2 is not asked. */
void near__snap_close(near_cache *cache);
void near__snap_free(near_cache *cache);

/* Controls: each switches a cure off, so that tests can show what it is good for. */
enum {
    NEAR__SNAP_UNCONFIRMED = 1, /* L2 is not asked */
    NEAR__SNAP_UNVOIDED    = 2, /* writes leave the file alone, and it is not unlinked when it is taken */
    NEAR__SNAP_UNFENCED    = 4  /* the fence is captured when an entry is put back, not before */
};
extern unsigned near__snap_controls;

#endif
