/*
 * Mixed load and faults for as long as there is time: two clients over one pair of tiers read, fetch, put, update, remove and invalidate, while
 * the way to the servers is cut, delayed, blocked and reset, and clients come and go.  After the first fifth, memory, descriptors and threads
 * are flat: what they are at the end of a round with the network whole is what they were.
 *
 * glibc grows for a long time beside that: it keeps what was freed in up to eight arenas a processor, each as large as it once had to be, and
 * in a cache of each thread, which it counts as in use.  Where that is as its makers left it, resident memory rises by a third in minutes
 * although what is in use does not.  So the program starts itself again with one arena and without those caches (GLIBC_TUNABLES that are set
 * are left as they are): then what grows is ours.
 *
 * The control loses a value, a descriptor or a thread now and then, and is told.
 */
#include "integration/world.h"

#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <unistd.h>

#include "harness/long.h"
#include "harness/process.h"
#include "harness/proxy.h"

enum { KEYS = 3000, THREADS = 3, TAGS = 4, LARGE = 60000, ROUNDS = 20, LEAKS = 12, LOADERS = 4 };

WORLD(redis, TIER_REDIS)
WORLD(memcached_bus, TIER_MEMCACHED_BUS)

/* What leaks, on purpose. */
enum leak { NOTHING, MEMORY, DESCRIPTOR, THREAD };

struct life {
    struct world       through; /* the world, behind the proxies */
    struct test_proxy *l2, *bus;
    struct instance    in[2];
    _Atomic bool       over;
    _Atomic uint64_t   calls, failures;
    enum leak          leak;
};

struct worker {
    struct life *life;
    uint64_t     seed;
    pthread_t    thread;
};

/* ---- load */

static void
load_names(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        near_bytes key = near_load_key(loads[i]);

        if (((const char *)key.data)[key.size - 1] == '7')
            near_load_not_found(loads[i]);
        else
            near_load_set(loads[i], key);
    }
}

static void
store_nowhere(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_write_done(writes[i]);
}

static near_status
read_many(near_cache *cache, uint64_t *seed)
{
    char        names[16][32];
    near_bytes  keys[16];
    near_value *values[16];
    near_status statuses[16], status;

    for (unsigned i = 0; i < 16; i++) {
        snprintf(names[i], sizeof(names[i]), "key%u", (unsigned)(test_random(seed) % KEYS));
        keys[i] = near_key(names[i]);
    }
    status = near_fetch_many(cache, keys, 16, NULL, values, statuses);
    for (unsigned i = 0; i < 16; i++)
        near_value_release(values[i]);
    return status;
}

static near_status
put_one(near_cache *cache, near_bytes key, uint64_t random)
{
    static const char bytes[LARGE];
    char              tag[8];
    const char *const tags[]  = { tag };
    near_put_options  options = NEAR_PUT_OPTIONS_INIT;

    snprintf(tag, sizeof(tag), "tag%u", (unsigned)(random % TAGS));
    options.tags      = tags;
    options.tag_count = random % 8 == 0;
    return near_put(cache, key, (near_bytes){ bytes, random % 16 == 0 ? LARGE : random % 500 }, &options);
}

static near_status
one_call(near_cache *cache, uint64_t *seed)
{
    uint64_t    random = test_random(seed);
    near_value *value;
    near_status status;
    char        name[32];
    near_bytes  key;

    snprintf(name, sizeof(name), "key%u", (unsigned)(random >> 32) % KEYS);
    key = near_key(name);
    switch (random % 64) {
    case 0:
        return near_remove(cache, key);
    case 1:
        return near_invalidate_tag(cache, random >> 8 & 1 ? "tag1" : "tag2");
    case 2:
        return near_update(cache, key, key, NULL);
    case 3:
        return near_erase(cache, key);
    case 4:
        return near_expire(cache, key);
    case 5:
    case 6:
    case 7:
    case 8:
        return put_one(cache, key, random >> 8);
    case 9:
        return read_many(cache, seed);
    case 10:
        return (random >> 8) % 256 == 0 ? near_clear(cache) : NEAR_OK;
    default:
        status = near_fetch(cache, key, NULL, &value);
        near_value_release(value);
        return status;
    }
}

static void *
work(void *ctx)
{
    struct worker *w = ctx;

    while (!w->life->over) {
        near_cache *cache = w->life->in[test_random(&w->seed) % 2].cache;

        w->life->failures += one_call(cache, &w->seed) < 0;
        w->life->calls++;
    }
    return NULL;
}

/* ---- faults */

static const struct test_fault faults[] = {
    { TEST_FAULT_CUT, TEST_DOWN, 0, 100 },   { TEST_FAULT_RESET, TEST_UP, 0, 50 },
    { TEST_FAULT_DELAY, TEST_BOTH, 5, 0 },   { TEST_FAULT_BLACKHOLE, TEST_DOWN, 0, 0 },
    { TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 },  { TEST_FAULT_HOSTILE, TEST_DOWN, 0, 20 },
    { TEST_FAULT_HANG_UP, TEST_BOTH, 0, 0 }, { TEST_FAULT_DRIP, TEST_DOWN, 1, 20 },
};

