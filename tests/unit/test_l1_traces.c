/*
 * Policies against recorded traffic, over the simulator.
 *
 *   exact       lru, lfu and sieve have exactly the hits that expected.tsv states, s3fifo has them within 0.1 points, at every row
 *   production  lru keeps within 0.5 points of exact LRU; shards cost 0.2 points at most with 256 entries in each, 0.5 with 64
 *   adaptive    never more than 0.5 points below lru; within 0.5 points of the best fixed policy at 80 % of the points and within
 *               1 at 95 %; a mean of 55.5 % or more on `phases`
 *   threads     the library itself, a cache as it is by default: what eight threads that share a trace have fewer hits than one.  Some
 *               cannot be had: where two want a key at the same moment, both have a miss
 *
 * NEAR_TEST_SCALE below 100 leaves all but the smallest trace out.
 */
#define TEST_NAME "l1 traces"
#include "harness/test.h"
#include "harness/trace.h"

#include "base/hash.h"
#include "l1/simulate.h"
#include "nearcache.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct point {
    const char *trace;
    size_t      capacity;
};
static const struct point points[] = {
    { "web12", 138 },        { "web12", 688 },         { "web12", 1376 },        { "web12", 3439 },
    { "orm-night-1m", 414 }, { "orm-night-1m", 2068 }, { "orm-night-1m", 4135 }, { "orm-night-1m", 10338 },
    { "oltp", 187 },         { "oltp", 1869 },         { "oltp", 9344 },         { "oltp", 18688 },
    { "oltp", 46720 },       { "phases", 200 },        { "phases", 2004 },       { "phases", 10020 },
    { "phases", 20041 },     { "phases", 50102 },
};

/* The trace of the last point asked for. */
static struct {
    const char *name;
    uint64_t   *hashes;
    size_t      count;
} trace;

static bool
left_out(const struct point *point)
{
    return test_scale(100) < 100 && strcmp(point->trace, "web12") != 0;
}

static void
load(const char *name)
{
    struct test_trace *file;
    near_bytes         key;
    char               path[512];
    size_t             room = 1100000;

    if (trace.name == name)
        return;
    snprintf(path, sizeof(path), TEST_DATA "/traces/%s.keys.zst", name);
    free(trace.hashes);
    trace.hashes = malloc(room * sizeof(*trace.hashes));
    trace.count  = 0;
    trace.name   = name;
    assert_non_null(trace.hashes);
    file = test_trace_open(path);
    assert_non_null(file);
    while (test_trace_next(file, &key) && trace.count < room)
        trace.hashes[trace.count++] = near__hash_fixed(key);
    assert_true(test_trace_close(&file));
}

static size_t
hits_of(const struct near__simulator_config *config)
{
    struct near__simulator *simulator;
    size_t                  hits = 0;

    assert_int_equal(near__simulator_open(&simulator, config), NEAR_OK);
    for (size_t i = 0; i < trace.count; i++)
        hits += near__simulator_access(simulator, trace.hashes[i]);
    near__simulator_close(&simulator);
    return hits;
}

static double
percent(size_t hits)
{
    return 100.0 * (double)hits / (double)trace.count;
}

static double
production(const struct point *point, const char *policy, unsigned shards)
{
    struct near__simulator_config config = { policy, point->capacity, shards, false, false };

    load(point->trace);
    return percent(hits_of(&config));
}

/* ---- exact */

static void
exact_rows(const char *policy, double most)
{
    size_t rows = 0;

    for (size_t i = 0; i < NEAR_COUNT_OF(points); i++) {
        struct near__simulator_config config = { policy, points[i].capacity, 1, true, false };
        int64_t                       expected, hits;
        if (left_out(&points[i]))
            continue;
        load(points[i].trace);
        expected = test_trace_expected(TEST_DATA "/traces", points[i].trace, points[i].capacity, policy);
        hits     = (int64_t)hits_of(&config);
        if (hits != expected)
            print_message("# %s %zu %s: %lld hits, expected %lld\n", points[i].trace, points[i].capacity,
                          policy, (long long)hits, (long long)expected);
        assert_true(expected >= 0);
        assert_true(100.0 * fabs((double)(hits - expected)) <= most * (double)trace.count);
        rows++;
    }
    assert_int_equal(rows, test_scale(100) < 100 ? 4 : 18);
}

static void
test_lru_exact(void **state)
{
    (void)state;
    exact_rows("lru", 0);
}

