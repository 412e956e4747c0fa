/*
 * The whole path when parts fail, on real servers: absent at start-up, killed and back, stopped with SIGSTOP, wrong password, spoilt
 * bytes in L2.  Each test breaks the thing for real and looks through the public interface.
 */
#include "harness/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness/log.h"
#include "harness/proxy.h"
#include "harness/server.h"

/* Wide enough for a busy machine under a sanitizer, short enough to wait for. */
#define L2_TIMEOUT    "500ms"
#define L2_TIMEOUT_MS 500

#define LOG_SIZE 8192

static struct test_server *redis, *memcached;

static int
setup(void **state)
{
    (void)state;
    redis     = test_redis_start(0, NULL);
    memcached = test_memcached_start(0, NULL);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    test_server_stop(&redis);
    test_server_stop(&memcached);
    return 0;
}

struct instance {
    near_client     *client;
    near_cache      *cache;
    _Atomic unsigned loads;
};

static void
load(near_load *loads[], size_t n, void *ctx)
{
    struct instance *in = ctx;

    in->loads += (unsigned)n;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], near_key("loaded"));
}

/* `settings`: name, value, ..., NULL. */
static void
open_with(struct instance *in, const char *l2, const char *bus, const char *const *settings)
{
    near_config *config = near_config_new();
    near_error   error;

    assert_int_equal(near_config_set(config, "l2.uri", l2, &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "coherence.uri", bus, &error), NEAR_OK);
    for (size_t i = 0; settings != NULL && settings[i] != NULL; i += 2)
        if (near_config_set(config, settings[i], settings[i + 1], &error) != NEAR_OK)
            fail_msg("%s", error.text);
    if (near_client_open(config, &in->client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    assert_int_equal(near_cache_open(in->client, "c", NULL, &in->cache, NULL), NEAR_OK);
    in->loads = 0;
    near_cache_set_loader(in->cache, load, in);
}

static void
close_instance(struct instance *in)
{
    assert_int_equal(near_client_close(in->client, NULL), NEAR_OK);
}

static near_stats
stats_of(const struct instance *in)
{
    near_stats stats = NEAR_STATS_INIT;

    assert_int_equal(near_stats_get(in->client, &stats), NEAR_OK);
    return stats;
}

static near_source
fetch(struct instance *in, const char *key)
{
    near_value_info info = NEAR_VALUE_INFO_INIT;
    near_value     *value;
    near_status     status = near_fetch(in->cache, near_key(key), NULL, &value);

    if (status != NEAR_OK)
        fail_msg("fetch: %s", near_status_text(status));
    near_value_get_info(value, &info);
    near_value_release(value);
    return info.source;
}

static void
fetch_quietly(struct instance *in, const char *key)
{
    near_value *value;

    near_fetch(in->cache, near_key(key), NULL, &value);
    near_value_release(value);
}

static int
is_connected(void *ctx)
{
    return stats_of(ctx).bus_connected != 0;
}

static int
fence_works(void *ctx)
{
    return near_fence(((struct instance *)ctx)->client, 100) == NEAR_OK;
}

static int
reads_from_l1(void *ctx)
{
    return fetch(ctx, "k") == NEAR_FROM_L1;
}

static int
put_works(void *ctx)
{
    return near_put(((struct instance *)ctx)->cache, near_key("probe"), near_key("x"), NULL) == NEAR_OK;
}

static const char *const quick[] = { "l2.timeout",
                                     L2_TIMEOUT,
                                     "l2.connect_timeout",
                                     "300ms",
                                     "coherence.serve_window",
                                     "300ms",
                                     "coherence.heartbeat",
                                     "20ms",
                                     NULL };

/* L2 and bus missing at start-up: the client opens, serves from the loader, and finds them when they come. */
static void
a_client_opens_without_its_server_and_finds_it_later(void **state)
{
    struct instance in;

    (void)state;
    if (redis == NULL)
        skip();
    test_server_kill(redis);
    open_with(&in, redis->uri, "auto", quick);
    assert_int_equal(fetch(&in, "k"), NEAR_FROM_LOADER);
    assert_int_equal(fetch(&in, "k"), NEAR_FROM_LOADER); /* bypass: nobody could tell us of a write */
    assert_int_equal(near_put(in.cache, near_key("p"), near_key("x"), NULL), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(near_fence(in.client, 50), NEAR_ERR_UNAVAILABLE);
    assert_true(test_server_restart(redis));
    assert_true(test_wait_for(fence_works, &in, 5000));
    assert_true(test_wait_for(put_works, &in, 5000));
    fetch(&in, "k");
    assert_true(test_wait_for(reads_from_l1, &in, 5000));
    close_instance(&in);
}

/* The same where no bus is asked for: L1 goes on by itself. */
static void
without_a_bus_L1_serves_although_L2_is_missing(void **state)
{
    static const char *const none[] = { "coherence.mode",     "none",  "l2.timeout", L2_TIMEOUT,
                                        "l2.connect_timeout", "300ms", NULL };
    struct instance          in;

    (void)state;
    if (memcached == NULL)
        skip();
    test_server_kill(memcached);
    open_with(&in, memcached->uri, "auto", none);
    assert_int_equal(fetch(&in, "k"), NEAR_FROM_LOADER);
    assert_int_equal(fetch(&in, "k"), NEAR_FROM_L1);
    assert_int_equal(in.loads, 1);
    assert_true(test_server_restart(memcached));
    assert_true(test_wait_for(put_works, &in, 5000));
    close_instance(&in);
}

/* G5, bypass: once the window is over L1 does not answer; after the return: flush, then serve. */
static void
test_G5_a_killed_server_closes_the_gate_and_its_return_flushes(void **state)
{
    struct instance in;
    near_value     *value;
    int64_t         killed;
    uint64_t        flushes;

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&in, redis->uri, "auto", quick);
    assert_true(is_connected(&in));
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("old"), NULL), NEAR_OK);
    assert_int_equal(fetch(&in, "k"), NEAR_FROM_L1);
    flushes = stats_of(&in).bus_flushes;
    test_server_kill(redis);
    killed = test_now_ms();
    while (fetch(&in, "k") == NEAR_FROM_L1)
        assert_true(test_now_ms() - killed < 300 + 200 * test_slack());
    assert_int_equal(fetch(&in, "k"), NEAR_FROM_LOADER);
    assert_true(stats_of(&in).gate_closed_reads > 0);
    assert_true(test_server_restart(redis));
    assert_true(test_wait_for(fence_works, &in, 5000));
    assert_true(stats_of(&in).bus_flushes > flushes);
    /* the value from before is gone from L1, and the server came back empty */
    assert_int_equal(near_get(in.cache, near_key("k"), &value), NEAR_MISS);
    close_instance(&in);
}

