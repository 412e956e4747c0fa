/*
 * l1/ from inside: entries, the index, the bounds and what they cost, life and death of values, want of
 * memory.  Fences and writes have a program of their own, test_l1_races.
 *
 * Linked with --wrap for the allocator and mmap, so that allocations can be counted and refused.
 */
#define TEST_NAME "l1"
#include "unit/l1_help.h"

#include "l1/policy.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- the allocator, in our hands.  One thread, so plain variables will do. */

static size_t allocations; /* asked for, refused ones too */
static size_t refuse_at;   /* refuse this one, counting from 1; 0: none */
static bool   refuse_all;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__real_realloc(void *old, size_t size);
/* under both of its names: with large files the headers turn one into the other */
void *__real_mmap64(void *addr, size_t size, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *addr, size_t size, int protection, int flags, int fd, off_t offset);
void *__real_mmap(void *addr, size_t size, int protection, int flags, int fd, off_t offset);
int   __real_mprotect(void *addr, size_t size, int protection);
void *__wrap_malloc(size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_mmap(void *addr, size_t size, int protection, int flags, int fd, off_t offset);
int   __wrap_mprotect(void *addr, size_t size, int protection);
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

void *
__wrap_realloc(void *old, size_t size)
{
    return refused() ? NULL : __real_realloc(old, size);
}

void *
__wrap_mmap(void *addr, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (!refused())
        return __real_mmap(addr, size, protection, flags, fd, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}

void *
__wrap_mmap64(void *addr, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (!refused())
        return __real_mmap64(addr, size, protection, flags, fd, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}

int
__wrap_mprotect(void *addr, size_t size, int protection)
{
    if (!refused())
        return __real_mprotect(addr, size, protection);
    errno = ENOMEM;
    return -1;
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
    assert_true(near__bytes_equal((near_bytes){ entry->value, entry->value_size }, text("value")));
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
    assert_ptr_equal(near__value_address(value), entry);
    assert_false((uintptr_t)value & NEAR__VALUE_SLOT);
    assert_true(near__bytes_equal(near__value_data(value), text("v")));
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

/* Small entries are copied: the caller's stays his, and may be offered again.  Of large ones L1 keeps a reference. */
static void
insert_twice(size_t size, unsigned refs_while_kept)
{
    struct near__l1    *l1    = l1_open(1 << 20, 0, 0);
    uint64_t            hash  = hash_of(text("a"));
    void               *room  = NULL;
    struct near__entry *entry = near__entry_new(text("a"), hash, size, &room);

    memset(room, '1', size);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
        upkeep_all(l1, 0); /* what it replaced has gone */
        assert_int_equal(stats_of(l1).entries, 1);
        assert_int_equal(atomic_load(&entry->refs), refs_while_kept);
    }
    near__l1_invalidate(l1, hash, text("a"));
    assert_int_equal(atomic_load(&entry->refs), 1);
    assert_int_equal(stats_of(l1).entries, 0);
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
    assert_int_equal(stats_of(l1).entries, 1);
    near__l1_free(&l1);
    assert_int_equal(atomic_load(&entry->refs), 1);
    near__entry_release(&entry);
}

static void
test_an_entry_may_be_inserted_again(void **state)
{
    (void)state;
    insert_twice(1, 1);
    insert_twice(100000, 2);
}

static void
test_invalidate_drops_one_and_flush_all(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 4);
    char             key[16];
    uint64_t         before;

    (void)state;
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_int_equal(put(l1, key, key), NEAR__L1_ADMITTED);
    }
    before = stats_of(l1).bytes;
    near__l1_invalidate(l1, hash_of(text("500")), text("500"));
    near__l1_invalidate(l1, hash_of(text("absent")), text("absent"));
    assert_true(finds(l1, "500", NULL));
    assert_true(finds(l1, "501", "501"));
    assert_int_equal(stats_of(l1).entries, 999);
    near__l1_flush(l1);
    assert_true(finds(l1, "501", NULL));
    assert_int_equal(stats_of(l1).entries, 0);
    upkeep_all(l1, 0);
    assert_in_range(stats_of(l1).bytes, 0, before * 2 / 3); /* what is left is the index */
    assert_int_equal(put(l1, "501", "again"), NEAR__L1_ADMITTED);
    assert_true(finds(l1, "501", "again"));
    near__l1_free(&l1);
}

static const uint64_t SAME = UINT64_C(0x123456789abcdef0);

static uint64_t
hash_same(const void *ctx, near_bytes key)
{
    (void)ctx;
    (void)key;
    return SAME;
}

/* G0: a key's hash is no identity. */
static void
test_G0_equal_hashes_do_not_mix_keys(void **state)
{
    static const struct {
        near_bytes  key;
        const char *value;
    } rows[]                      = { { { "alice", 5 }, "hers" },
                                      { { "bob", 3 }, "his" },
                                      { { "alic", 4 }, "prefix" },
                                      { { "alice\0", 6 }, "longer" },
                                      { { "", 0 }, "none" } };
    struct near__l1_config config = l1_config(1 << 20, 0, 0, "lru");
    const uint64_t         hash   = SAME;
    struct near__l1       *l1;
    struct near__entry    *entry;
    near_value            *value;

    (void)state;
    config.hash = hash_same;
    l1          = l1_open_with(&config);
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        entry = entry_of(rows[i].key, hash, text(rows[i].value));
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        value = near__l1_hit((struct near__l1_front *)l1, hash, rows[i].key, 0);
        assert_true(value_is(value, rows[i].value));
        let_go_of(value);
    }
    assert_null(near__l1_hit((struct near__l1_front *)l1, hash, text("carol"), 0));
    near__l1_invalidate(l1, hash, rows[0].key);
    assert_null(near__l1_hit((struct near__l1_front *)l1, hash, rows[0].key, 0));
    value = near__l1_hit((struct near__l1_front *)l1, hash, rows[1].key, 0);
    assert_true(value_is(value, "his"));
    let_go_of(value);
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
    assert_int_equal(put_until(l1, "a", "1", 100 * NEAR_MS, 200 * NEAR_MS), NEAR__L1_ADMITTED);
    assert_true(finds_at(l1, "a", 199 * NEAR_MS, "1"));
    near__l1_upkeep(l1, 199 * NEAR_MS, 100);
    assert_int_equal(stats_of(l1).expired, 0);
    assert_true(finds_at(l1, "a", 200 * NEAR_MS, NULL));
    assert_int_equal(stats_of(l1).entries, 1); /* hidden, until upkeep comes by */
    upkeep_all(l1, 200 * NEAR_MS);
    assert_int_equal(stats_of(l1).expired, 1);
    assert_int_equal(stats_of(l1).entries, 0);
    assert_true(finds_at(l1, "a", 150 * NEAR_MS, NULL));
    near__l1_free(&l1);
}

