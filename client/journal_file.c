/* See journal_file.h.  The chain of segments is found from its end: the highest number names its predecessor, and so on down to the
 * floor.  What it does not lead to was never continued, or is free. */
#include "journal_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/le.h"

static const char unfinished[] = "next";

void
near__segment_name(char name[NEAR__SEGMENT_NAME], uint64_t id, const char *kind)
{
    snprintf(name, NEAR__SEGMENT_NAME, "%016" PRIx64 ".%s", id, kind);
}

/* The number in `name`, if it is one of ours of that kind; 0: it is not. */
static uint64_t
number_of(const char *name, const char *kind)
{
    char     again[NEAR__SEGMENT_NAME];
    uint64_t id = strtoull(name, NULL, 16);

    near__segment_name(again, id, kind);
    return strcmp(again, name) == 0 ? id : 0;
}

/* ---- the directory */

near_status
near__journal_dir_open(struct near__journal_dir *dir, const struct near__disk *disk, const char *path,
                       bool create, near_error *error)
{
    struct near__disk_status status = { .size = 0 };
    int                      result;

    *dir    = (struct near__journal_dir){ disk, -1, path };
    dir->fd = disk->open_directory(disk->ctx, path, create);
    if (dir->fd < 0)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "journal %s: cannot open the directory: %s", path,
                          near__errno_text(-dir->fd));
    result = disk->status(disk->ctx, dir->fd, &status);
    if (result == 0 && status.directory && status.ours && !status.exposed)
        return NEAR_OK;
    disk->close(disk->ctx, dir->fd);
    dir->fd = -1;
    if (result < 0)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "journal %s: %s", path, near__errno_text(-result));
    return near__fail(error, NEAR_ERR_DENIED,
                      "journal %s: the directory must belong to this user, and others must not write it",
                      path);
}

static near_status
check_file(const struct near__journal_dir *dir, const char *name, int fd, uint64_t *size, near_error *error)
{
    struct near__disk_status status = { .size = 0 };
    int                      result = dir->disk->status(dir->disk->ctx, fd, &status);

    *size = status.size;
    if (result < 0)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "journal %s: %s: %s", dir->path, name,
                          near__errno_text(-result));
    if (!status.regular || !status.ours || status.exposed)
        return near__fail(error, NEAR_ERR_DENIED,
                          "journal %s: %s must be a file of this user's that nobody else may write",
                          dir->path, name);
    return NEAR_OK;
}

/* For people: who has it.  That it could not be written down is no reason not to go on. */
static void
sign_lock(const struct near__journal_dir *dir, int fd)
{
    char text[32] = "";

    snprintf(text, sizeof(text), "%-20ld\n", (long)getpid());
    near__disk_write_all(dir->disk, fd, text, strlen(text), 0);
}

near_status
near__journal_lock(const struct near__journal_dir *dir, int *fd, near_error *error)
{
    char        holder[21] = "";
    uint64_t    size;
    near_status status;
    int         result;

    *fd = dir->disk->open(dir->disk->ctx, dir->fd, "lock", NEAR__DISK_ENSURE);
    if (*fd < 0)
        return near__fail(error, *fd == -ELOOP ? NEAR_ERR_DENIED : NEAR_ERR_UNAVAILABLE,
                          "journal %s: cannot open its lock: %s", dir->path, near__errno_text(-*fd));
    status = check_file(dir, "lock", *fd, &size, error);
    result = status == NEAR_OK ? dir->disk->lock(dir->disk->ctx, *fd) : 0;
    if (result == -EWOULDBLOCK) {
        if (near__disk_read_all(dir->disk, *fd, holder, 20, 0) < 0)
            holder[0] = '\0';
        status = near__fail(error, NEAR_ERR_BUSY, "journal %s: is open in process %ld already", dir->path,
                            strtol(holder, NULL, 10));
    } else if (result < 0) {
        status = near__fail(error, NEAR_ERR_UNAVAILABLE, "journal %s: cannot lock it: %s", dir->path,
                            near__errno_text(-result));
    }
    if (status == NEAR_OK) {
        sign_lock(dir, *fd);
        return NEAR_OK;
    }
    dir->disk->close(dir->disk->ctx, *fd);
    *fd = -1;
    return status;
}

