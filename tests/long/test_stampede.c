/*
 * The promises of loading under crowds.  One program, three sizes: in `make check` each row takes a second or two, in `make check-long`
 * and `make soak` it goes on until its count or its time budget (NEAR_TEST_SECONDS) is reached, and says how far it came.
 *
 * Every row has a control beside it: the same with the cure off.
 */
#include "integration/world.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness/long.h"

WORLD(none, TIER_NONE)
WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(both, TIER_MEMCACHED_BUS)
WORLD(memcached, TIER_MEMCACHED)

/* ---- 1,000 threads in one process */

struct crowd {
    near_cache       *cache;
    size_t            rounds;
    int64_t           until;
    pthread_barrier_t barrier;
    _Atomic unsigned  wrong, stop;
    _Atomic size_t    done;
};

static void *
live_in_crowd(void *ctx)
{
    struct crowd *crowd = ctx;
    char          key[32];

    for (size_t round = 0; round < crowd->rounds; round++) {
        if (pthread_barrier_wait(&crowd->barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
            crowd->done = round;
            crowd->stop = test_now_ms() >= crowd->until;
        }
        pthread_barrier_wait(&crowd->barrier);
        if (crowd->stop)
            break;
        snprintf(key, sizeof(key), "round%zu", round);
        crowd->wrong += strcmp(fetch(crowd->cache, key).text, "v1") != 0;
    }
    return NULL;
}

static size_t
run_crowd(struct crowd *crowd, size_t threads)
{
    pthread_t     *ids = calloc(threads, sizeof(*ids));
    pthread_attr_t small;

    crowd->until = test_budget_ends();
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 << 10);
    pthread_barrier_init(&crowd->barrier, NULL, (unsigned)threads);
    for (size_t i = 0; i < threads; i++)
        assert_int_equal(pthread_create(&ids[i], &small, live_in_crowd, crowd), 0);
    for (size_t i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    pthread_barrier_destroy(&crowd->barrier);
    pthread_attr_destroy(&small);
    free(ids);
    return crowd->stop ? crowd->done : crowd->rounds;
}

static void
test_G8_a_thousand_threads_load_once(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.delay_ms = 2);
    struct crowd    crowd = { .rounds = test_sized(3, 200, 10000) };
    struct instance a;
    size_t          threads = TEST_UNDER_TSAN ? 100 : 1000, rounds;

    NEEDS(w);
    OPEN(w, &a, "ttl", "1h");
    near_cache_set_loader(a.cache, load_from_store, &store);
    crowd.cache = a.cache;
    rounds      = run_crowd(&crowd, threads);
    print_message("%zu threads on one cold key, %zu rounds: %u loads\n", threads, rounds, store.keys);
    assert_int_equal(crowd.wrong, 0);
    assert_int_equal(store.keys, rounds);
    close_instance(&a);
}

/* ---- 16 processes of 32 threads */

enum { PROCESSES = 16, THREADS = 32, MOST_ROUNDS = 10000 };

struct page {
    pthread_barrier_t barrier;
    _Atomic unsigned  loads[MOST_ROUNDS];
    _Atomic unsigned  wrong, stop;
    _Atomic size_t    done;
    size_t            rounds;
    int64_t           until;
};
static struct page *page;

static void
load_and_count(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        near_bytes key      = near_load_key(loads[i]);
        char       text[16] = { 0 };

        memcpy(text, key.data, key.size < sizeof(text) ? key.size : sizeof(text) - 1);
        page->loads[strtoul(text, NULL, 10)]++;
        sleep_ms(2);
        near_load_set(loads[i], near_key("v1"));
    }
}

static void *
live_in_fleet(void *ctx)
{
    near_cache *cache = ctx;
    char        key[32];

    for (size_t round = 0; round < page->rounds; round++) {
        if (pthread_barrier_wait(&page->barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
            page->done = round;
            page->stop = test_now_ms() >= page->until;
        }
        pthread_barrier_wait(&page->barrier);
        if (page->stop)
            break;
        snprintf(key, sizeof(key), "%zu", round);
        page->wrong += strcmp(fetch(cache, key).text, "v1") != 0;
    }
    return NULL;
}

/* One process's life.  No cmocka here: a failure is the exit status. */
static int
live(const near_config *config)
{
    near_client *client;
    near_cache  *cache;
    pthread_t    threads[THREADS];

    alarm(1800); /* if another process dies the barrier would never open */
    if (near_client_open(config, &client, NULL) != NEAR_OK ||
        near_cache_open(client, "c", NULL, &cache, NULL) != NEAR_OK)
        return 1;
    near_cache_set_loader(cache, load_and_count, NULL);
    for (size_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, live_in_fleet, cache) != 0)
            return 2;
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return near_client_close(client, NULL) == NEAR_OK ? 0 : 3;
}

