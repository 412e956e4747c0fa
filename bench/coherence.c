/*
 * What coherence costs, and how quick it is, in one run.
 *
 *     bench/coherence [OPTION...]         see usage() below
 *
 *     apply     messages that one instance takes per second, from a server that sends as fast as its socket lets: a thread of ours
 *               that speaks just enough of Redis, so that neither Redis nor a publisher is what is measured
 *     delay     from before PUBLISH until the listener has dropped the key, over a real Redis: alone, and beside threads that keep
 *               the server busy with GETs
 *     writers   near_put_many and near_put in each coherence.mode, beside none
 *     hit       an L1 hit of a cache with a healthy bus, beside one without a bus
 *     window    whether L1 of the default window stays in use while 10,000 writes a second go through
 *
 * Runs, percentiles and CPU time of the writers are bench/l2_run.c's.  Servers end with the process, however it ends.
 */
#include "bench/l2.h"
#include "bench/median.h"

#include "base/le.h"
#include "client/client.h"
#include "coherence/coherence.h"

#include <getopt.h>
#include <hiredis/hiredis.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct {
    const char *only;
    unsigned    rounds;
    double      seconds;
    bool        goals;
} bench = { .rounds = 5, .seconds = 1.0 };

static unsigned missed;

static double
share_of(double *values, size_t n, double share)
{
    if (n == 0)
        return NAN;
    qsort(values, n, sizeof(*values), by_value);
    return values[(size_t)(share * (double)(n - 1))];
}

/* One figure, beside its goal when goals are asked for.  `least`: it is to be at least that. */
static void
say(const char *what, double value, const char *unit, double goal, bool least)
{
    bool met = least ? value >= goal : value <= goal;

    printf("  %-58s %12.2f %-8s", what, value, unit);
    if (bench.goals && goal > 0) {
        printf(" goal %s %.10g: %s", least ? ">=" : "<=", goal, met ? "met" : "MISSED");
        missed += !met;
    }
    printf("\n");
    fflush(stdout);
}

static int64_t
now_ns(void)
{
    return near__now(&near__clock_system);
}

static void
open_with(near_client **client, near_cache **cache, const char *const *settings)
{
    near_config *config = near_config_new();
    near_error   error;

    for (; settings[0] != NULL; settings += 2)
        if (near_config_set(config, settings[0], settings[1], &error) != NEAR_OK)
            l2_fail("nearcache", error.text);
    if (near_client_open(config, client, &error) != NEAR_OK ||
        near_cache_open(*client, "b", NULL, cache, &error) != NEAR_OK)
        l2_fail("nearcache", error.text);
    near_config_free(config);
}

/* -------------------------------------------------------------------------------------------------- apply */

/* A server for one subscriber: answers what it is asked, and once it has been subscribed to sends messages without a pause. */
struct flood {
    char        path[108];
    int         listener;
    pthread_t   thread;
    atomic_bool stop, on;
    uint8_t    *bytes; /* some messages, as they go over the wire */
    size_t      size, each;
    unsigned    count; /* of them */
    size_t      sequence_at;
    uint64_t    sequence;
    int         subscriber; /* -1: none */
    size_t      sent;       /* of `bytes`, this time round */
};

enum { FLOOD_KEYS = 100000, FLOOD_BYTES = 256 * 1024, CONNECTIONS = 8 };

static void
make_messages(struct flood *flood, unsigned keys)
{
    near_bytes key[100];
    char       text[100][20], head[64];
    uint8_t   *message;
    size_t     size, n = 0;
    unsigned   number = 0;

    flood->count = 0;
    flood->bytes = malloc(FLOOD_BYTES + 64 * 1024);
    for (flood->size = 0; flood->size < FLOOD_BYTES; flood->size += flood->each, flood->count++) {
        for (unsigned i = 0; i < keys; i++) {
            snprintf(text[i], sizeof(text[i]), "key:%012u", number++ * 7919 % FLOOD_KEYS);
            key[i] = (near_bytes){ text[i], 16 };
        }
        if (near__message_encode(NEAR__MESSAGE_INVALIDATE, 77, near_key("b"), key, keys, &message, &size) !=
            NEAR_OK)
            l2_fail("apply", "out of memory");
        near__le64_put(message + NEAR__MESSAGE_STAMP_AT, 78);
        n = (size_t)snprintf(head, sizeof(head), "*3\r\n$7\r\nmessage\r\n$6\r\nnc:bus\r\n$%zu\r\n", size);
        flood->each = n + size + 2;
        memcpy(flood->bytes + flood->size, head, n);
        memcpy(flood->bytes + flood->size + n, message, size);
        memcpy(flood->bytes + flood->size + n + size, "\r\n", 2);
        free(message);
    }
    flood->sequence_at = n + NEAR__MESSAGE_STAMP_AT + 8;
}

