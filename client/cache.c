/*
 * Caches: opening and closing.  See client.h for what one is made of and who counts references.
 */
#include "cache.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audit.h"
#include "back.h"
#include "budget.h"
#include "disk.h"
#include "early.h"
#include "fields.h"
#include "flight.h"
#include "generation.h"
#include "intent.h"
#include "journals.h"
#include "l1/policy.h"
#include "load.h"
#include "read.h"
#include "requests.h"
#include "share.h"
#include "snapshot.h"
#include "tags.h"
#include "upkeep.h"
#include "watch.h"

static bool
is_name(const char *name)
{
    size_t size = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-");

    return size >= 1 && size <= NEAR__CACHE_NAME_MAX && name[size] == '\0';
}

void
near__cache_free(near_cache *cache)
{
    near__back_free(cache);
    near__disk_stop(cache);
    near__l1_free(&cache->l1);
    near__disk_free(cache);
    near__flights_fini(cache);
    near__share_fini(cache);
    near__generation_fini(&cache->generation);
    near__tags_fini(&cache->tags);
    near__watch_fini(cache);
    near__dictionaries_fini(cache);
    near__gather_fini(&cache->gather);
    near__budget_fini(&cache->budget);
    near__hot_fini(&cache->hot);
    near__requests_free(cache);
    near__fields_close(cache);
    near__snap_free(cache);
    free(cache->rollout);
    near__lock_fini(&cache->work_lock);
    near__intents_fini(cache);
    near__journal_release(cache->journal);
    pthread_cond_destroy(&cache->work_done);
    for (size_t i = 0; i < NEAR__TIMINGS; i++)
        near__histogram_fini(&cache->histograms[i]);
    near__mac_free(&cache->mac);
    explicit_bzero(&cache->settings, sizeof(cache->settings)); /* URIs with passwords */
    free(cache);
}

void
near__cache_release(near_cache *cache)
{
    near_client *client = cache->client;

    /* acq_rel: the last one sees what the others did before they let go */
    if (atomic_fetch_sub_explicit(&cache->refs, 1, memory_order_acq_rel) != 1)
        return;
    near__stats_move(client, cache); /* what was counted after it was closed */
    near__cache_free(cache);
    near__client_release(client);
}

static near_cache *
cache_new(near_client *client, const char *name)
{
    near_cache *cache = near__zeroed(_Alignof(near_cache), sizeof(*cache));

    if (cache == NULL)
        return NULL;
    cache->refs   = 1;
    cache->client = client;
    snprintf(cache->name, sizeof(cache->name), "%s", name);
    cache->prefix_size = (size_t)snprintf(cache->prefix, sizeof(cache->prefix), "%.64s%s",
                                          client->settings.l2_key_prefix, name);
    near__flights_init(cache);
    near__share_init(cache);
    near__generation_init(&cache->generation);
    near__tags_init(&cache->tags);
    near__watch_init(cache);
    near__dictionaries_init(cache);
    near__gather_init(&cache->gather);
    near__budget_init(&cache->budget, &client->settings);
    near__hot_init(&cache->hot);
    near__lock_init(&cache->work_lock, NEAR__RANK_LEAF);
    near__intents_init(cache);
    near__cond_init(&cache->work_done);
    return cache;
}

static uint64_t
hash_key(const void *secret, near_bytes key)
{
    return near__hash_keyed(secret, key);
}

