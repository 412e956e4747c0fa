/* Sleeping on a word (futex(2), Linux), for those who are to be woken without a lock that all of them would take first. */
#ifndef NEAR_BASE_FUTEX_H
#define NEAR_BASE_FUTEX_H

#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

/* Sleeps while the word is `seen`, for `left` ns at most (NEAR_NEVER: no bound); false: they have passed, and no wake was used up.  Else look
 * again: signals end it, too. */
static inline bool
near__futex_wait(const _Atomic uint32_t *word, uint32_t seen, int64_t left)
{
    struct timespec time = { left / (1000 * NEAR_MS), left % (1000 * NEAR_MS) };

    if (left <= 0)
        return false;
    return syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, left != NEAR_NEVER ? &time : NULL, NULL, 0) ==
               0 ||
           errno != ETIMEDOUT;
}

static inline void
near__futex_wake(const _Atomic uint32_t *word, int sleepers)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, sleepers, NULL, NULL, 0);
}

#endif
