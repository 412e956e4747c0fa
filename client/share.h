/*
 * Reads of L2 shared by those who want the same key at the same moment: one asks, the others get a reference to its answer.
 *
 * This is for reads without a loader (near_get, near_get_many); near_fetch has flights.  A read lives on the stack of who leads it, in
 * a cell of its cache's chosen by the key's hash; if the cell is taken by another key the read just goes unshared.
 *
 * Who may join.  A reader may get what was read after its own call began, or what L1 might have answered instead:
 *   - its fence must be the one that the leader captured before it asked: so no write or invalidation of the key that this process
 *     knows of has come in between (G1, and G2+, since near_fence returns when the messages have moved the fences); and the
 *     clock of tags alike;
 *   - what this process does not know of must be no more than an L1 hit may overlook: so the gate is open; or nobody else writes
 *     there at all; or there is no bus, and L1 would keep the value for longer than the read has taken so far;
 *   - and the caller has not asked for L2's word (NEAR_SKIP_L1).
 *
 * A cell's word is NULL, or the leader's record, with the low bit set once somebody has joined.  Coming and going alone are one
 * compare-and-swap each.  The cell's lock covers the list of those who wait; a record is looked into only under it and after the bit
 * was set, for then its leader cannot go without the lock.  Nothing is taken under it, nobody is called.
 *
 * Who waits sleeps on a futex of the cell's, its epoch, so that all of them are woken by one call and none of them needs the lock for
 * going: each looks at its own record, which its leader leaves alone once it is answered.
 */
#ifndef NEAR_CLIENT_SHARE_H
#define NEAR_CLIENT_SHARE_H

#include "client.h"

struct near__ask;

struct near__shared {
    const struct near__ask *ask;
    int64_t                 began, deadline;
    bool                    leading; /* in its cell */
    struct near__shared    *joined;  /* leading: who waits.  Cell's lock */

    /* of one that has joined; its leader's to write, under the cell's lock, until it is answered */
    struct near__shared *leader, *next;
    int64_t              leader_deadline;
    struct near__entry  *entry;
    near_status          status;
    uint32_t             epoch; /* of the cell, before it could be answered */
    _Atomic bool         answered;
};

void near__share_init(near_cache *cache);
void near__share_fini(near_cache *cache);

/* Lead, or join if one may.  True: joined, and near__share_wait() gives the answer; it must be called, but not before all that this
 * call leads has ended.  False: ask L2, then near__share_end().  The ask stays where it is, with its fence captured. */
bool near__share_begin(near_cache *cache, struct near__shared *shared, const struct near__ask *ask,
                       int64_t now, int64_t deadline);
/* The ask is answered: give it to those who joined, too, and leave the cell. */
void near__share_end(near_cache *cache, struct near__shared *shared);
/* True: the ask is answered.  False: it has to be asked after all, for the other's deadline came before ours. */
bool near__share_wait(near_cache *cache, struct near__shared *shared, struct near__ask *ask);

#endif
