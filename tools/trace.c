/*
 * See trace.h.  Bytes come out of a source (a file, or a decompressor over one) into one buffer that grows with the longest line; a line
 * is handed to its format in place and ends in NUL there.
 */
#include "trace.h"

#include "command.h"

#include "base/hash.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#ifdef NEAR_HAVE_ZLIB
#include <zlib.h>
#endif
#ifdef NEAR_HAVE_ZSTD
#include <zstd.h>
#endif

enum { BUFFER_FIRST = 1 << 18, LINE_MOST = 64 << 20, CHUNK = 1 << 16, FIELDS = 3 };

struct source {
    const char *name;
    FILE       *file;
    enum { PLAIN, GZIP, ZSTD } packing;
    bool           inside; /* a compressed stream has begun and not ended */
    unsigned char *in;
    size_t         in_at, in_size;
#ifdef NEAR_HAVE_ZLIB
    z_stream gzip;
#endif
#ifdef NEAR_HAVE_ZSTD
    ZSTD_DStream *zstd;
#endif
};

struct reader {
    struct source     source;
    char             *buffer;
    size_t            at, end, room;
    bool              ended;
    unsigned long     line;
    enum trace_format format;
    trace_fn          take;
    void             *ctx;
};

static bool
bad_line(const struct reader *r, const char *why)
{
    complain(EXIT_TROUBLE, "%s:%lu: %s", r->source.name, r->line, why);
    return false;
}

static bool
bad_source(const struct source *s, const char *why)
{
    complain(EXIT_TROUBLE, "%s: %s", s->name, why);
    return false;
}

/* ---- bytes */

static bool
refill(struct source *s)
{
    s->in_at   = 0;
    s->in_size = fread(s->in, 1, CHUNK, s->file);
    return s->in_size > 0;
}

#ifdef NEAR_HAVE_ZLIB
static ssize_t
inflate_some(struct source *s, char *out, size_t room)
{
    int status;

    s->gzip.next_out  = (unsigned char *)out;
    s->gzip.avail_out = (unsigned)room;
    while (s->gzip.avail_out == room) {
        if (s->in_at == s->in_size && !refill(s))
            break;
        if (!s->inside && inflateReset(&s->gzip) != Z_OK)
            return -1;
        s->inside        = true;
        s->gzip.next_in  = s->in + s->in_at;
        s->gzip.avail_in = (unsigned)(s->in_size - s->in_at);
        status           = inflate(&s->gzip, Z_NO_FLUSH);
        s->in_at         = s->in_size - s->gzip.avail_in;
        if (status == Z_STREAM_END)
            s->inside = false;
        else if (status != Z_OK && status != Z_BUF_ERROR)
            return -1;
    }
    return (ssize_t)(room - s->gzip.avail_out);
}
#endif

#ifdef NEAR_HAVE_ZSTD
static ssize_t
unzstd_some(struct source *s, char *bytes, size_t room)
{
    ZSTD_outBuffer out = { bytes, room, 0 };

    while (out.pos == 0) {
        ZSTD_inBuffer in = { s->in, s->in_size, s->in_at };
        size_t        left;

        if (in.pos == in.size) {
            if (!refill(s))
                break;
            continue;
        }
        left     = ZSTD_decompressStream(s->zstd, &out, &in);
        s->in_at = in.pos;
        if (ZSTD_isError(left))
            return -1;
        s->inside = left != 0;
    }
    return (ssize_t)out.pos;
}
#endif

/* More bytes: 0 at the end, -1 after complaining. */
static ssize_t
source_read(struct source *s, char *out, size_t room)
{
    ssize_t n = -1;

    if (s->packing == PLAIN && s->in_at < s->in_size) { /* what was looked at to know */
        n = (ssize_t)(s->in_size - s->in_at < room ? s->in_size - s->in_at : room);
        memcpy(out, s->in + s->in_at, (size_t)n);
        s->in_at += (size_t)n;
    } else if (s->packing == PLAIN) {
        n = (ssize_t)fread(out, 1, room, s->file);
    }
#ifdef NEAR_HAVE_ZLIB
    if (s->packing == GZIP)
        n = inflate_some(s, out, room);
#endif
#ifdef NEAR_HAVE_ZSTD
    if (s->packing == ZSTD)
        n = unzstd_some(s, out, room);
#endif
    if (ferror(s->file))
        return bad_source(s, strerror(errno)) ? 0 : -1;
    if (n < 0)
        return bad_source(s, "damaged compressed data") ? 0 : -1;
    if (n == 0 && s->inside)
        return bad_source(s, "ends in the middle of compressed data") ? 0 : -1;
    return n;
}

