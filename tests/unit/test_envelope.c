/* The entry format: its bytes are what envelope.h says, and what is not exactly that is refused. */
#include "harness/test.h"

#include "base/hash.h"
#include "base/le.h"
#include "l2/envelope.h"

#include <stdlib.h>
#include <string.h>

static uint8_t *
encode(const struct near__envelope *e, size_t *size)
{
    uint8_t *out;

    *size = near__envelope_size(e);
    out   = malloc(*size); /* exactly: a sanitizer sees one byte too many */
    assert_non_null(out);
    near__envelope_encode(e, out);
    return out;
}

static struct near__envelope
sample(void)
{
    return (struct near__envelope){
        .stamp          = UINT64_C(0x1122334455667788),
        .soft_expiry_ms = 1700000000123,
        .hard_expiry_ms = 1700000009999,
        .cost_us        = 250000,
        .generation     = 7,
        .key            = { "users:user:42", 13 },
        .payload        = { "Grace Hopper\0\xff", 14 },
    };
}

static void
check_round_trip(const struct near__envelope *e)
{
    size_t                size;
    uint8_t              *bytes = encode(e, &size);
    struct near__envelope back;

    assert_int_equal(near__envelope_decode(&back, (near_bytes){ bytes, size }, e->key), NEAR__ENVELOPE_OK);
    assert_int_equal(back.flags, e->flags);
    assert_true(back.stamp == e->stamp);
    assert_true(back.soft_expiry_ms == e->soft_expiry_ms);
    assert_true(back.hard_expiry_ms == e->hard_expiry_ms);
    assert_int_equal(back.cost_us, e->cost_us);
    assert_true(back.generation == e->generation);
    assert_int_equal(back.raw_size,
                     e->flags & NEAR__ENVELOPE_COMPRESSED ? e->raw_size : (uint32_t)e->payload.size);
    assert_true(near__bytes_equal(back.key, e->key));
    assert_true(near__bytes_equal(back.payload, e->payload));
    /* they point into what was stored */
    assert_ptr_equal(back.key.data, bytes + NEAR__ENVELOPE_HEADER);
    assert_ptr_equal(back.payload.data, bytes + NEAR__ENVELOPE_HEADER + e->key.size);
    free(bytes);
}

static void
test_round_trip_of_all_shapes(void **state)
{
    static char          large[1 << 20];
    static const int64_t times[]  = { 0, 1, -1, INT64_MIN, INT64_MAX };
    const near_bytes     shapes[] = {
            { NULL, 0 }, { "", 0 }, { "a", 1 }, { "\0", 1 }, { "\r\nEND\r\n", 7 }, { large, sizeof(large) },
    };

    (void)state;
    for (size_t k = 0; k < NEAR_COUNT_OF(shapes); k++) {
        for (size_t p = 0; p < NEAR_COUNT_OF(shapes); p++) {
            struct near__envelope e = sample();
            e.key                   = shapes[k];
            e.payload               = shapes[p];
            check_round_trip(&e);
        }
    }
    for (size_t t = 0; t < NEAR_COUNT_OF(times); t++) {
        struct near__envelope e = sample();
        e.soft_expiry_ms        = times[t];
        e.hard_expiry_ms        = times[NEAR_COUNT_OF(times) - 1 - t];
        e.stamp                 = (uint64_t)times[t];
        e.generation            = ~(uint64_t)times[t];
        e.cost_us               = (uint32_t)times[t];
        check_round_trip(&e);
    }
    for (unsigned flags = NEAR__ENVELOPE_LZ4; flags <= NEAR__ENVELOPE_ZSTD; flags <<= 1) {
        struct near__envelope e = sample();
        e.flags                 = flags;
        e.raw_size              = 15;
        check_round_trip(&e);
        e.raw_size = UINT32_MAX;
        check_round_trip(&e);
    }
    for (unsigned flags = 0; flags < 4; flags++) {
        struct near__envelope e = sample();
        e.flags                 = flags;
        if ((flags & NEAR__ENVELOPE_NEGATIVE) != 0)
            e.payload.size = 0;
        check_round_trip(&e);
    }
}

