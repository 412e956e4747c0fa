/*
 * One thread owns everything that moves: listeners, links, lanes, chunks.  The test's thread speaks to it in two ways only: it posts
 * a fault under `lock`, wakes the thread by an eventfd and waits until `applied` has caught up with `posted`; and it reads the
 * counters, which are relaxed atomics because nothing else is inferred from them.
 *
 * A link is one accepted connection and the connection to the target made for it; it has two lanes, one for each direction.  A lane
 * is a queue of chunks, each with the time from which it may be sent.  A fault is applied when bytes are read: it stamps their
 * chunk.  So bytes never overtake each other, and healing does not change what is under way.
 */
#include "harness/test.h"

#include "harness/proxy.h"

#include "base/thread.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LANE_LIMIT (64u << 20) /* a lane that holds so much is not read from until some has left */
#define READ_SIZE  65536
#define FIRST_LINK 3 /* in the poll set: eventfd, two listeners, then two places a link */

struct chunk {
    struct chunk *next;
    int64_t       due;   /* ns: not before */
    int64_t       every; /* drip: so long after each `step` bytes; 0: all at once */
    size_t        step;
    size_t        at, size;
    char          data[];
};

struct lane {
    struct chunk *first, **last;
    size_t        held;
    int64_t       last_due;
    int64_t       budget;   /* CUT and RESET: bytes that may still pass, -1: any number */
    bool          spent;    /* the budget is gone: close the link when the queue is empty */
    bool          lost;     /* bytes were lost at random: the same, even if the fault is replaced meanwhile */
    unsigned      left;     /* HOSTILE: so many more reads until `lost`; 0: nothing has been changed yet */
    bool          eof;      /* the source has ended */
    bool          eof_sent; /* and the destination has been told */
    bool          holed;    /* bytes of it were swallowed */
};

struct link {
    struct link *next;
    int          fd[2];   /* 0: the client's, 1: the target's */
    struct lane  lane[2]; /* 0: up, from fd[0] to fd[1]; 1: down */
    bool         dead;
};

struct test_proxy {
    struct test_server *_Atomic target;
    char                        socket[160], uri[64], unix_uri[192];
    int                         wake, listener[2]; /* unix, tcp */
    pthread_t                   thread;
    bool                        running;

    pthread_mutex_t   lock; /* covers the next six */
    pthread_cond_t    caught_up;
    struct test_fault wanted;
    unsigned          posted, applied;
    bool              news; /* `wanted` has changed */
    bool              stop;

    _Atomic uint64_t bytes[2];
    _Atomic unsigned connections, most_open;
    _Atomic uint64_t spoilt;
    _Atomic bool     offsets[TEST_OFFSETS];

    /* the thread's own */
    struct test_fault fault;
    struct link      *links;
    struct pollfd    *polls;
    size_t            poll_room;
    uint64_t          random;
    char              other[512]; /* HOSTILE: the beginning of some earlier read */
    size_t            other_size;
};

static int64_t
now_ns(void)
{
    return near__now(&near__clock_system);
}

static bool
fault_is_a_cut(const struct test_fault *fault)
{
    return fault->kind == TEST_FAULT_CUT || fault->kind == TEST_FAULT_RESET;
}

static bool
fault_touches(const struct test_fault *fault, int lane)
{
    return fault->kind != TEST_FAULT_NONE && ((unsigned)fault->direction & (1u << lane)) != 0;
}

/* ------------------------------------------------------------------------------------------------ links */

