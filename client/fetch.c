/*
 * near_fetch and near_fetch_many: L1, then a seat in a flight for each key that it lacks.
 *
 * What this call leads is one plan (plan.h), run before the call waits for anybody: so two overlapping batches cannot wait for each
 * other.  Each key is then waited for with the call's own deadline.  No lock is held here.
 */
#include "back.h"
#include "early.h"
#include "load.h"
#include "plan.h"
#include "read.h"

#include <stdlib.h>

struct seat {
    size_t               index;  /* of the key */
    struct near__flight *flight; /* a reference */
    bool                 leads;
    uint32_t             label_clock; /* when it was taken */
};

struct fetch {
    near_cache        *cache;
    struct near__view  view;
    int64_t            deadline; /* of the caller; NEAR_NEVER */
    int64_t            ttl;
    bool               absent;  /* L2 need not be asked, and is given nothing: near__fetch_absent() */
    bool               past;    /* past both tiers: see client/rollout.h */
    bool               anew;    /* a second try: see near__flight_board_anew() */
    struct near__plan *plan;    /* what we lead; NULL: nothing yet */
    size_t             n, left; /* seats taken; keys that may still need one */
    struct seat       *seats, one;
};

/* The loads past the tiers that this thread is running: no flight tells a loader that it asks for what it is itself loading. */
struct past {
    const near_cache  *cache;
    const near_bytes  *keys;
    size_t             n;
    const struct past *outer;
};
static __thread const struct past *running;

static bool
make_room(struct fetch *fetch, size_t n)
{
    if (fetch->seats != NULL)
        return true;
    fetch->seats = n == 1 ? &fetch->one : calloc(n, sizeof(struct seat));
    return fetch->seats != NULL;
}

/* ---- boarding */

/* There is something to fall back on, and the key's last load failed a moment ago: what L2 has can wait for the end of that pause, so
 * that an origin which is down costs its readers nothing but a look into L1.  True: landed. */
static bool
fall_back_at_once(struct fetch *fetch, struct near__flight *flight, const struct near__leg *leg)
{
    near_status failed;

    if (!leg->spare)
        return false;
    failed = near__flight_throttled(fetch->cache, flight, fetch->view.now);
    if (failed == NEAR_OK)
        return false;
    near__count(fetch->cache, NEAR__loads_throttled, 1);
    near__flight_land(fetch->cache, flight, failed, NULL);
    return true;
}

/* L1 once more, now that the flight has captured its fence: somebody may have filled it in between, and then there is nothing to load
 * (one load per key, always).  What is past its time there is what to fall back on.  True: landed. */
static bool
look_into_l1(struct fetch *fetch, struct near__flight *flight, struct near__leg *leg)
{
    struct near__hit hit;

    if ((fetch->view.flags & NEAR_SKIP_L1) || fetch->view.gate != NEAR__GATE_OPEN)
        return false;
    hit = near__l1_look(fetch->cache, flight->hash, near__flight_key(flight), fetch->view.now);
    if (hit.value == NULL && !hit.negative)
        return false;
    if (hit.fresh_until > fetch->view.now) {
        near__count(fetch->cache, hit.negative ? NEAR__negative_hits : NEAR__hits_l1, 1);
        near__flight_land(fetch->cache, flight, hit.negative ? NEAR_NOT_FOUND : NEAR_OK, hit.value);
        return true;
    }
    near__plan_fall_back(fetch->plan, leg,
                         (struct near__fallback){ .value       = hit.value,
                                                  .fresh_until = hit.fresh_until,
                                                  .expires     = hit.expires,
                                                  .cost_us     = hit.cost_us,
                                                  .forced      = hit.fresh_until == NEAR__FRESH_FORCED });
    return false;
}

