/*
 * Tables, the tab-separated file and the goals.  Every ratio is taken within a round, between two runs that are seconds apart, and of
 * these the median is shown with the least and the greatest: absolute figures of a shared machine mean little.
 */
#include "bench/l2.h"
#include "bench/median.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

static double
field_of(const struct l2_figures *figures, size_t field)
{
    double value;

    memcpy(&value, (const char *)figures + field, sizeof(value));
    return value;
}

static double
middle(const struct l2_race *race, size_t field)
{
    double values[L2_ROUNDS_MAX];

    for (unsigned i = 0; i < race->rounds; i++)
        values[i] = field_of(&race->round[i], field);
    return spread_of(values, race->rounds).middle;
}
#define MIDDLE(race, field) middle(race, offsetof(struct l2_figures, field))

/* ---- what is compared */

enum measure { RATE, P99, CPU, CLIENT_CPU };

static double
measured(const struct l2_figures *figures, enum measure measure)
{
    switch (measure) {
    case RATE:
        return figures->rate;
    case P99:
        return figures->p99;
    case CPU:
        return figures->client + figures->server;
    default:
        return figures->client;
    }
}

static struct spread
ratio(const struct l2_race *a, const struct l2_race *b, enum measure measure)
{
    double   values[L2_ROUNDS_MAX];
    unsigned n = 0;

    for (; a != NULL && b != NULL && n < a->rounds && n < b->rounds; n++)
        values[n] = measured(&a->round[n], measure) / measured(&b->round[n], measure);
    return spread_of(values, n);
}

/* target NULL, batch 0: any. */
static const struct l2_race *
race_of(const struct l2_results *results, const char *stage, const struct l2_peer *peer, const char *target,
        unsigned threads, unsigned batch)
{
    for (size_t i = 0; i < results->n; i++) {
        const struct l2_race *race = &results->races[i];
        if (race->rounds > 0 && race->peer == peer && strcmp(race->stage, stage) == 0 &&
            (target == NULL || strcmp(race->target->name, target) == 0) &&
            (race->threads == threads || peer->external) &&
            (race->batch == batch || batch == 0 || peer->external))
            return race;
    }
    return NULL;
}

static uint64_t
wrong_of(const struct l2_race *race)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < race->rounds; i++)
        sum += race->round[i].wrong;
    return sum;
}

/* ---- the table */

static void
print_number(double value, int width, int digits)
{
    if (isnan(value))
        printf(" %*s", width, "");
    else
        printf(" %*.*f", width, digits, value);
}

static void
print_row(const struct l2_race *race, const struct l2_race *base)
{
    struct spread times = ratio(race, base, RATE);
    char          threads[16], name[64];

    snprintf(threads, sizeof(threads), "%u", race->threads);
    snprintf(name, sizeof(name), "%s%s%s", race->peer->name,
             base != NULL && base->target != race->target ? ", " : "",
             base != NULL && base->target != race->target ? race->target->name : "");
    printf("  %7s %5u  %-40s", race->peer->external ? "" : threads, race->batch, name);
    print_number(MIDDLE(race, rate), 9, 0);
    if (isnan(times.middle))
        printf("  %-22s", "");
    else
        printf("  x%-5.2f (%5.2f..%5.2f)  ", times.middle, times.least, times.most);
    print_number(MIDDLE(race, p50), 7, 1);
    print_number(MIDDLE(race, p99), 8, 1);
    print_number(MIDDLE(race, p999), 8, 1);
    print_number(MIDDLE(race, client), 8, 2);
    print_number(MIDDLE(race, server), 7, 2);
    print_number(MIDDLE(race, client) + MIDDLE(race, server), 7, 2);
    print_number(100 * MIDDLE(race, others), 6, 0);
    if (wrong_of(race) > 0)
        printf("  %llu NOT ANSWERED RIGHTLY", (unsigned long long)wrong_of(race));
    printf("\n");
}

void
l2_table(const struct l2_results *results, const char *stage, const char *title, const struct l2_peer *base)
{
    printf("\n%s\n  %7s %5s  %-40s %9s  %-22s %8s %8s %8s %8s %7s %7s %6s\n", title, "threads", "batch", "",
           "keys/s", "to the first", "p50 us", "p99", "p99.9", "CPU/key", "server", "sum us", "others");
    for (size_t i = 0; i < results->n; i++) {
        const struct l2_race *race = &results->races[i], *other;
        if (race->rounds == 0 || strcmp(race->stage, stage) != 0)
            continue;
        other = race_of(results, stage, base != NULL ? base : race->peer, NULL, race->threads, race->batch);
        if (other == NULL && base != NULL)
            other = race_of(results, stage, base, NULL, race->threads, 0);
        print_row(race, other);
    }
    fflush(stdout);
}

