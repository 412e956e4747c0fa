/*
 * The pool of connections to one server.
 *
 *     conns:  [ idle, most recently used last | lent ]
 *     0 <= idle_count <= count,  count + dialling <= capacity
 *
 * A connection is in `conns` from the moment its dial succeeded until it has been dropped, so that a
 * forked child can close every descriptor, and so that the capacity counts what is really open.  Idle ones
 * belong to the pool, lent ones to one caller each.
 *
 * `lock` covers everything below it in the struct.  It is never held while dialling, checking or dropping:
 * those may block or take time.  A slot is given up only after its connection was dropped, hence stop()
 * returning means that no drop is running.
 *
 * What can never happen: more than `capacity` connections; a connection lent twice; a waiter that sleeps
 * on while a slot or a connection is free (whoever frees one signals one waiter, and a waiter whose time
 * is over looks once more before it leaves).
 */
#include "l2/pool.h"

#include "base/backoff.h"
#include "base/lock.h"

#include <stdlib.h>
#include <string.h>

/* After the first failed dial the server is left alone for about the first, then twice as long each time
 * up to the second.  The ceiling is half of what a fleet may take to notice that a server is back (one
 * second). */
#define BACKOFF_FIRST (10 * NEAR_MS)
#define BACKOFF_MOST  (500 * NEAR_MS)
/* A dial that was given less time than this and ran out of it says nothing about the server: nobody else
 * is held back for it. */
#define DIAL_PROVES (10 * NEAR_MS)

struct near__pool {
    const struct near__pool_ops *ops;
    void                        *ctx;
    const struct near__clock    *clock;
    int64_t                      connect_timeout;
    unsigned                     capacity;

    struct near__lock lock;
    pthread_cond_t    changed; /* a slot or a connection became free, or nothing will ever again */
    bool              closed;
    unsigned          idle_count, count, dialling, waiting;
    unsigned          failures; /* dials failed in a row */
    int64_t           refuse_until;
    near_error        reason; /* of the last failed dial */
    uint64_t          connects, disconnects;
    void             *conns[];
};

near_status
near__pool_new(struct near__pool **pool, const struct near__pool_ops *ops, void *ctx, unsigned capacity,
               int64_t connect_timeout, const struct near__clock *clock)
{
    struct near__pool *p;

    *pool = NULL;
    if (capacity == 0)
        return NEAR_ERR_INVALID;
    p = calloc(1, sizeof(*p) + capacity * sizeof(p->conns[0]));
    if (p == NULL)
        return NEAR_ERR_NOMEM;
    p->ops             = ops;
    p->ctx             = ctx;
    p->clock           = clock;
    p->connect_timeout = connect_timeout;
    p->capacity        = capacity;
    near__lock_init(&p->lock, NEAR__RANK_POOL);
    near__cond_init(&p->changed);
    *pool = p;
    return NEAR_OK;
}

/* ------------------------------------------------------------------------------------------------ lists */

static void *
lend_locked(struct near__pool *pool) NEAR__NEEDS(pool->lock)
{
    return pool->conns[--pool->idle_count];
}

static unsigned
find_lent_locked(const struct near__pool *pool, const void *conn) NEAR__NEEDS(pool->lock)
{
    unsigned i = pool->idle_count;

    while (i < pool->count && pool->conns[i] != conn)
        i++;
    return i;
}

static void
take_back_locked(struct near__pool *pool, void *conn) NEAR__NEEDS(pool->lock)
{
    unsigned i = find_lent_locked(pool, conn);

    pool->conns[i]                = pool->conns[pool->idle_count];
    pool->conns[pool->idle_count] = conn;
    pool->idle_count++;
}

/* Drop a lent connection, then free its slot: it counts until it is gone.  Meanwhile the slot is NULL, so that a child forked now
 * finds nothing that is being freed. */
