/* Names into addresses, with a resolver of the test's own: slow, in trouble, or plainly wrong.  Rule H9. */
#include "harness/server.h"
#include "harness/test.h"

#include "l2/resolve.h"
#include "l2/transport.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------------------- the resolver */

static atomic_uint asked; /* calls so far */
static atomic_int  slow;  /* ms every call takes */
static atomic_int  says;  /* 0: the addresses below; else this code */
static atomic_bool stuck; /* every call waits for this to end */

static char addresses[3][20]; /* what names resolve to; empty: no more */

static int
answer(const char *host, struct near__resolved *found)
{
    (void)host;
    atomic_fetch_add(&asked, 1);
    found->n = 0;
    poll(NULL, 0, atomic_load(&slow));
    while (atomic_load(&stuck))
        poll(NULL, 0, 1);
    for (size_t i = 0; i < 3 && addresses[i][0] != '\0' && atomic_load(&says) == 0; i++) {
        struct sockaddr_in *to = (struct sockaddr_in *)&found->at[found->n].address;

        memset(to, 0, sizeof(*to));
        to->sin_family = AF_INET;
        inet_pton(AF_INET, addresses[i], &to->sin_addr);
        found->at[found->n++].size = sizeof(*to);
    }
    return atomic_load(&says);
}

static int
no_threads(void *ctx)
{
    (void)ctx;
    return near__resolve_threads() == 0;
}

static void
fresh_resolver(int64_t fresh)
{
    atomic_store(&stuck, false);
    assert_true(test_wait_for(no_threads, NULL, 10000));
    atomic_store(&asked, 0);
    atomic_store(&slow, 0);
    atomic_store(&says, 0);
    memset(addresses, 0, sizeof(addresses));
    strcpy(addresses[0], "10.1.2.3");
    near__resolve_test(answer, fresh);
}

static int
clean_up(void **state)
{
    (void)state;
    atomic_store(&stuck, false);
    if (!test_wait_for(no_threads, NULL, 10000))
        return -1;
    near__resolve_test(NULL, -1);
    return 0;
}

static int64_t
in_ms(int64_t ms)
{
    return near__now(&near__clock_system) + ms * NEAR_MS;
}

static near_status
look(const char *host, int64_t ms, struct near__resolved *found, near_error *error)
{
    struct near__address address = { .port = 6379 };

    snprintf(address.host, sizeof(address.host), "%s", host);
    return near__resolve(&address, found, -1, &near__clock_system, in_ms(ms), error);
}

static const char *
text_of(const struct near__resolved *found)
{
    static char               text[64];
    const struct sockaddr_in *at = (const struct sockaddr_in *)&found->at[0].address;

    inet_ntop(AF_INET, &at->sin_addr, text, sizeof(text));
    snprintf(text + strlen(text), 10, ":%d", ntohs(at->sin_port));
    return text;
}

/* --------------------------------------------------------------------------------------------------- tests */

static void
numbers_ask_nobody(void **state)
{
    struct near__resolved found;

    (void)state;
    fresh_resolver(0);
    assert_int_equal(look("127.0.0.1", 0, &found, NULL), NEAR_OK);
    assert_string_equal(text_of(&found), "127.0.0.1:6379");
    assert_int_equal(look("::1", 0, &found, NULL), NEAR_OK);
    assert_int_equal(found.at[0].address.ss_family, AF_INET6);
    assert_int_equal(ntohs(((struct sockaddr_in6 *)&found.at[0].address)->sin6_port), 6379);
    assert_int_equal(asked, 0);
    assert_int_equal(look("name", 1000, &found, NULL), NEAR_OK); /* the control */
    assert_string_equal(text_of(&found), "10.1.2.3:6379");
    assert_int_equal(asked, 1);
}

static void
the_systems_resolver_knows_localhost(void **state)
{
    struct near__resolved found;

    (void)state;
    near__resolve_test(NULL, -1);
    assert_int_equal(look("localhost", 10000, &found, NULL), NEAR_OK);
    assert_true(found.n > 0);
}

static void
H9_a_slow_resolver_costs_no_more_than_the_deadline(void **state)
{
    struct near__resolved found;
    near_error            error = { 0 };
    int64_t               began = test_now_ms();

    (void)state;
    fresh_resolver(0);
    atomic_store(&stuck, true);
    assert_int_equal(look("name", 100, &found, &error), NEAR_ERR_TIMEOUT);
    assert_in_range(test_now_ms() - began, 99, 100 + 50 * test_slack());
    assert_string_equal(error.text, "the resolver does not answer");
}

struct caller {
    pthread_t             thread;
    struct near__resolved found;
    near_status           status;
};

