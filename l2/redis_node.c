/*
 * One Redis server behind lanes: see redis_node.h.
 *
 *     call        commands (or keys to be read) | replies | arena: commands, keys, texts of replies
 *     connection  near__redis_conn, dialled and then used for its transport and its stream of messages only;
 *                 a reader whose reply functions put replies where they belong; the MGETs that are outstanding
 *
 * Calls that only read keys are packed into MGETs, across calls: `struct mget` says which key of which call each of its elements is
 * for.  MGETs of one connection are answered in the order in which they were sent, so they are a queue, and the oldest is what the
 * next reply is for when the oldest call is one that reads.
 *
 * A call is its caller's or its leader's, as lane.h says; a connection is its lane's leader's.  No locks.
 *
 * What can never happen: a reply put into a call that did not ask for it (an MGET's reply with another number of elements ends the
 * connection); more memory taken for a reply than its announced bounds allow (elements are counted over the whole reply).
 */
#include "l2/redis_node.h"

#include "l2/large.h"
#include "l2/resp.h"

#include "base/hash.h"
#include "base/le.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ELEMENTS (64 * 1024) /* of one reply, arrays in it included: our largest is an EXEC of 514 */
#define MAX_DEPTH    6           /* arrays in arrays: 0.14's own limit */
#define MGET_KEYS    128         /* beyond, nothing is gained, and the server answers nobody else meanwhile */
#define SEEN_SLOTS   512         /* hash table over an MGET's keys: at most a quarter full */
#define BULK         ((size_t)64 * 1024)  /* a call with more bytes than this has its own connection */
#define BULK_READ    ((size_t)128 * 1024) /* but the keys of a long read, which leave in little time */
#define HERE         ((size_t)384) /* arena inside a call: keeps a small call within one small allocation */
#define SLOTS_HERE   2             /* likewise: a key and its cache's generation */
#define AHEAD        ((size_t)1024 * 1024) /* a transaction with more bytes goes in three steps */
#define ALONE        64                    /* so many messages travel one at a time after one was refused */
/* The reader moves what it has not parsed yet to the front again and again, and gives its buffer back when it is larger than twice
 * this (rule H16: it stays small while idle). */
#define SLICE ((size_t)6 * 1024)

#ifndef HAVE_DECL_REDIS_REPLY_PUSH
#define HAVE_DECL_REDIS_REPLY_PUSH 0
#endif

struct chunk {
    struct chunk *next;
    size_t        size, used;
    _Alignas(16) char bytes[];
};

/* One command and its reply; or one key to be read and its value. */
struct slot {
    char                    *bytes; /* in the arena */
    size_t                   size;
    unsigned                 kinds;  /* that its reply can have; 0: any */
    uint32_t                 values; /* so many in an array, and nothing else; 0: not asked for */
    struct near__redis_reply reply;
};

/* What became of a message: shared by the call and whoever sent it, since either may go first. */
struct near__redis_note {
    _Atomic uint32_t owners;
    _Atomic uint64_t number; /* in the stream; written before it */
    _Atomic uint64_t stream; /* 0: it has not left */
};

struct near__redis_call {
    struct near__lane_call   lane; /* first */
    struct near__redis_node *node;
    struct slot             *slots;
    size_t                   count, capacity;
    size_t                   replies; /* arrived, from the first on */
    size_t                   bytes;
    bool                     reads; /* keys, not commands */
    char                     operation[20];

    size_t                   stamped;  /* the command with a message, + 1; 0: none */
    size_t                   stamp_at; /* in its bytes */
    uint64_t                 number;
    struct near__redis_note *note;

    struct chunk *chunks; /* beyond `here` */
    size_t        used;
    struct slot   slots_here[SLOTS_HERE];
    _Alignas(16) char here[HERE];
};

struct target {
    struct near__redis_call *call;
    uint32_t                 key;
    uint32_t                 same; /* another target that asks for the same key, + 1; 0: none */
};

struct mget {
    struct mget  *next;
    char         *bytes;
    size_t        size;
    uint32_t      keys;  /* asked for: target[0, keys) */
    uint32_t      sames; /* who ask for the same as one of those: target[MGET_KEYS, MGET_KEYS + sames) */
    uint32_t      ends;  /* calls whose last key is here */
    struct target target[2 * MGET_KEYS];
};

struct codec_conn {
    struct near__redis_node  *node;
    struct near__redis_conn  *conn;
    struct near__transport   *transport;
    redisReader              *reader;
    redisReplyObjectFunctions functions;
    size_t                    fed; /* bytes since the last complete reply */

    struct mget             *mgets, **mgets_end; /* outstanding */
    struct mget             *open, *spare;       /* being packed, not put yet; to be used again */
    struct near__redis_call *opener;             /* its first call */
    bool                     foreign;            /* keys of more than one call are in it */
    uint16_t                 seen[SEEN_SLOTS];   /* of `open`: index of a target + 1 */

    /* the reply being parsed */
    struct near__redis_call *into; /* whose memory it takes */
    struct mget             *mget; /* its elements go to these */
    struct near__redis_reply root; /* of an MGET, or of what answers nothing */
    size_t                   elements;
    bool                     began, ignored, no_memory, broken;

    bool                     spent;
    unsigned                 alone; /* messages that still have to travel alone */
    struct near__redis_call *held;  /* a large transaction on its way: see hold() */
    struct near__lane_out   *out;
    unsigned                 announced;             /* calls with a message that are outstanding */
    uint64_t                 refused_from, refused; /* messages refused in a row */
};

