/*
 * A fill of L1 against invalidations.
 *
 * Stands for: l1/l1.c (fences, write brackets), client/read.c and client/plan.c (the fence is captured before L2 is asked),
 * client/write.c (L2 first, then the message; own echoes are skipped).
 *
 * One key, one instance with readers and a writer of its own, a writer of another instance, one eviction out of L1.  The server is one
 * byte: the number of its newest write, so a value is its number in the server's order.  Messages arrive in order, some time.
 *
 * Abstraction: no expiry, no generation, no second key of the stripe; a stripe's lock is `atomic`; an exchange with L2 is a read or a
 * write that happens at one moment between its beginning and its end.
 *
 * Promised: G1, a reader who starts after a local write was acknowledged gets nothing older; and when all is quiet L1 holds the newest
 * value or nothing.
 *
 * Product: (none) | TWO_STEPS (write, then message).   Broken: NAIVE, LATE_FENCE, PLACEHOLDER, VERSIONS, FENCE_IN_ENTRY, IGNORE_ABSENT,
 * MESSAGE_FIRST, NO_BRACKET.
 */
#define NONE    255
#define READERS 3

byte l2 = 0;
byte l1 = NONE;
byte fence = 0;     /* outside the entry */
byte writers = 0;   /* local writes under way */
bool placeholder = false;
chan bus = [2] of { bit };
byte acknowledged = 0; /* the newest local write that was acknowledged */
byte ended = 0;

inline invalidate() {
    atomic {
#ifdef IGNORE_ABSENT
        if
        :: l1 != NONE -> fence++
        :: else
        fi;
#else
        fence++;
#endif
        placeholder = false;
        l1 = NONE
    }
}

proctype reader() {
    byte least, mine, x;
    bool may;

    least = acknowledged;
    if
    :: atomic { l1 != NONE -> x = l1; assert(x >= least) }
    :: atomic { l1 == NONE -> mine = fence; placeholder = true };
        x = l2;
        assert(x >= least);
        atomic {
#ifdef LATE_FENCE
            mine = fence;
#endif
            may = (mine == fence && writers == 0);
#ifdef NAIVE
            may = true;
#endif
#ifdef PLACEHOLDER
            may = placeholder;
#endif
#ifdef VERSIONS
            may = (l1 == NONE || x > l1);
#endif
#ifdef FENCE_IN_ENTRY
            may = (l1 == NONE || mine == fence);
#endif
            if
            :: may -> l1 = x; placeholder = false
            :: else
            fi;
            x = 0; mine = 0; may = 0; least = 0; ended++
        };
        goto out
    fi;
    atomic { x = 0; mine = 0; least = 0; ended++ };
out: skip
}

proctype foreign_writer() {
#ifdef MESSAGE_FIRST
    bus!1;
    l2 = l2 + 1;
#else
#ifdef TWO_STEPS
    l2 = l2 + 1;
    bus!1;
#else
    atomic { l2 = l2 + 1; bus!1 };
#endif
#endif
    ended++
}

proctype local_writer() {
    byte mine, x;
    bool alone;

#ifndef NO_BRACKET
    atomic { fence++; l1 = NONE; placeholder = false; mine = fence; alone = (writers == 0); writers++ };
#endif
    atomic { l2 = l2 + 1; x = l2 };
    atomic {
#ifdef NO_BRACKET
        l1 = x;
#else
        alone = (alone && fence == mine);
        writers--;
        fence++;
        if
        :: alone -> l1 = x
        :: else -> l1 = NONE
        fi;
#endif
        if
        :: x > acknowledged -> acknowledged = x
        :: else
        fi;
        x = 0; mine = 0; alone = 0; ended++
    }
}

active proctype listener() {
end:
    do
    :: bus?_ -> invalidate()
    od
}

active proctype eviction() {
    if
    :: atomic { l1 = NONE; placeholder = false }
    :: skip
    fi
}

init {
    atomic {
        byte i = 0;
        do
        :: i < READERS -> run reader(); i++
        :: else -> break
        od;
        run foreign_writer();
        run local_writer();
        i = 0
    };
    (ended == READERS + 2 && empty(bus));
    (timeout);
    assert(l1 == NONE || l1 == l2)
}