static void *
call(void *ctx)
{
    struct caller *c = ctx;

    c->status = look("shared", 10000, &c->found, NULL);
    return NULL;
}

static void
one_lookup_for_all_who_ask(void **state)
{
    struct caller callers[16];

    (void)state;
    fresh_resolver(0);
    atomic_store(&stuck, true);
    for (size_t i = 0; i < 16; i++)
        assert_int_equal(pthread_create(&callers[i].thread, NULL, call, &callers[i]), 0);
    poll(NULL, 0, 100 * (int)test_slack());
    atomic_store(&stuck, false);
    for (size_t i = 0; i < 16; i++) {
        pthread_join(callers[i].thread, NULL);
        assert_int_equal(callers[i].status, NEAR_OK);
        assert_string_equal(text_of(&callers[i].found), "10.1.2.3:6379");
    }
    assert_int_equal(asked, 1);
}

static void
an_answer_is_asked_for_anew_but_not_at_once(void **state)
{
    struct near__resolved found;

    (void)state;
    fresh_resolver(60 * 1000 * NEAR_MS);
    for (int i = 0; i < 3; i++)
        assert_int_equal(look("name", 1000, &found, NULL), NEAR_OK);
    assert_int_equal(asked, 1);
    fresh_resolver(0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(look("name", 1000, &found, NULL), NEAR_OK);
    assert_int_equal(asked, 3);
}

static int
third_answer(void *ctx)
{
    (void)ctx;
    return atomic_load(&asked) >= 2 && near__resolve_threads() == 0;
}

static void
the_last_good_answer_outlives_trouble(void **state)
{
    struct near__resolved found;
    near_error            error = { 0 };
    int64_t               began;

    (void)state;
    fresh_resolver(0);
    assert_int_equal(look("name", 1000, &found, NULL), NEAR_OK);
    atomic_store(&stuck, true); /* slow: what is old will do, and soon */
    strcpy(addresses[0], "10.9.9.9");
    began = test_now_ms();
    assert_int_equal(look("name", 5000, &found, NULL), NEAR_OK);
    assert_in_range(test_now_ms() - began, 0, 50 + 100 * test_slack());
    assert_string_equal(text_of(&found), "10.1.2.3:6379");
    atomic_store(&stuck, false); /* the answer that came late is kept */
    assert_true(test_wait_for(third_answer, NULL, 5000));
    atomic_store(&says, EAI_AGAIN);
    assert_int_equal(look("name", 1000, &found, NULL), NEAR_OK);
    assert_string_equal(text_of(&found), "10.9.9.9:6379");
    atomic_store(&says, EAI_NONAME); /* no trouble: the name is gone, and so is who had it */
    assert_int_equal(look("name", 1000, &found, &error), NEAR_ERR_UNAVAILABLE);
    atomic_store(&says, EAI_AGAIN);
    assert_int_equal(look("name", 1000, &found, &error), NEAR_ERR_UNAVAILABLE);
}

static void *
cancel_soon(void *ctx)
{
    uint64_t one = 1;

    poll(NULL, 0, 50);
    return write(*(int *)ctx, &one, sizeof(one)) == sizeof(one) ? NULL : ctx;
}

static void
who_waits_can_be_called_off(void **state)
{
    struct near__address  address = { .host = "name", .port = 1 };
    struct near__resolved found;
    pthread_t             thread;
    int                   fd    = eventfd(0, EFD_CLOEXEC);
    int64_t               began = test_now_ms();

    (void)state;
    fresh_resolver(0);
    atomic_store(&stuck, true);
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, &fd), 0);
    assert_int_equal(near__resolve(&address, &found, fd, &near__clock_system, in_ms(10000), NULL),
                     NEAR_ERR_CLOSED);
    assert_in_range(test_now_ms() - began, 49, 50 + 100 * test_slack());
    pthread_join(thread, NULL);
    close(fd);
}

static void
threads_are_bounded_and_all_names_are_answered(void **state)
{
    struct near__resolved found;
    char                  name[16];

    (void)state;
    fresh_resolver(60 * 1000 * NEAR_MS);
    atomic_store(&stuck, true);
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof(name), "name%d", i);
        assert_int_equal(look(name, 5, &found, NULL), NEAR_ERR_TIMEOUT);
    }
    assert_int_equal(near__resolve_threads(), NEAR__RESOLVE_THREADS);
    atomic_store(&stuck, false);
    assert_true(test_wait_for(no_threads, NULL, 5000));
    assert_int_equal(asked, 20);
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof(name), "name%d", i);
        assert_int_equal(look(name, 0, &found, NULL), NEAR_OK);
    }
    assert_int_equal(asked, 20);
}

