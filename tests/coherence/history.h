/*
 * What was written when, and whether a value that was read may have been read.
 *
 * One history lies in memory that all processes of a test share.  Per key it has a ring of the last HISTORY_RING writes, each with the
 * time before it began and the time after it was acknowledged (CLOCK_BOOTTIME, one clock for all processes).  A version is a write's number
 * among those of its key.  No lock: a place of the ring belongs to the write that has claimed its version until that write has ended, and
 * is used again by the write HISTORY_RING later, which is refused as long as it has not.
 *
 * The judgement knows nothing of caches.  A value is outdated from the moment when a write was acknowledged that had begun after the value's
 * own write was acknowledged: of writes that overlapped nobody knows the order, so neither outdates the other.  A write that
 * was not acknowledged outdates nothing and is never outdated: it may be executed late.  Whatever the ring cannot prove any more
 * counts for the value, never against it.
 */
#ifndef TESTS_COHERENCE_HISTORY_H
#define TESTS_COHERENCE_HISTORY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define HISTORY_RING                                                                                         \
    480 /* more than the writes of a key that may be under way or hidden from a reader within a window */
#define HISTORY_FAILED (1u << 16) /* for so many versions it is remembered that they were not acknowledged */

struct history;

/* NULL: no memory.  Made before the processes are. */
struct history *history_new(unsigned keys);
void            history_free(struct history **history);

/* A write by process `writer` begins; `how` is the caller's word for it.  Its version; 0: the ring is full of unfinished ones, do not write now. */
uint64_t history_begin(struct history *history, unsigned key, unsigned writer, unsigned how);
/* It has ended.  Not acknowledged: nobody knows whether and when it will be executed. */
void history_end(struct history *history, unsigned key, uint64_t version, bool acknowledged);
/* A write with these times; `ended` INT64_MAX - 1: not acknowledged.  For tests of the judgement. */
uint64_t history_record(struct history *history, unsigned key, unsigned writer, int64_t began, int64_t ended);
/* The newest version of a key that was claimed; 0: none. */
uint64_t history_newest(const struct history *history, unsigned key);

struct history_verdict {
    bool     impossible; /* no such version, or it was written after the read had ended */
    bool     lapped;     /* too old for the ring */
    bool     unjudged;   /* its write was not acknowledged */
    int64_t  outdated;   /* ns from the moment it was outdated to the beginning of the read; 0: it was not */
    int64_t  outdated_by_own; /* the same by writes of the reader's own process alone */
    uint64_t by;              /* the write that outdated it, one of the own process if there is one */
};
/* A read in process `reader`, from `began` to `ended`, gave `version`. */
struct history_verdict history_judge(const struct history *history, unsigned key, uint64_t version,
                                     unsigned reader, int64_t began, int64_t ended);
/* What the caller of history_begin() called it; ~0u: it is no longer known. */
unsigned history_how(const struct history *history, unsigned key, uint64_t version);
bool     history_is_acknowledged(const struct history *history, unsigned key, uint64_t version);
/* Whether `first` was certainly acknowledged before `second` began. */
bool history_precedes(const struct history *history, unsigned key, uint64_t first, uint64_t second);

#endif
