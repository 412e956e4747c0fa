/* See plan.h. */
#include "plan.h"

#include <stdlib.h>

#include "budget.h"
#include "codec.h"
#include "disk.h"
#include "early.h"
#include "generation.h"
#include "load.h"
#include "read.h"
#include "watch.h"

struct near__plan *
near__plan_new(near_cache *cache, size_t capacity, int64_t now)
{
    size_t each = sizeof(struct near__leg) + sizeof(struct near__ask *) + sizeof(struct near__leg *);
    struct near__plan *plan = calloc(1, sizeof(*plan) + capacity * each);

    if (plan == NULL)
        return NULL;
    plan->cache    = cache;
    plan->started  = now;
    plan->deadline = NEAR_NEVER;
    plan->capacity = capacity;
    plan->asks     = (struct near__ask **)&plan->legs[capacity];
    plan->picked   = (struct near__leg **)&plan->asks[capacity];
    return plan;
}

struct near__leg *
near__plan_add(struct near__plan *plan, struct near__flight *flight, int64_t ttl, bool fill_l1)
{
    struct near__leg *leg = &plan->legs[plan->n++];

    *leg = (struct near__leg){
        .flight  = flight,
        .ask     = { .key         = near__flight_key(flight),
                     .hash        = flight->hash,
                     .fence       = flight->fence,
                     .label_clock = flight->label_clock },
        .ttl     = ttl,
        .fill_l1 = fill_l1,
    };
    return leg;
}

void
near__plan_fall_back(struct near__plan *plan, struct near__leg *leg, struct near__fallback fallback)
{
    leg->spare = true;
    near__flight_fall_back(plan->cache, leg->flight, fallback);
}

static void
plan_free(struct near__plan *plan)
{
    near_cache *cache      = plan->cache;
    bool        background = plan->background;

    for (size_t i = 0; i < plan->n; i++) {
        near__entry_release(&plan->legs[i].ask.entry);
        near__flight_release(cache, &plan->legs[i].flight);
    }
    free(plan);
    if (background)
        near__cache_release(cache);
}

static void
land(struct near__plan *plan, struct near__leg *leg, near_status status, near_value *value)
{
    leg->ended = true;
    near__flight_land(plan->cache, leg->flight, status, value);
}

/* Without having tried: a hedge just stands back, for L2 is still being asked. */
static void
give_up(struct near__plan *plan, struct near__leg *leg, near_status status)
{
    if (!plan->hedge) {
        land(plan, leg, status, NULL);
        return;
    }
    leg->ended = true;
    near__flight_stand_back(plan->cache, leg->flight, status);
}

void
near__plan_drop(struct near__plan *plan, near_status status)
{
    for (size_t i = 0; i < plan->n; i++)
        if (!plan->legs[i].ended)
            land(plan, &plan->legs[i], status, NULL);
    plan_free(plan);
}

/* ---- to the pool */

static void
run_in_pool(struct near__job *job, bool cancelled)
{
    struct near__plan *plan = (struct near__plan *)job;

    if (cancelled) {
        near__plan_drop(plan, NEAR_ERR_CLOSED);
        return;
    }
    for (size_t i = 0; i < plan->n; i++)
        if (!plan->legs[i].ended)
            near__flight_lead(plan->cache, plan->legs[i].flight, plan);
    near__plan_run(plan);
}

static near_status
submit(struct near__plan *plan)
{
    if (!plan->background)
        atomic_fetch_add_explicit(&plan->cache->refs, 1, memory_order_relaxed);
    plan->background = true;
    plan->deadline   = NEAR_NEVER;
    plan->job.fn     = run_in_pool;
    for (size_t i = 0; i < plan->n; i++)
        if (!plan->legs[i].ended)
            near__flight_lead(plan->cache, plan->legs[i].flight, NULL);
    return near__workers_submit(plan->cache->client->workers, &plan->job);
}

void
near__plan_background(struct near__plan *plan)
{
    near_status status = submit(plan);

    if (status == NEAR_ERR_NOMEM)
        run_in_pool(&plan->job, false); /* there is no thread but this one */
    else if (status != NEAR_OK)
        near__plan_drop(plan, status);
}

