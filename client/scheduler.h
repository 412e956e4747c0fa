/*
 * The client's clock-work: one thread that runs short functions when their time has come.
 *
 * The thread starts with the first timer that is armed, blocks every signal, and is joined by near__scheduler_stop().  A timer
 * lies in its owner's memory.  Functions run one at a time, with no lock held, and must not block: what may (L2, loaders) is handed
 * to client/workers.h.  Upkeep that has to be done now and then is a timer with a period.
 *
 *     near__timer_init(&timer, my_upkeep, cache);
 *     near__timer_every(&client->scheduler, &timer, 100 * NEAR_MS);
 *     ...
 *     near__timer_disarm(&client->scheduler, &timer);     my_upkeep does not run any more, and never will again
 *
 * The lock is a leaf: arm and disarm with no other leaf held, and disarm with no lock held that the function takes.
 */
#ifndef NEAR_CLIENT_SCHEDULER_H
#define NEAR_CLIENT_SCHEDULER_H

#include "base/lock.h"

struct near__timer {
    void (*fn)(void *ctx);
    void   *ctx;
    int64_t when;   /* scheduler's lock, like all below */
    int64_t period; /* 0: once */
    size_t  place;  /* in the heap, from 1; 0: not armed */
};

struct near__scheduler {
    struct near__lock    lock; /* leaf; covers all below and the timers' private parts */
    pthread_cond_t       changed;
    pthread_cond_t       ran; /* `running` has changed */
    pthread_t            thread;
    bool                 started, stopping;
    struct near__timer **heap; /* heap[0] is the earliest */
    size_t               n, capacity;
    struct near__timer  *running;
};

void near__scheduler_init(struct near__scheduler *scheduler);
/* After near__scheduler_stop(). */
void near__scheduler_fini(struct near__scheduler *scheduler);
/* No function runs when it returns, and none ever will.  Waits for the one that is running. */
void near__scheduler_stop(struct near__scheduler *scheduler);

void near__timer_init(struct near__timer *timer, void (*fn)(void *ctx), void *ctx);
/* Run once at `when` (near__clock_system), instead of whatever it was armed for.  NEAR_OK; NEAR_ERR_NOMEM; NEAR_ERR_CLOSED. */
near_status near__timer_arm(struct near__scheduler *scheduler, struct near__timer *timer, int64_t when);
/* As near__timer_arm(), but not later than it is armed for already. */
near_status near__timer_arm_by(struct near__scheduler *scheduler, struct near__timer *timer, int64_t when);
/* Run every `period` ns, the first time after one.  Runs that were missed are not made up for. */
near_status near__timer_every(struct near__scheduler *scheduler, struct near__timer *timer, int64_t period);
/* When it returns the function is not running, unless it is the function itself that calls. */
void near__timer_disarm(struct near__scheduler *scheduler, struct near__timer *timer);

#endif
