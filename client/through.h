/* Write-through and write-around: the change is in the store when the call returns. */
#ifndef NEAR_CLIENT_THROUGH_H
#define NEAR_CLIENT_THROUGH_H

#include "client.h"

/* `data.data` NULL: an erase.  Arguments are checked, `options` complete.  As near_update(). */
near_status near__through_write(near_cache *cache, near_bytes key, near_bytes data,
                                const near_put_options *options);
near_status near__around_write(near_cache *cache, near_bytes key, near_bytes data,
                               const near_put_options *options);

/* What writers of a former life of this journal may have left behind in the caches: to be made good in the background. */
void near__through_open(near_cache *cache);

#endif
