/*
 * What a client counts, told to `nearcache top` (stats.publish): now and then a text on the bus's server, on a channel of its own, the
 * bus's with ":stats" behind it, where nobody who keeps an L1 listens: what a receiver of invalidations does not know makes it flush.
 *
 * The text, at most NEAR__PUBLISH_MOST bytes, each line a word and what it is about.  A reader skips words and fields that it does not
 * know; another number in the first line is another format.
 *     nearcache-stats 1
 *     instance 0123456789abcdef HOST PID PROGRAM VERSION
 *     time NUMBER UPTIME_MS PERIOD_MS              NUMBER: of this text, from 1
 *     client FIELD=N...                            counters and levels of the client as a whole that are not 0, by their names
 *     quantiles NAME COUNT P50 P99 MAX             of the client's histograms, in ns
 *     cache NAME FIELD=N...                        the same for each cache, the first NEAR__PUBLISH_CACHES
 *     hot NAME SHARE HASH [KEY]                    keys of the cache, most wanted first, by stats.publish_keys; SHARE in millionths
 *     more N                                       so many caches are not told of
 *
 * Owns its timer and its job; the job holds the client.  Lock: a leaf, over whether the job waits or runs.
 */
#ifndef NEAR_CLIENT_PUBLISH_H
#define NEAR_CLIENT_PUBLISH_H

#include "base/base.h"

#define NEAR__PUBLISH_MOST   (32u << 10)
#define NEAR__PUBLISH_CACHES 32
#define NEAR__PUBLISH_SUFFIX ":stats" /* behind the name of the bus's channel */

/* Once the client has its bus.  NEAR_OK also where nothing is to be told. */
near_status near__publish_open(near_client *client);
/* After the scheduler's end. */
void near__publish_free(near_client *client);

#endif
