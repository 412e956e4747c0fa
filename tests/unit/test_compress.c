/* Compression by itself: what comes back is what went in, nothing is made room for that was not asked for, and the law by which it is
 * tried.  Without a codec in the build its rows are skipped. */
#include "harness/test.h"

#include <stdlib.h>
#include <string.h>

#include "l2/compress.h"

#ifdef NEAR_HAVE_ZSTD
#include <zstd.h>
#endif

static struct near__packer packer;

static const enum near__codec codecs[] = { NEAR__CODEC_LZ4, NEAR__CODEC_ZSTD };

/* Bytes of which a part in `of` repeats. */
static uint8_t *
sample(size_t size, unsigned of)
{
    uint8_t *bytes  = malloc(size + 1);
    uint64_t random = size * 7 + of;

    assert_non_null(bytes);
    for (size_t i = 0; i < size; i++)
        bytes[i] =
            of != 0 && i % of != 0 ? (uint8_t)("the same again "[i % 15]) : (uint8_t)test_random(&random);
    return bytes;
}

/* In memory of exactly that size: a sanitizer sees one byte too many. */
static near_status
unpack(enum near__codec codec, const uint8_t *stored, size_t n, size_t size, const uint8_t *expected)
{
    uint8_t    *in = malloc(n > 0 ? n : 1), *out = malloc(size > 0 ? size : 1);
    near_status status;

    assert_non_null(in);
    assert_non_null(out);
    memcpy(in, stored, n);
    status = near__unpack_is_plausible(codec, (near_bytes){ in, n }, size)
                 ? near__unpack(&packer, codec, (near_bytes){ in, n }, out, size)
                 : NEAR_ERR_INVALID;
    if (status == NEAR_OK && expected != NULL)
        assert_memory_equal(out, expected, size);
    free(in);
    free(out);
    return status;
}

static void
test_what_goes_in_comes_out(void **state)
{
    static const size_t sizes[] = { 64, 65, 1000, 4096, 65535, 65536, 1 << 20, (1 << 20) + 1, 9 << 20 };

    (void)state;
    for (size_t c = 0; c < NEAR_COUNT_OF(codecs); c++) {
        if (!near__codec_is_built(codecs[c]))
            continue;
        for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++) {
            size_t   size = sizes[i], n;
            uint8_t *raw = sample(size, 8), *out = malloc(size);

            n = near__pack(&packer, codecs[c], (near_bytes){ raw, size }, out, NEAR__GAIN_ROOM(size));
            if (size >= 1000)
                assert_in_range(n, 1, NEAR__GAIN_ROOM(size));
            if (n > 0) {
                assert_int_equal(unpack(codecs[c], out, n, size, raw), NEAR_OK);
                /* into any other size it does not go */
                assert_int_equal(unpack(codecs[c], out, n, size - 1, NULL), NEAR_ERR_INVALID);
                assert_int_equal(unpack(codecs[c], out, n, size + 1, NULL), NEAR_ERR_INVALID);
            }
            free(raw);
            free(out);
        }
    }
}

static void
test_what_does_not_shrink_does_not_fit(void **state)
{
    (void)state;
    for (size_t c = 0; c < NEAR_COUNT_OF(codecs); c++) {
        uint8_t *raw = sample(100000, 0), *out = malloc(100000);

        assert_int_equal(
            near__pack(&packer, codecs[c], (near_bytes){ raw, 100000 }, out, NEAR__GAIN_ROOM(100000)), 0);
        free(raw);
        free(out);
    }
    assert_int_equal(near__pack(&packer, NEAR__CODEC_NONE, near_key("aaaaaaaaaaaaaaaa"), NULL, 0), 0);
}

