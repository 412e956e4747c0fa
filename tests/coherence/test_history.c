/* The judge before the judged: histories that are known to be good or bad, and writers and readers at the same time. */
#include "harness/test.h"

#include <pthread.h>

#include "coherence/history.h"

#define NOT_ACKNOWLEDGED (INT64_MAX - 1)
#define PENDING          INT64_MAX

static struct history *history;

static int
setup(void **state)
{
    (void)state;
    history = history_new(2);
    return history == NULL;
}

static int
teardown(void **state)
{
    (void)state;
    history_free(&history);
    return 0;
}

static struct history_verdict
judge(uint64_t version, int64_t began)
{
    return history_judge(history, 0, version, 7, began, began + 5);
}

static void
test_the_newest_value_is_never_outdated(void **state)
{
    (void)state;
    history_record(history, 0, 1, 10, 20);
    history_record(history, 0, 1, 30, 40);
    assert_int_equal(judge(2, 1000).outdated, 0);
    assert_false(judge(2, 1000).impossible);
}

static void
test_a_value_is_outdated_from_the_next_acknowledgement_on(void **state)
{
    (void)state;
    history_record(history, 0, 1, 10, 20);
    history_record(history, 0, 1, 30, 40);
    assert_int_equal(judge(1, 40).outdated, 0);
    assert_int_equal(judge(1, 41).outdated, 1);
    assert_int_equal(judge(1, 140).outdated, 100);
    assert_int_equal(judge(1, 35).outdated, 0); /* under way: both are possible */
}

static void
test_it_is_the_first_of_several_that_counts(void **state)
{
    (void)state;
    history_record(history, 0, 1, 10, 20);
    history_record(history, 0, 2, 30, 90);
    history_record(history, 0, 3, 31, 50);
    history_record(history, 0, 4, 95, 99);
    assert_int_equal(judge(1, 150).outdated, 100);
}

static void
test_of_writes_that_overlap_none_outdates_the_other(void **state)
{
    (void)state;
    history_record(history, 0, 1, 10, 50);
    history_record(history, 0, 2, 30, 40);
    assert_int_equal(judge(1, 1000).outdated, 0);
    history_record(history, 0, 2, 50, 60); /* begins when the first one ends: not after it */
    assert_int_equal(judge(1, 1000).outdated, 0);
    history_record(history, 0, 2, 51, 70);
    assert_int_equal(judge(1, 1000).outdated, 930);
}

static void
test_what_was_not_acknowledged_outdates_nothing_and_is_not_outdated(void **state)
{
    (void)state;
    history_record(history, 0, 1, 10, 20);
    history_record(history, 0, 1, 30, NOT_ACKNOWLEDGED);
    assert_int_equal(judge(1, 1000).outdated, 0);
    history_record(history, 0, 1, 50, 60);
    assert_int_equal(judge(1, 1000).outdated, 940);
    assert_int_equal(judge(2, 1000).outdated, 0);
    assert_true(judge(2, 1000).unjudged);
    history_record(history, 0, 1, 70, PENDING);
    assert_int_equal(judge(4, 1000).outdated, 0);
    assert_int_equal(judge(3, 1000).outdated, 0);
}

static void
test_ones_own_writes_are_told_apart(void **state)
{
    (void)state;
    history_record(history, 0, 1, 10, 20);
    history_record(history, 0, 1, 30, 40);
    assert_int_equal(judge(1, 100).outdated_by_own, 0);
    history_record(history, 0, 7, 50, 60);
    assert_int_equal(judge(1, 100).outdated_by_own, 40);
    assert_int_equal(judge(1, 100).outdated, 60);
}

static void
test_values_from_nowhere_and_from_the_future_are_impossible(void **state)
{
    (void)state;
    assert_true(judge(1, 100).impossible);
    history_record(history, 0, 1, 10, 20);
    assert_true(judge(2, 100).impossible);
    assert_true(judge(0, 100).impossible);
    history_record(history, 0, 1, 200, 210);
    assert_true(judge(2, 100).impossible);
    assert_false(judge(2, 195).impossible); /* it ended at 200 */
    assert_true(history_judge(history, 1, 1, 7, 0, 1000).impossible);
}

static void
test_what_the_ring_has_forgotten_is_judged_by_what_it_has(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * HISTORY_RING; i++)
        history_record(history, 0, 1, 10 * i, i == 5 ? NOT_ACKNOWLEDGED : 10 * i + 5);
    assert_true(judge(3, 100000).lapped);
    assert_true(judge(3, 100000).outdated >= 100000 - 10 * (HISTORY_RING + 5));
    assert_int_equal(judge(3, 10 * HISTORY_RING).outdated, 0); /* it cannot be proven any more */
    assert_true(judge(6, 100000).unjudged);
    assert_false(judge(HISTORY_RING + 1, 100000).lapped);
}

