/*
 * See memcached_conn.h.
 *
 * A connection belongs to its leader.  Between receive() calls it keeps at most the beginning of one line
 * (`tail`); values go straight into their talk.  Reads that leave together: the first is kept back until it
 * is known whether it stays alone; once a second one comes, "get" and the keys of both are put, and the line
 * stays open for more until another command or flush() ends it.  A key that is in the line already is not put
 * again: who wants it follows the record that asks (`seen`, a hash table of those).
 *
 * A connection that is dropped while removals on it were unanswered makes its server distrusted: what was to
 * be removed may be there for ever (a set that has no answer is followed by a removal, by whoever made it).
 */
#include "l2/memcached_conn.h"

#include "base/hash.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A proxy that hangs up on what it does not know must not be asked with every dial for ever; a server that
 * went away in that moment is worth another question. */
#define STATS_TRIES 3
/* From this size on a call takes the connection for bulk transfers: it is about what a loopback carries in
 * the time of one round trip. */
#define BULK      (64 << 10)
#define BULK_READ (128 << 10)                /* but the keys of a long read, which leave in little time */
#define SEEN      (2 * NEAR__MEMCACHED_KEYS) /* places: half of them are empty */

struct near__memcached_conn {
    struct near__transport         transport;
    struct near__memcached_server *server;
    uint64_t                       life;       /* the server's `lives` since it was made */
    size_t                         unanswered; /* writes begun and not answered */
    size_t                         removals;   /* those of them that count */
    bool                           broken;     /* must not be used again */
    struct near__memcached_call   *held;       /* a read that was begun and not put yet */
    struct near__memcached_call   *open;       /* the last read of a line that has no end yet */
    size_t                         open_keys;  /* said in it */
    size_t                         open_max;   /* bound of its values */
    struct near__memcached_record *seen[SEEN];
    enum near__memcached_talk_kind open_kind; /* of the one kept back, or of the line */
    size_t                         tail_size;
    char                           tail[NEAR__MEMCACHED_LINE];
};

static inline struct near__memcached_call *
call_of(struct near__lane_call *lane)
{
    return (struct near__memcached_call *)(void *)lane;
}

/* ------------------------------------------------------------------------------------------------- calls */

struct near__memcached_call *
near__memcached_call_new(struct near__memcached_server *server, enum near__memcached_talk_kind kind, size_t n,
                         size_t key_bytes, size_t value_bytes, size_t max_value)
{
    struct near__memcached_call *call =
        malloc(sizeof(*call) + near__memcached_talk_size(n, key_bytes, value_bytes));

    if (call == NULL)
        return NULL;
    memset(call, 0, offsetof(struct near__memcached_call, talk));
    call->server = server;
    near__memcached_talk_init(&call->talk, kind, n, key_bytes, value_bytes, max_value);
    return call;
}

static bool
reads(const struct near__memcached_call *call)
{
    return call->talk.kind == NEAR__MEMCACHED_READS || call->talk.kind == NEAR__MEMCACHED_READS_NUMBERS;
}

static bool
reads_large(const struct near__memcached_call *call)
{
    for (size_t i = 0; reads(call) && i < call->talk.n; i++)
        if (near__large_has(&call->server->large, call->talk.records[i].key))
            return true;
    return false;
}

static void
note_large(const struct near__memcached_call *call)
{
    for (size_t i = 0; reads(call) && i < call->talk.n; i++)
        if (call->talk.records[i].word != NEAR__MEMCACHED_UNANSWERED)
            near__large_note(&call->server->large, call->talk.records[i].key,
                             call->talk.records[i].value.size);
}

void
near__memcached_call_free(struct near__memcached_call *call)
{
    if (call == NULL)
        return;
    note_large(call);
    near__memcached_talk_fini(&call->talk);
    free(call);
}

struct near__lane_ask
near__memcached_ask(struct near__memcached_call *call)
{
    near__memcached_talk_ready(&call->talk);
    call->lane.bulk      = call->talk.size >= (reads(call) ? BULK_READ : BULK) || reads_large(call);
    call->lane.operation = near__memcached_talk_name(&call->talk);
    return (struct near__lane_ask){ .lanes = call->server->lanes, .call = &call->lane };
}

