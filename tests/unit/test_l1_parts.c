/*
 * The parts of L1 where they come to their bounds: entries, lists of ghosts, queues and tables alone; and an L1 whose memory is all held,
 * or that is asked for what it cannot have.  What it is asked for and given otherwise: test_l1, test_l1_faults.
 *
 * Linked with --wrap for the allocators, mmap and munmap.
 */
#define TEST_NAME "l1_parts"
#include "harness/shortage.h"

#include "unit/l1_help.h"

#include "l1/batch.h"
#include "l1/curve.h"
#include "l1/ghost.h"
#include "l1/hazard.h"
#include "l1/object.h"
#include "l1/policy.h"
#include "l1/ring.h"
#include "l1/table.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

void *__real_mmap64(void *at, size_t size, int rights, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *at, size_t size, int rights, int flags, int fd, off_t offset);
void *__real_mmap(void *at, size_t size, int rights, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int rights, int flags, int fd, off_t offset);
int   __real_munmap(void *at, size_t size);
int   __wrap_munmap(void *at, size_t size);

static void *not_unmapped; /* by a system that has no room to note a hole */
static bool  no_unmap;

void *
__wrap_mmap64(void *at, size_t size, int rights, int flags, int fd, off_t offset)
{
    return shortage_refuses() ? MAP_FAILED : __real_mmap64(at, size, rights, flags, fd, offset);
}

void *
__wrap_mmap(void *at, size_t size, int rights, int flags, int fd, off_t offset)
{
    return shortage_refuses() ? MAP_FAILED : __real_mmap(at, size, rights, flags, fd, offset);
}

int
__wrap_munmap(void *at, size_t size)
{
    if (!no_unmap)
        return __real_munmap(at, size);
    not_unmapped = at;
    return -1;
}

/* ---- threads that get no slots (first: nobody has left any yet) */

static void *
read_in_need(void *ctx)
{
    const char **wrong = ctx;

    for (long n = 0; n < 2; n++) {
        struct near__reader *reader;

        shortage_begin(n, true);
        reader = near__reader_new();
        shortage_end();
        if (reader != NULL)
            *wrong = "slots without memory";
    }
    if (near__reader_new() == NULL)
        *wrong = "no slots";
    return NULL;
}

