/*
 * Coherence over a bus that the test plays by hand, with a clock that it moves: what opens the gate, what closes it, what
 * flushes and what is skipped.  Race numbers are those of doc/guarantees.md; each cure has a control beside it where one can be had.
 */
#define TEST_NAME "coherence"
#include "harness/test.h"

#include "base/le.h"
#include "coherence/bus.h"
#include "coherence/coherence.h"
#include "coherence/streams.h"
#include "l2/stream.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MS        NEAR_MS
#define START     (1000 * MS)
#define WINDOW    (50 * MS)
#define HEARTBEAT (10 * MS)

/* ------------------------------------------------------------------------------------------- the fake bus */

static struct fake {
    struct near__bus_env env;
    near_status          publish_status;
    uint64_t             publish_stream, publish_sequence;
    bool                 opened, stopped, forked, finished;
    uint8_t              published[1024];
    size_t               published_size;
} fake;

static near_status
fake_open(void **self, const struct near__bus_env *env, near_error *error)
{
    (void)error;
    fake.env    = *env;
    fake.opened = true;
    *self       = &fake;
    return NEAR_OK;
}

static near_status
fake_refuse(void **self, const struct near__bus_env *env, near_error *error)
{
    (void)env;
    *self = NULL;
    return near__fail(error, NEAR_ERR_NOMEM, "no");
}

static near_status
fake_publish(void *self, uint8_t *message, size_t size, size_t stamp_at, uint64_t *stream, int64_t deadline,
             near_error *error)
{
    (void)self;
    (void)deadline;
    near__stream_claim(fake.publish_stream);
    near__le64_put(message + stamp_at, fake.publish_stream);
    near__le64_put(message + stamp_at + 8, ++fake.publish_sequence);
    fake.published_size = size < sizeof(fake.published) ? size : sizeof(fake.published);
    memcpy(fake.published, message, fake.published_size);
    *stream = fake.publish_stream;
    return fake.publish_status == NEAR_OK ? NEAR_OK : near__fail(error, fake.publish_status, "fake");
}

static near_status
fake_fence(void *self, int64_t deadline, near_error *error)
{
    (void)self;
    return near__fail(error, deadline == 7 ? NEAR_OK : NEAR_ERR_TIMEOUT, "fake");
}

static void
fake_stop(void *self)
{
    ((struct fake *)self)->stopped = true;
}

static void
fake_fini(void *self)
{
    ((struct fake *)self)->finished = true;
}

static void
fake_forked(void *self)
{
    ((struct fake *)self)->forked = true;
}

static const struct near__bus_ops fake_ops = {
    NEAR__BUS_OPS_V1, "fake",      fake_open, fake_publish, fake_fence, fake_stop,
    fake_fini,        fake_forked, NULL,      true,         NULL,
};

static void
bus_subscribed(void)
{
    fake.env.listener.subscribed(fake.env.listener.ctx);
}

static void
bus_heard(int64_t since)
{
    fake.env.listener.heard(fake.env.listener.ctx, since);
}

static void
bus_lost(const char *why)
{
    fake.env.listener.lost(fake.env.listener.ctx, why);
}

static void
bus_bytes(const void *bytes, size_t size)
{
    fake.env.listener.message(fake.env.listener.ctx, (near_bytes){ bytes, size });
}

/* ------------------------------------------------------------------------------------ the sink and the log */

/* What the sink was told, in order: F flush, I invalidate, L filled, C cleared, S the server says changed. */
static char     told[4096];
static size_t   told_count;
static char     last_key[64], last_cache[64];
static uint64_t last_generation;
static int64_t  gate_at_flush; /* the gate as seen from inside the newest flush */
static unsigned log_lines;
static char     last_log[512];

static struct near__coherence *coherence;
static struct test_clock       test_time;

static void
tell(char what)
{
    assert_true(told_count < sizeof(told) - 1);
    told[told_count++] = what;
    told[told_count]   = '\0';
}

static void
copy_text(char *out, size_t size, near_bytes bytes)
{
    snprintf(out, size, "%.*s", (int)bytes.size, (const char *)bytes.data);
}

static void
sink_invalidate(void *ctx, near_bytes cache, near_bytes key)
{
    (void)ctx;
    copy_text(last_cache, sizeof(last_cache), cache);
    copy_text(last_key, sizeof(last_key), key);
    tell('I');
}

static void
sink_filled(void *ctx, near_bytes cache, near_bytes key)
{
    (void)ctx;
    copy_text(last_cache, sizeof(last_cache), cache);
    copy_text(last_key, sizeof(last_key), key);
    tell('L');
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
    copy_text(last_cache, sizeof(last_cache), cache);
    last_generation = generation;
    tell('C');
}

static void
sink_changed(void *ctx, near_bytes key)
{
    (void)ctx;
    copy_text(last_key, sizeof(last_key), key);
    tell('S');
}

static void
sink_flush(void *ctx)
{
    (void)ctx;
    gate_at_flush = coherence != NULL ? near__coherence_gate(coherence) : 0;
    tell('F');
}

static void
log_write(void *ctx, near_log_level level, const char *message)
{
    (void)ctx;
    (void)level;
    log_lines++;
    snprintf(last_log, sizeof(last_log), "%s", message);
}

static const struct near__log logger = { log_write, NULL };
static struct near__uri       uri    = { .kind = NEAR__URI_MEMORY, .scheme = "memory" };

static struct near__coherence_config
configuration(void)
{
    return (struct near__coherence_config){
        .uri             = &uri,
        .clock           = &test_time.clock,
        .log             = &logger,
        .channel         = "channel",
        .client_name     = "test",
        .heartbeat       = HEARTBEAT,
        .serve_window    = WINDOW,
        .connect_timeout = 100 * MS,
        .sink = { NULL, sink_invalidate, sink_filled, sink_cleared, sink_tagged, sink_flush, sink_changed,
                  NULL },
    };
}

