/*
 * What values look like in L2: compressed where that helps, whatever anybody put there, and bare (l2.envelope = none).
 *
 * The stored bytes are looked at and spoilt through a handle of our own on the same server, by the backend's own contract, and with the
 * servers' plain commands, as another program would.
 */
#include "back.h"
#include "world.h"

#include <unistd.h>

#include "base/hash.h"
#include "base/le.h"
#include "client.h"
#include "l2/envelope.h"
#include "tier.h"

#ifdef NEAR_HAVE_ZSTD
#include <zstd.h>
#endif

WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(both, TIER_MEMCACHED_BUS)
WORLD(memcached, TIER_MEMCACHED)

/* ---- switches: a build without a codec, and removals that void no lease */

static _Atomic int missing = -1;
static atomic_bool careless;

bool        __real_near__codec_is_built(enum near__codec codec);
bool        __wrap_near__codec_is_built(enum near__codec codec);
near_status __real_near__tier_void_leases(near_cache *cache, const near_bytes *keys, size_t n,
                                          int64_t deadline);
near_status __wrap_near__tier_void_leases(near_cache *cache, const near_bytes *keys, size_t n,
                                          int64_t deadline);

bool
__wrap_near__codec_is_built(enum near__codec codec)
{
    return (int)codec != missing && __real_near__codec_is_built(codec);
}

near_status
__wrap_near__tier_void_leases(near_cache *cache, const near_bytes *keys, size_t n, int64_t deadline)
{
    return careless ? NEAR_OK : __real_near__tier_void_leases(cache, keys, n, deadline);
}

/* ---- behind the client's back */

static near_bytes
wire_key(const char *key)
{
    static char text[300];

    snprintf(text, sizeof(text), "nc:things:%s", key);
    return near_key(text);
}

struct bytes {
    uint8_t data[200000];
    size_t  size;
};

static void
note(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct bytes *bytes = ctx;

    (void)item;
    assert_in_range(stored.size, 0, sizeof(bytes->data));
    bytes->size = stored.size;
    if (stored.size > 0)
        memcpy(bytes->data, stored.data, stored.size);
}

/* False: there is nothing. */
static bool
look(struct back *back, const char *key, struct bytes *bytes)
{
    struct near_l2_item item = { .key = wire_key(key), .plain = true };

    back->ops->get_many(back->self, &item, 1, note, bytes, soon());
    assert_true(item.answer == NEAR_L2_DONE || item.answer == NEAR_L2_ABSENT);
    return item.answer == NEAR_L2_DONE;
}

static void
plant(struct back *back, const char *key, const void *data, size_t size)
{
    struct near_l2_item item = { .key = wire_key(key), .value = { data, size } };

    back->ops->set_many(back->self, NEAR_L2_ALWAYS, &item, 1, NULL, soon());
    assert_int_equal(item.answer, NEAR_L2_DONE);
}

static bool
lies_as(struct back *back, const char *key, const char *text)
{
    static struct bytes bytes;

    return look(back, key, &bytes) && bytes.size == strlen(text) && memcmp(bytes.data, text, bytes.size) == 0;
}

static void
reseal(uint8_t *bytes, size_t size)
{
    near__le64_put(bytes + 56,
                   near__hash_fixed2((near_bytes){ bytes, 56 }, (near_bytes){ bytes + 64, size - 64 }));
}

/* ---- compression */

static char text_[100000];

static near_bytes
some_text(size_t size)
{
    for (size_t i = 0; i < sizeof(text_); i++)
        text_[i] = "it was the best of times, it was the worst of times; "[i * 7 / 5 % 53];
    return (near_bytes){ text_, size };
}

static near_bytes
some_noise(size_t size, uint64_t random)
{
    for (size_t i = 0; i < size; i++)
        text_[i] = (char)test_random(&random);
    return (near_bytes){ text_, size };
}

static void
assert_get(near_cache *cache, const char *key, near_bytes expected)
{
    near_value *value = NULL;
    near_bytes  bytes;

    assert_int_equal(near_get(cache, near_key(key), &value), NEAR_OK);
    bytes = near_value_bytes(value);
    assert_int_equal(bytes.size, expected.size);
    if (expected.size > 0)
        assert_memory_equal(bytes.data, expected.data, expected.size);
    near_value_release(value);
}

static near_status
get_status(near_cache *cache, const char *key)
{
    near_value *value;
    near_status status = near_get(cache, near_key(key), &value);

    near_value_release(value);
    return status;
}

static const char *const kinds[] = { "lz4", "zstd", "auto" };

static bool
has(const char *kind)
{
    if (strcmp(kind, "auto") == 0)
        return near__codec_fastest() != NEAR__CODEC_NONE;
    return near__codec_is_built(kind[0] == 'l' ? NEAR__CODEC_LZ4 : NEAR__CODEC_ZSTD);
}

#define OPEN_PACKING(w, in, kind, ...)                                                                       \
    OPEN(w, in, "l1.max_bytes", "0", "l2.compression", kind __VA_OPT__(, ) __VA_ARGS__)

