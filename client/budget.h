/*
 * The origin's budget: how many keys of a cache may be loading at a time, and how many may be started per second, in this process.
 *
 * Who wants to load takes places, as many as there are and no more than a fair share while others wait, and gives each back when its
 * load is answered.  Places are handed out in the order of asking, so a large batch takes turns with small ones.  A loader that
 * fetches holds places already: what it loads on its own thread is not counted again, or it could wait for itself.
 */
#ifndef NEAR_CLIENT_BUDGET_H
#define NEAR_CLIENT_BUDGET_H

#include "client.h"

void near__budget_init(struct near__budget *budget, const struct near__settings *settings);
void near__budget_fini(struct near__budget *budget);

static inline bool
near__budget_is_bound(const struct near__budget *budget)
{
    return budget->most != 0 || budget->interval != 0;
}

/* Up to `want` places; waits for the first until `deadline`.  0: there was none. */
size_t near__budget_take(struct near__budget *budget, size_t want, int64_t deadline);
void   near__budget_give(struct near__budget *budget, size_t n);
/* Much has been forgotten at once: begin again slowly (load.slow_start). */
void near__budget_slow_start(struct near__budget *budget);

#endif
