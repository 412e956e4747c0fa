/*
 * Redis Sentinel: who the master is, asked anew at every dial (rule C10).
 *
 * The sentinels are asked one after the other, each with a short share of the time; what one names is dialled and must say itself that
 * it is a master (ROLE), else the next is asked.  Who was right is asked first from then on, who misled us last.  When the master turns
 * out to be another one than before, the epoch moves on, and every connection to the former one is outdated
 * (near__redis_conn_outdated()): a server that was cut off from its sentinels goes on answering, with values that are no longer true.
 *
 * L2 and the bus share one near__sentinels where they have the same URI.  Many threads at once.  The lock (rank LEAF) covers the order
 * and the master's address and is not held during I/O.  No thread, no connection outlives a call.
 */
#ifndef NEAR_L2_REDIS_SENTINEL_H
#define NEAR_L2_REDIS_SENTINEL_H

#include "base/uri.h"
#include "l2/redis_conn.h"

struct near__sentinels;

/* Of a URI with the layout SENTINEL.  `user` and `password` (empty: none) are the sentinels' own. */
near_status near__sentinels_new(struct near__sentinels **sentinels, const struct near__uri *uri,
                                const char *user, const char *password, near_error *error);
/* After the last connection it made.  NULL inside is fine. */
void near__sentinels_free(struct near__sentinels **sentinels);

/* For near__redis_dial(): to the master that server->access->sentinels know of.  Statuses as there. */
near_status near__sentinels_dial(struct near__redis_conn **conn, const struct near__redis_server *server,
                                 int64_t deadline, near_error *error);

#endif
