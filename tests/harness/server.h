/*
 * Real servers for tests: each in a private directory, started by us, known by pid, reaped whatever happens.
 *
 * A server listens on a unix socket in its directory (Redis and memcached alike) and, when asked, on a free loopback port.  start()
 * returns when the server has answered a command and proved to be our own child.  Everything still running is killed by
 * test_servers_reap(), which test_main() also registers for normal exit; children also die with the test (PR_SET_PDEATHSIG).
 * When the binary is missing, start() returns NULL after printing why: the test skips, or fails if NEAR_TEST_REQUIRE_SERVERS is set.
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
};

enum { TEST_SERVER_TCP = 1u << 0 /* a loopback port besides; then `uri` names the port */ };

/* `extra`: further arguments, ends with NULL; NULL for none. */
struct test_server *test_redis_start(unsigned flags, const char *const *extra);
struct test_server *test_memcached_start(unsigned flags, const char *const *extra);

void test_server_pause(struct test_server *server);   /* SIGSTOP, returns when it has stopped */
void test_server_resume(struct test_server *server);  /* SIGCONT */
void test_server_kill(struct test_server *server);    /* SIGKILL and reap; directory and addresses stay */
bool test_server_restart(struct test_server *server); /* the same addresses, empty; returns when it answers */
void test_server_stop(
    struct test_server **server); /* kill, remove the directory, free; NULL inside is fine */
void test_servers_reap(void);

/* Run a Redis command by redis-cli-like inline connection of our own, not through the library; the reply's text in `out`. */
bool test_redis_command(struct test_server *server, char *out, size_t size, int argc,
                        const char *const *argv);

#endif
