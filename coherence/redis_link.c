/*
 * A link: one subscriber, from dial to death, again and again.
 *
 * The server answers a connection in the order of events, so the pong to a PING sent at t comes after every message whose PUBLISH was
 * acknowledged before t.  The thread pings once per heartbeat, and at once when somebody waits for a fence.  When a PING stays
 * unanswered for `silence` the connection is given up (rule R7), and dialled anew after a jittered, growing pause.  PINGs are
 * numbered and their pongs must come in order: whatever swallows some bytes of a connection is found out at the next pong.
 *
 * Before it subscribes a connection says whom it reaches: a server that is no primary is refused, because nobody writes there.
 *
 * Server-assisted invalidation (rule R8): the same connection has its own invalidation messages redirected to itself, for every key
 * under the prefix, whoever writes it.  Such a message may be overtaken by a pong if its write was not yet acknowledged when
 * the PING was sent; no promise is about such writes.  NOLOOP is never used (races 10, 11), and there is no other connection
 * whose end could go unnoticed (race 12).  Where the server refuses, messages alone remain: said once, and counted.
 */
#include "coherence/redis_bus.h"

#include "base/backoff.h"
#include "base/event.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SEND_TIME    (50 * NEAR_MS) /* a PING is 14 bytes: a socket that cannot take it in this time is dead */
#define BACK_OFF_MAX (1000 * NEAR_MS)
#define GLANCE       (5 * NEAR_MS) /* the shortest wait for a reply that is overdue */
#define BEHIND       4 /* times `silence`: a backlog older than this is given up, though bytes keep coming */
#define INVALIDATE   "__redis__:invalidate" /* the channel of the server's own messages */

/* ------------------------------------------------------------------------------------------- small talk */

static bool
is_over(struct near__bus_link *l)
{
    bool over;

    near__lock(&l->bus->lock);
    over = l->bus->stopping || l->retired;
    near__unlock(&l->bus->lock);
    return over;
}

/* Takes the wishes that came before this call: the time of a PING for them must be read after it.  Not NEAR_OK: the session ends. */
static near_status
take_wishes(struct near__bus_link *l, bool *owed, near_error *error)
{
    struct near__redis_bus *b = l->bus;
    bool                    suspect, stopping;
    char                    why[sizeof(l->suspicion)];

    near__lock(&b->lock);
    *owed |= l->wanted;
    l->wanted = false;
    stopping  = b->stopping || l->retired;
    suspect   = l->suspect;
    memcpy(why, l->suspicion, sizeof(why));
    near__unlock(&b->lock);
    if (stopping)
        return near__bus_closed(error);
    if (suspect)
        b->env.listener.suspected(b->env.listener.ctx);
    if (suspect)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "redis %s: %s, connection dropped", l->name, why);
    return NEAR_OK;
}

static bool
pings_outstanding(const struct near__bus_link *l)
{
    return l->pings.sent != l->pings.answered;
}

static int64_t
oldest_ping(const struct near__bus_link *l)
{
    return l->pings.sent_at[l->pings.answered % NEAR__PINGS];
}

static bool
pings_full(const struct near__bus_link *l)
{
    return l->pings.sent - l->pings.answered == NEAR__PINGS;
}

static near_status
send_ping(struct near__bus_link *l, int64_t now, near_error *error)
{
    char        number[24];
    near_bytes  argv[2] = { near_key("PING"), { number, 0 } };
    near_status st;

    argv[1].size = (size_t)snprintf(number, sizeof(number), "%llu", (unsigned long long)l->pings.sent);
    st           = near__redis_append(l->conn, NEAR_COUNT_OF(argv), argv);
    if (st != NEAR_OK)
        return near__fail(error, st, "redis %s: cannot make a PING", l->name);
    l->pings.sent_at[l->pings.sent++ % NEAR__PINGS] = now;
    return near__redis_flush(l->conn, near__time_after(now, SEND_TIME), error);
}

