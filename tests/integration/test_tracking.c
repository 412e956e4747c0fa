/*
 * Server-assisted invalidation (coherence.mode = tracking) on a real Redis: writers that know nothing of nearcache, expiry, eviction
 * and FLUSHALL reach L1; and what has gone wrong with such schemes elsewhere (races 10, 11, 12, 16) does not here.
 *
 * The control is the same thing in mode pubsub, where nobody tells of such changes.
 */
#define TEST_NAME "tracking"
#include "integration/instance.h"

#include "harness/server.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct test_server *server;

static struct instance mine, theirs;

static int
setup(void **state)
{
    (void)state;
    memset(&mine, 0, sizeof(mine));
    memset(&theirs, 0, sizeof(theirs));
    logged[0] = '\0';
    server    = test_redis_start(TEST_SERVER_TCP, NULL);
    test_need_server(server);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    close_instance(&mine);
    close_instance(&theirs);
    if (server != NULL)
        test_server_stop(&server);
    return 0;
}

static void
open_at(struct instance *in, const char *uri, const char *mode)
{
    open_with(
        in, (const char *[]){ "l2.uri", uri, "coherence.mode", mode, "l2.timeout", "5s", "ttl", "1h", NULL },
        NULL);
}

static void
put(struct instance *in, const char *key, const char *value)
{
    assert_int_equal(near_put(in->cache, near_key(key), near_key(value), NULL), NEAR_OK);
}

/* Where a read is answered from; -1: nowhere. */
static int
source_of(struct instance *in, const char *key, char *value, size_t capacity)
{
    near_value_info info = NEAR_VALUE_INFO_INIT;
    near_value     *held = NULL;
    near_bytes      bytes;

    if (near_get(in->cache, near_key(key), &held) != NEAR_OK)
        return -1;
    near_value_get_info(held, &info);
    bytes = near_value_bytes(held);
    snprintf(value, capacity, "%.*s", (int)bytes.size, (const char *)bytes.data);
    near_value_release(held);
    return (int)info.source;
}

static void
fence(struct instance *in)
{
    int64_t end = test_now_ms() + SOON;

    while (near_fence(in->client, 1000) != NEAR_OK && test_now_ms() < end)
        ;
}

/* In our L1 for good: whatever its own write and fill had announced has been heard. */
static void
have_in_l1(const char *key)
{
    char    value[64];
    int64_t end = test_now_ms() + SOON;

    do {
        fence(&mine);
        source_of(&mine, key, value, sizeof(value));
        fence(&mine);
    } while (source_of(&mine, key, value, sizeof(value)) != NEAR_FROM_L1 && test_now_ms() < end);
    assert_int_equal(source_of(&mine, key, value, sizeof(value)), NEAR_FROM_L1);
}

static void
command_text(char *out, size_t size, int argc, const char *const *argv)
{
    if (!test_redis_command(server, out, size, argc, argv))
        fail_msg("%s: %s", argv[0], out);
}

#define COMMAND(...)                                                                                         \
    do {                                                                                                     \
        const char *argv_[] = { __VA_ARGS__ };                                                               \
        char        out_[4096];                                                                              \
        command_text(out_, sizeof(out_), (int)NEAR_COUNT_OF(argv_), argv_);                                  \
    } while (0)

/* ----------------------------------------------------------------------------------------- foreign changes */

static bool
gone(const char *key)
{
    char value[64];

    return source_of(&mine, key, value, sizeof(value)) != NEAR_FROM_L1;
}

static int
is_gone(void *key)
{
    return gone(key);
}

/* What was acknowledged to redis-cli before a fence is not served after it; whatever the mode hears at all. */
static unsigned
foreign_changes_heard(const char *mode)
{
    char     text[64];
    char     k3[]  = "k3";
    unsigned heard = 0;

    open_at(&theirs, server->uri, mode); /* a generation that went must be noticed there, too */
    open_at(&mine, server->uri, mode);
    for (int i = 0; i < 7; i++)
        put(&theirs, (char[]){ 'k', (char)('0' + i), '\0' }, "old");
    fence(&mine);
    have_in_l1("k0");
    COMMAND("DEL", "nc:c:k0");
    fence(&mine);
    heard += (unsigned)gone("k0");

    have_in_l1("k1");
    COMMAND("SET", "nc:c:k1", "by a program that knows nothing of us");
    fence(&mine);
    heard += (unsigned)gone("k1");

    have_in_l1("k2");
    COMMAND("RENAME", "nc:c:k2", "nc:c:away");
    fence(&mine);
    heard += (unsigned)gone("k2");

    have_in_l1("k3"); /* expiry is told of when the server finds it: ten times a second it looks around */
    COMMAND("PEXPIRE", "nc:c:k3", "1");
    heard += (unsigned)test_wait_for(is_gone, k3, strcmp(mode, "pubsub") == 0 ? 300 : SOON);

    have_in_l1("k4");
    COMMAND("CONFIG", "SET", "maxmemory-policy", "allkeys-random");
    COMMAND("CONFIG", "SET", "maxmemory", "1");
    test_redis_command(server, text, sizeof(text), 3,
                       (const char *[]){ "SET", "x", "y" }); /* evicts all there is */
    COMMAND("CONFIG", "SET", "maxmemory", "0");
    fence(&mine);
    heard += (unsigned)gone("k4");

    fence(&theirs);
    put(&theirs, "k5", "old");
    have_in_l1("k5");
    COMMAND("FLUSHALL");
    fence(&mine);
    heard += (unsigned)gone("k5");

    fence(&theirs);
    put(&theirs, "k6", "old");
    have_in_l1("k6");
    COMMAND("DEL", "nc:c@generation");
    fence(&mine);
    heard += (unsigned)gone("k6");
    close_instance(&mine);
    close_instance(&theirs);
    return heard;
}

