/*
 * Several processes on real servers.  A page of shared memory holds, per key, the newest version whose write was acknowledged; each
 * process writes its own keys and reads everybody's.  A read that starts after near_fence() must not be older than what
 * the page said before the fence.  The control takes the bus away and must see stale reads.
 */
#include "harness/test.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness/server.h"

enum { PROCESSES = 3, KEYS = 6 };

struct page {
    _Atomic uint64_t acknowledged[KEYS];
    _Atomic uint64_t reads, stale, l1_hits, failed, waiting;
};

static struct test_server *redis, *memcached;
static struct page        *page;

static int
setup(void **state)
{
    (void)state;
    redis     = test_redis_start(0, NULL);
    memcached = test_memcached_start(0, NULL);
    page      = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return page == MAP_FAILED;
}

static int
teardown(void **state)
{
    (void)state;
    test_server_stop(&redis);
    test_server_stop(&memcached);
    return munmap(page, sizeof(*page));
}

static near_config *
config_of(const char *l2, const char *bus, const char *mode)
{
    near_config *config = near_config_new();
    bool         good   = near_config_set(config, "l2.uri", l2, NULL) == NEAR_OK &&
                near_config_set(config, "coherence.uri", bus, NULL) == NEAR_OK &&
                near_config_set(config, "coherence.mode", mode, NULL) == NEAR_OK &&
                near_config_set(config, "l1.max_ttl", "60s", NULL) == NEAR_OK &&
                near_config_set(config, "l2.timeout", "5s", NULL) == NEAR_OK &&
                near_config_set(config, "l2.connect_timeout", "5s", NULL) == NEAR_OK &&
                near_config_set(config, "coherence.serve_window", "20s", NULL) == NEAR_OK;
    return good ? config : NULL;
}

static void
key_of(unsigned k, char *out)
{
    sprintf(out, "key%u", k);
}

static void
write_key(near_cache *cache, unsigned k)
{
    uint64_t version = page->acknowledged[k] + 1; /* one writer per key */
    char     key[16], text[32];

    key_of(k, key);
    sprintf(text, "%llu", (unsigned long long)version);
    if (near_put(cache, near_key(key), near_key(text), NULL) == NEAR_OK)
        page->acknowledged[k] = version;
    else
        page->failed++;
}

static void
read_key(near_client *client, near_cache *cache, unsigned k, bool fence)
{
    uint64_t        before = page->acknowledged[k];
    near_value_info info   = NEAR_VALUE_INFO_INIT;
    char            key[16], text[32];
    size_t          size;

    key_of(k, key);
    if (before == 0 || (fence && near_fence(client, 5000) != NEAR_OK))
        return;
    if (near_get_copy(cache, near_key(key), text, sizeof(text) - 1, &size, &info) != NEAR_OK) {
        page->failed++;
        return;
    }
    text[size] = '\0';
    page->reads++;
    page->l1_hits += info.source == NEAR_FROM_L1;
    page->stale += strtoull(text, NULL, 10) < before;
}

/* One process's life. */
static int
live(unsigned self, const near_config *config, size_t rounds, bool fence)
{
    near_client *client;
    near_cache  *cache;
    uint64_t     state = self + 1;

    if (near_client_open(config, &client, NULL) != NEAR_OK ||
        near_cache_open(client, "c", NULL, &cache, NULL) != NEAR_OK)
        return 1;
    page->waiting++;
    while (page->waiting < PROCESSES)
        usleep(100);
    for (size_t i = 0; i < rounds; i++) {
        unsigned k = (unsigned)(test_random(&state) % KEYS);

        if (k % PROCESSES == self && i % 4 == 0)
            write_key(cache, k);
        else
            read_key(client, cache, k, fence);
    }
    return near_client_close(client, NULL) == NEAR_OK ? 0 : 1;
}

static void
run_processes(const near_config *config, size_t rounds, bool fence)
{
    pid_t pids[PROCESSES];
    int   status;

    memset(page, 0, sizeof(*page));
    for (unsigned i = 0; i < PROCESSES; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0)
            _exit(live(i, config, rounds, fence));
    }
    for (unsigned i = 0; i < PROCESSES; i++) {
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    assert_int_equal(page->failed, 0);
    assert_true(page->reads > 0);
}

static void
test_G2_processes_on_redis_never_read_stale_after_a_fence(void **state)
{
    near_config *config;

    (void)state;
    if (redis == NULL)
        skip();
    config = config_of(redis->uri, "auto", "auto");
    assert_non_null(config);
    run_processes(config, test_scale(4000), true);
    assert_int_equal(page->stale, 0);
    assert_true(page->l1_hits > 0); /* and it was L1 that answered, not always L2 */
    near_config_free(config);
}

static void
test_G3_processes_on_memcached_with_a_redis_bus(void **state)
{
    near_config *config;

    (void)state;
    if (redis == NULL || memcached == NULL)
        skip();
    config = config_of(memcached->uri, redis->uri, "auto");
    assert_non_null(config);
    run_processes(config, test_scale(4000), true);
    assert_int_equal(page->stale, 0);
    assert_true(page->l1_hits > 0);
    near_config_free(config);
}

static void
control_processes_without_a_bus_read_stale(void **state)
{
    near_config *config;

    (void)state;
    if (redis == NULL)
        skip();
    config = config_of(redis->uri, "auto", "none");
    assert_non_null(config);
    run_processes(config, 4000, false);
    assert_true(page->stale > 0);
    near_config_free(config);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_G2_processes_on_redis_never_read_stale_after_a_fence),
        cmocka_unit_test(test_G3_processes_on_memcached_with_a_redis_bus),
        cmocka_unit_test(control_processes_without_a_bus_read_stale),
    };
    return TEST_MAIN(tests, setup, teardown);
}
