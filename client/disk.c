/* See disk.h. */
#include "disk.h"

#include "codec.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/thread.h"
#include "l1/disk.h"

enum {
    GROUP     = 32,   /* asks whose reads are under way together */
    CONFIRM   = 100,  /* records compared in one exchange */
    CLOSED_MS = 20,   /* between looks at a gate that is closed */
    RETRY_MS  = 200,  /* after L2 could not say */
    FLUSH_MS  = 100,  /* between looks whether there was a flush */
    APART_MS  = 1000, /* by which times of one value may differ: wall clocks are read at different moments */
    BARREN    = 50,   /* exchanges in a row without one that was right */
    CLOSE_MS  = 2000  /* for a disk to take what is waiting; longer ones are left behind */
};

struct near__disk_tier {
    struct near__spill *spill;
    near_cache         *cache;
    struct near__lock   lock;
    pthread_cond_t      stopped;
    bool                stop, started;
    pthread_t           thread;
};

/* ---- asks */

struct near__spill *
near__disk_spill(const near_cache *cache)
{
    return cache->disk != NULL ? cache->disk->spill : NULL;
}

bool
near__disk_may_answer(const near_cache *cache, int64_t now)
{
    return cache->disk != NULL && near__cache_gate(cache, now) == NEAR__GATE_OPEN;
}

/* False: no memory, or nothing that L1 could have written. */
static bool
take_labels(struct near__entry *entry, const struct near__spill_record *record)
{
    struct near__labels *labels;
    size_t               n = record->stripes.size / sizeof(labels->stripes[0]);

    if (n == 0)
        return true;
    labels = n <= NEAR__LABELS_MAX ? calloc(1, sizeof(*labels) + record->names.size) : NULL;
    if (labels == NULL)
        return false;
    labels->clock      = record->clock;
    labels->n          = (uint16_t)n;
    labels->names_size = record->names.size;
    memcpy(labels->stripes, record->stripes.data, record->stripes.size);
    for (size_t i = 0; i < n; i++)
        if (labels->stripes[i] >= NEAR__LABEL_STRIPES) { /* none of ours */
            free(labels);
            return false;
        }
    memcpy(labels->names, record->names.data, record->names.size);
    entry->labels = labels;
    return true;
}

/* NULL: as take_labels(). */
static struct near__entry *
entry_of(const struct near__ask *ask, const struct near__spill_record *record)
{
    struct near__entry *entry;
    void               *value;

    entry = near__entry_new(ask->key, ask->hash, record->value.size, &value);
    if (entry == NULL)
        return NULL;
    if (record->value.size > 0)
        memcpy(value, record->value.data, record->value.size);
    entry->born        = record->born;
    entry->fresh_until = record->fresh_until;
    entry->expires     = record->expires;
    entry->stamp       = record->stamp;
    entry->generation  = record->generation;
    entry->cost_us     = record->cost_us;
    entry->pool        = record->pool;
    if (!take_labels(entry, record))
        near__entry_release(&entry);
    return entry;
}

static void
answer(near_cache *cache, struct near__ask *ask, const struct near__spill_record *record)
{
    struct near__entry *entry = entry_of(ask, record);

    if (entry == NULL)
        return;
    if (near__decode(cache, entry) !=
        NEAR_OK) { /* as if it were not there: L2 or the loader may have better bytes */
        near__entry_release(&entry);
        return;
    }
    if (near__l1_labels_outdated(cache->l1, entry->labels)) {
        near__spill_forget(cache->disk->spill, ask->hash);
        near__entry_release(&entry);
        return;
    }
    ask->entry      = entry;
    ask->stamp      = entry->stamp;
    ask->soft_until = entry->fresh_until;
    ask->found      = NEAR__FOUND;
    ask->disk       = true;
}

static size_t
read_group(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline)
{
    struct near__spill     *spill = cache->disk->spill;
    struct near__spill_read reads[GROUP];
    bool                    begun[GROUP];
    size_t                  found = 0;

    for (size_t i = 0; i < n; i++)
        begun[i] = near__spill_begin(spill, asks[i]->hash, &reads[i]);
    for (size_t i = 0; i < n; i++) {
        if (!begun[i] || !near__spill_finish(spill, &reads[i], asks[i]->key, deadline))
            continue;
        answer(cache, asks[i], &reads[i].record);
        near__spill_end(&reads[i]);
        found += asks[i]->disk;
    }
    return found;
}

/* The gate has closed while the disk was waited for: L2 is asked, if anybody. */
static void
take_back(struct near__ask **asks, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!asks[i]->disk)
            continue;
        near__entry_release(&asks[i]->entry);
        asks[i]->disk  = false;
        asks[i]->found = NEAR__UNASKED;
    }
}

