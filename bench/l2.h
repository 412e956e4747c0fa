/*
 * What the parts of the L2 benchmark share: servers, peers, runs and results.
 *
 * A target is a server under test and an address of it.  A peer is a way to ask it; a race is one peer, one target, one number of
 * threads and one batch size.  A run opens the peer anew, lets its threads call until time is up and closes it: what is timed lies
 * between two looks at the clock while all of them are working.
 *
 * Everything belongs to the main thread except a struct l2_thread, which is its thread's while it runs.
 */
#ifndef NEAR_BENCH_L2_H
#define NEAR_BENCH_L2_H

#include "harness/server.h"

#include "client/nearcache.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

enum {
    L2_KEY_SIZE    = 16, /* "key:" and 12 digits, as redis-benchmark writes __rand_int__ */
    L2_NAME_SIZE   = 21, /* of an entry: "nc:b:" and the key */
    L2_VALUE_SIZE  = 100,
    L2_BATCH_MAX   = 1000,
    L2_THREADS_MAX = 256,
    L2_ROUNDS_MAX  = 99,
    L2_RACES_MAX   = 256,
    L2_SERVERS_MAX = 4
};

struct l2_key {
    char text[L2_KEY_SIZE]; /* no NUL */
};

/* ---- what is stored (l2_run.c) */

void l2_key_print(struct l2_key *key, uint32_t index);
/* A value begins with the digits of its key, so that another key's cannot pass for it; the rest does not compress well. */
void l2_value(char *out, uint32_t index);
bool l2_right(const struct l2_key *key, const void *value, size_t size);
/* Entries of nearcache as other programs see them: under another name, with a header before the value. */
/* A key as it is on the wire: itself, or the name of nearcache's entry, made in `out`. */
struct l2_wire {
    const char *text;
    size_t      size;
};
struct l2_wire l2_wire(char out[L2_NAME_SIZE], const struct l2_key *key, bool entries);
bool           l2_wire_right(const struct l2_key *key, const void *answer, size_t size, bool entries);
void           l2_fail(const char *what, const char *why) __attribute__((noreturn));

/* ---- targets */

struct l2_target {
    const char         *name;
    struct test_server *servers[L2_SERVERS_MAX]; /* whose CPU time counts */
    unsigned            server_count;
    const char         *socket; /* of the first; NULL: by port */
    int                 port;
    char                uri[512];
    uint32_t            keys;
    bool                raw_filled, ours_filled;
};

/* ---- peers: one thread's state is its own, `shared` is everybody's in a run */

struct l2_peer {
    const char *name;
    /* May be NULL: nothing is shared, `own` is opened with the target alone. */
    void *(*open)(const struct l2_target *target, unsigned threads);
    void (*close)(void *shared);
    void *(*join)(void *shared, const struct l2_target *target);
    void (*leave)(void *own);
    /* One call for n keys; the number of those answered rightly. */
    unsigned (*call)(void *own, const struct l2_key *keys, unsigned n);
    bool ours;     /* reads what near_put_many stored, under its prefix and in its format */
    bool external; /* redis-benchmark */
};

extern const struct l2_peer l2_hiredis_get, l2_hiredis_pool, l2_hiredis_pipeline, l2_hiredis_mget,
    l2_hiredis_pipeline_entries, l2_hiredis_mget_entries, l2_hiredis_set, l2_hiredis_pipeline_set,
    l2_hiredis_pipeline_set_px, l2_redis_benchmark;
extern const struct l2_peer l2_memcached_get, l2_memcached_pool, l2_memcached_pool16, l2_memcached_mget,
    l2_memcached_mget_entries, l2_memcached_set;
extern const struct l2_peer l2_ours_get, l2_ours_get_many, l2_ours_put, l2_ours_put_many, l2_ours_put_many_px;

void l2_redis_fill(const struct l2_target *target);
void l2_memcached_fill(const struct l2_target *target);
void l2_ours_fill(const struct l2_target *target);
bool l2_ours_can(const struct l2_target *target); /* false: this build does not know such a server */

/* ---- running (l2_run.c) */

struct l2_figures {          /* of one run; a request is one key */
    double   rate;           /* per second */
    double   p50, p99, p999; /* us of a call */
    double   client, server; /* CPU us per request; NAN: not known */
    double   others;         /* share of the processors that went to neither, 0 .. 1 */
    uint64_t wrong;          /* not answered, or not with what is stored */
};

void l2_run(const struct l2_peer *peer, const struct l2_target *target, unsigned threads, unsigned batch,
            double seconds, struct l2_figures *figures);
/* redis-benchmark as a process of its own, -P 100 -c 50.  False: it cannot be run here. */
bool   l2_run_benchmark(const struct l2_target *target, double seconds, struct l2_figures *figures);
double l2_now(void);                                  /* s */
double l2_server_cpu(const struct l2_target *target); /* s so far, NAN where it cannot be known */
double l2_machine_cpu(void);                          /* s of all processors so far, spent or stolen */

/* ---- results (l2_report.c) */

struct l2_race {
    const char             *stage;
    const struct l2_peer   *peer;
    const struct l2_target *target;
    unsigned                threads, batch, rounds;
    struct l2_figures       round[L2_ROUNDS_MAX];
};

struct l2_results {
    struct l2_race races[L2_RACES_MAX];
    size_t         n;
};

/* One stage's rows; ratios are to `base` at the same number of threads and batch size, medians of those within each round.  NULL:
 * to the same peer on the stage's first target. */
void l2_table(const struct l2_results *results, const char *stage, const char *title,
              const struct l2_peer *base);
bool l2_tsv(const struct l2_results *results, const char *path);
/* The goals beside what was reached, a line each; returns how many of those measured were missed. */
unsigned l2_goals(const struct l2_results *results);

#endif
