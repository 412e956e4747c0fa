/*
 * See journal.h; how its parts fit together: journal_inside.h.  Here: forks, the thread, what is given to the journal, opening and closing.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/thread.h"
#include "journal_inside.h"

/* ---- forks: descriptors close in the child before anybody runs there */

static pthread_mutex_t registry_lock =
    PTHREAD_MUTEX_INITIALIZER; /* covers the list; nothing is taken or called under it */
static struct near__journal *open_journals;

static void
close_descriptors(struct near__journal *journal)
{
    for (int i = 0; i < FD_COUNT; i++) {
        int fd = atomic_exchange_explicit(&journal->fds[i], -1, memory_order_relaxed);

        if (fd >= 0)
            journal->disk->close(journal->disk->ctx, fd);
    }
}

/* By this process: its forked children may still have the descriptors for a moment, and with them the lock. */
static void
leave_directory(struct near__journal *journal)
{
    int fd = atomic_load_explicit(&journal->fds[FD_LOCK], memory_order_relaxed);

    if (fd >= 0)
        journal->disk->unlock(journal->disk->ctx, fd);
    close_descriptors(journal);
}

static void
before_fork(void)
{
    pthread_mutex_lock(&registry_lock);
}

static void
in_parent(void)
{
    pthread_mutex_unlock(&registry_lock);
}

static void
in_child(void)
{
    for (struct near__journal *journal = open_journals; journal != NULL; journal = journal->next_open) {
        atomic_store_explicit(&journal->forked, true, memory_order_relaxed); /* alone here: no partner */
        close_descriptors(journal);
    }
    open_journals = NULL;
    pthread_mutex_unlock(&registry_lock);
}

static void
watch_forks(void)
{
    pthread_atfork(before_fork, in_parent, in_child);
}

static void
enter_registry(struct near__journal *journal)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&registry_lock);
    journal->next_open = open_journals;
    open_journals      = journal;
    pthread_mutex_unlock(&registry_lock);
}

static void
leave_registry(struct near__journal *journal)
{
    struct near__journal **at = &open_journals;

    pthread_mutex_lock(&registry_lock);
    while (*at != journal) /* it is there: only a fork takes out others, and its child destroys none */
        at = &(*at)->next_open;
    *at = journal->next_open;
    pthread_mutex_unlock(&registry_lock);
}

/* ---- the thread */

static bool
has_work_locked(const struct near__journal *journal) NEAR__NEEDS(journal->lock)
{
    return journal->pending.first != NULL || journal->index.done_pages > 0 ||
           (journal->options.fsync == NEAR__FSYNC_INTERVAL && journal->synced < journal->next_sequence - 1);
}

static int64_t
patience(const struct near__journal *journal)
{
    return journal->options.fsync == NEAR__FSYNC_INTERVAL ? journal->options.interval : LAZY;
}

/* Half of what may be pending at all is early enough to have it written before anybody is refused.  Where there is no room, what is done may make some. */
static bool
is_urgent_locked(const struct near__journal *journal) NEAR__NEEDS(journal->lock)
{
    return journal->pending_bytes >= URGENT || journal->pending_bytes >= journal->max_bytes / 16 ||
           (journal->cramped && journal->index.done_pages > 0);
}

/* Something is there to be written by and by. */
static void
note_work_locked(struct near__journal *journal) NEAR__NEEDS(journal->lock)
{
    if (journal->idle || (is_urgent_locked(journal) && !journal->writing)) {
        if (journal->idle)
            journal->pending_since = near__now(journal->clock);
        journal->idle = false;
        pthread_cond_signal(&journal->work);
    }
}

static void
take_turn_locked(struct near__journal *journal) NEAR__NEEDS(journal->lock)
{
    if (journal->failed != NEAR_OK)
        return;
    near__writer_become_locked(journal);
    if (journal->failed != NEAR_OK) {
        near__writer_cease_locked(journal);
        return;
    }
    journal->pending_since = near__now(journal->clock);
    near__writer_run_locked(journal, journal->options.fsync != NEAR__FSYNC_NONE);
}

