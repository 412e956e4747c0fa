/*
 * The Redis backend: one server, a pool of connections, one connection per call.
 *
 *     get      GET, or MGETs of at most `mget` keys so that no reply is unbounded
 *     set      pipelined SET [NX] [PX]; under a stamp a constant script by EVALSHA; with an announcement
 *              MULTI ... PUBLISH EXEC
 *     remove   one UNLINK of all keys; under a stamp a script; with an announcement inside MULTI,
 *              or in a script where the server is out of memory
 *
 * Everything about one call is in its `struct batch`, on the caller's stack; `struct redis` never changes
 * after open but for the count of calls in flight, which its lock covers: stop() waits until it is 0.  A
 * connection belongs to one call.
 *
 * What can never happen: "absent" without the server's word for it; ERROR for a write that may have been
 * executed (an item is refused, or its command did not leave in full, or it is UNKNOWN); a connection in
 * use again after a doubt (rule H6).
 */
#include "base/le.h"
#include "base/lock.h"
#include "l2/backend.h"
#include "l2/pool.h"
#include "l2/redis_conn.h"
#include "l2/transport.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define MAX_VALUE  ((size_t)512 * 1024 * 1024) /* the server's proto-max-bulk-len */
#define MAX_STORED ((size_t)511 * 1024 * 1024) /* leaves room for the command around it (rule H4) */
#define MAX_KEY    ((size_t)128 * 1024)
#define MAX_TTL_MS                                                                                           \
    INT64_C(3153600000000) /* a century: more would overflow in the server, "invalid expire time" */
#define MGET_BYTES   ((size_t)64 * 1024 * 1024) /* the most one reply may hold: MGETs are cut by it */
#define ITEM_FRAMING 64                         /* what RESP and a handshake add to a reply, generously */
#define WINDOW_BYTES ((size_t)1024 * 1024)      /* commands formatted ahead of an exchange (rule H18) */

struct redis {
    const struct near_l2_env *env;
    struct near__redis_server server;
    struct near__pool        *pool;
    size_t                    max_stored;
    size_t                    mget;      /* keys per MGET */
    int                       cancel_fd; /* eventfd: readable once closed.  -1 in a forked child */
    char                      name[300];

    struct near__lock lock;
    pthread_cond_t    idle; /* no call is in flight any more */
    unsigned          calls;
};

enum verb { VERB_GET, VERB_SET, VERB_REMOVE };

/* One call under way. */
struct batch {
    struct redis            *r;
    enum verb                verb;
    enum near_l2_mode        mode;
    struct near_l2_item     *items;
    size_t                   n;
    near_l2_deliver_fn       deliver;
    void                    *ctx;
    struct near_l2_announce *announce;

    uint16_t todo[NEAR_L2_BATCH]; /* the items that can be sent; the others are answered already */
    size_t   todo_count;
    uint16_t window[NEAR_L2_BATCH]; /* the items of the commands queued now */
    size_t   window_count, window_bytes;

    bool touched;  /* something may have been executed: not to be tried again */
    bool nonsense; /* a reply that no command of ours can have: those behind it are not believed either */
    bool drop;     /* a reply says that this connection is no good any more */
    bool noscript; /* some items wait for EVAL */
    bool eval;     /* the pass with EVAL is running */
    near_status refused;  /* the first error reply's class */
    char        word[64]; /* what may be shown of it */

    /* a transaction's replies so far */
    size_t position;
    bool   collecting; /* MULTI was accepted */
    bool   direct;     /* a command was executed outside of the transaction: MULTI had been refused */
    bool   executed;   /* EXEC answered with the outcomes */
    bool   published;
};

/* Compare the stamp (8 bytes at 8, so an entry of fewer than 16 bytes never matches), then act.  Constant
 * texts: the server keeps them by their SHA-1.  ARGV: stamp, and for set: value, ttl in ms or 0. */
static const struct script {
    const char *sha, *text;
} set_script    = { "199fba27b7dde6a4643bc2471aab5ed7358b22b0",
                    "if redis.call('GETRANGE', KEYS[1], 8, 15) ~= ARGV[1] then return 0 end "
                       "if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2]) "
                       "else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end return 1" },
  remove_script = { "618a3994cfdc607807dc3e260eea7389c4a09a89",
                    "if redis.call('GETRANGE', KEYS[1], 8, 15) ~= ARGV[1] then return 0 end "
                    "return redis.call('UNLINK', KEYS[1])" };

/* ---------------------------------------------------------------------------------------------- answers */

static void
answer(struct near_l2_item *item, enum near_l2_answer what, near_status status)
{
    item->answer = what;
    item->status = status;
}

static void
note_refusal(struct batch *b, const redisReply *reply)
{
    b->drop |= near__redis_error_drops(reply);
    if (b->refused != NEAR_OK)
        return;
    b->refused = near__redis_error_class(reply);
    near__redis_error_word(reply, b->word, sizeof(b->word));
}

