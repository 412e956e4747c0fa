/*
 * Life and group commit.  What exists of a journal:
 *
 *     pending     chunks of encoded records that no file has yet, oldest first            `lock`
 *     index       what is not done and where it lies; the list of segments                `lock`
 *     written     numbers up to here are in a file, `synced`: on disk                     `lock`
 *     the writer  one thread at a time, whoever set `writing`: a caller of commit, the journal's thread, a replay.  It alone does I/O, with no lock held, and owns:
 *                 the last segment (descriptor, end, last checksum), `unsynced`, the files of dead letters
 *     unsynced    chunks that are in a file and not known to be on disk: after a failed write or fsync they go into another file,
 *                 because what the kernel says of the first one can never be believed again
 *
 * A group is everything that was pending when its writer began.  Before a segment is followed by the next it is on disk, under every
 * policy; so only the last one can end torn.  A segment is free when it and all older ones hold nothing but what is done and known on disk to be; that is written down
 * as the `floor` in the header of the next one, and only then is the file taken for another segment or removed.  When space is short the oldest
 * segments' records are copied to the end.
 *
 * What can never happen: an acknowledged record in no file and not in memory; a write to a file after one that failed; two writers; I/O
 * under the lock; a write in a forked child, whose descriptors are closed before fork(2) returns there.
 */
#include "journal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/le.h"
#include "base/lock.h"
#include "base/thread.h"
#include "journal_file.h"

enum {
    CHUNK          = 256 << 10, /* large enough that a write(2) of one costs its bytes, not the call */
    SPARE_CHUNKS   = 4,
    SEGMENTS       = 32, /* of max_bytes: with fewer, a pinned one is too large a part of it */
    SEGMENT_LEAST  = 32 << 10,
    SEGMENT_MOST   = 16 << 20, /* what is read into memory in one piece at open */
    SPARE_SEGMENTS = 2,
    URGENT =
        1
        << 20, /* pending bytes that the thread does not let wait; less where the bound is small, see is_urgent_locked() */
    DONE_DATA = 1024 * NEAR__DONE_RANGE, /* of one record: fits into the smallest segment */
    BATCH     = 1 << 20,                 /* bytes that a replay reads before it delivers */
    WINDOW    = 256 << 10                /* bytes that it reads at once */
};
#define DEFAULT_BYTES (UINT64_C(1) << 30)
#define GATHER        (2 * NEAR_MS)    /* on slow disks, where half an fsync would be long */
#define LAZY          (1000 * NEAR_MS) /* what nobody waits for is written after this */
#define LIFE_GAP                                                                                             \
    (UINT64_C(1) << 36) /* more numbers than a life can have given and lost: 1 TiB of records of 40 bytes */

/* Which descriptor is which; -1: none.  Apart, so that the child of a fork can close them whatever else was going on. */
enum { FD_DIRECTORY, FD_LOCK, FD_SEGMENT, FD_DEAD, FD_COUNT };

struct chunk {
    struct chunk *next;
    uint64_t      last;   /* highest number in it that is the callers'; 0: none */
    uint64_t      turn;   /* DONE records: whose they are, see near__index_take_done(); 0: none */
    uint32_t      begin;  /* what lies before is on disk */
    uint32_t      placed; /* what lies before is in the last segment, or on disk */
    uint32_t      used;
    uint32_t      capacity;
    uint8_t       bytes[];
};

struct chunks {
    struct chunk *first, *last;
};

struct near__journal {
    struct near__journal_options options;
    const struct near__disk     *disk;
    const struct near__clock    *clock;
    char                        *path;
    uint64_t                     origin, max_bytes;
    uint32_t                     segment_size;
    _Atomic int                  fds[FD_COUNT];
    atomic_bool                  forked;    /* set in the child before anybody else runs there */
    _Atomic unsigned             refs;      /* who closes it, and who may call it after that */
    struct near__journal        *next_open; /* list of open journals: registry_lock */

    struct near__lock lock;    /* leaf; covers all below up to the writer's part */
    pthread_cond_t    changed; /* written, synced, writing, failed */
    pthread_cond_t    work;    /* for the thread */
    pthread_cond_t    gathered;
    pthread_t         thread;
    bool              threaded, stopping, idle;
    bool              cramped; /* no room could be made when the last group was written */
    struct chunks     pending;
    uint64_t          pending_bytes;
    int64_t           pending_since;
    struct chunk     *spares;
    unsigned          spare_count;
    uint64_t          next_sequence, written, synced;
    bool              writing;
    unsigned          waiting;      /* callers in commit, but the writer */
    unsigned          company;      /* how many there were, the writer too, when the last group was written */
    int64_t           sync_time;    /* of the last fsync; the writer's */
    near_status       failed;       /* sticks */
    uint64_t failures, failed_upto; /* the last failed write or fsync, and the records that it concerned */
    char     failure[200];
    struct near__index         index;
    uint64_t                   done_synced; /* the DONE records of this turn and those before are on disk */
    struct near__segment      *oldest, *last;
    struct near__journal_state counts;

    /* the writer's */
    struct chunks unsynced;
    uint32_t      end, checksum; /* of the last segment: what is placed */
    uint32_t      synced_end, synced_checksum;
    uint64_t      stamp, last_id, floor, spare_ids[SPARE_SEGMENTS];
    uint64_t      bad_upto; /* salvaging: segments up to this one are put aside, not used again */
    uint32_t      dead_end, dead_checksum;
    uint64_t      dead_stamp, dead_bytes;
    struct near__segment_start tail; /* while it opens: what only the kernel may know of the last segment */
    struct chunks
        rescued; /* while it opens, salvaging: of each damaged file of dead letters, `last`, what could be read */
};

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
    pthread_mutex_lock(&registry_lock);
    for (struct near__journal **at = &open_journals; *at != NULL; at = &(*at)->next_open)
        if (*at == journal) {
            *at = journal->next_open;
            break;
        }
    pthread_mutex_unlock(&registry_lock);
}

static bool
is_forked(const struct near__journal *journal)
{
    return atomic_load_explicit(&journal->forked,
                                memory_order_relaxed); /* in_child() ran before this thread went on */
}

/* ---- chunks */

