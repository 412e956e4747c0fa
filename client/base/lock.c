#include "base/lock.h"

#include <time.h>

#ifdef NEAR_CHECK_LOCKS
/* The ranks this thread holds, one bit each: a take must be above them all. */
static __thread unsigned held_ranks;

static void
check_take(enum near__rank rank)
{
    if ((held_ranks >> rank) != 0)
        __builtin_trap(); /* a lock of this rank or a higher one is held: see doc/architecture.md, lock order */
    held_ranks |= 1u << rank;
}

static void
check_give(enum near__rank rank)
{
    held_ranks &= ~(1u << rank);
}
#else
#define check_take(rank) ((void)(rank))
#define check_give(rank) ((void)(rank))
#endif

void
near__lock_init(struct near__lock *lock, enum near__rank rank)
{
    pthread_mutexattr_t attributes;

    /* Shards and leaves are held for less than a thread takes to fall asleep: try again for a moment first.  (glibc's functions do not
     * fail for these attributes.) */
    pthread_mutexattr_init(&attributes);
#ifdef PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP
    if (rank == NEAR__RANK_SHARD || rank == NEAR__RANK_DIRTY || rank == NEAR__RANK_LEAF)
        pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
    pthread_mutex_init(&lock->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    lock->rank = rank;
}

void
near__lock_fini(struct near__lock *lock)
{
    pthread_mutex_destroy(&lock->mutex);
}

void
near__lock(struct near__lock *lock)
{
    check_take(lock->rank);
    pthread_mutex_lock(&lock->mutex);
}

void
near__unlock(struct near__lock *lock)
{
    check_give(lock->rank);
    pthread_mutex_unlock(&lock->mutex);
}

void
near__cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

bool
near__cond_wait(pthread_cond_t *cond, struct near__lock *lock, int64_t deadline)
{
    struct timespec ts;
    int64_t         left, until;

    if (deadline == NEAR_NEVER) {
        pthread_cond_wait(cond, &lock->mutex);
        return true;
    }
    /* condition variables take MONOTONIC but not BOOTTIME: translate what is left */
    left = deadline - near__now(&near__clock_system);
    if (left <= 0)
        return false;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    until      = near__time_after((int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec, left);
    ts.tv_sec  = (time_t)(until / 1000000000);
    ts.tv_nsec = (long)(until % 1000000000);
    pthread_cond_timedwait(cond, &lock->mutex, &ts);
    return near__now(&near__clock_system) < deadline;
}
