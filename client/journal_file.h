/*
 * Journal files: reading a directory, and making segments.
 *
 *     0000000000000001.seg   a segment of the log, named by its number in hexadecimal; the highest is the last
 *     0000000000000007.dead  dead letters: the same format, a record each, in a chain; numbers are given once for both
 *     0000000000000003.bad   what salvaging has put aside
 *     next                   a segment that is being made
 *     lock                   locked while a journal is open over the directory; holds the process's number
 *
 * A segment gets its name when its header is on disk, so a named segment without one is damage, not a crash.
 *
 * What can never happen: memory taken for a size that the file does not have.
 */
#ifndef NEAR_CLIENT_JOURNAL_FILE_H
#define NEAR_CLIENT_JOURNAL_FILE_H

#include "journal_disk.h"
#include "journal_index.h"
#include "journal_record.h"

enum { NEAR__SEGMENT_NAME = 32 };

struct near__journal_dir {
    const struct near__disk *disk;
    int                      fd;
    const char              *path; /* for messages */
};

void near__segment_name(char name[NEAR__SEGMENT_NAME], uint64_t id, const char *kind);

/* What reading a directory found. */
struct near__scan_report {
    uint64_t origin;  /* 0: no segment yet */
    uint64_t highest; /* number of a file, in use or not; 0: none */
    uint64_t floor;   /* segments below are free */
    uint64_t segments, records, bytes;
    uint64_t next_sequence; /* above all that was given and is known of */
    bool     clean;         /* the last life ended with a close */
    uint64_t last;          /* the last segment: where its records end, and the checksum there */
    uint32_t last_end, last_checksum;
    uint32_t last_synced, last_synced_checksum; /* the same for what its last record knew to be on disk */
    uint64_t cut_bytes;                         /* of its torn end */
    uint64_t gaps;                              /* damaged places that salvaging passed over */
    uint64_t dead_gaps;                         /* of these, in dead letters */
    char     damage[160];                       /* the first of them: file, offset */
    uint64_t dead_files, dead_letters, dead_bytes;
};

struct near__scan_segment {
    struct near__segment_header header;
    uint32_t                    end; /* of its records; known after them */
};

/* All may be NULL.  `segment` is called before its records and again after the last one (`begun` false). */
struct near__scan_visitor {
    near_status (*segment)(void *ctx, const struct near__scan_segment *segment, bool begun);
    near_status (*record)(void *ctx, const struct near__scan_segment *segment,
                          const struct near__record_view *view, uint32_t at);
    near_status (*dead)(void *ctx, const struct near__record_view *view);
    /* Of the last segment: whole records of which only the kernel may know (see `last_synced`), without an END. */
    near_status (*tail)(void *ctx, const uint8_t *bytes, uint32_t size);
    /* Salvaging: a file of dead letters that is damaged, and what of it can be read; search it with `stamp`. */
    near_status (*spoiled)(void *ctx, uint64_t id, const uint8_t *bytes, size_t size, uint64_t stamp);
    void *ctx;
};

/* Reads everything, in the order of writing, and changes nothing.  NEAR_ERR_PROTOCOL: damage, and `error` says where; with `salvage` it is
 * passed over.  NEAR_ERR_DENIED, NEAR_ERR_UNAVAILABLE, NEAR_ERR_NOMEM, or what the visitor said. */
near_status near__journal_scan(const struct near__journal_dir *dir, bool salvage,
                               const struct near__scan_visitor *visitor, struct near__scan_report *report,
                               near_error *error);

/* What a record that was read means for an index: a visitor's `record`.  NEAR_OK, NEAR_ERR_NOMEM. */
near_status near__scan_index(struct near__index *index, const struct near__record_view *view,
                             struct near__segment *segment, uint32_t at);

/* Opens the directory: NEAR_ERR_DENIED where it is not ours alone to write. */
near_status near__journal_dir_open(struct near__journal_dir *dir, const struct near__disk *disk,
                                   const char *path, bool create, near_error *error);
/* Takes the lock: its descriptor.  NEAR_ERR_BUSY names the process. */
near_status near__journal_lock(const struct near__journal_dir *dir, int *fd, near_error *error);

/* Removes what is no part of the log: unfinished segments, free ones, those that were never continued.  `log` is the log, oldest first.
 * Trouble is left for the next time. */
void near__journal_sweep(const struct near__journal_dir *dir, const struct near__segment *log);

/* Records that a segment begins with, sealed by near__segment_create(). */
struct near__segment_start {
    uint8_t *bytes;
    uint32_t size;
    uint32_t checksum; /* out: of the last of them, or of the header */
};

/* A segment whose header and first records are on disk under its name; `recycle`: number of a free one of the same size to take, or 0.  0 or
 * -errno. */
int near__segment_create(const struct near__journal_dir *dir, struct near__segment_header *header,
                         uint64_t recycle, struct near__segment_start *start, int *fd);
/* A file of dead letters: not allocated beforehand. */
int near__dead_create(const struct near__journal_dir *dir, struct near__segment_header *header, int *fd);

#endif
