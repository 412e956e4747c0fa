/* near_update, near_erase: which way a change takes to the store, by write.policy. */
#include "back.h"
#include "read.h"
#include "store.h"
#include "through.h"

/* In the order of the choices of write.policy. */
static near_status (*const policies[])(near_cache *cache, near_bytes key, near_bytes data,
                                       const near_put_options *options) = {
    [NEAR__WRITE_THROUGH] = near__through_write,
    [NEAR__WRITE_BACK]    = near__back_write,
    [NEAR__WRITE_AROUND]  = near__around_write,
};

static near_status
change(near_cache *cache, near_bytes key, near_bytes data, const near_put_options *options)
{
    near_status status = near__cache_check(cache);

    if (status == NEAR_OK)
        status = near__tier_key_check(cache, key);
    if (status == NEAR_OK && cache->store == NULL)
        status = NEAR_ERR_UNSUPPORTED;
    if (status != NEAR_OK)
        return status;
    return policies[cache->settings.write_policy](cache, key, data, options);
}

near_status
near_update(near_cache *cache, near_bytes key, near_bytes value, const near_put_options *options)
{
    near_put_options mine   = NEAR_PUT_OPTIONS_INIT;
    near_status      status = near__cache_check(cache);

    if (status != NEAR_OK)
        return status;
    near__options_take(&mine, sizeof(mine), options);
    if (value.data == NULL && value.size != 0)
        return NEAR_ERR_INVALID;
    if (value.size > cache->settings.l2_max_value)
        return NEAR_ERR_TOO_LARGE;
    if ((mine.flags & NEAR_IF_ABSENT) || mine.unchanged != NULL)
        return NEAR_ERR_UNSUPPORTED;
    if (value.data == NULL)
        value.data = ""; /* NULL would be an erase */
    return change(cache, key, value, &mine);
}

near_status
near_erase(near_cache *cache, near_bytes key)
{
    near_put_options mine = NEAR_PUT_OPTIONS_INIT;

    return change(cache, key, (near_bytes){ NULL, 0 }, &mine);
}
