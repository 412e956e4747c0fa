/* See generation.h.  generation->lock is a leaf: no call leaves this file under it. */
#include "generation.h"

#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "l2/envelope.h"
#include "tier.h"

#define STORED_SIZE (NEAR__ENVELOPE_HEADER + 256 + 8)

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

/* Whether what was learned is still to be trusted, as far as others' clears go. */
static bool
would_hear_of_a_clear(const near_cache *cache, int64_t now, int64_t learned)
{
    const near_client *client = cache->client;

    if (!client->traits.shared)
        return true;
    if (client->coherence == NULL)
        return now - learned < POLL;
    return now < near__coherence_gate(client->coherence);
}

bool
near__generation_known(near_cache *cache, int64_t now, uint64_t *value, uint64_t *epoch)
{
    struct near__generation *generation = &cache->generation;
    bool                     known, recent;

    near__lock(&generation->lock);
    /* not for ever even with a bus: L2 may have lost the key since and another instance made a new one, which is not announced;
     * and a key that is read now and then is not the first to be evicted */
    recent = generation->value != 0 && now - generation->learned < cache->max_ttl;
    known  = recent && generation->known && would_hear_of_a_clear(cache, now, generation->learned);
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

    return (seconds << 32) | (near__stamp() & 0xFFFFFFFFu) | 1;
}

uint64_t
near__generation_decode(near_bytes stored, near_bytes key)
{
    struct near__envelope envelope;

    if (near__envelope_decode(&envelope, stored, key) != NEAR__ENVELOPE_OK || envelope.payload.size != 8)
        return 0;
    return near__le64_get(envelope.payload.data);
}

/* The generation's item, its stored form in `bytes` (STORED_SIZE). */
static void
encode_item(struct near_l2_item *item, uint64_t value, uint8_t *bytes)
{
    uint8_t               payload[8];
    struct near__envelope envelope = { .stamp = near__stamp(), .key = item->key, .payload = { payload, 8 } };

    near__le64_put(payload, value);
    near__envelope_encode(&envelope, bytes);
    item->value = (near_bytes){ bytes, near__envelope_size(envelope.key, envelope.payload) };
}

static near_status
store(near_cache *cache, uint64_t value, enum near_l2_mode mode, struct near_l2_announce *announce,
      int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;
    uint8_t           bytes[STORED_SIZE];
    near_status       status = near__wire_open(&wire, cache, 1, 0);

    if (status != NEAR_OK)
        return status;
    encode_item(near__wire_add_generation(&wire, cache), value, bytes);
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->set_many(client->l2, mode, wire.items, 1, announce, deadline);
    status = near__item_status(&wire.items[0]);
    near__wire_close(&wire);
    return status;
}

struct found {
    uint64_t value;
};

static void
deliver(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    ((struct found *)ctx)->value = near__generation_decode(stored, item->key);
}

/* NEAR_OK with a value, NEAR_MISS when there is none (or a damaged one, which is removed). */
static near_status
load(near_cache *cache, int64_t deadline, uint64_t *value)
{
    near_client      *client = cache->client;
    struct found      found  = { 0 };
    struct near__wire wire;
    near_status       status = near__wire_open(&wire, cache, 1, 0);

    if (status != NEAR_OK)
        return status;
    near__wire_add_generation(&wire, cache);
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->get_many(client->l2, wire.items, 1, deliver, &found, deadline);
    status = near__item_status(&wire.items[0]);
    if (status == NEAR_OK && found.value == 0) {
        near__count(cache, NEAR__l2_corrupt, 1);
        wire.items[0].answer = NEAR_L2_NOT_TRIED;
        client->ops->remove_many(client->l2, NEAR_L2_ALWAYS, wire.items, 1, NULL, deadline);
        status = NEAR_MISS;
    }
    near__wire_close(&wire);
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
        status = store(cache, *value, NEAR_L2_IF_ABSENT, NULL, deadline);
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
    return store(cache, fresh, NEAR_L2_ALWAYS, announce, deadline);
}
