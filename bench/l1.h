/*
 * What the parts of the L1 benchmark share: the workload, the threads that run it, the peers and the results.
 *
 * A world is the keys and, per thread, the sequence in which they are asked for; it is drawn before anything is timed and never
 * changes.  A peer is a cache under test; a race is one peer and one operation.  Each peer's file makes its loops out of the
 * inline ones below, so that all of them pay the same for the key, the check and the stop flag, and none pays an indirect call.
 *
 * Everything belongs to the main thread except a struct l1_thread, which is its thread's while it runs.
 */
#ifndef NEAR_BENCH_L1_H
#define NEAR_BENCH_L1_H

#include "client/nearcache.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
    L1_KEY_SIZE    = 21, /* user_feature_%08u */
    L1_KEY_STRIDE  = 24, /* in the array of keys: dense, 8-byte aligned */
    L1_VALUE_SIZE  = 100,
    L1_BATCH       = 32,      /* W1m32 */
    L1_CHUNK       = 512,     /* operations between two looks at the stop flag; a multiple of L1_BATCH */
    L1_SEQUENCE    = 1 << 22, /* drawn per thread, then repeated; a multiple of L1_CHUNK */
    L1_SAMPLE      = 8,       /* one get in so many is timed where latencies are asked for */
    L1_SAMPLES     = 1 << 20, /* kept per thread */
    L1_THREADS_MAX = 256,
    L1_ROUNDS_MAX  = 99,
    L1_PEERS_MAX   = 32,
    L1_RACES_MAX   = 1024
};
#define L1_WRITE 0x80000000u /* in a sequence: W4 puts here, 5 % of all */

/* ---- the workload (l1_world.c) */

struct l1_world {
    uint32_t  keys;
    unsigned  threads;
    unsigned  retries;  /* of a run that others have disturbed */
    bool      pin;      /* each thread to a processor, where there are more of them than threads */
    char     *key;      /* keys * L1_KEY_STRIDE */
    uint32_t *sequence; /* threads * L1_SEQUENCE, in memory that a child can map: */
    int       file;
    char     *stream; /* the keys again, in the order of use; NULL: keys are taken from `key` by index */
};

bool l1_world_open(struct l1_world *world, uint32_t keys, unsigned threads, bool stream);
void l1_world_close(struct l1_world *world);
void l1_key_print(char *out, uint32_t index); /* L1_KEY_SIZE bytes, no NUL */

static inline near_bytes
l1_bytes(const void *data, size_t size)
{
    near_bytes bytes;

    bytes.data = data;
    bytes.size = size;
    return bytes;
}

static inline near_bytes
l1_key(const struct l1_world *world, uint32_t index)
{
    return l1_bytes(world->key + (size_t)index * L1_KEY_STRIDE, L1_KEY_SIZE);
}

/* ---- one thread of a run */

struct l1_thread {
    void                  *cache;
    const struct l1_world *world;
    const uint32_t        *sequence;
    const char            *stream; /* or NULL */
    size_t                 at;     /* in the sequence; goes on from run to run */
    const int             *stop;
    uint64_t               ops, gets, hits, sum, expected;
    uint64_t              *samples; /* ticks of a get */
    size_t                 sample_count;
    double                 seconds, waited; /* timed; of that, ready to run but without a processor */
};

static inline bool
l1_stopped(struct l1_thread *t)
{
    if (t->at == L1_SEQUENCE)
        t->at = 0;
    return __atomic_load_n(t->stop, __ATOMIC_RELAXED) != 0; /* a hint: the join orders the results */
}

static inline uint32_t
l1_next(struct l1_thread *t, near_bytes *key, bool *write)
{
    uint32_t word  = t->sequence[t->at];
    uint32_t index = word & ~L1_WRITE;

    *key = l1_bytes(t->stream != NULL ? t->stream + t->at * L1_KEY_STRIDE
                                      : t->world->key + (size_t)index * L1_KEY_STRIDE,
                    L1_KEY_SIZE);
    *write = (word & L1_WRITE) != 0;
    t->at++;
    return index;
}

/* A value says in its first byte whose it is, so that no answer can be optimised away or be another key's unnoticed. */
static inline void
l1_value(unsigned char *out, uint32_t index)
{
    memset(out, 'v', L1_VALUE_SIZE);
    out[0] = (unsigned char)index;
}

/* Time stamps around single gets.  The fences keep the get inside; what an empty pair costs is measured and subtracted. */
static inline uint64_t
l1_ticks(void)
{
#if defined(__x86_64__)
    _mm_lfence();
    uint64_t ticks = __rdtsc();
    _mm_lfence();
    return ticks;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}

/* What a peer's loops are made of.  get: adds the value's first byte to *sum, false on a miss.  many: L1_BATCH keys, returns the
 * hits.  put: insert or overwrite. */
