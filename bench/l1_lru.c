/*
 * What one writes in an afternoon, done well: shards of {mutex, chained hash table, intrusive LRU list}, entries from malloc, the
 * value read in place under the lock.  sharded64 has 64 shards, the other one.
 *
 * A shard's lock covers everything in it.  Entries never leave their shard; an overwrite of the same size is done in place.
 */
#define XXH_INLINE_ALL
#include "bench/l1.h"

#include <pthread.h>
#include <stdlib.h>
#include <xxhash.h>

struct links {
    struct links *newer, *older;
};

struct entry {
    struct links  links; /* first: a link's address is its entry's */
    struct entry *chain;
    uint64_t      hash;
    uint32_t      key_size, value_size;
    char          bytes[]; /* key, value */
};

struct shard {
    pthread_mutex_t lock;
    struct entry  **buckets;
    uint64_t        mask;
    struct links    ends; /* newer: the oldest; older: the newest */
    size_t          entries, capacity;
} __attribute__((aligned(128)));

struct lru {
    unsigned      bits; /* log2 of the shards */
    struct shard *shards;
};

static inline struct shard *
shard_of(const struct lru *lru, uint64_t hash)
{
    return &lru->shards[lru->bits == 0 ? 0 : hash >> (64 - lru->bits)];
}

static inline struct entry *
find(const struct shard *shard, uint64_t hash, near_bytes key)
{
    struct entry *entry = shard->buckets[hash & shard->mask];

    while (entry != NULL && (entry->hash != hash || entry->key_size != key.size ||
                             memcmp(entry->bytes, key.data, key.size) != 0))
        entry = entry->chain;
    return entry;
}

static inline void
leave(struct links *links)
{
    links->newer->older = links->older;
    links->older->newer = links->newer;
}

static inline void
front(struct shard *shard, struct links *links)
{
    links->newer             = &shard->ends;
    links->older             = shard->ends.older;
    shard->ends.older->newer = links;
    shard->ends.older        = links;
}

static inline bool
lru_get(void *cache, near_bytes key, uint64_t *sum)
{
    uint64_t      hash  = XXH3_64bits(key.data, key.size);
    struct shard *shard = shard_of(cache, hash);
    struct entry *entry;

    pthread_mutex_lock(&shard->lock);
    entry = find(shard, hash, key);
    if (entry != NULL) {
        if (shard->ends.older != &entry->links) {
            leave(&entry->links);
            front(shard, &entry->links);
        }
        *sum += (unsigned char)entry->bytes[entry->key_size];
    }
    pthread_mutex_unlock(&shard->lock);
    return entry != NULL;
}

/* The oldest, out of everything; the caller frees it. */
static struct entry *
evict(struct shard *shard)
{
    struct entry  *victim = (struct entry *)shard->ends.newer;
    struct entry **link   = &shard->buckets[victim->hash & shard->mask];

    while (*link != victim)
        link = &(*link)->chain;
    *link = victim->chain;
    leave(&victim->links);
    shard->entries--;
    return victim;
}

static bool
overwrite(struct shard *shard, uint64_t hash, near_bytes key, near_bytes value)
{
    struct entry *entry = find(shard, hash, key);

    if (entry == NULL || entry->value_size != value.size) /* the benchmark's values are all of one size */
        return false;
    memcpy(entry->bytes + key.size, value.data, value.size);
    leave(&entry->links);
    front(shard, &entry->links);
    return true;
}

static void
link_in(struct shard *shard, struct entry *entry)
{
    entry->chain                              = shard->buckets[entry->hash & shard->mask];
    shard->buckets[entry->hash & shard->mask] = entry;
    front(shard, &entry->links);
    shard->entries++;
}

