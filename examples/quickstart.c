/*
 * A service in miniature.  SQLite is the system of record; two clients stand for two instances of the service; worker threads of
 * each replay a real request trace (product pages of a shop); a writer changes rows meanwhile.  At the end a table says where
 * the requests were answered, how fast, how often the database was asked, and whether anybody read something stale.
 *
 *   quickstart [--l2 URI] [--bus URI] [--seconds N] [--workers N] [--writes N] [--db FILE] [--data DIR]
 *
 * How staleness is counted: every row has a version.  The writer's log holds, per product, the newest version whose write has been
 * acknowledged (committed in SQLite, then removed from or put into the cache), and when.
 *   - After each write the writer fences the other instance and reads the product there: an older version is a stale read after
 *     a fence.  There must be none.
 *   - A worker's read that is older than what had been acknowledged when the read began is "behind"; that is allowed, up to
 *     the serve window, and the table shows how many there were and how old the oldest was.
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

#ifndef EXAMPLES_DATA
#define EXAMPLES_DATA "examples/data"
#endif

#define INSTANCES   2
#define MAX_WORKERS 64

struct options {
    const char *l2, *bus, *db, *data;
    int         seconds, workers, writes; /* workers per instance, writes per second */
};

static int64_t
now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void
die(const char *what, const char *why)
{
    fprintf(stderr, "quickstart: %s: %s\n", what, why);
    exit(1);
}

/* ---- latencies: a log-linear histogram, 16 steps per power of two, so within 6 % */

#define STEPS 16
struct histogram {
    uint64_t n, counts[48 * STEPS];
};

static void
record(struct histogram *h, int64_t ns)
{
    uint64_t v     = ns > 0 ? (uint64_t)ns : 0;
    int      power = v < STEPS ? 0 : 63 - __builtin_clzll(v) - 3;
    uint64_t step  = v < STEPS ? v : (v >> (power - 1)) - STEPS;
    size_t   at    = (size_t)power * STEPS + step;

    h->counts[at < 48 * STEPS ? at : 48 * STEPS - 1]++;
    h->n++;
}

static double
percentile_us(const struct histogram *h, double share)
{
    uint64_t want = (uint64_t)((double)h->n * share), seen = 0;

    for (size_t at = 0; at < 48 * STEPS; at++) {
        seen += h->counts[at];
        if (seen > want)
            return (at < STEPS ? (double)at : (double)((at % STEPS + STEPS) << (at / STEPS - 1))) / 1000;
    }
    return 0;
}

static void
merge(struct histogram *into, const struct histogram *from)
{
    into->n += from->n;
    for (size_t i = 0; i < 48 * STEPS; i++)
        into->counts[i] += from->counts[i];
}

/* ---- the trace and the writer's log */

static char (*keys)[12]; /* distinct products, by index */
static size_t    n_keys;
static unsigned *requests; /* the trace: indexes into keys */
static size_t    n_requests;

struct acknowledged {
    _Atomic uint64_t version;
    _Atomic int64_t  at;
};
static struct acknowledged *log_of; /* by product index */

static FILE *
open_data(const char *directory, const char *name)
{
    char  path[1024];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    file = fopen(path, "r");
    if (file == NULL)
        die(path, "cannot open");
    return file;
}

static int
by_text(const void *a, const void *b)
{
    return strcmp(a, b);
}

static void *
grown(void *array, size_t n, size_t *capacity, size_t size)
{
    if (n < *capacity)
        return array;
    *capacity = *capacity ? 2 * *capacity : 4096;
    array     = realloc(array, *capacity * size);
    if (array == NULL)
        die("reading the data", "out of memory");
    return array;
}

