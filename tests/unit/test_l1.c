/*
 * l1/ from inside: entries, the index, the bounds and what they cost, life and death of values, want of
 * memory.  Fences and writes have a program of their own, test_l1_races.
 *
 * Linked with --wrap for the allocator, so that allocations can be counted and refused.
 */
#define TEST_NAME "l1"
#include "unit/l1_help.h"

#include "l1/policy.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- the allocator, in our hands.  One thread, so plain variables will do. */

static size_t allocations; /* asked for, refused ones too */
static size_t refuse_at;   /* refuse this one, counting from 1; 0: none */
static bool   refuse_all;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);

static bool
refused(void)
{
    allocations++;
    return refuse_all || allocations == refuse_at;
}

void *
__wrap_malloc(size_t size)
{
    return refused() ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t n, size_t size)
{
    return refused() ? NULL : __real_calloc(n, size);
}

void *
__wrap_aligned_alloc(size_t align, size_t size)
{
    return refused() ? NULL : __real_aligned_alloc(align, size);
}

static int
allocator_reset(void **state)
{
    (void)state;
    refuse_at  = 0;
    refuse_all = false;
    alarm(0);
    return 0;
}

/* ---- entries */

static void
test_entry_keeps_key_and_value(void **state)
{
    near_bytes          key   = { "k\0\r\n", 4 };
    void               *room  = NULL;
    struct near__entry *entry = near__entry_new(key, 42, 5, &room);

    (void)state;
    assert_non_null(entry);
    memcpy(room, "value", 5);
    assert_true(near__bytes_equal(near__entry_key(entry), key));
    assert_true(entry_is(entry, "value"));
    assert_int_equal(entry->hash, 42);
    assert_int_equal(entry->expires, NEAR_NEVER);
    assert_false(entry->negative);
    near__entry_release(&entry);
    assert_null(entry);
    near__entry_release(&entry); /* NULL inside is fine */
}

static void
test_entry_of_nothing(void **state)
{
    struct near__entry *entry = near__entry_new((near_bytes){ NULL, 0 }, 0, 0, NULL);

    (void)state;
    assert_non_null(entry);
    assert_int_equal(entry->key_size, 0);
    assert_int_equal(entry->value_size, 0);
    near__entry_release(&entry);
}

static void
test_values_are_aligned_to_16_and_to_64_when_large(void **state)
{
    static const size_t sizes[] = { 1, 15, 100, 4095, 4096, 4097, 65536, 1048576 };
    char                key[64];

    (void)state;
    memset(key, 'k', sizeof(key));
    for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++) {
        for (size_t length = 0; length < sizeof(key); length++) {
            void               *room  = NULL;
            struct near__entry *entry = near__entry_new((near_bytes){ key, length }, 0, sizes[i], &room);

            assert_non_null(entry);
            assert_int_equal((uintptr_t)entry % 16, 0);
            assert_int_equal((uintptr_t)room % (sizes[i] < 4096 ? 16 : 64), 0);
            assert_ptr_equal(room, entry->value);
            memset(room, 0xee, sizes[i]); /* all of it is ours: the address sanitizer looks on */
            assert_true(memcmp(entry->key, key, length) == 0);
            near__entry_release(&entry);
        }
    }
}

static void
test_impossible_sizes_are_out_of_memory(void **state)
{
    static const size_t sizes[] = { SIZE_MAX, SIZE_MAX - 63, (size_t)PTRDIFF_MAX, (size_t)PTRDIFF_MAX + 1 };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++) {
        assert_null(near__entry_new(text("k"), 0, sizes[i], NULL));
        assert_null(near__entry_new((near_bytes){ "k", sizes[i] }, 0, 1, NULL));
    }
    assert_null(near__entry_new((near_bytes){ "k", (size_t)UINT32_MAX + 1 }, 0, 1, NULL));
}

static void
test_a_handle_says_where_it_came_from(void **state)
{
    struct near__entry *entry = entry_of(text("k"), 0, text("v"));
    near_value         *value = near__value_of(entry, NEAR_FROM_LOADER, true);

    (void)state;
    assert_ptr_equal(near__value_entry(value), entry);
    assert_int_equal((uintptr_t)value & NEAR__VALUE_SOURCE, NEAR_FROM_LOADER);
    assert_true((uintptr_t)value & NEAR__VALUE_STALE);
    near__entry_release(&entry);
}