static void
append_chunk(struct chunks *list, struct chunk *chunk)
{
    chunk->next = NULL;
    if (list->last != NULL)
        list->last->next = chunk;
    else
        list->first = chunk;
    list->last = chunk;
}

static void
append_chunks(struct chunks *list, struct chunks more)
{
    if (more.first == NULL)
        return;
    if (list->last != NULL)
        list->last->next = more.first;
    else
        list->first = more.first;
    list->last = more.last;
}

static struct chunk *
new_chunk(size_t capacity)
{
    struct chunk *chunk = malloc(sizeof(*chunk) + capacity);

    if (chunk != NULL)
        *chunk = (struct chunk){ .capacity = (uint32_t)capacity };
    return chunk;
}

static void
free_chunks(struct chunks *list)
{
    for (struct chunk *chunk = list->first, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    *list = (struct chunks){ NULL, NULL };
}

/* Room for `size` more bytes at the end of `pending`; NULL: no memory. */
static struct chunk *
chunk_for_locked(struct near__journal *journal, size_t size)
{
    struct chunk *chunk = journal->pending.last;

    if (chunk != NULL && chunk->capacity - chunk->used >= size)
        return chunk;
    if (size <= CHUNK && journal->spares != NULL) {
        chunk           = journal->spares;
        journal->spares = chunk->next;
        journal->spare_count--;
        *chunk = (struct chunk){ .capacity = chunk->capacity };
    } else {
        chunk = new_chunk(size > CHUNK ? size : CHUNK);
    }
    if (chunk != NULL)
        append_chunk(&journal->pending, chunk);
    return chunk;
}

/* Chunks that are on disk. */
static void
recycle_chunks_locked(struct near__journal *journal, struct chunks *list)
{
    for (struct chunk *chunk = list->first, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        if (chunk->capacity == CHUNK && journal->spare_count < SPARE_CHUNKS) {
            chunk->next     = journal->spares;
            journal->spares = chunk;
            journal->spare_count++;
        } else {
            free(chunk);
        }
    }
    *list = (struct chunks){ NULL, NULL };
}

/* ---- the last segment: the writer's */

static int
segment_fd(const struct near__journal *journal)
{
    return atomic_load_explicit(&journal->fds[FD_SEGMENT], memory_order_relaxed); /* the writer's own */
}

static struct near__journal_dir
dir_of(const struct near__journal *journal)
{
    return (struct near__journal_dir){ journal->disk, journal->fds[FD_DIRECTORY], journal->path };
}

/* What is placed is on disk: its memory goes. */
static void
settle_synced(struct near__journal *journal)
{
    struct chunks done = { NULL, NULL };
    uint64_t      last = 0, turn = 0;

    while (journal->unsynced.first != NULL &&
           journal->unsynced.first->placed == journal->unsynced.first->used) {
        struct chunk *chunk = journal->unsynced.first;

        journal->unsynced.first = chunk->next;
        if (chunk->next == NULL)
            journal->unsynced.last = NULL;
        last = chunk->last > last ? chunk->last : last;
        turn = chunk->turn > turn ? chunk->turn : turn;
        append_chunk(&done, chunk);
    }
    if (journal->unsynced.first != NULL)
        journal->unsynced.first->begin = journal->unsynced.first->placed;
    near__lock(&journal->lock);
    if (last > journal->synced)
        journal->synced = last;
    if (turn > journal->done_synced)
        journal->done_synced = turn;
    journal->counts.fsyncs++;
    recycle_chunks_locked(journal, &done);
    near__unlock(&journal->lock);
}

static int
sync_segment(struct near__journal *journal)
{
    int64_t began;
    int     result;

    if (journal->end == journal->synced_end)
        return 0;
    began  = near__now(journal->clock);
    result = journal->disk->sync(journal->disk->ctx, segment_fd(journal));
    if (result < 0)
        return result;
    journal->sync_time       = near__now(journal->clock) - began;
    journal->synced_end      = journal->end;
    journal->synced_checksum = journal->checksum;
    settle_synced(journal);
    return 0;
}

/* The lowest segment that is not free, or the one that comes.  That its records are done is not enough: until that is on disk, and
 * with it whatever replaced them (it stands before), a crash needs them. */
static uint64_t
floor_locked(const struct near__journal *journal, uint64_t coming)
{
    for (const struct near__segment *segment = journal->oldest; segment != NULL; segment = segment->next)
        if (segment->live > 0 || segment->turn > journal->done_synced)
            return segment->id;
    return coming;
}

/* A free segment's file: kept to be used again, removed, or put aside for people to look at. */
static void
put_away(struct near__journal *journal, const struct near__segment *segment)
{
    char name[NEAR__SEGMENT_NAME], aside[NEAR__SEGMENT_NAME];
    int  directory = journal->fds[FD_DIRECTORY];

    near__segment_name(name, segment->id, "seg");
    near__segment_name(aside, segment->id, "bad");
    if (segment->id <= journal->bad_upto) {
        journal->disk->rename(journal->disk->ctx, directory, name, aside);
        return;
    }
    for (int i = 0; i < SPARE_SEGMENTS && segment->size == journal->segment_size && !segment->failed; i++)
        if (journal->spare_ids[i] == 0) {
            journal->spare_ids[i] = segment->id;
            return;
        }
    journal->disk->unlink(journal->disk->ctx, directory, name);
}

/* The header that makes segments below `floor` free is on disk. */
static void
drop_free_segments(struct near__journal *journal, uint64_t floor)
{
    for (;;) {
        struct near__segment *segment;

        near__lock(&journal->lock);
        segment = journal->oldest;
        if (segment == NULL || segment->id >= floor || segment == journal->last) {
            near__unlock(&journal->lock);
            return;
        }
        journal->oldest = segment->next;
        journal->counts.bytes -= segment->size;
        journal->counts.segments--;
        near__unlock(&journal->lock);
        put_away(journal, segment);
        free(segment);
    }
}

static uint64_t
take_spare(struct near__journal *journal, uint32_t size)
{
    uint64_t id = 0;

    for (int i = 0; i < SPARE_SEGMENTS && id == 0 && size == journal->segment_size; i++) {
        id                    = journal->spare_ids[i];
        journal->spare_ids[i] = 0;
    }
    return id;
}

static int
create_segment(struct near__journal *journal, uint32_t size, bool advance, struct near__segment *segment,
               struct near__segment_header *header, struct near__segment_start *start)
{
    struct near__journal_dir dir   = dir_of(journal);
    uint64_t                 spare = take_spare(journal, size);
    int                      fd, result;

    near__lock(&journal->lock);
    *header = (struct near__segment_header){
        .use                  = NEAR__SEGMENT_LOG,
        .size                 = size,
        .segment              = ++journal->last_id,
        .origin               = journal->origin,
        .predecessor          = journal->last != NULL ? journal->last->id : 0,
        .predecessor_end      = journal->synced_end,
        .predecessor_checksum = journal->synced_checksum,
        .floor                = advance ? floor_locked(journal, journal->last_id) : journal->floor,
        .first_sequence       = journal->next_sequence,
    };
    near__unlock(&journal->lock);
    result = near__segment_create(&dir, header, spare, start, &fd);
    if (result < 0)
        return result;
    *segment = (struct near__segment){ .id = header->segment, .size = size };
    fd       = atomic_exchange_explicit(&journal->fds[FD_SEGMENT], fd, memory_order_relaxed);
    if (fd >= 0)
        journal->disk->close(journal->disk->ctx, fd);
    return 0;
}

/* A new last segment, which cuts the one before where it was last known to be on disk.  `advance`: all that is placed is on disk, so what is free may go.
 * A failure to make one is tried once more, under another number: nothing was trusted to the first. */
static int
next_segment(struct near__journal *journal, size_t room, bool advance, struct near__segment_start *start)
{
    struct near__segment_header header;
    struct near__segment       *segment = malloc(sizeof(*segment));
    uint32_t                    size    = journal->segment_size;
    int                         result  = -ENOMEM;

    if (room > size - NEAR__SEGMENT_HEADER)
        size = (uint32_t)((room + NEAR__SEGMENT_HEADER + 4095) & ~(size_t)4095);
    for (int tries = 0; tries < 2 && segment != NULL && result != 0; tries++)
        result = create_segment(journal, size, advance, segment, &header, start);
    if (result < 0) {
        free(segment);
        return result;
    }
    near__lock(&journal->lock);
    if (journal->last != NULL) {
        journal->last->end  = journal->synced_end;
        journal->last->next = segment;
    } else {
        journal->oldest = segment;
    }
    journal->last = segment;
    journal->counts.segments++;
    journal->counts.bytes += size;
    near__unlock(&journal->lock);
    journal->stamp           = near__segment_stamp(journal->origin, header.segment);
    journal->end             = NEAR__SEGMENT_HEADER + start->size;
    journal->checksum        = start->checksum;
    journal->synced_end      = journal->end;
    journal->synced_checksum = start->checksum;
    journal->floor           = header.floor;
    drop_free_segments(journal, header.floor);
    return 0;
}

/* The usual way from one segment to the next. */
static int
rotate(struct near__journal *journal, size_t room)
{
    struct near__segment_start start  = { .size = 0 };
    int                        result = sync_segment(journal);

    return result == 0 ? next_segment(journal, room, true, &start) : result;
}

/* ---- placing: from memory into the last segment */

static bool
bears_sequence(const uint8_t *record)
{
    return record[32] < NEAR__JOURNAL_DONE;
}

/* The records of `chunk` from its `placed` on, as many as the segment takes: sealed, written, known to the index. */
static int
place_run(struct near__journal *journal, struct chunk *chunk)
{
    uint32_t begin = chunk->placed, end = begin, at = journal->end, checksum = journal->checksum;
    int      result;

    while (end < chunk->used) {
        uint32_t size = near__record_encoded_size(chunk->bytes + end);

        if (size > journal->last->size - at)
            break;
        checksum = near__record_seal(chunk->bytes + end, journal->stamp, checksum, journal->synced_end);
        end += size;
        at += size;
    }
    result = near__disk_write_all(journal->disk, segment_fd(journal), chunk->bytes + begin, end - begin,
                                  journal->end);
    if (result < 0)
        return result;
    near__lock(&journal->lock);
    for (at = begin; at < end; at += near__record_encoded_size(chunk->bytes + at)) {
        journal->counts.records++;
        if (bears_sequence(chunk->bytes + at))
            near__index_place(&journal->index, near__record_encoded_sequence(chunk->bytes + at),
                              journal->last, journal->end + (at - begin));
    }
    near__unlock(&journal->lock);
    journal->end += end - begin;
    journal->checksum = checksum;
    chunk->placed     = end;
    return 0;
}

/* Everything in `unsynced` that is not placed yet. */
static int
place_all(struct near__journal *journal)
{
    struct chunk *chunk  = journal->unsynced.first, *next;
    int           result = 0;

    for (; chunk != NULL && result == 0; chunk = next) {
        next = chunk->next; /* the chunk itself goes when a segment is full and it was the last in it */
        while (result == 0 && chunk->placed < chunk->used) {
            uint32_t size = near__record_encoded_size(chunk->bytes + chunk->placed);

            result =
                size > journal->last->size - journal->end ? rotate(journal, size) : place_run(journal, chunk);
        }
    }
    return result;
}

/* ---- failures */

static void
stick(struct near__journal *journal, int result, const char *what)
{
    near__lock(&journal->lock);
    journal->failed        = NEAR_ERR_UNAVAILABLE;
    journal->counts.failed = NEAR_ERR_UNAVAILABLE;
    snprintf(journal->failure, sizeof(journal->failure), "%s: %s", what, strerror(-result));
    near__unlock(&journal->lock);
    near__log(&journal->options.log, NEAR_LOG_ERROR,
              "journal %s: %s: %s; it takes no more writes until it is opened anew", journal->path, what,
              strerror(-result));
}

/* A write or fsync failed: the file is never touched again.  Those who wait for records up to `concerned` are told; what memory still has goes into another file. */
static int
move_on(struct near__journal *journal, int failure, uint64_t concerned)
{
    struct near__segment_start start = { .size = 0 };
    int                        result;

    near__lock(&journal->lock);
    journal->counts.failures++;
    journal->failures++;
    if (concerned > journal->failed_upto)
        journal->failed_upto = concerned;
    journal->last->failed = true;
    near__unlock(&journal->lock);
    near__log(&journal->options.log, NEAR_LOG_ERROR,
              "journal %s: segment %016" PRIx64 ": %s; what it may have lost is written to another file",
              journal->path, journal->last->id, strerror(-failure));
    for (struct chunk *chunk = journal->unsynced.first; chunk != NULL; chunk = chunk->next)
        chunk->placed = chunk->begin;
    result = next_segment(journal, 0, false, &start);
    if (result == 0)
        result = place_all(journal);
    if (result == 0)
        result = sync_segment(journal);
    return result;
}

/* ---- a group */

/* What is done, as records at the end of a group.  Without memory for them they wait for the next one. */
static void
take_done_locked(struct near__journal *journal, struct chunks *group)
{
    size_t        most = near__index_done_size(&journal->index), used, records;
    struct chunk *chunk;
    uint8_t      *ranges;

    if (most == 0)
        return;
    records = most / DONE_DATA + 1;
    chunk   = new_chunk(most + records * (NEAR__RECORD_HEADER + 8));
    ranges  = malloc(most);
    if (chunk == NULL || ranges == NULL) {
        free(chunk);
        free(ranges);
        return;
    }
    used        = near__index_take_done(&journal->index, ranges);
    chunk->turn = journal->index.turn;
    for (size_t at = 0, part; at < used; at += part) {
        struct near__journal_record record = { .kind = NEAR__JOURNAL_DONE };

        part        = used - at < DONE_DATA ? used - at : DONE_DATA;
        record.data = (near_bytes){ ranges + at, part };
        near__record_encode(chunk->bytes + chunk->used, &record, 0, NEAR_OK);
        chunk->used += (uint32_t)near__record_size(&record);
    }
    free(ranges);
    append_chunk(group, chunk);
}

static bool copy_segment(struct near__journal *journal, struct near__segment *segment);

/* The oldest segment that holds what is not done; NULL: there is none but the last. */
static struct near__segment *
oldest_in_use(struct near__journal *journal)
{
    struct near__segment *segment;

    near__lock(&journal->lock);
    segment = journal->oldest;
    while (segment != journal->last && segment->live == 0)
        segment = segment->next;
    near__unlock(&journal->lock);
    return segment != journal->last ? segment : NULL;
}

static bool
is_short_of_space_locked(const struct near__journal *journal)
{
    return journal->counts.bytes > journal->max_bytes / 4 * 3 && journal->oldest != journal->last &&
           journal->index.live_bytes <
               journal->max_bytes /
                   2; /* a smaller bound than in a former life: writing is refused, that must do */
}

static bool
is_short_of_space(struct near__journal *journal)
{
    bool answer;

    near__lock(&journal->lock);
    answer = is_short_of_space_locked(journal);
    near__unlock(&journal->lock);
    return answer;
}

/* A new segment, which says what is free.  False in `*freed`: nothing was, so another one would only take space. */
static int
free_some(struct near__journal *journal, bool *freed)
{
    const struct near__segment *oldest = journal->oldest; /* only the writer takes it out of the list */
    int                         result = rotate(journal, 0);

    *freed = journal->oldest != oldest;
    return result;
}

/* Space is short: the oldest segments' records go to the end, a segment's worth and more, then a new segment says that they are free.  What was done only
 * since this group began holds its segment until the next one. */
static int
make_room(struct near__journal *journal)
{
    bool goes_on = true;
    int  result  = 0;

    for (int rounds = 0; rounds < 2 * SEGMENTS && result == 0 && goes_on && is_short_of_space(journal);
         rounds++) {
        struct near__segment *segment = oldest_in_use(journal);

        if (segment == NULL || journal->end > journal->last->size / 4 * 3)
            result = free_some(journal, &goes_on);
        else if (!copy_segment(journal, segment))
            return 0;
        else
            result = place_all(journal);
    }
    return result;
}

/* As the writer, with the lock held; it is dropped meanwhile. */
static void
write_group_locked(struct near__journal *journal, bool sync)
{
    struct chunks group = journal->pending;
    uint64_t      last  = journal->next_sequence - 1;
    int           result, first;

    journal->pending       = (struct chunks){ NULL, NULL };
    journal->pending_bytes = 0;
    take_done_locked(journal, &group);
    journal->counts.groups += group.first != NULL;
    near__unlock(&journal->lock);

    append_chunks(&journal->unsynced, group);
    result = first = place_all(journal);
    if (result == 0 && sync)
        result = first = sync_segment(journal);
    if (result < 0)
        result = move_on(journal, result, last);
    if (result == 0 && first == 0) {
        result = make_room(journal);
        if (result < 0) /* the group itself is in a file, and goes into the next with what was to be copied */
            result = move_on(journal, result, 0);
    }
    if (result < 0)
        stick(journal, result, "cannot write");

    near__lock(&journal->lock);
    journal->cramped = is_short_of_space_locked(journal);
    if (journal->failed == NEAR_OK)
        journal->written = last;
    if (journal->failed == NEAR_OK && journal->unsynced.first == NULL)
        journal->synced = last;
}

/* With the lock held: wait until nobody writes, or until `deadline`. */
static bool
become_writer_locked(struct near__journal *journal, int64_t deadline)
{
    while (journal->writing)
        if (!near__cond_wait(&journal->changed, &journal->lock, deadline))
            return false;
    journal->writing = true;
    return true;
}

static void
cease_writing_locked(struct near__journal *journal)
{
    journal->writing = false;
    pthread_cond_broadcast(&journal->changed);
}

static void
run_group_locked(struct near__journal *journal, bool sync)
{
    write_group_locked(journal, sync);
    cease_writing_locked(journal);
}

/* ---- the thread */

static bool
has_work_locked(const struct near__journal *journal)
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
is_urgent_locked(const struct near__journal *journal)
{
    return journal->pending_bytes >= URGENT || journal->pending_bytes >= journal->max_bytes / 16 ||
           (journal->cramped && journal->index.done_pages > 0);
}

/* Something is there to be written by and by. */
static void
note_work_locked(struct near__journal *journal)
{
    if (journal->idle || (is_urgent_locked(journal) && !journal->writing)) {
        if (journal->idle)
            journal->pending_since = near__now(journal->clock);
        journal->idle = false;
        pthread_cond_signal(&journal->work);
    }
}

static void
take_turn_locked(struct near__journal *journal)
{
    if (journal->failed != NEAR_OK || !become_writer_locked(journal, NEAR_NEVER))
        return;
    journal->pending_since = near__now(journal->clock);
    run_group_locked(journal, journal->options.fsync != NEAR__FSYNC_NONE);
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

    if (is_forked(journal))
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
has_no_room_locked(const struct near__journal *journal, size_t size)
{
    return journal->cramped &&
           journal->counts.bytes + journal->pending_bytes + size > journal->max_bytes / 8 * 7;
}

static near_status
write_locked(struct near__journal *journal, const struct near__journal_record *record, size_t size,
             uint64_t *sequence)
{
    struct chunk *chunk;

    if (journal->failed != NEAR_OK)
        return journal->failed;
    if (journal->pending_bytes > journal->max_bytes / 8)
        note_work_locked(journal); /* whoever was writing when it became so much has not heard of it */
    if (journal->index.live_bytes + size > journal->max_bytes / 3 ||
        journal->pending_bytes > journal->max_bytes / 8 || has_no_room_locked(journal, size))
        return NEAR_ERR_BUSY;
    chunk = chunk_for_locked(journal, size);
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

    if (is_forked(journal))
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

/* Those whom the last group let go are about to come again: for a part of what an fsync takes it is worth waiting for them, else half of them
 * would just miss this one.  Who has always been alone does not wait. */
static void
gather_locked(struct near__journal *journal)
{
    int64_t most  = journal->sync_time / 2 < GATHER ? journal->sync_time / 2 : GATHER;
    int64_t until = near__time_after(near__now(&near__clock_system), most);

    while (journal->waiting + 1 < journal->company)
        if (!near__cond_wait(&journal->gathered, &journal->lock, until))
            return;
}

static bool
wait_locked(struct near__journal *journal, int64_t deadline)
{
    bool in_time;

    if (++journal->waiting + 1 >= journal->company)
        pthread_cond_signal(&journal->gathered);
    in_time = near__cond_wait(&journal->changed, &journal->lock, deadline);
    journal->waiting--;
    return in_time;
}

/* Until `*reached` is there: whoever finds nobody writing writes for all. */
static near_status
wait_for(struct near__journal *journal, const uint64_t *reached, bool sync, uint64_t sequence,
         int64_t deadline)
{
    uint64_t failures = journal->failures;

    while (*reached < sequence) {
        if (journal->failed != NEAR_OK)
            return journal->failed;
        if (!journal->writing) {
            journal->writing = true;
            if (sync && journal->company > 1)
                gather_locked(journal);
            write_group_locked(journal, sync);
            journal->company = journal->waiting + 1;
            journal->writing = false;
            near__unlock(&journal->lock); /* or those who wake would wait at once for this lock */
            pthread_cond_broadcast(&journal->changed);
            near__lock(&journal->lock);
        } else if (!wait_locked(journal, deadline) && *reached < sequence) {
            return NEAR_ERR_TIMEOUT;
        }
        if (journal->failures != failures && sequence <= journal->failed_upto)
            return NEAR_ERR_UNAVAILABLE;
    }
    return NEAR_OK;
}

static near_status
make_durable(struct near__journal *journal, bool sync, uint64_t sequence, int64_t deadline)
{
    near_status status;

    near__lock(&journal->lock);
    status = wait_for(journal, sync ? &journal->synced : &journal->written, sync, sequence, deadline);
    near__unlock(&journal->lock);
    return status;
}

near_status
near__journal_commit(struct near__journal *journal, uint64_t sequence, int64_t deadline)
{
    if (is_forked(journal))
        return NEAR_ERR_FORKED;
    if (journal->options.fsync == NEAR__FSYNC_INTERVAL)
        return NEAR_OK;
    return make_durable(journal, journal->options.fsync == NEAR__FSYNC_ALWAYS, sequence, deadline);
}

near_status
near__journal_sync(struct near__journal *journal, uint64_t sequence, int64_t deadline)
{
    if (is_forked(journal))
        return NEAR_ERR_FORKED;
    return make_durable(journal, journal->options.fsync != NEAR__FSYNC_NONE, sequence, deadline);
}

uint64_t
near__journal_synced(struct near__journal *journal)
{
    uint64_t synced;

    if (is_forked(journal))
        return 0;
    near__lock(&journal->lock);
    synced = journal->synced;
    near__unlock(&journal->lock);
    return synced;
}

void
near__journal_done(struct near__journal *journal, const uint64_t *sequences, size_t n)
{
    if (is_forked(journal))
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
    if (is_forked(journal))
        return;
    near__lock(&journal->lock);
    *state            = journal->counts;
    state->live       = journal->index.live;
    state->live_bytes = journal->index.live_bytes;
    near__unlock(&journal->lock);
}

/* ---- reading what was written */

/* A part of a segment's file, in memory: the writer's while it copies or replays. */
struct window {
    uint64_t segment;
    int      fd;
    uint64_t at, size;
    size_t   capacity;
    uint8_t *bytes;
};

static void
window_free(struct near__journal *journal, struct window *window)
{
    if (window->fd >= 0)
        journal->disk->close(journal->disk->ctx, window->fd);
    free(window->bytes);
}

static int
window_turn(struct near__journal *journal, struct window *window, uint64_t segment)
{
    char name[NEAR__SEGMENT_NAME];

    if (window->segment == segment)
        return 0;
    if (window->fd >= 0)
        journal->disk->close(journal->disk->ctx, window->fd);
    near__segment_name(name, segment, "seg");
    window->size    = 0;
    window->segment = 0;
    window->fd = journal->disk->open(journal->disk->ctx, journal->fds[FD_DIRECTORY], name, NEAR__DISK_READ);
    if (window->fd < 0)
        return window->fd;
    window->segment = segment;
    return 0;
}

/* `size` bytes at `at` of a segment that is known to reach to `end`; NULL and `*result` otherwise. */
static const uint8_t *
window_bytes(struct near__journal *journal, struct window *window, uint64_t segment, uint32_t at,
             uint32_t size, uint32_t end, int *result)
{
    size_t want = end - at < WINDOW ? end - at : WINDOW;

    *result = window_turn(journal, window, segment);
    if (*result < 0)
        return NULL;
    if (at >= window->at && at + (uint64_t)size <= window->at + window->size)
        return window->bytes + (at - window->at);
    want = want < size ? size : want;
    if (want > window->capacity) {
        free(window->bytes);
        window->bytes    = malloc(want);
        window->capacity = window->bytes != NULL ? want : 0;
        window->size     = 0;
    }
    if (window->bytes == NULL)
        return *result = -ENOMEM, NULL;
    window->size = 0;
    *result      = near__disk_read_all(journal->disk, window->fd, window->bytes, want, at);
    if (*result < 0)
        return NULL;
    window->at   = at;
    window->size = want;
    return window->bytes;
}

/* ---- copying forward */

/* A segment's file up to the end of its records; NULL: it cannot be read, or there is no memory. */
static uint8_t *
read_segment(struct near__journal *journal, struct near__segment *segment)
{
    char     name[NEAR__SEGMENT_NAME];
    uint8_t *bytes = malloc(segment->end);
    int      fd = -1, result = -ENOMEM;

    near__segment_name(name, segment->id, "seg");
    if (bytes != NULL)
        result = fd =
            journal->disk->open(journal->disk->ctx, journal->fds[FD_DIRECTORY], name, NEAR__DISK_READ);
    if (fd >= 0) {
        result = near__disk_read_all(journal->disk, fd, bytes, segment->end, 0);
        journal->disk->close(journal->disk->ctx, fd);
    }
    if (result >= 0)
        return bytes;
    if (!segment->unreadable)
        near__log(&journal->options.log, NEAR_LOG_ERROR, "journal %s: %s cannot be copied: %s", journal->path,
                  name, strerror(-result));
    segment->unreadable = true;
    free(bytes);
    return NULL;
}

/* The record there is not done, and this is its newest place. */
static bool
is_live_at_locked(struct near__journal *journal, const struct near__segment *segment,
                  const struct near__record_view *view, uint32_t at)
{
    const struct near__index_place *place = NULL;

    if ((unsigned)view->record.kind < NEAR__JOURNAL_DONE)
        place = near__index_find(&journal->index, view->sequence);
    return place != NULL && place->segment == segment && place->at == at;
}

/* What in the segment is not done, as a chunk at the end of `unsynced`.  False: not all of it could be read; it stays where it is. */
static bool
copy_segment(struct near__journal *journal, struct near__segment *segment)
{
    uint64_t      stamp = near__segment_stamp(journal->origin, segment->id), live, room, copied = 0;
    uint8_t      *bytes = read_segment(journal, segment);
    struct chunk *chunk;
    struct near__record_view view;
    size_t                   at;

    near__lock(&journal->lock);
    room = segment->live_bytes;
    near__unlock(&journal->lock);
    chunk = bytes != NULL ? new_chunk(room) : NULL;
    if (chunk == NULL) {
        free(bytes);
        return false;
    }
    near__lock(&journal->lock);
    live = segment->live; /* only less than it was */
    for (at = near__record_search(&view, bytes, segment->end, NEAR__SEGMENT_HEADER, stamp); at < segment->end;
         at = near__record_search(&view, bytes, segment->end, at + view.size, stamp)) {
        if (!is_live_at_locked(journal, segment, &view, (uint32_t)at) ||
            view.size > chunk->capacity - chunk->used)
            continue;
        memcpy(chunk->bytes + chunk->used, bytes + at, view.size);
        chunk->used += view.size;
        copied++;
    }
    journal->counts.rewritten += copied;
    near__unlock(&journal->lock);
    append_chunk(&journal->unsynced, chunk);
    free(bytes);
    if (copied < live && !segment->unreadable)
        near__log(&journal->options.log, NEAR_LOG_ERROR,
                  "journal %s: segment %016" PRIx64 " has records that cannot be read again", journal->path,
                  segment->id);
    segment->unreadable = copied < live;
    return copied >= live;
}

/* ---- replay */

struct item {
    uint64_t sequence;
    size_t   at;
};

struct replay {
    struct near__journal *journal;
    near_bytes            cache;
    unsigned              kinds;
    uint64_t              upto;   /* what came later need not be handed out */
    bool                  missed; /* something is in memory only, and no file takes it */
    uint64_t             *pages;
    size_t                page_count, page; /* the next one */
    struct window         window;
    uint8_t              *bytes; /* of the batch */
    size_t                used, capacity;
    struct item          *items;
    size_t                item_count, item_capacity;
};

static bool
replay_room(struct replay *replay, size_t size)
{
    if (replay->used + size > replay->capacity) {
        size_t   capacity = replay->used + size > BATCH ? replay->used + size : BATCH;
        uint8_t *bytes    = realloc(replay->bytes, capacity);

        if (bytes == NULL)
            return false;
        replay->bytes    = bytes;
        replay->capacity = capacity;
    }
    if (replay->item_count == replay->item_capacity) {
        size_t       capacity = 2 * replay->item_capacity + 64;
        struct item *items    = realloc(replay->items, capacity * sizeof(*items));

        if (items == NULL)
            return false;
        replay->items         = items;
        replay->item_capacity = capacity;
    }
    return true;
}

/* One record into the batch, if it is asked for. */
static int
replay_take(struct replay *replay, const struct near__index_place *place, uint64_t sequence)
{
    struct near__journal    *journal = replay->journal;
    struct near__segment    *segment = place->segment;
    uint32_t                 end     = segment == journal->last ? journal->end : segment->end;
    struct near__record_view view;
    const uint8_t           *bytes;
    int                      result;

    bytes = window_bytes(journal, &replay->window, segment->id, place->at, place->size, end, &result);
    if (bytes == NULL)
        return result;
    if (!near__record_decode(&view, bytes, place->size, near__segment_stamp(journal->origin, segment->id)) ||
        view.sequence != sequence)
        return -EIO;
    if ((replay->kinds >> (unsigned)view.record.kind & 1) == 0 ||
        !near__bytes_equal(view.record.cache, replay->cache))
        return 0;
    if (!replay_room(replay, view.size))
        return -ENOMEM;
    replay->items[replay->item_count++] = (struct item){ sequence, replay->used };
    memcpy(replay->bytes + replay->used, bytes, view.size);
    replay->used += view.size;
    return 0;
}

/* A page: what of it is not done. */
static int
replay_page(struct replay *replay, uint64_t number)
{
    struct near__journal          *journal = replay->journal;
    struct near__index_place       places[NEAR__INDEX_PAGE];
    const struct near__index_page *page;
    uint64_t                       live   = 0;
    int                            result = 0;

    near__lock(&journal->lock);
    page = near__index_page(&journal->index, number);
    if (page != NULL) {
        live = page->live;
        memcpy(places, page->places, sizeof(places));
    }
    near__unlock(&journal->lock);
    for (; live != 0 && result == 0; live &= live - 1) {
        unsigned i        = (unsigned)__builtin_ctzll(live);
        uint64_t sequence = number * NEAR__INDEX_PAGE + i;

        replay->missed = replay->missed || (places[i].segment == NULL && sequence <= replay->upto);
        if (places[i].segment != NULL)
            result = replay_take(replay, &places[i], sequence);
    }
    return result;
}

/* As the writer, so that no segment is freed meanwhile: records worth a batch. */
static int
replay_gather(struct replay *replay)
{
    struct near__journal *journal = replay->journal;
    int                   result  = 0;

    near__lock(&journal->lock);
    become_writer_locked(journal, NEAR_NEVER);
    near__unlock(&journal->lock);
    replay->used = replay->item_count = 0;
    while (replay->page < replay->page_count && replay->used < BATCH && result == 0)
        result = replay_page(replay, replay->pages[replay->page++]);
    if (replay->window.fd >= 0)
        journal->disk->close(journal->disk->ctx,
                             replay->window.fd); /* its segment may be another's tomorrow */
    replay->window.fd      = -1;
    replay->window.segment = 0;
    near__lock(&journal->lock);
    cease_writing_locked(journal);
    near__unlock(&journal->lock);
    return result;
}

static bool
replay_deliver(const struct replay *replay, near__journal_deliver deliver, void *ctx)
{
    struct near__record_view view;

    for (size_t i = 0; i < replay->item_count; i++)
        if (!near__record_read(&view, replay->bytes + replay->items[i].at,
                               replay->used - replay->items[i].at) ||
            !deliver(ctx, &view.record, replay->items[i].sequence))
            return false;
    return true;
}

near_status
near__journal_replay(struct near__journal *journal, near_bytes cache, unsigned kinds,
                     near__journal_deliver deliver, void *ctx)
{
    struct replay replay = { .journal = journal, .cache = cache, .kinds = kinds, .window.fd = -1 };
    bool          go_on  = true;
    int           result = 0;

    if (is_forked(journal))
        return NEAR_ERR_FORKED;
    near__lock(&journal->lock);
    replay.upto = journal->next_sequence - 1;
    wait_for(journal, &journal->written, journal->options.fsync != NEAR__FSYNC_NONE, replay.upto,
             NEAR_NEVER); /* what a failure left in memory is found below */
    replay.pages = near__index_pages(&journal->index, &replay.page_count);
    near__unlock(&journal->lock);
    if (replay.pages == NULL && replay.page_count > 0)
        return NEAR_ERR_NOMEM;
    while (go_on && result == 0 && replay.page < replay.page_count) {
        result = replay_gather(&replay);
        go_on  = replay_deliver(&replay, deliver, ctx);
    }
    window_free(journal, &replay.window);
    free(replay.pages);
    free(replay.bytes);
    free(replay.items);
    if (result == -ENOMEM)
        return NEAR_ERR_NOMEM;
    if (result < 0)
        near__log(&journal->options.log, NEAR_LOG_ERROR, "journal %s: a record cannot be read again: %s",
                  journal->path, strerror(-result));
    return result == 0 && !replay.missed ? NEAR_OK : NEAR_ERR_UNAVAILABLE;
}

/* ---- dead letters */

static int
open_dead(struct near__journal *journal)
{
    struct near__journal_dir    dir    = dir_of(journal);
    struct near__segment_header header = {
        .use     = NEAR__SEGMENT_DEAD,
        .size    = NEAR__SEGMENT_HEADER,
        .segment = journal->last_id + 1,
        .origin  = journal->origin,
    };
    int fd, result;

    if (journal->fds[FD_DEAD] >= 0)
        return 0;
    journal->last_id++;
    result = near__dead_create(&dir, &header, &fd);
    if (result < 0)
        return result;
    atomic_store_explicit(&journal->fds[FD_DEAD], fd, memory_order_relaxed);
    journal->dead_stamp    = near__segment_stamp(journal->origin, header.segment);
    journal->dead_end      = NEAR__SEGMENT_HEADER;
    journal->dead_checksum = header.checksum;
    journal->dead_bytes += NEAR__SEGMENT_HEADER;
    return 0;
}

/* A file that failed once is left; the next letter opens another. */
static int
append_dead(struct near__journal *journal, uint8_t *bytes, uint32_t size)
{
    uint32_t checksum;
    int      result = open_dead(journal), fd;

    if (result < 0)
        return result;
    fd       = journal->fds[FD_DEAD];
    checksum = near__record_seal(bytes, journal->dead_stamp, journal->dead_checksum, journal->dead_end);
    result   = near__disk_write_all(journal->disk, fd, bytes, size, journal->dead_end);
    if (result == 0)
        result = journal->disk->sync(journal->disk->ctx, fd);
    journal->dead_bytes += size;
    journal->dead_end += size;
    journal->dead_checksum = checksum;
    if (result == 0 && journal->dead_end < SEGMENT_MOST)
        return 0;
    atomic_store_explicit(&journal->fds[FD_DEAD], -1, memory_order_relaxed);
    journal->disk->close(journal->disk->ctx, fd);
    return result;
}

near_status
near__journal_dead(struct near__journal *journal, const struct near__journal_record *record,
                   uint64_t sequence, near_status reason)
{
    size_t      size   = near__record_size(record);
    uint8_t    *bytes  = NULL;
    near_status status = NEAR_OK;
    int         result = 0;

    if (is_forked(journal))
        return NEAR_ERR_FORKED;
    if (size == 0 || !near__record_is_the_callers(record->kind))
        return NEAR_ERR_INVALID;
    bytes = malloc(size);
    if (bytes == NULL)
        return NEAR_ERR_NOMEM;
    near__record_encode(bytes, record, sequence, reason);
    near__lock(&journal->lock);
    become_writer_locked(journal, NEAR_NEVER);
    status = journal->failed == NEAR_ERR_CLOSED ? journal->failed : NEAR_OK;
    near__unlock(&journal->lock);
    if (status != NEAR_OK)
        result = 0;
    else if (journal->dead_bytes + size > journal->max_bytes / 8)
        status = NEAR_ERR_BUSY;
    else
        result = append_dead(journal, bytes, (uint32_t)size);
    near__lock(&journal->lock);
    journal->counts.dead_letters += status == NEAR_OK && result == 0;
    journal->counts.failures += result < 0;
    cease_writing_locked(journal);
    near__unlock(&journal->lock);
    free(bytes);
    if (result < 0)
        near__log(&journal->options.log, NEAR_LOG_ERROR, "journal %s: dead letters: %s", journal->path,
                  strerror(-result));
    return result < 0 ? NEAR_ERR_UNAVAILABLE : status;
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

/* A damaged file of dead letters. */
static near_status
on_spoiled(void *ctx, uint64_t id, const uint8_t *bytes, size_t size, uint64_t stamp)
{
    struct near__journal    *journal = ctx;
    struct chunk            *chunk   = new_chunk(size);
    struct near__record_view view;
    size_t                   at;

    if (chunk == NULL)
        return NEAR_ERR_NOMEM;
    chunk->last = id;
    append_chunk(&journal->rescued, chunk);
    for (at = near__record_search(&view, bytes, size, NEAR__SEGMENT_HEADER, stamp); at < size;
         at = near__record_search(&view, bytes, size, at + view.size, stamp)) {
        memcpy(chunk->bytes + chunk->used, bytes + at, view.size);
        chunk->used += view.size;
    }
    return NEAR_OK;
}

/* What could be read of damaged dead letters goes into a file of its own, then they are put aside.  Killed in between, it is there twice. */
static int
leave_spoiled_behind(struct near__journal *journal)
{
    char name[NEAR__SEGMENT_NAME], aside[NEAR__SEGMENT_NAME];
    int  directory = journal->fds[FD_DIRECTORY], result = 0;

    for (struct chunk *chunk = journal->rescued.first; chunk != NULL && result == 0; chunk = chunk->next) {
        for (uint32_t at = 0, size; at < chunk->used && result == 0; at += size) {
            size   = near__record_encoded_size(chunk->bytes + at);
            result = append_dead(journal, chunk->bytes + at, size);
        }
        near__segment_name(name, chunk->last, "dead");
        near__segment_name(aside, chunk->last, "bad");
        if (result == 0)
            result = journal->disk->rename(journal->disk->ctx, directory, name, aside);
        if (result == 0)
            result = journal->disk->sync_directory(journal->disk->ctx, directory);
    }
    free_chunks(&journal->rescued);
    return result;
}

/* The new segment has begun with it: what it holds lies there now. */
static void
take_over_tail(struct near__journal *journal)
{
    const uint8_t *bytes = journal->tail.bytes;

    near__lock(&journal->lock);
    for (uint32_t at = 0; at < journal->tail.size; at += near__record_encoded_size(bytes + at))
        if (bears_sequence(bytes + at))
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
    while (result == 0 && (segment = oldest_in_use(journal)) != NULL && segment->id <= journal->bad_upto) {
        if (!copy_segment(journal, segment))
            return -EIO;
        result = place_all(journal);
    }
    return result == 0 ? rotate(journal, 0) : result;
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
    near__cond_init(&journal->gathered);
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
    close_descriptors(journal);
    near__index_fini(&journal->index);
    free_chunks(&journal->pending);
    free_chunks(&journal->unsynced);
    free_chunks(&journal->rescued);
    free_chunks(&(struct chunks){ journal->spares, NULL });
    pthread_cond_destroy(&journal->changed);
    pthread_cond_destroy(&journal->work);
    pthread_cond_destroy(&journal->gathered);
    near__lock_fini(&journal->lock);
    free(journal->tail.bytes);
    free(journal->path);
    free(journal);
}

static near_status
recover(struct near__journal *journal, near_error *error)
{
    struct near__journal_dir        dir     = dir_of(journal);
    const struct near__scan_visitor visitor = { on_segment, on_record, NULL, on_tail, on_spoiled, journal };
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
        result = next_segment(journal, journal->tail.size, report.gaps == report.dead_gaps, &journal->tail);
    if (result == 0)
        take_over_tail(journal);
    if (result == 0 && report.gaps > report.dead_gaps)
        result = leave_damage_behind(journal);
    if (result == 0)
        result = leave_spoiled_behind(journal);
    if (result < 0)
        return near__fail(error, result == -ENOMEM ? NEAR_ERR_NOMEM : NEAR_ERR_UNAVAILABLE,
                          "journal %s: cannot make a segment: %s", journal->path, strerror(-result));
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
    struct chunk               *chunk  = new_chunk(NEAR__RECORD_HEADER);
    int                         result = sync_segment(journal);

    if (chunk == NULL || result < 0) {
        free(chunk);
        return result;
    }
    near__record_encode(chunk->bytes, &record, journal->next_sequence, NEAR_OK);
    chunk->used = NEAR__RECORD_HEADER;
    append_chunk(&journal->unsynced, chunk);
    result = place_all(journal);
    return result == 0 ? sync_segment(journal) : result;
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
    if (journal == NULL || is_forked(journal))
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
    if (is_forked(journal)) /* whatever the parent's threads were in the middle of stays as it is */
        return NEAR_OK;
    stop_thread(journal);
    near__lock(&journal->lock);
    if (journal->failed == NEAR_OK) {
        become_writer_locked(journal, NEAR_NEVER);
        run_group_locked(journal, true);
    }
    status          = journal->failed;
    journal->failed = NEAR_ERR_CLOSED; /* whoever comes, or waits, from here on */
    pthread_cond_broadcast(&journal->changed);
    near__unlock(&journal->lock);
    if (status == NEAR_OK)
        result = write_end(journal);
    if (result < 0)
        status = near__fail(error, NEAR_ERR_UNAVAILABLE, "journal %s: cannot end it: %s", journal->path,
                            strerror(-result));
    else if (status != NEAR_OK)
        near__fail(error, status, "journal %s: %s", journal->path, journal->failure);
    close_descriptors(journal); /* the directory is free */
    near__journal_release(journal);
    return status;
}
