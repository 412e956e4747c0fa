/*
 * One list of behaviours, run against every backend: `kinds` below is the list of backends, `behaviours` at
 * the end the list of what each must do.  A new backend begins by adding its line.
 *
 * Servers are started once per kind and kept; every test opens a client of its own and uses keys of its own.
 */
#include "harness/test.h"

#include "base/le.h"
#include "harness/certs.h"
#include "harness/cluster.h"
#include "harness/server.h"
#include "l2/access.h"
#include "l2/backend.h"
#include "l2/tls.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SERVERS    3
#define MAX_STORED ((size_t)2 << 20)
#define LIMIT_MS   (2000 * (int64_t)test_slack())
#define SLACK_MS   (400 * (int64_t)test_slack())
#define TIMEOUT_MS 150

struct kind {
    const char *name;
    const char *uri; /* NULL: of the servers */
    struct test_server *(*start)(unsigned flags, const char *const *extra);
    unsigned    flags, servers;
    const char *extra[8];
    bool        tls;       /* at a port of its own, with certificates of the test's */
    bool        clustered; /* the servers are the primaries of a cluster, which takes its time to come back */

    struct test_server  *server[SERVERS];
    struct test_cluster *cluster;
};

#ifdef HAVE_OPENSSL
static struct test_server *start_with_tls(unsigned flags, const char *const *extra);
#endif

static struct kind kinds[] = {
    { .name = "memory", .uri = "memory:" },
    { .name = "memory:NAME", .uri = "memory:contract" },
    { .name = "memcached unix", .start = test_memcached_start, .servers = 1, .extra = { "-I", "4m" } },
    { .name    = "memcached tcp",
      .start   = test_memcached_start,
      .flags   = TEST_SERVER_TCP,
      .servers = 1,
      .extra   = { "-I", "4m" } },
    { .name    = "memcached ring",
      .start   = test_memcached_start,
      .flags   = TEST_SERVER_TCP,
      .servers = 3,
      .extra   = { "-I", "4m" } },
    { .name = "redis unix", .start = test_redis_start, .servers = 1 },
    { .name = "redis tcp", .start = test_redis_start, .flags = TEST_SERVER_TCP, .servers = 1 },
#ifdef HAVE_OPENSSL
    { .name = "redis tls", .start = start_with_tls, .servers = 1, .tls = true },
#endif
    { .name = "redis cluster", .clustered = true, .servers = 3 },
};

struct world {
    struct kind              *kind;
    const struct near_l2_ops *ops;
    void                     *self;
    struct near__uri          uri;
    struct near_l2_env        env;
    struct near_l2_traits     traits;
    struct test_clock         clock;  /* of memory: kinds */
    unsigned                  number; /* makes the keys this test's own */
};

/* --------------------------------------------------------------------------------------------------- TLS */

static char                certificates[] = "/tmp/near-contract-XXXXXX"; /* until mkdtemp(): none are made */
static struct near__access access_to;

#ifdef HAVE_OPENSSL
static const char *
certificate(const char *name)
{
    static char paths[3][64];
    static int  next;
    char       *path = paths[next++ % 3];

    snprintf(path, sizeof(paths[0]), "%s/%s", certificates, name);
    return path;
}

static bool
make_certificates(void)
{
    struct test_ca *ca = mkdtemp(certificates) != NULL ? test_ca_new(certificates, "ca") : NULL;
    bool            ok = ca != NULL && test_ca_issue(ca, "server", "IP:127.0.0.1", 10);

    test_ca_free(&ca);
    return ok && near__tls_context_new(&access_to.tls,
                                       &(struct near__tls_options){ .ca_file = certificate("ca.crt") },
                                       NULL) == NEAR_OK;
}

static struct test_server *
start_with_tls(unsigned flags, const char *const *extra)
{
    struct test_server *server = NULL;
    char                port[16];

    (void)extra;
    if (access_to.tls == NULL && !make_certificates())
        return NULL;
    for (int tries = 0; server == NULL && tries < 5; tries++) {
        snprintf(port, sizeof(port), "%d", test_free_port());
        server = test_redis_start(
            flags, (const char *[]){ "--tls-port", port, "--tls-cert-file", certificate("server.crt"),
                                     "--tls-key-file", certificate("server.key"), "--tls-ca-cert-file",
                                     certificate("ca.crt"), "--tls-auth-clients", "no", NULL });
    }
    if (server != NULL)
        snprintf(server->uri, sizeof(server->uri), "rediss://127.0.0.1:%s", port);
    return server;
}

static void
forget_certificates(void)
{
    static const char *const names[] = { "ca.crt", "ca.key", "server.crt", "server.key" };

    near__tls_context_free(&access_to.tls);
    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++)
        unlink(certificate(names[i]));
    rmdir(certificates);
}
#else
static void
forget_certificates(void)
{
    (void)certificates;
}
#endif

/* ------------------------------------------------------------------------------------------------ set-up */

static void
uri_of(struct kind *kind, char *out, size_t size)
{
    int n;

    if (kind->clustered) {
        snprintf(out, size, "%s", kind->cluster->uri);
        return;
    }
    n = snprintf(out, size, "%s", kind->uri != NULL ? kind->uri : kind->server[0]->uri);
    for (unsigned i = 1; i < kind->servers; i++)
        n += snprintf(out + n, size - (size_t)n, ",127.0.0.1:%d", kind->server[i]->port);
}

static void
start_servers(struct kind *kind)
{
    if (kind->clustered && kind->cluster == NULL) {
        kind->cluster = test_cluster_start(kind->servers, 0, 1000, kind->extra);
        for (unsigned i = 0; kind->cluster != NULL && i < kind->servers; i++)
            kind->server[i] = kind->cluster->server[i];
    }
    for (unsigned i = 0; i < kind->servers; i++) {
        if (kind->server[i] == NULL && kind->start != NULL)
            kind->server[i] = kind->start(kind->flags, kind->extra);
        test_need_server(kind->server[i]);
        if (kind->server[i]->pid == 0)
            assert_true(test_server_restart(kind->server[i]));
        test_server_resume(kind->server[i]);
    }
}

static void
open_backend(struct world *w)
{
    near_error error = { 0 };

    assert_int_equal(w->ops->open(&w->self, &w->env, &w->traits, &error), NEAR_OK);
    assert_non_null(w->self);
}

static int
world_setup(void **state)
{
    static unsigned     number;
    static struct world world;
    struct kind        *kind = *state;
    char                uri[1024];

    *state = &world;
    memset(&world, 0, sizeof(world));
    world.kind   = kind;
    world.number = ++number;
    start_servers(kind);
    uri_of(kind, uri, sizeof(uri));
    assert_int_equal(near__uri_parse(&world.uri, "l2.uri", uri, NULL), NEAR_OK);
    world.ops = near__l2_backend_named(world.uri.scheme);
    assert_non_null(world.ops);
    test_clock_init(&world.clock, 1000 * NEAR_MS);
    world.env.uri             = &world.uri;
    world.env.access          = kind->tls ? &access_to : NULL;
    world.env.clock           = kind->servers == 0 ? &world.clock.clock : &near__clock_system;
    world.env.connect_timeout = 1000 * NEAR_MS;
    world.env.pool_size       = 4;
    world.env.max_stored      = MAX_STORED;
    world.env.client_name     = "contract";
    open_backend(&world);
    return 0;
}

static int
world_teardown(void **state)
{
    struct world *w = *state;

    for (unsigned i = 0; i < w->kind->servers; i++) {
        if (w->kind->server[i] != NULL)
            test_server_resume(w->kind->server[i]);
    }
    if (w->self != NULL) {
        w->ops->close(w->self);
        w->ops->stop(w->self);
        w->ops->fini(w->self);
    }
    return 0;
}

static int
group_teardown(void **state)
{
    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(kinds); i++) {
        test_cluster_stop(&kinds[i].cluster);
        for (unsigned s = 0; !kinds[i].clustered && s < kinds[i].servers; s++)
            test_server_stop(&kinds[i].server[s]);
    }
    forget_certificates();
    return 0;
}

/* -------------------------------------------------------------------------------------------- one-liners */

static int64_t
after_ms(const struct world *w, int64_t ms)
{
    return near__now(w->env.clock) + ms * NEAR_MS;
}

struct got {
    const struct near_l2_item *item;
    unsigned                   times;
    size_t                     size;
    uint8_t                   *data;
};

/* `user` of every item is its `struct got`. */
static void
note(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct got *got = item->user;

    (void)ctx;
    got->times++;
    got->size = stored.size;
    free(got->data);
    got->data = malloc(stored.size + 1);
    if (got->data != NULL && stored.size > 0)
        memcpy(got->data, stored.data, stored.size);
}

