#include "l2/redis_sentinel.h"

near_status
near__sentinels_new(struct near__sentinels **sentinels, const struct near__uri *uri, const char *user,
                    const char *password, near_error *error)
{
    (void)uri, (void)user, (void)password;
    *sentinels = NULL;
    return near__fail(error, NEAR_ERR_UNSUPPORTED, "sentinel: not in this version");
}

void
near__sentinels_free(struct near__sentinels **sentinels)
{
    *sentinels = NULL;
}
