/*
 * Pools (l1/pools.h): one L1 of several eviction domains.  Which pool an entry is in, that pools do not evict each other's, that a key is
 * in one of them at most, their TTLs, bounds, resizes, tags and clears.  The fences are played by test_l1_races and the threads by
 * test_l1_stress, both built over pools as well; what is here besides is threads that move keys while others read versions.
 */
#define TEST_NAME "pools"
#include "unit/l1_help.h"

#include "harness/shortage.h"

#include "l1/curve.h"
#include "l1/disk.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MIB(n)  ((size_t)(n) << 20)
#define SECONDS (1000 * NEAR_MS)

/* ---- small words */

enum { HOT = 1, BULK, OTHER, POOLS = 3 };

/* By the key's first letter; what begins otherwise is not known. */
static unsigned
by_letter(void *ctx, near_bytes key, size_t value_size)
{
    char first = key.size > 0 ? *(const char *)key.data : ' ';

    (void)ctx;
    if (value_size > 100 * 1024)
        return BULK;
    return first == 'h' ? HOT : first == 'b' ? BULK : first == 'o' ? OTHER : first == 'x' ? 77 : 0;
}

static struct near__l1 *
pools_open(size_t hot, size_t bulk, size_t other, const char *policy)
{
    struct near__l1_domain domains[POOLS] = { { hot, policy, 0 }, { bulk, policy, 0 }, { other, "lru", 0 } };
    struct near__l1_config config         = l1_config(0, 0, 0, "none of them");

    config.pools   = domains;
    config.pools_n = POOLS;
    config.pool_of = by_letter;
    return l1_open_with(&config);
}

static struct near__l1_stats
pool_stats(struct near__l1 *l1, unsigned pool)
{
    struct near__l1_stats stats;
    size_t                max_bytes;

    near__l1_pool_stats(l1, pool, &stats, &max_bytes);
    return stats;
}

static size_t
bound_of(struct near__l1 *l1, unsigned pool)
{
    struct near__l1_stats stats;
    size_t                max_bytes;

    near__l1_pool_stats(l1, pool, &stats, &max_bytes);
    return max_bytes;
}

static unsigned
pool_of(struct near__l1 *l1, const char *key)
{
    return near__l1_pool_of(l1, hash_of(text(key)), text(key), 0);
}

/* A fill of this moment, for a pool (0: not said), that ends at `expires`. */
static enum near__l1_admission
fill(struct near__l1 *l1, const char *key, size_t size, unsigned pool, int64_t expires)
{
    uint64_t                hash = hash_of(text(key));
    void                   *room;
    struct near__entry     *entry = near__entry_new(text(key), hash, size, &room);
    enum near__l1_admission verdict;

    assert_non_null(entry);
    memset(room, key[0], size);
    entry->pool    = (uint8_t)pool;
    entry->expires = entry->fresh_until = expires;
    verdict                             = near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0);
    near__entry_release(&entry);
    return verdict;
}

static void
fill_numbers(struct near__l1 *l1, char letter, int from, int to, size_t size)
{
    char key[24];

    for (int i = from; i < to; i++) {
        snprintf(key, sizeof(key), "%c%d", letter, i);
        fill(l1, key, size, 0, NEAR_NEVER);
    }
}

static int
count_found(struct near__l1 *l1, char letter, int from, int to)
{
    int  found = 0;
    char key[24];

    for (int i = from; i < to; i++) {
        near_value *value;

        snprintf(key, sizeof(key), "%c%d", letter, i);
        value = find_at(l1, key, 0);
        found += value != NULL;
        let_go_of(value);
    }
    return found;
}

/* ---- which pool */

static void
test_the_pool_is_said_chosen_or_the_first(void **state)
{
    struct near__l1 *l1 = pools_open(MIB(1), MIB(2), MIB(1), "lru");

    (void)state;
    assert_int_equal(near__l1_pools(l1), POOLS);
    fill(l1, "hello", 10, 0, NEAR_NEVER);
    fill(l1, "bye", 10, 0, NEAR_NEVER);
    fill(l1, "other", 10, 0, NEAR_NEVER);
    fill(l1, "nothing", 10, 0, NEAR_NEVER);
    fill(l1, "xylophone", 10, 0, NEAR_NEVER); /* a number that there is not */
    fill(l1, "hinted", 10, OTHER, NEAR_NEVER);
    fill(l1, "huge", 200 * 1024, 0, NEAR_NEVER);
    assert_int_equal(pool_of(l1, "hello"), HOT);
    assert_int_equal(pool_of(l1, "bye"), BULK);
    assert_int_equal(pool_of(l1, "other"), OTHER);
    assert_int_equal(pool_of(l1, "nothing"), HOT);
    assert_int_equal(pool_of(l1, "xylophone"), HOT);
    assert_int_equal(pool_of(l1, "hinted"), OTHER);
    assert_int_equal(pool_of(l1, "huge"), BULK);
    assert_int_equal(pool_of(l1, "absent"), 0);
    assert_int_equal(stats_of(l1).entries, 7);
    near__l1_free(&l1);
}

