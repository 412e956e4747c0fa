/*
 * Dictionaries in L2: small values take less room with one, whoever reads fetches it once by its id, one that is gone makes a miss, and
 * whatever lies in its place is refused.  The control: the same values without.
 */
#include "world.h"

#include <sys/stat.h>
#include <unistd.h>

#include "client.h"
#include "generation.h"
#include "l2/dictionary.h"
#include "tier.h"

#ifdef NEAR_HAVE_ZSTD
#include <unistd.h>
#include <zdict.h>
#include <zstd.h>

WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(memcached, TIER_MEMCACHED)

#define QUICK "l2.dictionary_refresh", "100ms"

/* ---- samples: what a service keeps of a user, some two hundred bytes */

static near_bytes
json(char text[512], uint64_t i)
{
    static const char *const cities[] = { "Lisbon", "Osaka", "Nairobi", "Lima", "Oslo" };
    uint64_t                 r        = i * 77 + 3;
    int                      size     = snprintf(
                                 text, 512,
                                 "{\"user_id\":%llu,\"features\":{\"orders_7d\":%u,\"orders_30d\":%u,\"avg_basket\":%u.%02u,"
                                                          "\"last_seen\":\"2026-%02u-%02uT%02u:%02u:00Z\",\"city\":\"%s\",\"is_subscriber\":%s},"
                                                          "\"model_version\":\"v%u\"}",
                                 (unsigned long long)test_random(&r) % 100000000, (unsigned)(test_random(&r) % 20),
                                 (unsigned)(test_random(&r) % 80), (unsigned)(test_random(&r) % 90), (unsigned)(test_random(&r) % 100),
                                 (unsigned)(1 + test_random(&r) % 12), (unsigned)(1 + test_random(&r) % 28),
                                 (unsigned)(test_random(&r) % 24), (unsigned)(test_random(&r) % 60), cities[test_random(&r) % 5],
        test_random(&r) % 2 == 0 ? "true" : "false", (unsigned)(test_random(&r) % 4));

    return (near_bytes){ text, (size_t)size };
}

/* 64 floats: nothing in common with anything. */
static near_bytes
floats(char text[512], uint64_t i)
{
    uint64_t r = i * 131 + 1;

    for (size_t k = 0; k < 64; k++) {
        float value = (float)(test_random(&r) % 1000000) / 1000000.0f - 0.5f;

        memcpy(text + 4 * k, &value, 4);
    }
    return (near_bytes){ text, 256 };
}

struct made {
    uint8_t  bytes[NEAR__DICTIONARY_MOST];
    size_t   size;
    uint32_t id;
};

static void
make(struct made *made, uint64_t seed, size_t size)
{
    static char   samples[4000 * 512];
    static size_t sizes[4000];
    size_t        used = 0;

    for (size_t i = 0; i < 4000; i++) {
        sizes[i] = json(samples + used, seed * 100000 + i).size;
        used += sizes[i];
    }
    made->size = ZDICT_trainFromBuffer(made->bytes, size, samples, sizes, 4000);
    assert_false(ZDICT_isError(made->size));
    made->id = near__dictionary_seal(made->bytes, made->size);
    assert_int_not_equal(made->id, 0);
}

static int64_t
soon(void)
{
    return near__now(&near__clock_system) + 5000 * NEAR_MS;
}

static void
publish(struct instance *in, const struct made *made)
{
    assert_int_equal(
        near__dictionaries_store(in->cache, (near_bytes){ made->bytes, made->size }, made->id, soon()),
        NEAR_OK);
    assert_int_equal(near__dictionaries_name(in->cache, made->id, soon()), NEAR_OK);
}

struct using
{
    struct instance *in;
    uint32_t         id;
};

static int
uses(void *ctx)
{
    struct using *using              = ctx;
    struct near__dictionary *current = near__dictionaries_current(using->in->cache, 1 << 20);
    uint32_t                 id      = current != NULL ? near__dictionary_id(current) : 0;

    near__dictionary_release(current);
    return id == using->id;
}

static void
await_use(struct instance *in, uint32_t id)
{
    struct using using = { in, id };

    assert_true(test_wait_for(uses, &using, 10000 * test_slack()));
}

