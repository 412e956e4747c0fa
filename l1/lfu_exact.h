/*
 * LFU by its definition, for exact runs of the simulator: counts of resident entries only, a new one has 1, the lowest leaves, among equals
 * the least recently used; no ageing.  (The policy `lfu` of L1 ages, and its counts end at 15: l1/lfu.c.)
 *
 * Keys are numbers from 1 on, dense.  A list for each count, the newest use at its head: every access takes the same time.
 */
#ifndef NEAR_L1_LFU_EXACT_H
#define NEAR_L1_LFU_EXACT_H

#include "base/base.h"

struct near__lfu_exact;

near_status near__lfu_exact_open(struct near__lfu_exact **lfu, size_t capacity);
void        near__lfu_exact_close(struct near__lfu_exact **lfu);
/* Whether it was there; without memory, as if it were not and is not then. */
bool   near__lfu_exact_access(struct near__lfu_exact *lfu, uint32_t key);
bool   near__lfu_exact_has(const struct near__lfu_exact *lfu, uint32_t key);
bool   near__lfu_exact_remove(struct near__lfu_exact *lfu, uint32_t key);
void   near__lfu_exact_clear(struct near__lfu_exact *lfu);
void   near__lfu_exact_resize(struct near__lfu_exact *lfu, size_t capacity);
size_t near__lfu_exact_entries(const struct near__lfu_exact *lfu);

#endif
