/* How long to leave alone what has failed. */
#ifndef NEAR_BASE_BACKOFF_H
#define NEAR_BASE_BACKOFF_H

#include "base/base.h"

/* Half of the delay is fixed, half is random: clients that lost a server together do not come back together.  Without randomness the
 * shorter half. */
int64_t near__jittered(int64_t delay);

/* `first` after one failure, twice as long after each further one up to `most`, jittered. */
int64_t near__backoff(unsigned failures, int64_t first, int64_t most);

#endif
