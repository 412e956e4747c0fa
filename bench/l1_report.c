/*
 * What was measured, as tables, as tab-separated values, and held against the goals.
 *
 * A figure is the median over the rounds; a ratio is the median over the rounds of the ratio within a round, with its least and its
 * greatest, because the machine changes more from round to round than from peer to peer.
 */
#include "bench/l1.h"
#include "bench/median.h"

#include <math.h>
#include <stdlib.h>

static const char *const op_names[L1_OPS] = {
    [L1_GET] = "get",     [L1_MANY] = "many of 32", [L1_COPY] = "copied out",
    [L1_CHURN] = "churn", [L1_SAMPLED] = "sampled", [L1_MIXED] = "95/5"
};

struct l1_race *
l1_race_add(struct l1_results *results, const char *stage, const struct l1_peer *peer, enum l1_op op,
            unsigned threads)
{
    struct l1_race *race;

    if (results->races == NULL)
        results->races = calloc(L1_RACES_MAX, sizeof(*results->races));
    if (results->races == NULL || results->n == L1_RACES_MAX)
        return NULL;
    race  = &results->races[results->n++];
    *race = (struct l1_race){ .stage = stage, .peer = peer, .op = op, .threads = threads };
    return race;
}

void
l1_memory_add(struct l1_results *results, const struct l1_peer *peer, const char *kind, double bytes,
              double counted)
{
    if (results->memory_n < sizeof(results->memory) / sizeof(results->memory[0]))
        results->memory[results->memory_n++] = (struct l1_memory_row){ peer, kind, bytes, counted };
}

/* ---- figures of a race */

static double
middle(const struct l1_race *race, size_t field)
{
    double values[L1_ROUNDS_MAX];

    if (race == NULL)
        return NAN;
    for (unsigned i = 0; i < race->rounds; i++)
        memcpy(&values[i], (const char *)&race->round[i] + field, sizeof(double));
    return spread_of(values, race->rounds).middle;
}
#define MIDDLE(race, field) middle(race, offsetof(struct l1_figures, field))

/* Throughput of `a` over that of `b`. */
static struct spread
ratio(const struct l1_race *a, const struct l1_race *b)
{
    double   values[L1_ROUNDS_MAX];
    unsigned n = 0;

    for (; a != NULL && b != NULL && n < a->rounds && n < b->rounds; n++)
        values[n] = a->round[n].rate / b->round[n].rate;
    return spread_of(values, n);
}

/* Time per operation of `a` over that of `b`. */
static struct spread
time_ratio(const struct l1_race *a, const struct l1_race *b)
{
    double   values[L1_ROUNDS_MAX];
    unsigned n = 0;

    for (; a != NULL && b != NULL && n < a->rounds && n < b->rounds; n++)
        values[n] = a->round[n].ns / b->round[n].ns;
    return spread_of(values, n);
}

static const struct l1_race *
race_of(const struct l1_results *results, const char *stage, const char *peer, enum l1_op op,
        unsigned threads)
{
    for (size_t i = 0; i < results->n; i++) {
        const struct l1_race *race = &results->races[i];
        if (race->rounds > 0 && strcmp(race->stage, stage) == 0 && strcmp(race->peer->name, peer) == 0 &&
            race->op == op && race->threads == threads)
            return race;
    }
    return NULL;
}

/* What a race is compared with: batches and copies with the yardstick's single get. */
static const struct l1_race *
yardstick(const struct l1_results *results, const struct l1_race *race)
{
    return race_of(results, race->stage, l1_sharded64.name,
                   race->op == L1_CHURN || race->op == L1_MIXED ? race->op : L1_GET, race->threads);
}

static const struct l1_race *
limit_of(const struct l1_results *results, const struct l1_race *race)
{
    return race_of(results, race->stage, l1_limit.name, race->op == L1_MANY ? L1_MANY : L1_GET,
                   race->threads);
}

static bool
is_wrong(const struct l1_race *race)
{
    for (unsigned i = 0; i < race->rounds; i++)
        if (race->round[i].wrong)
            return true;
    return false;
}

/* ---- tables */

