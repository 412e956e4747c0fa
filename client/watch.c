/* See watch.h. */
#include "watch.h"

#include <stdlib.h>

/* The first look comes soon, because the fill may have happened between our question and our parking; then the pauses double up to
 * 40 ms, so that a dead holder is noticed well within 100 ms after its lease has ended. */
#define FIRST_POLL (2 * NEAR_MS)
#define LAST_POLL  (40 * NEAR_MS)

struct near__parked {
    struct near__parked *next;
    struct near__leg     leg;
    int64_t              due;
};

static struct near__parked **
bucket_of(struct near__watch *watch, uint64_t hash)
{
    return &watch->buckets[(hash >> 20) % NEAR__WATCH_BUCKETS];
}

/* Take the parked legs that are due off the table, at most `most`; the others' earliest time in *next. */
static struct near__parked *
take_due_locked(struct near__watch *watch, int64_t now, size_t most, size_t *taken, int64_t *next)
    NEAR__NEEDS(watch->lock)
{
    struct near__parked *due = NULL;

    *taken = 0;
    *next  = NEAR_NEVER;
    for (size_t i = 0; i < NEAR__WATCH_BUCKETS; i++)
        for (struct near__parked **at = &watch->buckets[i]; *at != NULL;) {
            struct near__parked *parked = *at;

            if (parked->due > now || *taken == most) {
                *next = parked->due < *next ? parked->due : *next;
                at    = &parked->next;
                continue;
            }
            *at          = parked->next;
            parked->next = due;
            due          = parked;
            watch->n--;
            ++*taken;
        }
    return due;
}

/* The parked legs become a plan that looks at L2 again. */
static void
go_on(near_cache *cache, struct near__parked *due, size_t n)
{
    struct near__plan *plan = near__plan_new(cache, n, near__client_now(cache->client));

    while (due != NULL) {
        struct near__parked *parked = due;

        due = parked->next;
        if (plan != NULL)
            plan->legs[plan->n++] = parked->leg;
        else { /* no memory for a plan: the flight must not hang */
            near__flight_land(cache, parked->leg.flight, NEAR_ERR_NOMEM, NULL);
            near__flight_release(cache, &parked->leg.flight);
        }
        free(parked);
    }
    if (plan != NULL)
        near__plan_detach(plan);
}

static void
tick(void *ctx)
{
    near_cache          *cache = ctx;
    struct near__watch  *watch = &cache->watch;
    struct near__parked *due;
    int64_t              next;
    size_t               n;

    near__lock(&watch->lock);
    due = take_due_locked(watch, near__client_now(cache->client), NEAR_L2_BATCH - 1, &n, &next);
    near__unlock(&watch->lock);
    if (due != NULL)
        go_on(cache, due, n);
    if (next != NEAR_NEVER)
        near__timer_arm_by(&cache->client->scheduler, &watch->timer, next);
}

void
near__watch_init(near_cache *cache)
{
    near__lock_init(&cache->watch.lock, NEAR__RANK_LEAF);
    near__timer_init(&cache->watch.timer, tick, cache);
}

void
near__watch_fini(near_cache *cache)
{
    /* the last reference: a leg that was parked beside the close may have armed it once more */
    near__timer_disarm(&cache->client->scheduler, &cache->watch.timer);
    near__lock_fini(&cache->watch.lock);
}

bool
near__watch_park(near_cache *cache, const struct near__leg *leg)
{
    struct near__watch   *watch  = &cache->watch;
    struct near__parked  *parked = calloc(1, sizeof(*parked));
    struct near__parked **bucket = bucket_of(watch, leg->flight->hash);
    int64_t               due;
    bool                  closed;

    if (parked == NULL)
        return false;
    parked->leg = (struct near__leg){
        .flight  = leg->flight,
        .ask     = { .key         = leg->ask.key,
                     .hash        = leg->ask.hash,
                     .fence       = leg->ask.fence,
                     .label_clock = leg->ask.label_clock },
        .ttl     = leg->ttl,
        .lead    = leg->lead,
        .fill_l1 = leg->fill_l1,
        .spare   = leg->spare,
        .poll    = leg->poll == 0              ? FIRST_POLL
                   : leg->poll < LAST_POLL / 2 ? 2 * leg->poll
                                               : LAST_POLL,
    };
    parked->leg.seen  = leg->seen;
    parked->leg.since = leg->since;
    due               = near__time_after(near__client_now(cache->client), parked->leg.poll);
    if (leg->seen != 0 && near__time_after(leg->since, near__lease_time(cache)) < due)
        due = near__time_after(leg->since, near__lease_time(cache));
    parked->due = due;
    near__flight_lead(cache, leg->flight, NULL);
    /* first the timer: without one nobody would ever look again */
    if (near__timer_arm_by(&cache->client->scheduler, &watch->timer, due) != NEAR_OK) {
        free(parked);
        return false;
    }
    near__lock(&watch->lock);
    closed = watch->closed;
    if (!closed) {
        parked->next = *bucket;
        *bucket      = parked;
        watch->n++;
    }
    near__unlock(&watch->lock);
    if (closed) {
        free(parked);
        return false;
    }
    /* and again: it may have run in between */
    near__timer_arm_by(&cache->client->scheduler, &watch->timer, due);
    near__count(cache, NEAR__lease_waits, leg->poll == 0);
    return true;
}

void
near__watch_filled(near_cache *cache, near_bytes key, uint64_t hash)
{
    struct near__watch   *watch = &cache->watch;
    struct near__parked **at    = bucket_of(watch, hash);
    struct near__parked  *due   = NULL, *parked;
    size_t                n     = 0;

    near__lock(&watch->lock);
    while ((parked = *at) != NULL) {
        if (parked->leg.flight->hash != hash ||
            !near__bytes_equal(near__flight_key(parked->leg.flight), key)) {
            at = &parked->next;
            continue;
        }
        *at          = parked->next;
        parked->next = due;
        due          = parked;
        watch->n--;
        n++;
    }
    near__unlock(&watch->lock);
    if (due != NULL)
        go_on(cache, due, n);
}

void
near__watch_close(near_cache *cache)
{
    struct near__watch  *watch = &cache->watch;
    struct near__parked *due, *parked;
    int64_t              next;
    size_t               n;

    near__timer_disarm(&cache->client->scheduler, &watch->timer);
    near__lock(&watch->lock);
    watch->closed = true;
    due           = take_due_locked(watch, NEAR_NEVER, SIZE_MAX, &n, &next);
    near__unlock(&watch->lock);
    near__timer_disarm(&cache->client->scheduler, &watch->timer); /* armed in between */
    while ((parked = due) != NULL) {
        due = parked->next;
        near__flight_land(cache, parked->leg.flight, NEAR_ERR_CLOSED, NULL);
        near__flight_release(cache, &parked->leg.flight);
        free(parked);
    }
}
