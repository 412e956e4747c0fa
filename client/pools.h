/*
 * Pools as the application knows them: l1.pools in words and in numbers, and the choice of an entry's pool.  What they do is in l1/pools.h.
 *
 * A pool's number counts from 1 in the order of the option; 0 says nothing about an entry.
 */
#ifndef NEAR_CLIENT_POOLS_H
#define NEAR_CLIENT_POOLS_H

#include "base/base.h"
#include "l1/l1.h"

#define NEAR__POOL_NAME_MAX 32

struct near__settings;

struct near__pool {
    char        name[NEAR__POOL_NAME_MAX + 1];
    uint64_t    bytes;
    const char *policy; /* a name from near__policies; NULL: l1.policy */
    int64_t     ttl;    /* ns; 0: l1.max_ttl */
};

struct near__pool_list {
    unsigned          n; /* 0: the L1 is one */
    struct near__pool pools[NEAR__POOLS_MAX];
};

/* "hot:64MiB:lru:5m, bulk:256MiB"; empty: none.  `origin`: what errors call it.  `list` may be NULL. */
near_status near__pool_list_parse(struct near__pool_list *list, const char *origin, const char *text,
                                  near_error *error);
/* Whether l1.pools goes with the other settings. */
near_status near__pool_list_check(const struct near__settings *settings, near_error *error);

/* The pools of a cache that is being opened, and what its L1 is told of them; `domains` has NEAR__POOLS_MAX and must live until the L1
 * is made.  Raises cache->max_ttl where a pool's own is longer. */
void near__pool_list_open(near_cache *cache, struct near__l1_config *config, struct near__l1_domain *domains);

#endif
