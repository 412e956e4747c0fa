/*
 * The promises of coherence under the eyes of a checker: processes and threads on real servers, every answer judged by a history of all
 * writes (history.h, fleet.h).  One program, three sizes: in `make check` each row takes a moment, in `make check-long` and `make soak` it
 * goes on until its count or its time budget (NEAR_TEST_SECONDS) is reached, and says how far it came.
 *
 * Each row has a control: the same fleet with one cure switched off, which must be caught.  The cures are switched off by wrapping
 * the library's own functions (see the bottom of the file); which, says fleet_sabotage.
 */
#include "coherence/fleet.h"
#include "integration/world.h"

#include "client/announce.h"
#include "coherence/coherence.h"
#include "harness/proxy.h"
#include "l1/l1.h"

WORLD(redis, TIER_REDIS)
WORLD(memcached, TIER_MEMCACHED_BUS)

/* Of the row that is running. */
static struct fleet       *fleet;
static struct test_proxy  *proxy, *bus_proxy;
static struct test_server *first, *second;

static void
end_row(void)
{
    fleet_free(&fleet);
    test_proxy_stop(&proxy);
    test_proxy_stop(&bus_proxy);
    test_server_stop(&first);
    test_server_stop(&second);
}

static int
end_redis(void **state)
{
    end_row();
    return stop_redis(state);
}

static int
end_own(void **state)
{
    (void)state;
    end_row();
    return 0;
}

static int
end_memcached(void **state)
{
    end_row();
    return stop_memcached(state);
}

#define ROW(world, test)                                                                                     \
    {                                                                                                        \
#test " over " #world, test, start_##world, end_##world, NULL                                        \
    }

/* ---- how long */

enum level { CHECK, LONG, SOAK };

static enum level
level(void)
{
    const char *text = getenv("NEAR_TEST_LEVEL");

    return text == NULL ? CHECK : strcmp(text, "soak") == 0 ? SOAK : strcmp(text, "long") == 0 ? LONG : CHECK;
}

static uint64_t
sized(size_t check, size_t check_long, size_t soak)
{
    return level() == SOAK ? soak : level() == LONG ? check_long : test_scale(check);
}

/* A row's part of the time: NEAR_TEST_SECONDS is a unit of it.  Rows whose counts take longest have most units. */
static int64_t
budget_ends(int units)
{
    const char *text = getenv("NEAR_TEST_SECONDS");

    return test_now_ms() + (text != NULL && level() != CHECK ? units * atoll(text) * 1000 : 60000);
}

static int64_t
now_ns(void)
{
    return near__now(&near__clock_system);
}

/* ---- what a busy machine may add.  Promises of time are for a machine that has this program to run and nothing else. */

static struct {
    double   sum;
    unsigned n;
} hunger;

static int64_t
thread_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * 1000 * NEAR_MS + time.tv_nsec;
}

/* How long a millisecond of work takes. */
static void
feel_hunger(void)
{
    int64_t began = now_ns(), work = thread_ns();

    while (thread_ns() - work < NEAR_MS)
        ;
    hunger.sum += (double)(now_ns() - began) / NEAR_MS;
    hunger.n++;
}

/* The fleet's own threads are so many to a processor, or half as many; beyond that it is others. */
static double
starved(void)
{
    double own = (double)(fleet->plan.processes * fleet->plan.threads) / 2,
           all = hunger.sum / (hunger.n + 1e-9);

    return all > own ? all / own : 1;
}

/* What is promised is 50 ms.  A call is several wake-ups: its own thread's and those of the threads that lead its lane. */
static int64_t
allowed_late(void)
{
    return (level() == CHECK ? 300 : 50) * (int64_t)test_slack() * NEAR_MS + 5 * fleet->page->worst_noise;
}

/* ---- fleets */

/* The library's own audit looks on. */
static const char *const healthy[] = {
    "ttl", "1h",          "l2.timeout", "5s", "l2.connect_timeout", "5s", "audit.sample",
    "500", "audit.delay", "200ms",      NULL
};

static void
launch(const struct fleet_plan *plan)
{
    struct fleet_plan mine = *plan;

    if (mine.processes == 0)
        mine.processes = level() == CHECK ? 2 : FLEET_PROCESSES;
    if (mine.threads == 0)
        mine.threads = level() == CHECK ? 2 : FLEET_THREADS;
    hunger.sum = hunger.n = 0;
    fleet                 = fleet_new(&mine);
    assert_non_null(fleet);
    fleet_launch(fleet);
}

/* All of them on the straight way to their servers. */
static void
open_straight(const struct world *w)
{
    for (unsigned i = 0; i < fleet->plan.processes; i++)
        fleet_lead(fleet, i, w->l2, w->bus);
    assert_true(fleet_open(fleet));
}

