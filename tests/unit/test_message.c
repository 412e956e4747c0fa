/*
 * The message codec: what is encoded is decoded, and of anybody's bytes nothing is believed.  Every buffer given to the decoder
 * is malloc'ed to its exact size, so that AddressSanitizer sees a read of one byte too many.
 */
#define TEST_NAME "message"
#include "harness/test.h"

#include "base/le.h"
#include "coherence/message.h"

#include <stdlib.h>
#include <string.h>

static volatile unsigned bytes_read; /* their sum: so that the reading is done */

#define SENDER UINT64_C(0x1122334455667788)

static near_bytes
text(const char *s)
{
    return near_key(s);
}

static uint8_t *
encode(enum near__message_kind kind, const char *cache, const near_bytes *keys, size_t n, size_t *size)
{
    uint8_t *out;

    assert_int_equal(near__message_encode(kind, SENDER, text(cache), keys, n, &out, size), NEAR_OK);
    assert_non_null(out);
    return out;
}

/* Decode an exact copy; when it is accepted, walk all of it and read every byte. */
static bool
decode_copy(const uint8_t *bytes, size_t size, struct near__message *m)
{
    uint8_t   *copy = malloc(size > 0 ? size : 1);
    near_bytes key;
    size_t     at = 0, keys = 0;
    bool       ok;

    assert_non_null(copy);
    if (size > 0)
        memcpy(copy, bytes, size);
    ok = near__message_decode(m, (near_bytes){ copy, size });
    while (ok && near__message_next(m, &at, &key)) {
        keys++;
        for (size_t i = 0; i < key.size; i++)
            bytes_read += ((const uint8_t *)key.data)[i];
    }
    if (ok) {
        assert_int_equal(keys, m->count);
        assert_in_range(m->cache.size, 1, 64);
        assert_true(m->kind >= NEAR__MESSAGE_INVALIDATE && m->kind <= NEAR__MESSAGE_PREFIX);
    }
    free(copy);
    return ok;
}

static void
round_trip_keeps_everything(void **state)
{
    static uint8_t   large[64 << 10];
    const near_bytes keys[] = { text("user:42"), { NULL, 0 }, { "a\0b\r\n", 5 }, { large, sizeof(large) } };
    struct near__message m;
    near_bytes           key;
    uint8_t             *bytes;
    size_t               size, at = 0;

    (void)state;
    memset(large, 0xFE, sizeof(large));
    for (size_t n = 0; n <= NEAR_COUNT_OF(keys); n++) {
        bytes = encode(NEAR__MESSAGE_FILLED, "users", keys, n, &size);
        near__le64_put(bytes + NEAR__MESSAGE_STAMP_AT, 77);
        near__le64_put(bytes + NEAR__MESSAGE_STAMP_AT + 8, UINT64_MAX);
        assert_true(near__message_decode(&m, (near_bytes){ bytes, size }));
        assert_int_equal(m.kind, NEAR__MESSAGE_FILLED);
        assert_true(m.sender == SENDER && m.stream == 77 && m.sequence == UINT64_MAX);
        assert_true(near__bytes_equal(m.cache, text("users")));
        assert_int_equal(m.count, n);
        at = 0;
        for (size_t i = 0; i < n; i++) {
            assert_true(near__message_next(&m, &at, &key));
            assert_true(near__bytes_equal(key, keys[i]));
        }
        assert_false(near__message_next(&m, &at, &key));
        free(bytes);
    }
}

static void
a_new_message_has_no_stamp(void **state)
{
    near_bytes           key = text("k");
    struct near__message m;
    size_t               size;
    uint8_t             *bytes = encode(NEAR__MESSAGE_INVALIDATE, "c", &key, 1, &size);

    (void)state;
    assert_int_equal(size, NEAR__MESSAGE_HEADER + 1 + 4 + 1);
    assert_memory_equal(bytes, "NrM\x01\x01\x01\x01\x00", 8);
    assert_true(near__message_decode(&m, (near_bytes){ bytes, size }));
    assert_true(m.stream == 0 && m.sequence == 0);
    free(bytes);
}

