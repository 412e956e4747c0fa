/* Logins: out of a URI, a file or a variable, never into a message, and never in the clear to another host. */
#include "harness/log.h"
#include "harness/server.h"
#include "harness/test.h"

#include "access.h"
#include "l2/redis_conn.h"
#include "l2/resolve.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static struct test_server      *server;
static struct near__redis_conn *conn;
static near_config             *config;
static near_client             *client;
static char                     place[64];

static const char *
path_of(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", place, name);
    return path;
}

/* A file with this text, which its owner alone may read; its path. */
static const char *
file_with(const char *text, size_t size)
{
    FILE *file = fopen(path_of("secret"), "we");

    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path_of("secret"), 0600), 0);
    return path_of("secret");
}

static void
says(const near_error *error, const char *words)
{
    if (strstr(error->text, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error->text, words);
    assert_null(strstr(error->text, "hunter2"));
}

/* ------------------------------------------------------------------------------------------ from settings */

struct pair {
    const char *name, *value;
};

/* l2.uri and the bus's with these settings; `uri` and `bus` may be NULL. */
static near_status
resolve(const struct pair *pairs, struct near__uri *uri, struct near__uri *bus, near_error *error)
{
    static struct near__settings settings;
    struct near__client_access   access = { 0 };
    struct near__uri             l2, own;
    near_config                 *c      = near_config_new();
    near_status                  status = NEAR_OK;

    for (; pairs->name != NULL; pairs++)
        assert_int_equal(near_config_set(c, pairs->name, pairs->value, NULL), NEAR_OK);
    status = near__settings_resolve(&settings, c, error);
    assert_int_equal(status, NEAR_OK);
    assert_int_equal(near__uri_parse(&l2, "l2.uri", settings.l2_uri, NULL), NEAR_OK);
    status = near__access_l2(&access, &settings, &l2, error);
    own    = l2;
    if (status == NEAR_OK && strcmp(settings.coherence_uri, "auto") != 0)
        assert_int_equal(near__uri_parse(&own, "coherence.uri", settings.coherence_uri, NULL), NEAR_OK);
    if (status == NEAR_OK)
        status = near__access_bus(&access, &settings, &own, error);
    if (uri != NULL)
        *uri = l2;
    if (bus != NULL)
        *bus = own;
    near__access_free(&access);
    near_config_free(c);
    return status;
}

#define RESOLVE(uri, bus, error, ...)                                                                        \
    resolve((const struct pair[]){ __VA_ARGS__, { NULL, NULL } }, uri, bus, error)

static void
a_password_is_the_first_line_of_its_file(void **state)
{
    static const struct {
        const char *text;
        size_t      size;
        const char *password; /* NULL: refused */
    } cases[] = {
        { "hunter2", 7, "hunter2" },
        { "hunter2\n", 8, "hunter2" },
        { "hunter2\r\n", 9, "hunter2" },
        { "hunter2\nsecond line\n", 20, "hunter2" },
        { " blanks count ", 14, " blanks count " },
        { "", 0, NULL },
        { "\n", 1, NULL },
        { "\r\n", 2, NULL },
        { "hunter2\0more\n", 13, NULL },
    };
    struct near__uri uri;
    near_error       error;
    char             large[2000];

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(cases); i++) {
        near_status status = RESOLVE(&uri, NULL, &error, { "l2.uri", "redis://localhost" },
                                     { "l2.password_file", file_with(cases[i].text, cases[i].size) });

        assert_int_equal(status, cases[i].password != NULL ? NEAR_OK : NEAR_ERR_INVALID);
        if (status == NEAR_OK)
            assert_string_equal(uri.password, cases[i].password);
        else
            says(&error, "l2.password_file: accepts a password of 1 .. 255 bytes");
        assert_string_equal(uri.user, "");
    }
    memset(large, 'x', sizeof(large));
    for (size_t size = 254; size < 2000; size += size < 258 ? 1 : 700)
        assert_int_equal(RESOLVE(&uri, NULL, NULL, { "l2.uri", "redis://localhost" },
                                 { "l2.password_file", file_with(large, size) }),
                         size <= 255 ? NEAR_OK : NEAR_ERR_INVALID);
}

