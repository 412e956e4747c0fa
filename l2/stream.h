/*
 * Which streams of messages are this process's own.
 *
 * A stream is one connection's life and has a number from the system's randomness; a message is our own echo when its sender is us and
 * its stream is ours.  The sender's name alone is not enough: a machine's snapshot that is started twice gives two processes the
 * same name, and each would take the other's invalidations for its own.  Their streams differ: connections do not survive that.
 *
 * A fixed table of atomics for the process, claimed anew with each message that is stamped.  What it has forgotten (it was full, or
 * was emptied) counts as somebody else's: its echo costs one invalidation too many.
 */
#ifndef NEAR_L2_STREAM_H
#define NEAR_L2_STREAM_H

#include <stdbool.h>
#include <stdint.h>

/* Before the message leaves. */
void near__stream_claim(uint64_t stream);
bool near__stream_is_ours(uint64_t stream);
void near__stream_disclaim(uint64_t stream); /* it has ended */
/* Whatever was claimed may be somebody else's by now: a subscription begins, as it does in a copy that wakes up. */
void near__stream_disclaim_all(void);

#endif
