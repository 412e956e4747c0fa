/*
 * Redis Sentinel: real ones over real servers that fail, and made-up ones that say what no good sentinel would.  Rule C10: ask each in
 * turn with a short timeout, connect, check that ROLE is master, else ask again; who answered goes first; ask anew at every dial.
 */
#include "harness/server.h"
#include "harness/test.h"

#include "l2/access.h"
#include "l2/backend.h"
#include "l2/redis_conn.h"
#include "l2/redis_sentinel.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* -------------------------------------------------------------------------------------------- the servers */

static struct test_server *master, *replica, *other; /* `other` is a master of its own */
static struct test_server *sentinel;

static void
command(struct test_server *server, int argc, const char *const *argv)
{
    char out[256];

    if (!test_redis_command(server, out, sizeof(out), argc, argv))
        fail_msg("%s: %s", argv[0], out);
}

static void
follow(struct test_server *server, const struct test_server *whom)
{
    char port[16];

    snprintf(port, sizeof(port), "%d", whom->port);
    command(server, 3, (const char *[]){ "REPLICAOF", "127.0.0.1", port });
}

static int
is_linked(void *ctx)
{
    char text[4096];

    return test_redis_command(ctx, text, sizeof(text), 2, (const char *[]){ "INFO", "replication" }) &&
           strstr(text, "master_link_status:up") != NULL;
}

static void
start_pair(void)
{
    static const char *const fast[] = { "--repl-diskless-sync-delay", "0", NULL };

    master  = test_redis_start(TEST_SERVER_TCP, fast);
    replica = test_redis_start(TEST_SERVER_TCP, fast);
    test_need_server(master);
    test_need_server(replica);
    follow(replica, master);
    assert_true(test_wait_for(is_linked, replica, 10000 * test_slack()));
}

static void
start_sentinel(const char *more, const char *password)
{
    char config[512];

    snprintf(config, sizeof(config),
             "sentinel monitor mymaster 127.0.0.1 %d 1\n"
             "sentinel down-after-milliseconds mymaster 300\n"
             "sentinel failover-timeout mymaster 2000\n%s\n",
             master->port, more);
    sentinel = test_sentinel_start(config, password);
    test_need_server(sentinel);
}

static int
knows_a_replica(void *ctx)
{
    char text[4096];

    return test_redis_command(ctx, text, sizeof(text), 3,
                              (const char *[]){ "SENTINEL", "replicas", "mymaster" }) &&
           strstr(text, "master-link-status\nok") != NULL;
}

/* -------------------------------------------------------------------------------------- made-up sentinels */

/* Answers every command with what it was told to, until it is stopped. */
struct fake {
    pthread_t       thread;
    int             listener, port;
    atomic_bool     stop;
    atomic_bool     silent;
    atomic_uint     asked; /* for a master */
    char            says[256];
    pthread_mutex_t lock; /* covers `says` */
};
static struct fake fakes[3];

/* A command in one piece is all that our side ever sends a sentinel at a time, or two behind each other. */
static void
answer(struct fake *f, int fd, const char *text)
{
    char says[256];

    for (const char *at = text; (at = strchr(at, '*')) != NULL; at++) {
        pthread_mutex_lock(&f->lock);
        strcpy(says, "+OK\r\n");
        if (strncmp(at, "*3\r\n$8\r\nSENTINEL", 16) == 0) {
            strcpy(says, f->says);
            atomic_fetch_add(&f->asked, 1);
        }
        pthread_mutex_unlock(&f->lock);
        send(fd, says, strlen(says), MSG_NOSIGNAL);
    }
}

static void *
pretend(void *ctx)
{
    struct fake  *f      = ctx;
    struct pollfd fds[9] = { { f->listener, POLLIN, 0 } };
    nfds_t        n      = 1;
    char          text[1024];

    while (!atomic_load(&f->stop)) {
        if (poll(fds, n, 5) <= 0 || atomic_load(&f->silent))
            continue;
        for (nfds_t i = 1; i < n; i++) {
            ssize_t got = fds[i].revents != 0 ? recv(fds[i].fd, text, sizeof(text) - 1, 0) : -1;

            if (got > 0) {
                text[got] = '\0';
                answer(f, fds[i].fd, text);
            } else if (got == 0) {
                close(fds[i].fd);
                fds[i--] = fds[--n];
            }
        }
        if (fds[0].revents != 0 && n < 9)
            fds[n++] = (struct pollfd){ accept4(f->listener, NULL, NULL, SOCK_CLOEXEC), POLLIN, 0 };
    }
    while (n > 1)
        close(fds[--n].fd);
    close(f->listener);
    return NULL;
}

