/*
 * Tags: entries carry a time, and a tag a later one.
 *
 * Stands for: client/tags.h, client/tags.c: the clock of all tags and the moment of each tag in L2; the clock is captured before a value is
 * asked for.
 *
 * One key with one tag.  Two instances change the store and then invalidate the tag: they read the clock, bring the tag to one moment more
 * (never back), then the clock (never back), and then see to it that the tag has not been forgotten meanwhile: a reader who finds none
 * makes one at the clock's moment, in two steps, and that moment may be the one before.  Loads capture the clock, ask the store, keep the
 * value with the captured clock, without lease or fence: only the tag protects.  Once, the clock is forgotten, or the tag, at any time.
 *
 * Abstraction: messages and what is remembered of tags; an entry is judged by what L2 says now.  A lineage is a number never used before.
 *
 * Promised: who starts to read after an invalidation was acknowledged gets nothing that was loaded before the store changed.
 *
 * Product: (none).   Broken: CLOCK_LATE (captured after the value), CLOCK_FIRST (the clock moves before the tag), TAG_ZERO (a forgotten tag comes
 * back at 0), SAME_LINEAGE (a forgotten clock counts from 0 again), SET_BACK (the tag is set, not raised), NO_SECOND_LOOK (at the tag),
 * SECOND_LOOK_BACK (it may set the tag back), and FORGET=2 (the limit: a tag that is forgotten twice within one invalidation, by a reader's making of it).
 */
#ifndef LOADS
#define LOADS   2
#define CHANGES 2
#endif
#define READS   1
#ifndef FORGET
#define FORGET  1
#endif
#define UNKNOWN 255

byte store = 0;
byte lineage = 1, clock = 1, lineages = 1;  /* in L2; lineage 0: there is none */
byte tag = 1, tag_lineage = 1;              /* in L2; UNKNOWN: there is none */
byte kept = 0, kept_lineage = 0, kept_clock = 0; /* the entry: which version of the store + 1 */
byte floor = 0;                             /* versions below were invalidated, and that was acknowledged */
byte made = 0, made_lineage = 0;            /* the one reader's */
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
        fi
    }
}

/* The tag, then the clock as it is by then: one that is missing, or lower than ours, gets that moment if it is still so. */
inline look_again() {
    do
    :: atomic { t = tag; tl = tag_lineage };
       if
       :: t == UNKNOWN || (tl == l && t < c + 1) ->
           d = clock;
           atomic {
               if
               :: lineage != l -> d = 0; break
               :: lineage == l && tag == t && tag_lineage == tl ->
#ifdef SECOND_LOOK_BACK
                   tag = c + 1;
#else
                   tag = d;
#endif
                   tag_lineage = l; d = 0; break
               :: else -> d = 0        /* somebody was quicker: look again */
               fi
           }
       :: else -> break
       fi
    od;
    atomic { t = 0; tl = 0 }
}

proctype change() {
    byte l, c, d, t, tl, x;
    bool again;

    atomic { store = store + 1; x = store };
    do
    :: atomic { make_clock(); l = lineage; c = clock; again = false };
#ifdef CLOCK_FIRST
        raise_clock();
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
        };
#ifndef CLOCK_FIRST
        raise_clock();
#endif
#ifndef NO_SECOND_LOOK
        look_again();
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
    if                                          /* one that is missing may be made in two steps */
    :: atomic { tag == UNKNOWN -> make_clock(); made = clock; made_lineage = lineage };
       atomic {
           if
           :: tag == UNKNOWN -> tag = made; tag_lineage = made_lineage
           :: else
           fi;
           made = 0; made_lineage = 0
       }
    :: skip
    fi;
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
    byte times = 0;

    do
    :: times < FORGET -> atomic { tag = UNKNOWN; tag_lineage = 0; times++ }
    :: times == 0 -> atomic { lineage = 0; clock = 0; break }
    :: break
    od
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
