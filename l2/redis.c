/*
 * The Redis backend: one server (or the one that Sentinels name), behind lanes that all callers share.
 *
 *     get      one read of all keys: MGETs, packed together with other callers' reads
 *     set      pipelined SET [NX] [PX]; under a stamp a constant script by EVALSHA; with an announcement
 *              MULTI ... PUBLISH EXEC, where what never expires goes as one MSET
 *     increment  a constant script by EVALSHA
 *     remove   one UNLINK of all keys; under a stamp a script; with an announcement inside MULTI,
 *              or in a script where the server is out of memory
 *     hashes   pipelined HMGETs; HSETs as sets, under a time to live by a script
 *
 * Everything about one call is in its `struct batch`, on the caller's stack, and in the calls that it makes of
 * the server, which are its own again when they are answered; one that was given up is not looked at any more.
 * `struct redis` never changes after open, but for a hint.
 *
 * What can never happen: "absent" without the server's word for it; ERROR for a write that may have been
 * executed (an item is refused, or its command did not leave in full, or it is UNKNOWN).
 */
#include "base/event.h"
#include "base/le.h"
#include "l2/backend.h"
#include "l2/redis_node.h"
#include "l2/redis_ops.h"
#include "l2/redis_sweep.h"
#include "l2/transport.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW_BYTES ((size_t)1024 * 1024) /* commands formatted ahead (rule H18) */
#define AT_ONCE      ((size_t)128 * 1024)  /* values taken before more is received */

struct redis {
    const struct near_l2_env *env;
    struct near__redis_node  *node;
    size_t                    max_stored;
    unsigned                  mget;      /* keys per MGET, fields per HMGET */
    int                       cancel_fd; /* event: raised once closed.  -1 in a forked child */
    _Atomic bool no_mset; /* it was refused: relaxed, for whoever does not see it yet is refused as well */
    char         name[300];
};

/* One call under way. */
struct batch {
    struct redis            *r;
    enum near__redis_verb    verb;
    enum near_l2_mode        mode;
    struct near_l2_item     *items;
    size_t                   n;
    near_l2_deliver_fn       deliver;
    void                    *ctx;
    struct near_l2_announce *announce;
    int64_t                  deadline;

    uint16_t todo[NEAR_L2_READS]; /* the items that can be sent; the others are answered already */
    size_t   todo_count;
    uint16_t window[NEAR_L2_BATCH]; /* the items of the commands in the call under way */
    size_t   window_count, window_bytes;

    struct near__redis_call *call;     /* under way; NULL: there is none, or the lane kept it */
    size_t                   taken;    /* reads: replies of it that were delivered */
    near_status              ended;    /* why this batch cannot go on */
    bool                     quiet;    /* which has been said in the log */
    bool                     drop;     /* a reply says that this server is no good any more */
    bool                     noscript; /* some items wait for EVAL */
    bool                     eval;     /* the pass with EVAL is running */
    near_status              refused;  /* the first error reply's class */
    char                     word[64]; /* what may be shown of it */

    bool mset;   /* the writes of the transaction are one MSET */
    bool denied; /* which this server does not allow, by the word of its refusal */

    /* a transaction's replies so far */
    bool collecting; /* MULTI was accepted */
    bool direct;     /* a command was executed outside of the transaction: MULTI had been refused */
    bool executed;   /* EXEC answered with the outcomes */
    bool published;
};

/* ---------------------------------------------------------------------------------------------- answers */

static void
note_refusal(struct batch *b, const struct near__redis_reply *reply)
{
    b->drop |= near__redis_reply_drops(reply);
    if (b->refused != NEAR_OK)
        return;
    b->refused = near__redis_reply_class(reply);
    near__redis_reply_word(reply, b->word, sizeof(b->word));
}

/* Why something was not done that the server has answered. */
static near_status
refusal(const struct batch *b)
{
    return b->refused != NEAR_OK ? b->refused : NEAR_ERR_PROTOCOL;
}

static void
answer_refused(struct batch *b, struct near_l2_item *item, const struct near__redis_reply *reply)
{
    note_refusal(b, reply);
    near__redis_answer(item, NEAR_L2_ERROR, near__redis_reply_class(reply));
}

static bool
is_status(const struct near__redis_reply *reply, const char *text)
{
    return reply->type == REDIS_REPLY_STATUS && strcmp(reply->text, text) == 0;
}

/* Not the arrays: they are filled as far as they are used. */
static void
batch_init(struct batch *b, struct redis *r, enum near__redis_verb verb, struct near_l2_item *items, size_t n,
           int64_t deadline)
{
    memset(b, 0, offsetof(struct batch, todo));
    memset(&b->call, 0, sizeof(*b) - offsetof(struct batch, call));
    b->todo_count = b->window_count = b->window_bytes = 0;
    b->r                                              = r;
    b->verb                                           = verb;
    b->items                                          = items;
    b->n                                              = n;
    b->deadline                                       = deadline;
}