/* Other programs and later versions read these bytes: they do not change. */
static void
test_the_bytes_are_as_documented(void **state)
{
    struct near__envelope e = sample();
    size_t                size;
    uint8_t              *at;

    (void)state;
    e.flags = NEAR__ENVELOPE_LEASE;
    at      = encode(&e, &size);
    assert_int_equal(size, 64 + 13 + 14);
    assert_memory_equal(at, "NrC\x01\x01\x02\x00\x00", 8);
    assert_memory_equal(at + 8, "\x88\x77\x66\x55\x44\x33\x22\x11", 8);
    assert_true(near__le64_get(at + 16) == 1700000000123);
    assert_true(near__le64_get(at + 24) == 1700000009999);
    assert_int_equal(near__le32_get(at + 32), 250000);
    assert_int_equal(near__le32_get(at + 36), 13);
    assert_int_equal(near__le32_get(at + 40), 14);
    assert_int_equal(near__le32_get(at + 44), 14);
    assert_true(near__le64_get(at + 48) == 7);
    /* computed once with another implementation of XXH64 over bytes 0..55 and 64..90 */
    assert_true(near__le64_get(at + 56) == UINT64_C(0x26c16fe34af6d1bf));
    assert_memory_equal(at + 64, "users:user:42Grace Hopper\0\xff", 27);
    free(at);
}

static enum near__envelope_result
decode(const uint8_t *bytes, size_t size, near_bytes key)
{
    struct near__envelope      back;
    uint8_t                   *exact = malloc(size > 0 ? size : 1); /* reading past the end is seen */
    enum near__envelope_result result;

    assert_non_null(exact);
    memcpy(exact, bytes, size);
    result = near__envelope_decode(&back, (near_bytes){ exact, size }, key);
    free(exact);
    return result;
}

static void
test_every_truncation_is_refused(void **state)
{
    struct near__envelope e = sample();
    size_t                size;
    uint8_t              *bytes = encode(&e, &size);

    (void)state;
    for (size_t n = 0; n < size; n++)
        assert_int_equal(decode(bytes, n, e.key), NEAR__ENVELOPE_CORRUPT);
    assert_int_equal(decode(bytes, size, e.key), NEAR__ENVELOPE_OK);
    free(bytes);
    assert_int_equal(near__envelope_decode(&e, (near_bytes){ NULL, 0 }, e.key), NEAR__ENVELOPE_CORRUPT);
}

static void
test_a_byte_more_is_refused(void **state)
{
    struct near__envelope e = sample();
    uint8_t               bytes[128];
    size_t                size = near__envelope_size(&e);

    (void)state;
    memset(bytes, 0, sizeof(bytes));
    near__envelope_encode(&e, bytes);
    for (size_t n = size + 1; n <= sizeof(bytes); n++)
        assert_int_equal(decode(bytes, n, e.key), NEAR__ENVELOPE_CORRUPT);
}

static void
test_every_bit_flip_is_refused(void **state)
{
    struct near__envelope e = sample();
    size_t                size;
    uint8_t              *bytes = encode(&e, &size);

    (void)state;
    for (size_t bit = 0; bit < size * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(decode(bytes, size, e.key), NEAR__ENVELOPE_CORRUPT);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_int_equal(decode(bytes, size, e.key), NEAR__ENVELOPE_OK);
    free(bytes);
}

static void
reseal(uint8_t *bytes, size_t size)
{
    near__le64_put(bytes + 56,
                   near__hash_fixed2((near_bytes){ bytes, 56 }, (near_bytes){ bytes + 64, size - 64 }));
}

/* G0: a sound entry of another key is never this key's. */
static void
test_G0_another_keys_entry_is_told_apart(void **state)
{
    static const near_bytes others[] = {
        { "users:user:43", 13 },
        { "users:user:4", 12 },
        { "users:user:422", 14 },
        { "", 0 },
        { NULL, 0 },
        { "users:user:42Grace Hopper\0\xff", 27 },
    };
    struct near__envelope e = sample();
    size_t                size;
    uint8_t              *bytes = encode(&e, &size);

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(others); i++)
        assert_int_equal(decode(bytes, size, others[i]), NEAR__ENVELOPE_WRONG_KEY);
    free(bytes);
}

struct change {
    size_t   at, width; /* bytes */
    uint64_t value;
};

