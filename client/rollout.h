/*
 * Taking a cache into use step by step: which keys it serves, and a dry run that serves none and compares.
 *
 * A key takes part if the cache's name is allowed (rollout.caches), a pattern of rollout.allow matches it, and its hash is among the first
 * rollout.percent of a hundred: by XXH64, so in every instance alike, and a key that takes part at 10 % does at 20 %.  Reads of
 * the others go past both tiers and leave nothing there; writes and invalidations are done for all keys at all times, so that what lies in
 * the tiers is right whenever a key takes part again.
 *
 * NULL where no rollout.* option is set: such a cache asks nothing of this.  All is fixed at open but `reach` and `dry`, relaxed
 * atomics that near_cache_set_rollout() moves: a read goes by what it finds.
 */
#ifndef NEAR_CLIENT_ROLLOUT_H
#define NEAR_CLIENT_ROLLOUT_H

#include "base/base.h"

#include <stdatomic.h>

struct near__settings;

#define NEAR__ROLLOUT_WHOLE 100000 /* 100 %, in thousandths */

struct near__rollout {
    _Atomic uint32_t reach; /* 0 .. NEAR__ROLLOUT_WHOLE */
    _Atomic bool     dry;
    bool             allowed; /* the cache's name */
    const char      *keys;    /* rollout.allow; "": all */
    /* set at open where cells are entries of their own (fields.h): their keys stand for an entity and a field; else NULL */
    const near_cache *cells;
};

/* Of a cache with that name; *rollout NULL: it needs none. */
near_status near__rollout_open(struct near__rollout **rollout, const struct near__settings *settings,
                               const char *name);

/* Whether one of the patterns, separated by commas, matches; * is any run of bytes, empty included. */
bool near__pattern_matches(const char *patterns, near_bytes text);
/* Whether the key takes part. */
bool near__rollout_takes(const struct near__rollout *rollout, near_bytes key);
/* The same of a cell: by the hash of its entity, so that all of its row does; a pattern may match the entity or the field's name. */
bool near__rollout_takes_cell(const struct near__rollout *rollout, near_bytes entity, near_bytes name);

static inline bool
near__rollout_is_dry(const struct near__rollout *rollout)
{
    return atomic_load_explicit(&rollout->dry, memory_order_relaxed);
}

/* Whether near_get() may not answer with what the tiers have. */
static inline bool
near__rollout_hides(const struct near__rollout *rollout, near_bytes key)
{
    return near__rollout_is_dry(rollout) || !near__rollout_takes(rollout, key);
}

/* A dry run has looked a value up (NULL, NEAR_NOT_FOUND: that there is none) and loaded another: count what they say of each other. */
void near__rollout_compare(near_cache *cache, near_status cached, const near_value *value, near_status loaded,
                           const near_value *fresh);

#endif
