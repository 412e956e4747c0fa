/*
 * Counters and histograms by the tables in nearcache.h.  Each cache has its own; the client's hold what belongs to no cache, and what
 * caches had when they were closed.  Rows are padded and threads spread over them, so counting threads do not fight over a
 * line; a reader sums.  All accesses are relaxed: a counter orders nothing.
 */
#ifndef NEAR_CLIENT_STATS_H
#define NEAR_CLIENT_STATS_H

#include "base/histogram.h"

#include <pthread.h>
#include <stdatomic.h>

enum near__counter {
#define NEAR__COUNTER(field, kind, unit, help) NEAR__##field,
    NEAR_STATS_TABLE(NEAR__COUNTER)
#undef NEAR__COUNTER
        NEAR__COUNTERS
};

#define NEAR__COUNTER_ROWS 16
struct near__counters {
    struct {
        _Alignas(64) _Atomic uint64_t n[NEAR__COUNTERS];
    } rows[NEAR__COUNTER_ROWS];
};

static inline void
near__counters_add(const struct near__counters *counters, enum near__counter counter, uint64_t n)
{
    /* a thread's identity is the address of its control block: page-aligned, so the low bits say nothing */
    size_t row = ((uintptr_t)pthread_self() >> 12) % NEAR__COUNTER_ROWS;

    atomic_fetch_add_explicit(&((struct near__counters *)(uintptr_t)counters)->rows[row].n[counter], n,
                              memory_order_relaxed);
}

uint64_t near__counters_sum(const struct near__counters *counters, enum near__counter counter);

enum near__timing {
#define NEAR__TIMING(field, scope, help) NEAR__TIME_##field,
    NEAR_HISTOGRAM_TABLE(NEAR__TIMING)
#undef NEAR__TIMING
        NEAR__TIMINGS
};

/* The tables as data. */
struct near__counter_row {
    const char *name, *unit, *help;
    bool        grows, whole; /* a counter, not a level; of the client, not of its caches */
};
struct near__timing_row {
    const char *name, *help;
    bool        whole;
};
extern const struct near__counter_row near__counter_rows[NEAR__COUNTERS];
extern const struct near__timing_row  near__timing_rows[NEAR__TIMINGS];

struct near_client;
struct near_cache;
/* Move the counters of a cache to its client's: when it is closed (client->lock is held), and again when its last load has ended. */
void near__stats_keep(struct near_client *client, struct near_cache *cache);
void near__stats_move(struct near_client *client, struct near_cache *cache);

/* What a client and its open caches have counted: by one moment's list of caches, each with a reference. */
struct near__stats_of {
    struct near_cache *cache; /* NULL: what belongs to none */
    uint64_t           n[NEAR__COUNTERS];
};
struct near__snapshot {
    struct near_client    *client;
    size_t                 caches;
    struct near__stats_of *of; /* [0]: the client's own; the caches follow, oldest first */
};
/* NEAR_OK, NEAR_ERR_INVALID, NEAR_ERR_FORKED, NEAR_ERR_NOMEM. */
near_status near__snapshot_take(struct near__snapshot *snapshot, struct near_client *client);
void        near__snapshot_free(struct near__snapshot *snapshot);
/* The sum over all, of one counter. */
uint64_t near__snapshot_total(const struct near__snapshot *snapshot, enum near__counter counter);
/* A histogram of of[i]; SIZE_MAX: of all together.  `sums` is written anew. */
void near__snapshot_histogram(const struct near__snapshot *snapshot, size_t i, enum near__timing timing,
                              struct near__histogram_sums *sums);

#endif
