/*
 * The memcached text protocol, as far as we speak it: commands to bytes, and bytes to lines.  No I/O, no
 * memory, no state: whoever has a connection owns its buffer and asks here what lies at its front.
 *
 * Nothing that a server says is believed.  A line is one of the forms below to the byte, or it is BAD and
 * its connection is over: after an answer that does not fit, every later one would be taken for another
 * command's (rule L2).  What can never happen: that a byte outside the buffer is read, that a number wraps,
 * that a key longer than a key can be is looked at, or that a size is used before it was compared with what
 * its reader would take.
 */
#ifndef NEAR_L2_MEMCACHED_CODEC_H
#define NEAR_L2_MEMCACHED_CODEC_H

#include "base/base.h"

#define NEAR__MEMCACHED_KEY 250 /* bytes: the server's own limit */
/* Longest line that is waited for.  A VALUE line has 250 bytes of key and three numbers; longer ones are
 * error texts and statistics, of which the server's are all below 512. */
#define NEAR__MEMCACHED_LINE 1024

/* ---- what we say */

enum near__memcached_verb { NEAR__MEMCACHED_SET, NEAR__MEMCACHED_ADD, NEAR__MEMCACHED_CAS };

/* Room that any of the functions below fills at most. */
#define NEAR__MEMCACHED_COMMAND (NEAR__MEMCACHED_KEY + 96)

/* Each writes to `out` and returns what follows the last byte written. */

/* "verb key flags exptime size [unique]\r\n"; the value and "\r\n" follow. */
char *near__memcached_format_store(char *out, enum near__memcached_verb verb, near_bytes key, uint32_t flags,
                                   int64_t exptime, size_t size, uint64_t unique);
/* "delete key\r\n" */
char *near__memcached_format_delete(char *out, near_bytes key);
/* " key": what stands between "get" or "gets" and "\r\n", once for each key. */
char *near__memcached_format_asked(char *out, near_bytes key);

/* A TTL as the protocol wants it (rule M1): 0 for ever; below 0 gone at once; up to 30 days relative, beyond
 * that absolute; rounded up, and one second more, because the server's clock ticks in whole seconds and an
 * item of one second may live for a moment only. */
int64_t near__memcached_exptime(int64_t ttl_ms, int64_t wall_ms);
/* An absolute time long gone: what is stored with it is not there. */
#define NEAR__MEMCACHED_EXPIRED 2592001
/* 1 to 250 bytes of 0x21 .. 0x7E (rule L4). */
bool near__memcached_key_is_fit(near_bytes key);

/* ---- what we hear */

enum near__memcached_kind {
    NEAR__MEMCACHED_MORE, /* no whole line yet */
    NEAR__MEMCACHED_BAD,  /* none of ours */
    NEAR__MEMCACHED_VALUE,
    NEAR__MEMCACHED_END,
    NEAR__MEMCACHED_STORED,
    NEAR__MEMCACHED_NOT_STORED,
    NEAR__MEMCACHED_EXISTS,
    NEAR__MEMCACHED_NOT_FOUND,
    NEAR__MEMCACHED_DELETED,
    NEAR__MEMCACHED_VERSION,
    NEAR__MEMCACHED_STAT,
    NEAR__MEMCACHED_TOO_LARGE, /* "SERVER_ERROR object too large for cache": refused, and the server has read
                                  the value to its end */
    NEAR__MEMCACHED_NO_MEMORY, /* "SERVER_ERROR out of memory storing object": the same */
    NEAR__MEMCACHED_ERROR /* ERROR, CLIENT_ERROR and every other SERVER_ERROR: where the next answer begins
                                  is anybody's guess */
};

struct near__memcached_line {
    enum near__memcached_kind kind;
    size_t                    size;   /* with its CRLF; 0 for MORE and BAD */
    near_bytes                key;    /* VALUE: whose; STAT: which */
    near_bytes                text;   /* VERSION, STAT: what; ERROR: the whole line without its CRLF */
    uint32_t                  flags;  /* VALUE ... */
    size_t                    bytes;  /* ... how long the data are, without the CRLF behind them */
    uint64_t                  unique; /* ... of an answer to `gets`: never 0 (rule L15); to `get`: 0 */
};

/* What lies at bytes[0 .. size).  Texts point into it. */
void near__memcached_parse_line(struct near__memcached_line *line, const char *bytes, size_t size);

#endif
