/*
 * near_fetch and near_fetch_many: L1, then flights, L2, leases and the loader.
 *
 * A fetch is a call's plan: one slot per key that L1 could not answer.  Each slot either leads a flight or joins one.  What this
 * call leads is landed before it waits for anybody, so two overlapping batches cannot wait for each other.  No lock is held here.
 */
#include "flight.h"
#include "generation.h"
#include "load.h"
#include "read.h"

#include <stdlib.h>
#include <string.h>

struct slot {
    size_t               index; /* of the key */
    struct near__flight *flight;
    struct near__ask     ask;   /* of a flight we lead; its fence is the flight's */
    bool                 leads; /* and it has not landed */
};

struct fetch {
    near_cache              *cache;
    struct near__view        view;
    int64_t                  deadline; /* of the caller; NEAR_NEVER */
    int64_t                  l2_deadline;
    int64_t                  ttl;
    uint64_t                 generation;
    size_t                   n;
    struct slot             *slots;
    struct near__ask       **asks;   /* room for n pointers */
    struct near__load_order *orders; /* room for n */
};

static bool
fetch_open(struct fetch *fetch, size_t n)
{
    char *block =
        calloc(n, sizeof(struct slot) + sizeof(struct near__load_order) + sizeof(struct near__ask *));

    if (block == NULL)
        return false;
    fetch->slots  = (struct slot *)block;
    fetch->orders = (struct near__load_order *)(fetch->slots + n);
    fetch->asks   = (struct near__ask **)(fetch->orders + n);
    return true;
}

static void
land(struct fetch *fetch, struct slot *slot, near_status status, near_source source,
     struct near__entry *entry)
{
    slot->leads = false;
    near__flight_land(fetch->cache, slot->flight, status, source, entry);
}

/* Somebody may have filled L1 between our look and our boarding: then there is nothing to load (one load per key, always). */
static bool
landed_meanwhile(struct fetch *fetch, struct slot *slot)
{
    near_value         *hit;
    near_status         status = NEAR_NOT_FOUND;
    struct near__entry *entry  = NULL;

    if ((fetch->view.flags & NEAR_SKIP_L1) || fetch->view.gate != NEAR__GATE_OPEN)
        return false;
    hit = near__l1_find(fetch->cache->l1, slot->ask.hash, slot->ask.key, fetch->view.now);
    if (hit == NULL)
        return false;
    if (hit == NEAR__L1_NEGATIVE) {
        near__count(fetch->cache, NEAR__negative_hits, 1);
    } else {
        near__count(fetch->cache, NEAR__requests, (uint64_t)-1); /* L1 has counted one more */
        status = NEAR_OK;
        entry  = near__value_counted(hit, slot->ask.key, slot->ask.hash, fetch->view.now);
        near_value_release(hit);
        if (entry == NULL)
            return false;
    }
    land(fetch, slot, status, NEAR_FROM_L1, entry);
    near__entry_release(&entry);
    return true;
}

/* A slot for a key that L1 could not answer: aboard a flight, or answered with why not. */
static near_status
board(struct fetch *fetch, size_t index, near_bytes key, uint64_t hash)
{
    struct slot *slot = &fetch->slots[fetch->n];

    *slot = (struct slot){ .index = index, .ask = { .key = key, .hash = hash } };
    switch (near__flight_board(fetch->cache, key, hash, fetch, &slot->flight)) {
    case NEAR__BOARD_NOMEM:
        return NEAR_ERR_NOMEM;
    case NEAR__BOARD_SELF:
        return NEAR_ERR_BUSY;
    case NEAR__BOARD_LEAD:
        slot->ask.fence = slot->flight->fence;
        slot->leads     = true;
        landed_meanwhile(fetch, slot);
        break;
    case NEAR__BOARD_JOIN:
        near__count(fetch->cache, NEAR__coalesced, 1);
        break;
    }
    fetch->n++;
    return NEAR_MISS;
}

/* ---- L2 */

static size_t
collect_asks(struct fetch *fetch)
{
    size_t n = 0;

    for (size_t i = 0; i < fetch->n; i++)
        if (fetch->slots[i].leads)
            fetch->asks[n++] = &fetch->slots[i].ask;
    return n;
}

static void
take_found(struct fetch *fetch, struct slot *slot)
{
    struct near__entry *entry = slot->ask.entry;

    if (!(fetch->view.flags & NEAR_NO_FILL))
        near__l1_insert(fetch->cache->l1, entry, slot->ask.fence, fetch->view.now);
    near__count(fetch->cache, entry->negative ? NEAR__negative_hits : NEAR__hits_l2, 1);
    land(fetch, slot, entry->negative ? NEAR_NOT_FOUND : NEAR_OK, NEAR_FROM_L2, entry);
    near__entry_release(&slot->ask.entry);
}

static void
read_l2(struct fetch *fetch)
{
    near_cache *cache = fetch->cache;
    size_t      n     = cache->client->ops != NULL ? collect_asks(fetch) : 0;

    if (n == 0)
        return;
    near__tier_read(cache, fetch->asks, n, fetch->l2_deadline, &fetch->generation);
    for (size_t i = 0; i < fetch->n; i++)
        if (fetch->slots[i].leads && fetch->slots[i].ask.found == NEAR__FOUND)
            take_found(fetch, &fetch->slots[i]);
}

