/* See source.h. */
#include "source.h"

#include "command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 1 << 16 };

bool
source_bad(const struct source *s, const char *why)
{
    complain(EXIT_TROUBLE, "%s: %s", s->name, why);
    return false;
}

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

ssize_t
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
        return source_bad(s, strerror(errno)) ? 0 : -1;
    if (n < 0)
        return source_bad(s, "damaged compressed data") ? 0 : -1;
    if (n == 0 && s->inside)
        return source_bad(s, "ends in the middle of compressed data") ? 0 : -1;
    return n;
}

static bool
source_begin(struct source *s)
{
    static const unsigned char gzip[] = { 0x1F, 0x8B }, zstd[] = { 0x28, 0xB5, 0x2F, 0xFD };

    refill(s);
    if (s->in_size >= sizeof(gzip) && memcmp(s->in, gzip, sizeof(gzip)) == 0)
        s->packing = GZIP;
    if (s->in_size >= sizeof(zstd) && memcmp(s->in, zstd, sizeof(zstd)) == 0)
        s->packing = ZSTD;
#ifdef NEAR_HAVE_ZLIB
    if (s->packing == GZIP)
        return inflateInit2(&s->gzip, 15 + 16) == Z_OK || source_bad(s, "out of memory");
#else
    if (s->packing == GZIP)
        return source_bad(s, "compressed with gzip, and this build has no zlib");
#endif
#ifdef NEAR_HAVE_ZSTD
    if (s->packing == ZSTD) {
        s->zstd = ZSTD_createDStream();
        return s->zstd != NULL || source_bad(s, "out of memory");
    }
#else
    if (s->packing == ZSTD)
        return source_bad(s, "compressed with zstd, and this build has no libzstd");
#endif
    return true;
}

bool
source_open(struct source *s, const char *path)
{
    s->name = strcmp(path, "-") == 0 ? "standard input" : path;
    s->file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    s->in   = malloc(CHUNK);
    if (s->file == NULL)
        return source_bad(s, strerror(errno));
    if (s->in == NULL)
        return source_bad(s, "out of memory");
    if (!source_begin(s))
        return false;
    return !ferror(s->file) || source_bad(s, strerror(errno));
}

void
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
