/* See memcached_codec.h. */
#include "l2/memcached_codec.h"

#include "base/clock.h"
#include "base/visible.h"

#include <string.h>

#define RELATIVE_MAX 2592000 /* seconds; beyond them the server reads a Unix time (rule M1) */

/* ------------------------------------------------------------------------------------------ what we say */

static char *
put(char *out, const void *bytes, size_t size)
{
    memcpy(out, bytes, size);
    return out + size;
}

static char *
put_number(char *out, uint64_t number)
{
    char   digits[20];
    size_t at = sizeof(digits);

    do
        digits[--at] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    return put(out, digits + at, sizeof(digits) - at);
}

char *
near__memcached_format_store(char *out, enum near__memcached_verb verb, near_bytes key, uint32_t flags,
                             int64_t exptime, size_t size, uint64_t unique)
{
    static const char *const verbs[] = {
        [NEAR__MEMCACHED_SET] = "set ",
        [NEAR__MEMCACHED_ADD] = "add ",
        [NEAR__MEMCACHED_CAS] = "cas ",
    };

    out    = put(out, verbs[verb], 4);
    out    = put(out, key.data, key.size);
    *out++ = ' ';
    out    = put_number(out, flags);
    *out++ = ' ';
    out    = put_number(out, (uint64_t)exptime);
    *out++ = ' ';
    out    = put_number(out, size);
    if (verb == NEAR__MEMCACHED_CAS) {
        *out++ = ' ';
        out    = put_number(out, unique);
    }
    return put(out, "\r\n", 2);
}

char *
near__memcached_format_delete(char *out, near_bytes key)
{
    out = put(out, "delete ", 7);
    out = put(out, key.data, key.size);
    return put(out, "\r\n", 2);
}

char *
near__memcached_format_asked(char *out, near_bytes key)
{
    *out++ = ' ';
    return put(out, key.data, key.size);
}

int64_t
near__memcached_exptime(int64_t ttl_ms, int64_t wall_ms)
{
    int64_t seconds = ttl_ms / 1000 + (ttl_ms % 1000 != 0) + 1;

    if (ttl_ms < 0)
        return NEAR__MEMCACHED_EXPIRED;
    if (ttl_ms == 0)
        return 0;
    if (seconds > RELATIVE_MAX)
        seconds = near__time_after(wall_ms / 1000, seconds);
    return seconds > INT32_MAX ? INT32_MAX : seconds; /* the protocol's number has 32 bits: 2038 */
}

bool
near__memcached_key_is_fit(near_bytes key)
{
    return key.size > 0 && key.size <= NEAR__MEMCACHED_KEY && near__bytes_visible(key);
}

/* ------------------------------------------------------------------------------------------ what we hear */

/* The rest of a line.  Every reader below takes what it names off the front, or says false. */
struct rest {
    const char *at, *end;
};

static bool
take_text(struct rest *rest, const char *text, size_t size)
{
    if ((size_t)(rest->end - rest->at) < size || memcmp(rest->at, text, size) != 0)
        return false;
    rest->at += size;
    return true;
}

#define TAKE(rest, text) take_text(rest, text, sizeof(text) - 1)

#define NO_OVERFLOW 19 /* digits: ten to the 19th is below two to the 64th */

/* Decimal digits, at least one, no sign, not above `most`. */
static inline bool
take_number(struct rest *rest, uint64_t most, uint64_t *number)
{
    const char *first = rest->at, *at = first;
    const char *safe = rest->end - first > NO_OVERFLOW ? first + NO_OVERFLOW : rest->end;
    uint64_t    sum  = 0, digit;

    for (; at < safe && (digit = (uint64_t)(unsigned char)*at - '0') <= 9; at++)
        sum = sum * 10 + digit;
    for (; at - first >= NO_OVERFLOW && at < rest->end && (digit = (uint64_t)(unsigned char)*at - '0') <= 9;
         at++)
        if (__builtin_mul_overflow(sum, 10, &sum) || __builtin_add_overflow(sum, digit, &sum))
            return false;
    rest->at = at;
    *number  = sum;
    return at > first && sum <= most;
}

/* What stands before the next blank, or before the end; at least one byte. */
static bool
take_word(struct rest *rest, near_bytes *word)
{
    const char *first = rest->at;
    const char *blank = memchr(first, ' ', (size_t)(rest->end - first));

    rest->at = blank != NULL ? blank : rest->end;
    *word    = (near_bytes){ first, (size_t)(rest->at - first) };
    return word->size > 0;
}

