/*
 * Tracking on a real cluster of three primaries with a replica each: what anybody changes at any primary is heard of, whoever serves its
 * slot now; fences ask all; what moves, dies or refuses is noticed.  And near_invalidate_prefix over all primaries.
 *
 * The rows that take seconds, slots on their way there and back and a primary killed, run in `make check-long` (NEAR_TEST_LEVEL).
 */
#define TEST_NAME "cluster_tracking"
#include "integration/instance.h"

#include "harness/cluster.h"
#include "harness/long.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEYS         24    /* enough for each primary to have some */
#define NODE_TIMEOUT 15000 /* ms: nobody is taken for dead because he waits for a processor */
#define KILL_TIMEOUT 1000

static struct test_cluster *cluster;

static struct instance mine, theirs;

static int
start_cluster(void **state)
{
    (void)state;
    cluster = test_cluster_start(3, 1, NODE_TIMEOUT, NULL);
    return 0;
}

static int
stop_cluster(void **state)
{
    (void)state;
    test_cluster_stop(&cluster);
    return 0;
}

static void
need_time(void)
{
    if (test_level() == TEST_CHECK)
        skip();
}

static int
setup(void **state)
{
    (void)state;
    test_need_server(cluster != NULL ? cluster->server[0] : NULL);
    memset(&mine, 0, sizeof(mine));
    memset(&theirs, 0, sizeof(theirs));
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    close_instance(&mine);
    close_instance(&theirs);
    return 0;
}

static int
is_tracking(void *ctx)
{
    near_stats s = stats(ctx);

    return s.bus_tracking != 0 && s.bus_connected != 0;
}

static void
open_in(struct instance *in, const char *mode)
{
    const char *const settings[] = { "l2.uri", cluster->uri, "coherence.mode",     mode, "l2.timeout", "5s",
                                     "ttl",    "1h",         "l2.connect_timeout", "1s", NULL };

    open_with(in, settings, NULL);
}

/* And in force. */
static void
open_at(struct instance *in, const char *mode)
{
    open_in(in, mode);
    if (strcmp(mode, "pubsub") != 0)
        assert_true(test_wait_for(is_tracking, in, SOON));
}

static int
fences(void *ctx)
{
    return near_fence(((struct instance *)ctx)->client, 1000) == NEAR_OK;
}

static bool
in_l1(const char *key)
{
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value   = NULL;
    near_status      status;

    options.flags = NEAR_ONLY_L1;
    status        = near_get_with(mine.cache, near_key(key), &options, &value);
    near_value_release(value);
    return status == NEAR_OK;
}

static int
reads_it(void *ctx)
{
    near_value *value = NULL;

    assert_true(test_wait_for(fences, &mine, SOON)); /* what our own writes have announced has been heard */
    if (near_get(mine.cache, near_key(ctx), &value) == NEAR_OK)
        near_value_release(value);
    else /* a write that failed before is made good by a removal, whatever was written since */
        near_put(mine.cache, near_key(ctx), near_key("old"), NULL);
    near_fence(mine.client, 1000);
    return in_l1(ctx);
}

static void
have_in_l1(char *key)
{
    assert_true(test_wait_for(reads_it, key, SOON));
}

static const char *
numbered(unsigned i)
{
    static char key[16];

    snprintf(key, sizeof(key), "k%u", i);
    return key;
}

/* To whoever serves it, in nobody's name. */
static void
change(const char *key)
{
    char wire[32], out[200];
    int  slot;

    snprintf(wire, sizeof(wire), "nc:c:%s", key);
    slot = test_cluster_slot(cluster, wire);
    assert_true(slot >= 0);
    for (unsigned node = 0; node < cluster->nodes; node++)
        if (test_cluster_is_master(cluster, node) &&
            test_cluster_ask(cluster, node, out, sizeof(out), 3, (const char *[]){ "SET", wire, "foreign" }))
            return;
    fail_msg("nobody takes %s", wire);
}

/* After a failover a write may be refused once more: its message's connection leads to who has died. */
static int
put_old(void *key)
{
    return near_put(mine.cache, near_key(key), near_key("old"), NULL) == NEAR_OK;
}

