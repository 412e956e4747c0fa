/*
 * The memcached: backend.
 *
 *     call -> router: which server has the key -> that server's pool -> one connection (memcached_conn.c)
 *
 * The router holds the list of servers and is never connected; it is not changed after open, so any thread
 * may ask it.  Every server has a pool of its own and every connection knows one server only: libmemcached
 * with several servers in one object reports a dead one's keys as missing (rule L6).  There is no ejection
 * and no failover (rule L10): a key's server is the same whatever happens, else a server that comes back
 * would bring old values back.
 *
 * A call over several servers serves them one after the other, those that failed lately last, and each gets
 * an equal part of the time that is left, so that one that is silent does not take the time of those that
 * would answer.
 *
 * memcached can do nothing atomically with a message, so nothing is announced.  Conditional writes compare
 * the stamp here, between `gets` and `cas` on one connection: the unique number of `gets` must not outlive
 * the connection, servers count anew after a restart (rule L15).
 *
 * A value over the server's item_size_max is refused before it is sent, and nothing changes.  Where the
 * server itself refuses it (the limit is a little below the setting) it has removed what was there before:
 * the old value is gone, which we make sure of (rule M2).
 */
#include "base/le.h"
#include "base/lock.h"
#include "l2/backend.h"
#include "l2/memcached_conn.h"
#include "l2/pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_KEY 250
/* A clock of whole seconds, the server's and ours out of step: a shorter lease may last a moment only. */
#define MIN_LEASE_MS 3000
#define TRIES        2 /* rule L11 */

struct server {
    struct near__memcached_server shared;
    struct near__pool            *pool;
    atomic_bool                   suspect; /* its last call failed: served last.  A hint, hence relaxed */
};

struct backend {
    const struct near_l2_env      *env;
    struct near__memcached_router *router;
    struct near__memcached_guard  *guard;
    bool                           forked;

    struct near__lock lock; /* covers the next two */
    pthread_cond_t    idle;
    bool              closed;
    size_t            calls;

    size_t        server_count;
    struct server servers[];
};

/* One call's items of one server. */
struct part {
    struct backend      *backend;
    struct server       *server;
    struct near_l2_item *items[NEAR_L2_BATCH];
    size_t               n;
    int64_t              deadline;
    near_l2_deliver_fn   deliver;
    void                *ctx;
    enum near_l2_mode    mode;
};

/* ----------------------------------------------------------------------------------------------- answers */

static void
answer(struct near_l2_item *item, enum near_l2_answer what, near_status status)
{
    item->answer = what;
    item->status = status;
}

static void
part_fails(struct part *part, near_status status)
{
    for (size_t i = 0; i < part->n; i++) {
        if (part->items[i]->answer == NEAR_L2_NOT_TRIED)
            answer(part->items[i], NEAR_L2_ERROR, status);
    }
}

/* ------------------------------------------------------------------------------------------- connections */

static near_status
pool_dial(void *ctx, void **conn, int64_t deadline, near_error *error)
{
    struct server               *server = ctx;
    struct near__memcached_conn *made   = NULL;
    near_status                  st     = near__memcached_dial(&made, &server->shared, deadline, error);

    *conn = made;
    return st;
}

static bool
pool_usable(void *conn)
{
    return near__memcached_usable(conn);
}

static void
pool_drop(void *conn, bool goodbye)
{
    near__memcached_drop(conn, goodbye);
}

static void
pool_abandon(void *conn)
{
    near__memcached_abandon(conn);
}

static const struct near__pool_ops pool_ops = { pool_dial, pool_usable, pool_drop, pool_abandon };

/* The connection, or the part's remaining items are answered. */
static struct near__memcached_conn *
take(struct part *part)
{
    near_error  error = { 0 };
    void       *conn  = NULL;
    near_status st    = near__pool_take(part->server->pool, &conn, part->deadline, &error);

    if (st == NEAR_OK)
        return conn;
    part_fails(part, st);
    if (st != NEAR_ERR_CLOSED &&
        !atomic_exchange_explicit(&part->server->suspect, true, memory_order_relaxed))
        near__log(part->backend->env->log, NEAR_LOG_WARN, "%s", error.text);
    return NULL;
}

static void
give(struct part *part, struct near__memcached_conn *conn)
{
    bool broken = near__memcached_broken(conn);

    atomic_store_explicit(&part->server->suspect, broken, memory_order_relaxed);
    near__pool_give(part->server->pool, conn, !broken);
}