static void
test_a_thread_that_gets_no_slots(void **state)
{
    const char *wrong = NULL;
    pthread_t   thread;

    (void)state;
    assert_non_null(near__reader()); /* this thread's, which stay its own */
    assert_int_equal(pthread_create(&thread, NULL, read_in_need, &wrong), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    if (wrong != NULL)
        fail_msg("%s", wrong);
}

/* ---- entries */

static void
test_entries_of_every_size(void **state)
{
    static char         key[300];
    void               *room;
    struct near__entry *entry;

    (void)state;
    memset(key, 'k', sizeof(key));
    assert_null(near__entry_new((near_bytes){ key, sizeof(key) }, 0, (size_t)PTRDIFF_MAX - 100, &room));
    shortage_begin(0, true);
    assert_null(near__entry_new(text("k"), 0, (size_t)1 << 45, &room)); /* more pages than are counted */
    assert_null(near__entry_new(text("k"), 0, 100000, &room));
    shortage_end();
    shortage_begin(0, false); /* no more mappings: it lies among the others */
    entry = near__entry_new(text("k"), 0, 100000, &room);
    shortage_end();
    assert_non_null(entry);
    memset(room, 'v', 100000);
    near__entry_release(&entry);
    entry = near__entry_new(text("k"), 0, 100000, &room);
    assert_non_null(entry);
    memset(room, 'v', 100000);
    no_unmap = true; /* its pages go, the addresses stay */
    near__entry_release(&entry);
    no_unmap = false;
    assert_non_null(not_unmapped);
    assert_int_equal(((const volatile char *)not_unmapped)[0], 0);
    assert_int_equal(__real_munmap(not_unmapped, 4096), 0);
}

/* ---- ghosts */

static void
test_a_list_of_ghosts_without_memory(void **state)
{
    struct near__ghost ghost = { .count = 0 };

    (void)state;
    for (long n = 0; n < 4; n++) {
        shortage_begin(n, false);
        near__ghost_size(&ghost, 100, true);
        shortage_end();
        near__ghost_add(&ghost, 7);
        assert_int_equal(near__ghost_take(&ghost, 7),
                         n == 3); /* the control: a list, its heads and its nodes */
        assert_false(near__ghost_take(&ghost, 7));
        near__ghost_fini(&ghost);
    }
    for (size_t keys = 0; keys < 3; keys++) {
        near__ghost_size(&ghost, keys, true);
        for (uint32_t i = 1; i <= 5; i++)
            near__ghost_add(&ghost, i);
        for (uint32_t i = 1; i <= 5; i++)
            assert_int_equal(near__ghost_take(&ghost, i), i + keys > 5);
        near__ghost_fini(&ghost);
    }
}

/* ---- tables */

enum { SHIFT = 4 };

static size_t chunks_live;

static void *
chunk_new(void *ctx)
{
    uint32_t shift = *(uint32_t *)ctx;
    size_t   bytes = sizeof(struct near__bucket) << shift;
    void    *chunk = aligned_alloc(sizeof(struct near__bucket), bytes);

    if (chunk == NULL)
        return NULL;
    chunks_live++;
    return memset(chunk, 0, bytes);
}

static void
chunk_free(void *ctx, void *chunk)
{
    (void)ctx;
    chunks_live--;
    free(chunk);
}

static uint32_t
mixed(uint32_t key)
{
    uint64_t state = key;

    return (uint32_t)(test_random(&state) >> 32);
}

static uint32_t
mixed_of(void *ctx, uint32_t ref)
{
    (void)ctx;
    return mixed(ref - 1);
}

static uint32_t
the_same_of(void *ctx, uint32_t ref)
{
    (void)ctx, (void)ref;
    return 0xABCD0001;
}

static uint32_t table_shift;

static near_status
table_new(struct near__table *table, uint32_t shift, uint32_t chunks, uint32_t buckets, bool exact)
{
    table_shift = shift;
    *table      = (struct near__table){ .chunk_shift = (uint8_t)shift,
                                        .max_chunks  = chunks,
                                        .chunk_new   = chunk_new,
                                        .chunk_free  = chunk_free,
                                        .chunk_ctx   = &table_shift,
                                        .element_of  = mixed_of,
                                        .exact       = exact };
    return near__table_init(table, buckets);
}

static bool
table_add(struct near__table *table, uint32_t key)
{
    struct near__place place;

    return near__table_insert(table, mixed(key), key + 1, 0, &place);
}

/* By looking everywhere. */
static size_t
table_count(const struct near__table *table)
{
    size_t n = 0;

    for (uint32_t home = 0; home < near__table_homes(table); home++)
        for (struct near__bucket *b = near__table_current(table, home); b != NULL;
             b                      = near__table_after(table, b))
            n += (size_t)__builtin_popcount(near__bucket_occupied(b));
    return n;
}

static void
test_a_table_at_its_bounds(void **state)
{
    struct near__table table;
    uint32_t           n = 0;

    (void)state;
    for (int exact = 0; exact < 2; exact++)
        for (long i = 0; i < 1 + exact; i++) { /* stamps, the first chunk */
            shortage_begin(i, true);
            assert_int_equal(table_new(&table, SHIFT, 1, 1, exact == 1), NEAR_ERR_NOMEM);
            shortage_end();
            assert_int_equal(chunks_live, 0);
        }
    assert_int_equal(table_new(&table, SHIFT, 1, 16, true), NEAR_OK); /* neither grows nor shrinks */
    assert_false(near__table_split(&table));
    assert_false(near__table_join(&table));
    near__table_fini(&table);

    assert_int_equal(table_new(&table, SHIFT, 1, 1, false),
                     NEAR_OK); /* sixteen homes at most, and as many more buckets */
    assert_false(near__table_join(&table));
    while (table_add(&table, n)) /* the directory of those behind is full */
        n++;
    assert_in_range(n, 16 * NEAR__LANES, 17 * NEAR__LANES);
    assert_int_equal(table_count(&table), n);
    near__table_fini(&table);

    assert_int_equal(table_new(&table, SHIFT, 1, 1, false), NEAR_OK);
    for (n = 0; near__table_split(&table); n++)
        assert_true(table_add(&table, n));
    assert_int_equal(near__table_homes(&table), 16);
    while (near__table_join(&table))
        assert_int_equal(table_count(&table), n);
    assert_int_equal(near__table_homes(&table), 1);
    near__table_fini(&table);
    assert_int_equal(chunks_live, 0);
}

/* Many of one home, as chance alone does not make them: a bucket with more than can be moved at once stays as it is. */
static void
test_a_chain_that_is_too_long(void **state)
{
    enum { ALL = 2000 };
    struct near__table table;
    struct near__place place;
    uint32_t           n = 0, homes;

    (void)state;
    assert_int_equal(table_new(&table, SHIFT, 64, 2, false), NEAR_OK);
    table.element_of = the_same_of; /* home 1 of two, and of four */
    for (; n < ALL; n++) {
        assert_true(near__table_insert(&table, 0xABCD0001, n + 1, 0, &place));
        homes = near__table_homes(&table);
        if (n % 50 == 0 && near__table_split(&table) && near__table_split(&table)) {
            assert_int_equal(near__table_homes(&table), homes + 2);
            while (near__table_homes(&table) > homes && near__table_join(&table))
                ;
        }
        if (n % 50 == 0)
            assert_int_equal(table_count(&table), n + 1);
    }
    homes = near__table_homes(&table);
    while (near__table_split(&table)) /* as far as it goes: not where the long one would be looked through */
        assert_true(near__table_homes(&table) < 64);
    assert_int_equal(table_count(&table), ALL);
    while (near__table_join(&table))
        ;
    assert_int_equal(table_count(&table), ALL);
    assert_true(near__table_homes(&table) <= homes + 64);
    near__table_fini(&table);
    assert_int_equal(chunks_live, 0);
}

/* `first` into home 0 of two, `second` into home 1: whether they may be joined. */
static bool
joins(uint32_t first, uint32_t second)
{
    struct near__table table;
    struct near__place place;
    bool               joined;

    assert_int_equal(table_new(&table, SHIFT, 64, 2, false), NEAR_OK);
    for (uint32_t n = 0; n < first + second; n++)
        assert_true(near__table_insert(&table, 0xABCD0000 | (n >= first), n + 1, 0, &place));
    joined = near__table_join(&table);
    assert_int_equal(near__table_homes(&table), joined ? 1 : 2);
    assert_int_equal(table_count(&table), first + second);
    near__table_fini(&table);
    return joined;
}

static void
drop_nothing(void *ctx, uint32_t ref)
{
    (void)ctx, (void)ref;
}

static void
test_what_cannot_be_joined_or_split(void **state)
{
    struct near__table table;
    struct near__place place;
    uint32_t           n = 0;

    (void)state;
    assert_true(joins(100, 100));
    assert_false(joins(200, 200)); /* more than are moved in one piece, together or alone */
    assert_false(joins(300, 10));
    assert_false(joins(10, 300));

    assert_int_equal(table_new(&table, SHIFT, 64, 2, false),
                     NEAR_OK); /* one of the two is of an old generation */
    for (; n < 40; n++)
        assert_true(near__table_insert(&table, 0xABCD0000 | (n & 1), n + 1, 0, &place));
    near__table_clear(&table);
    assert_true(near__table_purge(&table, 1, drop_nothing, NULL));
    assert_false(near__table_join(&table));
    assert_true(near__table_purge(&table, 0, drop_nothing, NULL));
    assert_true(near__table_join(&table));
    near__table_fini(&table);

    assert_int_equal(table_new(&table, SHIFT, 1, 1, false),
                     NEAR_OK); /* all would move, and there is no second room for them */
    table.element_of = the_same_of;
    for (n = 0; near__table_insert(&table, 0xABCD0001, n + 1, 0, &place); n++)
        ;
    assert_false(near__table_split(&table));
    assert_int_equal(table_count(&table), n);
    near__table_fini(&table);
    assert_int_equal(chunks_live, 0);
}

/* Directories grow with the table.  Who has looked into one that was outgrown finds there what it found before; without memory for the
 * next one the table stays as it is. */
static void
test_directories_that_grow(void **state)
{
    enum { N = 30000 };
    struct near__bucket **directory, *first[NEAR__NEAR_HOMES];
    struct near__table    table;
    uint32_t              n = 0, refused = 0, homes;
    size_t                found = 0;

    (void)state;
    assert_int_equal(table_new(&table, SHIFT, 1000, 1, false), NEAR_OK);
    directory = atomic_load(&table.homes);
    while (n < N) {
        homes = near__table_homes(&table);
        shortage_begin(0, true);
        if (near__table_wants(&table) > 0 && !near__table_split(&table)) {
            assert_int_equal(near__table_homes(&table), homes);
            refused++;
        }
        shortage_end();
        if (near__table_wants(&table) > 0)
            assert_true(near__table_split(&table));
        if (table.home_chunks == NEAR__NEAR_HOMES)
            memcpy(first, directory, sizeof(first));
        assert_true(table_add(&table, n++));
    }
    assert_true(table.home_chunks > 8 * NEAR__NEAR_HOMES && table.over_chunks > NEAR__NEAR_OVERS);
    assert_true(refused >= table.home_chunks - 1); /* each chunk, and the directories */
    assert_true(directory != atomic_load(&table.homes));
    assert_memory_equal(first, directory, sizeof(first));
    assert_memory_equal(first, atomic_load(&table.homes), sizeof(first));
    for (uint32_t key = 0; key < N; key++) {
        struct near__place place;

        found += near__table_locate(&table, mixed(key), &place);
    }
    assert_int_equal(found, N);
    assert_int_equal(table_count(&table), N);
    near__table_fini(&table);
    assert_int_equal(chunks_live, 0);
}

/* From 65536 homes on it is the tag that says where an entry goes: nobody is asked for its key. */
static uint32_t
nobody(void *ctx, uint32_t ref)
{
    (void)ctx, (void)ref;
    abort();
}

static void
test_a_table_of_many_homes(void **state)
{
    enum { HOMES = 1 << 17, N = 20000 };
    struct near__table table;
    size_t             found = 0;

    (void)state;
    assert_int_equal(table_new(&table, 12, 64, HOMES, false), NEAR_OK);
    table.element_of = nobody;
    for (uint32_t key = 0; key < N; key++)
        assert_true(table_add(&table, key));
    for (int i = 0; i < 5000; i++)
        assert_true(near__table_split(&table));
    for (uint32_t key = 0; key < N; key++) {
        struct near__place place;

        found += near__table_locate(&table, mixed(key), &place);
    }
    assert_int_equal(found, N);
    for (int i = 0; i < 5000; i++)
        assert_true(near__table_join(&table));
    assert_int_equal(table_count(&table), N);
    near__table_fini(&table);
}

/* One entry among many homes is found wherever it lies and wherever the hand is: who is told that there is none gives up. */
static void
test_any_entry_is_found(void **state)
{
    enum { HOMES = 100 };
    struct near__table table;
    struct near__place place;
    uint32_t           element;

    (void)state;
    assert_int_equal(table_new(&table, SHIFT, 16, HOMES, false), NEAR_OK);
    for (uint32_t key = 0; key < 200; key++) {
        assert_true(near__table_insert(&table, mixed(key), key + 1, 0, &place));
        for (uint32_t at = 0; at < HOMES * NEAR__LANES; at++) {
            uint32_t hand = at;

            if (!near__table_any(&table, &hand, &element, &place))
                fail_msg("key %u is not found from %u on", key, at);
            assert_int_equal(near__place_ref(place), key + 1);
        }
        assert_int_equal(near__table_erase(&table, element, place), key + 1);
    }
    near__table_fini(&table);
}

/* A cleared table is empty for whoever asks, before anybody has swept it. */
static void
test_a_table_that_was_cleared(void **state)
{
    struct near__table      table;
    struct near__ring_store store;
    struct near__ring       ring;
    struct near__place      place;
    uint32_t                hand = 0, element;

    (void)state;
    near__ring_store_init(&store, 100);
    near__ring_init(&ring, 0, 2);
    assert_int_equal(table_new(&table, SHIFT, 4, 8, false), NEAR_OK);
    for (uint32_t key = 0; key < 50; key++) {
        assert_true(near__table_insert(&table, mixed(key), key + 1, 0, &place));
        near__ring_push_entry(&store, &ring, mixed(key), place, 0);
    }
    assert_true(near__table_any(&table, &hand, &element, &place));
    near__table_clear(&table);
    assert_false(near__table_any(&table, &hand, &element, &place));
    assert_false(near__table_join(&table));
    assert_false(near__ring_live(&store, &ring, &table, &element, &place));
    near__ring_clear(&store, &ring);
    near__ring_store_fini(&store);
    near__table_fini(&table);
}

/* ---- queues */

/* What a store gives, however much it holds; what is kept of one that was much larger, or smaller, is no use for the next. */
static void
test_queues_of_every_size(void **state)
{
    static const size_t     capacities[] = { 0, 100, 100000, 1000000 };
    struct near__ring_store store;
    struct near__ring       ring, small;
    uint8_t                 tag;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(capacities); i++) {
        near__ring_store_init(&store, capacities[i]);
        near__ring_init(&ring, 0, 16);
        for (uint32_t n = 0; n < 700000; n++)
            assert_true(near__ring_push(&store, &ring, n, &tag));
        assert_int_equal(ring.count, 700000);
        assert_in_range(store.bytes, 700000 * sizeof(uint32_t), 700000 * sizeof(uint32_t) * 3 / 2);
        near__ring_clear(&store, &ring);
        near__ring_store_fini(&store);
        assert_int_equal(store.bytes, 0);
    }
    near__ring_store_init(&store, 1000000);
    near__ring_init(&small, 0, 16);
    assert_true(near__ring_push(&store, &small, 1, &tag));
    near__ring_clear(&store, &small); /* one large piece is kept */
    store.chunk_elements = 0;         /* as for a queue that may grow from nothing */
    assert_true(near__ring_push(&store, &small, 1, &tag));
    assert_true(store.bytes < 10000);
    near__ring_clear(&store, &small); /* and now a small one */
    store.chunk_elements = 16 * 1020;
    assert_true(near__ring_push(&store, &small, 1, &tag));
    assert_true(store.bytes > 60000);
    near__ring_clear(&store, &small);
    shortage_begin(0, true);
    assert_true(near__ring_push(&store, &small, 1, &tag)); /* what is kept is there without memory */
    near__ring_init(&ring, 0, 16);
    assert_false(near__ring_push(&store, &ring, 1, &tag));
    shortage_end();
    near__ring_clear(&store, &small);
    near__ring_store_fini(&store);
    assert_int_equal(store.bytes, 0);
}

