/*
 * Dead letters: records that the store refused for good, in files of their own that only people read.  Written by the writer, synced one by one.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "journal_inside.h"

/* ---- dead letters */

static int
open_dead(struct near__journal *journal)
{
    struct near__journal_dir    dir    = near__journal_dir_of(journal);
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
dead_append(struct near__journal *journal, uint8_t *bytes, uint32_t size)
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

    if (near__journal_is_forked(journal))
        return NEAR_ERR_FORKED;
    if (size == 0 || !near__record_is_the_callers(record->kind))
        return NEAR_ERR_INVALID;
    bytes = malloc(size);
    if (bytes == NULL)
        return NEAR_ERR_NOMEM;
    near__record_encode(bytes, record, sequence, reason);
    near__lock(&journal->lock);
    near__writer_become_locked(journal);
    status = journal->failed == NEAR_ERR_CLOSED ? journal->failed : NEAR_OK;
    near__unlock(&journal->lock);
    if (status != NEAR_OK)
        result = 0;
    else if (journal->dead_bytes + size > journal->max_bytes / 8)
        status = NEAR_ERR_BUSY;
    else
        result = dead_append(journal, bytes, (uint32_t)size);
    near__lock(&journal->lock);
    journal->counts.dead_letters += status == NEAR_OK && result == 0;
    journal->counts.failures += result < 0;
    near__writer_cease_locked(journal);
    near__unlock(&journal->lock);
    free(bytes);
    if (result < 0)
        near__log(&journal->options.log, NEAR_LOG_ERROR, "journal %s: dead letters: %s", journal->path,
                  near__errno_text(-result));
    return result < 0 ? NEAR_ERR_UNAVAILABLE : status;
}

/* ---- damage, while it opens */

/* A damaged file of dead letters. */
near_status
near__dead_spoiled(void *ctx, uint64_t id, const uint8_t *bytes, size_t size, uint64_t stamp)
{
    struct near__journal    *journal = ctx;
    struct near__chunk      *chunk   = near__chunk_new(size);
    struct near__record_view view;
    size_t                   at;

    if (chunk == NULL)
        return NEAR_ERR_NOMEM;
    chunk->last = id;
    near__chunks_append(&journal->rescued, chunk);
    for (at = near__record_search(&view, bytes, size, NEAR__SEGMENT_HEADER, stamp); at < size;
         at = near__record_search(&view, bytes, size, at + view.size, stamp)) {
        memcpy(chunk->bytes + chunk->used, bytes + at, view.size);
        chunk->used += view.size;
    }
    return NEAR_OK;
}

/* What could be read of damaged dead letters goes into a file of its own, then they are put aside.  Killed in between, it is there twice. */
int
near__dead_rescue(struct near__journal *journal)
{
    char name[NEAR__SEGMENT_NAME], aside[NEAR__SEGMENT_NAME];
    int  directory = journal->fds[FD_DIRECTORY], result = 0;

    for (struct near__chunk *chunk = journal->rescued.first; chunk != NULL && result == 0;
         chunk                     = chunk->next) {
        for (uint32_t at = 0, size; at < chunk->used && result == 0; at += size) {
            size   = near__record_encoded_size(chunk->bytes + at);
            result = dead_append(journal, chunk->bytes + at, size);
        }
        near__segment_name(name, chunk->last, "dead");
        near__segment_name(aside, chunk->last, "bad");
        if (result == 0)
            result = journal->disk->rename(journal->disk->ctx, directory, name, aside);
        if (result == 0)
            result = journal->disk->sync_directory(journal->disk->ctx, directory);
    }
    near__chunks_free(&journal->rescued);
    return result;
}
