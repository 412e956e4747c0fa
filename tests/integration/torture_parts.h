/*
 * Steps of torture for what a cache may have besides keys and values: fields, objects, pools, a snapshot, a disk, a curve, a rollout, loaders
 * and stores that say more than a value.  Each opens a cache of its own in the client under test, uses it and closes it, so opening and closing
 * fail, too.  But for the cells, which have a table as the rows have, values follow from their keys: whatever is read has to be that or
 * nothing.  Files lie in a directory of the test's own (parts_over() removes it, or a shell that outlives this process).
 */
#ifndef TESTS_INTEGRATION_TORTURE_PARTS_H
#define TESTS_INTEGRATION_TORTURE_PARTS_H

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness/long.h"
#include "integration/torture.h"

/* ---- a cache of its own */

static near_status
open_part(struct bench *b, const char *name, const char *const *settings, near_cache **cache)
{
    near_config *config = near_config_new();
    near_status  status = config != NULL ? NEAR_OK : NEAR_ERR_NOMEM;

    *cache = NULL;
    for (size_t i = 0; status == NEAR_OK && settings[i] != NULL; i += 2)
        status = near_config_set(config, settings[i], settings[i + 1], NULL);
    if (status == NEAR_OK)
        status = near_cache_open(b->in.client, name, config, cache, NULL);
    near_config_free(config);
    return status;
}

#define OPEN_PART(b, name, cache, ...) open_part(b, name, (const char *const[]){ __VA_ARGS__, NULL }, cache)

/* What a key's value is: its own name, many times. */
enum { PART_TEXT = 1000 };

static near_bytes
part_value(near_bytes key, char text[PART_TEXT])
{
    for (size_t i = 0; i < PART_TEXT; i++)
        text[i] = ((const char *)key.data)[i % key.size];
    return (near_bytes){ text, PART_TEXT };
}

static near_status
part_put(near_cache *cache, const char *name)
{
    char text[PART_TEXT];

    return near_put(cache, near_key(name), part_value(near_key(name), text), NULL);
}

/* NEAR_OK also for nothing: memory may be too small to keep it. */
static near_status
part_get(near_cache *cache, const char *name)
{
    char        text[PART_TEXT];
    near_value *value;
    near_bytes  key    = near_key(name);
    near_status status = near_get(cache, key, &value);

    if (status == NEAR_OK) {
        assert_int_equal(near_value_bytes(value).size, PART_TEXT);
        assert_memory_equal(near_value_bytes(value).data, part_value(key, text).data, PART_TEXT);
    }
    near_value_release(value);
    return status == NEAR_MISS ? NEAR_OK : status;
}

static struct {
    char             directory[40], path[80];
    pid_t            heir; /* removes the directory when `alive` is closed, by whatever ends us */
    int              alive;
    _Atomic unsigned made, destroyed; /* objects and adopted bytes */
} parts;

/* Whoever kills a program of torture leaves nothing behind, even if he kills its process group. */
static void
leave_to_an_heir(void)
{
    char *const                argv[] = { (char[]){ "sh" }, (char[]){ "-c" },
                                          (char[]){ "trap '' HUP INT TERM; read -r line; rm -rf \"$0\"" }, parts.directory,
                                          NULL };
    char *const                none[] = { (char[]){ "PATH=/usr/bin:/bin" }, NULL };
    posix_spawn_file_actions_t files;
    posix_spawnattr_t          own;
    int                        ends[2];

    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, ends[0], 0);
    posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY,
                                     0); /* who reads our output need not wait for him */
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    posix_spawnattr_init(&own);
    posix_spawnattr_setflags(&own, POSIX_SPAWN_SETSID);
    assert_int_equal(posix_spawn(&parts.heir, "/bin/sh", &files, &own, argv, none), 0);
    posix_spawnattr_destroy(&own);
    posix_spawn_file_actions_destroy(&files);
    close(ends[0]);
    parts.alive = ends[1];
}

static const char *
part_path(const char *name)
{
    if (parts.directory[0] == '\0') {
        strcpy(parts.directory, "/tmp/near-torture-XXXXXX");
        assert_non_null(mkdtemp(parts.directory));
        leave_to_an_heir();
    }
    snprintf(parts.path, sizeof(parts.path), "%s/%s", parts.directory, name);
    return parts.path;
}

static void
remove_all(const char *path, unsigned depth)
{
    DIR           *directory = opendir(path);
    struct dirent *entry;
    char           below[600];

    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(below, sizeof(below), "%.300s/%.255s", path, entry->d_name);
        if (unlink(below) != 0 && depth > 0)
            remove_all(below, depth - 1);
    }
    if (directory != NULL)
        closedir(directory);
    rmdir(path);
}

static int
all_destroyed(void *ctx)
{
    (void)ctx;
    return parts.made == parts.destroyed;
}

