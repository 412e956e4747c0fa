/*
 * L1 beside its peers, in one run, through the public interface.
 *
 *     bench/l1 [OPTION...]         see usage() below
 *
 * Keys `user_feature_%08u`, values of 100 bytes, zipf 0.99 over scrambled ranks, sequences drawn beforehand.  A thread's keys lie in
 * the order of use, like those a request has just built: 3 ns a key, hash included.  Picked out of an array by number they cost
 * 24 ns in W1 (--keys-by-index), half the limit's time, and hide what is to be compared.
 *
 *     W1  every get a hit, 1 M keys; also in batches of 32, and copied out        W3  get or insert, room for 10 % of 1 M
 *     W2  the same with 10,000 keys                                               W4  95 % get, 5 % put, 1 M keys
 *
 * A stage opens all its peers and then goes round: in each round every peer runs every operation with every number of threads,
 * beginning with another peer each time, so that ratios can be taken within a round.  Single-threaded but for l1_run.c.
 */
#include "bench/l1.h"
#include "bench/median.h"

#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

enum { KEYS = 1000000, KEYS_HOT = 10000, BUDGET_MIB = 128 };

#define CHURN_SECONDS 1.5 /* in W3 before anything is timed: some ten times the room of the cache */

struct stage {
    const char *name, *title;
    uint32_t    keys, capacity; /* capacity 0: nothing is evicted */
    enum l1_op  ops[4];
    unsigned    op_count;
};

static const struct stage stages[] = {
    { "W1", "W1: every get a hit, 1000000 keys", KEYS, 0, { L1_GET, L1_MANY, L1_COPY }, 3 },
    { "W2", "W2: every get a hit, 10000 keys", KEYS_HOT, 0, { L1_GET, L1_MANY, L1_COPY }, 3 },
    { "W3", "W3: get or insert, room for 100000 of 1000000", KEYS, KEYS / 10, { L1_CHURN, L1_SAMPLED }, 2 },
    { "W4", "W4: 95 % get, 5 % put, 1000000 keys", KEYS, 0, { L1_MIXED }, 1 },
};
enum { STAGES = sizeof(stages) / sizeof(stages[0]) };

static struct bench {
    struct l1_peer    peers[L1_PEERS_MAX];
    unsigned          peer_count;
    char              policies[256];
    const char       *first_policy; /* the one the goals are held against */
    unsigned          threads[8], thread_counts, most_threads;
    unsigned          rounds, budget, retries;
    double            seconds;
    const char       *only, *named, *tsv;
    bool              check, stream, pin;
    char            **child; /* this process is one of l1_memory.c's */
    struct l1_results results;
} bench = {
    .policies      = "lru,s3fifo,sieve,tinylfu,lfu,adaptive",
    .threads       = { 1, 2 },
    .thread_counts = 2,
    .most_threads  = 2,
    .rounds        = 5,
    .retries       = 3,
    .seconds       = 0.3,
    .budget        = BUDGET_MIB,
    .stream        = true,
    .pin           = true,
};

