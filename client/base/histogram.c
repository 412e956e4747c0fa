/* See histogram.h. */
#include "base/histogram.h"

#include <pthread.h>
#include <stdlib.h>

#define LINEAR (1u << NEAR__HISTOGRAM_BITS)

/* By value - 1, so that upper bounds belong to their buckets. */
size_t
near__histogram_index(int64_t ns)
{
    uint64_t value = ns > 0 ? (uint64_t)ns - 1 : 0;
    unsigned power;

    if (value < LINEAR)
        return value;
    power = 63 - (unsigned)__builtin_clzll(value);
    if (power >= NEAR__HISTOGRAM_TOP)
        return NEAR__HISTOGRAM_CELLS - 1;
    return ((size_t)(power - NEAR__HISTOGRAM_BITS + 1) << NEAR__HISTOGRAM_BITS) |
           ((value >> (power - NEAR__HISTOGRAM_BITS)) & (LINEAR - 1));
}

int64_t
near__histogram_upper(size_t index)
{
    size_t octave = index >> NEAR__HISTOGRAM_BITS, within = index & (LINEAR - 1);

    if (octave == 0)
        return (int64_t)within + 1;
    return (int64_t)((LINEAR + within + 1) << (octave - 1));
}

static struct near__histogram_row *
row_of(struct near__histogram *histogram)
{
    /* a thread's identity is the address of its control block: page-aligned */
    size_t                      at   = ((uintptr_t)pthread_self() >> 12) % NEAR__HISTOGRAM_SHARDS;
    struct near__histogram_row *none = NULL, *row;

    /* acquire: pairs with the release below, the row is zeroed */
    row = atomic_load_explicit(&histogram->rows[at], memory_order_acquire);
    if (row != NULL)
        return row;
    row = calloc(1, sizeof(*row));
    if (row == NULL)
        return NULL;
    if (atomic_compare_exchange_strong_explicit(&histogram->rows[at], &none, row, memory_order_acq_rel,
                                                memory_order_acquire))
        return row;
    free(row);
    return none;
}

void
near__histogram_record(struct near__histogram *histogram, int64_t ns)
{
    struct near__histogram_row *row = row_of(histogram);

    if (row == NULL)
        return;
    atomic_fetch_add_explicit(&row->cells[near__histogram_index(ns)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&row->sum, ns > 0 ? (uint64_t)ns : 0, memory_order_relaxed);
}

void
near__histogram_read(const struct near__histogram *histogram, struct near__histogram_sums *sums)
{
    for (size_t i = 0; i < NEAR__HISTOGRAM_SHARDS; i++) {
        const struct near__histogram_row *row =
            atomic_load_explicit(&histogram->rows[i], memory_order_acquire); /* as in row_of() */

        for (size_t j = 0; row != NULL && j < NEAR__HISTOGRAM_CELLS; j++) {
            uint64_t n = atomic_load_explicit(&row->cells[j], memory_order_relaxed);

            sums->cells[j] += n;
            sums->count += n;
        }
        if (row != NULL)
            sums->sum += atomic_load_explicit(&row->sum, memory_order_relaxed);
    }
}

void
near__histogram_move(struct near__histogram *to, struct near__histogram *from)
{
    struct near__histogram_row *target = NULL;

    for (size_t i = 0; i < NEAR__HISTOGRAM_SHARDS; i++) {
        struct near__histogram_row *row = atomic_load_explicit(&from->rows[i], memory_order_acquire);

        if (row != NULL && target == NULL)
            target = row_of(to);
        if (row == NULL || target == NULL)
            continue;
        for (size_t j = 0; j < NEAR__HISTOGRAM_CELLS; j++) {
            uint64_t n = atomic_exchange_explicit(&row->cells[j], 0, memory_order_relaxed);

            if (n != 0)
                atomic_fetch_add_explicit(&target->cells[j], n, memory_order_relaxed);
        }
        atomic_fetch_add_explicit(&target->sum, atomic_exchange_explicit(&row->sum, 0, memory_order_relaxed),
                                  memory_order_relaxed);
    }
}

void
near__histogram_fini(struct near__histogram *histogram)
{
    for (size_t i = 0; i < NEAR__HISTOGRAM_SHARDS; i++) {
        free(atomic_load_explicit(&histogram->rows[i], memory_order_acquire));
        atomic_store_explicit(&histogram->rows[i], NULL, memory_order_relaxed);
    }
}

uint64_t
near__histogram_up_to(const struct near__histogram_sums *sums, unsigned power)
{
    uint64_t n = 0;

    for (size_t i = 0; i < NEAR__HISTOGRAM_CELLS && near__histogram_upper(i) <= INT64_C(1) << power; i++)
        n += sums->cells[i];
    return n;
}

double
near__histogram_quantile(const struct near__histogram_sums *sums, double share)
{
    double   wanted = share * (double)sums->count;
    uint64_t seen   = 0;
    size_t   last   = 0;

    if (sums->count == 0)
        return 0;
    for (size_t i = 0; i < NEAR__HISTOGRAM_CELLS; i++) {
        if (sums->cells[i] == 0)
            continue;
        seen += sums->cells[i];
        last = i;
        if ((double)seen >= wanted)
            break;
    }
    if (last < LINEAR) /* one value each */
        return (double)near__histogram_upper(last);
    return ((double)near__histogram_upper(last - 1) + (double)near__histogram_upper(last)) / 2;
}
