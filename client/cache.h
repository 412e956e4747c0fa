/* The life of a cache, for client.c. */
#ifndef NEAR_CLIENT_CACHE_H
#define NEAR_CLIENT_CACHE_H

#include "client.h"

/* Off the client's list, its counters kept; client->lock is held. */
void near__cache_unlink_locked(near_cache *cache);
/* No loader is called from here on.  Wait until no load is unanswered, or `deadline`; how many still are. */
size_t near__cache_await_loads(near_cache *cache, int64_t deadline);
/* Free without letting the client go. */
void near__cache_free(near_cache *cache);

#endif
