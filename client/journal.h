/*
 * The journal: what was acknowledged and is not in the store yet, in files of one directory, so that it survives the process.
 *
 * A journal belongs to the client that opened it and may serve several caches.  It knows bytes, not caches: who writes says what a
 * record is (PUT, ERASE: write-back; INTENT: "about to change this key in the store") and later that it is done with.  What was not
 * done when the process ended is handed out by near__journal_replay() of the next journal over the directory.
 *
 *     near__journal_write()      gives the record its number and copies it into memory; no I/O: may be called under the caller's lock
 *     near__journal_commit()     waits until it is as durable as the policy says; whoever comes first writes for all who wait
 *     near__journal_done()       needs no replay any more; written down with the next group, or within a second
 *
 * Order: records of one key are written in the order in which the store shall see them, and are done in that order, too (several at a
 * time are in order).  Then no crash lets an older one come back without the newer one: a journal is cut at its end, never in its middle.
 *
 * The lock is a leaf: every function may be called with any lock of lower rank held, but commit, replay, dead and close do I/O.
 * Threads: any.  In a forked child: the descriptors are closed, every function answers NEAR_ERR_FORKED, nothing is written.
 * Errors stick: once the files cannot be written any more every write answers NEAR_ERR_UNAVAILABLE until the journal is opened anew.
 */
#ifndef NEAR_CLIENT_JOURNAL_H
#define NEAR_CLIENT_JOURNAL_H

#include "base/clock.h"

struct near__disk;

enum near__journal_kind {
    NEAR__JOURNAL_PUT = 1, /* write-back: the store shall hold `data` under `key` */
    NEAR__JOURNAL_ERASE,   /* write-back: the store shall hold nothing under `key` */
    NEAR__JOURNAL_INTENT, /* write-through, write-around: the caches' copies of `key` may be outdated from now on */
    NEAR__JOURNAL_DONE = 16, /* the journal's own: what needs no replay */
    NEAR__JOURNAL_END        /* the journal's own: a clean close */
};

struct near__journal_record {
    enum near__journal_kind kind;
    near_bytes              cache; /* its name, 1 .. 64 bytes */
    near_bytes              key;   /* 0 .. 64 KiB */
    near_bytes              data;  /* PUT: the value, with what its writer wants to find again; else empty */
};

/* Positions of the choices of write_back.fsync. */
enum near__journal_fsync { NEAR__FSYNC_ALWAYS, NEAR__FSYNC_INTERVAL, NEAR__FSYNC_NONE };

struct near__journal_options {
    const char              *directory; /* created (0700) where only its last part is missing */
    enum near__journal_fsync fsync;
    int64_t                  interval;  /* ns; for NEAR__FSYNC_INTERVAL */
    uint64_t                 max_bytes; /* of all its files; 0: the default of the option */
    bool                     salvage;   /* read on behind damage instead of refusing */
    bool manual; /* no thread of its own: near__journal_tick() does its work.  For tests. */
    const struct near__clock *clock; /* NULL: the system's */
    struct near__log          log;
    const struct near__disk  *disk; /* NULL: the system's */
};

struct near__journal;

/* Locks the directory and reads what is there.  A torn end is cut.  NEAR_OK, or an error with a text that names file and offset:
 * NEAR_ERR_BUSY (another journal, of this process or another, is open over it), NEAR_ERR_PROTOCOL (damage: what the files hold is not
 * what was written), NEAR_ERR_DENIED (owner, mode or kind of a file), NEAR_ERR_UNAVAILABLE (errno), NEAR_ERR_INVALID, NEAR_ERR_NOMEM. */
near_status near__journal_open(struct near__journal **journal, const struct near__journal_options *options,
                               near_error *error);

/* Drawn at random when the directory was empty, the same ever since. */
uint64_t near__journal_origin(const struct near__journal *journal);

/* NEAR_OK: `*sequence`, which grows with every record of this origin, over restarts as well; it has gaps.  NEAR_ERR_BUSY: what is not
 * done has reached the bound.  NEAR_ERR_TOO_LARGE: larger than an eighth of max_bytes.  NEAR_ERR_UNAVAILABLE: a sticky failure.
 * NEAR_ERR_NOMEM, NEAR_ERR_FORKED, NEAR_ERR_CLOSED. */
