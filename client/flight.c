/* See flight.h. */
#include "flight.h"

#include <stdlib.h>
#include <string.h>

#include "read.h"

#define FIRST_PAUSE (50 * NEAR_MS) /* after the first failure of a key: most are over by then */

/* A key whose load failed.  Chains of them; those whose pause is long over go when their chain is next added to, and a full stripe
 * gives up the oldest of the chain: that key is then attempted too early, and memory stays bounded. */
struct near__failure {
    struct near__failure *next;
    uint64_t              hash, fence;
    int64_t               until; /* no attempt before */
    unsigned              count; /* failures in a row */
    near_status           status;
    size_t                key_size;
    unsigned char         key[];
};

static struct near__flight_stripe *
stripe_of(near_cache *cache, uint64_t hash)
{
    return &cache->flights[(hash >> 20) % NEAR__FLIGHT_STRIPES];
}

static struct near__flight **
chain_of(struct near__flight_stripe *stripe, uint64_t hash)
{
    return &stripe->chains[(hash >> 26) % NEAR__FLIGHT_CHAINS];
}

/* ---- failures */

static struct near__failure **
failures_of(struct near__flight_stripe *stripe, uint64_t hash)
{
    return &stripe->failures[(hash >> 26) % NEAR__FAILURE_SLOTS];
}

static void
drop_failure_locked(struct near__flight_stripe *stripe, struct near__failure **at) NEAR__NEEDS(stripe->lock)
{
    struct near__failure *failure = *at;

    *at = failure->next;
    stripe->n_failures--;
    free(failure);
}

/* The link to the key's failure, or NULL. */
static struct near__failure **
find_failure_locked(struct near__flight_stripe *stripe, const struct near__flight *flight)
    NEAR__NEEDS(stripe->lock)
{
    struct near__failure **at = stripe->failures != NULL ? failures_of(stripe, flight->hash) : NULL;

    for (; at != NULL && *at != NULL; at = &(*at)->next)
        if ((*at)->hash == flight->hash &&
            near__bytes_equal((near_bytes){ (*at)->key, (*at)->key_size }, near__flight_key(flight)))
            return at;
    return NULL;
}

/* False: there is none to make in this chain. */
static bool
make_room_locked(struct near__flight_stripe *stripe, uint64_t hash, int64_t before) NEAR__NEEDS(stripe->lock)
{
    struct near__failure **at;

    if (stripe->failures == NULL)
        stripe->failures = calloc(NEAR__FAILURE_SLOTS, sizeof(*stripe->failures));
    if (stripe->failures == NULL)
        return false;
    for (at = failures_of(stripe, hash); *at != NULL;)
        if ((*at)->until < before ||
            ((*at)->next == NULL && stripe->n_failures >= NEAR__FAILURES)) /* the oldest of a full stripe */
            drop_failure_locked(stripe, at);
        else
            at = &(*at)->next;
    return stripe->n_failures < NEAR__FAILURES;
}

static struct near__failure *
failure_new_locked(struct near__flight_stripe *stripe, const struct near__flight *flight, int64_t before)
    NEAR__NEEDS(stripe->lock)
{
    struct near__failure *failure;

    if (!make_room_locked(stripe, flight->hash, before))
        return NULL;
    failure = calloc(1, sizeof(*failure) + flight->key_size);
    if (failure == NULL)
        return NULL;
    failure->hash     = flight->hash;
    failure->key_size = flight->key_size;
    if (flight->key_size > 0)
        memcpy(failure->key, flight->key, flight->key_size);
    failure->next                      = *failures_of(stripe, flight->hash);
    *failures_of(stripe, flight->hash) = failure;
    stripe->n_failures++;
    return failure;
}

void
near__flights_init(near_cache *cache)
{
    for (size_t i = 0; i < NEAR__FLIGHT_STRIPES; i++)
        near__lock_init(&cache->flights[i].lock, NEAR__RANK_FLIGHT);
}

void
near__flights_fini(near_cache *cache) NEAR__UNFOLLOWED /* nobody else is there any more */
{
    for (size_t i = 0; i < NEAR__FLIGHT_STRIPES; i++) {
        struct near__flight_stripe *stripe = &cache->flights[i];

        for (size_t j = 0; stripe->failures != NULL && j < NEAR__FAILURE_SLOTS; j++)
            while (stripe->failures[j] != NULL)
                drop_failure_locked(stripe, &stripe->failures[j]);
        free(stripe->failures);
        near__lock_fini(&stripe->lock);
    }
}

static int64_t
pause_after(unsigned failures, int64_t most)
{
    int64_t pause = failures < 24 ? FIRST_PAUSE << (failures - 1) : most;

    return pause < most ? pause : most;
}

