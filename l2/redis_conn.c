/*
 * One Redis connection.  hiredis parses replies; everything else is ours.
 *
 *     append -> commands[ ] -> sendmsg    recv -> in -> reader -> reply callback
 *
 * A connection belongs to one thread at a time and has no lock.  Queued commands are formatted bytes,
 * each in its own allocation: they leave through one sendmsg() per IOV_PIECES of
 * them, never copied together, and are freed when the exchange ends.
 *
 * What can never happen: a connection that works again after a fault (`broken` is set once and every call
 * looks at it first); a reply given to a command that was not waiting for it (a reply too many is a fault,
 * found before the last reply is handed out); a sleep past the deadline; an error text with an argument of
 * ours in it (error replies may quote them: near__redis_error_word()).
 */
#include "l2/redis_conn.h"

#include "base/hash.h"
#include "base/le.h"
#include "l2/access.h"
#include "l2/redis_sentinel.h"
#include "l2/resp.h"
#include "l2/stream.h"
#include "l2/transport.h"

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define READ_SIZE  (64 * 1024) /* rule H16 */
#define IOV_PIECES 64          /* commands per sendmsg() */
/* The most elements an array may announce: hiredis allocates them all before it has seen one.  Our largest
 * replies are an EXEC and an MGET of NEAR_L2_BATCH items; invalidations from a server carry a few thousand
 * keys. */
#define MAX_ELEMENTS (64 * 1024)
#define MAX_DEPTH    6 /* arrays in arrays: 0.14's own limit */

#ifndef HAVE_DECL_REDIS_REPLY_PUSH
#define HAVE_DECL_REDIS_REPLY_PUSH 0
#endif

struct command {
    char  *data; /* malloc'ed */
    size_t size;
};

struct near__redis_conn {
    struct near__transport transport;
    near_status            broken; /* NEAR_OK, or the fault that ended this connection */
    char                   name[300];
    char                   operation[24]; /* the command queued first, for error texts */

    struct command *commands;
    size_t          queued, capacity;
    size_t          sent;   /* commands sent to their last byte in this exchange */
    size_t          offset; /* bytes of commands[sent] that are sent */

    redisReader *reader;
    size_t       max_reply;
    size_t       fed; /* bytes since the last complete reply */

    uint64_t stream, numbered;

    const _Atomic uint64_t *epoch; /* NULL: this server is no master that sentinels named */
    uint64_t                seen;

    redisReplyObjectFunctions functions, *hiredis_functions; /* hiredis's own, with bounds on arrays */
    char                      in[READ_SIZE];
};

/* -------------------------------------------------------------------------------------- faults and texts */

/* The connection is over: remember why, give the descriptor back at once. */
static near_status
break_down(struct near__redis_conn *conn, near_status status)
{
    if (conn->broken == NEAR_OK)
        conn->broken = status;
    near__transport_close(&conn->transport);
    return status;
}

static near_status
already_broken(const struct near__redis_conn *conn, near_error *error)
{
    return near__fail(error, conn->broken, "%s: the connection was dropped earlier", conn->name);
}

static int
ms_since(const struct near__redis_conn *conn, int64_t started)
{
    return (int)((near__now(conn->transport.clock) - started) / NEAR_MS);
}

static near_status
fault_wait(struct near__redis_conn *conn, near_status status, int64_t started, near_error *error)
{
    break_down(conn, status);
    if (status == NEAR_ERR_TIMEOUT)
        return near__fail(error, status, "%s: %s timed out after %dms, connection dropped", conn->name,
                          conn->operation, ms_since(conn, started));
    return near__fail(error, status, "%s: %s given up: %s", conn->name, conn->operation,
                      near_status_text(status));
}

static near_status
fault_io(struct near__redis_conn *conn, int code, near_error *error)
{
    char why[160];

    near__transport_fault(&conn->transport, code, why, sizeof(why));
    break_down(conn, NEAR_ERR_UNAVAILABLE);
    return near__fail(error, NEAR_ERR_UNAVAILABLE, "%s: %s failed: %s, connection dropped", conn->name,
                      conn->operation, why);
}

static near_status
fault_protocol(struct near__redis_conn *conn, const char *what, near_error *error)
{
    break_down(conn, NEAR_ERR_PROTOCOL);
    return near__fail(error, NEAR_ERR_PROTOCOL, "%s: %s: %s, connection dropped", conn->name, conn->operation,
                      what);
}

