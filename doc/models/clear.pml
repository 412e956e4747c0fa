/*
 * Clearing a cache: the generation.
 *
 * Stands for: client/generation.c, near_clear() in client/write.c, and the check of an entry's generation in client/tier.c.
 *
 * One key of one cache.  Writers put a value under the generation that they know, or read, or make where there is none; one
 * instance clears: it writes a generation that was never seen before, then tells the others.  Another instance reads, with a
 * remembered generation while nothing makes it doubtful.  The generation is evicted once, at any time.
 *
 * Abstraction: L1 and its fences (fill.pml); the message may come late but comes; a remembered generation does not age.
 *
 * Promised: who starts to read after the message of a clear has come gets nothing that was put before the clear; and when all is quiet and
 * everybody has asked for the generation anew, nothing from before the clear is there.
 *
 * Product: (none).   Broken: COUNTER (generations count up from what L2 holds), NO_DOUBT (the message changes nothing), MESSAGE_FIRST.
 */
#define READERS 2

byte generation = 1, last = 1; /* in L2: 0 is none; the newest that was made */
byte entry = 0, born = 0;        /* in L2: the number of its put, and the generation written into it */
byte puts = 0;
byte floor = 0;                /* what was put up to here was cleared */
byte heard = 0;                /* the same, as the reading instance has heard it */
byte known = 0;                /* what that instance remembers; 0: must ask */
byte doubts = 0;
bool message = false;
byte ended = 0;

inline fresh(g) {
#ifdef COUNTER
    g = generation + 1
#else
    last++;
    g = last
#endif
}

/* As near__generation_for_write(): asked, or made with "only if absent". */
inline find_generation(g) {
    atomic {
        if
        :: generation != 0 -> g = generation
        :: else -> fresh(g); generation = g
        fi
    }
}

proctype writer() {
    byte mine;

    find_generation(mine);
    atomic { puts++; entry = puts; born = mine };
    atomic { mine = 0; ended++ }
}

proctype reader() {
    byte least, mine, number, its, asked;

    atomic { least = heard; mine = known; asked = doubts };
    atomic {                                    /* one exchange: the entry, and the generation where it is not known */
        number = entry; its = born;
        if
        :: mine == 0 -> mine = generation
        :: else
        fi
    };
    atomic {
        if
        :: doubts == asked -> known = mine      /* learnt, unless something made it doubtful meanwhile */
        :: else
        fi;
        if
        :: number != 0 && mine != 0 && its == mine -> assert(number > least)
        :: else
        fi;
        least = 0; mine = 0; number = 0; its = 0; asked = 0; ended++
    }
}

proctype clearer() {
    byte fresh_one, before;

#ifdef MESSAGE_FIRST
    atomic { message = true; before = puts };
    atomic { fresh(fresh_one); generation = fresh_one; floor = before };
#else
    atomic { fresh(fresh_one); generation = fresh_one; floor = puts };
    message = true;
#endif
    atomic { fresh_one = 0; before = 0; ended++ }
}

proctype listener() {
    (message);
    atomic {
#ifdef MESSAGE_FIRST
        heard = puts;
#else
        heard = floor;
#endif
#ifndef NO_DOUBT
        known = 0;
        doubts++;
#endif
        ended++
    }
}

active proctype eviction() {
    if
    :: generation = 0
    :: skip
    fi
}

init {
    byte i = 0, g;
    atomic {
        do
        :: i < READERS -> run reader(); i++
        :: else -> break
        od;
        run writer();
        run writer();
        run clearer();
        run listener();
        i = 0
    };
    (timeout);
    assert(ended == READERS + 4);
    find_generation(g);
    assert(entry == 0 || born != g || entry > floor)
}