static void
encode_refuses_what_no_receiver_would_take(void **state)
{
    static uint8_t bytes[NEAR__MESSAGE_MAX];
    char           name[66];
    near_bytes     key    = { bytes, NEAR__MESSAGE_MAX - NEAR__MESSAGE_HEADER - 1 - 4 };
    near_bytes     two[2] = { { bytes, NEAR__MESSAGE_MAX / 2 }, { bytes, NEAR__MESSAGE_MAX / 2 } };
    near_bytes     absurd = { bytes, SIZE_MAX };
    uint8_t       *out;
    size_t         size;

    (void)state;
    assert_int_equal(near__message_encode(NEAR__MESSAGE_FILLED, 1, text("c"), &key, 1, &out, &size), NEAR_OK);
    assert_int_equal(size, NEAR__MESSAGE_MAX);
    free(out);
    key.size++;
    assert_int_equal(near__message_encode(NEAR__MESSAGE_FILLED, 1, text("c"), &key, 1, &out, &size),
                     NEAR_ERR_TOO_LARGE);
    assert_null(out);
    assert_int_equal(near__message_encode(NEAR__MESSAGE_FILLED, 1, text("c"), two, 2, &out, &size),
                     NEAR_ERR_TOO_LARGE);
    assert_int_equal(near__message_encode(NEAR__MESSAGE_FILLED, 1, text("c"), &absurd, 1, &out, &size),
                     NEAR_ERR_TOO_LARGE);
    memset(name, 'n', sizeof(name));
    key.size = 1;
    assert_int_equal(
        near__message_encode(NEAR__MESSAGE_FILLED, 1, (near_bytes){ name, 64 }, &key, 1, &out, &size),
        NEAR_OK);
    free(out);
    assert_int_equal(
        near__message_encode(NEAR__MESSAGE_FILLED, 1, (near_bytes){ name, 65 }, &key, 1, &out, &size),
        NEAR_ERR_TOO_LARGE);
    assert_int_equal(
        near__message_encode(NEAR__MESSAGE_FILLED, 1, (near_bytes){ name, 0 }, &key, 1, &out, &size),
        NEAR_ERR_TOO_LARGE);
}

static void
fit_fills_messages_and_never_stands_still(void **state)
{
    static uint8_t bytes[80 << 10];
    near_bytes     keys[64] = { { NULL, 0 } };

    (void)state;
    assert_int_equal(near__message_fit(keys, 0), 0);
    keys[0] = (near_bytes){ bytes, sizeof(bytes) };
    keys[1] = (near_bytes){ bytes, 1 };
    assert_int_equal(near__message_fit(keys, 2), 1); /* alone, though over the mark */
    keys[0].size = SIZE_MAX;
    assert_int_equal(near__message_fit(keys, 2), 1);
    for (size_t i = 0; i < NEAR_COUNT_OF(keys); i++)
        keys[i] = (near_bytes){ bytes, 4092 }; /* 4096 with its size */
    assert_int_equal(near__message_fit(keys, NEAR_COUNT_OF(keys)), 16);
    assert_int_equal(near__message_fit(keys, 5), 5);
    keys[15].size = 4093;
    assert_int_equal(near__message_fit(keys, NEAR_COUNT_OF(keys)), 15);
}

static void
clear_carries_exactly_one_generation(void **state)
{
    uint8_t              generation[9] = { 1, 2, 3, 4, 5, 6, 7, 8, 9 };
    near_bytes           keys[2]       = { { generation, 8 }, { generation, 8 } };
    struct near__message m;
    size_t               size;
    uint8_t             *bytes = encode(NEAR__MESSAGE_CLEAR, "c", keys, 1, &size);

    (void)state;
    assert_true(decode_copy(bytes, size, &m));
    free(bytes);
    bytes = encode(NEAR__MESSAGE_CLEAR, "c", keys, 2, &size);
    assert_false(decode_copy(bytes, size, &m));
    free(bytes);
    bytes = encode(NEAR__MESSAGE_CLEAR, "c", keys, 0, &size);
    assert_false(decode_copy(bytes, size, &m));
    free(bytes);
    for (keys[0].size = 0; keys[0].size <= 9; keys[0].size++) {
        bytes = encode(NEAR__MESSAGE_CLEAR, "c", keys, 1, &size);
        assert_int_equal(decode_copy(bytes, size, &m), keys[0].size == 8);
        free(bytes);
    }
}

static void
every_truncation_and_extension_is_refused(void **state)
{
    const near_bytes     keys[] = { text("user:42"), text(""), text("user:43") };
    struct near__message m;
    size_t               size;
    uint8_t             *bytes       = encode(NEAR__MESSAGE_INVALIDATE, "users", keys, 3, &size);
    uint8_t              longer[256] = { 0 };

    (void)state;
    for (size_t cut = 0; cut < size; cut++) {
        assert_false(decode_copy(bytes, cut, &m));
        memcpy(longer, bytes, cut);
        if (cut >= NEAR__MESSAGE_HEADER) { /* and with a size that owns up to it */
            near__le32_put(longer + 36, (uint32_t)cut);
            assert_false(decode_copy(longer, cut, &m));
        }
    }
    assert_true(decode_copy(bytes, size, &m)); /* control */
    memcpy(longer, bytes, size);
    for (size_t more = 1; more < 16; more++) {
        near__le32_put(longer + 36, (uint32_t)size);
        assert_false(decode_copy(longer, size + more, &m));
        near__le32_put(longer + 36, (uint32_t)(size + more));
        assert_false(decode_copy(longer, size + more, &m));
    }
    free(bytes);
}