/* Answer what cannot be sent, list the rest. */
static void
sift(struct batch *b)
{
    for (size_t i = 0; i < b->n; i++) {
        struct near_l2_item *item = &b->items[i];
        item->status              = NEAR_OK;
        if (!near__redis_fits(b->verb, item, b->r->max_stored)) {
            near__redis_answer(item, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
            continue;
        }
        item->answer             = NEAR_L2_NOT_TRIED;
        b->todo[b->todo_count++] = (uint16_t)i;
    }
}

static void
answer_todo(struct batch *b, enum near_l2_answer what, near_status status)
{
    for (size_t i = 0; i < b->todo_count; i++)
        near__redis_answer(&b->items[b->todo[i]], what, status);
}

/* -------------------------------------------------------------------------------------- calls of the server */

/* What happened to the call under way: replies it has, commands that left in full, and what is the matter. */
struct fate {
    enum near__lane_outcome outcome;
    near_status             status;
    size_t                  replies, left;
};

/* This batch is over, for a reason that nobody has heard of yet. */
static void
end(struct batch *b, near_status status, const char *text)
{
    b->ended = status;
    if (text != NULL && !b->quiet && status != NEAR_ERR_CLOSED)
        near__log(b->r->env->log, NEAR_LOG_WARN, "l2 %s", text);
}

static void
end_here(struct batch *b, near_status status)
{
    char text[400];

    snprintf(text, sizeof(text), "%s: %s: %s", b->r->name, near__redis_verb_name(b->verb),
             near_status_text(status));
    end(b, status, text);
}

static bool
call_begin(struct batch *b)
{
    b->call = near__redis_call_new(b->r->node, 0);
    if (b->call == NULL)
        end_here(b, NEAR_ERR_NOMEM);
    return b->call != NULL;
}

static void
call_end(struct batch *b)
{
    near__redis_call_free(b->call);
    b->call = NULL;
}

static struct fate
call_run(struct batch *b, void (*came)(struct near__lane_ask *))
{
    struct near__lane_ask ask = near__redis_ask(b->call);
    near_error            error;
    struct fate           fate;

    ask.came = came;
    ask.ctx  = b;
    near__lanes_run(&ask, 1, b->deadline, &error);
    fate = (struct fate){ .outcome = ask.outcome, .status = ask.status };
    if (ask.call == NULL)
        b->call = NULL;
    if (ask.outcome == NEAR__LANE_ANSWERED || ask.outcome == NEAR__LANE_LOST)
        fate.replies = near__redis_call_replies(b->call);
    if (ask.outcome == NEAR__LANE_ANSWERED)
        fate.left = near__redis_call_commands(b->call);
    else if (ask.outcome == NEAR__LANE_LOST)
        fate.left = near__redis_call_left(b->call);
    if (ask.status != NEAR_OK) {
        b->quiet |= ask.refused;
        end(b, ask.status, error.text);
    }
    return fate;
}

/* What is not answered has certainly not been done. */
static void
finish(struct batch *b)
{
    call_end(b);
    if (b->refused != NEAR_OK)
        near__log(b->r->env->log, NEAR_LOG_WARN, "l2 %s: %s refused: %s", b->r->name,
                  near__redis_verb_name(b->verb), b->word);
    near__l2_answer_rest(b->items, b->n, b->ended != NEAR_OK ? b->ended : refusal(b));
}

/* ------------------------------------------------------------------------------------------------- get */

static void
take_value(struct batch *b, struct near_l2_item *item, const struct near__redis_reply *reply)
{
    if (reply->type == REDIS_REPLY_NIL) {
        near__redis_answer(item, NEAR_L2_ABSENT, NEAR_OK);
    } else if (reply->type == REDIS_REPLY_ERROR) {
        answer_refused(b, item, reply);
    } else if (reply->size > b->r->max_stored) {
        near__redis_answer(item, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
    } else {
        near__redis_answer(item, NEAR_L2_DONE, NEAR_OK);
        b->deliver(b->ctx, item, (near_bytes){ reply->text, reply->size });
    }
}

/* Those that were delivered stay so when their connection is lost and all are asked again. */
static void
take_values(struct batch *b, size_t replies)
{
    for (; b->taken < replies; b->taken++)
        take_value(b, &b->items[b->todo[b->taken]], near__redis_call_reply(b->call, b->taken));
}

static void
values_came(struct near__lane_ask *ask)
{
    struct batch *b       = ask->ctx;
    size_t        replies = near__redis_call_replies(b->call), until = b->taken, bytes = 0;

    for (; until < replies && bytes < AT_ONCE; until++) {
        const struct near__redis_reply *reply = near__redis_call_reply(b->call, until);

        if (reply->type == REDIS_REPLY_ERROR)
            break; /* if the connection is lost now, another may give a better answer */
        bytes += reply->size;
    }
    take_values(b, until);
}

static void
redis_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_deliver_fn deliver, void *ctx,
               int64_t deadline)
{
    struct batch b;
    near_bytes   keys[NEAR_L2_READS];
    near_status  status;
    struct fate  fate;

    if (!near__l2_valid_get(items, n))
        return;
    batch_init(&b, self, NEAR__REDIS_GET, items, n, deadline);
    b.deliver = deliver;
    b.ctx     = ctx;
    sift(&b);
    if (b.todo_count == 0 || !call_begin(&b)) {
        finish(&b);
        return;
    }
    for (size_t i = 0; i < b.todo_count; i++)
        keys[i] = items[b.todo[i]].key;
    status = near__redis_call_get(b.call, keys, b.todo_count);
    if (status == NEAR_OK) {
        fate = call_run(&b, values_came);
        take_values(&b, fate.replies);
    } else {
        end_here(&b, status);
    }
    finish(&b);
}

/* The replies from *at on that are this item's, as far as they are there. */
static void
take_hash(struct batch *b, struct near_l2_item *item, size_t *at, size_t replies, near_l2_field_fn deliver)
{
    size_t parts = near__redis_parts(item, b->r->mget);

    for (size_t part = 0; part < parts && *at < replies; part++) {
        const struct near__redis_reply *reply = near__redis_call_reply(b->call, (*at)++);

        if (reply->type == REDIS_REPLY_ERROR)
            answer_refused(b, item, reply);
        else
            near__redis_take_fields(item, part, b->r->mget, reply, b->r->max_stored, deliver, b->ctx);
        if (part + 1 == parts && item->answer == NEAR_L2_NOT_TRIED)
            near__redis_answer(item, NEAR_L2_DONE, NEAR_OK);
    }
}

static void
redis_hash_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_field_fn deliver, void *ctx,
                    int64_t deadline)
{
    near_status  status = NEAR_OK;
    size_t       at     = 0;
    struct batch b;
    struct fate  fate;

    if (!near__l2_valid_hash_get(items, n))
        return;
    near__l2_forget_fields(items, n);
    batch_init(&b, self, NEAR__REDIS_HASH_GET, items, n, deadline);
    b.ctx = ctx;
    sift(&b);
    if (b.todo_count == 0 || !call_begin(&b)) {
        finish(&b);
        return;
    }
    for (size_t i = 0; i < b.todo_count && status == NEAR_OK; i++)
        status = near__redis_add_fields(b.call, &items[b.todo[i]], b.r->mget, false);
    near__redis_call_idempotent(b.call, true);
    if (status == NEAR_OK) {
        fate = call_run(&b, NULL);
        for (size_t i = 0; i < b.todo_count; i++)
            take_hash(&b, &items[b.todo[i]], &at, fate.replies, deliver);
    } else {
        end_here(&b, status);
    }
    finish(&b);
}