static void
codec_free_call(struct near__lane_call *call)
{
    near__memcached_call_free(call_of(call));
}

static void
codec_rewind(struct near__lane_call *call)
{
    near__memcached_rewind(&call_of(call)->talk);
}

/* -------------------------------------------------------------------------------------------- going out */

static near_status
no_memory(struct near__memcached_conn *conn)
{
    conn->broken = true;
    return NEAR_ERR_NOMEM;
}

/* End the line that is open, or put the read that was kept back. */
static near_status
codec_flush(void *self, struct near__lane_out *out)
{
    struct near__memcached_conn *conn = self;
    struct near__memcached_call *held = conn->held, *open = conn->open;

    conn->held = conn->open = NULL;
    if (conn->broken)
        return NEAR_ERR_NOMEM;
    if (held != NULL && !near__lane_put(out, &held->lane, held->talk.bytes, held->talk.size))
        return no_memory(conn);
    if (open != NULL && !near__lane_put(out, &open->lane, "\r\n", 2))
        return no_memory(conn);
    return NEAR_OK;
}

/* The place of the record that asks for this key in the open line, or of this one if there is none. */
static struct near__memcached_record **
find_seen(struct near__memcached_conn *conn, const struct near__memcached_record *record)
{
    uint64_t hash = near__hash_fixed(record->key);

    for (size_t at = hash % SEEN;; at = (at + 1) % SEEN)
        if (conn->seen[at] == NULL || near__bytes_equal(conn->seen[at]->key, record->key))
            return &conn->seen[at];
}

/* Put said[0 .. size), keys of the call. */
static bool
put_some(struct near__memcached_call *call, near_bytes *said, struct near__lane_out *out)
{
    bool put = said->size == 0 || near__lane_put(out, &call->lane, said->data, said->size);

    *said = (near_bytes){ NULL, 0 };
    return put;
}

/* Put the keys that nobody asks for yet in this line, those that follow each other in one piece. */
static bool
put_keys(struct near__memcached_conn *conn, struct near__memcached_call *call, struct near__lane_out *out)
{
    near_bytes said = { NULL, 0 };
    bool       put  = true;

    for (size_t i = 0; put && i < call->talk.n; i++) {
        struct near__memcached_record  *record = &call->talk.records[i];
        struct near__memcached_record **seen   = find_seen(conn, record);

        if (*seen != NULL) {
            near__memcached_follow(*seen, &call->talk, record);
            put = put_some(call, &said, out);
            continue;
        }
        *seen = record;
        conn->open_keys++;
        if (said.size == 0)
            said.data = near__memcached_key_said(record).data;
        said.size += near__memcached_key_said(record).size;
    }
    return put && put_some(call, &said, out);
}

/* A second read: the first is put, and the line is open. */
static near_status
open_line(struct near__memcached_conn *conn, struct near__lane_out *out)
{
    struct near__memcached_call *held = conn->held;
    const char                  *name = near__memcached_talk_name(&held->talk);

    conn->held      = NULL;
    conn->open_keys = 0;
    memset(conn->seen, 0, sizeof(conn->seen));
    if (!near__lane_put(out, &held->lane, name, strlen(name)) || !put_keys(conn, held, out))
        return no_memory(conn);
    conn->open = held;
    return NEAR_OK;
}

static void
keep_back(struct near__memcached_conn *conn, struct near__memcached_call *call)
{
    conn->held      = call;
    conn->open_keys = call->talk.n;
    conn->open_kind = call->talk.kind;
    conn->open_max  = call->talk.max_value;
}

/* Can it join the line that is open, or be said with the read that was kept back? */
static bool
fits(const struct near__memcached_conn *conn, const struct near__memcached_call *call)
{
    return conn->open_keys + call->talk.n <= NEAR__MEMCACHED_KEYS && conn->open_kind == call->talk.kind &&
           conn->open_max == call->talk.max_value;
}