/* Near the ends of what 32 bits of milliseconds can say. */
static void
test_expiry_is_right_wherever_the_clock_stands(void **state)
{
    static const int64_t starts[] = { 0, INT64_C(0x7fffffff) * NEAR_MS, INT64_C(0xffffffff) * NEAR_MS,
                                      INT64_C(0x1fffffffe) * NEAR_MS };
    struct near__l1     *l1       = l1_open(1 << 20, 0, 0);
    const int64_t        day      = INT64_C(24) * 3600 * 1000 * NEAR_MS;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(starts); i++)
        for (int64_t ttl = NEAR_MS; ttl <= 19 * day; ttl *= 3) {
            assert_int_equal(put_until(l1, "a", "1", starts[i], starts[i] + ttl), NEAR__L1_ADMITTED);
            assert_true(finds_at(l1, "a", starts[i], "1"));
            assert_true(finds_at(l1, "a", starts[i] + ttl - NEAR_MS, "1"));
            assert_true(finds_at(l1, "a", starts[i] + ttl, NULL));
            assert_true(finds_at(l1, "a", starts[i] + ttl + day, NULL));
        }
    /* what should live longer lives at least as long as can be said, and is gone by its time */
    assert_int_equal(put_until(l1, "a", "1", 0, 100 * day), NEAR__L1_ADMITTED);
    assert_true(finds_at(l1, "a", 19 * day, "1"));
    for (int64_t now = 0; now <= 100 * day; now += day)
        near__l1_upkeep(l1, now, 100);
    assert_true(finds_at(l1, "a", 100 * day, NULL));
    near__l1_free(&l1);
}

