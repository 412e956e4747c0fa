/*
 * One run: threads that call a peer until told to stop, and what it cost.
 *
 * `phase` is the main thread's word to the others: warm up, count, stop.  A thread's counters are its own until it is joined.  The
 * servers' CPU time is read from the kernel's clock of their processes, which shows nanoseconds where /proc/PID/stat shows 10 ms.
 */
#include "bench/l2.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WARM, COUNT, STOP };

/* Latencies in buckets of 1/32 of a power of two: 3 % wide. */
enum { FINE = 32, BUCKETS = 40 * FINE };

struct l2_thread {
    const struct l2_peer   *peer;
    const struct l2_target *target;
    void                   *shared;
    unsigned                batch;
    const atomic_int       *phase;
    pthread_barrier_t      *ready;
    pthread_t               id;
    uint64_t                random;
    uint64_t                calls, keys, wrong;
    uint64_t                buckets[BUCKETS];
};

void
l2_fail(const char *what, const char *why)
{
    fprintf(stderr, "bench/l2: %s: %s\n", what, why);
    exit(2);
}

double
l2_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int64_t
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static double
seconds_of(struct timeval tv)
{
    return (double)tv.tv_sec + (double)tv.tv_usec / 1e6;
}

static double
own_cpu(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime);
}