/* Whatever is done to them, what is unpacked stays inside, and no cut one is taken for whole. */
static void
test_every_truncation_and_bit_flip_stays_inside(void **state)
{
    uint8_t *raw = sample(2000, 10), out[2000];

    (void)state;
    for (size_t c = 0; c < NEAR_COUNT_OF(codecs); c++) {
        size_t n = near__pack(&packer, codecs[c], (near_bytes){ raw, 2000 }, out, sizeof(out));

        if (!near__codec_is_built(codecs[c]))
            continue;
        assert_true(n > 100);
        for (size_t cut = 0; cut < n; cut++)
            assert_int_equal(unpack(codecs[c], out, cut, 2000, NULL), NEAR_ERR_INVALID);
        for (size_t bit = 0; bit < n * 8; bit++) {
            out[bit / 8] ^= (uint8_t)(1u << bit % 8);
            (void)unpack(codecs[c], out, n, 2000, NULL);
            out[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        assert_int_equal(unpack(codecs[c], out, n, 2000, raw), NEAR_OK);
    }
    free(raw);
}

static void
test_random_bytes_stay_inside(void **state)
{
    uint64_t random = 11;
    uint8_t  bytes[300];

    (void)state;
    for (size_t round = 0; round < test_scale(50000); round++) {
        size_t n = test_random(&random) % sizeof(bytes), size = n + test_random(&random) % 3000;

        for (size_t i = 0; i < n; i++)
            bytes[i] = (uint8_t)test_random(&random);
        if (n > 5 && round % 2 == 0)
            memcpy(bytes, "\x28\xB5\x2F\xFD\x20", 5);
        for (size_t c = 0; c < NEAR_COUNT_OF(codecs); c++)
            (void)unpack(codecs[c], bytes, n, size, NULL);
    }
}

/* ---- rule Z2: zstd's frame header, which the library below believes */

#ifdef NEAR_HAVE_ZSTD
static size_t
frame_of(uint8_t *out, size_t room, size_t size, bool says_size, int window_log, bool checksum)
{
    static uint8_t zeros[1 << 16];
    ZSTD_CCtx     *context = ZSTD_createCCtx();
    ZSTD_outBuffer o       = { out, room, 0 };
    size_t         left    = size;

    assert_non_null(context);
    ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, says_size);
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, checksum);
    if (window_log != 0)
        ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, window_log);
    if (says_size)
        ZSTD_CCtx_setPledgedSrcSize(context, size);
    while (left > 0) {
        ZSTD_inBuffer in = { zeros, left < sizeof(zeros) ? left : sizeof(zeros), 0 };

        left -= in.size;
        while (in.pos < in.size)
            assert_false(ZSTD_isError(ZSTD_compressStream2(context, &o, &in, ZSTD_e_continue)));
    }
    for (;;) {
        ZSTD_inBuffer none = { NULL, 0, 0 };
        size_t        more = ZSTD_compressStream2(context, &o, &none, ZSTD_e_end);

        assert_false(ZSTD_isError(more));
        if (more == 0)
            break;
    }
    ZSTD_freeCCtx(context);
    return o.pos;
}
#endif

static void
test_a_zstd_frame_that_could_surprise_is_not_touched(void **state)
{
#ifdef NEAR_HAVE_ZSTD
    static uint8_t frame[1 << 16], two[1 << 17];
    const size_t   mib = 1 << 20;
    size_t         n;

    (void)state;
#define IS_PLAUSIBLE(bytes, n, size)                                                                         \
    near__unpack_is_plausible(NEAR__CODEC_ZSTD, (near_bytes){ bytes, n }, size)
    n = frame_of(frame, sizeof(frame), mib, true, 0, false);
    assert_true(IS_PLAUSIBLE(frame, n, mib)); /* the control */
    assert_false(IS_PLAUSIBLE(frame, n, mib - 1));
    assert_false(IS_PLAUSIBLE(frame, n, mib + 1));
    assert_false(IS_PLAUSIBLE(frame, n - 1, mib));
    frame[4] |= 0x08; /* reserved */
    assert_false(IS_PLAUSIBLE(frame, n, mib));
    /* followed by another, or by a byte */
    n = frame_of(frame, sizeof(frame), mib / 2, true, 0, false);
    memcpy(two, frame, n);
    memcpy(two + n, frame, n);
    assert_false(IS_PLAUSIBLE(two, 2 * n, mib));
    assert_false(IS_PLAUSIBLE(two, 2 * n, mib / 2));
    assert_false(IS_PLAUSIBLE(two, n + 1, mib / 2));
    assert_true(IS_PLAUSIBLE(two, n, mib / 2));
    /* one that is skipped over, and one that does not say how much it holds */
    assert_false(IS_PLAUSIBLE((uint8_t *)"\x50\x2A\x4D\x18\x04\0\0\0abcd", 12, 100));
    n = frame_of(frame, sizeof(frame), mib, false, 0, false);
    assert_false(IS_PLAUSIBLE(frame, n, mib));
    /* windows: up to 8 MiB */
    n = frame_of(frame, sizeof(frame), 16 * mib, true, 23, false);
    assert_true(IS_PLAUSIBLE(frame, n, 16 * mib));
    assert_int_equal(frame[4] & 0x20, 0);
    frame[5] = (uint8_t)(13 << 3 | 1); /* 9 MiB */
    assert_false(IS_PLAUSIBLE(frame, n, 16 * mib));
    frame[5] = (uint8_t)(31 << 3 | 7);
    assert_false(IS_PLAUSIBLE(frame, n, 16 * mib));
    /* a frame's own checksum is fine */
    n = frame_of(frame, sizeof(frame), mib, true, 0, true);
    assert_true(IS_PLAUSIBLE(frame, n, mib));
    assert_int_equal(unpack(NEAR__CODEC_ZSTD, frame, n, mib, NULL), NEAR_OK);
#else
    (void)state;
    skip();
#endif
}

