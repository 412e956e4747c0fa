/*
 * Space in a journal: when it is short the oldest segments' records are copied to the end, so that their files are free.  The writer's.
 *
 * What can never happen: a segment that is freed while a record in it is needed.  One that cannot be read again stays.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "journal_inside.h"

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
                  name, near__errno_text(-result));
    segment->unreadable = true;
    free(bytes);
    return NULL;
}

/* The record there is not done, and this is its newest place. */
static bool
is_live_at_locked(struct near__journal *journal, const struct near__segment *segment,
                  const struct near__record_view *view, uint32_t at) NEAR__NEEDS(journal->lock)
{
    const struct near__index_place *place = NULL;

    if ((unsigned)view->record.kind < NEAR__JOURNAL_DONE)
        place = near__index_find(&journal->index, view->sequence);
    return place != NULL && place->segment == segment && place->at == at;
}

/* What in the segment is not done, as a chunk at the end of `unsynced`.  False: not all of it could be read; it stays where it is. */
bool
near__room_copy(struct near__journal *journal, struct near__segment *segment)
{
    uint64_t            stamp = near__segment_stamp(journal->origin, segment->id), live, room, copied = 0;
    uint8_t            *bytes = read_segment(journal, segment);
    struct near__chunk *chunk;
    struct near__record_view view;
    size_t                   at;

    near__lock(&journal->lock);
    room = segment->live_bytes;
    near__unlock(&journal->lock);
    chunk = bytes != NULL ? near__chunk_new(room) : NULL;
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
    near__writer_keep(journal, chunk);
    free(bytes);
    if (copied < live && !segment->unreadable)
        near__log(&journal->options.log, NEAR_LOG_ERROR,
                  "journal %s: segment %016" PRIx64 " has records that cannot be read again", journal->path,
                  segment->id);
    segment->unreadable = copied < live;
    return copied >= live;
}

/* The oldest segment that holds what is not done; NULL: there is none but the last. */
struct near__segment *
near__room_oldest_in_use(struct near__journal *journal)
{
    struct near__segment *segment;

    near__lock(&journal->lock);
    segment = journal->oldest;
    while (segment != journal->last && segment->live == 0)
        segment = segment->next;
    near__unlock(&journal->lock);
    return segment != journal->last ? segment : NULL;
}

bool
near__room_is_short_locked(const struct near__journal *journal) NEAR__NEEDS(journal->lock)
{
    return journal->counts.bytes > COPY_FROM(journal->max_bytes) && journal->oldest != journal->last &&
           journal->index.live_bytes <
               journal->max_bytes /
                   2; /* a smaller bound than in a former life: writing is refused, that must do */
}

static bool
is_short_of_space(struct near__journal *journal)
{
    bool answer;

    near__lock(&journal->lock);
    answer = near__room_is_short_locked(journal);
    near__unlock(&journal->lock);
    return answer;
}

/* A new segment, which says what is free.  False in `*freed`: nothing was, so another one would only take space. */
static int
free_some(struct near__journal *journal, bool *freed)
{
    const struct near__segment *oldest = journal->oldest; /* only the writer takes it out of the list */
    int                         result = near__writer_rotate(journal, 0);

    *freed = journal->oldest != oldest;
    return result;
}

/* Space is short: the oldest segments' records go to the end, a segment's worth and more, then a new segment says that they are free.  What was done only
 * since this group began holds its segment until the next one. */
int
near__room_make(struct near__journal *journal)
{
    bool goes_on = true;
    int  result  = 0;

    for (int rounds = 0; rounds < 2 * SEGMENTS && result == 0 && goes_on && is_short_of_space(journal);
         rounds++) {
        struct near__segment *segment = near__room_oldest_in_use(journal);

        if (segment == NULL || journal->end > journal->last->size / 4 * 3)
            result = free_some(journal, &goes_on);
        else if (!near__room_copy(journal, segment))
            return 0;
        else
            result = near__writer_place(journal);
    }
    return result;
}