static void
test_a_key_that_changes_its_pool_leaves_the_old_one(void **state)
{
    struct near__l1 *l1     = pools_open(MIB(1), MIB(1), MIB(1), "lru");
    uint64_t         random = 1;
    char             key[16];

    (void)state;
    for (int i = 0; i < 20000; i++) {
        snprintf(key, sizeof(key), "h%d", (int)(test_random(&random) % 50));
        fill(l1, key, test_random(&random) % 100 == 0 ? 70000 : 40, 1 + test_random(&random) % POOLS,
             NEAR_NEVER);
        assert_true(stats_of(l1).entries <= 50); /* the sum over the pools */
    }
    assert_int_equal(stats_of(l1).entries, 50);
    for (unsigned pool = 1; pool <= POOLS; pool++)
        assert_true(pool_stats(l1, pool).entries > 0);
    near__l1_free(&l1);
}

/* A fill does not move fences; one that moves its key does: who looked in between saw nothing, and must not think that it was so. */
static void
test_a_move_is_no_absence_to_a_conditional_write(void **state)
{
    struct near__l1    *l1    = pools_open(MIB(1), MIB(1), MIB(1), "lru");
    uint64_t            hash  = hash_of(text("hello")), fence;
    struct near__entry *entry = entry_of(text("hello"), hash, text("if absent"));

    (void)state;
    fill(l1, "hello", 10, HOT, NEAR_NEVER);
    fence = near__l1_fence(l1, hash);
    fill(l1, "hello", 10, HOT, NEAR_NEVER);
    assert_true(near__l1_fence_same(near__l1_fence(l1, hash), fence));
    fill(l1, "hello", 10, BULK, NEAR_NEVER);
    assert_int_equal(near__l1_store_if(l1, entry, fence, 0), NEAR__L1_FENCED);
    near__entry_release(&entry);
    near__l1_free(&l1);
}

static void
test_invalidations_tags_and_clears_reach_every_pool(void **state)
{
    struct near__l1         *l1     = pools_open(MIB(1), MIB(1), MIB(1), "lru");
    static const char *const keys[] = { "hello", "bye", "other" };
    uint64_t                 fences[POOLS];

    (void)state;
    for (int i = 0; i < POOLS; i++) {
        uint64_t hash = hash_of(text(keys[i]));

        fill(l1, keys[i], 10, 0, NEAR_NEVER);
        fences[i] = near__l1_fence(l1, hash);
        near__l1_invalidate(l1, hash, text(keys[i]));
        assert_int_equal(pool_of(l1, keys[i]), 0);
        assert_false(near__l1_fence_same(fences[i], near__l1_fence(l1, hash)));
        fill(l1, keys[i], 10, 0, NEAR_NEVER);
        fences[i] = near__l1_fence(l1, hash);
    }
    near__l1_flush(l1);
    assert_int_equal(stats_of(l1).entries, 0);
    for (int i = 0; i < POOLS; i++)
        assert_false(near__l1_fence_same(fences[i], near__l1_fence(l1, hash_of(text(keys[i])))));
    for (int i = 0; i < POOLS; i++) {
        uint64_t             hash   = hash_of(text(keys[i]));
        struct near__entry  *entry  = entry_of(text(keys[i]), hash, text("tagged"));
        struct near__labels *labels = calloc(1, sizeof(*labels));

        labels->n          = 1;
        labels->clock      = near__l1_label_clock(l1);
        labels->stripes[0] = near__label_stripe(4711);
        entry->labels      = labels;
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
        assert_int_equal(pool_of(l1, keys[i]), i + 1);
    }
    near__l1_invalidate_tag(l1, 4711);
    for (int i = 0; i < POOLS; i++)
        assert_int_equal(pool_of(l1, keys[i]), 0);
    near__l1_free(&l1);
}

/* ---- domains */

/* What a scan through `letter` leaves of 2000 entries of `h` that are in use. */
static int
left_by_a_scan(struct near__l1 *l1, char letter)
{
    fill_numbers(l1, 'h', 0, 2000, 100);
    assert_int_equal(count_found(l1, 'h', 0, 2000), 2000);
    fill_numbers(l1, letter, 0, 100000, 100);
    return count_found(l1, 'h', 0, 2000);
}

