/* The option table and its echoes: parsing, messages, files, environment, overrides. */
#include "harness/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"

static void
every_default_is_accepted_by_its_own_row(void **state)
{
    struct near__settings settings;
    near_error            error;

    (void)state;
    assert_int_equal(near__settings_resolve(&settings, NULL, &error), NEAR_OK);
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++)
        assert_false(settings.set[i]);
    assert_int_equal(settings.l1_max_bytes, 64 << 20);
    assert_int_equal(settings.l2_timeout, 200 * NEAR_MS);
    assert_string_equal(settings.l2_uri, "memory:");
    assert_int_equal(settings.coherence_on_disconnect, NEAR__DISCONNECT_BYPASS);
}

static void
values_of_every_form_are_read(void **state)
{
    near_config          *config = near_config_new();
    struct near__settings settings;

    (void)state;
    static const struct {
        const char *name, *value;
    } accepted[] = {
        { "l1.max_bytes", "0" },
        { "l1.max_bytes", "512" },
        { "l1.max_bytes", "64KiB" },
        { "l1.max_bytes", "1TiB" },
        { "l2.timeout", "1ms" },
        { "l2.timeout", "1m" },
        { "l2.timeout", "2500us" },
        { "ttl", "0" },
        { "ttl", "0s" },
        { "ttl", "30d" },
        { "l2.pool_size", "1024" },
        { "l2.key_prefix", "" },
        { "coherence.mode", "none" },
        { "l2.uri", "none:" },
        { "coherence.uri", "auto" },
        { "l1.max_bytes", "3MiB" },
        { "l2.timeout", "75ms" },
        { "coherence.on_disconnect", "fail" },
        { "early_refresh.beta", "0.5" },
        { "early_refresh.beta", "10" },
        { "early_refresh.beta", "1.125" },
    };
    for (size_t i = 0; i < NEAR_COUNT_OF(accepted); i++)
        assert_int_equal(near_config_set(config, accepted[i].name, accepted[i].value, NULL), NEAR_OK);
    assert_int_equal(near__settings_resolve(&settings, config, NULL), NEAR_OK);
    assert_int_equal(settings.l1_max_bytes, 3 << 20); /* the last word counts */
    assert_int_equal(settings.l2_timeout, 75 * NEAR_MS);
    assert_int_equal(settings.coherence_on_disconnect, NEAR__DISCONNECT_FAIL);
    assert_int_equal(settings.early_refresh_beta, 1125);
    assert_true(settings.set[NEAR__OPTION_ttl]);
    near_config_free(config);
}

static void
a_refusal_names_option_value_and_what_is_accepted(void **state)
{
    near_config *config = near_config_new();
    near_error   error;

    (void)state;
    static const struct {
        const char *name, *value, *said;
    } refused[] = {
        { "l2.timeout", "50", "l2.timeout = \"50\": a duration needs a unit; accepts 1ms .. 1m" },
        { "l2.timeout", "0ms", "l2.timeout = \"0ms\": accepts 1ms .. 1m" },
        { "l2.timeout", "2m", "l2.timeout = \"2m\": accepts 1ms .. 1m" },
        { "l2.timeout", "", "l2.timeout = \"\": not a duration; accepts 1ms .. 1m" },
        { "l2.timeout", "-5ms", "l2.timeout = \"-5ms\": not a duration; accepts 1ms .. 1m" },
        { "l2.timeout", "99999999999999999999ms", "not a duration" },
        { "l1.max_bytes", "10MB", "l1.max_bytes = \"10MB\": not a size; accepts 0 .. 1TiB" },
        { "l1.max_bytes", "9999999TiB", "accepts 0 .. 1TiB" },
        { "l1.policy", "clock",
          "l1.policy = \"clock\": accepts adaptive | lru | lfu | sieve | s3fifo | tinylfu" },
        { "l1.policy", "", "accepts adaptive | lru | lfu | sieve | s3fifo | tinylfu" },
        { "coherence.on_disconnect", "byp", "accepts bypass | stale | fail" },
        { "l2.pool_size", "0", "accepts 1 .. 1024" },
        { "l2.pool_size", "x", "not a number" },
        { "l2.key_prefix", "has blank", "accepts 0 .. 64 characters from ! to ~" },
        { "l2.max_bytes", "1", "unknown option \"l2.max_bytes\"" },
        { "", "1", "unknown option" },
        { "early_refresh.beta", "10.5", "early_refresh.beta = \"10.5\": accepts 0 .. 10" },
        { "early_refresh.beta", "1.", "not a number; accepts 0 .. 10" },
        { "early_refresh.beta", ".5", "not a number" },
        { "early_refresh.beta", "0.1234", "not a number" },
        { "early_refresh.beta", "1e1", "not a number" },
        { "ttl.jitter", "51", "accepts 0 .. 50" },
        { "l2.uri", "redis://", "l2.uri" },
        { "l2.uri", "gopher://x", "l2.uri" },
    };
    for (size_t i = 0; i < NEAR_COUNT_OF(refused); i++) {
        memset(&error, 0, sizeof(error));
        assert_int_equal(near_config_set(config, refused[i].name, refused[i].value, &error),
                         NEAR_ERR_INVALID);
        assert_int_equal(error.code, NEAR_ERR_INVALID);
        if (strstr(error.text, refused[i].said) == NULL)
            fail_msg("%s = %s said: %s", refused[i].name, refused[i].value, error.text);
    }
    assert_int_equal(near_config_set(NULL, "ttl", "1s", &error), NEAR_ERR_INVALID);
    assert_int_equal(near_config_set(config, NULL, "1s", &error), NEAR_ERR_INVALID);
    assert_int_equal(near_config_set(config, "ttl", NULL, NULL), NEAR_ERR_INVALID);
    near_config_free(config);
}