static void
number_messages(struct flood *flood)
{
    for (unsigned i = 0; i < flood->count; i++)
        near__le64_put(flood->bytes + i * flood->each + flood->sequence_at, ++flood->sequence);
}

static void
send_all(int fd, const void *bytes, size_t size)
{
    for (const char *at = bytes; size > 0;) {
        ssize_t n = send(fd, at, size, MSG_NOSIGNAL);

        if (n <= 0)
            return;
        at += n;
        size -= (size_t)n;
    }
}

/* Whole commands, as our own client sends them: small, and in one piece. */
static void
answer(struct flood *flood, int fd, const char *text)
{
    const char *at = text;
    char        out[256], argument[64];

    while ((at = strchr(at, '*')) != NULL) {
        if (strncmp(at, "*2\r\n$4\r\nPING", 12) == 0 && fd == flood->subscriber) {
            /* after what has been begun: answers come in order, between two messages */
            size_t rest = (flood->each - flood->sent % flood->each) % flood->each;

            send_all(fd, flood->bytes + flood->sent, rest);
            flood->sent = (flood->sent + rest) % flood->size;
            if (flood->sent == 0 && rest > 0)
                number_messages(flood);
            sscanf(at + 14, "$%*d\r\n%60[^\r]", argument);
            snprintf(out, sizeof(out), "*2\r\n$4\r\npong\r\n$%zu\r\n%s\r\n", strlen(argument), argument);
        } else if (strstr(at, "SUBSCRIBE") != NULL && strstr(at, "SUBSCRIBE") < at + 12) {
            flood->subscriber = fd;
            strcpy(out, "*3\r\n$9\r\nsubscribe\r\n$6\r\nnc:bus\r\n:1\r\n");
        } else if (strncmp(at, "*1\r\n$4\r\nROLE", 12) == 0) {
            strcpy(out, "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n");
        } else if (strncmp(at, "*2\r\n$4\r\nINFO", 12) == 0) {
            strcpy(out, "$12\r\nrun_id:abcde\r\n");
        } else {
            strcpy(out, "+OK\r\n");
        }
        send_all(fd, out, strlen(out));
        at++;
    }
}

static void
flood_on(struct flood *flood)
{
    ssize_t n = send(flood->subscriber, flood->bytes + flood->sent, flood->size - flood->sent,
                     MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n <= 0)
        return;
    flood->sent += (size_t)n;
    if (flood->sent < flood->size)
        return;
    flood->sent = 0;
    number_messages(flood);
}

static void *
serve_flood(void *ctx)
{
    struct flood *flood = ctx;
    struct pollfd at[1 + CONNECTIONS];
    nfds_t        n = 1;

    at[0] = (struct pollfd){ .fd = flood->listener, .events = POLLIN };
    while (!flood->stop) {
        for (nfds_t i = 1; i < n; i++)
            at[i].events = (short)(POLLIN | (at[i].fd == flood->subscriber && flood->on ? POLLOUT : 0));
        if (poll(at, n, 20) <= 0)
            continue;
        if ((at[0].revents & POLLIN) && n <= CONNECTIONS)
            at[n++] = (struct pollfd){ .fd = accept(flood->listener, NULL, NULL) };
        for (nfds_t i = 1; i < n; i++) {
            char    text[4096];
            ssize_t size;

            if (at[i].revents & (POLLIN | POLLHUP)) {
                size = recv(at[i].fd, text, sizeof(text) - 1, MSG_DONTWAIT);
                if (size <= 0) {
                    close(at[i].fd);
                    at[i].fd = -1;
                    continue;
                }
                text[size] = '\0';
                answer(flood, at[i].fd, text);
            }
            if (at[i].revents & POLLOUT)
                flood_on(flood);
        }
    }
    for (nfds_t i = 1; i < n; i++)
        if (at[i].fd >= 0)
            close(at[i].fd);
    return NULL;
}

