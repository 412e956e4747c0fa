/*
 * Writes that fail, or nobody knows: what becomes of the old value.  Race 9 on real servers through the fault proxy: the writer's link is
 * cut after each byte of request and reply, refused, swallowed, its server stopped; a reader beside it, whose own link is well,
 * holds the old value in L1 and in L2.
 *
 * What is checked: once the link is well and nothing is owed any more, nobody reads the old value, whether the write was
 * acknowledged or not.  The control is coherence.max_pending=0, one attempt and no more: then the old value stays.
 */
#define TEST_NAME "recovery"
#include "integration/instance.h"

#include "harness/proxy.h"
#include "harness/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct test_server *server;
static struct test_proxy  *proxy;

static struct instance writer, reader;

static int
setup(void **state)
{
    (void)state;
    memset(&writer, 0, sizeof(writer));
    memset(&reader, 0, sizeof(reader));
    logged[0] = '\0';
    server    = test_redis_start(TEST_SERVER_TCP, NULL);
    test_need_server(server);
    proxy = test_proxy_start(server);
    return proxy == NULL ? -1 : 0;
}

static int
teardown(void **state)
{
    (void)state;
    if (proxy != NULL)
        test_proxy_heal(proxy);
    close_instance(&writer);
    close_instance(&reader);
    if (proxy != NULL)
        test_proxy_stop(&proxy);
    if (server != NULL)
        test_server_stop(&server);
    return 0;
}

/* `bus` "auto": as L2.  `pending`: coherence.max_pending. */
static void
open_instance(struct instance *in, const char *l2, const char *bus, const char *pending)
{
    const char *const settings[] = {
        "l2.uri",     l2,      "coherence.uri", bus,     "coherence.max_pending", pending,
        "l2.timeout", "100ms", "close.timeout", "200ms", "l2.connect_timeout",    "200ms",
        NULL,
    };

    open_with(in, settings, NULL);
    assert_int_equal(near_cache_open(in->client, "other", NULL, &in->other, NULL), NEAR_OK);
}

static near_status
put(struct instance *in, const char *key, const char *value)
{
    return near_put(in->cache, near_key(key), near_key(value), NULL);
}

static int
is_connected(void *ctx)
{
    return stats(ctx).bus_connected != 0;
}

/* What a reader gets, "" for nothing; "?" for an error. */
static const char *
get(struct instance *in, const char *key)
{
    static char value[64];
    size_t      size   = 0;
    near_status status = near_get_copy(in->cache, near_key(key), value, sizeof(value) - 1, &size, NULL);

    if (status < 0)
        return "?";
    value[status == NEAR_OK ? size : 0] = '\0';
    return value;
}

/* The old value, in L2 and in the reader's L1. */
static void
have_old(const char *key)
{
    assert_int_equal(put(&reader, key, "old"), NEAR_OK);
    assert_string_equal(get(&reader, key), "old");
}

/* After the trouble: does the reader still get the old value? */
static bool
is_stale(const char *key)
{
    int64_t end = test_now_ms() + SOON;

    while (near_fence(reader.client, 1000) != NEAR_OK && test_now_ms() < end)
        ;
    return strcmp(get(&reader, key), "old") == 0;
}

/* ------------------------------------------------------------------------------------------ cut anywhere */

struct outcome {
    unsigned acknowledged, failed, stale;
};

static void
cut_once(enum test_direction direction, int64_t bytes, bool remove, bool wait, struct outcome *outcome)
{
    near_status status;

    have_old("k");
    assert_true(test_wait_for(is_connected, &writer, SOON));
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_CUT, direction, 0, bytes });
    status = remove ? near_remove(writer.cache, near_key("k")) : put(&writer, "k", "new");
    test_proxy_heal(proxy);
    outcome->acknowledged += status == NEAR_OK;
    outcome->failed += status != NEAR_OK;
    if (wait)
        assert_true(test_wait_for(owes_nothing, &writer, SOON));
    outcome->stale += is_stale("k");
}

/* The whole exchange has some 370 bytes up and 60 down; handshakes of new connections are cut as well.  `step` 1 is every byte. */
static struct outcome
cut_everywhere(const char *pending, int64_t step)
{
    bool           kept    = strcmp(pending, "0") != 0;
    struct outcome outcome = { 0, 0, 0 };

    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, test_proxy_uri(proxy), "auto", pending);
    for (int64_t at = 0; at < 380; at += step) {
        cut_once(TEST_UP, at, false, kept, &outcome);
        if (at < 70)
            cut_once(TEST_DOWN, at, false, kept, &outcome);
        if (at < 250)
            cut_once(TEST_UP, at, true, kept, &outcome);
    }
    return outcome;
}