void
near__plan_detach(struct near__plan *plan)
{
    near_status status = submit(plan);

    if (status != NEAR_OK)
        near__plan_drop(plan, status);
}

/* Move the legs that `which` names into a plan of their own in the background.  Without memory for that they stay. */
static void
split(struct near__plan *plan, bool (*which)(const struct near__plan *plan, const struct near__leg *leg),
      bool               read)
{
    struct near__plan *other;
    size_t             n = 0;

    for (size_t i = 0; i < plan->n; i++)
        n += !plan->legs[i].ended && which(plan, &plan->legs[i]);
    other = n > 0 ? near__plan_new(plan->cache, n, plan->started) : NULL;
    if (other == NULL)
        return;
    other->generation = plan->generation;
    other->read       = read;
    other->sorted     = read;
    other->hedge      = plan->hedge;
    other->past       = plan->past;
    for (size_t i = 0; i < plan->n; i++) {
        struct near__leg *leg = &plan->legs[i];

        if (leg->ended || !which(plan, leg))
            continue;
        other->legs[other->n++] = *leg;
        leg->flight             = NULL; /* gone with its ask */
        leg->ask.entry          = NULL;
        leg->ended              = true;
    }
    near__plan_background(other);
}

/* ---- L2 */

static size_t
collect_asks(struct near__plan *plan)
{
    size_t n = 0;

    for (size_t i = 0; i < plan->n; i++)
        if (!plan->legs[i].ended && !plan->legs[i].ask.disk)
            plan->asks[n++] = &plan->legs[i].ask;
    return n;
}

/* The disk tier is asked first, for what L1 might have had. */
static void
read_disk(struct near__plan *plan, int64_t now)
{
    size_t n;

    if (NEAR__LIKELY(!plan->disk) || !near__disk_may_answer(plan->cache, now))
        return;
    n = collect_asks(plan);
    if (n > 0)
        near__disk_read(plan->cache, plan->asks, n, plan->deadline);
}

static bool
is_unreachable(const struct near__plan *plan, const struct near__leg *leg)
{
    (void)plan;
    return leg->ask.found == NEAR__UNREACHABLE;
}

static void
read_l2(struct near__plan *plan)
{
    near_cache *cache = plan->cache;
    int64_t     now   = plan->background ? near__client_now(cache->client) : plan->started;
    int64_t     full  = near__time_after(now, cache->client->settings.l2_timeout);
    size_t      n;

    plan->read = true;
    read_disk(plan, now);
    n = cache->client->ops != NULL ? collect_asks(plan) : 0;
    if (n == 0)
        return;
    near__tier_read(cache, plan->asks, n, now, plan->deadline < full ? plan->deadline : full,
                    &plan->generation);
    near__decode_asks(cache, plan->asks, n, true);
    if (plan->deadline < full) /* the caller was in a hurry; L2 may be well, and others may have joined */
        split(plan, is_unreachable, false);
}

/* ---- what L2 said */

static struct near__fallback
fallback_of(struct near__ask *ask)
{
    struct near__entry   *entry    = ask->entry;
    struct near__fallback fallback = {
        .value       = near__value_of(entry, NEAR_FROM_L2, false),
        .fresh_until = ask->soft_until,
        .expires     = entry->expires,
        .cost_us     = entry->cost_us,
        .forced      = ask->soft_until == NEAR__FRESH_FORCED,
    };

    ask->entry = NULL; /* its reference has gone into the value */
    return fallback;
}