static void
tell(struct fake *f, const char *says)
{
    pthread_mutex_lock(&f->lock);
    snprintf(f->says, sizeof(f->says), "%s", says);
    pthread_mutex_unlock(&f->lock);
}

/* It names this server. */
static void
point(struct fake *f, const struct test_server *server)
{
    char says[64], port[16];

    snprintf(port, sizeof(port), "%d", server->port);
    snprintf(says, sizeof(says), "*2\r\n$9\r\n127.0.0.1\r\n$%zu\r\n%s\r\n", strlen(port), port);
    tell(f, says);
}

static void
start_fake(struct fake *f)
{
    struct sockaddr_in at   = { .sin_family = AF_INET };
    socklen_t          size = sizeof(at);

    memset(f, 0, sizeof(*f));
    pthread_mutex_init(&f->lock, NULL);
    f->listener        = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(listen(f->listener, 8), 0);
    assert_int_equal(getsockname(f->listener, (struct sockaddr *)&at, &size), 0);
    f->port = ntohs(at.sin_port);
    assert_int_equal(pthread_create(&f->thread, NULL, pretend, f), 0);
}

static void
stop_fake(struct fake *f)
{
    if (f->port == 0)
        return;
    atomic_store(&f->stop, true);
    pthread_join(f->thread, NULL);
    f->port = 0;
}

/* ------------------------------------------------------------------------------------------------ dialling */

static struct near__uri          uri;
static struct near__access       access_to;
static struct near__redis_conn  *conns[4];
static struct near__redis_server to = { .uri         = &uri,
                                        .access      = &access_to,
                                        .clock       = &near__clock_system,
                                        .client_name = "test",
                                        .max_reply   = 1 << 20 };

static int64_t
in_ms(int64_t ms)
{
    return near__now(&near__clock_system) + ms * NEAR_MS;
}

static int64_t
later(void)
{
    return in_ms(20000 * test_slack());
}

static void
use_sentinels(const char *text, const char *user, const char *password)
{
    assert_int_equal(near__uri_parse(&uri, "uri", text, NULL), NEAR_OK);
    assert_int_equal(near__sentinels_new(&access_to.sentinels, &uri, user, password, NULL), NEAR_OK);
}

static void
use_fakes(size_t n)
{
    char text[200] = "redis-sentinel://";

    for (size_t i = 0; i < n; i++) {
        start_fake(&fakes[i]);
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s127.0.0.1:%d", i > 0 ? "," : "",
                 fakes[i].port);
    }
    strcat(text, "/mymaster");
    use_sentinels(text, "", "");
}

static near_status
dial(struct near__redis_conn **conn, int64_t deadline, near_error *error)
{
    memset(error, 0, sizeof(*error));
    near__redis_conn_free(conn);
    return near__redis_dial(conn, &to, deadline, error);
}