static void
test_G5_stale_mode_serves_flagged(void **state)
{
    static const char *const stale[] = { "coherence.on_disconnect",
                                         "stale",
                                         "coherence.serve_window",
                                         "100ms",
                                         "coherence.heartbeat",
                                         "20ms",
                                         "l2.timeout",
                                         L2_TIMEOUT,
                                         NULL };
    near_value_info          info    = NEAR_VALUE_INFO_INIT;
    struct instance          in;
    near_value              *value;
    int64_t                  killed;

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&in, redis->uri, "auto", stale);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    test_server_kill(redis);
    killed = test_now_ms();
    while (!info.stale) {
        assert_int_equal(near_get(in.cache, near_key("k"), &value), NEAR_OK); /* it never fails */
        near_value_get_info(value, &info);
        assert_int_equal(info.source, NEAR_FROM_L1);
        near_value_release(value);
        assert_true(test_now_ms() - killed < 5000);
    }
    assert_true(stats_of(&in).stale_served > 0);
    close_instance(&in);
    assert_true(test_server_restart(redis));
}

static near_status
get_status(struct instance *in, const char *key)
{
    near_value *value;
    near_status status = near_get(in->cache, near_key(key), &value);

    near_value_release(value);
    return status;
}

static int
get_fails(void *ctx)
{
    return get_status(ctx, "k") == NEAR_ERR_UNAVAILABLE;
}