/* ---- the index */

static void
test_finds_what_was_put_and_nothing_else(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);

    (void)state;
    assert_true(finds(l1, "a", NULL));
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
    assert_int_equal(put(l1, "b", ""), NEAR__L1_ADMITTED);
    assert_int_equal(put(l1, "", "empty key"), NEAR__L1_ADMITTED);
    assert_true(finds(l1, "a", "1"));
    assert_true(finds(l1, "b", ""));
    assert_true(finds(l1, "", "empty key"));
    assert_true(finds(l1, "c", NULL));
    assert_int_equal(stats_of(l1).entries, 3);
    assert_int_equal(stats_of(l1).fills, 3);
    near__l1_free(&l1);
    assert_null(l1);
    near__l1_free(&l1); /* NULL inside is fine */
}

static void
test_a_newer_value_replaces(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);

    (void)state;
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
    assert_int_equal(put(l1, "a", "2"), NEAR__L1_ADMITTED);
    assert_true(finds(l1, "a", "2"));
    assert_int_equal(stats_of(l1).entries, 1);
    assert_int_equal(stats_of(l1).evictions, 0);
    near__l1_free(&l1);
}

static void
test_an_entry_is_linked_once_and_never_again(void **state)
{
    struct near__l1    *l1    = l1_open(1 << 20, 0, 0);
    uint64_t            hash  = hash_of(text("a"));
    struct near__entry *entry = entry_of(text("a"), hash, text("1"));

    (void)state;
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
    assert_int_equal(stats_of(l1).entries, 1);
    assert_int_equal(atomic_load(&entry->refs), 2);
    near__l1_invalidate(l1, hash, text("a"));
    assert_int_equal(atomic_load(&entry->refs), 1);
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_FENCED);
    assert_int_equal(stats_of(l1).entries, 0);
    near__entry_release(&entry);
    near__l1_free(&l1);
}

static void
test_invalidate_drops_one_and_flush_all(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 4);
    char             key[16];

    (void)state;
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_int_equal(put(l1, key, key), NEAR__L1_ADMITTED);
    }
    near__l1_invalidate(l1, hash_of(text("500")), text("500"));
    near__l1_invalidate(l1, hash_of(text("absent")), text("absent"));
    assert_true(finds(l1, "500", NULL));
    assert_true(finds(l1, "501", "501"));
    assert_int_equal(stats_of(l1).entries, 999);
    near__l1_flush(l1);
    assert_true(finds(l1, "501", NULL));
    assert_int_equal(stats_of(l1).entries, 0);
    assert_int_equal(stats_of(l1).bytes, 0); /* the tables have gone, too */
    assert_int_equal(put(l1, "501", "again"), NEAR__L1_ADMITTED);
    assert_true(finds(l1, "501", "again"));
    near__l1_free(&l1);
}

/* G0: a key's hash is no identity. */
static void
test_G0_equal_hashes_do_not_mix_keys(void **state)
{
    static const struct {
        near_bytes  key;
        const char *value;
    } rows[]                 = { { { "alice", 5 }, "hers" },
                                 { { "bob", 3 }, "his" },
                                 { { "alic", 4 }, "prefix" },
                                 { { "alice\0", 6 }, "longer" },
                                 { { "", 0 }, "none" } };
    const uint64_t      hash = UINT64_C(0x123456789abcdef0);
    struct near__l1    *l1   = l1_open(1 << 20, 0, 0);
    struct near__entry *entry;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        entry = entry_of(rows[i].key, hash, text(rows[i].value));
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        entry = near__l1_find(l1, hash, rows[i].key, 0);
        assert_true(entry_is(entry, rows[i].value));
        near__entry_release(&entry);
    }
    assert_null(near__l1_find(l1, hash, text("carol"), 0));
    near__l1_invalidate(l1, hash, rows[0].key);
    assert_null(near__l1_find(l1, hash, rows[0].key, 0));
    entry = near__l1_find(l1, hash, rows[1].key, 0);
    assert_true(entry_is(entry, "his"));
    near__entry_release(&entry);
    near__l1_free(&l1);
}

/* ---- time */