static void
a_file_that_is_no_secret_is_refused(void **state)
{
    static const struct {
        mode_t mode;
        bool   accepted;
    } modes[]         = { { 0600, true },  { 0400, true },  { 0640, true },  { 0440, true },
                          { 0644, false }, { 0604, false }, { 0602, false }, { 0666, false } };
    const char *path  = file_with("hunter2", 7);
    near_error  error = { 0 };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(modes); i++) {
        assert_int_equal(chmod(path, modes[i].mode), 0);
        assert_int_equal(
            RESOLVE(NULL, NULL, &error, { "l2.uri", "redis://localhost" }, { "l2.password_file", path }),
            modes[i].accepted ? NEAR_OK : NEAR_ERR_INVALID);
        if (!modes[i].accepted)
            says(&error, "neither readable nor writable by everybody (chmod o-rw)");
    }
    assert_int_equal(RESOLVE(NULL, NULL, &error, { "l2.uri", "redis://localhost" },
                             { "l2.password_file", "/nowhere/secret" }),
                     NEAR_ERR_INVALID);
    says(&error, "l2.password_file = \"/nowhere/secret\": No such file");
    assert_int_equal(
        RESOLVE(NULL, NULL, &error, { "l2.uri", "redis://localhost" }, { "l2.password_file", place }),
        NEAR_ERR_INVALID);
    unlink(path_of("secret"));
    assert_int_equal(mkfifo(path_of("secret"), 0600), 0); /* nobody will ever write there */
    assert_int_equal(RESOLVE(NULL, NULL, &error, { "l2.uri", "redis://localhost" },
                             { "l2.password_file", path_of("secret") }),
                     NEAR_ERR_INVALID);
    unlink(path_of("secret"));
}

static void
a_password_may_be_a_variable(void **state)
{
    struct near__uri uri;
    near_error       error;

    (void)state;
    setenv("TEST_SECRET", "hunter2", 1);
    assert_int_equal(RESOLVE(&uri, NULL, &error, { "l2.uri", "redis://localhost/3" },
                             { "l2.password_env", "TEST_SECRET" }, { "l2.user", "someone" }),
                     NEAR_OK);
    assert_string_equal(uri.password, "hunter2");
    assert_string_equal(uri.user, "someone");
    assert_int_equal(uri.database, 3);
    setenv("TEST_SECRET", "", 1);
    assert_int_equal(
        RESOLVE(&uri, NULL, &error, { "l2.uri", "redis://localhost" }, { "l2.password_env", "TEST_SECRET" }),
        NEAR_ERR_INVALID);
    says(&error, "l2.password_env: accepts a password of 1 .. 255 bytes");
    unsetenv("TEST_SECRET");
    assert_int_equal(
        RESOLVE(&uri, NULL, &error, { "l2.uri", "redis://localhost" }, { "l2.password_env", "TEST_SECRET" }),
        NEAR_ERR_INVALID);
    says(&error, "l2.password_env = \"TEST_SECRET\": there is no such variable");
}

static void
there_is_one_password_and_no_more(void **state)
{
    const char *path = file_with("hunter2", 7);
    near_error  error;

    (void)state;
    assert_int_equal(RESOLVE(NULL, NULL, &error, { "l2.uri", "redis://localhost" },
                             { "l2.password_file", path }, { "l2.password_env", "HOME" }),
                     NEAR_ERR_INVALID);
    says(&error, "l2.password_file and l2.password_env: only one of them");
    assert_int_equal(
        RESOLVE(NULL, NULL, &error, { "l2.uri", "redis://:hunter2@localhost" }, { "l2.password_file", path }),
        NEAR_ERR_INVALID);
    says(&error, "l2.password_file: there is a password in the URI already");
    assert_int_equal(RESOLVE(NULL, NULL, &error, { "l2.uri", "redis://localhost" }, { "l2.user", "someone" }),
                     NEAR_ERR_INVALID);
    says(&error, "l2.user: a user without a password");
    /* it means nothing to others */
    assert_int_equal(RESOLVE(NULL, NULL, &error, { "l2.uri", "memory:x" }, { "l2.password_file", path }),
                     NEAR_OK);
}

