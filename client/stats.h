/*
 * Counters by the table in nearcache.h.  Rows are padded and threads spread over them, so counting threads do not fight over a
 * line; a reader sums.  All accesses are relaxed: a counter orders nothing.
 */
#ifndef NEAR_CLIENT_STATS_H
#define NEAR_CLIENT_STATS_H

#include "base/base.h"

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
struct near_client;
struct near_cache;
/* Add the counters of a cache that is being closed to its client's; client->lock is held. */
void near__stats_keep(struct near_client *client, struct near_cache *cache);

#endif
