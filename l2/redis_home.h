/*
 * The one node of a Redis Cluster where everybody meets who knows the same word: the primary that serves its slot.
 *
 * A PUBLISH reaches every node of a cluster, but how soon is nobody's promise: a subscriber at one node may have its PINGs answered
 * while a message that was acknowledged at another is still under way.  So the bus publishes and listens at one node, its channel's
 * home, where the order of a single server holds.
 */
#ifndef NEAR_L2_REDIS_HOME_H
#define NEAR_L2_REDIS_HOME_H

#include "l2/redis_conn.h"

/* A connection to `word`'s home: of a redis-cluster URI, found anew each time through the URI's addresses; of any other, as
 * near__redis_dial().  Statuses are that one's.  *at (may be NULL): of a cluster, the address it leads to. */
near_status near__redis_dial_home(struct near__redis_conn **conn, const struct near__redis_server *server,
                                  const char *word, struct near__address *at, int64_t deadline,
                                  near_error *error);

#endif
