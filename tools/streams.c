/* See streams.h: a decoder of commands for each stream, streams by their ends, links and IP at the end. */
#include "streams.h"

#include "base/hash.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    STREAMS_MOST = 1 << 16,
    WAITS_MOST   = 1 << 20, /* bytes of a stream beyond a hole */
    ALL_WAIT     = 64 << 20,
    LINE_MOST    = 1 << 16,
    WORD_MOST    = 1 << 16, /* longer ones are values, and nobody asks for these */
    TEXT_MOST    = 8 << 20, /* of a command's words */
    WORDS_MOST   = 1 << 20,
    BULK_MOST    = 512 << 20, /* Redis' own bound */
    SLOTS_FIRST  = 64 /* of the table of streams, which has at least twice as many as there are streams */
};

/* ---- commands */

struct word {
    size_t at, size; /* in text; at SIZE_MAX: too long to be kept */
};

struct decoder {
    enum { LOST, LINE, BULK, SKIP } state;
    bool          begins; /* LOST: the next byte may begin a command */
    char         *line;
    size_t        line_size, line_room;
    size_t        left;       /* BULK, SKIP: bytes to come, the line's end included */
    unsigned      words_left; /* of a RESP array; 0: the next line begins a command */
    unsigned char last[2];    /* of a bulk */
    char         *text;       /* of the words */
    size_t        text_size, text_room;
    struct word  *words;
    size_t        n, words_room;
};

struct piece {
    struct piece *next;
    uint32_t      seq;
    size_t        size;
    unsigned char bytes[];
};

struct flow {
    unsigned char
             ends[36]; /* source and destination, addresses (mapped into IPv6) and ports, as in the packet */
    uint64_t hash;
    struct flow   *older, *newer;
    bool           client, started; /* started: `next` is known */
    uint32_t       next;
    struct piece  *waits; /* by seq */
    size_t         waiting;
    struct decoder decoder;
};

struct streams {
    streams_fn            take;
    void                 *ctx;
    struct streams_counts counts;
    size_t                n, waiting;
    struct flow          *oldest, *newest;
    struct flow         **slots;
    size_t                n_slots;
    near_bytes           *given; /* what `take` is called with */
    size_t                given_room;
};

static bool
grow(void **array, size_t *room, size_t need, size_t each)
{
    size_t wanted = *room == 0 ? 64 : *room;
    void  *more;

    if (need <= *room)
        return true;
    while (wanted < need)
        wanted *= 2;
    more = realloc(*array, wanted * each);
    if (more == NULL)
        return false;
    *array = more;
    *room  = wanted;
    return true;
}

static void
lose(struct streams *s, struct decoder *d, bool begins)
{
    s->counts.resyncs++;
    d->state     = LOST;
    d->begins    = begins;
    d->line_size = d->text_size = d->n = 0;
    d->words_left                      = 0;
}

static void
begin(struct decoder *d)
{
    d->state     = LINE;
    d->line_size = d->text_size = d->n = 0;
    d->words_left                      = 0;
}

static bool
add_word(struct decoder *d, size_t size, bool kept)
{
    if (!grow((void **)&d->words, &d->words_room, d->n + 1, sizeof(*d->words)))
        return false;
    d->words[d->n++] = (struct word){ kept ? d->text_size : SIZE_MAX, size };
    return true;
}

static bool
add_text(struct decoder *d, const void *bytes, size_t size)
{
    if (!grow((void **)&d->text, &d->text_room, d->text_size + size, 1))
        return false;
    if (size > 0)
        memcpy(d->text + d->text_size, bytes, size);
    d->text_size += size;
    return true;
}

static bool
execute(struct streams *s, struct decoder *d)
{
    if (d->n == 0)
        return true;
    if (!grow((void **)&s->given, &s->given_room, d->n, sizeof(*s->given)))
        return false;
    for (size_t i = 0; i < d->n; i++)
        s->given[i] = d->words[i].at == SIZE_MAX ? (near_bytes){ NULL, d->words[i].size }
                                                 : (near_bytes){ d->text + d->words[i].at, d->words[i].size };
    s->counts.commands++;
    return s->take(s->ctx, s->given, d->n);
}

