/*
 * See breaker.h.
 *
 *     retry_at   0: closed     t > now: open     t <= now: whoever moves it on by CAS is the probe
 *
 * `retry_at` is written under the lock, but for the probe's CAS, and read without it: all that hangs on a value read
 * too early or too late is whether one call more is refused or tried.  `failures` and `reason` are touched under the lock only.
 */
#include "l2/breaker.h"

#include "base/backoff.h"

/* After the first failure the server is left alone for about the first of these, then twice as long each time up to the limit.  A
 * server that refuses connections costs a probe next to nothing, and is to be found again within 100 ms of its return; one that says
 * nothing costs the probing caller his time, and half a second leaves the other half of one to find it again with all threads. */
#define BACKOFF_FIRST   (10 * NEAR_MS)
#define BACKOFF_REFUSED (80 * NEAR_MS)
#define BACKOFF_SILENT  (400 * NEAR_MS)

void
near__breaker_init(struct near__breaker *breaker, const struct near__log *log, const char *name,
                   int64_t probe_time)
{
    *breaker = (struct near__breaker){ .log = log, .name = name, .probe_time = probe_time };
    near__lock_init(&breaker->lock, NEAR__RANK_LEAF);
}

void
near__breaker_fini(struct near__breaker *breaker)
{
    near__lock_fini(&breaker->lock);
}

void
near__breaker_forked(struct near__breaker *breaker)
{
    near__lock_init(&breaker->lock, NEAR__RANK_LEAF);
}

enum near__verdict
near__breaker_ask(struct near__breaker *breaker, int64_t now)
{
    int64_t at = atomic_load_explicit(&breaker->retry_at, memory_order_relaxed);

    if (at == 0)
        return NEAR__PASS;
    if (now < at)
        return NEAR__REFUSE;
    /* relaxed: it decides who probes and publishes nothing */
    return atomic_compare_exchange_strong_explicit(&breaker->retry_at, &at,
                                                   near__time_after(now, breaker->probe_time) | 1,
                                                   memory_order_relaxed, memory_order_relaxed)
               ? NEAR__PROBE
               : NEAR__REFUSE;
}

near_status
near__breaker_refuse(struct near__breaker *breaker, near_error *error)
{
    near_status status;

    near__lock(&breaker->lock);
    status = breaker->reason.code;
    if (error != NULL)
        *error = breaker->reason;
    near__unlock(&breaker->lock);
    if (status == NEAR_ERR_DENIED)
        return status;
    if (error != NULL)
        error->code = NEAR_ERR_UNAVAILABLE;
    return NEAR_ERR_UNAVAILABLE;
}

static void
open_up(struct near__breaker *breaker, const near_error *reason, int64_t most, bool again, int64_t now)
{
    bool    first;
    int64_t delay;

    near__lock(&breaker->lock);
    first = breaker->failures == 0;
    if (!first && !again) {
        near__unlock(&breaker->lock);
        return;
    }
    breaker->reason = *reason;
    breaker->failures += breaker->failures < 64;
    delay = near__backoff(breaker->failures, BACKOFF_FIRST, most);
    /* odd, so that it is never 0 */
    atomic_store_explicit(&breaker->retry_at, near__time_after(now, delay) | 1, memory_order_relaxed);
    if (first)
        atomic_fetch_add_explicit(&breaker->opened, 1, memory_order_relaxed);
    near__unlock(&breaker->lock);
    if (first)
        near__log(breaker->log, NEAR_LOG_WARN, "l2 %s is down, calls to it fail at once: %s", breaker->name,
                  reason->text);
}

void
near__breaker_failed(struct near__breaker *breaker, const near_error *reason, int64_t now)
{
    open_up(breaker, reason, reason->code == NEAR_ERR_UNAVAILABLE ? BACKOFF_REFUSED : BACKOFF_SILENT, true,
            now);
}

void
near__breaker_silent(struct near__breaker *breaker, const near_error *reason, bool probe, int64_t now)
{
    open_up(breaker, reason, BACKOFF_SILENT, probe, now);
}

void
near__breaker_heard_slowly(struct near__breaker *breaker)
{
    bool was_open;

    near__lock(&breaker->lock);
    was_open          = breaker->failures > 0;
    breaker->failures = 0;
    atomic_store_explicit(&breaker->retry_at, 0, memory_order_relaxed);
    near__unlock(&breaker->lock);
    if (was_open)
        near__log(breaker->log, NEAR_LOG_INFO, "l2 %s answers again", breaker->name);
}
