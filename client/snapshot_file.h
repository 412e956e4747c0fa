/*
 * The bytes of a snapshot: what an L1 held, in one file.
 *
 *   head                       NEAR__SNAP_HEAD bytes
 *   block, block, ...          a header of NEAR__SNAP_BLOCK bytes and rows, one for each entry
 *   end                        a block without rows: all was written
 *
 * All numbers are little-endian; all checksums are CRC-32C.
 *
 *   head    0 magic  8 version (4)  12 flags (4)  16 id  24 scope  32 wall clock, ms  40 boot clock, ns  48 boot id (16)  64 entries
 *           72 zeros  124 checksum of what is before it (4)
 *   block   0 magic (4)  4 number, from 0 (4)  8 id of the head  16 bytes of rows (4)  20 rows (4)  24 checksum of the rows (4)
 *           28 checksum of what is before it (4)
 *   row     0 key size (4)  4 value size (4)  8 size of the tags' names (2)  10 tags (1)  11 flags (1)  12 warmth (1)  13 zeros
 *           16 stamp  24 end of life, ms  32 end of freshness, ms  40 cost, us (4)  44 generation, low half (4)  48 age, ms (4)
 *           52 pool (4)  56 key, value, names
 *
 * Version 1 has no pools (its zeros say none) and no flag but the first of heads and two of rows; it is read.  What is newer than this is
 * refused.
 *
 * Times of rows are relative to the head's.  A block names its head by its id, which is random: what an older file has left on a disk is
 * not taken for a part of this one.  A block that is damaged is passed over where its header is whole; where that is damaged,
 * too, nothing behind it can be found, and what there is before it counts.
 *
 * Encoding and decoding are pure functions over bytes that nobody vouches for, and a fuzz target (tests/fuzz/fuzz_snapshot.c): sizes are
 * compared with what is there before anything is read by them, and no memory is taken for what the file does not have.  Writer and
 * reader do their I/O through a table of system calls (client/journal_disk.h), in which tests are the disk.  No locks: each belongs to one
 * thread at a time.
 *
 * What can never happen: a file under the snapshot's name that was not written and synced as a whole; a row that did not verify.
 */
#ifndef NEAR_CLIENT_SNAPSHOT_FILE_H
#define NEAR_CLIENT_SNAPSHOT_FILE_H

#include "journal_disk.h"

enum {
    NEAR__SNAP_HEAD  = 128,
    NEAR__SNAP_BLOCK = 32,
    NEAR__SNAP_ROW   = 56,
    NEAR__SNAP_ROWS =
        256 *
        1024, /* bytes of rows after which a block is written: one call of write(2), and what one flipped bit costs */
    NEAR__SNAP_NAME   = 256, /* of a file, its end included */
    NEAR__SNAP_NUMBER = 2    /* version */
};

enum {
    NEAR__SNAP_ALONE   = 1, /* no shared L2 that could confirm it: see client/snapshot.h */
    NEAR__SNAP_DECODED = 2  /* the cache had a codec */
};

struct near__snap_head {
    uint32_t flags;
    uint64_t id, scope; /* scope: whose it is */
    int64_t  wall_ms, boot_ns;
    uint8_t  boot_id[16]; /* of the kernel's life whose clock boot_ns is; zeros: not known */
    uint64_t entries;     /* about how many there are */
};

#define NEAR__SNAP_FAR                                                                                       \
    (INT64_C(1) << 42) /* ms, 139 years: no row's time is farther from its head's, and this one is never */

struct near__snap_row {
    near_bytes key, value, names;
    unsigned   tags;
    bool       negative;
    bool       forced;  /* stale whatever its time */
    bool       unknown; /* L1 had an object and not its bytes: there is no value */
    uint8_t    warmth;
    uint64_t   stamp;
    uint32_t   generation, cost_us, age_ms;
    uint32_t   pool;                 /* a mark of its name; 0: none */
    int64_t    expires_ms, fresh_ms; /* from the head's time on; NEAR__SNAP_FAR: never */
};

/* What a block's header says. */
struct near__snap_block {
    uint32_t size, rows, checksum;
    bool     end;
};

void near__snap_head_encode(uint8_t bytes[NEAR__SNAP_HEAD], const struct near__snap_head *head);
bool near__snap_head_decode(struct near__snap_head *head, const uint8_t *bytes, size_t size);
/* `block` has its header's place in front of the rows. */
void   near__snap_block_seal(uint8_t *block, uint64_t id, uint32_t number, size_t size, uint32_t rows);
bool   near__snap_block_decode(struct near__snap_block *block, const uint8_t bytes[NEAR__SNAP_BLOCK],
                               uint64_t id, uint32_t number);
size_t near__snap_row_size(const struct near__snap_row *row);
void   near__snap_row_encode(uint8_t *bytes, const struct near__snap_row *row);
/* The row at *at of a block's rows, borrowed from them; *at moves behind it.  False: there is none, *at stays. */
bool near__snap_row_decode(struct near__snap_row *row, near_bytes rows, size_t *at);

/* ---- writing: beside, and renamed when it is whole */

struct near__snap_writer {
    const struct near__disk *disk;
    int                      directory, fd; /* fd < 0: none */
    char                     name[NEAR__SNAP_NAME], beside[NEAR__SNAP_NAME + 4];
    uint64_t                 id, at;
    uint8_t                 *block;
    size_t                   used, room;
    uint32_t                 rows, number;
    uint64_t                 entries;
    int                      error; /* -errno of the first call that failed; nothing is done after it */
};

/* Each: 0 or -errno, the first failure's from then on.  The directory stays the caller's. */
int near__snap_write_begin(struct near__snap_writer *writer, const struct near__disk *disk, int directory,
                           const char *name, const struct near__snap_head *head);
int near__snap_write_row(struct near__snap_writer *writer, const struct near__snap_row *row);
/* The end, and all of it on disk. */
int near__snap_write_end(struct near__snap_writer *writer);
/* Under its name, and that on disk. */
int near__snap_write_publish(struct near__snap_writer *writer);
/* In any case, last: gives memory and descriptor back, and removes what was not published. */
void near__snap_write_close(struct near__snap_writer *writer);

/* ---- reading */

struct near__snap_reader {
    const struct near__disk *disk;
    int                      fd;
    struct near__snap_head   head;
    uint64_t                 at, size;
    uint8_t                 *rows;
    size_t                   room;
    uint32_t                 number;
};

enum near__snap_piece {
    NEAR__SNAP_GOOD,
    NEAR__SNAP_OVER,    /* the end */
    NEAR__SNAP_DAMAGED, /* this block is: go on with the next */
    NEAR__SNAP_BROKEN, /* nothing more is to be had: cut off, damaged beyond finding the next, or it cannot be read (`error`) */
    NEAR__SNAP_NO_ROOM /* no memory for this block: go on with the next */
};

/* 0; -ENOENT: there is none; -EPERM: it is not this user's alone to write; -EBADMSG: no snapshot, or a damaged head; or -errno. */
int near__snap_read_open(struct near__snap_reader *reader, const struct near__disk *disk, int directory,
                         const char *name);
/* The next block's rows, good until the next call. */
enum near__snap_piece near__snap_read_block(struct near__snap_reader *reader, near_bytes *rows, int *error);
void                  near__snap_read_close(struct near__snap_reader *reader);

#endif