static void
run_fleet(const struct world *w, size_t rounds)
{
    static const char *const settings[] = { "l2.timeout",
                                            "30s",
                                            "l2.connect_timeout",
                                            "30s",
                                            "coherence.serve_window",
                                            "60s",
                                            "lease.timeout",
                                            "60s",
                                            "l1.max_ttl",
                                            "60s",
                                            "l2.pool_size",
                                            "2",
                                            NULL };
    pthread_barrierattr_t    shared;
    near_config             *config = near_config_new();
    pid_t                    pids[PROCESSES];
    int                      status;

    near_config_set(config, "l2.uri", w->l2, NULL);
    near_config_set(config, "coherence.uri", w->bus, NULL);
    for (size_t i = 0; settings[i] != NULL; i += 2)
        assert_int_equal(near_config_set(config, settings[i], settings[i + 1], NULL), NEAR_OK);
    memset(page, 0, sizeof(*page));
    page->rounds = rounds;
    page->until  = test_budget_ends();
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&page->barrier, &shared, PROCESSES * THREADS);
    for (size_t i = 0; i < PROCESSES; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] == 0)
            _exit(live(config));
    }
    for (size_t i = 0; i < PROCESSES; i++) {
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    near_config_free(config);
    assert_int_equal(page->wrong, 0);
}

/* The most and the fewest loads of a round. */
static size_t
count_rounds(unsigned *least, unsigned *most)
{
    size_t rounds = page->stop ? page->done : page->rounds;

    *least = UINT32_MAX;
    *most  = 0;
    for (size_t i = 0; i < rounds; i++) {
        *least = page->loads[i] < *least ? page->loads[i] : *least;
        *most  = page->loads[i] > *most ? page->loads[i] : *most;
    }
    print_message("%d processes of %d threads on one cold key, %zu rounds: %u to %u loads each\n", PROCESSES,
                  THREADS, rounds, *least, *most);
    return rounds;
}

static void
test_G8_a_fleet_loads_once(void **state)
{
    struct world *w = *state;
    unsigned      least, most;

    NEEDS(w);
    if (TEST_UNDER_TSAN)
        skip();
    run_fleet(w, test_sized(10, 500, MOST_ROUNDS));
    assert_true(count_rounds(&least, &most) > 0);
    assert_int_equal(least, 1);
    assert_int_equal(most, 1);
}

/* The control: without a shared tier there are no leases, and each process loads once. */
static void
control_without_leases_each_process_loads_once(void **state)
{
    unsigned least, most;

    if (TEST_UNDER_TSAN)
        skip();
    run_fleet(*state, test_sized(10, 100, 1000));
    assert_true(count_rounds(&least, &most) > 0);
    assert_int_equal(least, PROCESSES);
    assert_int_equal(most, PROCESSES);
}

static int
map_page(void **state)
{
    (void)state;
    page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return page == MAP_FAILED;
}

/* ---- early refresh in a fleet: with the lease exactly one at a time */

struct reader {
    near_cache *cache;
    int64_t     until;
    unsigned    reads, stale, failed;
    int64_t     slowest;
    pthread_t   thread;
};

static void *
read_hot(void *ctx)
{
    struct reader *reader = ctx;

    while (test_now_ms() < reader->until) {
        struct answer answer = fetch(reader->cache, "hot");

        reader->reads++;
        reader->failed += answer.status != NEAR_OK;
        reader->stale += answer.info.stale;
        reader->slowest = answer.took_ms > reader->slowest ? answer.took_ms : reader->slowest;
        usleep(500);
    }
    return NULL;
}

