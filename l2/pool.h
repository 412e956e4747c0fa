/*
 * A small pool of connections to one server, for backends whose connections serve one call at a time.
 *
 * At most `capacity` connections exist.  take() hands out an idle one after checking it (rule P5), else dials, else waits for one
 * to come back, all within the deadline.  When a dial fails, further dials are refused for a short, growing, jittered time (fail
 * fast), and then one caller at a time tries: a dead server does not cost every caller a connect timeout.  The lock covers the
 * lists and counts; dialling and dropping happen outside it.
 */
#ifndef NEAR_L2_POOL_H
#define NEAR_L2_POOL_H

#include "base/clock.h"

struct near__pool;

struct near__pool_ops {
    near_status (*dial)(void *ctx, void **conn, int64_t deadline, near_error *error);
    bool (*usable)(void *conn);             /* idle since its last use: still sound? must not block */
    void (*drop)(void *conn, bool goodbye); /* goodbye false: only the descriptor, not a byte on the wire */
    /* In a child, a connection that was lent when the process forked: close the descriptor and touch nothing else.
     * May be NULL: then it stays open until the child ends. */
    void (*abandon)(void *conn);
};

near_status near__pool_new(struct near__pool **pool, const struct near__pool_ops *ops, void *ctx,
                           unsigned capacity, int64_t connect_timeout, const struct near__clock *clock);
/* NEAR_OK with a connection that is the caller's until near__pool_give(); NEAR_ERR_TIMEOUT, NEAR_ERR_UNAVAILABLE (cannot dial, or
 * failed so recently that it was not tried: `error` repeats the reason), NEAR_ERR_DENIED, NEAR_ERR_CLOSED, NEAR_ERR_NOMEM. */
near_status near__pool_take(struct near__pool *pool, void **conn, int64_t deadline, near_error *error);
/* Back: idle if `healthy`, dropped otherwise (rule H6: in any doubt, not healthy). */
void near__pool_give(struct near__pool *pool, void *conn, bool healthy);

uint64_t near__pool_connects(struct near__pool *pool);
uint64_t near__pool_disconnects(struct near__pool *pool); /* dropped as not healthy or not usable */

void near__pool_close(
    struct near__pool *pool); /* take() fails with NEAR_ERR_CLOSED from now on, waiters wake */
void near__pool_stop(struct near__pool *pool);  /* closes, waits until every connection is back, drops them */
void near__pool_free(struct near__pool **pool); /* stops if need be; leaves NULL behind */
void near__pool_forked(struct near__pool *pool); /* in a child: drop all without goodbye, and closed */

#endif
