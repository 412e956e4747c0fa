/* What near_invalidate_prefix() owes and could not do at once (client/recovery.h). */
#ifndef NEAR_CLIENT_PREFIX_H
#define NEAR_CLIENT_PREFIX_H

#include "client.h"

/* Remove all keys that begin so from L2, tell the others, and empty L1.  NEAR_OK: it is confirmed. */
near_status near__prefix_settle(near_cache *cache, near_bytes prefix, int64_t deadline);

#endif
