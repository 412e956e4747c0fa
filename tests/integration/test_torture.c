/*
 * Every public function while memory is short: the n-th allocation of the process fails, for every n, once and from then on.  What must hold
 * after each failure stands in torture.h.  Leaks are the sanitizers' leg's to see.
 */
#include "integration/torture_parts.h"

#include "harness/shortage.h"

WORLD(none, TIER_NONE)
WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(memcached, TIER_MEMCACHED)

/* Besides what shortage.h refuses. */
char *__real_strdup(const char *text);
char *__wrap_strdup(const char *text);
FILE *__real_open_memstream(char **text, size_t *size);
FILE *__wrap_open_memstream(char **text, size_t *size);
char *
__wrap_strdup(const char *text)
{
    return shortage_refuses() ? NULL : __real_strdup(text);
}
FILE *
__wrap_open_memstream(char **text, size_t *size)
{
    return shortage_refuses() ? NULL : __real_open_memstream(text, size);
}

/* All there, in both tiers. */
static void
settle(struct bench *b)
{
    for (size_t i = 0; i < KEYS; i++) {
        near_value *value;

        if (table.text[i][0] == '\0') {
            change(i);
            assert_int_equal(near_put(b->in.cache, key_of(i), near_key(table.text[i]), NULL), NEAR_OK);
        }
        assert_int_equal(near_fetch(b->in.cache, key_of(i), NULL, &value), NEAR_OK);
        near_value_release(value);
    }
    memcpy(table.older, table.text, sizeof(table.older));
}

/* True: nothing failed any more. */
static bool
one_round(struct bench *b, const struct step *step, long n, bool all_from_then)
{
    /* less than a lease, in memory; elsewhere some may be left, of a second each */
    int64_t     by = test_now_ms() + (b->world->tier == TIER_MEMORY ? 4000 : 8000) * test_slack();
    long        before;
    near_status status;
    char        what[100];

    snprintf(what, sizeof(what), "%s, allocation %ld%s", step->name, n, all_from_then ? " and on" : "");
    settle(b);
    before = shortage_count;
    shortage_begin(n, all_from_then);
    status = step->run(b);
    shortage_end();
    if (status != NEAR_OK && status != NEAR_ERR_NOMEM &&
        !(status == NEAR_ERR_UNAVAILABLE && step->may_lose_the_bus) &&
        (step->changes || status != NEAR_MISS)) /* with L1 too short of memory to keep it */
        fail_msg("%s: %s", what, near_status_text(status));
    check_rows(b, what, step->changes && status != NEAR_OK);
    if (status != NEAR_OK) {
        do
            status = step->run(b);
        while (status == NEAR_ERR_UNAVAILABLE && step->may_lose_the_bus && test_now_ms() < by);
        if (status != NEAR_OK && status != NEAR_MISS)
            fail_msg("%s, tried again: %s", what, near_status_text(status));
        check_rows(b, what, false);
    }
    if (test_now_ms() > by)
        fail_msg("%s: somebody waited for what would not come (a lease?)", what);
    return shortage_count == before;
}

static void
test_every_allocation_of_every_call_fails(void **state)
{
    struct bench b = { .world = *state };
    long         total;

    NEEDS(b.world);
    shortage_count = 0;
    memset(table.text, 0, sizeof(table.text));
    /* A server's answer to the taking of a lease may be lost with the memory for it: then the lease ends by its time.  In memory nothing is. */
    OPEN(b.world, &b.in, "l1.max_bytes", "2MiB", "grace", "1m", "load.retry", "0", "write.policy", "through",
         "lease.timeout", b.world->tier == TIER_MEMORY ? "5s" : "1s");
    near_cache_set_loader(b.in.cache, load_rows, NULL);
    near_cache_set_store(b.in.cache, store_rows, NULL);
    for (unsigned all = 0; all < 2; all++)
        for (size_t i = 0; i < STEPS; i++) {
            const long stride = stride_of(b.world, i);
            unsigned   quiet  = 0;

            /* a thread in the background may take the failure: three rounds without one are the end */
            for (long n = 0; stride > 0 && quiet < 3; n += stride) {
                assert_true(n < 2000);
                quiet = one_round(&b, step_at(i), n, all == 1) ? quiet + 1 : 0;
            }
        }
    total = shortage_count;
    close_instance(&b.in);
    parts_over();
    print_message("%ld allocations failed in %d kinds of calls\n", total, STEPS);
    assert_true(total > 100);
}

/* ---- fields: a table of cells, read and written by the calls for many */

enum {
    ROWS    = 2,
    COLUMNS = 3,
    WIDTH   = 300,
    WIDEST  = 70
}; /* more columns than a call has room for on its stack */

static struct {
    char       name[ROWS][200]; /* the second is too long for most rooms on a stack */
    near_bytes entities[ROWS];
    near_field fields[WIDEST]; /* but for the first COLUMNS there is nothing in them */
    char       now[ROWS * COLUMNS][WIDTH + 1], before[ROWS * COLUMNS][WIDTH + 1];
    unsigned   version;
} sheet;