/* --------------------------------------------------------------------------------------- error replies */

/* First words (rule R1).  Whatever is not here makes no sense to us. */
static const struct error_class {
    const char *word;
    near_status status;
    bool        drops;
} error_classes[] = {
    { "LOADING", NEAR_ERR_UNAVAILABLE, true },     { "BUSY", NEAR_ERR_UNAVAILABLE, false },
    { "TRYAGAIN", NEAR_ERR_UNAVAILABLE, false },   { "CLUSTERDOWN", NEAR_ERR_UNAVAILABLE, true },
    { "MASTERDOWN", NEAR_ERR_UNAVAILABLE, true },  { "READONLY", NEAR_ERR_UNAVAILABLE, true },
    { "MOVED", NEAR_ERR_UNAVAILABLE, true },       { "ASK", NEAR_ERR_UNAVAILABLE, true },
    { "UNKILLABLE", NEAR_ERR_UNAVAILABLE, false }, { "OOM", NEAR_ERR_DENIED, false },
    { "MISCONF", NEAR_ERR_DENIED, false },         { "NOREPLICAS", NEAR_ERR_DENIED, false },
    { "NOAUTH", NEAR_ERR_DENIED, true },           { "WRONGPASS", NEAR_ERR_DENIED, true },
    { "NOPERM", NEAR_ERR_DENIED, false },          { "DENIED", NEAR_ERR_DENIED, true },
    { "EXECABORT", NEAR_ERR_DENIED, false },
};

/* Texts of "ERR" that quote no argument; those that have a class of their own say so. */
static const struct known_text {
    const char *text;
    near_status status;
} known_texts[] = {
    { "ERR max number of clients reached", NEAR_ERR_UNAVAILABLE },
    { "ERR max number of clients + cluster connections reached", NEAR_ERR_UNAVAILABLE },
    { "ERR DB index is out of range", NEAR_ERR_DENIED },
    { "ERR invalid DB index", NEAR_ERR_DENIED },
    { "ERR SELECT is not allowed in cluster mode", NEAR_ERR_DENIED },
    { "ERR Client sent AUTH, but no password is set", NEAR_ERR_DENIED },
    { "ERR AUTH <password> called without any password configured", NEAR_ERR_DENIED },
    { "ERR invalid password", NEAR_ERR_DENIED },
    { "ERR string exceeds maximum allowed size", NEAR_ERR_TOO_LARGE },
};

static size_t
first_word(const redisReply *reply)
{
    size_t n = 0;

    while (n < reply->len && ((reply->str[n] >= 'A' && reply->str[n] <= 'Z') || reply->str[n] == '_'))
        n++;
    return n == reply->len || reply->str[n] == ' ' ? n : 0;
}

static const struct error_class *
find_class(const redisReply *reply)
{
    size_t n = first_word(reply);

    for (size_t i = 0; i < NEAR_COUNT_OF(error_classes); i++)
        if (strlen(error_classes[i].word) == n && memcmp(error_classes[i].word, reply->str, n) == 0)
            return &error_classes[i];
    return NULL;
}

static const struct known_text *
find_text(const redisReply *reply)
{
    for (size_t i = 0; i < NEAR_COUNT_OF(known_texts); i++) {
        size_t n = strlen(known_texts[i].text);
        if (reply->len >= n && memcmp(reply->str, known_texts[i].text, n) == 0)
            return &known_texts[i];
    }
    return NULL;
}

near_status
near__redis_error_class(const redisReply *reply)
{
    const struct error_class *class = find_class(reply);
    const struct known_text *text   = class == NULL ? find_text(reply) : NULL;

    if (class != NULL)
        return class->status;
    return text != NULL ? text->status : NEAR_ERR_PROTOCOL;
}

bool
near__redis_error_drops(const redisReply *reply)
{
    const struct error_class *class = find_class(reply);

    return class != NULL && class->drops;
}

void
near__redis_error_word(const redisReply *reply, char *out, size_t size)
{
    const struct known_text *text = find_text(reply);
    size_t                   n    = first_word(reply);

    if (text != NULL)
        snprintf(out, size, "%s", text->text);
    else if (n == 0 || n > 32)
        snprintf(out, size, "an error without a code");
    else
        snprintf(out, size, "%.*s", (int)n, reply->str);
}