struct near__redis_node {
    struct near__redis_node_env env;
    struct near__lanes         *lanes;
    char                        name[300];
    unsigned                    mget;
    struct near__large          large; /* keys, or whole GETs where these travel alone */
};

/* ----------------------------------------------------------------------------------------- a call's memory */

/* Bytes from `at` on, one behind the other. */
static char *
pick(char *bytes, size_t room, size_t *used, size_t at, size_t size)
{
    if (at > room || room - at < size)
        return NULL;
    *used = at + size;
    return bytes + at;
}

static struct chunk *
add_chunk(struct near__redis_call *call, size_t size)
{
    size_t        room = call->chunks == NULL ? 2048 : call->chunks->size * 2;
    struct chunk *chunk;

    if (room > 256 * 1024)
        room = 256 * 1024;
    if (room < size)
        room = size;
    chunk = room > SIZE_MAX - sizeof(*chunk) ? NULL : malloc(sizeof(*chunk) + room);
    if (chunk == NULL)
        return NULL;
    *chunk       = (struct chunk){ .next = call->chunks, .size = room };
    call->chunks = chunk;
    return chunk;
}

/* `align` is 1 or 16. */
static void *
aligned(struct near__redis_call *call, size_t size, size_t align)
{
    struct chunk *chunk = call->chunks;
    size_t       *used  = chunk == NULL ? &call->used : &chunk->used;
    size_t        from  = (*used + align - 1) & ~(align - 1);
    char         *at    = chunk == NULL ? pick(call->here, HERE, used, from, size)
                                        : pick(chunk->bytes, chunk->size, used, from, size);

    if (at != NULL)
        return at;
    chunk = add_chunk(call, size);
    return chunk == NULL ? NULL : pick(chunk->bytes, chunk->size, &chunk->used, 0, size);
}

static void *
arena(struct near__redis_call *call, size_t size)
{
    return aligned(call, size, 16);
}

/* One lies right behind the other, so that many commands are sent as one piece. */
static char *
text_arena(struct near__redis_call *call, size_t size)
{
    return aligned(call, size, 1);
}

static struct near__redis_call *
call_of(struct near__lane_call *lane)
{
    return (struct near__redis_call *)lane;
}

struct near__redis_call *
near__redis_call_new(struct near__redis_node *node, size_t bytes)
{
    struct near__redis_call *call = malloc(sizeof(*call));

    (void)bytes;
    if (call == NULL)
        return NULL;
    memset(&call->lane, 0, offsetof(struct near__lane_call, error));
    memset(&call->node, 0,
           offsetof(struct near__redis_call, slots_here) - offsetof(struct near__redis_call, node));
    call->lane.error.code = NEAR_OK;
    call->lane.operation  = call->operation;
    call->node            = node;
    call->slots           = call->slots_here;
    call->capacity        = SLOTS_HERE;
    return call;
}

static void
note_release(struct near__redis_note *note)
{
    /* acq_rel: whoever goes last frees what the other has written */
    if (note != NULL && atomic_fetch_sub_explicit(&note->owners, 1, memory_order_acq_rel) == 1)
        free(note);
}

void
near__redis_call_free(struct near__redis_call *call)
{
    if (call == NULL)
        return;
    note_release(call->note);
    if (call->slots != call->slots_here)
        free(call->slots);
    while (call->chunks != NULL) {
        struct chunk *chunk = call->chunks;

        call->chunks = chunk->next;
        free(chunk);
    }
    free(call);
}

static bool
room_for_slots(struct near__redis_call *call, size_t more)
{
    size_t       capacity = call->capacity * 2;
    struct slot *slots;

    if (call->count + more <= call->capacity)
        return true;
    if (capacity < call->count + more)
        capacity = call->count + more;
    slots = reallocarray(call->slots == call->slots_here ? NULL : call->slots, capacity, sizeof(*slots));
    if (slots == NULL)
        return false;
    if (call->slots == call->slots_here)
        memcpy(slots, call->slots_here, call->count * sizeof(*slots));
    call->slots    = slots;
    call->capacity = capacity;
    return true;
}

/* -------------------------------------------------------------------------------------------- commands */

/* Whether they could all be arguments of one command. */
static bool
keys_fit(size_t n, const near_bytes *keys)
{
    size_t total = 0;

    for (size_t i = 0; i < n; i++)
        if (keys[i].size > NEAR__RESP_MAX || (total += keys[i].size + 32) > NEAR__RESP_MAX)
            return false;
    return n > 0;
}

static void
name_operation(struct near__redis_call *call, near_bytes word)
{
    size_t size = word.size < sizeof(call->operation) ? word.size : sizeof(call->operation) - 1;

    if (call->count > 0)
        return;
    memcpy(call->operation, word.data, size);
    call->operation[size] = '\0';
}

near_status
near__redis_call_add(struct near__redis_call *call, size_t argc, const near_bytes *argv)
{
    size_t size = near__resp_size(argc, argv);
    char  *bytes;

    if (call->reads)
        return NEAR_ERR_INVALID;
    if (size == 0)
        return NEAR_ERR_TOO_LARGE;
    bytes = room_for_slots(call, 1) ? text_arena(call, size) : NULL;
    if (bytes == NULL)
        return NEAR_ERR_NOMEM;
    near__resp_put(bytes, argc, argv);
    name_operation(call, argv[0]);
    call->slots[call->count++] = (struct slot){ .bytes = bytes, .size = size };
    call->bytes += size;
    return NEAR_OK;
}