static void
read_products(sqlite3 *db, const char *directory)
{
    FILE         *file = open_data(directory, "products.tsv");
    char          line[256], *name, *price;
    size_t        capacity = 0;
    sqlite3_stmt *insert;

    sqlite3_exec(db,
                 "CREATE TABLE product (id TEXT PRIMARY KEY, name TEXT, cents INTEGER, version INTEGER) "
                 "WITHOUT ROWID; BEGIN",
                 NULL, NULL, NULL);
    if (sqlite3_prepare_v2(db, "INSERT INTO product VALUES (?1, ?2, ?3, 1)", -1, &insert, NULL) != SQLITE_OK)
        die("database", sqlite3_errmsg(db));
    while (fgets(line, sizeof(line), file) != NULL) {
        name  = strchr(line, '\t');
        price = name != NULL ? strchr(name + 1, '\t') : NULL;
        if (price == NULL)
            continue;
        *name++ = *price++ = '\0';
        keys               = grown(keys, n_keys, &capacity, sizeof(*keys));
        snprintf(keys[n_keys++], sizeof(*keys), "%.11s", line);
        sqlite3_bind_text(insert, 1, line, -1, SQLITE_STATIC);
        sqlite3_bind_text(insert, 2, name, -1, SQLITE_STATIC);
        sqlite3_bind_int(insert, 3, atoi(price));
        if (sqlite3_step(insert) != SQLITE_DONE)
            die("database", sqlite3_errmsg(db));
        sqlite3_reset(insert);
    }
    sqlite3_finalize(insert);
    sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
    fclose(file);
    qsort(keys, n_keys, sizeof(*keys), by_text);
    log_of = calloc(n_keys, sizeof(*log_of));
    for (size_t i = 0; i < n_keys; i++)
        log_of[i].version = 1;
}

static void
read_trace(const char *directory)
{
    FILE  *file     = open_data(directory, "web12-60k.keys");
    size_t capacity = 0;
    char   line[64], (*key)[12];

    while (fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, " \t\r\n")] = '\0';
        key                            = bsearch(line, keys, n_keys, sizeof(*keys), by_text);
        requests                       = grown(requests, n_requests, &capacity, sizeof(*requests));
        if (key != NULL)
            requests[n_requests++] = (unsigned)(key - keys);
    }
    fclose(file);
    if (n_requests == 0)
        die("web12-60k.keys", "no requests");
}

/* ---- the database: one connection a thread */

struct database {
    sqlite3      *db;
    sqlite3_stmt *select, *update;
};

static const char              *db_path;
static __thread struct database mine;
static _Atomic uint64_t         queries; /* that reached the database */

