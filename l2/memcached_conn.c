/*
 * The descriptor.  libmemcached keeps its socket to itself, but much depends on it: checking an idle
 * connection without a round trip (P5), leaving without `quit` when bytes are in doubt, ending an operation
 * that is over its time, and fork (P3).  So after connecting we look for it: the one number near the start of
 * the server's record that was -1 before, and now is a socket connected to that very server.  Nothing is
 * assumed about the record's layout, and where the search finds nothing the connection works without these
 * graces.  What we keep is a duplicate: it is ours to shut or close, whatever libmemcached does with its own.
 *
 * Positive absence.  memcached_fetch_result() turns any failure into NOTFOUND as long as it has seen no
 * result.  Its count of results is therefore set to 1 beforehand: then it ends with END after the server's
 * END, and with the true reason otherwise.
 *
 * Locks: the guard's lock covers the list of connections with their deadlines, and what the guard's thread
 * reads.  shutdown(2) is called under it: it does not block, and so no descriptor can be closed between
 * choosing and shutting it.
 */
#include "l2/memcached_conn.h"

#include "base/lock.h"
#include "base/thread.h"
#include "l2/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <libmemcached/memcached.h>
#include <limits.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#if LIBMEMCACHED_VERSION_HEX < 0x01001004
#error "libmemcached before 1.1.4 can return another key's value after a timeout (rule L1)"
#endif

#define GRACE              (3 * NEAR_MS) /* libmemcached's own timeout may come first: it knows more */
#define RECORD_INTS        32            /* how far into the server's record we look */
#define RELATIVE_MAX       2592000       /* seconds; beyond them the server reads a Unix time (rule M1) */
#define MAX_KEY            250
#define GOODBYE_TIMEOUT_MS 1
#define STATS_TRIES        3

struct near__memcached_guard {
    const struct near__clock *clock;
    pthread_t                 thread;
    bool                      forked;    /* set in a child only, before anything else runs there */
    int                       cancel_fd; /* eventfd: readable once closed.  -1 in a forked child */

    struct near__lock lock; /* covers all below and every connection's `until`, `cut`, `next`, `prev` */
    pthread_cond_t    changed;
    bool              closed, stopping;
    int64_t           wakes; /* when the thread looks again; near__clock_system */
    struct near__memcached_conn *conns;
};

struct near__memcached_conn {
    struct near__memcached_server *server;
    memcached_st                  *memc;
    memcached_result_st            result; /* reused: no allocation per read */
    const int                     *fd_at;  /* libmemcached's number for its socket; NULL: not found */
    int                            own_fd; /* our duplicate of it; -1 */
    pid_t                          pid;
    bool                           broken, lost;
    near_status                    status;

    struct near__memcached_conn *next, *prev;
    int64_t                      until; /* near__clock_system; NEAR_NEVER when idle */
    near_status                  cut;   /* the guard shut it: NEAR_ERR_TIMEOUT or NEAR_ERR_CLOSED */
};

/* ------------------------------------------------------------------------------------------------- guard */

static void
cut_locked(struct near__memcached_conn *conn, near_status why)
{
    if (conn->cut != NEAR_OK)
        return;
    conn->cut = why;
    if (conn->own_fd >= 0) /* else it is just connecting: whoever does looks at `cut` next */
        shutdown(conn->own_fd, SHUT_RDWR);
}

static int64_t
cut_late_ones_locked(struct near__memcached_guard *g, int64_t now)
{
    int64_t first = NEAR_NEVER;

    for (struct near__memcached_conn *c = g->conns; c != NULL; c = c->next) {
        if (c->until <= now)
            cut_locked(c, NEAR_ERR_TIMEOUT);
        else if (c->until < first)
            first = c->until;
    }
    return first;
}

static void *
guard_run(void *ctx)
{
    struct near__memcached_guard *g = ctx;

    near__lock(&g->lock);
    while (!g->stopping) {
        g->wakes = cut_late_ones_locked(g, near__now(&near__clock_system));
        near__cond_wait(&g->changed, &g->lock, g->wakes);
    }
    near__unlock(&g->lock);
    return NULL;
}

