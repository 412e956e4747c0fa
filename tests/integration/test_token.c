/*
 * Write tokens between two real processes: who holds one reads what the writer wrote.  The reader's own bus is late on purpose (a proxy
 * delays what the server says), so that without the fence it would read the old value from L1, and does: that is the control.
 */
#define TEST_NAME "token"
#include "harness/test.h"

#include "harness/proxy.h"
#include "harness/server.h"

#include <fcntl.h>
#include <nearcache.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LATE 60 /* ms that the reader's bus is late */

static struct test_server *server, *memcached;
static struct test_proxy  *proxy;

/* The writer: a process that was forked before anything else was begun.  It opens a client at the URI of a line "open URI", puts
 * "k" = N at "put N", closes at "close", and answers each with its token or what went wrong. */
static struct {
    pid_t pid;
    FILE *to, *from;
} writer;

static near_client *
open_client(const char *l2, const char *bus)
{
    const char *const settings[][2] = { { "l2.uri", l2 },
                                        { "coherence.uri", bus },
                                        { "l2.timeout", "2s" },
                                        { "coherence.heartbeat", "1s" },
                                        { "coherence.serve_window", "5s" } };
    near_config      *config        = near_config_new();
    near_client      *client        = NULL;
    near_error        error;

    for (size_t i = 0; i < NEAR_COUNT_OF(settings); i++)
        near_config_set(config, settings[i][0], settings[i][1], &error);
    near_client_open(config, &client, &error);
    near_config_free(config);
    return client;
}

static near_cache *
open_cache(near_client *client)
{
    near_cache *cache = NULL;

    near_cache_open(client, "c", NULL, &cache, NULL);
    return cache;
}

static void
be_the_writer(FILE *from, FILE *to)
{
    near_client *client = NULL;
    near_cache  *cache  = NULL;
    char         line[400], token[NEAR_WRITE_TOKEN_SIZE];

    while (fgets(line, sizeof(line), from) != NULL) {
        near_status status = NEAR_OK;

        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "open ", 5) == 0) {
            client = open_client(line + 5, "auto");
            cache  = open_cache(client);
        } else if (strncmp(line, "put ", 4) == 0) {
            status = near_put(cache, near_key("k"), near_key(line + 4), NULL);
        } else {
            near_client_close(client, NULL);
            client = NULL;
        }
        strcpy(token, "none");
        if (client != NULL && status == NEAR_OK)
            status = near_write_token(client, token);
        if (status == NEAR_OK)
            fprintf(to, "%s\n", token);
        else
            fprintf(to, "failed: %s\n", near_status_text(status));
        fflush(to);
    }
    _exit(0);
}

static void
fork_the_writer(void)
{
    int down[2], up[2];

    if (pipe2(down, O_CLOEXEC) != 0 || pipe2(up, O_CLOEXEC) != 0) /* servers must not keep them open */
        abort();
    writer.pid = fork();
    if (writer.pid == 0) {
        close(down[1]);
        close(up[0]);
        be_the_writer(fdopen(down[0], "r"), fdopen(up[1], "w"));
    }
    close(down[0]);
    close(up[1]);
    writer.to   = fdopen(down[1], "w");
    writer.from = fdopen(up[0], "r");
}

/* Its answer: a token. */
static const char *
order(const char *what, const char *argument)
{
    static char token[NEAR_WRITE_TOKEN_SIZE + 40];

    fprintf(writer.to, "%s %s\n", what, argument);
    fflush(writer.to);
    assert_non_null(fgets(token, sizeof(token), writer.from));
    token[strcspn(token, "\n")] = '\0';
    assert_null(strstr(token, "failed"));
    return token;
}

static int
setup(void **state)
{
    (void)state;
    server    = test_redis_start(TEST_SERVER_TCP, NULL);
    memcached = test_memcached_start(0, NULL);
    proxy     = server != NULL ? test_proxy_start(server) : NULL;
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    fclose(writer.to);
    fclose(writer.from);
    waitpid(writer.pid, NULL, 0);
    if (proxy != NULL)
        test_proxy_stop(&proxy);
    test_server_stop(&server);
    test_server_stop(&memcached);
    return 0;
}