/* ------------------------------------------------------------------------------------------ birth and end */

#if HIREDIS_MAJOR >= 1 /* rule H15 */
typedef size_t element_count;
#else
typedef int element_count;
#endif

/* A peer may announce arrays of any length, for all of which hiredis would allocate, and from 1.0 on of
 * any depth, which it frees by recursion (rule H14).  NULL ends the reader. */
static void *
bounded_array(const redisReadTask *task, element_count elements)
{
    const struct near__redis_conn *conn  = task->privdata;
    unsigned                       depth = 0;

    for (const redisReadTask *up = task->parent; up != NULL && depth <= MAX_DEPTH; up = up->parent)
        depth++;
    return elements > MAX_ELEMENTS || depth > MAX_DEPTH
               ? NULL
               : conn->hiredis_functions->createArray(task, elements);
}

static void
bound_arrays(struct near__redis_conn *conn)
{
    conn->hiredis_functions     = conn->reader->fn;
    conn->functions             = *conn->reader->fn;
    conn->functions.createArray = bounded_array;
    conn->reader->fn            = &conn->functions;
    conn->reader->privdata      = conn;
#ifdef HAVE_STRUCT_REDISREADER_MAXELEMENTS
    conn->reader->maxelements = MAX_ELEMENTS;
#endif
}

static void
forget_queue(struct near__redis_conn *conn)
{
    for (size_t i = 0; i < conn->queued; i++)
        free(conn->commands[i].data);
    conn->queued = 0;
    conn->offset = 0;
}

void
near__redis_conn_free(struct near__redis_conn **conn)
{
    struct near__redis_conn *c = *conn;

    *conn = NULL;
    if (c == NULL)
        return;
    near__transport_close(&c->transport);
    forget_queue(c);
    free(c->commands);
    if (c->reader != NULL)
        redisReaderFree(c->reader);
    free(c);
}

void
near__redis_conn_abandon(struct near__redis_conn *conn)
{
    near__transport_abandon(&conn->transport);
}

static near_status
conn_new(struct near__redis_conn **out, const struct near__redis_server *server)
{
    near_status              status = NEAR_ERR_NOMEM;
    struct near__redis_conn *conn   = malloc(sizeof(*conn));
    char                     address[sizeof(server->address->host) + 16];

    if (conn == NULL)
        return NEAR_ERR_NOMEM;
    memset(conn, 0, offsetof(struct near__redis_conn, in)); /* not the buffer: idle connections stay small */
    conn->transport.fd        = -1;
    conn->transport.cancel_fd = server->cancel_fd == NULL ? -1 : *server->cancel_fd;
    conn->transport.clock     = server->clock;
    conn->max_reply           = server->max_reply;
    near__address_display(server->address, address, sizeof(address));
    snprintf(conn->name, sizeof(conn->name), "redis %s", address);
    conn->reader = redisReaderCreate();
    if (conn->reader == NULL)
        goto fail;
    bound_arrays(conn);
    status = NEAR_ERR_UNAVAILABLE;
    while (conn->stream == 0)
        if (!near__random(&conn->stream, sizeof(conn->stream)))
            goto fail;
    *out = conn;
    return NEAR_OK;
fail:
    near__redis_conn_free(&conn);
    return status;
}

/* The handshake (rule R4): which commands were queued, and the first refusal. */
struct handshake {
    const char *steps[4];
    size_t      count;
    near_status status;
    char        refusal[96];
};

static near_status
queue_step(struct near__redis_conn *conn, struct handshake *hand, const char *step, size_t argc,
           const char *const *args)
{
    near_bytes argv[3];

    for (size_t i = 0; i < argc; i++)
        argv[i] = near_key(args[i]);
    hand->steps[hand->count++] = step;
    return near__redis_append(conn, argc, argv);
}