/* ---- lists of numbers */

struct numbers {
    const char *kind;
    uint64_t   *ids;
    size_t      n, capacity;
};

static int
found_name(void *ctx, const char *name)
{
    struct numbers *numbers = ctx;
    uint64_t        id      = number_of(name, numbers->kind), *more;

    if (id == 0)
        return 0;
    if (numbers->n == numbers->capacity) {
        more = realloc(numbers->ids, (2 * numbers->capacity + 16) * sizeof(*more));
        if (more == NULL)
            return -ENOMEM;
        numbers->ids      = more;
        numbers->capacity = 2 * numbers->capacity + 16;
    }
    numbers->ids[numbers->n++] = id;
    return 0;
}

static int
descending(const void *a, const void *b)
{
    const uint64_t *left = a, *right = b;

    return (*left < *right) - (*left > *right);
}

static int
list_numbers(const struct near__journal_dir *dir, const char *kind, struct numbers *numbers)
{
    int result;

    *numbers = (struct numbers){ .kind = kind };
    result   = dir->disk->list(dir->disk->ctx, dir->fd, found_name, numbers);
    if (result == 0 && numbers->n > 1)
        qsort(numbers->ids, numbers->n, sizeof(*numbers->ids), descending);
    return result;
}

/* ---- reading */

struct scan {
    const struct near__journal_dir  *dir;
    const struct near__scan_visitor *visitor;
    struct near__scan_report        *report;
    near_error                      *error;
    bool                             salvage;
    struct near__segment_header     *chain; /* newest first */
    size_t                           n;
};

static near_status
fail_file(struct scan *scan, const char *name, int result)
{
    return near__fail(scan->error, result == -ENOMEM ? NEAR_ERR_NOMEM : NEAR_ERR_UNAVAILABLE,
                      "journal %s: %s: %s", scan->dir->path, name, near__errno_text(-result));
}

/* Damage: refused, or noted and passed over. */
static near_status
damaged(struct scan *scan, const char *name, uint64_t at, const char *what)
{
    char text[sizeof(scan->report->damage)];

    snprintf(text, sizeof(text), "%s: %s at offset %" PRIu64, name, what, at);
    if (scan->report->gaps++ == 0)
        memcpy(scan->report->damage, text, sizeof(text));
    if (scan->salvage)
        return NEAR_OK;
    return near__fail(scan->error, NEAR_ERR_PROTOCOL,
                      "journal %s: %s; `nearcache journal salvage` reads on behind it", scan->dir->path,
                      text);
}

static near_status
open_file(struct scan *scan, const char *name, int *fd, uint64_t *size)
{
    near_status status;

    *fd = scan->dir->disk->open(scan->dir->disk->ctx, scan->dir->fd, name, NEAR__DISK_READ);
    if (*fd < 0)
        return *fd == -ELOOP ? near__fail(scan->error, NEAR_ERR_DENIED, "journal %s: %s is a link",
                                          scan->dir->path, name)
                             : fail_file(scan, name, *fd);
    status = check_file(scan->dir, name, *fd, size, scan->error);
    if (status != NEAR_OK)
        scan->dir->disk->close(scan->dir->disk->ctx, *fd);
    return status;
}

/* A segment without a header that can be believed, where salvaging goes on: its records say for themselves whether they are some. */
static void
invent_header(struct scan *scan, struct near__segment_header *header, uint64_t id, uint64_t size)
{
    *header = (struct near__segment_header){
        .size    = size < NEAR__SEGMENT_MAX ? (uint32_t)size : NEAR__SEGMENT_MAX,
        .segment = id,
        .origin  = scan->report->origin,
    };
}

