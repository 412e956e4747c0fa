/*
 * What pools cost and what they do.
 *
 *     bench/pools price [ENTRIES]   near_get() of a cache without pools, and of caches of the same memory in 1, 2 and 4 pools: uniform and
 *                                   zipf, one by one and in batches of 32; and near_put().  As many values everywhere, none evicted.
 *     bench/pools scan [ENTRIES]    a working set in use while ten times as much is read once: its hit ratio, beside a cache without pools
 *     bench/pools bounds [MIB]      four pools filled far beyond their bounds: what they say they take, and what the process takes
 *
 * Rounds alternate and medians are shown, because absolute times on a shared machine mean little.
 */
#include "bench/median.h"

#include "nearcache.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 9, READS = 200000, VALUE = 100, BATCH = 32, KEY = 20, KINDS = 4 };

static void
fail(const char *what)
{
    fprintf(stderr, "bench/pools: %s\n", what);
    exit(1);
}

static double
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts); /* one thread: the others of the machine are not counted */
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static uint64_t
next(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15);

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

/* ---- caches */

struct kind {
    const char  *name;
    unsigned     pools;
    near_client *client;
    near_cache  *cache;
};

/* By the key's last digits, so that every pool has as many. */
static unsigned
by_number(near_bytes key, size_t value_size, void *ctx)
{
    const char *text = key.data;

    (void)value_size;
    return 1 + (unsigned)(text[key.size - 1] - '0' + 10 * (text[key.size - 2] - '0')) % *(unsigned *)ctx;
}

static near_cache *
open_cache(near_client **client, const char *max_bytes, const char *pools, const char *policy)
{
    near_config *config = near_config_new();
    near_cache  *cache  = NULL;
    near_error   error;

    if (near_config_set(config, "l2.uri", "none:", &error) != NEAR_OK ||
        near_config_set(config, "ttl", "0", &error) != NEAR_OK ||
        near_config_set(config, "l1.policy", policy, &error) != NEAR_OK ||
        near_config_set(config, "l1.max_bytes", max_bytes, &error) != NEAR_OK ||
        near_config_set(config, "l1.pools", pools, &error) != NEAR_OK ||
        near_client_open(config, client, &error) != NEAR_OK ||
        near_cache_open(*client, "bench", NULL, &cache, &error) != NEAR_OK)
        fail(error.text);
    near_config_free(config);
    return cache;
}

static void
open_kind(struct kind *kind, size_t entries)
{
    size_t bytes = entries * 250, at = 0; /* nothing is evicted */
    char   max_bytes[32], pools[256] = "";

    snprintf(max_bytes, sizeof(max_bytes), "%zu", bytes);
    for (unsigned i = 0; i < kind->pools; i++)
        at += (size_t)snprintf(pools + at, sizeof(pools) - at, "%sp%u:%zu", i > 0 ? "," : "", i,
                               bytes / kind->pools);
    kind->cache = open_cache(&kind->client, max_bytes, pools, "lru");
    if (kind->pools > 0)
        near_cache_set_pool_fn(kind->cache, by_number, &kind->pools);
}

static near_bytes
key_of(char room[KEY + 1], uint64_t number)
{
    snprintf(room, KEY + 1, "user:%015u", (unsigned)number);
    return (near_bytes){ room, KEY };
}

static void
put(near_cache *cache, uint64_t number)
{
    static const char value[VALUE];
    char              room[KEY + 1];

    if (near_put(cache, key_of(room, number), (near_bytes){ value, VALUE }, NULL) != NEAR_OK)
        fail("put");
}

/* ---- price */

struct order {
    char       *rooms; /* READS keys, KEY + 1 bytes apart */
    near_bytes *keys;
};

/* Zipf with exponent 0.99 by inversion of its continuous form; 0: uniform. */
static struct order
order_of(size_t entries, double exponent, uint64_t seed)
{
    struct order order = { malloc((size_t)READS * (KEY + 1)), calloc(READS, sizeof(near_bytes)) };

    for (size_t i = 0; i < READS; i++) {
        double   u      = (double)(next(&seed) >> 11) / (double)(UINT64_C(1) << 53);
        uint64_t number = exponent > 0 ? (uint64_t)pow(pow((double)entries, 1 - exponent) * u + (1 - u),
                                                       1 / (1 - exponent)) *
                                             UINT64_C(2654435761) % entries
                                       : (uint64_t)(u * (double)entries);
        order.keys[i]   = key_of(order.rooms + i * (KEY + 1), number);
    }
    return order;
}

