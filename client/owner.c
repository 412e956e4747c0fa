/*
 * Which member of a fleet owns a key: near_owner(), near_owners().  Pure functions: no state, no allocation, no lock.
 *
 * A member's hash for a key is h = XXH64(name, seed = XXH64(key, seed 0)), taken as a part x of the whole, h / 2^64 (0 counts as 1).  Its
 * cost is -log2(x) / weight, and the least cost owns the key: -ln(x) / w is a random time whose mean is 1 / w, and of several such
 * times each is the first one with a chance in proportion to its w (Schindelhauer and Schomaker's way to weigh rendezvous hashing).  A
 * member's cost depends on nothing but its own name and weight, so no other's change moves a key between two that stay.
 *
 * Other programs, machines and later versions must come to the same owner, so the logarithm is integer arithmetic to the last bit: it
 * is exact to 2^-50 or so, which decides nothing that chance does not, and its rounding is part of the format.  The test vectors of
 * tests/unit/test_owner.c fix it.
 */
#include "base/hash.h"

#include <string.h>

__extension__ typedef unsigned __int128 wide;

static uint64_t
high_part(uint64_t a, uint64_t b)
{
    return (uint64_t)((wide)a * b >> 64);
}

/* log2(v) for v = m / 2^63 in [1, 2), in 2^-61: 2 / ln 2 * atanh((v - 1) / (v + 1)) by its series, whose argument is below a third; of
 * its terms the 17th is smaller than the last bit. */
static uint64_t
log2_of(uint64_t m)
{
    uint64_t s   = (uint64_t)(((wide)(m - ((uint64_t)1 << 63)) << 63) / ((m >> 1) + ((uint64_t)1 << 62)));
    uint64_t s2  = high_part(s, s);
    uint64_t sum = 0; /* in 2^-63 */

    for (uint64_t term = 17; term-- > 0;)
        sum = ((uint64_t)1 << 63) / (2 * term + 1) + high_part(sum, s2);
    return high_part(high_part(s, sum), UINT64_C(0xB8AA3B295C17F0BC)); /* 2 / ln 2, in 2^-62 */
}

/* -log2(h / 2^64), in 2^-57: below 64 + 1. */
static uint64_t
cost_of(uint64_t h)
{
    int zeros;

    h     = h != 0 ? h : 1;
    zeros = __builtin_clzll(h);
    return ((uint64_t)(zeros + 1) << 57) - (log2_of(h << zeros) >> 4);
}

struct bid {
    const near_member *member;
    uint64_t           hash, cost;
};

static struct bid
bid_of(const near_member *member, uint64_t seed)
{
    uint64_t hash = near__hash_seeded(member->name, seed);

    return (struct bid){ member, hash, cost_of(hash) };
}

static int
compare_names(near_bytes a, near_bytes b)
{
    size_t least = a.size < b.size ? a.size : b.size;
    int    order = least > 0 ? memcmp(a.data, b.data, least) : 0;

    return order != 0 ? order : (a.size > b.size) - (a.size < b.size);
}

/* Whether `a` goes before `b`.  What decides equal costs is of the members, not of their places. */
static bool
is_before(const struct bid *a, const struct bid *b)
{
    wide mine = (wide)a->cost * b->member->weight, theirs = (wide)b->cost * a->member->weight;

    if (mine != theirs)
        return mine < theirs;
    if (a->hash != b->hash)
        return a->hash > b->hash;
    return compare_names(a->member->name, b->member->name) < 0;
}

static bool
has_name(const near_member *members, const size_t *owners, size_t found, near_bytes name)
{
    for (size_t i = 0; i < found; i++)
        if (near__bytes_equal(members[owners[i]].name, name))
            return true;
    return false;
}

/* The best one behind `last` (NULL: of all) whose name is not among those found. */
static size_t
next_owner(const near_member *members, size_t n, uint64_t seed, const size_t *owners, size_t found,
           const struct bid *last)
{
    size_t     owner = n;
    struct bid best  = { .cost = 0 };

    for (size_t i = 0; i < n; i++) {
        struct bid bid;

        if (members[i].weight == 0)
            continue;
        bid = bid_of(&members[i], seed);
        if ((last != NULL && is_before(&bid, last)) || (owner < n && !is_before(&bid, &best)) ||
            has_name(members, owners, found, members[i].name))
            continue;
        best  = bid;
        owner = i;
    }
    return owner;
}

size_t
near_owner(const near_member *members, size_t n, near_bytes key)
{
    return next_owner(members, n, near__hash_seeded(key, 0), NULL, 0, NULL);
}

size_t
near_owners(const near_member *members, size_t n, near_bytes key, size_t *owners, size_t most)
{
    uint64_t   seed  = near__hash_seeded(key, 0);
    size_t     found = 0;
    struct bid last;

    /* a pass for each: callers want two or three */
    while (found < most) {
        size_t owner = next_owner(members, n, seed, owners, found, found > 0 ? &last : NULL);

        if (owner == n)
            break;
        last            = bid_of(&members[owner], seed);
        owners[found++] = owner;
    }
    return found;
}