static void
the_bus_has_L2s_login_or_its_own(void **state)
{
    const char      *path = file_with("hunter2", 7);
    struct near__uri uri, bus;
    near_error       error;

    (void)state;
    setenv("TEST_SECRET", "of-the-bus", 1);
    assert_int_equal(RESOLVE(&uri, &bus, &error, { "l2.uri", "redis://localhost" },
                             { "l2.password_file", path }, { "l2.user", "someone" }),
                     NEAR_OK);
    assert_string_equal(bus.password, "hunter2");
    assert_string_equal(bus.user, "someone");
    assert_true(near__uri_same_server(&uri, &bus));
    assert_int_equal(RESOLVE(&uri, &bus, &error, { "l2.uri", "redis://localhost" },
                             { "l2.password_file", path }, { "l2.user", "someone" },
                             { "coherence.password_env", "TEST_SECRET" }),
                     NEAR_OK);
    assert_string_equal(uri.password, "hunter2");
    assert_string_equal(bus.password, "of-the-bus");
    assert_string_equal(bus.user, "");
    assert_int_equal(RESOLVE(&uri, &bus, &error, { "l2.uri", "none:" },
                             { "coherence.uri", "redis://localhost" },
                             { "coherence.password_env", "TEST_SECRET" }, { "coherence.user", "listener" }),
                     NEAR_OK);
    assert_string_equal(bus.password, "of-the-bus");
    assert_string_equal(bus.user, "listener");
    assert_int_equal(RESOLVE(NULL, NULL, &error, { "l2.uri", "none:" },
                             { "coherence.uri", "redis://:hunter2@localhost" },
                             { "coherence.password_env", "TEST_SECRET" }),
                     NEAR_ERR_INVALID);
    says(&error, "coherence.password_env: there is a password in the URI already");
    unsetenv("TEST_SECRET");
}

/* -------------------------------------------------------------------------------------------- in the clear */

static void
a_password_does_not_go_to_another_host_in_the_clear(void **state)
{
    static const struct {
        const char *uri;
        bool        accepted;
    } cases[] = {
        { "redis://:hunter2@127.0.0.1", true },
        { "redis://:hunter2@127.5.5.5:1/2", true },
        { "redis://:hunter2@localhost", true },
        { "redis://:hunter2@[::1]", true },
        { "redis+unix://:hunter2@/run/r.sock", true },
        { "redis://10.1.2.3", true },                     /* there is none */
        { "redis-sentinel://:hunter2@10.1.2.3/m", true }, /* not told to sentinels: looked at when the master is known */
        { "redis://:hunter2@10.1.2.3", false },
        { "redis://:hunter2@128.0.0.1", false },
        { "redis://:hunter2@[2001:db8::1]", false },
        { "redis://:hunter2@redis.example", false },
        { "redis://u:hunter2@localhost.example", false },
        { "redis-cluster://:hunter2@127.0.0.1,10.1.2.3", false },
    };
    near_error error;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(cases); i++) {
        near_status status = RESOLVE(NULL, NULL, &error, { "l2.uri", cases[i].uri });

        if (status != (cases[i].accepted ? NEAR_OK : NEAR_ERR_INVALID))
            fail_msg("%s: %d", cases[i].uri, status);
        if (!cases[i].accepted)
            says(&error, "l2.uri: the password would be readable on its way to ");
        assert_int_equal(
            RESOLVE(NULL, NULL, &error, { "l2.uri", cases[i].uri }, { "l2.allow_plaintext_auth", "yes" }),
            NEAR_OK);
    }
    assert_int_equal(
        RESOLVE(NULL, NULL, &error, { "l2.uri", "none:" }, { "coherence.uri", "redis://:hunter2@10.1.2.3" }),
        NEAR_ERR_INVALID);
    says(&error, "coherence.uri: ");
    assert_int_equal(RESOLVE(NULL, NULL, &error, { "l2.uri", "redis://10.1.2.3" },
                             { "l2.password_file", file_with("hunter2", 7) }),
                     NEAR_ERR_INVALID);
}

