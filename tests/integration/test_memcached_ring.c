/*
 * Rings of memcacheds of which one is away: nothing that it held from before is believed when it is back
 * (race 33), its keys go nowhere else (race 34) but to a gutter, and the others are not slower for it.
 *
 * Each server has a proxy before it, which cuts the link while the server keeps its memory.
 */
#include "harness/test.h"

#include "harness/proxy.h"
#include "harness/server.h"
#include "l2/backend.h"
#include "l2/memcached_epoch.h"
#include "l2/memcached_router.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SERVERS  3
#define LIMIT_MS (2000 * (int64_t)test_slack())

struct client {
    const struct near_l2_ops *ops;
    void                     *self;
    struct near__uri          uri, gutter_uri;
    struct near_l2_env        env;
    struct near_l2_traits     traits;
    unsigned                  outdated; /* calls of env.outdated */
};

struct world {
    struct test_server *server[SERVERS], *gutter;
    struct test_proxy  *proxy[SERVERS];
    struct client       a, b;
};

static void
note_outdated(void *ctx)
{
    ((struct client *)ctx)->outdated++;
}

static void
client_open(struct client *c, const char *uri, const struct test_server *gutter)
{
    near_error error = { 0 };

    assert_int_equal(near__uri_parse(&c->uri, "l2.uri", uri, &error), NEAR_OK);
    c->env = (struct near_l2_env){
        .uri             = &c->uri,
        .clock           = &near__clock_system,
        .connect_timeout = 500 * NEAR_MS,
        .pool_size       = 3,
        .max_stored      = (size_t)1 << 20,
        .client_name     = "test",
        .key_prefix      = "t:",
        .outdated        = note_outdated,
        .outdated_ctx    = c,
    };
    if (gutter != NULL) {
        assert_int_equal(near__uri_parse(&c->gutter_uri, "l2.gutter", gutter->uri, &error), NEAR_OK);
        c->env.gutter     = &c->gutter_uri;
        c->env.gutter_ttl = 10000 * NEAR_MS;
    }
    c->ops = near__l2_backend_named(c->uri.scheme);
    assert_int_equal(c->ops->open(&c->self, &c->env, &c->traits, &error), NEAR_OK);
}

static void
client_close(struct client *c)
{
    if (c->self != NULL)
        c->ops->fini(c->self);
    c->self = NULL;
}

static int
world_setup(void **state)
{
    *state = calloc(1, sizeof(struct world));
    return *state == NULL;
}

static int
world_teardown(void **state)
{
    struct world *w = *state;

    for (size_t s = 0; s < SERVERS; s++) {
        if (w->server[s] != NULL)
            test_server_resume(w->server[s]);
    }
    client_close(&w->a);
    client_close(&w->b);
    for (size_t s = 0; s < SERVERS; s++) {
        test_proxy_stop(&w->proxy[s]);
        test_server_stop(&w->server[s]);
    }
    test_server_stop(&w->gutter);
    free(w);
    return 0;
}

/* A ring of the servers' proxies. */
static void
ring_uri(const struct world *w, char *uri, size_t size)
{
    size_t at = (size_t)snprintf(uri, size, "memcached://");

    for (size_t s = 0; s < SERVERS; s++)
        at += (size_t)snprintf(uri + at, size - at, "%s%s", s > 0 ? "," : "",
                               test_proxy_uri(w->proxy[s]) + strlen("memcached://"));
}

static void
start(struct world *w)
{
    for (size_t s = 0; s < SERVERS; s++) {
        w->server[s] = test_memcached_start(TEST_SERVER_TCP, NULL);
        test_need_server(w->server[s]);
        w->proxy[s] = test_proxy_start(w->server[s]);
        assert_non_null(w->proxy[s]);
    }
}

static void
open_ring(struct world *w, struct client *c)
{
    char uri[512];

    ring_uri(w, uri, sizeof(uri));
    client_open(c, uri, w->gutter);
}

static int64_t
after_ms(int64_t ms)
{
    return near__now(&near__clock_system) + ms * NEAR_MS;
}

static void
pause_ms(int64_t ms)
{
    nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * NEAR_MS }, NULL);
}

struct got {
    unsigned times;
    char     value[64];
};