/* Why something was not done that the server has answered. */
static near_status
refusal(const struct batch *b)
{
    return b->refused != NEAR_OK ? b->refused : NEAR_ERR_PROTOCOL;
}

static void
answer_refused(struct batch *b, struct near_l2_item *item, const redisReply *reply)
{
    note_refusal(b, reply);
    answer(item, NEAR_L2_ERROR, near__redis_error_class(reply));
}

/* A reply of a kind that this command cannot have: in doubt, the connection goes. */
static void
answer_nonsense(struct batch *b, struct near_l2_item *item)
{
    b->drop = b->nonsense = true;
    answer(item, b->verb == VERB_GET ? NEAR_L2_ERROR : NEAR_L2_UNKNOWN, NEAR_ERR_PROTOCOL);
}

static bool
is_status(const redisReply *reply, const char *text)
{
    return reply->type == REDIS_REPLY_STATUS && strcmp(reply->str, text) == 0;
}

/* Answer what cannot be sent, list the rest. */
static void
sift(struct batch *b)
{
    size_t most = b->verb == VERB_SET ? b->r->max_stored : 0;

    for (size_t i = 0; i < b->n; i++) {
        struct near_l2_item *item = &b->items[i];
        item->status              = NEAR_OK;
        if (item->key.size > MAX_KEY || (b->verb == VERB_SET && item->value.size > most)) {
            answer(item, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
            continue;
        }
        item->answer             = NEAR_L2_NOT_TRIED;
        b->todo[b->todo_count++] = (uint16_t)i;
    }
}

/* ------------------------------------------------------------------------------- one call, one connection */

typedef near_status (*work_fn)(struct batch *b, struct near__redis_conn *conn, int64_t deadline,
                               near_error *error);

static const char *
verb_name(const struct batch *b)
{
    static const char *const names[] = { "get", "set", "remove" };

    return names[b->verb];
}

static void
report(const struct batch *b, near_status status, const near_error *error)
{
    if (status != NEAR_OK && status != NEAR_ERR_CLOSED)
        near__log(b->r->env->log, NEAR_LOG_WARN, "l2 %s", error->text);
    else if (b->refused != NEAR_OK)
        near__log(b->r->env->log, NEAR_LOG_WARN, "l2 %s: %s refused: %s", b->r->name, verb_name(b), b->word);
}

/* Take a connection, work, give it back.  An idle connection may turn out to be dead only when it is used:
 * then once more, on another, if certainly nothing was executed. */
static near_status
attempt(struct batch *b, work_fn work, int64_t deadline, bool *again)
{
    near_error  error = { 0 };
    void       *conn;
    near_status status = near__pool_take(b->r->pool, &conn, deadline, &error);

    *again = false;
    if (status == NEAR_OK) {
        status = work(b, conn, deadline, &error);
        near__pool_give(b->r->pool, conn, status == NEAR_OK && !b->drop);
        *again = status == NEAR_ERR_UNAVAILABLE && !b->touched;
    }
    if (!*again)
        report(b, status, &error);
    return status;
}

static void
enter(struct redis *r)
{
    near__lock(&r->lock);
    r->calls++;
    near__unlock(&r->lock);
}

static void
leave(struct redis *r)
{
    near__lock(&r->lock);
    if (--r->calls == 0)
        pthread_cond_broadcast(&r->idle);
    near__unlock(&r->lock);
}

static void
converse(struct batch *b, work_fn work, int64_t deadline)
{
    near_status status = NEAR_ERR_TIMEOUT;
    bool        again;

    if (b->todo_count == 0)
        return;
    enter(b->r);
    if (near__now(b->r->env->clock) < deadline) {
        status = attempt(b, work, deadline, &again);
        if (again)
            status = attempt(b, work, deadline, &again);
    }
    leave(b->r);
    near__l2_answer_rest(b->items, b->n, status != NEAR_OK ? status : NEAR_ERR_PROTOCOL);
}

static bool
valid_call(struct near_l2_item *items, size_t n, bool possible)
{
    if (n >= 1 && n <= NEAR_L2_BATCH && possible)
        return true;
    near__l2_answer_all(items, n, NEAR_L2_ERROR, NEAR_ERR_INVALID);
    return false;
}

/* ------------------------------------------------------------------------------------------------- get */

static void
take_value(struct batch *b, struct near_l2_item *item, const redisReply *reply)
{
    if (b->nonsense) {
        answer_nonsense(b, item);
    } else if (reply->type == REDIS_REPLY_NIL) {
        answer(item, NEAR_L2_ABSENT, NEAR_OK);
    } else if (reply->type == REDIS_REPLY_ERROR) {
        answer_refused(b, item, reply);
    } else if (reply->type != REDIS_REPLY_STRING) {
        answer_nonsense(b, item);
    } else if (reply->len > b->r->max_stored) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
    } else {
        answer(item, NEAR_L2_DONE, NEAR_OK);
        b->deliver(b->ctx, item, (near_bytes){ reply->str, reply->len });
    }
}