near_status
near__redis_call_get(struct near__redis_call *call, const near_bytes *keys, size_t n)
{
    size_t total = 0;
    char  *at;

    if (!call->node->env.fuse) {
        for (size_t i = 0; i < n; i++) {
            near_status status = near__redis_call_add(call, 2, (near_bytes[]){ near_key("GET"), keys[i] });

            if (status != NEAR_OK)
                return status;
        }
        call->lane.idempotent = true;
        return NEAR_OK;
    }
    if ((call->count > 0 && !call->reads) || !keys_fit(n, keys))
        return call->count > 0 && !call->reads ? NEAR_ERR_INVALID : NEAR_ERR_TOO_LARGE;
    for (size_t i = 0; i < n; i++)
        total += keys[i].size;
    at = room_for_slots(call, n) ? arena(call, total + 1) : NULL;
    if (at == NULL)
        return NEAR_ERR_NOMEM;
    name_operation(call, near_key("GET"));
    call->reads = call->lane.idempotent = true;
    for (size_t i = 0; i < n; i++) {
        if (keys[i].size > 0)
            memcpy(at, keys[i].data, keys[i].size);
        call->slots[call->count++] = (struct slot){ .bytes = at, .size = keys[i].size };
        at += keys[i].size;
    }
    call->bytes += total;
    return NEAR_OK;
}

near_status
near__redis_call_stamped(struct near__redis_call *call, size_t message_size, size_t stamp_at,
                         struct near__redis_note **note)
{
    const struct slot *last = &call->slots[call->count - 1];

    *note = calloc(1, sizeof(**note));
    if (*note == NULL)
        return NEAR_ERR_NOMEM;
    atomic_store_explicit(&(*note)->owners, 2, memory_order_relaxed);
    call->note     = *note;
    call->stamped  = call->count;
    call->stamp_at = last->size - 2 - message_size + stamp_at; /* the message, CR, LF end the command */
    return NEAR_OK;
}

/* A call that was given up counts as sent from the moment before it is stamped: then either its leader stamps it now, or he finds it
 * given up and frees it. */
uint64_t
near__redis_note_read(struct near__redis_note *note, bool given_up, uint64_t *number)
{
    uint64_t stream;
    uint32_t owners;

    do {
        /* acquire, before `stream`: who left has written it */
        owners   = atomic_load_explicit(&note->owners, memory_order_acquire);
        stream   = atomic_load_explicit(&note->stream, memory_order_acquire);
        given_up = given_up && stream == 0 && owners > 1;
        if (given_up)
            sched_yield();
    } while (given_up);
    *number =
        atomic_load_explicit(&note->number, memory_order_relaxed); /* the stream's acquire has paid for it */
    note_release(note);
    return stream;
}

void
near__redis_call_expects(struct near__redis_call *call, unsigned kinds)
{
    call->slots[call->count - 1].kinds = kinds;
}

void
near__redis_call_expects_values(struct near__redis_call *call, uint32_t n)
{
    call->slots[call->count - 1].kinds  = NEAR__REDIS_KIND(REDIS_REPLY_ARRAY);
    call->slots[call->count - 1].values = n;
}

void
near__redis_call_idempotent(struct near__redis_call *call, bool idempotent)
{
    call->lane.idempotent = idempotent;
}

static near_bytes
asked(const struct slot *slot)
{
    return (near_bytes){ slot->bytes, slot->size };
}

static bool
reads_large(const struct near__redis_call *call)
{
    for (size_t i = 0; call->lane.idempotent && i < call->count; i++)
        if (near__large_has(&call->node->large, asked(&call->slots[i])))
            return true;
    return false;
}

struct near__lane_ask
near__redis_ask(struct near__redis_call *call)
{
    call->lane.bulk = call->bytes > (call->reads ? BULK_READ : BULK) || reads_large(call);
    return (struct near__lane_ask){ .lanes = call->node->lanes, .call = &call->lane };
}

void
near__redis_call_redirect(struct near__redis_call *call, struct near__redis_node *node)
{
    call->node    = node;
    call->replies = 0;
}

size_t
near__redis_call_commands(const struct near__redis_call *call)
{
    return call->count;
}

size_t
near__redis_call_replies(const struct near__redis_call *call)
{
    return call->replies;
}

const struct near__redis_reply *
near__redis_call_reply(const struct near__redis_call *call, size_t i)
{
    return &call->slots[i].reply;
}

size_t
near__redis_call_left(const struct near__redis_call *call)
{
    uint64_t sent = call->lane.sent;
    size_t   n    = 0;

    if (call->reads)
        return sent > 0 ? call->count : 0;
    while (n < call->count && sent >= call->slots[n].size)
        sent -= call->slots[n++].size;
    return n;
}

static redisReply
as_hiredis(const struct near__redis_reply *reply)
{
    return (redisReply){ .type = reply->type, .str = (char *)(uintptr_t)reply->text, .len = reply->size };
}

near_status
near__redis_reply_class(const struct near__redis_reply *reply)
{
    redisReply r = as_hiredis(reply);

    return near__redis_error_class(&r);
}

bool
near__redis_reply_drops(const struct near__redis_reply *reply)
{
    redisReply r = as_hiredis(reply);

    return near__redis_error_drops(&r);
}

void
near__redis_reply_word(const struct near__redis_reply *reply, char *out, size_t size)
{
    redisReply r = as_hiredis(reply);

    near__redis_error_word(&r, out, size);
}

/* ------------------------------------------------------------------------------- codec: replies by hiredis
 *
 * hiredis calls these as it parses.  They answer with the reply they filled, never with memory of their own: hiredis passes it on as
 * task->obj and never looks into it. */

#if HIREDIS_MAJOR >= 1 /* rule H15 */
typedef size_t element_count;
#else
typedef int element_count;
#endif