static void
test_G5_fail_mode_fails(void **state)
{
    static const char *const fails[] = { "coherence.on_disconnect",
                                         "fail",
                                         "coherence.serve_window",
                                         "100ms",
                                         "coherence.heartbeat",
                                         "20ms",
                                         "l2.timeout",
                                         L2_TIMEOUT,
                                         NULL };
    struct instance          in;

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&in, redis->uri, "auto", fails);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    assert_int_equal(get_status(&in, "k"), NEAR_OK);
    test_server_kill(redis);
    assert_true(test_wait_for(get_fails, &in, 5000));
    close_instance(&in);
    assert_true(test_server_restart(redis));
}

/* A server that is silent costs no more than the deadline, and the fetch is answered by the loader all the same. */
static void
deadlines_hold_while_the_server_is_stopped(void **state)
{
    struct test_server *const servers[] = { redis, memcached };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct instance in;
        near_value     *value;
        int64_t         start;

        if (servers[i] == NULL)
            continue;
        open_with(&in, servers[i]->uri, "auto", quick);
        assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
        test_server_pause(servers[i]);
        start = test_now_ms();
        assert_int_equal(near_get(in.cache, near_key("other"), &value), NEAR_ERR_TIMEOUT);
        assert_true(test_now_ms() - start < L2_TIMEOUT_MS + 100 * test_slack());
        start = test_now_ms();
        assert_int_equal(fetch(&in, "fetched"), NEAR_FROM_LOADER);
        assert_true(test_now_ms() - start < 2 * L2_TIMEOUT_MS + 200 * test_slack());
        start = test_now_ms();
        assert_true(near_put(in.cache, near_key("k"), near_key("w"), NULL) <
                    0); /* a timeout, or not tried so soon again; and one attempt to remove */
        assert_true(test_now_ms() - start < 2 * L2_TIMEOUT_MS + 200 * test_slack());
        test_server_resume(servers[i]);
        assert_true(test_wait_for(put_works, &in, 5000));
        close_instance(&in);
    }
}

/* Nor does a batch of many parts wait once more for each of them. */
static void
a_large_batch_keeps_its_deadline_too(void **state)
{
    enum { N = 4000 };
    static near_bytes  keys[N];
    static char        text[N][16];
    static near_status statuses[N];
    struct instance    in;
    int64_t            start;

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&in, redis->uri, "auto", quick);
    for (size_t i = 0; i < N; i++) {
        snprintf(text[i], sizeof(text[i]), "key%zu", i);
        keys[i] = near_key(text[i]);
    }
    for (int tries = 0; near_put_many(in.cache, keys, keys, N, NULL, statuses) != NEAR_OK; tries++) {
        assert_true(tries < 20); /* so short a timeout may pass on a busy machine */
        usleep(100000);
    }
    test_server_pause(redis);
    start = test_now_ms();
    assert_true(near_put_many(in.cache, keys, keys, N, NULL, statuses) < 0);
    assert_true(test_now_ms() - start < 2 * L2_TIMEOUT_MS + 400 * test_slack());
    for (size_t i = 0; i < N; i++)
        assert_true(statuses[i] < 0);
    test_server_resume(redis);
    assert_true(test_wait_for(put_works, &in, 5000));
    close_instance(&in);
}

static void
append_log(near_log_level level, const char *message, void *ctx)
{
    (void)level;
    test_log_append(ctx, LOG_SIZE, message);
}

static void
a_wrong_password_is_said_without_showing_it(void **state)
{
    static const char *const password[] = { "--requirepass", "correct", NULL };
    struct test_server      *guarded    = test_redis_start(TEST_SERVER_TCP, password);
    struct instance          in;
    char                     uri[300], text[LOG_SIZE] = "";

    (void)state;
    if (guarded == NULL)
        skip();
    snprintf(uri, sizeof(uri), "redis://:hunter2@127.0.0.1:%d", guarded->port);
    open_with(&in, uri, "auto", quick);
    near_set_log(in.client, append_log, text);
    assert_int_equal(get_status(&in, "k"), NEAR_ERR_DENIED);
    assert_int_equal(fetch(&in, "k"), NEAR_FROM_LOADER);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_ERR_DENIED);
    assert_null(strstr(text, "hunter2"));
    assert_non_null(strstr(text, "WRONGPASS"));
    near_set_log(in.client, NULL, NULL);
    assert_int_equal(near_client_close(in.client, NULL), NEAR_ERR_UNAVAILABLE); /* it owes an invalidation */
    snprintf(uri, sizeof(uri), "redis://:correct@127.0.0.1:%d", guarded->port);
    open_with(&in, uri, "auto", quick);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    close_instance(&in);
    test_server_stop(&guarded);
}