/* Messages and keys per second, with the keys in L1 that they name, or as many of them as have not been named yet. */
static void
apply_once(const char *directory, unsigned keys, double *messages)
{
    struct flood       flood   = { .subscriber = -1 };
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    near_client       *client;
    near_cache        *cache;
    near_stats         before = NEAR_STATS_INIT, after = NEAR_STATS_INIT;
    char               uri[160], key[20];
    double             from;

    make_messages(&flood, keys);
    number_messages(&flood);
    snprintf(flood.path, sizeof(flood.path), "%s/flood", directory);
    snprintf(uri, sizeof(uri), "redis+unix://%s", flood.path);
    strcpy(address.sun_path, flood.path);
    unlink(flood.path);
    flood.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(flood.listener, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        listen(flood.listener, 8) != 0)
        l2_fail("apply", "no socket");
    pthread_create(&flood.thread, NULL, serve_flood, &flood);
    open_with(
        &client, &cache,
        (const char *[]){ "l2.uri", "none:", "coherence.uri", uri, "coherence.serve_window", "5s", NULL });
    for (unsigned i = 0; i < FLOOD_KEYS; i++) {
        snprintf(key, sizeof(key), "key:%012u", i);
        near_put(cache, near_key(key), near_key("value"), NULL);
        i += 9; /* each put asks the bus: a tenth will do */
    }
    flood.on = true;
    usleep(100000);
    near_stats_get(client, &before);
    from = l2_now();
    usleep((useconds_t)(bench.seconds * 1e6));
    near_stats_get(client, &after);
    *messages = (double)(after.bus_received - before.bus_received) / (l2_now() - from);
    if (after.bus_gaps + after.bus_bad_messages > 0)
        l2_fail("apply", "messages got lost");
    flood.on   = false;
    flood.stop = true;
    pthread_join(flood.thread, NULL);
    near_client_close(client, NULL);
    close(flood.listener);
    unlink(flood.path);
    free(flood.bytes);
}

static void
bench_apply(struct test_server *server)
{
    double one[99], many[99];

    for (unsigned i = 0; i < bench.rounds; i++) {
        apply_once(server->directory, 1, &one[i]);
        apply_once(server->directory, 100, &many[i]);
    }
    printf("\nmessages applied by one instance\n");
    say("messages of one key", share_of(one, bench.rounds, 0.5), "/s", 500e3, true);
    say("keys in messages of 100", 100 * share_of(many, bench.rounds, 0.5), "keys/s", 5e6, true);
}

/* -------------------------------------------------------------------------------------------------- delay */

enum { DELAYS = 100000 };

struct delays {
    double          *at; /* us */
    _Atomic unsigned n;
};

static void
hear_invalidation(void *ctx, near_bytes cache, near_bytes key)
{
    struct delays *delays = ctx;

    (void)cache;
    if (key.size == 8 && delays->n < DELAYS)
        delays->at[delays->n++] = (double)(now_ns() - (int64_t)near__le64_get(key.data)) / 1000;
}

static void
hear_nothing(void *ctx)
{
    (void)ctx;
}

static struct near__coherence *
open_coherence(const struct near__uri *uri, struct delays *delays)
{
    static const struct near__log log;
    struct near__coherence_config config = {
        .uri             = uri,
        .clock           = &near__clock_system,
        .log             = &log,
        .channel         = "nc:bus",
        .client_name     = "bench",
        .heartbeat       = 100 * NEAR_MS,
        .serve_window    = 500 * NEAR_MS,
        .connect_timeout = 2000 * NEAR_MS,
        .sink            = { .ctx = delays, .invalidate = hear_invalidation, .flush = hear_nothing },
    };
    struct near__coherence *coherence = NULL;
    near_error              error;

    if (near__coherence_open(&coherence, &config, &error) != NEAR_OK ||
        !near__coherence_await(coherence, near__time_after(now_ns(), 2000 * NEAR_MS)))
        l2_fail("delay", "no bus");
    return coherence;
}

static void
pause_until(int64_t next)
{
    while (now_ns() < next) {
        struct timespec pause = { 0, next - now_ns() > 0 ? next - now_ns() : 0 };

        nanosleep(&pause, NULL);
    }
}

