/*
 * Fields on real servers: hashes of other programs on Redis, entries of their own on memcached; the order in which a cell's value is
 * looked for; deadlines; and that no instance goes on with a cell, a field or an entity that somebody has changed.
 *
 * Controls: the same with the bus taken away, in mode pubsub, without a late read, or of a field that was not meant, must go wrong or
 * stay as it was.
 */
#define TEST_NAME "fields"
#include "integration/instance.h"

#include "client/fields.h"
#include "client/rollout.h"

#include "harness/proxy.h"
#include "harness/server.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static struct test_server *redis, *memcached;
static struct instance     mine, theirs;

static int
setup(void **state)
{
    (void)state;
    redis     = test_redis_start(TEST_SERVER_TCP, NULL);
    memcached = test_memcached_start(0, NULL);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    test_server_stop(&redis);
    test_server_stop(&memcached);
    return 0;
}

static void
command_text(char *out, size_t size, int argc, const char *const *argv)
{
    if (!test_redis_command(redis, out, size, argc, argv))
        fail_msg("%s: %s", argv[0], out);
}

static char said[8192];
#define COMMAND(...)                                                                                         \
    do {                                                                                                     \
        const char *argv_[] = { __VA_ARGS__ };                                                               \
        command_text(said, sizeof(said), (int)NEAR_COUNT_OF(argv_), argv_);                                  \
    } while (0)

static int
begin(void **state)
{
    (void)state;
    memset(&mine, 0, sizeof(mine));
    memset(&theirs, 0, sizeof(theirs));
    logged[0] = '\0';
    if (redis != NULL)
        COMMAND("FLUSHALL");
    if (memcached != NULL)
        test_memcached_command(memcached, said, sizeof(said), "flush_all");
    return 0;
}

static int
end(void **state)
{
    (void)state;
    close_instance(&mine);
    close_instance(&theirs);
    return 0;
}

static void
sleep_ms(int64_t ms)
{
    nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

#define WIDE                                                                                                 \
    "l2.timeout", "5s", "l2.connect_timeout", "5s", "ttl", "1h", "l1.max_ttl", "1h",                         \
        "coherence.serve_window", "20s"

static void
open_at(struct instance *in, const char *uri, const char *const *more)
{
    open_with(in, (const char *[]){ "l2.uri", uri, WIDE, NULL }, more);
}

/* Any server of the two. */
enum where { REDIS, MEMCACHED };

static void
open_there(struct instance *in, enum where where, const char *const *more)
{
    test_need_server(redis);
    if (where == MEMCACHED)
        test_need_server(memcached);
    open_with(in,
              (const char *[]){ "l2.uri", where == REDIS ? redis->uri : memcached->uri, "coherence.uri",
                                redis->uri, WIDE, NULL },
              more);
}

/* ---- cells as text: where it came from, what it is */

static near_field
field_of(struct instance *in, const char *name)
{
    near_error error;
    near_field field;

    if (near_field_register(in->cache, name, NULL, &field, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    return field;
}

static char
letter_of(near_source source)
{
    static const char letters[] = "-12LCD";

    return letters[source];
}

/* "1:value": out of L1; "2:" L2, "L:" loader, "C:" caller, "D:" preset, with '!' where it is stale; else the status in brackets, and
 * in front of a preset. */
static const char *
cell_with(struct instance *in, const char *entity, near_field field, const near_fields_options *options)
{
    static char     text[256];
    near_bytes      name  = near_key(entity);
    near_value     *value = NULL;
    near_value_info info  = NEAR_VALUE_INFO_INIT;
    near_status     status, result;
    near_bytes      bytes;
    size_t          at = 0;

    result = near_fields_get_many(in->cache, &name, 1, &field, 1, options, &value, &status);
    assert_int_equal(result, value == NULL && status < 0 ? status : NEAR_OK);
    if (status != NEAR_OK)
        at = (size_t)sprintf(text, "[%d]", status);
    if (value == NULL)
        return text;
    near_value_get_info(value, &info);
    bytes = near_value_bytes(value);
    snprintf(text + at, sizeof(text) - at, "%c:%s%.*s", letter_of(info.source), info.stale ? "!" : "",
             (int)bytes.size, (const char *)bytes.data);
    near_value_release(value);
    return text;
}

static const char *
cell(struct instance *in, const char *entity, near_field field)
{
    return cell_with(in, entity, field, NULL);
}

#define assert_cell(in, entity, field, text) assert_string_equal(cell(in, entity, field), text)

static near_status
put(struct instance *in, const char *entity, near_field field, const char *value)
{
    near_bytes  name = near_key(entity), bytes = near_key(value);
    near_status status;

    near_fields_put_many(in->cache, &name, 1, &field, 1, &bytes, NULL, &status);
    return status;
}

#define assert_put(in, entity, field, value) assert_int_equal(put(in, entity, field, value), NEAR_OK)

static void
fence(struct instance *in)
{
    assert_int_equal(near_fence(in->client, SOON), NEAR_OK); /* at once where there is nobody else */
}

/* ---- registering */

static void
names_are_hashed_once_and_collisions_are_refused(void **state)
{
    near_field_options options = NEAR_FIELD_OPTIONS_INIT;
    near_field         one, other;
    near_error         error;

    (void)state;
    open_at(&mine, "none:", NULL);
    assert_int_equal(near_field_register(mine.cache, "feature_88773", NULL, &one, &error), NEAR_OK);
    assert_int_equal(one, 1008483185u); /* XXH32, seed 0 */
    assert_int_equal(near_field_register(mine.cache, "feature_159726", NULL, &other, &error),
                     NEAR_ERR_CONFLICT);
    assert_int_equal(other, 0);
    assert_non_null(strstr(error.text, "feature_88773"));
    assert_non_null(strstr(error.text, "feature_159726"));
    /* the same again is no collision, and what is said last holds */
    assert_cell(&mine, "e", one, "[1]");
    options.preset = near_key("later");
    assert_int_equal(near_field_register(mine.cache, "feature_88773", &options, &other, &error), NEAR_OK);
    assert_int_equal(one, other);
    assert_cell(&mine, "e", one, "[1]D:later");
    { /* nothing is kept of who says the same again */
        const struct near__field_info *said_last = near__field_of(mine.cache, one);

        assert_int_equal(near_field_register(mine.cache, "feature_88773", &options, &other, &error), NEAR_OK);
        assert_int_equal(near_field_number(mine.cache, one, &options), NEAR_OK);
        assert_ptr_equal(near__field_of(mine.cache, one), said_last);
    }
    for (unsigned i = 0; i < 5000; i++) {
        char name[32];

        sprintf(name, "f%u", i);
        assert_int_equal(near_field_register(mine.cache, name, NULL, &other, &error), NEAR_OK);
    }
    assert_cell(&mine, "e", one, "[1]D:later");
    assert_int_equal(near_field_register(mine.cache, "", NULL, &other, &error), NEAR_ERR_INVALID);
}

static void
layouts_that_the_server_lacks_are_refused(void **state)
{
    near_config *config = near_config_new();
    near_error   error;

    (void)state;
    test_need_server(memcached);
    open_at(&mine, memcached->uri, NULL);
    near_config_set(config, "fields.layout", "hash", NULL);
    assert_int_equal(near_cache_open(mine.client, "other", config, &mine.other, &error),
                     NEAR_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.text, "fields.layout"));
    near_config_free(config);
}

/* ---- where values come from */

static void
load_cells(near_load *loads[], size_t n, void *ctx)
{
    _Atomic unsigned *cells = ctx;

    for (size_t i = 0; i < n; i++) {
        char       text[64];
        near_bytes entity;
        near_field field;

        (*cells)++;
        assert_int_equal(near_load_field(loads[i], &entity, &field), NEAR_OK);
        if (entity.size > 0 && ((const char *)entity.data)[0] == 'n') {
            near_load_not_found(loads[i]);
            continue;
        }
        sprintf(text, "%.*s/%u", (int)entity.size, (const char *)entity.data, field);
        near_load_set(loads[i], near_key(text));
    }
}

/* Keys and cells have one loader, which can tell them apart. */
static void
load_either(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        near_bytes entity;
        near_field field;
        bool       is_cell = near_load_field(loads[i], &entity, &field) == NEAR_OK;

        near_load_set(loads[i], near_key(is_cell ? "cell" : "key"));
    }
}

static void
a_loader_tells_keys_from_cells(void **state)
{
    static const char *const layouts[] = { "hash", "keys" };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(layouts); i++) {
        near_value *value;

        open_with(&mine, (const char *[]){ "l2.uri", "memory:", "fields.layout", layouts[i], NULL }, NULL);
        near_cache_set_loader(mine.cache, load_either, NULL);
        assert_cell(&mine, "an entity", 7, "L:cell");
        assert_int_equal(near_fields_invalidate(mine.cache, 8), NEAR_OK);
        assert_cell(&mine, "another entity", 8, "L:cell"); /* of a later version */
        assert_int_equal(near_fetch(mine.cache, near_key("a key, no cell"), NULL, &value), NEAR_OK);
        assert_true(near__bytes_equal(near_value_bytes(value), near_key("key")));
        near_value_release(value);
        close_instance(&mine);
    }
}

