/*
 * The loader pool: a few threads for what may block and has no caller's thread to run on: background refreshes, loads with a
 * deadline, the rest of a batch whose caller has left.
 *
 * Threads start one by one, when a job comes and none is idle, up to the bound; they block every signal.  A job lies in its owner's
 * memory and runs exactly once: with `cancelled` set when the pool ends before its turn.  Stopping waits for running jobs up to a
 * deadline; a thread that is then still inside a loader is left to end by itself, and the pool's memory goes with the last one.
 *
 * The lock is a leaf; jobs run with no lock held.
 */
#ifndef NEAR_CLIENT_WORKERS_H
#define NEAR_CLIENT_WORKERS_H

#include "base/lock.h"

struct near__job {
    struct near__job *next;                            /* pool's lock */
    void (*fn)(struct near__job *job, bool cancelled); /* the job's memory is its own from here on */
};

struct near__workers;

/* At most `threads`.  NULL: out of memory. */
struct near__workers *near__workers_new(unsigned threads);
/* NEAR_OK: it will run.  NEAR_ERR_CLOSED, NEAR_ERR_NOMEM (there is no thread and none can be made): it is still the caller's. */
near_status near__workers_submit(struct near__workers *workers, struct near__job *job);
/* Around a wait for what another job of the pool may have to do first (a loader that fetches): if the calling thread is one of the
 * pool's, another one may be started in its place, up to four times the number. */
void near__workers_wait_begins(struct near__workers *workers);
void near__workers_wait_ends(struct near__workers *workers);
/* No new jobs; those waiting are cancelled, in this thread; those running are waited for until `deadline`.  How many are left. */
unsigned near__workers_stop(struct near__workers *workers, int64_t deadline);
/* After stop; NULL inside is fine. */
void near__workers_free(struct near__workers **workers);

#endif