static near_status
lead(struct fetch *fetch, struct near__flight *flight)
{
    struct near__leg *leg;

    if (fetch->plan == NULL) {
        fetch->plan = near__plan_new(fetch->cache, fetch->left, fetch->view.now);
        if (fetch->plan == NULL) {
            near__flight_land(fetch->cache, flight, NEAR_ERR_NOMEM, NULL);
            return NEAR_ERR_NOMEM;
        }
        fetch->plan->deadline = fetch->deadline;
        fetch->plan->past = fetch->plan->read = fetch->plan->sorted = fetch->past;
        fetch->plan->disk = !fetch->past && !(fetch->view.flags & NEAR_SKIP_L1);
    }
    near__flight_ref(fetch->cache, flight); /* the plan's, beside the seat's */
    leg        = near__plan_add(fetch->plan, flight, fetch->ttl, !(fetch->view.flags & NEAR_NO_FILL));
    leg->ended = look_into_l1(fetch, flight, leg) || fall_back_at_once(fetch, flight, leg);
    return NEAR_MISS;
}

/* A seat for a key that L1 could not answer, or why not. */
static near_status
board(struct fetch *fetch, size_t index, near_bytes key, uint64_t hash)
{
    struct seat *seat   = &fetch->seats[fetch->n];
    near_status  status = NEAR_MISS;

    *seat = (struct seat){ .index = index, .label_clock = near__l1_label_clock(fetch->cache->l1) };
    switch ((fetch->anew ? near__flight_board_anew : near__flight_board)(fetch->cache, key, hash, fetch,
                                                                         fetch->view.now, &seat->flight)) {
    case NEAR__BOARD_NOMEM:
        return NEAR_ERR_NOMEM;
    case NEAR__BOARD_SELF:
        return NEAR_ERR_BUSY;
    case NEAR__BOARD_LEAD:
        seat->leads = true;
        status      = lead(fetch, seat->flight);
        if (status != NEAR_MISS)
            near__flight_release(fetch->cache, &seat->flight);
        break;
    case NEAR__BOARD_JOIN:
        near__count(fetch->cache, NEAR__coalesced, 1);
        break;
    }
    fetch->n += status == NEAR_MISS;
    return status;
}

/* ---- hedging: L2 is asked in the pool, and when it takes too long the loader as well */

static int64_t
earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void
hedge_seat(struct fetch *fetch, struct near__plan *plan, struct seat *seat, int64_t until)
{
    near_value *value;

    /* waiting with nothing else to do; what comes is asked for again below */
    near__flight_wait(fetch->cache, seat->flight, NEAR_NEVER, until, &value);
    near_value_release(value);
    if (!near__flight_hedge(fetch->cache, seat->flight))
        return;
    near__flight_ref(fetch->cache, seat->flight);
    near__flight_lead(fetch->cache, seat->flight, fetch);
    near__plan_add(plan, seat->flight, fetch->ttl, !(fetch->view.flags & NEAR_NO_FILL));
    near__count(fetch->cache, NEAR__hedges, 1);
}

static void
run_hedged(struct fetch *fetch)
{
    near_cache        *cache = fetch->cache;
    int64_t            until = near__time_after(fetch->view.now, cache->settings.l2_hedge_after);
    struct near__plan *hedge = near__plan_new(cache, fetch->n, fetch->view.now);

    near__plan_background(fetch->plan);
    if (hedge == NULL)
        return;
    hedge->read = hedge->hedge = true;
    hedge->deadline            = fetch->deadline;
    for (size_t i = 0; i < fetch->n; i++)
        if (fetch->seats[i].leads)
            hedge_seat(fetch, hedge, &fetch->seats[i], earlier(until, fetch->deadline));
    near__plan_run(hedge);
}

static void
run(struct fetch *fetch)
{
    if (fetch->plan == NULL)
        return;
    if (fetch->absent) {
        fetch->plan->read = true;
        for (size_t i = 0; i < fetch->plan->n; i++)
            fetch->plan->legs[i].ask.found =
                NEAR__UNREACHABLE; /* as where L2 is down: neither lease nor fill */
        near__plan_run(fetch->plan);
        return;
    }
    if (fetch->cache->settings.l2_hedge_after > 0 && fetch->cache->client->ops != NULL && !fetch->past &&
        !near__load_nested())
        run_hedged(fetch);
    else
        near__plan_run(fetch->plan);
}

/* ---- answers */