static void
order_over(enum where where)
{
    near_fields_options given   = NEAR_FIELDS_OPTIONS_INIT;
    near_field_options  options = NEAR_FIELD_OPTIONS_INIT;
    near_bytes          own     = near_key("own");
    _Atomic unsigned    loaded  = 0;

    options.preset = near_key("preset");
    open_there(&mine, where, NULL);
    open_there(&theirs, where, NULL);
    near_cache_set_loader(mine.cache, load_cells, &loaded);
    assert_int_equal(near_field_number(mine.cache, 7, &options), NEAR_OK);
    assert_put(&theirs, "e", 7, "there");
    fence(&mine);
    given.given = &own;
    assert_string_equal(cell_with(&mine, "e", 7, &given), "C:own");
    assert_cell(&mine, "e", 7, "2:there");
    assert_cell(&mine, "e", 7, "1:there");
    assert_string_equal(cell_with(&mine, "e", 7, &given), "C:own");
    assert_cell(&mine, "x", 7, "L:x/7");
    assert_cell(&mine, "x", 7, "1:x/7");
    assert_cell(&mine, "n", 7, "[2]D:preset");
    assert_cell(&mine, "n", 7, "[2]D:preset");
    assert_cell(&mine, "n", 8, "[2]"); /* nothing was declared of this one */
    assert_int_equal(loaded, 3);       /* each once: what the store does not have is remembered, too */
    assert_int_equal(stats(&mine).fields_defaults, 2);
}

static void
caller_l1_l2_store_preset_on_redis(void **state)
{
    (void)state;
    order_over(REDIS);
    COMMAND("EXISTS", "nc:c:x"); /* the hash is for who writes it */
    assert_string_equal(said, "0");
}

static void
caller_l1_l2_store_preset_on_memcached(void **state)
{
    (void)state;
    order_over(MEMCACHED);
}

static void
hashes_are_those_of_other_programs(void **state)
{
    near_field price, number;
    char       name[16];

    (void)state;
    open_there(&mine, REDIS, (const char *[]){ "fields.key_prefix", "", NULL });
    price  = field_of(&mine, "price");
    number = 12345;
    sprintf(name, "%u", price);
    COMMAND("HSET", "st_1", name, "9.99", "12345", "");
    assert_cell(&mine, "st_1", price, "2:9.99");
    assert_cell(&mine, "st_1", number, "2:"); /* an empty value is one */
    assert_put(&mine, "st_1", price, "8.50");
    COMMAND("HGET", "st_1", name);
    assert_string_equal(said, "8.50");
    COMMAND("HSTRLEN", "st_1", "12345");
    assert_string_equal(said, "0");
    COMMAND("TTL", "st_1");
    assert_string_equal(said, "-1"); /* as it had */
    assert_cell(&mine, "st_1", price, "1:8.50");
    /* what lies there and is no hash costs its own cells an error, and the others nothing */
    COMMAND("SET", "st_2", "text");
    {
        near_bytes  entities[] = { near_key("st_2"), near_key("st_1") };
        near_value *values[2];
        near_status statuses[2];

        assert_int_equal(near_fields_get_many(mine.cache, entities, 2, &number, 1, NULL, values, statuses),
                         NEAR_ERR_PROTOCOL);
        assert_int_equal(statuses[0], NEAR_ERR_PROTOCOL);
        assert_int_equal(statuses[1], NEAR_OK);
        assert_null(values[0]);
        near_value_release(values[1]);
    }
}

static void
fields_are_called_by_their_names_where_that_is_wanted(void **state)
{
    (void)state;
    open_there(&mine, REDIS, (const char *[]){ "fields.names", "text", NULL });
    COMMAND("HSET", "nc:c:e", "price", "1", "77", "2");
    assert_cell(&mine, "e", field_of(&mine, "price"), "2:1");
    assert_cell(&mine, "e", 77, "2:2");
}

static unsigned long
calls_of(const char *command)
{
    char  word[64];
    char *at;

    snprintf(word, sizeof(word), "cmdstat_%s:calls=", command);
    COMMAND("INFO", "commandstats");
    at = strstr(said, word);
    return at != NULL ? strtoul(at + strlen(word), NULL, 10) : 0;
}

enum { ROWS = 40, COLUMNS = 25 };

struct matrix {
    char        names[ROWS][16];
    near_bytes  entities[ROWS];
    near_field  fields[COLUMNS];
    char        texts[ROWS * COLUMNS][24];
    near_bytes  data[ROWS * COLUMNS];
    near_value *values[ROWS * COLUMNS];
    near_status statuses[ROWS * COLUMNS];
};

