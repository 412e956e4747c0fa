/* What every test program starts with: cmocka's prerequisites (rule K1), the harness, and a main that returns 0 or 1 (K3). */
#ifndef TESTS_HARNESS_TEST_H
#define TESTS_HARNESS_TEST_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"

#ifndef TEST_NAME
#define TEST_NAME program_invocation_short_name
#endif

/* Run a group; the program's exit status.  Reaps servers, and turns any count of failures, a failed group set-up or tear-down into 1. */
#define TEST_MAIN(tests, setup, teardown)                                                                    \
    test_finish(cmocka_run_group_tests_name(TEST_NAME, tests, setup, test_watch_teardown(teardown)))
int test_finish(int failures);
/* cmocka prints a failing group tear-down and then forgets it: this one remembers, for test_finish(). */
CMFixtureFunction test_watch_teardown(CMFixtureFunction teardown);

/* `n` scaled by NEAR_TEST_SCALE (a percentage, default 100), at least 1: for counts of rounds, never for bounds. */
size_t test_scale(size_t n);
/* Factor for time bounds: 1, or more under a sanitizer or valgrind; NEAR_TEST_SLACK multiplies it. */
unsigned test_slack(void);
/* Wait until `done(ctx)` or `ms` have passed; polls every millisecond.  Returns done's last word. */
int     test_wait_for(int (*done)(void *ctx), void *ctx, int64_t ms);
int64_t test_now_ms(void);

/* ThreadSanitizer's runtime may hang in a child that was forked while other threads were inside it: such tests fork alone. */
#ifdef __SANITIZE_THREAD__
#define TEST_UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_UNDER_TSAN 1
#endif
#endif
#ifndef TEST_UNDER_TSAN
#define TEST_UNDER_TSAN 0
#endif

/* A clock moved by hand: both scales advance together; the wall clock reads 1 700 000 000 000 ms at now = 0. */
struct test_clock {
    struct near__clock clock; /* hand out &clock.clock */
    _Atomic int64_t    now;   /* ns */
};
void test_clock_init(struct test_clock *clock, int64_t now);
void test_clock_advance(struct test_clock *clock, int64_t ms);

/* A deterministic random sequence (splitmix64) from *state. */
uint64_t test_random(uint64_t *state);

#endif