static void
test_stale_is_told(void **state)
{
    static const size_t sizes[] = { 1, 100000 };
    struct near__l1    *l1      = l1_open(1 << 20, 0, 0);
    uint64_t            hash    = hash_of(text("a"));

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++) {
        void               *room  = NULL;
        struct near__entry *entry = near__entry_new(text("a"), hash, sizes[i], &room);
        near_value         *value;

        memset(room, 1, sizes[i]);
        entry->fresh_until = 100 * NEAR_MS;
        entry->expires     = 200 * NEAR_MS;
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
        value = find_at(l1, "a", 99 * NEAR_MS);
        assert_int_equal((uintptr_t)value & (NEAR__VALUE_STALE | NEAR__VALUE_SOURCE), NEAR_FROM_L1);
        let_go_of(value);
        value = find_at(l1, "a", 100 * NEAR_MS);
        assert_int_equal((uintptr_t)value & (NEAR__VALUE_STALE | NEAR__VALUE_SOURCE),
                         NEAR__VALUE_STALE | NEAR_FROM_L1);
        let_go_of(value);
    }
    near__l1_free(&l1);
}

static void
test_absence_is_an_answer(void **state)
{
    struct near__l1    *l1    = l1_open(1 << 20, 0, 0);
    uint64_t            hash  = hash_of(text("a"));
    struct near__entry *entry = entry_of(text("a"), hash, text(""));

    (void)state;
    entry->negative = true;
    entry->expires  = 100 * NEAR_MS;
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
    near__entry_release(&entry);
    assert_ptr_equal(find_at(l1, "a", 0), NEAR__L1_NEGATIVE);
    assert_ptr_equal(near__l1_hit((struct near__l1_front *)l1, hash, text("a"), 0), NEAR__L1_NEGATIVE);
    assert_int_equal(stats_of(l1).hits, 0);
    assert_null(find_at(l1, "a", 100 * NEAR_MS));
    near__l1_free(&l1);
}

/* What is known of an entry comes back as it went in, to the precision that the block's format states. */
static void
test_an_entry_keeps_its_numbers(void **state)
{
    const int64_t       now  = INT64_C(1000000) * NEAR_MS;
    struct near__l1    *l1   = l1_open(1 << 20, 0, 0);
    uint64_t            hash = hash_of(text("a"));
    struct near__entry *copy;

    (void)state;
    for (unsigned which = 0; which < 16; which++) {
        struct near__entry *entry = entry_of(text("a"), hash, text("value"));
        struct near__meta   meta;
        near_value         *value;

        entry->born        = now;
        entry->expires     = which & 1 ? now + 5000 * NEAR_MS : NEAR_NEVER;
        entry->fresh_until = which & 2 ? now + 3000 * NEAR_MS : NEAR_NEVER;
        entry->cost_us     = which & 4 ? 777 : 0;
        entry->stamp       = which & 8 ? UINT64_C(0x1234567890abcdef) : 0;
        entry->generation  = which & 8 ? 9 : 0;
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), now), NEAR__L1_ADMITTED);
        value = find_at(l1, "a", now + 1000 * NEAR_MS);
        assert_true(value_is(value, "value"));
        near__value_meta(value, now + 1000 * NEAR_MS, &meta);
        assert_true(meta.born > now - 16 * NEAR_MS && meta.born < now + 16 * NEAR_MS);
        assert_int_equal(meta.expires, entry->expires);
        assert_int_equal(meta.fresh_until, which & 2 ? entry->fresh_until : entry->expires);
        assert_int_equal(meta.cost_us, entry->cost_us);
        assert_int_equal(meta.stamp, entry->stamp);
        assert_int_equal(meta.generation, entry->generation);
        copy = near__value_counted(value, text("a"), hash, now + 1000 * NEAR_MS);
        assert_non_null(copy);
        let_go_of(value);
        assert_true(near__bytes_equal((near_bytes){ copy->value, copy->value_size }, text("value")));
        assert_int_equal(copy->expires, entry->expires);
        assert_int_equal(copy->stamp, entry->stamp);
        near__entry_release(&copy);
        near__entry_release(&entry);
    }
    near__l1_free(&l1);
}