static void *
run_thread(void *ctx)
{
    struct near__journal *journal = ctx;

    near__lock(&journal->lock);
    while (!journal->stopping) {
        int64_t due = journal->pending_since + patience(journal);

        if (journal->failed != NEAR_OK || !has_work_locked(journal)) {
            journal->idle = true;
            near__cond_wait(&journal->work, &journal->lock, NEAR_NEVER);
        } else if (!is_urgent_locked(journal) && near__now(journal->clock) < due) {
            near__cond_wait(&journal->work, &journal->lock, due);
        } else {
            take_turn_locked(journal);
        }
    }
    near__unlock(&journal->lock);
    return NULL;
}

near_status
near__journal_tick(struct near__journal *journal)
{
    near_status status;

    if (near__journal_is_forked(journal))
        return NEAR_ERR_FORKED;
    near__lock(&journal->lock);
    take_turn_locked(journal);
    status = journal->failed;
    near__unlock(&journal->lock);
    return status;
}

/* ---- writing */

/* The oldest segments cannot be freed (one that cannot be read is still needed): no more is taken than fits behind them, a few segments are
 * left for what is done. */
static bool
has_no_room_locked(const struct near__journal *journal, size_t size) NEAR__NEEDS(journal->lock)
{
    return journal->cramped &&
           journal->counts.bytes + journal->pending_bytes + size > REFUSE_FROM(journal->max_bytes);
}

static near_status
write_locked(struct near__journal *journal, const struct near__journal_record *record, size_t size,
             uint64_t *sequence) NEAR__NEEDS(journal->lock)
{
    struct near__chunk *chunk;

    if (journal->failed != NEAR_OK)
        return journal->failed;
    if (journal->pending_bytes > journal->max_bytes / 8)
        note_work_locked(journal); /* whoever was writing when it became so much has not heard of it */
    if (journal->index.live_bytes + size > journal->max_bytes / 3 ||
        journal->pending_bytes > journal->max_bytes / 8 || has_no_room_locked(journal, size))
        return NEAR_ERR_BUSY;
    chunk = near__chunk_for_locked(journal, size);
    if (chunk == NULL || !near__index_add(&journal->index, journal->next_sequence, (uint32_t)size, NULL, 0))
        return NEAR_ERR_NOMEM;
    *sequence = chunk->last = journal->next_sequence++;
    near__record_encode(chunk->bytes + chunk->used, record, *sequence, NEAR_OK);
    chunk->used += (uint32_t)size;
    journal->pending_bytes += size;
    note_work_locked(journal);
    return NEAR_OK;
}

near_status
near__journal_write(struct near__journal *journal, const struct near__journal_record *record,
                    uint64_t *sequence)
{
    size_t      size = near__record_size(record);
    near_status status;

    if (near__journal_is_forked(journal))
        return NEAR_ERR_FORKED;
    if (!near__record_is_the_callers(record->kind))
        return NEAR_ERR_INVALID;
    if (size == 0 || size > journal->max_bytes / 8)
        return NEAR_ERR_TOO_LARGE;
    near__lock(&journal->lock);
    status = write_locked(journal, record, size, sequence);
    near__unlock(&journal->lock);
    return status;
}

void
near__journal_done(struct near__journal *journal, const uint64_t *sequences, size_t n)
{
    if (near__journal_is_forked(journal))
        return;
    near__lock(&journal->lock);
    if (journal->failed == NEAR_ERR_CLOSED)
        n = 0; /* there is nowhere to note it: they are replayed once more */
    for (size_t i = 0; i < n; i++)
        near__index_done(&journal->index, sequences[i], true);
    note_work_locked(journal);
    near__unlock(&journal->lock);
}

uint64_t
near__journal_origin(const struct near__journal *journal)
{
    return journal->origin;
}

