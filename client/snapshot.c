/* See snapshot.h. */
#include "snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/thread.h"
#include "codec.h"
#include "fields.h"
#include "read.h"
#include "snapshot_file.h"
#include "tags.h"
#include "tier.h"

enum {
    WALK_HOMES = 64, /* buckets between two looks at the deadline: some 500 entries */
    BATCH =
        NEAR_L2_BATCH - 2, /* keys confirmed in one exchange: the generation and the clock of tags go along */
    PACE      = 128,       /* entries put back between two looks at the rate */
    GROUP     = 16,        /* rows whose places in L1 are on their way at a time */
    WAIT_MS   = 20,        /* between two looks whether L2 or the bus are there */
    OLDEST_MS = 10 * 24 * 3600 * 1000, /* an entry's age as L1 can tell it (l1/block.h) */
    CODEC_MS =
        10 *
        1000 /* for a codec that the cache had before: it is set right after the cache was opened, or not at all */
};

unsigned near__snap_controls;

/* Of an alone cache's file. */
enum state {
    VOID,       /* there is none, or nothing to believe in it */
    SAVING,     /* being written beside; whoever writes now spoils it */
    SPOILED,    /* ... as happened */
    PUBLISHING, /* being renamed */
    LIVE,       /* nothing was written since */
    VOIDING     /* somebody wrote, and takes it away */
};

struct near__snap {
    near_cache *cache;
    char        directory[NEAR__TEXT_SIZE], name[NEAR__SNAP_NAME];
    uint64_t    scope;
    bool        alone, able;

    struct near__lock lock; /* leaf; the rest, but for `state`, which is also read without */
    pthread_cond_t    changed;
    _Atomic int       state;
    int               live; /* the directory that has the live file; -1: none */
    bool              saving, restoring, stop;
    unsigned          codecs; /* how often a codec was set, each with one flush of L1 */
    bool              cut;    /* not all that was in the file was looked at */

    bool                     started; /* the owner's: whoever opens and closes the cache */
    pthread_t                thread;
    struct near__snap_reader reader; /* the thread's, as the rest */
    int64_t                  base;   /* the head's time on this client's clock */
    int64_t                  began;
    uint64_t                 done, restored, renewed, dropped, damaged;
    struct {
        uint64_t restored, renewed, dropped;
    } counted;
};

/* ---- where */

/* Whether what L1 holds can be written and put back at all. */
static bool
able(const near_cache *cache)
{
    const near_client *client = cache->client;

    return (client->ops != NULL && client->traits.shared) || client->coherence == NULL;
}

/* snapshot.path, a point, the cache's name: in two parts. */
static bool
set_place(struct near__snap *s, const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t      size  = slash == NULL ? 0 : (size_t)(slash - path);
    int         n;

    snprintf(s->directory, sizeof(s->directory), "%.*s", (int)size, path);
    if (slash == NULL)
        strcpy(s->directory, ".");
    else if (size == 0)
        strcpy(s->directory, "/");
    n = snprintf(s->name, sizeof(s->name), "%s.%s", slash == NULL ? path : slash + 1, s->cache->name);
    return n > 0 && (size_t)n < sizeof(s->name);
}

/* Nobody but this user may put files there, or -errno. */
static int
open_directory(const struct near__snap *s)
{
    const struct near__disk *disk = &near__disk_system;
    struct near__disk_status status;
    int                      directory = disk->open_directory(disk->ctx, s->directory, false);
    int                      result;

    if (directory < 0)
        return directory;
    result = disk->status(disk->ctx, directory, &status);
    if (result == 0 && status.directory && !status.exposed)
        return directory;
    disk->close(disk->ctx, directory);
    return result < 0 ? result : -EPERM;
}

static const char *
why(int error)
{
    return near__errno_text(-error);
}

static void
complain(struct near__snap *s, const char *what, const char *text)
{
    near__count(s->cache, NEAR__snapshot_failures, 1);
    near__log(&s->cache->client->log, NEAR_LOG_WARN, "snapshot of cache %s, %s/%s: %s: %s", s->cache->name,
              s->directory, s->name, what, text);
}

/* The life of the kernel whose clock this is; zeros where it does not say. */
static void
read_boot_id(uint8_t id[16])
{
    char    text[64] = { 0 };
    int     fd       = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n        = fd >= 0 ? read(fd, text, sizeof(text) - 1) : -1;

    if (fd >= 0)
        close(fd);
    memset(id, 0, 16);
    if (n > 0)
        near__hash_wide((near_bytes){ text, (size_t)n }, id);
}

/* ---- the life of an alone cache's file */