static void
sheet_init(void)
{
    memset(&sheet, 0, sizeof(sheet));
    strcpy(sheet.name[0], "fruit");
    memset(sheet.name[1], 'e', sizeof(sheet.name[1]) - 1);
    for (size_t i = 0; i < ROWS; i++)
        sheet.entities[i] = near_key(sheet.name[i]);
    for (size_t i = 0; i < WIDEST; i++)
        sheet.fields[i] = (near_field)(1000 + i);
}

/* Whether the cell has its text, or, if that will do, the one of before. */
static bool
is_cell(near_bytes bytes, size_t cell, bool lenient)
{
    return is_text(bytes, sheet.now[cell]) || (lenient && is_text(bytes, sheet.before[cell]));
}

/* Whether L1 has the only copy, or a field that is invalidated is so in L2, too (where its cells are entries). */
static bool
may_be_lost(const struct bench *b)
{
    return b->world->tier == TIER_NONE || b->world->tier == TIER_MEMCACHED;
}

static unsigned lost; /* cells that had no value when they were read */

/* Reads all of `m` columns.  `lenient`: a change was not acknowledged, so it may be the older text, or gone. */
static near_status
read_sheet(struct bench *b, size_t m, unsigned flags, bool lenient)
{
    near_fields_options options = NEAR_FIELDS_OPTIONS_INIT;
    near_value         *values[ROWS * WIDEST];
    near_status         statuses[ROWS * WIDEST], status;

    options.flags = flags;
    status =
        near_fields_get_many(b->in.cache, sheet.entities, ROWS, sheet.fields, m, &options, values, statuses);
    for (size_t i = 0; i < ROWS * m; i++) {
        size_t row = i / m, column = i % m;

        if (statuses[i] == NEAR_OK) {
            assert_true(column < COLUMNS);
            assert_true(is_cell(near_value_bytes(values[i]), row * COLUMNS + column, lenient));
        } else {
            assert_null(values[i]);
            lost += column < COLUMNS;
            if (status == NEAR_OK && column < COLUMNS && !(lenient && may_be_lost(b)))
                fail_msg("cell %zu of row %zu: %s", column, row, near_status_text(statuses[i]));
        }
        near_value_release(values[i]);
    }
    return status;
}

static near_status
step_read(struct bench *b)
{
    return read_sheet(b, COLUMNS, 0, true); /* before is now; and what cannot be judged is a miss */
}

static near_status
step_read_below(struct bench *b)
{
    return b->world->tier == TIER_NONE ? NEAR_OK : read_sheet(b, COLUMNS, NEAR_SKIP_L1, true);
}

static near_status
step_read_wide(struct bench *b)
{
    return read_sheet(b, WIDEST, 0, true);
}

static near_status
step_gather(struct bench *b)
{
    static char         matrix[ROWS * COLUMNS][WIDTH];
    near_bytes          given[ROWS * COLUMNS] = { { NULL, 0 } };
    near_fields_options options               = NEAR_FIELDS_OPTIONS_INIT;
    uint8_t             mask[ROWS * COLUMNS];
    near_status         status;

    given[1]           = near_key("given");
    options.given      = given;
    options.timeout_ms = 5000;
    status = near_fields_get_into(b->in.cache, sheet.entities, ROWS, sheet.fields, COLUMNS, &options, matrix,
                                  WIDTH, mask, NULL);
    for (size_t i = 0; i < ROWS * COLUMNS; i++) {
        if (mask[i] == NEAR_FROM_CALLER)
            assert_true(i == 1 && strcmp(matrix[i], "given") == 0);
        else if (mask[i] != 0)
            assert_true(is_cell((near_bytes){ matrix[i], WIDTH }, i, false));
        else
            assert_true(status != NEAR_OK || may_be_lost(b));
    }
    return status;
}

static near_status
step_write(struct bench *b)
{
    near_bytes          data[ROWS * COLUMNS];
    near_status         statuses[ROWS * COLUMNS], status;
    near_fields_options options = NEAR_FIELDS_OPTIONS_INIT;
    uint8_t             mask[ROWS * COLUMNS];
    char                matrix[ROWS * COLUMNS][WIDTH];

    for (size_t i = 0; i < ROWS * COLUMNS; i++) {
        int n = snprintf(sheet.now[i], WIDTH, "cell %zu version %u ", i, ++sheet.version);

        memset(sheet.now[i] + n, 'x', (size_t)(WIDTH - n));
        data[i] = near_key(sheet.now[i]);
    }
    status =
        near_fields_put_many(b->in.cache, sheet.entities, ROWS, sheet.fields, COLUMNS, data, NULL, statuses);
    shortage_end();
    /* what is not acknowledged has left this process's L1 */
    options.flags = NEAR_ONLY_L1;
    near_fields_get_into(b->in.cache, sheet.entities, ROWS, sheet.fields, COLUMNS, &options, matrix, WIDTH,
                         mask, NULL);
    for (size_t i = 0; i < ROWS * COLUMNS; i++)
        if (mask[i] != 0 && (statuses[i] != NEAR_OK || !is_cell((near_bytes){ matrix[i], WIDTH }, i, false)))
            fail_msg("cell %zu, %s: %.20s", i, near_status_text(statuses[i]), matrix[i]);
    return status;
}

