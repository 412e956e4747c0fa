/* What becomes of the figures of a benchmark's rounds.  All of it puts the caller's array into order. */
#ifndef BENCH_MEDIAN_H
#define BENCH_MEDIAN_H

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

static inline int
by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

struct spread {
    double middle, least, most;
};

/* NAN of nothing. */
static inline struct spread
spread_of(double *values, size_t n)
{
    if (n == 0)
        return (struct spread){ NAN, NAN, NAN };
    qsort(values, n, sizeof(*values), by_value);
    return (struct spread){ (values[(n - 1) / 2] + values[n / 2]) / 2, values[0], values[n - 1] };
}

static inline double
median(double *values, size_t n)
{
    return spread_of(values, n).middle;
}

#endif