static enum near_l2_answer
get_until(struct world *w, near_bytes key, struct got *got, near_status *status, int64_t ms)
{
    struct near_l2_item item = { .key = key, .user = got };

    memset(got, 0, sizeof(*got));
    w->ops->get_many(w->self, &item, 1, note, NULL, after_ms(w, ms));
    if (status != NULL)
        *status = item.status;
    return item.answer;
}

static enum near_l2_answer
get(struct world *w, near_bytes key, struct got *got)
{
    return get_until(w, key, got, NULL, LIMIT_MS);
}

static enum near_l2_answer
set_mode(struct world *w, enum near_l2_mode mode, near_bytes key, near_bytes value, int64_t ttl_ms,
         uint64_t expected)
{
    struct near_l2_item item = { .key = key, .value = value, .ttl_ms = ttl_ms, .expected = expected };

    w->ops->set_many(w->self, mode, &item, 1, NULL, after_ms(w, LIMIT_MS));
    return item.answer;
}

static enum near_l2_answer
set(struct world *w, near_bytes key, near_bytes value, int64_t ttl_ms)
{
    return set_mode(w, NEAR_L2_ALWAYS, key, value, ttl_ms, 0);
}

static enum near_l2_answer
remove_mode(struct world *w, enum near_l2_mode mode, near_bytes key, uint64_t expected)
{
    struct near_l2_item item = { .key = key, .expected = expected };

    w->ops->remove_many(w->self, mode, &item, 1, NULL, after_ms(w, LIMIT_MS));
    return item.answer;
}

static void
assert_holds(struct world *w, near_bytes key, near_bytes value)
{
    struct got got;

    assert_int_equal(get(w, key, &got), NEAR_L2_DONE);
    assert_int_equal(got.times, 1);
    assert_int_equal(got.size, value.size);
    assert_non_null(got.data);
    if (value.size > 0)
        assert_memory_equal(got.data, value.data, value.size);
    free(got.data);
}

static void
assert_absent(struct world *w, near_bytes key)
{
    struct got got;

    assert_int_equal(get(w, key, &got), NEAR_L2_ABSENT);
    assert_int_equal(got.times, 0);
}

/* A key of this test's own.  KEY and STAMPED live as long as the block they stand in. */
static near_bytes
name_key(struct world *w, char *out, size_t size, const char *name, unsigned i)
{
    int n = snprintf(out, size, "t%u:%s:%u", w->number, name, i);

    return (near_bytes){ out, (size_t)n };
}

#define KEY(w, name, i) name_key(w, (char[64]){ 0 }, 64, name, i)

/* Stored bytes as the rest of the library makes them: 16 at least, a stamp at 8. */
static near_bytes
stamped(uint8_t out[32], uint64_t stamp, uint64_t word)
{
    memset(out, 'x', 32);
    near__le64_put(out + NEAR_L2_STAMP_AT, stamp);
    near__le64_put(out + 16, word);
    return (near_bytes){ out, 32 };
}

#define STAMPED(stamp, word) stamped((uint8_t[32]){ 0 }, stamp, word)

static void
pass(struct world *w, int64_t ms)
{
    if (w->kind->servers == 0) {
        test_clock_advance(&w->clock, ms);
        return;
    }
    nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * NEAR_MS }, NULL);
}

/* The servers have come back, or gone on: the first calls succeed within a second. */
static int
answers_again(void *ctx)
{
    struct world *w = ctx;
    struct got    got;

    for (unsigned i = 0; i < 16; i++) { /* of a ring, all servers */
        if (get_until(w, KEY(w, "again", i), &got, NULL, 300) != NEAR_L2_ABSENT)
            return 0;
    }
    return 1;
}

/* -------------------------------------------------------------------------------------------- behaviours */

static void
contract_bytes_in_are_bytes_out(void **state)
{
    struct world    *w = *state;
    static char      all[256], large[(1 << 20) - 1];
    const near_bytes values[] = {
        { NULL, 0 },
        { "", 0 },
        { "a", 1 },
        { "\0", 1 },
        { "\0\0\0", 3 },
        { "\r\n", 2 },
        { "x\r\nEND\r\nVALUE k 0 1\r\n", 21 },
        { "0123456789abcdef", 16 },
        { all, sizeof(all) },
        { large, sizeof(large) },
    };
    uint64_t random = 1;

    for (size_t i = 0; i < sizeof(all); i++)
        all[i] = (char)i;
    for (size_t i = 0; i < sizeof(large); i++)
        large[i] = (char)test_random(&random);
    for (unsigned i = 0; i < NEAR_COUNT_OF(values); i++) {
        near_bytes key = KEY(w, "v", i);
        assert_absent(w, key);
        assert_int_equal(set(w, key, values[i], 0), NEAR_L2_DONE);
        assert_holds(w, key, values[i]);
        assert_int_equal(set(w, key, values[(i + 1) % NEAR_COUNT_OF(values)], 0), NEAR_L2_DONE);
        assert_holds(w, key, values[(i + 1) % NEAR_COUNT_OF(values)]);
    }
}

static bool
is_plain(near_bytes key)
{
    const unsigned char *at = key.data;

    for (size_t i = 0; i < key.size; i++) {
        if (at[i] < 0x21 || at[i] > 0x7E)
            return false;
    }
    return true;
}

static void
refused_without_harm(struct world *w, near_bytes key)
{
    struct near_l2_item item   = { .key = key, .value = STAMPED(1, 1) };
    near_bytes          before = KEY(w, "before", 0);
    struct got          got;
    near_status         status;

    assert_int_equal(set(w, before, STAMPED(7, 7), 0), NEAR_L2_DONE);
    w->ops->set_many(w->self, NEAR_L2_ALWAYS, &item, 1, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_INVALID);
    assert_int_equal(get_until(w, key, &got, &status, LIMIT_MS), NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_INVALID);
    assert_int_equal(remove_mode(w, NEAR_L2_ALWAYS, key, 0), NEAR_L2_ERROR);
    assert_holds(w, before, STAMPED(7, 7));
}

static void
contract_every_key_shape_works_or_is_refused(void **state)
{
    struct world    *w = *state;
    static char      long_key[1001];
    const near_bytes shapes[] = {
        { "k", 1 },
        { "!~", 2 },
        { "{a}b", 4 },
        { long_key, 250 },
        { long_key, 251 },
        { long_key, 1000 },
        { "two words", 9 },
        { "tab\there", 8 },
        { "nul\0nul", 7 },
        { "k1\r\nset k2 0 0 1\r\nx", 20 },
        { "gr\xc3\xbc\xc3\x9f", 6 },
        { "\xff\xfe\x00\x01", 4 },
        { "\x7f", 1 },
        { "\r\n", 2 },
    };

    memset(long_key, 'L', sizeof(long_key));
    for (size_t i = 0; i < NEAR_COUNT_OF(shapes); i++) {
        if (shapes[i].size > w->traits.max_key || (!w->traits.binary_keys && !is_plain(shapes[i]))) {
            refused_without_harm(w, shapes[i]);
            continue;
        }
        assert_int_equal(set(w, shapes[i], STAMPED(i + 1, i), 0), NEAR_L2_DONE);
        assert_holds(w, shapes[i], STAMPED(i + 1, i));
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(shapes); i++) { /* none has touched another's */
        if (shapes[i].size > w->traits.max_key || (!w->traits.binary_keys && !is_plain(shapes[i])))
            continue;
        assert_holds(w, shapes[i], STAMPED(i + 1, i));
        assert_int_equal(remove_mode(w, NEAR_L2_ALWAYS, shapes[i], 0), NEAR_L2_DONE);
        assert_absent(w, shapes[i]);
    }
}

static void
contract_too_large_is_refused(void **state)
{
    struct world       *w     = *state;
    char               *large = calloc(1, MAX_STORED + 1);
    near_bytes          key   = KEY(w, "large", 0);
    struct near_l2_item item  = { .key = key, .value = { large, MAX_STORED + 1 } };

    assert_non_null(large);
    assert_int_equal(set(w, key, (near_bytes){ large, MAX_STORED }, 0), NEAR_L2_DONE);
    assert_holds(w, key, (near_bytes){ large, MAX_STORED });
    assert_int_equal(set(w, key, STAMPED(1, 1), 0), NEAR_L2_DONE);
    w->ops->set_many(w->self, NEAR_L2_ALWAYS, &item, 1, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_TOO_LARGE);
    assert_holds(w, key, STAMPED(1, 1));
    free(large);
}