/* --------------------------------------------------------------------------------------------- placement */

typedef void (*serve_fn)(struct part *part);

struct work {
    struct near_l2_item *items;
    size_t               n;
    int64_t              deadline;
    serve_fn             serve;
    uint8_t              homes[NEAR_L2_BATCH]; /* the server of each item */
};

/* Serve the servers in `todo`, one bit each. */
static void
serve_these(struct part *part, const struct work *work, uint64_t todo)
{
    struct backend *b = part->backend;

    for (size_t s = 0; s < b->server_count; s++) {
        int64_t now = near__now(b->env->clock);
        if ((todo >> s & 1) == 0 || now >= work->deadline)
            continue;
        part->server   = &b->servers[s];
        part->deadline = now + (work->deadline - now) / __builtin_popcountll(todo);
        part->n        = 0;
        for (size_t i = 0; i < work->n; i++) {
            if (work->homes[i] == s && work->items[i].answer == NEAR_L2_NOT_TRIED)
                part->items[part->n++] = &work->items[i];
        }
        todo &= ~(UINT64_C(1) << s);
        work->serve(part);
    }
}

static uint64_t
suspects(const struct backend *b)
{
    uint64_t set = 0;

    for (size_t s = 0; s < b->server_count; s++)
        set |= (uint64_t)atomic_load_explicit(&b->servers[s].suspect, memory_order_relaxed) << s;
    return set;
}

/* Divide the items among their servers.  A key that no memcached can take is refused here (rule L4), whoever
 * asked. */
static void
serve_all(struct part *part, struct near_l2_item *items, size_t n, int64_t deadline, serve_fn serve)
{
    struct work work = { .items = items, .n = n, .deadline = deadline, .serve = serve };
    uint64_t    todo = 0, last = suspects(part->backend);

    _Static_assert(NEAR__URI_ADDRESSES <= 64, "one bit for each server");
    for (size_t i = 0; i < n; i++) {
        answer(&items[i], NEAR_L2_NOT_TRIED, NEAR_OK);
        if (!near__memcached_key_is_fit(items[i].key)) {
            answer(&items[i], NEAR_L2_ERROR, NEAR_ERR_INVALID);
            continue;
        }
        work.homes[i] = (uint8_t)near__memcached_route(part->backend->router, items[i].key);
        todo |= UINT64_C(1) << work.homes[i];
    }
    serve_these(part, &work, todo & ~last);
    serve_these(part, &work, todo & last);
}

/* ----------------------------------------------------------------------------------------- life of calls */

static bool
call_begin(struct backend *b, struct near_l2_item *items, size_t n)
{
    bool open;

    near__lock(&b->lock);
    open = !b->closed;
    b->calls += open;
    near__unlock(&b->lock);
    if (!open)
        near__l2_answer_all(items, n, NEAR_L2_ERROR, NEAR_ERR_CLOSED);
    return open;
}

static void
call_end(struct backend *b)
{
    near__lock(&b->lock);
    if (--b->calls == 0)
        pthread_cond_broadcast(&b->idle);
    near__unlock(&b->lock);
}

/* ----------------------------------------------------------------------------------------------- reading */

/* What one `gets` asked for.  Servers answer in the order asked, so looking on from the last one found is
 * enough; a proxy that answers in another order costs a walk around. */
struct asked {
    struct part         *part;
    struct near_l2_item *items[NEAR__MEMCACHED_KEYS];
    size_t               n, next;
};

static struct near_l2_item *
find_asked(struct asked *asked, near_bytes key)
{
    for (size_t i = 0; i < asked->n; i++) {
        struct near_l2_item *item = asked->items[(asked->next + i) % asked->n];
        if (item->answer == NEAR_L2_NOT_TRIED && near__bytes_equal(item->key, key)) {
            asked->next += i + 1;
            return item;
        }
    }
    return NULL;
}

/* A key that was not asked for: the replies have slipped (rule L3). */
static bool
found_value(void *ctx, near_bytes key, near_bytes value, uint64_t unique)
{
    struct asked        *asked = ctx;
    struct part         *part  = asked->part;
    struct near_l2_item *item  = find_asked(asked, key);

    (void)unique;
    if (item == NULL)
        return false;
    if (value.size > part->backend->env->max_stored) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
        return true;
    }
    answer(item, NEAR_L2_DONE, NEAR_OK);
    part->deliver(part->ctx, item, value);
    return true;
}

