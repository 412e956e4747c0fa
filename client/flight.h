/*
 * Flights: one load in progress per key and process, which any number of callers wait for (single-flight).
 *
 * A flight carries the fence captured when it was made, before anybody was asked.  Whoever comes later compares it with the fence now: if the fence has moved, a
 * write or an invalidation came in between, the flight's value may be older than it, and the newcomer leads a flight of his
 * own in its place (detachment: race-free because the writer moves the fence before he returns).  Those who joined earlier keep
 * their flight: they asked before the write was acknowledged.
 *
 * A stripe's lock covers its chain and the mutable part of its flights.  Waiting drops it; nothing else is taken under it.
 */
#ifndef NEAR_CLIENT_FLIGHT_H
#define NEAR_CLIENT_FLIGHT_H

#include "client.h"

struct near__flight {
    struct near__flight *next;   /* stripe's lock */
    unsigned             refs;   /* stripe's lock */
    bool                 linked; /* stripe's lock */
    bool                 done;   /* stripe's lock */
    near_status          status; /* once done */
    near_source          source;
    struct near__entry  *entry;
    pthread_cond_t       landed;
    const void *leader; /* stripe's lock: identity of the leading call while it is on its thread, else NULL */
    pthread_t   thread; /* of the leader */
    uint64_t    hash, fence; /* fixed */
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

/* `call` identifies the calling fetch: its own flights are joined, not refused, when a batch names a key twice.  On LEAD
 * flight->fence is the fence to fill L1 with: it was captured now, so what the caller asks next is newer. */
enum near__boarding near__flight_board(near_cache *cache, near_bytes key, uint64_t hash, const void *call,
                                       struct near__flight **flight);
/* The leader's thread goes on without it: its load will be answered from elsewhere. */
void near__flight_leave(near_cache *cache, struct near__flight *flight);
/* The result, for everybody.  Takes its own reference of `entry` (may be NULL).  Once. */
void near__flight_land(near_cache *cache, struct near__flight *flight, near_status status, near_source source,
                       struct near__entry *entry);
/* Wait until it has landed or `deadline`; the status and, with NEAR_OK, a reference of the entry. */
near_status near__flight_wait(near_cache *cache, struct near__flight *flight, int64_t deadline,
                              near_source *source, struct near__entry **entry);
void        near__flight_ref(near_cache *cache, struct near__flight *flight);
void        near__flight_release(near_cache *cache, struct near__flight **flight);

#endif