static int
usage(const char *program)
{
    fprintf(
        stderr,
        "usage: %s [OPTION...]\n"
        "  --only LIST       of W1,W2,W3,W4,price,memory,budget (all)\n"
        "  --threads LIST    numbers of threads to run with (1,2)\n"
        "  --rounds N        (5)\n"
        "  --seconds S       of one peer, operation and round (0.3)\n"
        "  --policies LIST   l1.policy to try; what the library does not know is left out; goals are "
        "held against\n"
        "                    the first (lru,s3fifo,sieve,tinylfu,lfu,adaptive)\n"
        "  --peers LIST      only peers whose names contain one of these; sharded64, limit and nearcache "
        "for --check\n"
        "  --keys-by-index   keys lie in one array and are picked by number, often a cache miss more for "
        "everybody, instead\n"
        "                    of each thread's lying in the order of use\n"
        "  --no-pin          leave threads to the scheduler: where others use the machine, too\n"
        "  --retries N       of a run in which others kept threads off the processors, over 3 %% of it (3)\n"
        "  --budget [MIB]    only the memory of a cache filled far beyond l1.max_bytes (%d)\n"
        "  --quick           2 rounds of 0.1 s\n"
        "  --check           hold the figures against the goals; exit status 1 when one is missed\n"
        "  --tsv FILE        every round's figures, tab-separated\n",
        program, BUDGET_MIB);
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
wanted(const char *name)
{
    return bench.only == NULL || listed(bench.only, name, false);
}

static bool
parse_threads(const char *text)
{
    char *end;

    bench.thread_counts = bench.most_threads = 0;
    do {
        unsigned long n = strtoul(text, &end, 10);
        if (n == 0 || n > L1_THREADS_MAX || bench.thread_counts == 8 || (*end != ',' && *end != '\0'))
            return false;
        bench.threads[bench.thread_counts++] = (unsigned)n;
        bench.most_threads                   = n > bench.most_threads ? (unsigned)n : bench.most_threads;
        text                                 = end + 1;
    } while (*end == ',');
    return true;
}

static bool
parse_budget(const char *text)
{
    bench.only = "budget";
    if (text != NULL)
        bench.budget = (unsigned)strtoul(text, NULL, 10);
    return bench.budget > 0;
}

static bool
parse(int argc, char **argv)
{
    static const struct option options[] = {
        { "only", 1, NULL, 'o' },          { "threads", 1, NULL, 't' },  { "rounds", 1, NULL, 'r' },
        { "seconds", 1, NULL, 's' },       { "policies", 1, NULL, 'p' }, { "peers", 1, NULL, 'n' },
        { "keys-by-index", 0, NULL, 'k' }, { "no-pin", 0, NULL, 'P' },   { "retries", 1, NULL, 'R' },
        { "budget", 2, NULL, 'b' },        { "quick", 0, NULL, 'q' },    { "check", 0, NULL, 'c' },
        { "tsv", 1, NULL, 'v' },           { "child", 0, NULL, 'C' },    { NULL, 0, NULL, 0 },
    };
    bool ok = true;

    for (int c; ok && (c = getopt_long(argc, argv, "+", options, NULL)) != -1;)
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
        case 'p':
            snprintf(bench.policies, sizeof(bench.policies), "%s", optarg);
            break;
        case 'n':
            bench.named = optarg;
            break;
        case 'k':
            bench.stream = false;
            break;
        case 'R':
            bench.retries = (unsigned)strtoul(optarg, NULL, 10);
            break;
        case 'P':
            bench.pin = false;
            break;
        case 'b':
            ok = parse_budget(optarg != NULL || optind == argc || argv[optind][0] == '-' ? optarg
                                                                                         : argv[optind++]);
            break;
        case 'q':
            bench.rounds = 2, bench.seconds = 0.1;
            break;
        case 'c':
            bench.check = true;
            break;
        case 'v':
            bench.tsv = optarg;
            break;
        case 'C':
            bench.child = argv + optind;
            return argc - optind == 3;
        default:
            ok = false;
        }
    return ok && optind == argc && bench.rounds > 0 && bench.rounds <= L1_ROUNDS_MAX && bench.seconds > 0;
}

/* ---- peers */

static void
add(const struct l1_peer *peer)
{
    if (bench.peer_count < L1_PEERS_MAX && (bench.named == NULL || listed(bench.named, peer->name, true)))
        bench.peers[bench.peer_count++] = *peer;
}

static void
add_rivals(void)
{
    add(&l1_baseline);
    add(&l1_limit);
    add(&l1_sharded64);
    add(&l1_one_mutex);
#ifdef HAVE_URCU
    add(&l1_rcu);
#endif
#ifdef HAVE_TBB
    add(&l1_tbb_map);
    add(&l1_tbb_lru);
#endif
    add(&l1_caffeine);
}

/* Batches, copies and TTLs are measured for the first policy; they differ no more between policies than the gets do. */
static void
add_ours(void)
{
    struct l1_peer peer;

    for (char *policy = strtok(bench.policies, ","); policy != NULL; policy = strtok(NULL, ",")) {
        if (!l1_ours(&peer, policy, false)) {
            if (bench.child == NULL)
                printf("without l1.policy=%s: the library does not know it\n", policy);
            continue;
        }
        if (bench.first_policy != NULL)
            peer.loops[L1_MANY] = peer.loops[L1_COPY] = NULL;
        add(&peer);
        if (bench.first_policy != NULL)
            continue;
        bench.first_policy = policy;
        l1_ours(&peer, policy, true);
        peer.loops[L1_MANY] = peer.loops[L1_COPY] = peer.loops[L1_CHURN] = peer.loops[L1_SAMPLED] = NULL;
        add(&peer);
    }
}

/* ---- a stage */

struct entrant {
    const struct l1_peer *peer;
    void                 *cache;
    size_t                at[L1_THREADS_MAX];
    struct l1_race       *races[8][4]; /* by number of threads and operation; NULL: does not take part */
};

static bool
takes_part(const struct stage *stage, const struct l1_peer *peer)
{
    for (unsigned i = 0; i < stage->op_count; i++)
        if (peer->loops[stage->ops[i]] != NULL)
            return true;
    return false;
}