static void
contract_stored_by_a_client_with_a_higher_limit_is_refused(void **state)
{
    struct world      *w     = *state;
    char              *large = calloc(1, 1000);
    near_bytes         key   = KEY(w, "large", 0);
    struct world       other = *w;
    struct near_l2_env env   = w->env;
    struct got         got;
    near_status        status;

    assert_int_equal(set(w, key, (near_bytes){ large, 1000 }, 0), NEAR_L2_DONE);
    env.max_stored = 999;
    assert_int_equal(w->ops->open(&other.self, &env, &other.traits, NULL), NEAR_OK);
    assert_int_equal(get_until(&other, key, &got, &status, LIMIT_MS), NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_TOO_LARGE);
    assert_int_equal(got.times, 0);
    assert_int_equal(get(&other, KEY(w, "none", 0), &got), NEAR_L2_ABSENT);
    w->ops->fini(other.self);
    free(large);
}

static void
contract_ttl_ends_after_its_time_and_not_before(void **state)
{
    struct world *w     = *state;
    int64_t       began = near__now(w->env.clock), now;
    struct got    got;
    bool          there = true;

    assert_int_equal(set(w, KEY(w, "ttl", 0), STAMPED(1, 1), 1500), NEAR_L2_DONE);
    assert_int_equal(set(w, KEY(w, "ttl", 1), STAMPED(1, 1), 1), NEAR_L2_DONE);
    assert_int_equal(set(w, KEY(w, "ttl", 2), STAMPED(1, 1), INT64_C(31) * 86400 * 1000), NEAR_L2_DONE);
    assert_int_equal(set(w, KEY(w, "ttl", 3), STAMPED(1, 1), INT64_C(30) * 86400 * 1000), NEAR_L2_DONE);
    assert_int_equal(set(w, KEY(w, "ttl", 4), STAMPED(1, 1), INT64_C(20) * 365 * 86400 * 1000), NEAR_L2_DONE);
    assert_int_equal(set(w, KEY(w, "ttl", 5), STAMPED(1, 1), 10), NEAR_L2_DONE);
    assert_int_equal(set(w, KEY(w, "ttl", 5), STAMPED(1, 1), 0), NEAR_L2_DONE); /* clears the TTL before */
    while (there) {
        there = get(w, KEY(w, "ttl", 0), &got) == NEAR_L2_DONE;
        now   = near__now(w->env.clock) - began;
        free(got.data);
        if (!there)
            assert_true(now >= 1500 * NEAR_MS);
        assert_true(now < (1500 + 2500) * NEAR_MS + SLACK_MS * NEAR_MS);
        pass(w, 50);
    }
    assert_absent(w, KEY(w, "ttl", 1));
    for (unsigned i = 2; i < 6; i++)
        assert_holds(w, KEY(w, "ttl", i), STAMPED(1, 1));
}

static void
contract_if_absent_is_won_once(void **state)
{
    struct world *w   = *state;
    near_bytes    key = KEY(w, "add", 0);

    assert_int_equal(set_mode(w, NEAR_L2_IF_ABSENT, key, STAMPED(1, 1), 60000, 0), NEAR_L2_DONE);
    assert_int_equal(set_mode(w, NEAR_L2_IF_ABSENT, key, STAMPED(2, 2), 60000, 0), NEAR_L2_ABSENT);
    assert_holds(w, key, STAMPED(1, 1));
    assert_int_equal(remove_mode(w, NEAR_L2_ALWAYS, key, 0), NEAR_L2_DONE);
    assert_int_equal(set_mode(w, NEAR_L2_IF_ABSENT, key, STAMPED(2, 2), 60000, 0), NEAR_L2_DONE);
    assert_holds(w, key, STAMPED(2, 2));
}

static void
contract_if_stamp_writes_over_its_stamp_only(void **state)
{
    struct world *w   = *state;
    near_bytes    key = KEY(w, "cas", 0);
    uint8_t       big[32];
    uint64_t      wide = UINT64_C(0xFEDCBA9876543210);

    assert_int_equal(set_mode(w, NEAR_L2_IF_STAMP, key, STAMPED(2, 2), 0, 1), NEAR_L2_ABSENT);
    assert_absent(w, key);
    assert_int_equal(set(w, key, STAMPED(1, 1), 0), NEAR_L2_DONE);
    assert_int_equal(set_mode(w, NEAR_L2_IF_STAMP, key, STAMPED(3, 3), 0, 2), NEAR_L2_ABSENT);
    assert_holds(w, key, STAMPED(1, 1));
    assert_int_equal(set_mode(w, NEAR_L2_IF_STAMP, key, stamped(big, wide, 3), 0, 1), NEAR_L2_DONE);
    assert_holds(w, key, (near_bytes){ big, 32 });
    assert_int_equal(set_mode(w, NEAR_L2_IF_STAMP, key, STAMPED(5, 5), 0, wide ^ (UINT64_C(1) << 63)),
                     NEAR_L2_ABSENT);
    assert_int_equal(set_mode(w, NEAR_L2_IF_STAMP, key, STAMPED(5, 5), 0, wide), NEAR_L2_DONE);
    /* bytes too short for a stamp match none, not even one that fits as far as they go */
    for (size_t size = 0; size < 16; size++) {
        assert_int_equal(set(w, key, (near_bytes){ big, size }, 0), NEAR_L2_DONE);
        assert_int_equal(set_mode(w, NEAR_L2_IF_STAMP, key, STAMPED(6, 6), 0, wide), NEAR_L2_ABSENT);
        assert_int_equal(set_mode(w, NEAR_L2_IF_STAMP, key, STAMPED(6, 6), 0, 0), NEAR_L2_ABSENT);
    }
    assert_int_equal(set(w, key, (near_bytes){ big, 16 }, 0), NEAR_L2_DONE);
    assert_int_equal(set_mode(w, NEAR_L2_IF_STAMP, key, STAMPED(6, 6), 0, wide), NEAR_L2_DONE);
    assert_holds(w, key, STAMPED(6, 6));
}

static void
contract_remove_removes(void **state)
{
    struct world *w   = *state;
    near_bytes    key = KEY(w, "rm", 0);

    assert_int_equal(remove_mode(w, NEAR_L2_ALWAYS, key, 0), NEAR_L2_DONE);
    assert_int_equal(set(w, key, STAMPED(1, 1), 0), NEAR_L2_DONE);
    assert_int_equal(remove_mode(w, NEAR_L2_ALWAYS, key, 0), NEAR_L2_DONE);
    assert_absent(w, key);
    assert_int_equal(remove_mode(w, NEAR_L2_IF_STAMP, key, 1), NEAR_L2_ABSENT);
    assert_int_equal(set(w, key, STAMPED(1, 1), 0), NEAR_L2_DONE);
    assert_int_equal(remove_mode(w, NEAR_L2_IF_STAMP, key, 2), NEAR_L2_ABSENT);
    assert_holds(w, key, STAMPED(1, 1));
    assert_int_equal(remove_mode(w, NEAR_L2_IF_STAMP, key, 1), NEAR_L2_DONE);
    assert_absent(w, key);
    /* gone means that a lease can be taken */
    assert_int_equal(set_mode(w, NEAR_L2_IF_ABSENT, key, STAMPED(2, 2), 0, 0), NEAR_L2_DONE);
    assert_int_equal(set(w, key, (near_bytes){ "short", 5 }, 0), NEAR_L2_DONE);
    assert_int_equal(remove_mode(w, NEAR_L2_IF_STAMP, key, 2), NEAR_L2_ABSENT);
    assert_holds(w, key, (near_bytes){ "short", 5 });
}

