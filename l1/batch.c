/* Batches of victims (see the header). */
#include "l1/batch.h"

#include <stdlib.h>
#include <string.h>

enum {
    REGION =
        2048, /* homes at most: some 15 000 entries, 128 KiB, a scan of some microseconds; 11 bits of a row */
    HOME_SHIFT = 21,
    LEVELS     = 32, /* of ranks in a batch: 5 bits */
    SAMPLE     = 8,  /* every eighth home is counted ... */
    SAMPLE_MIN = 256 /* ... in regions with more homes than this, where that is 200 entries and more */
};

struct region {
    uint32_t first, end;
};

/* The table, and how it is ranked now. */
struct ranking {
    const struct near__table *table;
    near__rank_fn             rank;
    uint8_t                   tick;
};

static struct ranking
ranking_of(const struct near__table *table, near__rank_fn rank)
{
    return (struct ranking){ table, rank, atomic_load_explicit(&table->tick, memory_order_relaxed) };
}

static inline uint8_t
rank_of(const struct ranking *ranking, const struct near__bucket *bucket, unsigned lane)
{
    uint8_t mark = atomic_load_explicit(&bucket->marks[lane], memory_order_relaxed);

    return ranking->rank != NULL ? ranking->rank(mark, ranking->tick) : (uint8_t)(ranking->tick - mark);
}

static uint16_t
tag_of(const struct near__bucket *bucket, unsigned lane)
{
    return atomic_load_explicit(&bucket->tags.lanes[lane], memory_order_relaxed);
}

void
near__batch_fini(struct near__batch *batch)
{
    free(batch->rows);
    *batch = (struct near__batch){ .most = batch->most };
}

/* Room for so many rows, or as many as there were.  False: no memory, and there was none. */
static bool
make_room(struct near__batch *batch, uint32_t room)
{
    uint32_t *rows;

    if (room <= batch->room)
        return true;
    rows = realloc(batch->rows, room * sizeof(*rows));
    if (rows == NULL)
        return batch->room != 0;
    batch->rows = rows;
    batch->room = room;
    return true;
}

/* Regions of one size, as few as can be. */
static struct region
next_region(struct near__batch *batch, const struct near__table *table)
{
    uint32_t      homes   = near__table_homes(table);
    uint32_t      regions = (homes + REGION - 1) / REGION;
    uint32_t      size    = (homes + regions - 1) / regions;
    struct region region;

    if (batch->region >= homes)
        batch->region = 0;
    region.first  = batch->region;
    region.end    = homes - region.first < size ? homes : region.first + size;
    batch->region = region.end;
    return region;
}

/* The greatest rank that about `wanted` entries of the region have, or more; and how many there are above it. */
static uint8_t
find_rank(const struct ranking *ranking, struct region region, uint32_t wanted, unsigned most,
          uint32_t *above)
{
    uint32_t counts[256], step = region.end - region.first > SAMPLE_MIN ? SAMPLE : 1;
    unsigned rank = 255;

    memset(counts, 0, sizeof(counts));
    for (uint32_t home = region.first; home < region.end; home += step) {
        struct near__bucket *bucket = near__table_current(ranking->table, home);

        for (; bucket != NULL; bucket = near__table_after(ranking->table, bucket))
            for (unsigned lanes = near__bucket_occupied(bucket); lanes != 0; lanes &= lanes - 1)
                counts[rank_of(ranking, bucket, (unsigned)__builtin_ctz(lanes))]++;
    }
    for (*above = 0; rank > most || (rank > 0 && *above + counts[rank] * step < wanted); rank--)
        *above += counts[rank] * step;
    return (uint8_t)rank;
}

/* What ranks `least` or more is collected, but of `least` itself at most `quota`. */
struct collecting {
    uint32_t *rows;
    uint32_t  count, room, quota, first;
    uint8_t   least, top, shift;
};