static size_t
choose_next(struct part *part, size_t from, struct asked *asked, near_bytes *keys)
{
    asked->part = part;
    asked->n = asked->next = 0;
    for (; from < part->n && asked->n < NEAR__MEMCACHED_KEYS; from++) {
        if (part->items[from]->answer != NEAR_L2_NOT_TRIED)
            continue;
        keys[asked->n]           = part->items[from]->key;
        asked->items[asked->n++] = part->items[from];
    }
    return from;
}

/* Ask for everything not answered yet.  Whether all was answered, or time is over. */
static bool
get_through(struct part *part, struct near__memcached_conn *conn)
{
    struct asked              asked;
    near_bytes                keys[NEAR__MEMCACHED_KEYS];
    enum near__memcached_word word;

    for (size_t at = 0;;) {
        at = choose_next(part, at, &asked, keys);
        if (asked.n == 0)
            return true;
        word = near__memcached_gets(conn, keys, asked.n, found_value, &asked, part->deadline);
        if (word == NEAR__MEMCACHED_NOT_SENT && near__memcached_status(conn) == NEAR_ERR_CLOSED)
            part_fails(part, NEAR_ERR_CLOSED);
        if (word == NEAR__MEMCACHED_NOT_SENT)
            return !near__memcached_broken(conn); /* by the answer before this one */
        if (word != NEAR__MEMCACHED_DONE)
            return false;
        for (size_t i = 0; i < asked.n; i++) {
            if (asked.items[i]->answer == NEAR_L2_NOT_TRIED)
                answer(asked.items[i], NEAR_L2_ABSENT,
                       NEAR_OK); /* the server has come to its END without it */
        }
    }
}

static void
serve_get(struct part *part)
{
    for (int try = 1;; try++) {
        struct near__memcached_conn *conn = take(part);
        near_status                  why;
        bool                         again;

        if (conn == NULL)
            return;
        if (get_through(part, conn)) {
            give(part, conn);
            return;
        }
        again = try < TRIES && near__memcached_lost(conn);
        why   = near__memcached_status(conn);
        give(part, conn);
        if (again)
            continue;
        part_fails(part, why);
        return;
    }
}

static void
memcached_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_deliver_fn deliver, void *ctx,
                   int64_t deadline)
{
    struct backend *b = self;
    struct part     part;

    if (!near__l2_valid_get(items, n) || !call_begin(b, items, n))
        return;
    part.backend = b;
    part.deliver = deliver;
    part.ctx     = ctx;
    serve_all(&part, items, n, deadline, serve_get);
    call_end(b);
}

/* ----------------------------------------------------------------------------------------------- writing */

/* What a `gets` before a `cas` has found. */
struct current {
    near_bytes key;
    uint64_t   expected;
    uint64_t   unique; /* 0: not there, or another stamp */
    bool       seen;
};

static bool
found_current(void *ctx, near_bytes key, near_bytes value, uint64_t unique)
{
    struct current *current = ctx;
    const uint8_t  *at      = value.data;

    if (current->seen || !near__bytes_equal(key, current->key) || unique == 0)
        return false;
    current->seen = true;
    if (value.size >= NEAR_L2_STAMP_AT + 8 && near__le64_get(at + NEAR_L2_STAMP_AT) == current->expected)
        current->unique = unique;
    return true;
}

static const near_bytes nothing = { "", 0 };

/* Write (or with `value` nothing and `exptime` long gone: remove) only over the stamp expected. */
static enum near__memcached_word
write_over_stamp(struct part *part, struct near__memcached_conn *conn, const struct near_l2_item *item,
                 near_bytes value, int64_t exptime, bool *sent)
{
    struct current            current = { item->key, item->expected, 0, false };
    enum near__memcached_word word =
        near__memcached_gets(conn, &item->key, 1, found_current, &current, part->deadline);

    if (word != NEAR__MEMCACHED_DONE)
        return word;
    if (current.unique == 0)
        return NEAR__MEMCACHED_NO;
    word  = near__memcached_store(conn, NEAR__MEMCACHED_CAS, item->key, value, exptime, current.unique,
                                  part->deadline);
    *sent = word != NEAR__MEMCACHED_NOT_SENT;
    return word;
}