/* Beside its end an entry's birth takes three bytes: exact while it lives for less than 2^23 ms, and never younger than it is. */
static void
test_an_entry_knows_its_age(void **state)
{
    const int64_t     day     = INT64_C(24) * 3600 * 1000;
    const int64_t     lives[] = { 1,       60000,   (1 << 23) - 1, 1 << 23, (1 << 23) + 1, (1 << 23) + 255,
                                  day + 1, 19 * day };
    const int64_t     now     = INT64_C(1000000) * NEAR_MS;
    struct near__l1  *l1      = l1_open(1 << 20, 0, 0);
    struct near__meta meta;
    near_value       *value;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(lives); i++) {
        int64_t slack = lives[i] < 1 << 23 ? 0 : 255 * NEAR_MS;

        assert_int_equal(put_until(l1, "a", "value", now, now + lives[i] * NEAR_MS), NEAR__L1_ADMITTED);
        for (int64_t age = 0; age < lives[i]; age += lives[i] / 3 + 1) {
            value = find_at(l1, "a", now + age * NEAR_MS);
            assert_true(value_is(value, "value"));
            near__value_meta(value, now + age * NEAR_MS, &meta);
            assert_int_equal(meta.expires, now + lives[i] * NEAR_MS);
            assert_in_range(meta.born, now - slack, now);
            let_go_of(value);
        }
        assert_null(find_at(l1, "a", now + lives[i] * NEAR_MS));
    }
    near__l1_free(&l1);
}

static void
test_values_in_the_arena_are_aligned(void **state)
{
    static const size_t sizes[] = { 1, 3, 100, 1023, 1024, 1025, 4000 };
    struct near__l1    *l1      = l1_open(64 << 20, 0, 1);
    char                key[300];

    (void)state;
    memset(key, 'k', sizeof(key));
    for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++)
        for (size_t length = 1; length < sizeof(key); length += 7) {
            near_bytes          name  = { key, length };
            void               *room  = NULL;
            struct near__entry *entry = near__entry_new(name, hash_of(name), sizes[i], &room);
            near_value         *value;

            memset(room, (int)length, sizes[i]);
            assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0),
                             NEAR__L1_ADMITTED);
            value = near__l1_find(l1, entry->hash, name, 0);
            assert_non_null(value);
            assert_int_equal((uintptr_t)near__value_data(value).data % (sizes[i] < 1024 ? 4
                                                                        : length > 255  ? 16
                                                                                        : 64),
                             0);
            assert_int_equal(near__value_data(value).size, sizes[i]);
            assert_memory_equal(near__value_data(value).data, room, sizes[i]);
            let_go_of(value);
            near__entry_release(&entry);
        }
    near__l1_free(&l1);
}

static void
test_an_expired_offer_is_refused_and_what_it_replaces_goes(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);

    (void)state;
    assert_int_equal(put_until(l1, "a", "old", 100 * NEAR_MS, 1000 * NEAR_MS), NEAR__L1_ADMITTED);
    assert_int_equal(put_until(l1, "a", "new", 200 * NEAR_MS, 200 * NEAR_MS), NEAR__L1_EXPIRED);
    assert_true(finds_at(l1, "a", 200 * NEAR_MS, NULL));
    assert_int_equal(stats_of(l1).entries, 0);
    near__l1_free(&l1);
}

