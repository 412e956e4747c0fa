/*
 * The Redis buses: one channel of Redis pub/sub, at one server, however it is found and reached (near__redis_dial_home()); and where it is
 * wanted the server's own word of changed keys.
 *
 * Listening: see redis_link.c.  What has been heard on the whole is what the slowest link has heard, and what the probe
 * (redis_probe.c) has vouched for.
 *
 * Publishing: per link a small pool of other connections, each a stream of its own.  A number that was stamped and not published
 * would look like a gap to everybody else, so whatever goes wrong after the stamp ends the connection, and the stream with it.
 * With several links any of them will do, as a cluster carries a PUBLISH to every node: the next one is tried as long as
 * certainly nothing was sent.
 */
#include "coherence/redis_bus.h"

#include "base/event.h"
#include "base/thread.h"
#include "coherence/message.h"
#include "l2/redis_home.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PUBLISHERS                                                                                           \
    4 /* connections: a PUBLISH takes tens of microseconds, more would only queue in the server */
#define REPLY_MAX                                                                                            \
    ((size_t)1 << 20) /* the largest message and its frame; beyond it somebody publishes rubbish */
#define TRACKED_MAX ((size_t)64 << 20) /* the server tells in one reply of all keys of one turn of its loop */

/* ------------------------------------------------------------------------------------------- small talk */

bool
near__bus_stopping(struct near__redis_bus *b)
{
    bool stopping;

    near__lock(&b->lock);
    stopping = b->stopping;
    near__unlock(&b->lock);
    return stopping;
}

near_status
near__bus_closed(near_error *error)
{
    return near__fail(error, NEAR_ERR_CLOSED, "bus: closed");
}

/* The older of what was heard and what was vouched for, of all links; INT64_MIN: one of them has nothing to show yet. */
void
near__bus_tell(struct near__redis_bus *b)
{
    int64_t since;

    near__lock(&b->lock);
    since = b->mapped;
    for (size_t i = 0; i < b->n; i++) {
        const struct near__bus_link *l = &b->links[i];
        int64_t                      mine;

        if (!l->used)
            continue;
        mine  = l->heard < l->vouched ? l->heard : l->vouched;
        mine  = l->subscribed ? mine : INT64_MIN;
        since = mine < since ? mine : since;
    }
    near__unlock(&b->lock);
    if (since != INT64_MIN)
        b->env.listener.heard(b->env.listener.ctx, since);
}

/* ---------------------------------------------------------------------------------------- publish and fence */

near_status
near__link_dial(struct near__redis_conn **conn, struct near__bus_link *l, int64_t deadline, near_error *error)
{
    if (l->tracker || l->bus->env.uri->layout != NEAR__LAYOUT_CLUSTER)
        return near__redis_dial(conn, &l->server, deadline, error);
    return near__redis_dial_home(conn, &l->server, l->bus->env.channel, NULL, deadline, error);
}

static near_status
publisher_dial(void *ctx, void **conn, int64_t deadline, near_error *error)
{
    struct near__bus_link   *l    = ctx;
    struct near__redis_conn *made = NULL;
    near_status              st   = near__link_dial(&made, l, deadline, error);

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
    const struct near__bus_link *l;
    near_error                  *error;
    near_status                  st;
};

static void
take_publish_reply(void *ctx, size_t index, redisReply *reply)
{
    struct publish_answer *answer = ctx;

    (void)index;
    if (reply->type == REDIS_REPLY_INTEGER)
        answer->st = NEAR_OK; /* how many heard it says nothing: rule C7 */
    else
        answer->st = near__link_refused(answer->l->name, "PUBLISH", reply, answer->error);
}

/* *stream 0: certainly not sent. */
static near_status
publish_at(struct near__bus_link *l, uint8_t *message, size_t size, size_t stamp_at, uint64_t *stream,
           int64_t deadline, near_error *error)
{
    struct publish_answer answer  = { l, error, NEAR_ERR_PROTOCOL };
    near_bytes            argv[3] = { near_key("PUBLISH"), near_key(l->bus->env.channel), { message, size } };
    void                 *conn    = NULL;
    near_status           st;

    *stream = 0;
    st      = near__pool_take(l->publishers, &conn, deadline, error);
    if (st != NEAR_OK)
        return st;
    near__redis_conn_stamp(conn, message + stamp_at);
    st = near__redis_append(conn, NEAR_COUNT_OF(argv), argv);
    if (st != NEAR_OK)
        near__fail(error, st, "redis %s: cannot make a PUBLISH of %zu bytes", l->name, size);
    else
        st = near__redis_exchange(conn, take_publish_reply, &answer, NULL, NULL, deadline, error);
    if (st != NEAR_OK && near__redis_sent(conn) > 0)
        *stream = near__redis_conn_stream(conn); /* it may be published yet */
    if (st == NEAR_OK)
        st = answer.st;
    if (st == NEAR_OK)
        *stream = near__redis_conn_stream(conn);
    near__pool_give(l->publishers, conn, st == NEAR_OK);
    return st;
}