/* The live file goes; both ways of making it void are tried, for one is enough.  0, or -errno. */
static int
take_away(struct near__snap *s, int directory)
{
    const struct near__disk *disk = &near__disk_system;
    int                      fd   = disk->open(disk->ctx, directory, s->name, NEAR__DISK_WRITE);
    bool empty  = fd >= 0 && disk->resize(disk->ctx, fd, 0) == 0 && disk->sync(disk->ctx, fd) == 0;
    int  result = disk->unlink(disk->ctx, directory, s->name);

    if (result == 0)
        result = disk->sync_directory(disk->ctx, directory);
    if (fd >= 0)
        disk->close(disk->ctx, fd);
    disk->close(disk->ctx, directory);
    return empty || result == -ENOENT ? 0 : result;
}

/* By exchange, so that all changes of the state are links of one chain: see wrote(). */
static void
set_state_locked(struct near__snap *s, enum state state)
{
    atomic_exchange_explicit(&s->state, (int)state, memory_order_acq_rel);
    pthread_cond_broadcast(&s->changed);
}

/* Something was written: a live file is gone when this returns. */
static void
spoil(struct near__snap *s)
{
    int directory = -1, result;

    near__lock(&s->lock);
    while (s->state == PUBLISHING || s->state == VOIDING)
        near__cond_wait(&s->changed, &s->lock, NEAR_NEVER);
    if (s->state == SAVING)
        set_state_locked(s, SPOILED);
    if (s->state == LIVE) {
        set_state_locked(s, VOIDING);
        directory = s->live;
        s->live   = -1;
    }
    near__unlock(&s->lock);
    if (directory < 0)
        return;
    result = take_away(s, directory);
    near__lock(&s->lock);
    set_state_locked(s, VOID);
    near__unlock(&s->lock);
    if (result < 0)
        complain(s, "cannot be taken away after a write: remove it, or the next start may believe it",
                 why(result));
}

/*
 * L1's word that something was written or invalidated; no lock is held.  A read-modify-write that adds nothing, acquire and release: it and
 * the exchange that sets SAVING are links of one chain.  If this comes first the walk after that exchange sees what the write did to
 * L1; else this sees SAVING.
 */
static void
wrote(void *ctx)
{
    struct near__snap *s     = ctx;
    int                state = atomic_fetch_add_explicit(&s->state, 0, memory_order_acq_rel);

    if (state != VOID && state != SPOILED && !(near__snap_controls & NEAR__SNAP_UNVOIDED))
        spoil(s);
}

/* ---- saving */

struct saving {
    struct near__snap       *snap;
    struct near__snap_writer writer;
    struct near__l1_cursor   cursor;
    int64_t                  now;
};

/* Pools are known again by their names: others may have come before them meanwhile. */
static uint32_t
pool_mark(const struct near__pool *pool)
{
    uint32_t mark = (uint32_t)near__hash_fixed(near_key(pool->name));

    return mark != 0 ? mark : 1;
}

/* The number of that pool, from 1; 0: there is none, so its key decides. */
static uint8_t
pool_marked(const near_cache *cache, uint32_t mark)
{
    for (unsigned i = 0; mark != 0 && i < cache->pools.n; i++)
        if (pool_mark(&cache->pools.pools[i]) == mark)
            return (uint8_t)(i + 1);
    return 0;
}

/* Milliseconds from the head's time to one of L1's. */
static int64_t
from_head(const struct saving *saving, int64_t time)
{
    int64_t ms = time == NEAR_NEVER ? NEAR__SNAP_FAR : time / NEAR_MS - saving->now / NEAR_MS;

    return ms < -NEAR__SNAP_FAR ? -NEAR__SNAP_FAR : ms > NEAR__SNAP_FAR ? NEAR__SNAP_FAR : ms;
}

static void
save_entry(void *ctx, const struct near__l1_seen *seen)
{
    uint8_t                  room[NEAR__FIELD_SAVED_MAX];
    struct saving           *saving = ctx;
    const near_cache        *cache  = saving->snap->cache;
    const struct near__meta *meta   = &seen->meta;
    int64_t                  age    = meta->born < 0 ? 0 : -from_head(saving, meta->born);
    struct near__snap_row    row    = {
              .key        = seen->key,
              .value      = seen->value,
              .names      = seen->names,
              .tags       = seen->tags,
              .negative   = seen->negative,
              .forced     = meta->fresh_until == INT64_MIN,
              .unknown    = seen->unknown,
              .warmth     = seen->warmth,
              .stamp      = meta->stamp,
              .generation = (uint32_t)meta->generation,
              .cost_us    = meta->cost_us,
              .age_ms     = age < 0           ? 0
                            : age > OLDEST_MS ? OLDEST_MS
                                              : (uint32_t)age,
              .expires_ms = from_head(saving, meta->expires),
    };

    if (row.unknown && saving->snap->alone)
        return; /* nobody else could say what it is */
    row.fresh_ms = row.forced ? 0 : from_head(saving, meta->fresh_until);
    if (cache->pools.n > 0)
        row.pool = pool_mark(&cache->pools.pools[saving->cursor.pool]);
    if (!near__field_saved_key(cache, &row.key, room))
        return;
    near__snap_write_row(&saving->writer, &row);
}

