/*
 * The commands for operating: bench, warm, top, doctor against logins of few rights, explain and its like, completion and manual: the
 * built binary against real servers, and what it says of bad input.
 */
#include "tool.h"

#include "config.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>

/* ---- what is needed below */

static void
pause_ms(long ms)
{
    struct timespec wait = { ms / 1000, ms % 1000 * 1000000 };

    nanosleep(&wait, NULL);
}

/* The number behind `"name": ` in a text, from `from` on. */
static double
number_in(const char *from, const char *name)
{
    char        quoted[64];
    const char *at;

    snprintf(quoted, sizeof(quoted), "\"%s\": ", name);
    at = from != NULL ? strstr(from, quoted) : NULL;
    if (at == NULL)
        fail_msg("no %s in: %s", quoted, from != NULL ? from : "(nothing)");
    return strtod(at + strlen(quoted), NULL);
}

static near_client *
open_client(struct world *world, const char *const *settings)
{
    near_config *config = near_config_new();
    near_client *client = NULL;
    near_error   error;

    assert_int_equal(near_config_set(config, "l2.uri", world->server->uri, &error), NEAR_OK);
    for (; *settings != NULL; settings += 2)
        assert_int_equal(near_config_set(config, settings[0], settings[1], &error), NEAR_OK);
    assert_int_equal(near_client_open(config, &client, &error), NEAR_OK);
    near_config_free(config);
    return client;
}
#define CLIENT(...) open_client(world, (const char *const[]){ __VA_ARGS__, NULL })

static const char *
server_says(struct world *world, char *out, size_t size, const char *a, const char *b, const char *c)
{
    test_redis_command(world->server, out, size,
                       c != NULL   ? 3
                       : b != NULL ? 2
                                   : 1,
                       (const char *[]){ a, b, c });
    return out;
}

/* How often the server has run a command. */
static long
calls_of(struct world *world, const char *command)
{
    char        out[8192], name[40];
    const char *at;

    server_says(world, out, sizeof(out), "INFO", "commandstats", NULL);
    snprintf(name, sizeof(name), "cmdstat_%s:calls=", command);
    at = strstr(out, name);
    return at != NULL ? strtol(at + strlen(name), NULL, 10) : 0;
}

/* ---- bench */

static void
bench_counts_and_tells(void **state)
{
    struct world *world = *state;
    const char   *reads;

    start_redis(world);
    assert_int_equal(RUN("bench", "--json", "--keys", "1k", "--duration", "200ms", "--warm-up", "0",
                         "--threads", "2", "--puts", "10", world->server->uri),
                     0);
    assert_string_equal(world->err, "");
    assert_true(number_in(world->out, "requests") > 100);
    assert_true(number_in(world->out, "errors") == 0);
    reads = strstr(world->out, "\"reads\"");
    assert_true(number_in(reads, "p50") > 0 && number_in(reads, "p50") <= number_in(reads, "p99"));
    assert_true(number_in(reads, "p99") <= number_in(reads, "max"));
    assert_true(number_in(strstr(world->out, "\"writes\""), "count") > 0);
    assert_true(number_in(world->out, "l1") > 0.5);
    assert_int_equal(
        RUN("bench", "--keys", "100", "--duration", "50ms", "--warm-up", "0", world->server->uri), 0);
    assert_says(world->out, "requests/s");
}

/* The second side has no L1, so every read of it goes further: the shares say that it is another one. */
static void
bench_compares_two_configurations(void **state)
{
    struct world *world = *state;
    const char   *second;

    start_redis(world);
    assert_int_equal(RUN("bench", "--json", "--keys", "100", "--duration", "150ms", "--warm-up", "0",
                         "--rounds", "3", "--against", "l1.max_bytes=0", world->server->uri),
                     0);
    second = strstr(strstr(world->out, "\"name\"") + 1, "\"name\"");
    assert_true(number_in(world->out, "l1") > 0.5);
    assert_true(number_in(second, "l1") == 0);
    assert_true(number_in(strstr(world->out, "\"ratios\""), "median") < 1);
    assert_true(number_in(strstr(world->out, "\"p50\": { \"median\""), "median") > 1);
}

