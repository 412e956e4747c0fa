/*
 * Several processes with several threads each that read and write the same keys through the library, and a history that judges every
 * value they get.
 *
 * The test makes a fleet and launches it while it has one thread only; then it starts proxies and does mischief.  What fleet and
 * test share lies on a page of shared memory: the phase, the tallies, the application's store (a version per key, which the loader reads) and
 * the history.  A process's threads are its own.  They end when the phase says so, or with the test.
 *
 * A value says its key, its version, and bytes that follow from both.  A write is: a new version, into the store, then one of the
 * library's writes or invalidations; acknowledged when that returned NEAR_OK.
 */
#ifndef TESTS_COHERENCE_FLEET_H
#define TESTS_COHERENCE_FLEET_H

#include "harness/test.h"

#include <stdatomic.h>
#include <sys/types.h>

#include "coherence/history.h"

enum fleet_op {
    FLEET_GET,
    FLEET_GET_MANY,
    FLEET_FETCH,
    FLEET_FETCH_MANY,
    FLEET_PUT,
    FLEET_PUT_MANY,
    FLEET_REMOVE,
    FLEET_EXPIRE,
    FLEET_TAG,
    FLEET_CLEAR,
    FLEET_OPS
};

/* A cure that is switched off, in every process, so that the fleet must see what it cures. */
enum fleet_sabotage {
    FLEET_SOUND,
    FLEET_NO_FENCES,    /* a fill is admitted whatever came meanwhile */
    FLEET_GATE_OPEN,    /* L1 answers however long the bus was silent */
    FLEET_NO_FLUSH,     /* L1 is not flushed after the bus was lost */
    FLEET_PUBLISH_FIRST /* others are told before L2 is written */
};

enum {
    FLEET_PROCESSES = 4,
    FLEET_THREADS   = 4,
    FLEET_BATCH     = 64,
    FLEET_TAG_KEYS  = 4,
    FLEET_INCIDENTS = 12,
    FLEET_BUCKETS   = 512
};

struct fleet_plan {
    unsigned            processes, threads, keys, batch;
    unsigned            weights[FLEET_OPS];     /* of a thread's next step */
    unsigned            readers;                /* so many threads of each process only read */
    unsigned            only_read;              /* and so many processes, the first ones */
    int64_t             pause_us;               /* after a write */
    int64_t             window_ms, deadline_ms; /* S; what a call may take */
    bool                warm;                   /* keys are loaded before it begins */
    enum fleet_sabotage sabotage;
    const char *const  *settings; /* names and values by turns, ended by NULL */
};

enum fleet_phase { FLEET_WAIT, FLEET_RUN, FLEET_QUIET, FLEET_COMPARE, FLEET_END };

struct fleet_page {
    _Atomic int      phase;
    _Atomic unsigned ready, quiet, compared,
        turn; /* processes that have opened; threads that stand still; ... */
    _Atomic int failed_to_open;
    char        l2[FLEET_PROCESSES][300], bus[FLEET_PROCESSES][300];

    /* tallies */
    _Atomic uint64_t reads, hits, writes, batches;
    _Atomic uint64_t stale_hits;  /* L1 hits outdated for longer than the window */
    _Atomic uint64_t stale_reads; /* other answers alike */
    _Atomic uint64_t own, backwards, impossible, wrong, unjudged, lapped, flagged;
    _Atomic uint64_t failed_reads, failed_writes, skipped_writes, late;
    _Atomic int64_t  worst_late;            /* ns beyond the deadline */
    _Atomic int      worst_op;              /* of that call */
    _Atomic int64_t  worst_noise;           /* how late a thread of the fleet that only slept was woken */
    _Atomic int64_t  worst_hit, worst_read; /* ns that a value had been outdated for */
    _Atomic uint64_t compared_keys, inconsistent, left; /* left: in L1, and L2 has none */
    _Atomic uint64_t
        ahead; /* L1 has what the store had while L2 could not be asked; L2 an overlapping write that came last */
    _Atomic uint64_t buckets[FLEET_BUCKETS];  /* of the hits that were outdated */
    _Atomic int64_t  hit_at[FLEET_PROCESSES]; /* when a process last had a hit */
    _Atomic unsigned stops[FLEET_PROCESSES];  /* times it was stopped */
    near_stats stats[FLEET_PROCESSES]; /* written now and then by a thread of the process, to be printed */
    _Atomic unsigned incidents;
    char             incident[FLEET_INCIDENTS][1200];
    _Atomic uint64_t store[];
};

struct fleet {
    struct fleet_plan  plan;
    struct fleet_page *page;
    size_t             page_size;
    struct history    *history;
    pid_t              pids[FLEET_PROCESSES];
};

/* NULL: no memory.  Nothing runs yet. */
struct fleet *fleet_new(const struct fleet_plan *plan);
/* Fork.  They wait for fleet_open(). */
void fleet_launch(struct fleet *fleet);
/* Where process i finds its servers; before fleet_open(). */
void fleet_lead(struct fleet *fleet, unsigned process, const char *l2, const char *bus);
/* All have opened their clients.  False: one could not. */
bool fleet_open(struct fleet *fleet);
void fleet_run(struct fleet *fleet);
/* All stand still when it returns. */
void fleet_quiet(struct fleet *fleet);
/* While all stand still: until no process owes an invalidation any more; false: after `ms` one still does. */
bool fleet_await_debts(struct fleet *fleet, int64_t ms);
/* While all stand still: every key of every L1 beside L2. */
void fleet_compare(struct fleet *fleet);
/* They close and end; their exit statuses were 0. */
bool fleet_end(struct fleet *fleet);
void fleet_free(struct fleet **fleet); /* kills what still runs */
/* SIGSTOP and SIGCONT for one process. */
void fleet_stop(struct fleet *fleet, unsigned process);
void fleet_continue(struct fleet *fleet, unsigned process);
/* Until every process has had an L1 hit since `since` (ns); ns it took, or -1 after `ms`. */
int64_t fleet_await_hits(struct fleet *fleet, int64_t since, int64_t ms);
/* For how long the hits had been outdated, of all hits: a quantile in ns. */
int64_t fleet_quantile(const struct fleet *fleet, double share);
/* What each process's library says of itself. */
void fleet_explain(const struct fleet *fleet);
void fleet_print(const struct fleet *fleet, const char *what, int64_t ms);

/* In a process of the fleet: what is switched off there. */
extern enum fleet_sabotage fleet_sabotage;

#endif
