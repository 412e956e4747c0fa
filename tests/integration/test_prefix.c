/*
 * near_invalidate_prefix over real servers and memory: exactly the keys that begin so go, from L2 and from every instance, whatever bytes
 * they are made of; what is under way is not kept; what fails is made good.
 */
#define TEST_NAME "prefix"
#include "integration/instance.h"

#include "harness/proxy.h"
#include "harness/server.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct test_server *server, *memcached;
static struct test_proxy  *proxy;

static struct instance writer, reader;

static int
start_servers(void **state)
{
    (void)state;
    server    = test_redis_start(TEST_SERVER_TCP, NULL);
    memcached = test_memcached_start(0, NULL);
    proxy     = server != NULL ? test_proxy_start(server) : NULL;
    return 0;
}

static int
stop_servers(void **state)
{
    (void)state;
    if (proxy != NULL)
        test_proxy_stop(&proxy);
    test_server_stop(&server);
    test_server_stop(&memcached);
    return 0;
}

static int
setup(void **state)
{
    char out[64];

    (void)state;
    memset(&writer, 0, sizeof(writer));
    memset(&reader, 0, sizeof(reader));
    logged[0] = '\0';
    test_need_server(server);
    test_redis_command(server, out, sizeof(out), 1, (const char *[]){ "FLUSHALL" });
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    if (proxy != NULL)
        test_proxy_heal(proxy);
    close_instance(&writer);
    close_instance(&reader);
    return 0;
}

static void
open_at(struct instance *in, const char *l2, const char *const *more)
{
    open_with(in, (const char *[]){ "l2.uri", l2, "l2.timeout", "1s", "close.timeout", "200ms", NULL }, more);
    assert_int_equal(near_cache_open(in->client, "c2", NULL, &in->other, NULL), NEAR_OK);
}

static near_status
get(near_cache *cache, near_bytes key)
{
    near_value *value  = NULL;
    near_status status = near_get(cache, key, &value);

    near_value_release(value);
    return status;
}

#define BYTES(text) ((near_bytes){ text, sizeof(text) - 1 })

/* ---------------------------------------------------------------------------------------- which keys go */

static const near_bytes prefixes[] = { BYTES("user:"),   BYTES("u*r"),  BYTES("u?e"),      BYTES("u[s]er"),
                                       BYTES("u\\s"),    BYTES("*"),    BYTES("u\0s\xff"), BYTES("[^a]"),
                                       BYTES("u[s-t]e"), BYTES(" \r\n") };
static const near_bytes others[]   = { BYTES("uxxr"), BYTES("use"), BYTES("user"), BYTES("us"), BYTES("u"),
                                       BYTES("x"),    BYTES("b"),   BYTES("ute"),  BYTES("") };

/* Each prefix in turn, with all keys there: gone is what begins so, here and in the other instance, and nothing else. */
static void
check_prefixes(const char *l2, const char *const *more)
{
    near_bytes keys[NEAR_COUNT_OF(prefixes) + NEAR_COUNT_OF(others)];
    size_t     n = 0;

    open_at(&writer, l2, more);
    open_at(&reader, l2, more);
    for (size_t i = 0; i < NEAR_COUNT_OF(prefixes); i++)
        keys[n++] = prefixes[i];
    for (size_t i = 0; i < NEAR_COUNT_OF(others); i++)
        keys[n++] = others[i];
    for (size_t p = 0; p < NEAR_COUNT_OF(prefixes); p++) {
        uint64_t removed = stats(&writer).prefix_removed, should = 0;

        for (size_t i = 0; i < n; i++) {
            assert_int_equal(near_put(writer.cache, keys[i], near_key("v"), NULL), NEAR_OK);
            assert_int_equal(near_put(writer.other, keys[i], near_key("v"), NULL), NEAR_OK);
        }
        assert_int_equal(near_fence(reader.client, 1000), NEAR_OK);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(get(reader.cache, keys[i]), NEAR_OK);
        assert_int_equal(near_invalidate_prefix(writer.cache, prefixes[p]), NEAR_OK);
        assert_int_equal(near_fence(reader.client, 1000), NEAR_OK);
        for (size_t i = 0; i < n; i++) {
            bool begins = keys[i].size >= prefixes[p].size &&
                          memcmp(keys[i].data, prefixes[p].data, prefixes[p].size) == 0;

            should += begins;
            assert_int_equal(get(writer.cache, keys[i]), begins ? NEAR_MISS : NEAR_OK);
            assert_int_equal(get(reader.cache, keys[i]), begins ? NEAR_MISS : NEAR_OK);
            assert_int_equal(get(reader.other, keys[i]), NEAR_OK);
        }
        assert_int_equal(stats(&writer).prefix_removed - removed, should);
    }
    assert_int_equal(near_invalidate_prefix(writer.cache, BYTES("")), NEAR_OK); /* all of it, of this cache */
    assert_int_equal(near_fence(reader.client, 1000), NEAR_OK);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(get(reader.cache, keys[i]), NEAR_MISS);
        assert_int_equal(get(reader.other, keys[i]), NEAR_OK);
    }
}