/* What the audits of all processes have found. */
static void
assert_audited(void)
{
    uint64_t checked = 0, stale = 0;

    for (unsigned i = 0; i < fleet->plan.processes; i++) {
        const near_stats *stats = &fleet->page->stats[i];

        checked += stats->audit_checked;
        stale += stats->audit_stale_1s + stats->audit_stale_10s;
    }
    print_message("audit: %llu of the hits looked at again, %llu stale\n", (unsigned long long)checked,
                  (unsigned long long)stale);
    assert_int_equal(stale, 0);
}

/* What may never be, whatever the row. */
static void
assert_sound(void)
{
    const struct fleet_page *page = fleet->page;

    assert_int_equal(page->wrong, 0);
    assert_int_equal(page->impossible, 0);
    assert_int_equal(page->stale_hits, 0);
    assert_int_equal(page->own, 0);
    assert_int_equal(page->inconsistent, 0);
    assert_true(page->hits > 0);
}

/* ---- row 1: bursts of writes, then L1s beside L2 */

static void
burst(uint64_t writes, int64_t until, int64_t settle_ms)
{
    uint64_t goal = fleet->page->writes + writes;

    fleet_run(fleet);
    while (fleet->page->writes < goal && test_now_ms() < until)
        sleep_ms(5);
    fleet_quiet(fleet);
    sleep_ms(settle_ms);
    fleet_compare(fleet);
}

static void
test_row1_no_permanent_inconsistency(void **state)
{
    struct world           *w      = *state;
    uint64_t                writes = sized(10000, 10000000, 300000000), bursts = 0;
    int64_t                 began, until = budget_ends(w->memcached != NULL ? 8 : 5), compare = 0;
    const struct fleet_plan plan = {
        .keys        = level() == CHECK ? 512 : 2048,
        .batch       = 64,
        .weights     = { [FLEET_GET_MANY] = 6,
                         [FLEET_FETCH]    = 8,
                         [FLEET_PUT_MANY] = 10,
                         [FLEET_PUT]      = 1,
                         [FLEET_REMOVE]   = 1 },
        .window_ms   = 500,
        .deadline_ms = 5000,
        .warm        = true,
        .settings    = healthy,
    };

    NEEDS(w);
    launch(&plan);
    open_straight(w);
    began = test_now_ms();
    while (fleet->page->writes < writes && test_now_ms() < until) {
        burst(writes / (level() == CHECK ? 1 : 20) + 1, until, level() == CHECK ? 50 : 1000);
        bursts++;
    }
    compare = test_now_ms() - began;
    fleet_print(fleet, "row 1", compare);
    print_message("row 1: %llu writes in %llu bursts, %.0f/s: %llu entries compared, %llu permanent "
                  "inconsistencies, %llu that L2 lacks\n",
                  (unsigned long long)fleet->page->writes, (unsigned long long)bursts,
                  (double)fleet->page->writes * 1e3 / (double)(compare + 1),
                  (unsigned long long)fleet->page->compared_keys,
                  (unsigned long long)fleet->page->inconsistent, (unsigned long long)fleet->page->left);
    assert_true(fleet_end(fleet));
    assert_sound();
    assert_int_equal(fleet->page->left, 0); /* with faults it may be: what was loaded while L2 was away */
    assert_true(fleet->page->compared_keys > 100);
    assert_int_equal(fleet->page->failed_writes, 0);
}

/* A fill that is admitted although its key was written meanwhile stays for good. */
static void
inconsistencies_are_seen(const struct world *w, enum fleet_sabotage sabotage)
{
    int64_t                 until = test_now_ms() + 20000;
    const struct fleet_plan plan  = {
         .processes   = 3,
         .threads     = 2,
         .keys        = 64,
         .batch       = 4,
         .weights     = { [FLEET_GET] = 10, [FLEET_PUT] = 10 },
         .window_ms   = 500,
         .deadline_ms = 5000,
         .sabotage    = sabotage,
         .settings    = healthy,
    };

    launch(&plan);
    open_straight(w);
    while (fleet->page->inconsistent == 0 && test_now_ms() < until)
        burst(1000, until, 20);
    print_message("%llu inconsistent after %llu writes\n", (unsigned long long)fleet->page->inconsistent,
                  (unsigned long long)fleet->page->writes);
    assert_true(fleet_end(fleet));
    assert_true(fleet->page->inconsistent > 0);
}

static void
control_without_fences_inconsistencies_are_seen(void **state)
{
    NEEDS((struct world *)*state);
    inconsistencies_are_seen(*state, FLEET_NO_FENCES);
}

static void
control_who_publishes_before_writing_is_seen(void **state)
{
    NEEDS((struct world *)*state);
    inconsistencies_are_seen(*state, FLEET_PUBLISH_FIRST);
}

/* ---- row 2: every L1 hit against the window */

/* All the ways to write and to read.  A tag is carried by every value of its keys. */
#define ALL_OPS                                                                                              \
    {                                                                                                        \
        [FLEET_GET] = 40, [FLEET_GET_MANY] = 10, [FLEET_FETCH] = 20, [FLEET_FETCH_MANY] = 5,                 \
        [FLEET_PUT] = 10, [FLEET_PUT_MANY] = 4, [FLEET_REMOVE] = 3, [FLEET_EXPIRE] = 2, [FLEET_TAG] = 1,     \
    }

