/*
 * Early refresh by the XFetch law (Vattani, Chierichetti, Lowenstein, PVLDB 8(8), 2015): a read refreshes the value when
 *
 *     now + lead >= end,   lead = -cost * beta * ln(u),   u uniform on (0, 1]
 *
 * so with t left a read refreshes with probability exp(-t / (beta * cost)): rarely long before the end, surely at it.  `cost` is the
 * measured time of the last loads, smoothed and kept with the entry.  The lead is at most a quarter of `ttl`.
 *
 * A value that is farther from its end than any lead can be costs a hit one multiplication and one comparison.
 */
#ifndef NEAR_CLIENT_EARLY_H
#define NEAR_CLIENT_EARLY_H

#include "client.h"

/* Set the cache's early_reach and early_most from its settings. */
void near__early_init(near_cache *cache);

/* Whether the end is near enough to draw lots at all. */
static inline bool
near__early_may(const near_cache *cache, int64_t now, int64_t end, uint32_t cost_us)
{
    return now >= end - (int64_t)cost_us * cache->early_reach;
}

/* Draw: the lead in ns if it reaches the end, else 0. */
int64_t near__early_lead(const near_cache *cache, int64_t now, int64_t end, uint32_t cost_us);

/* The law alone: the lead in ns for a cost in us, beta in thousandths and u in (0, 1]. */
int64_t near__early_draw(uint32_t cost_us, int64_t beta, double u);
/* Uniform on (0, 1], 53 bits. */
double near__random_unit(void);

/* The cost to keep with an entry: `measured`, smoothed by what was known, and never so much that refreshing would not end. */
uint32_t near__early_cost(uint32_t measured_us, uint32_t before_us, int64_t ttl);

#endif