static void
get_reply(void *ctx, size_t index, redisReply *reply)
{
    struct batch *b     = ctx;
    size_t        first = index * b->r->mget;
    size_t        count = b->todo_count - first < b->r->mget ? b->todo_count - first : b->r->mget;
    bool          many  = reply->type == REDIS_REPLY_ARRAY && count > 1 && reply->elements == count;

    for (size_t i = 0; i < count; i++) {
        struct near_l2_item *item = &b->items[b->todo[first + i]];

        if (many)
            take_value(b, item, reply->element[i]);
        else if (count == 1 || reply->type == REDIS_REPLY_ERROR)
            take_value(b, item, reply);
        else
            answer_nonsense(b, item);
    }
}

static near_status
queue_gets(struct batch *b, struct near__redis_conn *conn)
{
    near_bytes argv[1 + NEAR_L2_BATCH];

    for (size_t at = 0; at < b->todo_count;) {
        size_t      argc = 1;
        near_status status;

        while (at < b->todo_count && argc <= b->r->mget)
            argv[argc++] = b->items[b->todo[at++]].key;
        argv[0] = near_key(argc == 2 ? "GET" : "MGET");
        status  = near__redis_append(conn, argc, argv);
        if (status != NEAR_OK)
            return status;
    }
    return NEAR_OK;
}

static near_status
get_work(struct batch *b, struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    size_t      answered = 0;
    near_status status   = queue_gets(b, conn);

    if (status != NEAR_OK)
        return near__fail(error, status, "%s: get: %s", b->r->name, near_status_text(status));
    status = near__redis_exchange(conn, get_reply, b, &answered, NULL, deadline, error);
    b->touched |= answered > 0;
    return status;
}

static void
redis_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_deliver_fn deliver, void *ctx,
               int64_t deadline)
{
    struct batch b = { .r = self, .verb = VERB_GET, .items = items, .n = n, .deliver = deliver, .ctx = ctx };

    if (!valid_call(items, n, true))
        return;
    sift(&b);
    converse(&b, get_work, deadline);
}

/* --------------------------------------------------------------------------- writes, one command per item */

/* A command's arguments and the numbers in them. */
struct args {
    near_bytes argv[8];
    size_t     argc;
    char       ttl[24];
    uint8_t    stamp[8];
};

static void
arg(struct args *a, near_bytes bytes)
{
    a->argv[a->argc++] = bytes;
}

static near_bytes
ttl_text(struct args *a, int64_t ttl_ms)
{
    if (ttl_ms < 0)
        ttl_ms = 1; /* 0 would mean for ever */
    if (ttl_ms > MAX_TTL_MS)
        ttl_ms = MAX_TTL_MS;
    snprintf(a->ttl, sizeof(a->ttl), "%lld", (long long)ttl_ms);
    return near_key(a->ttl);
}

static void
set_args(struct args *a, const struct near_l2_item *item, bool if_absent)
{
    arg(a, near_key("SET"));
    arg(a, item->key);
    arg(a, item->value);
    if (if_absent)
        arg(a, near_key("NX"));
    if (item->ttl_ms == 0)
        return; /* PX 0 is an error (rule R2) */
    arg(a, near_key("PX"));
    arg(a, ttl_text(a, item->ttl_ms));
}

static void
script_args(struct args *a, const struct batch *b, const struct near_l2_item *item)
{
    const struct script *script = b->verb == VERB_SET ? &set_script : &remove_script;

    near__le64_put(a->stamp, item->expected);
    arg(a, near_key(b->eval ? "EVAL" : "EVALSHA"));
    arg(a, near_key(b->eval ? script->text : script->sha));
    arg(a, near_key("1"));
    arg(a, item->key);
    arg(a, (near_bytes){ a->stamp, sizeof(a->stamp) });
    if (b->verb == VERB_REMOVE)
        return;
    arg(a, item->value);
    arg(a, ttl_text(a, item->ttl_ms));
}

static near_status
queue_write(const struct batch *b, struct near__redis_conn *conn, const struct near_l2_item *item)
{
    struct args a;

    a.argc = 0;
    if (b->mode == NEAR_L2_IF_STAMP)
        script_args(&a, b, item);
    else
        set_args(&a, item, b->mode == NEAR_L2_IF_ABSENT);
    return near__redis_append(conn, a.argc, a.argv);
}

static bool
is_noscript(const redisReply *reply)
{
    return reply->len >= 8 && memcmp(reply->str, "NOSCRIPT", 8) == 0;
}