static near_client *reader;
static near_cache  *cache;

static int
open_reader(void **state)
{
    (void)state;
    test_need_server(server);
    reader = open_client(server->uri, test_proxy_uri(proxy));
    cache  = open_cache(reader);
    order("open", server->uri);
    return cache == NULL ? -1 : 0;
}

static int
close_reader(void **state)
{
    (void)state;
    test_proxy_heal(proxy);
    order("close", "");
    near_client_close(reader, NULL);
    return 0;
}

static unsigned
read_k(void)
{
    char   text[32] = "";
    size_t size     = 0;

    if (near_get_copy(cache, near_key("k"), text, sizeof(text) - 1, &size, NULL) != NEAR_OK)
        return 0;
    return (unsigned)strtoul(text, NULL, 10);
}

/* How many of `n` writes the reader did not see when it was told of them. */
static unsigned
unseen(unsigned n, bool fenced)
{
    unsigned missing = 0;
    char     number[16], token[NEAR_WRITE_TOKEN_SIZE];

    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_DELAY, TEST_DOWN, LATE, 0 });
    for (unsigned i = 1; i <= n; i++) {
        near_fence(reader, 2000);
        read_k(); /* into L1 */
        snprintf(number, sizeof(number), "%u", i);
        strcpy(token, order("put", number));
        if (fenced)
            assert_int_equal(near_fence_token(reader, token, 2000), NEAR_OK);
        missing += read_k() < i;
    }
    test_proxy_heal(proxy);
    return missing;
}

static void
test_G2_who_holds_the_token_reads_the_write(void **state)
{
    (void)state;
    assert_int_equal(unseen((unsigned)test_scale(6), true), 0);
}

static void
G2_control_without_the_fence_it_reads_the_old_value(void **state)
{
    (void)state;
    assert_true(unseen(4, false) >= 3); /* the first finds nothing in L1 */
}

/* A thousand fences behind what was applied already send nothing: a PING has 14 bytes and more. */
static void
what_was_applied_costs_no_round_trip(void **state)
{
    uint64_t before;
    char     token[NEAR_WRITE_TOKEN_SIZE], other[NEAR_WRITE_TOKEN_SIZE];

    (void)state;
    strcpy(other, order("put", "1"));
    strcpy(token, order("put", "2"));
    assert_int_equal(near_fence(reader, 2000), NEAR_OK); /* heard */
    before = test_proxy_bytes(proxy, TEST_UP);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(near_fence_token(reader, token, 2000), NEAR_OK);
        assert_int_equal(near_fence_token(reader, other, 2000), NEAR_OK);
    }
    assert_true(test_proxy_bytes(proxy, TEST_UP) - before < 2000); /* some heartbeats */
    before = test_proxy_bytes(proxy, TEST_UP);
    for (int i = 0; i < 200; i++) /* control: what fences cost */
        assert_int_equal(near_fence(reader, 2000), NEAR_OK);
    assert_true(test_proxy_bytes(proxy, TEST_UP) - before >= 200 * 14);
}

/* The writer has gone, and come back under another name; or nobody knows it. */
static void
tokens_of_who_is_gone_are_good(void **state)
{
    char old[NEAR_WRITE_TOKEN_SIZE], token[NEAR_WRITE_TOKEN_SIZE];

    (void)state;
    strcpy(old, order("put", "1"));
    order("close", "");
    order("open", server->uri);
    strcpy(token, order("put", "2"));
    assert_string_not_equal(token, old);
    assert_int_equal(near_fence_token(reader, old, 2000), NEAR_OK);
    assert_int_equal(near_fence_token(reader, token, 2000), NEAR_OK);
    assert_int_equal(read_k(), 2);
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_BLACKHOLE, TEST_BOTH, 0, 0 });
    assert_int_equal(near_fence_token(reader, token, 50), NEAR_OK); /* known already */
    strcpy(token, order("put", "3"));
    assert_int_equal(near_fence_token(reader, token, 50), NEAR_ERR_TIMEOUT); /* nobody can say */
}

