/*
 * The Redis bus against a server that answers what a row says: replies of the wrong shape, refusals, silence, roles that change, maps of a
 * cluster that make no sense.  What a real server and a bad link do is integration/test_bus, integration/test_cluster_tracking.
 *
 * What the server says is a string per command, changed at any time: NULL is the right answer, "" none.
 */
#define TEST_NAME "bus_script"
#include "harness/script.h"
#include "harness/test.h"

#include "base/lock.h"
#include "coherence/bus.h"
#include "l2/stream.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define HEARTBEAT (10 * NEAR_MS)
#define SILENCE   (800 * NEAR_MS)
#define TIMEOUT   (500 * NEAR_MS)

/* ------------------------------------------------------------------------------------------------ the server */

enum word { GET, ROLE, INFO, ID, TRACKING, SUBSCRIBE, INVALIDATE, PING, PUBLISH, CLUSTER_INFO, NODES, WORDS };

static _Atomic(const char *) says[WORDS];
static atomic_uint           heard[WORDS]; /* commands of each kind */
static struct test_script    server, other;

#define SUBSCRIBED    "*3\r\n$9\r\nsubscribe\r\n$3\r\nbus\r\n:1\r\n"
#define INVALIDATION  "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n"
#define MESSAGE(text) "*3\r\n$7\r\nmessage\r\n$3\r\nbus\r\n$3\r\n" text "\r\n"
#define WELL          "cluster_state:ok\r\ncluster_current_epoch:%d\r\ncluster_size:1\r\ncluster_known_nodes:1\r\n"

static enum word
word_of(size_t argc, const near_bytes *argv)
{
    static const char *const words[] = { "GET", "ROLE", "INFO", NULL, NULL, NULL, NULL, "PING", "PUBLISH" };

    if (test_script_is(argv, argc, 0, "CLIENT"))
        return test_script_is(argv, argc, 1, "ID") ? ID : TRACKING;
    if (test_script_is(argv, argc, 0, "SUBSCRIBE"))
        return test_script_is(argv, argc, 1, "__redis__:invalidate") ? INVALIDATE : SUBSCRIBE;
    if (test_script_is(argv, argc, 0, "CLUSTER"))
        return test_script_is(argv, argc, 1, "INFO") ? CLUSTER_INFO : NODES;
    for (size_t i = 0; i < NEAR_COUNT_OF(words); i++)
        if (words[i] != NULL && test_script_is(argv, argc, 0, words[i]))
            return (enum word)i;
    return WORDS;
}

static void
bulk(char *out, size_t size, const char *text)
{
    snprintf(out, size, "$%zu\r\n%s\r\n", strlen(text), text);
}

static void
right_answer(enum word word, const near_bytes *argv, char *out, size_t size)
{
    static const char *const fixed[WORDS] = {
        [GET] = "$-1\r\n",        [ROLE] = "*1\r\n$6\r\nmaster\r\n",
        [ID] = ":7\r\n",          [TRACKING] = "+OK\r\n",
        [SUBSCRIBE] = SUBSCRIBED, [INVALIDATE] = "*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n",
        [PUBLISH] = ":1\r\n",
    };
    char text[200];

    switch (word) {
    case INFO:
        bulk(out, size, "run_id:abc\r\n");
        return;
    case PING: /* always with a number */
        snprintf(out, size, "*2\r\n$4\r\npong\r\n$%zu\r\n%.*s\r\n", argv[1].size, (int)argv[1].size,
                 (const char *)argv[1].data);
        return;
    case CLUSTER_INFO:
        snprintf(text, sizeof(text), WELL, 1);
        bulk(out, size, text);
        return;
    case NODES:
        snprintf(text, sizeof(text), "id 127.0.0.1:%d@1 myself,master - 0 0 1 connected 0-16383\n",
                 server.port);
        bulk(out, size, text);
        return;
    default:
        snprintf(out, size, "%s", word < WORDS ? fixed[word] : "-ERR unknown\r\n");
    }
}

static enum test_script_verdict
play(struct test_script *script, unsigned conn, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    enum word   word = word_of(argc, argv);
    const char *said = word < WORDS ? atomic_load(&says[word]) : NULL;

    (void)script, (void)conn;
    if (said == NULL)
        right_answer(word, argv, out, size);
    else
        snprintf(out, size, "%s", said);
    if (word < WORDS)
        atomic_fetch_add(&heard[word], 1);
    return said != NULL && said[0] == '\0' ? TEST_SCRIPT_MUTE : TEST_SCRIPT_SAY;
}