static near_status
take_pong(struct near__bus_link *l, const redisReply *payload, near_error *error)
{
    struct near__redis_bus *b     = l->bus;
    int64_t                 since = oldest_ping(l);

    if (!pings_outstanding(l) || payload->type != REDIS_REPLY_STRING ||
        strtoull(payload->str, NULL, 10) != l->pings.answered)
        return near__fail(error, NEAR_ERR_PROTOCOL, "redis %s: a pong to another PING, connection dropped",
                          l->name);
    l->pings.answered++;
    near__lock(&b->lock);
    l->heard = since;
    pthread_cond_broadcast(&b->news);
    near__unlock(&b->lock);
    near__bus_tell(b);
    return NEAR_OK;
}

/* An array whose first element is this word. */
static bool
reply_is(const redisReply *reply, size_t elements, const char *word)
{
    return reply->type == REDIS_REPLY_ARRAY && reply->elements == elements &&
           reply->element[0]->type == REDIS_REPLY_STRING && strcmp(reply->element[0]->str, word) == 0;
}

near_status
near__link_refused(const char *name, const char *operation, const redisReply *reply, near_error *error)
{
    char word[64];

    if (reply->type != REDIS_REPLY_ERROR)
        return near__fail(error, NEAR_ERR_PROTOCOL, "redis %s: %s: a reply of unexpected shape", name,
                          operation);
    near__redis_error_word(reply, word, sizeof(word));
    return near__fail(error, near__redis_error_class(reply), "redis %s: %s refused: %s", name, operation,
                      word);
}

/* ------------------------------------------------------------------------------------------- listening */

/* What the server itself says of keys: an array of them, or nil for "all" (FLUSHALL, FLUSHDB of any database). */
static near_status
take_invalidation(struct near__bus_link *l, const redisReply *keys, near_error *error)
{
    const struct near__bus_listener *listener = &l->bus->env.listener;

    if (keys->type == REDIS_REPLY_NIL) {
        listener->changed(listener->ctx, (near_bytes){ NULL, 0 });
        return NEAR_OK;
    }
    if (keys->type != REDIS_REPLY_ARRAY)
        return near__link_refused(l->name, "an invalidation", keys, error);
    for (size_t i = 0; i < keys->elements; i++) {
        if (keys->element[i]->type != REDIS_REPLY_STRING)
            return near__link_refused(l->name, "an invalidation", keys->element[i], error);
        listener->changed(listener->ctx,
                          (near_bytes){ keys->element[i]->str, (size_t)keys->element[i]->len });
    }
    return NEAR_OK;
}

static bool
is_invalidation(const redisReply *reply)
{
    return reply_is(reply, 3, "message") && reply->element[1]->type == REDIS_REPLY_STRING &&
           strcmp(reply->element[1]->str, INVALIDATE) == 0;
}

static near_status
take_reply(struct near__bus_link *l, const redisReply *reply, near_error *error)
{
    const struct near__bus_listener *listener = &l->bus->env.listener;

    if (l->bus->env.prefix != NULL && is_invalidation(reply))
        return take_invalidation(l, reply->element[2], error);
    if (reply_is(reply, 3, "message") && reply->element[2]->type == REDIS_REPLY_STRING) {
        listener->message(listener->ctx,
                          (near_bytes){ reply->element[2]->str, (size_t)reply->element[2]->len });
        return NEAR_OK;
    }
    if (reply_is(reply, 2, "pong"))
        return take_pong(l, reply->element[1], error);
    return near__link_refused(l->name, "listening", reply, error);
}

/* Until when to wait for a reply: the next PING to send, or the moment the oldest one has been unanswered for too long. */
static int64_t
patience(const struct near__bus_link *l, int64_t next_ping)
{
    int64_t limit, glance = near__time_after(near__now(l->bus->env.clock), GLANCE);

    if (!pings_outstanding(l))
        return next_ping;
    limit = near__time_after(oldest_ping(l), l->bus->env.silence);
    limit = limit > glance ? limit
                           : glance; /* a moment in the past would not even look whether bytes are there */
    return limit < next_ping || pings_full(l) ? limit : next_ping;
}

/* Has the oldest PING been unanswered for `times` the silence? */
static near_status
check_silence(struct near__bus_link *l, int times, near_error *error)
{
    int64_t age = near__now(l->bus->env.clock) - oldest_ping(l);

    if (!pings_outstanding(l) || age / times < l->bus->env.silence)
        return NEAR_OK;
    return near__fail(error, NEAR_ERR_TIMEOUT, "redis %s: PING not answered in %lldms, connection dropped",
                      l->name, (long long)(age / NEAR_MS));
}

