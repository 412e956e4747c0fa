/*
 * The Redis backend and its connections against real servers, through the fault proxy, and against a fake
 * server that answers what no Redis would.  Test names begin with the rule, race or promise they uphold.
 */
#include "harness/proxy.h"
#include "harness/server.h"
#include "harness/test.h"

#include "base/le.h"
#include "l2/backend.h"
#include "l2/redis_conn.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define KiB 1024
#define MiB (1024 * 1024)

/* ---------------------------------------------------------------------------------------- the things used */

static struct test_server *server;  /* one for all tests, with a port besides */
static struct test_proxy  *proxy;   /* to `server` */
static struct test_server *special; /* a test's own */

/* An open backend and what it was opened with. */
struct tier {
    const struct near_l2_ops *ops;
    struct near__uri          uri;
    struct near_l2_env        env;
    struct near_l2_traits     traits;
    void                     *self;
};
static struct tier tier;

static char
    logged[64 * KiB]; /* everything that was logged in this test, one line each; main thread's calls only */
static atomic_bool quiet; /* threads are calling: do not log */

static void
log_line(void *ctx, near_log_level level, const char *message)
{
    size_t used = strlen(logged);

    (void)ctx;
    (void)level;
    if (!atomic_load(&quiet))
        snprintf(logged + used, sizeof(logged) - used, "%s\n", message);
}
static const struct near__log log_sink = { log_line, NULL };

/* Open without connecting; what a test wants different it has put into tier.env. */
static void
open_parsed(void)
{
    near_error error = { 0 };

    tier.ops     = near__l2_backend_named(tier.uri.scheme);
    tier.env.uri = &tier.uri;
    assert_non_null(tier.ops);
    if (tier.ops->open(&tier.self, &tier.env, &tier.traits, &error) != NEAR_OK)
        fail_msg("open: %s", error.text);
}

static void
open_tier(const char *uri)
{
    near_error error = { 0 };

    if (near__uri_parse(&tier.uri, "l2.uri", uri, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    open_parsed();
}

static void
close_tier(void)
{
    if (tier.self == NULL)
        return;
    tier.ops->close(tier.self);
    tier.ops->stop(tier.self);
    tier.ops->fini(tier.self);
    tier.self = NULL;
}

static int64_t
in_ms(int64_t ms)
{
    return near__now(&near__clock_system) + ms * NEAR_MS;
}

/* A deadline that no healthy call reaches. */
static int64_t
later(void)
{
    return in_ms(20000 * test_slack());
}

/* What get_many delivered for an item; `user` of the item points to it. */
struct got {
    size_t  size;
    uint8_t data[KiB];
    bool    delivered;
};

static void
deliver(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct got *got = item->user;

    (void)ctx;
    if (got == NULL)
        return;
    got->delivered = true;
    got->size      = stored.size;
    memcpy(got->data, stored.data, stored.size < sizeof(got->data) ? stored.size : sizeof(got->data));
}

static struct near_l2_item
get_item(const char *key, struct got *got, int64_t deadline)
{
    struct near_l2_item item = { .key = near_key(key), .user = got };

    memset(got, 0, sizeof(*got));
    tier.ops->get_many(tier.self, &item, 1, deliver, NULL, deadline);
    assert_int_equal(got->delivered, item.answer == NEAR_L2_DONE);
    return item;
}

static enum near_l2_answer
get(const char *key, const char *expected)
{
    struct got          got;
    struct near_l2_item item = get_item(key, &got, later());

    if (item.answer == NEAR_L2_DONE) {
        assert_int_equal(got.size, strlen(expected));
        assert_memory_equal(got.data, expected, got.size);
    }
    return item.answer;
}

static struct near_l2_item
set_item(enum near_l2_mode mode, const char *key, near_bytes value, uint64_t expected, int64_t ttl_ms,
         int64_t deadline)
{
    struct near_l2_item item = {
        .key = near_key(key), .value = value, .expected = expected, .ttl_ms = ttl_ms
    };

    tier.ops->set_many(tier.self, mode, &item, 1, NULL, deadline);
    return item;
}

static enum near_l2_answer
set(const char *key, const char *value)
{
    return set_item(NEAR_L2_ALWAYS, key, near_key(value), 0, 0, later()).answer;
}

static enum near_l2_answer
remove_one(const char *key)
{
    struct near_l2_item item = { .key = near_key(key) };

    tier.ops->remove_many(tier.self, NEAR_L2_ALWAYS, &item, 1, NULL, later());
    return item.answer;
}

static struct near_l2_stats
stats(void)
{
    struct near_l2_stats s;

    tier.ops->stats(tier.self, &s);
    return s;
}

/* Ask a server behind the library's back; the words of one command, the last argument NULL.  Its answer,
 * valid until the next. */
static const char *
ask(struct test_server *whom, ...)
{
    static char out[64 * KiB];
    const char *argv[16];
    int         argc = 0;
    va_list     words;

    va_start(words, whom);
    while ((argv[argc] = va_arg(words, const char *)) != NULL)
        argc++;
    va_end(words);
    if (!test_redis_command(whom, out, sizeof(out), argc, argv))
        fail_msg("%s: %s", argv[0], out);
    return out;
}

/* --------------------------------------------------------------------------------------- the fake server
 *
 * Accepts connections one after the other; at the first bytes of each it sends `reply` and then waits
 * until the client closes.  With `always` it replies to everything that comes in; with `echo` it sends
 * everything back, and reads no more before that is out; with `slam` it closes at once instead. */
static struct {
    int         listener, stop[2];
    pthread_t   thread;
    bool        running, always, slam, echo;
    const char *reply;
    size_t      size;
    size_t      repeat; /* send the reply so many times */
    atomic_uint accepted, closed_by_client, resets;
} fake;

static bool
fake_wait(int fd)
{
    struct pollfd fds[2] = { { fd, POLLIN, 0 }, { fake.stop[0], POLLIN, 0 } };

    while (poll(fds, 2, -1) < 0)
        ;
    return fds[1].revents == 0;
}

/* Interrupted by stop or by the client's leaving. */
static bool
fake_send(int fd, const char *data, size_t size, size_t repeat)
{
    for (size_t round = 0; round < repeat; round++)
        for (size_t at = 0; at < size;) {
            struct pollfd fds[2] = { { fd, POLLOUT, 0 }, { fake.stop[0], POLLIN, 0 } };
            ssize_t       n;

            poll(fds, 2, -1);
            n = fds[1].revents != 0 ? -1 : send(fd, data + at, size - at, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n < 0 && errno != EAGAIN)
                return false;
            at += n > 0 ? (size_t)n : 0;
        }
    return true;
}

static void
fake_serve(int fd)
{
    char    buffer[64 * KiB];
    bool    replied = false, open = true;
    ssize_t n = 0;

    while (open && !fake.slam && fake_wait(fd)) {
        n    = recv(fd, buffer, sizeof(buffer), 0);
        open = n > 0;
        if (open && fake.echo)
            open = fake_send(fd, buffer, (size_t)n, 1);
        else if (open && (!replied || fake.always))
            open = fake_send(fd, fake.reply, fake.size, fake.repeat);
        replied = true;
    }
    if (!open) {
        atomic_fetch_add(&fake.resets, n < 0 && errno == ECONNRESET);
        atomic_fetch_add(&fake.closed_by_client, 1);
    }
    close(fd);
}

static void *
fake_run(void *ctx)
{
    (void)ctx;
    while (fake_wait(fake.listener)) {
        int fd = accept(fake.listener, NULL, NULL);

        if (fd < 0)
            continue;
        atomic_fetch_add(&fake.accepted, 1);
        fake_serve(fd);
    }
    return NULL;
}

static void
fake_start(void)
{
    struct sockaddr_in in   = { .sin_family = AF_INET };
    socklen_t          size = sizeof(in);

    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fake.listener      = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fake.listener, (struct sockaddr *)&in, size), 0);
    assert_int_equal(listen(fake.listener, 16), 0);
    assert_int_equal(getsockname(fake.listener, (struct sockaddr *)&in, &size), 0);
    assert_int_equal(pipe(fake.stop), 0);
    fake.accepted = fake.closed_by_client = fake.resets = 0;
    assert_int_equal(pthread_create(&fake.thread, NULL, fake_run, NULL), 0);
    fake.running = true;
    snprintf(tier.uri.scheme, sizeof(tier.uri.scheme), "redis");
    tier.uri.kind              = NEAR__URI_REDIS;
    tier.uri.address_count     = 1;
    tier.uri.addresses[0].port = ntohs(in.sin_port);
    snprintf(tier.uri.addresses[0].host, sizeof(tier.uri.addresses[0].host), "127.0.0.1");
}

static void
fake_stop(void)
{
    if (!fake.running)
        return;
    fake.running = false;
    assert_int_equal(write(fake.stop[1], "x", 1), 1);
    pthread_join(fake.thread, NULL);
    close(fake.listener);
    close(fake.stop[0]);
    close(fake.stop[1]);
}

/* A backend whose server answers `reply` to the first thing it hears. */
static void
open_fake(const char *reply, size_t size)
{
    fake.reply = reply;
    fake.size  = size;
    fake_start();
    open_parsed();
}

static int
client_has_closed(void *count)
{
    return atomic_load(&fake.closed_by_client) >= *(unsigned *)count;
}

#define assert_client_closes(n)                                                                              \
    assert_true(test_wait_for(client_has_closed, &(unsigned){ n }, 5000 * test_slack()))

static int
group_setup(void **state)
{
    (void)state;
    server = test_redis_start(TEST_SERVER_TCP, NULL);
    proxy  = server == NULL ? NULL : test_proxy_start(server);
    return 0;
}

static int
group_teardown(void **state)
{
    (void)state;
    test_proxy_stop(&proxy);
    test_server_stop(&server);
    return 0;
}

static int
setup(void **state)
{
    (void)state;
    logged[0]   = '\0';
    fake.always = fake.slam = fake.echo = false;
    fake.repeat                         = 1;
    tier                                = (struct tier){ .env = { .clock           = &near__clock_system,
                                                                  .log             = &log_sink,
                                                                  .connect_timeout = 5000 * NEAR_MS,
                                                                  .pool_size       = 4,
                                                                  .max_stored      = MiB } };
    if (server != NULL) {
        ask(server, "CONFIG", "SET", "maxmemory", "0", NULL);
        ask(server, "FLUSHALL", NULL);
    }
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    close_tier();
    if (proxy != NULL)
        test_proxy_heal(proxy);
    test_server_stop(&special);
    fake_stop();
    return 0;
}

static void
open_server(void)
{
    test_need_server(server);
    open_tier(server->uri);
}

static void
open_proxy(void)
{
    test_need_server(server);
    open_tier(test_proxy_uri(proxy));
}

/* Within the deadline and what a scheduler may add to it. */
#define assert_back_by(deadline)                                                                             \
    assert_true(near__now(&near__clock_system) <= (deadline) + 20 * NEAR_MS * test_slack())

/* --------------------------------------------------------------------------------------------- plain work */

static void
what_was_set_is_read_back_removed_and_gone(void **state)
{
    (void)state;
    open_server();
    assert_int_equal(get("k", ""), NEAR_L2_ABSENT);
    assert_int_equal(set("k", "first"), NEAR_L2_DONE);
    assert_int_equal(get("k", "first"), NEAR_L2_DONE);
    assert_int_equal(set("k", ""), NEAR_L2_DONE);
    assert_int_equal(get("k", ""), NEAR_L2_DONE); /* empty is not absent */
    assert_int_equal(remove_one("k"), NEAR_L2_DONE);
    assert_int_equal(remove_one("k"), NEAR_L2_DONE);
    assert_int_equal(get("k", ""), NEAR_L2_ABSENT);
    assert_int_equal(stats().connects, 1);
    assert_true(tier.traits.shared && tier.traits.announces && tier.traits.binary_keys);
}

