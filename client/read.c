/*
 * near_get and its family: L1, then L2, never the loader.
 *
 * No lock is held here.  The fence of each key that L1 lacks is captured before L2 is asked; what L2 gave is offered to L1 with it.
 */
#include "read.h"

#include "early.h"

#include <stdlib.h>
#include <string.h>

enum near__gate
near__cache_gate(const near_cache *cache, int64_t now)
{
    const near_client *client = cache->client;

    if (client->coherence == NULL || now < near__coherence_gate(client->coherence))
        return NEAR__GATE_OPEN;
    switch (client->settings.coherence_on_disconnect) {
    case NEAR__DISCONNECT_STALE:
        return NEAR__GATE_STALE;
    case NEAR__DISCONNECT_FAIL:
        return NEAR__GATE_FAIL;
    default:
        return NEAR__GATE_CLOSED;
    }
}

struct near__view
near__view_of(const near_cache *cache, unsigned flags)
{
    int64_t now = near__client_now(cache->client);

    return (struct near__view){ now, near__cache_gate(cache, now), flags };
}

near_status
near__hand_out(struct near__entry *entry, near_source source, near_value **value)
{
    if (entry->negative) {
        near__entry_release(&entry);
        return NEAR_NOT_FOUND;
    }
    *value = near__value_of(entry, source, false);
    return NEAR_OK;
}

near_value *
near__value_as_stale(near_value *value)
{
    return value != NULL ? (near_value *)((uintptr_t)value | NEAR__VALUE_STALE) : NULL;
}

struct near__hit
near__l1_look(near_cache *cache, uint64_t hash, near_bytes key, int64_t now)
{
    struct near__entry *entry = near__l1_find(cache->l1, hash, key, now);

    if (entry == NULL)
        return (struct near__hit){ .value = NULL };
    return (struct near__hit){
        .value       = near__value_of(entry, NEAR_FROM_L1, false),
        .fresh_until = entry->fresh_until,
        .expires     = entry->expires,
        .cost_us     = entry->cost_us,
        .negative    = entry->negative,
    };
}

bool
near__l1_answers(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key,
                 near_value **value, near_status *status, int64_t *lead)
{
    struct near__hit hit;

    if (view->gate == NEAR__GATE_FAIL) {
        near__count(cache, NEAR__gate_closed_reads, 1);
        *status = NEAR_ERR_UNAVAILABLE;
        return true;
    }
    if (view->flags & NEAR_SKIP_L1)
        return false;
    if (view->gate == NEAR__GATE_CLOSED) {
        near__count(cache, NEAR__gate_closed_reads, 1);
        return false;
    }
    hit = near__l1_look(cache, hash, key, view->now);
    if (hit.value == NULL)
        return false;
    /* an absence carries no flag that says how old it is */
    if (hit.fresh_until <= view->now || (hit.negative && view->gate == NEAR__GATE_STALE)) {
        near_value_release(hit.value);
        return false;
    }
    if (hit.negative) {
        near__count(cache, NEAR__negative_hits, 1);
        near_value_release(hit.value);
        *status = NEAR_NOT_FOUND;
        return true;
    }
    near__count(cache, NEAR__hits_l1, 1);
    if (view->gate == NEAR__GATE_STALE) {
        near__count(cache, NEAR__stale_served, 1);
        hit.value = near__value_as_stale(hit.value);
    } else if (lead != NULL && near__early_may(cache, view->now, hit.fresh_until, hit.cost_us)) {
        *lead = near__early_lead(cache, view->now, hit.fresh_until, hit.cost_us);
    }
    *value  = hit.value;
    *status = NEAR_OK;
    return true;
}

void
near__options_take(void *mine, size_t size, const void *options)
{
    size_t theirs;

    if (options == NULL)
        return;
    memcpy(&theirs, options, sizeof(theirs));
    if (theirs >= sizeof(theirs))
        memcpy(mine, options, theirs < size ? theirs : size);
}

near_status
near__refuse_all(near_status *statuses, size_t n, near_status status)
{
    for (size_t i = 0; i < n; i++)
        statuses[i] = status;
    return status;
}

near_status
near__first_error(const near_status *statuses, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (statuses[i] < 0)
            return statuses[i];
    return NEAR_OK;
}

near_status
near__batch_check(const near_cache *cache, const near_bytes *keys, size_t n, near_value **values,
                  near_status *statuses)
{
    near_status status = near__cache_check(cache);

    if (n > 0 && (keys == NULL || statuses == NULL))
        status = NEAR_ERR_INVALID;
    for (size_t i = 0; i < n; i++) {
        if (values != NULL)
            values[i] = NULL;
        if (statuses == NULL)
            continue;
        statuses[i] = status != NEAR_OK ? status : near__key_check(keys[i]);
        if (statuses[i] == NEAR_OK)
            statuses[i] = NEAR_MISS;
    }
    return status;
}

/* ---- the part below L1 */

static int64_t
l2_deadline(const near_cache *cache, int64_t now, int64_t timeout_ms)
{
    return near__time_after(now, near__duration(timeout_ms, cache->client->settings.l2_timeout));
}

/* What an ask's answer is worth to near_get. */
static near_status
settle(near_cache *cache, const struct near__view *view, struct near__ask *ask, near_value **value)
{
    if (ask->found == NEAR__FOUND) {
        if (!(view->flags & NEAR_NO_FILL))
            near__l1_insert(cache->l1, ask->entry, ask->fence, view->now);
        near__count(cache, ask->entry->negative ? NEAR__negative_hits : NEAR__hits_l2, 1);
        return near__hand_out(ask->entry, NEAR_FROM_L2, value);
    }
    if (ask->found == NEAR__UNREACHABLE)
        return ask->status;
    near__entry_release(&ask->entry); /* past its TTL: good for a fetch whose loader fails, not here */
    near__count(cache, NEAR__misses, 1);
    return NEAR_MISS;
}

