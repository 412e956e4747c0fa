/*
 * Fuzz target: near__envelope_decode() over bytes that anybody may have written.
 *
 * Input: one byte n, n bytes of key, the rest is the stored entry.  Whatever it is, decoding stays inside it;
 * what it accepts points into it and encodes back to the very same bytes.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "l2/envelope.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check(bool holds)
{
    if (!holds)
        __builtin_trap();
}

static bool
inside(near_bytes part, const uint8_t *bytes, size_t size)
{
    const uint8_t *at = part.data;

    return at >= bytes && at <= bytes + size && part.size <= (size_t)(bytes + size - at);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct near__envelope      e;
    enum near__envelope_result result;
    near_bytes                 key = { NULL, 0 };
    uint8_t                   *bytes, *back;

    if (size > 0) {
        key.size = data[0] < size ? data[0] : size - 1;
        key.data = data + 1;
        data += 1 + key.size;
        size -= 1 + key.size;
    }
    bytes = malloc(size + 1);
    back  = malloc(size + 1);
    check(bytes != NULL && back != NULL);
    memcpy(bytes, data, size);
    result = near__envelope_decode(&e, (near_bytes){ bytes, size }, key);
    if (result != NEAR__ENVELOPE_CORRUPT) {
        check(inside(e.key, bytes, size) && inside(e.payload, bytes, size));
        check(near__bytes_equal(e.key, key) == (result == NEAR__ENVELOPE_OK));
        check(near__envelope_size(&e) == size);
        near__envelope_encode(&e, back);
        check(memcmp(back, bytes, size) == 0);
    }
    free(bytes);
    free(back);
    return 0;
}

#ifndef FUZZ_ENGINE
static bool
replay(const char *path)
{
    static uint8_t data[1 << 20];
    FILE          *file = fopen(path, "rb");
    size_t         size;

    if (file == NULL) {
        perror(path);
        return false;
    }
    size = fread(data, 1, sizeof(data), file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, size);
    return true;
}

int
main(int argc, char **argv)
{
    bool all = argc > 1;

    for (int i = 1; i < argc; i++)
        all = replay(argv[i]) && all;
    printf("%d inputs replayed\n", argc - 1);
    return all ? 0 : 1;
}
#endif