static near_status
load_header(struct scan *scan, uint64_t id, const char *kind, struct near__segment_header *header)
{
    uint8_t     bytes[NEAR__SEGMENT_HEADER];
    char        name[NEAR__SEGMENT_NAME];
    uint64_t    size;
    near_status status;
    int         fd, result = 0;
    uint16_t    use = strcmp(kind, "dead") == 0 ? NEAR__SEGMENT_DEAD : NEAR__SEGMENT_LOG;

    near__segment_name(name, id, kind);
    status = open_file(scan, name, &fd, &size);
    if (status != NEAR_OK)
        return status;
    if (size >= sizeof(bytes))
        result = near__disk_read_all(scan->dir->disk, fd, bytes, sizeof(bytes), 0);
    scan->dir->disk->close(scan->dir->disk->ctx, fd);
    if (result < 0)
        return fail_file(scan, name, result);
    if (size >= sizeof(bytes) && near__segment_decode(header, bytes, sizeof(bytes)) &&
        header->segment == id && header->use == use && (header->size <= size || use == NEAR__SEGMENT_DEAD) &&
        (use == NEAR__SEGMENT_DEAD || scan->report->origin == 0 || header->origin == scan->report->origin)) {
        if (use == NEAR__SEGMENT_DEAD)
            header->size = size < NEAR__SEGMENT_MAX ? (uint32_t)size : NEAR__SEGMENT_MAX;
        return NEAR_OK;
    }
    invent_header(scan, header, id, size);
    return damaged(scan, name, 0, size < sizeof(bytes) ? "cut short" : "no header of its own");
}

/* Whether a number is among those found, of which there are some; they are in descending order. */
static bool
has_number(const struct numbers *found, uint64_t id)
{
    return bsearch(&id, found->ids, found->n, sizeof(id), descending) != NULL;
}

/* From the last segment to the floor, by each one's word on its predecessor. */
static near_status
follow_chain(struct scan *scan, const struct numbers *found)
{
    char        name[NEAR__SEGMENT_NAME];
    near_status status;

    for (uint64_t id = found->ids[0];;) {
        struct near__segment_header *header = &scan->chain[scan->n];

        if (!has_number(found, id)) {
            near__segment_name(name, id, "seg");
            return damaged(scan, name, 0, "missing");
        }
        status = load_header(scan, id, "seg", header);
        if (status != NEAR_OK)
            return status;
        if (scan->n++ == 0) {
            scan->report->origin = header->origin;
            scan->report->floor  = header->floor;
        }
        if (header->predecessor == 0 || header->predecessor < scan->report->floor)
            return NEAR_OK;
        id = header->predecessor;
    }
}

/* Salvaging does not believe in chains: every segment that may not be free counts. */
static near_status
take_all(struct scan *scan, const struct numbers *found)
{
    near_status status = NEAR_OK;
    uint64_t    gaps;

    /* the origin first: what stands in the first header that is whole */
    for (size_t i = 0; i < found->n && status == NEAR_OK && scan->report->origin == 0; i++) {
        gaps   = scan->report->gaps;
        status = load_header(scan, found->ids[i], "seg", &scan->chain[0]);
        if (status == NEAR_OK && scan->report->gaps == gaps) {
            scan->report->origin = scan->chain[0].origin;
            scan->report->floor  = scan->chain[0].floor;
        }
        scan->report->gaps = gaps;
    }
    for (size_t i = 0; i < found->n && status == NEAR_OK; i++) {
        struct near__segment_header *header = &scan->chain[scan->n];
        char                         name[NEAR__SEGMENT_NAME];

        if (found->ids[i] < scan->report->floor)
            break;
        status = load_header(scan, found->ids[i], "seg", header);
        if (status != NEAR_OK)
            break;
        if (header->predecessor >= scan->report->floor && header->predecessor != 0 &&
            !has_number(found, header->predecessor)) {
            near__segment_name(name, header->predecessor, "seg");
            status = damaged(scan, name, 0, "missing");
        }
        scan->n++;
    }
    return status;
}