static void
drop_lent(struct near__pool *pool, void *conn, bool goodbye, bool counts)
{
    near__lock(&pool->lock);
    pool->conns[find_lent_locked(pool, conn)] = NULL;
    near__unlock(&pool->lock);
    pool->ops->drop(conn, goodbye);
    near__lock(&pool->lock);
    pool->conns[find_lent_locked(pool, NULL)] = pool->conns[pool->count - 1];
    pool->count--;
    pool->disconnects += counts;
    pthread_cond_broadcast(
        &pool->changed); /* take() wants a slot, stop() wants the last one: wake both kinds */
    near__unlock(&pool->lock);
}

/* ---------------------------------------------------------------------------------------------- dialling */

static near_status
refuse_locked(const struct near__pool *pool, int64_t now, near_error *error) NEAR__NEEDS(pool->lock)
{
    near_status status = pool->reason.code == NEAR_ERR_DENIED ? NEAR_ERR_DENIED : NEAR_ERR_UNAVAILABLE;
    int64_t     left   = pool->refuse_until - now;

    if (left <= 0)
        return near__fail(error, status, "%s; being tried again", pool->reason.text);
    return near__fail(error, status, "%s; not tried again for %dms", pool->reason.text,
                      (int)((left + NEAR_MS - 1) / NEAR_MS));
}

static void
dial_failed_locked(struct near__pool *pool, const near_error *reason, int64_t began, int64_t until)
    NEAR__NEEDS(pool->lock)
{
    int64_t now = near__now(pool->clock);

    if (reason->code == NEAR_ERR_NOMEM || reason->code == NEAR_ERR_CLOSED)
        return; /* our fault or wish, not the server's */
    if (reason->code == NEAR_ERR_TIMEOUT && until - began < DIAL_PROVES)
        return;
    if (pool->failures == 0 || began >= pool->refuse_until) /* dials that failed side by side count once */
        pool->refuse_until =
            near__time_after(now, near__backoff(++pool->failures, BACKOFF_FIRST, BACKOFF_MOST));
    pool->reason = *reason;
}

/* Called with the lock held and a slot free; returns without the lock. */
static near_status
dial_unlock(struct near__pool *pool, void **conn, int64_t now, int64_t deadline, near_error *error)
    NEAR__GIVES(pool->lock)
{
    int64_t     until  = near__time_after(now, pool->connect_timeout);
    near_error  reason = { 0 };
    near_status status;
    bool        closed;

    if (until > deadline)
        until = deadline;
    pool->dialling++;
    near__unlock(&pool->lock);

    status      = pool->ops->dial(pool->ctx, conn, until, &reason);
    reason.code = status;

    near__lock(&pool->lock);
    closed = pool->closed;
    pool->dialling--;
    if (status == NEAR_OK) {
        pool->conns[pool->count++] = *conn;
        pool->connects++;
        pool->failures = 0;
    } else {
        dial_failed_locked(pool, &reason, now, until);
    }
    if (status != NEAR_OK || closed)
        pthread_cond_broadcast(&pool->changed); /* the slot is free; or all of them hear the bad news */
    near__unlock(&pool->lock);

    if (status != NEAR_OK) {
        *conn = NULL;
        return near__fail(error, status, "%s", reason.text);
    }
    if (!closed)
        return NEAR_OK;
    drop_lent(pool, *conn, true, false);
    *conn = NULL;
    return near__fail(error, NEAR_ERR_CLOSED, "closed");
}

/* -------------------------------------------------------------------------------------- taking and giving */

/* Lend an idle connection that is still sound.  Returns without the lock when it lent one, with it
 * otherwise. */
static bool
take_idle_unlock(struct near__pool *pool, void **conn) NEAR__UNFOLLOWED
{
    while (pool->idle_count > 0) {
        *conn = lend_locked(pool);
        near__unlock(&pool->lock);
        if (pool->ops->usable(*conn))
            return true;
        drop_lent(pool, *conn, false, true);
        near__lock(&pool->lock);
    }
    return false;
}

