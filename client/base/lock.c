#include "base/lock.h"

#include <time.h>

#ifdef NEAR_CHECK_LOCKS
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The ranks this thread holds, one bit each: a take must be above them all. */
static __thread unsigned held_ranks;

/* Which ranks were taken under each, by any thread: the edges of the order, for tests/lock_order.sh.  Relaxed: read when all is over. */
static _Atomic unsigned taken_under[NEAR__RANK_LEAF + 1];

static void
note_edges(enum near__rank rank)
{
    for (unsigned held = 0; held <= NEAR__RANK_LEAF; held++)
        if ((held_ranks >> held & 1) != 0 &&
            (atomic_load_explicit(&taken_under[held], memory_order_relaxed) >> rank & 1) == 0)
            atomic_fetch_or_explicit(&taken_under[held], 1u << rank, memory_order_relaxed);
}

/* At the end of the program, behind what is there: "held taken" by numbers, one edge a line. */
__attribute__((destructor)) static void
write_edges(void)
{
    const char *path = secure_getenv("NEAR_LOCK_ORDER");
    char        text[2048];
    size_t      size = 0;
    int         fd;

    if (path == NULL)
        return;
    for (unsigned held = 0; held <= NEAR__RANK_LEAF; held++)
        for (unsigned taken = 0; taken <= NEAR__RANK_LEAF; taken++)
            if ((taken_under[held] >> taken & 1) != 0)
                size += (size_t)snprintf(text + size, sizeof(text) - size, "%u %u\n", held, taken);
    fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    if (write(fd, text, size) <
        0) /* one write, for programs run side by side; without it an edge is missed */
        size = 0;
    close(fd);
}

static void
check_take(enum near__rank rank)
{
    if ((held_ranks >> rank) != 0)
        __builtin_trap(); /* a lock of this rank or a higher one is held: see doc/architecture.md, lock order */
    note_edges(rank);
    held_ranks |= 1u << rank;
}

static void
check_give(enum near__rank rank)
{
    held_ranks &= ~(1u << rank);
}

void
near__lock_none(void)
{
    if (held_ranks != 0)
        __builtin_trap(); /* what the application does now may come back, or take long */
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
    if (rank == NEAR__RANK_KEYS || rank == NEAR__RANK_SHARD || rank == NEAR__RANK_DIRTY ||
        rank == NEAR__RANK_LEAF)
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
near__lock(struct near__lock *lock) NEAR__UNFOLLOWED
{
    check_take(lock->rank);
    pthread_mutex_lock(&lock->mutex);
}

void
near__unlock(struct near__lock *lock) NEAR__UNFOLLOWED
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
    int64_t         left;

    if (deadline == NEAR_NEVER) {
        pthread_cond_wait(cond, &lock->mutex);
        return true;
    }
    /* condition variables take MONOTONIC but not BOOTTIME: translate what is left */
    left = deadline - near__now(&near__clock_system);
    if (left <= 0)
        return false;
    ts = near__monotonic_after(left);
    pthread_cond_timedwait(cond, &lock->mutex, &ts);
    return near__now(&near__clock_system) < deadline;
}
