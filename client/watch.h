/*
 * Watching for other instances' fills: keys whose lease somebody else has.
 *
 * A leg that lost its lease is parked here; its callers wait at the flight.  It goes on, in the loader pool, when the bus says
 * "filled", or when it is time to look again: that poll is the fallback for lost messages and for life without a bus, and what
 * notices that a dead holder's lease has ended.  All legs whose time has come are looked at in one exchange.
 *
 * watch->lock is a leaf and covers the table.
 */
#ifndef NEAR_CLIENT_WATCH_H
#define NEAR_CLIENT_WATCH_H

#include "plan.h"

void near__watch_init(near_cache *cache);
void near__watch_fini(near_cache *cache);
/* Take leg and flight over until the holder has filled or its lease has ended.  False: not possible, and nothing was taken. */
bool near__watch_park(near_cache *cache, const struct near__leg *leg);
/* The key was filled by somebody. */
void near__watch_filled(near_cache *cache, near_bytes key, uint64_t hash);
/* No more; what is parked is landed with NEAR_ERR_CLOSED. */
void near__watch_close(near_cache *cache);

#endif