void
near__journal_state(struct near__journal *journal, struct near__journal_state *state)
{
    *state = (struct near__journal_state){ .live = 0 };
    if (near__journal_is_forked(journal))
        return;
    near__lock(&journal->lock);
    *state            = journal->counts;
    state->live       = journal->index.live;
    state->live_bytes = journal->index.live_bytes;
    state->synced     = journal->synced;
    near__unlock(&journal->lock);
}

/* ---- opening */

static near_status
on_segment(void *ctx, const struct near__scan_segment *found, bool begun)
{
    struct near__journal *journal = ctx;
    struct near__segment *segment;

    if (!begun) {
        journal->last->end = found->end;
        return NEAR_OK;
    }
    segment = malloc(sizeof(*segment));
    if (segment == NULL)
        return NEAR_ERR_NOMEM;
    *segment = (struct near__segment){ .id = found->header.segment, .size = found->header.size };
    if (journal->last != NULL)
        journal->last->next = segment;
    else
        journal->oldest = segment;
    journal->last = segment;
    return NEAR_OK;
}

static near_status
on_record(void *ctx, const struct near__scan_segment *segment, const struct near__record_view *view,
          uint32_t at)
{
    struct near__journal *journal = ctx;

    (void)segment;
    return near__scan_index(&journal->index, view, journal->last, at);
}

static near_status
on_tail(void *ctx, const uint8_t *bytes, uint32_t size)
{
    struct near__journal *journal = ctx;

    journal->tail.bytes = malloc(size);
    if (journal->tail.bytes == NULL)
        return NEAR_ERR_NOMEM;
    memcpy(journal->tail.bytes, bytes, size);
    journal->tail.size = size;
    return NEAR_OK;
}

/* The new segment has begun with it: what it holds lies there now. */
static void
take_over_tail(struct near__journal *journal)
{
    const uint8_t *bytes = journal->tail.bytes;

    near__lock(&journal->lock);
    for (uint32_t at = 0; at < journal->tail.size; at += near__record_encoded_size(bytes + at))
        if (near__writer_bears_sequence(bytes + at))
            near__index_place(&journal->index, near__record_encoded_sequence(bytes + at), journal->last,
                              NEAR__SEGMENT_HEADER + at);
    near__unlock(&journal->lock);
    free(journal->tail.bytes);
    journal->tail = (struct near__segment_start){ .size = 0 };
}

static void
take_report(struct near__journal *journal, const struct near__scan_report *report)
{
    journal->origin          = report->origin;
    journal->last_id         = report->highest;
    journal->synced_end      = report->last_synced;
    journal->synced_checksum = report->last_synced_checksum;
    journal->dead_bytes      = report->dead_bytes;
    journal->next_sequence = report->next_sequence + (report->segments == 0 || report->clean ? 0 : LIFE_GAP);
    journal->written = journal->synced = journal->next_sequence - 1;
    journal->counts.segments           = report->segments;
    journal->counts.bytes              = report->bytes;
    journal->counts.cut_bytes          = report->cut_bytes;
    journal->counts.salvaged_gaps      = report->gaps;
    journal->counts.dead_letters       = report->dead_letters;
    journal->counts.recovered          = journal->index.live;
}

/* What could be read of damaged segments goes into new ones; they are put aside. */
static int
leave_damage_behind(struct near__journal *journal)
{
    struct near__segment *segment;
    int                   result = 0;

    journal->bad_upto = journal->last->id - 1;
    while (result == 0 && (segment = near__room_oldest_in_use(journal)) != NULL &&
           segment->id <= journal->bad_upto) {
        if (!near__room_copy(journal, segment))
            return -EIO;
        result = near__writer_place(journal);
    }
    return result == 0 ? near__writer_rotate(journal, 0) : result;
}

static uint64_t
segment_size_for(uint64_t max_bytes)
{
    uint64_t size = max_bytes / SEGMENTS & ~UINT64_C(4095);

    return size < SEGMENT_LEAST ? SEGMENT_LEAST : size > SEGMENT_MOST ? SEGMENT_MOST : size;
}