/* The flight was under way when we joined it, and so was, before us, the invalidation of a tag that its value turns out to have. */
static bool
overtaken(const struct fetch *fetch, const struct seat *seat, near_status status, const near_value *value)
{
    if (fetch->anew)
        return false;
    if (value == NULL) /* an absence does not say its tags here */
        return status == NEAR_NOT_FOUND && near__label_after(seat->label_clock, seat->flight->label_clock);
    return near__l1_value_outdated(fetch->cache->l1, value, seat->label_clock);
}

static near_status once_more(const struct fetch *first, const struct near__flight *flight,
                             near_value **value);

static void
receive_all(struct fetch *fetch, near_value **values, near_status *statuses)
{
    near__workers_wait_begins(fetch->cache->client->workers);
    for (size_t i = 0; i < fetch->n; i++) {
        struct seat *seat = &fetch->seats[i];

        statuses[seat->index] = near__flight_wait(fetch->cache, seat->flight, fetch->view.now,
                                                  fetch->deadline, &values[seat->index]);
        if (__builtin_expect(overtaken(fetch, seat, statuses[seat->index], values[seat->index]), 0)) {
            near_value_release(values[seat->index]);
            statuses[seat->index] = once_more(fetch, seat->flight, &values[seat->index]);
        }
        near__flight_release(fetch->cache, &seat->flight);
    }
    near__workers_wait_ends(fetch->cache->client->workers);
    if (fetch->seats != &fetch->one)
        free(fetch->seats);
}

/* One key again, from a flight that is newer than every invalidation so far. */
static near_status
once_more(const struct fetch *first, const struct near__flight *flight, near_value **value)
{
    struct fetch again  = { .cache    = first->cache,
                            .view     = first->view,
                            .deadline = first->deadline,
                            .ttl      = first->ttl,
                            .absent   = first->absent,
                            .anew     = true,
                            .left     = 1 };
    near_status  status = NEAR_ERR_NOMEM;

    *value = NULL;
    if (make_room(&again, 1))
        status = board(&again, 0, near__flight_key(flight), flight->hash);
    run(&again);
    receive_all(&again, value, &status);
    return status;
}

static void
refresh_early(near_cache *cache, near_bytes key, uint64_t hash, const struct near__view *view, int64_t lead)
{
    uint64_t         fence = near__l1_fence(cache->l1, hash);
    struct near__hit hit   = near__l1_look(cache, hash, key, view->now);

    if (hit.value == NULL) /* gone since */
        return;
    near__refresh(cache, key, hash, lead, fence,
                  (struct near__fallback){ .value       = hit.value,
                                           .fresh_until = hit.fresh_until,
                                           .expires     = hit.expires,
                                           .cost_us     = hit.cost_us,
                                           .forced      = hit.fresh_until == NEAR__FRESH_FORCED });
}

static void
fetch_init(struct fetch *fetch, near_cache *cache, const near_fetch_options *options,
           const struct near__view *view)
{
    *fetch = (struct fetch){
        .cache    = cache,
        .view     = *view,
        .deadline = near__time_after(view->now, near__duration(options->timeout_ms, NEAR_NEVER)),
        .ttl      = near__duration(options->ttl_ms, cache->settings.ttl),
    };
}

/* L1's answer, if it has one. */
static bool
answered(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key, near_value **value,
         near_status *status)
{
    int64_t early = 0;

    if (!near__l1_answers(cache, view, hash, key, value, status, &early))
        return false;
    if (early > 0)
        refresh_early(cache, key, hash, view, early);
    return true;
}

/* One key that L1 has not answered: a seat on a flight.  What follows is only for those who miss, the exact time first of all. */
static near_status
miss(struct fetch *fetch, near_cache *cache, const near_fetch_options *options, struct near__view *view,
     size_t index, size_t left, near_bytes key, uint64_t hash)
{
    if (fetch->cache == NULL) {
        near__view_exact(cache, view);
        fetch_init(fetch, cache, options, view);
    }
    fetch->left = left;
    return make_room(fetch, left) ? board(fetch, index, key, hash) : NEAR_ERR_NOMEM;
}