static void
exactly_what_begins_so_goes_redis(void **state)
{
    (void)state;
    check_prefixes(server->uri, NULL);
}

static void
exactly_what_begins_so_goes_redis_plain_values(void **state)
{
    (void)state;
    check_prefixes(server->uri, (const char *[]){ "l2.envelope", "none", NULL });
}

static void
exactly_what_begins_so_goes_memory(void **state)
{
    (void)state;
    check_prefixes("memory:prefixes", NULL);
}

static void
without_l2_the_instances_empty_l1(void **state)
{
    (void)state;
    open_at(&writer, "none:", (const char *[]){ "coherence.uri", "memory:prefix", NULL });
    open_at(&reader, "none:", (const char *[]){ "coherence.uri", "memory:prefix", NULL });
    near_put(reader.cache, near_key("a1"), near_key("v"), NULL);
    assert_int_equal(get(reader.cache, near_key("a1")), NEAR_OK);
    assert_int_equal(near_invalidate_prefix(writer.cache, near_key("a")), NEAR_OK);
    assert_int_equal(get(reader.cache, near_key("a1")), NEAR_MISS);
}

static void
memcached_cannot_and_says_what_can(void **state)
{
    (void)state;
    test_need_server(memcached);
    open_at(&writer, memcached->uri, NULL);
    assert_int_equal(near_put(writer.cache, near_key("a1"), near_key("v"), NULL), NEAR_OK);
    assert_int_equal(near_invalidate_prefix(writer.cache, near_key("a")), NEAR_ERR_UNSUPPORTED);
    assert_int_equal(get(writer.cache, near_key("a1")), NEAR_OK);
    assert_non_null(strstr(logged, "tags"));
    assert_int_equal(stats(&writer).invalidations_pending, 0);
}

static void
bad_prefixes_are_refused(void **state)
{
    char long_one[70000] = { 'x' };

    (void)state;
    open_at(&writer, server->uri, NULL);
    assert_int_equal(near_invalidate_prefix(NULL, near_key("a")), NEAR_ERR_INVALID);
    assert_int_equal(near_invalidate_prefix(writer.cache, (near_bytes){ NULL, 1 }), NEAR_ERR_INVALID);
    assert_int_equal(near_invalidate_prefix(writer.cache, (near_bytes){ long_one, sizeof(long_one) }),
                     NEAR_ERR_TOO_LARGE);
}

/* -------------------------------------------------------------------------------------------- many keys */

/* Many steps of SCAN, at a moment when all instances read and others write: afterwards none of the old ones is left. */
static void
put_numbered(struct instance *in, const char *prefix, size_t n)
{
    static char        text[512][32];
    static near_bytes  keys[512], values[512];
    static near_status statuses[512];

    for (size_t at = 0; at < n;) {
        size_t m = 0;

        for (; m < 512 && at < n; m++, at++) {
            snprintf(text[m], sizeof(text[m]), "%s%zu", prefix, at);
            keys[m]   = near_key(text[m]);
            values[m] = near_key("old");
        }
        assert_int_equal(near_put_many(in->cache, keys, values, m, NULL, statuses), NEAR_OK);
    }
}