bool
l2_tsv(const struct l2_results *results, const char *path)
{
    FILE *file = fopen(path, "w");

    if (file == NULL)
        return false;
    fprintf(
        file,
        "stage\ttarget\tpeer\tthreads\tbatch\tround\trate\tp50\tp99\tp999\tclient\tserver\tothers\twrong\n");
    for (size_t i = 0; i < results->n; i++)
        for (unsigned k = 0; k < results->races[i].rounds; k++) {
            const struct l2_race    *race = &results->races[i];
            const struct l2_figures *f    = &race->round[k];
            fprintf(file, "%s\t%s\t%s\t%u\t%u\t%u\t%.0f\t%.1f\t%.1f\t%.1f\t%.3f\t%.3f\t%.3f\t%llu\n",
                    race->stage, race->target->name, race->peer->name, race->threads, race->batch, k, f->rate,
                    f->p50, f->p99, f->p999, f->client, f->server, f->others, (unsigned long long)f->wrong);
        }
    return fclose(file) == 0;
}

/* ---- goals: ours over another, at the same number of threads.  RATE wants at least the bound, everything else at most. */

static const struct goal {
    const char           *stage;
    const struct l2_peer *ours;
    const char           *target; /* NULL: the stage's only one */
    const struct l2_peer *base;
    const char           *base_target;
    unsigned              threads, batch, base_batch;
    enum measure          measure;
    double                bound, stretch; /* stretch 0: none */
} goals[] = {
    { "redis", &l2_ours_get, NULL, &l2_hiredis_get, NULL, 1, 1, 1, RATE, 1.0, 0 },
    { "redis", &l2_ours_get, NULL, &l2_hiredis_get, NULL, 4, 1, 1, RATE, 1.1, 0 },
    { "redis", &l2_ours_get, NULL, &l2_hiredis_get, NULL, 16, 1, 1, RATE, 2.1, 0 },
    { "redis", &l2_ours_get, NULL, &l2_hiredis_get, NULL, 16, 1, 1, P99, 0.5, 0 },
    { "redis", &l2_ours_get, NULL, &l2_hiredis_get, NULL, 64, 1, 1, RATE, 3.3, 4.5 },
    { "redis", &l2_ours_get, NULL, &l2_hiredis_get, NULL, 64, 1, 1, P99, 1.0 / 3, 0 },
    { "redis", &l2_ours_get, NULL, &l2_hiredis_get, NULL, 64, 1, 1, CPU, 0.28, 0 },
    { "redis", &l2_ours_get, NULL, &l2_redis_benchmark, NULL, 64, 1, 0, RATE, 0.65, 0.9 },
    { "redis-batch", &l2_ours_get_many, NULL, &l2_hiredis_pipeline, NULL, 1, 10, 10, RATE, 1.15, 0 },
    { "redis-batch", &l2_ours_get_many, NULL, &l2_hiredis_pipeline, NULL, 1, 100, 100, RATE, 1.3, 0 },
    { "redis-batch", &l2_ours_get_many, NULL, &l2_redis_benchmark, NULL, 1, 100, 0, RATE, 1.1, 0 },
    { "redis-batch", &l2_ours_get_many, NULL, &l2_redis_benchmark, NULL, 1, 1000, 0, RATE, 1.25, 0 },
    { "redis-batch", &l2_ours_get_many, NULL, &l2_redis_benchmark, NULL, 2, 100, 0, RATE, 1.25, 0 },
    { "memcached", &l2_ours_get, NULL, &l2_memcached_pool, NULL, 1, 1, 1, RATE, 1.03, 0 },
    { "memcached", &l2_ours_get, NULL, &l2_memcached_pool, NULL, 16, 1, 1, RATE, 1.9, 0 },
    { "memcached", &l2_ours_get, NULL, &l2_memcached_pool, NULL, 64, 1, 1, RATE, 2.8, 3.3 },
    { "memcached-t4", &l2_ours_get, NULL, &l2_memcached_pool, NULL, 64, 1, 1, RATE, 3.5, 0 },
    { "memcached-batch", &l2_ours_get_many, NULL, &l2_memcached_mget, NULL, 1, 100, 100, RATE, 0.98, 1.1 },
    { "memcached-batch", &l2_ours_get_many, NULL, &l2_memcached_mget, NULL, 1, 1000, 1000, RATE, 0.98, 1.1 },
    { "writes", &l2_ours_put_many, NULL, &l2_ours_put, NULL, 1, 100, 1, RATE, 10, 0 },
    { "writes", &l2_ours_put_many, NULL, &l2_hiredis_pipeline_set, NULL, 1, 100, 100, RATE, 0.9, 0 },
    { "writes", &l2_ours_put_many_px, NULL, &l2_hiredis_pipeline_set_px, NULL, 1, 100, 100, RATE, 0.9, 0 },
    { "cluster", &l2_ours_get, "cluster", &l2_ours_get, "redis", 1, 1, 1, CLIENT_CPU, 1.1, 0 },
    { "cluster", &l2_ours_get, "cluster", &l2_ours_get, "redis", 16, 1, 1, CLIENT_CPU, 1.1, 0 },
    { "cluster", &l2_ours_get, "cluster", &l2_ours_get, "redis", 64, 1, 1, CLIENT_CPU, 1.1, 0 },
    { "cluster", &l2_ours_get_many, "cluster", &l2_ours_get_many, "redis", 1, 100, 100, CLIENT_CPU, 1.1, 0 },
};