/* G0: what somebody else wrote under our key, in every way of being wrong, is a miss and a counter. */
static void
test_G0_spoilt_entries_are_misses(void **state)
{
    static const char *const no_l1[]  = { "l1.max_bytes", "0", NULL };
    static const char *const spoilt[] = {
        "", "x", "plain text of another program, long enough to have a stamp in it ...........", "NrC\x01"
    };
    struct instance in;
    char            reply[512];

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&in, redis->uri, "auto", no_l1);
    for (size_t i = 0; i < NEAR_COUNT_OF(spoilt); i++) {
        const char *set[] = { "SET", "nc:c:k", spoilt[i] };
        uint64_t    loads = in.loads;

        assert_int_equal(near_remove(in.cache, near_key("k")), NEAR_OK);
        assert_true(test_redis_command(redis, reply, sizeof(reply), 3, set));
        assert_int_equal(get_status(&in, "k"), NEAR_MISS);
        assert_int_equal(stats_of(&in).l2_corrupt, 2 * i + 1);
        assert_int_equal(fetch(&in, "k"), NEAR_FROM_LOADER); /* and replaced by a good one */
        assert_int_equal(fetch(&in, "k"), NEAR_FROM_L2);
        assert_int_equal(in.loads, loads + 1);
    }
    close_instance(&in);
}

/* G0: another key's sound entry under our key. */
static void
test_G0_another_keys_entry_is_a_miss(void **state)
{
    static const char *const no_l1[] = { "l1.max_bytes", "0", NULL };
    const char              *copy[]  = { "COPY", "nc:c:theirs", "nc:c:mine", "REPLACE" };
    struct instance          in;
    char                     reply[512];

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&in, redis->uri, "auto", no_l1);
    assert_int_equal(near_put(in.cache, near_key("theirs"), near_key("secret"), NULL), NEAR_OK);
    assert_true(test_redis_command(redis, reply, sizeof(reply), 4, copy));
    assert_int_equal(get_status(&in, "mine"), NEAR_MISS);
    assert_int_equal(stats_of(&in).l2_wrong_key, 1);
    assert_int_equal(get_status(&in, "theirs"), NEAR_OK);
    close_instance(&in);
}

/* Race 26: L2 loses the generation: nothing from before may come back. */
static void
test_race26_a_lost_generation_empties_the_cache(void **state)
{
    static const char *const no_l1[] = { "l1.max_bytes", "0", "coherence.mode", "none", NULL };
    const char              *del[]   = { "DEL", "nc:c@generation" };
    struct instance          in;
    char                     reply[512];

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&in, redis->uri, "auto", no_l1);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    assert_int_equal(get_status(&in, "k"), NEAR_OK);
    assert_true(test_redis_command(redis, reply, sizeof(reply), 2, del));
    nanosleep(&(struct timespec){ 0, 20 * 1000000 }, NULL); /* without a bus a generation is good for 10 ms */
    assert_int_equal(get_status(&in, "k"), NEAR_MISS);
    assert_int_equal(fetch(&in, "k"), NEAR_FROM_LOADER);
    assert_int_equal(get_status(&in, "k"), NEAR_OK);
    close_instance(&in);
}