static void
assert_all_made_good(const struct outcome *o)
{
    print_message("[          ] %u cuts: %u acknowledged, %u failed, %llu kept, %u stale\n",
                  o->acknowledged + o->failed, o->acknowledged, o->failed,
                  (unsigned long long)stats(&writer).invalidations_kept, o->stale);
    assert_int_equal(o->stale, 0);
    assert_true(o->failed > 0);
    assert_true(stats(&writer).invalidations_kept > 0);
    assert_int_equal(stats(&writer).invalidations_kept, stats(&writer).invalidations_settled);
}

static void
test_race9_link_cut_after_any_byte_leaves_no_old_value(void **state)
{
    struct outcome o = cut_everywhere("10000", test_scale(100) < 100 ? 30 : 1);

    (void)state;
    assert_all_made_good(&o);
}

static void
race9_control_without_the_table_old_values_stay(void **state)
{
    (void)state;
    assert_true(cut_everywhere("0", 60).stale > 0);
    assert_int_equal(stats(&writer).invalidations_kept, 0);
}

/* --------------------------------------------------------------------------------- refused, stopped, forbidden */

static void
put_many(struct instance *in, near_cache *cache, const char *value, unsigned n, near_status expected)
{
    char key[16];

    (void)in;
    for (unsigned i = 0; i < n; i++) {
        near_status status;

        snprintf(key, sizeof(key), "k%u", i);
        status = near_put(cache, near_key(key), near_key(value), NULL);
        if (expected == NEAR_OK)
            assert_int_equal(status, NEAR_OK);
        else
            assert_true(status < 0);
    }
}

static unsigned
stale_of(unsigned n)
{
    unsigned stale = 0;
    char     key[16];

    for (unsigned i = 0; i < n; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        stale += is_stale(key);
    }
    return stale;
}

static void
have_many_old(unsigned n)
{
    put_many(&reader, reader.cache, "old", n, NEAR_OK);
    assert_int_equal(stale_of(n), n); /* that is: it reads them */
}

static void
test_race9_what_a_refused_link_kept_back_is_sent_when_it_heals(void **state)
{
    const unsigned n = 40;

    (void)state;
    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, test_proxy_uri(proxy), "auto", "10000");
    for (unsigned round = 0; round < 2; round++) {
        have_many_old(n);
        test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
        put_many(&writer, writer.cache, "new", n, NEAR_ERR_UNAVAILABLE);
        put_many(&writer, writer.cache, "newer", n, NEAR_ERR_UNAVAILABLE); /* the same keys: kept once */
        assert_int_equal(stats(&writer).invalidations_pending, n);
        assert_int_equal(stale_of(n), n);
        test_proxy_heal(proxy);
        assert_true(test_wait_for(owes_nothing, &writer, SOON));
        assert_int_equal(stale_of(n), 0);
        assert_int_equal(stats(&writer).invalidations_settled, (round + 1) * n);
    }
    assert_in_range(times_logged("could not be sent: it is kept"), 1, 2); /* once an outage, if it is not
                                                                                  the log's limit that cuts it */
}

static void
race9_control_a_refused_link_without_the_table(void **state)
{
    (void)state;
    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, test_proxy_uri(proxy), "auto", "0");
    have_many_old(3);
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
    put_many(&writer, writer.cache, "new", 3, NEAR_ERR_UNAVAILABLE);
    test_proxy_heal(proxy);
    assert_true(test_wait_for(is_connected, &writer, SOON));
    assert_false(test_wait_for(owes_nothing, &writer, 1) && stale_of(3) == 0);
    assert_int_equal(stale_of(3), 3);
}

/* More than may be kept: of that cache everything goes, of another nothing. */
static void
too_many_kept_invalidate_the_whole_cache_and_no_other(void **state)
{
    (void)state;
    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, test_proxy_uri(proxy), "auto", "10");
    have_many_old(30);
    assert_int_equal(near_put(reader.other, near_key("k0"), near_key("other"), NULL), NEAR_OK);
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
    put_many(&writer, writer.cache, "new", 30, NEAR_ERR_UNAVAILABLE);
    assert_int_equal(stats(&writer).invalidations_pending, 11); /* 10 keys and a clear */
    assert_int_equal(stats(&writer).invalidations_overflowed, 1);
    test_proxy_heal(proxy);
    assert_true(test_wait_for(owes_nothing, &writer, SOON));
    assert_int_equal(stale_of(30), 0);
    near_value *value = NULL;
    assert_int_equal(near_get(reader.other, near_key("k0"), &value), NEAR_OK);
    near_value_release(value);
}

static void
a_clear_that_could_not_be_sent_is_made_good(void **state)
{
    (void)state;
    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, test_proxy_uri(proxy), "auto", "10000");
    have_old("k");
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
    assert_true(near_clear(writer.cache) < 0);
    assert_true(is_stale("k"));
    test_proxy_heal(proxy);
    assert_true(test_wait_for(owes_nothing, &writer, SOON));
    assert_false(is_stale("k"));
}

