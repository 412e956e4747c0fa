/* Small words shared by the tests of l1/. */
#ifndef TESTS_UNIT_L1_HELP_H
#define TESTS_UNIT_L1_HELP_H

#include "harness/test.h"

#include "base/hash.h"
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

/* An L1 that is there, or the test ends. */
static inline struct near__l1 *
l1_open(size_t max_bytes, size_t max_entries, unsigned shards)
{
    struct near__l1_config config = { max_bytes, max_entries, shards, "lru" };
    struct near__l1       *l1     = NULL;

    assert_int_equal(near__l1_new(&l1, &config), NEAR_OK);
    assert_non_null(l1);
    return l1;
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
entry_is(const struct near__entry *entry, const char *value)
{
    return entry != NULL && near__bytes_equal((near_bytes){ entry->value, entry->value_size }, text(value));
}

/* Whether a find at `now` answers `value`; NULL: answers nothing. */
static inline bool
finds_at(struct near__l1 *l1, const char *key, int64_t now, const char *value)
{
    struct near__entry *entry = near__l1_find(l1, hash_of(text(key)), text(key), now);
    bool                right = value == NULL ? entry == NULL : entry_is(entry, value);

    near__entry_release(&entry);
    return right;
}

static inline bool
finds(struct near__l1 *l1, const char *key, const char *value)
{
    return finds_at(l1, key, 0, value);
}

static inline struct near__l1_stats
stats_of(struct near__l1 *l1)
{
    struct near__l1_stats stats;

    near__l1_stats(l1, &stats);
    return stats;
}

#endif
