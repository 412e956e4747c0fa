/* The hit-rate curve of a cache in the metrics' texts; near_curve_get() is public. */
#ifndef NEAR_CLIENT_CURVE_H
#define NEAR_CLIENT_CURVE_H

#include "nearcache.h"

#include <stdbool.h>
#include <stdio.h>

#define NEAR__CURVE_METRIC "nearcache_l1_hit_ratio"
#define NEAR__CURVE_HELP                                                                                     \
    "with l1.curve = yes: the part of requests that L1 would answer with 0.5x, 1x, 2x and 4x its memory "    \
    "(label memory), estimated by ghosts"

#define NEAR__CURVE_SIZES 4
extern const struct near__curve_size {
    const char *label;
    double (*ratio)(const near_curve *curve);
} near__curve_sizes[NEAR__CURVE_SIZES];

/* Whether there is something to tell. */
bool near__curve_known(near_cache *cache, near_curve *curve);
/* A number from 0 to 1, with six places and a point in every locale. */
void near__curve_print(FILE *out, double number);

#endif
