/*
 * l1.pools as an application meets them: the option in words, who says which pool, what L2 brings, TTLs, near_explain, the numbers,
 * resizes.  What pools are inside is tests/unit/test_pools.c.
 */
#define TEST_NAME "pools of a cache"
#include "integration/instance.h"

#include <stdlib.h>
#include <unistd.h>

/* ---- the option */

static void
test_the_option_is_checked_word_by_word(void **state)
{
    static const struct {
        const char *value, *said;
    } wrong[] = {
        { "hot", "pool \"hot\": accepts NAME:SIZE[:POLICY[:TTL]] with a size of 64KiB .. 1TiB" },
        { "hot:", "with a size of" },
        { "hot:64", "with a size of" },
        { "hot:63KiB", "with a size of" },
        { "hot:2TiB", "with a size of" },
        { "hot:-1MiB", "with a size of" },
        { ":1MiB", "accepts a name of 1 .. 32" },
        { "a b:1MiB", "accepts a name of 1 .. 32" },
        { "h\xc3\xb6t:1MiB", "accepts a name of 1 .. 32" },
        { "abcdefghijklmnopqrstuvwxyz0123456:1MiB", "accepts a name of 1 .. 32" },
        { "hot:1MiB:clock", "accepts as policy adaptive | lru | lfu | sieve | s3fifo | tinylfu" },
        { "hot:1MiB:lru:", "accepts as TTL 1ms .. 365d" },
        { "hot:1MiB:lru:0", "accepts as TTL" },
        { "hot:1MiB:lru:5", "accepts as TTL" },
        { "hot:1MiB:lru:366d", "accepts as TTL" },
        { "hot:1MiB:lru:5m:more", "accepts as TTL" },
        { "hot:1MiB,", "accepts a name" },
        { ",hot:1MiB", "accepts a name" },
        { "hot:1MiB, hot:2MiB", "pool \"hot\": accepts each name once" },
        { "a:1MiB,b:1MiB,c:1MiB,d:1MiB,e:1MiB,f:1MiB,g:1MiB,h:1MiB,i:1MiB", "accepts at most 8 pools" },
    };
    static const char *const right[] = {
        "",
        " ",
        "hot:64KiB",
        "hot:64MiB:lru:5m, bulk:256MiB:s3fifo",
        " a:1MiB::5s ,\tb:1GiB:adaptive ",
        "a:1MiB,b:1MiB,c:1MiB,d:1MiB,e:1MiB,f:1MiB,g:1MiB,h:1MiB",
    };
    near_config *config = near_config_new();
    near_error   error;

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        assert_int_equal(near_config_set(config, "l1.pools", wrong[i].value, &error), NEAR_ERR_INVALID);
        if (strstr(error.text, wrong[i].said) == NULL)
            fail_msg("\"%s\": %s", wrong[i].value, error.text);
    }
    for (size_t i = 0; i < sizeof(right) / sizeof(*right); i++)
        if (near_config_set(config, "l1.pools", right[i], &error) != NEAR_OK)
            fail_msg("\"%s\": %s", right[i], error.text);
    near_config_free(config);
}

static void
refuses(const char *const *settings, const char *said)
{
    near_config *config = near_config_new();
    near_client *client;
    near_error   error;

    set_all(config, settings);
    assert_int_equal(near_client_open(config, &client, &error), NEAR_ERR_INVALID);
    if (strstr(error.text, said) == NULL)
        fail_msg("%s", error.text);
    near_config_free(config);
}

static void
test_the_option_goes_with_the_others_or_is_refused(void **state)
{
    (void)state;
    refuses((const char *const[]){ "l1.pools", "hot:1MiB", "l1.max_bytes", "0", NULL },
            "l1.pools with l1.max_bytes = 0");
    refuses((const char *const[]){ "l1.pools", "a:1MiB,b:1MiB", "l1.max_entries", "1", NULL },
            "l1.max_entries = 1 with 2 pools");
    refuses((const char *const[]){ "l1.pools", "a:1MiB::2m", "l1.max_ttl", "1m", NULL },
            "no more than l1.max_ttl (60000ms)");
}