near_status
near__memcached_guard_new(struct near__memcached_guard **guard, const struct near__clock *clock)
{
    struct near__memcached_guard *g = calloc(1, sizeof(*g));
    near_status                   st;

    *guard = NULL;
    if (g == NULL)
        return NEAR_ERR_NOMEM;
    g->clock     = clock;
    g->wakes     = NEAR_NEVER;
    g->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    near__lock_init(&g->lock, NEAR__RANK_LEAF);
    near__cond_init(&g->changed);
    st = g->cancel_fd < 0 ? NEAR_ERR_NOMEM : near__thread_start(&g->thread, "near-memcached", guard_run, g);
    if (st != NEAR_OK) {
        if (g->cancel_fd >= 0)
            close(g->cancel_fd);
        pthread_cond_destroy(&g->changed);
        near__lock_fini(&g->lock);
        free(g);
        return st;
    }
    *guard = g;
    return NEAR_OK;
}

void
near__memcached_guard_close(struct near__memcached_guard *g)
{
    const uint64_t one = 1;

    if (g->cancel_fd >= 0 && write(g->cancel_fd, &one, sizeof(one)) < 0)
        (void)0; /* it is readable all the same */
    near__lock(&g->lock);
    g->closed = true;
    for (struct near__memcached_conn *c = g->conns; c != NULL; c = c->next) {
        if (c->until != NEAR_NEVER)
            cut_locked(c, NEAR_ERR_CLOSED);
    }
    near__unlock(&g->lock);
}

void
near__memcached_guard_free(struct near__memcached_guard **guard)
{
    struct near__memcached_guard *g = *guard;

    *guard = NULL;
    if (g == NULL)
        return;
    if (!g->forked) {
        near__lock(&g->lock);
        g->stopping = true;
        pthread_cond_signal(&g->changed);
        near__unlock(&g->lock);
        pthread_join(g->thread, NULL);
        pthread_cond_destroy(&g->changed);
        near__lock_fini(&g->lock);
    }
    if (g->cancel_fd >= 0)
        close(g->cancel_fd);
    free(g);
}

/* The eventfd is shared with the parent: writing to it here would cancel the parent's dials. */
void
near__memcached_guard_forked(struct near__memcached_guard *g)
{
    g->forked = true;
    if (g->cancel_fd >= 0)
        close(g->cancel_fd);
    g->cancel_fd = -1;
    near__lock_init(&g->lock, NEAR__RANK_LEAF); /* the old one may be held by a thread that is not here */
    g->conns = NULL;
}

static void
guard_enter(struct near__memcached_guard *g, struct near__memcached_conn *conn)
{
    near__lock(&g->lock);
    conn->next = g->conns;
    if (g->conns != NULL)
        g->conns->prev = conn;
    g->conns = conn;
    near__unlock(&g->lock);
}

static void
guard_leave(struct near__memcached_guard *g, struct near__memcached_conn *conn)
{
    near__lock(&g->lock);
    *(conn->prev != NULL ? &conn->prev->next : &g->conns) = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    near__unlock(&g->lock);
}

/* From here on the connection is cut when `left` ns have passed.  False: it is already, or the client is
 * closed. */
static bool
arm(struct near__memcached_conn *conn, int64_t left)
{
    struct near__memcached_guard *g     = conn->server->guard;
    int64_t                       until = near__time_after(near__now(&near__clock_system), left);
    bool                          open;

    near__lock(&g->lock);
    open        = !g->closed && conn->cut == NEAR_OK;
    conn->until = near__time_after(until, GRACE);
    if (conn->until < g->wakes)
        pthread_cond_signal(&g->changed);
    near__unlock(&g->lock);
    return open;
}

/* Whether the guard has cut it meanwhile, and why. */
static near_status
disarm(struct near__memcached_conn *conn)
{
    struct near__memcached_guard *g = conn->server->guard;
    near_status                   cut;

    near__lock(&g->lock);
    conn->until = NEAR_NEVER;
    cut         = conn->cut;
    near__unlock(&g->lock);
    return cut;
}

/* ------------------------------------------------------------------------------------------------ router */

struct near__memcached_router {
    memcached_st *memc;
    size_t        count;
};