static near_status
begin_read(struct near__memcached_conn *conn, struct near__memcached_call *call, struct near__lane_out *out)
{
    near_status status = NEAR_OK;

    if ((conn->held != NULL || conn->open != NULL) && !fits(conn, call))
        status = codec_flush(conn, out);
    if (status != NEAR_OK)
        return status;
    if (conn->held == NULL && conn->open == NULL) {
        keep_back(conn, call);
        return NEAR_OK;
    }
    if (conn->held != NULL)
        status = open_line(conn, out);
    if (status != NEAR_OK)
        return status;
    if (!put_keys(conn, call, out))
        return no_memory(conn);
    if (call->lane.from == call->lane.to) /* all of them had been asked for */
        near__lane_put_with(&call->lane, &conn->open->lane);
    near__memcached_fuse(&conn->open->talk, &call->talk);
    conn->open = call;
    return NEAR_OK;
}

static void
count_writes(struct near__memcached_conn *conn, const struct near__memcached_call *call, int by)
{
    conn->unanswered += (size_t)(by * (call->talk.kind == NEAR__MEMCACHED_WRITES));
    conn->removals += (size_t)(by * (int)call->counts);
}

/* In the place of writes that must not be said here: something harmless with one answer. */
static const char *
said(const struct near__memcached_call *call, size_t *size)
{
    *size = call->outdated ? sizeof("version\r\n") - 1 : call->talk.size;
    return call->outdated ? "version\r\n" : call->talk.bytes;
}

static near_status
codec_begin(void *self, struct near__lane_call *lane, struct near__lane_out *out)
{
    struct near__memcached_conn *conn = self;
    struct near__memcached_call *call = call_of(lane);
    near_status                  status;
    const char                  *bytes;
    size_t                       size;

    if (conn->broken)
        return NEAR_ERR_NOMEM;
    call->lives = atomic_load_explicit(&conn->server->lives, memory_order_relaxed);
    if (near__memcached_can_fuse(&call->talk)) {
        status = begin_read(conn, call, out);
        call->begins += status == NEAR_OK;
        return status;
    }
    status = codec_flush(conn, out);
    if (status != NEAR_OK)
        return status;
    call->outdated = call->life != 0 && conn->life > call->life;
    bytes          = said(call, &size);
    if (!near__lane_put(out, lane, bytes, size))
        return NEAR_ERR_NOMEM;
    call->begins++;
    count_writes(conn, call, 1);
    return NEAR_OK;
}

/* ------------------------------------------------------------------------------------------- coming back */

static near_status
broken(struct near__memcached_conn *conn, near_error *error, const near_error *why)
{
    conn->broken = true;
    return near__fail(error, why->code, "%s: %s, connection dropped", conn->server->name, why->text);
}

/* The answer to what was said in the place of outdated writes. */
static enum near__memcached_progress
hear_outdated(struct near__memcached_call *call, const char *bytes, size_t size, size_t *used,
              near_error *why)
{
    struct near__memcached_line line;

    near__memcached_parse_line(&line, bytes, size);
    *used = line.size;
    if (line.kind == NEAR__MEMCACHED_MORE)
        return NEAR__MEMCACHED_WAITING;
    if (line.kind == NEAR__MEMCACHED_VERSION) {
        call->talk.complete = true;
        return NEAR__MEMCACHED_COMPLETE;
    }
    near__fail(why, NEAR_ERR_PROTOCOL, "version: not an answer of memcached");
    return NEAR__MEMCACHED_NONSENSE;
}

static enum near__memcached_progress
hear(struct near__memcached_call *call, const char *bytes, size_t size, size_t *used, near_error *why)
{
    if (call->outdated)
        return hear_outdated(call, bytes, size, used, why);
    return near__memcached_hear(&call->talk, bytes, size, used, why);
}

/* Bytes from the front of data[0 .. *size), behind what is left of the last ones. */
static enum near__memcached_progress
hear_some(struct near__memcached_conn *conn, struct near__memcached_call *call, const char **data,
          size_t *size, near_error *why)
{
    enum near__memcached_progress progress;
    size_t                        take = *size, room = sizeof(conn->tail) - conn->tail_size, used;
    const char                   *feed;

    if (conn->tail_size == 0) {
        progress = hear(call, *data, *size, &used, why);
        *data += used;
        *size -= used;
        if (progress != NEAR__MEMCACHED_WAITING)
            return progress;
        memcpy(conn->tail, *data, *size); /* the beginning of a line: shorter than the longest one */
        conn->tail_size = *size;
        *size           = 0;
        return progress;
    }
    take = take < room ? take : room;
    feed = memchr(*data, '\n', take);
    take = feed != NULL ? (size_t)(feed + 1 - *data) : take;
    memcpy(conn->tail + conn->tail_size, *data, take);
    conn->tail_size += take;
    *data += take;
    *size -= take;
    progress = hear(call, conn->tail, conn->tail_size, &used, why);
    if (used > 0)
        conn->tail_size = 0; /* it was this one line */
    return progress;
}

