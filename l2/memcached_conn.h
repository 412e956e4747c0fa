/*
 * One connection to one memcached: libmemcached by the L-rules, so that no caller has to know them.
 *
 * A connection is one memcached_st with one server in it and belongs to one thread at a time.  Whatever the
 * server or libmemcached answers that is not on the list of harmless answers (rule L2) breaks the connection:
 * it says so from then on, and must be dropped.
 *
 * libmemcached's timeouts bound one poll, and one operation can poll many times (rule L9).  A guard, one
 * thread per client, makes the deadline hard: it shuts the socket of a connection whose time is over, which
 * ends whatever poll is under way.
 *
 * Trusted servers only (rule L19): a server that answers a write with another command's answer ("END" to a
 * set) ends the process in an assertion inside libmemcached 1.1.4, and a key of its invention over 250 bytes
 * overruns a field. Neither can come of a sound server: a connection in any doubt is dropped before its next
 * use.
 */
#ifndef NEAR_L2_MEMCACHED_CONN_H
#define NEAR_L2_MEMCACHED_CONN_H

#include "base/clock.h"
#include "base/uri.h"

#include <stdatomic.h>

struct near__memcached_guard;
struct near__memcached_conn;

near_status near__memcached_guard_new(struct near__memcached_guard **guard, const struct near__clock *clock);
/* Ends every operation under way (NEAR_ERR_CLOSED) and every later one; returns at once. */
void near__memcached_guard_close(struct near__memcached_guard *guard);
/* When every connection is gone.  Leaves NULL behind. */
void near__memcached_guard_free(struct near__memcached_guard **guard);
/* In a child, where the guard's thread does not exist. */
void near__memcached_guard_forked(struct near__memcached_guard *guard);

/* Which server has a key: weighted ketama with MD5, where libketama and most other clients would look for it
 * (rule L17).  A memcached_st that is never connected (rule L6); never changed once it is made, so any thread
 * may ask it. */
struct near__memcached_router;
near_status near__memcached_router_new(struct near__memcached_router **router, const struct near__uri *uri);
size_t      near__memcached_route(const struct near__memcached_router *router, near_bytes key);
void        near__memcached_router_free(struct near__memcached_router **router);

/* What all connections to one server share. */
struct near__memcached_server {
    const struct near__address   *address;
    const struct near__clock     *clock;
    const struct near__log       *log;
    struct near__memcached_guard *guard;
    char                          name[300];  /* "memcached 10.0.0.7:11211": begins every message */
    atomic_size_t                 item_max;   /* the server's item_size_max, 0: not known */
    atomic_bool                   no_stats;   /* does not answer `stats settings`: not asked again */
    atomic_uint                   stats_lost; /* how often it has hung up when asked */
};

/* NEAR_OK; NEAR_ERR_TIMEOUT, NEAR_ERR_UNAVAILABLE, NEAR_ERR_PROTOCOL, NEAR_ERR_NOMEM, NEAR_ERR_CLOSED. */
near_status near__memcached_dial(struct near__memcached_conn **conn, struct near__memcached_server *server,
                                 int64_t deadline, near_error *error);
/* Idle and sound: nothing to read, not closed by the peer (rule P5). */
bool near__memcached_usable(struct near__memcached_conn *conn);
/* Close and free.  Without `goodbye` not a byte goes out, and in a child the parent's connection is not
 * disturbed (rule P3). */
void near__memcached_drop(struct near__memcached_conn *conn, bool goodbye);
/* In a child, a connection in use when the process forked: close the descriptors, touch nothing else. */
void near__memcached_abandon(struct near__memcached_conn *conn);

enum near__memcached_word {
    NEAR__MEMCACHED_DONE,
    NEAR__MEMCACHED_NO,        /* the server's word: the condition did not hold, or no such key */
    NEAR__MEMCACHED_TOO_LARGE, /* refused; `set` has removed what was there before */
    NEAR__MEMCACHED_REFUSED,   /* for certain not done; the connection is broken */
    NEAR__MEMCACHED_NOT_SENT,  /* the deadline had passed */
    NEAR__MEMCACHED_BROKEN     /* no word: perhaps done; the connection is broken */
};

/* Called for each key found; `value` is borrowed.  False: that key was not asked for, which breaks the
 * connection. */
typedef bool (*near__memcached_found_fn)(void *ctx, near_bytes key, near_bytes value, uint64_t unique);

/* One `gets`.  DONE: the server has named everything it has of `keys`; what was not named is not there. */
#define NEAR__MEMCACHED_KEYS 64
enum near__memcached_word near__memcached_gets(struct near__memcached_conn *conn, const near_bytes *keys,
                                               size_t n, near__memcached_found_fn found, void *ctx,
                                               int64_t deadline);

enum near__memcached_verb { NEAR__MEMCACHED_SET, NEAR__MEMCACHED_ADD, NEAR__MEMCACHED_CAS };
/* `unique` is for CAS and not 0.  `exptime` as near__memcached_exptime() gives it. */
enum near__memcached_word near__memcached_store(struct near__memcached_conn *conn,
                                                enum near__memcached_verb verb, near_bytes key,
                                                near_bytes value, int64_t exptime, uint64_t unique,
                                                int64_t deadline);
/* NO: the key was not there. */
enum near__memcached_word near__memcached_delete(struct near__memcached_conn *conn, near_bytes key,
                                                 int64_t deadline);

/* Why the last word was REFUSED or BROKEN. */
near_status near__memcached_status(const struct near__memcached_conn *conn);
bool        near__memcached_broken(const struct near__memcached_conn *conn);
/* Broken because the peer had closed it, not by silence or nonsense: worth one more try on another connection
 * (rule L11). */
bool near__memcached_lost(const struct near__memcached_conn *conn);
/* "1.6.18" */
void near__memcached_version(const struct near__memcached_conn *conn, char *out, size_t size);

/* A TTL as the protocol wants it (rule M1): 0 for ever; below 0 gone at once; up to 30 days relative, beyond that absolute; rounded
 * up, and one second more, because the server's clock ticks in whole seconds and an item of one second may
 * live for a moment only. */
int64_t near__memcached_exptime(int64_t ttl_ms, int64_t wall_ms);
/* An absolute time long gone: what is stored with it is not there. */
#define NEAR__MEMCACHED_EXPIRED 2592001
/* 1 to 250 bytes of 0x21 .. 0x7E (rule L4). */
bool near__memcached_key_is_fit(near_bytes key);

#endif