/* Of cache c, in the server's words. */
static unsigned
keys_in_l2(const char *pattern)
{
    static char out[65536];
    unsigned    n = 0;

    assert_true(test_redis_command(server, out, sizeof(out), 2, (const char *[]){ "KEYS", pattern }));
    for (const char *at = strstr(out, "nc:c:"); at != NULL; at = strstr(at + 1, "nc:c:"))
        n++;
    return n;
}

static atomic_bool done;

static void *
read_on(void *ctx)
{
    char     key[32];
    uint64_t random = 1;

    (void)ctx;
    while (!done) {
        snprintf(key, sizeof(key), "a%u", (unsigned)(test_random(&random) % 20000));
        get(reader.cache, near_key(key));
        get(writer.cache, near_key(key));
    }
    return NULL;
}

static void
nothing_is_left_of_many(void **state)
{
    pthread_t thread;
    size_t    n = test_scale(20000);
    char      key[32];

    (void)state;
    open_at(&writer, server->uri, NULL);
    open_at(&reader, server->uri, NULL);
    put_numbered(&writer, "b", 100);
    put_numbered(&writer, "a", n);
    done = false;
    pthread_create(&thread, NULL, read_on, NULL);
    assert_int_equal(near_invalidate_prefix(writer.cache, near_key("a")), NEAR_OK);
    near_fence(reader.client, 1000);
    for (size_t i = 0; i < n; i += 7) {
        snprintf(key, sizeof(key), "a%zu", i);
        assert_int_equal(get(writer.cache, near_key(key)), NEAR_MISS);
        assert_int_equal(get(reader.cache, near_key(key)), NEAR_MISS);
    }
    done = true;
    pthread_join(thread, NULL);
    assert_int_equal(keys_in_l2("nc:c:a*"), 0);
    assert_int_equal(keys_in_l2("nc:c:b*"), 100);
    assert_true(stats(&writer).prefix_removed >= n);
}

/* ------------------------------------------------------------------------------------- loads under way */

static atomic_bool loading, go_on;

static void
load_slowly(near_load *load[], size_t n, void *ctx)
{
    (void)ctx;
    loading = true;
    while (!go_on)
        usleep(1000);
    for (size_t i = 0; i < n; i++)
        near_load_set(load[i], near_key("old"));
}

static void *
fetch_a1(void *ctx)
{
    near_value *value = NULL;

    assert_int_equal(near_fetch(ctx, near_key("a1"), NULL, &value), NEAR_OK);
    near_value_release(value);
    return NULL;
}

static int
is_true(void *flag)
{
    return *(atomic_bool *)flag;
}

static bool
load_is_kept(const char *l2, const char *const *more, bool invalidate)
{
    pthread_t thread;
    bool      kept;

    open_at(&writer, l2, more);
    open_at(&reader, l2, more);
    near_cache_set_loader(reader.cache, load_slowly, NULL);
    loading = go_on = false;
    pthread_create(&thread, NULL, fetch_a1, reader.cache);
    assert_true(test_wait_for(is_true, &loading, SOON));
    if (invalidate)
        assert_int_equal(near_invalidate_prefix(writer.cache, near_key("a")), NEAR_OK);
    go_on = true;
    pthread_join(thread, NULL);
    near_fence(writer.client, 1000);
    kept = get(reader.cache, near_key("a1")) == NEAR_OK;
    assert_int_equal(get(writer.cache, near_key("a1")) == NEAR_OK, kept);
    close_instance(&writer);
    close_instance(&reader);
    return kept;
}