near_status
near__memcached_router_new(struct near__memcached_router **router, const struct near__uri *uri)
{
    struct near__memcached_router *r  = calloc(1, sizeof(*r));
    memcached_return_t             rc = MEMCACHED_SUCCESS;

    *router = NULL;
    if (r == NULL)
        return NEAR_ERR_NOMEM;
    r->memc  = memcached_create(NULL);
    r->count = uri->address_count;
    if (r->memc == NULL) {
        free(r);
        return NEAR_ERR_NOMEM;
    }
    memcached_behavior_set(r->memc, MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED, 1);
    for (size_t s = 0; rc == MEMCACHED_SUCCESS && s < r->count && r->count > 1; s++) {
        const struct near__address *a = &uri->addresses[s];
        rc = memcached_server_add_with_weight(r->memc, a->host, a->port, a->weight);
    }
    *router = r;
    if (rc != MEMCACHED_SUCCESS)
        near__memcached_router_free(router);
    return rc == MEMCACHED_SUCCESS ? NEAR_OK : NEAR_ERR_NOMEM;
}

size_t
near__memcached_route(const struct near__memcached_router *router, near_bytes key)
{
    return router->count < 2 ? 0 : memcached_generate_hash(router->memc, key.data, key.size);
}

void
near__memcached_router_free(struct near__memcached_router **router)
{
    struct near__memcached_router *r = *router;

    *router = NULL;
    if (r == NULL)
        return;
    memcached_free(r->memc); /* never connected: says nothing to anybody */
    free(r);
}

/* ----------------------------------------------------------------------------------------------- reasons */

static near_status
status_of(memcached_return_t rc)
{
    switch (rc) {
    case MEMCACHED_TIMEOUT:
        return NEAR_ERR_TIMEOUT;
    case MEMCACHED_MEMORY_ALLOCATION_FAILURE:
        return NEAR_ERR_NOMEM;
    case MEMCACHED_CLIENT_ERROR:
    case MEMCACHED_ERROR:
    case MEMCACHED_PROTOCOL_ERROR:
    case MEMCACHED_UNKNOWN_READ_FAILURE:
    case MEMCACHED_PARTIAL_READ:
        return NEAR_ERR_PROTOCOL;
    case MEMCACHED_SERVER_ERROR:
    case MEMCACHED_SERVER_MEMORY_ALLOCATION_FAILURE:
        return NEAR_ERR_DENIED;
    default:
        return NEAR_ERR_UNAVAILABLE;
    }
}

/* Some calls say only that something failed; then the last error of the object says what. */
static memcached_return_t
true_reason(const struct near__memcached_conn *conn, memcached_return_t rc)
{
    memcached_return_t last = memcached_last_error(conn->memc);

    if (rc == MEMCACHED_FAILURE || rc == MEMCACHED_SOME_ERRORS || rc == MEMCACHED_ERRNO)
        return last != MEMCACHED_SUCCESS ? last : rc;
    return rc;
}

static const char *
reason_text(struct near__memcached_conn *conn, near_status status, memcached_return_t rc, char *buffer,
            size_t size)
{
    int error = memcached_last_error_errno(conn->memc);

    if (status == NEAR_ERR_TIMEOUT)
        return "timed out";
    if (status == NEAR_ERR_CLOSED)
        return "closed";
    if (rc == MEMCACHED_ERRNO && error != 0)
        return strerror_r(error, buffer, size);
    return memcached_strerror(conn->memc, rc);
}

static void
break_with(struct near__memcached_conn *conn, const char *operation, memcached_return_t rc, near_status cut)
{
    char reason[128];

    rc           = true_reason(conn, rc);
    conn->status = cut != NEAR_OK ? cut : status_of(rc);
    conn->lost   = cut == NEAR_OK && conn->status == NEAR_ERR_UNAVAILABLE;
    conn->broken = true;
    if (conn->status != NEAR_ERR_CLOSED)
        near__log(conn->server->log, NEAR_LOG_WARN, "%s: %s: %s, connection dropped", conn->server->name,
                  operation, reason_text(conn, conn->status, rc, reason, sizeof(reason)));
}

/* ------------------------------------------------------------------------------------------ an operation */

/* The time of one operation begins: libmemcached's polls get what is left, in whole milliseconds upwards, and
 * the guard is armed.  False: not to be sent, for the reason in conn->status. */