static int
setup(void **state)
{
    struct near__coherence_config config = configuration();

    (void)state;
    memset(&fake, 0, sizeof(fake));
    fake.publish_stream = 99;
    told_count          = 0;
    told[0]             = '\0';
    log_lines           = 0;
    test_clock_init(&test_time, START);
    return near__coherence_open_over(&coherence, &fake_ops, &config, NULL) == NEAR_OK ? 0 : -1;
}

static int
teardown(void **state)
{
    (void)state;
    if (coherence != NULL)
        near__coherence_stop(coherence);
    near__coherence_free(&coherence);
    return 0;
}

static int64_t
now(void)
{
    return near__now(&test_time.clock);
}

static bool
gate_is_open(void)
{
    return now() < near__coherence_gate(coherence);
}

static struct near__coherence_stats
stats(void)
{
    struct near__coherence_stats s;

    near__coherence_stats(coherence, &s);
    return s;
}

static void
forget_what_was_told(void)
{
    told_count = 0;
    told[0]    = '\0';
}

/* Subscribed and heard: the usual state. */
static void
bring_up(void)
{
    bus_subscribed();
    bus_heard(now());
    assert_true(gate_is_open());
    forget_what_was_told();
}

static void
send(enum near__message_kind kind, uint64_t sender, uint64_t stream, uint64_t sequence, const char *key)
{
    near_bytes bytes = near_key(key);
    uint8_t   *message;
    size_t     size;

    assert_int_equal(near__message_encode(kind, sender, near_key("users"), &bytes, 1, &message, &size),
                     NEAR_OK);
    near__le64_put(message + NEAR__MESSAGE_STAMP_AT, stream);
    near__le64_put(message + NEAR__MESSAGE_STAMP_AT + 8, sequence);
    bus_bytes(message, size);
    free(message);
}

static void
send_invalidate(uint64_t sender, uint64_t stream, uint64_t sequence)
{
    send(NEAR__MESSAGE_INVALIDATE, sender, stream, sequence, "k");
}

/* In a stream of this process. */
static void
send_own(uint64_t stream, uint64_t sequence)
{
    near__stream_claim(stream);
    send_invalidate(near__coherence_sender(coherence), stream, sequence);
}

struct beat_entry {
    uint64_t stream, first, last;
};

/* Beats come in a stream of their own: 77, numbered like the beats. */
static void
send_beat(uint64_t sender, uint64_t number, const struct beat_entry *entries, size_t n)
{
    uint8_t    bytes[9][24];
    near_bytes keys[9] = { { bytes[0], 8 } };
    uint8_t   *message;
    size_t     size;

    near__le64_put(bytes[0], number);
    for (size_t i = 0; i < n; i++) {
        near__le64_put(bytes[i + 1], entries[i].stream);
        near__le64_put(bytes[i + 1] + 8, entries[i].first);
        near__le64_put(bytes[i + 1] + 16, entries[i].last);
        keys[i + 1] = (near_bytes){ bytes[i + 1], 24 };
    }
    assert_int_equal(near__message_encode(NEAR__MESSAGE_BEAT, sender, near_key(NEAR__MESSAGE_BEAT_CACHE),
                                          keys, n + 1, &message, &size),
                     NEAR_OK);
    near__le64_put(message + NEAR__MESSAGE_STAMP_AT, 77);
    near__le64_put(message + NEAR__MESSAGE_STAMP_AT + 8, number);
    bus_bytes(message, size);
    free(message);
}

/* ------------------------------------------------------------------------------------------------ the gate */

static void
gate_is_closed_before_the_first_heard(void **state)
{
    (void)state;
    assert_false(gate_is_open());
    bus_subscribed();
    assert_false(gate_is_open());
    assert_true(stats().connected);
    bus_heard(now());
    assert_true(gate_is_open()); /* control */
}

static void
test_G2_gate_closes_when_the_window_has_passed_since_the_question(void **state)
{
    int64_t asked;

    (void)state;
    bus_subscribed();
    asked = now();
    test_clock_advance(&test_time, 20);
    bus_heard(asked); /* the answer came 20 ms later: the window runs from the question */
    assert_int_equal(near__coherence_gate(coherence), asked + WINDOW);
    test_clock_advance(&test_time, 29);
    assert_true(gate_is_open());
    test_clock_advance(&test_time, 1);
    assert_false(gate_is_open());
    bus_heard(now());
    assert_true(gate_is_open());
}

static void
an_older_answer_moves_the_gate_nowhere(void **state)
{
    (void)state;
    bus_subscribed();
    bus_heard(now() + 5);
    bus_heard(now());
    assert_int_equal(near__coherence_gate(coherence), now() + 5 + WINDOW);
}

static void
a_time_that_never_comes_keeps_the_gate_open(void **state)
{
    (void)state;
    bus_subscribed();
    bus_heard(NEAR_NEVER);
    assert_true(near__coherence_gate(coherence) == NEAR_NEVER);
}

static void
test_race13_lost_bus_leaves_the_gate_to_its_window(void **state)
{
    (void)state;
    bring_up();
    bus_lost("test");
    assert_false(stats().connected);
    assert_true(gate_is_open()); /* within the bound: availability costs nothing */
    bus_heard(now());            /* an answer that was under way */
    test_clock_advance(&test_time, WINDOW / MS);
    assert_false(gate_is_open());
}

