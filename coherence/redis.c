/*
 * The Redis buses: one channel of Redis pub/sub, at one server, however it is found and reached (near__redis_dial_home()).
 *
 * Listening: one thread ("near-bus") owns one connection, which does nothing but SUBSCRIBE and PING.  The server answers a connection in
 * the order of events, so the pong to a PING sent at t comes after every message whose PUBLISH was acknowledged before t: that is
 * heard(t).  The thread pings once per heartbeat, and at once when somebody waits for a fence.  When a PING stays unanswered
 * for `silence` the connection is given up (rule R7), and dialled anew after a jittered, growing pause.  All listener
 * calls come from this thread.  PINGs are numbered and their pongs must come in order: whatever swallows some bytes of a connection
 * is found out at the next pong.
 *
 * Publishing: a small pool of other connections, each a stream of its own.  A number that was stamped and not published would look
 * like a gap to everybody else, so whatever goes wrong after the stamp ends the connection, and the stream with it.
 *
 * The lock (rank BUS) covers what the thread and the callers of fence() tell each other: stopping, subscribed, wanted, heard,
 * losses, reason.  It is not held while calling the listener or doing I/O.  Two eventfds carry no meaning but "look again": `wake`
 * ends the thread's wait and is drained; `cancel` is raised once, by stop(), and ends every wait of every connection, dials included.
 * The subscriber's connection, the pings and the back-off belong to the thread alone.
 */
#include "coherence/bus.h"

#include "base/hash.h"
#include "base/lock.h"
#include "base/thread.h"
#include "coherence/message.h"
#include "l2/pool.h"
#include "l2/redis_conn.h"
#include "l2/redis_home.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PUBLISHERS                                                                                           \
    4 /* connections: a PUBLISH takes tens of microseconds, more would only queue in the server */
#define PINGS        64             /* unanswered at a time; a power of two */
#define SEND_TIME    (50 * NEAR_MS) /* a PING is 14 bytes: a socket that cannot take it in this time is dead */
#define BACK_OFF_MIN (10 * NEAR_MS)
#define BACK_OFF_MAX (1000 * NEAR_MS)
#define GLANCE       (5 * NEAR_MS) /* the shortest wait for a reply that is overdue */
#define BEHIND       4 /* times `silence`: a backlog older than this is given up, though bytes keep coming */
#define REPLY_MAX                                                                                            \
    ((size_t)1 << 20) /* the largest message and its frame; beyond it somebody publishes rubbish */

struct pings {
    uint64_t sent, answered; /* how many on this connection: number n is the n-th, from 0 */
    int64_t  sent_at[PINGS]; /* number n at n % PINGS */
};

struct redis_bus {
    struct near__bus_env      env;
    char                      server_name[300]; /* for texts */
    struct near__redis_server server;
    struct near__pool        *publishers;
    int                       wake, cancel;
    pthread_t                 thread;
    bool                      running; /* the thread is to be joined; touched by open and stop only */
    bool                      forked;

    /* the thread's own */
    struct near__redis_conn *conn;
    struct pings             pings;
    int64_t                  back_off;

    struct near__lock lock;
    pthread_cond_t    news; /* heard, losses or stopping changed */
    bool              stopping, subscribed;
    bool              wanted; /* a PING is wanted at once */
    int64_t           heard;  /* the newest heard(since) */
    uint64_t          losses;
    char              reason[256]; /* of the newest loss */
};

/* ------------------------------------------------------------------------------------------- small talk */

static void
raise_event(int fd)
{
    uint64_t one = 1;
    ssize_t  rc;

    do {
        rc = write(fd, &one, sizeof(one));
    } while (rc < 0 && errno == EINTR); /* EAGAIN: it is as readable as can be */
}

static void
drain_wake(struct redis_bus *b)
{
    uint64_t count;
    ssize_t  rc;

    do {
        rc = read(b->wake, &count, sizeof(count));
    } while (rc < 0 && errno == EINTR);
}