/* After the client: nothing of it is left. */
static void
parts_over(void)
{
    assert_true(test_wait_for(all_destroyed, NULL, 5000 * test_slack()));
    if (parts.directory[0] == '\0')
        return;
    remove_all(parts.directory, 3);
    parts.directory[0] = '\0';
    close(parts.alive);
    waitpid(parts.heir, NULL, 0);
}

/* ---- fields */

enum { ENTITIES = 2, FEATURES = 2, CELLS = ENTITIES * FEATURES, CELL = 40 };

static char cells[CELLS][CELL]; /* under the table's lock */

static near_field features[FEATURES] = { 0, 77 }; /* the first has a name */

static void
load_cells(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        char       text[CELL];
        near_bytes entity;
        near_field field;
        size_t     cell;

        assert_int_equal(near_load_field(loads[i], &entity, &field), NEAR_OK);
        cell = (((const char *)entity.data)[entity.size - 1] == '2' ? FEATURES : 0) + (field == features[1]);
        pthread_mutex_lock(&table.lock);
        memcpy(text, cells[cell], CELL);
        pthread_mutex_unlock(&table.lock);
        near_load_set(loads[i], (near_bytes){ text, CELL });
    }
}

static near_status
read_cells(near_cache *cache, const near_bytes *entities)
{
    char        matrix[CELLS][CELL];
    near_value *values[CELLS];
    near_status statuses[CELLS];
    uint8_t     mask[CELLS];
    near_status status =
        near_fields_get_many(cache, entities, ENTITIES, features, FEATURES, NULL, values, statuses);

    for (size_t i = 0; i < CELLS; i++) {
        if (statuses[i] == NEAR_OK)
            assert_memory_equal(near_value_bytes(values[i]).data, cells[i], CELL);
        near_value_release(values[i]);
    }
    if (status != NEAR_OK)
        return status;
    status = near_fields_get_into(cache, entities, ENTITIES, features, FEATURES, NULL, matrix, CELL, mask,
                                  statuses);
    for (size_t i = 0; i < CELLS; i++)
        if (statuses[i] == NEAR_OK)
            assert_memory_equal(matrix[i], cells[i], CELL);
    return status;
}

static near_status
use_cells(near_cache *cache)
{
    near_field_options options            = NEAR_FIELD_OPTIONS_INIT;
    near_bytes         entities[ENTITIES] = { near_key("user 1"), near_key("user 2") }, values[CELLS];
    near_status        status, statuses[CELLS];

    options.preset = near_key("nothing known");
    status         = near_field_register(cache, "price", &options, &features[0], NULL);
    if (status == NEAR_OK)
        status = near_field_number(cache, features[1], NULL);
    if (status != NEAR_OK)
        return status;
    pthread_mutex_lock(&table.lock);
    for (size_t i = 0; i < CELLS; i++) {
        memset(cells[i], 'x', CELL);
        snprintf(cells[i], CELL, "cell %zu version %u", i, ++table.version);
        values[i] = (near_bytes){ cells[i], CELL };
    }
    pthread_mutex_unlock(&table.lock);
    status = near_fields_put_many(cache, entities, ENTITIES, features, FEATURES, values, NULL, statuses);
    if (status == NEAR_OK)
        status = read_cells(cache, entities);
    if (status == NEAR_OK)
        status = near_fields_invalidate(cache, features[1]);
    return status == NEAR_OK ? read_cells(cache, entities) : status;
}

static near_status
step_fields(struct bench *b)
{
    near_cache *cache;
    near_status status = OPEN_PART(b, "cells", &cache, "grace", "0");

    if (status == NEAR_OK) {
        near_cache_set_loader(cache, load_cells, NULL);
        status = use_cells(cache);
    }
    near_cache_close(cache);
    return status;
}

/* ---- objects */

static near_status
decode(near_bytes key, near_bytes bytes, void **object, void *ctx)
{
    (void)key;
    (void)ctx;
    *object = malloc(bytes.size);
    if (*object == NULL)
        return NEAR_ERR_NOMEM;
    memcpy(*object, bytes.data, bytes.size);
    parts.made++;
    return NEAR_OK;
}

static size_t
object_size(const void *object, void *ctx)
{
    (void)object;
    (void)ctx;
    return PART_TEXT;
}

static void
destroy(void *object, void *ctx)
{
    (void)ctx;
    free(object);
    parts.destroyed++;
}

static near_status
get_object(near_cache *cache, const char *name)
{
    char        text[PART_TEXT];
    near_value *value;
    near_bytes  key    = near_key(name);
    near_status status = near_get(cache, key, &value);

    if (status == NEAR_OK)
        assert_memory_equal(near_value_object(value), part_value(key, text).data, PART_TEXT);
    near_value_release(value);
    return status == NEAR_MISS ? NEAR_OK : status;
}

