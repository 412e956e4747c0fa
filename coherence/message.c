/*
 * The codec of invalidation messages.  It holds no state.  What arrives is anybody's bytes: nothing of it is believed before
 * near__message_decode() has walked all of it, and after that near__message_next() cannot leave it.
 */
#include "coherence/message.h"

#include "base/le.h"

#include <stdlib.h>
#include <string.h>

#define CACHE_NAME_MAX   64 /* near_cache_open() */
#define CLEAR_GENERATION 8  /* bytes of the one key of a CLEAR */
#define BEAT_NUMBER      8

static const uint8_t magic[4] = { 'N', 'r', 'M', 1 };

enum {
    AT_VERSION      = 4,
    AT_KIND         = 5,
    AT_CACHE        = 6,
    AT_SENDER       = 8,
    AT_STREAM       = NEAR__MESSAGE_STAMP_AT,
    AT_SEQUENCE     = NEAR__MESSAGE_STAMP_AT + 8,
    AT_COUNT        = 32,
    AT_SIZE         = 36,
    MESSAGE_VERSION = 1,
    KEY_HEADER      = 4
};

/* Bytes of the encoded message, or 0 when it would be too large for any receiver. */
static size_t
encoded_size(near_bytes cache, const near_bytes *keys, size_t n)
{
    size_t total = NEAR__MESSAGE_HEADER + cache.size;

    if (cache.size == 0 || cache.size > CACHE_NAME_MAX)
        return 0;
    for (size_t i = 0; i < n; i++) {
        if (keys[i].size > NEAR__MESSAGE_MAX)
            return 0;
        total += KEY_HEADER + keys[i].size;
        if (total > NEAR__MESSAGE_MAX)
            return 0;
    }
    return total;
}

static uint8_t *
put_bytes(uint8_t *at, near_bytes bytes)
{
    if (bytes.size > 0)
        memcpy(at, bytes.data, bytes.size);
    return at + bytes.size;
}

near_status
near__message_encode(enum near__message_kind kind, uint64_t sender, near_bytes cache, const near_bytes *keys,
                     size_t n, uint8_t **out, size_t *size)
{
    size_t   total = encoded_size(cache, keys, n);
    uint8_t *message, *at;

    *out  = NULL;
    *size = 0;
    if (total == 0)
        return NEAR_ERR_TOO_LARGE;
    message = calloc(1, total); /* the stamp is zero until somebody sends it */
    if (message == NULL)
        return NEAR_ERR_NOMEM;
    memcpy(message, magic, sizeof(magic));
    message[AT_VERSION] = MESSAGE_VERSION;
    message[AT_KIND]    = (uint8_t)kind;
    near__le16_put(message + AT_CACHE, (uint16_t)cache.size);
    near__le64_put(message + AT_SENDER, sender);
    near__le32_put(message + AT_COUNT, (uint32_t)n);
    near__le32_put(message + AT_SIZE, (uint32_t)total);
    at = put_bytes(message + NEAR__MESSAGE_HEADER, cache);
    for (size_t i = 0; i < n; i++) {
        near__le32_put(at, (uint32_t)keys[i].size);
        at = put_bytes(at + KEY_HEADER, keys[i]);
    }
    *out  = message;
    *size = total;
    return NEAR_OK;
}

size_t
near__message_fit(const near_bytes *keys, size_t n)
{
    size_t total = 0, fit = 0;

    while (fit < n && keys[fit].size <= NEAR__MESSAGE_KEYS) {
        total += KEY_HEADER + keys[fit].size;
        if (total > NEAR__MESSAGE_KEYS)
            break;
        fit++;
    }
    return fit == 0 && n > 0 ? 1 : fit; /* one large key travels alone */
}

/* One step of the walk, with every bound checked: the size field first, then what it claims. */
static bool
next_key(near_bytes keys, size_t *at, near_bytes *key)
{
    const uint8_t *bytes = keys.data;
    uint32_t       size;

    if (keys.size - *at < KEY_HEADER)
        return false;
    size = near__le32_get(bytes + *at);
    if (size > keys.size - *at - KEY_HEADER)
        return false;
    key->data = bytes + *at + KEY_HEADER;
    key->size = size;
    *at += KEY_HEADER + size;
    return true;
}

/* Of a key that has a meaning of its own. */
static bool
size_makes_sense(enum near__message_kind kind, uint32_t index, size_t size)
{
    switch (kind) {
    case NEAR__MESSAGE_CLEAR:
        return index == 0 && size == CLEAR_GENERATION;
    case NEAR__MESSAGE_BEAT:
        return size == (index == 0 ? BEAT_NUMBER : NEAR__MESSAGE_BEAT_ENTRY);
    case NEAR__MESSAGE_TAG:
        return index == 0 && size > NEAR__MESSAGE_TAG_TAIL;
    case NEAR__MESSAGE_PREFIX:
        return index == 0;
    default:
        return true;
    }
}

static bool
keys_make_sense(const struct near__message *message)
{
    near_bytes key = { NULL, 0 };
    size_t     at  = 0;

    for (uint32_t i = 0; i < message->count; i++) {
        if (!next_key(message->keys, &at, &key) || !size_makes_sense(message->kind, i, key.size))
            return false;
    }
    if (at != message->keys.size)
        return false;
    return message->count > 0 || message->kind == NEAR__MESSAGE_INVALIDATE ||
           message->kind == NEAR__MESSAGE_FILLED;
}

bool
near__message_decode(struct near__message *message, near_bytes bytes)
{
    const uint8_t *at = bytes.data;
    size_t         name;

    if (bytes.size < NEAR__MESSAGE_HEADER || bytes.size > NEAR__MESSAGE_MAX)
        return false;
    if (memcmp(at, magic, sizeof(magic)) != 0 || at[AT_VERSION] != MESSAGE_VERSION)
        return false;
    if (at[AT_KIND] < NEAR__MESSAGE_INVALIDATE || at[AT_KIND] > NEAR__MESSAGE_PREFIX)
        return false;
    if (near__le32_get(at + AT_SIZE) != bytes.size)
        return false;
    name = near__le16_get(at + AT_CACHE);
    if (name == 0 || name > CACHE_NAME_MAX || name > bytes.size - NEAR__MESSAGE_HEADER)
        return false;
    message->kind     = (enum near__message_kind)at[AT_KIND];
    message->sender   = near__le64_get(at + AT_SENDER);
    message->stream   = near__le64_get(at + AT_STREAM);
    message->sequence = near__le64_get(at + AT_SEQUENCE);
    message->count    = near__le32_get(at + AT_COUNT);
    message->cache    = (near_bytes){ at + NEAR__MESSAGE_HEADER, name };
    message->keys =
        (near_bytes){ at + NEAR__MESSAGE_HEADER + name, bytes.size - NEAR__MESSAGE_HEADER - name };
    return keys_make_sense(message);
}

bool
near__message_next(const struct near__message *message, size_t *at, near_bytes *key)
{
    return next_key(message->keys, at, key);
}