static void
write_reply(void *ctx, size_t index, redisReply *reply)
{
    struct batch        *b    = ctx;
    struct near_l2_item *item = &b->items[b->window[index]];

    if (b->nonsense)
        answer_nonsense(b, item);
    else if (reply->type == REDIS_REPLY_ERROR && is_noscript(reply) && !b->eval)
        b->noscript = true; /* not executed: left for the pass with EVAL (rule R5) */
    else if (reply->type == REDIS_REPLY_ERROR)
        answer_refused(b, item, reply);
    else if (b->mode == NEAR_L2_IF_STAMP && reply->type == REDIS_REPLY_INTEGER)
        answer(item, reply->integer > 0 ? NEAR_L2_DONE : NEAR_L2_ABSENT, NEAR_OK);
    else if (b->mode != NEAR_L2_IF_STAMP && is_status(reply, "OK"))
        answer(item, NEAR_L2_DONE, NEAR_OK);
    else if (b->mode == NEAR_L2_IF_ABSENT && reply->type == REDIS_REPLY_NIL)
        answer(item, NEAR_L2_ABSENT, NEAR_OK);
    else
        answer_nonsense(b, item);
}

/* Send the window and read its replies.  Of those without one, the commands that left in full may have
 * been executed. */
static near_status
flush_window(struct batch *b, struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    size_t      answered = 0;
    bool        sent_any = false;
    near_status status   = near__redis_exchange(conn, write_reply, b, &answered, &sent_any, deadline, error);

    b->touched |= sent_any;
    for (size_t i = answered; status != NEAR_OK && i < near__redis_sent(conn); i++)
        answer(&b->items[b->window[i]], NEAR_L2_UNKNOWN, status);
    b->window_count = b->window_bytes = 0;
    if (status == NEAR_OK && b->drop) /* nothing more on this connection */
        return near__fail(error, refusal(b), "%s: %s refused: %s", b->r->name, verb_name(b),
                          b->refused != NEAR_OK ? b->word : "a reply that makes no sense");
    return status;
}

static near_status
write_pass(struct batch *b, struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    near_status status = NEAR_OK;

    for (size_t i = 0; i < b->todo_count && status == NEAR_OK; i++) {
        struct near_l2_item *item = &b->items[b->todo[i]];

        if (item->answer != NEAR_L2_NOT_TRIED)
            continue;
        status = queue_write(b, conn, item);
        if (status != NEAR_OK)
            return near__fail(error, status, "%s: %s: %s", b->r->name, verb_name(b),
                              near_status_text(status));
        b->window[b->window_count++] = b->todo[i];
        b->window_bytes += item->key.size + item->value.size;
        if (b->window_bytes >= WINDOW_BYTES)
            status = flush_window(b, conn, deadline, error);
    }
    if (status == NEAR_OK && b->window_count > 0)
        status = flush_window(b, conn, deadline, error);
    return status;
}

static near_status
write_work(struct batch *b, struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    near_status status;

    b->window_count = b->window_bytes = 0;
    b->eval = b->noscript = false;
    status                = write_pass(b, conn, deadline, error);
    if (status != NEAR_OK || !b->noscript)
        return status;
    b->eval = true;
    return write_pass(b, conn, deadline, error);
}

/* ------------------------------------------------------------------------------------- one UNLINK for all */

static near_status
queue_unlink(const struct batch *b, struct near__redis_conn *conn)
{
    near_bytes argv[1 + NEAR_L2_BATCH];

    argv[0] = near_key("UNLINK"); /* rule R3 */
    for (size_t i = 0; i < b->todo_count; i++)
        argv[1 + i] = b->items[b->todo[i]].key;
    return near__redis_append(conn, 1 + b->todo_count, argv);
}

static void
answer_todo(struct batch *b, enum near_l2_answer what, near_status status)
{
    for (size_t i = 0; i < b->todo_count; i++)
        answer(&b->items[b->todo[i]], what, status);
}

static void
unlink_reply(void *ctx, size_t index, redisReply *reply)
{
    struct batch *b = ctx;

    (void)index;
    for (size_t i = 0; i < b->todo_count; i++) {
        struct near_l2_item *item = &b->items[b->todo[i]];

        if (reply->type == REDIS_REPLY_INTEGER)
            answer(item, NEAR_L2_DONE, NEAR_OK);
        else if (reply->type == REDIS_REPLY_ERROR)
            answer_refused(b, item, reply);
        else
            answer_nonsense(b, item);
    }
}

static near_status
unlink_work(struct batch *b, struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    size_t      answered = 0;
    bool        sent_any = false;
    near_status status   = queue_unlink(b, conn);

    if (status != NEAR_OK)
        return near__fail(error, status, "%s: remove: %s", b->r->name, near_status_text(status));
    status = near__redis_exchange(conn, unlink_reply, b, &answered, &sent_any, deadline, error);
    b->touched |= sent_any;
    if (status != NEAR_OK && answered == 0 && near__redis_sent(conn) > 0)
        answer_todo(b, NEAR_L2_UNKNOWN, status);
    return status;
}