static void
test_sieve_exact(void **state)
{
    (void)state;
    exact_rows("sieve", 0);
}

static void
test_lfu_exact(void **state)
{
    (void)state;
    exact_rows("lfu", 0);
}

static void
test_s3fifo_exact(void **state)
{
    (void)state;
    exact_rows("s3fifo", 0.1);
}

/* ---- production */

static void
test_lru_production(void **state)
{
    double worst = 0;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(points); i++) {
        double ratio, expected;
        if (left_out(&points[i]))
            continue;
        ratio    = production(&points[i], "lru", 0);
        expected = percent(
            (size_t)test_trace_expected(TEST_DATA "/traces", points[i].trace, points[i].capacity, "lru"));
        worst = fabs(ratio - expected) > worst ? fabs(ratio - expected) : worst;
        assert_true(fabs(ratio - expected) <= 0.5);
    }
    print_message("# lru in production: at most %.3f points from exact\n", worst);
}

/* Against the exact figure, or against one shard of the same policy where that has less.  (s3fifo has more than its definition in one
 * place: its ghost of lines finds some keys of a loop that is a little longer than what a list remembers.) */
static void
shards_cost(const char *policy, size_t least, double most)
{
    double worst = 0, mean = 0;
    size_t count = 0;

    for (size_t i = 0; i < NEAR_COUNT_OF(points); i++) {
        unsigned shards = 1;
        double   loss, whole;
        int64_t  expected =
            test_trace_expected(TEST_DATA "/traces", points[i].trace, points[i].capacity, policy);
        while (points[i].capacity / (2 * shards) >= least && shards < 256)
            shards *= 2;
        if (left_out(&points[i]) || shards == 1)
            continue;
        whole = production(&points[i], policy, 1);
        whole = expected >= 0 && percent((size_t)expected) < whole ? percent((size_t)expected) : whole;
        loss  = whole - production(&points[i], policy, shards);
        worst = loss > worst ? loss : worst;
        mean += loss;
        count++;
        if (loss > most)
            print_message("# %s %zu %s in %u shards: %.3f points lost\n", points[i].trace, points[i].capacity,
                          policy, shards, loss);
    }
    print_message("# %s, shards of %zu entries: at most %.3f points, mean %.3f\n", policy, least, worst,
                  mean / (double)count);
    assert_true(worst <= most);
}

static void
test_shards(void **state)
{
    (void)state;
    shards_cost("lru", 256, 0.2);
    shards_cost("lru", 64, 0.5);
    shards_cost("s3fifo", 256, 0.2);
    shards_cost("s3fifo", 64, 0.5);
    shards_cost("adaptive", 4096, 0.5); /* as shards are chosen */
}

/* ---- adaptive */

static void
test_adaptive(void **state)
{
    size_t judged = 0, near = 0, nearer = 0;
    double phases = 0, sum = 0, sum_best = 0;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(points); i++) {
        double adaptive, lru = 0, best = 0, ratio;
        if (left_out(&points[i]))
            continue;
        adaptive = production(&points[i], "adaptive", 0);
        for (size_t j = 0; near__policies[j] != NULL; j++) {
            if (near__policies[j] == &near__adaptive)
                continue;
            ratio = production(&points[i], near__policies[j]->name, 0);
            lru   = near__policies[j] == &near__lru ? ratio : lru;
            best  = ratio > best ? ratio : best;
        }
        print_message("# %-13s %6zu: adaptive %6.2f, to lru %+6.2f, to the best fixed %+6.2f\n",
                      points[i].trace, points[i].capacity, adaptive, adaptive - lru, adaptive - best);
        assert_true(adaptive >= lru - 0.5);
        judged++;
        nearer += adaptive >= best - 0.5;
        near += adaptive >= best - 1;
        sum += adaptive;
        sum_best += best;
        phases += strcmp(points[i].trace, "phases") == 0 ? adaptive / 5 : 0;
    }
    print_message("# mean %.2f (the best fixed of each point %.2f), phases %.2f, within 0.5 at %zu of %zu, "
                  "within 1 at %zu\n",
                  sum / (double)judged, sum_best / (double)judged, phases, nearer, judged, near);
    assert_true(10 * nearer >= 8 * judged);
    assert_true(100 * near >= 95 * judged);
    if (test_scale(100) == 100)
        assert_true(phases >= 55.5);
}

/* ---- threads */

enum { THREADS = 8, PORTION = 16 /* consecutive requests that one thread takes */ };

