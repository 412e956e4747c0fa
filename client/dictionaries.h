/*
 * A cache's dictionaries: those that its readers have met, by id, and the one that it compresses with.
 *
 * They lie in L2, each under a key of its own, the id of the newest beside them (tier.h); an id is made of the content, so what lies
 * there is held against it (l2/dictionary.h).  A reader that meets an id it does not know asks L2 for it, once: others who want
 * it at that moment wait for the answer.  At most NEAR__DICTIONARIES are kept, the one not used for longest goes; that L2 has no
 * such dictionary, or a wrong one, is remembered for a moment.  What it compresses with is looked for in the background, when the
 * cache is opened and every l2.dictionary_refresh, and put back into L2 where that has lost it.
 *
 * The lock is a leaf: it covers the slots, their states and `current`.  Dictionaries themselves are counted and never change; the one
 * that is being fetched keeps its slot.  Nobody asks L2 or makes a dictionary under the lock.
 */
#ifndef NEAR_CLIENT_DICTIONARIES_H
#define NEAR_CLIENT_DICTIONARIES_H

#include "base/lock.h"
#include "l2/dictionary.h"
#include "scheduler.h"
#include "workers.h"

/* With a dictionary values from here on are compressed, where l2.compression_threshold is not set: smaller ones than the head of an
 * entry are not worth it. */
#define NEAR__DICTIONARY_THRESHOLD 64
#define NEAR__DICTIONARIES         16 /* each some hundred KiB: a cache in good order has one or two in use */

struct near__dictionary_slot {
    uint32_t                 id;         /* 0: free */
    bool                     fetching;   /* somebody asks L2 */
    struct near__dictionary *dictionary; /* NULL: not there (yet) */
    near_status              status;     /* why; NEAR_MISS: L2 has none, or a wrong one */
    int64_t                  until;      /* so long that is good */
    uint64_t                 used;       /* counts up */
};

struct near__dictionaries {
    struct near__lock            lock;
    pthread_cond_t               changed; /* a fetch has ended */
    struct near__dictionary_slot slots[NEAR__DICTIONARIES];
    uint64_t                     uses;
    struct near__dictionary     *current;       /* what values are compressed with; NULL: with none */
    uint64_t                     threshold;     /* values from this size on are, with one; fixed at open */
    uint32_t                     wanted;        /* l2.dictionary is this id; fixed, like the next */
    bool                         wants, newest; /* it has one; the newest */
    bool                         busy, closed;
    struct near__timer           timer;
    struct near__job             job;
};

void near__dictionaries_init(near_cache *cache);
void near__dictionaries_fini(near_cache *cache);
/* Once the cache has all its settings, and is on its client's list. */
void near__dictionaries_open(near_cache *cache);
/* No refresh begins any more. */
void near__dictionaries_close(near_cache *cache);

/* With a reference; NULL: this process has it not. */
struct near__dictionary *near__dictionaries_find(near_cache *cache, uint32_t id);
/* The one to compress a value of that size with, with a reference; NULL: none. */
struct near__dictionary *near__dictionaries_current(near_cache *cache, size_t raw);
/* Make sure it is here.  NEAR_OK; NEAR_MISS: L2 has no such dictionary; or why it could not be asked. */
near_status near__dictionaries_fetch(near_cache *cache, uint32_t id, int64_t deadline);

/* What lies in L2, for the command.  The newest's id, 0: none. */
near_status near__dictionaries_newest(near_cache *cache, uint32_t *id, int64_t deadline);
near_status near__dictionaries_name(near_cache *cache, uint32_t id, int64_t deadline);
/* NEAR_ERR_CONFLICT: another one lies there under its id. */
near_status near__dictionaries_store(near_cache *cache, near_bytes bytes, uint32_t id, int64_t deadline);

/* l2.dictionary as an id; 0: it is none (empty, or auto).  False: it makes no sense. */
bool near__dictionaries_parse(const char *text, uint32_t *id);

#endif
