/*
 * A backend of an application's own, made with the two installed headers alone: a list in this process, with everything that the table asks for.
 * The library must be able to do over it what it does over its own.
 */
#include <nearcache.h>
#include <nearcache/backend.h>

#include "harness/test.h"

#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- the backend */

struct row {
    struct row *next;
    int64_t     expires; /* 0: never */
    near_bytes  key, value;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct row     *rows; /* lock */
static _Atomic bool    broken;
static char            opened_with[100];

struct mine {
    const struct near_l2_env *env;
};

static bool
same(near_bytes a, near_bytes b)
{
    return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

static near_bytes
copy(near_bytes bytes)
{
    void *to = malloc(bytes.size + 1);

    memcpy(to, bytes.data, bytes.size);
    return (near_bytes){ to, bytes.size };
}

static void
drop_locked(struct row **at)
{
    struct row *row = *at;

    *at = row->next;
    free((void *)(uintptr_t)row->key.data);
    free((void *)(uintptr_t)row->value.data);
    free(row);
}

/* The place of the key's row, or the end. */
static struct row **
find_locked(const struct mine *mine, near_bytes key)
{
    struct row **at = &rows;

    while (*at != NULL && !same((*at)->key, key))
        at = &(*at)->next;
    if (*at != NULL && (*at)->expires != 0 && (*at)->expires <= near_l2_now(mine->env)) {
        drop_locked(at);
        return find_locked(mine, key);
    }
    return at;
}

static near_status
mine_open(void **self, const struct near_l2_env *env, struct near_l2_traits *traits, near_error *error)
{
    struct mine *mine = malloc(sizeof(*mine));

    (void)error;
    *traits   = (struct near_l2_traits){ .shared = true, .binary_keys = true, .max_key = 100000 };
    mine->env = env;
    snprintf(opened_with, sizeof(opened_with), "%s", env->text);
    near_l2_log(env, NEAR_LOG_INFO, "opened");
    *self = mine;
    return NEAR_OK;
}

static bool
is_broken(struct near_l2_item *item)
{
    item->answer = broken ? NEAR_L2_ERROR : NEAR_L2_NOT_TRIED;
    item->status = broken ? NEAR_ERR_UNAVAILABLE : NEAR_OK;
    return broken;
}

static void
mine_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_deliver_fn deliver, void *ctx,
              int64_t deadline)
{
    (void)deadline;
    for (size_t i = 0; i < n; i++) {
        near_bytes  value = { NULL, 0 };
        struct row *row;

        if (is_broken(&items[i]))
            continue;
        pthread_mutex_lock(&lock);
        row = *find_locked(self, items[i].key);
        if (row != NULL)
            value = copy(row->value);
        pthread_mutex_unlock(&lock);
        items[i].answer = value.data != NULL ? NEAR_L2_DONE : NEAR_L2_ABSENT;
        if (value.data != NULL)
            deliver(ctx, &items[i], value);
        free((void *)(uintptr_t)value.data);
    }
}

static bool
may_write(enum near_l2_mode mode, const struct row *row, const struct near_l2_item *item)
{
    if (mode == NEAR_L2_IF_ABSENT)
        return row == NULL;
    return mode == NEAR_L2_ALWAYS || (row != NULL && near_l2_has_stamp(row->value, item->expected));
}

static void
write_one(const struct mine *mine, enum near_l2_mode mode, struct near_l2_item *item, bool remove)
{
    struct row **at, *row;

    pthread_mutex_lock(&lock);
    at           = find_locked(mine, item->key);
    item->answer = may_write(mode, *at, item) ? NEAR_L2_DONE : NEAR_L2_ABSENT;
    if (item->answer == NEAR_L2_DONE) {
        if (*at != NULL)
            drop_locked(at);
        if (!remove && item->ttl_ms >= 0) {
            row          = calloc(1, sizeof(*row));
            row->key     = copy(item->key);
            row->value   = copy(item->value);
            row->expires = item->ttl_ms == 0 ? 0 : near_l2_now(mine->env) + item->ttl_ms * 1000000;
            row->next    = rows;
            rows         = row;
        }
    }
    pthread_mutex_unlock(&lock);
}

static void
mine_set_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
              struct near_l2_announce *announce, int64_t deadline)
{
    (void)announce;
    (void)deadline;
    for (size_t i = 0; i < n; i++)
        if (!is_broken(&items[i]))
            write_one(self, mode, &items[i], false);
}

