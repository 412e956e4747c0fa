/*
 * What a write costs until it is acknowledged, side by side in one run: near_put to the memory: backend, write-back with a journal, and
 * write-through to SQLite with one transaction a write.
 *
 *   write [--seconds S] [--dir DIRECTORY] [--only ROW] [--parallel N]
 *
 * DIRECTORY (default .) gets the journals and databases, so it should lie on the disk that is meant.  Each figure is that of the best of
 * three rounds, which take turns; the ratios are what counts.  N batches go to the store at a time (write_back.parallel, default 2): SQLite takes one.
 */
#include <nearcache.h>
#include <sqlite3.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { KEYS = 10000, VALUE = 100, MOST_THREADS = 16, ROUNDS = 3 };

static const char *directory = ".";
static double      seconds   = 0.5;
static int         only      = -1;
static const char *parallel;

static double
now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void
die(const char *what, const char *why)
{
    fprintf(stderr, "write: %s: %s\n", what, why);
    exit(1);
}

static uint64_t
own_cpu(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* ---- SQLite */

struct store {
    sqlite3        *db;
    sqlite3_stmt   *put;
    pthread_mutex_t lock; /* one connection; covers it */
};

static void
open_store(struct store *store, const char *name)
{
    char path[600];

    snprintf(path, sizeof(path), "%s/write-bench-%s.db", directory, name);
    unlink(path);
    pthread_mutex_init(&store->lock, NULL);
    if (sqlite3_open(path, &store->db) != SQLITE_OK ||
        sqlite3_exec(store->db,
                     "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; "
                     "CREATE TABLE things (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
                     NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(store->db, "INSERT OR REPLACE INTO things VALUES (?, ?)", -1, &store->put, NULL) !=
            SQLITE_OK)
        die(path, sqlite3_errmsg(store->db));
}

static void
close_store(struct store *store, const char *name)
{
    static const char *const endings[] = { "", "-wal", "-shm" };
    char                     path[600];

    sqlite3_finalize(store->put);
    sqlite3_close(store->db);
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/write-bench-%s.db%s", directory, name, endings[i]);
        unlink(path);
    }
}

/* near_store_fn: one transaction a call; through gives it one write a call. */
static void
store_writes(near_write *writes[], size_t n, void *ctx)
{
    struct store *store = ctx;
    int           code;

    pthread_mutex_lock(&store->lock);
    code = sqlite3_exec(store->db, "BEGIN", NULL, NULL, NULL);
    for (size_t i = 0; i < n && code == SQLITE_OK; i++) {
        near_bytes key = near_write_key(writes[i]), data = near_write_data(writes[i]);

        sqlite3_bind_text(store->put, 1, key.data, (int)key.size, SQLITE_STATIC);
        sqlite3_bind_blob(store->put, 2, data.data, (int)data.size, SQLITE_STATIC);
        code = sqlite3_step(store->put) == SQLITE_DONE ? SQLITE_OK : SQLITE_ERROR;
        sqlite3_reset(store->put);
    }
    if (code == SQLITE_OK)
        code = sqlite3_exec(store->db, "COMMIT", NULL, NULL, NULL);
    pthread_mutex_unlock(&store->lock);
    for (size_t i = 0; i < n; i++) {
        if (code == SQLITE_OK)
            near_write_done(writes[i]);
        else
            near_write_fail(writes[i], NEAR_ERR_UNAVAILABLE);
    }
}

/* ---- one way to write */

struct way {
    const char *name, *policy, *fsync; /* policy NULL: near_put */
    unsigned    threads;
    double      best;
    double      shared; /* writes per fsync of the journal, in the last round */
    double      cpu;    /* least, us of a writer's processor per write */
};

struct run {
    near_cache      *cache;
    const char      *policy;
    _Atomic uint64_t writes, failed;
    double           until;
    _Atomic uint64_t cpu; /* ns of all writers */
};

struct thread {
    struct run *run;
    unsigned    id;
    pthread_t   thread;
};

static void *
write_all(void *ctx)
{
    struct thread *self = ctx;
    struct run    *run  = self->run;
    char           key[32], value[VALUE] = { 0 };
    uint64_t       n = 0, failed = 0, began = own_cpu();

    while (n % 64 != 0 || now() < run->until) {
        near_status status;

        snprintf(key, sizeof(key), "thing:%u:%u", self->id, (unsigned)(n * 7919 % KEYS));
        memcpy(value, &n, sizeof(n));
        status = run->policy == NULL
                     ? near_put(run->cache, near_key(key), (near_bytes){ value, VALUE }, NULL)
                     : near_update(run->cache, near_key(key), (near_bytes){ value, VALUE }, NULL);
        failed += status != NEAR_OK;
        n++;
        if (run->policy != NULL && strcmp(run->policy, "through") == 0 && now() >= run->until)
            break;
    }
    run->cpu += own_cpu() - began;
    run->writes += n;
    run->failed += failed;
    return NULL;
}

static void
set(near_config *config, const char *name, const char *value)
{
    near_error error;

    if (near_config_set(config, name, value, &error) != NEAR_OK)
        die(name, error.text);
}

static near_client *
open_way(const struct way *way, near_cache **cache)
{
    near_config *config = near_config_new();
    near_client *client;
    near_error   error;
    char         path[600];

    set(config, "l2.uri", "memory:");
    set(config, "close.timeout", "60s");
    if (way->policy != NULL)
        set(config, "write.policy", way->policy);
    if (way->fsync != NULL) {
        snprintf(path, sizeof(path), "%s/write-bench-journal", directory);
        set(config, "write_back.journal", path);
        set(config, "write_back.fsync", way->fsync);
        set(config, "write_back.max_pending", "256MiB");
        set(config, "write_back.batch", "1000");
        if (parallel != NULL)
            set(config, "write_back.parallel", parallel);
    }
    if (near_client_open(config, &client, &error) != NEAR_OK ||
        near_cache_open(client, "things", NULL, cache, &error) != NEAR_OK)
        die(way->name, error.text);
    near_config_free(config);
    return client;
}

static void
drop_journal(void)
{
    char command[700];

    snprintf(command, sizeof(command), "rm -rf '%s/write-bench-journal'", directory);
    if (system(command) != 0)
        die("journal", "cannot be removed");
}

static void
measure(struct way *way)
{
    struct thread threads[MOST_THREADS];
    struct store  store;
    struct run    run   = { .policy = way->policy };
    near_stats    stats = NEAR_STATS_INIT;
    near_error    error;
    near_client  *client;
    double        began, rate, cpu;

    open_store(&store, "things");
    client = open_way(way, &run.cache);
    near_cache_set_store(run.cache, store_writes, &store);
    began     = now();
    run.until = began + seconds;
    for (unsigned i = 0; i < way->threads; i++) {
        threads[i] = (struct thread){ .run = &run, .id = i };
        pthread_create(&threads[i].thread, NULL, write_all, &threads[i]);
    }
    for (unsigned i = 0; i < way->threads; i++)
        pthread_join(threads[i].thread, NULL);
    rate = (double)run.writes / (now() - began);
    near_stats_get(client, &stats);
    way->shared = stats.journal_fsyncs > 0 ? (double)run.writes / (double)stats.journal_fsyncs : 0;
    cpu         = (double)run.cpu / 1e3 / (double)run.writes;
    if (run.failed != 0)
        fprintf(stderr, "%s: %llu writes failed\n", way->name, (unsigned long long)run.failed);
    if (near_client_close(client, &error) != NEAR_OK)
        fprintf(stderr, "%s: %s\n", way->name, error.text);
    close_store(&store, "things");
    drop_journal();
    way->best = rate > way->best ? rate : way->best;
    way->cpu  = way->cpu == 0 || cpu < way->cpu ? cpu : way->cpu;
}

int
main(int argc, char **argv)
{
    struct way ways[] = {
        { "near_put, memory:", NULL, NULL, 1, 0, 0, 0 },
        { "back, no journal", "back", NULL, 1, 0, 0, 0 },
        { "back, fsync = none", "back", "none", 1, 0, 0, 0 },
        { "back, fsync = interval", "back", "interval", 1, 0, 0, 0 },
        { "back, fsync = always, 1 thread", "back", "always", 1, 0, 0, 0 },
        { "back, fsync = always, 16 threads", "back", "always", 16, 0, 0, 0 },
        { "through, SQLite, a transaction each", "through", NULL, 1, 0, 0, 0 },
    };
    enum { PUT, BACK, NONE, INTERVAL, ALWAYS, ALWAYS16, THROUGH, WAYS };

    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--seconds") == 0)
            seconds = atof(argv[i + 1]);
        else if (strcmp(argv[i], "--dir") == 0)
            directory = argv[i + 1];
        else if (strcmp(argv[i], "--only") == 0)
            only = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--parallel") == 0)
            parallel = argv[i + 1];
        else
            die(argv[i], "accepts --seconds S, --dir DIRECTORY, --only ROW, --parallel N");
    }
    for (unsigned round = 0; round < ROUNDS; round++)
        for (unsigned i = 0; i < WAYS; i++)
            if (only < 0 || only == (int)i)
                measure(&ways[i]);
    for (unsigned i = 0; i < WAYS; i++)
        printf("%-40s %10.0f writes/s, %6.2f us of the processor each, %.1f per fsync\n", ways[i].name,
               ways[i].best, ways[i].cpu, ways[i].shared);
    printf("back with interval / through SQLite    %10.1f  (goal: 10 or more)\n",
           ways[INTERVAL].best / ways[THROUGH].best);
    printf("near_put / back with interval          %10.2f  (goal: 2 or less)\n",
           ways[PUT].best / ways[INTERVAL].best);
    printf("the same by the writer's processor time %10.2f\n", ways[INTERVAL].cpu / ways[PUT].cpu);
    printf("always: 16 threads / 1 thread          %10.1f  (goal: 8 or more)\n",
           ways[ALWAYS16].best / ways[ALWAYS].best);
    return 0;
}