/* A number of at most nine digits, and nothing else. */
static bool
number(const char *text, size_t size, size_t *n)
{
    *n = 0;
    if (size == 0 || size > 9)
        return false;
    for (size_t i = 0; i < size; i++) {
        if (!isdigit((unsigned char)text[i]))
            return false;
        *n = *n * 10 + (size_t)(text[i] - '0');
    }
    return true;
}

static bool
is_word(const char *word, size_t size, const char *name)
{
    return strlen(name) == size && strncasecmp(word, name, size) == 0;
}

/* Commands of memcached that a block of data follows, and where its size stands. */
static const struct {
    const char *name;
    size_t      at, least;
} stores[] = { { "set", 4, 5 },     { "add", 4, 5 }, { "replace", 4, 5 }, { "append", 4, 5 },
               { "prepend", 4, 5 }, { "cas", 4, 6 }, { "ms", 2, 3 } };

/* What a line may begin with when nothing is known: others would be found in values too easily. */
static bool
known_name(const char *word, size_t size)
{
    static const char *const names[] = { "get",   "gets",    "gat",    "gats",    "mget",   "hget",
                                         "hmget", "set",     "add",    "cas",     "mg",     "ms",
                                         "md",    "mn",      "incr",   "decr",    "touch",  "ping",
                                         "stats", "version", "delete", "replace", "append", "prepend" };

    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++)
        if (is_word(word, size, names[i]))
            return true;
    return false;
}

/* A line of words: what is typed into Redis, and all of memcached's commands. */
static bool
take_inline(struct streams *s, struct decoder *d)
{
    char  *line = d->line;
    size_t size = d->line_size, data;

    for (size_t at = 0, end; at < size; at = end) {
        for (; at < size && line[at] == ' '; at++)
            ;
        for (end = at; end < size && line[end] != ' '; end++)
            if ((unsigned char)line[end] < ' ' || line[end] == 0x7F) {
                lose(s, d, true);
                return true;
            }
        if (end > at && (!add_word(d, end - at, true) || !add_text(d, line + at, end - at)))
            return false;
    }
    if (d->n > 0 && !isalpha((unsigned char)d->text[d->words[0].at])) {
        lose(s, d, true);
        return true;
    }
    if (!execute(s, d))
        return false;
    for (size_t i = 0; d->n > 0 && i < NEAR_COUNT_OF(stores); i++) {
        const struct word *w = &d->words[d->n > stores[i].at ? stores[i].at : 0];

        if (is_word(d->text, d->words[0].size, stores[i].name) && d->n >= stores[i].least &&
            number(d->text + w->at, w->size, &data)) {
            begin(d);
            d->state = SKIP;
            d->left  = data + 2;
            return true;
        }
    }
    begin(d);
    return true;
}

static bool
take_line(struct streams *s, struct decoder *d)
{
    size_t n;

    if (d->line_size > 0 && d->line[d->line_size - 1] == '\r')
        d->line_size--;
    if (d->words_left > 0) { /* "$12": a word comes */
        if (d->line_size < 2 || d->line[0] != '$' || !number(d->line + 1, d->line_size - 1, &n) ||
            n > BULK_MOST) {
            lose(s, d, true);
            return true;
        }
        d->line_size = 0;
        d->left      = n + 2;
        d->state     = BULK;
        return add_word(d, n, n <= WORD_MOST && d->text_size + n <= TEXT_MOST);
    }
    if (d->line_size > 0 && d->line[0] == '*') {
        if (!number(d->line + 1, d->line_size - 1, &n) || n > WORDS_MOST) {
            lose(s, d, true);
            return true;
        }
        begin(d);
        d->words_left = (unsigned)n;
        return true;
    }
    if (d->line_size == 0) {
        begin(d);
        return true;
    }
    return take_inline(s, d);
}