/* Reads of a trace's keys, loaded where they are missing. */
static void
bench_takes_keys_of_a_trace(void **state)
{
    struct world *world = *state;

    write_file(world, "a 10\nb 20\na 10\nc 30\n");
    assert_int_equal(RUN("bench", "--json", "--trace", world->file, "--duration", "50ms", "--warm-up", "0",
                         "--puts", "0", "--loader", "0", "memory:"),
                     0);
    assert_true(number_in(world->out, "keys") == 4);
    assert_true(number_in(world->out, "loaded") < 0.5);
    assert_int_equal(RUN("bench", "--trace", "/no/such/trace", "memory:"), 3);
    assert_says(world->err, "/no/such/trace");
}

static void *
stall(void *ctx)
{
    struct world *world = ctx;

    for (int i = 0; i < 2000 && calls_of(world, "get") + calls_of(world, "mget") < 20; i++)
        pause_ms(5); /* the keys are stored, and the run has begun */
    test_server_pause(world->server);
    pause_ms(250);
    test_server_resume(world->server);
    return NULL;
}

/* A server that stands still for a while is charged for what should have begun meanwhile.  The control is in the same run: the time from
 * when each call really began hides it, since only one call was waiting. */
static void
bench_at_a_rate_omits_nothing(void **state)
{
    struct world *world = *state;
    const char   *reads, *service;
    pthread_t     thread;

    start_redis(world);
    assert_int_equal(pthread_create(&thread, NULL, stall, world), 0);
    assert_int_equal(RUN("bench", "--json", "--keys", "100", "--rate", "500", "--duration", "600ms",
                         "--warm-up", "0", "--puts", "0", "-o", "l1.max_bytes=0", "-o", "l2.timeout=5s", "-o",
                         "coherence.mode=none", world->server->uri),
                     0);
    pthread_join(thread, NULL);
    assert_true(number_in(world->out, "requests") >= 299);
    reads   = strstr(world->out, "\"reads\"");
    service = strstr(world->out, "\"service\"");
    assert_true(number_in(reads, "p90") > 0.1);
    assert_true(number_in(service, "p90") < 0.1);
    assert_true(number_in(service, "max") > 0.2);
}

static void
bench_says_what_is_wrong(void **state)
{
    struct world *world = *state;

    assert_int_equal(RUN("bench", "--keys", "none", "memory:"), 2);
    assert_says(world->err, "--keys: \"none\": accepts");
    assert_int_equal(RUN("bench", "--duration", "5", "memory:"), 2);
    assert_int_equal(RUN("bench", "--zipf", "x", "memory:"), 2);
    assert_int_equal(RUN("bench", "--value-size", "9-1", "memory:"), 2);
    assert_int_equal(RUN("bench", "--against", "l1.policy=best", "memory:"), 2);
    assert_int_equal(RUN("bench", "--against", "/no/such/file", "memory:"), 3);
    assert_int_equal(RUN("bench", "memory:", "memory:"), 2);
    start_redis(world);
    test_server_kill(world->server);
    assert_int_equal(RUN("bench", "--keys", "10", world->server->uri), 3);
    assert_says(world->err, "cannot store the keys");
    assert_string_equal(world->out, "");
    assert_int_equal(RUN("bench", "--no-fill", "--duration", "50ms", "--warm-up", "0", world->server->uri),
                     3);
    assert_says(world->err, "not one request was answered");
    assert_string_equal(world->out, "");
}

static void
output_that_cannot_be_written_is_trouble(void **state)
{
    (void)state;
    assert_int_equal(WEXITSTATUS(system(TEST_TOOL " bench --keys 10 --duration 10ms --warm-up 0 memory: "
                                                  ">/dev/full 2>/dev/null")),
                     3);
    assert_int_equal(WEXITSTATUS(system(TEST_TOOL " completion bash >/dev/full 2>/dev/null")), 3);
    assert_int_equal(WEXITSTATUS(system(TEST_TOOL " config --list --json >/dev/full 2>/dev/null")), 3);
}

/* ---- warm */

#define SPEAK "while read k; do v=\"value of $k\"; echo ${#v}; echo \"$v\"; done"

