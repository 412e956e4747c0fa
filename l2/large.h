/*
 * Which keys had large values lately, so that reading them again goes over the connection for bulk transfers: nobody knows a value's
 * size before it comes, and small ones behind it wait for as long as it takes.
 *
 * A table of hashes, one per place, the latest wins: who is forgotten, or takes another's place by its hash, goes the wrong way once, and
 * that is all.  Any thread, no lock, no order: hints.
 */
#ifndef NEAR_L2_LARGE_H
#define NEAR_L2_LARGE_H

#include "client/nearcache.h"

#include <stdatomic.h>
#include <stdbool.h>

/* What takes as long on a gigabit line as ten round trips in a data centre. */
#define NEAR__LARGE        ((size_t)256 * 1024)
#define NEAR__LARGE_PLACES 256

struct near__large {
    _Atomic unsigned n; /* places taken */
    _Atomic uint64_t place[NEAR__LARGE_PLACES];
};

/* `key` was found to have a value of `size` bytes. */
void near__large_note(struct near__large *large, near_bytes key, size_t size);
bool near__large_has(const struct near__large *large, near_bytes key);

#endif