static bool
operation_begin(struct near__memcached_conn *conn, int64_t deadline)
{
    int64_t     now     = near__now(conn->server->clock);
    int         timeout = near__poll_timeout(now, deadline);
    near_status cut;

    if (conn->broken)
        return false;
    if (timeout == 0) {
        conn->status = NEAR_ERR_TIMEOUT;
        return false;
    }
    /* these two are the only behaviours that may be set on a live object: all others may quit its connection
     * (rule L8) */
    memcached_behavior_set(conn->memc, MEMCACHED_BEHAVIOR_POLL_TIMEOUT, (uint64_t)timeout);
    memcached_behavior_set(conn->memc, MEMCACHED_BEHAVIOR_CONNECT_TIMEOUT, (uint64_t)timeout);
    if (arm(conn, deadline - now))
        return true;
    cut          = disarm(conn);
    conn->status = cut != NEAR_OK ? cut : NEAR_ERR_CLOSED;
    return false;
}

/* libmemcached has closed its socket.  It would connect anew on its own, without the guard knowing. */
static bool
hung_up(const struct near__memcached_conn *conn)
{
    return conn->fd_at != NULL && *conn->fd_at < 0;
}

/* The lists of harmless answers (rule L2), one for each operation: what is sound for one shows for another
 * that the replies have slipped. */
#define ANSWER(rc) (UINT64_C(1) << (rc))

struct operation {
    const char *name;
    uint64_t    done, no, too_large; /* sets of ANSWER() */
};

static const struct operation op_stats   = { "stats settings",
                                             ANSWER(MEMCACHED_SUCCESS) | ANSWER(MEMCACHED_END), 0, 0 };
static const struct operation op_get     = { "get", ANSWER(MEMCACHED_END), 0, 0 };
static const struct operation op_delete  = { "delete", ANSWER(MEMCACHED_SUCCESS) | ANSWER(MEMCACHED_DELETED),
                                             ANSWER(MEMCACHED_NOTFOUND), 0 };
static const struct operation op_store[] = {
    [NEAR__MEMCACHED_SET] = { "set", ANSWER(MEMCACHED_SUCCESS) | ANSWER(MEMCACHED_STORED), 0,
                              ANSWER(MEMCACHED_E2BIG) },
    [NEAR__MEMCACHED_ADD] = { "add", ANSWER(MEMCACHED_SUCCESS) | ANSWER(MEMCACHED_STORED),
                              ANSWER(MEMCACHED_NOTSTORED), ANSWER(MEMCACHED_E2BIG) },
    [NEAR__MEMCACHED_CAS] = { "cas", ANSWER(MEMCACHED_SUCCESS) | ANSWER(MEMCACHED_STORED),
                              ANSWER(MEMCACHED_DATA_EXISTS) | ANSWER(MEMCACHED_NOTFOUND),
                              ANSWER(MEMCACHED_E2BIG) },
};
static const uint64_t op_any = ANSWER(MEMCACHED_SUCCESS) | ANSWER(MEMCACHED_STORED) |
                               ANSWER(MEMCACHED_DELETED) | ANSWER(MEMCACHED_END) |
                               ANSWER(MEMCACHED_NOTFOUND) | ANSWER(MEMCACHED_NOTSTORED) |
                               ANSWER(MEMCACHED_DATA_EXISTS) | ANSWER(MEMCACHED_E2BIG);

static enum near__memcached_word
word_of(const struct operation *op, memcached_return_t rc)
{
    uint64_t answer = (unsigned)rc < 64 ? ANSWER(rc) : 0;

    if ((answer & op->done) != 0)
        return NEAR__MEMCACHED_DONE;
    if ((answer & op->no) != 0)
        return NEAR__MEMCACHED_NO;
    if ((answer & op->too_large) != 0)
        return NEAR__MEMCACHED_TOO_LARGE;
    return rc == MEMCACHED_SERVER_MEMORY_ALLOCATION_FAILURE ? NEAR__MEMCACHED_REFUSED
                                                            : NEAR__MEMCACHED_BROKEN;
}

