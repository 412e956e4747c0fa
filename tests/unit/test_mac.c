/*
 * Sealed entries: whoever has no key cannot make one, change one, or have one pass under another name.  Every change is made by somebody
 * who mends the checksum after it, as anybody can; the controls show that without a key such entries are believed.
 */
#include "harness/test.h"

#include "base/hash.h"
#include "base/le.h"
#include "l2/envelope.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PLACE ((near_bytes){ "nc:users:users:user:42", 22 })
#define ROOM  256

static struct near__mac *mac, *other, *both; /* of one key; of another; signs with the other, believes both */

static struct near__envelope
sample(void)
{
    return (struct near__envelope){
        .flags          = NEAR__ENVELOPE_LEASE,
        .sealed         = true,
        .stamp          = UINT64_C(0x1122334455667788),
        .soft_expiry_ms = 1700000000123,
        .hard_expiry_ms = 1700000009999,
        .cost_us        = 250000,
        .generation     = 7,
        .key            = { "users:user:42", 13 },
        .payload        = { "Grace Hopper\0\xff", 14 },
    };
}

static struct near__envelope
labelled(void)
{
    struct near__envelope e = sample();

    e.flags   = 0;
    e.tags    = 2;
    e.lineage = 77;
    e.moment  = 3;
    e.names   = (near_bytes){ "\003red\004blue", 9 };
    return e;
}

static void
reseal(uint8_t *bytes, size_t size)
{
    near__le64_put(bytes + 56,
                   near__hash_fixed2((near_bytes){ bytes, 56 }, (near_bytes){ bytes + 64, size - 64 }));
}

/* As a reader with this key has it; `keyed` NULL: without one. */
static enum near__envelope_result
open_sealed(const struct near__mac *keyed, near_bytes place, const uint8_t *bytes, size_t size)
{
    struct near__envelope      e;
    uint8_t                   *exact = malloc(size > 0 ? size : 1); /* reading past the end is seen */
    enum near__envelope_result result;

    assert_non_null(exact);
    memcpy(exact, bytes, size);
    result = near__envelope_decode(&e, (near_bytes){ exact, size }, sample().key);
    if (result == NEAR__ENVELOPE_OK && keyed != NULL &&
        !near__envelope_verify(&e, keyed, place, (near_bytes){ exact, size }))
        result = NEAR__ENVELOPE_FORGED;
    free(exact);
    return result;
}

static int
make_keys(void **state)
{
    uint8_t keys[2][NEAR__MAC_KEY_SIZE];

    (void)state;
    for (size_t i = 0; i < NEAR__MAC_KEY_SIZE; i++) {
        keys[0][i] = (uint8_t)(0xff - i);
        keys[1][i] = (uint8_t)i;
    }
    if (near__mac_new(&mac, (const uint8_t(*)[NEAR__MAC_KEY_SIZE])keys + 1, 1) == NEAR_ERR_UNSUPPORTED)
        return 0;
    return near__mac_new(&other, (const uint8_t(*)[NEAR__MAC_KEY_SIZE])keys, 1) == NEAR_OK &&
                   near__mac_new(&both, (const uint8_t(*)[NEAR__MAC_KEY_SIZE])keys, 2) == NEAR_OK
               ? 0
               : -1;
}

static int
drop_keys(void **state)
{
    (void)state;
    near__mac_free(&mac);
    near__mac_free(&other);
    near__mac_free(&both);
    near__mac_free(&both); /* NULL inside is fine */
    return 0;
}

/* A build without OpenSSL has none, and says so at open (integration/test_mac). */
#define NEEDS_MAC()                                                                                          \
    do {                                                                                                     \
        if (mac == NULL)                                                                                     \
            skip();                                                                                          \
    } while (0)

/* Other programs and later versions read these bytes: they do not change. */
static void
test_the_bytes_are_as_documented(void **state)
{
    /* computed once with another implementation, over "NrC-L2\1\0", 22 in 64 bits, the place, bytes 0..55 and 80..106 */
    static const uint8_t  expected[NEAR__MAC_SIZE] = { 0x5b, 0x34, 0x70, 0x6d, 0x6b, 0xe1, 0x1b, 0xe2,
                                                       0xd3, 0xd9, 0xb5, 0x65, 0x65, 0xf1, 0xd8, 0xc0 };
    struct near__envelope e                        = sample(), back;
    uint8_t               bytes[ROOM], again[ROOM];
    size_t                size = near__envelope_size(&e);

    (void)state;
    NEEDS_MAC();
    near__envelope_seal(&e, mac, PLACE, bytes);
    assert_int_equal(size, 80 + 13 + 14);
    assert_int_equal(bytes[5], 0x22);
    assert_memory_equal(bytes + 64, expected, sizeof(expected));
    assert_memory_equal(bytes + 80, "users:user:42Grace Hopper\0\xff", 27);
    assert_true(near__le64_get(bytes + 56) ==
                near__hash_fixed2((near_bytes){ bytes, 56 }, (near_bytes){ bytes + 64, size - 64 }));
    /* and back: what is decoded encodes to the same bytes */
    assert_int_equal(near__envelope_decode(&back, (near_bytes){ bytes, size }, e.key), NEAR__ENVELOPE_OK);
    assert_int_equal(back.flags, NEAR__ENVELOPE_LEASE); /* how it lies is no flag of what it is */
    assert_true(back.sealed);
    assert_ptr_equal(back.key.data, bytes + 80);
    near__envelope_encode(&back, again);
    assert_memory_equal(again, bytes, size);
}

