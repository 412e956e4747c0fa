/*
 * Removing all keys of one Redis server that begin with given bytes: SCAN, and UNLINK of what it finds, in small steps over a
 * connection of its own, so that no other call waits behind it and the server has a turn for everybody between two steps.
 *
 * A full SCAN brings every key that is there from its first step to its last.  No state outlives the call; nothing is locked.
 */
#ifndef NEAR_L2_REDIS_SWEEP_H
#define NEAR_L2_REDIS_SWEEP_H

#include "l2/backend.h"
#include "l2/redis_conn.h"

struct near__redis_sweep {
    /* asked */
    struct near__redis_server server;  /* `max_reply` is set here */
    near_bytes                prefix;  /* of the keys, as they lie there */
    bool                      cluster; /* a node of one: a command names one key */
    near_l2_progress_fn       progress;
    void                     *ctx;
    int64_t                   deadline, connect_timeout;
    /* answered */
    bool
        moving; /* cluster: slots were on their way to or from this node, so that keys may have been missed */
};

/* NEAR_OK, or why not all are gone. */
near_status near__redis_sweep(struct near__redis_sweep *sweep, near_error *error);

#endif