/* A service's log, replayed into an empty tier by a command that knows the values. */
static void
warm_replays_a_request_log(void **state)
{
    struct world *world = *state;
    char          path[200], file[220];
    near_client  *client;
    near_cache   *cache;
    near_value   *value;

    start_redis(world);
    snprintf(path, sizeof(path), "%s/log", world->server->directory);
    snprintf(file, sizeof(file), "%s.users", path);
    client = CLIENT("log.requests", path, "log.requests_sample", "1", "log.requests_keys", "plain");
    assert_int_equal(near_cache_open(client, "users", NULL, &cache, NULL), NEAR_OK);
    for (int i = 0; i < 4; i++)
        assert_int_equal(near_get(cache, near_key(i % 2 == 0 ? "user 1" : "user:2"), &value), NEAR_MISS);
    near_cache_close(cache);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);

    assert_int_equal(RUN("warm", world->l2, "--json", "--loader", SPEAK, "users", file), 0);
    assert_string_equal(world->err, "");
    assert_true(number_in(world->out, "stored") == 2);
    assert_true(number_in(world->out, "repeated") == 2);
    assert_says(world->out, "\"complete\": true");
    assert_int_equal(RUN("get", world->l2, "users", "user 1"), 0);
    assert_string_equal(world->out, "value of user%201");
    assert_int_equal(RUN("warm", world->l2, "--json", "--loader", SPEAK, "users", file), 0);
    assert_true(number_in(world->out, "present") == 2);
    unlink(file);
}

/* From one tier into another, with what is left of the TTL, and never over what is there. */
static void
warm_copies_from_another_tier(void **state)
{
    struct world       *world = *state;
    struct test_server *other = test_memcached_start(0, NULL);
    char                to[300], text[64];

    start_redis(world);
    test_need_server(other);
    snprintf(to, sizeof(to), "--l2=%s", other->uri);
    assert_int_equal(RUN("set", world->l2, "-o", "ttl=100s", "users", "a", "old"), 0);
    assert_int_equal(RUN("set", world->l2, "users", "b", "old"), 0);
    assert_int_equal(RUN("set", to, "users", "b", "new"), 0);
    write_file(world, "a\nb\nc\n");
    assert_int_equal(RUN("warm", to, "--json", "--from", world->server->uri, "users", world->file), 0);
    assert_true(number_in(world->out, "stored") == 1);
    assert_true(number_in(world->out, "present") == 1);
    assert_true(number_in(world->out, "absent") == 1);
    assert_int_equal(RUN("get", to, "users", "a"), 0);
    assert_string_equal(world->out, "old");
    assert_int_equal(RUN("get", to, "users", "b"), 0);
    assert_string_equal(world->out, "new");
    assert_true(test_memcached_command(other, text, sizeof(text), "mg nc:users:a t"));
    assert_in_range(strtol(strstr(text, " t") + 2, NULL, 10), 60, 101);
    test_server_stop(&other);
}

static const char *
long_list(struct world *world, int n)
{
    char *text = calloc(1, (size_t)n * 16 + 1), *at = text;

    for (int i = 0; i < n; i++)
        at += sprintf(at, "user:%d\n", i);
    write_file(world, text);
    free(text);
    return world->file;
}

/* Interrupted it keeps where it was, and goes on from there: no key is left out, and no more than a batch is done again. */
static void
warm_goes_on_where_it_was_interrupted(void **state)
{
    struct world *world = *state;
    char          state_file[80], out[80], keys[32];
    struct stat   about;
    int           status;
    double        first, second;
    pid_t         child;

    start_redis(world);
    long_list(world, 1000);
    snprintf(state_file, sizeof(state_file), "%s.state", world->file);
    snprintf(out, sizeof(out), "%s.out", world->file);
    child = fork();
    if (child == 0) {
        int fd = open(out, O_CREAT | O_WRONLY | O_TRUNC, 0600);

        dup2(fd, 1);
        execl(TEST_TOOL, "nearcache", "warm", world->l2, "--json", "--rate", "500", "--state", state_file,
              "--loader", SPEAK, "users", world->file, (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 2000 && atoi(server_says(world, keys, sizeof(keys), "DBSIZE", NULL, NULL)) < 150; i++)
        pause_ms(10);
    kill(child, SIGINT);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), 4);
    assert_int_equal(stat(state_file, &about), 0);
    assert_int_equal(about.st_mode & 07777, 0600);
    {
        FILE *in = fopen(out, "r");
        char  text[512];

        assert_non_null(in);
        text[fread(text, 1, sizeof(text) - 1, in)] = '\0';
        fclose(in);
        assert_says(text, "\"complete\": false");
        first = number_in(text, "stored");
    }
    unlink(out);
    assert_true(first >= 100 && first < 1000);
    assert_int_equal(RUN("warm", world->l2, "--json", "--rate", "100k", "--state", state_file, "--loader",
                         SPEAK, "users", world->file),
                     0);
    second = number_in(world->out, "keys");
    assert_true(first + second >= 1000 && first + second <= 1100);
    assert_int_equal(stat(state_file, &about), -1);
    /* besides what a cache keeps for itself */
    assert_in_range(atoi(server_says(world, keys, sizeof(keys), "DBSIZE", NULL, NULL)), 1000, 1003);
}