static void
a_unix_socket_serves_as_well(void **state)
{
    char uri[256];

    (void)state;
    test_need_server(server);
    snprintf(uri, sizeof(uri), "redis+unix://%s", server->socket);
    open_tier(uri);
    assert_int_equal(set("k", "v"), NEAR_L2_DONE);
    assert_int_equal(get("k", "v"), NEAR_L2_DONE);
}

/* Every byte in keys and values, batches across the cut of MGETs, items that miss, the same key twice. */
static void
batches_answer_every_item_by_itself(void **state)
{
    enum { N = NEAR_L2_BATCH };
    static struct near_l2_item items[N];
    static struct got          got[N];
    static uint8_t             keys[N][6];

    (void)state;
    tier.env.max_stored = 600 * KiB; /* 109 keys per MGET */
    open_server();
    for (int i = 0; i < N; i++) {
        memcpy(keys[i], (const uint8_t[]){ 0, '\r', '\n', (uint8_t)i, (uint8_t)(i >> 8), ' ' }, 6);
        items[i] = (struct near_l2_item){ .key   = { keys[i], 6 },
                                          .value = { keys[i], (size_t)i % 7 },
                                          .user  = &got[i] };
    }
    tier.ops->set_many(tier.self, NEAR_L2_ALWAYS, items, N, NULL, later());
    for (int i = 0; i < N; i++)
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
    for (int i = 0; i < N; i += 3)
        items[i].answer = NEAR_L2_NOT_TRIED;
    tier.ops->remove_many(tier.self, NEAR_L2_ALWAYS, items + 100, 100, NULL, later());
    tier.ops->get_many(tier.self, items, N, deliver, NULL, later());
    for (int i = 0; i < N; i++) {
        bool removed = i >= 100 && i < 200;

        assert_int_equal(items[i].answer, removed ? NEAR_L2_ABSENT : NEAR_L2_DONE);
        assert_int_equal(items[i].status, NEAR_OK);
        assert_int_equal(got[i].delivered, !removed);
        if (!removed) {
            assert_int_equal(got[i].size, i % 7);
            assert_memory_equal(got[i].data, keys[i], got[i].size);
        }
    }
}

static void
if_absent_stores_once(void **state)
{
    struct near_l2_item item;

    (void)state;
    open_server();
    item = set_item(NEAR_L2_IF_ABSENT, "k", near_key("mine"), 0, 60000, later());
    assert_int_equal(item.answer, NEAR_L2_DONE);
    item = set_item(NEAR_L2_IF_ABSENT, "k", near_key("yours"), 0, 60000, later());
    assert_int_equal(item.answer, NEAR_L2_ABSENT);
    assert_int_equal(get("k", "mine"), NEAR_L2_DONE);
    assert_in_range(atoi(ask(server, "PTTL", "k", NULL)), 1, 60000);
}

static void
R2_ttl_and_no_ttl(void **state)
{
    near_bytes v = near_key("v");

    (void)state;
    open_server();
    assert_int_equal(set_item(NEAR_L2_ALWAYS, "k", v, 0, 70000, later()).answer, NEAR_L2_DONE);
    assert_in_range(atoi(ask(server, "PTTL", "k", NULL)), 10000, 70000);
    assert_int_equal(set_item(NEAR_L2_ALWAYS, "k", v, 0, 0, later()).answer, NEAR_L2_DONE);
    assert_string_equal(ask(server, "PTTL", "k", NULL), "-1");
    assert_int_equal(set_item(NEAR_L2_ALWAYS, "k", v, 0, INT64_MAX, later()).answer, NEAR_L2_DONE);
    assert_int_equal(get("k", "v"), NEAR_L2_DONE);
    assert_int_equal(set_item(NEAR_L2_ALWAYS, "short", v, 0, 1, later()).answer, NEAR_L2_DONE);
    assert_int_equal(set_item(NEAR_L2_ALWAYS, "gone", v, 0, -5, later()).answer, NEAR_L2_DONE);
    assert_string_not_equal(ask(server, "PTTL", "gone", NULL), "-1"); /* less than nothing is not for ever */
}

static void
health_is_one_line(void **state)
{
    char       text[128];
    near_error error = { 0 };

    (void)state;
    open_server();
    assert_int_equal(tier.ops->health(tier.self, text, sizeof(text), later(), &error), NEAR_OK);
    assert_int_equal(strncmp(text, "redis ", 6), 0);
    assert_non_null(strstr(text, ", maxmemory 0, noeviction"));
    assert_null(strchr(text, '\n'));
    test_proxy_fault(proxy, (struct test_fault){ .kind = TEST_FAULT_REFUSE });
    close_tier();
    open_proxy();
    assert_int_equal(tier.ops->health(tier.self, text, sizeof(text), later(), &error), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(strncmp(error.text, "redis 127.0.0.1:", 16), 0);
}

/* ----------------------------------------------------------------------------------------------- lengths */

static near_status
dial(struct near__redis_conn **conn, const char *text, near_error *error)
{
    struct near__redis_server to = {
        .uri = &tier.uri, .clock = &near__clock_system, .max_reply = 256 * MiB, .client_name = "test"
    };

    if (text != NULL)
        assert_int_equal(near__uri_parse(&tier.uri, "uri", text, error), NEAR_OK);
    return near__redis_dial(conn, &to, later(), error);
}

/* The sizes are never looked behind: there are no such bytes. */
static void
H4_lengths_are_refused_before_hiredis_adds_them(void **state)
{
    struct near__redis_conn *conn;
    near_bytes               set_args[3] = { near_key("SET"), near_key("k"), { "x", (size_t)513 * MiB } },
               one                       = near_key("PING");

    (void)state;
    test_need_server(server);
    assert_int_equal(dial(&conn, server->uri, NULL), NEAR_OK);
    assert_int_equal(near__redis_append(conn, 3, set_args), NEAR_ERR_TOO_LARGE);
    set_args[1] = set_args[2] = (near_bytes){ "x", (size_t)300 * MiB };
    assert_int_equal(near__redis_append(conn, 3, set_args), NEAR_ERR_TOO_LARGE);
    set_args[1] = set_args[2] = (near_bytes){ "x", SIZE_MAX - 8 };
    assert_int_equal(near__redis_append(conn, 3, set_args), NEAR_ERR_TOO_LARGE);
    assert_int_equal(near__redis_append(conn, 0, set_args), NEAR_ERR_TOO_LARGE);
    assert_int_equal(near__redis_queued(conn), 0);
    assert_int_equal(near__redis_append(conn, 1, &one), NEAR_OK);
    assert_int_equal(near__redis_queued(conn), 1);
    near__redis_conn_free(&conn);
    assert_null(conn);
}

static void
H4_stored_entries_over_the_limit_are_refused_both_ways(void **state)
{
    static char         large[2 * KiB];
    struct got          got;
    struct near_l2_item items[2] = { { .key = near_key("large"), .value = { large, sizeof(large) } },
                                     { .key = near_key("small"), .value = near_key("v") } };
    struct near_l2_item item;

    (void)state;
    tier.env.max_stored = KiB;
    open_server();
    tier.ops->set_many(tier.self, NEAR_L2_ALWAYS, items, 2, NULL, later());
    assert_int_equal(items[0].answer, NEAR_L2_ERROR);
    assert_int_equal(items[0].status, NEAR_ERR_TOO_LARGE);
    assert_int_equal(items[1].answer, NEAR_L2_DONE);
    assert_string_equal(ask(server, "EXISTS", "large", NULL), "0");
    ask(server, "SETRANGE", "large", "2000", "x", NULL);
    item = get_item("large", &got, later());
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_TOO_LARGE);
    assert_int_equal(get("small", "v"), NEAR_L2_DONE);
    assert_int_equal(stats().connects, 1); /* not a fault of the connection's */
}

/* -------------------------------------------------------------------------------------------- deadlines */

static void
H6_H8_a_stopped_server_costs_the_deadline(void **state)
{
    int64_t             deadline;
    struct got          got;
    struct near_l2_item item;

    (void)state;
    open_server();
    assert_int_equal(set("a", "value of a"), NEAR_L2_DONE);
    assert_int_equal(set("b", "value of b"), NEAR_L2_DONE);
    test_server_pause(server);
    deadline = in_ms(60);
    item     = get_item("a", &got, deadline);
    assert_back_by(deadline);
    assert_true(near__now(&near__clock_system) >= deadline);
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_TIMEOUT);
    assert_non_null(strstr(logged, "l2 redis 127.0.0.1:"));
    assert_non_null(strstr(logged, ": GET timed out after "));
    test_server_resume(server);
    assert_int_equal(get("b", "value of b"),
                     NEAR_L2_DONE); /* not the late answer for a: that is read first */
    assert_int_equal(stats().connects, 1);

    test_server_pause(server);
    deadline = in_ms(60);
    item     = set_item(NEAR_L2_ALWAYS, "a", near_key("new"), 0, 0, deadline);
    assert_back_by(deadline);
    assert_int_equal(item.answer, NEAR_L2_UNKNOWN);
    assert_int_equal(item.status, NEAR_ERR_TIMEOUT);
    assert_int_equal(stats().disconnects, 1); /* with the write on it */
    test_server_resume(server);
}

/* For as long as a dial may take not a byte, though something is outstanding: nothing of that connection is believed any more. */
static void
H6_a_silent_server_costs_the_connection(void **state)
{
    int64_t    until = near__now(&near__clock_system) + 3000 * NEAR_MS;
    struct got got;

    (void)state;
    open_server();
    assert_int_equal(set("a", "value of a"), NEAR_L2_DONE);
    assert_int_equal(set("b", "value of b"), NEAR_L2_DONE);
    test_server_pause(server);
    while (stats().disconnects == 0 && near__now(&near__clock_system) < until)
        (void)get_item("a", &got, in_ms(60));
    assert_true(stats().disconnects > 0);
    test_server_resume(server);
    while (get("b", "value of b") != NEAR_L2_DONE)
        assert_true(near__now(&near__clock_system) < until);
    assert_true(stats().connects > 1);
}

/* On a stopped server the kernel still accepts: the dial is over quickly, the handshake is what waits. */
static void
H8_a_dial_with_a_handshake_keeps_the_deadline(void **state)
{
    int64_t             deadline;
    struct got          got;
    struct near_l2_item item;

    (void)state;
    tier.env.client_name = "name";
    open_server();
    test_server_pause(server);
    deadline = in_ms(60);
    item     = get_item("a", &got, deadline);
    assert_back_by(deadline);
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_TIMEOUT);
    test_server_resume(server);
}

static void
a_deadline_that_has_passed_sends_nothing(void **state)
{
    struct got          got;
    struct near_l2_item item;

    (void)state;
    open_server();
    item = get_item("a", &got, in_ms(-5));
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_TIMEOUT);
    item = set_item(NEAR_L2_ALWAYS, "a", near_key("v"), 0, 0, in_ms(-5));
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(stats().connects, 0);
}

static void
race_41_a_late_reply_is_never_read_by_the_next_request(void **state)
{
    char                key[16], value[32];
    struct got          got;
    struct near_l2_item item;
    unsigned            late = 0;

    (void)state;
    open_proxy();
    for (int i = 0; i < 2; i++) {
        snprintf(key, sizeof(key), "key %d", i);
        snprintf(value, sizeof(value), "value of key %d", i);
        assert_int_equal(set(key, value), NEAR_L2_DONE);
    }
    for (size_t i = 0; i < test_scale(40); i++) {
        test_proxy_fault(proxy,
                         (struct test_fault){ .kind = TEST_FAULT_DELAY, .direction = TEST_DOWN, .ms = 8 });
        item = get_item("key 0", &got, in_ms(4));
        if (item.answer == NEAR_L2_DONE)
            assert_memory_equal(got.data, "value of key 0", 14);
        late += item.status == NEAR_ERR_TIMEOUT;
        test_proxy_heal(proxy);
        assert_int_equal(get("key 1", "value of key 1"), NEAR_L2_DONE);
    }
    assert_true(late > 0);
    assert_int_equal(stats().disconnects, 0); /* the late ones came, and were read by nobody */
}

