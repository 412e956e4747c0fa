/*
 * A byte stream to one server: our own socket, so that deadlines are absolute and nothing of the process
 * is changed (rules H6, H8 - H12).  tcp and unix sockets, and TLS over either.
 *
 * Send and receive never block: they do what can be done now, wait() sleeps until more can be done.  Only await() sleeps in
 * the system call that also receives, which halves what a lone small call costs.  Descriptors are close-on-exec from birth; no SIGPIPE is ever raised.  One thread at a time.
 *
 * Who polls several transports himself: sleep only when near__transport_pending() of none of them says
 * yes, on the events that near__transport_events() names, and after any event call receive (and send, if
 * there is something to send).  Either may then say 0: under TLS an event may have brought half a record.
 * What send took is as good as sent and must not be offered again, but under TLS a part of it may still be
 * here: receive and send move it on, events asks for the room.
 */
#ifndef NEAR_L2_TRANSPORT_H
#define NEAR_L2_TRANSPORT_H

#include "base/clock.h"
#include "base/uri.h"

#include <sys/types.h>
#include <sys/uio.h>

struct near__tls;
struct near__tls_context;

/* The owner fills in cancel_fd, clock and tls_context before open(), and zeroes the rest. */
struct near__transport {
    int fd;        /* -1: none */
    int cancel_fd; /* readable: every wait ends with NEAR_ERR_CLOSED.  -1: none.  Borrowed */
    const struct near__clock *clock;
    struct near__tls_context *tls_context; /* open() makes a TLS connection.  NULL: a plain one.  Borrowed */
    struct near__tls         *tls;         /* NULL: plain */
    bool                      patient;     /* the descriptor blocks where MSG_DONTWAIT does not forbid it */
};

/* How long near__transport_await() sleeps at most.  Whoever sleeps there hears of nothing else, so it is short beside what a
 * deadline may be missed by; answers that take longer than this do not mind what a poll() costs. */
#define NEAR__TRANSPORT_PATIENCE (8 * NEAR_MS)

/* The longest path of a unix socket, without its NUL (rule H10). */
#define NEAR__UNIX_PATH 107

/* Connect by `deadline`, TLS handshake included.  A name's addresses are tried one after the other, each
 * with an equal share of the time that is left.  A numeric address never asks a resolver; a name's lookup is bounded, too
 * (l2/resolve.h).  NEAR_ERR_UNAVAILABLE, NEAR_ERR_TIMEOUT, NEAR_ERR_INVALID (path too long),
 * NEAR_ERR_CLOSED (cancelled); `error` has only the reason, the caller knows the server's name.  On
 * failure fd is -1. */
near_status near__transport_open(struct near__transport *transport, const struct near__address *address,
                                 int64_t deadline, near_error *error);
void        near__transport_close(struct near__transport *transport);
/* In a forked child: closes the descriptor and touches nothing else, since a thread of the parent's may have
 * been in the middle of anything. */
void near__transport_abandon(struct near__transport *transport);

/* Bytes sent or received; 0: nothing can be done now, wait; -1: broken, errno says why (ECONNRESET for the
 * peer's close, too). */
ssize_t near__transport_send(struct near__transport *transport, const struct iovec *pieces, size_t n);
ssize_t near__transport_receive(struct near__transport *transport, void *buffer, size_t size);
/* Once, on a connection that is open: await() may be called from now on.  False: not on this one (TLS). */
bool near__transport_make_patient(struct near__transport *transport);
/* What the kernel has not got rid of when it is closed is not sent any more; the peer sees a reset. */
void near__transport_forget(struct near__transport *transport);
/* As receive, but sleeps until there is something, NEAR__TRANSPORT_PATIENCE is over (rounded up to the kernel's ticks) or a signal
 * arrives: 0. */
ssize_t near__transport_await(struct near__transport *transport, void *buffer, size_t size);
/* Why send or receive said -1, in words: `code` is errno.  Before close. */
void near__transport_fault(const struct near__transport *transport, int code, char *out, size_t size);

/* There may be more to receive though poll() will not say so.  Never true of a plain connection; true once
 * too often at the most, so whoever goes on receiving until 0 need not ask. */
bool near__transport_pending(const struct near__transport *transport);
/* What poll() should wait for: something to receive and, if `sending`, room to send; under TLS each may take
 * the other. */
short near__transport_events(const struct near__transport *transport, bool sending);

/* Sleep until there is something to receive or, if `sending`, room to send.  NEAR_OK, NEAR_ERR_TIMEOUT,
 * NEAR_ERR_CLOSED (cancelled), NEAR_ERR_BUSY (`wake_fd`, -1 for none, is readable; said only when the
 * server has nothing for us). */
near_status near__transport_wait(struct near__transport *transport, bool sending, int wake_fd,
                                 int64_t deadline);

/* Nothing to read and not closed by the peer (rule P5).  Does not block. */
bool near__transport_quiet(struct near__transport *transport);
/* Nobody on a network can read along: TLS, a unix socket, or a peer on this machine. */
bool near__transport_private(const struct near__transport *transport);

#endif