/* ---- the law */

static size_t
tried(struct near__gain *gain, size_t raw, size_t stored, size_t rounds)
{
    size_t n = 0;

    for (size_t i = 0; i < rounds; i++)
        if (near__gain_try(gain, raw)) {
            near__gain_learn(gain, raw, stored);
            n++;
        }
    return n;
}

static void
test_values_that_do_not_shrink_are_soon_only_sampled(void **state)
{
    struct near__gain gain = { 0 };

    (void)state;
    assert_int_equal(tried(&gain, 10000, 0, 18), 18);
    assert_int_equal(tried(&gain, 10000, 0, 6400), 100);
    /* another class of sizes knows nothing of it */
    assert_int_equal(tried(&gain, 1000, 300, 100), 100);
    assert_int_equal(tried(&gain, 100000, 30000, 100), 100);
    /* the values have changed: the second one tried turns it on again */
    assert_int_equal(tried(&gain, 10000, 3000, 127), 1);
    assert_int_equal(tried(&gain, 10000, 3000, 1), 1);
    assert_int_equal(tried(&gain, 10000, 3000, 1000), 1000);
}

static void
test_values_that_shrink_are_always_tried(void **state)
{
    struct near__gain gain = { 0 };

    (void)state;
    assert_int_equal(tried(&gain, 5000, 4000, 10000), 10000);
    /* half of them not: still worth it */
    for (size_t i = 0; i < 1000; i++) {
        assert_true(near__gain_try(&gain, 5000));
        near__gain_learn(&gain, 5000, i % 2 == 0 ? 1500 : 0);
    }
    /* a run that does not ends it, but not at once */
    assert_in_range(tried(&gain, 5000, 0, 1000), 10, 40);
}

static void
test_the_share_never_leaves_its_scale(void **state)
{
    struct near__gain gain   = { 0 };
    uint64_t          random = 5;

    (void)state;
    for (size_t i = 0; i < 100000; i++) {
        size_t raw = 64 + test_random(&random) % (256u << 20);

        near__gain_learn(&gain, raw, test_random(&random) % 2 == 0 ? raw - 1 : 0);
        near__gain_learn(&gain, 1, 5); /* nonsense: as if not at all */
        for (size_t c = 0; c < NEAR__GAIN_CLASSES; c++)
            assert_true(gain.share[c] <= 65536);
    }
    assert_true(near__gain_try(&(struct near__gain){ 0 }, (size_t)-1));
    assert_true(near__gain_try(&(struct near__gain){ 0 }, 0));
}

static int
end(void **state)
{
    (void)state;
    near__packer_fini(&packer);
    return 0;
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_goes_in_comes_out),
        cmocka_unit_test(test_what_does_not_shrink_does_not_fit),
        cmocka_unit_test(test_every_truncation_and_bit_flip_stays_inside),
        cmocka_unit_test(test_random_bytes_stay_inside),
        cmocka_unit_test(test_a_zstd_frame_that_could_surprise_is_not_touched),
        cmocka_unit_test(test_values_that_do_not_shrink_are_soon_only_sampled),
        cmocka_unit_test(test_values_that_shrink_are_always_tried),
        cmocka_unit_test(test_the_share_never_leaves_its_scale),
    };

    return TEST_MAIN(tests, NULL, end);
}
