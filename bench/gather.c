/*
 * Gathering features: 100 entities by 50 fields, all in L1, into a dense matrix of 64-byte values (16 floats), beside what one writes in
 * an afternoon: 64 shards of {mutex, chained hash table, LRU list}, keys made of entity and field, values copied under the lock.
 *
 *     bench/gather [--entities N] [--rounds N] [--ms N]
 *
 * and a *limit*: a table that is filled once and never changes, with nothing but what a read of it cannot do without (a line of the index, the
 * lines of the entry, both at random, fetched ahead as nearcache does it).  What it takes is the memory's share of the time on this machine.
 *
 * All have the same cells (20 000 entities by 50 fields: a million) and are asked for the same rows in the same order, turn about, a
 * round each; a round's figure is the mean over its gathers.  What is reported is the median of the rounds, the best one, and the ratio of
 * the medians.  Every cell that comes back is compared once, before anything is timed.  near_fields_get_many(), with handles that are
 * released, is a third row.  One thread: what is measured is the path, not the scheduler.
 */
#define XXH_INLINE_ALL
#include "bench/median.h"

#include "client/nearcache.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <xxhash.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { ROWS = 100, FIELDS = 50, CELL = 64, NAME = 16, ROUNDS_MAX = 99, SHARDS = 64 };