/* Anything not on the operation's list breaks the connection. */
static enum near__memcached_word
operation_end(struct near__memcached_conn *conn, const struct operation *op, memcached_return_t rc)
{
    enum near__memcached_word word = word_of(op, rc);
    near_status               cut  = disarm(conn);

    if (word == NEAR__MEMCACHED_BROKEN && (unsigned)rc < 64 && (ANSWER(rc) & op_any) != 0)
        rc = MEMCACHED_PROTOCOL_ERROR; /* another operation's */
    if (cut != NEAR_OK || word == NEAR__MEMCACHED_REFUSED || word == NEAR__MEMCACHED_BROKEN)
        break_with(conn, op->name, rc, cut);
    else if (hung_up(conn)) /* after the answer: this word stands, there will be no other */
        break_with(conn, op->name, MEMCACHED_CONNECTION_FAILURE, cut);
    return word;
}

/* ------------------------------------------------------------------------------------------- descriptors */

/* Whether `fd` is a socket connected to the address. */
static bool
leads_to(int fd, const struct near__address *address)
{
    struct sockaddr_storage peer = { 0 };
    socklen_t               size = sizeof(peer);

    if (getpeername(fd, (struct sockaddr *)&peer, &size) != 0)
        return false;
    if (peer.ss_family == AF_INET)
        return address->port == ntohs(((const struct sockaddr_in *)&peer)->sin_port);
    if (peer.ss_family == AF_INET6)
        return address->port == ntohs(((const struct sockaddr_in6 *)&peer)->sin6_port);
    return peer.ss_family == AF_UNIX && address->port == 0;
}

static const int *
record(const struct near__memcached_conn *conn)
{
    return (const int *)(const void *)memcached_server_instance_by_position(conn->memc, 0);
}

static void
find_descriptor(struct near__memcached_conn *conn, const int *before)
{
    struct near__memcached_guard *g  = conn->server->guard;
    const int                    *at = record(conn);
    int                           fd;

    for (size_t i = 0; i < RECORD_INTS; i++) {
        if (before[i] != -1 || at[i] < 0 || !leads_to(at[i], conn->server->address))
            continue;
        fd = fcntl(at[i], F_DUPFD_CLOEXEC, 0);
        if (fd >= 0)
            conn->fd_at = &at[i];
        near__lock(&g->lock); /* the connection is armed: the guard may be looking */
        conn->own_fd = fd;
        near__unlock(&g->lock);
        return;
    }
}

/* Whether libmemcached still has the socket open under that number. */
static bool
still_open(const struct near__memcached_conn *conn)
{
    struct stat theirs, ours;

    return conn->fd_at != NULL && *conn->fd_at >= 0 && fstat(*conn->fd_at, &theirs) == 0 &&
           fstat(conn->own_fd, &ours) == 0 && theirs.st_ino == ours.st_ino && theirs.st_dev == ours.st_dev;
}

/* Put a socket that leads nowhere under libmemcached's number: what it says on leaving goes nowhere, and the
 * process we were forked from keeps its connection. */
static void
replace_descriptor(struct near__memcached_conn *conn)
{
    bool open = still_open(conn);
    int  fd;

    close(conn->own_fd); /* makes room for the next */
    conn->own_fd = -1;
    if (!open)
        return;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    dup3(fd, *conn->fd_at, O_CLOEXEC);
    close(fd);
}

/* ---------------------------------------------------------------------------------------- life and death */

/* Every behaviour before the first operation (rule L8).  Not set, on purpose: NO_BLOCK, BUFFER_REQUESTS,
 * NOREPLY, replicas, AUTO_EJECT_HOSTS (rules L10, L13). */
static bool
configure(struct near__memcached_conn *conn, const char *host)
{
    const struct near__address *address = conn->server->address;
    memcached_return_t          rc;

    memcached_behavior_set(conn->memc, MEMCACHED_BEHAVIOR_TCP_NODELAY, 1);
    memcached_behavior_set(conn->memc, MEMCACHED_BEHAVIOR_TCP_KEEPALIVE, 1);
    memcached_behavior_set(conn->memc, MEMCACHED_BEHAVIOR_SUPPORT_CAS, 1);
    memcached_behavior_set(conn->memc, MEMCACHED_BEHAVIOR_VERIFY_KEY,
                           1); /* a second look: ours is the rule (L4) */
    if (address->port == 0)
        rc = memcached_server_add_unix_socket(conn->memc, host);
    else
        rc = memcached_server_add(conn->memc, host, address->port);
    return rc == MEMCACHED_SUCCESS;
}