static near_status
redis_publish(void *self, uint8_t *message, size_t size, size_t stamp_at, uint64_t *stream, int64_t deadline,
              near_error *error)
{
    struct near__redis_bus *b  = self;
    near_status             st = NEAR_ERR_UNAVAILABLE;

    *stream = 0;
    for (size_t i = 0; i < b->publishing && st == NEAR_ERR_UNAVAILABLE && *stream == 0; i++)
        st = publish_at(&b->links[i], message, size, stamp_at, stream, deadline, error);
    return st;
}

/* At the first link's server that can be reached: a cluster passes it on to all of its own. */
static near_status
announce_at(struct near__bus_link *l, const char *channel, near_bytes text, int64_t deadline,
            near_error *error)
{
    struct publish_answer answer  = { l, error, NEAR_ERR_PROTOCOL };
    near_bytes            argv[3] = { near_key("PUBLISH"), near_key(channel), text };
    void                 *conn    = NULL;
    near_status           st      = near__pool_take(l->publishers, &conn, deadline, error);

    if (st != NEAR_OK)
        return st;
    st = near__redis_append(conn, NEAR_COUNT_OF(argv), argv);
    if (st == NEAR_OK)
        st = near__redis_exchange(conn, take_publish_reply, &answer, NULL, NULL, deadline, error);
    near__pool_give(l->publishers, conn, st == NEAR_OK);
    return st == NEAR_OK ? answer.st : st;
}

static near_status
redis_announce(void *self, const char *channel, near_bytes text, int64_t deadline, near_error *error)
{
    struct near__redis_bus *b  = self;
    near_status             st = NEAR_ERR_UNAVAILABLE;

    for (size_t i = 0; i < b->publishing && st == NEAR_ERR_UNAVAILABLE; i++)
        st = announce_at(&b->links[i], channel, text, deadline, error);
    return st;
}

/* Wish for a PING on every link, and for a look at the primaries.  False: not all are subscribed. */
static bool
wish(struct near__redis_bus *b, uint64_t *losses)
{
    bool   up = true;
    size_t n;

    near__lock(&b->lock);
    n       = b->n;
    *losses = b->losses;
    for (size_t i = 0; i < n; i++)
        up &= (b->links[i].subscribed || !b->links[i].used) && !b->stopping;
    if (up && b->mapped != NEAR_NEVER) {
        b->probe_wanted = true;
        pthread_cond_broadcast(&b->beat);
    }
    near__unlock(&b->lock);
    for (size_t i = 0; up && i < n; i++) {
        struct near__bus_link *l = &b->links[i];
        bool                   first;

        near__lock(&b->lock);
        first = l->used &&
                !l->wanted; /* else somebody is already waking the thread, and its PING is still to be sent */
        l->wanted = true;
        near__unlock(&b->lock);
        if (first)
            near__event_raise(l->wake);
    }
    return up;
}

static bool
all_heard_locked(const struct near__redis_bus *b, int64_t asked) NEAR__NEEDS(b->lock)
{
    for (size_t i = 0; i < b->n; i++)
        if (b->links[i].used && (!b->links[i].subscribed || b->links[i].heard < asked))
            return false;
    return b->mapped >= asked;
}

/* Every link is asked, as an acknowledgement says only that the server it came from has executed the write.  Without a subscription
 * there is nobody to ask: said at once, because a new one begins with a flush and may take long. */
static near_status
redis_fence(void *self, int64_t deadline, near_error *error)
{
    struct near__redis_bus *b     = self;
    int64_t                 asked = near__now(b->env.clock);
    uint64_t                losses;
    bool                    up = wish(b, &losses), in_time = true, stopping, heard;
    char                    reason[sizeof(b->reason)];

    near__lock(&b->lock);
    while (up && in_time && !b->stopping && b->losses == losses && !all_heard_locked(b, asked))
        in_time = near__cond_wait(&b->news, &b->lock, deadline);
    stopping = b->stopping;
    heard    = up && all_heard_locked(b, asked);
    up       = up && b->losses == losses;
    memcpy(reason, b->reason, sizeof(reason));
    near__unlock(&b->lock);

    if (heard)
        return NEAR_OK;
    if (stopping)
        return near__bus_closed(error);
    if (up)
        return near__fail(error, NEAR_ERR_TIMEOUT, "redis %s: fence: PING not answered in time",
                          b->links[0].name);
    return near__fail(error, NEAR_ERR_UNAVAILABLE, "fence: the bus is not subscribed: %s",
                      reason[0] != '\0' ? reason : "first connection under way");
}

