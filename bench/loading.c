/*
 * What loading costs those who need none of it, and those who do.
 *
 *     bench/loading overhead [LOADS]       a load without contention, beside the same steps without flights: the difference is the
 *                                          bookkeeping.  And hits: near_get, near_fetch without and with early refresh.
 *     bench/loading expiry [SECONDS [URI]] reads of one hot key over its ends, beside reads of one that does not end
 *
 * Rounds alternate and medians are shown, because absolute times on a shared machine mean little.
 */
#include "bench/median.h"

#include "client/client.h"
#include "client/tier.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 7, VALUE = 100 };

static char value_bytes[VALUE];

static void
fail(const char *what)
{
    fprintf(stderr, "bench/loading: %s\n", what);
    exit(1);
}

static int64_t
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void
load_at_once(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], (near_bytes){ value_bytes, VALUE });
}

static void
load_slowly(near_load *loads[], size_t n, void *ctx)
{
    nanosleep(&(struct timespec){ 0, 5000000 }, NULL);
    load_at_once(loads, n, ctx);
}

/* Settings: names and values by turns, ended by NULL. */
static near_cache *
open_cache(near_client **client, const char *uri, const char *const *settings)
{
    near_config *config = near_config_new();
    near_cache  *cache  = NULL;
    near_error   error;

    if (near_config_set(config, "l2.uri", uri, &error) != NEAR_OK)
        fail(error.text);
    for (size_t i = 0; settings[i] != NULL; i += 2)
        if (near_config_set(config, settings[i], settings[i + 1], &error) != NEAR_OK)
            fail(error.text);
    if (near_client_open(config, client, &error) != NEAR_OK ||
        near_cache_open(*client, "bench", NULL, &cache, &error) != NEAR_OK)
        fail(error.text);
    near_config_free(config);
    return cache;
}

/* ---- overhead */

static near_bytes
key_of(char *text, size_t i)
{
    return (near_bytes){ text, (size_t)sprintf(text, "user_feature_%08zu", i) };
}

static double
fetch_cold(near_cache *cache, size_t loads, size_t from)
{
    char    text[64];
    int64_t began = now_ns();

    for (size_t i = 0; i < loads; i++) {
        near_value *value;

        if (near_fetch(cache, key_of(text, from + i), NULL, &value) != NEAR_OK)
            fail("a fetch failed");
        near_value_release(value);
    }
    return (double)(now_ns() - began) / (double)loads;
}

/* What any cache has to do for a load: look, load, make an entry, keep it, hand it out. */
static double
load_by_hand(near_cache *cache, size_t loads, size_t from)
{
    char    text[64];
    int64_t began = now_ns();

    for (size_t i = 0; i < loads; i++) {
        near_bytes          key  = key_of(text, from + i);
        int64_t             now  = near__client_now(cache->client);
        uint64_t            hash = near__hash_keyed(&cache->client->secret, key);
        uint64_t            fence;
        struct near__entry *entry;
        void               *bytes;

        if (near__l1_find(cache->l1, hash, key, now) != NULL)
            fail("not cold");
        fence = near__l1_fence(cache->l1, hash);
        entry = near__entry_new(key, hash, VALUE, &bytes);
        memcpy(bytes, value_bytes, VALUE);
        near__entry_date(cache, entry, now, cache->settings.ttl);
        near__l1_insert(cache->l1, entry, fence, now);
        near__entry_release(&entry);
    }
    return (double)(now_ns() - began) / (double)loads;
}

static double
hit(near_cache *cache, size_t n, bool fetch)
{
    near_bytes  key = near_key("hot");
    near_value *value;
    int64_t     began;

    if (near_fetch(cache, key, NULL, &value) != NEAR_OK)
        fail("a fetch failed");
    near_value_release(value);
    began = now_ns();
    for (size_t i = 0; i < n; i++) {
        if ((fetch ? near_fetch(cache, key, NULL, &value) : near_get(cache, key, &value)) != NEAR_OK)
            fail("a hit failed");
        near_value_release(value);
    }
    return (double)(now_ns() - began) / (double)n;
}