static bool
is_push(const redisReadTask *task)
{
#if HAVE_DECL_REDIS_REPLY_PUSH
    return task->type == REDIS_REPLY_PUSH; /* rule H13: it answers nothing */
#else
    (void)task;
    return false;
#endif
}

/* Where this reply goes.  The root of an MGET goes to `root`, so its elements find the connection's mget by that. */
static struct near__redis_reply *
place(struct codec_conn *conn, const redisReadTask *task)
{
    if (task->parent != NULL) {
        struct near__redis_reply *above = task->parent->obj;

        return &above->element[task->idx];
    }
    conn->began   = true;
    conn->ignored = is_push(task);
    if (conn->ignored || conn->mget != NULL)
        return &conn->root;
    return &conn->into->slots[conn->into->replies].reply;
}

static bool
is_element(const struct codec_conn *conn, const redisReadTask *task)
{
    return conn->mget != NULL && !conn->ignored && task->parent != NULL && task->parent->obj == &conn->root;
}

static bool
fill_text(struct near__redis_call *call, struct near__redis_reply *reply, int type, const char *text,
          size_t size)
{
    char *at = arena(call, size + 1);

    if (at == NULL)
        return false;
    memcpy(at, text, size);
    at[size]        = '\0';
    reply->type     = type;
    reply->size     = size;
    reply->text     = at;
    reply->elements = 0;
    return true;
}

/* An element of an MGET's reply, for everybody who asked for that key. */
static void *
deal_text(struct codec_conn *conn, const redisReadTask *task, const char *text, size_t size)
{
    uint32_t next = (uint32_t)task->idx + 1;

    while (next != 0) {
        const struct target *target = &conn->mget->target[next - 1];

        if (!fill_text(target->call, &target->call->slots[target->key].reply, task->type, text, size)) {
            conn->no_memory = true;
            return NULL;
        }
        next = target->same;
    }
    return &conn->root;
}

static void *
deal_other(struct codec_conn *conn, const redisReadTask *task, int type)
{
    uint32_t next = (uint32_t)task->idx + 1;

    while (next != 0) {
        const struct target *target = &conn->mget->target[next - 1];

        target->call->slots[target->key].reply = (struct near__redis_reply){ .type = type };
        next                                   = target->same;
    }
    return &conn->root;
}

static void *
create_text(const redisReadTask *task, char *text, size_t size)
{
    struct codec_conn        *conn = task->privdata;
    struct near__redis_reply *reply;

    if (is_element(conn, task))
        return deal_text(conn, task, text, size);
    reply = place(conn, task);
    if (fill_text(conn->into, reply, task->type, text, size))
        return reply;
    conn->no_memory = true;
    return NULL;
}

/* The reply is to have so many values, and this array is not they. */
static bool
is_unexpected(const struct codec_conn *conn, const redisReadTask *task, size_t elements)
{
    uint32_t values;

    if (conn->ignored || conn->mget != NULL)
        return false;
    values = conn->into->slots[conn->into->replies].values;
    return values != 0 && (task->parent != NULL || elements != values);
}

/* A peer may announce arrays of any length and depth, for all of which there must be memory before one element is seen (rule H14).
 * NULL ends the reader. */
static void *
create_array(const redisReadTask *task, element_count elements)
{
    struct codec_conn        *conn  = task->privdata;
    unsigned                  depth = 0;
    struct near__redis_reply *reply;

    for (const redisReadTask *up = task->parent; up != NULL && depth <= MAX_DEPTH; up = up->parent)
        depth++;
    if (elements > MAX_ELEMENTS || conn->elements + (size_t)elements > MAX_ELEMENTS || depth > MAX_DEPTH ||
        is_element(conn, task))
        return NULL;
    conn->elements += (size_t)elements;
    reply = place(conn, task);
    if (is_unexpected(conn, task, (size_t)elements))
        return NULL;
    *reply = (struct near__redis_reply){ .type = REDIS_REPLY_ARRAY, .elements = (uint32_t)elements };
    if (reply == &conn->root &&
        !conn->ignored) /* an MGET's: its elements are dealt out, they need no memory here */
        return conn->mget->keys > 1 && (size_t)elements == conn->mget->keys ? reply : NULL;
    if (elements == 0)
        return reply;
    reply->element = arena(conn->into, (size_t)elements * sizeof(*reply));
    if (reply->element == NULL) {
        conn->no_memory = true;
        return NULL;
    }
    memset(reply->element, 0, (size_t)elements * sizeof(*reply));
    return reply;
}

static void *
create_integer(const redisReadTask *task, long long value)
{
    struct codec_conn        *conn = task->privdata;
    struct near__redis_reply *reply;

    if (is_element(conn, task))
        return deal_other(conn, task, REDIS_REPLY_INTEGER);
    reply  = place(conn, task);
    *reply = (struct near__redis_reply){ .type = REDIS_REPLY_INTEGER, .integer = value };
    return reply;
}

static void *
create_nil(const redisReadTask *task)
{
    struct codec_conn        *conn = task->privdata;
    struct near__redis_reply *reply;

    if (is_element(conn, task))
        return deal_other(conn, task, REDIS_REPLY_NIL);
    reply  = place(conn, task);
    *reply = (struct near__redis_reply){ .type = REDIS_REPLY_NIL };
    return reply;
}

#if HIREDIS_MAJOR >= 1
/* RESP3's, which nobody has asked for: without these hiredis would hand on a number in place of the reply.  NULL ends the reader. */
static void *
refuse_double(const redisReadTask *task, double value, char *text, size_t size)
{
    (void)task, (void)value, (void)text, (void)size;
    return NULL;
}

