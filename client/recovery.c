/* Invalidations that are owed.  See recovery.h. */
#include "recovery.h"

#include "client.h"
#include "generation.h"
#include "intent.h"
#include "prefix.h"
#include "tags.h"
#include "write.h"

#include <stdlib.h>
#include <string.h>

#define BACK_OFF_MIN (10 * NEAR_MS)
#define BACK_OFF_MAX                                                                                         \
    (250 *                                                                                                   \
     NEAR_MS) /* readers of owed keys are refused until then: a server is to be back for all within a second */
#define PART        256             /* keys paid at a time */
#define WIDE_MAX    64              /* tags and prefixes owed: each read of L2 looks at all of them */
#define CLOSE_TRIES (500 * NEAR_MS) /* of a close: who is down for longer is not waited for */

enum kind { KEY, TAG, PREFIX };

struct near__owed {
    struct near__owed *chain, *next; /* of keys; tags and prefixes have `next` only */
    near_cache        *cache;        /* a reference */
    enum kind          kind;
    uint64_t           hash;
    uint64_t           kept; /* recovery's count when it was kept last */
    size_t             size;
    char               key[];
};

static near_bytes
key_of(const struct near__owed *owed)
{
    return (near_bytes){ owed->key, owed->size };
}

static struct near__owed **
find_locked(struct near__recovery *r, const near_cache *cache, near_bytes key, uint64_t hash)
    NEAR__NEEDS(r->lock)
{
    struct near__owed **at = &r->buckets[hash % NEAR__OWED_BUCKETS];

    while (*at != NULL &&
           ((*at)->hash != hash || (*at)->cache != cache || !near__bytes_equal(key_of(*at), key)))
        at = &(*at)->chain;
    return at;
}

static void
count_pending_locked(struct near__recovery *r, ptrdiff_t by) NEAR__NEEDS(r->lock)
{
    /* release: pairs with the acquire in near__recovery_owes() */
    atomic_fetch_add_explicit(&r->pending, (size_t)by, memory_order_release);
}

static size_t
pending(struct near__recovery *r)
{
    return atomic_load_explicit(&r->pending, memory_order_acquire);
}

static bool
begins(near_bytes key, near_bytes prefix)
{
    return key.size >= prefix.size && (prefix.size == 0 || memcmp(key.data, prefix.data, prefix.size) == 0);
}

static struct near__owed **
find_wide_locked(struct near__recovery *r, const near_cache *cache, enum kind kind, near_bytes name)
    NEAR__NEEDS(r->lock)
{
    struct near__owed **at = &r->wide;

    while (*at != NULL &&
           ((*at)->cache != cache || (*at)->kind != kind || !near__bytes_equal(key_of(*at), name)))
        at = &(*at)->next;
    return at;
}

static bool
owes_prefix_of_locked(const struct near__recovery *r, const near_cache *cache, near_bytes key)
    NEAR__NEEDS(r->lock)
{
    const struct near__owed *owed = r->wide;

    while (owed != NULL && (owed->cache != cache || owed->kind != PREFIX || !begins(key, key_of(owed))))
        owed = owed->next;
    return owed != NULL;
}

bool
near__recovery_owes_tag(near_cache *cache, near_bytes tag)
{
    struct near__recovery *r = &cache->client->recovery;
    bool                   owes;

    if (pending(r) == 0)
        return false;
    near__lock(&r->lock);
    owes = *find_wide_locked(r, cache, TAG, tag) != NULL;
    near__unlock(&r->lock);
    return owes;
}

bool
near__recovery_owes(near_cache *cache, near_bytes key, uint64_t hash)
{
    struct near__recovery *r = &cache->client->recovery;
    bool                   owes;

    if (pending(r) == 0)
        return false;
    near__lock(&r->lock);
    owes = cache->owes_clear != 0 || *find_locked(r, cache, key, hash) != NULL ||
           owes_prefix_of_locked(r, cache, key);
    near__unlock(&r->lock);
    return owes;
}

/* ---- keeping */

static void
arm(near_client *client)
{
    struct near__recovery *r = &client->recovery;

    near__timer_arm_by(&client->scheduler, &r->timer,
                       near__time_after(near__client_now(client), BACK_OFF_MIN));
}

/* Of a new outage, said once; of the same one, not again. */
static void
kept(near_cache *cache, size_t before)
{
    if (before == 0)
        near__log(&cache->client->log, NEAR_LOG_WARN,
                  "cache %s: an invalidation could not be sent: it is kept, as are those that follow, and "
                  "repeated until it is confirmed",
                  cache->name);
    arm(cache->client);
}