static int
begin_file(struct saving *saving, int directory)
{
    struct near__snap     *s      = saving->snap;
    near_client           *client = s->cache->client;
    struct near__l1_stats  stats;
    struct near__snap_head head = {
        .flags   = (s->alone ? NEAR__SNAP_ALONE : 0) | (near__decodes(s->cache) ? NEAR__SNAP_DECODED : 0),
        .id      = near__stamp(client),
        .scope   = s->scope,
        .wall_ms = near__wall_ms(&client->clock),
        .boot_ns = saving->now,
    };

    near__l1_stats(s->cache->l1, &stats);
    head.entries = stats.entries;
    read_boot_id(head.boot_id);
    return near__snap_write_begin(&saving->writer, &near__disk_system, directory, s->name, &head);
}

/* All of L1 into the file, some entries at a time.  0, -ETIMEDOUT, or another -errno. */
static int
write_entries(struct saving *saving, int64_t deadline)
{
    near_cache *cache = saving->snap->cache;
    bool        more  = true;

    while (more && saving->writer.error == 0) {
        more = near__l1_walk(cache->l1, &saving->cursor, WALK_HOMES, saving->now, save_entry, saving);
        if (more && near__client_now(cache->client) > deadline)
            return -ETIMEDOUT;
    }
    return near__snap_write_end(&saving->writer);
}

/* May the file be given its name?  A shared cache's always; an alone one's only if nobody wrote meanwhile. */
static bool
may_publish(struct near__snap *s)
{
    bool may = true;

    if (!s->alone)
        return true;
    near__lock(&s->lock);
    may = s->state == SAVING;
    set_state_locked(s, may ? PUBLISHING : VOID);
    near__unlock(&s->lock);
    return may;
}

/* Renamed or not, who writes from now on takes away what has that name. */
static void
published(struct near__snap *s, int directory)
{
    near__lock(&s->lock);
    s->live = directory;
    set_state_locked(s, LIVE);
    near__unlock(&s->lock);
}

static near_status
save_into(struct near__snap *s, int directory, int64_t deadline, near_error *error)
{
    struct saving saving = { .snap = s, .now = near__client_now_exact(s->cache->client) };
    int           result = begin_file(&saving, directory);
    bool          may;

    if (result == 0)
        result = write_entries(&saving, deadline);
    may = may_publish(s);
    if (result == 0 && may)
        result = near__snap_write_publish(&saving.writer);
    near__snap_write_close(&saving.writer);
    if (may && s->alone)
        published(s, directory);
    else
        near__disk_system.close(NULL, directory);
    if (result < 0) {
        complain(s, "not saved", why(result));
        return near__fail(error, result == -ENOMEM ? NEAR_ERR_NOMEM : NEAR_ERR_UNAVAILABLE,
                          "cache %s: no snapshot in %s/%s: %s", s->cache->name, s->directory, s->name,
                          why(result));
    }
    if (!may)
        return near__fail(
            error, NEAR_ERR_CONFLICT,
            "cache %s: no snapshot: something was written meanwhile, and there is no shared L2 to "
            "confirm the rest",
            s->cache->name);
    near__count(s->cache, NEAR__snapshot_saves, 1);
    near__count(s->cache, NEAR__snapshot_saved, saving.writer.entries);
    near__count(s->cache, NEAR__snapshot_bytes, saving.writer.at);
    return NEAR_OK;
}

static near_status
save(struct near__snap *s, int64_t deadline, near_error *error)
{
    int directory;

    if (s->alone) { /* the last one goes first: from here on it is not this file's writes that are watched */
        spoil(s);
        near__lock(&s->lock);
        set_state_locked(s, SAVING);
        near__unlock(&s->lock);
    }
    directory = open_directory(s);
    if (directory >= 0)
        return save_into(s, directory, deadline, error);
    if (s->alone) {
        near__lock(&s->lock);
        set_state_locked(s, VOID);
        near__unlock(&s->lock);
    }
    complain(s, "not saved", why(directory));
    return near__fail(error, NEAR_ERR_UNAVAILABLE, "cache %s: no snapshot: %s: %s", s->cache->name,
                      s->directory, why(directory));
}

/* One at a time, and not while the last one is still coming back. */
static bool
begin_saving(struct near__snap *s)
{
    bool may;

    near__lock(&s->lock);
    may       = !s->saving && !s->restoring;
    s->saving = s->saving || may;
    near__unlock(&s->lock);
    return may;
}

static void
end_saving(struct near__snap *s)
{
    near__lock(&s->lock);
    s->saving = false;
    near__unlock(&s->lock);
}