static void
print_row(const struct l1_results *results, const struct l1_race *race)
{
    char                  name[64], over[16] = "", hits[16] = "";
    struct spread         times = ratio(race, yardstick(results, race));
    double                limit = time_ratio(race, limit_of(results, race)).middle;
    const struct l1_race *sampled =
        race_of(results, race->stage, race->peer->name, L1_SAMPLED, race->threads);

    if (race->op == L1_MANY || race->op == L1_COPY)
        snprintf(name, sizeof(name), "%s, %s", race->peer->name, op_names[race->op]);
    else
        snprintf(name, sizeof(name), "%s", race->peer->name);
    if (race->peer->open == l1_baseline.open) {
        printf("  %-38s %8.1f\n", name, MIDDLE(race, ns));
        return;
    }
    if (!isnan(limit))
        snprintf(over, sizeof(over), "%.2f", limit);
    snprintf(hits, sizeof(hits), "%.1f%%", 100 * MIDDLE(race, hits));
    printf("  %-38s %8.1f", name, MIDDLE(race, ns));
    if (isnan(times.middle))
        printf("  %-22s", "");
    else
        printf("  x%-5.2f (%5.2f..%5.2f)  ", times.middle, times.least, times.most);
    printf(" %7s %7s %6.2f %5.1f%%", over, hits, MIDDLE(race, cpu), 100 * MIDDLE(race, waited));
    if (sampled != NULL)
        printf("  %6.0f %6.0f %8.0f", MIDDLE(sampled, p50), MIDDLE(sampled, p99), MIDDLE(sampled, p999));
    printf("%s\n", is_wrong(race) ? "  WRONG ANSWERS" : "");
}

void
l1_table(const struct l1_results *results, const char *stage, unsigned threads)
{
    bool churn = false;

    for (size_t i = 0; i < results->n; i++)
        churn = churn || (results->races[i].op == L1_CHURN && strcmp(results->races[i].stage, stage) == 0);
    printf("\n%s, %u thread%s\n", stage, threads, threads == 1 ? "" : "s");
    printf("  %-38s %8s  %-22s  %7s %7s %6s %6s%s\n", "", "ns/op", "throughput/sharded64", "t/limit", "hits",
           "cpu", "waited", churn ? "     p50    p99    p99.9 ns of a get" : "");
    for (size_t i = 0; i < results->n; i++) {
        const struct l1_race *race = &results->races[i];
        if (race->rounds > 0 && race->op != L1_SAMPLED && race->threads == threads &&
            strcmp(race->stage, stage) == 0)
            print_row(results, race);
    }
    fflush(stdout);
}

static bool
reads(const struct l1_race *race)
{
    return race->op == L1_GET || race->op == L1_MANY || race->op == L1_COPY;
}

void
l1_scaling(const struct l1_results *results)
{
    bool titled = false;

    for (size_t i = 0; i < results->n; i++) {
        const struct l1_race *race = &results->races[i], *one;
        struct spread         times;
        if (!reads(race) || race->threads == 1)
            continue;
        one   = race_of(results, race->stage, race->peer->name, race->op, 1);
        times = ratio(race, one);
        if (isnan(times.middle))
            continue;
        if (!titled)
            printf("\nThroughput of several threads over one's, reads\n");
        titled = true;
        printf("  %-4.4s %-28s %-12s %3u threads  x%.2f (%.2f..%.2f)\n", race->stage, race->peer->name,
               op_names[race->op], race->threads, times.middle, times.least, times.most);
    }
}

void
l1_memory_table(const struct l1_results *results)
{
    if (results->memory_n > 0)
        printf("\nMemory, resident set, each in a fresh process\n");
    for (size_t i = 0; i < results->memory_n; i++) {
        const struct l1_memory_row *row    = &results->memory[i];
        bool                        budget = strcmp(row->kind, "budget") == 0;
        printf("  %-30s %-10s ", row->peer->name, row->kind);
        if (isnan(row->bytes) || row->bytes == -1)
            printf("failed\n");
        else if (budget)
            printf("%6.1f %% of l1.max_bytes at most (counted by the library: %.1f %%)\n", 100 * row->bytes,
                   100 * row->counted);
        else
            printf("%6.1f bytes per entry beside key and value%s\n", row->bytes,
                   row->peer->run != NULL ? " (heap in use, not resident)" : "");
    }
    fflush(stdout);
}

