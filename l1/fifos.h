/*
 * The two queues of S3-FIFO (Yang et al., SOSP 2023) under a rule that may change while they are in use: s3fifo works by one fixed
 * rule, adaptive and its shadows by several.
 *
 * A new key goes to the small queue, or to main if the ghost knows it.  At the front of the small queue an entry that was used
 * `promote` times or more moves to main, another leaves and its key goes to the ghost.  At the front of main an entry that was used
 * goes back to the end with its counter (at most 3) less by one, another leaves.  The small queue loses while main keeps within
 * its share.  With a share of 0 there is no small queue and a used entry's counter goes back to 0: CLOCK.
 *
 * The ghost is one of fingerprints (l1/ghost.h), for nine tenths of the entries, so its order is first in, first out in each line
 * only.  In exact tables it is a list.
 *
 * Marks: bits 0-1 the counter, bits 2-3 for a tick of the owner's, the high nibble the ring's.  Shard's lock.
 */
#ifndef NEAR_L1_FIFOS_H
#define NEAR_L1_FIFOS_H

#include "l1/ghost.h"
#include "l1/ring.h"

struct near__fifos_rule {
    uint8_t share;   /* of the small queue, % of the entries; 0: CLOCK */
    uint8_t promote; /* uses */
};

struct near__fifos {
    struct near__fifos_rule rule; /* the owner may write it between calls */
    struct near__ring_store store;
    struct near__ring       small, main;
    struct near__ghost      ghost;
    size_t                  ghost_for; /* entries that the ghost was made for */
    uint32_t                any;       /* hand of near__table_any() */
};

/* Sets the table's count mask, and its tick to 0. */
void    near__fifos_init(struct near__fifos *fifos, struct near__table *table, struct near__fifos_rule rule);
void    near__fifos_fini(struct near__fifos *fifos);
void    near__fifos_clear(struct near__fifos *fifos);
uint8_t near__fifos_enter(struct near__fifos *fifos, const struct near__table *table, uint32_t element);
/* For an order's warmth() and revive(): the queue it was in, and its counter. */
uint8_t near__fifos_warmth(uint8_t mark);
uint8_t near__fifos_revive(struct near__fifos *fifos, const struct near__table *table, uint32_t element,
                           uint8_t warmth);
bool near__fifos_victim(struct near__fifos *fifos, const struct near__table *table, struct near__place *place,
                        uint32_t *element);
size_t near__fifos_bytes(const struct near__fifos *fifos); /* without the struct itself */

#endif
