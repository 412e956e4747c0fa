/*
 * Policies against recorded traffic: with one shard each policy gets exactly the hits that expected.tsv
 * states.  Every row of kind "exact" whose policy is in near__l1_policies is replayed, so a new policy is
 * tested from its first day.
 *
 * NEAR_TEST_SCALE below 100 leaves the three large traces out.
 */
#define TEST_NAME "l1 traces"
#include "unit/l1_help.h"

#include "harness/trace.h"

#include <stdio.h>
#include <stdlib.h>

struct row {
    char          trace[64], policy[32], kind[32];
    unsigned long capacity, hits;
};

static struct row rows[1024];
static size_t     row_count;

static int
load_expected(void **state)
{
    FILE *file = fopen(TEST_DATA "/traces/expected.tsv", "r");
    char  line[256];

    (void)state;
    if (file == NULL)
        return -1;
    while (row_count < NEAR_COUNT_OF(rows) && fgets(line, sizeof(line), file) != NULL) {
        struct row *row = &rows[row_count];
        if (sscanf(line, "%63[^\t#]\t%lu\t%31[^\t]\t%lu\t%*[^\t]\t%31s", row->trace, &row->capacity,
                   row->policy, &row->hits, row->kind) == 5)
            row_count++;
    }
    fclose(file);
    return 0;
}

/* One request: a lookup, and on a miss the key is offered. */
static bool
request(struct near__l1 *l1, near_bytes key)
{
    uint64_t            hash  = hash_of(key);
    struct near__entry *entry = near__l1_find(l1, hash, key, 0);
    bool                hit   = entry != NULL;

    if (!hit) {
        entry = near__entry_new(key, hash, 0, NULL);
        near__l1_insert(l1, entry, near__l1_fence(l1, hash), 0);
    }
    near__entry_release(&entry);
    return hit;
}

static void
replay(const struct row *row)
{
    struct near__l1_config config = { SIZE_MAX, row->capacity, 1, row->policy };
    struct near__l1       *l1     = NULL;
    unsigned long          hits   = 0;
    struct test_trace     *trace;
    near_bytes             key;
    char                   path[512];

    snprintf(path, sizeof(path), TEST_DATA "/traces/%s.keys.zst", row->trace);
    trace = test_trace_open(path);
    assert_non_null(trace);
    assert_int_equal(near__l1_new(&l1, &config), NEAR_OK);
    while (test_trace_next(trace, &key))
        hits += request(l1, key);
    near__l1_free(&l1);
    assert_true(test_trace_close(&trace));
    print_message("# %s, %lu entries, %s: %lu hits, expected %lu\n", row->trace, row->capacity, row->policy,
                  hits, row->hits);
    assert_int_equal(hits, row->hits);
}

/* All rows of a trace; `least` as many as LRU alone has. */
static void
replay_all(const char *trace, size_t least)
{
    size_t played = 0;

    for (size_t i = 0; i < row_count; i++) {
        if (strcmp(rows[i].trace, trace) != 0 || strcmp(rows[i].kind, "exact") != 0 ||
            near__l1_policy_named(rows[i].policy) == NULL)
            continue;
        replay(&rows[i]);
        played++;
    }
    assert_in_range(played, least, row_count);
}

static void
test_web12(void **state)
{
    (void)state;
    replay_all("web12", 4);
}

static void
test_orm_night(void **state)
{
    (void)state;
    if (test_scale(100) < 100)
        skip();
    replay_all("orm-night-1m", 4);
}

static void
test_oltp(void **state)
{
    (void)state;
    if (test_scale(100) < 100)
        skip();
    replay_all("oltp", 5);
}

static void
test_phases(void **state)
{
    (void)state;
    if (test_scale(100) < 100)
        skip();
    replay_all("phases", 5);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_web12),
        cmocka_unit_test(test_orm_night),
        cmocka_unit_test(test_oltp),
        cmocka_unit_test(test_phases),
    };

    return TEST_MAIN(tests, load_expected, NULL);
}