static void
test_race14_flush_comes_between_the_acknowledgement_and_the_gate(void **state)
{
    int64_t before;

    (void)state;
    bring_up();
    before = near__coherence_gate(coherence);
    bus_lost("test");
    test_clock_advance(&test_time, 1000);
    bus_subscribed();
    assert_string_equal(told, "F");
    assert_int_equal(gate_at_flush, before); /* the flush saw the old gate: it had not moved */
    assert_false(gate_is_open());
    bus_heard(now());
    assert_true(gate_is_open());
    assert_string_equal(told, "F");
    assert_int_equal(stats().flushes, 2);
    assert_int_equal(stats().connects, 2);
}

/* The question was asked on a connection before the newest one: what got lost in between is not covered by its answer. */
static void
test_race15_answer_to_a_question_from_before_the_subscription_opens_nothing(void **state)
{
    int64_t before;

    (void)state;
    bring_up();
    bus_lost("test");
    test_clock_advance(&test_time, 1000);
    before = now();
    test_clock_advance(&test_time, 1);
    bus_subscribed();
    bus_heard(before);
    assert_false(gate_is_open());
    bus_heard(before + MS - 1);
    assert_false(gate_is_open());
    bus_heard(before + MS); /* control: asked not before the subscription */
    assert_true(gate_is_open());
}

static void
an_answer_while_the_bus_is_lost_opens_nothing(void **state)
{
    (void)state;
    bring_up();
    bus_lost("test");
    test_clock_advance(&test_time, 1000);
    bus_heard(now());
    assert_false(gate_is_open());
}

/* -------------------------------------------------------------------------------------------- the messages */

static void
messages_reach_the_sink(void **state)
{
    near_bytes keys[3] = { near_key("a"), near_key("b"), near_key("c") };
    uint8_t   *message;
    size_t     size;

    (void)state;
    bring_up();
    assert_int_equal(
        near__message_encode(NEAR__MESSAGE_INVALIDATE, 5, near_key("users"), keys, 3, &message, &size),
        NEAR_OK);
    near__le64_put(message + 16, 1);
    near__le64_put(message + 24, 1);
    bus_bytes(message, size);
    free(message);
    assert_string_equal(told, "III");
    assert_string_equal(last_key, "c");
    assert_string_equal(last_cache, "users");
    send(NEAR__MESSAGE_FILLED, 5, 1, 2, "filled");
    assert_string_equal(told, "IIIL");
    assert_string_equal(last_key, "filled");
    send(NEAR__MESSAGE_CLEAR, 5, 1, 3, "\1\2\3\4\5\6\7\010");
    assert_string_equal(told, "IIILC");
    assert_true(last_generation == UINT64_C(0x0807060504030201));
    assert_int_equal(stats().received, 3);
    assert_int_equal(stats().keys_received, 3);
    assert_int_equal(stats().filled_received, 1);
}

/* Race 18: of ten messages number i is dropped, for all i.  The first sets the baseline, so losing it cannot show by this; losing the
 * last cannot show before another comes.  The beats below find both. */
static void
test_race18_any_dropped_message_flushes(void **state)
{
    (void)state;
    for (uint64_t dropped = 1; dropped <= 11; dropped++) { /* 11: none of them, the control */
        bring_up();
        for (uint64_t i = 1; i <= 10; i++) {
            if (i == dropped)
                continue;
            send_invalidate(5, 1, i);
            if (dropped > 1 && i == dropped + 1)
                assert_string_equal(told + told_count - 2, "FI"); /* the flush first, then the message */
        }
        send_invalidate(5, 2, 1); /* another stream says nothing about this one */
        assert_int_equal(strchr(told, 'F') != NULL, dropped >= 2 && dropped <= 9);
        send_invalidate(5, 1, 11);
        assert_int_equal(strchr(told, 'F') != NULL, dropped >= 2 && dropped <= 10);
        bus_lost("test");
    }
    assert_int_equal(stats().gaps, 9);
}

/* Race 18, the rest: with beats every lost message shows, the first and the last of a stream, too.  Two beats of messages and two
 * that say the same again; `dropped` counts messages and beats in their order.  With `met` a beat of the sender was heard before.
 * Without the beats, the control, what the test above misses is missed. */
enum how { WITHOUT_BEATS, WITH_BEATS, MET };

static bool
flushed_by_the_end(unsigned dropped, enum how how)
{
    const struct beat_entry entries[2][3] = { { { 1, 1, 3 }, { 2, 1, 1 } },
                                              { { 1, 1, 6 }, { 2, 1, 1 }, { 3, 1, 1 } } };
    unsigned                n             = 0;
    uint64_t                beat          = 0;

    test_clock_advance(&test_time, 1000); /* a round's flushes are no storm */
    bring_up();
    if (how == MET)
        send_beat(5, ++beat, NULL, 0);
    for (uint64_t part = 0; part < 2; part++) {
        for (uint64_t i = 3 * part + 1; i <= 3 * part + 3; i++)
            if (++n != dropped)
                send_invalidate(5, 1, i);
        if (++n != dropped) /* a stream of one message, which is its first and its last */
            send_invalidate(5, 2 + part, 1);
        beat++;
        if (how != WITHOUT_BEATS && ++n != dropped)
            send_beat(5, beat, entries[part], 2 + part);
    }
    for (unsigned trail = 0; how != WITHOUT_BEATS && trail < NEAR__SENT_TRAIL; trail++) {
        beat++;
        if (++n != dropped)
            send_beat(5, beat, entries[1], 3);
    }
    bus_heard(now());
    bus_lost("test");
    return strchr(told, 'F') != NULL;
}

