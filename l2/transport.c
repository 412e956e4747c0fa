/*
 * The transport is one descriptor and, under TLS, what l2/tls.c keeps for it; whoever holds the struct owns
 * both.  No lock: what can never happen is that a call here sleeps past its deadline (poll is told the time that
 * is left, and await() sleeps no longer than it says), that a signal is raised (MSG_NOSIGNAL), or that a child process
 * inherits the descriptor through exec (SOCK_CLOEXEC).
 */
#include "l2/transport.h"

#include "l2/resolve.h"
#include "l2/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* A unix socket whose backlog is full says EAGAIN and gives nothing to poll for: look again after this
 * time. */
#define BACKLOG_PAUSE NEAR_MS

_Static_assert(NEAR__UNIX_PATH == sizeof(((struct sockaddr_un *)0)->sun_path) - 1, "rule H10");

/* ---------------------------------------------------------------------------------------------- waiting */

/* poll() until something happens or `deadline`; signals do not shorten or prolong it.  `ready`: something has
 * happened already, only look. */
static near_status
sleep_on(const struct near__transport *t, struct pollfd *fds, nfds_t n, bool ready, int64_t deadline)
{
    for (;;) {
        int64_t now = near__now(t->clock);
        int     got;

        if (now >= deadline)
            return NEAR_ERR_TIMEOUT;
        got = poll(fds, n, ready ? 0 : near__poll_timeout(now, deadline));
        if (got > 0 || (got == 0 && ready))
            return NEAR_OK;
        if (got < 0 && errno != EINTR)
            return NEAR_ERR_UNAVAILABLE;
    }
}

/* Descriptors below 0 are ignored by poll(). */
static near_status
wait_for(const struct near__transport *t, short events, int wake_fd, int64_t deadline)
{
    struct pollfd fds[3] = { { t->fd, events, 0 }, { t->cancel_fd, POLLIN, 0 }, { wake_fd, POLLIN, 0 } };
    bool          ready  = near__transport_pending(t);
    near_status   status = sleep_on(t, fds, wake_fd < 0 ? 2 : 3, ready, deadline);

    if (status != NEAR_OK)
        return status;
    if (fds[1].revents != 0)
        return NEAR_ERR_CLOSED;
    if (fds[0].revents == 0 && fds[2].revents != 0 && !ready)
        return NEAR_ERR_BUSY;
    return NEAR_OK; /* errors and hang-ups, too: the next send or receive says which */
}

near_status
near__transport_wait(struct near__transport *transport, bool sending, int wake_fd, int64_t deadline)
{
    return wait_for(transport, near__transport_events(transport, sending), wake_fd, deadline);
}

bool
near__transport_pending(const struct near__transport *transport)
{
    return transport->tls != NULL && near__tls_pending(transport->tls);
}

short
near__transport_events(const struct near__transport *transport, bool sending)
{
    if (transport->tls != NULL)
        return near__tls_events(transport->tls, sending);
    return sending ? POLLIN | POLLOUT : POLLIN;
}

/* ------------------------------------------------------------------------------------------- connecting */

/* A loopback port nobody listens on may be given to us as our own end: then we are connected to ourselves. */
static bool
is_self(int fd)
{
    struct sockaddr_storage here = { 0 }, there = { 0 };
    socklen_t               here_size = sizeof(here), there_size = sizeof(there);

    return getsockname(fd, (struct sockaddr *)&here, &here_size) == 0 &&
           getpeername(fd, (struct sockaddr *)&there, &there_size) == 0 && here_size == there_size &&
           memcmp(&here, &there, here_size) == 0;
}

/* connect() has begun: wait for its outcome.  0 or an errno. */
static int
connect_outcome(struct near__transport *t, int64_t deadline, near_status *status)
{
    int       code = 0;
    socklen_t size = sizeof(code);

    *status = wait_for(t, POLLOUT, -1, deadline);
    if (*status != NEAR_OK)
        return ETIMEDOUT;
    if (getsockopt(t->fd, SOL_SOCKET, SO_ERROR, &code, &size) != 0)
        code = errno;
    return code;
}