static void
test_compressed_values_take_less_room_and_are_read_by_all(void **state)
{
    static struct bytes bytes;
    struct world       *w = *state;
    struct instance     packs, plain;
    struct back         back;
    near_bytes          text = some_text(100000);

    NEEDS(w);
    back_open(&back, w);
    OPEN(w, &plain, "l1.max_bytes", "0");
    assert_int_equal(near_put(plain.cache, near_key("raw"), text, NULL), NEAR_OK);
    assert_true(look(&back, "raw", &bytes));
    assert_int_equal(bytes.size, 64 + 3 + 100000); /* the control */
    for (size_t i = 0; i < NEAR_COUNT_OF(kinds); i++) {
        near_stats stats;

        if (!has(kinds[i]))
            continue;
        OPEN_PACKING(w, &packs, kinds[i]);
        assert_int_equal(near_put(packs.cache, near_key(kinds[i]), text, NULL), NEAR_OK);
        assert_true(look(&back, kinds[i], &bytes));
        assert_in_range(bytes.size, 65, 20000);
        stats = stats_of(&packs);
        assert_int_equal(stats.l2_compressed, 1);
        assert_int_equal(stats.l2_compress_saved, 64 + strlen(kinds[i]) + 100000 - bytes.size);
        assert_get(plain.cache, kinds[i], text);
        assert_get(packs.cache, "raw", text);
        close_instance(&packs);
    }
    assert_int_equal(stats_of(&plain).l2_compress_tries, 0);
    close_instance(&plain);
    back_close(&back);
}

static void
test_the_threshold_and_loaded_values(void **state)
{
    static struct bytes bytes;
    struct world       *w = *state;
    struct instance     in;
    struct back         back;

    NEEDS(w);
    back_open(&back, w);
    OPEN_PACKING(w, &in, "auto", "l2.compression_threshold", "3000");
    if (in.cache->codec == NEAR__CODEC_NONE)
        skip();
    assert_int_equal(near_put(in.cache, near_key("below"), some_text(2999), NULL), NEAR_OK);
    assert_int_equal(near_put(in.cache, near_key("at"), some_text(3000), NULL), NEAR_OK);
    assert_true(look(&back, "below", &bytes));
    assert_int_equal(bytes.size, 64 + 5 + 2999);
    assert_true(look(&back, "at", &bytes));
    assert_in_range(bytes.size, 65, 1500);
    assert_int_equal(stats_of(&in).l2_compress_tries, 1);
    close_instance(&in);
    back_close(&back);
}

static void
load_text(near_load *loads[], size_t n, void *ctx)
{
    (*(_Atomic unsigned *)ctx)++;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], some_text(50000));
}

static void
test_what_is_loaded_is_compressed_too_and_expires_as_it_lies(void **state)
{
    static struct bytes bytes;
    struct world       *w = *state;
    struct instance     in;
    struct back         back;
    _Atomic unsigned    loads = 0;
    near_value         *value;

    NEEDS(w);
    back_open(&back, w);
    OPEN_PACKING(w, &in, "auto", "grace", "1h", "loader.soft_timeout", "10s");
    if (in.cache->codec == NEAR__CODEC_NONE)
        skip();
    near_cache_set_loader(in.cache, load_text, &loads);
    assert_int_equal(near_fetch(in.cache, near_key("k"), NULL, &value), NEAR_OK);
    near_value_release(value);
    assert_true(look(&back, "k", &bytes));
    assert_in_range(bytes.size, 65, 10000);
    assert_get(in.cache, "k", some_text(50000));
    /* declared stale it stays compressed, and is what a fetch falls back on */
    assert_int_equal(near_expire(in.cache, near_key("k")), NEAR_OK);
    assert_int_equal(get_status(in.cache, "k"), NEAR_MISS);
    assert_true(look(&back, "k", &bytes));
    assert_in_range(bytes.size, 65, 10000);
    assert_true(bytes.data[5] & NEAR__ENVELOPE_COMPRESSED);
    assert_int_equal(near_fetch(in.cache, near_key("k"), NULL, &value), NEAR_OK);
    near_value_release(value);
    assert_int_equal(loads, 2);
    assert_get(in.cache, "k", some_text(50000));
    close_instance(&in);
    back_close(&back);
}

/* What does not shrink stops being tried; when it does again, that is found out. */
static void
test_a_cache_learns_whether_it_helps(void **state)
{
    static struct bytes bytes;
    struct world       *w = *state;
    struct instance     in;
    struct back         back;
    near_stats          stats;
    uint64_t            tries;

    NEEDS(w);
    back_open(&back, w);
    OPEN_PACKING(w, &in, "auto");
    if (in.cache->codec == NEAR__CODEC_NONE)
        skip();
    for (unsigned i = 0; i < 500; i++)
        assert_int_equal(near_put(in.cache, near_key("noise"), some_noise(5000, i), NULL), NEAR_OK);
    assert_true(look(&back, "noise", &bytes));
    assert_int_equal(bytes.size, 64 + 5 + 5000); /* as it is */
    stats = stats_of(&in);
    assert_in_range(stats.l2_compress_tries, 18, 18 + 500 / 64 + 1);
    assert_int_equal(stats.l2_compressed, 0);
    /* another size is another matter */
    assert_int_equal(near_put(in.cache, near_key("large"), some_text(50000), NULL), NEAR_OK);
    assert_int_equal(stats_of(&in).l2_compressed, 1);
    for (unsigned i = 0; i < 2 * 64; i++)
        assert_int_equal(near_put(in.cache, near_key("text"), some_text(5000), NULL), NEAR_OK);
    tries = stats_of(&in).l2_compress_tries;
    for (unsigned i = 0; i < 50; i++)
        assert_int_equal(near_put(in.cache, near_key("text"), some_text(5000), NULL), NEAR_OK);
    assert_int_equal(stats_of(&in).l2_compress_tries, tries + 50);
    close_instance(&in);
    back_close(&back);
}