static void
warm_keeps_its_rate(void **state)
{
    struct world *world = *state;

    start_redis(world);
    long_list(world, 300);
    assert_int_equal(RUN("warm", world->l2, "--json", "--rate", "1000", "users", world->file), 0);
    assert_true(number_in(world->out, "seconds") >= 0.3);
    assert_true(number_in(world->out, "absent") == 300);
    assert_int_equal(RUN("warm", world->l2, "--json", "--rate", "100k", "users", world->file),
                     0); /* control */
    assert_true(number_in(world->out, "seconds") < 0.3 * test_slack());
    assert_int_equal(RUN("warm", world->l2, "--json", "--limit", "10", "users", world->file), 0);
    assert_true(number_in(world->out, "keys") == 10);
    assert_int_equal(RUN_INPUT("x\ny\n", "warm", world->l2, "--json", "users", "-"), 0);
    assert_true(number_in(world->out, "keys") == 2);
}

static void
warm_says_what_is_wrong(void **state)
{
    struct world *world = *state;
    char          place[80];

    start_redis(world);
    assert_int_equal(RUN("warm", world->l2, "users", "/no/such/list"), 3);
    assert_says(world->err, "/no/such/list");
    assert_int_equal(RUN("warm", world->l2, "users"), 2);
    assert_int_equal(RUN("warm", "--l2", "memory:", "users", "/dev/null"), 2);
    write_file(world, "# nearcache requests v1 cache=users sample=1 keys=hash\n0123456789abcdef 7\n");
    snprintf(place, sizeof(place), "%s:1: a log of hashes", world->file);
    assert_int_equal(RUN("warm", world->l2, "users", world->file), 3);
    assert_says(world->err, place);
    unlink(world->file);
    write_file(world, "# nearcache requests v1 cache=users sample=1 keys=plain\ngood\nbad%4\n");
    snprintf(place, sizeof(place), "%s:3: malformed", world->file);
    assert_int_equal(RUN("warm", world->l2, "users", world->file), 3);
    assert_says(world->err, place);
    unlink(world->file);
    write_file(world, "# nearcache requests v9 cache=users\n");
    assert_int_equal(RUN("warm", world->l2, "users", world->file), 3);
    unlink(world->file);
    write_file(world, "\x1f\x8b\x08 packed");
    assert_int_equal(RUN("warm", world->l2, "users", world->file), 3);
    assert_says(world->err, "compressed");
    unlink(world->file);
    long_list(world, 10);
    assert_int_equal(RUN("warm", world->l2, "--state", "/no/such/place/state", "users", world->file), 3);
    assert_says(world->err, "/no/such/place/state");
    assert_int_equal(RUN("warm", world->l2, "--loader", "false", "users", world->file), 3);
    assert_int_equal(RUN("warm", world->l2, "--loader", "echo nonsense", "users", world->file), 3);
    assert_says(world->err, "no value");
    assert_int_equal(RUN("warm", world->l2, "--state", "/etc/hostname", "users", world->file), 3);
    test_server_kill(world->server);
    assert_int_equal(RUN("warm", world->l2, "--retry", "0", "users", world->file), 3);
    assert_says(world->err, "10 keys could not be warmed");
}

/* ---- top */