/* False: it owes one already, or we are closed. */
static bool
owe_clear_locked(struct near__recovery *r, near_cache *cache) NEAR__NEEDS(r->lock)
{
    bool fresh = cache->owes_clear == 0;

    if (r->closed)
        return false;
    cache->owes_clear = ++r->kept;
    if (!fresh)
        return false;
    cache->owing = r->owing;
    r->owing     = cache;
    atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    count_pending_locked(r, 1);
    return true;
}

bool
near__recovery_keeps(const near_cache *cache)
{
    return cache->client->settings.coherence_max_pending != 0;
}

void
near__recovery_keep_clear(near_cache *cache)
{
    struct near__recovery *r      = &cache->client->recovery;
    size_t                 before = pending(r);
    bool                   fresh;

    if (!near__recovery_keeps(cache))
        return;
    near__lock(&r->lock);
    fresh = owe_clear_locked(r, cache);
    near__unlock(&r->lock);
    near__count(cache, NEAR__invalidations_kept, fresh);
    if (fresh)
        kept(cache, before);
}

static struct near__owed *
make(near_cache *cache, enum kind kind, near_bytes key, uint64_t hash)
{
    struct near__owed *owed = malloc(sizeof(*owed) + key.size);

    if (owed == NULL)
        return NULL;
    *owed = (struct near__owed){ .cache = cache, .kind = kind, .hash = hash, .size = key.size };
    if (key.size > 0)
        memcpy(owed->key, key.data, key.size);
    return owed;
}

static void
link_locked(struct near__recovery *r, struct near__owed *owed, struct near__owed **at) NEAR__NEEDS(r->lock)
{
    *at      = owed;
    *r->last = owed;
    r->last  = &owed->next;
    atomic_fetch_add_explicit(&owed->cache->refs, 1, memory_order_relaxed);
    count_pending_locked(r, 1);
}

static void
link_wide_locked(struct near__recovery *r, struct near__owed *owed) NEAR__NEEDS(r->lock)
{
    owed->next = r->wide;
    r->wide    = owed;
    r->wide_n++;
    atomic_fetch_add_explicit(&owed->cache->refs, 1, memory_order_relaxed);
    count_pending_locked(r, 1);
}

static void
keep(near_cache *cache, enum kind kind, near_bytes key, uint64_t hash)
{
    near_client           *client = cache->client;
    struct near__recovery *r      = &client->recovery;
    size_t                 before = pending(r);
    struct near__owed     *spare, **at;
    bool                   full, fresh = false, cleared = false;

    if (!near__recovery_keeps(cache))
        return;
    spare = make(cache, kind, key, hash);
    near__lock(&r->lock);
    at   = kind == KEY ? find_locked(r, cache, key, hash) : find_wide_locked(r, cache, kind, key);
    full = spare == NULL || r->closed || pending(r) >= client->settings.coherence_max_pending ||
           (kind != KEY && r->wide_n >= WIDE_MAX);
    if (*at != NULL) {
        (*at)->kept = ++r->kept;
    } else if (full || cache->owes_clear != 0) {
        cleared = owe_clear_locked(r, cache);
    } else {
        spare->kept = ++r->kept;
        if (kind == KEY)
            link_locked(r, spare, at);
        else
            link_wide_locked(r, spare);
        spare = NULL;
        fresh = true;
    }
    near__unlock(&r->lock);
    free(spare);
    near__count(cache, NEAR__invalidations_kept, fresh);
    near__count(cache, NEAR__invalidations_overflowed, cleared);
    if (fresh || cleared)
        kept(cache, before);
}

void
near__recovery_keep(near_cache *cache, near_bytes key, uint64_t hash)
{
    keep(cache, KEY, key, hash);
}

void
near__recovery_keep_tag(near_cache *cache, near_bytes tag)
{
    keep(cache, TAG, tag, 0);
}

void
near__recovery_keep_prefix(near_cache *cache, near_bytes prefix)
{
    keep(cache, PREFIX, prefix, 0);
}

/* ---- paying */

/* The oldest keys of one cache, at most one message's worth; 0: none. */
static size_t
choose(struct near__recovery *r, struct near__owed **chosen, near_bytes *keys, uint64_t *kept_by)
{
    size_t n = 0;

    near__lock(&r->lock);
    *kept_by = r->kept;
    for (struct near__owed *owed = r->first; owed != NULL && n < PART; owed = owed->next) {
        if (n > 0 && owed->cache != chosen[0]->cache)
            continue;
        keys[n]     = key_of(owed);
        chosen[n++] = owed;
    }
    near__unlock(&r->lock);
    return near__message_fit(keys, n);
}

static void
unlink_locked(struct near__recovery *r, struct near__owed *owed) NEAR__NEEDS(r->lock)
{
    struct near__owed **at = &r->buckets[owed->hash % NEAR__OWED_BUCKETS];

    while (*at != owed)
        at = &(*at)->chain;
    *at = owed->chain;
    for (at = &r->first; *at != owed; at = &(*at)->next)
        ;
    *at = owed->next;
    if (r->last == &owed->next)
        r->last = at;
    count_pending_locked(r, -1);
}

