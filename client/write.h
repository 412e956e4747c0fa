/* What the files that write have in common, and what a write owes and could not do at once (client/recovery.h). */
#ifndef NEAR_CLIENT_WRITE_H
#define NEAR_CLIENT_WRITE_H

#include "client.h"

/* The tags of a put, with L1's clock from before it; malloc'ed, NULL: none. */
near_status near__write_labels(near_cache *cache, const near_put_options *options,
                               struct near__labels **labels);
/* L2's clock of tags, and the tags themselves made where L2 has none. */
near_status near__write_labels_prepare(near_cache *cache, struct near__labels *labels, int64_t deadline);
/* What L1 is to keep; NULL: out of memory. */
struct near__entry *near__write_entry(near_cache *cache, near_bytes key, uint64_t hash, near_bytes value,
                                      int64_t now, int64_t ttl, const struct near__labels *labels);

/* Remove the keys from L2 and tell the others; at most one message's worth, and NEAR_L2_BATCH.  NEAR_OK: both are confirmed. */
near_status near__write_settle(near_cache *cache, const near_bytes *keys, size_t n);
/* near_put() of what the caller knows more of, or with data NULL near_remove(), in the caches alone. */
struct near__known {
    uint64_t             stamp;  /* that he has drawn; 0: any */
    struct near__object *object; /* what the value was decoded to; NULL: not yet.  Borrowed */
};
near_status near__write_known(near_cache *cache, near_bytes key, near_bytes data,
                              const near_put_options *options, const struct near__known *known);
/* A new generation, in L2 and for the others, and an empty L1. */
near_status near__clear_settle(near_cache *cache, int64_t deadline);

#endif