static void
top_shows_who_publishes(void **state)
{
    struct world *world = *state;
    char          pid[40], text[64];
    near_client  *client, *quiet;
    near_cache   *cache, *other;
    near_value   *value;
    near_stats    before = NEAR_STATS_INIT, after = NEAR_STATS_INIT;

    start_redis(world);
    assert_int_equal(RUN("top", "--once", "--wait", "200ms", world->server->uri), 1);
    assert_says(world->err, "stats.publish");
    client = CLIENT("stats.publish", "100ms");
    quiet  = CLIENT("stats.publish", "0");
    assert_int_equal(near_cache_open(client, "users", NULL, &cache, NULL), NEAR_OK);
    assert_int_equal(near_cache_open(quiet, "users", NULL, &other, NULL), NEAR_OK);
    near_stats_get(quiet, &before);
    for (int i = 0; i < 5000; i++)
        if (near_get(cache, near_key("secret-key"), &value) == NEAR_OK)
            near_value_release(value);
    assert_int_equal(RUN("top", "--once", "--json", "--wait", "500ms", world->server->uri), 0);
    snprintf(pid, sizeof(pid), "\"pid\": \"%d\"", (int)getpid());
    assert_says(world->out, pid);
    assert_true(number_in(world->out, "bus_connected") == 1);
    assert_true(number_in(strstr(world->out, "\"users\""), "requests") == 5000);
    assert_null(strstr(world->out, "secret-key"));
    assert_says(world->out, "\"hot\": []");
    assert_null(strstr(strstr(world->out, pid) + 1, "\"pid\"")); /* the quiet one is not heard */

    /* what is no such text is counted, and not shown */
    test_redis_command(world->server, text, sizeof(text), 3,
                       (const char *[]){ "PUBLISH", "nc:bus:stats", "nearcache-stats 2\nnew" });
    near_stats_get(quiet, &after);
    assert_int_equal(after.bus_flushes, before.bus_flushes);
    assert_int_equal(after.bus_bad_messages, 0);
    near_cache_close(cache);
    near_cache_close(other);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
    assert_int_equal(near_client_close(quiet, NULL), NEAR_OK);
}

static void
top_shows_keys_where_that_is_allowed(void **state)
{
    struct world *world = *state;
    near_client  *client;
    near_cache   *cache;
    near_value   *value;

    start_redis(world);
    client = CLIENT("stats.publish", "100ms", "stats.publish_keys", "plain");
    assert_int_equal(near_cache_open(client, "users", NULL, &cache, NULL), NEAR_OK);
    for (int i = 0; i < 5000; i++)
        if (near_get(cache, near_key("not secret"), &value) == NEAR_OK)
            near_value_release(value);
    assert_int_equal(RUN("top", "--once", "--wait", "400ms", world->server->uri), 0);
    assert_says(world->out, "not%20secret");
    assert_says(world->out, "users");
    near_cache_close(cache);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
}

struct forger {
    struct test_server *server;
    const char *const  *texts; /* up to NULL */
    atomic_bool         enough;
};

static void *
forge(void *ctx)
{
    struct forger *forger = ctx;
    char           reply[64];

    for (; !atomic_load(&forger->enough); pause_ms(30))
        for (const char *const *text = forger->texts; *text != NULL; text++)
            test_redis_command(forger->server, reply, sizeof(reply), 3,
                               (const char *[]){ "PUBLISH", "nc:bus:stats", *text });
    return NULL;
}

static int
top_over_forged(struct world *world, const char *const *texts)
{
    struct forger forger = { world->server, texts, false };
    pthread_t     thread;
    int           status;

    assert_int_equal(pthread_create(&thread, NULL, forge, &forger), 0);
    status = RUN("top", "--once", "--wait", "300ms", world->server->uri);
    atomic_store(&forger.enough, true);
    pthread_join(thread, NULL);
    return status;
}

/* What comes over the wire is not believed: control characters, long words, numbers that are none. */
static void
top_survives_strange_texts(void **state)
{
    static const char *const strange[] = {
        "nearcache-stats 1\ninstance 1 h\x1b[31mevil 1 prog 0.1\ntime 1 5 100\ncache c\x07 requests=7 "
        "nonsense=8 =\n"
        "hot c 5\nquantiles load x y\nmore\nwhat is this\n",
        NULL,
    };
    static const char *const useless[] = {
        "nearcache-stats 1\ninstance 1\n",
        "nearcache-stats 1\n",
        "",
        NULL,
    };
    struct world *world = *state;

    start_redis(world);
    assert_int_equal(top_over_forged(world, strange), 0);
    assert_null(strchr(world->out, '\x1b'));
    assert_says(world->out, "h?[31mevil");
    assert_int_equal(top_over_forged(world, useless), 1);
    assert_null(strchr(world->out, '\x1b'));
}

static void
top_says_what_is_wrong(void **state)
{
    struct world *world = *state;

    assert_int_equal(RUN("top", "memcached://127.0.0.1"), 2);
    assert_says(world->err, "over a Redis");
    assert_int_equal(RUN("top", "--every", "often"), 2);
    start_redis(world);
    test_server_kill(world->server);
    assert_int_equal(RUN("top", "--once", world->server->uri), 3);
    assert_says(world->err, world->server->socket);
}

/* ---- doctor */