/* ----------------------------------------------------------------------------------------- bus and listener */

static struct {
    pthread_mutex_t lock;
    unsigned        subscribed, lost, suspected, changed, all_changed, heard;
    char            messages[256], keys[256], reason[256], log[2048];
} told = { .lock = PTHREAD_MUTEX_INITIALIZER };

static struct near__uri     uri;
static struct near__bus_env env;
static void                *bus;
static near_error           error;

static void
add(char *list, size_t size, near_bytes text)
{
    size_t used = strlen(list);

    snprintf(list + used, size - used, "%s%.*s", used > 0 ? " " : "", (int)text.size,
             (const char *)text.data);
}

#define TOLD(what)                                                                                           \
    do {                                                                                                     \
        (void)ctx;                                                                                           \
        pthread_mutex_lock(&told.lock);                                                                      \
        what;                                                                                                \
        pthread_mutex_unlock(&told.lock);                                                                    \
    } while (0)

static void
on_subscribed(void *ctx)
{
    TOLD(told.subscribed++);
}

static void
on_message(void *ctx, near_bytes message)
{
    TOLD(add(told.messages, sizeof(told.messages), message));
}

static void
on_changed(void *ctx, near_bytes key)
{
    TOLD(if (key.data == NULL) told.all_changed++; else add(told.keys, sizeof(told.keys), key));
}

static void
on_heard(void *ctx, int64_t since)
{
    (void)since;
    TOLD(told.heard++);
}

static void
on_suspected(void *ctx)
{
    TOLD(told.suspected++);
}

static void
on_lost(void *ctx, const char *why)
{
    TOLD(told.lost++; snprintf(told.reason, sizeof(told.reason), "%s", why));
}

static void
log_write(void *ctx, near_log_level level, const char *message)
{
    (void)level;
    TOLD(add(told.log, sizeof(told.log), near_key(message)));
}

static const struct near__log logger = { log_write, NULL };

static unsigned
number(const unsigned *of)
{
    unsigned n;

    pthread_mutex_lock(&told.lock);
    n = *of;
    pthread_mutex_unlock(&told.lock);
    return n;
}

static void
zero(unsigned *of)
{
    pthread_mutex_lock(&told.lock);
    *of = 0;
    pthread_mutex_unlock(&told.lock);
}

static bool
text_has(const char *text, const char *part)
{
    bool has;

    pthread_mutex_lock(&told.lock);
    has = strstr(text, part) != NULL;
    pthread_mutex_unlock(&told.lock);
    return has;
}

static struct near__bus_state
state_of_bus(void)
{
    struct near__bus_state state;

    near__bus_redis.state(bus, &state);
    return state;
}

static void
open_bus(const char *scheme, const char *prefix)
{
    char text[64];

    snprintf(text, sizeof(text), "%s://127.0.0.1:%d", scheme, server.port);
    assert_int_equal(near__uri_parse(&uri, "coherence.uri", text, &error), NEAR_OK);
    env = (struct near__bus_env){
        .uri             = &uri,
        .clock           = &near__clock_system,
        .log             = &logger,
        .channel         = "bus",
        .client_name     = "test",
        .heartbeat       = HEARTBEAT,
        .silence         = SILENCE,
        .serve_window    = 50 * NEAR_MS,
        .prefix          = prefix,
        .connect_timeout = TIMEOUT,
        .listener = { NULL, on_subscribed, on_message, on_changed, on_heard, on_suspected, on_lost, NULL },
    };
    assert_int_equal(near__bus_named(scheme)->open(&bus, &env, &error), NEAR_OK);
}

static int
setup(void **state)
{
    (void)state;
    for (size_t i = 0; i < WORDS; i++) {
        atomic_store(&says[i], NULL);
        atomic_store(&heard[i], 0);
    }
    told.subscribed = told.lost = told.suspected = told.changed = told.all_changed = told.heard = 0;
    told.messages[0] = told.keys[0] = told.reason[0] = told.log[0] = '\0';
    return test_script_start(&server, play, NULL) ? 0 : -1;
}

