/*
 * A feature store's reads beside plain hiredis, in one run, on the same Redis, through the public interface.
 *
 *     bench/fields [OPTION...] LOG         see usage() below
 *
 * LOG is what redis-cli MONITOR prints, packed by zstd (tests/data/traces/hmget-feature-store.log.zst).  Each of its HMGETs is a request.  A
 * Redis of the program's own is filled with every field that is asked for; then each peer reads all of the log, in its order, once
 * per round:
 *
 *     hiredis HMGET       a command and its reply, one request after the other
 *     hiredis pipeline    the requests of one prediction (one client, one list of fields, one after the other in the log) together
 *     nearcache request   near_fields_get_into(), one request a call
 *     nearcache           near_fields_get_into(), the requests of one prediction together
 *
 * Threads take the next call from the log as they are free, so with several of them the order is the log's but for the calls under way.  Every
 * value is compared with what must be stored.  nearcache begins each round with an empty L1, one for all threads, and nothing expires.
 *
 * Single-threaded but for the peers' threads: each has a connection (hiredis) and counts of its own.
 */
#include "bench/l2.h"
#include "bench/median.h"

#include "base/hash.h"
#include "base/le.h"
#include "harness/trace.h"

#include <getopt.h>
#include <hiredis/hiredis.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>

#define VALUE_SIZE  16
#define FIELDS_MOST 128
#define CALL_MOST   128 /* requests */
#define THREADS     64
#define ROUNDS      15
#define PEERS       4

static struct {
    const char *log;
    unsigned    threads, rounds;
    uint64_t    entries, limit;
    const char *policy, *only;
    bool        goals;
} bench = { .threads = 4, .rounds = 3, .entries = 1000000, .limit = UINT64_MAX, .policy = "lru" };

static int
usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [OPTION...] LOG\n"
            "  --threads N   of each peer (4)\n"
            "  --rounds N    (3)\n"
            "  --entries N   l1.max_entries (1000000)\n"
            "  --policy NAME l1.policy (lru)\n"
            "  --only NAME   this peer only\n"
            "  --limit N     the log's first N requests only\n"
            "  --goals       fail unless the share served from L1 is that of expected.tsv beside LOG within "
            "0.5 points, and\n"
            "                three times as many requests a second are answered as by hiredis HMGET\n",
            program);
    return 2;
}

static void
die(const char *what, const char *why)
{
    fprintf(stderr, "bench/fields: %s: %s\n", what, why);
    exit(2);
}

static void *
grown(void *array, size_t n, size_t *capacity, size_t size)
{
    if (n < *capacity)
        return array;
    *capacity = *capacity > 0 ? 2 * *capacity : 1024;
    array     = reallocarray(array, *capacity, size);
    if (array == NULL)
        die("memory", "there is none left");
    return array;
}

/* ---- texts, each once */

struct texts {
    near_bytes *at;
    size_t      n, capacity;
    uint32_t   *slots; /* index + 1; 0: free */
    size_t      mask;
};

static uint32_t *
slot_of(const struct texts *t, near_bytes text)
{
    size_t at = near__hash_fixed(text) & t->mask;

    while (t->slots[at] != 0 && !near__bytes_equal(t->at[t->slots[at] - 1], text))
        at = (at + 1) & t->mask;
    return &t->slots[at];
}

static void
widen(struct texts *t)
{
    if (t->slots != NULL && t->n < t->mask / 2)
        return;
    free(t->slots);
    t->mask  = t->mask == 0 ? 1023 : 2 * t->mask + 1;
    t->slots = calloc(t->mask + 1, sizeof(*t->slots));
    if (t->slots == NULL)
        die("memory", "there is none left");
    for (size_t i = 0; i < t->n; i++)
        *slot_of(t, t->at[i]) = (uint32_t)i + 1;
}

