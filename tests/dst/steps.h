/*
 * A scheduler that decides everything: tasks are coroutines of one thread, and who goes on at each shared step is drawn from a seed.
 *
 * Linked in front of the library by --wrap: ranked locks, condition waits, futexes, threads, sleeps, clocks and random bytes of the
 * code under test are these.  So no hook is in the library, which is the one that is shipped, and a seed is a schedule: the same seed
 * gives the same steps (steps_digest() says so).
 *
 * A step is taken before a lock, after an unlock, at every look at a clock, at every wait, and wherever a fake server says
 * step_point().  What runs between two of these is one step: plain loads and stores of memory are not reordered or interrupted here
 * (ThreadSanitizer and unit/test_l1_stress look there).
 *
 * Everything belongs to the one thread.  Asserts do not: a broken promise is reported by steps_violation() and read when the run is
 * over.
 */
#ifndef TESTS_DST_STEPS_H
#define TESTS_DST_STEPS_H

#include "base/clock.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STEPS_TASKS  64
#define STEPS_MOST   400000 /* a run with more is one that does not end */
#define STEPS_NOBODY 0u     /* the group of tasks that no client owns */

struct steps_result {
    char     violation[256]; /* the first one; empty: none */
    unsigned violations;
    uint64_t steps, switches, digest;
    int64_t  ended; /* virtual time that passed, ns */
    bool     hung;  /* everybody waits for somebody, or it does not end: the world is left as it lies */
};

/* Run `body` and all tasks that come of it under `seed`, until `body` returns. */
void steps_run(uint64_t seed, void (*body)(void *ctx), void *ctx, struct steps_result *result);

/* Inside a run. */
void     step_point(void);
void     step_spawn(void (*run)(void *ctx), void *ctx, unsigned group);
void     step_sleep(int64_t ns);
bool     step_wait(const void *channel, int64_t deadline); /* false: the deadline has come */
void     step_wake(const void *channel);
int64_t  step_now(void); /* without being a step */
void     step_jump(int64_t ns);
uint64_t step_random(uint64_t below);
unsigned step_self(void);                            /* which task runs: below STEPS_TASKS */
unsigned step_group(void);                           /* of the task that runs; new threads inherit it */
void     step_enter(unsigned group);                 /* from now on */
void     step_freeze(unsigned group, int64_t until); /* as SIGSTOP would: none of its tasks runs before */
void     step_calm(bool calm); /* no switches but where somebody waits: for setting up and tearing down */
void     steps_violation(const char *format, ...) NEAR_PRINTF(1, 2);

bool    steps_running(void);
int64_t steps_real_ms(void); /* for time budgets */

#endif