static void
test_upkeep_lets_expired_entries_go_in_bounded_steps(void **state)
{
    enum { MANY = 20000 };
    struct near__l1 *l1 = l1_open(8 << 20, 0, 1);
    char             key[16];
    uint64_t         left = MANY + 1, before, full;
    int              calls;

    (void)state;
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_int_equal(put_until(l1, key, key, 0, 10 * NEAR_MS), NEAR__L1_ADMITTED);
    }
    assert_int_equal(put_until(l1, "keep", "me", 0, 11 * NEAR_MS), NEAR__L1_ADMITTED);
    upkeep_all(l1, 9 * NEAR_MS);
    assert_int_equal(stats_of(l1).entries, MANY + 1);
    full = stats_of(l1).bytes;
    for (calls = 0; left > 1 && calls < 1000; calls++) {
        before = left;
        near__l1_upkeep(l1, 10 * NEAR_MS, 1);
        left = stats_of(l1).entries;
        assert_in_range(before - left, 0, MANY / 20); /* a lap is 40 calls */
    }
    assert_in_range(calls, 20, 80);
    assert_int_equal(stats_of(l1).expired, MANY);
    assert_true(finds_at(l1, "keep", 10 * NEAR_MS, "me"));
    upkeep_all(l1, 11 * NEAR_MS);
    assert_int_equal(stats_of(l1).entries, 0);
    assert_in_range(stats_of(l1).bytes, 0, full * 2 / 5); /* the index stays */
    near__l1_free(&l1);
}

/* ---- bounds */

/* Uses are marked, not listed, so the order is nearly that of the textbook: of what was just used nearly all stays. */
static void
test_every_policy_keeps_what_is_used(void **state)
{
    enum { HOLDS = 1000, ROUNDS = 10 };
    char key[16];

    (void)state;
    for (size_t p = 0; near__policies[p] != NULL; p++) {
        struct near__l1_config config = l1_config(SIZE_MAX, HOLDS, 1, near__policies[p]->name);
        struct near__l1       *l1     = l1_open_with(&config);
        int                    kept = 0, others = 0;

        for (int i = 0; i < HOLDS; i++) {
            snprintf(key, sizeof(key), "%d", i);
            assert_int_equal(put(l1, key, key), NEAR__L1_ADMITTED);
        }
        for (int round = 0; round < ROUNDS; round++) {
            for (int i = 0; i < HOLDS / 4; i++) { /* these are used all the time */
                snprintf(key, sizeof(key), "%d", i);
                finds(l1, key, key);
            }
            for (int i = 0; i < HOLDS / 4; i++) { /* while others come and go */
                snprintf(key, sizeof(key), "new %d", round * HOLDS / 4 + i);
                assert_int_equal(put(l1, key, key), NEAR__L1_ADMITTED);
            }
        }
        for (int i = 0; i < HOLDS; i++) {
            snprintf(key, sizeof(key), "%d", i);
            if (i < HOLDS / 4)
                kept += finds(l1, key, key);
            else
                others += finds(l1, key, key);
        }
        print_message("# %s: keeps %d of %d that are used, %d of %d that are not\n", near__policies[p]->name,
                      kept, HOLDS / 4, others, HOLDS - HOLDS / 4);
        assert_in_range(kept, HOLDS / 4 * 9 / 10, HOLDS / 4);
        assert_int_equal(stats_of(l1).entries, HOLDS);
        near__l1_free(&l1);
    }
}