static void
add_user(struct world *world, const char *const *words)
{
    char   out[256];
    size_t n = 0;

    while (words[n] != NULL)
        n++;
    if (!test_redis_command(world->server, out, sizeof(out), (int)n, words))
        fail_msg("%s", out);
}

#define LEAST                                                                                                \
    "+get", "+mget", "+set", "+getrange", "+unlink", "+publish", "+multi", "+exec", "+discard", "+eval",     \
        "+evalsha", "+ping", "+client|setname", "+subscribe"

/* What is missing is named with what it is needed for, and the advice is enough: taken, nothing is missing any more. */
static void
doctor_finds_the_rights_that_are_missing(void **state)
{
    struct world *world = *state;
    char          uri[320], out[4096], *advice, *words[32];
    int           n = 0;

    start_redis(world);
    snprintf(uri, sizeof(uri), "redis+unix://least:x@%s", world->server->socket);
    add_user(world, (const char *[]){ "ACL", "SETUSER", "least", "reset", "on", "nopass", "~nc:*", "&nc:bus",
                                      "-@all", LEAST, NULL });
    assert_int_equal(RUN("doctor", uri), 1);
    assert_says(world->out, "! ROLE: no right to the command; needed for noticing a failover (G6)");
    assert_says(world->out, "CLIENT TRACKING");
    assert_says(world->out, "coherence   subscribed");
    assert_null(strstr(world->out, " GET"));
    advice = strstr(world->out, "-> ACL SETUSER ");
    assert_non_null(advice);
    strtok(advice + 3, "\n");
    for (char *word = strtok(advice + 3, " "); word != NULL && n < 30; word = strtok(NULL, " "))
        words[n++] = word;
    words[n] = NULL;
    if (!test_redis_command(world->server, out, sizeof(out), n, (const char *const *)words))
        fail_msg("%s", out);
    assert_int_equal(RUN("doctor", uri), 0);
    assert_says(world->out, "user least has all that nearcache uses");
    assert_int_equal(RUN("doctor", "--json", uri), 0);
    assert_says(world->out, "\"subject\": \"rights\", \"level\": \"ok\"");

    add_user(world, (const char *[]){ "ACL", "SETUSER", "least", "resetkeys", "~other:*", NULL });
    assert_int_equal(RUN("doctor", uri), 3);
    assert_says(world->err, "SET: no right to the key; needed for writing");
    assert_says(world->out, "~nc:*");
    add_user(world, (const char *[]){ "ACL", "SETUSER", "least", "~nc:*", "resetchannels", NULL });
    assert_int_equal(RUN("doctor", uri), 3);
    assert_says(world->err, "PUBLISH nc:bus: no right to the channel");
    add_user(world, (const char *[]){ "ACL", "SETUSER", "least", "&nc:*", "-multi", NULL });
    assert_int_equal(RUN("doctor", uri), 3);
    assert_says(world->err, "MULTI: no right to the command");
    /* all of that was asked, and nothing of it done */
    assert_string_equal(server_says(world, out, sizeof(out), "DBSIZE", NULL, NULL), "0");
    assert_int_equal(calls_of(world, "set"), 0);
    assert_int_equal(calls_of(world, "publish"), 0);
    assert_true(calls_of(world, "multi") > 0);
}

static void
doctor_judges_the_memory_policy(void **state)
{
    struct world *world = *state;
    char          out[64];

    start_redis(world);
    test_redis_command(world->server, out, sizeof(out), 4,
                       (const char *[]){ "CONFIG", "SET", "maxmemory", "100mb" });
    assert_int_equal(RUN("doctor", world->server->uri), 1);
    assert_says(world->out, "! ");
    assert_says(world->out, "noeviction: when that is full every write is refused");
    test_redis_command(world->server, out, sizeof(out), 4,
                       (const char *[]){ "CONFIG", "SET", "maxmemory-policy", "allkeys-lfu" });
    assert_int_equal(RUN("doctor", world->server->uri), 0);
    assert_says(world->out, "allkeys-lfu");
    assert_says(world->out, "tracking    coherence.mode = tracking or both can be used");
}

static void
doctor_looks_into_memcached(void **state)
{
    struct world *world = *state;

    world->server = test_memcached_start(0, (const char *[]){ "-M", NULL });
    test_need_server(world->server);
    assert_int_equal(RUN("doctor", world->server->uri), 1);
    assert_says(world->out, "does not evict");
    assert_says(world->out, "item size");
    test_server_stop(&world->server);
    world->server = test_memcached_start(0, NULL);
    test_need_server(world->server);
    assert_int_equal(RUN("doctor", "--json", world->server->uri), 0);
    assert_says(world->out, "\"worst\": \"note\"");
}