/* Paid, unless it was kept again meanwhile. */
static void
strike(struct near__recovery *r, struct near__owed **owed, size_t n, uint64_t kept_by)
{
    near_cache *cache = owed[0]->cache;
    size_t      gone  = 0;

    for (size_t i = 0; i < n; i++)
        near__l1_invalidate(cache->l1, owed[i]->hash, key_of(owed[i]));
    near__lock(&r->lock);
    for (size_t i = 0; i < n; i++) {
        if (owed[i]->kept > kept_by)
            continue;
        unlink_locked(r, owed[i]);
        owed[gone++] = owed[i];
    }
    near__unlock(&r->lock);
    near__count(cache, NEAR__invalidations_settled, gone);
    if (gone > 0)
        near__intents_paid(cache);
    for (size_t i = 0; i < gone; i++) {
        near__cache_release(owed[i]->cache);
        free(owed[i]);
    }
}

static near_status
pay_keys(struct near__recovery *r, bool *some)
{
    struct near__owed *owed[PART];
    near_bytes         keys[PART];
    uint64_t           kept_by;
    size_t             n      = choose(r, owed, keys, &kept_by);
    near_status        status = NEAR_OK;

    *some = n > 0;
    if (n > 0)
        status = near__write_settle(owed[0]->cache, keys, n);
    if (n > 0 && status == NEAR_OK)
        strike(r, owed, n, kept_by);
    return status;
}

/* A tag before a prefix; NULL: none.  It stays where it is: only who pays takes it out. */
static struct near__owed *
choose_wide(struct near__recovery *r, uint64_t *kept_by)
{
    struct near__owed *chosen;

    near__lock(&r->lock);
    *kept_by = r->kept;
    chosen   = r->wide;
    for (struct near__owed *owed = r->wide; owed != NULL && chosen->kind == PREFIX; owed = owed->next)
        chosen = owed;
    near__unlock(&r->lock);
    return chosen;
}

static near_status
pay_wide(struct near__recovery *r, int64_t deadline, bool *some)
{
    uint64_t           kept_by;
    struct near__owed *owed = choose_wide(r, &kept_by), **at;
    near_cache        *cache;
    near_status        status;
    bool               gone;

    *some = owed != NULL;
    if (owed == NULL)
        return NEAR_OK;
    cache  = owed->cache;
    status = owed->kind == TAG ? near__tags_settle(cache, key_of(owed), deadline)
                               : near__prefix_settle(cache, key_of(owed), deadline);
    if (status != NEAR_OK)
        return status;
    near__lock(&r->lock);
    gone = owed->kept <= kept_by; /* else it was kept again meanwhile */
    for (at = &r->wide; gone && *at != owed; at = &(*at)->next)
        ;
    if (gone) {
        *at = owed->next;
        r->wide_n--;
        count_pending_locked(r, -1);
    }
    near__unlock(&r->lock);
    near__count(cache, NEAR__invalidations_settled, gone);
    if (gone) {
        near__intents_paid(cache);
        near__cache_release(cache);
        free(owed);
    }
    return NEAR_OK;
}

/* Keys of the cache that are owed besides are paid as well: that is simpler than to find them. */
static near_status
pay_clear(struct near__recovery *r, int64_t deadline, bool *some)
{
    near_cache *cache;
    uint64_t    kept_by = 0;
    near_status status;
    bool        gone = false;

    near__lock(&r->lock);
    cache = r->owing;
    if (cache != NULL)
        kept_by = cache->owes_clear;
    near__unlock(&r->lock);
    *some = cache != NULL;
    if (cache == NULL)
        return NEAR_OK;
    status = near__clear_settle(cache, deadline);
    if (status != NEAR_OK)
        return status;
    near__lock(&r->lock);
    if (cache->owes_clear == kept_by) {
        near_cache **at = &r->owing;

        while (*at != cache)
            at = &(*at)->owing;
        *at               = cache->owing;
        cache->owes_clear = 0;
        count_pending_locked(r, -1);
        gone = true;
    }
    near__unlock(&r->lock);
    near__count(cache, NEAR__invalidations_settled, gone);
    if (gone) {
        near__intents_paid(cache);
        near__cache_release(cache);
    }
    return NEAR_OK;
}

/* Until nothing is owed, or something fails. */
static near_status
pay(struct near__recovery *r, int64_t deadline)
{
    near_status status = NEAR_OK;
    bool        keys = true, clears = true, wide = true;

    while (status == NEAR_OK && (keys || clears || wide) && near__client_now(r->client) < deadline) {
        status = pay_clear(r, deadline, &clears);
        if (status == NEAR_OK)
            status = pay_keys(r, &keys);
        if (status == NEAR_OK && !keys) /* the many first */
            status = pay_wide(r, deadline, &wide);
    }
    return status;
}