/* ------------------------------------------------------------------------------------------------- tags */

/* The old value with a tag, in L2 and in the reader's L1. */
static void
have_old_tagged(const char *key)
{
    near_put_options options = NEAR_PUT_OPTIONS_INIT;

    options.tags      = (const char *[]){ "t" };
    options.tag_count = 1;
    assert_int_equal(near_put(reader.cache, near_key(key), near_key("old"), &options), NEAR_OK);
    assert_string_equal(get(&reader, key), "old");
}

/* Four exchanges with L2 and a message, some 900 bytes up and 700 down in all. */
static struct outcome
cut_tags_everywhere(const char *pending, int64_t step)
{
    bool           kept    = strcmp(pending, "0") != 0;
    struct outcome outcome = { 0, 0, 0 };

    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, test_proxy_uri(proxy), "auto", pending);
    for (int64_t at = 0; at < 900; at += step)
        for (int way = 0; way < 2; way++) {
            near_status status;

            have_old_tagged("k");
            assert_true(test_wait_for(is_connected, &writer, SOON));
            test_proxy_fault(proxy,
                             (struct test_fault){ TEST_FAULT_CUT, way == 0 ? TEST_UP : TEST_DOWN, 0, at });
            status = near_invalidate_tag(writer.cache, "t");
            if (status != NEAR_OK)
                assert_string_not_equal(get(&writer, "k"), "old"); /* the writer does not believe L2 */
            test_proxy_heal(proxy);
            outcome.acknowledged += status == NEAR_OK;
            outcome.failed += status != NEAR_OK;
            if (kept)
                assert_true(test_wait_for(owes_nothing, &writer, SOON));
            outcome.stale += is_stale("k");
        }
    return outcome;
}

static void
test_race9_a_tag_cut_off_after_any_byte_leaves_no_old_value(void **state)
{
    struct outcome o = cut_tags_everywhere("10000", test_scale(100) < 100 ? 90 : 40);

    (void)state;
    assert_all_made_good(&o);
}

static int
writer_reads_old(void *ctx)
{
    (void)ctx;
    return strcmp(get(&writer, "k"), "old") == 0;
}

static void
race9_control_tags_without_the_table(void **state)
{
    (void)state;
    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, test_proxy_uri(proxy), "auto", "0");
    have_old_tagged("k");
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
    assert_true(near_invalidate_tag(writer.cache, "t") < 0);
    test_proxy_heal(proxy);
    assert_true(test_wait_for(is_connected, &writer, SOON));
    assert_true(is_stale("k"));
    assert_true(test_wait_for(writer_reads_old, NULL, SOON)); /* the writer, too */
}

/* Twice the same is owed once; two tags are two; keys beside them are paid as well. */
static void
tags_and_keys_are_owed_side_by_side(void **state)
{
    (void)state;
    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, test_proxy_uri(proxy), "auto", "10000");
    have_old_tagged("k");
    have_old("l");
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
    assert_true(near_invalidate_tag(writer.cache, "t") < 0);
    assert_true(near_invalidate_tag(writer.cache, "t") < 0);
    assert_true(near_invalidate_tag(writer.cache, "u") < 0);
    assert_true(put(&writer, "l", "new") < 0);
    assert_int_equal(stats(&writer).invalidations_pending, 3);
    test_proxy_heal(proxy);
    assert_true(test_wait_for(owes_nothing, &writer, SOON));
    assert_false(is_stale("k"));
    assert_false(is_stale("l"));
    assert_int_equal(stats(&writer).invalidations_settled, 3);
}

/* The server stops for longer than the write waits, and executes it afterwards. */
static void
test_race9_a_stopped_server_executes_late_and_is_tidied_up_after(void **state)
{
    (void)state;
    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, server->uri, "auto", "10000");
    for (int i = 0; i < 3; i++) {
        have_old("k");
        assert_int_equal(put(&writer, "warm", "x"), NEAR_OK);
        test_server_pause(server);
        assert_true(put(&writer, "k", "new") < 0);
        assert_int_equal(stats(&writer).invalidations_pending, 1);
        test_server_resume(server);
        assert_true(test_wait_for(owes_nothing, &writer, SOON));
        assert_false(is_stale("k"));
    }
}

static void
a_killed_server_that_comes_back_is_told(void **state)
{
    (void)state;
    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, server->uri, "auto", "10000");
    for (size_t i = 0; i < test_scale(3); i++) {
        have_old("k");
        test_server_kill(server);
        assert_true(put(&writer, "k", "new") < 0);
        assert_int_equal(stats(&writer).invalidations_pending, 1);
        assert_true(test_server_restart(server));
        assert_true(test_wait_for(owes_nothing, &writer, SOON));
        assert_true(test_wait_for(is_connected, &reader, SOON));
        assert_false(is_stale("k"));
    }
}

