/*
 * The parts of a stored entry that have no test program of their own: the names of its tags, dictionaries, and what packing does when
 * there is no memory, or when others have filled the places for contexts meanwhile.
 *
 * Linked with --wrap for the allocator and for what zstd makes.
 */
#include "harness/shortage.h"
#include "harness/test.h"

#include "l2/dictionary.h"
#include "l2/envelope.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

/* ---- tags */

static enum near__envelope_result
decode_tags(const char *names, size_t size, unsigned n, bool sound)
{
    struct near__envelope envelope = { .key     = near_key("key"),
                                       .payload = near_key("payload"),
                                       .tags    = n,
                                       .lineage = 7,
                                       .moment  = 8,
                                       .names   = { names, size } },
                          back;
    uint8_t                   *bytes = malloc(near__envelope_size(&envelope)); /* a byte too many is seen */
    enum near__envelope_result result;

    assert_non_null(bytes);
    near__envelope_encode(&envelope, bytes);
    result =
        near__envelope_decode(&back, (near_bytes){ bytes, near__envelope_size(&envelope) }, envelope.key);
    if (sound) {
        assert_int_equal(back.tags, n);
        assert_true(near__bytes_equal(back.names, envelope.names));
        assert_true(back.lineage == 7 && back.moment == 8);
    }
    free(bytes);
    return result;
}

/* The names fill their place exactly, under a right checksum: else the payload might begin anywhere. */
static void
test_names_of_tags_that_make_no_sense_are_refused(void **state)
{
    static const struct {
        const char *names;
        size_t      size;
        unsigned    n;
        bool        sound;
    } rows[] = {
        { "\1a\2bc", 5, 2, true },  { "\1a\2bc", 5, 1, false }, /* more than there are tags */
        { "\1a\2bc", 5, 3, false },                             /* fewer */
        { "\1a\0", 3, 2, false },                               /* one without a name */
        { "\1a\3bc", 5, 2, false },                             /* one that ends in the payload */
        { "\4bc\1a", 5, 1, true },  { "\5bc\1a", 5, 1, false }, { "", 0, 1, false }, { "\1a", 2, 17, false },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++)
        if (decode_tags(rows[i].names, rows[i].size, rows[i].n, rows[i].sound) !=
            (rows[i].sound ? NEAR__ENVELOPE_OK : NEAR__ENVELOPE_CORRUPT))
            fail_msg("row %zu", i);
}

#ifdef NEAR_HAVE_ZSTD
#include <zdict.h>
#include <zstd.h>

/* ---- what zstd makes, refused; and places that others fill while it is made */

static struct near__packer packer;
static bool                refuse, crowded, another_id, no_reference;

ZSTD_CCtx  *__real_ZSTD_createCCtx(void);
ZSTD_CCtx  *__wrap_ZSTD_createCCtx(void);
ZSTD_DCtx  *__real_ZSTD_createDCtx(void);
ZSTD_DCtx  *__wrap_ZSTD_createDCtx(void);
ZSTD_CDict *__real_ZSTD_createCDict(const void *bytes, size_t size, int level);
ZSTD_CDict *__wrap_ZSTD_createCDict(const void *bytes, size_t size, int level);
ZSTD_DDict *__real_ZSTD_createDDict(const void *bytes, size_t size);
ZSTD_DDict *__wrap_ZSTD_createDDict(const void *bytes, size_t size);
unsigned    __real_ZSTD_getDictID_fromDDict(const ZSTD_DDict *dictionary);
unsigned    __wrap_ZSTD_getDictID_fromDDict(const ZSTD_DDict *dictionary);
size_t      __real_ZSTD_CCtx_refCDict(ZSTD_CCtx *context, const ZSTD_CDict *dictionary);
size_t      __wrap_ZSTD_CCtx_refCDict(ZSTD_CCtx *context, const ZSTD_CDict *dictionary);

ZSTD_CCtx *
__wrap_ZSTD_createCCtx(void)
{
    for (bool room = crowded; room;) {
        ZSTD_CCtx *other = __real_ZSTD_createCCtx();

        room = near__packer_keep(packer.pack, other);
        if (!room)
            ZSTD_freeCCtx(other);
    }
    return refuse ? NULL : __real_ZSTD_createCCtx();
}