/* Filled, or where entries are evicted: churned until what it keeps no longer depends on how it began. */
static bool
prepare(const struct stage *stage, struct entrant *entrant, const struct l1_world *world)
{
    struct l1_figures ignored;

    if (stage->capacity == 0)
        return entrant->peer->run != NULL || l1_fill(entrant->peer, entrant->cache, world, stage->keys);
    return l1_run(entrant->peer, entrant->cache, world, L1_CHURN, 1, fmax(CHURN_SECONDS, 3 * bench.seconds),
                  entrant->at, &ignored);
}

static bool
enter(const struct stage *stage, const struct l1_peer *peer, const struct l1_world *world,
      struct entrant *entrant)
{
    const char *why = "out of memory";

    *entrant = (struct entrant){ .peer = peer, .cache = peer->open(peer, world, stage->capacity, &why) };
    if (entrant->cache == NULL || !prepare(stage, entrant, world)) {
        printf("%s: without %s: %s\n", stage->name, peer->name,
               entrant->cache == NULL ? why : "it could not be filled");
        return false;
    }
    for (unsigned t = 0; t < bench.thread_counts; t++)
        for (unsigned i = 0; i < stage->op_count; i++)
            if (peer->loops[stage->ops[i]] != NULL)
                entrant->races[t][i] =
                    l1_race_add(&bench.results, stage->title, peer, stage->ops[i], bench.threads[t]);
    return true;
}

static void
run_entrant(const struct stage *stage, struct entrant *entrant, const struct l1_world *world)
{
    for (unsigned t = 0; t < bench.thread_counts; t++)
        for (unsigned i = 0; i < stage->op_count; i++) {
            struct l1_race *race = entrant->races[t][i];
            if (race != NULL && l1_run(entrant->peer, entrant->cache, world, race->op, race->threads,
                                       bench.seconds, entrant->at, &race->round[race->rounds]))
                race->rounds++;
        }
}

static void
run_stage(const struct stage *stage, const struct l1_world *world)
{
    static struct entrant entrants[L1_PEERS_MAX];
    unsigned              n = 0;

    for (unsigned i = 0; i < bench.peer_count; i++)
        if (takes_part(stage, &bench.peers[i]))
            n += enter(stage, &bench.peers[i], world, &entrants[n]);
    for (unsigned round = 0; round < bench.rounds; round++)
        for (unsigned i = 0; i < n; i++)
            run_entrant(stage, &entrants[(i + round) % n], world);
    for (unsigned t = 0; t < bench.thread_counts; t++)
        l1_table(&bench.results, stage->title, bench.threads[t]);
    for (unsigned i = 0; i < n; i++)
        entrants[i].peer->close(entrants[i].cache);
}

static bool
run_stages(void)
{
    struct l1_world world = { 0 };

    for (unsigned i = 0; i < STAGES; i++) {
        if (!wanted(stages[i].name))
            continue;
        if (world.keys != stages[i].keys) {
            if (world.keys != 0)
                l1_world_close(&world);
            if (!l1_world_open(&world, stages[i].keys, bench.most_threads, bench.stream))
                return false;
            world.pin     = bench.pin;
            world.retries = bench.retries;
        }
        run_stage(&stages[i], &world);
    }
    if (world.keys != 0)
        l1_world_close(&world);
    return true;
}

/* ---- what options cost a hit */

/* Hits of one thread with one counter more, and with each option, over those without, round by round.  The second without is the control: how far from 1 a ratio of
 * the same thing comes here. */
