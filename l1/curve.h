/*
 * The hit-rate curve: how often would this L1 hit with half, twice and four times its memory?  Ghosts of these sizes, without values, are
 * asked for some of the keys, chosen by their hashes, and are smaller by the same factor: C. Waldspurger, N. Park, A. Garthwaite, I. Ahmad,
 * "Efficient MRC Construction with SHARDS", FAST'15 (sampling, bounded size, adjustment); run by L1's own policies as in C. Waldspurger, T.
 * Saemundsson, I. Ahmad, N. Park, "Cache Modeling and Optimization using Miniature Simulations", ATC'17.
 *
 * Hits cost nothing where nothing happens: L1 reports only those that changed an entry's mark, and L1's own count of all hits tells how
 * many went unreported.  These would be hits in the ghosts as well (what is used again before a mark has aged is used soon), and count so.
 * That also is what SHARDS does about a few very hot keys that a sample has or lacks.  For lru and adaptive it is exact to some tenths of a
 * point; for policies whose marks know no time, half the memory may look up to five points better or worse than it is.
 *
 * What expires ends in the ghosts as well, at the time as L1 knows it without a clock (upkeep's, or what is told to readers): TTLs that are
 * not much longer than that is apart look a little better than they are.
 *
 * Bounded: the ghosts follow SAMPLE of the entries of L1 at most, and in a second no more than so many requests that they take a hundredth
 * of a core; if there are more, fewer keys are followed.
 *
 * One lock, a leaf that readers only try: who finds it taken loses his sample, and of lost misses there is a count.  Allocation happens in
 * near__curve_new() and near__curve_upkeep(); without memory the curve is not known, and that is all.
 */
#ifndef NEAR_L1_CURVE_H
#define NEAR_L1_CURVE_H

#include "base/base.h"

#include <stdatomic.h>

/* Half, once, twice and four times the memory. */
#define NEAR__CURVE_POINTS 4
extern const double near__curve_factors[NEAR__CURVE_POINTS];

struct near__curve {
    _Atomic uint32_t limit; /* elements below it are followed; 0: none.  Relaxed: it orders nothing */
    /* the rest is the implementation's */
};

struct near__curve_levels {
    uint64_t hits; /* that L1 has counted since its beginning */
    size_t   entries, bytes;
    size_t   max_entries, max_bytes; /* 0: no such bound */
    int64_t  now;
};

struct near__curve_answer {
    double   share;    /* of the keys that are followed; 0: not known yet */
    double   requests; /* that the figures stand for */
    double   ratio[NEAR__CURVE_POINTS];
    size_t   entries; /* of L1 when it is full */
    size_t   bytes;   /* of memory that the ghosts take */
    uint64_t samples; /* since the beginning */
};

/* NEAR_OK, NEAR_ERR_NOMEM.  max_entries 0: the size is found out by upkeep. */
near_status near__curve_new(struct near__curve **curve, const char *policy, size_t max_entries);
void        near__curve_free(struct near__curve **curve);

/* Whether this key is followed. */
static inline bool
near__curve_follows(const struct near__curve *curve, uint64_t hash)
{
    return (uint32_t)(hash >> 32) < atomic_load_explicit(&curve->limit, memory_order_relaxed);
}

/* Of keys that are followed only.  A request: L1 had it, or not. */
void near__curve_note(struct near__curve *curve, uint64_t hash, bool hit, int64_t now);
/* L1 got a value that is good until then. */
void near__curve_filled(struct near__curve *curve, uint64_t hash, int64_t until);
/* It was invalidated or removed. */
void near__curve_drop(struct near__curve *curve, uint64_t hash);
/* Everything was. */
void near__curve_clear(struct near__curve *curve);

/* From time to time, from one thread. */
void near__curve_upkeep(struct near__curve *curve, const struct near__curve_levels *levels);
void near__curve_read(struct near__curve *curve, uint64_t hits, struct near__curve_answer *answer);

#endif