static void
note(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct got *got = ctx;

    (void)item;
    got->times++;
    snprintf(got->value, sizeof(got->value), "%.*s", (int)stored.size, (const char *)stored.data);
}

static enum near_l2_answer
get(struct client *c, const char *key, struct got *got, bool plain, int64_t ms)
{
    struct near_l2_item item = { .key = { key, strlen(key) }, .plain = plain };

    *got = (struct got){ 0 };
    c->ops->get_many(c->self, &item, 1, note, got, after_ms(ms));
    return item.answer;
}

static enum near_l2_answer
set(struct client *c, const char *key, const char *value, bool plain, int64_t ms)
{
    struct near_l2_item item = { .key   = { key, strlen(key) },
                                 .value = { value, strlen(value) },
                                 .plain = plain };

    c->ops->set_many(c->self, NEAR_L2_ALWAYS, &item, 1, NULL, after_ms(ms));
    return item.answer;
}

static enum near_l2_answer
erase(struct client *c, const char *key, int64_t ms)
{
    struct near_l2_item item = { .key = { key, strlen(key) } };

    c->ops->remove_many(c->self, NEAR_L2_ALWAYS, &item, 1, NULL, after_ms(ms));
    return item.answer;
}

static size_t
home(const struct client *c, const char *key)
{
    struct near__memcached_router *router;
    size_t                         s;

    assert_int_equal(near__memcached_router_new(&router, &c->uri), NEAR_OK);
    s = near__memcached_route(router, (near_bytes){ key, strlen(key) });
    near__memcached_router_free(&router);
    return s;
}

/* Read until the server says something again; whether it was the old value. */
static bool
reads_old(struct client *c, const char *key, const char *old, bool plain)
{
    struct got got;
    int64_t    began = test_now_ms();

    while (test_now_ms() - began < 10 * LIMIT_MS) {
        enum near_l2_answer answer = get(c, key, &got, plain, LIMIT_MS);

        if (answer == NEAR_L2_DONE)
            return strcmp(got.value, old) == 0;
        if (answer == NEAR_L2_ABSENT)
            return false;
        pause_ms(1);
    }
    fail_msg("the server did not come back");
    return true;
}

static const struct test_fault outages[] = {
    { TEST_FAULT_REFUSE, TEST_BOTH, 0, 0 },
    { TEST_FAULT_BLACKHOLE, TEST_BOTH, 0, 0 },
    { TEST_FAULT_CUT, TEST_UP, 0, 20 },  /* in the middle of the command */
    { TEST_FAULT_CUT, TEST_DOWN, 0, 3 }, /* in the middle of the answer: it was done */
};

/* A write fails and so does the removal that follows it, as the client makes it; then the server is back.  How
 * often the old value is read. */
static unsigned
outages_with_stale_reads(struct client *c, struct world *w, unsigned rounds, bool plain)
{
    unsigned stale = 0;

    for (unsigned i = 0; i < rounds; i++) {
        char   key[32], old[32];
        size_t s;

        snprintf(key, sizeof(key), "t:%s:%u", plain ? "plain" : "key", i);
        snprintf(old, sizeof(old), "old-%u-...............", i);
        s = home(c, key);
        for (int try = 0; set(c, key, old, plain, LIMIT_MS) != NEAR_L2_DONE; try++) {
            assert_true(try < 1000); /* the breaker of the last round closes with the first probe */
            pause_ms(5);
        }
        test_proxy_fault(w->proxy[s], outages[i % NEAR_COUNT_OF(outages)]);
        if (set(c, key, "new", plain, 30) == NEAR_L2_DONE || erase(c, key, 30) == NEAR_L2_DONE) {
            test_proxy_heal(w->proxy[s]);
            continue; /* it got through after all */
        }
        test_proxy_heal(w->proxy[s]);
        stale += reads_old(c, key, old, plain);
    }
    return stale;
}

static void
test_race33_what_a_server_held_from_before_is_not_believed(void **state)
{
    struct world *w = *state;

    start(w);
    open_ring(w, &w->a);
    assert_int_equal(outages_with_stale_reads(&w->a, w, (unsigned)test_scale(12), false), 0);
}

/* Without epochs the old values are there. */
static void
control_race33(void **state)
{
    struct world *w = *state;

    start(w);
    open_ring(w, &w->a);
    assert_true(outages_with_stale_reads(&w->a, w, 12, true) > 0);
}