static bool
is_stopping(struct redis_bus *b)
{
    bool stopping;

    near__lock(&b->lock);
    stopping = b->stopping;
    near__unlock(&b->lock);
    return stopping;
}

static near_status
fail_closed(near_error *error)
{
    return near__fail(error, NEAR_ERR_CLOSED, "bus: closed");
}

/* ----------------------------------------------------------------------------- the thread: one connection */

/* Takes the wishes that came before this call: the time of a PING for them must be read after it. */
static bool
take_wishes(struct redis_bus *b, bool *stopping)
{
    bool wanted;

    near__lock(&b->lock);
    wanted    = b->wanted;
    b->wanted = false;
    *stopping = b->stopping;
    near__unlock(&b->lock);
    return wanted;
}

static bool
pings_outstanding(const struct redis_bus *b)
{
    return b->pings.sent != b->pings.answered;
}

static int64_t
oldest_ping(const struct redis_bus *b)
{
    return b->pings.sent_at[b->pings.answered % PINGS];
}

static near_status
send_ping(struct redis_bus *b, int64_t now, near_error *error)
{
    char        number[24];
    near_bytes  argv[2] = { near_key("PING"), { number, 0 } };
    near_status st;

    argv[1].size = (size_t)snprintf(number, sizeof(number), "%llu", (unsigned long long)b->pings.sent);
    st           = near__redis_append(b->conn, NEAR_COUNT_OF(argv), argv);
    if (st != NEAR_OK)
        return near__fail(error, st, "redis %s: cannot make a PING", b->server_name);
    b->pings.sent_at[b->pings.sent++ % PINGS] = now;
    return near__redis_flush(b->conn, near__time_after(now, SEND_TIME), error);
}

static near_status
take_pong(struct redis_bus *b, const redisReply *payload, near_error *error)
{
    int64_t since = oldest_ping(b);

    if (!pings_outstanding(b) || payload->type != REDIS_REPLY_STRING ||
        strtoull(payload->str, NULL, 10) != b->pings.answered)
        return near__fail(error, NEAR_ERR_PROTOCOL, "redis %s: a pong to another PING, connection dropped",
                          b->server_name);
    b->pings.answered++;
    b->back_off = BACK_OFF_MIN; /* this server works */
    b->env.listener.heard(b->env.listener.ctx, since);
    near__lock(&b->lock);
    b->heard = since;
    pthread_cond_broadcast(&b->news);
    near__unlock(&b->lock);
    return NEAR_OK;
}

/* An array whose first element is this word. */
static bool
reply_is(const redisReply *reply, size_t elements, const char *word)
{
    return reply->type == REDIS_REPLY_ARRAY && reply->elements == elements &&
           reply->element[0]->type == REDIS_REPLY_STRING && strcmp(reply->element[0]->str, word) == 0;
}

static near_status
fail_reply(struct redis_bus *b, const char *operation, const redisReply *reply, near_error *error)
{
    char word[64];

    if (reply->type != REDIS_REPLY_ERROR)
        return near__fail(error, NEAR_ERR_PROTOCOL, "redis %s: %s: a reply of unexpected shape",
                          b->server_name, operation);
    near__redis_error_word(reply, word, sizeof(word));
    return near__fail(error, near__redis_error_class(reply), "redis %s: %s refused: %s", b->server_name,
                      operation, word);
}

static near_status
take_reply(struct redis_bus *b, const redisReply *reply, near_error *error)
{
    if (reply_is(reply, 3, "message") && reply->element[2]->type == REDIS_REPLY_STRING) {
        near_bytes message = { reply->element[2]->str, (size_t)reply->element[2]->len };

        b->env.listener.message(b->env.listener.ctx, message);
        return NEAR_OK;
    }
    if (reply_is(reply, 2, "pong"))
        return take_pong(b, reply->element[1], error);
    return fail_reply(b, "listening", reply, error);
}

