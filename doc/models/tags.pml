/*
 * Tags: entries carry a time, and a tag a later one.
 *
 * Stands for: client/tags.h, client/tags.c: the clock of all tags and the moment of each tag in L2; the clock is captured before a value is
 * asked for.
 *
 * One key with one tag.  Two instances change the store and then invalidate the tag: they read the clock, bring the tag to one moment more
 * (never back), then the clock (never back).  Loads capture the clock, ask the store, keep the value with the captured clock, without
 * lease or fence: only the tag protects.  Once, the clock is forgotten at any time, or the tag, but not between the two writes of an
 * invalidation: a tag evicted right after it was written, and made again by a reader before the clock has moved, is not noticed
 * (FORGET_ANY_TIME shows it).
 *
 * Abstraction: messages and what is remembered of tags; an entry is judged by what L2 says now.  A lineage is a number never used before.
 *
 * Promised: who starts to read after an invalidation was acknowledged gets nothing that was loaded before the store changed.
 *
 * Product: (none).   Broken: CLOCK_LATE (captured after the value), CLOCK_FIRST (the clock moves before the tag), TAG_ZERO (a forgotten tag comes
 * back at 0), SAME_LINEAGE (a forgotten clock counts from 0 again), SET_BACK (the tag is set, not raised), and FORGET_ANY_TIME (the limit
 * that is stated).
 */
#ifndef LOADS
#define LOADS   2
#define CHANGES 2
#endif
#define READS   1
#define UNKNOWN 255

byte store = 0;
byte lineage = 1, clock = 1, lineages = 1;  /* in L2; lineage 0: there is none */
byte tag = 1, tag_lineage = 1;              /* in L2; UNKNOWN: there is none */
byte kept = 0, kept_lineage = 0, kept_clock = 0; /* the entry: which version of the store + 1 */
byte floor = 0;                             /* versions below were invalidated, and that was acknowledged */
byte between = 0;                           /* invalidations that are between the tag and the clock */
byte ended = 0;

inline make_clock() {
    if
    :: lineage == 0 ->
#ifdef SAME_LINEAGE
        lineage = 1; clock = 0
#else
        lineages++; lineage = lineages; clock = 1
#endif
    :: else
    fi
}

inline make_tag() {
    make_clock();
    if
    :: tag == UNKNOWN || tag_lineage != lineage ->
#ifdef TAG_ZERO
        tag = 0;
#else
        tag = clock;
#endif
        tag_lineage = lineage
    :: else
    fi
}

proctype load() {
    byte l, c, x;

#ifdef CLOCK_LATE
    x = store;
    atomic { make_clock(); l = lineage; c = clock };
#else
    atomic { make_clock(); l = lineage; c = clock };
    x = store;
#endif
    atomic { kept = x + 1; kept_lineage = l; kept_clock = c; l = 0; c = 0; x = 0; ended++ }
}

inline raise_clock() {
    atomic {
        if
        :: lineage == l && clock < c + 1 -> clock = c + 1
        :: lineage == l && clock >= c + 1 -> clock = clock + 1 /* always on: what was learnt of tags is learnt anew */
        :: else
        fi;
        between--
    }
}

proctype change() {
    byte l, c, x;
    bool again;

    atomic { store = store + 1; x = store };
    do
    :: atomic { make_clock(); l = lineage; c = clock; again = false };
#ifdef CLOCK_FIRST
        atomic { between++; raise_clock() };
#endif
        atomic {
#ifdef SET_BACK
            tag = c + 1; tag_lineage = l
#else
            if
            :: tag == UNKNOWN || tag_lineage != l || tag < c + 1 -> tag = c + 1; tag_lineage = l
            :: else
            fi
#endif
#ifndef CLOCK_FIRST
            ; between++
#endif
        };
#ifndef CLOCK_FIRST
        raise_clock();
#endif
        atomic {                                /* the clock was lost meanwhile: once more, in its new lineage */
            if
            :: lineage != l -> again = true
            :: else
            fi
        };
        if
        :: again
        :: else -> break
        fi
    od;
    atomic {
        if
        :: x > floor -> floor = x
        :: else
        fi;
        l = 0; c = 0; x = 0; again = 0; ended++
    }
}

proctype read() {
    byte least, k, kl, kc;

    least = floor;
    atomic { k = kept; kl = kept_lineage; kc = kept_clock };
    atomic {                                    /* the tag is asked for after the entry; one that is missing is made */
        make_tag();
        if
        :: k != 0 && kl == tag_lineage && tag_lineage == lineage && tag <= kc -> assert(k - 1 >= least)
        :: else
        fi;
        least = 0; k = 0; kl = 0; kc = 0; ended++
    }
}

active proctype forgetting() {
    if
#ifdef FORGET_ANY_TIME
    :: atomic { tag = UNKNOWN; tag_lineage = 0 }
#else
    :: atomic { between == 0 -> tag = UNKNOWN; tag_lineage = 0 }
#endif
    :: atomic { lineage = 0; clock = 0 }
    :: skip
    fi
}

init {
    atomic {
        byte i = 0;
        do
        :: i < LOADS -> run load(); i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < CHANGES -> run change(); i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < READS -> run read(); i++
        :: else -> break
        od;
        i = 0
    };
    (timeout);
    assert(ended == LOADS + CHANGES + READS);
    atomic {
        make_tag();
        assert(kept == 0 || kept_lineage != tag_lineage || tag > kept_clock || kept - 1 >= floor)
    }
}