/* A program built without the algorithm: a miss, counted; its own load replaces the entry, and all can read that. */
static void
test_a_build_without_the_algorithm_takes_it_for_a_miss(void **state)
{
    struct world    *w = *state;
    struct instance  packs, lacks;
    struct back      back;
    near_config     *config = near_config_new();
    near_client     *client;
    near_error       error;
    _Atomic unsigned loads = 0;
    near_value      *value;

    NEEDS(w);
    back_open(&back, w);
    OPEN_PACKING(w, &packs, "auto");
    OPEN(w, &lacks, "l1.max_bytes", "0");
    if (packs.cache->codec == NEAR__CODEC_NONE)
        skip();
    near_cache_set_loader(lacks.cache, load_text, &loads);
    assert_int_equal(near_put(packs.cache, near_key("k"), some_text(50000), NULL), NEAR_OK);
    missing = (int)packs.cache->codec;
    assert_int_equal(get_status(lacks.cache, "k"), NEAR_MISS);
    assert_int_equal(stats_of(&lacks).l2_unreadable, 1);
    assert_int_equal(stats_of(&lacks).l2_corrupt, 0);
    assert_int_equal(near_fetch(lacks.cache, near_key("k"), NULL, &value), NEAR_OK);
    near_value_release(value);
    assert_int_equal(loads, 1);
    assert_get(lacks.cache, "k", some_text(50000));
    /* and asking for it is refused with what there is */
    assert_int_equal(
        near_config_set(config, "l2.compression", missing == NEAR__CODEC_LZ4 ? "lz4" : "zstd", NULL),
        NEAR_OK);
    assert_int_equal(near_client_open(config, &client, &error), NEAR_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.text, "this build has none; it has"));
    near_config_free(config);
    missing = -1;
    assert_get(packs.cache, "k", some_text(50000)); /* the control: with it, all is well */
    close_instance(&packs);
    close_instance(&lacks);
    back_close(&back);
}

/* G0: no bit and no byte of a stored value can be lost without its being a miss. */
static void
test_G0_every_truncation_and_bit_flip_of_a_compressed_value_is_a_miss(void **state)
{
    static struct bytes bytes, spoilt;
    struct world       *w = *state;

    NEEDS(w);
    for (size_t k = 0; k < 2; k++) {
        near_bytes      text = some_text(1500);
        struct instance in;
        struct back     back;

        if (!has(kinds[k]))
            continue;
        back_open(&back, w);
        OPEN_PACKING(w, &in, kinds[k]);
        assert_int_equal(near_put(in.cache, near_key("k"), text, NULL), NEAR_OK);
        assert_true(look(&back, "k", &bytes));
        assert_true(bytes.data[5] & NEAR__ENVELOPE_COMPRESSED);
        for (size_t cut = 0; cut < bytes.size; cut++) {
            plant(&back, "k", bytes.data, cut);
            assert_int_equal(get_status(in.cache, "k"), NEAR_MISS);
        }
        for (size_t bit = 0; bit < bytes.size * 8; bit++) {
            spoilt = bytes;
            spoilt.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            plant(&back, "k", spoilt.data, spoilt.size);
            assert_int_equal(get_status(in.cache, "k"), NEAR_MISS);
        }
        plant(&back, "k", bytes.data, bytes.size);
        assert_get(in.cache, "k", text);
        close_instance(&in);
        back_close(&back);
    }
}

/* ---- bombs (rules Z1, Z2): entries with a right checksum that would become much more than they say, or than anybody should hold */

static size_t
resident(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    long  all = 0, in = 0;

    assert_non_null(file);
    assert_int_equal(fscanf(file, "%ld %ld", &all, &in), 2);
    fclose(file);
    return (size_t)in * (size_t)sysconf(_SC_PAGESIZE);
}

static size_t
bomb_around(uint8_t *out, uint64_t generation, unsigned flags, uint32_t raw, const void *payload, size_t size)
{
    struct near__envelope e = { .flags      = flags,
                                .stamp      = 77,
                                .generation = generation,
                                .key        = near_key("bomb"),
                                .payload    = { payload, size },
                                .raw_size   = raw };

    near__envelope_encode(&e, out);
    near__le32_put(out + 40, raw);
    reseal(out, near__envelope_size(&e));
    return near__envelope_size(&e);
}

