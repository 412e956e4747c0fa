#include "harness/test.h"

#include "harness/trace.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#define INPUT_SIZE  65536
#define OUTPUT_SIZE 131072
#define LINE_LIMIT  65536 /* the longest line; longer ones are damage */

struct test_trace {
    FILE          *file;
    ZSTD_DStream  *stream;
    ZSTD_inBuffer  input;
    ZSTD_outBuffer output;
    size_t         at;         /* the first byte of output not yet given out */
    size_t         frame_left; /* ZSTD_decompressStream's last word: 0 between frames */
    bool           damaged;
    char           in[INPUT_SIZE];
    char           out[OUTPUT_SIZE];
    char           line[LINE_LIMIT];
};

struct test_trace *
test_trace_open(const char *path)
{
    struct test_trace *trace = calloc(1, sizeof(*trace));

    if (trace == NULL)
        return NULL;
    trace->file   = fopen(path, "re");
    trace->stream = ZSTD_createDStream();
    if (trace->file == NULL || trace->stream == NULL) {
        print_error("%s: %s\n", path, strerror(errno));
        test_trace_close(&trace);
        return NULL;
    }
    test_trace_rewind(trace);
    return trace;
}

void
test_trace_rewind(struct test_trace *trace)
{
    rewind(trace->file);
    ZSTD_initDStream(trace->stream);
    trace->input      = (ZSTD_inBuffer){ trace->in, 0, 0 };
    trace->output     = (ZSTD_outBuffer){ trace->out, OUTPUT_SIZE, 0 };
    trace->at         = 0;
    trace->frame_left = 0;
}

/* Fill `out` anew.  False at the end. */
static bool
more(struct test_trace *trace)
{
    trace->at         = 0;
    trace->output.pos = 0;
    while (trace->output.pos == 0) {
        if (trace->input.pos == trace->input.size) {
            trace->input = (ZSTD_inBuffer){ trace->in, fread(trace->in, 1, INPUT_SIZE, trace->file), 0 };
            if (trace->input.size == 0) {
                trace->damaged = trace->damaged || trace->frame_left != 0 || ferror(trace->file);
                return false;
            }
        }
        trace->frame_left = ZSTD_decompressStream(trace->stream, &trace->output, &trace->input);
        if (ZSTD_isError(trace->frame_left)) {
            trace->damaged = true;
            return false;
        }
    }
    return true;
}

/* One line into `line`, without its end; its length, or -1. */
static ssize_t
next_line(struct test_trace *trace)
{
    size_t used = 0;

    for (;;) {
        char  *from, *end;
        size_t left, n;

        if (trace->at == trace->output.pos && !more(trace))
            return used > 0 && !trace->damaged ? (ssize_t)used : -1;
        from = trace->out + trace->at;
        left = trace->output.pos - trace->at;
        end  = memchr(from, '\n', left);
        n    = end == NULL ? left : (size_t)(end - from);
        if (used + n > LINE_LIMIT) {
            trace->damaged = true;
            return -1;
        }
        memcpy(trace->line + used, from, n);
        used += n;
        trace->at += n + (end != NULL);
        if (end != NULL)
            return (ssize_t)used;
    }
}

static bool
is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

bool
test_trace_next(struct test_trace *trace, near_bytes *key)
{
    ssize_t size;

    while ((size = next_line(trace)) >= 0) {
        size_t from = 0, to;

        while (from < (size_t)size && is_blank(trace->line[from]))
            from++;
        for (to = from; to < (size_t)size && !is_blank(trace->line[to]);)
            to++;
        if (to == from || trace->line[from] == '#')
            continue;
        *key = (near_bytes){ trace->line + from, to - from };
        return true;
    }
    return false;
}

bool
test_trace_line(struct test_trace *trace, near_bytes *line)
{
    ssize_t size = next_line(trace);

    if (size >= 0)
        *line = (near_bytes){ trace->line, (size_t)size };
    return size >= 0;
}

bool
test_trace_close(struct test_trace **pointer)
{
    struct test_trace *trace = *pointer;
    bool               sound;

    *pointer = NULL;
    if (trace == NULL)
        return true;
    sound = !trace->damaged;
    if (trace->file != NULL)
        fclose(trace->file);
    ZSTD_freeDStream(trace->stream);
    free(trace);
    return sound;
}

int64_t
test_trace_expected(const char *directory, const char *trace, uint64_t capacity, const char *policy)
{
    char    path[512], line[256], name[64], how[64], kind[32];
    int64_t hits = -1;
    FILE   *file;

    snprintf(path, sizeof(path), "%s/expected.tsv", directory);
    file = fopen(path, "re");
    while (file != NULL && hits < 0 && fgets(line, sizeof(line), file) != NULL) {
        uint64_t size;
        int64_t  n;

        if (sscanf(line, "%63s %" SCNu64 " %63s %" SCNd64 " %*s %31s", name, &size, how, &n, kind) == 5 &&
            strcmp(name, trace) == 0 && size == capacity && strcmp(how, policy) == 0 &&
            strcmp(kind, "exact") == 0)
            hits = n;
    }
    if (file != NULL)
        fclose(file);
    return hits;
}