static void
test_a_scan_of_one_pool_evicts_nothing_of_the_others(void **state)
{
    static const char *const policies[] = { "lru", "lfu", "sieve", "s3fifo", "tinylfu", "adaptive" };

    (void)state;
    if (TEST_UNDER_TSAN)
        skip(); /* one thread, and long */
    for (size_t i = 0; i < NEAR_COUNT_OF(policies); i++) {
        struct near__l1 *l1   = pools_open(MIB(1), MIB(1), MIB(1), policies[i]);
        int              left = left_by_a_scan(l1, 'b');

        assert_int_equal(left, 2000);
        assert_int_equal(pool_stats(l1, HOT).evictions, 0);
        assert_true(pool_stats(l1, BULK).evictions > 50000);
        near__l1_free(&l1);
    }
}

/* Control: the same scan in the same pool, and in an L1 that is one, of the size of all of them together. */
static void
test_control_the_same_scan_evicts_where_there_is_one_domain(void **state)
{
    struct near__l1 *l1;
    int              same, one;

    (void)state;
    if (TEST_UNDER_TSAN)
        skip(); /* one thread, and long */
    l1   = pools_open(MIB(1), MIB(1), MIB(1), "lru");
    same = left_by_a_scan(l1, 'n'); /* not known, so the first pool */
    assert_true(pool_stats(l1, HOT).evictions > 50000);
    near__l1_free(&l1);
    l1  = l1_open(MIB(3), 0, 0);
    one = left_by_a_scan(l1, 'b');
    near__l1_free(&l1);
    print_message("# left of 2000: %d of the scanned pool, %d of a single L1 of all the memory\n", same, one);
    assert_true(same < 100);
    assert_true(one < 100);
}

/* Pools of 1 and 16 MiB that are filled far beyond their bounds: none is over it, and none is unused. */
static void
test_every_pool_keeps_within_its_bound(void **state)
{
    struct near__l1 *l1;
    uint64_t         random = 7;
    char             key[24];
    size_t           all = 0;

    (void)state;
    if (TEST_UNDER_TSAN)
        skip(); /* one thread, and long */
    l1 = pools_open(MIB(1), MIB(16), MIB(4), "lru");
    for (int i = 0; i < 300000; i++) {
        snprintf(key, sizeof(key), "k%d", i);
        fill(l1, key, test_random(&random) % 500, 1 + test_random(&random) % POOLS, NEAR_NEVER);
        if (i % 10000 == 0)
            near__l1_upkeep(l1, 0, 4);
    }
    for (unsigned pool = 1; pool <= POOLS; pool++) {
        size_t bytes = (size_t)pool_stats(l1, pool).bytes, most = bound_of(l1, pool);

        print_message("# pool %u: %zu of %zu bytes, %.2f %%\n", pool, bytes, most,
                      100.0 * (double)bytes / (double)most);
        assert_true(bytes <= most + most / 100);
        assert_true(bytes >= most - most / 10);
        all += bytes;
    }
    assert_true(all <= MIB(21) + MIB(21) / 100);
    near__l1_free(&l1);
}

static void
test_entries_are_divided_as_bytes_are(void **state)
{
    struct near__l1_domain domains[2] = { { MIB(1), "lru", 0 }, { MIB(3), "lru", 0 } };
    struct near__l1_config config     = l1_config(0, 400, 1, NULL);
    struct near__l1       *l1;

    (void)state;
    config.pools   = domains;
    config.pools_n = 2;
    config.pool_of = by_letter;
    l1             = l1_open_with(&config);
    fill_numbers(l1, 'h', 0, 1000, 10);
    fill_numbers(l1, 'b', 0, 1000, 10);
    assert_int_equal(pool_stats(l1, HOT).entries, 100);
    assert_int_equal(pool_stats(l1, BULK).entries, 300);
    near__l1_free(&l1);
}

static void
test_a_resize_is_divided_and_one_pool_can_be_resized(void **state)
{
    struct near__l1 *l1 = pools_open(MIB(4), MIB(8), MIB(4), "lru");

    (void)state;
    fill_numbers(l1, 'b', 0, 60000, 100);
    assert_int_equal(near__l1_resize(l1, MIB(8), 0), NEAR_OK);
    assert_int_equal(bound_of(l1, HOT), MIB(2));
    assert_int_equal(bound_of(l1, BULK), MIB(4));
    for (int i = 0; i < 1000 && near__l1_upkeep(l1, 0, 4); i++)
        ;
    assert_true(pool_stats(l1, BULK).bytes <= MIB(4) + MIB(4) / 100);
    assert_int_equal(near__l1_pool_resize(l1, BULK, MIB(12)), NEAR_OK);
    assert_int_equal(bound_of(l1, BULK), MIB(12));
    assert_int_equal(bound_of(l1, HOT), MIB(2));
    assert_int_equal(near__l1_pool_resize(l1, 4, MIB(12)), NEAR_ERR_INVALID);
    assert_int_equal(near__l1_pool_resize(l1, 0, MIB(12)), NEAR_ERR_INVALID);
    assert_int_equal(near__l1_pool_resize(l1, BULK, MIB(1024)), NEAR_ERR_INVALID); /* 16 times at most */
    assert_int_equal(bound_of(l1, BULK), MIB(12));
    /* all or none: the first would do, the second not */
    assert_int_equal(near__l1_resize(l1, MIB(1024), 0), NEAR_ERR_INVALID);
    assert_int_equal(bound_of(l1, HOT), MIB(2));
    near__l1_free(&l1);
}

