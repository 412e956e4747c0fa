/*
 * The whole path through the public interface, the same list of behaviours over every pair of tiers: memory, Redis, memcached with a
 * Redis bus, and memcached alone.  Two clients stand for two instances.  Only nearcache.h is used, and raw server commands to
 * look or to spoil; but for the controls, which take a cure away.
 */
#include "harness/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/client.h"
#include "harness/proxy.h"
#include "harness/server.h"
#include "l2/envelope.h"

enum tier { TIER_MEMORY, TIER_REDIS, TIER_MEMCACHED_BUS, TIER_MEMCACHED };

struct world {
    enum tier           tier;
    struct test_server *redis, *memcached;
    char                l2[300], bus[300];
};

static struct world world_memory    = { .tier = TIER_MEMORY };
static struct world world_redis     = { .tier = TIER_REDIS };
static struct world world_both      = { .tier = TIER_MEMCACHED_BUS };
static struct world world_memcached = { .tier = TIER_MEMCACHED };

static int
start_world(struct world *w)
{
    static unsigned numbers;

    w->redis = w->memcached = NULL;
    strcpy(w->bus, "auto");
    if (w->tier == TIER_MEMORY)
        snprintf(w->l2, sizeof(w->l2), "memory:world%u", ++numbers);
    if (w->tier == TIER_REDIS || w->tier == TIER_MEMCACHED_BUS)
        w->redis = test_redis_start(0, NULL);
    if (w->tier == TIER_MEMCACHED || w->tier == TIER_MEMCACHED_BUS)
        w->memcached = test_memcached_start(0, NULL);
    if (w->tier == TIER_REDIS && w->redis != NULL)
        strcpy(w->l2, w->redis->uri);
    if (w->memcached != NULL)
        strcpy(w->l2, w->memcached->uri);
    if (w->tier == TIER_MEMCACHED_BUS && w->redis != NULL)
        strcpy(w->bus, w->redis->uri);
    return 0;
}

static bool
is_missing(const struct world *w)
{
    return ((w->tier == TIER_REDIS || w->tier == TIER_MEMCACHED_BUS) && w->redis == NULL) ||
           ((w->tier == TIER_MEMCACHED || w->tier == TIER_MEMCACHED_BUS) && w->memcached == NULL);
}

static int
stop_world(struct world *w)
{
    test_server_stop(&w->redis);
    test_server_stop(&w->memcached);
    return 0;
}