static void
close_bus(void)
{
    if (bus != NULL) {
        near__bus_redis.stop(bus);
        near__bus_redis.fini(bus);
    }
    bus = NULL;
}

static int
teardown(void **state)
{
    (void)state;
    close_bus();
    test_script_stop(&server);
    test_script_stop(&other);
    return 0;
}

/* ---- waiting */

struct wish {
    const unsigned *of;
    unsigned        least;
    const char     *text, *part;
};

static int
came_true(void *ctx)
{
    struct wish *wish = ctx;

    return wish->of != NULL ? number(wish->of) >= wish->least : text_has(wish->text, wish->part);
}

static void
await(const unsigned *of, unsigned least)
{
    struct wish wish = { .of = of, .least = least };

    assert_true(test_wait_for(came_true, &wish, 10000));
}

static void
await_text(const char *text, const char *part)
{
    struct wish wish = { .text = text, .part = part };

    if (!test_wait_for(came_true, &wish, 10000))
        fail_msg("no '%s' in: %s", part, text);
}

struct commands {
    enum word word;
    unsigned  least;
};

static int
were_heard(void *ctx)
{
    const struct commands *commands = ctx;

    return atomic_load(&heard[commands->word]) >= commands->least;
}

static void
await_heard(enum word word, unsigned least)
{
    struct commands commands = { word, least };

    if (!test_wait_for(were_heard, &commands, 20000))
        fail_msg("of kind %d only %u commands of %u", word, atomic_load(&heard[word]), least);
}

static int
is_tracking(void *ctx)
{
    struct near__bus_state state = state_of_bus();

    (void)ctx;
    return state.subscribed && state.tracking;
}

static int64_t
in_ms(int64_t ms)
{
    return near__now(&near__clock_system) + ms * NEAR_MS;
}

/* ------------------------------------------------------------------------------------- what ends a connection */

static void
test_replies_that_end_a_connection(void **state)
{
    static const struct {
        enum word   word;
        const char *says, *reason;
        bool        tracking;
    } rows[] = {
        { PING, "*2\r\n$4\r\npong\r\n$3\r\n999\r\n", "a pong to another PING", false },
        { PING, "*2\r\n$4\r\npong\r\n:0\r\n", "a pong to another PING", false },
        { PING, "+what\r\n", "listening: a reply of unexpected shape", false },
        { PING, "-ERR no\r\n", "listening refused: ERR", false },
        { PING, "*2\r\n:1\r\n$1\r\n0\r\n", "listening: a reply of unexpected shape", false },
        { PING, "*3\r\n$7\r\nmessage\r\n$3\r\nbus\r\n:1\r\n", "listening: a reply of unexpected shape",
          false },
        { PING, "", "PING not answered in", false },
        { SUBSCRIBE, SUBSCRIBED "*2\r\n$4\r\npong\r\n$1\r\n0\r\n", "a pong to another PING", false },
        { SUBSCRIBE, "+OK\r\n", "SUBSCRIBE: a reply of unexpected shape", false },
        { SUBSCRIBE, "-NOPERM no\r\n", "SUBSCRIBE refused: NOPERM", false },
        { SUBSCRIBE, "", "SUBSCRIBE not answered in time", false },
        { ROLE, "*1\r\n$5\r\nslave\r\n", "is no primary", false },
        { ROLE, ":1\r\n", "is no primary", false },
        { ROLE, "*0\r\n", "is no primary", false },
        { ROLE, "*1\r\n:1\r\n", "is no primary", false },
        { ROLE, "-LOADING soon\r\n", "ROLE refused: LOADING", false },
        { INVALIDATE, "+OK\r\n", "SUBSCRIBE: a reply of unexpected shape", true },
        { SUBSCRIBE, SUBSCRIBED INVALIDATION ":7\r\n", "an invalidation: a reply of unexpected shape", true },
        { SUBSCRIBE, SUBSCRIBED INVALIDATION "*1\r\n:7\r\n", "an invalidation: a reply of unexpected shape",
          true },
        { SUBSCRIBE, SUBSCRIBED INVALIDATION "-ERR no\r\n", "an invalidation refused", true },
        { SUBSCRIBE, SUBSCRIBED "*3\r\n$7\r\nmessage\r\n:1\r\n:7\r\n", "listening: a reply", true },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        struct wish wish = { .text = told.reason, .part = rows[i].reason };

        atomic_store(&says[rows[i].word], rows[i].says);
        open_bus("redis", rows[i].tracking ? "p:" : NULL);
        if (!test_wait_for(came_true, &wish, 10000))
            fail_msg("row %zu: %s", i, told.reason);
        atomic_store(&says[rows[i].word], NULL); /* the control: once it is well again, so is the bus */
        zero(&told.heard);
        await(&told.heard, 1);
        assert_true(state_of_bus().subscribed);
        close_bus();
        told.reason[0] = '\0';
    }
}

