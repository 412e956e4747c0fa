/*
 * Two lower bounds.
 *
 * The baseline takes a key from the sequence and hashes it, nothing more: what every figure here contains.
 *
 * The limit is the least that a look-up of keys and values of any size can be: a table that is read only.  A 64-byte bucket of
 * eight 16-bit tags and eight 32-bit references, compared at once; entries {key size, value size, key, value} packed into one arena;
 * both on huge pages.  A full bucket's surplus goes to the next bucket.  In batches: hash and prefetch buckets, match and prefetch
 * entries, compare and deliver.  It is filled once, by one thread, and then never written.
 */
#define XXH_INLINE_ALL
#include "bench/l1.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <xxhash.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum { LANES = 8, GRANULE = 16, HUGE = 2 << 20 };
#define LOAD 5.6 /* entries in a bucket, of 8: one bucket in ten overflows */

struct bucket {
    uint16_t tags[LANES];
    uint32_t refs[LANES]; /* granules into the arena; 0: free */
    uint32_t overflowed;  /* look into the next one, too */
    uint32_t spare[3];
} __attribute__((aligned(64)));

struct entry {
    uint16_t key_size, value_size;
    char     bytes[];
};

struct limit {
    uint64_t       n; /* buckets */
    struct bucket *buckets;
    char          *arena;
    size_t         buckets_size, arena_size, used;
};

/* ---- reading */

static inline uint64_t
hash_of(near_bytes key)
{
    return XXH3_64bits(key.data, key.size);
}

static inline struct bucket *
home_of(const struct limit *limit, uint64_t hash)
{
    return &limit->buckets[(uint64_t)(((unsigned __int128)hash * limit->n) >> 64)];
}

static inline uint16_t
tag_of(uint64_t hash)
{
    return (uint16_t)hash; /* the upper bits chose the bucket */
}

static inline unsigned
match(const struct bucket *bucket, uint16_t tag)
{
#if defined(__SSE2__)
    __m128i tags = _mm_load_si128((const __m128i *)bucket->tags);
    return (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi16(tags, _mm_set1_epi16((short)tag))) & 0x5555;
#else
    unsigned found = 0;
    for (unsigned lane = 0; lane < LANES; lane++)
        found |= (unsigned)(bucket->tags[lane] == tag) << 2 * lane;
    return found;
#endif
}

static inline struct entry *
entry_at(const struct limit *limit, uint32_t ref)
{
    return (struct entry *)(limit->arena + (size_t)ref * GRANULE);
}

static inline bool
is_key(const struct entry *entry, near_bytes key)
{
    return entry->key_size == key.size && memcmp(entry->bytes, key.data, key.size) == 0;
}

static inline const struct entry *
find(const struct limit *limit, uint64_t hash, near_bytes key)
{
    struct bucket *bucket = home_of(limit, hash);

    for (;;) {
        for (unsigned found = match(bucket, tag_of(hash)); found != 0; found &= found - 1) {
            uint32_t ref = bucket->refs[__builtin_ctz(found) / 2];
            if (ref != 0 && is_key(entry_at(limit, ref), key))
                return entry_at(limit, ref);
        }
        if (!bucket->overflowed)
            return NULL;
        bucket = bucket + 1 == limit->buckets + limit->n ? limit->buckets : bucket + 1;
    }
}

static inline bool
limit_get(void *cache, near_bytes key, uint64_t *sum)
{
    const struct entry *entry = find(cache, hash_of(key), key);

    if (entry == NULL)
        return false;
    *sum += (unsigned char)entry->bytes[entry->key_size];
    return true;
}

static inline unsigned
limit_many(void *cache, const near_bytes *keys, uint64_t *sum)
{
    const struct limit *limit = cache;
    uint64_t            hash[L1_BATCH];
    unsigned            hits = 0;

    for (int i = 0; i < L1_BATCH; i++) {
        hash[i] = hash_of(keys[i]);
        __builtin_prefetch(home_of(limit, hash[i]));
    }
    for (int i = 0; i < L1_BATCH; i++) {
        struct bucket *bucket = home_of(limit, hash[i]);
        unsigned       found  = match(bucket, tag_of(hash[i]));
        if (found != 0)
            __builtin_prefetch(entry_at(limit, bucket->refs[__builtin_ctz(found) / 2]));
    }
    for (int i = 0; i < L1_BATCH; i++) {
        const struct entry *entry = find(limit, hash[i], keys[i]);
        if (entry == NULL)
            continue;
        *sum += (unsigned char)entry->bytes[entry->key_size];
        hits++;
    }
    return hits;
}