/* Each size field with every interesting wrong value. */
static void
mutated_sizes_are_refused(void **state)
{
    static const uint32_t wrong[] = { 0,          1,          2,          4,          6,         8,
                                      63,         64,         65,         255,        256,       0x7FFF,
                                      0xFFFF,     0x10000,    0x3FFFF,    0x40000,    0x40001,   0x7FFFFFFF,
                                      0x80000000, 0xFFFFFFF0, 0xFFFFFFFB, 0xFFFFFFFC, 0xFFFFFFFF };
    const near_bytes      keys[]  = { text("user:42"), text("user:43") };
    struct near__message  m;
    size_t                size;
    uint8_t              *bytes    = encode(NEAR__MESSAGE_INVALIDATE, "users", keys, 2, &size), saved[128];
    const size_t          fields[] = { 32, 36, NEAR__MESSAGE_HEADER + 5, NEAR__MESSAGE_HEADER + 5 + 4 + 7 };

    (void)state;
    assert_true(size <= sizeof(saved));
    memcpy(saved, bytes, size);
    for (size_t f = 0; f < NEAR_COUNT_OF(fields); f++) {
        for (size_t i = 0; i < NEAR_COUNT_OF(wrong); i++) {
            if (near__le32_get(saved + fields[f]) == wrong[i])
                continue;
            memcpy(bytes, saved, size);
            near__le32_put(bytes + fields[f], wrong[i]);
            assert_false(decode_copy(bytes, size, &m));
        }
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(wrong); i++) {
        memcpy(bytes, saved, size);
        near__le16_put(bytes + 6, (uint16_t)wrong[i]);
        if (near__le16_get(saved + 6) != (uint16_t)wrong[i])
            assert_false(decode_copy(bytes, size, &m));
    }
    free(bytes);
}

static void
other_versions_kinds_and_magics_are_refused(void **state)
{
    near_bytes           key = { "12345678", 8 };
    struct near__message m;
    size_t               size;
    uint8_t             *bytes = encode(NEAR__MESSAGE_INVALIDATE, "c", &key, 1, &size);

    (void)state;
    for (size_t at = 0; at < 6; at++) {
        uint8_t right = bytes[at];

        for (unsigned v = 0; v < 256; v++) {
            bytes[at] = (uint8_t)v;
            assert_int_equal(decode_copy(bytes, size, &m),
                             v == right || (at == 5 && ((v >= 1 && v <= 4) || v == 6)));
        }
        bytes[at] = right;
    }
    free(bytes);
}

/* Sizes near the limit of all: MAX is taken, one more is not. */
static void
the_largest_message_is_taken_and_no_larger_one(void **state)
{
    static uint8_t       bytes[NEAR__MESSAGE_MAX + 8];
    near_bytes           key = { bytes, NEAR__MESSAGE_MAX - NEAR__MESSAGE_HEADER - 1 - 4 };
    struct near__message m;
    size_t               size;
    uint8_t             *largest = encode(NEAR__MESSAGE_INVALIDATE, "c", &key, 1, &size);

    (void)state;
    assert_int_equal(size, NEAR__MESSAGE_MAX);
    assert_true(decode_copy(largest, size, &m));
    memcpy(bytes, largest, size);
    near__le32_put(bytes + 36, NEAR__MESSAGE_MAX + 1);
    near__le32_put(bytes + NEAR__MESSAGE_HEADER + 1, (uint32_t)key.size + 1);
    assert_false(decode_copy(bytes, size + 1, &m));
    free(largest);
}

/* Random damage to good messages, and random bytes behind a good header: a fixed sequence, so a failure repeats. */
static void
fuzz_finds_nothing(void **state)
{
    uint64_t             random = 20260101;
    size_t               rounds = test_scale(200000), accepted = 0;
    struct near__message m;

    (void)state;
    for (size_t round = 0; round < rounds; round++) {
        uint8_t    noise[96];
        near_bytes keys[4];
        size_t     n = test_random(&random) % 5, size, damage = test_random(&random) % 4;
        uint8_t   *bytes;

        for (size_t i = 0; i < sizeof(noise); i++)
            noise[i] = (uint8_t)test_random(&random);
        for (size_t i = 0; i < n; i++)
            keys[i] = (near_bytes){ noise, test_random(&random) % 24 };
        bytes = encode((enum near__message_kind)(1 + test_random(&random) % 3), "cache", keys, n, &size);
        for (size_t i = 0; i < damage; i++) {
            size_t at = test_random(&random) % size;

            if (test_random(&random) % 2 == 0)
                bytes[at] ^= (uint8_t)(1u << (test_random(&random) % 8));
            else
                bytes[at] = (uint8_t)test_random(&random);
        }
        if (test_random(&random) % 8 == 0)
            size -= test_random(&random) % size;
        accepted += decode_copy(bytes, size, &m);
        free(bytes);
    }
    assert_true(accepted > rounds / 20); /* control: the loop does reach the inside */
    assert_true(accepted < rounds);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip_keeps_everything),
        cmocka_unit_test(a_new_message_has_no_stamp),
        cmocka_unit_test(encode_refuses_what_no_receiver_would_take),
        cmocka_unit_test(fit_fills_messages_and_never_stands_still),
        cmocka_unit_test(clear_carries_exactly_one_generation),
        cmocka_unit_test(every_truncation_and_extension_is_refused),
        cmocka_unit_test(mutated_sizes_are_refused),
        cmocka_unit_test(other_versions_kinds_and_magics_are_refused),
        cmocka_unit_test(the_largest_message_is_taken_and_no_larger_one),
        cmocka_unit_test(fuzz_finds_nothing),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
