/*
 * Every eviction policy on every trace, beside the figures expected of it.
 *
 *     bench/policies [-d DIRECTORY] [-p POLICY,...] [-h]
 *
 * One row per trace and capacity; per policy the hit ratio in % of the production run, the exact run with the guards off, and its
 * distance in points to expected.tsv.  Then what adaptive is judged by: its distance to lru and to the best fixed policy at each
 * point.  -p chooses policies, -h adds the long hmget trace and some synthetic ones (all of them held out: no constant was
 * chosen by them), -t times each production run, in ns an access.
 */
#include "harness/trace.h"

#include "base/clock.h"
#include "base/hash.h"
#include "l1/simulate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { POINTS_MAX = 128, POLICIES_MAX = 16 };

struct trace {
    uint64_t *hashes;
    size_t    count, room;
};

struct point {
    const char *trace;
    size_t      capacity;
    double      production[POLICIES_MAX]; /* in %, < 0: was not run */
};

static struct point points[POINTS_MAX];
static size_t       point_count;
static const char  *directory = TEST_DATA "/traces", *chosen;
static bool         long_ones, timed;

/* ---- traces */

static void
trace_add(struct trace *trace, uint64_t hash)
{
    if (trace->count == trace->room) {
        trace->room   = trace->room == 0 ? 1 << 16 : 2 * trace->room;
        trace->hashes = realloc(trace->hashes, trace->room * sizeof(*trace->hashes));
        if (trace->hashes == NULL) {
            fputs("no memory for the trace\n", stderr);
            exit(1);
        }
    }
    trace->hashes[trace->count++] = hash;
}

static uint64_t
number_hash(uint64_t number)
{
    return near__hash_fixed((near_bytes){ &number, sizeof(number) });
}

static bool
trace_load(struct trace *trace, const char *name)
{
    char               path[512];
    struct test_trace *file;
    near_bytes         key;

    snprintf(path, sizeof(path), "%s/%s.keys.zst", directory, name);
    file = test_trace_open(path);
    if (file == NULL)
        return false;
    while (test_trace_next(file, &key))
        trace_add(trace, near__hash_fixed(key));
    return test_trace_close(&file);
}

/* ---- synthetic ones */

static uint64_t random_state;

