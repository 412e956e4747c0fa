/* See memcached_router.h. */
#include "l2/memcached_router.h"

#include <libmemcached/memcached.h>
#include <stdlib.h>

#if LIBMEMCACHED_VERSION_HEX < 0x01001004
#error "libmemcached before 1.1.4 is known to be unsound (rule L1)"
#endif

struct near__memcached_router {
    memcached_st *memc;
    size_t        count;
};

near_status
near__memcached_router_new(struct near__memcached_router **router, const struct near__uri *uri)
{
    struct near__memcached_router *r  = calloc(1, sizeof(*r));
    memcached_return_t             rc = MEMCACHED_SUCCESS;

    *router = NULL;
    if (r == NULL)
        return NEAR_ERR_NOMEM;
    r->memc  = memcached_create(NULL);
    r->count = uri->address_count;
    if (r->memc == NULL) {
        free(r);
        return NEAR_ERR_NOMEM;
    }
    memcached_behavior_set(r->memc, MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED, 1);
    for (size_t s = 0; rc == MEMCACHED_SUCCESS && s < r->count && r->count > 1; s++) {
        const struct near__address *a = &uri->addresses[s];
        rc = memcached_server_add_with_weight(r->memc, a->host, a->port, a->weight);
    }
    *router = r;
    if (rc != MEMCACHED_SUCCESS)
        near__memcached_router_free(router);
    return rc == MEMCACHED_SUCCESS ? NEAR_OK : NEAR_ERR_NOMEM;
}

size_t
near__memcached_route(const struct near__memcached_router *router, near_bytes key)
{
    return router->count < 2 ? 0 : memcached_generate_hash(router->memc, key.data, key.size);
}

void
near__memcached_router_free(struct near__memcached_router **router)
{
    struct near__memcached_router *r = *router;

    *router = NULL;
    if (r == NULL)
        return;
    memcached_free(r->memc); /* never connected: says nothing to anybody */
    free(r);
}
