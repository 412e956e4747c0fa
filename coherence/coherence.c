/*
 * One bus, the serve gate, the numbers.  See coherence.h for what is promised; here is how.
 *
 * The bus calls the four listener functions.  subscribed() makes the order that everything hangs on:
 *
 *     listening = false -> sink.flush() -> listening = true, subscribed_at = now -> heard(since >= subscribed_at) moves the gate
 *
 * so between "the subscription is acknowledged" and "the gate moves" there is always a flush (races 13 to 15), and an answer
 * to a question asked before that moves nothing.  A bus that is lost leaves the gate alone: it was opened for `serve_window` after a
 * moment up to which all messages had been delivered, so what is served until then is at most that old, whatever happens to
 * the bus meanwhile.  Only a server that turns out to be another one closes it by hand.
 *
 * The lock (a leaf) covers the numbers and the state of the link.  It is never held while the sink, the bus or the log is called;
 * the counters and the gate are atomics beside it.
 */
#include "coherence/coherence.h"

#include "base/hash.h"
#include "base/le.h"
#include "base/lock.h"
#include "base/probe.h"
#include "coherence/bus.h"
#include "coherence/lag.h"
#include "coherence/streams.h"
#include "l2/stream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* More flushes than this in a second, for messages that are missing or make no sense, and L1 is bypassed instead: who floods the
 * channel gets a closed gate, not an L1 that is emptied thousands of times a second.  It ends with a second without any. */
#define STORM_FLUSHES 16
#define STORM_WINDOW  (1000 * NEAR_MS)

#define SAY_AGAIN (60 * 1000 * NEAR_MS) /* a lost bus whose reason changes is logged at most this often */

struct counters {
    _Atomic uint64_t sent, send_failures, received, keys_received, filled_received, echoes, bad_messages,
        gaps, flushes, connects, late, beats, changed, storms;
};

/* The newest messages of a thread, one for each of some clients, by their sender. */
#define POSITIONS 4
static _Thread_local struct near__position positions[POSITIONS];

/* Every hit reads the gate, and every message moves counts: the gate has its line, and the one that processors fetch with it, to itself. */
#define LINES 128

struct near__coherence {
    _Alignas(LINES) _Atomic int64_t gate;

    _Alignas(LINES) const struct near__bus_ops *ops;
    void                       *bus;
    const struct near__clock   *clock;
    const struct near__log     *log;
    struct near__coherence_sink sink;
    int64_t                     serve_window;
    uint64_t                    sender;
    bool                        forked;
    size_t                      copies;   /* on how many links each message comes */
    _Atomic unsigned            applying; /* messages being taken */
    struct counters             counters; /* relaxed: they order nothing */

    struct near__lock lock;
    pthread_cond_t    changed; /* opened, tried */
    bool              listening;
    bool              opened, tried; /* the gate was opened once; the first attempt has ended */
    bool              complained;    /* about a bad message or a gap, since the newest subscribed() */
    uint64_t unsure; /* times that something may have been lost; a flush by the next heard() makes it 0 */
    int64_t  subscribed_at, lost_at, said_at;
    int64_t  storm_until;   /* 0: there is none */
    int64_t  flushes_since; /* the running second of the storm's measure, and how many were in it */
    unsigned flushes_in_row;
    char     reason[256]; /* why the bus was lost, as logged */
    struct near__streams *streams;
    struct near__doubts   doubts;
    struct near__sent     sent;
    struct near__lag      lag;
    int64_t               closed_at; /* when the gate was closed by hand; 0: it was not */