/* The occupied lanes that rank so. */
static inline __attribute__((always_inline)) unsigned
lanes_of(const struct ranking *ranking, const struct near__bucket *bucket, uint8_t least)
{
    unsigned occupied = near__bucket_occupied(bucket), lanes = 0;

    if (ranking->rank == NULL)
        return near__bucket_aged(bucket, ranking->tick, least) & occupied;
    for (; occupied != 0; occupied &= occupied - 1)
        if (rank_of(ranking, bucket, (unsigned)__builtin_ctz(occupied)) >= least)
            lanes |= occupied & -occupied;
    return lanes;
}

/* False: there is no room for more. */
static inline __attribute__((always_inline)) bool
collect_lanes(struct collecting *c, const struct ranking *ranking, const struct near__bucket *bucket,
              unsigned lanes, uint32_t home)
{
    for (; lanes != 0; lanes &= lanes - 1) {
        unsigned lane = (unsigned)__builtin_ctz(lanes);
        uint8_t  rank = rank_of(ranking, bucket, lane); /* it may have changed */
        unsigned level;

        if (rank < c->least || (rank == c->least && c->quota == 0))
            continue;
        if (c->count == c->room)
            return false;
        c->quota -= rank == c->least;
        if (rank > c->top)
            c->top = rank;
        level               = (unsigned)(rank - c->least) >> c->shift;
        level               = level < LEVELS ? level : LEVELS - 1;
        c->rows[c->count++] = (home - c->first) << HOME_SHIFT | level << 16 | tag_of(bucket, lane);
    }
    return true;
}

/* What does not change is copied, or acquire loads would have it loaded again for each bucket; ages are a case of their own, for the same
 * reason. */
static inline __attribute__((always_inline)) bool
collect_region(struct collecting *to, const struct near__table *table, near__rank_fn rank,
               struct region region)
{
    const struct ranking ranking = ranking_of(table, rank);
    struct collecting    c       = *to;
    bool                 all     = true;
    uint32_t             n;

    for (uint32_t first = region.first; all && first < region.end; first += n) {
        const struct near__bucket *homes = near__table_run(table, first, region.end, &n);

        for (uint32_t i = 0; all && i < n; i++) {
            const struct near__bucket *bucket = &homes[i];

            if (near__bucket_stale(table, bucket))
                continue;
            do {
                unsigned lanes = lanes_of(&ranking, bucket, c.least);

                if (lanes != 0 && !collect_lanes(&c, &ranking, bucket, lanes, first + i))
                    all = false;
            } while (all && (bucket = near__table_after(table, bucket)) != NULL);
        }
    }
    *to = c;
    return all;
}

/* False: there was no room for all. */
static bool
collect(struct near__batch *batch, const struct ranking *ranking, struct region region, uint8_t least,
        uint32_t quota)
{
    struct collecting c = {
        .rows = batch->rows, .room = batch->room, .quota = quota, .first = region.first, .least = least
    };
    bool all;

    while (batch->top > least && (batch->top - least) >> c.shift >= LEVELS) /* as the last one was */
        c.shift++;
    all          = ranking->rank == NULL ? collect_region(&c, ranking->table, NULL, region)
                                         : collect_region(&c, ranking->table, ranking->rank, region);
    batch->count = c.count;
    batch->least = least;
    batch->shift = c.shift;
    batch->tick  = ranking->tick;
    batch->whole = all;
    if (c.count > 0)
        batch->top = c.top;
    return all;
}

static unsigned
level_of(uint32_t row)
{
    return row >> 16 & (LEVELS - 1);
}

/* By level, highest first, where they lie: rows go to the next place of their level, until all are there (McIlroy, Bostic and McIlroy,
 * "Engineering Radix Sort", Computing Systems 1993, section 3, the American flag). */
static void
sort(struct near__batch *batch)
{
    uint32_t *rows = batch->rows, row, sum = 0;
    uint32_t  next[LEVELS], end[LEVELS] = { 0 };

    for (uint32_t i = 0; i < batch->count; i++)
        end[level_of(rows[i])]++;
    for (unsigned level = LEVELS; level-- > 0;) {
        next[level] = sum;
        end[level]  = sum += end[level];
    }
    for (unsigned level = LEVELS; level-- > 0;)
        while (next[level] < end[level]) {
            unsigned own = level_of(row = rows[next[level]]);

            rows[next[level]] = rows[next[own]];
            rows[next[own]++] = row;
        }
}

