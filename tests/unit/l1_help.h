/* Small words shared by the tests of l1/. */
#ifndef TESTS_UNIT_L1_HELP_H
#define TESTS_UNIT_L1_HELP_H

#include "harness/test.h"

#include "base/hash.h"
#include "l1/find.h"
#include "l1/l1.h"

#include <string.h>

static inline near_bytes
text(const char *s)
{
    return (near_bytes){ s, strlen(s) };
}

static inline uint64_t
hash_of(near_bytes key)
{
    return near__hash_fixed(key);
}

/* The same for an L1 that asks for it. */
static inline uint64_t
hash_again(const void *ctx, near_bytes key)
{
    (void)ctx;
    return hash_of(key);
}

static inline struct near__l1_config
l1_config(size_t max_bytes, size_t max_entries, unsigned shards, const char *policy)
{
    return (struct near__l1_config){ .max_bytes   = max_bytes,
                                     .max_entries = max_entries,
                                     .shards      = shards,
                                     .policy      = policy,
                                     .hash        = hash_again };
}

#ifdef NEAR_TEST_POOLS
/* The same tests over an L1 of so many pools, each as large as the one would be; entries move with each write or fill. */
static inline unsigned
pool_by_turns(void *ctx, near_bytes key, size_t value_size)
{
    static _Atomic uint32_t turn;

    (void)ctx;
    (void)key;
    (void)value_size;
    return 1 + (atomic_fetch_add(&turn, 1) * UINT32_C(0x9E3779B1) >> 16) % NEAR_TEST_POOLS;
}

static inline void
make_pools(struct near__l1_config *config, struct near__l1_domain pools[NEAR_TEST_POOLS])
{
    for (int i = 0; i < NEAR_TEST_POOLS; i++)
        pools[i] = (struct near__l1_domain){
            .max_bytes = config->max_bytes < SIZE_MAX / NEAR_TEST_POOLS ? config->max_bytes
                                                                        : SIZE_MAX / NEAR_TEST_POOLS,
            .policy    = config->policy,
        };
    config->pools_n = NEAR_TEST_POOLS;
    config->pools   = pools;
    config->pool_of = pool_by_turns;
}
#endif

/* An L1 that is there, or the test ends. */
static inline struct near__l1 *
l1_open_with(const struct near__l1_config *wanted)
{
    struct near__l1        *l1     = NULL;
    struct near__l1_config  used   = *wanted;
    struct near__l1_config *config = &used;
#ifdef NEAR_TEST_POOLS
    struct near__l1_domain pools[NEAR_TEST_POOLS];

    if (used.max_bytes > 0)
        make_pools(&used, pools);
#endif

    assert_int_equal(near__l1_new(&l1, config), NEAR_OK);
    assert_non_null(l1);
    return l1;
}

static inline struct near__l1 *
l1_open(size_t max_bytes, size_t max_entries, unsigned shards)
{
    struct near__l1_config config = l1_config(max_bytes, max_entries, shards, "lru");

    return l1_open_with(&config);
}

static inline struct near__entry *
entry_of(near_bytes key, uint64_t hash, near_bytes value)
{
    void               *room  = NULL;
    struct near__entry *entry = near__entry_new(key, hash, value.size, &room);

    if (entry != NULL && value.size > 0)
        memcpy(room, value.data, value.size);
    return entry;
}

/* Offer key = value under the fence of this moment. */
static inline enum near__l1_admission
put(struct near__l1 *l1, const char *key, const char *value)
{
    uint64_t                hash  = hash_of(text(key));
    struct near__entry     *entry = entry_of(text(key), hash, text(value));
    enum near__l1_admission verdict;

    verdict = near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0);
    near__entry_release(&entry);
    return verdict;
}

static inline bool
value_is(const near_value *value, const char *expected)
{
    return value != NULL && value != NEAR__L1_NEGATIVE &&
           near__bytes_equal(near__value_data(value), text(expected));
}

/* NULL and the negative answer are held by nobody. */
static inline void
let_go_of(near_value *value)
{
    if ((uintptr_t)value > NEAR__VALUE_BITS)
        near__value_release(value);
}

static inline near_value *
find_at(struct near__l1 *l1, const char *key, int64_t now)
{
    return near__l1_find(l1, hash_of(text(key)), text(key), now);
}

/* Whether a find at `now` answers `value`, by the short way and by the long one; NULL: answers nothing. */
static inline bool
finds_at(struct near__l1 *l1, const char *key, int64_t now, const char *value)
{
    near_value *quick = near__l1_hit((struct near__l1_front *)l1, hash_of(text(key)), text(key), now);
    near_value *slow  = find_at(l1, key, now);
    bool        right =
        value == NULL ? quick == NULL && slow == NULL : value_is(quick, value) && value_is(slow, value);

    let_go_of(quick);
    let_go_of(slow);
    return right;
}

static inline bool
finds(struct near__l1 *l1, const char *key, const char *value)
{
    return finds_at(l1, key, 0, value);
}

/* Upkeep until there is nothing more to do, and once round for what has expired. */
static inline void
upkeep_all(struct near__l1 *l1, int64_t now)
{
    enum { LAP = 64 }; /* calls for a lap, and some */

    for (int i = 0; i < 100000 && near__l1_upkeep(l1, now, 64); i++)
        ;
    for (int i = 0; i < LAP; i++)
        near__l1_upkeep(l1, now, 64);
}

static inline struct near__l1_stats
stats_of(struct near__l1 *l1)
{
    struct near__l1_stats stats;

    near__l1_stats(l1, &stats);
    return stats;
}

#endif