static void
early_refreshes_of_a_fleet_are_one_at_a_time(void **state)
{
    enum { INSTANCES = 8 };
    struct world   *w     = *state;
    struct store    store = STORE(.delay_ms = 30);
    struct instance in[INSTANCES];
    struct reader   readers[INSTANCES];
    int64_t         until;
    uint64_t        fills = 0, refused = 0;

    NEEDS(w);
    for (size_t i = 0; i < INSTANCES; i++) {
        OPEN(w, &in[i], "ttl", "1s", "grace", "10s", "early_refresh.beta", "1");
        near_cache_set_loader(in[i].cache, load_from_store, &store);
    }
    assert_fetch(in[0].cache, "hot", "v1");
    until = test_now_ms() + (test_level() == TEST_SOAK   ? 300
                             : test_level() == TEST_LONG ? 20
                                                         : 3) *
                                1000; /* lives of one second */
    for (size_t i = 0; i < INSTANCES; i++) {
        readers[i] = (struct reader){ .cache = in[i].cache, .until = until };
        pthread_create(&readers[i].thread, NULL, read_hot, &readers[i]);
    }
    for (size_t i = 0; i < INSTANCES; i++) {
        pthread_join(readers[i].thread, NULL);
        assert_int_equal(readers[i].failed, 0);
    }
    sleep_ms(100); /* the last refresh */
    for (size_t i = 0; i < INSTANCES; i++) {
        fills += stats_of(&in[i]).l2_fills;
        refused += stats_of(&in[i]).l2_fills_refused;
        close_instance(&in[i]);
    }
    print_message("%u loads, %llu stored, %llu refused, at most %u at a time\n", store.keys,
                  (unsigned long long)fills, (unsigned long long)refused, store.most_inside);
    assert_true(store.keys >= 3);
    assert_int_equal(store.most_inside, 1);
    assert_int_equal(fills, store.keys); /* each of them stored: none was done twice */
    assert_int_equal(refused, 0);
}

/* ---- the origin is down */

enum { KEYS = 50, READERS = 8 };

struct outage {
    near_cache      *cache;
    _Atomic bool     stop;
    _Atomic unsigned reads, failed, fresh;
};

static void *
read_all(void *ctx)
{
    struct outage *outage = ctx;
    unsigned       key    = 0;
    char           text[16];

    while (!outage->stop) {
        struct answer answer;

        snprintf(text, sizeof(text), "k%u", key++ % KEYS);
        answer = fetch(outage->cache, text);
        outage->reads++;
        outage->failed += answer.status != NEAR_OK;
        usleep(test_level() == TEST_CHECK ? 2000 : 200);
    }
    return NULL;
}

static bool
all_are(near_cache *cache, const char *text)
{
    char key[16];

    for (unsigned i = 0; i < KEYS; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        if (strcmp(fetch(cache, key).text, text) != 0)
            return false;
    }
    return true;
}