static near_status
get_below(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key, int64_t timeout_ms,
          near_value **value)
{
    struct near__ask  ask = { .key = key, .hash = hash, .fence = near__l1_fence(cache->l1, hash) };
    struct near__ask *one = &ask;
    uint64_t          generation;

    if (cache->client->ops == NULL || (view->flags & NEAR_ONLY_L1)) {
        near__count(cache, NEAR__misses, 1);
        return NEAR_MISS;
    }
    near__tier_read(cache, &one, 1, l2_deadline(cache, view->now, timeout_ms), &generation);
    return settle(cache, view, &ask, value);
}

static near_status
get_one(near_cache *cache, near_bytes key, unsigned flags, int64_t timeout_ms, near_value **value)
{
    near_status       status = near__cache_check(cache);
    struct near__view view;
    uint64_t          hash;

    if (value == NULL)
        return NEAR_ERR_INVALID;
    *value = NULL;
    if (status == NEAR_OK)
        status = near__key_check(key);
    if (status != NEAR_OK)
        return status;
    view = near__view_of(cache, flags);
    hash = near__hash_keyed(&cache->client->secret, key);
    near__count(cache, NEAR__requests, 1);
    if (near__l1_answers(cache, &view, hash, key, value, &status, NULL))
        return status;
    return get_below(cache, &view, hash, key, timeout_ms, value);
}

near_status
near_get(near_cache *cache, near_bytes key, near_value **value)
{
    return get_one(cache, key, 0, -1, value);
}

near_status
near_get_with(near_cache *cache, near_bytes key, const near_get_options *options, near_value **value)
{
    near_get_options mine = NEAR_GET_OPTIONS_INIT;

    near__options_take(&mine, sizeof(mine), options);
    return get_one(cache, key, mine.flags, mine.timeout_ms, value);
}

near_status
near_get_copy(near_cache *cache, near_bytes key, void *buffer, size_t capacity, size_t *size,
              near_value_info *info)
{
    near_value *value;
    near_bytes  bytes;
    near_status status;

    if (size == NULL)
        return NEAR_ERR_INVALID;
    *size = 0;
    if (buffer == NULL && capacity != 0)
        return NEAR_ERR_INVALID;
    status = near_get(cache, key, &value);
    if (status != NEAR_OK)
        return status;
    bytes = near_value_bytes(value);
    *size = bytes.size;
    near_value_get_info(value, info);
    if (bytes.size > capacity)
        status = NEAR_ERR_TOO_LARGE;
    else if (bytes.size > 0)
        memcpy(buffer, bytes.data, bytes.size);
    near_value_release(value);
    return status;
}

/* ---- batches */

/* The asks of a batch for what L1 lacked, and which key each belongs to. */
struct missing {
    struct near__ask  *asks;
    struct near__ask **pointers;
    size_t            *index;
    size_t             n;
};

static bool
missing_open(struct missing *missing, size_t n)
{
    char *block = calloc(n, sizeof(struct near__ask) + sizeof(struct near__ask *) + sizeof(size_t));

    if (block == NULL)
        return false;
    missing->asks     = (struct near__ask *)block;
    missing->pointers = (struct near__ask **)(missing->asks + n);
    missing->index    = (size_t *)(missing->pointers + n);
    missing->n        = 0;
    return true;
}

static void
get_missing(near_cache *cache, const struct near__view *view, struct missing *missing, near_value **values,
            near_status *statuses)
{
    uint64_t generation;

    near__tier_read(cache, missing->pointers, missing->n, l2_deadline(cache, view->now, -1), &generation);
    for (size_t i = 0; i < missing->n; i++) {
        size_t at    = missing->index[i];
        statuses[at] = settle(cache, view, &missing->asks[i], &values[at]);
    }
}

near_status
near_get_many(near_cache *cache, const near_bytes *keys, size_t n, near_value **values, near_status *statuses)
{
    struct missing    missing = { 0 };
    struct near__view view;
    near_status       status = near__batch_check(cache, keys, n, values, statuses);

    if (status == NEAR_OK && n > 0 && values == NULL)
        status = near__refuse_all(statuses, n, NEAR_ERR_INVALID);
    if (status != NEAR_OK || n == 0)
        return status;
    view = near__view_of(cache, 0);
    near__count(cache, NEAR__requests, n);
    for (size_t i = 0; i < n; i++) {
        uint64_t hash;

        if (statuses[i] < 0)
            continue;
        hash = near__hash_keyed(&cache->client->secret, keys[i]);
        if (near__l1_answers(cache, &view, hash, keys[i], &values[i], &statuses[i], NULL))
            continue;
        if (cache->client->ops == NULL) {
            near__count(cache, NEAR__misses, 1);
            continue;
        }
        if (missing.asks == NULL && !missing_open(&missing, n - i)) {
            statuses[i] = NEAR_ERR_NOMEM;
            continue;
        }
        missing.asks[missing.n] =
            (struct near__ask){ .key = keys[i], .hash = hash, .fence = near__l1_fence(cache->l1, hash) };
        missing.pointers[missing.n] = &missing.asks[missing.n];
        missing.index[missing.n++]  = i;
    }
    if (missing.n > 0)
        get_missing(cache, &view, &missing, values, statuses);
    free(missing.asks);
    return near__first_error(statuses, n);
}