static void
measure_price(void)
{
    enum { WITHOUT, AGAIN, COUNTER, CURVE, LOG, KINDS };
    static const char *const names[KINDS] = { "", "without, again", "one counter more", "l1.curve=yes",
                                              "log.requests" };
    static double            ns[KINDS][L1_ROUNDS_MAX];
    char                     dir[] = P_tmpdir "/near-price-XXXXXX", file[64], log[80];
    static struct entrant    entrants[KINDS];
    const char              *why   = "no memory, or no directory";
    struct l1_world          world = { 0 };
    struct l1_peer           peers[KINDS];
    struct l1_figures        figures;
    bool                     ok = mkdtemp(dir) != NULL && l1_world_open(&world, KEYS_HOT, 1, bench.stream);

    world.pin     = bench.pin;
    world.retries = bench.retries;
    snprintf(file, sizeof(file), "%s/log", dir);
    snprintf(log, sizeof(log), "%s.bench", file); /* the cache's name */
    for (int i = 0; i < KINDS; i++) {
        l1_ours(&peers[i], bench.first_policy, false);
        peers[i].option  = i == CURVE ? "l1.curve" : i == LOG ? "log.requests" : NULL;
        peers[i].setting = i == CURVE ? "yes" : file;
        entrants[i].peer = &peers[i];
        if (i == COUNTER)
            l1_ours_count_more(&peers[i]);
        if (ok)
            entrants[i].cache = peers[i].open(&peers[i], &world, 0, &why);
        ok = ok && entrants[i].cache != NULL && l1_fill(&peers[i], entrants[i].cache, &world, KEYS_HOT);
    }
    for (unsigned round = 0; ok && round < bench.rounds; round++)
        for (unsigned i = 0; ok && i < KINDS; i++) {
            struct entrant *entrant = &entrants[(i + round) % KINDS];

            ok = l1_run(entrant->peer, entrant->cache, &world, L1_GET, 1, bench.seconds, entrant->at,
                        &figures);
            /* of CPU, which others on the machine disturb less */
            ns[(i + round) % KINDS][round] = figures.ns * figures.cpu;
        }
    for (int kind = AGAIN; ok && kind < KINDS; kind++) {
        for (unsigned round = 0; round < bench.rounds; round++)
            ns[kind][round] /= ns[WITHOUT][round];
        printf("price of a hit, %s: %.3f of one without (median of %u rounds)\n", names[kind],
               median(ns[kind], bench.rounds), bench.rounds);
    }
    if (!ok)
        printf("price: not measured: %s\n", why);
    for (int i = 0; i < KINDS; i++)
        if (entrants[i].cache != NULL)
            peers[i].close(entrants[i].cache);
    if (world.keys != 0)
        l1_world_close(&world);
    unlink(log);
    rmdir(dir);
}

/* ---- memory */

static void
measure_memory(void)
{
    for (unsigned i = 0; i < bench.peer_count && wanted("memory"); i++) {
        const struct l1_peer *peer = &bench.peers[i];
        if (peer->open == l1_baseline.open)
            continue;
        l1_memory_add(&bench.results, peer, "plain", l1_bytes_per_entry(peer, L1_PLAIN, KEYS), 0);
        if (peer->policy == bench.first_policy && !peer->ttl)
            l1_memory_add(&bench.results, peer, "L2-backed", l1_bytes_per_entry(peer, L1_L2_BACKED, KEYS), 0);
    }
    for (unsigned i = 0; i < bench.peer_count && wanted("budget"); i++) {
        const struct l1_peer *peer   = &bench.peers[i];
        double                budget = (double)bench.budget * (1 << 20), growth, counted;
        if (peer->policy == NULL || peer->ttl)
            continue;
        if (l1_budget(peer, (uint64_t)budget, &growth, &counted))
            l1_memory_add(&bench.results, peer, "budget", growth / budget, counted / budget);
        else
            l1_memory_add(&bench.results, peer, "budget", -1, 0);
    }
}

static void
introduce(void)
{
    printf("%u processors; medians of %u rounds of %g s; keys %s; nearcache %s\n", l1_processors(),
           bench.rounds, bench.seconds, bench.stream ? "in order of use" : "by index", near_version());
    printf("every ns/op contains \"key and hash alone\"; t/limit: time over the limit's for the same "
           "operation (batches: the\n"
           "limit's batches; else its single get); batches and copies over sharded64: over its single get; "
           "cpu: process CPU over\n"
           "wall, less than the threads means a disturbed round; %llu ns of timing are subtracted from a "
           "sampled get\n",
           (unsigned long long)((double)l1_tick_overhead() * l1_tick_ns()));
#ifndef HAVE_URCU
    printf("without liburcu: this build has not found it (package liburcu-dev)\n");
#endif
#ifndef HAVE_TBB
    printf("without oneTBB: this build has not found it, or no C++ compiler (package libtbb-dev)\n");
#endif
}

int
main(int argc, char **argv)
{
    unsigned missed = 0;

    if (!parse(argc, argv))
        return usage(argv[0]);
    if (bench.child != NULL) {
        freopen("/dev/null", "w", stderr);
        bench.named = bench.child[1];
    }
    add_rivals();
    add_ours();
    if (bench.child != NULL)
        return l1_child(bench.peers, bench.peer_count, bench.child);
    introduce();
    if (!run_stages()) {
        fprintf(stderr, "%s: out of memory\n", argv[0]);
        return 2;
    }
    l1_scaling(&bench.results);
    if (wanted("price") && bench.first_policy != NULL)
        measure_price();
    measure_memory();
    l1_memory_table(&bench.results);
    if (bench.check && bench.first_policy != NULL)
        missed = l1_check(&bench.results, bench.first_policy);
    if (bench.tsv != NULL && !l1_tsv(&bench.results, bench.tsv))
        fprintf(stderr, "%s: %s cannot be written\n", argv[0], bench.tsv);
    return missed > 0;
}
