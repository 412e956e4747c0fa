/*
 * Fuzz target: near__message_decode() over what anybody may publish on the bus's channel.
 *
 * Input: a message.  Whatever it is, decoding stays inside it; one that is accepted has as many keys as it says, all inside, and is
 * byte for byte what near__message_encode() makes of them under the same stamp.  A message with a wrong size field is tried again with the
 * right one: whoever publishes can count, a fuzzer seldom does.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "base/le.h"
#include "coherence/message.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

#define SIZE_AT 36

static bool
inside(near_bytes part, const uint8_t *bytes, size_t size)
{
    const uint8_t *at = part.data;

    return at >= bytes && at <= bytes + size && part.size <= (size_t)(bytes + size - at);
}

static void
check_encoded(const struct near__message *message, const near_bytes *keys, const uint8_t *bytes, size_t size)
{
    uint8_t *back;
    size_t   back_size;

    check(near__message_encode(message->kind, message->sender, message->cache, keys, message->count, &back,
                               &back_size) == NEAR_OK);
    check(back_size == size);
    memcpy(back + NEAR__MESSAGE_STAMP_AT, bytes + NEAR__MESSAGE_STAMP_AT, 16);
    check(memcmp(back, bytes, size) == 0);
    free(back);
}

static void
try_message(const uint8_t *bytes, size_t size)
{
    struct near__message message;
    near_bytes          *keys, key;
    size_t               at = 0, n = 0;

    if (!near__message_decode(&message, (near_bytes){ bytes, size }))
        return;
    check(size >= NEAR__MESSAGE_HEADER && size <= NEAR__MESSAGE_MAX);
    check(message.count <= size / 4 && inside(message.cache, bytes, size));
    keys = calloc(message.count + 1, sizeof(*keys));
    check(keys != NULL);
    while (near__message_next(&message, &at, &key)) {
        check(n < message.count && inside(key, bytes, size));
        keys[n++] = key;
    }
    check(n == message.count);
    check_encoded(&message, keys, bytes, size);
    check(n == 0 || (near__message_fit(keys, n) >= 1 && near__message_fit(keys, n) <= n));
    free(keys);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *bytes = malloc(size + 1);

    check(bytes != NULL);
    memcpy(bytes, data, size);
    bytes = realloc(bytes, size > 0 ? size : 1); /* exactly: a read past its end is seen */
    check(bytes != NULL);
    try_message(bytes, size);
    if (size >= NEAR__MESSAGE_HEADER) {
        near__le32_put(bytes + SIZE_AT, (uint32_t)size);
        try_message(bytes, size);
    }
    free(bytes);
    return 0;
}