/* The right to pay; one at a time. */
static bool
begin(struct near__recovery *r, int64_t until)
{
    bool mine, more = true;

    near__lock(&r->lock);
    while (r->busy && more)
        more = near__cond_wait(&r->rested, &r->lock, until);
    mine    = !r->busy;
    r->busy = true;
    near__unlock(&r->lock);
    return mine;
}

static void
end(struct near__recovery *r)
{
    near__lock(&r->lock);
    r->busy = false;
    pthread_cond_broadcast(&r->rested);
    near__unlock(&r->lock);
}

static void
try_later(struct near__recovery *r, bool failed)
{
    int64_t pause;

    near__lock(&r->lock);
    pause       = failed ? r->back_off : BACK_OFF_MIN;
    r->back_off = failed ? 2 * r->back_off : BACK_OFF_MIN;
    if (r->back_off > BACK_OFF_MAX)
        r->back_off = BACK_OFF_MAX;
    near__unlock(&r->lock);
    if (pending(r) > 0)
        near__timer_arm_by(&r->client->scheduler, &r->timer,
                           near__time_after(near__client_now(r->client), pause));
}

static void
work(struct near__job *job, bool cancelled)
{
    struct near__recovery *r =
        (struct near__recovery *)(void *)((char *)job - offsetof(struct near__recovery, job));
    near_client *client = r->client;
    near_status  status = NEAR_OK;

    if (!cancelled)
        status = pay(r, NEAR_NEVER);
    end(r);
    if (!cancelled && pending(r) == 0)
        near__log(&client->log, NEAR_LOG_INFO, "all invalidations that were kept have been sent");
    if (!cancelled)
        try_later(r, status != NEAR_OK);
    near__client_release(client);
}

static void
due(void *ctx)
{
    struct near__recovery *r = ctx;

    if (pending(r) == 0 || !begin(r, 0))
        return;
    atomic_fetch_add_explicit(&r->client->refs, 1, memory_order_relaxed);
    if (near__workers_submit(r->client->workers, &r->job) == NEAR_OK)
        return;
    end(r);
    try_later(r, true);
    near__client_release(r->client);
}

void
near__recovery_poke(near_client *client)
{
    if (pending(&client->recovery) > 0)
        near__timer_arm_by(&client->scheduler, &client->recovery.timer, near__client_now(client));
}

/* ---- life and death */

void
near__recovery_init(near_client *client)
{
    struct near__recovery *r = &client->recovery;

    near__lock_init(&r->lock, NEAR__RANK_LEAF);
    near__cond_init(&r->rested);
    near__timer_init(&r->timer, due, r);
    r->client   = client;
    r->last     = &r->first;
    r->back_off = BACK_OFF_MIN;
    r->job.fn   = work;
}

size_t
near__recovery_close(near_client *client, int64_t deadline)
{
    struct near__recovery *r = &client->recovery;

    if (pending(r) == 0)
        return 0;
    if (deadline > near__time_after(near__client_now(client), CLOSE_TRIES))
        deadline = near__time_after(near__client_now(client), CLOSE_TRIES);
    if (!begin(r, deadline)) /* a sweep for a prefix may take longer: it ends with the backend */
        return pending(r);
    while (pay(r, deadline) != NEAR_OK && near__client_now(client) < deadline) {
        near__lock(&r->lock); /* nobody else pays: this is a pause */
        near__cond_wait(&r->rested, &r->lock, near__time_after(near__client_now(client), BACK_OFF_MIN));
        near__unlock(&r->lock);
    }
    end(r);
    return pending(r);
}

void
near__recovery_drop(near_client *client)
{
    struct near__recovery *r = &client->recovery;
    struct near__owed     *owed;
    near_cache            *cache;

    begin(r, NEAR_NEVER); /* the backend is closed by now: nothing takes long */
    near__lock(&r->lock);
    r->closed = true;
    *r->last  = r->wide;
    owed      = r->first;
    cache     = r->owing;
    r->first  = NULL;
    r->last   = &r->first;
    r->wide   = NULL;
    r->wide_n = 0;
    r->owing  = NULL;
    memset(r->buckets, 0, sizeof(r->buckets));
    near__unlock(&r->lock);
    while (owed != NULL) {
        struct near__owed *next = owed->next;

        near__cache_release(owed->cache);
        free(owed);
        owed = next;
    }
    while (cache != NULL) {
        near_cache *next = cache->owing;

        near__cache_release(cache);
        cache = next;
    }
    end(r);
}

void
near__recovery_fini(near_client *client)
{
    pthread_cond_destroy(&client->recovery.rested);
    near__lock_fini(&client->recovery.lock);
}
