/* The harness proves itself before others lean on it: servers of both kinds, every fault of the proxy, the trace reader. */
#include "harness/test.h"

#include "harness/proxy.h"
#include "harness/server.h"
#include "harness/trace.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#define PING     "PING\r\n"
#define PONG     "+PONG\r\n"
#define LONG_MS  (10000 * (int)test_slack())
#define SHORT_MS 150 /* long enough to notice what should not come */
#define ASK(...)                                                                                             \
    (int)(sizeof((const char *[]){ __VA_ARGS__ }) / sizeof(char *)), (const char *[])                        \
    {                                                                                                        \
        __VA_ARGS__                                                                                          \
    }
#define BYTES(...) __VA_ARGS__, sizeof(__VA_ARGS__) - 1

struct world {
    struct test_server *server;
    struct test_proxy  *proxy;
    int                 fd;
};

static int
world_setup(void **state)
{
    struct world *world = calloc(1, sizeof(*world));

    if (world == NULL)
        return -1;
    world->fd = -1;
    *state    = world;
    return 0;
}

static int
world_teardown(void **state)
{
    struct world *world = *state;

    if (world->fd >= 0)
        close(world->fd);
    test_proxy_stop(&world->proxy);
    test_server_stop(&world->server);
    free(world);
    return 0;
}

/* ---------------------------------------------------------------------------------------------- servers */

static void
assert_ping(struct test_server *server)
{
    char text[64];

    assert_true(test_redis_command(server, text, sizeof(text), ASK("PING")));
    assert_string_equal(text, "PONG");
}

static void
redis_start(struct world *world, unsigned flags, const char *const *extra)
{
    world->server = test_redis_start(flags, extra);
    test_need_server(world->server);
}

static void
test_redis_starts_and_is_our_child(void **state)
{
    struct world *world = *state;
    char          text[256], uri[300];
    pid_t         pid;

    redis_start(world, 0, NULL);
    assert_ping(world->server);
    pid = world->server->pid;
    assert_true(pid > 0);
    assert_int_equal(kill(pid, 0), 0);
    assert_int_equal(waitpid(pid, NULL, WNOHANG), 0); /* ECHILD if it were not ours */
    assert_int_equal(world->server->port, 0);
    assert_true(strlen(world->server->socket) < sizeof(((struct sockaddr_un *)0)->sun_path));
    snprintf(uri, sizeof(uri), "redis+unix://%s", world->server->socket);
    assert_string_equal(world->server->uri, uri);
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("CONFIG", "GET", "save")));
    assert_string_equal(text, "save\n");
}

static void
test_redis_commands_answer_as_text(void **state)
{
    struct world *world = *state;
    char          text[64], tiny[4];

    redis_start(world, 0, NULL);
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("SET", "a key", "a\r\nvalue")));
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("GET", "a key")));
    assert_string_equal(text, "a\r\nvalue");
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("GET", "no key")));
    assert_string_equal(text, "(nil)");
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("RPUSH", "list", "x", "y")));
    assert_string_equal(text, "2");
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("LRANGE", "list", "0", "-1")));
    assert_string_equal(text, "x\ny");
    assert_false(test_redis_command(world->server, text, sizeof(text), ASK("NONSENSE")));
    assert_non_null(strstr(text, "unknown command"));
    assert_true(test_redis_command(world->server, tiny, sizeof(tiny), ASK("GET", "a key")));
    assert_string_equal(tiny, "a\r\n");
}

static void
test_redis_on_a_port_with_a_password(void **state)
{
    struct world *world = *state;
    char          uri[64];

    redis_start(world, TEST_SERVER_TCP, (const char *[]){ "--requirepass", "secret", NULL });
    assert_true(world->server->port > 0);
    snprintf(uri, sizeof(uri), "redis://127.0.0.1:%d/0", world->server->port);
    assert_string_equal(world->server->uri, uri);
    assert_ping(world->server);
    assert_true(test_server_restart(world->server));
    assert_ping(world->server);
    world->server->password = NULL;
    assert_false(test_redis_command(world->server, uri, sizeof(uri), ASK("PING")));
    assert_memory_equal(uri, "NOAUTH", 6);
}