/* The same where a bus is trusted: two instances must not keep different generations for longer than l1.max_ttl. */
static void
instances_agree_again_after_a_lost_generation(void **state)
{
    static const char *const settings[] = { "l1.max_ttl", "200ms", NULL };
    const char              *del[]      = { "DEL", "nc:c@generation" };
    struct instance          a, b, c;
    char                     reply[512];
    int64_t                  start = test_now_ms();

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&a, redis->uri, "auto", settings);
    open_with(&b, redis->uri, "auto", settings);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    assert_int_equal(get_status(&b, "k"), NEAR_OK); /* both know the generation */
    assert_true(test_redis_command(redis, reply, sizeof(reply), 2, del));
    open_with(&c, redis->uri, "auto", settings);
    assert_int_equal(near_put(c.cache, near_key("k"), near_key("w"), NULL), NEAR_OK); /* makes a new one */
    do {
        assert_true(test_now_ms() - start < 5000);
        near_put(a.cache, near_key("from a"), near_key("x"), NULL);
    } while (get_status(&b, "k") != NEAR_OK || get_status(&c, "from a") != NEAR_OK);
    close_instance(&a);
    close_instance(&b);
    close_instance(&c);
}

/* Where a new value cannot be stored at all, the old one goes. */
static void
a_put_that_cannot_be_stored_removes_the_old_value(void **state)
{
    static const char *const settings[] = { "l1.max_ttl", "50ms", NULL };
    const char *spoil[]  = { "EVAL", "redis.call('DEL', KEYS[1]); return redis.call('LPUSH', KEYS[1], 'x')",
                             "1", "nc:c@generation" };
    const char *exists[] = { "EXISTS", "nc:c:k" };
    const char *del[]    = { "DEL", "nc:c@generation" };
    struct instance a;
    char            reply[512];
    int64_t         start = test_now_ms();

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&a, redis->uri, "auto", settings);
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("old"), NULL), NEAR_OK);
    assert_true(test_redis_command(redis, reply, sizeof(reply), 4, spoil));
    while (near_put(a.cache, near_key("k"), near_key("new"), NULL) ==
           NEAR_OK) /* until it has to be read again */
        assert_true(test_now_ms() - start < 5000);
    assert_true(test_redis_command(redis, reply, sizeof(reply), 2, exists));
    assert_int_equal(strtol(reply + strspn(reply, ":"), NULL, 10), 0);
    assert_true(test_redis_command(redis, reply, sizeof(reply), 2, del));
    close_instance(&a);
}

static void
load_nothing(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_load_not_found(loads[i]);
}

/* An absence has no flag: in stale mode it is not served once the window is over. */
static void
test_G5_stale_mode_serves_no_absence(void **state)
{
    static const char *const stale[] = { "coherence.on_disconnect",
                                         "stale",
                                         "coherence.serve_window",
                                         "100ms",
                                         "coherence.heartbeat",
                                         "20ms",
                                         "l2.timeout",
                                         L2_TIMEOUT,
                                         NULL };
    struct instance          in;
    int64_t                  start;

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&in, redis->uri, "auto", stale);
    near_cache_set_loader(in.cache, load_nothing, NULL);
    near_fetch(in.cache, near_key("absent"), NULL, &(near_value *){ NULL });
    assert_int_equal(get_status(&in, "absent"), NEAR_NOT_FOUND);
    test_server_kill(redis);
    start = test_now_ms();
    while (get_status(&in, "absent") == NEAR_NOT_FOUND)
        assert_true(test_now_ms() - start < 3000); /* its negative_ttl is longer */
    close_instance(&in);
    assert_true(test_server_restart(redis));
}

static _Atomic bool hammering;

static void *
hammer(void *ctx)
{
    struct instance *in    = ctx;
    uint64_t         state = (uint64_t)(uintptr_t)&state;

    while (hammering) {
        char key[16];

        snprintf(key, sizeof(key), "k%u", (unsigned)(test_random(&state) % 64));
        if (test_random(&state) % 4 == 0)
            near_remove(in->cache, near_key(key));
        else
            fetch_quietly(in, key);
    }
    return NULL;
}

enum { HAMMERS = TEST_UNDER_TSAN ? 0 : 4 };

