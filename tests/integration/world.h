/*
 * What the tests of loading share: a pair of tiers to run over, instances (a client with one cache), and a store whose loader does what
 * the test says.
 */
#ifndef TESTS_INTEGRATION_WORLD_H
#define TESTS_INTEGRATION_WORLD_H

#include "harness/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "harness/server.h"

enum tier { TIER_NONE, TIER_MEMORY, TIER_REDIS, TIER_MEMCACHED_BUS, TIER_MEMCACHED };

struct world {
    enum tier           tier;
    struct test_server *redis, *memcached;
    char                l2[300], bus[300];
};

static inline int
start_world(struct world *w)
{
    static unsigned numbers;

    w->redis = w->memcached = NULL;
    strcpy(w->bus, "auto");
    strcpy(w->l2, "none:");
    if (w->tier == TIER_MEMORY)
        snprintf(w->l2, sizeof(w->l2), "memory:loading%u", ++numbers);
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

static inline bool
is_missing(const struct world *w)
{
    return ((w->tier == TIER_REDIS || w->tier == TIER_MEMCACHED_BUS) && w->redis == NULL) ||
           ((w->tier == TIER_MEMCACHED || w->tier == TIER_MEMCACHED_BUS) && w->memcached == NULL);
}

static inline int
stop_world(struct world *w)
{
    test_server_stop(&w->redis);
    test_server_stop(&w->memcached);
    return 0;
}

#define WORLD(name, which)                                                                                   \
    static struct world world_##name = { .tier = which };                                                    \
    static int          start_##name(void **state)                                                           \
    {                                                                                                        \
        *state = &world_##name;                                                                              \
        return start_world(&world_##name);                                                                   \
    }                                                                                                        \
    static int stop_##name(void **state)                                                                     \
    {                                                                                                        \
        return stop_world(*state);                                                                           \
    }
#define OVER(world, test)                                                                                    \
    {                                                                                                        \
#test " over " #world, test, start_##world, stop_##world, NULL                                       \
    }
#define NEEDS(w)                                                                                             \
    do {                                                                                                     \
        if (is_missing(w))                                                                                   \
            skip();                                                                                          \
    } while (0)

/* ---- instances */

struct instance {
    near_client *client;
    near_cache  *cache;
};

/* Settings: names and values by turns, ended by NULL. */
static inline void
open_with(const struct world *w, struct instance *in, const char *const *settings)
{
    static const char *const wide[] = {
        /* the machine may be busy */
        "l2.timeout", "2s", "l2.connect_timeout", "2s", "coherence.serve_window", "20s", "l1.max_ttl",
        "60s",        NULL
    };
    near_config *config = near_config_new();
    near_error   error;

    assert_int_equal(near_config_set(config, "l2.uri", w->l2, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "coherence.uri", w->bus, NULL), NEAR_OK);
    for (size_t i = 0; wide[i] != NULL; i += 2)
        assert_int_equal(near_config_set(config, wide[i], wide[i + 1], NULL), NEAR_OK);
    for (size_t i = 0; settings != NULL && settings[i] != NULL; i += 2)
        if (near_config_set(config, settings[i], settings[i + 1], &error) != NEAR_OK)
            fail_msg("%s", error.text);
    if (near_client_open(config, &in->client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    if (near_cache_open(in->client, "things", NULL, &in->cache, &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

#define OPEN(w, in, ...) open_with(w, in, (const char *const[]){ __VA_ARGS__, NULL })

static inline void
close_instance(struct instance *in)
{
    near_error error = { 0 };

    if (near_client_close(in->client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

static inline near_stats
stats_of(const struct instance *in)
{
    near_stats stats = NEAR_STATS_INIT;

    assert_int_equal(near_stats_get(in->client, &stats), NEAR_OK);
    return stats;
}

/* ---- a store: its loader answers "v1", or as it is told */

enum mode { ANSWER, NOT_FOUND, FAIL, HOLD };

struct store {
    _Atomic unsigned newer; /* 0: values are "v1"; 1: "v2", and so on */
    _Atomic unsigned calls, keys, inside, most_inside;
    _Atomic int      mode;
    _Atomic unsigned delay_ms; /* before it answers */
    pthread_mutex_t  lock;     /* covers held */
    near_load       *held[1024];
    _Atomic size_t   n_held;
    void (*answer)(struct store *store, near_load *load); /* instead of the rest */
};
#define STORE(...)                                                                                           \
    {                                                                                                        \
        .lock = PTHREAD_MUTEX_INITIALIZER, __VA_ARGS__                                                       \
    }

static inline void
sleep_ms(int64_t ms)
{
    nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

static inline void
answer_version(near_load *load, unsigned version)
{
    char text[32];

    snprintf(text, sizeof(text), "v%u", version);
    near_load_set(load, near_key(text));
}

static inline void
answer_one(struct store *store, near_load *load)
{
    if (store->answer != NULL) {
        store->answer(store, load);
        return;
    }
    switch (atomic_load(&store->mode)) {
    case NOT_FOUND:
        near_load_not_found(load);
        break;
    case FAIL:
        near_load_fail(load, NEAR_ERR_LOADER);
        break;
    case HOLD:
        pthread_mutex_lock(&store->lock);
        store->held[store->n_held] = load;
        store->n_held++;
        pthread_mutex_unlock(&store->lock);
        break;
    default:
        answer_version(load, 1 + store->newer);
    }
}

static inline void
load_from_store(near_load *loads[], size_t n, void *ctx)
{
    struct store *store = ctx;
    unsigned      inside, most;

    store->calls++;
    store->keys += (unsigned)n;
    inside = atomic_fetch_add(&store->inside, (unsigned)n) + (unsigned)n;
    most   = store->most_inside;
    while (inside > most && !atomic_compare_exchange_weak(&store->most_inside, &most, inside))
        ;
    if (store->delay_ms > 0)
        sleep_ms(store->delay_ms);
    store->inside -= (unsigned)n; /* before: whoever is answered may ask for the next one */
    for (size_t i = 0; i < n; i++)
        answer_one(store, loads[i]);
}

struct held {
    struct store *store;
    size_t        n;
};

static inline int
holds(void *ctx)
{
    struct held *held = ctx;

    return held->store->n_held >= held->n;
}

static inline void
await_held(struct store *store, size_t n)
{
    struct held held = { store, n };

    assert_true(test_wait_for(holds, &held, 10000 * test_slack()));
}

/* ---- asking */

/* The value as text, "" for an empty one, or the status in brackets; '!' in front of it: stale. */
struct answer {
    near_status     status;
    char            text[64];
    near_value_info info;
    int64_t         took_ms;
};

static inline struct answer
fetch_with(near_cache *cache, const char *key, const near_fetch_options *options)
{
    struct answer answer = { .info = NEAR_VALUE_INFO_INIT };
    int64_t       began  = test_now_ms();
    near_value   *value;
    near_bytes    bytes;

    answer.status  = near_fetch(cache, near_key(key), options, &value);
    answer.took_ms = test_now_ms() - began;
    if (answer.status != NEAR_OK) {
        snprintf(answer.text, sizeof(answer.text), "[%d]", answer.status);
        return answer;
    }
    bytes = near_value_bytes(value);
    near_value_get_info(value, &answer.info);
    snprintf(answer.text, sizeof(answer.text), "%s%.*s", answer.info.stale ? "!" : "", (int)bytes.size,
             (const char *)bytes.data);
    near_value_release(value);
    return answer;
}

static inline struct answer
fetch(near_cache *cache, const char *key)
{
    return fetch_with(cache, key, NULL);
}

static inline struct answer
fetch_within(near_cache *cache, const char *key, int64_t ms)
{
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;

    options.timeout_ms = ms;
    return fetch_with(cache, key, &options);
}

#define assert_fetch(cache, key, expected) assert_string_equal(fetch(cache, key).text, expected)

struct wanted {
    near_cache *cache;
    const char *key, *text;
};

static inline int
fetches(void *ctx)
{
    struct wanted *wanted = ctx;

    return strcmp(fetch(wanted->cache, wanted->key).text, wanted->text) == 0;
}

static inline void
await_fetch(near_cache *cache, const char *key, const char *text)
{
    struct wanted wanted = { cache, key, text };

    if (!test_wait_for(fetches, &wanted, 10000 * test_slack()))
        fail_msg("%s is %s, not %s", key, fetch(cache, key).text, text);
}

static inline int
gets(void *ctx)
{
    struct wanted *wanted = ctx;
    char           text[64];
    size_t         size;

    return near_get_copy(wanted->cache, near_key(wanted->key), text, sizeof(text), &size, NULL) == NEAR_OK &&
           size == strlen(wanted->text) && memcmp(text, wanted->text, size) == 0;
}

static inline void
await_get(near_cache *cache, const char *key, const char *text)
{
    struct wanted wanted = { cache, key, text };

    assert_true(test_wait_for(gets, &wanted, 10000 * test_slack()));
}

#endif
