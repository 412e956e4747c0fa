/*
 * What the files of the Redis bus share: redis.c (its life, publish, fence), redis_link.c (a subscriber), redis_probe.c (who is
 * it that we listen to?), redis_topology.c (which primaries has a cluster?).
 *
 * A bus has a link to each address of its URI.  Of a cluster it has one, the first, to its channel's home, and where the servers
 * themselves are to tell of keys one more to every primary: these trackers come and go with the primaries, by the probe's thread alone.
 * A place in `links` is used, or empty and kept for the next one.  A link is a thread ("near-bus")
 * with one connection that does nothing but listen and PING.  Beside them one thread ("near-probe") asks every server, on a
 * connection of its own, whether it still is the one that was subscribed to, and has the owner's beat sent.
 *
 * bus->lock (rank BUS) covers what threads tell each other: `stopping`, `losses`, `reason`, and of each link the part so marked.  It is
 * not held while calling the listener or doing I/O.  Eventfds carry no meaning but "look again": `wake` ends a link's wait and is
 * drained; `cancel` is raised once, by stop(), and ends every wait of every connection, dials included; a tracker's own does the same
 * for its thread alone, when it is retired.
 */
#ifndef NEAR_COHERENCE_REDIS_BUS_H
#define NEAR_COHERENCE_REDIS_BUS_H

#include "base/lock.h"
#include "coherence/bus.h"
#include "l2/pool.h"
#include "l2/redis_conn.h"

#define NEAR__BACK_OFF_MIN (10 * NEAR_MS)
#define NEAR__PINGS        64 /* unanswered at a time; a power of two */

struct near__pings {
    uint64_t sent, answered;       /* how many on this connection: number n is the n-th, from 0 */
    int64_t  sent_at[NEAR__PINGS]; /* number n at n % NEAR__PINGS */
};

/* Who a server says it is. */
struct near__identity {
    bool told;        /* it answers such questions (an ACL may forbid them) */
    bool busy;        /* it will, but not now */
    bool primary;     /* ROLE */
    char run_id[64];  /* INFO server: one process's life */
    char refused[64]; /* told is false: the server's word */
};

struct near__redis_bus;

struct near__bus_link {
    struct near__redis_bus   *bus;
    char                      name[300]; /* for texts */
    struct near__redis_server server;
    struct near__pool        *publishers;
    int                       wake, cancel; /* stay with the place; cancel: a tracker's */
    bool                      tracker;      /* of a cluster's primary: hears of keys, and no messages */
    struct near__address      address;      /* a tracker's */
    pthread_t                 thread;
    bool running; /* the thread is to be joined; a tracker's: touched by the probe until it has ended */

    /* its thread's own */
    struct near__redis_conn *conn;
    struct near__pings       pings;
    int64_t                  back_off;

    /* the probe's own */
    struct near__redis_conn *probe;
    int64_t                  probe_dialled;

    /* bus->lock */
    bool                  used;               /* else this place is empty */
    bool                  retired;            /* to end: its primary is none any more */
    bool                  subscribed, wanted; /* wanted: a PING is wanted at once */
    bool                  tracking;           /* server-assisted invalidation is in force */
    uint64_t              life;               /* of the subscription: counts them */
    struct near__identity identity;           /* of the server subscribed to */
    int64_t               heard;              /* the newest PING that was answered */
    int64_t               vouched;            /* the newest question whose answer was: still me */
    bool                  suspect;            /* the answer was another one */
    char                  suspicion[200];
};

struct near__redis_bus {
    struct near__bus_env env;
    int                  cancel;
    bool                 forked;
    pthread_t            prober;
    bool                 probing;           /* the thread is to be joined; touched by open and stop only */
    bool                 untold, untracked; /* said once: bus->lock */

    struct near__lock lock;
    pthread_cond_t    news; /* heard, losses or stopping changed */
    pthread_cond_t    beat; /* the probe is wanted at once, or stopping */
    bool              stopping, probe_wanted;
    bool              map_wanted; /* a link was lost: look whether the primaries have changed */
    bool              refused;    /* a tracker's server does not tell of keys: no trackers */
    int64_t
        mapped; /* the newest question whose answer was: these are the primaries.  NEAR_NEVER: not asked */
    uint64_t losses;
    uint64_t suspicions;  /* times a server was another one, or no primary any more */
    char     reason[256]; /* of the newest loss */

    /* the probe's own */
    struct near__redis_conn *map_conn;
    struct near__address     map_at;   /* where it leads to */
    int64_t                  map_read; /* when all nodes were looked at */
    char                     map_summary[160];

    size_t                publishing;  /* links with publishers: the first ones; fixed */
    size_t                n, capacity; /* n: places that have ever been used; bus->lock */
    struct near__bus_link links[];
};

/* redis.c */
bool        near__bus_stopping(struct near__redis_bus *bus);
near_status near__bus_closed(near_error *error);
/* Tell the owner up to when everything has been heard, of all links together. */
void near__bus_tell(struct near__redis_bus *bus);

/* redis_link.c: a link's thread, until stop. */
void *near__link_run(void *link);
/* The text for a reply that is not what was asked for. */
near_status near__link_refused(const char *name, const char *operation, const redisReply *reply,
                               near_error *error);

/* redis_topology.c, the probe's thread: start and end trackers as the primaries come and go.  Nothing to do without trackers. */
void near__topology_check(struct near__redis_bus *bus);
#define NEAR__TRACKERS_MAX 128 /* each is a thread and a connection */

/* Whom a link's connections reach: the channel's home, or its own primary. */
near_status near__link_dial(struct near__redis_conn **conn, struct near__bus_link *link, int64_t deadline,
                            near_error *error);
/* redis.c: prepare a place for a new link; `address` NULL: where the URI leads. */
near_status near__link_init(struct near__bus_link *link, struct near__redis_bus *bus,
                            const struct near__address *address, near_error *error);

/* redis_probe.c: the probe's thread, until stop. */
void *near__probe_run(void *bus);
/* Ask a connection that is not subscribed for the role and, of a fresh one, the run id; a fresh one is also asked not to be evicted.
 * NEAR_OK also when the server does not tell. */
near_status near__identity_ask(struct near__redis_conn *conn, bool fresh, struct near__identity *identity,
                               int64_t deadline, near_error *error);

#endif