static void
contract_increment_counts(void **state)
{
    struct world       *w    = *state;
    near_bytes          key  = KEY(w, "inc", 0);
    struct near_l2_sum  sum  = { .delta = 3, .initial = -4 };
    struct near_l2_item item = { .key = key, .sum = &sum };
    static const struct {
        int64_t delta, result;
    } rows[] = {
        { 3, -1 }, { 1, 0 }, { -10, -10 }, { 110, 100 }, { 0, 100 }, { INT64_MAX - 100, INT64_MAX }
    };

    w->ops->increment(w->self, &item, 1, after_ms(w, LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_DONE);
    assert_true(sum.created && sum.result == -4);
    assert_holds(w, key, (near_bytes){ "-4", 2 });
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        sum.delta   = rows[i].delta;
        item.answer = NEAR_L2_NOT_TRIED;
        w->ops->increment(w->self, &item, 1, after_ms(w, LIMIT_MS));
        assert_int_equal(item.answer, NEAR_L2_DONE);
        assert_false(sum.created);
        assert_true(sum.result == rows[i].result);
    }
    sum.delta = 1;
    w->ops->increment(w->self, &item, 1, after_ms(w, LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_ERROR); /* it would not fit */
    assert_int_equal(item.status, NEAR_ERR_INVALID);
    assert_holds(w, key, (near_bytes){ "9223372036854775807", 19 });
    assert_int_equal(set(w, key, STAMPED(1, 1), 0), NEAR_L2_DONE);
    w->ops->increment(w->self, &item, 1, after_ms(w, LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_ABSENT); /* no counter */
    assert_holds(w, key, STAMPED(1, 1));
    item.sum = NULL;
    w->ops->increment(w->self, &item, 1, after_ms(w, LIMIT_MS));
    assert_int_equal(item.status, NEAR_ERR_INVALID);
}

/* Every second key is there, each with a value of its own. */
static void
check_batch(struct world *w, unsigned n)
{
    struct near_l2_item *items = calloc(n, sizeof(*items));
    struct got          *got   = calloc(n, sizeof(*got));
    char(*names)[64]           = calloc(n, sizeof(*names));
    uint8_t(*values)[32]       = calloc(n, sizeof(*values));
    unsigned there             = 0;
    char     name[16];

    snprintf(name, sizeof(name), "b%u", n);
    assert_true(items != NULL && got != NULL && names != NULL && values != NULL);
    for (unsigned i = 0; i < n; i += 2) {
        items[there].key   = name_key(w, names[i], sizeof(names[i]), name, i);
        items[there].value = stamped(values[i], i + 1, i);
        there++;
    }
    w->ops->set_many(w->self, NEAR_L2_ALWAYS, items, there, NULL, after_ms(w, LIMIT_MS));
    for (unsigned i = 0; i < there; i++)
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
    memset(items, 0, n * sizeof(*items));
    for (unsigned i = 0; i < n; i++) {
        items[i].key  = name_key(w, names[i], sizeof(names[i]), name, i);
        items[i].user = &got[i];
    }
    w->ops->get_many(w->self, items, n, note, NULL, after_ms(w, LIMIT_MS));
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(items[i].answer, i % 2 == 0 ? NEAR_L2_DONE : NEAR_L2_ABSENT);
        assert_int_equal(items[i].status, NEAR_OK);
        assert_int_equal(got[i].times, i % 2 == 0 ? 1 : 0);
        if (i % 2 == 0)
            assert_memory_equal(got[i].data, values[i], 32);
        items[i].answer = NEAR_L2_NOT_TRIED;
    }
    for (unsigned at = 0; at < n; at += NEAR_L2_BATCH)
        w->ops->remove_many(w->self, NEAR_L2_ALWAYS, items + at,
                            n - at < NEAR_L2_BATCH ? n - at : NEAR_L2_BATCH, NULL, after_ms(w, LIMIT_MS));
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
        free(got[i].data);
    }
    assert_absent(w, items[0].key);
    free(items);
    free(got);
    free(names);
    free(values);
}

static void
contract_batches_answer_each_item(void **state)
{
    check_batch(*state, 1);
    check_batch(*state, 2);
    check_batch(*state, NEAR_L2_BATCH);
    check_batch(*state, NEAR_L2_READS);
}

/* The longest request there can be: every key as long as every backend allows. */
static void
contract_a_full_batch_of_long_keys(void **state)
{
    struct world       *w = *state;
    static char         names[NEAR_L2_BATCH][251];
    struct near_l2_item items[NEAR_L2_BATCH];
    struct got          got = { 0 };

    memset(items, 0, sizeof(items));
    for (unsigned i = 0; i < NEAR_L2_BATCH; i++) {
        int n = snprintf(names[i], sizeof(names[i]), "t%u:long:%u:", w->number, i);
        memset(names[i] + n, 'l', (size_t)(250 - n));
        items[i].key   = (near_bytes){ names[i], 250 };
        items[i].value = (near_bytes){ names[i], 250 };
        items[i].user  = &got;
    }
    w->ops->set_many(w->self, NEAR_L2_ALWAYS, items, NEAR_L2_BATCH / 2, NULL, after_ms(w, LIMIT_MS));
    for (unsigned i = 0; i < NEAR_L2_BATCH; i++) {
        assert_int_equal(items[i].answer, i < NEAR_L2_BATCH / 2 ? NEAR_L2_DONE : NEAR_L2_NOT_TRIED);
        items[i].answer = NEAR_L2_NOT_TRIED;
    }
    w->ops->get_many(w->self, items, NEAR_L2_BATCH, note, NULL, after_ms(w, LIMIT_MS));
    for (unsigned i = 0; i < NEAR_L2_BATCH; i++)
        assert_int_equal(items[i].answer, i < NEAR_L2_BATCH / 2 ? NEAR_L2_DONE : NEAR_L2_ABSENT);
    assert_int_equal(got.times, NEAR_L2_BATCH / 2);
    free(got.data);
}

