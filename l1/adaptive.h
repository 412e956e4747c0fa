/* What tests look at inside a pool of adaptive (l1/adaptive.c). */
#ifndef NEAR_L1_ADAPTIVE_H
#define NEAR_L1_ADAPTIVE_H

#include "base/base.h"

unsigned near__adaptive_leader(const void *pool);   /* the rule in force, by its number */
size_t   near__adaptive_made_for(const void *pool); /* how many entries the shadows stand for */
size_t   near__adaptive_seen(
      const void *pool); /* accesses that the shadows have followed since rules were compared */

/* The pool's lock as a thread has it that was stopped there.  False: it is taken. */
bool near__adaptive_hold(void *pool);
void near__adaptive_let_go(void *pool);

#endif