static void
H8_a_slow_drip_does_not_prolong_the_deadline(void **state)
{
    struct got          got;
    struct near_l2_item item;
    int64_t             deadline;

    (void)state;
    open_proxy();
    assert_int_equal(set("k", "a value that takes its time"), NEAR_L2_DONE);
    test_proxy_fault(
        proxy, (struct test_fault){ .kind = TEST_FAULT_DRIP, .direction = TEST_DOWN, .ms = 10, .bytes = 1 });
    deadline = in_ms(80);
    item     = get_item("k", &got, deadline);
    assert_back_by(deadline);
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_TIMEOUT);
    test_proxy_heal(proxy);
    assert_int_equal(get("k", "a value that takes its time"), NEAR_L2_DONE);
}

/* The longest batch of reads there is, its replies in drops: half of them have been delivered long before the last comes. */
enum { LONG_BATCH = NEAR_L2_READS, LONG_VALUE = 300 };

struct long_read {
    struct near_l2_item items[LONG_BATCH];
    char                keys[LONG_BATCH][16], values[LONG_BATCH][LONG_VALUE];
    unsigned            times[LONG_BATCH], wrong;
    _Atomic unsigned    delivered;
    _Atomic bool        finished;
    int64_t             deadline, back;
};

static void
note_long(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct long_read *read = ctx;
    size_t            i    = (size_t)(item - read->items);

    read->times[i]++;
    read->wrong += stored.size != LONG_VALUE || memcmp(stored.data, read->values[i], LONG_VALUE) != 0;
    atomic_fetch_add(&read->delivered, 1);
}

static void *
long_get(void *ctx)
{
    struct long_read *read = ctx;

    tier.ops->get_many(tier.self, read->items, LONG_BATCH, note_long, read, read->deadline);
    read->back = near__now(&near__clock_system);
    atomic_store(&read->finished, true);
    return NULL;
}

static struct long_read *
long_read_begin(pthread_t *thread, int64_t ms)
{
    static struct long_read read;

    memset(&read, 0, sizeof(read));
    for (int i = 0; i < LONG_BATCH; i++) {
        snprintf(read.keys[i], sizeof(read.keys[i]), "long %d", i);
        memset(read.values[i], 'a' + i % 26, LONG_VALUE);
        memcpy(read.values[i], read.keys[i], strlen(read.keys[i]));
        read.items[i] =
            (struct near_l2_item){ .key = near_key(read.keys[i]), .value = { read.values[i], LONG_VALUE } };
    }
    for (int at = 0; at < LONG_BATCH; at += NEAR_L2_BATCH)
        tier.ops->set_many(tier.self, NEAR_L2_ALWAYS, read.items + at, NEAR_L2_BATCH, NULL, later());
    test_proxy_fault(proxy, (struct test_fault){
                                .kind = TEST_FAULT_DRIP, .direction = TEST_DOWN, .ms = 4, .bytes = 4 * KiB });
    for (int i = 0; i < LONG_BATCH; i++) {
        assert_int_equal(read.items[i].answer, NEAR_L2_DONE);
        read.items[i] = (struct near_l2_item){ .key = near_key(read.keys[i]) };
    }
    read.deadline = in_ms(ms);
    assert_int_equal(pthread_create(thread, NULL, long_get, &read), 0);
    return &read;
}

/* Lost half-way and asked again: what had been delivered was good, and is not delivered twice. */
static void
a_batch_lost_half_way_delivers_each_value_once(void **state)
{
    struct long_read *read = NULL;
    pthread_t         thread;
    unsigned          before = LONG_BATCH;

    (void)state;
    open_proxy();
    /* all: we came too late to hang up */
    for (int tries = 0; tries < 10 && (before == LONG_BATCH || stats().disconnects == 0); tries++) {
        read = long_read_begin(&thread, 60 * 1000);
        while (atomic_load(&read->delivered) == 0 && !atomic_load(&read->finished))
            nanosleep(&(struct timespec){ 0, NEAR_MS }, NULL);
        before = atomic_load(&read->delivered);
        test_proxy_fault(proxy, (struct test_fault){ .kind = TEST_FAULT_HANG_UP, .direction = TEST_BOTH });
        pthread_join(thread, NULL);
        test_proxy_heal(proxy);
    }
    assert_in_range(before, 1, LONG_BATCH - 1);
    assert_int_equal(read->wrong, 0);
    for (int i = 0; i < LONG_BATCH; i++) {
        assert_int_equal(read->items[i].answer, NEAR_L2_DONE);
        assert_int_equal(read->times[i], 1);
    }
    assert_true(stats().disconnects > 0);
}

static unsigned
late_half_way(const struct long_read *read)
{
    unsigned came = 0;

    assert_int_equal(read->wrong, 0);
    for (int i = 0; i < LONG_BATCH; i++) {
        assert_int_equal(read->times[i], read->items[i].answer == NEAR_L2_DONE);
        came += read->times[i];
        if (read->items[i].answer == NEAR_L2_DONE)
            continue;
        assert_int_equal(read->items[i].answer, NEAR_L2_ERROR);
        assert_int_equal(read->items[i].status, NEAR_ERR_TIMEOUT);
    }
    return came;
}

/* The deadline comes half-way: those that came are there, the others say so. */
static void
a_batch_that_is_late_half_way_keeps_what_came(void **state)
{
    struct long_read *read;
    pthread_t         thread;
    struct got        got;
    unsigned          came = 0;

    (void)state;
    open_proxy();
    for (int tries = 0; tries < 10 && came == 0; tries++) { /* none: the machine had no time for us */
        read = long_read_begin(&thread, 200);
        pthread_join(thread, NULL);
        assert_true(read->back <= read->deadline + 20 * NEAR_MS * test_slack());
        test_proxy_heal(proxy);
        came = late_half_way(read);
    }
    assert_in_range(came, 1, LONG_BATCH - 1);
    assert_int_equal(get_item(read->keys[LONG_BATCH - 1], &got, later()).answer, NEAR_L2_DONE);
    assert_memory_equal(got.data, read->values[LONG_BATCH - 1], LONG_VALUE);
}

static void *
blocked_get(void *ctx)
{
    struct near_l2_item *item = ctx;

    tier.ops->get_many(tier.self, item, 1, deliver, NULL, in_ms(60000));
    return NULL;
}

static int
has_connected(void *ctx)
{
    (void)ctx;
    return stats().connects == 1;
}

static void
close_wakes_a_call_that_waits_for_the_server(void **state)
{
    struct near_l2_item item   = { .key = near_key("k") };
    int64_t             before = test_now_ms();
    pthread_t           thread;

    (void)state;
    open_fake("", 0); /* never answers */
    atomic_store(&quiet, true);
    assert_int_equal(pthread_create(&thread, NULL, blocked_get, &item), 0);
    assert_true(test_wait_for(has_connected, NULL, 10000 * test_slack()));
    tier.ops->close(tier.self);
    tier.ops->close(tier.self);
    tier.ops->stop(tier.self);
    pthread_join(thread, NULL);
    atomic_store(&quiet, false);
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_CLOSED);
    assert_true(test_now_ms() - before < 30000);
}

/* ---------------------------------------------------------------------------------- sockets and processes */

static void
H10_a_socket_path_that_is_too_long_is_refused(void **state)
{
    struct near__redis_conn *conn;
    near_error               error = { 0 };

    (void)state;
    tier.env.uri = &tier.uri;
    snprintf(tier.uri.scheme, sizeof(tier.uri.scheme), "redis+unix");
    tier.uri.kind          = NEAR__URI_REDIS;
    tier.uri.address_count = 1;
    memset(tier.uri.addresses[0].host, 'a', 108);
    tier.uri.addresses[0].host[0] = '/';
    assert_int_equal(near__l2_redis_unix.open(&tier.self, &tier.env, &tier.traits, &error), NEAR_ERR_INVALID);
    assert_non_null(strstr(error.text, "108 bytes, at most 107"));
    assert_null(tier.self);
    assert_int_equal(dial(&conn, NULL, &error), NEAR_ERR_INVALID);
    assert_null(conn);
    tier.uri.addresses[0].host[107] = '\0'; /* control: as long as possible is tried, and nobody is there */
    assert_int_equal(dial(&conn, NULL, &error), NEAR_ERR_UNAVAILABLE);
}

/* The first bytes to a peer that is gone are answered by a reset, the next would raise SIGPIPE. */
static void
H11_a_peer_that_closes_does_not_kill_the_process(void **state)
{
    struct near__redis_server to  = { .uri = &tier.uri, .clock = &near__clock_system, .max_reply = MiB };
    near_bytes                one = near_key("PING");
    struct near__redis_conn  *conn;
    struct sigaction          action;
    near_status               status = NEAR_OK;
    near_error                error  = { 0 };

    (void)state;
    assert_int_equal(sigaction(SIGPIPE, NULL, &action), 0);
    assert_true(action.sa_handler == SIG_DFL);
    fake.slam = true;
    fake_start();
    assert_int_equal(near__redis_dial(&conn, &to, later(), NULL), NEAR_OK);
    for (int64_t until = test_now_ms() + 10000; status == NEAR_OK && test_now_ms() < until;) {
        assert_int_equal(near__redis_append(conn, 1, &one), NEAR_OK);
        status = near__redis_flush(conn, later(), &error);
    }
    assert_int_equal(status, NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "PING failed: "));
    assert_false(near__redis_conn_usable(conn));
    assert_int_equal(near__redis_flush(conn, later(), &error), NEAR_ERR_UNAVAILABLE); /* and stays broken */
    near__redis_conn_free(&conn);
    assert_int_equal(sigaction(SIGPIPE, NULL, &action), 0);
    assert_true(action.sa_handler == SIG_DFL);
}

static void
H12_descriptors_are_close_on_exec(void **state)
{
    char path[64], target[64];

    (void)state;
    open_server();
    assert_int_equal(get("k", ""), NEAR_L2_ABSENT);
    for (int fd = 3; fd < 64; fd++) {
        int     flags = fcntl(fd, F_GETFD);
        ssize_t n;

        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        n = readlink(path, target, sizeof(target) - 1);
        if (n > 0 && strncmp(target, "socket:", 7) == 0)
            assert_true((flags & FD_CLOEXEC) != 0);
    }
}

static void
P3_a_forked_child_leaves_the_parents_connections_alone(void **state)
{
    int   status;
    pid_t child;

    (void)state;
    open_server();
    assert_int_equal(set("k", "v"), NEAR_L2_DONE);
    child = fork();
    if (child == 0) {
        struct near_l2_item item = { .key = near_key("k") };

        atomic_store(&quiet, true);
        tier.ops->forked(tier.self);
        tier.ops->get_many(tier.self, &item, 1, deliver, NULL, in_ms(1000));
        tier.ops->close(tier.self);
        tier.ops->stop(tier.self);
        tier.ops->fini(tier.self);
        _exit(item.answer == NEAR_L2_ERROR && item.status == NEAR_ERR_CLOSED ? 0 : 1);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(get("k", "v"), NEAR_L2_DONE);
    assert_int_equal(stats().connects, 1);
}

static void
H9_every_address_of_a_name_is_tried(void **state)
{
    struct addrinfo *known;
    char             uri[64];

    (void)state;
    if (getaddrinfo("localhost", NULL, NULL, &known) != 0)
        skip(); /* a machine without a hosts file */
    freeaddrinfo(known);
    test_need_server(server); /* it listens on 127.0.0.1 only; localhost is ::1 as well on most machines */
    snprintf(uri, sizeof(uri), "redis://localhost:%d", server->port);
    open_tier(uri);
    assert_int_equal(set("k", "v"), NEAR_L2_DONE);
}

/* ------------------------------------------------------------------------------------------ hostile peers */

/* Whatever the fake server said: an error in time, no value, and the connection closed. */
static void
expect_fault(const char *reply, size_t size, size_t repeat, size_t n)
{
    struct near_l2_item items[3] = { { .key = near_key("a") },
                                     { .key = near_key("b") },
                                     { .key = near_key("c") } };
    struct got          got[3]   = { 0 };

    setup(NULL);
    fake.repeat = repeat;
    open_fake(reply, size);
    for (size_t i = 0; i < n; i++)
        items[i].user = &got[i];
    tier.ops->get_many(tier.self, items, n, deliver, NULL, later());
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(items[i].answer, NEAR_L2_ERROR);
        assert_int_equal(items[i].status, NEAR_ERR_PROTOCOL);
        assert_false(got[i].delivered);
    }
    assert_client_closes(1);
    assert_int_equal(stats().disconnects, 1);
    teardown(NULL);
}