static struct matrix *
matrix_new(void)
{
    struct matrix *matrix = calloc(1, sizeof(*matrix));

    for (unsigned row = 0; row < ROWS; row++) {
        sprintf(matrix->names[row], "entity_%u", row);
        matrix->entities[row] = near_key(matrix->names[row]);
    }
    for (unsigned i = 0; i < COLUMNS; i++)
        matrix->fields[i] = 1000 + i;
    for (unsigned i = 0; i < ROWS * COLUMNS; i++) {
        sprintf(matrix->texts[i], "%u/%u", i / COLUMNS, i % COLUMNS);
        matrix->data[i] = near_key(matrix->texts[i]);
    }
    return matrix;
}

static void
put_matrix(struct instance *in, struct matrix *matrix)
{
    assert_int_equal(near_fields_put_many(in->cache, matrix->entities, ROWS, matrix->fields, COLUMNS,
                                          matrix->data, NULL, matrix->statuses),
                     NEAR_OK);
}

static void
check_matrix(struct instance *in, struct matrix *matrix, near_source source)
{
    assert_int_equal(near_fields_get_many(in->cache, matrix->entities, ROWS, matrix->fields, COLUMNS, NULL,
                                          matrix->values, matrix->statuses),
                     NEAR_OK);
    for (unsigned i = 0; i < ROWS * COLUMNS; i++) {
        near_value_info info = NEAR_VALUE_INFO_INIT;
        near_bytes      bytes;

        assert_int_equal(matrix->statuses[i], NEAR_OK);
        near_value_get_info(matrix->values[i], &info);
        bytes = near_value_bytes(matrix->values[i]);
        assert_int_equal(info.source, source);
        assert_int_equal(bytes.size, matrix->data[i].size);
        assert_memory_equal(bytes.data, matrix->data[i].data, bytes.size);
        near_value_release(matrix->values[i]);
    }
}

/* How many L1 has.  Of a large write not quite all: of two cells whose fences are one, neither is kept. */
static unsigned
kept_of(struct instance *in, struct matrix *matrix)
{
    near_fields_options options = NEAR_FIELDS_OPTIONS_INIT;
    uint8_t             mask[ROWS * COLUMNS];
    char                cells[ROWS * COLUMNS][24];
    unsigned            kept = 0;

    options.flags = NEAR_ONLY_L1;
    near_fields_get_into(in->cache, matrix->entities, ROWS, matrix->fields, COLUMNS, &options, cells, 24,
                         mask, NULL);
    for (unsigned i = 0; i < ROWS * COLUMNS; i++) {
        assert_true(mask[i] == 0 || strncmp(cells[i], matrix->texts[i], 24) == 0);
        kept += mask[i] == NEAR_FROM_L1;
    }
    return kept;
}

static void
one_command_per_entity_and_one_exchange_for_all(void **state)
{
    struct matrix *matrix = matrix_new();
    uint64_t       before;

    (void)state;
    open_there(&mine, REDIS, NULL);
    open_there(&theirs, REDIS, NULL);
    COMMAND("CONFIG", "RESETSTAT");
    before = stats(&theirs).bus_sent;
    put_matrix(&theirs, matrix);
    assert_int_equal(calls_of("hset") + calls_of("hmset"), ROWS);
    assert_int_equal(stats(&theirs).bus_sent - before, 1);
    fence(&mine);
    before = stats(&mine).l2_requests;
    check_matrix(&mine, matrix, NEAR_FROM_L2);
    assert_int_equal(calls_of("hmget"), ROWS);
    assert_int_equal(stats(&mine).l2_requests - before, 1);
    check_matrix(&mine, matrix, NEAR_FROM_L1);
    assert_int_equal(calls_of("hmget"), ROWS);
    assert_in_range(kept_of(&theirs, matrix), ROWS * COLUMNS * 8 / 10, ROWS * COLUMNS);
    free(matrix);
}

static void
memcached_is_asked_once_for_all(void **state)
{
    struct matrix *matrix = matrix_new();
    uint64_t       before;

    (void)state;
    open_there(&mine, MEMCACHED, NULL);
    open_there(&theirs, MEMCACHED, NULL);
    put_matrix(&theirs, matrix);
    fence(&mine);
    before = stats(&mine).l2_requests;
    check_matrix(&mine, matrix, NEAR_FROM_L2);
    assert_in_range(stats(&mine).l2_requests - before, 1,
                    4); /* 1000 keys in batches of 512, and the tags' once */
    check_matrix(&mine, matrix, NEAR_FROM_L1);
    free(matrix);
}

static void
cells_go_into_a_matrix(void **state)
{
    near_field_options  options    = NEAR_FIELD_OPTIONS_INIT;
    near_fields_options given      = NEAR_FIELDS_OPTIONS_INIT;
    near_bytes          entities[] = { near_key("a"), near_key("b") };
    near_field          fields[]   = { 1, 2, 3 };
    near_bytes          own[6]     = { { NULL, 0 } };
    char                matrix[6][4];
    uint8_t             mask[6];
    near_status         statuses[6];

    (void)state;
    open_there(&mine, REDIS, NULL);
    COMMAND("HSET", "nc:c:a", "1", "full", "2", "s", "3", "too long");
    COMMAND("HSET", "nc:c:b", "1", "");
    options.preset = near_key("pre");
    assert_int_equal(near_field_number(mine.cache, 2, &options), NEAR_OK);
    own[5]      = near_key("me");
    given.given = own;
    for (int round = 0; round < 2; round++) {
        uint8_t from = round == 0 ? NEAR_FROM_L2 : NEAR_FROM_L1;

        memset(matrix, 'x', sizeof(matrix));
        assert_int_equal(
            near_fields_get_into(mine.cache, entities, 2, fields, 3, &given, matrix, 4, mask, statuses),
            NEAR_ERR_TOO_LARGE);
        assert_memory_equal(matrix, "fulls\0\0\0\0\0\0\0\0\0\0\0pre\0me\0\0", 24);
        assert_memory_equal(mask, ((uint8_t[]){ from, from, 0, from, NEAR_FROM_DEFAULT, NEAR_FROM_CALLER }),
                            6);
        assert_int_equal(statuses[2], NEAR_ERR_TOO_LARGE);
        assert_int_equal(statuses[4], NEAR_NOT_FOUND);
        assert_int_equal(statuses[5], NEAR_OK);
    }
}

static void
each_field_has_its_own_ttl(void **state)
{
    near_field_options soon = NEAR_FIELD_OPTIONS_INIT;

    (void)state;
    open_there(&mine, REDIS, NULL);
    soon.ttl_ms = 50;
    assert_int_equal(near_field_number(mine.cache, 1, &soon), NEAR_OK);
    COMMAND("HSET", "nc:c:e", "1", "a", "2", "b");
    assert_cell(&mine, "e", 1, "2:a");
    assert_cell(&mine, "e", 2, "2:b");
    sleep_ms(150);
    assert_cell(&mine, "e", 1, "2:a");
    assert_cell(&mine, "e", 2, "1:b");
}

/* ---- what others change */

static const char *const no_bus[] = { "coherence.mode", "none", "l1.max_ttl", "1h", NULL };