double
l2_server_cpu(const struct l2_target *target)
{
    double sum = 0;

    for (unsigned i = 0; i < target->server_count; i++) {
        struct timespec ts;
        clockid_t       clock;
        if (clock_getcpuclockid(target->servers[i]->pid, &clock) != 0 || clock_gettime(clock, &ts) != 0)
            return NAN;
        sum += (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
    }
    return sum;
}

/* Kept in ticks of 10 ms: good enough to see others at work. */
double
l2_machine_cpu(void)
{
    unsigned long long user = 0, nice = 0, system = 0, steal = 0;
    FILE              *file = fopen("/proc/stat", "re");

    if (file == NULL)
        return NAN;
    if (fscanf(file, "cpu %llu %llu %llu %*u %*u %*u %*u %llu", &user, &nice, &system, &steal) != 4)
        user = nice = system = steal = 0;
    fclose(file);
    return (double)(user + nice + system + steal) / (double)sysconf(_SC_CLK_TCK);
}

static double
share_of_others(double busy, double seconds)
{
    double share = busy / seconds / (double)sysconf(_SC_NPROCESSORS_ONLN);

    return share < 0 ? 0 : share;
}

/* ---- keys and values */

void
l2_key_print(struct l2_key *key, uint32_t index)
{
    memcpy(key->text, "key:", 4);
    for (int i = L2_KEY_SIZE - 1; i >= 4; i--, index /= 10)
        key->text[i] = (char)('0' + index % 10);
}

static uint64_t
next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

void
l2_value(char *out, uint32_t index)
{
    struct l2_key key;
    uint64_t      state = index;

    l2_key_print(&key, index);
    memcpy(out, key.text + 4, 12);
    for (size_t i = 12; i < L2_VALUE_SIZE; i++)
        out[i] = (char)('!' + next_random(&state) % 94);
}

bool
l2_right(const struct l2_key *key, const void *value, size_t size)
{
    return size == L2_VALUE_SIZE && memcmp(value, key->text + 4, 12) == 0;
}

struct l2_wire
l2_wire(char out[L2_NAME_SIZE], const struct l2_key *key, bool entries)
{
    if (!entries)
        return (struct l2_wire){ key->text, L2_KEY_SIZE };
    memcpy(out, "nc:b:", L2_NAME_SIZE - L2_KEY_SIZE);
    memcpy(out + L2_NAME_SIZE - L2_KEY_SIZE, key->text, L2_KEY_SIZE);
    return (struct l2_wire){ out, L2_NAME_SIZE };
}

bool
l2_wire_right(const struct l2_key *key, const void *answer, size_t size, bool entries)
{
    if (!entries)
        return l2_right(key, answer, size);
    return size > L2_VALUE_SIZE && l2_right(key, (const char *)answer + size - L2_VALUE_SIZE, L2_VALUE_SIZE);
}

/* ---- latencies */

static unsigned
bucket_of(uint64_t ns)
{
    unsigned power;

    if (ns < FINE)
        return (unsigned)ns;
    power = 63 - (unsigned)__builtin_clzll(ns);
    power = power > 43 ? 43 : power;
    return (power - 4) * FINE + (unsigned)(ns >> (power - 5) & (FINE - 1));
}

static double
middle_of(unsigned bucket)
{
    unsigned power = bucket / FINE + 4;

    if (bucket < FINE)
        return bucket;
    return ldexp(FINE + bucket % FINE + 0.5, (int)power - 5);
}

/* In us. */
static double
percentile(const uint64_t *buckets, uint64_t calls, double share)
{
    uint64_t below = 0, wanted = (uint64_t)((double)calls * share);

    for (unsigned i = 0; i < BUCKETS; i++) {
        below += buckets[i];
        if (below > wanted)
            return middle_of(i) / 1000;
    }
    return NAN;
}

/* ---- threads */

static void
draw(struct l2_thread *t, struct l2_key *keys)
{
    for (unsigned i = 0; i < t->batch; i++)
        l2_key_print(&keys[i], (uint32_t)((next_random(&t->random) >> 32) * t->target->keys >> 32));
}

static void *
work(void *ctx)
{
    struct l2_thread *t    = ctx;
    void             *own  = t->peer->join(t->shared, t->target);
    struct l2_key    *keys = calloc(t->batch, sizeof(*keys));

    if (keys == NULL)
        l2_fail(t->peer->name, "out of memory");
    pthread_barrier_wait(t->ready);
    for (int phase; (phase = atomic_load_explicit(t->phase, memory_order_relaxed)) != STOP;) {
        int64_t  began;
        unsigned right;

        draw(t, keys);
        began = now_ns();
        right = t->peer->call(own, keys, t->batch);
        t->wrong += t->batch - right;
        if (phase == WARM)
            continue;
        t->buckets[bucket_of((uint64_t)(now_ns() - began))]++;
        t->calls++;
        t->keys += t->batch;
    }
    t->peer->leave(own);
    free(keys);
    return NULL;
}

static void
sleep_for(double seconds)
{
    nanosleep(&(struct timespec){ (time_t)seconds, (long)((seconds - floor(seconds)) * 1e9) }, NULL);
}

static void
sum_up(const struct l2_thread *threads, unsigned n, double seconds, double client, double server,
       struct l2_figures *figures)
{
    static uint64_t buckets[BUCKETS];
    uint64_t        calls = 0, keys = 0;

    memset(buckets, 0, sizeof(buckets));
    *figures = (struct l2_figures){ 0 };
    for (unsigned i = 0; i < n; i++) {
        calls += threads[i].calls;
        keys += threads[i].keys;
        figures->wrong += threads[i].wrong;
        for (unsigned k = 0; k < BUCKETS; k++)
            buckets[k] += threads[i].buckets[k];
    }
    figures->rate   = (double)keys / seconds;
    figures->p50    = percentile(buckets, calls, 0.5);
    figures->p99    = percentile(buckets, calls, 0.99);
    figures->p999   = percentile(buckets, calls, 0.999);
    figures->client = 1e6 * client / (double)keys;
    figures->server = 1e6 * server / (double)keys;
}

void
l2_run(const struct l2_peer *peer, const struct l2_target *target, unsigned threads, unsigned batch,
       double seconds, struct l2_figures *figures)
{
    static uint64_t   seed;
    struct l2_thread *all = calloc(threads, sizeof(*all));
    atomic_int        phase;
    pthread_barrier_t ready;
    void             *shared = peer->open != NULL ? peer->open(target, threads) : NULL;
    double            began, client, server, busy;

    if (all == NULL)
        l2_fail(peer->name, "out of memory");
    atomic_init(&phase, WARM);
    pthread_barrier_init(&ready, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++) {
        all[i].peer   = peer;
        all[i].target = target;
        all[i].shared = shared;
        all[i].batch  = batch;
        all[i].phase  = &phase;
        all[i].ready  = &ready;
        all[i].random = ++seed << 20;
        if (pthread_create(&all[i].id, NULL, work, &all[i]) != 0)
            l2_fail(peer->name, "no more threads");
    }
    pthread_barrier_wait(&ready);
    sleep_for(seconds / 5);
    server = l2_server_cpu(target);
    client = own_cpu();
    busy   = l2_machine_cpu();
    began  = l2_now();
    atomic_store_explicit(&phase, COUNT, memory_order_relaxed); /* a hint: the joins order the results */
    sleep_for(seconds);
    atomic_store_explicit(&phase, STOP, memory_order_relaxed);
    began  = l2_now() - began;
    client = own_cpu() - client;
    server = l2_server_cpu(target) - server;
    busy   = l2_machine_cpu() - busy;
    for (unsigned i = 0; i < threads; i++)
        pthread_join(all[i].id, NULL);
    if (peer->close != NULL)
        peer->close(shared);
    pthread_barrier_destroy(&ready);
    sum_up(all, threads, began, client, server, figures);
    figures->others = share_of_others(busy - client - server, began);
    free(all);
}

/* ---- redis-benchmark */

static pid_t
start_benchmark(const struct l2_target *target, uint64_t requests, int *output)
{
    char  port[16], n[32], r[32];
    int   ends[2];
    pid_t pid;

    snprintf(port, sizeof(port), "%d", target->port);
    snprintf(n, sizeof(n), "%llu", (unsigned long long)requests);
    snprintf(r, sizeof(r), "%u", target->keys);
    if (pipe(ends) != 0)
        return -1;
    pid = fork();
    if (pid == 0) {
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        if (target->socket != NULL)
            execlp("redis-benchmark", "redis-benchmark", "-s", target->socket, "-r", r, "-n", n, "-P", "100",
                   "-c", "50", "--csv", "GET", "key:__rand_int__", (char *)NULL);
        else
            execlp("redis-benchmark", "redis-benchmark", "-p", port, "-r", r, "-n", n, "-P", "100", "-c",
                   "50", "--csv", "GET", "key:__rand_int__", (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    *output = ends[0];
    return pid;
}

/* Lines like "GET key:__rand_int__","761904.75","3.2",...  The second field: requests per second. */
static double
rate_of(char *text)
{
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        double rate;
        if (strncmp(line, "\"GET", 4) == 0 && sscanf(line, "\"%*[^\"]\",\"%lf\"", &rate) == 1)
            return rate;
    }
    return NAN;
}

bool
l2_run_benchmark(const struct l2_target *target, double seconds, struct l2_figures *figures)
{
    static double rate     = 300000; /* of the last time: decides how many requests make up `seconds` */
    uint64_t      requests = (uint64_t)(rate * seconds) / 5000 * 5000 + 5000;
    char          text[4096];
    size_t        used   = 0;
    double        server = l2_server_cpu(target), began = l2_now(), busy = l2_machine_cpu(), client;
    int           output, status;
    struct rusage usage;
    pid_t         pid = start_benchmark(target, requests, &output);

    if (pid < 0)
        return false;
    for (ssize_t n; used + 1 < sizeof(text) && (n = read(output, text + used, sizeof(text) - used - 1)) > 0;)
        used += (size_t)n;
    text[used] = '\0';
    close(output);
    if (wait4(pid, &status, 0, &usage) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return false;
    *figures        = (struct l2_figures){ .p50 = NAN, .p99 = NAN, .p999 = NAN };
    figures->rate   = rate_of(text);
    client          = seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime);
    server          = l2_server_cpu(target) - server;
    figures->client = 1e6 * client / (double)requests;
    figures->server = 1e6 * server / (double)requests;
    figures->others = share_of_others(l2_machine_cpu() - busy - client - server, l2_now() - began);
    if (!isnan(figures->rate))
        rate = figures->rate;
    return !isnan(figures->rate);
}
