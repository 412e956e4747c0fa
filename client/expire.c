/*
 * near_expire: a value that must be refreshed, and stays as what to fall back on.
 *
 * In L2 the entry is replaced, under its stamp, by itself with a soft expiry of long ago (NEAR__SOFT_FORCED) and at most grace to
 * live.  A load under way is voided: its marker is removed, or the stamp that its fill expects has changed.  Then the others are told,
 * as of any write, and L1's copy goes in the same bracket as in write.c.  No lock is held here.
 */
#include "announce.h"
#include "flight.h"
#include "generation.h"
#include "l2/envelope.h"
#include "read.h"

#include <stdlib.h>
#include <string.h>

#define ROUNDS 4 /* lost against other writers, before the key is simply removed */

struct aging {
    near_cache *cache;
    near_bytes  key;
    uint64_t    stamp;  /* of what was found; 0: nothing, or no entry */
    bool        marked; /* the store is being written: what there was is gone already */
    uint8_t    *bytes;  /* what to put in its place; NULL: it has to go */
    size_t      size;
    int64_t     ttl_ms; /* and for how long */
};

/* `stored` becomes its own aged self. */
static void
age(struct aging *aging, near_bytes place, struct near__envelope *envelope)
{
    const near_cache *cache = aging->cache;
    int64_t           wall  = near__wall_ms(&cache->client->clock);
    int64_t           end   = near__time_after(wall, near__ttl_ms(cache->settings.grace));

    if (cache->settings.grace == 0 || (envelope->flags & (NEAR__ENVELOPE_LEASE | NEAR__ENVELOPE_NEGATIVE)))
        return;
    if (envelope->hard_expiry_ms == 0 || envelope->hard_expiry_ms > end)
        envelope->hard_expiry_ms = end;
    if (envelope->hard_expiry_ms <= wall)
        return;
    envelope->stamp          = near__stamp(cache->client);
    envelope->soft_expiry_ms = NEAR__SOFT_FORCED;
    aging->ttl_ms            = envelope->hard_expiry_ms - wall;
    aging->size              = near__tier_measure(cache, envelope);
    aging->bytes             = malloc(aging->size);
    if (aging->bytes != NULL) /* else it is removed: all that is lost is what to fall back on */
        near__tier_encode(cache, envelope, place, aging->bytes);
}

static void
deliver(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct aging         *aging = ctx;
    struct near__envelope envelope;

    if (near__tier_decode(aging->cache, &envelope, item->key, stored, aging->key) != NEAR__ENVELOPE_OK)
        return;
    aging->stamp  = envelope.stamp;
    aging->marked = (envelope.flags & NEAR__ENVELOPE_MARK) != 0;
    if (!aging->marked)
        age(aging, item->key, &envelope);
}

/* One attempt: NEAR_OK, NEAR_MISS when somebody came in between, or why not. */
static near_status
age_once(near_cache *cache, struct near__wire *wire, near_bytes key, int64_t deadline)
{
    near_client         *client = cache->client;
    struct aging         aging  = { .cache = cache, .key = key };
    struct near_l2_item *item   = &wire->items[0];
    near_status          status;

    *item = (struct near_l2_item){ .key = item->key };
    client->ops->get_many(client->l2, item, 1, deliver, &aging, deadline);
    near__count(cache, NEAR__l2_requests, 1);
    status = near__item_status(item);
    if (status == NEAR_MISS || aging.marked)
        return NEAR_OK; /* nothing is there */
    if (status == NEAR_OK) {
        *item          = (struct near_l2_item){ .key = item->key };
        item->expected = aging.stamp;
        item->value    = (near_bytes){ aging.bytes, aging.size };
        item->ttl_ms   = aging.ttl_ms;
        near__count(cache, NEAR__l2_requests, 1);
        if (aging.bytes != NULL)
            client->ops->set_many(client->l2, NEAR_L2_IF_STAMP, item, 1, NULL, deadline);
        else
            client->ops->remove_many(client->l2, aging.stamp != 0 ? NEAR_L2_IF_STAMP : NEAR_L2_ALWAYS, item,
                                     1, NULL, deadline);
        status = near__item_status(item);
    }
    free(aging.bytes);
    return status;
}

static near_status
age_in_l2(near_cache *cache, near_bytes key, int64_t deadline)
{
    struct near__wire wire;
    near_status       status = near__wire_open(&wire, cache, 1, key.size);

    if (status != NEAR_OK)
        return status;
    near__wire_add(&wire, cache, key);
    status = NEAR_MISS;
    for (int round = 0; round < ROUNDS && status == NEAR_MISS; round++)
        status = age_once(cache, &wire, key, deadline);
    near__wire_close(&wire);
    return status;
}

/* Where there is no L2 the copy in L1 is all there is to fall back on: an aged twin of it. */
static struct near__entry *
aged_copy(near_cache *cache, const struct near__hit *hit, uint64_t hash, near_bytes key, int64_t now)
{
    near_bytes          bytes = near_value_bytes(hit->value);
    struct near__entry *entry;
    void               *room;

    if (hit->value == NULL || hit->negative || cache->settings.grace == 0)
        return NULL;
    entry = near__entry_new(key, hash, bytes.size, &room);
    if (entry == NULL)
        return NULL;
    if (bytes.size > 0)
        memcpy(room, bytes.data, bytes.size);
    entry->object      = near__object_ref(near__value_object(hit->value));
    entry->born        = now;
    entry->cost_us     = hit->cost_us;
    entry->fresh_until = NEAR__FRESH_FORCED;
    entry->expires     = near__time_after(now, cache->settings.grace);
    if (entry->expires > hit->expires)
        entry->expires = hit->expires;
    return entry;
}

near_status
near_expire(near_cache *cache, near_bytes key)
{
    near_status           status = near__cache_check(cache);
    int64_t               now, deadline;
    uint64_t              hash;
    struct near__l1_write token;
    struct near__entry   *aged = NULL;
    uint64_t              fence;

    if (status == NEAR_OK)
        status = near__tier_key_check(cache, key);
    if (status != NEAR_OK)
        return status;
    if (cache->bare)
        return near_remove(cache, key); /* nothing in the entry could say that it is stale */
    now      = near__client_now(cache->client);
    deadline = near__time_after(now, cache->client->settings.l2_timeout);
    hash     = near__hash_keyed(&cache->client->secret, key);
    near__count(cache, NEAR__expires, 1);
    fence =
        near__l1_fence(cache->l1, hash); /* before the look: what is written after it must not be undone */
    if (cache->client->ops == NULL) {
        struct near__hit hit = near__l1_look(cache, hash, key, now);

        aged = aged_copy(cache, &hit, hash, key, now);
        near_value_release(hit.value);
    }
    token = near__l1_write_begin(cache->l1, hash, key);
    near__last_note(&cache->last, hash, NEAR__LAST_WRITE, now);
    if (near__l1_fence_moves(fence, token.fence) != 1) /* our own begin moves it by one */
        near__entry_release(&aged);
    if (cache->client->ops != NULL)
        status = age_in_l2(cache, key, deadline);
    if (status == NEAR_OK)
        status = near__announce_key(cache, key, deadline);
    near__l1_write_end(cache->l1, token, hash, key, status == NEAR_OK ? aged : NULL, now);
    near__entry_release(&aged);
    /* too many writers, or an outcome that is not known: without what to fall back on, then */
    return status == NEAR_OK || status == NEAR_ERR_CLOSED ? status : near_remove(cache, key);
}