struct crowd {
    near_cache      *cache;
    _Atomic size_t   next, hits;
    _Atomic unsigned failed;
};

static void *
look_aside(void *arg)
{
    struct crowd *crowd = arg;
    size_t        hits = 0, begin, failed = 0;

    while ((begin = atomic_fetch_add(&crowd->next, PORTION)) < trace.count)
        for (size_t i = begin; i < begin + PORTION && i < trace.count; i++) {
            near_bytes  key = { &trace.hashes[i], sizeof(trace.hashes[i]) };
            near_value *value;

            if (near_get(crowd->cache, key, &value) == NEAR_OK) {
                near_value_release(value);
                hits++;
            } else if (near_put(crowd->cache, key, key, NULL) != NEAR_OK) {
                failed++;
            }
        }
    atomic_fetch_add(&crowd->hits, hits);
    atomic_fetch_add(&crowd->failed, failed);
    return NULL;
}

/* The mean of some caches: which keys adaptive samples is each client's own secret. */
static double
in_use(const struct point *point, const char *policy, unsigned threads, unsigned caches)
{
    char   entries[24];
    double sum = 0;

    load(point->trace);
    snprintf(entries, sizeof(entries), "%zu", point->capacity);
    for (unsigned i = 0; i < caches; i++) {
        near_config *config = near_config_new();
        struct crowd crowd  = { 0 };
        pthread_t    ids[THREADS];
        near_client *client;

        assert_int_equal(near_config_set(config, "l2.uri", "none:", NULL), NEAR_OK);
        assert_int_equal(near_config_set(config, "l1.policy", policy, NULL), NEAR_OK);
        assert_int_equal(near_config_set(config, "l1.max_entries", entries, NULL), NEAR_OK);
        assert_int_equal(near_client_open(config, &client, NULL), NEAR_OK);
        assert_int_equal(near_cache_open(client, "c", NULL, &crowd.cache, NULL), NEAR_OK);
        near_config_free(config);
        for (unsigned j = 0; j < threads; j++)
            assert_int_equal(pthread_create(&ids[j], NULL, look_aside, &crowd), 0);
        for (unsigned j = 0; j < threads; j++)
            pthread_join(ids[j], NULL);
        assert_int_equal(crowd.failed, 0);
        sum += percent(crowd.hits);
        near_cache_close(crowd.cache);
        assert_int_equal(near_client_close(client, NULL), NEAR_OK);
    }
    return sum / caches;
}

/* How many are lost depends on where the scheduler stops a thread: the bounds are wide. */
static void
test_threads(void **state)
{
    static const struct {
        const char *policy;
        unsigned    caches;
    } policies[] = { { "lru", 1 }, { "s3fifo", 1 }, { "adaptive", 2 } };
    double lru[NEAR_COUNT_OF(points)];

    (void)state;
    for (size_t p = 0; p < NEAR_COUNT_OF(policies); p++) {
        double worst = -100, least = 100, mean = 0;
        size_t count = 0;

        for (size_t i = 0; i < NEAR_COUNT_OF(points); i++) {
            double one, many;
            if (left_out(&points[i]))
                continue;
            one   = in_use(&points[i], policies[p].policy, 1, policies[p].caches);
            many  = in_use(&points[i], policies[p].policy, THREADS, policies[p].caches);
            worst = fmax(worst, one - many);
            mean += one - many;
            count++;
            lru[i] = p == 0 ? many : lru[i];
            least  = fmin(least, many - lru[i]);
            if (one - many > 0.2)
                print_message("# %s %zu, %s: %.2f %% with one thread, %.2f with %d\n", points[i].trace,
                              points[i].capacity, policies[p].policy, one, many, THREADS);
            assert_true(one - many <= 2);
            assert_true(strcmp(policies[p].policy, "adaptive") != 0 || many >= lru[i] - 1.5);
        }
        print_message("# %s with %d threads: at most %.2f points lost, mean %.2f; to lru at least %+.2f\n",
                      policies[p].policy, THREADS, worst, mean / (double)count, least);
    }
}

static int
unload(void **state)
{
    (void)state;
    free(trace.hashes);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lru_exact),      cmocka_unit_test(test_sieve_exact),
        cmocka_unit_test(test_lfu_exact),      cmocka_unit_test(test_s3fifo_exact),
        cmocka_unit_test(test_lru_production), cmocka_unit_test(test_shards),
        cmocka_unit_test(test_adaptive),       cmocka_unit_test(test_threads),
    };

    return TEST_MAIN(tests, NULL, unload);
}
