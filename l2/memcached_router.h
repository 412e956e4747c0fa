/*
 * Which server of a list has a key: weighted ketama with MD5, where libketama and most other clients would
 * look for it (rule L17).
 *
 * This is what libmemcached is for in this library: its list of servers and its continuum.  The object is
 * never connected (rule L6) and never changed once it is made, so any thread may ask it; asking neither
 * allocates nor writes.
 */
#ifndef NEAR_L2_MEMCACHED_ROUTER_H
#define NEAR_L2_MEMCACHED_ROUTER_H

#include "base/uri.h"

struct near__memcached_router;

near_status near__memcached_router_new(struct near__memcached_router **router, const struct near__uri *uri);
/* The position of the key's server among the URI's addresses. */
size_t near__memcached_route(const struct near__memcached_router *router, near_bytes key);
void   near__memcached_router_free(struct near__memcached_router **router);

#endif
