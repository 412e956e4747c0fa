/*
 * nearcache top: what running instances with stats.publish count, as a table.
 *
 * Listens on the bus's server, on the channel that client/publish.h describes; asks nobody anything.  Rates are between an instance's
 * last two texts, by its own clock; of an instance that was heard once, over its life.  What comes over the wire is not believed: names
 * are cut and their control characters replaced, unknown words skipped, and there are bounds on everything.
 */
#include "connect.h"

#include "base/clock.h"
#include "l2/redis_conn.h"
#include "metrics.h"
#include "publish.h"
#include "stats.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INSTANCES = 512, HOT = 5 * NEAR__PUBLISH_CACHES, WORD = 80, MISSED = 4 };

struct cache_seen {
    char     name[65];
    uint64_t n[NEAR__COUNTERS];
};

/* What one text said. */
struct text_seen {
    uint64_t number, up_ms, period_ms;
    uint64_t n[NEAR__COUNTERS];
    struct {
        uint64_t count;
        double   p50, p99, max;
    } times[NEAR__TIMINGS];
    size_t            caches, hot;
    uint64_t          more;
    struct cache_seen cache[NEAR__PUBLISH_CACHES];
    struct {
        char     cache[65], hash[20], key[WORD];
        uint64_t share;
    } keys[HOT];
};

struct instance {
    uint64_t          id;
    char              host[WORD], pid[24], program[WORD], version[24];
    int64_t           heard;
    bool              twice; /* `before` is good */
    struct text_seen *now, *before;
};

struct top {
    struct connect            connect;
    struct near__uri          uri;
    char                      channel[NEAR__CHANNEL_SIZE], server_name[300];
    struct near__redis_conn  *conn;
    struct near__redis_server server;
    struct instance          *instances[INSTANCES];
    size_t                    n;
    uint64_t                  bad; /* texts that made no sense, or came when the table was full */
    bool                      once, json;
    int64_t                   every, wait;
};

static _Atomic bool interrupted;

static void
interrupt(int signal)
{
    (void)signal;
    atomic_store(&interrupted, true);
}

static int64_t
now_ns(void)
{
    return near__now(&near__clock_system);
}

/* ---- texts */

/* The next word of a line, cut to `size`; false: there is none. */
static bool
next_word(const char **at, const char *end, char *word, size_t size)
{
    size_t n = 0;

    while (*at < end && **at == ' ')
        ++*at;
    if (*at == end)
        return false;
    for (; *at < end && **at != ' '; ++*at)
        if (n + 1 < size)
            word[n++] = **at > ' ' && **at < 0x7F ? **at : '?';
    word[n] = '\0';
    return true;
}

static bool
next_number(const char **at, const char *end, uint64_t *number)
{
    char word[24], *rest;

    if (!next_word(at, end, word, sizeof(word)) || word[0] < '0' || word[0] > '9')
        return false;
    errno   = 0;
    *number = strtoull(word, &rest, 10);
    return errno == 0 && *rest == '\0';
}

/* NAME=N: those whose name is known. */
static void
take_fields(const char *at, const char *end, uint64_t n[NEAR__COUNTERS])
{
    char word[WORD + 24], *equals;

    while (next_word(&at, end, word, sizeof(word))) {
        equals = strchr(word, '=');
        if (equals == NULL)
            continue;
        *equals = '\0';
        for (int i = 0; i < NEAR__COUNTERS; i++)
            if (strcmp(near__counter_rows[i].name, word) == 0)
                n[i] = strtoull(equals + 1, NULL, 10);
    }
}

static void
take_quantiles(const char *at, const char *end, struct text_seen *seen)
{
    char     word[WORD];
    uint64_t count, p50, p99, max;

    if (!next_word(&at, end, word, sizeof(word)) || !next_number(&at, end, &count) ||
        !next_number(&at, end, &p50) || !next_number(&at, end, &p99) || !next_number(&at, end, &max))
        return;
    for (int i = 0; i < NEAR__TIMINGS; i++)
        if (strcmp(near__timing_rows[i].name, word) == 0) {
            seen->times[i].count = count;
            seen->times[i].p50   = (double)p50;
            seen->times[i].p99   = (double)p99;
            seen->times[i].max   = (double)max;
        }
}

