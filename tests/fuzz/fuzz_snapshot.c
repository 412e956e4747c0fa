/*
 * Fuzz target: what a snapshot's file may hold.
 *
 * Input: a file, whose checksums are made right first where its first byte is odd, for else hardly anything would get past them.  The reader ends;
 * every row that it gives lies inside its block, and is written again as the same bytes.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "snapshot_file.h"

#include <errno.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

#include "base/crc32c.h"
#include "base/le.h"

/* A disk with one file, which can only be read. */
struct file {
    const uint8_t *bytes;
    size_t         size;
};

static int
open_file(void *ctx, int directory, const char *name, enum near__disk_mode mode)
{
    (void)ctx, (void)directory, (void)name, (void)mode;
    return 3;
}

static int
file_status(void *ctx, int fd, struct near__disk_status *status)
{
    const struct file *file = ctx;

    (void)fd;
    *status = (struct near__disk_status){ .size = file->size, .regular = true, .ours = true };
    return 0;
}

static ssize_t
read_file(void *ctx, int fd, void *buffer, size_t size, uint64_t at)
{
    const struct file *file = ctx;

    (void)fd;
    if (at >= file->size)
        return 0;
    size = size < file->size - at ? size : file->size - at;
    memcpy(buffer, file->bytes + at, size);
    return (ssize_t)size;
}

static int
close_file(void *ctx, int fd)
{
    (void)ctx, (void)fd;
    return 0;
}

/* The checksums that a file of these bytes would have. */
static void
make_right(uint8_t *bytes, size_t size)
{
    uint64_t id;

    if (size < NEAR__SNAP_HEAD)
        return;
    memcpy(bytes, "NEARSNAP", 8);
    near__le32_put(bytes + 8, NEAR__SNAP_NUMBER);
    near__le32_put(bytes + NEAR__SNAP_HEAD - 4, near__crc32c(0, bytes, NEAR__SNAP_HEAD - 4));
    id = near__le64_get(bytes + 16);
    for (size_t at = NEAR__SNAP_HEAD, number = 0; size - at >= NEAR__SNAP_BLOCK; number++) {
        uint8_t *block = bytes + at;
        size_t   left = size - at - NEAR__SNAP_BLOCK, rows = near__le32_get(block + 16);

        if (rows > left)
            rows = left;
        near__snap_block_seal(block, id, (uint32_t)number, rows, near__le32_get(block + 20) % 64);
        at += NEAR__SNAP_BLOCK + rows;
    }
}

static void
check_rows(near_bytes rows)
{
    struct near__snap_row row;
    size_t                at = 0, before = 0;

    while (near__snap_row_decode(&row, rows, &at)) {
        uint8_t *again = malloc(near__snap_row_size(&row));

        check(again != NULL && at > before && at <= rows.size && at - before == near__snap_row_size(&row));
        near__snap_row_encode(again, &row);
        check(memcmp(again + NEAR__SNAP_ROW, (const uint8_t *)rows.data + before + NEAR__SNAP_ROW,
                     at - before - NEAR__SNAP_ROW) == 0);
        check(memcmp(again, (const uint8_t *)rows.data + before, 13) == 0);
        free(again);
        before = at;
    }
    check(at == before);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t          *copy = malloc(size + 1); /* its own block: a read past its end is seen */
    struct file       file;
    struct near__disk disk = {
        .open = open_file, .status = file_status, .read = read_file, .close = close_file
    };
    struct near__snap_reader reader;
    enum near__snap_piece    piece;
    near_bytes               rows;
    int                      error;

    if (copy == NULL || size == 0) {
        free(copy);
        return 0;
    }
    memcpy(copy, data + 1, size - 1);
    if (data[0] & 1)
        make_right(copy, size - 1);
    file     = (struct file){ copy, size - 1 };
    disk.ctx = &file;
    if (near__snap_read_open(&reader, &disk, 3, "it") == 0) {
        while ((piece = near__snap_read_block(&reader, &rows, &error)) != NEAR__SNAP_OVER) {
            check(reader.at <= reader.size);
            if (piece == NEAR__SNAP_BROKEN)
                break;
            if (piece == NEAR__SNAP_GOOD)
                check_rows(rows);
        }
        near__snap_read_close(&reader);
    }
    free(copy);
    return 0;
}