static void
take_found(struct near__plan *plan, struct near__leg *leg, int64_t now)
{
    near_cache         *cache = plan->cache;
    struct near__ask   *ask   = &leg->ask;
    struct near__entry *entry = ask->entry;
    int64_t             lead  = 0;

    if (cache->settings.l2_hedge_after > 0 && !near__flight_claim(cache, leg->flight)) {
        leg->ended = true; /* the loader was faster, and what it gave is newer */
        return;
    }
    if (ask->disk)
        near__disk_take(cache, ask, leg->fill_l1, now);
    else if (leg->fill_l1 && !ask->counter)
        near__l1_insert(cache->l1, entry, ask->fence, now);
    if (leg->lead == 0 && !ask->disk)
        near__count(cache, entry->negative ? NEAR__negative_hits : NEAR__hits_l2, 1);
    if (!plan->background && !entry->negative && near__early_may(cache, now, ask->soft_until, entry->cost_us))
        lead = near__early_lead(cache, now, ask->soft_until, entry->cost_us);
    near__entry_ref(entry); /* for the caller, and for what follows */
    if (entry->negative) {
        land(plan, leg, NEAR_NOT_FOUND, NULL);
        near__entry_release(&entry);
        return;
    }
    land(plan, leg, NEAR_OK, near__value_of(entry, ask->disk ? NEAR_FROM_L1 : NEAR_FROM_L2, false));
    if (lead > 0)
        near__refresh(cache, ask->key, ask->hash, lead, ask->fence, fallback_of(ask));
}

/* A value that is to be replaced: what callers get meanwhile. */
static void
take_stale(struct near__plan *plan, struct near__leg *leg, int64_t now)
{
    if (leg->fill_l1 && leg->lead == 0)
        near__l1_insert(plan->cache->l1, leg->ask.entry, leg->ask.fence, now);
    near__plan_fall_back(plan, leg, fallback_of(&leg->ask));
}

int64_t
near__lease_time(const near_cache *cache)
{
    int64_t least = cache->client->traits.min_lease_ms * NEAR_MS;

    return cache->settings.lease_timeout > least ? cache->settings.lease_timeout : least;
}

/* A marker seen for as long as a lease lasts has outlived it, by our own clock, although the server keeps it yet: memcached's second
 * may take two. */
static void
look_at_marker(const near_cache *cache, struct near__leg *leg, int64_t now)
{
    if (leg->seen != leg->ask.stamp) {
        leg->seen  = leg->ask.stamp;
        leg->since = now;
    } else if (now - leg->since >= near__lease_time(cache)) {
        leg->ask.found = NEAR__OUTDATED;
    }
}

static bool
is_to_be_refreshed(const struct near__leg *leg, int64_t now)
{
    return leg->lead > 0 && leg->ask.soft_until - leg->lead <= now && !leg->ask.entry->negative;
}

/* What a hedge has loaded meanwhile may be of before a write that L2 knows of: over a mark it is kept as little as any load is, and what
 * waits for the store in a write-back cache lies in L2 first.  Any later write moves the fence, which is of before L2 was asked.
 * True: a hedge has landed. */
static bool
take_hedged(struct near__plan *plan, struct near__leg *leg, int64_t now)
{
    near_cache *cache = plan->cache;
    bool        older = cache->settings.write_policy == NEAR__WRITE_BACK &&
                 (leg->ask.found == NEAR__FOUND || leg->ask.found == NEAR__STALE);
    bool                keep  = leg->ask.found != NEAR__MARKED && !older;
    struct near__entry *entry = near__flight_heard(cache, leg->flight, keep);

    if (entry == NULL)
        return false;
    if (keep)
        near__l1_insert(cache->l1, entry, leg->ask.fence, now);
    near__entry_release(&entry);
    return true;
}

