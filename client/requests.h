/*
 * The request log of a cache (log.requests): which keys are asked for, so that `nearcache simulate` can say what sizes would bring and
 * `nearcache warm` can ask for them again.
 *
 * A sample of keys, not of requests: every request of a key whose hash is among one in N, in each instance the same keys.  Simulating
 * needs what lies between two requests of one key.  Callers put their line into one of a few rings, whose lock they only try, and lose it
 * (log_requests_dropped) where that is taken or full; a job on the loader pool empties them, ten times a second.  Hits do not pay for a
 * log that is off: where one is on, near__read_open() keeps that cache's off the shortest path.
 *
 * Owns the file: opened without following a link, mode 0600, whole lines appended, never more than log.requests_max_bytes.  Locks: a
 * leaf per ring over its buffer, one more over the job's state; neither is held while writing.  Memory is fixed: 2 buffers a ring.
 *
 * The file's lines (comments begin with #):
 *     # nearcache requests v1 cache=users sample=100 keys=hash
 *     0123456789abcdef 512          the key's XXH64 (or the key, what is not plain ASCII as %XX), and its value's size if it was known
 */
#ifndef NEAR_CLIENT_REQUESTS_H
#define NEAR_CLIENT_REQUESTS_H

#include "base/base.h"

struct near__requests;

/* As the cache's settings say; cache->requests stays NULL where they say nothing, and where the file cannot be had, which is said in
 * the client's log and no reason to go without a cache. */
void near__requests_open(near_cache *cache);
/* `value` is NULL where it is not known.  Only where cache->requests is not NULL.  Never blocks. */
void near__requests_note(near_cache *cache, near_bytes key, const near_value *value);
/* Nobody asks any more: what is there is written, unless the loader pool keeps the job from it past the deadline. */
void near__requests_close(near_cache *cache, int64_t deadline);
void near__requests_free(near_cache *cache);

/* A key as one word, whatever its bytes: what is no plain ASCII, and blanks, commas, quotes, # and %, as %XX; the empty key as %.  At most
 * 3 bytes for each and 1, no NUL; how many. */
size_t near__key_print(char *out, near_bytes key);

#endif