#define WORLD(name)                                                                                          \
    static int start_##name(void **state)                                                                    \
    {                                                                                                        \
        *state = &world_##name;                                                                              \
        return start_world(&world_##name);                                                                   \
    }                                                                                                        \
    static int stop_##name(void **state)                                                                     \
    {                                                                                                        \
        return stop_world(*state);                                                                           \
    }
WORLD(memory)
WORLD(redis)
WORLD(both)
WORLD(memcached)

/* ---- instances */

struct instance {
    near_client *client;
    near_cache  *cache;
};

static void
config_of(const struct world *w, near_config *config)
{
    assert_int_equal(near_config_set(config, "l2.uri", w->l2, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "coherence.uri", w->bus, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.timeout", "2s", NULL),
                     NEAR_OK); /* the machine may be busy */
    assert_int_equal(near_config_set(config, "l2.connect_timeout", "2s", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "coherence.serve_window", "10s", NULL), NEAR_OK);
}

static void
open_with(const struct world *w, struct instance *in, const char *const *settings)
{
    near_config *config = near_config_new();
    near_error   error;

    config_of(w, config);
    for (size_t i = 0; settings != NULL && settings[i] != NULL; i += 2)
        if (near_config_set(config, settings[i], settings[i + 1], &error) != NEAR_OK)
            fail_msg("%s", error.text);
    if (near_client_open(config, &in->client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    if (near_cache_open(in->client, "things", NULL, &in->cache, &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

static void
open_instance(const struct world *w, struct instance *in)
{
    open_with(w, in, NULL);
}

static void
close_instance(struct instance *in)
{
    near_error error = { 0 };

    if (near_client_close(in->client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

static near_stats
stats_of(const struct instance *in)
{
    near_stats stats = NEAR_STATS_INIT;

    assert_int_equal(near_stats_get(in->client, &stats), NEAR_OK);
    return stats;
}

static void
assert_value(near_value *value, const char *text)
{
    near_bytes bytes = near_value_bytes(value);

    assert_non_null(value);
    assert_int_equal(bytes.size, strlen(text));
    assert_memory_equal(bytes.data, text, bytes.size);
    near_value_release(value);
}

static void
assert_get(near_cache *cache, const char *key, const char *text)
{
    near_value *value;

    assert_int_equal(near_get(cache, near_key(key), &value), NEAR_OK);
    assert_value(value, text);
}

#define NEEDS(w)                                                                                             \
    do {                                                                                                     \
        if (is_missing(w))                                                                                   \
            skip();                                                                                          \
    } while (0)

/* ---- a store and its loader */

struct store {
    _Atomic unsigned version; /* what every key is worth just now */
    _Atomic unsigned calls, keys;
    _Atomic int      mode; /* 0 answer, 1 not found, 2 fail, 3 hold */
    pthread_mutex_t  lock; /* covers held */
    near_load       *held[64];
    size_t           n_held;
};

static void
answer_version(near_load *load, unsigned version)
{
    char text[32];

    snprintf(text, sizeof(text), "v%u", version);
    near_load_set(load, near_key(text));
}

static void
load_from_store(near_load *loads[], size_t n, void *ctx)
{
    struct store *store = ctx;

    store->calls++;
    store->keys += (unsigned)n;
    for (size_t i = 0; i < n; i++) {
        switch (atomic_load(&store->mode)) {
        case 1:
            near_load_not_found(loads[i]);
            break;
        case 2:
            near_load_fail(loads[i], NEAR_ERR_LOADER);
            break;
        case 3:
            pthread_mutex_lock(&store->lock);
            store->held[store->n_held++] = loads[i];
            pthread_mutex_unlock(&store->lock);
            break;
        default:
            answer_version(loads[i], store->version);
        }
    }
}

/* ---- behaviours */

static void
a_put_is_read_back_from_both_tiers(void **state)
{
    struct world   *w = *state;
    struct instance a, b;
    near_value     *value;
    near_value_info info = NEAR_VALUE_INFO_INIT;

    NEEDS(w);
    open_instance(w, &a);
    open_instance(w, &b);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("hello"), NULL), NEAR_OK);
    assert_int_equal(near_get(a.cache, near_key("k"), &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_int_equal(info.source, NEAR_FROM_L1);
    assert_int_equal(info.size, 5);
    assert_false(info.stale);
    assert_true(info.ttl_ms > 0);
    assert_value(value, "hello");

    if (w->tier !=
        TIER_MEMCACHED) /* else the message of the put may come after the first read, and drop what it kept */
        assert_int_equal(near_fence(b.client, 5000), NEAR_OK);
    assert_int_equal(near_get(b.cache, near_key("k"), &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_int_equal(info.source, NEAR_FROM_L2);
    assert_value(value, "hello");
    assert_int_equal(near_get(b.cache, near_key("k"), &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_int_equal(info.source, NEAR_FROM_L1);
    assert_value(value, "hello");
    assert_int_equal(near_get(b.cache, near_key("other"), &value), NEAR_MISS);
    assert_null(value);
    close_instance(&a);
    close_instance(&b);
}

/* G2+: a write acknowledged in one instance is seen by a read after near_fence() in the other. */
static void
test_G2_a_write_elsewhere_is_seen_after_a_fence(void **state)
{
    struct world   *w = *state;
    struct instance a, b;
    char            text[32];

    NEEDS(w);
    open_instance(w, &a);
    open_instance(w, &b);
    if (w->tier == TIER_MEMCACHED) {
        assert_int_equal(near_fence(b.client, -1), NEAR_ERR_UNSUPPORTED); /* no bus: said, not pretended */
    } else {
        for (size_t i = 0; i < test_scale(300); i++) {
            struct instance *writer = i % 2 ? &a : &b, *reader = i % 2 ? &b : &a;
            snprintf(text, sizeof(text), "v%zu", i);
            assert_int_equal(near_put(writer->cache, near_key("k"), near_key(text), NULL), NEAR_OK);
            assert_int_equal(near_fence(reader->client, 5000), NEAR_OK);
            assert_get(reader->cache, "k", text);
            assert_get(reader->cache, "k", text); /* and again, now from L1 */
            assert_get(writer->cache, "k", text);
        }
        assert_true(stats_of(&a).hits_l1 > 0);
        assert_true(stats_of(&a).bus_received > 0);
        assert_int_equal(stats_of(&a).bus_gaps, 0);
    }
    close_instance(&a);
    close_instance(&b);
}

/* The control of the test above: without the bus the other instance's L1 keeps the old value. */
static void
control_without_a_bus_the_other_instance_stays_stale(void **state)
{
    struct world            *w        = *state;
    static const char *const no_bus[] = {
        "coherence.mode", "none", "coherence.uri", "auto", "l1.max_ttl", "60s", NULL
    };
    struct instance a, b;

    NEEDS(w);
    open_with(w, &a, no_bus);
    open_with(w, &b, no_bus);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("old"), NULL), NEAR_OK);
    assert_get(b.cache, "k", "old");
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("new"), NULL), NEAR_OK);
    assert_get(b.cache, "k", "old");
    assert_get(a.cache, "k", "new");
    close_instance(&a);
    close_instance(&b);
}

static void
a_removal_reaches_everybody(void **state)
{
    struct world   *w = *state;
    struct instance a, b;
    near_value     *value;

    NEEDS(w);
    open_instance(w, &a);
    open_instance(w, &b);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("x"), NULL), NEAR_OK);
    assert_get(b.cache, "k", "x");
    assert_int_equal(near_remove(a.cache, near_key("k")), NEAR_OK);
    assert_int_equal(near_remove(a.cache, near_key("never there")), NEAR_OK);
    assert_int_equal(near_get(a.cache, near_key("k"), &value), NEAR_MISS);
    assert_int_equal(near_fence(b.client, 5000), NEAR_OK);
    assert_int_equal(near_get(b.cache, near_key("k"), &value), NEAR_MISS);
    close_instance(&a);
    close_instance(&b);
}

static void
a_clear_empties_one_cache_everywhere_and_no_other(void **state)
{
    struct world            *w       = *state;
    static const char *const no_l1[] = { "l1.max_bytes", "0", NULL };
    struct instance          a, b;
    near_cache              *other;
    near_value              *value;

    NEEDS(w);
    open_instance(w, &a);
    open_with(w, &b, w->tier == TIER_MEMCACHED ? no_l1 : NULL); /* without a bus L1 may lag by l1.max_ttl */
    assert_int_equal(near_cache_open(a.client, "other", NULL, &other, NULL), NEAR_OK);
    assert_int_equal(near_put(other, near_key("k"), near_key("kept"), NULL), NEAR_OK);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("x"), NULL), NEAR_OK);
    assert_get(b.cache, "k", "x");
    assert_int_equal(near_clear(a.cache), NEAR_OK);
    assert_int_equal(near_get(a.cache, near_key("k"), &value), NEAR_MISS);
    if (w->tier != TIER_MEMCACHED)
        assert_int_equal(near_fence(b.client, 5000), NEAR_OK);
    else
        nanosleep(&(struct timespec){ 0, 20 * NEAR_MS }, NULL); /* G4: 10 ms, and the clock's grain */
    assert_int_equal(near_get(b.cache, near_key("k"), &value), NEAR_MISS);
    assert_get(other, "k", "kept");
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("y"), NULL), NEAR_OK);
    assert_get(b.cache, "k", "y");
    close_instance(&a);
    close_instance(&b);
}

static void
a_fetch_loads_once_and_stores_in_both_tiers(void **state)
{
    struct world   *w     = *state;
    struct store    store = { .version = 7 };
    struct instance a, b;
    near_value     *value;
    near_value_info info = NEAR_VALUE_INFO_INIT;

    NEEDS(w);
    open_instance(w, &a);
    open_instance(w, &b);
    assert_int_equal(near_fetch(a.cache, near_key("k"), NULL, &value), NEAR_ERR_INVALID); /* no loader yet */
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    assert_int_equal(near_fetch(a.cache, near_key("k"), NULL, &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_int_equal(info.source, NEAR_FROM_LOADER);
    assert_value(value, "v7");
    assert_int_equal(near_fetch(a.cache, near_key("k"), NULL, &value), NEAR_OK);
    assert_value(value, "v7");
    assert_int_equal(near_fetch(b.cache, near_key("k"), NULL, &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_int_equal(info.source, NEAR_FROM_L2);
    assert_value(value, "v7");
    assert_int_equal(store.calls, 1);
    assert_int_equal(stats_of(&a).leases_won, 1);
    assert_int_equal(stats_of(&a).l2_fills, 1);
    close_instance(&a);
    close_instance(&b);
}

static void
not_found_is_remembered_and_failures_are_not(void **state)
{
    struct world   *w     = *state;
    struct store    store = { .mode = 1 };
    struct instance a, b;
    near_value     *value;

    NEEDS(w);
    open_instance(w, &a);
    open_instance(w, &b);
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    assert_int_equal(near_fetch(a.cache, near_key("k"), NULL, &value), NEAR_NOT_FOUND);
    assert_null(value);
    assert_int_equal(near_fetch(a.cache, near_key("k"), NULL, &value), NEAR_NOT_FOUND);
    assert_int_equal(near_fetch(b.cache, near_key("k"), NULL, &value), NEAR_NOT_FOUND);
    assert_int_equal(near_get(b.cache, near_key("k"), &value), NEAR_NOT_FOUND);
    assert_int_equal(store.calls, 1);

    store.mode = 2;
    assert_int_equal(near_fetch(a.cache, near_key("f"), NULL, &value), NEAR_ERR_LOADER);
    assert_null(value);
    store.mode = 0; /* its lease was given back: the next load is stored */
    assert_int_equal(near_fetch(b.cache, near_key("f"), NULL, &value), NEAR_OK);
    assert_value(value, "v0");
    assert_int_equal(stats_of(&b).l2_fills, 1);
    assert_int_equal(store.calls, 3);
    close_instance(&a);
    close_instance(&b);
}

static void
a_batch_is_one_pass_and_one_loader_call(void **state)
{
    struct world   *w     = *state;
    struct store    store = { .version = 1 };
    struct instance a, b;
    enum { N = 1100 }; /* more than two L2 batches */
    static near_bytes  keys[N];
    static char        text[N][16];
    static near_value *values[N];
    static near_status statuses[N];
    near_stats         before, after;

    NEEDS(w);
    open_instance(w, &a);
    open_instance(w, &b);
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    for (size_t i = 0; i < N; i++) {
        snprintf(text[i], sizeof(text[i]), "key%zu", i % (N - 10)); /* ten keys occur twice */
        keys[i] = near_key(text[i]);
    }
    assert_int_equal(near_put(a.cache, keys[3], near_key("put"), NULL), NEAR_OK);
    assert_int_equal(near_fetch_many(a.cache, keys, N, NULL, values, statuses), NEAR_OK);
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(statuses[i], NEAR_OK);
        assert_value(values[i], i % (N - 10) == 3 ? "put" : "v1");
    }
    assert_int_equal(store.calls, 1);
    assert_int_equal(store.keys, N - 10 - 1);

    before = stats_of(&b);
    assert_int_equal(near_get_many(b.cache, keys, N, values, statuses), NEAR_OK);
    after = stats_of(&b);
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(statuses[i], NEAR_OK);
        assert_value(values[i], i % (N - 10) == 3 ? "put" : "v1");
    }
    assert_true(after.l2_requests - before.l2_requests <= 3);
    assert_int_equal(near_get_many(b.cache, keys, N, values, statuses), NEAR_OK);
    assert_int_equal(stats_of(&b).l2_requests, after.l2_requests); /* all in L1 now */
    for (size_t i = 0; i < N; i++)
        near_value_release(values[i]);
    close_instance(&a);
    close_instance(&b);
}

static void
put_many_and_remove_many_cost_one_message(void **state)
{
    struct world   *w = *state;
    struct instance a, b;
    enum { N = 100 };
    near_bytes  keys[N], data[N];
    char        text[N][16];
    near_status statuses[N];
    near_value *values[N];

    NEEDS(w);
    open_instance(w, &a);
    open_instance(w, &b);
    for (size_t i = 0; i < N; i++) {
        snprintf(text[i], sizeof(text[i]), "n%zu", i);
        keys[i] = data[i] = near_key(text[i]);
    }
    assert_int_equal(near_put_many(a.cache, keys, data, N, NULL, statuses), NEAR_OK);
    if (w->tier != TIER_MEMCACHED) {
        assert_int_equal(near_fence(b.client, 5000), NEAR_OK);
        assert_int_equal(stats_of(&a).bus_sent, 1);
        assert_int_equal(stats_of(&b).bus_received, 1);
        assert_int_equal(stats_of(&b).bus_keys_received, N);
    }
    assert_int_equal(near_get_many(b.cache, keys, N, values, statuses), NEAR_OK);
    for (size_t i = 0; i < N; i++)
        assert_value(values[i], text[i]);
    assert_int_equal(near_remove_many(a.cache, keys, N, statuses), NEAR_OK);
    for (size_t i = 0; i < N; i++)
        assert_int_equal(near_get(a.cache, keys[i], &values[i]), NEAR_MISS);
    close_instance(&a);
    close_instance(&b);
}

/* A large batch does not void its own L1 fills, but for the few keys that share a stripe within a part. */
static void
a_large_batch_is_kept_in_L1(void **state)
{
    struct world   *w = *state;
    struct instance a;
    enum { N = 5000 };
    static near_bytes  keys[N];
    static char        text[N][16];
    static near_status statuses[N];
    near_stats         stats;

    NEEDS(w);
    open_instance(w, &a);
    for (size_t i = 0; i < N; i++) {
        snprintf(text[i], sizeof(text[i]), "key%zu", i);
        keys[i] = near_key(text[i]);
    }
    assert_int_equal(near_put_many(a.cache, keys, keys, N, NULL, statuses), NEAR_OK);
    stats = stats_of(&a);
    assert_true(stats.l1_entries > N * 95 / 100);
    if (w->tier != TIER_MEMCACHED)
        assert_int_equal(stats.bus_sent, (N + 511) / 512);
    close_instance(&a);
}

/* What one value of a batch suffers, the others do not. */
static void
a_refused_value_harms_no_other_of_its_batch(void **state)
{
    struct world            *w       = *state;
    static const char *const large[] = { "l2.max_value", "4MiB", NULL };
    struct instance          a, b;
    near_bytes               keys[2] = { near_key("small"), near_key("large") }, data[2];
    near_status              statuses[2];
    char                    *big = calloc(1, 2u << 20);

    NEEDS(w);
    open_with(w, &a, large);
    open_with(w, &b, large);
    data[0] = near_key("x");
    data[1] = (near_bytes){ big, 2u << 20 }; /* more than memcached takes */
    near_put_many(a.cache, keys, data, 2, NULL, statuses);
    assert_int_equal(statuses[0], NEAR_OK);
    assert_int_equal(statuses[1], w->memcached != NULL ? NEAR_ERR_TOO_LARGE : NEAR_OK);
    assert_get(b.cache, "small", "x");
    free(big);
    close_instance(&a);
    close_instance(&b);
}

/* Race 4: what a slow load read is as old as its start, not as its end; l1.max_ttl counts from there. */
static void
test_race4_a_load_is_as_old_as_its_start(void **state)
{
    struct world            *w             = *state;
    static const char *const short_lived[] = {
        "coherence.mode", "none", "coherence.uri", "auto", "l1.max_ttl", "150ms", NULL
    };
    struct store       store   = { .version = 1, .mode = 3, .lock = PTHREAD_MUTEX_INITIALIZER };
    near_fetch_options patient = NEAR_FETCH_OPTIONS_INIT;
    near_get_options   l1_only = NEAR_GET_OPTIONS_INIT;
    struct instance    a;
    near_value        *value;

    NEEDS(w);
    open_with(w, &a, short_lived);
    near_cache_set_loader(a.cache, load_from_store, &store);
    patient.timeout_ms = 200 * (int64_t)test_slack(); /* longer than l1.max_ttl */
    assert_int_equal(near_fetch(a.cache, near_key("k"), &patient, &value), NEAR_ERR_TIMEOUT);
    answer_version(store.held[0], 1);
    l1_only.flags = NEAR_ONLY_L1;
    assert_int_equal(near_get_with(a.cache, near_key("k"), &l1_only, &value), NEAR_MISS);
    assert_get(a.cache, "k", "v1"); /* it is in L2 */
    assert_int_equal(near_get_with(a.cache, near_key("k"), &l1_only, &value),
                     NEAR_OK); /* and from there in L1: the control */
    near_value_release(value);
    close_instance(&a);
}

/* Race 1 through the whole path: a load that began before a write is not kept, in either tier. */
static void
test_race1_a_slow_load_is_refused_by_lease_and_fence(void **state)
{
    struct world      *w     = *state;
    struct store       store = { .version = 1, .mode = 3, .lock = PTHREAD_MUTEX_INITIALIZER };
    struct instance    a, b;
    near_fetch_options quick = NEAR_FETCH_OPTIONS_INIT;
    near_value        *value;

    NEEDS(w);
    open_instance(w, &a);
    open_instance(w, &b);
    near_cache_set_loader(a.cache, load_from_store, &store);
    quick.timeout_ms = 100 * (int64_t)test_slack(); /* enough for L2, not for a loader that holds */
    assert_int_equal(near_fetch(a.cache, near_key("k"), &quick, &value), NEAR_ERR_TIMEOUT);
    assert_int_equal(store.n_held, 1);
    /* the write, by the other instance where it can be heard, else by the same */
    assert_int_equal(
        near_put(w->tier == TIER_MEMCACHED ? a.cache : b.cache, near_key("k"), near_key("new"), NULL),
        NEAR_OK);
    if (w->tier != TIER_MEMCACHED)
        assert_int_equal(near_fence(a.client, 5000), NEAR_OK);
    answer_version(store.held[0], 1); /* the old one arrives */
    assert_get(a.cache, "k", "new");
    assert_get(b.cache, "k", "new");
    assert_int_equal(stats_of(&a).l2_fills_refused, 1);
    assert_int_equal(stats_of(&a).l1_fills_refused, 1);
    close_instance(&a);
    close_instance(&b);
}

/* The same with a removal: the key must not be resurrected. */
static void
test_race27_a_removal_voids_the_lease(void **state)
{
    struct world      *w     = *state;
    struct store       store = { .version = 1, .mode = 3, .lock = PTHREAD_MUTEX_INITIALIZER };
    struct instance    a;
    near_fetch_options quick = NEAR_FETCH_OPTIONS_INIT;
    near_value        *value;

    NEEDS(w);
    open_instance(w, &a);
    near_cache_set_loader(a.cache, load_from_store, &store);
    quick.timeout_ms = 100 * (int64_t)test_slack(); /* enough for L2, not for a loader that holds */
    assert_int_equal(near_fetch(a.cache, near_key("k"), &quick, &value), NEAR_ERR_TIMEOUT);
    assert_int_equal(near_remove(a.cache, near_key("k")), NEAR_OK);
    answer_version(store.held[0], 1);
    assert_int_equal(near_get(a.cache, near_key("k"), &value), NEAR_MISS);
    /* and the control: without a write in between the late answer is kept */
    assert_int_equal(near_fetch(a.cache, near_key("c"), &quick, &value), NEAR_ERR_TIMEOUT);
    answer_version(store.held[1], 2);
    assert_get(a.cache, "c", "v2");
    close_instance(&a);
}

/* A fetch that starts after a write never gets a value whose load began before it. */
static void
test_G1_a_write_detaches_the_flight(void **state)
{
    struct world      *w     = *state;
    struct store       store = { .version = 1, .mode = 3, .lock = PTHREAD_MUTEX_INITIALIZER };
    struct instance    a;
    near_fetch_options quick = NEAR_FETCH_OPTIONS_INIT;
    near_value        *value;

    NEEDS(w);
    open_instance(w, &a);
    near_cache_set_loader(a.cache, load_from_store, &store);
    quick.timeout_ms = 100 * (int64_t)test_slack(); /* enough for L2, not for a loader that holds */
    assert_int_equal(near_fetch(a.cache, near_key("k"), &quick, &value), NEAR_ERR_TIMEOUT);
    assert_int_equal(near_fetch(a.cache, near_key("k"), &quick, &value), NEAR_ERR_TIMEOUT); /* joins */
    assert_int_equal(store.calls, 1);
    assert_int_equal(near_remove(a.cache, near_key("k")), NEAR_OK);
    store.mode    = 0;
    store.version = 2;
    assert_int_equal(near_fetch(a.cache, near_key("k"), NULL, &value), NEAR_OK); /* loads anew */
    assert_value(value, "v2");
    assert_int_equal(store.calls, 2);
    assert_int_equal(stats_of(&a).flights_detached, 1);
    answer_version(store.held[0], 1);
    assert_get(a.cache, "k", "v2");
    close_instance(&a);
}

struct crowd {
    near_cache       *cache;
    pthread_barrier_t barrier;
    _Atomic unsigned  wrong;
};

static void *
fetch_in_crowd(void *ctx)
{
    struct crowd *crowd = ctx;

    for (int round = 0; round < 20; round++) {
        near_value *value;
        char        key[16];

        snprintf(key, sizeof(key), "round%d", round);
        pthread_barrier_wait(&crowd->barrier);
        if (near_fetch(crowd->cache, near_key(key), NULL, &value) != NEAR_OK ||
            near_value_bytes(value).size != 2)
            crowd->wrong++;
        near_value_release(value);
    }
    return NULL;
}

/* G8 in one process: however many ask, one load per key. */
static void
test_G8_a_crowd_loads_once(void **state)
{
    struct world   *w     = *state;
    struct store    store = { .version = 1 };
    struct crowd    crowd = { .wrong = 0 };
    struct instance a;
    pthread_t       threads[16];

    NEEDS(w);
    open_instance(w, &a);
    near_cache_set_loader(a.cache, load_from_store, &store);
    crowd.cache = a.cache;
    pthread_barrier_init(&crowd.barrier, NULL, NEAR_COUNT_OF(threads));
    for (size_t i = 0; i < NEAR_COUNT_OF(threads); i++)
        pthread_create(&threads[i], NULL, fetch_in_crowd, &crowd);
    for (size_t i = 0; i < NEAR_COUNT_OF(threads); i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&crowd.barrier);
    assert_int_equal(crowd.wrong, 0);
    assert_int_equal(store.keys, 20);
    close_instance(&a);
}

static void
load_asking_for_itself(near_load *loads[], size_t n, void *ctx)
{
    struct instance *a = ctx;
    near_value      *value;

    for (size_t i = 0; i < n; i++) {
        bool inner = near_load_key(loads[i]).size == strlen("inner");
        if (inner)
            near_load_set(loads[i], near_key("from inside"));
        else if (near_fetch(a->cache, near_load_key(loads[i]), NULL, &value) != NEAR_ERR_BUSY)
            near_load_fail(loads[i], NEAR_ERR_LOADER);
        else if (near_fetch(a->cache, near_key("inner"), NULL, &value) != NEAR_OK)
            near_load_fail(loads[i], NEAR_ERR_LOADER);
        else {
            near_load_set(loads[i], near_value_bytes(value));
            near_value_release(value);
        }
    }
}

static void
a_loader_may_fetch_but_not_what_it_loads(void **state)
{
    struct world   *w = *state;
    struct instance a;
    near_value     *value;

    NEEDS(w);
    open_instance(w, &a);
    near_cache_set_loader(a.cache, load_asking_for_itself, &a);
    assert_int_equal(near_fetch(a.cache, near_key("outer key"), NULL, &value), NEAR_OK);
    assert_value(value, "from inside");
    close_instance(&a);
}

static _Atomic unsigned released;
static void
count_release(void *data)
{
    released++;
    free(data);
}

static void
load_adopting(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        near_load_ttl(loads[i], 60000);
        near_load_adopt(loads[i], strdup("adopted"), 7, count_release);
    }
}

static void
an_adopted_value_is_released_once_when_the_last_holder_goes(void **state)
{
    struct world   *w = *state;
    struct instance a;
    near_value     *value, *again;

    NEEDS(w);
    released = 0;
    open_instance(w, &a);
    near_cache_set_loader(a.cache, load_adopting, NULL);
    assert_int_equal(near_fetch(a.cache, near_key("k"), NULL, &value), NEAR_OK);
    again = near_value_ref(value);
    near_value_release(value);
    close_instance(&a); /* values outlive the client */
    assert_int_equal(released, 0);
    assert_value(again, "adopted");
    assert_int_equal(released, 1);
}

/* Keys that a server could not take as they are go through a hash; the full key is in the entry. */
static void
keys_of_every_shape_round_trip(void **state)
{
    struct world            *w       = *state;
    static const char *const no_l1[] = { "l1.max_bytes", "0", NULL };
    static char              big[65536 + 1];
    struct instance          a;
    near_value              *value;
    char                     text[32];
    const near_bytes         keys[] = {
                { "", 0 },
                { "plain", 5 },
                { "with blank", 10 },
                { "a\r\nset x 0 0 1\r\nb", 18 },
                { "nul\0inside", 10 },
                { "\xc3\xbc\xe2\x82\xac", 5 },
                { big, 200 },
                { big, 250 },
                { big, 251 },
                { big, 1000 },
                { big, 65536 },
                { "\x7f", 1 },
                { "\x01", 1 },
                { "{hash}tag", 9 },
                { "#x", 2 },
                { ":", 1 },
    };

    NEEDS(w);
    memset(big, 'k', sizeof(big));
    open_with(w, &a, no_l1);
    for (size_t i = 0; i < NEAR_COUNT_OF(keys); i++) {
        snprintf(text, sizeof(text), "value %zu", i);
        assert_int_equal(near_put(a.cache, keys[i], near_key(text), NULL), NEAR_OK);
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(keys); i++) {
        snprintf(text, sizeof(text), "value %zu", i);
        assert_int_equal(near_get(a.cache, keys[i], &value), NEAR_OK);
        assert_value(value, text);
    }
    assert_int_equal(near_put(a.cache, (near_bytes){ big, 65537 }, near_key("x"), NULL), NEAR_ERR_TOO_LARGE);
    assert_int_equal(near_get(a.cache, (near_bytes){ big, 65537 }, &value), NEAR_ERR_TOO_LARGE);
    assert_int_equal(stats_of(&a).l2_wrong_key + stats_of(&a).l2_corrupt, 0);
    close_instance(&a);
}

static void
values_of_every_size_round_trip(void **state)
{
    struct world            *w       = *state;
    static const char *const no_l1[] = { "l1.max_bytes", "0", NULL };
    static const size_t      sizes[] = { 0, 1, 100, 4095, 4096, 65536, (1u << 20) - 1024 };
    struct instance          a;
    near_value              *value;
    char                    *big = malloc((1u << 20) + 1);

    NEEDS(w);
    for (size_t i = 0; i <= 1u << 20; i++)
        big[i] = (char)(i * 31 + (i >> 8));
    open_with(w, &a, no_l1);
    for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++) {
        assert_int_equal(near_put(a.cache, near_key("k"), (near_bytes){ big, sizes[i] }, NULL), NEAR_OK);
        assert_int_equal(near_get(a.cache, near_key("k"), &value), NEAR_OK);
        assert_int_equal(near_value_bytes(value).size, sizes[i]);
        assert_memory_equal(near_value_bytes(value).data, big, sizes[i]);
        assert_int_equal((uintptr_t)near_value_bytes(value).data % (sizes[i] >= 4096 ? 64 : 16), 0);
        near_value_release(value);
    }
    /* over l2.max_value: refused before anything changes */
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("small"), NULL), NEAR_OK);
    assert_int_equal(near_put(a.cache, near_key("k"), (near_bytes){ big, (1u << 20) + 1 }, NULL),
                     NEAR_ERR_TOO_LARGE);
    assert_get(a.cache, "k", "small");
    free(big);
    close_instance(&a);
}

static void
copies_report_their_size(void **state)
{
    struct world   *w = *state;
    struct instance a;
    char            buffer[8];
    size_t          size;
    near_value_info info = NEAR_VALUE_INFO_INIT;

    NEEDS(w);
    open_instance(w, &a);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("12345"), NULL), NEAR_OK);
    assert_int_equal(near_get_copy(a.cache, near_key("k"), buffer, sizeof(buffer), &size, &info), NEAR_OK);
    assert_int_equal(size, 5);
    assert_int_equal(info.size, 5);
    assert_memory_equal(buffer, "12345", 5);
    assert_int_equal(near_get_copy(a.cache, near_key("k"), buffer, 4, &size, NULL), NEAR_ERR_TOO_LARGE);
    assert_int_equal(size, 5);
    assert_int_equal(near_get_copy(a.cache, near_key("none"), buffer, 4, &size, NULL), NEAR_MISS);
    assert_int_equal(size, 0);
    close_instance(&a);
}