/* --------------------------------------------------------------------------- writes, one command per item */

static near_status
add_write(const struct batch *b, const struct near_l2_item *item)
{
    return near__redis_add(b->call, b->verb, b->mode, item, b->eval);
}

static void
expect_write(const struct batch *b)
{
    near__redis_call_expects(b->call, near__redis_kinds(b->verb, b->mode));
}

static void
write_reply(struct batch *b, struct near_l2_item *item, const struct near__redis_reply *reply)
{
    switch (near__redis_meaning(b->verb, b->mode, item, reply)) {
    case NEAR__REDIS_SAID:
        break;
    case NEAR__REDIS_NOSCRIPT:
        if (!b->eval) {
            b->noscript = true; /* not executed: left for the pass with EVAL (rule R5) */
            break;
        } /* fall through */
    case NEAR__REDIS_REFUSED:
        answer_refused(b, item, reply);
        break;
    default:
        near__redis_answer(item, NEAR_L2_UNKNOWN, NEAR_ERR_PROTOCOL);
        break;
    }
}

/* Send the window and read its replies.  Of those without one, the commands that left in full may have been
 * executed; all of them, when the call was given up. */
static void
flush_window(struct batch *b)
{
    struct fate fate = call_run(b, NULL);

    if (fate.outcome == NEAR__LANE_GIVEN_UP)
        fate.left = b->window_count;
    for (size_t i = 0; i < fate.replies; i++)
        write_reply(b, &b->items[b->window[i]], near__redis_call_reply(b->call, i));
    for (size_t i = fate.replies; i < fate.left; i++)
        near__redis_answer(&b->items[b->window[i]], NEAR_L2_UNKNOWN, fate.status);
    call_end(b);
    b->window_count = b->window_bytes = 0;
    if (b->ended == NEAR_OK && b->drop)
        b->ended = refusal(b); /* nothing more to this server */
}

