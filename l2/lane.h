/*
 * Connections to one server that any number of threads share, without a thread of their own.
 *
 * A *lane* is one connection.  Callers put their calls on its queue; whoever finds it without a leader becomes the leader: he sends
 * everybody's bytes together, reads the replies, hands each to its call, wakes those who are done and leaves.  A lone caller leads
 * at once and pays no hop.  `struct near__lanes` is one server: a few lanes over which threads are spread, one more for bulk
 * transfers, and a breaker (l2/breaker.h).  Nothing runs while nobody calls.
 *
 *     caller    near__lanes_run()          formats its bytes beforehand, waits, reads its replies afterwards
 *     lane      queue, leader, deadlines, retries, dialling, breaker: lane.c, which knows no protocol
 *     codec     struct near__lane_codec    one table per protocol: l2/redis_node.c, l2/memcached_conn.c
 *
 * What can never happen: a reply handed to another call (replies are matched by their order on one connection, and a connection
 * whose order is in doubt is closed); a caller that is kept longer than its deadline by a server; a caller that disturbs others by
 * giving up.
 */
#ifndef NEAR_L2_LANE_H
#define NEAR_L2_LANE_H

#include "base/clock.h"
#include "l2/transport.h"

#include <stdatomic.h>

struct near__lanes;
struct near__lane_call;
struct near__lane_out;

/* ------------------------------------------------------------------------------------------------ calls */

enum near__lane_outcome {
    NEAR__LANE_NOT_SENT = 0, /* not a byte of it reached a connection that lives: certainly not executed */
    NEAR__LANE_ANSWERED,     /* every reply is in the call */
    NEAR__LANE_LOST, /* its connection was lost: `sent` bytes of it had left, and the codec knows how many replies arrived */
    NEAR__LANE_GIVEN_UP /* the deadline passed, or the lanes were closed, and it may have been executed or may be yet.  The call belongs
                         * to the lane now: nothing of it may be touched */
};

/* The first member of a codec's own call: a heap block with the bytes to send, what it takes to read the replies, and room for them.
 * Nothing in it may point to the caller's stack: a call that was given up lives on until its replies have arrived or its connection
 * is gone, then codec->free_call() frees it.
 *
 * A call is the caller's until near__lanes_run() and after it (unless GIVEN_UP); during it, it is its leader's. */
struct near__lane_call {
    /* the caller's, before the run */
    const char *operation; /* "GET": for texts.  Constant text, or in the call */
    bool bulk; /* large: it takes the connection for bulk transfers, so that small ones do not wait for it */
    bool
        idempotent; /* reading, or a removal: may be sent again when its connection was lost after it had left */
    bool follows; /* idempotent, and yet it must not overtake writes that were given up */

    /* after the run */
    uint64_t   sent;  /* LOST: bytes of it that had left when the connection was lost */
    near_error error; /* NOT_SENT, LOST: why */

    /* lane.c's own */
    struct near__lane_call *next;
    const void             *run; /* whose it is */
    uint64_t         from, to;   /* positions in the connection's stream of bytes; equal: nothing put yet */
    uint8_t          tries;
    uint8_t          epoch;   /* picks the futex its caller sleeps on */
    uint8_t          outcome; /* enum near__lane_outcome, valid once `state` says done */
    _Atomic uint32_t state;
};

/* One call of a run. */
struct near__lane_ask {
    struct near__lanes *lanes; /* the server */
    /* NULL after the run when the lane has kept it: GIVEN_UP, or NOT_SENT because the time was over while it still waited for its
     * turn (such a call never leaves).  Otherwise it is the caller's again, whatever the outcome. */
    struct near__lane_call *call;
    enum near__lane_outcome outcome;
    near_status             status; /* NEAR_OK when ANSWERED */
    bool refused; /* NOT_SENT because the server was seen down: not worth a line in the log */
    /* NULL, or called now and then by whoever runs the ask while he leads its lane, alone there, and not all replies have come: those that
     * have may be read, while the server works at the others.  Not for long: whoever comes to the lane meanwhile waits. */
    void (*came)(struct near__lane_ask *ask);
    void *ctx; /* its */

    /* lane.c's own */
    struct near__lane *lane;
    uint32_t           seen; /* its futex, when this run last looked; `watched`: it has */
    uint8_t            epoch;
    bool               settled, probe, moved, dialled, watched;
};

/*
 * Run the calls, each at its server, all at once, in the caller's thread.  Back when every one has an outcome, and by `deadline`
 * (near__now() of the lanes' clock) plus scheduling.  Many threads at once; no lock is held.  Several calls to one server are sent in
 * their order and may go over different connections only if `bulk` differs.
 *
 * Calls that had not been executed for certain, and idempotent ones, are tried again within the deadline when their connection was
 * lost, on another connection; others are LOST.  status: NEAR_ERR_TIMEOUT, NEAR_ERR_UNAVAILABLE, NEAR_ERR_DENIED (handshake),
 * NEAR_ERR_PROTOCOL, NEAR_ERR_CLOSED, NEAR_ERR_NOMEM.  `error` (may be NULL) holds the text of the first failure.
 */
void near__lanes_run(struct near__lane_ask *asks, size_t n, int64_t deadline, near_error *error);

/* ----------------------------------------------------------------------------------------------- codecs */