static struct near__memcached_conn *
conn_new(struct near__memcached_server *server, const char *host)
{
    struct near__memcached_conn *conn = calloc(1, sizeof(*conn));

    if (conn == NULL)
        return NULL;
    conn->server = server;
    conn->own_fd = -1;
    conn->until  = NEAR_NEVER;
    conn->pid    = getpid();
    conn->memc   = memcached_create(NULL);
    if (conn->memc == NULL || memcached_result_create(conn->memc, &conn->result) == NULL ||
        !configure(conn, host)) {
        memcached_free(conn->memc);
        free(conn);
        return NULL;
    }
    guard_enter(server->guard, conn);
    return conn;
}

static memcached_return_t
note_setting(const memcached_instance_st *instance, const char *key, size_t key_size, const char *value,
             size_t value_size, void *ctx)
{
    static const char name[] = "item_size_max";
    size_t           *max    = ctx;

    (void)instance;
    if (key_size == sizeof(name) - 1 && memcmp(key, name, key_size) == 0 && value_size > 0)
        *max = strtoul(value, NULL, 10);
    return MEMCACHED_SUCCESS;
}

/* Whether the server will not tell: it has answered something else, or hangs up whenever it is asked.  A
 * silence, or the end of a server in that moment, says nothing. */
static bool
will_not_tell(struct near__memcached_conn *conn)
{
    if (conn->status == NEAR_ERR_TIMEOUT || conn->status == NEAR_ERR_CLOSED)
        return false;
    if (!hung_up(conn))
        return true;
    return atomic_fetch_add_explicit(&conn->server->stats_lost, 1, memory_order_relaxed) + 1 >= STATS_TRIES;
}

/* Learn the server's limit, so that larger values are refused before they do harm (rule M2).  A server or
 * proxy that does not tell is not asked again. */
static void
ask_settings(struct near__memcached_conn *conn, int64_t deadline)
{
    size_t             max = 0;
    memcached_return_t rc;

    if (atomic_load_explicit(&conn->server->no_stats, memory_order_relaxed) ||
        !operation_begin(conn, deadline))
        return;
    rc = memcached_stat_execute(conn->memc, "settings", note_setting, &max);
    operation_end(conn, &op_stats, rc);
    if (max > 0) /* a number of its own: nothing else is read after it, hence relaxed */
        atomic_store_explicit(&conn->server->item_max, max, memory_order_relaxed);
    else if (will_not_tell(conn))
        atomic_store_explicit(&conn->server->no_stats, true, memory_order_relaxed);
}

/* Connect, find the descriptor, and hear the server out: a listening socket is not yet a server that
 * answers. */
static near_status
connect_and_greet(struct near__memcached_conn *conn, int64_t deadline, near_error *error)
{
    int                before[RECORD_INTS];
    char               reason[128];
    memcached_return_t rc    = MEMCACHED_FAILURE;
    bool               begun = operation_begin(conn, deadline);
    near_status        cut;

    memcpy(before, record(conn), sizeof(before));
    /* asking for the socket's buffer size is libmemcached's way to connect and do nothing else */
    if (begun && memcached_behavior_get(conn->memc, MEMCACHED_BEHAVIOR_SOCKET_SEND_SIZE) != 0) {
        find_descriptor(conn, before);
        begun = operation_begin(conn, deadline);
        if (begun)
            rc = memcached_version(conn->memc);
    }
    cut = disarm(conn);
    if (begun && cut == NEAR_OK && rc == MEMCACHED_SUCCESS && !hung_up(conn))
        return NEAR_OK;
    rc = rc == MEMCACHED_SUCCESS ? MEMCACHED_CONNECTION_FAILURE : true_reason(conn, rc);
    if (begun || cut != NEAR_OK)
        conn->status = cut != NEAR_OK ? cut : status_of(rc);
    return near__fail(error, conn->status, "%s: connect: %s", conn->server->name,
                      reason_text(conn, conn->status, rc, reason, sizeof(reason)));
}

/* Which address of the server to connect to, as a number.  libmemcached would give each address of a name
 * the whole time, and nothing could wake it.  So we look for one that answers, within the deadline and ended
 * by close(), and that is the only one it learns of; the connection made here is not used otherwise. */
