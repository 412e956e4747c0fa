/*
 * A model server in miniature.  SQLite has the features: a value for each (entity, field).  A prediction reads the same fields of a
 * consumer, of some dozens of stores and of some items, and adds them up with the model's weights; it is replayed from a log of a
 * feature store's reads (examples/data/predictions.txt), once for each size of L1.
 *
 *   feature_server [--redis HOST:PORT] [--sizes N,N,...] [--lines N] [--svg FILE] [--db FILE] [--data DIR]
 *
 * Without --redis: L1 over SQLite, by a loader.  With it that Redis is filled from SQLite first, one hash for each entity as feature stores have
 * them, L1 is over these hashes, and the same loop is run on plain hiredis, one pipeline of HMGETs for each exchange.
 *
 * All loops must come to the same scores.  A table says where the fields came from and how fast; with --svg a plot of the hit ratio over
 * time is written.
 */
#include <hiredis/hiredis.h>
#include <nearcache.h>
#include <sqlite3.h>

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef EXAMPLES_DATA
#define EXAMPLES_DATA "examples/data"
#endif

#define FIELDS_MOST   128 /* of one list */
#define LISTS_MOST    256
#define ENTITIES_MOST 128 /* of one line */
#define SIZES_MOST    8
#define POINTS        60 /* of the plot */

static struct {
    const char *redis, *svg, *db, *data;
    size_t      sizes[SIZES_MOST], n_sizes, lines;
} options = { .db = ":memory:", .data = EXAMPLES_DATA, .lines = SIZE_MAX };

static void
die(const char *what, const char *why)
{
    fprintf(stderr, "feature_server: %s: %s\n", what, why);
    exit(1);
}

static void
must(near_status status, const char *what, const near_error *error)
{
    if (status != NEAR_OK)
        die(what, error != NULL ? error->text : near_status_text(status));
}

static void *
grown(void *array, size_t n, size_t *capacity, size_t size)
{
    if (n < *capacity)
        return array;
    *capacity = *capacity > 0 ? 2 * *capacity : 1024;
    array     = realloc(array, *capacity * size);
    if (array == NULL)
        die("reading the log", "out of memory");
    return array;
}

static double
now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- the log */

struct list { /* of the fields that a model wants */
    size_t     n;
    near_field fields[FIELDS_MOST];
    char       names[FIELDS_MOST][12]; /* what the hashes call them: decimal */
    float      weights[FIELDS_MOST];
};

struct exchange { /* one line: these fields of those entities */
    const struct list *list;
    size_t             n;
    near_bytes        *entities;
};

static struct list      lists[LISTS_MOST];
static struct exchange *exchanges;
static size_t           n_exchanges, n_requests, n_cells;

static void
read_list(char *words)
{
    char        *word   = strtok(words, " \n");
    long         number = word != NULL ? strtol(word, NULL, 10) : -1;
    struct list *list   = &lists[number >= 0 && number < LISTS_MOST ? number : 0];

    while ((word = strtok(NULL, " \n")) != NULL && list->n < FIELDS_MOST) {
        list->fields[list->n] = (near_field)strtoul(word, NULL, 10);
        snprintf(list->names[list->n], sizeof(list->names[0]), "%u", list->fields[list->n]);
        list->weights[list->n] = (float)(list->fields[list->n] % 2001) / 1000.0f - 1.0f;
        list->n++;
    }
}

static void
read_exchange(char *words)
{
    static size_t   capacity;
    near_bytes      entities[ENTITIES_MOST];
    struct exchange e = { .n = 0 };
    char           *word;
    long            number;

    if (strtok(words, " \n") == NULL || (word = strtok(NULL, " \n")) == NULL)
        return;
    number = strtol(word, NULL, 10);
    e.list = number > 0 && number < LISTS_MOST && lists[number].n > 0 ? &lists[number] : NULL;
    while (e.n < ENTITIES_MOST && (word = strtok(NULL, " \n")) != NULL)
        entities[e.n++] = near_key(strdup(word));
    if (e.list == NULL || e.n == 0)
        die("the log", "a line that makes no sense");
    e.entities = malloc(e.n * sizeof(*e.entities));
    memcpy(e.entities, entities, e.n * sizeof(*entities));
    exchanges                = grown(exchanges, n_exchanges, &capacity, sizeof(*exchanges));
    exchanges[n_exchanges++] = e;
    n_requests += e.n;
    n_cells += e.n * e.list->n;
}