static struct in_addr elsewhere; /* an address of this machine that is no loopback */

static int
all_is_elsewhere(const char *host, struct near__resolved *found)
{
    struct sockaddr_in *to = (struct sockaddr_in *)&found->at[0].address;

    (void)host;
    memset(to, 0, sizeof(*to));
    to->sin_family    = AF_INET;
    to->sin_addr      = elsewhere;
    found->at[0].size = sizeof(*to);
    found->n          = 1;
    return 0;
}

static bool
find_elsewhere(void)
{
    struct ifaddrs *all = NULL;
    bool            ok  = false;

    if (getifaddrs(&all) != 0)
        return false;
    for (struct ifaddrs *a = all; a != NULL && !ok; a = a->ifa_next) {
        ok = a->ifa_addr != NULL && a->ifa_addr->sa_family == AF_INET && (a->ifa_flags & IFF_LOOPBACK) == 0 &&
             (a->ifa_flags & IFF_UP) != 0;
        if (ok)
            elsewhere = ((struct sockaddr_in *)a->ifa_addr)->sin_addr;
    }
    freeifaddrs(all);
    return ok;
}

/* What a name turns out to be is known after connecting only: not a byte is said then. */
static void
the_peers_address_decides_not_its_name(void **state)
{
    struct sockaddr_in        at   = { .sin_family = AF_INET };
    socklen_t                 size = sizeof(at);
    int                       fd   = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), peer;
    struct near__uri          uri;
    struct near__access       access = { .plaintext_auth = false };
    struct near__redis_server to     = { .uri         = &uri,
                                         .access      = &access,
                                         .clock       = &near__clock_system,
                                         .client_name = "test",
                                         .max_reply   = 1 << 20 };
    near_error                error  = { 0 };
    char                      text[100], bytes[100];

    (void)state;
    if (!find_elsewhere())
        skip();
    at.sin_addr = elsewhere;
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(listen(fd, 4), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    near__resolve_test(all_is_elsewhere, 0);
    snprintf(text, sizeof(text), "redis://:hunter2@localhost:%d", ntohs(at.sin_port));
    assert_int_equal(near__uri_parse(&uri, "o", text, NULL), NEAR_OK);
    assert_int_equal(near__redis_dial(&conn, &to, near__now(&near__clock_system) + 5000 * NEAR_MS, &error),
                     NEAR_ERR_DENIED);
    says(&error, "not logged in: the password would be readable on the way");
    peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    assert_int_equal(recv(peer, bytes, sizeof(bytes), 0), 0);
    close(peer);
    access.plaintext_auth = true; /* the control: it waits for an answer to AUTH */
    assert_int_equal(near__redis_dial(&conn, &to, near__now(&near__clock_system) + 100 * NEAR_MS, &error),
                     NEAR_ERR_TIMEOUT);
    peer = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
    assert_true(recv(peer, bytes, sizeof(bytes), 0) > 0);
    close(peer);
    close(fd);
}

/* ---------------------------------------------------------------------------------------- the whole client */

static char logged[4096];

static void
log_line(near_log_level level, const char *message, void *ctx)
{
    (void)level, (void)ctx;
    test_log_append(logged, sizeof(logged), message);
}