static void
changes_by_anybody_reach_l1(void **state)
{
    (void)state;
    assert_int_equal(foreign_changes_heard("tracking"), 7);
}

static void
changes_by_anybody_reach_l1_in_mode_both(void **state)
{
    (void)state;
    assert_int_equal(foreign_changes_heard("both"), 7);
}

static void
control_in_mode_pubsub_nobody_tells_of_them(void **state)
{
    (void)state;
    assert_int_equal(foreign_changes_heard("pubsub"), 0);
}

/* ------------------------------------------------------------------------------------------------ in force */

static void
stats_say_what_is_in_force(void **state)
{
    near_error   error;
    near_config *config = near_config_new();
    near_client *client = NULL;

    (void)state;
    open_at(&mine, server->uri, "tracking");
    open_at(&theirs, server->uri, "pubsub");
    assert_int_equal(stats(&mine).bus_tracking, 1);
    assert_int_equal(stats(&theirs).bus_tracking, 0);
    put(&theirs, "k", "v");
    fence(&mine);
    assert_true(stats(&mine).bus_changed > 0);
    assert_int_equal(stats(&theirs).bus_changed, 0);
    assert_int_equal(near_config_set(config, "l2.uri", "memory:x", &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "coherence.mode", "tracking", &error), NEAR_OK);
    assert_int_equal(near_client_open(config, &client, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, "coherence.mode"));
    near_config_free(config);
}

/* Refused by the ACL, in either of two ways: messages remain, it is said once, and the stats tell. */
static void
where_the_server_refuses_messages_remain(void **state)
{
    char uri[300], value[64];

    (void)state;
    snprintf(uri, sizeof(uri), "redis://shy:pw@127.0.0.1:%d/0", server->port);
    for (int way = 0; way < 2; way++) {
        logged[0] = '\0';
        COMMAND("ACL", "SETUSER", "shy", "reset", "on", ">pw", "~*", "+@all", way == 0 ? "&*" : "&nc:*",
                way == 0 ? "-client|tracking" : "+ping");
        open_at(&mine, uri, "tracking");
        open_at(&theirs, server->uri, "tracking");
        assert_int_equal(stats(&mine).bus_tracking, 0);
        assert_int_equal(stats(&theirs).bus_tracking, 1);
        put(&theirs, "k", "old");
        have_in_l1("k");
        put(&theirs, "k", "new");
        fence(&mine);
        assert_int_not_equal(source_of(&mine, "k", value, sizeof(value)), NEAR_FROM_L1);
        assert_string_equal(value, "new");
        have_in_l1("k");
        COMMAND("CLIENT", "KILL", "TYPE", "pubsub"); /* refused again: not said again */
        fence(&mine);
        have_in_l1("k");
        assert_int_equal(times_logged("refuses server-assisted invalidation"), 1);
        close_instance(&mine);
        close_instance(&theirs);
    }
}

/* ------------------------------------------------------------------------------------------------- the races */

/* Race 12: the connection dies, and what was changed meanwhile is not served afterwards.  Its life is L1's validity. */
static void
test_race12_killed_connection_hides_no_change(void **state)
{
    char value[64];

    (void)state;
    open_at(&mine, server->uri, "tracking");
    for (size_t i = 0; i < test_scale(20); i++) {
        uint64_t connects;

        put(&mine, "k", "old");
        have_in_l1("k");
        connects = stats(&mine).bus_connects;
        COMMAND("CLIENT", "KILL", "TYPE",
                i % 2 == 0 ? "pubsub" : "normal"); /* the one that listens; all others */
        COMMAND("SET", "nc:c:k", "foreign");
        fence(&mine);
        assert_int_not_equal(source_of(&mine, "k", value, sizeof(value)), NEAR_FROM_L1);
        assert_true(i % 2 == 1 || stats(&mine).bus_connects > connects);
    }
    assert_int_equal(stats(&mine).bus_tracking, 1);
}

/* Race 11: after a write of our own, changes by others are still told of, each of them. */
static void
test_race11_changes_after_our_own_write_are_heard(void **state)
{
    char value[64];

    (void)state;
    open_at(&mine, server->uri, "tracking");
    for (size_t i = 0; i < test_scale(50); i++) {
        put(&mine, "k", "own");
        have_in_l1("k");
        COMMAND("SET", "nc:c:k", "foreign");
        fence(&mine);
        assert_int_not_equal(source_of(&mine, "k", value, sizeof(value)), NEAR_FROM_L1);
        COMMAND("SET", "nc:c:k", "foreign again");
        fence(&mine);
        assert_int_not_equal(source_of(&mine, "k", value, sizeof(value)), NEAR_FROM_L1);
    }
}