static near_status
queue_handshake(struct near__redis_conn *conn, struct handshake *hand,
                const struct near__redis_server *server, bool want_master)
{
    const struct near__uri *uri    = server->uri;
    near_status             status = NEAR_OK;
    char                    database[16];

    if (uri->user[0] != '\0')
        status = queue_step(conn, hand, "AUTH", 3, (const char *[]){ "AUTH", uri->user, uri->password });
    else if (uri->password[0] != '\0')
        status = queue_step(conn, hand, "AUTH", 2, (const char *[]){ "AUTH", uri->password });
    if (status != NEAR_OK)
        return status;
    if (want_master)
        status = queue_step(conn, hand, "ROLE", 1, (const char *[]){ "ROLE" });
    snprintf(database, sizeof(database), "%u", uri->database);
    if (status == NEAR_OK && uri->database != 0)
        status = queue_step(conn, hand, "SELECT", 2, (const char *[]){ "SELECT", database });
    if (status != NEAR_OK || server->client_name == NULL || server->client_name[0] == '\0')
        return status;
    return queue_step(conn, hand, "CLIENT SETNAME", 3,
                      (const char *[]){ "CLIENT", "SETNAME", server->client_name });
}

/* The answer to ROLE: an array that begins with the role. */
static bool
is_role(const redisReply *reply, const char *role)
{
    return reply->type == REDIS_REPLY_ARRAY && reply->elements > 0 &&
           reply->element[0]->type == REDIS_REPLY_STRING && strcmp(reply->element[0]->str, role) == 0;
}

static void
handshake_reply(void *ctx, size_t index, redisReply *reply)
{
    struct handshake *hand = ctx;
    char              word[64];
    near_status       status = NEAR_ERR_PROTOCOL;

    if (hand->status != NEAR_OK || (reply->type == REDIS_REPLY_STATUS && strcmp(reply->str, "OK") == 0) ||
        is_role(reply, "master"))
        return;
    if (is_role(reply, "slave")) {
        hand->status = NEAR_ERR_UNAVAILABLE;
        snprintf(hand->refusal, sizeof(hand->refusal), "it is a replica, no master");
        return;
    }
    snprintf(word, sizeof(word), "an unexpected reply");
    if (reply->type == REDIS_REPLY_ERROR) {
        near__redis_error_word(reply, word, sizeof(word));
        status = near__redis_error_class(reply);
        /* the name is a courtesy: a user without the right to set it is still welcome, and so is a server
         * without names */
        if (strcmp(hand->steps[index], "CLIENT SETNAME") == 0 &&
            (strcmp(word, "NOPERM") == 0 || strcmp(word, "ERR") == 0))
            return;
    }
    hand->status = status;
    snprintf(hand->refusal, sizeof(hand->refusal), "%s refused: %s", hand->steps[index], word);
}

/* A server that hangs up at the first words may not have its own words heard: they can be overtaken. */
static const char *
hang_up_hint(const struct near__redis_server *server)
{
    if (server->address->port == 0)
        return "";
    return server->uri->tls ? " (does it want a client certificate? then set tls.cert_file)"
                            : " (does it speak TLS at this port? then use rediss://)";
}

static near_status
shake_hands(struct near__redis_conn *conn, const struct near__redis_server *server, bool want_master,
            int64_t deadline, near_error *error)
{
    struct handshake hand     = { .count = 0, .status = NEAR_OK };
    near_status      status   = queue_handshake(conn, &hand, server, want_master);
    near_error       reason   = { 0 };
    size_t           answered = 0;

    if (status != NEAR_OK)
        return near__fail(error, status, "%s: %s", conn->name, near_status_text(status));
    if (hand.count == 0)
        return NEAR_OK;
    status = near__redis_exchange(conn, handshake_reply, &hand, &answered, NULL, deadline, &reason);
    if (hand.status == NEAR_OK && status != NEAR_OK)
        return near__fail(error, status, "%s%s", reason.text,
                          status != NEAR_ERR_UNAVAILABLE || answered > 0 ? "" : hang_up_hint(server));
    if (hand.status == NEAR_OK)
        return NEAR_OK;
    return near__fail(error, hand.status, "%s: %s", conn->name,
                      hand.refusal); /* it says more than the hang-up after it */
}

/* Never less than the URI asks for. */
static near_status
check_access(struct near__redis_conn *conn, const struct near__redis_server *server, near_error *error)
{
    if (!server->uri->tls)
        return NEAR_OK;
    conn->transport.tls_context = server->access != NULL ? server->access->tls : NULL;
    if (conn->transport.tls_context == NULL)
        return near__fail(error, NEAR_ERR_UNSUPPORTED, "%s: TLS is wanted and not set up", conn->name);
    return NEAR_OK;
}

