/*
 * Traces of requests: files of several formats, compressed or not, as a sequence of keys by their hashes.
 *
 * A format is recognised by the first line that is neither blank nor a comment (#), compression and captures by their first bytes.  What does not fit
 * the format is an error that names file and line; nothing is guessed after that.
 */
#ifndef NEAR_TOOLS_TRACE_H
#define NEAR_TOOLS_TRACE_H

#include "base/base.h"

enum trace_format {
    TRACE_AUTO,
    TRACE_KEYS,    /* KEY or KEY SIZE in each line */
    TRACE_CSV,     /* time,key or time,key,size; a first line of names is passed over */
    TRACE_MONITOR, /* what redis-cli MONITOR prints; GET, MGET, HGET and HMGET count */
    TRACE_HMGET,   /* HMGET ENTITY FIELD... in each line: an access to each pair */
    TRACE_PCAP /* captured packets (pcap, pcapng) with Redis' or memcached's text protocol in them: the reads count */
};
enum trace_format trace_format_named(const char *name); /* TRACE_AUTO for "auto"; -1: there is none */

#define TRACE_NO_SIZE UINT32_MAX
struct trace_request {
    uint64_t hash;                 /* good in all its bits */
    uint32_t key_size, value_size; /* value_size: TRACE_NO_SIZE where the trace does not say */
};

/* Takes one request; false: no memory for it. */
typedef bool (*trace_fn)(void *ctx, const struct trace_request *request);

/* Read all of `path` ("-": standard input).  False after complaining. */
bool trace_read(const char *path, enum trace_format format, trace_fn take, void *ctx);

/* What the captures among them were made of, all together. */
struct streams_counts;
struct trace_captures {
    unsigned                     files;
    const struct streams_counts *streams;
    uint64_t                     stores, stored_bytes; /* SETs, and the values in them */
};
const struct trace_captures *trace_captures(void);

#endif
