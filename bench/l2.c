/*
 * L2 beside its peers, in one run, on the same servers, through the public interface.
 *
 *     bench/l2 [OPTION...]         see usage() below
 *
 * It starts a Redis and memcacheds of its own, fills them with the same keys and values twice, plain for the peers and by
 * near_put_many for nearcache, and asks for keys drawn evenly.  A stage goes round: in each round every peer runs with every number of
 * threads and every batch size, beginning with another one each time, so that ratios can be taken within a round.  A run is a fresh
 * set of threads and connections.  Server and client share the machine, as wherever the one is busy.
 *
 * Single-threaded but for l2_run.c.  Servers end with the process, however it ends.
 */
#include "bench/l2.h"

#include "harness/cluster.h"

#include <getopt.h>
#include <stdlib.h>
#include <unistd.h>

enum target { REDIS, REDIS_UNIX, MEMCACHED, MEMCACHED_T4, MEMCACHED_UNIX, CLUSTER, TARGETS };

static struct l2_target targets[TARGETS] = {
    [REDIS]          = { .name = "redis" },
    [REDIS_UNIX]     = { .name = "redis-unix" },
    [MEMCACHED]      = { .name = "memcached" },
    [MEMCACHED_T4]   = { .name = "memcached-t4" },
    [MEMCACHED_UNIX] = { .name = "memcached-unix" },
    [CLUSTER]        = { .name = "cluster" },
};

#define MORE_THAN_ONE_TARGET 2

static const struct stage {
    const char *name, *title;
    enum target targets[MORE_THAN_ONE_TARGET];
    unsigned    target_count;
    struct {
        const struct l2_peer *peer;
        unsigned              batches[4]; /* ends with 0; none: 1 */
    } peers[7];
    unsigned threads[5]; /* ends with 0; none: --threads */
} stages[] = {
    { "redis",
      "Redis GET over TCP",
      { REDIS },
      1,
      { { &l2_hiredis_get, { 0 } },
        { &l2_hiredis_pool, { 0 } },
        { &l2_ours_get, { 0 } },
        { &l2_redis_benchmark, { 100 } } },
      { 0 } },
    { "redis-unix",
      "Redis GET over a unix socket",
      { REDIS_UNIX },
      1,
      { { &l2_hiredis_get, { 0 } }, { &l2_ours_get, { 0 } }, { &l2_redis_benchmark, { 100 } } },
      { 0 } },
    { "redis-batch",
      "Redis, batches over TCP",
      { REDIS },
      1,
      { { &l2_hiredis_pipeline, { 10, 100, 1000 } },
        { &l2_hiredis_mget, { 10, 100, 1000 } },
        { &l2_hiredis_pipeline_entries, { 10, 100, 1000 } },
        { &l2_hiredis_mget_entries, { 10, 100, 1000 } },
        { &l2_ours_get_many, { 10, 100, 1000 } },
        { &l2_redis_benchmark, { 100 } } },
      { 1, 2 } },
    { "memcached",
      "memcached -t 1 get over TCP",
      { MEMCACHED },
      1,
      { { &l2_memcached_pool, { 0 } },
        { &l2_memcached_get, { 0 } },
        { &l2_memcached_pool16, { 0 } },
        { &l2_ours_get, { 0 } } },
      { 0 } },
    { "memcached-t4",
      "memcached -t 4 get over TCP",
      { MEMCACHED_T4 },
      1,
      { { &l2_memcached_pool, { 0 } }, { &l2_memcached_get, { 0 } }, { &l2_ours_get, { 0 } } },
      { 0 } },
    { "memcached-unix",
      "memcached -t 1 get over a unix socket",
      { MEMCACHED_UNIX },
      1,
      { { &l2_memcached_pool, { 0 } }, { &l2_memcached_get, { 0 } }, { &l2_ours_get, { 0 } } },
      { 0 } },
    { "memcached-batch",
      "memcached -t 1, batches over TCP",
      { MEMCACHED },
      1,
      { { &l2_memcached_mget, { 10, 100, 1000 } },
        { &l2_memcached_mget_entries, { 10, 100, 1000 } },
        { &l2_ours_get_many, { 10, 100, 1000 } } },
      { 1, 2 } },
    { "writes",
      "Redis, acknowledged writes over TCP",
      { REDIS },
      1,
      { { &l2_hiredis_pipeline_set, { 100 } },
        { &l2_hiredis_pipeline_set_px, { 100 } },
        { &l2_hiredis_set, { 1 } },
        { &l2_ours_put, { 1 } },
        { &l2_ours_put_many, { 10, 100, 1000 } },
        { &l2_ours_put_many_px, { 100 } } },
      { 1, 16 } },
    { "memcached-writes",
      "memcached -t 1, acknowledged writes over TCP",
      { MEMCACHED },
      1,
      { { &l2_memcached_set, { 1 } }, { &l2_ours_put, { 1 } }, { &l2_ours_put_many, { 10, 100, 1000 } } },
      { 1, 16 } },
    { "cluster",
      "Redis Cluster of 3 masters beside one Redis, over TCP",
      { REDIS, CLUSTER },
      2,
      { { &l2_ours_get, { 0 } }, { &l2_ours_get_many, { 100 } }, { &l2_ours_put_many, { 100 } } },
      { 0 } },
};
enum { STAGES = sizeof(stages) / sizeof(stages[0]) };