static near_status
open_cache(near_cache *cache, const near_config *overrides, near_error *error)
{
    near_client           *client   = cache->client;
    struct near__settings *settings = &cache->settings;
    near_status            status   = near__settings_override(settings, &client->settings, overrides, error);
    struct near__l1_config config;
    struct near__l1_domain domains[NEAR__POOLS_MAX];

    if (status != NEAR_OK)
        return status;
    cache->max_ttl = settings->l1_max_ttl;
    if (!settings->set[NEAR__OPTION_l1_max_ttl] && client->ops == NULL)
        cache->max_ttl = 0; /* there is no other truth to fall behind */
    if (cache->max_ttl == 0)
        cache->max_ttl = NEAR_NEVER;
    if (!settings->set[NEAR__OPTION_l1_max_ttl] && client->traits.shared && client->coherence == NULL)
        cache->max_ttl = NEAR__SEC; /* nobody tells us of writes: see the option's help */
    cache->bare  = settings->l2_envelope == NEAR__ENVELOPE_NONE && client->ops != NULL;
    cache->codec = near__settings_codec(settings);
    if (client->ops != NULL)
        status = near__access_mac(&cache->mac, settings, error);
    if (status != NEAR_OK)
        return status;
    if (!settings->set[NEAR__OPTION_l1_max_ttl] && cache->bare)
        cache->max_ttl = NEAR__SEC; /* nor of those of other programs, bus or no bus */
    near__budget_fini(&cache->budget);
    near__budget_init(&cache->budget, settings); /* with the cache's own */
    config = (struct near__l1_config){
        .max_bytes   = (size_t)settings->l1_max_bytes,
        .max_entries = (size_t)settings->l1_max_entries,
        .shards      = (unsigned)settings->l1_shards,
        .policy      = near__policies[settings->l1_policy]->name, /* the choices are in the table's order */
        .plain       = client->ops == NULL,
        .hash        = hash_key,
        .hash_ctx    = &client->secret,
        .sample      = near__hot_hit,
        .sample_ctx  = cache,
        .tick        = &client->tick,
        .curve       = settings->l1_curve == NEAR__YES,
        .align_from  = (size_t)settings->l1_align_from,
    };
    status = near__disk_open(cache, error);
    if (status != NEAR_OK)
        return status;
    config.spill = near__disk_spill(cache);
    near__pool_list_open(cache, &config, domains);
    near__early_init(cache);
    cache->wanted_bytes   = config.max_bytes;
    cache->wanted_entries = config.max_entries;
    status                = near__snap_new(cache, &config, error);
    if (status != NEAR_OK)
        return status;
    status = near__l1_new(&cache->l1, &config);
    if (status != NEAR_OK)
        return near__fail(error, status, "cache %s: cannot make its L1: %s", cache->name,
                          near_status_text(status));
    status = near__rollout_open(&cache->rollout, settings, cache->name);
    if (status != NEAR_OK)
        return near__fail(error, status, "cache %s: out of memory", cache->name);
    status = near__fields_open(cache, error);
    if (status == NEAR_OK && cache->rollout != NULL && cache->fields->layout == NEAR__FIELDS_KEYS)
        cache->rollout->cells = cache;
    if (status == NEAR_OK)
        status = near__journals_get(cache, error);
    if (status == NEAR_OK)
        status = near__back_open(cache, error);
    return status;
}

/* The L1s' bounds again, each its part of l1.total_bytes.  Returns the last refusal: an index that is already larger than its part,
 * for one; that L1 keeps the bounds it had. */
static near_status
share_locked(near_client *client)
{
    size_t      total = (size_t)client->settings.l1_total_bytes, sum = 0, bytes;
    near_status status = NEAR_OK, one;

    for (near_cache *cache = client->caches; cache != NULL; cache = cache->next)
        sum += cache->wanted_bytes;
    for (near_cache *cache = client->caches; cache != NULL; cache = cache->next) {
        if (cache->wanted_bytes == 0)
            continue;
        bytes = cache->wanted_bytes;
        if (total != 0 && sum > total)
            bytes = (size_t)((double)total / (double)sum * (double)bytes);
        one    = near__l1_resize(cache->l1, bytes, cache->wanted_entries);
        status = one != NEAR_OK ? one : status;
    }
    return status;
}

static void
share(near_client *client, const char *when)
{
    near_status status;

    if (client->settings.l1_total_bytes == 0)
        return;
    near__lock(&client->lock);
    status = share_locked(client);
    near__unlock(&client->lock);
    if (status != NEAR_OK)
        near__log(&client->log, NEAR_LOG_WARN, "l1.total_bytes: %s, not every cache could get its part: %s",
                  when, near_status_text(status));
}

