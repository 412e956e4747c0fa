/*
 * Secrets in what the library says.  A password, keys and values carry marks; every way to an error message, a log line or a report is
 * gone that can be gone from outside: URIs that are wrong at each place, files and variables, refused logins, missing rights, entries and
 * messages that are none, networks that fail, loaders and stores that fail.  No mark may be in any text, whole or but for its ends.
 *
 * The controls: reports that are to show keys do.
 */
#include "integration/world.h"

#include <fcntl.h>
#include <nearcache.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness/proxy.h"

#define PASSWORD "pAssWordMaRk77"
#define KEY      "kEyMaRk:4711"
#define VALUE    "vAlUeMaRk:someone's name and address"

/* Parts of the marks: what is cut off at either end is found, too. */
static const char *const marks[] = { "AssWordMaR", "EyMaRk:47", "lUeMaRk:some" };

static pthread_mutex_t said_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned        said; /* texts that were looked at */
static char            worst[600];

/* Note a text that shows a mark; asserting is for the test's own thread. */
static void
look_at(const char *where, const char *text)
{
    pthread_mutex_lock(&said_lock);
    said++;
    for (size_t i = 0; i < NEAR_COUNT_OF(marks); i++)
        if (text != NULL && strcasestr(text, marks[i]) != NULL)
            snprintf(worst, sizeof(worst), "%s: %s", where, text);
    pthread_mutex_unlock(&said_lock);
}

static void
log_looked_at(near_log_level level, const char *message, void *ctx)
{
    (void)level, (void)ctx;
    look_at("log", message);
}

static void
assert_nothing_shown(void)
{
    char copy[sizeof(worst)];

    pthread_mutex_lock(&said_lock);
    memcpy(copy, worst, sizeof(copy));
    worst[0] = '\0';
    pthread_mutex_unlock(&said_lock);
    if (copy[0] != '\0')
        fail_msg("%s", copy);
}

/* ---- configurations */

static void
try_setting(const char *name, const char *value)
{
    near_config *config = near_config_new();
    near_client *client = NULL;
    near_error   error  = { 0 };

    if (near_config_set(config, name, value, &error) == NEAR_OK &&
        near_client_open(config, &client, &error) == NEAR_OK)
        near_client_close(client, NULL);
    near_config_free(config);
    look_at(name, error.text);
}

static void
uris_that_are_wrong_anywhere_do_not_show_their_password(void **state)
{
    static const char *const good[] = {
        "redis://user:" PASSWORD "@127.0.0.1:1/0",
        "rediss://:" PASSWORD "@localhost",
        "redis-cluster://user:" PASSWORD "@127.0.0.1:1,127.0.0.1:2",
        "redis-sentinel://user:" PASSWORD "@127.0.0.1:1/main/3",
        "redis+unix://:" PASSWORD "@/nowhere?db=2",
        "memcached://user:" PASSWORD "@127.0.0.1:1:1",
        "memory:" PASSWORD "@",
        "x-own://:" PASSWORD "@h",
    };
    static const char *const options[] = { "l2.uri", "coherence.uri", "l2.gutter" };
    static const char        wrong[]   = " %@:";

    (void)state;
    for (size_t o = 0; o < NEAR_COUNT_OF(options); o++)
        for (size_t i = 0; i < NEAR_COUNT_OF(good); i++)
            for (size_t at = 0; at <= strlen(good[i]); at += o == 0 ? 1 : 3) {
                char text[128];

                /* the mark stays whole: what shows a part of it would show it all elsewhere */
                if (at > (size_t)(strstr(good[i], PASSWORD) - good[i]) &&
                    at < (size_t)(strstr(good[i], PASSWORD) - good[i]) + strlen(PASSWORD))
                    continue;
                for (const char *c = wrong; *c != '\0'; c++) {
                    snprintf(text, sizeof(text), "%.*s%c%s", (int)at, good[i], *c, good[i] + at);
                    try_setting(options[o], text);
                }
                snprintf(text, sizeof(text), "%.*s", (int)at, good[i]);
                try_setting(options[o], text);
                snprintf(text, sizeof(text), "%s",
                         good[i] + (strstr(good[i], PASSWORD) - good[i] > (long)at ? at : 0));
                try_setting(options[o], text);
            }
    assert_true(said > 1000);
    assert_nothing_shown();
}