/* Over our limit, or for certain over the server's, which is known since the dial at the latest. */
static bool
is_oversize(const struct part *part, const struct near_l2_item *item)
{
    size_t max = atomic_load_explicit(&part->server->shared.item_max, memory_order_relaxed);

    return item->value.size > part->backend->env->max_stored ||
           (max > 0 && item->value.size + item->key.size > max);
}

static enum near__memcached_word
set_once(struct part *part, struct near__memcached_conn *conn, struct near_l2_item *item, bool *sent)
{
    int64_t exptime = near__memcached_exptime(item->ttl_ms, near__wall_ms(part->backend->env->clock));
    enum near__memcached_word word;

    if (is_oversize(part, item))
        return NEAR__MEMCACHED_TOO_LARGE;
    if (part->mode == NEAR_L2_IF_STAMP)
        return write_over_stamp(part, conn, item, item->value, exptime, sent);
    word =
        near__memcached_store(conn, part->mode == NEAR_L2_ALWAYS ? NEAR__MEMCACHED_SET : NEAR__MEMCACHED_ADD,
                              item->key, item->value, exptime, 0, part->deadline);
    *sent |= word != NEAR__MEMCACHED_NOT_SENT;
    if (word == NEAR__MEMCACHED_TOO_LARGE && part->mode == NEAR_L2_ALWAYS)
        near__memcached_delete(conn, item->key, part->deadline); /* gone by now; this is to be sure of it */
    return word;
}

static enum near__memcached_word
remove_once(struct part *part, struct near__memcached_conn *conn, struct near_l2_item *item, bool *sent)
{
    enum near__memcached_word word;

    if (part->mode == NEAR_L2_IF_STAMP)
        return write_over_stamp(part, conn, item, nothing, NEAR__MEMCACHED_EXPIRED, sent);
    word = near__memcached_delete(conn, item->key, part->deadline);
    *sent |= word != NEAR__MEMCACHED_NOT_SENT;
    return word == NEAR__MEMCACHED_NO ? NEAR__MEMCACHED_DONE : word; /* was not there: is gone */
}

typedef enum near__memcached_word (*once_fn)(struct part *part, struct near__memcached_conn *conn,
                                             struct near_l2_item *item, bool *sent);

/* `sent`: by this try or the one before, `before`: by the one before.  A refusal speaks for its own try. */
static void
answer_write(struct near_l2_item *item, const struct near__memcached_conn *conn,
             enum near__memcached_word word, bool sent, bool before)
{
    enum near_l2_answer refused = before ? NEAR_L2_UNKNOWN : NEAR_L2_ERROR;

    switch (word) {
    case NEAR__MEMCACHED_DONE:
        answer(item, NEAR_L2_DONE, NEAR_OK);
        break;
    case NEAR__MEMCACHED_NO:
        answer(item, NEAR_L2_ABSENT, NEAR_OK);
        break;
    case NEAR__MEMCACHED_TOO_LARGE:
        answer(item, refused, NEAR_ERR_TOO_LARGE);
        break;
    case NEAR__MEMCACHED_REFUSED:
        answer(item, refused, near__memcached_status(conn));
        break;
    case NEAR__MEMCACHED_NOT_SENT:
        if (sent) /* by a try before this one */
            answer(item, NEAR_L2_UNKNOWN, near__memcached_status(conn));
        else if (near__memcached_broken(conn) || near__memcached_status(conn) == NEAR_ERR_CLOSED)
            answer(item, NEAR_L2_ERROR, near__memcached_status(conn));
        break; /* else it stays NOT_TRIED: the time was over */
    case NEAR__MEMCACHED_BROKEN:
        answer(item, sent ? NEAR_L2_UNKNOWN : NEAR_L2_ERROR, near__memcached_status(conn));
        break;
    }
}

/* Whether a write whose connection was lost may be done once more: when nothing of it was sent, or when twice
 * is as good as once. */
static bool
may_repeat(const struct part *part, bool sent)
{
    return !sent || part->mode == NEAR_L2_ALWAYS;
}