static const char *const measures[] = { "keys/s", "p99", "CPU per key", "client CPU per key" };

static bool
holds(enum measure measure, double reached, double bound)
{
    return measure == RATE ? reached >= bound : reached <= bound;
}

static bool
was_run(const struct l2_results *results, const char *stage)
{
    for (size_t i = 0; i < results->n; i++)
        if (strcmp(results->races[i].stage, stage) == 0)
            return true;
    return false;
}

/* 1 when it was measured and missed. */
static unsigned
print_goal(const struct l2_results *results, const struct goal *goal)
{
    const struct l2_race *ours =
        race_of(results, goal->stage, goal->ours, goal->target, goal->threads, goal->batch);
    const struct l2_race *base =
        race_of(results, goal->stage, goal->base, goal->base_target, goal->threads, goal->base_batch);
    struct spread reached = ratio(ours, base, goal->measure);
    char          what[160], bound[32] = "";

    snprintf(what, sizeof(what), "%u thread%s, batch %u: %s%s%s, %s against %s%s%s", goal->threads,
             goal->threads == 1 ? "" : "s", goal->batch, goal->ours->name, goal->target != NULL ? " on " : "",
             goal->target != NULL ? goal->target : "", measures[goal->measure], goal->base->name,
             goal->base_target != NULL ? " on " : "", goal->base_target != NULL ? goal->base_target : "");
    if (goal->stretch > 0)
        snprintf(bound, sizeof(bound), " (stretch %.2f)", goal->stretch);
    if (isnan(reached.middle)) {
        if (!was_run(results, goal->stage))
            return 0;
        printf("  %-12s %-16s %-118s %18s  %s %.2f%s\n", "not measured", goal->stage, what, "",
               goal->measure == RATE ? ">=" : "<=", goal->bound, bound);
        return 0;
    }
    printf("  %-12s %-16s %-118s %5.2f %5.2f..%5.2f  %s %.2f%s\n",
           goal->stretch > 0 && holds(goal->measure, reached.middle, goal->stretch) ? "stretch"
           : holds(goal->measure, reached.middle, goal->bound)                      ? "reached"
                                                                                    : "MISSED",
           goal->stage, what, reached.middle, reached.least, reached.most,
           goal->measure == RATE ? ">=" : "<=", goal->bound, bound);
    return !holds(goal->measure, reached.middle, goal->bound);
}

unsigned
l2_goals(const struct l2_results *results)
{
    unsigned missed = 0;

    printf("\nGoals\n  %-12s %-16s %-118s %5s %12s  %s\n", "", "stage", "", "ratio", "of rounds", "goal");
    for (size_t i = 0; i < sizeof(goals) / sizeof(goals[0]); i++)
        missed += print_goal(results, &goals[i]);
    return missed;
}