static void
H13_H14_replies_that_make_no_sense_end_the_connection(void **state)
{
    static const char *const lone[] = {
        "%1\r\n+a\r\n+b\r\n", /* RESP3 */
        "hello\r\n",
        "\r\n",
        "$-7\r\n",
        "*2147483647\r\n", /* 16 GiB of pointers, if believed */
        "*65537\r\n",
        "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
        "$99999999999999999999\r\n",
        ":12\r\n",
        "+OK\r\n",
        "*1\r\n$1\r\na\r\n",
        "$1\r\na\r\n$1\r\nb\r\n", /* a reply too many: which one is ours? */
        "$1\r\na\r\nx",
    };
    static const char *const batch[] = {
        "$1\r\na\r\n",
        "*2\r\n$1\r\na\r\n$1\r\nb\r\n", /* three were asked for */
        "*4\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n",
        "*-1\r\n",
        "$-1\r\n", /* nil for a batch is no absence */
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(lone); i++)
        expect_fault(lone[i], strlen(lone[i]), 1, 1);
    for (size_t i = 0; i < NEAR_COUNT_OF(batch); i++)
        expect_fault(batch[i], strlen(batch[i]), 1, 3);
}

static long
peak_rss_kib(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

static void
H14_an_endless_reply_is_cut_off(void **state)
{
    static char flood[MiB];
    long        before = peak_rss_kib();

    (void)state;
    memcpy(flood, "$2147483648\r\n", 13);
    memset(flood + 13, 'x', sizeof(flood) - 13);
    expect_fault(flood, sizeof(flood), 2048, 1);
    memset(flood, 0, sizeof(flood));
    memcpy(flood, "*60000\r\n", 8);
    for (size_t at = 8; at + 7 < sizeof(flood); at += 7) /* many small elements, and never the last */
        memcpy(flood + at, "$1\r\nx\r\n", 7);
    memcpy(flood + 8 + 7 * 59999, "$2147483648\r\n", 13);
    expect_fault(flood, sizeof(flood), 2048, 1);
    if (test_slack() == 1) /* a sanitizer keeps freed memory for a while */
        assert_in_range(peak_rss_kib() - before, 0, 400 * KiB);
}

/* --------------------------------------------------------------------------------------------- pipelines */

struct echo {
    size_t count, wrong;
    char  *value;
    size_t size;
};

static void
echo_reply(void *ctx, size_t index, redisReply *reply)
{
    struct echo *echo = ctx;
    bool         good = reply->type == REDIS_REPLY_ARRAY && reply->elements == 2;

    reply = good ? reply->element[1] : reply;
    echo->wrong += index != echo->count++ || !good || reply->len != echo->size ||
                   memcmp(reply->str, echo->value, echo->size) != 0;
}

/* 32 MiB each way in one exchange, far more than the buffers between us, with a peer that does not read
 * while it writes: who only writes at first would never end.  The peer echoes, and a command is an array
 * like any reply. */
static void
H18_a_large_pipeline_is_read_while_it_is_written(void **state)
{
    struct near__redis_server to   = { .uri = &tier.uri, .clock = &near__clock_system, .max_reply = MiB };
    struct echo               echo = { .size = 64 * KiB };
    struct near__redis_conn  *conn;
    near_bytes                argv[2] = { near_key("ECHO") };
    size_t                    answered;
    bool                      sent_any;

    (void)state;
    fake.echo = true;
    fake_start();
    echo.value = malloc(echo.size);
    memset(echo.value, 'e', echo.size);
    argv[1] = (near_bytes){ echo.value, echo.size };
    assert_int_equal(near__redis_dial(&conn, &to, later(), NULL), NEAR_OK);
    for (int i = 0; i < 512; i++)
        assert_int_equal(near__redis_append(conn, 2, argv), NEAR_OK);
    assert_int_equal(near__redis_queued(conn), 512);
    assert_int_equal(near__redis_exchange(conn, echo_reply, &echo, &answered, &sent_any, later(), NULL),
                     NEAR_OK);
    assert_int_equal(answered, 512);
    assert_int_equal(near__redis_sent(conn), 512);
    assert_true(sent_any);
    assert_int_equal(echo.count, 512);
    assert_int_equal(echo.wrong, 0);
    assert_true(near__redis_conn_usable(conn));
    near__redis_conn_free(&conn);
    free(echo.value);
}

static void
H18_large_batches_go_both_ways(void **state)
{
    enum { N = NEAR_L2_BATCH, SIZE = 64 * KiB };
    static struct near_l2_item items[N];
    static struct got          got[N];
    static char                keys[N][16];
    uint8_t                   *value = malloc(SIZE);

    (void)state;
    open_server();
    memset(value, 'v', SIZE);
    for (int i = 0; i < N; i++) {
        snprintf(keys[i], sizeof(keys[i]), "k%d", i);
        items[i] =
            (struct near_l2_item){ .key = near_key(keys[i]), .value = { value, SIZE }, .user = &got[i] };
    }
    tier.ops->set_many(tier.self, NEAR_L2_ALWAYS, items, N, NULL, later());
    for (int i = 0; i < N; i++)
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
    tier.ops->get_many(tier.self, items, N, deliver, NULL, later());
    for (int i = 0; i < N; i++) {
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
        assert_int_equal(got[i].size, SIZE);
        assert_memory_equal(got[i].data, value, sizeof(got[i].data));
    }
    free(value);
}

/* ---------------------------------------------------------------------------------------------- refusals */

static void
R1_error_replies_by_their_first_word(void **state)
{
    static const struct {
        const char *reply;
        near_status status;
        bool        drops;
    } cases[] = {
        { "-LOADING Redis is loading the dataset in memory\r\n", NEAR_ERR_UNAVAILABLE, true },
        { "-BUSY Redis is busy running a script.\r\n", NEAR_ERR_UNAVAILABLE, false },
        { "-TRYAGAIN Multiple keys request during rehashing of slot\r\n", NEAR_ERR_UNAVAILABLE, false },
        { "-CLUSTERDOWN The cluster is down\r\n", NEAR_ERR_UNAVAILABLE, true },
        { "-MASTERDOWN Link with MASTER is down\r\n", NEAR_ERR_UNAVAILABLE, true },
        { "-READONLY You can't write against a read only replica.\r\n", NEAR_ERR_UNAVAILABLE, true },
        { "-MOVED 3999 127.0.0.1:6381\r\n", NEAR_ERR_UNAVAILABLE, true },
        { "-OOM command not allowed when used memory > 'maxmemory'.\r\n", NEAR_ERR_DENIED, false },
        { "-MISCONF Errors writing to the AOF file\r\n", NEAR_ERR_DENIED, false },
        { "-NOREPLICAS Not enough good replicas to write.\r\n", NEAR_ERR_DENIED, false },
        { "-NOAUTH Authentication required.\r\n", NEAR_ERR_DENIED, true },
        { "-WRONGPASS invalid username-password pair\r\n", NEAR_ERR_DENIED, true },
        { "-NOPERM this user has no permissions\r\n", NEAR_ERR_DENIED, false },
        { "-WRONGTYPE Operation against a key\r\n", NEAR_ERR_PROTOCOL, false },
        { "-ERR max number of clients reached\r\n", NEAR_ERR_UNAVAILABLE, false },
        { "-ERR unknown command 'hunter2'\r\n", NEAR_ERR_PROTOCOL, false },
        { "-OOMPH is another word\r\n", NEAR_ERR_PROTOCOL, false },
        { "-\r\n", NEAR_ERR_PROTOCOL, false },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(cases); i++) {
        struct near_l2_item item;
        struct got          got;

        setup(NULL);
        fake.always = true;
        open_fake(cases[i].reply, strlen(cases[i].reply));
        item = get_item("k", &got, later());
        assert_int_equal(item.answer, NEAR_L2_ERROR);
        assert_int_equal(item.status, cases[i].status);
        item = set_item(NEAR_L2_ALWAYS, "k", near_key("v"), 0, 0, later());
        assert_int_equal(item.answer, NEAR_L2_ERROR); /* refused is certain */
        assert_int_equal(item.status, cases[i].status);
        assert_int_equal(fake.accepted, cases[i].drops ? 2 : 1);
        assert_non_null(strstr(logged, "refused: "));
        assert_null(strstr(logged, "hunter2"));
        teardown(NULL);
    }
}

static near_status
health_status(near_error *error)
{
    char text[128];

    return tier.ops->health(tier.self, text, sizeof(text), later(), error);
}

static void
R4_credentials_are_checked_and_never_shown(void **state)
{
    static const char *const arguments[] = { "--requirepass", "sesame-street", NULL };
    near_error               error       = { 0 };
    char                     uri[256];

    (void)state;
    special = test_redis_start(TEST_SERVER_TCP, arguments);
    test_need_server(special);
    ask(special, "ACL", "SETUSER", "alice", "on", ">wonder-land", "~mine:*", "+@all", NULL);
    tier.env.client_name = "tester";

    snprintf(uri, sizeof(uri), "redis://:wrong-word@127.0.0.1:%d", special->port);
    open_tier(uri);
    assert_int_equal(health_status(&error), NEAR_ERR_DENIED);
    assert_non_null(strstr(error.text, "AUTH refused: WRONGPASS"));
    assert_null(strstr(error.text, "wrong-word"));
    assert_int_equal(set("k", "v"), NEAR_L2_ERROR);
    assert_null(strstr(logged, "wrong-word"));
    close_tier();

    snprintf(uri, sizeof(uri), "redis://127.0.0.1:%d", special->port);
    open_tier(uri);
    assert_int_equal(health_status(&error), NEAR_ERR_DENIED);
    assert_non_null(strstr(error.text, "CLIENT SETNAME refused: NOAUTH"));
    close_tier();

    snprintf(uri, sizeof(uri), "redis://alice:wonder-land@127.0.0.1:%d", special->port);
    open_tier(uri);
    assert_int_equal(health_status(&error), NEAR_OK);
    assert_int_equal(set("mine:k", "v"), NEAR_L2_DONE);
    assert_non_null(strstr(ask(special, "CLIENT", "LIST", NULL), "name=tester"));
    assert_int_equal(set_item(NEAR_L2_ALWAYS, "not:mine", near_key("v"), 0, 0, later()).status,
                     NEAR_ERR_DENIED);
    close_tier();

    snprintf(uri, sizeof(uri), "redis://bob:wonder-land@127.0.0.1:%d", special->port);
    open_tier(uri);
    assert_int_equal(health_status(&error), NEAR_ERR_DENIED);
    assert_null(strstr(error.text, "wonder-land"));
    assert_null(strstr(logged, "wonder-land"));
}

static void
R4_a_server_that_quotes_the_password_is_not_quoted(void **state)
{
    near_error error = { 0 };

    (void)state;
    open_fake("-ERR unknown command 'AUTH', with args beginning with: 'hunter2'\r\n", 66);
    close_tier();
    snprintf(tier.uri.password, sizeof(tier.uri.password), "hunter2");
    open_parsed();
    assert_int_not_equal(health_status(&error), NEAR_OK);
    assert_non_null(strstr(error.text, "AUTH refused: ERR"));
    assert_null(strstr(error.text, "hunter2"));
}

/* After a partition the kernel would send it when others have written since. */
static void
race9_what_is_unsent_of_a_write_goes_with_its_connection(void **state)
{
    struct near_l2_item item;

    (void)state;
    open_fake("+OK\r\n", 5);
    assert_int_equal(set_item(NEAR_L2_ALWAYS, "k", near_key("v"), 0, 0, later()).answer, NEAR_L2_DONE);
    close_tier();
    assert_client_closes(1);
    assert_int_equal(fake.resets, 0); /* control */
    teardown(NULL);
    open_fake("", 0); /* never answers */
    item = set_item(NEAR_L2_ALWAYS, "k", near_key("v"), 0, 0, in_ms(200 * test_slack()));
    assert_int_equal(item.answer, NEAR_L2_UNKNOWN);
    assert_client_closes(1);
    assert_int_equal(fake.resets, 1);
}

static void
R4_the_database_is_selected(void **state)
{
    near_error error = { 0 };
    char       uri[64];

    (void)state;
    test_need_server(server);
    snprintf(uri, sizeof(uri), "redis://127.0.0.1:%d/3", server->port);
    open_tier(uri);
    assert_int_equal(set("k", "v"), NEAR_L2_DONE);
    assert_string_equal(ask(server, "EXISTS", "k", NULL), "0");
    assert_non_null(strstr(ask(server, "INFO", "keyspace", NULL), "db3:keys=1"));
    close_tier();
    snprintf(uri, sizeof(uri), "redis://127.0.0.1:%d/4711", server->port);
    open_tier(uri);
    assert_int_equal(health_status(&error), NEAR_ERR_DENIED);
    assert_non_null(strstr(error.text, "SELECT refused: ERR DB index is out of range"));
}

/* ------------------------------------------------------------------------------------------ under a stamp */

static near_bytes
stamped(uint8_t *entry, size_t size, uint64_t stamp)
{
    memset(entry, 'e', size);
    if (size >= NEAR_L2_STAMP_AT + 8)
        near__le64_put(entry + NEAR_L2_STAMP_AT, stamp);
    return (near_bytes){ entry, size };
}

static enum near_l2_answer
set_over(const char *key, uint64_t expected, uint64_t stamp, int64_t ttl_ms)
{
    uint8_t entry[40];

    return set_item(NEAR_L2_IF_STAMP, key, stamped(entry, sizeof(entry), stamp), expected, ttl_ms, later())
        .answer;
}

static enum near_l2_answer
remove_over(const char *key, uint64_t expected)
{
    struct near_l2_item item = { .key = near_key(key), .expected = expected };

    tier.ops->remove_many(tier.self, NEAR_L2_IF_STAMP, &item, 1, NULL, later());
    return item.answer;
}

static void
a_stamp_must_be_there_to_be_replaced_or_removed(void **state)
{
    const uint64_t odd = UINT64_C(0x0a0d00ff27225c01); /* newlines, NUL, quotes, a backslash */
    uint8_t        entry[40];

    (void)state;
    open_server();
    assert_int_equal(set_over("k", 1, 2, 0), NEAR_L2_ABSENT);
    assert_string_equal(ask(server, "EXISTS", "k", NULL), "0");
    set_item(NEAR_L2_ALWAYS, "k", stamped(entry, 40, odd), 0, 0, later());
    assert_int_equal(set_over("k", odd + 1, 2, 0), NEAR_L2_ABSENT);
    assert_int_equal(remove_over("k", odd + 1), NEAR_L2_ABSENT);
    assert_int_equal(set_over("k", odd, 2, 60000), NEAR_L2_DONE);
    assert_in_range(atoi(ask(server, "PTTL", "k", NULL)), 1, 60000);
    assert_int_equal(set_over("k", 2, 3, 0), NEAR_L2_DONE);
    assert_string_equal(ask(server, "PTTL", "k", NULL), "-1");
    assert_int_equal(remove_over("k", 3), NEAR_L2_DONE);
    assert_int_equal(remove_over("k", 3), NEAR_L2_ABSENT);
    for (size_t size = 0; size <= 16; size++) { /* too short for a stamp: no stamp matches */
        uint64_t eee = UINT64_C(0x6565656565656565);

        set_item(NEAR_L2_ALWAYS, "k", stamped(entry, size, eee), 0, 0, later());
        assert_int_equal(set_over("k", eee, 2, 0), size < 16 ? NEAR_L2_ABSENT : NEAR_L2_DONE);
    }
}

static int
calls_of(const char *command)
{
    char        name[64];
    const char *at, *all = ask(server, "INFO", "commandstats", NULL);

    snprintf(name, sizeof(name), "cmdstat_%s:calls=", command);
    at = strstr(all, name);
    return at == NULL ? 0 : atoi(at + strlen(name));
}

static void
R5_scripts_survive_a_flush_of_the_servers_memory(void **state)
{
    enum { N = 100 };
    struct near_l2_item items[N];
    uint8_t             entries[N][40];
    char                keys[N][16];

    (void)state;
    open_server();
    for (uint64_t round = 1; round <= 4; round++) {
        int before = 0;

        ask(server, "CONFIG", "RESETSTAT", NULL);
        if (round != 3) /* control: in round 3 the server still knows the script */
            ask(server, "SCRIPT", "FLUSH", NULL);
        for (int i = 0; i < N; i++) {
            snprintf(keys[i], sizeof(keys[i]), "k%d", i);
            items[i] =
                (struct near_l2_item){ .key = near_key(keys[i]), .value = stamped(entries[i], 40, round) };
            before += set_item(NEAR_L2_ALWAYS, keys[i], items[i].value, 0, 0, later()).answer == NEAR_L2_DONE;
            items[i].expected = i % 2 == 0 ? round : 999;
            items[i].value    = stamped(entries[i], 40, round + 100);
        }
        assert_int_equal(before, N);
        tier.ops->set_many(tier.self, NEAR_L2_IF_STAMP, items, N, NULL, later());
        for (int i = 0; i < N; i++)
            assert_int_equal(items[i].answer, i % 2 == 0 ? NEAR_L2_DONE : NEAR_L2_ABSENT);
        assert_int_equal(calls_of("evalsha"), N);
        assert_int_equal(calls_of("eval"), round == 3 ? 0 : N);
    }
    assert_int_equal(stats().connects, 1);
}

/* ----------------------------------------------------------------------------------- connections that die */

static void
P5_killed_idle_connections_are_no_errors(void **state)
{
    (void)state;
    open_server();
    assert_int_equal(set("k", "v"), NEAR_L2_DONE);
    for (size_t i = 0; i < test_scale(20); i++) {
        ask(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes", NULL);
        assert_int_equal(get("k", "v"), NEAR_L2_DONE);
        ask(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes", NULL);
        assert_int_equal(set("k", "v"), NEAR_L2_DONE);
    }
}

static void
an_absent_server_is_unreachable_and_comes_back(void **state)
{
    struct got          got;
    struct near_l2_item item;

    (void)state;
    special = test_redis_start(TEST_SERVER_TCP, NULL);
    test_need_server(special);
    open_tier(special->uri);
    assert_int_equal(set("k", "v"), NEAR_L2_DONE);
    test_server_kill(special);
    for (int i = 0; i < 5; i++) {
        item = get_item("k", &got, later());
        assert_int_equal(item.answer, NEAR_L2_ERROR);
        assert_int_equal(item.status, NEAR_ERR_UNAVAILABLE);
        item = set_item(NEAR_L2_ALWAYS, "k", near_key("v"), 0, 0, later());
        assert_int_equal(item.answer, NEAR_L2_ERROR); /* no byte was sent, so it is no riddle */
        assert_int_equal(item.status, NEAR_ERR_UNAVAILABLE);
    }
    assert_true(test_server_restart(special));
    for (int64_t until = test_now_ms() + 5000 * test_slack(); test_now_ms() < until;)
        if (get("k", "") == NEAR_L2_ABSENT)
            break;
    assert_int_equal(get("k", ""), NEAR_L2_ABSENT);
}

/* A reply cut after each of its bytes, on the first connection only: the second try answers.  On all of
 * them: an error. */
static void
a_reply_cut_at_any_byte_is_never_an_answer(void **state)
{
    static const char   value[] = "a value of some forty bytes to be cut in";
    struct got          got;
    struct near_l2_item item;

    (void)state;
    open_proxy();
    assert_int_equal(set("there", value), NEAR_L2_DONE);
    for (int everywhere = 0; everywhere < 2; everywhere++)
        for (int64_t bytes = 0; bytes <= 47; bytes++) {
            bool whole = bytes == 47; /* $40\r\n value \r\n */

            test_proxy_fault(proxy,
                             (struct test_fault){ .kind      = TEST_FAULT_CUT,
                                                  .direction = everywhere ? TEST_DOWN : TEST_DOWN | TEST_ONCE,
                                                  .bytes     = bytes });
            item = get_item("there", &got, later());
            assert_int_equal(item.answer, everywhere && !whole ? NEAR_L2_ERROR : NEAR_L2_DONE);
            if (item.answer == NEAR_L2_DONE)
                assert_memory_equal(got.data, value, 40);
            test_proxy_heal(proxy);
        }
    for (int64_t bytes = 0; bytes < 5; bytes++) { /* $-1\r\n */
        test_proxy_fault(
            proxy, (struct test_fault){ .kind = TEST_FAULT_CUT, .direction = TEST_DOWN, .bytes = bytes });
        assert_int_equal(get("not there", ""), NEAR_L2_ERROR);
        test_proxy_heal(proxy);
    }
}

/* Writes cut at each byte of the request or of the reply: what is said not done must not be there, now or
 * later. */
static void
race_9_writes_that_were_cut_are_answered_truthfully(void **state)
{
    enum { OFFSETS = 260 };
    static enum near_l2_answer answers[2][2][OFFSETS];
    static char                key[64];
    size_t                     counts[5] = { 0 };

    (void)state;
    open_proxy();
    for (int up = 0; up < 2; up++)
        for (int announced = 0; announced < 2; announced++)
            for (int64_t bytes = 0; bytes < OFFSETS; bytes++) {
                uint8_t                 message[32] = { 0 };
                struct near_l2_announce announce    = { .channel = near_key("bus"),
                                                        .message = message,
                                                        .size    = 32 };
                struct near_l2_item     item        = { .key = near_key(key), .value = near_key("v") };

                snprintf(key, sizeof(key), "k%d%d%d", up, announced, (int)bytes);
                item.key = near_key(key);
                test_proxy_fault(proxy, (struct test_fault){ .kind      = TEST_FAULT_CUT,
                                                             .direction = up ? TEST_UP : TEST_DOWN,
                                                             .bytes     = bytes });
                tier.ops->set_many(tier.self, NEAR_L2_ALWAYS, &item, 1, announced ? &announce : NULL,
                                   later());
                answers[up][announced][bytes] = item.answer;
                if (announced && item.answer == NEAR_L2_ERROR)
                    assert_true(announce.stream == 0);
                if (announced && item.answer != NEAR_L2_ERROR)
                    assert_true(announce.stream != 0);
                test_proxy_heal(proxy);
            }
    close_tier();
    for (int up = 0; up < 2; up++)
        for (int announced = 0; announced < 2; announced++)
            for (int bytes = 0; bytes < OFFSETS; bytes++) {
                enum near_l2_answer answer = answers[up][announced][bytes];

                snprintf(key, sizeof(key), "k%d%d%d", up, announced, bytes);
                assert_true(answer == NEAR_L2_DONE || answer == NEAR_L2_ERROR || answer == NEAR_L2_UNKNOWN);
                counts[answer]++;
                if (answer == NEAR_L2_DONE)
                    assert_string_equal(ask(server, "EXISTS", key, NULL), "1");
                if (answer == NEAR_L2_ERROR)
                    assert_string_equal(ask(server, "EXISTS", key, NULL), "0");
            }
    assert_true(counts[NEAR_L2_DONE] > 0 && counts[NEAR_L2_UNKNOWN] > 0);
}

/* ------------------------------------------------------------------------------------------------ hashes */

/* Two fields of one hash. */
struct pair {
    struct near_l2_hash hash;
    near_bytes          fields[2], values[2];
    enum near_l2_answer answers[2];
    struct got          got[2];
};

static void
deliver_field(void *ctx, struct near_l2_item *item, size_t field, near_bytes value)
{
    struct pair *pair = item->user;

    (void)ctx;
    pair->got[field].delivered = true;
    pair->got[field].size      = value.size;
    memcpy(pair->got[field].data, value.data, value.size < KiB ? value.size : KiB);
}

static struct near_l2_item
pair_item(struct pair *pair, const char *key)
{
    *pair      = (struct pair){ .fields = { near_key("f"), near_key("g") },
                                .values = { near_key("value of f"), near_key("value of g") } };
    pair->hash = (struct near_l2_hash){ pair->fields, 2, pair->values, pair->answers };
    return (struct near_l2_item){ .key = near_key(key), .hash = &pair->hash, .user = pair };
}

static struct near_l2_item
get_pair(struct pair *pair, const char *key, int64_t deadline)
{
    struct near_l2_item item = pair_item(pair, key);

    tier.ops->hash_get_many(tier.self, &item, 1, deliver_field, NULL, deadline);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pair->got[i].delivered, pair->answers[i] == NEAR_L2_DONE);
    return item;
}

static struct near_l2_item
set_pair(const char *key, int64_t ttl_ms, struct near_l2_announce *announce, int64_t deadline)
{
    struct pair         pair;
    struct near_l2_item item = pair_item(&pair, key);

    item.ttl_ms = ttl_ms;
    tier.ops->hash_set_many(tier.self, &item, 1, announce, deadline);
    item.hash = NULL;
    return item;
}

static void
hashes_are_those_of_other_programs(void **state)
{
    struct near_l2_item item;
    struct pair         pair;

    (void)state;
    open_server();
    ask(server, "HSET", "other", "g", "42", "x", "y", NULL);
    item = get_pair(&pair, "other", later());
    assert_int_equal(item.answer, NEAR_L2_DONE);
    assert_int_equal(pair.answers[0], NEAR_L2_ABSENT);
    assert_memory_equal(pair.got[1].data, "42", 2);
    assert_int_equal(set_pair("other", 0, NULL, later()).answer, NEAR_L2_DONE);
    assert_string_equal(ask(server, "HGET", "other", "f", NULL), "value of f"); /* plain */
    assert_string_equal(ask(server, "HGET", "other", "x", NULL), "y");
    assert_string_equal(ask(server, "HLEN", "other", NULL), "3");
}

/* Like MGET's: what is not an array of so many values might be the answer to something else. */
static void
H14_replies_of_another_shape_are_no_hash(void **state)
{
    static const char *const replies[] = {
        "*1\r\n$1\r\na\r\n",
        "*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n",
        "*0\r\n",
        "*-1\r\n",
        "$-1\r\n",
        "$1\r\na\r\n",
        ":2\r\n",
        "+OK\r\n",
        "*2\r\n:1\r\n:2\r\n",
        "*2\r\n$1\r\na\r\n+b\r\n",
        "*2\r\n$1\r\na\r\n-ERR b\r\n",
        "*2\r\n$1\r\na\r\n*1\r\n$1\r\nb\r\n",
        "*2\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n",
        "*2147483647\r\n",
        "*2\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n", /* a reply too many */
        "*2\r\n$1\r\na\r\n$-2\r\n",
        "%1\r\n$1\r\na\r\n$1\r\nb\r\n",
    };
    struct near_l2_item item;
    struct pair         pair;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(replies); i++) {
        setup(NULL);
        fake.always = true; /* on every connection: it is idempotent, and tried again */
        open_fake(replies[i], strlen(replies[i]));
        item = get_pair(&pair, "k", later());
        assert_int_equal(item.answer, NEAR_L2_ERROR);
        assert_int_equal(item.status, NEAR_ERR_PROTOCOL);
        assert_int_equal(pair.answers[0], NEAR_L2_NOT_TRIED);
        assert_true(stats().disconnects >= 1);
        teardown(NULL);
    }
    setup(NULL); /* control: the shape that it must have */
    fake.always = true;
    open_fake("*2\r\n$1\r\na\r\n$-1\r\n", 16);
    item = get_pair(&pair, "k", later());
    assert_int_equal(item.answer, NEAR_L2_DONE);
    assert_int_equal(pair.answers[0], NEAR_L2_DONE);
    assert_int_equal(pair.answers[1], NEAR_L2_ABSENT);
}

static void
H14_an_endless_hash_is_cut_off(void **state)
{
    static char         flood[MiB];
    struct near_l2_item item;
    struct pair         pair;
    long                before = peak_rss_kib();

    (void)state;
    memcpy(flood, "*2\r\n$2147483648\r\n", 17);
    memset(flood + 17, 'x', sizeof(flood) - 17);
    fake.repeat = 2048;
    open_fake(flood, sizeof(flood));
    item = get_pair(&pair, "k", later());
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(pair.answers[0], NEAR_L2_NOT_TRIED);
    if (test_slack() == 1) /* a sanitizer keeps freed memory for a while */
        assert_in_range(peak_rss_kib() - before, 0, 400 * KiB);
}

/* Refused is certain, for each by itself, and costs a connection only where the server will not do. */
static void
R1_a_refused_hash_is_an_error_of_its_own(void **state)
{
    static const struct {
        const char *reply;
        near_status status;
        unsigned    connections;
    } rows[] = { { "-WRONGTYPE Operation against a key\r\n", NEAR_ERR_PROTOCOL, 1 },
                 { "-NOPERM this user has no permissions\r\n", NEAR_ERR_DENIED, 1 },
                 { "-OOM command not allowed\r\n", NEAR_ERR_DENIED, 1 },
                 { "-LOADING Redis is loading the dataset in memory\r\n", NEAR_ERR_UNAVAILABLE, 2 } };
    struct near_l2_item item;
    struct pair         pair;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        setup(NULL);
        fake.always = true;
        open_fake(rows[i].reply, strlen(rows[i].reply));
        item = get_pair(&pair, "k", later());
        assert_int_equal(item.answer, NEAR_L2_ERROR);
        assert_int_equal(item.status, rows[i].status);
        item = set_pair("k", 0, NULL, later());
        assert_int_equal(item.answer, NEAR_L2_ERROR);
        assert_int_equal(item.status, rows[i].status);
        assert_int_equal(fake.accepted, rows[i].connections);
        teardown(NULL);
    }
}