static void
init(struct near__journal *journal, const struct near__journal_options *options)
{
    journal->options      = *options;
    journal->disk         = options->disk != NULL ? options->disk : &near__disk_system;
    journal->clock        = options->clock != NULL ? options->clock : &near__clock_system;
    journal->max_bytes    = options->max_bytes != 0 ? options->max_bytes : DEFAULT_BYTES;
    journal->segment_size = (uint32_t)segment_size_for(journal->max_bytes);
    for (int i = 0; i < FD_COUNT; i++)
        atomic_init(&journal->fds[i], -1);
    atomic_init(&journal->forked, false);
    atomic_init(&journal->refs, 1);
    near__lock_init(&journal->lock, NEAR__RANK_LEAF);
    near__cond_init(&journal->changed);
    near__cond_init(&journal->work);
}

/* Neither thread nor user any more. */
static void
destroy(struct near__journal *journal)
{
    for (struct near__segment *segment = journal->oldest, *next; segment != NULL; segment = next) {
        next = segment->next;
        free(segment);
    }
    leave_registry(journal);
    leave_directory(journal);
    near__index_fini(&journal->index);
    near__chunks_free(&journal->pending);
    near__chunks_free(&journal->unsynced);
    near__chunks_free(&journal->emptied);
    near__chunks_free(&journal->rescued);
    near__chunks_free(&(struct near__chunks){ journal->spares, NULL });
    pthread_cond_destroy(&journal->changed);
    pthread_cond_destroy(&journal->work);
    near__lock_fini(&journal->lock);
    free(journal->tail.bytes);
    free(journal->path);
    free(journal);
}

static near_status
recover(struct near__journal *journal, near_error *error)
{
    struct near__journal_dir        dir     = near__journal_dir_of(journal);
    const struct near__scan_visitor visitor = { on_segment, on_record,          NULL,
                                                on_tail,    near__dead_spoiled, journal };
    struct near__scan_report        report;
    near_status status = near__journal_scan(&dir, journal->options.salvage, &visitor, &report, error);
    int         result;

    if (status != NEAR_OK) {
        if (status == NEAR_ERR_NOMEM)
            return near__fail(error, status, "journal %s: out of memory", journal->path);
        return status;
    }
    if (report.origin == 0 && !near__random(&report.origin, sizeof(report.origin)))
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "journal %s: the system gives no random bytes",
                          journal->path);
    take_report(journal, &report);
    journal->floor = report.floor;
    /* A killed process may have left the last segment's name to the kernel alone: what it makes free goes once it is on disk. */
    result = journal->disk->sync_directory(journal->disk->ctx, dir.fd);
    if (result == 0)
        near__journal_sweep(&dir, journal->oldest);
    if (result == 0)
        result = near__writer_next_segment(journal, journal->tail.size, report.gaps == report.dead_gaps,
                                           &journal->tail);
    if (result == 0)
        take_over_tail(journal);
    if (result == 0 && report.gaps > report.dead_gaps)
        result = leave_damage_behind(journal);
    if (result == 0)
        result = near__dead_rescue(journal);
    if (result < 0)
        return near__fail(error, result == -ENOMEM ? NEAR_ERR_NOMEM : NEAR_ERR_UNAVAILABLE,
                          "journal %s: cannot make a segment: %s", journal->path, near__errno_text(-result));
    if (report.cut_bytes > 0)
        near__log(&journal->options.log, NEAR_LOG_WARN,
                  "journal %s: ended in the middle of a write: %" PRIu64 " bytes at offset %" PRIu32
                  " of %016" PRIx64 ".seg are left out",
                  journal->path, report.cut_bytes, report.last_end, report.last);
    return NEAR_OK;
}