static void
contract_conditional_batches_answer_each_item(void **state)
{
    struct world       *w = *state;
    struct near_l2_item items[4];
    uint8_t             values[4][32];

    memset(items, 0, sizeof(items));
    items[0].key = KEY(w, "c", 0);
    items[1].key = KEY(w, "c", 1);
    items[2].key = KEY(w, "c", 2);
    items[3].key = KEY(w, "c", 3);
    assert_int_equal(set(w, items[1].key, STAMPED(11, 1), 0), NEAR_L2_DONE);
    assert_int_equal(set(w, items[3].key, STAMPED(13, 1), 0), NEAR_L2_DONE);
    for (size_t i = 0; i < 4; i++)
        items[i].value = stamped(values[i], 20 + i, i);
    w->ops->set_many(w->self, NEAR_L2_IF_ABSENT, items, 4, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(items[0].answer, NEAR_L2_DONE);
    assert_int_equal(items[1].answer, NEAR_L2_ABSENT);
    assert_int_equal(items[2].answer, NEAR_L2_DONE);
    assert_int_equal(items[3].answer, NEAR_L2_ABSENT);
    for (size_t i = 0; i < 4; i++) {
        items[i].answer   = NEAR_L2_NOT_TRIED;
        items[i].expected = i == 1 ? 11 : 20 + i; /* right for 0, 1, 2 */
    }
    w->ops->remove_many(w->self, NEAR_L2_IF_STAMP, items, 4, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(items[0].answer, NEAR_L2_DONE);
    assert_int_equal(items[1].answer, NEAR_L2_DONE);
    assert_int_equal(items[2].answer, NEAR_L2_DONE);
    assert_int_equal(items[3].answer, NEAR_L2_ABSENT);
    assert_holds(w, items[3].key, STAMPED(13, 1));
}

static void
contract_a_key_may_stand_twice_in_a_batch(void **state)
{
    struct world       *w      = *state;
    struct got          got[3] = { 0 };
    struct near_l2_item items[3];

    memset(items, 0, sizeof(items));
    assert_int_equal(set(w, KEY(w, "twice", 0), STAMPED(1, 9), 0), NEAR_L2_DONE);
    items[0].key = items[2].key = KEY(w, "twice", 0);
    items[1].key                = KEY(w, "twice", 1);
    for (size_t i = 0; i < 3; i++)
        items[i].user = &got[i];
    w->ops->get_many(w->self, items, 3, note, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(items[0].answer, NEAR_L2_DONE);
    assert_int_equal(items[1].answer, NEAR_L2_ABSENT);
    assert_int_equal(items[2].answer, NEAR_L2_DONE);
    assert_int_equal(got[0].times, 1);
    assert_int_equal(got[2].times, 1);
    free(got[0].data);
    free(got[2].data);
}

static void
contract_passed_deadline_tries_nothing(void **state)
{
    struct world       *w    = *state;
    struct got          got  = { 0 };
    struct near_l2_item item = { .key = KEY(w, "late", 0), .value = STAMPED(1, 1), .user = &got };

    w->ops->set_many(w->self, NEAR_L2_ALWAYS, &item, 1, NULL, after_ms(w, -1));
    assert_true(item.answer == NEAR_L2_NOT_TRIED || item.answer == NEAR_L2_ERROR);
    item.answer = NEAR_L2_NOT_TRIED;
    w->ops->get_many(w->self, &item, 1, note, NULL, after_ms(w, -1));
    assert_true(item.answer == NEAR_L2_NOT_TRIED || item.answer == NEAR_L2_ERROR);
    assert_int_equal(got.times, 0);
    assert_absent(w, item.key);
}

static bool
could_not_tell(enum near_l2_answer answer)
{
    return answer == NEAR_L2_ERROR || answer == NEAR_L2_NOT_TRIED;
}

static bool
not_done_for_all_we_know(enum near_l2_answer answer)
{
    return could_not_tell(answer) || answer == NEAR_L2_UNKNOWN;
}

static void
contract_unreachable_is_never_absent(void **state)
{
    struct world *w   = *state;
    near_bytes    key = KEY(w, "gone", 0);
    struct got    got;

    assert_int_equal(set(w, key, STAMPED(1, 1), 0), NEAR_L2_DONE);
    for (unsigned i = 0; i < w->kind->servers; i++)
        test_server_kill(w->kind->server[i]);
    for (unsigned i = 0; i < 20; i++) {
        assert_true(could_not_tell(get_until(w, key, &got, NULL, TIMEOUT_MS)));
        assert_int_equal(got.times, 0);
        assert_true(not_done_for_all_we_know(set_mode(w, NEAR_L2_IF_STAMP, key, STAMPED(2, 2), 0, 1)));
        assert_true(not_done_for_all_we_know(set(w, key, STAMPED(2, 2), 0)));
        assert_true(not_done_for_all_we_know(remove_mode(w, NEAR_L2_ALWAYS, key, 0)));
    }
    for (unsigned i = 0; i < w->kind->servers; i++)
        assert_true(test_server_restart(w->kind->server[i]));
    assert_true(test_wait_for(answers_again, w, 1000 * test_slack()));
    assert_absent(w, key);
    assert_int_equal(set(w, key, STAMPED(3, 3), 0), NEAR_L2_DONE);
    assert_holds(w, key, STAMPED(3, 3));
}

/* The server has been away while nobody asked: what the pool holds is dead. */
static void
contract_restarted_server_is_found_again_at_once(void **state)
{
    struct world *w = *state;

    for (unsigned i = 0; i < 16; i++)
        assert_int_equal(set(w, KEY(w, "back", i), STAMPED(1, 1), 0), NEAR_L2_DONE);
    for (unsigned i = 0; i < w->kind->servers; i++) {
        test_server_kill(w->kind->server[i]);
        assert_true(test_server_restart(w->kind->server[i]));
    }
    for (unsigned i = 0; i < 16; i++) {
        assert_absent(w, KEY(w, "back", i));
        assert_int_equal(set(w, KEY(w, "back", i), STAMPED(2, 2), 0), NEAR_L2_DONE);
    }
}

static void
contract_deadline_holds_when_the_server_is_stopped(void **state)
{
    struct world       *w      = *state;
    struct got          got[8] = { 0 };
    struct near_l2_item items[8];
    char                names[8][64];
    uint8_t             value[32];

    assert_int_equal(set(w, KEY(w, "stop", 0), STAMPED(1, 1), 0), NEAR_L2_DONE);
    for (unsigned i = 0; i < w->kind->servers; i++)
        test_server_pause(w->kind->server[i]);
    for (unsigned round = 0; round < 6; round++) {
        int64_t began = test_now_ms();
        memset(items, 0, sizeof(items));
        for (unsigned i = 0; i < 8; i++) {
            items[i].key   = name_key(w, names[i], sizeof(names[i]), "stop", i);
            items[i].value = stamped(value, 2, 2);
            items[i].user  = &got[i];
        }
        if (round % 3 == 0)
            w->ops->get_many(w->self, items, 8, note, NULL, after_ms(w, TIMEOUT_MS));
        else if (round % 3 == 1)
            w->ops->set_many(w->self, round == 1 ? NEAR_L2_ALWAYS : NEAR_L2_IF_ABSENT, items, 8, NULL,
                             after_ms(w, TIMEOUT_MS));
        else
            w->ops->remove_many(w->self, NEAR_L2_ALWAYS, items, 8, NULL, after_ms(w, TIMEOUT_MS));
        assert_true(test_now_ms() - began < TIMEOUT_MS + SLACK_MS);
        for (unsigned i = 0; i < 8; i++) {
            assert_true(round % 3 == 0 ? could_not_tell(items[i].answer)
                                       : not_done_for_all_we_know(items[i].answer));
            assert_int_equal(got[i].times, 0);
        }
    }
    for (unsigned i = 0; i < w->kind->servers; i++)
        test_server_resume(w->kind->server[i]);
    assert_true(test_wait_for(answers_again, w, 1000 * test_slack()));
}

/* --------------------------------------------------------------------------------------- several threads */

struct worker {
    struct world *world;
    unsigned      number;
    unsigned      wrong; /* counted here, asserted by the main thread */
    pthread_t     thread;
};

static void *
work(void *ctx)
{
    struct worker *me = ctx;
    struct world  *w  = me->world;
    size_t         n  = test_scale(150);
    char           name[64];
    uint8_t        value[32];
    struct got     got;

    for (size_t i = 0; i < n; i++) {
        near_bytes key = name_key(w, name, sizeof(name), "w", me->number * 16 + (unsigned)(i % 16));
        uint64_t   tag = (uint64_t)me->number << 32 | i;

        me->wrong += set(w, key, stamped(value, tag + 1, tag), 60000) != NEAR_L2_DONE;
        me->wrong += get(w, key, &got) != NEAR_L2_DONE || got.size != 32 || memcmp(got.data, value, 32) != 0;
        free(got.data);
        if (i % 3 == 0) {
            me->wrong += remove_mode(w, NEAR_L2_IF_STAMP, key, tag + 1) != NEAR_L2_DONE;
            me->wrong += get(w, key, &got) != NEAR_L2_ABSENT;
        }
    }
    return NULL;
}

static void
contract_many_threads_get_their_own_values(void **state)
{
    struct worker workers[8] = { 0 };

    for (unsigned i = 0; i < 8; i++) {
        workers[i].world  = *state;
        workers[i].number = i;
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (unsigned i = 0; i < 8; i++)
        pthread_join(workers[i].thread, NULL);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(workers[i].wrong, 0);
}

struct adder {
    struct world *world;
    unsigned      won;
    pthread_t     thread;
};

static void *
add_all(void *ctx)
{
    struct adder *me = ctx;
    char          name[64];
    uint8_t       value[32];

    for (unsigned i = 0; i < 50; i++)
        me->won += set_mode(me->world, NEAR_L2_IF_ABSENT, name_key(me->world, name, sizeof(name), "race", i),
                            stamped(value, 1, 1), 0, 0) == NEAR_L2_DONE;
    return NULL;
}

static void
contract_if_absent_has_one_winner_among_threads(void **state)
{
    struct adder adders[6] = { 0 };
    unsigned     won       = 0;

    for (unsigned i = 0; i < 6; i++) {
        adders[i].world = *state;
        assert_int_equal(pthread_create(&adders[i].thread, NULL, add_all, &adders[i]), 0);
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(adders[i].thread, NULL);
        won += adders[i].won;
    }
    assert_int_equal(won, 50);
}

/* ---------------------------------------------------------------------------------------- beginning, end */

struct blocked {
    struct world       *world;
    struct near_l2_item item;
    char                name[64];
    atomic_bool         done;
    int64_t             took_ms;
    pthread_t           thread;
};

static void *
block(void *ctx)
{
    struct blocked *b     = ctx;
    int64_t         began = test_now_ms();

    b->world->ops->get_many(b->world->self, &b->item, 1, note, NULL, after_ms(b->world, 60000));
    b->took_ms = test_now_ms() - began;
    return NULL;
}

static void
contract_close_wakes_and_refuses(void **state)
{
    struct world  *w   = *state;
    struct got     got = { 0 };
    struct blocked b   = { .world = w };
    near_status    status;

    assert_int_equal(set(w, KEY(w, "end", 0), STAMPED(1, 1), 0), NEAR_L2_DONE);
    b.item.key  = name_key(w, b.name, sizeof(b.name), "end", 0);
    b.item.user = &got;
    for (unsigned i = 0; i < w->kind->servers; i++)
        test_server_pause(w->kind->server[i]);
    assert_int_equal(pthread_create(&b.thread, NULL, block, &b), 0);
    nanosleep(&(struct timespec){ 0, 100 * NEAR_MS },
              NULL); /* long enough to be blocked, or (memory:) done */
    w->ops->close(w->self);
    w->ops->close(w->self);
    w->ops->stop(w->self);
    pthread_join(b.thread, NULL);
    assert_true(b.took_ms < 30000);
    if (w->kind->servers > 0) {
        assert_int_equal(b.item.answer, NEAR_L2_ERROR);
        assert_int_equal(b.item.status, NEAR_ERR_CLOSED);
    }
    free(got.data);
    assert_int_equal(get_until(w, KEY(w, "end", 0), &got, &status, LIMIT_MS), NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_CLOSED);
    assert_int_equal(set(w, KEY(w, "end", 0), STAMPED(1, 1), 0), NEAR_L2_ERROR);
    assert_int_equal(remove_mode(w, NEAR_L2_ALWAYS, KEY(w, "end", 0), 0), NEAR_L2_ERROR);
}

static void
contract_open_needs_no_server(void **state)
{
    struct world *w = *state;
    struct got    got;
    near_status   status;
    char          text[128];
    near_error    error = { 0 };

    w->ops->fini(w->self);
    w->self = NULL;
    for (unsigned i = 0; i < w->kind->servers; i++)
        test_server_kill(w->kind->server[i]);
    open_backend(w);
    assert_true(could_not_tell(get_until(w, KEY(w, "open", 0), &got, &status, TIMEOUT_MS)));
    assert_int_not_equal(w->ops->health(w->self, text, sizeof(text), after_ms(w, TIMEOUT_MS), &error),
                         NEAR_OK);
    assert_string_not_equal(error.text, "");
    for (unsigned i = 0; i < w->kind->servers; i++)
        assert_true(test_server_restart(w->kind->server[i]));
    assert_true(test_wait_for(answers_again, w, 1000 * test_slack()));
}

static void
contract_health_and_stats_say_something(void **state)
{
    struct world        *w         = *state;
    char                 text[256] = "";
    near_error           error     = { 0 };
    struct near_l2_stats stats     = { 0 };

    assert_int_equal(w->ops->health(w->self, text, sizeof(text), after_ms(w, LIMIT_MS), &error), NEAR_OK);
    assert_string_not_equal(text, "");
    w->ops->stats(w->self, &stats);
    assert_true(w->kind->servers == 0 ? stats.connects == 0 : stats.connects >= w->kind->servers);
}

static void
contract_fini_of_nothing_is_fine(void **state)
{
    struct world *w = *state;

    w->ops->fini(NULL);
}

/* Rule P3: what a child does with what it inherited is not noticed by the parent. */
static void
contract_forked_child_disturbs_nobody(void **state)
{
    struct world        *w = *state;
    struct near_l2_stats before, after;
    int                  status = -1;
    pid_t                child;

    assert_int_equal(set(w, KEY(w, "fork", 0), STAMPED(1, 1), 0), NEAR_L2_DONE);
    assert_holds(w, KEY(w, "fork", 0), STAMPED(1, 1));
    w->ops->stats(w->self, &before);
    child = fork();
    if (child == 0) {
        w->ops->forked(w->self);
        w->ops->fini(w->self);
        _exit(0);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_holds(w, KEY(w, "fork", 0), STAMPED(1, 1));
    w->ops->stats(w->self, &after);
    assert_int_equal(after.connects, before.connects);
    assert_int_equal(after.disconnects, before.disconnects);
}

static void
contract_announce_without_the_trait_is_not_sent(void **state)
{
    struct world           *w           = *state;
    uint8_t                 message[32] = { 0 };
    struct near_l2_announce announce    = {
           .channel = { "c", 1 }, .message = message, .size = 32, .stream = 99
    };
    struct near_l2_item item = { .key = KEY(w, "ann", 0), .value = STAMPED(1, 1) };

    w->ops->set_many(w->self, NEAR_L2_ALWAYS, &item, 1, &announce, after_ms(w, LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_DONE);
    assert_int_equal(announce.stream, 0);
}

/* ------------------------------------------------------------------------------------------------ hashes */

#define WIDTH 8

/* A hash of up to WIDTH fields: what is asked, and what was delivered. */
struct row {
    struct near_l2_hash hash;
    near_bytes          fields[WIDTH], values[WIDTH];
    enum near_l2_answer answers[WIDTH];
    char                seen[WIDTH][40];
    size_t              size[WIDTH];
    unsigned            times[WIDTH];
};

static void
note_field(void *ctx, struct near_l2_item *item, size_t field, near_bytes value)
{
    struct row *row = item->user;

    (void)ctx;
    assert_in_range(field, 0, item->hash->count - 1);
    row->times[field]++;
    row->size[field] = value.size;
    if (value.size > 0)
        memcpy(row->seen[field], value.data,
               value.size < sizeof(row->seen[0]) ? value.size : sizeof(row->seen[0]));
}

/* Fields by their names, with values or without: "a=1 b=2 c".  The text is to live as long as the row. */
static struct near_l2_item
row_item(struct row *row, near_bytes key, const char *text)
{
    memset(row, 0, sizeof(*row));
    row->hash =
        (struct near_l2_hash){ .fields = row->fields, .values = row->values, .answers = row->answers };
    while (*text != '\0') {
        size_t name = strcspn(text, "= "), word = strcspn(text, " "), i = row->hash.count++;

        assert_in_range(i, 0, WIDTH - 1);
        row->fields[i] = (near_bytes){ text, name };
        if (name < word)
            row->values[i] = (near_bytes){ text + name + 1, word - name - 1 };
        row->answers[i] = NEAR_L2_UNKNOWN; /* of which a get must leave nothing */
        text += word + (text[word] == ' ');
    }
    return (struct near_l2_item){ .key = key, .hash = &row->hash, .user = row };
}

static struct near_l2_item
hash_set(struct world *w, near_bytes key, const char *text, int64_t ttl_ms)
{
    struct row          row;
    struct near_l2_item item = row_item(&row, key, text);

    item.ttl_ms = ttl_ms;
    w->ops->hash_set_many(w->self, &item, 1, NULL, after_ms(w, LIMIT_MS));
    item.hash = NULL;
    return item;
}

static struct near_l2_item
hash_get(struct world *w, near_bytes key, struct row *row, const char *text)
{
    struct near_l2_item item = row_item(row, key, text);

    w->ops->hash_get_many(w->self, &item, 1, note_field, NULL, after_ms(w, LIMIT_MS));
    return item;
}

/* What was delivered is what stands behind each name; a name alone: absent. */
static void
assert_row(const struct near_l2_item *item)
{
    const struct row *row = item->user;

    assert_int_equal(item->answer, NEAR_L2_DONE);
    assert_int_equal(item->status, NEAR_OK);
    for (size_t i = 0; i < row->hash.count; i++) {
        near_bytes value = row->values[i];

        assert_int_equal(row->answers[i], value.data != NULL ? NEAR_L2_DONE : NEAR_L2_ABSENT);
        assert_int_equal(row->times[i], value.data != NULL);
        assert_int_equal(row->size[i], value.size);
        assert_memory_equal(row->seen[i], value.data != NULL ? value.data : "", value.size);
    }
}

static void
assert_hash(struct world *w, near_bytes key, const char *text)
{
    struct row          row;
    struct near_l2_item item = hash_get(w, key, &row, text);

    assert_row(&item);
}

static void
contract_hashes_hold_fields(void **state)
{
    struct world *w   = *state;
    near_bytes    key = KEY(w, "hash", 0);

    assert_true(near_l2_has_hashes(w->ops));
    assert_hash(w, key, "a b");
    assert_int_equal(hash_set(w, key, "a=1 b= c=xyz", 0).answer, NEAR_L2_DONE);
    assert_hash(w, key, "a=1 b= c=xyz");
    assert_hash(w, key, "c=xyz d a=1 b=");
    assert_int_equal(hash_set(w, key, "b=22 c d=4", 0).answer, NEAR_L2_DONE); /* c stays */
    assert_hash(w, key, "a=1 b=22 c=xyz d=4 e");
    assert_int_equal(remove_mode(w, NEAR_L2_ALWAYS, key, 0), NEAR_L2_DONE);
    assert_hash(w, key, "a b c d");
}

static void
contract_hash_names_and_values_are_any_bytes(void **state)
{
    struct world       *w    = *state;
    near_bytes          key  = KEY(w, "hash", 0);
    struct row          row  = { .times = { 0 } };
    struct near_l2_item item = { .key = key, .hash = &row.hash, .user = &row };
    static char         large[(1 << 20) - 1];

    row.hash      = (struct near_l2_hash){ row.fields, 4, row.values, row.answers };
    row.fields[0] = (near_bytes){ "", 0 };
    row.fields[1] = (near_bytes){ "\0\r\n$1", 5 };
    row.fields[2] = (near_bytes){ "\xff", 1 };
    row.fields[3] = (near_bytes){ "large", 5 };
    row.values[0] = (near_bytes){ "\r\n$-1\r\n", 7 };
    row.values[1] = (near_bytes){ "", 0 };
    row.values[2] = (near_bytes){ "\0\0", 2 };
    row.values[3] = (near_bytes){ large, sizeof(large) };
    w->ops->hash_set_many(w->self, &item, 1, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_DONE);
    w->ops->hash_get_many(w->self, &item, 1, note_field, NULL, after_ms(w, LIMIT_MS));
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(row.answers[i], NEAR_L2_DONE);
        assert_int_equal(row.times[i], 1);
        assert_int_equal(row.size[i], row.values[i].size);
        assert_memory_equal(row.seen[i], row.values[i].data,
                            row.values[i].size < 40 ? row.values[i].size : 40);
    }
}

static void
contract_a_hash_has_one_ttl(void **state)
{
    struct world *w      = *state;
    near_bytes    short_ = KEY(w, "short", 0), kept = KEY(w, "kept", 0), ended = KEY(w, "ended", 0);

    assert_int_equal(hash_set(w, short_, "a=1", 0).answer, NEAR_L2_DONE);
    assert_int_equal(hash_set(w, short_, "b=2", 200).answer, NEAR_L2_DONE);
    assert_int_equal(hash_set(w, short_, "c=3", 0).answer, NEAR_L2_DONE); /* 0 leaves the time it has */
    assert_int_equal(hash_set(w, kept, "a=1", 200).answer, NEAR_L2_DONE);
    assert_int_equal(hash_set(w, kept, "a=2", 60000).answer, NEAR_L2_DONE);
    assert_int_equal(hash_set(w, ended, "a=1", -1).answer, NEAR_L2_DONE);
    assert_hash(w, short_, "a=1 b=2 c=3");
    pass(w, 300);
    assert_hash(w, short_, "a b c");
    assert_hash(w, kept, "a=2");
    assert_hash(w, ended, "a");
}

/* Each is refused what is meant for the other, and nothing happens to it: not even a time to live is put on it. */
static void
contract_what_is_no_hash_is_an_error_of_its_own(void **state)
{
    struct world       *w     = *state;
    near_bytes          value = KEY(w, "value", 0), hash = KEY(w, "hash", 0), more = KEY(w, "more", 0);
    struct row          rows[3];
    struct near_l2_item items[3];
    struct got          got;
    near_status         status;

    assert_int_equal(set(w, value, STAMPED(1, 1), 0), NEAR_L2_DONE);
    assert_int_equal(hash_set(w, hash, "a=1", 0).answer, NEAR_L2_DONE);
    for (int ttl = 0; ttl < 2; ttl++) {
        items[0] = row_item(&rows[0], hash, "b=2");
        items[1] = row_item(&rows[1], value, "b=2");
        items[2] = row_item(&rows[2], more, "b=2");
        for (int i = 0; i < 3; i++)
            items[i].ttl_ms = ttl * 200;
        w->ops->hash_set_many(w->self, items, 3, NULL, after_ms(w, LIMIT_MS));
        assert_int_equal(items[0].answer, NEAR_L2_DONE);
        assert_int_equal(items[1].answer, NEAR_L2_ERROR);
        assert_int_equal(items[1].status, NEAR_ERR_PROTOCOL);
        assert_int_equal(items[2].answer, NEAR_L2_DONE);
    }
    items[0] = row_item(&rows[0], hash, "a=1 b=2");
    items[1] = row_item(&rows[1], value, "a b");
    items[2] = row_item(&rows[2], more, "a b=2");
    w->ops->hash_get_many(w->self, items, 3, note_field, NULL, after_ms(w, LIMIT_MS));
    assert_row(&items[0]);
    assert_int_equal(items[1].answer, NEAR_L2_ERROR);
    assert_int_equal(items[1].status, NEAR_ERR_PROTOCOL);
    assert_int_equal(rows[1].answers[0], NEAR_L2_NOT_TRIED);
    assert_row(&items[2]);
    pass(w, 300);
    assert_holds(w, value, STAMPED(1, 1));
    assert_int_equal(hash_set(w, hash, "a=1", 0).answer, NEAR_L2_DONE);
    assert_int_equal(get_until(w, hash, &got, &status, LIMIT_MS), NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_PROTOCOL);
    assert_int_equal(set_mode(w, NEAR_L2_IF_ABSENT, hash, STAMPED(1, 1), 0, 0), NEAR_L2_ABSENT);
    assert_int_equal(set(w, hash, STAMPED(2, 2), 0), NEAR_L2_DONE); /* as Redis has it */
    assert_holds(w, hash, STAMPED(2, 2));
}

static void
contract_hash_calls_that_make_no_sense(void **state)
{
    struct world       *w = *state;
    struct row          row;
    struct near_l2_item item = row_item(&row, KEY(w, "hash", 0), "a");

    w->ops->hash_set_many(w->self, &item, 1, NULL, after_ms(w, LIMIT_MS)); /* writes nothing */
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_INVALID);
    row.hash.count = 0;
    w->ops->hash_get_many(w->self, &item, 1, note_field, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(item.status, NEAR_ERR_INVALID);
    row.hash.count = NEAR_L2_FIELDS + 1;
    w->ops->hash_get_many(w->self, &item, 1, note_field, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(item.status, NEAR_ERR_INVALID);
    item.hash = NULL;
    w->ops->hash_get_many(w->self, &item, 1, note_field, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(item.status, NEAR_ERR_INVALID);
    assert_hash(w, KEY(w, "hash", 0), "a");
}

static void
contract_hash_values_larger_than_allowed_are_errors_of_their_own(void **state)
{
    struct world         *w     = *state;
    near_bytes            key   = KEY(w, "hash", 0);
    struct near_l2_env    wider = w->env;
    struct row            row;
    struct near_l2_item   item  = row_item(&row, key, "a=1 large=x b=2");
    char                 *large = calloc(1, MAX_STORED + 1);
    void                 *other = NULL;
    struct near_l2_traits traits;

    assert_non_null(large);
    row.values[1] = (near_bytes){ large, MAX_STORED + 1 };
    w->ops->hash_set_many(w->self, &item, 1, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_TOO_LARGE);
    assert_hash(w, key, "a large b");
    wider.max_stored = 2 * MAX_STORED;
    assert_int_equal(w->ops->open(&other, &wider, &traits, NULL), NEAR_OK);
    w->ops->hash_set_many(other, &item, 1, NULL, after_ms(w, LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_DONE);
    w->ops->close(other);
    w->ops->stop(other);
    w->ops->fini(other);
    item = hash_get(w, key, &row, "a=1 large b=2");
    assert_int_equal(item.answer, NEAR_L2_DONE);
    assert_int_equal(row.answers[0], NEAR_L2_DONE);
    assert_int_equal(row.answers[1], NEAR_L2_ERROR);
    assert_int_equal(row.times[1], 0);
    assert_int_equal(row.answers[2], NEAR_L2_DONE);
    free(large);
}

/* More fields than one command takes of values as large as they may be, in hashes all over the servers. */
#define FULL_HASHES 40

struct full {
    unsigned delivered, wrong;
};

/* Says whose it is, so that what is delivered to the wrong place is found out. */

static size_t
full_value(char out[24], size_t hash, size_t field)
{
    return (size_t)snprintf(out, 24, "%zu:%zu", hash, field);
}

static void
note_full(void *ctx, struct near_l2_item *item, size_t field, near_bytes value)
{
    struct full *full = ctx;
    char         text[24];
    size_t       size = full_value(text, (size_t)item->expected, field);

    full->delivered++;
    full->wrong += value.size != size || memcmp(value.data, text, size) != 0;
}

static void
contract_full_hashes_answer_each_field(void **state)
{
    struct world        *w = *state;
    struct near_l2_item  items[FULL_HASHES];
    struct near_l2_hash  hashes[FULL_HASHES];
    near_bytes           fields[NEAR_L2_FIELDS];
    near_bytes          *values  = calloc((size_t)FULL_HASHES * NEAR_L2_FIELDS, sizeof(*values));
    enum near_l2_answer *answers = calloc((size_t)FULL_HASHES * NEAR_L2_FIELDS, sizeof(*answers));
    char(*texts)[24]             = calloc((size_t)FULL_HASHES * NEAR_L2_FIELDS, sizeof(*texts));
    char        keys[FULL_HASHES][64], names[NEAR_L2_FIELDS][24];
    struct full full = { 0 };

    assert_true(values != NULL && answers != NULL && texts != NULL);
    for (size_t f = 0; f < NEAR_L2_FIELDS; f++)
        fields[f] = (near_bytes){ names[f], (size_t)snprintf(names[f], sizeof(names[f]), "f%zu", f) };
    for (size_t i = 0; i < FULL_HASHES; i++) {
        hashes[i] = (struct near_l2_hash){ fields, NEAR_L2_FIELDS, values + i * NEAR_L2_FIELDS,
                                           answers + i * NEAR_L2_FIELDS };
        items[i]  = (struct near_l2_item){ .key      = name_key(w, keys[i], 64, "full", (unsigned)i),
                                           .hash     = &hashes[i],
                                           .expected = i };
        for (size_t f = 0; f < NEAR_L2_FIELDS; f++) {
            char *text = texts[i * NEAR_L2_FIELDS + f];

            values[i * NEAR_L2_FIELDS + f] =
                f % 3 == 2 ? (near_bytes){ NULL, 0 } : (near_bytes){ text, full_value(text, i, f) };
        }
    }
    w->ops->hash_set_many(w->self, items, FULL_HASHES, NULL, after_ms(w, 5 * LIMIT_MS));
    for (size_t i = 0; i < FULL_HASHES; i++)
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
    w->ops->hash_get_many(w->self, items, FULL_HASHES, note_full, &full, after_ms(w, 5 * LIMIT_MS));
    for (size_t i = 0; i < FULL_HASHES; i++) {
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
        for (size_t f = 0; f < NEAR_L2_FIELDS; f++)
            assert_int_equal(hashes[i].answers[f], f % 3 == 2 ? NEAR_L2_ABSENT : NEAR_L2_DONE);
    }
    assert_int_equal(full.wrong, 0);
    assert_int_equal(full.delivered, FULL_HASHES * ((NEAR_L2_FIELDS * 2 + 2) / 3));
    free(values);
    free(answers);
    free(texts);
}

static void
contract_hash_calls_hold_their_deadline(void **state)
{
    struct world       *w     = *state;
    near_bytes          key   = KEY(w, "hash", 0);
    int64_t             began = near__now(w->env.clock), took;
    struct row          row;
    struct near_l2_item item = row_item(&row, key, "a");

    assert_int_equal(hash_set(w, key, "a=1", 0).answer, NEAR_L2_DONE);
    assert_hash(w, key, "a=1");
    for (unsigned i = 0; i < w->kind->servers; i++)
        test_server_pause(w->kind->server[i]);
    began = near__now(w->env.clock);
    w->ops->hash_get_many(w->self, &item, 1, note_field, NULL, after_ms(w, TIMEOUT_MS));
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_TIMEOUT);
    assert_int_equal(row.answers[0], NEAR_L2_NOT_TRIED);
    item = row_item(&row, key, "a=2");
    w->ops->hash_set_many(w->self, &item, 1, NULL, after_ms(w, TIMEOUT_MS));
    assert_true(item.answer == NEAR_L2_UNKNOWN || item.answer == NEAR_L2_ERROR);
    took = (near__now(w->env.clock) - began) / NEAR_MS;
    assert_in_range(took, TIMEOUT_MS, 2 * TIMEOUT_MS + SLACK_MS);
    for (unsigned i = 0; i < w->kind->servers; i++)
        test_server_resume(w->kind->server[i]);
    assert_true(test_wait_for(answers_again, w, 5000 * test_slack()));
    item = hash_get(w, key, &row, "a");
    assert_int_equal(row.answers[0], NEAR_L2_DONE);
    assert_int_equal(row.times[0], 1);
}

static void
contract_hashes_unreachable_are_never_absent(void **state)
{
    struct world       *w = *state;
    struct row          row;
    struct near_l2_item item;

    for (unsigned i = 0; i < w->kind->servers; i++)
        test_server_kill(w->kind->server[i]);
    item = hash_get(w, KEY(w, "hash", 0), &row, "a b");
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_true(item.status < 0);
    assert_int_equal(row.answers[0], NEAR_L2_NOT_TRIED);
    assert_int_equal(hash_set(w, KEY(w, "hash", 0), "a=1", 0).answer, NEAR_L2_ERROR);
    for (unsigned i = 0; i < w->kind->servers; i++)
        assert_true(test_server_restart(w->kind->server[i]));
    assert_true(test_wait_for(answers_again, w, 1000 * test_slack()));
    assert_hash(w, KEY(w, "hash", 0), "a b");
}

static void
contract_a_closed_backend_has_no_hashes(void **state)
{
    struct world       *w = *state;
    struct row          row;
    struct near_l2_item item;

    w->ops->close(w->self);
    item = hash_get(w, KEY(w, "hash", 0), &row, "a");
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_CLOSED);
    assert_int_equal(row.answers[0], NEAR_L2_NOT_TRIED);
    assert_int_equal(hash_set(w, KEY(w, "hash", 0), "a=1", 0).status, NEAR_ERR_CLOSED);
}

static void
contract_no_hashes_is_said(void **state)
{
    struct world *w = *state;

    assert_false(near_l2_has_hashes(w->ops));
}

/* -------------------------------------------------------------------------------------------------- list */

/* What a behaviour is a question for: all; those with a server that can be taken away, or that works again as soon as it is back; those
 * whose data two clients can open; those that leave announcing to a bus; those with hashes, and those without.  A kind that it is no question for is
 * not asked. */
enum { ALL, SERVED, PROMPT, SHARED, SILENT, HASHES, HASHES_SHARED, HASHES_SERVED, HASHES_PROMPT, NO_HASHES };

static bool
is_asked(const struct kind *kind, int of)
{
    bool hashes = kind->start != test_memcached_start;

    switch (of) {
    case HASHES:
    case NO_HASHES:
        return hashes == (of == HASHES);
    case HASHES_SHARED:
        return hashes && is_asked(kind, SHARED);
    case HASHES_SERVED:
        return hashes && is_asked(kind, SERVED);
    case HASHES_PROMPT:
        return hashes && is_asked(kind, PROMPT);
    case SERVED:
        return kind->servers > 0;
    case PROMPT:
        return kind->servers > 0 && !kind->clustered;
    case SHARED:
        return strcmp(kind->name, "memory") != 0;
    case SILENT:
        return kind->start != test_redis_start && !kind->tls;
    default:
        return true;
    }
}

/* clang-format off */
#define BEHAVIOUR(name, of) { #name, name, of }
/* clang-format on */
static const struct behaviour {
    const char        *name;
    CMUnitTestFunction run;
    int                of;
} behaviours[] = {
    BEHAVIOUR(contract_bytes_in_are_bytes_out, ALL),
    BEHAVIOUR(contract_every_key_shape_works_or_is_refused, ALL),
    BEHAVIOUR(contract_too_large_is_refused, ALL),
    BEHAVIOUR(contract_stored_by_a_client_with_a_higher_limit_is_refused, SHARED),
    BEHAVIOUR(contract_ttl_ends_after_its_time_and_not_before, ALL),
    BEHAVIOUR(contract_if_absent_is_won_once, ALL),
    BEHAVIOUR(contract_if_stamp_writes_over_its_stamp_only, ALL),
    BEHAVIOUR(contract_remove_removes, ALL),
    BEHAVIOUR(contract_increment_counts, ALL),
    BEHAVIOUR(contract_batches_answer_each_item, ALL),
    BEHAVIOUR(contract_a_full_batch_of_long_keys, ALL),
    BEHAVIOUR(contract_conditional_batches_answer_each_item, ALL),
    BEHAVIOUR(contract_a_key_may_stand_twice_in_a_batch, ALL),
    BEHAVIOUR(contract_passed_deadline_tries_nothing, SERVED),
    BEHAVIOUR(contract_unreachable_is_never_absent, PROMPT),
    BEHAVIOUR(contract_restarted_server_is_found_again_at_once, PROMPT),
    BEHAVIOUR(contract_deadline_holds_when_the_server_is_stopped, SERVED),
    BEHAVIOUR(contract_many_threads_get_their_own_values, ALL),
    BEHAVIOUR(contract_if_absent_has_one_winner_among_threads, ALL),
    BEHAVIOUR(contract_close_wakes_and_refuses, ALL),
    BEHAVIOUR(contract_open_needs_no_server, PROMPT),
    BEHAVIOUR(contract_health_and_stats_say_something, ALL),
    BEHAVIOUR(contract_fini_of_nothing_is_fine, ALL),
    BEHAVIOUR(contract_forked_child_disturbs_nobody, ALL),
    BEHAVIOUR(contract_announce_without_the_trait_is_not_sent, SILENT),
    BEHAVIOUR(contract_hashes_hold_fields, HASHES),
    BEHAVIOUR(contract_hash_names_and_values_are_any_bytes, HASHES),
    BEHAVIOUR(contract_a_hash_has_one_ttl, HASHES),
    BEHAVIOUR(contract_what_is_no_hash_is_an_error_of_its_own, HASHES),
    BEHAVIOUR(contract_hash_calls_that_make_no_sense, HASHES),
    BEHAVIOUR(contract_hash_values_larger_than_allowed_are_errors_of_their_own, HASHES_SHARED),
    BEHAVIOUR(contract_full_hashes_answer_each_field, HASHES),
    BEHAVIOUR(contract_hash_calls_hold_their_deadline, HASHES_SERVED),
    BEHAVIOUR(contract_hashes_unreachable_are_never_absent, HASHES_PROMPT),
    BEHAVIOUR(contract_a_closed_backend_has_no_hashes, HASHES),
    BEHAVIOUR(contract_no_hashes_is_said, NO_HASHES),
};

int
main(void)
{
    static char       names[NEAR_COUNT_OF(kinds) * NEAR_COUNT_OF(behaviours)][128];
    struct CMUnitTest tests[NEAR_COUNT_OF(kinds) * NEAR_COUNT_OF(behaviours)];
    size_t            n = 0;

    for (size_t k = 0; k < NEAR_COUNT_OF(kinds); k++) {
        for (size_t b = 0; b < NEAR_COUNT_OF(behaviours); b++) {
            if (!is_asked(&kinds[k], behaviours[b].of))
                continue;
            snprintf(names[n], sizeof(names[n]), "%s: %s", kinds[k].name, behaviours[b].name);
            tests[n] =
                (struct CMUnitTest){ names[n], behaviours[b].run, world_setup, world_teardown, &kinds[k] };
            n++;
        }
    }
    return test_finish(
        _cmocka_run_group_tests(TEST_NAME, tests, n, NULL, test_watch_teardown(group_teardown)));
}