static struct database *
database(void)
{
    if (mine.db != NULL)
        return &mine;
    if (sqlite3_open(db_path, &mine.db) != SQLITE_OK)
        die(db_path, sqlite3_errmsg(mine.db));
    sqlite3_busy_timeout(mine.db, 10000);
    sqlite3_exec(mine.db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL", NULL, NULL, NULL);
    if (sqlite3_prepare_v2(mine.db, "SELECT version, name, cents FROM product WHERE id = ?1", -1,
                           &mine.select, NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(mine.db, "UPDATE product SET cents = ?2, version = ?3 WHERE id = ?1", -1,
                           &mine.update, NULL) != SQLITE_OK)
        if (n_keys > 0)
            die(db_path, sqlite3_errmsg(mine.db));
    return &mine;
}

static void
close_database(void)
{
    sqlite3_finalize(mine.select);
    sqlite3_finalize(mine.update);
    sqlite3_close(mine.db);
    mine = (struct database){ NULL, NULL, NULL };
}

/* One row as text: "version name cents".  Its length; 0: no such row; -1: the database failed. */
static int
query_product(near_bytes key, char *out, size_t size)
{
    struct database *d = database();
    int              rc, length = 0;

    queries++;
    sqlite3_bind_text(d->select, 1, key.data, (int)key.size, SQLITE_STATIC);
    rc = sqlite3_step(d->select);
    if (rc == SQLITE_ROW)
        length = snprintf(out, size, "%lld %s %d", (long long)sqlite3_column_int64(d->select, 0),
                          (const char *)sqlite3_column_text(d->select, 1), sqlite3_column_int(d->select, 2));
    sqlite3_reset(d->select);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? length : -1;
}

/* The loader: what nearcache calls when neither L1 nor L2 has a product. */
static void
load_products(near_load *loads[], size_t n, void *ctx)
{
    char row[256];

    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        int length = query_product(near_load_key(loads[i]), row, sizeof(row));
        if (length > 0)
            near_load_set(loads[i], (near_bytes){ row, (size_t)length });
        else if (length == 0)
            near_load_not_found(loads[i]);
        else
            near_load_fail(loads[i], NEAR_ERR_LOADER);
    }
}

/* ---- the service */

struct instance {
    near_client *client;
    near_cache  *products;
};

struct worker {
    pthread_t        thread;
    struct instance *instance;
    size_t           start;      /* in the trace */
    struct histogram latency[4]; /* by near_source */
    _Atomic uint64_t done;
    uint64_t         failed, behind;
    int64_t          oldest;
};

static struct instance instances[INSTANCES];
static struct worker   workers[MAX_WORKERS];
static size_t          n_workers;
static _Atomic bool    stopping;

static uint64_t
version_in(near_value *value)
{
    near_bytes bytes = near_value_bytes(value);
    char       text[24];
    size_t     n = bytes.size < sizeof(text) - 1 ? bytes.size : sizeof(text) - 1;

    memcpy(text, bytes.data, n);
    text[n] = '\0';
    return strtoull(text, NULL, 10);
}

static void
one_request(struct worker *w, unsigned product)
{
    uint64_t        before = atomic_load(&log_of[product].version);
    int64_t         since  = atomic_load(&log_of[product].at);
    int64_t         start  = now_ns();
    near_value_info info   = NEAR_VALUE_INFO_INIT;
    near_value     *value;

    if (near_fetch(w->instance->products, near_key(keys[product]), NULL, &value) != NEAR_OK) {
        w->failed++;
        return;
    }
    near_value_get_info(value, &info);
    record(&w->latency[info.source], now_ns() - start);
    if (version_in(value) < before) {
        w->behind++;
        if (start - since > w->oldest)
            w->oldest = start - since;
    }
    near_value_release(value);
}

static void *
work(void *ctx)
{
    struct worker *w = ctx;

    for (size_t at = w->start; !stopping; at = (at + 1) % n_requests) {
        one_request(w, requests[at]);
        atomic_fetch_add_explicit(&w->done, 1, memory_order_relaxed);
    }
    close_database();
    return NULL;
}

struct writer {
    pthread_t thread;
    int       per_second;
    uint64_t  writes, failed, checked, stale;
};

/* Change a row, tell the cache, then look from the other instance. */
static void
one_write(struct writer *w, unsigned product)
{
    struct instance *here    = &instances[w->writes % INSTANCES],
                    *there   = &instances[(w->writes + 1) % INSTANCES];
    struct database *d       = database();
    uint64_t         version = atomic_load(&log_of[product].version) + 1;
    near_bytes       key     = near_key(keys[product]);
    near_value      *value;
    char             row[256];
    int              length;
    near_status      status;

    sqlite3_bind_text(d->update, 1, keys[product], -1, SQLITE_STATIC);
    sqlite3_bind_int(d->update, 2, (int)(199 + version * 37 % 40000));
    sqlite3_bind_int64(d->update, 3, (sqlite3_int64)version);
    if (sqlite3_step(d->update) != SQLITE_DONE)
        die("update", sqlite3_errmsg(d->db));
    sqlite3_reset(d->update);
    /* half of the writers know the new value, the other half only that the old one is wrong */
    length = w->writes % 4 < 2 ? query_product(key, row, sizeof(row)) : 0;
    if (length > 0) {
        queries--; /* the writer's own; the table counts reads */
        status = near_put(here->products, key, (near_bytes){ row, (size_t)length }, NULL);
    } else {
        status = near_remove(here->products, key);
    }
    w->writes++;
    if (status != NEAR_OK) {
        w->failed++; /* not acknowledged: nothing is promised */
        return;
    }
    atomic_store(&log_of[product].at, now_ns());
    atomic_store(&log_of[product].version, version);
    if (near_fence(there->client, 5000) != NEAR_OK ||
        near_fetch(there->products, key, NULL, &value) != NEAR_OK)
        return;
    w->checked++;
    if (version_in(value) < version)
        w->stale++;
    near_value_release(value);
}

static void *
write_rows(void *ctx)
{
    struct writer *w    = ctx;
    int64_t        next = now_ns(), step = 1000000000 / w->per_second;
    uint64_t       state = 1;

    while (!stopping) {
        struct timespec pause = { 0, 0 };

        state = state * 6364136223846793005u + 1442695040888963407u;
        one_write(w, requests[(state >> 33) % n_requests]); /* popular products change more often */
        next += step;
        if (next > now_ns())
            pause.tv_nsec = next - now_ns();
        nanosleep(&pause, NULL);
    }
    close_database();
    return NULL;
}

/* ---- what is seen */

static uint64_t
requests_done(void)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < n_workers; i++)
        sum += atomic_load_explicit(&workers[i].done, memory_order_relaxed);
    return sum;
}