static void
run_until_hits(uint64_t hits, int64_t until)
{
    fleet_run(fleet);
    while (fleet->page->hits < hits && test_now_ms() < until)
        sleep_ms(5);
    fleet_quiet(fleet);
}

static void
test_row2_no_hit_is_older_than_the_window(void **state)
{
    struct world     *w    = *state;
    uint64_t          hits = sized(200000, w->memcached != NULL ? 50000000 : 100000000, 5000000000);
    int64_t           began, until = budget_ends(w->memcached != NULL ? 4 : 8);
    struct fleet_plan plan = {
        .keys        = level() == CHECK ? 256 : 1024,
        .batch       = FLEET_BATCH,
        .weights     = ALL_OPS,
        .readers     = level() == CHECK ? 1 : 3,
        .pause_us    = 200,
        .window_ms   = 500,
        .deadline_ms = 5000,
        .warm        = true,
        .settings    = healthy,
    };

    NEEDS(w);
    launch(&plan);
    open_straight(w);
    began = test_now_ms();
    run_until_hits(hits, until);
    fleet_print(fleet, "row 2", test_now_ms() - began);
    print_message("row 2: %.0f writes/s beside\n",
                  (double)fleet->page->writes * 1e3 / (double)(test_now_ms() - began + 1));
    assert_true(fleet_end(fleet));
    assert_sound();
    assert_audited();
    assert_int_equal(fleet->page->failed_writes, 0);
}

static void
control_without_a_bus_old_hits_are_seen(void **state)
{
    static const char *const settings[] = {
        "coherence.mode", "none", "l1.max_ttl", "60s", "ttl", "1h", NULL
    };
    struct world           *w     = *state;
    int64_t                 until = test_now_ms() + 20000;
    const struct fleet_plan plan  = {
         .processes   = 2,
         .threads     = 2,
         .keys        = 64,
         .batch       = 8,
         .weights     = { [FLEET_GET] = 40, [FLEET_PUT] = 10 },
         .pause_us    = 200,
         .window_ms   = 50,
         .deadline_ms = 5000,
         .settings    = settings,
    };

    NEEDS(w);
    launch(&plan);
    for (unsigned i = 0; i < fleet->plan.processes; i++)
        fleet_lead(fleet, i, w->l2, "auto");
    assert_true(fleet_open(fleet));
    fleet_run(fleet);
    while (fleet->page->stale_hits == 0 && test_now_ms() < until)
        sleep_ms(5);
    assert_true(fleet_end(fleet));
    assert_true(fleet->page->stale_hits > 0);
}

/* ---- row 3: faults of every kind on the way of half of the processes, or of the servers and processes themselves */

enum mischief { NETWORK, TIMEOUT, SLOW_CLOSE, STOP_SERVER, STOP_BUS, STOP_PROCESS, SLOW_SUBSCRIBER };

static const struct {
    enum mischief     mischief;
    struct test_fault fault;
    const char       *name;
} kinds[] = {
    { NETWORK, { TEST_FAULT_DELAY, TEST_DOWN, 40, 0 }, "latency" },
    { NETWORK, { TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 }, "down" },
    { NETWORK, { TEST_FAULT_DRIP, TEST_DOWN, 3, 64 }, "bandwidth" },
    { SLOW_CLOSE, { TEST_FAULT_BLACKHOLE, TEST_DOWN, 0, 0 }, "slow close" },
    { TIMEOUT, { TEST_FAULT_BLACKHOLE, TEST_BOTH, 0, 0 }, "timeout" },
    { NETWORK, { TEST_FAULT_RESET, TEST_DOWN, 0, 1000 }, "reset by peer" },
    { NETWORK, { TEST_FAULT_DRIP, TEST_DOWN, 1, 1 }, "slicer" },
    { NETWORK, { TEST_FAULT_CUT, TEST_DOWN, 0, 100 }, "limit of data" },
    { NETWORK, { TEST_FAULT_BLACKHOLE, TEST_DOWN, 0, 0 }, "blackhole down" },
    { NETWORK, { TEST_FAULT_BLACKHOLE, TEST_UP, 0, 0 }, "blackhole up" },
    { NETWORK, { TEST_FAULT_CUT, TEST_UP, 0, 100 }, "limit of data up" },
    { NETWORK, { TEST_FAULT_RESET, TEST_UP, 0, 0 }, "reset up" },
    { NETWORK, { TEST_FAULT_ERRATIC, TEST_DOWN, 60, 2 }, "erratic" },
    { STOP_SERVER, { .kind = TEST_FAULT_NONE }, "server stopped" },
    { STOP_BUS, { .kind = TEST_FAULT_NONE }, "bus stopped" },
    { STOP_PROCESS, { .kind = TEST_FAULT_NONE }, "process stopped" },
    { SLOW_SUBSCRIBER, { .kind = TEST_FAULT_NONE }, "slow subscriber" },
};

