/*
 * Least recently used, by the tick of each entry's last use (its mark) and no list: 0 bytes an entry.
 *
 * The tick moves once for every 200th part of the entries in new keys.  Nothing unused outlives as many new keys as there are
 * entries, so in a full cache ages stay about 200 of the 256 that a byte can tell; where they would not (few victims, because keys
 * are removed, or a cache that grows), a sweep that goes round once in 32 ticks holds ages above 216 back to 216.
 *
 * Victims come in batches: the entries of one region of the table (all of it, or 4096 homes in turn) that are older than some age,
 * about 3 % of them, oldest first; those used since or gone are passed over.  What is not in the batch is younger than all in it,
 * and uses only make younger, so the order is that of LRU but for entries of one tick and, with several regions, for how evenly
 * their keys are spread.  The age is guessed from an eighth of the region; a batch that overflows is taken again with an age found by
 * counting.
 *
 * An exact table has a stamp of 32 bits a slot instead: the same batches, the exact order (hit counts are those of a list).
 */
#include "l1/policy.h"
#include "l1/ring.h"

#include <stdlib.h>
#include <string.h>

enum {
    TICKS       = 200, /* in the life of an unused entry; the more, the finer the order, and 256 is the end */
    AGE_HELD    = 216, /* and at most 32 more until the sweep comes round: 248, still no wrap */
    SWEEP_TICKS = 32,
    REGION      = 4096, /* homes: some 30 000 entries, 256 KiB, a scan of some ten microseconds */
    BATCH_SHARE =
        32, /* a batch is about 1/32: small enough that few of it are used meanwhile, and 32 slots looked at a victim */
    SAMPLE = 8, /* every eighth home is looked at to guess the age ... */
    SAMPLE_MIN =
        512 /* ... in regions with more homes than this, where the guess rests on 400 entries and more */
};

struct old {
    uint32_t home;
    uint32_t when; /* exact: the stamp, else: the mark */
    uint16_t tag;
    uint8_t  age; /* while it is sorted */
};

struct lru {
    struct old *batch;
    uint32_t    room, count, next;
    uint32_t    region; /* first home of the next one */
    uint32_t    fresh;  /* new keys since the tick moved */
    uint32_t    sweep;  /* home where the sweep goes on */
    uint32_t    clock;  /* exact: the stamp of the last use */
};

/* ---- looking at the marks of a whole bucket */

static unsigned
occupied(const struct near__bucket *bucket)
{
    unsigned lanes = 0;

    for (unsigned lane = 0; lane < NEAR__LANES; lane++)
        lanes |= (unsigned)(atomic_load_explicit(&bucket->refs[lane], memory_order_relaxed) != 0) << lane;
    return lanes;
}

/* The lanes whose age is `least` or more, occupied or not. */
static unsigned
aged(const struct near__bucket *bucket, uint8_t tick, uint8_t least)
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

static uint8_t
mark_of(const struct near__bucket *bucket, unsigned lane)
{
    return atomic_load_explicit(&bucket->marks[lane], memory_order_relaxed);
}

static uint8_t
tick_of(const struct near__table *table)
{
    return atomic_load_explicit(&table->tick, memory_order_relaxed); /* only we move it */
}

static struct near__bucket *
home_at(const struct near__table *table, uint32_t home)
{
    struct near__bucket *bucket = near__table_bucket(table, home);

    return near__bucket_stale(table, bucket) ? NULL : bucket;
}

/* ---- a batch by ticks */

struct region {
    uint32_t first, end;
};

static struct region
next_region(struct lru *lru, const struct near__table *table)
{
    uint32_t      homes = near__table_homes(table);
    struct region region;

    if (lru->region >= homes)
        lru->region = 0;
    region.first = lru->region;
    region.end   = homes - region.first <= REGION + REGION / 2 ? homes : region.first + REGION;
    lru->region  = region.end;
    return region;
}

/* How many entries there are of each age, in every `step`th home. */
static uint32_t
count_ages(const struct near__table *table, struct region region, uint32_t step, uint32_t ages[256])
{
    uint8_t  tick  = tick_of(table);
    uint32_t count = 0;

    memset(ages, 0, 256 * sizeof(*ages));
    for (uint32_t home = region.first; home < region.end; home += step) {
        for (struct near__bucket *b = home_at(table, home); b != NULL; b = near__table_after(table, b)) {
            for (unsigned lanes = occupied(b); lanes != 0; lanes &= lanes - 1) {
                ages[(uint8_t)(tick - mark_of(b, (unsigned)__builtin_ctz(lanes)))]++;
                count++;
            }
        }
    }
    return count;
}