/* What `mine` says of two cells after `theirs` has written one of them. */
static void
other_writes(enum where where, const char *const *settings, const char *expected)
{
    open_there(&mine, where, settings);
    open_there(&theirs, where, settings);
    assert_put(&theirs, "e", 1, "old");
    assert_put(&theirs, "e", 2, "same");
    if (settings == NULL)
        fence(&mine);
    cell(&mine, "e", 1);
    cell(&mine, "e", 2);
    assert_cell(&mine, "e", 1, "1:old");
    assert_put(&theirs, "e", 1, "new");
    if (settings == NULL)
        fence(&mine);
    assert_cell(&mine, "e", 1, expected);
    assert_cell(&mine, "e", 2, "1:same"); /* no more than what was written */
}

static void
others_forget_the_cells_that_were_written_on_redis(void **state)
{
    (void)state;
    other_writes(REDIS, NULL, "2:new");
}

static void
others_forget_the_cells_that_were_written_on_memcached(void **state)
{
    (void)state;
    other_writes(MEMCACHED, NULL, "2:new");
}

static void
control_without_a_bus_others_do_not(void **state)
{
    (void)state;
    other_writes(REDIS, no_bus, "1:old");
}

static void
absence_is_remembered_until_somebody_writes(void **state)
{
    uint64_t before;

    (void)state;
    open_there(&mine, REDIS, NULL);
    open_there(&theirs, REDIS, NULL);
    assert_cell(&mine, "e", 1, "[2]");
    before = stats(&mine).l2_requests;
    assert_cell(&mine, "e", 1, "[2]");
    assert_int_equal(stats(&mine).l2_requests, before);
    assert_put(&theirs, "e", 1, "here");
    fence(&mine);
    assert_cell(&mine, "e", 1, "2:here");
}

static void
a_field_is_invalidated_over(enum where where, const char *const *settings)
{
    static const char *const names[] = { "a", "b", "c" };
    uint64_t                 before;

    open_there(&mine, where, settings);
    open_there(&theirs, where, settings);
    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++) {
        assert_put(&theirs, names[i], 1, "old");
        assert_put(&theirs, names[i], 2, "other");
        fence(&mine);
        cell(&mine, names[i], 1);
        cell(&mine, names[i], 2);
        assert_cell(&mine, names[i], 1, "1:old");
    }
    /* a program that computes feature 1 anew */
    for (size_t i = 0; where == REDIS && i < NEAR_COUNT_OF(names); i++) {
        char key[16];

        sprintf(key, "nc:c:%s", names[i]);
        COMMAND("HSET", key, "1", "new", "2", "unheard of");
    }
    before = stats(&theirs).bus_sent;
    assert_int_equal(near_fields_invalidate(theirs.cache, 1), NEAR_OK);
    assert_int_equal(stats(&theirs).bus_sent - before, 1);
    fence(&mine);
    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++) {
        assert_cell(&mine, names[i], 1, where == REDIS ? "2:new" : "[1]");
        assert_cell(&theirs, names[i], 1, where == REDIS ? "2:new" : "[1]");
        assert_cell(&mine, names[i], 2, "1:other"); /* the control: a field that was not meant */
    }
}

static void
a_field_of_all_entities_is_invalidated_by_one_message_on_redis(void **state)
{
    (void)state;
    a_field_is_invalidated_over(REDIS, NULL);
}

static void
a_field_of_all_entities_is_invalidated_by_one_message_on_memcached(void **state)
{
    (void)state;
    a_field_is_invalidated_over(MEMCACHED, NULL);
}

static void
a_field_is_invalidated_where_entries_have_no_tags(void **state)
{
    (void)state;
    a_field_is_invalidated_over(REDIS, (const char *[]){ "l2.envelope", "none", NULL });
}

static void
foreign_changes(const char *mode, const char *prefix, const char *key, const char *expected)
{
    open_there(&mine, REDIS,
               (const char *[]){ "coherence.mode", mode, prefix != NULL ? "fields.key_prefix" : NULL, prefix,
                                 NULL });
    COMMAND("HSET", key, "1", "old", "2", "old");
    for (int i = 0; i < 2; i++) { /* what the server has to say of that comes first */
        fence(&mine);
        cell(&mine, "e", 1);
        cell(&mine, "e", 2);
    }
    assert_cell(&mine, "e", 1, "1:old");
    assert_cell(&mine, "e", 2, "1:old");
    COMMAND("HSET", key, "1", "new", "2", "new");
    fence(&mine);
    assert_cell(&mine, "e", 1, expected);
    assert_cell(&mine, "e", 2, expected);
}

static void
a_foreign_hset_drops_all_fields_of_its_entity(void **state)
{
    (void)state;
    foreign_changes("tracking", NULL, "nc:c:e", "2:new");
}

static void
a_foreign_hset_is_heard_under_a_prefix_of_its_own(void **state)
{
    (void)state;
    foreign_changes("both", "nc:features:", "nc:features:e", "2:new");
}

static void
control_pubsub_does_not_hear_foreign_writers(void **state)
{
    (void)state;
    foreign_changes("pubsub", NULL, "nc:c:e", "1:old");
}

static void
clear_and_removal_of_an_entity_reach_cells(void **state)
{
    (void)state;
    open_there(&mine, REDIS, NULL);
    open_there(&theirs, REDIS, NULL);
    assert_put(&mine, "e", 1, "one");
    assert_cell(&theirs, "e", 1, "2:one");
    COMMAND("HSET", "nc:c:e", "1", "two");
    assert_cell(&mine, "e", 1, "1:one"); /* nobody told */
    assert_int_equal(near_clear(mine.cache), NEAR_OK);
    fence(&theirs);
    assert_cell(&mine, "e", 1, "2:two");
    assert_cell(&theirs, "e", 1, "2:two");
    assert_cell(&theirs, "e", 1, "1:two");
    assert_int_equal(near_remove(mine.cache, near_key("e")), NEAR_OK);
    fence(&theirs);
    assert_cell(&mine, "e", 1, "[2]");
    assert_cell(&theirs, "e", 1, "[2]");
}

/* ---- reads that something overtakes */

struct reader {
    pthread_t   thread;
    const char *text;
    near_field  field;
    char        seen[64];
};

static void *
read_slowly(void *ctx)
{
    near_fields_options options = NEAR_FIELDS_OPTIONS_INIT;
    struct reader      *reader  = ctx;
    near_bytes          name    = near_key("e");
    near_value         *value   = NULL;
    near_bytes          bytes;

    near_fields_get_many(mine.cache, &name, 1, &reader->field, 1, &options, &value, NULL);
    bytes = near_value_bytes(value);
    snprintf(reader->seen, sizeof(reader->seen), "%.*s", (int)bytes.size, (const char *)bytes.data);
    near_value_release(value);
    return NULL;
}

static int
is_asked(void *ctx)
{
    (void)ctx;
    return calls_of("hmget") > 0;
}

enum overtaken_by { A_PUT, AN_INVALIDATION, A_CLEAR, NOTHING };

