/*
 * Victims by their marks alone, for policies that keep no queue (lru, lfu): less than a third of a byte an entry.
 *
 * A policy ranks marks, 0 to 255, the higher the sooner to leave.  A batch is the entries of one region of the table (all of it, or
 * up to 2048 homes in turn) that rank highest, about a 16th of them, in that order as far as 32 levels tell it.  Handed out one by
 * one; those that rank lower by now, because they were used, or are gone are passed over.
 *
 * If uses only ever lower a rank, what is not in the batch ranks no higher than all in it.  The rank that a batch reaches down to is
 * that of the one before, or one more or less if that one had too many or too few; where that is far off it is found by counting.
 *
 * Shard's lock.
 */
#ifndef NEAR_L1_BATCH_H
#define NEAR_L1_BATCH_H

#include "l1/table.h"

/* How marks are ranked at a tick of the table's: NULL, by their age, (uint8_t)(tick - mark), which is asked for eight lanes at a time. */
typedef uint8_t (*near__rank_fn)(uint8_t mark, uint8_t tick);

struct near__batch {
    uint32_t *rows; /* `room`: home in the region (11 bits), level (5), tag (16) */
    uint32_t  room, count, next;
    uint32_t  first;  /* home of their region */
    uint32_t  region; /* first home of the next one */
    uint8_t   tick;   /* when it was taken */
    uint8_t   shift;  /* log2 of the ranks in a level */
    uint8_t   least;  /* the lowest rank that was taken ... */
    uint8_t   guess;  /* ... and for the next batch ... */
    bool      known;  /* ... if it is known */
    bool      whole;  /* the region was looked at to its end */
    uint8_t   top;    /* the highest that was met */
    uint8_t
        most; /* set by the policy: whatever ranks so is taken, for it may be held back to there; 0: nothing is */
};

enum {
    NEAR__BATCH_SHARE =
        16 /* a batch is about 1/16: few of it are used meanwhile, and 16 slots are looked at a victim */
};

void near__batch_fini(struct near__batch *batch);
/* The next batch; it may be empty. */
void near__batch_take(struct near__batch *batch, const struct near__table *table, near__rank_fn rank);
/* The next entry of the batch that ranks no lower than it did.  False: the batch is used up. */
bool   near__batch_next(struct near__batch *batch, const struct near__table *table, near__rank_fn rank,
                        struct near__place *place, uint32_t *element);
size_t near__batch_bytes(const struct near__batch *batch);

/* The lanes whose mark is `least` or more ticks old, occupied or not. */
static inline unsigned
near__bucket_aged(const struct near__bucket *bucket, uint8_t tick, uint8_t least)
{
    uint64_t marks = atomic_load_explicit(&bucket->mark_word, memory_order_relaxed);
#if defined(__SSE2__)
    __m128i ages = _mm_sub_epi8(_mm_set1_epi8((char)tick), _mm_cvtsi64_si128((long long)marks));
    __m128i over = _mm_cmpeq_epi8(_mm_max_epu8(ages, _mm_set1_epi8((char)least)), ages);
    return (unsigned)_mm_movemask_epi8(over) & 0xff;
#else
    unsigned lanes = 0;
    for (unsigned lane = 0; lane < NEAR__LANES; lane++)
        lanes |= (unsigned)((uint8_t)(tick - (uint8_t)(marks >> 8 * lane)) >= least) << lane;
    return lanes;
#endif
}

/* The first bucket of a home, NULL if it is of an old generation. */
static inline struct near__bucket *
near__table_current(const struct near__table *table, uint32_t home)
{
    struct near__bucket *bucket = near__table_bucket(table, home);

    return near__bucket_stale(table, bucket) ? NULL : bucket;
}

#endif