bool
l1_tsv(const struct l1_results *results, const char *path)
{
    FILE *file = fopen(path, "w");

    if (file == NULL)
        return false;
    fprintf(file, "stage\tpeer\toperation\tthreads\tround\tns\trate\tcpu\thits\twaited\tp50\tp99\tp999\n");
    for (size_t i = 0; i < results->n; i++)
        for (unsigned k = 0; k < results->races[i].rounds; k++) {
            const struct l1_race    *race = &results->races[i];
            const struct l1_figures *f    = &race->round[k];
            fprintf(file, "%.2s\t%s\t%s\t%u\t%u\t%.3f\t%.0f\t%.3f\t%.5f\t%.4f\t%.0f\t%.0f\t%.0f\n",
                    race->stage, race->peer->name, op_names[race->op], race->threads, k, f->ns, f->rate,
                    f->cpu, f->hits, f->waited, f->p50, f->p99, f->p999);
        }
    for (size_t i = 0; i < results->memory_n; i++)
        fprintf(file, "memory\t%s\t%s\t\t\t%.3f\n", results->memory[i].peer->name, results->memory[i].kind,
                results->memory[i].bytes);
    return fclose(file) == 0;
}

/* ---- goals */

enum measure { OVER_SHARDED, OVER_LIMIT, OVER_ONE_THREAD, HITS, P999, CPU };

/* Exact LRU is expected to hit 76.63 % of W3's stream (Che, Tung and Wang's approximation; the peers show it), so lru may not fall
 * below 76.5; the best that a fixed choice of keys could do is 83.0 %. */
static const struct goal {
    const char  *stage, *policy; /* policy NULL: the one that reads are judged by */
    enum l1_op   op;
    unsigned     threads;
    enum measure measure;
    double       bound;
} goals[] = {
    { "W1", NULL, L1_GET, 1, OVER_SHARDED, 2.5 },
    { "W1", NULL, L1_GET, 2, OVER_SHARDED, 4.2 },
    { "W1", NULL, L1_GET, 1, OVER_LIMIT, 1.6 },
    { "W1", NULL, L1_MANY, 1, OVER_SHARDED, 5 },
    { "W1", NULL, L1_MANY, 2, OVER_SHARDED, 8.5 },
    { "W2", NULL, L1_GET, 1, OVER_LIMIT, 1.5 },
    { "W2", NULL, L1_GET, 2, OVER_SHARDED, 9 },
    { "W4", NULL, L1_MIXED, 2, OVER_SHARDED, 4.2 },
    { "W1", NULL, L1_GET, 2, OVER_ONE_THREAD, 1.8 },
    { "W1", NULL, L1_MANY, 2, OVER_ONE_THREAD, 1.8 },
    { "W2", NULL, L1_GET, 2, OVER_ONE_THREAD, 1.8 },
    { "W1", NULL, L1_GET, 1, CPU, 1.05 },
    { "W2", NULL, L1_GET, 1, CPU, 1.05 },
    { "W4", NULL, L1_MIXED, 1, CPU, 1.05 },
    { "W3", "lru", L1_CHURN, 1, HITS, 0.765 },
    { "W3", "lru", L1_CHURN, 1, OVER_SHARDED, 2 },
    { "W3", "lru", L1_CHURN, 2, OVER_SHARDED, 3 },
    { "W3", "lru", L1_SAMPLED, 1, P999, 2000 },
    { "W3", "lru", L1_SAMPLED, 2, P999, 2000 },
    { "W3", "lru", L1_CHURN, 1, CPU, 1.05 },
    { "W3", "s3fifo", L1_CHURN, 1, HITS, 0.815 },
    { "W3", "s3fifo", L1_CHURN, 1, OVER_SHARDED, 1.7 },
    { "W3", "s3fifo", L1_CHURN, 2, OVER_SHARDED, 2.7 },
    { "W3", "s3fifo", L1_SAMPLED, 1, P999, 2000 },
    { "W3", "s3fifo", L1_SAMPLED, 2, P999, 2000 },
    { "W3", "s3fifo", L1_CHURN, 1, CPU, 1.05 },
    { "W3", "adaptive", L1_CHURN, 1, HITS, 0.815 },
    { "W3", "adaptive", L1_CHURN, 1, OVER_SHARDED, 1.7 },
    { "W3", "adaptive", L1_CHURN, 2, OVER_SHARDED, 2.7 },
    { "W3", "adaptive", L1_SAMPLED, 2, P999, 2000 },
};