/* -------------------------------------------------------------------------------- what it does without, and says */

static void
test_what_a_server_does_not_tell(void **state)
{
    static const struct {
        enum word   word;
        const char *says, *log;
        bool        recognised, tracking;
    } rows[] = {
        { GET, NULL, "", true, true }, /* the control */
        { ROLE, "-NOPERM no\r\n", "does not tell its role and run id (NOPERM", false, true },
        { INFO, "-NOPERM no\r\n", "does not tell its role and run id (NOPERM", false, true },
        { INFO, ":1\r\n", "(none given)", false, true },
        { INFO, "$5\r\nhello\r\n", "(none given)", false, true },
        { INFO, "$80\r\nrun_id:0123456789012345678901234567890123456789012345678901234567890123456789abc\r\n",
          "", true, true },
        { INFO, "$9\r\nrun_id:ab\r\n", "", true, true }, /* at the end of the text */
        { ID, "-ERR no\r\n", "refuses server-assisted invalidation (ERR", true, false },
        { TRACKING, "-ERR no\r\n", "refuses server-assisted invalidation (ERR", true, false },
        { INVALIDATE, "-NOPERM no\r\n", "refuses server-assisted invalidation (SUBSCRIBE", true, false },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        struct near__bus_state is;

        atomic_store(&says[rows[i].word], rows[i].says);
        open_bus("redis", "p:");
        await(&told.heard, 1);
        is = state_of_bus();
        if (is.recognised != rows[i].recognised || is.tracking != rows[i].tracking || !is.subscribed)
            fail_msg("row %zu: recognised %d, tracking %d", i, is.recognised, is.tracking);
        await_text(told.log, rows[i].log);
        assert_int_equal(number(&told.lost), 0);
        close_bus();
        atomic_store(&says[rows[i].word], NULL);
        zero(&told.heard);
        told.log[0] = '\0';
    }
}

/* What came before the subscription is no message: a flush follows. */
static void
test_messages_and_keys_are_handed_on(void **state)
{
    (void)state;
    atomic_store(&says[SUBSCRIBE], MESSAGE("old") SUBSCRIBED MESSAGE("one") MESSAGE("two") INVALIDATION
                 "*2\r\n$2\r\np1\r\n$2\r\np2\r\n" INVALIDATION "*-1\r\n" INVALIDATION "*0\r\n");
    open_bus("redis", "p:");
    await(&told.heard, 1);
    assert_string_equal(told.messages, "one two");
    assert_string_equal(told.keys, "p1 p2");
    assert_int_equal(number(&told.all_changed), 1);
    close_bus();
    told.messages[0] = told.keys[0] = '\0';
    zero(&told.heard);
    open_bus("redis",
             NULL); /* nobody has asked for keys: what comes over that channel is a message like others */
    await(&told.lost, 1);
    assert_string_equal(told.keys, "");
}

/* -------------------------------------------------------------------------------------------------- the probe */

static void
test_a_server_that_becomes_another(void **state)
{
    static const struct {
        enum word   word;
        const char *says, *reason;
    } rows[] = {
        { ROLE, "*1\r\n$5\r\nslave\r\n", "is no primary" },
        { ROLE, "-NOPERM no\r\n", "does not tell its role any more" },
        { INFO, "$10\r\nrun_id:xyz\r\n",
          "is another server now" }, /* asked for with the next dial, half a second on */
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        zero(&told.heard);
        zero(&told.suspected);
        open_bus("redis", NULL);
        await(&told.heard, 3);
        assert_int_equal(number(&told.suspected), 0);
        atomic_store(&says[rows[i].word], rows[i].says);
        await(&told.suspected, 1);
        assert_true(state_of_bus().suspicions >= 1);
        await_text(told.reason, rows[i].reason);
        atomic_store(&says[rows[i].word], NULL);
        close_bus();
        told.reason[0] = '\0';
    }
}

