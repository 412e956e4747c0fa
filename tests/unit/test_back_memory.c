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

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER(none, test_every_allocation_fails_once_and_for_good),
        OVER(none, a_timer_that_was_not_armed_is_armed_by_the_next_change),
        OVER(memory, test_every_allocation_fails_once_and_for_good),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