static void
publish_at_rate(struct near__coherence *coherence, double seconds, unsigned rate)
{
    int64_t begun = now_ns(), next = begun;

    while (next - begun < (int64_t)(seconds * 1e9)) {
        uint8_t    number[8], *message;
        near_bytes key = { number, sizeof(number) };
        size_t     size;

        pause_until(next);
        next += 1000000000 / rate;
        near__le64_put(number, (uint64_t)now_ns());
        if (near__message_encode(NEAR__MESSAGE_INVALIDATE, near__coherence_sender(coherence), near_key("b"),
                                 &key, 1, &message, &size) != NEAR_OK)
            l2_fail("delay", "out of memory");
        near__coherence_publish(coherence, message, size, near__time_after(now_ns(), 1000 * NEAR_MS), NULL);
        free(message);
    }
}

struct busy {
    pthread_t    thread;
    near_cache  *cache;
    atomic_bool *stop;
};

static void *
read_on(void *ctx)
{
    struct busy *busy = ctx;
    char         key[20];
    uint64_t     i = (uint64_t)(uintptr_t)ctx;

    while (!*busy->stop) {
        near_value *value = NULL;

        snprintf(key, sizeof(key), "key:%012u", (unsigned)(i++ * 2654435761u % 1000));
        if (near_get(busy->cache, near_key(key), &value) == NEAR_OK)
            near_value_release(value);
    }
    return NULL;
}

static void
delay_once(const char *text, unsigned threads, double *p50, double *p99)
{
    struct delays           delays = { .at = calloc(DELAYS, sizeof(double)) };
    struct near__coherence *hearer, *teller;
    struct near__uri        uri;
    struct busy             busy[64];
    atomic_bool             stop   = false;
    near_client            *client = NULL;
    near_cache             *cache  = NULL;

    near__uri_parse(&uri, "uri", text, NULL);
    if (threads > 0)
        open_with(&client, &cache,
                  (const char *[]){ "l2.uri", text, "l1.max_bytes", "0", "coherence.mode", "none", NULL });
    hearer = open_coherence(&uri, &delays);
    teller = open_coherence(&uri, &delays); /* its own echoes are not told */
    for (unsigned i = 0; i < threads; i++) {
        busy[i] = (struct busy){ .cache = cache, .stop = &stop };
        pthread_create(&busy[i].thread, NULL, read_on, &busy[i]);
    }
    publish_at_rate(teller, 0.2, 1000);
    delays.n = 0;
    publish_at_rate(teller, bench.seconds, 1000);
    usleep(50000);
    stop = true;
    for (unsigned i = 0; i < threads; i++)
        pthread_join(busy[i].thread, NULL);
    *p50 = share_of(delays.at, delays.n, 0.5);
    *p99 = share_of(delays.at, delays.n, 0.99);
    near__coherence_stop(teller);
    near__coherence_free(&teller);
    near__coherence_stop(hearer);
    near__coherence_free(&hearer);
    if (client != NULL)
        near_client_close(client, NULL);
    free(delays.at);
}

/* What the server, the sockets and the sleeping threads cost without us: hiredis's own calls, the time in the message.  There are two
 * who listen here as well, as who publishes also listens, and the server writes to the newest one first. */
struct bare {
    redisContext  *link;
    struct delays *delays; /* NULL: only listens */
    pthread_t      thread;
};

static void *
hear_barely(void *ctx)
{
    struct bare *bare = ctx;
    redisReply  *reply;
    bool         last = false;

    while (!last && redisGetReply(bare->link, (void **)&reply) == REDIS_OK) {
        int64_t now = now_ns();

        last = reply->elements != 3 || reply->element[2]->len != 8;
        if (!last && bare->delays != NULL && bare->delays->n < DELAYS)
            bare->delays->at[bare->delays->n++] =
                (double)(now - (int64_t)near__le64_get((const uint8_t *)reply->element[2]->str)) / 1000;
        freeReplyObject(reply);
    }
    return NULL;
}

static redisContext *
dial_barely(const struct near__uri *uri)
{
    const struct near__address *at = &uri->addresses[0];
    redisContext *c = at->port != 0 ? redisConnect(at->host, at->port) : redisConnectUnix(at->host);

    if (c == NULL || c->err != 0)
        l2_fail("delay", "hiredis does not connect");
    return c;
}

static void
listen_barely(struct bare *bare, const struct near__uri *uri, struct delays *delays)
{
    bare->delays = delays;
    bare->link   = dial_barely(uri);
    freeReplyObject(redisCommand(bare->link, "SUBSCRIBE bare"));
    pthread_create(&bare->thread, NULL, hear_barely, bare);
}