static void
all_hashes_of_a_call_take_one_round_trip(void **state)
{
    enum { N = 40 };
    struct near_l2_item items[N];
    static struct pair  pairs[N];
    int64_t             begun;

    (void)state;
    open_proxy();
    for (int i = 0; i < N; i++)
        items[i] = pair_item(&pairs[i], "k");
    assert_int_equal(set_pair("k", 0, NULL, later()).answer, NEAR_L2_DONE);
    test_proxy_fault(proxy,
                     (struct test_fault){ .kind = TEST_FAULT_DELAY, .direction = TEST_DOWN, .ms = 100 });
    begun = test_now_ms();
    tier.ops->hash_get_many(tier.self, items, N, deliver_field, NULL, later());
    assert_in_range(test_now_ms() - begun, 100, 199 * test_slack());
    for (int i = 0; i < N; i++)
        assert_int_equal(pairs[i].answers[1], NEAR_L2_DONE);
}

static void
R5_a_hashs_time_to_live_is_a_script(void **state)
{
    (void)state;
    open_server();
    ask(server, "SCRIPT", "FLUSH", NULL);
    ask(server, "CONFIG", "RESETSTAT", NULL);
    for (int i = 0; i < 3; i++)
        assert_int_equal(set_pair("k", 60000, NULL, later()).answer, NEAR_L2_DONE);
    assert_int_equal(calls_of("evalsha"), 3);
    assert_int_equal(calls_of("eval"), 1); /* known from then on: the SHA-1 is right */
    assert_in_range(atoi(ask(server, "PTTL", "k", NULL)), 1, 60000);
    assert_int_equal(set_pair("k", 0, NULL, later()).answer, NEAR_L2_DONE);
    assert_in_range(atoi(ask(server, "PTTL", "k", NULL)), 1, 60000);
    assert_int_equal(calls_of("evalsha"), 3);
}