/* A probe that is not answered vouches for nothing: the gate does not move, and the link stays. */
static void
test_a_probe_without_an_answer(void **state)
{
    unsigned before;

    (void)state;
    open_bus("redis", NULL);
    await(&told.heard, 3);
    atomic_store(&says[ROLE], "");
    before = atomic_load(&heard[ROLE]);
    await_heard(ROLE, before + 1);
    usleep(20000);
    before = number(&told.heard);
    usleep(100000);
    assert_int_equal(number(&told.lost), 0);
    atomic_store(&says[ROLE], NULL);
    await(&told.heard, before + 3); /* what it had from before, and on it goes */
}

/* --------------------------------------------------------------------------------------------- publish, fence */

static near_status
publish(int64_t ms, uint64_t *stream)
{
    uint8_t message[32] = { 0 };

    return near__bus_redis.publish(bus, message, sizeof(message), 8, stream, in_ms(ms), &error);
}

static int
is_refused(void *ctx)
{
    uint64_t stream;

    (void)ctx;
    return publish(1000, &stream) == NEAR_ERR_UNAVAILABLE && stream == 0;
}

static near_status
announce(int64_t ms)
{
    return near__bus_redis.announce(bus, "news", near_key("text"), in_ms(ms), &error);
}

/* A message that may be out is known by its stream. */
static void
test_answers_to_a_publish(void **state)
{
    static const struct {
        const char *says;
        near_status status;
    } rows[] = {
        { NULL, NEAR_OK },
        { "+OK\r\n", NEAR_ERR_PROTOCOL },
        { "-NOPERM no\r\n", NEAR_ERR_DENIED },
        { "", NEAR_ERR_TIMEOUT },
        { NULL, NEAR_OK },
    };
    uint64_t stream;

    (void)state;
    open_bus("redis", NULL);
    await(&told.heard, 1);
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        int64_t ms = rows[i].status == NEAR_ERR_TIMEOUT ? 50 : 5000;

        atomic_store(&says[PUBLISH], rows[i].says);
        assert_int_equal(publish(ms, &stream), rows[i].status);
        if (rows[i].status == NEAR_OK || rows[i].status == NEAR_ERR_TIMEOUT)
            assert_int_not_equal(stream, 0);
        assert_int_equal(announce(ms), rows[i].status);
    }
    test_script_stop(&server);
    assert_int_equal(announce(1000), NEAR_ERR_UNAVAILABLE);
    assert_true(test_wait_for(is_refused, NULL, 20000)); /* a connection may not have noticed yet */
}

static void *
fence_it(void *ctx)
{
    *(near_status *)ctx = near__bus_redis.fence(bus, in_ms(10000), NULL);
    return NULL;
}

static void
test_fences(void **state)
{
    pthread_t   thread;
    near_status status = NEAR_OK;
    unsigned    pings;

    (void)state;
    atomic_store(&says[SUBSCRIBE], "");
    open_bus("redis", NULL);
    assert_int_equal(near__bus_redis.fence(bus, in_ms(1000), &error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "first connection under way"));
    atomic_store(&says[SUBSCRIBE], NULL);
    await(&told.heard, 2);
    assert_int_equal(near__bus_redis.fence(bus, in_ms(5000), &error), NEAR_OK);
    atomic_store(&says[PING], "");
    assert_int_equal(near__bus_redis.fence(bus, in_ms(20), &error), NEAR_ERR_TIMEOUT);
    /* the link is given up while somebody waits */
    assert_int_equal(near__bus_redis.fence(bus, in_ms(10000), &error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "not subscribed"));
    atomic_store(&says[PING], NULL);
    zero(&told.heard);
    await(&told.heard, 2);
    /* or the bus is stopped */
    atomic_store(&says[PING], "");
    pings = atomic_load(&heard[PING]);
    assert_int_equal(pthread_create(&thread, NULL, fence_it, &status), 0);
    await_heard(PING, pings + 2);
    near__bus_redis.stop(bus);
    pthread_join(thread, NULL);
    assert_true(status == NEAR_ERR_CLOSED || status == NEAR_ERR_UNAVAILABLE);
    assert_int_equal(near__bus_redis.fence(bus, in_ms(1000), &error), NEAR_ERR_CLOSED);
}