/* ------------------------------------------------------------------------ write and announce: all or nothing
 *
 *     MULTI   SET ... SET | UNLINK   PUBLISH   EXEC
 *
 * Nothing is executed before EXEC, so whatever goes wrong before EXEC has left in full is a certain "not
 * done", and the message's number is given back when the server has refused the transaction: receivers see
 * no gap for it. */

/* The outcomes in EXEC's reply: one per write, then PUBLISH's. */
static void
take_outcomes(struct batch *b, const redisReply *reply)
{
    const redisReply *publish = reply->element[reply->elements - 1];

    if (b->verb == VERB_REMOVE) {
        unlink_reply(b, 0, reply->element[0]);
    } else {
        for (size_t i = 0; i < b->todo_count; i++) {
            b->window[0] = b->todo[i];
            write_reply(b, 0, reply->element[i]);
        }
    }
    b->executed  = true;
    b->published = publish->type == REDIS_REPLY_INTEGER;
    if (publish->type == REDIS_REPLY_ERROR)
        note_refusal(b, publish);
}

static void
transaction_reply(void *ctx, size_t index, redisReply *reply)
{
    struct batch *b      = ctx;
    size_t        writes = b->verb == VERB_REMOVE ? 1 : b->todo_count;
    size_t        at     = b->position++;

    (void)index;
    if (reply->type == REDIS_REPLY_ERROR) {
        note_refusal(b, reply);
        /* EXECABORT ends the transaction; after any other refusal of EXEC the server may be collecting still */
        if (at == writes + 2 && strncmp(reply->str, "EXECABORT", 9) != 0)
            b->drop = true;
    } else if (at == 0)
        b->collecting = is_status(reply, "OK");
    else if (at == writes + 2 && reply->type == REDIS_REPLY_ARRAY && reply->elements == writes + 1)
        take_outcomes(b, reply);
    else if (at == writes + 2 || !is_status(reply, "QUEUED"))
        b->direct = true;
}

static near_status
transaction_exchange(struct batch *b, struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    bool        sent_any = false;
    near_status status   = near__redis_exchange(conn, transaction_reply, b, NULL, &sent_any, deadline, error);

    b->touched |= sent_any;
    b->window_bytes = 0;
    return status;
}

/* MULTI and the writes.  What does not fit a window is sent ahead; the server only collects it. */
static near_status
queue_transaction(struct batch *b, struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    near_bytes  multi  = near_key("MULTI");
    near_status status = near__redis_append(conn, 1, &multi);

    if (status == NEAR_OK && b->verb == VERB_REMOVE)
        return queue_unlink(b, conn);
    for (size_t i = 0; i < b->todo_count && status == NEAR_OK; i++) {
        const struct near_l2_item *item = &b->items[b->todo[i]];

        status = queue_write(b, conn, item);
        b->window_bytes += item->key.size + item->value.size;
        if (status == NEAR_OK && b->window_bytes >= WINDOW_BYTES)
            status = transaction_exchange(b, conn, deadline, error);
    }
    return status;
}

static near_status
queue_announcement(const struct near_l2_announce *announce, struct near__redis_conn *conn)
{
    near_bytes publish[3] = { near_key("PUBLISH"), announce->channel, { announce->message, announce->size } };
    near_bytes exec       = near_key("EXEC");
    near_status status;

    near__redis_conn_stamp(conn, announce->message + announce->stamp_at);
    status = near__redis_append(conn, 3, publish);
    return status != NEAR_OK ? status : near__redis_append(conn, 1, &exec);
}

/* Something may have been executed, or may be yet: EXEC left without an answer, or MULTI was not (or not
 * known to be) accepted. */
static bool
in_doubt(const struct batch *b, const struct near__redis_conn *conn, near_status status, bool exec_left)
{
    size_t harmless = b->position == 0 ? 1 : 0; /* MULTI itself, if this window began with it */

    if (b->direct)
        return true;
    return status != NEAR_OK && (exec_left || (!b->collecting && near__redis_sent(conn) > harmless));
}

static void
settle(struct batch *b, struct near__redis_conn *conn, near_status status, bool exec_left)
{
    if (b->executed && b->published) {
        b->announce->stream = near__redis_conn_stream(conn);
    } else if (b->executed) { /* written, but nobody was told: let the caller take it for the worst */
        answer_todo(b, NEAR_L2_UNKNOWN, refusal(b));
        b->drop = true;
    } else if (in_doubt(b, conn, status, exec_left)) {
        answer_todo(b, NEAR_L2_UNKNOWN, status != NEAR_OK ? status : refusal(b));
        b->announce->stream = near__redis_conn_stream(conn);
        b->drop             = true;
    } else if (status == NEAR_OK) {
        answer_todo(b, NEAR_L2_ERROR, refusal(b));
        near__redis_conn_unstamp(conn);
    } /* else: EXEC did not leave and the connection is gone: converse() answers */
}