/* One reply, taken or not there yet: NEAR_OK.  Anything else ends the connection.  While there is something to read it is read: a
 * thread that was itself held up for a moment finds its pongs behind a backlog. */
static near_status
read_and_take(struct near__bus_link *l, int64_t deadline, near_error *error)
{
    redisReply *reply = NULL;
    near_status st    = near__redis_read_one(l->conn, &reply, l->wake, deadline, error);

    switch (st) {
    case NEAR_OK:
        st = take_reply(l, reply, error);
        freeReplyObject(reply);
        return st != NEAR_OK ? st : check_silence(l, BEHIND, error);
    case NEAR_ERR_BUSY:
        near__event_drain(l->wake);
        return NEAR_OK;
    case NEAR_ERR_TIMEOUT:
        return check_silence(l, 1, error);
    default:
        return st;
    }
}

static near_status
listen_on(struct near__bus_link *l, near_error *error)
{
    int64_t     next_ping = near__now(l->bus->env.clock), now;
    bool        owed      = false;
    near_status st;

    memset(&l->pings, 0, sizeof(l->pings));
    for (;;) {
        st = take_wishes(l, &owed, error);
        if (st != NEAR_OK)
            return st;
        now = near__now(l->bus->env.clock);
        if ((owed || now >= next_ping) && !pings_full(l)) {
            st        = send_ping(l, now, error);
            owed      = false;
            next_ping = near__time_after(now, l->bus->env.heartbeat);
            if (st != NEAR_OK)
                return st;
        }
        st = read_and_take(l, patience(l, next_ping), error);
        if (st != NEAR_OK)
            return st;
    }
}

/* ------------------------------------------------------------------------------------------- subscribing */

/* One reply during the handshake; stop() ends the wait.  Messages that come already are dropped: a flush follows. */
static near_status
read_answer(struct near__bus_link *l, redisReply **reply, int64_t deadline, near_error *error)
{
    for (;;) {
        near_status st = near__redis_read_one(l->conn, reply, l->wake, deadline, error);

        if (st == NEAR_ERR_TIMEOUT)
            return near__fail(error, st, "redis %s: SUBSCRIBE not answered in time, connection dropped",
                              l->name);
        if (st == NEAR_OK && reply_is(*reply, 3, "message")) {
            freeReplyObject(*reply);
            continue;
        }
        if (st != NEAR_ERR_BUSY)
            return st;
        near__event_drain(l->wake);
        if (is_over(l))
            return near__bus_closed(error);
    }
}

/* *refused (may be NULL: then it is a failure): the server said no, in `word`. */
static near_status
subscribe_to(struct near__bus_link *l, const char *channel, bool *refused, int64_t deadline,
             near_error *error)
{
    near_bytes  argv[2] = { near_key("SUBSCRIBE"), near_key(channel) };
    redisReply *reply   = NULL;
    near_status st      = near__redis_append(l->conn, NEAR_COUNT_OF(argv), argv);

    if (st != NEAR_OK)
        return near__fail(error, st, "redis %s: cannot make a SUBSCRIBE", l->name);
    st = near__redis_flush(l->conn, deadline, error);
    if (st == NEAR_OK)
        st = read_answer(l, &reply, deadline, error);
    if (st != NEAR_OK)
        return st;
    if (!reply_is(reply, 3, "subscribe"))
        st = near__link_refused(l->name, "SUBSCRIBE", reply, error);
    if (refused != NULL && reply->type == REDIS_REPLY_ERROR) {
        *refused = true;
        st       = NEAR_OK;
    }
    freeReplyObject(reply);
    return st;
}

struct simple_answer {
    long long number; /* CLIENT ID */
    bool      refused;
    char      word[64];
};

static void
take_simple(void *ctx, size_t index, redisReply *reply)
{
    struct simple_answer *answer = ctx;

    (void)index;
    if (reply->type == REDIS_REPLY_INTEGER)
        answer->number = reply->integer;
    if (reply->type == REDIS_REPLY_ERROR) {
        answer->refused = true;
        near__redis_error_word(reply, answer->word, sizeof(answer->word));
    }
}

