/*
 * Writers through to a store, killed at any moment: after each kill what L2 holds of any key is what the store holds, or nothing.  No replay
 * and no waiting is needed for that: the marks see to it.  The control writes without marks and must leave stale values behind; with a
 * journal these are gone once it has been opened again.
 *
 * The store is a page that parent and children share; it takes a moment before and after a commit, as stores do.  Kills are few in
 * `make check` and 5,000 in `make check-long`.
 */
#include "harness/long.h"
#include "harness/server.h"

#include <nearcache.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KEYS = 24 };

static struct page {
    _Atomic uint32_t value[KEYS];
    _Atomic uint32_t fresh, updates;
} * page;

struct instance {
    near_client *client;
    near_cache  *cache;
};

static void
store_fn(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        unsigned k;
        uint32_t number;

        memcpy(&k, near_write_key(writes[i]).data, sizeof(k));
        memcpy(&number, near_write_data(writes[i]).data, sizeof(number));
        usleep(50);
        page->value[k] = number;
        usleep(50);
        near_write_done(writes[i]);
    }
}

static void
load_fn(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        unsigned k;
        uint32_t number;

        memcpy(&k, near_load_key(loads[i]).data, sizeof(k));
        number = page->value[k];
        near_load_set(loads[i], (near_bytes){ &number, sizeof(number) });
    }
}

static void
open_instance(struct instance *in, const struct test_server *server, const char *fast, const char *journal)
{
    const char *const settings[][2] = {
        { "l2.uri", server->uri },      { "write.fast", fast },         { "l2.timeout", "2s" },
        { "store.timeout", "20ms" },    { "l2.connect_timeout", "2s" }, { "write_back.journal", journal },
        { "write_back.fsync", "none" },
    };
    near_config *config = near_config_new();
    near_error   error;

    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        assert_int_equal(near_config_set(config, settings[i][0], settings[i][1], NULL), NEAR_OK);
    if (near_client_open(config, &in->client, &error) != NEAR_OK ||
        near_cache_open(in->client, "kill", NULL, &in->cache, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    near_cache_set_loader(in->cache, load_fn, NULL);
    near_cache_set_store(in->cache, store_fn, NULL);
}

/* A child's life: updates until it is killed. */
static void
live(const struct test_server *server, const char *fast, const char *journal, uint64_t seed)
{
    struct instance in;

    open_instance(&in, server, fast, journal);
    for (;;) {
        unsigned   k      = (unsigned)(test_random(&seed) % KEYS);
        near_bytes key    = { &k, sizeof(k) };
        uint32_t   number = ++page->fresh;

        if (near_update(in.cache, key, (near_bytes){ &number, sizeof(number) }, NULL) == NEAR_OK)
            page->updates++;
    }
}

/* How many keys L2 holds an old value of; what it does not hold is loaded into it. */
static unsigned
stale_in_l2(const struct instance *in)
{
    near_get_options   get   = NEAR_GET_OPTIONS_INIT;
    near_fetch_options fetch = NEAR_FETCH_OPTIONS_INIT;
    unsigned           stale = 0;
    near_value        *value;

    get.flags = fetch.flags = NEAR_SKIP_L1 | NEAR_NO_FILL;
    for (unsigned k = 0; k < KEYS; k++) {
        near_bytes  key    = { &k, sizeof(k) };
        near_status status = near_get_with(in->cache, key, &get, &value);

        if (status == NEAR_MISS)
            status = near_fetch(in->cache, key, &fetch, &value);
        assert_int_equal(status, NEAR_OK);
        stale += memcmp(near_value_bytes(value).data, &(uint32_t){ page->value[k] }, sizeof(uint32_t)) != 0;
        near_value_release(value);
    }
    return stale;
}

static unsigned
kill_writers(const struct test_server *server, const char *fast, const char *journal, size_t kills)
{
    struct instance in, next;
    uint64_t        seed  = 7;
    unsigned        stale = 0;
    int64_t         until = test_budget_ends();
    size_t          done  = 0;

    memset(page, 0, sizeof(*page));
    open_instance(&in, server, fast, "");
    for (; done < kills && test_now_ms() < until; done++) {
        uint32_t before = page->updates;
        pid_t    pid    = fork();

        if (pid == 0)
            live(server, fast, journal, test_random(&seed) + done);
        assert_true(pid > 0);
        while (page->updates < before + 3)
            usleep(200);
        usleep((useconds_t)(test_random(&seed) % 1000));
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        usleep(2000); /* what it had sent is done by then */
        if (journal[0] != '\0') {
            open_instance(&next, server, fast, journal);
            assert_int_equal(near_client_close(next.client, NULL), NEAR_OK); /* pays what is owed */
        }
        stale += stale_in_l2(&in);
    }
    assert_int_equal(near_client_close(in.client, NULL), NEAR_OK);
    print_message("%zu of %zu kills: %u stale\n", done, kills, stale);
    return stale;
}

static struct test_server *redis;

static int
setup(void **state)
{
    (void)state;
    page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return page == MAP_FAILED;
}

static int
start(void **state)
{
    (void)state;
    redis = test_redis_start(0, NULL);
    return 0;
}

static int
stop(void **state)
{
    (void)state;
    test_server_stop(&redis);
    return 0;
}

#define READY                                                                                                \
    do {                                                                                                     \
        test_need_server(redis);                                                                             \
        if (TEST_UNDER_TSAN)                                                                                 \
            skip();                                                                                          \
    } while (0)

static void
a_killed_writer_leaves_nothing_stale(void **state)
{
    (void)state;
    READY;
    assert_int_equal(kill_writers(redis, "no", "", test_sized(12, 5000, 100000)), 0);
}

static void
without_marks_it_does(void **state)
{
    unsigned stale = 0;

    (void)state;
    READY;
    for (int i = 0; i < 30 && stale == 0; i++)
        stale = kill_writers(redis, "yes", "", 8);
    assert_true(stale > 0);
}

static void
and_a_journal_makes_it_good(void **state)
{
    char journal[200];

    (void)state;
    READY;
    snprintf(journal, sizeof(journal), "%s/journal", redis->directory);
    assert_int_equal(kill_writers(redis, "yes", journal, test_sized(8, 2000, 50000)), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_killed_writer_leaves_nothing_stale, start, stop),
        cmocka_unit_test_setup_teardown(without_marks_it_does, start, stop),
        cmocka_unit_test_setup_teardown(and_a_journal_makes_it_good, start, stop),
    };

    return TEST_MAIN(tests, setup, NULL);
}