/* ---- TTLs */

static struct near__l1 *
timed_open(int64_t ttl, int64_t grace)
{
    struct near__l1_domain domains[2] = { { MIB(1), "lru", ttl }, { MIB(1), "lru", 0 } };
    struct near__l1_config config     = l1_config(0, 0, 1, NULL);

    config.pools   = domains;
    config.pools_n = 2;
    config.pool_of = by_letter;
    config.grace   = grace;
    return l1_open_with(&config);
}

static bool
is_there(struct near__l1 *l1, const char *key, int64_t now, bool *stale)
{
    near_value *value = find_at(l1, key, now);
    bool        is    = value != NULL;

    *stale = is && ((uintptr_t)value & NEAR__VALUE_STALE);
    let_go_of(value);
    return is;
}

static void
test_a_pools_ttl_ends_what_is_in_it(void **state)
{
    static const size_t sizes[] = { 40, 100 * 1024 }; /* in the arena, and outside */
    bool                stale;

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct near__l1 *l1 = timed_open(10 * SECONDS, 0);

        assert_false(near__l1_timed(l1));
        fill(l1, "hello", sizes[i], 0, NEAR_NEVER);
        fill(l1, "bye", sizes[i], 0, NEAR_NEVER);
        fill(l1, "hurry", sizes[i], 0, 5 * SECONDS);
        assert_true(near__l1_timed(l1));
        assert_true(is_there(l1, "hello", 9 * SECONDS, &stale) && !stale);
        assert_false(is_there(l1, "hello", 10 * SECONDS, &stale));
        assert_true(is_there(l1, "bye", 10 * SECONDS, &stale));
        assert_true(is_there(l1, "hurry", 4 * SECONDS, &stale));
        assert_false(is_there(l1, "hurry", 5 * SECONDS, &stale));
        for (int lap = 0; lap < 100; lap++)
            near__l1_upkeep(l1, 11 * SECONDS, 4);
        assert_int_equal(pool_stats(l1, HOT).entries, 0);
        assert_int_equal(pool_stats(l1, HOT).expired, 2);
        assert_int_equal(pool_stats(l1, BULK).entries, 1);
        near__l1_free(&l1);
    }
}

static void
test_past_a_pools_ttl_there_is_grace(void **state)
{
    static const size_t sizes[] = { 40, 100 * 1024 };
    bool                stale;

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct near__l1 *l1 = timed_open(10 * SECONDS, 5 * SECONDS);

        fill(l1, "hello", sizes[i], 0, NEAR_NEVER);
        assert_true(is_there(l1, "hello", 9 * SECONDS, &stale) && !stale);
        assert_true(is_there(l1, "hello", 11 * SECONDS, &stale) && stale);
        assert_false(is_there(l1, "hello", 15 * SECONDS, &stale));
        near__l1_free(&l1);
    }
}

/* ---- the face */

static void
test_batches_and_both_ways_of_finding_agree(void **state)
{
    enum { N = 100 };
    struct near__l1 *l1 = pools_open(MIB(1), MIB(1), MIB(1), "lru");
    char             names[N][16];
    near_bytes       keys[N];
    uint64_t         hashes[N];
    near_value      *values[N];

    (void)state;
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof(names[i]), "%c%d", "hbo"[i % 3], i);
        keys[i]   = text(names[i]);
        hashes[i] = hash_of(keys[i]);
        if (i % 5 != 0)
            fill(l1, names[i], 20, 0, NEAR_NEVER);
    }
    near__l1_find_many(l1, hashes, keys, N, 0, values);
    for (int i = 0; i < N; i++) {
        near_value *one = near__l1_hit((struct near__l1_front *)l1, hashes[i], keys[i], 0);

        assert_int_equal(values[i] != NULL, i % 5 != 0);
        assert_int_equal(one != NULL, i % 5 != 0);
        if (one != NULL)
            assert_ptr_equal(near__value_data(one).data, near__value_data(values[i]).data);
        let_go_of(one);
        let_go_of(values[i]);
    }
    assert_int_equal(stats_of(l1).hits, 2 * (N - N / 5));
    assert_int_equal(pool_stats(l1, HOT).hits + pool_stats(l1, BULK).hits + pool_stats(l1, OTHER).hits,
                     2 * (N - N / 5));
    near__l1_upkeep(l1, 0, 4); /* the order of looking changes, and nothing else */
    assert_int_equal(count_found(l1, 'h', 0, 1), 0);
    assert_int_equal(pool_of(l1, "b1"), BULK);
    near__l1_free(&l1);
}