static void
write_pass(struct batch *b)
{
    b->window_count = b->window_bytes = 0;
    for (size_t i = 0; i < b->todo_count && b->ended == NEAR_OK; i++) {
        struct near_l2_item *item = &b->items[b->todo[i]];
        near_status          status;

        if (item->answer != NEAR_L2_NOT_TRIED)
            continue;
        if (b->call == NULL && !call_begin(b))
            return;
        status = add_write(b, item);
        if (status != NEAR_OK) {
            end_here(b, status);
            return;
        }
        expect_write(b);
        b->window[b->window_count++] = b->todo[i];
        b->window_bytes += near__redis_bytes(b->verb, item);
        if (b->window_bytes >= WINDOW_BYTES)
            flush_window(b);
    }
    if (b->ended == NEAR_OK && b->window_count > 0)
        flush_window(b);
}

static void
write_all(struct batch *b)
{
    write_pass(b);
    if (b->ended == NEAR_OK && b->noscript) {
        b->eval = true;
        write_pass(b);
    }
    finish(b);
}

/* ------------------------------------------------------------------------------------- one UNLINK for all */

static near_status
add_unlink(const struct batch *b)
{
    near_bytes argv[1 + NEAR_L2_BATCH];

    argv[0] = near_key("UNLINK"); /* rule R3 */
    for (size_t i = 0; i < b->todo_count; i++)
        argv[1 + i] = b->items[b->todo[i]].key;
    return near__redis_call_add(b->call, 1 + b->todo_count, argv);
}

static void
unlink_reply(struct batch *b, const struct near__redis_reply *reply)
{
    if (reply->type == REDIS_REPLY_ERROR)
        note_refusal(b, reply);
    if (reply->type == REDIS_REPLY_INTEGER)
        answer_todo(b, NEAR_L2_DONE, NEAR_OK);
    else if (reply->type == REDIS_REPLY_ERROR)
        answer_todo(b, NEAR_L2_ERROR, near__redis_reply_class(reply));
    else
        answer_todo(b, NEAR_L2_UNKNOWN, NEAR_ERR_PROTOCOL);
}

static void
unlink_all(struct batch *b)
{
    struct fate fate;
    near_status status;

    if (b->todo_count == 0 || !call_begin(b)) {
        finish(b);
        return;
    }
    status = add_unlink(b);
    if (status != NEAR_OK) {
        end_here(b, status);
        finish(b);
        return;
    }
    near__redis_call_expects(b->call, NEAR__REDIS_KIND(REDIS_REPLY_INTEGER));
    fate = call_run(b, NULL);
    if (fate.replies > 0)
        unlink_reply(b, near__redis_call_reply(b->call, 0));
    else if (fate.left > 0 || fate.outcome == NEAR__LANE_GIVEN_UP)
        answer_todo(b, NEAR_L2_UNKNOWN, fate.status);
    finish(b);
}

/* ------------------------------------------------------------------------ write and announce: all or nothing
 *
 *     MULTI   SET ... SET | UNLINK   PUBLISH   EXEC
 *
 * Nothing is executed before EXEC, so whatever goes wrong before EXEC has left in full is a certain "not
 * done", and the message's number is given back when the server has refused the transaction. */

/* The outcomes in EXEC's reply: one per write, then PUBLISH's. */
static void
take_outcomes(struct batch *b, const struct near__redis_reply *reply)
{
    const struct near__redis_reply *publish = &reply->element[reply->elements - 1];

    if (b->verb == NEAR__REDIS_REMOVE)
        unlink_reply(b, &reply->element[0]);
    else
        for (size_t i = 0; i < b->todo_count; i++)
            write_reply(b, &b->items[b->todo[i]], &reply->element[b->mset ? 0 : i]);
    b->executed  = true;
    b->published = publish->type == REDIS_REPLY_INTEGER;
    if (publish->type == REDIS_REPLY_ERROR)
        note_refusal(b, publish);
}

/* Commands that write within the transaction. */
static size_t
writes_of(const struct batch *b)
{
    return b->verb == NEAR__REDIS_REMOVE || b->mset ? 1 : b->todo_count;
}