static bool
pings_full(const struct redis_bus *b)
{
    return b->pings.sent - b->pings.answered == PINGS;
}

/* Until when to wait for a reply: the next PING to send, or the moment the oldest one has been unanswered for too long. */
static int64_t
patience(const struct redis_bus *b, int64_t next_ping)
{
    int64_t limit, glance = near__time_after(near__now(b->env.clock), GLANCE);

    if (!pings_outstanding(b))
        return next_ping;
    limit = near__time_after(oldest_ping(b), b->env.silence);
    limit = limit > glance ? limit
                           : glance; /* a moment in the past would not even look whether bytes are there */
    return limit < next_ping || pings_full(b) ? limit : next_ping;
}

/* Has the oldest PING been unanswered for `times` the silence? */
static near_status
check_silence(struct redis_bus *b, int times, near_error *error)
{
    int64_t age = near__now(b->env.clock) - oldest_ping(b);

    if (!pings_outstanding(b) || age / times < b->env.silence)
        return NEAR_OK;
    return near__fail(error, NEAR_ERR_TIMEOUT, "redis %s: PING not answered in %lldms, connection dropped",
                      b->server_name, (long long)(age / NEAR_MS));
}

/* One reply, taken or not there yet: NEAR_OK.  Anything else ends the connection.  While there is something to read it is read: a
 * thread that was itself held up for a moment finds its pongs behind a backlog. */
static near_status
read_and_take(struct redis_bus *b, int64_t deadline, near_error *error)
{
    redisReply *reply = NULL;
    near_status st    = near__redis_read_one(b->conn, &reply, b->wake, deadline, error);

    switch (st) {
    case NEAR_OK:
        st = take_reply(b, reply, error);
        freeReplyObject(reply);
        return st != NEAR_OK ? st : check_silence(b, BEHIND, error);
    case NEAR_ERR_BUSY:
        drain_wake(b);
        return NEAR_OK;
    case NEAR_ERR_TIMEOUT:
        return check_silence(b, 1, error);
    default:
        return st;
    }
}

static near_status
listen_on(struct redis_bus *b, near_error *error)
{
    int64_t     next_ping = near__now(b->env.clock), now;
    bool        owed      = false, stopping;
    near_status st        = NEAR_OK;

    memset(&b->pings, 0, sizeof(b->pings));
    while (st == NEAR_OK) {
        owed |= take_wishes(b, &stopping);
        if (stopping)
            return fail_closed(error);
        now = near__now(b->env.clock);
        if ((owed || now >= next_ping) && !pings_full(b)) {
            st        = send_ping(b, now, error);
            owed      = false;
            next_ping = near__time_after(now, b->env.heartbeat);
            if (st != NEAR_OK)
                return st;
        }
        st = read_and_take(b, patience(b, next_ping), error);
    }
    return st;
}

/* One reply during the handshake; stop() ends the wait. */
static near_status
read_answer(struct redis_bus *b, redisReply **reply, int64_t deadline, near_error *error)
{
    for (;;) {
        near_status st = near__redis_read_one(b->conn, reply, b->wake, deadline, error);

        if (st == NEAR_ERR_TIMEOUT)
            return near__fail(error, st, "redis %s: SUBSCRIBE not answered in time, connection dropped",
                              b->server_name);
        if (st != NEAR_ERR_BUSY)
            return st;
        drain_wake(b);
        if (is_stopping(b))
            return fail_closed(error);
    }
}