/* The last segment, from where it does not go on: is it a torn end, or is there a record behind that knows this place to have been on disk? */
static bool
end_is_torn(struct scan *scan, const uint8_t *bytes, size_t size, size_t at, uint64_t stamp)
{
    struct near__record_view view;
    size_t                   end = at;

    if (at + 16 <= size && memcmp(bytes + at, "\0\0\0\0\0\0\0", 8) != 0)
        end = at + 8; /* something was begun there, or was left of what the file held before */
    for (size_t i = near__record_search(&view, bytes, size, at, stamp); i < size;
         i        = near__record_search(&view, bytes, size, i + view.size, stamp)) {
        if (view.synced > at)
            return false;
        end = i + view.size;
    }
    scan->report->cut_bytes = end - at;
    return true;
}

static void
note_record(struct scan *scan, const struct near__record_view *view)
{
    struct near__scan_report *report = scan->report;
    uint64_t                  next   = view->sequence + (view->record.kind != NEAR__JOURNAL_END);

    report->records++;
    report->clean = view->record.kind == NEAR__JOURNAL_END;
    if (view->record.kind != NEAR__JOURNAL_DONE && next > report->next_sequence)
        report->next_sequence = next;
}

/* How far the last segment was on disk by its last record's word, and what follows, which a kernel that lived on may have shown us from memory.
 * What lies before `end` was verified, without a gap. */
static near_status
find_tail(struct scan *scan, const struct near__segment_header *header, const uint8_t *bytes, uint32_t end)
{
    struct near__scan_report *report   = scan->report;
    uint32_t                  checksum = header->checksum, at = NEAR__SEGMENT_HEADER, synced = at, last = end;
    struct near__record_view  view;

    for (; at < end && near__record_read(&view, bytes + at, end - at); at += view.size) {
        synced = view.synced;
        last   = view.record.kind == NEAR__JOURNAL_END ? at : end;
    }
    for (at = NEAR__SEGMENT_HEADER; at < synced && near__record_read(&view, bytes + at, end - at);
         at += view.size)
        checksum = view.checksum;
    report->last_synced          = at;
    report->last_synced_checksum = checksum;
    return scan->visitor->tail != NULL && at < last
               ? scan->visitor->tail(scan->visitor->ctx, bytes + at, last - at)
               : NEAR_OK;
}

/* The last segment ends at `at`.  Behind damage nothing is handed out as its tail: there may be bytes in it that are no records, and whoever
 * salvages copies all that verified. */
static near_status
end_log(struct scan *scan, const struct near__scan_segment *segment, const uint8_t *bytes, uint32_t at,
        uint32_t checksum)
{
    struct near__scan_report *report = scan->report;

    report->last          = segment->header.segment;
    report->last_end      = at;
    report->last_checksum = checksum;
    if (report->gaps == 0)
        return find_tail(scan, &segment->header, bytes, at);
    report->last_synced          = at;
    report->last_synced_checksum = checksum;
    return NEAR_OK;
}

/* One segment's records.  `next` is the header that says where they end; NULL: nobody does.  `last`: of the log. */
static near_status
walk(struct scan *scan, struct near__scan_segment *segment, const uint8_t *bytes, size_t size,
     const struct near__segment_header *next, bool last)
{
    uint64_t                 stamp    = near__segment_stamp(segment->header.origin, segment->header.segment);
    uint32_t                 previous = segment->header.checksum;
    bool                     chained  = segment->header.checksum != 0; /* not where the header was invented */
    size_t                   at       = NEAR__SEGMENT_HEADER;
    char                     name[NEAR__SEGMENT_NAME];
    struct near__record_view view;
    near_status              status = NEAR_OK;

    near__segment_name(name, segment->header.segment, "seg");
    scan->report->clean = false;
    while (status == NEAR_OK && at < size) {
        bool whole = near__record_decode(&view, bytes + at, size - at, stamp);

        if (!whole || (chained && view.previous != previous)) {
            if (next == NULL && end_is_torn(scan, bytes, size, at, stamp))
                break;
            status = damaged(scan, name, at, "damaged");
            if (status != NEAR_OK)
                return status;
            chained = false; /* a whole record of another predecessor is taken the next time round */
            if (!whole)
                at = near__record_search(&view, bytes, size, at + 8, stamp);
            continue;
        }
        note_record(scan, &view);
        if (scan->visitor->record != NULL)
            status = scan->visitor->record(scan->visitor->ctx, segment, &view, (uint32_t)at);
        previous = view.checksum;
        chained  = true;
        at += view.size;
    }
    segment->end = (uint32_t)at;
    if (status == NEAR_OK && last)
        status = end_log(scan, segment, bytes, (uint32_t)at, previous);
    if (status == NEAR_OK && next != NULL && next->predecessor_checksum != previous)
        status = damaged(scan, name, at, "another end than its successor knows of");
    return status;
}

