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
    NEAR__RANK_SHARD,      /* one L1 shard */
    NEAR__RANK_STORE,      /* one memory: backend */
    NEAR__RANK_POOL,       /* a connection pool */
    NEAR__RANK_DIRTY,      /* what a cache has accepted and its store has not */
    NEAR__RANK_LEAF        /* log callback, small state: nothing is taken under it */
};

struct near__lock {
    pthread_mutex_t mutex;
    enum near__rank rank;
};

void near__lock_init(struct near__lock *lock, enum near__rank rank);
void near__lock_fini(struct near__lock *lock);
void near__lock(struct near__lock *lock);
void near__unlock(struct near__lock *lock);

/* A condition whose waits end by near__clock_system's time scale. */
void near__cond_init(pthread_cond_t *cond);
/* Wait with `lock` held; false when `deadline` (CLOCK_BOOTTIME ns, NEAR_NEVER for none) has passed.  As ever, check the
 * condition again. */
bool near__cond_wait(pthread_cond_t *cond, struct near__lock *lock, int64_t deadline);

#endif
