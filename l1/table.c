/*
 * The index of one shard (see the header): linear hashing over chunks of buckets.
 *
 * Everything here runs under the shard's lock; readers run beside it.  Why a reader misses nothing that is present all the time:
 *
 *   - An entry that moves is first published at its new place, then (split, join) the new size is published, then the version of
 *     every home concerned moves, then the old slot is emptied.
 *   - All these stores are releases and a reader's loads are acquires.  So a reader that saw the emptied slot, or the tag of
 *     whatever came after it, sees the new version when it looks again; one that loaded the new version at first sees the new
 *     place; one that computed its home by an older size than the version it loaded sees the newer size when it looks again.
 *   - Versions have 16 bits: a reader would have to sleep through exactly 65536 moves in one home to be fooled, and then it misses
 *     once.
 *
 * Only the last bucket of a chain has free slots, so chains are as short as they can be.  A freed overflow bucket ends in `next` 0
 * (a late reader in it stops there); the free chain runs through its version and generation, which no reader looks at.
 *
 * What can never happen: a chunk given back while the table lives; a join or a split that fails halfway.
 */
#include "l1/table.h"

#include <stdlib.h>
#include <string.h>

enum {
    DIRECTORY_STEP = 8, /* a directory that is outgrown is so many times larger next time */
    CHAIN_MAX =
        256 /* entries of one chain that a split or join can move; 8 are expected, and it must fit on the stack */
};

static uint32_t
chunk_buckets(const struct near__table *table)
{
    return 1u << table->chunk_shift;
}

static uint32_t
bucket_ref(const struct near__bucket *bucket, unsigned lane)
{
    return atomic_load_explicit(&bucket->refs[lane], memory_order_relaxed); /* written under our lock */
}

static uint16_t
bucket_tag(const struct near__bucket *bucket, unsigned lane)
{
    return atomic_load_explicit(&bucket->tags.lanes[lane], memory_order_relaxed); /* written under our lock */
}

static uint8_t
bucket_mark(const struct near__bucket *bucket, unsigned lane)
{
    return atomic_load_explicit(&bucket->marks[lane], memory_order_relaxed); /* carries nothing else */
}

static uint32_t
bucket_next(const struct near__bucket *bucket)
{
    return atomic_load_explicit(&bucket->next, memory_order_relaxed); /* written under our lock */
}

static void
version_move(struct near__bucket *home)
{
    uint16_t version = atomic_load_explicit(&home->version, memory_order_relaxed);

    /* release: with near__bucket_version(); what was published before is seen by who sees this */
    atomic_store_explicit(&home->version, (uint16_t)(version + 1), memory_order_release);
}

/* ---- slots */

static void
slot_fill(struct near__bucket *bucket, unsigned lane, uint16_t tag, uint32_t ref, uint8_t mark)
{
    /* release: with near__bucket_match(); who sees this tag sees the version that moved before the slot was emptied */
    atomic_store_explicit(&bucket->tags.lanes[lane], tag, memory_order_release);
    atomic_store_explicit(&bucket->marks[lane], mark, memory_order_relaxed);
    /* release: with near__bucket_ref(); who sees the reference sees the entry behind it, its tag and its mark */
    atomic_store_explicit(&bucket->refs[lane], ref, memory_order_release);
}

static void
slot_empty(struct near__bucket *bucket, unsigned lane)
{
    /* release: with near__bucket_ref(); who sees the slot empty sees the version that moved before */
    atomic_store_explicit(&bucket->refs[lane], 0, memory_order_release);
}

static int
bucket_free_lane(const struct near__bucket *bucket)
{
    unsigned vacant = ~near__bucket_occupied(bucket) & ((1u << NEAR__LANES) - 1);

    return vacant != 0 ? __builtin_ctz(vacant) : -1;
}

/* ---- overflow buckets */

static uint32_t
free_link(const struct near__bucket *bucket)
{
    return (uint32_t)atomic_load_explicit(&bucket->version, memory_order_relaxed) << 16 |
           atomic_load_explicit(&bucket->generation, memory_order_relaxed); /* both: written under our lock */
}