/* By an ACL that was written for SET; or it does not know MSET (renamed, a proxy's). */
static bool
denies_command(const struct near__redis_reply *reply)
{
    char word[16];

    near__redis_reply_word(reply, word, sizeof(word));
    return strcmp(word, "NOPERM") == 0 || strcmp(word, "ERR") == 0;
}

static void
transaction_reply(struct batch *b, size_t at, const struct near__redis_reply *reply)
{
    size_t writes = writes_of(b);

    if (reply->type == REDIS_REPLY_ERROR)
        b->denied |= at == 1 && b->mset && b->collecting && denies_command(reply);
    if (reply->type == REDIS_REPLY_ERROR)
        note_refusal(b, reply);
    else if (at == 0)
        b->collecting = is_status(reply, "OK");
    else if (at == writes + 2 && reply->type == REDIS_REPLY_ARRAY && reply->elements == writes + 1)
        take_outcomes(b, reply);
    else if (at == writes + 2 || !is_status(reply, "QUEUED"))
        b->direct = true;
}

/* Inside MULTI each SET costs the server half as much again: it is put aside, told "QUEUED", and taken up anew.  MSET is one command for
 * all, does the same and fails for the same reasons, but knows no time to live.  Large values cost more than that. */
static bool
may_mset(const struct batch *b)
{
    size_t bytes = 0;
    bool   may   = b->verb == NEAR__REDIS_SET && b->mode == NEAR_L2_ALWAYS && b->todo_count > 1 &&
               !atomic_load_explicit(&b->r->no_mset, memory_order_relaxed);

    for (size_t i = 0; i < b->todo_count && may; i++) {
        const struct near_l2_item *item = &b->items[b->todo[i]];

        bytes += item->key.size + item->value.size;
        may = item->ttl_ms == 0 && bytes < WINDOW_BYTES;
    }
    return may;
}

static near_status
add_mset(const struct batch *b)
{
    near_bytes argv[1 + 2 * NEAR_L2_BATCH];

    argv[0] = near_key("MSET");
    for (size_t i = 0; i < b->todo_count; i++) {
        argv[1 + 2 * i] = b->items[b->todo[i]].key;
        argv[2 + 2 * i] = b->items[b->todo[i]].value;
    }
    return near__redis_call_add(b->call, 1 + 2 * b->todo_count, argv);
}

static near_status
add_transaction(struct batch *b, struct near__redis_note **note)
{
    const struct near_l2_announce *announce = b->announce;
    near_bytes publish[3] = { near_key("PUBLISH"), announce->channel, { announce->message, announce->size } };
    near_bytes multi = near_key("MULTI"), exec = near_key("EXEC");
    near_status status = near__redis_call_add(b->call, 1, &multi);

    if (status == NEAR_OK && b->verb == NEAR__REDIS_REMOVE)
        status = add_unlink(b);
    else if (status == NEAR_OK && b->mset)
        status = add_mset(b);
    for (size_t i = 0; b->verb != NEAR__REDIS_REMOVE && !b->mset && i < b->todo_count && status == NEAR_OK;
         i++)
        status = add_write(b, &b->items[b->todo[i]]);
    if (status == NEAR_OK)
        status = near__redis_call_add(b->call, 3, publish);
    if (status == NEAR_OK)
        status = near__redis_call_stamped(b->call, announce->size, announce->stamp_at, note);
    return status == NEAR_OK ? near__redis_call_add(b->call, 1, &exec) : status;
}

/* Something may have been executed, or may be yet: EXEC left without an answer, or MULTI was not (or not
 * known to be) accepted. */
static bool
in_doubt(const struct batch *b, const struct fate *fate, size_t commands)
{
    size_t harmless = fate->replies == 0 ? 1 : 0; /* MULTI itself */

    if (b->direct || fate->outcome == NEAR__LANE_GIVEN_UP)
        return true;
    return fate->status != NEAR_OK && (fate->left == commands || (!b->collecting && fate->left > harmless));
}

static void
settle(struct batch *b, const struct fate *fate, size_t commands, uint64_t stream, uint64_t number)
{
    if (b->executed && b->published) {
        b->announce->stream = stream;
        near__le64_put(b->announce->message + b->announce->stamp_at, stream);
        near__le64_put(b->announce->message + b->announce->stamp_at + 8, number);
    } else if (b->executed) { /* written, but nobody was told: let the caller take it for the worst */
        answer_todo(b, NEAR_L2_UNKNOWN, refusal(b));
    } else if (in_doubt(b, fate, commands)) {
        answer_todo(b, NEAR_L2_UNKNOWN, fate->status != NEAR_OK ? fate->status : refusal(b));
        b->announce->stream = stream;
    } else if (fate->status == NEAR_OK) {
        answer_todo(b, NEAR_L2_ERROR, refusal(b));
    } /* else: EXEC did not leave and the connection is gone: finish() answers */
}

