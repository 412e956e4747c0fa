/* What depends on what lies in L2: whether that counts as a value, and writing over it only while it lies there. */
#ifndef NEAR_CLIENT_CONDITIONAL_H
#define NEAR_CLIENT_CONDITIONAL_H

#include "tier.h"

/* A place where L2 has no value for a key: nothing, or something that may be replaced under its stamp. */
struct near__vacancy {
    bool     empty;
    uint64_t stamp; /* of what lies there, which is not empty */
};

/* NEAR_OK.  NEAR_ERR_CONFLICT: there is a value, or the key is being changed by near_update().  NEAR_MISS: look again.  Or why it is not
 * known. */
near_status near__vacancy_find(near_cache *cache, near_bytes key, uint64_t hash,
                               struct near__vacancy *vacancy, int64_t deadline);
/* Store `stored` there.  NEAR_OK; NEAR_MISS: it is not vacant, or not the same, any more; or why it is not known. */
near_status near__vacancy_fill(near_cache *cache, near_bytes key, const struct near__vacancy *vacancy,
                               near_bytes stored, int64_t ttl_ms, int64_t deadline);

/* near_put() with NEAR_IF_ABSENT or `unchanged`. */
near_status near__put_conditional(near_cache *cache, near_bytes key, near_bytes value,
                                  const near_put_options *options);

#endif
