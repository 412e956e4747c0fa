/*
 * Real servers for tests: each in a private directory, started by us, known by pid, reaped whatever happens.
 *
 * A server listens on a unix socket in its directory (Redis and memcached alike) and, when asked, on a free loopback port.  start()
 * returns when the server has answered a command and proved to be our own child.  Everything still running is killed by
 * test_servers_reap(), which test_finish() and a normal exit call; children also die with the thread that started them
 * (PR_SET_PDEATHSIG), so start servers from the main thread.  A forked child of the test never reaps its parent's servers.
 * When start() returns NULL it has printed why; test_need_server() then skips the test if the binary is missing, and fails it
 * if NEAR_TEST_REQUIRE_SERVERS is set or anything else was the reason.
 */
#ifndef TESTS_HARNESS_SERVER_H
#define TESTS_HARNESS_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct test_server {
    const char *kind; /* "redis" or "memcached" */
    pid_t       pid;
    char        directory[128];
    char        socket[160]; /* unix socket path */
    int         port;        /* 127.0.0.1; 0 when not asked for */
    char   uri[256]; /* redis+unix://... or memcached+unix://...; with a port redis://127.0.0.1:port/0 ... */
    char **argv;     /* for restart */

    const char         *password; /* of `--requirepass` among the further arguments, else NULL */
    struct test_server *next;     /* all that were started and not stopped */
};

enum { TEST_SERVER_TCP = 1u << 0 /* a loopback port besides; then `uri` names the port */ };

/* `extra`: further arguments, ends with NULL; NULL for none.  memcached listens on one kind of address only: with TEST_SERVER_TCP
 * its `socket` is empty. */
struct test_server *test_redis_start(unsigned flags, const char *const *extra);
struct test_server *test_memcached_start(unsigned flags, const char *const *extra);

/* A Redis Sentinel, with a port.  `config`: the lines of its configuration file besides address and directory; `password`: what
 * `requirepass` there says, or NULL. */
struct test_server *test_sentinel_start(const char *config, const char *password);

/* In a test or its set-up: end it (skip or fail) when there is no server.  Not in a group set-up: there keep NULL, return 0, and
 * let each test call this. */
void test_need_server(const struct test_server *server);

void test_server_pause(struct test_server *server);   /* SIGSTOP, returns when it has stopped */
void test_server_resume(struct test_server *server);  /* SIGCONT */
void test_server_kill(struct test_server *server);    /* SIGKILL and reap; directory and addresses stay */
bool test_server_restart(struct test_server *server); /* the same addresses, empty; returns when it answers */
void test_server_stop(
    struct test_server **server); /* kill, remove the directory, free; NULL inside is fine */
void test_servers_reap(void);

/* Run a Redis command on a fresh connection of our own, not through the library.  The reply's text goes to `out`: "(nil)" for a nil,
 * numbers in decimal, arrays one element a line.  False, and the server's or the system's words in `out`, when it failed. */
bool test_redis_command(struct test_server *server, char *out, size_t size, int argc,
                        const char *const *argv);
/* The same for memcached's text protocol: one line in, without its CRLF; lines out up to END, OK, or one line. */
bool test_memcached_command(struct test_server *server, char *out, size_t size, const char *line);
/* A loopback port nobody listens on at this moment; 0 when there is none. */
int test_free_port(void);
struct sockaddr_un;
/* False when the path is too long for a socket's address. */
bool test_unix_address(struct sockaddr_un *address, const char *path);
/* A connected blocking socket to the server or -1; the caller closes it. */
int test_server_connect(const struct test_server *server);

#endif