static void
test_race18_a_lost_first_or_last_message_is_noticed_by_the_beat(void **state)
{
    unsigned noticed_without = 0;

    (void)state;
    for (enum how how = WITH_BEATS; how <= MET; how++) {
        assert_false(flushed_by_the_end(0, how)); /* nothing lost, no flush */
        for (unsigned dropped = 1; dropped <= 9; dropped++)
            if (dropped != 5) /* a first beat, whose words the second says again */
                assert_true(flushed_by_the_end(dropped, how));
        assert_int_equal(flushed_by_the_end(5, how), how == MET);
        assert_true(flushed_by_the_end(10, how));
        assert_true(flushed_by_the_end(11, how));
        assert_false(flushed_by_the_end(12, how)); /* the last beat has nothing new to say */
    }
    for (unsigned dropped = 1; dropped <= 8; dropped++)
        noticed_without += flushed_by_the_end(dropped, WITHOUT_BEATS);
    assert_int_equal(noticed_without, 4); /* control: 2, 3, 5 and 6 of the longer stream */
}

/* Who comes in the middle cannot tell what was published before he came from what was lost: one flush for all senders, at the
 * next pong, and nobody is told of it.  What comes after that beat is exact. */
static void
a_first_beat_in_the_middle_costs_one_flush(void **state)
{
    const struct beat_entry before = { 1, 1, 40 }, after = { 1, 1, 41 }, known = { 2, 4, 5 },
                            gone         = { 2, 4, 6 };
    const struct near__position position = { 5, 1, 41 };
    uint64_t                    log      = log_lines;

    (void)state;
    bring_up();
    log = log_lines;
    send_beat(5, 9, &before, 1);
    send_beat(6, 3, &before, 1);
    assert_string_equal(told, "");
    send_invalidate(5, 1, 41);
    assert_false(near__coherence_applied(coherence, &position)); /* not before the flush */
    bus_heard(now());
    assert_string_equal(told, "IF");
    assert_true(near__coherence_applied(coherence, &position));
    send_beat(5, 10, &after, 1);
    send_beat(6, 4, &before, 1);
    bus_heard(now());
    assert_string_equal(told, "IF");
    assert_int_equal(stats().gaps, 0);
    assert_int_equal(log_lines, log);
    bus_lost("test");
    bring_up();
    send_invalidate(5, 2, 4);
    send_invalidate(5, 2, 5);
    send_beat(5, 9, &known, 1); /* all heard: nothing to be unsure of */
    send_beat(5, 9, &known, 1); /* twice does no harm */
    bus_heard(now());
    assert_string_equal(told, "II");
    send_beat(5, 10, &gone, 1);
    assert_string_equal(told, "IIF"); /* loud, and at once */
    assert_int_equal(stats().gaps, 1);
}

/* The server's own word is applied whoever wrote; "all" is a flush. */
static void
changes_told_by_the_server_reach_the_sink(void **state)
{
    (void)state;
    bring_up();
    fake.env.listener.changed(fake.env.listener.ctx, near_key("nc:users:k"));
    assert_string_equal(told, "S");
    assert_string_equal(last_key, "nc:users:k");
    fake.env.listener.changed(fake.env.listener.ctx, (near_bytes){ NULL, 0 });
    assert_string_equal(told, "SF");
    assert_int_equal(stats().changed, 1);
}

/* G6: another server than believed: the gate closes at once, and no answer to an older question opens it. */
static void
test_G6_suspected_server_closes_the_gate_at_once(void **state)
{
    (void)state;
    bring_up();
    fake.env.listener.suspected(fake.env.listener.ctx);
    assert_false(gate_is_open());
    assert_string_equal(told, "F");
    bus_heard(now());
    assert_false(gate_is_open());
    bus_lost("test");
    bus_heard(now());
    assert_false(gate_is_open());
    bus_subscribed();
    assert_string_equal(told, "FF");
    bus_heard(now());
    assert_true(gate_is_open());
}

/* On a bus of two links: copies are skipped, and a beat is judged when both have brought it, in whatever order the rest comes. */
static void
a_beat_is_judged_when_every_link_has_brought_it(void **state)
{
    const struct beat_entry one = { 1, 1, 1 }, two = { 1, 2, 2 };

    (void)state;
    near__coherence_stop(coherence);
    near__coherence_free(&coherence);
    uri.address_count = 2;
    assert_int_equal(setup(state), 0);
    uri.address_count = 0;
    bring_up();
    send_beat(5, 1, NULL, 0);
    send_beat(5, 1, NULL, 0);
    send_beat(5, 2, &one, 1); /* this link is slow to bring what was published elsewhere */
    send_invalidate(5, 1, 1);
    send_beat(5, 2, &one, 1);
    send_invalidate(5, 1, 1);
    assert_string_equal(told, "I");
    assert_int_equal(stats().gaps, 0);
    send_beat(5, 3, &two, 1); /* and this is brought by neither */
    assert_string_equal(told, "I");
    send_beat(5, 3, &two, 1);
    assert_string_equal(told, "IF");
    assert_int_equal(stats().gaps, 1);
}