static enum near__l1_admission
put_until(struct near__l1 *l1, const char *key, const char *value, int64_t now, int64_t expires)
{
    uint64_t                hash  = hash_of(text(key));
    struct near__entry     *entry = entry_of(text(key), hash, text(value));
    enum near__l1_admission verdict;

    entry->born    = now;
    entry->expires = expires;
    verdict        = near__l1_insert(l1, entry, near__l1_fence(l1, hash), now);
    near__entry_release(&entry);
    return verdict;
}

static void
test_an_entry_is_served_until_it_expires(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);

    (void)state;
    assert_int_equal(put_until(l1, "a", "1", 100, 200), NEAR__L1_ADMITTED);
    assert_true(finds_at(l1, "a", 199, "1"));
    assert_int_equal(stats_of(l1).expired, 0);
    assert_true(finds_at(l1, "a", 200, NULL));
    assert_int_equal(stats_of(l1).expired, 1);
    assert_int_equal(stats_of(l1).entries, 0); /* it is gone, not hidden */
    assert_true(finds_at(l1, "a", 150, NULL));
    near__l1_free(&l1);
}

static void
test_an_expired_offer_is_refused_and_what_it_replaces_goes(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);

    (void)state;
    assert_int_equal(put_until(l1, "a", "old", 100, 1000), NEAR__L1_ADMITTED);
    assert_int_equal(put_until(l1, "a", "new", 200, 200), NEAR__L1_EXPIRED);
    assert_true(finds_at(l1, "a", 200, NULL));
    near__l1_free(&l1);
}

static void
test_expire_lets_go_in_bounded_steps(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 1);
    char             key[16];
    uint64_t         left = 1001, before;
    int              calls;

    (void)state;
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_int_equal(put_until(l1, key, key, 0, 10), NEAR__L1_ADMITTED);
    }
    assert_int_equal(put_until(l1, "keep", "me", 0, 11), NEAR__L1_ADMITTED);
    near__l1_expire(l1, 9, SIZE_MAX);
    assert_int_equal(stats_of(l1).entries, 1001);
    for (calls = 0; left > 1 && calls < 10000; calls++) {
        before = left;
        near__l1_expire(l1, 10, 20);
        left = stats_of(l1).entries;
        assert_in_range(before - left, 0, 20 + 10); /* a bucket is finished once begun */
    }
    assert_in_range(calls, 1000 / 30, 1000);
    assert_int_equal(stats_of(l1).expired, 1000);
    assert_true(finds_at(l1, "keep", 10, "me"));
    near__l1_expire(l1, 11, SIZE_MAX); /* one turn is enough, whatever the budget */
    assert_int_equal(stats_of(l1).entries, 0);
    near__l1_free(&l1);
}

/* ---- bounds */

static void
test_lru_evicts_the_least_recently_used(void **state)
{
    struct near__l1 *l1 = l1_open(SIZE_MAX, 3, 0);

    (void)state;
    put(l1, "a", "1");
    put(l1, "b", "2");
    put(l1, "c", "3");
    assert_true(finds(l1, "a", "1")); /* order now b c a */
    put(l1, "d", "4");
    assert_true(finds(l1, "b", NULL)); /* c a d */
    put(l1, "c", "5");                 /* a d c: replacing counts as use and evicts nobody */
    assert_int_equal(stats_of(l1).evictions, 1);
    put(l1, "e", "6");
    assert_true(finds(l1, "a", NULL));
    assert_true(finds(l1, "d", "4"));
    assert_true(finds(l1, "c", "5"));
    assert_true(finds(l1, "e", "6"));
    assert_int_equal(stats_of(l1).evictions, 2);
    near__l1_free(&l1);
}

static void
test_entries_are_bounded_over_all_shards(void **state)
{
    static const unsigned shards[] = { 0, 1, 2, 8, 64 };
    char                  key[16];

    (void)state;
    for (size_t s = 0; s < NEAR_COUNT_OF(shards); s++) {
        struct near__l1 *l1 = l1_open(SIZE_MAX, 1003, shards[s]);

        for (int i = 0; i < 20000; i++) {
            snprintf(key, sizeof(key), "%d", i);
            assert_int_equal(put(l1, key, key), NEAR__L1_ADMITTED);
            assert_in_range(stats_of(l1).entries, 1, 1003);
        }
        assert_int_equal(stats_of(l1).entries, 1003); /* every shard is full by now: the shares add up */
        assert_int_equal(stats_of(l1).evictions, 20000 - 1003);
        near__l1_free(&l1);
    }
}