static near_status
choose_address(const struct near__memcached_server *server, char *host, size_t size, int64_t deadline,
               near_error *error)
{
    struct near__transport  probe = { .fd        = -1,
                                      .cancel_fd = server->guard->cancel_fd,
                                      .clock     = server->clock };
    struct sockaddr_storage peer  = { 0 };
    socklen_t               n     = sizeof(peer);
    near_error              why   = { 0 };
    near_status             st;

    if (server->address->port == 0) {
        snprintf(host, size, "%s", server->address->host); /* a path */
        return NEAR_OK;
    }
    st = near__transport_open(&probe, server->address, deadline, &why);
    if (st != NEAR_OK)
        return near__fail(error, st, "%s: connect: %s", server->name, why.text);
    if (getpeername(probe.fd, (struct sockaddr *)&peer, &n) != 0 ||
        getnameinfo((struct sockaddr *)&peer, n, host, (socklen_t)size, NULL, 0, NI_NUMERICHOST) != 0)
        st = near__fail(error, NEAR_ERR_UNAVAILABLE, "%s: connect: closed at once", server->name);
    near__transport_close(&probe);
    return st;
}

near_status
near__memcached_dial(struct near__memcached_conn **out, struct near__memcached_server *server,
                     int64_t deadline, near_error *error)
{
    char                         host[sizeof(server->address->host) + IF_NAMESIZE];
    struct near__memcached_conn *conn;
    near_status                  st = choose_address(server, host, sizeof(host), deadline, error);

    *out = NULL;
    if (st != NEAR_OK)
        return st;
    conn = conn_new(server, host);
    if (conn == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "%s: connect: out of memory", server->name);
    st = connect_and_greet(conn, deadline, error);
    if (st == NEAR_OK) {
        ask_settings(conn, deadline);
        if (conn->broken)
            st = near__fail(error, conn->status, "%s: stats settings: no sound answer", server->name);
    }
    if (st != NEAR_OK) {
        near__memcached_drop(conn, false);
        return st;
    }
    *out = conn;
    return NEAR_OK;
}