static void *
put_own(void *ctx)
{
    (void)ctx;
    put(&mine, "k", "own");
    return NULL;
}

static void *
remove_foreign(void *ctx)
{
    char out[64];

    (void)ctx;
    test_redis_command(server, out, sizeof(out), 2, (const char *[]){ "DEL", "nc:c:k" });
    return NULL;
}

/* Race 10: our write and a foreign removal are executed in one turn of the server's loop, and are one message: it must not be taken
 * for our own echo.  The server is stopped while both are sent. */
static void
test_race10_a_foreign_change_in_the_turn_of_our_own_is_applied(void **state)
{
    char     value[64], l2[64];
    unsigned removed = 0;

    (void)state;
    open_at(&mine, server->uri, "tracking");
    for (size_t i = 0; i < test_scale(20); i++) {
        pthread_t threads[2];

        put(&mine, "k", "before");
        have_in_l1("k");
        test_server_pause(server);
        pthread_create(&threads[0], NULL, i % 2 == 0 ? put_own : remove_foreign, NULL);
        usleep(3000);
        pthread_create(&threads[1], NULL, i % 2 == 0 ? remove_foreign : put_own, NULL);
        usleep(3000);
        test_server_resume(server);
        pthread_join(threads[0], NULL);
        pthread_join(threads[1], NULL);
        fence(&mine);
        command_text(l2, sizeof(l2), 2, (const char *[]){ "EXISTS", "nc:c:k" });
        value[0] = '\0';
        removed += l2[0] == '0';
        assert_int_equal(source_of(&mine, "k", value, sizeof(value)) >= 0, l2[0] == '1');
    }
    assert_true(removed > 0); /* control: it did come in that order */
}

/* Race 16: a pong may overtake an invalidation, but not that of a write acknowledged before the PING: what the fence promises. */
static void
test_race16_fence_covers_what_was_acknowledged_before(void **state)
{
    char   value[64];
    size_t without = 0, n = test_scale(500);

    (void)state;
    open_at(&mine, server->uri, "tracking");
    put(&mine, "k", "old");
    for (size_t i = 0; i < n; i++) {
        have_in_l1("k");
        COMMAND("PEXPIRE", "nc:c:k", "1000000"); /* a change that leaves the value there */
        if (i % 2 == 1) { /* not both: a read that comes after it would fill L1 again */
            without += source_of(&mine, "k", value, sizeof(value)) == NEAR_FROM_L1;
            continue;
        }
        fence(&mine);
        assert_int_not_equal(source_of(&mine, "k", value, sizeof(value)), NEAR_FROM_L1);
    }
    print_message("[          ] %zu of %zu were still there without a fence\n", without, n / 2);
}

/* Our own lease and fill come back as changes: the load is not repeated, its callers get it, and the next read keeps it. */
static _Atomic unsigned loads;

static void
load_slowly(near_load *load[], size_t n, void *ctx)
{
    (void)ctx;
    atomic_fetch_add(&loads, (unsigned)n);
    usleep(20000);
    for (size_t i = 0; i < n; i++)
        near_load_set(load[i], near_key("loaded"));
}

static void *
fetch_k(void *ctx)
{
    near_value *value = NULL;

    usleep((useconds_t)(uintptr_t)ctx * 4000);
    if (near_fetch(mine.cache, near_key("k"), NULL, &value) == NEAR_OK)
        near_value_release(value);
    return NULL;
}

static void
test_G8_own_lease_and_fill_repeat_no_load(void **state)
{
    pthread_t threads[8];

    (void)state;
    open_at(&mine, server->uri, "tracking");
    near_cache_set_loader(mine.cache, load_slowly, NULL);
    for (unsigned round = 1; round <= test_scale(10); round++) {
        atomic_store(&loads, 0);
        for (uintptr_t i = 0; i < 8; i++)
            pthread_create(&threads[i], NULL, fetch_k, (void *)i);
        for (size_t i = 0; i < 8; i++)
            pthread_join(threads[i], NULL);
        assert_int_equal(loads, 1);
        have_in_l1("k");
        assert_int_equal(near_remove(mine.cache, near_key("k")), NEAR_OK);
    }
}

#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(changes_by_anybody_reach_l1),
        WITH_SERVER(changes_by_anybody_reach_l1_in_mode_both),
        WITH_SERVER(control_in_mode_pubsub_nobody_tells_of_them),
        WITH_SERVER(stats_say_what_is_in_force),
        WITH_SERVER(where_the_server_refuses_messages_remain),
        WITH_SERVER(test_race12_killed_connection_hides_no_change),
        WITH_SERVER(test_race11_changes_after_our_own_write_are_heard),
        WITH_SERVER(test_race10_a_foreign_change_in_the_turn_of_our_own_is_applied),
        WITH_SERVER(test_race16_fence_covers_what_was_acknowledged_before),
        WITH_SERVER(test_G8_own_lease_and_fill_repeat_no_load),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
