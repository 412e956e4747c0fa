/*
 * See conditional.h.  A condition is judged by L2, in one step of its server with the write; a write of this process's brackets it in L1 as any
 * other (write.c).  Without L2, L1 is the judge, in one step.  No lock is held in an exchange.
 */
#include "conditional.h"

#include <stdlib.h>

#include "announce.h"
#include "codec.h"
#include "disk.h"
#include "generation.h"
#include "read.h"
#include "recovery.h"
#include "write.h"

static near_status
judge(const struct near__ask *ask, bool negative, struct near__vacancy *vacancy)
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
        /* what has no stamp cannot be replaced under it, and if it were removed, so might be whoever has won meanwhile */
        return ask->stamp != 0 ? NEAR_OK : NEAR_ERR_CONFLICT;
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
    return judge(&ask, negative, vacancy);
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

/* ---- near_put() with a condition */

struct putting {
    near_cache             *cache;
    near_bytes              key, value;
    const near_put_options *options;
    uint64_t                hash, stamp, generation;
    int64_t                 now, ttl, deadline;
    struct near__labels    *labels;
};

#define ROUNDS    8   /* against others, before it counts as lost to them */
#define L1_ROUNDS 100 /* the same in L1, where a round takes no time */

/* A version is a block of memory, which is not used again while it is held; or a loader's value, which L1 has a copy of. */
static bool
is_same_version(const near_value *a, const near_value *b, int64_t now)
{
    const void       *object = near_value_object(a);
    struct near__meta one, other;

    if (object != NULL || near_value_object(b) != NULL) {
        if (object == near_value_object(b))
            return true;
    } else if (near_value_bytes(a).data == near_value_bytes(b).data) {
        return true;
    }
    near__value_meta(a, now, &one);
    near__value_meta(b, now, &other);
    return one.stamp != 0 && one.stamp == other.stamp;
}

/* What L1 had no room for (disk.path) is there as well.  A disk that does not answer within disk.timeout has nothing. */
static bool
is_on_disk(const struct putting *putting, uint64_t fence)
{
    near_cache      *cache = putting->cache;
    struct near__ask ask = { .key = putting->key, .hash = putting->hash, .fence = fence }, *one = &ask;
    bool             found;

    if (!near__disk_may_answer(cache, putting->now))
        return false;
    found = near__disk_read(cache, &one, 1, putting->deadline) > 0;
    near__entry_release(&ask.entry);
    return found;
}

/* L1 is all there is, with its disk tier: the fence says whether what was looked at is still so.  NEAR_MISS: it is not, look again;
 * NEAR_ERR_BUSY: not, and perhaps only because a near_update() is under way. */
static near_status
put_once_in_l1(struct putting *putting, struct near__entry *entry)
{
    near_cache       *cache = putting->cache;
    struct near__l1  *l1    = cache->l1;
    const near_value *old   = putting->options->unchanged;
    uint64_t          fence = near__l1_fence(l1, putting->hash);
    struct near__hit  hit   = near__l1_look(cache, putting->hash, putting->key, putting->now);
    bool              holds;

    if (old == NULL) /* L1 first: what leaves it meanwhile is on the disk then */
        holds = hit.value != NULL ? hit.fresh_until <= putting->now : !is_on_disk(putting, fence);
    else
        holds = hit.value != NULL && is_same_version(hit.value, old, putting->now);
    near_value_release(hit.value);
    if (!holds)
        return NEAR_ERR_CONFLICT;
    if (near__l1_store_if(l1, entry, fence, putting->now) != NEAR__L1_FENCED)
        return NEAR_OK;
    return near__l1_fence_same(near__l1_fence(l1, putting->hash), fence) ? NEAR_ERR_BUSY : NEAR_MISS;
}

static near_status
put_in_l1(struct putting *putting, struct near__entry *entry)
{
    near_status status = NEAR_MISS;

    for (int round = 0; round < L1_ROUNDS && status == NEAR_MISS; round++)
        status = put_once_in_l1(putting, entry);
    return status == NEAR_MISS ? NEAR_ERR_BUSY : status;
}

/* Over nothing, or what is as good as nothing. */
static near_status
put_if_absent(struct putting *putting, near_bytes stored, int64_t ttl_ms)
{
    near_cache          *cache   = putting->cache;
    struct near__vacancy vacancy = { .empty = true };
    near_status status = near__vacancy_fill(cache, putting->key, &vacancy, stored, ttl_ms, putting->deadline);

    for (int round = 0; round < ROUNDS && status == NEAR_MISS; round++) {
        status = near__vacancy_find(cache, putting->key, putting->hash, &vacancy, putting->deadline);
        if (status == NEAR_OK)
            status = near__vacancy_fill(cache, putting->key, &vacancy, stored, ttl_ms, putting->deadline);
    }
    return status == NEAR_MISS ? NEAR_ERR_CONFLICT : status;
}