static void
sort_out(struct near__plan *plan)
{
    near_cache *cache = plan->cache;
    int64_t     now   = near__client_now(cache->client);
    int64_t     hard  = cache->settings.loader_hard_timeout;
    bool        hedge = cache->settings.l2_hedge_after > 0 && !plan->hedge;

    plan->sorted = true;
    for (size_t i = 0; i < plan->n; i++) {
        struct near__leg *leg = &plan->legs[i];
        near_status       failed;

        if (leg->ended)
            continue;
        if (hedge && take_hedged(plan, leg, now)) {
            leg->ended = true;
            continue;
        }
        if (leg->ask.found == NEAR__FOUND && !is_to_be_refreshed(leg, now)) {
            take_found(plan, leg, now);
            continue;
        }
        if (leg->ask.found == NEAR__FOUND)
            leg->ask.refresh = true;
        if (leg->ask.found == NEAR__LEASED)
            look_at_marker(cache, leg, now);
        if (leg->ask.found == NEAR__MARKED)
            leg->fill_l1 = false; /* if the writer dies after the store nobody will tell us to forget it */
        if (leg->ask.found == NEAR__FOUND || leg->ask.found == NEAR__STALE)
            take_stale(plan, leg, now);
        failed = near__flight_throttled(cache, leg->flight, now);
        if (failed != NEAR_OK) {
            near__count(cache, NEAR__loads_throttled, 1);
            give_up(plan, leg, failed);
        } else if (hedge && !near__flight_load(cache, leg->flight)) {
            leg->ended = true; /* a hedge is loading it */
        } else if (hard > 0) {
            near__flight_limit(cache, leg->flight, near__time_after(now, hard));
        }
    }
}

/* ---- leases */

/* Whether L2 has answered for any of them: then it is worth taking leases and storing. */
static bool
any_answered(struct near__ask **asks, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (asks[i]->found != NEAR__UNREACHABLE)
            return true;
    return false;
}

/* Between our read of an entry and our lease beside it another instance may have replaced it and given the lease back: then there is
 * nothing to load.  (A lease in the place of a value needs no such look: the value would have been in its way.) */
static void
look_again(struct near__plan *plan, struct near__leg **legs, size_t n, int64_t deadline)
{
    struct near__ask *now = calloc(n, sizeof(struct near__ask) + sizeof(struct near__ask *)), **asks;
    uint64_t          generation;
    size_t            m = 0;

    if (now == NULL)
        return; /* a load too many, then: it will not be stored */
    asks = (struct near__ask **)&now[n];
    for (size_t i = 0; i < n; i++)
        if (legs[i]->ask.side != 0) {
            now[i].key         = legs[i]->ask.key;
            now[i].hash        = legs[i]->ask.hash;
            now[i].fence       = legs[i]->ask.fence;
            now[i].label_clock = legs[i]->ask.label_clock;
            asks[m++]          = &now[i];
        }
    if (m > 0)
        near__tier_read(plan->cache, asks, m, near__client_now(plan->cache->client), deadline, &generation);
    near__decode_asks(plan->cache, asks, m, true);
    for (size_t i = 0; m > 0 && i < n; i++) {
        struct near__ask *mine = &legs[i]->ask;

        if (now[i].found != NEAR__FOUND || (mine->found != NEAR__ABSENT && now[i].stamp == mine->stamp)) {
            near__entry_release(&now[i].entry);
            continue;
        }
        near__tier_unlease(plan->cache, &mine, 1, deadline);
        legs[i]->ask = now[i];
        take_found(plan, legs[i], near__client_now(plan->cache->client));
    }
    free(now);
}

static bool
any_beside(struct near__leg **legs, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (legs[i]->ask.side != 0)
            return true;
    return false;
}

static void
take_leases(struct near__plan *plan, struct near__leg **legs, size_t n)
{
    near_cache *cache = plan->cache;
    int64_t deadline  = near__time_after(near__client_now(cache->client), cache->client->settings.l2_timeout);

    if (cache->client->ops == NULL || plan->hedge || plan->past)
        return;
    for (size_t i = 0; i < n; i++)
        plan->asks[i] = &legs[i]->ask;
    if (!any_answered(plan->asks, n))
        return;
    if (plan->generation == 0 && near__generation_for_write(cache, deadline, &plan->generation) != NEAR_OK) {
        plan->generation = 0; /* nothing can be stored: so no lease either */
        return;
    }
    near__tier_lease(cache, plan->asks, n, plan->generation, deadline);
    if (any_beside(legs, n))
        look_again(plan, legs, n, deadline);
    for (size_t i = 0; i < n; i++) {
        struct near__leg *leg = legs[i];

        if (!leg->ended && (leg->ask.lost || leg->ask.found == NEAR__LEASED) &&
            near__watch_park(cache, leg)) { /* with its flight */
            leg->flight = NULL;
            leg->ended  = true;
        }
    }
}

/* ---- the loader */

