/*
 * The request log: which requests are in it, that it is nobody else's, bounded, and never in the way.  All within one process, over
 * memory:.
 */
#define TEST_NAME "requests"
#include "harness/test.h"

#include "harness/log.h"

#include "client.h"
#include "requests.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct world {
    char         directory[64], path[128], file[160]; /* what is configured, and the file that comes of it */
    near_client *client;
    near_cache  *cache;
    char         logged[512]; /* the client's last message */
    char        *text;        /* of the file */
};

static int
setup(void **state)
{
    struct world *world = calloc(1, sizeof(*world));

    *state = world;
    if (world == NULL)
        return -1;
    strcpy(world->directory, "/tmp/near-requests-XXXXXX");
    if (mkdtemp(world->directory) == NULL)
        return -1;
    snprintf(world->path, sizeof(world->path), "%s/log", world->directory);
    snprintf(world->file, sizeof(world->file), "%s.users", world->path);
    return 0;
}

static int
teardown(void **state)
{
    struct world *world = *state;

    unlink(world->file);
    unlink(world->path);
    rmdir(world->directory);
    free(world->text);
    free(world);
    return 0;
}

static void
hear(near_log_level level, const char *message, void *ctx)
{
    struct world *world = ctx;

    (void)level;
    test_log_newest(world->logged, sizeof(world->logged), message);
}

/* NAME, VALUE, ... NULL */
static void
open_cache(struct world *world, const char *const *settings)
{
    near_config *config = near_config_new();
    near_error   error;

    assert_int_equal(near_config_set(config, "log.requests", world->path, &error), NEAR_OK);
    for (; *settings != NULL; settings += 2)
        if (near_config_set(config, settings[0], settings[1], &error) != NEAR_OK)
            fail_msg("%s", error.text);
    assert_int_equal(near_client_open(config, &world->client, &error), NEAR_OK);
    near_set_log(world->client, hear, world);
    assert_int_equal(near_cache_open(world->client, "users", NULL, &world->cache, &error), NEAR_OK);
    near_config_free(config);
}
#define OPEN(...) open_cache(world, (const char *const[]){ __VA_ARGS__, NULL })

static void
close_cache(struct world *world)
{
    near_cache_close(world->cache);
    assert_int_equal(near_client_close(world->client, NULL), NEAR_OK);
}

static const char *
file_text(struct world *world)
{
    FILE  *in = fopen(world->file, "r");
    size_t n;

    assert_non_null(in);
    free(world->text);
    world->text = calloc(1, 4 << 20);
    n           = fread(world->text, 1, (4 << 20) - 1, in);
    fclose(in);
    world->text[n] = '\0';
    return world->text;
}

static size_t
lines_of(const char *text)
{
    size_t n = 0;

    for (; *text != '\0'; text++)
        n += *text == '\n';
    return n;
}

static void
get(struct world *world, const char *key)
{
    near_value *value;

    near_get(world->cache, near_key(key), &value);
    near_value_release(value);
}

/* ---- rows */

/* Hits and misses, one by one and in batches, by get and fetch, each once and in their order. */
static void
every_request_of_a_sampled_key_is_logged(void **state)
{
    struct world *world   = *state;
    near_bytes    keys[3] = { near_key("a"), near_key("b"), near_key("c") };
    near_value   *values[3];
    near_status   statuses[3];
    char          copy[8];
    size_t        size;

    OPEN("log.requests_sample", "1", "log.requests_keys", "plain");
    get(world, "a");
    assert_int_equal(near_put(world->cache, keys[0], near_key("four"), NULL), NEAR_OK);
    get(world, "a");
    near_get_copy(world->cache, keys[0], copy, sizeof(copy), &size, NULL);
    near_get_many(world->cache, keys, 3, values, statuses);
    near_value_release(values[0]);
    get(world, "a b,%#\"\xff");
    get(world, "");
    close_cache(world);
    assert_string_equal(file_text(world), "# nearcache requests v1 cache=users sample=1 keys=plain\n"
                                          "a\na 4\na 4\na 4\nb\nc\na%20b%2c%25%23%22%ff\n%\n");
}

static void
answer(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], near_key("loaded"));
}

static void
fetches_are_requests_too(void **state)
{
    struct world *world = *state;
    near_value   *value;

    OPEN("log.requests_sample", "1", "log.requests_keys", "plain");
    near_cache_set_loader(world->cache, answer, NULL);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(near_fetch(world->cache, near_key("k"), NULL, &value), NEAR_OK);
        near_value_release(value);
    }
    close_cache(world);
    assert_string_equal(strchr(file_text(world), '\n'), "\nk\nk 6\n");
}

/* One key in ten, with all its requests, and the same ones in every client. */
static void
the_sample_is_one_of_keys_and_the_same_everywhere(void **state)
{
    struct world *world = *state;
    char         *first = NULL;
    size_t        n;
    char          key[24];

    for (int life = 0; life < 2; life++) {
        OPEN("log.requests_sample", "10");
        for (int i = 0; i < 3000; i++) {
            snprintf(key, sizeof(key), "key:%d", i % 1000);
            get(world, key);
        }
        close_cache(world);
        if (life == 0) {
            first = strdup(file_text(world));
            unlink(world->file);
        }
    }
    assert_string_equal(first, file_text(world));
    n = lines_of(first) - 1;
    assert_int_equal(n % 3, 0);
    assert_in_range(n / 3, 60, 140); /* of 1000 keys */
    assert_null(strstr(first, "key:"));
    free(first);
}