static int
close_as_a_child(struct instance *in)
{
    near_value *value;
    int         status;
    pid_t       child = fork();

    if (child == 0) {
        alarm(10); /* a hang ends here, and is seen */
        status = near_get(in->cache, near_key("k1"), &value) == NEAR_ERR_FORKED &&
                 near_client_close(in->client, NULL) == NEAR_OK;
        _exit(status ? 0 : 1);
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Race 40: at the fork, other threads are in the middle of everything and hold any lock. */
static void
test_race40_a_child_of_a_busy_process_can_close(void **state)
{
    static struct instance in; /* the threads outlive a failed assertion */
    pthread_t              threads[HAMMERS + 1];
    size_t                 good = 0, n = test_scale(50);

    (void)state;
    if (redis == NULL)
        skip();
    open_with(&in, redis->uri, "auto", NULL);
    hammering = true;
    for (int i = 0; i < HAMMERS; i++)
        pthread_create(&threads[i], NULL, hammer, &in);
    for (size_t i = 0; i < n; i++)
        good += (size_t)close_as_a_child(&in);
    hammering = false;
    for (int i = 0; i < HAMMERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(good, n);
    close_instance(&in);
}

/* The link is cut in the middle of writes, at many places: a write is acknowledged or it is not, and an acknowledged one is what is
 * read; unless an earlier one that failed is being made good, which removes the key. */
static void
test_race9_cut_writes_are_never_silently_wrong(void **state)
{
    struct test_proxy *proxy;
    struct instance    in, direct;
    char               text[32], seen[64];
    size_t             size, failed = 0, removed = 0;

    (void)state;
    if (redis == NULL)
        skip();
    proxy = test_proxy_start(redis);
    assert_non_null(proxy);
    open_with(&in, test_proxy_unix_uri(proxy), redis->uri, quick);
    open_with(&direct, redis->uri, "auto", quick);
    for (int64_t at = 0; at < (int64_t)test_scale(260); at++) {
        struct test_fault cut = { TEST_FAULT_CUT, at % 2 ? TEST_UP : TEST_DOWN, 0, at };
        near_status       status;

        snprintf(text, sizeof(text), "v%lld", (long long)at);
        test_proxy_fault(proxy, cut);
        status = near_put(in.cache, near_key("k"), near_key(text), NULL);
        test_proxy_heal(proxy);
        if (status == NEAR_OK) {
            assert_int_equal(near_fence(direct.client, 5000), NEAR_OK);
            status = near_get_copy(direct.cache, near_key("k"), seen, sizeof(seen), &size, NULL);
            assert_in_range(status, NEAR_OK, NEAR_MISS);
            if (status == NEAR_MISS) {
                removed++;
                continue;
            }
            assert_int_equal(size, strlen(text));
            assert_memory_equal(seen, text, size);
        } else {
            failed++;
            assert_true(status == NEAR_ERR_TIMEOUT || status == NEAR_ERR_UNAVAILABLE);
        }
    }
    assert_true(failed > 0);
    assert_true(removed <= failed);
    close_instance(&in);
    close_instance(&direct);
    test_proxy_stop(&proxy);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_client_opens_without_its_server_and_finds_it_later),
        cmocka_unit_test(without_a_bus_L1_serves_although_L2_is_missing),
        cmocka_unit_test(test_G5_a_killed_server_closes_the_gate_and_its_return_flushes),
        cmocka_unit_test(test_G5_stale_mode_serves_flagged),
        cmocka_unit_test(test_G5_fail_mode_fails),
        cmocka_unit_test(deadlines_hold_while_the_server_is_stopped),
        cmocka_unit_test(a_large_batch_keeps_its_deadline_too),
        cmocka_unit_test(a_wrong_password_is_said_without_showing_it),
        cmocka_unit_test(test_G0_spoilt_entries_are_misses),
        cmocka_unit_test(test_G0_another_keys_entry_is_a_miss),
        cmocka_unit_test(test_race26_a_lost_generation_empties_the_cache),
        cmocka_unit_test(instances_agree_again_after_a_lost_generation),
        cmocka_unit_test(a_put_that_cannot_be_stored_removes_the_old_value),
        cmocka_unit_test(test_G5_stale_mode_serves_no_absence),
        cmocka_unit_test(test_race40_a_child_of_a_busy_process_can_close),
        cmocka_unit_test(test_race9_cut_writes_are_never_silently_wrong),
    };
    return TEST_MAIN(tests, setup, teardown);
}
