/*
 * Where a key lives in a Redis Cluster: slots, the map of who serves them, what redirects say, and when to ask for the map again.
 *
 * No sockets here.  Everything that comes from a server is input: a map is taken whole or refused whole, and nothing in it can lead outside the
 * arrays it is kept in.  A parsed map is never changed; whoever parsed it owns and frees it.
 */
#ifndef NEAR_L2_REDIS_SLOTS_H
#define NEAR_L2_REDIS_SLOTS_H

#include "base/lock.h"
#include "base/uri.h"
#include "l2/redis_node.h"

#define NEAR__SLOTS       16384
#define NEAR__SLOT_NODES  1000   /* primaries in one map: Redis's own recommended limit */
#define NEAR__SLOT_NOBODY 0xffff /* served by nobody that we know */

/* CRC16/XMODEM modulo NEAR__SLOTS of the key, or of what stands between its first '{' and the next '}' if that is anything
 * (rule C1). */
unsigned near__slot_of(near_bytes key);

struct near__slot_map {
    size_t               covered; /* slots that somebody serves */
    size_t               node_count;
    struct near__address nodes[NEAR__SLOT_NODES];
    uint16_t             owner[NEAR__SLOTS]; /* index in nodes, or NEAR__SLOT_NOBODY */
};

/* From the reply to CLUSTER SLOTS (rule C2).  `asked` is who sent it: hosts it leaves out are its own.  NEAR_ERR_PROTOCOL: the reply is not
 * of that shape, or out of range; NEAR_ERR_NOMEM. */
near_status near__slot_map_parse(struct near__slot_map **map, const struct near__redis_reply *reply,
                                 const struct near__address *asked);
void        near__slot_map_free(struct near__slot_map **map); /* NULL inside is fine */

struct near__redirect {
    bool                 ask; /* ASK: this once; else MOVED: for good */
    unsigned             slot;
    struct near__address to;
};

/* "MOVED 3999 127.0.0.1:6381" or "ASK ...".  False: some other error, or one that names no usable address. */
bool near__redirect_parse(struct near__redirect *redirect, near_bytes error,
                          const struct near__address *asked);

/*
 * One refresh at a time for all threads, and at least NEAR__REFRESH_APART between two (rule C3).  `lock` covers the rest and is
 * not held while a refresh runs.
 */
#define NEAR__REFRESH_APART (1000 * NEAR_MS)

struct near__refresh {
    struct near__lock lock;
    pthread_cond_t    done;
    bool              running;
    int64_t           not_before; /* of the next one */
    uint64_t          rounds;     /* ended, well or not */
};

void near__refresh_init(struct near__refresh *refresh);
void near__refresh_fini(struct near__refresh *refresh);
/* True: it is the caller's to do, and near__refresh_end() must follow.  False: it is too early for one, or somebody else runs one:
 * that one was waited for until `wait_until` (0: not at all). */
bool near__refresh_begin(struct near__refresh *refresh, int64_t now, int64_t wait_until);
void near__refresh_end(struct near__refresh *refresh, int64_t now);

#endif