static uint32_t
text_index(struct texts *t, near_bytes text)
{
    uint32_t *slot;
    char     *copy;

    widen(t);
    slot = slot_of(t, text);
    if (*slot != 0)
        return *slot - 1;
    copy = malloc(text.size + 1);
    if (copy == NULL)
        die("memory", "there is none left");
    memcpy(copy, text.data, text.size);
    copy[text.size] = '\0';
    t->at           = grown(t->at, t->n, &t->capacity, sizeof(*t->at));
    t->at[t->n]     = (near_bytes){ copy, text.size };
    *slot           = (uint32_t)++t->n;
    return (uint32_t)t->n - 1;
}

/* ---- the log */

struct list { /* of fields */
    size_t      n;
    near_field  numbers[FIELDS_MOST];
    const char *names[FIELDS_MOST];
    size_t      sizes[FIELDS_MOST];
};

struct request {
    uint32_t entity, list, client;
};

struct call { /* requests [first, first + n) */
    uint32_t first, n;
};

static struct {
    struct texts    entities, lists, clients;
    struct list    *list;
    struct request *requests;
    size_t          n, capacity;
    struct call    *calls[2]; /* of one request; of a prediction */
    size_t          n_calls[2];
    uint64_t        cells;
} replay;

/* The next "WORD", which has no escapes in it; *from moves behind. */
static bool
next_word(near_bytes line, size_t *from, near_bytes *word)
{
    const char *text = line.data, *open, *end;

    open = memchr(text + *from, '"', line.size - *from);
    if (open == NULL)
        return false;
    end = memchr(open + 1, '"', line.size - (size_t)(open + 1 - text));
    if (end == NULL || memchr(open, '\\', (size_t)(end - open)) != NULL)
        die("the log", "an argument that is no plain word");
    *word = (near_bytes){ open + 1, (size_t)(end - open - 1) };
    *from = (size_t)(end + 1 - text);
    return true;
}

static void
read_list(struct list *list, near_bytes text)
{
    near_bytes word;
    size_t     from = 0;

    while (next_word(text, &from, &word)) {
        char *end;

        if (list->n == FIELDS_MOST)
            die("the log", "too many fields");
        list->names[list->n]   = word.data;
        list->sizes[list->n]   = word.size;
        list->numbers[list->n] = (near_field)strtoul(word.data, &end, 10);
        if (end != (const char *)word.data + word.size || word.size == 0)
            die("the log", "a field that is no number");
        list->n++;
    }
}

static void
read_request(near_bytes line)
{
    static const char mark[] = "] \"HMGET\"";
    const char       *text = line.data, *at = memmem(text, line.size, mark, sizeof(mark) - 1);
    const char       *open = memchr(text, '[', line.size);
    struct request    r;
    near_bytes        word;
    size_t            from;

    if (at == NULL || open == NULL || open > at)
        return; /* HSET, PING */
    r.client = text_index(&replay.clients, (near_bytes){ open, (size_t)(at - open) });
    from     = (size_t)(at - text) + sizeof(mark) - 1;
    if (!next_word(line, &from, &word))
        die("the log", "HMGET without a key");
    r.entity = text_index(&replay.entities, word);
    r.list   = text_index(&replay.lists, (near_bytes){ text + from, line.size - from });

    replay.requests = grown(replay.requests, replay.n, &replay.capacity, sizeof(*replay.requests));
    replay.requests[replay.n++] = r;
}

static bool
goes_on(size_t i, uint32_t first)
{
    const struct request *a = &replay.requests[first], *b = &replay.requests[i];

    if (i - first >= CALL_MOST || a->client != b->client || a->list != b->list)
        return false;
    for (size_t j = first; j < i; j++)
        if (replay.requests[j].entity == b->entity)
            return false; /* another prediction, which may be about the same */
    return true;
}

static void
make_calls(void)
{
    for (int together = 0; together < 2; together++) {
        struct call *calls = calloc(replay.n, sizeof(*calls));
        size_t       n     = 0;

        if (calls == NULL)
            die("memory", "there is none left");
        for (size_t i = 0; i < replay.n; i++) {
            if (n > 0 && together && goes_on(i, calls[n - 1].first))
                calls[n - 1].n++;
            else
                calls[n++] = (struct call){ (uint32_t)i, 1 };
        }
        replay.calls[together]   = calls;
        replay.n_calls[together] = n;
    }
}

