/*
 * Write-back: changes are acknowledged here and reach the store later.
 *
 * The way of a change: journal (if there is one), dirty table (one step under its lock, which draws the number), the journal's disk by
 * write_back.fsync, L2 and L1 as by near_put(), acknowledged.  Then the flusher: a few flights, each a batch on its way to the store
 * and back, run by the loader pool.  A key is in one flight at most, and its writes fly one by one in order.  What the store has is
 * settled (see back.c) before it leaves the table and the journal.
 *
 * Bounded: write_back.max_pending bytes in the table; flights are made with the cache.
 *
 * near_cache.back is set by near_cache_open() for good, or NULL: other policies pay nothing.  It goes with the cache.
 */
#ifndef NEAR_CLIENT_BACK_H
#define NEAR_CLIENT_BACK_H

#include "dirty.h"
#include "read.h"
#include "store.h"

/* Queues: of those that the store has already, of fresh ones, and by how often they were tried. */
enum { NEAR__BACK_STORED, NEAR__BACK_FRESH, NEAR__BACK_LEVELS = NEAR__BACK_FRESH + 16 };

struct near__flight_of_writes;

/* Keys in the order in which they are due. */
struct near__back_queue {
    struct near__dirty_key *first, **last;
    size_t                  n;
    int64_t                 due; /* of the last one */
};

struct near__back {
    struct near__dirty             dirty; /* its lock covers all below */
    near_cache                    *cache;
    struct near__journal          *journal; /* NULL: none */
    uint64_t                       origin;
    pthread_cond_t                 moved; /* something left the table, or a flight ended */
    struct near__back_queue        queues[NEAR__BACK_LEVELS];
    uint64_t                       numbered;               /* the newest number */
    uint64_t                       suspect_until;          /* all up to this one are suspect */
    uint64_t                       stored, dead;           /* writes, so far */
    size_t                         flying;                 /* flights under way */
    bool                           started;                /* there is a store */
    bool                           closing, stopped, over; /* no new changes; no new flights; no new steps */
    size_t                         steps;                  /* of flights, under way */
    struct near__timer             timer;
    bool                           unarmed; /* it should be, and is not: there was no memory for it */
    size_t                         flights_n;
    struct near__flight_of_writes *flights;
};

near_status near__back_open(near_cache *cache, near_error *error);
void        near__back_free(near_cache *cache);
/* The store is there. */
void near__back_start(near_cache *cache);
/* Ahead of near__back_close(), for all caches of a client: so that none eats up the time of the others. */
void near__back_closing(near_client *client);
/* No change is accepted any more; those that were are brought to the store, until `deadline`.  How many were not. */
size_t near__back_close(near_cache *cache, int64_t deadline);

/* near_update() and, with data NULL, near_erase().  The options are taken, and not NULL. */
near_status near__back_write(near_cache *cache, near_bytes key, near_bytes data,
                             const near_put_options *options);

/* Somebody else has written this key, or may have written any. */
void near__back_suspect(near_cache *cache, uint64_t hash, near_bytes key);
void near__back_suspect_all(near_cache *cache);

struct near__back_levels {
    uint64_t writes, bytes;
    int64_t  oldest; /* when the oldest was accepted; 0: there is none */
};
void near__back_levels(struct near__back *back, struct near__back_levels *levels);

/* The part of a read that comes before all others.  True: *status and *value are the answer. */
bool near__back_answers_slowly(near_cache *cache, uint64_t hash, near_bytes key, near_value **value,
                               near_status *status);

static inline bool
near__back_may(const near_cache *cache, uint64_t hash)
{
    return __builtin_expect(cache->back != NULL, 0) && near__dirty_may(&cache->back->dirty, hash);
}

static inline bool
near__back_answers(near_cache *cache, uint64_t hash, near_bytes key, near_value **value, near_status *status)
{
    return near__back_may(cache, hash) && near__back_answers_slowly(cache, hash, key, value, status);
}

#endif