/* A zstd frame by hand: `says` bytes of content, in as many blocks of 128 KiB of one repeated byte as fit into 1 KiB. */
static size_t
zstd_bomb(uint8_t *out, uint64_t says, bool single)
{
    size_t n = 0;

    memcpy(out, "\x28\xB5\x2F\xFD", 4);
    n        = 4;
    out[n++] = single ? 0xE0 : 0xC0; /* eight bytes of size */
    if (!single)
        out[n++] = 7 << 3; /* a window of 128 KiB */
    near__le64_put(out + n, says);
    n += 8;
    while (n + 4 <= 1024) {
        uint32_t head = 1u << 1 | 131072u << 3 | (n + 8 > 1024);

        out[n++] = (uint8_t)head;
        out[n++] = (uint8_t)(head >> 8);
        out[n++] = (uint8_t)(head >> 16);
        out[n++] = 'x';
    }
    return n;
}

/* An lz4 block: one byte, then matches of it as long as 1 KiB can say. */
static size_t
lz4_bomb(uint8_t *out)
{
    memset(out, 0xFF, 1024);
    out[0]    = 0x1F;
    out[1]    = 'x';
    out[2]    = 1;
    out[3]    = 0;
    out[1018] = 0;
    out[1019] = 0x50;
    memcpy(out + 1020, "xxxxx", 4);
    return 1024;
}

static void
test_bombs_take_no_memory(void **state)
{
    static struct bytes bytes;
    static uint8_t      payload[2048], entry[4096];
    static const struct {
        unsigned flags;
        uint64_t says; /* the frame */
        uint32_t raw;  /* the envelope */
    } bombs[] = {
        { NEAR__ENVELOPE_ZSTD, 1 << 30, 1 << 30 },    { NEAR__ENVELOPE_ZSTD, 1 << 30, 1 << 20 },
        { NEAR__ENVELOPE_ZSTD, 1 << 20, 1 << 20 },    { NEAR__ENVELOPE_ZSTD, 1 << 20, 1 << 19 },
        { NEAR__ENVELOPE_ZSTD, UINT64_MAX, 1 << 20 }, { NEAR__ENVELOPE_ZSTD, 0, 1 << 20 },
        { NEAR__ENVELOPE_ZSTD, 1 << 30, UINT32_MAX }, { NEAR__ENVELOPE_LZ4, 0, 1 << 30 },
        { NEAR__ENVELOPE_LZ4, 0, 1 << 20 },           { NEAR__ENVELOPE_LZ4, 0, 200000 },
        { NEAR__ENVELOPE_LZ4, 0, UINT32_MAX },
    };
    struct world   *w = *state;
    struct instance in;
    struct back     back;
    size_t          before, most = 0;
    near_bytes      text = some_text(2000);

    NEEDS(w);
    back_open(&back, w);
    OPEN_PACKING(w, &in, "auto");
    assert_int_equal(near_put(in.cache, near_key("bomb"), text, NULL), NEAR_OK);
    assert_true(look(&back, "bomb", &bytes));
    assert_get(in.cache, "bomb", text);
    before = resident();
    for (size_t round = 0; round < 200; round++) {
        size_t     i     = round % NEAR_COUNT_OF(bombs);
        size_t     size  = bombs[i].flags == NEAR__ENVELOPE_ZSTD
                               ? zstd_bomb(payload, bombs[i].says, round % 2 == 0)
                               : lz4_bomb(payload);
        near_stats stats = stats_of(&in);

        size =
            bomb_around(entry, near__le64_get(bytes.data + 48), bombs[i].flags, bombs[i].raw, payload, size);
        plant(&back, "bomb", entry, size);
        assert_int_equal(get_status(in.cache, "bomb"), NEAR_MISS);
        assert_int_equal(stats_of(&in).l2_corrupt + stats_of(&in).l2_unreadable,
                         stats.l2_corrupt + stats.l2_unreadable + 1);
        if (resident() > before && resident() - before > most)
            most = resident() - before;
    }
    /* a value of the largest size that may be, and what the allocator keeps of it */
    assert_in_range(most, 0, test_slack() > 1 ? 256 << 20 : 4 << 20);
    close_instance(&in);
    back_close(&back);
}

/* The control for the above: bytes of the same making that are no bombs are taken. */
static void
test_a_frame_by_hand_that_says_the_truth_is_read(void **state)
{
#ifdef NEAR_HAVE_ZSTD
    static struct bytes bytes;
    static uint8_t      payload[2048], entry[4096];
    struct world       *w = *state;
    struct instance     in;
    struct back         back;
    near_value         *value;
    size_t              n = 0, size;

    NEEDS(w);
    back_open(&back, w);
    OPEN(w, &in, "l1.max_bytes", "0", "l2.max_value", "64MiB");
    assert_int_equal(near_put(in.cache, near_key("bomb"), near_key("v"), NULL), NEAR_OK);
    assert_true(look(&back, "bomb", &bytes));
    size = zstd_bomb(payload, 0, true);
    n    = (size - 13) / 4 * 131072;
    zstd_bomb(payload, n, true);
    size =
        bomb_around(entry, near__le64_get(bytes.data + 48), NEAR__ENVELOPE_ZSTD, (uint32_t)n, payload, size);
    plant(&back, "bomb", entry, size);
    assert_int_equal(near_get(in.cache, near_key("bomb"), &value), NEAR_OK);
    assert_int_equal(near_value_bytes(value).size, n);
    assert_int_equal(((const char *)near_value_bytes(value).data)[n - 1], 'x');
    near_value_release(value);
    close_instance(&in);
    /* and by an instance that takes less it is not */
    OPEN(w, &in, "l1.max_bytes", "0");
    assert_int_equal(get_status(in.cache, "bomb"), NEAR_MISS);
    assert_int_equal(stats_of(&in).l2_corrupt, 1);
    close_instance(&in);
    back_close(&back);
#else
    (void)state;
    skip();
#endif
}

