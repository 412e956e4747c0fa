/*
 * Write-through: the mark, the store, the value.
 *
 * Stands for: client/through.c and client/mark.c (place, replace, leave), client/plan.c (readers neither serve nor fill over a mark).
 *
 * One key.  A writer joins the list of tokens in the mark, changes the store, and puts the value in the mark's place if the mark lies
 * there as he put it; else he leaves the list, and the last one leaves nothing.  A token that is gone spoils what lies there.  Readers
 * take the lease where nothing is, load, and store under the lease.  EVICT: one eviction at any time.  CRASH: one writer may die at any
 * step.  REPLAY: his intent is found at his next start, which removes the key.
 *
 * Abstraction: the bound on tokens in a list; the TTL of a mark is an eviction after its writer's death, so where CRASH stands without
 * EVICT the mark outlives the store's call; the store changes at one moment between call and answer.
 *
 * Promised: when all is quiet L2 holds the store's value, a mark, or nothing.  With both EVICT and CRASH that takes REPLAY.
 *
 * Product: EVICT | CRASH | EVICT CRASH REPLAY.   Broken: EVICT CRASH (the limit that is stated), and with EVICT: SET (the value put
 * blindly), NEWER_WINS; with CRASH: LAST_MARK (one token, the newest), NO_MARK, INSTALL_ANY (the
 * value over any mark).
 */
#ifndef WRITERS
#define WRITERS 3
#endif
#ifndef READERS
#define READERS 2
#endif

mtype = { nothing, marker, mark, value };

byte  store = 0;
mtype kind = nothing;
byte  version = 0, stamp = 0, stamps = 0, tokens = 0;
bool  spoiled = false;
byte  ended = 0;
bool  crashed = false;

#define FRESH stamps++; stamp = stamps
#define GONE  kind = nothing; version = 0; stamp = 0; tokens = 0; spoiled = false
#define VALUE(v) kind = value; version = v; tokens = 0; spoiled = false; FRESH

proctype reader() {
    byte seen = 0, x;

    atomic {
        if
        :: kind == nothing -> kind = marker; FRESH; seen = stamp
        :: else
        fi
    };
    x = store;
    atomic {
        if
        :: seen != 0 && kind == marker && stamp == seen -> VALUE(x)
        :: else
        fi;
        seen = 0; x = 0; ended++
    }
}

inline leave(token) {
    if
    :: kind == mark && (tokens & token) ->
        tokens = tokens & ~token;
        FRESH;
        if
        :: tokens == 0 -> GONE
        :: else
        fi
    :: kind == mark && !(tokens & token) -> spoiled = true; FRESH
    :: kind == value || kind == marker -> GONE
    :: kind == nothing
    fi
}

#ifdef CRASH
#define MAY_DIE :: atomic { !crashed -> crashed = true } -> goto dead
#else
#define MAY_DIE
#endif

proctype writer(byte token) {
    byte mine = 0, x;

#ifndef NO_MARK
#ifndef SET
#ifndef NEWER_WINS
    atomic {
#ifdef LAST_MARK
        kind = mark; version = 0; tokens = token; FRESH; mine = stamp
#else
        if
        :: kind == mark -> tokens = tokens | token
        :: else -> GONE; kind = mark; tokens = token
        fi;
        FRESH;
        if
        :: tokens == token && !spoiled -> mine = stamp
        :: else
        fi
#endif
    };
#endif
#endif
#endif
    if
    MAY_DIE
    :: atomic { store = store + 1; x = store }
    fi;
    if
    MAY_DIE
    :: atomic {
#ifdef NO_MARK
        GONE
#else
#ifdef SET
        VALUE(x)
#else
#ifdef NEWER_WINS
        if
        :: kind != value || version < x -> VALUE(x)
        :: else
        fi
#else
#ifdef INSTALL_ANY
        if
        :: kind == mark -> VALUE(x)
        :: else -> leave(token)
        fi
#else
#ifdef LAST_MARK
        if
        :: kind == mark && stamp == mine -> VALUE(x)
        :: else -> GONE
        fi
#else
        if
        :: mine != 0 && kind == mark && stamp == mine -> VALUE(x)
        :: else -> leave(token)
        fi
#endif
#endif
#endif
#endif
#endif
       }
    fi;
    goto over;
dead:
#ifdef REPLAY
    atomic { GONE };
#else
    skip;
#endif
over:
    atomic { mine = 0; x = 0; ended++ }
}

#ifdef EVICT
active proctype eviction() {
    if
    :: atomic { GONE }
    :: skip
    fi
}
#endif

init {
    atomic {
        byte i = 0;
        do
        :: i < READERS -> run reader(); i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < WRITERS -> run writer(1 << i); i++
        :: else -> break
        od;
        i = 0
    };
    (timeout);
    assert(ended == READERS + WRITERS);
    assert(kind != value || version == store)
}
