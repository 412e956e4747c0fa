/* See backoff.h.  No state. */
#include "base/backoff.h"

#include "base/hash.h"

int64_t
near__jittered(int64_t delay)
{
    uint32_t dice = 0;

    near__random(&dice, sizeof(dice));
    return delay / 2 + (int64_t)(((uint64_t)delay / 2 * dice) >> 32);
}

int64_t
near__backoff(unsigned failures, int64_t first, int64_t most)
{
    int64_t delay = first;

    while (--failures > 0 && delay < most)
        delay *= 2;
    return near__jittered(delay < most ? delay : most);
}
