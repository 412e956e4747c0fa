/*
 * The inside of a journal, for its own files: journal.c (life), journal_commit.c (turns), journal_writer.c (groups), journal_room.c (space),
 * journal_replay.c, journal_dead.c.  What exists of a journal:
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
#ifndef NEAR_CLIENT_JOURNAL_INSIDE_H
#define NEAR_CLIENT_JOURNAL_INSIDE_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/lock.h"
#include "journal.h"
#include "journal_file.h"

enum {
    CHUNK        = 256 << 10, /* large enough that a write(2) of one costs its bytes, not the call */
    SPARE_CHUNKS = 4,
    PACKED =
        16
        << 10, /* a chunk with less than this is copied to the end of another: that costs less than its memory */
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
/* What segments may take of the bound.  All else that is on disk fits beside it: a group (an eighth may be pending, and one record may be an eighth), dead
 * letters (an eighth), spare segments (a sixteenth). */
#define COPY_FROM(max)   ((max) / 16 * 9)  /* from here on the oldest records are copied to the end */
#define REFUSE_FROM(max) ((max) / 16 * 13) /* and from here on, where that frees nothing, no more is taken */
#define DEFAULT_BYTES    (UINT64_C(1) << 30)
#define GATHER           (2 * NEAR_MS)    /* on slow disks, where half an fsync would be long */
#define LAZY             (1000 * NEAR_MS) /* what nobody waits for is written after this */
#define LIFE_GAP                                                                                             \
    (UINT64_C(1) << 36) /* more numbers than a life can have given and lost: 1 TiB of records of 40 bytes */

/* Which descriptor is which; -1: none.  Apart, so that the child of a fork can close them whatever else was going on. */
enum { FD_DIRECTORY, FD_LOCK, FD_SEGMENT, FD_DEAD, FD_COUNT };

struct near__chunk {
    struct near__chunk *next;
    uint64_t            last;   /* highest number in it that is the callers'; 0: none */
    uint64_t            turn;   /* DONE records: whose they are, see near__index_take_done(); 0: none */
    uint32_t            begin;  /* what lies before is on disk */
    uint32_t            placed; /* what lies before is in the last segment, or on disk */
    uint32_t            used;
    uint32_t            capacity;
    uint8_t             bytes[];
};

struct near__chunks {
    struct near__chunk *first, *last;
};

/* See journal_commit.c. */
struct near__turns {
    uint64_t         begun, ended; /* groups */
    uint64_t         taken;        /* numbers up to here are in the last that began, or were written before */
    unsigned         waiting[2], queued;
    unsigned         company;   /* callers in commit when the last group ended, its writer too */
    bool             gathering; /* somebody sleeps with an alarm, for the group that is to begin */
    bool             handed;    /* `writing` was left for one of those in `queued` */
    _Atomic uint32_t words[2];
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

    struct near__lock          lock;    /* leaf; covers all below up to the writer's part */
    pthread_cond_t             changed; /* `writing` */
    pthread_cond_t             work;    /* for the thread */
    pthread_t                  thread;
    bool                       threaded, stopping, idle;
    bool                       cramped; /* no room could be made when the last group was written */
    struct near__chunks        pending;
    uint64_t                   pending_bytes;
    int64_t                    pending_since;
    struct near__chunk        *spares;
    unsigned                   spare_count;
    uint64_t                   next_sequence;
    _Atomic uint64_t           written, synced; /* read without the lock as well: journal_commit.c */
    bool                       writing;
    struct near__turns         turns;
    int64_t                    sync_time;   /* of the last fsync; the writer's */
    near_status                failed;      /* sticks */
    _Atomic uint64_t           failures;    /* failed writes and fsyncs */
    uint64_t                   failed_upto; /* the records that the last one concerned */
    char                       failure[200];
    struct near__index         index;
    uint64_t                   done_synced; /* the DONE records of this turn and those before are on disk */
    struct near__segment      *oldest, *last;
    struct near__journal_state counts;

    /* the writer's */
    struct near__chunks unsynced;
    struct near__chunk *unplaced;      /* the first of them that is not wholly in a file; NULL: all are */
    struct near__chunks emptied;       /* what was in them is packed into one before them */
    uint32_t            end, checksum; /* of the last segment: what is placed */
    uint32_t            synced_end, synced_checksum;
    uint64_t            stamp, last_id, floor, spare_ids[SPARE_SEGMENTS];
    uint64_t            bad_upto; /* salvaging: segments up to this one are put aside, not used again */
    uint32_t            dead_end, dead_checksum;
    uint64_t            dead_stamp, dead_bytes;
    struct near__segment_start tail; /* while it opens: what only the kernel may know of the last segment */
    struct near__chunks
        rescued; /* while it opens, salvaging: of each damaged file of dead letters, `last`, what could be read */
};

static inline bool
near__journal_is_forked(const struct near__journal *journal)
{
    return atomic_load_explicit(&journal->forked,
                                memory_order_relaxed); /* in_child() ran before this thread went on */
}

static inline struct near__journal_dir
near__journal_dir_of(const struct near__journal *journal)
{
    return (struct near__journal_dir){ journal->disk, journal->fds[FD_DIRECTORY], journal->path };
}

static inline bool
near__writer_bears_sequence(const uint8_t *record)
{
    return record[32] < NEAR__JOURNAL_DONE;
}

/* ---- chunks (journal_writer.c) */

struct near__chunk *near__chunk_new(size_t capacity); /* NULL: no memory */
void                near__chunks_append(struct near__chunks *list, struct near__chunk *chunk);
void                near__chunks_free(struct near__chunks *list);
/* Room for `size` more bytes at the end of `pending`; NULL: no memory. */
struct near__chunk *near__chunk_for_locked(struct near__journal *journal, size_t size);

/* ---- the writer's (journal_writer.c); 0 or -errno */

/* At the end of `unsynced`, to be placed. */
void near__writer_keep(struct near__journal *journal, struct near__chunk *chunk);
int  near__writer_sync(struct near__journal *journal);
int  near__writer_place(struct near__journal *journal);
int  near__writer_rotate(struct near__journal *journal, size_t room);
int  near__writer_next_segment(struct near__journal *journal, size_t room, bool advance,
                               struct near__segment_start *start);
/* With the lock held; it is dropped meanwhile. */
void near__writer_group_locked(struct near__journal *journal, bool sync);

/* ---- space (journal_room.c), the writer's */

struct near__segment *near__room_oldest_in_use(struct near__journal *journal);
bool                  near__room_copy(struct near__journal *journal, struct near__segment *segment);
bool                  near__room_is_short_locked(const struct near__journal *journal);
int                   near__room_make(struct near__journal *journal);

/* ---- turns (journal_commit.c) */

/* With the lock held: waits until nobody writes. */
void near__writer_become_locked(struct near__journal *journal);
void near__writer_cease_locked(struct near__journal *journal);
void near__writer_run_locked(struct near__journal *journal,
                             bool                  sync); /* a group, as the writer, who ceases */
/* Until `*reached`, which is `written` or `synced`, is there: whoever finds nobody writing writes for all. */
near_status near__commit_wait(struct near__journal *journal, const _Atomic uint64_t *reached, bool sync,
                              uint64_t sequence, int64_t deadline);
/* `failed` has been set. */
void near__commit_tell_all_locked(struct near__journal *journal);

/* ---- dead letters (journal_dead.c) */

/* While it opens: a damaged file of them, and what becomes of all that were found. */
near_status near__dead_spoiled(void *ctx, uint64_t id, const uint8_t *bytes, size_t size, uint64_t stamp);
int         near__dead_rescue(struct near__journal *journal);

#endif