near_status near__journal_write(struct near__journal *journal, const struct near__journal_record *record,
                                uint64_t *sequence);

/* always: on disk.  none: with the kernel, so that it survives this process.  interval: nothing is waited for, the journal's thread
 * sees to it.  NEAR_ERR_TIMEOUT: not by `deadline` (near__clock_system).  NEAR_ERR_UNAVAILABLE: a write or fsync failed; unless the failure is sticky
 * the record lives on in a new file all the same, so treat it as of unknown outcome and go on with near__journal_done(). */
near_status near__journal_commit(struct near__journal *journal, uint64_t sequence, int64_t deadline);

/* As near__journal_commit(), but waits with `interval`, too.  A flusher that calls it before it hands a batch to the store never lets the store be
 * ahead of the journal (but with `none`, which promises nothing to a machine that fails). */
near_status near__journal_sync(struct near__journal *journal, uint64_t sequence, int64_t deadline);

/* These need no replay.  Numbers that are done already, or never were, are passed over. */
void near__journal_done(struct near__journal *journal, const uint64_t *sequences, size_t n);

/* Keep a record that the store refuses for good, with the reason, in the dead-letter file; on disk when it returns NEAR_OK, whatever the
 * policy.  Then call near__journal_done().  NEAR_ERR_BUSY: the dead letters have reached their bound (an eighth of max_bytes). */
near_status near__journal_dead(struct near__journal *journal, const struct near__journal_record *record,
                               uint64_t sequence, near_status reason);

/* What is not done of `cache`, left by former lives or by this one (a cache that was closed and is opened again), of the kinds in `kinds` (1 << NEAR__JOURNAL_PUT | ...), in the order of its numbers.
 * `deliver` is called with no lock held and may call everything but this and near__journal_close(); the bytes are good until it returns; false: stop.
 * What is in memory only is written first; what is given to the journal meanwhile may be handed out or not.  NEAR_ERR_UNAVAILABLE: not all could be.
 * What is never done is there again at the next open, so a replay can be ended, or killed, anywhere. */
typedef bool (*near__journal_deliver)(void *ctx, const struct near__journal_record *record,
                                      uint64_t sequence);
near_status near__journal_replay(struct near__journal *journal, near_bytes cache, unsigned kinds,
                                 near__journal_deliver deliver, void *ctx);

struct near__journal_state {
    uint64_t live, live_bytes; /* records that are not done, and what they take */
    uint64_t bytes;            /* of the segments in use; spare ones and dead letters are not among them */
    uint64_t segments, dead_letters;
    uint64_t synced;                  /* records up to this number are on disk, whatever the policy */
    uint64_t groups, records, fsyncs; /* written in this life */
    uint64_t rewritten;               /* records copied forward to free old segments */
    uint64_t
        failures; /* failed writes and fsyncs, each survived by a new segment but the last where `failed` */
    uint64_t    recovered, cut_bytes; /* what opening found: records not done; bytes of a torn end */
    uint64_t    salvaged_gaps;        /* damaged places that were passed over */
    near_status failed;               /* NEAR_OK, or the sticky failure */
};
void near__journal_state(struct near__journal *journal, struct near__journal_state *state);

/* One turn of the journal's thread: what is pending is written (and synced, but under `none`).  For tests with `manual`. */
near_status near__journal_tick(struct near__journal *journal);

/* Who may call it after its close: an answer of the store's that comes late.  Its memory lives until the last lets go.  NULL is fine for the latter. */
void near__journal_hold(struct near__journal *journal);
void near__journal_release(struct near__journal *journal);

/* Writes and syncs what is pending, whatever the policy, unlocks, and releases the opener's reference.  Whoever holds another is answered
 * NEAR_ERR_CLOSED by write, commit, sync and dead, and may call done, origin and state; done notes nothing any more.  NULL is fine.  The
 * error that stuck, or the last one.  In a forked child: nothing. */
near_status near__journal_close(struct near__journal *journal, near_error *error);

#endif