/* ---- victims in batches */

static uint8_t
by_mark(uint8_t mark, uint8_t tick)
{
    (void)tick;
    return mark;
}

/* What policies measure their queues by, once a victim was asked for, follows a table that was given more room. */
static void
test_a_full_table_that_is_given_room(void **state)
{
    struct near__table table;
    struct near__place place;

    (void)state;
    assert_int_equal(table_new(&table, 12, 16, 16, false), NEAR_OK);
    table.full = 10;
    assert_int_equal(near__table_fill(&table), 10);
    for (uint32_t key = 0; key < 50; key++)
        assert_true(near__table_insert(&table, mixed(key), key + 1, 0, &place));
    assert_int_equal(near__table_fill(&table), 50);
    near__table_fini(&table);
}

/* Over a large table a batch is of one part of it, the next one of the next: in the end all have had their turn, the
 * oldest of each first. */
static void
test_batches_over_a_large_table(void **state)
{
    enum { HOMES = 20000, N = 60000 };
    struct near__table table;
    struct near__batch batch = { .room = 0 };
    struct near__place place;
    uint32_t           element, parts = 0, last = 0;
    size_t             taken = 0;

    (void)state;
    assert_int_equal(table_new(&table, 12, 16, HOMES, false), NEAR_OK);
    for (uint32_t key = 0; key < N; key++)
        assert_true(near__table_insert(&table, mixed(key), key + 1, (uint8_t)mixed(key + N), &place));
    shortage_begin(0, true);
    near__batch_take(&batch, &table, by_mark);
    shortage_end();
    assert_false(
        near__batch_next(&batch, &table, by_mark, &place, &element)); /* without memory it is empty */
    for (int i = 0; i < 24; i++) {
        uint32_t before = batch.region;
        uint8_t  mark   = 255;

        near__batch_take(&batch, &table, by_mark);
        parts += batch.region != before;
        assert_true(batch.region <= HOMES);
        last = batch.region == HOMES ? last + 1 : last;
        while (near__batch_next(&batch, &table, by_mark, &place, &element)) {
            assert_true(near__place_mark(place) <= mark);
            mark = near__place_mark(place);
            assert_true(mark > 220);
            taken++;
        }
    }
    assert_int_equal(parts, 24);
    assert_in_range(last, 2, 3);
    assert_in_range(taken, N / 32, N / 2);
    near__batch_fini(&batch);
    near__table_fini(&table);
}