/* near_fetch_many() whose arguments are sound and whose statuses are prepared. */
static void
fetch_batch(near_cache *cache, const near_bytes *keys, size_t n, const near_fetch_options *options,
            near_value **values, near_status *statuses)
{
    struct near__view view = near__view_of(cache, options->flags & (NEAR_SKIP_L1 | NEAR_NO_FILL));
    uint64_t          hashes[NEAR__GROUP];
    struct fetch      fetch;

    fetch.cache = NULL;
    for (size_t at = 0; at < n; at += NEAR__GROUP) {
        size_t group = n - at < NEAR__GROUP ? n - at : NEAR__GROUP;

        if (cache->early_reach == 0) {
            near__l1_answer_group(cache, &view, keys + at, group, hashes, values + at, statuses + at);
        } else {
            for (size_t i = at; i < at + group; i++) {
                if (statuses[i] < 0)
                    continue;
                hashes[i - at] = near__hash_keyed(&cache->client->secret, keys[i]);
                answered(cache, &view, hashes[i - at], keys[i], &values[i], &statuses[i]);
            }
        }
        for (size_t i = at; i < at + group; i++)
            if (statuses[i] == NEAR_MISS)
                statuses[i] = miss(&fetch, cache, options, &view, i, n - i, keys[i], hashes[i - at]);
    }
    if (fetch.cache != NULL) {
        run(&fetch);
        receive_all(&fetch, values, statuses);
        near__time(cache, NEAR__TIME_fetch, near__client_now(cache->client) - fetch.view.now);
    }
}

/* near_fetch() of one sound key, but for the shortest way. */
static near_status
fetch_one(near_cache *cache, near_bytes key, const near_fetch_options *options, near_value **value)
{
    struct near__view view   = near__view_of(cache, options->flags & (NEAR_SKIP_L1 | NEAR_NO_FILL));
    uint64_t          hash   = near__hash_keyed(&cache->client->secret, key);
    near_status       status = NEAR_OK;
    struct fetch      fetch;

    if (answered(cache, &view, hash, key, value, &status))
        return status;
    fetch.cache = NULL;
    status      = miss(&fetch, cache, options, &view, 0, 1, key, hash);
    run(&fetch);
    receive_all(&fetch, value, &status);
    near__time(cache, NEAR__TIME_fetch, near__client_now(cache->client) - fetch.view.now);
    return status;
}

/* ---- rollout */

static bool
is_loaded_here(const near_cache *cache, near_bytes key)
{
    for (const struct past *past = running; past != NULL; past = past->outer)
        for (size_t i = 0; past->cache == cache && i < past->n; i++)
            if (near__bytes_equal(past->keys[i], key))
                return true;
    return false;
}

/* A seat on a load of its own. */
static near_status
board_past(struct fetch *fetch, size_t index, near_bytes key)
{
    if (NEAR__UNLIKELY(running != NULL) && is_loaded_here(fetch->cache, key))
        return NEAR_ERR_BUSY;
    return board(fetch, index, key, near__stamp(fetch->cache->client));
}

/* Each key by a load of its own, from the store to the caller: no tier is asked or filled, and nobody is joined, for the loads under way
 * may have begun before a write that moves another fence.  Their flights are told from all others by hashes that nobody has. */
static void
load_past(near_cache *cache, const near_bytes *keys, size_t n, const near_fetch_options *options,
          near_value **values, near_status *statuses)
{
    struct near__view view = near__view_of(cache, NEAR_SKIP_L1 | NEAR_NO_FILL);
    struct past       past = { cache, keys, n, running };
    struct fetch      fetch;

    near__view_exact(cache, &view);
    fetch_init(&fetch, cache, options, &view);
    fetch.past = fetch.anew = true;
    fetch.left              = n;
    near__count(cache, NEAR__requests, n);
    for (size_t i = 0; i < n; i++)
        statuses[i] = make_room(&fetch, n) ? board_past(&fetch, i, keys[i]) : NEAR_ERR_NOMEM;
    running = &past;
    run(&fetch);
    running = past.outer;
    receive_all(&fetch, values, statuses);
    near__time(cache, NEAR__TIME_fetch, near__client_now(cache->client) - view.now);
}