static void
read_log(void)
{
    char   path[1024], *line = NULL;
    size_t room = 0;
    FILE  *file;

    snprintf(path, sizeof(path), "%s/predictions.txt", options.data);
    file = fopen(path, "r");
    if (file == NULL)
        die(path, "cannot open");
    while (n_exchanges < options.lines && getline(&line, &room, file) > 0) {
        if (strncmp(line, "fields ", 7) == 0)
            read_list(line + 7);
        else
            read_exchange(line);
    }
    free(line);
    fclose(file);
    if (n_exchanges == 0)
        die(path, "nothing in it");
}

/* ---- the features: made up, and in SQLite */

static sqlite3      *db;
static sqlite3_stmt *selecting;

/* A number of its own for each. */
static float
made_up(near_bytes entity, near_field field)
{
    uint32_t h = field;

    for (size_t i = 0; i < entity.size; i++)
        h = (h ^ ((const unsigned char *)entity.data)[i]) * 16777619u;
    return (float)(h >> 8 & 0xffff) / 65536.0f;
}

static void
sql(const char *text)
{
    if (sqlite3_exec(db, text, NULL, NULL, NULL) != SQLITE_OK)
        die("database", sqlite3_errmsg(db));
}

static void
fill_database(void)
{
    sqlite3_stmt *insert;

    if (sqlite3_open(options.db, &db) != SQLITE_OK)
        die("database", sqlite3_errmsg(db));
    sql("CREATE TABLE IF NOT EXISTS feature (entity TEXT, field INTEGER, value REAL, "
        "PRIMARY KEY (entity, field)) WITHOUT ROWID; BEGIN");
    if (sqlite3_prepare_v2(db, "INSERT OR IGNORE INTO feature VALUES (?1, ?2, ?3)", -1, &insert, NULL) !=
            SQLITE_OK ||
        sqlite3_prepare_v2(db, "SELECT value FROM feature WHERE entity = ?1 AND field = ?2", -1, &selecting,
                           NULL) != SQLITE_OK)
        die("database", sqlite3_errmsg(db));
    for (size_t i = 0; i < n_exchanges; i++)
        for (size_t e = 0; e < exchanges[i].n; e++)
            for (size_t f = 0; f < exchanges[i].list->n; f++) {
                near_bytes entity = exchanges[i].entities[e];
                near_field field  = exchanges[i].list->fields[f];

                sqlite3_bind_text(insert, 1, entity.data, (int)entity.size, SQLITE_STATIC);
                sqlite3_bind_int64(insert, 2, field);
                sqlite3_bind_double(insert, 3, made_up(entity, field));
                if (sqlite3_step(insert) != SQLITE_DONE)
                    die("database", sqlite3_errmsg(db));
                sqlite3_reset(insert);
            }
    sqlite3_finalize(insert);
    sql("COMMIT");
}

/* The store behind the cache: one cell. */
static void
load_one(near_load *work)
{
    near_bytes entity;
    near_field field;
    float      value;

    if (near_load_field(work, &entity, &field) != NEAR_OK) {
        near_load_fail(work, NEAR_ERR_LOADER);
        return;
    }
    sqlite3_bind_text(selecting, 1, entity.data, (int)entity.size, SQLITE_TRANSIENT);
    sqlite3_bind_int64(selecting, 2, field);
    if (sqlite3_step(selecting) == SQLITE_ROW) {
        value = (float)sqlite3_column_double(selecting, 0);
        near_load_set(work, (near_bytes){ &value, sizeof(value) });
    } else {
        near_load_not_found(work);
    }
    sqlite3_reset(selecting);
}

static pthread_mutex_t one_statement =
    PTHREAD_MUTEX_INITIALIZER; /* loaders may be called by several threads */