static void
levels_can_be_skipped(void **state)
{
    struct world    *w = *state;
    struct instance  a, b;
    near_get_options get = NEAR_GET_OPTIONS_INIT;
    near_put_options put = NEAR_PUT_OPTIONS_INIT;
    near_value      *value;

    NEEDS(w);
    open_instance(w, &a);
    open_instance(w, &b);
    put.flags = NEAR_NO_FILL;
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("x"), &put), NEAR_OK);
    get.flags = NEAR_ONLY_L1;
    assert_int_equal(near_get_with(a.cache, near_key("k"), &get, &value), NEAR_MISS);
    get.flags = NEAR_NO_FILL;
    assert_int_equal(near_get_with(a.cache, near_key("k"), &get, &value), NEAR_OK);
    near_value_release(value);
    get.flags = NEAR_ONLY_L1;
    assert_int_equal(near_get_with(a.cache, near_key("k"), &get, &value), NEAR_MISS);
    assert_get(a.cache, "k", "x");
    assert_int_equal(near_get_with(a.cache, near_key("k"), &get, &value), NEAR_OK);
    near_value_release(value);
    get.flags = NEAR_SKIP_L1;
    assert_int_equal(near_get_with(a.cache, near_key("k"), &get, &value), NEAR_OK);
    near_value_release(value);
    assert_int_equal(stats_of(&a).hits_l2, 3);
    close_instance(&a);
    close_instance(&b);
}

