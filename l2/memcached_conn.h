/*
 * One memcached behind lanes: the codec of l2/lane.h for the text protocol.
 *
 *     memcached.c        which server, what the answers mean for the caller
 *     here               connections: dialling and greeting, fusing reads, telling answers apart
 *     memcached_talk.h   what is said in one call and what was answered; memcached_codec.h: a line
 *
 * A call is one talk on its way through a lane.  Reads of several callers that leave together travel as one
 * `gets` of up to NEAR__MEMCACHED_KEYS keys.
 *
 * A unique number that `gets` has given is good for a `cas` on connections that there were when it was read:
 * a server that was restarted in between counts anew, but none of its connections has survived that (rule
 * L15, race 31).  A call with such numbers that meets a later connection is not said; it comes back
 * `outdated`, and its caller reads again.
 */
#ifndef NEAR_L2_MEMCACHED_CONN_H
#define NEAR_L2_MEMCACHED_CONN_H

#include "l2/lane.h"
#include "l2/large.h"
#include "l2/memcached_epoch.h"
#include "l2/memcached_talk.h"

/* What all connections to one server share.  Its lanes' ctx. */
struct near__memcached_server {
    const struct near__address  *address;
    const struct near__clock    *clock;
    const struct near__log      *log;
    const int                   *cancel_fd; /* readable: every dial ends */
    char                         name[300]; /* "memcached 10.0.0.7:11211": begins every message */
    struct near__lanes          *lanes;
    struct near__memcached_epoch epoch;
    atomic_size_t                item_max;   /* the server's item_size_max, 0: not known */
    atomic_bool                  no_stats;   /* does not answer `stats settings`: not asked again */
    atomic_uint                  stats_lost; /* how often it has hung up when asked */
    _Atomic uint64_t             lives;      /* connections that were made, ever */
    struct near__large           large;
};

extern const struct near__lane_codec near__memcached_lane;

struct near__memcached_call {
    struct near__lane_call lane; /* first */
    /* writes with unique numbers: `lives` when they were read; 0: none of them */
    uint64_t life;
    /* set when it leaves: `lives` at that time, how often it has left, and whether it was not said after all */
    uint64_t lives;
    unsigned begins;
    bool     outdated;
    /* removals without condition: if the connection is lost before the answer, they may have gone past the
     * server */
    bool                           counts;
    struct near__memcached_server *server;
    struct near__memcached_talk    talk; /* last: its block follows */
};

/* Room for `n` commands with so many bytes of keys and values in all; values that are read may have
 * `max_value` bytes.  NULL: out of memory. */
struct near__memcached_call *near__memcached_call_new(struct near__memcached_server *server,
                                                      enum near__memcached_talk_kind kind, size_t n,
                                                      size_t key_bytes, size_t value_bytes, size_t max_value);
void                         near__memcached_call_free(struct near__memcached_call *call); /* NULL is fine */
/* After the last command: the call as one ask of near__lanes_run(). */
struct near__lane_ask near__memcached_ask(struct near__memcached_call *call);

#endif