static double
now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static uint64_t
draw(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

/* ---- what is stored */

struct world {
    size_t entities;
    char (*names)[NAME]; /* "st_0000012345", NUL */
    near_field fields[FIELDS];
};

static void
fill(float *cell, size_t entity, size_t field)
{
    for (size_t i = 0; i < CELL / sizeof(float); i++)
        cell[i] = (float)(entity * FIELDS + field) + (float)i / 16;
}

static near_bytes
name_of(const struct world *world, size_t entity)
{
    return (near_bytes){ world->names[entity], strlen(world->names[entity]) };
}

/* ---- the peer */

struct links {
    struct links *newer, *older;
};

struct entry {
    struct links  links; /* first */
    struct entry *chain;
    uint64_t      hash;
    uint32_t      key_size;
    char          bytes[]; /* key, value */
};

static struct shard {
    pthread_mutex_t lock;
    struct entry  **buckets;
    size_t          mask;
    struct links    ends;
} __attribute__((aligned(128))) shards[SHARDS];

static void
lru_open(size_t cells)
{
    size_t buckets = 1;

    while (buckets < cells / SHARDS)
        buckets *= 2;
    for (int i = 0; i < SHARDS; i++) {
        pthread_mutex_init(&shards[i].lock, NULL);
        shards[i].mask       = buckets - 1;
        shards[i].buckets    = calloc(buckets, sizeof(struct entry *));
        shards[i].ends.newer = shards[i].ends.older = &shards[i].ends;
    }
}

static void
to_front(struct shard *shard, struct links *links)
{
    links->newer             = &shard->ends;
    links->older             = shard->ends.older;
    shard->ends.older->newer = links;
    shard->ends.older        = links;
}

static void
lru_put(near_bytes key, const void *value)
{
    uint64_t      hash  = XXH3_64bits(key.data, key.size);
    struct shard *shard = &shards[hash >> 58];
    struct entry *entry = malloc(sizeof(*entry) + key.size + CELL);

    entry->hash     = hash;
    entry->key_size = (uint32_t)key.size;
    memcpy(entry->bytes, key.data, key.size);
    memcpy(entry->bytes + key.size, value, CELL);
    entry->chain                       = shard->buckets[hash & shard->mask];
    shard->buckets[hash & shard->mask] = entry;
    to_front(shard, &entry->links);
}

static int
lru_get(near_bytes key, void *value)
{
    uint64_t      hash  = XXH3_64bits(key.data, key.size);
    struct shard *shard = &shards[hash >> 58];
    struct entry *entry;

    pthread_mutex_lock(&shard->lock);
    entry = shard->buckets[hash & shard->mask];
    while (entry != NULL && (entry->hash != hash || entry->key_size != key.size ||
                             memcmp(entry->bytes, key.data, key.size) != 0))
        entry = entry->chain;
    if (entry != NULL) {
        memcpy(value, entry->bytes + entry->key_size, CELL);
        if (shard->ends.older != &entry->links) {
            entry->links.newer->older = entry->links.older;
            entry->links.older->newer = entry->links.newer;
            to_front(shard, &entry->links);
        }
    }
    pthread_mutex_unlock(&shard->lock);
    return entry != NULL;
}

static near_bytes
peer_key(char *room, near_bytes entity, near_field field)
{
    memcpy(room, entity.data, entity.size);
    memcpy(room + entity.size, &field, sizeof(field));
    return (near_bytes){ room, entity.size + sizeof(field) };
}

static size_t
lru_gather(const struct world *world, const near_bytes *entities, char *matrix)
{
    size_t found = 0;
    char   room[64];

    for (size_t row = 0; row < ROWS; row++)
        for (size_t i = 0; i < FIELDS; i++)
            found += (size_t)lru_get(peer_key(room, entities[row], world->fields[i]),
                                     matrix + (row * FIELDS + i) * CELL);
    return found;
}

/* ---- the limit */

/* A bucket is one line: eight tags, eight places.  An entry takes as much as one of ours, beginning where it happens to: {size of the key, key,
 * value}, at multiples of 8. */
enum { LANES = 8, ENTRY = 104, TOGETHER = 8 };

static struct {
    struct flat_bucket {
        uint16_t tags[LANES];
        uint32_t places[LANES]; /* + 1; 0: free */
    } __attribute__((aligned(64))) * buckets;
    size_t mask, n;
    char  *entries;
} flat;

static void *
pages(size_t bytes)
{
    size_t huge = (size_t)2 << 20;
    void  *at   = aligned_alloc(huge, (bytes + huge - 1) / huge * huge);

    if (at == NULL)
        exit(2);
    madvise(at, bytes, MADV_HUGEPAGE);
    memset(at, 0, bytes);
    return at;
}

static void
flat_open(size_t cells)
{
    size_t buckets = 1;

    while (buckets * LANES * 3 / 4 < cells)
        buckets *= 2;
    flat.mask    = buckets - 1;
    flat.buckets = pages(buckets * sizeof(*flat.buckets));
    flat.entries = pages(cells * ENTRY);
}

static uint16_t
tag_of(uint64_t hash)
{
    return (uint16_t)(hash >> 48 | 1);
}

static void
flat_put(near_bytes key, const void *value)
{
    uint64_t            hash   = XXH3_64bits(key.data, key.size);
    struct flat_bucket *bucket = &flat.buckets[hash & flat.mask];
    char               *entry  = flat.entries + flat.n * ENTRY;
    size_t              lane   = 0;

    while (lane < LANES && bucket->places[lane] != 0)
        if (++lane == LANES) { /* full: the next one */
            bucket = &flat.buckets[(size_t)(bucket + 1 - flat.buckets) & flat.mask];
            lane   = 0;
        }
    bucket->tags[lane]   = tag_of(hash);
    bucket->places[lane] = (uint32_t)++flat.n;
    entry[0]             = (char)key.size;
    memcpy(entry + 4, key.data, key.size);
    memcpy(entry + ENTRY - CELL, value, CELL);
}

struct flat_sight {
    char                room[40];
    size_t              size, cell;
    uint64_t            hash;
    struct flat_bucket *bucket;
    const char         *entry;
};

/* The lanes with that tag, two bits for each. */
static unsigned
flat_match(const struct flat_bucket *bucket, uint16_t tag)
{
#if defined(__SSE2__)
    __m128i tags = _mm_load_si128((const __m128i *)(const void *)bucket->tags);

    return (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi16(tags, _mm_set1_epi16((short)tag)));
#else
    unsigned match = 0;

    for (unsigned i = 0; i < LANES; i++)
        match |= (bucket->tags[i] == tag ? 3u : 0) << 2 * i;
    return match;
#endif
}

static void
flat_seek(struct flat_sight *sight)
{
    unsigned match = flat_match(sight->bucket, tag_of(sight->hash));

    sight->entry = NULL;
    if (match == 0)
        return;
    sight->entry = flat.entries + (size_t)(sight->bucket->places[__builtin_ctz(match) / 2] - 1) * ENTRY;
    __builtin_prefetch(sight->entry);
    __builtin_prefetch(sight->entry + 64);
    __builtin_prefetch(sight->entry + ENTRY - 1);
}

static bool
is_entry(const char *entry, const struct flat_sight *sight)
{
    return entry != NULL && (size_t)entry[0] == sight->size &&
           memcmp(entry + 4, sight->room, sight->size) == 0;
}

/* Two keys with one tag, or a full bucket: one cell in some hundred. */
static const char *
flat_search(const struct flat_sight *sight)
{
    for (struct flat_bucket *bucket = sight->bucket;;
         bucket                     = &flat.buckets[(size_t)(bucket + 1 - flat.buckets) & flat.mask])
        for (size_t lane = 0; lane < LANES; lane++) {
                                const char *entry = flat.entries + (size_t)(bucket->places[lane] - 1) * ENTRY;

                                if (bucket->places[lane] == 0)
                return NULL;
            if (bucket->tags[lane] == tag_of(sight->hash) && is_entry(entry, sight))
                return entry;
        }
}

static size_t
flat_copy(const struct flat_sight *sight, char *matrix)
{
    const char *entry = is_entry(sight->entry, sight) ? sight->entry : flat_search(sight);

    if (entry != NULL)
        memcpy(matrix + sight->cell * CELL, entry + ENTRY - CELL, CELL);
    return entry != NULL;
}

static size_t
flat_gather(const struct world *world, const near_bytes *entities, char *matrix)
{
    static struct flat_sight sights[3][TOGETHER];
    struct flat_sight       *newest = sights[0], *middle = sights[1], *oldest = sights[2], *turn;
    size_t                   found = 0, cells = ROWS * FIELDS;

    _Static_assert(ROWS * FIELDS % TOGETHER == 0, "whole groups");
    for (size_t at = 0; at < cells + 2 * TOGETHER; at += TOGETHER) {
        for (size_t i = 0; at < cells && i < TOGETHER; i++) {
            struct flat_sight *sight = &newest[i];

            sight->cell = at + i;
            sight->size =
                peer_key(sight->room, entities[sight->cell / FIELDS], world->fields[sight->cell % FIELDS])
                    .size;
            sight->hash   = XXH3_64bits(sight->room, sight->size);
            sight->bucket = &flat.buckets[sight->hash & flat.mask];
            __builtin_prefetch(sight->bucket);
        }
        for (size_t i = 0; at >= TOGETHER && at < cells + TOGETHER && i < TOGETHER; i++)
            flat_seek(&middle[i]);
        for (size_t i = 0; at >= 2 * TOGETHER && i < TOGETHER; i++)
            found += flat_copy(&oldest[i], matrix);
        turn   = oldest;
        oldest = middle;
        middle = newest;
        newest = turn;
    }
    return found;
}

/* ---- ours */

static near_cache *cache;
static uint8_t     mask[ROWS * FIELDS];
static near_value *values[ROWS * FIELDS];

static size_t
into_gather(const struct world *world, const near_bytes *entities, char *matrix)
{
    size_t found = 0;

    near_fields_get_into(cache, entities, ROWS, world->fields, FIELDS, NULL, matrix, CELL, mask, NULL);
    for (size_t i = 0; i < ROWS * FIELDS; i++)
        found += mask[i] == NEAR_FROM_L1;
    return found;
}

static size_t
many_gather(const struct world *world, const near_bytes *entities, char *matrix)
{
    size_t found = 0;

    near_fields_get_many(cache, entities, ROWS, world->fields, FIELDS, NULL, values, NULL);
    for (size_t i = 0; i < ROWS * FIELDS; i++) {
        near_bytes bytes = near_value_bytes(values[i]);

        if (bytes.size == CELL) {
            memcpy(matrix + i * CELL, bytes.data, CELL);
            found++;
        }
        near_value_release(values[i]);
    }
    return found;
}

/* ---- rounds */

static const struct way {
    const char *name;
    size_t (*gather)(const struct world *world, const near_bytes *entities, char *matrix);
} ways[] = {
    { "near_fields_get_into", into_gather },
    { "near_fields_get_many", many_gather },
    { "limit: read-only table", flat_gather },
    { "sharded64: mutex, LRU", lru_gather },
};
enum { WAYS = sizeof(ways) / sizeof(ways[0]) };

static void
draw_rows(const struct world *world, uint64_t *state, near_bytes *entities, size_t *which)
{
    for (size_t row = 0; row < ROWS; row++) {
        which[row]    = draw(state) % world->entities;
        entities[row] = name_of(world, which[row]);
    }
}

/* Nanoseconds per cell. */
static double
round_of(const struct world *world, const struct way *way, uint64_t seed, double seconds, char *matrix)
{
    near_bytes entities[ROWS];
    size_t     which[ROWS], cells = 0, found = 0;
    double     spent = 0, began;

    while (spent < seconds) {
        draw_rows(world, &seed, entities, which);
        began = now();
        found += way->gather(world, entities, matrix);
        spent += now() - began;
        cells += ROWS * FIELDS;
    }
    if (found != cells) {
        fprintf(stderr, "%s: %zu of %zu cells were not there\n", way->name, cells - found, cells);
        exit(1);
    }
    return spent / (double)cells * 1e9;
}

static void
compare_all(const struct world *world, char *matrix)
{
    float      wanted[CELL / sizeof(float)];
    near_bytes entities[ROWS];
    size_t     which[ROWS];
    uint64_t   seed = 7;

    for (int w = 0; w < WAYS; w++)
        for (int n = 0; n < 20; n++) {
            draw_rows(world, &seed, entities, which);
            memset(matrix, 0xee, ROWS * FIELDS * CELL);
            ways[w].gather(world, entities, matrix);
            for (size_t i = 0; i < ROWS * FIELDS; i++) {
                fill(wanted, which[i / FIELDS], i % FIELDS);
                if (memcmp(wanted, matrix + i * CELL, CELL) != 0) {
                    fprintf(stderr, "%s: a wrong value\n", ways[w].name);
                    exit(1);
                }
            }
        }
}

static void
open_cache(void)
{
    near_config *config = near_config_new();
    near_client *client;
    near_error   error = { 0 };

    if (near_config_set(config, "l2.uri", "none:", &error) != NEAR_OK ||
        near_config_set(config, "l1.max_bytes", "1GiB", &error) != NEAR_OK ||
        near_config_set(config, "ttl", "1h", &error) != NEAR_OK ||
        near_client_open(config, &client, &error) != NEAR_OK ||
        near_cache_open(client, "features", NULL, &cache, &error) != NEAR_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    near_config_free(config);
}

static void
store_all(struct world *world)
{
    float       cells[FIELDS][CELL / sizeof(float)];
    near_bytes  data[FIELDS];
    near_status statuses[FIELDS];
    char        room[64];

    world->names = calloc(world->entities, NAME);
    for (size_t i = 0; i < FIELDS; i++) {
        char name[32];

        snprintf(name, sizeof(name), "feature_%zu", i);
        near_field_register(cache, name, NULL, &world->fields[i], NULL);
        data[i] = (near_bytes){ cells[i], CELL };
    }
    lru_open(world->entities * FIELDS);
    flat_open(world->entities * FIELDS);
    for (size_t entity = 0; entity < world->entities; entity++) {
        near_bytes name;

        snprintf(world->names[entity], NAME, "st_%010u", (unsigned)entity);
        name = name_of(world, entity);
        for (size_t i = 0; i < FIELDS; i++)
            fill(cells[i], entity, i);
        near_fields_put_many(cache, &name, 1, world->fields, FIELDS, data, NULL, statuses);
        for (size_t i = 0; i < FIELDS; i++) {
            lru_put(peer_key(room, name, world->fields[i]), cells[i]);
            flat_put(peer_key(room, name, world->fields[i]), cells[i]);
        }
    }
}

static size_t
number_after(int argc, char **argv, const char *name, size_t preset)
{
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return strtoul(argv[i + 1], NULL, 10);
    return preset;
}

int
main(int argc, char **argv)
{
    struct world world  = { .entities = number_after(argc, argv, "--entities", 20000) };
    size_t       rounds = number_after(argc, argv, "--rounds", 9), ms = number_after(argc, argv, "--ms", 500);
    double       figures[WAYS][ROUNDS_MAX];
    char        *matrix = aligned_alloc(64, ROWS * FIELDS * CELL);

    if (rounds < 1 || rounds > ROUNDS_MAX || world.entities < 1 || matrix == NULL)
        return 2;
    open_cache();
    store_all(&world);
    compare_all(&world, matrix);
    for (size_t r = 0; r < rounds; r++)
        for (int w = 0; w < WAYS; w++)
            figures[w][r] = round_of(&world, &ways[w], r + 1, (double)ms / 1e3, matrix);
    for (int w = 0; w < WAYS; w++)
        qsort(figures[w], rounds, sizeof(double), by_value);
    printf("%d entities x %d fields of %d bytes out of %zu cells, ns per cell, %zu rounds of %zu ms\n\n",
           ROWS, FIELDS, CELL, world.entities * FIELDS, rounds, ms);
    printf("%-24s %8s %8s %22s\n", "", "median", "best", "times the LRU's speed");
    for (int w = 0; w < WAYS; w++)
        printf("%-24s %8.1f %8.1f %22.1f\n", ways[w].name, figures[w][rounds / 2], figures[w][0],
               figures[WAYS - 1][rounds / 2] / figures[w][rounds / 2]);
    return 0;
}
