/*
 * The disk tier of one cache: what L1 had no room for, in a log on a disk, with its index in memory.
 *
 *   spill ── index      where a key's record lies (l1/disk_index.h)
 *         ├── buffers   the newest part of the log, not written yet: what is evicted is copied here
 *         ├── log       one file, written round and round in segments; the oldest is evicted, what was used of it written once more
 *         ├── io        reads that nobody waits for longer than he likes (l1/disk_io.h)
 *         └── writer    one thread that does all the writing and makes room ahead
 *
 * near__spill_put() and near__spill_forget() are called under a shard's lock of L1: they do no I/O and take leaves only, one after
 * the other.  When the writer does not keep up, what is evicted is dropped and counted.
 *
 * What may be answered.  L1's invalidations reach this tier under the same lock that orders them with evictions, and L1's fills do, too:
 * so at every moment the index has of a key either nothing, or what L1 would still have, had it had room.  A read looks into the index
 * before and after: if the slot has gone meanwhile, what was read is not answered.  Tags and times are the caller's to check: they
 * are in the record.
 *
 * What is found of a former life (near__spill_old) is in no index and is answered to nobody until somebody vouches for it with
 * near__spill_adopt().
 *
 * Faults.  What does not verify is a miss, and counted.  After a failed write the segment is given up and nothing is written for a while,
 * twice as long each time.  Nothing here fails a caller.
 *
 * Locks: spill->lock (a leaf) covers buffers and places; each partition of the index its own; never two at once.  No I/O under any.
 * What can never happen: an answer that did not verify to the last byte, or of another key; I/O on the thread of who evicts.
 */
#ifndef NEAR_L1_DISK_H
#define NEAR_L1_DISK_H

#include "base/hash.h"
#include "l1/disk_io.h"
#include "l1/disk_record.h"

struct near__spill;

enum near__spill_admission {
    NEAR__SPILL_ALL,
    NEAR__SPILL_SECOND /* what was evicted before, not too long ago */
};

struct near__spill_config {
    const char                  *path;          /* a directory, made where it is not there */
    uint64_t                     max_bytes;     /* of the log */
    uint64_t                     queue_bytes;   /* of the buffers */
    uint32_t                     segment_bytes; /* 0: chosen; a multiple of 4096 */
    int64_t                      timeout;       /* for a read that must wait for the disk */
    unsigned                     threads;
    bool                         ring; /* io_uring where it is to be had */
    enum near__spill_admission   admission;
    struct near__clock           clock;
    const struct near__spill_os *os;
    struct near__log             log;
    struct near__secret          secret; /* of the hashes that callers pass: computed again of what is read */
};

/* NEAR_OK; NEAR_ERR_INVALID (sizes); NEAR_ERR_NOMEM; NEAR_ERR_BUSY: somebody else has the directory; NEAR_ERR_UNAVAILABLE: the file system
 * refuses (*reason is the errno). */
near_status near__spill_open(struct near__spill **spill, const struct near__spill_config *config,
                             int *reason);
/* Writes what is waiting, and what is alive where that can be said for the next life; until the deadline.  `quick`: does not even try
 * (a forked child). */
void near__spill_close(struct near__spill **spill, int64_t deadline, bool quick);

/* Under the lock of the key's shard. */
void near__spill_put(struct near__spill *spill, uint64_t hash, const struct near__spill_record *record);
void near__spill_forget(struct near__spill *spill, uint64_t hash);
/* Around a flush of L1: between the two nothing is found, and what is put is not taken. */
void near__spill_flush_begin(struct near__spill *spill);
void near__spill_flush_end(struct near__spill *spill);

/* One key looked for.  Any number of them may be begun before the first is finished. */
struct near__spill_read {
    struct near__spill_wait  *wait; /* holds the bytes */
    uint64_t                  hash, at, sequence;
    bool                      pending; /* the disk has to be waited for */
    struct near__spill_record record;  /* after near__spill_finish(): times by the clock of now */
};
/* False: it is not there. */
bool near__spill_begin(struct near__spill *spill, uint64_t hash, struct near__spill_read *read);
/* True: read->record is the key's.  False: it is not to be had, or not by then; near__spill_end() is not needed, but does no harm. */
bool near__spill_finish(struct near__spill *spill, struct near__spill_read *read, near_bytes key,
                        int64_t deadline);
void near__spill_end(struct near__spill_read *read);

int64_t near__spill_timeout(const struct near__spill *spill);
int64_t near__spill_now(const struct near__spill *spill);

/* ---- the former life */

/* How many of its segments there are, newest first; 0: none. */
uint64_t near__spill_old_count(const struct near__spill *spill);
/* Every record of one of them, on the caller's thread; `alive`: only those that a clean end has listed.  True: it was read.  False,
 * soon, after near__spill_old_stop(), though the disk hang. */
typedef void near__spill_each(void *ctx, const struct near__spill_record *record, uint64_t hash, uint64_t at,
                              uint32_t size);
bool         near__spill_old(struct near__spill *spill, uint64_t which, near__spill_each *each, void *ctx);
void         near__spill_old_stop(struct near__spill *spill);
/* It ended well: what it lists was not invalidated before that end. */
bool near__spill_old_is_clean(const struct near__spill *spill);
/* Under the lock of the key's shard: may be answered from now on.  False: there is something newer, or its place has been used. */
bool near__spill_adopt(struct near__spill *spill, uint64_t hash, uint64_t at, uint32_t size);
/* Whether the key was touched since the open: filled, evicted, invalidated, or flushed with all others. */
bool near__spill_touched(const struct near__spill *spill, uint64_t hash);
/* Nobody looks at it just now: the list of what was alive may go.  Of the thread that looked. */
void near__spill_old_over(struct near__spill *spill);
/* All has been looked at. */
void near__spill_old_done(struct near__spill *spill);
/* After a flush: what is in the log by now is a former life's, as it were.  Of the thread that looks at it. */
void near__spill_old_again(struct near__spill *spill);
/* How many flushes there were. */
uint32_t near__spill_flushes(const struct near__spill *spill);

struct near__spill_stats {
    uint64_t hits, misses;                 /* finds; of what was looked for */
    uint64_t puts, put_bytes;              /* taken from L1 */
    uint64_t kept;                         /* evicted again, and still here */
    uint64_t rejected, dropped, too_large; /* not taken: admission, no buffer, size */
    uint64_t forgotten;                    /* left by an invalidation or a newer value */
    uint64_t evicted, moved;               /* left with their segment; written once more for they were used */
    uint64_t written_bytes;                /* to the log, all told */
    uint64_t timeouts, corrupt, read_errors, write_errors;
    uint64_t adopted;                         /* of a former life */
    uint64_t entries, index_bytes, log_bytes; /* levels; index_bytes: all memory that grows with the log */
};
void near__spill_stats(struct near__spill *spill, struct near__spill_stats *stats);
bool near__spill_has_ring(const struct near__spill *spill);
/* Everything that waits is in the file; for tests and benchmarks. */
bool near__spill_drain(struct near__spill *spill, int64_t deadline);

#endif
