/*
 * Rows of three sizes, chosen by NEAR_TEST_LEVEL: in `make check` a row takes a second or two; in `make check-long` ("long") and
 * `make soak` ("soak") it goes on until its count or its time budget (NEAR_TEST_SECONDS) is reached, and says how far it came.
 */
#ifndef NEAR_HARNESS_LONG_H
#define NEAR_HARNESS_LONG_H

#include "harness/test.h"

enum test_level { TEST_CHECK, TEST_LONG, TEST_SOAK };

enum test_level test_level(void);

/* How many rounds, how much of something: the three sizes of a row; the first is scaled by NEAR_TEST_SCALE. */
size_t test_sized(size_t check, size_t check_long, size_t soak);

/* When the row has to end (test_now_ms()): NEAR_TEST_SECONDS from now, or in two minutes. */
int64_t test_budget_ends(void);
/* So many times as long: a row whose count takes longer than others'. */
int64_t test_budget_ends_after(unsigned times);

#endif