static void
publish_barely(redisContext *teller, double seconds, unsigned rate)
{
    int64_t begun = now_ns(), next = begun;

    while (next - begun < (int64_t)(seconds * 1e9)) {
        uint8_t number[8];

        pause_until(next);
        next += 1000000000 / rate;
        near__le64_put(number, (uint64_t)now_ns());
        freeReplyObject(redisCommand(teller, "PUBLISH bare %b", number, sizeof(number)));
    }
}

static void
delay_barely(const char *text, double *p50, double *p99)
{
    struct delays    delays = { .at = calloc(DELAYS, sizeof(double)) };
    struct bare      hearer, echo;
    struct near__uri uri;
    redisContext    *teller;

    near__uri_parse(&uri, "uri", text, NULL);
    listen_barely(&hearer, &uri, &delays);
    listen_barely(&echo, &uri, NULL);
    teller = dial_barely(&uri);
    publish_barely(teller, 0.2, 1000);
    delays.n = 0;
    publish_barely(teller, bench.seconds, 1000);
    freeReplyObject(redisCommand(teller, "PUBLISH bare end"));
    pthread_join(hearer.thread, NULL);
    pthread_join(echo.thread, NULL);
    *p50 = share_of(delays.at, delays.n, 0.5);
    *p99 = share_of(delays.at, delays.n, 0.99);
    redisFree(teller);
    redisFree(hearer.link);
    redisFree(echo.link);
    free(delays.at);
}

static void
bench_delay(struct test_server *server)
{
    double p50[99], p99[99], busy50[99], busy99[99], bare50[99], bare99[99], ratio50[99], ratio99[99];

    for (unsigned i = 0; i < bench.rounds; i++) {
        delay_barely(server->uri, &bare50[i], &bare99[i]);
        delay_once(server->uri, 0, &p50[i], &p99[i]);
        ratio50[i] = p50[i] / bare50[i];
        ratio99[i] = p99[i] / bare99[i];
        delay_once(server->uri, 16, &busy50[i], &busy99[i]);
    }
    printf("\nfrom before PUBLISH until the key is dropped, 1000 messages a second\n");
    say("alone: p50", share_of(p50, bench.rounds, 0.5), "us", 60, false);
    say("alone: p99", share_of(p99, bench.rounds, 0.5), "us", 200, false);
    say("hiredis alone, PUBLISH to a blocked redisGetReply: p50", share_of(bare50, bench.rounds, 0.5), "us",
        0, false);
    say("hiredis alone: p99", share_of(bare99, bench.rounds, 0.5), "us", 0, false);
    say("ours / hiredis: p50", share_of(ratio50, bench.rounds, 0.5), "x", 0, false);
    say("ours / hiredis: p99", share_of(ratio99, bench.rounds, 0.5), "x", 0, false);
    say("beside 16 threads of GETs: p50", share_of(busy50, bench.rounds, 0.5), "us", 0, false);
    say("beside 16 threads of GETs: p99", share_of(busy99, bench.rounds, 0.5), "us", 250, false);
}

/* ------------------------------------------------------------------------------------------------ writers */

struct writer {
    near_client *client;
    near_cache  *cache;
};

static void *
open_writer(const struct l2_target *target, const char *mode)
{
    struct writer *writer = calloc(1, sizeof(*writer));

    open_with(&writer->client, &writer->cache,
              (const char *[]){ "l2.uri", target->uri, "coherence.mode", mode, "ttl", "0", "l2.timeout", "5s",
                                "l1.max_bytes", "0", NULL });
    return writer;
}

static void *
open_none(const struct l2_target *target, unsigned threads)
{
    (void)threads;
    return open_writer(target, "none");
}

static void *
open_pubsub(const struct l2_target *target, unsigned threads)
{
    (void)threads;
    return open_writer(target, "pubsub");
}

static void *
open_tracking(const struct l2_target *target, unsigned threads)
{
    (void)threads;
    return open_writer(target, "tracking");
}

static void
close_writer(void *shared)
{
    struct writer *writer = shared;

    near_client_close(writer->client, NULL);
    free(writer);
}

static void *
join(void *shared, const struct l2_target *target)
{
    (void)target;
    return shared;
}

static void
leave(void *own)
{
    (void)own;
}

