/*
 * near_update, near_erase: which way a change takes to the store, by write.policy.  near_flush.
 */
#include "back.h"
#include "store.h"

#include "client.h"

near_status
near_update(near_cache *cache, near_bytes key, near_bytes value, const near_put_options *options)
{
    near_put_options mine   = NEAR_PUT_OPTIONS_INIT;
    near_status      status = near__cache_check(cache);

    if (status != NEAR_OK || (value.data == NULL && value.size != 0))
        return status != NEAR_OK ? status : NEAR_ERR_INVALID;
    near__options_take(&mine, sizeof(mine), options);
    if (value.data == NULL)
        value.data = "";
    return cache->back != NULL ? near__back_write(cache, key, value, &mine) : NEAR_ERR_UNSUPPORTED;
}

near_status
near_erase(near_cache *cache, near_bytes key)
{
    near_put_options mine   = NEAR_PUT_OPTIONS_INIT;
    near_status      status = near__cache_check(cache);

    if (status != NEAR_OK)
        return status;
    return cache->back != NULL ? near__back_write(cache, key, (near_bytes){ NULL, 0 }, &mine)
                               : NEAR_ERR_UNSUPPORTED;
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