/* ---- explain, tag, invalidate */

static void
one_key_is_explained_and_invalidated(void **state)
{
    struct world    *world   = *state;
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    const char      *tags[]  = { "blue" };
    near_client     *client;
    near_cache      *cache;

    start_redis(world);
    options.tags      = tags;
    options.tag_count = 1;
    client            = CLIENT("grace", "1m");
    assert_int_equal(near_cache_open(client, "users", NULL, &cache, NULL), NEAR_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(near_put(cache,
                                  near_key(i == 0   ? "a"
                                           : i == 1 ? "ab"
                                                    : "b"),
                                  near_key("value"), &options),
                         NEAR_OK);
    assert_int_equal(RUN("explain", world->l2, "users", "a"), 0);
    assert_says(world->out, "l2 answer            present");
    assert_says(world->out, "[\"blue\"]");
    assert_int_equal(RUN("explain", world->l2, "--json", "users", "nobody"), 0);
    assert_says(world->out, "\"answer\":\"absent\"");
    assert_int_equal(RUN("get", world->l2, "--json", "users", "a"), 0);
    assert_says(world->out, "\"value\": \"value\"");
    assert_true(number_in(world->out, "ttl_ms") > 100000);

    assert_int_equal(RUN("invalidate", world->l2, "-o", "grace=1m", "users", "a"), 0);
    assert_int_equal(RUN("get", world->l2, "users", "a"), 1);
    assert_int_equal(RUN("explain", world->l2, "-o", "grace=1m", "users", "a"), 0);
    assert_says(world->out, "stale"); /* it stays as a fallback */
    assert_int_equal(RUN("invalidate", world->l2, "--prefix", "a", "users"), 0);
    assert_int_equal(RUN("get", world->l2, "users", "ab"), 1);
    assert_int_equal(RUN("get", world->l2, "users", "b"), 0);
    assert_int_equal(RUN("tag", world->l2, "--json", "users", "red"), 0);
    assert_says(world->out, "\"code\": 0");
    assert_int_equal(RUN("get", world->l2, "users", "b"), 0);
    assert_int_equal(RUN("tag", world->l2, "users", "blue"), 0);
    assert_int_equal(RUN("get", world->l2, "users", "b"), 1);
    assert_int_equal(RUN("set", world->l2, "users", "c", "v"), 0);
    assert_int_equal(RUN("invalidate", world->l2, "--all", "users"), 0);
    assert_int_equal(RUN("get", world->l2, "users", "c"), 1);
    assert_int_equal(RUN("invalidate", world->l2, "users"), 2);
    assert_int_equal(RUN("invalidate", world->l2, "--all", "users", "c"), 2);
    near_cache_close(cache);
    near_client_close(client, NULL);
    test_server_kill(world->server);
    assert_int_equal(RUN("explain", world->l2, "users", "a"), 3);
    assert_int_equal(RUN("tag", world->l2, "users", "blue"), 3);
    assert_int_equal(RUN("invalidate", world->l2, "users", "a"), 3);
}

/* ---- completion and manual */

/* What bash offers at the end of `words`, in which the last one is being typed. */
static const char *
complete(struct world *world, const char *words)
{
    static const char script[] =
        "source <(\"$0\" completion bash); eval \"COMP_WORDS=(nearcache $1)\"; "
        "[ \"${1% }\" = \"$1\" ] || COMP_WORDS+=(''); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
        "_nearcache; printf '%s\\n' \"${COMPREPLY[@]}\"";
    int   out[2], status;
    pid_t child;

    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    child = fork();
    if (child == 0) {
        dup2(out[1], 1);
        execlp("bash", "bash", "--norc", "-c", script, TEST_TOOL, words, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    world->out_size = 0;
    for (ssize_t n;
         (n = read(out[0], world->out + world->out_size, sizeof(world->out) - 1 - world->out_size)) > 0;)
        world->out_size += (size_t)n;
    world->out[world->out_size] = '\0';
    close(out[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WEXITSTATUS(status) == 127)
        skip(); /* no bash */
    return world->out;
}

static void
bash_completes(void **state)
{
    static const char *const commands[] = { "get",     "set",    "remove", "invalidate", "tag",
                                            "explain", "config", "doctor", "metrics",    "simulate",
                                            "journal", "bench",  "warm",   "top",        "completion" };
    struct world            *world      = *state;
    char                     name[64], list[4096];

    complete(world, " ");
    for (size_t i = 0; i < NEAR_COUNT_OF(commands); i++) {
        snprintf(name, sizeof(name), "%s\n", commands[i]);
        assert_says(world->out, name);
    }
    assert_string_equal(complete(world, "exp"), "explain\n");
    assert_string_equal(complete(world, "top --o"), "--once\n");
    assert_string_equal(complete(world, "get -o stats.publish_"), "stats.publish_keys=\n");
    assert_string_equal(complete(world, "simulate --format mon"), "monitor\n");
    assert_string_equal(complete(world, "journal ver"), "verify\n");
    assert_string_equal(complete(world, "doctor memc"), "memcached://\nmemcached+unix:///\n");
    write_file(world, "");
    snprintf(name, sizeof(name), "warm users %.18s", world->file);
    snprintf(list, sizeof(list), "%s\n", world->file);
    assert_says(complete(world, name), list);

    /* each option that is offered is one that the command knows */
    for (size_t i = 0; i < NEAR_COUNT_OF(commands); i++) {
        char *rest = NULL;

        snprintf(name, sizeof(name), "%s -", commands[i]);
        snprintf(list, sizeof(list), "%s", complete(world, name));
        assert_says(list, "--help");
        for (char *option = strtok_r(list, "\n", &rest); option != NULL;
             option       = strtok_r(NULL, "\n", &rest)) {
            if (strcmp(option, "--help") == 0)
                continue;
            RUN(commands[i], option);
            assert_null(strstr(world->err, "unrecognized option"));
            assert_null(strstr(world->err, "invalid option"));
        }
    }
    RUN("top", "--nonsense"); /* the control */
    assert_says(world->err, "unrecognized option");
}

static void
manual_and_help_tell_of_everything(void **state)
{
    static const char *const parts[] = { ".SS nearcache bench ", ".SS nearcache warm ",
                                         ".SS nearcache top ",   ".SS nearcache explain ",
                                         "\\-\\-against",        "\\-\\-retry",
                                         ".SH EXIT STATUS",      "interrupted" };
    struct world            *world   = *state;

    assert_int_equal(RUN("--man"), 0);
    for (size_t i = 0; i < NEAR_COUNT_OF(parts); i++)
        assert_says(world->out, parts[i]);
    assert_int_equal(RUN("--help"), 0);
    for (int i = 0; i <= 4; i++) {
        char line[16];

        snprintf(line, sizeof(line), "\n  %d  ", i);
        assert_says(world->out, line);
    }
    assert_int_equal(RUN("bench", "--help"), 0);
    assert_says(world->out, "--against WHAT");
    assert_null(strstr(world->out, "--man"));
    if (system("command -v mandoc >/dev/null") == 0)
        assert_int_equal(system(TEST_TOOL " --man | mandoc -T lint -W error >/dev/null"), 0);
    assert_int_equal(RUN("completion", "fish"), 2);
    assert_int_equal(RUN("completion", "zsh"), 0);
    assert_says(world->out, "#compdef nearcache");
    if (system("command -v zsh >/dev/null") == 0)
        assert_int_equal(system(TEST_TOOL " completion zsh | zsh -n"), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bench_counts_and_tells),
        TEST(bench_compares_two_configurations),
        TEST(bench_takes_keys_of_a_trace),
        TEST(bench_at_a_rate_omits_nothing),
        TEST(bench_says_what_is_wrong),
        TEST(output_that_cannot_be_written_is_trouble),
        TEST(warm_replays_a_request_log),
        TEST(warm_copies_from_another_tier),
        TEST(warm_goes_on_where_it_was_interrupted),
        TEST(warm_keeps_its_rate),
        TEST(warm_says_what_is_wrong),
        TEST(top_shows_who_publishes),
        TEST(top_shows_keys_where_that_is_allowed),
        TEST(top_survives_strange_texts),
        TEST(top_says_what_is_wrong),
        TEST(doctor_finds_the_rights_that_are_missing),
        TEST(doctor_judges_the_memory_policy),
        TEST(doctor_looks_into_memcached),
        TEST(one_key_is_explained_and_invalidated),
        TEST(bash_completes),
        TEST(manual_and_help_tell_of_everything),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