/* An exact table that gets no memory for its order names any; with memory it has the order of the last uses. */
static void
exact_order_without_memory(bool roomy)
{
    struct near__table table;
    struct near__place place;
    struct near__order order = { .policy = &near__lru, .table = &table };
    uint32_t           element;

    assert_int_equal(table_new(&table, SHIFT, 1, 16, true), NEAR_OK);
    assert_int_equal(near__lru.open(&order), NEAR_OK);
    for (uint32_t key = 0; key < 60; key++) {
        assert_true(
            near__table_insert(&table, mixed(key), key + 1, near__lru.enter(&order, mixed(key)), &place));
        *near__table_stamp(&table, place) = 1000 + (key * 7) % 60;
        if (key == 20 && roomy) /* room for so many, and no more later */
            assert_true(near__lru.victim(&order, &place, &element));
    }
    for (uint32_t i = 0, last = 0; i < 60; i++) {
        if (i < 20)
            shortage_begin(0, true);
        assert_true(near__lru.victim(&order, &place, &element));
        shortage_end();
        assert_true(i <= 20 || *near__table_stamp(&table, place) > last);
        last = *near__table_stamp(&table, place);
        near__table_erase(&table, element, place);
    }
    assert_int_equal(table_count(&table), 0);
    near__lru.close(&order);
    near__table_fini(&table);
}

static void
test_an_exact_order_without_memory(void **state)
{
    (void)state;
    exact_order_without_memory(false);
    exact_order_without_memory(true);
}

