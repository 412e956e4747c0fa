/* Bad input through the public interface: a status and a message, never a crash, nothing lost. */
#include "harness/test.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static near_client *client;
static near_cache  *cache;

static int
setup(void **state)
{
    (void)state;
    return near_client_open(NULL, &client, NULL) != NEAR_OK ||
           near_cache_open(client, "c", NULL, &cache, NULL) != NEAR_OK;
}

static int
teardown(void **state)
{
    (void)state;
    return near_client_close(client, NULL) != NEAR_OK;
}

static void
null_handles_and_pointers_are_refused(void **state)
{
    near_value  *value = (near_value *)&value;
    near_status  status;
    near_bytes   key = near_key("k"), bad = { NULL, 3 };
    near_stats   stats = NEAR_STATS_INIT;
    near_error   error;
    size_t       size = 7;
    near_client *no_client;
    near_cache  *no_cache;

    (void)state;
    assert_int_equal(near_get(NULL, key, &value), NEAR_ERR_INVALID);
    assert_null(value);
    assert_int_equal(near_get(cache, key, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_get(cache, bad, &value), NEAR_ERR_INVALID);
    assert_int_equal(near_fetch(cache, bad, NULL, &value), NEAR_ERR_INVALID);
    assert_int_equal(near_fetch(NULL, key, NULL, &value), NEAR_ERR_INVALID);
    assert_int_equal(near_fetch(cache, key, NULL, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_put(cache, key, bad, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_put(cache, bad, key, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_put(NULL, key, key, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_remove(NULL, key), NEAR_ERR_INVALID);
    assert_int_equal(near_remove(cache, bad), NEAR_ERR_INVALID);
    assert_int_equal(near_expire(NULL, key), NEAR_ERR_INVALID);
    assert_int_equal(near_expire(cache, bad), NEAR_ERR_INVALID);
    assert_int_equal(near_load_unchanged(NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_load_tag(NULL, "t"), NEAR_ERR_INVALID);
    assert_null(near_load_previous(NULL));
    near_load_unkept(NULL);
    assert_int_equal(near_clear(NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_fence(NULL, 0), NEAR_ERR_INVALID);
    assert_int_equal(near_get_copy(cache, key, NULL, 1, &size, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_get_copy(cache, key, NULL, 0, NULL, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_get_many(cache, NULL, 1, &value, &status), NEAR_ERR_INVALID);
    assert_int_equal(near_get_many(cache, &key, 1, NULL, &status), NEAR_ERR_INVALID);
    assert_int_equal(near_get_many(cache, &key, 1, &value, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_fetch_many(cache, &key, 1, NULL, NULL, &status), NEAR_ERR_INVALID);
    assert_int_equal(near_put_many(cache, &key, NULL, 1, NULL, &status), NEAR_ERR_INVALID);
    assert_int_equal(near_put_many(cache, &key, &key, 1, NULL, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_remove_many(cache, NULL, 1, &status), NEAR_ERR_INVALID);
    assert_int_equal(near_get_many(cache, NULL, 0, NULL, NULL), NEAR_OK);
    assert_int_equal(near_fetch_many(cache, NULL, 0, NULL, NULL, NULL), NEAR_OK);
    assert_int_equal(near_put_many(cache, NULL, NULL, 0, NULL, NULL), NEAR_OK);
    assert_int_equal(near_remove_many(cache, NULL, 0, NULL), NEAR_OK);
    assert_int_equal(near_client_open(NULL, NULL, &error), NEAR_ERR_INVALID);
    assert_true(strlen(error.text) > 0);
    assert_int_equal(near_client_close(NULL, &error), NEAR_ERR_INVALID);
    assert_int_equal(near_cache_open(NULL, "x", NULL, &no_cache, &error), NEAR_ERR_INVALID);
    assert_null(no_cache);
    assert_int_equal(near_cache_open(client, NULL, NULL, &no_cache, &error), NEAR_ERR_INVALID);
    assert_int_equal(near_cache_open(client, "x", NULL, NULL, &error), NEAR_ERR_INVALID);
    assert_int_equal(near_stats_get(NULL, &stats), NEAR_ERR_INVALID);
    assert_int_equal(near_stats_get(client, NULL), NEAR_ERR_INVALID);
    assert_null(near_stats_json(NULL));
    (void)no_client;
    near_cache_close(NULL);
    near_value_release(NULL);
    near_free(NULL);
    near_config_free(NULL);
    near_set_log(NULL, NULL, NULL);
    near_cache_set_loader(NULL, NULL, NULL);
    assert_null(near_value_ref(NULL));
    assert_int_equal(near_value_bytes(NULL).size, 0);
    assert_int_equal(near_key(NULL).size, 0);
    near_value_get_info(NULL, NULL);
    assert_int_equal(near_load_key(NULL).size, 0);
    assert_int_equal(near_load_set(NULL, key), NEAR_ERR_INVALID);
    near_load_ttl(NULL, 1);
    assert_int_equal(near_load_pool(NULL, 1), NEAR_ERR_INVALID);
    near_cache_set_pool_fn(NULL, NULL, NULL);
    assert_int_equal(near_pool_number(NULL, "hot"), 0);
    assert_true(near_pool_resize(NULL, 1, 1 << 20, NULL) < 0);
    near_load_fail(NULL, NEAR_ERR_LOADER);
    near_load_not_found(NULL);
}

static void
an_empty_key_and_an_empty_value_are_ordinary(void **state)
{
    near_value *value;

    (void)state;
    assert_int_equal(near_put(cache, (near_bytes){ NULL, 0 }, (near_bytes){ NULL, 0 }, NULL), NEAR_OK);
    assert_int_equal(near_get(cache, near_key(""), &value), NEAR_OK);
    assert_int_equal(near_value_bytes(value).size, 0);
    near_value_release(value);
}

static void
cache_names_are_checked(void **state)
{
    static const char *const bad[] = {
        "",  "with blank", "colon:",      "slash/",
        "#", "@",          "caf\xc3\xa9", "12345678901234567890123456789012345678901234567890123456789012345"
    };
    near_cache *other;
    near_error  error;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++) {
        assert_int_equal(near_cache_open(client, bad[i], NULL, &other, &error), NEAR_ERR_INVALID);
        assert_null(other);
        assert_non_null(strstr(error.text, "accepts 1 .. 64"));
    }
    assert_int_equal(near_cache_open(client, "c", NULL, &other, &error), NEAR_ERR_BUSY);
    assert_non_null(strstr(error.text, "c"));
    assert_int_equal(near_cache_open(client, "d", NULL, &other, &error), NEAR_OK);
    near_cache_close(other);
    assert_int_equal(near_cache_open(client, "d", NULL, &other, &error), NEAR_OK); /* free again */
}

static void
contradicting_uris_are_refused_at_open(void **state)
{
    static const struct {
        const char *l2, *bus, *mode, *said;
    } bad[] = {
        { "memory:", "auto", "pubsub", "coherence.uri" },
        { "memcached://127.0.0.1", "auto", "pubsub", "coherence.uri" },
        { "memory:x", "memcached://127.0.0.1", "auto", "memcached carries no messages" },
        /* a bus that some who share L2 cannot hear would have L1 trusted for nothing */
        { "memory:x", "memory:", "auto", "does not reach everybody" },
        { "memory:x", "memory:y", "auto", "does not reach everybody" },
        { "redis://127.0.0.1", "memory:x", "auto", "does not reach everybody" },
        { "memcached://127.0.0.1", "memory:x", "auto", "does not reach everybody" },
        { "memory:", "memory:", "auto", "does not reach everybody" },
    };
    near_error error;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++) {
        near_config *config = near_config_new();
        near_client *other;

        assert_int_equal(near_config_set(config, "l2.uri", bad[i].l2, NULL), NEAR_OK);
        assert_int_equal(near_config_set(config, "coherence.uri", bad[i].bus, NULL), NEAR_OK);
        assert_int_equal(near_config_set(config, "coherence.mode", bad[i].mode, NULL), NEAR_OK);
        assert_int_equal(near_client_open(config, &other, &error), NEAR_ERR_INVALID);
        assert_null(other);
        if (strstr(error.text, bad[i].said) == NULL)
            fail_msg("said: %s", error.text);
        near_config_free(config);
    }
}

static void
the_environment_can_refuse_a_client(void **state)
{
    near_client *other;
    near_error   error;

    (void)state;
    setenv("NEARCACHE_L2_TIMEOUT", "soon", 1);
    assert_int_equal(near_client_open(NULL, &other, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, "NEARCACHE_L2_TIMEOUT"));
    unsetenv("NEARCACHE_L2_TIMEOUT");
}

static void
structs_of_an_older_caller_are_honoured(void **state)
{
    struct {
        size_t   struct_size;
        unsigned flags;
    } old_get = { sizeof(size_t) + sizeof(unsigned), NEAR_ONLY_L1 };
    struct {
        size_t   struct_size;
        uint64_t requests, after;
    } old_stats = { 2 * sizeof(size_t), 0, 4711 };
    near_value *value;

    (void)state;
    assert_int_equal(near_get_with(cache, near_key("nothing"), (const near_get_options *)&old_get, &value),
                     NEAR_MISS);
    assert_int_equal(near_stats_get(client, (near_stats *)&old_stats), NEAR_OK);
    assert_true(old_stats.requests > 0);
    assert_int_equal(old_stats.after, 4711); /* not touched */
}

static void
every_status_has_a_text(void **state)
{
    (void)state;
#define CHECK_TEXT(name, number, text) assert_string_equal(near_status_text(name), text);
    NEAR_STATUS_TABLE(CHECK_TEXT)
    assert_string_equal(near_status_text((near_status)-4711), "unknown status");
}

static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;

static void
append_log(near_log_level level, const char *message, void *ctx)
{
    (void)level;
    pthread_mutex_lock(&log_lock);
    strncat(ctx, message, 400);
    pthread_mutex_unlock(&log_lock);
}

static int
names_the_server(void *ctx)
{
    int found;

    pthread_mutex_lock(&log_lock);
    found = strstr(ctx, "127.0.0.1:1") != NULL;
    pthread_mutex_unlock(&log_lock);
    return found;
}

/* Messages from before there was a callback are kept for it. */
static void
a_late_log_callback_hears_of_an_absent_server(void **state)
{
    near_config *config = near_config_new();
    near_client *other;
    char         text[8192] = "";

    (void)state;
    assert_int_equal(near_config_set(config, "l2.uri", "redis://user:hunter2@127.0.0.1:1", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.connect_timeout", "200ms", NULL), NEAR_OK);
    assert_int_equal(near_client_open(config, &other, NULL), NEAR_OK);
    near_set_log(other, append_log, text);
    assert_true(test_wait_for(names_the_server, text, 5000));
    near_set_log(other, NULL, NULL);
    assert_int_equal(near_client_close(other, NULL), NEAR_OK);
    assert_null(strstr(text, "hunter2"));
    near_config_free(config);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(null_handles_and_pointers_are_refused),
        cmocka_unit_test(an_empty_key_and_an_empty_value_are_ordinary),
        cmocka_unit_test(cache_names_are_checked),
        cmocka_unit_test(contradicting_uris_are_refused_at_open),
        cmocka_unit_test(the_environment_can_refuse_a_client),
        cmocka_unit_test(structs_of_an_older_caller_are_honoured),
        cmocka_unit_test(every_status_has_a_text),
        cmocka_unit_test(a_late_log_callback_hears_of_an_absent_server),
    };
    return TEST_MAIN(tests, setup, teardown);
}
