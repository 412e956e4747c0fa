/*
 * Fuzz target: what a journal's files may hold.
 *
 * Input: the bytes of a segment, read as if its header were right (its origin and number are taken from where they stand): every record that
 * is found lies inside, is one that this version writes, and reads the same again; searching for records ends, in order.  The header by itself
 * must be one that this version writes, or is refused.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "journal_record.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

#include "base/le.h"

static void
check_inside(near_bytes part, const uint8_t *bytes, size_t size)
{
    const uint8_t *at = part.data;

    check(at >= bytes && at <= bytes + size && part.size <= (size_t)(bytes + size - at));
}

static void
check_record(const struct near__record_view *view, const uint8_t *bytes, uint64_t stamp)
{
    uint8_t *again = malloc(view->size);

    check(again != NULL && view->size % 8 == 0 && view->size == near__record_size(&view->record));
    check_inside(view->record.cache, bytes, view->size);
    check_inside(view->record.key, bytes, view->size);
    check_inside(view->record.data, bytes, view->size);
    near__record_encode(again, &view->record, view->sequence, view->status);
    check(near__record_seal(again, stamp, view->previous, view->synced) == view->checksum ||
          memcmp(again + NEAR__RECORD_HEADER, bytes + NEAR__RECORD_HEADER,
                 view->size - NEAR__RECORD_HEADER) != 0);
    free(again);
}

static void
check_header(const uint8_t *data, size_t size)
{
    struct near__segment_header header;
    uint8_t                     again[NEAR__SEGMENT_HEADER];

    if (!near__segment_decode(&header, data, size))
        return;
    near__segment_encode(again, &header);
    check(header.size >= NEAR__SEGMENT_HEADER && header.size <= NEAR__SEGMENT_MAX);
    check(near__segment_decode(&header, again, sizeof(again)));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t                 *copy = malloc(size + 1); /* its own block: a read past its end is seen */
    struct near__record_view view;
    uint64_t                 stamp;
    size_t                   at, before = 0;

    if (copy == NULL || size < 32 || size > 64 << 10) {
        free(copy);
        return 0;
    }
    copy = realloc(copy, size);
    check(copy != NULL);
    memcpy(copy, data, size);
    check_header(copy, size);
    stamp = near__segment_stamp(near__le64_get(copy + 24), near__le64_get(copy + 16));
    for (at = near__record_search(&view, copy, size, 0, stamp); at < size;
         at = near__record_search(&view, copy, size, at + view.size, stamp)) {
        check(at >= before && at % 8 == 0 && view.size <= size - at);
        check_record(&view, copy + at, stamp);
        before = at + view.size;
    }
    free(copy);
    return 0;
}