near_status
near_snapshot_save(near_cache *cache, near_error *error)
{
    near_status        status = near__cache_check(cache);
    struct near__snap *s;

    if (error != NULL)
        *error = (near_error){ .code = NEAR_OK };
    if (status != NEAR_OK)
        return near__fail(error, status, "near_snapshot_save: %s", near_status_text(status));
    s = cache->snap;
    if (s == NULL || !s->able)
        return near__fail(error, NEAR_ERR_UNSUPPORTED, "cache %s: %s", cache->name,
                          s == NULL
                              ? "snapshot.path is not set, or there is no L1"
                              : "with a bus and no shared L2 nothing could be believed after a restart");
    if (!begin_saving(s))
        return near__fail(error, NEAR_ERR_BUSY, "cache %s: a snapshot is being saved or restored",
                          cache->name);
    status = save(s, NEAR_NEVER, error);
    end_saving(s);
    return status;
}

/* ---- restoring */

/* Sleeps; false: it is to stop. */
static bool
wait_until(struct near__snap *s, int64_t when)
{
    bool more = true, stop;

    near__lock(&s->lock);
    while (!s->stop && more)
        more = near__cond_wait(&s->changed, &s->lock, when);
    stop = s->stop;
    near__unlock(&s->lock);
    return !stop;
}

static bool
is_stopped(struct near__snap *s)
{
    bool stop;

    near__lock(&s->lock);
    stop = s->stop;
    near__unlock(&s->lock);
    return stop;
}

/* Not faster than snapshot.rate.  False: it is to stop. */
static bool
keep_pace(struct near__snap *s)
{
    uint64_t rate = s->cache->settings.snapshot_rate;
    int64_t  due;

    if (rate == 0)
        return !is_stopped(s);
    due = s->began + (int64_t)((double)s->done / (double)rate * 1e9);
    return due > near__client_now(s->cache->client) ? wait_until(s, due) : !is_stopped(s);
}

static void
settle(struct near__snap *s, enum near__l1_admission verdict, bool renewed)
{
    s->restored += verdict == NEAR__L1_ADMITTED;
    s->renewed += verdict == NEAR__L1_ADMITTED && renewed;
    s->dropped += verdict != NEAR__L1_ADMITTED;
}

/* What was not counted yet: once for many, for each entry would cost a tenth of putting it back. */
static void
count(struct near__snap *s)
{
    near__count(s->cache, NEAR__snapshot_restored, s->restored - s->counted.restored);
    near__count(s->cache, NEAR__snapshot_renewed, s->renewed - s->counted.renewed);
    near__count(s->cache, NEAR__snapshot_dropped, s->dropped - s->counted.dropped);
    s->counted.restored = s->restored;
    s->counted.renewed  = s->renewed;
    s->counted.dropped  = s->dropped;
}

static int64_t
earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The time of a row on our clock. */
static int64_t
from_base(const struct near__snap *s, int64_t ms)
{
    return ms == NEAR__SNAP_FAR ? NEAR_NEVER : near__time_after(s->base, ms * NEAR_MS);
}

/* An entry as it was saved, its key and value in the row; its time as it would be had it never left.  False: it has ended, or no memory for its
 * tags.  Its labels are the caller's. */
static bool
revive(struct near__snap *s, const struct near__snap_row *row, uint64_t hash, int64_t now,
       struct near__entry *entry)
{
    near_cache *cache   = s->cache;
    int64_t     expires = from_base(s, row->expires_ms), fresh = from_base(s, row->fresh_ms);
    int64_t     born = s->base - row->age_ms * NEAR_MS;

    if (cache->max_ttl != NEAR_NEVER) { /* it may be less than it was */
        fresh   = earlier(fresh, born + cache->max_ttl);
        expires = earlier(expires, near__time_after(fresh, row->negative ? 0 : cache->settings.grace));
    }
    if (expires <= now)
        return false;
    *entry = (struct near__entry){
        .key_size    = (uint32_t)row->key.size,
        .hash        = hash,
        .value_size  = row->value.size,
        .value       = row->value.data,
        .born        = now - born > OLDEST_MS * NEAR_MS ? now - OLDEST_MS * NEAR_MS : born,
        .expires     = expires,
        .fresh_until = row->forced ? INT64_MIN : fresh,
        .cost_us     = row->cost_us,
        .negative    = row->negative,
        .pool        = pool_marked(cache, row->pool),
    };
    if (row->tags > 0) /* their clock at 0: any invalidation since the L1 was made counts */
        entry->labels = near__tags_of(cache, row->tags, row->names);
    return row->tags == 0 || entry->labels != NULL;
}

/* The same on the heap, for what L1 does not copy; takes its labels.  NULL: no memory. */
static struct near__entry *
counted(const struct near__entry *entry, const struct near__snap_row *row)
{
    void               *value;
    struct near__entry *copy = near__entry_new(row->key, entry->hash, row->value.size, &value);

    if (copy == NULL)
        return NULL;
    if (row->value.size > 0)
        memcpy(value, row->value.data, row->value.size);
    copy->born        = entry->born;
    copy->expires     = entry->expires;
    copy->fresh_until = entry->fresh_until;
    copy->cost_us     = entry->cost_us;
    copy->negative    = entry->negative;
    copy->pool        = entry->pool;
    copy->labels      = entry->labels;
    return copy;
}

