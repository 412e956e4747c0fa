/*
 * Coherence when something is refused, memory and random bytes among it, and when its sink is asked in the middle of its work.  What it does
 * otherwise is test_coherence; over the memory: bus, test_bus_memory.
 *
 * Linked with --wrap for the allocator and for what gives random bytes.
 */
#define TEST_NAME "coherence_faults"
#include "harness/shortage.h"
#include "harness/test.h"

#include "base/hash.h"
#include "base/le.h"
#include "coherence/bus.h"
#include "coherence/coherence.h"
#include "coherence/lag.h"
#include "coherence/message.h"
#include "coherence/streams.h"
#include "l2/stream.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WINDOW (50 * NEAR_MS)

/* ---- random bytes: refused, or zeros at first */

static bool     no_random, no_secret;
static unsigned zeros;

bool        __real_near__random(void *out, size_t size);
bool        __wrap_near__random(void *out, size_t size);
near_status __real_near__secret_init(struct near__secret *secret);
near_status __wrap_near__secret_init(struct near__secret *secret);

bool
__wrap_near__random(void *out, size_t size)
{
    if (zeros > 0) {
        zeros--;
        memset(out, 0, size);
        return true;
    }
    return !no_random && __real_near__random(out, size);
}

near_status
__wrap_near__secret_init(struct near__secret *secret)
{
    return no_secret ? NEAR_ERR_UNAVAILABLE : __real_near__secret_init(secret);
}

/* ---- a bus played by hand */

static struct near__bus_env env;
static bool                 selfless; /* it needs no self, as its table may say */
static near_status          publish_status;
static uint64_t             published;
static uint8_t              last[4096];
static size_t               last_size;

static near_status
played_open(void **self, const struct near__bus_env *given, near_error *error)
{
    (void)error;
    env   = *given;
    *self = selfless ? NULL : &env;
    return NEAR_OK;
}

static near_status
played_publish(void *self, uint8_t *message, size_t size, size_t stamp_at, uint64_t *stream, int64_t deadline,
               near_error *error)
{
    (void)self, (void)deadline;
    *stream = 99;
    near__stream_claim(99);
    near__le64_put(message + stamp_at, 99);
    near__le64_put(message + stamp_at + 8, ++published);
    last_size = size < sizeof(last) ? size : sizeof(last);
    memcpy(last, message, last_size);
    return publish_status == NEAR_OK ? NEAR_OK : near__fail(error, publish_status, "played");
}

static near_status
played_fence(void *self, int64_t deadline, near_error *error)
{
    (void)self, (void)deadline, (void)error;
    return NEAR_OK;
}

static void
nothing(void *self)
{
    (void)self;
}

static const struct near__bus_ops played = {
    .version = NEAR__BUS_OPS_V1,
    .scheme  = "played",
    .open    = played_open,
    .publish = played_publish,
    .fence   = played_fence,
    .stop    = nothing,
    .fini    = nothing,
    .forked  = nothing,
    .beats   = true,
};

/* ---- the sink, and what it does when it is called */

static struct near__coherence *coherence;
static struct test_clock       test_time;
static unsigned                flushes, invalidations;
static void (*in_flush)(void);
static void (*in_invalidate)(void);

static void
once(void (**what)(void))
{
    void (*now)(void) = *what;

    *what = NULL;
    if (now != NULL)
        now();
}

static void
sink_key(void *ctx, near_bytes cache, near_bytes key)
{
    (void)ctx, (void)cache, (void)key;
    invalidations++;
    once(&in_invalidate);
}

static void
sink_cleared(void *ctx, near_bytes cache, uint64_t generation)
{
    (void)ctx, (void)cache, (void)generation;
}

static void
sink_tagged(void *ctx, near_bytes cache, near_bytes tag, uint64_t lineage, uint64_t moment)
{
    (void)ctx, (void)cache, (void)tag, (void)lineage, (void)moment;
}

static void
sink_flush(void *ctx)
{
    (void)ctx;
    flushes++;
    once(&in_flush);
}

static struct near__uri uri;

