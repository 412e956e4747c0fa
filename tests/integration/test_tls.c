/*
 * TLS against real servers with certificates of our own, through the fault proxy, and against peers that speak no TLS or stop in the
 * middle.  Test names begin with the rule that they uphold.
 */
#include "harness/certs.h"
#include "harness/cluster.h"
#include "harness/proxy.h"
#include "harness/server.h"
#include "harness/test.h"

#include "l2/access.h"
#include "l2/redis_conn.h"
#include "l2/tls.h"
#include "l2/transport.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <openssl/ssl.h>

#define KiB 1024
#define MiB (1024 * 1024)

/* ---------------------------------------------------------------------------------------- the things used */

static char            place[64]; /* the certificates' directory */
static struct test_ca *ca, *stranger;

/* A server that speaks TLS at `port`, and the harness in the clear at its unix socket. */
struct tls_server {
    struct test_server *server;
    int                 port;
};
static char               ping_line[] = "PING\r\n";
static struct tls_server  good, special; /* `special` is a test's own */
static struct test_proxy *proxy;

static struct near__tls_context *context;
static struct near__access       access_to;
static struct near__redis_conn  *conn;
static struct near__uri          uri;

static const char *
path_of(const char *name)
{
    static char paths[8][128];
    static int  next;
    char       *path = paths[next++ % 8];

    snprintf(path, sizeof(paths[0]), "%s/%s", place, name);
    return path;
}

/* With the certificate `name`; `more` ends with NULL. */
static struct tls_server
start_tls(const char *name, const char *clients, const char *protocols)
{
    struct tls_server s = { NULL, 0 };
    char              crt[128], key[128], port[16];

    snprintf(crt, sizeof(crt), "%s/%s.crt", place, name);
    snprintf(key, sizeof(key), "%s/%s.key", place, name);
    for (int tries = 0; s.server == NULL && tries < 5; tries++) {
        s.port = test_free_port();
        snprintf(port, sizeof(port), "%d", s.port);
        s.server = test_redis_start(0, (const char *[]){ "--tls-port", port, "--tls-cert-file", crt,
                                                         "--tls-key-file", key, "--tls-ca-cert-file",
                                                         path_of("ca.crt"), "--tls-auth-clients", clients,
                                                         "--tls-protocols", protocols, NULL });
    }
    return s;
}

static struct tls_server
start_special(const char *name)
{
    struct tls_server s = start_tls(name, "no", "TLSv1.2 TLSv1.3");

    test_need_server(s.server);
    return s;
}

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

static near_status
make_context(const struct near__tls_options *options, near_error *error)
{
    near__tls_context_free(&context);
    return near__tls_context_new(&context, options, error);
}