ZSTD_DCtx *
__wrap_ZSTD_createDCtx(void)
{
    for (bool room = crowded; room;) {
        ZSTD_DCtx *other = __real_ZSTD_createDCtx();

        room = near__packer_keep(packer.unpack, other);
        if (!room)
            ZSTD_freeDCtx(other);
    }
    return refuse ? NULL : __real_ZSTD_createDCtx();
}

ZSTD_CDict *
__wrap_ZSTD_createCDict(const void *bytes, size_t size, int level)
{
    return refuse ? NULL : __real_ZSTD_createCDict(bytes, size, level);
}

ZSTD_DDict *
__wrap_ZSTD_createDDict(const void *bytes, size_t size)
{
    return refuse ? NULL : __real_ZSTD_createDDict(bytes, size);
}

unsigned
__wrap_ZSTD_getDictID_fromDDict(const ZSTD_DDict *dictionary)
{
    return __real_ZSTD_getDictID_fromDDict(dictionary) + another_id;
}

size_t
__wrap_ZSTD_CCtx_refCDict(ZSTD_CCtx *context, const ZSTD_CDict *dictionary)
{
    return no_reference ? (size_t)-1 : __real_ZSTD_CCtx_refCDict(context, dictionary);
}

static int
reset(void **state)
{
    (void)state;
    refuse = crowded = another_id = no_reference = false;
    near__packer_fini(&packer);
    return 0;
}

static bool
slots_are_full(_Atomic(void *) *slots)
{
    for (size_t i = 0; i < NEAR__PACKER_SLOTS; i++)
        if (slots[i] == NULL)
            return false;
    return true;
}

static const char text[] = "the same again, the same again, the same again, the same again, the same again.";

static void
test_packing_without_contexts(void **state)
{
    const near_bytes raw = { text, sizeof(text) };
    uint8_t          stored[200], out[sizeof(text) + 1];
    size_t           size;

    (void)state;
    refuse = true;
    assert_int_equal(near__pack(&packer, NEAR__CODEC_ZSTD, raw, stored, sizeof(stored)), 0);
    refuse = false;
    size   = near__pack(&packer, NEAR__CODEC_ZSTD, raw, stored, sizeof(stored));
    assert_in_range(size, 1, sizeof(text) - 1);
    refuse = true;
    assert_int_equal(near__unpack(&packer, NEAR__CODEC_ZSTD, (near_bytes){ stored, size }, out, sizeof(text)),
                     NEAR_ERR_NOMEM);
    refuse = false;
    assert_int_equal(near__unpack(&packer, NEAR__CODEC_ZSTD, (near_bytes){ stored, size }, out, sizeof(text)),
                     NEAR_OK);
    assert_memory_equal(out, text, sizeof(text));
    /* what was not asked whether it is plausible */
    assert_int_equal(
        near__unpack(&packer, NEAR__CODEC_ZSTD, (near_bytes){ stored, size }, out, sizeof(text) + 1),
        NEAR_ERR_INVALID);
    assert_int_equal(near__unpack(&packer, NEAR__CODEC_NONE, (near_bytes){ stored, size }, out, sizeof(text)),
                     NEAR_ERR_INVALID);
    assert_false(near__unpack_is_plausible(NEAR__CODEC_NONE, (near_bytes){ stored, size }, sizeof(text)));
    assert_int_equal(near__pack(&packer, NEAR__CODEC_ZSTD, raw, stored, 3), 0);
}

/* What finds no place is freed (a leak is seen by the sanitizer), and what it made is as good. */
static void
test_contexts_that_find_no_place(void **state)
{
    uint8_t stored[200], out[sizeof(text)];
    size_t  size;

    (void)state;
    crowded = true;
    size = near__pack(&packer, NEAR__CODEC_ZSTD, (near_bytes){ text, sizeof(text) }, stored, sizeof(stored));
    assert_in_range(size, 1, sizeof(text) - 1);
    assert_true(slots_are_full(packer.pack));
    assert_int_equal(near__unpack(&packer, NEAR__CODEC_ZSTD, (near_bytes){ stored, size }, out, sizeof(text)),
                     NEAR_OK);
    assert_memory_equal(out, text, sizeof(text));
    assert_true(slots_are_full(packer.unpack));
}