static void
ttls_end(void **state)
{
    struct world            *w       = *state;
    static const char *const no_l1[] = { "l1.max_bytes", "0", NULL };
    struct instance          a, b;
    near_put_options         put = NEAR_PUT_OPTIONS_INIT;
    near_value              *value;
    int64_t                  start;

    NEEDS(w);
    open_instance(w, &a);
    open_with(w, &b, no_l1);
    put.ttl_ms = 300;
    start      = test_now_ms();
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("x"), &put), NEAR_OK);
    while (near_get(a.cache, near_key("k"), &value) == NEAR_OK) {
        near_value_release(value);
        assert_true(test_now_ms() - start < 5000);
    }
    /* the entry's own time is up, also where the server rounds up to seconds (G0) */
    assert_true(test_now_ms() - start >= 300);
    assert_int_equal(near_get(b.cache, near_key("k"), &value), NEAR_MISS);
    put.ttl_ms = 0;
    assert_int_equal(near_put(a.cache, near_key("for ever"), near_key("x"), &put), NEAR_OK);
    assert_get(b.cache, "for ever", "x");
    put.ttl_ms = INT64_C(40) * 86400 * 1000; /* over memcached's 30 days */
    assert_int_equal(near_put(a.cache, near_key("long"), near_key("x"), &put), NEAR_OK);
    assert_get(b.cache, "long", "x");
    put.ttl_ms = INT64_MAX;
    assert_int_equal(near_put(a.cache, near_key("longest"), near_key("x"), &put), NEAR_OK);
    assert_get(b.cache, "longest", "x");
    close_instance(&a);
    close_instance(&b);
}

