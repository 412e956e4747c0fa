/*
 * near_invalidate_prefix.
 *
 *     empty L1  ->  remove from L2 what begins so  ->  tell the others  ->  empty L1 again
 *
 * L2's part brings every key that was there when this began.  A load under way has left a marker there, or refreshes an entry: with
 * those gone its fill is refused, as after a removal.  Where values lie in L2 as they are (l2.envelope = none) the lease lies
 * beside, and goes first.  In L1 the second flush moves all fences, so nothing that was read meanwhile is kept.
 *
 * What did not succeed is kept and repeated (recovery.h).  No lock is held here.
 */
#include "prefix.h"

#include "announce.h"
#include "recovery.h"
#include "tier.h"

#include <inttypes.h>

#define SAY_AGAIN (10 * 1000 * NEAR_MS) /* between two words about one that takes long */

struct progress {
    near_cache *cache;
    uint64_t    removed;
    int64_t     say;
};

static void
note(void *ctx, size_t removed)
{
    struct progress *p   = ctx;
    int64_t          now = near__client_now(p->cache->client);

    p->removed += removed;
    near__count(p->cache, NEAR__prefix_removed, removed);
    if (now < p->say)
        return;
    p->say = near__time_after(now, SAY_AGAIN);
    near__log(&p->cache->client->log, NEAR_LOG_INFO,
              "cache %s: invalidating a prefix: %" PRIu64 " keys removed so far", p->cache->name, p->removed);
}

/* All keys that lie in L2 under what `add` makes of the prefix. */
static near_status
remove_from_l2(near_cache *cache, near_bytes prefix,
               struct near_l2_item *(*add)(struct near__wire *, const near_cache *, near_bytes),
               int64_t deadline)
{
    near_client      *client = cache->client;
    struct progress   p      = { cache, 0, near__time_after(near__client_now(client), SAY_AGAIN) };
    struct near__wire wire;
    near_error        error  = { .code = NEAR_OK };
    near_status       status = near__wire_open(&wire, cache, 1, prefix.size);

    if (status != NEAR_OK)
        return status;
    near__count(cache, NEAR__l2_requests, 1);
    status =
        client->ops->remove_prefix(client->l2, add(&wire, cache, prefix)->key, note, &p, deadline, &error);
    near__wire_close(&wire);
    if (status != NEAR_OK)
        near__log(&client->log, NEAR_LOG_WARN,
                  "cache %s: invalidating a prefix: %s; %" PRIu64 " keys were removed, some may be left",
                  cache->name, error.text, p.removed);
    return status;
}

static near_status
invalidate(near_cache *cache, near_bytes prefix, int64_t deadline)
{
    near_client            *client = cache->client;
    near_status             status = NEAR_OK, made;
    struct near__announcing announcing;
    int64_t                 soon;

    if (client->ops != NULL && cache->bare)
        status = remove_from_l2(cache, prefix, near__wire_add_side, deadline);
    if (client->ops != NULL && status == NEAR_OK)
        status = remove_from_l2(cache, prefix, near__wire_add, deadline);
    made            = near__announce_begin(cache, NEAR__MESSAGE_PREFIX, &prefix, 1, &announcing);
    announcing.with = NULL; /* no one write to go with */
    soon            = near__time_after(near__client_now(client), client->settings.l2_timeout);
    if (made == NEAR_OK)
        return near__announce_end(cache, &announcing, status, soon);
    return status != NEAR_OK ? status : made;
}

near_status
near__prefix_settle(near_cache *cache, near_bytes prefix, int64_t deadline)
{
    int64_t     own    = near__time_after(near__client_now(cache->client), cache->settings.prefix_timeout);
    near_status status = invalidate(cache, prefix, own < deadline ? own : deadline);

    near__l1_flush(cache->l1);
    return status;
}

near_status
near_invalidate_prefix(near_cache *cache, near_bytes prefix)
{
    near_status status = near__cache_check(cache);

    if (status == NEAR_OK)
        status = near__key_check(prefix);
    if (status != NEAR_OK)
        return status;
    if (cache->client->ops != NULL && cache->client->ops->remove_prefix == NULL) {
        near__log(&cache->client->log, NEAR_LOG_WARN,
                  "cache %s: %s cannot find keys by their beginning: give values tags, and invalidate those",
                  cache->name, cache->client->l2_uri.scheme);
        return NEAR_ERR_UNSUPPORTED;
    }
    near__count(cache, NEAR__prefix_invalidations, 1);
    near__l1_flush(cache->l1);
    status = near__prefix_settle(cache, prefix, NEAR_NEVER);
    if (status == NEAR_OK)
        return NEAR_OK;
    near__recovery_keep_prefix(cache, prefix);
    near__l1_flush(cache->l1); /* who believed L2 until now fills nothing */
    return status;
}
