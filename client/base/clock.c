#include "base/clock.h"

#include <time.h>

static int64_t
system_now(void *ctx)
{
    struct timespec ts;

    (void)ctx;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int64_t
system_wall_ms(void *ctx)
{
    struct timespec ts;

    (void)ctx;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

const struct near__clock near__clock_system = { system_now, system_wall_ms, NULL };

struct timespec
near__monotonic_after(int64_t duration)
{
    struct timespec ts;
    int64_t         until;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    until = near__time_after((int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec, duration);
    return (struct timespec){ .tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000) };
}

int
near__poll_timeout(int64_t now, int64_t deadline)
{
    int64_t left = deadline - now;

    if (left <= 0)
        return 0;
    if (left > 3600 * 1000 * NEAR_MS)
        return 3600 * 1000;
    return (int)((left + NEAR_MS - 1) / NEAR_MS);
}