static void *
refuse_bool(const redisReadTask *task, int value)
{
    (void)task, (void)value;
    return NULL;
}
#endif

/* Replies lie in their calls' memory. */
static void
free_nothing(void *reply)
{
    (void)reply;
}

/* ------------------------------------------------------------------------------------- codec: a connection */

static void
free_mget(struct mget *mget)
{
    if (mget == NULL)
        return;
    if (mget->bytes != NULL)
        free(mget->bytes);
    free(mget);
}

static void
conn_free(struct codec_conn *conn)
{
    near__redis_conn_free(&conn->conn);
    if (conn->reader != NULL)
        redisReaderFree(conn->reader);
    while (conn->mgets != NULL) {
        struct mget *mget = conn->mgets;

        conn->mgets = mget->next;
        free_mget(mget);
    }
    free_mget(conn->open);
    free_mget(conn->spare);
    free(conn);
}

static struct codec_conn *
conn_new(struct near__redis_node *node)
{
    struct codec_conn *conn = calloc(1, sizeof(*conn));

    if (conn == NULL)
        return NULL;
    conn->node      = node;
    conn->mgets_end = &conn->mgets;
    conn->functions = (redisReplyObjectFunctions)
    {
        .createString = create_text, .createArray = create_array, .createInteger = create_integer,
        .createNil = create_nil,
#if HIREDIS_MAJOR >= 1
        .createDouble = refuse_double, .createBool = refuse_bool,
#endif
        .freeObject = free_nothing
    };
    conn->reader = redisReaderCreateWithFunctions(&conn->functions);
    if (conn->reader == NULL) {
        conn_free(conn);
        return NULL;
    }
    conn->reader->privdata = conn;
#ifdef HAVE_REDISREADER_MAXELEMENTS
    conn->reader->maxelements = MAX_ELEMENTS;
#endif
    return conn;
}

static near_status
codec_dial(void *ctx, void **out, int64_t deadline, near_error *error)
{
    struct near__redis_node  *node   = ctx;
    struct near__redis_server server = node->env.server;
    struct near__address      address;
    struct codec_conn        *conn   = conn_new(node);
    near_status               status = NEAR_OK;

    if (conn == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "%s: out of memory", node->name);
    if (node->env.resolve != NULL) {
        status         = node->env.resolve(node->env.ctx, &address, deadline, error);
        server.address = &address;
    }
    if (status == NEAR_OK)
        status = near__redis_dial(&conn->conn, &server, deadline, error);
    if (status == NEAR_OK && node->env.accept != NULL)
        status = node->env.accept(node->env.ctx, conn->conn, deadline, error);
    if (status != NEAR_OK) {
        conn_free(conn);
        return status;
    }
    conn->transport = near__redis_conn_transport(conn->conn);
    *out            = conn;
    return NEAR_OK;
}

/* Redis wants no goodbye. */
static void
codec_drop(void *self, bool goodbye)
{
    (void)goodbye;
    conn_free(self);
}

static void
codec_abandon(void *self)
{
    struct codec_conn *conn = self;

    near__redis_conn_abandon(conn->conn);
}

static struct near__transport *
codec_transport(void *self)
{
    struct codec_conn *conn = self;

    return conn->transport;
}

static bool
codec_usable(void *self, bool lately)
{
    struct codec_conn *conn = self;

    return conn->reader->len == conn->reader->pos && conn->mgets == NULL &&
           (lately ? !near__redis_conn_outdated(conn->conn) : near__redis_conn_usable(conn->conn));
}

static bool
codec_spent(void *self)
{
    struct codec_conn *conn = self;

    return conn->spent || near__redis_conn_outdated(conn->conn);
}

/* ----------------------------------------------------------------------------------------- codec: sending
 *
 * Out of memory half-way: `broken`, and flush() says so, since what has been put cannot be taken back. */

static void
close_mget(struct codec_conn *conn, struct near__lane_out *out)
{
    struct mget *mget = conn->open;
    near_bytes   argv[1 + MGET_KEYS];

    if (mget == NULL)
        return;
    argv[0] = near_key(mget->keys == 1 ? "GET" : "MGET");
    for (uint32_t i = 0; i < mget->keys; i++) {
        const struct slot *slot = &mget->target[i].call->slots[mget->target[i].key];

        argv[1 + i] = (near_bytes){ slot->bytes, slot->size };
    }
    if ((mget->bytes == NULL &&
         near__resp_format(&mget->bytes, &mget->size, 1 + mget->keys, argv) != NEAR_OK) ||
        !near__lane_put(out, &conn->opener->lane, mget->bytes, mget->size)) {
        conn->broken = true;
        return;
    }
    for (uint32_t i = 0; i < mget->keys; i++)
        if (mget->target[i].call != conn->opener)
            near__lane_put_with(&mget->target[i].call->lane, &conn->opener->lane);
    for (uint32_t i = MGET_KEYS; i < MGET_KEYS + mget->sames; i++)
        if (mget->target[i].call != conn->opener)
            near__lane_put_with(&mget->target[i].call->lane, &conn->opener->lane);
    conn->open       = NULL;
    *conn->mgets_end = mget;
    conn->mgets_end  = &mget->next;
}

static struct mget *
open_mget(struct codec_conn *conn, struct near__redis_call *call)
{
    struct mget *mget = conn->spare != NULL ? conn->spare : malloc(sizeof(*mget));

    conn->spare = NULL;
    if (mget == NULL)
        return NULL;
    mget->next  = NULL;
    mget->bytes = NULL;
    mget->keys = mget->sames = mget->ends = 0;
    conn->opener                          = call;
    conn->foreign                         = false;
    return conn->open                     = mget;
}