static near_status
step_forget(struct bench *b)
{
    near_status status = near_fields_invalidate(b->in.cache, sheet.fields[0]);

    for (size_t row = 0; may_be_lost(b) && row < ROWS; row++)
        sheet.now[row * COLUMNS][0] = '\0';
    return status;
}

static near_status
step_declare(struct bench *b)
{
    near_field_options options = NEAR_FIELD_OPTIONS_INIT;
    char               name[40], preset[40];
    near_field         field;
    near_status        status;

    snprintf(name, sizeof(name), "feature %u", ++sheet.version);
    snprintf(preset, sizeof(preset), "preset %u", ++sheet.version);
    options.preset = near_key(preset);
    status         = near_field_register(b->in.cache, name, &options, &field, NULL);
    assert_int_equal(status == NEAR_OK, field != 0);
    return status == NEAR_OK ? near_field_number(b->in.cache, field, NULL) : status;
}

static const struct cell_step {
    const char *name;
    near_status (*run)(struct bench *b);
} cell_steps[] = {
    { "near_fields_get_many", step_read },
    { "near_fields_get_many past L1", step_read_below },
    { "near_fields_get_many, many fields", step_read_wide },
    { "near_fields_get_into", step_gather },
    { "near_fields_put_many", step_write },
    { "near_fields_invalidate", step_forget },
    { "near_field_register", step_declare },
};

/* With memory again.  A link that had none for a message was given up, and comes back. */
static void
run_well(struct bench *b, near_status (*run)(struct bench *b))
{
    int64_t     by = test_now_ms() + 4000 * test_slack();
    near_status status;

    do
        status = run(b);
    while (status == NEAR_ERR_UNAVAILABLE && test_now_ms() < by);
    assert_int_equal(status, NEAR_OK);
}

/* Written anew, and in L1 where that will keep them.  An invalidation that was not acknowledged may be made up for after a write. */
static void
settle_cells(struct bench *b)
{
    int64_t by = test_now_ms() + 4000 * test_slack();

    do {
        run_well(b, step_write);
        lost = 0;
        run_well(b, step_read);
    } while (lost > 0 && test_now_ms() < by);
    assert_int_equal(lost, 0);
    memcpy(sheet.before, sheet.now, sizeof(sheet.now));
}

static bool
one_round_of_cells(struct bench *b, const struct cell_step *step, long n, bool all_from_then)
{
    long        before;
    near_status status;

    settle_cells(b);
    before = shortage_count;
    shortage_begin(n, all_from_then);
    status = step->run(b);
    shortage_end();
    if (status != NEAR_OK && status != NEAR_ERR_NOMEM && status != NEAR_ERR_UNAVAILABLE)
        fail_msg("%s, allocation %ld%s: %s", step->name, n, all_from_then ? " and on" : "",
                 near_status_text(status));
    run_well(b, step_read);
    run_well(b, step->run);
    return shortage_count == before;
}

static void
test_every_allocation_of_every_call_on_fields_fails(void **state)
{
    struct bench b     = { .world = *state };
    long         total = 0;

    NEEDS(b.world);
    shortage_count = 0;
    sheet_init();
    OPEN(b.world, &b.in, "l1.max_bytes", "2MiB", "ttl", "1h");
    for (unsigned all = 0; all < 2; all++)
        for (size_t i = 0; i < NEAR_COUNT_OF(cell_steps); i++) {
            unsigned quiet = 0;

            for (long n = 0; quiet < 3; n++) {
                assert_true(n < 2000);
                quiet = one_round_of_cells(&b, &cell_steps[i], n, all == 1) ? quiet + 1 : 0;
            }
        }
    total = shortage_count;
    close_instance(&b.in);
    print_message("%ld allocations failed in %zu kinds of calls\n", total, NEAR_COUNT_OF(cell_steps));
    assert_true(total > 20);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER(none, test_every_allocation_of_every_call_fails),
        OVER(memory, test_every_allocation_of_every_call_fails),
        OVER(redis, test_every_allocation_of_every_call_fails),
        OVER(memcached, test_every_allocation_of_every_call_fails),
        OVER(none, test_every_allocation_of_every_call_on_fields_fails),
        OVER(memory, test_every_allocation_of_every_call_on_fields_fails),
        OVER(redis, test_every_allocation_of_every_call_on_fields_fails),
        OVER(memcached, test_every_allocation_of_every_call_on_fields_fails),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
