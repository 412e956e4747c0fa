/*
 * What decoded values cost, and what aligned ones do.
 *
 *     bench/codec hit [ENTRIES]    a hit of bytes beside a hit of an object made of them: the hit alone, with a look at the first number,
 *                                  and, what a codec is for, with the reader decoding the bytes itself.  10,000 and 1,000,000 entries
 *     bench/codec align            memory per entry and a hit's time by l1.align_from
 *
 * One thread, uniform keys of 20 bytes, values of 16 floats (64 bytes; as text some 100 where they are decoded).  Rounds alternate, medians
 * are shown, and ratios are of one round each.  Times are the processor's, so that other load disturbs little.
 */
#include "bench/median.h"

#include <nearcache.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 41, HITS = 100000, KEYS_ALIGN = 400000, FLOATS = 16, KEY = 20 };

struct row {
    float numbers[FLOATS];
};

static void
fail(const char *what)
{
    fprintf(stderr, "bench/codec: %s\n", what);
    exit(1);
}

static double
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

/* ---- the codec: numbers as text, or as they are */

static bool
parse(near_bytes bytes, struct row *row)
{
    const char *at = bytes.data;

    for (int i = 0; i < FLOATS; i++) {
        char *end;

        row->numbers[i] = strtof(at, &end);
        if (end == at)
            return false;
        at = end;
    }
    return true;
}

static near_status
decode(near_bytes key, near_bytes bytes, void **object, void *ctx)
{
    bool        is_text = *(const bool *)ctx;
    struct row *row     = malloc(sizeof(*row));

    (void)key;
    if (row == NULL)
        return NEAR_ERR_NOMEM;
    if (!is_text && bytes.size == sizeof(*row)) {
        memcpy(row, bytes.data, sizeof(*row));
    } else if (!is_text || !parse(bytes, row)) {
        free(row);
        return NEAR_ERR_DECODE;
    }
    *object = row;
    return NEAR_OK;
}

static void
destroy(void *object, void *ctx)
{
    (void)ctx;
    free(object);
}

/* ---- caches */

static void
set(near_config *config, const char *name, const char *value)
{
    near_error error;

    if (near_config_set(config, name, value, &error) != NEAR_OK)
        fail(error.text);
}

static near_cache *
open_cache(near_client **client, const char *align_from, const char *max_bytes)
{
    near_config *config = near_config_new();
    near_cache  *cache  = NULL;
    near_error   error;

    set(config, "l2.uri", "none:");
    set(config, "l1.policy", "lru");
    set(config, "l1.max_bytes", max_bytes);
    set(config, "l1.shards", "1");
    set(config, "l1.align_from", align_from);
    if (near_client_open(config, client, &error) != NEAR_OK ||
        near_cache_open(*client, "bench", NULL, &cache, &error) != NEAR_OK)
        fail(error.text);
    near_config_free(config);
    return cache;
}

static char *
make_keys(size_t n)
{
    char *keys = malloc(n * KEY + 1);

    if (keys == NULL)
        fail("no memory");
    for (size_t i = 0; i < n; i++)
        snprintf(keys + i * KEY, KEY + 1, "user_feature_%07zu", i % 10000000);
    return keys;
}

static void
fill(near_cache *cache, const char *keys, size_t n, bool is_text)
{
    for (size_t i = 0; i < n; i++) {
        struct row row;
        char       text[FLOATS * 16];
        size_t     at    = 0;
        near_bytes value = { &row, sizeof(row) };

        for (int k = 0; k < FLOATS; k++)
            row.numbers[k] = (float)(i + (size_t)k) / 8;
        for (int k = 0; is_text && k < FLOATS; k++)
            at += (size_t)snprintf(text + at, sizeof(text) - at, "%.3g ", (double)row.numbers[k]);
        if (is_text)
            value = (near_bytes){ text, at + 1 };
        if (near_put(cache, (near_bytes){ keys + i * KEY, KEY }, value, NULL) != NEAR_OK)
            fail("a put failed");
    }
}

/* ---- hits */

enum look { ADDRESS, FIRST_NUMBER, ALL_NUMBERS };

struct way {
    near_cache *cache;
    bool        objects;
    enum look   look;
};

static volatile float sink;
static uint64_t       state = 1;

static inline uint64_t
next_random(void)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return state >> 33;
}

static inline float
look_at(const struct way *way, const near_value *value)
{
    near_bytes        bytes;
    const struct row *row;
    struct row        mine;

    if (way->objects) {
        row = near_value_object(value);
        return way->look == ADDRESS ? (float)(row != NULL) : row->numbers[0];
    }
    bytes = near_value_bytes(value);
    if (way->look == ADDRESS)
        return (float)(bytes.data != NULL);
    if (way->look == FIRST_NUMBER) {
        memcpy(&mine.numbers[0], bytes.data, sizeof(float));
        return mine.numbers[0];
    }
    return parse(bytes, &mine) ? mine.numbers[0] : 0;
}

static double
hits(const struct way *way, const char *keys, size_t n, size_t hits)
{
    double began = now_ns();
    float  sum   = 0;

    for (size_t i = 0; i < hits; i++) {
        near_value *value;

        if (near_get(way->cache, (near_bytes){ keys + next_random() % n * KEY, KEY }, &value) != NEAR_OK)
            fail("a hit was none");
        sum += look_at(way, value);
        near_value_release(value);
    }
    sink = sum;
    return (now_ns() - began) / (double)hits;
}

