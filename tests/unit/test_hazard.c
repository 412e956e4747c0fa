/*
 * l1/hazard: slots and records.  Values held by the thousand, across threads and beyond the L1's end; what is held keeps itself and
 * nothing else; records go from thread to thread; all of it once more without membarrier(2).
 */
#define TEST_NAME "hazard"
#include "unit/l1_help.h"

#include "l1/hazard.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static bool without_membarrier; /* in the child */

static near_bytes
number_key(const uint32_t *number)
{
    return (near_bytes){ number, sizeof(*number) };
}

enum { MOST = 2000 };

/* Bytes that tell key, version and size, and any mixture of two of them. */
static void
pattern(unsigned char *bytes, size_t size, uint32_t number, uint32_t version)
{
    uint64_t state = (uint64_t)number << 32 | version;

    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)test_random(&state);
}

static enum near__l1_admission
put_pattern(struct near__l1 *l1, uint32_t number, uint32_t version, size_t size)
{
    void               *room = NULL;
    struct near__entry *entry =
        near__entry_new(number_key(&number), hash_of(number_key(&number)), size, &room);
    enum near__l1_admission verdict;

    if (entry == NULL)
        return NEAR__L1_TOO_LARGE;
    pattern(room, size, number, version);
    verdict = near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0);
    near__entry_release(&entry);
    return verdict;
}

static near_value *
get(struct near__l1 *l1, uint32_t number)
{
    return near__l1_hit((struct near__l1_front *)l1, hash_of(number_key(&number)), number_key(&number), 0);
}

static bool
is_pattern(const near_value *value, uint32_t number, uint32_t version)
{
    near_bytes    data = value == NULL ? (near_bytes){ NULL, MOST + 1 } : near__value_data(value);
    unsigned char expected[MOST];

    if (data.size > MOST)
        return false;
    pattern(expected, data.size, number, version);
    return memcmp(expected, data.data, data.size) == 0;
}

/* Whether a page is mapped at all. */
static bool
mapped(const void *address)
{
    uintptr_t     page = (uintptr_t)sysconf(_SC_PAGESIZE);
    unsigned char resident;

    return mincore((void *)((uintptr_t)address & ~(page - 1)), page, &resident) == 0;
}

/* ---- many at once */

static void
test_thousands_are_held_at_once(void **state)
{
    enum { MANY = 5000, EACH = 3 };
    struct near__l1 *l1   = l1_open(16 << 20, 0, 0);
    near_value     **held = calloc((size_t)MANY * EACH, sizeof(near_value *));
    size_t           n    = 0;

    (void)state;
    assert_non_null(held);
    for (uint32_t i = 0; i < MANY; i++)
        assert_int_equal(put_pattern(l1, i, 1, 50), NEAR__L1_ADMITTED);
    for (int each = 0; each < EACH; each++)
        for (uint32_t i = 0; i < MANY; i++) {
            held[n] = get(l1, i);
            assert_true(is_pattern(held[n], i, 1));
            n++;
        }
    /* each hold is one of its own: a slot, or a count of a slot that is shared */
    for (uint32_t i = 0; i < MANY; i++)
        assert_int_equal(put_pattern(l1, i, 2, 50), NEAR__L1_ADMITTED);
    for (size_t i = 0; i < n; i++)
        assert_true(is_pattern(held[i], (uint32_t)(i % MANY), 1));
    /* let go in an order that leaves holes everywhere, and use them */
    for (size_t i = 0; i < n; i += 2)
        near__value_release(held[i]);
    for (size_t i = 0; i < n; i += 2)
        held[i] = get(l1, (uint32_t)(i % MANY));
    for (size_t i = 0; i < n; i++)
        assert_true(is_pattern(held[i], (uint32_t)(i % MANY), i % 2 ? 1 : 2));
    for (size_t i = n; i-- > 0;)
        near__value_release(held[i]);
    assert_int_equal(stats_of(l1).hits, n + (n + 1) / 2);
    near__l1_free(&l1);
    free(held);
}

/* ---- held bytes stay */

