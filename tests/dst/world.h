/*
 * The world of the deterministic runs: instances (a client with one cache, "c"), a server and a bus between them, all played by
 * tasks of steps.h, and the accounts that say what a read may answer.
 *
 * The server is one that executes requests one at a time.  Requests and replies travel: between leaving and arriving others go on.
 * Messages wait in a queue per subscriber and arrive in order; a connection that is cut loses what was in its queue; a subscriber's
 * pongs go through the same queue.  A request may be refused, lost, executed with its reply lost, or executed long after its caller
 * gave up (only where its message travels with it: see coherence of memcached in doc/guarantees.md).
 *
 * The account of a key is a list of floors: "whoever asks from now on must not get number n or less".  Numbers are those of the
 * server's order of mutations (puts and removals), or of the store's versions where values are loaded.
 */
#ifndef TESTS_DST_WORLD_H
#define TESTS_DST_WORLD_H

#include "dst/steps.h"
#include "nearcache.h"

enum {
    DST_CLIENTS = 3,
    DST_KEYS    = 2,
    DST_WINDOW  = 60, /* ms: the serve window of all runs, with a heartbeat of 10 */
    DST_NUMBERS = 256
};

enum dst_misfortune {
    DST_CUT = 1u << 0, /* a subscriber's connection, with what was on its way */
    DST_SILENT =
        1u
        << 1, /* it stays up and nothing comes, for longer than the window; then all at once, or it is cut */
    DST_LOSE =
        1u << 2, /* a message or beat, three for each subscriber: found out by the next, or by a beat */
    DST_REPEAT   = 1u << 3, /* one message, again and late */
    DST_FREEZE   = 1u << 4, /* an instance, as SIGSTOP does */
    DST_JUMP     = 1u << 5, /* time passes and nobody ran */
    DST_EVICT    = 1u << 6, /* an entry, a marker or a generation out of L2 */
    DST_EVICT_L1 = 1u << 7,
    DST_TROUBLE  = ((1u << 8) - 1) & ~DST_LOSE
};

/* Cures that can be taken away; each a control. */
enum dst_cure {
    DST_ALL_CURES,
    DST_NO_FENCE,        /* a fill shows the fence of its end, not of its beginning */
    DST_FENCE_IN_ENTRY,  /* the fence counts only while the key is present */
    DST_IGNORE_ABSENT,   /* messages about absent keys are ignored */
    DST_NO_EPOCH,        /* a flush moves no fence */
    DST_NO_FLUSH,        /* a new subscription flushes nothing */
    DST_NO_GATE,         /* L1 answers whatever the bus does */
    DST_PONG_AS_NOW,     /* a pong counts from when it comes, not from its ping */
    DST_MESSAGE_FIRST,   /* the message leaves before the write is executed */
    DST_NO_DOUBT,        /* own echoes are skipped whatever became of the write */
    DST_NO_RECOVERY,     /* what could not be sent is forgotten */
    DST_NO_NUMBERS,      /* gaps are not noticed */
    DST_ONCE,            /* a second invalidation of a key within 5 s is taken for a duplicate */
    DST_NO_BRACKET,      /* local writes: no fence and no fill refused while they run */
    DST_NO_CONDITION,    /* L2 stores fills unconditionally */
    DST_LEASE_BY_KEY,    /* L2 stores a fill over any marker, not only over the filler's own */
    DST_KEEP_GENERATION, /* nobody doubts the generation that he knows */
    DST_LEAK_FLIGHTS,    /* a load that failed does not land */
    DST_NO_LEASE,        /* everybody gets a lease */
    DST_NO_TAG_MOVE,     /* hearing of a tag moves nothing in L1 */
    DST_NO_FLIGHTS,      /* nobody joins a flight of this process */
    DST_JOIN_ANY,        /* a load is joined whatever its age while nothing is heard */
    DST_CURES
};
extern enum dst_cure dst_without; /* the one that is off */

struct dst_settings {
    const char *name;
    unsigned    clients, keys;
    unsigned    windows; /* after which a write must be seen by others, at most; 0: one */
    bool        atomic;  /* write and message in one step (Redis), or one after the other */
    bool        loads;   /* values come from a store, through near_fetch */
    unsigned    faults;  /* percent of requests */
    unsigned    chaos;   /* what happens meanwhile: of enum dst_misfortune, a bit each */
    bool        slow;    /* requests take long, often longer than a link is down */
    bool        clears, tags;
    bool        herd;   /* nobody writes: loads are counted */
    bool        alone;  /* neither L2 nor bus */
    bool        absent; /* the store may lack the key */
};

/* One run; everything is closed again, unless it hung. */
void dst_run(const struct dst_settings *settings, uint64_t seed, struct steps_result *result);

#endif
