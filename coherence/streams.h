/*
 * Which numbers were seen, and which of our own messages are not to be skipped.
 *
 * Streams: for each (sender, stream) the last sequence number heard.  Bounded: the stream that was silent longest is forgotten
 * first, so a live one loses its place only when 4096 others have spoken since; its next message then counts as a first one.
 *
 * Doubts: our own streams in which the outcome of a message is unknown.  A doubt is never forgotten, because nothing bounds how
 * late a server may execute what it was sent; when there is no room for another, everything counts as doubted.
 *
 * Neither has a lock: the owner (coherence.c) covers both with its own.
 */
#ifndef NEAR_COHERENCE_STREAMS_H
#define NEAR_COHERENCE_STREAMS_H

#include "base/base.h"

#define NEAR__STREAMS_MAX 4096
#define NEAR__DOUBTS_MAX  1024

struct near__streams;

enum near__stream_news {
    NEAR__STREAM_FIRST, /* not known: the subscription, or our memory, began in the middle.  Sets the baseline */
    NEAR__STREAM_NEXT, /* the number after the last one */
    NEAR__STREAM_LATE, /* that number or a higher one was heard before: a duplicate, or out of order */
    NEAR__STREAM_GAP   /* at least one number is missing; counting goes on from this one */
};

/* NULL: out of memory or of random bytes. */
struct near__streams  *near__streams_new(void);
void                   near__streams_free(struct near__streams **streams);  /* NULL inside is fine */
void                   near__streams_forget(struct near__streams *streams); /* all of them */
enum near__stream_news near__streams_heard(struct near__streams *streams, uint64_t sender, uint64_t stream,
                                           uint64_t sequence);

struct near__doubts {
    size_t   count;
    bool     overflow;
    uint64_t streams[NEAR__DOUBTS_MAX];
};

/* True when this call found no room: from now on everything is doubted. */
bool near__doubts_add(struct near__doubts *doubts, uint64_t stream);
bool near__doubts_has(const struct near__doubts *doubts, uint64_t stream);

#endif