/* One item.  `*conn` is NULL afterwards when it was dropped. */
static void
write_item(struct part *part, struct near__memcached_conn **conn, struct near_l2_item *item, once_fn once)
{
    bool sent  = false;
    bool again = true;

    for (int try = 1; again && *conn != NULL; try++) {
        bool                      before = sent;
        enum near__memcached_word word   = once(part, *conn, item, &sent);

        answer_write(item, *conn, word, sent, before);
        again = word == NEAR__MEMCACHED_BROKEN && near__memcached_lost(*conn) && try < TRIES &&
                may_repeat(part, sent);
        if (near__memcached_broken(*conn)) {
            give(part, *conn);
            *conn = again ? take(part) : NULL;
        }
    }
}

static void
write_part(struct part *part, once_fn once)
{
    struct near__memcached_conn *conn = NULL;

    for (size_t i = 0; i < part->n; i++) {
        if (conn == NULL)
            conn = take(part);
        if (conn == NULL)
            return; /* all that is left has been answered */
        write_item(part, &conn, part->items[i], once);
    }
    if (conn != NULL)
        give(part, conn);
}

static void
serve_set(struct part *part)
{
    write_part(part, set_once);
}

static void
serve_remove(struct part *part)
{
    write_part(part, remove_once);
}

static void
write_many(struct backend *b, enum near_l2_mode mode, struct near_l2_item *items, size_t n, int64_t deadline,
           serve_fn serve)
{
    struct part part;

    if (!call_begin(b, items, n))
        return;
    part.backend = b;
    part.mode    = mode;
    serve_all(&part, items, n, deadline, serve);
    call_end(b);
}

static void
memcached_set_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                   struct near_l2_announce *announce, int64_t deadline)
{
    if (announce != NULL)
        announce->stream = 0; /* certainly not sent: the traits say so */
    if (near__l2_valid_set(mode, items, n, announce))
        write_many(self, mode, items, n, deadline, serve_set);
}

static void
memcached_remove_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                      struct near_l2_announce *announce, int64_t deadline)
{
    if (announce != NULL)
        announce->stream = 0; /* certainly not sent: the traits say so */
    if (near__l2_valid_remove(mode, items, n, announce))
        write_many(self, mode, items, n, deadline, serve_remove);
}

/* ------------------------------------------------------------------------------------------------ seeing */

static bool
found_anything(void *ctx, near_bytes key, near_bytes value, uint64_t unique)
{
    (void)ctx;
    (void)key;
    (void)value;
    (void)unique;
    return true;
}

static near_status
server_health(struct server *server, int64_t deadline, char *version, size_t size, near_error *error)
{
    void       *conn = NULL;
    near_status st   = near__pool_take(server->pool, &conn, deadline, error);
    near_bytes  key  = { "-", 1 };

    if (st != NEAR_OK)
        return st;
    near__memcached_version(conn, version, size);
    /* an idle connection says nothing about the server of this moment */
    if (near__memcached_gets(conn, &key, 1, found_anything, NULL, deadline) != NEAR__MEMCACHED_DONE)
        st = near__fail(error, near__memcached_status(conn), "%s: does not answer", server->shared.name);
    near__pool_give(server->pool, conn, !near__memcached_broken(conn));
    return st;
}

static near_status
memcached_health(void *self, char *text, size_t size, int64_t deadline, near_error *error)
{
    struct backend *b           = self;
    char            version[32] = "";
    near_status     st          = NEAR_OK;

    if (!call_begin(b, NULL, 0))
        return near__fail(error, NEAR_ERR_CLOSED, "memcached: closed");
    for (size_t s = 0; st == NEAR_OK && s < b->server_count; s++)
        st = server_health(&b->servers[s], deadline, version, sizeof(version), error);
    call_end(b);
    if (st == NEAR_OK)
        snprintf(text, size, "memcached %s, %zu server%s, item_size_max %zu", version, b->server_count,
                 b->server_count == 1 ? "" : "s",
                 atomic_load_explicit(&b->servers[0].shared.item_max, memory_order_relaxed));
    return st;
}

static void
memcached_stats(void *self, struct near_l2_stats *stats)
{
    struct backend *b = self;

    *stats = (struct near_l2_stats){ 0, 0 };
    for (size_t s = 0; s < b->server_count; s++) {
        stats->connects += near__pool_connects(b->servers[s].pool);
        stats->disconnects += near__pool_disconnects(b->servers[s].pool);
    }
}

/* ------------------------------------------------------------------------------------------ life and end */