static unsigned
put(void *own, const struct l2_key *keys, unsigned n)
{
    struct writer *writer = own;
    near_bytes     key[100], value[100];
    near_status    statuses[100];
    char           text[L2_VALUE_SIZE];
    unsigned       done = 0;

    l2_value(text, 1);
    for (unsigned i = 0; i < n && i < 100; i++) {
        key[i]   = (near_bytes){ keys[i].text, L2_KEY_SIZE };
        value[i] = (near_bytes){ text, L2_VALUE_SIZE };
    }
    near_put_many(writer->cache, key, value, n, NULL, statuses);
    for (unsigned i = 0; i < n; i++)
        done += statuses[i] == NEAR_OK;
    return done;
}

#define WRITER(word, opens)                                                                                  \
    {                                                                                                        \
        .name = word, .open = opens, .close = close_writer, .join = join, .leave = leave, .call = put,       \
        .ours = true                                                                                         \
    }

static const struct l2_peer modes[] = { WRITER("none", open_none), WRITER("pubsub", open_pubsub),
                                        WRITER("tracking", open_tracking) };
enum { MODES = sizeof(modes) / sizeof(modes[0]) };

static void
bench_writers(struct test_server *server)
{
    static const unsigned batches[] = { 1, 100 };
    struct l2_target target = { .name = "redis", .servers = { server }, .server_count = 1, .keys = 100000 };

    snprintf(target.uri, sizeof(target.uri), "%s", server->uri);
    printf("\nwhat a writer pays, 1 thread: keys/s, and times those of mode none in the same round\n");
    for (unsigned b = 0; b < 2; b++) {
        double rate[MODES][99], times[MODES][99], server_cpu[MODES][99];

        for (unsigned i = 0; i < bench.rounds; i++)
            for (unsigned m = 0; m < MODES; m++) {
                struct l2_figures figures;

                l2_run(&modes[m], &target, 1, batches[b], bench.seconds / 2, &figures);
                rate[m][i]       = figures.rate;
                times[m][i]      = figures.rate / rate[0][i];
                server_cpu[m][i] = figures.server;
            }
        for (unsigned m = 0; m < MODES; m++) {
            char what[80];

            snprintf(what, sizeof(what), "%s, batches of %u: x%.2f, server %.2f us/key", modes[m].name,
                     batches[b], share_of(times[m], bench.rounds, 0.5),
                     share_of(server_cpu[m], bench.rounds, 0.5));
            say(what, share_of(rate[m], bench.rounds, 0.5), "keys/s", 0, true);
        }
    }
}

/* ---------------------------------------------------------------------------------------------------- hit */

/* The quickest of some passes: whatever disturbs one makes it slower. */
static void
hits(near_cache *caches[2], double ns[2])
{
    enum { PASSES = 20, HITS = 200000 };
    near_bytes key = near_key("key:000000000001");

    ns[0] = ns[1] = INFINITY;
    for (unsigned pass = 0; pass < 2 * PASSES; pass++) {
        double from = l2_now(), one;

        for (unsigned i = 0; i < HITS; i++) {
            near_value *value;

            if (near_get(caches[pass % 2], key, &value) == NEAR_OK)
                near_value_release(value);
        }
        one          = (l2_now() - from) * 1e9 / HITS;
        ns[pass % 2] = one < ns[pass % 2] ? one : ns[pass % 2];
    }
}

static void
bench_hit(struct test_server *server)
{
    double       with[99], without[99], more[99];
    near_client *clients[2];
    near_cache  *caches[2];

    open_with(&clients[0], &caches[0],
              (const char *[]){ "l2.uri", "none:", "ttl", "1h", "l1.max_ttl", "1h", NULL });
    open_with(&clients[1], &caches[1],
              (const char *[]){ "l2.uri", "none:", "coherence.uri", server->uri, "ttl", "1h", "l1.max_ttl",
                                "1h", NULL });
    for (unsigned i = 0; i < 2; i++)
        near_put(caches[i], near_key("key:000000000001"), near_key("value"), NULL);
    for (unsigned i = 0; i < bench.rounds; i++) {
        double ns[2];

        hits(caches, ns);
        without[i] = ns[0];
        with[i]    = ns[1];
        more[i]    = ns[1] - ns[0];
    }
    near_client_close(clients[0], NULL);
    near_client_close(clients[1], NULL);
    printf("\nan L1 hit, 1 thread\n");
    say("without a bus", share_of(without, bench.rounds, 0.5), "ns", 0, false);
    say("with a healthy bus", share_of(with, bench.rounds, 0.5), "ns", 0, false);
    say("more in the same round", share_of(more, bench.rounds, 0.5), "ns", 6, false);
}