/* What lies in L2 under the dictionary's key (id 0: the newest's name), changed as told. */
enum change { REMOVE, PLANT };
static near_status
change(struct instance *in, uint32_t id, enum change what, near_bytes payload)
{
    near_client      *client = in->client;
    struct near__wire wire;
    near_status       status;

    assert_int_equal(near__wire_open(&wire, in->cache, 1, 0), NEAR_OK);
    if (id != 0)
        near__wire_add_dictionary(&wire, in->cache, id);
    else
        near__wire_add_newest(&wire, in->cache);
    if (what == PLANT) {
        assert_true(near__wire_make_room(&wire, payload.size + 512));
        near__number_encode(in->cache, wire.items, payload, wire.values);
        client->ops->set_many(client->l2, NEAR_L2_ALWAYS, wire.items, 1, NULL, soon());
    } else
        client->ops->remove_many(client->l2, NEAR_L2_ALWAYS, wire.items, 1, NULL, soon());
    status = near__item_status(&wire.items[0]);
    near__wire_close(&wire);
    return status;
}

static near_status
put(struct instance *in, const char *key, near_bytes value)
{
    return near_put(in->cache, near_key(key), value, NULL);
}

static void
assert_get(struct instance *in, const char *key, near_bytes expected)
{
    near_value *value = NULL;

    assert_int_equal(near_get(in->cache, near_key(key), &value), NEAR_OK);
    assert_int_equal(near_value_bytes(value).size, expected.size);
    assert_memory_equal(near_value_bytes(value).data, expected.data, expected.size);
    near_value_release(value);
}

static near_status
get_status(struct instance *in, const char *key)
{
    near_value *value;
    near_status status = near_get(in->cache, near_key(key), &value);

    near_value_release(value);
    return status;
}

static struct made made, second;

/* ---- */

static void
test_small_values_are_packed_and_read_by_all(void **state)
{
    struct world   *w = *state;
    struct instance writer, plain, without;
    char            text[512];
    near_stats      with_it, without_it;

    NEEDS(w);
    OPEN(w, &writer, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.dictionary", "auto", QUICK);
    OPEN(w, &plain, "l1.max_bytes", "0");
    OPEN(w, &without, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.compression_threshold", "64");
    publish(&plain, &made);
    await_use(&writer, made.id);
    for (unsigned i = 0; i < 200; i++) {
        char key[32];

        snprintf(key, sizeof(key), "with:%u", i);
        assert_int_equal(put(&writer, key, json(text, 900000 + i)), NEAR_OK);
        assert_get(&plain, key, json(text, 900000 + i));
        snprintf(key, sizeof(key), "without:%u", i);
        assert_int_equal(put(&without, key, json(text, 900000 + i)), NEAR_OK);
        assert_get(&writer, key, json(text, 900000 + i)); /* what is there from before stays readable */
    }
    with_it    = stats_of(&writer);
    without_it = stats_of(&without);
    assert_int_equal(with_it.l2_dictionary_compressed, 200);
    assert_true(with_it.l2_compress_saved > 2 * without_it.l2_compress_saved);
    assert_int_equal(stats_of(&plain).l2_dictionaries_fetched, 1); /* once, for 200 values */
    assert_int_equal(stats_of(&plain).l2_dictionary_unknown, 0);
    close_instance(&writer);
    close_instance(&plain);
    close_instance(&without);
}

#ifdef HAVE_OPENSSL
#define ONE   "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define OTHER "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
#define KEYED "l2.mac_key_env"

static int
is_readable_by_the_new_key(void *ctx)
{
    struct instance reader;
    near_status     status;

    OPEN(ctx, &reader, "l1.max_bytes", "0", KEYED, "NEAR_TEST_MAC_NEW");
    status = get_status(&reader, "k");
    close_instance(&reader);
    return status == NEAR_OK;
}

/* While two keys are believed whoever uses a dictionary signs it and the newest one's name anew: without that nobody reads it, nor what needs
 * it, when the old key goes. */
static void
test_a_dictionary_is_signed_anew_when_keys_change(void **state)
{
    struct world   *w = *state;
    struct instance writer, first, last;
    char            text[512];

    NEEDS(w);
    assert_int_equal(setenv("NEAR_TEST_MAC_OLD", ONE, 1), 0);
    assert_int_equal(setenv("NEAR_TEST_MAC_BOTH", OTHER " " ONE, 1), 0);
    assert_int_equal(setenv("NEAR_TEST_MAC_NEW", OTHER, 1), 0);
    OPEN(w, &first, "l1.max_bytes", "0", KEYED, "NEAR_TEST_MAC_OLD");
    publish(&first, &made);
    OPEN(w, &writer, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.dictionary", "auto", QUICK, KEYED,
         "NEAR_TEST_MAC_BOTH");
    close_instance(&first);
    await_use(&writer, made.id);
    assert_int_equal(put(&writer, "k", json(text, 900000)), NEAR_OK);
    assert_int_equal(stats_of(&writer).l2_dictionary_compressed, 1);
    assert_true(test_wait_for(is_readable_by_the_new_key, w, 10000 * test_slack()));
    OPEN(w, &last, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.dictionary", "auto", QUICK, KEYED,
         "NEAR_TEST_MAC_NEW");
    await_use(&last, made.id);
    close_instance(&last);
    close_instance(&writer);
}
#endif

static void
load_json(near_load *loads[], size_t n, void *ctx)
{
    char text[512];

    (*(_Atomic unsigned *)ctx) += (unsigned)n;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], json(text, 7));
}