/* A policy that shares nothing between shards, where there is but one. */
static void
test_adaptive_alone(void **state)
{
    struct near__table table;
    struct near__place place;
    struct near__order order = { .policy = &near__adaptive, .table = &table };
    uint32_t           element;

    (void)state;
    assert_int_equal(table_new(&table, SHIFT, 16, 16, false), NEAR_OK);
    shortage_begin(0, true);
    assert_int_equal(near__adaptive.open(&order), NEAR_ERR_NOMEM);
    shortage_end();
    assert_int_equal(near__adaptive.open(&order), NEAR_OK);
    for (uint32_t key = 0; key < 60; key++) {
        near__adaptive.watch(&order, mixed(key), false);
        assert_true(near__table_insert(&table, mixed(key), key + 1, near__adaptive.enter(&order, mixed(key)),
                                       &place));
    }
    for (uint32_t i = 0; i < 60; i++) {
        assert_true(near__adaptive.victim(&order, &place, &element));
        near__table_erase(&table, element, place);
    }
    assert_int_equal(table.entries, 0);
    near__adaptive.close(&order);
    near__table_fini(&table);
}

/* Queues that lost most of what they held, for want of memory: every entry leaves all the same, once. */
static void
test_entries_whose_queues_are_lost(void **state)
{
    static const struct near__policy *const all[] = { &near__lru,    &near__lfu,     &near__sieve,
                                                      &near__s3fifo, &near__tinylfu, &near__adaptive };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(all); i++) {
        struct near__table table;
        struct near__place place;
        struct near__order order = { .policy = all[i], .table = &table };
        uint32_t           element, n = 0;

        assert_int_equal(table_new(&table, SHIFT, 16, 100, false), NEAR_OK);
        assert_int_equal(all[i]->open(&order), NEAR_OK);
        for (uint32_t key = 0; key < 400; key++) {
            uint8_t mark;

            shortage_begin(key < 20 ? -1 : 0, true);
            mark = all[i]->enter(&order, mixed(key));
            shortage_end();
            assert_true(near__table_insert(&table, mixed(key), key + 1, mark, &place));
        }
        while (table.entries > 0) {
            if (!all[i]->victim(&order, &place, &element))
                fail_msg("%s: no victim, and %zu entries, %zu found", all[i]->name, (size_t)table.entries,
                         table_count(&table));
            assert_true(near__place_ref(place) != 0);
            near__table_erase(&table, element, place);
            n++;
        }
        assert_int_equal(n, 400);
        assert_int_equal(table_count(&table), 0);
        all[i]->close(&order);
        near__table_fini(&table);
    }
}

/* ---- keys and times at their bounds */

/* Two keys of one hash, as long as each other, that differ in the middle alone. */
static void
test_keys_that_differ_in_the_middle(void **state)
{
    struct near__l1    *l1 = l1_open((size_t)1 << 20, 0, 1);
    char                one[64], other[64];
    struct near__entry *entry;
    near_value         *value;

    (void)state;
    memset(one, 'k', sizeof(one));
    entry = entry_of((near_bytes){ one, sizeof(one) }, 77, text("1"));
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, 77), 0), NEAR__L1_ADMITTED);
    near__entry_release(&entry);
    for (size_t at = 0; at < sizeof(one); at++) {
        memcpy(other, one, sizeof(one));
        other[at] = 'x';
        assert_null(near__l1_find(l1, 77, (near_bytes){ other, sizeof(other) }, 0));
        assert_null(near__l1_hit((struct near__l1_front *)l1, 77, (near_bytes){ other, sizeof(other) }, 0));
    }
    value = near__l1_find(l1, 77, (near_bytes){ one, sizeof(one) }, 0);
    assert_true(value_is(value, "1"));
    near__value_release(value);
    near__l1_free(&l1);
}

/* Longer than a block can say: it is fresh, or there, for as long as one can. */
static void
test_times_beyond_a_block(void **state)
{
    const int64_t          day    = (int64_t)24 * 3600 * 1000 * NEAR_MS;
    struct near__l1_config config = l1_config((size_t)4 << 20, 0, 1, "lru");
    static char            large[200000];

    (void)state;
    for (int i = 0; i < 4; i++) {
        struct near__l1    *l1;
        struct near__entry *entry;
        near_bytes          value = i % 2 == 0 ? text("small") : (near_bytes){ large, sizeof(large) };
        near_value         *found;
        struct near__meta   meta;

        config.ttl         = i < 2 ? 0 : 50 * day;
        config.grace       = i < 2 ? 0 : 50 * day;
        l1                 = l1_open_with(&config);
        entry              = entry_of(text("k"), hash_of(text("k")), value);
        entry->born        = day;
        entry->fresh_until = 40 * day;
        entry->expires     = i == 0 ? NEAR_NEVER : 60 * day;
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), day), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
        found = find_at(l1, "k", 2 * day);
        assert_non_null(found);
        near__value_meta(found, 2 * day, &meta);
        assert_in_range(meta.fresh_until, 19 * day, 40 * day);
        near__value_release(found);
        near__l1_free(&l1);
    }
}

/* Nobody kept it for longer than times are known around: nothing of what it holds can be believed. */
static void
test_upkeep_that_slept_too_long(void **state)
{
    const int64_t    day = (int64_t)24 * 3600 * 1000 * NEAR_MS;
    struct near__l1 *l1  = l1_open((size_t)1 << 20, 0, 1);

    (void)state;
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
    near__l1_upkeep(l1, day, 8);
    near__l1_upkeep(l1, 2 * day, 8);
    assert_true(finds(l1, "a", "1"));
    near__l1_upkeep(l1, 100 * day, 8);
    assert_null(find_at(l1, "a", 100 * day));
    near__l1_free(&l1);
}

/* ---- an L1 that is asked for what it cannot have */

static void
count_seen(void *ctx, const struct near__l1_seen *seen)
{
    (void)seen;
    ++*(size_t *)ctx;
}