static void
script_reply(struct batch *b, const struct near__redis_reply *reply)
{
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
add_remove_script(struct batch *b, struct near__redis_note **note)
{
    const struct near_l2_announce *announce = b->announce;
    near_bytes                     argv[5 + NEAR_L2_BATCH];
    char                           count[8];
    size_t                         argc = 0;
    near_status                    status;

    snprintf(count, sizeof(count), "%u", (unsigned)b->todo_count);
    argv[argc++] = near_key("EVAL");
    argv[argc++] = near_key("local n = redis.call('UNLINK', unpack(KEYS)) "
                            "redis.call('PUBLISH', ARGV[1], ARGV[2]) return n");
    argv[argc++] = near_key(count);
    for (size_t i = 0; i < b->todo_count; i++)
        argv[argc++] = b->items[b->todo[i]].key;
    argv[argc++] = announce->channel;
    argv[argc++] = (near_bytes){ announce->message, announce->size };
    status       = near__redis_call_add(b->call, argc, argv);
    return status == NEAR_OK ? near__redis_call_stamped(b->call, announce->size, announce->stamp_at, note)
                             : status;
}

typedef near_status (*add_fn)(struct batch *b, struct near__redis_note **note);

static void
announced_call(struct batch *b, add_fn add, bool script)
{
    struct near__redis_note *note = NULL;
    size_t                   commands;
    struct fate              fate;
    near_status              status;
    uint64_t                 stream, number;

    if (!call_begin(b))
        return;
    status = add(b, &note);
    if (status != NEAR_OK) {
        end_here(b, status);
        call_end(b);
        if (note != NULL)
            near__redis_note_read(note, false, &number);
        return;
    }
    commands = near__redis_call_commands(b->call);
    fate     = call_run(b, NULL);
    for (size_t i = 0; i < fate.replies; i++) {
        if (script)
            script_reply(b, near__redis_call_reply(b->call, i));
        else
            transaction_reply(b, i, near__redis_call_reply(b->call, i));
    }
    call_end(b);
    stream = near__redis_note_read(note, fate.outcome == NEAR__LANE_GIVEN_UP, &number);
    settle(b, &fate, commands, stream, number);
}

/* At its memory's limit Redis 7.0 refuses every command inside MULTI, removals and messages as well, but
 * not in a script.  And a removal must be possible then: it is what a failed write is turned into. */
static void
remove_by_script(struct batch *b)
{
    b->refused = NEAR_OK;
    answer_todo(b, NEAR_L2_NOT_TRIED, NEAR_OK);
    announced_call(b, add_remove_script, true);
}

static void
set_one_by_one(struct batch *b)
{
    atomic_store_explicit(&b->r->no_mset, true, memory_order_relaxed);
    b->mset = b->denied = b->collecting = false;
    b->refused                          = NEAR_OK;
    b->word[0]                          = '\0';
    answer_todo(b, NEAR_L2_NOT_TRIED, NEAR_OK);
    announced_call(b, add_transaction, false);
}

/* An announced call is done as a whole or not at all, hence not even tried when one item cannot be sent. */
static void
announce_all(struct batch *b)
{
    b->announce->stream = 0;
    if (b->todo_count != b->n) {
        near__l2_answer_all(b->items, b->n, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
        return;
    }
    b->mset = may_mset(b);
    announced_call(b, add_transaction, false);
    if (b->denied && b->ended == NEAR_OK && !b->executed && !b->direct)
        set_one_by_one(b); /* nothing of it was executed */
    if (b->ended == NEAR_OK && !b->executed && !b->direct && b->verb == NEAR__REDIS_REMOVE &&
        strcmp(b->word, "OOM") == 0)
        remove_by_script(b);
    finish(b);
}

static void
redis_set_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
               struct near_l2_announce *announce, int64_t deadline)
{
    struct batch b;

    if (!near__l2_valid_set(mode, items, n, announce))
        return;
    batch_init(&b, self, NEAR__REDIS_SET, items, n, deadline);
    b.mode     = mode;
    b.announce = announce;
    sift(&b);
    if (announce != NULL)
        announce_all(&b);
    else
        write_all(&b);
}

static void
redis_remove_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                  struct near_l2_announce *announce, int64_t deadline)
{
    struct batch b;

    if (!near__l2_valid_remove(mode, items, n, announce))
        return;
    batch_init(&b, self, NEAR__REDIS_REMOVE, items, n, deadline);
    b.mode     = mode;
    b.announce = announce;
    sift(&b);
    if (announce != NULL)
        announce_all(&b);
    else if (mode == NEAR_L2_IF_STAMP)
        write_all(&b);
    else
        unlink_all(&b);
}