static void
a_thread_that_wrote_nothing_gets_one_that_asks(void **state)
{
    char     token[NEAR_WRITE_TOKEN_SIZE];
    uint64_t before;

    (void)state;
    assert_int_equal(near_write_token(reader, token), NEAR_OK);
    before = test_proxy_bytes(proxy, TEST_UP);
    for (int i = 0; i < 100; i++)
        assert_int_equal(near_fence_token(reader, token, 2000), NEAR_OK);
    assert_true(test_proxy_bytes(proxy, TEST_UP) - before > 1000);
    assert_int_equal(near_put(cache, near_key("k"), near_key("5"), NULL), NEAR_OK);
    assert_int_equal(near_write_token(reader, token), NEAR_OK);
    assert_int_equal(near_fence_token(reader, token, 2000), NEAR_OK);
    assert_int_equal(near_fence(reader, 2000),
                     NEAR_OK); /* one's own write has come back: so has all before it */
    before = test_proxy_bytes(proxy, TEST_UP);
    for (int i = 0; i < 100; i++)
        assert_int_equal(near_fence_token(reader, token, 2000), NEAR_OK);
    assert_true(test_proxy_bytes(proxy, TEST_UP) - before < 1000);
}

static void
garbage_is_refused(void **state)
{
    static const char *const garbage[] = { "", "nt1", "none", "nt100", "\xff\xfe" };
    char                     token[NEAR_WRITE_TOKEN_SIZE], bad[100];

    (void)state;
    strcpy(token, order("put", "1"));
    for (size_t i = 0; i < NEAR_COUNT_OF(garbage); i++)
        assert_int_equal(near_fence_token(reader, garbage[i], 1000), NEAR_ERR_INVALID);
    for (size_t i = 0; i < strlen(token); i++) {
        strcpy(bad, token);
        bad[i] = bad[i] == '0' ? '1' : '0';
        assert_int_equal(near_fence_token(reader, bad, 1000), NEAR_ERR_INVALID);
        bad[i] = '\0';
        assert_int_equal(near_fence_token(reader, bad, 1000), NEAR_ERR_INVALID);
    }
    snprintf(bad, sizeof(bad), "%s0", token);
    assert_int_equal(near_fence_token(reader, bad, 1000), NEAR_ERR_INVALID);
    assert_int_equal(near_fence_token(reader, NULL, 1000), NEAR_ERR_INVALID);
    assert_int_equal(near_fence_token(NULL, token, 1000), NEAR_ERR_INVALID);
    assert_int_equal(near_write_token(NULL, bad), NEAR_ERR_INVALID);
    assert_int_equal(near_write_token(reader, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_fence_token(reader, token, 1000), NEAR_OK); /* control */
}

static void
where_nobody_tells_there_is_no_token_and_alone_none_is_needed(void **state)
{
    near_client *client;
    char         token[NEAR_WRITE_TOKEN_SIZE];

    (void)state;
    test_need_server(memcached);
    client = open_client(memcached->uri, "auto");
    assert_int_equal(near_write_token(client, token), NEAR_ERR_UNSUPPORTED);
    assert_string_equal(token, "");
    near_client_close(client, NULL);
    client = open_client("none:", "none:");
    assert_int_equal(near_write_token(client, token), NEAR_OK);
    assert_int_equal(near_fence_token(client, token, 0), NEAR_OK);
    assert_int_equal(near_fence_token(client, "garbage", 0), NEAR_ERR_INVALID);
    near_client_close(client, NULL);
}

#define WITH_READER(test) cmocka_unit_test_setup_teardown(test, open_reader, close_reader)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_READER(test_G2_who_holds_the_token_reads_the_write),
        WITH_READER(G2_control_without_the_fence_it_reads_the_old_value),
        WITH_READER(what_was_applied_costs_no_round_trip),
        WITH_READER(tokens_of_who_is_gone_are_good),
        WITH_READER(a_thread_that_wrote_nothing_gets_one_that_asks),
        WITH_READER(garbage_is_refused),
        cmocka_unit_test(where_nobody_tells_there_is_no_token_and_alone_none_is_needed),
    };

    fork_the_writer(); /* while this process has one thread */
    return TEST_MAIN(tests, setup, teardown);
}
