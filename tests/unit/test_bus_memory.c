/*
 * The memory: bus under coherence objects: who hears whom, that delivery is done when publish returns, that stop() waits, that
 * many threads at once look like no gap, and that a forked child is not held up by what its parent was doing.
 */
#define TEST_NAME "bus_memory"
#include "harness/test.h"

#include "base/le.h"
#include "coherence/coherence.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct peer {
    struct near__coherence *coherence;
    _Atomic uint64_t        invalidated, flushed, last;
    sem_t                  *hold, *held; /* when set: a delivery posts `held` and waits for `hold` */
};

static void
sink_invalidate(void *ctx, near_bytes cache, near_bytes key)
{
    struct peer *p = ctx;

    (void)cache;
    atomic_store(&p->last, key.size == 8 ? near__le64_get(key.data) : 0);
    atomic_fetch_add(&p->invalidated, 1);
    if (p->hold != NULL) {
        sem_post(p->held);
        sem_wait(p->hold);
    }
}

static void
sink_filled(void *ctx, near_bytes cache, near_bytes key)
{
    (void)ctx;
    (void)cache;
    (void)key;
}

static void
sink_tagged(void *ctx, near_bytes cache, near_bytes tag, uint64_t lineage, uint64_t moment)
{
    (void)ctx, (void)cache, (void)tag, (void)lineage, (void)moment;
}

static void
sink_cleared(void *ctx, near_bytes cache, uint64_t generation)
{
    (void)ctx;
    (void)cache;
    (void)generation;
}

static void
sink_flush(void *ctx)
{
    atomic_fetch_add(&((struct peer *)ctx)->flushed, 1);
}

static near_status
peer_open(struct peer *p, const char *name)
{
    struct near__uri              uri    = { .kind = NEAR__URI_MEMORY, .scheme = "memory" };
    struct near__coherence_config config = {
        .uri          = &uri,
        .clock        = &near__clock_system,
        .channel      = "unused",
        .client_name  = "test",
        .heartbeat    = 10 * NEAR_MS,
        .serve_window = 50 * NEAR_MS,
        .sink = { p, sink_invalidate, sink_filled, sink_cleared, sink_tagged, sink_flush, NULL, NULL },
    };

    memset(p, 0, sizeof(*p));
    snprintf(uri.name, sizeof(uri.name), "%s", name);
    return near__coherence_open(&p->coherence, &config, NULL);
}

static void
peer_close(struct peer *p)
{
    if (p->coherence != NULL)
        near__coherence_stop(p->coherence);
    near__coherence_free(&p->coherence);
}

static near_status
peer_publish(struct peer *p, uint64_t number)
{
    uint8_t     bytes[8];
    near_bytes  key = { bytes, sizeof(bytes) };
    uint8_t    *message;
    size_t      size;
    near_status st;

    near__le64_put(bytes, number);
    st = near__message_encode(NEAR__MESSAGE_INVALIDATE, near__coherence_sender(p->coherence), near_key("c"),
                              &key, 1, &message, &size);
    if (st == NEAR_OK)
        st = near__coherence_publish(p->coherence, message, size, 0, NULL);
    free(message);
    return st;
}

static struct near__coherence_stats
stats(struct peer *p)
{
    struct near__coherence_stats s;

    near__coherence_stats(p->coherence, &s);
    return s;
}

static struct peer peers[4];

static int
close_peers(void **state)
{
    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(peers); i++)
        peer_close(&peers[i]);
    return 0;
}

static void
members_of_one_name_hear_each_other_and_nobody_else(void **state)
{
    (void)state;
    assert_int_equal(peer_open(&peers[0], "one"), NEAR_OK);
    assert_int_equal(peer_open(&peers[1], "one"), NEAR_OK);
    assert_int_equal(peer_open(&peers[2], "two"), NEAR_OK);
    assert_int_equal(peer_open(&peers[3], ""), NEAR_OK);
    for (uint64_t i = 1; i <= 100; i++) {
        assert_int_equal(peer_publish(&peers[0], i), NEAR_OK);
        assert_int_equal(peers[1].last, i); /* delivered when publish has returned */
    }
    assert_int_equal(peers[1].invalidated, 100);
    assert_int_equal(peers[0].invalidated, 0); /* own echoes are skipped */
    assert_int_equal(stats(&peers[0]).echoes, 100);
    assert_int_equal(stats(&peers[0]).sent, 100);
    assert_int_equal(stats(&peers[2]).received + stats(&peers[3]).received + stats(&peers[3]).echoes, 0);
    assert_int_equal(peer_publish(&peers[3], 1), NEAR_OK);
    assert_int_equal(stats(&peers[3]).echoes, 1); /* alone: hears itself */
    assert_int_equal(peers[1].invalidated, 100);
}