static struct bench {
    unsigned          threads[8], thread_counts;
    unsigned          rounds, retries;
    uint32_t          keys;
    double            seconds;
    const char       *only, *named, *batches, *tsv;
    bool              goals;
    struct l2_results results;
} bench = { .threads       = { 1, 4, 16, 64 },
            .thread_counts = 4,
            .rounds        = 5,
            .retries       = 1,
            .keys          = 1000000,
            .seconds       = 0.5 };

static int
usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [OPTION...]\n"
            "  --only LIST      of redis, redis-unix, redis-batch, memcached, memcached-t4, memcached-unix,\n"
            "                   memcached-batch, writes, memcached-writes, cluster (all)\n"
            "  --threads LIST   numbers of threads for single gets (1,4,16,64)\n"
            "  --batches LIST   only batches of these sizes\n"
            "  --rounds N       (5)\n"
            "  --seconds S      of one peer, number of threads and round (0.5)\n"
            "  --keys N         (1000000)\n"
            "  --retries N      of a run in which others had more than a tenth of the processors; the least "
            "disturbed counts (1)\n"
            "  --peers LIST     only peers whose names contain one of these\n"
            "  --goals          what the figures are to reach beside what they are; exit status 1 when one "
            "is missed\n"
            "  --tsv FILE       every round's figures, tab-separated\n",
            program);
    return 2;
}

/* ---- options */

/* Whether one of the words of "a,b,c" is (or, `inside`, is part of) `name`. */
static bool
listed(const char *list, const char *name, bool inside)
{
    char word[64];

    for (const char *at = list; at != NULL && *at != '\0'; at += strcspn(at, ","), at += *at == ',') {
        snprintf(word, sizeof(word), "%.*s", (int)strcspn(at, ","), at);
        if (inside ? strstr(name, word) != NULL : strcmp(name, word) == 0)
            return true;
    }
    return false;
}

static bool
wanted_batch(unsigned size)
{
    char name[16];

    snprintf(name, sizeof(name), "%u", size);
    return bench.batches == NULL || listed(bench.batches, name, false);
}

static bool
parse_threads(const char *text)
{
    char *end;

    bench.thread_counts = 0;
    do {
        unsigned long n = strtoul(text, &end, 10);
        if (n == 0 || n > L2_THREADS_MAX || bench.thread_counts == 8 || (*end != ',' && *end != '\0'))
            return false;
        bench.threads[bench.thread_counts++] = (unsigned)n;
        text                                 = end + 1;
    } while (*end == ',');
    return true;
}