/* Looked at here, where the peer's address is certain, whatever named it: a URI, a sentinel, a cluster. */
static near_status
may_login(const struct near__redis_conn *conn, const struct near__redis_server *server, near_error *error)
{
    if (server->uri->password[0] == '\0' || near__transport_private(&conn->transport) ||
        (server->access != NULL && server->access->plaintext_auth))
        return NEAR_OK;
    return near__fail(error, NEAR_ERR_DENIED,
                      "%s: not logged in: the password would be readable on the way; use rediss:// or set "
                      "l2.allow_plaintext_auth = yes",
                      conn->name);
}

near_status
near__redis_dial_at(struct near__redis_conn **conn, const struct near__redis_server *server, bool want_master,
                    int64_t deadline, near_error *error)
{
    struct near__redis_conn *c      = NULL;
    near_error               reason = { 0 };
    near_status              status;

    *conn  = NULL;
    status = conn_new(&c, server);
    if (status != NEAR_OK)
        return near__fail(error, status, "redis: %s", near_status_text(status));
    status = check_access(c, server, error);
    if (status == NEAR_OK) {
        status = near__transport_open(&c->transport, server->address, deadline, &reason);
        if (status != NEAR_OK)
            near__fail(error, status, "%s: %s", c->name, reason.text);
    }
    if (status == NEAR_OK)
        status = may_login(c, server, error);
    if (status == NEAR_OK)
        status = shake_hands(c, server, want_master, deadline, error);
    if (status != NEAR_OK) {
        near__redis_conn_free(&c);
        return status;
    }
    *conn = c;
    return NEAR_OK;
}

near_status
near__redis_dial(struct near__redis_conn **conn, const struct near__redis_server *server, int64_t deadline,
                 near_error *error)
{
    struct near__redis_server to = *server;

    if (server->address == NULL && server->uri->layout == NEAR__LAYOUT_SENTINEL)
        return near__sentinels_dial(conn, server, deadline, error);
    if (server->address == NULL)
        to.address = &server->uri->addresses[0];
    return near__redis_dial_at(conn, &to, false, deadline, error);
}

void
near__redis_conn_watch(struct near__redis_conn *conn, const _Atomic uint64_t *epoch, uint64_t seen)
{
    conn->epoch = epoch;
    conn->seen  = seen;
}

/* Relaxed: it decides nothing but that a connection is given up, and nothing else is read on its strength. */
bool
near__redis_conn_outdated(const struct near__redis_conn *conn)
{
    return conn->epoch != NULL && atomic_load_explicit(conn->epoch, memory_order_relaxed) != conn->seen;
}

static bool
has_leftover(const struct near__redis_conn *conn)
{
    return conn->reader->len > conn->reader->pos;
}

bool
near__redis_conn_usable(struct near__redis_conn *conn)
{
    return conn->broken == NEAR_OK && conn->queued == 0 && !has_leftover(conn) &&
           !near__redis_conn_outdated(conn) && near__transport_quiet(&conn->transport);
}

struct near__transport *
near__redis_conn_transport(struct near__redis_conn *conn)
{
    return &conn->transport;
}

/* --------------------------------------------------------------------------------------------- streams */

uint64_t
near__redis_conn_stream(const struct near__redis_conn *conn)
{
    return conn->stream;
}

void
near__redis_conn_stamp(struct near__redis_conn *conn, uint8_t *at)
{
    near__stream_claim(conn->stream);
    near__le64_put(at, conn->stream);
    near__le64_put(at + 8, ++conn->numbered);
}

bool
near__redis_conn_is_last(const struct near__redis_conn *conn, uint64_t number)
{
    return conn->numbered == number;
}

void
near__redis_conn_unstamp(struct near__redis_conn *conn)
{
    conn->numbered--;
}

/* --------------------------------------------------------------------------------------------- queueing */

static bool
room_for_one(struct near__redis_conn *conn)
{
    size_t          capacity = conn->capacity == 0 ? 4 : conn->capacity * 2;
    struct command *more;

    if (conn->queued < conn->capacity)
        return true;
    more = reallocarray(conn->commands, capacity, sizeof(*more));
    if (more == NULL)
        return false;
    conn->commands = more;
    conn->capacity = capacity;
    return true;
}