static void
command(int argc, const char *const *argv)
{
    char out[1024];

    if (!test_redis_command(server, out, sizeof(out), argc, argv))
        fail_msg("%s: %s", argv[0], out);
}

static void
load_new(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], near_key("new"));
}

/* While a key is owed, what L2 says of it is not believed: here it may be read and not written. */
static void
what_is_owed_is_not_read_from_l2(void **state)
{
    char        uri[300];
    near_value *value = NULL;

    (void)state;
    command(7, (const char *[]){ "ACL", "SETUSER", "shy", "on", ">pw", "~*", "&*" });
    command(5, (const char *[]){ "ACL", "SETUSER", "shy", "+@all", "-@write" });
    snprintf(uri, sizeof(uri), "redis://shy:pw@127.0.0.1:%d/0", server->port);
    open_instance(&reader, server->uri, "auto", "10000");
    have_old("k");
    for (int control = 1; control >= 0; control--) {
        open_instance(&writer, uri, "auto", control ? "0" : "100");
        near_cache_set_loader(writer.cache, load_new, NULL);
        assert_true(put(&writer, "k", "new") < 0);
        assert_string_equal(get(&writer, "k"), control ? "old" : "?");
        if (control)
            close_instance(&writer);
    }
    assert_int_equal(near_fetch(writer.cache, near_key("k"), NULL, &value), NEAR_OK); /* the store knows */
    assert_memory_equal(near_value_bytes(value).data, "new", 3);
    near_value_release(value);
    command(4, (const char *[]){ "ACL", "SETUSER", "shy", "+@write" });
    assert_true(test_wait_for(owes_nothing, &writer, SOON));
    assert_false(is_stale("k"));
}

/* memcached below, the bus on Redis: the value is written, the message is not. */
static void
a_message_alone_is_made_good_too(void **state)
{
    struct test_server *memcached = test_memcached_start(0, NULL);

    (void)state;
    test_need_server(memcached);
    open_instance(&reader, memcached->uri, server->uri, "10000");
    open_instance(&writer, memcached->uri, test_proxy_uri(proxy), "10000");
    have_many_old(5);
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
    put_many(&writer, writer.cache, "new", 5, NEAR_ERR_UNAVAILABLE);
    assert_int_equal(stale_of(5), 5); /* nobody has told the reader, and nothing was acknowledged */
    test_proxy_heal(proxy);
    assert_true(test_wait_for(owes_nothing, &writer, SOON));
    assert_int_equal(stale_of(5), 0);
    close_instance(&writer);
    close_instance(&reader);
    test_server_stop(&memcached);
}

static void
closing_pays_or_says_what_is_owed(void **state)
{
    near_error error;

    (void)state;
    open_instance(&reader, server->uri, "auto", "10000");
    open_instance(&writer, test_proxy_uri(proxy), "auto", "10000");
    have_many_old(3);
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
    put_many(&writer, writer.cache, "new", 3, NEAR_ERR_UNAVAILABLE);
    assert_int_equal(near_client_close(writer.client, &error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "invalidations of 3 keys"));
    writer.client = NULL;
    test_proxy_heal(proxy);
    open_instance(&writer, test_proxy_uri(proxy), "auto", "10000");
    assert_int_equal(near_client_close(writer.client, &error), NEAR_OK); /* control */
    writer.client = NULL;
}

#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_race9_link_cut_after_any_byte_leaves_no_old_value),
        WITH_SERVER(race9_control_without_the_table_old_values_stay),
        WITH_SERVER(test_race9_what_a_refused_link_kept_back_is_sent_when_it_heals),
        WITH_SERVER(race9_control_a_refused_link_without_the_table),
        WITH_SERVER(too_many_kept_invalidate_the_whole_cache_and_no_other),
        WITH_SERVER(a_clear_that_could_not_be_sent_is_made_good),
        WITH_SERVER(test_race9_a_tag_cut_off_after_any_byte_leaves_no_old_value),
        WITH_SERVER(race9_control_tags_without_the_table),
        WITH_SERVER(tags_and_keys_are_owed_side_by_side),
        WITH_SERVER(test_race9_a_stopped_server_executes_late_and_is_tidied_up_after),
        WITH_SERVER(a_killed_server_that_comes_back_is_told),
        WITH_SERVER(what_is_owed_is_not_read_from_l2),
        WITH_SERVER(a_message_alone_is_made_good_too),
        WITH_SERVER(closing_pays_or_says_what_is_owed),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