/* An entry that is read when most of its time is over ends with the rest of it, in L1, too: its header says when.  Not in there it would be
 * served for as long as L1 pleases. */
static _Atomic bool headers_say_nothing;

enum near__envelope_result __real_near__envelope_decode(struct near__envelope *envelope, near_bytes stored,
                                                        near_bytes key);
enum near__envelope_result __wrap_near__envelope_decode(struct near__envelope *envelope, near_bytes stored,
                                                        near_bytes key);
enum near__envelope_result
__wrap_near__envelope_decode(struct near__envelope *envelope, near_bytes stored, near_bytes key)
{
    enum near__envelope_result result = __real_near__envelope_decode(envelope, stored, key);

    if (headers_say_nothing)
        envelope->soft_expiry_ms = envelope->hard_expiry_ms = 0;
    return result;
}

/* Whether it is served after its end. */
static bool
outlives_its_ttl(const struct world *w)
{
    static const char *const late[] = { "l1.max_ttl", "60s", NULL };
    const int64_t            ttl    = 500 * (int64_t)test_slack();
    near_put_options         put    = NEAR_PUT_OPTIONS_INIT;
    struct instance          a, b;
    near_value              *value;
    int64_t                  began, stored;
    bool                     served;

    open_instance(w, &a);
    open_with(w, &b, late);
    put.ttl_ms = ttl;
    began      = test_now_ms();
    assert_int_equal(near_put(a.cache, near_key("late"), near_key("x"), &put), NEAR_OK);
    stored = test_now_ms();
    while (test_now_ms() < began + ttl / 2)
        usleep(1000);
    assert_get(b.cache, "late", "x");
    while (test_now_ms() <= stored + ttl + 30) /* a tick of 10 ms, and a step of the wall clock's */
        usleep(1000);
    served = near_get(b.cache, near_key("late"), &value) == NEAR_OK;
    near_value_release(value);
    close_instance(&a);
    close_instance(&b);
    return served;
}