static void
a_hash_cut_at_any_byte_is_never_an_answer(void **state)
{
    struct near_l2_item item;
    struct pair         pair;

    (void)state;
    open_proxy();
    assert_int_equal(set_pair("k", 0, NULL, later()).answer, NEAR_L2_DONE);
    for (int64_t bytes = 0; bytes <= 38; bytes++) { /* *2, and twice $10 and ten bytes */
        test_proxy_fault(
            proxy, (struct test_fault){ .kind = TEST_FAULT_CUT, .direction = TEST_DOWN, .bytes = bytes });
        item = get_pair(&pair, "k", later());
        assert_int_equal(item.answer, bytes == 38 ? NEAR_L2_DONE : NEAR_L2_ERROR);
        for (int i = 0; i < 2; i++)
            assert_int_equal(pair.answers[i], bytes == 38 ? NEAR_L2_DONE : NEAR_L2_NOT_TRIED);
        test_proxy_heal(proxy);
    }
}

/* At each byte of the request or of the reply: what is said not done is not there, what is there has its time to live and all its fields. */
static void
race_9_hashes_that_were_cut_are_answered_truthfully(void **state)
{
    enum { OFFSETS = 430 };
    static enum near_l2_answer answers[2][2][OFFSETS];
    size_t                     counts[5] = { 0 };
    char                       key[64];

    (void)state;
    open_proxy();
    assert_int_equal(set_pair("k", 60000, NULL, later()).answer, NEAR_L2_DONE); /* the script is known */
    for (int up = 0; up < 2; up++)
        for (int told = 0; told < 2; told++)
            for (int64_t bytes = 0; bytes < OFFSETS; bytes += 3) {
                uint8_t                 message[32] = { 0 };
                struct near_l2_announce announce    = { near_key("bus"), message, 32, 0, 0 };

                snprintf(key, sizeof(key), "k%d%d%d", up, told, (int)bytes);
                test_proxy_fault(proxy, (struct test_fault){ .kind      = TEST_FAULT_CUT,
                                                             .direction = up ? TEST_UP : TEST_DOWN,
                                                             .bytes     = bytes });
                answers[up][told][bytes] = set_pair(key, 60000, told ? &announce : NULL, later()).answer;
                if (told)
                    assert_int_equal(announce.stream == 0, answers[up][told][bytes] == NEAR_L2_ERROR);
                test_proxy_heal(proxy);
            }
    close_tier();
    for (int up = 0; up < 2; up++)
        for (int told = 0; told < 2; told++)
            for (int bytes = 0; bytes < OFFSETS; bytes += 3) {
                enum near_l2_answer answer = answers[up][told][bytes];

                snprintf(key, sizeof(key), "k%d%d%d", up, told, bytes);
                counts[answer]++;
                if (answer == NEAR_L2_ERROR)
                    assert_string_equal(ask(server, "EXISTS", key, NULL), "0");
                if (answer == NEAR_L2_DONE)
                    assert_string_equal(ask(server, "EXISTS", key, NULL), "1");
                if (atoi(ask(server, "EXISTS", key, NULL)) == 0)
                    continue;
                assert_string_equal(ask(server, "HLEN", key, NULL), "2");
                assert_in_range(atoi(ask(server, "PTTL", key, NULL)), 1, 60000);
            }
    assert_true(counts[NEAR_L2_DONE] > 0 && counts[NEAR_L2_UNKNOWN] > 0);
}

/* ------------------------------------------------------------------------------------------ announcements */

#define AT 4 /* the stamp's place in our messages */

