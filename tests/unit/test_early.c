/*
 * Early refresh against the law it follows: reads that come as a Poisson stream, in virtual time, each drawing by itself as if there
 * were neither flights nor leases.  Then refreshes are expected to be e^(1/beta) at once and to begin beta*cost*(ln(rate*beta*cost) +
 * 0.577) before the end (derived from Vattani et al., PVLDB 8(8), 2015).
 */
#include "harness/test.h"

#include "client/budget.h"
#include "client/early.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static near_cache *cache;

static int
setup(void **state)
{
    (void)state;
    cache = aligned_alloc(64, (sizeof(*cache) + 63) / 64 * 64);
    if (cache == NULL)
        return -1;
    memset(cache, 0, sizeof(*cache));
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    free(cache);
    return 0;
}

static void
set_beta(int64_t thousandths)
{
    cache->settings.early_refresh_beta = thousandths;
    cache->settings.ttl                = 3600 * NEAR__SEC;
    near__early_init(cache);
}

enum { COST_US = 100000, RATE = 2000, TRIALS = 6000 };

struct outcome {
    double refreshes, lead_s;
};

/* One life of a value whose end is at 100 s: the reads near its end, until the first refresh is done. */
static struct outcome
live(int64_t beta, double skew)
{
    int64_t        end = 100 * NEAR__SEC, done = INT64_MAX;
    int64_t        reach   = beta * COST_US * 24; /* before this there is one refresh in 10^8 lives */
    struct outcome outcome = { 0 };

    for (int64_t now = end - reach; now < done;) {
        now += (int64_t)(-log(near__random_unit()) / RATE * NEAR__SEC);
        if (now >= done)
            break;
        if (now < end && !(near__early_may(cache, now, end, COST_US) &&
                           near__early_lead(cache, now, end, (uint32_t)(COST_US * skew)) > 0))
            continue;
        if (outcome.refreshes == 0) {
            done           = now + COST_US * INT64_C(1000);
            outcome.lead_s = (double)(end - now) / NEAR__SEC;
        }
        outcome.refreshes++;
    }
    return outcome;
}

static struct outcome
live_often(int64_t beta, double skew)
{
    struct outcome sum = { 0 };

    set_beta(beta);
    for (int i = 0; i < TRIALS; i++) {
        struct outcome one = live(beta, skew);

        sum.refreshes += one.refreshes / TRIALS;
        sum.lead_s += one.lead_s / TRIALS;
    }
    return sum;
}

static void
refreshes_at_once_and_their_lead_follow_the_law(void **state)
{
    static const int64_t betas[] = { 500, 1000, 2000 };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(betas); i++) {
        double         beta = (double)betas[i] / 1000, scale = beta * COST_US / 1e6;
        double         refreshes = exp(1 / beta), lead = scale * (log(RATE * scale) + 0.5772);
        struct outcome seen = live_often(betas[i], 1);

        print_message("beta %.1f: %.3f refreshes at once (law %.3f), mean lead %.4f s (law %.4f)\n", beta,
                      seen.refreshes, refreshes, seen.lead_s, lead);
        assert_true(fabs(seen.refreshes / refreshes - 1) < 0.05);
        assert_true(fabs(seen.lead_s / lead - 1) < 0.05);
    }
}

/* The control: a cost that is wrong by a fifth is noticed. */
static void
control_another_cost_breaks_the_law(void **state)
{
    double         scale = COST_US / 1e6;
    struct outcome seen  = live_often(1000, 1.2);

    (void)state;
    assert_true(fabs(seen.lead_s / (scale * (log(RATE * scale) + 0.5772)) - 1) > 0.05);
}

static void
the_chance_of_a_refresh_is_exponential_in_the_time_left(void **state)
{
    enum { N = 200000 };
    double chi2 = 0;

    (void)state;
    set_beta(1000);
    for (int k = 0; k < 10; k++) {
        int64_t left     = k * COST_US * INT64_C(500) + 1; /* half a cost apart */
        double  expected = N * exp(-(double)left / (COST_US * 1e3));
        int     hits     = 0;

        for (int i = 0; i < N; i++)
            hits += near__early_lead(cache, 0, left, COST_US) > 0;
        if (k > 0) /* at the end itself it is certain */
            chi2 += (hits - expected) * (hits - expected) / (expected * (1 - expected / N));
    }
    assert_true(chi2 < 33.7); /* 9 degrees of freedom: one run in 10000 */
}