static void
watch(const struct options *o, const struct writer *writer)
{
    int64_t  start = now_ns(), end = start + (int64_t)o->seconds * 1000000000;
    uint64_t last = 0;

    (void)writer;
    while (now_ns() < end) {
        struct timespec pause = { 0, 200000000 };
        uint64_t        done;

        nanosleep(&pause, NULL);
        done = requests_done();
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "\r%4.1fs  %10llu requests  %8.0f/s  %8llu database queries ",
                    (double)(now_ns() - start) / 1e9, (unsigned long long)done, (double)(done - last) / 0.2,
                    (unsigned long long)queries);
        last = done;
    }
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%*s\r", 78, "");
}

/* What a request costs without any cache: the same queries, straight to the database. */
static void
measure_database(struct histogram *h)
{
    char     row[256];
    uint64_t before = queries;

    for (size_t i = 0; i < 5000; i++) {
        int64_t start = now_ns();
        query_product(near_key(keys[requests[i % n_requests]]), row, sizeof(row));
        record(h, now_ns() - start);
    }
    queries = before;
}

static void
print_row(const char *name, const struct histogram *h, uint64_t all)
{
    printf("  %-22s %12llu  %7.3f %%  %9.2f  %9.2f\n", name, (unsigned long long)h->n,
           all ? 100.0 * (double)h->n / (double)all : 0, percentile_us(h, 0.50), percentile_us(h, 0.99));
}

static bool
report(const struct options *o, const struct writer *writer, const struct histogram *direct)
{
    static struct histogram sources[4];
    uint64_t                failed = 0, behind = 0, all = 0;
    int64_t                 oldest = 0;

    for (size_t i = 0; i < n_workers; i++) {
        for (int s = 0; s < 4; s++)
            merge(&sources[s], &workers[i].latency[s]);
        failed += workers[i].failed;
        behind += workers[i].behind;
        oldest = workers[i].oldest > oldest ? workers[i].oldest : oldest;
    }
    for (int s = 0; s < 4; s++)
        all += sources[s].n;
    printf("%d instances x %d workers, %d s, %zu products, L2 %s\n\n", INSTANCES, o->workers, o->seconds,
           n_keys, strchr(o->l2, '@') ? "(with password)" : o->l2);
    printf("  %-22s %12s  %9s  %9s  %9s\n", "answered by", "requests", "share", "p50 us", "p99 us");
    print_row("L1 (own memory)", &sources[NEAR_FROM_L1], all);
    print_row("L2 (shared)", &sources[NEAR_FROM_L2], all);
    print_row("loader (SQLite)", &sources[NEAR_FROM_LOADER], all);
    printf("  %-22s %12s  %9s  %9.2f  %9.2f\n\n", "SQLite, no cache", "", "", percentile_us(direct, 0.50),
           percentile_us(direct, 0.99));
    printf("  %-46s %12llu\n", "requests", (unsigned long long)all);
    printf("  %-46s %12.3f %%\n", "hit ratio (L1 and L2)",
           all ? 100.0 * (double)(sources[NEAR_FROM_L1].n + sources[NEAR_FROM_L2].n) / (double)all : 0);
    printf("  %-46s %12llu\n", "database queries without the cache",
           (unsigned long long)(all + writer->checked));
    printf("  %-46s %12llu\n", "database queries with it", (unsigned long long)queries);
    printf("  %-46s %12llu  (%llu not acknowledged)\n", "rows changed meanwhile",
           (unsigned long long)writer->writes, (unsigned long long)writer->failed);
    printf("  %-46s %12llu  of %llu\n", "stale reads after a fence", (unsigned long long)writer->stale,
           (unsigned long long)writer->checked);
    printf("  %-46s %12llu  (oldest by %.1f ms)\n", "reads behind a write, without a fence",
           (unsigned long long)behind, (double)oldest / 1e6);
    printf("  %-46s %12llu\n", "failed requests", (unsigned long long)failed);
    return writer->stale == 0 && failed == 0 && all > 0;
}