/* Heartbeats and windows a tenth of the usual ones, so that a fault's cycle is short. */
static const char *const quick[] = { "ttl",
                                     "1h",
                                     "l2.timeout",
                                     "50ms",
                                     "l2.connect_timeout",
                                     "50ms",
                                     "coherence.heartbeat",
                                     "10ms",
                                     "coherence.serve_window",
                                     "50ms",
                                     "lease.timeout",
                                     "100ms",
                                     NULL };

enum { QUICK_WINDOW_MS = 50, FAULT_SLACK_MS = 50, LOOK_AFTER = 5 /* faults */ };

static void
ask_redis(struct test_server *server, int argc, const char *const *argv)
{
    char out[256];

    test_redis_command(server, out, sizeof(out), argc, argv); /* stopped, or gone: then it is not asked */
}
#define ASK(server, ...)                                                                                     \
    ask_redis(server, (int)(sizeof((const char *[]){ __VA_ARGS__ }) / sizeof(char *)),                       \
              (const char *[]){ __VA_ARGS__ })

static struct test_server *
l2_server(const struct world *w)
{
    return w->memcached != NULL ? w->memcached : w->redis;
}

/* One fault for `ms`, then all is well again. */
static void
make_mischief(const struct world *w, size_t kind, size_t round, int64_t ms)
{
    /* with two servers: at the one, the other, both */
    bool at_l2 = bus_proxy == NULL || round % 3 != 1, at_bus = bus_proxy != NULL && round % 3 != 2;

    if (at_l2 && kinds[kind].fault.kind != TEST_FAULT_NONE)
        test_proxy_fault(proxy, kinds[kind].fault);
    if (at_bus && kinds[kind].fault.kind != TEST_FAULT_NONE)
        test_proxy_fault(bus_proxy, kinds[kind].fault);
    switch (kinds[kind].mischief) {
    case NETWORK:
        sleep_ms(ms);
        break;
    case TIMEOUT: /* silence, then the connections are closed */
        sleep_ms(ms / 2);
        if (at_l2)
            test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
        if (at_bus)
            test_proxy_fault(bus_proxy, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
        sleep_ms(ms / 2);
        break;
    case SLOW_CLOSE: /* the server closes, and that is not heard of */
        ASK(w->redis, "CLIENT", "KILL", "TYPE", "pubsub");
        ASK(w->redis, "CLIENT", "KILL", "TYPE", "normal");
        sleep_ms(ms);
        break;
    case STOP_SERVER:
        test_server_pause(l2_server(w));
        sleep_ms(ms);
        test_server_resume(l2_server(w));
        break;
    case STOP_BUS:
        test_server_pause(w->redis);
        sleep_ms(ms);
        test_server_resume(w->redis);
        break;
    case STOP_PROCESS:
        fleet_stop(fleet, (unsigned)round % fleet->plan.processes);
        sleep_ms(ms);
        fleet_continue(fleet, (unsigned)round % fleet->plan.processes);
        break;
    case SLOW_SUBSCRIBER: /* the server has little patience with it, and closes */
        ASK(w->redis, "CONFIG", "SET", "client-output-buffer-limit", "pubsub 64kb 32kb 1");
        fleet_stop(fleet, (unsigned)round % fleet->plan.processes);
        sleep_ms(3 * ms);
        ASK(w->redis, "CLIENT", "KILL", "TYPE", "pubsub");
        fleet_continue(fleet, (unsigned)round % fleet->plan.processes);
        ASK(w->redis, "CONFIG", "SET", "client-output-buffer-limit", "pubsub 32mb 8mb 60");
        break;
    }
    test_proxy_heal(proxy);
    if (bus_proxy != NULL)
        test_proxy_heal(bus_proxy);
}

/* Half of the processes go through proxies. */
static void
open_through_proxies(const struct world *w)
{
    unsigned half = fleet->plan.processes / 2;

    proxy = test_proxy_start(l2_server(w));
    assert_non_null(proxy);
    if (w->memcached != NULL) {
        bus_proxy = test_proxy_start(w->redis);
        assert_non_null(bus_proxy);
    }
    for (unsigned i = 0; i < fleet->plan.processes; i++) {
        bool straight = i >= half;

        fleet_lead(fleet, i, straight ? w->l2 : test_proxy_unix_uri(proxy),
                   bus_proxy == NULL ? "auto"
                   : straight        ? w->bus
                                     : test_proxy_unix_uri(bus_proxy));
    }
    assert_true(fleet_open(fleet));
}

/* Until all L1s answer again; after some seconds that is worth a word, and after many it is never. */
static int64_t
await_hits(void)
{
    int64_t since = now_ns(), took;

    feel_hunger();
    took = fleet_await_hits(fleet, since, 4000 * test_slack());
    if (took >= 0)
        return took;
    fleet_explain(fleet);
    return fleet_await_hits(fleet, since, 30000 * test_slack());
}

static struct fleet_plan
faulty_plan(void)
{
    struct fleet_plan plan = {
        .keys        = 256,
        .batch       = 16,
        .weights     = ALL_OPS,
        .readers     = 1,
        .pause_us    = 500,
        .window_ms   = QUICK_WINDOW_MS + FAULT_SLACK_MS,
        .deadline_ms = 50,
        .warm        = true,
        .settings    = quick,
    };

    plan.weights[FLEET_CLEAR] = 0;
    return plan;
}

static int
by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

/* How soon all processes had hits again, after each of n troubles; and what calls took. */
static void
report(const char *what, size_t n, int64_t *back, int64_t began, size_t slowest)
{
    const struct fleet_page *page = fleet->page;

    fleet_print(fleet, what, test_now_ms() - began);
    qsort(back, n, sizeof(*back), by_size);
    print_message(
        "%s: %zu times in %.1f s; L1s answered again p50 %.1f ms, p99 %.1f ms, at most %.1f ms after it "
        "healed (%s); calls %.1f ms beyond their deadlines at most (op %d), %llu by more than 50 ms (a "
        "thread that slept: %.1f ms; starved %.1f times)\n",
        what, n, (double)(test_now_ms() - began) / 1e3, (double)back[n / 2] / 1e6,
        (double)back[n * 99 / 100] / 1e6, (double)back[n - 1] / 1e6,
        slowest < NEAR_COUNT_OF(kinds) ? kinds[slowest].name : "all alike", (double)page->worst_late / 1e6,
        page->worst_op, (unsigned long long)page->late, (double)page->worst_noise / 1e6, starved());
}

static void
assert_survived(size_t n, const int64_t *back)
{
    const struct fleet_page *page = fleet->page;

    assert_true(fleet_end(fleet));
    assert_true(n > 0);
    assert_sound();
    assert_int_equal(page->stale_reads, 0);
    assert_true(page->worst_late <= allowed_late());
    assert_true((double)back[n * 99 / 100] <= 1e9 * test_slack() * starved());
}

/* All that was owed is paid, which is soon once nothing is wrong any more; false: it was not. */
static bool
compare_at_rest(void)
{
    bool paid;

    fleet_quiet(fleet);
    paid = fleet_await_debts(fleet, 5000 * test_slack());
    sleep_ms(50);
    fleet_compare(fleet);
    return paid;
}

static void
test_row3_faults_of_every_kind(void **state)
{
    struct world     *w      = *state;
    size_t            faults = sized(3, 500, 50000), n = 0, slowest = 0, lost = 0, owing = 0;
    int64_t          *back = calloc(faults, sizeof(*back)), until = budget_ends(6), began, worst = 0;
    struct fleet_plan plan = faulty_plan();

    NEEDS(w);
    launch(&plan);
    open_through_proxies(w);
    began = test_now_ms();
    fleet_run(fleet);
    sleep_ms(50);
    for (; n < faults && test_now_ms() < until && lost == 0; n++) {
        size_t kind = (level() == CHECK ? 5 * n + 1 : n) % NEAR_COUNT_OF(kinds);

        make_mischief(w, kind, n / NEAR_COUNT_OF(kinds), 70 + (int64_t)(n % 3) * 30);
        back[n] = await_hits();
        lost += back[n] < 0;
        if (lost > 0)
            print_message("lost at %s\n", kinds[kind].name);
        if (back[n] > worst)
            slowest = kind, worst = back[n];
        if (n % LOOK_AFTER == LOOK_AFTER - 1) { /* what is wrong now may be gone by the end */
            owing += !compare_at_rest();
            fleet_run(fleet);
        }
    }
    owing += !compare_at_rest();
    report("row 3", n, back, began, slowest);
    print_message("row 3: %llu entries compared, %llu inconsistent, %llu loaded beside an overlapping write, "
                  "%llu that L2 lacks; %zu times somebody still owed invalidations\n",
                  (unsigned long long)fleet->page->compared_keys,
                  (unsigned long long)fleet->page->inconsistent, (unsigned long long)fleet->page->ahead,
                  (unsigned long long)fleet->page->left, owing);
    assert_int_equal(lost, 0);
    assert_survived(n, back);
    assert_int_equal(owing, 0);
    free(back);
}

static void
old_hits_are_seen(const struct world *w, enum fleet_sabotage sabotage)
{
    int64_t           until = test_now_ms() + 20000;
    struct fleet_plan plan  = faulty_plan();

    plan.processes = 2;
    plan.threads   = 2;
    plan.keys      = 64;
    plan.sabotage  = sabotage;
    launch(&plan);
    open_through_proxies(w);
    fleet_run(fleet);
    for (size_t n = 0; fleet->page->stale_hits == 0 && test_now_ms() < until; n++) {
        sleep_ms(20);
        make_mischief(w, n % 2 == 0 ? 8 : 1, 0, 150);
        sleep_ms(100);
    }
    print_message("%llu hits beyond the window\n", (unsigned long long)fleet->page->stale_hits);
    assert_true(fleet_end(fleet));
    assert_true(fleet->page->stale_hits > 0);
}

static void
control_with_the_gate_always_open_old_hits_are_seen(void **state)
{
    NEEDS((struct world *)*state);
    old_hits_are_seen(*state, FLEET_GATE_OPEN);
}

static void
control_without_a_flush_old_hits_are_seen(void **state)
{
    NEEDS((struct world *)*state);
    old_hits_are_seen(*state, FLEET_NO_FLUSH);
}

/* ---- found by row 3: a tag's invalidation that fails half-way */

static int
answers(void *ctx)
{
    struct instance *in      = ctx;
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value;
    near_status      status;

    options.flags = NEAR_SKIP_L1;
    status        = near_get_with(in->cache, near_key("k"), &options, &value);
    near_value_release(value);
    return status >= 0;
}

/* Its link is cut after each byte; then somebody else stores a value with that tag and invalidates it.  If the failed one had told of a
 * moment that L2's clock had not reached, the value would be labelled with it and outlive the second one, which gets the same. */
static void
test_G1_a_failed_tag_invalidation_tells_no_moment(void **state)
{
    static const char *const tags[] = { "t" };
    struct world            *w      = *state, other;
    struct instance          cut, whole;
    near_put_options         tagged = NEAR_PUT_OPTIONS_INIT;
    near_get_options         below  = NEAR_GET_OPTIONS_INIT;
    near_value              *value;
    unsigned                 failed = 0, good = 0;

    NEEDS(w);
    tagged.tags      = tags;
    tagged.tag_count = 1;
    below.flags      = NEAR_SKIP_L1;
    proxy            = test_proxy_start(w->redis);
    assert_non_null(proxy);
    other = *w;
    snprintf(other.l2, sizeof(other.l2), "%s", test_proxy_unix_uri(proxy));
    snprintf(other.bus, sizeof(other.bus), "%s", w->redis->uri);
    OPEN(&other, &cut, "ttl", "1h");
    OPEN(w, &whole, "ttl", "1h");
    for (unsigned bytes = 1; bytes < 1200; bytes += level() == CHECK ? 24 : 1) {
        test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_CUT, TEST_UP | TEST_ONCE, 0, bytes });
        failed += near_invalidate_tag(cut.cache, "t") != NEAR_OK;
        test_proxy_heal(proxy);
        assert_int_equal(near_fence(whole.client, -1), NEAR_OK);
        assert_int_equal(near_put(whole.cache, near_key("k"), near_key("old"), &tagged), NEAR_OK);
        good += near_get_with(whole.cache, near_key("k"), &below, &value) == NEAR_OK;
        near_value_release(value);
        assert_int_equal(near_invalidate_tag(whole.cache, "t"), NEAR_OK);
        if (near_get_with(whole.cache, near_key("k"), &below, &value) == NEAR_OK)
            fail_msg("after %u bytes: invalidated, and still there", bytes);
        test_wait_for(answers, &cut, 2000); /* over its next connection */
    }
    print_message("%u invalidations failed; %u values with the tag were there before the next one\n", failed,
                  good);
    assert_true(failed > 0 && good > 0);
    close_instance(&cut);
    close_instance(&whole);
}