/* Rubbish at a high rate: the gate closes instead of one flush for each, stays closed while it lasts, and opens after a flush. */
static void
a_storm_of_rubbish_closes_the_gate_and_is_never_ignored(void **state)
{
    (void)state;
    bring_up();
    for (int i = 0; i < 16; i++) {
        bus_bytes("rubbish", 7);
        assert_true(gate_is_open());
    }
    assert_int_equal(told_count, 16);
    for (int i = 0; i < 10000; i++)
        bus_bytes("rubbish", 7);
    assert_int_equal(told_count, 17);
    assert_int_equal(stats().storms, 1);
    assert_int_equal(stats().bad_messages, 10016);
    for (int i = 0; i < 30; i++) { /* three seconds more of it */
        test_clock_advance(&test_time, 100);
        bus_bytes("rubbish", 7);
        bus_heard(now());
        assert_false(gate_is_open());
    }
    send_invalidate(5, 1, 1); /* messages that can be read are applied meanwhile */
    assert_int_equal(told_count, 18);
    test_clock_advance(&test_time, 999);
    bus_heard(now());
    assert_false(gate_is_open());
    assert_int_equal(told_count, 18);
    test_clock_advance(&test_time, 1);
    bus_heard(now());
    assert_int_equal(told[18], 'F');
    assert_false(gate_is_open()); /* that was asked before the flush */
    test_clock_advance(&test_time, 1);
    bus_heard(now());
    assert_true(gate_is_open());
    assert_int_equal(told_count, 19);
    for (int i = 0; i < 3; i++) { /* control: a few, now and then, are flushes as ever */
        test_clock_advance(&test_time, 30);
        bus_bytes("rubbish", 7);
        bus_heard(now());
        assert_true(gate_is_open());
    }
    assert_int_equal(stats().storms, 1);
}

/* A server that is started again five times a second costs flushes each time, but it is nobody's flood. */
static void
servers_that_come_and_go_are_no_storm(void **state)
{
    (void)state;
    bring_up();
    for (int i = 0; i < 30; i++) {
        bus_lost("gone");
        test_clock_advance(&test_time, 20);
        bus_subscribed();
        for (int k = 0; k < 4; k++)
            bus_bytes("rubbish", 7);
        test_clock_advance(&test_time, 1);
        bus_heard(now());
        assert_true(gate_is_open());
    }
    assert_int_equal(stats().storms, 0);
}

static void
publish_one(void)
{
    near_bytes key = near_key("k");
    uint8_t   *message;
    size_t     size;

    assert_int_equal(near__message_encode(NEAR__MESSAGE_INVALIDATE, near__coherence_sender(coherence),
                                          near_key("users"), &key, 1, &message, &size),
                     NEAR_OK);
    near__coherence_publish(coherence, message, size, 0, NULL);
    free(message);
}

/* The last beat that the fake bus was given: its number, and the entries as text. */
static uint64_t
beat_text(char *out, size_t size)
{
    struct near__message m;
    near_bytes           key;
    size_t               at = 0;
    uint64_t             number;

    out[0] = '\0';
    assert_true(near__message_decode(&m, (near_bytes){ fake.published, fake.published_size }));
    assert_int_equal(m.kind, NEAR__MESSAGE_BEAT);
    assert_true(near__message_next(&m, &at, &key));
    number = near__le64_get(key.data);
    while (near__message_next(&m, &at, &key)) {
        const uint8_t *e    = key.data;
        size_t         used = strlen(out);

        snprintf(out + used, size - used, "%d:%d-%d ", (int)near__le64_get(e), (int)near__le64_get(e + 8),
                 (int)near__le64_get(e + 16));
    }
    return number;
}

/* What is told: all that was acknowledged lately, in the next beat that gets through and two more, then silence. */
static void
beats_say_what_was_published_lately(void **state)
{
    char text[200];

    (void)state;
    bring_up();
    fake.env.listener.beat(fake.env.listener.ctx);
    assert_int_equal(fake.published_size, 0); /* nothing said, nothing to add */
    publish_one();
    publish_one();
    fake.publish_stream = 98;
    publish_one();
    fake.publish_status = NEAR_ERR_UNAVAILABLE;
    publish_one(); /* not acknowledged: nobody need have heard it */
    fake.env.listener.beat(fake.env.listener.ctx);
    fake.publish_status = NEAR_OK;
    publish_one(); /* 6; the failed beat was 5 */
    fake.env.listener.beat(fake.env.listener.ctx);
    assert_int_equal(beat_text(text, sizeof(text)), 1); /* the failed one's number, and its words, again */
    assert_string_equal(text, "99:1-2 98:3-6 ");
    publish_one();
    fake.env.listener.beat(fake.env.listener.ctx);
    assert_int_equal(beat_text(text, sizeof(text)), 2);
    assert_string_equal(text, "99:1-2 98:3-8 ");
    fake.env.listener.beat(fake.env.listener.ctx);
    assert_int_equal(beat_text(text, sizeof(text)), 3);
    assert_string_equal(text, "99:1-2 98:3-8 ");
    fake.env.listener.beat(fake.env.listener.ctx);
    assert_int_equal(beat_text(text, sizeof(text)), 4);
    assert_string_equal(text, "98:3-8 "); /* the other has been said three times */
    fake.published_size = 0;
    fake.env.listener.beat(fake.env.listener.ctx);
    assert_int_equal(fake.published_size, 0);
    assert_int_equal(stats().beats, 2 + NEAR__SENT_TRAIL);
}

static void
test_race17_duplicates_and_late_messages_are_applied(void **state)
{
    (void)state;
    bring_up();
    send_invalidate(5, 1, 1);
    send_invalidate(5, 1, 2);
    send_invalidate(5, 1, 2);
    send_invalidate(5, 1, 1);
    assert_string_equal(told, "IIII");
    assert_int_equal(stats().late, 2);
    send_invalidate(5, 1, 3); /* they moved nothing back */
    assert_string_equal(told, "IIIII");
    assert_int_equal(stats().gaps, 0);
}

static void
streams_that_mix_show_no_false_gap(void **state)
{
    (void)state;
    bring_up();
    for (uint64_t i = 1; i <= 100; i++) {
        send_invalidate(5, 1, i);
        send_invalidate(5, 2, 1000 + i); /* same sender, another connection; begun in the middle */
        send_invalidate(6, 1, 50 + i);   /* another sender that happens on the same number */
    }
    assert_int_equal(stats().gaps + stats().late, 0);
    assert_null(strchr(told, 'F'));
    assert_int_equal(told_count, 300);
}

