/*
 * A Redis server that says what a script wants: a thread of its own, a loopback port, RESP2 commands in, bytes of the script's out.
 *
 * The script runs in the server's thread, one command at a time over all connections.  What it shares with the test is atomic.
 */
#ifndef TESTS_HARNESS_SCRIPT_H
#define TESTS_HARNESS_SCRIPT_H

#include "base/base.h"

#include <pthread.h>

#define TEST_SCRIPT_CONNS 64
#define TEST_SCRIPT_ARGS  16

enum test_script_verdict {
    TEST_SCRIPT_SAY,  /* what stands in `out` */
    TEST_SCRIPT_MUTE, /* nothing, ever: the connection stays open */
    TEST_SCRIPT_HANG_UP
};

struct test_script;
/* `out` holds 64 KiB; the script writes a reply there as a string.  `conn` numbers the connections from 0 on. */
typedef enum test_script_verdict (*test_script_fn)(struct test_script *script, unsigned conn, size_t argc,
                                                   const near_bytes *argv, char *out, size_t size);

struct test_script {
    test_script_fn fn;
    void          *ctx;
    int            port;

    /* its own */
    int                      listener, stop[2];
    pthread_t                thread;
    struct test_script_conn *conns[TEST_SCRIPT_CONNS];
    unsigned                 accepted;
};

/* False: no socket or thread.  CLIENT, but for ID and TRACKING, is answered OK before the script sees it. */
bool test_script_start(struct test_script *script, test_script_fn fn, void *ctx);
void test_script_stop(struct test_script *script); /* one that was never started, or stopped, is fine */

/* Whether argument `i` is this word. */
bool test_script_is(const near_bytes *argv, size_t argc, size_t i, const char *word);

#endif