static double
read_singly(near_cache *cache, const struct order *order)
{
    double begin = now_ns();

    for (size_t i = 0; i < READS; i++) {
        near_value *value;

        if (near_get(cache, order->keys[i], &value) != NEAR_OK)
            fail("a miss where there can be none");
        near_value_release(value);
    }
    return (now_ns() - begin) / READS;
}

static double
read_batches(near_cache *cache, const struct order *order)
{
    near_value *values[BATCH];
    near_status statuses[BATCH];
    double      begin = now_ns();

    for (size_t i = 0; i + BATCH <= READS; i += BATCH) {
        if (near_get_many(cache, order->keys + i, BATCH, values, statuses) != NEAR_OK)
            fail("get_many");
        for (int at = 0; at < BATCH; at++)
            near_value_release(values[at]);
    }
    return (now_ns() - begin) / READS;
}

static double
write_over(near_cache *cache, const struct order *order)
{
    static const char value[VALUE];
    double            begin = now_ns();

    for (size_t i = 0; i < READS; i++)
        if (near_put(cache, order->keys[i], (near_bytes){ value, VALUE }, NULL) != NEAR_OK)
            fail("put");
    return (now_ns() - begin) / READS;
}

static void
measure(struct kind kinds[KINDS], const char *what, double (*way)(near_cache *, const struct order *),
        const struct order *order)
{
    double ns[KINDS][ROUNDS], middle[KINDS];

    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < KINDS; i++)
            ns[i][round] = way(kinds[i].cache, order);
    printf("%-22s", what);
    for (int i = 0; i < KINDS; i++) {
        middle[i] = median(ns[i], ROUNDS);
        printf("  %7.1f (%4.2f)", middle[i], middle[i] / middle[0]);
    }
    putchar('\n');
}

static void
price(size_t entries)
{
    struct kind  kinds[KINDS] = { { .name = "none" },
                                  { .name = "1 pool", .pools = 1 },
                                  { .name = "2 pools", .pools = 2 },
                                  { .name = "4 pools", .pools = 4 } };
    struct order uniform = order_of(entries, 0, 1), zipf = order_of(entries, 0.99, 2);

    for (int i = 0; i < KINDS; i++) {
        open_kind(&kinds[i], entries);
        for (size_t number = 0; number < entries; number++)
            put(kinds[i].cache, number);
    }
    printf("%zu entries; processor time in ns a key, and its ratio to a cache without pools\n%-22s", entries,
           "");
    for (int i = 0; i < KINDS; i++)
        printf("  %14s", kinds[i].name);
    putchar('\n');
    measure(kinds, "get, uniform", read_singly, &uniform);
    measure(kinds, "get, zipf 0.99", read_singly, &zipf);
    measure(kinds, "get_many, uniform", read_batches, &uniform);
    measure(kinds, "get_many, zipf 0.99", read_batches, &zipf);
    measure(kinds, "put over, uniform", write_over, &uniform);
    for (int i = 0; i < KINDS; i++)
        near_client_close(kinds[i].client, NULL);
}

/* ---- scan */

static unsigned
by_letter(near_bytes key, size_t value_size, void *ctx)
{
    (void)value_size;
    (void)ctx;
    return *(const char *)key.data == 'u' ? 1 : 2;
}

/* Reads what it has not got into the cache, as any user of a cache does.  Whether it was there. */
static bool
use(near_cache *cache, near_bytes key)
{
    static const char value[VALUE];
    near_value       *got;

    if (near_get(cache, key, &got) == NEAR_OK) {
        near_value_release(got);
        return true;
    }
    near_put(cache, key, (near_bytes){ value, VALUE }, NULL);
    return false;
}

