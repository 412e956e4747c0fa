/* One message to the other instances, along with an L2 write or after it: what clears, tags and writes of keys have in common. */
#ifndef NEAR_CLIENT_ANNOUNCE_H
#define NEAR_CLIENT_ANNOUNCE_H

#include "client.h"

struct near__announcing {
    uint8_t                 *message; /* malloc'ed; NULL: there is nobody to tell */
    size_t                   size;
    struct near_l2_announce  announce;
    int64_t                  began;
    struct near_l2_announce *with; /* to go with the L2 write; NULL: the message follows it */
};

/* NEAR_OK, or why there is no message although there should be one. */
near_status near__announce_begin(near_cache *cache, enum near__message_kind kind, const near_bytes *keys,
                                 size_t n, struct near__announcing *announcing);
/* After the L2 write, if there is one, which ended with `status`.  Whatever became of it, the others are told, or our own echo is
 * listened to: if its outcome is unknown they must look.  Frees the message.  NEAR_OK: written and announced. */
near_status near__announce_end(near_cache *cache, struct near__announcing *announcing, near_status status,
                               int64_t deadline);

/* Tell of keys, as many as fit into a message, that L2 has been written. */
near_status near__announce_keys(near_cache *cache, const near_bytes *keys, size_t n, int64_t deadline);
/* Tell of one key that L2 has been written.  NEAR_OK, at once where there is nobody to tell. */
near_status near__announce_key(near_cache *cache, near_bytes key, int64_t deadline);

#endif