static void
take_hot(const char *at, const char *end, struct text_seen *seen)
{
    if (seen->hot < HOT && next_word(&at, end, seen->keys[seen->hot].cache, sizeof(seen->keys[0].cache)) &&
        next_number(&at, end, &seen->keys[seen->hot].share) &&
        next_word(&at, end, seen->keys[seen->hot].hash, sizeof(seen->keys[0].hash))) {
        seen->keys[seen->hot].key[0] = '\0';
        next_word(&at, end, seen->keys[seen->hot].key, sizeof(seen->keys[0].key));
        seen->hot++;
    }
}

/* One line; false: it must be understood and cannot. */
static bool
take_line(const char *at, const char *end, struct instance *head, struct text_seen *seen)
{
    char word[WORD], id[24];

    if (!next_word(&at, end, word, sizeof(word)))
        return true;
    if (strcmp(word, "instance") == 0) {
        if (!next_word(&at, end, id, sizeof(id)) || !next_word(&at, end, head->host, sizeof(head->host)) ||
            !next_word(&at, end, head->pid, sizeof(head->pid)) ||
            !next_word(&at, end, head->program, sizeof(head->program)) ||
            !next_word(&at, end, head->version, sizeof(head->version)))
            return false;
        head->id = strtoull(id, NULL, 16);
        return head->id != 0;
    }
    if (strcmp(word, "time") == 0)
        return next_number(&at, end, &seen->number) && next_number(&at, end, &seen->up_ms) &&
               next_number(&at, end, &seen->period_ms);
    if (strcmp(word, "client") == 0)
        take_fields(at, end, seen->n);
    else if (strcmp(word, "quantiles") == 0)
        take_quantiles(at, end, seen);
    else if (strcmp(word, "hot") == 0)
        take_hot(at, end, seen);
    else if (strcmp(word, "more") == 0)
        next_number(&at, end, &seen->more);
    else if (strcmp(word, "cache") == 0 && seen->caches < NEAR__PUBLISH_CACHES) {
        struct cache_seen *cache = &seen->cache[seen->caches];

        if (next_word(&at, end, cache->name, sizeof(cache->name))) {
            take_fields(at, end, cache->n);
            seen->caches++;
        }
    }
    return true;
}

static bool
read_text(near_bytes text, struct instance *head, struct text_seen *seen)
{
    static const char first[] = "nearcache-stats 1\n";
    const char       *at      = text.data, *end;

    if (text.size > NEAR__PUBLISH_MOST || text.size < sizeof(first) - 1 ||
        memcmp(at, first, sizeof(first) - 1) != 0)
        return false;
    end = at + text.size;
    for (at += sizeof(first) - 1; at < end;) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));

        stop = stop != NULL ? stop : end;
        if (!take_line(at, stop, head, seen))
            return false;
        at = stop + 1;
    }
    return head->id != 0 && seen->number != 0;
}

static struct instance *
instance_of(struct top *top, const struct instance *head)
{
    struct instance *one;

    for (size_t i = 0; i < top->n; i++)
        if (top->instances[i]->id == head->id)
            return top->instances[i];
    one = top->n < INSTANCES ? calloc(1, sizeof(*one)) : NULL;
    if (one == NULL)
        return NULL;
    *one                     = *head;
    top->instances[top->n++] = one;
    return one;
}

static void
take_text(struct top *top, near_bytes text)
{
    struct instance   head = { .id = 0 }, *one = NULL;
    struct text_seen *seen = calloc(1, sizeof(*seen));

    if (seen != NULL && read_text(text, &head, seen))
        one = instance_of(top, &head);
    if (one == NULL) {
        top->bad++;
        free(seen);
        return;
    }
    free(one->before);
    one->before = one->now;
    one->now    = seen;
    one->twice  = one->before != NULL && one->before->up_ms < seen->up_ms;
    one->heard  = now_ns();
}