static void
over_free(struct near__table *table, uint32_t number)
{
    struct near__bucket *bucket = near__table_overflow(table, number);

    /* relaxed: no reader looks at these fields of an overflow bucket; a late one in it must only come to an end */
    atomic_store_explicit(&bucket->next, 0, memory_order_relaxed);
    atomic_store_explicit(&bucket->version, (uint16_t)(table->over_free >> 16), memory_order_relaxed);
    atomic_store_explicit(&bucket->generation, (uint16_t)table->over_free, memory_order_relaxed);
    table->over_free = number;
}

/* A directory beyond the near one.  The one before it stays for late readers, who find what they look for there: entries are never
 * changed. */
struct near__directory {
    struct near__directory *before;
    struct near__bucket    *chunks[];
};

static bool
directory_grow(_Atomic(struct near__bucket **) *readers, struct near__directory **wide, uint32_t *room,
               size_t most)
{
    size_t wider = (size_t)*room * DIRECTORY_STEP < most ? (size_t)*room * DIRECTORY_STEP : most;
    struct near__directory *larger = calloc(1, sizeof(*larger) + wider * sizeof(larger->chunks[0]));

    if (larger == NULL)
        return false;
    /* relaxed: written under our lock */
    memcpy(larger->chunks, atomic_load_explicit(readers, memory_order_relaxed),
           *room * sizeof(larger->chunks[0]));
    larger->before = *wide;
    *wide          = larger;
    *room          = (uint32_t)wider;
    /* release: pairs with the acquire in near__table_bucket() and near__table_overflow(); the copies are complete */
    atomic_store_explicit(readers, larger->chunks, memory_order_release);
    return true;
}

static void
directories_free(struct near__directory **wide)
{
    while (*wide != NULL) {
        struct near__directory *before = (*wide)->before;

        free(*wide);
        *wide = before;
    }
}

/* One chunk more, number `chunk`, which is the next one.  Readers hear of it by the size, or a link, beyond it: those are releases. */
static bool
chunk_add(struct near__table *table, _Atomic(struct near__bucket **) *readers, struct near__directory **wide,
          uint32_t *room, uint32_t chunk)
{
    struct near__bucket **chunks;

    if (chunk >= table->max_chunks ||
        (chunk == *room && !directory_grow(readers, wide, room, table->max_chunks)))
        return false;
    chunks        = atomic_load_explicit(readers, memory_order_relaxed); /* written under our lock */
    chunks[chunk] = table->chunk_new(table->chunk_ctx);
    return chunks[chunk] != NULL;
}

static bool
over_chunk(struct near__table *table)
{
    uint32_t chunk = table->over_chunks;

    if (!chunk_add(table, &table->overs, &table->overs_wide, &table->overs_room, chunk))
        return false;
    table->over_chunks++;
    for (uint32_t i = chunk_buckets(table); i > 0; i--)
        over_free(table, (chunk << table->chunk_shift) + i);
    return true;
}

/* The number (+ 1) of an empty bucket; 0: no memory. */
static uint32_t
over_new(struct near__table *table)
{
    uint32_t number;

    if (table->over_free == 0 && !over_chunk(table))
        return 0;
    number           = table->over_free;
    table->over_free = free_link(near__table_overflow(table, number));
    table->over_used++;
    return number;
}

/* ---- chains */

static struct near__bucket *
chain_last(const struct near__table *table, struct near__bucket *home)
{
    struct near__bucket *after;

    while ((after = near__table_after(table, home)) != NULL)
        home = after;
    return home;
}

static bool
chain_add(struct near__table *table, struct near__bucket *home, uint16_t tag, uint32_t ref, uint8_t mark,
          struct near__place *place)
{
    struct near__bucket *last = chain_last(table, home);
    int                  lane = bucket_free_lane(last);
    uint32_t             number;

    if (lane < 0) {
        number = over_new(table);
        if (number == 0)
            return false;
        *place = (struct near__place){ near__table_overflow(table, number), 0 };
        slot_fill(place->bucket, 0, tag, ref, mark);
        /* release: with near__table_after(); the bucket's chunk and slot are there */
        atomic_store_explicit(&last->next, number, memory_order_release);
        return true;
    }
    *place = (struct near__place){ last, (unsigned)lane };
    slot_fill(last, (unsigned)lane, tag, ref, mark);
    return true;
}