static void
a_new_subscription_forgets_the_streams(void **state)
{
    (void)state;
    bring_up();
    send_invalidate(5, 1, 1);
    bus_lost("test");
    bring_up();
    send_invalidate(5, 1, 10); /* 2 to 9 were published while we were away: the flush has paid for them */
    assert_string_equal(told, "I");
    assert_int_equal(stats().gaps, 0);
}

static void
what_makes_no_sense_flushes(void **state)
{
    near_bytes key = near_key("k");
    uint8_t   *message;
    size_t     size;

    (void)state;
    bring_up();
    assert_int_equal(
        near__message_encode(NEAR__MESSAGE_INVALIDATE, 5, near_key("users"), &key, 1, &message, &size),
        NEAR_OK);
    bus_bytes(message, size); /* no stamp */
    assert_string_equal(told, "F");
    near__le64_put(message + 16, 1);
    bus_bytes(message, size); /* no number */
    assert_string_equal(told, "FF");
    near__le64_put(message + 24, 1);
    message[4] = 2; /* a version that we do not know */
    bus_bytes(message, size);
    assert_string_equal(told, "FFF");
    bus_bytes("", 0);
    assert_string_equal(told, "FFFF");
    message[4] = 1;
    bus_bytes(message, size); /* control */
    assert_string_equal(told, "FFFFI");
    assert_int_equal(stats().bad_messages, 4);
    assert_int_equal(stats().flushes, 5); /* the subscription's too */
    free(message);
}

/* ------------------------------------------------------------------------------------------------ own echoes */

static void
test_race10_own_echo_is_skipped_only_while_its_outcome_is_known(void **state)
{
    uint64_t self;

    (void)state;
    bring_up();
    self = near__coherence_sender(coherence);
    assert_true(self != 0);
    send_own(1, 1);
    assert_string_equal(told, "");
    assert_int_equal(stats().echoes, 1);
    near__coherence_doubt(coherence, 1);
    send_own(1, 2);
    assert_string_equal(told, "I");
    send_own(2, 1); /* control: another stream of ours is not doubted */
    assert_string_equal(told, "I");
    send_invalidate(self + 1, 2, 1); /* nor does our stream's number cover anybody else */
    assert_string_equal(told, "II");
    bus_lost("test");
    bring_up();
    send_own(1, 3); /* a doubt outlives the subscription: the server may execute it any time */
    assert_string_equal(told, "I");
}

/* Echoes prove nothing about streams: neither a jump nor a repetition in our own numbers means anything here. */
static void
own_echoes_advance_nothing(void **state)
{
    (void)state;
    bring_up();
    near__coherence_doubt(coherence, 7);
    send_own(1, 1);
    send_own(1, 5);
    send_own(7, 1);
    send_own(7, 9);
    send_own(7, 2);
    assert_int_equal(stats().gaps + stats().late, 0);
    assert_string_equal(told, "III");
}

static void
too_many_doubts_doubt_everything(void **state)
{
    (void)state;
    bring_up();
    for (uint64_t i = 1; i <= NEAR__DOUBTS_MAX; i++)
        near__coherence_doubt(coherence, i);
    near__coherence_doubt(coherence, 1); /* known: takes no room */
    send_own(5000, 1);
    assert_string_equal(told, "");
    for (uint64_t i = 1; i <= NEAR__DOUBTS_MAX; i++)
        send_own(i, 1);
    assert_int_equal(told_count, NEAR__DOUBTS_MAX);
    log_lines = 0;
    near__coherence_doubt(coherence, 4000);
    near__coherence_doubt(coherence, 4001);
    assert_int_equal(log_lines, 1);
    send_own(5000, 2);
    assert_int_equal(told_count, NEAR__DOUBTS_MAX + 1);
}

/* A machine was copied while it ran: two processes have one sender's name.  What the other one publishes, over connections of its
 * own, is nobody's echo; nor is what goes on in a stream that was ours before we subscribed anew, for that is where a copy begins. */
static void
a_twin_with_our_name_is_heard(void **state)
{
    struct beat_entry twin = { 901, 1, 2 };
    uint64_t          self;

    (void)state;
    bring_up();
    self = near__coherence_sender(coherence);
    send_own(900, 1);
    assert_string_equal(told, ""); /* control: our own */
    send_invalidate(self, 901, 1);
    assert_string_equal(told, "I");
    send_invalidate(self, 901, 3); /* and its numbers count */
    assert_int_equal(stats().gaps, 1);
    send_beat(self, 1, NULL, 0);
    send_beat(self, 2, &twin, 1);
    assert_int_equal(stats().gaps, 1);
    twin = (struct beat_entry){ 901, 4, 5 };
    send_beat(self, 3, &twin, 1);
    assert_int_equal(stats().gaps, 2);
    bus_lost("woken up somewhere else");
    bring_up();
    send_invalidate(self, 900, 2); /* the original goes on with what was ours, too */
    assert_string_equal(told, "I");
    send_own(902, 1); /* control */
    assert_string_equal(told, "I");
}