static void
two_private_buses_are_strangers(void **state)
{
    (void)state;
    assert_int_equal(peer_open(&peers[0], ""), NEAR_OK);
    assert_int_equal(peer_open(&peers[1], ""), NEAR_OK);
    assert_int_equal(peer_publish(&peers[0], 1), NEAR_OK);
    assert_int_equal(peers[1].invalidated, 0);
}

static void
the_gate_is_open_for_good_and_a_fence_has_nothing_to_wait_for(void **state)
{
    (void)state;
    assert_int_equal(peer_open(&peers[0], ""), NEAR_OK);
    assert_true(near__coherence_await(peers[0].coherence, 0));
    assert_true(near__coherence_gate(peers[0].coherence) == NEAR_NEVER);
    assert_int_equal(near__coherence_fence(peers[0].coherence, 0, NULL), NEAR_OK);
    assert_int_equal(peers[0].flushed, 1);
    near__coherence_stop(peers[0].coherence);
    assert_int_equal(near__coherence_fence(peers[0].coherence, 0, NULL), NEAR_ERR_CLOSED);
    assert_int_equal(peer_publish(&peers[0], 1), NEAR_ERR_CLOSED);
}

struct publisher {
    struct peer *peer;
    uint64_t     first;
    size_t       n, failures;
};

static void *
publish_many(void *ctx)
{
    struct publisher *p = ctx;

    for (size_t i = 0; i < p->n; i++)
        p->failures += peer_publish(p->peer, p->first + i) != NEAR_OK;
    return NULL;
}

