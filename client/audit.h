/*
 * The audit: one in N hits of L1 is looked at again, some time later, beside what L2 has then.
 *
 * A sample is a key and a digest of the value that was handed out.  After `audit.delay`, and again after ten times that, the loader pool
 * looks whether L1 still has that very value, and if so asks L2, without filling anything.  Where the two differ they are looked at
 * once more a moment later and behind a fence of the bus, so that a message that is on its way is no finding: what differs
 * then is counted as stale.
 *
 * Owns the samples: a few hundred in fixed memory, none where the audit is off (client->audit is NULL then).  A sample names its cache without
 * holding it: near__audit_forget() comes before a cache's end.  Lock: a leaf, over the samples; nothing is asked while it is held.
 *
 * Hits do not pay for an audit that is off: where it is on, client->plain sends them past the shortest path.
 */
#ifndef NEAR_CLIENT_AUDIT_H
#define NEAR_CLIENT_AUDIT_H

#include "client.h"

/* Before any cache is opened.  NEAR_OK also where there is nothing to audit. */
near_status near__audit_open(near_client *client);
/* No sample of this cache is looked at any more, but for one that is under way and holds the cache. */
void near__audit_forget(near_cache *cache);
/* Nothing begins after it.  Before the scheduler and the pool are stopped. */
void near__audit_close(near_client *client);
void near__audit_free(near_client *client);

/* L1 has answered with this fresh value.  Only where client->audit is not NULL. */
void near__audit_hit(near_cache *cache, uint64_t hash, near_bytes key, const near_value *value);

#endif
