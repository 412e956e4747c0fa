/* What get and fetch share: the pass over L1 and the way from an entry to the caller's hands. */
#ifndef NEAR_CLIENT_READ_H
#define NEAR_CLIENT_READ_H

#include "tier.h"

/* One moment's view of a cache, for a whole batch: one look at the gate. */
struct near__view {
    int64_t         now; /* good enough for L1; what goes further takes near__view_exact() first */
    enum near__gate gate;
    unsigned        flags; /* NEAR_SKIP_L1 ... */
};
struct near__view near__view_of(const near_cache *cache, unsigned flags);
void              near__view_exact(const near_cache *cache, struct near__view *view);

/* What L1 has of a key, fresh or not: the one place that reads the fields of an L1 hit. */
struct near__hit {
    near_value *value; /* a reference; NULL: L1 has nothing, or that there is no such thing */
    int64_t     fresh_until, expires;
    uint32_t    cost_us;
    bool        negative;
};
struct near__hit near__l1_look(near_cache *cache, uint64_t hash, near_bytes key, int64_t now);

/* Ask L1, if the gate and the flags let it answer.  True: *status and *value (NULL for NEAR_NOT_FOUND) are the answer.
 * *lead, unless NULL, is not 0 when the value is to be refreshed in the background, that long before its end. */
bool near__l1_answers(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key,
                      near_value **value, near_status *status, int64_t *lead);

/* The same for a group of keys whose statuses are prepared (an error stays, NEAR_MISS is what L1 could not answer); gives their
 * hashes. */
#define NEAR__GROUP NEAR__L1_GROUP
void near__l1_answer_group(near_cache *cache, const struct near__view *view, const near_bytes *keys, size_t n,
                           uint64_t *hashes, near_value **values, near_status *statuses);

/* A held value, if all is plain: an open cache, an open gate, a fresh hit.  NULL says nothing. */
near_value *near__get_plain(near_cache *cache, near_bytes key);
/* What the shortest path of near_get() needs, once the cache has all it needs itself. */
void near__read_open(near_cache *cache);

/* L1 has counted a hit that the caller does not answer with. */
void near__hit_back(near_cache *cache);

/* near_get_many() as near_get_with() reads. */
near_status near__get_many(near_cache *cache, const near_bytes *keys, size_t n, unsigned flags,
                           int64_t timeout_ms, near_value **values, near_status *statuses);

/* Loads, under flights, of keys that L1 and whatever lies below it are known not to have; what comes is kept in L1 alone. */
struct near__absent {
    near_bytes key;
    uint64_t   hash;
    int64_t    ttl; /* ns, unless the loader says otherwise */
};
void near__fetch_absent(near_cache *cache, const struct near__view *view, const struct near__absent *absent,
                        size_t n, int64_t deadline, near_value **values, near_status *statuses);

/* Turn an entry into an answer: takes the reference over. */
near_status near__hand_out(struct near__entry *entry, near_source source, near_value **value);

/* The same value, marked as stale for its holder.  NULL stays NULL. */
near_value *near__value_as_stale(near_value *value);

/* The same answer to every key; returns it. */
near_status near__refuse_all(near_status *statuses, size_t n, near_status status);

/* The caller's options over the defaults in `mine`, which has `size` bytes: a caller built against an older header has a shorter
 * struct, whose size it says first.  NULL: the defaults. */
void near__options_take(void *mine, size_t size, const void *options);

/* The first error among statuses, else NEAR_OK. */
near_status near__first_error(const near_status *statuses, size_t n);

/* Check a batch's arrays and prepare the outputs: NULL and NEAR_MISS everywhere. */
near_status near__batch_check(const near_cache *cache, const near_bytes *keys, size_t n, near_value **values,
                              near_status *statuses);

#endif