static void
test_fewer_entries_than_shards_still_hold_something(void **state)
{
    struct near__l1 *l1 = l1_open(SIZE_MAX, 1, 64);

    (void)state;
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
    assert_int_equal(put(l1, "b", "2"), NEAR__L1_ADMITTED);
    assert_true(finds(l1, "a", NULL));
    assert_true(finds(l1, "b", "2"));
    near__l1_free(&l1);
}

static void
test_bytes_never_exceed_the_bound(void **state)
{
    static const unsigned shards[] = { 0, 1, 4 };
    static char           value[8000];
    const size_t          bound  = 1 << 20;
    uint64_t              random = 7;
    char                  key[32];

    (void)state;
    memset(value, 'v', sizeof(value) - 1);
    for (size_t s = 0; s < NEAR_COUNT_OF(shards); s++) {
        struct near__l1 *l1 = l1_open(bound, 0, shards[s]);

        for (int i = 0; i < 20000; i++) {
            size_t size = (size_t)(test_random(&random) % (sizeof(value) - 1));
            size >>= test_random(&random) % 12;
            snprintf(key, sizeof(key), "%d", (int)(test_random(&random) % 5000));
            assert_int_equal(put(l1, key, value + sizeof(value) - 1 - size), NEAR__L1_ADMITTED);
            assert_in_range(stats_of(l1).bytes, 1, bound);
        }
        assert_in_range(stats_of(l1).bytes, bound * 9 / 10, bound); /* and it is used */
        near__l1_free(&l1);
    }
}

static void
test_tiny_entries_pay_for_their_table(void **state)
{
    struct near__l1    *l1 = l1_open(256 * 1024, 0, 1);
    struct near__entry *entry;
    uint64_t            random = 1;

    (void)state;
    for (uint32_t i = 0; i < 20000; i++) {
        entry = near__entry_new((near_bytes){ &i, sizeof(i) }, test_random(&random), 0, NULL);
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0), NEAR__L1_ADMITTED);
        assert_in_range(stats_of(l1).bytes, 1, 256 * 1024);
        near__entry_release(&entry);
    }
    near__l1_free(&l1);
}

static enum near__l1_admission
put_sized(struct near__l1 *l1, const char *key, size_t size)
{
    uint64_t                hash  = hash_of(text(key));
    void                   *room  = NULL;
    struct near__entry     *entry = near__entry_new(text(key), hash, size, &room);
    enum near__l1_admission verdict;

    memset(room, 'x', size);
    verdict = near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0);
    near__entry_release(&entry);
    return verdict;
}

static void
test_too_large_is_half_of_a_shard(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);

    (void)state;
    assert_int_equal(put_sized(l1, "64 KiB in 1 MiB", 64 * 1024), NEAR__L1_ADMITTED);
    assert_int_equal(put_sized(l1, "a", 511 * 1024), NEAR__L1_ADMITTED);
    assert_int_equal(put_sized(l1, "b", 512 * 1024), NEAR__L1_TOO_LARGE); /* its overhead is over */
    assert_int_equal(stats_of(l1).too_large, 1);
    assert_int_equal(put(l1, "c", "small"), NEAR__L1_ADMITTED);
    assert_int_equal(put_sized(l1, "c", 1 << 20), NEAR__L1_TOO_LARGE);
    assert_true(finds(l1, "c", NULL)); /* the older one went all the same */
    near__l1_free(&l1);

    l1 = l1_open(64 << 20, 0, 0);
    assert_int_equal(put_sized(l1, "1 MiB in 64 MiB", 1 << 20), NEAR__L1_ADMITTED);
    near__l1_free(&l1);
}

static void
test_no_bytes_keep_nothing(void **state)
{
    struct near__l1 *l1 = l1_open(0, 0, 0);

    (void)state;
    assert_int_equal(put(l1, "a", ""), NEAR__L1_TOO_LARGE);
    assert_true(finds(l1, "a", NULL));
    near__l1_free(&l1);
}

