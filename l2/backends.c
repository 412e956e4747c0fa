/* The backends there are, one row each, and what all of them need to answer a call. */
#include "l2/backend.h"

#include <string.h>

static const struct near_l2_ops *const rows[] = {
    &near__l2_memory,         &near__l2_redis,           &near__l2_rediss,        &near__l2_redis_unix,
    &near__l2_redis_sentinel, &near__l2_rediss_sentinel, &near__l2_redis_cluster, &near__l2_rediss_cluster,
    &near__l2_memcached,      &near__l2_memcached_unix,
};

const struct near_l2_ops *
near__l2_backend_named(const char *scheme)
{
    for (size_t i = 0; scheme != NULL && i < NEAR_COUNT_OF(rows); i++) {
        if (strcmp(rows[i]->scheme, scheme) == 0)
            return rows[i];
    }
    return NULL;
}

void
near__l2_answer_all(struct near_l2_item *items, size_t n, enum near_l2_answer answer, near_status status)
{
    for (size_t i = 0; i < n; i++) {
        items[i].answer = answer;
        items[i].status = status;
    }
}

void
near__l2_answer_rest(struct near_l2_item *items, size_t n, near_status status)
{
    for (size_t i = 0; i < n; i++) {
        if (items[i].answer == NEAR_L2_NOT_TRIED) {
            items[i].answer = NEAR_L2_ERROR;
            items[i].status = status;
        }
    }
}

static bool
valid_call(struct near_l2_item *items, size_t n, bool possible)
{
    if (n >= 1 && n <= NEAR_L2_BATCH && possible)
        return true;
    near__l2_answer_all(items, n, NEAR_L2_ERROR, NEAR_ERR_INVALID);
    return false;
}

bool
near__l2_valid_get(struct near_l2_item *items, size_t n)
{
    return valid_call(items, n, true);
}

bool
near__l2_valid_set(enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                   const struct near_l2_announce *announce)
{
    return valid_call(items, n,
                      mode == NEAR_L2_ALWAYS ||
                          ((mode == NEAR_L2_IF_ABSENT || mode == NEAR_L2_IF_STAMP) && announce == NULL));
}

bool
near__l2_valid_remove(enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                      const struct near_l2_announce *announce)
{
    return valid_call(items, n, mode == NEAR_L2_ALWAYS || (mode == NEAR_L2_IF_STAMP && announce == NULL));
}