static bool
parse_value(struct near__memcached_line *line, struct rest *rest)
{
    uint64_t flags, bytes;

    if (!take_word(rest, &line->key) || line->key.size > NEAR__MEMCACHED_KEY || !TAKE(rest, " ") ||
        !take_number(rest, UINT32_MAX, &flags) || !TAKE(rest, " ") || !take_number(rest, INT32_MAX, &bytes))
        return false;
    line->flags = (uint32_t)flags;
    line->bytes = (size_t)bytes; /* the protocol's own number is an int */
    if (rest->at == rest->end)
        return true;
    return TAKE(rest, " ") && take_number(rest, UINT64_MAX, &line->unique) && rest->at == rest->end &&
           line->unique != 0;
}

static bool
parse_stat(struct near__memcached_line *line, struct rest *rest)
{
    if (!take_word(rest, &line->key))
        return false;
    if (rest->at < rest->end)
        rest->at++;
    line->text = (near_bytes){ rest->at, (size_t)(rest->end - rest->at) };
    return true;
}

/* To be shown to people: nothing that moves a cursor. */
static bool
is_printable(const struct rest *rest)
{
    for (const char *at = rest->at; at < rest->end; at++) {
        if (*at < ' ' || *at > '~')
            return false;
    }
    return true;
}

static bool
parse_version(struct near__memcached_line *line, struct rest *rest)
{
    line->text = (near_bytes){ rest->at, (size_t)(rest->end - rest->at) };
    return line->text.size > 0 && is_printable(rest);
}

static bool
parse_error(struct rest *rest)
{
    if (!TAKE(rest, "CLIENT_ERROR") && !TAKE(rest, "SERVER_ERROR"))
        return false;
    return rest->at == rest->end || (*rest->at == ' ' && is_printable(rest));
}

static const struct {
    const char               *text;
    enum near__memcached_kind kind;
    size_t                    size;
} whole[] = {
#define WHOLE(text, kind)                                                                                    \
    {                                                                                                        \
        text, NEAR__MEMCACHED_##kind, sizeof(text) - 1                                                       \
    }
    WHOLE("END", END),
    WHOLE("STORED", STORED),
    WHOLE("NOT_STORED", NOT_STORED),
    WHOLE("EXISTS", EXISTS),
    WHOLE("NOT_FOUND", NOT_FOUND),
    WHOLE("DELETED", DELETED),
    WHOLE("ERROR", ERROR),
    WHOLE("SERVER_ERROR object too large for cache", TOO_LARGE),
    WHOLE("SERVER_ERROR out of memory storing object", NO_MEMORY),
#undef WHOLE
};

/* The lines that are always the same. */
static enum near__memcached_kind
parse_whole(const struct rest *rest)
{
    size_t size = (size_t)(rest->end - rest->at);

    for (size_t i = 0; i < NEAR_COUNT_OF(whole); i++) {
        if (whole[i].size == size && memcmp(whole[i].text, rest->at, size) == 0)
            return whole[i].kind;
    }
    return NEAR__MEMCACHED_BAD;
}

static enum near__memcached_kind
parse(struct near__memcached_line *line, struct rest *rest)
{
    enum near__memcached_kind kind;

    if (TAKE(rest, "VALUE "))
        return parse_value(line, rest) ? NEAR__MEMCACHED_VALUE : NEAR__MEMCACHED_BAD;
    kind = parse_whole(rest);
    if (kind != NEAR__MEMCACHED_BAD)
        return kind;
    if (TAKE(rest, "STAT "))
        return parse_stat(line, rest) ? NEAR__MEMCACHED_STAT : NEAR__MEMCACHED_BAD;
    if (TAKE(rest, "VERSION "))
        return parse_version(line, rest) ? NEAR__MEMCACHED_VERSION : NEAR__MEMCACHED_BAD;
    return parse_error(rest) ? NEAR__MEMCACHED_ERROR : NEAR__MEMCACHED_BAD;
}

void
near__memcached_parse_line(struct near__memcached_line *line, const char *bytes, size_t size)
{
    const char *feed = memchr(bytes, '\n', size < NEAR__MEMCACHED_LINE ? size : NEAR__MEMCACHED_LINE);
    struct rest rest;

    memset(line, 0, sizeof(*line));
    if (feed == NULL) {
        line->kind = size < NEAR__MEMCACHED_LINE ? NEAR__MEMCACHED_MORE : NEAR__MEMCACHED_BAD;
        return;
    }
    line->kind = NEAR__MEMCACHED_BAD;
    if (feed == bytes || feed[-1] != '\r')
        return;
    rest       = (struct rest){ bytes, feed - 1 };
    line->kind = parse(line, &rest);
    if (line->kind == NEAR__MEMCACHED_BAD)
        return;
    line->size = (size_t)(feed + 1 - bytes);
    if (line->kind == NEAR__MEMCACHED_ERROR)
        line->text = (near_bytes){ bytes, line->size - 2 };
}