    struct near__histogram echo, closures; /* of our messages; how long the gate was closed each time */
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

/* By hand.  It may have been closed before that by itself. */
static void
close_gate_locked(struct near__coherence *c, int64_t now) NEAR__NEEDS(c->lock)
{
    int64_t gate = atomic_load_explicit(&c->gate, memory_order_relaxed);

    if (c->closed_at == 0)
        c->closed_at = gate < now ? gate : now;
    atomic_store_explicit(&c->gate, 0, memory_order_release); /* as in on_heard() */
    NEAR__PROBE1(gate__closed, c);
}

enum weather { FAIR, STORM_BEGINS, STORM };

/* One more reason to flush.  STORM: none is needed, because the gate is closed and one will come before it opens. */
static enum weather
weather_locked(struct near__coherence *c, int64_t now) NEAR__NEEDS(c->lock)
{
    if (c->storm_until != 0) {
        c->storm_until = near__time_after(now, STORM_WINDOW);
        return STORM;
    }
    if (now - c->flushes_since >= STORM_WINDOW) {
        c->flushes_since  = now;
        c->flushes_in_row = 0;
    }
    /* a gate that is open for ever (memory:) would never be opened again */
    if (++c->flushes_in_row <= STORM_FLUSHES ||
        atomic_load_explicit(&c->gate, memory_order_relaxed) == NEAR_NEVER)
        return FAIR;
    c->storm_until = near__time_after(now, STORM_WINDOW);
    close_gate_locked(c, now);
    return STORM_BEGINS;
}

/* Distrust for a reason that somebody should look into: said once per subscription. */
static void
distrust_aloud(struct near__coherence *c, const char *what)
{
    int64_t      now = near__now(c->clock);
    enum weather weather;
    bool         say;

    near__lock(&c->lock);
    weather       = weather_locked(c, now);
    say           = !c->complained;
    c->complained = true;
    near__unlock(&c->lock);
    if (weather == STORM)
        return;
    distrust(c);
    if (weather == STORM_BEGINS) {
        count(&c->counters.storms, 1);
        near__log(c->log, NEAR_LOG_WARN,
                  "bus: %s, more than %d times a second: L1 is bypassed until that has ended", what,
                  STORM_FLUSHES);
    }
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
        switch (m->kind) { /* uncovered: beats end in take_message(), other kinds are not decoded */
        case NEAR__MESSAGE_INVALIDATE:
            sink->invalidate(sink->ctx, m->cache, key);
            break;
        case NEAR__MESSAGE_FILLED:
            sink->filled(sink->ctx, m->cache, key);
            break;
        case NEAR__MESSAGE_CLEAR:
            sink->cleared(sink->ctx, m->cache, near__le64_get(key.data));
            break;
        case NEAR__MESSAGE_TAG: {
            const uint8_t *tail = (const uint8_t *)key.data + key.size - NEAR__MESSAGE_TAG_TAIL;

            key.size -= NEAR__MESSAGE_TAG_TAIL;
            sink->tagged(sink->ctx, m->cache, key, near__le64_get(tail), near__le64_get(tail + 8));
            break;
        }
        case NEAR__MESSAGE_PREFIX:
            sink->prefixed(sink->ctx, m->cache, key);
            break;
        case NEAR__MESSAGE_BEAT:
            break; /* is not for the sink */
        }
    }
}

static bool
is_ours(const struct near__coherence *c, const struct near__message *m)
{
    return m->sender == c->sender && near__stream_is_ours(m->stream);
}

/* Our own message, and its writer knew the outcome: nothing to do (race 10).  Its number is noted like others': what is ours is the
 * process's to know, and it may forget that in the middle of a stream. */
static bool
is_settled_echo(struct near__coherence *c, const struct near__message *m)
{
    int64_t lag = -1, now;
    bool    doubted;

    if (!is_ours(c, m))
        return false;
    now = near__now(c->clock);
    near__lock(&c->lock);
    doubted = near__doubts_has(&c->doubts, m->stream);
    near__streams_heard(c->streams, m->sender, m->stream, m->sequence);
    if (m->kind != NEAR__MESSAGE_BEAT)
        lag = near__lag_note(&c->lag, m->stream, m->sequence, now, true);
    near__unlock(&c->lock);
    if (lag >= 0)
        near__histogram_record(&c->echo, lag);
    return !doubted;
}