static void
script_reply(void *ctx, size_t index, redisReply *reply)
{
    struct batch *b = ctx;

    (void)index;
    if (reply->type == REDIS_REPLY_ERROR)
        note_refusal(b, reply);
    if (reply->type != REDIS_REPLY_INTEGER) {
        b->direct = true; /* it may have failed between the two */
        return;
    }
    answer_todo(b, NEAR_L2_DONE, NEAR_OK);
    b->executed = b->published = true;
}

static near_status
queue_remove_script(const struct batch *b, struct near__redis_conn *conn)
{
    const struct near_l2_announce *announce = b->announce;
    near_bytes                     argv[5 + NEAR_L2_BATCH];
    char                           count[8];
    size_t                         argc = 0;

    near__redis_conn_stamp(conn, announce->message + announce->stamp_at);
    snprintf(count, sizeof(count), "%u", (unsigned)b->todo_count);
    argv[argc++] = near_key("EVAL");
    argv[argc++] = near_key("local n = redis.call('UNLINK', unpack(KEYS)) "
                            "redis.call('PUBLISH', ARGV[1], ARGV[2]) return n");
    argv[argc++] = near_key(count);
    for (size_t i = 0; i < b->todo_count; i++)
        argv[argc++] = b->items[b->todo[i]].key;
    argv[argc++] = announce->channel;
    argv[argc++] = (near_bytes){ announce->message, announce->size };
    return near__redis_append(conn, argc, argv);
}

/* At its memory's limit Redis 7.0 refuses every command inside MULTI, removals and messages as well, but
 * not in a script.  And a removal must be possible then: it is what a failed write is turned into. */
static near_status
remove_by_script(struct batch *b, struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    near_status status;

    b->refused = NEAR_OK;
    answer_todo(b, NEAR_L2_NOT_TRIED, NEAR_OK);
    status = queue_remove_script(b, conn);
    if (status != NEAR_OK)
        return near__fail(error, status, "%s: remove: %s", b->r->name, near_status_text(status));
    status = near__redis_exchange(conn, script_reply, b, NULL, NULL, deadline, error);
    settle(b, conn, status, near__redis_sent(conn) == 1);
    return status;
}

static near_status
transaction_work(struct batch *b, struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    size_t      queued;
    near_status status;

    b->window_bytes = b->position = 0;
    status                        = queue_transaction(b, conn, deadline, error);
    if (status == NEAR_OK)
        status = queue_announcement(b->announce, conn);
    if (status != NEAR_OK) {
        settle(b, conn, status, false);
        return error->text[0] != '\0' ? status
                                      : near__fail(error, status, "%s: %s: %s", b->r->name, verb_name(b),
                                                   near_status_text(status));
    }
    queued = near__redis_queued(conn);
    status = transaction_exchange(b, conn, deadline, error);
    settle(b, conn, status, near__redis_sent(conn) == queued);
    if (status == NEAR_OK && !b->executed && !b->direct && b->verb == VERB_REMOVE &&
        strcmp(b->word, "OOM") == 0)
        status = remove_by_script(b, conn, deadline, error);
    return status;
}

/* An announced call is done as a whole or not at all, hence not even tried when one item cannot be sent. */
static void
announce_all(struct batch *b, int64_t deadline)
{
    b->announce->stream = 0;
    if (b->todo_count == b->n)
        converse(b, transaction_work, deadline);
    else
        near__l2_answer_all(b->items, b->n, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
}

static void
redis_set_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
               struct near_l2_announce *announce, int64_t deadline)
{
    struct batch b = {
        .r = self, .verb = VERB_SET, .mode = mode, .items = items, .n = n, .announce = announce
    };

    if (!valid_call(items, n, announce == NULL || mode == NEAR_L2_ALWAYS))
        return;
    sift(&b);
    if (announce != NULL)
        announce_all(&b, deadline);
    else
        converse(&b, write_work, deadline);
}

static void
redis_remove_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                  struct near_l2_announce *announce, int64_t deadline)
{
    struct batch b = {
        .r = self, .verb = VERB_REMOVE, .mode = mode, .items = items, .n = n, .announce = announce
    };

    if (!valid_call(items, n, mode == NEAR_L2_ALWAYS || (mode == NEAR_L2_IF_STAMP && announce == NULL)))
        return;
    sift(&b);
    if (announce != NULL)
        announce_all(&b, deadline);
    else
        converse(&b, mode == NEAR_L2_IF_STAMP ? write_work : unlink_work, deadline);
}

/* ---------------------------------------------------------------------------------------------- health */

