/*
 * A trace's bytes: out of a file or standard input, unpacked on the way where the first bytes say that they are packed (gzip, zstd).
 */
#ifndef NEAR_TOOLS_SOURCE_H
#define NEAR_TOOLS_SOURCE_H

#include "base/base.h"

#include <stdio.h>
#include <sys/types.h>
#ifdef NEAR_HAVE_ZLIB
#include <zlib.h>
#endif
#ifdef NEAR_HAVE_ZSTD
#include <zstd.h>
#endif

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

/* False after complaining; to be closed all the same.  "-": standard input. */
bool source_open(struct source *source, const char *path);
void source_close(struct source *source);
/* More bytes: 0 at the end, -1 after complaining. */
ssize_t source_read(struct source *source, char *out, size_t room);
/* Complain of it; false. */
bool source_bad(const struct source *source, const char *why);

#endif
