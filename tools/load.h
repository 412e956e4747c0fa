/*
 * The load that `nearcache bench` puts on a cache: which keys, in which order, which of the calls write, when each begins, and what
 * the calls took.
 *
 * Keys are drawn beforehand, so that a call costs the generator next to nothing; a trace is its own sequence.  With a rate, each call has
 * an intended beginning, whatever the calls before it took, and its latency counts from there: a server that stalls is charged for all
 * that should have begun meanwhile (no "coordinated omission": G. Tene, "How NOT to Measure Latency", 2013).  Without one, each thread
 * begins its next call when the last one ends.
 */
#ifndef NEAR_TOOLS_LOAD_H
#define NEAR_TOOLS_LOAD_H

#include "base/clock.h"
#include "base/histogram.h"

#include <stdatomic.h>

struct load {
    /* keys */
    uint64_t  keys;
    double    zipf; /* exponent; 0: uniform */
    uint32_t *drawn;
    uint64_t *hashes; /* a trace's keys instead, or NULL */
    uint32_t *sizes;  /* of its values */
    size_t    n;      /* of the sequence */
    uint8_t  *block;  /* value_most bytes, of which every value is the beginning */

    /* calls */
    uint64_t threads, batch;
    double   puts; /* share */
    uint64_t value_least, value_most;
    bool     loads;  /* near_fetch() with a loader, not near_get() */
    int64_t  loader; /* ns that it takes */
    double   rate;   /* requests per second in all; 0: as fast as it goes */
};

/* One round of one side. */
struct round {
    struct near__histogram read, write; /* from the intended beginning where there is a rate */
    struct near__histogram service;     /* reads and writes, from the real beginning */
    _Atomic uint64_t       requests, errors;
    _Atomic uint64_t       unbegun;    /* calls whose time came, and that did not get their turn */
    _Atomic int            last_error; /* near_status */
    double                 seconds;
};

/* Draw the sequence.  False: out of memory. */
bool load_draw(struct load *load);
void load_free(struct load *load);
/* The text of a key, and the size of its value. */
#define LOAD_KEY_SIZE 16
void     load_key(const struct load *load, size_t at, char key[LOAD_KEY_SIZE]);
uint32_t load_value_size(const struct load *load, size_t at);

/* Store every key's value.  The status of the first failure. */
near_status load_fill(const struct load *load, near_cache *cache, const _Atomic bool *stop,
                      void (*progress)(size_t done, size_t all));
/* The cache's loader: answers any key with a value of its size. */
void load_answer(near_load *loads[], size_t n, void *load);

/* Run for `duration` ns; `round` begins as zeros.  False: no threads. */
bool load_run(const struct load *load, near_cache *cache, int64_t duration, struct round *round,
              const _Atomic bool *stop);

#endif