static bool
parse(int argc, char **argv)
{
    static const struct option options[] = {
        { "only", 1, NULL, 'o' },    { "threads", 1, NULL, 't' }, { "rounds", 1, NULL, 'r' },
        { "seconds", 1, NULL, 's' }, { "keys", 1, NULL, 'k' },    { "peers", 1, NULL, 'n' },
        { "goals", 0, NULL, 'g' },   { "retries", 1, NULL, 'R' }, { "tsv", 1, NULL, 'v' },
        { "batches", 1, NULL, 'b' }, { "help", 0, NULL, 'h' },    { NULL, 0, NULL, 0 },
    };
    bool ok = true;

    for (int c; ok && (c = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (c) {
        case 'o':
            bench.only = optarg;
            break;
        case 't':
            ok = parse_threads(optarg);
            break;
        case 'r':
            bench.rounds = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 's':
            bench.seconds = strtod(optarg, NULL);
            break;
        case 'R':
            bench.retries = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'k':
            bench.keys = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'n':
            bench.named = optarg;
            break;
        case 'b':
            bench.batches = optarg;
            break;
        case 'g':
            bench.goals = true;
            break;
        case 'v':
            bench.tsv = optarg;
            break;
        default:
            ok = false;
        }
    return ok && optind == argc && bench.rounds > 0 && bench.rounds <= L2_ROUNDS_MAX && bench.seconds > 0 &&
           bench.keys > 0;
}

/* ---- servers */

static void
one_server(struct l2_target *target, struct test_server *server)
{
    target->servers[0]   = server;
    target->server_count = server != NULL;
    target->keys         = bench.keys;
    if (server == NULL)
        return;
    target->port   = server->port;
    target->socket = server->port == 0 ? server->socket : NULL;
    snprintf(target->uri, sizeof(target->uri), "%s", server->uri);
}

/* One Redis for both of its addresses. */
static void
start_redis(void)
{
    if (targets[REDIS].server_count == 0)
        one_server(&targets[REDIS], test_redis_start(TEST_SERVER_TCP, NULL));
    if (targets[REDIS].server_count == 0)
        return;
    targets[REDIS_UNIX]        = targets[REDIS];
    targets[REDIS_UNIX].name   = "redis-unix";
    targets[REDIS_UNIX].socket = targets[REDIS].servers[0]->socket;
    snprintf(targets[REDIS_UNIX].uri, sizeof(targets[REDIS_UNIX].uri), "redis+unix://%s",
             targets[REDIS_UNIX].socket);
}

static void
start_memcached(enum target which)
{
    static const char *const one[]  = { "-t", "1", "-m", "4096", NULL };
    static const char *const four[] = { "-t", "4", "-m", "4096", NULL };

    one_server(&targets[which], test_memcached_start(which == MEMCACHED_UNIX ? 0 : TEST_SERVER_TCP,
                                                     which == MEMCACHED_T4 ? four : one));
}

static struct test_cluster *cluster;

static void
start_cluster(void)
{
    struct l2_target *target = &targets[CLUSTER];

    if (cluster == NULL)
        cluster = test_cluster_start(3, 0, 5000, NULL);
    if (cluster == NULL)
        return;
    target->keys = bench.keys;
    snprintf(target->uri, sizeof(target->uri), "%s", cluster->uri);
    if (!l2_ours_can(target))
        return;
    for (unsigned i = 0; i < cluster->nodes && i < L2_SERVERS_MAX; i++)
        target->servers[target->server_count++] = cluster->server[i];
}

static void
start_target(enum target which)
{
    if (targets[which].server_count > 0)
        return;
    if (which == CLUSTER)
        start_cluster();
    else if (which == REDIS || which == REDIS_UNIX)
        start_redis();
    else
        start_memcached(which);
}

static bool
has_redis(enum target which)
{
    return which == REDIS || which == REDIS_UNIX || which == CLUSTER;
}

/* What a stage's peers need and is not there yet.  Both of Redis's addresses show the same data. */
static void
fill_target(enum target which, bool ours)
{
    struct l2_target *target = &targets[which];
    bool             *filled = ours ? &target->ours_filled : &target->raw_filled;

    if (*filled || target->server_count == 0)
        return;
    if (ours)
        l2_ours_fill(target);
    else if (has_redis(which))
        l2_redis_fill(target);
    else
        l2_memcached_fill(target);
    *filled = true;
    if (which == REDIS || which == REDIS_UNIX) {
        targets[REDIS].raw_filled = targets[REDIS_UNIX].raw_filled = target->raw_filled;
        targets[REDIS].ours_filled = targets[REDIS_UNIX].ours_filled = target->ours_filled;
    }
}

/* ---- a stage */

static struct l2_race *
add_race(const struct stage *stage, const struct l2_peer *peer, const struct l2_target *target,
         unsigned threads, unsigned batch)
{
    struct l2_race *race = &bench.results.races[bench.results.n];

    if (bench.results.n == L2_RACES_MAX)
        l2_fail(stage->name, "too many numbers of threads");
    *race = (struct l2_race){
        .stage = stage->name, .peer = peer, .target = target, .threads = threads, .batch = batch
    };
    bench.results.n++;
    return race;
}

/* Every number of threads; redis-benchmark has 50 clients and one thread whatever is asked for. */
static void
add_races(const struct stage *stage, const struct l2_peer *peer, const unsigned *batches,
          const struct l2_target *target)
{
    const unsigned *threads = stage->threads[0] != 0 ? stage->threads : bench.threads;
    unsigned        n       = stage->threads[0] != 0 ? 4 : bench.thread_counts;

    if (peer->external) {
        add_race(stage, peer, target, 0, batches[0]);
        return;
    }
    for (unsigned t = 0; t < n && threads[t] != 0; t++)
        for (unsigned b = 0; b == 0 || (b < 4 && batches[b] != 0); b++) {
            unsigned batch = batches[b] != 0 ? batches[b] : 1;

            if (wanted_batch(batch))
                add_race(stage, peer, target, threads[t], batch);
        }
}

static void
prepare(const struct stage *stage)
{
    for (unsigned t = 0; t < stage->target_count; t++)
        start_target(stage->targets[t]);
    for (unsigned p = 0; stage->peers[p].peer != NULL; p++) {
        const struct l2_peer *peer = stage->peers[p].peer;
        if (bench.named != NULL && !listed(bench.named, peer->name, true))
            continue;
        for (unsigned t = 0; t < stage->target_count; t++) {
            enum target which = stage->targets[t];
            if (targets[which].server_count == 0)
                continue;
            fill_target(which, peer->ours);
            add_races(stage, peer, stage->peers[p].batches, &targets[which]);
        }
    }
}

#define DISTURBED 0.1

static bool
run_once(const struct l2_race *race, struct l2_figures *figures)
{
    if (race->peer->external)
        return l2_run_benchmark(race->target, bench.seconds, figures);
    l2_run(race->peer, race->target, race->threads, race->batch, bench.seconds, figures);
    return true;
}

static void
run_race(struct l2_race *race)
{
    struct l2_figures *best = &race->round[race->rounds], again;

    if (!run_once(race, best))
        return;
    for (unsigned i = 0; i < bench.retries && best->others > DISTURBED; i++)
        if (run_once(race, &again) && again.others < best->others) {
            again.wrong += best->wrong;
            *best = again;
        }
    race->rounds++;
}

static void
run_stage(const struct stage *stage)
{
    size_t first = bench.results.n, n;

    prepare(stage);
    n = bench.results.n - first;
    if (n == 0)
        printf("\n%s: not here\n", stage->title);
    for (unsigned round = 0; round < bench.rounds && n > 0; round++)
        for (size_t i = 0; i < n; i++)
            run_race(&bench.results.races[first + (i + round) % n]);
    if (n > 0)
        l2_table(&bench.results, stage->name, stage->title,
                 stage->target_count > 1 ? NULL : stage->peers[0].peer);
}

int
main(int argc, char **argv)
{
    unsigned missed = 0;

    if (!parse(argc, argv))
        return usage(argv[0]);
    printf("%ld processors; medians of %u rounds of %g s; %u keys of %d bytes, values of %d; nearcache %s\n",
           sysconf(_SC_NPROCESSORS_ONLN), bench.rounds, bench.seconds, bench.keys, L2_KEY_SIZE, L2_VALUE_SIZE,
           near_version());
    printf("latencies are a call's; CPU us per key: the client's process (the benchmark's own work included) "
           "and the server's; others: percent of the processors that went to neither\n");
    for (unsigned i = 0; i < STAGES; i++)
        if (bench.only == NULL || listed(bench.only, stages[i].name, false))
            run_stage(&stages[i]);
    if (bench.goals)
        missed = l2_goals(&bench.results);
    if (bench.tsv != NULL && !l2_tsv(&bench.results, bench.tsv))
        fprintf(stderr, "%s: %s cannot be written\n", argv[0], bench.tsv);
    test_cluster_stop(&cluster);
    test_servers_reap();
    return missed > 0;
}