static near_status
read_segment(struct scan *scan, const struct near__segment_header *header,
             const struct near__segment_header *next, bool last)
{
    struct near__scan_segment segment = { .header = *header };
    char                      name[NEAR__SEGMENT_NAME];
    uint64_t                  file_size;
    size_t                    size = next != NULL ? next->predecessor_end : header->size;
    uint8_t                  *bytes;
    near_status               status;
    int                       fd, result;

    near__segment_name(name, header->segment, "seg");
    if (size < NEAR__SEGMENT_HEADER || size > header->size) {
        status = damaged(scan, name, header->size, "smaller than its successor knows of");
        size   = header->size;
        if (status != NEAR_OK)
            return status;
    }
    status = open_file(scan, name, &fd, &file_size);
    if (status != NEAR_OK)
        return status;
    bytes  = size <= file_size ? malloc(size) : NULL;
    result = bytes != NULL ? near__disk_read_all(scan->dir->disk, fd, bytes, size, 0) : -ENOMEM;
    scan->dir->disk->close(scan->dir->disk->ctx, fd);
    if (result < 0)
        status = fail_file(scan, name, result);
    if (status == NEAR_OK && scan->visitor->segment != NULL)
        status = scan->visitor->segment(scan->visitor->ctx, &segment, true);
    if (status == NEAR_OK)
        status = walk(scan, &segment, bytes, size, next, last);
    if (status == NEAR_OK && scan->visitor->segment != NULL)
        status = scan->visitor->segment(scan->visitor->ctx, &segment, false);
    free(bytes);
    scan->report->segments++;
    scan->report->bytes += header->size;
    return status;
}

/* ---- dead letters */

/* Its records, from the first one behind the header on.  Where the chain breaks and something that verifies follows there is damage. */
static near_status
walk_dead(struct scan *scan, const struct near__segment_header *header, const char *name,
          const uint8_t *bytes)
{
    uint64_t                 stamp    = near__segment_stamp(header->origin, header->segment);
    uint32_t                 previous = header->checksum;
    size_t                   at       = NEAR__SEGMENT_HEADER, found;
    struct near__record_view view;
    near_status              status = NEAR_OK;

    for (; status == NEAR_OK && at < header->size; at = found + view.size) {
        found = near__record_search(&view, bytes, header->size, at, stamp);
        if (found == header->size)
            return NEAR_OK; /* a torn end */
        if (found > at || view.previous != previous)
            status = damaged(scan, name, at, "damaged");
        if (status != NEAR_OK)
            return status;
        previous = view.checksum;
        scan->report->dead_letters++;
        if (scan->visitor->dead != NULL)
            status = scan->visitor->dead(scan->visitor->ctx, &view);
    }
    return status;
}

