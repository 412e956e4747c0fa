/* See generation.h.  generation->lock is a leaf: no call leaves this file under it. */
#include "generation.h"

#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "l2/envelope.h"
#include "tier.h"

#define STORED_SIZE (NEAR__ENVELOPE_MOST + 256 + 8)

void
near__generation_init(struct near__generation *generation)
{
    near__lock_init(&generation->lock, NEAR__RANK_LEAF);
}

void
near__generation_fini(struct near__generation *generation)
{
    near__lock_fini(&generation->lock);
}

/* Where nobody would tell us of another instance's clear, a generation is good for this long.  It is a key more in every exchange
 * otherwise, which a lone read of memcached pays with a tenth of its speed; once in so many ms it costs nothing. */
#define POLL (10 * NEAR_MS)

bool
near__hears(const near_cache *cache, int64_t now)
{
    const near_client *client = cache->client;

    return !client->traits.shared ||
           (client->coherence != NULL && now < near__coherence_gate(client->coherence));
}

bool
near__holds(const near_cache *cache, int64_t now, int64_t learned)
{
    return near__hears(cache, now) || (cache->client->coherence == NULL && now - learned < POLL);
}

bool
near__generation_known(near_cache *cache, int64_t now, uint64_t *value, uint64_t *epoch)
{
    struct near__generation *generation = &cache->generation;
    bool                     known, recent;

    if (cache->bare) {
        *value = NEAR__GENERATION_BARE;
        *epoch = 0;
        return true;
    }
    near__lock(&generation->lock);
    /* not for ever even with a bus: L2 may have lost the key since and another instance made a new one, which is not announced;
     * and a key that is read now and then is not the first to be evicted */
    recent = generation->value != 0 && now - generation->learned < cache->max_ttl;
    known  = recent && generation->known && near__holds(cache, now, generation->learned);
    *value = recent ? generation->value : 0;
    *epoch = generation->epoch;
    near__unlock(&generation->lock);
    return known;
}

void
near__generation_learn(near_cache *cache, uint64_t value, uint64_t epoch)
{
    struct near__generation *generation = &cache->generation;

    near__lock(&generation->lock);
    if (generation->epoch == epoch) {
        generation->value   = value;
        generation->known   = true;
        generation->learned = near__client_now(cache->client);
    }
    near__unlock(&generation->lock);
}

void
near__generation_doubt(near_cache *cache, bool replaced)
{
    struct near__generation *generation = &cache->generation;

    near__lock(&generation->lock);
    generation->known = false;
    generation->epoch++;
    if (replaced)
        generation->value = 0;
    near__unlock(&generation->lock);
}

/* Seconds since 1970 above, randomness below: never seen before, whatever L2 forgot. */
uint64_t
near__generation_fresh(const near_cache *cache)
{
    uint64_t seconds = (uint64_t)near__wall_ms(&cache->client->clock) / 1000;

    return (seconds << 32) | (near__stamp(cache->client) & 0xFFFFFFFFu) | 1;
}

uint64_t
near__generation_decode(const near_cache *cache, near_bytes place, near_bytes stored, uint64_t *old)
{
    struct near__envelope envelope;

    *old = 0;
    if (near__tier_decode(cache, &envelope, place, stored, place) != NEAR__ENVELOPE_OK ||
        envelope.flags != 0 || envelope.payload.size != 8)
        return 0;
    *old = envelope.old_key ? envelope.stamp : 0;
    return near__le64_get(envelope.payload.data);
}

void
near__number_encode(const near_cache *cache, struct near_l2_item *item, near_bytes payload, uint8_t *bytes)
{
    struct near__envelope envelope = { .stamp   = near__stamp(cache->client),
                                       .key     = item->key,
                                       .payload = payload };

    item->value = near__tier_encode(cache, &envelope, item->key, bytes);
}

static near_status
store(near_cache *cache, uint64_t value, enum near_l2_mode mode, uint64_t expected,
      struct near_l2_announce *announce, int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;
    uint8_t           number[8], bytes[STORED_SIZE];
    near_status       status = near__wire_open(&wire, cache, 1, 0);

    if (status != NEAR_OK)
        return status;
    near__le64_put(number, value);
    near__number_encode(cache, near__wire_add_generation(&wire, cache),
                        (near_bytes){ number, sizeof(number) }, bytes);
    wire.items[0].expected = expected;
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->set_many(client->l2, mode, wire.items, 1, announce, deadline);
    status = near__item_status(&wire.items[0]);
    near__wire_close(&wire);
    return status;
}

struct found {
    const near_cache *cache;
    uint64_t          value, old;
};

static void
deliver(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct found *found = ctx;

    found->value = near__generation_decode(found->cache, item->key, stored, &found->old);
}

/* NEAR_OK with a value, NEAR_MISS when there is none (or a damaged one, which is removed). */
static near_status
load(near_cache *cache, int64_t deadline, uint64_t *value)
{
    near_client      *client = cache->client;
    struct found      found  = { .cache = cache };
    struct near__wire wire;
    near_status       status = near__wire_open(&wire, cache, 1, 0);

    if (status != NEAR_OK)
        return status;
    near__wire_add_generation(&wire, cache);
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->get_many(client->l2, wire.items, 1, deliver, &found, deadline);
    status = near__item_status(&wire.items[0]);
    if ((status == NEAR_OK && found.value == 0) || status == NEAR_ERR_TOO_LARGE) {
        near__count(cache, NEAR__l2_corrupt, 1);
        wire.items[0].answer = NEAR_L2_NOT_TRIED;
        client->ops->remove_many(client->l2, NEAR_L2_ALWAYS, wire.items, 1, NULL, deadline);
        status = NEAR_MISS;
    }
    near__wire_close(&wire);
    if (found.old != 0) /* known from here on, it is not read again: see near__tier_read() */
        (void)store(cache, found.value, NEAR_L2_IF_STAMP, found.old, NULL, deadline);
    *value = found.value;
    return status;
}

near_status
near__generation_for_write(near_cache *cache, int64_t deadline, uint64_t *value)
{
    uint64_t    epoch;
    near_status status;

    if (near__generation_known(cache, near__client_now(cache->client), value, &epoch) || *value != 0)
        return NEAR_OK;
    for (int round = 0; round < 3; round++) { /* somebody may make or lose it between our two questions */
        status = load(cache, deadline, value);
        if (status != NEAR_MISS)
            break;
        *value = near__generation_fresh(cache);
        status = store(cache, *value, NEAR_L2_IF_ABSENT, 0, NULL, deadline);
        if (status != NEAR_MISS)
            break;
    }
    if (status == NEAR_OK)
        near__generation_learn(cache, *value, epoch);
    return status == NEAR_MISS ? NEAR_ERR_UNAVAILABLE : status; /* made and lost, three times over */
}

near_status
near__generation_renew(near_cache *cache, uint64_t fresh, struct near_l2_announce *announce, int64_t deadline)
{
    return store(cache, fresh, NEAR_L2_ALWAYS, 0, announce, deadline);
}