static uint8_t
most_of(const struct near__batch *batch)
{
    return batch->most != 0 ? batch->most : UINT8_MAX;
}

void
near__batch_take(struct near__batch *batch, const struct near__table *table, near__rank_fn rank)
{
    const struct ranking ranking = ranking_of(table, rank);
    struct region        region  = next_region(batch, table);
    const uint8_t        most    = most_of(batch);
    uint64_t             share   = (uint64_t)near__table_homes(table) * NEAR__BATCH_SHARE;
    uint32_t             wanted, above;

    batch->first = region.first;
    batch->count = batch->next = 0;
    wanted = (uint32_t)(table->entries * (uint64_t)(region.end - region.first) / share) + 1;
    if (!make_room(batch, wanted + wanted / 4 + 16))
        return;
    if (wanted > batch->room)
        wanted = batch->room;
    if (!batch->known || !collect(batch, &ranking, region, batch->guess, UINT32_MAX) ||
        batch->count < (wanted + 1) / 2) {
        batch->guess = find_rank(&ranking, region, wanted, most, &above);
        batch->known = true;
        (void)collect(batch, &ranking, region, batch->guess, batch->room > above ? batch->room - above : 1);
    }
    if (batch->count > wanted + wanted / 8 && batch->guess < most)
        batch->guess++;
    else if (batch->count < wanted - wanted / 8 && batch->guess > 0)
        batch->guess--;
    sort(batch);
}

/* What an entry ranks at least that was not used since the batch was taken: as its level did, and older by the ticks since then; but
 * what is very old may have been held back. */
static inline unsigned
least_now(const struct near__batch *batch, const struct ranking *ranking, uint32_t row)
{
    unsigned since = ranking->rank == NULL ? (uint8_t)(ranking->tick - batch->tick) : 0;
    unsigned least = batch->least + (level_of(row) << batch->shift) + since;
    unsigned most  = most_of(batch);

    return least < most ? least : most;
}

/* The row's entry, if it is there and was not used. */
static inline __attribute__((always_inline)) bool
find_row(const struct ranking *ranking, uint32_t home, uint16_t tag, unsigned least,
         struct near__place *place)
{
    struct near__bucket *bucket = near__table_current(ranking->table, home);

    for (; bucket != NULL; bucket = near__table_after(ranking->table, bucket)) {
        uint32_t match = near__bucket_match(bucket, tag);

        for (; match != 0; match = NEAR__LANE_NEXT(match)) {
            *place = (struct near__place){ bucket, NEAR__LANE(match) };
            if (near__place_ref(*place) != 0 && rank_of(ranking, bucket, place->lane) >= least)
                return true;
        }
    }
    return false;
}

static inline __attribute__((always_inline)) bool
next_ranked(struct near__batch *batch, const struct near__table *table, near__rank_fn rank,
            struct near__place *place, uint32_t *element)
{
    const struct ranking ranking = ranking_of(table, rank);
    uint32_t             homes   = near__table_homes(table), home;

    while (batch->next < batch->count) {
        uint32_t row = batch->rows[batch->next++];

        if (batch->next < batch->count &&
            (home = batch->first + (batch->rows[batch->next] >> HOME_SHIFT)) < homes)
            __builtin_prefetch(near__table_bucket(table, home)); /* the next victim's */
        home = batch->first + (row >> HOME_SHIFT);
        if (home < homes && find_row(&ranking, home, (uint16_t)row, least_now(batch, &ranking, row), place)) {
            *element = near__table_partial(home, (uint16_t)row);
            return true;
        }
    }
    return false;
}

bool
near__batch_next(struct near__batch *batch, const struct near__table *table, near__rank_fn rank,
                 struct near__place *place, uint32_t *element)
{
    return rank == NULL ? next_ranked(batch, table, NULL, place, element)
                        : next_ranked(batch, table, rank, place, element);
}

size_t
near__batch_bytes(const struct near__batch *batch)
{
    return batch->room * sizeof(*batch->rows);
}