/* A read is on its way back, with the old value, when this process writes or invalidates: it must keep nothing.  The other servers' side of
 * the proxy has the new value at once. */
static void
overtake(enum overtaken_by what, const char *expected)
{
    struct test_proxy *proxy;
    struct reader      reader = { .field = 1 };

    test_need_server(redis);
    proxy = test_proxy_start(redis);
    assert_non_null(proxy);
    open_with(&mine,
              (const char *[]){ "l2.uri", test_proxy_uri(proxy), "coherence.uri", redis->uri, WIDE, NULL },
              NULL);
    open_at(&theirs, redis->uri, NULL);
    COMMAND("HSET", "nc:c:e", "1", "old");
    assert_cell(&mine, "warm", 1, "[2]"); /* connections are there */
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_DELAY, TEST_DOWN, 300, 0 });
    COMMAND("CONFIG", "RESETSTAT");
    pthread_create(&reader.thread, NULL, read_slowly, &reader);
    assert_true(test_wait_for(is_asked, NULL, SOON)); /* the answer, with the old value, is under way */
    test_proxy_heal(proxy);
    if (what == A_PUT)
        assert_put(&theirs, "e", 1, "new");
    else
        COMMAND("HSET", "nc:c:e", "1", "new");
    if (what == AN_INVALIDATION)
        assert_int_equal(near_fields_invalidate(theirs.cache, 1), NEAR_OK);
    if (what == A_CLEAR)
        assert_int_equal(near_clear(theirs.cache), NEAR_OK);
    fence(&mine);
    pthread_join(reader.thread, NULL);
    assert_string_equal(reader.seen, "old");
    assert_cell(&mine, "e", 1, expected);
    close_instance(&mine);
    test_proxy_stop(&proxy);
}

static void
a_read_that_a_write_overtakes_is_not_kept(void **state)
{
    (void)state;
    overtake(A_PUT, "2:new");
}

static void
a_read_that_an_invalidation_overtakes_is_not_kept(void **state)
{
    (void)state;
    overtake(AN_INVALIDATION, "2:new");
}

static void
a_read_that_a_clear_overtakes_is_not_kept(void **state)
{
    (void)state;
    overtake(A_CLEAR, "2:new");
}

static void
control_a_read_that_nothing_overtakes_is_kept(void **state)
{
    (void)state;
    overtake(NOTHING, "1:old");
}

/* ---- deadlines */

static int
is_in_l1(void *field)
{
    return cell_with(&mine, "e", *(near_field *)field,
                     &(near_fields_options){ sizeof(near_fields_options), NEAR_ONLY_L1, -1, NULL })[0] == '1';
}

static void
late(enum where where, unsigned flags, bool expected)
{
    near_field_options  declared = NEAR_FIELD_OPTIONS_INIT;
    near_fields_options options  = NEAR_FIELDS_OPTIONS_INIT;
    struct test_server *server   = where == REDIS ? redis : memcached;
    near_field          field    = 1;
    near_bytes          rows[]   = { near_key("e"), { NULL, 5 } }; /* beside one that is none */
    near_value         *values[2];
    near_status         statuses[2];
    struct test_proxy  *proxy;
    int64_t             began;

    test_need_server(server);
    proxy = test_proxy_start(server);
    open_with(
        &mine,
        (const char *[]){ "l2.uri", test_proxy_unix_uri(proxy), "coherence.uri", redis->uri, WIDE, NULL },
        NULL);
    open_there(&theirs, where, NULL);
    assert_put(&theirs, "e", 1, "slow");
    fence(&mine);
    declared.preset = near_key("preset");
    assert_int_equal(near_field_number(mine.cache, 1, &declared), NEAR_OK);
    cell(&mine, "warm", 1);
    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_DELAY, TEST_DOWN, 400, 0 });
    options.timeout_ms = 50;
    options.flags      = flags;
    began              = test_now_ms();
    near_fields_get_many(mine.cache, rows, 2, &field, 1, &options, values, statuses);
    assert_true(test_now_ms() - began >= 40);
    assert_int_equal(statuses[0], NEAR_ERR_TIMEOUT);
    assert_true(near__bytes_equal(near_value_bytes(values[0]), declared.preset));
    assert_int_equal(statuses[1], NEAR_ERR_INVALID);
    near_value_release(values[0]);
    near_value_release(values[1]);
    assert_int_equal(test_wait_for(is_in_l1, &field, expected ? SOON : 600), expected);
    assert_int_equal(stats(&mine).fields_late, expected ? 1 : 0);
    if (expected)
        assert_cell(&mine, "e", 1, "1:slow");
    close_instance(&mine);
    test_proxy_stop(&proxy);
}

static void
late_values_are_cached_on_redis(void **state)
{
    (void)state;
    late(REDIS, 0, true);
}

static void
late_values_are_cached_on_memcached(void **state)
{
    (void)state;
    late(MEMCACHED, 0, true);
}

static void
control_not_where_nothing_is_to_be_kept(void **state)
{
    (void)state;
    late(REDIS, NEAR_NO_FILL, false);
}

static void
stale_values_stand_in_while_l2_is_down(void **state)
{
    near_field_options options = NEAR_FIELD_OPTIONS_INIT;

    (void)state;
    test_need_server(memcached);
    open_there(
        &mine, REDIS,
        (const char *[]){ "grace", "1h", "l2.timeout", "100ms", "coherence.serve_window", "60s", NULL });
    options.ttl_ms = 50;
    options.preset = near_key("preset");
    assert_int_equal(near_field_number(mine.cache, 1, &options), NEAR_OK);
    assert_put(&mine, "e", 1, "kept");
    sleep_ms(150);
    test_server_pause(redis);
    assert_cell(&mine, "e", 1, "1:!kept");
    assert_string_equal(cell(&mine, "f", 1) + 4, "D:preset"); /* TIMEOUT or UNAVAILABLE */
    test_server_resume(redis);
}

static void
a_write_that_is_not_known_to_be_done_is_not_acknowledged(void **state)
{
    (void)state;
    open_there(&mine, REDIS,
               (const char *[]){ "l2.timeout", "100ms", "coherence.serve_window", "60s", NULL });
    assert_put(&mine, "e", 1, "old");
    assert_cell(&mine, "e", 1, "1:old");
    test_server_pause(redis);
    assert_true(put(&mine, "e", 1, "new") < 0);
    assert_true(strncmp(cell(&mine, "e", 1), "1:", 2) != 0); /* our own copy has gone */
    test_server_resume(redis);
    assert_true(test_wait_for(owes_nothing, &mine, SOON));
    assert_int_equal(cell(&mine, "e", 1)[0], '2');
}

/* ---- many at once */

struct crowd {
    pthread_t thread;
    unsigned  flags;
    bool      good;
};

static void *
ask_one(void *ctx)
{
    near_fields_options options = NEAR_FIELDS_OPTIONS_INIT;
    struct crowd       *crowd   = ctx;
    near_bytes          entity  = near_key("e");
    near_field          field   = 1;
    near_value         *value   = NULL;

    options.flags = crowd->flags;
    near_fields_get_many(mine.cache, &entity, 1, &field, 1, &options, &value, NULL);
    crowd->good = near_value_bytes(value).size == 1;
    near_value_release(value);
    return NULL;
}