/* Right behind a flush nothing is there: for a walk, for what comes back, for what is brought near. */
static void
test_right_behind_a_flush(void **state)
{
    struct near__l1       *l1     = l1_open((size_t)1 << 20, 0, 1);
    struct near__l1_cursor cursor = { 0 };
    struct near__entry    *entry;
    size_t                 seen = 0;

    (void)state;
    for (int i = 0; i < 500; i++) {
        char key[16];

        snprintf(key, sizeof(key), "k%d", i);
        assert_int_equal(put(l1, key, "value"), NEAR__L1_ADMITTED);
    }
    near__l1_flush(l1);
    while (near__l1_walk(l1, &cursor, 64, 0, count_seen, &seen))
        ;
    assert_int_equal(seen, 0);
    for (int i = 0; i < 20; i++) {
        char key[16];

        snprintf(key, sizeof(key), "k%d", i);
        entry = entry_of(text(key), hash_of(text(key)), text("again"));
        assert_int_equal(near__l1_return(l1, entry, near__l1_fence(l1, entry->hash), 0), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
        assert_true(finds(l1, key, "again"));
    }
    near__l1_bring(l1, 1); /* hints do no harm */
    near__l1_expect(l1, 1);
    near__l1_free(&l1);
}

static unsigned
pool_of(void *ctx, near_bytes key, size_t size)
{
    (void)ctx, (void)size;
    return key.size > 0 && ((const char *)key.data)[0] == 'b' ? 2 : 1;
}

/* One pool, and two: hints, a walk to the end and behind it, a sum of curves where one pool was never asked. */
static void
test_pools_at_their_bounds(void **state)
{
    for (unsigned n = 1; n <= 2; n++) {
        struct near__l1_domain pools[2] = { { (size_t)1 << 20, "lru", 0 }, { (size_t)1 << 20, "lfu", 0 } };
        struct near__l1_config config   = l1_config((size_t)1 << 20, 0, 1, "lru");
        static struct near__curve_answer answer;
        struct near__l1_cursor           cursor = { 0 };
        struct near__l1                 *l1     = NULL;
        uint64_t                         hashes[3];
        near_bytes                       keys[3] = { text("a1"), text("b1"), text("b2") };
        near_value                      *values[3];
        size_t                           seen = 0;

        (void)state;
        config.pools_n = n;
        config.pools   = pools;
        config.pool_of = n == 2 ? pool_of : NULL;
        config.curve   = true;
        config.sample  = NULL;
        assert_int_equal(near__l1_new(&l1, &config), NEAR_OK);
        assert_true(near__l1_curve(l1, &answer)); /* of nothing */
        assert_true(answer.requests <= 0);
        for (size_t i = 0; i < 3; i++)
            hashes[i] = hash_of(keys[i]);
        for (size_t i = 0; i < 3; i++) {
            near__l1_bring(l1, hashes[i]);
            near__l1_expect(l1, hashes[i]);
            if (i < 2) {
                struct near__entry *entry = entry_of(keys[i], hashes[i], text("v"));

                entry->pool = (uint8_t)(n == 1 ? 1 : i + 1);
                assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, hashes[i]), 0),
                                 NEAR__L1_ADMITTED);
                near__entry_release(&entry);
            }
        }
        near__l1_find_many(l1, hashes, keys, 3, 0, values);
        assert_true(value_is(values[0], "v"));
        assert_true(value_is(values[1], "v"));
        assert_null(values[2]);
        near__value_release(values[0]);
        near__value_release(values[1]);
        while (near__l1_walk(l1, &cursor, 64, 0, count_seen, &seen))
            ;
        assert_int_equal(seen, 2);
        assert_false(near__l1_walk(l1, &cursor, 64, 0, count_seen, &seen)); /* it stays over */
        assert_int_equal(seen, 2);
        assert_false(near__l1_adopt(l1, hashes[0], keys[0], NEAR__L1_UNTOUCHED, 0, 1)); /* there is no disk */
        near__l1_flush(l1);
        near__l1_find_many(l1, hashes, keys, 3, 0, values);
        for (size_t i = 0; i < 3; i++)
            assert_null(values[i]);
        near__l1_free(&l1);
    }
}

/* A bound of more entries than there can be is none. */
static void
test_a_bound_beyond_all(void **state)
{
    struct near__l1 *l1 = l1_open((size_t)1 << 20, SIZE_MAX / 2, 1);

    (void)state;
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
    assert_true(finds(l1, "a", "1"));
    assert_int_equal(near__l1_restore_begin(l1, SIZE_MAX / 2, true),
                     NEAR_OK); /* nor is what is said to come */
    near__l1_restore_end(l1);
    near__l1_free(&l1);
    l1 = l1_open((size_t)1 << 20, 0, 1);
    shortage_begin(1, true);
    (void)near__l1_restore_begin(l1, 100000, false);
    shortage_end();
    near__l1_restore_end(l1);
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
    assert_true(finds(l1, "a", "1"));
    near__l1_free(&l1);
}

/* The first tag of all comes when there is no memory for the clock of tags: what bears it is not kept. */
static void
test_a_tag_without_memory(void **state)
{
    struct near__l1     *l1     = l1_open((size_t)1 << 20, 0, 1);
    struct near__entry  *entry  = entry_of(text("a"), hash_of(text("a")), text("1"));
    struct near__labels *labels = calloc(1, sizeof(*labels) + 2);

    (void)state;
    assert_non_null(labels);
    *labels = (struct near__labels){ .clock = 0, .n = 1, .names_size = 2 };
    memcpy(labels->names, "\1t", 2);
    entry->labels = labels;
    shortage_begin(0, true);
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0), NEAR__L1_EXPIRED);
    shortage_end();
    assert_true(finds(l1, "a", NULL));
    assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0), NEAR__L1_ADMITTED);
    assert_true(finds(l1, "a", "1"));
    near__entry_release(&entry);
    near__l1_invalidate_tag(l1, 0);
    assert_true(finds(l1, "a", NULL));
    near__l1_free(&l1);
}

/* ---- many that leave at once */

static near_bytes
long_key(size_t i, char room[320])
{
    int size = snprintf(room, 320, "key %zu %0300d", i, 1);

    return (near_bytes){ room, (size_t)size };
}