/* The target in the open MGET that asks for this key already, + 1; 0: none, and `where` it is to be noted. */
static uint32_t
find_same(struct codec_conn *conn, const struct slot *slot, uint16_t **where)
{
    uint64_t hash = near__hash_fixed((near_bytes){ slot->bytes, slot->size });

    for (size_t at = hash % SEEN_SLOTS;; at = (at + 1) % SEEN_SLOTS) {
        uint32_t             seen = conn->seen[at];
        const struct target *target;
        const struct slot   *other;

        *where = &conn->seen[at];
        if (seen == 0)
            return 0;
        target = &conn->open->target[seen - 1];
        other  = &target->call->slots[target->key];
        if (other->size == slot->size && memcmp(other->bytes, slot->bytes, slot->size) == 0)
            return seen;
    }
}

/* The keys packed so far were one call's, who asks for a key once: only now they are worth looking up. */
static void
see_all(struct codec_conn *conn)
{
    uint16_t *where;

    memset(conn->seen, 0, sizeof(conn->seen));
    conn->foreign = true;
    for (uint32_t i = 0; i < conn->open->keys; i++) {
        const struct target *target = &conn->open->target[i];

        if (find_same(conn, &target->call->slots[target->key], &where) == 0)
            *where = (uint16_t)(i + 1);
    }
}

static void
pack_key(struct codec_conn *conn, struct near__redis_call *call, uint32_t key)
{
    struct mget  *mget   = conn->open;
    struct target target = { .call = call, .key = key };
    uint16_t     *where  = NULL;
    uint32_t      same   = 0;

    if (call != conn->opener && !conn->foreign)
        see_all(conn);
    if (conn->foreign)
        same = find_same(conn, &call->slots[key], &where);
    if (same == 0) {
        mget->target[mget->keys++] = target;
        if (where != NULL)
            *where = (uint16_t)mget->keys;
        return;
    }
    target.same                             = mget->target[same - 1].same;
    mget->target[MGET_KEYS + mget->sames++] = target;
    mget->target[same - 1].same             = MGET_KEYS + mget->sames;
}

static void
begin_read(struct codec_conn *conn, struct near__redis_call *call, struct near__lane_out *out)
{
    for (size_t i = 0; i < call->count && !conn->broken; i++) {
        if (conn->open != NULL && (conn->open->keys == conn->node->mget || conn->open->sames == MGET_KEYS))
            close_mget(conn, out);
        if (conn->open == NULL && open_mget(conn, call) == NULL)
            conn->broken = true;
        else
            pack_key(conn, call, (uint32_t)i);
    }
    if (conn->open != NULL)
        conn->open->ends++;
}

static void
stamp(struct codec_conn *conn, struct near__redis_call *call)
{
    uint8_t *at = (uint8_t *)call->slots[call->stamped - 1].bytes + call->stamp_at;

    near__redis_conn_stamp(conn->conn, at);
    call->number = near__le64_get(at + 8);
    atomic_store_explicit(&call->note->number, call->number, memory_order_relaxed);
    /* release pairs with near__redis_note_read() */
    atomic_store_explicit(&call->note->stream, near__redis_conn_stream(conn->conn), memory_order_release);
    conn->announced++;
    conn->alone -= conn->alone > 0;
}

/* A large transaction takes a while to leave, in which much can happen: then it is to be known that MULTI was accepted, and that
 * without EXEC nothing of it will be executed; and EXEC leaves when everything before it has arrived. */
static void
hold(struct codec_conn *conn, struct near__redis_call *call, struct near__lane_out *out)
{
    conn->held = call;
    conn->out  = out;
    near__lane_hold(out);
}

static near_status
codec_begin(void *self, struct near__lane_call *lane, struct near__lane_out *out)
{
    struct codec_conn       *conn = self;
    struct near__redis_call *call = call_of(lane);

    if (call->reads) {
        begin_read(conn, call, out);
        return NEAR_OK;
    }
    if (call->stamped != 0 && ((conn->alone > 0 && conn->announced > 0) || conn->held != NULL))
        return NEAR_ERR_BUSY;
    close_mget(conn, out);
    if (call->stamped != 0)
        stamp(conn, call);
    for (size_t i = 0; i < call->count && !conn->broken; i++) {
        if (call->stamped != 0 && call->bytes > AHEAD && (i == 1 || i + 2 == call->count))
            hold(conn, call, out);
        conn->broken = !near__lane_put(out, lane, call->slots[i].bytes, call->slots[i].size);
    }
    return NEAR_OK;
}

static near_status
codec_flush(void *self, struct near__lane_out *out)
{
    struct codec_conn *conn = self;

    close_mget(conn, out);
    return conn->broken ? NEAR_ERR_NOMEM : NEAR_OK;
}

/* --------------------------------------------------------------------------------------- codec: receiving */

static near_status
fault(struct codec_conn *conn, const char *operation, const char *what, near_error *error)
{
    return near__fail(error, conn->no_memory ? NEAR_ERR_NOMEM : NEAR_ERR_PROTOCOL,
                      "%s: %s: %s, connection dropped", conn->node->name, operation,
                      conn->no_memory ? "out of memory" : what);
}

/* First words that end the connection once they are answered: this server will not do.  A cluster's redirections say nothing against
 * the server that sent them. */
