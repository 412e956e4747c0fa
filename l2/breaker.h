/*
 * Is a server worth a try?  A circuit breaker: closed (yes), open (no, at the price of a load and a clock reading that the caller
 * has made anyway), half-open (one caller finds out, the others are still refused).
 *
 * It opens when a dial failed, or when the server was silent for long (who measures that: lane.c), and closes with the first byte that
 * the server sends.  Both changes are logged, once each.  While it is open one probe is let through after a growing, jittered time.
 */
#ifndef NEAR_L2_BREAKER_H
#define NEAR_L2_BREAKER_H

#include "base/clock.h"
#include "base/lock.h"

#include <stdatomic.h>

struct near__breaker {
    const struct near__log *log;
    const char             *name;       /* of the server, for the log.  Borrowed */
    int64_t                 probe_time; /* ns a probe may take until the next one is let through */

    _Atomic int64_t  retry_at; /* 0: closed.  Else calls are refused until then */
    _Atomic uint64_t opened;   /* how often it opened */

    struct near__lock lock;     /* of what follows; held for a copy, never for I/O */
    unsigned          failures; /* in a row */
    near_error        reason;   /* of the last */
};

enum near__verdict { NEAR__PASS, NEAR__PROBE, NEAR__REFUSE };

void near__breaker_init(struct near__breaker *breaker, const struct near__log *log, const char *name,
                        int64_t probe_time);
void near__breaker_fini(struct near__breaker *breaker);
void near__breaker_forked(struct near__breaker *breaker); /* in a child: the lock may have been held */

/* PROBE: this caller, and no other for now, is to find out. */
enum near__verdict near__breaker_ask(struct near__breaker *breaker, int64_t now);
static inline bool
near__breaker_open(struct near__breaker *breaker)
{
    /* a hint by itself; near__breaker_refuse() takes the lock */
    return atomic_load_explicit(&breaker->retry_at, memory_order_relaxed) != 0;
}
/* Say why: fills `error`, returns its code. */
near_status near__breaker_refuse(struct near__breaker *breaker, near_error *error);

/* A dial failed; `reason` with its code. */
void near__breaker_failed(struct near__breaker *breaker, const near_error *reason, int64_t now);
/* The server was silent for too long.  While it is open, nothing but a probe's silence counts: many have waited, but only once. */
void near__breaker_silent(struct near__breaker *breaker, const near_error *reason, bool probe, int64_t now);
/* The server has sent something. */
void near__breaker_heard_slowly(struct near__breaker *breaker);
static inline void
near__breaker_heard(struct near__breaker *breaker)
{
    /* nearly always 0 already; the slow form looks again under the lock */
    if (near__breaker_open(breaker))
        near__breaker_heard_slowly(breaker);
}

#endif