static void
compare(const char *name, const struct way *bytes, const struct way *objects, const char *keys, size_t n)
{
    double a[ROUNDS], b[ROUNDS], ratio[ROUNDS];
    size_t each = bytes->look == ALL_NUMBERS ? HITS / 20 : HITS;

    for (int i = -1; i < ROUNDS; i++) {
        int    at = i < 0 ? 0 : i; /* one round to warm up */
        double other;

        if (i % 2 == 0) {
            a[at] = hits(bytes, keys, n, each);
            b[at] = hits(objects, keys, n, each);
        } else {
            b[at] = hits(objects, keys, n, each);
            a[at] = hits(bytes, keys, n, each);
        }
        other     = b[at];
        ratio[at] = other / a[at];
    }
    printf("  %-34s bytes %7.1f ns   object %7.1f ns   x%.3f\n", name, median(a, ROUNDS), median(b, ROUNDS),
           median(ratio, ROUNDS));
    fflush(stdout);
}

static void
use_codec(near_cache *cache, bool *is_text)
{
    near_codec codec = NEAR_CODEC_INIT;

    codec.decode  = decode;
    codec.destroy = destroy;
    if (near_cache_set_codec(cache, &codec, is_text) != NEAR_OK)
        fail("no codec");
}

static void
bench_hit(size_t n)
{
    static bool  is_text[2] = { false, true };
    near_client *clients[4];
    near_cache  *caches[4]; /* bytes, objects; of text: bytes, objects */
    char        *keys = make_keys(n);

    for (int i = 0; i < 4; i++) {
        caches[i] = open_cache(&clients[i], "1KiB", "1GiB");
        if (i % 2 == 1)
            use_codec(caches[i], &is_text[i / 2]);
        fill(caches[i], keys, n, is_text[i / 2]);
    }
    printf("%zu entries, 1 thread\n", n);
    compare("get, address, release", &(struct way){ caches[0], false, ADDRESS },
            &(struct way){ caches[1], true, ADDRESS }, keys, n);
    compare("get, first number, release", &(struct way){ caches[0], false, FIRST_NUMBER },
            &(struct way){ caches[1], true, FIRST_NUMBER }, keys, n);
    compare("get, 16 numbers of text, release", &(struct way){ caches[2], false, ALL_NUMBERS },
            &(struct way){ caches[3], true, ALL_NUMBERS }, keys, n);
    for (int i = 0; i < 4; i++)
        near_client_close(clients[i], NULL);
    free(keys);
}

/* ---- alignment */

static near_stats
stats_of(near_client *client)
{
    near_stats stats = NEAR_STATS_INIT;

    near_stats_get(client, &stats);
    return stats;
}

/* Until it is full and has evicted.  How many keys were put. */
static size_t
put_until_full(near_client *client, near_cache *cache, const char *keys, size_t n, size_t size)
{
    static char value[1024];
    size_t      i = 0;

    for (; i < n; i++) {
        if (near_put(cache, (near_bytes){ keys + i * KEY, KEY }, (near_bytes){ value, size }, NULL) !=
            NEAR_OK)
            fail("a put failed");
        if (i % 1000 == 0 && stats_of(client).l1_evictions > i / 8)
            return i + 1;
    }
    fail("the cache is not full");
    return 0;
}

static void
bench_align(void)
{
    static const size_t      sizes[]  = { 64, 100, 128, 256, 500, 512, 960 };
    static const char *const bounds[] = { "1KiB", "64" };
    char                    *keys     = make_keys(KEYS_ALIGN);

    printf("a full cache of 16 MiB; l1.align_from = 1KiB, as it comes, and 64\n");
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        near_client *clients[2];
        near_cache  *caches[2];
        double       bytes[2], ns[2][ROUNDS];
        size_t       put[2], recent[2];

        for (int k = 0; k < 2; k++) {
            caches[k] = open_cache(&clients[k], bounds[k], "16MiB");
            put[k]    = put_until_full(clients[k], caches[k], keys, KEYS_ALIGN, sizes[i]);
            bytes[k]  = (double)(16 << 20) / (double)stats_of(clients[k]).l1_entries;
            recent[k] = (size_t)stats_of(clients[k]).l1_entries / 2;
        }
        for (int round = 0; round < ROUNDS; round++)
            for (int k = 0; k < 2; k++)
                ns[k][round] = hits(&(struct way){ caches[k], false, FIRST_NUMBER },
                                    keys + (put[k] - recent[k]) * KEY, recent[k], HITS / 10);
        printf("  %4zu bytes: %6.1f and %6.1f B per entry, %+5.1f (%+.0f %%)   a hit %5.1f and %5.1f ns\n",
               sizes[i], bytes[0], bytes[1], bytes[1] - bytes[0], 100 * (bytes[1] / bytes[0] - 1),
               median(ns[0], ROUNDS), median(ns[1], ROUNDS));
        for (int k = 0; k < 2; k++)
            near_client_close(clients[k], NULL);
    }
    free(keys);
}

int
main(int argc, char **argv)
{
    size_t n = argc > 2 ? (size_t)strtoull(argv[2], NULL, 10) : 0;

    if (argc < 2 || (strcmp(argv[1], "hit") != 0 && strcmp(argv[1], "align") != 0)) {
        fprintf(stderr, "usage: bench/codec hit [ENTRIES] | align\n");
        return 2;
    }
    if (strcmp(argv[1], "align") == 0) {
        bench_align();
        return 0;
    }
    bench_hit(n != 0 ? n : 10000);
    if (n == 0)
        bench_hit(1000000);
    return 0;
}