static void
load(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    pthread_mutex_lock(&one_statement);
    for (size_t i = 0; i < n; i++)
        load_one(loads[i]);
    pthread_mutex_unlock(&one_statement);
}

/* ---- the same in Redis: HSET entity field value */

static redisContext *
dial(void)
{
    char          host[256];
    const char   *colon = strrchr(options.redis, ':');
    redisContext *c;

    if (colon == NULL || (size_t)(colon - options.redis) >= sizeof(host))
        die(options.redis, "no HOST:PORT");
    snprintf(host, sizeof(host), "%.*s", (int)(colon - options.redis), options.redis);
    c = redisConnect(host, atoi(colon + 1));
    if (c == NULL || c->err != 0)
        die(options.redis, c != NULL ? c->errstr : "out of memory");
    return c;
}

static redisReply *
reply_of(redisContext *c)
{
    redisReply *reply = NULL;

    if (redisGetReply(c, (void **)&reply) != REDIS_OK)
        die("redis", c->errstr);
    if (reply->type == REDIS_REPLY_ERROR)
        die("redis", reply->str);
    return reply;
}

static void
fill_redis(void)
{
    redisContext *c = dial();
    sqlite3_stmt *all;
    size_t        waiting = 0;

    if (sqlite3_prepare_v2(db, "SELECT entity, field, value FROM feature", -1, &all, NULL) != SQLITE_OK)
        die("database", sqlite3_errmsg(db));
    while (sqlite3_step(all) == SQLITE_ROW) {
        float value = (float)sqlite3_column_double(all, 2);

        redisAppendCommand(c, "HSET %s %s %b", (const char *)sqlite3_column_text(all, 0),
                           (const char *)sqlite3_column_text(all, 1), &value, sizeof(value));
        for (waiting++; waiting == 512; waiting = 0)
            for (size_t i = 0; i < 512; i++)
                freeReplyObject(reply_of(c));
    }
    while (waiting-- > 0)
        freeReplyObject(reply_of(c));
    sqlite3_finalize(all);
    redisFree(c);
}

/* ---- the prediction loop */

struct loop {
    char          name[40];
    near_cache   *cache; /* or */
    redisContext *redis;
    double        score; /* of all predictions */
    size_t        from_l1;
    double        seconds, *took; /* of each exchange */
    double        ratio[POINTS];  /* of L1 hits, in each part of the log */
};

static float   matrix[ENTITIES_MOST * FIELDS_MOST]; /* row by row, as the model wants them */
static uint8_t mask[ENTITIES_MOST * FIELDS_MOST];

static size_t
read_by_nearcache(struct loop *loop, const struct exchange *e)
{
    near_fields_options how  = NEAR_FIELDS_OPTIONS_INIT;
    size_t              hits = 0;

    must(near_fields_get_into(loop->cache, e->entities, e->n, e->list->fields, e->list->n, &how, matrix,
                              sizeof(matrix[0]), mask, NULL),
         "features", NULL);
    for (size_t i = 0; i < e->n * e->list->n; i++)
        hits += mask[i] == NEAR_FROM_L1;
    return hits;
}

static size_t
read_by_hiredis(struct loop *loop, const struct exchange *e)
{
    const char *argv[2 + FIELDS_MOST];
    size_t      size[2 + FIELDS_MOST];

    argv[0] = "HMGET";
    size[0] = 5;
    for (size_t f = 0; f < e->list->n; f++) {
        argv[2 + f] = e->list->names[f];
        size[2 + f] = strlen(e->list->names[f]);
    }
    for (size_t i = 0; i < e->n; i++) {
        argv[1] = e->entities[i].data;
        size[1] = e->entities[i].size;
        redisAppendCommandArgv(loop->redis, (int)(2 + e->list->n), argv, size);
    }
    for (size_t i = 0; i < e->n; i++) {
        redisReply *row = reply_of(loop->redis);

        for (size_t f = 0; f < row->elements; f++)
            memcpy(&matrix[i * e->list->n + f], row->element[f]->str, sizeof(matrix[0]));
        freeReplyObject(row);
    }
    return 0;
}