/* Another process, whose link was never cut: from the moment that the first one has reached the server again,
 * and LOOK, it believes nothing old either, and is told that what it keeps may be old. */
static void
test_race33_other_processes_learn_of_it(void **state)
{
    struct world *w = *state;
    struct got    got;
    char          key[32];
    unsigned      n = 0;

    start(w);
    open_ring(w, &w->a);
    open_ring(w, &w->b); /* the same ring, and for its first read of each round the same links */
    for (unsigned i = 0; i < test_scale(10); i++) {
        size_t s;

        do
            snprintf(key, sizeof(key), "t:two:%u", n++);
        while (home(&w->a, key) != 0);
        s = 0;
        while (set(&w->a, key, "old", false, LIMIT_MS) != NEAR_L2_DONE)
            pause_ms(5);
        assert_int_equal(get(&w->b, key, &got, false, LIMIT_MS), NEAR_L2_DONE);
        test_proxy_fault(w->proxy[s], (struct test_fault){ TEST_FAULT_CUT, TEST_UP | TEST_ONCE, 0, 0 });
        test_proxy_fault(w->proxy[s], outages[0]);
        assert_int_not_equal(erase(&w->a, key, 30), NEAR_L2_DONE);
        test_proxy_heal(w->proxy[s]);
        while (get(&w->a, key, &got, false, LIMIT_MS) != NEAR_L2_ABSENT)
            pause_ms(1);
        pause_ms(2 * NEAR__MEMCACHED_LOOK / NEAR_MS);
        assert_false(reads_old(&w->b, key, "old", false));
    }
    assert_true(w->b.outdated > 0);
    assert_int_equal(w->a.outdated, 0); /* it knew */
}