static void
test_an_unfinished_write_keeps_its_place(void **state)
{
    uint64_t first;

    (void)state;
    first = history_begin(history, 0, 1, 0);
    assert_int_equal(first, 1);
    for (int i = 1; i < HISTORY_RING; i++)
        history_record(history, 0, 1, 1, 2);
    assert_int_equal(history_begin(history, 0, 1, 0), 0);
    assert_int_equal(history_newest(history, 0), HISTORY_RING);
    history_end(history, 0, first, true);
    assert_int_equal(history_begin(history, 0, 1, 0), HISTORY_RING + 1);
}

static void
test_order_of_two(void **state)
{
    (void)state;
    history_record(history, 0, 1, 10, 20);
    history_record(history, 0, 1, 15, 40);
    history_record(history, 0, 1, 30, 40);
    assert_false(history_precedes(history, 0, 1, 2));
    assert_true(history_precedes(history, 0, 1, 3));
    assert_false(history_precedes(history, 0, 3, 1));
}

/* ---- a register that is never stale, and one that answers late, under four threads */

enum { THREADS = 4 };

struct traffic {
    _Atomic uint64_t value[2];
    int64_t          lateness; /* ns between looking and claiming to look; 0: an honest register */
    _Atomic uint64_t outdated, impossible, reads;
    size_t           rounds;
};

struct actor {
    struct traffic *t;
    unsigned        self;
    uint64_t        random;
    pthread_t       thread;
};

static int64_t
now_ns(void)
{
    return near__now(&near__clock_system);
}

static void
write_register(struct actor *a, unsigned key)
{
    uint64_t version = history_begin(history, key, a->self, 0);

    if (version == 0)
        return;
    atomic_store(&a->t->value[key], version);
    history_end(history, key, version, true);
}

static void
read_register(struct actor *a, unsigned key)
{
    struct traffic        *t       = a->t;
    int64_t                began   = now_ns();
    uint64_t               version = atomic_load(&t->value[key]);
    struct history_verdict verdict;

    for (; t->lateness > 0 && now_ns() < began + t->lateness;)
        ;
    if (t->lateness > 0)
        began = now_ns();
    if (version == 0)
        return;
    verdict = history_judge(history, key, version, a->self, began, now_ns());
    t->reads++;
    t->outdated += verdict.outdated > 0;
    t->impossible += verdict.impossible;
}

static void *
write_and_read(void *ctx)
{
    struct actor *a = ctx;

    for (size_t i = 0; i < a->t->rounds; i++) {
        unsigned key = (unsigned)(test_random(&a->random) % 2);

        if (test_random(&a->random) % 4 == 0)
            write_register(a, key);
        else
            read_register(a, key);
    }
    return NULL;
}

static void
run_traffic(struct traffic *t)
{
    struct actor actors[THREADS];

    for (unsigned i = 0; i < THREADS; i++) {
        actors[i] = (struct actor){ .t = t, .self = i, .random = i };
        assert_int_equal(pthread_create(&actors[i].thread, NULL, write_and_read, &actors[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(actors[i].thread, NULL);
}

static void
test_an_honest_register_passes(void **state)
{
    struct traffic t = { .rounds = test_scale(100000) };

    (void)state;
    run_traffic(&t);
    assert_true(t.reads > t.rounds);
    assert_int_equal(t.outdated, 0);
    assert_int_equal(t.impossible, 0);
}

static void
control_a_register_that_answers_late_is_caught(void **state)
{
    struct traffic t = { .rounds = 2000, .lateness = 20000 };

    (void)state;
    run_traffic(&t);
    assert_true(t.outdated > 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_the_newest_value_is_never_outdated),
        TEST(test_a_value_is_outdated_from_the_next_acknowledgement_on),
        TEST(test_it_is_the_first_of_several_that_counts),
        TEST(test_of_writes_that_overlap_none_outdates_the_other),
        TEST(test_what_was_not_acknowledged_outdates_nothing_and_is_not_outdated),
        TEST(test_ones_own_writes_are_told_apart),
        TEST(test_values_from_nowhere_and_from_the_future_are_impossible),
        TEST(test_what_the_ring_has_forgotten_is_judged_by_what_it_has),
        TEST(test_an_unfinished_write_keeps_its_place),
        TEST(test_order_of_two),
        TEST(test_an_honest_register_passes),
        TEST(control_a_register_that_answers_late_is_caught),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