static near_status
step_objects(struct bench *b)
{
    near_status status = NEAR_OK;

    for (unsigned flags = 0; status == NEAR_OK && flags <= NEAR_KEEP_BYTES; flags++) {
        near_codec  codec = { sizeof(codec), flags, decode, object_size, destroy };
        near_cache *cache;

        status = OPEN_PART(b, flags != 0 ? "objects-and-bytes" : "objects", &cache, "ttl", "1h");
        if (status == NEAR_OK)
            status = near_cache_set_codec(cache, &codec, NULL);
        if (status == NEAR_OK)
            status = part_put(cache, "object");
        if (status == NEAR_OK)
            status = get_object(cache, "object");
        if (status == NEAR_OK && flags != 0)
            status = part_get(cache, "object");
        near_cache_close(cache);
    }
    return status;
}

/* ---- pools */

static unsigned
pool_of(near_bytes key, size_t value_size, void *ctx)
{
    (void)value_size;
    (void)ctx;
    return ((const char *)key.data)[0] == 'h' ? 1 : 2;
}

static near_status
step_pools(struct bench *b)
{
    static bool larger;
    near_cache *cache;
    near_status status =
        OPEN_PART(b, "pools", &cache, "l1.pools", "hot:64KiB, bulk:256KiB:s3fifo:5s", "ttl", "1h");

    if (status == NEAR_OK) {
        near_cache_set_pool_fn(cache, pool_of, NULL);
        assert_int_equal(near_pool_number(cache, "bulk"), 2);
        status = part_put(cache, "hot");
    }
    larger = !larger;
    if (status == NEAR_OK)
        status = part_put(cache, "cold");
    if (status == NEAR_OK)
        status = near_pool_resize(cache, 2, (size_t)(larger ? 512 : 128) << 10, NULL);
    if (status == NEAR_OK)
        status = part_get(cache, "hot");
    if (status == NEAR_OK)
        status = part_get(cache, "cold");
    near_cache_close(cache);
    return status;
}

/* ---- files */

/* A second time with what the first has left, which may be restored meanwhile. */
static near_status
step_snapshot(struct bench *b)
{
    near_status status = NEAR_OK;

    for (unsigned i = 0; status == NEAR_OK && i < 2; i++) {
        near_cache *cache;

        status = OPEN_PART(b, "saved", &cache, "snapshot.path", part_path("snapshots"), "ttl", "1h");
        if (status == NEAR_OK && i == 0)
            status = part_put(cache, "saved");
        if (status == NEAR_OK)
            status = part_get(cache, "saved");
        if (status == NEAR_OK && i == 0)
            status = near_snapshot_save(cache, NULL);
        if (status == NEAR_ERR_UNSUPPORTED || status == NEAR_ERR_BUSY)
            status = NEAR_OK; /* a bus and no shared L2; the one before is being restored */
        near_cache_close(cache);
    }
    return status;
}

static near_status
step_disk(struct bench *b)
{
    near_cache *cache;
    near_status status = OPEN_PART(b, "spilt", &cache, "disk.path", part_path("disk"), "disk.max_bytes",
                                   "1MiB", "disk.admission", "all", "l1.max_bytes", "64KiB", "ttl", "1h");
    char        name[20];

    for (unsigned i = 0; status == NEAR_OK && i < 80; i++) {
        snprintf(name, sizeof(name), "spilt %u", i);
        status = part_put(cache, name);
    }
    for (unsigned i = 0; status == NEAR_OK && i < 80; i += 20) {
        snprintf(name, sizeof(name), "spilt %u", i);
        status = part_get(cache, name);
    }
    near_cache_close(cache);
    return status;
}

static near_status
step_config_file(struct bench *b)
{
    FILE        *file   = fopen(part_path("settings"), "w");
    near_config *config = near_config_new();
    near_status  status = config != NULL ? NEAR_OK : NEAR_ERR_NOMEM;

    (void)b;
    if (file == NULL)
        status = NEAR_ERR_UNAVAILABLE;
    else {
        fputs("ttl = 1h\nl2.uri = redis://user:word@localhost:6379/1\n", file);
        fclose(file);
    }
    if (status == NEAR_OK)
        status = near_config_load(config, parts.path, NULL);
    near_config_free(config);
    return status;
}

/* ---- seeing, and how much of it is used */

static near_status
step_rollout(struct bench *b)
{
    near_curve  curve = NEAR_CURVE_INIT;
    near_cache *cache;
    near_status status = OPEN_PART(b, "partly", &cache, "rollout.percent", "100", "rollout.allow", "part*",
                                   "l1.curve", "yes", "ttl", "1h");

    if (status == NEAR_OK)
        status = part_put(cache, "part 1");
    for (unsigned dry = 0; status == NEAR_OK && dry < 2; dry++) {
        status = near_cache_set_rollout(cache, 50, dry == 1);
        near_cache_rollout_takes(cache, near_key("part 1"));
        if (status == NEAR_OK)
            status = part_get(cache, "part 1");
    }
    if (status == NEAR_OK)
        status = near_curve_get(cache, &curve);
    near_cache_close(cache);
    return status;
}

