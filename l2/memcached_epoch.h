/*
 * What a memcached that was out of reach may be believed when it is back (race 33).
 *
 * A server that we lost sight of has kept its memory, but writes and removals may have gone past it meanwhile,
 * and one that was on its way when its connection broke may be executed late.  So everything in it carries
 * the number of an *epoch*, in memcached's flags, 32 random bits; the server itself holds the number that
 * counts, under a key of its own.  An entry of another epoch is not there: it is removed when it is met.
 *
 *     distrust   a removal was not made, or its outcome will never be known.  (A set that is not acknowledged
 *                is followed by a removal of its key, so removals are what counts.  What is left: a set
 *                that reaches the server later than that removal, held up by a proxy or by a thread of the
 *                server's that stood still, lies there until its TTL.)  The process that it happened to draws a new epoch and believes
 *                nothing from the server until it has stored it there; it is the first thing said to a server
 *                that is back.
 *     known      the epoch as it was last read; others read it along with their keys, as its last one, LOOK
 *                after they have done so before at the latest.  So they refuse old entries LOOK after the
 *                new epoch was stored.
 *     absent     a server without an epoch is new or has been restarted, or has evicted it, which a key that
 *                is read all the time is not: whoever notices makes one.
 *
 * Numbers are random, never counted: what is lost can never come again (races 26, 31).
 */
#ifndef NEAR_L2_MEMCACHED_EPOCH_H
#define NEAR_L2_MEMCACHED_EPOCH_H

#include "base/lock.h"

#include <stdatomic.h>

/* How old what is known may be.  Read along once in so many ms it costs nothing; an old entry can be believed
 * for so long by a process that the broken link was not in the way of. */
#define NEAR__MEMCACHED_LOOK (10 * NEAR_MS)

struct near__memcached_epoch {
    struct near__lock lock;    /* leaf; covers changes of all below, which are read without it */
    atomic_uint       known;   /* 0: not */
    uint32_t          last;    /* what was known last, also when it has been forgotten */
    atomic_uint       wanted;  /* not 0: to be stored before anything from the server is believed */
    bool              in_use;  /* somebody is storing, or has tried to store, `wanted` */
    _Atomic int64_t   looked;  /* when `known` was last read, or its reading was last begun */
    _Atomic uint64_t  changes; /* of `known` and `wanted` */
};

void near__memcached_epoch_init(struct near__memcached_epoch *epoch);
void near__memcached_epoch_fini(struct near__memcached_epoch *epoch);

/* A new connection was made: the server may be another than before, or empty. */
void near__memcached_epoch_forget(struct near__memcached_epoch *epoch);

/* A removal went past the server.  True: it had been trusted until now. */
bool near__memcached_distrust(struct near__memcached_epoch *epoch);
bool near__memcached_is_distrusted(const struct near__memcached_epoch *epoch);
/* 0, or the number to be stored. */
uint32_t near__memcached_epoch_wanted(struct near__memcached_epoch *epoch);
/* `wanted` has been stored, by a call that was sent after near__memcached_epoch_wanted() gave it. */
void near__memcached_epoch_renewed(struct near__memcached_epoch *epoch, uint32_t wanted, int64_t now);

/* The number that entries are judged by and written with, 0: not known.  *changes is for learn(). */
uint32_t near__memcached_epoch_known(const struct near__memcached_epoch *epoch, uint64_t *changes);
/* Whether this caller is to read it along. */
bool near__memcached_epoch_is_due(struct near__memcached_epoch *epoch, int64_t now);
/* It was read by a call begun at `changes`; what changed it since knows better.  True: it is another than was
 * known. */
bool     near__memcached_epoch_learn(struct near__memcached_epoch *epoch, uint32_t number, uint64_t changes,
                                     int64_t now);
uint32_t near__memcached_epoch_fresh(void);

/* The number in a stored epoch, 0: not one; and its stored form, of at most 10 bytes. */
uint32_t near__memcached_epoch_decode(near_bytes stored);
size_t   near__memcached_epoch_encode(uint32_t number, char out[10]);

#endif
