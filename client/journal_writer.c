/*
 * The writer's part of a journal: from `pending` into the last segment, from there on disk, and from one segment, or one failure, to the next.
 * Everything here belongs to whoever is the writer; what is called ..._locked has the lock, all else takes it for a moment and does I/O without it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "journal_inside.h"

/* ---- chunks */

void
near__chunks_append(struct near__chunks *list, struct near__chunk *chunk)
{
    chunk->next = NULL;
    if (list->last != NULL)
        list->last->next = chunk;
    else
        list->first = chunk;
    list->last = chunk;
}

struct near__chunk *
near__chunk_new(size_t capacity)
{
    struct near__chunk *chunk = malloc(sizeof(*chunk) + capacity);

    if (chunk != NULL)
        *chunk = (struct near__chunk){ .capacity = (uint32_t)capacity };
    return chunk;
}

void
near__chunks_free(struct near__chunks *list)
{
    for (struct near__chunk *chunk = list->first, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    *list = (struct near__chunks){ NULL, NULL };
}

/* Room for `size` more bytes at the end of `pending`; NULL: no memory. */
struct near__chunk *
near__chunk_for_locked(struct near__journal *journal, size_t size) NEAR__NEEDS(journal->lock)
{
    struct near__chunk *chunk = journal->pending.last;

    if (chunk != NULL && chunk->capacity - chunk->used >= size)
        return chunk;
    if (size <= CHUNK && journal->spares != NULL) {
        chunk           = journal->spares;
        journal->spares = chunk->next;
        journal->spare_count--;
        *chunk = (struct near__chunk){ .capacity = chunk->capacity };
    } else {
        chunk = near__chunk_new(size > CHUNK ? size : CHUNK);
    }
    if (chunk != NULL)
        near__chunks_append(&journal->pending, chunk);
    return chunk;
}

/* Chunks that are on disk. */
static void
recycle_chunks_locked(struct near__journal *journal, struct near__chunks *list) NEAR__NEEDS(journal->lock)
{
    for (struct near__chunk *chunk = list->first, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        if (chunk->capacity == CHUNK && journal->spare_count < SPARE_CHUNKS) {
            chunk->next     = journal->spares;
            journal->spares = chunk;
            journal->spare_count++;
        } else {
            free(chunk);
        }
    }
    *list = (struct near__chunks){ NULL, NULL };
}

/* ---- what is not known to be on disk: the writer's */

/* Into the last chunk, where it is small and fits: with `none` there would be a chunk for every record until the segment is full. */
static bool
pack(struct near__chunk *last, const struct near__chunk *chunk)
{
    if (last == NULL || chunk->used > PACKED || chunk->used > last->capacity - last->used)
        return false;
    memcpy(last->bytes + last->used, chunk->bytes, chunk->used);
    last->used += chunk->used;
    last->last = chunk->last > last->last ? chunk->last : last->last;
    last->turn = chunk->turn > last->turn ? chunk->turn : last->turn;
    return true;
}

void
near__writer_keep(struct near__journal *journal, struct near__chunk *chunk)
{
    if (chunk->used == 0 || pack(journal->unsynced.last, chunk)) {
        near__chunks_append(&journal->emptied, chunk);
        if (chunk->used == 0)
            return;
    } else {
        near__chunks_append(&journal->unsynced, chunk);
    }
    if (journal->unplaced == NULL)
        journal->unplaced = journal->unsynced.last;
}

static void
keep_all(struct near__journal *journal, struct near__chunks list)
{
    for (struct near__chunk *chunk = list.first, *next; chunk != NULL; chunk = next) {
        next = chunk->next;
        near__writer_keep(journal, chunk);
    }
}

/* ---- the last segment: the writer's */

static int
segment_fd(const struct near__journal *journal)
{
    return atomic_load_explicit(&journal->fds[FD_SEGMENT], memory_order_relaxed); /* the writer's own */
}

/* Release: pairs with is_reached() in journal_commit.c. */
static void
reach(_Atomic uint64_t *reached, uint64_t sequence)
{
    atomic_store_explicit(reached, sequence, memory_order_release);
}

/* What is placed is on disk: its memory goes. */
static void
settle_synced(struct near__journal *journal)
{
    struct near__chunks done = { NULL, NULL };
    uint64_t            last = 0, turn = 0;

    while (journal->unsynced.first != NULL &&
           journal->unsynced.first->placed == journal->unsynced.first->used) {
        struct near__chunk *chunk = journal->unsynced.first;

        journal->unsynced.first = chunk->next;
        if (chunk->next == NULL)
            journal->unsynced.last = NULL;
        last = chunk->last > last ? chunk->last : last;
        turn = chunk->turn > turn ? chunk->turn : turn;
        near__chunks_append(&done, chunk);
    }
    if (journal->unsynced.first != NULL)
        journal->unsynced.first->begin = journal->unsynced.first->placed;
    near__lock(&journal->lock);
    if (last > journal->synced)
        reach(&journal->synced, last);
    if (turn > journal->done_synced)
        journal->done_synced = turn;
    journal->counts.fsyncs++;
    recycle_chunks_locked(journal, &done);
    near__unlock(&journal->lock);
}

int
near__writer_sync(struct near__journal *journal)
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
floor_locked(const struct near__journal *journal, uint64_t coming) NEAR__NEEDS(journal->lock)
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
    struct near__journal_dir dir   = near__journal_dir_of(journal);
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
int
near__writer_next_segment(struct near__journal *journal, size_t room, bool advance,
                          struct near__segment_start *start)
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
int
near__writer_rotate(struct near__journal *journal, size_t room)
{
    struct near__segment_start start  = { .size = 0 };
    int                        result = near__writer_sync(journal);

    return result == 0 ? near__writer_next_segment(journal, room, true, &start) : result;
}

/* ---- placing: from memory into the last segment */

/* The records of `chunk` from its `placed` on, as many as the segment takes: sealed, written, known to the index. */
static int
place_run(struct near__journal *journal, struct near__chunk *chunk)
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
        if (near__writer_bears_sequence(chunk->bytes + at))
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
int
near__writer_place(struct near__journal *journal)
{
    struct near__chunk *chunk;
    int                 result = 0;

    while (result == 0 && (chunk = journal->unplaced) != NULL) {
        uint32_t size = near__record_encoded_size(chunk->bytes + chunk->placed);

        result = size > journal->last->size - journal->end ? near__writer_rotate(journal, size)
                                                           : place_run(journal, chunk);
        if (result == 0 && chunk->placed == chunk->used)
            journal->unplaced = chunk->next;
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
    snprintf(journal->failure, sizeof(journal->failure), "%s: %s", what, near__errno_text(-result));
    near__unlock(&journal->lock);
    near__log(&journal->options.log, NEAR_LOG_ERROR,
              "journal %s: %s: %s; it takes no more writes until it is opened anew", journal->path, what,
              near__errno_text(-result));
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
              journal->path, journal->last->id, near__errno_text(-failure));
    for (struct near__chunk *chunk = journal->unsynced.first; chunk != NULL; chunk = chunk->next)
        chunk->placed = chunk->begin;
    journal->unplaced = journal->unsynced.first;
    result            = near__writer_next_segment(journal, 0, false, &start);
    if (result == 0)
        result = near__writer_place(journal);
    if (result == 0)
        result = near__writer_sync(journal);
    return result;
}

/* ---- a group */

/* What is done, as records at the end of a group.  Without memory for them they wait for the next one. */
static void
take_done_locked(struct near__journal *journal, struct near__chunks *group) NEAR__NEEDS(journal->lock)
{
    size_t              most = near__index_done_size(&journal->index), used, records;
    struct near__chunk *chunk;
    uint8_t            *ranges;

    if (most == 0)
        return;
    records = most / DONE_DATA + 1;
    chunk   = near__chunk_new(most + records * (NEAR__RECORD_HEADER + 8));
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
    near__chunks_append(group, chunk);
}

/* As the writer, with the lock held; it is dropped meanwhile. */
void
near__writer_group_locked(struct near__journal *journal, bool sync) NEAR__NEEDS(journal->lock)
{
    struct near__chunks group = journal->pending;
    uint64_t            last  = journal->next_sequence - 1;
    int                 result, first;

    journal->pending         = (struct near__chunks){ NULL, NULL };
    journal->pending_bytes   = 0;
    journal->turns.taken     = last;
    journal->turns.gathering = false;
    journal->turns.begun++;
    take_done_locked(journal, &group);
    journal->counts.groups += group.first != NULL;
    near__unlock(&journal->lock);

    keep_all(journal, group);
    result = first = near__writer_place(journal);
    if (result == 0 && sync)
        result = first = near__writer_sync(journal);
    if (result < 0)
        result = move_on(journal, result, last);
    if (result == 0 && first == 0) {
        result = near__room_make(journal);
        if (result < 0) /* the group itself is in a file, and goes into the next with what was to be copied */
            result = move_on(journal, result, 0);
    }
    if (result < 0)
        stick(journal, result, "cannot write");

    near__lock(&journal->lock);
    recycle_chunks_locked(journal, &journal->emptied);
    journal->cramped = near__room_is_short_locked(journal);
    if (journal->failed == NEAR_OK)
        reach(&journal->written, last);
    if (journal->failed == NEAR_OK && journal->unsynced.first == NULL)
        reach(&journal->synced, last);
}