static void
suffer(struct life *life, unsigned round)
{
    struct test_proxy *proxy = life->bus != NULL && round % 2 == 1 ? life->bus : life->l2;

    test_proxy_fault(proxy, faults[round / 2 % NEAR_COUNT_OF(faults)]);
    sleep_ms(30);
    test_proxy_heal(proxy);
}

/* A client of its own, opened while all goes on, and closed again. */
static void
come_and_go(struct life *life)
{
    struct instance in;

    OPEN(&life->through, &in, "l1.max_bytes", "1MiB", "loader.threads", "4", "l2.connect_timeout", "100ms",
         "l2.timeout", "100ms");
    near_cache_set_loader(in.cache, load_names, NULL);
    for (unsigned i = 0; i < 20; i++) {
        char        name[32];
        near_value *value;

        snprintf(name, sizeof(name), "key%u", i);
        near_fetch(in.cache, near_key(name), NULL, &value);
        near_value_release(value);
    }
    assert_int_equal(near_client_close(in.client, NULL), NEAR_OK);
}

static void *
sleep_for_ever(void *ctx)
{
    while (!((struct life *)ctx)->over)
        sleep_ms(50);
    return NULL;
}

/* In each round. */
static void
leak(struct life *life)
{
    static void *volatile lost; /* a compiler may do without memory that nobody is seen to use */
    pthread_t thread;

    for (unsigned i = 0; i < LEAKS; i++) {
        if (life->leak == MEMORY) {
            lost = malloc(256 << 10);
            memset(lost, 1, 256 << 10);
        }
        if (life->leak == DESCRIPTOR)
            assert_true(open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0);
        if (life->leak == THREAD && pthread_create(&thread, NULL, sleep_for_ever, life) == 0)
            pthread_detach(thread);
    }
}

/* ---- what is measured, while the network is whole */

struct had {
    long rss, used, rounds; /* KiB: resident, and of malloc what is in use; sums of so many */
    long descriptors, threads, loaders;
};

/* What malloc has given out, KiB; 0 where it does not tell. */
static long
used_kib(void)
{
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
    struct mallinfo2 all = mallinfo2();

    return (long)((all.uordblks + all.hblkhd) / 1024);
#else
    return 0;
#endif
}

static struct had
measure(void)
{
    long loaders = process_threads_named("near-loader"); /* begun when there is something to do */

    return (struct had){ process_rss_kib(),           used_kib(), 1, process_descriptors(),
                         process_threads() - loaders, loaders };
}

static long
more_of(long a, long b)
{
    return a > b ? a : b;
}

/* Memory rises and falls with what is cached and which connections there are: its mean tells. */
static long
mean(long sum, const struct had *had)
{
    return had->rounds > 0 ? sum / had->rounds : 0;
}

/* Of what is counted the most: what comes and goes is seen at its height each time. */
static void
keep(struct had *all, struct had had)
{
    all->rss += had.rss;
    all->used += had.used;
    all->rounds += had.rounds;
    all->descriptors = more_of(all->descriptors, had.descriptors);
    all->threads     = more_of(all->threads, had.threads);
    all->loaders     = more_of(all->loaders, had.loaders);
}

static void
open_life(struct life *life, const struct world *w, enum leak leaks)
{
    memset(life, 0, sizeof(*life));
    life->leak    = leaks;
    life->through = *w;
    life->l2      = test_proxy_start(w->memcached != NULL ? w->memcached : w->redis);
    assert_non_null(life->l2);
    strcpy(life->through.l2, test_proxy_unix_uri(life->l2));
    if (w->memcached != NULL) {
        life->bus = test_proxy_start(w->redis);
        assert_non_null(life->bus);
        strcpy(life->through.bus, test_proxy_unix_uri(life->bus));
    }
    for (unsigned i = 0; i < 2; i++) {
        OPEN(&life->through, &life->in[i], "l1.max_bytes", "4MiB", "loader.threads", "4", "l2.timeout",
             "100ms", "l2.connect_timeout", "100ms", "coherence.heartbeat", "20ms", "coherence.serve_window",
             "100ms", "grace", "1m", "ttl", "1s", "load.retry", "10ms", "write_back.interval", "10ms",
             "close.timeout", "200ms", "write.policy", i == 0 ? "through" : "back");
        near_cache_set_loader(life->in[i].cache, load_names, NULL);
        near_cache_set_store(life->in[i].cache, store_nowhere, NULL);
    }
}

/* What there was in each tenth of the time: a slope is seen, or is not. */
static void
print_slope(const struct had tenths[10])
{
    print_message("KiB resident and in use, descriptors, threads and loaders by tenths:");
    for (unsigned i = 0; i < 10; i++)
        print_message(" %ld %ld %ld %ld+%ld;", mean(tenths[i].rss, &tenths[i]),
                      mean(tenths[i].used, &tenths[i]), tenths[i].descriptors, tenths[i].threads,
                      tenths[i].loaders);
    print_message("\n");
}

/* Which tenth of `ms` it is; 10: it is over.  0: of so many rounds, for one may take half a second on a machine that is busy with other
 * things, and no tenth of a second or two would be sure to have any. */