static struct near__coherence_config
configuration(void)
{
    return (struct near__coherence_config){
        .uri             = &uri,
        .clock           = &test_time.clock,
        .channel         = "channel",
        .client_name     = "test",
        .heartbeat       = 10 * NEAR_MS,
        .serve_window    = WINDOW,
        .connect_timeout = 100 * NEAR_MS,
        .sink = { NULL, sink_key, sink_key, sink_cleared, sink_tagged, sink_flush, NULL, sink_key },
    };
}

static near_status
open_over(const struct near__bus_ops *ops)
{
    struct near__coherence_config config = configuration();

    return near__coherence_open_over(&coherence, ops, &config, NULL);
}

static int
setup(void **state)
{
    (void)state;
    uri = (struct near__uri){ .kind = NEAR__URI_MEMORY, .scheme = "memory" };
    test_clock_init(&test_time, 1000 * NEAR_MS);
    published = flushes = invalidations = 0;
    publish_status                      = NEAR_OK;
    in_flush = in_invalidate = NULL;
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    no_random = no_secret = selfless = false;
    zeros                            = 0;
    shortage_end();
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
bring_up(void)
{
    assert_int_equal(open_over(&played), NEAR_OK);
    env.listener.subscribed(env.listener.ctx);
    env.listener.heard(env.listener.ctx, now());
    assert_true(gate_is_open());
    flushes = 0;
}

static void
hear(enum near__message_kind kind, uint64_t sender, uint64_t stream, uint64_t sequence,
     const near_bytes *keys, size_t n)
{
    uint8_t *message;
    size_t   size;

    assert_int_equal(
        near__message_encode(kind, sender,
                             near_key(kind == NEAR__MESSAGE_BEAT ? NEAR__MESSAGE_BEAT_CACHE : "users"), keys,
                             n, &message, &size),
        NEAR_OK);
    near__le64_put(message + NEAR__MESSAGE_STAMP_AT, stream);
    near__le64_put(message + NEAR__MESSAGE_STAMP_AT + 8, sequence);
    env.listener.message(env.listener.ctx, (near_bytes){ message, size });
    free(message);
}

static void
hear_rubbish(void)
{
    env.listener.message(env.listener.ctx, near_key("rubbish"));
}

/* A beat of `sender` that tells of numbers 1 to `upto` in stream 5. */
static void
hear_beat(uint64_t sender, uint64_t number, uint64_t upto)
{
    uint8_t    bytes[2][24] = { { 0 } };
    near_bytes keys[2]      = { { bytes[0], 8 }, { bytes[1], 24 } };

    near__le64_put(bytes[0], number);
    near__le64_put(bytes[1], 5);
    near__le64_put(bytes[1] + 8, 1);
    near__le64_put(bytes[1] + 16, upto);
    hear(NEAR__MESSAGE_BEAT, sender, 77, number, keys, 2);
}

static near_status
publish(enum near__message_kind kind)
{
    near_bytes  key = near_key("k");
    uint8_t    *message;
    size_t      size;
    near_status status;

    assert_int_equal(near__message_encode(kind, near__coherence_sender(coherence), near_key("users"), &key, 1,
                                          &message, &size),
                     NEAR_OK);
    status = near__coherence_publish(coherence, message, size, NEAR_NEVER, NULL);
    free(message);
    return status;
}

/* ---- opening */

/* Opens with the n-th allocation refused, for all n.  How many there are. */
static long
refuse_each_allocation(near_status (*open)(void))
{
    for (long n = 0;; n++) {
        near_status status;

        shortage_count = 0;
        shortage_begin(n, false);
        status = open();
        shortage_end();
        if (shortage_count == 0) {
            assert_int_equal(status, NEAR_OK);
            near__coherence_stop(coherence);
            near__coherence_free(&coherence);
            return n;
        }
        assert_int_equal(status, NEAR_ERR_NOMEM);
        assert_null(coherence);
    }
}

static near_status
open_played(void)
{
    return open_over(&played);
}

static near_status
open_memory(void)
{
    return open_over(&near__bus_memory);
}

static void
opening_without_memory(void **state)
{
    (void)state;
    assert_int_equal(refuse_each_allocation(open_played), 2);
    assert_in_range(refuse_each_allocation(open_memory), 4, 5); /* the process's registry is made once */
}

static void
opening_without_random_bytes(void **state)
{
    (void)state;
    no_random = true;
    assert_int_equal(open_over(&played), NEAR_ERR_UNAVAILABLE);
    no_random = false;
    no_secret = true;
    assert_int_equal(open_over(&played), NEAR_ERR_NOMEM);
    no_secret = false;
    zeros     = 2; /* 0 is no name */
    assert_int_equal(open_over(&played), NEAR_OK);
    assert_int_not_equal(near__coherence_sender(coherence), 0);
}

static void
a_scheme_without_a_bus(void **state)
{
    struct near__coherence_config config = configuration();
    near_error                    error;

    (void)state;
    snprintf(uri.scheme, sizeof(uri.scheme), "pigeon");
    assert_int_equal(near__coherence_open(&coherence, &config, &error), NEAR_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.text, "no bus for pigeon:"));
    assert_null(coherence);
}

