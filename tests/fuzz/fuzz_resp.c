/*
 * Fuzz target: what a Redis server may answer, through the connection that reads it (l2/redis_conn.c, hiredis's parser within our bounds).
 *
 * Input: one byte that says how many commands were asked (1 to 8), then all that the server says before it hangs up.  The target is client and
 * server in one thread: the answer waits in the socket before the client looks for it.  Whatever it is, no more replies are taken than were
 * asked for, a connection that heard nonsense is never used again, and nothing announced is believed: memory stays within
 * the bound on a reply (run with -malloc_limit_mb=8).
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "l2/redis_conn.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

#define MAX_REPLY (64u << 10)
#define MOST      8

static struct near__uri uri;
static int              listener = -1;

static void
remove_place(void)
{
    unlink(uri.addresses[0].host);
}

static void
open_place(void)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    char               text[160];

    snprintf(at.sun_path, sizeof(at.sun_path), "/tmp/near-fuzz-%ld", (long)getpid());
    unlink(at.sun_path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(listener >= 0 && bind(listener, (struct sockaddr *)&at, sizeof(at)) == 0 &&
          listen(listener, 4) == 0);
    snprintf(text, sizeof(text), "redis+unix://%s", at.sun_path);
    check(near__uri_parse(&uri, "l2.uri", text, NULL) == NEAR_OK);
    atexit(remove_place);
}

static void
taken(void *ctx, size_t index, redisReply *reply)
{
    size_t *n = ctx;
    char    word[64];

    check(reply != NULL && index == *n);
    ++*n;
    if (reply->type == REDIS_REPLY_ERROR) {
        near__redis_error_word(reply, word, sizeof(word));
        check(memchr(word, '\0', sizeof(word)) != NULL);
        check(near__redis_error_class(reply) != NEAR_OK);
        (void)near__redis_error_drops(reply);
    }
}

static void
exchange(struct near__redis_conn *conn, size_t asked)
{
    near_bytes  argv[2] = { near_key("GET"), near_key("key") };
    size_t      n = 0, answered = 0;
    near_error  error = { 0 };
    near_status status;

    for (size_t i = 0; i < asked; i++)
        check(near__redis_append(conn, 2, argv) == NEAR_OK);
    status = near__redis_exchange(conn, taken, &n, &answered, NULL,
                                  near__now(&near__clock_system) + 5000 * NEAR_MS, &error);
    check(answered == n && n <= asked);
    check((status == NEAR_OK) == (n == asked));
    check(status == NEAR_OK || status == NEAR_ERR_UNAVAILABLE || status == NEAR_ERR_PROTOCOL ||
          status == NEAR_ERR_TOO_LARGE);
    check(status == NEAR_OK || (error.text[0] != '\0' && !near__redis_conn_usable(conn)));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct near__redis_server server = { .uri = &uri, .clock = &near__clock_system, .max_reply = MAX_REPLY };
    struct near__redis_conn  *conn;
    int                       peer;

    if (size == 0 || size > MAX_REPLY) /* a socket holds it */
        return 0;
    if (listener < 0)
        open_place();
    check(near__redis_dial(&conn, &server, near__now(&near__clock_system) + 5000 * NEAR_MS, NULL) == NEAR_OK);
    peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    check(peer >= 0 && send(peer, data + 1, size - 1, MSG_NOSIGNAL) == (ssize_t)(size - 1));
    check(shutdown(peer, SHUT_WR) == 0);
    exchange(conn, 1 + data[0] % MOST);
    near__redis_conn_free(&conn);
    close(peer);
    return 0;
}
