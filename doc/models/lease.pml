/*
 * L2 against the store: fills under a lease, and removals.
 *
 * Stands for: client/tier.c (lease, fill), client/plan.c, and near_remove() after a change of the store; l2/ for "write if this stamp is
 * still there".
 *
 * One key.  Two writers change the store and then remove the key; three readers read L2, take the lease if nothing is there, load, and
 * store what they loaded if their own marker is still there.  One eviction, of a value or of a marker.  With REFRESH a reader who finds
 * a value loads all the same (early, or because it is past its time) and replaces it if the stamp he saw is still there.
 *
 * Abstraction: no expiry but the eviction; who meets a marker goes without storing; a stamp is a number never used before; the lease
 * beside an entry that is refreshed is left out (it saves loads, and decides nothing).
 *
 * Promised: when all is quiet L2 holds the store's value, or none.
 *
 * Product: (none) | REFRESH.   Broken: REMOVE_FIRST, REMOVE_FIRST with NO_LEASE, NO_LEASE, REMOVE_TWICE with NO_LEASE, WRITE_THROUGH,
 * LEASE_BY_KEY (a fill over any marker), REFRESH with REFRESH_BLIND.
 */
#define READERS 3
#define WRITERS 2

mtype = { nothing, marker, value };

byte  store = 0;
mtype kind = nothing;
byte  version = 0, stamp = 0;
byte  stamps = 0;
byte  ended = 0;

inline put(k, v) {
    kind = k;
    version = v;
    stamps++;
    stamp = stamps
}

inline drop() {
    atomic { kind = nothing; version = 0; stamp = 0 }
}

proctype reader() {
    byte seen = 0, x;

    atomic {
        if
        :: kind == nothing ->
#ifndef NO_LEASE
            put(marker, 0);
            seen = stamp
#else
            seen = 1
#endif
#ifdef REFRESH
        :: kind == value -> seen = stamp
#else
        :: kind == value
#endif
        :: kind == marker
        fi
    };
    if
    :: seen != 0 ->
        x = store;
        atomic {
            if
#ifdef NO_LEASE
            :: true -> put(value, x)
#else
#ifdef LEASE_BY_KEY
            :: kind == marker -> put(value, x)
#else
#ifdef REFRESH_BLIND
            :: true -> put(value, x)
#else
            :: kind != nothing && stamp == seen -> put(value, x)
            :: else
#endif
#endif
#endif
#ifdef LEASE_BY_KEY
            :: else
#endif
            fi
        }
    :: else
    fi;
    atomic { seen = 0; x = 0; ended++ }
}

proctype writer() {
    byte x;

#ifdef REMOVE_FIRST
    drop();
    store = store + 1;
#else
#ifdef REMOVE_TWICE
    drop();
    store = store + 1;
    drop();
#else
#ifdef WRITE_THROUGH
    atomic { store = store + 1; x = store };
    atomic { put(value, x) };
#else
    store = store + 1;
    drop();
#endif
#endif
#endif
    atomic { x = 0; ended++ }
}

active proctype eviction() {
    if
    :: drop()
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
        i = 0;
        do
        :: i < WRITERS -> run writer(); i++
        :: else -> break
        od;
        i = 0
    };
    (timeout);
    assert(ended == READERS + WRITERS);
    assert(kind != value || version == store)
}