/* What lies unread in a socket turns its close into a reset, and a cut should look like an end. */
static void
drain(int fd)
{
    char bytes[4096];

    while (recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
        ;
}

static void
link_close(struct link *link, bool reset)
{
    struct linger at_once = { 1, 0 };

    for (int i = 0; i < 2; i++) {
        if (link->fd[i] < 0)
            continue;
        if (reset)
            setsockopt(link->fd[i], SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
        else
            drain(link->fd[i]);
        close(link->fd[i]);
        link->fd[i] = -1;
    }
    link->dead = true;
}

static void
lane_budget(struct test_proxy *proxy, struct link *link, int i)
{
    struct lane *lane = &link->lane[i];
    bool         cut  = fault_is_a_cut(&proxy->fault) && fault_touches(&proxy->fault, i);

    lane->budget = cut ? proxy->fault.bytes : -1;
    lane->spent  = cut && lane->budget == 0;
}

static void
link_free(struct link *link)
{
    link_close(link, false);
    for (int i = 0; i < 2; i++)
        while (link->lane[i].first != NULL) {
            struct chunk *chunk = link->lane[i].first;

            link->lane[i].first = chunk->next;
            free(chunk);
        }
    free(link);
}

static void
cut_done(struct test_proxy *proxy, struct link *link)
{
    link_close(link, proxy->fault.kind == TEST_FAULT_RESET);
    if (((unsigned)proxy->fault.direction & TEST_ONCE) == 0)
        return;
    proxy->fault = (struct test_fault){ .kind = TEST_FAULT_NONE };
    for (struct link *other = proxy->links; other != NULL; other = other->next)
        for (int i = 0; i < 2; i++)
            lane_budget(proxy, other, i);
}

/* What follows from empty queues: cuts, ends passed on, links with nothing left to do. */
static void
link_settle(struct test_proxy *proxy, struct link *link)
{
    for (int i = 0; i < 2 && !link->dead; i++) {
        struct lane *lane = &link->lane[i];
        bool         held = fault_touches(&proxy->fault, i) && proxy->fault.kind == TEST_FAULT_BLACKHOLE;

        if (lane->first != NULL)
            continue;
        if (lane->lost) {
            link_close(link, false);
        } else if (lane->spent) {
            cut_done(proxy, link);
        } else if (lane->eof && !lane->eof_sent && !held) {
            shutdown(link->fd[!i], SHUT_WR);
            lane->eof_sent = true;
        }
    }
    if (!link->dead && link->lane[0].eof_sent && link->lane[1].eof_sent)
        link_close(link, false);
}

static int
dial(const struct test_server *target)
{
    struct sockaddr_un un;
    struct sockaddr_in in   = { .sin_family = AF_INET, .sin_port = htons((uint16_t)target->port) };
    int                one  = 1, rc;
    bool               path = target->socket[0] != '\0';
    int                fd   = socket(path ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (path)
        rc = !test_unix_address(&un, target->socket) ? -1 : connect(fd, (struct sockaddr *)&un, sizeof(un));
    else
        rc = connect(fd, (struct sockaddr *)&in, sizeof(in));
    if (rc != 0 && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    if (!path)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

static void
accept_one(struct test_proxy *proxy, int listener)
{
    struct link *link;
    int          one = 1;
    int          fd  = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd < 0)
        return;
    atomic_fetch_add_explicit(&proxy->connections, 1, memory_order_relaxed);
    link = proxy->fault.kind == TEST_FAULT_REFUSE ? NULL : calloc(1, sizeof(*link));
    if (link == NULL) {
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* refused on a unix socket: fine */
    link->fd[0] = fd;
    link->fd[1] = dial(proxy->target);
    for (int i = 0; i < 2; i++) {
        link->lane[i].last = &link->lane[i].first;
        lane_budget(proxy, link, i);
    }
    if (link->fd[1] < 0) {
        link_free(link);
        return;
    }
    link->next   = proxy->links;
    proxy->links = link;
    link_settle(proxy, link); /* a cut after 0 bytes */
}

/* ------------------------------------------------------------------------------------------------ lanes */

/* The new chunk, or NULL. */
static struct chunk *
enqueue(struct test_proxy *proxy, struct lane *lane, int i, const char *data, size_t size)
{
    const struct test_fault *fault = &proxy->fault;
    struct chunk            *chunk = malloc(sizeof(*chunk) + size);
    int64_t                  now   = now_ns();

    if (chunk == NULL)
        return NULL;
    *chunk = (struct chunk){ .due = now, .size = size };
    memcpy(chunk->data, data, size);
    if (fault_touches(fault, i) && fault->kind == TEST_FAULT_DELAY)
        chunk->due = now + fault->ms * NEAR_MS;
    if (fault_touches(fault, i) && fault->kind == TEST_FAULT_DRIP) {
        chunk->every = fault->ms * NEAR_MS;
        chunk->step  = fault->bytes > 0 ? (size_t)fault->bytes : 1;
    }
    if (chunk->due < lane->last_due)
        chunk->due = lane->last_due;
    /* the last byte of a dripping chunk leaves so late; what comes behind waits for it in the queue anyway */
    lane->last_due = chunk->due;
    *lane->last    = chunk;
    lane->last     = &chunk->next;
    lane->held += size;
    return chunk;
}

static size_t
drawn(struct test_proxy *proxy, size_t below)
{
    return (size_t)(test_random(&proxy->random) % below);
}

static void
count_spoilt(struct test_proxy *proxy, size_t at)
{
    atomic_fetch_add_explicit(&proxy->spoilt, 1, memory_order_relaxed);
    if (at < TEST_OFFSETS)
        atomic_store_explicit(&proxy->offsets[at], true, memory_order_relaxed);
}

/* Cut there, or the rest late. */
static void
enqueue_erratically(struct test_proxy *proxy, struct lane *lane, int i, const char *data, size_t size)
{
    size_t        at = drawn(proxy, size + 1);
    struct chunk *rest;

    count_spoilt(proxy, at);
    if (at > 0)
        enqueue(proxy, lane, i, data, at);
    if (proxy->fault.ms == 0 || drawn(proxy, 2) == 0) {
        lane->lost = true;
        return;
    }
    if (at == size)
        return;
    rest = enqueue(proxy, lane, i, data + at, size - at);
    if (rest != NULL)
        rest->due += (1 + (int64_t)drawn(proxy, (size_t)proxy->fault.ms)) * NEAR_MS;
    if (rest != NULL)
        lane->last_due = rest->due;
}

/* What no server says: lengths without measure, types that nobody asked for, endless lines, nests. */
static const char *const outrages[] = {
    "$9223372036854775807\r\n",
    "$536870912\r\nabc",
    "$-2\r\n",
    "$-9223372036854775808\r\n",
    "$\r\n\r\n",
    "*2147483647\r\n",
    "*1073741824\r\n$-1\r\n$-1\r\n",
    "*-7\r\n",
    "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
    ":99999999999999999999999999\r\n",
    "+OK\r\n+OK\r\n+OK\r\n",
    "-ERR \r\n",
    "-MOVED 99999 :0\r\n",
    "-MOVED 1 256.0.0.1:99999\r\n",
    "-ASK 0 \r\n",
    "%2\r\n+a\r\n:1\r\n+b\r\n:2\r\n",
    "_\r\n#t\r\n,1.5\r\n(123\r\n",
    ">3\r\n+message\r\n+a\r\n+b\r\n",
    "$5\r\nabcdefghij\r\n",
    "\r\n\r\n\r\n",
    "VALUE k 0 4294967295\r\n",
    "VALUE k 0 18446744073709551616 1\r\nabc\r\nEND\r\n",
    "VALUE k 0 -1\r\nabc\r\nEND\r\n",
    "VALUE  0 3\r\nabc\r\nEND\r\n",
    "VALUE k\r\nEND\r\n",
    "VALUE k 99999999999 3 99999999999999999999999\r\nabc\r\nEND\r\n",
    "VALUE k 0 3 1\r\nabcdefEND\r\n",
    "END\r\nEND\r\nEND\r\n",
    "STORED\r\nSTORED\r\n",
    "SERVER_ERROR out of memory storing object\r\n",
    "CLIENT_ERROR bad data chunk\r\nERROR\r\n",
    "ERROR\r\n",
    "VA 2147483647 s0\r\n",
    "HD\r\nHD O1 k\r\nEN\r\n",
    "HTTP/1.1 400 Bad Request\r\n\r\n",
};

/* An outrage, or a line without an end. */
static size_t
outrage(struct test_proxy *proxy, char *buffer)
{
    size_t which = drawn(proxy, NEAR_COUNT_OF(outrages) + 2), size;

    if (which >= NEAR_COUNT_OF(outrages)) {
        memset(buffer, which % 2 ? 'V' : '+', READ_SIZE);
        return READ_SIZE;
    }
    size = strlen(outrages[which]);
    memcpy(buffer, outrages[which], size);
    return size;
}

/* Changes what was read, 1 .. READ_SIZE bytes; how many it is then, at most READ_SIZE. */
static size_t
change(struct test_proxy *proxy, char *buffer, size_t size)
{
    size_t at = drawn(proxy, size), many = 1 + drawn(proxy, size - at < 16 ? size - at : 16);

    count_spoilt(proxy, at);
    switch (drawn(proxy, 8)) {
    case 0: /* a bit */
        buffer[at] = (char)(buffer[at] ^ (1 << drawn(proxy, 8)));
        return size;
    case 1: /* another byte, such as protocols are made of */
        buffer[at] = "\r\n$*:+- 0123456789VEH\0"[drawn(proxy, 23)];
        return size;
    case 2: /* some are lost */
        memmove(buffer + at, buffer + at + many, size - at - many);
        return size - many;
    case 3: /* some come twice */
        if (size + many > READ_SIZE)
            return size;
        memmove(buffer + at + many, buffer + at, size - at);
        return size + many;
    case 4: /* all of it comes twice */
        if (2 * size > READ_SIZE)
            return size;
        memcpy(buffer + size, buffer, size);
        return 2 * size;
    case 5: /* another's */
        memcpy(buffer, proxy->other, proxy->other_size);
        return proxy->other_size > 0 ? proxy->other_size : size;
    case 6: /* an outrage in place of it */
        return outrage(proxy, buffer);
    default: /* the beginning only; no end follows */
        return at;
    }
}

static size_t
be_hostile(struct test_proxy *proxy, struct lane *lane, char *buffer, size_t size)
{
    char   before[sizeof(proxy->other)];
    size_t before_size = size < sizeof(before) ? size : sizeof(before), now;

    memcpy(before, buffer, before_size);
    if (lane->left > 0 || drawn(proxy, proxy->fault.bytes > 0 ? (size_t)proxy->fault.bytes : 1) == 0) {
        lane->left = lane->left > 0 ? lane->left : 1 + (unsigned)drawn(proxy, 3);
        lane->left--;
        lane->lost = lane->left == 0;
        now        = change(proxy, buffer, size);
        /* what is missing is mostly not waited for: that would be a test of patience */
        lane->lost |= now < size && drawn(proxy, 4) != 0;
        size = now;
    }
    memcpy(proxy->other, before, before_size);
    proxy->other_size = before_size;
    return size;
}

/* Read what the source has; every fault but the pace of sending happens here. */
static void
lane_read(struct test_proxy *proxy, struct link *link, int i, char *buffer)
{
    struct lane *lane = &link->lane[i];
    ssize_t      n    = recv(link->fd[i], buffer, READ_SIZE, 0);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        lane->eof = true;
        return;
    }
    lane->holed |= fault_touches(&proxy->fault, i) && proxy->fault.kind == TEST_FAULT_BLACKHOLE;
    if (lane->holed)
        return; /* for ever: no stream goes on behind a gap */
    if (lane->budget >= 0) {
        if (n >= lane->budget) {
            n           = (ssize_t)lane->budget;
            lane->spent = true;
        }
        lane->budget -= n;
    }
    if (fault_touches(&proxy->fault, i) && proxy->fault.kind == TEST_FAULT_HOSTILE)
        n = (ssize_t)be_hostile(proxy, lane, buffer, (size_t)n);
    if (fault_touches(&proxy->fault, i) && proxy->fault.kind == TEST_FAULT_ERRATIC &&
        drawn(proxy, proxy->fault.bytes > 0 ? (size_t)proxy->fault.bytes : 1) == 0)
        enqueue_erratically(proxy, lane, i, buffer, (size_t)n);
    else if (n > 0)
        enqueue(proxy, lane, i, buffer, (size_t)n);
}

static void
chunk_gone(struct lane *lane)
{
    struct chunk *chunk = lane->first;
    int64_t       next  = chunk->every > 0 ? chunk->due : 0;

    lane->first = chunk->next;
    if (lane->first == NULL) {
        lane->last = &lane->first;
        /* a drip keeps its pace across chunks */
        if (next > lane->last_due)
            lane->last_due = next;
    } else if (lane->first->due < next) {
        lane->first->due = next;
    }
    free(chunk);
}

/* Send what is due.  False when the destination takes no more for now (or never again: then the link is dead). */
static bool
lane_write(struct test_proxy *proxy, struct link *link, int i)
{
    struct lane *lane = &link->lane[i];

    while (lane->first != NULL && lane->first->due <= now_ns()) {
        struct chunk *chunk = lane->first;
        size_t        size  = chunk->size - chunk->at;
        ssize_t       n;

        if (chunk->every > 0 && size > chunk->step)
            size = chunk->step;
        n = send(link->fd[!i], chunk->data + chunk->at, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            link_close(link, false);
        if (n < 0)
            return false;
        chunk->at += (size_t)n;
        lane->held -= (size_t)n;
        atomic_fetch_add_explicit(&proxy->bytes[i], (uint64_t)n, memory_order_relaxed);
        if (chunk->every > 0)
            chunk->due = now_ns() + chunk->every;
        if (chunk->at == chunk->size)
            chunk_gone(lane);
    }
    return true;
}

/* ----------------------------------------------------------------------------------------------- thread */

static bool
lane_wants_input(const struct lane *lane)
{
    return !lane->eof && !lane->spent && !lane->lost && lane->held < LANE_LIMIT;
}

/* A place in the poll set without events still reports hang-ups, for ever: such a place is -1. */
static struct pollfd
poll_place(const struct link *link, int side, int64_t now, int64_t *next)
{
    const struct lane *out    = &link->lane[!side]; /* what goes to this side */
    short              events = 0;

    if (lane_wants_input(&link->lane[side]))
        events |= POLLIN;
    if (out->first != NULL && out->first->due <= now)
        events |= POLLOUT;
    else if (out->first != NULL && out->first->due < *next)
        *next = out->first->due;
    return (struct pollfd){ events != 0 ? link->fd[side] : -1, events, 0 };
}

/* Only this thread raises it; the test's thread takes it away. */
static void
note_open(struct test_proxy *proxy, unsigned n)
{
    if (n > atomic_load_explicit(&proxy->most_open, memory_order_relaxed))
        atomic_store_explicit(&proxy->most_open, n, memory_order_relaxed);
}

static size_t
fill_polls(struct test_proxy *proxy, int64_t *next)
{
    size_t   n    = FIRST_LINK;
    unsigned open = 0;
    int64_t  now  = now_ns();

    for (struct link *link = proxy->links; link != NULL; link = link->next, n += 2)
        open += !link->lane[0].eof;
    note_open(proxy, open);
    if (n > proxy->poll_room) {
        struct pollfd *more = realloc(proxy->polls, n * 2 * sizeof(*more));

        if (more == NULL)
            return 0;
        proxy->polls     = more;
        proxy->poll_room = n * 2;
    }
    proxy->polls[0] = (struct pollfd){ proxy->wake, POLLIN, 0 };
    proxy->polls[1] = (struct pollfd){ proxy->listener[0], POLLIN, 0 };
    proxy->polls[2] = (struct pollfd){ proxy->listener[1], POLLIN, 0 };
    n               = FIRST_LINK;
    for (struct link *link = proxy->links; link != NULL; link = link->next)
        for (int side = 0; side < 2; side++)
            proxy->polls[n++] = poll_place(link, side, now, next);
    return n;
}

static void
wait_for_events(struct test_proxy *proxy, size_t n, int64_t next)
{
    int64_t         left = next == NEAR_NEVER ? 3600 * 1000 * NEAR_MS : next - now_ns();
    struct timespec ts;

    if (left < 0)
        left = 0;
    ts = (struct timespec){ left / (1000 * NEAR_MS), left % (1000 * NEAR_MS) };
    if (ppoll(proxy->polls, n, &ts, NULL) < 0)
        for (size_t i = 0; i < n; i++)
            proxy->polls[i].revents = 0;
}

static void
serve_links(struct test_proxy *proxy, char *buffer)
{
    size_t n = FIRST_LINK;

    for (struct link *link = proxy->links; link != NULL; link = link->next, n += 2) {
        for (int i = 0; i < 2 && !link->dead; i++)
            if (proxy->polls[n + (size_t)i].revents & (POLLIN | POLLERR | POLLHUP) &&
                lane_wants_input(&link->lane[i]))
                lane_read(proxy, link, i, buffer);
        for (int i = 0; i < 2 && !link->dead; i++)
            lane_write(proxy, link, i);
        if (!link->dead)
            link_settle(proxy, link);
    }
}

static void
bury_links(struct test_proxy *proxy)
{
    for (struct link **at = &proxy->links; *at != NULL;) {
        struct link *link = *at;

        if (!link->dead) {
            at = &link->next;
            continue;
        }
        *at = link->next;
        link_free(link);
    }
}

static void
apply(struct test_proxy *proxy, struct test_fault fault)
{
    proxy->fault = fault;
    for (struct link *link = proxy->links; link != NULL; link = link->next) {
        for (int i = 0; i < 2; i++)
            lane_budget(proxy, link, i);
        if (fault.kind == TEST_FAULT_REFUSE)
            link_close(link, false);
        else if (fault.kind == TEST_FAULT_HANG_UP && !link->dead)
            shutdown(link->fd[0], SHUT_RDWR); /* its end is read, and passed on behind what is held */
        else if (!link->dead)
            link_settle(proxy, link);
    }
}

/* Take what the test's thread has posted.  False: stop. */
static bool
obey(struct test_proxy *proxy)
{
    struct test_fault fault;
    unsigned          posted;
    bool              news, stop;
    uint64_t          count;

    if (read(proxy->wake, &count, sizeof(count)) < 0)
        return true;
    pthread_mutex_lock(&proxy->lock);
    fault       = proxy->wanted;
    posted      = proxy->posted;
    news        = proxy->news;
    stop        = proxy->stop;
    proxy->news = false;
    pthread_mutex_unlock(&proxy->lock);
    if (news)
        apply(proxy, fault);
    pthread_mutex_lock(&proxy->lock);
    proxy->applied = posted;
    pthread_cond_broadcast(&proxy->caught_up);
    pthread_mutex_unlock(&proxy->lock);
    return !stop;
}

static void *
proxy_run(void *ctx)
{
    struct test_proxy *proxy  = ctx;
    char              *buffer = malloc(READ_SIZE);
    bool               on     = buffer != NULL;

    while (on) {
        int64_t next = NEAR_NEVER;
        size_t  n    = fill_polls(proxy, &next);

        if (n == 0)
            break;
        wait_for_events(proxy, n, next);
        serve_links(proxy, buffer);
        for (int i = 0; i < 2; i++)
            if (proxy->polls[1 + i].revents != 0)
                accept_one(proxy, proxy->listener[i]);
        if (proxy->polls[0].revents != 0)
            on = obey(proxy);
        bury_links(proxy);
    }
    free(buffer);
    return NULL;
}

/* ------------------------------------------------------------------------------------- the test's thread */

static bool
listen_unix(struct test_proxy *proxy)
{
    struct sockaddr_un at;

    snprintf(proxy->socket, sizeof(proxy->socket), "%s/p%p", proxy->target->directory, (void *)proxy);
    snprintf(proxy->unix_uri, sizeof(proxy->unix_uri), "%s+unix://%s", proxy->target->kind, proxy->socket);
    proxy->listener[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return proxy->listener[0] >= 0 && test_unix_address(&at, proxy->socket) &&
           bind(proxy->listener[0], (struct sockaddr *)&at, sizeof(at)) == 0 &&
           listen(proxy->listener[0], SOMAXCONN) == 0;
}

static bool
listen_port(struct test_proxy *proxy)
{
    struct sockaddr_in at   = { .sin_family = AF_INET };
    socklen_t          size = sizeof(at);

    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    proxy->listener[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (proxy->listener[1] < 0 || bind(proxy->listener[1], (struct sockaddr *)&at, sizeof(at)) != 0 ||
        listen(proxy->listener[1], SOMAXCONN) != 0 ||
        getsockname(proxy->listener[1], (struct sockaddr *)&at, &size) != 0)
        return false;
    snprintf(proxy->uri, sizeof(proxy->uri), "%s://127.0.0.1:%d%s", proxy->target->kind, ntohs(at.sin_port),
             strcmp(proxy->target->kind, "redis") == 0 ? "/0" : "");
    return true;
}

static void
proxy_wake(struct test_proxy *proxy)
{
    uint64_t one = 1;

    while (write(proxy->wake, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
}

void
test_proxy_lead_to(struct test_proxy *proxy, struct test_server *target)
{
    atomic_store(&proxy->target, target); /* read by the thread at each new connection */
}

struct test_proxy *
test_proxy_start(struct test_server *target)
{
    struct test_proxy *proxy = calloc(1, sizeof(*proxy));

    if (proxy == NULL)
        return NULL;
    proxy->target      = target;
    proxy->random      = 42;
    proxy->listener[0] = proxy->listener[1] = -1;
    proxy->wake                             = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&proxy->lock, NULL);
    pthread_cond_init(&proxy->caught_up, NULL);
    proxy->running = proxy->wake >= 0 && listen_unix(proxy) && listen_port(proxy) &&
                     near__thread_start(&proxy->thread, "test-proxy", proxy_run, proxy) == NEAR_OK;
    if (!proxy->running) {
        print_error("the proxy did not start: %s\n", strerror(errno));
        test_proxy_stop(&proxy);
    }
    return proxy;
}

void
test_proxy_stop(struct test_proxy **pointer)
{
    struct test_proxy *proxy = *pointer;

    *pointer = NULL;
    if (proxy == NULL)
        return;
    if (proxy->running) {
        pthread_mutex_lock(&proxy->lock);
        proxy->stop = true;
        pthread_mutex_unlock(&proxy->lock);
        proxy_wake(proxy);
        pthread_join(proxy->thread, NULL);
    }
    for (struct link *link = proxy->links; link != NULL; link = link->next)
        link_close(link, false);
    bury_links(proxy);
    for (int i = 0; i < 2; i++)
        if (proxy->listener[i] >= 0)
            close(proxy->listener[i]);
    if (proxy->wake >= 0)
        close(proxy->wake);
    unlink(proxy->socket);
    pthread_cond_destroy(&proxy->caught_up);
    pthread_mutex_destroy(&proxy->lock);
    free(proxy->polls);
    free(proxy);
}

/* Post a fault, or nothing (NULL), and wait until the thread has come by: then what any peer has seen is also counted. */
static void
proxy_tell(struct test_proxy *proxy, const struct test_fault *fault)
{
    unsigned mine;

    pthread_mutex_lock(&proxy->lock);
    if (fault != NULL) {
        proxy->wanted = *fault;
        proxy->news   = true;
    }
    mine = ++proxy->posted;
    pthread_mutex_unlock(&proxy->lock);
    proxy_wake(proxy);
    pthread_mutex_lock(&proxy->lock);
    while ((int)(proxy->applied - mine) < 0)
        pthread_cond_wait(&proxy->caught_up, &proxy->lock);
    pthread_mutex_unlock(&proxy->lock);
}

void
test_proxy_fault(struct test_proxy *proxy, struct test_fault fault)
{
    if (((unsigned)fault.direction & TEST_BOTH) == 0)
        fault.direction = (enum test_direction)((unsigned)fault.direction | TEST_BOTH);
    proxy_tell(proxy, &fault);
}

void
test_proxy_heal(struct test_proxy *proxy)
{
    test_proxy_fault(proxy, (struct test_fault){ .kind = TEST_FAULT_NONE });
}

const char *
test_proxy_uri(const struct test_proxy *proxy)
{
    return proxy->uri;
}

const char *
test_proxy_unix_uri(const struct test_proxy *proxy)
{
    return proxy->unix_uri;
}

uint64_t
test_proxy_bytes(const struct test_proxy *proxy, enum test_direction direction)
{
    uint64_t sum = 0;

    proxy_tell((struct test_proxy *)proxy,
               NULL); /* the thread counts bytes a moment after it has sent them */
    for (int i = 0; i < 2; i++)
        if (((unsigned)direction & (1u << i)) != 0)
            sum += atomic_load_explicit(&proxy->bytes[i], memory_order_relaxed);
    return sum;
}

unsigned
test_proxy_connections(const struct test_proxy *proxy)
{
    return atomic_load_explicit(&proxy->connections, memory_order_relaxed);
}

uint64_t
test_proxy_spoilt(const struct test_proxy *proxy)
{
    return atomic_load_explicit(&proxy->spoilt, memory_order_relaxed);
}

unsigned
test_proxy_offsets(const struct test_proxy *proxy)
{
    unsigned sum = 0;

    for (size_t i = 0; i < TEST_OFFSETS; i++)
        sum += atomic_load_explicit(&proxy->offsets[i], memory_order_relaxed);
    return sum;
}

unsigned
test_proxy_most_open(struct test_proxy *proxy)
{
    return atomic_exchange_explicit(&proxy->most_open, 0, memory_order_relaxed);
}