static void
test_settings_that_make_no_sense_are_invalid(void **state)
{
    static const struct near__l1_config bad[] = { { 1 << 20, 0, 3, "lru" },
                                                  { 1 << 20, 0, 1u << 17, "lru" },
                                                  { 1 << 20, 0, 0, "no such policy" },
                                                  { 1 << 20, 0, 0, "" },
                                                  { 1 << 20, 0, 0, NULL } };
    struct near__l1                    *l1;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++) {
        l1 = (struct near__l1 *)&l1;
        assert_int_equal(near__l1_new(&l1, &bad[i]), NEAR_ERR_INVALID);
        assert_null(l1);
    }
    assert_ptr_equal(near__l1_policy_named("lru"), &near__l1_lru);
    assert_null(near__l1_policy_named("lr"));
    l1 = l1_open(1 << 20, 0, 65536); /* the most that is accepted */
    assert_int_equal(stats_of(l1).entries, 0);
    near__l1_free(&l1);
}

/* ---- memory, honestly */

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
static size_t
heap_in_use(void)
{
    struct mallinfo2 info = mallinfo2();

    return info.uordblks + info.hblkhd;
}

/* What max_bytes promises against what the allocator has really handed out, for one size of values. */
static void
fill_and_compare(size_t size, double most_percent)
{
    const size_t        budget = 64 << 20, fences = 1 << 20;
    size_t              before = heap_in_use();
    struct near__l1    *l1     = l1_open(budget, 0, 0);
    uint64_t            random = 3;
    struct near__entry *entry;
    char                key[32];
    void               *room;
    double              off;

    for (size_t i = 0; i < 2 * budget / (size + 100); i++) {
        snprintf(key, sizeof(key), "user_feature_%08zu", i);
        entry = near__entry_new(text(key), test_random(&random), size, &room);
        memset(room, 1, size);
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
    }
    off = ((double)(heap_in_use() - before - fences) / (double)stats_of(l1).bytes - 1) * 100;
    print_message("# values of %zu: %llu entries, %.1f B each; heap differs from l1 bytes by %+.3f %%\n",
                  size, (unsigned long long)stats_of(l1).entries,
                  (double)stats_of(l1).bytes / (double)stats_of(l1).entries, off);
    assert_true(off < most_percent && off > -most_percent);
    assert_in_range(stats_of(l1).bytes, budget * 95 / 100, budget);
    near__l1_free(&l1);
}

static void
test_bytes_are_what_the_heap_has_given(void **state)
{
    (void)state;
    if (test_slack() > 1)
        skip(); /* the sanitizers' heaps keep no such books */
    fill_and_compare(100, 1.0);
    fill_and_compare(5000, 1.0);
    fill_and_compare(200000, 1.0); /* mapped one by one */
}
#endif

static void
test_adopted_bytes_count(void **state)
{
    static char         data[10000];
    struct near__l1    *l1    = l1_open(1 << 20, 0, 0);
    uint64_t            hash  = hash_of(text("a"));
    struct near__entry *entry = near__entry_adopt(text("a"), hash, data, sizeof(data), NULL);

    (void)state;
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
    assert_in_range(stats_of(l1).bytes, sizeof(data), sizeof(data) + 500);
    assert_int_equal(stats_of(l1).bytes, near__entry_cost(entry));
    near__entry_release(&entry);
    near__l1_free(&l1);
}

/* ---- life and death */

static void
test_held_values_outlive_everything(void **state)
{
    struct near__l1    *l1 = l1_open(SIZE_MAX, 2, 0);
    struct near__entry *evicted, *flushed, *last;

    (void)state;
    put(l1, "a", "evicted");
    evicted = near__l1_find(l1, hash_of(text("a")), text("a"), 0);
    put(l1, "b", "flushed");
    put(l1, "c", "x");
    assert_true(finds(l1, "a", NULL));
    flushed = near__l1_find(l1, hash_of(text("b")), text("b"), 0);
    near__l1_flush(l1);
    put(l1, "d", "last");
    last = near__l1_find(l1, hash_of(text("d")), text("d"), 0);
    near__l1_free(&l1);
    assert_true(entry_is(evicted, "evicted"));
    assert_true(entry_is(flushed, "flushed"));
    assert_true(entry_is(last, "last"));
    assert_int_equal(atomic_load(&last->refs), 1);
    near__entry_ref(last);
    near__entry_release(&evicted);
    near__entry_release(&flushed);
    flushed = last;
    near__entry_release(&last);
    assert_true(entry_is(flushed, "last"));
    near__entry_release(&flushed);
}

static struct near__l1 *release_l1; /* where the release function calls back */
static int              releases;

