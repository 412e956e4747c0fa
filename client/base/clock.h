/*
 * Time is a parameter.  Rooms take `now` or a `struct near__clock`; tests pass a clock they move by hand.
 *
 * now()      CLOCK_BOOTTIME nanoseconds: it goes on while the machine sleeps, so TTLs and the serve gate are right after a
 *            resume.  Deadlines use it too: one scale for everything inside.
 * wall_ms()  wall clock, milliseconds since 1970: only for the expiry fields that travel in an L2 entry.
 */
#ifndef NEAR_BASE_CLOCK_H
#define NEAR_BASE_CLOCK_H

#include "base/base.h"

struct near__clock {
    int64_t (*now)(void *ctx);
    int64_t (*wall_ms)(void *ctx);
    void *ctx;
};

extern const struct near__clock near__clock_system;

static inline int64_t
near__now(const struct near__clock *clock)
{
    return clock->now(clock->ctx);
}

static inline int64_t
near__wall_ms(const struct near__clock *clock)
{
    return clock->wall_ms(clock->ctx);
}

/* `now` plus a duration in nanoseconds, never past NEAR_NEVER. */
static inline int64_t
near__time_after(int64_t now, int64_t duration)
{
    return now > 0 && duration > NEAR_NEVER - now ? NEAR_NEVER
                                                  : now + duration; /* times before the boot are negative */
}

/* `duration` from now on CLOCK_MONOTONIC, which the system's waits take where they do not take BOOTTIME. */
struct timespec near__monotonic_after(int64_t duration);

/* Milliseconds until `deadline`, rounded up, for poll(2): 0 when it has passed, capped at an hour. */
int near__poll_timeout(int64_t now, int64_t deadline);

#endif
