/*
 * The library under a scheduler that decides everything, seed by seed: see steps.h and world.h.
 *
 * `make check` runs some thousand seeds, `make check-long` a million, `make soak` as many as the time budget allows.  A seed that breaks
 * a promise is named with the row; NEAR_TEST_SEED=N runs that one alone (with NEAR_TEST_ROWS for the row).  Each control takes one
 * cure away and must find a broken promise, and count how many seeds that took.
 */
#define TEST_NAME "dst"
#include "dst/world.h"
#include "harness/test.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHECK_SEEDS = 100, LONG_SEEDS = 53000, CONTROL_SEEDS = 20000, SHARES = 16 };

/* Kept from run to run: half of a run's time was the kernel's, for memory given back and asked for again. */
enum { KEPT = 256 << 20, LARGE = 32 << 20 };

#define TROUBLE .chaos = DST_TROUBLE, .faults = 15
static const struct dst_settings rows[] = {
    { .name = "writes_in_one_step", .clients = 2, .keys = 2, .atomic = true },
    { .name = "writes_in_two_steps", .clients = 2, .keys = 2 },
    { .name = "writes_that_fail", .clients = 2, .keys = 2, .atomic = true, .faults = 25 },
    { .name = "writes_that_fail_in_two_steps", .clients = 2, .keys = 2, .faults = 25 },
    { .name = "cut_links", .clients = 2, .keys = 1, .atomic = true, .chaos = DST_CUT, .slow = true },
    { .name = "silent_links", .clients = 2, .keys = 1, .atomic = true, .chaos = DST_SILENT | DST_FREEZE },
    { .name    = "lost_messages",
      .clients = 2,
      .keys    = 1,
      .atomic  = true,
      .chaos   = DST_LOSE | DST_REPEAT,
      .windows = 4 },
    { .name = "evictions", .clients = 2, .keys = 2, .atomic = true, .chaos = DST_EVICT | DST_EVICT_L1 },
    { .name = "trouble", .clients = 3, .keys = 2, .atomic = true, TROUBLE },
    { .name = "trouble_in_two_steps", .clients = 3, .keys = 2, TROUBLE },
    { .name = "loads", .clients = 2, .keys = 2, .atomic = true, .loads = true, .absent = true },
    { .name    = "slow_loads",
      .clients = 2,
      .keys    = 1,
      .atomic  = true,
      .loads   = true,
      .chaos   = DST_EVICT,
      .slow    = true },
    { .name    = "loads_over_silent_links",
      .clients = 2,
      .keys    = 1,
      .atomic  = true,
      .loads   = true,
      .chaos   = DST_SILENT,
      .slow    = true },
    { .name    = "loads_in_trouble",
      .clients = 2,
      .keys    = 2,
      .atomic  = true,
      .loads   = true,
      .absent  = true,
      TROUBLE },
    { .name    = "loads_in_trouble_in_two_steps",
      .clients = 2,
      .keys    = 2,
      .loads   = true,
      .absent  = true,
      TROUBLE },
    { .name = "herd", .clients = 3, .keys = 2, .atomic = true, .loads = true, .herd = true },
    { .name = "herd_alone", .clients = 1, .keys = 2, .loads = true, .herd = true, .alone = true },
    { .name = "clears", .clients = 2, .keys = 2, .atomic = true, .clears = true, .chaos = DST_TROUBLE },
    { .name = "tags", .clients = 2, .keys = 2, .atomic = true, .tags = true, .chaos = DST_TROUBLE },
};

struct control {
    enum dst_cure cure;
    const char   *row;
    const char   *races; /* doc/races.md */
};

