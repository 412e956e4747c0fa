/*
 * A cache's generation: a 64-bit number kept in L2 under a key of its own and written into every entry.  An entry of another
 * generation is a miss, so near_clear() is one write.  A generation is time and randomness, never a counter that could restart: if
 * L2 loses the key, the next one made is new, and the whole cache misses, which is safe (race 26).
 *
 * What this process knows of it is trusted while the gate is open and nothing cast doubt on it (a clear, a flush); otherwise it is
 * read again with the next batch, in the same exchange.
 */
#ifndef NEAR_CLIENT_GENERATION_H
#define NEAR_CLIENT_GENERATION_H

#include "client.h"

void near__generation_init(struct near__generation *generation);
void near__generation_fini(struct near__generation *generation);

/* True: *value may be relied on now.  False: it has to be read; *epoch is what near__generation_learn() wants afterwards and
 * *value what was read within the last l1.max_ttl, 0 if nothing was. */
bool near__generation_known(near_cache *cache, int64_t now, uint64_t *value, uint64_t *epoch);
/* What was read, unless a doubt came after `epoch`. */
void near__generation_learn(near_cache *cache, uint64_t value, uint64_t epoch);
/* To be read again.  `replaced`: a clear, so what we knew is certainly old; else a flush, and it may still be right. */
void near__generation_doubt(near_cache *cache, bool replaced);

/* A generation to write entries with: known, or read within the last l1.max_ttl (an entry of an old generation is only a miss),
 * else read, else made.  NEAR_OK or why not. */
near_status near__generation_for_write(near_cache *cache, int64_t deadline, uint64_t *value);

/* Make a new one and store it for everybody; `announce` (may be NULL) goes with it. */
near_status near__generation_renew(near_cache *cache, uint64_t fresh, struct near_l2_announce *announce,
                                   int64_t deadline);
uint64_t    near__generation_fresh(const near_cache *cache);

/* Whether messages tell of what other instances do to generations and tags: then what was read stays true. */
bool near__hears(const near_cache *cache, int64_t now);
/* Whether what was learned then may be relied on without a look: the same, or so short a time ago that it counts as now. */
bool near__holds(const near_cache *cache, int64_t now, int64_t learned);

/* The stored form of a number of the cache's own, into `bytes`: header, key and payload. */
void near__number_encode(const near_cache *cache, struct near_l2_item *item, near_bytes payload,
                         uint8_t *bytes);

/* The number in a generation that lay under the key `place`; 0: not one.  *old: its stamp, if it is sealed by a key that is only
 * believed, else 0. */
uint64_t near__generation_decode(const near_cache *cache, near_bytes place, near_bytes stored, uint64_t *old);

#endif
