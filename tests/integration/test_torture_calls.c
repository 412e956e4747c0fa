/*
 * Every public function while system calls fail: the n-th call of the process, for every n, fails, is interrupted, does a part, hangs up or
 * has nothing after all; once, and some of it from then on.  What must hold after each failure stands in torture.h, and besides: no descriptor
 * and no thread remains when all is closed.
 *
 * The control forgets keys whose writes failed, where the library keeps them until L2 has been told, and reads an older value.
 */
#include "integration/torture_parts.h"

#include "harness/calls.h"
#include "harness/long.h"
#include "harness/process.h"

WORLD(none, TIER_NONE)
WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(memcached, TIER_MEMCACHED)
WORLD(memcached_bus, TIER_MEMCACHED_BUS)

/* ---- the control */

static _Atomic bool forgetful;
static bool         stale_in_l2;

void __real_near__recovery_keep(near_cache *cache, near_bytes key, uint64_t hash);
void __wrap_near__recovery_keep(near_cache *cache, near_bytes key, uint64_t hash);
void
__wrap_near__recovery_keep(near_cache *cache, near_bytes key, uint64_t hash)
{
    if (!forgetful)
        __real_near__recovery_keep(cache, key, hash);
}

/* ---- rounds */

static const struct way {
    const char       *name;
    enum calls_spoilt how;
    bool              lasts;
} ways[] = {
    { "fails", CALLS_FAIL, false },        { "fails for good", CALLS_FAIL, true },
    { "hangs up", CALLS_HANG_UP, false },  { "is interrupted", CALLS_INTERRUPT, false },
    { "is short", CALLS_SHORT, false },    { "is short for good", CALLS_SHORT, true },
    { "has nothing", CALLS_AGAIN, false },
};

/* A connection that was lost is made again, a breaker closes, a bus subscribes: until then calls may say that they cannot. */
static bool
is_excuse(near_status status)
{
    return status == NEAR_ERR_UNAVAILABLE || status == NEAR_ERR_TIMEOUT || status == NEAR_ERR_NOMEM ||
           status == NEAR_ERR_BUSY ||
           /* a client's page that children find empty: a kernel without such pages */
           (status == NEAR_ERR_UNSUPPORTED && calls_newest == CALL_madvise);
}

/* All there, in both tiers, as soon as they can be reached. */
static void
settle(struct bench *b)
{
    int64_t by = test_now_ms() + 10000 * test_slack();

    for (size_t i = 0; i < KEYS; i++) {
        near_status status = NEAR_OK;
        near_value *value;

        if (table.text[i][0] == '\0') {
            change(i);
            do
                status = near_put(b->in.cache, key_of(i), near_key(table.text[i]), NULL);
            while (is_excuse(status) && test_now_ms() < by);
        }
        assert_int_equal(status, NEAR_OK);
        assert_int_equal(near_fetch(b->in.cache, key_of(i), NULL, &value), NEAR_OK);
        near_value_release(value);
    }
    memcpy(table.older, table.text, sizeof(table.older));
}

/* Nothing fails any more: it works within the time in which connections come back. */
static void
try_again(struct bench *b, const struct step *step, const char *what)
{
    int64_t     by = test_now_ms() + 10000 * test_slack();
    near_status status;

    do
        status = step->run(b);
    while (is_excuse(status) && test_now_ms() < by);
    if (status != NEAR_OK && status != NEAR_MISS)
        fail_msg("%s, tried again: %s", what, near_status_text(status));
    check_rows(b, what, false);
}

/* Whoever tries again what fails for good makes a pause: without one a single thread fails a thousand times and more in a millisecond.
 * What is done a byte at a time goes on, and needs none. */
static void
assert_patience(const char *what, const long *had, int64_t ms)
{
    for (int kind = 0; kind < CALLS_KINDS; kind++)
        if (calls_spoilt_by[kind] - had[kind] > 20000 + 50 * ms)
            fail_msg("%s: %s failed %ld times in %lld ms", what, calls_names[kind],
                     calls_spoilt_by[kind] - had[kind], (long long)ms);
}