static const struct control controls[] = {
    { DST_NO_FENCE, "writes_in_one_step", "1" },
    { DST_NO_FENCE, "loads", "4, 37" },
    { DST_FENCE_IN_ENTRY, "writes_in_one_step", "3" },
    { DST_IGNORE_ABSENT, "writes_in_one_step", "5" },
    { DST_MESSAGE_FIRST, "writes_in_one_step", "7" },
    { DST_NO_DOUBT, "writes_that_fail", "9, 10" },
    { DST_NO_RECOVERY, "writes_that_fail_in_two_steps", "9" },
    { DST_NO_GATE, "silent_links", "13, 21" },
    { DST_NO_FLUSH, "cut_links", "12, 13" },
    { DST_PONG_AS_NOW, "silent_links", "14" },
    { DST_NO_EPOCH, "cut_links", "15" },
    { DST_ONCE, "writes_in_one_step", "17" },
    { DST_NO_NUMBERS, "lost_messages", "18" },
    { DST_KEEP_GENERATION, "clears", "25" },
    { DST_NO_CONDITION, "loads", "27" },
    { DST_LEASE_BY_KEY, "slow_loads", "2, 32" },
    { DST_NO_CONDITION, "loads_in_trouble", "36" },
    { DST_LEAK_FLIGHTS, "loads_in_trouble", "6" },
    { DST_NO_LEASE, "herd", "the herd" },
    { DST_NO_FLIGHTS, "herd_alone", "the herd" },
    { DST_NO_BRACKET, "writes_in_one_step", "own writes" },
    { DST_JOIN_ANY, "loads_over_silent_links", "old loads" },
    { DST_NO_TAG_MOVE, "tags", "tags" },
};

/* ---- how long */

static bool
is_level(const char *name)
{
    const char *level = getenv("NEAR_TEST_LEVEL");

    return level != NULL && strcmp(level, name) == 0;
}

static uint64_t
seeds(void)
{
    return is_level("soak") ? UINT64_MAX : is_level("long") ? LONG_SEEDS : test_scale(CHECK_SEEDS);
}

static int64_t
budget_ends(void)
{
    const char *seconds = getenv("NEAR_TEST_SECONDS");

    return steps_real_ms() + (seconds != NULL ? atoll(seconds) : 120) * 1000;
}

/* ---- rows */

static bool
run_seed(const struct dst_settings *row, uint64_t seed, struct steps_result *result)
{
    dst_run(row, seed, result);
    if (result->violations == 0)
        return true;
    print_message("%s, seed %llu: %s (%u in all; %llu steps, %llu switches, %lld ms, digest %016llx)\n",
                  row->name, (unsigned long long)seed, result->violation, result->violations,
                  (unsigned long long)result->steps, (unsigned long long)result->switches,
                  (long long)(result->ended / NEAR_MS), (unsigned long long)result->digest);
    return false;
}

struct share {
    uint64_t n, steps;
    unsigned broken;
};

/* Every `stride`-th seed from `first` on. */
static struct share
run_share(const struct dst_settings *row, uint64_t first, uint64_t stride, uint64_t most, int64_t until)
{
    struct share        share = { 0, 0, 0 };
    struct steps_result result;

    for (uint64_t i = 0; i < most && share.broken < 3 && (share.n % 64 != 0 || steps_real_ms() < until);
         i += stride) {
        share.broken += !run_seed(row, first + i, &result);
        share.steps += result.steps;
        share.n++;
    }
    return share;
}

/* In a process of its own, as one cannot have two schedulers. */
static pid_t
start_share(const struct dst_settings *row, unsigned which, unsigned of, int64_t until, int report)
{
    pid_t        pid;
    struct share share;

    fflush(NULL);
    pid = fork();
    if (pid != 0)
        return pid;
    share = run_share(row, 1 + which, of, seeds() - which, until);
    fflush(NULL);
    _exit(write(report, &share, sizeof(share)) == sizeof(share) ? 0 : 1);
}

/* On all processors. */
static struct share
run_shares(const struct dst_settings *row, unsigned of, int64_t until)
{
    struct share all = { 0, 0, 0 }, one;
    int          report[2], status;
    pid_t        pids[SHARES];

    assert_int_equal(pipe(report), 0);
    for (unsigned i = 0; i < of; i++) {
        pids[i] = start_share(row, i, of, until, report[1]);
        assert_true(pids[i] > 0);
    }
    close(report[1]);
    for (unsigned i = 0; i < of; i++) {
        if (read(report[0], &one, sizeof(one)) != (ssize_t)sizeof(one))
            break;
        all.n += one.n;
        all.steps += one.steps;
        all.broken += one.broken;
    }
    close(report[0]);
    for (unsigned i = 0; i < of; i++) {
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_int_equal(status, 0);
    }
    return all;
}