static void
mine_remove_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                 struct near_l2_announce *announce, int64_t deadline)
{
    (void)announce;
    (void)deadline;
    for (size_t i = 0; i < n; i++)
        if (!is_broken(&items[i]))
            write_one(self, mode, &items[i], true);
}

static near_status
mine_health(void *self, char *text, size_t size, int64_t deadline, near_error *error)
{
    (void)self;
    (void)deadline;
    (void)error;
    snprintf(text, size, "mine, fine");
    return NEAR_OK;
}

static void
mine_stats(void *self, struct near_l2_stats *stats)
{
    (void)self;
    stats->connects = stats->disconnects = 0;
}

static void
mine_nothing(void *self)
{
    (void)self;
}

static void
mine_hash_set_many(void *self, struct near_l2_item *items, size_t n, struct near_l2_announce *announce,
                   int64_t deadline)
{
    (void)self, (void)items, (void)n, (void)announce, (void)deadline;
}

static struct near_l2_ops mine = {
    .version     = NEAR_L2_OPS_V1,
    .scheme      = "x-mine",
    .open        = mine_open,
    .get_many    = mine_get_many,
    .set_many    = mine_set_many,
    .remove_many = mine_remove_many,
    .health      = mine_health,
    .stats       = mine_stats,
    .close       = mine_nothing,
    .stop        = mine_nothing,
    .fini        = free,
    .forked      = mine_nothing,
};

/* ---- over it */

static near_config *
config_with(const struct near_l2_ops *ops)
{
    near_config *config = near_config_new();
    near_error   error;

    assert_int_equal(near_config_add_backend(config, ops, NULL), NEAR_OK);
    if (near_config_set(config, "l2.uri", "x-mine://anything at all", &error) != NEAR_OK)
        fail_msg("%s", error.text);
    return config;
}

static void
open_client(near_client **client, near_cache **cache)
{
    near_config *config = config_with(&mine);
    near_error   error;

    if (near_client_open(config, client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    assert_int_equal(near_cache_open(*client, "c", NULL, cache, NULL), NEAR_OK);
}

static void
load_fn(near_load *loads[], size_t n, void *ctx)
{
    ++*(int *)ctx;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], near_key("loaded"));
}

static void
store_fn(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_write_done(writes[i]);
}

static near_value *
get(near_cache *cache, const char *key, const char *text)
{
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value;

    options.flags = NEAR_SKIP_L1;
    assert_int_equal(near_get_with(cache, near_key(key), &options, &value), NEAR_OK);
    assert_int_equal(near_value_bytes(value).size, strlen(text));
    assert_memory_equal(near_value_bytes(value).data, text, strlen(text));
    return value;
}

static void
everything_works_over_a_backend_of_ones_own(void **state)
{
    near_client     *a, *b;
    near_cache      *ca, *cb;
    near_value      *value;
    near_put_options put   = NEAR_PUT_OPTIONS_INIT;
    int              loads = 0;

    (void)state;
    open_client(&a, &ca);
    open_client(&b, &cb);
    assert_string_equal(opened_with, "x-mine://anything at all");
    near_cache_set_loader(ca, load_fn, &loads);
    near_cache_set_loader(cb, load_fn, &loads);
    near_cache_set_store(ca, store_fn, NULL);
    assert_int_equal(near_put(ca, near_key("put"), near_key("1"), NULL), NEAR_OK);
    near_value_release(get(cb, "put", "1"));
    assert_int_equal(near_fetch(ca, near_key("load"), NULL, &value), NEAR_OK);
    near_value_release(value);
    near_value_release(get(cb, "load", "loaded")); /* under a lease */
    assert_int_equal(near_fetch(cb, near_key("load"), NULL, &value), NEAR_OK);
    near_value_release(value);
    assert_int_equal(loads, 1);
    assert_int_equal(near_update(ca, near_key("put"), near_key("2"), NULL), NEAR_OK);
    put.unchanged = get(cb, "put", "2"); /* in place of a mark */
    assert_int_equal(near_put(cb, near_key("put"), near_key("3"), &put), NEAR_OK);
    assert_int_equal(near_put(cb, near_key("put"), near_key("4"), &put), NEAR_ERR_CONFLICT);
    near_value_release((near_value *)(uintptr_t)put.unchanged);
    assert_int_equal(near_add(ca, near_key("n"), 1, 1, NULL), NEAR_ERR_UNSUPPORTED); /* it has no increment */
    assert_int_equal(near_clear(ca), NEAR_OK);
    assert_int_equal(near_get(ca, near_key("put"), &value), NEAR_MISS);
    assert_int_equal(near_remove(ca, near_key("put")), NEAR_OK);
    assert_int_equal(near_client_close(a, NULL), NEAR_OK);
    assert_int_equal(near_client_close(b, NULL), NEAR_OK);
}