static int
connect_once(struct near__transport *t, const struct sockaddr *to, socklen_t size, int64_t deadline,
             near_status *status)
{
    *status = NEAR_OK;
    while (connect(t->fd, to, size) != 0) {
        if (errno == EINPROGRESS || errno == EINTR)
            return connect_outcome(t, deadline, status);
        if (errno != EAGAIN || to->sa_family != AF_UNIX)
            return errno;
        int64_t until = near__time_after(near__now(t->clock), BACKLOG_PAUSE);
        *status =
            wait_for(&(struct near__transport){ .fd = -1, .cancel_fd = t->cancel_fd, .clock = t->clock }, 0,
                     -1, until < deadline ? until : deadline);
        if (*status == NEAR_ERR_TIMEOUT && until < deadline)
            continue;
        return ETIMEDOUT;
    }
    return 0;
}

static near_status
connect_to(struct near__transport *t, const struct sockaddr *to, socklen_t size, int64_t deadline,
           near_error *error)
{
    int         one = 1, code;
    near_status status;

    t->fd = socket(to->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (t->fd < 0)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "cannot make a socket: %s", near__errno_text(errno));
    code = connect_once(t, to, size, deadline, &status);
    if (code == 0 && to->sa_family != AF_UNIX && is_self(t->fd))
        code = ECONNREFUSED;
    if (code == 0) {
        if (to->sa_family != AF_UNIX)
            setsockopt(t->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        return NEAR_OK;
    }
    near__transport_close(t);
    if (status == NEAR_ERR_TIMEOUT)
        return near__fail(error, status, "connect timed out");
    if (status != NEAR_OK)
        return near__fail(error, status, "connect given up: %s", near_status_text(status));
    return near__fail(error, NEAR_ERR_UNAVAILABLE, "cannot connect: %s", near__errno_text(code));
}

/* The descriptor is connected: the handshake, by `deadline`.  On failure all is closed. */
static near_status
secure(struct near__transport *t, const char *host, int64_t deadline, near_error *error)
{
    near_status status = NEAR_OK;

    if (t->tls_context == NULL)
        return NEAR_OK;
    status = near__tls_new(&t->tls, t->tls_context, t->fd, host, error);
    while (status == NEAR_OK) {
        status = near__tls_handshake(t->tls, error);
        if (status == NEAR_OK)
            return NEAR_OK;
        if (status != NEAR_ERR_BUSY)
            break;
        status = wait_for(t, near__tls_events(t->tls, false), -1, deadline);
        if (status == NEAR_ERR_TIMEOUT)
            near__fail(error, status,
                       "the TLS handshake timed out (does the server speak TLS at this port?)");
        else if (status != NEAR_OK)
            near__fail(error, status, "TLS handshake given up: %s", near_status_text(status));
    }
    near__transport_close(t);
    return status;
}

static near_status
open_unix(struct near__transport *t, const char *path, int64_t deadline, near_error *error)
{
    struct sockaddr_un to     = { .sun_family = AF_UNIX };
    size_t             length = strlen(path);
    near_status        status;

    if (length > NEAR__UNIX_PATH)
        return near__fail(error, NEAR_ERR_INVALID, "the socket's path has %zu bytes, at most %d are possible",
                          length, NEAR__UNIX_PATH);
    memcpy(to.sun_path, path, length);
    status = connect_to(t, (const struct sockaddr *)&to, sizeof(to), deadline, error);
    return status == NEAR_OK ? secure(t, "localhost", deadline, error) : status;
}

static near_status
open_tcp(struct near__transport *t, const struct near__address *address, int64_t deadline, near_error *error)
{
    struct near__resolved found;
    near_status           status = near__resolve(address, &found, t->cancel_fd, t->clock, deadline, error);

    for (size_t i = 0; i < found.n && status == NEAR_OK; i++) {
        int64_t now   = near__now(t->clock);
        int64_t left  = (int64_t)(found.n - i);
        int64_t share = deadline == NEAR_NEVER || now >= deadline ? deadline : now + (deadline - now) / left;

        status = connect_to(t, (const struct sockaddr *)&found.at[i].address, found.at[i].size, share, error);
        if (status == NEAR_OK)
            status = secure(t, address->host, share, error);
        if (status == NEAR_OK || status == NEAR_ERR_CLOSED)
            return status;
        if (i + 1 < found.n)
            status = NEAR_OK; /* on to the next */
    }
    return status;
}

near_status
near__transport_open(struct near__transport *transport, const struct near__address *address, int64_t deadline,
                     near_error *error)
{
    transport->fd      = -1;
    transport->tls     = NULL;
    transport->patient = false;
    if (address->port == 0)
        return open_unix(transport, address->host, deadline, error);
    return open_tcp(transport, address, deadline, error);
}

void
near__transport_close(struct near__transport *transport)
{
    near__tls_free(&transport->tls);
    near__transport_abandon(transport);
}

void
near__transport_forget(struct near__transport *transport)
{
    static const struct linger reset = { .l_onoff = 1, .l_linger = 0 };

    /* refused: then it is no TCP, and nothing is under way */
    setsockopt(transport->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
}

void
near__transport_abandon(struct near__transport *transport)
{
    if (transport->fd >= 0)
        close(transport->fd);
    transport->fd = -1;
}

/* ------------------------------------------------------------------------------------------------ bytes */

static ssize_t
outcome(ssize_t n)
{
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) ? 0 : n;
}

ssize_t
near__transport_send(struct near__transport *transport, const struct iovec *pieces, size_t n)
{
    struct msghdr message = { .msg_iov = (struct iovec *)pieces, .msg_iovlen = n };

    if (transport->tls != NULL)
        return near__tls_send(transport->tls, pieces, n);
    if (n == 1)
        return outcome(send(transport->fd, pieces->iov_base, pieces->iov_len, MSG_NOSIGNAL | MSG_DONTWAIT));
    return outcome(sendmsg(transport->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
}

static ssize_t
receive(struct near__transport *transport, void *buffer, size_t size, int flags)
{
    ssize_t n = recv(transport->fd, buffer, size, flags);

    if (n == 0) {
        errno = ECONNRESET;
        return -1;
    }
    return outcome(n);
}

ssize_t
near__transport_receive(struct near__transport *transport, void *buffer, size_t size)
{
    if (transport->tls != NULL)
        return near__tls_receive(transport->tls, buffer, size);
    return receive(transport, buffer, size, MSG_DONTWAIT);
}

bool
near__transport_make_patient(struct near__transport *transport)
{
    struct timeval patience = { .tv_usec = NEAR__TRANSPORT_PATIENCE / 1000 };
    int            flags;

    if (transport->tls != NULL)
        return false;
    flags = fcntl(transport->fd, F_GETFL);
    transport->patient =
        flags >= 0 && setsockopt(transport->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) == 0 &&
        fcntl(transport->fd, F_SETFL, flags & ~O_NONBLOCK) == 0;
    return transport->patient;
}

ssize_t
near__transport_await(struct near__transport *transport, void *buffer, size_t size)
{
    return receive(transport, buffer, size, 0);
}

bool
near__transport_quiet(struct near__transport *transport)
{
    char    byte;
    ssize_t n;

    if (transport->tls != NULL)
        return near__tls_quiet(transport->tls);
    n = recv(transport->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
}

void
near__transport_fault(const struct near__transport *transport, int code, char *out, size_t size)
{
    const char *why  = transport->tls != NULL ? near__tls_fault(transport->tls) : NULL;
    const char *text = why != NULL ? why : near__errno_text(code);

    snprintf(out, size, "%s", text != NULL ? text : "unknown error");
}

static bool
is_loopback(const struct sockaddr_storage *peer)
{
    const struct sockaddr_in  *v4 = (const struct sockaddr_in *)peer;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)peer;

    if (peer->ss_family == AF_INET)
        return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    if (peer->ss_family != AF_INET6)
        return peer->ss_family == AF_UNIX;
    return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) && v6->sin6_addr.s6_addr[12] == IN_LOOPBACKNET);
}

bool
near__transport_private(const struct near__transport *transport)
{
    struct sockaddr_storage peer = { 0 };
    socklen_t               size = sizeof(peer);

    return transport->tls != NULL ||
           (getpeername(transport->fd, (struct sockaddr *)&peer, &size) == 0 && is_loopback(&peer));
}
