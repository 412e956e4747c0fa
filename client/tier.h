/*
 * The client's view of L2: keys and entries instead of wire keys and stored bytes.
 *
 * An ask is one key on its way through L2: read, lease, fill.  Nothing here touches L1; nothing holds a lock.
 */
#ifndef NEAR_CLIENT_TIER_H
#define NEAR_CLIENT_TIER_H

#include "client.h"

enum near__found {
    NEAR__UNASKED = 0,
    NEAR__FOUND,      /* `entry` is set (it may be a negative one) */
    NEAR__ABSENT,     /* the server's positive word */
    NEAR__LEASED,     /* a marker: somebody is loading it */
    NEAR__OUTDATED,   /* an entry that may not be served: of an older generation, or expired by its header */
    NEAR__UNREADABLE, /* bytes that are no entry of ours, or another key's */
    NEAR__UNREACHABLE /* L2 could not say; `status` */
};

struct near__ask {
    near_bytes          key;
    uint64_t            hash;
    uint64_t            fence; /* captured before L2 is asked */
    struct near__entry *entry; /* FOUND: a reference of the ask's owner.  fill: what to store */
    enum near__found    found;
    near_status         status; /* UNREACHABLE: why */
    uint64_t            stamp;  /* OUTDATED, UNREADABLE: of what lies there; 0: not to be had */
    uint64_t            lease;  /* our marker's stamp; 0: we have none */
    int64_t             ttl;    /* fill: ns, 0: never expires */
};

/* ---- wire keys and items */

/* Items and their keys for one call of the backend, in one block. */
struct near__wire {
    struct near_l2_item *items; /* all zero but the key */
    size_t               n;
    size_t               capacity;
    char                *keys, *keys_end;
};
/* Room for `n` items with keys of `key_bytes` in all (user keys, without prefixes).  NEAR_OK or NEAR_ERR_NOMEM. */
near_status near__wire_open(struct near__wire *wire, const near_cache *cache, size_t n, size_t key_bytes);
void        near__wire_close(struct near__wire *wire);
/* Free the values that the caller had malloc'ed for the items. */
void                 near__wire_free_values(struct near__wire *wire);
struct near_l2_item *near__wire_add(struct near__wire *wire, const near_cache *cache, near_bytes key);
/* The item of the cache's generation. */
struct near_l2_item *near__wire_add_generation(struct near__wire *wire, const near_cache *cache);

/* A fresh stamp: random, never 0. */
uint64_t near__stamp(void);

/* ---- asks */

/* Read all.  *generation: the cache's, 0 when there is none yet or L2 could not say. */
void near__tier_read(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline,
                     uint64_t *generation);
/* Try to take the lease of each that is ABSENT, OUTDATED or UNREADABLE: sets `lease` of those won. */
void near__tier_lease(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline);
/* Store `entry` of each that has a lease, if our marker is still there.  Returns how many were stored. */
size_t near__tier_fill(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation,
                       int64_t deadline);
/* Give the lease of each back without a value. */
void near__tier_unlease(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline);

/* The stored form of an entry, malloc'ed; NULL: out of memory. */
uint8_t *near__tier_encode(const near_cache *cache, const struct near__entry *entry, unsigned flags,
                           uint64_t stamp, uint64_t generation, int64_t ttl, size_t *size);

/* When an entry that is good for `ttl` ns (0: for ever) leaves L1. */
static inline int64_t
near__expiry(const near_cache *cache, int64_t now, int64_t ttl)
{
    return near__time_after(now, ttl != 0 && ttl < cache->max_ttl ? ttl : cache->max_ttl);
}

/* Milliseconds for the wire: rounded up, 0 only for "never". */
static inline int64_t
near__ttl_ms(int64_t ttl)
{
    return ttl / NEAR_MS + (ttl % NEAR_MS != 0);
}

#endif