static bool
source_begin(struct source *s)
{
    static const unsigned char gzip[] = { 0x1F, 0x8B }, zstd[] = { 0x28, 0xB5, 0x2F, 0xFD };
    static const unsigned char pcap[][4] = { { 0xD4, 0xC3, 0xB2, 0xA1 },
                                             { 0xA1, 0xB2, 0xC3, 0xD4 },
                                             { 0x4D, 0x3C, 0xB2, 0xA1 },
                                             { 0x0A, 0x0D, 0x0D, 0x0A } };

    refill(s);
    if (s->in_size >= sizeof(gzip) && memcmp(s->in, gzip, sizeof(gzip)) == 0)
        s->packing = GZIP;
    if (s->in_size >= sizeof(zstd) && memcmp(s->in, zstd, sizeof(zstd)) == 0)
        s->packing = ZSTD;
    for (size_t i = 0; s->in_size >= 4 && i < NEAR_COUNT_OF(pcap); i++)
        if (memcmp(s->in, pcap[i], 4) == 0)
            return bad_source(s, "a packet capture: this build reads none; record with redis-cli MONITOR");
#ifdef NEAR_HAVE_ZLIB
    if (s->packing == GZIP)
        return inflateInit2(&s->gzip, 15 + 16) == Z_OK || bad_source(s, "out of memory");
#else
    if (s->packing == GZIP)
        return bad_source(s, "compressed with gzip, and this build has no zlib");
#endif
#ifdef NEAR_HAVE_ZSTD
    if (s->packing == ZSTD) {
        s->zstd = ZSTD_createDStream();
        return s->zstd != NULL || bad_source(s, "out of memory");
    }
#else
    if (s->packing == ZSTD)
        return bad_source(s, "compressed with zstd, and this build has no libzstd");
#endif
    return true;
}

static bool
source_open(struct source *s, const char *path)
{
    s->name = strcmp(path, "-") == 0 ? "standard input" : path;
    s->file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    s->in   = malloc(CHUNK);
    if (s->file == NULL)
        return bad_source(s, strerror(errno));
    if (s->in == NULL)
        return bad_source(s, "out of memory");
    if (!source_begin(s))
        return false;
    return !ferror(s->file) || bad_source(s, strerror(errno));
}

static void
source_close(struct source *s)
{
#ifdef NEAR_HAVE_ZLIB
    if (s->packing == GZIP)
        inflateEnd(&s->gzip);
#endif
#ifdef NEAR_HAVE_ZSTD
    ZSTD_freeDStream(s->zstd);
#endif
    if (s->file != NULL && s->file != stdin)
        fclose(s->file);
    free(s->in);
}

/* ---- lines */

static bool
make_room(struct reader *r)
{
    char *larger;

    if (r->at > 0) {
        memmove(r->buffer, r->buffer + r->at, r->end - r->at);
        r->end -= r->at;
        r->at = 0;
    }
    if (r->end + 1 < r->room)
        return true;
    r->line++;
    if (r->room >= LINE_MOST)
        return bad_line(r, "a line of more than 64 MiB: not a trace that I know");
    larger = realloc(r->buffer, r->room * 2);
    if (larger == NULL)
        return bad_line(r, "out of memory");
    r->line--;
    r->buffer = larger;
    r->room *= 2;
    return true;
}

enum line { LINE, NO_MORE, NO_GOOD };

/* The next one, its end replaced by NUL. */
static enum line
next_line(struct reader *r, char **line, size_t *size)
{
    size_t searched = 0;

    for (;;) {
        char   *from = r->buffer + r->at, *end = memchr(from + searched, '\n', r->end - r->at - searched);
        ssize_t n;

        if (end == NULL && r->ended && r->at < r->end)
            end = r->buffer + r->end;
        if (end != NULL) {
            *line = from;
            *size = (size_t)(end - from);
            if (*size > 0 && from[*size - 1] == '\r')
                --*size;
            from[*size] = '\0';
            r->at       = (size_t)(end - r->buffer) + (end < r->buffer + r->end);
            r->line++;
            return LINE;
        }
        if (r->ended)
            return NO_MORE;
        searched = r->end - r->at;
        if (!make_room(r))
            return NO_GOOD;
        n = source_read(&r->source, r->buffer + r->end, r->room - 1 - r->end);
        if (n < 0)
            return NO_GOOD;
        r->end += (size_t)n;
        r->ended = n == 0;
    }
}

/* ---- formats */

static bool
give(struct reader *r, uint64_t hash, size_t key_size, uint32_t value_size)
{
    struct trace_request request = { hash, (uint32_t)key_size, value_size };

    return r->take(r->ctx, &request) || bad_line(r, "out of memory");
}

static bool
read_size(const char *text, uint32_t *size)
{
    unsigned long long n;
    char              *end;

    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    n     = strtoull(text, &end, 10);
    *size = (uint32_t)n;
    return *end == '\0' && errno == 0 && n < TRACE_NO_SIZE;
}