/* Whether a line that was found after something lost can be the beginning of a command. */
static bool
looks_right(const struct decoder *d)
{
    size_t size = d->line_size > 0 && d->line[d->line_size - 1] == '\r' ? d->line_size - 1 : d->line_size, n,
           end  = 0;

    if (size > 1 && d->line[0] == '*')
        return number(d->line + 1, size - 1, &n) && n > 0 && n <= WORDS_MOST;
    while (end < size && d->line[end] != ' ')
        end++;
    return known_name(d->line, end);
}

static bool
end_bulk(struct streams *s, struct decoder *d)
{
    if (d->last[0] != '\r' || d->last[1] != '\n') {
        lose(s, d, false);
        return true;
    }
    d->state = LINE;
    if (--d->words_left > 0)
        return true;
    if (!execute(s, d))
        return false;
    begin(d);
    return true;
}

static bool
take_bulk(struct streams *s, struct decoder *d, const unsigned char **bytes, size_t *size)
{
    size_t n = *size < d->left ? *size : d->left, body = d->left > 2 ? d->left - 2 : 0;

    if (d->state == BULK && d->words[d->n - 1].at != SIZE_MAX && !add_text(d, *bytes, n < body ? n : body))
        return false;
    for (size_t i = n < 2 ? 0 : n - 2; i < n; i++) {
        d->last[0] = d->last[1];
        d->last[1] = (*bytes)[i];
    }
    d->left -= n;
    *bytes += n;
    *size -= n;
    if (d->left > 0)
        return true;
    if (d->state == BULK)
        return end_bulk(s, d);
    if (d->last[0] == '\r' && d->last[1] == '\n')
        begin(d);
    else
        lose(s, d, false);
    return true;
}

static bool
take_text(struct streams *s, struct decoder *d, const unsigned char **bytes, size_t *size)
{
    const unsigned char *end = memchr(*bytes, '\n', *size);
    size_t               n   = end == NULL ? *size : (size_t)(end - *bytes);

    if (d->line_size + n > LINE_MOST) {
        if (d->state == LINE)
            lose(s, d, false);
        d->line_size = 0;
        d->begins    = false;
    } else if (d->state == LINE || d->begins) {
        if (!grow((void **)&d->line, &d->line_room, d->line_size + n + 1, 1))
            return false;
        memcpy(d->line + d->line_size, *bytes, n);
        d->line_size += n;
    }
    *bytes += n + (end != NULL);
    *size -= n + (end != NULL);
    if (end == NULL)
        return true;
    if (d->state == LOST) {
        if (!d->begins || !looks_right(d)) {
            d->begins    = true;
            d->line_size = 0;
            return true;
        }
        d->state     = LINE;
        d->text_size = d->n = 0;
    }
    return take_line(s, d);
}

static bool
decode(struct streams *s, struct decoder *d, const unsigned char *bytes, size_t size)
{
    bool ok = true;

    while (ok && size > 0)
        ok = d->state == BULK || d->state == SKIP ? take_bulk(s, d, &bytes, &size)
                                                  : take_text(s, d, &bytes, &size);
    return ok;
}

/* Bytes are missing for good: what follows begins a packet, and perhaps a command. */
static void
miss(struct streams *s, struct decoder *d, uint64_t bytes)
{
    s->counts.lost += bytes;
    if ((d->state == BULK || d->state == SKIP) && bytes + 2 <= d->left) { /* of one word */
        if (d->state == BULK)
            d->words[d->n - 1].at = SIZE_MAX;
        d->left -= bytes;
        return;
    }
    lose(s, d, true);
}

/* ---- streams */

static void
flow_free(struct streams *s, struct flow *flow)
{
    struct piece *piece;

    while ((piece = flow->waits) != NULL) {
        flow->waits = piece->next;
        free(piece);
    }
    s->waiting -= flow->waiting;
    free(flow->decoder.line);
    free(flow->decoder.text);
    free(flow->decoder.words);
    free(flow);
}

