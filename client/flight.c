/* See flight.h. */
#include "flight.h"

#include <stdlib.h>
#include <string.h>

static struct near__flight_stripe *
stripe_of(near_cache *cache, uint64_t hash)
{
    return &cache->flights[(hash >> 20) % NEAR__FLIGHT_STRIPES];
}

void
near__flights_init(near_cache *cache)
{
    for (size_t i = 0; i < NEAR__FLIGHT_STRIPES; i++)
        near__lock_init(&cache->flights[i].lock, NEAR__RANK_FLIGHT);
}

void
near__flights_fini(near_cache *cache)
{
    for (size_t i = 0; i < NEAR__FLIGHT_STRIPES; i++)
        near__lock_fini(&cache->flights[i].lock);
}

static struct near__flight *
flight_new(near_bytes key, uint64_t hash, const void *call)
{
    struct near__flight *flight = calloc(1, sizeof(*flight) + key.size);

    if (flight == NULL)
        return NULL;
    near__cond_init(&flight->landed);
    flight->hash     = hash;
    flight->leader   = call;
    flight->thread   = pthread_self();
    flight->key_size = key.size;
    if (key.size > 0)
        memcpy(flight->key, key.data, key.size);
    return flight;
}

static struct near__flight *
find_locked(struct near__flight_stripe *stripe, near_bytes key, uint64_t hash)
{
    struct near__flight *flight = stripe->chain;

    while (flight != NULL &&
           (flight->hash != hash || !near__bytes_equal((near_bytes){ flight->key, flight->key_size }, key)))
        flight = flight->next;
    return flight;
}

static void
unlink_locked(struct near__flight_stripe *stripe, struct near__flight *flight)
{
    struct near__flight **at = &stripe->chain;

    if (!flight->linked)
        return;
    while (*at != flight)
        at = &(*at)->next;
    *at            = flight->next;
    flight->next   = NULL;
    flight->linked = false;
}

static void
link_locked(struct near__flight_stripe *stripe, struct near__flight *flight)
{
    flight->next   = stripe->chain;
    flight->linked = true;
    stripe->chain  = flight;
}

static bool
is_own_loader(const struct near__flight *flight, const void *call)
{
    return flight->leader != NULL && flight->leader != call && pthread_equal(flight->thread, pthread_self());
}

enum near__boarding
near__flight_board(near_cache *cache, near_bytes key, uint64_t hash, const void *call,
                   struct near__flight **flight)
{
    struct near__flight_stripe *stripe   = stripe_of(cache, hash);
    struct near__flight        *fresh    = flight_new(key, hash, call); /* not under the lock */
    enum near__boarding         boarding = NEAR__BOARD_JOIN;
    bool                        detached = false;
    struct near__flight        *found;
    uint64_t                    fence;

    *flight = NULL;
    if (fresh == NULL)
        return NEAR__BOARD_NOMEM;
    near__lock(&stripe->lock);
    fence = near__l1_fence(cache->l1,
                           hash); /* under the lock: a later comer's is never older than the flight's */
    found = find_locked(stripe, key, hash);
    if (found != NULL && found->fence != fence) {
        unlink_locked(stripe, found);
        detached = true;
        found    = NULL;
    }
    if (found == NULL) {
        boarding     = NEAR__BOARD_LEAD;
        fresh->fence = fence;
        fresh->refs  = 1; /* until it lands */
        link_locked(stripe, fresh);
        found = fresh;
        fresh = NULL;
    } else if (is_own_loader(found, call)) {
        boarding = NEAR__BOARD_SELF;
        found    = NULL;
    }
    if (found != NULL)
        found->refs++;
    near__unlock(&stripe->lock);
    if (fresh != NULL) {
        pthread_cond_destroy(&fresh->landed);
        free(fresh);
    }
    if (detached)
        near__count(cache, NEAR__flights_detached, 1);
    *flight = found;
    return boarding;
}

void
near__flight_leave(near_cache *cache, struct near__flight *flight)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);

    near__lock(&stripe->lock);
    flight->leader = NULL;
    near__unlock(&stripe->lock);
}

void
near__flight_land(near_cache *cache, struct near__flight *flight, near_status status, near_source source,
                  struct near__entry *entry)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);

    if (entry != NULL)
        near__entry_ref(entry);
    near__lock(&stripe->lock);
    flight->status = status;
    flight->source = source;
    flight->entry  = entry;
    flight->done   = true;
    flight->leader = NULL;
    unlink_locked(stripe, flight);
    pthread_cond_broadcast(&flight->landed);
    near__unlock(&stripe->lock);
    near__flight_release(cache, &flight); /* the one from boarding: "until it lands" */
}

near_status
near__flight_wait(near_cache *cache, struct near__flight *flight, int64_t deadline, near_source *source,
                  struct near__entry **entry)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    near_status                 status = NEAR_ERR_TIMEOUT;
    bool                        more   = true;

    *entry = NULL;
    near__lock(&stripe->lock);
    while (!flight->done && more)
        more = near__cond_wait(&flight->landed, &stripe->lock, deadline);
    if (flight->done) {
        status  = flight->status;
        *source = flight->source;
        *entry  = flight->entry;
        if (*entry != NULL)
            near__entry_ref(*entry);
    }
    near__unlock(&stripe->lock);
    return status;
}

void
near__flight_ref(near_cache *cache, struct near__flight *flight)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);

    near__lock(&stripe->lock);
    flight->refs++;
    near__unlock(&stripe->lock);
}

void
near__flight_release(near_cache *cache, struct near__flight **pflight)
{
    struct near__flight        *flight = *pflight;
    struct near__flight_stripe *stripe;
    bool                        last;

    *pflight = NULL;
    if (flight == NULL)
        return;
    stripe = stripe_of(cache, flight->hash);
    near__lock(&stripe->lock);
    last = --flight->refs == 0;
    near__unlock(&stripe->lock);
    if (!last)
        return;
    near__entry_release(&flight->entry);
    pthread_cond_destroy(&flight->landed);
    free(flight);
}