static bool
says_no(const struct codec_conn *conn, const struct near__redis_reply *reply)
{
    static const char *const redirections[] = { "MOVED ", "ASK ", "CLUSTERDOWN " };

    if (reply->type != REDIS_REPLY_ERROR || !near__redis_reply_drops(reply))
        return false;
    for (size_t i = 0; !conn->node->env.fuse && i < NEAR_COUNT_OF(redirections); i++)
        if (strncmp(reply->text, redirections[i], strlen(redirections[i])) == 0)
            return false;
    return true;
}

static bool
has_kind(const struct near__redis_reply *reply, unsigned kinds)
{
    return kinds == 0 || reply->type == REDIS_REPLY_ERROR || (kinds & NEAR__REDIS_KIND(reply->type)) != 0;
}

#define VALUE_KINDS (NEAR__REDIS_KIND(REDIS_REPLY_STRING) | NEAR__REDIS_KIND(REDIS_REPLY_NIL))

/* What came in place of values: one for all who asked. */
static bool
deal_root(struct codec_conn *conn, struct target *target)
{
    struct near__redis_reply *reply = &target->call->slots[target->key].reply;

    if (target->call == conn->into || conn->root.text == NULL) {
        *reply = conn->root;
        return true;
    }
    return fill_text(target->call, reply, conn->root.type, conn->root.text, conn->root.size);
}

static bool
end_target(struct codec_conn *conn, struct target *target, bool many)
{
    const struct slot *slot = &target->call->slots[target->key];

    if (!many && !deal_root(conn, target)) {
        conn->no_memory = true;
        return false;
    }
    near__large_note(&conn->node->large, asked(slot), slot->reply.size);
    return has_kind(&slot->reply, VALUE_KINDS);
}

/* The oldest MGET is answered.  False: by something that no MGET can have for an answer, or no memory. */
static bool
end_mget(struct codec_conn *conn, size_t *ends)
{
    struct mget *mget = conn->mgets;
    bool         good = true, many = mget->keys > 1 && conn->root.type == REDIS_REPLY_ARRAY;

    for (uint32_t i = 0; i < mget->keys; i++)
        good = good && end_target(conn, &mget->target[i], many);
    for (uint32_t i = MGET_KEYS; i < MGET_KEYS + mget->sames; i++)
        good = good && end_target(conn, &mget->target[i], many);
    if (!good || (mget->keys > 1 && !many && conn->root.type != REDIS_REPLY_ERROR))
        return false;
    for (uint32_t i = 0; i < mget->keys; i++)
        mget->target[i].call->replies++;
    for (uint32_t i = MGET_KEYS; i < MGET_KEYS + mget->sames; i++)
        mget->target[i].call->replies++;
    conn->spent |= says_no(conn, &conn->root);
    *ends       = mget->ends;
    conn->mgets = mget->next;
    if (conn->mgets == NULL)
        conn->mgets_end = &conn->mgets;
    free(mget->bytes);
    mget->bytes = NULL;
    free(conn->spare);
    conn->spare = mget;
    return true;
}

/* The answer leaves no doubt that the call's message was not published: PUBLISH was refused, or what it stood in was. */
static bool
was_not_published(const struct near__redis_call *call)
{
    const struct near__redis_reply *last = &call->slots[call->count - 1].reply;

    if (last->type != REDIS_REPLY_ERROR || call->stamped == call->count)
        return false;
    return call->slots[call->stamped - 1].reply.type == REDIS_REPLY_ERROR ||
           call->slots[0].reply.type == REDIS_REPLY_STATUS;
}

/* Numbers refused in a row up to the last one given out are given out again; if later ones are on their way already, receivers see a
 * gap, and those who come now travel alone for a while. */
static void
end_stamped(struct codec_conn *conn, struct near__redis_call *call)
{
    conn->announced--;
    conn->spent |= near__lane_call_is_abandoned(&call->lane); /* its sender doubts this stream for ever */
    if (!was_not_published(call)) {
        conn->refused = 0;
        return;
    }
    conn->alone = ALONE;
    if (conn->refused == 0 || call->number != conn->refused_from + conn->refused) {
        conn->refused_from = call->number;
        conn->refused      = 0;
    }
    conn->refused++;
    if (!near__redis_conn_is_last(conn->conn, call->number))
        return;
    while (conn->refused > 0) {
        near__redis_conn_unstamp(conn->conn);
        conn->refused--;
    }
}

static bool
has_values(const struct near__redis_reply *reply, uint32_t values)
{
    bool good = values == 0 || reply->type == REDIS_REPLY_ERROR || reply->elements == values;

    for (uint32_t i = 0; i < reply->elements && values > 0 && good; i++)
        good = has_kind(&reply->element[i], VALUE_KINDS) && reply->element[i].type != REDIS_REPLY_ERROR;
    return good;
}

static size_t
reply_bytes(const struct near__redis_reply *reply)
{
    size_t bytes = reply->size;

    for (uint32_t i = 0; i < reply->elements; i++)
        bytes += reply->element[i].size;
    return bytes;
}

/* A reply to a command is complete. */
static bool
end_reply(struct codec_conn *conn, struct near__redis_call *call, size_t *ends)
{
    const struct slot *slot = &call->slots[call->replies];

    if (!has_kind(&slot->reply, slot->kinds) || !has_values(&slot->reply, slot->values))
        return false;
    conn->spent |= says_no(conn, &slot->reply);
    if (call->lane.idempotent)
        near__large_note(&conn->node->large, asked(slot), reply_bytes(&slot->reply));
    call->replies++;
    if (conn->held == call && (call->replies == 1 || call->replies + 2 == call->count)) {
        near__lane_release(conn->out);
        if (call->replies > 1)
            conn->held = NULL;
    }
    *ends = call->replies == call->count ? 1 : 0;
    if (*ends == 1 && call->stamped != 0)
        end_stamped(conn, call);
    return true;
}

