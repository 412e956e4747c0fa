/*
 * Fuzz target: traces, as nearcache simulate reads them.
 *
 * Input: a first byte that says the format (0 finds it out, 1 keys, 2 csv, 3 monitor, 4 hmget, 5 packet capture), then the file.  Whatever it
 * is, it is read to its end or refused with a complaint, and what was read are requests with sizes that can be.  A capture's packets are read
 * a second time with every third one missing.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "command.h"
#include "streams.h"
#include "trace.h"

#include "tests/fuzz/fuzz.h"

#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned complaints;

/* The command's, without its printing. */
int
complain(int status, const char *format, ...)
{
    char    text[4096];
    va_list arguments;

    va_start(arguments, format);
    check(vsnprintf(text, sizeof(text), format, arguments) > 0);
    va_end(arguments);
    complaints++;
    return status;
}

static bool
take(void *ctx, const struct trace_request *request)
{
    ++*(size_t *)ctx;
    check(request->key_size < 1 << 30);
    return true;
}

static bool
take_words(void *ctx, const near_bytes *words, size_t n)
{
    static volatile unsigned char sum; /* each byte is there */

    check(n > 0);
    for (size_t i = 0; i < n; i++)
        for (size_t at = 0; words[i].data != NULL && at < words[i].size; at++)
            sum = (unsigned char)(sum + ((const unsigned char *)words[i].data)[at]);
    ++*(size_t *)ctx;
    return true;
}

/* Packets of no file at all: pieces of the input, some of them lost. */
static void
try_packets(const uint8_t *data, size_t size)
{
    static const unsigned links[]  = { STREAMS_ETHERNET, STREAMS_RAW, STREAMS_NULL, STREAMS_COOKED,
                                       STREAMS_COOKED2 };
    size_t                commands = 0, n = 0;
    struct streams       *streams = streams_new(take_words, &commands);

    check(streams != NULL);
    while (size > 2) {
        size_t         length = data[1] < size - 2 ? data[1] : size - 2;
        unsigned char *packet = malloc(length + 1); /* its own block: a read past its end is seen */

        check(packet != NULL);
        memcpy(packet, data + 2, length);
        if (n++ % 3 != 2)
            check(streams_packet(streams, links[data[0] % NEAR_COUNT_OF(links)], packet, length, length));
        free(packet);
        data += 2 + length;
        size -= 2 + length;
    }
    check(streams_end(streams));
    check(streams_counts(streams)->commands == commands);
    streams_free(&streams);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t requests = 0;
    char   path[64];
    int    fd;
    bool   read;

    if (size == 0)
        return 0;
    fd = memfd_create("trace", MFD_CLOEXEC);
    check(fd >= 0 && write(fd, data + 1, size - 1) == (ssize_t)(size - 1));
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    complaints = 0;
    read       = trace_read(path, (enum trace_format)(data[0] % (TRACE_PCAP + 1)), take, &requests);
    check(read == (complaints == 0));
    close(fd);
    try_packets(data, size);
    return 0;
}
