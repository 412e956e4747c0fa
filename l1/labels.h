/*
 * Labels: the tags of an entry, and how L1 knows that one of them was invalidated (design: O(1), whatever number of entries has it).
 *
 * An L1 has a clock that each invalidation of a tag moves, and stripes that a tag's hash selects, each with the clock's value at
 * the last invalidation of one of its tags.  An entry carries the clock as it was before its value was asked for, and its tags'
 * stripes: it is gone as soon as one of them is ahead of it.  Two tags that share a stripe cost each other's entries a miss,
 * nothing else.  What entries and flights carry are the low 32 bits of the clock; before those could come round everything is flushed.
 *
 * A block of labels is made once, belongs to one entry and never changes.  The names, and the numbers that L2 keeps for them, are
 * for the client (client/tags.c): L1 only carries them.
 */
#ifndef NEAR_L1_LABELS_H
#define NEAR_L1_LABELS_H

#include "base/base.h"

#include <stdatomic.h>

#define NEAR__LABELS_MAX    16                  /* tags of one entry */
#define NEAR__LABEL_SIZE    255                 /* bytes of a tag */
#define NEAR__LABEL_STRIPES 4096                /* 32 KiB, from the first tag on */
#define NEAR__LABEL_LAP     (UINT32_C(1) << 31) /* nothing in L1 is further behind the clock than that */

struct near__labels {
    uint32_t clock; /* of the L1, before the value was asked for */
    uint16_t n;
    uint16_t stripes[NEAR__LABELS_MAX];
    uint64_t lineage, moment; /* L2's clock of tags at that time; lineage 0: not known */
    size_t   names_size;
    uint8_t  names[]; /* n of them, each a byte of size and its bytes */
};

struct near__label_clock {
    _Atomic uint64_t now;
    _Atomic uint64_t stripes[NEAR__LABEL_STRIPES];
};

static inline uint16_t
near__label_stripe(uint64_t hash)
{
    return (uint16_t)(hash % NEAR__LABEL_STRIPES);
}

static inline bool
near__label_after(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) > 0;
}

/* Whether one of the stripes has moved since `clock`.  Acquire: pairs with near__l1_invalidate_tag(). */
static inline bool
near__labels_moved(const struct near__label_clock *labels, uint32_t clock, const uint16_t *stripes,
                   unsigned n)
{
    uint64_t now, then;

    if (labels == NULL)
        return false;
    now  = atomic_load_explicit(&labels->now, memory_order_acquire);
    then = now - (uint32_t)((uint32_t)now - clock);
    for (unsigned i = 0; i < n; i++)
        if (atomic_load_explicit(&labels->stripes[stripes[i]], memory_order_acquire) > then)
            return true;
    return false;
}

#endif
