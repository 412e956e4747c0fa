/*
 * near_update, near_erase: which way a change takes to the store, by write.policy.  near_flush.
 */
#include "store.h"

#include "client.h"

near_status
near_update(near_cache *cache, near_bytes key, near_bytes value, const near_put_options *options)
{
    (void)key;
    (void)value;
    (void)options;
    return cache == NULL ? NEAR_ERR_INVALID : NEAR_ERR_UNSUPPORTED;
}

near_status
near_erase(near_cache *cache, near_bytes key)
{
    (void)key;
    return cache == NULL ? NEAR_ERR_INVALID : NEAR_ERR_UNSUPPORTED;
}

near_status
near_flush(near_client *client, int64_t timeout_ms)
{
    (void)timeout_ms;
    if (client == NULL)
        return NEAR_ERR_INVALID;
    return *client->alive == 0 ? NEAR_ERR_FORKED : NEAR_OK;
}

near_status
near_add(near_cache *cache, near_bytes key, int64_t delta, int64_t initial, int64_t *result)
{
    (void)key;
    (void)delta;
    (void)initial;
    (void)result;
    return cache == NULL ? NEAR_ERR_INVALID : NEAR_ERR_UNSUPPORTED;
}