static struct near__entry *
sized_entry(near_bytes key, size_t size, int64_t expires)
{
    void               *room;
    struct near__entry *entry = near__entry_new(key, hash_of(key), size, &room);

    assert_non_null(entry);
    memset(room, 'v', size);
    entry->expires = expires;
    return entry;
}

static void
fill_with_small(struct near__l1 *l1, size_t n, int64_t expires)
{
    char room[320];

    for (size_t i = 0; i < n;
         i++) { /* their keys are longer than the arena takes: each is let go for itself */
        struct near__entry *entry = sized_entry(long_key(i, room), 1000, expires);

        near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0);
        near__entry_release(&entry);
    }
}

static unsigned
pool_one(void *ctx, near_bytes key, size_t size)
{
    (void)ctx, (void)key, (void)size;
    return 1;
}

/* One comes, by each of the ways there are, and takes the room of more than are let go under one hold of the lock. */
static void
many_leave_for_one(unsigned pools_n, int way)
{
    struct near__l1_domain pools[2] = { { (size_t)1 << 20, "lru", 0 }, { (size_t)1 << 20, "lru", 0 } };
    struct near__l1_config config   = l1_config((size_t)1 << 20, 0, 1, "lru");
    struct near__l1       *l1       = NULL;
    near_bytes             key      = text("one");
    const size_t           size     = 400000;
    struct near__entry    *one      = sized_entry(key, size, NEAR_NEVER);
    uint64_t               fence;
    near_value            *value;
    struct near__l1_write  write;

    config.pools_n = pools_n;
    config.pools   = pools;
    config.pool_of = pool_one;
    one->pool      = pools_n > 0;
    assert_int_equal(near__l1_new(&l1, &config), NEAR_OK);
    fill_with_small(l1, 1500, NEAR_NEVER);
    fence = near__l1_fence(l1, one->hash);
    switch (way) {
    case 1:
        assert_int_equal(near__l1_insert(l1, one, fence, 0), NEAR__L1_ADMITTED);
        break;
    case 2:
        assert_int_equal(near__l1_store_if(l1, one, fence, 0), NEAR__L1_ADMITTED);
        break;
    case 3:
        assert_int_equal(near__l1_return(l1, one, fence, 0), NEAR__L1_ADMITTED);
        break;
    case 4:
        assert_int_equal(near__l1_restore_begin(l1, 10, false), NEAR_OK);
        assert_int_equal(near__l1_restore(l1, one, key, near__l1_fence(l1, one->hash), false, 0, 0),
                         NEAR__L1_ADMITTED);
        near__l1_restore_end(l1);
        break;
    default:
        write = near__l1_write_begin(l1, one->hash, key);
        near__l1_write_end(l1, write, one->hash, key, one, 0);
    }
    near__entry_release(&one);
    value = find_at(l1, "one", 0);
    assert_non_null(value);
    assert_int_equal(near__value_data(value).size, size);
    near__value_release(value);
    assert_in_range(stats_of(l1).bytes, 0, pools_n > 0 ? (size_t)2 << 20 : (size_t)1 << 20);
    near__l1_free(&l1);
}

static void
test_many_leave_for_one(void **state)
{
    (void)state;
    for (unsigned pools_n = 0; pools_n <= 2; pools_n += 2)
        for (int way = 1; way <= 5; way++)
            many_leave_for_one(pools_n, way);
}

static void
test_many_expire_at_once(void **state)
{
    struct near__l1 *l1 = l1_open((size_t)4 << 20, 0, 1);

    (void)state;
    fill_with_small(l1, 1500, 1000 * NEAR_MS);
    assert_in_range(stats_of(l1).entries, 1000, 1500);
    for (int i = 0; i < 100 && stats_of(l1).entries > 0; i++) /* so many at a time, some more laps */
        upkeep_all(l1, 2000 * NEAR_MS);
    assert_int_equal(stats_of(l1).entries, 0);
    near__l1_free(&l1);
}

/* Even the smallest values are asked to be aligned; and hints for an L1 that is off. */
static void
test_settings_at_their_bounds(void **state)
{
    struct near__l1_config config = l1_config((size_t)1 << 20, 0, 1, "lru");
    struct near__l1       *l1;

    (void)state;
    config.align_from = 1;
    l1                = l1_open_with(&config);
    for (int i = 0; i < 100; i++) {
        char        key[16];
        near_value *value;

        snprintf(key, sizeof(key), "k%d", i);
        assert_int_equal(put(l1, key, i % 2 == 0 ? "" : "value"), NEAR__L1_ADMITTED);
        value = find_at(l1, key, 0);
        assert_true(value_is(value, i % 2 == 0 ? "" : "value"));
        assert_true(i % 2 == 0 || (uintptr_t)near__value_data(value).data % 64 == 0);
        near__value_release(value);
    }
    near__l1_free(&l1);
    config = l1_config(0, 0, 1, "lru");
    assert_int_equal(near__l1_new(&l1, &config), NEAR_OK);
    near__l1_expect(l1, 1);
    near__l1_bring(l1, 1);
    assert_true(finds(l1, "a", NULL));
    near__l1_free(&l1);
}

/* ---- memory that is all held */

static long objects;

static void
destroyed(void *object, void *ctx)
{
    (void)object, (void)ctx;
    objects--;
}

static struct near__object *
object_new(size_t cost)
{
    struct near__object *object = near__object_new(&objects, cost, destroyed, NULL, (near_bytes){ NULL, 0 });

    assert_non_null(object);
    objects++;
    return object;
}