static near_status
read_dead(struct scan *scan, uint64_t id)
{
    struct near__segment_header header;
    char                        name[NEAR__SEGMENT_NAME];
    uint64_t                    file_size, gaps = scan->report->gaps;
    uint8_t                    *bytes  = NULL;
    near_status                 status = load_header(scan, id, "dead", &header);
    int                         fd, result = 0;

    if (status != NEAR_OK)
        return status;
    scan->report->dead_files++;
    scan->report->dead_bytes += header.size;
    near__segment_name(name, id, "dead");
    if (header.size > NEAR__SEGMENT_HEADER) {
        status = open_file(scan, name, &fd, &file_size);
        if (status != NEAR_OK)
            return status;
        bytes  = header.size <= file_size ? malloc(header.size) : NULL;
        result = bytes != NULL ? near__disk_read_all(scan->dir->disk, fd, bytes, header.size, 0) : -ENOMEM;
        scan->dir->disk->close(scan->dir->disk->ctx, fd);
        status = result < 0 ? fail_file(scan, name, result) : walk_dead(scan, &header, name, bytes);
    }
    scan->report->dead_gaps += scan->report->gaps - gaps;
    if (status == NEAR_OK && scan->report->gaps > gaps && scan->visitor->spoiled != NULL)
        status = scan->visitor->spoiled(scan->visitor->ctx, id, bytes, bytes != NULL ? header.size : 0,
                                        near__segment_stamp(header.origin, id));
    free(bytes);
    return status;
}

static near_status
read_all_dead(struct scan *scan)
{
    struct numbers found;
    near_status    status = NEAR_OK;
    int            result = list_numbers(scan->dir, "dead", &found);

    if (result < 0)
        status = fail_file(scan, "dead letters", result);
    if (found.n > 0 && found.ids[0] > scan->report->highest)
        scan->report->highest = found.ids[0];
    for (size_t i = found.n; i > 0 && status == NEAR_OK; i--)
        status = read_dead(scan, found.ids[i - 1]);
    free(found.ids);
    return status;
}

/* ---- all */

static near_status
read_log(struct scan *scan, const struct numbers *found)
{
    near_status status;

    scan->report->highest = found->ids[0];
    scan->chain           = calloc(found->n, sizeof(*scan->chain));
    if (scan->chain == NULL)
        return fail_file(scan, "segments", -ENOMEM);
    status = scan->salvage ? take_all(scan, found) : follow_chain(scan, found);
    for (size_t i = scan->n; i > 0 && status == NEAR_OK; i--) {
        const struct near__segment_header *header = &scan->chain[i - 1];
        bool                               knows = i > 1 && scan->chain[i - 2].predecessor == header->segment;

        if (header->first_sequence > scan->report->next_sequence)
            scan->report->next_sequence = header->first_sequence;
        status = read_segment(scan, header, knows ? &scan->chain[i - 2] : NULL, i == 1);
    }
    free(scan->chain);
    return status;
}

near_status
near__scan_index(struct near__index *index, const struct near__record_view *view,
                 struct near__segment *segment, uint32_t at)
{
    const uint8_t *ranges = view->record.data.data;

    if (near__record_is_the_callers((unsigned)view->record.kind))
        return near__index_add(index, view->sequence, view->size, segment, at) ? NEAR_OK : NEAR_ERR_NOMEM;
    for (size_t i = 0; view->record.kind == NEAR__JOURNAL_DONE && i < view->record.data.size;
         i += NEAR__DONE_RANGE)
        if (!near__index_done_range(index, near__le64_get(ranges + i), near__le32_get(ranges + i + 8)))
            return NEAR_ERR_NOMEM;
    return NEAR_OK;
}

near_status
near__journal_scan(const struct near__journal_dir *dir, bool salvage,
                   const struct near__scan_visitor *visitor, struct near__scan_report *report,
                   near_error *error)
{
    struct scan    scan = { dir, visitor, report, error, salvage, NULL, 0 };
    struct numbers found;
    near_status    status = NEAR_OK;
    int            result;

    *report = (struct near__scan_report){ .next_sequence = 1 };
    result  = list_numbers(dir, "seg", &found);
    if (result < 0)
        status = fail_file(&scan, "segments", result);
    else if (found.n > 0)
        status = read_log(&scan, &found);
    free(found.ids);
    return status == NEAR_OK ? read_all_dead(&scan) : status;
}

/* ---- making and removing */