/* Those that have been silent for several of their periods. */
static void
forget_silent(struct top *top)
{
    size_t  left = 0;
    int64_t now  = now_ns();

    for (size_t i = 0; i < top->n; i++) {
        struct instance *one = top->instances[i];

        if (now - one->heard <= (MISSED * (int64_t)(one->now->period_ms % 86400000) + 1000) * NEAR_MS) {
            top->instances[left++] = one;
            continue;
        }
        free(one->now);
        free(one->before);
        free(one);
    }
    top->n = left;
}

/* ---- telling */

static double
seconds_of(const struct instance *one)
{
    uint64_t ms = one->twice ? one->now->up_ms - one->before->up_ms : one->now->up_ms;

    return ms > 0 ? (double)ms / 1000 : 1;
}

/* How much a counter of a cache has grown since then. */
static double
grown(const struct instance *one, size_t cache, enum near__counter which)
{
    const struct cache_seen *now = &one->now->cache[cache];

    if (!one->twice)
        return (double)now->n[which];
    for (size_t i = 0; i < one->before->caches; i++)
        if (strcmp(one->before->cache[i].name, now->name) == 0)
            return now->n[which] >= one->before->cache[i].n[which]
                       ? (double)(now->n[which] - one->before->cache[i].n[which])
                       : 0;
    return (double)now->n[which];
}

static double
percent(double part, double whole)
{
    return whole > 0 ? 100 * part / whole : 0;
}

static void
print_bytes(uint64_t bytes)
{
    if (bytes < UINT64_C(10) << 20)
        printf("%8.0f KiB", (double)bytes / 1024);
    else
        printf("%8.1f MiB", (double)bytes / (1 << 20));
}

static void
print_instance(const struct instance *one)
{
    const struct text_seen *now = one->now;
    const uint64_t         *n   = now->n;

    printf("%s:%s %s %s, up %.0f s; bus %s, L1 %s", one->host, one->pid, one->program, one->version,
           (double)now->up_ms / 1000, n[NEAR__bus_connected] ? "connected" : "LOST",
           n[NEAR__gate_open] ? "answers" : "BYPASSED");
    if (now->times[NEAR__TIME_coherence_lag].count > 0)
        printf(", lag %.2f ms (p99 %.2f)", now->times[NEAR__TIME_coherence_lag].p50 / 1e6,
               now->times[NEAR__TIME_coherence_lag].p99 / 1e6);
    if (n[NEAR__l2_servers_down] > 0)
        printf(", breaker OPEN (%" PRIu64 " servers)", n[NEAR__l2_servers_down]);
    if (now->times[NEAR__TIME_l2_read].count > 0)
        printf(", L2 reads %.2f ms (p99 %.2f)", now->times[NEAR__TIME_l2_read].p50 / 1e6,
               now->times[NEAR__TIME_l2_read].p99 / 1e6);
    if (n[NEAR__journal_live] > 0 || n[NEAR__write_back_age_ms] > 0)
        printf(", journal %" PRIu64 " records, oldest waits %" PRIu64 " ms", n[NEAR__journal_live],
               n[NEAR__write_back_age_ms]);
    if (n[NEAR__invalidations_pending] > 0)
        printf(", %" PRIu64 " invalidations owed", n[NEAR__invalidations_pending]);
    putchar('\n');
}

static void
print_cache(const struct instance *one, size_t i)
{
    const struct cache_seen *cache    = &one->now->cache[i];
    double                   requests = grown(one, i, NEAR__requests), seconds = seconds_of(one);

    printf("  %-20s %10.0f %6.1f %6.1f %6.1f %9.1f %9.1f %8.1f %10" PRIu64 " ", cache->name,
           requests / seconds, percent(grown(one, i, NEAR__hits_l1), requests),
           percent(grown(one, i, NEAR__hits_l2), requests), percent(grown(one, i, NEAR__misses), requests),
           grown(one, i, NEAR__loads) / seconds,
           (grown(one, i, NEAR__puts) + grown(one, i, NEAR__removes)) / seconds,
           (grown(one, i, NEAR__l2_errors) + grown(one, i, NEAR__load_failures)) / seconds,
           cache->n[NEAR__l1_entries]);
    print_bytes(cache->n[NEAR__l1_bytes]);
    putchar('\n');
    for (size_t k = 0; k < one->now->hot; k++)
        if (strcmp(one->now->keys[k].cache, cache->name) == 0)
            printf("    hot %5.1f %%  %s %s\n", (double)one->now->keys[k].share / 10000,
                   one->now->keys[k].hash, one->now->keys[k].key);
}