/* A pause between PINGs so long that three of them are more than a number holds. */
static void
a_heartbeat_that_never_comes(void **state)
{
    struct near__coherence_config config = configuration();

    (void)state;
    config.heartbeat = NEAR_NEVER / 2;
    assert_int_equal(near__coherence_open_over(&coherence, &played, &config, NULL), NEAR_OK);
    assert_true(env.silence == NEAR_NEVER);
}

static void
a_bus_without_a_self(void **state)
{
    (void)state;
    selfless = true;
    assert_int_equal(open_over(&played), NEAR_OK);
    near__coherence_stop(coherence); /* there is nothing to stop */
    near__coherence_forked(coherence);
    near__coherence_free(&coherence);
    assert_null(coherence);
}

/* ---- the memory: bus */

static void
heard_nothing(void *ctx, int64_t since)
{
    (void)ctx, (void)since;
}

static void
publishing_in_memory_without_random_bytes(void **state)
{
    const struct near__bus_env alone  = { .uri      = &uri,
                                          .listener = { .subscribed = nothing, .heard = heard_nothing } };
    uint64_t                   stream = 7;
    uint8_t                    message[32];
    void                      *member = NULL;

    (void)state;
    assert_int_equal(open_over(&near__bus_memory), NEAR_OK);
    no_random = true;
    assert_int_equal(publish(NEAR__MESSAGE_INVALIDATE), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(stats().send_failures, 1);
    no_random = false;
    zeros     = 1; /* 0 is no stream */
    assert_int_equal(publish(NEAR__MESSAGE_INVALIDATE), NEAR_OK);
    assert_int_equal(stats().sent, 1);
    assert_false(near__coherence_announces(coherence));
    assert_int_equal(near__coherence_announce(coherence, "news", near_key("text"), NEAR_NEVER, NULL),
                     NEAR_ERR_UNSUPPORTED);
    near__bus_memory.fini(NULL);
    /* a member by itself: after its stop everything is refused */
    assert_int_equal(near__bus_memory.open(&member, &alone, NULL), NEAR_OK);
    near__bus_memory.stop(member);
    assert_int_equal(near__bus_memory.publish(member, message, sizeof(message), 8, &stream, NEAR_NEVER, NULL),
                     NEAR_ERR_CLOSED);
    assert_int_equal(stream, 0);
    assert_int_equal(near__bus_memory.fence(member, NEAR_NEVER, NULL), NEAR_ERR_CLOSED);
    near__bus_memory.fini(member);
}

/* What is the parent's is left alone, and what is ours alone is freed: a leak is seen by the sanitizer. */
static void
a_child_lets_go_of_its_member(void **state)
{
    static const char *const names[] = { "", "shared" };

    (void)state;
    if (TEST_UNDER_TSAN)
        skip();
    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++) {
        pid_t child;
        int   status;

        snprintf(uri.name, sizeof(uri.name), "%s", names[i]);
        assert_int_equal(open_over(&near__bus_memory), NEAR_OK);
        child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            near__coherence_forked(coherence);
            near__coherence_free(&coherence);
            /* and a bus of its own is to be had, of the same name */
            _exit(open_over(&near__bus_memory) == NEAR_OK && publish(NEAR__MESSAGE_INVALIDATE) == NEAR_OK
                      ? 7
                      : 1);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
        near__coherence_stop(coherence);
        near__coherence_free(&coherence);
    }
}

/* ---- beats */