/* ---- loaders and stores that say more than a value */

static void
let_go(void *data)
{
    free(data);
    parts.destroyed++;
}

static void
load_somehow(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        near_bytes key = near_load_key(loads[i]);
        char      *text;

        near_load_ttl(loads[i], 60000);
        (void)near_load_pool(loads[i], 1);
        if (((const char *)key.data)[0] == 'u')
            near_load_unkept(loads[i]);
        if (near_load_previous(loads[i]) != NULL) {
            near_load_unchanged(loads[i]);
            continue;
        }
        text = ((const char *)key.data)[0] == 'f' ? NULL : malloc(PART_TEXT);
        if (text == NULL) {
            near_load_fail(loads[i], NEAR_ERR_NOMEM);
            continue;
        }
        parts.made++;
        part_value(key, text);
        near_load_adopt(loads[i], text, PART_TEXT, let_go);
    }
}

static near_status
fetch_part(near_cache *cache, const char *name)
{
    near_value *value, *held;
    near_status status = near_fetch(cache, near_key(name), NULL, &value);

    held = near_value_ref(value);
    near_value_release(value);
    if (status == NEAR_OK)
        assert_memory_equal(near_value_bytes(held).data, name, strlen(name));
    near_value_release(held);
    return status;
}

static near_status
step_loads(struct bench *b)
{
    near_cache *cache;
    near_status status = OPEN_PART(b, "loads", &cache, "l1.pools", "a:256KiB", "grace", "1m", "ttl", "1h");

    if (status == NEAR_OK) {
        near_cache_set_loader(cache, load_somehow, NULL);
        status = near_clear(cache);
    }
    if (status == NEAR_OK)
        status = fetch_part(cache, "adopted");
    if (status == NEAR_OK)
        status = near_expire(cache, near_key("adopted"));
    if (status == NEAR_OK)
        status = fetch_part(cache, "adopted");
    if (status == NEAR_OK)
        status = fetch_part(cache, "unkept");
    if (status == NEAR_OK && fetch_part(cache, "fails") != NEAR_ERR_NOMEM)
        status = NEAR_ERR_LOADER;
    near_cache_close(cache);
    return status;
}

/* What the store refuses has not happened. */
static void
refuse(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_write_fail(writes[i], NEAR_ERR_CONFLICT);
}

static near_status
step_refused(struct bench *b)
{
    char        text[PART_TEXT];
    near_cache *cache;
    near_bytes  key    = near_key("refused");
    near_status status = OPEN_PART(b, "refused", &cache, "write.policy", "through", "ttl", "1h");

    if (status == NEAR_OK) {
        near_cache_set_store(cache, refuse, NULL);
        status = part_put(cache, "refused");
    }
    if (status == NEAR_OK) {
        status = near_update(cache, key, near_key("another"), NULL);
        assert_int_not_equal(status, NEAR_OK);
        (void)part_value(key, text);
        status = status == NEAR_ERR_CONFLICT ? part_get(cache, "refused") : status;
    }
    near_cache_close(cache);
    return status;
}

static const struct step part_steps[] = {
    { "near_fields_put_many, near_fields_get_into", step_fields, false, false },
    { "near_cache_set_codec", step_objects, false, false },
    { "near_pool_resize", step_pools, false, false },
    { "near_snapshot_save", step_snapshot, false, false },
    { "disk.path", step_disk, false, false },
    { "near_config_load", step_config_file, false, false },
    { "near_cache_set_rollout, near_curve_get", step_rollout, false, false },
    { "near_load_adopt, near_load_unchanged", step_loads, false, false },
    { "near_write_fail", step_refused, false, false },
};

static const struct step *
step_at(size_t i)
{
    return i < NEAR_COUNT_OF(steps) ? &steps[i] : &part_steps[i - NEAR_COUNT_OF(steps)];
}

enum { STEPS = NEAR_COUNT_OF(steps) + NEAR_COUNT_OF(part_steps) };

/* The n-th of everything, how far it is from one n to the next; 0: not at all.  Those that open a cache each time do not take them all in
 * `make check`, and leave the servers, where each failure costs a connection, to `make check-long`. */
static long
stride_of(const struct world *w, size_t i)
{
    if (i < NEAR_COUNT_OF(steps) || test_level() != TEST_CHECK)
        return 1;
    return w->tier == TIER_NONE || w->tier == TIER_MEMORY ? 500 / (long)test_scale(100) + 1 : 0;
}

#endif