/* Nobody waits for more than this reply, and yet there is more: then it may not be the reply it seems to be. */
static bool
is_one_too_many(const struct codec_conn *conn, const struct near__redis_call *call, size_t rest)
{
    const struct near__lane_call *last = &call->lane;
    size_t                        ends = call->reads ? conn->mgets->ends : 1;

    if (rest == 0 || (call->reads ? conn->mgets->next != NULL : call->replies + 1 < call->count))
        return false;
    while (last != NULL && ends-- > 0)
        last = last->next;
    return last == NULL;
}

static void
expect(struct codec_conn *conn, struct near__redis_call *call)
{
    conn->into      = call;
    conn->mget      = call->reads ? conn->mgets : NULL;
    conn->root.type = 0;
    conn->root.text = NULL;
}

/* Take every reply that the reader holds completely; `more` bytes are still to be fed.  `*oldest` moves on. */
static near_status
take_replies(struct codec_conn *conn, struct near__redis_call **oldest, size_t more, size_t *complete,
             near_error *error)
{
    for (;;) {
        struct near__redis_call *call  = *oldest;
        void                    *reply = NULL;
        size_t                   ends  = 0, rest;

        if (call == NULL)
            return conn->reader->len > conn->reader->pos || more > 0
                       ? fault(conn, "no command", "more replies than commands", error)
                       : NEAR_OK;
        if (!conn->began) {
            expect(conn, call);
            conn->elements = 0;
        }
        if (redisReaderGetReply(conn->reader, &reply) != REDIS_OK)
            return fault(conn, call->operation, "the reply makes no sense", error);
        if (reply == NULL && conn->fed > conn->node->env.server.max_reply)
            return fault(conn, call->operation, "the reply is larger than any we asked for", error);
        if (reply == NULL)
            return NEAR_OK;
        if (!conn->began)
            return fault(conn, call->operation, "the reply makes no sense", error);
        conn->began = false;
        rest        = conn->reader->len - conn->reader->pos;
        conn->fed   = rest;
        if (conn->ignored)
            continue;
        if (is_one_too_many(conn, call, rest + more))
            return fault(conn, call->operation, "more replies than commands", error);
        if (call->reads ? !end_mget(conn, &ends) : !end_reply(conn, call, &ends))
            return fault(conn, call->operation, "the reply makes no sense", error);
        *complete += ends;
        while (ends-- > 0)
            *oldest = (struct near__redis_call *)(*oldest)->lane.next;
    }
}

static near_status
codec_receive(void *self, struct near__lane_call *lane, const char *data, size_t size, size_t *complete,
              near_error *error)
{
    struct codec_conn       *conn   = self;
    struct near__redis_call *oldest = (struct near__redis_call *)lane;
    near_status              status = NEAR_OK;

    while (status == NEAR_OK && size > 0) {
        size_t part = size < SLICE ? size : SLICE;

        conn->fed += part;
        if (redisReaderFeed(conn->reader, data, part) != REDIS_OK) {
            conn->no_memory = true;
            return fault(conn, "a reply", "", error);
        }
        data += part;
        size -= part;
        status = take_replies(conn, &oldest, size, complete, error);
    }
    return status;
}

static void
codec_rewind(struct near__lane_call *lane)
{
    struct near__redis_call *call = call_of(lane);

    call->replies = 0;
    if (call->note != NULL)
        atomic_store_explicit(&call->note->stream, 0, memory_order_release);
}

static void
codec_free_call(struct near__lane_call *lane)
{
    near__redis_call_free(call_of(lane));
}

static const struct near__lane_codec redis_codec = { .dial      = codec_dial,
                                                     .drop      = codec_drop,
                                                     .abandon   = codec_abandon,
                                                     .transport = codec_transport,
                                                     .usable    = codec_usable,
                                                     .begin     = codec_begin,
                                                     .flush     = codec_flush,
                                                     .receive   = codec_receive,
                                                     .spent     = codec_spent,
                                                     .rewind    = codec_rewind,
                                                     .free_call = codec_free_call };

/* ------------------------------------------------------------------------------------------------- nodes */

near_status
near__redis_node_new(struct near__redis_node **node, const struct near__redis_node_env *env)
{
    struct near__redis_node *n = calloc(1, sizeof(*n));
    near_status              status;

    *node = NULL;
    if (n == NULL)
        return NEAR_ERR_NOMEM;
    n->env  = *env;
    n->mget = env->mget == 0 || env->mget > MGET_KEYS ? MGET_KEYS : env->mget;
    snprintf(n->name, sizeof(n->name), "%s", env->name);
    n->env.name = n->name;
    status      = near__lanes_new(&n->lanes, &(struct near__lanes_env){ .codec           = &redis_codec,
                                                                        .ctx             = n,
                                                                        .clock           = env->server.clock,
                                                                        .log             = env->log,
                                                                        .name            = n->name,
                                                                        .most            = env->most,
                                                                        .connect_timeout = env->connect_timeout,
                                                                        .timeout         = env->timeout,
                                                                        .cancel_fd = env->server.cancel_fd });
    if (status != NEAR_OK) {
        free(n);
        return status;
    }
    *node = n;
    return NEAR_OK;
}

void
near__redis_node_free(struct near__redis_node **node)
{
    struct near__redis_node *n = *node;

    *node = NULL;
    if (n == NULL)
        return;
    near__lanes_free(&n->lanes);
    free(n);
}

struct near__lanes *
near__redis_node_lanes(struct near__redis_node *node)
{
    return node->lanes;
}