static void
test_a_dictionary_that_is_gone_makes_a_miss_and_is_put_back_by_who_has_it(void **state)
{
    struct world    *w = *state;
    struct instance  writer, reader, other;
    _Atomic unsigned loads = 0;
    char             text[512];
    near_value      *value;

    NEEDS(w);
    OPEN(w, &writer, "l1.max_bytes", "0", "l2.compression", "auto", "l2.dictionary", "auto", QUICK);
    publish(&writer, &made);
    await_use(&writer, made.id);
    assert_int_equal(put(&writer, "k", json(text, 1)), NEAR_OK);
    assert_int_equal(put(&writer, "l", json(text, 2)), NEAR_OK);
    near_cache_close(writer.cache); /* nobody puts it back */
    writer.cache = NULL;
    OPEN(w, &reader, "l1.max_bytes", "0");
    assert_int_equal(change(&reader, made.id, REMOVE, (near_bytes){ NULL, 0 }), NEAR_OK);
    assert_int_equal(get_status(&reader, "k"), NEAR_MISS);
    assert_int_equal(get_status(&reader, "l"), NEAR_MISS);
    assert_int_equal(stats_of(&reader).l2_dictionary_unknown, 2);
    assert_int_equal(stats_of(&reader).l2_corrupt, 0);
    near_cache_set_loader(reader.cache, load_json, &loads);
    assert_int_equal(near_fetch(reader.cache, near_key("k"), NULL, &value), NEAR_OK);
    near_value_release(value);
    assert_int_equal(loads, 1);
    assert_get(&reader, "k", json(text, 7)); /* and lies there, readable by all */
    /* who compresses with it puts it back */
    assert_int_equal(near_cache_open(writer.client, "things", NULL, &writer.cache, NULL), NEAR_OK);
    publish(&reader, &made);
    await_use(&writer, made.id);
    assert_int_equal(change(&reader, made.id, REMOVE, (near_bytes){ NULL, 0 }), NEAR_OK);
    assert_int_equal(change(&reader, 0, REMOVE, (near_bytes){ NULL, 0 }), NEAR_OK);
    for (unsigned i = 0; i < 200 * test_slack(); i++) {
        sleep_ms(50);
        if (get_status(&reader, "l") == NEAR_OK)
            break;
    }
    assert_get(&reader, "l", json(text, 2));
    /* and in the place of what is damaged there, which a reader that has it not yet sees */
    assert_int_equal(change(&reader, made.id, PLANT, near_key("damaged")), NEAR_OK);
    OPEN(w, &other, "l1.max_bytes", "0");
    for (unsigned i = 0; i < 200 * test_slack(); i++) {
        sleep_ms(50);
        if (get_status(&other, "l") == NEAR_OK)
            break;
    }
    assert_get(&other, "l", json(text, 2));
    close_instance(&other);
    close_instance(&writer);
    close_instance(&reader);
}