size_t
near__disk_read(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline)
{
    int64_t until =
        near__time_after(near__client_now(cache->client), near__spill_timeout(cache->disk->spill));
    size_t found = 0;

    if (until > deadline)
        until = deadline;
    for (size_t at = 0; at < n; at += GROUP)
        found += read_group(cache, asks + at, n - at < GROUP ? n - at : GROUP, until);
    if (found > 0 && !near__disk_may_answer(cache, near__client_now(cache->client))) {
        take_back(asks, n);
        return 0;
    }
    return found;
}

void
near__disk_take(near_cache *cache, const struct near__ask *ask, bool fill, int64_t now)
{
    if (fill)
        near__l1_return(cache->l1, ask->entry, ask->fence, now);
}

/* ---- the former life */

/* Records on their way through L2: their keys are the batch's own. */
struct batch {
    near_cache       *cache;
    size_t            n;
    unsigned          barren; /* how many exchanges found nothing */
    struct near__ask  asks[CONFIRM];
    struct near__ask *pointers[CONFIRM];
    void             *keys[CONFIRM];
    uint64_t          stamps[CONFIRM], at[CONFIRM];
    int64_t           fresh[CONFIRM];
    uint32_t          sizes[CONFIRM];
};

static bool
is_stopped(struct near__disk_tier *tier, int64_t ns)
{
    int64_t until = near__time_after(near__now(&near__clock_system), ns);
    bool    more  = true, stop;

    near__lock(&tier->lock);
    while (!tier->stop && more && ns > 0)
        more = near__cond_wait(&tier->stopped, &tier->lock, until);
    stop = tier->stop;
    near__unlock(&tier->lock);
    return stop;
}

/* False: L2 could not say of one of them. */
static bool
ask_l2(struct batch *batch)
{
    near_cache *cache = batch->cache;
    int64_t     now   = near__client_now(cache->client);
    uint64_t    generation;

    if (near__cache_gate(cache, now) != NEAR__GATE_OPEN)
        return false;
    for (size_t i = 0; i < batch->n; i++) {
        struct near__ask *ask = &batch->asks[i];

        near__entry_release(&ask->entry);
        *ask               = (struct near__ask){ .key = ask->key, .hash = ask->hash };
        ask->fence         = near__l1_fence(cache->l1, ask->hash);
        ask->label_clock   = near__l1_label_clock(cache->l1);
        batch->pointers[i] = ask;
    }
    near__tier_read(cache, batch->pointers, batch->n, now,
                    near__time_after(now, cache->client->settings.l2_timeout), &generation);
    for (size_t i = 0; i < batch->n; i++)
        if (batch->asks[i].found == NEAR__UNREACHABLE)
            return false;
    return true;
}

/* The record would be served no longer than what L2 has now: its time may have been set anew there, or our clock. */
static bool
ends_in_time(const struct near__entry *entry, int64_t fresh_until)
{
    return fresh_until <= near__time_after(entry->fresh_until, APART_MS * NEAR_MS);
}

static void
adopt(struct batch *batch)
{
    bool any = batch->n == 0;

    for (size_t i = 0; i < batch->n; i++) {
        const struct near__ask *ask = &batch->asks[i];

        if (ask->found == NEAR__FOUND && !ask->counter && !ask->entry->negative &&
            ask->entry->stamp == batch->stamps[i] && ends_in_time(ask->entry, batch->fresh[i]))
            any |= near__l1_adopt(batch->cache->l1, ask->hash, ask->key, ask->fence, batch->at[i],
                                  batch->sizes[i]);
    }
    batch->barren = any ? 0 : batch->barren + 1;
}

/* False: the cache is being closed. */
static bool
confirm(struct batch *batch)
{
    struct near__disk_tier *tier = batch->cache->disk;
    int64_t                 rate = batch->cache->settings.disk_confirm_rate;
    bool                    stop =
        batch->n == 0 ? is_stopped(tier, 0) : is_stopped(tier, (int64_t)batch->n * 1000 * NEAR_MS / rate);

    while (!stop && batch->n > 0 && !ask_l2(batch))
        stop = is_stopped(tier, RETRY_MS * NEAR_MS);
    if (!stop)
        adopt(batch);
    for (size_t i = 0; i < batch->n; i++) {
        near__entry_release(&batch->asks[i].entry);
        free(batch->keys[i]);
    }
    batch->n = 0;
    return !stop;
}

