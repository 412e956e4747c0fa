/*
 * One bus, the serve gate, the numbers.  See coherence.h for what is promised; here is how.
 *
 * The bus calls the four listener functions.  subscribed() makes the order that everything hangs on:
 *
 *     listening = false -> sink.flush() -> listening = true, subscribed_at = now -> heard(since >= subscribed_at) moves the gate
 *
 * so between "the subscription is acknowledged" and "the gate moves" there is always a flush (races 13 to 15), and an answer
 * to a question asked before that moves nothing.  The gate is never closed by hand: it was opened for `serve_window` after a
 * moment up to which all messages had been delivered, so what is served until then is at most that old, whatever happens to
 * the bus meanwhile.
 *
 * The lock (a leaf) covers the numbers and the state of the link.  It is never held while the sink, the bus or the log is called;
 * the counters and the gate are atomics beside it.
 */
#include "coherence/coherence.h"

#include "base/hash.h"
#include "base/le.h"
#include "base/lock.h"
#include "coherence/bus.h"
#include "coherence/streams.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAY_AGAIN (60 * 1000 * NEAR_MS) /* a lost bus whose reason changes is logged at most this often */

struct counters {
    _Atomic uint64_t sent, send_failures, received, keys_received, filled_received, echoes, bad_messages,
        gaps, flushes, connects, late;
};

struct near__coherence {
    const struct near__bus_ops *ops;
    void                       *bus;
    const struct near__clock   *clock;
    const struct near__log     *log;
    struct near__coherence_sink sink;
    int64_t                     serve_window;
    uint64_t                    sender;
    bool                        forked;
    _Atomic int64_t             gate;
    struct counters             counters; /* relaxed: they order nothing */

    struct near__lock     lock;
    pthread_cond_t        changed; /* opened, tried */
    bool                  listening;
    bool                  opened, tried; /* the gate was opened once; the first attempt has ended */
    bool                  complained;    /* about a bad message or a gap, since the newest subscribed() */
    int64_t               subscribed_at, lost_at, said_at;
    char                  reason[256]; /* why the bus was lost, as logged */
    struct near__streams *streams;
    struct near__doubts   doubts;
};

static void
count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* --------------------------------------------------------------------------------------------- messages */

/* Everything held may be wrong: the sink forgets it all. */
static void
distrust(struct near__coherence *c)
{
    count(&c->counters.flushes, 1);
    c->sink.flush(c->sink.ctx);
}

/* Distrust for a reason that somebody should look into: said once per subscription. */
static void
distrust_aloud(struct near__coherence *c, const char *what)
{
    bool say;

    near__lock(&c->lock);
    say           = !c->complained;
    c->complained = true;
    near__unlock(&c->lock);
    distrust(c);
    if (say)
        near__log(c->log, NEAR_LOG_WARN, "bus: %s: L1 is flushed each time (further ones are only counted)",
                  what);
}

static void
dispatch(struct near__coherence *c, const struct near__message *m)
{
    const struct near__coherence_sink *sink = &c->sink;
    near_bytes                         key;
    size_t                             at = 0;

    count(&c->counters.received, 1);
    if (m->kind == NEAR__MESSAGE_FILLED)
        count(&c->counters.filled_received, m->count);
    else
        count(&c->counters.keys_received, m->kind == NEAR__MESSAGE_INVALIDATE ? m->count : 0);
    while (near__message_next(m, &at, &key)) {
        switch (m->kind) {
        case NEAR__MESSAGE_INVALIDATE:
            sink->invalidate(sink->ctx, m->cache, key);
            break;
        case NEAR__MESSAGE_FILLED:
            sink->filled(sink->ctx, m->cache, key);
            break;
        case NEAR__MESSAGE_CLEAR:
            sink->cleared(sink->ctx, m->cache, near__le64_get(key.data));
            break;
        }
    }
}

/* Our own message, and its writer knew the outcome: nothing to do (race 10). */
static bool
is_settled_echo(struct near__coherence *c, const struct near__message *m)
{
    bool doubted;

    if (m->sender != c->sender)
        return false;
    near__lock(&c->lock);
    doubted = near__doubts_has(&c->doubts, m->stream);
    near__unlock(&c->lock);
    return !doubted;
}

static enum near__stream_news
news_of(struct near__coherence *c, const struct near__message *m)
{
    enum near__stream_news news;

    if (m->sender == c->sender)
        return NEAR__STREAM_NEXT; /* a doubted echo: applied, but our own numbers prove nothing to us */
    near__lock(&c->lock);
    news = near__streams_heard(c->streams, m->sender, m->stream, m->sequence);
    near__unlock(&c->lock);
    return news;
}

