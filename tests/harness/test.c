#include "harness/test.h"

#include "harness/server.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WALL_AT_ZERO INT64_C(1700000000000)

static CMFixtureFunction watched;          /* the group's own tear-down */
static bool              teardown_pending; /* it has not returned 0 yet */

static int
watched_teardown(void **state)
{
    int rc = watched(state); /* a failing assert inside jumps past the next line */

    teardown_pending = rc != 0;
    return rc;
}

CMFixtureFunction
test_watch_teardown(CMFixtureFunction teardown)
{
    watched          = teardown;
    teardown_pending = teardown != NULL;
    return teardown == NULL ? NULL : watched_teardown;
}

int
test_finish(int failures)
{
    test_servers_reap();
    if (failures == 0 && teardown_pending)
        print_error("[  FAILED  ] 1 test(s), listed below:\n[  FAILED  ] the group's tear-down\n");
    if (failures == 0 && !teardown_pending)
        return 0;
    /* What a failed test left is no leak, and its threads go on: neither is to turn the failure into another one. */
    fflush(NULL);
    _exit(1);
}

/* Before main: the options of a service of the developer's would override what the tests set. */
__attribute__((constructor)) static void
forget_options(void)
{
    static const char prefix[] = "NEARCACHE_";

    for (char **at = environ; *at != NULL;) {
        char   name[128];
        size_t size = strcspn(*at, "=");

        if (strncmp(*at, prefix, sizeof(prefix) - 1) != 0 || size >= sizeof(name)) {
            at++;
            continue;
        }
        memcpy(name, *at, size);
        name[size] = '\0';
        unsetenv(name); /* the entries behind it move down to its place */
    }
}

static unsigned long
number_from_environment(const char *name, unsigned long otherwise)
{
    const char   *text = getenv(name);
    char         *end;
    unsigned long n;

    if (text == NULL || *text == '\0')
        return otherwise;
    n = strtoul(text, &end, 10);
    return *end == '\0' && n > 0 ? n : otherwise;
}

size_t
test_scale(size_t n)
{
    size_t percent = number_from_environment("NEAR_TEST_SCALE", 100);
    size_t scaled  = n / 100 * percent + n % 100 * percent / 100;

    return scaled > 0 ? scaled : 1;
}

static bool
under_valgrind(void)
{
    const char *preload = getenv("LD_PRELOAD");

    return preload != NULL && strstr(preload, "vgpreload") != NULL;
}

unsigned
test_slack(void)
{
    unsigned slack = 1;

#if defined(__SANITIZE_THREAD__)
    slack = 10;
#elif defined(__SANITIZE_ADDRESS__)
    slack = 4;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
    slack = 10;
#elif __has_feature(address_sanitizer)
    slack = 4;
#endif
#endif
    if (under_valgrind())
        slack = 20;
    return slack * (unsigned)number_from_environment("NEAR_TEST_SLACK", 1);
}

int64_t
test_now_ms(void)
{
    return near__now(&near__clock_system) / NEAR_MS;
}

int
test_wait_for(int (*done)(void *ctx), void *ctx, int64_t ms)
{
    const struct timespec pause = { 0, NEAR_MS };
    int64_t               until = test_now_ms() + ms;

    for (;;) {
        int64_t now = test_now_ms(); /* before asking: the last word is asked for after the time has passed */
        int     word = done(ctx);

        if (word || now >= until)
            return word;
        nanosleep(&pause, NULL);
    }
}

/* The time is one independent number: nobody infers other memory's state from it, so relaxed is enough. */
static int64_t
hand_now(void *ctx)
{
    return atomic_load_explicit((_Atomic int64_t *)ctx, memory_order_relaxed);
}

static int64_t
hand_wall_ms(void *ctx)
{
    return WALL_AT_ZERO + hand_now(ctx) / NEAR_MS;
}

void
test_clock_init(struct test_clock *clock, int64_t now)
{
    clock->clock = (struct near__clock){ hand_now, hand_wall_ms, &clock->now };
    atomic_init(&clock->now, now);
}

void
test_clock_advance(struct test_clock *clock, int64_t ms)
{
    atomic_fetch_add_explicit(&clock->now, ms * NEAR_MS, memory_order_relaxed);
}

uint64_t
test_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}
