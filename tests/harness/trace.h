/*
 * The keys of a recorded trace (tests/data/traces/NAME.keys.zst), one after the other, without holding the trace in memory.
 *
 *     struct test_trace *trace = test_trace_open(TEST_DATA "/traces/web12.keys.zst");
 *     near_bytes         key;
 *     while (test_trace_next(trace, &key))
 *         ...
 *     assert_true(test_trace_close(&trace));
 */
#ifndef TESTS_HARNESS_TRACE_H
#define TESTS_HARNESS_TRACE_H

#include "base/base.h"

struct test_trace;

/* NULL after printing why. */
struct test_trace *test_trace_open(const char *path);
/* The next key, valid until the next call; false at the end, and when the file is damaged.  Comments (#) and empty lines are passed
 * over; of a line with more fields the first is the key. */
bool test_trace_next(struct test_trace *trace, near_bytes *key);
/* Instead of the next key the next line as it is, without its end.  Alike. */
bool test_trace_line(struct test_trace *trace, near_bytes *line);
/* From the first key again. */
void test_trace_rewind(struct test_trace *trace);
/* False when what was read was damaged, or ended in the middle of a frame.  NULL inside: true. */
bool test_trace_close(struct test_trace **trace);

/* The exact number of hits that tests/data/traces/expected.tsv (in `directory`) gives; -1 when it has no such row. */
int64_t test_trace_expected(const char *directory, const char *trace, uint64_t capacity, const char *policy);

#endif