static void
on_message(void *ctx, near_bytes bytes)
{
    struct near__coherence *c = ctx;
    struct near__message    m;

    if (!near__message_decode(&m, bytes) || m.stream == 0 || m.sequence == 0) {
        count(&c->counters.bad_messages, 1);
        distrust_aloud(c, "a message that makes no sense, or is of a newer version");
        return;
    }
    if (is_settled_echo(c, &m)) {
        count(&c->counters.echoes, 1);
        return;
    }
    switch (news_of(c, &m)) {
    case NEAR__STREAM_GAP: /* race 18: tolerance 0 */
        count(&c->counters.gaps, 1);
        distrust_aloud(c, "messages of an instance are missing");
        break;
    case NEAR__STREAM_LATE: /* race 17: applied again, which costs one extra miss */
        count(&c->counters.late, 1);
        break;
    case NEAR__STREAM_FIRST:
    case NEAR__STREAM_NEXT:
        break;
    }
    dispatch(c, &m);
}

/* --------------------------------------------------------------------------------------- link and gate */

static void
on_subscribed(void *ctx)
{
    struct near__coherence *c = ctx;
    int64_t                 now, lost_at;

    near__lock(&c->lock);
    c->listening = false;
    near__streams_forget(c->streams);
    near__unlock(&c->lock);

    distrust(c);
    count(&c->counters.connects, 1);

    now = near__now(c->clock);
    near__lock(&c->lock);
    lost_at          = c->lost_at;
    c->lost_at       = 0;
    c->complained    = false;
    c->listening     = true;
    c->subscribed_at = now;
    near__unlock(&c->lock);
    if (lost_at == 0)
        near__log(c->log, NEAR_LOG_INFO, "bus: subscribed");
    else
        near__log(c->log, NEAR_LOG_WARN, "bus: back after %lld ms, L1 flushed",
                  (long long)((now - lost_at) / NEAR_MS));
}

static void
on_heard(void *ctx, int64_t since)
{
    struct near__coherence *c     = ctx;
    int64_t                 until = near__time_after(since, c->serve_window);

    near__lock(&c->lock);
    if (c->listening && since >= c->subscribed_at) {
        /* release: pairs with the acquire in near__coherence_gate(): who sees this gate sees the flush before it */
        if (until > atomic_load_explicit(&c->gate, memory_order_relaxed))
            atomic_store_explicit(&c->gate, until, memory_order_release);
        if (!c->opened) {
            c->opened = true;
            c->tried  = true;
            pthread_cond_broadcast(&c->changed);
        }
    }
    near__unlock(&c->lock);
}

/* One line when the bus is lost; another only when the reason has changed, and not more than one a minute. */
static bool
lost_is_news_locked(struct near__coherence *c, const char *why, int64_t now)
{
    if (c->lost_at != 0 && (now - c->said_at < SAY_AGAIN || strcmp(c->reason, why) == 0))
        return false;
    if (c->lost_at == 0)
        c->lost_at = now > 0 ? now : 1; /* 0 means: not lost */
    c->said_at = now;
    snprintf(c->reason, sizeof(c->reason), "%s", why);
    return true;
}

static void
on_lost(void *ctx, const char *why)
{
    struct near__coherence *c   = ctx;
    int64_t                 now = near__now(c->clock);
    bool                    say;

    near__lock(&c->lock);
    c->listening = false;
    say          = lost_is_news_locked(c, why, now);
    if (!c->tried) {
        c->tried = true;
        pthread_cond_broadcast(&c->changed);
    }
    near__unlock(&c->lock);
    if (say)
        near__log(c->log, NEAR_LOG_WARN,
                  "bus: lost: %s; trying again, L1 is trusted for at most %lld ms more", why,
                  (long long)(c->serve_window / NEAR_MS));
}

int64_t
near__coherence_gate(const struct near__coherence *c)
{
    /* acquire: pairs with the release in on_heard() */
    return atomic_load_explicit(&c->gate, memory_order_acquire);
}

bool
near__coherence_await(struct near__coherence *c, int64_t deadline)
{
    near__lock(&c->lock);
    while (!c->tried) {
        if (!near__cond_wait(&c->changed, &c->lock, deadline))
            break;
    }
    near__unlock(&c->lock);
    return near__coherence_gate(c) > near__now(c->clock);
}

/* ----------------------------------------------------------------------------------- publish and fence */

void
near__coherence_doubt(struct near__coherence *c, uint64_t stream)
{
    bool full;

    near__lock(&c->lock);
    full = near__doubts_add(&c->doubts, stream);
    near__unlock(&c->lock);
    if (full)
        near__log(
            c->log, NEAR_LOG_WARN,
            "bus: more than %d writes of unknown outcome: own messages are applied like others' from now on",
            NEAR__DOUBTS_MAX);
}

near_status
near__coherence_publish(struct near__coherence *c, uint8_t *message, size_t size, int64_t deadline,
                        near_error *error)
{
    uint64_t    stream = 0;
    near_status st = c->ops->publish(c->bus, message, size, NEAR__MESSAGE_STAMP_AT, &stream, deadline, error);

    /* "filled" makes nobody's copy stale, so its echo is never needed: the few places are for those that do */
    if (st != NEAR_OK && stream != 0 && message[NEAR__MESSAGE_KIND_AT] != NEAR__MESSAGE_FILLED)
        near__coherence_doubt(c, stream);
    count(st == NEAR_OK ? &c->counters.sent : &c->counters.send_failures, 1);
    return st;
}

