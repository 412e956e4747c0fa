/*
 * What the tests of torture share: a table, the application's database, that loader and store work on; a step for every public function that
 * does something; and what must hold after a failure, whatever failed.  A call that was acknowledged has happened (no older value is read any
 * more); one that was not says so by its status, and works when it is tried again; nothing else has changed.
 */
#ifndef TESTS_INTEGRATION_TORTURE_H
#define TESTS_INTEGRATION_TORTURE_H

#include "integration/world.h"

/* ---- the application's database */

enum { KEYS = 3, TEXT = 400 }; /* long enough for a block of its own everywhere */

static const char *const names[KEYS] = { "fruit:1", "fruit:2", "fruit:3" };

struct table {
    pthread_mutex_t lock; /* covers the texts */
    char            text[KEYS][TEXT + 1];
    char            older[KEYS][TEXT + 1]; /* before the step under test */
    unsigned        version;
};
static struct table table = { .lock = PTHREAD_MUTEX_INITIALIZER };

static size_t
row_of(near_bytes key)
{
    size_t i = 0;

    while (i < KEYS && (strlen(names[i]) != key.size || memcmp(names[i], key.data, key.size) != 0))
        i++;
    assert_true(i < KEYS);
    return i;
}

static void
load_rows(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        size_t row = row_of(near_load_key(loads[i]));
        char   copy[TEXT + 1];

        pthread_mutex_lock(&table.lock);
        memcpy(copy, table.text[row], sizeof(copy));
        pthread_mutex_unlock(&table.lock);
        near_load_tag(loads[i], "red");
        if (copy[0] != '\0')
            near_load_set(loads[i], near_key(copy));
        else
            near_load_not_found(loads[i]);
    }
}

static void
store_rows(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        size_t     row  = row_of(near_write_key(writes[i]));
        near_bytes data = near_write_data(writes[i]);

        pthread_mutex_lock(&table.lock);
        assert_true(data.size <= TEXT);
        if (data.size > 0)
            memcpy(table.text[row], data.data, data.size);
        table.text[row][data.size] = '\0';
        pthread_mutex_unlock(&table.lock);
        near_write_done(writes[i]);
    }
}

/* A new text in the row, as an application that writes to its database by itself does. */
static void
change(size_t row)
{
    int n;

    pthread_mutex_lock(&table.lock);
    n = snprintf(table.text[row], sizeof(table.text[row]), "%s version %u ", names[row], ++table.version);
    memset(table.text[row] + n, 'x', (size_t)(TEXT - n));
    table.text[row][TEXT] = '\0';
    pthread_mutex_unlock(&table.lock);
}

/* ---- steps: one call each.  A step that changes things has the table changed first where the call does not do it itself. */

struct bench {
    const struct world *world;
    struct instance     in;
    char                token[NEAR_WRITE_TOKEN_SIZE];
};

static near_bytes
key_of(size_t row)
{
    return near_key(names[row]);
}

static void
assert_is_row(size_t row, near_bytes bytes)
{
    assert_int_equal(bytes.size, strlen(table.text[row]));
    assert_memory_equal(bytes.data, table.text[row], bytes.size);
}

static near_status
check_value(size_t row, near_status status, near_value **value)
{
    if (status == NEAR_OK)
        assert_is_row(row, near_value_bytes(*value));
    else
        assert_null(*value);
    near_value_release(*value);
    return status;
}

static near_status
step_get(struct bench *b)
{
    near_value *value;

    return check_value(0, near_get(b->in.cache, key_of(0), &value), &value);
}

static near_status
step_get_past_l1(struct bench *b)
{
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value;

    options.flags = NEAR_SKIP_L1;
    return check_value(1, near_get_with(b->in.cache, key_of(1), &options, &value), &value);
}

static near_status
step_get_copy(struct bench *b)
{
    char        copy[TEXT];
    size_t      size;
    near_status status = near_get_copy(b->in.cache, key_of(2), copy, sizeof(copy), &size, NULL);

    if (status == NEAR_OK)
        assert_is_row(2, (near_bytes){ copy, size });
    return status;
}

static near_status
many_of(near_status (*many)(near_cache *cache, const near_bytes *keys, size_t n, near_value **values,
                            near_status *statuses),
        struct bench *b)
{
    near_bytes  keys[KEYS] = { key_of(0), key_of(1), key_of(2) };
    near_value *values[KEYS];
    near_status statuses[KEYS], status = many(b->in.cache, keys, KEYS, values, statuses);
    bool        answered = true;

    for (size_t i = 0; i < KEYS; i++) {
        answered = answered && statuses[i] >= 0;
        check_value(i, statuses[i], &values[i]);
    }
    assert_int_equal(status == NEAR_OK, answered);
    return status;
}

static near_status
step_get_many(struct bench *b)
{
    return many_of(near_get_many, b);
}

static near_status
fetch_many(near_cache *cache, const near_bytes *keys, size_t n, near_value **values, near_status *statuses)
{
    return near_fetch_many(cache, keys, n, NULL, values, statuses);
}