/* ---- start and end */

static void
log_line(near_log_level level, const char *message, void *ctx)
{
    (void)level;
    fprintf(stderr, "[instance %d] %s\n", (int)(intptr_t)ctx, message);
}

static void
set(near_config *config, const char *name, const char *value)
{
    near_error error;

    if (near_config_set(config, name, value, &error) != NEAR_OK)
        die("settings", error.text);
}

static void
open_instance(struct instance *in, int number, const struct options *o)
{
    near_config *config = near_config_new();
    near_error   error;

    set(config, "l2.uri", o->l2);
    set(config, "coherence.uri", o->bus);
    if (near_client_open(config, &in->client, &error) != NEAR_OK)
        die("opening the client", error.text);
    near_set_log(in->client, log_line, (void *)(intptr_t)number);
    if (near_cache_open(in->client, "products", NULL, &in->products, &error) != NEAR_OK)
        die("opening the cache", error.text);
    near_cache_set_loader(in->products, load_products, NULL);
    near_clear(
        in->products); /* the database is new: nothing that a server kept from an earlier run is true */
    near_config_free(config);
}

static struct options
parse(int argc, char **argv)
{
    struct options o = { "memory:shop", "auto", NULL, EXAMPLES_DATA, 5, 2, 500 };

    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (value == NULL || strncmp(argv[i], "--", 2) != 0)
            die("usage", "quickstart [--l2 URI] [--bus URI] [--seconds N] [--workers N] [--writes N] [--db "
                         "FILE] [--data DIR]");
        else if (strcmp(argv[i], "--l2") == 0)
            o.l2 = value;
        else if (strcmp(argv[i], "--bus") == 0)
            o.bus = value;
        else if (strcmp(argv[i], "--db") == 0)
            o.db = value;
        else if (strcmp(argv[i], "--data") == 0)
            o.data = value;
        else if (strcmp(argv[i], "--seconds") == 0)
            o.seconds = atoi(value);
        else if (strcmp(argv[i], "--workers") == 0)
            o.workers = atoi(value);
        else if (strcmp(argv[i], "--writes") == 0)
            o.writes = atoi(value);
        else
            die(argv[i], "unknown option");
    }
    if (o.seconds < 1 || o.workers < 1 || o.workers > MAX_WORKERS / INSTANCES || o.writes < 1)
        die("usage", "--seconds, --workers and --writes are at least 1; at most 32 workers");
    return o;
}

static void
run(const struct options *o, struct writer *writer)
{
    n_workers          = (size_t)o->workers * INSTANCES;
    writer->per_second = o->writes;
    for (size_t i = 0; i < n_workers; i++) {
        workers[i].instance = &instances[i % INSTANCES];
        workers[i].start    = i * n_requests / n_workers;
        pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    }
    pthread_create(&writer->thread, NULL, write_rows, writer);
    watch(o, writer);
    stopping = true;
    for (size_t i = 0; i < n_workers; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_join(writer->thread, NULL);
}

int
main(int argc, char **argv)
{
    static struct histogram direct;
    struct options          o           = parse(argc, argv);
    struct writer           writer      = { .writes = 0 };
    char                    directory[] = "/tmp/quickstart-XXXXXX", path[1024];
    bool                    good;

    if (o.db == NULL && mkdtemp(directory) == NULL)
        die(directory, "cannot create");
    snprintf(path, sizeof(path), "%s/shop.db", directory);
    db_path = o.db != NULL ? o.db : path;
    remove(db_path);
    database();
    read_products(mine.db, o.data);
    close_database();
    read_trace(o.data);
    for (int i = 0; i < INSTANCES; i++)
        open_instance(&instances[i], i, &o);
    measure_database(&direct);
    run(&o, &writer);
    good = report(&o, &writer, &direct);
    for (int i = 0; i < INSTANCES; i++)
        near_client_close(instances[i].client, NULL);
    close_database();
    if (o.db == NULL) {
        static const char *const files[] = { "", "-wal", "-shm" };
        for (int i = 0; i < 3; i++) {
            snprintf(path, sizeof(path), "%s/shop.db%s", directory, files[i]);
            remove(path);
        }
        rmdir(directory);
    }
    free(keys);
    free(requests);
    free(log_of);
    return good ? 0 : 1;
}
