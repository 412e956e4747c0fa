/* The life of a cache, for client.c. */
#ifndef NEAR_CLIENT_CACHE_H
#define NEAR_CLIENT_CACHE_H

#include "client.h"

/* Off the client's list, its counters kept; client->lock is held. */
void near__cache_unlink_locked(near_cache *cache);
/* Around loads and writes that the application has yet to answer, `n` of them.  False: the cache is closing, they may not begin. */
bool near__cache_work_begins(near_cache *cache, size_t n);
void near__cache_work_ends(near_cache *cache, size_t n);
/* Neither loader nor store is called from here on.  Wait until nothing is unanswered, or `deadline`; how many still are. */
size_t near__cache_await_work(near_cache *cache, int64_t deadline);
/* Free without letting the client go. */
void near__cache_free(near_cache *cache);

#endif