static void
redis_hash_set_many(void *self, struct near_l2_item *items, size_t n, struct near_l2_announce *announce,
                    int64_t deadline)
{
    struct batch b;

    if (!near__l2_valid_hash_set(items, n))
        return;
    batch_init(&b, self, NEAR__REDIS_HASH_SET, items, n, deadline);
    b.announce = announce;
    b.eval = announce != NULL; /* a script that is not known within the transaction cannot be sent again */
    sift(&b);
    if (announce != NULL)
        announce_all(&b);
    else
        write_all(&b);
}

/* By its mode like what depends on a stamp: a script, and not to be repeated. */
static void
redis_increment(void *self, struct near_l2_item *items, size_t n, int64_t deadline)
{
    struct batch b;

    if (!near__l2_valid_increment(items, n))
        return;
    batch_init(&b, self, NEAR__REDIS_INCREMENT, items, n, deadline);
    b.mode = NEAR_L2_IF_STAMP;
    sift(&b);
    write_all(&b);
}

/* ---------------------------------------------------------------------------------------------- health */

struct health {
    near_status status;
    char        word[64];
    char        version[32], maxmemory[32], policy[32];
};

/* The value of `field` in the text of an INFO reply, when it is there and short. */
static void
info_field(const struct near__redis_reply *reply, const char *field, char *out, size_t size)
{
    const char *at = strstr(reply->text, field);
    size_t      n;

    if (at == NULL || (at != reply->text && at[-1] != '\n'))
        return;
    at += strlen(field);
    n = strcspn(at, "\r\n");
    if (n < size)
        snprintf(out, size, "%.*s", (int)n, at);
}

static void
health_reply(struct health *h, size_t index, const struct near__redis_reply *reply)
{
    if (reply->type == REDIS_REPLY_ERROR && h->word[0] == '\0')
        near__redis_reply_word(reply, h->word, sizeof(h->word));
    if (index == 0 && reply->type == REDIS_REPLY_ERROR)
        h->status = near__redis_reply_class(reply);
    else if (index == 0 && !is_status(reply, "PONG"))
        h->status = NEAR_ERR_PROTOCOL;
    if (index == 0 || reply->type != REDIS_REPLY_STRING)
        return;
    info_field(reply, "redis_version:", h->version, sizeof(h->version));
    info_field(reply, "maxmemory:", h->maxmemory, sizeof(h->maxmemory));
    info_field(reply, "maxmemory_policy:", h->policy, sizeof(h->policy));
}

static near_status
add_health(struct near__redis_call *call)
{
    near_bytes  ping    = near_key("PING");
    near_bytes  info[2] = { near_key("INFO"), near_key("server") };
    near_status status  = near__redis_call_add(call, 1, &ping);

    if (status == NEAR_OK)
        status = near__redis_call_add(call, 2, info);
    info[1] = near_key("memory"); /* several sections in one INFO: only since 7.0 */
    near__redis_call_idempotent(call, true);
    return status == NEAR_OK ? near__redis_call_add(call, 2, info) : status;
}

static near_status
ask_health(struct redis *r, struct health *h, int64_t deadline, near_error *error)
{
    struct near__redis_call *call   = near__redis_call_new(r->node, 0);
    near_status              status = call == NULL ? NEAR_ERR_NOMEM : add_health(call);
    struct near__lane_ask    ask;

    if (status != NEAR_OK) {
        near__redis_call_free(call);
        return near__fail(error, status, "redis: %s", near_status_text(status));
    }
    ask = near__redis_ask(call);
    near__lanes_run(&ask, 1, deadline, error);
    for (size_t i = 0; ask.outcome == NEAR__LANE_ANSWERED && i < near__redis_call_replies(call); i++)
        health_reply(h, i, near__redis_call_reply(call, i));
    if (ask.call != NULL)
        near__redis_call_free(call);
    if (ask.status == NEAR_OK && h->status != NEAR_OK)
        return near__fail(error, h->status, "%s: PING refused: %s", r->name, h->word);
    return ask.status;
}