static void
test_redis_killed_and_restarted_is_empty_at_the_same_address(void **state)
{
    struct world *world = *state;
    char          text[128];
    pid_t         before;

    redis_start(world, 0, NULL);
    before = world->server->pid;
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("SET", "k", "v")));
    test_server_kill(world->server);
    assert_int_equal(kill(before, 0), -1);
    assert_false(test_redis_command(world->server, text, sizeof(text), ASK("PING")));
    assert_memory_equal(text, "no connection", 13);
    assert_true(test_server_restart(world->server));
    assert_true(world->server->pid > 0 && world->server->pid != before);
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("GET", "k")));
    assert_string_equal(text, "(nil)");
}

static void
test_a_paused_server_is_silent_until_resumed(void **state)
{
    struct world *world    = *state;
    char          text[64] = "";
    struct pollfd place;

    redis_start(world, 0, NULL);
    test_server_pause(world->server);
    world->fd = test_server_connect(world->server);
    assert_true(world->fd >= 0); /* the kernel accepts for it */
    assert_int_equal(send(world->fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
    place = (struct pollfd){ world->fd, POLLIN, 0 };
    assert_int_equal(poll(&place, 1, SHORT_MS), 0);
    test_server_resume(world->server);
    assert_int_equal(recv(world->fd, text, sizeof(text), 0), strlen(PONG));
    assert_string_equal(text, PONG);
}

static void
test_a_stopped_server_can_be_reaped(void **state)
{
    struct world *world = *state;
    char          directory[128];
    pid_t         pid;

    redis_start(world, 0, NULL);
    pid = world->server->pid;
    snprintf(directory, sizeof(directory), "%s", world->server->directory);
    assert_int_equal(access(directory, F_OK), 0);
    test_server_pause(world->server);
    world->server = NULL; /* forgotten by the test */
    test_servers_reap();
    assert_int_equal(kill(pid, 0), -1);
    assert_int_equal(access(directory, F_OK), -1);
}

static void
test_memcached_on_a_socket(void **state)
{
    struct world *world = *state;
    char          text[256];

    world->server = test_memcached_start(0, (const char *[]){ "-I", "2m", NULL });
    test_need_server(world->server);
    assert_memory_equal(world->server->uri, "memcached+unix:///", 18);
    assert_true(test_memcached_command(world->server, text, sizeof(text), "version"));
    assert_memory_equal(text, "VERSION ", 8);
    assert_true(test_memcached_command(world->server, text, sizeof(text), "set k 5 0 2\r\nab"));
    assert_string_equal(text, "STORED");
    assert_true(test_memcached_command(world->server, text, sizeof(text), "get k"));
    assert_string_equal(text, "VALUE k 5 2\nab\nEND");
    assert_true(test_server_restart(world->server));
    assert_true(test_memcached_command(world->server, text, sizeof(text), "get k"));
    assert_string_equal(text, "END");
}

static void
test_memcached_on_a_port(void **state)
{
    struct world *world = *state;
    char          text[256], uri[64];

    world->server = test_memcached_start(TEST_SERVER_TCP, NULL);
    test_need_server(world->server);
    snprintf(uri, sizeof(uri), "memcached://127.0.0.1:%d", world->server->port);
    assert_string_equal(world->server->uri, uri);
    assert_true(test_memcached_command(world->server, text, sizeof(text), "version"));
    assert_memory_equal(text, "VERSION ", 8);
}

static int
is_gone(void *pid)
{
    return kill(*(pid_t *)pid, 0) != 0;
}

/* What a child tells of its server before it dies. */
struct orphan {
    pid_t pid;
    char  directory[128], socket[160];
};

/* In a child: start a server, tell of it, and die without a word to it. */
static void
start_and_die(int pipe_out)
{
    struct test_server *server = test_redis_start(0, NULL);
    struct orphan       orphan = { 0 };

    if (server != NULL) {
        orphan.pid = server->pid;
        memcpy(orphan.directory, server->directory, sizeof(orphan.directory));
        memcpy(orphan.socket, server->socket, sizeof(orphan.socket));
    }
    if (write(pipe_out, &orphan, sizeof(orphan)) != sizeof(orphan))
        _exit(1);
    _exit(0);
}

static void
orphan_tidy(const struct orphan *orphan)
{
    char log[160];

    snprintf(log, sizeof(log), "%s/log", orphan->directory);
    unlink(log);
    unlink(orphan->socket);
    rmdir(orphan->directory);
}

static void
test_a_server_dies_with_its_test(void **state)
{
    struct orphan orphan = { 0 };
    int           ends[2];
    pid_t         child;

    redis_start(*state, 0, NULL); /* skips where there is none */
    assert_int_equal(pipe(ends), 0);
    child = fork();
    if (child == 0)
        start_and_die(ends[1]);
    assert_true(child > 0);
    assert_int_equal(read(ends[0], &orphan, sizeof(orphan)), sizeof(orphan));
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_true(orphan.pid > 0);
    assert_true(test_wait_for(is_gone, &orphan.pid, LONG_MS));
    orphan_tidy(&orphan);
    assert_ping(((struct world *)*state)->server); /* the parent's lives on */
}

static void
test_a_server_that_cannot_start_is_null(void **state)
{
    struct world *world = *state;

    redis_start(world, 0, NULL);
    assert_null(test_redis_start(0, (const char *[]){ "--no-such-option", "1", NULL }));
}

/* ------------------------------------------------------------------------------------------------ proxy */

static int
dial_unix(const struct test_proxy *proxy)
{
    struct sockaddr_un to;
    int                fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(test_unix_address(&to, strchr(test_proxy_unix_uri(proxy), '/') + 2));
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

static int
dial_port(const struct test_proxy *proxy)
{
    struct sockaddr_in to = { .sin_family = AF_INET };
    int                fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port        = htons((uint16_t)atoi(strrchr(test_proxy_uri(proxy), ':') + 1));
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

/* A Redis, a proxy before it, and one connection through it that has proved to work. */
static void
proxy_start(struct world *world, bool tcp)
{
    char text[16] = "";

    redis_start(world, 0, NULL);
    world->proxy = test_proxy_start(world->server);
    assert_non_null(world->proxy);
    world->fd = tcp ? dial_port(world->proxy) : dial_unix(world->proxy);
    assert_int_equal(send(world->fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
    assert_int_equal(recv(world->fd, text, strlen(PONG), MSG_WAITALL), strlen(PONG));
    assert_string_equal(text, PONG);
}

/* Reads until the end, an error, `size` bytes or `ms` of silence; the number of bytes. */
static size_t
read_for(int fd, char *out, size_t size, int ms, int *ending)
{
    size_t used = 0;

    *ending = 0; /* silence, or enough */
    while (used < size) {
        struct pollfd place = { fd, POLLIN, 0 };
        ssize_t       n;

        if (poll(&place, 1, ms) == 0)
            return used;
        n = recv(fd, out + used, size - used, 0);
        if (n <= 0) {
            *ending = n == 0 ? -1 : errno;
            return used;
        }
        used += (size_t)n;
    }
    return used;
}

static void
assert_round_trip(int fd)
{
    char text[16] = "";
    int  ending;

    assert_int_equal(send(fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
    assert_int_equal(read_for(fd, text, strlen(PONG), LONG_MS, &ending), strlen(PONG));
    assert_string_equal(text, PONG);
}

static void
test_proxy_carries_both_ways_on_both_addresses(void **state)
{
    struct world *world = *state;
    int           other;

    proxy_start(world, false);
    other = dial_port(world->proxy);
    assert_round_trip(other);
    close(other);
    assert_int_equal(test_proxy_connections(world->proxy), 2);
    assert_int_equal(test_proxy_bytes(world->proxy, TEST_UP), 2 * strlen(PING));
    assert_int_equal(test_proxy_bytes(world->proxy, TEST_DOWN), 2 * strlen(PONG));
    assert_int_equal(test_proxy_bytes(world->proxy, TEST_BOTH), 2 * strlen(PING PONG));
}

static void
test_proxy_carries_much(void **state)
{
    enum { SIZE = 1 << 20 };
    struct world *world = *state;
    char         *value, *back, head[128];
    int           ending, n;
    size_t        rest;

    proxy_start(world, true);
    value = malloc(SIZE);
    back  = calloc(1, SIZE + 64);
    for (uint64_t i = 0, at = 7; i < SIZE; i++)
        value[i] = (char)test_random(&at);
    n = snprintf(head, sizeof(head), "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n", SIZE);
    assert_int_equal(send(world->fd, head, (size_t)n, MSG_NOSIGNAL), n);
    assert_int_equal(send(world->fd, value, SIZE, MSG_NOSIGNAL), SIZE);
    assert_int_equal(send(world->fd, BYTES("\r\nGET k\r\n"), MSG_NOSIGNAL), 9);
    n    = snprintf(head, sizeof(head), "+OK\r\n$%d\r\n", SIZE);
    rest = (size_t)n + SIZE + 2;
    assert_int_equal(read_for(world->fd, back, rest, LONG_MS, &ending), rest);
    assert_memory_equal(back, head, n);
    assert_memory_equal(back + n, value, SIZE);
    free(value);
    free(back);
}

static void
test_proxy_passes_on_the_end_of_either_side(void **state)
{
    struct world *world = *state;
    char          text[64];
    int           ending;

    proxy_start(world, true);
    assert_int_equal(send(world->fd, BYTES("QUIT\r\n"), MSG_NOSIGNAL), 6);
    assert_int_equal(read_for(world->fd, text, sizeof(text), LONG_MS, &ending),
                     5); /* +OK, and the server closes */
    assert_int_equal(ending, -1);
    close(world->fd);
    world->fd = dial_port(world->proxy);
    assert_int_equal(send(world->fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
    assert_int_equal(shutdown(world->fd, SHUT_WR), 0); /* the answer still comes, then the end */
    assert_int_equal(read_for(world->fd, text, sizeof(text), LONG_MS, &ending), strlen(PONG));
    assert_int_equal(ending, -1);
}

static void
test_delay_delays(void **state)
{
    struct world *world = *state;
    int64_t       began;

    proxy_start(world, true);
    test_proxy_fault(world->proxy,
                     (struct test_fault){ .kind = TEST_FAULT_DELAY, .direction = TEST_DOWN, .ms = 120 });
    began = test_now_ms();
    assert_round_trip(world->fd);
    assert_true(test_now_ms() - began >= 119);
    test_proxy_fault(world->proxy,
                     (struct test_fault){ .kind = TEST_FAULT_DELAY, .direction = TEST_BOTH, .ms = 80 });
    began = test_now_ms();
    assert_round_trip(world->fd);
    assert_true(test_now_ms() - began >= 159);
    test_proxy_heal(world->proxy);
    assert_round_trip(world->fd);
}

static void
test_delay_keeps_the_order_when_healed(void **state)
{
    struct world *world    = *state;
    char          text[32] = "";
    int           ending;

    proxy_start(world, true);
    test_proxy_fault(world->proxy,
                     (struct test_fault){ .kind = TEST_FAULT_DELAY, .direction = TEST_UP, .ms = 100 });
    assert_int_equal(send(world->fd, BYTES("ECHO first\r\n"), MSG_NOSIGNAL), 12);
    assert_int_equal(read_for(world->fd, text, 1, 20, &ending), 0); /* the proxy has read it by now or soon */
    test_proxy_heal(world->proxy);
    assert_int_equal(send(world->fd, BYTES("ECHO then\r\n"), MSG_NOSIGNAL), 11);
    assert_int_equal(read_for(world->fd, text, 21, LONG_MS, &ending), 21);
    assert_string_equal(text, "$5\r\nfirst\r\n$4\r\nthen\r\n");
}

/* A fresh connection, the fault, `PING PING`: how many bytes of the two answers arrive, and how it ends. */
static size_t
cut_at(struct world *world, struct test_fault fault, int *ending)
{
    char   text[64];
    size_t n;
    int    fd;

    test_proxy_heal(world->proxy);
    fd = dial_port(world->proxy);
    assert_round_trip(fd);
    test_proxy_fault(world->proxy, fault);
    send(fd, BYTES(PING PING), MSG_NOSIGNAL); /* may fail when the cut is at 0 */
    n = read_for(fd, text, sizeof(text), LONG_MS, ending);
    close(fd);
    return n;
}

static void
test_cut_down_cuts_exactly_at_byte_n(void **state)
{
    struct world *world = *state;

    proxy_start(world, true);
    for (int64_t n = 0; n <= 14; n++) {
        uint64_t before;
        int      ending;

        before = test_proxy_bytes(world->proxy, TEST_DOWN);
        assert_int_equal(
            cut_at(world, (struct test_fault){ .kind = TEST_FAULT_CUT, .direction = TEST_DOWN, .bytes = n },
                   &ending),
            n);
        assert_int_not_equal(ending, 0);
        assert_int_equal(test_proxy_bytes(world->proxy, TEST_DOWN) - before, strlen(PONG) + (size_t)n);
    }
}

static void
test_cut_up_lets_exactly_n_bytes_reach_the_server(void **state)
{
    struct world *world = *state;
    char          text[64];

    proxy_start(world, true);
    for (int64_t n = 0; n <= 12; n++) {
        uint64_t before = test_proxy_bytes(world->proxy, TEST_UP);
        int      ending;

        cut_at(world, (struct test_fault){ .kind = TEST_FAULT_CUT, .direction = TEST_UP, .bytes = n },
               &ending);
        assert_int_not_equal(ending, 0);
        assert_int_equal(test_proxy_bytes(world->proxy, TEST_UP) - before, strlen(PING) + (size_t)n);
    }
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("PING")));
}

/* The whole command passes, its answer does not: what writers call an unknown outcome. */
static void
test_cut_after_the_request_still_delivers_it(void **state)
{
    struct world *world = *state;
    char          text[64];
    int           ending;

    proxy_start(world, true);
    test_proxy_fault(world->proxy,
                     (struct test_fault){ .kind = TEST_FAULT_CUT, .direction = TEST_UP, .bytes = 9 });
    assert_int_equal(send(world->fd, BYTES("SET k v\r\n"), MSG_NOSIGNAL), 9);
    read_for(world->fd, text, sizeof(text), LONG_MS, &ending);
    assert_int_not_equal(ending, 0);
    for (int64_t until = test_now_ms() + LONG_MS; test_now_ms() < until;) {
        assert_true(test_redis_command(world->server, text, sizeof(text), ASK("GET", "k")));
        if (strcmp(text, "v") == 0)
            break;
    }
    assert_string_equal(text, "v");
}

static void
test_cut_once_spares_the_next_connection(void **state)
{
    struct world     *world = *state;
    struct test_fault once  = { .kind = TEST_FAULT_CUT, .direction = TEST_DOWN | TEST_ONCE, .bytes = 2 };
    struct test_fault each  = { .kind = TEST_FAULT_CUT, .direction = TEST_DOWN, .bytes = 2 };
    char              text[64];
    int               ending, fd;

    proxy_start(world, true);
    assert_int_equal(cut_at(world, once, &ending), 2);
    assert_round_trip(world->fd);
    fd = dial_unix(world->proxy);
    assert_round_trip(fd);
    close(fd);
    assert_int_equal(cut_at(world, each, &ending), 2);
    assert_int_equal(send(world->fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
    assert_int_equal(read_for(world->fd, text, sizeof(text), LONG_MS, &ending), 2);
    assert_int_not_equal(ending, 0);
}

static void
test_reset_resets(void **state)
{
    struct world *world = *state;
    int           ending;

    proxy_start(world, true);
    cut_at(world, (struct test_fault){ .kind = TEST_FAULT_RESET, .direction = TEST_DOWN, .bytes = 3 },
           &ending);
    assert_int_equal(ending, ECONNRESET);
}

static void
test_blackhole_swallows_and_stays_open(void **state)
{
    struct world *world = *state;
    uint64_t      before;
    char          text[64];
    int           ending;

    proxy_start(world, true);
    before = test_proxy_bytes(world->proxy, TEST_BOTH);
    test_proxy_fault(world->proxy, (struct test_fault){ .kind = TEST_FAULT_BLACKHOLE, .direction = TEST_UP });
    assert_int_equal(send(world->fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
    assert_int_equal(read_for(world->fd, text, sizeof(text), SHORT_MS, &ending), 0);
    assert_int_equal(ending, 0);
    test_proxy_heal(world->proxy);
    assert_int_equal(test_proxy_bytes(world->proxy, TEST_BOTH),
                     before); /* what was swallowed is gone for good */
    assert_int_equal(send(world->fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
    assert_int_equal(read_for(world->fd, text, sizeof(text), SHORT_MS, &ending),
                     0); /* nothing follows a gap */
    assert_int_equal(ending, 0);
    close(world->fd);
    world->fd = dial_port(world->proxy);
    assert_round_trip(world->fd);
    test_proxy_fault(world->proxy,
                     (struct test_fault){ .kind = TEST_FAULT_BLACKHOLE, .direction = TEST_DOWN });
    assert_int_equal(send(world->fd, BYTES("INCR n\r\n"), MSG_NOSIGNAL), 8);
    assert_int_equal(read_for(world->fd, text, sizeof(text), SHORT_MS, &ending), 0);
    assert_true(test_redis_command(world->server, text, sizeof(text), ASK("GET", "n")));
    assert_string_equal(text, "1"); /* it arrived; the answer did not */
}

static void
test_blackhole_hides_the_end_until_healed(void **state)
{
    struct world *world = *state;
    char          text[64];
    int           ending;

    proxy_start(world, true);
    test_proxy_fault(world->proxy,
                     (struct test_fault){ .kind = TEST_FAULT_BLACKHOLE, .direction = TEST_BOTH });
    test_server_kill(world->server);
    assert_int_equal(read_for(world->fd, text, sizeof(text), SHORT_MS, &ending), 0);
    assert_int_equal(ending, 0);
    test_proxy_heal(world->proxy);
    assert_int_equal(read_for(world->fd, text, sizeof(text), LONG_MS, &ending), 0);
    assert_int_equal(ending, -1);
}

static void
test_drip_drips(void **state)
{
    struct world *world    = *state;
    char          text[64] = "";
    int64_t       began;
    int           ending;

    proxy_start(world, true);
    test_proxy_fault(
        world->proxy,
        (struct test_fault){ .kind = TEST_FAULT_DRIP, .direction = TEST_DOWN, .bytes = 2, .ms = 30 });
    began = test_now_ms();
    assert_int_equal(send(world->fd, BYTES(PING PING), MSG_NOSIGNAL), 12);
    /* 14 bytes by twos are 7 drops (8 if the answers come apart), 6 pauses of 30 ms between them */
    assert_int_equal(read_for(world->fd, text, 14, LONG_MS, &ending), 14);
    assert_true(test_now_ms() - began >= 6 * 30 - 1);
    assert_string_equal(text, PONG PONG);
    /* and no drop is larger than it should be */
    assert_int_equal(send(world->fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
    assert_int_equal(read_for(world->fd, text, 1, LONG_MS, &ending), 1);
    assert_true(recv(world->fd, text, sizeof(text), MSG_DONTWAIT) <= 1);
}

/* Late or cut, at every byte of an answer, and nothing else: what arrives is the beginning of it. */
static void
test_erratic_cuts_or_delays_anywhere(void **state)
{
    struct world *world = *state;
    unsigned      whole = 0, cut = 0;

    proxy_start(world, false);
    for (unsigned i = 0; i < 400 && test_proxy_offsets(world->proxy) <= strlen(PONG); i++) {
        char   text[16] = "";
        int    fd       = dial_unix(world->proxy), ending;
        size_t n;

        test_proxy_fault(world->proxy, (struct test_fault){ TEST_FAULT_ERRATIC, TEST_DOWN, 2, 1 });
        assert_int_equal(send(fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
        n = read_for(fd, text, strlen(PONG), LONG_MS, &ending);
        close(fd);
        assert_memory_equal(text, PONG, n);
        whole += n == strlen(PONG);
        cut += n < strlen(PONG);
        assert_int_equal(test_proxy_spoilt(world->proxy), i + 1);
    }
    assert_int_equal(test_proxy_offsets(world->proxy), strlen(PONG) + 1);
    assert_true(whole > 0 && cut > 0);
    test_proxy_heal(world->proxy);
    assert_round_trip(world->fd);
}

static void
test_hostile_changes_what_comes(void **state)
{
    struct world *world   = *state;
    unsigned      changed = 0;

    proxy_start(world, false);
    test_proxy_fault(world->proxy, (struct test_fault){ TEST_FAULT_HOSTILE, TEST_DOWN, 0, 1 });
    for (unsigned i = 0; i < 100; i++) {
        char   text[16] = "";
        int    fd       = dial_unix(world->proxy), ending;
        size_t n;

        assert_int_equal(send(fd, BYTES(PING), MSG_NOSIGNAL), strlen(PING));
        n = read_for(fd, text, strlen(PONG), 20, &ending);
        close(fd);
        changed += n < strlen(PONG) || memcmp(text, PONG, n) != 0;
    }
    assert_true(changed > 50); /* another connection's answer is the same here */
    assert_true(test_proxy_spoilt(world->proxy) >= 100);
}

static void
test_refuse_closes_old_and_new_connections(void **state)
{
    struct world *world = *state;
    char          text[64];
    int           ending, fd;

    proxy_start(world, true);
    test_proxy_fault(world->proxy, (struct test_fault){ .kind = TEST_FAULT_REFUSE });
    read_for(world->fd, text, sizeof(text), LONG_MS, &ending);
    assert_int_equal(ending, -1);
    fd = dial_port(world->proxy);
    assert_int_equal(read_for(fd, text, sizeof(text), LONG_MS, &ending), 0);
    close(fd);
    assert_int_not_equal(ending, 0);
    test_proxy_heal(world->proxy);
    fd = dial_unix(world->proxy);
    assert_round_trip(fd);
    close(fd);
}

static void
test_proxy_outlives_its_server(void **state)
{
    struct world *world = *state;
    char          text[64];
    int           ending, fd;

    proxy_start(world, false);
    test_server_kill(world->server);
    assert_int_equal(read_for(world->fd, text, sizeof(text), LONG_MS, &ending), 0);
    assert_int_not_equal(ending, 0);
    fd = dial_port(world->proxy); /* nobody behind it: closed at once */
    assert_int_equal(read_for(fd, text, sizeof(text), LONG_MS, &ending), 0);
    assert_int_not_equal(ending, 0);
    close(fd);
    assert_true(test_server_restart(world->server));
    fd = dial_port(world->proxy);
    assert_round_trip(fd);
    close(fd);
}

static void
test_proxy_before_memcached(void **state)
{
    struct world *world    = *state;
    char          text[16] = "";
    int           ending;

    world->server = test_memcached_start(TEST_SERVER_TCP, NULL);
    test_need_server(world->server);
    world->proxy = test_proxy_start(world->server);
    assert_non_null(world->proxy);
    assert_memory_equal(test_proxy_uri(world->proxy), "memcached://127.0.0.1:", 22);
    assert_memory_equal(test_proxy_unix_uri(world->proxy), "memcached+unix:///", 18);
    world->fd = dial_unix(world->proxy);
    assert_int_equal(send(world->fd, BYTES("version\r\n"), MSG_NOSIGNAL), 9);
    assert_int_equal(read_for(world->fd, text, 8, LONG_MS, &ending), 8);
    assert_string_equal(text, "VERSION ");
}

/* ------------------------------------------------------------------------------------- clocks and traces */

static void
test_the_clock_moves_by_hand(void **state)
{
    struct test_clock clock;
    int64_t           wall;

    (void)state;
    test_clock_init(&clock, 5 * NEAR_MS);
    wall = near__wall_ms(&clock.clock);
    assert_int_equal(near__now(&clock.clock), 5 * NEAR_MS);
    test_clock_advance(&clock, 250);
    assert_int_equal(near__now(&clock.clock), 255 * NEAR_MS);
    assert_int_equal(near__wall_ms(&clock.clock), wall + 250);
}

static void
test_random_numbers_are_the_same_every_time(void **state)
{
    uint64_t at = 0;

    (void)state;
    assert_true(test_random(&at) == UINT64_C(0xE220A8397B1DCDAF)); /* splitmix64's first numbers from 0 */
    assert_true(test_random(&at) == UINT64_C(0x6E789E6AA1B965F4));
}

static void
test_scale_follows_the_environment(void **state)
{
    const char *before = getenv("NEAR_TEST_SCALE");
    char        saved[32];

    (void)state;
    snprintf(saved, sizeof(saved), "%s", before == NULL ? "" : before);
    setenv("NEAR_TEST_SCALE", "20", 1);
    assert_int_equal(test_scale(1000), 200);
    assert_int_equal(test_scale(1), 1);
    setenv("NEAR_TEST_SCALE", "nonsense", 1);
    assert_int_equal(test_scale(1000), 1000);
    if (before == NULL)
        unsetenv("NEAR_TEST_SCALE");
    else
        setenv("NEAR_TEST_SCALE", saved, 1);
}

static void
count_trace(const char *name, size_t expected)
{
    char               path[512];
    struct test_trace *trace;
    near_bytes         key;

    snprintf(path, sizeof(path), "%s/traces/%s.keys.zst", TEST_DATA, name);
    trace = test_trace_open(path);
    assert_non_null(trace);
    for (int round = 0; round < 2; round++) {
        size_t n = 0;

        while (test_trace_next(trace, &key)) {
            n += key.size > 0;
        }
        assert_int_equal(n, expected);
        test_trace_rewind(trace);
    }
    assert_true(test_trace_close(&trace));
}

static void
test_traces_have_the_requests_their_readme_says(void **state)
{
    (void)state;
    count_trace("web12", 95607);
    count_trace("orm-night-1m", 1000000);
    count_trace("oltp", 914145);
    count_trace("phases", 870000);
}

static void
test_expected_figures_are_found(void **state)
{
    (void)state;
    assert_int_equal(test_trace_expected(TEST_DATA "/traces", "web12", 138, "lru"), 38043);
    assert_int_equal(test_trace_expected(TEST_DATA "/traces", "web12", 139, "lru"), -1);
    assert_int_equal(test_trace_expected(TEST_DATA "/traces", "web12", 138, "lirs"), -1); /* not exact */
    assert_int_equal(test_trace_expected(TEST_DATA "/nowhere", "web12", 138, "lru"), -1);
}

/* What a trace file may hold besides plain keys. */
static void
test_trace_lines(void **state)
{
    static const char        text[]   = "# a comment\nalpha\n\nbeta 120\n  gamma\t7\r\nlast";
    static const char *const keys[]   = { "alpha", "beta", "gamma", "last" };
    char                     path[64] = "/tmp/near-trace-XXXXXX", packed[256];
    size_t                   size     = ZSTD_compress(packed, sizeof(packed), text, sizeof(text) - 1, 1);
    struct test_trace       *trace;
    near_bytes               key;
    int                      fd = mkstemp(path);

    (void)state;
    assert_int_equal(write(fd, packed, size), size);
    trace = test_trace_open(path);
    assert_non_null(trace);
    for (size_t i = 0; i < NEAR_COUNT_OF(keys); i++) {
        assert_true(test_trace_next(trace, &key));
        assert_int_equal(key.size, strlen(keys[i]));
        assert_memory_equal(key.data, keys[i], key.size);
    }
    assert_false(test_trace_next(trace, &key));
    assert_true(test_trace_close(&trace));

    assert_int_equal(ftruncate(fd, (off_t)size - 4),
                     0); /* damaged: said at the end, never a short trace in silence */
    trace = test_trace_open(path);
    assert_non_null(trace);
    while (test_trace_next(trace, &key))
        ;
    assert_false(test_trace_close(&trace));
    close(fd);
    unlink(path);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_redis_starts_and_is_our_child),
        TEST(test_redis_commands_answer_as_text),
        TEST(test_redis_on_a_port_with_a_password),
        TEST(test_redis_killed_and_restarted_is_empty_at_the_same_address),
        TEST(test_a_paused_server_is_silent_until_resumed),
        TEST(test_a_stopped_server_can_be_reaped),
        TEST(test_memcached_on_a_socket),
        TEST(test_memcached_on_a_port),
        TEST(test_a_server_dies_with_its_test),
        TEST(test_proxy_carries_both_ways_on_both_addresses),
        TEST(test_proxy_carries_much),
        TEST(test_proxy_passes_on_the_end_of_either_side),
        TEST(test_delay_delays),
        TEST(test_delay_keeps_the_order_when_healed),
        TEST(test_cut_down_cuts_exactly_at_byte_n),
        TEST(test_cut_up_lets_exactly_n_bytes_reach_the_server),
        TEST(test_cut_after_the_request_still_delivers_it),
        TEST(test_cut_once_spares_the_next_connection),
        TEST(test_reset_resets),
        TEST(test_blackhole_swallows_and_stays_open),
        TEST(test_blackhole_hides_the_end_until_healed),
        TEST(test_drip_drips),
        TEST(test_erratic_cuts_or_delays_anywhere),
        TEST(test_hostile_changes_what_comes),
        TEST(test_refuse_closes_old_and_new_connections),
        TEST(test_proxy_outlives_its_server),
        TEST(test_proxy_before_memcached),
        cmocka_unit_test(test_the_clock_moves_by_hand),
        cmocka_unit_test(test_random_numbers_are_the_same_every_time),
        cmocka_unit_test(test_scale_follows_the_environment),
        cmocka_unit_test(test_traces_have_the_requests_their_readme_says),
        cmocka_unit_test(test_expected_figures_are_found),
        cmocka_unit_test(test_trace_lines),
        TEST(test_a_server_that_cannot_start_is_null),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