static void
threads_publishing_at_once_show_no_false_gap(void **state)
{
    struct publisher publishers[4];
    pthread_t        threads[4];
    size_t           n = test_scale(2000);

    (void)state;
    assert_int_equal(peer_open(&peers[0], "crowd"), NEAR_OK);
    assert_int_equal(peer_open(&peers[1], "crowd"), NEAR_OK);
    assert_int_equal(peer_open(&peers[2], "crowd"), NEAR_OK);
    for (size_t i = 0; i < 4; i++) { /* two threads on each of two members */
        publishers[i] = (struct publisher){ &peers[i / 2], i * n, n, 0 };
        assert_int_equal(pthread_create(&threads[i], NULL, publish_many, &publishers[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(publishers[i].failures, 0);
    }
    assert_int_equal(peers[2].invalidated, 4 * n);
    assert_int_equal(peers[0].invalidated, 2 * n);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(stats(&peers[i]).gaps + stats(&peers[i]).late + stats(&peers[i]).bad_messages, 0);
        assert_int_equal(peers[i].flushed, 1); /* its own subscription */
    }
}

static _Atomic bool stopped;

static void *
stop_peer(void *ctx)
{
    near__coherence_stop(((struct peer *)ctx)->coherence);
    atomic_store(&stopped, true);
    return NULL;
}

static int
is_stopping(void *ctx)
{
    return near__coherence_fence(((struct peer *)ctx)->coherence, 0, NULL) == NEAR_ERR_CLOSED;
}

static void
stop_waits_for_the_delivery_under_way(void **state)
{
    struct publisher publisher = { &peers[0], 1, 1, 0 };
    pthread_t        publishing, stopping;
    sem_t            hold, held;
    bool             early;

    (void)state;
    sem_init(&hold, 0, 0);
    sem_init(&held, 0, 0);
    assert_int_equal(peer_open(&peers[0], "held"), NEAR_OK);
    assert_int_equal(peer_open(&peers[1], "held"), NEAR_OK);
    peers[1].hold = &hold;
    peers[1].held = &held;
    atomic_store(&stopped, false);
    assert_int_equal(pthread_create(&publishing, NULL, publish_many, &publisher), 0);
    sem_wait(&held); /* the delivery to 1 has begun */
    assert_int_equal(pthread_create(&stopping, NULL, stop_peer, &peers[1]), 0);
    test_wait_for(is_stopping, &peers[1], 10000);
    early = atomic_load(&stopped);
    assert_int_equal(peer_publish(&peers[0], 2),
                     NEAR_OK); /* others go on, and nothing new is delivered to it */
    assert_int_equal(peers[1].invalidated, 1);
    sem_post(&hold);
    pthread_join(stopping, NULL);
    pthread_join(publishing, NULL);
    assert_false(early);
    assert_int_equal(publisher.failures, 0);
    sem_destroy(&hold);
    sem_destroy(&held);
}

struct churn {
    size_t rounds, failures;
};

static void *
come_and_go(void *ctx)
{
    struct churn *churn = ctx;

    for (size_t i = 0; i < churn->rounds; i++) {
        struct peer guest;

        if (peer_open(&guest, "station") != NEAR_OK || peer_publish(&guest, i) != NEAR_OK)
            churn->failures++;
        peer_close(&guest);
    }
    return NULL;
}

static void
members_come_and_go_while_others_publish(void **state)
{
    struct churn     churn[2] = { { test_scale(500), 0 }, { test_scale(500), 0 } };
    struct publisher publishers[2];
    pthread_t        threads[4];

    (void)state;
    assert_int_equal(peer_open(&peers[0], "station"), NEAR_OK);
    assert_int_equal(peer_open(&peers[1], "station"), NEAR_OK);
    for (size_t i = 0; i < 2; i++) {
        publishers[i] = (struct publisher){ &peers[i], 1, test_scale(2000), 0 };
        pthread_create(&threads[i], NULL, publish_many, &publishers[i]);
        pthread_create(&threads[2 + i], NULL, come_and_go, &churn[i]);
    }
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(publishers[i].failures + churn[i].failures, 0);
        assert_int_equal(peers[i].invalidated, publishers[1 - i].n + churn[0].rounds + churn[1].rounds);
    }
}

/* In the child: the inherited objects are freed, a new bus of the same name works and has no ghosts in it. */
static int
live_as_a_child(void)
{
    struct peer *inherited[] = { &peers[0], &peers[1] };
    struct peer  mine, other;

    alarm(20); /* a child that hangs dies of it: default disposition */
    for (size_t i = 0; i < NEAR_COUNT_OF(inherited); i++)
        near__coherence_forked(inherited[i]->coherence);
    if (peer_open(&mine, "family") != NEAR_OK || peer_open(&other, "family") != NEAR_OK)
        return 1;
    for (size_t i = 0; i < NEAR_COUNT_OF(inherited); i++)
        near__coherence_free(&inherited[i]->coherence);
    if (peer_publish(&mine, 5) != NEAR_OK || atomic_load(&other.invalidated) != 1)
        return 2;
    peer_close(&mine);
    peer_close(&other);
    return 0;
}

static void
race40_a_forked_child_starts_anew_whatever_its_parent_was_doing(void **state)
{
    struct publisher publisher = { &peers[0], 1, test_scale(20000), 0 };
    pthread_t        thread;
    size_t           bad = 0;

    (void)state;
    assert_int_equal(peer_open(&peers[0], "family"), NEAR_OK);
    assert_int_equal(peer_open(&peers[1], "family"), NEAR_OK);
    pthread_create(&thread, NULL, publish_many, &publisher);
    if (TEST_UNDER_TSAN)
        pthread_join(thread, NULL);
    for (size_t i = 0; i < test_scale(50); i++) {
        int   status = -1;
        pid_t pid    = fork();

        if (pid == 0)
            _exit(live_as_a_child());
        bad += pid < 0 || waitpid(pid, &status, 0) != pid || status != 0;
    }
    if (!TEST_UNDER_TSAN)
        pthread_join(thread, NULL);
    assert_int_equal(bad, 0);
    assert_int_equal(peers[1].invalidated, publisher.n); /* the parent's room is as it was */
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(members_of_one_name_hear_each_other_and_nobody_else, close_peers),
        cmocka_unit_test_teardown(two_private_buses_are_strangers, close_peers),
        cmocka_unit_test_teardown(the_gate_is_open_for_good_and_a_fence_has_nothing_to_wait_for, close_peers),
        cmocka_unit_test_teardown(threads_publishing_at_once_show_no_false_gap, close_peers),
        cmocka_unit_test_teardown(stop_waits_for_the_delivery_under_way, close_peers),
        cmocka_unit_test_teardown(members_come_and_go_while_others_publish, close_peers),
        cmocka_unit_test_teardown(race40_a_forked_child_starts_anew_whatever_its_parent_was_doing,
                                  close_peers),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
