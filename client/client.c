/*
 * Clients: opening, closing, and what the bus's messages do to the caches.
 *
 * The bus's thread comes in through the sink functions.  They find their cache under client->lock, take a reference, drop the lock
 * and only then touch L1: an L1 may let go of an adopted value, which calls the application.
 */
#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "audit.h"
#include "back.h"
#include "base/probe.h"
#include "budget.h"
#include "cache.h"
#include "disk.h"
#include "fields.h"
#include "generation.h"
#include "journals.h"
#include "publish.h"
#include "requests.h"
#include "snapshot.h"
#include "tags.h"
#include "tier.h"
#include "upkeep.h"
#include "watch.h"

/* ---- time */

static int64_t
clock_read(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void
clock_prepare(near_client *client)
{
    struct timespec step = { 0, 0 };

    clock_getres(CLOCK_MONOTONIC_COARSE, &step);
    client->coarse_step = (int64_t)step.tv_sec * 1000000000 + step.tv_nsec;
    near__client_now_exact(client);
}

/* How long the machine slept is looked at here, so by every read that goes further than L1 and by the scheduler. */
int64_t
near__client_now_exact(near_client *client)
{
    int64_t now = near__client_now(client), offset;

    if (client->coherence == NULL)
        return now; /* nobody derives anything */
    offset = now - clock_read(CLOCK_MONOTONIC);
    /* the two reads are some nanoseconds apart: only a sleep makes a difference */
    if (offset - atomic_load_explicit(&client->boot_offset, memory_order_relaxed) > NEAR_MS)
        atomic_store_explicit(&client->boot_offset, offset, memory_order_relaxed);
    return now;
}

int64_t
near__client_now_unticked(near_client *client)
{
    if (!atomic_load_explicit(&client->tick_wanted, memory_order_relaxed))
        atomic_store_explicit(&client->tick_wanted, true, memory_order_relaxed);
    return near__client_now(client);
}

/* ---- sink: what other instances say */

static near_cache *
find_cache(near_client *client, near_bytes name)
{
    near_cache *cache;

    near__lock(&client->lock);
    for (cache = client->caches; cache != NULL; cache = cache->next)
        if (near__bytes_equal(near_key(cache->name), name))
            break;
    if (cache != NULL)
        atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    near__unlock(&client->lock);
    return cache;
}

static void
invalidate(near_client *client, near_bytes name, near_bytes key, enum near__last_source source)
{
    near_cache *cache = find_cache(client, name);
    uint64_t    hash;

    if (cache == NULL)
        return;
    hash = near__hash_keyed(&client->secret, key);
    if (cache->back != NULL)
        near__back_suspect(cache, hash, key);
    near__l1_invalidate(cache->l1, hash, key);
    near__fields_told(cache, key, hash);
    near__last_note(&cache->last, hash, source, near__client_now(client));
    NEAR__PROBE3(invalidation, cache->name, hash, (int)source);
    near__cache_release(cache);
}

static void
sink_invalidate(void *ctx, near_bytes name, near_bytes key)
{
    invalidate(ctx, name, key, NEAR__LAST_MESSAGE);
}

/* Moves no fence: what was filled is what everybody would have loaded. */
static void
sink_filled(void *ctx, near_bytes name, near_bytes key)
{
    near_client *client = ctx;
    near_cache  *cache  = find_cache(client, name);

    if (cache == NULL)
        return;
    near__watch_filled(cache, key, near__hash_keyed(&client->secret, key));
    near__cache_release(cache);
}

/* The new number itself is not taken from the message: with L2 and bus on two servers, two clears may be announced in the other
 * order than they were stored in. */
static void
sink_cleared(void *ctx, near_bytes name, uint64_t generation)
{
    near_cache *cache = find_cache(ctx, name);

    (void)generation;
    if (cache == NULL)
        return;
    near__generation_doubt(cache, true);
    near__l1_flush(cache->l1);
    near__budget_slow_start(&cache->budget);
    near__cache_release(cache);
}

static void
sink_tagged(void *ctx, near_bytes name, near_bytes tag, uint64_t lineage, uint64_t moment)
{
    near_client *client = ctx;
    near_cache  *cache  = find_cache(client, name);

    if (cache == NULL)
        return;
    near__tags_told(cache, tag, (struct near__tag_clock){ lineage, moment });
    near__l1_invalidate_tag(cache->l1, near__hash_keyed(&client->secret, tag));
    near__cache_release(cache);
}

/* Which of its entries begin so L1 does not know: all of them go.  L2 still has the others. */
static void
sink_prefixed(void *ctx, near_bytes name, near_bytes prefix)
{
    near_cache *cache = find_cache(ctx, name);

    (void)prefix;
    if (cache == NULL)
        return;
    near__l1_flush(cache->l1);
    near__cache_release(cache);
}

/* A tag's moment was written: an invalidation, or only the first question after it.  Which moment it is has to be read. */
static void
sink_tag_changed(near_client *client, near_bytes name, near_bytes tag)
{
    near_cache *cache = find_cache(client, name);

    if (cache == NULL)
        return;
    near__tags_doubt(cache);
    near__l1_invalidate_tag(cache->l1, near__hash_keyed(&client->secret, tag));
    near__cache_release(cache);
}

/* Whose key or tag it is nobody can say. */
static void
sink_hashed_changed(near_client *client, near_bytes name)
{
    near_cache *cache = find_cache(client, name);

    if (cache == NULL)
        return;
    near__tags_doubt(cache);
    near__l1_flush(cache->l1);
    near__cache_release(cache);
}

/* The server says that something of ours was changed: by us (that cannot be told), by others, by a program that knows nothing of us,
 * by time or for want of room.  It may also be that somebody is waiting for it. */
static void
sink_changed(void *ctx, near_bytes l2_key)
{
    near_client *client = ctx;
    near_bytes   name, key;

    near__fields_changed(client, l2_key);
    switch (near__l2_key_read(client, l2_key, &name, &key)) {
    case NEAR__L2_ENTRY:
        invalidate(client, name, key, NEAR__LAST_SERVER);
        sink_filled(ctx, name, key);
        break;
    case NEAR__L2_TAG:
        sink_tag_changed(client, name, key);
        break;
    case NEAR__L2_HASHED:
        sink_hashed_changed(client, name);
        break;
    case NEAR__L2_GENERATION:
        sink_cleared(ctx, name, 0);
        break;
    case NEAR__L2_NOTHING:
        break;
    }
}

/* The next caches in falling order of id, each with a reference. */
static size_t
next_caches(near_client *client, uint64_t below, near_cache **caches, size_t capacity)
{
    size_t n = 0;

    near__lock(&client->lock);
    for (near_cache *cache = client->caches; cache != NULL && n < capacity; cache = cache->next) {
        if (cache->id >= below)
            continue;
        atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
        caches[n++] = cache;
    }
    near__unlock(&client->lock);
    return n;
}

/* A cache opened while this runs has read nothing from before. */
static void
sink_flush(void *ctx)
{
    near_client *client = ctx;
    near_cache  *caches[16];
    uint64_t     below = UINT64_MAX;
    size_t       n;

    NEAR__PROBE1(flush, client);
    near__recovery_poke(
        client); /* mostly the bus is back: after it is what is owed, whatever is flushed here */
    while ((n = next_caches(client, below, caches, NEAR_COUNT_OF(caches))) > 0) {
        below = caches[n - 1]->id;
        for (size_t i = 0; i < n; i++) {
            if (caches[i]->back != NULL)
                near__back_suspect_all(caches[i]);
            near__generation_doubt(caches[i], false);
            near__tags_doubt(caches[i]);
            near__l1_flush(caches[i]->l1);
            near__budget_slow_start(&caches[i]->budget);
            near__cache_release(caches[i]);
        }
    }
}

/* ---- opening */

static near_status
open_guard(near_client *client, near_error *error)
{
    uint32_t *page =
        mmap(NULL, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (page == MAP_FAILED)
        return near__fail(error, NEAR_ERR_NOMEM, "opening a client: out of memory");
    client->alive = page;
    if (madvise(page, (size_t)sysconf(_SC_PAGESIZE), MADV_WIPEONFORK) != 0)
        return near__fail(error, NEAR_ERR_UNSUPPORTED,
                          "opening a client: the kernel lacks MADV_WIPEONFORK (Linux 4.14), so a fork could "
                          "not be noticed");
    page[0]       = 1;
    client->plain = (_Atomic uint32_t *)&page[1];
    atomic_init(client->plain, 1);
    return NEAR_OK;
}

/* client->gutter_uri, kind NONE where there is none. */
static near_status
choose_gutter(near_client *client, near_error *error)
{
    client->gutter_uri.kind = NEAR__URI_NONE;
    if (client->settings.l2_gutter[0] == '\0')
        return NEAR_OK;
    if (client->l2_uri.kind != NEAR__URI_MEMCACHED)
        return near__fail(error, NEAR_ERR_INVALID, "l2.gutter: is for an l2.uri of memcached servers only");
    return near__uri_parse(&client->gutter_uri, "l2.gutter", client->settings.l2_gutter, error);
}

static near_status
open_l2(near_client *client, const near_config *config, near_error *error)
{
    near_status status = near__uri_parse(&client->l2_uri, "l2.uri", client->settings.l2_uri, error);

    if (status != NEAR_OK || client->l2_uri.kind == NEAR__URI_NONE)
        return status;
    client->ops = client->l2_uri.kind == NEAR__URI_OTHER ? near__config_backend(config, client->l2_uri.scheme)
                                                         : near__l2_backend_named(client->l2_uri.scheme);
    if (client->ops == NULL) {
        return near__fail(error, NEAR_ERR_UNSUPPORTED, "l2.uri: no backend for the scheme \"%s\"",
                          client->l2_uri.scheme);
    }
    status = choose_gutter(client, error);
    if (status == NEAR_OK)
        status = near__access_l2(&client->access, &client->settings, &client->l2_uri, error);
    if (status != NEAR_OK) {
        client->ops = NULL;
        return status;
    }
    client->env = (struct near_l2_env){
        .text            = client->settings.l2_uri,
        .uri             = &client->l2_uri,
        .access          = &client->access.l2,
        .clock           = &client->clock,
        .log             = &client->log,
        .connect_timeout = client->settings.l2_connect_timeout,
        .timeout         = client->settings.l2_timeout,
        .pool_size       = (unsigned)client->settings.l2_pool_size,
        .max_stored      = (size_t)client->settings.l2_max_value + NEAR__KEY_MAX + NEAR__ENVELOPE_MOST,
        .client_name     = client->name,
        .key_prefix      = client->settings.l2_key_prefix,
        .gutter          = client->gutter_uri.kind != NEAR__URI_NONE ? &client->gutter_uri : NULL,
        .gutter_ttl      = client->settings.l2_gutter_ttl,
        .outdated        = sink_flush,
        .outdated_ctx    = client,
    };
    status = client->ops->open(&client->l2, &client->env, &client->traits, error);
    if (status != NEAR_OK)
        client->ops = NULL;
    return status;
}

/* A memory: bus ends at the process, and at its name: whoever shares L2 must hear it, or L1 would be trusted for nothing. */
static bool
reaches(const struct near__uri *bus, const struct near__uri *l2)
{
    if (bus->name[0] == '\0')
        return false;
    return l2->kind == NEAR__URI_NONE ||
           (l2->kind == NEAR__URI_MEMORY && (l2->name[0] == '\0' || strcmp(bus->name, l2->name) == 0));
}

static bool
wants_tracking(const struct near__settings *settings)
{
    return settings->coherence_mode == NEAR__MODE_TRACKING || settings->coherence_mode == NEAR__MODE_BOTH;
}

/* Which bus, if any: client->bus_uri, kind NONE for none. */
static near_status
choose_bus(near_client *client, near_error *error)
{
    const struct near__settings *settings  = &client->settings;
    bool                         automatic = strcmp(settings->coherence_uri, "auto") == 0;
    near_status                  status    = NEAR_OK;

    client->bus_uri.kind = NEAR__URI_NONE;
    if (settings->coherence_mode == NEAR__MODE_NONE)
        return NEAR_OK;
    if (!automatic)
        status = near__uri_parse(&client->bus_uri, "coherence.uri", settings->coherence_uri, error);
    else if (client->l2_uri.kind == NEAR__URI_REDIS ||
             (client->l2_uri.kind == NEAR__URI_MEMORY && client->l2_uri.name[0] != '\0'))
        client->bus_uri = client->l2_uri;
    if (status != NEAR_OK)
        return status;
    if (client->bus_uri.kind == NEAR__URI_MEMORY && !reaches(&client->bus_uri, &client->l2_uri))
        return near__fail(error, NEAR_ERR_INVALID,
                          "coherence.uri: a memory: bus does not reach everybody who shares l2.uri; accepts "
                          "memory:NAME with the "
                          "same l2.uri or with none:");
    if (client->bus_uri.kind == NEAR__URI_MEMCACHED)
        return near__fail(error, NEAR_ERR_INVALID, "coherence.uri: memcached carries no messages; accepts %s",
                          near__options[NEAR__OPTION_coherence_uri].accepts);
    if (wants_tracking(settings) && (client->bus_uri.kind != NEAR__URI_REDIS ||
                                     !near__uri_same_server(&client->bus_uri, &client->l2_uri)))
        return near__fail(
            error, NEAR_ERR_INVALID,
            "coherence.mode = \"%s\": accepted where l2.uri is a Redis and coherence.uri is auto "
            "or the same",
            settings->coherence_mode == NEAR__MODE_BOTH ? "both" : "tracking");
    if (client->bus_uri.kind == NEAR__URI_NONE && settings->coherence_mode == NEAR__MODE_PUBSUB)
        return near__fail(
            error, NEAR_ERR_INVALID,
            "coherence.mode = \"pubsub\": there is no bus with this l2.uri; set coherence.uri to one of %s",
            near__options[NEAR__OPTION_coherence_uri].accepts);
    return NEAR_OK;
}

static near_status
open_coherence(near_client *client, near_error *error)
{
    const struct near__settings  *settings = &client->settings;
    near_status                   status   = choose_bus(client, error);
    struct near__coherence_config config;

    if (status == NEAR_OK)
        status = near__access_bus(&client->access, settings, &client->bus_uri, error);
    if (status != NEAR_OK || client->bus_uri.kind == NEAR__URI_NONE)
        return status;
    near__settings_channel(settings, "", client->channel, sizeof(client->channel));
    config = (struct near__coherence_config){
        .uri             = &client->bus_uri,
        .access          = &client->access.bus,
        .clock           = &client->clock,
        .log             = &client->log,
        .channel         = client->channel,
        .client_name     = client->name,
        .prefix          = wants_tracking(settings) ? settings->l2_key_prefix : NULL,
        .heartbeat       = settings->coherence_heartbeat,
        .serve_window    = settings->coherence_serve_window,
        .connect_timeout = settings->l2_connect_timeout,
        .sink = { client, sink_invalidate, sink_filled, sink_cleared, sink_tagged, sink_flush, sink_changed,
                  sink_prefixed },
    };
    client->bus_on_l2 = client->traits.announces && near__uri_same_server(&client->bus_uri, &client->l2_uri);
    return near__coherence_open(&client->coherence, &config, error);
}

static near_status
open_client(near_client *client, const near_config *config, near_error *error)
{
    near_status status = near__settings_resolve(&client->settings, config, error);

    if (status == NEAR_OK)
        status = open_guard(client, error);
    if (status != NEAR_OK)
        return status;
    near__client_log_init(client);
    if (near__secret_init(&client->secret) != NEAR_OK ||
        !near__random(&client->stamp_base, sizeof(client->stamp_base)) ||
        !near__random(&client->write_origin, sizeof(client->write_origin)))
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "opening a client: the system gives no random bytes");
    client->workers = near__workers_new((unsigned)client->settings.loader_threads);
    if (client->workers == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "opening a client: out of memory");
    snprintf(client->name, sizeof(client->name), "nearcache");
    status = open_l2(client, config, error);
    if (status == NEAR_OK)
        status = open_coherence(client, error);
    if (status == NEAR_OK && near__audit_open(client) != NEAR_OK)
        status = near__fail(error, NEAR_ERR_NOMEM, "opening a client: out of memory");
    if (status == NEAR_OK && near__publish_open(client) != NEAR_OK)
        status = near__fail(error, NEAR_ERR_NOMEM, "opening a client: out of memory");
    return status;
}

/* ---- closing */

#define CLOSING_MOMENT                                                                                       \
    (500 * NEAR_MS) /* for pool threads between two doors, all of which are closed by then */

/* The end of the memory: nothing runs any more, or this is a child of the process that it ran in. */
static void
client_free(near_client *client)
{
    if (client->coherence != NULL)
        near__coherence_free(&client->coherence);
    if (client->ops != NULL)
        client->ops->fini(client->l2);
    near__access_free(&client->access);
    if (client->alive != NULL)
        munmap((void *)(uintptr_t)client->alive, (size_t)sysconf(_SC_PAGESIZE));
    near__workers_free(&client->workers);
    near__audit_free(client);
    near__publish_free(client);
    near__scheduler_fini(&client->scheduler);
    near__recovery_fini(client);
    near__client_log_fini(client);
    near__lock_fini(&client->lock);
    near__packer_fini(&client->packer);
    for (size_t i = 0; i < NEAR__TIMINGS; i++)
        near__histogram_fini(&client->histograms[i]);
    explicit_bzero(client, sizeof(*client)); /* passwords */
    free(client);
}

void
near__client_release(near_client *client)
{
    /* acq_rel: the last one sees what the others did before they let go */
    if (atomic_fetch_sub_explicit(&client->refs, 1, memory_order_acq_rel) == 1)
        client_free(client);
}

near_status
near_client_open(const near_config *config, near_client **pclient, near_error *error)
{
    near_client *client;
    near_status  status;

    if (error != NULL)
        *error = (near_error){ .code = NEAR_OK };
    if (pclient == NULL)
        return near__fail(error, NEAR_ERR_INVALID, "near_client_open: client must not be NULL");
    *pclient = NULL;
    client   = near__zeroed(_Alignof(near_client), sizeof(*client));
    if (client == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "opening a client: out of memory");
    client->refs  = 1;
    client->clock = near__clock_system;
    clock_prepare(client);
    near__lock_init(&client->lock, NEAR__RANK_CLIENT);
    near__scheduler_init(&client->scheduler);
    near__recovery_init(client);
    near__upkeep_init(client);
    status = open_client(client, config, error);
    if (status != NEAR_OK) {
        near__client_release(client);
        return status;
    }
    if (client->coherence != NULL)
        near__coherence_await(client->coherence, near__time_after(near__client_now(client),
                                                                  client->settings.l2_connect_timeout));
    *pclient = client;
    return NEAR_OK;
}

/* Descriptors go, in silence.  The memory stays: a thread of the parent's may have been in the middle of anything when the fork
 * took its picture, with locks held that nobody here will ever drop. */
static near_status
close_in_child(near_client *client)
{
    if (client->coherence != NULL)
        near__coherence_forked(client->coherence);
    if (client->ops != NULL)
        client->ops->forked(client->l2);
    return NEAR_OK;
}

/* Take the first cache off the list; NULL when there is none. */
static near_cache *
pop_cache(near_client *client)
{
    near_cache *cache;

    near__lock(&client->lock);
    cache = client->caches;
    if (cache != NULL)
        near__cache_unlink_locked(cache);
    near__unlock(&client->lock);
    return cache;
}

near_status
near_client_close(near_client *client, near_error *error)
{
    int64_t     deadline;
    size_t      unanswered = 0, unwritten = 0, owed;
    near_cache *cache;
    near_status journals;

    if (error != NULL)
        *error = (near_error){ .code = NEAR_OK };
    if (client == NULL)
        return near__fail(error, NEAR_ERR_INVALID, "near_client_close: client must not be NULL");
    if (*client->alive == 0)
        return close_in_child(client);
    deadline = near__time_after(near__client_now(client), client->settings.close_timeout);
    near__audit_close(client);
    near__back_closing(client);
    while ((cache = pop_cache(client)) != NULL) {
        near__snap_stop(cache);
        unwritten += near__back_close(cache, deadline);
        unanswered += near__cache_await_work(cache, deadline);
        near__requests_close(cache, deadline);
        near__disk_stop(cache);
        near__snap_close(cache);
        near__cache_release(cache);
    }
    owed = near__recovery_close(client, deadline);
    /* relaxed: whoever misses it finds the backend closed instead */
    atomic_store_explicit(&client->closed, true, memory_order_relaxed);
    atomic_store_explicit(client->plain, 0, memory_order_relaxed);
    near__scheduler_stop(&client->scheduler);
    if (client->ops != NULL)
        client->ops->close(client->l2);
    if (client->coherence != NULL)
        near__coherence_stop(client->coherence);
    /* those in a loader that does not end are left to it; the others need a moment to find the doors closed */
    near__workers_stop(client->workers, near__time_after(near__client_now(client), CLOSING_MOMENT));
    if (client->ops != NULL)
        client->ops->stop(client->l2);
    near__recovery_drop(client);
    journals = near__journals_close(client, error);
    near__client_release(client);
    if (unwritten > 0)
        return near__fail(
            error, NEAR_ERR_BUSY,
            "closing: %zu changes are not in the store: those of caches with write_back.journal are "
            "there and go to the store after the next start, others are lost",
            unwritten);
    if (unanswered > 0)
        return near__fail(error, NEAR_ERR_BUSY,
                          "closing: %zu loads or writes were not answered within close.timeout", unanswered);
    if (owed > 0)
        return near__fail(error, NEAR_ERR_UNAVAILABLE,
                          "closing: invalidations of %zu keys or caches could not be sent", owed);
    return journals;
}
