/*
 * Tags: labels on entries, of which one call invalidates all that carry it, in O(1).
 *
 * L2 keeps, for each cache that uses tags, a clock (a moment that counts up, and a random lineage that says which count it is) and
 * for each tag the moment of its last invalidation.  near_invalidate_tag() writes the tag's moment and moves the clock.  An entry
 * carries the clock as it was before its value was asked for, and is good while no tag of its is at a later moment of the same
 * lineage.  So:
 *
 *  - a load that was under way when its tag was invalidated makes an entry that is outdated at birth, although nobody knew its tags
 *    while it ran;
 *  - what L2 forgets costs misses, never a stale value: a lost tag comes back at the clock's present moment, a lost clock as a new
 *    lineage, which no entry of the old one matches;
 *  - the clock alone says whether anything that was learned of tags is still true: where no bus brings invalidations, it is read
 *    along with an exchange every 10 ms, and the tags again only when it has moved.
 *
 * L1 has its own, smaller account of the same (l1/labels.h).  tags->lock is a leaf; nothing is called under it.
 */
#ifndef NEAR_CLIENT_TAGS_H
#define NEAR_CLIENT_TAGS_H

#include "tier.h"

void near__tags_init(struct near__tags *tags);
void near__tags_fini(struct near__tags *tags);

/* Add a tag to labels (NULL at *labels: the first).  NEAR_ERR_INVALID (empty), NEAR_ERR_TOO_LARGE (over NEAR__LABEL_SIZE bytes, or
 * more than NEAR__LABELS_MAX of them), NEAR_ERR_UNSUPPORTED (l2.envelope = none: nowhere to keep them), NEAR_ERR_NOMEM; nothing is changed then.  Twice the same is once. */
near_status near__tags_add(near_cache *cache, struct near__labels **labels, near_bytes tag);
/* The same of many names as a near__labels has them. */
near_status near__tags_add_names(near_cache *cache, struct near__labels **labels, near_bytes names);
/* A copy, or NULL of NULL.  False: no memory. */
bool near__labels_copy(struct near__labels **copy, const struct near__labels *labels);
/* The labels of an L2 entry.  NULL: no memory. */
struct near__labels *near__tags_of(near_cache *cache, unsigned n, near_bytes names);

/* True: *clock may be relied on now.  False: it has to be read; *epoch is what near__tags_learn() wants afterwards. */
bool near__tags_known(near_cache *cache, int64_t now, struct near__tag_clock *clock, uint64_t *epoch);
/* Whether the next exchange is to bring the clock along, so that a load after it can have tags.  Where messages keep it true this costs
 * nearly nothing; without them only caches that have met a tag pay for it. */
bool near__tags_wanted(near_cache *cache, int64_t now, struct near__tag_clock *clock, uint64_t *epoch);
/* The clock as it was read, unless a doubt came after `epoch`. */
void near__tags_learn(near_cache *cache, struct near__tag_clock clock, uint64_t epoch);
/* Messages may have been missed: everything is to be read again. */
void near__tags_doubt(near_cache *cache);
/* Another instance has invalidated a tag.  Of the clock that is hearsay: it is read again.  What carried a moment that L2 has never reached
 * would outlive invalidations. */
void near__tags_told(near_cache *cache, near_bytes tag, struct near__tag_clock moment);

/* Invalidate a tag in L2, tell the others, and drop what L1 has of it.  NEAR_OK: it is confirmed. */
near_status near__tags_settle(near_cache *cache, near_bytes tag, int64_t deadline);

/* A clock or moment that lay under the key `place`; lineage 0: not one.  *old: its stamp, if it is sealed by a key that is only
 * believed, else 0. */
struct near__tag_clock near__tags_decode(const near_cache *cache, near_bytes place, near_bytes stored,
                                         uint64_t *old);

/* The clock for a write: known, read, or made. */
near_status near__tags_now(near_cache *cache, struct near__tag_clock *clock, int64_t deadline);

/* Sets `labelled` of each ask whose entry has labels (and `status` when that is not known): asks L2, in exchanges of their own, for
 * what is not known of their tags, and makes what is not there.  `clock` as it is known or was read along before, or zero. */
void near__tags_judge(near_cache *cache, struct near__ask **asks, size_t n, struct near__tag_clock clock,
                      int64_t deadline);

#endif
