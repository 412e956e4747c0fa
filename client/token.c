/*
 * near_write_token, near_fence_token: a write of this thread as a text, and waiting until another process has applied it.
 *
 * The text is "nt1", sender, stream and number of the message that told of the write, and four bytes of a digest over these, in hex.
 * A number of 0: there is nothing to wait for.  UINT64_MAX: no such message is known, and a fence must do.
 */
#include "client.h"

#include "base/le.h"

#include <string.h>

#define MAGIC "nt1"
enum { NUMBERS = 24, CHECK = 4, DIGITS = 2 * (NUMBERS + CHECK), TEXT = sizeof(MAGIC) - 1 + DIGITS };
_Static_assert(TEXT < NEAR_WRITE_TOKEN_SIZE, "a token fits its buffer");

static void
digest(uint8_t *bytes)
{
    uint8_t whole[16];

    near__hash_wide((near_bytes){ bytes, NUMBERS }, whole);
    memcpy(bytes + NUMBERS, whole, CHECK);
}

static void
encode(char *text, const struct near__position *position)
{
    static const char hex[] = "0123456789abcdef";
    uint8_t           bytes[NUMBERS + CHECK];

    near__le64_put(bytes, position->sender);
    near__le64_put(bytes + 8, position->stream);
    near__le64_put(bytes + 16, position->sequence);
    digest(bytes);
    memcpy(text, MAGIC, sizeof(MAGIC) - 1);
    text += sizeof(MAGIC) - 1;
    for (size_t i = 0; i < sizeof(bytes); i++) {
        *text++ = hex[bytes[i] >> 4];
        *text++ = hex[bytes[i] & 15];
    }
    *text = '\0';
}

static int
digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool
decode(struct near__position *position, const char *text)
{
    uint8_t bytes[NUMBERS + CHECK], said[CHECK];

    if (strnlen(text, TEXT + 1) != TEXT || memcmp(text, MAGIC, sizeof(MAGIC) - 1) != 0)
        return false;
    text += sizeof(MAGIC) - 1;
    for (size_t i = 0; i < sizeof(bytes); i++, text += 2) {
        if (digit(text[0]) < 0 || digit(text[1]) < 0)
            return false;
        bytes[i] = (uint8_t)(digit(text[0]) << 4 | digit(text[1]));
    }
    memcpy(said, bytes + NUMBERS, CHECK);
    digest(bytes);
    position->sender   = near__le64_get(bytes);
    position->stream   = near__le64_get(bytes + 8);
    position->sequence = near__le64_get(bytes + 16);
    return memcmp(said, bytes + NUMBERS, CHECK) == 0;
}

/* NEAR_OK with *needed: whether there is a bus to ask. */
static near_status
check(const near_client *client, const void *token, bool *needed)
{
    if (client == NULL || token == NULL)
        return NEAR_ERR_INVALID;
    if (*client->alive == 0)
        return NEAR_ERR_FORKED;
    *needed = client->coherence != NULL;
    return *needed || client->ops == NULL || !client->traits.shared ? NEAR_OK : NEAR_ERR_UNSUPPORTED;
}

near_status
near_write_token(near_client *client, char token[NEAR_WRITE_TOKEN_SIZE])
{
    struct near__position position = { 0, 0, 0 };
    bool                  needed;
    near_status           status = check(client, token, &needed);

    if (token != NULL)
        token[0] = '\0';
    if (status != NEAR_OK)
        return status;
    if (needed)
        near__coherence_position(client->coherence, &position);
    encode(token, &position);
    return NEAR_OK;
}

near_status
near_fence_token(near_client *client, const char *token, int64_t timeout_ms)
{
    struct near__position position;
    bool                  needed;
    near_status           status = check(client, token, &needed);

    if (status != NEAR_OK)
        return status;
    if (!decode(&position, token))
        return NEAR_ERR_INVALID;
    if (!needed || position.sequence == 0 || near__coherence_applied(client->coherence, &position))
        return NEAR_OK;
    return near_fence(client, timeout_ms);
}
