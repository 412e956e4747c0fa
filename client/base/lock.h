/*
 * Ranked mutexes.  A thread takes only locks of higher rank than any it holds; with -DNEAR_CHECK_LOCKS (the sanitizer builds)
 * every take is checked and a wrong order traps.  The enum is the lock order of the whole library; doc/architecture.md says
 * what each one covers.  No lock is held while calling the application, a loader, the log callback or a server.
 */
#ifndef NEAR_BASE_LOCK_H
#define NEAR_BASE_LOCK_H

#include "base/clock.h"

#include <pthread.h>

enum near__rank {
    NEAR__RANK_CLIENT = 1, /* list of caches */
    NEAR__RANK_REGISTRY,   /* the process's memory: backends and buses */
    NEAR__RANK_BUS,        /* listener state, fence waiters */
    NEAR__RANK_LOAD,       /* one batch of loads */
    NEAR__RANK_FLIGHT,     /* table of flights */
    NEAR__RANK_KEYS,       /* some keys of an L1 with pools */
    NEAR__RANK_SHARD,      /* one L1 shard */
    NEAR__RANK_STORE,      /* one memory: backend */
    NEAR__RANK_POOL,       /* a connection pool */
    NEAR__RANK_DIRTY,      /* what a cache has accepted and its store has not */
    NEAR__RANK_LEAF        /* log callback, small state: nothing is taken under it */
};

/*
 * clang's thread-safety analysis (make thread-safety): whoever takes a lock gives it back on every path, and whoever calls a function that
 * NEEDS one has it.  Functions whose names end in _locked do.  gcc sees nothing of it.
 */
#if defined(__clang__)
#define NEAR__SAFETY(x) __attribute__((x))
#else
#define NEAR__SAFETY(x)
#endif
#define NEAR__TAKES(lock) NEAR__SAFETY(acquire_capability(lock))
#define NEAR__TRIES(lock) NEAR__SAFETY(try_acquire_capability(true, lock)) /* has it when it returns true */
#define NEAR__GIVES(lock) NEAR__SAFETY(release_capability(lock))
#define NEAR__NEEDS(lock) NEAR__SAFETY(requires_capability(lock))
/* Where it cannot follow: locks that are chosen at run time, or taken here and given back elsewhere. */
#define NEAR__UNFOLLOWED NEAR__SAFETY(no_thread_safety_analysis)

struct NEAR__SAFETY(capability("lock")) near__lock {
    pthread_mutex_t mutex;
    enum near__rank rank;
};

void near__lock_init(struct near__lock *lock, enum near__rank rank);
void near__lock_fini(struct near__lock *lock);
void near__lock(struct near__lock *lock) NEAR__TAKES(lock);
void near__unlock(struct near__lock *lock) NEAR__GIVES(lock);

/* The application is about to be called: with NEAR_CHECK_LOCKS a lock that this thread holds traps. */
#ifdef NEAR_CHECK_LOCKS
void near__lock_none(void);
#else
static inline void
near__lock_none(void)
{
}
#endif

/* A condition whose waits end by near__clock_system's time scale. */
void near__cond_init(pthread_cond_t *cond);
/* Wait with `lock` held; false when `deadline` (CLOCK_BOOTTIME ns, NEAR_NEVER for none) has passed.  As ever, check the
 * condition again. */
bool near__cond_wait(pthread_cond_t *cond, struct near__lock *lock, int64_t deadline) NEAR__NEEDS(lock);

#endif