static void
no_promise_is_broken(void **state)
{
    const struct dst_settings *row   = *state;
    const char                *one   = getenv("NEAR_TEST_SEED");
    int64_t                    until = budget_ends(), began = steps_real_ms();
    long                       n = sysconf(_SC_NPROCESSORS_ONLN);
    struct share               share;

    dst_without = DST_ALL_CURES;
    if (one != NULL)
        share = run_share(row, strtoull(one, NULL, 10), 1, 1, until);
    else if (n < 2 || !(is_level("long") || is_level("soak")))
        share = run_share(row, 1, 1, seeds(), until);
    else
        share = run_shares(row, n < SHARES ? (unsigned)n : SHARES, until);
    print_message("%s: %llu seeds, %llu steps, %lld ms\n", row->name, (unsigned long long)share.n,
                  (unsigned long long)share.steps, (long long)(steps_real_ms() - began));
    assert_int_equal(share.broken, 0);
}

/* The same seed, the same steps, whatever ran before: else no seed could be looked at twice. */
static void
a_seed_is_a_schedule(void **state)
{
    enum { SEEDS = 8 };
    struct steps_result first[NEAR_COUNT_OF(rows)][SEEDS], again;

    (void)state;
    dst_without = DST_ALL_CURES;
    for (size_t row = 0; row < NEAR_COUNT_OF(rows); row++)
        for (size_t seed = 0; seed < SEEDS; seed++)
            dst_run(&rows[row], seed, &first[row][seed]);
    for (size_t seed = SEEDS; seed-- > 0;)
        for (size_t row = NEAR_COUNT_OF(rows); row-- > 0;) {
            dst_run(&rows[row], seed, &again);
            if (first[row][seed].digest != again.digest)
                print_message("%s, seed %zu: %llu steps, then %llu\n", rows[row].name, seed,
                              (unsigned long long)first[row][seed].steps, (unsigned long long)again.steps);
            assert_true(first[row][seed].digest == again.digest);
        }
}

static const struct dst_settings *
row_named(const char *name)
{
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    fail();
    return NULL;
}

static void
without_its_cure_a_race_is_found(void **state)
{
    const struct control      *control = *state;
    const struct dst_settings *row     = row_named(control->row);
    struct steps_result        result  = { .violations = 0 }, cured;
    uint64_t                   seed    = 0;

    dst_without = control->cure;
    while (result.violations == 0 && seed < CONTROL_SEEDS)
        dst_run(row, ++seed, &result);
    dst_without = DST_ALL_CURES;
    dst_run(row, seed, &cured);
    print_message("races %s: found by seed %llu of %s: %s\n", control->races, (unsigned long long)seed,
                  row->name, result.violation);
    assert_true(result.violations > 0);
    assert_int_equal(cured.violations, 0); /* it is the cure that was missing, and nothing else */
}

int
main(void)
{
    struct CMUnitTest tests[NEAR_COUNT_OF(rows) + NEAR_COUNT_OF(controls) + 1];
    static char       names[NEAR_COUNT_OF(controls)][80];
    size_t            n = 0;

    if (TEST_UNDER_TSAN)
        return 77; /* one thread, whose stacks ThreadSanitizer would not know */
    mallopt(M_MMAP_THRESHOLD, LARGE);
    mallopt(M_TRIM_THRESHOLD, KEPT);
    tests[n++] = (struct CMUnitTest)cmocka_unit_test(a_seed_is_a_schedule);
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++)
        tests[n++] = (struct CMUnitTest){ rows[i].name, no_promise_is_broken, NULL, NULL,
                                          (void *)(uintptr_t)&rows[i] };
    for (size_t i = 0; i < NEAR_COUNT_OF(controls); i++) {
        snprintf(names[i], sizeof(names[i]), "control_%s_over_%s", controls[i].races, controls[i].row);
        tests[n++] = (struct CMUnitTest){ names[i], without_its_cure_a_race_is_found, NULL, NULL,
                                          (void *)(uintptr_t)&controls[i] };
    }
    if (getenv("NEAR_TEST_ROWS") != NULL)
        cmocka_set_test_filter(getenv("NEAR_TEST_ROWS"));
    return TEST_MAIN(tests, NULL, NULL);
}
