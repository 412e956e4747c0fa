/*
 * The dirty table of a cache with write.policy = back: every change that was accepted and that the store has not confirmed.
 *
 * A key has a node while anything of it is here; its writes hang on it in the order in which the store shall see them.  Readers of
 * this process take the newest of them before they look into L1: so neither eviction, TTL, gate, invalidation nor L2 can take it away.
 * All writes of the table are on one list besides, oldest first, for those who wait for "all from before".
 *
 * The lock (rank DIRTY) covers everything but the filter.  Numbers are drawn while it is held, so the order of numbers is the order of
 * the writes of a key; a write leaves the table only as itself, never because another one of its key was stored (race 39).
 *
 * Readers of other keys pay one load of the filter: how many nodes fall into a cell.  0 is the truth.
 */
#ifndef NEAR_CLIENT_DIRTY_H
#define NEAR_CLIENT_DIRTY_H

#include "base/lock.h"
#include "l1/entry.h"

#define NEAR__DIRTY_CELLS 4096 /* 16 KiB; with a thousand dirty keys three of four others are told apart */

/* Somebody who waits for one write; on his stack. */
struct near__dirty_waiter {
    bool        over;
    near_status status;
};

struct near__dirty_key;
struct near__dirty_write {
    struct near__dirty_write  *next;          /* of the key: the next newer one */
    struct near__dirty_write  *older, *newer; /* of the table */
    struct near__dirty_key    *key;
    struct near__entry        *entry; /* a reference; negative: an erase */
    uint64_t                   sequence;
    uint64_t                   since; /* the oldest number that it stands for, by coalescing */
    uint64_t                   stamp; /* of its entry in L2; 0: it has none */
    size_t                     cost;
    bool                       kept; /* L1 may have it */
    struct near__dirty_waiter *waiter;
};

enum near__dirty_place { NEAR__DIRTY_IDLE, NEAR__DIRTY_QUEUED, NEAR__DIRTY_FLYING };

struct near__dirty_key {
    struct near__dirty_key   *chain;
    struct near__dirty_key   *behind; /* in its queue */
    struct near__dirty_write *first, *last;
    uint64_t                  hash;
    int64_t                   due;
    uint64_t                  stored_seen; /* how many writes the store had taken when this one failed last */
    unsigned                  tries;       /* of its first write, that failed */
    unsigned                  strikes;     /* of them, those that are this write's own fault */
    unsigned                  writers; /* between their place in the table and the end of their cache step */
    enum near__dirty_place    place;
    bool   stored;  /* the only write is in the store: what remains is to settle the caches */
    bool   suspect; /* somebody else may have written the key meanwhile */
    bool   touched; /* something but a write that is waited for was here */
    size_t size;
    char   key[];
};

struct near__dirty {
    struct near__lock         lock;
    size_t                    buckets_n, keys_n; /* buckets: a power of two */
    struct near__dirty_key  **buckets;
    struct near__dirty_write *oldest, *newest;
    size_t                    writes, bytes;
    _Atomic uint32_t          filter[NEAR__DIRTY_CELLS];
};

bool near__dirty_init(struct near__dirty *dirty); /* false: out of memory */
void near__dirty_fini(struct near__dirty *dirty);

static inline near_bytes
near__dirty_key_of(const struct near__dirty_key *key)
{
    return (near_bytes){ key->key, key->size };
}

/* False: the key is not here.  Acquire, pairs with the release when a node leaves: who sees it gone sees L1 as it was left. */
static inline bool
near__dirty_may(const struct near__dirty *dirty, uint64_t hash)
{
    return atomic_load_explicit(&dirty->filter[(hash >> 20) % NEAR__DIRTY_CELLS], memory_order_acquire) != 0;
}

/* The newest write's entry, with a reference; NULL: none. */
struct near__entry *near__dirty_find(struct near__dirty *dirty, uint64_t hash, near_bytes key);

/* With the lock held: */
struct near__dirty_key *near__dirty_key_locked(struct near__dirty *dirty, uint64_t hash, near_bytes key);
/* A node that is not in the table yet.  NULL: out of memory. */
struct near__dirty_key *near__dirty_key_new(uint64_t hash, near_bytes key);
void                    near__dirty_link_locked(struct near__dirty *dirty, struct near__dirty_key *key);
/* Out of the table; it has no writes.  The caller frees it. */
void near__dirty_unlink_locked(struct near__dirty *dirty, struct near__dirty_key *key);
/* The newest of its key and of the table. */
void near__dirty_append_locked(struct near__dirty *dirty, struct near__dirty_key *key,
                               struct near__dirty_write *write);
/* In the place of `old`, its key's newest, which leaves and is the caller's. */
void near__dirty_replace_locked(struct near__dirty *dirty, struct near__dirty_write *old,
                                struct near__dirty_write *write);
/* Its key's oldest leaves and is the caller's. */
struct near__dirty_write *near__dirty_pop_locked(struct near__dirty *dirty, struct near__dirty_key *key);

#endif