static void
test_a_held_value_stays_whatever_becomes_of_its_key(void **state)
{
    struct near__l1 *l1 = l1_open(256 * 1024, 0, 1);
    near_value      *held[5];

    (void)state;
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(put_pattern(l1, i, 1, 200), NEAR__L1_ADMITTED);
        held[i] = get(l1, i);
        assert_non_null(held[i]);
    }
    put_pattern(l1, 0, 2, 200); /* overwritten */
    near__l1_invalidate(l1, hash_of(number_key(&(uint32_t){ 1 })), number_key(&(uint32_t){ 1 }));
    for (uint32_t i = 100; i < 20000; i++) /* evicted, and its slabs used for other sizes */
        assert_int_equal(put_pattern(l1, i, 1, i % 1500), NEAR__L1_ADMITTED);
    near__l1_flush(l1);
    for (uint32_t i = 100; i < 20000; i++)
        assert_int_equal(put_pattern(l1, i, 2, i % 100), NEAR__L1_ADMITTED);
    upkeep_all(l1, 0);
    for (uint32_t i = 0; i < 5; i++)
        assert_true(is_pattern(held[i], i, 1));
    near__l1_free(&l1);
    for (uint32_t i = 0; i < 5; i++) {
        assert_true(is_pattern(held[i], i, 1));
        near__value_release(held[i]);
    }
}

/* The control: let go, and the same traffic does overwrite it. */
static void
test_control_what_is_not_held_is_overwritten(void **state)
{
    struct near__l1     *l1;
    near_value          *held;
    const unsigned char *bytes;
    unsigned char        before[200];

    (void)state;
    if (test_slack() > 1)
        skip(); /* it reads what it must not */
    l1 = l1_open(256 * 1024, 0, 1);
    put_pattern(l1, 0, 1, 200);
    held  = get(l1, 0);
    bytes = near__value_data(held).data;
    memcpy(before, bytes, sizeof(before));
    near__value_release(held);
    for (uint32_t i = 100; i < 20000; i++)
        assert_int_equal(put_pattern(l1, i, 1, i % 1500), NEAR__L1_ADMITTED);
    assert_true(memcmp(before, bytes, sizeof(before)) != 0);
    near__l1_free(&l1);
}

/* The L1's memory goes at the last release of what is in it, not before and not later. */
static void
test_the_arena_goes_with_the_last_release(void **state)
{
    struct near__l1 *l1 = l1_open(8 << 20, 0, 0);
    near_value      *first, *second, *shared;
    const char      *address;

    (void)state;
    for (uint32_t i = 0; i < 1000; i++)
        put_pattern(l1, i, 1, 300);
    first  = get(l1, 1);
    second = get(l1, 999);
    shared = get(l1, 500);
    near__value_ref(shared);
    address = near__value_data(first).data;
    near__l1_free(&l1);
    assert_true(is_pattern(first, 1, 1) && is_pattern(second, 999, 1) && is_pattern(shared, 500, 1));
    near__value_release(second);
    near__value_release(shared);
    near__value_release(first);
    assert_true(mapped(address));
    assert_true(is_pattern(shared, 500, 1));
    near__value_release(shared);
    assert_false(mapped(address));

    l1 = l1_open(8 << 20, 0, 0); /* and at once when nothing is held */
    put_pattern(l1, 1, 1, 300);
    first   = get(l1, 1);
    address = near__value_data(first).data;
    near__value_release(first);
    assert_true(mapped(address));
    near__l1_free(&l1);
    assert_false(mapped(address));
}

static void
buried(void *ctx)
{
    ++*(int *)ctx;
}

static void
test_burials_end_once_each(void **state)
{
    static char          room[3][64];
    int                  ended[3] = { 0, 0, 0 };
    struct near__hazard *slots[2];

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        slots[i] = near__hazard_slot(near__reader());
        assert_non_null(slots[i]);
        near__hazard_set(slots[i], room[i] + 63); /* its last byte */
    }
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(
            near__hazard_bury(i == 1 ? near__hazard_grave() : NULL, room[i], room[i] + 64, buried, &ended[i]),
            NEAR_OK);
    assert_true(ended[0] == 0 && ended[1] == 0 && ended[2] == 1);
    near__hazard_release(slots[1]);
    assert_true(ended[0] == 0 && ended[1] == 1 && ended[2] == 1);
    near__hazard_release(slots[0]);
    assert_true(ended[0] == 1 && ended[1] == 1 && ended[2] == 1);
    assert_int_equal(atomic_load(&near__hazard_flags) & NEAR__HAZARD_BURIED,
                     0); /* releases are cheap again */
}

/* ---- a value that is held for long */