static uint64_t
random_next(void)
{
    uint64_t x = (random_state += 0x9e3779b97f4a7c15u); /* splitmix64 */

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static double
random_unit(void)
{
    return (double)(random_next() >> 11) * 0x1p-53;
}

struct zipf {
    size_t  count;
    double *sums;
};

static struct zipf
zipf_new(size_t count, double skew)
{
    struct zipf zipf = { count, malloc(count * sizeof(double)) };
    double      sum  = 0;

    for (size_t i = 0; i < count; i++)
        zipf.sums[i] = sum += pow((double)(i + 1), -skew);
    return zipf;
}

static size_t
zipf_next(const struct zipf *zipf)
{
    double at  = random_unit() * zipf->sums[zipf->count - 1];
    size_t low = 0, high = zipf->count - 1;

    while (low < high) {
        size_t middle = (low + high) / 2;
        if (zipf->sums[middle] < at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void
synthetic_zipf(struct trace *trace, double skew)
{
    struct zipf zipf = zipf_new(100000, skew);

    for (int i = 0; i < 1000000; i++)
        trace_add(trace, number_hash(zipf_next(&zipf)));
    free(zipf.sums);
}

/* Round and round over `keys`. */
static void
synthetic_loop(struct trace *trace, size_t keys)
{
    for (size_t i = 0; i < 600000; i++)
        trace_add(trace, number_hash(i % keys));
}

/* Every 50 000 requests a scan of 20 000 new keys through a zipf. */
static void
synthetic_scans(struct trace *trace)
{
    struct zipf zipf = zipf_new(50000, 0.9);
    uint64_t    scan = UINT64_C(1) << 40;

    for (int i = 0; i < 800000; i++) {
        trace_add(trace, number_hash(zipf_next(&zipf)));
        if (i % 50000 == 0)
            for (int j = 0; j < 20000; j++)
                trace_add(trace, number_hash(scan++));
    }
    free(zipf.sums);
}

/* A zipf whose keys move on by one rank's worth of keys every few requests. */
static void
synthetic_drift(struct trace *trace)
{
    struct zipf zipf = zipf_new(50000, 0.9);

    for (size_t i = 0; i < 1000000; i++) {
        size_t rank = zipf_next(&zipf);
        trace_add(trace, number_hash(rank * 50000 + (i + rank * 7919) / 100000));
    }
    free(zipf.sums);
}

/* Reuse by recency: the next key is one used `distance` requests ago, the distances falling off, or a new one. */
static void
synthetic_recency(struct trace *trace)
{
    uint64_t fresh = 0;

    for (size_t i = 0; i < 800000; i++) {
        double distance = -6000 * log(1 - random_unit());
        if (i > 100 && random_unit() < 0.8 && distance < (double)trace->count - 1)
            trace_add(trace, trace->hashes[trace->count - 1 - (size_t)distance]);
        else
            trace_add(trace, number_hash(fresh++));
    }
}

/* Zipf, loop and recency in turn, 100 000 each. */
static void
synthetic_turns(struct trace *trace)
{
    struct zipf zipf  = zipf_new(30000, 1.0);
    uint64_t    fresh = UINT64_C(1) << 40;

    for (size_t i = 0; i < 1200000; i++) {
        size_t phase = i / 100000 % 3, base = (i / 300000 % 2) << 20;
        if (phase == 0)
            trace_add(trace, number_hash(base + zipf_next(&zipf)));
        else if (phase == 1)
            trace_add(trace, number_hash((UINT64_C(2) << 40) + i % 11000));
        else
            trace_add(trace,
                      i % 2 ? trace->hashes[trace->count - 1 - random_next() % 3000] : number_hash(fresh++));
    }
    free(zipf.sums);
}

/* The fields of HMGET lines of a MONITOR log; its quoted arguments hold no escapes here. */
static void
load_hmget(struct trace *trace)
{
    char     command[600], *line = NULL;
    size_t   room = 0;
    uint64_t entity;
    FILE    *pipe;

    snprintf(command, sizeof(command), "zstd -dc '%s/hmget-feature-store.log.zst'", directory);
    pipe = popen(command, "r");
    while (pipe != NULL && getline(&line, &room, pipe) > 0) {
        char *at = strstr(line, "\"HMGET\" \""), *end;
        if (at == NULL)
            continue;
        at += 9;
        end    = strchr(at, '"');
        entity = near__hash_fixed((near_bytes){ at, (size_t)(end - at) });
        while ((at = strchr(end + 1, '"')) != NULL && (end = strchr(at + 1, '"')) != NULL)
            trace_add(trace, near__hash_fixed2((near_bytes){ &entity, sizeof(entity) },
                                               (near_bytes){ at + 1, (size_t)(end - at - 1) }));
    }
    free(line);
    if (pipe != NULL)
        pclose(pipe);
}

/* ---- runs */

static double
run_one(const struct trace *trace, const struct near__simulator_config *config, double *ns, double *bytes)
{
    struct near__simulator      *simulator;
    struct near__simulator_bytes used;
    size_t                       hits  = 0;
    int64_t                      start = near__now(&near__clock_system);

    if (near__simulator_open(&simulator, config) != NEAR_OK)
        return -1;
    for (size_t i = 0; i < trace->count; i++)
        hits += near__simulator_access(simulator, trace->hashes[i]);
    *ns    = (double)(near__now(&near__clock_system) - start) / (double)trace->count;
    used   = near__simulator_bytes(simulator);
    *bytes = (double)(used.index + used.policy + used.pool) / (double)used.entries;
    near__simulator_close(&simulator);
    return 100.0 * (double)hits / (double)trace->count;
}

static bool
is_chosen(const char *policy)
{
    size_t      size = strlen(policy);
    const char *at   = chosen;

    while (at != NULL && (at = strstr(at, policy)) != NULL) {
        if ((at == chosen || at[-1] == ',') && (at[size] == ',' || at[size] == '\0'))
            return true;
        at++;
    }
    return chosen == NULL;
}

static void
run_point(const struct trace *trace, const char *name, size_t capacity)
{
    struct point *point = &points[point_count++];
    double        ns, bytes, exact_bytes, exact, ignored;

    *point = (struct point){ name, capacity, { 0 } };
    printf("%-14s %7zu\n", name, capacity);
    for (size_t i = 0; near__policies[i] != NULL; i++) {
        const char                   *policy = near__policies[i]->name;
        struct near__simulator_config config = { policy, capacity, 0, false, false };
        int64_t                       expected;

        point->production[i] = -1;
        if (!is_chosen(policy))
            continue;
        expected             = test_trace_expected(directory, name, capacity, policy);
        point->production[i] = run_one(trace, &config, &ns, &bytes);
        config.exact         = true;
        exact                = run_one(trace, &config, &ignored, &exact_bytes);
        printf("    %-9s %6.2f   exact %6.2f", policy, point->production[i], exact);
        if (expected >= 0)
            printf("   expected %6.2f: %+6.2f, exact %+8.4f (%+.0f hits)",
                   100.0 * (double)expected / (double)trace->count,
                   point->production[i] - 100.0 * (double)expected / (double)trace->count,
                   exact - 100.0 * (double)expected / (double)trace->count,
                   exact * (double)trace->count / 100 - (double)expected);
        printf("   %5.1f B", bytes);
        if (timed)
            printf("   %5.1f ns", ns);
        puts("");
    }
    fflush(stdout);
}

static void
run_trace(struct trace *trace, const char *name, const size_t *capacities)
{
    for (; *capacities != 0 && point_count < POINTS_MAX; capacities++)
        run_point(trace, name, *capacities);
    free(trace->hashes);
    *trace = (struct trace){ 0 };
}

static void
run_file(const char *name, const size_t *capacities)
{
    struct trace trace = { 0 };

    if (trace_load(&trace, name))
        run_trace(&trace, name, capacities);
}

static void
run_long(void)
{
    static const size_t some[]  = { 500, 2000, 5000, 10000, 20000, 0 };
    static const size_t hmget[] = { 1000, 10000, 50000, 100000, 250000, 500000, 0 };
    struct trace        trace   = { 0 };

    random_state = 1;
    synthetic_zipf(&trace, 0.7);
    run_trace(&trace, "zipf 0.7", some);
    synthetic_zipf(&trace, 1.0);
    run_trace(&trace, "zipf 1.0", some);
    synthetic_zipf(&trace, 1.3);
    run_trace(&trace, "zipf 1.3", some);
    synthetic_loop(&trace, 2200);
    run_trace(&trace, "loop 2200", some);
    synthetic_loop(&trace, 11000);
    run_trace(&trace, "loop 11000", some);
    synthetic_scans(&trace);
    run_trace(&trace, "scans", some);
    synthetic_drift(&trace);
    run_trace(&trace, "drift", some);
    synthetic_recency(&trace);
    run_trace(&trace, "recency", some);
    synthetic_turns(&trace);
    run_trace(&trace, "turns", some);
    load_hmget(&trace);
    if (trace.count != 0)
        run_trace(&trace, "hmget-feature-store", hmget);
}

/* ---- what adaptive is judged by */

static void
judge(void)
{
    size_t adaptive = SIZE_MAX, lru = 0, judged = 0, near = 0, nearer = 0, phases = 0;
    double worst_lru = 1e9, sum = 0, sum_best = 0, sum_phases = 0;

    for (size_t i = 0; near__policies[i] != NULL; i++) {
        adaptive = strcmp(near__policies[i]->name, "adaptive") == 0 ? i : adaptive;
        lru      = strcmp(near__policies[i]->name, "lru") == 0 ? i : lru;
    }
    if (adaptive == SIZE_MAX || !is_chosen("adaptive"))
        return;
    puts("adaptive, to lru, to the best fixed policy");
    for (size_t i = 0; i < point_count; i++) {
        const double *ratio = points[i].production;
        size_t        best  = lru;
        for (size_t j = 0; near__policies[j] != NULL; j++)
            if (j != adaptive && ratio[j] > ratio[best])
                best = j;
        printf("%-20s %7zu  %6.2f  %+6.2f  %+6.2f %s\n", points[i].trace, points[i].capacity, ratio[adaptive],
               ratio[adaptive] - ratio[lru], ratio[adaptive] - ratio[best], near__policies[best]->name);
        judged++;
        nearer += ratio[adaptive] >= ratio[best] - 0.5;
        near += ratio[adaptive] >= ratio[best] - 1;
        sum += ratio[adaptive];
        sum_best += ratio[best];
        if (ratio[adaptive] - ratio[lru] < worst_lru)
            worst_lru = ratio[adaptive] - ratio[lru];
        if (strcmp(points[i].trace, "phases") == 0) {
            sum_phases += ratio[adaptive];
            phases++;
        }
    }
    printf("%zu points: mean %.2f (best fixed each: %.2f), worst to lru %+.2f, within 0.5 of the best %zu, "
           "within 1 %zu\n",
           judged, sum / (double)judged, sum_best / (double)judged, worst_lru, nearer, near);
    if (phases != 0)
        printf("phases: mean %.2f\n", sum_phases / (double)phases);
}

int
main(int argc, char **argv)
{
    static const size_t web12[]  = { 138, 688, 1376, 3439, 0 };
    static const size_t orm[]    = { 414, 2068, 4135, 10338, 0 };
    static const size_t oltp[]   = { 187, 1869, 9344, 18688, 46720, 0 };
    static const size_t phases[] = { 200, 2004, 10020, 20041, 50102, 0 };
    int                 option;

    while ((option = getopt(argc, argv, "d:p:ht")) != -1) {
        directory = option == 'd' ? optarg : directory;
        chosen    = option == 'p' ? optarg : chosen;
        long_ones |= option == 'h';
        timed |= option == 't';
        if (option == '?')
            return 2;
    }
    run_file("web12", web12);
    run_file("orm-night-1m", orm);
    run_file("oltp", oltp);
    run_file("phases", phases);
    judge();
    if (long_ones) {
        point_count = 0;
        run_long();
        judge();
    }
    return 0;
}