static near_status
step_fetch_many(struct bench *b)
{
    return many_of(fetch_many, b);
}

static near_status
step_fetch(struct bench *b)
{
    near_value *value;

    return check_value(0, near_fetch(b->in.cache, key_of(0), NULL, &value), &value);
}

/* With a deadline a load is a thread's of the pool. */
static near_status
step_fetch_by_a_deadline(struct bench *b)
{
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;
    near_value        *value;

    options.timeout_ms = 5000;
    return check_value(1, near_fetch(b->in.cache, key_of(1), &options, &value), &value);
}

static near_status
step_fetch_anew(struct bench *b)
{
    near_value *value;

    change(0);
    if (near_remove(b->in.cache, key_of(0)) != NEAR_OK)
        return NEAR_ERR_NOMEM;
    return check_value(0, near_fetch(b->in.cache, key_of(0), NULL, &value), &value);
}

static near_status
step_put(struct bench *b)
{
    near_put_options  options = NEAR_PUT_OPTIONS_INIT;
    const char *const tags[]  = { "red", "round" };

    change(0);
    options.tags      = tags;
    options.tag_count = 2;
    return near_put(b->in.cache, key_of(0), near_key(table.text[0]), &options);
}

static near_status
step_put_many(struct bench *b)
{
    near_bytes  keys[KEYS] = { key_of(0), key_of(1), key_of(2) }, values[KEYS];
    near_status statuses[KEYS];

    for (size_t i = 0; i < KEYS; i++) {
        change(i);
        values[i] = near_key(table.text[i]);
    }
    return near_put_many(b->in.cache, keys, values, KEYS, NULL, statuses);
}

static near_status
step_remove(struct bench *b)
{
    change(1);
    return near_remove(b->in.cache, key_of(1));
}

static near_status
step_remove_many(struct bench *b)
{
    near_bytes  keys[KEYS] = { key_of(0), key_of(1), key_of(2) };
    near_status statuses[KEYS];

    for (size_t i = 0; i < KEYS; i++)
        change(i);
    return near_remove_many(b->in.cache, keys, KEYS, statuses);
}

static near_status
step_expire(struct bench *b)
{
    change(2);
    return near_expire(b->in.cache, key_of(2));
}

static near_status
step_invalidate_tag(struct bench *b)
{
    for (size_t i = 0; i < KEYS; i++)
        change(i);
    return near_invalidate_tag(b->in.cache, "red");
}

static near_status
step_invalidate_prefix(struct bench *b)
{
    near_status status;

    for (size_t i = 0; i < KEYS; i++)
        change(i);
    status = near_invalidate_prefix(b->in.cache, near_key("fruit:"));
    return status != NEAR_ERR_UNSUPPORTED ? status : near_clear(b->in.cache);
}

static near_status
step_clear(struct bench *b)
{
    for (size_t i = 0; i < KEYS; i++)
        change(i);
    return near_clear(b->in.cache);
}

static near_status
step_update(struct bench *b)
{
    char text[TEXT + 1];

    memset(text, 'u', TEXT);
    snprintf(text, sizeof(text), "updated %u", ++table.version);
    text[strlen(text)] = 'u';
    text[TEXT]         = '\0';
    return near_update(b->in.cache, key_of(0), near_key(text), NULL);
}

static near_status
step_erase(struct bench *b)
{
    return near_erase(b->in.cache, key_of(1));
}

static near_status
step_add(struct bench *b)
{
    near_status status = near_add(b->in.cache, near_key("visits"), 1, 1, NULL);

    return status == NEAR_ERR_UNSUPPORTED ? NEAR_OK : status;
}

static near_status
step_fence(struct bench *b)
{
    near_status status = near_fence(b->in.client, 5000);

    return status == NEAR_ERR_UNSUPPORTED ? NEAR_OK : status;
}

static near_status
step_token(struct bench *b)
{
    near_status status = near_write_token(b->in.client, b->token);

    if (status == NEAR_OK)
        status = near_fence_token(b->in.client, b->token, 5000);
    return status == NEAR_ERR_UNSUPPORTED ? NEAR_OK : status;
}

static near_status
step_flush(struct bench *b)
{
    return near_flush(b->in.client, 5000);
}

static near_status
step_resize(struct bench *b)
{
    static size_t turn;

    return near_cache_resize(b->in.cache, (size_t)(turn++ % 2 == 0 ? 3 : 2) << 20, 0, NULL);
}

static near_status
text_taken(char *text)
{
    if (text == NULL)
        return NEAR_ERR_NOMEM;
    assert_true(strlen(text) > 2);
    near_free(text);
    return NEAR_OK;
}

static near_status
step_json(struct bench *b)
{
    return text_taken(near_stats_json(b->in.client));
}

static near_status
step_prometheus(struct bench *b)
{
    near_status status = text_taken(near_stats_prometheus(b->in.client));

    return status == NEAR_OK ? text_taken(near_stats_prometheus_text(b->in.client)) : status;
}