static void
a_password_is_in_no_message(void **state)
{
    near_config *config = near_config_new();
    near_error   error;

    (void)state;
    static const char *const bad[] = { "redis://user:hunter2@host:99999", "redis://user:hunter2@",
                                       "redis://u:hunter2@h/x", "rediss://user:hunter2@host:x",
                                       "redis://user:hunter2@host:1/2/3" };
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++) {
        assert_true(near_config_set(config, "l2.uri", bad[i], &error) < 0);
        assert_null(strstr(error.text, "hunter2"));
    }
    /* a line of a file whose '=' was forgotten is no option's name, and may be anything */
    assert_int_equal(near_config_set(config, "l2.uri redis://:hunter2", "", &error), NEAR_ERR_INVALID);
    assert_null(strstr(error.text, "hunter2"));
    near_config_free(config);
}

static char *
file_with(const char *text)
{
    static char path[] = "/tmp/near-config-XXXXXX";
    int         fd;

    strcpy(strchr(path, '-') + 8, "XXXXXX");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    return path;
}

static void
a_file_is_read_whole_or_not_at_all(void **state)
{
    near_config          *config = near_config_new();
    struct near__settings settings;
    near_error            error;
    char                 *path = file_with("# comment\n\n  ttl = 7s  \nl1.max_bytes=1MiB");

    (void)state;
    assert_int_equal(near_config_load(config, path, &error), NEAR_OK);
    assert_int_equal(near__settings_resolve(&settings, config, NULL), NEAR_OK);
    assert_int_equal(settings.ttl, 7000 * NEAR_MS);
    assert_int_equal(settings.l1_max_bytes, 1 << 20);
    unlink(path);

    path = file_with("ttl = 9s\nl2.timeout = soon\n");
    assert_int_equal(near_config_load(config, path, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, ":2: l2.timeout = \"soon\""));
    assert_int_equal(near__settings_resolve(&settings, config, NULL), NEAR_OK);
    assert_int_equal(settings.ttl, 7000 * NEAR_MS); /* the 9s before the error did not stick */
    unlink(path);

    path = file_with("ttl 9s\n");
    assert_int_equal(near_config_load(config, path, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, ":1: expected name = value"));
    unlink(path);
    assert_int_equal(near_config_load(config, path, &error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "No such file"));
    assert_int_equal(near_config_load(config, "/tmp", &error), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(near_config_load(config, NULL, &error), NEAR_ERR_INVALID);
    near_config_free(config);
}

static void
the_environment_overrides_and_is_checked(void **state)
{
    near_config          *config = near_config_new();
    struct near__settings settings;
    near_error            error;

    (void)state;
    assert_int_equal(near_config_set(config, "ttl", "7s", NULL), NEAR_OK);
    setenv("NEARCACHE_TTL", "8s", 1);
    assert_int_equal(near__settings_resolve(&settings, config, &error), NEAR_OK);
    assert_int_equal(settings.ttl, 8000 * NEAR_MS);
    setenv("NEARCACHE_TTL", "later", 1);
    assert_int_equal(near__settings_resolve(&settings, config, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, "NEARCACHE_TTL = \"later\""));
    unsetenv("NEARCACHE_TTL");
    near_config_free(config);
}

static void
settings_that_contradict_each_other_are_refused(void **state)
{
    near_config          *config = near_config_new();
    struct near__settings settings;
    near_error            error;

    (void)state;
    assert_int_equal(near_config_set(config, "coherence.heartbeat", "400ms", NULL), NEAR_OK);
    assert_int_equal(near__settings_resolve(&settings, config, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, "at most half of coherence.serve_window"));
    assert_int_equal(near_config_set(config, "coherence.heartbeat", "100ms", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l1.shards", "3", NULL), NEAR_OK);
    assert_int_equal(near__settings_resolve(&settings, config, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, "power of two"));
    near_config_free(config);
}

static void
a_cache_overrides_only_what_is_its_own(void **state)
{
    near_config          *config = near_config_new();
    struct near__settings client, cache;
    near_error            error;

    (void)state;
    assert_int_equal(near__settings_resolve(&client, NULL, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "ttl", "3s", NULL), NEAR_OK);
    assert_int_equal(near__settings_override(&cache, &client, config, &error), NEAR_OK);
    assert_int_equal(cache.ttl, 3000 * NEAR_MS);
    assert_int_equal(cache.l1_max_bytes, client.l1_max_bytes);
    assert_int_equal(near_config_set(config, "l2.timeout", "3s", NULL), NEAR_OK);
    assert_int_equal(near__settings_override(&cache, &client, config, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, "l2.timeout belongs to the client"));
    near_config_free(config);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_default_is_accepted_by_its_own_row),
        cmocka_unit_test(values_of_every_form_are_read),
        cmocka_unit_test(a_refusal_names_option_value_and_what_is_accepted),
        cmocka_unit_test(a_password_is_in_no_message),
        cmocka_unit_test(a_file_is_read_whole_or_not_at_all),
        cmocka_unit_test(the_environment_overrides_and_is_checked),
        cmocka_unit_test(settings_that_contradict_each_other_are_refused),
        cmocka_unit_test(a_cache_overrides_only_what_is_its_own),
    };
    return TEST_MAIN(tests, NULL, NULL);
}