struct crowd {
    near_cache      *cache;
    _Atomic int      wrong;
    _Atomic unsigned next;
};

static void *
put_and_get(void *arg)
{
    struct crowd *crowd  = arg;
    unsigned      me     = crowd->next++;
    uint64_t      random = me;
    char          key[20], *text = malloc(40000);

    snprintf(key, sizeof(key), "k%u", me);
    for (size_t round = 0; round < test_scale(200); round++) {
        size_t      size = 1000 + test_random(&random) % 39000;
        near_value *value;

        memset(text, 'a' + (int)me, size);
        if (near_put(crowd->cache, near_key(key), (near_bytes){ text, size }, NULL) != NEAR_OK ||
            near_get(crowd->cache, near_key(key), &value) != NEAR_OK) {
            crowd->wrong++;
            continue;
        }
        if (near_value_bytes(value).size != size || memcmp(near_value_bytes(value).data, text, size) != 0)
            crowd->wrong++;
        near_value_release(value);
    }
    free(text);
    return NULL;
}

/* More threads than there are slots for contexts. */
static void
test_threads_share_contexts(void **state)
{
    struct world   *w = *state;
    pthread_t       threads[8];
    struct instance in;

    NEEDS(w);
    for (size_t k = 0; k < 2; k++) {
        struct crowd crowd = { .wrong = 0 };

        if (!has(kinds[k]))
            continue;
        OPEN_PACKING(w, &in, kinds[k]);
        crowd.cache = in.cache;
        for (size_t i = 0; i < NEAR_COUNT_OF(threads); i++)
            assert_int_equal(pthread_create(&threads[i], NULL, put_and_get, &crowd), 0);
        for (size_t i = 0; i < NEAR_COUNT_OF(threads); i++)
            pthread_join(threads[i], NULL);
        assert_int_equal(crowd.wrong, 0);
        close_instance(&in);
    }
}

/* ---- l2.envelope = none */

#define OPEN_BARE(w, in, ...) OPEN(w, in, "l2.envelope", "none" __VA_OPT__(, ) __VA_ARGS__)

static void
test_bare_values_lie_as_they_are_both_ways(void **state)
{
    static struct bytes bytes;
    struct world       *w = *state;
    struct instance     in, other;
    struct back         back;

    NEEDS(w);
    back_open(&back, w);
    OPEN_BARE(w, &in);
    OPEN_BARE(w, &other, "l1.max_bytes", "0");
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("hello"), NULL), NEAR_OK);
    assert_true(lies_as(&back, "k", "hello"));
    assert_get(other.cache, "k", near_key("hello"));
    plant(&back, "k2", "from outside", 12);
    assert_get(in.cache, "k2", near_key("from outside"));
    plant(&back, "empty", "", 0);
    assert_get(in.cache, "empty", (near_bytes){ NULL, 0 });
    assert_int_equal(near_put(in.cache, near_key("zeros"), (near_bytes){ "\0\r\n\xff", 4 }, NULL), NEAR_OK);
    assert_true(look(&back, "zeros", &bytes));
    assert_int_equal(bytes.size, 4);
    assert_get(other.cache, "zeros", (near_bytes){ "\0\r\n\xff", 4 });
    assert_int_equal(near_remove(in.cache, near_key("k")), NEAR_OK);
    assert_false(look(&back, "k", &bytes));
    assert_int_equal(get_status(other.cache, "k"), NEAR_MISS);
    assert_int_equal(stats_of(&in).l2_corrupt, 0);
    close_instance(&in);
    close_instance(&other);
    back_close(&back);
}

