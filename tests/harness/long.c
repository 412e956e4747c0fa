#include "harness/long.h"

#include <stdlib.h>
#include <string.h>

#define BUDGET_SECONDS 120

enum test_level
test_level(void)
{
    const char *text = getenv("NEAR_TEST_LEVEL");

    if (text == NULL)
        return TEST_CHECK;
    return strcmp(text, "soak") == 0 ? TEST_SOAK : strcmp(text, "long") == 0 ? TEST_LONG : TEST_CHECK;
}

size_t
test_sized(size_t check, size_t check_long, size_t soak)
{
    switch (test_level()) {
    case TEST_SOAK:
        return soak;
    case TEST_LONG:
        return check_long;
    default:
        return test_scale(check);
    }
}

int64_t
test_budget_ends_after(unsigned times)
{
    const char *text    = getenv("NEAR_TEST_SECONDS");
    int64_t     seconds = text != NULL && atoll(text) > 0 ? atoll(text) : BUDGET_SECONDS;

    return test_now_ms() + seconds * times * 1000;
}

int64_t
test_budget_ends(void)
{
    return test_budget_ends_after(1);
}