static void
the_file_is_this_users_alone(void **state)
{
    struct world *world = *state;
    struct stat   about;
    int           fd;

    fd = open(world->file, O_CREAT | O_WRONLY | O_CLOEXEC, 0644); /* it was there, for all to read */
    assert_true(fd >= 0);
    assert_int_equal(fchmod(fd, 0644), 0);
    assert_int_equal(write(fd, "# before\n", 9), 9);
    close(fd);
    OPEN("log.requests_sample", "1");
    get(world, "a");
    close_cache(world);
    assert_int_equal(stat(world->file, &about), 0);
    assert_int_equal(about.st_mode & 07777, 0600);
    assert_int_equal(strncmp(file_text(world), "# before\n# nearcache", 20), 0); /* appended to */
}

/* A link, a pipe, a directory: not followed, not waited for, and no reason to go without a cache. */
static void
what_is_no_file_is_refused(void **state)
{
    static const char *const says[] = { "symbolic link", "", "" };
    struct world            *world  = *state;
    char                     target[160];
    struct stat              about;

    snprintf(target, sizeof(target), "%s/elsewhere", world->directory);
    for (int i = 0; i < 3; i++) {
        if (i == 0)
            assert_int_equal(symlink(target, world->file), 0);
        else if (i == 1)
            assert_int_equal(mkfifo(world->file, 0600), 0);
        else
            assert_int_equal(mkdir(world->file, 0700), 0);
        world->logged[0] = '\0';
        OPEN("log.requests_sample", "1");
        assert_non_null(strstr(world->logged, "requests are not logged"));
        assert_non_null(strstr(world->logged, says[i]));
        assert_null(world->cache->requests);
        get(world, "a");
        close_cache(world);
        remove(world->file);
    }
    assert_int_equal(stat(target, &about), -1);
}

static void
it_grows_no_larger_than_it_may(void **state)
{
    struct world *world = *state;
    near_stats    stats = NEAR_STATS_INIT;
    struct stat   about;
    char          key[24];

    OPEN("log.requests_sample", "1", "log.requests_max_bytes", "1KiB", "log.level", "info");
    for (int i = 0; i < 20000; i++) {
        snprintf(key, sizeof(key), "key:%d", i);
        get(world, key);
    }
    near_cache_close(world->cache);
    near_stats_get(world->client, &stats);
    assert_int_equal(near_client_close(world->client, NULL), NEAR_OK);
    assert_int_equal(stat(world->file, &about), 0);
    assert_true(about.st_size <= 1024);
    assert_true(stats.log_requests_dropped > 0);
    assert_non_null(strstr(world->logged, "no more is written"));
    OPEN("log.requests_sample", "1", "log.requests_max_bytes",
         "1KiB"); /* full from the start, or nearly so */
    get(world, "a");
    close_cache(world);
    assert_int_equal(stat(world->file, &about), 0);
    assert_true(about.st_size <= 1024);
}

static void *
get_many_times(void *ctx)
{
    struct world *world = ctx;
    char          key[24];

    for (size_t i = 0; i < test_scale(20000); i++) {
        snprintf(key, sizeof(key), "key:%zu", i % 100);
        get(world, key);
    }
    return NULL;
}

/* From many threads: whole lines only, and each request is either there or counted as lost. */
static void
lines_of_many_threads_are_whole_or_counted(void **state)
{
    struct world *world = *state;
    near_stats    stats = NEAR_STATS_INIT;
    pthread_t     threads[4];
    size_t        lines = 0;
    const char   *at;

    OPEN("log.requests_sample", "1");
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, get_many_times, world), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    near_cache_close(world->cache);
    near_stats_get(world->client, &stats);
    assert_int_equal(near_client_close(world->client, NULL), NEAR_OK);
    for (at = strchr(file_text(world), '\n') + 1; *at != '\0'; at = strchr(at, '\n') + 1, lines++)
        assert_int_equal(strspn(at, "0123456789abcdef"), 16);
    assert_int_equal(lines, stats.log_requests);
    assert_int_equal(lines + stats.log_requests_dropped, 4 * test_scale(20000));
    assert_true(lines > 0);
}

/* Without a log nothing of it is there, and hits go the shortest way. */
static void
no_log_costs_nothing(void **state)
{
    struct world *world = *state;
    struct stat   about;

    world->path[0] = '\0';
    OPEN("log.requests_sample", "1");
    assert_null(world->cache->requests);
    get(world, "a");
    close_cache(world);
    assert_int_equal(stat(world->file, &about), -1);
    snprintf(world->path, sizeof(world->path), "%s/log", world->directory);
    OPEN("log.requests_sample", "1"); /* the control */
    assert_non_null(world->cache->requests);
    close_cache(world);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_request_of_a_sampled_key_is_logged),
        TEST(fetches_are_requests_too),
        TEST(the_sample_is_one_of_keys_and_the_same_everywhere),
        TEST(the_file_is_this_users_alone),
        TEST(what_is_no_file_is_refused),
        TEST(it_grows_no_larger_than_it_may),
        TEST(lines_of_many_threads_are_whole_or_counted),
        TEST(no_log_costs_nothing),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