/* The servers' own words, as redis-cli or another memcached client has them. */
static void
test_bare_values_are_what_other_programs_see(void **state)
{
    struct world   *w = *state;
    struct instance in;
    char            out[300];
    near_value     *value;
    struct store    store = STORE(.mode = ANSWER);
    near_config    *mine  = near_config_new();
    near_cache     *users;

    NEEDS(w);
    OPEN_BARE(w, &in, "l2.key_prefix", "", "l1.max_bytes", "0");
    /* prefix and name chosen so that keys are the other program's own: user:42 */
    assert_int_equal(near_config_set(mine, "ttl", "100s", NULL), NEAR_OK);
    assert_int_equal(near_cache_open(in.client, "user", mine, &users, NULL), NEAR_OK);
    near_cache_set_loader(users, load_from_store, &store);
    assert_int_equal(near_put(users, near_key("42"), near_key("Ada"), NULL), NEAR_OK);
    if (w->redis != NULL && w->memcached == NULL) {
        assert_true(test_redis_command(w->redis, out, sizeof(out), 2, (const char *[]){ "GET", "user:42" }));
        assert_string_equal(out, "Ada");
        assert_true(
            test_redis_command(w->redis, out, sizeof(out), 3, (const char *[]){ "SET", "user:43", "Bob" }));
    } else {
        assert_true(test_memcached_command(w->memcached, out, sizeof(out), "get user:42"));
        assert_non_null(strstr(out, "VALUE user:42 0 3"));
        assert_non_null(strstr(out, "Ada"));
        assert_true(test_memcached_command(w->memcached, out, sizeof(out), "set user:43 5 0 3\r\nBob"));
    }
    assert_get(users, "43", near_key("Bob"));
    /* what is loaded is there for them, too, for its TTL */
    assert_int_equal(near_fetch(users, near_key("44"), NULL, &value), NEAR_OK);
    near_value_release(value);
    if (w->redis != NULL && w->memcached == NULL) {
        assert_true(test_redis_command(w->redis, out, sizeof(out), 2, (const char *[]){ "GET", "user:44" }));
        assert_string_equal(out, "v1");
        assert_true(test_redis_command(w->redis, out, sizeof(out), 2, (const char *[]){ "TTL", "user:44" }));
        assert_in_range(atoi(out), 60, 100);
        assert_true(test_redis_command(w->redis, out, sizeof(out), 2, (const char *[]){ "KEYS", "user*" }));
        assert_null(strstr(out, "!")); /* the lease has gone */
        /* another type of key is an error of that key's, no value */
        assert_true(
            test_redis_command(w->redis, out, sizeof(out), 3, (const char *[]){ "LPUSH", "user:45", "x" }));
        assert_true(get_status(users, "45") < 0);
    } else {
        assert_true(test_memcached_command(w->memcached, out, sizeof(out), "get user:44"));
        assert_non_null(strstr(out, "v1"));
    }
    near_config_free(mine);
    close_instance(&in);
}

/* What another program writes is seen when L1's own bound is over, bus or no bus. */
static void
test_bare_L1_is_bounded_by_a_second(void **state)
{
    struct world   *w = *state;
    struct instance in;
    struct back     back;
    near_config    *config = near_config_new();
    near_cache     *cache;

    NEEDS(w);
    back_open(&back, w);
    OPEN_BARE(w, &in);
    assert_int_equal(near_config_set(config, "l2.envelope", "none", NULL), NEAR_OK);
    near_cache_close(in.cache);
    assert_int_equal(near_cache_open(in.client, "things", config, &cache, NULL), NEAR_OK);
    assert_int_equal(cache->max_ttl, 60 * NEAR__SEC); /* world.h says so; the default: */
    near_config_free(config);
    close_instance(&in);
    config = near_config_new();
    assert_int_equal(near_config_set(config, "l2.uri", w->l2, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "coherence.uri", w->bus, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.timeout", "2s", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.envelope", "none", NULL), NEAR_OK);
    assert_int_equal(near_client_open(config, &in.client, NULL), NEAR_OK);
    assert_int_equal(near_cache_open(in.client, "things", NULL, &in.cache, NULL), NEAR_OK);
    assert_int_equal(in.cache->max_ttl, NEAR__SEC);
    near_config_free(config);
    plant(&back, "k", "old", 3);
    assert_get(in.cache, "k", near_key("old"));
    plant(&back, "k", "new", 3);
    await_get(in.cache, "k", "new");
    close_instance(&in);
    back_close(&back);
}

static void *
fetch_k(void *arg)
{
    near_cache *cache = arg;
    near_value *value;

    if (near_fetch(cache, near_key("k"), NULL, &value) != NEAR_OK)
        return NULL;
    near_value_release(value);
    return arg;
}

/* G8: the lease lies beside; one loads, the other waits for its fill. */
static void
test_G8_bare_one_load_over_all_instances(void **state)
{
    struct world   *w = *state;
    struct instance a, b;
    struct back     back;
    struct store    store = STORE(.mode = HOLD), other = STORE(.mode = ANSWER);
    pthread_t       first, second;
    void           *result;

    NEEDS(w);
    back_open(&back, w);
    OPEN_BARE(w, &a);
    OPEN_BARE(w, &b);
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &other);
    assert_int_equal(pthread_create(&first, NULL, fetch_k, a.cache), 0);
    await_held(&store, 1);
    assert_int_equal(pthread_create(&second, NULL, fetch_k, b.cache), 0);
    sleep_ms(50);
    assert_false(lies_as(&back, "k", "v1"));
    answer_version(store.held[0], 1);
    pthread_join(first, &result);
    assert_non_null(result);
    pthread_join(second, &result);
    assert_non_null(result);
    assert_int_equal(other.calls, 0);
    assert_true(lies_as(&back, "k", "v1"));
    assert_int_equal(stats_of(&a).leases_won, 1);
    close_instance(&a);
    close_instance(&b);
    back_close(&back);
}

enum meanwhile { REMOVE, PUT, FOREIGN_SET, PUT_AND_REMOVE };