/* A beat that could not be made is said by the next one: it keeps its number. */
static void
a_beat_without_memory(void **state)
{
    struct near__message m;
    near_bytes           key;
    size_t               at = 0;
    long                 n;

    (void)state;
    bring_up();
    assert_int_equal(publish(NEAR__MESSAGE_INVALIDATE), NEAR_OK);
    for (n = 0;; n++) {
        shortage_count = 0;
        shortage_begin(n, false);
        env.listener.beat(env.listener.ctx);
        shortage_end();
        if (shortage_count == 0)
            break;
        assert_int_equal(stats().beats, 0);
    }
    assert_int_equal(n, 4);
    assert_int_equal(stats().beats, 1);
    assert_true(near__message_decode(&m, (near_bytes){ last, last_size }));
    assert_int_equal(m.kind, NEAR__MESSAGE_BEAT);
    assert_true(near__message_next(&m, &at, &key));
    assert_int_equal(near__le64_get(key.data), 1); /* the first */
    publish_status = NEAR_ERR_TIMEOUT;             /* nor is one that may have been lost */
    env.listener.beat(env.listener.ctx);
    assert_int_equal(stats().beats, 1);
}

/* An own beat that comes back of a doubted stream is no message of somebody else's. */
static void
an_own_beat_of_a_doubted_stream(void **state)
{
    (void)state;
    bring_up();
    near__stream_claim(77);
    near__coherence_doubt(coherence, 77);
    hear_beat(near__coherence_sender(coherence), 1, 9);
    env.listener.heard(env.listener.ctx, now());
    assert_int_equal(flushes, 0);
    assert_int_equal(stats().gaps, 0);
    near__stream_disclaim(77);
    hear_beat(4711, 1, 9); /* the control: somebody else's, which tells of what was not heard */
    env.listener.heard(env.listener.ctx, now());
    assert_int_equal(flushes, 1);
}

/* Who hears of a lack while L1 is being flushed for the one before is not done with that flush. */
static void
another_beat_while_making_sure(void)
{
    hear_beat(4712, 1, 9);
}

static void
a_lack_that_is_told_of_during_the_flush_for_another(void **state)
{
    (void)state;
    bring_up();
    hear_beat(4711, 1, 9);
    in_flush = another_beat_while_making_sure;
    env.listener.heard(env.listener.ctx, now());
    assert_int_equal(flushes, 1);
    env.listener.heard(env.listener.ctx, now());
    assert_int_equal(flushes, 2);
    env.listener.heard(env.listener.ctx, now());
    assert_int_equal(flushes, 2);
}

/* ---- storms and the gate */

static void
storm(void)
{
    for (unsigned i = 0; i < 17; i++) /* one more than are flushed for in a second */
        hear_rubbish();
}

/* It goes on during the flush that was to be its end: the gate stays closed. */
static void
a_storm_that_goes_on_while_it_ends(void **state)
{
    (void)state;
    bring_up();
    storm();
    assert_false(gate_is_open());
    test_clock_advance(&test_time, 1001);
    in_flush = hear_rubbish;
    env.listener.heard(env.listener.ctx, now());
    test_clock_advance(&test_time, 1);
    env.listener.heard(env.listener.ctx, now());
    assert_false(gate_is_open());
    test_clock_advance(&test_time, 1001);
    env.listener.heard(env.listener.ctx, now()); /* the end */
    test_clock_advance(&test_time, 1);
    env.listener.heard(env.listener.ctx, now());
    assert_true(gate_is_open());
}

/* Nobody would open it again: each message is flushed for. */
static void
a_gate_that_is_open_for_ever_is_not_closed_by_a_storm(void **state)
{
    (void)state;
    assert_int_equal(open_over(&played), NEAR_OK);
    env.listener.subscribed(env.listener.ctx);
    env.listener.heard(env.listener.ctx, NEAR_NEVER);
    flushes = 0;
    storm();
    storm();
    assert_int_equal(flushes, 34);
    assert_true(near__coherence_gate(coherence) == NEAR_NEVER);
    assert_int_equal(stats().storms, 0);
}