/* What the fence of a key has been since this L1 was made, if nothing but codecs has come: each is one flush, of all keys.  Asked before
 * near__decodes() is: what is restored as bytes while a codec is being set is refused by that flush, or goes with it. */
static uint64_t
birth_fence(struct near__snap *s)
{
    unsigned codecs;

    near__lock(&s->lock);
    codecs = s->codecs;
    near__unlock(&s->lock);
    return NEAR__L1_FENCE_BIRTH + ((uint64_t)codecs << NEAR__L1_FENCE_FILLS);
}

/* Nobody confirms it, and nobody could have changed it. */
static void
restore_alone(struct near__snap *s, const struct near__snap_row *row, uint64_t hash, uint64_t fence,
              int64_t now)
{
    struct near__l1        *l1      = s->cache->l1;
    bool                    alone   = s->alone && !(near__snap_controls & NEAR__SNAP_UNFENCED);
    bool                    decodes = near__decodes(s->cache);
    enum near__l1_admission verdict = NEAR__L1_EXPIRED;
    struct near__entry      entry, *copy;

    if (row->unknown || !revive(s, row, hash, now, &entry)) {
        settle(s, verdict, false);
        return;
    }
    if (near__snap_controls & NEAR__SNAP_UNFENCED)
        fence = near__l1_fence(l1, entry.hash);
    if (!decodes && near__l1_copies(l1, &entry)) {
        verdict = near__l1_restore(l1, &entry, row->key, fence, alone, row->warmth, now);
        free(entry.labels);
    } else if ((copy = counted(&entry, row)) != NULL) {
        if (near__decode(s->cache, copy) == NEAR_OK)
            verdict = near__l1_restore(l1, copy, row->key, fence, alone, row->warmth, now);
        near__entry_release(&copy);
    } else {
        free(entry.labels);
    }
    settle(s, verdict, false);
}

/* Whether L2 holds what the file does.  Without an envelope there is no version: the bytes tell. */
static bool
is_same(const near_cache *cache, const struct near__entry *entry, const struct near__snap_row *row)
{
    if (!cache->bare)
        return entry->stamp == row->stamp;
    return row->unknown || near__bytes_equal((near_bytes){ entry->value, entry->value_size }, row->value);
}

struct batch {
    size_t                n;
    struct near__snap_row rows[BATCH];
    struct near__ask      asks[BATCH], *wanted[BATCH];
};

/* Ask L2 for what is still unanswered.  How many remain so. */
static size_t
ask(struct near__snap *s, struct batch *batch, size_t wanted, int64_t now)
{
    near_cache *cache = s->cache;
    size_t      left  = 0;
    uint64_t    generation;

    for (size_t i = 0; i < wanted; i++) { /* before L2 is asked, as for any fill */
        batch->wanted[i]->fence       = near__l1_fence(cache->l1, batch->wanted[i]->hash);
        batch->wanted[i]->label_clock = near__l1_label_clock(cache->l1);
        batch->wanted[i]->found       = NEAR__UNASKED;
    }
    near__tier_read(cache, batch->wanted, wanted, now,
                    near__time_after(now, cache->client->settings.l2_timeout), &generation);
    for (size_t i = 0; i < wanted; i++)
        if (batch->wanted[i]->found == NEAR__UNREACHABLE)
            batch->wanted[left++] = batch->wanted[i];
    return left;
}

static void
take_answer(struct near__snap *s, const struct near__snap_row *row, struct near__ask *ask, int64_t now)
{
    enum near__l1_admission verdict = NEAR__L1_EXPIRED;
    bool                    renewed = false;

    if (ask->found == NEAR__FOUND && !ask->counter && near__decode(s->cache, ask->entry) == NEAR_OK) {
        if (near__snap_controls & NEAR__SNAP_UNFENCED)
            ask->fence = near__l1_fence(s->cache->l1, ask->hash);
        renewed          = !is_same(s->cache, ask->entry, row);
        ask->entry->pool = pool_marked(s->cache, row->pool);
        verdict = near__l1_restore(s->cache->l1, ask->entry, ask->key, ask->fence, false, row->warmth, now);
    }
    near__entry_release(&ask->entry);
    settle(s, verdict, renewed);
}

/* Until L2 answers at all, and the bus has L1 answer.  False: to stop, or the file has become too old meanwhile. */
static bool
wait_for_tiers(struct near__snap *s, bool answered)
{
    near_cache *cache = s->cache;
    int64_t     most  = cache->settings.snapshot_max_age != 0
                            ? near__time_after(s->base, cache->settings.snapshot_max_age)
                            : NEAR_NEVER;

    while (!answered || near__cache_gate(cache, near__client_hit_time(cache)) != NEAR__GATE_OPEN) {
        int64_t now = near__client_now(cache->client);

        if (now > most || !wait_until(s, near__time_after(now, WAIT_MS * NEAR_MS)))
            return false;
        answered = true; /* to be asked again */
    }
    return true;
}