/* How many calls have their answers with this one: it alone, or its group. */
static size_t
group_size(const struct near__memcached_call *call)
{
    size_t n = 0;

    for (const struct near__memcached_talk *talk = &call->talk; talk != NULL; talk = talk->fused)
        n++;
    return n;
}

static near_status
codec_receive(void *self, struct near__lane_call *oldest, const char *data, size_t size, size_t *complete,
              near_error *error)
{
    struct near__memcached_conn  *conn = self;
    enum near__memcached_progress progress;
    near_error                    why = { 0 };

    *complete = 0;
    while (size > 0) {
        if (oldest == NULL) {
            near__fail(&why, NEAR_ERR_PROTOCOL, "the server speaks without being asked");
            return broken(conn, error, &why);
        }
        progress = hear_some(conn, call_of(oldest), &data, &size, &why);
        if (progress == NEAR__MEMCACHED_WAITING)
            continue;
        if (progress != NEAR__MEMCACHED_COMPLETE)
            return broken(conn, error, &why);
        count_writes(conn, call_of(oldest), -1);
        for (size_t n = group_size(call_of(oldest)); n > 0; n--, ++*complete)
            oldest = oldest->next;
    }
    return NEAR_OK;
}

/* ------------------------------------------------------------------------------------------ life and end */

static struct near__transport *
codec_transport(void *self)
{
    return &((struct near__memcached_conn *)self)->transport;
}

static bool
codec_usable(void *self, bool lately)
{
    struct near__memcached_conn *conn = self;

    return !conn->broken && conn->tail_size == 0 && (lately || near__transport_quiet(&conn->transport));
}

/* With something unanswered, no goodbye: it might become the end of a value that was half sent; and reset, so
 * that what the kernel still holds of it is not sent later. */
static void
codec_drop(void *self, bool goodbye)
{
    static const struct iovec    quit = { (void *)(uintptr_t) "quit\r\n", 6 };
    struct near__memcached_conn *conn = self;

    if (conn->unanswered > 0)
        near__transport_forget(&conn->transport);
    else if (goodbye && !conn->broken)
        (void)near__transport_send(&conn->transport, &quit, 1);
    near__transport_close(&conn->transport);
    if (conn->removals > 0)
        near__memcached_distrust(&conn->server->epoch);
    free(conn);
}

static void
codec_abandon(void *self)
{
    near__transport_abandon(&((struct near__memcached_conn *)self)->transport);
}

/* ----------------------------------------------------------------------------------------------- dialling */

static near_status
lost(const struct near__memcached_conn *conn, const char *what, near_error *error)
{
    return near__fail(error, NEAR_ERR_UNAVAILABLE, "%s: %s: %s", conn->server->name, what,
                      near__errno_text(errno));
}

static near_status
wait(struct near__memcached_conn *conn, const char *what, bool sending, int64_t deadline, near_error *error)
{
    near_status status = near__transport_wait(&conn->transport, sending, -1, deadline);

    if (status == NEAR_OK)
        return NEAR_OK;
    return near__fail(error, status, "%s: %s: %s", conn->server->name, what,
                      status == NEAR_ERR_TIMEOUT ? "timed out" : near_status_text(status));
}

