/*
 * Plans: what happens between a miss and its value, for the keys that one call (or a refresh, or an ended wait) leads.
 *
 * A plan has a leg per flight.  It reads L2, lands what is there, gives flights something to fall back on, waits for the load budget,
 * takes leases, parks what another instance is loading (watch.h) and has the rest loaded (load.h).  It runs on its caller's thread
 * while nothing says otherwise, and goes on in the loader pool, wholly or in part, where the caller must not be kept: a deadline, a
 * loader timeout, something to fall back on.  The caller waits at the flights, never at the plan.
 *
 * A plan belongs to one thread at a time; no lock covers it.  Every leg ends in exactly one way: landed, failed, parked or given to
 * the loader.
 */
#ifndef NEAR_CLIENT_PLAN_H
#define NEAR_CLIENT_PLAN_H

#include "flight.h"
#include "tier.h"

struct near__leg {
    struct near__flight *flight; /* a reference, until the leg has ended */
    struct near__ask     ask;    /* its key lies in the flight */
    int64_t              ttl;    /* ns, unless the loader says otherwise */
    int64_t              lead;   /* a refresh before the end: by how much.  0: none */
    int64_t              poll;   /* parked: the last interval */
    uint64_t             seen;   /* parked: the marker of another instance's lease, */
    int64_t              since;  /* and when it was first seen */
    bool                 fill_l1;
    bool                 spare; /* the flight has something to fall back on */
    bool                 ended;
};

struct near__plan {
    struct near__job   job;   /* first: the pool gives it back */
    near_cache        *cache; /* in the background a reference */
    int64_t            started;
    int64_t            deadline; /* of the caller whose thread it is on; NEAR_NEVER */
    uint64_t           generation;
    bool               background;
    bool               read;   /* L2 has answered */
    bool               sorted; /* and its answers have been dealt with: what is left has to be loaded */
    bool               past;   /* past both tiers: neither read nor filled */
    bool               disk;   /* the disk tier may answer, too */
    bool               hedge;  /* a second way besides another plan's: loads, and stores in L1 only */
    size_t             n, capacity;
    struct near__ask **asks;   /* room for all */
    struct near__leg **picked; /* the same */
    struct near__leg   legs[];
};

/* Room for `capacity` legs.  NULL: out of memory. */
struct near__plan *near__plan_new(near_cache *cache, size_t capacity, int64_t now);
/* Take the flight's reference over. */
struct near__leg *near__plan_add(struct near__plan *plan, struct near__flight *flight, int64_t ttl,
                                 bool fill_l1);
/* Something to fall back on for a leg: takes the value over. */
void near__plan_fall_back(struct near__plan *plan, struct near__leg *leg, struct near__fallback fallback);

/* All take the plan over.  run: on this thread, as far as that goes; background: in the pool, or here if the system gives no thread;
 * detach: in the pool or not at all, for threads that must not wait. */
void near__plan_run(struct near__plan *plan);
void near__plan_background(struct near__plan *plan);
void near__plan_detach(struct near__plan *plan);
/* End every leg alike. */
void near__plan_drop(struct near__plan *plan, near_status status);

/* How long a lease of the cache's is good: what was asked for, or the shortest that the server keeps reliably. */
int64_t near__lease_time(const near_cache *cache);

/* A refresh of a key in the background, unless one is under way.  `fallback` is what is served meanwhile (taken over), unless the
 * fence has moved from `fence`, captured before the fallback was looked up: then it may be what somebody has removed. */
void near__refresh(near_cache *cache, near_bytes key, uint64_t hash, int64_t lead, uint64_t fence,
                   struct near__fallback fallback);

#endif
