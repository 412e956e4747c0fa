/*
 * oneTBB's two: concurrent_hash_map (no eviction) and concurrent_lru_cache (get-or-create, a preview feature).
 *
 * The map's accessors hold a lock on the item while its value is read.  The LRU cache counts only unused items against its
 * capacity and can neither be asked without creating nor overwritten: so it takes part where every get may insert.
 */
#define TBB_PREVIEW_CONCURRENT_LRU_CACHE 1
#define XXH_INLINE_ALL
#include "bench/l1.h"

#include <array>
#include <cstdint>
#include <new>
#include <tbb/concurrent_hash_map.h>
#include <tbb/concurrent_lru_cache.h>
#include <xxhash.h>

namespace
{

/* Keys and values of the benchmark's own size: no string allocates behind our back. */
struct key {
    char bytes[L1_KEY_SIZE];

    explicit key(near_bytes from)
    {
        memcpy(bytes, from.data, sizeof(bytes));
    }
    bool operator==(const key &other) const
    {
        return memcmp(bytes, other.bytes, sizeof(bytes)) == 0;
    }
    bool operator<(const key &other) const
    {
        return memcmp(bytes, other.bytes, sizeof(bytes)) < 0;
    }
};
using value = std::array<unsigned char, L1_VALUE_SIZE>;

struct hashing {
    std::size_t hash(const key &k) const
    {
        return XXH3_64bits(k.bytes, sizeof(k.bytes));
    }
    bool equal(const key &a, const key &b) const
    {
        return a == b;
    }
};

/* ---- the map */

using map = tbb::concurrent_hash_map<key, value, hashing>;

inline bool
map_get(void *cache, near_bytes k, uint64_t *sum)
{
    map::const_accessor found;

    if (!static_cast<map *>(cache)->find(found, key(k)))
        return false;
    *sum += found->second[0];
    return true;
}

bool
map_put(void *cache, near_bytes k, near_bytes v)
{
    map::accessor place;

    static_cast<map *>(cache)->insert(place, key(k));
    memcpy(place->second.data(), v.data, v.size);
    return true;
}

void
map_loop_get(l1_thread *t)
{
    l1_loop_get(t, map_get);
}

void
map_loop_mixed(l1_thread *t)
{
    l1_loop_mixed(t, map_get, map_put);
}

void *
map_open(const l1_peer *, const l1_world *world, uint32_t, const char **why)
{
    *why = "out of memory";
    return new (std::nothrow) map(world->keys);
}

void
map_close(void *cache)
{
    delete static_cast<map *>(cache);
}

/* ---- the LRU cache */

struct make { /* "loads" the value of a key: its number's last byte, as l1_value() */
    value operator()(const key &k) const
    {
        uint32_t index = 0;
        value    made;

        for (int i = L1_KEY_SIZE - 8; i < L1_KEY_SIZE; i++)
            index = index * 10 + static_cast<uint32_t>(k.bytes[i] - '0');
        l1_value(made.data(), index);
        misses++;
        return made;
    }
    static thread_local uint64_t misses;
};
thread_local uint64_t make::misses;

using lru = tbb::concurrent_lru_cache<key, value, make>;

inline bool
lru_get(void *cache, near_bytes k, uint64_t *sum)
{
    uint64_t    before = make::misses;
    lru::handle handle = (*static_cast<lru *>(cache))[key(k)];

    if (make::misses != before) /* made by this very get: a miss that has been inserted already */
        return false;
    *sum += handle.value()[0];
    return true;
}

bool
lru_put(void *cache, near_bytes k, near_bytes)
{
    lru::handle handle = (*static_cast<lru *>(cache))[key(k)];

    return true;
}

bool
lru_put_nothing(void *, near_bytes, near_bytes)
{
    return true;
}

void
lru_loop_get(l1_thread *t)
{
    l1_loop_get(t, lru_get);
}

void
lru_loop_churn(l1_thread *t)
{
    l1_loop_churn(t, lru_get, lru_put_nothing);
}

void *
lru_open(const l1_peer *, const l1_world *world, uint32_t capacity, const char **why)
{
    *why = "out of memory";
    return new (std::nothrow) lru(make(), capacity != 0 ? capacity : world->keys);
}

void
lru_close(void *cache)
{
    delete static_cast<lru *>(cache);
}

l1_peer
peer(const char *name, decltype(l1_peer::open) open, l1_put_fn put, void (*close)(void *))
{
    l1_peer made = l1_peer();

    snprintf(made.name, sizeof(made.name), "%s", name);
    made.open  = open;
    made.put   = put;
    made.close = close;
    return made;
}

l1_peer
map_peer()
{
    l1_peer made = peer("oneTBB concurrent_hash_map", map_open, map_put, map_close);

    made.loops[L1_GET]   = map_loop_get;
    made.loops[L1_MIXED] = map_loop_mixed;
    return made;
}

l1_peer
lru_peer()
{
    l1_peer made = peer("oneTBB concurrent_lru_cache", lru_open, lru_put, lru_close);

    made.loops[L1_GET]   = lru_loop_get;
    made.loops[L1_CHURN] = lru_loop_churn;
    made.evicts          = true;
    return made;
}

} // namespace

const l1_peer l1_tbb_map = map_peer();
const l1_peer l1_tbb_lru = lru_peer();
