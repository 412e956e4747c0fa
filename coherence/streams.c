/*
 * Streams: a fixed array of slots.  Each used slot is in one hash chain and in the list of age, both made of slot numbers; slot 0 is
 * nobody's: as a link it means "none", and in the list of age it is the head (older: the newest; newer: the oldest).
 */
#include "coherence/streams.h"

#include "base/hash.h"
#include "base/le.h"

#include <stdlib.h>
#include <string.h>

#define SLOTS   (NEAR__STREAMS_MAX + 1)
#define BUCKETS 32768 /* a power of two */

struct slot {
    uint64_t sender, stream, first, last;
    uint16_t chain;        /* the next slot in the bucket */
    uint16_t newer, older; /* list of age */
};
_Static_assert(SLOTS <= UINT16_MAX, "slot numbers fit their links");

struct near__streams {
    struct near__secret secret; /* stream numbers are chosen by others: they must not choose our chains */
    uint16_t            used;   /* slots 1 .. used have been given out */
    bool                forgot; /* somebody, for want of room: what is not known may have been */
    struct slot         slots[SLOTS];
    uint16_t            buckets[BUCKETS];
};

struct near__streams *
near__streams_new(void)
{
    struct near__streams *s = calloc(1, sizeof(*s));

    if (s != NULL && near__secret_init(&s->secret) != NEAR_OK) {
        free(s);
        s = NULL;
    }
    return s;
}

void
near__streams_free(struct near__streams **streams)
{
    free(*streams);
    *streams = NULL;
}

void
near__streams_forget(struct near__streams *s)
{
    s->used   = 0;
    s->forgot = false;
    memset(&s->slots[0], 0, sizeof(s->slots[0]));
    memset(s->buckets, 0, sizeof(s->buckets));
}

static uint16_t *
bucket_of(struct near__streams *s, uint64_t sender, uint64_t stream)
{
    uint8_t name[16];

    near__le64_put(name, sender);
    near__le64_put(name + 8, stream);
    return &s->buckets[near__hash_keyed(&s->secret, (near_bytes){ name, sizeof(name) }) % BUCKETS];
}

static uint16_t
find(const struct near__streams *s, uint16_t at, uint64_t sender, uint64_t stream)
{
    while (at != 0 && (s->slots[at].sender != sender || s->slots[at].stream != stream))
        at = s->slots[at].chain;
    return at;
}

static void
age_unlink(struct near__streams *s, uint16_t at)
{
    s->slots[s->slots[at].newer].older = s->slots[at].older;
    s->slots[s->slots[at].older].newer = s->slots[at].newer;
}

static void
age_link_newest(struct near__streams *s, uint16_t at)
{
    uint16_t second = s->slots[0].older;

    s->slots[at].newer     = 0;
    s->slots[at].older     = second;
    s->slots[second].newer = at;
    s->slots[0].older      = at;
}

/* Forget the stream that was silent longest; its slot is the answer. */
static uint16_t
evict(struct near__streams *s)
{
    uint16_t  at   = s->slots[0].newer;
    uint16_t *link = bucket_of(s, s->slots[at].sender, s->slots[at].stream);

    while (*link != at)
        link = &s->slots[*link].chain;
    *link = s->slots[at].chain;
    age_unlink(s, at);
    s->forgot = true;
    return at;
}

static void
insert(struct near__streams *s, uint16_t *bucket, uint64_t sender, uint64_t stream, uint64_t sequence)
{
    uint16_t     at   = s->used < NEAR__STREAMS_MAX ? ++s->used : evict(s);
    struct slot *slot = &s->slots[at];

    slot->sender = sender;
    slot->stream = stream;
    slot->first  = sequence;
    slot->last   = sequence;
    slot->chain  = *bucket;
    *bucket      = at;
    age_link_newest(s, at);
}

