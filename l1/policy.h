/* The eviction policies, one file each.  A new one is a file, a line here and a row in policy.c. */
#ifndef NEAR_L1_POLICY_H
#define NEAR_L1_POLICY_H

#include "l1/l1.h"

extern const struct near__l1_policy near__l1_lru;

#endif
