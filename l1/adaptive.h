/* What tests look at inside a pool of adaptive (l1/adaptive.c). */
#ifndef NEAR_L1_ADAPTIVE_H
#define NEAR_L1_ADAPTIVE_H

#include "base/base.h"

unsigned near__adaptive_leader(const void *pool);   /* the rule in force, by its number */
size_t   near__adaptive_made_for(const void *pool); /* how many entries the shadows stand for */

#endif