/* The next word of a line, ended in place; NULL: there is none.  *at moves behind it. */
static char *
next_word(char **at)
{
    char *word = *at + strspn(*at, " \t"), *end;

    if (*word == '\0')
        return NULL;
    end  = word + strcspn(word, " \t");
    *at  = end + (*end != '\0');
    *end = '\0';
    return word;
}

static bool
take_key(struct reader *r, char *line)
{
    char    *key = next_word(&line), *size_word = next_word(&line);
    uint32_t size = TRACE_NO_SIZE;

    if (size_word != NULL && (!read_size(size_word, &size) || next_word(&line) != NULL))
        return bad_line(r, "expected KEY or KEY SIZE");
    return give(r, near__hash_fixed(near_key(key)), strlen(key), size);
}

static size_t
split_commas(char *line, char *fields[FIELDS])
{
    size_t n = 0;

    for (char *at = line; at != NULL && n <= FIELDS; n++) {
        char *comma = strchr(at, ',');

        if (n < FIELDS)
            fields[n] = at;
        if (comma != NULL)
            *comma++ = '\0';
        at = comma;
    }
    return n;
}

static bool
is_number(const char *text)
{
    char *end;

    if (!isdigit((unsigned char)*text) && *text != '.' && *text != '-')
        return false;
    (void)strtod(text, &end);
    return *end == '\0';
}

static bool
take_csv(struct reader *r, char *line, bool first)
{
    char    *fields[FIELDS];
    size_t   n    = split_commas(line, fields);
    uint32_t size = TRACE_NO_SIZE;

    if (first && n >= 2 && n <= FIELDS && strncasecmp(fields[0], "time", 4) == 0)
        return true;
    if (n < 2 || n > FIELDS || !is_number(fields[0]) || *fields[1] == '\0' ||
        (n == FIELDS && !read_size(fields[2], &size)))
        return bad_line(r, "expected TIME,KEY or TIME,KEY,SIZE");
    return give(r, near__hash_fixed(near_key(fields[1])), strlen(fields[1]), size);
}

static int
hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* A quoted argument as MONITOR writes it, unescaped in place.  False: it does not end, or has an escape that there is none of. */
static bool
next_quoted(char **at, near_bytes *argument)
{
    char *from = *at, *to;

    if (*from != '"')
        return false;
    to        = ++from;
    *argument = (near_bytes){ to, 0 };
    for (; *from != '"'; from++) {
        if (*from == '\0')
            return false;
        if (*from != '\\') {
            *to++ = *from;
            continue;
        }
        from++;
        if (*from == 'x' && hex_digit(from[1]) >= 0 && hex_digit(from[2]) >= 0) {
            *to++ = (char)(hex_digit(from[1]) * 16 + hex_digit(from[2]));
            from += 2;
        } else if (*from == '\\' || *from == '"') {
            *to++ = *from;
        } else if (*from != '\0' && strchr("nrtab", *from) != NULL) {
            *to++ = *from == 'n'   ? '\n'
                    : *from == 'r' ? '\r'
                    : *from == 't' ? '\t'
                    : *from == 'a' ? '\a'
                                   : '\b';
        } else {
            return false;
        }
    }
    argument->size = (size_t)(to - (const char *)argument->data);
    *at            = from + 1;
    return true;
}

/* An argument, quoted or not; false: malformed.  *more is false at the end of the line. */
static bool
next_argument(char **at, near_bytes *argument, bool *more)
{
    char *word;

    *at += strspn(*at, " \t");
    *more = **at != '\0';
    if (!*more)
        return true;
    if (**at == '"')
        return next_quoted(at, argument) && (**at == '\0' || **at == ' ');
    word      = next_word(at);
    *argument = near_key(word);
    return true;
}

static bool
is_word(near_bytes word, const char *text)
{
    return word.size == strlen(text) && strncasecmp(word.data, text, word.size) == 0;
}

/* The arguments behind the name of a command that reads: keys, or a key and its fields. */
static bool
take_arguments(struct reader *r, char *at, bool fields, const char *bad)
{
    near_bytes argument, entity = { NULL, 0 };
    uint64_t   hash = 0;
    bool       more = true, first = fields;
    size_t     taken = 0;

    for (;;) {
        if (!next_argument(&at, &argument, &more))
            return bad_line(r, bad);
        if (!more)
            return taken > 0 || bad_line(r, bad);
        if (first) {
            entity = argument;
            hash   = near__hash_fixed(argument);
            first  = false;
            continue;
        }
        taken++;
        if (!give(r,
                  fields ? near__hash_fixed2((near_bytes){ &hash, sizeof(hash) }, argument)
                         : near__hash_fixed(argument),
                  entity.size + argument.size, TRACE_NO_SIZE))
            return false;
    }
}