/* Our authority, and nothing else that is special. */
static void
plain_context(void)
{
    near_error error = { 0 };

    if (make_context(&(struct near__tls_options){ .ca_file = path_of("ca.crt") }, &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

static near_status
dial_uri(const char *text, int64_t deadline, near_error *error)
{
    struct near__redis_server to = { .uri         = &uri,
                                     .access      = &access_to,
                                     .clock       = &near__clock_system,
                                     .client_name = "test",
                                     .max_reply   = 64 * MiB };

    memset(error, 0, sizeof(*error));
    near__redis_conn_free(&conn);
    assert_int_equal(near__uri_parse(&uri, "uri", text, NULL), NEAR_OK);
    access_to.tls = context;
    return near__redis_dial(&conn, &to, deadline, error);
}

static near_status
dial(const char *host, int port, int64_t deadline, near_error *error)
{
    char text[100];

    snprintf(text, sizeof(text), "rediss://%s:%d", host, port);
    return dial_uri(text, deadline, error);
}

static void
must_dial(const char *host, int port)
{
    near_error error;

    if (dial(host, port, later(), &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

static void
says(const near_error *error, const char *words)
{
    if (strstr(error->text, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error->text, words);
}

/* ------------------------------------------------------------------------------------ talking over `conn` */

struct answers {
    const char *expected; /* of every GET; NULL: only counted */
    size_t      size, count, wrong;
};

static void
take_answer(void *ctx, size_t index, redisReply *reply)
{
    struct answers *a = ctx;

    (void)index;
    a->count++;
    if (reply->type == REDIS_REPLY_ERROR ||
        (a->expected != NULL && reply->type == REDIS_REPLY_STRING &&
         (reply->len != a->size || memcmp(reply->str, a->expected, a->size) != 0)))
        a->wrong++;
}

static near_status
talk(struct answers *a, int64_t deadline, near_error *error)
{
    a->count = a->wrong = 0;
    return near__redis_exchange(conn, take_answer, a, NULL, NULL, deadline, error);
}

static void
queue(const char *verb, const char *key, const char *value, size_t size)
{
    near_bytes argv[3] = { near_key(verb), near_key(key), { value, size } };

    assert_int_equal(near__redis_append(conn, key == NULL ? 1 : value == NULL ? 2 : 3, argv), NEAR_OK);
}

static void
ping(void)
{
    struct answers a     = { 0 };
    near_error     error = { 0 };

    queue("PING", "x", NULL, 0);
    if (talk(&a, later(), &error) != NEAR_OK)
        fail_msg("%s", error.text);
    assert_int_equal(a.count, 1);
    assert_int_equal(a.wrong, 0);
}

static char *
random_bytes(size_t size)
{
    uint64_t random = 20261121;
    char    *bytes  = malloc(size);

    assert_non_null(bytes);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (char)test_random(&random);
    return bytes;
}

/* ------------------------------------------------------------------------------------- who may be trusted */

static void
T2_a_server_is_known_by_name_and_by_address(void **state)
{
    (void)state;
    test_need_server(good.server);
    plain_context();
    must_dial("localhost", good.port);
    ping();
    must_dial("127.0.0.1", good.port);
    ping();
}

static void
T2_the_wrong_name_fails(void **state)
{
    struct near__tls_options options = { .ca_file = path_of("ca.crt") };
    near_error               error;

    (void)state;
    special = start_special("elsewhere");
    assert_int_equal(make_context(&options, NULL), NEAR_OK);
    assert_int_equal(dial("localhost", special.port, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "certificate is refused: hostname mismatch");
    assert_int_equal(dial("127.0.0.1", special.port, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "certificate is refused: IP address mismatch");
    /* it is the name only */
    options.server_name = "redis.elsewhere.example";
    assert_int_equal(make_context(&options, NULL), NEAR_OK);
    must_dial("localhost", special.port);
    options.server_name = "elsewhere.example";
    assert_int_equal(make_context(&options, NULL), NEAR_OK);
    assert_int_equal(dial("localhost", special.port, later(), &error), NEAR_ERR_UNAVAILABLE);
    options = (struct near__tls_options){ .ca_file = path_of("ca.crt"), .any_name = true };
    assert_int_equal(make_context(&options, NULL), NEAR_OK);
    must_dial("127.0.0.1", special.port);
}

static void
T2_an_unknown_authority_fails(void **state)
{
    struct near__tls_options options = { .ca_file = path_of("stranger.crt"), .any_name = true };
    near_error               error;

    (void)state;
    test_need_server(good.server);
    assert_int_equal(make_context(&options, NULL), NEAR_OK);
    assert_int_equal(dial("localhost", good.port, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "certificate is refused: ");
    options.ca_file = NULL; /* the system's do not know it either */
    assert_int_equal(make_context(&options, NULL), NEAR_OK);
    assert_int_equal(dial("localhost", good.port, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "certificate is refused: ");
}

static void
T2_an_expired_certificate_fails(void **state)
{
    near_error error;

    (void)state;
    special = start_special("expired");
    plain_context();
    assert_int_equal(dial("localhost", special.port, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "certificate is refused: certificate has expired");
}

static void
T2_old_versions_are_not_spoken(void **state)
{
    near_error error;

    (void)state;
    special = start_tls("server", "no", "TLSv1.2");
    test_need_server(special.server);
    plain_context();
    must_dial("localhost", special.port);
    ping();
    test_server_stop(&special.server);
    special = start_tls("server", "no", "TLSv1.1");
    test_need_server(special.server);
    assert_int_equal(dial("localhost", special.port, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "TLS handshake: ");
}

static void
a_server_may_ask_for_the_clients_certificate(void **state)
{
    struct near__tls_options options = { .ca_file = path_of("ca.crt") };
    near_error               error;

    (void)state;
    special = start_tls("server", "yes", "TLSv1.2 TLSv1.3");
    test_need_server(special.server);
    assert_int_equal(make_context(&options, NULL), NEAR_OK);
    assert_int_equal(dial("localhost", special.port, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "certificate"); /* "required", in the server's words, or else the hint */
    options.cert_file = path_of("client.crt");
    options.key_file  = path_of("client.key");
    assert_int_equal(make_context(&options, NULL), NEAR_OK);
    must_dial("localhost", special.port);
    ping();
    options.cert_file = path_of("unasked.crt"); /* a stranger's */
    options.key_file  = path_of("unasked.key");
    assert_int_equal(make_context(&options, NULL), NEAR_OK);
    assert_int_equal(dial("localhost", special.port, later(), &error), NEAR_ERR_UNAVAILABLE);
}

static void
files_that_are_no_use_are_named(void **state)
{
    struct {
        struct near__tls_options options;
        const char              *says;
    } cases[] = {
        { { .ca_file = "/nowhere/ca.crt" }, "tls.ca_file = \"/nowhere/ca.crt\"" },
        { { .ca_file = path_of("server.key") }, "tls.ca_file = " },
        { { .ca_path = "/nowhere" }, "tls.ca_path = \"/nowhere\": no such directory" },
        { { .cert_file = "/nowhere/c" }, "tls.cert_file = \"/nowhere/c\"" },
        { { .cert_file = path_of("client.crt") }, "tls.cert_file = " }, /* the key is not in it */
        { { .cert_file = path_of("client.crt"), .key_file = path_of("server.key") }, "tls.key_file = " },
        { { .cert_file = path_of("client.crt"), .key_file = path_of("locked.key") }, "tls.key_file = " },
        { { .key_file = path_of("client.key") }, "tls.key_file without tls.cert_file" },
    };
    near_error error;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(cases); i++) {
        assert_int_equal(make_context(&cases[i].options, &error), NEAR_ERR_INVALID);
        assert_null(context);
        says(&error, cases[i].says);
    }
    assert_int_equal(make_context(&(struct near__tls_options){ .ca_path = place }, &error), NEAR_OK);
}

/* ------------------------------------------------------------------------------------ strangers and faults */

/* A listening socket; nobody accepts unless `serve` runs. */
static int         listener = -1;
static int         listening_at;
static char        greeting[64]; /* what the peer says at once */
static bool        hangs_up;     /* and then hangs up, or else is silent */
static atomic_bool serving;
static pthread_t   peer;

static void
listen_somewhere(void)
{
    struct sockaddr_in at   = { .sin_family = AF_INET };
    socklen_t          size = sizeof(at);

    listener           = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(listen(listener, 8), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &size), 0);
    listening_at = ntohs(at.sin_port);
}

static void *
serve(void *ctx)
{
    char scrap[4 * KiB];

    (void)ctx;
    while (atomic_load(&serving)) {
        struct pollfd pfd = { listener, POLLIN, 0 };
        int           fd;

        if (poll(&pfd, 1, 10) <= 0)
            continue;
        fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (recv(fd, scrap, sizeof(scrap), 0) > 0 && greeting[0] != '\0')
            send(fd, greeting, strlen(greeting), MSG_NOSIGNAL);
        while (!hangs_up && atomic_load(&serving))
            poll(NULL, 0, 5);
        close(fd);
    }
    return NULL;
}

static void
start_peer(const char *says_first, bool then_hangs_up)
{
    listen_somewhere();
    snprintf(greeting, sizeof(greeting), "%s", says_first);
    hangs_up = then_hangs_up;
    atomic_store(&serving, true);
    assert_int_equal(pthread_create(&peer, NULL, serve, NULL), 0);
}

static void
a_peer_without_tls_is_recognised(void **state)
{
    near_error error;

    (void)state;
    plain_context();
    start_peer("-ERR unknown command\r\n", false);
    assert_int_equal(dial("127.0.0.1", listening_at, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "TLS handshake: TLS: wrong version number (does the server speak TLS at this port?)");
}

/* A real one takes our hello for a line that has not ended. */
static void
T3_a_server_that_waits_for_plain_commands_costs_no_more_than_the_deadline(void **state)
{
    near_error error;
    int64_t    began;

    (void)state;
    plain_context();
    special.server = test_redis_start(TEST_SERVER_TCP, NULL);
    test_need_server(special.server);
    began = test_now_ms();
    assert_true(dial("127.0.0.1", special.server->port, in_ms(300), &error) < 0);
    assert_in_range(test_now_ms() - began, 0, 300 + 100 * test_slack());
    says(&error, "TLS");
}

static void
a_server_with_tls_is_recognised_by_those_without(void **state)
{
    near_error error;
    char       text[64];

    (void)state;
    test_need_server(good.server);
    snprintf(text, sizeof(text), "redis://127.0.0.1:%d", good.port);
    assert_true(dial_uri(text, later(), &error) < 0);
    says(&error, "TLS at this port"); /* by the alert it sent, or by its hanging up, which may overtake it */
    says(&error, "use rediss://");
}

static void
a_peer_that_hangs_up_in_the_handshake(void **state)
{
    near_error error;

    (void)state;
    plain_context();
    start_peer("", true);
    assert_int_equal(dial("127.0.0.1", listening_at, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "TLS handshake: the server hung up");
}

static void
T3_a_silent_peer_in_the_handshake_costs_no_more_than_the_deadline(void **state)
{
    near_error error;
    int64_t    began = test_now_ms();

    (void)state;
    plain_context();
    listen_somewhere();
    assert_int_equal(dial("127.0.0.1", listening_at, in_ms(200), &error), NEAR_ERR_TIMEOUT);
    assert_in_range(test_now_ms() - began, 199, 200 + 50 * test_slack());
    says(&error, "the TLS handshake timed out");
}

/* The proxy's target: the port that speaks TLS. */
static void
start_proxy(void)
{
    static struct test_server target;

    test_need_server(good.server);
    target           = *good.server;
    target.port      = good.port;
    target.socket[0] = '\0';
    proxy            = test_proxy_start(&target);
    assert_non_null(proxy);
}

static int
proxy_port(void)
{
    return atoi(strrchr(test_proxy_uri(proxy), ':') + 1);
}

static void
H8_a_dripping_handshake_ends_at_the_deadline(void **state)
{
    near_error error;
    int64_t    began;

    (void)state;
    plain_context();
    start_proxy();
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_DRIP, TEST_DOWN, 5, 1 });
    began = test_now_ms();
    assert_int_equal(dial("127.0.0.1", proxy_port(), in_ms(300), &error), NEAR_ERR_TIMEOUT);
    assert_in_range(test_now_ms() - began, 299, 300 + 50 * test_slack());
    test_proxy_heal(proxy);
    must_dial("127.0.0.1", proxy_port());
}

static void
a_handshake_that_is_cut_at_every_place_fails_or_is_whole(void **state)
{
    near_error error;
    size_t     failed = 0, whole = 0;

    (void)state;
    plain_context();
    start_proxy();
    for (int bytes = 1; bytes < 2000; bytes += (int)(2000 / test_scale(80)) + 1) {
        test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_CUT, TEST_DOWN, 0, bytes });
        if (dial("127.0.0.1", proxy_port(), later(), &error) == NEAR_OK)
            whole++;
        else
            failed++;
    }
    assert_true(failed > 0);
    test_proxy_heal(proxy);
    must_dial("127.0.0.1", proxy_port());
    ping();
}

static void
cut_in_the_middle(struct test_fault fault)
{
    struct answers a     = { 0 };
    near_error     error = { 0 };
    char          *value = random_bytes(MiB);

    must_dial("127.0.0.1", proxy_port());
    queue("SET", "cut", value, MiB);
    queue("GET", "cut", NULL, 0);
    test_proxy_fault(proxy, fault);
    assert_int_equal(talk(&a, later(), &error), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(talk(&a, later(), &error), NEAR_ERR_UNAVAILABLE); /* once broken, always */
    assert_false(near__redis_conn_usable(conn));
    test_proxy_heal(proxy);
    free(value);
}

static void
H6_a_stream_that_ends_in_the_middle_is_broken(void **state)
{
    (void)state;
    plain_context();
    start_proxy();
    cut_in_the_middle((struct test_fault){ TEST_FAULT_CUT, TEST_DOWN, 0, 300 * KiB });
    cut_in_the_middle((struct test_fault){ TEST_FAULT_RESET, TEST_DOWN, 0, 300 * KiB });
    cut_in_the_middle((struct test_fault){ TEST_FAULT_CUT, TEST_UP, 0, 300 * KiB });
    cut_in_the_middle((struct test_fault){ TEST_FAULT_RESET, TEST_UP, 0, 300 * KiB });
}

static void
H8_a_stream_that_stops_in_the_middle_ends_at_the_deadline(void **state)
{
    struct answers a     = { 0 };
    near_error     error = { 0 };
    char          *value = random_bytes(8 * MiB);
    int64_t        began;

    (void)state;
    plain_context();
    start_proxy();
    must_dial("127.0.0.1", proxy_port());
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_BLACKHOLE, TEST_DOWN, 0, 0 });
    queue("SET", "stop", value, 8 * MiB);
    began = test_now_ms();
    assert_int_equal(talk(&a, in_ms(300), &error), NEAR_ERR_TIMEOUT);
    assert_in_range(test_now_ms() - began, 299, 300 + 100 * test_slack());
    free(value);
}

/* A byte that was changed on the way is found out by TLS itself. */
static void
a_stream_of_rubbish_is_broken(void **state)
{
    near_error error;

    (void)state;
    plain_context();
    start_peer("\x16\x03\x03\x7f\xff rubbish", true);
    assert_int_equal(dial("127.0.0.1", listening_at, later(), &error), NEAR_ERR_UNAVAILABLE);
    says(&error, "TLS handshake: ");
}

/* ------------------------------------------------------------------------------------------------- SIGPIPE */

/* A connected blocking socket to the server's TLS port. */
static int
connect_good(void)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)good.port) };
    int                fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0 ? fd : -1;
}

static void
kill_clients(void)
{
    char out[64];

    assert_true(test_redis_command(good.server, out, sizeof(out), 5,
                                   (const char *[]){ "CLIENT", "KILL", "TYPE", "normal", "SKIPME" }) ||
                test_redis_command(good.server, out, sizeof(out), 4,
                                   (const char *[]){ "CLIENT", "KILL", "TYPE", "normal" }));
}

/* The control: OpenSSL on its own descriptor.  Its process ends by the signal. */
static void
bare_openssl(int ready, int go)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL     *ssl = SSL_new(ctx);
    char     byte;

    signal(SIGPIPE, SIG_DFL);
    if (SSL_set_fd(ssl, connect_good()) != 1 || SSL_connect(ssl) != 1 || SSL_write(ssl, "PING\r\n", 6) != 6 ||
        write(ready, "x", 1) != 1 || read(go, &byte, 1) != 1)
        _exit(2);
    for (int i = 0; i < 100; i++) {
        SSL_write(ssl, "PING\r\n", 6);
        poll(NULL, 0, 2);
    }
    _exit(0);
}

static void
T1_a_write_to_a_peer_that_is_gone_raises_no_signal(void **state)
{
    struct sigaction       action = { .sa_handler = SIG_DFL }, before;
    struct near__address   to     = { .host = "127.0.0.1", .port = (uint16_t)good.port };
    struct near__transport t      = { .fd = -1, .cancel_fd = -1, .clock = &near__clock_system };
    struct iovec           piece  = { ping_line, 6 };
    ssize_t                n      = 0;
    int                    ready[2], go[2], status;
    char                   byte;
    pid_t                  child;

    (void)state;
    test_need_server(good.server);
    plain_context();
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(go), 0);
    child = fork();
    if (child == 0)
        bare_openssl(ready[1], go[0]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    t.tls_context = context;
    assert_int_equal(near__transport_open(&t, &to, later(), NULL), NEAR_OK);
    assert_int_equal(near__transport_send(&t, &piece, 1), 6);
    poll(NULL, 0, 20); /* the server knows both before it kills them */
    kill_clients();
    assert_int_equal(write(go[1], "x", 1), 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);

    assert_int_equal(sigaction(SIGPIPE, &action, &before), 0);
    for (int i = 0; i < 100 && n >= 0; i++) {
        n = near__transport_send(&t, &piece, 1);
        poll(NULL, 0, 2);
    }
    assert_int_equal(sigaction(SIGPIPE, &before, NULL), 0);
    assert_int_equal(n, -1);
    near__transport_close(&t);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(go[i]);
    }
}

/* --------------------------------------------------------------------------------------------------- bytes */

static void
values_of_8_MiB_go_there_and_back(void **state)
{
    struct answers a     = { .size = 8 * MiB };
    near_error     error = { 0 };
    char          *value = random_bytes(8 * MiB);

    (void)state;
    test_need_server(good.server);
    plain_context();
    must_dial("localhost", good.port);
    a.expected = value;
    queue("SET", "large", value, 8 * MiB);
    queue("GET", "large", NULL, 0);
    if (talk(&a, later(), &error) != NEAR_OK)
        fail_msg("%s", error.text);
    assert_int_equal(a.count, 2);
    assert_int_equal(a.wrong, 0);
    ping();
    free(value);
}

/* Both sides' buffers are full: whoever waits for only one direction waits for ever. */
static void
H18_both_directions_at_once(void **state)
{
    struct answers a     = { .size = 100 * KiB };
    near_error     error = { 0 };
    char          *value = random_bytes(100 * KiB);

    (void)state;
    test_need_server(good.server);
    plain_context();
    must_dial("localhost", good.port);
    a.expected = value;
    for (int i = 0; i < 100; i++) {
        queue("SET", "both", value, 100 * KiB);
        queue("GET", "both", NULL, 0);
    }
    if (talk(&a, later(), &error) != NEAR_OK)
        fail_msg("%s", error.text);
    assert_int_equal(a.count, 200);
    assert_int_equal(a.wrong, 0);
    free(value);
}

/* As a lane does: many transports, one poll().  Small reads leave bytes inside the TLS layer, for which poll() never wakes. */
static void
whoever_polls_himself_sees_every_byte(void **state)
{
    static char            line[] = "GETRANGE poll 0 -1\r\n";
    struct near__address   to     = { .host = "127.0.0.1", .port = (uint16_t)good.port };
    struct near__transport t      = { .fd = -1, .cancel_fd = -1, .clock = &near__clock_system };
    struct iovec           piece  = { line, sizeof(line) - 1 };
    size_t                 got = 0, expected = MiB + sizeof("$1048576\r\n\r\n") - 1, idle = 0;
    char                  *value = random_bytes(MiB), buffer[100];

    (void)state;
    test_need_server(good.server);
    plain_context();
    must_dial("localhost", good.port);
    queue("SET", "poll", value, MiB);
    assert_int_equal(talk(&(struct answers){ 0 }, later(), NULL), NEAR_OK);
    t.tls_context = context;
    assert_int_equal(near__transport_open(&t, &to, later(), NULL), NEAR_OK);
    assert_int_equal(near__transport_send(&t, &piece, 1), 20);
    while (got < expected) {
        struct pollfd pfd = { t.fd, near__transport_events(&t, false), 0 };
        ssize_t       n;

        if (!near__transport_pending(&t) && poll(&pfd, 1, 5000 * (int)test_slack()) == 0)
            fail_msg("nothing came after %zu bytes", got);
        n = near__transport_receive(&t, buffer, sizeof(buffer));
        assert_true(n >= 0);
        idle += n == 0;
        got += (size_t)n;
    }
    assert_int_equal(got, expected);
    assert_true(idle < 1000); /* parts of records, of which there are 64; not a spin */
    assert_true(near__transport_quiet(&t));
    near__transport_close(&t);
    free(value);
}

/* What was taken leaves by itself: a caller that sends no more only receives. */
static void
T3_what_was_taken_is_sent_though_the_caller_only_receives(void **state)
{
    struct near__address   to    = { .host = "127.0.0.1" };
    struct near__transport t     = { .fd = -1, .cancel_fd = -1, .clock = &near__clock_system };
    char                  *value = random_bytes(4 * MiB), head[64], reply[64];
    struct iovec           pieces[3];
    size_t                 sent = 0, total;
    ssize_t                n    = 1;

    (void)state;
    plain_context();
    start_proxy();
    to.port       = (uint16_t)proxy_port();
    t.tls_context = context;
    assert_int_equal(near__transport_open(&t, &to, later(), NULL), NEAR_OK);
    snprintf(head, sizeof(head), "*3\r\n$3\r\nSET\r\n$5\r\ntaken\r\n$%d\r\n", 4 * MiB);
    total = strlen(head) + 4 * MiB + 2;
    test_server_pause(good.server); /* the socket fills up */
    while (sent < total) {
        size_t skip = sent;

        pieces[0] = (struct iovec){ head, strlen(head) };
        pieces[1] = (struct iovec){ value, 4 * MiB };
        pieces[2] = (struct iovec){ head + strlen(head) - 2, 2 };
        for (int i = 0; i < 3; i++) {
            size_t part = skip < pieces[i].iov_len ? skip : pieces[i].iov_len;

            pieces[i].iov_base = (char *)pieces[i].iov_base + part;
            pieces[i].iov_len -= part;
            skip -= part;
        }
        n = near__transport_send(&t, pieces, 3);
        assert_true(n >= 0);
        sent += (size_t)n;
        if (n == 0) {
            memset(value, 0,
                   sent > strlen(head) ? sent - strlen(head) : 0); /* it is not ours to send again */
            test_server_resume(good.server);
            assert_int_equal(near__transport_wait(&t, true, -1, later()), NEAR_OK);
        }
    }
    test_server_resume(good.server);
    do {
        assert_int_equal(near__transport_wait(&t, false, -1, later()), NEAR_OK);
        n = near__transport_receive(&t, reply, sizeof(reply));
    } while (n == 0);
    assert_int_equal(n, 5);
    assert_memory_equal(reply, "+OK\r\n", 5);
    near__transport_close(&t);
    free(value);
}

/* A peer that asks for new keys while our buffers are full: reading needs room to write, and writing goes on meanwhile. */
#define PATTERN (24 * MiB)
static atomic_bool  is_full, asked_for_keys;
static atomic_llong wrong_bytes, bytes_there;

static char
pattern(size_t at)
{
    return (char)(at * 7 + at / 251);
}

static void *
ask_for_keys(void *ctx)
{
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());
    SSL     *ssl = NULL;
    int      fd  = accept4(listener, NULL, NULL, SOCK_CLOEXEC), n;
    char     scrap[16 * KiB];

    (void)ctx;
    if (SSL_CTX_use_certificate_chain_file(tls, path_of("server.crt")) == 1 &&
        SSL_CTX_use_PrivateKey_file(tls, path_of("server.key"), SSL_FILETYPE_PEM) == 1)
        ssl = SSL_new(tls);
    if (ssl != NULL && SSL_set_fd(ssl, fd) == 1 && SSL_accept(ssl) == 1) {
        while (!atomic_load(&is_full) && atomic_load(&serving))
            poll(NULL, 0, 1);
        SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED);
        SSL_write(ssl, "+OK\r\n", 5);
        atomic_store(&asked_for_keys, true);
        poll(NULL, 0, 50); /* our side meets it with its buffers full */
        while (atomic_load(&bytes_there) < PATTERN && (n = SSL_read(ssl, scrap, sizeof(scrap))) > 0)
            for (int i = 0; i < n; i++)
                wrong_bytes += scrap[i] != pattern((size_t)bytes_there++);
        SSL_write(ssl, "+END\r\n", 6);
    }
    SSL_free(ssl);
    SSL_CTX_free(tls);
    close(fd);
    return NULL;
}

static void
T3_new_keys_while_both_directions_are_busy(void **state)
{
    struct near__address   to    = { .host = "127.0.0.1" };
    struct near__transport t     = { .fd = -1, .cancel_fd = -1, .clock = &near__clock_system };
    char                  *bytes = malloc(PATTERN), heard[64] = "";
    size_t                 sent = 0, got = 0, rounds = 0;
    ssize_t                n;

    (void)state;
    assert_non_null(bytes);
    for (size_t i = 0; i < PATTERN; i++)
        bytes[i] = pattern(i);
    plain_context();
    listen_somewhere();
    atomic_store(&serving, true);
    assert_int_equal(pthread_create(&peer, NULL, ask_for_keys, NULL), 0);
    to.port       = (uint16_t)listening_at;
    t.tls_context = context;
    assert_int_equal(near__transport_open(&t, &to, later(), NULL), NEAR_OK);
    while (got < 11) {
        struct iovec piece = { bytes + sent, PATTERN - sent };

        n = sent < PATTERN ? near__transport_send(&t, &piece, 1) : 0;
        if (n < 0)
            fail_msg("after %zu bytes: %s", sent, strerror(errno));
        sent += (size_t)n;
        if (n == 0 && !atomic_load(&asked_for_keys))
            atomic_store(&is_full, true);
        if (n > 0)
            continue;
        assert_int_equal(near__transport_wait(&t, sent < PATTERN, -1, later()), NEAR_OK);
        n = near__transport_receive(&t, heard + got, sizeof(heard) - got - 1);
        if (n < 0)
            fail_msg("after %zu bytes and \"%s\": %s", sent, heard, strerror(errno));
        got += (size_t)n;
        rounds++;
    }
    assert_string_equal(heard, "+OK\r\n+END\r\n");
    assert_true(atomic_load(&is_full));
    assert_true(rounds < 100000);
    near__transport_close(&t);
    pthread_join(peer, NULL);
    atomic_store(&serving, false);
    assert_int_equal(bytes_there, PATTERN);
    assert_int_equal(wrong_bytes, 0);
    free(bytes);
}

/* ------------------------------------------------------------------------------------------------ pool, fork */

static int
is_unusable(void *ctx)
{
    (void)ctx;
    return !near__redis_conn_usable(conn);
}

/* A server sends session tickets behind the handshake, which are no answer to anything. */
static void
P5_an_idle_connection_is_usable_until_the_server_closes_it(void **state)
{
    struct near__address   to    = { .host = "127.0.0.1", .port = (uint16_t)good.port };
    struct near__transport t     = { .fd = -1, .cancel_fd = -1, .clock = &near__clock_system };
    struct iovec           piece = { ping_line, 6 };

    (void)state;
    test_need_server(good.server);
    plain_context();
    must_dial("localhost", good.port);
    t.tls_context = context;
    assert_int_equal(near__transport_open(&t, &to, later(), NULL), NEAR_OK);
    poll(NULL, 0, 50);
    assert_true(near__transport_quiet(&t));
    assert_true(near__redis_conn_usable(conn));
    assert_int_equal(near__transport_send(&t, &piece, 1), 6);
    assert_int_equal(near__transport_wait(&t, false, -1, later()), NEAR_OK);
    assert_false(near__transport_quiet(&t)); /* an answer that nobody reads */
    kill_clients();
    assert_true(test_wait_for(is_unusable, NULL, 5000));
    near__transport_close(&t);
}

static void
P3_a_forked_child_says_nothing_on_the_parents_connection(void **state)
{
    pid_t child;
    int   status;

    (void)state;
    test_need_server(good.server);
    plain_context();
    must_dial("localhost", good.port);
    ping();
    child = fork();
    if (child == 0) {
        near__redis_conn_abandon(conn);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    ping();
}

/* ---------------------------------------------------------------------------------------- the whole client */

static near_client *
open_client(const char *text, const char *option, const char *value, near_error *error)
{
    near_config *config = near_config_new();
    near_client *client = NULL;

    assert_int_equal(near_config_set(config, "l2.uri", text, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.timeout", "5s", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.connect_timeout", "5s", NULL), NEAR_OK);
    if (option != NULL)
        assert_int_equal(near_config_set(config, option, value, NULL), NEAR_OK);
    if (near_client_open(config, &client, error) != NEAR_OK)
        client = NULL;
    near_config_free(config);
    return client;
}

/* L2 and bus: what one instance writes, the other no longer serves from its L1. */
static void
assert_coherent(const char *text)
{
    near_client *clients[2];
    near_cache  *caches[2];
    near_error   error = { 0 };
    near_value  *value;
    char         round[16];

    for (int i = 0; i < 2; i++) {
        clients[i] = open_client(text, "tls.ca_file", path_of("ca.crt"), &error);
        if (clients[i] == NULL)
            fail_msg("%s", error.text);
        assert_int_equal(near_cache_open(clients[i], "t", NULL, &caches[i], &error), NEAR_OK);
    }
    for (int i = 0; i < 20; i++) {
        snprintf(round, sizeof(round), "%d", i);
        assert_int_equal(near_put(caches[i % 2], near_key("k"), near_key(round), NULL), NEAR_OK);
        assert_int_equal(near_fence(clients[1 - i % 2], -1), NEAR_OK);
        assert_int_equal(near_get(caches[1 - i % 2], near_key("k"), &value), NEAR_OK);
        assert_int_equal(near_value_bytes(value).size, strlen(round));
        assert_memory_equal(near_value_bytes(value).data, round, strlen(round));
        near_value_release(value);
    }
    for (int i = 0; i < 2; i++) {
        near_cache_close(caches[i]);
        assert_int_equal(near_client_close(clients[i], NULL), NEAR_OK);
    }
}

/* T5: sentinels speak TLS too, and the master that they name is checked by its address. */
static void
a_sentinel_and_its_master_over_tls(void **state)
{
    struct test_server *sentinel;
    near_client        *client;
    near_cache         *cache;
    near_error          error = { 0 };
    char                text[128], config[1024];
    int                 port;

    (void)state;
    test_need_server(good.server);
    port = test_free_port();
    snprintf(config, sizeof(config),
             "tls-port %d\ntls-replication yes\ntls-auth-clients no\ntls-cert-file %s\ntls-key-file %s\n"
             "tls-ca-cert-file %s\nsentinel monitor mymaster 127.0.0.1 %d 1\n",
             port, path_of("server.crt"), path_of("server.key"), path_of("ca.crt"), good.port);
    sentinel = test_sentinel_start(config, NULL);
    test_need_server(sentinel);
    snprintf(text, sizeof(text), "rediss-sentinel://localhost:%d/mymaster", port);
    client = open_client(text, "tls.ca_file", path_of("ca.crt"), &error);
    if (client == NULL)
        fail_msg("%s", error.text);
    assert_int_equal(near_cache_open(client, "t", NULL, &cache, &error), NEAR_OK);
    assert_int_equal(near_put(cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    assert_int_equal(near_fence(client, -1), NEAR_OK);
    near_cache_close(cache);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
    test_server_stop(&sentinel);
}

static void
two_clients_over_tls_are_coherent(void **state)
{
    char text[64];

    (void)state;
    test_need_server(good.server);
    snprintf(text, sizeof(text), "rediss://localhost:%d", good.port);
    assert_coherent(text);
}

static struct test_cluster *cluster;
static int                  clean_up(void **state);

/* Is this key in L1, and would it be served from there? */
static bool
in_l1(near_cache *cache, const char *key)
{
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value   = NULL;
    near_status      status;

    options.flags = NEAR_ONLY_L1;
    status        = near_get_with(cache, near_key(key), &options, &value);
    near_value_release(value);
    return status == NEAR_OK;
}

static int
is_tracking(void *ctx)
{
    near_stats s = NEAR_STATS_INIT;

    return near_stats_get(ctx, &s) == NEAR_OK && s.bus_tracking != 0 && s.bus_connected != 0 &&
           near_fence(ctx, 1000) == NEAR_OK;
}

/* Somebody who is none of us changes it, at whichever primary takes it. */
static void
change_at_its_primary(const char *key)
{
    char out[100];
    bool changed = false;

    for (unsigned node = 0; node < cluster->nodes && !changed; node++)
        changed =
            test_cluster_ask(cluster, node, out, sizeof(out), 3, (const char *[]){ "SET", key, "foreign" });
    assert_true(changed);
}

/* A tracker per primary, over TLS to the ports for it: also from an address that names no other node. */
static void
assert_tracked(const char *text)
{
    near_error   error  = { 0 };
    near_config *config = near_config_new();
    near_client *client = NULL;
    near_cache  *cache;
    unsigned     heard = 0, with_tracking = 0;

    for (int mode = 0; mode < 2; mode++) { /* pubsub is the control */
        near_config_free(config);
        config = near_config_new();
        assert_int_equal(near_config_set(config, "l2.uri", text, NULL), NEAR_OK);
        assert_int_equal(near_config_set(config, "coherence.mode", mode == 0 ? "tracking" : "pubsub", NULL),
                         NEAR_OK);
        assert_int_equal(near_config_set(config, "tls.ca_file", path_of("ca.crt"), NULL), NEAR_OK);
        assert_int_equal(near_config_set(config, "l2.timeout", "5s", NULL), NEAR_OK);
        assert_int_equal(near_client_open(config, &client, &error), NEAR_OK);
        assert_int_equal(near_cache_open(client, "t", NULL, &cache, &error), NEAR_OK);
        if (mode == 0)
            assert_true(test_wait_for(is_tracking, client, 10000 * test_slack()));
        for (unsigned i = 0; i < 12; i++) {
            char key[8], wire[16];

            snprintf(key, sizeof(key), "k%u", i);
            snprintf(wire, sizeof(wire), "nc:t:k%u", i);
            assert_int_equal(near_put(cache, near_key(key), near_key("ours"), NULL), NEAR_OK);
            assert_int_equal(near_fence(client, -1), NEAR_OK);
            if (mode == 0 && !in_l1(cache, key)) { /* our own write was told of, too */
                near_value *value = NULL;

                assert_int_equal(near_get(cache, near_key(key), &value), NEAR_OK);
                near_value_release(value);
            }
            assert_true(in_l1(cache, key));
            change_at_its_primary(wire);
            assert_int_equal(near_fence(client, -1), NEAR_OK);
            heard += !in_l1(cache, key);
        }
        if (mode == 0)
            with_tracking = heard;
        near_cache_close(cache);
        assert_int_equal(near_client_close(client, NULL), NEAR_OK);
    }
    near_config_free(config);
    assert_int_equal(with_tracking, 12);
    assert_int_equal(heard - with_tracking, 0);
}

static void
clients_of_a_cluster_over_tls_are_coherent_and_told_of_keys(void **state)
{
    char crt[128], key[128], one[64];

    (void)state;
    test_need_server(good.server);
    snprintf(crt, sizeof(crt), "%s", path_of("server.crt"));
    snprintf(key, sizeof(key), "%s", path_of("server.key"));
    cluster = test_cluster_start(3, 0, 1000,
                                 (const char *[]){ "--tls-cluster", "yes", "--tls-cert-file", crt,
                                                   "--tls-key-file", key, "--tls-ca-cert-file",
                                                   path_of("ca.crt"), "--tls-auth-clients", "no", NULL });
    assert_non_null(cluster);
    assert_memory_equal(cluster->uri, "rediss-cluster://", 17);
    assert_coherent(cluster->uri);
    assert_tracked(cluster->uri);
    snprintf(one, sizeof(one), "rediss-cluster://localhost:%d", cluster->tls_port[1]);
    assert_tracked(one);
}

static int
clean_up_cluster(void **state)
{
    test_cluster_stop(&cluster);
    return clean_up(state);
}

static void
a_client_refuses_what_it_cannot_use_when_it_opens(void **state)
{
    near_error error = { 0 };

    (void)state;
    assert_null(open_client("rediss://localhost:1", "tls.ca_file", "/nowhere/ca.crt", &error));
    assert_int_equal(error.code, NEAR_ERR_INVALID);
    says(&error, "tls.ca_file = \"/nowhere/ca.crt\"");
    assert_int_equal(chmod(path_of("client.key"), 0604), 0);
    assert_null(open_client("rediss://localhost:1", "tls.key_file", path_of("client.key"), &error));
    assert_int_equal(chmod(path_of("client.key"), 0600), 0);
    assert_int_equal(error.code, NEAR_ERR_INVALID);
    says(&error, "neither readable nor writable by everybody");
}

/* ------------------------------------------------------------------------------------------------- the frame */

/* A key behind a passphrase: nobody must be asked for it. */
static bool
lock_key(void)
{
    FILE     *in = fopen(path_of("client.key"), "re"), *out = fopen(path_of("locked.key"), "we");
    EVP_PKEY *key = in != NULL ? PEM_read_PrivateKey(in, NULL, NULL, NULL) : NULL;
    bool      ok  = key != NULL && out != NULL &&
              PEM_write_PrivateKey(out, key, EVP_aes_128_cbc(), (const unsigned char *)"secret", 6, NULL,
                                   NULL) == 1;

    EVP_PKEY_free(key);
    if (in != NULL)
        fclose(in);
    if (out != NULL)
        fclose(out);
    return ok;
}

static int
start_all(void **state)
{
    (void)state;
    strcpy(place, "/tmp/near-certs-XXXXXX");
    if (mkdtemp(place) == NULL)
        return -1;
    ca       = test_ca_new(place, "ca");
    stranger = test_ca_new(place, "stranger");
    if (ca == NULL || stranger == NULL || !test_ca_issue(ca, "server", "DNS:localhost,IP:127.0.0.1", 10) ||
        !test_ca_issue(ca, "elsewhere", "DNS:redis.elsewhere.example,IP:192.0.2.1", 10) ||
        !test_ca_issue(ca, "expired", "DNS:localhost,IP:127.0.0.1", -1) ||
        !test_ca_issue(ca, "client", "DNS:client", 10) ||
        !test_ca_issue(stranger, "unasked", "DNS:client", 10) || !lock_key())
        return -1;
    good = start_tls("server", "no", "TLSv1.2 TLSv1.3");
    return 0;
}

static int
stop_all(void **state)
{
    static const char *const names[] = { "ca",      "stranger", "server",  "elsewhere",
                                         "expired", "client",   "unasked", "locked" };

    (void)state;
    test_server_stop(&good.server);
    test_ca_free(&ca);
    test_ca_free(&stranger);
    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++) {
        char name[32];

        snprintf(name, sizeof(name), "%s.crt", names[i]);
        unlink(path_of(name));
        snprintf(name, sizeof(name), "%s.key", names[i]);
        unlink(path_of(name));
    }
    return rmdir(place);
}

static int
clean_up(void **state)
{
    (void)state;
    near__redis_conn_free(&conn);
    near__tls_context_free(&context);
    test_server_stop(&special.server);
    if (good.server != NULL)
        test_server_resume(good.server);
    if (atomic_exchange(&serving, false))
        pthread_join(peer, NULL);
    if (listener >= 0)
        close(listener);
    listener = -1;
    test_proxy_stop(&proxy);
    return 0;
}

#define TLS_TEST(test) cmocka_unit_test_teardown(test, clean_up)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TLS_TEST(T2_a_server_is_known_by_name_and_by_address),
        TLS_TEST(T2_the_wrong_name_fails),
        TLS_TEST(T2_an_unknown_authority_fails),
        TLS_TEST(T2_an_expired_certificate_fails),
        TLS_TEST(T2_old_versions_are_not_spoken),
        TLS_TEST(a_server_may_ask_for_the_clients_certificate),
        TLS_TEST(files_that_are_no_use_are_named),
        TLS_TEST(a_peer_without_tls_is_recognised),
        TLS_TEST(T3_a_server_that_waits_for_plain_commands_costs_no_more_than_the_deadline),
        TLS_TEST(a_server_with_tls_is_recognised_by_those_without),
        TLS_TEST(a_peer_that_hangs_up_in_the_handshake),
        TLS_TEST(T3_a_silent_peer_in_the_handshake_costs_no_more_than_the_deadline),
        TLS_TEST(H8_a_dripping_handshake_ends_at_the_deadline),
        TLS_TEST(a_handshake_that_is_cut_at_every_place_fails_or_is_whole),
        TLS_TEST(H6_a_stream_that_ends_in_the_middle_is_broken),
        TLS_TEST(H8_a_stream_that_stops_in_the_middle_ends_at_the_deadline),
        TLS_TEST(a_stream_of_rubbish_is_broken),
        TLS_TEST(T1_a_write_to_a_peer_that_is_gone_raises_no_signal),
        TLS_TEST(values_of_8_MiB_go_there_and_back),
        TLS_TEST(H18_both_directions_at_once),
        TLS_TEST(whoever_polls_himself_sees_every_byte),
        TLS_TEST(T3_what_was_taken_is_sent_though_the_caller_only_receives),
        TLS_TEST(T3_new_keys_while_both_directions_are_busy),
        TLS_TEST(P5_an_idle_connection_is_usable_until_the_server_closes_it),
        TLS_TEST(P3_a_forked_child_says_nothing_on_the_parents_connection),
        TLS_TEST(two_clients_over_tls_are_coherent),
        TLS_TEST(a_sentinel_and_its_master_over_tls),
        cmocka_unit_test_teardown(clients_of_a_cluster_over_tls_are_coherent_and_told_of_keys,
                                  clean_up_cluster),
        TLS_TEST(a_client_refuses_what_it_cannot_use_when_it_opens),
    };

    return TEST_MAIN(tests, start_all, stop_all);
}