/* NEAR_OK while it is worth dialling or waiting on. */
static near_status
give_up_locked(const struct near__pool *pool, int64_t now, int64_t deadline, near_error *error)
    NEAR__NEEDS(pool->lock)
{
    if (pool->closed)
        return near__fail(error, NEAR_ERR_CLOSED, "closed");
    if (pool->failures > 0 && (now < pool->refuse_until || pool->dialling > 0))
        return refuse_locked(pool, now, error);
    if (now >= deadline)
        return near__fail(error, NEAR_ERR_TIMEOUT, "no connection in time, %u of %u in use", pool->count,
                          pool->capacity);
    return NEAR_OK;
}

near_status
near__pool_take(struct near__pool *pool, void **conn, int64_t deadline, near_error *error) NEAR__UNFOLLOWED
{
    near_status status;
    int64_t     now;

    near__lock(&pool->lock);
    for (;;) {
        if (!pool->closed && take_idle_unlock(pool, conn))
            return NEAR_OK;
        *conn  = NULL;
        now    = near__now(pool->clock);
        status = give_up_locked(pool, now, deadline, error);
        if (status != NEAR_OK)
            break;
        if (pool->count + pool->dialling < pool->capacity)
            return dial_unlock(pool, conn, now, deadline, error);
        pool->waiting++;
        near__cond_wait(&pool->changed, &pool->lock, deadline);
        pool->waiting--;
    }
    if (pool->closed)
        pthread_cond_broadcast(&pool->changed); /* for stop() */
    near__unlock(&pool->lock);
    return status;
}

void
near__pool_give(struct near__pool *pool, void *conn, bool healthy)
{
    if (!healthy) {
        drop_lent(pool, conn, false, true);
        return;
    }
    near__lock(&pool->lock);
    take_back_locked(pool, conn);
    if (pool->closed)
        pthread_cond_broadcast(&pool->changed); /* for stop() */
    else
        pthread_cond_signal(&pool->changed);
    near__unlock(&pool->lock);
}

uint64_t
near__pool_connects(struct near__pool *pool)
{
    uint64_t n;

    near__lock(&pool->lock);
    n = pool->connects;
    near__unlock(&pool->lock);
    return n;
}

uint64_t
near__pool_disconnects(struct near__pool *pool)
{
    uint64_t n;

    near__lock(&pool->lock);
    n = pool->disconnects;
    near__unlock(&pool->lock);
    return n;
}

/* -------------------------------------------------------------------------------------------- end of life */

void
near__pool_close(struct near__pool *pool)
{
    near__lock(&pool->lock);
    pool->closed = true;
    pthread_cond_broadcast(&pool->changed);
    near__unlock(&pool->lock);
}

void
near__pool_stop(struct near__pool *pool)
{
    void *conn;

    near__pool_close(pool);
    near__lock(&pool->lock);
    while (pool->dialling > 0 || pool->waiting > 0 || pool->count > pool->idle_count)
        near__cond_wait(&pool->changed, &pool->lock, NEAR_NEVER);
    while (pool->idle_count > 0) {
        conn = lend_locked(pool);
        near__unlock(&pool->lock);
        drop_lent(pool, conn, true, false);
        near__lock(&pool->lock);
    }
    near__unlock(&pool->lock);
}

void
near__pool_free(struct near__pool **pool)
{
    struct near__pool *p = *pool;

    *pool = NULL;
    if (p == NULL)
        return;
    near__pool_stop(p);
    pthread_cond_destroy(&p->changed);
    near__lock_fini(&p->lock);
    free(p);
}

/* The lock may have been held by a thread that does not exist here, so it is made anew, not taken.  Lent
 * connections may have been in mid-change: only their descriptors are closed, their memory is left alone. */
void
near__pool_forked(struct near__pool *pool)
{
    near__lock_init(&pool->lock, NEAR__RANK_POOL);
    near__cond_init(&pool->changed);
    pool->closed = true;
    for (unsigned i = 0; i < pool->count; i++) {
        if (i < pool->idle_count)
            pool->ops->drop(pool->conns[i], false);
        else if (pool->ops->abandon != NULL && pool->conns[i] != NULL)
            pool->ops->abandon(pool->conns[i]);
    }
    pool->count = pool->idle_count = pool->dialling = pool->waiting = 0;
}
