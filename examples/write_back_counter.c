/*
 * Orders that are counted exactly once, whatever kills the program.
 *
 *   write_back_counter DIRECTORY [ORDERS]
 *
 * An order is acknowledged when it is in the journal (DIRECTORY/journal); the flusher brings it to SQLite (DIRECTORY/orders.db), many in
 * one transaction.  Kill it with -9 while it runs and start it again: it says how many orders the database has, and none that it
 * had acknowledged is missing.  An order that the journal hands over twice, because the program died between SQLite's commit and the
 * journal's note of it, is counted once: the database remembers by whose number (origin, sequence) it knows each.
 *
 * Here every change counts, so write_back.coalesce is no; where only the newest value of a key matters, leave it at yes.
 */
#include <nearcache.h>
#include <sqlite3.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void
die(const char *what, const char *why)
{
    fprintf(stderr, "write_back_counter: %s: %s\n", what, why);
    exit(1);
}

/* ---- the store */

struct store {
    sqlite3      *db;
    sqlite3_stmt *insert, *add;
};

static void
run(sqlite3 *db, const char *sql)
{
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
        die(sql, sqlite3_errmsg(db));
}

static void
open_store(struct store *store, const char *path)
{
    if (sqlite3_open(path, &store->db) != SQLITE_OK)
        die(path, sqlite3_errmsg(store->db));
    run(store->db, "PRAGMA journal_mode = WAL");
    run(store->db, "PRAGMA synchronous = FULL"); /* near_write_done() says: for good */
    run(store->db,
        "CREATE TABLE IF NOT EXISTS orders (origin INTEGER, sequence INTEGER, customer TEXT, cents INTEGER, "
        "PRIMARY KEY (origin, sequence)) WITHOUT ROWID");
    run(store->db,
        "CREATE TABLE IF NOT EXISTS totals (customer TEXT PRIMARY KEY, orders INTEGER, cents INTEGER)");
    if (sqlite3_prepare_v2(store->db, "INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?)", -1, &store->insert,
                           NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(
            store->db,
            "INSERT INTO totals VALUES (?, 1, ?) ON CONFLICT (customer) DO UPDATE SET orders = orders + 1, "
            "cents = cents + excluded.cents",
            -1, &store->add, NULL) != SQLITE_OK)
        die(path, sqlite3_errmsg(store->db));
}

static int
bind_customer(sqlite3_stmt *statement, int at, near_bytes key)
{
    return sqlite3_bind_text(statement, at, key.data, (int)key.size, SQLITE_STATIC);
}

static int
finish(sqlite3_stmt *statement)
{
    int code = sqlite3_step(statement);

    sqlite3_reset(statement);
    return code == SQLITE_DONE ? SQLITE_OK : code;
}

/* Once for each number: the second time the insert changes nothing, and the total is left alone. */
static int
count_order(struct store *store, const near_write *write)
{
    near_bytes key   = near_write_key(write);
    int        cents = atoi(near_write_data(write).data);
    int        code;

    sqlite3_bind_int64(store->insert, 1, (sqlite3_int64)near_write_origin(write));
    sqlite3_bind_int64(store->insert, 2, (sqlite3_int64)near_write_sequence(write));
    bind_customer(store->insert, 3, key);
    sqlite3_bind_int(store->insert, 4, cents);
    code = finish(store->insert);
    if (code != SQLITE_OK || sqlite3_changes(store->db) == 0)
        return code;
    bind_customer(store->add, 1, key);
    sqlite3_bind_int(store->add, 2, cents);
    return finish(store->add);
}

/* near_store_fn.  With write_back.parallel = 1 it is called by one thread at a time. */
static void
store_orders(near_write *writes[], size_t n, void *ctx)
{
    struct store *store = ctx;
    int           code  = sqlite3_exec(store->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);

    for (size_t i = 0; i < n && code == SQLITE_OK; i++)
        code = count_order(store, writes[i]);
    if (code == SQLITE_OK)
        code = sqlite3_exec(store->db, "COMMIT", NULL, NULL, NULL);
    if (code != SQLITE_OK)
        sqlite3_exec(store->db, "ROLLBACK", NULL, NULL, NULL);
    for (size_t i = 0; i < n; i++) {
        if (code == SQLITE_OK)
            near_write_done(writes[i]);
        else
            near_write_fail(writes[i], NEAR_ERR_UNAVAILABLE); /* it will be tried again */
    }
}

static void
report(struct store *store)
{
    sqlite3_stmt *statement;

    if (sqlite3_prepare_v2(store->db,
                           "SELECT total(orders), total(cents), (SELECT count(*) FROM orders) FROM totals",
                           -1, &statement, NULL) != SQLITE_OK ||
        sqlite3_step(statement) != SQLITE_ROW)
        die("reading", sqlite3_errmsg(store->db));
    printf("in the database: %.0f orders, %.0f cents, %lld numbers\n", sqlite3_column_double(statement, 0),
           sqlite3_column_double(statement, 1), (long long)sqlite3_column_int64(statement, 2));
    sqlite3_finalize(statement);
}

/* ---- the service */

static near_client *
open_client(const char *directory, near_cache **orders)
{
    static const char *const settings[][2] = {
        { "l2.uri", "none:" },
        { "write.policy", "back" },
        { "write_back.coalesce", "no" },
        { "write_back.parallel", "1" },
        { "write_back.interval", "50ms" },
        /* `none` survives the end of the process; `always`, the default, the end of the machine, too */
        { "write_back.fsync", "none" },
    };
    near_config *config = near_config_new();
    near_client *client = NULL;
    near_error   error;
    char         path[512];

    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        if (near_config_set(config, settings[i][0], settings[i][1], &error) != NEAR_OK)
            die("configuration", error.text);
    snprintf(path, sizeof(path), "%s/journal", directory);
    if (near_config_set(config, "write_back.journal", path, &error) != NEAR_OK ||
        near_client_open(config, &client, &error) != NEAR_OK)
        die("opening", error.text);
    near_config_free(config);
    if (near_cache_open(client, "orders", NULL, orders, &error) != NEAR_OK)
        die("opening", error.text);
    return client;
}

int
main(int argc, char **argv)
{
    const char  *directory = argc > 1 ? argv[1] : ".";
    long         wanted    = argc > 2 ? atol(argv[2]) : 1000;
    struct store store;
    near_client *client;
    near_cache  *orders;
    near_error   error;
    char         path[512];

    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(path, sizeof(path), "%s/orders.db", directory);
    open_store(&store, path);
    client = open_client(directory, &orders);
    near_cache_set_store(orders, store_orders, &store); /* what a former life left in the journal goes now */
    for (long i = 1; i <= wanted; i++) {
        char        customer[32], cents[16];
        near_status status;

        snprintf(customer, sizeof(customer), "customer:%ld", i % 10);
        snprintf(cents, sizeof(cents), "%ld", 100 + i % 900);
        /* with its NUL, so that the store can read it as a string */
        status = near_update(orders, near_key(customer), (near_bytes){ cents, strlen(cents) + 1 }, NULL);
        if (status != NEAR_OK)
            die("order", near_status_text(status));
        printf("acknowledged %ld\n", i);
    }
    if (near_flush(client, 60000) != NEAR_OK)
        fprintf(stderr,
                "write_back_counter: not all orders are in the database yet: they stay in the journal\n");
    report(&store);
    if (near_client_close(client, &error) != NEAR_OK)
        fprintf(stderr, "write_back_counter: %s\n", error.text);
    sqlite3_finalize(store.insert);
    sqlite3_finalize(store.add);
    sqlite3_close(store.db);
    return 0;
}