/* A window of 2 GiB, which the format allows: not for us. */
static void
test_a_huge_window_is_refused(void **state)
{
    static const uint8_t frame[] = { 0x28, 0xB5, 0x2F, 0xFD, 0x40, 21 << 3, 0x00, 0xff, 1, 0, 0 };

    (void)state;
    assert_int_equal(ZSTD_getFrameContentSize(frame, sizeof(frame)),
                     0xff00 + 256); /* the control: it is one */
    assert_false(
        near__unpack_is_plausible(NEAR__CODEC_ZSTD, (near_bytes){ frame, sizeof(frame) }, 0xff00 + 256));
}

/* ---- dictionaries */

static uint8_t dictionary_bytes[4096];
static size_t  dictionary_size;

static uint32_t
train(void)
{
    static char   samples[2000 * 64];
    static size_t sizes[2000];
    size_t        used   = 0;
    uint64_t      random = 1;

    for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++) {
        sizes[i] =
            (size_t)snprintf(samples + used, 64, "{\"user\": %u, \"city\": \"%s\", \"active\": true}",
                             (unsigned)(test_random(&random) % 100000), i % 2 == 0 ? "Bergen" : "Oslo");
        used += sizes[i];
    }
    dictionary_size = ZDICT_trainFromBuffer(dictionary_bytes, sizeof(dictionary_bytes), samples, sizes,
                                            (unsigned)NEAR_COUNT_OF(sizes));
    assert_false(ZDICT_isError(dictionary_size));
    return near__dictionary_seal(dictionary_bytes, dictionary_size);
}

static void
test_a_dictionary_is_had_or_refused(void **state)
{
    uint32_t                 id    = train();
    near_bytes               bytes = { dictionary_bytes, dictionary_size };
    struct near__dictionary *dictionary;
    uint8_t                  garbage[512] = { 0 };

    (void)state;
    assert_int_not_equal(id, 0);
    assert_int_equal(near__dictionary_seal(garbage, sizeof(garbage)), 0);
    assert_int_equal(garbage[4], 0); /* left alone */
    assert_int_equal(near__dictionary_new(bytes, 0, &dictionary), NEAR_ERR_INVALID);
    assert_int_equal(near__dictionary_new(bytes, id + 1, &dictionary), NEAR_ERR_INVALID);
    bytes.size--;
    assert_int_equal(near__dictionary_new(bytes, id, &dictionary), NEAR_ERR_INVALID);
    bytes.size++;
    dictionary_bytes[4] ^= 1; /* content that makes the id, and another one written in it */
    assert_int_equal(near__dictionary_new(bytes, id, &dictionary), NEAR_ERR_INVALID);
    dictionary_bytes[4] ^= 1;
    shortage_begin(0, false);
    assert_int_equal(near__dictionary_new(bytes, id, &dictionary), NEAR_ERR_NOMEM);
    shortage_end();
    refuse = true;
    assert_int_equal(near__dictionary_new(bytes, id, &dictionary), NEAR_ERR_INVALID);
    refuse     = false;
    another_id = true;
    assert_int_equal(near__dictionary_new(bytes, id, &dictionary), NEAR_ERR_INVALID);
    another_id = false;
    assert_null(dictionary);
    assert_int_equal(near__dictionary_new(bytes, id, &dictionary), NEAR_OK);
    assert_int_equal(near__dictionary_id(dictionary), id);
    assert_true(near__bytes_equal(near__dictionary_bytes(dictionary), bytes));
    near__dictionary_release(near__dictionary_ref(dictionary)); /* one of two holders */
    assert_int_equal(near__dictionary_id(dictionary), id);
    near__dictionary_release(dictionary);
    near__dictionary_release(NULL);
}