static void
remember_locked(near_cache *cache, struct near__flight_stripe *stripe, const struct near__flight *flight,
                near_status status) NEAR__NEEDS(stripe->lock)
{
    int64_t                retry = cache->settings.load_retry;
    int64_t                now   = near__client_now(cache->client);
    struct near__failure **at, *failure;

    if (retry == 0)
        return;
    at      = find_failure_locked(stripe, flight);
    failure = at != NULL ? *at : failure_new_locked(stripe, flight, now - retry);
    if (failure == NULL)
        return;
    if (now - failure->until > retry || !near__l1_fence_same(failure->fence, flight->fence))
        failure->count = 0; /* not in a row */
    failure->count++;
    failure->fence  = flight->fence;
    failure->status = status;
    failure->until  = near__time_after(now, pause_after(failure->count, retry));
}

static void
forget_locked(struct near__flight_stripe *stripe, const struct near__flight *flight) NEAR__NEEDS(stripe->lock)
{
    struct near__failure **at = find_failure_locked(stripe, flight);

    if (at != NULL)
        drop_failure_locked(stripe, at);
}

near_status
near__flight_throttled(near_cache *cache, const struct near__flight *flight, int64_t now)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    near_status                 status = NEAR_OK;
    struct near__failure      **at;

    near__lock(&stripe->lock);
    at = find_failure_locked(stripe, flight);
    /* a write of the key since then is news: then the load may well succeed */
    if (at != NULL && now < (*at)->until && near__l1_fence_same((*at)->fence, flight->fence))
        status = (*at)->status;
    near__unlock(&stripe->lock);
    return status;
}

/* ---- boarding */

static struct near__flight *
flight_new(near_bytes key, uint64_t hash, const void *call, int64_t now)
{
    struct near__flight *flight = calloc(1, sizeof(*flight) + key.size);

    if (flight == NULL)
        return NULL;
    near__cond_init(&flight->landed);
    flight->hash          = hash;
    flight->leader        = call;
    flight->born          = now;
    flight->thread        = pthread_self();
    flight->hard_deadline = NEAR_NEVER;
    flight->key_size      = key.size;
    if (key.size > 0)
        memcpy(flight->key, key.data, key.size);
    return flight;
}

static void
flight_free(struct near__flight *flight)
{
    near_value_release(flight->value);
    near_value_release(flight->fallback.value);
    near__entry_release(&flight->hedge);
    pthread_cond_destroy(&flight->landed);
    free(flight);
}

static struct near__flight *
find_locked(struct near__flight_stripe *stripe, near_bytes key, uint64_t hash) NEAR__NEEDS(stripe->lock)
{
    struct near__flight *flight = *chain_of(stripe, hash);

    while (flight != NULL && (flight->hash != hash || !near__bytes_equal(near__flight_key(flight), key)))
        flight = flight->next;
    return flight;
}

static void
unlink_locked(struct near__flight_stripe *stripe, struct near__flight *flight) NEAR__NEEDS(stripe->lock)
{
    struct near__flight **at = chain_of(stripe, flight->hash);

    if (!flight->linked)
        return;
    while (*at != flight)
        at = &(*at)->next;
    *at            = flight->next;
    flight->next   = NULL;
    flight->linked = false;
}

static void
link_locked(struct near__flight_stripe *stripe, struct near__flight *flight) NEAR__NEEDS(stripe->lock)
{
    struct near__flight **chain = chain_of(stripe, flight->hash);

    flight->next   = *chain;
    flight->linked = true;
    *chain         = flight;
}

static bool
is_own_loader(const struct near__flight *flight, const void *call)
{
    return flight->leader != NULL && flight->leader != call && pthread_equal(flight->thread, pthread_self());
}

/* Whether what it brings is new enough for who comes now.  A fence that has not moved says so while messages come; else its age must,
 * within the bound that holds for hits. */
static bool
may_join(const near_cache *cache, const struct near__flight *flight, int64_t now)
{
    const near_client *client = cache->client;

    return client->coherence == NULL || now < near__coherence_gate(client->coherence) ||
           now - flight->born < client->settings.coherence_serve_window;
}

static enum near__boarding
board(near_cache *cache, near_bytes key, uint64_t hash, const void *call, bool anew, int64_t now,
      struct near__flight **flight)
{
    struct near__flight_stripe *stripe   = stripe_of(cache, hash);
    struct near__flight        *fresh    = flight_new(key, hash, call, now); /* not under the lock */
    enum near__boarding         boarding = NEAR__BOARD_JOIN;
    bool                        detached = false;
    struct near__flight        *found;
    uint64_t                    fence;
    uint32_t                    clock;