static void
test_replacing_evicts_nobody(void **state)
{
    struct near__l1 *l1 = l1_open(SIZE_MAX, 3, 0);

    (void)state;
    put(l1, "a", "1");
    put(l1, "b", "2");
    put(l1, "c", "3");
    for (int i = 0; i < 1000; i++)
        put(l1, "b", i % 2 ? "5" : "4");
    assert_true(finds(l1, "a", "1"));
    assert_true(finds(l1, "b", "5"));
    assert_true(finds(l1, "c", "3"));
    assert_int_equal(stats_of(l1).evictions, 0);
    put(l1, "d", "6");
    assert_int_equal(stats_of(l1).evictions, 1);
    assert_int_equal(stats_of(l1).entries, 3);
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

    (void)state;
    for (uint32_t i = 0; i < 20000; i++) {
        near_bytes key = { &i, sizeof(i) };

        entry = near__entry_new(key, hash_of(key), 0, NULL);
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0), NEAR__L1_ADMITTED);
        /* the policy's own lists grow first and are paid for by the next evictions */
        assert_in_range(stats_of(l1).bytes, 1, 256 * 1024 * 108 / 100);
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
    assert_int_equal(put_sized(l1, "a", 500 * 1024), NEAR__L1_ADMITTED);
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

/* One large value in place of many that are counted: they go in portions, with the lock dropped between. */
static void
test_a_large_value_finds_room_among_many_adopted(void **state)
{
    static char      data[4000];
    struct near__l1 *l1 = l1_open(1 << 20, 0, 1);
    uint64_t         evictions;
    near_value      *value;
    char             key[16];

    (void)state;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 1000; i++) {
            struct near__entry *entry;

            snprintf(key, sizeof(key), "%d", i);
            entry = near__entry_adopt(text(key), hash_of(text(key)), data, sizeof(data), NULL);
            assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0),
                             NEAR__L1_ADMITTED);
            near__entry_release(&entry);
        }
        evictions = stats_of(l1).evictions;
        if (round == 0) {
            assert_int_equal(put_sized(l1, "large", 500 * 1024), NEAR__L1_ADMITTED);
        } else {
            uint64_t              hash  = hash_of(text("large"));
            struct near__l1_write write = near__l1_write_begin(l1, hash, text("large"));
            struct near__entry   *entry = near__entry_new(text("large"), hash, 500 * 1024, NULL);
            memset((void *)(uintptr_t)entry->value, 1, 500 * 1024);
            near__l1_write_end(l1, write, hash, text("large"), entry, 0);
            near__entry_release(&entry);
        }
        value = find_at(l1, "large", 0);
        assert_non_null(value);
        assert_int_equal(near__value_data(value).size, 500 * 1024);
        let_go_of(value);
        /* and they are about as many as make up its size */
        assert_in_range(stats_of(l1).evictions - evictions, 100, 200);
        assert_in_range(stats_of(l1).bytes, 900000, 1 << 20);
        assert_int_equal(stats_of(l1).too_large, 0);
    }
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
    const struct near__l1_config bad[] = { l1_config(1 << 20, 0, 3, "lru"),
                                           l1_config(1 << 20, 0, 2048, "lru"),
                                           l1_config(1 << 20, 0, 0, "no such policy"),
                                           l1_config(1 << 20, 0, 0, ""), l1_config(1 << 20, 0, 0, NULL) };
    struct near__l1             *l1;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++) {
        l1 = (struct near__l1 *)&l1;
        assert_int_equal(near__l1_new(&l1, &bad[i]), NEAR_ERR_INVALID);
        assert_null(l1);
    }
    assert_ptr_equal(near__policy_named("lru"), &near__lru);
    assert_null(near__policy_named("lr"));
    l1 = l1_open((size_t)1 << 30, 0, 1024); /* the most that is accepted */
    assert_int_equal(stats_of(l1).entries, 0);
    near__l1_free(&l1);
}

/* ---- memory, honestly (what the pages cost: test_l1_memory) */

static void
test_adopted_bytes_count(void **state)
{
    static char         data[10000];
    struct near__l1    *l1     = l1_open(1 << 20, 0, 0);
    uint64_t            hash   = hash_of(text("a"));
    struct near__entry *entry  = near__entry_adopt(text("a"), hash, data, sizeof(data), NULL);
    uint64_t            before = stats_of(l1).bytes;

    (void)state;
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0), NEAR__L1_ADMITTED);
    assert_in_range(stats_of(l1).bytes - before, near__entry_cost(entry), near__entry_cost(entry) + 65536);
    near__l1_invalidate(l1, hash, text("a"));
    assert_in_range(stats_of(l1).bytes - before, 0, 65536);
    near__entry_release(&entry);
    near__l1_free(&l1);
}