static void
test_packing_with_a_dictionary_without_contexts(void **state)
{
    const near_bytes         raw = near_key("{\"user\": 4711, \"city\": \"Bergen\", \"active\": true}");
    uint32_t                 id  = train();
    struct near__dictionary *dictionary;
    uint8_t                  stored[200], out[201];
    size_t                   size;

    (void)state;
    assert_int_equal(near__dictionary_new((near_bytes){ dictionary_bytes, dictionary_size }, id, &dictionary),
                     NEAR_OK);
    refuse = true;
    assert_int_equal(near__dictionary_prepare(dictionary), NEAR_ERR_NOMEM);
    refuse = false;
    assert_int_equal(near__dictionary_prepare(dictionary), NEAR_OK);
    refuse = true; /* once is enough */
    assert_int_equal(near__dictionary_prepare(dictionary), NEAR_OK);
    assert_int_equal(near__dictionary_pack(&packer, dictionary, raw, stored, sizeof(stored)), 0);
    refuse       = false;
    no_reference = true;
    assert_int_equal(near__dictionary_pack(&packer, dictionary, raw, stored, sizeof(stored)), 0);
    no_reference = false;
    near__packer_fini(&packer);
    crowded = true;
    size    = near__dictionary_pack(&packer, dictionary, raw, stored, sizeof(stored));
    assert_in_range(size, 1, raw.size - 1);
    assert_true(slots_are_full(packer.pack));
    assert_int_equal(near__dictionary_needed(NEAR__CODEC_ZSTD, (near_bytes){ stored, size }), id);
    assert_int_equal(near__dictionary_needed(NEAR__CODEC_LZ4, (near_bytes){ stored, size }), 0);
    crowded = false;
    refuse  = true;
    assert_int_equal(
        near__dictionary_unpack(&packer, dictionary, (near_bytes){ stored, size }, out, raw.size),
        NEAR_ERR_NOMEM);
    refuse  = false;
    crowded = true;
    assert_int_equal(
        near__dictionary_unpack(&packer, dictionary, (near_bytes){ stored, size }, out, raw.size), NEAR_OK);
    assert_memory_equal(out, raw.data, raw.size);
    assert_true(slots_are_full(packer.unpack));
    assert_int_equal(
        near__dictionary_unpack(&packer, dictionary, (near_bytes){ stored, size }, out, raw.size + 1),
        NEAR_ERR_INVALID);
    assert_int_equal(
        near__dictionary_unpack(&packer, dictionary, (near_bytes){ stored, size }, out, raw.size - 1),
        NEAR_ERR_INVALID);
    /* the control: not without it */
    assert_int_equal(near__unpack(&packer, NEAR__CODEC_ZSTD, (near_bytes){ stored, size }, out, raw.size),
                     NEAR_ERR_INVALID);
    near__dictionary_release(dictionary);
}
#endif

#ifdef NEAR_HAVE_LZ4
/* Sizes that lz4's own int could not hold are refused before anything is looked at. */
static void
test_sizes_beyond_lz4(void **state)
{
    near_bytes tiny = { "x", 1 };
    uint8_t    out[8];

    (void)state;
    assert_int_equal(near__pack(NULL, NEAR__CODEC_LZ4, (near_bytes){ "x", SIZE_MAX }, out, sizeof(out)), 0);
    assert_int_equal(near__pack(NULL, NEAR__CODEC_LZ4, tiny, out, (size_t)INT_MAX + 1), 0);
    assert_false(near__unpack_is_plausible(NEAR__CODEC_LZ4, tiny, SIZE_MAX));
    assert_false(
        near__unpack_is_plausible(NEAR__CODEC_LZ4, (near_bytes){ "x", (size_t)INT_MAX + 1 }, SIZE_MAX));
    assert_false(near__unpack_is_plausible(NEAR__CODEC_LZ4, tiny, 510)); /* a byte stands for 255 at most */
    assert_true(near__unpack_is_plausible(NEAR__CODEC_LZ4, tiny, 509));
    assert_int_equal(near__unpack(NULL, NEAR__CODEC_LZ4, tiny, out, 2), NEAR_ERR_INVALID);
}
#endif

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_of_tags_that_make_no_sense_are_refused),
#ifdef NEAR_HAVE_LZ4
        cmocka_unit_test(test_sizes_beyond_lz4),
#endif
#ifdef NEAR_HAVE_ZSTD
        cmocka_unit_test_teardown(test_packing_without_contexts, reset),
        cmocka_unit_test_teardown(test_contexts_that_find_no_place, reset),
        cmocka_unit_test_teardown(test_a_huge_window_is_refused, reset),
        cmocka_unit_test_teardown(test_a_dictionary_is_had_or_refused, reset),
        cmocka_unit_test_teardown(test_packing_with_a_dictionary_without_contexts, reset),
#endif
    };

    return TEST_MAIN(tests, NULL, NULL);
}