typedef bool (*l1_get_fn)(void *cache, near_bytes key, uint64_t *sum);
typedef unsigned (*l1_many_fn)(void *cache, const near_bytes *keys, uint64_t *sum);
typedef bool (*l1_put_fn)(void *cache, near_bytes key, near_bytes value);

#define L1_INLINE static inline __attribute__((always_inline))

L1_INLINE bool
l1_count(struct l1_thread *t, bool hit, uint32_t index)
{
    t->gets++;
    t->hits += hit;
    t->expected += hit ? (unsigned char)index : 0;
    return hit;
}

L1_INLINE void
l1_loop_get(struct l1_thread *t, l1_get_fn get)
{
    near_bytes key;
    bool       write;

    for (; !l1_stopped(t); t->ops += L1_CHUNK)
        for (int i = 0; i < L1_CHUNK; i++) {
            uint32_t index = l1_next(t, &key, &write);
            l1_count(t, get(t->cache, key, &t->sum), index);
        }
}

/* Every key of a batch must hit for the check of the sum to mean anything: so it is in W1 and W2. */
L1_INLINE void
l1_loop_many(struct l1_thread *t, l1_many_fn many)
{
    near_bytes keys[L1_BATCH];
    bool       write;

    for (; !l1_stopped(t); t->ops += L1_CHUNK)
        for (int i = 0; i < L1_CHUNK; i += L1_BATCH) {
            for (int k = 0; k < L1_BATCH; k++)
                t->expected += (unsigned char)l1_next(t, &keys[k], &write);
            t->gets += L1_BATCH;
            t->hits += many(t->cache, keys, &t->sum);
        }
}

/* Get, and insert what was missing. */
L1_INLINE void
l1_loop_churn(struct l1_thread *t, l1_get_fn get, l1_put_fn put)
{
    unsigned char value[L1_VALUE_SIZE];
    near_bytes    key;
    bool          write;

    l1_value(value, 0);
    for (; !l1_stopped(t); t->ops += L1_CHUNK)
        for (int i = 0; i < L1_CHUNK; i++) {
            uint32_t index = l1_next(t, &key, &write);
            if (l1_count(t, get(t->cache, key, &t->sum), index))
                continue;
            value[0] = (unsigned char)index;
            put(t->cache, key, l1_bytes(value, sizeof(value)));
        }
}

/* The same, with one get in L1_SAMPLE timed: a run of its own, whose throughput is not reported. */
L1_INLINE void
l1_loop_sampled(struct l1_thread *t, l1_get_fn get, l1_put_fn put)
{
    unsigned char value[L1_VALUE_SIZE];
    near_bytes    key;
    bool          write, hit;

    l1_value(value, 0);
    for (; !l1_stopped(t); t->ops += L1_CHUNK)
        for (int i = 0; i < L1_CHUNK; i++) {
            uint32_t index = l1_next(t, &key, &write);
            if (i % L1_SAMPLE == 0 && t->sample_count < L1_SAMPLES) {
                uint64_t begin                = l1_ticks();
                hit                           = get(t->cache, key, &t->sum);
                t->samples[t->sample_count++] = l1_ticks() - begin;
            } else {
                hit = get(t->cache, key, &t->sum);
            }
            if (l1_count(t, hit, index))
                continue;
            value[0] = (unsigned char)index;
            put(t->cache, key, l1_bytes(value, sizeof(value)));
        }
}

/* 95 % get, 5 % put. */
L1_INLINE void
l1_loop_mixed(struct l1_thread *t, l1_get_fn get, l1_put_fn put)
{
    unsigned char value[L1_VALUE_SIZE];
    near_bytes    key;
    bool          write;

    l1_value(value, 0);
    for (; !l1_stopped(t); t->ops += L1_CHUNK)
        for (int i = 0; i < L1_CHUNK; i++) {
            uint32_t index = l1_next(t, &key, &write);
            if (!write) {
                l1_count(t, get(t->cache, key, &t->sum), index);
                continue;
            }
            value[0] = (unsigned char)index;
            put(t->cache, key, l1_bytes(value, sizeof(value)));
        }
}

/* ---- peers */

enum l1_op { L1_GET, L1_MANY, L1_COPY, L1_CHURN, L1_SAMPLED, L1_MIXED, L1_OPS };

struct l1_figures { /* of one run */
    double ns;      /* per operation and thread */
    double rate;    /* operations per second, all threads */
    double cpu;     /* the process's CPU time over wall time */
    double hits;    /* 0 .. 1 */
    double
        waited; /* share of the time that the threads were kept from a processor; 0 where it is not known */
    double p50, p99, p999; /* ns, L1_SAMPLED only */
    bool   wrong;          /* the answers do not add up */
};