/* ---- life and death */

static void
test_held_values_outlive_everything(void **state)
{
    struct near__l1 *l1 = l1_open(SIZE_MAX, 2, 0);
    near_value      *evicted, *flushed, *last;

    (void)state;
    put(l1, "a", "evicted");
    evicted = find_at(l1, "a", 0);
    put(l1, "b", "flushed");
    put(l1, "c", "x");
    put(l1, "d", "y");
    put(l1, "b", "flushed");
    flushed = find_at(l1, "b", 0);
    near__l1_flush(l1);
    put(l1, "d", "last");
    last = find_at(l1, "d", 0);
    near__value_ref(last);
    near__l1_free(&l1);
    assert_true(value_is(evicted, "evicted"));
    assert_true(value_is(flushed, "flushed"));
    assert_true(value_is(last, "last"));
    near__value_release(evicted);
    near__value_release(flushed);
    near__value_release(last);
    assert_true(value_is(last, "last"));
    near__value_release(last);
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
leaves_by_upkeep(struct near__l1 *l1)
{
    upkeep_all(l1, 10 * NEAR_MS);
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
        leaves_by_replacement, leaves_by_eviction, leaves_by_upkeep, leaves_by_invalidate,
        leaves_by_flush,       leaves_by_write,    leaves_by_free,
    };
    int released;

    (void)state;
    alarm(120); /* a lock held over the release function would hang us */
    for (size_t i = 0; i < NEAR_COUNT_OF(ways); i++) {
        struct near__l1 *l1 = l1_open(SIZE_MAX, 3, 1);

        release_l1 = l1;
        adopt_and_put(l1, "a", &released, 10 * NEAR_MS);
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
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);
    near_value      *held;
    int              released;

    (void)state;
    adopt_and_put(l1, "a", &released, NEAR_NEVER);
    held = find_at(l1, "a", 0);
    near__l1_free(&l1);
    assert_int_equal(released, 0);
    assert_ptr_equal(near__value_data(held).data, &released);
    near__value_release(held);
    assert_int_equal(released, 1);
}

/* ---- want of memory */

static void
test_want_of_memory_is_answered(void **state)
{
    struct near__l1_config config = l1_config(1 << 20, 0, 4, "lru");
    struct near__l1       *l1     = NULL;
    size_t                 failed = 0;
    int                    data   = 0;

    (void)state;
    allocations = 0;
    do { /* not every refusal is fatal: each of them in turn */
        refuse_at   = failed + 1;
        allocations = 0;
        l1          = (struct near__l1 *)&l1;
        if (near__l1_new(&l1, &config) == NEAR_OK) {
            struct near__entry *entry = entry_of(text("a"), hash_of(text("a")), text("1"));

            if (entry != NULL &&
                near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0) == NEAR__L1_ADMITTED)
                assert_true(finds(l1, "a", "1"));
            near__entry_release(&entry);
            near__l1_free(&l1);
        }
        assert_null(l1);
        failed++;
    } while (failed < 1000 && allocations >= refuse_at);
    refuse_at = 0;
    assert_in_range(failed, 5, 999); /* there was something to refuse */

    refuse_all = true;
    releases   = 0;
    assert_null(near__entry_new(text("a"), 0, 10, NULL));
    assert_null(near__entry_adopt(text("a"), 0, &data, sizeof(data), count_release));
    assert_int_equal(releases, 0); /* the data are still the caller's */
}