static void
test_race19_what_is_read_late_ends_in_time(void **state)
{
    NEEDS((struct world *)*state);
    assert_false(outlives_its_ttl(*state));
}

static void
control_race19(void **state)
{
    NEEDS((struct world *)*state);
    headers_say_nothing = true;
    assert_true(outlives_its_ttl(*state));
    headers_say_nothing = false;
}

/* What a child reads from the L1 that it was born with, after its parent has written: 1: nothing, it is told that it is a child; 2: what
 * was there before; 3: something else.  `deaf`: without the page that a fork wipes. */
static int
read_as_a_child(const struct world *w, bool deaf)
{
    near_get_options l1_only = NEAR_GET_OPTIONS_INIT;
    struct instance  a;
    int              ready[2], status;
    char             byte = 0;
    pid_t            child;

    open_instance(w, &a);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("old"), NULL), NEAR_OK);
    assert_get(a.cache, "k", "old");
    assert_int_equal(pipe(ready), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        near_value *value;
        near_status answer;

        if (deaf)
            *(uint32_t *)(uintptr_t)a.client->alive = 1;
        if (read(ready[0], &byte, 1) != 1)
            _exit(4);
        l1_only.flags = NEAR_ONLY_L1;
        answer        = near_get_with(a.cache, near_key("k"), &l1_only, &value);
        if (answer == NEAR_OK)
            _exit(memcmp(near_value_bytes(value).data, "old", 3) == 0 ? 2 : 3);
        _exit(answer == NEAR_ERR_FORKED ? 1 : 3);
    }
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("new"), NULL), NEAR_OK);
    assert_int_equal(write(ready[1], &byte, 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    close(ready[0]);
    close(ready[1]);
    close_instance(&a);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void
test_race40_a_child_reads_nothing_of_its_parents(void **state)
{
    NEEDS((struct world *)*state);
    assert_int_equal(read_as_a_child(*state, false), 1);
}

static void
control_race40(void **state)
{
    NEEDS((struct world *)*state);
    assert_int_equal(read_as_a_child(*state, true), 2);
}

static void
a_forked_child_is_told_and_harms_nobody(void **state)
{
    struct world   *w = *state;
    struct instance a;
    near_value     *value;
    int             status;
    pid_t           child;

    NEEDS(w);
    open_instance(w, &a);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("x"), NULL), NEAR_OK);
    assert_get(a.cache, "k", "x");
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        bool ok = near_get(a.cache, near_key("k"), &value) == NEAR_ERR_FORKED && value == NULL &&
                  near_put(a.cache, near_key("k"), near_key("y"), NULL) == NEAR_ERR_FORKED &&
                  near_fence(a.client, 10) == NEAR_ERR_FORKED;
        near_cache_close(a.cache);
        ok = near_client_close(a.client, NULL) == NEAR_OK && ok;
        _exit(ok ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    /* the parent's connections are as they were */
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("z"), NULL), NEAR_OK);
    if (w->tier != TIER_MEMCACHED)
        assert_int_equal(near_fence(a.client, 5000), NEAR_OK);
    assert_get(a.cache, "k", "z");
    assert_int_equal(stats_of(&a).l2_disconnects, 0);
    close_instance(&a);
}