struct health {
    near_status status;
    char        word[64];
    char        version[32], maxmemory[32], policy[32];
};

/* The value of `field` in the text of an INFO reply, when it is there and short. */
static void
info_field(const redisReply *reply, const char *field, char *out, size_t size)
{
    const char *at = strstr(reply->str, field);
    size_t      n;

    if (at == NULL || (at != reply->str && at[-1] != '\n'))
        return;
    at += strlen(field);
    n = strcspn(at, "\r\n");
    if (n < size)
        snprintf(out, size, "%.*s", (int)n, at);
}

static void
health_reply(void *ctx, size_t index, redisReply *reply)
{
    struct health *h = ctx;

    if (reply->type == REDIS_REPLY_ERROR && h->word[0] == '\0')
        near__redis_error_word(reply, h->word, sizeof(h->word));
    if (index == 0 && reply->type == REDIS_REPLY_ERROR)
        h->status = near__redis_error_class(reply);
    else if (index == 0 && !is_status(reply, "PONG"))
        h->status = NEAR_ERR_PROTOCOL;
    if (index == 0 || reply->type != REDIS_REPLY_STRING)
        return;
    info_field(reply, "redis_version:", h->version, sizeof(h->version));
    info_field(reply, "maxmemory:", h->maxmemory, sizeof(h->maxmemory));
    info_field(reply, "maxmemory_policy:", h->policy, sizeof(h->policy));
}

static near_status
ask_health(struct near__redis_conn *conn, struct health *h, int64_t deadline, near_error *error)
{
    near_bytes  ping    = near_key("PING");
    near_bytes  info[2] = { near_key("INFO"), near_key("server") };
    near_status status  = near__redis_append(conn, 1, &ping);

    if (status == NEAR_OK)
        status = near__redis_append(conn, 2, info);
    info[1] = near_key("memory"); /* several sections in one INFO: only since 7.0 */
    if (status == NEAR_OK)
        status = near__redis_append(conn, 2, info);
    if (status != NEAR_OK)
        return near__fail(error, status, "redis: %s", near_status_text(status));
    return near__redis_exchange(conn, health_reply, h, NULL, NULL, deadline, error);
}

static near_status
redis_health(void *self, char *text, size_t size, int64_t deadline, near_error *error)
{
    struct redis *r      = self;
    struct health h      = { .version = "unknown", .maxmemory = "unknown", .policy = "policy unknown" };
    near_error    reason = { 0 };
    void         *conn;
    near_status   status;

    enter(r);
    status = near__pool_take(r->pool, &conn, deadline, &reason);
    if (status == NEAR_OK) {
        status = ask_health(conn, &h, deadline, &reason);
        if (status == NEAR_OK && h.status != NEAR_OK)
            status = near__fail(&reason, h.status, "%s: PING refused: %s", r->name, h.word);
        near__pool_give(r->pool, conn, status == NEAR_OK);
    }
    leave(r);
    if (size > 0)
        text[0] = '\0';
    if (status != NEAR_OK)
        return near__fail(error, status, "%s", reason.text);
    if (h.word[0] != '\0')
        snprintf(text, size, "redis, answers; INFO refused: %s", h.word);
    else
        snprintf(text, size, "redis %s, maxmemory %s, %s", h.version, h.maxmemory, h.policy);
    return NEAR_OK;
}

static void
redis_stats(void *self, struct near_l2_stats *stats)
{
    struct redis *r = self;

    stats->connects    = near__pool_connects(r->pool);
    stats->disconnects = near__pool_disconnects(r->pool);
}

/* ------------------------------------------------------------------------------------------ birth and end */

static near_status
pool_dial(void *ctx, void **conn, int64_t deadline, near_error *error)
{
    struct redis            *r = ctx;
    struct near__redis_conn *c;
    near_status              status = near__redis_dial(&c, &r->server, deadline, error);

    *conn = c;
    return status;
}

static bool
pool_usable(void *conn)
{
    return near__redis_conn_usable(conn);
}

/* Redis wants no goodbye. */
static void
pool_drop(void *conn, bool goodbye)
{
    struct near__redis_conn *c = conn;

    (void)goodbye;
    near__redis_conn_free(&c);
}

static void
pool_abandon(void *conn)
{
    near__redis_conn_abandon(conn);
}

static const struct near__pool_ops pool_ops = { pool_dial, pool_usable, pool_drop, pool_abandon };

static void
redis_fini(void *self)
{
    struct redis *r = self;

    if (r == NULL)
        return;
    near__pool_free(&r->pool);
    if (r->cancel_fd >= 0)
        close(r->cancel_fd);
    pthread_cond_destroy(&r->idle);
    near__lock_fini(&r->lock);
    free(r);
}