/* The greatest age that at least `wanted` entries have reached. */
static unsigned
age_for(const uint32_t ages[256], uint32_t wanted)
{
    uint32_t count = 0;

    for (unsigned age = 255; age > 0; age--)
        if ((count += ages[age]) >= wanted)
            return age;
    return 0;
}

/* Collects what is of age `least` or more, but of `least` itself at most `quota`.  False: there was not enough room. */
static bool
collect(struct lru *lru, const struct near__table *table, struct region region, uint8_t least, uint32_t quota)
{
    uint8_t tick = tick_of(table), mark, age;

    lru->count = 0;
    for (uint32_t home = region.first; home < region.end; home++) {
        for (struct near__bucket *b = home_at(table, home); b != NULL; b = near__table_after(table, b)) {
            unsigned lanes = aged(b, tick, least);
            if (lanes == 0)
                continue;
            for (lanes &= occupied(b); lanes != 0; lanes &= lanes - 1) {
                unsigned lane = (unsigned)__builtin_ctz(lanes);
                mark          = mark_of(b, lane);
                age           = (uint8_t)(tick - mark);
                if (age < least || (age == least && quota == 0))
                    continue;
                if (lru->count == lru->room)
                    return false;
                quota -= age == least;
                lru->batch[lru->count++] =
                    (struct old){ home, mark,
                                  atomic_load_explicit(&b->tags.lanes[lane], memory_order_relaxed), age };
            }
        }
    }
    return true;
}

static int
by_age(const void *a, const void *b)
{
    const struct old *one = a, *two = b;

    return (one->age < two->age) - (one->age > two->age);
}

static int
by_stamp(const void *a, const void *b)
{
    const struct old *one = a, *two = b;

    return (one->when > two->when) - (one->when < two->when);
}

static bool
batch_room(struct lru *lru, uint32_t room)
{
    struct old *batch;

    if (room <= lru->room)
        return true;
    batch = realloc(lru->batch, room * sizeof(*batch));
    if (batch == NULL)
        return lru->room != 0;
    lru->batch = batch;
    lru->room  = room;
    return true;
}

static void
batch_by_ticks(struct lru *lru, const struct near__table *table)
{
    struct region region = next_region(lru, table);
    uint32_t      homes = region.end - region.first, step = homes > SAMPLE_MIN ? SAMPLE : 1;
    uint32_t      ages[256], wanted, exact;
    unsigned      least;

    lru->count = lru->next = 0;
    wanted                 = count_ages(table, region, step, ages) / BATCH_SHARE + 1;
    least                  = age_for(ages, wanted);
    if (!batch_room(lru, 2 * step * wanted + 16))
        return;
    if (!collect(lru, table, region, (uint8_t)least, UINT32_MAX)) {
        /* too many of one age, or a bad guess: all that is older, and as many of that age as there is room for */
        exact = 0;
        count_ages(table, region, 1, ages);
        least = age_for(ages, lru->room / 2);
        for (unsigned age = least + 1; age < 256; age++)
            exact += ages[age];
        (void)collect(lru, table, region, (uint8_t)least, exact < lru->room ? lru->room - exact : 0);
    }
    qsort(lru->batch, lru->count, sizeof(*lru->batch), by_age);
}

/* ---- a batch by stamps */

/* All entries with a stamp up to `most`, as far as there is room. */
static void
collect_stamps(struct lru *lru, const struct near__table *table, uint32_t most)
{
    for (uint32_t home = 0; home < near__table_homes(table); home++) {
        for (struct near__bucket *b = home_at(table, home); b != NULL; b = near__table_after(table, b)) {
            for (unsigned lanes = occupied(b); lanes != 0; lanes &= lanes - 1) {
                struct near__place place = { b, (unsigned)__builtin_ctz(lanes) };
                uint32_t           when  = *near__table_stamp(table, place);
                if (when <= most && lru->count < lru->room)
                    lru->batch[lru->count++] = (struct old){
                        home, when, atomic_load_explicit(&b->tags.lanes[place.lane], memory_order_relaxed), 0
                    };
            }
        }
    }
}

static void
batch_by_stamps(struct lru *lru, const struct near__table *table)
{
    uint32_t wanted = (uint32_t)(table->entries / BATCH_SHARE + 1);

    lru->count = lru->next = 0;
    if (!batch_room(lru, (uint32_t)table->entries))
        return;
    collect_stamps(lru, table, UINT32_MAX);
    qsort(lru->batch, lru->count, sizeof(*lru->batch), by_stamp);
    if (lru->count > wanted)
        lru->count = wanted;
}