static void
read_log(void)
{
    struct test_trace *trace = test_trace_open(bench.log);
    near_bytes         line;

    if (trace == NULL)
        exit(2);
    while (replay.n < bench.limit && test_trace_line(trace, &line))
        read_request(line);
    if (!test_trace_close(&trace) && bench.limit == UINT64_MAX)
        die(bench.log, "is damaged");
    if (replay.n == 0)
        die(bench.log, "no HMGET in it");
    replay.list = calloc(replay.lists.n, sizeof(*replay.list));
    if (replay.list == NULL)
        die("memory", "there is none left");
    for (size_t i = 0; i < replay.lists.n; i++)
        read_list(&replay.list[i], replay.lists.at[i]);
    for (size_t i = 0; i < replay.n; i++)
        replay.cells += replay.list[replay.requests[i].list].n;
    make_calls();
}

/* ---- what is stored */

static uint64_t
mixed(uint32_t entity, near_field field)
{
    uint64_t x = ((uint64_t)entity << 32 | field) * UINT64_C(0x9E3779B97F4A7C15);

    return x ^ x >> 29;
}

static bool
is_right(const void *value, uint32_t entity, near_field field)
{
    return near__le64_get(value) == mixed(entity, field);
}

static redisContext *
dial(const struct l2_target *target)
{
    redisContext *c = redisConnect("127.0.0.1", target->port);

    if (c == NULL || c->err != 0)
        die("hiredis", c == NULL ? "out of memory" : c->errstr);
    return c;
}

static void
append_hset(redisContext *c, const struct request *r)
{
    const struct list *list = &replay.list[r->list];
    const char        *argv[2 + 2 * FIELDS_MOST];
    size_t             size[2 + 2 * FIELDS_MOST];
    uint8_t            values[FIELDS_MOST][VALUE_SIZE];

    argv[0] = "HSET";
    size[0] = 4;
    argv[1] = replay.entities.at[r->entity].data;
    size[1] = replay.entities.at[r->entity].size;
    for (size_t f = 0; f < list->n; f++) {
        near__le64_put(values[f], mixed(r->entity, list->numbers[f]));
        near__le64_put(values[f] + 8, f);
        argv[2 + 2 * f] = list->names[f];
        size[2 + 2 * f] = list->sizes[f];
        argv[3 + 2 * f] = (char *)values[f];
        size[3 + 2 * f] = VALUE_SIZE;
    }
    redisAppendCommandArgv(c, (int)(2 + 2 * list->n), argv, size);
}

static void
await(redisContext *c, size_t replies)
{
    while (replies-- > 0) {
        redisReply *reply = NULL;

        if (redisGetReply(c, (void **)&reply) != REDIS_OK || reply->type == REDIS_REPLY_ERROR)
            die("filling Redis", reply != NULL ? reply->str : c->errstr);
        freeReplyObject(reply);
    }
}

/* Each entity's lists once. */
static void
fill(const struct l2_target *target)
{
    redisContext *c       = dial(target);
    struct texts  filled  = { .n = 0 };
    size_t        waiting = 0;

    for (size_t i = 0; i < replay.n; i++) {
        const struct request *r       = &replay.requests[i];
        uint32_t              pair[2] = { r->entity, r->list };
        size_t                before  = filled.n;

        if (text_index(&filled, (near_bytes){ pair, sizeof(pair) }) < before)
            continue;
        append_hset(c, r);
        if (++waiting == 256) {
            await(c, waiting);
            waiting = 0;
        }
    }
    await(c, waiting);
    redisFree(c);
    for (size_t i = 0; i < filled.n; i++)
        free((void *)(uintptr_t)filled.at[i].data);
    free(filled.at);
    free(filled.slots);
}

/* ---- peers */

struct counts {
    uint64_t cells, from_l1, wrong;
};

struct worker {
    pthread_t               thread;
    const struct l2_target *target;
    const struct peer      *peer;
    near_cache             *cache;
    redisContext           *redis;
    struct counts           counts;
};