/* ---- row 4: kill -9 */

static void
test_row4_killed_servers(void **state)
{
    struct world     *w     = *state;
    size_t            kills = sized(3, 500, 10000), n = 0, lost = 0;
    int64_t          *back = calloc(kills, sizeof(*back)), until = budget_ends(5), began;
    uint64_t          random = 7;
    struct fleet_plan plan   = faulty_plan();

    NEEDS(w);
    launch(&plan);
    open_straight(w);
    began = test_now_ms();
    fleet_run(fleet);
    for (; n < kills && test_now_ms() < until && lost == 0; n++) {
        sleep_ms(10 + (int64_t)(test_random(&random) % 30));
        test_server_kill(l2_server(w));
        sleep_ms((int64_t)(test_random(&random) % (n % 10 == 9 ? 300 : 60)));
        lost += !test_server_restart(l2_server(w));
        back[n] = await_hits();
        lost += back[n] < 0;
    }
    fleet_quiet(fleet);
    report("row 4", n, back, began, SIZE_MAX);
    assert_int_equal(lost, 0);
    assert_survived(n, back);
    free(back);
}

/* ---- row 5: failover, with an old master that is cut off and goes on answering */

/* L1 keeps entries for C; that is all that bounds those who can still reach nobody but the old master. */
enum { FAILOVER_C_MS = 400, FAILOVER_S_MS = 200 };