struct l1_peer {
    char        name[40];
    const char *policy;           /* ours */
    bool        ttl;              /* ours */
    const char *option, *setting; /* ours: one more, or NULL */
    /* A cache for up to `capacity` entries; 0: all keys of the world, none is evicted.  NULL: it cannot be had, `why` says it. */
    void *(*open)(const struct l1_peer *peer, const struct l1_world *world, uint32_t capacity,
                  const char **why);
    l1_put_fn put; /* called by one thread, to fill */
    void (*close)(void *cache);
    void (*loops[L1_OPS])(struct l1_thread *thread); /* NULL: does not take part */
    /* Instead of put and loops: a process of its own runs and measures the workload. */
    bool (*run)(void *cache, enum l1_op op, unsigned threads, double seconds, struct l1_figures *figures);
    double (*bytes)(void *cache); /* with run: what it has allocated for its entries */
    bool evicts;
};

/* What the build has; a peer left out of it says why instead. */
extern const struct l1_peer l1_baseline, l1_limit, l1_sharded64, l1_one_mutex, l1_caffeine;
#ifdef HAVE_URCU
extern const struct l1_peer l1_rcu;
#endif
#ifdef HAVE_TBB
extern const struct l1_peer l1_tbb_map, l1_tbb_lru;
#endif
bool l1_ours(struct l1_peer *peer, const char *policy,
             bool ttl); /* false: the library does not know this policy */

/* ---- running (l1_run.c) */

/* One measurement: warm-up, then `seconds` timed.  `at` keeps every thread's place in its sequence from call to call. */
bool     l1_run(const struct l1_peer *peer, void *cache, const struct l1_world *world, enum l1_op op,
                unsigned threads, double seconds, size_t *at, struct l1_figures *figures);
bool     l1_fill(const struct l1_peer *peer, void *cache, const struct l1_world *world, uint32_t n);
unsigned l1_processors(void);
double   l1_seconds(clockid_t clock);
double   l1_tick_ns(void);       /* length of a tick */
uint64_t l1_tick_overhead(void); /* what timing an empty get shows, in ticks: subtracted from every sample */

/* ---- memory (l1_memory.c): each figure from a fresh process */

enum l1_memory { L1_PLAIN, L1_L2_BACKED };

double l1_bytes_per_entry(const struct l1_peer *peer, enum l1_memory kind,
                          uint32_t n); /* overhead; < 0: failed */
bool   l1_budget(const struct l1_peer *peer, uint64_t budget, double *growth,
                 double *counted);                                     /* bytes, at most */
int    l1_child(const struct l1_peer *peers, unsigned n, char **argv); /* what runs in that process */

/* Ours, for l1_memory.c: a cache of `max_bytes` with an L2 in the process or none. */
void    *l1_ours_open(const struct l1_peer *peer, uint64_t max_bytes, uint32_t max_entries, const char *l2,
                      const char **why);
bool     l1_ours_fill_through_l2(void *cache, uint32_t n, void (*between)(void *ctx), void *ctx);
void     l1_ours_count_more(struct l1_peer *peer); /* its hits count once more */
uint64_t l1_ours_counted(void *cache);             /* l1_bytes of the statistics */

/* ---- results (l1_report.c) */

struct l1_race { /* one peer, one operation, one number of threads */
    const char           *stage;
    const struct l1_peer *peer;
    enum l1_op            op;
    unsigned              threads, rounds;
    struct l1_figures     round[L1_ROUNDS_MAX];
};

struct l1_results {
    struct l1_race *races; /* room for L1_RACES_MAX, so that pointers into it hold */
    size_t          n;
    struct l1_memory_row {
        const struct l1_peer *peer;
        const char           *kind;
        double
            bytes; /* "plain", "L2-backed": overhead per entry; "budget": growth over l1.max_bytes, 1 is all of it */
        double counted; /* budget: what the library says it has, in the same unit */
    } memory[3 * L1_PEERS_MAX];
    size_t memory_n;
};

struct l1_race *l1_race_add(struct l1_results *results, const char *stage, const struct l1_peer *peer,
                            enum l1_op op, unsigned threads);
void            l1_table(const struct l1_results *results, const char *stage, unsigned threads);
void            l1_scaling(const struct l1_results *results);
void l1_memory_add(struct l1_results *results, const struct l1_peer *peer, const char *kind, double bytes,
                   double counted);
void l1_memory_table(const struct l1_results *results);
bool l1_tsv(const struct l1_results *results, const char *path);
/* The goals, a line each; returns how many were missed.  `policy` is the one that the goals of the reads are held against. */
unsigned l1_check(const struct l1_results *results, const char *policy);

#ifdef __cplusplus
}
#endif

#endif
