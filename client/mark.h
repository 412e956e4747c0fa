/*
 * Marks: entries in L2 that say that the store is being written.
 *
 * A mark lists the tokens of the writers under way.  Who begins joins the list, who ends leaves it, each by a conditional write under
 * the entry's stamp, which is a new one each time; the list survives whoever dies, until the mark's TTL.  Readers take a mark for
 * neither a value nor an absence: they load, without a lease, and keep what they loaded nowhere (client/plan.c).  So from before a
 * writer touches the store until all of them are through, L2 is filled by nobody but a writer that knows to have been the only one: its mark
 * lies there as it put it.  Whoever was not alone cannot know in which order the store saw them: the last one leaves nothing.
 *
 * A token that is not in the list any more was evicted or removed with its mark, or the mark has outlived its TTL: then others may have
 * been alone meanwhile without being told, so their marks are spoiled (nobody installs), and values are removed.
 *
 * Nothing here touches L1 or tells others; nothing holds a lock.  Never with l2.envelope = none.
 */
#ifndef NEAR_CLIENT_MARK_H
#define NEAR_CLIENT_MARK_H

#include "tier.h"

struct near__mark {
    uint64_t token;
    uint64_t stamp; /* of the entry as it was put, where the list has only our token; 0: there were others */
};

/* How long a mark is good without its writer: longer than the store may take. */
int64_t near__mark_time(const near_cache *cache);

/* Join the writers of a key.  NEAR_OK, or why not: then there may be a mark with our token until its time is over. */
near_status near__mark_place(near_cache *cache, near_bytes key, struct near__mark *mark, int64_t deadline);

/* If nobody came in between: put `stored` in the mark's place, or with NULL nothing.  NEAR_OK; NEAR_MISS: it is not so; or why it is not known. */
near_status near__mark_replace(near_cache *cache, near_bytes key, const struct near__mark *mark,
                               const struct near__stored *stored, int64_t deadline);

/* Leave the writers.  `changed`: the store was, or may have been, changed: what lies there instead of a mark of ours is removed, and those
 * who remain install nothing.  NEAR_OK, or why that could not be done. */
near_status near__mark_leave(near_cache *cache, near_bytes key, const struct near__mark *mark, bool changed,
                             int64_t deadline);

#endif
