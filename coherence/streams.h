/*
 * Which numbers were seen, which were sent, and which of our own messages are not to be skipped.
 *
 * Streams: for each (sender, stream) the first and the last sequence number heard.  Bounded: the stream that was silent longest is
 * forgotten first, so a live one loses its place only when 16384 others have spoken since; its next message then counts as a first
 * one.  A sender's beats are numbered, too: they are its stream 0.
 *
 * Sent: what a sender has published lately, stream by stream, and says in its beats.  A gap is seen by the message after it; that the
 * *last* message of a stream is missing, or its first ones, is seen by the beat.  What is new is said in the next beat and in some
 * more, so that it is heard when the first of them is lost; of a stream that never rests all numbers are said since it last did.
 *
 * Doubts: our own streams in which the outcome of a message is unknown.  A doubt is never forgotten, because nothing bounds how
 * late a server may execute what it was sent; when there is no room for another, everything counts as doubted.
 *
 * None has a lock: the owner (coherence.c) covers all with its own.
 */
#ifndef NEAR_COHERENCE_STREAMS_H
#define NEAR_COHERENCE_STREAMS_H

#include "base/base.h"

#define NEAR__STREAMS_MAX 16384
#define NEAR__DOUBTS_MAX  1024
#define NEAR__SENT_MAX    1024 /* streams in a beat; more are not announced */
#define NEAR__SENT_TRAIL  2 /* further beats that say the same: one that is lost is made good by the next */

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
/* Was this number heard, or is it between two that were?  (What a gap has swallowed a flush has paid for.) */
bool near__streams_has(struct near__streams *streams, uint64_t sender, uint64_t stream, uint64_t sequence);
/* A beat says: `first` to `last` were published in this stream.  `whole`: we should have heard them all, also of a stream that we know
 * nothing of.  FIRST: it sets the baseline; NEXT: all of them were heard; GAP: some are missing, and counting goes on after them. */
enum near__stream_news near__streams_announced(struct near__streams *streams, uint64_t sender,
                                               uint64_t stream, uint64_t first, uint64_t last, bool whole);

/* How many times this beat of a sender has been heard, now included, where each message comes on several links: at most 127 times.
 * Several beats may be on their way at a time: eight. */
unsigned near__streams_copies(struct near__streams *streams, uint64_t sender, uint64_t beat);

struct near__sent {
    uint64_t beat; /* number of the last beat that was published */
    size_t   count;
    struct {
        uint64_t stream, first, last;
        unsigned told; /* beats that said it as it is */
    } streams[NEAR__SENT_MAX];
};

/* This number has been published for certain. */
void near__sent_note(struct near__sent *sent, uint64_t stream, uint64_t sequence);
/* Is a beat due? */
bool near__sent_due(const struct near__sent *sent);
/* `told`, a copy of `sent` from before, has been published as the next beat. */
void near__sent_told(struct near__sent *sent, const struct near__sent *told);

struct near__doubts {
    size_t   count;
    bool     overflow;
    uint64_t streams[NEAR__DOUBTS_MAX];
};

/* True when this call found no room: from now on everything is doubted. */
bool near__doubts_add(struct near__doubts *doubts, uint64_t stream);
bool near__doubts_has(const struct near__doubts *doubts, uint64_t stream);

#endif
