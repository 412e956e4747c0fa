/*
 * Flights: one load in progress per key and process, which any number of callers wait for (single-flight).
 *
 * A flight carries the fence captured when it was made, before anybody was asked.  Whoever comes later compares it with the fence
 * now: if the fence has moved, a write or an invalidation came in between, the flight's value may be older than it, and the
 * newcomer leads a flight of his own in its place (detachment: race-free because the writer moves the fence before he returns).
 * Those who joined earlier keep their flight: they asked before the write was acknowledged.
 *
 * Each caller waits with a deadline of his own.  A flight may carry a fallback, the value that is to be replaced: callers get it
 * when their patience ends or the load fails, but never once the fence has moved (what was removed stays removed).  Who finds that
 * the load has taken longer than anybody should wait (hard deadline) lands the flight as failed; its load goes on.
 *
 * A failed load is remembered for a while, with a pause that doubles: the next attempt is not made before it is over.
 *
 * A stripe's lock covers its chains, its failures and the mutable part of its flights.  Waiting drops it; nothing else is taken
 * under it.
 */
#ifndef NEAR_CLIENT_FLIGHT_H
#define NEAR_CLIENT_FLIGHT_H

#include "client.h"

/* A value that may be served while there is nothing better. */
struct near__fallback {
    near_value *value; /* a reference; NULL: there is none */
    int64_t     fresh_until, expires;
    uint32_t    cost_us;
    bool        forced; /* declared stale by near_expire(): callers wait for the loader */
};
#define NEAR__FRESH_FORCED INT64_MIN /* fresh_until of such a value */

struct near__flight {
    struct near__flight *next;    /* stripe's lock */
    unsigned             refs;    /* stripe's lock */
    bool                 linked;  /* stripe's lock */
    bool                 done;    /* stripe's lock */
    bool                 claimed; /* stripe's lock: somebody is about to land it */
    bool                 loading; /* stripe's lock: its plan has gone on from L2 to the loader */
    bool hedged; /* stripe's lock: a loader runs besides the read of L2; neither has failed yet */
    enum {
        NEAR__UNHEARD,
        NEAR__KEEP,
        NEAR__DO_NOT_KEEP
    } heard; /* stripe's lock: what L2 says of a hedge's value */
    struct near__entry
               *hedge;  /* stripe's lock: of a hedge that has landed, while L2 is unheard; a reference */
    near_status status; /* once done; before that the failure of one of the two */
    near_value *value;  /* once done; a reference of the flight's */
    struct near__fallback fallback;      /* stripe's lock */
    int64_t               hard_deadline; /* stripe's lock; NEAR_NEVER */
    pthread_cond_t        landed;
    const void *leader; /* stripe's lock: identity of the leading call while it is on its thread, else NULL */
    pthread_t   thread; /* of the leader */
    uint64_t    hash, fence; /* fixed */
    uint32_t    label_clock; /* fixed: the L1's clock of tags, captured with the fence */
    int64_t     born;        /* fixed: what it brings is no older */
    size_t      key_size;
    unsigned char key[];
};

enum near__boarding {
    NEAR__BOARD_LEAD, /* a new flight, ours to land */
    NEAR__BOARD_JOIN, /* somebody else's: wait */
    NEAR__BOARD_SELF, /* a loader on this thread asks for what it is loading */
    NEAR__BOARD_NOMEM
};

void near__flights_init(near_cache *cache);
void near__flights_fini(near_cache *cache); /* nobody waits any more */

/* `call` identifies the calling fetch: its own flights are joined, not refused, when a batch names a key twice.  `now` is no later than
 * this call.  On LEAD flight->fence is the fence to fill L1 with: it was captured now, so what the caller asks next is newer.  While
 * nothing is heard of others' writes a flight is joined only if it is younger than the serve window: the fence says nothing then. */
enum near__boarding near__flight_board(near_cache *cache, near_bytes key, uint64_t hash, const void *call,
                                       int64_t now, struct near__flight **flight);
/* The same for one whose last flight landed with a value that a tag's invalidation had overtaken before he boarded: nothing is joined
 * that is older than the newest invalidation of any tag. */
enum near__boarding near__flight_board_anew(near_cache *cache, near_bytes key, uint64_t hash,
                                            const void *call, int64_t now, struct near__flight **flight);
/* This thread now works on it for `leader`; NULL: nobody's thread does, it will be answered from elsewhere. */
void near__flight_lead(near_cache *cache, struct near__flight *flight, const void *leader);

/* What to fall back on: takes the value over.  One that is there already stays if it is the better one (fresh for longer). */
void near__flight_fall_back(near_cache *cache, struct near__flight *flight, struct near__fallback fallback);
/* A copy with a reference of its own, or all zero. */
struct near__fallback near__flight_fallback(near_cache *cache, struct near__flight *flight);
/* Nobody waits longer than this. */
void near__flight_limit(near_cache *cache, struct near__flight *flight, int64_t hard_deadline);

/* Two ways at once (l2.hedge_after).  hedge: true if a loader may start while L2 is still being read; load: true if the plan, which has
 * had its answer from L2, is to load, false if a hedge does so already. */
bool near__flight_hedge(near_cache *cache, struct near__flight *flight);
bool near__flight_load(near_cache *cache, struct near__flight *flight);
/* A hedge that did not get to load: lands only if L2 has nothing either. */
void near__flight_stand_back(near_cache *cache, struct near__flight *flight, near_status status);
/* What a hedge has loaded is for L1 only once L2 has said that nobody is writing the key.  hold: true if L2 has said so already; else it
 * may be kept for the plan that asks L2 (a reference of its own).  heard: L2's word, once; what a hedge has left, a reference, or NULL. */
bool near__flight_hold(near_cache *cache, struct near__flight *flight, struct near__entry *entry);
struct near__entry *near__flight_heard(near_cache *cache, struct near__flight *flight, bool keep);
/* The right to store and land, where there may be two: true for the first who asks. */
bool near__flight_claim(near_cache *cache, struct near__flight *flight);
/* The result, for everybody: takes `value` over (NULL unless NEAR_OK).  The first landing counts, later ones are let go. */
void near__flight_land(near_cache *cache, struct near__flight *flight, near_status status, near_value *value);
/* The loader has failed: lands, unless the other one of two ways is still open; is remembered, unless load.retry is 0. */
void near__flight_fail(near_cache *cache, struct near__flight *flight, near_status status);

/* The failure to answer with because the key's load failed a short while ago, or NEAR_OK. */
near_status near__flight_throttled(near_cache *cache, const struct near__flight *flight, int64_t now);

/* Wait until it has landed, `deadline`, the hard deadline or the end of the patience (`since` + loader.soft_timeout) where there is a
 * fallback.  *value is a reference with NEAR_OK, else NULL; flagged stale where it is. */
near_status near__flight_wait(near_cache *cache, struct near__flight *flight, int64_t since, int64_t deadline,
                              near_value **value);
void        near__flight_ref(near_cache *cache, struct near__flight *flight);
void        near__flight_release(near_cache *cache, struct near__flight **flight);

static inline near_bytes
near__flight_key(const struct near__flight *flight)
{
    return (near_bytes){ flight->key, flight->key_size };
}

#endif