/* ---- a cache with pools */

/* Large values in bulk, and what its key says. */
static unsigned
by_key(near_bytes key, size_t value_size, void *ctx)
{
    ++*(_Atomic int *)ctx;
    return value_size > 1000 ? 2 : key.size > 0 && *(const char *)key.data == 'b' ? 2 : 0;
}

static _Atomic int asked;

static void
open_pools(struct instance *in, const char *const *more)
{
    static const char *const settings[] = { "l1.pools", "hot:1MiB:lru, bulk:2MiB:s3fifo", NULL };

    open_with(in, settings, more);
    asked = 0;
    near_cache_set_pool_fn(in->cache, by_key, (void *)&asked);
}

/* The pool that near_explain() names, or "". */
static const char *
pool_of(const struct instance *in, const char *key)
{
    static char name[40];
    char       *told = near_explain(in->cache, near_key(key));
    const char *at   = strstr(told, "\"pool\":\"");

    assert_non_null(told);
    snprintf(name, sizeof(name), "%.*s", at != NULL ? (int)strcspn(at + 8, "\"") : 0,
             at != NULL ? at + 8 : "");
    near_free(told);
    return name;
}

static near_status
put(const struct instance *in, const char *key, const char *value, unsigned pool)
{
    near_put_options options = NEAR_PUT_OPTIONS_INIT;

    options.pool = pool;
    return near_put(in->cache, near_key(key), near_key(value), &options);
}

static bool
reads(const struct instance *in, const char *key, const char *expected)
{
    near_value *value;
    near_bytes  bytes;
    bool        right;

    if (near_get(in->cache, near_key(key), &value) != NEAR_OK)
        return expected == NULL;
    bytes = near_value_bytes(value);
    right =
        expected != NULL && bytes.size == strlen(expected) && memcmp(bytes.data, expected, bytes.size) == 0;
    near_value_release(value);
    return right;
}

static void
test_who_says_which_pool(void **state)
{
    struct instance in;
    char            large[2000] = { 0 };

    (void)state;
    open_pools(&in, NULL);
    assert_int_equal(near_pool_number(in.cache, "hot"), 1);
    assert_int_equal(near_pool_number(in.cache, "bulk"), 2);
    assert_int_equal(near_pool_number(in.cache, "none"), 0);
    assert_int_equal(near_pool_number(NULL, "hot"), 0);
    assert_int_equal(put(&in, "a", "1", 0), NEAR_OK);
    assert_string_equal(pool_of(&in, "a"), "hot");
    assert_int_equal(put(&in, "b", "1", 0), NEAR_OK);
    assert_string_equal(pool_of(&in, "b"), "bulk");
    assert_int_equal(put(&in, "b", "2", 1), NEAR_OK); /* who puts it knows better */
    assert_string_equal(pool_of(&in, "b"), "hot");
    memset(large, 'x', sizeof(large) - 1);
    assert_int_equal(put(&in, "a", large, 0), NEAR_OK);
    assert_string_equal(pool_of(&in, "a"), "bulk");
    assert_int_equal(put(&in, "a", "small again", 0), NEAR_OK);
    assert_string_equal(pool_of(&in, "a"), "hot");
    assert_true(reads(&in, "a", "small again") && reads(&in, "b", "2"));
    assert_int_equal(put(&in, "a", "1", 3), NEAR_ERR_INVALID); /* there is no such pool */
    assert_true(reads(&in, "a", "small again"));
    assert_string_equal(pool_of(&in, "absent"), "");
    assert_true(asked >= 4);
    close_instance(&in);
}

