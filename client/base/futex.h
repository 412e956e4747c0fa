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

/* The same for several words at once (futex_waitv, Linux 5.16): until one of them is not what was `seen`, or is woken. */
struct near__futex_seen {
    const _Atomic uint32_t *word;
    uint32_t                seen;
};
enum { NEAR__FUTEX_WORDS = 64 }; /* at most */

/* False: it cannot be had here; nobody has slept. */
static inline bool
near__futex_wait_any(const struct near__futex_seen *words, size_t n, int64_t left)
{
#if defined(SYS_futex_waitv) && defined(FUTEX_WAITV_MAX) &&                                                  \
    defined(__LP64__) /* its time has 64 bits everywhere */
    struct futex_waitv waits[NEAR__FUTEX_WORDS];
    struct timespec    until;

    if (left <= 0)
        return true;
    for (size_t i = 0; i < n; i++)
        waits[i] = (struct futex_waitv){ .val   = words[i].seen,
                                         .uaddr = (uintptr_t)words[i].word,
                                         .flags = FUTEX_32 | FUTEX_PRIVATE_FLAG };
    until = near__monotonic_after(left); /* NEAR_NEVER: in centuries */
    return syscall(SYS_futex_waitv, waits, (unsigned)n, 0u, &until, CLOCK_MONOTONIC) >= 0 ||
           errno == EAGAIN || errno == EINTR || errno == ETIMEDOUT;
#else
    (void)words, (void)n, (void)left;
    return false;
#endif
}

static inline void
near__futex_wake(const _Atomic uint32_t *word, int sleepers)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, sleepers, NULL, NULL, 0);
}

#endif