/* A change of ours that the store does not have yet: what it would say is older than what was acknowledged. */
static bool
is_pending(near_cache *cache, near_bytes key, near_value **value, near_status *status)
{
    return cache->back != NULL &&
           near__back_answers(cache, near__hash_keyed(&cache->client->secret, key), key, value, status);
}

/* Served from the cache, or from past it; a dry run compares.  near_fetch() for one key by whatever it is otherwise. */
static near_status
fetch_rolling(near_cache *cache, near_bytes key, const near_fetch_options *options, near_value **value)
{
    near_value     *cached;
    near_value_info info = NEAR_VALUE_INFO_INIT;
    near_status     status, found;

    if (is_pending(cache, key, value, &status))
        return status;
    if (!near__rollout_takes(cache->rollout, key)) {
        near__count(cache, NEAR__rollout_outside, 1);
        load_past(cache, &key, 1, options, value, &status);
        return status;
    }
    found = fetch_one(cache, key, options, value);
    if (!near__rollout_is_dry(cache->rollout))
        return found;
    near_value_get_info(*value, &info);
    if (found < 0 || info.source == NEAR_FROM_LOADER)
        return found; /* there was nothing to serve */
    cached = *value;
    *value = NULL;
    load_past(cache, &key, 1, options, value, &status);
    near__rollout_compare(cache, found, cached, status, *value);
    near_value_release(cached);
    return status;
}

/* Those that take part, the rest (whatever is said of them by then), and in a dry run what is to be compared: three batches at most. */
struct parts {
    near_bytes  *keys;
    near_value **values;
    near_status *statuses;
    size_t      *index;
    size_t       n;
};

static bool
parts_open(struct parts *parts, size_t n)
{
    char *block =
        malloc(n * (sizeof(near_bytes) + sizeof(near_value *) + sizeof(size_t) + sizeof(near_status)));

    parts->keys = (near_bytes *)(void *)block;
    if (block == NULL)
        return false;
    parts->values   = (near_value **)(parts->keys + n);
    parts->index    = (size_t *)(parts->values + n);
    parts->statuses = (near_status *)(parts->index + n);
    return true;
}

static void
parts_add(struct parts *parts, const near_bytes *keys, size_t i)
{
    parts->keys[parts->n]     = keys[i];
    parts->index[parts->n]    = i;
    parts->values[parts->n]   = NULL;
    parts->statuses[parts->n] = NEAR_MISS;
    parts->n++;
}

static bool
is_to_be_compared(near_status status, const near_value *value)
{
    near_value_info info = NEAR_VALUE_INFO_INIT;

    near_value_get_info(value, &info);
    return status >= 0 && info.source != NEAR_FROM_LOADER;
}

static void
fetch_part(near_cache *cache, struct parts *parts, const near_fetch_options *options, bool takes,
           near_value **values, near_status *statuses)
{
    if (parts->n == 0)
        return;
    if (takes)
        fetch_batch(cache, parts->keys, parts->n, options, parts->values, parts->statuses);
    else
        load_past(cache, parts->keys, parts->n, options, parts->values, parts->statuses);
    for (size_t k = 0; k < parts->n; k++) {
        values[parts->index[k]]   = parts->values[k];
        statuses[parts->index[k]] = parts->statuses[k];
    }
}

/* What the tiers gave is replaced by what the loader says. */
static void
compare_part(near_cache *cache, struct parts *parts, const near_bytes *keys, size_t n,
             const near_fetch_options *options, near_value **values, near_status *statuses)
{
    parts->n = 0;
    for (size_t i = 0; i < n; i++) {
        near_value *newer = NULL;

        if (!near__rollout_takes(cache->rollout, keys[i]) || !is_to_be_compared(statuses[i], values[i]))
            continue;
        if (is_pending(cache, keys[i], &newer, &statuses[i])) {
            near_value_release(values[i]);
            values[i] = newer;
        } else
            parts_add(parts, keys, i);
    }
    if (parts->n == 0)
        return;
    load_past(cache, parts->keys, parts->n, options, parts->values, parts->statuses);
    for (size_t k = 0; k < parts->n; k++) {
        size_t i = parts->index[k];

        near__rollout_compare(cache, statuses[i], values[i], parts->statuses[k], parts->values[k]);
        near_value_release(values[i]);
        values[i]   = parts->values[k];
        statuses[i] = parts->statuses[k];
    }
}