/* The last bucket of the chain, if it is empty and not the home itself, goes to the free chain. */
static void
chain_trim(struct near__table *table, struct near__bucket *home)
{
    struct near__bucket *before = home, *last;

    if (bucket_next(home) == 0)
        return;
    while (bucket_next(last = near__table_overflow(table, bucket_next(before))) != 0)
        before = last;
    if (near__bucket_occupied(last) != 0)
        return;
    uint32_t number = bucket_next(before);
    /* release: what hung there is empty now, and who finds it gone sees the version that moved when it was emptied */
    atomic_store_explicit(&before->next, 0, memory_order_release);
    over_free(table, number);
    table->over_used--;
}

/* Some entry of the chain's last bucket moves into the hole. */
static void
chain_pull(struct near__table *table, struct near__bucket *home, struct near__place hole)
{
    struct near__bucket *last = chain_last(table, home);
    struct near__place   from = { last, 0 };

    while (from.lane < NEAR__LANES && bucket_ref(last, from.lane) == 0)
        from.lane++;
    if (last == hole.bucket || from.lane == NEAR__LANES)
        return;
    slot_fill(hole.bucket, hole.lane, bucket_tag(last, from.lane), bucket_ref(last, from.lane),
              bucket_mark(last, from.lane));
    if (table->stamps != NULL)
        *near__table_stamp(table, hole) = *near__table_stamp(table, from);
    version_move(home);
    slot_empty(last, from.lane);
}

static void
chain_erase(struct near__table *table, struct near__bucket *home, struct near__place place)
{
    slot_empty(place.bucket, place.lane);
    if (bucket_next(home) == 0)
        return;
    chain_pull(table, home, place);
    chain_trim(table, home);
}

/* ---- the outside */

static uint64_t
size_word(uint32_t homes)
{
    uint32_t mask = homes <= 1 ? 0 : ~0u >> __builtin_clz(homes - 1);

    return (uint64_t)mask << 32 | homes;
}

static bool
home_chunk(struct near__table *table, uint32_t chunk)
{
    if (chunk < table->home_chunks)
        return true;
    if (!chunk_add(table, &table->homes, &table->homes_wide, &table->homes_room, chunk))
        return false;
    table->home_chunks++;
    return true;
}

static bool
init_chunks(struct near__table *table, uint32_t buckets)
{
    for (uint32_t chunk = 0; chunk <= (buckets - 1) >> table->chunk_shift; chunk++)
        if (!home_chunk(table, chunk))
            return false;
    return true;
}

near_status
near__table_init(struct near__table *table, uint32_t buckets)
{
    table->chunk_mask = (1u << table->chunk_shift) - 1;
    table->homes_room = NEAR__NEAR_HOMES;
    table->overs_room = NEAR__NEAR_OVERS;
    atomic_init(&table->homes, table->near_homes);
    atomic_init(&table->overs, table->near_overs);
    if (table->exact && table->max_chunks == 1)
        table->stamps = calloc((size_t)2 * NEAR__LANES << table->chunk_shift, sizeof(uint32_t));
    if ((table->exact && table->stamps == NULL) || !init_chunks(table, buckets)) {
        near__table_fini(table);
        return NEAR_ERR_NOMEM;
    }
    atomic_init(&table->size, size_word(buckets));
    return NEAR_OK;
}

void
near__table_fini(struct near__table *table)
{
    struct near__bucket **homes =
        atomic_load_explicit(&table->homes, memory_order_relaxed); /* nobody reads */
    struct near__bucket **overs = atomic_load_explicit(&table->overs, memory_order_relaxed);

    for (uint32_t i = 0; i < table->home_chunks; i++)
        table->chunk_free(table->chunk_ctx, homes[i]);
    for (uint32_t i = 0; i < table->over_chunks; i++)
        table->chunk_free(table->chunk_ctx, overs[i]);
    directories_free(&table->homes_wide);
    directories_free(&table->overs_wide);
    free(table->stamps);
    table->stamps      = NULL;
    table->home_chunks = table->over_chunks = 0;
}

static struct near__bucket *
home_of(const struct near__table *table, uint32_t element)
{
    /* relaxed: written under our lock */
    return near__table_bucket(
        table, near__table_home(atomic_load_explicit(&table->size, memory_order_relaxed), element));
}