/* Six threads want a cell while the server takes its time. */
static unsigned long
calls_of_a_crowd(unsigned flags)
{
    struct crowd crowd[6];

    cell(&mine, "warm", 1);
    COMMAND("HSET", "nc:c:e", "1", "b");
    COMMAND("CONFIG", "RESETSTAT");
    test_server_pause(redis);
    for (size_t i = 0; i < NEAR_COUNT_OF(crowd); i++) {
        crowd[i] = (struct crowd){ .flags = flags };
        pthread_create(&crowd[i].thread, NULL, ask_one, &crowd[i]);
    }
    sleep_ms(200);
    test_server_resume(redis);
    for (size_t i = 0; i < NEAR_COUNT_OF(crowd); i++) {
        pthread_join(crowd[i].thread, NULL);
        assert_true(crowd[i].good);
    }
    return calls_of("hmget");
}

static void
equal_misses_are_asked_once(void **state)
{
    (void)state;
    open_there(&mine, REDIS, NULL);
    /* who comes between the answer's end and its place in L1 asks anew */
    assert_in_range(calls_of_a_crowd(0), 1, 2);
}

static void
control_who_wants_l2s_own_word_asks_himself(void **state)
{
    (void)state;
    open_there(&mine, REDIS, NULL);
    assert_int_equal(calls_of_a_crowd(NEAR_SKIP_L1), 6);
}

/* One writer per cell; who reads after a write was acknowledged must not see an older one (G1), whatever is invalidated meanwhile. */
enum { CELLS = 16, READERS = 3 };
static _Atomic uint64_t acknowledged[CELLS];
static _Atomic uint64_t older, reads;
static _Atomic bool     over;

static void *
write_cells(void *ctx)
{
    uint64_t seed = 42;

    (void)ctx;
    for (size_t i = 0; i < test_scale(4000); i++) {
        unsigned at   = (unsigned)(test_random(&seed) % CELLS);
        uint64_t next = acknowledged[at] + 1;
        char     entity[8], text[32];

        sprintf(entity, "e%u", at / 4);
        sprintf(text, "%llu", (unsigned long long)next);
        if (put(&mine, entity, at % 4, text) == NEAR_OK)
            acknowledged[at] = next;
        if (i % 16 == 0)
            near_fields_invalidate(mine.cache, at % 4);
        if (i % 64 == 0)
            near_clear(mine.cache);
    }
    over = true;
    return NULL;
}

static void *
read_cells(void *ctx)
{
    uint64_t seed = (uintptr_t)ctx;

    while (!over) {
        near_bytes entities[4] = { near_key("e0"), near_key("e1"), near_key("e2"), near_key("e3") };
        near_field fields[4]   = { 0, 1, 2, 3 };
        uint64_t   before[CELLS];
        char       matrix[CELLS][32];
        uint8_t    mask[CELLS];

        near_fields_options options = NEAR_FIELDS_OPTIONS_INIT;

        options.flags = test_random(&seed) % 16 == 0 ? NEAR_SKIP_L1 : 0;
        for (unsigned i = 0; i < CELLS; i++)
            before[i] = acknowledged[i];
        near_fields_get_into(mine.cache, entities, 4, fields, 4, &options, matrix, 32, mask, NULL);
        for (unsigned i = 0; i < CELLS; i++) {
            uint64_t seen = mask[i] != 0 ? strtoull(matrix[i], NULL, 10) : 0;

            older += mask[i] != 0 && seen < before[i];
            older += mask[i] == 0 && before[i] > 0;
            reads++;
        }
    }
    return NULL;
}