    *flight = NULL;
    if (fresh == NULL)
        return NEAR__BOARD_NOMEM;
    near__lock(&stripe->lock);
    fence = near__l1_fence(cache->l1,
                           hash); /* under the lock: a later comer's is never older than the flight's */
    clock = near__l1_label_clock(cache->l1);
    found = find_locked(stripe, key, hash);
    if (found != NULL && (!near__l1_fence_same(found->fence, fence) ||
                          (anew && found->label_clock != clock) || !may_join(cache, found, now))) {
        unlink_locked(stripe, found);
        detached = true;
        found    = NULL;
    }
    if (found == NULL) {
        boarding           = NEAR__BOARD_LEAD;
        fresh->fence       = fence;
        fresh->refs        = 1; /* until it lands */
        fresh->label_clock = clock;
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
    if (fresh != NULL)
        flight_free(fresh);
    if (detached)
        near__count(cache, NEAR__flights_detached, 1);
    *flight = found;
    return boarding;
}

enum near__boarding
near__flight_board(near_cache *cache, near_bytes key, uint64_t hash, const void *call, int64_t now,
                   struct near__flight **flight)
{
    return board(cache, key, hash, call, false, now, flight);
}

enum near__boarding
near__flight_board_anew(near_cache *cache, near_bytes key, uint64_t hash, const void *call, int64_t now,
                        struct near__flight **flight)
{
    return board(cache, key, hash, call, true, now, flight);
}

void
near__flight_lead(near_cache *cache, struct near__flight *flight, const void *leader)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);

    near__lock(&stripe->lock);
    flight->leader = flight->done ? NULL : leader;
    flight->thread = pthread_self();
    near__unlock(&stripe->lock);
}

/* ---- in the air */

void
near__flight_fall_back(near_cache *cache, struct near__flight *flight, struct near__fallback fallback)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    near_value                 *out    = fallback.value;

    near__lock(&stripe->lock);
    if (flight->fallback.value == NULL || flight->fallback.fresh_until < fallback.fresh_until) {
        out              = flight->fallback.value;
        flight->fallback = fallback;
        pthread_cond_broadcast(&flight->landed); /* waiters may have been waiting for just that */
    }
    near__unlock(&stripe->lock);
    near_value_release(out);
}

struct near__fallback
near__flight_fallback(near_cache *cache, struct near__flight *flight)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    struct near__fallback       fallback;

    near__lock(&stripe->lock);
    fallback = flight->fallback;
    near_value_ref(fallback.value);
    near__unlock(&stripe->lock);
    return fallback;
}

void
near__flight_limit(near_cache *cache, struct near__flight *flight, int64_t hard_deadline)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);

    near__lock(&stripe->lock);
    if (flight->hard_deadline == NEAR_NEVER) {
        flight->hard_deadline = hard_deadline;
        pthread_cond_broadcast(&flight->landed);
    }
    near__unlock(&stripe->lock);
}

bool
near__flight_hedge(near_cache *cache, struct near__flight *flight)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    bool                        may;

    near__lock(&stripe->lock);
    may = !flight->done && !flight->loading && !flight->hedged;
    if (may)
        flight->hedged = true;
    near__unlock(&stripe->lock);
    return may;
}

bool
near__flight_load(near_cache *cache, struct near__flight *flight)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    bool                        may;

    near__lock(&stripe->lock);
    flight->loading = true;
    may             = !flight->done && !flight->hedged;
    flight->hedged  = false; /* L2 has had its chance: the hedge's failure is the failure */
    near__unlock(&stripe->lock);
    return may;
}

void
near__flight_stand_back(near_cache *cache, struct near__flight *flight, near_status status)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    bool                        alone;

    near__lock(&stripe->lock);
    alone          = !flight->hedged; /* L2 has said no, and left it to us */
    flight->hedged = false;
    near__unlock(&stripe->lock);
    if (alone)
        near__flight_land(cache, flight, status, NULL);
}

bool
near__flight_claim(near_cache *cache, struct near__flight *flight)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    bool                        mine;

    near__lock(&stripe->lock);
    mine            = !flight->claimed;
    flight->claimed = true;
    near__unlock(&stripe->lock);
    return mine;
}

bool
near__flight_hold(near_cache *cache, struct near__flight *flight, struct near__entry *entry)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    bool                        keep;

    near__lock(&stripe->lock);
    keep = flight->heard == NEAR__KEEP;
    if (flight->heard == NEAR__UNHEARD && flight->hedge == NULL) {
        near__entry_ref(entry);
        flight->hedge = entry;
    }
    near__unlock(&stripe->lock);
    return keep;
}

struct near__entry *
near__flight_heard(near_cache *cache, struct near__flight *flight, bool keep)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    struct near__entry         *entry;

    near__lock(&stripe->lock);
    entry         = flight->hedge;
    flight->hedge = NULL;
    flight->heard = keep ? NEAR__KEEP : NEAR__DO_NOT_KEEP;
    near__unlock(&stripe->lock);
    return entry;
}