/* Twice by hand: it was closed when it was closed first. */
static void
a_closed_gate_that_is_closed_again(void **state)
{
    const struct near__histogram *echo, *closures;
    struct near__histogram_sums   sums = { 0 };

    (void)state;
    bring_up();
    env.listener.suspected(env.listener.ctx);
    test_clock_advance(&test_time, 30);
    env.listener.suspected(env.listener.ctx);
    env.listener.subscribed(env.listener.ctx);
    test_clock_advance(&test_time, 1);
    env.listener.heard(env.listener.ctx, now());
    near__coherence_histograms(coherence, &echo, &closures);
    near__histogram_read(closures, &sums);
    assert_int_equal(sums.count, 1);
    assert_in_range(sums.sum, 30 * NEAR_MS, 32 * NEAR_MS);
}

/* Without somebody to tell of one key, all are taken for changed. */
static void
a_change_that_nobody_wants_to_hear_of(void **state)
{
    (void)state;
    bring_up();
    env.listener.changed(env.listener.ctx, near_key("users:1"));
    assert_int_equal(flushes, 1);
    assert_int_equal(stats().changed, 0);
}

/* ---- publishing, positions */

static void
a_filled_of_unknown_outcome_is_not_doubted(void **state)
{
    near_bytes key = near_key("k");

    (void)state;
    bring_up();
    publish_status = NEAR_ERR_TIMEOUT;
    assert_int_equal(publish(NEAR__MESSAGE_FILLED), NEAR_ERR_TIMEOUT);
    hear(NEAR__MESSAGE_INVALIDATE, near__coherence_sender(coherence), 99, 1, &key, 1);
    assert_int_equal(invalidations, 0);
    assert_int_equal(publish(NEAR__MESSAGE_INVALIDATE), NEAR_ERR_TIMEOUT); /* the control */
    hear(NEAR__MESSAGE_INVALIDATE, near__coherence_sender(coherence), 99, 2, &key, 1);
    assert_int_equal(invalidations, 1);
}

static struct near__position asked;
static bool                  applied;

static void
ask_position(void)
{
    applied = near__coherence_applied(coherence, &asked);
}

/* Noted as heard, and still in the hands of the sink. */
static void
a_message_being_applied_is_not_applied(void **state)
{
    near_bytes key = near_key("k");

    (void)state;
    bring_up();
    asked         = (struct near__position){ 4711, 5, 1 };
    applied       = true;
    in_invalidate = ask_position;
    hear(NEAR__MESSAGE_INVALIDATE, 4711, 5, 1, &key, 1);
    assert_false(applied);
    ask_position();
    assert_true(applied);
}

/* Where each message comes on two links, what one has brought says nothing of the other's earlier ones. */
static void
positions_over_two_links(void **state)
{
    near_bytes key = near_key("k");

    (void)state;
    uri.layout        = NEAR__LAYOUT_SINGLE;
    uri.address_count = 2;
    bring_up();
    asked = (struct near__position){ 4711, 5, 1 };
    hear(NEAR__MESSAGE_INVALIDATE, 4711, 5, 1, &key, 1);
    ask_position();
    assert_false(applied);
}

/* ---- the numbers */

static void
streams_that_are_told_of(void **state)
{
    struct near__streams *s = near__streams_new();

    (void)state;
    assert_non_null(s);
    assert_int_equal(near__streams_announced(s, 1, 1, 3, 5, false),
                     NEAR__STREAM_FIRST); /* perhaps before our time */
    assert_int_equal(near__streams_announced(s, 1, 2, 3, 5, true), NEAR__STREAM_GAP);
    assert_int_equal(near__streams_announced(s, 1, 1, 3, 5, true), NEAR__STREAM_NEXT);
    assert_int_equal(near__streams_announced(s, 1, 1, 2, 5, false), NEAR__STREAM_NEXT);
    assert_int_equal(near__streams_announced(s, 1, 1, 1, 5, true),
                     NEAR__STREAM_GAP); /* an earlier one is missing */
    assert_int_equal(near__streams_announced(s, 1, 1, 1, 6, false), NEAR__STREAM_GAP);
    for (uint64_t i = 0; i <= NEAR__STREAMS_MAX; i++) /* more than there is room for */
        near__streams_heard(s, 2, i, 3);
    /* what is not known may have been, and what is known may have been before */
    assert_int_equal(near__streams_announced(s, 1, 1, 3, 5, true), NEAR__STREAM_FIRST);
    assert_int_equal(near__streams_announced(s, 2, NEAR__STREAMS_MAX, 1, 3, true), NEAR__STREAM_NEXT);
    for (unsigned i = 1; i < 300; i++)
        assert_int_equal(near__streams_copies(s, 3, 8), i < 127 ? i : 127);
    near__streams_free(&s);
}

