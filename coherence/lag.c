/* See lag.h. */
#include "coherence/lag.h"

int64_t
near__lag_note(struct near__lag *lag, uint64_t stream, uint64_t sequence, int64_t at, bool heard)
{
    size_t  slot = (stream ^ sequence) % NEAR__LAG_SLOTS;
    int64_t other;

    if (lag->slots[slot].stream == stream && lag->slots[slot].sequence == sequence &&
        lag->slots[slot].heard != heard) {
        other                   = lag->slots[slot].at;
        lag->slots[slot].stream = 0;
        if (heard)
            return at > other ? at - other : 0;
        return other > at ? other - at : 0;
    }
    lag->slots[slot].stream   = stream;
    lag->slots[slot].sequence = sequence;
    lag->slots[slot].at       = at;
    lag->slots[slot].heard    = heard;
    return -1;
}
