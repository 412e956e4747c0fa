/*
 * See mark.h.  A mark is an envelope with NEAR__ENVELOPE_MARK whose payload is the list, 8 bytes a token, little-endian.  A token 0, always the
 * first, says that the mark is spoiled.  The list is bounded: a new writer pushes the oldest out, which is most likely dead; if it is not,
 * it finds that out when it leaves.
 */
#include "mark.h"

#include "base/backoff.h"
#include "base/le.h"

#include <string.h>
#include <time.h>

#define MOST 64 /* tokens in a mark */

/* What lies under a key. */
struct seen {
    const near_cache *cache;
    near_bytes        key;
    bool              absent, mark;
    uint64_t          stamp; /* 0: has none */
    size_t            n;
    uint64_t          tokens[MOST + 1];
};

int64_t
near__mark_time(const near_cache *cache)
{
    /* a writer may be slow twice, before the store is called and after, and the store may make the change a little after it gave up on
     * answering in time */
    int64_t time  = 2 * (cache->settings.store_timeout + cache->client->settings.l2_timeout) + NEAR__SEC;
    int64_t least = cache->client->traits.min_lease_ms * NEAR_MS;

    return time > least ? time : least;
}

static void
take_tokens(struct seen *seen, near_bytes list)
{
    const uint8_t *at = list.data;

    for (size_t i = 0; i + 8 <= list.size && seen->n < MOST; i += 8)
        seen->tokens[seen->n++] = near__le64_get(at + i);
}

static void
deliver(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct seen          *seen = ctx;
    struct near__envelope envelope;

    if (near__tier_decode(seen->cache, &envelope, item->key, stored, seen->key) == NEAR__ENVELOPE_OK) {
        seen->stamp = envelope.stamp;
        seen->mark  = (envelope.flags & NEAR__ENVELOPE_MARK) != 0;
        if (seen->mark)
            take_tokens(seen, envelope.payload);
    } else {
        seen->stamp = near__stamp_in(stored);
    }
}

/* An item anew, for the next exchange. */
static struct near_l2_item *
again(struct near__wire *wire)
{
    wire->items[0] = (struct near_l2_item){ .key = wire->items[0].key };
    return &wire->items[0];
}

static near_status
look(near_cache *cache, struct near__wire *wire, near_bytes key, struct seen *seen, int64_t deadline)
{
    near_client         *client = cache->client;
    struct near_l2_item *item   = again(wire);
    near_status          status;

    *seen = (struct seen){ .cache = cache, .key = key };
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->get_many(client->l2, item, 1, deliver, seen, deadline);
    status       = near__item_status(item);
    seen->absent = status == NEAR_MISS;
    if (status == NEAR_ERR_TOO_LARGE)
        return NEAR_OK; /* somebody's with another bound: there, and without a stamp */
    return seen->absent ? NEAR_OK : status;
}

/* NEAR_OK, NEAR_MISS: somebody came in between, or why not. */
static near_status
put_list(near_cache *cache, struct near__wire *wire, near_bytes key, const struct seen *seen, uint64_t stamp,
         int64_t deadline)
{
    near_client          *client = cache->client;
    struct near_l2_item  *item   = again(wire);
    uint8_t               list[8 * MOST];
    struct near__envelope envelope = {
        .flags = NEAR__ENVELOPE_MARK, .stamp = stamp, .key = key, .payload = { list, 8 * seen->n }
    };

    for (size_t i = 0; i < seen->n; i++)
        near__le64_put(list + 8 * i, seen->tokens[i]);
    item->value    = near__tier_encode(cache, &envelope, item->key, wire->values);
    item->expected = seen->stamp;
    item->ttl_ms   = near__ttl_ms(near__mark_time(cache));
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->set_many(client->l2, seen->absent ? NEAR_L2_IF_ABSENT : NEAR_L2_IF_STAMP, item, 1, NULL,
                          deadline);
    return near__item_status(item);
}

static near_status
take_away(near_cache *cache, struct near__wire *wire, uint64_t stamp, int64_t deadline)
{
    near_client         *client = cache->client;
    struct near_l2_item *item   = again(wire);

    item->expected = stamp;
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->remove_many(client->l2, stamp != 0 ? NEAR_L2_IF_STAMP : NEAR_L2_ALWAYS, item, 1, NULL,
                             deadline);
    return near__item_status(item);
}

static near_status
open_wire(near_cache *cache, struct near__wire *wire, near_bytes key, size_t room)
{
    near_status status = near__wire_open(wire, cache, 1, key.size);

    if (status != NEAR_OK)
        return status;
    near__wire_add(wire, cache, key);
    if (near__wire_make_room(wire, room))
        return NEAR_OK;
    near__wire_close(wire);
    return NEAR_ERR_NOMEM;
}

static size_t
list_room(near_bytes key)
{
    return NEAR__ENVELOPE_MOST + key.size + 8 * MOST;
}

/* Another writer was quicker: give way, longer each time.  False: the deadline has passed. */
static bool
give_way(near_cache *cache, unsigned lost, int64_t deadline)
{
    int64_t pause = near__backoff(lost, 20000, 2 * NEAR_MS); /* from about an exchange on a local server */

    if (near__time_after(near__client_now(cache->client), pause) >= deadline)
        return false;
    nanosleep(&(struct timespec){ .tv_nsec = (long)pause }, NULL);
    return true;
}