/* Where L1 is all there is, a put without options takes a way of its own. */
static void
test_who_says_which_pool_without_l2(void **state)
{
    static const char *const alone[] = { "l2.uri", "none:", NULL };
    near_put_options         options = NEAR_PUT_OPTIONS_INIT;
    struct instance          in;

    (void)state;
    open_pools(&in, alone);
    assert_int_equal(near_put(in.cache, near_key("b"), near_key("1"), NULL), NEAR_OK);
    assert_string_equal(pool_of(&in, "b"), "bulk");
    assert_int_equal(near_put(in.cache, near_key("a"), near_key("1"), NULL), NEAR_OK);
    assert_string_equal(pool_of(&in, "a"), "hot");
    assert_int_equal(put(&in, "a", "2", 2), NEAR_OK);
    assert_string_equal(pool_of(&in, "a"), "bulk");
    options.flags = NEAR_IF_ABSENT;
    options.pool  = 2;
    assert_int_equal(near_put(in.cache, near_key("a"), near_key("3"), &options), NEAR_ERR_CONFLICT);
    assert_int_equal(near_put(in.cache, near_key("c"), near_key("3"), &options), NEAR_OK);
    assert_string_equal(pool_of(&in, "c"), "bulk");
    assert_true(reads(&in, "a", "2") && reads(&in, "b", "1") && reads(&in, "c", "3"));
    assert_int_equal(near_remove(in.cache, near_key("c")), NEAR_OK);
    assert_true(reads(&in, "c", NULL));
    close_instance(&in);
}

/* What another instance wrote comes from L2, which knows of no pools: the function decides. */
static void
test_what_l2_brings_goes_by_the_function(void **state)
{
    static const char *const shared[] = { "l2.uri", "memory:pools", NULL };
    struct instance          in, writer;

    (void)state;
    open_pools(&in, shared);
    open_with(&writer, shared, NULL);
    assert_int_equal(near_put(writer.cache, near_key("b"), near_key("1"), NULL), NEAR_OK);
    assert_int_equal(near_put(writer.cache, near_key("a"), near_key("1"), NULL), NEAR_OK);
    assert_true(reads(&in, "a", "1") && reads(&in, "b", "1"));
    assert_string_equal(pool_of(&in, "b"), "bulk");
    assert_string_equal(pool_of(&in, "a"), "hot");
    close_instance(&writer);
    close_instance(&in);
}

static void
load(near_load *loads[], size_t n, void *ctx)
{
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(near_load_pool(loads[i], 3), NEAR_ERR_INVALID);
        assert_int_equal(near_load_pool(loads[i], *(unsigned *)ctx), NEAR_OK);
        near_load_set(loads[i], near_key("loaded"));
    }
}

static void
test_a_loader_says_which_pool(void **state)
{
    struct instance in;
    unsigned        pool = 2;
    near_value     *value;

    (void)state;
    open_pools(&in, NULL);
    near_cache_set_loader(in.cache, load, &pool);
    assert_int_equal(near_fetch(in.cache, near_key("a"), NULL, &value), NEAR_OK);
    near_value_release(value);
    assert_string_equal(pool_of(&in, "a"), "bulk");
    pool = 0;
    assert_int_equal(near_fetch(in.cache, near_key("c"), NULL, &value), NEAR_OK);
    near_value_release(value);
    assert_string_equal(pool_of(&in, "c"), "hot");
    assert_int_equal(near_load_pool(NULL, 1), NEAR_ERR_INVALID);
    close_instance(&in);
}

static void
store(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_write_done(writes[i]);
}

static void
test_updates_keep_their_pool(void **state)
{
    static const char *const policies[] = { "through", "around", "back" };

    (void)state;
    for (int i = 0; i < 3; i++) {
        const char *const more[]  = { "write.policy", policies[i], "write_back.interval", "1ms", NULL };
        near_put_options  options = NEAR_PUT_OPTIONS_INIT;
        struct instance   in;

        open_pools(&in, more);
        near_cache_set_store(in.cache, store, NULL);
        options.pool = 2;
        assert_int_equal(near_update(in.cache, near_key("a"), near_key("1"), &options), NEAR_OK);
        options.pool = 3;
        assert_int_equal(near_update(in.cache, near_key("a"), near_key("2"), &options), NEAR_ERR_INVALID);
        assert_int_equal(near_flush(in.client, SOON), NEAR_OK);
        if (i != 1) /* around keeps nothing */
            assert_string_equal(pool_of(&in, "a"), "bulk");
        close_instance(&in);
    }
}