static int
is_in_step(void *ctx)
{
    char one[4096], other[4096], *at, *its;

    (void)ctx;
    if (!test_redis_command(first, one, sizeof(one), 2, (const char *[]){ "INFO", "replication" }) ||
        !test_redis_command(second, other, sizeof(other), 2, (const char *[]){ "INFO", "replication" }))
        return 0;
    at  = strstr(one, "master_repl_offset:");
    its = strstr(other, "slave_repl_offset:");
    return at != NULL && its != NULL && strstr(other, "master_link_status:up") != NULL &&
           atoll(at + 19) == atoll(its + 18);
}

static void
follow(struct test_server *server, const struct test_server *master)
{
    char port[16];

    snprintf(port, sizeof(port), "%d", master->port);
    ASK(server, "REPLICAOF", "127.0.0.1", port);
}

/* Everybody anew: new connections, to whom the proxies lead now. */
static void
cut_all(struct test_proxy *p)
{
    test_proxy_fault(p, (struct test_fault){ TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 });
    sleep_ms(2);
    test_proxy_heal(p);
}

/* Run for `ms`; the longest that a hit had been outdated for, in ns. */
static int64_t
worst_within(int64_t ms)
{
    fleet->page->worst_hit = 0;
    fleet_run(fleet);
    sleep_ms(ms);
    fleet_quiet(fleet);
    return fleet->page->worst_hit;
}

