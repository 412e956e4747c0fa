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

/* Ask L1, if the gate and the flags let it answer.  True: *status and *value (NULL for NEAR_NOT_FOUND) are the answer. */
bool near__l1_answers(near_cache *cache, const struct near__view *view, uint64_t hash, near_bytes key,
                      near_value **value, near_status *status);

/* The same for a group of keys whose statuses are prepared (an error stays, NEAR_MISS is what L1 could not answer); gives their
 * hashes. */
#define NEAR__GROUP 32
void near__l1_answer_group(near_cache *cache, const struct near__view *view, const near_bytes *keys, size_t n,
                           uint64_t *hashes, near_value **values, near_status *statuses);

/* Turn an entry into an answer: takes the reference over. */
near_status near__hand_out(struct near__entry *entry, near_source source, near_value **value);

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