/* The hit ratio of a working set of `entries`, used once in a lap, while 10 keys are scanned for each use. */
static double
scan_once(const char *pools, const char *policy, size_t entries, uint64_t *evicted)
{
    near_client *client;
    near_stats   stats = NEAR_STATS_INIT;
    char         max_bytes[32], room[KEY + 1];
    size_t       hits = 0, laps = 4, scanned = 0;
    near_cache  *cache;

    snprintf(max_bytes, sizeof(max_bytes), "%zu", entries * 400);
    cache = open_cache(&client, max_bytes, pools, policy);
    near_cache_set_pool_fn(cache, by_letter, NULL);
    for (size_t i = 0; i < entries; i++)
        use(cache, key_of(room, i));
    for (size_t i = 0; i < laps * entries; i++) {
        hits += use(cache, key_of(room, i % entries));
        for (int n = 0; n < 10; n++) {
            near_bytes key = key_of(room, scanned++);

            room[0] = 's';
            use(cache, key);
        }
    }
    near_stats_get(client, &stats);
    *evicted = stats.l1_evictions;
    near_client_close(client, NULL);
    return (double)hits / (double)(laps * entries);
}

static void
scan(size_t entries)
{
    static const char *const policies[] = { "lru", "lfu", "sieve", "s3fifo", "tinylfu", "adaptive" };
    char                     pools[64];
    uint64_t                 evicted;

    snprintf(pools, sizeof(pools), "set:%zu,scan:%zu", entries * 200, entries * 200);
    printf("hit ratio of %zu entries in use beside a scan of ten times as many keys, by policy\n%-10s  %8s  "
           "%8s\n",
           entries, "", "2 pools", "none");
    for (size_t i = 0; i < sizeof(policies) / sizeof(*policies); i++) {
        double with = scan_once(pools, policies[i], entries, &evicted);

        printf("%-10s  %8.4f  %8.4f\n", policies[i], with, scan_once("", policies[i], entries, &evicted));
    }
}

/* ---- bounds */

static size_t
resident(void)
{
    FILE  *file  = fopen("/proc/self/statm", "re");
    size_t total = 0, pages = 0;

    if (file == NULL || fscanf(file, "%zu %zu", &total, &pages) != 2)
        fail("/proc/self/statm");
    fclose(file);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void
bounds(size_t mib)
{
    char              pools[128];
    static char       value[500];
    near_client      *client;
    near_stats        stats = NEAR_STATS_INIT;
    unsigned          four  = 4;
    uint64_t          seed  = 3;
    size_t            before, after, bytes = mib << 20;
    near_cache       *cache;
    const char *const policies[] = { "lru", "s3fifo", "tinylfu", "adaptive" };
    size_t            at         = 0;

    for (int i = 0; i < 4; i++) /* 1/16, 3/16, 4/16, 8/16 */
        at += (size_t)snprintf(pools + at, sizeof(pools) - at, "%sp%d:%zu:%s", i > 0 ? "," : "", i,
                               bytes / 16 *
                                   (size_t)(i == 0   ? 1
                                            : i == 1 ? 3
                                            : i == 2 ? 4
                                                     : 8),
                               policies[i]);
    cache = open_cache(&client, "1", pools, "lru");
    near_cache_set_pool_fn(cache, by_number, &four);
    before = resident();
    for (size_t i = 0; i < bytes / 40; i++) {
        char room[KEY + 1];

        near_put(cache, key_of(room, i), (near_bytes){ value, next(&seed) % sizeof(value) }, NULL);
    }
    sleep(1); /* upkeep */
    after = resident();
    near_stats_get(client, &stats);
    printf("4 pools of %zu MiB: %.2f MiB counted (%.2f %%), %.2f MiB resident (%.2f %%), %llu entries, %llu "
           "evicted\n",
           mib, (double)stats.l1_bytes / 1048576, 100.0 * (double)stats.l1_bytes / (double)bytes,
           (double)(after - before) / 1048576, 100.0 * (double)(after - before) / (double)bytes,
           (unsigned long long)stats.l1_entries, (unsigned long long)stats.l1_evictions);
    near_client_close(client, NULL);
}

int
main(int argc, char **argv)
{
    size_t n = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;

    if (argc > 1 && strcmp(argv[1], "price") == 0)
        price(n != 0 ? n : 1000000);
    else if (argc > 1 && strcmp(argv[1], "scan") == 0)
        scan(n != 0 ? n : 50000);
    else if (argc > 1 && strcmp(argv[1], "bounds") == 0)
        bounds(n != 0 ? n : 256);
    else
        fail("price [ENTRIES] | scan [ENTRIES] | bounds [MIB]");
    return 0;
}
