/*
 * Intents: what a journal (write_back.journal) says of keys whose store is being written by near_update(), through and around.  A writer that
 * dies between the store and the invalidation has left one, and the next life removes and announces the key.
 *
 * An intent is done with when the key is right again: at once, or when what is owed for it has been paid (recovery.h).  Those that wait for
 * that are kept here, under a leaf lock, and looked through whenever recovery has paid something.  What the process ends with is replayed: once too often
 * costs a miss.
 */
#ifndef NEAR_CLIENT_INTENT_H
#define NEAR_CLIENT_INTENT_H

#include "client.h"

void near__intents_init(near_cache *cache);
void near__intents_fini(near_cache *cache);

/* Of all intents that a former life has left: what they name is owed from now on; of a journal that cannot be read, the whole cache. */
void near__intents_replay(near_cache *cache);

/* Before the store: NEAR_OK, and the numbers to give it.  NEAR_ERR_BUSY, NEAR_ERR_UNAVAILABLE...: the journal cannot take it, the store must not be called.
 * Without a journal the numbers alone. */
near_status near__intent_begin(near_cache *cache, near_bytes key, uint64_t *origin, uint64_t *sequence);
/* Recovery has paid something of what the cache owed. */
void near__intents_paid(near_cache *cache);
/* The caches know of it, or it is owed. */
void near__intent_end(near_cache *cache, near_bytes key, uint64_t hash, uint64_t sequence);

#endif