/* A subscriber of the test's own. */
static int
subscribe(const char *channel)
{
    char    line[64], reply[128];
    int     fd = test_server_connect(server);
    ssize_t n  = snprintf(line, sizeof(line), "SUBSCRIBE %s\r\n", channel);

    assert_true(fd >= 0);
    assert_int_equal(send(fd, line, (size_t)n, MSG_NOSIGNAL), n);
    assert_true(recv(fd, reply, sizeof(reply), 0) > 0);
    return fd;
}

/* The messages that came: their stream and number.  All that was published before the call has been sent
 * to us when a message of our own arrives: "end". */
static size_t
heard(int fd, uint64_t (*stamps)[2], size_t most)
{
    static char text[MiB];
    size_t      size = 0, n = 0;

    ask(server, "PUBLISH", "bus", "end", NULL);
    while (size < 9 || memcmp(text + size - 9, "$3\r\nend\r\n", 9) != 0) {
        ssize_t got = recv(fd, text + size, sizeof(text) - size, 0);

        assert_true(got > 0);
        size += (size_t)got;
    }
    for (char *at = text; (at = memmem(at, size - (size_t)(at - text), "$20\r\nmsg:", 9)) != NULL; n++) {
        uint8_t *message = (uint8_t *)at + 5;

        assert_true(n < most);
        stamps[n][0] = near__le64_get(message + AT);
        stamps[n][1] = near__le64_get(message + AT + 8);
        at += 25;
    }
    return n;
}

enum verb { SET, REMOVE };

static int64_t announced_ttl = 60000;

/* An announced write of `n` items; the stream it was published in. */
static uint64_t
announced(enum verb verb, size_t n, enum near_l2_answer expected, near_status status)
{
    static _Thread_local struct near_l2_item items[NEAR_L2_BATCH];
    static _Thread_local char                keys[NEAR_L2_BATCH][24];
    uint8_t                                  message[20] = "msg:";
    struct near_l2_announce                  announce    = {
                            .channel = near_key("bus"), .message = message, .size = 20, .stamp_at = AT
    };
    size_t wrong = 0;

    announce.stream = 77;
    for (size_t i = 0; i < n; i++) {
        snprintf(keys[i], sizeof(keys[i]), "k%zu", i);
        items[i] = (struct near_l2_item){ .key    = near_key(keys[i]),
                                          .value  = near_key("value"),
                                          .ttl_ms = announced_ttl };
    }
    if (verb == SET)
        tier.ops->set_many(tier.self, NEAR_L2_ALWAYS, items, n, &announce, later());
    else
        tier.ops->remove_many(tier.self, NEAR_L2_ALWAYS, items, n, &announce, later());
    for (size_t i = 0; i < n; i++)
        wrong += items[i].answer != expected || items[i].status != status;
    if (expected == NEAR_L2_DONE) /* it comes back stamped: beats tell of it by that */
        wrong += near__le64_get(message + AT) != announce.stream || near__le64_get(message + AT + 8) == 0;
    return wrong == 0 ? announce.stream : UINT64_MAX;
}

static void
one_message_per_announced_call_numbered_without_gaps(void **state)
{
    static const size_t sizes[] = { 1, 2, 17, NEAR_L2_BATCH };
    uint64_t            stamps[64][2], stream = 0;
    size_t              calls = 0;
    int                 fd;

    (void)state;
    tier.env.pool_size = 1;
    open_server();
    fd = subscribe("bus");
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++) {
            stream = announced(SET, sizes[i], NEAR_L2_DONE, NEAR_OK);
            assert_true(stream != 0 && stream != 77 && stream != UINT64_MAX);
            assert_int_equal(atoi(ask(server, "DBSIZE", NULL)), sizes[i]);
            assert_true(announced(REMOVE, sizes[i], NEAR_L2_DONE, NEAR_OK) == stream);
            assert_string_equal(ask(server, "DBSIZE", NULL), "0");
            calls += 2;
        }
    assert_int_equal(heard(fd, stamps, 64), calls);
    for (size_t i = 0; i < calls; i++) {
        assert_true(stamps[i][0] == stream);
        assert_int_equal(stamps[i][1], i + 1);
    }
    close(fd);
}

/* At the memory's limit the transaction is refused: no item, no message, and the next message's number is
 * the next. */
static void
a_refused_write_is_not_announced_and_leaves_no_gap(void **state)
{
    uint64_t stamps[8][2], stream;
    int      fd;

    (void)state;
    tier.env.pool_size = 1;
    open_server();
    fd     = subscribe("bus");
    stream = announced(SET, 2, NEAR_L2_DONE, NEAR_OK);
    ask(server, "CONFIG", "SET", "maxmemory", "1", NULL);
    for (int i = 0; i < 5; i++)
        assert_true(announced(SET, 3, NEAR_L2_ERROR, NEAR_ERR_DENIED) == 0);
    assert_true(announced(REMOVE, 3, NEAR_L2_DONE, NEAR_OK) == stream); /* removing is still possible */
    ask(server, "CONFIG", "SET", "maxmemory", "0", NULL);
    assert_string_equal(ask(server, "DBSIZE", NULL), "0");
    assert_int_equal(heard(fd, stamps, 8), 2);
    assert_int_equal(stamps[0][1], 1);
    assert_int_equal(stamps[1][1], 2);
    assert_true(stamps[1][0] == stream);
    assert_non_null(strstr(logged, "set refused: OOM"));
    close(fd);
}

static void
an_announced_call_is_done_as_a_whole_or_not_at_all(void **state)
{
    static char             large[2 * KiB];
    uint8_t                 message[20] = "msg:";
    struct near_l2_announce announce    = {
           .channel = near_key("bus"), .message = message, .size = 20, .stamp_at = AT
    };
    struct near_l2_item items[2] = { { .key = near_key("small"), .value = near_key("v") },
                                     { .key = near_key("large"), .value = { large, sizeof(large) } } };
    uint64_t            stamps[4][2];
    int                 fd;

    (void)state;
    tier.env.max_stored = KiB;
    open_server();
    fd = subscribe("bus");
    tier.ops->set_many(tier.self, NEAR_L2_ALWAYS, items, 2, &announce, later());
    for (int i = 0; i < 2; i++) {
        assert_int_equal(items[i].answer, NEAR_L2_ERROR);
        assert_int_equal(items[i].status, NEAR_ERR_TOO_LARGE);
    }
    assert_true(announce.stream == 0);
    assert_string_equal(ask(server, "DBSIZE", NULL), "0");
    assert_int_equal(heard(fd, stamps, 4), 0);
    close(fd);
}

/* Five hashes, of which `k2` may be something else. */
static struct near_l2_announce
announced_hashes(struct near_l2_item items[5], int64_t ttl_ms, uint8_t message[20])
{
    static struct pair      pairs[5];
    static char             keys[5][16];
    struct near_l2_announce announce = { near_key("bus"), message, 20, AT, 77 };

    memcpy(message, "msg:", 4);
    for (int i = 0; i < 5; i++) {
        snprintf(keys[i], sizeof(keys[i]), "k%d", i);
        items[i]        = pair_item(&pairs[i], keys[i]);
        items[i].ttl_ms = ttl_ms;
    }
    tier.ops->hash_set_many(tier.self, items, 5, &announce, later());
    return announce;
}

static void
announced_hashes_are_one_step_with_their_message(void **state)
{
    struct near_l2_announce announce;
    struct near_l2_item     items[5];
    uint8_t                 message[20];
    uint64_t                stamps[16][2], stream = 0;
    size_t                  calls = 0;
    int                     fd;

    (void)state;
    tier.env.pool_size = 1;
    open_server();
    fd = subscribe("bus");
    ask(server, "CONFIG", "RESETSTAT", NULL);
    for (int ttl = 0; ttl < 2; ttl++)
        for (int odd = 0; odd < 2; odd++) {
            ask(server, "FLUSHALL", NULL);
            ask(server, "SCRIPT", "FLUSH", NULL);
            if (odd)
                ask(server, "SET", "k2", "no hash", NULL);
            announce = announced_hashes(items, ttl * 60000, message);
            assert_true(announce.stream != 0 && (stream == 0 || announce.stream == stream));
            assert_true(near__le64_get(message + AT) == announce.stream);
            assert_int_equal(near__le64_get(message + AT + 8), ++calls);
            stream = announce.stream;
            for (int i = 0; i < 5; i++)
                assert_int_equal(items[i].answer, odd && i == 2 ? NEAR_L2_ERROR : NEAR_L2_DONE);
            assert_string_equal(ask(server, "HLEN", "k4", NULL), "2");
            assert_int_equal(atoi(ask(server, "PTTL", "k4", NULL)) > 0, ttl);
            if (odd) {
                assert_int_equal(items[2].status, NEAR_ERR_PROTOCOL);
                assert_string_equal(ask(server, "GET", "k2", NULL), "no hash");
                assert_string_equal(ask(server, "PTTL", "k2", NULL), "-1");
            }
        }
    assert_int_equal(calls_of("exec"), calls);
    assert_int_equal(heard(fd, stamps, 16), calls);
    for (size_t i = 0; i < calls; i++)
        assert_true(stamps[i][0] == stream && stamps[i][1] == i + 1);
    ask(server, "CONFIG", "SET", "maxmemory", "1", NULL);
    announce = announced_hashes(items, 0, message); /* refused as a whole */
    ask(server, "CONFIG", "SET", "maxmemory", "0", NULL);
    assert_true(announce.stream == 0);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(items[i].answer, NEAR_L2_ERROR);
        assert_int_equal(items[i].status, NEAR_ERR_DENIED);
    }
    assert_int_equal(heard(fd, stamps, 16), 0);
    close(fd);
}

/* More than one window of SETs ahead of EXEC: still one step. */
static void
a_large_announced_call_is_one_step(void **state)
{
    enum { N = 64, SIZE = 100 * KiB };
    static struct near_l2_item items[N];
    static char                keys[N][16], value[SIZE];
    uint8_t                    message[20] = "msg:";
    struct near_l2_announce    announce    = {
              .channel = near_key("bus"), .message = message, .size = 20, .stamp_at = AT
    };
    uint64_t stamps[4][2];
    int      fd;

    (void)state;
    open_server();
    fd = subscribe("bus");
    for (int i = 0; i < N; i++) {
        snprintf(keys[i], sizeof(keys[i]), "k%d", i);
        items[i] = (struct near_l2_item){ .key = near_key(keys[i]), .value = { value, SIZE } };
    }
    tier.ops->set_many(tier.self, NEAR_L2_ALWAYS, items, N, &announce, later());
    for (int i = 0; i < N; i++)
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
    assert_int_equal(atoi(ask(server, "DBSIZE", NULL)), N);
    assert_int_equal(heard(fd, stamps, 4), 1);
    assert_true(stamps[0][0] == announce.stream);

    /* and cut in the middle it is nothing at all */
    ask(server, "FLUSHALL", NULL);
    close_tier();
    open_proxy();
    test_proxy_fault(proxy,
                     (struct test_fault){ .kind = TEST_FAULT_CUT, .direction = TEST_UP, .bytes = 3 * MiB });
    tier.ops->set_many(tier.self, NEAR_L2_ALWAYS, items, N, &announce, later());
    for (int i = 0; i < N; i++)
        assert_int_equal(items[i].answer, NEAR_L2_ERROR);
    assert_true(announce.stream == 0);
    assert_string_equal(ask(server, "DBSIZE", NULL), "0");
    assert_int_equal(heard(fd, stamps, 4), 0);
    close(fd);
}

#define WRITERS 4
#define WRITES  100

static void *
writer_run(void *ctx)
{
    for (int i = 0; i < WRITES; i++)
        *(size_t *)ctx += announced(SET, 3, NEAR_L2_DONE, NEAR_OK) == UINT64_MAX;
    return NULL;
}