static near_status
redis_health(void *self, char *text, size_t size, int64_t deadline, near_error *error)
{
    struct redis *r      = self;
    struct health h      = { .version = "unknown", .maxmemory = "unknown", .policy = "policy unknown" };
    near_error    reason = { 0 };
    near_status   status = ask_health(r, &h, deadline, &reason);

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

static struct near__redis_node_env node_env(struct redis *r);

static near_status
redis_remove_prefix(void *self, near_bytes prefix, near_l2_progress_fn progress, void *ctx, int64_t deadline,
                    near_error *error)
{
    struct redis            *r     = self;
    struct near__redis_sweep sweep = { .server          = node_env(r).server,
                                       .prefix          = prefix,
                                       .progress        = progress,
                                       .ctx             = ctx,
                                       .deadline        = deadline,
                                       .connect_timeout = r->env->connect_timeout };

    return near__redis_sweep(&sweep, error);
}

static void
redis_stats(void *self, struct near_l2_stats *stats)
{
    struct redis            *r = self;
    struct near__lanes_stats lanes;

    near__lanes_stats(near__redis_node_lanes(r->node), &lanes);
    stats->connects    = lanes.connects;
    stats->disconnects = lanes.disconnects;
    stats->down        = near__lanes_down(near__redis_node_lanes(r->node));
}

/* ------------------------------------------------------------------------------------------ birth and end */

static void
redis_fini(void *self)
{
    struct redis *r = self;

    if (r == NULL)
        return;
    if (r->node != NULL)
        near__redis_node_free(&r->node);
    near__event_close(&r->cancel_fd);
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

    r->max_stored = most == 0 || most > NEAR__REDIS_MAX_STORED ? NEAR__REDIS_MAX_STORED : most;
    r->mget       = near__redis_values_most(r->max_stored);
}

static struct near__redis_node_env
node_env(struct redis *r)
{
    const struct near_l2_env *env = r->env;

    return (struct near__redis_node_env){
        .server          = { .uri         = env->uri,
                             .access      = env->access,
                             .clock       = env->clock,
                             .client_name = env->client_name,
                             .max_reply   = near__redis_values_bytes(r->mget, r->max_stored) + 64 * 1024,
                             .cancel_fd   = &r->cancel_fd },
        .log             = env->log,
        .name            = r->name,
        .most            = env->pool_size,
        .connect_timeout = env->connect_timeout,
        .timeout         = env->timeout,
        .mget            = r->mget,
        .fuse            = true,
    };
}

static near_status
redis_open(void **self, const struct near_l2_env *env, struct near_l2_traits *traits, near_error *error)
{
    near_status                 status = check_settings(env, error);
    struct near__redis_node_env node;
    struct redis               *r;

    *self = NULL;
    if (status != NEAR_OK)
        return status;
    r = calloc(1, sizeof(*r));
    if (r == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "redis: out of memory");
    r->env       = env;
    r->cancel_fd = near__event_open();
    near__uri_display(env->uri, r->name, sizeof(r->name));
    set_limits(r);
    node   = node_env(r);
    status = r->cancel_fd < 0 ? NEAR_ERR_NOMEM : near__redis_node_new(&r->node, &node);
    if (status != NEAR_OK) {
        redis_fini(r);
        return near__fail(error, status, "redis: no memory or descriptors to open");
    }
    *traits = (struct near_l2_traits){ .shared       = true,
                                       .announces    = true,
                                       .binary_keys  = true,
                                       .max_key      = NEAR__REDIS_MAX_KEY,
                                       .max_value    = NEAR__REDIS_MAX_VALUE,
                                       .min_lease_ms = 1 };
    *self   = r;
    return NEAR_OK;
}

static void
redis_close(void *self)
{
    struct redis *r = self;

    near__lanes_close(near__redis_node_lanes(r->node));
    near__event_raise(r->cancel_fd);
}

static void
redis_stop(void *self)
{
    struct redis *r = self;

    redis_close(self); /* without it calls might keep coming */
    near__lanes_stop(near__redis_node_lanes(r->node));
}

static void
redis_forked(void *self)
{
    struct redis *r = self;

    near__lanes_forked(near__redis_node_lanes(r->node));
    near__event_close(&r->cancel_fd);
}

#define REDIS_OPS(name)                                                                                      \
    {                                                                                                        \
        .version = NEAR_L2_OPS_V2, .scheme = (name), .open = redis_open, .get_many = redis_get_many,         \
        .set_many = redis_set_many, .remove_many = redis_remove_many, .remove_prefix = redis_remove_prefix,  \
        .increment = redis_increment, .health = redis_health, .stats = redis_stats, .close = redis_close,    \
        .stop = redis_stop, .fini = redis_fini, .forked = redis_forked,                                      \
        .hash_get_many = redis_hash_get_many, .hash_set_many = redis_hash_set_many                           \
    }

const struct near_l2_ops near__l2_redis           = REDIS_OPS("redis");
const struct near_l2_ops near__l2_rediss          = REDIS_OPS("rediss");
const struct near_l2_ops near__l2_redis_unix      = REDIS_OPS("redis+unix");
const struct near_l2_ops near__l2_redis_sentinel  = REDIS_OPS("redis-sentinel");
const struct near_l2_ops near__l2_rediss_sentinel = REDIS_OPS("rediss-sentinel");
