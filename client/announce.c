/* See announce.h. */
#include "announce.h"

#include <stdlib.h>

near_status
near__announce_begin(near_cache *cache, enum near__message_kind kind, const near_bytes *keys, size_t n,
                     struct near__announcing *announcing)
{
    near_client *client = cache->client;
    near_status  status;

    *announcing = (struct near__announcing){ .message = NULL };
    if (client->coherence == NULL)
        return NEAR_OK;
    announcing->began = near__client_now(client);
    status = near__message_encode(kind, near__coherence_sender(client->coherence), near_key(cache->name),
                                  keys, n, &announcing->message, &announcing->size);
    if (status != NEAR_OK)
        return status;
    announcing->announce = (struct near_l2_announce){
        .channel  = near_key(client->channel),
        .message  = announcing->message,
        .size     = announcing->size,
        .stamp_at = NEAR__MESSAGE_STAMP_AT,
    };
    announcing->with = client->bus_on_l2 ? &announcing->announce : NULL;
    return NEAR_OK;
}

near_status
near__announce_end(near_cache *cache, struct near__announcing *announcing, near_status status,
                   int64_t deadline)
{
    near_client *client = cache->client;
    near_status  told   = NEAR_OK;

    if (announcing->with != NULL && status == NEAR_OK) {
        near__count(cache, NEAR__bus_sent, 1);
        near__coherence_announced_since(client->coherence, announcing->message, announcing->began);
    } else if (announcing->with != NULL && announcing->announce.stream != 0)
        near__coherence_doubt(client->coherence, announcing->announce.stream);
    else if (announcing->message != NULL && announcing->with == NULL) {
        if (status != NEAR_OK)
            deadline = near__time_after(near__client_now(client), client->settings.l2_timeout);
        told =
            near__coherence_publish(client->coherence, announcing->message, announcing->size, deadline, NULL);
    }
    free(announcing->message);
    announcing->message = NULL;
    return status != NEAR_OK ? status : told;
}

near_status
near__announce_keys(near_cache *cache, const near_bytes *keys, size_t n, int64_t deadline)
{
    struct near__announcing announcing;
    near_status status = near__announce_begin(cache, NEAR__MESSAGE_INVALIDATE, keys, n, &announcing);

    if (status != NEAR_OK)
        return status;
    announcing.with = NULL; /* L2 has been written */
    return near__announce_end(cache, &announcing, NEAR_OK, deadline);
}

near_status
near__announce_key(near_cache *cache, near_bytes key, int64_t deadline)
{
    return near__announce_keys(cache, &key, 1, deadline);
}