static void
test_a_long_held_value_holds_back_only_itself(void **state)
{
    const size_t     bound = 4 << 20;
    struct near__l1 *l1    = l1_open(bound, 0, 1);
    uint32_t         n     = (uint32_t)test_scale(10 * bound / 1000);
    near_value      *held;
    uint64_t         entries_free, entries_held;

    (void)state;
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(put_pattern(l1, i, 1, 1000), NEAR__L1_ADMITTED);
    entries_free = stats_of(l1).entries;
    held         = get(l1, n - 1);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(put_pattern(l1, n + i, 1, 1000), NEAR__L1_ADMITTED);
        assert_in_range(stats_of(l1).bytes, 0, bound);
    }
    entries_held = stats_of(l1).entries;
    assert_true(is_pattern(held, n - 1, 1));
    /* those beside it have gone and made room: what is lost is a block, give or take what is on its way out */
    assert_in_range(entries_held, entries_free - 64, entries_free + 64);
    near__l1_flush(l1);
    upkeep_all(l1, 0);
    assert_in_range(near__hazard_count(), 1, 1);
    near__value_release(held);
    near__l1_free(&l1);
}

/* ---- threads */

struct task {
    struct near__l1     *l1;
    near_value          *value;
    struct near__reader *reader;
    uint32_t             number;
    bool                 right;
};

static void
in_a_thread(void *(*run)(void *), struct task *task)
{
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, run, task), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static void *
run_release(void *ctx)
{
    struct task *task = ctx;

    task->right = is_pattern(task->value, task->number, 1);
    near__value_release(task->value);
    return NULL;
}

static void *
run_get(void *ctx)
{
    struct task *task = ctx;

    task->value  = get(task->l1, task->number);
    task->reader = near__reader_mine;
    task->right  = is_pattern(task->value, task->number, 1);
    return NULL;
}

static void
test_another_thread_may_let_go(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);

    (void)state;
    put_pattern(l1, 7, 1, 100);
    for (int i = 0; i < 200; i++) {
        struct task task = { .l1 = l1, .number = 7 };

        if (i % 2) {
            task.value = get(l1, 7);
            near__value_ref(task.value);
            in_a_thread(run_release, &task);
            assert_true(task.right && is_pattern(task.value, 7, 1));
            near__value_release(task.value);
        } else { /* found there, let go here, after the thread's end */
            in_a_thread(run_get, &task);
            assert_true(task.right && is_pattern(task.value, 7, 1));
            near__value_release(task.value);
        }
    }
    assert_int_equal(stats_of(l1).hits, 200);
    near__l1_flush(l1);
    upkeep_all(l1, 0);
    put_pattern(l1, 8, 1, 100);
    near__hazard_barrier(near__hazard_epoch());
    assert_int_equal(near__hazard_count(), 0); /* nothing was left behind */
    near__l1_free(&l1);
}

static void
test_records_go_from_thread_to_thread(void **state)
{
    struct near__l1     *l1     = l1_open(1 << 20, 0, 0);
    struct near__reader *first  = NULL;
    unsigned             others = 0, kept = 0;
    near_value          *values[10];

    (void)state;
    put_pattern(l1, 7, 1, 100);
    for (int i = 0; i < 100; i++) {
        struct task task = { .l1 = l1, .number = 7 };

        in_a_thread(run_get, &task);
        assert_true(task.right);
        if (first == NULL)
            first = task.reader;
        others += task.reader != first;
        if (i % 10)
            near__value_release(task.value);
        else
            values[kept++] = task.value; /* some are kept: the next thread finds those slots taken */
    }
    while (kept > 0) {
        assert_true(is_pattern(values[--kept], 7, 1));
        near__value_release(values[kept]);
    }
    assert_int_equal(others, 0);              /* one after the other, so one record served them all */
    assert_int_equal(stats_of(l1).hits, 100); /* and the counts of those that have ended are kept */
    near__l1_free(&l1);
}

/* A thread that reads once more while its keys are destroyed has a record of its own, not one that was given away. */

static pthread_key_t late_key;

/* Two threads at once on one record: each would overwrite what the other announces. */
struct twin {
    struct near__l1     *l1;
    struct near__reader *mine;
    pthread_barrier_t   *barrier;
};

static void *
run_twin(void *ctx)
{
    struct twin *twin = ctx;

    near__value_release(get(twin->l1, 7));
    twin->mine = near__reader_mine;
    pthread_barrier_wait(twin->barrier); /* the dying thread reads now */
    pthread_barrier_wait(twin->barrier);
    return NULL;
}

