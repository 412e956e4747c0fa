/*
 * Between a miss and a value: shared loads and failures, stale values within grace, timeouts, refreshes, leases between instances,
 * the load budget, the hedge.  The same behaviours over every pair of tiers; two clients stand for two instances.
 */
#include "world.h"

#include "client/plan.h"

/* A store that outlives its row: where a row fails, its clients stay open, and their loaders go on with what they were given.  So does what
 * other threads of a row write to. */
#define KEPT(name, ...)                                                                                      \
    static struct store name;                                                                                \
    name = (struct store)STORE(__VA_ARGS__)

WORLD(none, TIER_NONE)
WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(both, TIER_MEMCACHED_BUS)
WORLD(memcached, TIER_MEMCACHED)

/* A TTL that ends soon, yet not while the test is still looking; memcached counts seconds, but the entry says its own. */
#define SHORT_TTL "ttl", "100ms", "early_refresh.beta", "0"

/* What is waited for comes, though late: on a busy machine a thread may not be let run for seconds.  Where it would come all the same
 * without what is being tested, calls are counted instead. */
static int64_t
late_ms(void)
{
    return 5000 * (int64_t)test_slack();
}

static void
let_the_ttl_end(void)
{
    sleep_ms(120);
}

/* ---- freshness and grace */

static void
a_stale_value_is_served_at_once_and_refreshed_behind(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;
    struct answer   answer;

    NEEDS(w);
    OPEN(w, &a, "ttl", "400ms", "early_refresh.beta", "0", "grace", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    sleep_ms(420);
    store.newer    = 1;
    store.delay_ms = 50;
    answer         = fetch(a.cache, "k");
    assert_string_equal(answer.text, "!v1");
    assert_int_equal(answer.info.ttl_ms, 0);
    assert_string_equal(fetch(a.cache, "k").text, "!v1"); /* still loading: and not once more */
    await_fetch(a.cache, "k", "v2");
    assert_int_equal(store.calls, 2);
    assert_true(stats_of(&a).stale_served >= 2);
    close_instance(&a);
}

/* near_get knows no loader, so nobody knows that it failed: past its TTL a value is a miss. */
static void
a_get_does_not_serve_what_is_past_its_ttl(void **state)
{
    struct world   *w = *state;
    struct instance a;
    near_value     *value;

    NEEDS(w);
    OPEN(w, &a, SHORT_TTL, "grace", "60s");
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("x"), NULL), NEAR_OK);
    assert_int_equal(near_get(a.cache, near_key("k"), &value), NEAR_OK);
    near_value_release(value);
    let_the_ttl_end();
    assert_int_equal(near_get(a.cache, near_key("k"), &value), NEAR_MISS);
    close_instance(&a);
}

