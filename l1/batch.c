/* Batches of victims (see the header). */
#include "l1/batch.h"

#include <stdlib.h>
#include <string.h>

enum {
    REGION = 4096, /* homes: some 30 000 entries, 256 KiB, a scan of some ten microseconds */
    SAMPLE = 8,    /* every eighth home is looked at to guess the rank ... */
    SAMPLE_MIN =
        256 /* ... in regions with more homes than this, where the guess rests on 200 entries and more */
};

struct region {
    uint32_t first, end;
};

static uint8_t
mark_of(const struct near__bucket *bucket, unsigned lane)
{
    return atomic_load_explicit(&bucket->marks[lane], memory_order_relaxed);
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
    *batch = (struct near__batch){ 0 };
}

bool
near__batch_room(struct near__batch *batch, uint32_t room)
{
    struct near__batch_row *rows;

    if (room <= batch->room)
        return true;
    rows = realloc(batch->rows, 2 * (size_t)room * sizeof(*rows));
    if (rows == NULL)
        return batch->room != 0;
    batch->rows = rows;
    batch->room = room;
    return true;
}

static struct region
next_region(struct near__batch *batch, const struct near__table *table)
{
    uint32_t      homes = near__table_homes(table);
    struct region region;

    if (batch->region >= homes)
        batch->region = 0;
    region.first  = batch->region;
    region.end    = homes - region.first <= REGION + REGION / 2 ? homes : region.first + REGION;
    batch->region = region.end;
    return region;
}

/* How many entries there are of each rank, in every `step`th home. */
static uint32_t
count_ranks(const struct near__table *table, const struct near__ranks *ranks, struct region region,
            uint32_t step, uint32_t counts[256])
{
    uint32_t count = 0;

    memset(counts, 0, 256 * sizeof(*counts));
    for (uint32_t home = region.first; home < region.end; home += step) {
        for (struct near__bucket *b = near__table_current(table, home); b != NULL;
             b                      = near__table_after(table, b)) {
            for (unsigned lanes = near__bucket_occupied(b); lanes != 0; lanes &= lanes - 1) {
                counts[ranks->of[mark_of(b, (unsigned)__builtin_ctz(lanes))]]++;
                count++;
            }
        }
    }
    return count;
}

/* The greatest rank that at least `wanted` entries have. */
static unsigned
rank_for(const uint32_t counts[256], uint32_t wanted)
{
    uint32_t count = 0;

    for (unsigned rank = 255; rank > 0; rank--)
        if ((count += counts[rank]) >= wanted)
            return rank;
    return 0;
}

static unsigned
lanes_of(const struct near__bucket *bucket, const struct near__ranks *ranks, uint8_t least)
{
    unsigned lanes = 0;

    if (ranks->ages)
        return near__bucket_aged(bucket, ranks->tick, least);
    for (unsigned lane = 0; lane < NEAR__LANES; lane++)
        lanes |= (unsigned)(ranks->of[mark_of(bucket, lane)] >= least) << lane;
    return lanes;
}

/* Collects, in the rows' second half, what ranks `least` or more, but of `least` itself at most `quota`.  False: not enough
 * room. */
static bool
collect(struct near__batch *batch, const struct near__table *table, const struct near__ranks *ranks,
        struct region region, uint8_t least, uint32_t quota)
{
    struct near__batch_row *rows = batch->rows + batch->room;
    uint8_t                 mark, rank;

    batch->count = 0;
    for (uint32_t home = region.first; home < region.end; home++) {
        for (struct near__bucket *b = near__table_current(table, home); b != NULL;
             b                      = near__table_after(table, b)) {
            unsigned lanes = lanes_of(b, ranks, least);
            if (lanes == 0)
                continue;
            for (lanes &= near__bucket_occupied(b); lanes != 0; lanes &= lanes - 1) {
                unsigned lane = (unsigned)__builtin_ctz(lanes);
                mark          = mark_of(b, lane); /* again: it may have changed */
                rank          = ranks->of[mark];
                if (rank < least || (rank == least && quota == 0))
                    continue;
                if (batch->count == batch->room)
                    return false;
                quota -= rank == least;
                rows[batch->count++] = (struct near__batch_row){ home, mark, tag_of(b, lane), rank };
            }
        }
    }
    return true;
}

/* From the second half into the first, by rank, highest first. */
static void
sort(struct near__batch *batch)
{
    const struct near__batch_row *rows = batch->rows + batch->room;
    uint32_t                      at[257];

    memset(at, 0, sizeof(at));
    for (uint32_t i = 0; i < batch->count; i++)
        at[256 - rows[i].rank]++;
    for (unsigned i = 1; i < 257; i++)
        at[i] += at[i - 1];
    for (uint32_t i = 0; i < batch->count; i++)
        batch->rows[at[255 - rows[i].rank]++] = rows[i];
}

void
near__batch_take(struct near__batch *batch, const struct near__table *table, const struct near__ranks *ranks)
{
    struct region region = next_region(batch, table);
    uint32_t      step   = region.end - region.first > SAMPLE_MIN ? SAMPLE : 1;
    uint32_t      counts[256], wanted, above = 0;
    unsigned      least;

    batch->count = batch->next = 0;
    wanted                     = count_ranks(table, ranks, region, step, counts) / NEAR__BATCH_SHARE + 1;
    least                      = rank_for(counts, wanted);
    if (!near__batch_room(batch, 2 * step * wanted + 16))
        return;
    if (!collect(batch, table, ranks, region, (uint8_t)least, UINT32_MAX)) {
        /* too many of one rank, or a bad guess: all that rank higher, and of that rank as many as there is room for */
        count_ranks(table, ranks, region, 1, counts);
        least = rank_for(counts, batch->room / 2);
        for (unsigned rank = least + 1; rank < 256; rank++)
            above += counts[rank];
        (void)collect(batch, table, ranks, region, (uint8_t)least,
                      above < batch->room ? batch->room - above : 0);
    }
    sort(batch);
}

bool
near__batch_next(struct near__batch *batch, const struct near__table *table, struct near__place *place,
                 uint32_t *element)
{
    const struct near__batch_row *row;
    struct near__bucket          *bucket;

    while (batch->next < batch->count) {
        row = &batch->rows[batch->next++];
        if (batch->next < batch->count && batch->rows[batch->next].home < near__table_homes(table))
            __builtin_prefetch(
                near__table_bucket(table, batch->rows[batch->next].home)); /* the next victim's */
        bucket = row->home < near__table_homes(table) ? near__table_current(table, row->home) : NULL;
        for (; bucket != NULL; bucket = near__table_after(table, bucket)) {
            for (uint32_t match = near__bucket_match(bucket, row->tag); match != 0;
                 match          = NEAR__LANE_NEXT(match)) {
                *place   = (struct near__place){ bucket, NEAR__LANE(match) };
                *element = near__table_partial(row->home, row->tag);
                if (near__place_ref(*place) != 0 &&
                    row->when ==
                        (batch->stamps ? *near__table_stamp(table, *place) : near__place_mark(*place)))
                    return true;
            }
        }
    }
    return false;
}

size_t
near__batch_bytes(const struct near__batch *batch)
{
    return 2 * (size_t)batch->room * sizeof(*batch->rows);
}