static const struct {
    const char *kind;
    bool        ttl;
    double      bound;
} memory_goals[] = {
    { "plain", false, 26 }, { "plain", true, 30 }, { "L2-backed", false, 48 }, { "budget", false, 1.01 }
};

static const struct l1_race *
race_by_stage(const struct l1_results *results, const struct goal *goal, const char *peer, enum l1_op op,
              unsigned threads)
{
    for (size_t i = 0; i < results->n; i++)
        if (strncmp(results->races[i].stage, goal->stage, 2) == 0)
            return race_of(results, results->races[i].stage, peer, op, threads);
    return NULL;
}

/* One line: the figure, the bound, and the verdict.  A figure that was not measured misses its goal. */
static bool
verdict(const char *what, double figure, bool at_least, double bound, const char *unit)
{
    bool reached = at_least ? figure >= bound : figure <= bound;

    if (isnan(figure))
        printf("  %-12s %-66s %10s  (goal %s %.4g%s)\n", "not measured", what, "",
               at_least ? ">=" : "<=", bound, unit);
    else
        printf("  %-12s %-66s %10.4g  (goal %s %.4g%s)\n", reached ? "reached" : "MISSED", what, figure,
               at_least ? ">=" : "<=", bound, unit);
    return reached;
}

static bool
check_race(const struct l1_results *results, const struct goal *goal, const char *policy)
{
    char                  peer[40], what[120];
    const struct l1_race *race;

    snprintf(peer, sizeof(peer), "nearcache %s", goal->policy != NULL ? goal->policy : policy);
    race = race_by_stage(results, goal, peer, goal->op, goal->threads);
    snprintf(what, sizeof(what),
             "%s%s %s, %s, %u thread%s: ", MIDDLE(race, waited) > 0.1 ? "(disturbed) " : "", goal->stage,
             op_names[goal->op], peer, goal->threads, goal->threads == 1 ? "" : "s");
    switch (goal->measure) {
    case OVER_SHARDED:
        strcat(what, "throughput/sharded64");
        return verdict(what, race == NULL ? NAN : ratio(race, yardstick(results, race)).middle, true,
                       goal->bound, "");
    case OVER_LIMIT:
        strcat(what, "time/limit");
        return verdict(what, race == NULL ? NAN : time_ratio(race, limit_of(results, race)).middle, false,
                       goal->bound, "");
    case OVER_ONE_THREAD:
        strcat(what, "throughput/one thread");
        return verdict(what, ratio(race, race_by_stage(results, goal, peer, goal->op, 1)).middle, true,
                       goal->bound, "");
    case HITS:
        strcat(what, "hit ratio");
        return verdict(what, 100 * MIDDLE(race, hits), true, 100 * goal->bound, " %");
    case P999:
        strcat(what, "p99.9 of a get");
        return verdict(what, MIDDLE(race, p999), false, goal->bound, " ns");
    default:
        strcat(what, "cpu/wall");
        return verdict(what, MIDDLE(race, cpu), false, goal->bound, "");
    }
}

static double
memory_of(const struct l1_results *results, const char *peer, const char *kind)
{
    for (size_t i = 0; i < results->memory_n; i++)
        if (strcmp(results->memory[i].peer->name, peer) == 0 && strcmp(results->memory[i].kind, kind) == 0 &&
            results->memory[i].bytes != -1)
            return results->memory[i].bytes;
    return NAN;
}

unsigned
l1_check(const struct l1_results *results, const char *policy)
{
    unsigned missed = 0;
    char     peer[40], what[120];

    printf("\nGoals\n");
    for (size_t i = 0; i < sizeof(goals) / sizeof(goals[0]); i++)
        missed += !check_race(results, &goals[i], policy);
    for (size_t i = 0; i < sizeof(memory_goals) / sizeof(memory_goals[0]); i++) {
        bool budget = strcmp(memory_goals[i].kind, "budget") == 0;
        snprintf(peer, sizeof(peer), "nearcache %s%s", policy, memory_goals[i].ttl ? " ttl" : "");
        snprintf(what, sizeof(what), "%s %s: %s", peer, memory_goals[i].kind,
                 budget ? "resident/l1.max_bytes" : "overhead per entry");
        missed += !verdict(what, memory_of(results, peer, memory_goals[i].kind), false, memory_goals[i].bound,
                           budget ? "" : " bytes");
    }
    return missed;
}