static unsigned
tenth_of(int64_t past, int64_t ms, unsigned round)
{
    if (ms == 0)
        return round < ROUNDS ? round * 10 / ROUNDS : 10;
    return past < ms ? (unsigned)(past * 10 / ms) : 10;
}

/* Rounds until the time is over (0: some): `early` is its second to fourth tenth, `late` the last two. */
static unsigned
live(const struct world *w, int64_t ms, enum leak leaks, struct had *early, struct had *late)
{
    static struct life life;
    struct worker      workers[THREADS];
    struct had         tenths[10] = { 0 };
    int64_t            began      = test_now_ms();
    unsigned           round      = 0;

    open_life(&life, w, leaks);
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){ .life = &life, .seed = i + 1 };
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (unsigned tenth = 0; tenth < 10; tenth = tenth_of(test_now_ms() - began, ms, round)) {
        suffer(&life, round);
        if (round % 8 == 7)
            come_and_go(&life);
        sleep_ms(20);
        leak(&life);
        keep(&tenths[tenth], measure());
        round++;
    }
    keep(&tenths[9], measure());
    life.over = true;
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    for (unsigned i = 0; i < 2; i++)
        near_client_close(life.in[i].client, NULL);
    test_proxy_stop(&life.l2);
    test_proxy_stop(&life.bus);
    *early = tenths[1];
    keep(early, tenths[2]);
    keep(early, tenths[3]);
    *late = tenths[8];
    keep(late, tenths[9]);
    print_slope(tenths);
    print_message(
        "%lld s, %u rounds, %llu calls, %llu of them failed; after a fifth and at the end: %ld, %ld KiB "
        "resident, %ld, %ld in use; %ld, %ld descriptors; %ld, %ld threads, %ld, %ld loaders\n",
        (long long)(test_now_ms() - began) / 1000, round, (unsigned long long)life.calls,
        (unsigned long long)life.failures, mean(early->rss, early), mean(late->rss, late),
        mean(early->used, early), mean(late->used, late), early->descriptors, late->descriptors,
        early->threads, late->threads, early->loaders, late->loaders);
    assert_true(life.calls > round);
    return round;
}

/* Not more than half a percent more or, where that is more, so much. */
static bool
is_level(long early, long late, long breath)
{
    return late <= early + more_of(early / 200, breath);
}

/* Flat: what is in use but for some connections' buffers, of 64 KiB; what is resident but for a heap's holes; connections but for those of a
 * fault under way; threads but for loaders, of which there are at most what each client may have.  In a second nothing has settled. */
static bool
is_flat(const struct had *early, const struct had *late)
{
    const bool settled = test_level() != TEST_CHECK;

    return is_level(mean(early->used, early), mean(late->used, late), settled ? 768 : 9216) &&
           is_level(mean(early->rss, early), mean(late->rss, late), settled ? 3072 : 9216) &&
           late->descriptors <= early->descriptors + (settled ? 8 : 48) &&
           late->threads <= early->threads + (settled ? 4 : 12) && late->loaders <= 3 * LOADERS;
}

/* ---- tests */

static int64_t
time_there_is(void)
{
    if (test_level() == TEST_CHECK)
        return 0;
    return test_budget_ends_after(test_level() == TEST_SOAK ? 3 : 1) -
           test_now_ms(); /* 3 h, 10 minutes: two rows */
}

static void
row20_memory_descriptors_and_threads_are_flat(void **state)
{
    struct world *w           = *state;
    long          descriptors = process_descriptors();
    struct had    early, late;

    NEEDS(w);
    live(w, time_there_is(), NOTHING, &early, &late);
    if (test_slack() > 1) { /* sanitizers keep what was freed */
        early.rss    = late.rss;
        early.used   = late.used;
        early.rounds = late.rounds;
    }
    assert_true(is_flat(&early, &late));
    assert_int_equal(process_descriptors(), descriptors);
}

static void
control_what_leaks_is_seen(void **state)
{
    struct world *w = *state;
    struct had    early, late;

    NEEDS(w);
    for (enum leak leaks = MEMORY; leaks <= THREAD; leaks++) {
        unsigned rounds;

        if (test_slack() > 1 && leaks == MEMORY) /* they would tell, and end the program */
            continue;
        rounds = live(w, 0, leaks, &early, &late);
        if (is_flat(&early, &late))
            fail_msg("leak %u of %u rounds was not seen", (unsigned)leaks, rounds);
    }
}

/* With an allocator that keeps little, see above; where that cannot be, as it is. */
static void
start_again(char **argv)
{
#ifdef __GLIBC__
    if (setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0", 0) == 0)
        execv("/proc/self/exe", argv);
#endif
    (void)argv;
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        OVER(redis, row20_memory_descriptors_and_threads_are_flat),
        OVER(memcached_bus, row20_memory_descriptors_and_threads_are_flat),
        OVER(redis, control_what_leaks_is_seen),
    };

    (void)argc;
    if (getenv("GLIBC_TUNABLES") == NULL)
        start_again(argv);
    return TEST_MAIN(tests, NULL, NULL);
}