static struct twin          twins[2];
static pthread_barrier_t    twin_barrier;
static struct near__reader *dying_reader;

static void
twin_end(void *ctx)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, run_twin, ctx) != 0)
        return;
    pthread_barrier_wait(&twin_barrier);
    near__value_release(get(((struct twin *)ctx)->l1, 7));
    dying_reader = near__reader();
    pthread_barrier_wait(&twin_barrier);
    pthread_join(thread, NULL);
}

static void *
run_dying(void *ctx)
{
    near__value_release(get(((struct twin *)ctx)->l1, 7));
    pthread_setspecific(late_key, ctx);
    return NULL;
}

static void
test_a_dying_thread_shares_no_record(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);
    pthread_t        thread;

    (void)state;
    put_pattern(l1, 7, 1, 100);
    near__value_release(
        get(l1, 7)); /* the records' key exists, so ours is a later one, and destroyed later */
    assert_int_equal(pthread_key_create(&late_key, twin_end), 0);
    assert_int_equal(pthread_barrier_init(&twin_barrier, NULL, 2), 0);
    twins[0] = (struct twin){ l1, NULL, &twin_barrier };
    assert_int_equal(pthread_create(&thread, NULL, run_dying, &twins[0]), 0);
    pthread_join(thread, NULL);
    assert_non_null(twins[0].mine);
    assert_non_null(dying_reader);
    assert_ptr_not_equal(twins[0].mine, dying_reader);
    pthread_barrier_destroy(&twin_barrier);
    pthread_key_delete(late_key);
    near__l1_free(&l1);
}

/* ---- counts */

static void *
run_count(void *ctx)
{
    struct task *task = ctx;

    for (int i = 0; i < 1000; i++)
        near__value_release(get(task->l1, task->number));
    return NULL;
}

static void
test_hits_are_counted_per_l1_and_survive_threads(void **state)
{
    enum { L1S = 40 }; /* more than a record's first array has room for */
    struct near__l1 *l1s[L1S];
    size_t           number;

    (void)state;
    for (size_t i = 0; i < L1S; i++) {
        l1s[i] = l1_open(64 * 1024, 0, 1);
        put_pattern(l1s[i], 7, 1, 100);
    }
    for (size_t i = 0; i < L1S; i += 3) {
        struct task task = { .l1 = l1s[i], .number = 7 };

        in_a_thread(run_count, &task);
        near__value_release(get(l1s[i], 7));
        assert_null(get(l1s[i], 8));
    }
    for (size_t i = 0; i < L1S; i++)
        assert_int_equal(stats_of(l1s[i]).hits, i % 3 ? 0 : 1001);
    near__l1_free(&l1s[0]);
    l1s[0] = l1_open(64 * 1024, 0, 1); /* may get the number of the one that was freed, but not its count */
    assert_int_equal(stats_of(l1s[0]).hits, 0);
    for (size_t i = 0; i < L1S; i++)
        near__l1_free(&l1s[i]);
    number = near__hits_open();
    assert_in_range(number, 0, L1S); /* numbers are used again */
    near__hits_close(number);
}

/* ---- barriers */

static void
test_a_barrier_tells_held_from_free(void **state)
{
    enum { SLOTS = 1000 };
    static char          blocks[SLOTS][8];
    struct near__hazard *slots[SLOTS];
    uint64_t             epoch;

    (void)state;
    for (size_t i = 0; i < SLOTS; i++) {
        slots[i] = near__hazard_slot(near__reader());
        assert_non_null(slots[i]);
        near__hazard_set(slots[i], blocks[i]);
    }
    for (size_t i = 0; i < SLOTS; i += 2)
        near__hazard_clear(slots[i]);
    epoch = near__hazard_epoch();
    assert_false(near__hazard_passed(epoch));
    near__hazard_barrier(epoch);
    assert_true(near__hazard_passed(epoch));
    assert_false(near__hazard_passed(near__hazard_epoch()));
    assert_int_equal(near__hazard_count(), SLOTS / 2);
    for (size_t i = 0; i < SLOTS; i++)
        assert_int_equal(near__hazard_held(blocks[i]), i % 2);
    for (size_t i = 1; i < SLOTS; i += 2)
        near__hazard_clear(slots[i]);
    for (size_t i = 0; i < SLOTS; i++)
        assert_int_equal(near__hazard_held(blocks[i]), i % 2); /* as of that barrier */
    near__hazard_barrier(near__hazard_epoch());
    assert_int_equal(near__hazard_count(), 0);
    for (size_t i = 0; i < SLOTS; i++)
        assert_false(near__hazard_held(blocks[i]));
}