static size_t
slot_of(const struct streams *s, uint64_t hash, const unsigned char ends[36])
{
    size_t at = hash % s->n_slots;

    while (s->slots[at] != NULL && (s->slots[at]->hash != hash || memcmp(s->slots[at]->ends, ends, 36) != 0))
        at = (at + 1) % s->n_slots;
    return at;
}

static void
unlink_slot(struct streams *s, size_t hole)
{
    s->slots[hole] = NULL;
    for (size_t at = (hole + 1) % s->n_slots; s->slots[at] != NULL; at = (at + 1) % s->n_slots) {
        size_t home = s->slots[at]->hash % s->n_slots;

        if ((at - home + s->n_slots) % s->n_slots < (at - hole + s->n_slots) % s->n_slots)
            continue;
        s->slots[hole] = s->slots[at];
        s->slots[at]   = NULL;
        hole           = at;
    }
}

static void
forget(struct streams *s, struct flow *flow)
{
    unlink_slot(s, slot_of(s, flow->hash, flow->ends));
    *(flow->older != NULL ? &flow->older->newer : &s->oldest) = flow->newer;
    *(flow->newer != NULL ? &flow->newer->older : &s->newest) = flow->older;
    s->n--;
    flow_free(s, flow);
}

/* Room for one stream more. */
static bool
widen(struct streams *s)
{
    size_t        wide  = s->n_slots == 0 ? SLOTS_FIRST : 2 * s->n_slots;
    struct flow **slots = calloc(wide, sizeof(*slots));

    if (slots == NULL)
        return false;
    free(s->slots);
    s->slots   = slots;
    s->n_slots = wide;
    for (struct flow *flow = s->oldest; flow != NULL; flow = flow->newer)
        s->slots[slot_of(s, flow->hash, flow->ends)] = flow;
    return true;
}

static struct flow *
flow_of(struct streams *s, const unsigned char ends[36], bool make)
{
    uint64_t     hash = near__hash_fixed((near_bytes){ ends, 36 });
    size_t       at   = slot_of(s, hash, ends);
    struct flow *flow = s->slots[at];

    if (flow != NULL || !make)
        return flow;
    if (s->n == STREAMS_MOST)
        forget(s, s->oldest);
    if (2 * (s->n + 1) > s->n_slots && !widen(s))
        return NULL;
    at   = slot_of(s, hash, ends);
    flow = calloc(1, sizeof(*flow));
    if (flow == NULL)
        return NULL;
    memcpy(flow->ends, ends, 36);
    flow->hash                                            = hash;
    flow->older                                           = s->newest;
    *(s->newest != NULL ? &s->newest->newer : &s->oldest) = flow;
    s->newest                                             = flow;
    s->slots[at]                                          = flow;
    s->n++;
    return flow;
}

/* Bytes that are next in their turn, or partly known already. */
static bool
deliver(struct streams *s, struct flow *flow, uint32_t seq, const unsigned char *bytes, size_t size)
{
    uint32_t known = flow->next - seq;

    if (known >= size) /* not as a signed number: half the numbers away, 2^31 has no positive one */
        return true;
    flow->next = seq + (uint32_t)size;
    return decode(s, &flow->decoder, bytes + known, size - known);
}

static bool
deliver_waiting(struct streams *s, struct flow *flow, bool over_holes)
{
    struct piece *piece;
    bool          ok = true;

    while (ok && (piece = flow->waits) != NULL) {
        int32_t hole = (int32_t)(piece->seq - flow->next);

        if (hole > 0 && !over_holes)
            return true;
        if (hole > 0) {
            miss(s, &flow->decoder, (uint64_t)hole);
            flow->next = piece->seq;
        }
        ok          = deliver(s, flow, piece->seq, piece->bytes, piece->size);
        flow->waits = piece->next;
        flow->waiting -= piece->size;
        s->waiting -= piece->size;
        free(piece);
    }
    return ok;
}