bool
near__memcached_usable(struct near__memcached_conn *conn)
{
    char byte;

    if (conn->broken)
        return false;
    if (conn->own_fd < 0)
        return true; /* not to be told; a first call that fails is tried once more (rule L11) */
    return recv(conn->own_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
           (errno == EAGAIN || errno == EWOULDBLOCK);
}

void
near__memcached_drop(struct near__memcached_conn *conn, bool goodbye)
{
    bool child = conn->pid != getpid();

    if (!child)
        guard_leave(conn->server->guard, conn);
    if (child && conn->fd_at == NULL)
        return; /* memcached_free() would say `quit` for the parent: rather leave it open and unfreed */
    if (child)
        replace_descriptor(conn);
    else if (!goodbye && conn->own_fd >= 0)
        shutdown(conn->own_fd, SHUT_RDWR); /* `quit` might become the end of a value half sent */
    memcached_behavior_set(conn->memc, MEMCACHED_BEHAVIOR_POLL_TIMEOUT, GOODBYE_TIMEOUT_MS);
    memcached_result_free(&conn->result);
    memcached_free(conn->memc);
    if (conn->own_fd >= 0)
        close(conn->own_fd);
    free(conn);
}

void
near__memcached_abandon(struct near__memcached_conn *conn)
{
    if (still_open(conn))
        close(*conn->fd_at);
    if (conn->own_fd >= 0)
        close(conn->own_fd);
}

/* -------------------------------------------------------------------------------------------- operations */

/* Read what was asked for, to the end, whatever it is (rule L16).  The server's END, or the reason why there
 * was none. */
static memcached_return_t
fetch_all(struct near__memcached_conn *conn, near__memcached_found_fn found, void *ctx)
{
    memcached_return_t   rc;
    memcached_result_st *r;
    bool                 sound = true;

    conn->result.count = 1; /* see the top of this file */
    while ((r = memcached_fetch_result(conn->memc, &conn->result, &rc)) != NULL) {
        near_bytes key   = { memcached_result_key_value(r), memcached_result_key_length(r) };
        near_bytes value = { memcached_result_value(r), memcached_result_length(r) };
        sound            = sound && found(ctx, key, value, memcached_result_cas(r));
    }
    if (rc == MEMCACHED_END && memcached_last_error(conn->memc) != MEMCACHED_SUCCESS)
        rc = memcached_last_error(conn->memc); /* it has swallowed a failure after all (rule L6) */
    if (rc == MEMCACHED_NOTFOUND)
        rc = MEMCACHED_UNKNOWN_READ_FAILURE; /* END is the only end */
    return sound ? rc : MEMCACHED_PROTOCOL_ERROR;
}

enum near__memcached_word
near__memcached_gets(struct near__memcached_conn *conn, const near_bytes *keys, size_t n,
                     near__memcached_found_fn found, void *ctx, int64_t deadline)
{
    const char        *names[NEAR__MEMCACHED_KEYS];
    size_t             sizes[NEAR__MEMCACHED_KEYS];
    memcached_return_t rc;

    for (size_t i = 0; i < n; i++) {
        names[i] = keys[i].data;
        sizes[i] = keys[i].size;
    }
    if (!operation_begin(conn, deadline))
        return NEAR__MEMCACHED_NOT_SENT;
    rc = memcached_mget(conn->memc, names, sizes, n);
    if (rc == MEMCACHED_SUCCESS)
        rc = fetch_all(conn, found, ctx);
    else if (memcached_success(rc))
        rc = MEMCACHED_UNKNOWN_READ_FAILURE;
    return operation_end(conn, &op_get, rc);
}

enum near__memcached_word
near__memcached_store(struct near__memcached_conn *conn, enum near__memcached_verb verb, near_bytes key,
                      near_bytes value, int64_t exptime, uint64_t unique, int64_t deadline)
{
    const char        *bytes = value.size > 0 ? value.data : "";
    memcached_return_t rc    = MEMCACHED_INVALID_ARGUMENTS;

    if (!operation_begin(conn, deadline))
        return NEAR__MEMCACHED_NOT_SENT;
    if (verb == NEAR__MEMCACHED_SET)
        rc = memcached_set(conn->memc, key.data, key.size, bytes, value.size, exptime, 0);
    else if (verb == NEAR__MEMCACHED_ADD)
        rc = memcached_add(conn->memc, key.data, key.size, bytes, value.size, exptime, 0);
    else if (unique != 0) /* 0 would be an error in text and an unconditional write in binary (rule L15) */
        rc = memcached_cas(conn->memc, key.data, key.size, bytes, value.size, exptime, 0, unique);
    return operation_end(conn, &op_store[verb], rc);
}

enum near__memcached_word
near__memcached_delete(struct near__memcached_conn *conn, near_bytes key, int64_t deadline)
{
    if (!operation_begin(conn, deadline))
        return NEAR__MEMCACHED_NOT_SENT;
    return operation_end(conn, &op_delete, memcached_delete(conn->memc, key.data, key.size, 0));
}

/* --------------------------------------------------------------------------------------------- questions */

near_status
near__memcached_status(const struct near__memcached_conn *conn)
{
    return conn->status;
}

bool
near__memcached_broken(const struct near__memcached_conn *conn)
{
    return conn->broken;
}

bool
near__memcached_lost(const struct near__memcached_conn *conn)
{
    return conn->lost;
}

void
near__memcached_version(const struct near__memcached_conn *conn, char *out, size_t size)
{
    const memcached_instance_st *at = memcached_server_instance_by_position(conn->memc, 0);

    snprintf(out, size, "%u.%u.%u", memcached_server_major_version(at), memcached_server_minor_version(at),
             memcached_server_micro_version(at));
}

int64_t
near__memcached_exptime(int64_t ttl_ms, int64_t wall_ms)
{
    int64_t seconds = ttl_ms / 1000 + (ttl_ms % 1000 != 0) + 1;

    if (ttl_ms < 0)
        return NEAR__MEMCACHED_EXPIRED;
    if (ttl_ms == 0)
        return 0;
    if (seconds > RELATIVE_MAX)
        seconds = near__time_after(wall_ms / 1000, seconds);
    return seconds > INT32_MAX ? INT32_MAX : seconds; /* the protocol's number has 32 bits: 2038 */
}

bool
near__memcached_key_is_fit(near_bytes key)
{
    const unsigned char *at = key.data;

    if (key.size == 0 || key.size > MAX_KEY)
        return false;
    for (size_t i = 0; i < key.size; i++) {
        if (at[i] < 0x21 || at[i] > 0x7E)
            return false;
    }
    return true;
}