/* The application's release function; it uses the L1 that let go, which hangs if a lock is held. */
static void
count_release(void *data)
{
    ++*(int *)data;
    releases++;
    if (release_l1 == NULL)
        return;
    stats_of(release_l1);
    put(release_l1, "from the release function", "1");
    near__l1_invalidate(release_l1, hash_of(text("from the release function")),
                        text("from the release function"));
}

static void
adopt_and_put(struct near__l1 *l1, const char *key, int *released, int64_t expires)
{
    uint64_t            hash = hash_of(text(key));
    struct near__entry *entry =
        near__entry_adopt(text(key), hash, released, sizeof(*released), count_release);

    assert_non_null(entry);
    *released      = 0;
    entry->expires = expires;
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
    near__entry_release(&entry);
    assert_int_equal(*released, 0);
}

static void
leaves_by_replacement(struct near__l1 *l1)
{
    put(l1, "a", "new");
}

static void
leaves_by_eviction(struct near__l1 *l1)
{
    put(l1, "b", "1");
    put(l1, "c", "1");
    put(l1, "d", "1");
}

static void
leaves_by_find(struct near__l1 *l1)
{
    finds_at(l1, "a", 10, NULL);
}

static void
leaves_by_expire(struct near__l1 *l1)
{
    near__l1_expire(l1, 10, SIZE_MAX);
}

static void
leaves_by_invalidate(struct near__l1 *l1)
{
    near__l1_invalidate(l1, hash_of(text("a")), text("a"));
}

static void
leaves_by_flush(struct near__l1 *l1)
{
    near__l1_flush(l1);
}

static void
leaves_by_write(struct near__l1 *l1)
{
    struct near__l1_write write = near__l1_write_begin(l1, hash_of(text("a")), text("a"));

    near__l1_write_end(l1, write, hash_of(text("a")), text("a"), NULL, 0);
}

static void
leaves_by_free(struct near__l1 *l1)
{
    release_l1 = NULL; /* nobody may use it any more */
    near__l1_free(&l1);
}

static void
test_release_runs_once_and_outside_the_lock(void **state)
{
    static void (*const ways[])(struct near__l1 *) = {
        leaves_by_replacement, leaves_by_eviction, leaves_by_find,  leaves_by_expire,
        leaves_by_invalidate,  leaves_by_flush,    leaves_by_write, leaves_by_free,
    };
    int released;

    (void)state;
    alarm(120); /* a lock held over the release function would hang us */
    for (size_t i = 0; i < NEAR_COUNT_OF(ways); i++) {
        struct near__l1 *l1 = l1_open(SIZE_MAX, 3, 1);

        release_l1 = l1;
        adopt_and_put(l1, "a", &released, 10);
        ways[i](l1);
        assert_int_equal(released, 1);
        if (release_l1 == NULL)
            continue;
        release_l1 = NULL;
        near__l1_free(&l1);
        assert_int_equal(released, 1);
    }
}

static void
test_release_waits_for_the_last_holder(void **state)
{
    struct near__l1    *l1 = l1_open(1 << 20, 0, 0);
    struct near__entry *held;
    int                 released;

    (void)state;
    adopt_and_put(l1, "a", &released, NEAR_NEVER);
    held = near__l1_find(l1, hash_of(text("a")), text("a"), 0);
    near__l1_free(&l1);
    assert_int_equal(released, 0);
    assert_ptr_equal(held->value, &released);
    near__entry_release(&held);
    assert_int_equal(released, 1);
}

/* ---- want of memory */

static void
test_want_of_memory_is_answered(void **state)
{
    struct near__l1_config config = { 1 << 20, 0, 4, "lru" };
    struct near__l1       *l1     = NULL;
    near_status            status = NEAR_ERR_NOMEM;
    size_t                 n;
    int                    data = 0;

    (void)state;
    for (n = 1; n < 100 && status == NEAR_ERR_NOMEM; n++) {
        allocations = 0;
        refuse_at   = n;
        l1          = (struct near__l1 *)&l1;
        status      = near__l1_new(&l1, &config);
        if (status != NEAR_OK)
            assert_null(l1);
    }
    refuse_at = 0;
    assert_int_equal(status, NEAR_OK);
    assert_in_range(n, 3, 99); /* there was something to refuse */
    near__l1_free(&l1);

    refuse_all = true;
    releases   = 0;
    assert_null(near__entry_new(text("a"), 0, 10, NULL));
    assert_null(near__entry_adopt(text("a"), 0, &data, sizeof(data), count_release));
    assert_int_equal(releases, 0); /* the data are still the caller's */
}