near_status
near__redis_append(struct near__redis_conn *conn, size_t argc, const near_bytes *argv)
{
    struct command command;
    near_status    status =
        room_for_one(conn) ? near__resp_format(&command.data, &command.size, argc, argv) : NEAR_ERR_NOMEM;

    if (status != NEAR_OK)
        return status;
    if (conn->queued == 0) {
        conn->sent = 0;
        snprintf(conn->operation, sizeof(conn->operation), "%.*s",
                 (int)(argv[0].size < 20 ? argv[0].size : 20), (const char *)argv[0].data);
    }
    conn->commands[conn->queued++] = command;
    return NEAR_OK;
}

size_t
near__redis_queued(const struct near__redis_conn *conn)
{
    return conn->queued;
}

size_t
near__redis_sent(const struct near__redis_conn *conn)
{
    return conn->sent;
}

/* ---------------------------------------------------------------------------------------------- sending */

static size_t
pieces_to_send(const struct near__redis_conn *conn, struct iovec *pieces)
{
    size_t n = 0;

    for (size_t i = conn->sent; i < conn->queued && n < IOV_PIECES; i++, n++)
        pieces[n] = (struct iovec){ conn->commands[i].data, conn->commands[i].size };
    if (n > 0) {
        pieces[0].iov_base = (char *)pieces[0].iov_base + conn->offset;
        pieces[0].iov_len -= conn->offset;
    }
    return n;
}

static void
advance(struct near__redis_conn *conn, size_t bytes)
{
    conn->offset += bytes;
    while (conn->sent < conn->queued && conn->offset >= conn->commands[conn->sent].size)
        conn->offset -= conn->commands[conn->sent++].size;
}

/* Send what the system takes without blocking. */
static near_status
send_some(struct near__redis_conn *conn, bool *sent_any, near_error *error)
{
    struct iovec pieces[IOV_PIECES];
    ssize_t      n;

    while (conn->sent < conn->queued) {
        n = near__transport_send(&conn->transport, pieces, pieces_to_send(conn, pieces));
        if (n < 0)
            return fault_io(conn, errno, error);
        if (n == 0)
            break;
        *sent_any = true;
        advance(conn, (size_t)n);
    }
    return NEAR_OK;
}

/* --------------------------------------------------------------------------------------------- receiving */

/* A server that speaks TLS answers plain commands with an alert: 0x15, the version 3.x. */
static bool
is_tls_alert(const struct near__redis_conn *conn)
{
    const char *buf = conn->reader->buf;

    return conn->transport.tls == NULL && buf != NULL && conn->reader->len >= 2 && buf[0] == 0x15 &&
           buf[1] == 0x03;
}

/* The next complete reply in the reader, or NULL when it takes more bytes. */
static near_status
parse(struct near__redis_conn *conn, redisReply **reply, near_error *error)
{
    void *parsed = NULL;

    *reply = NULL;
    if (redisReaderGetReply(conn->reader, &parsed) != REDIS_OK)
        return fault_protocol(conn,
                              is_tls_alert(conn) ? "the server speaks TLS at this port: use rediss://"
                                                 : "the reply makes no sense",
                              error);
    if (parsed != NULL)
        conn->fed = conn->reader->len - conn->reader->pos;
    else if (conn->fed > conn->max_reply)
        return fault_protocol(conn, "the reply is larger than any we asked for", error);
    *reply = parsed;
    return NEAR_OK;
}

/* Feed the reader what has arrived. */
static near_status
receive_some(struct near__redis_conn *conn, near_error *error)
{
    ssize_t n = near__transport_receive(&conn->transport, conn->in, sizeof(conn->in));

    if (n < 0)
        return fault_io(conn, errno, error);
    if (n == 0)
        return NEAR_OK;
    conn->fed += (size_t)n;
    if (redisReaderFeed(conn->reader, conn->in, (size_t)n) != REDIS_OK)
        return fault_protocol(conn, "no memory for the reply", error);
    return NEAR_OK;
}

/* One exchange under way. */
struct exchange {
    near__redis_reply_fn fn;
    void                *ctx;
    size_t               answered;
    bool                 sent_any;
};

static bool
is_push(const redisReply *reply)
{
#if HAVE_DECL_REDIS_REPLY_PUSH
    return reply->type == REDIS_REPLY_PUSH; /* rule H13: it answers nothing */
#else
    (void)reply;
    return false;
#endif
}