/* A pool's own TTL may be longer than the default of l1.max_ttl; who has none keeps that. */
static void
test_a_pools_ttl_stands_for_max_ttl(void **state)
{
    static const char *const settings[] = { "l1.pools", "short:1MiB::50ms, long:1MiB::10m, plain:1MiB",
                                            NULL };
    struct instance          in;
    near_value_info          info = NEAR_VALUE_INFO_INIT;
    near_value              *value;

    (void)state;
    open_with(&in, settings, (const char *const[]){ "l2.uri", "memory:pools-ttl", "ttl", "1h", NULL });
    assert_int_equal(put(&in, "s", "1", 1), NEAR_OK);
    assert_int_equal(put(&in, "l", "1", 2), NEAR_OK);
    assert_int_equal(put(&in, "p", "1", 3), NEAR_OK);
    assert_int_equal(near_get(in.cache, near_key("l"), &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_true(info.source == NEAR_FROM_L1 && info.ttl_ms > 599000 && info.ttl_ms <= 600000);
    near_value_release(value);
    assert_int_equal(near_get(in.cache, near_key("p"), &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_true(info.source == NEAR_FROM_L1 && info.ttl_ms > 50000 && info.ttl_ms <= 60000);
    near_value_release(value);
    usleep(60000);
    assert_int_equal(near_get(in.cache, near_key("s"), &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_int_equal(info.source, NEAR_FROM_L2);
    near_value_release(value);
    close_instance(&in);
}

/* A pool's TTL counts from the write, also where nothing else would be dated: an L1 alone, and another pool without one. */
static void
test_a_pools_ttl_in_an_l1_alone(void **state)
{
    static const char *const settings[] = { "l1.pools", "timed:1MiB::10m, plain:1MiB", NULL };
    struct instance          in;
    near_value_info          info = NEAR_VALUE_INFO_INIT;
    near_value              *value;

    (void)state;
    open_with(&in, settings, (const char *const[]){ "l2.uri", "none:", "ttl", "0", NULL });
    assert_int_equal(near_put(in.cache, near_key("t"), near_key("1"), NULL), NEAR_OK);
    assert_int_equal(near_get(in.cache, near_key("t"), &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_true(info.ttl_ms > 599000 && info.ttl_ms <= 600000);
    near_value_release(value);
    close_instance(&in);
}

/* ---- numbers */

#define SEVENTY "0123456789012345678901234567890123456789012345678901234567890123456789"

static void
test_numbers_of_each_pool(void **state)
{
    struct instance in;
    char            key[16], *json, *metrics;

    (void)state;
    open_pools(&in, NULL);
    for (int i = 0; i < 30000; i++) { /* more than bulk holds, three hot ones */
        snprintf(key, sizeof(key), "%c%d", i < 3 ? 'a' : 'b', i);
        assert_int_equal(put(&in, key, SEVENTY, 0), NEAR_OK);
    }
    assert_true(reads(&in, "a1", SEVENTY));
    json = near_stats_json(in.client);
    assert_non_null(strstr(
        json, "\"pools\":{\"hot\":{\"hits\":1,\"fills\":3,\"evictions\":0,\"expired\":0,\"entries\":3,"));
    assert_non_null(strstr(json, "\"bulk\":{\"hits\":0,\"fills\":29997,\"evictions\":"));
    assert_non_null(strstr(json, "\"max_bytes\":2097152}"));
    assert_non_null(strstr(json, "\"l1_max_bytes\":3145728"));
    near_free(json);
    metrics = near_stats_prometheus(in.client);
    assert_non_null(strstr(metrics, "# TYPE nearcache_l1_pool_hits counter\n"));
    assert_non_null(strstr(metrics, "nearcache_l1_pool_hits_total{cache=\"c\",pool=\"hot\"} 1\n"));
    assert_non_null(strstr(metrics, "nearcache_l1_pool_entries{cache=\"c\",pool=\"hot\"} 3\n"));
    assert_non_null(strstr(metrics, "nearcache_l1_pool_evictions_total{cache=\"c\",pool=\"hot\"} 0\n"));
    assert_non_null(strstr(metrics, "nearcache_l1_pool_max_bytes{cache=\"c\",pool=\"bulk\"} 2097152\n"));
    near_free(metrics);
    assert_true(stats(&in).l1_evictions > 1000);
    close_instance(&in);
}

static void
test_a_cache_without_pools_says_nothing_of_them(void **state)
{
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    struct instance  in;
    char            *text;

    (void)state;
    open_with(&in, NULL, NULL);
    near_cache_set_pool_fn(in.cache, by_key, (void *)&asked);
    asked = 0;
    assert_int_equal(put(&in, "b", "1", 0), NEAR_OK);
    assert_int_equal(asked, 0);
    options.pool = 1;
    assert_int_equal(near_put(in.cache, near_key("b"), near_key("1"), &options), NEAR_ERR_INVALID);
    assert_int_equal(near_pool_number(in.cache, "hot"), 0);
    assert_int_equal(near_pool_resize(in.cache, 1, 1 << 20, NULL), NEAR_ERR_INVALID);
    assert_string_equal(pool_of(&in, "b"), "");
    text = near_stats_json(in.client);
    assert_null(strstr(text, "pools"));
    near_free(text);
    text = near_stats_prometheus(in.client);
    assert_null(strstr(text, "l1_pool"));
    near_free(text);
    close_instance(&in);
}

static void
test_resizes(void **state)
{
    struct instance in;
    near_error      error;
    char           *json;

    (void)state;
    open_pools(&in, NULL);
    assert_int_equal(near_pool_resize(in.cache, 2, 4 << 20, &error), NEAR_OK);
    assert_int_equal(stats(&in).l1_max_bytes, 5 << 20);
    assert_int_equal(near_cache_resize(in.cache, 10 << 20, 0, &error), NEAR_OK);
    json = near_stats_json(in.client);
    assert_non_null(strstr(json, "\"max_bytes\":2097152}"));
    assert_non_null(strstr(json, "\"max_bytes\":8388608}"));
    near_free(json);
    assert_int_equal(near_pool_resize(in.cache, 3, 4 << 20, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, "has 2 pools, and none 3"));
    assert_int_equal(near_pool_resize(in.cache, 1, 1000, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, "its pool hot cannot be made 1000 bytes large"));
    assert_int_equal(stats(&in).l1_max_bytes, 10 << 20);
    close_instance(&in);
}

/* l1.total_bytes gives a cache less than it wants: its pools share what it gets as they share what it wants. */
static void
test_pools_share_what_the_cache_gets(void **state)
{
    struct instance in;
    char           *json;

    (void)state;
    open_pools(&in, (const char *const[]){ "l1.total_bytes", "1536KiB", NULL });
    json = near_stats_json(in.client);
    assert_non_null(strstr(json, "\"max_bytes\":524288}"));
    assert_non_null(strstr(json, "\"max_bytes\":1048576}"));
    near_free(json);
    /* it wants 5 MiB now: 1 and 4 of them */
    assert_int_equal(near_pool_resize(in.cache, 2, 4 << 20, NULL), NEAR_OK);
    json = near_stats_json(in.client);
    assert_non_null(strstr(json, "\"max_bytes\":314572}"));
    near_free(json);
    close_instance(&in);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_option_is_checked_word_by_word),
        cmocka_unit_test(test_the_option_goes_with_the_others_or_is_refused),
        cmocka_unit_test(test_who_says_which_pool),
        cmocka_unit_test(test_who_says_which_pool_without_l2),
        cmocka_unit_test(test_what_l2_brings_goes_by_the_function),
        cmocka_unit_test(test_a_loader_says_which_pool),
        cmocka_unit_test(test_updates_keep_their_pool),
        cmocka_unit_test(test_a_pools_ttl_stands_for_max_ttl),
        cmocka_unit_test(test_a_pools_ttl_in_an_l1_alone),
        cmocka_unit_test(test_numbers_of_each_pool),
        cmocka_unit_test(test_a_cache_without_pools_says_nothing_of_them),
        cmocka_unit_test(test_resizes),
        cmocka_unit_test(test_pools_share_what_the_cache_gets),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