static void
its_faults_are_no_absences(void **state)
{
    near_client *a;
    near_cache  *ca;
    near_value  *value;
    int          loads = 0;

    (void)state;
    open_client(&a, &ca);
    near_cache_set_loader(ca, load_fn, &loads);
    assert_int_equal(near_put(ca, near_key("x"), near_key("1"), NULL), NEAR_OK);
    broken = true;
    assert_int_equal(near_get(ca, near_key("y"), &value), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(near_fetch(ca, near_key("z"), NULL, &value), NEAR_OK);
    near_value_release(value);
    assert_int_equal(near_put(ca, near_key("x"), near_key("2"), NULL), NEAR_ERR_UNAVAILABLE);
    broken = false;
    assert_int_equal(near_client_close(a, NULL), NEAR_OK);
    while (rows != NULL)
        drop_locked(&rows);
}

static void
a_table_that_will_not_do_is_refused(void **state)
{
    near_config       *config = near_config_new();
    struct near_l2_ops other  = mine;
    near_client       *client;
    near_error         error;

    (void)state;
    assert_int_equal(near_config_set(config, "l2.uri", "x-mine:", NULL), NEAR_OK);
    assert_int_equal(near_client_open(config, &client, &error), NEAR_ERR_UNSUPPORTED); /* nobody has it */
    other.version = NEAR_L2_OPS_V2 + 1;
    assert_int_equal(near_config_add_backend(config, &other, &error), NEAR_ERR_INVALID);
    other.version       = NEAR_L2_OPS_V2;
    other.hash_set_many = mine_hash_set_many; /* reading them must be possible, too */
    assert_int_equal(near_config_add_backend(config, &other, &error), NEAR_ERR_INVALID);
    other          = mine;
    other.set_many = NULL;
    assert_int_equal(near_config_add_backend(config, &other, &error), NEAR_ERR_INVALID);
    other        = mine;
    other.scheme = "mine";
    assert_int_equal(near_config_add_backend(config, &other, &error), NEAR_ERR_INVALID);
    assert_int_equal(near_config_add_backend(config, NULL, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_config_add_backend(config, &mine, &error), NEAR_OK);
    assert_int_equal(near_config_add_backend(config, &mine, &error), NEAR_ERR_BUSY);
    assert_int_equal(near_config_set(config, "l2.uri", "y-mine:", NULL), NEAR_ERR_INVALID);
    near_config_free(config);
}

/* A table as a program has it that was built before there were hashes: nothing lies behind its end. */
static void
an_older_table_is_not_read_beyond_its_end(void **state)
{
    size_t   size = offsetof(struct near_l2_ops, hash_get_many), page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct near_l2_ops *older  = (void *)(pages + page - size);
    near_config        *config = near_config_new();
    near_client        *client = NULL;

    (void)state;
    assert_true(pages != MAP_FAILED && mprotect(pages + page, page, PROT_NONE) == 0);
    memcpy(older, &mine, size);
    assert_false(near_l2_has_hashes(older));
    assert_int_equal(near_config_add_backend(config, older, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.uri", "x-mine:", NULL), NEAR_OK);
    assert_int_equal(near_client_open(config, &client, NULL), NEAR_OK);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
    near_config_free(config);
    munmap(pages, 2 * page);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_works_over_a_backend_of_ones_own),
        cmocka_unit_test(its_faults_are_no_absences),
        cmocka_unit_test(a_table_that_will_not_do_is_refused),
        cmocka_unit_test(an_older_table_is_not_read_beyond_its_end),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
