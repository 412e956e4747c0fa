/*
 * How long a message of ours takes until we hear it ourselves: sent and heard on the same clock, so no two clocks have to agree.
 * Others hear it at about the same time, on whatever road they are.
 *
 * The echo may be heard before its sender knows the number that the message got; so both sides leave word, and who comes second has
 * the answer.  Of more than a few dozen messages on their way at once some are not measured.  Whose lock covers it is the owner's affair.
 */
#ifndef NEAR_COHERENCE_LAG_H
#define NEAR_COHERENCE_LAG_H

#include "base/base.h"

#define NEAR__LAG_SLOTS 64
struct near__lag {
    struct {
        uint64_t stream, sequence; /* stream 0: free */
        int64_t  at;
        bool     heard; /* `at` is when it was heard, else when it was sent */
    } slots[NEAR__LAG_SLOTS];
};

/* The message was sent at `at`, or heard; the lag in ns, or -1 when the other half is not known yet. */
int64_t near__lag_note(struct near__lag *lag, uint64_t stream, uint64_t sequence, int64_t at, bool heard);

#endif