/* ------------------------------------------------------------------------------------------------- window */

static void
bench_window(struct test_server *server)
{
    enum { RATE = 10000, BATCH = 10 };
    near_client *writer, *reader;
    near_cache  *written, *read;
    near_stats   stats = NEAR_STATS_INIT;
    int64_t      begun, next;
    uint64_t     looks = 0, closed = 0, keys = 0, late = 0;

    open_with(&writer, &written, (const char *[]){ "l2.uri", server->uri, "l2.timeout", "5s", NULL });
    open_with(&reader, &read, (const char *[]){ "l2.uri", server->uri, "l2.timeout", "5s", NULL });
    begun = next = now_ns();
    while (next - begun < (int64_t)(3 * bench.seconds * 1e9)) {
        near_bytes  key[BATCH];
        char        text[BATCH][20];
        near_status statuses[BATCH];

        while (now_ns() < next) {
            looks++; /* a look every 200 us or so: would L1 answer now? */
            closed += near__coherence_gate(reader->coherence) <= now_ns();
            usleep(200);
        }
        late += now_ns() - next > 100 * NEAR_MS;
        next += (int64_t)1000000000 * BATCH / RATE;
        for (unsigned i = 0; i < BATCH; i++) {
            snprintf(text[i], sizeof(text[i]), "key:%012u", (unsigned)(keys++ % 100000));
            key[i] = near_key(text[i]);
        }
        near_put_many(written, key, key, BATCH, NULL, statuses);
    }
    near_stats_get(reader, &stats);
    printf("\nthe default window beside 10,000 writes a second\n");
    say("writes", (double)keys / ((double)(now_ns() - begun) / 1e9), "/s", 0.9 * RATE, true);
    say("looks at the gate", (double)looks, "", 0, false);
    say("of them when it was closed, per million", closed * 1e6 / (double)(looks > 0 ? looks : 1), "", 0,
        false);
    if (bench.goals && closed > 0)
        missed++;
    say("flushes of L1 since the first subscription", (double)stats.bus_flushes - 1, "", 0, false);
    say("writes begun more than 100 ms late", (double)late, "", 0, false);
    near_client_close(writer, NULL);
    near_client_close(reader, NULL);
}

/* --------------------------------------------------------------------------------------------------- main */

static int
usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [OPTION...]\n"
            "  --only LIST      of apply, delay, writers, hit, window (all)\n"
            "  --rounds N       (5)\n"
            "  --seconds S      of one measurement and round (1)\n"
            "  --goals          what the figures are to reach beside what they are; exit status 1 when one "
            "is missed\n",
            program);
    return 2;
}

static bool
parse(int argc, char **argv)
{
    static const struct option options[] = {
        { "only", 1, NULL, 'o' },  { "rounds", 1, NULL, 'r' }, { "seconds", 1, NULL, 's' },
        { "goals", 0, NULL, 'g' }, { NULL, 0, NULL, 0 },
    };
    bool ok = true;

    for (int c; ok && (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (c) {
        case 'o':
            bench.only = optarg;
            break;
        case 'r':
            bench.rounds = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 's':
            bench.seconds = strtod(optarg, NULL);
            break;
        case 'g':
            bench.goals = true;
            break;
        default:
            ok = false;
        }
    return ok && optind == argc && bench.rounds > 0 && bench.rounds < 99 && bench.seconds > 0;
}

static bool
wanted(const char *what)
{
    return bench.only == NULL || strstr(bench.only, what) != NULL;
}

int
main(int argc, char **argv)
{
    struct test_server *server;

    if (!parse(argc, argv))
        return usage(argv[0]);
    server = test_redis_start(TEST_SERVER_TCP, NULL);
    if (server == NULL)
        return 2;
    if (wanted("apply"))
        bench_apply(server);
    if (wanted("delay"))
        bench_delay(server);
    if (wanted("writers"))
        bench_writers(server);
    if (wanted("hit"))
        bench_hit(server);
    if (wanted("window"))
        bench_window(server);
    test_server_stop(&server);
    return missed > 0;
}