/* Fields of hashes, whose versions are their values: read as they are now.  They leave the batch. */
static bool
restore_cells(struct near__snap *s, struct batch *batch)
{
    near_bytes keys[BATCH];
    bool       found[BATCH];
    size_t     n = 0, kept = 0;

    for (size_t i = 0; i < batch->n; i++)
        if (near__field_is_saved(s->cache, batch->rows[i].key))
            keys[n++] = batch->rows[i].key;
        else
            batch->rows[kept++] = batch->rows[i];
    batch->n = kept;
    if (n == 0)
        return true;
    if (!wait_for_tiers(s, true))
        return false;
    for (size_t at = 0; at < n; at += NEAR__FIELDS_CONFIRM)
        near__fields_confirm(s->cache, keys + at,
                             n - at < NEAR__FIELDS_CONFIRM ? n - at : NEAR__FIELDS_CONFIRM, found + at);
    for (size_t i = 0; i < n; i++)
        settle(s, found[i] ? NEAR__L1_ADMITTED : NEAR__L1_EXPIRED, false);
    return true;
}

/* What L2 has of the batch.  A batch of which L2 can say nothing at all waits; what it cannot say of single keys is dropped. */
static bool
restore_batch(struct near__snap *s, struct batch *batch)
{
    near_cache *cache = s->cache;
    size_t      left;
    int64_t     now = 0;

    if (!restore_cells(s, batch))
        return false;
    left = batch->n;

    for (size_t i = 0; i < batch->n; i++) {
        const near_bytes key = batch->rows[i].key;

        batch->asks[i] =
            (struct near__ask){ .key = key, .hash = near__hash_keyed(&cache->client->secret, key) };
        batch->wanted[i] = &batch->asks[i];
    }
    for (bool first = true; left == batch->n && batch->n > 0; first = false) {
        if (!wait_for_tiers(s, first))
            return false;
        now  = near__client_now_exact(cache->client);
        left = ask(s, batch, left, now);
    }
    for (size_t i = 0; i < batch->n; i++)
        take_answer(s, &batch->rows[i], &batch->asks[i], now);
    batch->n = 0;
    return true;
}

static void
count_damage(struct near__snap *s)
{
    s->damaged++;
    near__count(s->cache, NEAR__snapshot_damaged, 1);
}

/* Rows on their way into L1 without a word of L2's: their lines in its index are brought together, for a restored key is nowhere near the
 * one before. */
struct group {
    size_t                n;
    struct near__snap_row rows[GROUP];
    uint64_t              hashes[GROUP];
    uint8_t               rooms[GROUP][NEAR__FIELD_SAVED_MAX];
};

/* The next rows of the block; false: there are none. */
static bool
next_group(struct near__snap *s, struct group *group, near_bytes rows, size_t *at)
{
    near_cache *cache = s->cache;
    size_t      n     = 0;

    for (; n < GROUP && near__snap_row_decode(&group->rows[n], rows, at); n++) {
        (void)near__field_restored_key(cache, &group->rows[n].key, group->rooms[n]);
        group->hashes[n] = near__hash_keyed(&cache->client->secret, group->rows[n].key);
        near__l1_expect(cache->l1, group->hashes[n]);
    }
    group->n = n;
    return n > 0;
}

/* False: it is to stop. */
static bool
restore_rows_alone(struct near__snap *s, near_bytes rows, size_t *at)
{
    struct group group;
    int64_t      now   = near__client_now_exact(s->cache->client);
    uint64_t     fence = birth_fence(s);
    bool         more  = true;

    while (more && next_group(s, &group, rows, at)) {
        for (size_t i = 0; i < group.n; i++)
            restore_alone(s, &group.rows[i], group.hashes[i], fence, now);
        s->done += group.n;
        more = keep_pace(s);
    }
    return more;
}

static bool
restore_rows_confirmed(struct near__snap *s, struct batch *batch, near_bytes rows, size_t *at)
{
    bool more = true;

    while (more && near__snap_row_decode(&batch->rows[batch->n], rows, at)) {
        s->done++;
        if (++batch->n == BATCH)
            more = restore_batch(s, batch);
        if (s->done % PACE == 0)
            more = more && keep_pace(s);
    }
    return more && restore_batch(s, batch);
}

/* A block's rows; false: it is to stop. */
static bool
restore_rows(struct near__snap *s, struct batch *batch, near_bytes rows)
{
    size_t at = 0;
    bool   more =
        batch != NULL ? restore_rows_confirmed(s, batch, rows, &at) : restore_rows_alone(s, rows, &at);

    if (more &&
        at != rows.size) /* sound bytes that are no rows: of another version of us, or made by somebody */
        count_damage(s);
    return more;
}

