/* See workers.h. */
#include "workers.h"

#include <stdlib.h>

#include "base/thread.h"

struct worker {
    struct near__workers *workers;
    pthread_t             thread;
    bool                  started, ended; /* pool's lock */
};

struct near__workers {
    struct near__lock lock; /* leaf; covers all below */
    pthread_cond_t    work; /* there is a job, or the end */
    pthread_cond_t    done; /* a thread has ended */
    struct near__job *first, **last;
    unsigned          refs; /* threads, and the owner */
    unsigned          capacity, threads, idle, waiting;
    unsigned          away; /* threads whose job waits for another job */
    bool              stopping;
    struct worker     each[];
};

/* Which pool the calling thread belongs to. */
static _Thread_local struct near__workers *mine;

enum { SUBSTITUTES = 4 }; /* so many times the threads: nested fetches are seldom deeper */

struct near__workers *
near__workers_new(unsigned threads)
{
    struct near__workers *workers =
        calloc(1, sizeof(*workers) + (size_t)SUBSTITUTES * threads * sizeof(struct worker));

    if (workers == NULL)
        return NULL;
    near__lock_init(&workers->lock, NEAR__RANK_LEAF);
    near__cond_init(&workers->work);
    near__cond_init(&workers->done);
    workers->last     = &workers->first;
    workers->refs     = 1;
    workers->capacity = threads;
    return workers;
}

static void
release(struct near__workers *workers)
{
    bool last;

    near__lock(&workers->lock);
    last = --workers->refs == 0;
    near__unlock(&workers->lock);
    if (!last)
        return;
    near__lock_fini(&workers->lock);
    pthread_cond_destroy(&workers->work);
    pthread_cond_destroy(&workers->done);
    free(workers);
}

void
near__workers_free(struct near__workers **pworkers)
{
    struct near__workers *workers = *pworkers;

    *pworkers = NULL;
    if (workers != NULL)
        release(workers);
}

static struct near__job *
take_locked(struct near__workers *workers) NEAR__NEEDS(workers->lock)
{
    struct near__job *job = workers->first;

    if (job == NULL)
        return NULL;
    workers->first = job->next;
    if (workers->first == NULL)
        workers->last = &workers->first;
    workers->waiting--;
    return job;
}

static void *
work(void *ctx)
{
    struct worker        *self    = ctx;
    struct near__workers *workers = self->workers;
    struct near__job     *job;

    mine = workers;
    near__lock(&workers->lock);
    while (!workers->stopping) {
        job = take_locked(workers);
        if (job == NULL) {
            workers->idle++;
            near__cond_wait(&workers->work, &workers->lock, NEAR_NEVER);
            workers->idle--;
            continue;
        }
        near__unlock(&workers->lock);
        job->fn(job, false);
        near__lock(&workers->lock);
    }
    self->ended = true;
    pthread_cond_broadcast(&workers->done);
    near__unlock(&workers->lock);
    release(workers);
    return NULL;
}

static void
start_locked(struct near__workers *workers) NEAR__NEEDS(workers->lock)
{
    struct worker *worker = &workers->each[workers->threads];

    worker->workers = workers;
    if (near__thread_start(&worker->thread, "near-loader", work, worker) != NEAR_OK)
        return;
    worker->started = true;
    workers->threads++;
    workers->refs++;
}

/* Another thread, if there is work for it and it may be. */
static void
staff_locked(struct near__workers *workers, unsigned jobs) NEAR__NEEDS(workers->lock)
{
    if (!workers->stopping && jobs > workers->idle && workers->threads < workers->capacity + workers->away &&
        workers->threads < SUBSTITUTES * workers->capacity)
        start_locked(workers);
}

void
near__workers_wait_begins(struct near__workers *workers)
{
    if (workers == NULL || mine != workers)
        return;
    near__lock(&workers->lock);
    workers->away++;
    staff_locked(workers, workers->waiting);
    near__unlock(&workers->lock);
}

void
near__workers_wait_ends(struct near__workers *workers)
{
    if (workers == NULL || mine != workers)
        return;
    near__lock(&workers->lock);
    workers->away--;
    near__unlock(&workers->lock);
}

near_status
near__workers_submit(struct near__workers *workers, struct near__job *job)
{
    near_status status = NEAR_OK;

    near__lock(&workers->lock);
    staff_locked(workers, workers->waiting + 1);
    if (workers->stopping)
        status = NEAR_ERR_CLOSED;
    else if (workers->threads == 0)
        status = NEAR_ERR_NOMEM;
    if (status == NEAR_OK) {
        job->next      = NULL;
        *workers->last = job;
        workers->last  = &job->next;
        workers->waiting++;
        pthread_cond_signal(&workers->work);
    }
    near__unlock(&workers->lock);
    return status;
}

static unsigned
running_locked(const struct near__workers *workers) NEAR__NEEDS(workers->lock)
{
    unsigned n = 0;

    for (unsigned i = 0; i < workers->threads; i++)
        n += !workers->each[i].ended;
    return n;
}

unsigned
near__workers_stop(struct near__workers *workers, int64_t deadline)
{
    bool              more = true;
    unsigned          left;
    struct near__job *job;

    near__lock(&workers->lock);
    workers->stopping = true;
    pthread_cond_broadcast(&workers->work);
    while ((job = take_locked(workers)) != NULL) {
        near__unlock(&workers->lock);
        job->fn(job, true);
        near__lock(&workers->lock);
    }
    while ((left = running_locked(workers)) > 0 && more)
        more = near__cond_wait(&workers->done, &workers->lock, deadline);
    for (unsigned i = 0; i < workers->threads; i++) {
        struct worker *worker = &workers->each[i];
        bool           ended  = worker->ended;

        if (!worker->started)
            continue;
        worker->started = false;
        near__unlock(&workers->lock); /* it takes the lock once more on its way out */
        if (ended)
            pthread_join(worker->thread, NULL);
        else
            pthread_detach(worker->thread);
        near__lock(&workers->lock);
    }
    near__unlock(&workers->lock);
    return left;
}