static void
write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static void
files_and_variables_do_not_show_what_is_in_them(void **state)
{
    char         path[64], text[2048];
    near_config *config = near_config_new();
    near_client *client;
    near_error   error = { 0 };

    (void)state;
    snprintf(path, sizeof(path), "/tmp/near-secrets-%d", (int)getpid());
    write_file(path, "l2.uri = redis://:" PASSWORD "@[\n");
    assert_int_not_equal(near_config_load(config, path, &error), NEAR_OK);
    look_at("near_config_load", error.text);
    write_file(path, "l2.passwort = " PASSWORD "\n");
    assert_int_not_equal(near_config_load(config, path, &error), NEAR_OK);
    look_at("near_config_load", error.text);
    near_config_free(config);

    memset(text, 'x', sizeof(text)); /* too long a password */
    memcpy(text, PASSWORD, strlen(PASSWORD));
    text[sizeof(text) - 1] = '\0';
    write_file(path, text);
    config = near_config_new();
    assert_int_equal(near_config_set(config, "l2.uri", "redis://127.0.0.1:1", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.password_file", path, NULL), NEAR_OK);
    assert_int_not_equal(near_client_open(config, &client, &error), NEAR_OK);
    look_at("l2.password_file", error.text);
    write_file(path, PASSWORD "\n");
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_not_equal(near_client_open(config, &client, &error), NEAR_OK);
    look_at("l2.password_file, readable", error.text);
    near_config_free(config);
    unlink(path);

    setenv("NEARCACHE_L2_URI", "redis://:" PASSWORD "@127.0.0.1:99999", 1);
    assert_int_not_equal(near_client_open(NULL, &client, &error), NEAR_OK);
    look_at("NEARCACHE_L2_URI", error.text);
    unsetenv("NEARCACHE_L2_URI");
    assert_nothing_shown();
}

/* ---- a client whose everything fails */

static void
load_badly(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_load_fail(loads[i], NEAR_ERR_LOADER);
}

static void
store_badly(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_write_fail(writes[i], i % 2 == 0 ? NEAR_ERR_INVALID : NEAR_ERR_UNAVAILABLE);
}

static void
take_text(const char *where, char *text)
{
    look_at(where, text);
    near_free(text);
}

static void
use(near_client *client, near_cache *cache)
{
    near_put_options  options = NEAR_PUT_OPTIONS_INIT;
    const char *const tags[]  = { KEY };
    near_value       *value;

    near_put(cache, near_key(KEY), near_key(VALUE), NULL);
    options.tags      = tags;
    options.tag_count = 1;
    near_put(cache, near_key(KEY ":tagged"), near_key(VALUE), &options);
    near_fetch(cache, near_key(KEY), NULL, &value);
    near_value_release(value);
    near_fetch(cache, near_key(KEY ":nowhere"), NULL, &value);
    near_value_release(value);
    near_update(cache, near_key(KEY), near_key(VALUE), NULL);
    near_erase(cache, near_key(KEY));
    near_add(cache, near_key(KEY), 1, 1, NULL);
    near_remove(cache, near_key(KEY));
    near_invalidate_tag(cache, KEY);
    near_invalidate_prefix(cache, near_key(KEY));
    near_expire(cache, near_key(KEY));
    near_flush(client, 20);
    near_fence(client, 20);
    take_text("json", near_stats_json(client));
    take_text("prometheus", near_stats_prometheus(client));
    take_text("hot keys", near_hot_keys(cache, 0));
    take_text("explain", near_explain(cache, near_key(KEY)));
}

static near_client *
open_loud(const char *uri, const char *policy, near_cache **cache)
{
    near_config *config = near_config_new();
    near_client *client = NULL;
    near_error   error  = { 0 };

    assert_int_equal(near_config_set(config, "l2.uri", uri, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "log.level", "debug", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.timeout", "50ms", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.connect_timeout", "50ms", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "coherence.heartbeat", "10ms", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "coherence.serve_window", "50ms", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "write.policy", policy, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "write_back.interval", "1ms", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "write_back.retries", "1", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "close.timeout", "20ms", NULL), NEAR_OK);
    if (near_client_open(config, &client, &error) == NEAR_OK) {
        near_set_log(client, log_looked_at, NULL);
        assert_int_equal(near_cache_open(client, "things", NULL, cache, &error), NEAR_OK);
        near_cache_set_loader(*cache, load_badly, NULL);
        near_cache_set_store(*cache, store_badly, NULL);
    }
    look_at("open", error.text);
    near_config_free(config);
    return client;
}

static void
live_loudly(const char *uri, const char *policy, const struct test_proxy *proxy)
{
    static const struct test_fault faults[] = {
        { TEST_FAULT_NONE, TEST_BOTH, 0, 0 },    { TEST_FAULT_CUT, TEST_DOWN, 0, 30 },
        { TEST_FAULT_RESET, TEST_UP, 0, 10 },    { TEST_FAULT_HOSTILE, TEST_DOWN, 0, 2 },
        { TEST_FAULT_BLACKHOLE, TEST_UP, 0, 0 }, { TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 },
    };
    near_cache  *cache;
    near_client *client = open_loud(uri, policy, &cache);
    near_error   error  = { 0 };

    if (client == NULL)
        return;
    for (size_t i = 0; i < NEAR_COUNT_OF(faults); i++) {
        if (proxy != NULL)
            test_proxy_fault((struct test_proxy *)proxy, faults[i]);
        use(client, cache);
        if (proxy == NULL)
            break;
    }
    if (proxy != NULL)
        test_proxy_heal((struct test_proxy *)proxy);
    near_client_close(client, &error);
    look_at("close", error.text);
}

static void
command(struct test_server *server, int argc, const char *const *argv)
{
    char out[256];

    test_redis_command(server, out, sizeof(out), argc, argv);
}

static void
a_redis_that_refuses_and_a_network_that_fails_show_nothing(void **state)
{
    static const char *const arguments[] = { "--requirepass", PASSWORD, NULL };
    struct test_server      *redis       = test_redis_start(TEST_SERVER_TCP, arguments);
    struct test_proxy       *proxy;
    char                     uri[200];
    unsigned                 before = said;

    (void)state;
    test_need_server(redis);
    proxy = test_proxy_start(redis);
    assert_non_null(proxy);
    /* of the wrong type, or no entry of ours, where our keys lie; rubbish on the channel */
    command(redis, 3, (const char *[]){ "RPUSH", "nc:things:" KEY, VALUE });
    command(redis, 3, (const char *[]){ "SET", "nc:things:" KEY ":tagged", VALUE });
    command(redis, 3, (const char *[]){ "PUBLISH", "nc:bus", KEY VALUE });
    command(redis, 6, (const char *[]){ "ACL", "SETUSER", "poor", "on", ">" PASSWORD, "+ping" });
    for (unsigned i = 0; i < 3; i++) {
        static const char *const policies[] = { "through", "back", "around" };
        const char              *at         = strstr(test_proxy_uri(proxy), "127.0.0.1");

        snprintf(uri, sizeof(uri), "redis://:%s@%s", PASSWORD, at);
        live_loudly(uri, policies[i], proxy);
        snprintf(uri, sizeof(uri), "redis://:%s@127.0.0.1:%d", "wrong" PASSWORD, redis->port);
        live_loudly(uri, policies[i], NULL);
        snprintf(uri, sizeof(uri), "redis://poor:%s@127.0.0.1:%d", PASSWORD, redis->port);
        live_loudly(uri, policies[i], NULL);
        snprintf(uri, sizeof(uri), "rediss://:%s@127.0.0.1:%d", PASSWORD, redis->port); /* no TLS there */
        live_loudly(uri, policies[i], NULL);
    }
    snprintf(uri, sizeof(uri), "redis-cluster://:%s@127.0.0.1:%d", PASSWORD, redis->port); /* is none */
    live_loudly(uri, "through", NULL);
    snprintf(uri, sizeof(uri), "redis-sentinel://:%s@127.0.0.1:%d/main", PASSWORD, redis->port); /* is none */
    live_loudly(uri, "through", NULL);
    live_loudly("redis://user:" PASSWORD "@192.0.2.1:6379", "through",
                NULL); /* in the clear to another host */
    test_proxy_stop(&proxy);
    test_server_stop(&redis);
    print_message("%u texts looked at\n", said - before);
    assert_true(said > before + 100);
    assert_nothing_shown();
}

static void
memcached_and_no_server_at_all_show_nothing(void **state)
{
    struct test_server *memcached = test_memcached_start(0, NULL);
    struct test_proxy  *proxy;

    (void)state;
    test_need_server(memcached);
    proxy = test_proxy_start(memcached);
    assert_non_null(proxy);
    live_loudly(test_proxy_unix_uri(proxy), "through", proxy);
    live_loudly(test_proxy_unix_uri(proxy), "back", proxy);
    live_loudly("memcached+unix:///nowhere", "through", NULL);
    live_loudly("memory:", "back", NULL);
    live_loudly("none:", "through", NULL);
    test_proxy_stop(&proxy);
    test_server_stop(&memcached);
    assert_nothing_shown();
}

/* ---- the controls: what is to be shown is, and is seen */

static void
control_keys_asked_for_in_plain_are_seen(void **state)
{
    near_cache  *cache;
    near_client *client = open_loud("memory:", "through", &cache);
    near_value  *value;

    (void)state;
    for (unsigned i = 0; i < 5000; i++)
        if (near_get(cache, near_key(KEY), &value) == NEAR_OK)
            near_value_release(value);
    assert_nothing_shown();
    take_text("hot keys", near_hot_keys(cache, NEAR_PLAIN_KEYS));
    assert_non_null(strstr(worst, KEY));
    near_client_close(client, NULL);
    worst[0] = '\0';
    look_at("a text", "the password is " PASSWORD ", they say");
    assert_string_not_equal(worst, "");
    worst[0] = '\0';
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uris_that_are_wrong_anywhere_do_not_show_their_password),
        cmocka_unit_test(files_and_variables_do_not_show_what_is_in_them),
        cmocka_unit_test(a_redis_that_refuses_and_a_network_that_fails_show_nothing),
        cmocka_unit_test(memcached_and_no_server_at_all_show_nothing),
        cmocka_unit_test(control_keys_asked_for_in_plain_are_seen),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
