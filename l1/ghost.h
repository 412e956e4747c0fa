/*
 * Ghosts: which keys left not long ago.  16-bit fingerprints in lines of 64 bytes; a key's line is chosen by its hash, and a line
 * keeps its 32 newest.  Forgets as many lives later as it has slots, give or take what chance puts into one line; takes another key
 * for one that it knows once in 2048 times.
 *
 * One order's (shard's lock).
 */
#ifndef NEAR_L1_GHOST_H
#define NEAR_L1_GHOST_H

#include "base/base.h"

#define NEAR__GHOST_LANES 32

struct near__ghost {
    uint16_t (*lines)[NEAR__GHOST_LANES]; /* 0: empty */
    uint32_t                 count;       /* lines; 0: no memory, remembers nothing */
    uint32_t                 lanes; /* in use, of each line: less than 32 only if the ghost is that small */
    struct near__ghost_list *list;  /* the exact one instead */
};

/* For `keys` keys; forgets everything.  Exact: a list of whole elements, 16 bytes a key, for the simulator. */
void near__ghost_size(struct near__ghost *ghost, size_t keys, bool exact);
void near__ghost_fini(struct near__ghost *ghost);
void near__ghost_clear(struct near__ghost *ghost);
void near__ghost_add(struct near__ghost *ghost, uint32_t element);
/* Whether the key is known; it is then forgotten. */
bool   near__ghost_take(struct near__ghost *ghost, uint32_t element);
size_t near__ghost_bytes(const struct near__ghost *ghost);

#endif
