/*
 * near_get and its family: L1, then L2, never the loader.
 *
 * No lock is held here.  The fence of each key that L1 lacks is captured before L2 is asked; what L2 gave is offered to L1 with it.
 */
#include "read.h"

#include "audit.h"
#include "back.h"
#include "codec.h"
#include "disk.h"
#include "early.h"
#include "requests.h"
#include "share.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash_keyed.h"
#include "l1/find.h"

enum near__gate
near__cache_gate(const near_cache *cache, int64_t now)
{
    const near_client *client = cache->client;

    /* the coarse time may be late by a step */
    if (client->coherence == NULL || now + client->coarse_step < near__coherence_gate(client->coherence))
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
    int64_t now = near__client_hit_time(cache);

    return (struct near__view){ now, near__cache_gate(cache, now), flags };
}

void
near__view_exact(const near_cache *cache, struct near__view *view)
{
    view->now = near__client_now_exact(cache->client);
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

/* L1 has counted a hit that the caller does not answer with. */
void
near__hit_back(near_cache *cache)
{
    near__count(cache, NEAR__requests, (uint64_t)-1);
    near__count(cache, NEAR__hits_l1, (uint64_t)-1);
    near__l1_unused(cache->l1);
}

struct near__hit
near__l1_look(near_cache *cache, uint64_t hash, near_bytes key, int64_t now)
{
    near_value       *value = near__l1_find(cache->l1, hash, key, now);
    struct near__meta meta;

    if (value == NULL)
        return (struct near__hit){ .value = NULL };
    if (value == NEAR__L1_NEGATIVE)
        return (struct near__hit){
            .value = NULL, .negative = true, .fresh_until = NEAR_NEVER, .expires = NEAR_NEVER
        };
    near__hit_back(cache);
    near__value_meta(value, now, &meta);
    return (struct near__hit){
        .value       = near__value_fresh_bits(value),
        .fresh_until = meta.fresh_until,
        .expires     = meta.expires,
        .cost_us     = meta.cost_us,
    };
}

/* What L1 had is an answer of this kind. */
static near_status
take_hit(near_cache *cache, const struct near__view *view, near_value *hit, near_value **value)
{
    if (NEAR__UNLIKELY(hit == NEAR__L1_NEGATIVE)) {
        near__count(cache, NEAR__requests, 1);
        near__count(cache, NEAR__negative_hits, 1);
        return NEAR_NOT_FOUND;
    }
    if (NEAR__UNLIKELY(view->gate == NEAR__GATE_STALE)) {
        near__count(cache, NEAR__stale_served, 1);
        hit = near__value_as_stale(hit);
    }
    *value = hit;
    return NEAR_OK;
}

/* What L1 has answered with, as fresh; NULL and what is no value are not looked at. */
static void
audit(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key, near_value *hit)
{
    if ((uintptr_t)hit > NEAR__VALUE_BITS && view->gate == NEAR__GATE_OPEN)
        near__audit_hit(cache, hash, key, hit);
}

/* Hits are counted by L1; everything else that was asked, here. */
static bool
not_asked(near_cache *cache, const struct near__view *view, near_status *status)
{
    if (view->gate == NEAR__GATE_FAIL) {
        near__count(cache, NEAR__requests, 1);
        near__count(cache, NEAR__gate_closed_reads, 1);
        *status = NEAR_ERR_UNAVAILABLE;
        return true;
    }
    if (!(view->flags & NEAR_SKIP_L1))
        near__count(cache, NEAR__gate_closed_reads, 1);
    near__count(cache, NEAR__requests, 1);
    return false;
}

static inline bool
asks_l1(const struct near__view *view)
{
    return !(view->flags & NEAR_SKIP_L1) && (view->gate == NEAR__GATE_OPEN || view->gate == NEAR__GATE_STALE);
}

/* Not what is past its time: that is something to fall back on, and fetch looks for it itself.  Nor, while the gate makes everything
 * stale, an absence, which carries no flag that says how old it is. */
static inline bool
usable(near_cache *cache, const struct near__view *view, near_value *hit)
{
    if (NEAR__LIKELY((uintptr_t)hit > NEAR__VALUE_BITS && !((uintptr_t)hit & NEAR__VALUE_STALE)))
        return true;
    if ((uintptr_t)hit <= NEAR__VALUE_BITS)
        return hit != NULL && view->gate == NEAR__GATE_OPEN;
    near__value_release(hit);
    near__hit_back(cache);
    return false;
}

static bool
l1_answers(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key,
           near_value **value, near_status *status, int64_t *lead)
{
    near_value *hit;

    if (near__back_answers(cache, hash, key, value, status))
        return true;
    if (__builtin_expect(!asks_l1(view), 0))
        return not_asked(cache, view, status);
    hit = near__l1_hit((struct near__l1_front *)cache->l1, hash, key, view->now);
    if (!usable(cache, view, hit)) {
        near__count(cache, NEAR__requests, 1);
        near__hot_miss(cache, hash, key);
        return false;
    }
    *status = take_hit(cache, view, hit, value);
    if (NEAR__UNLIKELY(cache->client->audit != NULL))
        audit(cache, view, hash, key, hit);
    if (lead != NULL && cache->early_reach != 0 && *status == NEAR_OK && view->gate == NEAR__GATE_OPEN) {
        struct near__meta meta;

        near__value_meta(hit, view->now, &meta);
        if (near__early_may(cache, view->now, meta.fresh_until, meta.cost_us))
            *lead = near__early_lead(cache, view->now, meta.fresh_until, meta.cost_us);
    }
    return true;
}

bool
near__l1_answers(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key,
                 near_value **value, near_status *status, int64_t *lead)
{
    bool answers = l1_answers(cache, view, hash, key, value, status, lead);

    if (NEAR__UNLIKELY(cache->requests != NULL))
        near__requests_note(cache, key, answers && *status == NEAR_OK ? *value : NULL);
    return answers;
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

/* near__tier_key_check(), without a call where every key is good that near__key_check() takes. */
static inline near_status
key_check(const near_cache *cache, near_bytes key)
{
    return NEAR__UNLIKELY(cache->bare) ? near__tier_key_check(cache, key) : near__key_check(key);
}

near_status
near__batch_check(const near_cache *cache, const near_bytes *keys, size_t n, near_value **values,
                  near_status *statuses)
{
    near_status status = near__cache_check(cache);

    if (n > 0 && (keys == NULL || statuses == NULL))
        status = NEAR_ERR_INVALID;
    for (size_t i = 0; values != NULL && i < n; i++)
        values[i] = NULL;
    for (size_t i = 0; statuses != NULL && i < n; i++) {
        near_status one = status != NEAR_OK ? status : key_check(cache, keys[i]);

        statuses[i] = one != NEAR_OK ? one : NEAR_MISS;
    }
    return status;
}

/* ---- the part below L1 */

static int64_t
l2_deadline(const near_cache *cache, int64_t now, int64_t timeout_ms)
{
    return near__time_after(now, near__duration(timeout_ms, cache->client->settings.l2_timeout));
}

/* What an ask's answer is worth to near_get.  What another thread has read it has offered to L1, too. */
static near_status
settle(near_cache *cache, const struct near__view *view, struct near__ask *ask, bool joined,
       near_value **value)
{
    if (ask->found == NEAR__FOUND) {
        if (ask->disk) {
            near__disk_take(cache, ask, !(view->flags & NEAR_NO_FILL), view->now);
            return near__hand_out(ask->entry, NEAR_FROM_L1, value);
        }
        if (!(view->flags & NEAR_NO_FILL) && !joined && !ask->counter)
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

/* For what L1 might have answered: not for who asks past it, or it alone. */
static inline bool
asks_disk(const near_cache *cache, const struct near__view *view)
{
    return NEAR__UNLIKELY(cache->disk != NULL) && !(view->flags & (NEAR_SKIP_L1 | NEAR_ONLY_L1)) &&
           near__disk_may_answer(cache, view->now);
}

static __attribute__((noinline)) near_status
get_below(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key, int64_t timeout_ms,
          near_value **value)
{
    struct near__ask    ask = { .key = key, .hash = hash };
    struct near__ask   *one = &ask;
    struct near__shared shared;
    int64_t             deadline;
    uint64_t            generation;
    bool                shares, joined;

    if (cache->disk == NULL && (cache->client->ops == NULL || (view->flags & NEAR_ONLY_L1))) {
        near__count(cache, NEAR__misses, 1);
        return NEAR_MISS;
    }
    ask.fence       = near__l1_fence(cache->l1, hash);
    ask.label_clock = near__l1_label_clock(cache->l1);
    deadline        = l2_deadline(cache, view->now, timeout_ms);
    if (asks_disk(cache, view) && near__disk_read(cache, &one, 1, deadline) > 0)
        return settle(cache, view, &ask, false, value);
    if (cache->client->ops == NULL || (view->flags & NEAR_ONLY_L1)) {
        near__count(cache, NEAR__misses, 1);
        return NEAR_MISS;
    }
    shares = !(view->flags & NEAR_SKIP_L1);
    joined = shares && near__share_begin(cache, &shared, &ask, view->now, deadline);
    if (!joined || !near__share_wait(cache, &shared, &ask)) {
        near__tier_read(cache, &one, 1, view->now, deadline, &generation);
        near__decode_asks(cache, &one, 1, false);
        if (shares && !joined)
            near__share_end(cache, &shared);
        joined = false;
    }
    return settle(cache, view, &ask, joined, value);
}

/* A key that takes no part in a rollout, or a dry run: a miss, but for a change of ours that the store does not have yet.  Counted. */
static bool
hidden(near_cache *cache, near_bytes key, near_value **value, near_status *status)
{
    *status = NEAR_MISS;
    if (!near__rollout_hides(cache->rollout, key))
        return false;
    if (cache->back != NULL &&
        near__back_answers(cache, near__hash_keyed(&cache->client->secret, key), key, value, status))
        return true;
    near__count(cache, NEAR__requests, 1);
    near__count(cache, NEAR__misses, 1);
    near__count(cache, NEAR__rollout_outside, !near__rollout_is_dry(cache->rollout));
    return true;
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
        status = near__tier_key_check(cache, key);
    if (status != NEAR_OK)
        return status;
    if (NEAR__UNLIKELY(cache->rollout != NULL) && hidden(cache, key, value, &status))
        return status;
    view = near__view_of(cache, flags);
    hash = near__hash_keyed(&cache->client->secret, key);
    if (near__l1_answers(cache, &view, hash, key, value, &status, NULL))
        return status;
    near__view_exact(cache, &view);
    return get_below(cache, &view, hash, key, timeout_ms, value);
}

/* The client is open, the key plausible, the gate open or not needed. */
static inline bool
plain_view(const near_cache *cache, near_bytes key, int64_t *now)
{
    const near_client *client;

    if (NEAR__UNLIKELY(cache == NULL || key.data == NULL || key.size > NEAR__KEY_MAX))
        return false;
    client = cache->client;
    if (NEAR__UNLIKELY(atomic_load_explicit(cache->shortest.plain, memory_order_relaxed) == 0))
        return false;
    if (client->coherence == NULL) {
        *now = near__client_hit_time_alone(cache);
        return true;
    }
    *now = near__client_now_coarse(client);
    return near__cache_gate(cache, *now) == NEAR__GATE_OPEN;
}

/* What L1 has, if it is a fresh value; NULL stands for something past its time, too, which is as good as absent here. */
static inline near_value *
fresh(near_cache *cache, near_value **hit)
{
    if (NEAR__LIKELY((uintptr_t)*hit > NEAR__VALUE_BITS && !((uintptr_t)*hit & NEAR__VALUE_STALE)))
        return *hit;
    if ((uintptr_t)*hit > NEAR__VALUE_BITS) {
        near__value_release(*hit);
        near__hit_back(cache);
        *hit = NULL;
    }
    return NULL;
}

/* A fresh value out of L1 while everything is plain.  NULL: see *hit and *hash; 0 says that L1 was not asked. */
static inline __attribute__((always_inline)) near_value *
get_plain(near_cache *cache, near_bytes key, near_value **hit, uint64_t *hash)
{
    int64_t now;

    *hash = 0;
    if (NEAR__UNLIKELY(!plain_view(cache, key, &now)))
        return NULL;
    *hash = near__hash_keyed_inline(&cache->client->secret, key);
    if (NEAR__UNLIKELY(near__back_may(cache, *hash))) {
        *hash = 0; /* not plain */
        return NULL;
    }
    *hit = near__l1_hit((struct near__l1_front *)cache->l1, *hash, key, now);
    return fresh(cache, hit);
}

near_value *
near__get_plain(near_cache *cache, near_bytes key)
{
    near_value *hit;
    uint64_t    hash;

    return get_plain(cache, key, &hit, &hash);
}

/* L1 was asked and has no value. */
static near_status
get_absent(near_cache *cache, near_bytes key, near_value *hit, uint64_t hash, near_value **value)
{
    struct near__view view = { .gate = NEAR__GATE_OPEN };

    *value = NULL;
    if (hit == NEAR__L1_NEGATIVE)
        return take_hit(cache, &view, hit, value);
    near__count(cache, NEAR__requests, 1);
    near__hot_miss(cache, hash, key);
    if (cache->bare && near__tier_key_check(cache, key) != NEAR_OK)
        return NEAR_ERR_INVALID;
    if (cache->client->ops != NULL || cache->disk != NULL)
        near__view_exact(cache, &view);
    return get_below(cache, &view, hash, key, -1, value);
}

/* near_get() but for the shortest path. */
static __attribute__((noinline)) near_status
get_any(near_cache *cache, near_bytes key, near_value **value)
{
    near_value *hit, *found;
    uint64_t    hash;

    if (NEAR__UNLIKELY(value == NULL))
        return NEAR_ERR_INVALID;
    found = get_plain(cache, key, &hit, &hash);
    if (NEAR__LIKELY(found != NULL)) {
        *value = found;
        return NEAR_OK;
    }
    if (hash != 0)
        return get_absent(cache, key, hit, hash, value);
    return get_one(cache, key, 0, -1, value);
}

/* The shortest path has come to the hash, and L1 must be looked at more closely. */
static __attribute__((noinline)) near_status
get_closely(near_cache *cache, near_bytes key, near_value **value, uint64_t hash)
{
    near_value *hit;

    if (NEAR__LIKELY(near__l1_lacks(&cache->shortest.path, hash)))
        return get_absent(cache, key, NULL, hash, value);
    hit    = near__l1_find(cache->l1, hash, key, near__client_hit_time_alone(cache));
    *value = fresh(cache, &hit);
    return NEAR__LIKELY(*value != NULL) ? NEAR_OK : get_absent(cache, key, hit, hash, value);
}

/* The same, and what was found is past its time. */
static __attribute__((noinline)) near_status
get_stale(near_cache *cache, near_bytes key, near_value *stale, near_value **value)
{
    near__value_release(stale);
    near__hit_back(cache);
    return get_any(cache, key, value);
}

void
near__read_open(near_cache *cache)
{
    static const _Atomic uint32_t never;
    near_client                  *client = cache->client;
    struct near__l1_front        *front  = (struct near__l1_front *)cache->l1;
    const _Atomic uint32_t       *plain =
        cache->requests != NULL || cache->rollout != NULL ? &never : client->plain;
    bool simple = front->fast && cache->back == NULL;

    cache->shortest = (struct near__shortest){
        .path   = front->path,
        .quick  = simple && client->coherence == NULL ? plain : &never,
        .plain  = plain,
        .secret = client->secret,
        .front  = front,
    };
    if (!simple || client->coherence == NULL)
        return;
    cache->shortest.guarded     = front;
    cache->shortest.gate        = near__coherence_gate_at(client->coherence);
    cache->shortest.boot_offset = &client->boot_offset;
    cache->shortest.coarse_step = client->coarse_step;
}

/* The short path of a hit behind a gate: beside the shortest, below, a look at the clock.  What has neither goes on from here. */
static __attribute__((noinline, flatten)) near_status
get_guarded(near_cache *cache, near_bytes key, near_value **value)
{
    const struct near__shortest *shortest = &cache->shortest;
    struct near__l1_time         time     = { .is_told = false };
    struct near__l1_held         held;
    uint64_t                     hash;

    if (NEAR__UNLIKELY(shortest->guarded == NULL || key.size > NEAR__KEY_MAX))
        return get_any(cache, key, value);
    time.now = near__now_coarse(shortest->boot_offset);
    /* relaxed: as in plain_view(); acquire: as in near__coherence_gate().  The coarse time may be late by a step */
    if (NEAR__UNLIKELY(atomic_load_explicit(shortest->plain, memory_order_relaxed) == 0 ||
                       time.now + shortest->coarse_step >=
                           atomic_load_explicit(shortest->gate, memory_order_acquire)))
        return get_any(cache, key, value);
    hash = near__hash_keyed_inline(&shortest->secret, key);
    if (NEAR__UNLIKELY(!near__l1_meet(&shortest->path, shortest->guarded, hash, key, time, &held)))
        return get_any(cache, key, value);
    if (NEAR__UNLIKELY((uintptr_t)held.value & NEAR__VALUE_STALE))
        return get_stale(cache, key, held.value, value);
    *value = held.value;
    if (NEAR__UNLIKELY(held.more))
        return near__l1_after(shortest->guarded, held.mark, hash, key);
    return NEAR_OK;
}

/*
 * The shortest path of a hit.  A function that consists of it calls nothing but at its end, where whatever is not simple goes, so
 * it keeps nothing over a call.  `least` and `most`: sizes of keys, so that what they need to be hashed and compared is known without
 * a branch.
 */
static inline __attribute__((always_inline)) near_status
get_shortest(near_cache *cache, near_bytes key, size_t least, size_t most, near_value **value)
{
    const struct near__l1_time   told = { .is_told = true };
    const struct near__shortest *shortest;
    struct near__l1_held         held;
    uint64_t                     hash;

    if (NEAR__UNLIKELY(cache == NULL))
        return get_any(cache, key, value);
    if (NEAR__UNLIKELY(value == NULL))
        return get_any(cache, key, value);
    if (NEAR__UNLIKELY(key.data == NULL))
        return get_any(cache, key, value);
    shortest = &cache->shortest;
    /* relaxed: as in plain_view() */
    if (NEAR__UNLIKELY(atomic_load_explicit(shortest->quick, memory_order_relaxed) == 0))
        return get_guarded(cache, key, value);
    hash = near__hash_between(&shortest->secret, key, least, most);
    if (NEAR__UNLIKELY(!near__l1_meet(&shortest->path, NULL, hash, key, told, &held)))
        return get_closely(cache, key, value, hash);
    *value = held.value;
    if (NEAR__UNLIKELY(held.more))
        return near__l1_after(shortest->front, held.mark, hash, key);
    return NEAR_OK;
}

static __attribute__((noinline, flatten)) near_status
get_by_small_key(near_cache *cache, near_bytes key, near_value **value)
{
    if (NEAR__LIKELY(key.size - 9 <= 7))
        return get_shortest(cache, key, 9, 16, value);
    return get_any(cache, key, value);
}

near_status __attribute__((flatten)) near_get(near_cache *cache, near_bytes key, near_value **value)
{
    if (NEAR__LIKELY(key.size - 17 <= 15))
        return get_shortest(cache, key, 17, 32, value);
    return get_by_small_key(cache, key, value);
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
    if (near__value_object(value) != NULL && !(cache->decoder.codec.flags & NEAR_KEEP_BYTES))
        status = NEAR_ERR_UNSUPPORTED;
    else if (bytes.size > capacity)
        status = NEAR_ERR_TOO_LARGE;
    else if (bytes.size > 0)
        memcpy(buffer, bytes.data, bytes.size);
    near_value_release(value);
    return status;
}

/* ---- batches */

/* The asks of a batch for what L1 lacked, and which key each belongs to. */
struct missing {
    struct near__ask    *asks;
    struct near__shared *shared;
    struct near__ask   **pointers; /* of those to be asked for */
    size_t              *index;
    size_t               n;
};

static bool
missing_open(struct missing *missing, size_t n)
{
    char *block = malloc(n * (sizeof(struct near__ask) + sizeof(struct near__shared) +
                              sizeof(struct near__ask *) + sizeof(size_t)));

    if (block == NULL)
        return false;
    missing->asks     = (struct near__ask *)block;
    missing->shared   = (struct near__shared *)(missing->asks + n);
    missing->pointers = (struct near__ask **)(missing->shared + n);
    missing->index    = (size_t *)(missing->pointers + n);
    missing->n        = 0;
    return true;
}

/* Lead or join for each; what is to be asked for is in `pointers`.  Returns how many. */
static size_t
begin_all(near_cache *cache, const struct near__view *view, struct missing *missing, int64_t deadline)
{
    bool   shares = !(view->flags & NEAR_SKIP_L1);
    size_t leads  = 0;

    for (size_t i = 0; i < missing->n; i++)
        if (!shares) {
            missing->shared[i]         = (struct near__shared){ .ask = &missing->asks[i] };
            missing->pointers[leads++] = &missing->asks[i];
        } else if (!near__share_begin(cache, &missing->shared[i], &missing->asks[i], view->now, deadline))
            missing->pointers[leads++] = &missing->asks[i];
    return leads;
}

/* What the disk tier can answer; the others stay, closed up. */
static void
get_from_disk(near_cache *cache, const struct near__view *view, struct missing *missing, near_value **values,
              near_status *statuses, int64_t deadline)
{
    size_t left = 0;

    for (size_t i = 0; i < missing->n; i++)
        missing->pointers[i] = &missing->asks[i];
    if (near__disk_read(cache, missing->pointers, missing->n, deadline) == 0)
        return;
    for (size_t i = 0; i < missing->n; i++) {
        size_t at = missing->index[i];

        if (missing->asks[i].disk) {
            statuses[at] = settle(cache, view, &missing->asks[i], false, &values[at]);
        } else {
            missing->asks[left]    = missing->asks[i];
            missing->index[left++] = at;
        }
    }
    missing->n = left;
}

static void
get_missing(near_cache *cache, const struct near__view *view, struct missing *missing, int64_t timeout_ms,
            near_value **values, near_status *statuses)
{
    int64_t  deadline = l2_deadline(cache, view->now, timeout_ms);
    size_t   alone    = 0; /* to be asked for after all */
    size_t   leads;
    uint64_t generation;

    if (asks_disk(cache, view))
        get_from_disk(cache, view, missing, values, statuses, deadline);
    if (cache->client->ops == NULL) {
        near__count(cache, NEAR__misses, missing->n);
        return;
    }
    leads = begin_all(cache, view, missing, deadline);
    if (leads > 0)
        near__tier_read(cache, missing->pointers, leads, view->now, deadline, &generation);
    near__decode_asks(cache, missing->pointers, leads, false);
    for (size_t i = 0; i < missing->n; i++)
        near__share_end(cache, &missing->shared[i]);
    /* only now: who waits for us does not wait for what we wait for */
    for (size_t i = 0; leads < missing->n && i < missing->n; i++)
        if (missing->shared[i].leader != NULL &&
            !near__share_wait(cache, &missing->shared[i], &missing->asks[i])) {
            missing->shared[i].leader  = NULL;
            missing->pointers[alone++] = &missing->asks[i];
        }
    if (alone > 0)
        near__tier_read(cache, missing->pointers, alone, near__client_now(cache->client), deadline,
                        &generation);
    near__decode_asks(cache, missing->pointers, alone, false);
    for (size_t i = 0; i < missing->n; i++) {
        size_t at = missing->index[i];

        statuses[at] = settle(cache, view, &missing->asks[i], missing->shared[i].leader != NULL, &values[at]);
    }
}

/* One key of the batch that L1 lacks: to be asked of L2, if there is one. */
static near_status
add_missing(near_cache *cache, unsigned flags, struct missing *missing, size_t index, size_t left,
            near_bytes key, uint64_t hash)
{
    if ((flags & NEAR_ONLY_L1) || (cache->client->ops == NULL && cache->disk == NULL)) {
        near__count(cache, NEAR__misses, 1);
        return NEAR_MISS;
    }
    if (missing->asks == NULL && !missing_open(missing, left))
        return NEAR_ERR_NOMEM;
    missing->asks[missing->n]    = (struct near__ask){ .key         = key,
                                                       .hash        = hash,
                                                       .fence       = near__l1_fence(cache->l1, hash),
                                                       .label_clock = near__l1_label_clock(cache->l1) };
    missing->index[missing->n++] = index;
    return NEAR_MISS;
}

/* Of a cache that writes back: key by key, what is dirty first. */
static void
answer_dirty_group(near_cache *cache, const struct near__view *view, const near_bytes *keys, size_t n,
                   uint64_t *hashes, near_value **values, near_status *statuses)
{
    for (size_t i = 0; i < n; i++) {
        if (statuses[i] < 0)
            continue;
        hashes[i] = near__hash_keyed_inline(&cache->client->secret, keys[i]);
        near__l1_answers(cache, view, hashes[i], keys[i], &values[i], &statuses[i], NULL);
    }
}

/* The hashes of a batch's keys; those of 17 to 32 bytes without a call. */
static __attribute__((flatten)) void
hash_group(const struct near__secret *secret, const near_bytes *keys, size_t n, uint64_t *hashes)
{
    for (size_t i = 0; i < n; i++)
        hashes[i] = NEAR__LIKELY(keys[i].size - 17 <= 15) ? near__hash_between(secret, keys[i], 17, 32)
                                                          : near__hash_keyed_inline(secret, keys[i]);
}

/* The keys of a group, the refused ones empty: in `room` if there are any. */
static const near_bytes *
sound_keys(const near_bytes *keys, size_t n, const near_status *statuses, near_bytes room[NEAR__GROUP])
{
    size_t refused = 0;

    for (size_t i = 0; i < n; i++)
        refused += statuses[i] < 0;
    if (NEAR__LIKELY(refused == 0))
        return keys;
    for (size_t i = 0; i < n; i++)
        room[i] = statuses[i] < 0 ? (near_bytes){ NULL, 0 } : keys[i];
    return room;
}

/* One that L1 does not simply answer with a fresh value.  Whether it answers. */
static __attribute__((noinline)) bool
answer_other(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key,
             near_value **value, near_status *status)
{
    near_value *hit = *value;

    *value = NULL;
    if (*status < 0 && (uintptr_t)hit > NEAR__VALUE_BITS) { /* somebody has an empty key */
        near__value_release(hit);
        near__hit_back(cache);
        hit = NULL;
    }
    if (*status >= 0 && usable(cache, view, hit)) {
        *status = take_hit(cache, view, hit, value);
        return true;
    }
    near__hot_miss(cache, hash, key);
    return false;
}

void
near__l1_answer_group(near_cache *cache, const struct near__view *view, const near_bytes *keys, size_t n,
                      uint64_t *hashes, near_value **values, near_status *statuses)
{
    near_bytes        room[NEAR__GROUP];
    const near_bytes *sound;
    size_t            other = 0;

    if (NEAR__UNLIKELY(cache->back != NULL)) {
        answer_dirty_group(cache, view, keys, n, hashes, values, statuses);
        return;
    }
    sound = sound_keys(keys, n, statuses, room);
    hash_group(&cache->client->secret, sound, n, hashes);
    if (__builtin_expect(!asks_l1(view), 0)) {
        for (size_t i = 0; i < n; i++)
            if (statuses[i] >= 0)
                not_asked(cache, view, &statuses[i]);
        return;
    }
    near__l1_find_many(cache->l1, hashes, sound, n, view->now, values);
    for (size_t i = 0; i < n; i++) {
        uintptr_t hit = (uintptr_t)values[i];

        if (NEAR__LIKELY(hit > NEAR__VALUE_BITS && !(hit & NEAR__VALUE_STALE) && statuses[i] >= 0 &&
                         view->gate == NEAR__GATE_OPEN))
            statuses[i] = NEAR_OK;
        else
            other += !answer_other(cache, view, hashes[i], sound[i], &values[i], &statuses[i]);
    }
    if (other > 0)
        near__count(cache, NEAR__requests, other);
    if (NEAR__UNLIKELY(cache->client->audit != NULL))
        for (size_t i = 0; i < n; i++)
            audit(cache, view, hashes[i], keys[i], values[i]);
    for (size_t i = 0; NEAR__UNLIKELY(cache->requests != NULL) && i < n; i++)
        if (statuses[i] >= 0)
            near__requests_note(cache, keys[i], statuses[i] == NEAR_OK ? values[i] : NULL);
}

/* Of a cache that is being rolled out: those that take part, as a batch of their own. */
static near_status
get_each(near_cache *cache, unsigned flags, const near_bytes *keys, size_t n, int64_t timeout_ms,
         near_value **values, near_status *statuses)
{
    struct missing    missing = { 0 };
    struct near__view view    = near__view_of(cache, flags);

    for (size_t i = 0; i < n; i++) {
        uint64_t hash;

        if (statuses[i] < 0 || hidden(cache, keys[i], &values[i], &statuses[i]))
            continue;
        hash = near__hash_keyed(&cache->client->secret, keys[i]);
        if (!near__l1_answers(cache, &view, hash, keys[i], &values[i], &statuses[i], NULL))
            statuses[i] = add_missing(cache, flags, &missing, i, n - i, keys[i], hash);
    }
    if (missing.n > 0) {
        near__view_exact(cache, &view);
        get_missing(cache, &view, &missing, timeout_ms, values, statuses);
    }
    free(missing.asks);
    return near__first_error(statuses, n);
}

near_status
near__get_many(near_cache *cache, const near_bytes *keys, size_t n, unsigned flags, int64_t timeout_ms,
               near_value **values, near_status *statuses)
{
    struct missing    missing = { 0 };
    struct near__view view;
    uint64_t          hashes[NEAR__GROUP];
    near_status       status = near__batch_check(cache, keys, n, values, statuses);

    if (status == NEAR_OK && n > 0 && values == NULL)
        status = near__refuse_all(statuses, n, NEAR_ERR_INVALID);
    if (status != NEAR_OK || n == 0)
        return status;
    if (NEAR__UNLIKELY(cache->rollout != NULL))
        return get_each(cache, flags, keys, n, timeout_ms, values, statuses);
    view = near__view_of(cache, flags);
    for (size_t at = 0; at < n; at += NEAR__GROUP) {
        size_t group = n - at < NEAR__GROUP ? n - at : NEAR__GROUP;

        near__l1_answer_group(cache, &view, keys + at, group, hashes, values + at, statuses + at);
        for (size_t i = at; i < at + group; i++)
            if (__builtin_expect(statuses[i] == NEAR_MISS, 0))
                statuses[i] = add_missing(cache, flags, &missing, i, n - i, keys[i], hashes[i - at]);
    }
    if (missing.n > 0) {
        near__view_exact(cache, &view);
        get_missing(cache, &view, &missing, timeout_ms, values, statuses);
    }
    free(missing.asks);
    return near__first_error(statuses, n);
}

near_status
near_get_many(near_cache *cache, const near_bytes *keys, size_t n, near_value **values, near_status *statuses)
{
    return near__get_many(cache, keys, n, 0, -1, values, statuses);
}
