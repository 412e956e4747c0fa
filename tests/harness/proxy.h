/*
 * A small fault proxy: a thread that carries bytes between a client and a server and spoils them on request.
 *
 * It listens on a unix socket and on a free loopback port; every connection it accepts is carried to the target until a fault says
 * otherwise.  Faults apply to what flows from now on, in one direction or both; setting one replaces the one before, and
 * test_proxy_fault() returns when it is in force.  What is already delayed or dripping keeps its own pace.
 *
 * The byte counts of CUT and RESET are of each connection by itself and begin anew when the fault is set; with 0 the connections
 * close at once.  Every connection suffers them until the fault is replaced, or only the first one when TEST_ONCE is added to the
 * direction.  On a unix socket there is no RST: there RESET is a CUT.
 */
#ifndef TESTS_HARNESS_PROXY_H
#define TESTS_HARNESS_PROXY_H

#include "harness/server.h"

#include <stdint.h>

struct test_proxy;

enum test_direction { TEST_UP = 1, TEST_DOWN = 2, TEST_BOTH = 3, TEST_ONCE = 4 }; /* up: client to server */

struct test_fault {
    enum {
        TEST_FAULT_NONE,
        TEST_FAULT_DELAY, /* every byte `ms` late */
        TEST_FAULT_CUT,   /* close both sides once `bytes` more have passed in that direction */
        TEST_FAULT_RESET, /* the same with RST */
        TEST_FAULT_BLACKHOLE, /* swallow everything, connections stay open; one that has lost bytes stays silent when it is over */
        TEST_FAULT_DRIP,    /* `bytes` at a time, one such every `ms` */
        TEST_FAULT_HANG_UP, /* close existing connections towards their clients only: what these have sent goes on to the target, at its pace */
        TEST_FAULT_REFUSE,  /* close existing connections, close new ones at once */
        TEST_FAULT_ERRATIC, /* one in `bytes` reads is spoilt at a byte drawn at random: the connection is cut there, or what
                               * follows comes 1 .. `ms` late */
        TEST_FAULT_HOSTILE /* one in `bytes` reads is changed: bits, bytes lost, added, repeated, another connection's, or what no
                               * server would say; a few reads later the connection is cut */
    } kind;
    enum test_direction direction;
    int64_t             ms;
    int64_t             bytes;
};

struct test_proxy *test_proxy_start(struct test_server *target);
void               test_proxy_stop(struct test_proxy **proxy);
/* Connections accepted from now on go to `target` (of the same kind); those there are stay where they are. */
void        test_proxy_lead_to(struct test_proxy *proxy, struct test_server *target);
void        test_proxy_fault(struct test_proxy *proxy, struct test_fault fault);
void        test_proxy_heal(struct test_proxy *proxy);
const char *test_proxy_uri(const struct test_proxy *proxy);      /* scheme of the target, our loopback port */
const char *test_proxy_unix_uri(const struct test_proxy *proxy); /* scheme+unix of the target, our socket */
uint64_t test_proxy_bytes(const struct test_proxy *proxy, enum test_direction direction); /* carried so far */
unsigned test_proxy_connections(const struct test_proxy *proxy); /* accepted so far */
/* Reads that ERRATIC or HOSTILE have spoilt so far, and at how many different offsets of the first TEST_OFFSETS. */
enum { TEST_OFFSETS = 256 };
uint64_t test_proxy_spoilt(const struct test_proxy *proxy);
unsigned test_proxy_offsets(const struct test_proxy *proxy);
/* Most connections at a time, since the last call, whose client had not closed them. */
unsigned test_proxy_most_open(struct test_proxy *proxy);

#endif