static near_status
ask(struct near__bus_link *l, const near_bytes *argv, size_t argc, struct simple_answer *answer,
    int64_t deadline, near_error *error)
{
    near_status st = near__redis_append(l->conn, argc, argv);

    if (st != NEAR_OK)
        return near__fail(error, st, "redis %s: cannot make a command", l->name);
    return near__redis_exchange(l->conn, take_simple, answer, NULL, NULL, deadline, error);
}

static void
say_untracked(struct near__bus_link *l, const char *word)
{
    struct near__redis_bus *b = l->bus;
    bool                    say;

    near__lock(&b->lock);
    say          = !b->untracked;
    b->untracked = true;
    near__unlock(&b->lock);
    if (say)
        near__log(b->env.log, NEAR_LOG_WARN,
                  "bus: redis %s refuses server-assisted invalidation (%s): only messages of other instances "
                  "are heard, no foreign writers",
                  l->name, word);
}

/* CLIENT TRACKING of our own connection.  What is refused is no failure. */
static near_status
track(struct near__bus_link *l, bool *tracking, int64_t deadline, near_error *error)
{
    char                 number[24];
    struct simple_answer id = { 0 }, on = { 0 }, off = { 0 };
    near_bytes           who[2]  = { near_key("CLIENT"), near_key("ID") };
    near_bytes           stop[3] = { near_key("CLIENT"), near_key("TRACKING"), near_key("OFF") };
    bool                 refused = false;
    near_status          st      = ask(l, who, NEAR_COUNT_OF(who), &id, deadline, error);

    *tracking = false;
    if (st == NEAR_OK && !id.refused) {
        near_bytes start[8] = { near_key("CLIENT"), near_key("TRACKING"),
                                near_key("ON"),     near_key("REDIRECT"),
                                { number, 0 },      near_key("BCAST"),
                                near_key("PREFIX"), near_key(l->bus->env.prefix) };

        start[4].size = (size_t)snprintf(number, sizeof(number), "%lld", id.number);
        st            = ask(l, start, NEAR_COUNT_OF(start), &on, deadline, error);
    }
    if (st != NEAR_OK)
        return st;
    if (id.refused || on.refused) {
        say_untracked(l, id.refused ? id.word : on.word);
        return NEAR_OK;
    }
    st = subscribe_to(l, INVALIDATE, &refused, deadline, error);
    if (st == NEAR_OK && refused) {
        say_untracked(l, "SUBSCRIBE " INVALIDATE ": NOPERM");
        return ask(l, stop, NEAR_COUNT_OF(stop), &off, deadline, error);
    }
    *tracking = st == NEAR_OK;
    return st;
}

/* Whom does this connection reach?  Not NEAR_OK: not one to listen to. */
static near_status
recognise(struct near__bus_link *l, struct near__identity *identity, int64_t deadline, near_error *error)
{
    struct near__redis_bus *b  = l->bus;
    near_status             st = near__identity_ask(l->conn, true, identity, deadline, error);
    bool                    say;

    if (st != NEAR_OK)
        return st;
    if (identity->told && !identity->primary)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "redis %s: is no primary", l->name);
    near__lock(&b->lock);
    say = !identity->told && !b->untold;
    b->untold |= say;
    near__unlock(&b->lock);
    if (say)
        near__log(b->env.log, NEAR_LOG_WARN,
                  "bus: redis %s does not tell its role and run id (%s): a failover behind our back goes "
                  "unnoticed; allow ROLE and INFO",
                  l->name, identity->refused[0] != '\0' ? identity->refused : "none given");
    return NEAR_OK;
}

/* A tracker hears nothing without it, and without one of them the others are worth nothing. */
static near_status
give_up_tracking(struct near__bus_link *l, near_error *error)
{
    struct near__redis_bus *b = l->bus;

    near__lock(&b->lock);
    b->refused = b->probe_wanted = true;
    pthread_cond_broadcast(&b->beat);
    near__unlock(&b->lock);
    return near__fail(error, NEAR_ERR_DENIED, "redis %s: does not tell of keys", l->name);
}