static void
must_dial(struct near__redis_conn **conn)
{
    near_error error;

    if (dial(conn, later(), &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

static void
says(const near_error *error, const char *words)
{
    if (strstr(error->text, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error->text, words);
}

static void
take_port(void *ctx, size_t index, redisReply *reply)
{
    (void)index;
    assert_int_equal(reply->type, REDIS_REPLY_ARRAY);
    *(int *)ctx = atoi(reply->element[1]->str);
}

/* Which server is at the other end. */
static int
port_of(struct near__redis_conn *conn)
{
    near_bytes argv[3] = { near_key("CONFIG"), near_key("GET"), near_key("port") };
    int        port    = 0;

    assert_int_equal(near__redis_append(conn, 3, argv), NEAR_OK);
    assert_int_equal(near__redis_exchange(conn, take_port, &port, NULL, NULL, later(), NULL), NEAR_OK);
    return port;
}

/* --------------------------------------------------------------------------------------- who is believed */

static void
C10_a_replica_is_no_master_whoever_says_so(void **state)
{
    near_error error;

    (void)state;
    start_pair();
    use_fakes(2);
    point(&fakes[0], replica);
    point(&fakes[1], replica);
    assert_int_equal(dial(&conns[0], later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "it is a replica, no master");
    point(&fakes[1], master);
    must_dial(&conns[0]);
    assert_int_equal(port_of(conns[0]), master->port);
}

static void
C10_who_was_right_is_asked_first(void **state)
{
    (void)state;
    start_pair();
    use_fakes(3);
    point(&fakes[0], replica);
    tell(&fakes[1], "*-1\r\n");
    point(&fakes[2], master);
    must_dial(&conns[0]);
    assert_int_equal(fakes[0].asked, 1);
    assert_int_equal(fakes[1].asked, 1);
    assert_int_equal(fakes[2].asked, 1);
    for (int i = 0; i < 5; i++)
        must_dial(&conns[0]);
    assert_int_equal(fakes[0].asked, 1);
    assert_int_equal(fakes[1].asked, 1);
    assert_int_equal(fakes[2].asked, 6); /* anew at every dial */
}

static void
C10_nonsense_is_passed_over(void **state)
{
    static const struct {
        const char *says, *problem;
    } cases[] = {
        { "*-1\r\n", "asked for mymaster: it knows no master of this name" },
        { "$-1\r\n", "it knows no master of this name" },
        { "+OK\r\n", "what it says is no address" },
        { ":6379\r\n", "what it says is no address" },
        { "*0\r\n", "what it says is no address" },
        { "*1\r\n$9\r\n127.0.0.1\r\n", "what it says is no address" },
        { "*2\r\n$9\r\n127.0.0.1\r\n$-1\r\n", "what it says is no address" },
        { "*2\r\n$9\r\n127.0.0.1\r\n$1\r\n0\r\n", "what it says is no address" },
        { "*2\r\n$9\r\n127.0.0.1\r\n$5\r\n65536\r\n", "what it says is no address" },
        { "*2\r\n$9\r\n127.0.0.1\r\n$20\r\n18446744073709551617\r\n", "what it says is no address" },
        { "*2\r\n$9\r\n127.0.0.1\r\n$3\r\n-12\r\n", "what it says is no address" },
        { "*2\r\n$0\r\n\r\n$4\r\n6379\r\n", "what it says is no address" },
        { "*2\r\n$5\r\na\nb c\r\n$4\r\n6379\r\n", "what it says is no address" },
        { "-IDONTKNOW secret words\r\n", "asked for mymaster: IDONTKNOW" },
        { "-NOAUTH Authentication required.\r\n", "NOAUTH" },
        { "!?\r\n", "the reply makes no sense" },
    };
    near_error error;

    (void)state;
    master = test_redis_start(TEST_SERVER_TCP, NULL);
    test_need_server(master);
    use_fakes(2);
    for (size_t i = 0; i < NEAR_COUNT_OF(cases); i++) {
        tell(&fakes[0], cases[i].says);
        tell(&fakes[1], cases[i].says);
        assert_true(dial(&conns[0], later(), &error) < 0);
        says(&error, cases[i].problem);
        assert_null(strstr(error.text, "secret"));
        point(&fakes[1], master);
        must_dial(&conns[0]);
    }
}

/* ------------------------------------------------------------------------------------------ time and death */

static void
C10_all_sentinels_down(void **state)
{
    near_error error;
    int64_t    began = test_now_ms();
    char       text[200];

    (void)state;
    snprintf(text, sizeof(text), "redis-sentinel://127.0.0.1:%d,127.0.0.1:%d/m", test_free_port(),
             test_free_port());
    use_sentinels(text, "", "");
    assert_int_equal(dial(&conns[0], later(), &error), NEAR_ERR_UNAVAILABLE);
    assert_in_range(test_now_ms() - began, 0, 100 * test_slack());
    says(&error, "sentinel 127.0.0.1:");
    says(&error, "Connection refused");
}

static void
C10_silent_sentinels_cost_their_share(void **state)
{
    near_error error;
    int64_t    began;

    (void)state;
    master = test_redis_start(TEST_SERVER_TCP, NULL);
    test_need_server(master);
    use_fakes(3);
    for (int i = 0; i < 3; i++)
        point(&fakes[i], master);
    atomic_store(&fakes[0].silent, true);
    atomic_store(&fakes[1].silent, true);
    must_dial(&conns[0]);
    assert_int_equal(port_of(conns[0]), master->port);
    began = test_now_ms();
    must_dial(&conns[0]); /* the one that answered comes first now */
    assert_in_range(test_now_ms() - began, 0, 150 * test_slack());
    atomic_store(&fakes[2].silent, true);
    began = test_now_ms();
    assert_int_equal(dial(&conns[0], in_ms(300), &error), NEAR_ERR_TIMEOUT);
    assert_in_range(test_now_ms() - began, 100, 300 + 50 * test_slack());
}

static void
C10_a_master_that_is_gone_is_dialled_once_in_a_pass(void **state)
{
    struct test_server *gone;
    near_error          error;

    (void)state;
    gone   = test_redis_start(TEST_SERVER_TCP, NULL);
    master = test_redis_start(TEST_SERVER_TCP, NULL);
    test_need_server(gone);
    test_need_server(master);
    test_server_kill(gone);
    use_fakes(3);
    for (int i = 0; i < 3; i++)
        point(&fakes[i], gone);
    assert_int_equal(dial(&conns[0], later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "Connection refused");
    for (int i = 0; i < 3; i++)
        assert_int_equal(fakes[i].asked, 1);
    point(&fakes[1], master); /* one of them has learnt of the new one already */
    must_dial(&conns[0]);
    assert_int_equal(port_of(conns[0]), master->port);
    test_server_stop(&gone);
}

/* ------------------------------------------------------------------------------------------- the master moves */

static void
a_connection_to_a_former_master_is_outdated(void **state)
{
    redisReply *reply;
    near_error  error = { 0 };

    (void)state;
    master = test_redis_start(TEST_SERVER_TCP, NULL);
    other  = test_redis_start(TEST_SERVER_TCP, NULL);
    test_need_server(master);
    test_need_server(other);
    use_fakes(1);
    point(&fakes[0], master);
    must_dial(&conns[0]);
    must_dial(&conns[1]);
    assert_true(near__redis_conn_usable(conns[0]));
    assert_int_equal(near__redis_read_one(conns[1], &reply, -1, in_ms(10), &error), NEAR_ERR_TIMEOUT);
    point(&fakes[0], other);
    assert_true(near__redis_conn_usable(conns[0])); /* nobody knows yet */
    must_dial(&conns[2]);
    assert_int_equal(port_of(conns[2]), other->port);
    assert_true(near__redis_conn_outdated(conns[0]));
    assert_false(near__redis_conn_usable(conns[0]));
    assert_int_equal(near__redis_read_one(conns[1], &reply, -1, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "another server is the master now");
    must_dial(&conns[3]);
    assert_true(near__redis_conn_usable(conns[2])); /* the same as before */
}

/* ---- the backend */

static struct near_l2_env        env;
static struct near_l2_traits     traits;
static void                     *tier;
static const struct near_l2_ops *ops;

static void
open_tier(void)
{
    near_error error = { 0 };

    env = (struct near_l2_env){ .uri             = &uri,
                                .access          = &access_to,
                                .clock           = &near__clock_system,
                                .connect_timeout = 500 * NEAR_MS,
                                .pool_size       = 4,
                                .max_stored      = 1 << 16,
                                .client_name     = "test" };
    ops = near__l2_backend_named(uri.scheme);
    assert_non_null(ops);
    if (ops->open(&tier, &env, &traits, &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

static struct near_l2_item
set(const char *key, int64_t deadline)
{
    struct near_l2_item item = { .key = near_key(key), .value = near_key("0123456789abcdef") };

    ops->set_many(tier, NEAR_L2_ALWAYS, &item, 1, NULL, deadline);
    return item;
}

static bool
holds(struct test_server *server, const char *key)
{
    char out[64];

    return test_redis_command(server, out, sizeof(out), 2, (const char *[]){ "GET", key }) &&
           strcmp(out, "0123456789abcdef") == 0;
}

/* Its READONLY is the news: the next call asks the sentinels. */
static void
R1_a_demoted_master_is_left(void **state)
{
    struct near_l2_item item;
    int64_t             until = test_now_ms() + 5000 * test_slack();

    (void)state;
    start_pair();
    use_fakes(1);
    point(&fakes[0], master);
    open_tier();
    assert_int_equal(set("before", later()).answer, NEAR_L2_DONE);
    assert_true(holds(master, "before"));
    command(replica, 3, (const char *[]){ "REPLICAOF", "NO", "ONE" });
    point(&fakes[0], replica);
    follow(master, replica);
    do
        item = set("after", later());
    while (item.answer != NEAR_L2_DONE && test_now_ms() < until);
    assert_int_equal(item.answer, NEAR_L2_DONE);
    assert_true(holds(replica, "after"));
}

/* --------------------------------------------------------------------------------------- real sentinels */

static void
a_real_sentinel_with_a_login_of_its_own(void **state)
{
    near_error error;
    char       text[200];

    (void)state;
    master = test_redis_start(TEST_SERVER_TCP, (const char *[]){ "--requirepass", "of-the-server", NULL });
    test_need_server(master);
    start_sentinel("sentinel auth-pass mymaster of-the-server\nrequirepass of-the-sentinel",
                   "of-the-sentinel");
    snprintf(text, sizeof(text), "redis-sentinel://:of-the-server@127.0.0.1:%d/mymaster/2", sentinel->port);
    use_sentinels(text, "", "of-the-sentinel");
    must_dial(&conns[0]);
    assert_int_equal(port_of(conns[0]), master->port);
    near__sentinels_free(&access_to.sentinels);
    near__redis_conn_free(&conns[0]);
    use_sentinels(text, "", "");
    assert_int_equal(dial(&conns[0], later(), &error), NEAR_ERR_DENIED);
    says(&error, "sentinel 127.0.0.1:");
    near__sentinels_free(&access_to.sentinels);
    use_sentinels(text, "", "of-nobody");
    assert_int_equal(dial(&conns[0], later(), &error), NEAR_ERR_DENIED);
    says(&error, "WRONGPASS");
    assert_null(strstr(error.text, "of-nobody"));
    near__sentinels_free(&access_to.sentinels);
    snprintf(text, sizeof(text), "redis-sentinel://127.0.0.1:%d/another", sentinel->port);
    use_sentinels(text, "", "of-the-sentinel");
    assert_int_equal(dial(&conns[0], later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "asked for another: it knows no master of this name");
}

/* ---- failover under load */

struct load {
    pthread_t   thread;
    near_cache *cache;
    unsigned    number;
    uint64_t    done, failed, foreign;
    int64_t     last_failure; /* ms */
};
static atomic_bool loading;

static void *
run_load(void *ctx)
{
    struct load *l = ctx;

    for (uint64_t round = 0; atomic_load(&loading); round++) {
        char        key[32], text[48];
        near_value *value = NULL;
        near_status status;

        snprintf(key, sizeof(key), "k%u-%u", l->number, (unsigned)(round % 50));
        snprintf(text, sizeof(text), "%s=%llu", key, (unsigned long long)round);
        status = round % 2 == 0 ? near_put(l->cache, near_key(key), near_key(text), NULL)
                                : near_get(l->cache, near_key(key), &value);
        if (value != NULL) {
            near_bytes got = near_value_bytes(value);

            l->foreign += got.size <= strlen(key) || memcmp(got.data, key, strlen(key)) != 0;
            near_value_release(value);
        }
        if (status < 0) {
            l->failed++;
            l->last_failure = test_now_ms();
            poll(NULL, 0, 2);
        } else {
            l->done++;
        }
    }
    return NULL;
}

static int
names_the_replica(void *ctx)
{
    char text[256], port[16];

    (void)ctx;
    snprintf(port, sizeof(port), "\n%d", replica->port);
    return test_redis_command(sentinel, text, sizeof(text), 3,
                              (const char *[]){ "SENTINEL", "get-master-addr-by-name", "mymaster" }) &&
           strstr(text, port) != NULL;
}

static void
C10_failover_under_load_with_the_master_killed(void **state)
{
    struct load  loads[4] = { 0 };
    near_config *config   = near_config_new();
    near_stats   stats    = NEAR_STATS_INIT;
    near_client *client;
    near_error   error = { 0 };
    uint64_t     done = 0, failed = 0, after = 0;
    int64_t      killed, named, healed       = 0;
    char         text[100];

    (void)state;
    start_pair();
    start_sentinel("", NULL);
    assert_true(test_wait_for(knows_a_replica, sentinel, 15000 * test_slack()));
    snprintf(text, sizeof(text), "redis-sentinel://127.0.0.1:%d/mymaster", sentinel->port);
    assert_int_equal(near_config_set(config, "l2.uri", text, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l1.max_bytes", "0", NULL), NEAR_OK);
    if (near_client_open(config, &client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    atomic_store(&loading, true);
    for (unsigned i = 0; i < 4; i++) {
        snprintf(text, sizeof(text), "load%u", i);
        loads[i].number = i;
        assert_int_equal(near_cache_open(client, text, NULL, &loads[i].cache, NULL), NEAR_OK);
        assert_int_equal(pthread_create(&loads[i].thread, NULL, run_load, &loads[i]), 0);
    }
    poll(NULL, 0, 200);
    killed = test_now_ms();
    test_server_kill(master);
    assert_true(test_wait_for(names_the_replica, NULL, 20000 * test_slack()));
    named = test_now_ms();
    poll(NULL, 0, 1500 * (int)test_slack());
    near_stats_get(client, &stats);
    atomic_store(&loading, false);
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(loads[i].thread, NULL);
        done += loads[i].done;
        failed += loads[i].failed;
        healed = loads[i].last_failure > healed ? loads[i].last_failure : healed;
        assert_int_equal(loads[i].foreign, 0);
        after += near_put(loads[i].cache, near_key("last"), near_key("word"), NULL) == NEAR_OK;
        near_cache_close(loads[i].cache);
    }
    print_message(
        "[          ] %llu calls, %llu failed; a new master was named %lld ms after the kill, the last "
        "failure came %lld ms later\n",
        (unsigned long long)(done + failed), (unsigned long long)failed, (long long)(named - killed),
        (long long)(healed - named));
    assert_int_equal(after, 4);
    assert_true(failed > 0); /* the control: the master really went */
    assert_in_range(healed < named ? 0 : healed - named, 0, 1000 * test_slack());
    assert_true(stats.bus_connected);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
}

/* ------------------------------------------------------------------------------------------------- the frame */

static int
clean_up(void **state)
{
    (void)state;
    if (tier != NULL) {
        ops->close(tier);
        ops->stop(tier);
        ops->fini(tier);
    }
    tier = NULL;
    for (size_t i = 0; i < NEAR_COUNT_OF(conns); i++)
        near__redis_conn_free(&conns[i]);
    near__sentinels_free(&access_to.sentinels);
    for (size_t i = 0; i < NEAR_COUNT_OF(fakes); i++)
        stop_fake(&fakes[i]);
    test_server_stop(&sentinel);
    test_server_stop(&replica);
    test_server_stop(&other);
    test_server_stop(&master);
    return 0;
}

#define SENTINEL_TEST(test) cmocka_unit_test_teardown(test, clean_up)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        SENTINEL_TEST(C10_a_replica_is_no_master_whoever_says_so),
        SENTINEL_TEST(C10_who_was_right_is_asked_first),
        SENTINEL_TEST(C10_nonsense_is_passed_over),
        SENTINEL_TEST(C10_all_sentinels_down),
        SENTINEL_TEST(C10_silent_sentinels_cost_their_share),
        SENTINEL_TEST(C10_a_master_that_is_gone_is_dialled_once_in_a_pass),
        SENTINEL_TEST(a_connection_to_a_former_master_is_outdated),
        SENTINEL_TEST(R1_a_demoted_master_is_left),
        SENTINEL_TEST(a_real_sentinel_with_a_login_of_its_own),
        SENTINEL_TEST(C10_failover_under_load_with_the_master_killed),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