/* The whole file, or until it is to stop. */
static bool
restore_file(struct near__snap *s, struct batch *batch)
{
    enum near__snap_piece piece;
    near_bytes            rows;
    int                   error;

    while ((piece = near__snap_read_block(&s->reader, &rows, &error)) != NEAR__SNAP_OVER) {
        if (piece != NEAR__SNAP_GOOD)
            count_damage(s);
        if (piece == NEAR__SNAP_BROKEN)
            break;
        if (piece == NEAR__SNAP_GOOD && !restore_rows(s, batch, rows))
            return false;
        count(s);
    }
    return true;
}

static void
report(struct near__snap *s, bool whole)
{
    const struct near__log *log = &s->cache->client->log;
    int64_t                 ms  = (near__client_now(s->cache->client) - s->began) / NEAR_MS;

    if (s->damaged > 0) {
        near__count(s->cache, NEAR__snapshot_failures, 1);
        near__log(log, NEAR_LOG_WARN,
                  "snapshot of cache %s, %s/%s: damaged in %" PRIu64 " places; %" PRIu64 " entries came back",
                  s->cache->name, s->directory, s->name, s->damaged, s->restored);
    }
    near__log(log, NEAR_LOG_INFO,
              "snapshot of cache %s: %" PRIu64 " entries back, %" PRIu64 " dropped, in %" PRId64 " ms%s",
              s->cache->name, s->restored, s->dropped, ms, whole ? "" : " (stopped)");
}

/* Of a cache that had a codec the application sets one again, if it is to be the same; without it bytes are what there is.  What came back before
 * would go with the flush that a codec is. */
static void
wait_for_codec(struct near__snap *s)
{
    int64_t now   = near__client_now(s->cache->client);
    int64_t until = near__time_after(now, CODEC_MS * NEAR_MS);
    bool    more  = true;

    near__lock(&s->lock);
    while (!s->stop && s->codecs == 0 && more)
        more = near__cond_wait(&s->changed, &s->lock, until);
    near__unlock(&s->lock);
    s->began += near__client_now(s->cache->client) - now; /* the rate counts from here */
}

void
near__snap_codec(near_cache *cache)
{
    struct near__snap *s = cache->snap;

    if (s == NULL)
        return;
    near__lock(&s->lock);
    s->codecs++;
    pthread_cond_broadcast(&s->changed);
    near__unlock(&s->lock);
}

static void *
run(void *ctx)
{
    struct near__snap *s     = ctx;
    struct batch      *batch = NULL;
    bool               whole = false;

    s->began = near__client_now(s->cache->client);
    if (!s->alone && !(near__snap_controls & NEAR__SNAP_UNCONFIRMED))
        batch = calloc(1, sizeof(*batch));
    if (s->reader.head.flags & NEAR__SNAP_DECODED)
        wait_for_codec(s);
    if (batch == NULL && !s->alone && !(near__snap_controls & NEAR__SNAP_UNCONFIRMED))
        complain(s, "not restored", "out of memory");
    else
        whole = restore_file(s, batch);
    free(batch);
    count(s);
    near__l1_restore_end(s->cache->l1);
    near__snap_read_close(&s->reader);
    report(s, whole);
    near__count(s->cache, NEAR__snapshot_restoring, (uint64_t)-1);
    near__lock(&s->lock);
    s->restoring = false;
    s->cut       = !whole;
    pthread_cond_broadcast(&s->changed);
    near__unlock(&s->lock);
    return NULL;
}

/* How old the file is, and so where its time lies on our clock.  NULL, or why it is not believed. */
static const char *
set_time(struct near__snap *s)
{
    near_client                  *client = s->cache->client;
    const struct near__snap_head *head   = &s->reader.head;
    int64_t now = near__client_now_exact(client), age, most = s->cache->settings.snapshot_max_age;
    uint8_t boot_id[16], zeros[16] = { 0 };

    read_boot_id(boot_id);
    if (memcmp(boot_id, head->boot_id, 16) == 0 && memcmp(boot_id, zeros, 16) != 0)
        age = now - head->boot_ns;
    else if (__builtin_mul_overflow(near__wall_ms(&client->clock) - head->wall_ms, NEAR_MS, &age))
        age = -1;
    if (age < 0)
        return "is from the future";
    s->base = now - age;
    return most != 0 && age > most ? "is older than snapshot.max_age" : NULL;
}

/* NULL, or why the file is of no use to this cache. */
static const char *
judge(struct near__snap *s)
{
    if (s->reader.head.scope != s->scope)
        return "is another cache's";
    if (s->alone && !(s->reader.head.flags & NEAR__SNAP_ALONE))
        return "was made beside a shared L2, which is not there to confirm it";
    return set_time(s);
}

/* An alone cache's file serves once: it has no name any more when this cache is handed out.  NULL, or why it cannot be used. */
static const char *
take(struct near__snap *s, int directory)
{
    const struct near__disk *disk = &near__disk_system;
    int                      result;

    if (!s->alone || (near__snap_controls & NEAR__SNAP_UNVOIDED))
        return NULL;
    result = disk->lock(disk->ctx, s->reader.fd);
    if (result == 0)
        result = disk->unlink(disk->ctx, directory, s->name);
    if (result == 0)
        result = disk->sync_directory(disk->ctx, directory);
    return result < 0 ? why(result) : NULL;
}