static void
test_what_makes_no_sense_or_finds_no_memory_is_refused(void **state)
{
    struct near__l1_domain domains[NEAR__POOLS_MAX + 1];
    struct near__l1_config config = l1_config(0, 0, 0, "lru");
    struct near__l1       *l1;
    long                   n;

    (void)state;
    for (int i = 0; i <= NEAR__POOLS_MAX; i++)
        domains[i] = (struct near__l1_domain){ MIB(1), "lru", 0 };
    config.pools   = domains;
    config.pools_n = NEAR__POOLS_MAX + 1;
    assert_int_equal(near__l1_new(&l1, &config), NEAR_ERR_INVALID);
    config.pools_n    = 2;
    domains[1].policy = "none";
    assert_int_equal(near__l1_new(&l1, &config), NEAR_ERR_INVALID);
    domains[1].policy    = "lru";
    domains[1].max_bytes = 1000;
    assert_int_equal(near__l1_new(&l1, &config), NEAR_ERR_INVALID);
    domains[1].max_bytes = MIB(1);
    config.curve         = true;
    for (n = 0;; n++) {
        near_status status;

        shortage_begin(n, true);
        status = near__l1_new(&l1, &config);
        shortage_end();
        if (status == NEAR_OK)
            break;
        assert_int_equal(status, NEAR_ERR_NOMEM);
        assert_null(l1);
    }
    assert_true(n > 10);
    near__l1_free(&l1);
}

struct former {
    struct near__l1 *to;
    int              seen;
};

static void
bring_back(void *ctx, const struct near__l1_seen *seen)
{
    struct former      *former = ctx;
    uint64_t            hash   = hash_of(seen->key);
    struct near__entry *entry  = entry_of(seen->key, hash, seen->value);

    near__l1_restore(former->to, entry, seen->key, near__l1_fence(former->to, hash), true, seen->warmth, 0);
    near__entry_release(&entry);
    former->seen++;
}

/* A slot that its key has left says nothing about it any more: what the disk has of it comes back to L1.  Over one that is there, nothing
 * does. */
static void
test_what_has_left_its_pool_comes_back_from_the_disk(void **state)
{
    struct near__l1 *l1 = pools_open(MIB(1), MIB(1), MIB(1), "lru");
    char             key[16];

    (void)state;
    fill_numbers(l1, 'h', 0, 100, 50);
    for (int i = 0; i < 100; i++) {
        near_bytes              name  = (snprintf(key, sizeof(key), "h%d", i), text(key));
        uint64_t                hash  = hash_of(name);
        struct near__entry     *entry = entry_of(name, hash, text("from the disk"));
        enum near__l1_admission verdict;

        if (i % 2 == 0)
            near__l1_invalidate(l1, hash, name);
        verdict = near__l1_return(l1, entry, near__l1_fence(l1, hash), 0);
        assert_int_equal(verdict, i % 2 == 0 ? NEAR__L1_ADMITTED : NEAR__L1_FENCED);
        near__entry_release(&entry);
    }
    assert_int_equal(stats_of(l1).entries, 100);
    near__l1_free(&l1);
}

/* Walked through all pools, and back into where each key belongs; not over what was filled meanwhile, in whichever pool, evicted or not. */
static void
test_entries_come_back_to_their_pools(void **state)
{
    struct near__l1       *from   = pools_open(MIB(1), MIB(1), MIB(1), "lru"), *to;
    struct near__l1_cursor cursor = { .pool = 0 };
    struct former          former = { .seen = 0 };
    struct near__l1_stats  stats;

    (void)state;
    to        = pools_open(MIB(1), MIB(1), MIB(1), "s3fifo");
    former.to = to;
    fill_numbers(from, 'h', 0, 500, 50);
    fill_numbers(from, 'b', 0, 700, 50);
    fill_numbers(from, 'o', 0, 300, 50);
    fill(to, "h3", 20, OTHER, NEAR_NEVER); /* before: it is there */
    assert_int_equal(near__l1_restore_begin(to, 1500, true), NEAR_OK);
    fill(to, "b7", 20, OTHER, NEAR_NEVER);
    near__l1_invalidate(to, hash_of(text("o9")), text("o9")); /* its fence is captured after that here */
    while (near__l1_walk(from, &cursor, 7, 0, bring_back, &former))
        ;
    near__l1_restore_end(to);
    assert_int_equal(former.seen, 1500);
    stats = pool_stats(to, OTHER);
    assert_int_equal(pool_stats(to, HOT).entries, 499);
    assert_int_equal(pool_stats(to, BULK).entries, 699);
    assert_int_equal(stats.entries, 302);
    assert_int_equal(pool_of(to, "h3"), OTHER);
    assert_int_equal(pool_of(to, "b7"), OTHER);
    near__l1_free(&from);
    near__l1_free(&to);
}