static void
print_table(const struct top *top)
{
    double all = 0;

    for (size_t i = 0; i < top->n; i++)
        for (size_t k = 0; k < top->instances[i]->now->caches; k++)
            all += grown(top->instances[i], k, NEAR__requests) / seconds_of(top->instances[i]);
    printf("%s, channel %s: %zu instances, %.0f requests/s", top->server_name, top->channel, top->n, all);
    if (top->bad > 0)
        printf(", %" PRIu64 " texts not understood", top->bad);
    printf("\n  %-20s %10s %6s %6s %6s %9s %9s %8s %10s %12s\n", "cache", "requests/s", "L1 %", "L2 %",
           "miss %", "loads/s", "writes/s", "errors/s", "entries", "memory");
    for (size_t i = 0; i < top->n; i++) {
        print_instance(top->instances[i]);
        for (size_t k = 0; k < top->instances[i]->now->caches; k++)
            print_cache(top->instances[i], k);
        if (top->instances[i]->now->more > 0)
            printf("  and %" PRIu64 " more caches\n", top->instances[i]->now->more);
    }
}

static void
json_counters(const uint64_t n[NEAR__COUNTERS], bool whole)
{
    const char *comma = "";

    for (int i = 0; i < NEAR__COUNTERS; i++)
        if (near__counter_rows[i].whole == whole) {
            printf("%s\"%s\": %" PRIu64, comma, near__counter_rows[i].name, n[i]);
            comma = ", ";
        }
}

static void
json_word(const char *name, const char *word)
{
    printf("\"%s\": ", name);
    near__json_string(stdout, near_key(word));
}

static void
json_cache(const struct instance *one, size_t i)
{
    const struct cache_seen *cache    = &one->now->cache[i];
    double                   requests = grown(one, i, NEAR__requests), seconds = seconds_of(one);

    fputs("        { ", stdout);
    json_word("name", cache->name);
    printf(", \"requests_per_s\": %.1f, \"l1\": %.4f, \"l2\": %.4f, \"missed\": %.4f, \"loads_per_s\": "
           "%.1f,\n          ",
           requests / seconds, percent(grown(one, i, NEAR__hits_l1), requests) / 100,
           percent(grown(one, i, NEAR__hits_l2), requests) / 100,
           percent(grown(one, i, NEAR__misses), requests) / 100, grown(one, i, NEAR__loads) / seconds);
    json_counters(cache->n, false);
    fputs(" }", stdout);
}

static void
json_hot(const struct text_seen *now)
{
    fputs("],\n      \"hot\": [", stdout);
    for (size_t k = 0; k < now->hot; k++) {
        printf("%s{ ", k > 0 ? ", " : "");
        json_word("cache", now->keys[k].cache);
        printf(", \"share\": %.6f, ", (double)now->keys[k].share / 1e6);
        json_word("hash", now->keys[k].hash);
        if (now->keys[k].key[0] != '\0') {
            fputs(", ", stdout);
            json_word("key", now->keys[k].key);
        }
        fputs(" }", stdout);
    }
    fputs("] }", stdout);
}