void
near__journal_sweep(const struct near__journal_dir *dir, const struct near__segment *log)
{
    struct numbers found;
    char           name[NEAR__SEGMENT_NAME];

    dir->disk->unlink(dir->disk->ctx, dir->fd, unfinished);
    if (list_numbers(dir, "seg", &found) < 0)
        found.n = 0;
    for (size_t i = found.n; i > 0; i--) { /* ascending, as the log is */
        while (log != NULL && log->id < found.ids[i - 1])
            log = log->next;
        if (log != NULL && log->id == found.ids[i - 1])
            continue;
        near__segment_name(name, found.ids[i - 1], "seg");
        dir->disk->unlink(dir->disk->ctx, dir->fd, name);
    }
    free(found.ids);
}

static void
seal_start(const struct near__segment_header *header, struct near__segment_start *start)
{
    uint64_t stamp = near__segment_stamp(header->origin, header->segment);

    start->checksum = header->checksum;
    for (uint32_t at = 0; at < start->size; at += near__record_encoded_size(start->bytes + at))
        start->checksum = near__record_seal(start->bytes + at, stamp, start->checksum, NEAR__SEGMENT_HEADER);
}

/* Header on disk first, then the name, then the directory: see the top of the header. */
static int
finish(const struct near__journal_dir *dir, struct near__segment_header *header,
       struct near__segment_start *start, int fd, const char *from, const char *to)
{
    uint8_t bytes[NEAR__SEGMENT_HEADER];
    int     result;

    near__segment_encode(bytes, header);
    seal_start(header, start);
    result = near__disk_write_all(dir->disk, fd, bytes, sizeof(bytes), 0);
    if (result == 0)
        result = near__disk_write_all(dir->disk, fd, start->bytes, start->size, NEAR__SEGMENT_HEADER);
    if (result == 0)
        result = dir->disk->sync(dir->disk->ctx, fd);
    if (result == 0)
        result = dir->disk->rename(dir->disk->ctx, dir->fd, from, to);
    if (result == 0)
        result = dir->disk->sync_directory(dir->disk->ctx, dir->fd);
    return result;
}

static int
allocate(const struct near__journal_dir *dir, int fd, uint32_t size)
{
    int result = dir->disk->allocate(dir->disk->ctx, fd, size);

    return result == -EOPNOTSUPP ? dir->disk->resize(dir->disk->ctx, fd, size) : result;
}

static int
open_next(const struct near__journal_dir *dir)
{
    dir->disk->unlink(dir->disk->ctx, dir->fd, unfinished);
    return dir->disk->open(dir->disk->ctx, dir->fd, unfinished, NEAR__DISK_NEW);
}

static int
settle(const struct near__journal_dir *dir, int *fd, int result)
{
    if (result == 0)
        return 0;
    dir->disk->close(dir->disk->ctx, *fd);
    *fd = -1;
    return result;
}

int
near__segment_create(const struct near__journal_dir *dir, struct near__segment_header *header,
                     uint64_t recycle, struct near__segment_start *start, int *fd)
{
    char from[NEAR__SEGMENT_NAME], to[NEAR__SEGMENT_NAME];
    int  result = 0;

    near__segment_name(to, header->segment, "seg");
    near__segment_name(from, recycle, "seg");
    *fd = recycle != 0 ? dir->disk->open(dir->disk->ctx, dir->fd, from, NEAR__DISK_WRITE) : open_next(dir);
    if (*fd < 0)
        return *fd;
    if (recycle == 0)
        result = allocate(dir, *fd, header->size);
    if (result == 0)
        result = finish(dir, header, start, *fd, recycle != 0 ? from : unfinished, to);
    return settle(dir, fd, result);
}

int
near__dead_create(const struct near__journal_dir *dir, struct near__segment_header *header, int *fd)
{
    struct near__segment_start start = { .size = 0 };
    char                       name[NEAR__SEGMENT_NAME];

    near__segment_name(name, header->segment, "dead");
    *fd = open_next(dir);
    if (*fd < 0)
        return *fd;
    return settle(dir, fd, finish(dir, header, &start, *fd, unfinished, name));
}