static double
score(const struct exchange *e)
{
    double sum = 0;

    for (size_t i = 0; i < e->n; i++)
        for (size_t f = 0; f < e->list->n; f++)
            sum += (double)(matrix[i * e->list->n + f] * e->list->weights[f]);
    return sum;
}

static int
by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void
predict_all(struct loop *loop)
{
    size_t cells[POINTS] = { 0 }, hits[POINTS] = { 0 };
    double begun = now();

    loop->took = calloc(n_exchanges, sizeof(*loop->took));
    for (size_t i = 0; i < n_exchanges; i++) {
        const struct exchange *e     = &exchanges[i];
        size_t                 point = i * POINTS / n_exchanges, n;
        double                 since = now();

        n             = loop->cache != NULL ? read_by_nearcache(loop, e) : read_by_hiredis(loop, e);
        loop->took[i] = now() - since;
        loop->score += score(e);
        loop->from_l1 += n;
        hits[point] += n;
        cells[point] += e->n * e->list->n;
    }
    loop->seconds = now() - begun;
    for (size_t i = 0; i < POINTS; i++)
        loop->ratio[i] = cells[i] > 0 ? (double)hits[i] / (double)cells[i] : i > 0 ? loop->ratio[i - 1] : 0;
    qsort(loop->took, n_exchanges, sizeof(*loop->took), by_size);
}

static void
set(near_config *config, const char *name, const char *value)
{
    near_error error;

    must(near_config_set(config, name, value, &error), name, &error);
}

/* One size of L1, from empty. */
static void
run_nearcache(struct loop *loop, size_t entries)
{
    near_config *config = near_config_new();
    near_client *client;
    near_error   error;
    char         text[300];

    snprintf(loop->name, sizeof(loop->name), "L1 of %zu", entries);
    snprintf(text, sizeof(text), "%zu", entries);
    set(config, "l1.max_entries", text);
    set(config, "l1.max_bytes", "1GiB");
    set(config, "l1.max_ttl", "1h");
    if (options.redis != NULL) {
        snprintf(text, sizeof(text), "redis://%s", options.redis);
        set(config, "l2.uri", text);
        set(config, "fields.key_prefix", ""); /* the hash of an entity lies under its name alone */
    }
    must(near_client_open(config, &client, &error), "client", &error);
    must(near_cache_open(client, "features", NULL, &loop->cache, &error), "cache", &error);
    if (options.redis == NULL)
        near_cache_set_loader(loop->cache, load, NULL);
    predict_all(loop);
    near_config_free(config);
    near_client_close(client, NULL);
}

static void
run_hiredis(struct loop *loop)
{
    snprintf(loop->name, sizeof(loop->name), "hiredis");
    loop->redis = dial();
    predict_all(loop);
    redisFree(loop->redis);
}

/* ---- what came of it */

static void
print_table(const struct loop *loops, size_t n)
{
    printf("%zu exchanges, %zu requests (HMGET), %zu fields\n\n", n_exchanges, n_requests, n_cells);
    printf("%-16s %9s %12s %9s %9s\n", "", "from L1", "requests/s", "p50 us", "p99 us");
    for (size_t i = 0; i < n; i++)
        printf("%-16s %8.2f%% %12.0f %9.1f %9.1f\n", loops[i].name,
               100.0 * (double)loops[i].from_l1 / (double)n_cells, (double)n_requests / loops[i].seconds,
               loops[i].took[n_exchanges / 2] * 1e6, loops[i].took[n_exchanges * 99 / 100] * 1e6);
    for (size_t i = 1; i < n; i++)
        if (fabs(loops[i].score - loops[0].score) > 1e-6 * fabs(loops[0].score))
            die(loops[i].name, "other scores than the first");
    printf("\nall loops: the same scores\n");
}

enum { WIDTH = 720, HEIGHT = 400, LEFT = 60, TOP = 40, RIGHT = 130, BOTTOM = 50 };