static near_status
check_settings(const struct near_l2_env *env, near_error *error)
{
    const struct near__address *address = &env->uri->addresses[0];

    if (env->uri->layout != NEAR__LAYOUT_SENTINEL && env->uri->address_count != 1)
        return near__fail(error, NEAR_ERR_INVALID, "redis: %zu addresses given, exactly one is possible",
                          env->uri->address_count);
    if (address->port == 0 && strlen(address->host) > NEAR__UNIX_PATH)
        return near__fail(error, NEAR_ERR_INVALID,
                          "redis: the socket's path has %zu bytes, at most %d are possible",
                          strlen(address->host), NEAR__UNIX_PATH);
    if (env->pool_size == 0)
        return near__fail(error, NEAR_ERR_INVALID, "redis: a pool of 0 connections; at least 1 is needed");
    return NEAR_OK;
}

static void
set_limits(struct redis *r)
{
    size_t most = r->env->max_stored;

    r->max_stored = most == 0 || most > MAX_STORED ? MAX_STORED : most;
    r->mget       = MGET_BYTES / (r->max_stored + ITEM_FRAMING);
    if (r->mget < 1)
        r->mget = 1;
    if (r->mget > NEAR_L2_BATCH)
        r->mget = NEAR_L2_BATCH;
}

static near_status
redis_open(void **self, const struct near_l2_env *env, struct near_l2_traits *traits, near_error *error)
{
    near_status   status = check_settings(env, error);
    struct redis *r;

    *self = NULL;
    if (status != NEAR_OK)
        return status;
    r = calloc(1, sizeof(*r));
    if (r == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "redis: out of memory");
    near__lock_init(&r->lock, NEAR__RANK_LEAF);
    near__cond_init(&r->idle);
    r->env       = env;
    r->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    near__uri_display(env->uri, r->name, sizeof(r->name));
    set_limits(r);
    r->server =
        (struct near__redis_server){ .uri         = env->uri,
                                     .access      = env->access,
                                     .clock       = env->clock,
                                     .client_name = env->client_name,
                                     .max_reply   = r->mget * (r->max_stored + ITEM_FRAMING) + 64 * 1024,
                                     .cancel_fd   = &r->cancel_fd };
    status = r->cancel_fd < 0
                 ? NEAR_ERR_NOMEM
                 : near__pool_new(&r->pool, &pool_ops, r, env->pool_size, env->connect_timeout, env->clock);
    if (status != NEAR_OK) {
        redis_fini(r);
        return near__fail(error, status, "redis: no memory or descriptors to open");
    }
    *traits = (struct near_l2_traits){ .shared       = true,
                                       .announces    = true,
                                       .binary_keys  = true,
                                       .max_key      = MAX_KEY,
                                       .max_value    = MAX_VALUE,
                                       .min_lease_ms = 1 };
    *self   = r;
    return NEAR_OK;
}

static void
redis_close(void *self)
{
    struct redis  *r   = self;
    const uint64_t one = 1;

    near__pool_close(r->pool);
    if (r->cancel_fd >= 0 && write(r->cancel_fd, &one, sizeof(one)) < 0)
        return; /* EAGAIN: it is readable already */
}

static void
redis_stop(void *self)
{
    struct redis *r = self;

    redis_close(self); /* without it calls might keep coming */
    near__lock(&r->lock);
    while (r->calls > 0)
        near__cond_wait(&r->idle, &r->lock, NEAR_NEVER);
    near__unlock(&r->lock);
    near__pool_stop(r->pool);
}

/* The eventfd is shared with the parent: writing to it here would cancel the parent's calls. */
static void
redis_forked(void *self)
{
    struct redis *r = self;

    near__lock_init(&r->lock, NEAR__RANK_LEAF); /* a thread that does not exist here may have held it */
    near__cond_init(&r->idle);
    r->calls = 0;
    near__pool_forked(r->pool);
    if (r->cancel_fd >= 0)
        close(r->cancel_fd);
    r->cancel_fd = -1;
}

#define REDIS_OPS(name)                                                                                      \
    {                                                                                                        \
        .version = NEAR_L2_OPS_V1, .scheme = (name), .open = redis_open, .get_many = redis_get_many,         \
        .set_many = redis_set_many, .remove_many = redis_remove_many, .health = redis_health,                \
        .stats = redis_stats, .close = redis_close, .stop = redis_stop, .fini = redis_fini,                  \
        .forked = redis_forked                                                                               \
    }

const struct near_l2_ops near__l2_redis           = REDIS_OPS("redis");
const struct near_l2_ops near__l2_rediss          = REDIS_OPS("rediss");
const struct near_l2_ops near__l2_redis_unix      = REDIS_OPS("redis+unix");
const struct near_l2_ops near__l2_redis_sentinel  = REDIS_OPS("redis-sentinel");
const struct near_l2_ops near__l2_rediss_sentinel = REDIS_OPS("rediss-sentinel");