static unsigned
outside_the_locks(void *ctx, near_bytes key, size_t value_size)
{
    struct near__l1 *l1 = *(struct near__l1 **)ctx;

    (void)value_size;
    near__l1_invalidate(l1, hash_of(text("else")),
                        text("else")); /* with a lock held this would hang, or trap */
    return key.size % 2 + 1;
}

static _Atomic int released;

static void
count_release(void *data)
{
    (void)data;
    atomic_fetch_add(&released, 1);
}

/* Adopted values that leave by a move are let go once, and the application is called with no lock held. */
static void
test_the_application_is_called_outside_the_locks(void **state)
{
    static char            data[3000];
    struct near__l1_domain domains[2] = { { MIB(1), "lru", 0 }, { MIB(1), "lru", 0 } };
    struct near__l1_config config     = l1_config(0, 0, 1, NULL);
    struct near__l1       *l1;
    uint64_t               hash = hash_of(text("adopted"));

    (void)state;
    config.pools    = domains;
    config.pools_n  = 2;
    config.pool_of  = outside_the_locks;
    config.pool_ctx = &l1;
    l1              = l1_open_with(&config);
    for (unsigned i = 0; i < 10; i++) {
        struct near__entry *entry =
            near__entry_adopt(text("adopted"), hash, data, sizeof(data), count_release);

        entry->pool = (uint8_t)(i % 3); /* 0: asked for */
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
    }
    assert_int_equal(stats_of(l1).entries, 1);
    near__l1_free(&l1);
    assert_int_equal(released, 10);
}

/* ---- threads: keys move, versions only grow */

enum { THREADS = 4, KEYS = 64 };

struct storm {
    struct near__l1 *l1;
    _Atomic uint32_t versions[KEYS]; /* acknowledged */
    _Atomic bool     over;
    _Atomic uint64_t hits, wrong;
    bool             broken; /* the control: movers capture the fence after they have looked */
};

static void
storm_write(struct storm *storm, uint32_t number, uint32_t version, unsigned pool)
{
    char                  name[40];
    near_bytes            key       = { name, (size_t)snprintf(name, sizeof(name), "key%u", number) };
    uint32_t              value[16] = { number, version };
    uint64_t              hash      = hash_of(key);
    struct near__entry   *entry     = entry_of(key, hash, (near_bytes){ value, sizeof(value) });
    struct near__l1_write token;

    value[2]    = number ^ version;
    entry->pool = (uint8_t)pool;
    token       = near__l1_write_begin(storm->l1, hash, key);
    near__l1_write_end(storm->l1, token, hash, key, entry, 0);
    near__entry_release(&entry);
}

static void *
storm_writer(void *arg)
{
    struct storm *storm  = arg;
    uint64_t      random = 3;

    for (uint32_t round = 1; !atomic_load(&storm->over); round++)
        for (uint32_t number = 0; number < KEYS; number++) {
            storm_write(storm, number, round, 1 + test_random(&random) % POOLS);
            atomic_store(&storm->versions[number], round);
        }
    return NULL;
}

/* Fills of what is there, into other pools: the same version moves. */
static void *
storm_mover(void *arg)
{
    struct storm *storm  = arg;
    uint64_t      random = 5;

    while (!atomic_load(&storm->over)) {
        uint32_t    number = test_random(&random) % KEYS;
        char        name[40];
        near_bytes  key  = { name, (size_t)snprintf(name, sizeof(name), "key%u", number) };
        uint64_t    hash = hash_of(key), fence = near__l1_fence(storm->l1, hash);
        near_value *value = near__l1_find(storm->l1, hash, key, 0);

        if (value != NULL) {
            struct near__entry *entry;

            if (storm->broken) {
                sched_yield();
                fence = near__l1_fence(storm->l1, hash);
            }
            entry = entry_of(key, hash, near__value_data(value));

            entry->pool = (uint8_t)(1 + test_random(&random) % POOLS);
            near__l1_insert(storm->l1, entry, fence, 0);
            near__entry_release(&entry);
            near__value_release(value);
        }
    }
    return NULL;
}

static void *
storm_reader(void *arg)
{
    struct storm *storm      = arg;
    uint64_t      random     = 9;
    uint32_t      seen[KEYS] = { 0 };
    uint64_t      hits = 0, wrong = 0;

    while (!atomic_load(&storm->over)) {
        uint32_t    number = test_random(&random) % KEYS;
        uint32_t    least  = atomic_load(&storm->versions[number]);
        char        name[40];
        near_bytes  key   = { name, (size_t)snprintf(name, sizeof(name), "key%u", number) };
        near_value *value = near__l1_hit((struct near__l1_front *)storm->l1, hash_of(key), key, 0);
        uint32_t    read[2];

        if (value == NULL)
            continue;
        memcpy(read, near__value_data(value).data, sizeof(read));
        near__value_release(value);
        hits++;
        wrong += read[0] != number || read[1] < least || read[1] < seen[number];
        seen[number] = read[1];
    }
    atomic_fetch_add(&storm->hits, hits);
    atomic_fetch_add(&storm->wrong, wrong);
    return NULL;
}