/* How many of KEYS keys are gone from L1 after somebody has changed them and a fence. */
static unsigned
heard_of_changes(void)
{
    unsigned heard = 0;

    for (unsigned i = 0; i < KEYS; i++) {
        char key[16];

        snprintf(key, sizeof(key), "%s", numbered(i));
        assert_true(test_wait_for(put_old, key, SOON));
        have_in_l1(key);
        change(key);
        assert_true(test_wait_for(fences, &mine, SOON));
        heard += !in_l1(key);
    }
    return heard;
}

static void
changes_at_every_primary_are_heard(void **state)
{
    (void)state;
    open_at(&mine, "tracking");
    assert_int_equal(heard_of_changes(), KEYS);
    assert_true(stats(&mine).bus_changed >= KEYS);
    assert_int_equal(stats(&mine).bus_connected, 1);
}

static void
changes_at_every_primary_are_heard_in_mode_both(void **state)
{
    (void)state;
    open_at(&mine, "both");
    assert_int_equal(heard_of_changes(), KEYS);
}

static void
control_in_mode_pubsub_nobody_tells_of_them(void **state)
{
    (void)state;
    open_at(&mine, "pubsub");
    assert_int_equal(heard_of_changes(), 0);
    assert_int_equal(stats(&mine).bus_tracking, 0);
}

/* Messages of other instances come as before, once each. */
static void
writes_of_other_instances_are_heard(void **state)
{
    char key[] = "k0";

    (void)state;
    open_at(&mine, "tracking");
    open_at(&theirs, "pubsub");
    near_put(mine.cache, near_key(key), near_key("old"), NULL);
    have_in_l1(key);
    assert_int_equal(near_put(theirs.cache, near_key(key), near_key("new"), NULL), NEAR_OK);
    assert_int_equal(near_fence(mine.client, 5000), NEAR_OK);
    assert_false(in_l1(key));
    assert_int_equal(stats(&mine).bus_gaps + stats(&mine).bus_bad_messages, 0);
}

static void
a_fence_asks_every_primary(void **state)
{
    (void)state;
    open_at(&mine, "tracking");
    for (unsigned node = 0; node < 3; node++) {
        near_status status;

        assert_true(test_wait_for(fences, &mine, SOON));
        test_server_pause(cluster->server[node]);
        status = near_fence(mine.client, 50);
        test_server_resume(cluster->server[node]);
        assert_int_equal(status, NEAR_ERR_TIMEOUT);
    }
    assert_true(test_wait_for(fences, &mine, SOON)); /* control */
}

/* Race 24: the slots of a third of the keys go to another primary, and come back. */
static void
test_race24_keys_that_move_are_heard_of_where_they_are(void **state)
{
    (void)state;
    need_time();
    open_at(&mine, "tracking");
    heard_of_changes();
    assert_true(test_cluster_move(cluster, 0, 500, 1));
    assert_true(test_cluster_move(cluster, 12000, 12500, 0));
    assert_int_equal(heard_of_changes(), KEYS);
    assert_true(test_cluster_move(cluster, 0, 500, 0));
    assert_true(test_cluster_move(cluster, 12000, 12500, 2));
    assert_int_equal(heard_of_changes(), KEYS);
}

static unsigned
left_in_l2(const char *prefix)
{
    static char out[65536];
    char        pattern[32];
    unsigned    n = 0;

    snprintf(pattern, sizeof(pattern), "nc:c:%s*", prefix);
    for (unsigned node = 0; node < 3; node++) {
        assert_true(
            test_cluster_ask(cluster, node, out, sizeof(out), 2, (const char *[]){ "KEYS", pattern }));
        for (const char *at = strstr(out, "nc:c:"); at != NULL; at = strstr(at + 1, "nc:c:"))
            n++;
    }
    return n;
}

static void
prefixes_go_from_every_primary(void **state)
{
    char     key[16];
    unsigned n = (unsigned)test_scale(600);

    (void)state;
    open_at(&mine, "tracking");
    open_at(&theirs, "pubsub");
    for (unsigned i = 0; i < n; i++) {
        snprintf(key, sizeof(key), "%c%u", i % 2 == 0 ? 'p' : 'q', i);
        assert_int_equal(near_put(theirs.cache, near_key(key), near_key("old"), NULL), NEAR_OK);
    }
    assert_int_equal(left_in_l2("p"), (n + 1) / 2); /* control */
    assert_int_equal(near_invalidate_prefix(theirs.cache, near_key("p")), NEAR_OK);
    assert_int_equal(left_in_l2("p"), 0);
    assert_int_equal(left_in_l2("q"), n / 2);
    assert_int_equal(stats(&theirs).prefix_removed, (n + 1) / 2);
    assert_int_equal(near_fence(mine.client, 5000), NEAR_OK);
    assert_false(in_l1("p0"));
}