static near_status
use_server(const char *password)
{
    near_cache *cache;
    near_error  error;
    near_status status;

    config = near_config_new();
    assert_int_equal(near_config_set(config, "l2.uri", server->uri, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.user", "someone", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.password_file", file_with(password, strlen(password)), NULL),
                     NEAR_OK);
    if (near_client_open(config, &client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_set_log(client, log_line, NULL);
    assert_int_equal(near_cache_open(client, "c", NULL, &cache, &error), NEAR_OK);
    status = near_put(cache, near_key("k"), near_key("v"), NULL);
    if (status == NEAR_OK)
        status = near_fence(client, -1);
    near_cache_close(cache);
    near_client_close(client, NULL);
    client = NULL;
    near_config_free(config);
    config = NULL;
    return status;
}

static void
a_user_with_a_password_file_logs_in(void **state)
{
    (void)state;
    server = test_redis_start(
        0, (const char *[]){ "--user", "someone", "on", ">hunter2", "~nc:*", "&nc:*", "+@all", NULL });
    test_need_server(server);
    assert_int_equal(use_server("hunter2\n"), NEAR_OK);
    assert_null(strstr(logged, "hunter2"));
    assert_int_equal(use_server("hunter2-not"), NEAR_ERR_DENIED);
    assert_non_null(strstr(logged, "WRONGPASS"));
    assert_null(strstr(logged, "hunter2"));
}

/* A build without OpenSSL says so when the client opens, and never goes on without TLS. */
static void
T1_tls_is_there_or_refused(void **state)
{
    near_error error = { 0 };

    (void)state;
    config = near_config_new();
    assert_int_equal(near_config_set(config, "l2.uri", "rediss://127.0.0.1:1", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.connect_timeout", "10ms", NULL), NEAR_OK);
#ifdef HAVE_OPENSSL
    assert_int_equal(near_client_open(config, &client, &error), NEAR_OK);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
#else
    assert_int_equal(near_client_open(config, &client, &error), NEAR_ERR_UNSUPPORTED);
    says(&error, "built without OpenSSL");
#endif
    near_config_free(config);
}

/* Whoever opens a backend without what its URI wants gets nothing less. */
static void
T1_never_less_than_the_uri_asks_for(void **state)
{
    struct near__uri          uri;
    struct near__redis_server to = {
        .uri = &uri, .clock = &near__clock_system, .client_name = "test", .max_reply = 1 << 20
    };
    near_error error = { 0 };

    (void)state;
    assert_int_equal(near__uri_parse(&uri, "o", "rediss://127.0.0.1:1", NULL), NEAR_OK);
    assert_int_equal(near__redis_dial(&conn, &to, near__now(&near__clock_system) + 1000 * NEAR_MS, &error),
                     NEAR_ERR_UNSUPPORTED);
    says(&error, "TLS is wanted and not set up");
    assert_int_equal(near__uri_parse(&uri, "o", "redis-sentinel://127.0.0.1:1/m", NULL), NEAR_OK);
    assert_int_equal(near__redis_dial(&conn, &to, near__now(&near__clock_system) + 1000 * NEAR_MS, &error),
                     NEAR_ERR_UNSUPPORTED);
    says(&error, "sentinels are to be asked and not set up");
}

/* ------------------------------------------------------------------------------------------------- the frame */

static int
start_all(void **state)
{
    (void)state;
    strcpy(place, "/tmp/near-secret-XXXXXX");
    return mkdtemp(place) != NULL ? 0 : -1;
}

static int
clean_up(void **state)
{
    (void)state;
    near__resolve_test(NULL, -1);
    near__redis_conn_free(&conn);
    test_server_stop(&server);
    unlink(path_of("secret"));
    return 0;
}

static int
stop_all(void **state)
{
    (void)state;
    return rmdir(place);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_password_is_the_first_line_of_its_file, clean_up),
        cmocka_unit_test_teardown(a_file_that_is_no_secret_is_refused, clean_up),
        cmocka_unit_test_teardown(a_password_may_be_a_variable, clean_up),
        cmocka_unit_test_teardown(there_is_one_password_and_no_more, clean_up),
        cmocka_unit_test_teardown(the_bus_has_L2s_login_or_its_own, clean_up),
        cmocka_unit_test_teardown(a_password_does_not_go_to_another_host_in_the_clear, clean_up),
        cmocka_unit_test_teardown(the_peers_address_decides_not_its_name, clean_up),
        cmocka_unit_test_teardown(a_user_with_a_password_file_logs_in, clean_up),
        cmocka_unit_test_teardown(T1_tls_is_there_or_refused, clean_up),
        cmocka_unit_test_teardown(T1_never_less_than_the_uri_asks_for, clean_up),
    };

    return TEST_MAIN(tests, start_all, stop_all);
}