static void
storm_run(struct storm *storm)
{
    void *(*const roles[THREADS])(void *) = { storm_writer, storm_mover, storm_reader, storm_reader };
    pthread_t threads[THREADS];

    storm->l1 = pools_open(MIB(1), MIB(1), MIB(1), "adaptive");
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, roles[i], storm), 0);
    for (int i = 0; i < 10; i++) {
        usleep((useconds_t)test_scale(60) * 1000);
        near__l1_upkeep(storm->l1, 0, 4);
        if (i == 5)
            near__l1_flush(storm->l1);
    }
    atomic_store(&storm->over, true);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    print_message("# %llu hits, %llu wrong\n", (unsigned long long)storm->hits,
                  (unsigned long long)storm->wrong);
    assert_true(storm->hits > 100);
    assert_true(stats_of(storm->l1).entries <= KEYS);
    near__l1_free(&storm->l1);
}

static void
test_G1_versions_only_grow_while_keys_move(void **state)
{
    struct storm storm = { .broken = false };

    (void)state;
    storm_run(&storm);
    assert_int_equal(storm.wrong, 0);
}

static void
test_G1_control_a_mover_that_captures_late(void **state)
{
    struct storm storm = { .broken = true };

    (void)state;
    for (int i = 0; i < 10 && storm.wrong == 0; i++) {
        atomic_store(&storm.over, false);
        memset((void *)storm.versions, 0, sizeof(storm.versions));
        storm_run(&storm);
    }
    assert_true(storm.wrong > 0);
}

/* ---- what the disk tier gives back while a key changes: with the new fence nothing older */

#define KIB(n)   ((size_t)(n) << 10)
#define CHANGED  "h, which changes"
#define ROOM     KIB(128)
#define OTHERS   400 /* of a thousand bytes: more than there is room for */
#define FEW      50  /* a slot that was emptied may still look like the key's until it is filled again */
#define LOOKS_MS 200

struct tiered {
    struct near__spill *spill;
    struct near__l1    *l1;
    int                 others;
    bool                armed; /* the next that is evicted, under its shard's lock ... */
    uint64_t            fence; /* ... sees this */
    bool                had;   /* ... and whether the disk has the older value */
    pthread_t           thread;
    char                path[64];
};

static bool
is_on_disk(struct tiered *tiered)
{
    struct near__spill_read read;
    bool                    is;

    is = near__spill_begin(tiered->spill, hash_of(text(CHANGED)), &read) &&
         near__spill_finish(tiered->spill, &read, text(CHANGED), NEAR_NEVER);
    if (is)
        near__spill_end(&read);
    return is;
}

static void *
invalidate_it(void *ctx)
{
    struct tiered *tiered = ctx;

    near__l1_invalidate(tiered->l1, hash_of(text(CHANGED)), text(CHANGED));
    return NULL;
}

/* What a reader sees while somebody invalidates, who waits for the lock that is held here.  He gets some time to move the fence, which he
 * should not do before. */
static void
look(struct tiered *tiered)
{
    uint64_t hash = hash_of(text(CHANGED)), before = near__l1_fence(tiered->l1, hash);

    tiered->armed = false;
    assert_int_equal(pthread_create(&tiered->thread, NULL, invalidate_it, tiered), 0);
    for (int ms = 0; ms < LOOKS_MS && near__l1_fence(tiered->l1, hash) == before; ms++)
        usleep(1000);
    tiered->fence = near__l1_fence(tiered->l1, hash);
    tiered->had   = is_on_disk(tiered);
}

static uint64_t
hash_and_look(const void *ctx, near_bytes key)
{
    struct tiered *tiered = *(struct tiered *const *)ctx;

    if (tiered->armed)
        look(tiered);
    return hash_of(key);
}