static void
overhead(size_t loads)
{
    static const char *const plain[] = { "l1.max_bytes", "1GiB", "early_refresh.beta", "0", NULL };
    static const char *const early[] = { "l1.max_bytes", "1GiB", "early_refresh.beta", "1", NULL };
    near_client             *one, *two;
    near_cache *cache = open_cache(&one, "none:", plain), *eager = open_cache(&two, "none:", early);
    double      flights[ROUNDS], hand[ROUNDS], get[ROUNDS], fetch[ROUNDS], eagerly[ROUNDS];

    near_cache_set_loader(cache, load_at_once, NULL);
    near_cache_set_loader(eager, load_at_once, NULL);
    for (size_t i = 0; i < ROUNDS; i++) {
        flights[i] = fetch_cold(cache, loads, 2 * i * loads);
        hand[i]    = load_by_hand(cache, loads, (2 * i + 1) * loads);
        get[i]     = hit(cache, 10 * loads, false);
        fetch[i]   = hit(cache, 10 * loads, true);
        eagerly[i] = hit(eager, 10 * loads, true);
    }
    printf("load: near_fetch %.0f ns, by hand %.0f ns", median(flights, ROUNDS), median(hand, ROUNDS));
    printf(": bookkeeping %.0f ns (goal: at most 1000)\n", flights[ROUNDS / 2] - hand[ROUNDS / 2]);
    printf("hit: near_get %.1f ns, near_fetch %.1f ns, with early refresh %.1f ns\n", median(get, ROUNDS),
           median(fetch, ROUNDS), median(eagerly, ROUNDS));
    near_client_close(one, NULL);
    near_client_close(two, NULL);
}

/* ---- expiry */

struct sample {
    uint32_t *ns;
    size_t    n, most;
};

static void
read_hot(near_cache *cache, double seconds, struct sample *sample, unsigned *stale)
{
    int64_t until = now_ns() + (int64_t)(seconds * 1e9);

    for (int64_t began = now_ns(), ended; began < until && sample->n < sample->most; began = ended) {
        near_value     *value;
        near_value_info info = NEAR_VALUE_INFO_INIT;

        if (near_fetch(cache, near_key("hot"), NULL, &value) != NEAR_OK)
            fail("a read failed");
        ended                   = now_ns();
        sample->ns[sample->n++] = (uint32_t)(ended - began);
        near_value_get_info(value, &info);
        *stale += info.stale;
        near_value_release(value);
        ended = now_ns();
    }
}

static int
by_ns(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static void
show(const char *what, struct sample *sample)
{
    qsort(sample->ns, sample->n, sizeof(*sample->ns), by_ns);
    printf("%-10s %zu reads: p50 %u ns, p99 %u ns, p99.9 %u ns, p99.99 %u ns, max %u ns\n", what, sample->n,
           sample->ns[sample->n / 2], sample->ns[sample->n / 100 * 99], sample->ns[sample->n / 1000 * 999],
           sample->ns[sample->n / 10000 * 9999], sample->ns[sample->n - 1]);
}

static void
expiry(double seconds, const char *uri)
{
    static const char *const plain[] = { "ttl", "1h", "l1.max_ttl", "1h", NULL };
    static const char *const ends[]  = { "ttl", "200ms", "l1.max_ttl", "1h", "grace", "10s", NULL };
    near_client             *one, *two;
    near_cache              *lasting = open_cache(&one, uri, plain), *ending;
    struct sample            hits = { .most = 20000000 }, over = { .most = 20000000 };
    unsigned                 stale = 0;
    near_stats               stats = NEAR_STATS_INIT;

    hits.ns = malloc(hits.most * sizeof(uint32_t));
    over.ns = malloc(over.most * sizeof(uint32_t));
    if (hits.ns == NULL || over.ns == NULL)
        fail("out of memory");
    near_cache_set_loader(lasting, load_slowly, NULL);
    near_clear(lasting);
    for (int i = 0; i < 4; i++)
        read_hot(lasting, seconds / 8, &hits, &stale);
    near_client_close(one, NULL);
    ending = open_cache(&two, uri, ends);
    near_cache_set_loader(ending, load_slowly, NULL);
    near_clear(ending);
    for (int i = 0; i < 4; i++)
        read_hot(ending, seconds / 8, &over, &stale);
    near_stats_get(two, &stats);
    near_client_close(two, NULL);
    show("no end", &hits);
    show("200ms TTL", &over);
    printf("loads %llu, of these early refreshes %llu, stale reads %u; p99 ratio %.2f (goal: at most 2)\n",
           (unsigned long long)stats.loads, (unsigned long long)stats.early_refreshes, stale,
           (double)over.ns[over.n / 100 * 99] / hits.ns[hits.n / 100 * 99]);
    free(hits.ns);
    free(over.ns);
}

int
main(int argc, char **argv)
{
    memset(value_bytes, 'v', sizeof(value_bytes));
    if (argc > 1 && strcmp(argv[1], "overhead") == 0)
        overhead(argc > 2 ? strtoul(argv[2], NULL, 10) : 100000);
    else if (argc > 1 && strcmp(argv[1], "expiry") == 0)
        expiry(argc > 2 ? strtod(argv[2], NULL) : 8, argc > 3 ? argv[3] : "memory:");
    else
        fail("usage: bench/loading overhead [LOADS] | expiry [SECONDS [URI]]");
    return 0;
}
