/*
 * Victims by their marks alone, for policies that keep no queue (lru, lfu): 0 bytes an entry.
 *
 * A policy ranks marks, 0 to 255, the higher the sooner to leave.  A batch is the entries of one region of the table (all of it, or
 * 4096 homes in turn) that rank highest, about 3 % of them, in that order.  Handed out one by one; those that were used since (their
 * mark has changed) or are gone are passed over.
 *
 * If uses only ever lower a rank, what is not in the batch ranks no higher than all in it.  The rank that a batch reaches down to is
 * guessed from an eighth of the region; a batch that overflows is taken again with a rank found by counting.
 *
 * Shard's lock.
 */
#ifndef NEAR_L1_BATCH_H
#define NEAR_L1_BATCH_H

#include "l1/table.h"

struct near__batch_row {
    uint32_t home;
    uint32_t when; /* the mark; in exact tables lru keeps stamps here */
    uint16_t tag;
    uint8_t  rank;
};

struct near__batch {
    struct near__batch_row *rows; /* `room` in order, and as many to sort from */
    uint32_t                room, count, next;
    uint32_t                region; /* first home of the next one */
    bool                    stamps; /* `when` is a stamp, not a mark */
};

enum {
    NEAR__BATCH_SHARE =
        32 /* a batch is about 1/32: few of it are used meanwhile, and 32 slots are looked at a victim */
};

struct near__ranks {
    uint8_t of[256]; /* by mark */
    bool    ages;    /* of[mark] is (uint8_t)(tick - mark): eight at a time */
    uint8_t tick;
};

void near__batch_fini(struct near__batch *batch);
/* Room for so many rows; false: no memory, and there was no room at all. */
bool near__batch_room(struct near__batch *batch, uint32_t room);
/* The next batch; it may be empty. */
void near__batch_take(struct near__batch *batch, const struct near__table *table,
                      const struct near__ranks *ranks);
/* The next entry of the batch that has the mark (in exact tables: the stamp) it had.  False: the batch is used up. */
bool   near__batch_next(struct near__batch *batch, const struct near__table *table, struct near__place *place,
                        uint32_t *element);
size_t near__batch_bytes(const struct near__batch *batch);

/* The occupied lanes of a bucket, a bit each. */
static inline unsigned
near__bucket_occupied(const struct near__bucket *bucket)
{
#if defined(__SSE2__) && !NEAR__TSAN
    const __m128i none = _mm_setzero_si128();
    __m128i       first, last;

    /* as in near__bucket_match(): each reference is whole */
    __asm__ volatile("movdqa %1, %0" : "=x"(first) : "m"(*(const __m128i *)(const void *)&bucket->refs[0]));
    __asm__ volatile("movdqa %1, %0" : "=x"(last) : "m"(*(const __m128i *)(const void *)&bucket->refs[4]));
    first = _mm_packs_epi32(_mm_cmpeq_epi32(first, none), _mm_cmpeq_epi32(last, none));
    return ~(unsigned)_mm_movemask_epi8(_mm_packs_epi16(first, none)) & 0xff;
#else
    unsigned lanes = 0;

    for (unsigned lane = 0; lane < NEAR__LANES; lane++)
        lanes |= (unsigned)(atomic_load_explicit(&bucket->refs[lane], memory_order_relaxed) != 0) << lane;
    return lanes;
#endif
}

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