static void
a_position_is_applied_when_it_was_heard_and_taken(void **state)
{
    struct near__position at = { 5, 1, 3 };

    (void)state;
    bring_up();
    assert_false(near__coherence_applied(coherence, &at)); /* nobody has heard of it */
    send_invalidate(5, 1, 2);
    assert_false(near__coherence_applied(coherence, &at));
    send_invalidate(5, 1, 3);
    assert_true(near__coherence_applied(coherence, &at));
    at.sequence = 1; /* from before we began to listen: a flush covers it, but who knows */
    assert_false(near__coherence_applied(coherence, &at));
    at.sequence = UINT64_MAX;
    assert_false(near__coherence_applied(coherence, &at));
    at = (struct near__position){ 6, 1, 3 };
    assert_false(near__coherence_applied(coherence, &at));
    at.sender = 5;
    bus_lost("test");
    assert_false(near__coherence_applied(coherence, &at));
    bring_up();
    assert_false(near__coherence_applied(coherence, &at));
    send_invalidate(5, 1, 9);
    assert_false(near__coherence_applied(coherence, &at));
}

static near_status
publish(near_error *error)
{
    near_bytes  key = near_key("k");
    uint8_t    *message;
    size_t      size;
    near_status st;

    assert_int_equal(near__message_encode(NEAR__MESSAGE_INVALIDATE, near__coherence_sender(coherence),
                                          near_key("users"), &key, 1, &message, &size),
                     NEAR_OK);
    st = near__coherence_publish(coherence, message, size, 0, error);
    free(message);
    return st;
}

static void
a_publish_of_unknown_outcome_is_doubted_at_once(void **state)
{
    near_error error;

    (void)state;
    bring_up();
    assert_int_equal(publish(&error), NEAR_OK);
    bus_bytes(fake.published, fake.published_size);
    assert_string_equal(told, "");
    fake.publish_status = NEAR_ERR_UNAVAILABLE;
    fake.publish_stream = 0; /* certainly not sent */
    assert_int_equal(publish(&error), NEAR_ERR_UNAVAILABLE);
    assert_string_equal(error.text, "fake");
    fake.publish_status = NEAR_ERR_TIMEOUT;
    fake.publish_stream = 100;
    assert_int_equal(publish(&error), NEAR_ERR_TIMEOUT);
    bus_bytes(fake.published, fake.published_size);
    assert_string_equal(told, "I");
    assert_int_equal(stats().sent, 1);
    assert_int_equal(stats().send_failures, 2);
}

/* ------------------------------------------------------------------------------------------- link and life */

static void
the_log_says_each_change_once(void **state)
{
    (void)state;
    bus_subscribed();
    assert_int_equal(log_lines, 1);
    bus_lost("redis 10.0.0.7:6379: connection refused");
    assert_int_equal(log_lines, 2);
    assert_non_null(strstr(last_log, "10.0.0.7:6379: connection refused"));
    for (int i = 0; i < 100; i++) {
        test_clock_advance(&test_time, 100);
        bus_lost(i % 2 == 0 ? "redis: timed out" : "redis: connection refused");
    }
    assert_int_equal(log_lines, 2);
    test_clock_advance(&test_time, 60000);
    bus_lost("redis: WRONGPASS"); /* news, and the last line is a minute old */
    assert_int_equal(log_lines, 3);
    test_clock_advance(&test_time, 60000);
    bus_lost("redis: WRONGPASS");
    assert_int_equal(log_lines, 3);
    bus_subscribed();
    assert_int_equal(log_lines, 4);
    assert_non_null(strstr(last_log, "130000 ms"));
    for (int i = 0; i < 10; i++)
        bus_bytes("x", 1);
    assert_int_equal(log_lines, 5);
}

static void
await_ends_with_the_first_attempt(void **state)
{
    (void)state;
    assert_false(near__coherence_await(coherence, 0)); /* nothing has happened, and no time to wait */
    bus_lost("test");
    assert_false(near__coherence_await(coherence, NEAR_NEVER)); /* failed: does not hang */
    bus_subscribed();
    bus_heard(now());
    assert_true(near__coherence_await(coherence, NEAR_NEVER));
}

static void *
open_the_gate_soon(void *ctx)
{
    (void)ctx;
    bus_subscribed();
    bus_heard(now());
    return NULL;
}

static void
await_wakes_when_the_gate_opens(void **state)
{
    pthread_t thread;
    bool      open;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, open_the_gate_soon, NULL), 0);
    open = near__coherence_await(coherence, NEAR_NEVER);
    pthread_join(thread, NULL);
    assert_true(open);
}

static void
open_hands_the_settings_on_and_reports_failures(void **state)
{
    struct near__coherence_config config = configuration();
    struct near__bus_ops          ops    = fake_ops;
    struct near__coherence       *other;
    near_error                    error;

    (void)state;
    assert_string_equal(fake.env.channel, "channel");
    assert_int_equal(fake.env.heartbeat, HEARTBEAT);
    assert_int_equal(fake.env.silence, 2 * WINDOW);
    ops.version = 2;
    assert_int_equal(near__coherence_open_over(&other, &ops, &config, &error), NEAR_ERR_UNSUPPORTED);
    assert_null(other);
    ops      = fake_ops;
    ops.open = fake_refuse;
    assert_int_equal(near__coherence_open_over(&other, &ops, &config, &error), NEAR_ERR_NOMEM);
    assert_null(other);
    assert_int_equal(near__coherence_fence(coherence, 7, &error), NEAR_OK);
    assert_int_equal(near__coherence_fence(coherence, 8, &error), NEAR_ERR_TIMEOUT);
    near__coherence_free(&other); /* NULL inside */
}

static void
stop_forked_and_free_reach_the_bus(void **state)
{
    (void)state;
    near__coherence_stop(coherence);
    assert_true(fake.stopped && !fake.finished);
    near__coherence_forked(coherence);
    assert_true(fake.forked);
    near__coherence_free(&coherence);
    assert_true(fake.finished);
    assert_null(coherence);
}

/* --------------------------------------------------------------------------------------------- the streams */