static void
json_instance(const struct instance *one)
{
    const struct text_seen *now   = one->now;
    const char             *comma = "";

    printf("    { \"id\": \"%016" PRIx64 "\", ", one->id);
    json_word("host", one->host);
    fputs(", ", stdout);
    json_word("pid", one->pid);
    fputs(", ", stdout);
    json_word("program", one->program);
    fputs(", ", stdout);
    json_word("version", one->version);
    printf(", \"up_ms\": %" PRIu64 ", \"period_ms\": %" PRIu64 ", \"heard_ms_ago\": %" PRId64
           ", \"between_texts\": %s,\n      \"client\": { ",
           now->up_ms, now->period_ms, (now_ns() - one->heard) / NEAR_MS, one->twice ? "true" : "false");
    json_counters(now->n, true);
    fputs(" },\n      \"quantiles\": { ", stdout);
    for (int i = 0; i < NEAR__TIMINGS; i++)
        if (now->times[i].count > 0) {
            printf("%s\"%s\": { \"count\": %" PRIu64 ", \"p50\": %.9f, \"p99\": %.9f, \"max\": %.9f }", comma,
                   near__timing_rows[i].name, now->times[i].count, now->times[i].p50 / 1e9,
                   now->times[i].p99 / 1e9, now->times[i].max / 1e9);
            comma = ", ";
        }
    puts(" },\n      \"caches\": [");
    for (size_t k = 0; k < now->caches; k++) {
        if (k > 0)
            puts(",");
        json_cache(one, k);
    }
    json_hot(now);
}

static void
print_all(const struct top *top)
{
    if (!top->json) {
        print_table(top);
        return;
    }
    fputs("{ ", stdout);
    json_word("channel", top->channel);
    printf(", \"not_understood\": %" PRIu64 ", \"instances\": [\n", top->bad);
    for (size_t i = 0; i < top->n; i++) {
        if (i > 0)
            puts(",");
        json_instance(top->instances[i]);
    }
    puts("\n  ] }");
}

/* ---- listening */

static near_status
subscribe(struct top *top, near_error *error)
{
    int64_t     deadline = near__time_after(now_ns(), top->connect.settings.l2_connect_timeout);
    near_bytes  argv[2]  = { near_key("SUBSCRIBE"), near_key(top->channel) };
    redisReply *reply    = NULL;
    near_status st       = near__redis_dial(&top->conn, &top->server, deadline, error);
    char        word[64];

    if (st == NEAR_OK)
        st = near__redis_append(top->conn, NEAR_COUNT_OF(argv), argv);
    if (st == NEAR_OK)
        st = near__redis_flush(top->conn, deadline, error);
    if (st == NEAR_OK)
        st = near__redis_read_one(top->conn, &reply, -1, deadline, error);
    if (st == NEAR_OK && reply->type == REDIS_REPLY_ERROR) {
        near__redis_error_word(reply, word, sizeof(word));
        st = near__fail(error, NEAR_ERR_DENIED, "%s: SUBSCRIBE %s refused: %s", top->server_name,
                        top->channel, word);
    }
    if (st == NEAR_OK || reply != NULL)
        freeReplyObject(reply);
    if (st != NEAR_OK)
        near__redis_conn_free(&top->conn);
    return st;
}

/* Take what comes until then. */
static near_status
listen_until(struct top *top, int64_t deadline, near_error *error)
{
    while (!atomic_load(&interrupted)) {
        int64_t     slice = near__time_after(now_ns(), 200 * NEAR_MS); /* a signal is looked for that often */
        redisReply *reply = NULL;
        near_status st;

        if (now_ns() >= deadline)
            return NEAR_OK;
        st = near__redis_read_one(top->conn, &reply, -1, slice < deadline ? slice : deadline, error);
        if (st == NEAR_ERR_TIMEOUT)
            continue;
        if (st != NEAR_OK) {
            near__redis_conn_free(&top->conn);
            return st;
        }
        if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 3 &&
            reply->element[2]->type == REDIS_REPLY_STRING)
            take_text(top, (near_bytes){ reply->element[2]->str, (size_t)reply->element[2]->len });
        freeReplyObject(reply);
    }
    return NEAR_OK;
}

static int
watch_once(struct top *top)
{
    near_error  error = { .code = NEAR_OK };
    near_status st    = subscribe(top, &error);

    if (st == NEAR_OK)
        st = listen_until(top, near__time_after(now_ns(), top->wait), &error);
    if (st != NEAR_OK)
        return complain(EXIT_TROUBLE, "%s", error.text);
    if (top->n > 0 || top->json)
        print_all(top);
    return top->n > 0
               ? EXIT_DONE
               : complain(
                     EXIT_NOT_FOUND,
                     "no instance was heard on channel %s in %.1f s: they answer where stats.publish is set",
                     top->channel, (double)top->wait / 1e9);
}