static enum near__stream_news
news_of(struct near__coherence *c, const struct near__message *m)
{
    enum near__stream_news news;

    if (is_ours(c, m))
        return NEAR__STREAM_NEXT; /* a doubted echo: applied, but our own numbers prove nothing to us */
    near__lock(&c->lock);
    news = near__streams_heard(c->streams, m->sender, m->stream, m->sequence);
    near__unlock(&c->lock);
    return news;
}

/* What a sender says it has published lately: was all of it heard?  A beat that was lost is noticed by its number.  Of the first beat
 * that we hear of a sender since we subscribed we cannot tell whether what is missing was lost, or came before: so L1 is flushed, but
 * without a word, and once for all senders who are heard between two pongs (all of a fleet are, after each new subscription).
 * Servers of a cluster pass messages on in no common order, but each tells its own subscribers of what was published there first:
 * so a beat is judged when all links have brought it. */
static enum near__stream_news
check_beat(struct near__coherence *c, const struct near__message *m)
{
    enum near__stream_news news;
    near_bytes             key;
    size_t                 at      = 0;
    bool                   missing = false;

    near__message_next(m, &at, &key);
    near__lock(&c->lock);
    if (c->copies > 1 && near__streams_copies(c->streams, m->sender, near__le64_get(key.data)) != c->copies) {
        near__unlock(&c->lock);
        return NEAR__STREAM_NEXT;
    }
    news = near__streams_heard(c->streams, m->sender, 0, near__le64_get(key.data));
    while (near__message_next(m, &at, &key)) {
        const uint8_t *entry = key.data;

        missing |=
            near__streams_announced(c->streams, m->sender, near__le64_get(entry), near__le64_get(entry + 8),
                                    near__le64_get(entry + 16), news != NEAR__STREAM_GAP) == NEAR__STREAM_GAP;
    }
    c->unsure += missing && news == NEAR__STREAM_FIRST;
    near__unlock(&c->lock);
    return news == NEAR__STREAM_GAP || (missing && news != NEAR__STREAM_FIRST) ? NEAR__STREAM_GAP
                                                                               : NEAR__STREAM_NEXT;
}

static void
take_message(struct near__coherence *c, near_bytes bytes)
{
    struct near__message   m;
    enum near__stream_news news;

    if (!near__message_decode(&m, bytes) || m.stream == 0 || m.sequence == 0) {
        count(&c->counters.bad_messages, 1);
        distrust_aloud(c, "a message that makes no sense, or is of a newer version");
        return;
    }
    if (is_settled_echo(c, &m)) {
        count(&c->counters.echoes, m.kind != NEAR__MESSAGE_BEAT);
        return;
    }
    news = news_of(c, &m);
    if (m.kind == NEAR__MESSAGE_BEAT && !is_ours(c, &m) && news != NEAR__STREAM_GAP)
        news = check_beat(c, &m);
    /* uncovered: another one, for these are all */
    switch (news) {
    case NEAR__STREAM_GAP: /* race 18: tolerance 0 */
        count(&c->counters.gaps, 1);
        distrust_aloud(c, "messages of an instance are missing");
        break;
    case NEAR__STREAM_LATE: /* race 17: applied again, which costs one extra miss */
        count(&c->counters.late, 1);
        if (c->copies > 1)
            return; /* the first copy was applied, or a flush has paid for it, after the write it tells of */
        break;
    case NEAR__STREAM_FIRST:
    case NEAR__STREAM_NEXT:
        break;
    }
    if (m.kind != NEAR__MESSAGE_BEAT)
        dispatch(c, &m);
}

static void
on_message(void *ctx, near_bytes bytes)
{
    struct near__coherence *c = ctx;

    /* relaxed: the numbers are noted under the lock after it.  Release: pairs with the acquire in near__coherence_applied() */
    atomic_fetch_add_explicit(&c->applying, 1, memory_order_relaxed);
    take_message(c, bytes);
    atomic_fetch_sub_explicit(&c->applying, 1, memory_order_release);
}

