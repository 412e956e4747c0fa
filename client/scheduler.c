/* See scheduler.h.  Timers are in a binary heap that knows each one's place, so arming and disarming are O(log n). */
#include "scheduler.h"

#include <stdlib.h>

#include "base/thread.h"

void
near__scheduler_init(struct near__scheduler *scheduler)
{
    *scheduler = (struct near__scheduler){ .started = false };
    near__lock_init(&scheduler->lock, NEAR__RANK_LEAF);
    near__cond_init(&scheduler->changed);
    near__cond_init(&scheduler->ran);
}

void
near__scheduler_fini(struct near__scheduler *scheduler)
{
    free(scheduler->heap);
    pthread_cond_destroy(&scheduler->changed);
    pthread_cond_destroy(&scheduler->ran);
    near__lock_fini(&scheduler->lock);
}

/* ---- the heap */

static void
put_at(struct near__scheduler *scheduler, size_t at, struct near__timer *timer)
{
    scheduler->heap[at] = timer;
    timer->place        = at + 1;
}

static void
sift_up(struct near__scheduler *scheduler, size_t at, struct near__timer *timer)
{
    for (; at > 0 && scheduler->heap[(at - 1) / 2]->when > timer->when; at = (at - 1) / 2)
        put_at(scheduler, at, scheduler->heap[(at - 1) / 2]);
    put_at(scheduler, at, timer);
}

static void
sift_down(struct near__scheduler *scheduler, size_t at, struct near__timer *timer)
{
    for (size_t child; (child = 2 * at + 1) < scheduler->n; at = child) {
        if (child + 1 < scheduler->n && scheduler->heap[child + 1]->when < scheduler->heap[child]->when)
            child++;
        if (scheduler->heap[child]->when >= timer->when)
            break;
        put_at(scheduler, at, scheduler->heap[child]);
    }
    put_at(scheduler, at, timer);
}

static void
remove_locked(struct near__scheduler *scheduler, struct near__timer *timer) NEAR__NEEDS(scheduler->lock)
{
    size_t              at = timer->place - 1;
    struct near__timer *last;

    if (timer->place == 0)
        return;
    timer->place = 0;
    last         = scheduler->heap[--scheduler->n];
    if (last == timer)
        return;
    sift_up(scheduler, at, last);
    sift_down(scheduler, last->place - 1, last);
}

static bool
make_room_locked(struct near__scheduler *scheduler) NEAR__NEEDS(scheduler->lock)
{
    size_t               capacity = scheduler->capacity != 0 ? 2 * scheduler->capacity : 16;
    struct near__timer **heap;

    if (scheduler->n < scheduler->capacity)
        return true;
    heap = realloc(scheduler->heap, capacity * sizeof(struct near__timer *));
    if (heap == NULL)
        return false;
    scheduler->heap     = heap;
    scheduler->capacity = capacity;
    return true;
}

/* ---- the thread */

static void
run_first_locked(struct near__scheduler *scheduler, int64_t now) NEAR__NEEDS(scheduler->lock)
{
    struct near__timer *timer = scheduler->heap[0];

    remove_locked(scheduler, timer);
    if (timer->period > 0) { /* there is room: it was just taken out */
        timer->when = near__time_after(now, timer->period);
        scheduler->n++;
        sift_up(scheduler, scheduler->n - 1, timer);
    }
    scheduler->running = timer;
    near__unlock(&scheduler->lock);
    timer->fn(timer->ctx); /* it may disarm itself and free the timer */
    near__lock(&scheduler->lock);
    scheduler->running = NULL;
    pthread_cond_broadcast(&scheduler->ran);
}

static void *
run(void *ctx)
{
    struct near__scheduler *scheduler = ctx;

    near__lock(&scheduler->lock);
    while (!scheduler->stopping) {
        int64_t now  = near__now(&near__clock_system);
        int64_t when = scheduler->n > 0 ? scheduler->heap[0]->when : NEAR_NEVER;

        if (when <= now)
            run_first_locked(scheduler, now);
        else
            near__cond_wait(&scheduler->changed, &scheduler->lock, when);
    }
    near__unlock(&scheduler->lock);
    return NULL;
}

static near_status
start_locked(struct near__scheduler *scheduler) NEAR__NEEDS(scheduler->lock)
{
    near_status status;

    if (scheduler->stopping)
        return NEAR_ERR_CLOSED;
    if (scheduler->started)
        return NEAR_OK;
    status             = near__thread_start(&scheduler->thread, "near-scheduler", run, scheduler);
    scheduler->started = status == NEAR_OK;
    return status;
}

void
near__scheduler_stop(struct near__scheduler *scheduler)
{
    bool join;

    near__lock(&scheduler->lock);
    join                = scheduler->started && !scheduler->stopping;
    scheduler->stopping = true;
    pthread_cond_broadcast(&scheduler->changed);
    near__unlock(&scheduler->lock);
    if (join)
        pthread_join(scheduler->thread, NULL);
}

/* ---- timers */

void
near__timer_init(struct near__timer *timer, void (*fn)(void *ctx), void *ctx)
{
    *timer = (struct near__timer){ .fn = fn, .ctx = ctx };
}

static near_status
arm(struct near__scheduler *scheduler, struct near__timer *timer, int64_t when, int64_t period, bool earlier)
{
    near_status status;

    near__lock(&scheduler->lock);
    status = start_locked(scheduler);
    if (status == NEAR_OK && !(earlier && timer->place != 0 && timer->when <= when)) {
        remove_locked(scheduler, timer);
        if (make_room_locked(scheduler)) {
            timer->when   = when;
            timer->period = period;
            scheduler->n++;
            sift_up(scheduler, scheduler->n - 1, timer);
            if (timer->place == 1)
                pthread_cond_signal(&scheduler->changed);
        } else {
            status = NEAR_ERR_NOMEM;
        }
    }
    near__unlock(&scheduler->lock);
    return status;
}

near_status
near__timer_arm(struct near__scheduler *scheduler, struct near__timer *timer, int64_t when)
{
    return arm(scheduler, timer, when, 0, false);
}

near_status
near__timer_arm_by(struct near__scheduler *scheduler, struct near__timer *timer, int64_t when)
{
    return arm(scheduler, timer, when, 0, true);
}

near_status
near__timer_every(struct near__scheduler *scheduler, struct near__timer *timer, int64_t period)
{
    return arm(scheduler, timer, near__time_after(near__now(&near__clock_system), period), period, false);
}

void
near__timer_disarm(struct near__scheduler *scheduler, struct near__timer *timer)
{
    near__lock(&scheduler->lock);
    remove_locked(scheduler, timer);
    while (scheduler->running == timer && !pthread_equal(scheduler->thread, pthread_self())) {
        near__cond_wait(&scheduler->ran, &scheduler->lock, NEAR_NEVER);
        remove_locked(scheduler, timer); /* its function may have armed it again */
    }
    near__unlock(&scheduler->lock);
}