struct peer {
    const char *name;
    bool        ours, together;
    void (*call)(struct worker *w, const struct request *requests, size_t n);
};

static void
check_reply(struct worker *w, const struct request *r, const redisReply *reply)
{
    const struct list *list = &replay.list[r->list];

    w->counts.cells += list->n;
    if (reply == NULL || reply->type != REDIS_REPLY_ARRAY || reply->elements != list->n) {
        w->counts.wrong += list->n;
        return;
    }
    for (size_t f = 0; f < list->n; f++) {
        const redisReply *value = reply->element[f];

        w->counts.wrong += value->type != REDIS_REPLY_STRING || value->len != VALUE_SIZE ||
                           !is_right(value->str, r->entity, list->numbers[f]);
    }
}

static void
hiredis_call(struct worker *w, const struct request *requests, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const struct list *list = &replay.list[requests[i].list];
        const char        *argv[2 + FIELDS_MOST];
        size_t             size[2 + FIELDS_MOST];

        argv[0] = "HMGET";
        size[0] = 5;
        argv[1] = replay.entities.at[requests[i].entity].data;
        size[1] = replay.entities.at[requests[i].entity].size;
        memcpy(argv + 2, list->names, list->n * sizeof(argv[0]));
        memcpy(size + 2, list->sizes, list->n * sizeof(size[0]));
        redisAppendCommandArgv(w->redis, (int)(2 + list->n), argv, size);
    }
    for (size_t i = 0; i < n; i++) {
        void *reply = NULL;

        redisGetReply(w->redis, &reply);
        check_reply(w, &requests[i], reply);
        freeReplyObject(reply);
    }
}

static void
our_call(struct worker *w, const struct request *requests, size_t n)
{
    static _Thread_local uint8_t matrix[CALL_MOST * FIELDS_MOST][VALUE_SIZE], mask[CALL_MOST * FIELDS_MOST];
    const struct list           *list    = &replay.list[requests[0].list];
    near_fields_options          options = NEAR_FIELDS_OPTIONS_INIT;
    static _Thread_local near_bytes entities[CALL_MOST];

    for (size_t i = 0; i < n; i++)
        entities[i] = replay.entities.at[requests[i].entity];
    near_fields_get_into(w->cache, entities, n, list->numbers, list->n, &options, matrix, VALUE_SIZE, mask,
                         NULL);
    w->counts.cells += n * list->n;
    for (size_t i = 0; i < n; i++)
        for (size_t f = 0; f < list->n; f++) {
            size_t cell = i * list->n + f;

            w->counts.from_l1 += mask[cell] == NEAR_FROM_L1;
            w->counts.wrong += !is_right(matrix[cell], requests[i].entity, list->numbers[f]);
        }
}

static const struct peer peers[PEERS] = {
    { "hiredis HMGET", false, false, hiredis_call },
    { "hiredis pipeline", false, true, hiredis_call },
    { "nearcache request", true, false, our_call },
    { "nearcache", true, true, our_call },
};

/* ---- a round */

struct figures {
    double rate, p50, p99, client, server, share;
};

static struct figures figures[PEERS][ROUNDS];

static struct {
    atomic_size_t next;
    uint32_t     *took; /* ns, by call */
} run;

static void *
work(void *ctx)
{
    struct worker     *w     = ctx;
    const struct call *calls = replay.calls[w->peer->together];
    size_t             n     = replay.n_calls[w->peer->together], i;

    while ((i = atomic_fetch_add_explicit(&run.next, 1, memory_order_relaxed)) < n) {
        double begun = l2_now();

        w->peer->call(w, replay.requests + calls[i].first, calls[i].n);
        run.took[i] = (uint32_t)((l2_now() - begun) * 1e9);
    }
    return NULL;
}

static void
must(near_status status, const near_error *error)
{
    if (status != NEAR_OK)
        die("nearcache", error->text);
}