static void
many_names_do_not_pile_up(void **state)
{
    struct near__resolved found;
    char                  name[16];

    (void)state;
    fresh_resolver(60 * 1000 * NEAR_MS);
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof(name), "name%d", i);
        assert_int_equal(look(name, 1000, &found, NULL), NEAR_OK);
    }
    assert_int_equal(look("name199", 1000, &found, NULL), NEAR_OK);
    assert_int_equal(asked, 200);
    assert_int_equal(look("name0", 1000, &found, NULL), NEAR_OK);
    assert_int_equal(asked, 201);
}

/* In the child there is no thread that could answer what the parent has asked. */
static void
P3_a_forked_child_asks_for_itself(void **state)
{
    struct near__resolved found;
    int                   status;
    pid_t                 child;

    (void)state;
    if (TEST_UNDER_TSAN)
        skip();
    fresh_resolver(0);
    atomic_store(&stuck, true);
    assert_int_equal(look("name", 20, &found, NULL), NEAR_ERR_TIMEOUT);
    child = fork();
    if (child == 0) {
        atomic_store(&stuck, false);
        _exit(near__resolve_threads() == 0 && look("name", 5000, &found, NULL) == NEAR_OK &&
                      strcmp(text_of(&found), "10.1.2.3:6379") == 0
                  ? 0
                  : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(near__resolve_threads(), 1);
}

static void
H9_every_address_is_tried(void **state)
{
    struct test_server    *server  = test_redis_start(TEST_SERVER_TCP, NULL);
    struct near__transport t       = { .fd = -1, .cancel_fd = -1, .clock = &near__clock_system };
    struct near__address   address = { .host = "name" };

    (void)state;
    test_need_server(server);
    fresh_resolver(0);
    strcpy(addresses[0], "127.0.0.9"); /* nobody listens there */
    strcpy(addresses[1], "240.0.0.1"); /* no way leads there, or no answer comes back */
    strcpy(addresses[2], "127.0.0.1");
    address.port = (uint16_t)server->port;
    assert_int_equal(near__transport_open(&t, &address, in_ms(2000 * test_slack()), NULL), NEAR_OK);
    near__transport_close(&t);
    memset(addresses[2], 0, sizeof(addresses[2]));
    assert_true(near__transport_open(&t, &address, in_ms(300), NULL) < 0);
    test_server_stop(&server);
}

/* The application's thread waits for its deadline and not for the resolver, and so does closing. */
static void
H9_a_client_with_a_stuck_resolver(void **state)
{
    near_config *config = near_config_new();
    near_client *client;
    near_cache  *cache;
    near_value  *value;
    int64_t      began = test_now_ms();

    (void)state;
    fresh_resolver(0);
    atomic_store(&stuck, true);
    assert_int_equal(near_config_set(config, "l2.uri", "redis://stuck.example", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.timeout", "100ms", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.connect_timeout", "100ms", NULL), NEAR_OK);
    assert_int_equal(near_client_open(config, &client, NULL), NEAR_OK);
    assert_in_range(test_now_ms() - began, 0,
                    2000 * test_slack()); /* the resolver itself is stuck for ever */
    assert_int_equal(near_cache_open(client, "c", NULL, &cache, NULL), NEAR_OK);
    began = test_now_ms();
    assert_true(near_get(cache, near_key("k"), &value) < 0);
    assert_in_range(test_now_ms() - began, 0, 2000 * test_slack());
    near_cache_close(cache);
    began = test_now_ms();
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
    assert_in_range(test_now_ms() - began, 0, 2000 * test_slack());
    assert_int_equal(near__resolve_threads(), 1); /* the documented remainder */
    near_config_free(config);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(numbers_ask_nobody, clean_up),
        cmocka_unit_test_teardown(the_systems_resolver_knows_localhost, clean_up),
        cmocka_unit_test_teardown(H9_a_slow_resolver_costs_no_more_than_the_deadline, clean_up),
        cmocka_unit_test_teardown(one_lookup_for_all_who_ask, clean_up),
        cmocka_unit_test_teardown(an_answer_is_asked_for_anew_but_not_at_once, clean_up),
        cmocka_unit_test_teardown(the_last_good_answer_outlives_trouble, clean_up),
        cmocka_unit_test_teardown(who_waits_can_be_called_off, clean_up),
        cmocka_unit_test_teardown(threads_are_bounded_and_all_names_are_answered, clean_up),
        cmocka_unit_test_teardown(many_names_do_not_pile_up, clean_up),
        cmocka_unit_test_teardown(P3_a_forked_child_asks_for_itself, clean_up),
        cmocka_unit_test_teardown(H9_every_address_is_tried, clean_up),
        cmocka_unit_test_teardown(H9_a_client_with_a_stuck_resolver, clean_up),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