/* While a slot is on its way keys may be anywhere: that is said, and made good when it has arrived. */
static void
a_prefix_waits_for_slots_that_move(void **state)
{
    int slot;

    (void)state;
    open_at(&theirs, "pubsub");
    for (unsigned i = 0; i < 60; i++)
        near_put(theirs.cache, near_key(numbered(i)), near_key("old"), NULL);
    slot = test_cluster_slot(cluster, "nc:c:k1");
    assert_true(test_cluster_begin_move(cluster, (unsigned)slot, (cluster->owner[slot] + 1) % 3));
    assert_int_equal(near_invalidate_prefix(theirs.cache, near_key("k")), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(stats(&theirs).invalidations_pending, 1);
    assert_true(test_cluster_move(cluster, (unsigned)slot, (unsigned)slot, (cluster->owner[slot] + 1) % 3));
    assert_true(test_wait_for(owes_nothing, &theirs, SOON));
    assert_int_equal(left_in_l2("k"), 0);
}

/* One primary that refuses: messages remain, with all of it well otherwise. */
static int
is_connected_without(void *ctx)
{
    near_stats s = stats(ctx);

    return s.bus_tracking == 0 && s.bus_connected != 0 && fences(ctx);
}

static void
where_one_primary_refuses_messages_remain(void **state)
{
    char out[100], key[] = "k0";

    (void)state;
    assert_true(test_cluster_ask(cluster, 1, out, sizeof(out), 4,
                                 (const char *[]){ "ACL", "SETUSER", "default", "-client|tracking" }));
    open_at(&theirs, "pubsub");
    open_in(&mine, "tracking");
    assert_true(test_wait_for(is_connected_without, &mine, SOON));
    near_put(mine.cache, near_key(key), near_key("old"), NULL);
    have_in_l1(key);
    assert_int_equal(near_put(theirs.cache, near_key(key), near_key("new"), NULL), NEAR_OK);
    assert_int_equal(near_fence(mine.client, 5000), NEAR_OK);
    assert_false(in_l1(key));
    assert_true(test_cluster_ask(cluster, 1, out, sizeof(out), 4,
                                 (const char *[]){ "ACL", "SETUSER", "default", "+@all" }));
}

static int
is_in_step(void *ctx)
{
    (void)ctx;
    return test_cluster_is_in_step(cluster);
}

/* A primary dies: L1 is flushed, and goes on with the one that takes its place. */
static void
a_primary_that_dies_is_replaced_and_flushed_for(void **state)
{
    uint64_t flushes;

    (void)state;
    need_time();
    assert_true(test_wait_for(is_in_step, NULL, SOON));
    open_at(&mine, "tracking");
    assert_int_equal(heard_of_changes(), KEYS);
    flushes = stats(&mine).bus_flushes;
    test_cluster_set_timeout(cluster, KILL_TIMEOUT);
    test_server_kill(cluster->server[1]);
    assert_true(test_wait_for(fences, &mine, SOON)); /* all primaries that there are, so a new one */
    assert_true(test_wait_for(is_tracking, &mine, SOON));
    assert_true(stats(&mine).bus_flushes > flushes);
    assert_int_equal(heard_of_changes(), KEYS);
}

#define WITH_CLUSTER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_CLUSTER(changes_at_every_primary_are_heard),
        WITH_CLUSTER(changes_at_every_primary_are_heard_in_mode_both),
        WITH_CLUSTER(control_in_mode_pubsub_nobody_tells_of_them),
        WITH_CLUSTER(writes_of_other_instances_are_heard),
        WITH_CLUSTER(a_fence_asks_every_primary),
        WITH_CLUSTER(test_race24_keys_that_move_are_heard_of_where_they_are),
        WITH_CLUSTER(prefixes_go_from_every_primary),
        WITH_CLUSTER(a_prefix_waits_for_slots_that_move),
        WITH_CLUSTER(where_one_primary_refuses_messages_remain),
        WITH_CLUSTER(a_primary_that_dies_is_replaced_and_flushed_for), /* last */
    };

    return TEST_MAIN(tests, start_cluster, stop_cluster);
}