static near_cache *
open_ours(const struct l2_target *target, near_client **client)
{
    near_config *config = near_config_new();
    near_error   error;
    near_cache  *cache;
    char         entries[32];
    const char  *options[][2] = { { "l2.uri", target->uri },     { "l1.policy", bench.policy },
                                  { "l1.max_entries", entries }, { "l1.max_bytes", "2GiB" },
                                  { "l1.max_ttl", "1d" },        { "ttl", "1d" },
                                  { "fields.key_prefix", "" },   { "l2.timeout", "5s" } };

    snprintf(entries, sizeof(entries), "%llu", (unsigned long long)bench.entries);
    for (size_t i = 0; i < NEAR_COUNT_OF(options); i++)
        must(near_config_set(config, options[i][0], options[i][1], &error), &error);
    must(near_client_open(config, client, &error), &error);
    must(near_cache_open(*client, "features", NULL, &cache, &error), &error);
    near_config_free(config);
    return cache;
}

static int
by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static double
client_cpu(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void
run_peer(const struct peer *peer, const struct l2_target *target, struct figures *out)
{
    size_t        n     = replay.n_calls[peer->together];
    near_client  *ours  = NULL;
    near_cache   *cache = peer->ours ? open_ours(target, &ours) : NULL;
    struct worker workers[THREADS];
    struct counts all = { 0 };
    double        begun, took, client, server;

    atomic_store(&run.next, 0);
    for (unsigned t = 0; t < bench.threads; t++)
        workers[t] = (struct worker){
            .target = target, .peer = peer, .cache = cache, .redis = peer->ours ? NULL : dial(target)
        };
    client = client_cpu();
    server = l2_server_cpu(target);
    begun  = l2_now();
    for (unsigned t = 0; t < bench.threads; t++)
        if (pthread_create(&workers[t].thread, NULL, work, &workers[t]) != 0)
            die("threads", "none to be had");
    for (unsigned t = 0; t < bench.threads; t++)
        pthread_join(workers[t].thread, NULL);
    took   = l2_now() - begun;
    client = client_cpu() - client;
    server = l2_server_cpu(target) - server;
    for (unsigned t = 0; t < bench.threads; t++) {
        all.cells += workers[t].counts.cells;
        all.from_l1 += workers[t].counts.from_l1;
        all.wrong += workers[t].counts.wrong;
        if (workers[t].redis != NULL)
            redisFree(workers[t].redis);
    }
    if (ours != NULL)
        near_client_close(ours, NULL);
    if (all.wrong > 0 || all.cells != replay.cells)
        die(peer->name, "a value that was not stored");
    qsort(run.took, n, sizeof(*run.took), by_size);
    *out = (struct figures){ .rate   = (double)replay.n / took,
                             .p50    = run.took[n / 2] / 1e3,
                             .p99    = run.took[n * 99 / 100] / 1e3,
                             .client = client / (double)replay.n * 1e6,
                             .server = server / (double)replay.n * 1e6,
                             .share  = 100.0 * (double)all.from_l1 / (double)all.cells };
}

/* ---- the report */

static double
middle_of(const struct peer *peer, size_t offset)
{
    double values[ROUNDS];

    for (unsigned i = 0; i < bench.rounds; i++)
        memcpy(&values[i], (const char *)&figures[peer - peers][i] + offset, sizeof(double));
    return median(values, bench.rounds);
}

/* Within each round, for the machine is not the same in the next. */
static double
ratio(const struct peer *a, const struct peer *b)
{
    double values[ROUNDS];

    for (unsigned i = 0; i < bench.rounds; i++)
        values[i] = figures[a - peers][i].rate / figures[b - peers][i].rate;
    return median(values, bench.rounds);
}

#define MEDIAN(peer, what) middle_of(peer, offsetof(struct figures, what))

static double
expected_share(void)
{
    char    directory[512];
    char   *slash;
    int64_t hits;

    snprintf(directory, sizeof(directory), "%s", bench.log);
    slash = strrchr(directory, '/');
    if (slash == NULL || bench.limit != UINT64_MAX)
        return NAN;
    *slash = '\0';
    hits   = test_trace_expected(directory, "hmget-feature-store", bench.entries, bench.policy);
    return hits < 0 ? NAN : 100.0 * (double)hits / (double)replay.cells;
}

static int
report(void)
{
    double expected = expected_share(), share = MEDIAN(&peers[3], share);
    bool   good = fabs(share - expected) <= 0.5 && ratio(&peers[3], &peers[0]) >= 3;

    printf("\n%-18s %12s %10s %10s %12s %12s %8s %9s %9s\n", "peer", "requests/s", "p50 us", "p99 us",
           "client us", "Redis us", "from L1", "x HMGET", "x pipel.");
    for (size_t i = 0; i < PEERS; i++)
        printf("%-18s %12.0f %10.1f %10.1f %12.2f %12.2f %7.2f%% %9.2f %9.2f\n", peers[i].name,
               MEDIAN(&peers[i], rate), MEDIAN(&peers[i], p50), MEDIAN(&peers[i], p99),
               MEDIAN(&peers[i], client), MEDIAN(&peers[i], server), MEDIAN(&peers[i], share),
               ratio(&peers[i], &peers[0]), ratio(&peers[i], &peers[1]));
    printf("\np50, p99: of a call (nearcache and pipeline: of a prediction); client, Redis: CPU per request. "
           " Medians of %u rounds.\n",
           bench.rounds);
    if (!isnan(expected))
        printf("share from L1: %.2f %%, by simulation of one %s over the log: %.2f %%\n", share, bench.policy,
               expected);
    return bench.goals && !good;
}

static bool
parse(int argc, char **argv)
{
    static const struct option options[] = { { "threads", 1, NULL, 't' }, { "rounds", 1, NULL, 'r' },
                                             { "entries", 1, NULL, 'e' }, { "policy", 1, NULL, 'p' },
                                             { "limit", 1, NULL, 'l' },   { "only", 1, NULL, 'o' },
                                             { "goals", 0, NULL, 'g' },   { NULL, 0, NULL, 0 } };
    int                        c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 't')
            bench.threads = (unsigned)atoi(optarg);
        else if (c == 'r')
            bench.rounds = (unsigned)atoi(optarg);
        else if (c == 'e')
            bench.entries = strtoull(optarg, NULL, 10);
        else if (c == 'l')
            bench.limit = strtoull(optarg, NULL, 10);
        else if (c == 'o')
            bench.only = optarg;
        else if (c == 'p')
            bench.policy = optarg;
        else if (c == 'g')
            bench.goals = true;
        else
            return false;
    }
    bench.log = argv[optind];
    return optind + 1 == argc && bench.threads >= 1 && bench.threads <= THREADS && bench.rounds >= 1 &&
           bench.rounds <= ROUNDS;
}