static void
redis_state(void *self, struct near__bus_state *state)
{
    struct near__redis_bus *b = self;

    *state = (struct near__bus_state){ .subscribed = true, .tracking = true, .recognised = true };
    near__lock(&b->lock);
    for (size_t i = 0; i < b->n; i++) {
        const struct near__bus_link *l = &b->links[i];

        if (!l->used)
            continue;
        state->subscribed &= l->subscribed;
        state->tracking &= l->tracking || (b->env.uri->layout == NEAR__LAYOUT_CLUSTER && !l->tracker);
        state->recognised &= l->subscribed && l->identity.told;
    }
    if (b->env.uri->layout == NEAR__LAYOUT_CLUSTER)
        state->tracking &= b->mapped != NEAR_NEVER && b->mapped != INT64_MIN;
    state->suspicions = b->suspicions;
    near__unlock(&b->lock);
}

/* ------------------------------------------------------------------------------------------- life and death */

static void
redis_stop(void *self)
{
    struct near__redis_bus *b = self;

    near__lock(&b->lock);
    b->stopping = true;
    pthread_cond_broadcast(&b->news);
    pthread_cond_broadcast(&b->beat);
    near__unlock(&b->lock);
    near__event_raise(b->cancel);
    for (size_t i = 0; i < b->publishing; i++)
        if (b->links[i].publishers != NULL)
            near__pool_close(b->links[i].publishers);
    if (b->probing)
        pthread_join(b->prober, NULL); /* first: it starts and ends links */
    b->probing = false;
    for (size_t i = 0; i < b->n; i++) {
        if (b->links[i].wake >= 0)
            near__event_raise(b->links[i].wake);
        if (b->links[i].cancel >= 0)
            near__event_raise(b->links[i].cancel);
    }
    for (size_t i = 0; i < b->n; i++) {
        if (b->links[i].running)
            pthread_join(b->links[i].thread, NULL);
        b->links[i].running = false;
    }
    for (size_t i = 0; i < b->n; i++)
        if (b->links[i].publishers != NULL)
            near__pool_stop(b->links[i].publishers);
}

static void
link_fini(struct near__bus_link *l)
{
    near__pool_free(&l->publishers);
    near__event_close(&l->wake);
    near__event_close(&l->cancel);
}

static void
redis_fini(void *self)
{
    struct near__redis_bus *b = self;

    if (b == NULL)
        return;
    if (!b->forked)
        redis_stop(b);
    for (size_t i = 0; i < b->n; i++)
        link_fini(&b->links[i]);
    near__event_close(&b->cancel);
    if (!b->forked) { /* in a child they are in whatever state other threads had left them: destroying may hang */
        pthread_cond_destroy(&b->news);
        pthread_cond_destroy(&b->beat);
        near__lock_fini(&b->lock);
    }
    free(b);
}

/* The threads may have been anywhere in their connections, also in the middle of an allocation: only the descriptors are closed, the
 * memory stays behind. */
static void
redis_forked(void *self)
{
    struct near__redis_bus *b = self;

    b->forked  = true;
    b->probing = false;
    for (size_t i = 0; i < b->n; i++) {
        struct near__bus_link *l = &b->links[i];

        l->running = false;
        if (l->publishers != NULL)
            near__pool_forked(l->publishers);
        if (l->conn != NULL)
            near__redis_conn_abandon(l->conn);
        if (l->probe != NULL)
            near__redis_conn_abandon(l->probe);
        near__event_close(&l->wake);
        near__event_close(&l->cancel);
    }
    if (b->map_conn != NULL)
        near__redis_conn_abandon(b->map_conn);
    near__event_close(&b->cancel);
}