static void
add_record(void *ctx, const struct near__spill_record *record, uint64_t hash, uint64_t at, uint32_t size)
{
    struct batch *batch = ctx;
    void         *key;

    if (record->stamp == 0 || record->stripes.size > 0 ||
        record->fresh_until <= near__client_now(batch->cache->client) ||
        near__tier_key_check(batch->cache, record->key) != NEAR_OK)
        return;
    if (batch->n == CONFIRM && !confirm(batch))
        return;
    key = malloc(record->key.size + 1);
    if (key == NULL)
        return;
    memcpy(key, record->key.data, record->key.size);
    batch->keys[batch->n]    = key;
    batch->asks[batch->n]    = (struct near__ask){ .key = { key, record->key.size }, .hash = hash };
    batch->stamps[batch->n]  = record->stamp;
    batch->fresh[batch->n]   = record->fresh_until;
    batch->at[batch->n]      = at;
    batch->sizes[batch->n++] = size;
}

/* There is no L2: who was not touched since the open is as he was at the end. */
static void
take_record(void *ctx, const struct near__spill_record *record, uint64_t hash, uint64_t at, uint32_t size)
{
    near_cache *cache = ctx;

    if (record->stripes.size == 0 && record->fresh_until > near__client_now(cache->client))
        near__l1_adopt(cache->l1, hash, record->key, NEAR__L1_UNTOUCHED, at, size);
}

/* Every segment, newest first; a flush makes what was found so far void. */
static void
look_at_all(struct near__disk_tier *tier, struct batch *batch)
{
    uint32_t flushes = near__spill_flushes(tier->spill);
    uint64_t n       = near__spill_old_count(tier->spill);

    batch->barren = 0;
    for (uint64_t i = 0; i < n && batch->barren < BARREN && near__spill_flushes(tier->spill) == flushes &&
                         !is_stopped(tier, 0);
         i++)
        near__spill_old(tier->spill, i, add_record, batch);
    confirm(batch);
    near__spill_old_over(tier->spill);
}

/* Until there was a flush since.  False: the cache is being closed. */
static bool
await_flush(struct near__disk_tier *tier, uint32_t flushes)
{
    bool stop = false;

    while (!stop && near__spill_flushes(tier->spill) == flushes)
        stop = is_stopped(tier, FLUSH_MS * NEAR_MS);
    return !stop;
}

static bool
await_gate(struct near__disk_tier *tier)
{
    near_cache *cache = tier->cache;
    bool        stop  = false;

    while (!stop && near__cache_gate(cache, near__client_now(cache->client)) != NEAR__GATE_OPEN)
        stop = is_stopped(tier, CLOSED_MS * NEAR_MS);
    return !stop;
}

static void *
compare_with_l2(void *ctx)
{
    struct near__disk_tier *tier  = ctx;
    struct batch           *batch = calloc(1, sizeof(*batch));
    uint32_t                flushes;

    near__spill_old_done(tier->spill); /* it is L2's word that counts, not what was touched */
    if (batch == NULL)
        return NULL;
    batch->cache = tier->cache;
    while (await_gate(tier)) {
        flushes = near__spill_flushes(tier->spill);
        look_at_all(tier, batch);
        if (!await_flush(tier, flushes))
            break;
        near__spill_old_again(tier->spill);
    }
    free(batch);
    return NULL;
}

static void *
take_all(void *ctx)
{
    struct near__disk_tier *tier = ctx;
    uint64_t                n    = near__spill_old_count(tier->spill);

    for (uint64_t i = 0; i < n && !is_stopped(tier, 0); i++)
        near__spill_old(tier->spill, i, take_record, tier->cache);
    near__spill_old_over(tier->spill);
    near__spill_old_done(tier->spill);
    return NULL;
}

void
near__disk_start(near_cache *cache)
{
    struct near__disk_tier *tier  = cache->disk;
    bool                    alone = cache->client->ops == NULL, good;

    if (tier == NULL)
        return;
    if (alone) /* with a bus others may have told us of changes while we were away */
        good = cache->client->coherence == NULL && near__spill_old_is_clean(tier->spill);
    else
        good = !cache->bare && cache->settings.disk_confirm_rate > 0;
    tier->started = good && near__thread_start(&tier->thread, "near-disk-old",
                                               alone ? take_all : compare_with_l2, tier) == NEAR_OK;
    if (tier->started)
        return;
    near__spill_old_over(tier->spill);
    near__spill_old_done(tier->spill);
}

void
near__disk_stop(near_cache *cache)
{
    struct near__disk_tier *tier = cache->disk;

    if (tier == NULL || !tier->started)
        return;
    near__lock(&tier->lock);
    tier->stop = true;
    pthread_cond_broadcast(&tier->stopped);
    near__unlock(&tier->lock);
    near__spill_old_stop(tier->spill);
    pthread_join(tier->thread, NULL);
    tier->started = false;
}