/* Hand out every complete reply that the reader holds. */
static near_status
hand_out(struct near__redis_conn *conn, struct exchange *x, near_error *error)
{
    redisReply *reply;
    near_status status;

    while (x->answered < conn->queued) {
        status = parse(conn, &reply, error);
        if (status != NEAR_OK || reply == NULL)
            return status;
        if (is_push(reply)) {
            freeReplyObject(reply);
            continue;
        }
        if (x->answered >= conn->sent || (x->answered + 1 == conn->queued && has_leftover(conn))) {
            freeReplyObject(reply);
            return fault_protocol(conn, "more replies than commands", error);
        }
        x->fn(x->ctx, x->answered, reply);
        x->answered++;
        freeReplyObject(reply);
    }
    return NEAR_OK;
}

/* Both directions at once: the server may stop reading until we have read its replies (rule H18). */
static near_status
talk(struct near__redis_conn *conn, struct exchange *x, int64_t deadline, near_error *error)
{
    int64_t     started = near__now(conn->transport.clock);
    near_status status  = started < deadline ? NEAR_OK : fault_wait(conn, NEAR_ERR_TIMEOUT, started, error);

    while (status == NEAR_OK && x->answered < conn->queued) {
        status = send_some(conn, &x->sent_any, error);
        if (status != NEAR_OK)
            break;
        status = near__transport_wait(&conn->transport, conn->sent < conn->queued, -1, deadline);
        if (status != NEAR_OK)
            return fault_wait(conn, status, started, error);
        status = receive_some(conn, error);
        if (status == NEAR_OK)
            status = hand_out(conn, x, error);
    }
    return status;
}

near_status
near__redis_exchange(struct near__redis_conn *conn, near__redis_reply_fn reply, void *ctx, size_t *answered,
                     bool *sent_any, int64_t deadline, near_error *error)
{
    struct exchange x = { .fn = reply, .ctx = ctx };
    near_status     status;

    conn->sent = 0;
    status     = conn->broken != NEAR_OK ? already_broken(conn, error) : talk(conn, &x, deadline, error);
    forget_queue(conn);
    if (answered != NULL)
        *answered = x.answered;
    if (sent_any != NULL)
        *sent_any = x.sent_any;
    return status;
}

/* ------------------------------------------------------------------------------------------- subscribers */

near_status
near__redis_flush(struct near__redis_conn *conn, int64_t deadline, near_error *error)
{
    int64_t     started = near__now(conn->transport.clock);
    bool        any     = false;
    near_status status  = NEAR_OK;

    conn->sent = 0;
    if (conn->broken != NEAR_OK)
        status = already_broken(conn, error);
    while (status == NEAR_OK && conn->sent < conn->queued) {
        status = send_some(conn, &any, error);
        if (status != NEAR_OK || conn->sent == conn->queued)
            break;
        status = near__transport_wait(&conn->transport, true, -1, deadline);
        if (status != NEAR_OK)
            status = fault_wait(conn, status, started, error);
        else if (conn->fed > conn->max_reply)
            status = fault_protocol(conn, "the server sends and does not read", error);
        else
            status = receive_some(conn, error); /* kept in the reader for read_one */
    }
    forget_queue(conn);
    return status;
}

near_status
near__redis_read_one(struct near__redis_conn *conn, redisReply **reply, int wake_fd, int64_t deadline,
                     near_error *error)
{
    near_status status;

    *reply = NULL;
    if (conn->broken != NEAR_OK)
        return already_broken(conn, error);
    snprintf(conn->operation, sizeof(conn->operation), "waiting for a message");
    for (;;) {
        if (near__redis_conn_outdated(conn)) {
            break_down(conn, NEAR_ERR_UNAVAILABLE);
            return near__fail(error, NEAR_ERR_UNAVAILABLE,
                              "%s: another server is the master now, connection dropped", conn->name);
        }
        status = parse(conn, reply, error);
        if (status != NEAR_OK || *reply != NULL)
            return status;
        status = near__transport_wait(&conn->transport, false, wake_fd, deadline);
        if (status == NEAR_ERR_TIMEOUT || status == NEAR_ERR_BUSY)
            return near__fail(error, status, "%s: no message", conn->name);
        if (status != NEAR_OK)
            return fault_wait(conn, status, near__now(conn->transport.clock), error);
        status = receive_some(conn, error);
        if (status != NEAR_OK)
            return status;
    }
}