static void
what_was_sent_lately(void **state)
{
    static struct near__sent sent, told;

    (void)state;
    near__sent_note(&sent, 1, 5);
    near__sent_note(&sent, 1, 4); /* two threads, in the other order */
    assert_int_equal(sent.streams[0].first, 4);
    assert_int_equal(sent.streams[0].last, 5);
    told = sent;
    near__sent_note(&sent, 1, 3);
    near__sent_told(&sent, &told); /* it is not as it was told */
    assert_int_equal(sent.streams[0].told, 0);
    for (uint64_t i = 2; i < 2 * NEAR__SENT_MAX; i++)
        near__sent_note(&sent, i, 1);
    assert_int_equal(sent.count, NEAR__SENT_MAX); /* more are not announced */
    for (unsigned i = 0; i <= NEAR__SENT_TRAIL; i++) {
        assert_true(near__sent_due(&sent));
        told = sent;
        near__sent_told(&sent, &told);
    }
    assert_false(near__sent_due(&sent));
}

/* The clock is read by two threads: what was heard before it was sent took no time. */
static void
a_lag_is_never_negative(void **state)
{
    struct near__lag lag = { 0 };

    (void)state;
    assert_int_equal(near__lag_note(&lag, 1, 1, 100, false), -1);
    assert_int_equal(near__lag_note(&lag, 1, 1, 90, true), 0);
    assert_int_equal(near__lag_note(&lag, 1, 2, 100, true), -1);
    assert_int_equal(near__lag_note(&lag, 1, 2, 110, false), 0);
    assert_int_equal(near__lag_note(&lag, 1, 3, 100, true), -1);
    assert_int_equal(near__lag_note(&lag, 1, 3, 90, false), 10);
    assert_int_equal(near__lag_note(&lag, 1, 4, 100, true), -1);
    assert_int_equal(near__lag_note(&lag, 1, 4, 100, true), -1); /* twice the same half */
}

/* A tag's tail without a tag, and two tags in a message. */
static void
tags_that_make_no_sense(void **state)
{
    uint8_t    tail[NEAR__MESSAGE_TAG_TAIL + 1] = { 't' };
    near_bytes keys[2] = { { tail, NEAR__MESSAGE_TAG_TAIL }, { tail, sizeof(tail) } };

    (void)state;
    bring_up();
    hear(NEAR__MESSAGE_TAG, 4711, 5, 1, keys, 1);
    assert_int_equal(stats().bad_messages, 1);
    keys[0] = keys[1];
    hear(NEAR__MESSAGE_TAG, 4711, 5, 2, keys, 2);
    assert_int_equal(stats().bad_messages, 2);
    hear(NEAR__MESSAGE_TAG, 4711, 5, 3, keys, 1);
    assert_int_equal(stats().bad_messages, 2);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    static const struct CMUnitTest tests[] = {
        TEST(opening_without_memory),
        TEST(opening_without_random_bytes),
        TEST(a_scheme_without_a_bus),
        TEST(a_heartbeat_that_never_comes),
        TEST(a_bus_without_a_self),
        TEST(publishing_in_memory_without_random_bytes),
        TEST(a_child_lets_go_of_its_member),
        TEST(a_beat_without_memory),
        TEST(an_own_beat_of_a_doubted_stream),
        TEST(a_lack_that_is_told_of_during_the_flush_for_another),
        TEST(a_storm_that_goes_on_while_it_ends),
        TEST(a_gate_that_is_open_for_ever_is_not_closed_by_a_storm),
        TEST(a_closed_gate_that_is_closed_again),
        TEST(a_change_that_nobody_wants_to_hear_of),
        TEST(a_filled_of_unknown_outcome_is_not_doubted),
        TEST(a_message_being_applied_is_not_applied),
        TEST(positions_over_two_links),
        TEST(streams_that_are_told_of),
        TEST(what_was_sent_lately),
        TEST(a_lag_is_never_negative),
        TEST(tags_that_make_no_sense),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