bool
near__table_locate(const struct near__table *table, uint32_t element, struct near__place *place)
{
    struct near__bucket *bucket = home_of(table, element);
    uint32_t             match;

    if (near__bucket_stale(table, bucket))
        return false;
    for (; bucket != NULL; bucket = near__table_after(table, bucket)) {
        for (match = near__bucket_match(bucket, near__tag(element)); match != 0;
             match = NEAR__LANE_NEXT(match)) {
            *place = (struct near__place){ bucket, NEAR__LANE(match) };
            if (bucket_ref(bucket, place->lane) != 0)
                return true;
        }
    }
    return false;
}

bool
near__table_insert(struct near__table *table, uint32_t element, uint32_t ref, uint8_t mark,
                   struct near__place *place)
{
    if (!chain_add(table, home_of(table, element), near__tag(element), ref, mark, place))
        return false;
    table->entries++;
    return true;
}

uint32_t
near__table_erase(struct near__table *table, uint32_t element, struct near__place place)
{
    struct near__bucket *home = home_of(table, element);
    uint32_t             ref  = bucket_ref(place.bucket, place.lane);

    chain_erase(table, home, place);
    if (!near__bucket_stale(table, home))
        table->entries--;
    return ref;
}

uint32_t *
near__table_stamp(const struct near__table *table, struct near__place place)
{
    size_t homes = chunk_buckets(table);
    size_t index = (size_t)(place.bucket - table->near_homes[0]);

    if (place.bucket < table->near_homes[0] || index >= homes)
        index = homes + (size_t)(place.bucket - table->near_overs[0]);
    return &table->stamps[index * NEAR__LANES + place.lane];
}

size_t
near__table_bytes(const struct near__table *table)
{
    size_t chunks = (size_t)table->home_chunks + table->over_chunks;
    size_t wide   = (size_t)table->homes_room - NEAR__NEAR_HOMES + table->overs_room - NEAR__NEAR_OVERS;

    return (chunks << table->chunk_shift) * sizeof(struct near__bucket) +
           wide * sizeof(struct near__bucket *);
}

/* ---- growing and shrinking */

/* A whole chain, as it was found. */
struct chain {
    unsigned count;
    struct {
        struct near__place place;
        uint32_t           ref;
        uint16_t           tag;
        uint8_t            mark;
        bool               moves;
    } at[CHAIN_MAX];
};

static bool
chain_gather(const struct near__table *table, struct near__bucket *bucket, struct chain *chain)
{
    chain->count = 0;
    for (; bucket != NULL; bucket = near__table_after(table, bucket)) {
        for (unsigned lane = 0; lane < NEAR__LANES; lane++) {
            uint32_t ref = bucket_ref(bucket, lane);
            if (ref == 0)
                continue;
            if (chain->count == CHAIN_MAX)
                return false;
            chain->at[chain->count].place = (struct near__place){ bucket, lane };
            chain->at[chain->count].ref   = ref;
            chain->at[chain->count].tag   = bucket_tag(bucket, lane);
            chain->at[chain->count].mark  = bucket_mark(bucket, lane);
            chain->at[chain->count].moves = true;
            chain->count++;
        }
    }
    return true;
}

/* Empties a chain that nobody needs any more. */
static void
chain_drop(struct near__table *table, struct near__bucket *home)
{
    for (struct near__bucket *bucket = home; bucket != NULL; bucket = near__table_after(table, bucket))
        for (unsigned lane = 0; lane < NEAR__LANES; lane++)
            slot_empty(bucket, lane);
    while (bucket_next(home) != 0)
        chain_trim(table, home);
}

/* Copies what moves into another chain.  False: no memory, and what was copied is still there. */
static bool
chain_copy(struct near__table *table, const struct chain *chain, struct near__bucket *to)
{
    struct near__place place;

    for (unsigned i = 0; i < chain->count; i++)
        if (chain->at[i].moves &&
            !chain_add(table, to, chain->at[i].tag, chain->at[i].ref, chain->at[i].mark, &place))
            return false;
    return true;
}

/* From the last to the first: what is pulled into a hole comes from behind it, so it is not one that still has to go. */
static void
chain_uncopy(struct near__table *table, const struct chain *chain, struct near__bucket *home)
{
    for (unsigned i = chain->count; i > 0; i--)
        if (chain->at[i - 1].moves)
            chain_erase(table, home, chain->at[i - 1].place);
}

