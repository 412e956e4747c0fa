/* See conditional.h. */
#include "conditional.h"

/* Bytes without a stamp cannot be replaced under it: they go, whoever finds the place empty next may have it. */
static near_status
take_away(near_cache *cache, near_bytes key, int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;
    near_status       status = near__wire_open(&wire, cache, 1, key.size);

    if (status != NEAR_OK)
        return status;
    near__wire_add(&wire, cache, key);
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->remove_many(client->l2, NEAR_L2_ALWAYS, wire.items, 1, NULL, deadline);
    status = near__item_status(&wire.items[0]);
    near__wire_close(&wire);
    return status == NEAR_OK ? NEAR_MISS : status;
}

static near_status
judge(near_cache *cache, const struct near__ask *ask, bool negative, struct near__vacancy *vacancy,
      int64_t deadline)
{
    *vacancy = (struct near__vacancy){ .empty = ask->found == NEAR__ABSENT, .stamp = ask->stamp };
    switch (ask->found) {
    case NEAR__FOUND:
        return negative ? NEAR_OK : ask->counter ? NEAR_MISS : NEAR_ERR_CONFLICT;
    case NEAR__MARKED:
        return NEAR_ERR_CONFLICT;
    case NEAR__UNREACHABLE:
        return ask->status;
    case NEAR__UNREADABLE:
        return ask->stamp != 0 ? NEAR_OK : take_away(cache, ask->key, deadline);
    default:
        return NEAR_OK;
    }
}

near_status
near__vacancy_find(near_cache *cache, near_bytes key, uint64_t hash, struct near__vacancy *vacancy,
                   int64_t deadline)
{
    struct near__ask ask = { .key = key, .hash = hash }, *one = &ask;
    uint64_t         generation;
    bool             negative;

    near__tier_read(cache, &one, 1, near__client_now(cache->client), deadline, &generation);
    negative = ask.entry != NULL && ask.entry->negative;
    near__entry_release(&ask.entry);
    return judge(cache, &ask, negative, vacancy, deadline);
}

near_status
near__vacancy_fill(near_cache *cache, near_bytes key, const struct near__vacancy *vacancy, near_bytes stored,
                   int64_t ttl_ms, int64_t deadline)
{
    near_client         *client = cache->client;
    struct near__wire    wire;
    struct near_l2_item *item;
    near_status          status = near__wire_open(&wire, cache, 1, key.size);

    if (status != NEAR_OK)
        return status;
    item           = near__wire_add(&wire, cache, key);
    item->value    = stored;
    item->ttl_ms   = ttl_ms;
    item->expected = vacancy->stamp;
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->set_many(client->l2, vacancy->empty ? NEAR_L2_IF_ABSENT : NEAR_L2_IF_STAMP, item, 1, NULL,
                          deadline);
    status = near__item_status(item);
    near__wire_close(&wire);
    return status;
}