static void
memcached_close(void *self)
{
    struct backend *b = self;

    near__lock(&b->lock);
    b->closed = true;
    near__unlock(&b->lock);
    for (size_t s = 0; s < b->server_count; s++)
        near__pool_close(b->servers[s].pool);
    near__memcached_guard_close(b->guard);
}

static void
memcached_stop(void *self)
{
    struct backend *b = self;

    memcached_close(b);
    near__lock(&b->lock);
    while (b->calls > 0)
        near__cond_wait(&b->idle, &b->lock, NEAR_NEVER);
    near__unlock(&b->lock);
    for (size_t s = 0; s < b->server_count; s++)
        near__pool_stop(b->servers[s].pool);
}

/* Accepts half-built ones. */
static void
memcached_fini(void *self)
{
    struct backend *b = self;

    if (b == NULL)
        return;
    for (size_t s = 0; s < b->server_count; s++)
        near__pool_free(&b->servers[s].pool);
    near__memcached_guard_free(&b->guard);
    near__memcached_router_free(&b->router);
    if (!b->forked) {
        pthread_cond_destroy(&b->idle);
        near__lock_fini(&b->lock);
    }
    free(b);
}

static void
memcached_forked(void *self)
{
    struct backend *b = self;

    b->forked = true;
    b->closed = true;
    b->calls  = 0; /* those calls' threads are not here */
    near__lock_init(&b->lock, NEAR__RANK_LEAF);
    near__memcached_guard_forked(b->guard);
    for (size_t s = 0; s < b->server_count; s++)
        near__pool_forked(b->servers[s].pool);
}

static near_status
make_server(struct backend *b, size_t s)
{
    struct server *server = &b->servers[s];
    char           where[sizeof(b->env->uri->addresses[s].host) + 16];

    server->shared.address = &b->env->uri->addresses[s];
    server->shared.clock   = b->env->clock;
    server->shared.log     = b->env->log;
    server->shared.guard   = b->guard;
    near__address_display(server->shared.address, where, sizeof(where));
    snprintf(server->shared.name, sizeof(server->shared.name), "memcached %s", where);
    return near__pool_new(&server->pool, &pool_ops, server, b->env->pool_size, b->env->connect_timeout,
                          b->env->clock);
}

static near_status
memcached_open(void **self, const struct near_l2_env *env, struct near_l2_traits *traits, near_error *error)
{
    size_t          n = env->uri->address_count;
    struct backend *b;
    near_status     st;

    *self = NULL;
    if (env->max_stored == 0)
        return near__fail(error, NEAR_ERR_INVALID, "memcached: no room for a value (max_stored is 0)");
    b = calloc(1, sizeof(*b) + n * sizeof(b->servers[0]));
    if (b == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "memcached: out of memory");
    b->env = env;
    near__lock_init(&b->lock, NEAR__RANK_LEAF);
    near__cond_init(&b->idle);
    st = near__memcached_guard_new(&b->guard, env->clock);
    if (st == NEAR_OK)
        st = near__memcached_router_new(&b->router, env->uri);
    for (; st == NEAR_OK && b->server_count < n; b->server_count += st == NEAR_OK)
        st = make_server(b, b->server_count);
    if (st != NEAR_OK) {
        memcached_fini(b);
        return near__fail(error, st, "memcached: %s",
                          st == NEAR_ERR_NOMEM ? "out of memory" : "bad settings");
    }
    *traits = (struct near_l2_traits){
        .shared       = true,
        .announces    = false,
        .binary_keys  = false,
        .max_key      = MAX_KEY,
        .max_value    = 0, /* the server's setting, known once it was reached */
        .min_lease_ms = MIN_LEASE_MS,
    };
    *self = b;
    return NEAR_OK;
}

#define MEMCACHED_OPS(name)                                                                                  \
    {                                                                                                        \
        .version = NEAR_L2_OPS_V1, .scheme = name, .open = memcached_open, .get_many = memcached_get_many,   \
        .set_many = memcached_set_many, .remove_many = memcached_remove_many, .health = memcached_health,    \
        .stats = memcached_stats, .close = memcached_close, .stop = memcached_stop, .fini = memcached_fini,  \
        .forked = memcached_forked,                                                                          \
    }

const struct near_l2_ops near__l2_memcached      = MEMCACHED_OPS("memcached");
const struct near_l2_ops near__l2_memcached_unix = MEMCACHED_OPS("memcached+unix");