static void
streams_forget_the_one_silent_longest(void **state)
{
    struct near__streams *s = near__streams_new();

    (void)state;
    assert_non_null(s);
    for (uint64_t i = 1; i <= NEAR__STREAMS_MAX; i++)
        assert_int_equal(near__streams_heard(s, 1, i, 1), NEAR__STREAM_FIRST);
    assert_int_equal(near__streams_heard(s, 1, 1, 2),
                     NEAR__STREAM_NEXT); /* 1 has spoken: 2 is the oldest now */
    assert_int_equal(near__streams_heard(s, 2, 1, 1), NEAR__STREAM_FIRST);
    assert_int_equal(near__streams_heard(s, 1, 1, 4), NEAR__STREAM_GAP);
    assert_int_equal(near__streams_heard(s, 1, 1, 5),
                     NEAR__STREAM_NEXT); /* counting goes on behind the gap */
    assert_int_equal(near__streams_heard(s, 1, 2, 9), NEAR__STREAM_FIRST); /* was forgotten, and 3 is now */
    assert_int_equal(near__streams_heard(s, 1, 4, 3), NEAR__STREAM_GAP);
    assert_int_equal(near__streams_heard(s, 1, 3, 3), NEAR__STREAM_FIRST);
    near__streams_forget(s);
    assert_int_equal(near__streams_heard(s, 1, 1, 9), NEAR__STREAM_FIRST);
    near__streams_free(&s);
    assert_null(s);
}

/* Against the simplest thing that could be right: an array in order of use. */
static void
streams_agree_with_a_naive_model(void **state)
{
    static struct {
        uint64_t sender, stream, last;
    } model[NEAR__STREAMS_MAX];
    struct near__streams *s      = near__streams_new();
    uint64_t              random = 7;
    size_t                count = 0, news[4] = { 0 };

    (void)state;
    for (size_t round = 0; round < test_scale(80000); round++) {
        uint64_t               sender = test_random(&random) % 3, stream = test_random(&random) % 6000;
        uint64_t               sequence = test_random(&random) % 6;
        enum near__stream_news expected = NEAR__STREAM_FIRST;
        size_t                 at       = 0;
        uint64_t               last     = sequence;

        while (at < count && (model[at].sender != sender || model[at].stream != stream))
            at++;
        if (at < count) {
            last     = model[at].last;
            expected = sequence <= last       ? NEAR__STREAM_LATE
                       : sequence == last + 1 ? NEAR__STREAM_NEXT
                                              : NEAR__STREAM_GAP;
            last     = sequence > last ? sequence : last;
        } else if (count < NEAR__STREAMS_MAX) {
            at = count++;
        } else {
            at = count - 1;
        }
        memmove(model + 1, model, at * sizeof(model[0]));
        model[0].sender = sender;
        model[0].stream = stream;
        model[0].last   = last;
        assert_int_equal(near__streams_heard(s, sender, stream, sequence), expected);
        news[expected]++;
    }
    for (size_t i = 0; i < 4; i++)
        assert_true(news[i] > 0);
    near__streams_free(&s);
}

#define WITH_BUS(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_BUS(gate_is_closed_before_the_first_heard),
        WITH_BUS(test_G2_gate_closes_when_the_window_has_passed_since_the_question),
        WITH_BUS(an_older_answer_moves_the_gate_nowhere),
        WITH_BUS(a_time_that_never_comes_keeps_the_gate_open),
        WITH_BUS(test_race13_lost_bus_leaves_the_gate_to_its_window),
        WITH_BUS(test_race14_flush_comes_between_the_acknowledgement_and_the_gate),
        WITH_BUS(test_race15_answer_to_a_question_from_before_the_subscription_opens_nothing),
        WITH_BUS(an_answer_while_the_bus_is_lost_opens_nothing),
        WITH_BUS(messages_reach_the_sink),
        WITH_BUS(test_race18_any_dropped_message_flushes),
        WITH_BUS(test_race18_a_lost_first_or_last_message_is_noticed_by_the_beat),
        WITH_BUS(a_first_beat_in_the_middle_costs_one_flush),
        WITH_BUS(beats_say_what_was_published_lately),
        WITH_BUS(a_storm_of_rubbish_closes_the_gate_and_is_never_ignored),
        WITH_BUS(servers_that_come_and_go_are_no_storm),
        WITH_BUS(changes_told_by_the_server_reach_the_sink),
        WITH_BUS(test_G6_suspected_server_closes_the_gate_at_once),
        WITH_BUS(a_beat_is_judged_when_every_link_has_brought_it),
        WITH_BUS(test_race17_duplicates_and_late_messages_are_applied),
        WITH_BUS(streams_that_mix_show_no_false_gap),
        WITH_BUS(a_new_subscription_forgets_the_streams),
        WITH_BUS(what_makes_no_sense_flushes),
        WITH_BUS(test_race10_own_echo_is_skipped_only_while_its_outcome_is_known),
        WITH_BUS(own_echoes_advance_nothing),
        WITH_BUS(a_twin_with_our_name_is_heard),
        WITH_BUS(a_position_is_applied_when_it_was_heard_and_taken),
        WITH_BUS(too_many_doubts_doubt_everything),
        WITH_BUS(a_publish_of_unknown_outcome_is_doubted_at_once),
        WITH_BUS(the_log_says_each_change_once),
        WITH_BUS(await_ends_with_the_first_attempt),
        WITH_BUS(await_wakes_when_the_gate_opens),
        WITH_BUS(open_hands_the_settings_on_and_reports_failures),
        WITH_BUS(stop_forked_and_free_reach_the_bus),
        cmocka_unit_test(streams_forget_the_one_silent_longest),
        cmocka_unit_test(streams_agree_with_a_naive_model),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
