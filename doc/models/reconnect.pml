/*
 * The bus's connection is lost and comes back while others write.
 *
 * Stands for: coherence/coherence.c (subscribed -> flush -> heard -> gate) and the epoch that near__l1_flush() moves.
 *
 * One key, one instance with readers, another instance that writes three times; the connection is lost once, with the messages that
 * were on their way, and what is published while it is down is lost too.  The loss is noticed some time later.
 *
 * Abstraction: time.  The serve window is "the gate is closed some time after the loss"; what is served until then is bounded by the
 * window and is no subject here.  A heartbeat is one question and answer.
 *
 * Promised: once the gate is open again no hit is older than the newest write before the subscription was acknowledged; and when
 * all is quiet L1 holds the newest value or nothing.
 *
 * Product: (none).   Broken: NO_FLUSH, FLUSH_AT_LOSS, FLUSH_AT_LOSS with NO_FILL_WHILE_DOWN, FLUSH_BEFORE_ACK, NO_EPOCH.
 */
#define NONE    255
#ifndef READERS
#define READERS 3
#endif
#define WRITES  3

byte l2 = 0;
byte l1 = NONE;
byte fence = 0;
chan wire = [WRITES] of { bit };
bool subscribed = true; /* by the server's account */
bool gate = true;
byte floor = 0; /* what hits through the gate must not fall short of */
byte ended = 0;

inline flush() {
    atomic {
#ifndef NO_EPOCH
        fence++;
#endif
        l1 = NONE
    }
}

proctype reader() {
    byte mine, x;

    if
    :: atomic { gate && l1 != NONE -> assert(l1 >= floor) }
    :: atomic { !gate || l1 == NONE -> mine = fence };
        x = l2;
        atomic {
            if
#ifdef NO_FILL_WHILE_DOWN
            :: mine == fence && gate -> l1 = x
#else
            :: mine == fence -> l1 = x
#endif
            :: else
            fi
        }
    fi;
    atomic { mine = 0; x = 0; ended++ }
}

proctype writer() {
    byte i = 0;

    do
    :: i < WRITES ->
        atomic {
            l2 = l2 + 1;
            i++;
            if
            :: subscribed -> wire!1
            :: else
            fi
        }
    :: else -> break
    od;
    atomic { i = 0; ended++ }
}

proctype link() {
    byte newest;
    bool broken = false;

    do
    :: atomic { !broken && nempty(wire) -> wire?_; fence++; l1 = NONE }
    :: atomic { !broken -> broken = true; subscribed = false };   /* the wire breaks ... */
        atomic { do :: wire?_ :: empty(wire) -> break od };
        gate = false;                                             /* ... the window is over, the loss noticed */
#ifdef FLUSH_AT_LOSS
        flush();
#endif
#ifdef FLUSH_BEFORE_ACK
        flush();
#endif
        atomic { subscribed = true; newest = l2 };                /* the server acknowledges */
#ifndef NO_FLUSH
#ifndef FLUSH_AT_LOSS
#ifndef FLUSH_BEFORE_ACK
        flush();
#endif
#endif
#endif
        atomic { gate = true; floor = newest; newest = 0 };       /* a heartbeat from after that is answered */
        break
    :: atomic { ended == READERS + 1 && empty(wire) -> break }    /* nothing broke */
    od;
end:
    do
    :: atomic { wire?_ -> fence++; l1 = NONE }
    od
}

init {
    atomic {
        byte i = 0;
        do
        :: i < READERS -> run reader(); i++
        :: else -> break
        od;
        run writer();
        run link();
        i = 0
    };
    (timeout);
    assert(ended == READERS + 1);
    assert(l1 == NONE || l1 == l2)
}
