/*
 * The index table alone: entries are found through every split, join, pull and clear, chunks and overflow buckets are used again,
 * and readers beside a writer miss nothing that is there all the time.
 *
 * A reference is its key's number + 1; the element is made from the number.
 */
#define TEST_NAME "table"
#include "harness/test.h"

#include "l1/table.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { KEYS = 20000, CHUNK_SHIFT = 4 };

static size_t chunks_live, chunks_allowed;

static void *
chunk_new(void *ctx)
{
    size_t bytes = sizeof(struct near__bucket) << CHUNK_SHIFT;
    void  *chunk;

    (void)ctx;
    if (chunks_live == chunks_allowed)
        return NULL;
    chunk = aligned_alloc(sizeof(struct near__bucket), bytes);
    assert_non_null(chunk);
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
element(uint32_t key)
{
    uint64_t state = key;

    return (uint32_t)(test_random(&state) >> 32);
}

static uint32_t
element_of(void *ctx, uint32_t ref)
{
    (void)ctx;
    return element(ref - 1);
}

static void
open_table(struct near__table *table)
{
    chunks_allowed = SIZE_MAX;
    *table         = (struct near__table){ .chunk_shift = CHUNK_SHIFT,
                                           .max_chunks  = 4096,
                                           .chunk_new   = chunk_new,
                                           .chunk_free  = chunk_free,
                                           .element_of  = element_of };
    assert_int_equal(near__table_init(table, 1), NEAR_OK);
}

static void
close_table(struct near__table *table)
{
    near__table_fini(table);
    assert_int_equal(chunks_live, 0);
}

/* As a reader searches (see the header); the key's reference is its identity. */
static bool
search_once(const struct near__table *table, uint32_t key, bool *settled)
{
    uint64_t             size    = near__table_size(table);
    struct near__bucket *home    = near__table_bucket(table, near__table_home(size, element(key)));
    uint16_t             version = near__bucket_version(home);

    if (!near__bucket_stale(table, home))
        for (struct near__bucket *b = home; b != NULL; b = near__table_after(table, b))
            for (uint32_t match = near__bucket_match(b, near__tag(element(key))); match != 0;
                 match          = NEAR__LANE_NEXT(match))
                if (near__bucket_ref(b, NEAR__LANE(match)) == key + 1)
                    return true;
    *settled = near__table_settled(table, size, home, version);
    return false;
}

static bool
search(const struct near__table *table, uint32_t key)
{
    bool settled = true;

    do {
        if (search_once(table, key, &settled))
            return true;
    } while (!settled);
    return false;
}

static void
insert(struct near__table *table, uint32_t key)
{
    struct near__place place;

    assert_true(near__table_insert(table, element(key), key + 1, (uint8_t)key, &place));
    assert_int_equal(near__place_ref(place), key + 1);
    assert_int_equal(near__place_mark(place), (uint8_t)key);
}

static void
erase(struct near__table *table, uint32_t key)
{
    struct near__bucket *home =
        near__table_bucket(table, near__table_home(near__table_size(table), element(key)));

    for (struct near__bucket *b = home; b != NULL; b = near__table_after(table, b))
        for (unsigned lane = 0; lane < NEAR__LANES; lane++)
            if (near__bucket_ref(b, lane) == key + 1) {
                assert_int_equal(near__table_erase(table, element(key), (struct near__place){ b, lane }),
                                 key + 1);
                return;
            }
    fail_msg("key %u is not there", key);
}

static void
balance(struct near__table *table)
{
    int wants;

    while ((wants = near__table_wants(table)) != 0)
        assert_true(wants > 0 ? near__table_split(table) : near__table_join(table));
}

/* Keys first .. end - 1 and no others; every one once; only the last bucket of a chain has free slots. */
static void
check(const struct near__table *table, uint32_t first, uint32_t end)
{
    size_t found = 0;

    for (uint32_t key = 0; key < KEYS; key++)
        assert_int_equal(search(table, key), key >= first && key < end);
    for (uint32_t home = 0; home < near__table_homes(table); home++) {
        bool free_before = false;
        for (struct near__bucket *b = near__table_bucket(table, home); b != NULL;
             b                      = near__table_after(table, b)) {
            assert_false(free_before);
            for (unsigned lane = 0; lane < NEAR__LANES; lane++) {
                found += near__bucket_ref(b, lane) != 0;
                free_before |= near__bucket_ref(b, lane) == 0;
            }
        }
    }
    assert_int_equal(found, end - first);
    assert_int_equal(table->entries, end - first);
}

static void
test_split_and_join(void **state)
{
    struct near__table table;
    size_t             bytes;

    (void)state;
    open_table(&table);
    for (uint32_t key = 0; key < KEYS; key++) {
        insert(&table, key);
        balance(&table);
        if (key < 300 || key == 5000)
            check(&table, 0, key + 1);
    }
    check(&table, 0, KEYS);
    bytes = near__table_bytes(&table);
    for (uint32_t key = 0; key < KEYS; key++) {
        erase(&table, key);
        balance(&table);
        if (key == 5000 || key > KEYS - 300)
            check(&table, key + 1, KEYS);
    }
    assert_int_equal(near__table_homes(&table), 1);
    assert_int_equal(table.over_used, 0);
    assert_int_equal(near__table_bytes(&table), bytes); /* chunks stay */
    for (uint32_t key = 0; key < KEYS; key++) {
        insert(&table, key);
        balance(&table);
    }
    check(&table, 0, KEYS);
    assert_in_range(near__table_bytes(&table), bytes,
                    bytes + 2 * (sizeof(struct near__bucket) << CHUNK_SHIFT));
    close_table(&table);
}

/* Bytes an entry of full chunks at every size, between the doublings, too; and after as much turnover as it takes to settle. */
static void
test_bytes(void **state)
{
    struct near__table table;
    double             most = 0, least = 1e9, bytes;
    uint32_t           key = 0;

    (void)state;
    open_table(&table);
    for (; key < KEYS; key++) {
        insert(&table, key);
        balance(&table);
        bytes =
            (double)(near__table_homes(&table) + table.over_used) * sizeof(struct near__bucket) / (key + 1);
        if (key < 1000)
            continue;
        most  = bytes > most ? bytes : most;
        least = bytes < least ? bytes : least;
    }
    print_message("# index: %.2f to %.2f B an entry\n", least, most);
    assert_true(most < 12.5);
    for (; key < 6 * KEYS; key++) {
        erase(&table, key - KEYS);
        insert(&table, key);
        balance(&table);
    }
    bytes = (double)(near__table_homes(&table) + table.over_used) * sizeof(struct near__bucket) / KEYS;
    print_message("# after five turnovers: %.2f B an entry\n", bytes);
    assert_true(bytes < 12.5);
    close_table(&table);
}

/* Whatever fails for want of memory leaves the table as it was. */
static void
test_no_memory(void **state)
{
    struct near__table table;
    struct near__place place;
    uint32_t           key = 0;

    (void)state;
    open_table(&table);
    for (; key < 1000; key++) {
        insert(&table, key);
        balance(&table);
    }
    chunks_allowed = chunks_live;
    while (near__table_split(&table))
        ;
    check(&table, 0, key);
    while (near__table_insert(&table, element(key), key + 1, (uint8_t)key, &place))
        assert_true(++key < KEYS);
    check(&table, 0, key);
    while (near__table_join(&table)) /* until chains would need more overflow buckets than there are */
        ;
    check(&table, 0, key);
    close_table(&table);

    open_table(&table);
    near__table_fini(&table);
    chunks_allowed = 0;
    table          = (struct near__table){ .chunk_shift = CHUNK_SHIFT,
                                           .max_chunks  = 8,
                                           .chunk_new   = chunk_new,
                                           .chunk_free  = chunk_free,
                                           .element_of  = element_of };
    assert_int_equal(near__table_init(&table, 1), NEAR_ERR_NOMEM);
    assert_int_equal(chunks_live, 0);
}

static void
count_drop(void *ctx, uint32_t ref)
{
    (void)ref;
    ++*(size_t *)ctx;
}

static void
test_generations(void **state)
{
    struct near__table table;
    struct near__place place;
    size_t             dropped = 0;

    (void)state;
    open_table(&table);
    for (uint32_t key = 0; key < 2000; key++) {
        insert(&table, key);
        balance(&table);
    }
    near__table_clear(&table);
    assert_int_equal(table.entries, 0);
    assert_false(near__table_locate(&table, element(0), &place));
    assert_false(near__table_join(&table)); /* what is old must not become current */
    assert_true(near__table_split(&table)); /* and what is split stays old */
    for (uint32_t key = 0; key < 2000; key++)
        assert_false(search(&table, key));
    for (uint32_t home = 0; home < near__table_homes(&table); home++) {
        assert_true(near__table_purge(&table, home, count_drop, &dropped));
        assert_false(near__table_purge(&table, home, count_drop, &dropped));
    }
    assert_int_equal(dropped, 2000);
    check(&table, 0, 0);
    assert_int_equal(table.over_used, 0);
    insert(&table, 7);
    assert_true(search(&table, 7));
    close_table(&table);
}

/* ---- readers beside a writer */

struct race {
    struct near__table table;
    _Atomic bool       stop;
    uint32_t           stay; /* keys below are there all the time */
    _Atomic uint64_t   searches, missed, unsettled;
};

static void *
read_on(void *ctx)
{
    struct race *race  = ctx;
    uint64_t     state = (uintptr_t)&state, searches = 0, unsettled = 0, missed = 0;

    while (!atomic_load(&race->stop)) {
        uint32_t key     = (uint32_t)(test_random(&state) % race->stay);
        bool     settled = true, found = search_once(&race->table, key, &settled);
        unsettled += !found && !settled;
        missed += !found && settled;
        while (!found && !settled) {
            settled = true;
            found   = search_once(&race->table, key, &settled);
            missed += !found && settled;
        }
        searches++;
    }
    atomic_fetch_add(&race->searches, searches);
    atomic_fetch_add(&race->missed, missed);
    atomic_fetch_add(&race->unsettled, unsettled);
    return NULL;
}

/* The table breathes: other keys come and go, so that the ones that stay are moved by splits, joins and pulls.  The control: some
 * searches did find nothing at first, that is, without the second look they would have missed. */
static void
test_readers(void **state)
{
    static struct race race;
    pthread_t          readers[2];
    uint32_t           end    = 600;
    int                rounds = 0;

    (void)state;
    open_table(&race.table);
    race.stay = 300;
    for (uint32_t key = 0; key < end; key++) {
        insert(&race.table, key);
        balance(&race.table);
    }
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&readers[i], NULL, read_on, &race), 0);
    for (; rounds < (int)test_scale(400) ||
           (atomic_load(&race.searches) == 0 && rounds < 4000 && test_scale(100) == 100 && rounds < 1500);
         rounds++) {
        for (; end < 3000; end++) {
            insert(&race.table, end);
            balance(&race.table);
        }
        while (end > 320) {
            erase(&race.table, --end);
            balance(&race.table);
        }
    }
    atomic_store(&race.stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    print_message("# %llu searches, %llu looked again\n", (unsigned long long)race.searches,
                  (unsigned long long)race.unsettled);
    assert_int_equal(race.missed, 0);
    assert_true(race.searches > 0);
    if (test_scale(100) == 100)
        assert_true(race.unsettled > 0);
    close_table(&race.table);
}

/* What a use makes of a mark. */
static void
test_marks(void **state)
{
    (void)state;
    assert_int_equal(near__mark_hit(17, 99, 0), 99);       /* only time */
    assert_int_equal(near__mark_hit(0, 0, 3), 1);          /* only counting */
    assert_int_equal(near__mark_hit(3, 0, 3), 3);          /* to the maximum */
    assert_int_equal(near__mark_hit(0xa2, 4, 0xf3), 0xa7); /* the policy's bits stay, the tick is new */
    assert_int_equal(near__mark_hit(0xaf, 8, 0xf3), 0xab); /* the old tick goes */
    assert_int_equal(near__mark_hit(0x5e, 0x60, 15), 0x6f);
    assert_int_equal(near__mark_hit(0x5f, 0x60, 15), 0x6f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_and_join), cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_no_memory),      cmocka_unit_test(test_generations),
        cmocka_unit_test(test_readers),        cmocka_unit_test(test_marks),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