enum near__stream_news
near__streams_heard(struct near__streams *s, uint64_t sender, uint64_t stream, uint64_t sequence)
{
    uint16_t *bucket = bucket_of(s, sender, stream);
    uint16_t  at     = find(s, *bucket, sender, stream);
    uint64_t  last;

    if (at == 0) {
        insert(s, bucket, sender, stream, sequence);
        return NEAR__STREAM_FIRST;
    }
    age_unlink(s, at);
    age_link_newest(s, at);
    last = s->slots[at].last;
    if (sequence <= last)
        return NEAR__STREAM_LATE;
    s->slots[at].last = sequence;
    return sequence - last == 1 ? NEAR__STREAM_NEXT : NEAR__STREAM_GAP;
}

bool
near__streams_has(struct near__streams *s, uint64_t sender, uint64_t stream, uint64_t sequence)
{
    uint16_t at = find(s, *bucket_of(s, sender, stream), sender, stream);

    return at != 0 && s->slots[at].first <= sequence && sequence <= s->slots[at].last;
}

enum near__stream_news
near__streams_announced(struct near__streams *s, uint64_t sender, uint64_t stream, uint64_t first,
                        uint64_t last, bool whole)
{
    uint16_t *bucket = bucket_of(s, sender, stream);
    uint16_t  at     = find(s, *bucket, sender, stream);
    bool      missing;

    if (at == 0) {
        insert(s, bucket, sender, stream, last);
        s->slots[s->slots[0].older].first = first; /* said once is enough */
        return whole && !s->forgot ? NEAR__STREAM_GAP : NEAR__STREAM_FIRST;
    }
    missing = s->slots[at].last < last || (whole && !s->forgot && s->slots[at].first > first);
    if (s->slots[at].first > first)
        s->slots[at].first = first;
    if (s->slots[at].last < last)
        s->slots[at].last = last;
    return missing ? NEAR__STREAM_GAP : NEAR__STREAM_NEXT;
}

/* Streams are random numbers: the small ones are free for this. */
unsigned
near__streams_copies(struct near__streams *s, uint64_t sender, uint64_t beat)
{
    uint64_t  place  = 1 + beat % 8;
    uint16_t *bucket = bucket_of(s, sender, place);
    uint16_t  at     = find(s, *bucket, sender, place);

    if (at == 0) {
        insert(s, bucket, sender, place, 0);
        at = s->slots[0].older; /* the newest */
    }
    if (s->slots[at].last >> 7 != beat)
        s->slots[at].last = beat << 7;
    if ((s->slots[at].last & 127) < 127)
        s->slots[at].last++;
    return (unsigned)(s->slots[at].last & 127);
}

void
near__sent_note(struct near__sent *sent, uint64_t stream, uint64_t sequence)
{
    size_t i = 0;

    while (i < sent->count && sent->streams[i].stream != stream)
        i++;
    if (i == NEAR__SENT_MAX)
        return;
    if (i == sent->count) {
        sent->count++;
        sent->streams[i].stream = stream;
        sent->streams[i].first = sent->streams[i].last = sequence;
    }
    sent->streams[i].told = 0;
    if (sequence < sent->streams[i].first)
        sent->streams[i].first = sequence;
    if (sequence > sent->streams[i].last)
        sent->streams[i].last = sequence;
}

bool
near__sent_due(const struct near__sent *sent)
{
    return sent->count > 0;
}

void
near__sent_told(struct near__sent *sent, const struct near__sent *told)
{
    size_t kept = 0;

    sent->beat++;
    for (size_t i = 0; i < sent->count; i++) {
        bool same = i < told->count && sent->streams[i].last == told->streams[i].last &&
                    sent->streams[i].first == told->streams[i].first;

        if (same && ++sent->streams[i].told > NEAR__SENT_TRAIL)
            continue;
        sent->streams[kept++] = sent->streams[i];
    }
    sent->count = kept;
}

bool
near__doubts_has(const struct near__doubts *d, uint64_t stream)
{
    if (d->overflow)
        return true;
    for (size_t i = 0; i < d->count; i++) {
        if (d->streams[i] == stream)
            return true;
    }
    return false;
}

bool
near__doubts_add(struct near__doubts *d, uint64_t stream)
{
    if (near__doubts_has(d, stream))
        return false;
    if (d->count < NEAR__DOUBTS_MAX) {
        d->streams[d->count++] = stream;
        return false;
    }
    d->overflow = true;
    return true;
}