/* A lease from before is void: what is filled under it was read before the write that went past. */
static void
test_race33_a_lease_from_before_is_void(void **state)
{
    static const char   marker[] = "01234567\x05\0\0\0\0\0\0\0 lease";
    struct world       *w        = *state;
    struct near_l2_item item     = { .key = { "t:lease", 7 }, .value = { marker, sizeof(marker) } };
    size_t              s;

    start(w);
    open_ring(w, &w->a);
    s = home(&w->a, "t:lease");
    w->a.ops->set_many(w->a.self, NEAR_L2_IF_ABSENT, &item, 1, NULL, after_ms(LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_DONE);
    test_proxy_fault(w->proxy[s], outages[0]);
    assert_int_not_equal(erase(&w->a, "t:lease", 50), NEAR_L2_DONE);
    test_proxy_heal(w->proxy[s]);
    item.expected = 5;
    do
        w->a.ops->set_many(w->a.self, NEAR_L2_IF_STAMP, &item, 1, NULL, after_ms(LIMIT_MS));
    while (item.answer == NEAR_L2_ERROR);
    assert_int_equal(item.answer, NEAR_L2_ABSENT);
}

/* A server without an epoch, by a restart or because somebody took it away: a new one is made, what was there
 * is not believed, and no write or lease is refused for it. */
static void
test_an_epoch_that_is_lost_is_made_again(void **state)
{
    static const char   marker[] = "01234567\x05\0\0\0\0\0\0\0 lease";
    struct world       *w        = *state;
    struct near_l2_item item     = { .key = { "t:k", 3 }, .value = { marker, sizeof(marker) } };
    struct got          got;
    char                reply[128];

    start(w);
    client_open(&w->a, w->server[0]->uri, NULL);
    assert_int_equal(set(&w->a, "t:k", "v", false, LIMIT_MS), NEAR_L2_DONE);
    assert_int_equal(get(&w->a, "t:k", &got, false, LIMIT_MS), NEAR_L2_DONE);
    assert_true(test_memcached_command(w->server[0], reply, sizeof(reply), "delete t:@epoch"));
    pause_ms(2 * NEAR__MEMCACHED_LOOK / NEAR_MS);
    assert_int_equal(get(&w->a, "t:k", &got, false, LIMIT_MS), NEAR_L2_ABSENT);
    w->a.ops->set_many(w->a.self, NEAR_L2_IF_ABSENT, &item, 1, NULL, after_ms(LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_DONE);
    test_server_kill(w->server[0]);
    assert_true(test_server_restart(w->server[0]));
    assert_int_equal(get(&w->a, "t:k", &got, false, LIMIT_MS), NEAR_L2_ABSENT);
    assert_int_equal(set(&w->a, "t:k", "v2", false, LIMIT_MS), NEAR_L2_DONE);
    assert_int_equal(get(&w->a, "t:k", &got, false, LIMIT_MS), NEAR_L2_DONE);
    /* nonsense in its place is replaced */
    assert_true(test_memcached_command(w->server[0], reply, sizeof(reply), "delete t:@epoch"));
    assert_true(test_memcached_command(w->server[0], reply, sizeof(reply), "incr t:k 1"));
}

/* Values that are shared with others carry no epoch, and are read whatever they carry. */
static void
test_plain_items_are_as_others_store_them(void **state)
{
    struct world *w = *state;
    struct got    got;
    char          reply[256];

    start(w);
    client_open(&w->a, w->server[0]->uri, NULL);
    assert_int_equal(set(&w->a, "t:p", "plain", true, LIMIT_MS), NEAR_L2_DONE);
    assert_true(test_memcached_command(w->server[0], reply, sizeof(reply), "get t:p"));
    assert_non_null(strstr(reply, "VALUE t:p 0 5"));
    assert_int_equal(get(&w->a, "t:p", &got, true, LIMIT_MS), NEAR_L2_DONE);
    assert_int_equal(set(&w->a, "t:p", "marked", false, LIMIT_MS), NEAR_L2_DONE);
    assert_int_equal(get(&w->a, "t:p", &got, true, LIMIT_MS), NEAR_L2_DONE);
    assert_string_equal(got.value, "marked");
}

/* ------------------------------------------------------------------------------------------------ gutter */

static bool
has(struct test_server *server, const char *key, char *reply, size_t size)
{
    char line[64];

    snprintf(line, sizeof(line), "mg %s t v", key);
    assert_true(test_memcached_command(server, reply, size, line));
    return strncmp(reply, "VA ", 3) == 0;
}

static void
with_gutter(struct world *w)
{
    start(w);
    w->gutter = test_memcached_start(TEST_SERVER_TCP, NULL);
    test_need_server(w->gutter);
    open_ring(w, &w->a);
}

/* A dead server's keys live in the gutter, for a short time; others' keys do not. */
static void
test_gutter_takes_a_dead_servers_keys(void **state)
{
    struct world *w = *state;
    struct got    got;
    char          reply[256], *ttl;
    const char   *key = "t:gutter";
    size_t        s;

    with_gutter(w);
    s = home(&w->a, key);
    assert_int_equal(set(&w->a, key, "old", false, LIMIT_MS), NEAR_L2_DONE);
    assert_false(has(w->gutter, key, reply, sizeof(reply)));
    test_proxy_fault(w->proxy[s], outages[0]);
    assert_int_equal(get(&w->a, key, &got, false, LIMIT_MS), NEAR_L2_ABSENT); /* the gutter's word */
    assert_int_equal(set(&w->a, key, "new", false, LIMIT_MS), NEAR_L2_DONE);
    assert_int_equal(get(&w->a, key, &got, false, LIMIT_MS), NEAR_L2_DONE);
    assert_string_equal(got.value, "new");
    assert_true(has(w->gutter, key, reply, sizeof(reply)));
    ttl = strstr(reply, " t");
    assert_non_null(ttl);
    assert_in_range(strtol(ttl + 2, NULL, 10), 1, 11);
    open_ring(w, &w->b);
    assert_int_equal(get(&w->b, key, &got, false, LIMIT_MS), NEAR_L2_DONE);
    assert_string_equal(got.value, "new");
    assert_int_equal(erase(&w->a, key, LIMIT_MS), NEAR_L2_DONE);
    assert_int_equal(get(&w->b, key, &got, false, LIMIT_MS), NEAR_L2_ABSENT);
    /* back: the old value is not there, and what is written then is not left behind in the gutter */
    assert_int_equal(set(&w->a, key, "newer", false, LIMIT_MS), NEAR_L2_DONE);
    test_proxy_heal(w->proxy[s]);
    assert_false(reads_old(&w->a, key, "old", false));
    for (int try = 0; has(w->gutter, key, reply, sizeof(reply)); try++) {
        assert_true(try < 1000);
        pause_ms(5);
        set(&w->a, key, "newest", false, LIMIT_MS);
    }
    assert_int_equal(get(&w->a, key, &got, false, LIMIT_MS), NEAR_L2_DONE);
    assert_string_equal(got.value, "newest");
    test_proxy_fault(w->proxy[s], outages[0]);
    assert_int_equal(get(&w->a, key, &got, false, LIMIT_MS), NEAR_L2_ABSENT);
}

/* And without one they are errors, and nothing is anywhere else. */
static void
test_race34_without_a_gutter_keys_go_nowhere(void **state)
{
    struct world *w = *state;
    struct got    got;
    char          reply[256];
    const char   *key = "t:nowhere";
    size_t        s;

    start(w);
    open_ring(w, &w->a);
    s = home(&w->a, key);
    test_proxy_fault(w->proxy[s], outages[0]);
    assert_int_equal(get(&w->a, key, &got, false, LIMIT_MS), NEAR_L2_ERROR);
    assert_int_equal(set(&w->a, key, "v", false, LIMIT_MS), NEAR_L2_ERROR);
    for (size_t other = 0; other < SERVERS; other++)
        assert_false(has(w->server[other], key, reply, sizeof(reply)));
}

/* Without the cure: who finds a server dead sends its keys to the next one, and who finds it alive does not. */
static _Atomic bool ejects, eject_at_fault;

size_t __real_near__memcached_route(const struct near__memcached_router *router, near_bytes key);
size_t __wrap_near__memcached_route(const struct near__memcached_router *router, near_bytes key);
size_t
__wrap_near__memcached_route(const struct near__memcached_router *router, near_bytes key)
{
    return (__real_near__memcached_route(router, key) + ejects) % SERVERS;
}

/* A write of one process to a server that it cannot reach, and what the other reads then. */
static enum near_l2_answer
write_beside(struct world *w, const char *key, struct got *got)
{
    enum near_l2_answer answer;
    size_t              s;

    start(w);
    open_ring(w, &w->a);
    open_ring(w, &w->b);
    s = home(&w->a, key);
    assert_int_equal(set(&w->a, key, "old", false, LIMIT_MS), NEAR_L2_DONE);
    assert_int_equal(get(&w->b, key, got, false, LIMIT_MS), NEAR_L2_DONE);
    test_proxy_fault(w->proxy[s], outages[0]);
    ejects = eject_at_fault;
    answer = set(&w->a, key, "new", false, LIMIT_MS);
    ejects = false;
    test_proxy_heal(w->proxy[s]);
    for (int try = 0; get(&w->b, key, got, false, LIMIT_MS) == NEAR_L2_ERROR; try++) {
        assert_true(try < 1000);
        pause_ms(5);
    }
    return answer;
}

static void
test_race34_what_one_process_cannot_write_is_not_acknowledged(void **state)
{
    struct got got;

    assert_int_equal(write_beside(*state, "t:beside", &got), NEAR_L2_ERROR);
}

static void
control_race34(void **state)
{
    struct got got;

    eject_at_fault = true;
    assert_int_equal(write_beside(*state, "t:beside", &got), NEAR_L2_DONE);
    eject_at_fault = false;
    assert_string_equal(got.value, "old");
}

/* ------------------------------------------------------------------------------------------------- speed */

#define KEYS 60
static struct near_l2_item ring_items[KEYS];
static char                ring_names[KEYS][16];

static void
make_items(void)
{
    memset(ring_items, 0, sizeof(ring_items));
    for (unsigned i = 0; i < KEYS; i++) {
        snprintf(ring_names[i], sizeof(ring_names[i]), "t:ring:%u", i);
        ring_items[i].key   = (near_bytes){ ring_names[i], strlen(ring_names[i]) };
        ring_items[i].value = (near_bytes){ "value", 5 };
    }
}

static int
by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return x < y ? -1 : x > y;
}

/* ns, what a multi-get takes when nothing disturbs it; `down`: the server whose keys are errors. */
static int64_t
time_of_a_multi_get(struct client *c, size_t down)
{
    int64_t times[51];

    for (size_t t = 0; t < NEAR_COUNT_OF(times); t++) {
        struct got got   = { 0 };
        int64_t    began = near__now(&near__clock_system);

        make_items();
        c->ops->get_many(c->self, ring_items, KEYS, note, &got, after_ms(100 * test_slack()));
        times[t] = near__now(&near__clock_system) - began;
        for (unsigned i = 0; i < KEYS; i++)
            assert_int_equal(ring_items[i].answer,
                             home(c, ring_names[i]) == down ? NEAR_L2_ERROR : NEAR_L2_DONE);
    }
    qsort(times, NEAR_COUNT_OF(times), sizeof(times[0]), by_size);
    return times[NEAR_COUNT_OF(times) / 4]; /* the lower quartile: others are busy on this machine */
}

/* Once it is known that a server is down, silent or gone, the keys of the others come as fast as ever. */
static void
test_L6_a_server_that_is_down_does_not_slow_the_others(void **state)
{
    struct world *w   = *state;
    struct got    got = { 0 };
    int64_t       all, without;

    start(w);
    open_ring(w, &w->a);
    make_items();
    w->a.ops->set_many(w->a.self, NEAR_L2_ALWAYS, ring_items, KEYS, NULL, after_ms(LIMIT_MS));
    all = time_of_a_multi_get(&w->a, SERVERS);
    test_server_pause(w->server[1]);
    for (int i = 0; i < 10; i++) {
        make_items();
        w->a.ops->get_many(w->a.self, ring_items, KEYS, note, &got, after_ms(60));
    }
    without = time_of_a_multi_get(&w->a, 1);
    assert_true(without - all < NEAR_MS * test_slack());
    test_proxy_fault(w->proxy[1], outages[0]);
    without = time_of_a_multi_get(&w->a, 1);
    assert_true(without - all < NEAR_MS * test_slack());
}

/* A batch of writes is one round trip a server, and every one has its answer. */
static void
test_a_batch_of_writes_is_one_round_trip(void **state)
{
    enum { MS = 40 };
    struct world *w   = *state;
    struct got    got = { 0 };
    int64_t       began;

    start(w);
    open_ring(w, &w->a);
    make_items();
    w->a.ops->set_many(w->a.self, NEAR_L2_ALWAYS, ring_items, KEYS, NULL, after_ms(LIMIT_MS));
    for (size_t s = 0; s < SERVERS; s++)
        test_proxy_fault(w->proxy[s], (struct test_fault){ TEST_FAULT_DELAY, TEST_DOWN, .ms = MS });
    began = test_now_ms();
    make_items();
    w->a.ops->set_many(w->a.self, NEAR_L2_ALWAYS, ring_items, KEYS, NULL, after_ms(LIMIT_MS));
    assert_in_range(test_now_ms() - began, MS - 5, 2 * MS - 1 + MS * (int)(test_slack() - 1));
    for (unsigned i = 0; i < KEYS; i++)
        assert_int_equal(ring_items[i].answer, NEAR_L2_DONE);
    began = test_now_ms();
    make_items();
    w->a.ops->remove_many(w->a.self, NEAR_L2_ALWAYS, ring_items, KEYS, NULL, after_ms(LIMIT_MS));
    assert_in_range(test_now_ms() - began, MS - 5, 2 * MS - 1 + MS * (int)(test_slack() - 1));
    for (unsigned i = 0; i < KEYS; i++)
        assert_int_equal(ring_items[i].answer, NEAR_L2_DONE);
    make_items();
    w->a.ops->get_many(w->a.self, ring_items, KEYS, note, &got, after_ms(LIMIT_MS));
    for (unsigned i = 0; i < KEYS; i++)
        assert_int_equal(ring_items[i].answer, NEAR_L2_ABSENT);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_race33_what_a_server_held_from_before_is_not_believed),
        TEST(control_race33),
        TEST(test_race33_other_processes_learn_of_it),
        TEST(test_race33_a_lease_from_before_is_void),
        TEST(test_an_epoch_that_is_lost_is_made_again),
        TEST(test_plain_items_are_as_others_store_them),
        TEST(test_gutter_takes_a_dead_servers_keys),
        TEST(test_race34_without_a_gutter_keys_go_nowhere),
        TEST(test_race34_what_one_process_cannot_write_is_not_acknowledged),
        TEST(control_race34),
        TEST(test_L6_a_server_that_is_down_does_not_slow_the_others),
        TEST(test_a_batch_of_writes_is_one_round_trip),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