/* True: nothing failed any more. */
static bool
one_round(struct bench *b, const struct step *step, const struct way *way, long n)
{
    long        before, had[CALLS_KINDS];
    int64_t     began;
    near_status status;
    char        what[160];

    settle(b);
    before = calls_spoilt;
    for (int kind = 0; kind < CALLS_KINDS; kind++)
        had[kind] = calls_spoilt_by[kind];
    began = test_now_ms();
    calls_begin(way->how, n, way->lasts);
    status = step->run(b);
    calls_end();
    snprintf(what, sizeof(what), "%s, call %ld %s (%s)", step->name, n, way->name,
             atomic_load(&calls_newest) >= 0 ? calls_names[atomic_load(&calls_newest)] : "none");
    if (status != NEAR_OK && status != NEAR_MISS && !is_excuse(status))
        fail_msg("%s: %s", what, near_status_text(status));
    if (way->how == CALLS_FAIL)
        assert_patience(what, had, test_now_ms() - began);
    if (test_now_ms() > began + 8000 * test_slack())
        fail_msg("%s: it took %lld ms", what, (long long)(test_now_ms() - began));
    check_rows(b, what, step->changes && status != NEAR_OK);
    if (status != NEAR_OK)
        try_again(b, step, what);
    return calls_spoilt == before;
}

static int
threads_are(void *ctx)
{
    return process_threads() <= *(long *)ctx;
}

static void
every_call(struct bench *b, const struct way *way)
{
    int64_t began = test_now_ms();
    long    had   = calls_spoilt;

    for (size_t i = 0; i < STEPS; i++) {
        long     stride = stride_of(b->world, i);
        unsigned quiet  = 0;

        if (stride == 1 && b->world->tier == TIER_MEMCACHED_BUS)
            stride = (long)test_sized(3, 1, 1); /* both servers: the most calls */
        /* a thread in the background may take the failure: three rounds without one are the end */
        for (long n = 0; stride > 0 && quiet < 3; n += stride) {
            assert_true(n < 5000);
            quiet = one_round(b, step_at(i), way, n) ? quiet + 1 : 0;
        }
    }
    print_message("%ld calls: each %s, %lld ms\n", calls_spoilt - had, way->name,
                  (long long)(test_now_ms() - began));
}

static void
open_bench(struct bench *b)
{
    memset(table.text, 0, sizeof(table.text));
    OPEN(b->world, &b->in, "l1.max_bytes", "2MiB", "grace", "1m", "load.retry", "0", "write.policy",
         "through", "lease.timeout", b->world->tier == TIER_MEMORY ? "5s" : "100ms", "coherence.heartbeat",
         "20ms");
    near_cache_set_loader(b->in.cache, load_rows, NULL);
    near_cache_set_store(b->in.cache, store_rows, NULL);
}

static void
test_every_system_call_of_every_function_fails(void **state)
{
    struct bench b           = { .world = *state };
    long         descriptors = process_descriptors(), threads = process_threads();
    long         had = calls_spoilt;

    NEEDS(b.world);
    open_bench(&b);
    for (size_t i = 0; i < NEAR_COUNT_OF(ways); i++)
        every_call(&b, &ways[i]);
    close_instance(&b.in);
    parts_over();
    assert_true(test_wait_for(threads_are, &threads, 5000 * test_slack()));
    assert_int_equal(process_descriptors(), descriptors);
    assert_true(calls_spoilt > had + 100);
}

/* What L2 has, as soon as it answers. */
static int
l2_answers(void *ctx)
{
    struct bench    *b       = ctx;
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value;
    near_status      status;

    options.flags = NEAR_SKIP_L1;
    status        = near_get_with(b->in.cache, key_of(0), &options, &value);
    stale_in_l2   = status == NEAR_OK && !is_text(near_value_bytes(value), table.text[0]);
    near_value_release(value);
    return status >= 0;
}

static void
control_keys_that_are_not_owed_are_read_old(void **state)
{
    struct bench b     = { .world = *state };
    unsigned     wrong = 0;

    NEEDS(b.world);
    open_bench(&b);
    for (long n = 0; n < 4; n++) {
        settle(&b);
        forgetful = true;
        calls_begin(CALLS_FAIL, n, true);
        step_update(&b);
        calls_end();
        assert_true(test_wait_for(l2_answers, &b, 5000 * test_slack()));
        wrong += stale_in_l2;
        forgetful = false;
        near_clear(b.in.cache);
    }
    close_instance(&b.in);
    assert_true(wrong > 0);
}

int
main(void)
{
#ifdef __SANITIZE_THREAD__
    return 77; /* the sanitizer's own thread and calls are in the way; what is tortured runs under it in the other programs */
#endif
    const struct CMUnitTest tests[] = {
        OVER(none, test_every_system_call_of_every_function_fails),
        OVER(memory, test_every_system_call_of_every_function_fails),
        OVER(redis, test_every_system_call_of_every_function_fails),
        OVER(memcached, test_every_system_call_of_every_function_fails),
        OVER(memcached_bus, test_every_system_call_of_every_function_fails),
        OVER(memcached, control_keys_that_are_not_owed_are_read_old),
        OVER(redis, control_keys_that_are_not_owed_are_read_old),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
