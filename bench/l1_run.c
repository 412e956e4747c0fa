/*
 * One measurement: threads that run a peer's loop side by side, first to warm up, then against the clock.
 *
 * Threads meet at a barrier before the timed part; each measures its own time.  The main thread sleeps meanwhile, and owns the stop
 * flags.  The process's CPU time over the same span shows work that a peer does on threads of its own.  How long the threads were
 * ready but had to wait for a processor is asked from the kernel (it does not count waiting for a lock): a run that others have
 * disturbed that way is repeated, a few times at most.
 */
#include "bench/l1.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#define DISTURBED 0.03 /* share of waiting from which on a run is repeated */
#define WARM_UP   0.25 /* of the timed part: caches and branch predictors still hold the peer that ran before */

double
l1_seconds(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void
rest(double seconds)
{
    struct timespec length = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };

    while (nanosleep(&length, &length) != 0)
        ;
}

/* ---- the clock of single gets */

double
l1_tick_ns(void)
{
    static double length;
    double        began;
    uint64_t      ticks;

    if (length != 0)
        return length;
    began = l1_seconds(CLOCK_MONOTONIC);
    ticks = l1_ticks();
    rest(0.05);
    ticks  = l1_ticks() - ticks;
    length = (l1_seconds(CLOCK_MONOTONIC) - began) * 1e9 / (double)ticks;
    return length;
}

uint64_t
l1_tick_overhead(void)
{
    uint64_t least = UINT64_MAX;

    for (int i = 0; i < 10000; i++) {
        uint64_t begin = l1_ticks(), length = l1_ticks() - begin;
        least = length < least ? length : least;
    }
    return least;
}

/* ---- threads */

struct crew {
    void (*loop)(struct l1_thread *);
    pthread_barrier_t barrier;
    int               warm, stop; /* 1: end of the warm-up, end of the timed part */
};

struct member {
    struct l1_thread thread;
    struct crew     *crew;
    pthread_t        id;
} __attribute__((
    aligned(128))); /* counters of two threads share no line, nor the next one that is fetched along */

static double
waiting(void) /* seconds, of this thread so far */
{
    FILE  *file = fopen("/proc/thread-self/schedstat", "r");
    double ran, waited = 0;

    if (file == NULL)
        return 0;
    if (fscanf(file, "%lf %lf", &ran, &waited) != 2)
        waited = 0;
    fclose(file);
    return waited / 1e9;
}

static void *
work(void *arg)
{
    struct member    *member = arg;
    struct l1_thread *t      = &member->thread;
    double            began;

    t->stop = &member->crew->warm;
    member->crew->loop(t);
    t->ops = t->gets = t->hits = t->sum = t->expected = t->sample_count = 0;
    t->stop                                                             = &member->crew->stop;
    t->waited                                                           = waiting();
    pthread_barrier_wait(&member->crew->barrier);
    began = l1_seconds(CLOCK_MONOTONIC);
    member->crew->loop(t);
    t->seconds = l1_seconds(CLOCK_MONOTONIC) - began;
    t->waited  = waiting() - t->waited;
    return NULL;
}

unsigned
l1_processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

/* A thread stays on its processor where there are more of them than threads; otherwise the kernel balances better. */
static void
pin(pthread_t id, unsigned number, unsigned threads)
{
    cpu_set_t all, one;

    if (sched_getaffinity(0, sizeof(all), &all) != 0 || (unsigned)CPU_COUNT(&all) <= threads)
        return;
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0;
         cpu--) /* from the last: the first often serves the interrupts */
        if (CPU_ISSET(cpu, &all) && number-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            pthread_setaffinity_np(id, sizeof(one), &one);
            return;
        }
}

static int
by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void
quantiles(struct member *members, unsigned threads, struct l1_figures *figures)
{
    uint64_t *all      = malloc((size_t)threads * L1_SAMPLES * sizeof(*all));
    uint64_t  overhead = l1_tick_overhead();
    size_t    n        = 0;

    for (unsigned i = 0; all != NULL && i < threads; i++)
        for (size_t k = 0; k < members[i].thread.sample_count; k++)
            all[n++] = members[i].thread.samples[k] > overhead ? members[i].thread.samples[k] - overhead : 0;
    if (n > 0) {
        qsort(all, n, sizeof(*all), by_size);
        figures->p50  = (double)all[n / 2] * l1_tick_ns();
        figures->p99  = (double)all[n - 1 - n / 100] * l1_tick_ns();
        figures->p999 = (double)all[n - 1 - n / 1000] * l1_tick_ns();
    }
    free(all);
}