/* Damaged, cut, another one, too large, nothing at all: never taken for the dictionary, so never a wrong value. */
static void
test_what_lies_in_its_place_is_refused(void **state)
{
    struct world   *w = *state;
    struct instance keeper, writer, reader; /* a memory: lives as long as somebody has it open */
    static uint8_t  bytes[NEAR__DICTIONARY_MOST + 1000];
    char            text[512];

    NEEDS(w);
    OPEN(w, &keeper, "ttl", "5m");
    OPEN(w, &writer, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.dictionary", "auto", QUICK);
    publish(&writer, &made);
    await_use(&writer, made.id);
    assert_int_equal(put(&writer, "k", json(text, 1)), NEAR_OK);
    close_instance(&writer);
    for (unsigned i = 0; i < 8; i++) {
        size_t size = made.size;

        memset(bytes, 0, sizeof(bytes));
        memcpy(bytes, made.bytes, size);
        if (i == 0)
            bytes[size / 2] ^= 1;
        if (i == 1)
            size /= 2;
        if (i == 2)
            memcpy(bytes, second.bytes, size = second.size); /* another one */
        if (i == 3) {
            memcpy(bytes, second.bytes, size = second.size); /* which says it is this one */
            memcpy(bytes + 4, made.bytes + 4, 4);
        }
        if (i == 4)
            size = sizeof(bytes);
        if (i == 5)
            size = 0;
        if (i == 6)
            memset(bytes + 8, 0xA5, size - 8);
        if (i == 7)
            memset(bytes, 0, size);
        OPEN(w, &reader, "l1.max_bytes", "0");
        assert_int_equal(change(&reader, made.id, PLANT, (near_bytes){ bytes, size }), NEAR_OK);
        assert_int_equal(get_status(&reader, "k"), NEAR_MISS);
        assert_int_equal(stats_of(&reader).l2_dictionaries_refused, 1);
        assert_int_equal(get_status(&reader, "k"), NEAR_MISS); /* remembered for a moment */
        assert_int_equal(stats_of(&reader).l2_dictionary_unknown, 2);
        close_instance(&reader);
    }
    OPEN(w, &reader, "l1.max_bytes", "0");
    publish(&reader, &made); /* replaces what is damaged */
    assert_get(&reader, "k", json(text, 1));
    close_instance(&reader);
    close_instance(&keeper);
}

/* A new one is taken up, values of the old one stay readable; 0 turns it off. */
static void
test_the_newest_is_taken_up(void **state)
{
    struct world   *w = *state;
    struct instance writer, fixed, reader;
    char            text[512], id[16];

    NEEDS(w);
    snprintf(id, sizeof(id), "%lu", (unsigned long)made.id);
    OPEN(w, &writer, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.dictionary", "auto", QUICK);
    OPEN(w, &fixed, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.dictionary", id, QUICK);
    OPEN(w, &reader, "l1.max_bytes", "0");
    publish(&writer, &made);
    await_use(&writer, made.id);
    await_use(&fixed, made.id);
    assert_int_equal(put(&writer, "old", json(text, 1)), NEAR_OK);
    publish(&reader, &second);
    await_use(&writer, second.id);
    assert_int_equal(put(&writer, "new", json(text, 2)), NEAR_OK);
    assert_get(&reader, "old", json(text, 1));
    assert_get(&reader, "new", json(text, 2));
    assert_int_equal(stats_of(&reader).l2_dictionaries_fetched, 2);
    assert_int_equal(near__dictionaries_name(reader.cache, 0, soon()), NEAR_OK);
    await_use(&writer, 0);
    await_use(&fixed, made.id);
    close_instance(&writer);
    close_instance(&fixed);
    close_instance(&reader);
}

struct crowd {
    struct instance *in;
    _Atomic unsigned wrong;
};

static void *
read_all(void *ctx)
{
    struct crowd *crowd = ctx;
    char          text[512];

    for (unsigned i = 0; i < 50; i++) {
        char        key[32];
        near_value *value;
        near_bytes  expected = json(text, i);

        snprintf(key, sizeof(key), "k%u", i);
        if (near_get(crowd->in->cache, near_key(key), &value) != NEAR_OK ||
            near_value_bytes(value).size != expected.size ||
            memcmp(near_value_bytes(value).data, expected.data, expected.size) != 0)
            crowd->wrong++;
        near_value_release(value);
    }
    return NULL;
}

static void
test_threads_fetch_it_once(void **state)
{
    struct world   *w = *state;
    struct instance writer, reader;
    struct crowd    crowd = { .in = &reader };
    pthread_t       threads[8];
    char            text[512];

    NEEDS(w);
    OPEN(w, &writer, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.dictionary", "auto", QUICK);
    OPEN(w, &reader, "l1.max_bytes", "0");
    publish(&writer, &made);
    await_use(&writer, made.id);
    for (unsigned i = 0; i < 50; i++) {
        char key[32];

        snprintf(key, sizeof(key), "k%u", i);
        assert_int_equal(put(&writer, key, json(text, i)), NEAR_OK);
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_all, &crowd), 0);
    for (size_t i = 0; i < NEAR_COUNT_OF(threads); i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(crowd.wrong, 0);
    assert_int_equal(stats_of(&reader).l2_dictionaries_fetched, 1);
    close_instance(&writer);
    close_instance(&reader);
}

/* The largest one fits every server, memcached's item of 1 MiB among them. */
static void
test_the_largest_fits(void **state)
{
    struct world   *w = *state;
    static uint8_t  bytes[NEAR__DICTIONARY_MOST];
    struct instance in;
    uint64_t        random = 1;
    uint32_t        id;

    NEEDS(w);
    memcpy(bytes, made.bytes, made.size);
    for (size_t i = made.size; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)test_random(&random);
    id = near__dictionary_seal(bytes, sizeof(bytes));
    OPEN(w, &in, "ttl", "5m");
    assert_int_equal(near__dictionaries_store(in.cache, (near_bytes){ bytes, sizeof(bytes) }, id, soon()),
                     NEAR_OK);
    assert_int_equal(near__dictionaries_fetch(in.cache, id, soon()), NEAR_OK);
    close_instance(&in);
}

/* What it does not help stops being tried. */
static void
test_embeddings_are_left_alone(void **state)
{
    struct world   *w = *state;
    struct instance in;
    char            text[512];
    near_stats      stats;

    NEEDS(w);
    OPEN(w, &in, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.dictionary", "auto", QUICK);
    publish(&in, &made);
    await_use(&in, made.id);
    for (unsigned i = 0; i < 1000; i++)
        assert_int_equal(put(&in, "e", floats(text, i)), NEAR_OK);
    stats = stats_of(&in);
    assert_in_range(stats.l2_compress_tries, 18, 18 + 1000 / 64 + 2);
    assert_int_equal(stats.l2_compressed, 0);
    assert_get(&in, "e", floats(text, 999));
    close_instance(&in);
}

static void
test_options_that_make_no_sense_are_refused(void **state)
{
    static const char *const rows[][5] = {
        { "l2.dictionary", "auto", "l2.compression", "lz4", "accepts l2.compression" },
        { "l2.dictionary", "auto", "l2.compression", "none", "accepts l2.compression" },
        { "l2.dictionary", "newest", "l2.compression", "zstd", "accepts nothing, auto" },
        { "l2.dictionary", "17", "l2.compression", "zstd", "accepts nothing, auto" },
        { "l2.dictionary", "4000000000", "l2.compression", "zstd", "accepts nothing, auto" },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        near_config *config = near_config_new();
        near_client *client;
        near_error   error;

        assert_int_equal(near_config_set(config, rows[i][0], rows[i][1], &error), NEAR_OK);
        assert_int_equal(near_config_set(config, rows[i][2], rows[i][3], &error), NEAR_OK);
        assert_int_equal(near_client_open(config, &client, &error), NEAR_ERR_INVALID);
        assert_non_null(strstr(error.text, rows[i][4]));
        near_config_free(config);
    }
}

/* ---- by itself: every bit, and what it brings */

static void
test_every_bit_of_a_dictionary_counts(void **state)
{
    size_t step = test_scale(100) >= 100 ? 1 : 13;

    (void)state;
    for (size_t bit = 0; bit < 8 * 4096; bit += step) {
        struct near__dictionary *dictionary;
        uint8_t                 *at = &made.bytes[bit / 8];

        *at ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(near__dictionary_new((near_bytes){ made.bytes, made.size }, made.id, &dictionary),
                         NEAR_ERR_INVALID);
        *at ^= (uint8_t)(1u << bit % 8);
    }
}

static struct near__packer packer;

static double
pack_all(const struct near__dictionary *dictionary, near_bytes (*make_one)(char *, uint64_t), size_t n,
         double *share, double *unpack_ns)
{
    uint64_t raw = 0, stored = 0;
    uint8_t  out[512], back[512];
    char     text[512];
    clock_t  began, packing = 0, unpacking = 0;

    for (size_t i = 0; i < n; i++) {
        near_bytes value = make_one(text, 500000 + i);
        size_t     size;

        began = clock();
        for (int k = 0; k < 20; k++)
            size = dictionary != NULL
                       ? near__dictionary_pack(&packer, dictionary, value, out, NEAR__GAIN_ROOM(value.size))
                       : near__pack(&packer, NEAR__CODEC_ZSTD, value, out, NEAR__GAIN_ROOM(value.size));
        packing += clock() - began;
        raw += value.size;
        stored += size > 0 ? size : value.size;
        if (size == 0)
            continue;
        began = clock();
        for (int k = 0; k < 20; k++) {
            near_bytes in = { out, size };

            assert_int_equal(dictionary != NULL
                                 ? near__dictionary_unpack(&packer, dictionary, in, back, value.size)
                                 : near__unpack(&packer, NEAR__CODEC_ZSTD, in, back, value.size),
                             NEAR_OK);
        }
        unpacking += clock() - began;
        assert_memory_equal(back, value.data, value.size);
    }
    *share     = (double)stored / (double)raw;
    *unpack_ns = (double)unpacking / CLOCKS_PER_SEC * 1e9 / 20 / (double)n;
    return (double)packing / CLOCKS_PER_SEC * 1e9 / 20 / (double)n;
}

static void
test_what_it_brings(void **state)
{
    struct near__dictionary *dictionary;
    size_t                   n = test_scale(500);
    double                   pack, unpack, share, plain;

    (void)state;
    assert_int_equal(near__dictionary_new((near_bytes){ made.bytes, made.size }, made.id, &dictionary),
                     NEAR_OK);
    assert_int_equal(near__dictionary_prepare(dictionary), NEAR_OK);
    pack = pack_all(NULL, json, n, &plain, &unpack);
    print_message("JSON of some 200 B, without: %.2f of its size, packed in %.0f ns, unpacked in %.0f ns\n",
                  plain, pack, unpack);
    pack = pack_all(dictionary, json, n, &share, &unpack);
    print_message("with a dictionary of %zu B:  %.2f of its size, packed in %.0f ns, unpacked in %.0f ns\n",
                  made.size, share, pack, unpack);
    assert_true(share < 0.6 * plain);
    pack = pack_all(dictionary, floats, n, &share, &unpack);
    print_message("64 floats, one in 64 tried:  %.2f of their size, %.0f ns each when tried\n", share, pack);
    assert_true(share > 0.95);
    near__dictionary_release(dictionary);
    near__packer_fini(&packer);
}

/* ---- the command */

static int
run_tool(char *out, size_t size, const char *format, ...)
{
    char    command[2000];
    size_t  used;
    FILE   *pipe;
    va_list args;

    va_start(args, format);
    used = (size_t)snprintf(command, sizeof(command), "%s dict ", TEST_TOOL);
    vsnprintf(command + used, sizeof(command) - used, format, args);
    va_end(args);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    used      = fread(out, 1, size - 1, pipe);
    out[used] = '\0';
    return WEXITSTATUS(pclose(pipe));
}

static void
test_the_command_trains_shows_and_chooses(void **state)
{
    struct world     *w = *state;
    struct instance   in, writer;
    char              text[512], out[1000];
    char              list[] = "/tmp/near-dict-XXXXXX";
    FILE             *file;
    unsigned long     id, size;
    const char *const ways[] = { "--keys", "--sample" };

    NEEDS(w);
    OPEN(w, &in, "l1.max_bytes", "0");
    file = fdopen(mkstemp(list), "w");
    assert_non_null(file);
    for (unsigned i = 0; i < 3000; i++) {
        char key[32];

        snprintf(key, sizeof(key), "user:%u", i);
        assert_int_equal(put(&in, key, json(text, i)), NEAR_OK);
        fprintf(file, "%s\n", key);
    }
    fclose(file);
    assert_int_equal(run_tool(out, sizeof(out), "show --l2 '%s' things 2>/dev/null", w->l2), 1);
    for (size_t i = 0; i < (w->tier == TIER_REDIS ? 2 : 1); i++) {
        assert_int_equal(run_tool(out, sizeof(out), "train --l2 '%s' --size 16384 %s %s things", w->l2,
                                  ways[i], i == 0 ? list : "3000"),
                         0);
        print_message("%s", out);
        assert_int_equal(sscanf(out, "dictionary %lu, %lu bytes, of 3000 samples", &id, &size), 2);
        assert_non_null(strstr(out, "stored: yes"));
    }
    assert_int_equal(run_tool(out, sizeof(out), "show --l2 '%s' things", w->l2), 0);
    OPEN(w, &writer, "l1.max_bytes", "0", "l2.compression", "zstd", "l2.dictionary", "auto", QUICK);
    await_use(&writer, (uint32_t)id);
    assert_int_equal(put(&writer, "k", json(text, 4000)), NEAR_OK);
    assert_int_equal(stats_of(&writer).l2_dictionary_compressed, 1);
    assert_get(&in, "k", json(text, 4000));
    assert_int_equal(run_tool(out, sizeof(out), "use --l2 '%s' things 99999 2>/dev/null", w->l2), 1);
    assert_int_equal(run_tool(out, sizeof(out), "use --l2 '%s' things none", w->l2), 0);
    await_use(&writer, 0);
    assert_int_equal(run_tool(out, sizeof(out), "use --l2 '%s' things %lu", w->l2, id), 0);
    await_use(&writer, (uint32_t)id);
    /* from lines of a file; what has nothing in common gets none */
    file = fopen(list, "w");
    assert_non_null(file);
    for (unsigned i = 0; i < 3000; i++)
        fprintf(file, "%.*s\n", (int)json(text, i).size, text);
    fclose(file);
    assert_int_equal(run_tool(out, sizeof(out), "train --l2 '%s' --lines --dry-run things %s", w->l2, list),
                     0);
    assert_non_null(strstr(out, "stored: no"));
    file = fopen(list, "w");
    assert_non_null(file);
    for (uint64_t i = 0, r = 1; i < 2000; i++) {
        for (int k = 0; k < 200; k++)
            fputc((int)(32 + test_random(&r) % 90), file);
        fputc('\n', file);
    }
    fclose(file);
    assert_int_not_equal(
        run_tool(out, sizeof(out), "train --l2 '%s' --lines things %s 2>/dev/null", w->l2, list), 0);
    unlink(list);
    /* what has no end is read as far as there is room: else this would not return */
    assert_int_equal(mkfifo(list, 0600), 0);
    assert_int_not_equal(run_tool(out, sizeof(out),
                                  "train --l2 '%s' --lines --dry-run things %s 2>/dev/null & "
                                  "yes 'the same again' 2>/dev/null > %s; wait $!",
                                  w->l2, list, list),
                         0);
    unlink(list);
    close_instance(&in);
    close_instance(&writer);
}

static int
make_both(void **state)
{
    (void)state;
    make(&made, 1, 16 << 10);
    make(&second, 2, 12 << 10);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER(memory, test_small_values_are_packed_and_read_by_all),
        OVER(redis, test_small_values_are_packed_and_read_by_all),
        OVER(memcached, test_small_values_are_packed_and_read_by_all),
        OVER(memory, test_a_dictionary_that_is_gone_makes_a_miss_and_is_put_back_by_who_has_it),
        OVER(redis, test_a_dictionary_that_is_gone_makes_a_miss_and_is_put_back_by_who_has_it),
        OVER(memory, test_what_lies_in_its_place_is_refused),
        OVER(redis, test_what_lies_in_its_place_is_refused),
        OVER(memory, test_the_newest_is_taken_up),
        OVER(memcached, test_the_newest_is_taken_up),
#ifdef HAVE_OPENSSL
        OVER(memory, test_a_dictionary_is_signed_anew_when_keys_change),
        OVER(redis, test_a_dictionary_is_signed_anew_when_keys_change),
#endif
        OVER(memory, test_threads_fetch_it_once),
        OVER(redis, test_threads_fetch_it_once),
        OVER(memory, test_the_largest_fits),
        OVER(redis, test_the_largest_fits),
        OVER(memcached, test_the_largest_fits),
        OVER(memory, test_embeddings_are_left_alone),
        cmocka_unit_test(test_options_that_make_no_sense_are_refused),
        cmocka_unit_test(test_every_bit_of_a_dictionary_counts),
        cmocka_unit_test(test_what_it_brings),
        OVER(redis, test_the_command_trains_shows_and_chooses),
        OVER(memcached, test_the_command_trains_shows_and_chooses),
    };

    return TEST_MAIN(tests, make_both, NULL);
}

#else

int
main(void)
{
    return 77; /* skipped: the build has no zstd */
}

#endif