/* Whether L2 has answered for any of them: then it is worth taking leases and storing. */
static bool
any_answered(struct near__ask **asks, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (asks[i]->found != NEAR__UNREACHABLE)
            return true;
    return false;
}

static void
take_leases(struct fetch *fetch)
{
    near_cache *cache = fetch->cache;
    size_t      n     = cache->client->ops != NULL ? collect_asks(fetch) : 0;

    if (n == 0 || !any_answered(fetch->asks, n))
        return;
    if (fetch->generation == 0 &&
        near__generation_for_write(cache, fetch->l2_deadline, &fetch->generation) != NEAR_OK) {
        fetch->generation = 0; /* nothing can be stored: so no lease either */
        return;
    }
    near__tier_lease(cache, fetch->asks, n, fetch->l2_deadline);
}

/* ---- the loader */

static void
load_rest(struct fetch *fetch)
{
    struct near__load_terms terms = {
        .generation = fetch->generation,
        .ttl        = fetch->ttl,
        .fill_l1    = !(fetch->view.flags & NEAR_NO_FILL),
        .deadline   = fetch->deadline,
    };
    size_t n = 0;

    for (size_t i = 0; i < fetch->n; i++)
        if (fetch->slots[i].leads)
            fetch->orders[n++] = (struct near__load_order){ fetch->slots[i].flight, fetch->slots[i].ask };
    if (n == 0)
        return;
    near__count(fetch->cache, NEAR__misses, n);
    near__load_run(fetch->cache, fetch->orders, n, &terms);
}

/* ---- answers */

static near_status
receive(struct fetch *fetch, struct slot *slot, near_value **value)
{
    struct near__entry *entry;
    near_source         source;
    near_status status = near__flight_wait(fetch->cache, slot->flight, fetch->deadline, &source, &entry);

    near__flight_release(fetch->cache, &slot->flight);
    if (status == NEAR_OK && entry != NULL)
        *value = near__value_of(entry, source, false);
    else
        near__entry_release(&entry);
    return status;
}

static void
fetch_missing(struct fetch *fetch, near_value **values, near_status *statuses)
{
    read_l2(fetch);
    take_leases(fetch);
    load_rest(fetch);
    for (size_t i = 0; i < fetch->n; i++) {
        struct slot *slot     = &fetch->slots[i];
        statuses[slot->index] = receive(fetch, slot, &values[slot->index]);
    }
}

static int64_t
earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void
fetch_init(struct fetch *fetch, near_cache *cache, const near_fetch_options *options)
{
    near_fetch_options mine = NEAR_FETCH_OPTIONS_INIT;

    near__options_take(&mine, sizeof(mine), options);
    *fetch          = (struct fetch){ .cache = cache };
    fetch->view     = near__view_of(cache, mine.flags & (NEAR_SKIP_L1 | NEAR_NO_FILL));
    near__view_exact(cache, &fetch->view);
    fetch->deadline = near__time_after(fetch->view.now, near__duration(mine.timeout_ms, NEAR_NEVER));
    fetch->l2_deadline =
        earlier(fetch->deadline, near__time_after(fetch->view.now, cache->client->settings.l2_timeout));
    fetch->ttl = near__duration(mine.ttl_ms, cache->settings.ttl);
}

near_status
near_fetch_many(near_cache *cache, const near_bytes *keys, size_t n, const near_fetch_options *options,
                near_value **values, near_status *statuses)
{
    struct fetch fetch;
    near_status  status = near__batch_check(cache, keys, n, values, statuses);

    if (status != NEAR_OK || n == 0)
        return status;
    if (values == NULL || cache->loader == NULL)
        return near__refuse_all(statuses, n, NEAR_ERR_INVALID);
    fetch_init(&fetch, cache, options);
    near__count(cache, NEAR__requests, n);
    for (size_t i = 0; i < n; i++) {
        uint64_t hash;

        if (statuses[i] < 0)
            continue;
        hash = near__hash_keyed(&cache->client->secret, keys[i]);
        if (near__l1_answers(cache, &fetch.view, hash, keys[i], &values[i], &statuses[i]))
            continue;
        if (fetch.slots == NULL && !fetch_open(&fetch, n - i))
            statuses[i] = NEAR_ERR_NOMEM;
        else
            statuses[i] = board(&fetch, i, keys[i], hash);
    }
    if (fetch.n > 0)
        fetch_missing(&fetch, values, statuses);
    free(fetch.slots);
    return near__first_error(statuses, n);
}

near_status
near_fetch(near_cache *cache, near_bytes key, const near_fetch_options *options, near_value **value)
{
    near_status status = NEAR_MISS, batch;

    if (value == NULL)
        return NEAR_ERR_INVALID;
    *value = NULL;
    batch  = near_fetch_many(cache, &key, 1, options, value, &status);
    return batch < 0 ? batch : status;
}