static near_status
put_if_unchanged(struct putting *putting, uint64_t generation, near_bytes stored, int64_t ttl_ms)
{
    struct near__vacancy vacancy = { .empty = false };
    struct near__meta    meta;
    near_status          status;

    near__value_meta(putting->options->unchanged, putting->now, &meta);
    vacancy.stamp = meta.stamp;
    if (meta.stamp == 0 || putting->cache->bare)
        return NEAR_ERR_UNSUPPORTED;
    if ((uint32_t)meta.generation != (uint32_t)generation) /* L1 keeps that half of it */
        return NEAR_ERR_CONFLICT;                          /* forgotten by a clear */
    status = near__vacancy_fill(putting->cache, putting->key, &vacancy, stored, ttl_ms, putting->deadline);
    return status == NEAR_MISS ? NEAR_ERR_CONFLICT : status;
}

static near_status
put_in_l2(struct putting *putting)
{
    near_cache         *cache = putting->cache;
    struct near__wire   wire;
    struct near__stored stored = {
        .key    = putting->key,
        .value  = putting->value,
        .stamp  = putting->stamp,
        .ttl    = putting->ttl,
        .labels = putting->labels,
    };
    struct near_l2_item *item;
    near_status          status = near__generation_for_write(cache, putting->deadline, &stored.generation);

    if (status == NEAR_OK && putting->labels != NULL)
        status = near__write_labels_prepare(cache, putting->labels, putting->deadline);
    if (status == NEAR_OK)
        status = near__wire_open(&wire, cache, 1, putting->key.size);
    if (status != NEAR_OK)
        return status == NEAR_ERR_TIMEOUT ? NEAR_ERR_UNAVAILABLE : status; /* nothing was written */
    putting->generation = stored.generation;
    item                = near__wire_add(&wire, cache, putting->key);
    if (!near__wire_make_room(&wire, near__tier_room(cache, putting->key, putting->value, putting->labels))) {
        near__wire_close(&wire);
        return NEAR_ERR_NOMEM;
    }
    near__tier_store(cache, &wire, item, &stored, near__wall_ms(&cache->client->clock));
    status = putting->options->unchanged != NULL
                 ? put_if_unchanged(putting, stored.generation, item->value, item->ttl_ms)
                 : put_if_absent(putting, item->value, item->ttl_ms);
    near__wire_close(&wire);
    if (status == NEAR_OK)
        status = near__announce_key(cache, putting->key, putting->deadline);
    if (status != NEAR_OK && status != NEAR_ERR_CONFLICT && status != NEAR_ERR_UNSUPPORTED)
        near__recovery_keep(cache, putting->key, putting->hash); /* it may lie there */
    return status;
}

static near_status
put(struct putting *putting)
{
    near_cache           *cache = putting->cache;
    struct near__entry   *entry = near__write_entry(cache, putting->key, putting->hash, putting->value,
                                                    putting->now, putting->ttl, putting->labels);
    bool                  keep  = !(putting->options->flags & NEAR_NO_FILL);
    struct near__l1_write token;
    near_status           status = entry != NULL ? near__decode(cache, entry) : NEAR_ERR_NOMEM;

    if (status != NEAR_OK) {
        near__entry_release(&entry);
        return status;
    }
    entry->pool = (uint8_t)putting->options->pool;
    if (cache->client->ops == NULL) {
        status = put_in_l1(putting, entry);
        if (status == NEAR_OK)
            status = near__announce_key(cache, putting->key, putting->deadline);
    } else {
        entry->stamp      = putting->stamp;
        token             = near__l1_write_begin(cache->l1, putting->hash, putting->key);
        status            = put_in_l2(putting);
        entry->generation = putting->generation;
        near__l1_write_end(cache->l1, token, putting->hash, putting->key,
                           status == NEAR_OK && keep ? entry : NULL, putting->now);
    }
    near__entry_release(&entry);
    return status;
}

near_status
near__put_conditional(near_cache *cache, near_bytes key, near_bytes value, const near_put_options *options)
{
    near_status    status = near__cache_check(cache);
    struct putting putting;

    if (status == NEAR_OK)
        status = near__tier_key_check(cache, key);
    if (status != NEAR_OK)
        return status;
    if ((value.data == NULL && value.size != 0) ||
        (options->unchanged != NULL && (options->flags & NEAR_IF_ABSENT)))
        return NEAR_ERR_INVALID;
    if (value.size > cache->settings.l2_max_value)
        return NEAR_ERR_TOO_LARGE;
    putting = (struct putting){
        .cache   = cache,
        .key     = key,
        .value   = value,
        .options = options,
        .hash    = near__hash_keyed(&cache->client->secret, key),
        .stamp   = near__stamp(cache->client),
        .now     = near__client_now(cache->client),
        .ttl     = near__duration(options->ttl_ms, cache->settings.ttl),
    };
    putting.deadline = near__time_after(
        putting.now, near__duration(options->timeout_ms, cache->client->settings.l2_timeout));
    status = near__write_labels(cache, options, &putting.labels);
    if (status != NEAR_OK)
        return status;
    near__count(cache, NEAR__puts, 1);
    status = put(&putting);
    near__count(cache, NEAR__write_failures, status != NEAR_OK);
    free(putting.labels);
    return status;
}