static bool
keep_waiting(struct streams *s, struct flow *flow, uint32_t seq, const unsigned char *bytes, size_t size)
{
    struct piece **at = &flow->waits, *piece = malloc(sizeof(*piece) + size);

    if (piece == NULL)
        return false;
    s->counts.reordered++;
    piece->seq  = seq;
    piece->size = size;
    memcpy(piece->bytes, bytes, size);
    while (*at != NULL && (int32_t)((*at)->seq - seq) <= 0)
        at = &(*at)->next;
    piece->next = *at;
    *at         = piece;
    flow->waiting += size;
    s->waiting += size;
    if (flow->waiting > WAITS_MOST || s->waiting > ALL_WAIT)
        return deliver_waiting(s, flow, true); /* it will not come */
    return true;
}

static bool
take_data(struct streams *s, struct flow *flow, uint32_t seq, const unsigned char *bytes, size_t captured,
          size_t length)
{
    int32_t ahead;
    bool    ok;

    if (!flow->started) { /* in the middle of something */
        flow->started        = true;
        flow->next           = seq;
        flow->decoder.state  = LOST;
        flow->decoder.begins = true;
    }
    ahead = (int32_t)(seq - flow->next);
    if (ahead < 0)
        s->counts.again++;
    if (ahead > 0)
        return keep_waiting(s, flow, seq, bytes, captured);
    ok = deliver(s, flow, seq, bytes, captured);
    if (captured < length && (int32_t)(seq + (uint32_t)length - flow->next) > 0) { /* cut by the capture */
        miss(s, &flow->decoder, (uint32_t)(seq + (uint32_t)length - flow->next));
        flow->next = seq + (uint32_t)length;
    }
    return ok && deliver_waiting(s, flow, false);
}