/* What a codec makes of one protocol.  All functions that take a `conn` are called by its leader only, one at a time; none may
 * block but `dial`. */
struct near__lane_codec {
    /* A connection, ready for calls, by `deadline`.  NEAR_OK or as near__lanes_run() says; `error` holds the whole text.  One dial at
     * a time per server. */
    near_status (*dial)(void *ctx, void **conn, int64_t deadline, near_error *error);
    void (*drop)(void *conn, bool goodbye); /* goodbye false: only the descriptor, not a byte on the wire */
    void (*abandon)(void *conn);            /* in a forked child: close the descriptor, touch nothing else */
    struct near__transport *(*transport)(void *conn);
    /* Idle since its last call: still sound (rule P5)?  Nothing is outstanding.  `lately`: it was heard of a moment ago, nothing is gained
     * by looking at its socket. */
    bool (*usable)(void *conn, bool lately);

    /* `call` is the next to go out on this connection: put its bytes with near__lane_put(), and note what its replies will be.  A codec
     * that fuses calls may keep it back until a later begin() or flush().  NEAR_OK; NEAR_ERR_BUSY: not before everything ahead of it
     * has been answered, nothing was done; NEAR_ERR_NOMEM: nothing was done. */
    near_status (*begin)(void *conn, struct near__lane_call *call, struct near__lane_out *out);
    /* No more calls for now: put what was kept back.  May be NULL.  NEAR_ERR_NOMEM: the connection is dropped. */
    near_status (*flush)(void *conn, struct near__lane_out *out);

    /* `size` bytes have arrived.  `oldest` is the oldest call without all of its replies, its `next` the one begun after it, and so
     * on; NULL: none is waiting, so any byte is one too many.  *complete: how many of them, from the oldest on, have all of their
     * replies now.  NEAR_OK, else the connection is dropped (with the calls counted in *complete answered): NEAR_ERR_PROTOCOL,
     * NEAR_ERR_NOMEM, NEAR_ERR_UNAVAILABLE, with the whole text. */
    near_status (*receive)(void *conn, struct near__lane_call *oldest, const char *data, size_t size,
                           size_t *complete, near_error *error);
    /* After receive() or when nothing is outstanding: should this connection be dropped once its outstanding calls are answered (a
     * reply said that the server is no good for us: READONLY, LOADING...)?  May be NULL. */
    bool (*spent)(void *conn);

    /* Its connection was lost: forget the replies that came, it is going to be begun again on another. */
    void (*rewind)(struct near__lane_call *call);
    void (*free_call)(struct near__lane_call *call);
};

/* Append bytes of `call` to what the connection will send.  They are not copied: they stay where they are until the call is
 * answered or freed.  False: out of memory, nothing was put. */
bool near__lane_put(struct near__lane_out *out, struct near__lane_call *call, const void *data, size_t size);
/* `call` has no bytes of its own: the bytes put for `with` are its, too. */
void near__lane_put_with(struct near__lane_call *call, const struct near__lane_call *with);

/* What is put from here on stays here until near__lane_release(): the server is to answer first.  So many holds at a time; each release ends the
 * oldest. */
#define NEAR__LANE_HOLDS 2
void near__lane_hold(struct near__lane_out *out);
void near__lane_release(struct near__lane_out *out);

/* For leaders: has its caller given it up? */
bool near__lane_call_is_abandoned(struct near__lane_call *call);

/* -------------------------------------------------------------------------------------------- one server */

struct near__lanes_env {
    const struct near__lane_codec *codec;
    void                          *ctx; /* the codec's, for dial() */
    const struct near__clock      *clock;
    const struct near__log        *log;
    const char                    *name; /* "redis 10.0.0.7:6379": for texts.  Borrowed */
    unsigned                       most; /* connections at most, the one for bulk included if > 1 */
    int64_t                        connect_timeout; /* ns: one dial */
    int64_t timeout; /* ns that a caller without a deadline of his own waits; 0: not known */
    /* Readable once the backend was closed: every sleep ends.  Borrowed, may be shared by several lanes; *cancel_fd -1: none */
    const int *cancel_fd;
};

struct near__lanes_stats {
    uint64_t connects, disconnects; /* disconnects: dropped as not healthy */
    uint64_t calls, batches;        /* calls sent, and sendings: calls / batches is how well they shared */
    uint64_t opened;                /* times the breaker opened */
};

/* Does not dial. NEAR_OK, NEAR_ERR_NOMEM, NEAR_ERR_INVALID. */
near_status near__lanes_new(struct near__lanes **lanes, const struct near__lanes_env *env);
void        near__lanes_stats(struct near__lanes *lanes, struct near__lanes_stats *stats);
const char *near__lanes_name(const struct near__lanes *lanes);
/* Would a call now be refused because the server was seen down?  A hint, for routers and health texts. */
bool near__lanes_down(struct near__lanes *lanes);

/* No new calls; those waiting wake with NEAR_ERR_CLOSED once *cancel_fd is readable.  Returns at once; idempotent. */
void near__lanes_close(struct near__lanes *lanes);
void near__lanes_stop(struct near__lanes *lanes); /* closes; back when no run is in flight */
void near__lanes_free(
    struct near__lanes **lanes); /* stops if need be; goodbyes unless forked; leaves NULL behind */
void near__lanes_forked(
    struct near__lanes *lanes); /* in a child: descriptors closed without a byte, and closed */

#endif