/* The server's own word.  Nothing tells our own writes from others' (race 10): all are applied. */
static void
on_changed(void *ctx, near_bytes key)
{
    struct near__coherence *c = ctx;

    if (key.data == NULL || c->sink.changed == NULL) {
        distrust(c);
        return;
    }
    count(&c->counters.changed, 1);
    c->sink.changed(c->sink.ctx, key);
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
    if (c->ops->beats) /* it leaves the process, and we may be a copy: what was ours goes on elsewhere */
        near__stream_disclaim_all();

    distrust(c);
    count(&c->counters.connects, 1);

    now = near__now(c->clock);
    near__lock(&c->lock);
    lost_at          = c->lost_at;
    c->lost_at       = 0;
    c->complained    = false;
    c->unsure        = 0;
    c->listening     = true;
    c->subscribed_at = now;
    /* a server that is started again and again is no flood: what its subscriptions cost is not counted together */
    c->flushes_in_row = 0;
    near__unlock(&c->lock);
    if (lost_at == 0)
        near__log(c->log, NEAR_LOG_INFO, "bus: subscribed");
    else
        near__log(c->log, NEAR_LOG_WARN, "bus: back after %lld ms, L1 flushed",
                  (long long)((now - lost_at) / NEAR_MS));
}

/* The storm has ended: a flush, and only what is asked after it opens the gate.  Unless it goes on meanwhile. */
static void
end_storm(struct near__coherence *c, int64_t until)
{
    int64_t now;

    distrust(c);
    now = near__now(c->clock);
    near__lock(&c->lock);
    if (c->storm_until == until) {
        c->storm_until   = 0;
        c->subscribed_at = now;
    }
    near__unlock(&c->lock);
}

/* The gate moves: for how long it was closed; -1: it was not. */
static int64_t
closure_locked(struct near__coherence *c, int64_t now) NEAR__NEEDS(c->lock)
{
    int64_t closed_at =
        c->closed_at != 0 ? c->closed_at : atomic_load_explicit(&c->gate, memory_order_relaxed);

    c->closed_at = 0;
    return c->opened && closed_at < now ? now - closed_at : -1;
}

/* See check_beat().  Before the gate moves: what it lets by was read after this. */
static void
make_sure(struct near__coherence *c)
{
    enum weather weather = FAIR;
    uint64_t     unsure;

    near__lock(&c->lock);
    unsure = c->unsure;
    if (unsure != 0)
        weather = weather_locked(c, near__now(c->clock));
    near__unlock(&c->lock);
    if (unsure == 0)
        return;
    count(&c->counters.storms, weather == STORM_BEGINS);
    distrust(c);
    near__lock(&c->lock);
    if (c->unsure == unsure)
        c->unsure = 0;
    near__unlock(&c->lock);
}