/* Whoever can compute a checksum can also write nonsense: the fields are checked for themselves. */
static void
test_what_a_reader_does_not_know_is_refused_under_a_right_checksum(void **state)
{
    static const struct change changes[] = {
        { 0, 1, 'n' },         { 3, 1, 2 },           { 4, 1, 0 },
        { 4, 1, 2 },           { 4, 1, 255 },         { 5, 1, 4 },
        { 5, 1, 0x80 },        { 5, 1, 1 }, /* negative, with a payload */
        { 6, 2, 1 },           { 6, 2, 0xffff },      { 36, 4, 12 },
        { 36, 4, 14 },         { 36, 4, 0 },          { 36, 4, 0xffffffff },
        { 36, 4, 0x80000000 }, { 40, 4, 13 },         { 40, 4, 15 },
        { 44, 4, 13 },         { 44, 4, 0xffffffff }, { 40, 8, UINT64_C(0xffffffffffffffff) },
        { 36, 4, 0xfffffff2 }, /* key + payload overflow 32 bits to 0 */
    };
    struct near__envelope e = sample();
    size_t                size;
    uint8_t              *bytes = encode(&e, &size);

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(changes); i++) {
        uint8_t *spoilt = malloc(size);
        assert_non_null(spoilt);
        memcpy(spoilt, bytes, size);
        for (size_t b = 0; b < changes[i].width; b++)
            spoilt[changes[i].at + b] = (uint8_t)(changes[i].value >> 8 * b);
        reseal(spoilt, size);
        assert_int_equal(decode(spoilt, size, e.key), NEAR__ENVELOPE_CORRUPT);
        free(spoilt);
    }
    reseal(bytes, size); /* the control: resealing itself does no harm */
    assert_int_equal(decode(bytes, size, e.key), NEAR__ENVELOPE_OK);
    free(bytes);
}

/* A compressed payload belongs to a value, is smaller than that, and is of one kind. */
static void
test_a_compressed_payload_that_makes_no_sense_is_refused(void **state)
{
    static const struct {
        unsigned flags;
        uint32_t raw;
        bool     sound;
    } rows[] = {
        { NEAR__ENVELOPE_LZ4, 15, true },
        { NEAR__ENVELOPE_ZSTD, 15, true },
        { NEAR__ENVELOPE_LZ4, 14, false },
        { NEAR__ENVELOPE_ZSTD, 14, false },
        { NEAR__ENVELOPE_ZSTD, 13, false },
        { NEAR__ENVELOPE_ZSTD, 0, false },
        { NEAR__ENVELOPE_COMPRESSED, 15, false },
        { NEAR__ENVELOPE_LZ4 | NEAR__ENVELOPE_NEGATIVE, 15, false },
        { NEAR__ENVELOPE_ZSTD | NEAR__ENVELOPE_LEASE, 15, false },
        { NEAR__ENVELOPE_MARK, 14, true },
        { NEAR__ENVELOPE_MARK | NEAR__ENVELOPE_LEASE, 14, false },
        { NEAR__ENVELOPE_MARK | NEAR__ENVELOPE_ZSTD, 13, false },
        { 0x20, 14, false },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        struct near__envelope e = sample();
        size_t                size;
        uint8_t              *bytes;

        e.flags    = rows[i].flags;
        e.raw_size = rows[i].raw;
        bytes      = encode(&e, &size);
        near__le32_put(bytes + 40, rows[i].raw);
        reseal(bytes, size);
        assert_int_equal(decode(bytes, size, e.key),
                         rows[i].sound ? NEAR__ENVELOPE_OK : NEAR__ENVELOPE_CORRUPT);
        free(bytes);
    }
}

/* Encoding around a payload that lies in its place already, as compression leaves it. */
static void
test_a_payload_may_lie_there_already(void **state)
{
    struct near__envelope e = sample();
    uint8_t               one[128], other[128];
    size_t                size = near__envelope_size(&e);

    (void)state;
    near__envelope_encode(&e, one);
    memcpy(other + 64 + e.key.size, e.payload.data, e.payload.size);
    e.payload.data = other + 64 + e.key.size;
    near__envelope_encode(&e, other);
    assert_memory_equal(one, other, size);
}

static void
test_random_bytes_are_refused(void **state)
{
    uint64_t random = 3;
    uint8_t  bytes[256];

    (void)state;
    for (size_t round = 0; round < test_scale(100000); round++) {
        size_t size = test_random(&random) % sizeof(bytes);
        for (size_t i = 0; i < size; i += 8) {
            uint64_t word = test_random(&random);
            memcpy(bytes + i, &word, size - i < 8 ? size - i : 8);
        }
        if (round % 2 == 0 && size >= 8)
            memcpy(bytes, "NrC\x01\x01\x00\x00\x00", 8);
        assert_int_equal(decode(bytes, size, (near_bytes){ "k", 1 }), NEAR__ENVELOPE_CORRUPT);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_of_all_shapes),
        cmocka_unit_test(test_the_bytes_are_as_documented),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_a_byte_more_is_refused),
        cmocka_unit_test(test_every_bit_flip_is_refused),
        cmocka_unit_test(test_G0_another_keys_entry_is_told_apart),
        cmocka_unit_test(test_what_a_reader_does_not_know_is_refused_under_a_right_checksum),
        cmocka_unit_test(test_a_compressed_payload_that_makes_no_sense_is_refused),
        cmocka_unit_test(test_a_payload_may_lie_there_already),
        cmocka_unit_test(test_random_bytes_are_refused),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
