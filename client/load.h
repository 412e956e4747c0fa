/*
 * Loads: keys given to the application's loader, and what happens to its answers.
 *
 * A batch belongs to the call that leads it and to each of its unanswered loads.  While the leader waits it finishes what is
 * answered (fills L2 under the lease, L1 under the fence, lands the flight), in batches.  Once it has left, because its caller's
 * deadline passed, whoever answers a load finishes it.
 */
#ifndef NEAR_CLIENT_LOAD_H
#define NEAR_CLIENT_LOAD_H

#include "flight.h"
#include "tier.h"

/* One key that has to be loaded: its flight (a reference is taken) and its ask, with fence and perhaps a lease. */
struct near__load_order {
    struct near__flight *flight;
    struct near__ask     ask;
};

struct near__load_terms {
    uint64_t generation; /* to store entries with; 0: do not store */
    int64_t  ttl;        /* ns, unless the loader says otherwise */
    bool     fill_l1;
    int64_t  deadline; /* how long the leader waits for answers */
};

/* Call the loader for all and see to their landing.  Every flight lands, in this call or (after the deadline) later. */
void near__load_run(near_cache *cache, const struct near__load_order *orders, size_t n,
                    const struct near__load_terms *terms);

#endif