static void
test_row5_failover_with_an_isolated_old_master(void **state)
{
    static const char *const settings[] = { "ttl",
                                            "1h",
                                            "l2.timeout",
                                            "2s",
                                            "l2.connect_timeout",
                                            "1s",
                                            "coherence.heartbeat",
                                            "50ms",
                                            "coherence.serve_window",
                                            "200ms",
                                            "l1.max_ttl",
                                            "400ms",
                                            "early_refresh.beta",
                                            "0",
                                            NULL };
    static const char *const extra[]    = { "--repl-diskless-sync-delay", "0", NULL };
    size_t                   rounds = sized(1, 20, 1000), n = 0, isolated_beyond = 0;
    int64_t                  until = budget_ends(3), began, isolated = 0, healed = 0, before = 0, worst;
    /* the first half of the processes go on listening to the old master, and only read: nobody hears what they would say there */
    const struct fleet_plan plan = {
        .processes   = 4,
        .threads     = 2,
        .only_read   = 2,
        .keys        = 128,
        .batch       = 8,
        .weights     = { [FLEET_GET]      = 40,
                         [FLEET_GET_MANY] = 5,
                         [FLEET_FETCH]    = 5,
                         [FLEET_PUT]      = 10,
                         [FLEET_REMOVE]   = 1 },
        .pause_us    = 500,
        .window_ms   = FAILOVER_C_MS + FAILOVER_S_MS,
        .deadline_ms = 2000,
        .warm        = true,
        .settings    = settings,
    };

    (void)state;
    first = test_redis_start(TEST_SERVER_TCP, extra);
    test_need_server(first);
    second = test_redis_start(TEST_SERVER_TCP, extra);
    test_need_server(second);
    launch(&plan);
    proxy     = test_proxy_start(first); /* the way to the bus of those who stay behind */
    bus_proxy = test_proxy_start(first); /* all other ways */
    assert_true(proxy != NULL && bus_proxy != NULL);
    for (unsigned i = 0; i < plan.processes; i++)
        fleet_lead(fleet, i, test_proxy_uri(bus_proxy), i < plan.only_read ? test_proxy_uri(proxy) : "auto");
    assert_true(fleet_open(fleet));
    began = test_now_ms();
    for (; n < rounds && test_now_ms() < until; n++) {
        struct test_server *old = first;

        follow(second, first);
        worst  = worst_within(200);
        before = worst > before ? worst : before;
        assert_true(test_wait_for(is_in_step, NULL, 20000));
        ASK(second, "REPLICAOF", "NO", "ONE");
        test_proxy_lead_to(bus_proxy, second);
        cut_all(bus_proxy);
        sleep_ms(20);
        worst    = worst_within(2 * FAILOVER_C_MS);
        isolated = worst > isolated ? worst : isolated;
        isolated_beyond += worst > FAILOVER_S_MS * NEAR_MS;
        test_proxy_lead_to(proxy, second); /* the network heals: the address leads to the new master */
        if (n % 2 == 0)
            follow(old, second); /* and the old one is told: its role changes */
        else
            cut_all(proxy); /* or its connections end */
        sleep_ms(FAILOVER_S_MS + 100);
        worst  = worst_within(300);
        healed = worst > healed ? worst : healed;
        cut_all(proxy);
        first  = second;
        second = old;
    }
    fleet_print(fleet, "row 5", test_now_ms() - began);
    print_message(
        "row 5: %zu failovers in %.1f s; hits outdated at most %.1f ms before, %.1f ms on an isolated old "
        "master (%zu times beyond S; C is %d ms), %.1f ms after it healed (S is %d ms)\n",
        n, (double)(test_now_ms() - began) / 1e3, (double)before / 1e6, (double)isolated / 1e6,
        isolated_beyond, FAILOVER_C_MS, (double)healed / 1e6, FAILOVER_S_MS);
    assert_true(fleet_end(fleet));
    assert_sound();
    assert_true(before <= FAILOVER_S_MS * NEAR_MS && healed <= FAILOVER_S_MS * NEAR_MS);
    assert_true(isolated <= (FAILOVER_C_MS + 50) * NEAR_MS);
    assert_true(isolated_beyond > 0); /* else nobody was isolated */
}

