/*
 * Write-back while memory is short: the n-th allocation of the process fails, for every n, once and from then on.  A change is accepted or
 * refused whole; what was accepted is read back and reaches the store; nothing leaks (the sanitizers' leg says so).
 */
#include "integration/world.h"

#include "client/scheduler.h"
#include "harness/shortage.h"
#include "harness/sink.h"

static _Atomic bool no_timers;

near_status __real_near__timer_arm_by(struct near__scheduler *scheduler, struct near__timer *timer,
                                      int64_t when);
near_status __wrap_near__timer_arm_by(struct near__scheduler *scheduler, struct near__timer *timer,
                                      int64_t when);
near_status
__wrap_near__timer_arm_by(struct near__scheduler *scheduler, struct near__timer *timer, int64_t when)
{
    return no_timers ? NEAR_ERR_NOMEM : __real_near__timer_arm_by(scheduler, timer, when);
}

WORLD(none, TIER_NONE)
WORLD(memory, TIER_MEMORY)

/* True: nothing failed any more. */
static bool
one_round(const struct world *w, long n, bool all_from_then)
{
    static const char *const keys[]         = { "old", "new", "gone" };
    struct sink             *sink           = calloc(1, sizeof(*sink));
    char                     expected[3][8] = { "v0", "", "v0" };
    struct instance          a;
    long                     before;
    bool                     done;

    pthread_mutex_init(&sink->lock, NULL);
    OPEN(w, &a, "write.policy", "back", "write_back.interval", "1h");
    near_cache_set_store(a.cache, sink_store, sink);
    assert_int_equal(near_update(a.cache, near_key("old"), near_key("v0"), NULL), NEAR_OK);
    assert_int_equal(near_update(a.cache, near_key("gone"), near_key("v0"), NULL), NEAR_OK);
    before = shortage_count;
    shortage_begin(n, all_from_then);
    for (unsigned i = 0; i < 3; i++) {
        near_status status = i == 2 ? near_erase(a.cache, near_key(keys[i]))
                                    : near_update(a.cache, near_key(keys[i]), near_key("v1"), NULL);

        if (status == NEAR_OK)
            strcpy(expected[i], i == 2 ? "" : "v1");
        else
            assert_int_equal(status, NEAR_ERR_NOMEM);
    }
    near_flush(a.client, all_from_then ? 5 : 5000);
    shortage_end();
    done = shortage_count == before;
    assert_int_equal(near_flush(a.client, 10000 * test_slack()), NEAR_OK);
    for (unsigned i = 0; i < 3; i++) {
        near_value *value;
        near_status status = near_get(a.cache, near_key(keys[i]), &value);

        assert_string_equal(sink_value(sink, keys[i]), expected[i]);
        if (status == NEAR_OK) { /* else the caches have nothing, and the next reader would load it */
            assert_int_equal(near_value_bytes(value).size, strlen(expected[i]));
            assert_memory_equal(near_value_bytes(value).data, expected[i], strlen(expected[i]));
        }
        near_value_release(value);
    }
    close_instance(&a);
    free(sink);
    return done;
}

static void
test_every_allocation_fails_once_and_for_good(void **state)
{
    for (unsigned all = 0; all < 2; all++) {
        long n = 0;

        while (!one_round(*state, n, all == 1))
            assert_true(++n < 300);
        print_message("%ld allocations failed one by one%s\n", n, all == 1 ? ", and all behind them" : "");
        assert_true(n > 3);
    }
}

static int
has_two(void *ctx)
{
    return ((struct sink *)ctx)->writes == 2;
}

/* Without memory for its timer a queue waits for the next change, not for a full batch. */
static void
a_timer_that_was_not_armed_is_armed_by_the_next_change(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;

    OPEN(w, &a, "write.policy", "back", "write_back.interval", "10ms");
    near_cache_set_store(a.cache, sink_store, sink);
    no_timers = true;
    assert_int_equal(near_update(a.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    no_timers = false;
    assert_int_equal(near_update(a.cache, near_key("l"), near_key("v"), NULL), NEAR_OK);
    assert_true(test_wait_for(has_two, sink, 5000 * test_slack()));
    close_instance(&a);
}

/* ---- journals: one for each directory, whoever of a client's caches names it */

static near_status
open_cache(near_client *client, const char *name, const char *directory, long granted, near_cache **cache)
{
    near_config *config = near_config_new();
    near_status  status;
    near_error   error;

    assert_non_null(config);
    assert_int_equal(near_config_set(config, "write.policy", "back", &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "write_back.journal", directory, &error), NEAR_OK);
    if (granted >= 0)
        shortage_begin(granted, true);
    status = near_cache_open(client, name, config, cache, &error);
    shortage_end();
    near_config_free(config);
    return status;
}

static void
journals_of_several_caches(void **state)
{
    char            place[] = "/tmp/test_back_memory_XXXXXX", first[64], second[64], none[64], command[64];
    struct world   *w       = *state;
    struct sink    *sink    = &(struct sink)SINK();
    near_cache     *caches[3];
    struct instance a;
    near_status     status;
    long            n = 0;

    assert_non_null(mkdtemp(place));
    snprintf(first, sizeof(first), "%s/1", place);
    snprintf(second, sizeof(second), "%s/2", place);
    snprintf(none, sizeof(none), "%s/3/4", place); /* below one that there is not */
    open_with(w, &a, NULL);
    while ((status = open_cache(a.client, "one", first, n, &caches[0])) != NEAR_OK) {
        assert_int_equal(status, NEAR_ERR_NOMEM);
        assert_true(++n < 1000);
    }
    assert_true(n > 5);
    assert_int_equal(open_cache(a.client, "two", second, -1, &caches[1]), NEAR_OK);
    assert_int_equal(open_cache(a.client, "three", first, -1, &caches[2]),
                     NEAR_OK); /* shares the first one's */
    assert_int_equal(open_cache(a.client, "four", none, -1, &(near_cache *){ NULL }), NEAR_ERR_UNAVAILABLE);
    for (size_t i = 0; i < 3; i++) {
        near_cache_set_store(caches[i], sink_store, sink);
        assert_int_equal(near_update(caches[i],
                                     near_key(i == 0   ? "a"
                                              : i == 1 ? "b"
                                                       : "c"),
                                     near_key("v"), NULL),
                         NEAR_OK);
    }
    assert_int_equal(near_flush(a.client, 10000 * test_slack()), NEAR_OK);
    assert_string_equal(sink_value(sink, "a"), "v");
    assert_string_equal(sink_value(sink, "b"), "v");
    assert_string_equal(sink_value(sink, "c"), "v");
    for (size_t i = 0; i < 3; i++)
        near_cache_close(caches[i]);
    close_instance(&a);
    snprintf(command, sizeof(command), "rm -rf '%s'", place);
    assert_int_equal(system(command), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER(none, test_every_allocation_fails_once_and_for_good),
        OVER(none, a_timer_that_was_not_armed_is_armed_by_the_next_change),
        OVER(memory, test_every_allocation_fails_once_and_for_good),
        OVER(none, journals_of_several_caches),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