static void
tiered_open(struct tiered *tiered, struct tiered **self)
{
    struct near__l1_domain    domains[2] = { { ROOM, "lru", 0 }, { ROOM, "lru", 0 } };
    struct near__l1_config    config     = l1_config(ROOM, 0, 1, "lru");
    struct near__spill_config log        = {
               .path          = tiered->path,
               .max_bytes     = NEAR__SPILL_PAGE + MIB(4),
               .queue_bytes   = KIB(1024),
               .segment_bytes = KIB(128),
               .timeout       = 10 * SECONDS,
               .threads       = 1,
               .clock         = near__clock_system,
               .os            = &near__spill_os_system,
    };
    int reason;

    *self = tiered;
    memset(tiered, 0, sizeof(*tiered));
    snprintf(tiered->path, sizeof(tiered->path), "/tmp/near-pools-XXXXXX");
    assert_non_null(mkdtemp(tiered->path));
    assert_int_equal(near__spill_open(&tiered->spill, &log, &reason), NEAR_OK);
    config.spill    = tiered->spill;
    config.hash     = hash_and_look;
    config.hash_ctx = self;
    config.pools    = domains;
    config.pools_n  = 2;
    config.pool_of  = by_letter;
    tiered->l1      = l1_open_with(&config);
}

static void
tiered_close(struct tiered *tiered)
{
    static const char *const names[] = { "log", "lock", "alive" };
    char                     path[128];

    near__l1_free(&tiered->l1);
    near__spill_close(&tiered->spill, near__now(&near__clock_system) + 20 * SECONDS, false);
    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", tiered->path, names[i]);
        unlink(path);
    }
    rmdir(tiered->path);
}

/* Until everything else has left; what is armed has its turn. */
static void
crowd(struct tiered *tiered)
{
    fill_numbers(tiered->l1, 'h', tiered->others, tiered->others + OTHERS, 1000);
    tiered->others += OTHERS;
}

static enum near__l1_admission
give_back_it(struct tiered *tiered, const char *value, uint64_t fence)
{
    struct near__entry     *entry = entry_of(text(CHANGED), hash_of(text(CHANGED)), text(value));
    enum near__l1_admission verdict;

    assert_non_null(entry);
    verdict = near__l1_return(tiered->l1, entry, fence, 0);
    near__entry_release(&entry);
    return verdict;
}

static void
put_and_crowd_out(struct tiered *tiered)
{
    assert_int_equal(put(tiered->l1, CHANGED, "old"), NEAR__L1_ADMITTED);
    crowd(tiered);
    assert_true(finds(tiered->l1, CHANGED, NULL));
    assert_true(is_on_disk(tiered));
}

static void
test_G1_the_disk_gives_nothing_back_past_an_invalidation(void **state)
{
    struct tiered tiered, *self;

    (void)state;
    tiered_open(&tiered, &self);
    put_and_crowd_out(&tiered);
    /* a control: while nothing changes, it is given back; then it is both here and there */
    assert_int_equal(give_back_it(&tiered, "old", near__l1_fence(tiered.l1, hash_of(text(CHANGED)))),
                     NEAR__L1_ADMITTED);
    tiered.armed = true;
    for (int i = 0; i < OTHERS && tiered.armed; i++)
        fill_numbers(tiered.l1, 'h', tiered.others + i, tiered.others + i + 1, 1000);
    assert_false(tiered.armed);
    assert_int_equal(pthread_join(tiered.thread, NULL), 0);
    assert_true(tiered.had);
    fill_numbers(tiered.l1, 'h', tiered.others + OTHERS, tiered.others + OTHERS + FEW, 1000);
    assert_int_equal(give_back_it(&tiered, "old", tiered.fence), NEAR__L1_FENCED);
    assert_true(finds(tiered.l1, CHANGED, NULL));
    tiered_close(&tiered);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_pool_is_said_chosen_or_the_first),
        cmocka_unit_test(test_a_key_that_changes_its_pool_leaves_the_old_one),
        cmocka_unit_test(test_a_move_is_no_absence_to_a_conditional_write),
        cmocka_unit_test(test_invalidations_tags_and_clears_reach_every_pool),
        cmocka_unit_test(test_a_scan_of_one_pool_evicts_nothing_of_the_others),
        cmocka_unit_test(test_control_the_same_scan_evicts_where_there_is_one_domain),
        cmocka_unit_test(test_every_pool_keeps_within_its_bound),
        cmocka_unit_test(test_entries_are_divided_as_bytes_are),
        cmocka_unit_test(test_a_resize_is_divided_and_one_pool_can_be_resized),
        cmocka_unit_test(test_a_pools_ttl_ends_what_is_in_it),
        cmocka_unit_test(test_past_a_pools_ttl_there_is_grace),
        cmocka_unit_test(test_batches_and_both_ways_of_finding_agree),
        cmocka_unit_test(test_what_makes_no_sense_or_finds_no_memory_is_refused),
        cmocka_unit_test(test_what_has_left_its_pool_comes_back_from_the_disk),
        cmocka_unit_test(test_entries_come_back_to_their_pools),
        cmocka_unit_test(test_the_application_is_called_outside_the_locks),
        cmocka_unit_test(test_G1_versions_only_grow_while_keys_move),
        cmocka_unit_test(test_G1_control_a_mover_that_captures_late),
        cmocka_unit_test(test_G1_the_disk_gives_nothing_back_past_an_invalidation),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