static void
loop_get(struct l1_thread *t)
{
    l1_loop_get(t, limit_get);
}

static void
loop_many(struct l1_thread *t)
{
    l1_loop_many(t, limit_many);
}

/* ---- filling */

static void *
huge_pages(size_t size)
{
    char *memory =
        mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        return NULL;
    memory += HUGE - (uintptr_t)memory %
                         HUGE; /* the rest around it is never touched, nor given back before the end */
    madvise(memory, size, MADV_HUGEPAGE);
    return memory;
}

static void *
limit_open(const struct l1_peer *peer, const struct l1_world *world, uint32_t capacity, const char **why)
{
    struct limit *limit = calloc(1, sizeof(*limit));

    (void)peer;
    (void)capacity;
    *why = "out of memory";
    if (limit == NULL)
        return NULL;
    limit->n            = (uint64_t)(world->keys / LOAD) + 1;
    limit->buckets_size = limit->n * sizeof(struct bucket);
    limit->arena_size =
        ((size_t)world->keys + 1) * 2 * (L1_KEY_SIZE + L1_VALUE_SIZE + GRANULE); /* reserved only */
    limit->buckets = huge_pages(limit->buckets_size);
    limit->arena   = huge_pages(limit->arena_size);
    limit->used    = GRANULE; /* reference 0 means none */
    return limit->buckets != NULL && limit->arena != NULL ? limit : NULL;
}

static bool
limit_put(void *cache, near_bytes key, near_bytes value)
{
    struct limit  *limit  = cache;
    uint64_t       hash   = hash_of(key);
    struct bucket *bucket = home_of(limit, hash);
    size_t         size   = sizeof(struct entry) + key.size + value.size;
    struct entry  *entry  = (struct entry *)(limit->arena + limit->used);
    unsigned       lane   = 0;

    if (limit->used + size + GRANULE > limit->arena_size)
        return false;
    for (;;) {
        for (lane = 0; lane < LANES && bucket->refs[lane] != 0; lane++)
            ;
        if (lane < LANES)
            break;
        bucket->overflowed = 1;
        bucket             = bucket + 1 == limit->buckets + limit->n ? limit->buckets : bucket + 1;
    }
    bucket->tags[lane] = tag_of(hash);
    bucket->refs[lane] = (uint32_t)(limit->used / GRANULE);
    entry->key_size    = (uint16_t)key.size;
    entry->value_size  = (uint16_t)value.size;
    memcpy(entry->bytes, key.data, key.size);
    memcpy(entry->bytes + key.size, value.data, value.size);
    limit->used += (size + GRANULE - 1) / GRANULE * GRANULE;
    return true;
}

static void
limit_close(void *cache)
{
    struct limit *limit = cache;

    munmap(limit->buckets, limit->buckets_size);
    munmap(limit->arena, limit->arena_size);
    free(limit);
}

const struct l1_peer l1_limit = {
    .name  = "limit: read-only table",
    .open  = limit_open,
    .put   = limit_put,
    .close = limit_close,
    .loops = { [L1_GET] = loop_get, [L1_MANY] = loop_many },
};

/* ---- the baseline */

static inline bool
baseline_get(void *cache, near_bytes key, uint64_t *sum)
{
    uint64_t hash = hash_of(key);

    (void)cache;
    __asm__ volatile("" : : "r"(hash)); /* computed, whatever the compiler thinks of it */
    (void)sum;
    return false;
}

static void
loop_baseline(struct l1_thread *t)
{
    l1_loop_get(t, baseline_get);
}

static void *
baseline_open(const struct l1_peer *peer, const struct l1_world *world, uint32_t capacity, const char **why)
{
    static char nothing;

    (void)peer;
    (void)world;
    (void)capacity;
    *why = NULL;
    return &nothing;
}

static bool
baseline_put(void *cache, near_bytes key, near_bytes value)
{
    (void)cache;
    (void)key;
    (void)value;
    return true;
}

static void
baseline_close(void *cache)
{
    (void)cache;
}

const struct l1_peer l1_baseline = {
    .name  = "key and hash alone",
    .open  = baseline_open,
    .put   = baseline_put,
    .close = baseline_close,
    .loops = { [L1_GET] = loop_baseline },
};