near_status
near_cache_resize(near_cache *cache, size_t max_bytes, size_t max_entries, near_error *error)
{
    near_status status = near__cache_check(cache);
    size_t      bytes, entries;

    if (error != NULL)
        *error = (near_error){ .code = NEAR_OK };
    if (status != NEAR_OK)
        return near__fail(error, status, "near_cache_resize: %s", near_status_text(status));
    near__lock(&cache->client->lock);
    bytes                 = cache->wanted_bytes;
    entries               = cache->wanted_entries;
    cache->wanted_bytes   = max_bytes;
    cache->wanted_entries = max_entries;
    status                = max_bytes == 0 || bytes == 0 ? NEAR_ERR_INVALID : share_locked(cache->client);
    if (status != NEAR_OK) { /* all as it was */
        cache->wanted_bytes   = bytes;
        cache->wanted_entries = entries;
        (void)share_locked(cache->client);
    }
    near__unlock(&cache->client->lock);
    if (status != NEAR_OK)
        return near__fail(error, status,
                          "cache %s: its L1 cannot be made %zu bytes and %zu entries large: it grows to 16 "
                          "times what it was "
                          "opened with, and not below twice its index",
                          cache->name, max_bytes, max_entries);
    return NEAR_OK;
}

/* The pool's part of what the cache has now, which may be less than it wants (l1.total_bytes). */
static near_status
pool_resize_locked(near_cache *cache, unsigned pool, size_t max_bytes)
{
    struct near__l1_stats stats;
    size_t                now = 0, had = 0, bytes;
    double                part;
    near_status           status;

    for (unsigned i = 1; i <= cache->pools.n; i++) {
        near__l1_pool_stats(cache->l1, i, &stats, &bytes);
        now += bytes;
        had = i == pool ? bytes : had;
    }
    part   = (double)now / (double)cache->wanted_bytes;
    status = near__l1_pool_resize(cache->l1, pool, (size_t)(part * (double)max_bytes));
    if (status != NEAR_OK)
        return status;
    cache->wanted_bytes += max_bytes - (size_t)((double)had / part);
    if (cache->client->settings.l1_total_bytes != 0)
        (void)share_locked(cache->client); /* who cannot shrink keeps what he had */
    return NEAR_OK;
}

near_status
near_pool_resize(near_cache *cache, unsigned pool, size_t max_bytes, near_error *error)
{
    near_status status = near__cache_check(cache);

    if (error != NULL)
        *error = (near_error){ .code = NEAR_OK };
    if (status != NEAR_OK)
        return near__fail(error, status, "near_pool_resize: %s", near_status_text(status));
    if (pool < 1 || pool > cache->pools.n)
        return near__fail(error, NEAR_ERR_INVALID, "near_pool_resize: cache %s has %u pools, and none %u",
                          cache->name, cache->pools.n, pool);
    near__lock(&cache->client->lock);
    status = pool_resize_locked(cache, pool, max_bytes);
    near__unlock(&cache->client->lock);
    if (status != NEAR_OK)
        return near__fail(error, status,
                          "cache %s: its pool %s cannot be made %zu bytes large: at least 64KiB, at most 16 "
                          "times what it was opened with, and not below twice its index",
                          cache->name, cache->pools.pools[pool - 1].name, max_bytes);
    return NEAR_OK;
}

static bool
is_taken_locked(const near_client *client, const char *name)
{
    for (const near_cache *other = client->caches; other != NULL; other = other->next)
        if (strcmp(other->name, name) == 0)
            return true;
    return false;
}

/* Before anything of it is opened: what a journal holds of an open cache is that cache's. */
static bool
is_taken(near_client *client, const char *name)
{
    bool taken;

    near__lock(&client->lock);
    taken = is_taken_locked(client, name);
    near__unlock(&client->lock);
    return taken;
}

/* On the list, unless the name is taken. */
static bool
link_cache(near_cache *cache)
{
    near_client *client = cache->client;
    bool         taken;

    near__lock(&client->lock);
    taken = is_taken_locked(client, cache->name);
    if (!taken) {
        cache->id      = ++client->opened;
        cache->next    = client->caches;
        client->caches = cache;
        atomic_fetch_add_explicit(&client->refs, 1, memory_order_relaxed);
    }
    near__unlock(&client->lock);
    return !taken;
}