int
main(int argc, char **argv)
{
    struct l2_target target = { .name = "redis", .server_count = 1 };

    if (!parse(argc, argv))
        return usage(argv[0]);
    read_log();
    target.servers[0] = test_redis_start(TEST_SERVER_TCP, NULL);
    if (target.servers[0] == NULL)
        return 2;
    target.port = target.servers[0]->port;
    snprintf(target.uri, sizeof(target.uri), "redis://127.0.0.1:%d", target.port);
    fill(&target);
    run.took = calloc(replay.n, sizeof(*run.took));
    if (run.took == NULL)
        die("memory", "there is none left");
    printf("%zu requests in %zu calls, %llu fields; %zu entities; %u threads\n", replay.n, replay.n_calls[1],
           (unsigned long long)replay.cells, replay.entities.n, bench.threads);
    for (unsigned round = 0; round < bench.rounds; round++)
        for (size_t i = 0; i < PEERS; i++) {
            size_t at = (i + round) % PEERS;

            if (bench.only != NULL && strcmp(bench.only, peers[at].name) != 0)
                continue;
            run_peer(&peers[at], &target, &figures[at][round]);
            fprintf(stderr, "round %u: %s: %.0f requests/s\n", round + 1, peers[at].name,
                    figures[at][round].rate);
        }
    return report();
}
