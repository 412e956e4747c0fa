/*
 * What every fuzz target starts with: a check that ends the program, and, unless an engine brings its own main (-DFUZZ_ENGINE), one that
 * replays the inputs named on the command line.  Included once, by the target, which defines LLVMFuzzerTestOneInput().
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check(bool holds)
{
    if (!holds)
        __builtin_trap();
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

#endif
