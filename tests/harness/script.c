/* The thread owns the connections; the test's thread only starts it, and stops it by closing a pipe's end. */
#include "harness/test.h"

#include "harness/script.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define IN_SIZE  (256 * 1024)
#define OUT_SIZE (64 * 1024)

struct test_script_conn {
    int      fd;
    unsigned number;
    size_t   used;
    char     in[IN_SIZE];
};

bool
test_script_is(const near_bytes *argv, size_t argc, size_t i, const char *word)
{
    return i < argc && argv[i].size == strlen(word) && strncasecmp(argv[i].data, word, argv[i].size) == 0;
}

/* A number and CRLF behind `lead`; NULL: not there yet, or something else. */
static const char *
read_number(const char *at, const char *end, char lead, size_t *value)
{
    const char *cr;

    if (at == NULL || at >= end || *at != lead)
        return NULL;
    cr = memchr(at, '\r', (size_t)(end - at));
    if (cr == NULL || cr + 1 >= end)
        return NULL;
    *value = strtoul(at + 1, NULL, 10);
    return cr + 2;
}

/* One command out of [at, end): where the next begins, or NULL. */
static const char *
read_command(const char *at, const char *end, near_bytes *argv, size_t *argc)
{
    size_t count, size;

    at = read_number(at, end, '*', &count);
    if (at == NULL || count > TEST_SCRIPT_ARGS)
        return NULL;
    for (*argc = 0; *argc < count; ++*argc) {
        at = read_number(at, end, '$', &size);
        if (at == NULL || (size_t)(end - at) < size + 2)
            return NULL;
        argv[*argc] = (near_bytes){ at, size };
        at += size + 2;
    }
    return at;
}

static bool
say(int fd, const char *text)
{
    size_t size = strlen(text);

    while (size > 0) {
        ssize_t n = send(fd, text, size, MSG_NOSIGNAL);

        if (n <= 0)
            return false;
        text += n;
        size -= (size_t)n;
    }
    return true;
}

/* False: the connection is over. */
static bool
obey(struct test_script *script, struct test_script_conn *conn)
{
    static _Thread_local char out[OUT_SIZE];
    near_bytes                argv[TEST_SCRIPT_ARGS];
    size_t                    argc;
    const char               *at = conn->in, *end = conn->in + conn->used, *next;
    enum test_script_verdict  verdict;

    for (; (next = read_command(at, end, argv, &argc)) != NULL; at = next) {
        out[0] = '\0';
        if (test_script_is(argv, argc, 0, "CLIENT") && !test_script_is(argv, argc, 1, "ID") &&
            !test_script_is(argv, argc, 1, "TRACKING")) {
            snprintf(out, sizeof(out), "+OK\r\n");
            verdict = TEST_SCRIPT_SAY;
        } else {
            verdict = script->fn(script, conn->number, argc, argv, out, sizeof(out));
        }
        if (verdict == TEST_SCRIPT_HANG_UP || (verdict == TEST_SCRIPT_SAY && !say(conn->fd, out)))
            return false;
    }
    conn->used = (size_t)(end - at);
    memmove(conn->in, at, conn->used);
    return conn->used < IN_SIZE;
}

static void
welcome(struct test_script *script)
{
    int one = 1;

    for (size_t i = 0; i < TEST_SCRIPT_CONNS; i++) {
        struct test_script_conn *conn = script->conns[i] == NULL ? malloc(sizeof(*conn)) : NULL;

        if (conn == NULL)
            continue;
        conn->fd     = accept(script->listener, NULL, NULL);
        conn->number = script->accepted++;
        conn->used   = 0;
        setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        script->conns[i] = conn;
        return;
    }
}

static void
part(struct test_script *script, size_t i)
{
    if (script->conns[i] == NULL)
        return;
    close(script->conns[i]->fd);
    free(script->conns[i]);
    script->conns[i] = NULL;
}

static void *
serve(void *ctx)
{
    struct test_script *script = ctx;
    struct pollfd       fds[2 + TEST_SCRIPT_CONNS];

    for (;;) {
        fds[0] = (struct pollfd){ .fd = script->stop[0], .events = POLLIN };
        fds[1] = (struct pollfd){ .fd = script->listener, .events = POLLIN };
        for (size_t i = 0; i < TEST_SCRIPT_CONNS; i++)
            fds[2 + i] = (struct pollfd){ .fd     = script->conns[i] != NULL ? script->conns[i]->fd : -1,
                                          .events = POLLIN };
        poll(fds, NEAR_COUNT_OF(fds), -1);
        if (fds[0].revents != 0)
            break;
        for (size_t i = 0; i < TEST_SCRIPT_CONNS; i++) {
            struct test_script_conn *conn = script->conns[i];
            ssize_t                  n;

            if (conn == NULL || fds[2 + i].revents == 0)
                continue;
            n = recv(conn->fd, conn->in + conn->used, IN_SIZE - conn->used, 0);
            conn->used += n > 0 ? (size_t)n : 0;
            if (n <= 0 || !obey(script, conn))
                part(script, i);
        }
        if (fds[1].revents != 0)
            welcome(script);
    }
    for (size_t i = 0; i < TEST_SCRIPT_CONNS; i++)
        part(script, i);
    return NULL;
}

bool
test_script_start(struct test_script *script, test_script_fn fn, void *ctx)
{
    struct sockaddr_in in   = { .sin_family = AF_INET };
    socklen_t          size = sizeof(in);

    memset(script, 0, sizeof(*script));
    script->fn         = fn;
    script->ctx        = ctx;
    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    script->listener   = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (script->listener < 0 || bind(script->listener, (struct sockaddr *)&in, size) != 0 ||
        listen(script->listener, 64) != 0 ||
        getsockname(script->listener, (struct sockaddr *)&in, &size) != 0 || pipe(script->stop) != 0)
        return false;
    script->port = ntohs(in.sin_port);
    return pthread_create(&script->thread, NULL, serve, script) == 0;
}

void
test_script_stop(struct test_script *script)
{
    if (script->port == 0)
        return;
    close(script->stop[1]);
    pthread_join(script->thread, NULL);
    close(script->stop[0]);
    close(script->listener);
    script->port = 0;
}