static bool
should_leave_the_caller(const struct near__plan *plan, const struct near__leg *leg)
{
    return plan->deadline != NEAR_NEVER || plan->cache->settings.loader_hard_timeout > 0 || leg->spare;
}

static size_t
pick(struct near__plan *plan, size_t most, bool *all_spare)
{
    size_t n = 0;

    *all_spare = true;
    for (size_t i = 0; i < plan->n && n < most; i++)
        if (!plan->legs[i].ended) {
            *all_spare &= plan->legs[i].spare;
            plan->picked[n++] = &plan->legs[i];
        }
    return n;
}

static size_t
keep_open(struct near__leg **legs, size_t n)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++)
        if (!legs[i]->ended)
            legs[kept++] = legs[i];
    return kept;
}

/* Who has something to fall back on does not queue for the loader: it gets that, and the next reader tries again. */
static size_t
take_places(struct near__plan *plan, size_t n, bool all_spare)
{
    near_cache *cache = plan->cache;
    int64_t     wait  = all_spare || plan->hedge ? 0 : cache->settings.load_queue_timeout;

    if (!near__budget_is_bound(&cache->budget) || near__load_nested())
        return n;
    return near__budget_take(&cache->budget, n, near__time_after(near__client_now(cache->client), wait));
}

static void
refuse_rest(struct near__plan *plan)
{
    for (size_t i = 0; i < plan->n; i++)
        if (!plan->legs[i].ended) {
            near__count(plan->cache, NEAR__loads_refused, 1);
            give_up(plan, &plan->legs[i], NEAR_ERR_BUSY);
        }
}

/* In as many parts as the budget makes of it. */
static void
load_rest(struct near__plan *plan)
{
    near_cache *cache   = plan->cache;
    bool        counted = near__budget_is_bound(&cache->budget) && !near__load_nested();
    bool        all_spare;
    size_t      n, places;

    while ((n = pick(plan, plan->n, &all_spare)) > 0) {
        struct near__load_terms terms = {
            .wait    = plan->background ? 0 : NEAR_NEVER,
            .counted = counted,
            .hedge   = plan->hedge,
        };
        places = take_places(plan, n, all_spare);
        if (places == 0) {
            refuse_rest(plan);
            return;
        }
        take_leases(plan, plan->picked, places);
        n = keep_open(plan->picked, places);
        if (counted)
            near__budget_give(&cache->budget, places - n);
        if (n == 0)
            continue;
        terms.generation = plan->hedge ? 0 : plan->generation;
        for (size_t i = 0; i < n; i++) {
            near__count(cache, NEAR__misses, !plan->picked[i]->spare);
            plan->picked[i]->ended = true;
        }
        near__load_run(cache, plan->picked, n, &terms);
    }
}

void
near__plan_run(struct near__plan *plan)
{
    if (!plan->read)
        read_l2(plan);
    if (!plan->sorted)
        sort_out(plan);
    if (!plan->background && !near__load_nested())
        split(plan, should_leave_the_caller, true);
    load_rest(plan);
    plan_free(plan);
}

/* ---- refreshes */

void
near__refresh(near_cache *cache, near_bytes key, uint64_t hash, int64_t lead, uint64_t fence,
              struct near__fallback fallback)
{
    struct near__plan   *plan   = near__plan_new(cache, 1, near__client_now(cache->client));
    struct near__flight *flight = NULL;
    struct near__leg    *leg;

    if (plan == NULL || cache->loader == NULL ||
        near__flight_board(cache, key, hash, plan, plan->started, &flight) != NEAR__BOARD_LEAD) {
        near__flight_release(cache, &flight); /* of one under way, if there is */
        near_value_release(fallback.value);
        free(plan);
        return;
    }
    leg       = near__plan_add(plan, flight, cache->settings.ttl, true);
    leg->lead = lead;
    if (near__l1_fence_same(flight->fence, fence))
        near__plan_fall_back(plan, leg, fallback);
    else
        near_value_release(fallback.value);
    near__count(cache, NEAR__early_refreshes, 1);
    near__plan_detach(plan);
}