static void
a_load_under_way_is_not_kept(void **state)
{
    const char *const bare[] = { "l2.envelope", "none", NULL };

    (void)state;
    assert_false(load_is_kept(server->uri, NULL, true));
    assert_false(load_is_kept("memory:loads", NULL, true));
    assert_false(load_is_kept(server->uri, bare, true));
    assert_true(load_is_kept(server->uri, NULL, false)); /* control */
    assert_true(load_is_kept("memory:loads1", NULL, false));
}

/* ------------------------------------------------------------------------------------------------ faults */

/* The link is cut somewhere in the middle: after it is well, nobody reads the old values. */
static unsigned
old_values_after_cut(const char *pending, int64_t bytes)
{
    const char *const settings[] = {
        "coherence.max_pending", pending, "l2.connect_timeout", "200ms", "l2.timeout", "200ms", NULL
    };
    unsigned old    = 0;
    bool     repays = strcmp(pending, "0") != 0;
    char     key[32];

    open_at(&reader, server->uri, NULL);
    open_at(&writer, test_proxy_uri(proxy), settings);
    put_numbered(&reader, "a", 3000);
    for (unsigned i = 0; i < 3000; i += 10) {
        snprintf(key, sizeof(key), "a%u", i);
        assert_int_equal(get(reader.cache, near_key(key)), NEAR_OK);
    }
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_CUT, TEST_DOWN, 0, bytes });
    assert_true(near_invalidate_prefix(writer.cache, near_key("a")) < 0);
    if (repays) {
        test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
        assert_int_equal(stats(&writer).invalidations_pending, 1);
        assert_true(get(writer.cache, near_key("a1")) < 0); /* and not what L2 says of it */
    }
    test_proxy_heal(proxy);
    if (repays)
        assert_true(test_wait_for(owes_nothing, &writer, SOON));
    for (unsigned i = 0; i < 3000; i += 10) {
        snprintf(key, sizeof(key), "a%u", i);
        near_fence(reader.client, 1000);
        old += get(reader.cache, near_key(key)) == NEAR_OK;
    }
    close_instance(&writer);
    close_instance(&reader);
    return old;
}

static void
what_is_cut_off_is_made_good(void **state)
{
    (void)state;
    for (int64_t at = 0; at < 20000; at += 6000)
        assert_int_equal(old_values_after_cut("100", at), 0);
}

static void
control_without_the_table_old_values_stay(void **state)
{
    (void)state;
    assert_true(old_values_after_cut("0", 6000) > 0);
}

/* Its own deadline; what is not done by then is done in the background. */
static void
a_deadline_that_passes_ends_the_call_and_not_the_work(void **state)
{
    (void)state;
    open_at(&writer, server->uri, (const char *[]){ "prefix.timeout", "1ms", NULL });
    put_numbered(&writer, "a", test_scale(20000));
    assert_int_equal(near_invalidate_prefix(writer.cache, near_key("a")), NEAR_ERR_TIMEOUT);
    assert_int_equal(stats(&writer).invalidations_pending, 1);
    assert_true(get(writer.cache, near_key("a0")) < 0);
    close_instance(&writer); /* closing pays */
    open_at(&writer, server->uri, NULL);
    assert_int_equal(near_invalidate_prefix(writer.cache, near_key("a")), NEAR_OK); /* control */
    assert_int_equal(get(writer.cache, near_key("a0")), NEAR_MISS);
}

#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(exactly_what_begins_so_goes_redis),
        WITH_SERVER(exactly_what_begins_so_goes_redis_plain_values),
        WITH_SERVER(exactly_what_begins_so_goes_memory),
        WITH_SERVER(without_l2_the_instances_empty_l1),
        WITH_SERVER(memcached_cannot_and_says_what_can),
        WITH_SERVER(bad_prefixes_are_refused),
        WITH_SERVER(nothing_is_left_of_many),
        WITH_SERVER(a_load_under_way_is_not_kept),
        WITH_SERVER(what_is_cut_off_is_made_good),
        WITH_SERVER(control_without_the_table_old_values_stay),
        WITH_SERVER(a_deadline_that_passes_ends_the_call_and_not_the_work),
    };

    return TEST_MAIN(tests, start_servers, stop_servers);
}