/* ---- landing */

/* Takes `value` over; what it replaces is for the caller to let go after unlocking, with a reference of the flight. */
static void
land_locked(struct near__flight_stripe *stripe, struct near__flight *flight, near_status status,
            near_value *value) NEAR__NEEDS(stripe->lock)
{
    flight->status = status;
    flight->value  = value;
    flight->done   = true;
    flight->leader = NULL;
    unlink_locked(stripe, flight);
    pthread_cond_broadcast(&flight->landed);
}

void
near__flight_land(near_cache *cache, struct near__flight *flight, near_status status, near_value *value)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    bool                        late;

    near__lock(&stripe->lock);
    late = flight->done;
    if (status >= 0)
        forget_locked(stripe, flight);
    if (!late)
        land_locked(stripe, flight, status, value);
    near__unlock(&stripe->lock);
    if (late)
        near_value_release(value);
    else
        near__flight_release(cache, &flight); /* the one from boarding: "until it lands" */
}

void
near__flight_fail(near_cache *cache, struct near__flight *flight, near_status status)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    bool                        landed = false;

    near__lock(&stripe->lock);
    if (flight->hedged) {
        flight->hedged = false; /* L2 may still answer; if it does not, the plan loads once more */
    } else if (!flight->done) {
        remember_locked(cache, stripe, flight, status);
        land_locked(stripe, flight, status, NULL);
        landed = true;
    }
    near__unlock(&stripe->lock);
    if (landed)
        near__flight_release(cache, &flight);
}

/* ---- waiting */

/* Whether the fallback may be served: what was written or removed since must not come back. */
static bool
may_fall_back(const near_cache *cache, const struct near__flight *flight, int64_t now)
{
    return flight->fallback.value != NULL && now < flight->fallback.expires &&
           near__l1_fence_same(near__l1_fence(cache->l1, flight->hash), flight->fence) &&
           !near__l1_value_outdated(cache->l1, flight->fallback.value, near__l1_label_clock(cache->l1));
}

/* Until when a caller who came at `since` prefers waiting to the fallback. */
static int64_t
patience(const near_cache *cache, const struct near__flight *flight, int64_t since, int64_t now)
{
    const struct near__fallback *fallback = &flight->fallback;
    int64_t                      soft     = cache->settings.loader_soft_timeout;

    if (now < fallback->fresh_until)
        return since; /* only being refreshed early */
    if (fallback->forced && soft == 0)
        return NEAR_NEVER;
    return near__time_after(since, soft);
}

static near_value *
fallback_locked(const near_cache *cache, const struct near__flight *flight, int64_t now)
{
    near_value *value = near_value_ref(flight->fallback.value);

    if (now < flight->fallback.fresh_until)
        return value;
    near__count(cache, NEAR__stale_served, 1);
    return near__value_as_stale(value);
}

static int64_t
earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

near_status
near__flight_wait(near_cache *cache, struct near__flight *flight, int64_t since, int64_t deadline,
                  near_value **value)
{
    struct near__flight_stripe *stripe = stripe_of(cache, flight->hash);
    near_status                 status = NEAR_MISS;
    bool                        landed = false;

    *value = NULL;
    near__lock(&stripe->lock);
    while (status == NEAR_MISS) {
        bool    ready = flight->done && flight->status >= 0;
        int64_t now   = ready ? 0 : near__client_now(cache->client);
        bool    spare = !ready && may_fall_back(cache, flight, now);
        int64_t wait  = spare ? patience(cache, flight, since, now) : NEAR_NEVER;

        if (!flight->done && now >= flight->hard_deadline) {
            near__count(cache, NEAR__load_timeouts, 1);
            remember_locked(cache, stripe, flight, NEAR_ERR_TIMEOUT);
            land_locked(stripe, flight, NEAR_ERR_TIMEOUT, NULL);
            landed = true;
        }
        if (ready) {
            status = flight->status;
            *value = near_value_ref(flight->value);
        } else if (spare && (flight->done || now >= earlier(wait, deadline))) {
            status = NEAR_OK;
            *value = fallback_locked(cache, flight, now);
        } else if (flight->done) {
            status = flight->status;
        } else if (now >= deadline) {
            status = NEAR_ERR_TIMEOUT;
        } else {
            near__cond_wait(&flight->landed, &stripe->lock,
                            earlier(earlier(wait, deadline), flight->hard_deadline));
        }
    }
    near__unlock(&stripe->lock);
    if (landed)
        near__flight_release(cache, &flight);
    return status;
}

/* ---- references */

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
    if (last)
        flight_free(flight);
}