static bool
take_command(struct reader *r, char *at, const char *bad)
{
    near_bytes word;
    bool       more;

    if (!next_argument(&at, &word, &more) || !more)
        return bad_line(r, bad);
    if (is_word(word, "HMGET") || is_word(word, "HGET"))
        return take_arguments(r, at, true, bad);
    if (is_word(word, "MGET"))
        return take_arguments(r, at, false, bad);
    if (is_word(word, "GET")) {
        near_bytes key;

        if (!next_argument(&at, &key, &more) || !more)
            return bad_line(r, bad);
        return give(r, near__hash_fixed(key), key.size, TRACE_NO_SIZE);
    }
    return true; /* writes and the rest are no reads */
}

/* Past `SECONDS.MICROSECONDS [DB CLIENT] `; NULL: that is not there. */
static char *
monitor_head(char *at)
{
    size_t whole = strspn(at, "0123456789"), rest;

    if (whole == 0 || at[whole] != '.')
        return NULL;
    at += whole + 1;
    rest = strspn(at, "0123456789");
    if (rest == 0 || strncmp(at + rest, " [", 2) != 0)
        return NULL;
    at = strstr(at + rest, "] ");
    return at == NULL ? NULL : at + 2;
}

static bool
take_monitor(struct reader *r, char *line)
{
    static const char bad[] = "not a line of MONITOR: expected TIME [DB CLIENT] \"COMMAND\" \"ARGUMENT\"...";
    char             *at;

    if (strcmp(line, "OK") == 0)
        return true;
    at = monitor_head(line);
    return at != NULL ? take_command(r, at, bad) : bad_line(r, bad);
}

static bool
take_hmget(struct reader *r, char *line)
{
    static const char bad[] = "expected HMGET ENTITY FIELD...";
    near_bytes        word;
    bool              more;

    if (!next_argument(&line, &word, &more) || !more || !is_word(word, "HMGET"))
        return bad_line(r, bad);
    return take_arguments(r, line, true, bad);
}

/* By a line that may be changed. */
static enum trace_format
recognise(const char *line)
{
    char   text[256], *fields[FIELDS], *at = text;
    size_t n;

    snprintf(text, sizeof(text), "%s", line);
    if (strcmp(text, "OK") == 0 || monitor_head(text) != NULL)
        return TRACE_MONITOR;
    at += *at == '"';
    if (strncasecmp(at, "HMGET", 5) == 0 && (at[5] == ' ' || at[5] == '"'))
        return TRACE_HMGET;
    n = split_commas(text, fields);
    if (n >= 2 && n <= FIELDS && (is_number(fields[0]) || strncasecmp(fields[0], "time", 4) == 0))
        return TRACE_CSV;
    return TRACE_KEYS;
}

static bool
take_line(struct reader *r, char *line, size_t size, bool first)
{
    if (memchr(line, '\0', size) != NULL)
        return bad_line(r, "a NUL byte: not a trace that I know");
    if (r->format == TRACE_AUTO)
        r->format = recognise(line);
    switch (r->format) {
    case TRACE_CSV:
        return take_csv(r, line, first);
    case TRACE_MONITOR:
        return take_monitor(r, line);
    case TRACE_HMGET:
        return take_hmget(r, line);
    default:
        return take_key(r, line);
    }
}

bool
trace_read(const char *path, enum trace_format format, trace_fn take, void *ctx)
{
    struct reader r     = { .format = format, .take = take, .ctx = ctx, .room = BUFFER_FIRST };
    bool          first = true, ok = source_open(&r.source, path);
    enum line     got = NO_GOOD;
    char         *line;
    size_t        size;

    r.buffer = malloc(r.room);
    if (ok && r.buffer == NULL)
        ok = bad_source(&r.source, "out of memory");
    while (ok && (got = next_line(&r, &line, &size)) == LINE) {
        if (size == 0 || line[strspn(line, " \t")] == '\0' || *line == '#') {
            if (memchr(line, '\0', size) != NULL)
                ok = bad_line(&r, "a NUL byte: not a trace that I know");
            continue;
        }
        ok    = take_line(&r, line, size, first);
        first = false;
    }
    source_close(&r.source);
    free(r.buffer);
    return ok && got == NO_MORE;
}

enum trace_format
trace_format_named(const char *name)
{
    static const char *const names[] = { "auto", "keys", "csv", "monitor", "hmget" };

    for (int i = 0; i < (int)NEAR_COUNT_OF(names); i++)
        if (strcmp(names[i], name) == 0)
            return (enum trace_format)i;
    return (enum trace_format) - 1;
}