static void
on_heard(void *ctx, int64_t since)
{
    struct near__coherence *c       = ctx;
    int64_t                 until   = near__time_after(since, c->serve_window);
    int64_t                 now     = near__now(c->clock), storm;
    int64_t                 closure = -1;

    make_sure(c);
    near__lock(&c->lock);
    storm = c->storm_until;
    if (storm == 0 && c->listening && since >= c->subscribed_at) {
        if (until > now)
            closure = closure_locked(c, now);
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
    if (closure >= 0) {
        near__histogram_record(&c->closures, closure);
        NEAR__PROBE2(gate__opened, c, closure);
    }
    if (storm != 0 && now >= storm)
        end_storm(c, storm);
}

/* What was heard proves nothing: the one case in which the gate is closed by hand, and what is held goes at once. */
static void
on_suspected(void *ctx)
{
    struct near__coherence *c   = ctx;
    int64_t                 now = near__now(c->clock);

    near__lock(&c->lock);
    c->listening = false;
    close_gate_locked(c, now);
    near__unlock(&c->lock);
    distrust(c);
}

/* One line when the bus is lost; another only when the reason has changed, and not more than one a minute. */
static bool
lost_is_news_locked(struct near__coherence *c, const char *why, int64_t now) NEAR__NEEDS(c->lock)
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

const _Atomic int64_t *
near__coherence_gate_at(const struct near__coherence *c)
{
    return &c->gate;
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
    int64_t     since  = near__now(c->clock);
    near_status st = c->ops->publish(c->bus, message, size, NEAR__MESSAGE_STAMP_AT, &stream, deadline, error);

    /* "filled" makes nobody's copy stale, so its echo is never needed: the few places are for those that do */
    if (st != NEAR_OK && stream != 0 && message[NEAR__MESSAGE_KIND_AT] != NEAR__MESSAGE_FILLED)
        near__coherence_doubt(c, stream);
    if (st == NEAR_OK)
        near__coherence_announced_since(c, message, since);
    count(st == NEAR_OK ? &c->counters.sent : &c->counters.send_failures, 1);
    return st;
}

bool
near__coherence_announces(const struct near__coherence *c)
{
    return c->ops->announce != NULL;
}

near_status
near__coherence_announce(struct near__coherence *c, const char *channel, near_bytes text, int64_t deadline,
                         near_error *error)
{
    return c->ops->announce != NULL ? c->ops->announce(c->bus, channel, text, deadline, error)
                                    : near__fail(error, NEAR_ERR_UNSUPPORTED, "this bus has no server");
}

/* ------------------------------------------------------------------------------------------------- beats */

/* Copies what is to be told.  False: there is nothing to tell. */
static bool
take_sent(struct near__coherence *c, struct near__sent *told)
{
    bool due;

    near__lock(&c->lock);
    due = near__sent_due(&c->sent);
    if (due)
        memcpy(told, &c->sent, sizeof(*told));
    near__unlock(&c->lock);
    return due;
}

static near_status
encode_beat(struct near__coherence *c, const struct near__sent *told, uint8_t **message, size_t *size)
{
    uint8_t(*bytes)[NEAR__MESSAGE_BEAT_ENTRY] = calloc(told->count + 1, sizeof(*bytes));
    near_bytes *keys                          = calloc(told->count + 1, sizeof(*keys));
    near_status st                            = NEAR_ERR_NOMEM;

    if (bytes != NULL && keys != NULL) {
        near__le64_put(bytes[0], told->beat + 1);
        keys[0] = (near_bytes){ bytes[0], 8 };
        for (size_t i = 0; i < told->count; i++) {
            near__le64_put(bytes[i + 1], told->streams[i].stream);
            near__le64_put(bytes[i + 1] + 8, told->streams[i].first);
            near__le64_put(bytes[i + 1] + 16, told->streams[i].last);
            keys[i + 1] = (near_bytes){ bytes[i + 1], sizeof(bytes[i + 1]) };
        }
        st = near__message_encode(NEAR__MESSAGE_BEAT, c->sender, near_key(NEAR__MESSAGE_BEAT_CACHE), keys,
                                  told->count + 1, message, size);
    }
    free(keys);
    free(bytes);
    return st;
}

/* Called by one thread at a time, which has other things to do within the serve window.  A beat that may not have been published keeps its number, and the next one says its words
 * again: heard twice it does no harm. */
static void
on_beat(void *ctx)
{
    struct near__coherence *c    = ctx;
    struct near__sent      *told = malloc(sizeof(*told));
    uint8_t                *message;
    size_t                  size;
    uint64_t                stream;

    if (told != NULL && take_sent(c, told) && encode_beat(c, told, &message, &size) == NEAR_OK) {
        if (c->ops->publish(c->bus, message, size, NEAR__MESSAGE_STAMP_AT, &stream,
                            near__time_after(near__now(c->clock), c->serve_window / 4), NULL) == NEAR_OK) {
            near__lock(&c->lock);
            near__sent_told(&c->sent, told);
            near__unlock(&c->lock);
            count(&c->counters.beats, 1);
        }
        free(message);
    }
    free(told);
}

/* In the place of the same sender, or the oldest: they lie newest first. */
static void
note_position(const struct near__coherence *c, const uint8_t *message)
{
    size_t i = 0;

    while (i < POSITIONS - 1 && positions[i].sender != c->sender)
        i++;
    memmove(positions + 1, positions, i * sizeof(positions[0]));
    positions[0] = (struct near__position){ c->sender, near__le64_get(message + NEAR__MESSAGE_STAMP_AT),
                                            near__le64_get(message + NEAR__MESSAGE_STAMP_AT + 8) };
}

void
near__coherence_position(const struct near__coherence *c, struct near__position *position)
{
    *position = (struct near__position){ c->sender, 0, UINT64_MAX };
    for (size_t i = 0; i < POSITIONS; i++)
        if (positions[i].sender == c->sender)
            *position = positions[i];
}

/* What is noted as heard has been applied when nobody is applying anything; at such a moment it takes no more than a look. */
bool
near__coherence_applied(struct near__coherence *c, const struct near__position *position)
{
    bool heard;

    near__lock(&c->lock);
    heard = c->listening && c->unsure == 0 &&
            c->copies <= 1 && /* with several links what was acknowledged before may come after */
            near__streams_has(c->streams, position->sender, position->stream, position->sequence);
    near__unlock(&c->lock);
    return heard && atomic_load_explicit(&c->applying, memory_order_acquire) == 0;
}

void
near__coherence_announced(struct near__coherence *c, const uint8_t *message)
{
    note_position(c, message);
    if (!c->ops->beats)
        return;
    near__lock(&c->lock);
    near__sent_note(&c->sent, near__le64_get(message + NEAR__MESSAGE_STAMP_AT),
                    near__le64_get(message + NEAR__MESSAGE_STAMP_AT + 8));
    near__unlock(&c->lock);
}

void
near__coherence_announced_since(struct near__coherence *c, const uint8_t *message, int64_t since)
{
    int64_t lag;

    near__coherence_announced(c, message);
    near__lock(&c->lock);
    lag = near__lag_note(&c->lag, near__le64_get(message + NEAR__MESSAGE_STAMP_AT),
                         near__le64_get(message + NEAR__MESSAGE_STAMP_AT + 8), since, false);
    near__unlock(&c->lock);
    if (lag >= 0)
        near__histogram_record(&c->echo, lag);
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
        .serve_window    = config->serve_window,
        .prefix          = config->prefix,
        .connect_timeout = config->connect_timeout,
        .listener = { c, on_subscribed, on_message, on_changed, on_heard, on_suspected, on_lost, on_beat },
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
    c = near__zeroed(LINES, sizeof(*c));
    if (c == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "bus: out of memory");
    c->ops          = ops;
    c->clock        = config->clock;
    c->log          = config->log;
    c->sink         = config->sink;
    c->serve_window = config->serve_window;
    c->copies       = config->uri->layout == NEAR__LAYOUT_SINGLE ? config->uri->address_count : 1;
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
    near__histogram_fini(&c->echo);
    near__histogram_fini(&c->closures);
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
    struct near__bus_state state = { .subscribed = true };

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
    GET(beats);
    GET(changed);
    GET(storms);
#undef GET
    near__lock(&c->lock);
    stats->connected = c->listening;
    near__unlock(&c->lock);
    if (c->ops->state != NULL)
        c->ops->state(c->bus, &state);
    stats->connected &=
        state.subscribed; /* a tracker's subscription says nothing of the link that brings messages */
    stats->tracking   = state.tracking;
    stats->recognised = state.recognised;
    stats->suspicions = state.suspicions;
}

void
near__coherence_histograms(const struct near__coherence *c, const struct near__histogram **echo,
                           const struct near__histogram **closures)
{
    *echo     = &c->echo;
    *closures = &c->closures;
}