static int
watch(struct top *top)
{
    bool        terminal = isatty(STDOUT_FILENO) == 1;
    near_error  error    = { .code = NEAR_OK };
    near_status st       = subscribe(top, &error);

    if (st != NEAR_OK)
        return complain(EXIT_TROUBLE, "%s", error.text);
    while (!atomic_load(&interrupted)) {
        if (top->conn == NULL)
            st = subscribe(top, &error);
        if (st == NEAR_OK)
            st = listen_until(top, near__time_after(now_ns(), top->every), &error);
        else
            usleep(500000);
        forget_silent(top);
        if (terminal)
            fputs("\033[H\033[J", stdout);
        print_all(top);
        if (st != NEAR_OK)
            complain(0, "%s", error.text);
        if (fflush(stdout) != 0)
            return complain(EXIT_TROUBLE, "standard output: %s", strerror(errno));
    }
    return EXIT_DONE;
}

/* ---- the whole */

static bool
take_option(void *ctx, int code, const char *argument)
{
    struct top *top = ctx;

    switch (code) {
    case 'j':
        top->json = true;
        return true;
    case OPT_ONCE:
        top->once = true;
        return true;
    case OPT_EVERY:
        return read_duration("every", argument, &top->every);
    default:
        return read_duration("wait", argument, &top->wait);
    }
}

/* The bus as a client of this configuration has it. */
static int
find_bus(struct top *top)
{
    const struct near__settings *settings  = &top->connect.settings;
    bool                         automatic = strcmp(settings->coherence_uri, "auto") == 0;
    near_error                   error;

    if (automatic)
        top->uri = top->connect.l2_uri;
    else if (near__uri_parse(&top->uri, "coherence.uri", settings->coherence_uri, &error) != NEAR_OK)
        return complain(EXIT_USAGE, "%s", error.text);
    if (top->uri.kind != NEAR__URI_REDIS)
        return complain(
            EXIT_USAGE,
            "instances are heard over a Redis that is their bus, and %s is none; name it by a URI or "
            "coherence.uri",
            top->uri.scheme[0] != '\0' ? top->uri.scheme : "none:");
    if (near__access_bus(&top->connect.access, settings, &top->uri, &error) != NEAR_OK)
        return complain(EXIT_USAGE, "%s", error.text);
    near__settings_channel(settings, NEAR__PUBLISH_SUFFIX, top->channel, sizeof(top->channel));
    near__uri_display(&top->uri, top->server_name, sizeof(top->server_name));
    top->server = (struct near__redis_server){ .uri         = &top->uri,
                                               .access      = &top->connect.access.bus,
                                               .clock       = &near__clock_system,
                                               .client_name = "nearcache-top",
                                               .max_reply   = 4 * NEAR__PUBLISH_MOST };
    return -1;
}

static int
run(struct top *top, int argc, char **argv)
{
    struct sigaction action = { .sa_handler = interrupt };
    int              status = connect_options(&top->connect, argc, argv, take_option, top);

    if (status >= 0)
        return status;
    if (argc - optind > 1)
        return misuse("top");
    if ((optind < argc && !connect_set("l2.uri", argv[optind], &top->connect)) ||
        !connect_resolve(&top->connect))
        return EXIT_USAGE;
    status = find_bus(top);
    if (status >= 0)
        return status;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return top->once ? watch_once(top) : watch(top);
}

int
run_top(int argc, char **argv)
{
    struct top *top = calloc(1, sizeof(*top));
    int         status;

    if (top == NULL)
        return complain(EXIT_TROUBLE, "out of memory");
    top->every = NEAR__SEC;
    top->wait  = 3 * NEAR__SEC;
    status     = run(top, argc, argv);
    near__redis_conn_free(&top->conn);
    for (size_t i = 0; i < top->n; i++) {
        free(top->instances[i]->now);
        free(top->instances[i]->before);
        free(top->instances[i]);
    }
    connect_free(&top->connect);
    explicit_bzero(&top->uri, sizeof(top->uri));
    free(top);
    return status;
}