/* CLIENT NO-EVICT, which may be refused (rule R15), and SUBSCRIBE, which may not. */
static near_status
subscribe(struct redis_bus *b, int64_t deadline, near_error *error)
{
    near_bytes  spare[3]  = { near_key("CLIENT"), near_key("NO-EVICT"), near_key("on") };
    near_bytes  listen[2] = { near_key("SUBSCRIBE"), near_key(b->env.channel) };
    redisReply *reply     = NULL;
    near_status st;

    st = near__redis_append(b->conn, NEAR_COUNT_OF(spare), spare);
    if (st == NEAR_OK)
        st = near__redis_append(b->conn, NEAR_COUNT_OF(listen), listen);
    if (st != NEAR_OK)
        return near__fail(error, st, "redis %s: cannot make a SUBSCRIBE", b->server_name);
    st = near__redis_flush(b->conn, deadline, error);
    if (st == NEAR_OK)
        st = read_answer(b, &reply, deadline, error);
    if (st != NEAR_OK)
        return st;
    freeReplyObject(reply);
    st = read_answer(b, &reply, deadline, error);
    if (st != NEAR_OK)
        return st;
    if (!reply_is(reply, 3, "subscribe"))
        st = fail_reply(b, "SUBSCRIBE", reply, error);
    freeReplyObject(reply);
    return st;
}

/* One connection from dial to death; why it ended is in `error`. */
static void
session(struct redis_bus *b, near_error *error)
{
    int64_t deadline = near__time_after(near__now(b->env.clock), b->env.connect_timeout);

    if (near__redis_dial_home(&b->conn, &b->server, b->env.channel, deadline, error) != NEAR_OK)
        return;
    if (subscribe(b, deadline, error) == NEAR_OK) {
        b->env.listener.subscribed(b->env.listener.ctx);
        near__lock(&b->lock);
        b->subscribed = true;
        near__unlock(&b->lock);
        listen_on(b, error);
    }
    near__redis_conn_free(&b->conn);
}

/* ------------------------------------------------------------------------------ the thread: again and again */

static void
report_loss(struct redis_bus *b, const near_error *error)
{
    near__lock(&b->lock);
    b->subscribed = false;
    b->losses++;
    memcpy(b->reason, error->text, sizeof(b->reason));
    pthread_cond_broadcast(&b->news);
    near__unlock(&b->lock);
    b->env.listener.lost(b->env.listener.ctx, error->text);
}

/* Between half and all of the back-off, which doubles: many instances must not come back in step. */
static int64_t
next_pause(struct redis_bus *b)
{
    int64_t  whole = b->back_off;
    uint32_t dice  = 0;

    b->back_off = 2 * whole < BACK_OFF_MAX ? 2 * whole : BACK_OFF_MAX;
    if (!near__random(&dice, sizeof(dice)))
        return whole;
    return whole / 2 + whole / 2 * (int64_t)(dice >> 16) / 65536;
}

static void
pause_before_retry(struct redis_bus *b)
{
    int64_t       deadline = near__time_after(near__now(b->env.clock), next_pause(b));
    struct pollfd pfd      = { .fd = b->wake, .events = POLLIN };

    while (!is_stopping(b)) {
        int64_t now = near__now(b->env.clock);

        if (now >= deadline)
            return;
        if (poll(&pfd, 1, near__poll_timeout(now, deadline)) > 0)
            drain_wake(b);
    }
}

static void *
run(void *ctx)
{
    struct redis_bus *b = ctx;
    near_error        error;

    while (!is_stopping(b)) {
        memset(&error, 0, sizeof(error));
        session(b, &error);
        if (is_stopping(b))
            break;
        report_loss(b, &error);
        pause_before_retry(b);
    }
    return NULL;
}

/* ---------------------------------------------------------------------------------------- publish and fence */

static near_status
publisher_dial(void *ctx, void **conn, int64_t deadline, near_error *error)
{
    struct redis_bus        *b    = ctx;
    struct near__redis_conn *made = NULL;
    near_status              st   = near__redis_dial_home(&made, &b->server, b->env.channel, deadline, error);

    *conn = made;
    return st;
}

static bool
publisher_usable(void *conn)
{
    return near__redis_conn_usable(conn);
}

static void
publisher_drop(void *conn, bool goodbye)
{
    struct near__redis_conn *c = conn;

    (void)goodbye; /* closing says it */
    near__redis_conn_free(&c);
}

static void
publisher_abandon(void *conn)
{
    near__redis_conn_abandon(conn);
}