/* The same without: nothing of it is there, and nothing says so. */
static void
test_what_is_not_sealed_lies_as_before(void **state)
{
    struct near__envelope e = sample();
    uint8_t               bytes[ROOM];

    (void)state;
    e.sealed = false;
    near__envelope_encode(&e, bytes);
    assert_int_equal(near__envelope_size(&e), 64 + 13 + 14);
    assert_int_equal(bytes[5], 0x02);
    assert_memory_equal(bytes + 64, "users:user:42", 13);
    assert_int_equal(open_sealed(NULL, PLACE, bytes, near__envelope_size(&e)), NEAR__ENVELOPE_OK);
    NEEDS_MAC();
    assert_int_equal(open_sealed(mac, PLACE, bytes, near__envelope_size(&e)), NEAR__ENVELOPE_FORGED);
}

static void
flip_every_bit(struct near__envelope e)
{
    uint8_t  bytes[ROOM];
    size_t   size     = near__envelope_size(&e);
    unsigned sensible = 0;

    near__envelope_seal(&e, mac, PLACE, bytes);
    assert_int_equal(open_sealed(mac, PLACE, bytes, size), NEAR__ENVELOPE_OK);
    for (size_t bit = 0; bit < size * 8; bit++) {
        uint8_t flipped[ROOM];

        memcpy(flipped, bytes, size);
        flipped[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(open_sealed(mac, PLACE, flipped, size), NEAR__ENVELOPE_CORRUPT);
        if (bit / 8 >= 56 && bit / 8 < 64)
            continue; /* of the checksum: mending it is undoing it */
        reseal(flipped, size);
        assert_int_not_equal(open_sealed(mac, PLACE, flipped, size), NEAR__ENVELOPE_OK);
        /* the control: who does not look at the MAC believes most of them */
        sensible += open_sealed(NULL, PLACE, flipped, size) == NEAR__ENVELOPE_OK;
    }
    assert_true(sensible > size * 8 / 2);
}

static void
test_every_bit_flip_is_refused_under_a_right_checksum(void **state)
{
    (void)state;
    NEEDS_MAC();
    flip_every_bit(sample());
    flip_every_bit(labelled());
}

static void
test_every_truncation_is_refused(void **state)
{
    struct near__envelope e = labelled();
    uint8_t               bytes[ROOM], cut[ROOM];
    size_t                size = near__envelope_size(&e);

    (void)state;
    NEEDS_MAC();
    near__envelope_seal(&e, mac, PLACE, bytes);
    for (size_t n = 0; n < size; n++) {
        memcpy(cut, bytes, n);
        if (n >= 64)
            reseal(cut, n);
        assert_int_equal(open_sealed(mac, PLACE, cut, n), NEAR__ENVELOPE_CORRUPT);
    }
    bytes[size] = 0;
    reseal(bytes, size + 1);
    assert_int_not_equal(open_sealed(mac, PLACE, bytes, size + 1), NEAR__ENVELOPE_OK);
}

/* Whoever can write can copy: under any other key of L2 the same bytes are refused, though all that they say of themselves is right. */
static void
test_a_moved_entry_is_refused(void **state)
{
    static const near_bytes places[] = {
        { "nc:users:users:user:43", 22 },
        { "nc:users:users:user:4", 21 },
        { "nc:users:users:user:422", 23 },
        { "nc:users!users:user:42", 22 },
        { "nc:admin:users:user:42", 22 },
        { "xc:users:users:user:42", 22 },
        { "nc:users:users:user:42N", 23 },
        { "", 0 },
        { NULL, 0 },
    };
    struct near__envelope e = sample();
    uint8_t               bytes[ROOM];
    size_t                size = near__envelope_size(&e);

    (void)state;
    NEEDS_MAC();
    near__envelope_seal(&e, mac, PLACE, bytes);
    assert_int_equal(open_sealed(mac, PLACE, bytes, size), NEAR__ENVELOPE_OK);
    for (size_t i = 0; i < NEAR_COUNT_OF(places); i++) {
        assert_int_equal(open_sealed(mac, places[i], bytes, size), NEAR__ENVELOPE_FORGED);
        assert_int_equal(open_sealed(NULL, places[i], bytes, size), NEAR__ENVELOPE_OK); /* the control */
    }
}

/* Where the place ends and the entry begins is part of it: bytes cannot go from one to the other. */
static void
test_the_parts_have_their_bounds(void **state)
{
    uint8_t one[NEAR__MAC_SIZE], two[NEAR__MAC_SIZE];

    (void)state;
    NEEDS_MAC();
    near__mac_sign(mac, (near_bytes){ "ab", 2 }, (near_bytes){ "cd", 2 }, (near_bytes){ "ef", 2 }, one);
    near__mac_sign(mac, (near_bytes){ "abc", 3 }, (near_bytes){ "d", 1 }, (near_bytes){ "ef", 2 }, two);
    assert_memory_not_equal(one, two, sizeof(one));
    assert_true(near__mac_verify(mac, (near_bytes){ "ab", 2 }, (near_bytes){ "cd", 2 },
                                 (near_bytes){ "ef", 2 }, one));
    assert_false(near__mac_verify(mac, (near_bytes){ "abc", 3 }, (near_bytes){ "d", 1 },
                                  (near_bytes){ "ef", 2 }, one));
}

static void
test_a_key_is_believed_by_who_has_it(void **state)
{
    struct near__envelope e = sample();
    uint8_t               old[ROOM], new[ROOM];
    size_t                size = near__envelope_size(&e);

    (void)state;
    NEEDS_MAC();
    near__envelope_seal(&e, mac, PLACE, old);
    near__envelope_seal(&e, both, PLACE, new); /* by its first key, which is `other`'s */
    assert_int_equal(open_sealed(mac, PLACE, old, size), NEAR__ENVELOPE_OK);
    assert_int_equal(open_sealed(other, PLACE, old, size), NEAR__ENVELOPE_FORGED);
    assert_int_equal(open_sealed(both, PLACE, old, size), NEAR__ENVELOPE_OK);
    assert_int_equal(open_sealed(mac, PLACE, new, size), NEAR__ENVELOPE_FORGED);
    assert_int_equal(open_sealed(other, PLACE, new, size), NEAR__ENVELOPE_OK);
    assert_int_equal(open_sealed(both, PLACE, new, size), NEAR__ENVELOPE_OK);
    assert_int_equal(open_sealed(NULL, PLACE, new, size),
                     NEAR__ENVELOPE_OK); /* reads, and asks for nothing */
}

/* ---- what it costs: told, not judged */

static int64_t
cpu_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ns of processor time for one; -1: it did not verify. */
static int64_t
time_once(const struct near__envelope *e, const struct near__mac *keyed, uint8_t *bytes, bool reading)
{
    size_t  size = near__envelope_size(e), rounds = 40000 / size + 1;
    int64_t began = cpu_now();

    for (size_t i = 0; i < rounds; i++) {
        struct near__envelope back;

        if (!reading && keyed != NULL)
            near__envelope_seal(e, keyed, PLACE, bytes);
        else if (!reading)
            near__envelope_encode(e, bytes);
        else if (near__envelope_decode(&back, (near_bytes){ bytes, size }, e->key) != NEAR__ENVELOPE_OK ||
                 (keyed != NULL && !near__envelope_verify(&back, keyed, PLACE, (near_bytes){ bytes, size })))
            return -1;
    }
    return (cpu_now() - began) / (int64_t)rounds;
}

/* The least of some: what else ran on the machine meanwhile is not its cost. */
static int64_t
time_of(const struct near__envelope *e, const struct near__mac *keyed, uint8_t *bytes, bool reading)
{
    int64_t least = INT64_MAX;

    for (size_t i = 0; i < test_scale(20); i++) {
        int64_t ns = time_once(e, keyed, bytes, reading);

        least = ns < least ? ns : least;
    }
    return least;
}

static void
test_what_it_costs(void **state)
{
    static const size_t sizes[] = { 16, 200, 1024, 16384, 1 << 20 };
    static uint8_t      value[1 << 20], bytes[(1 << 20) + ROOM];

    (void)state;
    NEEDS_MAC();
    memset(value, 'v', sizeof(value));
    for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++) {
        struct near__envelope e = sample();
        int64_t               ns[2][2];

        e.flags   = 0;
        e.payload = (near_bytes){ value, sizes[i] };
        for (int keyed = 0; keyed < 2; keyed++) {
            e.sealed     = keyed;
            ns[keyed][0] = time_of(&e, keyed ? mac : NULL, bytes, false);
            ns[keyed][1] = time_of(&e, keyed ? mac : NULL, bytes, true);
            assert_true(ns[keyed][1] >= 0);
        }
        print_message("%8zu bytes: writing %lld ns, sealed %lld; reading %lld ns, sealed %lld\n", sizes[i],
                      (long long)ns[0][0], (long long)ns[1][0], (long long)ns[0][1], (long long)ns[1][1]);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_bytes_are_as_documented),
        cmocka_unit_test(test_what_is_not_sealed_lies_as_before),
        cmocka_unit_test(test_every_bit_flip_is_refused_under_a_right_checksum),
        cmocka_unit_test(test_every_truncation_is_refused),
        cmocka_unit_test(test_a_moved_entry_is_refused),
        cmocka_unit_test(test_the_parts_have_their_bounds),
        cmocka_unit_test(test_a_key_is_believed_by_who_has_it),
        cmocka_unit_test(test_what_it_costs),
    };

    return TEST_MAIN(tests, make_keys, drop_keys);
}
