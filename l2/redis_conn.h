/*
 * One connection to one Redis server: our socket, our deadlines, hiredis for parsing only (rule H1).
 *
 * transport (l2/transport.h: tcp, unix socket) -> codec (this file: RESP2 by l2/resp.h and redisReader) -> users:
 * l2/redis.c (pooled, pipelined) and coherence/redis.c (subscriber and publisher).  A connection belongs to one thread at a time.
 * Once any call here returned NEAR_ERR_TIMEOUT (but for near__redis_read_one), NEAR_ERR_UNAVAILABLE or NEAR_ERR_PROTOCOL it is
 * broken: every later call says so, and it must be freed, never reused (rule H6).
 */
#ifndef NEAR_L2_REDIS_CONN_H
#define NEAR_L2_REDIS_CONN_H

#include "base/clock.h"
#include "base/uri.h"

#include <hiredis/hiredis.h>

struct near__redis_conn;

struct near__access;

struct near__redis_server {
    const struct near__uri *uri; /* user, password and database are used */
    const struct near__address
        *address; /* what to dial; NULL: the URI's first, or the master that its sentinels name */
    const struct near__access
        *access; /* l2/access.h: TLS, sentinels, what a password may travel over; NULL: none */
    const struct near__clock *clock;
    const char               *client_name;
    size_t                    max_reply; /* bytes fed since the last complete reply (rule H14) */
    const int *cancel_fd; /* NULL: none.  Becomes readable: every wait ends at once with NEAR_ERR_CLOSED */
};

/* Ask the sentinels, if there are any, resolve, try every address, AUTH / SELECT / CLIENT SETNAME in one pipeline with every reply checked, all by `deadline`.
 * NEAR_ERR_UNAVAILABLE, NEAR_ERR_TIMEOUT, NEAR_ERR_DENIED (NOAUTH, WRONGPASS, NOPERM), NEAR_ERR_PROTOCOL, NEAR_ERR_NOMEM. */
near_status near__redis_dial(struct near__redis_conn **conn, const struct near__redis_server *server,
                             int64_t deadline, near_error *error);
/* The same at `server->address`, sentinels or not.  `want_master`: it must say that it is one, or this fails with
 * NEAR_ERR_UNAVAILABLE (rule C10).  For l2/redis_sentinel.c. */
near_status near__redis_dial_at(struct near__redis_conn **conn, const struct near__redis_server *server,
                                bool want_master, int64_t deadline, near_error *error);
/* Of a connection to a master that sentinels named: another one has been found since.  It must not be read from any more, and usable()
 * says so; whoever has calls on it all the time should ask now and then.  A glance at two words. */
bool near__redis_conn_outdated(const struct near__redis_conn *conn);
/* From now on it is outdated when `*epoch` is not `seen`.  `epoch` outlives it. */
void near__redis_conn_watch(struct near__redis_conn *conn, const _Atomic uint64_t *epoch, uint64_t seen);
/* Closes and frees; leaves NULL behind. */
void near__redis_conn_free(struct near__redis_conn **conn);
/* In a forked child: closes the descriptor and touches nothing else. */
void near__redis_conn_abandon(struct near__redis_conn *conn);
/* Idle and sound: nothing to read, not closed by the peer, not broken (rule P5). */
bool near__redis_conn_usable(struct near__redis_conn *conn);

/* For who sends and receives by himself: nothing of this file's may be in flight. */
struct near__transport *near__redis_conn_transport(struct near__redis_conn *conn);

/* This connection's life as a stream of announcements: a random number, never 0, and how many were numbered so far. */
uint64_t near__redis_conn_stream(const struct near__redis_conn *conn);
/* Stamp 16 bytes at `at` with the stream and its next number. */
void near__redis_conn_stamp(struct near__redis_conn *conn, uint8_t *at);
/* Is this the number given out last? */
bool near__redis_conn_is_last(const struct near__redis_conn *conn, uint64_t number);
/* The message stamped last was certainly not published: its number is given out again, so that receivers see no gap. */
void near__redis_conn_unstamp(struct near__redis_conn *conn);

/* Queue one command; nothing is sent yet.  NEAR_OK; NEAR_ERR_NOMEM, NEAR_ERR_TOO_LARGE (rule H4). */
near_status near__redis_append(struct near__redis_conn *conn, size_t argc, const near_bytes *argv);
/* Number of commands queued and not yet sent. */
size_t near__redis_queued(const struct near__redis_conn *conn);

/* Send what is queued and read exactly as many replies, both at once so that no side blocks on full buffers (rule H18).
 * `reply` is called for each, in order; the reply is freed afterwards.  Error replies are replies, not failures.
 * `*answered` (may be NULL): how many replies arrived, also on failure.  `*sent_any` (may be NULL): whether a byte left. */
typedef void (*near__redis_reply_fn)(void *ctx, size_t index, redisReply *reply);
near_status near__redis_exchange(struct near__redis_conn *conn, near__redis_reply_fn reply, void *ctx,
                                 size_t *answered, bool *sent_any, int64_t deadline, near_error *error);
/* How many commands of the last exchange were handed to the system to their last byte.  After a failure the others were
 * certainly not executed: a server needs all of a command, and the connection is gone. */
size_t near__redis_sent(const struct near__redis_conn *conn);

/* For a subscriber: send what is queued without waiting for replies; then read one message at a time. */
near_status near__redis_flush(struct near__redis_conn *conn, int64_t deadline, near_error *error);
/* One reply, to be freed with freeReplyObject().  NEAR_ERR_TIMEOUT: none by `deadline`, and the connection is still sound.
 * `wake_fd` (-1: none): a descriptor that ends the wait with NEAR_ERR_BUSY when it becomes readable. */
near_status near__redis_read_one(struct near__redis_conn *conn, redisReply **reply, int wake_fd,
                                 int64_t deadline, near_error *error);

/* What an error reply's first word means for us (rule R1): NEAR_ERR_UNAVAILABLE (LOADING, BUSY, TRYAGAIN, CLUSTERDOWN,
 * MASTERDOWN, READONLY...), NEAR_ERR_DENIED (NOAUTH, WRONGPASS, NOPERM, OOM, MISCONF, NOREPLICAS...), NEAR_ERR_PROTOCOL. */
near_status near__redis_error_class(const redisReply *reply);
/* Whether the connection must be dropped after this error reply (READONLY, MOVED, LOADING...: rediscover). */
bool near__redis_error_drops(const redisReply *reply);
/* What of an error reply may be shown: its first word, or a text of the server's that is known to quote nothing.  Any other text may
 * hold arguments, that is keys, values or passwords.  Writes at most `size` bytes, NUL included. */
void near__redis_error_word(const redisReply *reply, char *out, size_t size);

#endif