static const struct near__pool_ops publisher_ops = {
    .dial    = publisher_dial,
    .usable  = publisher_usable,
    .drop    = publisher_drop,
    .abandon = publisher_abandon,
};

struct publish_answer {
    struct redis_bus *b;
    near_error       *error;
    near_status       st;
};

static void
take_publish_reply(void *ctx, size_t index, redisReply *reply)
{
    struct publish_answer *answer = ctx;

    (void)index;
    if (reply->type == REDIS_REPLY_INTEGER)
        answer->st = NEAR_OK; /* how many heard it says nothing: rule C7 */
    else
        answer->st = fail_reply(answer->b, "PUBLISH", reply, answer->error);
}

static near_status
redis_publish(void *self, uint8_t *message, size_t size, size_t stamp_at, uint64_t *stream, int64_t deadline,
              near_error *error)
{
    struct redis_bus     *b       = self;
    struct publish_answer answer  = { b, error, NEAR_ERR_PROTOCOL };
    near_bytes            argv[3] = { near_key("PUBLISH"), near_key(b->env.channel), { message, size } };
    void                 *conn    = NULL;
    near_status           st;

    *stream = 0;
    st      = near__pool_take(b->publishers, &conn, deadline, error);
    if (st != NEAR_OK)
        return st;
    near__redis_conn_stamp(conn, message + stamp_at);
    st = near__redis_append(conn, NEAR_COUNT_OF(argv), argv);
    if (st != NEAR_OK)
        near__fail(error, st, "redis %s: cannot make a PUBLISH of %zu bytes", b->server_name, size);
    else
        st = near__redis_exchange(conn, take_publish_reply, &answer, NULL, NULL, deadline, error);
    if (st != NEAR_OK && near__redis_sent(conn) > 0)
        *stream = near__redis_conn_stream(conn); /* it may be published yet */
    if (st == NEAR_OK)
        st = answer.st;
    if (st == NEAR_OK)
        *stream = near__redis_conn_stream(conn);
    near__pool_give(b->publishers, conn, st == NEAR_OK);
    return st;
}

static bool
is_heard_locked(const struct redis_bus *b, int64_t asked, uint64_t losses)
{
    return b->stopping || b->losses != losses || b->heard >= asked;
}

/* Without a subscription there is nobody to ask: said at once, because a new one begins with a flush and may take long. */
static near_status
redis_fence(void *self, int64_t deadline, near_error *error)
{
    struct redis_bus *b     = self;
    int64_t           asked = near__now(b->env.clock);
    uint64_t          losses;
    bool              up, first, in_time = true, stopping, heard;
    char              reason[sizeof(b->reason)];

    near__lock(&b->lock);
    losses = b->losses;
    up     = b->subscribed && !b->stopping;
    first =
        up && !b->wanted; /* else somebody is already waking the thread, and its PING is still to be sent */
    if (up)
        b->wanted = true;
    near__unlock(&b->lock);
    if (first)
        raise_event(b->wake);
    near__lock(&b->lock);
    while (up && in_time && !is_heard_locked(b, asked, losses))
        in_time = near__cond_wait(&b->news, &b->lock, deadline);
    stopping = b->stopping;
    heard    = up && b->heard >= asked;
    up       = up && b->losses == losses;
    memcpy(reason, b->reason, sizeof(reason));
    near__unlock(&b->lock);

    if (heard)
        return NEAR_OK;
    if (stopping)
        return fail_closed(error);
    if (up)
        return near__fail(error, NEAR_ERR_TIMEOUT, "redis %s: fence: PING not answered in time",
                          b->server_name);
    return near__fail(error, NEAR_ERR_UNAVAILABLE, "fence: the bus is not subscribed: %s",
                      reason[0] != '\0' ? reason : "first connection under way");
}

/* ------------------------------------------------------------------------------------------- life and death */