static void
own_writes_are_never_read_older(void **state)
{
    pthread_t threads[READERS], writer;

    (void)state;
    open_there(&mine, REDIS, NULL);
    over = false;
    for (uintptr_t i = 0; i < READERS; i++)
        pthread_create(&threads[i], NULL, read_cells, (void *)(i + 1));
    pthread_create(&writer, NULL, write_cells, NULL);
    pthread_join(writer, NULL);
    for (int i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
    assert_true(reads > 0);
    assert_int_equal(older, 0);
}

/* ---- without servers */

static void
without_l2_cells_live_in_l1(void **state)
{
    struct matrix *matrix = matrix_new();

    (void)state;
    open_at(&mine, "none:", NULL);
    put_matrix(&mine, matrix);
    check_matrix(&mine, matrix, NEAR_FROM_L1);
    assert_int_equal(near_fields_invalidate(mine.cache, 1000), NEAR_OK);
    assert_cell(&mine, "entity_3", 1000, "[1]");
    assert_cell(&mine, "entity_3", 1001, "1:3/1");
    free(matrix);
}

static void
two_clients_of_one_memory_share_hashes(void **state)
{
    struct matrix *matrix = matrix_new();

    (void)state;
    open_at(&mine, "memory:fields", NULL);
    open_at(&theirs, "memory:fields", NULL);
    put_matrix(&mine, matrix);
    check_matrix(&theirs, matrix, NEAR_FROM_L2);
    strcpy(matrix->texts[30], "changed");
    matrix->data[30] = near_key(matrix->texts[30]);
    put_matrix(&mine, matrix);
    check_matrix(&theirs, matrix, NEAR_FROM_L2);
    check_matrix(&theirs, matrix, NEAR_FROM_L1);
    free(matrix);
}

/* ---- warm starts */

static int
is_restored(void *n)
{
    near_stats now = stats(&mine);

    /* not every cell was in L1: those of one put whose fences share a stripe are not kept */
    return now.snapshot_restoring == 0 && now.snapshot_restored + now.snapshot_dropped >= *(uint64_t *)n / 2;
}

/* Saved by one client, read in the next: of cells, and not by the random numbers of the first. */
static void
restart(const char *uri)
{
    struct matrix *matrix      = matrix_new();
    char           directory[] = "/tmp/near-fields-XXXXXX", path[64], file[80];
    uint64_t       all         = ROWS * COLUMNS - 1;
    const char    *settings[]  = { "snapshot.path", path, NULL };

    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/it", directory);
    snprintf(file, sizeof(file), "%s.c", path);
    open_at(&mine, uri, settings);
    put_matrix(&mine, matrix);
    fence(&mine);
    near_fields_get_many(mine.cache, matrix->entities, ROWS, matrix->fields, COLUMNS, NULL, matrix->values,
                         NULL);
    for (int i = 0; i < ROWS * COLUMNS; i++)
        near_value_release(matrix->values[i]);
    /* what is under an older version stays where it is */
    assert_int_equal(near_fields_invalidate(mine.cache, matrix->fields[0]), NEAR_OK);
    all = ROWS * (COLUMNS - 1);
    close_instance(&mine);
    if (strncmp(uri, "redis", 5) == 0) { /* while nobody listens */
        COMMAND("HSET", "nc:c:entity_2", "1005", "newer");
        COMMAND("HDEL", "nc:c:entity_3", "1005");
        strcpy(matrix->texts[2 * COLUMNS + 5], "newer");
    }
    open_at(&mine, uri, settings);
    assert_true(test_wait_for(is_restored, &all, SOON));
    assert_cell(&mine, "entity_1", 1005, "1:1/5");
    assert_cell(&mine, "entity_2", 1005, strncmp(uri, "redis", 5) == 0 ? "1:newer" : "1:2/5");
    assert_in_range(stats(&mine).snapshot_restored, all / 2, all);
    assert_int_equal(cell(&mine, "entity_1", 1000)[0], strncmp(uri, "redis", 5) == 0 ? '2' : '[');
    close_instance(&mine);
    unlink(file);
    assert_int_equal(rmdir(directory), 0);
    free(matrix);
}

static void
a_restart_finds_cells_in_l1(void **state)
{
    (void)state;
    restart("none:");
}

static void
a_restart_finds_cells_in_l1_as_the_hashes_are_now(void **state)
{
    (void)state;
    test_need_server(redis);
    restart(redis->uri);
}

static void
odd_entities_and_calls(void **state)
{
    char       *wide       = calloc(1, 70000);
    near_bytes  entities[] = { { "", 0 },       { "a\0b", 3 },   { wide, 300 },
                               { wide, 65000 }, { wide, 66000 }, { NULL, 5 } };
    near_field  fields[]   = { 0, UINT32_MAX };
    near_bytes  data[12], text = near_key("v");
    near_value *values[12];
    near_status statuses[12];

    (void)state;
    open_at(&mine, "memory:", NULL);
    for (int i = 0; i < 12; i++)
        data[i] = text;
    data[1] = (near_bytes){ NULL, 0 }; /* that one stays as it is */
    assert_int_equal(near_fields_put_many(mine.cache, entities, 6, fields, 2, data, NULL, statuses),
                     NEAR_ERR_TOO_LARGE);
    near_fields_get_many(mine.cache, entities, 6, fields, 2, NULL, values, statuses);
    for (int i = 0; i < 12; i++) {
        assert_int_equal(statuses[i], i == 1   ? NEAR_NOT_FOUND
                                      : i < 8  ? NEAR_OK
                                      : i < 10 ? NEAR_ERR_TOO_LARGE
                                               : NEAR_ERR_INVALID);
        near_value_release(values[i]);
    }
    assert_int_equal(near_fields_get_many(mine.cache, entities, 0, fields, 2, NULL, NULL, NULL), NEAR_OK);
    assert_int_equal(near_fields_get_many(mine.cache, NULL, 1, fields, 2, NULL, values, statuses),
                     NEAR_ERR_INVALID);
    assert_int_equal(near_fields_get_into(mine.cache, entities, 1, fields, 2, NULL, NULL, 4, NULL, NULL),
                     NEAR_ERR_INVALID);
    assert_int_equal(near_fields_put_many(mine.cache, entities, 1, fields, 2, NULL, NULL, statuses),
                     NEAR_ERR_INVALID);
    /* the same field and entity twice in one call */
    {
        near_bytes twice[] = { near_key("q"), near_key("q") };
        near_field same[]  = { 5, 5 };

        near_fields_get_many(mine.cache, twice, 2, same, 2, NULL, values, statuses);
        for (int i = 0; i < 4; i++)
            assert_int_equal(statuses[i], NEAR_NOT_FOUND);
    }
    free(wide);
}

/* Sizes that are none, chosen so that sums and products of them wrap to little or nothing: the call refuses that entity and goes on. */
static void
sizes_over(const char *layout)
{
    static const size_t wrap[] = { SIZE_MAX,               /* every sum */
                                   ((size_t)1 << 59) - 16, /* rooms of keys, 96 at a time */
                                   SIZE_MAX - 13,          /* wide keys */
                                   ((size_t)1 << 63) - 16, /* both keys of a write */
                                   SIZE_MAX / 2 };
    near_field          field  = 7;

    open_with(&mine, (const char *[]){ "l2.uri", "memory:", "fields.layout", layout, NULL }, NULL);
    for (size_t i = 0; i < NEAR_COUNT_OF(wrap); i++) {
        near_bytes  entities[] = { near_key("e1"), { "e2", wrap[i] } };
        near_bytes  data[]     = { near_key("v"), near_key("v") };
        char        matrix[2][8];
        near_value *values[2];
        near_status statuses[2];

        assert_int_equal(near_fields_put_many(mine.cache, entities, 2, &field, 1, data, NULL, statuses),
                         NEAR_ERR_TOO_LARGE);
        assert_int_equal(statuses[0], NEAR_OK);
        assert_int_equal(near_fields_get_many(mine.cache, entities, 2, &field, 1, NULL, values, statuses),
                         NEAR_ERR_TOO_LARGE);
        assert_int_equal(statuses[0], NEAR_OK);
        assert_int_equal(statuses[1], NEAR_ERR_TOO_LARGE);
        near_value_release(values[0]);
        assert_int_equal(
            near_fields_get_into(mine.cache, entities, 2, &field, 1, NULL, matrix, 8, NULL, statuses),
            NEAR_ERR_TOO_LARGE);
        assert_string_equal(matrix[0], "v");
    }
    close_instance(&mine);
}

static void
sizes_that_are_none_are_refused(void **state)
{
    (void)state;
    sizes_over("hash");
    sizes_over("keys");
}

/* ---- rollout */

static void
rows_and_fields_come_in_step_by_step(void **state)
{
    near_field price, other;
    near_stats before;

    (void)state;
    open_with(&mine, (const char *[]){ "l2.uri", "memory:", "rollout.allow", "user:*,price", NULL }, NULL);
    price = field_of(&mine, "price");
    other = field_of(&mine, "other");
    assert_put(&mine, "user:1", other, "a");
    assert_put(&mine, "shop:1", other, "b");
    assert_put(&mine, "shop:1", price, "c");
    before = stats(&mine);
    assert_cell(&mine, "user:1", other, "1:a"); /* writes are not held back */
    assert_cell(&mine, "shop:1", price, "1:c");
    assert_cell(&mine, "shop:1", other, "2:b");
    assert_cell(&mine, "shop:1", other, "2:b");
    assert_cell(&mine, "shop:2", other, "[2]"); /* the word of the hash */
    assert_int_equal(stats(&mine).rollout_outside - before.rollout_outside, 3);
    { /* both kinds in one call, and one that is no entity */
        near_bytes  rows[]   = { near_key("user:1"), near_key("shop:1"), { NULL, 5 } };
        near_field  fields[] = { other, price };
        char        matrix[6][4];
        uint8_t     mask[6];
        near_status statuses[6];

        assert_int_equal(
            near_fields_get_into(mine.cache, rows, 3, fields, 2, NULL, matrix, 4, mask, statuses),
            NEAR_ERR_INVALID);
        assert_string_equal(matrix[0], "a");
        assert_int_equal(mask[0], NEAR_FROM_L1);
        assert_int_equal(statuses[1], NEAR_NOT_FOUND);
        assert_string_equal(matrix[2], "b");
        assert_int_equal(mask[2], NEAR_FROM_L2);
        assert_string_equal(matrix[3], "c");
        assert_int_equal(mask[3], NEAR_FROM_L1);
        assert_int_equal(statuses[4], NEAR_ERR_INVALID);
    }
    assert_int_equal(near_cache_set_rollout(mine.cache, 0, false), NEAR_OK);
    assert_cell(&mine, "user:1", other, "2:a");
    /* a dry run fills, and serves nothing out of L1 */
    assert_int_equal(near_cache_set_rollout(mine.cache, 100, true), NEAR_OK);
    assert_int_equal(near_fields_invalidate(mine.cache, other), NEAR_OK);
    assert_cell(&mine, "user:1", other, "2:a");
    assert_cell(&mine, "user:1", other, "2:a");
    assert_int_equal(near_cache_set_rollout(mine.cache, 100, false), NEAR_OK);
    assert_cell(&mine, "user:1", other, "1:a");
}

/* What L1 has is held against the hash, which others may have written without a word. */
static void
a_dry_run_compares_cells_with_the_hash(void **state)
{
    const char *dry[] = { "rollout.dry_run", "yes", "coherence.mode", "none", "l1.max_ttl", "1h", NULL };
    near_stats  now;

    (void)state;
    open_there(&mine, REDIS, dry);
    COMMAND("HSET", "nc:c:e", "1", "a", "2", "b");
    assert_cell(&mine, "e", 1, "2:a"); /* there was nothing to serve */
    assert_cell(&mine, "e", 3, "[2]");
    assert_int_equal(stats(&mine).rollout_compared, 0);
    assert_cell(&mine, "e", 1, "2:a");
    assert_cell(&mine, "e", 3, "[2]");
    now = stats(&mine);
    assert_int_equal(now.rollout_compared, 2);
    assert_int_equal(now.rollout_mismatches, 0);
    assert_int_equal(now.hits_l1, 0);
    COMMAND("HSET", "nc:c:e", "1", "other", "3", "c");
    assert_cell(&mine, "e", 1, "2:other");
    assert_cell(&mine, "e", 3, "2:c");
    COMMAND("HDEL", "nc:c:e", "1");
    assert_cell(&mine, "e", 1, "[2]");
    now = stats(&mine);
    assert_int_equal(now.rollout_compared, 5);
    assert_int_equal(now.rollout_mismatches, 3);
    assert_int_equal(now.rollout_mismatches_1s + now.rollout_mismatches_10s,
                     2); /* "there is none" has no age */
    assert_int_equal(near_cache_set_rollout(mine.cache, 100, false), NEAR_OK);
    assert_cell(&mine, "e", 3, "1:c");
    assert_int_equal(stats(&mine).rollout_compared, 5);
}

/* Cells that are entries of their own are as keys: without a loader those outside are misses. */
static void
entries_of_cells_come_in_by_entity_and_field(void **state)
{
    near_field price, other;

    (void)state;
    open_with(&mine,
              (const char *[]){ "l2.uri", "memory:", "fields.layout", "keys", "rollout.allow", "user:1,price",
                                NULL },
              NULL);
    price = field_of(&mine, "price");
    other = field_of(&mine, "other");
    assert_put(&mine, "user:1", other, "a");
    assert_put(&mine, "shop:1", other, "b");
    assert_put(&mine, "shop:1", price, "c");
    assert_cell(&mine, "user:1", other, "1:a");
    assert_cell(&mine, "shop:1", price, "1:c");
    assert_cell(&mine, "shop:1", other, "[1]");
    for (int i = 0; i < 50; i++) { /* all fields of an entity, or none */
        char entity[16];

        sprintf(entity, "user:1%d", i);
        assert_int_equal(near_cache_set_rollout(mine.cache, 50, false), NEAR_OK);
        assert_put(&mine, entity, price, "d");
        assert_string_equal(cell(&mine, entity, price),
                            near__rollout_takes_cell(mine.cache->rollout, near_key(entity), near_key("price"))
                                ? "1:d"
                                : "[1]");
    }
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, begin, end)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(names_are_hashed_once_and_collisions_are_refused),
        TEST(layouts_that_the_server_lacks_are_refused),
        TEST(caller_l1_l2_store_preset_on_redis),
        TEST(caller_l1_l2_store_preset_on_memcached),
        TEST(a_loader_tells_keys_from_cells),
        TEST(hashes_are_those_of_other_programs),
        TEST(fields_are_called_by_their_names_where_that_is_wanted),
        TEST(one_command_per_entity_and_one_exchange_for_all),
        TEST(memcached_is_asked_once_for_all),
        TEST(cells_go_into_a_matrix),
        TEST(each_field_has_its_own_ttl),
        TEST(others_forget_the_cells_that_were_written_on_redis),
        TEST(others_forget_the_cells_that_were_written_on_memcached),
        TEST(control_without_a_bus_others_do_not),
        TEST(absence_is_remembered_until_somebody_writes),
        TEST(a_field_of_all_entities_is_invalidated_by_one_message_on_redis),
        TEST(a_field_of_all_entities_is_invalidated_by_one_message_on_memcached),
        TEST(a_field_is_invalidated_where_entries_have_no_tags),
        TEST(a_foreign_hset_drops_all_fields_of_its_entity),
        TEST(a_foreign_hset_is_heard_under_a_prefix_of_its_own),
        TEST(control_pubsub_does_not_hear_foreign_writers),
        TEST(clear_and_removal_of_an_entity_reach_cells),
        TEST(a_read_that_a_write_overtakes_is_not_kept),
        TEST(a_read_that_an_invalidation_overtakes_is_not_kept),
        TEST(a_read_that_a_clear_overtakes_is_not_kept),
        TEST(control_a_read_that_nothing_overtakes_is_kept),
        TEST(late_values_are_cached_on_redis),
        TEST(late_values_are_cached_on_memcached),
        TEST(control_not_where_nothing_is_to_be_kept),
        TEST(stale_values_stand_in_while_l2_is_down),
        TEST(a_write_that_is_not_known_to_be_done_is_not_acknowledged),
        TEST(equal_misses_are_asked_once),
        TEST(control_who_wants_l2s_own_word_asks_himself),
        TEST(own_writes_are_never_read_older),
        TEST(without_l2_cells_live_in_l1),
        TEST(two_clients_of_one_memory_share_hashes),
        TEST(a_restart_finds_cells_in_l1),
        TEST(a_restart_finds_cells_in_l1_as_the_hashes_are_now),
        TEST(odd_entities_and_calls),
        TEST(sizes_that_are_none_are_refused),
        TEST(rows_and_fields_come_in_step_by_step),
        TEST(a_dry_run_compares_cells_with_the_hash),
        TEST(entries_of_cells_come_in_by_entity_and_field),
    };

    return TEST_MAIN(tests, setup, teardown);
}