static bool
lru_put(void *cache, near_bytes key, near_bytes value)
{
    uint64_t      hash   = XXH3_64bits(key.data, key.size);
    struct shard *shard  = shard_of(cache, hash);
    struct entry *victim = NULL, *entry = NULL;
    bool          done;

    pthread_mutex_lock(&shard->lock);
    done = overwrite(shard, hash, key, value);
    pthread_mutex_unlock(&shard->lock);
    if (done)
        return true;
    entry = malloc(sizeof(*entry) + key.size + value.size);
    if (entry == NULL)
        return false;
    entry->hash       = hash;
    entry->key_size   = (uint32_t)key.size;
    entry->value_size = (uint32_t)value.size;
    memcpy(entry->bytes, key.data, key.size);
    memcpy(entry->bytes + key.size, value.data, value.size);

    pthread_mutex_lock(&shard->lock);
    if (overwrite(shard, hash, key, value)) { /* somebody was faster */
        victim = entry;
    } else {
        if (shard->entries >= shard->capacity)
            victim = evict(shard);
        link_in(shard, entry);
    }
    pthread_mutex_unlock(&shard->lock);
    free(victim);
    return true;
}

static void
loop_get(struct l1_thread *t)
{
    l1_loop_get(t, lru_get);
}

static void
loop_churn(struct l1_thread *t)
{
    l1_loop_churn(t, lru_get, lru_put);
}

static void
loop_sampled(struct l1_thread *t)
{
    l1_loop_sampled(t, lru_get, lru_put);
}

static void
loop_mixed(struct l1_thread *t)
{
    l1_loop_mixed(t, lru_get, lru_put);
}

static void
lru_close(void *cache)
{
    struct lru *lru = cache;

    for (unsigned i = 0; i < 1u << lru->bits; i++) {
        struct shard *shard = &lru->shards[i];
        while (shard->entries > 0)
            free(evict(shard));
        free(shard->buckets);
        pthread_mutex_destroy(&shard->lock);
    }
    free(lru->shards);
    free(lru);
}

static void *
lru_open(unsigned bits, uint32_t entries, bool evicts)
{
    struct lru *lru      = calloc(1, sizeof(*lru));
    size_t      n        = (size_t)1 << bits;
    uint64_t    buckets  = 1;
    size_t      capacity = evicts ? (entries + n - 1) / n : SIZE_MAX;

    while (buckets < (entries + n - 1) / n)
        buckets *= 2;
    if (lru == NULL ||
        (lru->shards = aligned_alloc(_Alignof(struct shard), n * sizeof(struct shard))) == NULL)
        return NULL;
    lru->bits = bits;
    for (size_t i = 0; i < n; i++) {
        struct shard *shard = &lru->shards[i];
        *shard              = (struct shard){ .mask = buckets - 1, .capacity = capacity };
        shard->ends.newer = shard->ends.older = &shard->ends;
        shard->buckets                        = calloc(buckets, sizeof(*shard->buckets));
        pthread_mutex_init(&shard->lock, NULL);
        if (shard->buckets == NULL)
            return NULL;
    }
    return lru;
}

static void *
open_64(const struct l1_peer *peer, const struct l1_world *world, uint32_t capacity, const char **why)
{
    (void)peer;
    *why = "out of memory";
    return lru_open(6, capacity != 0 ? capacity : world->keys, capacity != 0);
}

static void *
open_1(const struct l1_peer *peer, const struct l1_world *world, uint32_t capacity, const char **why)
{
    (void)peer;
    *why = "out of memory";
    return lru_open(0, capacity != 0 ? capacity : world->keys, capacity != 0);
}

#define LOOPS                                                                                                \
    {                                                                                                        \
        [L1_GET] = loop_get, [L1_CHURN] = loop_churn, [L1_SAMPLED] = loop_sampled, [L1_MIXED] = loop_mixed   \
    }

const struct l1_peer l1_sharded64 = {
    .name   = "sharded64: mutex, LRU",
    .open   = open_64,
    .put    = lru_put,
    .close  = lru_close,
    .loops  = LOOPS,
    .evicts = true,
};

const struct l1_peer l1_one_mutex = {
    .name   = "one mutex, LRU",
    .open   = open_1,
    .put    = lru_put,
    .close  = lru_close,
    .loops  = LOOPS,
    .evicts = true,
};
