/*
 * The simulator (see the header).
 *
 * A reference is what identifies the key: in production the element itself (0 becomes 1), in exact runs the key's number, given in
 * order of first appearance by a hash table of whole hashes.  In exact runs the element is made from that number, so that home and
 * tag together are one key's alone.
 */
#include "l1/simulate.h"

#include "l1/lfu_exact.h"

#include <stdlib.h>
#include <string.h>

enum {
    SHARD_ENTRIES = 2048, /* the rule of l1.c */
    SHARDS_MAX    = 64,
    CHUNK_SHIFT   = 6, /* buckets of 4 KiB */
    EXACT_SHIFT   = 8, /* at least so many home bits in exact runs: 2^24 keys can be told apart */
    KEYS_FIRST    = 4096
};

struct shard {
    struct near__table table;
    struct near__order order;
    size_t             capacity;
};

struct near__simulator {
    const struct near__policy *policy;
    void                      *pool;
    bool                       exact;
    unsigned                   exact_bits; /* log2 of the homes */
    size_t                     shard_mask;
    /* exact: the numbers of keys */
    uint64_t               *key_hash; /* 0: free */
    uint32_t               *key_number;
    size_t                  key_mask, keys;
    struct near__lfu_exact *lfu;    /* exact lfu without guards: instead of all else but the numbers */
    size_t                  opened; /* shards */
    struct shard            shards[];
};

/* ---- what a table needs */

static void *
chunk_new(void *ctx)
{
    const struct near__table *table = ctx;

    return near__zeroed(sizeof(struct near__bucket), sizeof(struct near__bucket) << table->chunk_shift);
}

static void
chunk_free(void *ctx, void *chunk)
{
    (void)ctx;
    free(chunk);
}

static uint32_t
element_of(void *ctx, uint32_t ref)
{
    (void)ctx;
    return ref;
}

/* ---- birth and end */

static unsigned
choose_shards(const struct near__simulator_config *config)
{
    unsigned shards = 1;

    if (config->exact || config->shards != 0)
        return config->shards == 0 ? 1 : config->shards;
    while (shards < SHARDS_MAX && config->capacity / (2 * shards) >= SHARD_ENTRIES)
        shards *= 2;
    return shards;
}

static near_status
shard_open(struct near__simulator *simulator, struct shard *shard, bool textbook)
{
    struct near__table *table = &shard->table;
    uint32_t            homes = 1;
    near_status         status;

    table->capacity    = shard->capacity;
    table->chunk_shift = CHUNK_SHIFT;
    table->chunk_new   = chunk_new;
    table->chunk_free  = chunk_free;
    table->chunk_ctx   = table;
    table->element_of  = element_of;
    table->exact       = simulator->exact;
    table->max_chunks  = (shard->capacity >> CHUNK_SHIFT) / 4 + 2;
    if (simulator->exact) {
        table->chunk_shift = (uint8_t)simulator->exact_bits;
        table->max_chunks  = 1;
        homes              = 1u << simulator->exact_bits;
    }
    status = near__table_init(table, homes);
    if (status != NEAR_OK)
        return status;
    shard->order = (struct near__order){
        .policy = simulator->policy, .table = table, .pool = simulator->pool, .textbook = textbook
    };
    status = simulator->policy->open(&shard->order);
    if (status != NEAR_OK)
        near__table_fini(table);
    return status;
}

static near_status
simulator_fill(struct near__simulator *simulator, const struct near__simulator_config *config)
{
    near_status status = NEAR_OK;

    if (simulator->exact) {
        simulator->key_mask   = KEYS_FIRST - 1;
        simulator->key_hash   = calloc(KEYS_FIRST, sizeof(*simulator->key_hash));
        simulator->key_number = calloc(KEYS_FIRST, sizeof(*simulator->key_number));
        if (simulator->key_hash == NULL || simulator->key_number == NULL)
            return NEAR_ERR_NOMEM;
    }
    if (simulator->exact && simulator->policy == &near__lfu && !config->guards)
        status = near__lfu_exact_open(&simulator->lfu, config->capacity);
    if (status == NEAR_OK && simulator->policy->pool_open != NULL)
        status = simulator->policy->pool_open(&simulator->pool, config->capacity);
    for (size_t i = 0; status == NEAR_OK && i <= simulator->shard_mask; i++) {
        size_t shards                 = simulator->shard_mask + 1;
        simulator->shards[i].capacity = config->capacity / shards + (i < config->capacity % shards);
        status = shard_open(simulator, &simulator->shards[i], config->exact && !config->guards);
        simulator->opened += status == NEAR_OK;
    }
    return status;
}

