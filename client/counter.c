/*
 * near_add: a counter in L2 (l2/backend.h, increment).
 *
 * What lies there and is no counter may be something that nobody is to be served, a lease or a value past its TTL: that is replaced
 * under its stamp.  L1 keeps no counters, so the others have to be told only where something else may have been before: when the counter is made.
 * With l2.envelope = none a counter is a value like any other, which L1 keeps: they are told each time.  No lock is held here.
 */
#include "announce.h"
#include "conditional.h"
#include "tier.h"

#define ROUNDS 8 /* against others who put and remove the key, before it counts as contended */

static near_status
add_once(near_cache *cache, struct near__wire *wire, int64_t deadline)
{
    near_client         *client = cache->client;
    struct near_l2_item *item   = &wire->items[0];

    *item = (struct near_l2_item){
        .key = item->key, .sum = item->sum, .plain = cache->bare, .ttl_ms = near__ttl_ms(cache->settings.ttl)
    };
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->increment(client->l2, item, 1, deadline);
    return near__item_status(item);
}

/* Over what is no value.  NEAR_OK; NEAR_MISS: to be tried again; NEAR_ERR_CONFLICT, or why not. */
static near_status
make_counter(near_cache *cache, near_bytes key, uint64_t hash, struct near_l2_sum *sum, int64_t deadline)
{
    char                 text[NEAR_L2_DECIMAL];
    near_bytes           first = { text, near__l2_decimal_write(sum->initial, text) };
    struct near__vacancy vacancy;
    near_status          status = near__vacancy_find(cache, key, hash, &vacancy, deadline);

    if (status != NEAR_OK)
        return status;
    sum->result  = sum->initial;
    sum->created = true;
    return near__vacancy_fill(cache, key, &vacancy, first, near__ttl_ms(cache->settings.ttl), deadline);
}

static near_status
add(near_cache *cache, near_bytes key, uint64_t hash, struct near_l2_sum *sum, int64_t deadline)
{
    struct near__wire wire;
    near_status       status = near__wire_open(&wire, cache, 1, key.size);

    if (status != NEAR_OK)
        return status;
    near__wire_add(&wire, cache, key)->sum = sum;
    status                                 = add_once(cache, &wire, deadline);
    for (int round = 0; status == NEAR_MISS && round < ROUNDS; round++) {
        status = cache->bare ? NEAR_ERR_CONFLICT : make_counter(cache, key, hash, sum, deadline);
        if (status == NEAR_MISS)
            status = add_once(cache, &wire, deadline);
    }
    near__wire_close(&wire);
    return status == NEAR_MISS ? NEAR_ERR_BUSY : status;
}

near_status
near_add(near_cache *cache, near_bytes key, int64_t delta, int64_t initial, int64_t *result)
{
    struct near_l2_sum    sum    = { .delta = delta, .initial = initial };
    near_status           status = near__cache_check(cache);
    near_client          *client;
    struct near__l1_write token;
    int64_t               now, deadline;
    uint64_t              hash;

    if (status == NEAR_OK)
        status = near__tier_key_check(cache, key);
    if (status != NEAR_OK)
        return status;
    client = cache->client;
    if (cache->mac != NULL) /* a number that the server adds to cannot be sealed */
        return NEAR_ERR_UNSUPPORTED;
    if (client->ops == NULL || client->ops->increment == NULL)
        return NEAR_ERR_UNSUPPORTED;
    now      = near__client_now(client);
    deadline = near__time_after(now, client->settings.l2_timeout);
    hash     = near__hash_keyed(&client->secret, key);
    near__count(cache, NEAR__additions, 1);
    token  = near__l1_write_begin(cache->l1, hash, key);
    status = add(cache, key, hash, &sum, deadline);
    if (status == NEAR_OK && (sum.created || cache->bare) &&
        near__announce_key(cache, key, deadline) != NEAR_OK)
        status = NEAR_ERR_TIMEOUT; /* added, and others may answer what was there before for a while */
    near__l1_write_end(cache->l1, token, hash, key, NULL, now);
    if (status == NEAR_OK && result != NULL)
        *result = sum.result;
    return status;
}