/* A load that is under way while something happens to its key; then it is answered.  What L2 has in the end. */
static void
load_beside(struct world *w, enum meanwhile what, const char *expected)
{
    static struct bytes bytes;
    struct instance     a, b;
    struct back         back;
    struct store        store = STORE(.mode = HOLD);
    struct near_l2_item item  = { .key = wire_key("k") };
    pthread_t           thread;

    back_open(&back, w);
    OPEN_BARE(w, &a);
    OPEN_BARE(w, &b);
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_int_equal(pthread_create(&thread, NULL, fetch_k, a.cache), 0);
    await_held(&store, 1);
    if (what == PUT || what == PUT_AND_REMOVE)
        assert_int_equal(near_put(b.cache, near_key("k"), near_key("newer"), NULL), NEAR_OK);
    if (what == REMOVE || what == PUT_AND_REMOVE)
        assert_int_equal(near_remove(b.cache, near_key("k")), NEAR_OK);
    if (what == FOREIGN_SET)
        plant(&back, "k", "foreign", 7);
    answer_version(store.held[0], 1);
    pthread_join(thread, NULL);
    if (expected == NULL)
        assert_false(look(&back, "k", &bytes));
    else
        assert_true(lies_as(&back, "k", expected));
    if (expected == NULL || strcmp(expected, "v1") != 0)
        assert_int_equal(stats_of(&a).l2_fills_refused, 1);
    close_instance(&a);
    close_instance(&b);
    back.ops->remove_many(back.self, NEAR_L2_ALWAYS, &item, 1, NULL, soon());
    back_close(&back);
}

static void
test_bare_slow_fills_do_not_undo_writes(void **state)
{
    struct world *w = *state;

    NEEDS(w);
    load_beside(w, PUT, "newer");
    load_beside(w, FOREIGN_SET, "foreign");
    load_beside(w, REMOVE, NULL);
    load_beside(w, PUT_AND_REMOVE, NULL);
    /* the control: removals that void no lease leave the old value behind */
    careless = true;
    load_beside(w, REMOVE, "v1");
    careless = false;
}

/* That a thing does not exist cannot be written down; this process remembers it. */
static void
test_bare_absences_stay_in_the_process(void **state)
{
    static struct bytes bytes;
    struct world       *w = *state;
    struct instance     in;
    struct back         back;
    struct store        store = STORE(.mode = NOT_FOUND);

    NEEDS(w);
    back_open(&back, w);
    OPEN_BARE(w, &in);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_fetch(in.cache, "k", "[2]");
    assert_fetch(in.cache, "k", "[2]");
    assert_int_equal(store.calls, 1);
    assert_false(look(&back, "k", &bytes));
    plant(&back, "k", "created", 7);
    assert_int_equal(near_remove(in.cache, near_key("other")), NEAR_OK);
    close_instance(&in);
    OPEN_BARE(w, &in);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_fetch(in.cache, "k", "created");
    close_instance(&in);
    back_close(&back);
}

static void
test_bare_what_is_turned_off_says_so(void **state)
{
    static struct bytes bytes;
    struct world       *w = *state;
    struct instance     in;
    struct back         back;

    NEEDS(w);
    back_open(&back, w);
    OPEN_BARE(w, &in, "grace", "1h");
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    assert_int_equal(near_clear(in.cache), NEAR_ERR_UNSUPPORTED);
    assert_get(in.cache, "k", near_key("v"));
    assert_int_equal(near_expire(in.cache, near_key("k")), NEAR_OK);
    assert_false(look(&back, "k", &bytes));
    assert_int_equal(get_status(in.cache, "k"), NEAR_MISS);
    close_instance(&in);
    back_close(&back);
}

/* An entry cannot say which key it is of: so a key that the server does not take is refused, not hashed. */
static void
test_bare_keys_the_server_cannot_take_are_refused(void **state)
{
    struct world   *w = *state;
    struct instance in;
    char            longer[300];
    near_bytes      keys[3]   = { { "a b", 3 }, { longer, 299 }, { "good", 4 } };
    near_bytes      values[3] = { { "v", 1 }, { "v", 1 }, { "v", 1 } };
    near_value     *found[3];
    near_status     statuses[3];
    struct store    store = STORE(.mode = ANSWER);

    NEEDS(w);
    memset(longer, 'x', sizeof(longer));
    OPEN_BARE(w, &in);
    near_cache_set_loader(in.cache, load_from_store, &store);
    if (w->memcached == NULL) { /* the others take anything */
        assert_int_equal(near_put_many(in.cache, keys, values, 3, NULL, statuses), NEAR_OK);
        close_instance(&in);
        return;
    }
    assert_int_equal(near_put_many(in.cache, keys, values, 3, NULL, statuses), NEAR_ERR_INVALID);
    assert_int_equal(statuses[0], NEAR_ERR_INVALID);
    assert_int_equal(statuses[1], NEAR_ERR_INVALID);
    assert_int_equal(statuses[2], NEAR_OK);
    assert_int_equal(near_get_many(in.cache, keys, 3, found, statuses), NEAR_ERR_INVALID);
    assert_int_equal(statuses[0], NEAR_ERR_INVALID);
    assert_int_equal(statuses[2], NEAR_OK);
    near_value_release(found[2]);
    assert_int_equal(near_fetch_many(in.cache, keys, 3, NULL, found, statuses), NEAR_ERR_INVALID);
    near_value_release(found[2]);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(near_get(in.cache, keys[i], &found[0]), NEAR_ERR_INVALID);
        assert_int_equal(near_fetch(in.cache, keys[i], NULL, &found[0]), NEAR_ERR_INVALID);
        assert_int_equal(near_put(in.cache, keys[i], values[i], NULL), NEAR_ERR_INVALID);
        assert_int_equal(near_remove(in.cache, keys[i]), NEAR_ERR_INVALID);
        assert_int_equal(near_expire(in.cache, keys[i]), NEAR_ERR_INVALID);
    }
    assert_int_equal(store.calls, 0);
    close_instance(&in);
}