static uint16_t
be16(const unsigned char *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

static uint32_t
be32(const unsigned char *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

/* `length`: of the segment, on the wire. */
static bool
take_segment(struct streams *s, unsigned char ends[36], const unsigned char *at, size_t captured,
             size_t length)
{
    size_t       head;
    unsigned     flags;
    uint32_t     seq;
    struct flow *flow;
    bool         ok = true;

    if (captured < 20)
        return true;
    head  = (size_t)(at[12] >> 4) * 4;
    flags = at[13];
    seq   = be32(at + 4);
    if (head < 20 || head > length)
        return true;
    s->counts.tcp++;
    memcpy(ends + 32, at, 4);
    flow = flow_of(s, ends, (flags & SYN) || length > head);
    if (flow == NULL)
        return !((flags & SYN) || length > head);
    if ((flags & SYN) && !(flow->started && flow->next == seq + 1)) { /* a new connection */
        ok            = !flow->started || deliver_waiting(s, flow, true);
        flow->started = true;
        flow->next    = seq + 1;
        flow->client  = !(flags & ACK);
        begin(&flow->decoder);
        seq++;
    } else if (!flow->started) {
        flow->client = be16(at) >= be16(at + 2);
        s->counts.streams += flow->client;
    }
    if ((flags & (SYN | ACK)) == SYN)
        s->counts.streams++;
    if (ok && flow->client && length > head)
        ok = take_data(s, flow, seq, at + (captured < head ? captured : head),
                       captured < head ? 0 : captured - head, length - head);
    else if (length > head)
        flow->started = true;
    if (ok && (flags & (FIN | RST))) {
        ok = deliver_waiting(s, flow, (flags & RST) != 0);
        if (flow->waits == NULL)
            forget(s, flow);
    }
    return ok;
}

/* ---- IP, and what lies below */

static bool
take_ipv4(struct streams *s, const unsigned char *at, size_t captured)
{
    unsigned char ends[36] = { 0 };
    size_t        head, length;

    if (captured < 20 || at[0] >> 4 != 4)
        return true;
    head   = (size_t)(at[0] & 15) * 4;
    length = be16(at + 2);
    if (length == 0) /* left to the network card */
        length = captured;
    if (head < 20 || length < head || captured < head || at[9] != 6)
        return true;
    if ((be16(at + 6) & 0x3FFF) != 0) {
        s->counts.fragments++;
        return true;
    }
    memcpy(ends, at + 12, 4);
    memcpy(ends + 16, at + 16, 4);
    if (captured > length) /* Ethernet's padding */
        captured = length;
    return take_segment(s, ends, at + head, captured - head, length - head);
}

static bool
take_ipv6(struct streams *s, const unsigned char *at, size_t captured)
{
    unsigned char ends[36] = { 0 };
    size_t        length, head = 40;
    unsigned      next;

    if (captured < 40 || at[0] >> 4 != 6)
        return true;
    length = be16(at + 4) == 0 ? captured : (size_t)be16(at + 4) + 40;
    next   = at[6];
    memcpy(ends, at + 8, 32);
    if (captured > length)
        captured = length;
    while (next == 0 || next == 43 || next == 60) { /* options, routing, options */
        if (head + 8 > captured)
            return true;
        next = at[head];
        head += ((size_t)at[head + 1] + 1) * 8;
    }
    s->counts.fragments += next == 44;
    if (next != 6 || head > captured)
        return true;
    return take_segment(s, ends, at + head, captured - head, length - head);
}

static bool
take_ether(struct streams *s, unsigned type, const unsigned char *at, size_t captured)
{
    while ((type == 0x8100 || type == 0x88A8) && captured >= 4) { /* virtual networks */
        type = be16(at + 2);
        at += 4;
        captured -= 4;
    }
    if (type == 0x0800)
        return take_ipv4(s, at, captured);
    return type != 0x86DD || take_ipv6(s, at, captured);
}

bool
streams_link_known(unsigned link)
{
    static const unsigned known[] = { STREAMS_NULL, STREAMS_ETHERNET, STREAMS_RAW_BSD, STREAMS_RAW_OLD,
                                      STREAMS_RAW,  STREAMS_LOOP,     STREAMS_COOKED,  STREAMS_IPV4,
                                      STREAMS_IPV6, STREAMS_COOKED2 };

    for (size_t i = 0; i < NEAR_COUNT_OF(known); i++)
        if (known[i] == link)
            return true;
    return false;
}

bool
streams_packet(struct streams *s, unsigned link, const unsigned char *bytes, size_t captured, size_t length)
{
    size_t head = link == STREAMS_ETHERNET                       ? 14
                  : link == STREAMS_COOKED                       ? 16
                  : link == STREAMS_COOKED2                      ? 20
                  : link == STREAMS_NULL || link == STREAMS_LOOP ? 4
                                                                 : 0;

    (void)length; /* IP tells, and without Ethernet's padding */
    s->counts.packets++;
    if (captured <= head)
        return true;
    if (link == STREAMS_ETHERNET)
        return take_ether(s, be16(bytes + 12), bytes + head, captured - head);
    if (link == STREAMS_COOKED)
        return take_ether(s, be16(bytes + 14), bytes + head, captured - head);
    if (link == STREAMS_COOKED2)
        return take_ether(s, be16(bytes), bytes + head, captured - head);
    /* whatever the family's number is on the system that wrote it */
    return bytes[head] >> 4 == 4 ? take_ipv4(s, bytes + head, captured - head)
                                 : take_ipv6(s, bytes + head, captured - head);
}

/* ---- birth and end */

struct streams *
streams_new(streams_fn take, void *ctx)
{
    struct streams *s = calloc(1, sizeof(*s));

    if (s == NULL)
        return NULL;
    s->take = take;
    s->ctx  = ctx;
    if (!widen(s))
        streams_free(&s);
    return s;
}

void
streams_free(struct streams **out)
{
    struct streams *s = *out;
    struct flow    *flow;

    *out = NULL;
    if (s == NULL)
        return;
    while ((flow = s->oldest) != NULL) {
        s->oldest = flow->newer;
        flow_free(s, flow);
    }
    free(s->given);
    free(s->slots);
    free(s);
}

bool
streams_end(struct streams *s)
{
    bool ok = true;

    for (struct flow *flow = s->oldest; ok && flow != NULL; flow = flow->newer)
        ok = deliver_waiting(s, flow, true);
    return ok;
}

const struct streams_counts *
streams_counts(const struct streams *s)
{
    return &s->counts;
}