static void
sum_up(struct member *members, unsigned threads, struct l1_figures *figures)
{
    uint64_t gets = 0, hits = 0;

    for (unsigned i = 0; i < threads; i++) {
        const struct l1_thread *t = &members[i].thread;
        figures->ns += t->seconds * 1e9 / (double)t->ops / threads;
        figures->rate += (double)t->ops / t->seconds;
        figures->waited += t->waited / t->seconds / threads;
        figures->wrong = figures->wrong || t->sum != t->expected;
        gets += t->gets;
        hits += t->hits;
    }
    figures->hits = (double)hits / (double)gets;
}

static bool
members_start(struct member *members, struct crew *crew, const struct l1_world *world, void *cache,
              bool sampled, unsigned threads, const size_t *at)
{
    for (unsigned i = 0; i < threads; i++) {
        struct l1_thread *t = &members[i].thread;
        members[i]          = (struct member){ .crew = crew };
        t->cache            = cache;
        t->world            = world;
        t->sequence         = world->sequence + (size_t)i * L1_SEQUENCE;
        t->stream  = world->stream != NULL ? world->stream + (size_t)i * L1_SEQUENCE * L1_KEY_STRIDE : NULL;
        t->at      = at[i];
        t->samples = sampled ? calloc(L1_SAMPLES, sizeof(*t->samples)) : NULL;
        if (sampled && t->samples == NULL)
            return false;
    }
    for (unsigned i = 0; i < threads; i++) {
        if (pthread_create(&members[i].id, NULL, work, &members[i]) != 0)
            return false; /* those that run will never end: the caller gives up */
        if (world->pin)
            pin(members[i].id, i, threads);
    }
    return true;
}

static bool
run_once(const struct l1_peer *peer, void *cache, const struct l1_world *world, enum l1_op op,
         unsigned threads, double seconds, size_t *at, struct l1_figures *figures)
{
    struct crew    crew    = { .loop = peer->loops[op] };
    struct member *members = NULL;
    double         wall, cpu;

    *figures = (struct l1_figures){ 0 };
    members  = aligned_alloc(_Alignof(struct member), threads * sizeof(*members));
    if (members == NULL || pthread_barrier_init(&crew.barrier, NULL, threads + 1) != 0 ||
        !members_start(members, &crew, world, cache, op == L1_SAMPLED, threads, at))
        return false;
    rest(seconds * WARM_UP);
    __atomic_store_n(&crew.warm, 1,
                     __ATOMIC_RELAXED); /* read in l1_stopped(); nothing else is passed by it */
    pthread_barrier_wait(&crew.barrier);
    wall = l1_seconds(CLOCK_MONOTONIC);
    cpu  = l1_seconds(CLOCK_PROCESS_CPUTIME_ID);
    rest(seconds);
    __atomic_store_n(&crew.stop, 1, __ATOMIC_RELAXED); /* as above */
    cpu  = l1_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    wall = l1_seconds(CLOCK_MONOTONIC) - wall;
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(members[i].id, NULL);
        at[i] = members[i].thread.at;
    }
    figures->cpu = cpu / wall;
    sum_up(members, threads, figures);
    if (op == L1_SAMPLED)
        quantiles(members, threads, figures);
    for (unsigned i = 0; i < threads; i++)
        free(members[i].thread.samples);
    pthread_barrier_destroy(&crew.barrier);
    free(members);
    return true;
}

bool
l1_run(const struct l1_peer *peer, void *cache, const struct l1_world *world, enum l1_op op, unsigned threads,
       double seconds, size_t *at, struct l1_figures *figures)
{
    struct l1_figures again;

    *figures = (struct l1_figures){ 0 };
    if (peer->run != NULL)
        return peer->run(cache, op, threads, seconds, figures);
    if (!run_once(peer, cache, world, op, threads, seconds, at, figures))
        return false;
    for (unsigned i = 0; i < world->retries && figures->waited > DISTURBED && threads <= l1_processors();
         i++) {
        if (!run_once(peer, cache, world, op, threads, seconds, at, &again))
            return false;
        if (again.waited < figures->waited)
            *figures = again;
    }
    return true;
}

bool
l1_fill(const struct l1_peer *peer, void *cache, const struct l1_world *world, uint32_t n)
{
    unsigned char value[L1_VALUE_SIZE];

    for (uint32_t i = 0; i < n; i++) {
        l1_value(value, i);
        if (!peer->put(cache, l1_key(world, i), l1_bytes(value, sizeof(value))))
            return false;
    }
    return true;
}