near_status
near__link_init(struct near__bus_link *l, struct near__redis_bus *b, const struct near__address *address,
                near_error *error)
{
    l->bus      = b;
    l->back_off = NEAR__BACK_OFF_MIN;
    l->heard = l->vouched = INT64_MIN;
    near__address_display(address != NULL ? address : &b->env.uri->addresses[0], l->name, sizeof(l->name));
    l->server = (struct near__redis_server){
        .uri         = b->env.uri,
        .address     = address,
        .access      = b->env.access,
        .clock       = b->env.clock,
        .client_name = b->env.client_name,
        .max_reply   = b->env.prefix != NULL ? TRACKED_MAX : REPLY_MAX,
        .cancel_fd   = &b->cancel,
    };
    if (l->wake < 0)
        l->wake = near__event_open();
    if (l->tracker && l->cancel < 0)
        l->cancel = near__event_open();
    if (l->wake < 0 || (l->tracker && l->cancel < 0))
        return near__fail(error, NEAR_ERR_NOMEM, "bus: no descriptor: %s", near__errno_text(errno));
    return NEAR_OK;
}

static near_status
first_link_init(struct near__bus_link *l, struct near__redis_bus *b, size_t index, near_error *error)
{
    const struct near__uri *uri  = b->env.uri;
    bool                    many = uri->layout == NEAR__LAYOUT_SINGLE && uri->address_count > 1;
    near_status             st   = near__link_init(l, b, many ? &uri->addresses[index] : NULL, error);

    l->used = true;
    if (st != NEAR_OK)
        return st;
    st = near__pool_new(&l->publishers, &publisher_ops, l, PUBLISHERS, b->env.connect_timeout, b->env.clock);
    return st != NEAR_OK ? near__fail(error, st, "bus: out of memory") : NEAR_OK;
}

/* The probe last: from then on it starts and ends links. */
static near_status
start(struct near__redis_bus *b, near_error *error)
{
    near_status st = NEAR_OK;

    for (size_t i = 0; i < b->publishing && st == NEAR_OK; i++) {
        st = near__thread_start(&b->links[i].thread, "near-bus", near__link_run, &b->links[i]);
        b->links[i].running = st == NEAR_OK;
    }
    if (st == NEAR_OK) {
        st         = near__thread_start(&b->prober, "near-probe", near__probe_run, b);
        b->probing = st == NEAR_OK;
    }
    return st != NEAR_OK ? near__fail(error, st, "bus: cannot start its threads") : NEAR_OK;
}

static near_status
redis_open(void **self, const struct near__bus_env *env, near_error *error)
{
    /* of a cluster the home of the channel is listened to, of sentinels the master that they name */
    size_t                  n        = env->uri->layout == NEAR__LAYOUT_SINGLE ? env->uri->address_count : 1;
    bool                    maps     = env->uri->layout == NEAR__LAYOUT_CLUSTER && env->prefix != NULL;
    size_t                  capacity = maps ? n + NEAR__TRACKERS_MAX : n;
    struct near__redis_bus *b        = calloc(1, sizeof(*b) + capacity * sizeof(b->links[0]));
    near_status             st       = NEAR_OK;

    *self = NULL;
    if (b == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "bus: out of memory");
    near__lock_init(&b->lock, NEAR__RANK_BUS);
    near__cond_init(&b->news);
    near__cond_init(&b->beat);
    b->env        = *env;
    b->n          = n;
    b->publishing = n;
    b->capacity   = capacity;
    b->mapped     = maps ? INT64_MIN : NEAR_NEVER;
    for (size_t i = 0; i < capacity; i++)
        b->links[i].wake = b->links[i].cancel = -1;
    b->cancel = near__event_open();
    if (b->cancel < 0)
        st = near__fail(error, NEAR_ERR_NOMEM, "bus: no descriptor: %s", near__errno_text(errno));
    for (size_t i = 0; i < n && st == NEAR_OK; i++)
        st = first_link_init(&b->links[i], b, i, error);
    if (st == NEAR_OK)
        st = start(b, error);
    if (st != NEAR_OK) {
        redis_fini(b);
        return st;
    }
    *self = b;
    return NEAR_OK;
}

#define ROW(name)                                                                                            \
    {                                                                                                        \
        .version = NEAR__BUS_OPS_V1, .scheme = (name), .open = redis_open, .publish = redis_publish,         \
        .fence = redis_fence, .stop = redis_stop, .fini = redis_fini, .forked = redis_forked,                \
        .state = redis_state, .beats = true, .announce = redis_announce,                                     \
    }

const struct near__bus_ops near__bus_redis           = ROW("redis");
const struct near__bus_ops near__bus_rediss          = ROW("rediss");
const struct near__bus_ops near__bus_redis_unix      = ROW("redis+unix");
const struct near__bus_ops near__bus_redis_sentinel  = ROW("redis-sentinel");
const struct near__bus_ops near__bus_rediss_sentinel = ROW("rediss-sentinel");
const struct near__bus_ops near__bus_redis_cluster   = ROW("redis-cluster");
const struct near__bus_ops near__bus_rediss_cluster  = ROW("rediss-cluster");