static near_status
step_hot_keys(struct bench *b)
{
    return text_taken(near_hot_keys(b->in.cache, NEAR_PLAIN_KEYS));
}

static near_status
step_explain(struct bench *b)
{
    return text_taken(near_explain(b->in.cache, key_of(0)));
}

static near_status
step_stats(struct bench *b)
{
    near_stats stats = NEAR_STATS_INIT;

    return near_stats_get(b->in.client, &stats);
}

static near_status
step_another_cache(struct bench *b)
{
    near_config *config = near_config_new();
    near_cache  *cache;
    near_status  status = config != NULL ? near_config_set(config, "ttl", "1h", NULL) : NEAR_ERR_NOMEM;

    if (status == NEAR_OK)
        status = near_cache_open(b->in.client, "others", config, &cache, NULL);
    near_config_free(config);
    if (status == NEAR_OK)
        near_cache_close(cache);
    return status;
}

static near_status
step_another_client(struct bench *b)
{
    near_config *config = near_config_new();
    near_client *client;
    near_cache  *cache;
    near_error   error;
    near_status  status =
        config != NULL ? near_config_set(config, "l2.uri", b->world->l2, &error) : NEAR_ERR_NOMEM;

    if (status == NEAR_OK)
        status = near_config_set(config, "coherence.uri", b->world->bus, &error);
    if (status == NEAR_OK)
        status = near_client_open(config, &client, &error);
    near_config_free(config);
    if (status != NEAR_OK)
        return status;
    status = near_cache_open(client, "things", NULL, &cache, &error);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
    return status;
}

static const struct step {
    const char *name;
    near_status (*run)(struct bench *b);
    bool changes;          /* the table first: until it is acknowledged, the text of before may be read */
    bool may_lose_the_bus; /* a link without memory for a message is given up */
} steps[] = {
    { "near_get", step_get, false, false },
    { "near_get_with", step_get_past_l1, false, false },
    { "near_get_copy", step_get_copy, false, false },
    { "near_get_many", step_get_many, false, false },
    { "near_fetch", step_fetch, false, false },
    { "near_fetch by a deadline", step_fetch_by_a_deadline, false, false },
    { "near_remove, near_fetch", step_fetch_anew, true, false },
    { "near_fetch_many", step_fetch_many, false, false },
    { "near_put", step_put, true, false },
    { "near_put_many", step_put_many, true, false },
    { "near_remove", step_remove, true, false },
    { "near_remove_many", step_remove_many, true, false },
    { "near_expire", step_expire, true, false },
    { "near_invalidate_tag", step_invalidate_tag, true, false },
    { "near_invalidate_prefix", step_invalidate_prefix, true, false },
    { "near_clear", step_clear, true, false },
    { "near_update", step_update, false, false },
    { "near_erase", step_erase, false, false },
    { "near_add", step_add, false, false },
    { "near_fence", step_fence, false, true },
    { "near_write_token", step_token, false, true },
    { "near_flush", step_flush, false, false },
    { "near_cache_resize", step_resize, false, false },
    { "near_stats_json", step_json, false, false },
    { "near_stats_prometheus", step_prometheus, false, false },
    { "near_hot_keys", step_hot_keys, false, false },
    { "near_explain", step_explain, false, false },
    { "near_stats_get", step_stats, false, false },
    { "near_cache_open", step_another_cache, false, false },
    { "near_client_open", step_another_client, false, false },
};

/* ---- what must hold */

static bool
is_text(near_bytes bytes, const char *text)
{
    return bytes.size == strlen(text) && memcmp(bytes.data, text, bytes.size) == 0;
}

/* What every key is read as now.  `lenient`: the text of before the step is as good.  True: all is well; else `said` has what is not. */
static bool
rows_are_right(struct bench *b, bool lenient, char *said, size_t size)
{
    for (size_t i = 0; i < KEYS; i++) {
        near_value *value;
        near_status status = near_fetch(b->in.cache, key_of(i), NULL, &value);
        near_bytes  bytes  = near_value_bytes(value);
        const char *now = table.text[i], *before = table.older[i];
        bool        right = status == NEAR_NOT_FOUND
                                ? now[0] == '\0' || (lenient && before[0] == '\0')
                                : status == NEAR_OK && (is_text(bytes, now) || (lenient && is_text(bytes, before)));

        if (!right)
            snprintf(said, size, "%s is read as %s \"%.40s\", the table has \"%.40s\", before \"%.40s\"",
                     names[i], near_status_text(status), bytes.data ? (const char *)bytes.data : "", now,
                     before);
        near_value_release(value);
        if (!right)
            return false;
    }
    return true;
}

static void
check_rows(struct bench *b, const char *what, bool lenient)
{
    char said[300];

    if (!rows_are_right(b, lenient, said, sizeof(said)))
        fail_msg("%s: %s", what, said);
}

#endif