/* No more than 64 questions are open at a time, however long the server is silent. */
static void
test_unanswered_pings_are_bounded(void **state)
{
    (void)state;
    atomic_store(&says[PING], "");
    open_bus("redis", NULL);
    close_bus();
    env.heartbeat = NEAR_MS;
    env.silence   = 1000 * NEAR_MS;
    atomic_store(&heard[PING], 0);
    assert_int_equal(near__bus_redis.open(&bus, &env, &error), NEAR_OK);
    await_heard(PING, 1);
    atomic_store(&says[SUBSCRIBE], ""); /* the next connection asks nothing */
    await_text(told.reason, "PING not answered in");
    assert_in_range(atomic_load(&heard[PING]), 10, 64);
}

/* ------------------------------------------------------------------------------------------------- a cluster */

/* While it is not known who the primaries are nobody says that keys are heard of. */
static void
test_maps_that_make_no_sense(void **state)
{
    static const struct {
        enum word   word;
        const char *says;
    } rows[] = {
        { CLUSTER_INFO, ":1\r\n" },
        { CLUSTER_INFO, "-LOADING soon\r\n" },
        { CLUSTER_INFO, "$18\r\ncluster_state:fail\r\n\r\n" },
        { CLUSTER_INFO, "$16\r\ncluster_state:ok\r\n" },
        { NODES, ":1\r\n" },
        { NODES, "$0\r\n\r\n" },
        { NODES, "$5\r\nhello\r\n" },
        { NODES, "$25\r\nid 127.0.0.1:7@1 slave x\n\r\n" },
        { GET, "-LOADING soon\r\n" },
    };
    char huge[400];

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows) + 1; i++) {
        enum word   word = i < NEAR_COUNT_OF(rows) ? rows[i].word : CLUSTER_INFO;
        unsigned    asked;
        const char *said = i < NEAR_COUNT_OF(rows) ? rows[i].says : huge;

        snprintf(huge, sizeof(huge), "$239\r\ncluster_state:ok\r\ncluster_current_epoch:%0200d\r\n\r\n", 1);
        atomic_store(&says[word], said);
        asked = atomic_load(&heard[word]);
        open_bus("redis-cluster", "p:");
        await_heard(word, asked + 3);
        if (is_tracking(NULL))
            fail_msg("row %zu", i);
        assert_int_equal(number(&told.heard), 0);
        atomic_store(&says[word], NULL); /* the control */
        assert_true(test_wait_for(is_tracking, NULL, 10000));
        close_bus();
        zero(&told.heard);
    }
}

/* Of all these lines two name a primary that can be listened to, and both the same one. */
static void
test_nodes_of_all_kinds(void **state)
{
    static char said[4096];
    char        text[3000], long_host[300];
    unsigned    trackers;

    (void)state;
    memset(long_host, 'h', sizeof(long_host) - 1);
    long_host[sizeof(long_host) - 1] = '\0';
    snprintf(text, sizeof(text),
             "\n"
             "noaddress\n"
             "id 127.0.0.1:%d@1\n"
             "id 127.0.0.2:%d@1 slave - 0\n"
             "id 127.0.0.2:%d@1 master,fail - 0\n"
             "id 127.0.0.2:%d@1 master,noaddr - 0\n"
             "id 127.0.0.2:%d@1 handshake,master - 0\n"
             "id 127.0.0.2:%d@1 nomaster - 0\n"
             "id 127.0.0.2:%d@1 masters,x - 0\n"
             "id 127.0.0.2@1 master - 0\n"
             "id 127.0.0.2:0@1 master - 0\n"
             "id 127.0.0.2:70000@1 master - 0\n"
             "id %s:%d@1 master - 0\n"
             "id :%d@1,name myself,master - 0 0 1 connected 0-16383\n"
             "id 127.0.0.1:%d myself,master - 0 0 1 connected 0-16383",
             server.port, server.port, server.port, server.port, server.port, server.port, server.port,
             long_host, server.port, server.port, server.port);
    bulk(said, sizeof(said), text);
    atomic_store(&says[NODES], said);
    open_bus("redis-cluster", "p:");
    assert_true(test_wait_for(is_tracking, NULL, 10000));
    trackers = atomic_load(&heard[TRACKING]);
    await(&told.heard, 3);
    assert_int_equal(trackers, 1);
}