near_status
near__coherence_fence(struct near__coherence *c, int64_t deadline, near_error *error)
{
    return c->ops->fence(c->bus, deadline, error);
}

/* -------------------------------------------------------------------------------------- life and death */

/* Silence on the bus for twice the serve window ends the connection.  Within the window nothing is lost, and a pause a little longer
 * than it closes the gate but need not cost all of L1, as a new subscription would. */
static int64_t
silence_for(const struct near__coherence_config *config)
{
    int64_t windows = near__time_after(config->serve_window, config->serve_window);
    int64_t beats   = config->heartbeat > NEAR_NEVER / 3 ? NEAR_NEVER : 3 * config->heartbeat;

    return windows > beats ? windows : beats;
}

static near_status
start(struct near__coherence *c, const struct near__coherence_config *config, near_error *error)
{
    struct near__bus_env env = {
        .uri             = config->uri,
        .access          = config->access,
        .clock           = config->clock,
        .log             = config->log,
        .channel         = config->channel,
        .client_name     = config->client_name,
        .heartbeat       = config->heartbeat,
        .silence         = silence_for(config),
        .connect_timeout = config->connect_timeout,
        .listener        = { c, on_subscribed, on_message, on_heard, on_lost },
    };

    c->streams = near__streams_new();
    if (c->streams == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "bus: out of memory");
    do {
        if (!near__random(&c->sender, sizeof(c->sender)))
            return near__fail(error, NEAR_ERR_UNAVAILABLE, "bus: the system gives no random bytes");
    } while (c->sender == 0);
    return c->ops->open(&c->bus, &env, error);
}

near_status
near__coherence_open_over(struct near__coherence **coherence, const struct near__bus_ops *ops,
                          const struct near__coherence_config *config, near_error *error)
{
    struct near__coherence *c;
    near_status             st;

    *coherence = NULL;
    if (ops->version != NEAR__BUS_OPS_V1)
        return near__fail(error, NEAR_ERR_UNSUPPORTED,
                          "bus %s: made for version %u of the bus table, this is %u", ops->scheme,
                          ops->version, (unsigned)NEAR__BUS_OPS_V1);
    c = calloc(1, sizeof(*c));
    if (c == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "bus: out of memory");
    c->ops          = ops;
    c->clock        = config->clock;
    c->log          = config->log;
    c->sink         = config->sink;
    c->serve_window = config->serve_window;
    near__lock_init(&c->lock, NEAR__RANK_LEAF);
    near__cond_init(&c->changed);
    st = start(c, config, error);
    if (st != NEAR_OK)
        near__coherence_free(&c);
    *coherence = c;
    return st;
}

near_status
near__coherence_open(struct near__coherence **coherence, const struct near__coherence_config *config,
                     near_error *error)
{
    const struct near__bus_ops *ops = near__bus_named(config->uri->scheme);

    *coherence = NULL;
    if (ops == NULL)
        return near__fail(error, NEAR_ERR_UNSUPPORTED,
                          "coherence.uri: no bus for %s: (there are memory:, redis:// and redis+unix://)",
                          config->uri->scheme);
    return near__coherence_open_over(coherence, ops, config, error);
}

void
near__coherence_stop(struct near__coherence *c)
{
    if (c->bus != NULL)
        c->ops->stop(c->bus);
}

void
near__coherence_free(struct near__coherence **coherence)
{
    struct near__coherence *c = *coherence;

    *coherence = NULL;
    if (c == NULL)
        return;
    if (c->bus != NULL)
        c->ops->fini(c->bus);
    near__streams_free(&c->streams);
    if (!c->forked) { /* a child has a copy of whatever state other threads had left these in: destroying may hang */
        pthread_cond_destroy(&c->changed);
        near__lock_fini(&c->lock);
    }
    free(c);
}

void
near__coherence_forked(struct near__coherence *c)
{
    c->forked = true;
    if (c->bus != NULL)
        c->ops->forked(c->bus);
}

uint64_t
near__coherence_sender(const struct near__coherence *c)
{
    return c->sender;
}

void
near__coherence_stats(struct near__coherence *c, struct near__coherence_stats *stats)
{
#define GET(field) stats->field = atomic_load_explicit(&c->counters.field, memory_order_relaxed)
    GET(sent);
    GET(send_failures);
    GET(received);
    GET(keys_received);
    GET(filled_received);
    GET(echoes);
    GET(bad_messages);
    GET(gaps);
    GET(flushes);
    GET(connects);
    GET(late);
#undef GET
    near__lock(&c->lock);
    stats->connected = c->listening;
    near__unlock(&c->lock);
}
