/* The connection pool with connections that are only counters: what is lent, dropped, refused and woken,
 * and when. */
#include "harness/test.h"

#include "l2/pool.h"

#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct fake {
    atomic_bool usable;
    atomic_int  users; /* threads that hold it: never more than one */
};

/* The server that the connections go to, and everything it saw. */
static struct {
    _Atomic near_status dial_status;
    atomic_bool         gated; /* dials wait at `gate` */
    sem_t               gate, at_gate;
    atomic_int          dials, open, most_open, dropped, goodbyes, abandoned;
    bool                forks, child_good; /* a drop forks; its child found nothing that is being freed */
} server;

static struct near__pool *pool;
static struct test_clock  hand;

static bool
live_as_a_child_of_a_drop(void)
{
    int   status;
    pid_t child = fork();

    if (child == 0) {
        near__pool_forked(pool);
        _exit(server.abandoned == 0 ? 0 : 1);
    }
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static near_status
fake_dial(void *ctx, void **conn, int64_t deadline, near_error *error)
{
    struct fake *fake;
    int          open, most;

    (void)ctx;
    (void)deadline;
    atomic_fetch_add(&server.dials, 1);
    if (atomic_load(&server.gated)) {
        sem_post(&server.at_gate);
        sem_wait(&server.gate);
    }
    if (atomic_load(&server.dial_status) != NEAR_OK)
        return near__fail(error, atomic_load(&server.dial_status), "fake 1.2.3.4: nobody is at home");
    fake = calloc(1, sizeof(*fake));
    if (fake == NULL)
        return NEAR_ERR_NOMEM;
    fake->usable = true;
    open         = atomic_fetch_add(&server.open, 1) + 1;
    most         = atomic_load(&server.most_open);
    while (open > most && !atomic_compare_exchange_weak(&server.most_open, &most, open))
        ;
    *conn = fake;
    return NEAR_OK;
}

static bool
fake_usable(void *conn)
{
    return atomic_load(&((struct fake *)conn)->usable);
}

static void
fake_drop(void *conn, bool goodbye)
{
    atomic_fetch_add(&server.dropped, 1);
    atomic_fetch_add(&server.goodbyes, goodbye);
    if (server.forks)
        server.child_good = live_as_a_child_of_a_drop();
    free(conn);
    atomic_fetch_sub(&server.open, 1); /* last: the slot must not be free before the connection is gone */
}

static void
fake_abandon(void *conn)
{
    atomic_fetch_add(&server.abandoned, 1);
    free(conn);
}

static const struct near__pool_ops fake_ops = { fake_dial, fake_usable, fake_drop, fake_abandon };

static int
setup(void **state)
{
    (void)state;
    server.dial_status = NEAR_OK;
    server.gated       = false;
    server.forks = server.child_good = false;
    server.dials = server.open = server.most_open = server.dropped = server.goodbyes = server.abandoned = 0;
    sem_init(&server.gate, 0, 0);
    sem_init(&server.at_gate, 0, 0);
    test_clock_init(&hand, NEAR_MS * 1000);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    near__pool_free(&pool);
    return 0;
}

static void
make(unsigned capacity, const struct near__clock *clock)
{
    assert_int_equal(near__pool_new(&pool, &fake_ops, NULL, capacity, 1000 * NEAR_MS, clock), NEAR_OK);
}

static int64_t
in_ms(int64_t ms)
{
    return near__now(&near__clock_system) + ms * NEAR_MS;
}

static void *
take(void)
{
    void *conn = NULL;

    assert_int_equal(near__pool_take(pool, &conn, NEAR_NEVER, NULL), NEAR_OK);
    assert_non_null(conn);
    return conn;
}

/* Somebody else who takes one connection. */
struct taker {
    pthread_t   thread;
    int64_t     deadline;
    atomic_bool begun, ended;
    near_status status;
    near_error  error;
    void       *conn;
};

static void *
taker_run(void *ctx)
{
    struct taker *t = ctx;

    atomic_store(&t->begun, true);
    t->status = near__pool_take(pool, &t->conn, t->deadline, &t->error);
    atomic_store(&t->ended, true);
    return NULL;
}

static void
taker_start(struct taker *t, int64_t deadline)
{
    *t = (struct taker){ .deadline = deadline };
    assert_int_equal(pthread_create(&t->thread, NULL, taker_run, t), 0);
    while (!atomic_load(&t->begun))
        sched_yield();
}

static int
has_ended(void *ctx)
{
    return atomic_load(&((struct taker *)ctx)->ended);
}

/* ---------------------------------------------------------------------------------------------- lending */

static void
capacity_holds_and_the_wait_ends_at_the_deadline(void **state)
{
    void   *a, *b, *c = &a;
    int64_t before, deadline;

    (void)state;
    make(2, &near__clock_system);
    a = take();
    b = take();
    assert_ptr_not_equal(a, b);
    before   = near__now(&near__clock_system);
    deadline = before + 30 * NEAR_MS;
    assert_int_equal(near__pool_take(pool, &c, deadline, NULL), NEAR_ERR_TIMEOUT);
    assert_null(c);
    assert_true(near__now(&near__clock_system) >= deadline);
    assert_true(near__now(&near__clock_system) < deadline + 500 * NEAR_MS * test_slack());
    assert_int_equal(server.dials, 2);
    near__pool_give(pool, a, true);
    near__pool_give(pool, b, true);
    assert_ptr_equal(take(), b); /* the one used last: the others may grow old and be dropped */
    near__pool_give(pool, b, true);
    assert_int_equal(near__pool_connects(pool), 2);
    assert_int_equal(near__pool_disconnects(pool), 0);
}

static void
a_waiter_gets_the_connection_that_comes_back(void **state)
{
    struct taker t;
    void        *a;

    (void)state;
    make(1, &near__clock_system);
    a = take();
    taker_start(&t, in_ms(20000));
    near__pool_give(pool, a, true);
    pthread_join(t.thread, NULL);
    assert_int_equal(t.status, NEAR_OK);
    assert_ptr_equal(t.conn, a);
    near__pool_give(pool, t.conn, true);
    assert_int_equal(server.dials, 1);
}

static void
a_waiter_dials_when_the_connection_comes_back_unhealthy(void **state)
{
    struct taker t;
    void        *a;

    (void)state;
    make(1, &near__clock_system);
    a = take();
    taker_start(&t, in_ms(20000));
    near__pool_give(pool, a, false);
    pthread_join(t.thread, NULL);
    assert_int_equal(t.status, NEAR_OK);
    near__pool_give(pool, t.conn, true);
    assert_int_equal(server.dials, 2);
    assert_int_equal(server.most_open, 1);
    assert_int_equal(server.goodbyes, 0); /* in doubt: not a byte on the wire */
    assert_int_equal(near__pool_disconnects(pool), 1);
}

static void
P5_idle_connections_that_died_are_dropped_before_use(void **state)
{
    void *a, *b, *c;

    (void)state;
    make(2, &near__clock_system);
    a = take();
    b = take();
    atomic_store(&((struct fake *)a)->usable, false);
    atomic_store(&((struct fake *)b)->usable, false);
    near__pool_give(pool, a, true);
    near__pool_give(pool, b, true);
    c = take();
    assert_true(fake_usable(c));
    assert_int_equal(server.dropped, 2);
    assert_int_equal(server.goodbyes, 0);
    assert_int_equal(server.dials, 3);
    near__pool_give(pool, c, true);
    assert_int_equal(near__pool_disconnects(pool), 2);
}

/* --------------------------------------------------------------------------------------------- dialling */

static near_status
try_take(near_error *error)
{
    void       *conn;
    near_status status = near__pool_take(pool, &conn, NEAR_NEVER, error);

    if (status == NEAR_OK)
        near__pool_give(pool, conn, true);
    else
        assert_null(conn);
    return status;
}

static void
a_failed_dial_is_remembered_and_repeated_as_the_reason(void **state)
{
    near_error error = { 0 };

    (void)state;
    make(4, &hand.clock);
    server.dial_status = NEAR_ERR_UNAVAILABLE;
    assert_int_equal(try_take(&error), NEAR_ERR_UNAVAILABLE);
    assert_string_equal(error.text, "fake 1.2.3.4: nobody is at home");
    assert_int_equal(try_take(&error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "fake 1.2.3.4: nobody is at home; not tried again for "));
    assert_int_equal(server.dials, 1);
    test_clock_advance(&hand, 11); /* the first delay is at most 10 ms */
    assert_int_equal(try_take(&error), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(server.dials, 2);
}

static void
the_delay_grows_to_half_a_second_and_ends_with_success(void **state)
{
    (void)state;
    make(4, &hand.clock);
    server.dial_status = NEAR_ERR_UNAVAILABLE;
    for (int i = 0; i < 12; i++) {
        assert_int_equal(try_take(NULL), NEAR_ERR_UNAVAILABLE);
        test_clock_advance(&hand, 501);
    }
    assert_int_equal(server.dials, 12); /* never more than half a second */
    assert_int_equal(try_take(NULL), NEAR_ERR_UNAVAILABLE);
    test_clock_advance(&hand, 249);
    assert_int_equal(try_take(NULL), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(server.dials, 13); /* nor, by now, less than a quarter */
    test_clock_advance(&hand, 252);
    server.dial_status = NEAR_OK;
    assert_int_equal(try_take(NULL), NEAR_OK);
    assert_int_equal(server.dials, 14);
    near__pool_stop(pool);
    near__pool_free(&pool);
    make(4, &hand.clock);
    assert_int_equal(try_take(NULL), NEAR_OK);
}

static void
success_forgets_the_failures(void **state)
{
    void *conn;

    (void)state;
    make(4, &hand.clock);
    server.dial_status = NEAR_ERR_UNAVAILABLE;
    for (int i = 0; i < 12; i++) {
        assert_int_equal(try_take(NULL), NEAR_ERR_UNAVAILABLE);
        test_clock_advance(&hand, 501);
    }
    server.dial_status = NEAR_OK;
    conn               = take();
    near__pool_give(pool, conn, false);
    server.dial_status = NEAR_ERR_UNAVAILABLE;
    assert_int_equal(try_take(NULL), NEAR_ERR_UNAVAILABLE);
    test_clock_advance(&hand, 11);
    assert_int_equal(try_take(NULL), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(server.dials, 15); /* the delay is short again */
}

static void
after_a_failure_one_dials_and_the_others_do_not_wait(void **state)
{
    struct taker t;
    near_error   error = { 0 };

    (void)state;
    make(4, &hand.clock);
    server.dial_status = NEAR_ERR_UNAVAILABLE;
    assert_int_equal(try_take(NULL), NEAR_ERR_UNAVAILABLE);
    test_clock_advance(&hand, 11);
    server.gated = true;
    taker_start(&t, NEAR_NEVER);
    sem_wait(&server.at_gate);
    assert_int_equal(try_take(&error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "nobody is at home; being tried again"));
    assert_false(has_ended(&t));
    server.dial_status = NEAR_OK;
    sem_post(&server.gate);
    pthread_join(t.thread, NULL);
    assert_int_equal(t.status, NEAR_OK);
    near__pool_give(pool, t.conn, true);
    assert_int_equal(server.dials, 2);
}

static void
waiters_hear_of_a_failed_dial(void **state)
{
    struct taker dialler, waiter;

    (void)state;
    make(1, &near__clock_system);
    server.dial_status = NEAR_ERR_UNAVAILABLE;
    server.gated       = true;
    taker_start(&dialler, NEAR_NEVER);
    sem_wait(&server.at_gate);
    taker_start(&waiter, in_ms(20000));
    server.gated = false;
    sem_post(&server.gate);
    pthread_join(dialler.thread, NULL);
    pthread_join(waiter.thread, NULL);
    assert_int_equal(dialler.status, NEAR_ERR_UNAVAILABLE);
    assert_int_equal(waiter.status, NEAR_ERR_UNAVAILABLE);
}

static void
refused_credentials_stay_refused(void **state)
{
    (void)state;
    make(4, &hand.clock);
    server.dial_status = NEAR_ERR_DENIED;
    assert_int_equal(try_take(NULL), NEAR_ERR_DENIED);
    assert_int_equal(try_take(NULL), NEAR_ERR_DENIED);
    assert_int_equal(server.dials, 1);
}

static void
what_says_nothing_about_the_server_holds_nobody_back(void **state)
{
    void *conn;

    (void)state;
    make(4, &hand.clock);
    server.dial_status = NEAR_ERR_NOMEM;
    assert_int_equal(try_take(NULL), NEAR_ERR_NOMEM);
    server.dial_status = NEAR_ERR_TIMEOUT;
    assert_int_equal(near__pool_take(pool, &conn, near__now(&hand.clock) + 2 * NEAR_MS, NULL),
                     NEAR_ERR_TIMEOUT);
    assert_int_equal(server.dials, 2);
    server.dial_status = NEAR_OK;
    assert_int_equal(try_take(NULL), NEAR_OK);
    near__pool_give(pool, take(), false);
    server.dial_status = NEAR_ERR_TIMEOUT; /* control: with time enough it does */
    assert_int_equal(try_take(NULL), NEAR_ERR_TIMEOUT);
    assert_int_equal(try_take(NULL), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(server.dials, 4);
}

/* ------------------------------------------------------------------------------------------ end of life */

static void
close_wakes_waiters(void **state)
{
    struct taker t;
    void        *a;

    (void)state;
    make(1, &near__clock_system);
    a = take();
    taker_start(&t, NEAR_NEVER);
    near__pool_close(pool);
    pthread_join(t.thread, NULL);
    assert_int_equal(t.status, NEAR_ERR_CLOSED);
    assert_int_equal(try_take(NULL), NEAR_ERR_CLOSED);
    near__pool_give(pool, a, true);
    assert_int_equal(server.dropped, 0);
    near__pool_stop(pool);
    assert_int_equal(server.dropped, 1);
    assert_int_equal(server.goodbyes, 1);
}

static void *
stop_run(void *ctx)
{
    near__pool_stop(pool);
    atomic_store(&((struct taker *)ctx)->ended, true);
    return NULL;
}

static void
stop_waits_for_what_is_lent_and_for_dials(void **state)
{
    struct taker dialler, stopper = { .conn = NULL };
    void        *a;

    (void)state;
    make(2, &near__clock_system);
    a            = take();
    server.gated = true;
    taker_start(&dialler, NEAR_NEVER);
    sem_wait(&server.at_gate);
    assert_int_equal(pthread_create(&stopper.thread, NULL, stop_run, &stopper), 0);
    while (try_take(NULL) !=
           NEAR_ERR_CLOSED) /* nothing is idle, so before the close this is a refusal or a wait */
        sched_yield();
    near__pool_give(pool, a, true);
    assert_false(test_wait_for(has_ended, &stopper, 20)); /* the dial is still out */
    sem_post(&server.gate);
    pthread_join(dialler.thread, NULL);
    pthread_join(stopper.thread, NULL);
    assert_int_equal(dialler.status, NEAR_ERR_CLOSED);
    assert_null(dialler.conn);
    assert_int_equal(server.open, 0);
    assert_int_equal(server.goodbyes, 2);
}

/* A fork while another thread is in the middle of dropping: the child must not touch what is being freed. */
static void
P3_a_child_forked_during_a_drop_leaves_it_alone(void **state)
{
    void *conn;

    (void)state;
    make(2, &hand.clock);
    assert_int_equal(near__pool_take(pool, &conn, near__now(&hand.clock) + 1000 * NEAR_MS, NULL), NEAR_OK);
    server.forks = true;
    near__pool_give(pool, conn, false);
    assert_true(server.child_good);
}

static void
P3_a_forked_child_closes_everything_and_says_nothing(void **state)
{
    void *a, *b, *c;

    (void)state;
    make(4, &near__clock_system);
    a = take();
    b = take();
    c = take();
    near__pool_give(pool, a, true);
    near__pool_give(pool, c, true);
    (void)b; /* lent when the process "forks" */
    near__pool_forked(pool);
    assert_int_equal(server.dropped, 2);
    assert_int_equal(server.goodbyes, 0);
    assert_int_equal(server.abandoned, 1);
    assert_int_equal(try_take(NULL), NEAR_ERR_CLOSED);
}

static void
nonsense_sizes_are_refused(void **state)
{
    (void)state;
    assert_int_equal(near__pool_new(&pool, &fake_ops, NULL, 0, NEAR_MS, &near__clock_system),
                     NEAR_ERR_INVALID);
    assert_null(pool);
    near__pool_free(&pool);
}

/* ----------------------------------------------------------------------------------------------- stress */

#define CROWD 8
static atomic_int shared, failed;

static void *
crowd_run(void *ctx)
{
    uint64_t dice = (uint64_t)(uintptr_t)ctx;

    for (size_t i = 0; i < test_scale(4000); i++) {
        struct fake *fake;
        void        *conn;

        if (near__pool_take(pool, &conn, in_ms(20000), NULL) != NEAR_OK) {
            atomic_fetch_add(&failed, 1);
            continue;
        }
        fake = conn;
        if (atomic_fetch_add(&fake->users, 1) != 0)
            atomic_fetch_add(&shared, 1);
        if (test_random(&dice) % 4 == 0)
            sched_yield();
        if (test_random(&dice) % 16 == 0)
            atomic_store(&fake->usable, false);
        atomic_fetch_sub(&fake->users, 1);
        near__pool_give(pool, conn, test_random(&dice) % 8 != 0);
    }
    return NULL;
}

static void
a_crowd_never_shares_a_connection_nor_exceeds_the_capacity(void **state)
{
    pthread_t threads[CROWD];

    (void)state;
    shared = failed = 0;
    make(3, &near__clock_system);
    for (uintptr_t i = 0; i < CROWD; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_run, (void *)(i + 1)), 0);
    for (int i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(shared, 0);
    assert_int_equal(failed, 0);
    assert_in_range(server.most_open, 1, 3);
    near__pool_stop(pool);
    assert_int_equal(server.open, 0);
    assert_int_equal(server.dials, server.dropped);
}

int
main(void)
{
#define POOL_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        POOL_TEST(capacity_holds_and_the_wait_ends_at_the_deadline),
        POOL_TEST(a_waiter_gets_the_connection_that_comes_back),
        POOL_TEST(a_waiter_dials_when_the_connection_comes_back_unhealthy),
        POOL_TEST(P5_idle_connections_that_died_are_dropped_before_use),
        POOL_TEST(a_failed_dial_is_remembered_and_repeated_as_the_reason),
        POOL_TEST(the_delay_grows_to_half_a_second_and_ends_with_success),
        POOL_TEST(success_forgets_the_failures),
        POOL_TEST(after_a_failure_one_dials_and_the_others_do_not_wait),
        POOL_TEST(waiters_hear_of_a_failed_dial),
        POOL_TEST(refused_credentials_stay_refused),
        POOL_TEST(what_says_nothing_about_the_server_holds_nobody_back),
        POOL_TEST(close_wakes_waiters),
        POOL_TEST(stop_waits_for_what_is_lent_and_for_dials),
        POOL_TEST(P3_a_child_forked_during_a_drop_leaves_it_alone),
        POOL_TEST(P3_a_forked_child_closes_everything_and_says_nothing),
        POOL_TEST(nonsense_sizes_are_refused),
        POOL_TEST(a_crowd_never_shares_a_connection_nor_exceeds_the_capacity),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