near_status
near__simulator_open(struct near__simulator **out, const struct near__simulator_config *config)
{
    unsigned                   shards = choose_shards(config);
    const struct near__policy *policy = near__policy_named(config->policy);
    struct near__simulator    *simulator;
    near_status                status;

    *out = NULL;
    if (policy == NULL || config->capacity < shards || (shards & (shards - 1)) != 0 ||
        (config->exact && shards != 1))
        return NEAR_ERR_INVALID;
    simulator = calloc(1, sizeof(*simulator) + shards * sizeof(struct shard));
    if (simulator == NULL)
        return NEAR_ERR_NOMEM;
    simulator->policy     = policy;
    simulator->exact      = config->exact;
    simulator->shard_mask = shards - 1;
    simulator->exact_bits = EXACT_SHIFT;
    while ((size_t)5 << simulator->exact_bits < config->capacity)
        simulator->exact_bits++;
    status = simulator_fill(simulator, config);
    *out   = simulator;
    if (status != NEAR_OK)
        near__simulator_close(out);
    return status;
}

void
near__simulator_close(struct near__simulator **out)
{
    struct near__simulator *simulator = *out;

    *out = NULL;
    if (simulator == NULL)
        return;
    for (size_t i = 0; i < simulator->opened; i++) {
        simulator->policy->close(&simulator->shards[i].order);
        near__table_fini(&simulator->shards[i].table);
    }
    if (simulator->pool != NULL)
        simulator->policy->pool_close(simulator->pool);
    near__lfu_exact_close(&simulator->lfu);
    free(simulator->key_hash);
    free(simulator->key_number);
    free(simulator);
}

/* ---- the numbers of keys */

static bool
keys_grow(struct near__simulator *simulator)
{
    size_t    mask   = 2 * simulator->key_mask + 1;
    uint64_t *hash   = calloc(mask + 1, sizeof(*hash));
    uint32_t *number = calloc(mask + 1, sizeof(*number));

    if (hash == NULL || number == NULL) {
        free(hash);
        free(number);
        return false;
    }
    for (size_t i = 0; i <= simulator->key_mask; i++) {
        size_t at = simulator->key_hash[i] & mask;
        if (simulator->key_hash[i] == 0)
            continue;
        while (hash[at] != 0)
            at = (at + 1) & mask;
        hash[at]   = simulator->key_hash[i];
        number[at] = simulator->key_number[i];
    }
    free(simulator->key_hash);
    free(simulator->key_number);
    simulator->key_hash   = hash;
    simulator->key_number = number;
    simulator->key_mask   = mask;
    return true;
}

/* 1, 2, 3 ...; without memory for more, all further keys are one. */
static uint32_t
key_number(struct near__simulator *simulator, uint64_t hash)
{
    size_t at;

    hash += hash == 0;
    for (at = hash & simulator->key_mask; simulator->key_hash[at] != 0; at = (at + 1) & simulator->key_mask)
        if (simulator->key_hash[at] == hash)
            return simulator->key_number[at];
    if (4 * simulator->keys > 3 * simulator->key_mask) {
        if (!keys_grow(simulator))
            return 1;
        return key_number(simulator, hash);
    }
    simulator->key_hash[at]   = hash;
    simulator->key_number[at] = (uint32_t)++simulator->keys;
    return simulator->key_number[at];
}

/* ---- accesses */

struct key {
    struct shard *shard;
    uint32_t      element, ref;
};

static struct key
key_of(struct near__simulator *simulator, uint64_t hash)
{
    struct key key = { &simulator->shards[hash & simulator->shard_mask], near__element(hash), 0 };
    uint32_t   low = (1u << simulator->exact_bits) - 1;

    if (!simulator->exact) {
        key.ref = key.element + (key.element == 0);
        return key;
    }
    key.ref     = key_number(simulator, hash);
    key.element = (key.ref >> simulator->exact_bits) << 16 | (key.ref & low);
    if (simulator->exact_bits > 16) /* the tag's lower bits are among those that choose the home */
        key.element = key.ref;
    return key;
}

static bool
find(const struct near__table *table, const struct key *key, struct near__place *place)
{
    uint64_t             size   = near__table_size(table);
    struct near__bucket *bucket = near__table_bucket(table, near__table_home(size, key->element));

    if (near__bucket_stale(table, bucket))
        return false;
    for (; bucket != NULL; bucket = near__table_after(table, bucket)) {
        for (uint32_t match = near__bucket_match(bucket, near__tag(key->element)); match != 0;
             match          = NEAR__LANE_NEXT(match)) {
            *place = (struct near__place){ bucket, NEAR__LANE(match) };
            if (near__place_ref(*place) == key->ref)
                return true;
        }
    }
    return false;
}

