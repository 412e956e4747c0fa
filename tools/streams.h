/*
 * Commands out of captured packets: TCP put together again (out of order, sent twice, lost), and in it the protocols of Redis (RESP and
 * inline commands) and memcached (text), from the client to the server.
 *
 * Whoever has sent the SYN is the client; in connections that were there before the capture, the side with the higher port.  What the
 * other side says is not looked at.  Where bytes are missing for good, what follows is passed over until something looks like the beginning of
 * a command again, and counted.
 *
 * Memory is bounded: 1 MiB a stream that waits for what is missing, 64 MiB of all; STREAMS_MOST streams, the oldest of which is forgotten.
 */
#ifndef NEAR_TOOLS_STREAMS_H
#define NEAR_TOOLS_STREAMS_H

#include "base/base.h"

/* One command: its words, words[0] its name.  Long ones (over 64 KiB) have their size and no data.  False: no memory. */
typedef bool (*streams_fn)(void *ctx, const near_bytes *words, size_t n);

struct streams_counts {
    uint64_t packets, tcp; /* with TCP in them */
    uint64_t streams;      /* directions with data from a client */
    uint64_t commands;
    uint64_t again, reordered; /* segments */
    uint64_t lost;             /* bytes, never seen */
    uint64_t
        resyncs; /* beginnings of a command looked for anew: something was lost, or is neither protocol */
    uint64_t fragments; /* IP fragments, which are not put together */
};

/* Kinds of links, by their numbers in capture files. */
enum streams_link {
    STREAMS_NULL     = 0,
    STREAMS_ETHERNET = 1,
    STREAMS_RAW_BSD  = 12,
    STREAMS_RAW_OLD  = 14,
    STREAMS_RAW      = 101,
    STREAMS_LOOP     = 108,
    STREAMS_COOKED   = 113,
    STREAMS_IPV4     = 228,
    STREAMS_IPV6     = 229,
    STREAMS_COOKED2  = 276
};
bool streams_link_known(unsigned link);

struct streams;
struct streams *streams_new(streams_fn take, void *ctx); /* NULL: no memory */
void            streams_free(struct streams **streams);
/* The next packet, of which `captured` bytes are there and `length` were on the wire.  False: no memory. */
bool streams_packet(struct streams *streams, unsigned link, const unsigned char *bytes, size_t captured,
                    size_t length);
/* There are no more. */
bool                         streams_end(struct streams *streams);
const struct streams_counts *streams_counts(const struct streams *streams);

#endif