static void
the_lead_is_clamped_and_cheap_looks_miss_nothing(void **state)
{
    (void)state;
    set_beta(10000);
    cache->settings.ttl = NEAR__SEC;
    near__early_init(cache);
    for (int i = 0; i < 10000; i++) {
        assert_int_equal(near__early_lead(cache, 0, NEAR__SEC / 4 + 1, COST_US), 0);
        assert_true(near__early_draw(COST_US, 10000, near__random_unit()) <=
                    (int64_t)COST_US * cache->early_reach);
    }
    assert_int_equal(near__early_draw(COST_US, 1000, 1), 0);
    assert_true(near__early_draw(COST_US, 1000, 0x1p-53) <= (int64_t)COST_US * 1000 * 37);
    set_beta(0);
    assert_false(near__early_may(cache, 0, 1, UINT32_MAX)); /* off: only at the end itself, which is no hit */
}

static void
the_cost_is_smoothed_and_bounded(void **state)
{
    uint32_t cost = 1000;

    (void)state;
    assert_int_equal(near__early_cost(1000, 0, 0), 1000);
    assert_int_equal(near__early_cost(2000, 1000, 0), 1250);
    for (int i = 0; i < 40; i++)
        cost = near__early_cost(5000, cost, 0);
    assert_in_range(cost, 4900, 5000);
    assert_int_equal(near__early_cost(1000000, 0, NEAR__SEC), 250000); /* a load as long as its TTL */
    assert_int_equal(near__early_cost(UINT32_MAX, UINT32_MAX, 0), UINT32_MAX);
}

/* ---- the load budget by itself */

static void
the_budget_counts_and_keeps_its_rate(void **state)
{
    struct near__budget   budget   = { 0 };
    struct near__settings settings = { .load_max_concurrent = 3 };
    int64_t               began;
    size_t                n = 0;

    (void)state;
    near__budget_init(&budget, &settings);
    assert_int_equal(near__budget_take(&budget, 2, 0), 2);
    assert_int_equal(near__budget_take(&budget, 2, 0), 1);
    assert_int_equal(near__budget_take(&budget, 1, 0), 0);
    began = test_now_ms();
    assert_int_equal(near__budget_take(&budget, 1, near__now(&near__clock_system) + 30 * NEAR_MS), 0);
    assert_true(test_now_ms() - began >= 29);
    near__budget_give(&budget, 3);
    assert_int_equal(near__budget_take(&budget, 9, 0), 3);
    near__budget_fini(&budget);

    memset(&budget, 0, sizeof(budget));
    settings = (struct near__settings){ .load_rate = 1000 };
    near__budget_init(&budget, &settings);
    began = test_now_ms();
    while (test_now_ms() - began < 200)
        n += near__budget_take(&budget, 5, near__now(&near__clock_system) + 10 * NEAR_MS);
    assert_in_range(n, 100, 200 + 20 + 25);
    near__budget_fini(&budget);
}

static void
a_slow_start_grows_to_the_whole(void **state)
{
    struct near__budget   budget   = { 0 };
    struct near__settings settings = { .load_max_concurrent = 32, .load_slow_start = 400 * NEAR_MS };
    size_t                first, half;

    (void)state;
    near__budget_init(&budget, &settings);
    assert_int_equal(near__budget_take(&budget, 100, 0), 32); /* nothing was forgotten yet */
    near__budget_give(&budget, 32);
    near__budget_slow_start(&budget);
    first = near__budget_take(&budget, 100, 0);
    assert_in_range(first, 2, 2 + 6 * test_slack());
    near__budget_give(&budget, first);
    nanosleep(&(struct timespec){ 0, 200 * NEAR_MS }, NULL);
    half = near__budget_take(&budget, 100, 0);
    assert_true(half >= 14);
    near__budget_give(&budget, half);
    nanosleep(&(struct timespec){ 0, 220 * NEAR_MS }, NULL);
    assert_int_equal(near__budget_take(&budget, 100, 0), 32);
    /* who waits for a place while it grows is woken by its growing */
    near__budget_slow_start(&budget);
    near__budget_give(&budget, 29);
    assert_true(near__budget_take(&budget, 1, near__now(&near__clock_system) + 2000 * NEAR_MS) == 1);
    near__budget_fini(&budget);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refreshes_at_once_and_their_lead_follow_the_law),
        cmocka_unit_test(control_another_cost_breaks_the_law),
        cmocka_unit_test(the_chance_of_a_refresh_is_exponential_in_the_time_left),
        cmocka_unit_test(the_lead_is_clamped_and_cheap_looks_miss_nothing),
        cmocka_unit_test(the_cost_is_smoothed_and_bounded),
        cmocka_unit_test(the_budget_counts_and_keeps_its_rate),
        cmocka_unit_test(a_slow_start_grows_to_the_whole),
    };
    return TEST_MAIN(tests, setup, teardown);
}