/* Whatever is put is held at once, so that nothing that leaves makes room: in the end all is refused, and what is held stays what it is. */
static void
hold_all(const char *policy, bool in_need)
{
    enum { MOST = 4000 };
    struct near__l1_config config = l1_config((size_t)512 << 10, 0, 1, policy);
    struct near__l1       *l1     = l1_open_with(&config);
    static near_value     *held[MOST];
    static char            value[900], large[100000];
    struct near__entry    *entry, *decoded;
    size_t                 n = 0, refused = 0;
    char                   key[16];

    memset(value, 'v', sizeof(value) - 1);
    for (size_t i = 0; i < MOST && refused < 200; i++) {
        size_t before = n;

        snprintf(key, sizeof(key), "k%zu", i);
        value[0] = (char)('a' + n % 26);
        entry    = entry_of(text(key), hash_of(text(key)), text(value));
        assert_non_null(entry);
        if (in_need && i % 3 == 0)
            shortage_begin(0, true);
        if (near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0) == NEAR__L1_ADMITTED) {
            shortage_end();
            held[n] = find_at(l1, key, 0);
            n += held[n] != NULL;
        }
        shortage_end();
        near__entry_release(&entry);
        refused += n == before;
    }
    assert_in_range(n, 100, 1000);
    assert_int_equal(refused, 200);
    for (size_t i = 0; i < 40; i++) { /* others of all kinds are refused as well */
        snprintf(key, sizeof(key), "l%zu", i);
        entry = entry_of(text(key), hash_of(text(key)), (near_bytes){ large, sizeof(large) });
        assert_true(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0) != NEAR__L1_ADMITTED);
        near__entry_release(&entry);
        decoded         = near__entry_new(text(key), hash_of(text(key)), 0, NULL);
        decoded->object = object_new(100000);
        near__l1_insert(l1, decoded, near__l1_fence(l1, decoded->hash), 0);
        near__entry_release(&decoded);
        near__l1_upkeep(l1, 0, 8);
    }
    near__l1_flush(l1);
    for (size_t i = 0; i < n; i++) {
        value[0] = (char)('a' + i % 26);
        assert_true(value_is(held[i], value));
        near__value_release(held[i]);
    }
    upkeep_all(l1, 0);
    for (size_t i = 0; i < 20; i++) { /* and now there is room again */
        snprintf(key, sizeof(key), "m%zu", i);
        assert_int_equal(put(l1, key, value), NEAR__L1_ADMITTED);
        assert_true(finds(l1, key, value));
    }
    near__l1_free(&l1);
    assert_int_equal(objects, 0);
}

static void
test_all_is_held(void **state)
{
    (void)state;
    for (size_t i = 0; near__policies[i] != NULL; i++) {
        hold_all(near__policies[i]->name, false);
        hold_all(near__policies[i]->name, true);
    }
}

/* Objects that leave while they are held and there is no memory to note it: their memory is lost until the end, and then each ends once. */
static void
test_objects_that_are_lost(void **state)
{
    enum { N = 600 };
    struct near__l1   *l1 = l1_open((size_t)4 << 20, 0, 1);
    static near_value *held[N];
    char               key[16];

    (void)state;
    for (size_t i = 0; i < N; i += 2) {
        struct near__object *object = object_new(100);

        for (size_t j = i; j < i + 2; j++) { /* two keys name the same */
            struct near__entry *entry;

            snprintf(key, sizeof(key), "k%zu", j);
            entry         = near__entry_new(text(key), hash_of(text(key)), 0, NULL);
            entry->object = near__object_ref(object);
            assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0),
                             NEAR__L1_ADMITTED);
            near__entry_release(&entry);
            held[j] = find_at(l1, key, 0);
            assert_non_null(held[j]);
        }
        near__object_release(&object);
    }
    shortage_begin(0, true);
    for (size_t j = 0; j < N; j++) {
        snprintf(key, sizeof(key), "k%zu", j);
        if (j % 4 != 3) /* of some only one of the two */
            near__l1_invalidate(l1, hash_of(text(key)), text(key));
    }
    shortage_end();
    for (size_t j = 0; j < N; j++) {
        assert_ptr_equal(near__value_object(held[j])->object, &objects);
        near__value_release(held[j]);
    }
    upkeep_all(l1, 0);
    assert_int_equal(put(l1, "a", "1"), NEAR__L1_ADMITTED);
    near__l1_free(&l1);
    assert_int_equal(objects, 0);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_thread_that_gets_no_slots),
        cmocka_unit_test(test_entries_of_every_size),
        cmocka_unit_test(test_a_list_of_ghosts_without_memory),
        cmocka_unit_test(test_a_table_at_its_bounds),
        cmocka_unit_test(test_a_chain_that_is_too_long),
        cmocka_unit_test(test_what_cannot_be_joined_or_split),
        cmocka_unit_test(test_directories_that_grow),
        cmocka_unit_test(test_a_table_of_many_homes),
        cmocka_unit_test(test_any_entry_is_found),
        cmocka_unit_test(test_a_table_that_was_cleared),
        cmocka_unit_test(test_queues_of_every_size),
        cmocka_unit_test(test_a_full_table_that_is_given_room),
        cmocka_unit_test(test_batches_over_a_large_table),
        cmocka_unit_test(test_an_exact_order_without_memory),
        cmocka_unit_test(test_adaptive_alone),
        cmocka_unit_test(test_entries_whose_queues_are_lost),
        cmocka_unit_test(test_keys_that_differ_in_the_middle),
        cmocka_unit_test(test_times_beyond_a_block),
        cmocka_unit_test(test_upkeep_that_slept_too_long),
        cmocka_unit_test(test_right_behind_a_flush),
        cmocka_unit_test(test_pools_at_their_bounds),
        cmocka_unit_test(test_a_bound_beyond_all),
        cmocka_unit_test(test_a_tag_without_memory),
        cmocka_unit_test(test_many_leave_for_one),
        cmocka_unit_test(test_many_expire_at_once),
        cmocka_unit_test(test_settings_at_their_bounds),
        cmocka_unit_test(test_all_is_held),
        cmocka_unit_test(test_objects_that_are_lost),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