static double
x_of(size_t point)
{
    return LEFT + (double)point * (WIDTH - LEFT - RIGHT) / (POINTS - 1);
}

static double
y_of(double ratio)
{
    return HEIGHT - BOTTOM - ratio * (HEIGHT - TOP - BOTTOM);
}

static void
plot_axes(FILE *out)
{
    fprintf(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" "
        "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
        "<text x=\"%d\" y=\"22\" font-size=\"14\">Fields served from L1, by L1's size in entries</text>\n",
        WIDTH, HEIGHT, LEFT);
    for (int percent = 0; percent <= 100; percent += 20)
        fprintf(out,
                "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%d %%</text>\n",
                LEFT, WIDTH - RIGHT, y_of(percent / 100.0), y_of(percent / 100.0), LEFT - 8,
                y_of(percent / 100.0) + 4, percent);
    fprintf(out, "<text x=\"%d\" y=\"%d\">requests: 0 to %zu</text>\n", LEFT, HEIGHT - 18, n_requests);
}

static void
plot(const struct loop *loops, size_t n)
{
    static const char *const colours[SIZES_MOST] = { "#4477aa", "#ee6677", "#228833", "#ccbb44",
                                                     "#66ccee", "#aa3377", "#bbbbbb", "#000000" };
    FILE                    *out                 = fopen(options.svg, "w");

    if (out == NULL)
        die(options.svg, "cannot write");
    plot_axes(out);
    for (size_t i = 0; i < n; i++) {
        fprintf(out, "<polyline fill=\"none\" stroke-width=\"1.5\" stroke=\"%s\" points=\"", colours[i]);
        for (size_t p = 0; p < POINTS; p++)
            fprintf(out, "%.1f,%.1f ", x_of(p), y_of(loops[i].ratio[p]));
        fprintf(out, "\"/>\n<text x=\"%d\" y=\"%d\" fill=\"%s\">%zu</text>\n", WIDTH - RIGHT + 12,
                TOP + 12 + 18 * (int)(n - 1 - i), colours[i], options.sizes[i]);
    }
    fprintf(out, "</svg>\n");
    if (fclose(out) != 0)
        die(options.svg, "cannot write");
}

/* ---- */

static void
read_sizes(char *text)
{
    options.n_sizes = 0;
    for (char *word = strtok(text, ","); word != NULL && options.n_sizes < SIZES_MOST;
         word       = strtok(NULL, ","))
        options.sizes[options.n_sizes++] = strtoul(word, NULL, 10);
}

static void
read_options(int argc, char **argv)
{
    char sizes[] = "5000,20000,80000,320000";

    read_sizes(sizes);
    for (int i = 1; i < argc; i += 2) {
        char *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (value == NULL)
            die(argv[i], "what is this?  An option, with its value, is one of --redis --sizes --lines --svg "
                         "--db --data");
        else if (strcmp(argv[i], "--redis") == 0)
            options.redis = value;
        else if (strcmp(argv[i], "--sizes") == 0)
            read_sizes(value);
        else if (strcmp(argv[i], "--lines") == 0)
            options.lines = strtoul(value, NULL, 10);
        else if (strcmp(argv[i], "--svg") == 0)
            options.svg = value;
        else if (strcmp(argv[i], "--db") == 0)
            options.db = value;
        else if (strcmp(argv[i], "--data") == 0)
            options.data = value;
        else
            die(argv[i], "there is no such option");
    }
}

int
main(int argc, char **argv)
{
    struct loop loops[SIZES_MOST + 1] = { 0 };
    size_t      n;

    read_options(argc, argv);
    read_log();
    fill_database();
    if (options.redis != NULL)
        fill_redis();
    for (n = 0; n < options.n_sizes; n++)
        run_nearcache(&loops[n], options.sizes[n]);
    if (options.svg != NULL)
        plot(loops, n);
    if (options.redis != NULL)
        run_hiredis(&loops[n++]);
    print_table(loops, n);
    while (n > 0)
        free(loops[--n].took);
    sqlite3_finalize(selecting);
    sqlite3_close(db);
    return 0;
}