static void
join(struct seen *seen, uint64_t token)
{
    if (!seen->mark)
        seen->n = 0;
    if (seen->n == MOST) {
        size_t oldest = seen->tokens[0] == 0;

        memmove(seen->tokens + oldest, seen->tokens + oldest + 1, (MOST - oldest - 1) * sizeof(uint64_t));
        seen->n--;
    }
    seen->tokens[seen->n++] = token;
}

static near_status
place_once(near_cache *cache, struct near__wire *wire, near_bytes key, struct near__mark *mark,
           int64_t deadline)
{
    struct seen seen;
    uint64_t    stamp  = near__stamp(cache->client);
    near_status status = look(cache, wire, key, &seen, deadline);

    if (status != NEAR_OK)
        return status;
    if (!seen.absent && seen.stamp == 0) { /* nothing can be put over it under its stamp */
        status = take_away(cache, wire, 0, deadline);
        return status == NEAR_OK ? NEAR_MISS : status;
    }
    join(&seen, mark->token);
    mark->stamp = seen.n == 1 ? stamp : 0;
    return put_list(cache, wire, key, &seen, stamp, deadline);
}

near_status
near__mark_place(near_cache *cache, near_bytes key, struct near__mark *mark, int64_t deadline)
{
    struct near__wire wire;
    near_status       status = open_wire(cache, &wire, key, list_room(key));

    if (status != NEAR_OK)
        return status;
    mark->token = near__stamp(cache->client);
    status      = place_once(cache, &wire, key, mark, deadline);
    for (unsigned lost = 1; status == NEAR_MISS; lost++)
        status = give_way(cache, lost, deadline) ? place_once(cache, &wire, key, mark, deadline)
                                                 : NEAR_ERR_TIMEOUT;
    near__wire_close(&wire);
    return status;
}

near_status
near__mark_replace(near_cache *cache, near_bytes key, const struct near__mark *mark,
                   const struct near__stored *stored, int64_t deadline)
{
    near_client      *client = cache->client;
    size_t            room = stored != NULL ? near__tier_room(cache, key, stored->value, stored->labels) : 0;
    struct near__wire wire;
    struct near_l2_item *item;
    near_status          status;

    if (mark->stamp == 0)
        return NEAR_MISS;
    status = open_wire(cache, &wire, key, room);
    if (status != NEAR_OK)
        return status;
    if (stored == NULL) {
        status = take_away(cache, &wire, mark->stamp, deadline);
        near__wire_close(&wire);
        return status;
    }
    item = &wire.items[0];
    near__tier_store(cache, &wire, item, stored, near__wall_ms(&client->clock));
    item->expected = mark->stamp;
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->set_many(client->l2, NEAR_L2_IF_STAMP, item, 1, NULL, deadline);
    status = near__item_status(item);
    near__wire_close(&wire);
    return status;
}

/* Take the token out; whether it was there. */
static bool
cross_out(struct seen *seen, uint64_t token)
{
    for (size_t i = 0; i < seen->n; i++)
        if (seen->tokens[i] == token) {
            memmove(seen->tokens + i, seen->tokens + i + 1, (seen->n - i - 1) * sizeof(uint64_t));
            seen->n--;
            return true;
        }
    return false;
}

static bool
spoil(struct seen *seen)
{
    if (seen->n > 0 && seen->tokens[0] == 0)
        return false;
    if (seen->n == MOST)
        seen->n--; /* like any that is pushed out it learns of it when it leaves */
    memmove(seen->tokens + 1, seen->tokens, seen->n * sizeof(uint64_t));
    seen->tokens[0] = 0;
    seen->n++;
    return true;
}

static near_status
leave_once(near_cache *cache, struct near__wire *wire, near_bytes key, const struct near__mark *mark,
           bool changed, int64_t deadline)
{
    struct seen seen;
    near_status status = look(cache, wire, key, &seen, deadline);
    bool        was_there, spoiled;

    if (status != NEAR_OK || seen.absent)
        return status;
    if (!seen.mark)
        return changed ? take_away(cache, wire, seen.stamp, deadline) : NEAR_OK;
    was_there = cross_out(&seen, mark->token);
    spoiled   = changed && spoil(&seen);
    if (!was_there && !spoiled)
        return NEAR_OK;
    if (seen.n == 0 || (seen.n == 1 && seen.tokens[0] == 0))
        return take_away(cache, wire, seen.stamp, deadline);
    return put_list(cache, wire, key, &seen, near__stamp(cache->client), deadline);
}

near_status
near__mark_leave(near_cache *cache, near_bytes key, const struct near__mark *mark, bool changed,
                 int64_t deadline)
{
    struct near__wire wire;
    near_status       status = open_wire(cache, &wire, key, list_room(key));

    if (status != NEAR_OK)
        return status;
    status = leave_once(cache, &wire, key, mark, changed, deadline);
    for (unsigned lost = 1; status == NEAR_MISS; lost++)
        status = give_way(cache, lost, deadline) ? leave_once(cache, &wire, key, mark, changed, deadline)
                                                 : NEAR_ERR_TIMEOUT;
    near__wire_close(&wire);
    return status;
}
