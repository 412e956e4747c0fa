/* See early.h. */
#include "early.h"

#include <math.h>

#include "base/hash.h"

#define SHARE        4  /* the lead is at most ttl / SHARE */
#define LONGEST_DRAW 37 /* -ln(2^-53), rounded up: no draw is longer than this many beta * cost */

void
near__early_init(near_cache *cache)
{
    int64_t ttl = cache->settings.ttl != 0 ? cache->settings.ttl : cache->max_ttl;

    cache->early_reach = cache->settings.early_refresh_beta * LONGEST_DRAW; /* thousandths times us are ns */
    cache->early_most  = ttl / SHARE;
}

/* xorshift64* (Vigna 2016) per thread: no lock, no system call after the first. */
double
near__random_unit(void)
{
    static __thread uint64_t state;

    while (state == 0)
        if (!near__random(&state, sizeof(state)))
            state = (uint64_t)near__now(&near__clock_system) | 1;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (double)(((state * UINT64_C(0x2545F4914F6CDD1D)) >> 11) + 1) * 0x1p-53;
}

int64_t
near__early_draw(uint32_t cost_us, int64_t beta, double u)
{
    return (int64_t)(-(double)cost_us * (double)beta * log(u)); /* us times thousandths are ns */
}

int64_t
near__early_lead(const near_cache *cache, int64_t now, int64_t end, uint32_t cost_us)
{
    int64_t lead = near__early_draw(cost_us, cache->settings.early_refresh_beta, near__random_unit());

    if (lead > cache->early_most)
        lead = cache->early_most;
    return lead > 0 && now + lead >= end ? lead : 0;
}

uint32_t
near__early_cost(uint32_t measured_us, uint32_t before_us, int64_t ttl)
{
    uint64_t cost = before_us != 0 ? (3 * (uint64_t)before_us + measured_us) / 4 : measured_us;
    uint64_t most = ttl != 0 ? (uint64_t)ttl / 1000 / SHARE : UINT32_MAX;

    if (cost > most)
        cost = most;
    return cost > UINT32_MAX ? UINT32_MAX : (uint32_t)cost;
}