static void
streams_of_many_writers_are_each_in_order(void **state)
{
    static uint64_t stamps[WRITERS * WRITES][2];
    size_t          wrong[WRITERS] = { 0 }, n;
    uint64_t        seen[16][2]    = { 0 };
    pthread_t       threads[WRITERS];
    int             fd;

    (void)state;
    open_server();
    fd = subscribe("bus");
    atomic_store(&quiet, true);
    for (int i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, writer_run, &wrong[i]), 0);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(threads[i], NULL);
    atomic_store(&quiet, false);
    for (int i = 0; i < WRITERS; i++)
        assert_int_equal(wrong[i], 0);
    n = heard(fd, stamps, NEAR_COUNT_OF(stamps));
    assert_int_equal(n, WRITERS * WRITES);
    for (size_t i = 0; i < n; i++) {
        size_t s = 0;

        while (seen[s][0] != 0 && seen[s][0] != stamps[i][0])
            s++;
        assert_true(s < WRITERS); /* a stream is a connection, and there were at most four */
        seen[s][0] = stamps[i][0];
        assert_int_equal(stamps[i][1], ++seen[s][1]);
    }
    close(fd);
}

static int
forever(void **state)
{
    announced_ttl = 0;
    return setup(state);
}

static int
no_longer_forever(void **state)
{
    announced_ttl = 60000;
    return teardown(state);
}

/* How often the server was asked for it, refusals included. */
static int
asked_for(const char *command)
{
    char        field[64];
    const char *stats = ask(server, "INFO", "commandstats", NULL), *at;

    snprintf(field, sizeof(field), "cmdstat_%s:calls=", command);
    at = strstr(stats, field);
    return at == NULL ? 0 : atoi(at + strlen(field)) + atoi(strstr(at, "rejected_calls=") + 15);
}

/* What never expires goes as one command, says the same, and leaves the same behind. */
static void
announced_writes_without_an_end_are_one_command(void **state)
{
    static const size_t sizes[] = { 2, 17, NEAR_L2_BATCH };
    int                 sets, fd;

    (void)state;
    tier.env.pool_size = 1;
    open_server();
    fd   = subscribe("bus");
    sets = asked_for("set");
    for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++) {
        assert_true(announced(SET, sizes[i], NEAR_L2_DONE, NEAR_OK) != UINT64_MAX);
        assert_int_equal(atoi(ask(server, "DBSIZE", NULL)), sizes[i]);
    }
    assert_int_equal(asked_for("mset"), NEAR_COUNT_OF(sizes));
    assert_int_equal(asked_for("set"), sets);
    assert_int_equal(get("k511", "value"), NEAR_L2_DONE);
    assert_string_equal(ask(server, "TTL", "k511", NULL), "-1");
    announced_ttl = 60000; /* what expires does so */
    assert_true(announced(SET, 2, NEAR_L2_DONE, NEAR_OK) != UINT64_MAX);
    assert_int_equal(asked_for("set"), sets + 2);
    assert_string_not_equal(ask(server, "TTL", "k1", NULL), "-1");
    announced_ttl = 0;
    ask(server, "CONFIG", "SET", "maxmemory", "1", NULL);
    ask(server, "CONFIG", "SET", "maxmemory-policy", "noeviction", NULL);
    assert_true(announced(SET, 3, NEAR_L2_ERROR, NEAR_ERR_DENIED) == 0);
    assert_int_equal(asked_for("set"), sets + 2); /* that is no reason to try it otherwise */
    close(fd);
}

/* Rights, or a server, that know only SET: found out once. */
static void
R13_without_mset_it_is_set(void **state)
{
    char uri[128];
    int  msets, sets;

    (void)state;
    test_need_server(server);
    ask(server, "ACL", "SETUSER", "old", "on", "nopass", "~k*", "&bus", "+@all", "-mset", NULL);
    snprintf(uri, sizeof(uri), "redis://old:x@127.0.0.1:%d", server->port);
    open_tier(uri);
    msets = asked_for("mset");
    sets  = asked_for("set");
    for (int i = 0; i < 3; i++)
        assert_true(announced(SET, 3, NEAR_L2_DONE, NEAR_OK) != UINT64_MAX);
    assert_string_equal(ask(server, "DBSIZE", NULL), "3");
    assert_int_equal(asked_for("mset"), msets + 1);
    assert_int_equal(asked_for("set"), sets + 9);
    assert_string_equal(logged, "");
}

/* All that this backend needs. */
static void
R13_the_rights_that_are_enough(void **state)
{
    near_error error = { 0 };
    char       uri[128];

    (void)state;
    test_need_server(server);
    ask(server, "ACL", "SETUSER", "least", "reset", "on", "nopass", "~k*", "&bus", "-@all", NULL);
    ask(server, "ACL", "SETUSER", "least", "+get", "+mget", "+set", "+getrange", "+unlink", "+publish",
        "+multi", "+exec", NULL);
    ask(server, "ACL", "SETUSER", "least", "+eval", "+evalsha", "+ping", "+client|setname", NULL);
    tier.env.client_name = "least";
    snprintf(uri, sizeof(uri), "redis://least:x@127.0.0.1:%d", server->port);
    open_tier(uri);
    assert_int_equal(health_status(&error), NEAR_OK); /* without INFO it says less */
    assert_true(announced(SET, 3, NEAR_L2_DONE, NEAR_OK) != UINT64_MAX);
    assert_int_equal(get("k1", "value"), NEAR_L2_DONE);
    assert_int_equal(set_over("k", 1, 2, 0), NEAR_L2_ABSENT);
    assert_int_equal(set_item(NEAR_L2_IF_ABSENT, "k", near_key("v"), 0, 1000, later()).answer, NEAR_L2_DONE);
    assert_int_equal(remove_over("k", 3), NEAR_L2_ABSENT);
    assert_true(announced(REMOVE, 3, NEAR_L2_DONE, NEAR_OK) != UINT64_MAX);
    ask(server, "CONFIG", "SET", "maxmemory", "1", NULL);
    assert_true(announced(REMOVE, 3, NEAR_L2_DONE, NEAR_OK) != UINT64_MAX);
    assert_string_equal(logged[0] == '\0' ? "" : strstr(logged, "NOPERM") == NULL ? "" : logged, "");
}

/* Rights that are missing: for the channel, then everything is refused; for MULTI, then what was done is
 * not denied. */
static void
R13_missing_rights_are_answered_truthfully(void **state)
{
    char uri[128];

    (void)state;
    test_need_server(server);
    ask(server, "ACL", "SETUSER", "mute", "on", "nopass", "~*", "+@all", "resetchannels", NULL);
    ask(server, "ACL", "SETUSER", "single", "on", "nopass", "~*", "&*", "+@all", "-multi", NULL);
    snprintf(uri, sizeof(uri), "redis://mute:x@127.0.0.1:%d", server->port);
    open_tier(uri);
    assert_true(announced(SET, 3, NEAR_L2_ERROR, NEAR_ERR_DENIED) == 0);
    assert_string_equal(ask(server, "DBSIZE", NULL), "0");
    assert_non_null(strstr(logged, "set refused: NOPERM"));
    close_tier();
    snprintf(uri, sizeof(uri), "redis://single:x@127.0.0.1:%d", server->port);
    open_tier(uri);
    announced(SET, 3, NEAR_L2_UNKNOWN, NEAR_ERR_DENIED);
    assert_string_equal(ask(server, "DBSIZE", NULL), "3");
    assert_true(announced(SET, 3, NEAR_L2_UNKNOWN, NEAR_ERR_DENIED) != UINT64_MAX);
}

int
main(void)
{
#define REDIS_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        REDIS_TEST(what_was_set_is_read_back_removed_and_gone),
        REDIS_TEST(a_unix_socket_serves_as_well),
        REDIS_TEST(batches_answer_every_item_by_itself),
        REDIS_TEST(if_absent_stores_once),
        REDIS_TEST(R2_ttl_and_no_ttl),
        REDIS_TEST(health_is_one_line),
        REDIS_TEST(H4_lengths_are_refused_before_hiredis_adds_them),
        REDIS_TEST(H4_stored_entries_over_the_limit_are_refused_both_ways),
        REDIS_TEST(H6_H8_a_stopped_server_costs_the_deadline),
        REDIS_TEST(H6_a_silent_server_costs_the_connection),
        REDIS_TEST(H8_a_dial_with_a_handshake_keeps_the_deadline),
        REDIS_TEST(a_deadline_that_has_passed_sends_nothing),
        REDIS_TEST(race_41_a_late_reply_is_never_read_by_the_next_request),
        REDIS_TEST(H8_a_slow_drip_does_not_prolong_the_deadline),
        REDIS_TEST(a_batch_lost_half_way_delivers_each_value_once),
        REDIS_TEST(a_batch_that_is_late_half_way_keeps_what_came),
        REDIS_TEST(close_wakes_a_call_that_waits_for_the_server),
        REDIS_TEST(H9_every_address_of_a_name_is_tried),
        REDIS_TEST(H10_a_socket_path_that_is_too_long_is_refused),
        REDIS_TEST(H11_a_peer_that_closes_does_not_kill_the_process),
        REDIS_TEST(H12_descriptors_are_close_on_exec),
        REDIS_TEST(hashes_are_those_of_other_programs),
        REDIS_TEST(H14_replies_of_another_shape_are_no_hash),
        REDIS_TEST(H14_an_endless_hash_is_cut_off),
        REDIS_TEST(R1_a_refused_hash_is_an_error_of_its_own),
        REDIS_TEST(all_hashes_of_a_call_take_one_round_trip),
        REDIS_TEST(R5_a_hashs_time_to_live_is_a_script),
        REDIS_TEST(a_hash_cut_at_any_byte_is_never_an_answer),
        REDIS_TEST(race_9_hashes_that_were_cut_are_answered_truthfully),
        REDIS_TEST(announced_hashes_are_one_step_with_their_message),
        REDIS_TEST(P3_a_forked_child_leaves_the_parents_connections_alone),
        REDIS_TEST(H13_H14_replies_that_make_no_sense_end_the_connection),
        REDIS_TEST(H14_an_endless_reply_is_cut_off),
        REDIS_TEST(H18_a_large_pipeline_is_read_while_it_is_written),
        REDIS_TEST(H18_large_batches_go_both_ways),
        REDIS_TEST(R1_error_replies_by_their_first_word),
        REDIS_TEST(R4_credentials_are_checked_and_never_shown),
        REDIS_TEST(R4_a_server_that_quotes_the_password_is_not_quoted),
        REDIS_TEST(race9_what_is_unsent_of_a_write_goes_with_its_connection),
        REDIS_TEST(R4_the_database_is_selected),
        REDIS_TEST(a_stamp_must_be_there_to_be_replaced_or_removed),
        REDIS_TEST(R5_scripts_survive_a_flush_of_the_servers_memory),
        REDIS_TEST(P5_killed_idle_connections_are_no_errors),
        REDIS_TEST(an_absent_server_is_unreachable_and_comes_back),
        REDIS_TEST(a_reply_cut_at_any_byte_is_never_an_answer),
        REDIS_TEST(race_9_writes_that_were_cut_are_answered_truthfully),
        REDIS_TEST(one_message_per_announced_call_numbered_without_gaps),
        REDIS_TEST(a_refused_write_is_not_announced_and_leaves_no_gap),
        REDIS_TEST(an_announced_call_is_done_as_a_whole_or_not_at_all),
        REDIS_TEST(a_large_announced_call_is_one_step),
        REDIS_TEST(streams_of_many_writers_are_each_in_order),
        cmocka_unit_test_setup_teardown(announced_writes_without_an_end_are_one_command, forever,
                                        no_longer_forever),
        cmocka_unit_test_setup_teardown(R13_without_mset_it_is_set, forever, no_longer_forever),
        REDIS_TEST(R13_the_rights_that_are_enough),
        REDIS_TEST(R13_missing_rights_are_answered_truthfully),
    };

    return TEST_MAIN(tests, group_setup, group_teardown);
}
