/*
 * The contract of a bus: a channel that carries messages between instances and can say "everything published before t has been
 * delivered".  memory.c and redis.c implement exactly this; a new bus is one new file and one row in coherence/buses.c.
 *
 * A bus owns its thread, if it has one, reconnects by itself, and knows nothing of what messages mean: coherence.c does.
 */
#ifndef NEAR_COHERENCE_BUS_H
#define NEAR_COHERENCE_BUS_H

#include "base/clock.h"
#include "base/uri.h"

#define NEAR__BUS_OPS_V1 1

/* What the bus tells its owner, with no lock of the bus held.  From one link of the bus the calls come one at a time, in the order of
 * events; of several links (a cluster's primaries) several may come at once, and each message as often.  `heard` and `beat`
 * come from threads of their own besides; the memory bus calls from the publishers' threads. */
struct near__bus_listener {
    void *ctx;
    /* The subscription has been acknowledged (again).  What was published before may have been missed; what is published
     * after comes as `message`.  Returns before any of those is delivered. */
    void (*subscribed)(void *ctx);
    void (*message)(void *ctx, near_bytes message);
    /* The server says that this key of its own was changed, or went; NULL: all of them. */
    void (*changed)(void *ctx, near_bytes key);
    /* Everything published before `since` (CLOCK_BOOTTIME ns) has been delivered: a PING sent at `since` was answered. */
    void (*heard)(void *ctx, int64_t since);
    /* It turns out that somebody else was listened to than writers talk to, for how long is not known; lost() follows. */
    void (*suspected)(void *ctx);
    /* The subscription is gone, or an attempt at one has failed (the first one, too); subscribed() will come again. */
    void (*lost)(void *ctx, const char *why);
    /* Once a heartbeat, while the subscription stands; may publish, so it may block.  From a thread of its own, beside the others.
     * NULL: not wanted; buses that cannot lose a message never call it. */
    void (*beat)(void *ctx);
};

struct near__access;

struct near__bus_env {
    const struct near__uri    *uri;
    const struct near__access *access; /* l2/access.h; NULL: nothing special is needed to get in */
    const struct near__clock  *clock;
    const struct near__log    *log;
    const char                *channel;
    const char                *client_name;
    int64_t                    heartbeat; /* ns between PINGs */
    int64_t                    silence;   /* ns without an answer after which the connection is given up */
    int64_t                    serve_window;
    const char *prefix; /* not NULL: have the server itself tell of keys that begin so, where it can */
    int64_t     connect_timeout; /* ns */
    struct near__bus_listener listener;
};

/* What is in force now. */
struct near__bus_state {
    bool     subscribed; /* every link is */
    bool     tracking;   /* the server itself tells of keys, on every link */
    bool     recognised; /* every server tells who it is, so that a failover is noticed */
    uint64_t suspicions; /* times a server was another one, or no primary any more */
};

struct near__bus_ops {
    unsigned    version;
    const char *scheme;

    /* Starts; does not wait for a server.  env is copied, what it points to outlives self.  The listener may be called before this
     * returns. */
    near_status (*open)(void **self, const struct near__bus_env *env, near_error *error);
    /* Stamp stream and sequence at message + stamp_at and publish.  *stream as in near_l2_announce: 0 when certainly not sent.
     * NEAR_OK: the bus's server has it.  Any thread; no lock held; blocks up to `deadline`. */
    near_status (*publish)(void *self, uint8_t *message, size_t size, size_t stamp_at, uint64_t *stream,
                           int64_t deadline, near_error *error);
    /* NEAR_OK once heard(since) was called with a `since` not before this call.  Callers share a round trip. */
    near_status (*fence)(void *self, int64_t deadline, near_error *error);
    void (*stop)(void *self); /* no listener call after it returns; blocked callers get NEAR_ERR_CLOSED */
    void (*fini)(void *self); /* NULL is fine */
    void (*forked)(
        void *self); /* in a child, instead of stop: there is no thread; close descriptors in silence */
    void (*state)(void *self, struct near__bus_state *state); /* NULL: nothing to say */
    bool beats;                                               /* it calls listener.beat */
    /* Publish a text that is no message, on another channel of the same server.  NULL: cannot. */
    near_status (*announce)(void *self, const char *channel, near_bytes text, int64_t deadline,
                            near_error *error);
};

extern const struct near__bus_ops near__bus_memory, near__bus_redis, near__bus_rediss, near__bus_redis_unix,
    near__bus_redis_sentinel, near__bus_rediss_sentinel, near__bus_redis_cluster, near__bus_rediss_cluster;

const struct near__bus_ops *near__bus_named(const char *scheme);

#endif