/* KEYS keys read by READERS threads while the origin fails for `seconds`. */
static void
suffer_an_outage(const struct world *w, const char *grace, int64_t seconds, struct outage *outage,
                 unsigned *attempts, int64_t *recovery_ms)
{
    struct store    store = STORE(.mode = ANSWER);
    struct instance a;
    pthread_t       readers[READERS];
    int64_t         began;

    OPEN(w, &a, "ttl", "300ms", "ttl.jitter", "20", "grace", grace, "load.retry", "500ms",
         "early_refresh.beta", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    outage->cache = a.cache;
    assert_int_equal(near_clear(a.cache), NEAR_OK); /* of the run before */
    assert_true(all_are(a.cache, "v1"));
    for (size_t i = 0; i < READERS; i++)
        pthread_create(&readers[i], NULL, read_all, outage);
    store.mode = FAIL;
    store.keys = 0;
    sleep_ms(seconds * 1000);
    *attempts    = store.keys;
    store.newer  = 1;
    store.mode   = ANSWER;
    began        = test_now_ms();
    *recovery_ms = INT64_MAX;
    /* it is over when every key has been loaded anew: those who fail are tried again after their pause */
    while (*recovery_ms == INT64_MAX && test_now_ms() - began < 20000) {
        char     key[16];
        unsigned renewed = 0;

        for (unsigned i = 0; i < KEYS; i++) {
            const char   *text;
            struct answer answer;

            snprintf(key, sizeof(key), "k%u", i);
            answer = fetch(a.cache, key);
            text   = answer.text[0] == '!' ? answer.text + 1 : answer.text;
            renewed += strcmp(text, "v2") == 0;
        }
        if (renewed == KEYS)
            *recovery_ms = test_now_ms() - began;
    }
    outage->stop = true;
    for (size_t i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    close_instance(&a);
}

static void
no_read_fails_while_the_origin_is_down(void **state)
{
    struct world *w      = *state;
    struct outage outage = { .stop = false }, control = { .stop = false };
    int64_t       seconds = (int64_t)test_sized(3, 60, 60), recovery;
    unsigned      attempts;

    NEEDS(w);
    suffer_an_outage(w, "1h", seconds, &outage, &attempts, &recovery);
    print_message(
        "origin down for %lld s: %u reads, %u failed, %u loads attempted (bound %lld), back after %lld ms\n",
        (long long)seconds, outage.reads, outage.failed, attempts,
        (long long)(KEYS * (seconds * 1000 / 500 + 5)), (long long)recovery);
    assert_int_equal(outage.failed, 0);
    /* pauses of 50, 100, 200, 400 and then 500 ms: four attempts more than whole periods, and one on the way */
    assert_true(attempts <= KEYS * (seconds * 1000 / 500 + 5));
    assert_true(attempts >= KEYS);
    assert_true(recovery < 500 + 400 * (int64_t)test_slack());

    suffer_an_outage(w, "0", 1, &control, &attempts, &recovery);
    assert_true(control.failed > 0);
}

/* ---- a million keys at once */

struct flood {
    near_cache *cache;
    unsigned    from, step, keys;
    int64_t     until;
    unsigned    answered, busy, other;
    uint32_t   *took_us;
    pthread_t   thread;
};

static void *
read_in_flood(void *ctx)
{
    struct flood *flood = ctx;
    char          key[32];

    for (unsigned i = flood->from; i < flood->keys && test_now_ms() < flood->until; i += flood->step) {
        int64_t     began = near__now(&near__clock_system);
        near_value *value;
        near_status status;

        snprintf(key, sizeof(key), "key%u", i);
        status = near_fetch(flood->cache, near_key(key), NULL, &value);
        near_value_release(value);
        if (status == NEAR_OK)
            flood->took_us[flood->answered++] = (uint32_t)((near__now(&near__clock_system) - began) / 1000);
        flood->busy += status == NEAR_ERR_BUSY;
        flood->other += status != NEAR_OK && status != NEAR_ERR_BUSY;
    }
    return NULL;
}

static int
compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static unsigned
pour(const struct world *w, const char *most, unsigned keys)
{
    enum { POURERS = 64 };
    struct store    store = STORE(.delay_ms = 1);
    struct flood    floods[POURERS];
    struct instance a;
    unsigned        answered = 0, busy = 0, other = 0;
    uint32_t       *took  = calloc(keys, sizeof(*took));
    int64_t         until = test_budget_ends();

    OPEN(w, &a, "load.max_concurrent", most, "load.queue_timeout", "2s", "l1.max_bytes", "256MiB");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_int_equal(near_clear(a.cache), NEAR_OK);
    for (unsigned i = 0; i < POURERS; i++) {
        floods[i] =
            (struct flood){ .cache = a.cache, .from = i, .step = POURERS, .keys = keys, .until = until };
        floods[i].took_us = calloc(keys / POURERS + 1, sizeof(uint32_t));
        pthread_create(&floods[i].thread, NULL, read_in_flood, &floods[i]);
    }
    for (unsigned i = 0; i < POURERS; i++) {
        pthread_join(floods[i].thread, NULL);
        memcpy(took + answered, floods[i].took_us, floods[i].answered * sizeof(*took));
        answered += floods[i].answered;
        busy += floods[i].busy;
        other += floods[i].other;
        free(floods[i].took_us);
    }
    qsort(took, answered, sizeof(*took), compare);
    print_message("flush of %u keys, budget %s: %u answered (p50 %u us, p99 %u us), %u busy, at most %u "
                  "loads at a time\n",
                  keys, most, answered, took[answered / 2], took[(size_t)answered * 99 / 100], busy,
                  store.most_inside);
    free(took);
    assert_int_equal(other, 0);
    assert_true(answered > 0);
    close_instance(&a);
    return store.most_inside;
}

static void
a_flush_of_many_keys_stays_within_the_budget(void **state)
{
    struct world *w = *state;

    NEEDS(w);
    assert_in_range(pour(w, "16", (unsigned)test_sized(20000, 1000000, 1000000)), 1, 16);
    assert_true(pour(w, "0", 5000) > 16); /* the control */
}

/* ---- deadlines while everything hangs */

struct late {
    near_cache *cache;
    unsigned    self, rounds;
    int64_t    *over_us;
    unsigned    n, wrong;
    int64_t     until;
    pthread_t   thread;
};

static void *
wait_in_vain(void *ctx)
{
    struct late       *late    = ctx;
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;
    char               key[32];

    for (unsigned i = 0; i < late->rounds && test_now_ms() < late->until; i++) {
        int64_t     began;
        near_value *value;
        near_status status;

        options.timeout_ms = 10 + (late->self * 7 + i) % 40;
        snprintf(key, sizeof(key), "k%u", (late->self + i) % 5);
        began  = near__now(&near__clock_system);
        status = near_fetch(late->cache, near_key(key), &options, &value);
        late->over_us[late->n++] =
            (near__now(&near__clock_system) - began) / 1000 - options.timeout_ms * 1000;
        late->wrong += status != NEAR_ERR_TIMEOUT;
    }
    return NULL;
}

static int
compare_signed(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x < y ? -1 : x > y;
}

static void
deadlines_are_kept_while_loader_and_L2_hang(void **state)
{
    enum { WAITERS = 16 };
    struct world   *w     = *state;
    struct store    store = STORE(.mode = HOLD);
    struct instance a;
    struct late     lates[WAITERS];
    unsigned        rounds = (unsigned)test_sized(50, 1000, 10000);
    int64_t        *all = calloc((size_t)WAITERS * rounds, sizeof(*all)), until = test_budget_ends();
    size_t          n = 0;

    NEEDS(w);
    OPEN(w, &a, "l2.timeout", "60s", "load.retry", "0", "close.timeout", "100ms");
    near_cache_set_loader(a.cache, load_from_store, &store);
    if (w->tier != TIER_NONE)
        test_server_pause(w->memcached != NULL ? w->memcached : w->redis);
    for (unsigned i = 0; i < WAITERS; i++) {
        lates[i]         = (struct late){ .cache = a.cache, .self = i, .rounds = rounds, .until = until };
        lates[i].over_us = calloc(rounds, sizeof(int64_t));
        pthread_create(&lates[i].thread, NULL, wait_in_vain, &lates[i]);
    }
    for (unsigned i = 0; i < WAITERS; i++) {
        pthread_join(lates[i].thread, NULL);
        memcpy(all + n, lates[i].over_us, lates[i].n * sizeof(*all));
        n += lates[i].n;
        free(lates[i].over_us);
        assert_int_equal(lates[i].wrong, 0);
    }
    qsort(all, n, sizeof(*all), compare_signed);
    print_message("%zu waits while everything hangs: over the deadline by p50 %lld us, p99.9 %lld us, at "
                  "most %lld us\n",
                  n, (long long)all[n / 2], (long long)all[n * 999 / 1000], (long long)all[n - 1]);
    /* the promise is 20 ms; `make check` runs beside other programs, on any machine */
    assert_true(all[n * 999 / 1000] <= (test_level() == TEST_CHECK ? 200000 : 20000) * (int64_t)test_slack());
    free(all);
    if (w->tier != TIER_NONE)
        test_server_resume(w->memcached != NULL ? w->memcached : w->redis);
    near_client_close(a.client, NULL); /* BUSY: the held loads */
    for (size_t i = 0; i < store.n_held; i++)
        answer_version(store.held[i], 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER(none, test_G8_a_thousand_threads_load_once),
        OVER(redis, test_G8_a_thousand_threads_load_once),
        OVER(memcached, test_G8_a_thousand_threads_load_once),
        OVER(redis, test_G8_a_fleet_loads_once),
        OVER(both, test_G8_a_fleet_loads_once),
        OVER(memcached, test_G8_a_fleet_loads_once),
        OVER(none, control_without_leases_each_process_loads_once),
        OVER(redis, early_refreshes_of_a_fleet_are_one_at_a_time),
        OVER(memcached, early_refreshes_of_a_fleet_are_one_at_a_time),
        OVER(none, no_read_fails_while_the_origin_is_down),
        OVER(redis, no_read_fails_while_the_origin_is_down),
        OVER(memcached, no_read_fails_while_the_origin_is_down),
        OVER(none, a_flush_of_many_keys_stays_within_the_budget),
        OVER(memory, a_flush_of_many_keys_stays_within_the_budget),
        OVER(none, deadlines_are_kept_while_loader_and_L2_hang),
        OVER(redis, deadlines_are_kept_while_loader_and_L2_hang),
        OVER(memcached, deadlines_are_kept_while_loader_and_L2_hang),
    };
    if (getenv("NEAR_TEST_ROWS") != NULL)
        cmocka_set_test_filter(getenv("NEAR_TEST_ROWS"));
    return TEST_MAIN(tests, map_page, NULL);
}
