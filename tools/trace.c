/*
 * See trace.h.  Bytes come out of a source (a file, or a decompressor over one) into one buffer that grows with the longest line; a line
 * is handed to its format in place and ends in NUL there.
 */
#include "trace.h"

#include "command.h"
#include "pcap.h"
#include "source.h"
#include "streams.h"

#include "base/hash.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { BUFFER_FIRST = 1 << 18, LINE_MOST = 64 << 20, FIELDS = 3 };

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
        if (*from == 'x' && near__hex_digit(from[1]) >= 0 && near__hex_digit(from[2]) >= 0) {
            *to++ = (char)(near__hex_digit(from[1]) * 16 + near__hex_digit(from[2]));
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

/* ---- captures */

static struct streams_counts seen;
static struct trace_captures captures = { .streams = &seen };

const struct trace_captures *
trace_captures(void)
{
    return &captures;
}

static bool
is_digits(near_bytes word)
{
    for (size_t i = 0; word.data != NULL && i < word.size; i++)
        if (!isdigit(((const unsigned char *)word.data)[i]))
            return false;
    return word.data != NULL && word.size > 0 && word.size < 10;
}

static size_t
digits(near_bytes word)
{
    size_t n = 0;

    for (size_t i = 0; i < word.size; i++)
        n = n * 10 + ((const unsigned char *)word.data)[i] - '0';
    return n;
}

/* A SET of Redis, or what memcached calls so: KEY FLAGS TIME SIZE. */
static void
note_store(const near_bytes *words, size_t n)
{
    bool size_told = n >= 5 && is_digits(words[2]) && is_digits(words[3]) && is_digits(words[4]);

    if (n < 3)
        return;
    captures.stores++;
    captures.stored_bytes += size_told ? digits(words[4]) : words[2].size;
}

/* Where the keys of a command that reads begin; 0: it does not. */
static size_t
keys_from(const near_bytes *words, size_t n)
{
    static const struct {
        const char *name;
        size_t      from;
    } reads[] = { { "GET", 1 },   { "MGET", 1 }, { "GETS", 1 }, { "HGET", 2 },
                  { "HMGET", 2 }, { "GAT", 2 },  { "GATS", 2 } };

    for (size_t i = 0; words[0].data != NULL && i < NEAR_COUNT_OF(reads); i++)
        if (is_word(words[0], reads[i].name))
            return reads[i].from < n ? reads[i].from : 0;
    return 0;
}

static bool
take_words(void *ctx, const near_bytes *words, size_t n)
{
    struct reader *r      = ctx;
    size_t         from   = keys_from(words, n);
    bool           fields = from == 2 && toupper(*(const unsigned char *)words[0].data) == 'H';
    uint64_t       hash   = 0;

    if (words[0].data != NULL && is_word(words[0], "SET"))
        note_store(words, n);
    if (fields && words[1].data == NULL)
        return true;
    if (fields)
        hash = near__hash_fixed(words[1]);
    for (size_t i = from; from > 0 && i < n; i++) {
        struct trace_request request = { .value_size = TRACE_NO_SIZE };

        if (words[i].data == NULL) /* of more than 64 KiB: no key of ours */
            continue;
        request.hash     = fields ? near__hash_fixed2((near_bytes){ &hash, sizeof(hash) }, words[i])
                                  : near__hash_fixed(words[i]);
        request.key_size = (uint32_t)(words[i].size + (fields ? words[1].size : 0));
        if (!r->take(r->ctx, &request))
            return false;
    }
    return true;
}

static void
add_counts(const struct streams_counts *one)
{
    seen.packets += one->packets;
    seen.tcp += one->tcp;
    seen.streams += one->streams;
    seen.commands += one->commands;
    seen.again += one->again;
    seen.reordered += one->reordered;
    seen.lost += one->lost;
    seen.resyncs += one->resyncs;
    seen.fragments += one->fragments;
}

static bool
read_capture(struct reader *r)
{
    struct streams *streams = streams_new(take_words, r);
    bool            ok      = streams != NULL || source_bad(&r->source, "out of memory");

    ok = ok && pcap_read(&r->source, r->buffer, r->end, streams);
    if (ok && streams_counts(streams)->commands == 0)
        ok = source_bad(&r->source,
                        streams_counts(streams)->tcp == 0
                            ? "no TCP in these packets"
                            : "no commands of Redis or memcached in these packets (encrypted, or another "
                              "protocol?)");
    if (ok)
        add_counts(streams_counts(streams));
    captures.files += ok;
    streams_free(&streams);
    return ok;
}

/* The first bytes, which tell a capture. */
static bool
read_first(struct reader *r)
{
    while (r->end < 4 && !r->ended) {
        ssize_t n = source_read(&r->source, r->buffer + r->end, r->room - 1 - r->end);

        if (n < 0)
            return false;
        r->end += (size_t)n;
        r->ended = n == 0;
    }
    return true;
}

static void
reader_close(struct reader *r)
{
    source_close(&r->source);
    free(r->buffer);
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
        ok = source_bad(&r.source, "out of memory");
    ok = ok && read_first(&r);
    if (ok &&
        (format == TRACE_PCAP || (format == TRACE_AUTO && pcap_begins((unsigned char *)r.buffer, r.end)))) {
        ok = pcap_begins((unsigned char *)r.buffer, r.end)
                 ? read_capture(&r)
                 : source_bad(&r.source, "this is no packet capture");
        reader_close(&r);
        return ok;
    }
    while (ok && (got = next_line(&r, &line, &size)) == LINE) {
        if (size == 0 || line[strspn(line, " \t")] == '\0' || *line == '#') {
            if (memchr(line, '\0', size) != NULL)
                ok = bad_line(&r, "a NUL byte: not a trace that I know");
            continue;
        }
        ok    = take_line(&r, line, size, first);
        first = false;
    }
    reader_close(&r);
    return ok && got == NO_MORE;
}

enum trace_format
trace_format_named(const char *name)
{
    static const char *const names[] = { "auto", "keys", "csv", "monitor", "hmget", "pcap" };

    for (int i = 0; i < (int)NEAR_COUNT_OF(names); i++)
        if (strcmp(names[i], name) == 0)
            return (enum trace_format)i;
    return (enum trace_format) - 1;
}