static void
test_a_primary_that_goes_and_another_that_comes(void **state)
{
    static char info[300], nodes[300];
    char        text[200];
    unsigned    before;

    (void)state;
    assert_true(test_script_start(&other, play, NULL));
    open_bus("redis-cluster", "p:");
    assert_true(test_wait_for(is_tracking, NULL, 10000));
    await(&told.heard, 1);
    before = number(&told.subscribed);
    snprintf(text, sizeof(text), "id 127.0.0.1:%d@1 master - 0 0 1 connected 0-16383\n", other.port);
    bulk(nodes, sizeof(nodes), text);
    snprintf(text, sizeof(text), WELL, 2); /* the epoch says that something has changed */
    bulk(info, sizeof(info), text);
    atomic_store(&says[NODES], nodes);
    atomic_store(&says[CLUSTER_INFO], info);
    await(&told.subscribed, before + 1); /* a flush: who moved is heard of from here on */
    assert_true(test_wait_for(is_tracking, NULL, 10000));
    zero(&told.heard);
    await(&told.heard, 2);
    assert_int_equal(near__bus_redis.fence(bus, in_ms(5000), &error), NEAR_OK);
}

/* Messages alone remain, and that is said. */
static void
test_a_cluster_that_does_not_tell(void **state)
{
    static const struct {
        enum word   word;
        const char *says, *log;
    } rows[] = {
        { CLUSTER_INFO, "-NOPERM no\r\n", "the cluster does not tell us its nodes" },
        { NODES, "-NOPERM no\r\n", "the cluster does not tell us its nodes" },
        { TRACKING, "-NOPERM no\r\n", "refuses server-assisted invalidation" },
        { NODES, NULL, "too many primaries" },
    };
    static char many[200 * 64];
    char       *at = many;

    (void)state;
    for (unsigned i = 0; i < 129; i++)
        at += sprintf(at, "id 127.0.0.%u:7777@1 master - 0\n", i + 1);
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        static char said[200 * 64 + 16];

        bulk(said, sizeof(said), many);
        atomic_store(&says[rows[i].word], rows[i].says != NULL ? rows[i].says : said);
        open_bus("redis-cluster", "p:");
        await_text(told.log, rows[i].log);
        await(&told.heard, 2);
        assert_true(state_of_bus().subscribed);
        assert_false(state_of_bus().tracking);
        close_bus();
        atomic_store(&says[rows[i].word], NULL);
        told.log[0] = '\0';
        zero(&told.heard);
    }
}

/* --------------------------------------------------------------------------------------------------- forks */

/* In a child there are no threads: it gives up what it has, and is as if there had never been a bus. */
static void
test_a_child_leaves_it(void **state)
{
    pid_t child;
    int   status;

    (void)state;
    if (TEST_UNDER_TSAN)
        skip();
    for (int layout = 0; layout < 2; layout++) {
        open_bus(layout == 0 ? "redis" : "redis-cluster", "p:");
        assert_true(test_wait_for(is_tracking, NULL, 10000));
        child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            near__bus_redis.forked(bus);
            near__bus_redis.fini(bus);
            _exit(7);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
        zero(&told.heard);
        await(&told.heard, 2); /* the parent has lost nothing by it */
        assert_int_equal(number(&told.lost), 0);
        close_bus();
    }
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    static const struct CMUnitTest tests[] = {
        TEST(test_replies_that_end_a_connection),
        TEST(test_what_a_server_does_not_tell),
        TEST(test_messages_and_keys_are_handed_on),
        TEST(test_a_server_that_becomes_another),
        TEST(test_a_probe_without_an_answer),
        TEST(test_answers_to_a_publish),
        TEST(test_fences),
        TEST(test_unanswered_pings_are_bounded),
        TEST(test_maps_that_make_no_sense),
        TEST(test_nodes_of_all_kinds),
        TEST(test_a_primary_that_goes_and_another_that_comes),
        TEST(test_a_cluster_that_does_not_tell),
        TEST(test_a_child_leaves_it),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