static void
used(struct near__simulator *simulator, const struct key *key, struct near__place place)
{
    struct near__table *table = &key->shard->table;
    uint8_t             mark  = near__place_mark(place);
    uint8_t             after = near__mark_hit(mark, atomic_load_explicit(&table->tick, memory_order_relaxed),
                                               atomic_load_explicit(&table->count_mask, memory_order_relaxed));

    if (after != mark) {
        near__place_mark_set(place, after);
        if (simulator->policy->watch != NULL)
            simulator->policy->watch(&key->shard->order, key->element, true);
    }
    if (simulator->exact && simulator->policy->hit != NULL)
        simulator->policy->hit(&key->shard->order, key->element, place);
}

static void
drop(void *ctx, uint32_t ref)
{
    (void)ctx;
    (void)ref;
}

static void
insert(struct near__simulator *simulator, const struct key *key)
{
    struct near__table *table = &key->shard->table;
    struct near__order *order = &key->shard->order;
    struct near__place  place;
    uint32_t            victim;
    uint8_t             mark;
    int                 wants;

    if (simulator->policy->watch != NULL)
        simulator->policy->watch(order, key->element, false);
    while (table->entries >= key->shard->capacity) {
        order->table->full = order->table->entries;
        if (!simulator->policy->victim(order, &place, &victim))
            return;
        near__table_erase(table, victim, place);
    }
    near__table_purge(table, near__table_home(near__table_size(table), key->element), drop, NULL);
    mark = simulator->policy->enter(order, key->element);
    if (!near__table_insert(table, key->element, key->ref, mark, &place))
        return;
    if (simulator->exact && simulator->policy->hit != NULL)
        simulator->policy->hit(order, key->element, place);
    wants = near__table_wants(table);
    if (wants > 0)
        near__table_split(table);
    if (wants < 0)
        near__table_join(table);
}

bool
near__simulator_access(struct near__simulator *simulator, uint64_t hash)
{
    struct key         key = key_of(simulator, hash);
    struct near__place place;

    if (simulator->lfu != NULL)
        return near__lfu_exact_access(simulator->lfu, key.ref);
    if (find(&key.shard->table, &key, &place)) {
        used(simulator, &key, place);
        return true;
    }
    insert(simulator, &key);
    return false;
}

void
near__simulator_put(struct near__simulator *simulator, uint64_t hash)
{
    struct key         key = key_of(simulator, hash);
    struct near__place place;

    if (simulator->lfu != NULL) {
        if (!near__lfu_exact_has(simulator->lfu, key.ref))
            near__lfu_exact_access(simulator->lfu, key.ref);
    } else if (!find(&key.shard->table, &key, &place)) {
        insert(simulator, &key);
    }
}

bool
near__simulator_remove(struct near__simulator *simulator, uint64_t hash)
{
    struct key         key = key_of(simulator, hash);
    struct near__place place;

    if (simulator->lfu != NULL)
        return near__lfu_exact_remove(simulator->lfu, key.ref);
    if (!find(&key.shard->table, &key, &place))
        return false;
    near__table_erase(&key.shard->table, key.element, place);
    return true;
}

void
near__simulator_resize(struct near__simulator *simulator, size_t capacity)
{
    size_t shards = simulator->shard_mask + 1;

    if (simulator->lfu != NULL)
        near__lfu_exact_resize(simulator->lfu, capacity);
    for (size_t i = 0; i < shards; i++) {
        size_t part = capacity / shards + (i < capacity % shards);

        simulator->shards[i].capacity       = part > 0 ? part : 1;
        simulator->shards[i].table.capacity = simulator->shards[i].capacity;
    }
}

void
near__simulator_clear(struct near__simulator *simulator)
{
    if (simulator->lfu != NULL)
        near__lfu_exact_clear(simulator->lfu);
    for (size_t i = 0; i <= simulator->shard_mask; i++) {
        struct shard *shard = &simulator->shards[i];
        near__table_clear(&shard->table);
        for (uint32_t home = 0; home < near__table_homes(&shard->table); home++)
            near__table_purge(&shard->table, home, drop, NULL);
        simulator->policy->reset(&shard->order);
    }
}

struct near__simulator_bytes
near__simulator_bytes(const struct near__simulator *simulator)
{
    struct near__simulator_bytes bytes = { 0, 0, 0, 0 };

    for (size_t i = 0; i <= simulator->shard_mask; i++) {
        bytes.entries += simulator->shards[i].table.entries;
        bytes.index += near__table_bytes(&simulator->shards[i].table);
        bytes.policy += simulator->policy->bytes(&simulator->shards[i].order);
    }
    if (simulator->policy->pool_bytes != NULL)
        bytes.pool = simulator->policy->pool_bytes(simulator->pool);
    if (simulator->lfu != NULL)
        bytes.entries = near__lfu_exact_entries(simulator->lfu);
    return bytes;
}