/* ---- how the cures are switched off */

enum near__l1_admission __real_near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence,
                                               int64_t now);
enum near__l1_admission __wrap_near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence,
                                               int64_t now);
int64_t                 __real_near__coherence_gate(const struct near__coherence *coherence);
int64_t                 __wrap_near__coherence_gate(const struct near__coherence *coherence);
void                    __real_near__l1_flush(struct near__l1 *l1);
void                    __wrap_near__l1_flush(struct near__l1 *l1);
near_status             __real_near__announce_begin(near_cache *cache, enum near__message_kind kind,
                                                    const near_bytes *keys, size_t n,
                                                    struct near__announcing *announcing);
near_status             __wrap_near__announce_begin(near_cache *cache, enum near__message_kind kind,
                                                    const near_bytes *keys, size_t n,
                                                    struct near__announcing *announcing);
near_status __real_near__coherence_publish(struct near__coherence *coherence, uint8_t *message, size_t size,
                                           int64_t deadline, near_error *error);
near_status __wrap_near__coherence_publish(struct near__coherence *coherence, uint8_t *message, size_t size,
                                           int64_t deadline, near_error *error);

enum near__l1_admission
__wrap_near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence, int64_t now)
{
    if (fleet_sabotage == FLEET_NO_FENCES)
        fence = near__l1_fence(l1, entry->hash);
    return __real_near__l1_insert(l1, entry, fence, now);
}

int64_t
__wrap_near__coherence_gate(const struct near__coherence *coherence)
{
    return fleet_sabotage == FLEET_GATE_OPEN ? NEAR_NEVER : __real_near__coherence_gate(coherence);
}

void
__wrap_near__l1_flush(struct near__l1 *l1)
{
    if (fleet_sabotage != FLEET_NO_FLUSH)
        __real_near__l1_flush(l1);
}

near_status
__wrap_near__announce_begin(near_cache *cache, enum near__message_kind kind, const near_bytes *keys, size_t n,
                            struct near__announcing *announcing)
{
    near_status status = __real_near__announce_begin(cache, kind, keys, n, announcing);

    if (status == NEAR_OK && fleet_sabotage == FLEET_PUBLISH_FIRST && announcing->message != NULL)
        __real_near__coherence_publish(cache->client->coherence, announcing->message, announcing->size,
                                       NEAR_NEVER, NULL);
    return status;
}

near_status
__wrap_near__coherence_publish(struct near__coherence *coherence, uint8_t *message, size_t size,
                               int64_t deadline, near_error *error)
{
    if (fleet_sabotage == FLEET_PUBLISH_FIRST)
        return NEAR_OK; /* it was published before */
    return __real_near__coherence_publish(coherence, message, size, deadline, error);
}

int
main(void)
{
    /* what `make check` has time for */
    const struct CMUnitTest some[] = {
        ROW(redis, test_row1_no_permanent_inconsistency),
        ROW(redis, control_without_fences_inconsistencies_are_seen),
        ROW(memcached, control_who_publishes_before_writing_is_seen),
        ROW(memcached, test_row2_no_hit_is_older_than_the_window),
        ROW(redis, test_row3_faults_of_every_kind),
        ROW(redis, control_with_the_gate_always_open_old_hits_are_seen),
        ROW(redis, test_G1_a_failed_tag_invalidation_tells_no_moment),
        ROW(memcached, test_row4_killed_servers),
    };
    const struct CMUnitTest all[] = {
        ROW(redis, test_row1_no_permanent_inconsistency),
        ROW(memcached, test_row1_no_permanent_inconsistency),
        ROW(redis, control_without_fences_inconsistencies_are_seen),
        ROW(memcached, control_who_publishes_before_writing_is_seen),
        ROW(redis, test_row2_no_hit_is_older_than_the_window),
        ROW(memcached, test_row2_no_hit_is_older_than_the_window),
        ROW(redis, control_without_a_bus_old_hits_are_seen),
        ROW(redis, test_row3_faults_of_every_kind),
        ROW(memcached, test_row3_faults_of_every_kind),
        ROW(redis, control_with_the_gate_always_open_old_hits_are_seen),
        ROW(redis, control_without_a_flush_old_hits_are_seen),
        ROW(redis, test_G1_a_failed_tag_invalidation_tells_no_moment),
        ROW(redis, test_row4_killed_servers),
        ROW(memcached, test_row4_killed_servers),
        cmocka_unit_test_teardown(test_row5_failover_with_an_isolated_old_master, end_own),
    };

    if (getenv("NEAR_TEST_ROWS") != NULL)
        cmocka_set_test_filter(getenv("NEAR_TEST_ROWS"));
    if (level() == CHECK && getenv("NEAR_TEST_ROWS") == NULL)
        return TEST_MAIN(some, NULL, NULL);
    return TEST_MAIN(all, NULL, NULL);
}