static void
closing_reports_loads_that_nobody_answered(void **state)
{
    struct world            *w         = *state;
    static const char *const no_wait[] = { "close.timeout", "0", NULL };
    struct store             store     = { .mode = 3, .lock = PTHREAD_MUTEX_INITIALIZER };
    near_fetch_options       quick     = NEAR_FETCH_OPTIONS_INIT;
    struct instance          a;
    near_error               error;
    near_value              *value;

    NEEDS(w);
    open_with(w, &a, no_wait);
    near_cache_set_loader(a.cache, load_from_store, &store);
    quick.timeout_ms = 100 * (int64_t)test_slack(); /* enough for L2, not for a loader that holds */
    assert_int_equal(near_fetch(a.cache, near_key("k"), &quick, &value), NEAR_ERR_TIMEOUT);
    assert_int_equal(near_client_close(a.client, &error), NEAR_ERR_BUSY);
    assert_non_null(strstr(error.text, "1 loads"));
    answer_version(store.held[0], 1); /* too late, and harmless */
}

static void
statistics_are_json(void **state)
{
    struct world   *w = *state;
    struct instance a;
    char           *json;

    NEEDS(w);
    open_instance(w, &a);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("x"), NULL), NEAR_OK);
    assert_get(a.cache, "k", "x");
    json = near_stats_json(a.client);
    assert_non_null(json);
    assert_int_equal(json[0], '{');
    assert_int_equal(json[strlen(json) - 1], '}');
    assert_non_null(strstr(json, "\"hits_l1\":1,"));
    assert_non_null(strstr(json, "\"puts\":1,"));
    near_free(json);
    close_instance(&a);
}