static near_status
subscribe(struct near__bus_link *l, struct near__identity *identity, bool *tracking, int64_t deadline,
          near_error *error)
{
    near_status st = recognise(l, identity, deadline, error);

    *tracking = false;
    if (st == NEAR_OK && l->bus->env.prefix != NULL &&
        (l->tracker || l->bus->env.uri->layout != NEAR__LAYOUT_CLUSTER))
        st = track(l, tracking, deadline, error);
    if (st == NEAR_OK && l->tracker && !*tracking)
        return give_up_tracking(l, error);
    if (st != NEAR_OK || l->tracker)
        return st;
    return subscribe_to(l, l->bus->env.channel, NULL, deadline, error);
}

/* ------------------------------------------------------------------------------------- again and again */

static void
set_up(struct near__bus_link *l, const struct near__identity *identity, bool tracking)
{
    struct near__redis_bus *b = l->bus;

    near__lock(&b->lock);
    l->subscribed   = true;
    l->suspect      = false;
    l->tracking     = tracking;
    l->identity     = *identity;
    l->heard        = INT64_MIN;
    l->vouched      = identity->told ? INT64_MIN : NEAR_NEVER;
    b->probe_wanted = true;
    l->life++;
    pthread_cond_broadcast(&b->beat);
    near__unlock(&b->lock);
}

/* A tracker's own wait can be ended without the others'. */
static near_status
dial(struct near__bus_link *l, int64_t deadline, near_error *error)
{
    struct near__redis_server server = l->server;

    if (!l->tracker)
        return near__link_dial(&l->conn, l, deadline, error);
    server.cancel_fd = &l->cancel;
    return near__redis_dial(&l->conn, &server, deadline, error);
}

/* One connection from dial to death; why it ended is in `error`. */
static void
session(struct near__bus_link *l, near_error *error)
{
    struct near__redis_bus *b        = l->bus;
    int64_t                 deadline = near__time_after(near__now(b->env.clock), b->env.connect_timeout);
    struct near__identity   identity;
    bool                    tracking;

    if (dial(l, deadline, error) != NEAR_OK)
        return;
    if (subscribe(l, &identity, &tracking, deadline, error) == NEAR_OK) {
        b->env.listener.subscribed(b->env.listener.ctx);
        set_up(l, &identity, tracking);
        listen_on(l, error);
    }
    near__redis_conn_free(&l->conn);
}

static void
report_loss(struct near__bus_link *l, const near_error *error)
{
    struct near__redis_bus *b = l->bus;
    bool                    retired;

    near__lock(&b->lock);
    retired = l->retired;
    if (l->heard != INT64_MIN && !l->suspect)
        l->back_off = NEAR__BACK_OFF_MIN; /* this server worked */
    l->heard = l->vouched = INT64_MIN;
    l->subscribed = l->suspect = l->tracking = false;
    b->losses++;
    memcpy(b->reason, error->text, sizeof(b->reason));
    if (b->mapped != NEAR_NEVER) {
        b->map_wanted = b->probe_wanted = true;
        pthread_cond_broadcast(&b->beat);
    }
    pthread_cond_broadcast(&b->news);
    near__unlock(&b->lock);
    if (!retired)
        b->env.listener.lost(b->env.listener.ctx, error->text);
}

/* The back-off, which doubles. */
static int64_t
next_pause(struct near__bus_link *l)
{
    int64_t whole = l->back_off;

    l->back_off = 2 * whole < BACK_OFF_MAX ? 2 * whole : BACK_OFF_MAX;
    return near__jittered(whole);
}

static void
pause_before_retry(struct near__bus_link *l)
{
    int64_t       deadline = near__time_after(near__now(l->bus->env.clock), next_pause(l));
    struct pollfd pfd      = { .fd = l->wake, .events = POLLIN };

    while (!is_over(l)) {
        int64_t now = near__now(l->bus->env.clock);
        int     got;

        if (now >= deadline)
            return;
        got = poll(&pfd, 1, near__poll_timeout(now, deadline));
        if (got > 0)
            near__event_drain(l->wake);
        if (got < 0 && errno != EINTR) /* a system without memory for it: do not ask it all the time */
            nanosleep(&(struct timespec){ .tv_nsec = NEAR_MS }, NULL);
    }
}

void *
near__link_run(void *ctx)
{
    struct near__bus_link *l = ctx;
    near_error             error;

    while (!is_over(l)) {
        memset(&error, 0, sizeof(error));
        session(l, &error);
        if (is_over(l))
            break;
        report_loss(l, &error);
        pause_before_retry(l);
    }
    return NULL;
}
