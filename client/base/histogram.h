/*
 * Histograms of durations: log-linear buckets, 32 to each power of two, so that a value read out differs from the one recorded by at
 * most 1/64 (1.6 %).  The idea is that of HdrHistogram (G. Tene) and of DDSketch (Masson, Rim, Lee, VLDB 2019, section 2): a bound on
 * the relative error, whatever the distribution.
 *
 * Values are nanoseconds.  Bucket i holds (lower, upper], so that the powers of two are exact bounds.  Below 32 ns each value has a
 * bucket of its own; what is beyond 2^42 ns (73 minutes) counts as that.
 *
 * Threads: any.  Cells are spread over a few rows by thread, each made when it is first needed (10 KiB; SHARDS of them at most), and
 * counted in by relaxed additions: a count orders nothing.  Without memory for a row the value is not counted.  A reader sums, and sees
 * each recorded value once or not yet.
 */
#ifndef NEAR_BASE_HISTOGRAM_H
#define NEAR_BASE_HISTOGRAM_H

#include "base/base.h"

#include <stdatomic.h>

enum {
    NEAR__HISTOGRAM_BITS  = 5, /* log2 of the buckets of a power of two */
    NEAR__HISTOGRAM_TOP   = 42,
    NEAR__HISTOGRAM_CELLS = (NEAR__HISTOGRAM_TOP - NEAR__HISTOGRAM_BITS + 1) << NEAR__HISTOGRAM_BITS,
    NEAR__HISTOGRAM_SHARDS =
        4 /* more threads than that seldom record at the same moment: what is timed takes long */
};

struct near__histogram_row {
    _Atomic uint64_t sum; /* ns, modulo 2^64: 584 years of them */
    _Atomic uint64_t cells[NEAR__HISTOGRAM_CELLS];
};

/* All zero is an empty one. */
struct near__histogram {
    _Atomic(struct near__histogram_row *) rows[NEAR__HISTOGRAM_SHARDS];
};

/* What it held at one moment. */
struct near__histogram_sums {
    uint64_t count, sum;
    uint64_t cells[NEAR__HISTOGRAM_CELLS];
};

void near__histogram_record(struct near__histogram *histogram, int64_t ns);
/* Add what `histogram` holds to `sums`. */
void near__histogram_read(const struct near__histogram *histogram, struct near__histogram_sums *sums);
/* Move everything from one to the other; what is recorded meanwhile may stay. */
void near__histogram_move(struct near__histogram *to, struct near__histogram *from);
/* Nobody records any more. */
void near__histogram_fini(struct near__histogram *histogram);

/* How many values were at most 2^power ns: exact. */
uint64_t near__histogram_up_to(const struct near__histogram_sums *sums, unsigned power);
/* The value below which `share` (0 to 1) of all values lie, in ns, the middle of its bucket; 0: there are none. */
double near__histogram_quantile(const struct near__histogram_sums *sums, double share);

/* The bucket of a value, and its bounds: (lower, upper]. */
size_t  near__histogram_index(int64_t ns);
int64_t near__histogram_upper(size_t index);

#endif