#define OVER(name, test)                                                                                     \
    cmocka_unit_test_prestate_setup_teardown_named(#test " / " #name, test, start_##name, stop_##name)
#define cmocka_unit_test_prestate_setup_teardown_named(text, test, setup, teardown)                          \
    {                                                                                                        \
        text, test, setup, teardown, NULL                                                                    \
    }
#define OVER_ALL(test) OVER(memory, test), OVER(redis, test), OVER(both, test), OVER(memcached, test)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER_ALL(a_put_is_read_back_from_both_tiers),
        OVER_ALL(test_G2_a_write_elsewhere_is_seen_after_a_fence),
        OVER_ALL(control_without_a_bus_the_other_instance_stays_stale),
        OVER(memory, a_removal_reaches_everybody), /* alone, memcached has nobody to tell */
        OVER(redis, a_removal_reaches_everybody),
        OVER(both, a_removal_reaches_everybody),
        OVER_ALL(a_clear_empties_one_cache_everywhere_and_no_other),
        OVER_ALL(a_fetch_loads_once_and_stores_in_both_tiers),
        OVER_ALL(not_found_is_remembered_and_failures_are_not),
        OVER_ALL(a_batch_is_one_pass_and_one_loader_call),
        OVER_ALL(put_many_and_remove_many_cost_one_message),
        OVER_ALL(a_large_batch_is_kept_in_L1),
        OVER_ALL(a_refused_value_harms_no_other_of_its_batch),
        OVER_ALL(test_race4_a_load_is_as_old_as_its_start),
        OVER_ALL(test_race1_a_slow_load_is_refused_by_lease_and_fence),
        OVER_ALL(test_race27_a_removal_voids_the_lease),
        OVER_ALL(test_G1_a_write_detaches_the_flight),
        OVER_ALL(test_G8_a_crowd_loads_once),
        OVER_ALL(a_loader_may_fetch_but_not_what_it_loads),
        OVER_ALL(an_adopted_value_is_released_once_when_the_last_holder_goes),
        OVER_ALL(keys_of_every_shape_round_trip),
        OVER_ALL(values_of_every_size_round_trip),
        OVER_ALL(copies_report_their_size),
        OVER_ALL(levels_can_be_skipped),
        OVER_ALL(ttls_end),
        OVER(memory, test_race19_what_is_read_late_ends_in_time),
        OVER(memcached, test_race19_what_is_read_late_ends_in_time),
        OVER(memory, control_race19),
        OVER(memcached, control_race19),
        OVER_ALL(test_race40_a_child_reads_nothing_of_its_parents),
        OVER_ALL(control_race40),
        OVER_ALL(a_forked_child_is_told_and_harms_nobody),
        OVER_ALL(closing_reports_loads_that_nobody_answered),
        OVER_ALL(statistics_are_json),
    };
    return TEST_MAIN(tests, NULL, NULL);
}