static near_status
fetch_rolling_many(near_cache *cache, const near_bytes *keys, size_t n, const near_fetch_options *options,
                   near_value **values, near_status *statuses)
{
    struct parts parts = { 0 };

    if (!parts_open(&parts, n))
        return near__refuse_all(statuses, n, NEAR_ERR_NOMEM);
    for (size_t i = 0; i < n; i++)
        if (statuses[i] == NEAR_MISS)
            is_pending(cache, keys[i], &values[i], &statuses[i]);
    for (int takes = 1; takes >= 0; takes--) {
        parts.n = 0;
        for (size_t i = 0; i < n; i++)
            if (statuses[i] == NEAR_MISS && (!takes || near__rollout_takes(cache->rollout, keys[i])))
                parts_add(&parts, keys, i);
        near__count(cache, NEAR__rollout_outside, takes ? 0 : parts.n);
        fetch_part(cache, &parts, options, takes != 0, values, statuses);
    }
    if (near__rollout_is_dry(cache->rollout))
        compare_part(cache, &parts, keys, n, options, values, statuses);
    free(parts.keys);
    return near__first_error(statuses, n);
}

/* ---- the doors */

near_status
near_fetch_many(near_cache *cache, const near_bytes *keys, size_t n, const near_fetch_options *options,
                near_value **values, near_status *statuses)
{
    near_fetch_options mine   = NEAR_FETCH_OPTIONS_INIT;
    near_status        status = near__batch_check(cache, keys, n, values, statuses);

    if (status != NEAR_OK || n == 0)
        return status;
    if (values == NULL || cache->loader == NULL)
        return near__refuse_all(statuses, n, NEAR_ERR_INVALID);
    near__options_take(&mine, sizeof(mine), options);
    if (NEAR__UNLIKELY(cache->rollout != NULL))
        return fetch_rolling_many(cache, keys, n, &mine, values, statuses);
    fetch_batch(cache, keys, n, &mine, values, statuses);
    return near__first_error(statuses, n);
}

void
near__fetch_absent(near_cache *cache, const struct near__view *view, const struct near__absent *absent,
                   size_t n, int64_t deadline, near_value **values, near_status *statuses)
{
    struct fetch fetch = { .cache = cache, .view = *view, .deadline = deadline, .absent = true };

    for (size_t i = 0; i < n; i++) {
        values[i]   = NULL;
        statuses[i] = NEAR_ERR_NOMEM;
        fetch.left  = n - i;
        fetch.ttl   = absent[i].ttl;
        if (make_room(&fetch, n))
            statuses[i] = board(&fetch, i, absent[i].key, absent[i].hash);
    }
    run(&fetch);
    receive_all(&fetch, values, statuses);
    near__time(cache, NEAR__TIME_fetch, near__client_now(cache->client) - fetch.view.now);
}

near_status
near_fetch(near_cache *cache, near_bytes key, const near_fetch_options *options, near_value **value)
{
    near_fetch_options mine   = NEAR_FETCH_OPTIONS_INIT;
    near_status        status = near__cache_check(cache);

    if (value == NULL)
        return NEAR_ERR_INVALID;
    *value = NULL;
    if (status == NEAR_OK)
        status = near__tier_key_check(cache, key);
    if (status == NEAR_OK && cache->loader == NULL)
        status = NEAR_ERR_INVALID;
    if (status != NEAR_OK)
        return status;
    if (options == NULL && cache->early_reach == 0) {
        *value = near__get_plain(cache, key);
        if (*value != NULL)
            return NEAR_OK;
    }
    near__options_take(&mine, sizeof(mine), options);
    return NEAR__UNLIKELY(cache->rollout != NULL) ? fetch_rolling(cache, key, &mine, value)
                                                  : fetch_one(cache, key, &mine, value);
}