near_status
near_cache_open(near_client *client, const char *name, const near_config *overrides, near_cache **pcache,
                near_error *error)
{
    near_cache *cache;
    near_status status;

    if (error != NULL)
        *error = (near_error){ .code = NEAR_OK };
    if (pcache != NULL)
        *pcache = NULL;
    if (client == NULL || name == NULL || pcache == NULL)
        return near__fail(error, NEAR_ERR_INVALID,
                          "near_cache_open: client, name and cache must not be NULL");
    if (*client->alive == 0)
        return near__fail(error, NEAR_ERR_FORKED, "near_cache_open: %s", near_status_text(NEAR_ERR_FORKED));
    if (!is_name(name))
        return near__fail(error, NEAR_ERR_INVALID,
                          "cache name \"%.80s\": accepts 1 .. %d of A-Z a-z 0-9 _ . -", name,
                          NEAR__CACHE_NAME_MAX);
    cache = cache_new(client, name);
    if (cache == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "cache %s: out of memory", name);
    status = is_taken(client, name) ? NEAR_ERR_BUSY : open_cache(cache, overrides, error);
    if (status == NEAR_OK && !link_cache(cache))
        status = NEAR_ERR_BUSY;
    if (status == NEAR_ERR_BUSY && (error == NULL || error->code == NEAR_OK))
        status = near__fail(error, NEAR_ERR_BUSY, "cache %s: this client has it open already", name);
    if (status != NEAR_OK) {
        near__cache_free(cache);
        return status;
    }
    near__requests_open(cache);
    near__read_open(cache);
    near__intents_replay(cache);
    near__dictionaries_open(cache);
    near__disk_start(cache);
    share(client, "a cache was opened");
    near__snap_open(cache);
    near__upkeep_start(client);
    *pcache = cache;
    return NEAR_OK;
}

void
near__cache_unlink_locked(near_cache *cache)
{
    near_cache **at = &cache->client->caches;

    while (*at != NULL && *at != cache)
        at = &(*at)->next;
    if (*at == cache)
        *at = cache->next;
    near__stats_keep(cache->client, cache);
}

bool
near__cache_work_begins(near_cache *cache, size_t n)
{
    bool may;

    near__lock(&cache->work_lock);
    may = !cache->closing;
    if (may)
        cache->work_open += n;
    near__unlock(&cache->work_lock);
    return may;
}

void
near__cache_work_ends(near_cache *cache, size_t n)
{
    near__lock(&cache->work_lock);
    cache->work_open -= n;
    if (cache->work_open == 0)
        pthread_cond_broadcast(&cache->work_done);
    near__unlock(&cache->work_lock);
}

size_t
near__cache_await_work(near_cache *cache, int64_t deadline)
{
    bool   more = true;
    size_t open;

    near__lock(&cache->work_lock);
    cache->closing =
        true; /* what waits its turn in the background will call neither loader nor store any more */
    near__unlock(&cache->work_lock);
    near__watch_close(cache);
    near__dictionaries_close(cache);
    near__lock(&cache->work_lock);
    while (cache->work_open > 0 && more)
        more = near__cond_wait(&cache->work_done, &cache->work_lock, deadline);
    open = cache->work_open;
    near__unlock(&cache->work_lock);
    return open;
}

void
near_cache_close(near_cache *cache)
{
    near_client *client;
    int64_t      deadline;

    if (cache == NULL || *cache->client->alive == 0)
        return; /* in a child near_client_close() frees it */
    client   = cache->client;
    deadline = near__time_after(near__client_now(client), client->settings.close_timeout);
    near__snap_stop(cache);
    near__back_close(cache, deadline);
    near__lock(&client->lock);
    near__cache_unlink_locked(cache);
    near__unlock(&client->lock);
    near__audit_forget(cache);
    near__requests_close(cache, deadline);
    near__disk_stop(cache);
    share(client, "a cache was closed");
    near__cache_await_work(cache, deadline);
    near__snap_close(cache);
    near__cache_release(cache);
}

void
near_cache_set_loader(near_cache *cache, near_load_fn fn, void *ctx)
{
    if (near__cache_check(cache) != NEAR_OK)
        return;
    cache->loader     = fn;
    cache->loader_ctx = ctx;
}