/* Say it and hear the answer, alone on a new connection. */
static near_status
converse(struct near__memcached_conn *conn, struct near__memcached_call *call, const char *what,
         int64_t deadline, near_error *error)
{
    char         buffer[4096];
    size_t       complete = 0;
    struct iovec rest     = { call->talk.bytes, call->talk.size };
    near_status  status   = NEAR_OK;
    ssize_t      n;

    while (status == NEAR_OK && rest.iov_len > 0) {
        n = near__transport_send(&conn->transport, &rest, 1);
        if (n < 0)
            return lost(conn, what, error);
        rest = (struct iovec){ (char *)rest.iov_base + n, rest.iov_len - (size_t)n };
        if (n == 0)
            status = wait(conn, what, true, deadline, error);
    }
    while (status == NEAR_OK && complete == 0) {
        n = near__transport_receive(&conn->transport, buffer, sizeof(buffer));
        if (n < 0)
            return lost(conn, what, error);
        status = n == 0 ? wait(conn, what, false, deadline, error)
                        : codec_receive(conn, &call->lane, buffer, (size_t)n, &complete, error);
    }
    return status;
}

static near_status
ask(struct near__memcached_conn *conn, enum near__memcached_talk_kind kind, const char *what,
    int64_t deadline, uint64_t *number, near_error *error)
{
    struct near__memcached_call *call = near__memcached_call_new(conn->server, kind, 1, 0, 0, 0);
    near_status                  status;

    if (call == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "%s: connect: out of memory", conn->server->name);
    near__memcached_ask(call);
    status  = converse(conn, call, what, deadline, error);
    *number = status == NEAR_OK ? call->talk.records[0].unique : 0;
    near__memcached_call_free(call);
    return status;
}

/* Learn the server's limit, so that larger values are refused before they do harm (rule M2).  A server or
 * proxy that does not tell is not asked again; one that went away in that moment is, some times. */
static near_status
ask_settings(struct near__memcached_conn *conn, int64_t deadline, near_error *error)
{
    struct near__memcached_server *server = conn->server;
    uint64_t                       most   = 0;
    near_status                    status;

    if (atomic_load_explicit(&server->no_stats, memory_order_relaxed))
        return NEAR_OK;
    status = ask(conn, NEAR__MEMCACHED_ASK_SETTINGS, "stats settings", deadline, &most, error);
    /* numbers of their own: nothing else is read after them, hence relaxed */
    if (most > 0)
        atomic_store_explicit(&server->item_max, (size_t)most, memory_order_relaxed);
    else if (status == NEAR_OK || status == NEAR_ERR_PROTOCOL ||
             (status == NEAR_ERR_UNAVAILABLE &&
              atomic_fetch_add_explicit(&server->stats_lost, 1, memory_order_relaxed) + 1 >= STATS_TRIES))
        atomic_store_explicit(&server->no_stats, true, memory_order_relaxed);
    return status;
}

/* A listening socket is not yet a server that answers: it has to say its version. */
static near_status
codec_dial(void *ctx, void **out, int64_t deadline, near_error *error)
{
    struct near__memcached_server *server = ctx;
    struct near__memcached_conn   *conn   = calloc(1, sizeof(*conn));
    near_error                     why    = { 0 };
    uint64_t                       none;
    near_status                    status;

    *out = NULL;
    if (conn == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "%s: connect: out of memory", server->name);
    conn->server              = server;
    conn->transport.clock     = server->clock;
    conn->transport.cancel_fd = *server->cancel_fd;
    status                    = near__transport_open(&conn->transport, server->address, deadline, &why);
    if (status != NEAR_OK) {
        free(conn);
        return near__fail(error, status, "%s: connect: %s", server->name, why.text);
    }
    status = ask(conn, NEAR__MEMCACHED_ASK_VERSION, "connect", deadline, &none, error);
    if (status == NEAR_OK)
        status = ask_settings(conn, deadline, error);
    if (status != NEAR_OK) {
        codec_drop(conn, false);
        return status;
    }
    near__memcached_epoch_forget(&server->epoch);
    conn->life = atomic_fetch_add_explicit(&server->lives, 1, memory_order_relaxed) + 1;
    *out       = conn;
    return NEAR_OK;
}

const struct near__lane_codec near__memcached_lane = {
    .dial      = codec_dial,
    .drop      = codec_drop,
    .abandon   = codec_abandon,
    .transport = codec_transport,
    .usable    = codec_usable,
    .begin     = codec_begin,
    .flush     = codec_flush,
    .receive   = codec_receive,
    .rewind    = codec_rewind,
    .free_call = codec_free_call,
};