static const char *
find_file(struct near__snap *s)
{
    int         directory = open_directory(s), result;
    const char *text      = NULL;

    if (directory < 0)
        return directory == -ENOENT ? NULL : why(directory);
    result = near__snap_read_open(&s->reader, &near__disk_system, directory, s->name);
    if (result == 0) {
        text = judge(s);
        if (text == NULL || s->alone) {
            const char *taken = take(s, directory);
            text              = text != NULL ? text : taken;
        }
    } else if (result != -ENOENT) {
        text = result == -EBADMSG ? "is no snapshot, or damaged"
               : result == -EPERM ? "is not this user's alone"
                                  : why(result);
        if (result == -EBADMSG)
            count_damage(s);
        if (s->alone) /* what is not believed now must not be another time */
            near__disk_system.unlink(NULL, directory, s->name);
    }
    near__disk_system.close(NULL, directory);
    if (text != NULL)
        near__snap_read_close(&s->reader);
    return text;
}

void
near__snap_open(near_cache *cache)
{
    struct near__snap *s = cache->snap;
    const char        *text;

    if (s == NULL || !s->able)
        return;
    text = find_file(s);
    if (text != NULL)
        complain(s, "not restored", text);
    if (s->reader.fd < 0)
        return;
    if (near__l1_restore_begin(cache->l1, (size_t)s->reader.head.entries, s->alone) != NEAR_OK) {
        complain(s, "not restored", "out of memory");
        near__snap_read_close(&s->reader);
        return;
    }
    s->restoring = s->started = true;
    near__count(cache, NEAR__snapshot_restoring, 1);
    if (near__thread_start(&s->thread, "near-snapshot", run, s) == NEAR_OK)
        return;
    complain(s, "not restored", "no thread");
    near__count(cache, NEAR__snapshot_restoring, (uint64_t)-1);
    s->restoring = s->started = false;
    near__l1_restore_end(cache->l1);
    near__snap_read_close(&s->reader);
}

/* ---- life */

near_status
near__snap_new(near_cache *cache, struct near__l1_config *config, near_error *error)
{
    const struct near__settings *settings = &cache->settings;
    struct near__snap           *s;
    char                         scope[256];

    if (settings->snapshot_path[0] == '\0' || settings->l1_max_bytes == 0)
        return NEAR_OK;
    s = calloc(1, sizeof(*s));
    if (s == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "cache %s: out of memory", cache->name);
    s->cache     = cache;
    s->live      = -1;
    s->reader.fd = -1;
    near__lock_init(&s->lock, NEAR__RANK_LEAF);
    near__cond_init(&s->changed);
    cache->snap = s;
    if (!set_place(s, settings->snapshot_path))
        return near__fail(error, NEAR_ERR_INVALID,
                          "snapshot.path: with the cache's name behind it, \"%.80s\" is too long",
                          settings->snapshot_path);
    s->able  = able(cache);
    s->alone = s->able && !(cache->client->ops != NULL && cache->client->traits.shared);
    snprintf(scope, sizeof(scope), "%.64s %.64s %d", cache->client->settings.l2_key_prefix, cache->name,
             cache->bare);
    s->scope = near__hash_fixed(near_key(scope));
    if (s->alone) {
        config->wrote     = wrote;
        config->wrote_ctx = s;
    }
    if (!s->able)
        near__log(&cache->client->log, NEAR_LOG_WARN,
                  "cache %s: snapshot.path: with a bus and no shared L2 there are no snapshots", cache->name);
    return NEAR_OK;
}

void
near__snap_stop(near_cache *cache)
{
    struct near__snap *s = cache->snap;

    if (s == NULL || !s->started)
        return;
    near__lock(&s->lock);
    s->stop = true;
    pthread_cond_broadcast(&s->changed);
    near__unlock(&s->lock);
    pthread_join(s->thread, NULL);
    s->started = false;
}

void
near__snap_close(near_cache *cache)
{
    struct near__snap *s = cache->snap;

    if (s == NULL || !s->able || cache->settings.snapshot_at_close == NEAR__NO || !begin_saving(s))
        return;
    if (s->cut &&
        !s->alone) { /* what was not restored yet is in the file that is there, and no worse for it */
        end_saving(s);
        return;
    }
    save(s, near__time_after(near__client_now(cache->client), cache->client->settings.close_timeout), NULL);
    end_saving(s);
}

void
near__snap_free(near_cache *cache)
{
    struct near__snap *s = cache->snap;

    if (s == NULL)
        return;
    cache->snap = NULL;
    if (s->live >= 0)
        close(s->live);
    near__snap_read_close(&s->reader);
    pthread_cond_destroy(&s->changed);
    near__lock_fini(&s->lock);
    free(s);
}