/* Threads that find and hold while one replaces: what they hold never changes. */

enum { KEYS = 20, READERS = 3 };

struct crowd {
    struct near__l1 *l1;
    size_t           rounds;
    _Atomic size_t   wrong, read;
    _Atomic bool     stop;
};

static void *
run_crowd(void *ctx)
{
    struct crowd *crowd  = ctx;
    uint64_t      random = (uint64_t)(uintptr_t)&random;

    for (size_t i = 0; i < crowd->rounds || atomic_load(&crowd->read) == 0; i++) {
        uint32_t      number = (uint32_t)(test_random(&random) % KEYS);
        near_value   *value  = get(crowd->l1, number);
        unsigned char before[64], after[64];

        if (value == NULL)
            continue;
        memcpy(before, near__value_data(value).data, sizeof(before));
        if (i % 64 == 0)
            usleep(100); /* long enough to be replaced many times */
        memcpy(after, near__value_data(value).data, sizeof(after));
        atomic_fetch_add(&crowd->wrong, memcmp(before, after, sizeof(before)) != 0 || before[0] != number);
        atomic_fetch_add(&crowd->read, 1);
        near__value_release(value);
    }
    atomic_store(&crowd->stop, true);
    return NULL;
}

static void
test_readers_beside_a_writer(void **state)
{
    struct crowd crowd = { .l1 = l1_open(64 * 1024, 0, 1), .rounds = test_scale(200000) };
    pthread_t    threads[READERS];

    (void)state;
    for (size_t i = 0; i < READERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_crowd, &crowd), 0);
    for (uint32_t version = 0; !atomic_load(&crowd.stop); version++)
        for (uint32_t number = 0; number < KEYS; number++) {
            struct near__entry *entry;
            void               *room;

            entry = near__entry_new(number_key(&number), hash_of(number_key(&number)), 64, &room);
            pattern(room, 64, number, version);
            *(unsigned char *)room = (unsigned char)number;
            near__l1_insert(crowd.l1, entry, near__l1_fence(crowd.l1, entry->hash), 0);
            near__entry_release(&entry);
        }
    for (size_t i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&crowd.wrong), 0);
    assert_true(atomic_load(&crowd.read) > 0);
    near__l1_free(&crowd.l1);
}

/* Everything once more in a process whose kernel has no membarrier. */
static void
test_without_membarrier(void **state)
{
    pid_t pid;
    int   status;

    (void)state;
    if (without_membarrier)
        skip();
    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char *arguments[] = { (char *)"test_hazard", (char *)"--fences", NULL };

        execv("/proc/self/exe", arguments);
        _exit(127);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void
test_the_flag_is_as_told(void **state)
{
    (void)state;
    assert_non_null(near__reader());
    if (without_membarrier)
        assert_true(near__hazard_fences());
    print_message("# %s\n", near__hazard_fences() ? "fences" : "membarrier");
}

static int
run_all(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_flag_is_as_told),
        cmocka_unit_test(test_thousands_are_held_at_once),
        cmocka_unit_test(test_a_held_value_stays_whatever_becomes_of_its_key),
        cmocka_unit_test(test_control_what_is_not_held_is_overwritten),
        cmocka_unit_test(test_the_arena_goes_with_the_last_release),
        cmocka_unit_test(test_burials_end_once_each),
        cmocka_unit_test(test_a_long_held_value_holds_back_only_itself),
        cmocka_unit_test(test_another_thread_may_let_go),
        cmocka_unit_test(test_records_go_from_thread_to_thread),
        cmocka_unit_test(test_a_dying_thread_shares_no_record),
        cmocka_unit_test(test_hits_are_counted_per_l1_and_survive_threads),
        cmocka_unit_test(test_a_barrier_tells_held_from_free),
        cmocka_unit_test(test_readers_beside_a_writer),
        cmocka_unit_test(test_without_membarrier),
    };

    return TEST_MAIN(tests, NULL, NULL);
}

int
main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--fences") == 0) {
        without_membarrier = true;
        atomic_fetch_or(&near__hazard_flags, NEAR__HAZARD_FENCES); /* before the first use */
    }
    return run_all();
}