static void
test_without_memory_inserts_say_so_and_the_rest_goes_on(void **state)
{
    enum { MANY = 50000 };
    struct near__l1 *l1 = l1_open(16 << 20, 0, 1);
    char             key[16];
    int              admitted = 0, found = 0;

    (void)state;
    put(l1, "first", "1");
    for (int i = 0; i < MANY; i++) {
        struct near__entry *entry;

        snprintf(key, sizeof(key), "%d", i);
        entry      = entry_of(text(key), hash_of(text(key)), text(key));
        refuse_all = true; /* the pages that are there must do */
        admitted += near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0) == NEAR__L1_ADMITTED;
        refuse_all = false;
        near__entry_release(&entry);
    }
    refuse_all = true;
    for (int i = 0; i < MANY; i++) {
        near_value *value;

        snprintf(key, sizeof(key), "%d", i);
        value = find_at(l1, key, 0);
        found += value != NULL;
        assert_true(value == NULL || value_is(value, key));
        let_go_of(value);
    }
    refuse_all = false;
    print_message("# of %d: %d admitted, %d found\n", MANY, admitted, found);
    assert_true(admitted > 0 && found > 0 && found <= admitted);
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_int_equal(put(l1, key, "again"), NEAR__L1_ADMITTED);
        assert_true(finds(l1, key, "again"));
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
    assert_true(finds(l1, "a", "1"));
    allocations = 0;
    for (int i = 0; i < 100; i++) {
        assert_true(finds(l1, "a", "1"));
        assert_true(finds(l1, "absent", NULL));
    }
    near__l1_fence(l1, hash);
    near__l1_invalidate(l1, hash, text("a"));
    write = near__l1_write_begin(l1, hash, text("a"));
    near__l1_write_end(l1, write, hash, text("a"), NULL, 0);
    near__l1_upkeep(l1, 0, 100);
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
        cmocka_unit_test(test_an_entry_may_be_inserted_again),
        cmocka_unit_test(test_invalidate_drops_one_and_flush_all),
        cmocka_unit_test(test_G0_equal_hashes_do_not_mix_keys),
        cmocka_unit_test(test_an_entry_is_served_until_it_expires),
        cmocka_unit_test(test_expiry_is_right_wherever_the_clock_stands),
        cmocka_unit_test(test_stale_is_told),
        cmocka_unit_test(test_absence_is_an_answer),
        cmocka_unit_test(test_an_entry_keeps_its_numbers),
        cmocka_unit_test(test_an_entry_knows_its_age),
        cmocka_unit_test(test_values_in_the_arena_are_aligned),
        cmocka_unit_test(test_an_expired_offer_is_refused_and_what_it_replaces_goes),
        cmocka_unit_test(test_upkeep_lets_expired_entries_go_in_bounded_steps),
        cmocka_unit_test(test_every_policy_keeps_what_is_used),
        cmocka_unit_test(test_replacing_evicts_nobody),
        cmocka_unit_test(test_entries_are_bounded_over_all_shards),
        cmocka_unit_test(test_fewer_entries_than_shards_still_hold_something),
        cmocka_unit_test(test_bytes_never_exceed_the_bound),
        cmocka_unit_test(test_tiny_entries_pay_for_their_table),
        cmocka_unit_test(test_too_large_is_half_of_a_shard),
        cmocka_unit_test(test_a_large_value_finds_room_among_many_adopted),
        cmocka_unit_test(test_no_bytes_keep_nothing),
        cmocka_unit_test(test_settings_that_make_no_sense_are_invalid),
        cmocka_unit_test(test_adopted_bytes_count),
        cmocka_unit_test(test_held_values_outlive_everything),
        cmocka_unit_test_teardown(test_release_runs_once_and_outside_the_lock, allocator_reset),
        cmocka_unit_test(test_release_waits_for_the_last_holder),
        cmocka_unit_test_teardown(test_want_of_memory_is_answered, allocator_reset),
        cmocka_unit_test_teardown(test_without_memory_inserts_say_so_and_the_rest_goes_on, allocator_reset),
        cmocka_unit_test_teardown(test_only_inserts_allocate, allocator_reset),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