/* ---- birth and end */

static near_status
open_spill(near_cache *cache, struct near__spill **spill, const char *path, int *reason)
{
    const struct near__settings *settings = &cache->settings;
    struct near__spill_config    config   = {
             .path        = path,
             .max_bytes   = (uint64_t)settings->disk_max_bytes,
             .queue_bytes = (uint64_t)settings->disk_queue_bytes,
             .timeout     = settings->disk_timeout,
             .threads     = (unsigned)settings->disk_threads,
             .ring        = settings->disk_io != NEAR__DISK_IO_THREADS,
             .admission = settings->disk_admission == NEAR__DISK_ADMIT_ALL ? NEAR__SPILL_ALL : NEAR__SPILL_SECOND,
             .clock     = cache->client->clock,
             .os        = &near__spill_os_system,
             .log       = cache->client->log,
             .secret    = cache->client->secret,
    };

    return near__spill_open(spill, &config, reason);
}

near_status
near__disk_open(near_cache *cache, near_error *error)
{
    struct near__disk_tier *tier;
    near_status             status;
    char                    path[1100 + NEAR__CACHE_NAME_MAX + 2];
    int                     reason;

    if (cache->settings.disk_path[0] == '\0' || cache->settings.l1_max_bytes == 0)
        return NEAR_OK;
    tier = calloc(1, sizeof(*tier));
    if (tier == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "cache %s: out of memory", cache->name);
    snprintf(path, sizeof(path), "%s/%s", cache->settings.disk_path, cache->name);
    status = open_spill(cache, &tier->spill, path, &reason);
    if (status == NEAR_OK) {
        tier->cache = cache;
        near__lock_init(&tier->lock, NEAR__RANK_LEAF);
        near__cond_init(&tier->stopped);
        cache->disk = tier;
        return NEAR_OK;
    }
    free(tier);
    if (status == NEAR_ERR_NOMEM || status == NEAR_ERR_INVALID)
        return near__fail(error, status, "cache %s: cannot make its disk tier: %s", cache->name,
                          near_status_text(status));
    near__count(cache, NEAR__disk_errors, 1);
    near__log(&cache->client->log, NEAR_LOG_WARN, "cache %s goes without its disk tier: %s: %s", cache->name,
              path, status == NEAR_ERR_BUSY ? "another process has it open" : near__errno_text(reason));
    return NEAR_OK;
}

void
near__disk_free(near_cache *cache)
{
    struct near__disk_tier *tier = cache->disk;
    int64_t                 now;

    if (tier == NULL)
        return;
    near__disk_stop(cache); /* a cache that was never opened to the end */
    now = near__client_now(cache->client);
    near__spill_close(&tier->spill, near__time_after(now, CLOSE_MS * NEAR_MS), *cache->client->alive == 0);
    pthread_cond_destroy(&tier->stopped);
    near__lock_fini(&tier->lock);
    free(tier);
    cache->disk = NULL;
}

void
near__disk_count(const near_cache *cache, uint64_t n[])
{
    struct near__spill_stats stats;

    if (cache->disk == NULL)
        return;
    near__spill_stats(cache->disk->spill, &stats);
    n[NEAR__disk_hits] += stats.hits;
    n[NEAR__disk_misses] += stats.misses;
    n[NEAR__disk_puts] += stats.puts;
    n[NEAR__disk_put_bytes] += stats.put_bytes;
    n[NEAR__disk_written_bytes] += stats.written_bytes;
    n[NEAR__disk_kept] += stats.kept;
    n[NEAR__disk_rejected] += stats.rejected;
    n[NEAR__disk_dropped] += stats.dropped + stats.too_large;
    n[NEAR__disk_forgotten] += stats.forgotten;
    n[NEAR__disk_evicted] += stats.evicted;
    n[NEAR__disk_moved] += stats.moved;
    n[NEAR__disk_timeouts] += stats.timeouts;
    n[NEAR__disk_corrupt] += stats.corrupt;
    n[NEAR__disk_errors] += stats.read_errors + stats.write_errors;
    n[NEAR__disk_confirmed] += stats.adopted;
    n[NEAR__disk_entries]     = stats.entries;
    n[NEAR__disk_bytes]       = stats.log_bytes;
    n[NEAR__disk_index_bytes] = stats.index_bytes;
}

void
near__disk_keep(near_client *client, const near_cache *cache)
{
    uint64_t n[NEAR__COUNTERS] = { 0 };

    near__disk_count(cache, n);
    for (int i = 0; i < NEAR__COUNTERS; i++)
        if (n[i] != 0 && near__counter_rows[i].grows)
            near__counters_add(&client->counters, (enum near__counter)i, n[i]);
}