/* Which entries the new bucket takes: those whose next address bit is set.  From 2^16 homes on the tag holds that bit. */
static void
choose_movers(const struct near__table *table, struct chain *chain, uint32_t bit)
{
    for (unsigned i = 0; i < chain->count; i++) {
        uint32_t element = (uint32_t)chain->at[i].tag << 16;
        if (bit < 0x10000)
            element = table->element_of(table->element_ctx, chain->at[i].ref);
        chain->at[i].moves = (element & bit) != 0;
    }
}

bool
near__table_split(struct near__table *table)
{
    uint32_t homes = near__table_homes(table), bit = (uint32_t)(size_word(homes + 1) >> 32) / 2 + 1;
    struct near__bucket *source, *target;
    struct chain         chain;

    if (homes == UINT32_MAX || table->exact || !home_chunk(table, homes >> table->chunk_shift))
        return false;
    source = near__table_bucket(table, homes - bit);
    target = near__table_bucket(table, homes);
    if (!chain_gather(table, source, &chain))
        return false;
    choose_movers(table, &chain, bit);
    if (!chain_copy(table, &chain, target)) {
        chain_drop(table, target);
        return false;
    }
    atomic_store_explicit(&target->generation,
                          atomic_load_explicit(&source->generation, memory_order_relaxed),
                          memory_order_relaxed); /* published by the size */
    /* release: with near__table_size(); the chunk, the bucket and its chain are there */
    atomic_store_explicit(&table->size, size_word(homes + 1), memory_order_release);
    version_move(source);
    chain_uncopy(table, &chain, source);
    return true;
}

/* After a copy that failed: what it brought into `to` goes again. */
static void
join_undo(struct near__table *table, const struct chain *chain, struct near__bucket *to)
{
    struct chain all;

    if (!chain_gather(table, to, &all))
        return; /* cannot be: the caller has counted */
    for (unsigned i = 0; i < all.count; i++) {
        all.at[i].moves = false;
        for (unsigned j = 0; j < chain->count; j++)
            all.at[i].moves |= all.at[i].ref == chain->at[j].ref;
    }
    chain_uncopy(table, &all, to);
}

bool
near__table_join(struct near__table *table)
{
    uint32_t             homes = near__table_homes(table), bit = (uint32_t)(size_word(homes) >> 32) / 2 + 1;
    struct near__bucket *source, *target;
    struct chain         chain, there;

    if (homes <= 1 || table->exact)
        return false;
    source = near__table_bucket(table, homes - 1);
    target = near__table_bucket(table, homes - 1 - bit);
    if (near__bucket_stale(table, source) || near__bucket_stale(table, target))
        return false;
    if (!chain_gather(table, source, &chain) || !chain_gather(table, target, &there) ||
        chain.count + there.count > CHAIN_MAX)
        return false;
    if (!chain_copy(table, &chain, target)) {
        join_undo(table, &chain, target);
        return false;
    }
    version_move(source);
    version_move(target);
    /* release: with near__table_size(); the entries are at their new places */
    atomic_store_explicit(&table->size, size_word(homes - 1), memory_order_release);
    chain_drop(table, source);
    return true;
}

/* ---- clearing */

void
near__table_clear(struct near__table *table)
{
    uint16_t generation = atomic_load_explicit(&table->generation, memory_order_relaxed);

    table->entries = 0;
    /* release: with near__bucket_stale() */
    atomic_store_explicit(&table->generation, (uint16_t)(generation + 1), memory_order_release);
}

bool
near__table_purge(struct near__table *table, uint32_t number, void (*drop)(void *ctx, uint32_t ref),
                  void *ctx)
{
    struct near__bucket *home = near__table_bucket(table, number), *bucket;
    uint32_t             ref;

    if (!near__bucket_stale(table, home))
        return false;
    for (bucket = home; bucket != NULL; bucket = near__table_after(table, bucket))
        for (unsigned lane = 0; lane < NEAR__LANES; lane++)
            if ((ref = bucket_ref(bucket, lane)) != 0) {
                slot_empty(bucket, lane); /* before: what is dropped must not be found any more */
                drop(ctx, ref);
            }
    chain_drop(table, home);
    /* release: with near__bucket_stale(); who sees the home current sees it empty */
    atomic_store_explicit(&home->generation, atomic_load_explicit(&table->generation, memory_order_relaxed),
                          memory_order_release);
    return true;
}