static void
redis_stop(void *self)
{
    struct redis_bus *b = self;

    near__lock(&b->lock);
    b->stopping = true;
    pthread_cond_broadcast(&b->news);
    near__unlock(&b->lock);
    near__pool_close(b->publishers);
    raise_event(b->cancel);
    raise_event(b->wake);
    if (b->running)
        pthread_join(b->thread, NULL);
    b->running = false;
    near__pool_stop(b->publishers);
}

static void
redis_fini(void *self)
{
    struct redis_bus *b = self;

    if (b == NULL)
        return;
    if (b->running && !b->forked)
        redis_stop(b);
    near__pool_free(&b->publishers);
    if (b->wake >= 0)
        close(b->wake);
    if (b->cancel >= 0)
        close(b->cancel);
    if (!b->forked) { /* in a child they are in whatever state other threads had left them: destroying may hang */
        pthread_cond_destroy(&b->news);
        near__lock_fini(&b->lock);
    }
    free(b);
}

/* The thread may have been anywhere in its connection, also in the middle of an allocation: only the descriptor is closed, the
 * memory stays behind. */
static void
redis_forked(void *self)
{
    struct redis_bus *b = self;

    b->forked  = true;
    b->running = false;
    near__pool_forked(b->publishers);
    if (b->conn != NULL)
        near__redis_conn_abandon(b->conn);
    if (b->wake >= 0)
        close(b->wake);
    if (b->cancel >= 0)
        close(b->cancel);
    b->wake = b->cancel = -1;
}

static near_status
redis_open(void **self, const struct near__bus_env *env, near_error *error)
{
    struct redis_bus *b  = calloc(1, sizeof(*b));
    near_status       st = NEAR_ERR_NOMEM;

    *self = NULL;
    if (b == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "bus: out of memory");
    near__lock_init(&b->lock, NEAR__RANK_BUS);
    near__cond_init(&b->news);
    near__address_display(&env->uri->addresses[0], b->server_name, sizeof(b->server_name));
    b->env    = *env;
    b->server = (struct near__redis_server){
        .uri         = env->uri,
        .access      = env->access,
        .clock       = env->clock,
        .client_name = env->client_name,
        .max_reply   = REPLY_MAX,
        .cancel_fd   = &b->cancel,
    };
    b->back_off = BACK_OFF_MIN;
    b->heard    = INT64_MIN;
    b->wake     = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    b->cancel   = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (b->wake < 0 || b->cancel < 0) {
        near__fail(error, st, "bus: eventfd: %s", strerrordesc_np(errno));
        goto fail;
    }
    st = near__pool_new(&b->publishers, &publisher_ops, b, PUBLISHERS, env->connect_timeout, env->clock);
    if (st != NEAR_OK) {
        near__fail(error, st, "bus: out of memory");
        goto fail;
    }
    st = near__thread_start(&b->thread, "near-bus", run, b);
    if (st != NEAR_OK) {
        near__fail(error, st, "bus: cannot start its thread");
        goto fail;
    }
    b->running = true;
    *self      = b;
    return NEAR_OK;
fail:
    redis_fini(b);
    return st;
}

#define ROW(name)                                                                                            \
    {                                                                                                        \
        .version = NEAR__BUS_OPS_V1, .scheme = name, .open = redis_open, .publish = redis_publish,           \
        .fence = redis_fence, .stop = redis_stop, .fini = redis_fini, .forked = redis_forked,                \
    }

const struct near__bus_ops near__bus_redis           = ROW("redis");
const struct near__bus_ops near__bus_rediss          = ROW("rediss");
const struct near__bus_ops near__bus_redis_unix      = ROW("redis+unix");
const struct near__bus_ops near__bus_redis_sentinel  = ROW("redis-sentinel");
const struct near__bus_ops near__bus_rediss_sentinel = ROW("rediss-sentinel");
const struct near__bus_ops near__bus_redis_cluster   = ROW("redis-cluster");
const struct near__bus_ops near__bus_rediss_cluster  = ROW("rediss-cluster");
