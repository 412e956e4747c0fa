/* The buses there are: a new one is one new file and one row here. */
#include "coherence/bus.h"

#include <string.h>

static const struct near__bus_ops *const rows[] = {
    &near__bus_memory,        &near__bus_redis,          &near__bus_rediss,
    &near__bus_redis_unix,    &near__bus_redis_sentinel, &near__bus_rediss_sentinel,
    &near__bus_redis_cluster, &near__bus_rediss_cluster,
};

const struct near__bus_ops *
near__bus_named(const char *scheme)
{
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        if (strcmp(rows[i]->scheme, scheme) == 0)
            return rows[i];
    }
    return NULL;
}