static void
a_failing_loader_is_answered_with_the_stale_value(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;
    unsigned        attempts;
    int64_t         began;

    NEEDS(w);
    OPEN(w, &a, SHORT_TTL, "grace", "60s", "load.retry", "200ms", "loader.soft_timeout", "10s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    let_the_ttl_end();
    store.mode = FAIL;
    store.keys = 0;
    began      = test_now_ms();
    for (int i = 0; i < 200; i++) {
        assert_fetch(a.cache, "k", "!v1");
        sleep_ms(2);
    }
    /* pauses of 50, 100, 200, 200 ...: at most two more attempts than whole pauses */
    attempts = store.keys;
    assert_in_range(attempts, 2, (test_now_ms() - began) / 200 + 3);
    assert_true(stats_of(&a).loads_throttled > 0);
    store.mode  = ANSWER;
    store.newer = 1;
    began       = test_now_ms();
    await_fetch(a.cache, "k", "v2");
    assert_true(test_now_ms() - began < 200 + late_ms()); /* back within one pause */
    close_instance(&a);
}

/* A load that takes longer than its TTL is stale when it comes, and all the better than nothing. */
static void
a_load_slower_than_its_ttl_is_kept_to_fall_back_on(void **state)
{
    struct world *w = *state;
    KEPT(store, .delay_ms = 150);
    struct instance a;
    near_value     *value;

    NEEDS(w);
    OPEN(w, &a, SHORT_TTL, "grace", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    assert_int_equal(near_get(a.cache, near_key("k"), &value), NEAR_MISS);
    store.mode = HOLD;
    assert_fetch(a.cache, "k", "!v1"); /* at once */
    await_held(&store, 1);
    answer_version(store.held[0], 1);
    close_instance(&a);
}

static void
control_without_grace_a_failing_loader_fails(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, SHORT_TTL, "grace", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    let_the_ttl_end();
    store.mode = FAIL;
    assert_fetch(a.cache, "k", "[-3]");
    close_instance(&a);
}

static void
grace_ends(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, SHORT_TTL, "grace", "200ms", "load.retry", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    store.mode = FAIL;
    sleep_ms(320);
    assert_fetch(a.cache, "k", "[-3]");
    close_instance(&a);
}

static void
a_removal_takes_the_fallback_with_it_and_expire_leaves_it(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;
    near_value     *value;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s", "grace", "60s", "load.retry", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    assert_int_equal(near_remove(a.cache, near_key("k")), NEAR_OK);
    store.mode = FAIL;
    assert_fetch(a.cache, "k", "[-3]");

    store.mode = ANSWER;
    assert_fetch(a.cache, "e", "v1");
    store.newer = 1;
    assert_int_equal(near_expire(a.cache, near_key("e")), NEAR_OK);
    assert_int_equal(near_get(a.cache, near_key("e"), &value), NEAR_MISS);
    store.mode = FAIL;
    assert_fetch(a.cache, "e", "!v1");
    assert_fetch(a.cache, "e", "!v1");
    store.mode     = ANSWER;
    store.delay_ms = 30;
    assert_fetch(a.cache, "e", "v2"); /* waited for: who expires wants the new one */
    assert_fetch(a.cache, "e", "v2");
    assert_int_equal(near_expire(a.cache, near_key("never there")), NEAR_OK);
    close_instance(&a);
}

static void
an_expiry_is_heard_by_the_other_instance(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a, b;

    NEEDS(w);
    OPEN(w, &a, "grace", "60s");
    OPEN(w, &b, "grace", "60s", "load.retry", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    assert_fetch(b.cache, "k", "v1");
    assert_int_equal(near_expire(a.cache, near_key("k")), NEAR_OK);
    assert_int_equal(near_fence(b.client, 5000), NEAR_OK);
    store.mode = FAIL;
    assert_fetch(b.cache, "k", "!v1");
    store.mode  = ANSWER;
    store.newer = 1;
    assert_fetch(b.cache, "k", "v2");
    assert_fetch(a.cache, "k", "v2");
    assert_int_equal(store.keys, 3);
    close_instance(&a);
    close_instance(&b);
}

/* A load that began before near_expire() is not what it asked for. */
static void
an_expiry_voids_the_load_under_way(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = HOLD);
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, "grace", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_string_equal(fetch_within(a.cache, "k", 100).text, "[-1]");
    await_held(&store, 1);
    assert_int_equal(near_expire(a.cache, near_key("k")), NEAR_OK);
    answer_version(store.held[0], 1);
    store.mode  = ANSWER;
    store.newer = 1;
    assert_fetch(a.cache, "k", "v2");
    close_instance(&a);
}

/* Race 37: a refresh is an ordinary fill, and a removed key stays removed. */
static void
test_race37_a_refresh_does_not_revive_a_removed_key(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;
    near_value     *value;

    NEEDS(w);
    OPEN(w, &a, SHORT_TTL, "grace", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    assert_fetch(a.cache, "control", "v1");
    let_the_ttl_end();
    store.mode = HOLD;
    assert_fetch(a.cache, "k", "!v1");
    await_held(&store, 1);
    assert_fetch(a.cache, "control", "!v1");
    await_held(&store, 2);
    assert_int_equal(near_remove(a.cache, near_key("k")), NEAR_OK);
    for (size_t i = 0; i < 2; i++) {
        near_load_ttl(store.held[i], 60000); /* the loads began a while ago */
        answer_version(store.held[i], 2);
    }
    assert_int_equal(near_get(a.cache, near_key("k"), &value), NEAR_MISS);
    await_get(a.cache, "control", "v2"); /* the control: without the removal it is kept */
    store.mode = FAIL;
    assert_fetch(a.cache, "k", "[-3]"); /* nor is the old one there to fall back on */
    close_instance(&a);
}

/* ---- timeouts */

static void
a_soft_timeout_serves_stale_and_the_load_goes_on(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;
    struct answer   answer;

    NEEDS(w);
    OPEN(w, &a, "ttl", "200ms", "early_refresh.beta", "0", "grace", "60s", "loader.soft_timeout", "100ms");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    sleep_ms(220);
    store.mode = HOLD;
    answer     = fetch(a.cache, "k");
    assert_string_equal(answer.text, "!v1");
    assert_in_range(answer.took_ms, 95, 100 + late_ms());
    await_held(&store, 1);
    answer_version(store.held[0], 2);
    store.mode  = ANSWER;
    store.newer = 2;
    assert_true(stats_of(&a).loads == 2);
    await_fetch(a.cache, "k", "v3"); /* in its time: v2 was good for 200 ms */
    sleep_ms(220);
    store.newer = 3;
    assert_fetch(a.cache, "k", "v4"); /* a loader in good time is waited for, and nothing stale is served */
    close_instance(&a);
}

static void
a_hard_timeout_frees_the_caller_and_the_load_is_cached(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = HOLD);
    struct instance a;
    struct answer   answer;

    NEEDS(w);
    OPEN(w, &a, "loader.hard_timeout", "100ms", "load.retry", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    answer = fetch(a.cache, "k");
    assert_string_equal(answer.text, "[-1]");
    assert_in_range(answer.took_ms, 95, 100 + late_ms());
    assert_int_equal(stats_of(&a).load_timeouts, 1);
    answer = fetch(a.cache, "k"); /* it counts as a failure: no second attempt for now */
    assert_string_equal(answer.text, "[-1]");
    assert_int_equal(stats_of(&a).load_timeouts, 1);
    assert_int_equal(store.calls, 1);
    answer_version(store.held[0], 5);
    assert_fetch(a.cache, "k", "v5");
    close_instance(&a);
}

struct waiter {
    near_cache   *cache;
    const char   *key;
    int64_t       ms;
    struct answer answer;
    pthread_t     thread;
};

static void *
wait_for_it(void *ctx)
{
    struct waiter *waiter = ctx;

    waiter->answer = fetch_within(waiter->cache, waiter->key, waiter->ms);
    return NULL;
}

static void
start_waiter(struct waiter *waiter, near_cache *cache, const char *key, int64_t ms)
{
    *waiter = (struct waiter){ .cache = cache, .key = key, .ms = ms };
    assert_int_equal(pthread_create(&waiter->thread, NULL, wait_for_it, waiter), 0);
}

static struct answer
answer_of(struct waiter *waiter)
{
    pthread_join(waiter->thread, NULL);
    return waiter->answer;
}

/* Each caller leaves in its own time, also the one who came first, and hurts nobody. */
static void
every_waiter_has_a_deadline_of_its_own(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = HOLD);
    struct instance      a;
    static struct waiter hasty, patient[4];

    NEEDS(w);
    OPEN(w, &a, "load.retry", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    start_waiter(&hasty, a.cache, "k", 100);
    await_held(&store, 1);
    for (size_t i = 0; i < 4; i++)
        start_waiter(&patient[i], a.cache, "k", i == 0 ? 200 : 60000);
    assert_string_equal(answer_of(&hasty).text, "[-1]");
    assert_string_equal(answer_of(&patient[0]).text, "[-1]");
    assert_in_range(patient[0].answer.took_ms, 195, 200 + late_ms());
    answer_version(store.held[0], 3);
    for (size_t i = 1; i < 4; i++)
        assert_string_equal(answer_of(&patient[i]).text, "v3");
    assert_int_equal(store.calls, 1);
    close_instance(&a);
}

/* ---- failures */

static void
a_failure_is_shared_by_all_who_wait(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = FAIL, .delay_ms = 200);
    struct instance      a;
    static struct waiter crowd[16];

    NEEDS(w);
    OPEN(w, &a, "load.retry", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (size_t i = 0; i < NEAR_COUNT_OF(crowd); i++)
        start_waiter(&crowd[i], a.cache, "k", -1);
    for (size_t i = 0; i < NEAR_COUNT_OF(crowd); i++)
        assert_string_equal(answer_of(&crowd[i]).text, "[-3]");
    assert_int_equal(store.calls, 1); /* not 16 times */
    /* and for the pause that follows by those who come later: the first one is 50 ms */
    store.mode = ANSWER;
    assert_fetch(a.cache, "other", "v1"); /* other keys are not concerned */
    close_instance(&a);
}

static void
a_failure_is_remembered_until_the_pause_ends_or_a_write_comes(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = FAIL);
    struct instance a, b;

    NEEDS(w);
    OPEN(w, &a, "load.retry", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (int i = 0; i < 12; i++) { /* the pause has grown to many seconds */
        assert_fetch(a.cache, "k", "[-3]");
        if (i < 3)
            sleep_ms(60 << i);
    }
    assert_in_range(store.calls, 2, 5);
    store.calls = 0;
    store.mode  = ANSWER;
    assert_fetch(a.cache, "k", "[-3]");
    assert_int_equal(near_remove(a.cache, near_key("k")), NEAR_OK);
    assert_fetch(a.cache, "k", "v1");
    close_instance(&a);

    OPEN(w, &b, "load.retry", "0"); /* the control: no pause at all */
    near_cache_set_loader(b.cache, load_from_store, &store);
    assert_int_equal(near_remove(b.cache, near_key("k")), NEAR_OK);
    store.mode  = FAIL;
    store.calls = 0;
    for (int i = 0; i < 5; i++)
        assert_fetch(b.cache, "k", "[-3]");
    assert_int_equal(store.calls, 5);
    close_instance(&b);
}

/* However many keys fail, each is remembered: none makes another one forgotten. */
static void
many_failures_are_remembered_each(void **state)
{
    enum { N = 3000, ROUNDS = 5 };
    static near_bytes  keys[N];
    static char        text[N][16];
    static near_value *values[N];
    static near_status statuses[N];
    struct world      *w = *state;
    KEPT(store, .mode = FAIL);
    struct instance a;
    int64_t         began = 0;

    NEEDS(w);
    OPEN(w, &a, "load.retry", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (size_t i = 0; i < N; i++) {
        snprintf(text[i], sizeof(text[i]), "key%zu", i);
        keys[i] = near_key(text[i]);
    }
    for (int round = 0; round < ROUNDS; round++) { /* pauses of 50, 100, 200, 400, 800 ms */
        sleep_ms(round > 0 ? 60 << (round - 1) : 0);
        began = test_now_ms();
        assert_int_equal(near_fetch_many(a.cache, keys, N, NULL, values, statuses), NEAR_ERR_LOADER);
    }
    assert_true(store.keys >= 2 * N); /* the pauses do end */
    store.keys = 0;
    assert_int_equal(near_fetch_many(a.cache, keys, N, NULL, values, statuses), NEAR_ERR_LOADER);
    if (test_now_ms() - began < 200)
        assert_int_equal(store.keys, 0);
    close_instance(&a);
}

/* ---- batches */

static void
a_batch_returns_at_its_deadline_what_it_has(void **state)
{
    enum { N = 4 };
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;
    near_bytes  keys[N] = { near_key("fresh"), near_key("stale"), near_key("held"), near_key("also held") };
    near_value *values[N];
    near_status statuses[N];
    near_value_info info = NEAR_VALUE_INFO_INIT;
    struct instance a;
    int64_t         began;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s", "early_refresh.beta", "0", "grace", "60s", "loader.soft_timeout", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "fresh", "v1");
    options.ttl_ms = 50;
    assert_string_equal(fetch_with(a.cache, "stale", &options).text, "v1");
    sleep_ms(70);
    store.mode         = HOLD;
    options.ttl_ms     = -1;
    options.timeout_ms = 150;
    began              = test_now_ms();
    assert_int_equal(near_fetch_many(a.cache, keys, N, &options, values, statuses), NEAR_ERR_TIMEOUT);
    assert_in_range(test_now_ms() - began, 145, 150 + late_ms());
    assert_int_equal(statuses[0], NEAR_OK);
    assert_int_equal(statuses[1], NEAR_OK);
    near_value_get_info(values[1], &info);
    assert_true(info.stale);
    assert_int_equal(statuses[2], NEAR_ERR_TIMEOUT);
    assert_null(values[2]);
    assert_int_equal(statuses[3], NEAR_ERR_TIMEOUT);
    for (size_t i = 0; i < N; i++)
        near_value_release(values[i]);
    await_held(&store, 3);
    for (size_t i = 0; i < 3; i++)
        answer_version(store.held[i], 2);
    await_get(a.cache, "held", "v2"); /* the rest has finished behind, and is cached */
    await_get(a.cache, "also held", "v2");
    await_get(a.cache, "stale", "v2");
    close_instance(&a);
}

struct batch {
    near_cache *cache;
    unsigned    from, to;
    unsigned    wrong;
    pthread_t   thread;
};

static void *
fetch_batch(void *ctx)
{
    enum { MOST = 64 };
    struct batch *batch      = ctx;
    near_bytes    keys[MOST] = { { NULL, 0 } };
    char          text[MOST][16];
    near_value   *values[MOST];
    near_status   statuses[MOST];
    size_t        n = 0;

    for (unsigned i = batch->from; i < batch->to; i++, n++) {
        snprintf(text[n], sizeof(text[n]), "key%u", i);
        keys[n] = near_key(text[n]);
    }
    near_fetch_many(batch->cache, keys, n, NULL, values, statuses);
    for (size_t i = 0; i < n; i++) {
        batch->wrong += statuses[i] != NEAR_OK;
        near_value_release(values[i]);
    }
    return NULL;
}

static void
run_batches(near_cache *cache, unsigned n, unsigned step, unsigned width)
{
    struct batch batches[32];

    for (unsigned i = 0; i < n; i++) {
        batches[i] = (struct batch){ .cache = cache, .from = i * step, .to = i * step + width };
        assert_int_equal(pthread_create(&batches[i].thread, NULL, fetch_batch, &batches[i]), 0);
    }
    for (unsigned i = 0; i < n; i++)
        pthread_join(batches[i].thread, NULL);
    for (unsigned i = 0; i < n; i++)
        assert_int_equal(batches[i].wrong, 0);
}

static void
overlapping_batches_share_loads_key_by_key(void **state)
{
    struct world *w = *state;
    KEPT(store, .delay_ms = 50);
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    run_batches(a.cache, 8, 5, 20); /* each shares three quarters with its neighbour */
    assert_int_equal(store.keys, 7 * 5 + 20);
    assert_true(stats_of(&a).coalesced > 0);
    close_instance(&a);
}

static void
gathered_loads_are_one_call_of_the_loader(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    KEPT(apart, .mode = ANSWER);
    struct instance a, b;

    NEEDS(w);
    OPEN(w, &a, "load.gather", "200ms");
    near_cache_set_loader(a.cache, load_from_store, &store);
    run_batches(a.cache, 16, 1, 1);
    assert_int_equal(store.keys, 16);
    assert_in_range(store.calls, 1, 4 * test_slack());
    assert_int_equal(near_clear(a.cache), NEAR_OK);
    close_instance(&a);

    OPEN(w, &b, "load.gather", "0"); /* the control */
    near_cache_set_loader(b.cache, load_from_store, &apart);
    run_batches(b.cache, 16, 1, 1);
    assert_int_equal(apart.keys, 16);
    assert_int_equal(apart.calls, 16);
    close_instance(&b);
}

/* ---- the loader's freedom */

static void
renew(struct store *store, near_load *load)
{
    const near_value *previous = near_load_previous(load);

    (void)store;
    if (previous == NULL)
        near_load_set(load, near_key("made once"));
    else if (near_value_bytes(previous).size == strlen("made once"))
        near_load_unchanged(load);
    else
        near_load_fail(load, NEAR_ERR_PROTOCOL);
}

static void
a_loader_sees_the_previous_value_and_may_renew_it(void **state)
{
    struct world *w = *state;
    KEPT(store, .answer = renew);
    struct instance a;
    near_value_info info;

    NEEDS(w);
    OPEN(w, &a, SHORT_TTL, "grace", "60s", "loader.soft_timeout", "10s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "made once");
    let_the_ttl_end();
    info = fetch(a.cache, "k").info;
    assert_int_equal(store.calls, 2);
    assert_false(info.stale);
    assert_true(info.ttl_ms > 0);
    close_instance(&a);
}

static void
be_free(struct store *store, near_load *load)
{
    near_bytes key = near_load_key(load);

    (void)store;
    if (memcmp(key.data, "u", 1) == 0) { /* nothing to renew */
        if (near_load_unchanged(load) != NEAR_ERR_INVALID)
            abort();
    } else if (memcmp(key.data, "s", 1) == 0) {
        near_load_fail(load, NEAR_ERR_DENIED);
    } else if (memcmp(key.data, "d", 1) == 0) {
        near_load_unkept(load);
        near_load_set(load, near_key("passing"));
    } else {
        if (near_load_tag(load, "tag") != NEAR_OK)
            abort();
        near_load_ttl(load, 10000);
        near_load_set(load, near_key("timed"));
    }
}

static void
a_loader_chooses_ttl_status_and_whether_to_keep(void **state)
{
    struct world *w = *state;
    KEPT(store, .answer = be_free);
    struct instance a;
    struct answer   answer;
    near_value     *value;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    answer = fetch(a.cache, "ttl");
    assert_string_equal(answer.text, "timed");
    assert_in_range(answer.info.ttl_ms, 5000, 10000);
    assert_fetch(a.cache, "status", "[-12]");
    assert_fetch(a.cache, "unchanged", "[-3]");
    store.calls = 0;
    assert_fetch(a.cache, "dont keep", "passing");
    assert_int_equal(near_get(a.cache, near_key("dont keep"), &value), NEAR_MISS);
    assert_fetch(a.cache, "dont keep", "passing");
    assert_int_equal(store.calls, 2);
    close_instance(&a);
}

static void
jitter_shortens_ttls_and_never_lengthens_them(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;
    int64_t         least = INT64_MAX, most = 0;
    char            key[16];

    NEEDS(w);
    OPEN(w, &a, "ttl", "40s", "ttl.jitter", "50");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (int i = 0; i < 100; i++) {
        int64_t ttl;

        snprintf(key, sizeof(key), "k%d", i);
        ttl   = fetch(a.cache, key).info.ttl_ms;
        least = ttl < least ? ttl : least;
        most  = ttl > most ? ttl : most;
    }
    assert_in_range(least, 18000, 24000);
    assert_in_range(most, 36000, 40000);
    close_instance(&a);
}

/* ---- early refresh */

static void
a_value_in_use_is_refreshed_before_its_end(void **state)
{
    struct world *w = *state;
    KEPT(store, .delay_ms = 200);
    struct instance a;
    unsigned        stale = 0;
    int64_t         until;

    NEEDS(w);
    OPEN(w, &a, "ttl", "3s", "early_refresh.beta", "2", "grace", "10s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    store.newer = 1;
    until       = test_now_ms() + 2900;
    while (test_now_ms() < until && store.calls < 2) {
        stale += fetch(a.cache, "k").info.stale;
        sleep_ms(1);
    }
    assert_int_equal(store.calls,
                     2); /* before the end: 200 ms of cost, some reads in the last quarter, beta 2 */
    assert_int_equal(stale, 0);
    await_fetch(a.cache, "k", "v2");
    assert_int_equal(store.calls, 2);
    assert_true(stats_of(&a).early_refreshes >= 1);
    close_instance(&a);
}

/* A refresh that begins just after a removal does not bring along the value that its reader has seen. */
static void
test_race37_a_refresh_brings_no_removed_value_along(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s", "grace", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (int removed = 0; removed < 2; removed++) {
        near_bytes            key      = near_key(removed ? "removed" : "control");
        uint64_t              hash     = near__hash_keyed(&a.client->secret, key);
        uint64_t              fence    = near__l1_fence(a.cache->l1, hash);
        struct near__fallback fallback = { .fresh_until = NEAR_NEVER, .expires = NEAR_NEVER };
        near_fetch_options    options  = NEAR_FETCH_OPTIONS_INIT;

        store.mode = ANSWER;
        assert_int_equal(near_fetch(a.cache, key, NULL, &fallback.value), NEAR_OK);
        store.mode = HOLD;
        if (removed)
            assert_int_equal(near_remove(a.cache, key), NEAR_OK);
        /* far before its end: it must reach L2 and find it due, or find nothing */
        near__refresh(a.cache, key, hash, NEAR_NEVER / 2, fence, fallback);
        await_held(&store, (size_t)removed + 1);
        options.flags      = NEAR_SKIP_L1; /* so it joins the refresh */
        options.timeout_ms = 50;
        assert_string_equal(fetch_with(a.cache, removed ? "removed" : "control", &options).text,
                            removed ? "[-1]" : "v1");
        answer_version(store.held[removed], 2);
    }
    close_instance(&a);
}

static void
control_beta_0_refreshes_nothing_early(void **state)
{
    struct world *w = *state;
    KEPT(store, .delay_ms = 20);
    struct instance a;
    int64_t         until;

    NEEDS(w);
    OPEN(w, &a, "ttl", "10s", "early_refresh.beta", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    until = test_now_ms() + 500;
    while (test_now_ms() < until)
        assert_fetch(a.cache, "k", "v1");
    assert_int_equal(store.calls, 1);
    assert_int_equal(stats_of(&a).early_refreshes, 0);
    close_instance(&a);
}

/* ---- leases between instances */

static void
who_loses_the_lease_waits_for_the_fill(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = HOLD);
    struct instance      a, b;
    static struct waiter first, second[4];

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    OPEN(w, &b, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    start_waiter(&first, a.cache, "k", -1);
    await_held(&store, 1);
    for (size_t i = 0; i < 4; i++)
        start_waiter(&second[i], b.cache, "k", i == 0 ? 100 : 60000);
    assert_string_equal(answer_of(&second[0]).text, "[-1]"); /* a deadline of its own, here too */
    assert_int_equal(store.calls, 1);
    answer_version(store.held[0], 9);
    assert_string_equal(answer_of(&first).text, "v9");
    for (size_t i = 1; i < 4; i++)
        assert_string_equal(answer_of(&second[i]).text, "v9");
    assert_int_equal(store.calls, 1);
    assert_int_equal(stats_of(&b).lease_waits, 1);
    assert_int_equal(stats_of(&b).loads, 0);
    close_instance(&a);
    close_instance(&b);
}

static int
by_ms(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x < y ? -1 : x > y;
}

/* How long after the answer in one instance a waiter in the other one has it: the median of some, in ms.  Whoever waits that long
 * polls every 40 ms only. */
static int64_t
time_to_wake(struct world *w)
{
    enum { N = 9 };
    KEPT(store, .mode = HOLD);
    struct instance a, b;
    int64_t         took[N];

    OPEN(w, &a, "ttl", "60s");
    OPEN(w, &b, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    for (size_t i = 0; i < N; i++) {
        static struct waiter first, second;
        char                 key[16];
        int64_t              began;

        snprintf(key, sizeof(key), "k%zu", i);
        start_waiter(&first, a.cache, key, -1);
        await_held(&store, i + 1);
        start_waiter(&second, b.cache, key, -1);
        sleep_ms(100 + 7 * (int64_t)i);
        began = test_now_ms();
        answer_version(store.held[i], 1);
        assert_string_equal(answer_of(&second).text, "v1");
        took[i] = test_now_ms() - began;
        assert_string_equal(answer_of(&first).text, "v1");
    }
    close_instance(&a);
    close_instance(&b);
    qsort(took, N, sizeof(*took), by_ms);
    return took[N / 2];
}

static void
the_bus_wakes_who_waits_for_a_fill(void **state)
{
    struct world *w    = *state;
    int64_t       took = NEAR_NEVER;

    NEEDS(w);
    /* polls alone: 20 ms on average, and a busy machine only adds to that */
    for (int round = 0; round < 10 && took > 12 * (int64_t)test_slack(); round++)
        took = time_to_wake(w);
    assert_true(took <= 12 * (int64_t)test_slack());
}

/* The control: without a bus only the polls do. */
static void
control_without_a_bus_a_fill_is_found_by_polling(void **state)
{
    struct world *w = *state;
    int64_t       took;

    NEEDS(w);
    took = time_to_wake(w);
    assert_true(took >= 6);
    assert_true(took <= 60 + late_ms());
}

/* A holder that does not come back is replaced when its lease ends; its late answer is its callers' alone. */
static void
test_race32_a_dead_holder_is_replaced_and_its_fill_refused(void **state)
{
    struct world *w = *state;
    KEPT(dead, .mode = HOLD);
    KEPT(store, .newer = 6);
    struct instance      a, b;
    static struct waiter first, second;
    const char          *lease = w->memcached != NULL ? "3s" : "300ms";
    int64_t              least = w->memcached != NULL ? 2900 : 250, began;

    NEEDS(w);
    OPEN(w, &a, "lease.timeout", lease);
    OPEN(w, &b, "lease.timeout", lease);
    near_cache_set_loader(a.cache, load_from_store, &dead);
    near_cache_set_loader(b.cache, load_from_store, &store);
    start_waiter(&first, a.cache, "k", -1);
    await_held(&dead, 1);
    began = test_now_ms();
    start_waiter(&second, b.cache, "k", -1);
    assert_string_equal(answer_of(&second).text, "v7");
    assert_in_range(test_now_ms() - began, least, least + late_ms());
    answer_version(dead.held[0], 6);
    assert_string_equal(answer_of(&first).text, "v6");
    assert_int_equal(stats_of(&a).l2_fills_refused, 1);
    await_fetch(a.cache, "k", "v7"); /* nor was it kept in L1 */
    await_get(b.cache, "k", "v7");
    close_instance(&a);
    close_instance(&b);
}

/* Stale values stay in use in every instance while one of them refreshes. */
static void
one_instance_refreshes_and_all_serve_stale_meanwhile(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a, b, c;

    NEEDS(w);
    OPEN(w, &a, SHORT_TTL, "grace", "60s");
    OPEN(w, &b, SHORT_TTL, "grace", "60s");
    OPEN(w, &c, SHORT_TTL, "grace", "60s", "l1.max_bytes", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    near_cache_set_loader(c.cache, load_from_store, &store);
    assert_fetch(a.cache, "k", "v1");
    assert_fetch(b.cache, "k", "v1");
    let_the_ttl_end();
    store.mode = HOLD;
    assert_fetch(a.cache, "k", "!v1");
    await_held(&store, 1);
    assert_fetch(b.cache, "k", "!v1");
    assert_fetch(c.cache, "k", "!v1");
    assert_fetch(a.cache, "k", "!v1");
    sleep_ms(100);
    assert_int_equal(store.keys, 2); /* the first and this one */
    near_load_ttl(store.held[0], 60000);
    answer_version(store.held[0], 2);
    await_fetch(a.cache, "k", "v2");
    await_fetch(b.cache, "k", "v2");
    await_fetch(c.cache, "k", "v2");
    assert_int_equal(store.keys, 2);
    close_instance(&a);
    close_instance(&b);
    close_instance(&c);
}

/* A clear makes the markers of loads under way worthless: nobody waits for them. */
static void
nobody_waits_for_a_lease_from_before_a_clear(void **state)
{
    struct world *w = *state;
    KEPT(before, .mode = HOLD);
    KEPT(after, .newer = 1);
    struct instance      a, b;
    static struct waiter first;
    struct answer        answer;

    NEEDS(w);
    OPEN(w, &a, "lease.timeout", "60s");
    OPEN(w, &b, "lease.timeout", "60s");
    near_cache_set_loader(a.cache, load_from_store, &before);
    near_cache_set_loader(b.cache, load_from_store, &after);
    start_waiter(&first, a.cache, "k", -1);
    await_held(&before, 1);
    assert_int_equal(near_clear(b.cache), NEAR_OK);
    answer = fetch_within(b.cache, "k", 10000);
    assert_string_equal(answer.text, "v2");
    answer_version(before.held[0], 1);
    assert_string_equal(answer_of(&first).text, "v1");
    await_get(b.cache, "k", "v2");
    close_instance(&a);
    close_instance(&b);
}

/* ---- the load budget */

static void
concurrent_loads_stay_within_the_budget(void **state)
{
    struct world *w = *state;
    KEPT(store, .delay_ms = 20);
    KEPT(control, .delay_ms = 20);
    struct instance a, b;

    NEEDS(w);
    OPEN(w, &a, "load.max_concurrent", "2", "load.queue_timeout", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    run_batches(a.cache, 16, 1, 1);
    assert_int_equal(store.keys, 16);
    assert_in_range(store.most_inside, 1, 2);
    run_batches(a.cache, 4, 20, 20); /* a batch goes in parts */
    assert_in_range(store.most_inside, 1, 2);
    assert_int_equal(near_clear(a.cache), NEAR_OK);
    close_instance(&a);

    OPEN(w, &b, "load.max_concurrent", "0");
    near_cache_set_loader(b.cache, load_from_store, &control);
    run_batches(b.cache, 4, 20, 20);
    assert_true(control.most_inside > 2);
    close_instance(&b);
}

static void
a_full_budget_says_busy_or_serves_stale(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance      a;
    static struct waiter first;
    struct answer        answer;

    NEEDS(w);
    OPEN(w, &a, SHORT_TTL, "grace", "60s", "load.max_concurrent", "1", "load.queue_timeout", "100ms");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "stale", "v1");
    let_the_ttl_end();
    store.mode = HOLD;
    start_waiter(&first, a.cache, "held", -1);
    await_held(&store, 1);
    answer = fetch(a.cache, "other");
    assert_string_equal(answer.text, "[-8]");
    assert_in_range(answer.took_ms, 95, 100 + late_ms());
    assert_fetch(a.cache, "stale", "!v1");
    assert_fetch(a.cache, "stale", "!v1");
    assert_int_equal(store.n_held, 1);
    assert_true(stats_of(&a).loads_refused >= 1);
    store.mode  = ANSWER; /* before: a refresh that is late takes the place, and must give it back */
    store.newer = 1;
    answer_version(store.held[0], 1);
    assert_string_equal(answer_of(&first).text, "v1");
    assert_fetch(a.cache, "other", "v2"); /* the place was given back */
    close_instance(&a);
}

static void *
fetch_a_few(void *ctx)
{
    struct batch *batch = ctx;
    int64_t       began = test_now_ms();

    fetch_batch(batch);
    batch->to = (unsigned)(test_now_ms() - began);
    return NULL;
}

/* A large batch takes turns: who wants one key does not wait for all of it. */
static void
the_budget_is_fair_between_callers(void **state)
{
    struct world *w = *state;
    KEPT(store, .delay_ms = 20);
    struct batch    large = { .from = 0, .to = 64 }, small = { .from = 100, .to = 101 };
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, "load.max_concurrent", "2", "load.queue_timeout", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    large.cache = small.cache = a.cache;
    pthread_create(&large.thread, NULL, fetch_a_few, &large);
    sleep_ms(60);
    pthread_create(&small.thread, NULL, fetch_a_few, &small);
    pthread_join(small.thread, NULL);
    pthread_join(large.thread, NULL);
    assert_int_equal(large.wrong + small.wrong, 0);
    assert_true(large.to > 600);          /* 32 parts of 20 ms */
    assert_true(small.to < large.to / 2); /* one part of the other's, and its own */
    close_instance(&a);
}

static void
the_rate_of_loads_is_kept(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a;
    int64_t         began, took;

    NEEDS(w);
    OPEN(w, &a, "load.rate", "200", "load.queue_timeout", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    began = test_now_ms();
    run_batches(a.cache, 4, 25, 25);
    took = test_now_ms() - began;
    assert_int_equal(store.keys, 100);
    assert_true(took >= 450); /* 96 keys at 200 per second: the first four may come at once */
    assert_true(took < 700 + late_ms());
    close_instance(&a);
}

static void
load_with_a_fetch_inside(near_load *loads[], size_t n, void *ctx)
{
    struct instance *a = ctx;

    for (size_t i = 0; i < n; i++) {
        near_bytes key = near_load_key(loads[i]);

        if (key.size == 5) {
            near_load_set(loads[i], near_key("deep"));
        } else {
            struct answer answer = fetch_within(a->cache, "inner", 5000);
            near_load_set(loads[i], near_key(answer.text));
        }
    }
}

/* What a loader fetches is loaded on its thread and takes no second place: or it would wait for itself. */
static void
a_loader_may_fetch_whatever_the_bounds(void **state)
{
    struct world   *w = *state;
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, "load.max_concurrent", "1", "load.queue_timeout", "60s", "loader.hard_timeout", "20s",
         "loader.threads", "1", "load.gather", "1ms");
    near_cache_set_loader(a.cache, load_with_a_fetch_inside, &a);
    assert_fetch(a.cache, "outer key", "deep");
    close_instance(&a);
}

/* ---- the hedge */

static void
a_slow_L2_is_hedged_by_the_loader(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = ANSWER);
    struct instance a, b;
    struct answer   answer;
    uint64_t        before;

    NEEDS(w);
    OPEN(w, &a, "l2.hedge_after", "30ms", "l2.timeout", "3s");
    OPEN(w, &b, "l2.hedge_after", "0", "l2.timeout", "3s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    assert_fetch(a.cache, "warm", "v1");
    before = stats_of(&a).hedges; /* none, unless the machine is very busy */
    assert_fetch(b.cache, "warm", "v1");
    test_server_pause(w->memcached != NULL ? w->memcached : w->redis);
    answer = fetch(a.cache, "k");
    assert_string_equal(answer.text, "v1");
    assert_in_range(answer.took_ms, 25, 30 + late_ms());
    assert_int_equal(stats_of(&a).hedges, before + 1);
    answer = fetch(b.cache, "c"); /* the control */
    assert_string_equal(answer.text, "v1");
    assert_true(answer.took_ms > 2000);
    store.mode = FAIL;
    answer     = fetch_within(a.cache, "f", 500);
    assert_string_equal(answer.text, "[-1]"); /* the hedge failed: L2 may still know */
    test_server_resume(w->memcached != NULL ? w->memcached : w->redis);
    await_fetch(a.cache, "k", "v1");
    close_instance(&a);
    close_instance(&b);
}

/* ---- the end */

/* Closing is bounded by close.timeout whatever waits: a parked key, a held load, a queue. */
static void
closing_ends_what_waits_in_the_background(void **state)
{
    struct world *w = *state;
    KEPT(store, .mode = HOLD);
    struct instance a, b;
    int64_t         began;

    NEEDS(w);
    OPEN(w, &a, "close.timeout", "100ms");
    OPEN(w, &b, "close.timeout", "5s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    assert_string_equal(fetch_within(a.cache, "k", 50).text, "[-1]");
    await_held(&store, 1);
    assert_string_equal(fetch_within(b.cache, "k", 50).text, "[-1]"); /* parked, but for L2 none: */
    began = test_now_ms();
    if (w->tier != TIER_NONE)
        close_instance(&b); /* nothing of it is in a loader: at once */
    assert_int_equal(near_client_close(a.client, NULL), NEAR_ERR_BUSY);
    assert_true(test_now_ms() - began < 1500 + late_ms());
    answer_version(store.held[0], 1);
    if (w->tier == TIER_NONE) {
        await_held(&store, 2);
        answer_version(store.held[1], 1);
        close_instance(&b);
    }
}

#define OVER_SHARED(test) OVER(memory, test), OVER(redis, test), OVER(both, test), OVER(memcached, test)
#define OVER_ALL(test)    OVER(none, test), OVER_SHARED(test)
#define OVER_HEARD(test)  OVER(memory, test), OVER(redis, test), OVER(both, test)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER_ALL(a_stale_value_is_served_at_once_and_refreshed_behind),
        OVER_ALL(a_get_does_not_serve_what_is_past_its_ttl),
        OVER_ALL(a_failing_loader_is_answered_with_the_stale_value),
        OVER_ALL(a_load_slower_than_its_ttl_is_kept_to_fall_back_on),
        OVER_ALL(control_without_grace_a_failing_loader_fails),
        OVER_ALL(grace_ends),
        OVER_ALL(a_removal_takes_the_fallback_with_it_and_expire_leaves_it),
        OVER_HEARD(an_expiry_is_heard_by_the_other_instance),
        OVER_ALL(an_expiry_voids_the_load_under_way),
        OVER_ALL(test_race37_a_refresh_does_not_revive_a_removed_key),
        OVER_ALL(a_soft_timeout_serves_stale_and_the_load_goes_on),
        OVER_ALL(a_hard_timeout_frees_the_caller_and_the_load_is_cached),
        OVER_ALL(every_waiter_has_a_deadline_of_its_own),
        OVER_ALL(a_failure_is_shared_by_all_who_wait),
        OVER_ALL(a_failure_is_remembered_until_the_pause_ends_or_a_write_comes),
        OVER(none, many_failures_are_remembered_each),
        OVER_ALL(a_batch_returns_at_its_deadline_what_it_has),
        OVER_ALL(overlapping_batches_share_loads_key_by_key),
        OVER_ALL(gathered_loads_are_one_call_of_the_loader),
        OVER_ALL(a_loader_sees_the_previous_value_and_may_renew_it),
        OVER_ALL(a_loader_chooses_ttl_status_and_whether_to_keep),
        OVER(memory, jitter_shortens_ttls_and_never_lengthens_them),
        OVER_ALL(a_value_in_use_is_refreshed_before_its_end),
        OVER_ALL(test_race37_a_refresh_brings_no_removed_value_along),
        OVER(memory, control_beta_0_refreshes_nothing_early),
        OVER_SHARED(who_loses_the_lease_waits_for_the_fill),
        OVER_HEARD(the_bus_wakes_who_waits_for_a_fill),
        OVER(memcached, control_without_a_bus_a_fill_is_found_by_polling),
        OVER_SHARED(test_race32_a_dead_holder_is_replaced_and_its_fill_refused),
        OVER_SHARED(one_instance_refreshes_and_all_serve_stale_meanwhile),
        OVER_SHARED(nobody_waits_for_a_lease_from_before_a_clear),
        OVER(memory, concurrent_loads_stay_within_the_budget),
        OVER(redis, concurrent_loads_stay_within_the_budget),
        OVER_ALL(a_full_budget_says_busy_or_serves_stale),
        OVER(none, the_budget_is_fair_between_callers),
        OVER(none, the_rate_of_loads_is_kept),
        OVER_ALL(a_loader_may_fetch_whatever_the_bounds),
        OVER(redis, a_slow_L2_is_hedged_by_the_loader),
        OVER(memcached, a_slow_L2_is_hedged_by_the_loader),
        OVER_ALL(closing_ends_what_waits_in_the_background),
    };
    return TEST_MAIN(tests, NULL, NULL);
}