/* Two instances that do not agree: neither hands out the other's bytes for what they are not. */
static void
test_G0_bare_and_full_do_not_mix_silently(void **state)
{
    struct world   *w = *state;
    struct instance full, bare;
    struct back     back;
    struct store    store = STORE(.mode = ANSWER);

    NEEDS(w);
    back_open(&back, w);
    OPEN(w, &full, "l1.max_bytes", "0");
    OPEN_BARE(w, &bare, "l1.max_bytes", "0");
    near_cache_set_loader(bare.cache, load_from_store, &store);
    near_cache_set_loader(full.cache, load_from_store, &store);
    assert_int_equal(near_put(full.cache, near_key("k"), near_key("wrapped"), NULL), NEAR_OK);
    assert_int_equal(get_status(bare.cache, "k"), NEAR_MISS);
    assert_int_equal(stats_of(&bare).l2_corrupt, 1);
    assert_fetch(bare.cache, "k", "v1");
    assert_true(lies_as(&back, "k", "v1"));
    assert_int_equal(get_status(full.cache, "k"), NEAR_MISS);
    /* memcached has no mark of ours on it: not there at all */
    assert_int_equal(stats_of(&full).l2_corrupt, w->memcached == NULL ? 1 : 0);
    assert_fetch(full.cache, "k", "v1");
    assert_get(full.cache, "k", near_key("v1"));
    close_instance(&full);
    close_instance(&bare);
    back_close(&back);
}

static void
test_settings_that_contradict_each_other_are_refused(void **state)
{
    static const struct {
        const char *name, *value, *said;
    } rows[] = {
        { "l2.compression", "lz4", "l2.compression = lz4 with l2.envelope = none: accepts none" },
        { "l2.compression", "zstd", "l2.compression = zstd with l2.envelope = none: accepts none" },
        { "l1.max_ttl", "0", "l1.max_ttl = 0 with l2.envelope = none" },
    };
    near_error error;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        near_config *config = near_config_new();
        near_client *client;

        if (i < 2 && !has(rows[i].value)) {
            near_config_free(config);
            continue;
        }
        assert_int_equal(near_config_set(config, rows[i].name, rows[i].value, NULL), NEAR_OK);
        assert_int_equal(near_client_open(config, &client, NULL), NEAR_OK); /* the control: alone it may */
        near_client_close(client, NULL);
        assert_int_equal(near_config_set(config, "l2.envelope", "none", NULL), NEAR_OK);
        assert_int_equal(near_client_open(config, &client, &error), NEAR_ERR_INVALID);
        if (strstr(error.text, rows[i].said) == NULL)
            fail_msg("%s", error.text);
        near_config_free(config);
    }
}

#define OVER_ALL(test) OVER(memory, test), OVER(redis, test), OVER(both, test), OVER(memcached, test)

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        OVER_ALL(test_compressed_values_take_less_room_and_are_read_by_all),
        OVER(memory, test_the_threshold_and_loaded_values),
        OVER_ALL(test_what_is_loaded_is_compressed_too_and_expires_as_it_lies),
        OVER(memory, test_a_cache_learns_whether_it_helps),
        OVER(memory, test_a_build_without_the_algorithm_takes_it_for_a_miss),
        OVER(redis, test_a_build_without_the_algorithm_takes_it_for_a_miss),
        OVER(memory, test_G0_every_truncation_and_bit_flip_of_a_compressed_value_is_a_miss),
        OVER(memory, test_bombs_take_no_memory),
        OVER(redis, test_bombs_take_no_memory),
        OVER(memory, test_a_frame_by_hand_that_says_the_truth_is_read),
        OVER(memory, test_threads_share_contexts),
        OVER_ALL(test_bare_values_lie_as_they_are_both_ways),
        OVER(redis, test_bare_values_are_what_other_programs_see),
        OVER(both, test_bare_values_are_what_other_programs_see),
        OVER(memcached, test_bare_values_are_what_other_programs_see),
        OVER(redis, test_bare_L1_is_bounded_by_a_second),
        OVER_ALL(test_G8_bare_one_load_over_all_instances),
        OVER_ALL(test_bare_slow_fills_do_not_undo_writes),
        OVER_ALL(test_bare_absences_stay_in_the_process),
        OVER_ALL(test_bare_what_is_turned_off_says_so),
        OVER_ALL(test_bare_keys_the_server_cannot_take_are_refused),
        OVER_ALL(test_G0_bare_and_full_do_not_mix_silently),
        cmocka_unit_test(test_settings_that_contradict_each_other_are_refused),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