static near_status
open_in(struct near__journal *journal, near_error *error)
{
    struct near__journal_dir dir;
    near_status              status = near__journal_dir_open(&dir, journal->disk, journal->path, true, error);
    int                      fd;

    if (status != NEAR_OK)
        return status;
    atomic_store_explicit(&journal->fds[FD_DIRECTORY], dir.fd, memory_order_relaxed);
    status = near__journal_lock(&dir, &fd, error);
    if (status != NEAR_OK)
        return status;
    atomic_store_explicit(&journal->fds[FD_LOCK], fd, memory_order_relaxed);
    status = recover(journal, error);
    if (status != NEAR_OK || journal->options.manual)
        return status;
    status            = near__thread_start(&journal->thread, "near-journal", run_thread, journal);
    journal->threaded = status == NEAR_OK;
    return status == NEAR_OK ? status
                             : near__fail(error, status, "journal %s: no thread for it", journal->path);
}

near_status
near__journal_open(struct near__journal **pjournal, const struct near__journal_options *options,
                   near_error *error)
{
    struct near__journal *journal = calloc(1, sizeof(*journal));
    near_status           status;

    *pjournal = NULL;
    if (journal == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "journal %s: out of memory", options->directory);
    init(journal, options);
    enter_registry(journal);
    journal->path = strdup(options->directory);
    status        = journal->path != NULL
                        ? open_in(journal, error)
                        : near__fail(error, NEAR_ERR_NOMEM, "journal %s: out of memory", options->directory);
    if (status == NEAR_OK)
        *pjournal = journal;
    else
        destroy(journal);
    return status;
}

/* ---- closing */

/* The last record: says that nothing is torn here, and what the next number is. */
static int
write_end(struct near__journal *journal)
{
    struct near__journal_record record = { .kind = NEAR__JOURNAL_END };
    struct near__chunk         *chunk  = near__chunk_new(NEAR__RECORD_HEADER);
    int                         result = near__writer_sync(journal);

    if (chunk == NULL || result < 0) {
        free(chunk);
        return result;
    }
    near__record_encode(chunk->bytes, &record, journal->next_sequence, NEAR_OK);
    chunk->used = NEAR__RECORD_HEADER;
    near__writer_keep(journal, chunk);
    result = near__writer_place(journal);
    return result == 0 ? near__writer_sync(journal) : result;
}

static void
stop_thread(struct near__journal *journal)
{
    near__lock(&journal->lock);
    journal->stopping = true;
    pthread_cond_broadcast(&journal->work);
    near__unlock(&journal->lock);
    if (journal->threaded)
        pthread_join(journal->thread, NULL);
}

void
near__journal_hold(struct near__journal *journal)
{
    atomic_fetch_add_explicit(&journal->refs, 1, memory_order_relaxed); /* from one who has a reference */
}

void
near__journal_release(struct near__journal *journal)
{
    if (journal == NULL || near__journal_is_forked(journal))
        return;
    /* acq_rel: the last one sees what the others did before they let go */
    if (atomic_fetch_sub_explicit(&journal->refs, 1, memory_order_acq_rel) == 1)
        destroy(journal);
}

near_status
near__journal_close(struct near__journal *journal, near_error *error)
{
    near_status status;
    int         result = 0;

    if (journal == NULL)
        return NEAR_OK;
    if (near__journal_is_forked(
            journal)) /* whatever the parent's threads were in the middle of stays as it is */
        return NEAR_OK;
    stop_thread(journal);
    near__lock(&journal->lock);
    if (journal->failed == NEAR_OK) {
        near__writer_become_locked(journal);
        if (journal->failed == NEAR_OK)
            near__writer_run_locked(journal, true);
        else /* it failed for good before our turn came: its file is never touched again */
            near__writer_cease_locked(journal);
    }
    status          = journal->failed;
    journal->failed = NEAR_ERR_CLOSED; /* whoever comes, or waits, from here on */
    near__commit_tell_all_locked(journal);
    near__unlock(&journal->lock);
    if (status == NEAR_OK)
        result = write_end(journal);
    if (result < 0)
        status = near__fail(error, NEAR_ERR_UNAVAILABLE, "journal %s: cannot end it: %s", journal->path,
                            near__errno_text(-result));
    else if (status != NEAR_OK)
        near__fail(error, status, "journal %s: %s", journal->path, journal->failure);
    leave_directory(journal);
    near__journal_release(journal);
    return status;
}
