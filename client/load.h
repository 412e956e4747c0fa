/*
 * Loads: keys given to the application's loader, and what happens to its answers.
 *
 * A batch belongs to the call that leads it and to each of its unanswered loads.  While the leader waits it finishes what is
 * answered (fills L2 under the lease, L1 under the fence, lands the flight), in batches.  Once it has left, because its caller's
 * deadline passed, whoever answers a load finishes it.
 */
#ifndef NEAR_CLIENT_LOAD_H
#define NEAR_CLIENT_LOAD_H

#include "plan.h"

struct near__load_terms {
    uint64_t generation; /* to store entries with; 0: do not store */
    int64_t  wait; /* how long the leader waits for answers: 0 in the pool, NEAR_NEVER on a caller's thread */
    bool     counted; /* each takes a place in the load budget, given back when it has been answered */
    bool     hedge;   /* L2 is still being asked: who claims the flight first stores and lands */
};

/* Call the loader for all and see to their landing.  Every flight lands, in this call or later.  Takes its own references of the
 * flights; with load.gather it may wait for other calls' legs, or leave its legs to another call. */
void near__load_run(near_cache *cache, struct near__leg **legs, size_t n,
                    const struct near__load_terms *terms);

/* Whether this thread is inside a loader. */
bool near__load_nested(void);

void near__gather_init(struct near__gather *gather);
void near__gather_fini(struct near__gather *gather);

#endif
