/*
 * Who is the master: asked of Redis Sentinel before every dial (rule C10).
 *
 * One near__sentinels is a list of sentinels that watch one master; L2's dials and the bus's may share it or have one each.  It is
 * told by near__redis_dial() what became of an answer, and keeps the order in which the sentinels are asked: who answered well first,
 * who misled us last.  Nothing here outlives a call but that order and the master's address; no thread, no connection.
 *
 * Many threads at once.  The lock (rank LEAF) covers order and address and is never held during I/O.
 */
#ifndef NEAR_L2_REDIS_SENTINEL_H
#define NEAR_L2_REDIS_SENTINEL_H

#include "base/clock.h"
#include "base/uri.h"

struct near__redis_server;
struct near__sentinels;

/* `uri` outlives it; user and password (empty: none) are the sentinels' own and are copied. */
near_status near__sentinels_new(struct near__sentinels **sentinels, const struct near__uri *uri,
                                const char *user, const char *password, near_error *error);
void        near__sentinels_free(struct near__sentinels **sentinels); /* NULL inside is fine */

/* Ask one sentinel after the other, each with its share of the time, until one names the master's address.  `*who` is for
 * near__sentinels_blame().  `server` tells the clock, the TLS and the cancelling.  NEAR_ERR_UNAVAILABLE: none knew one, and what the
 * last one said; NEAR_ERR_DENIED, NEAR_ERR_TIMEOUT, NEAR_ERR_CLOSED. */
near_status near__sentinels_ask(struct near__sentinels *sentinels, const struct near__redis_server *server,
                                struct near__address *master, size_t *who, int64_t deadline,
                                near_error *error);
/* What it named is no master: ask it last. */
void near__sentinels_blame(struct near__sentinels *sentinels, size_t who);
/* The address proved to be the master's.  When it is another one than before, the epoch moves on. */
void near__sentinels_confirm(struct near__sentinels *sentinels, const struct near__address *master);
/* A connection that was made in an earlier epoch leads to a server that is the master no more. */
uint64_t near__sentinels_epoch(const struct near__sentinels *sentinels);

#endif