/* ---- the policy */

static near_status
lru_open(struct near__order *order)
{
    struct lru *lru = calloc(1, sizeof(*lru));

    if (lru == NULL)
        return NEAR_ERR_NOMEM;
    atomic_store_explicit(&order->table->tick, 0, memory_order_relaxed);
    atomic_store_explicit(&order->table->count_mask, 0, memory_order_relaxed);
    order->state = lru;
    return NEAR_OK;
}

static void
lru_close(struct near__order *order)
{
    struct lru *lru = order->state;

    free(lru->batch);
    free(lru);
    order->state = NULL;
}

static void
lru_reset(struct near__order *order)
{
    struct lru *lru = order->state;

    lru->count = lru->next = 0;
}

/* Holds the ages of a 32nd of the homes back. */
static void
sweep(struct lru *lru, const struct near__table *table)
{
    uint32_t homes = near__table_homes(table);
    uint8_t  tick  = tick_of(table), mark;

    for (uint32_t i = 0; i < homes / SWEEP_TICKS + 1; i++) {
        lru->sweep = lru->sweep + 1 < homes ? lru->sweep + 1 : 0;
        for (struct near__bucket *b = home_at(table, lru->sweep); b != NULL;
             b                      = near__table_after(table, b)) {
            for (unsigned lanes = aged(b, tick, AGE_HELD + 1); lanes != 0; lanes &= lanes - 1) {
                /* by exchange: a use meanwhile must not be lost */
                mark = mark_of(b, (unsigned)__builtin_ctz(lanes));
                if ((uint8_t)(tick - mark) > AGE_HELD)
                    atomic_compare_exchange_strong_explicit(&b->marks[__builtin_ctz(lanes)], &mark,
                                                            (uint8_t)(tick - AGE_HELD), memory_order_relaxed,
                                                            memory_order_relaxed);
            }
        }
    }
}

static uint8_t
lru_enter(struct near__order *order, uint32_t element)
{
    struct lru         *lru     = order->state;
    struct near__table *table   = order->table;
    size_t              entries = table->capacity > table->entries ? table->capacity : table->entries;

    (void)element;
    if (++lru->fresh * (size_t)TICKS >= entries) {
        lru->fresh = 0;
        atomic_store_explicit(&table->tick, (uint8_t)(tick_of(table) + 1), memory_order_relaxed);
        sweep(lru, table);
    }
    return tick_of(table);
}

/* The entry of a batch's row, if it is there and was not used. */
static bool
still_old(const struct near__table *table, const struct old *old, struct near__place *place)
{
    struct near__bucket *bucket;

    if (old->home >= near__table_homes(table))
        return false;
    for (bucket = home_at(table, old->home); bucket != NULL; bucket = near__table_after(table, bucket)) {
        for (uint32_t match = near__bucket_match(bucket, old->tag); match != 0;
             match          = NEAR__LANE_NEXT(match)) {
            *place = (struct near__place){ bucket, NEAR__LANE(match) };
            if (near__place_ref(*place) == 0)
                continue;
            if (table->exact ? *near__table_stamp(table, *place) == old->when
                             : near__place_mark(*place) == old->when)
                return true;
        }
    }
    return false;
}

static bool
lru_victim(struct near__order *order, struct near__place *place, uint32_t *element)
{
    struct lru *lru = order->state;
    uint32_t    any = 0;

    /* Twice is enough for one region; an empty region among several is as good as impossible. */
    for (int batches = 0; batches < 3; batches++) {
        while (lru->next < lru->count) {
            const struct old *old = &lru->batch[lru->next++];
            *element              = near__table_partial(old->home, old->tag);
            if (still_old(order->table, old, place))
                return true;
        }
        if (order->table->exact)
            batch_by_stamps(lru, order->table);
        else
            batch_by_ticks(lru, order->table);
    }
    return near__table_any(order->table, &any, element, place);
}

/* Exact tables: every use, and the linking of a new entry. */
static void
lru_hit(struct near__order *order, uint32_t element, struct near__place place)
{
    struct lru *lru = order->state;

    (void)element;
    *near__table_stamp(order->table, place) = ++lru->clock;
}

static size_t
lru_bytes(const struct near__order *order)
{
    const struct lru *lru = order->state;

    return sizeof(*lru) + lru->room * sizeof(struct old);
}

const struct near__policy near__lru = {
    .name   = "lru",
    .open   = lru_open,
    .close  = lru_close,
    .enter  = lru_enter,
    .victim = lru_victim,
    .hit    = lru_hit,
    .reset  = lru_reset,
    .bytes  = lru_bytes,
};