static void
test_without_memory_for_a_table_inserts_go_on(void **state)
{
    struct near__l1    *l1 = l1_open(1 << 20, 0, 1);
    struct near__entry *entries[500];
    char                key[16];

    (void)state;
    for (int i = 0; i < 500; i++) {
        snprintf(key, sizeof(key), "%d", i);
        entries[i] = entry_of(text(key), hash_of(text(key)), text(key));
    }
    refuse_all = true;
    for (int i = 0; i < 500; i++) {
        assert_int_equal(near__l1_insert(l1, entries[i], near__l1_fence(l1, entries[i]->hash), 0),
                         NEAR__L1_ADMITTED);
        near__entry_release(&entries[i]);
    }
    for (int i = 0; i < 500; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_true(finds(l1, key, key));
    }
    refuse_all = false;
    put(l1, "one more", "and the table grows");
    for (int i = 0; i < 500; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_true(finds(l1, key, key));
    }
    near__l1_free(&l1);
}

static void
test_only_inserts_allocate(void **state)
{
    struct near__l1      *l1 = l1_open(1 << 20, 0, 0);
    struct near__l1_write write;
    uint64_t              hash = hash_of(text("a"));

    (void)state;
    put(l1, "a", "1");
    put(l1, "b", "2");
    allocations = 0;
    for (int i = 0; i < 100; i++) {
        assert_true(finds(l1, "a", "1"));
        assert_true(finds(l1, "absent", NULL));
    }
    near__l1_fence(l1, hash);
    near__l1_invalidate(l1, hash, text("a"));
    write = near__l1_write_begin(l1, hash, text("a"));
    near__l1_write_end(l1, write, hash, text("a"), NULL, 0);
    near__l1_expire(l1, 0, 100);
    stats_of(l1);
    near__l1_flush(l1);
    assert_int_equal(allocations, 0);
    near__l1_free(&l1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_entry_keeps_key_and_value),
        cmocka_unit_test(test_entry_of_nothing),
        cmocka_unit_test(test_values_are_aligned_to_16_and_to_64_when_large),
        cmocka_unit_test(test_impossible_sizes_are_out_of_memory),
        cmocka_unit_test(test_a_handle_says_where_it_came_from),
        cmocka_unit_test(test_finds_what_was_put_and_nothing_else),
        cmocka_unit_test(test_a_newer_value_replaces),
        cmocka_unit_test(test_an_entry_is_linked_once_and_never_again),
        cmocka_unit_test(test_invalidate_drops_one_and_flush_all),
        cmocka_unit_test(test_G0_equal_hashes_do_not_mix_keys),
        cmocka_unit_test(test_an_entry_is_served_until_it_expires),
        cmocka_unit_test(test_an_expired_offer_is_refused_and_what_it_replaces_goes),
        cmocka_unit_test(test_expire_lets_go_in_bounded_steps),
        cmocka_unit_test(test_lru_evicts_the_least_recently_used),
        cmocka_unit_test(test_entries_are_bounded_over_all_shards),
        cmocka_unit_test(test_fewer_entries_than_shards_still_hold_something),
        cmocka_unit_test(test_bytes_never_exceed_the_bound),
        cmocka_unit_test(test_tiny_entries_pay_for_their_table),
        cmocka_unit_test(test_too_large_is_half_of_a_shard),
        cmocka_unit_test(test_no_bytes_keep_nothing),
        cmocka_unit_test(test_settings_that_make_no_sense_are_invalid),
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
        cmocka_unit_test(test_bytes_are_what_the_heap_has_given),
#endif
        cmocka_unit_test(test_adopted_bytes_count),
        cmocka_unit_test(test_held_values_outlive_everything),
        cmocka_unit_test_teardown(test_release_runs_once_and_outside_the_lock, allocator_reset),
        cmocka_unit_test(test_release_waits_for_the_last_holder),
        cmocka_unit_test_teardown(test_want_of_memory_is_answered, allocator_reset),
        cmocka_unit_test_teardown(test_without_memory_for_a_table_inserts_go_on, allocator_reset),
        cmocka_unit_test_teardown(test_only_inserts_allocate, allocator_reset),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
