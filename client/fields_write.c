/*
 * near_fields_put_many.
 *
 * Where L2 has hashes (or there is no L2) a write goes part by part: as many cells as fit into one message and one exchange.  Each
 * cell is bracketed in L1 as any write (l1/l1.h); inside the brackets its part is written and announced, in one step where the bus's
 * server is L2's, else L2 first.  A write of unknown outcome is not acknowledged and nothing is taken back, for the hash may be other
 * programs': its cells are gone from this L1, and the others are told; who could not be told will be (recovery.h).  No lock is held.
 */
#include "fields_inside.h"

#include <stdlib.h>
#include <string.h>

#include "announce.h"
#include "codec.h"
#include "recovery.h"

struct cell {
    size_t                index, row; /* in the caller's arrays */
    struct near__column  *column;
    near_bytes            value, key; /* key: in L1 */
    uint64_t              hash;
    uint32_t              version;
    struct near__entry   *entry; /* for L1; NULL: nothing */
    struct near__l1_write token;
    near_status           status;
};

struct putting {
    near_cache       *cache;
    const near_bytes *entities;
    size_t            n;     /* cells */
    struct cell      *cells; /* row by row */
    near_bytes       *names; /* of the cells in messages, side by side with them */
    uint8_t          *room;
    int64_t           now, deadline, ttl_ms; /* of hashes */
    bool              fill_l1;
    near_status      *statuses;
};

/* ---- a part */

/* How many cells from `at` on go together. */
static size_t
part_of(const struct putting *putting, size_t at)
{
    size_t fit  = near__message_fit(putting->names + at, putting->n - at);
    size_t rows = 0, n = 0, in_row = 0;

    for (; n < fit; n++) {
        if (n == 0 || putting->cells[at + n].row != putting->cells[at + n - 1].row ||
            in_row == NEAR_L2_FIELDS) {
            if (rows++ == NEAR_L2_BATCH)
                break;
            in_row = 0;
        }
        in_row++;
    }
    return n;
}

static void
begin(struct putting *putting, size_t at, size_t n)
{
    for (size_t i = at; i < at + n; i++) {
        struct cell *cell = &putting->cells[i];

        cell->token = near__l1_write_begin(putting->cache->l1, cell->hash, cell->key);
        near__last_note(&putting->cache->last, cell->hash, NEAR__LAST_WRITE, putting->now);
    }
}

static void
end(struct putting *putting, size_t at, size_t n)
{
    for (size_t i = at; i < at + n; i++) {
        struct cell *cell = &putting->cells[i];

        near__l1_write_end(putting->cache->l1, cell->token, cell->hash, cell->key,
                           cell->status == NEAR_OK ? cell->entry : NULL, putting->now);
        near__entry_release(&cell->entry);
        /* who has read the older value under a version that came up meanwhile is behind no fence of ours */
        if (near__field_version(putting->cache, putting->entities[cell->row], cell->column->field) !=
            cell->version)
            near__field_drop(putting->cache, putting->entities[cell->row], cell->column->field);
        putting->statuses[cell->index] = cell->status;
        if (cell->status != NEAR_OK)
            near__count(putting->cache, NEAR__write_failures, 1);
    }
}

/* The hashes of a part, in one block. */
struct hashes {
    struct near_l2_item *items;
    struct near_l2_hash *hashes;
    size_t              *first; /* cell of each item */
    near_bytes          *names, *values;
    char                *keys;
    size_t               n;
};

static bool
hashes_open(struct hashes *hashes, const struct putting *putting, size_t at, size_t n)
{
    size_t keys = 0;
    size_t each =
        sizeof(struct near_l2_item) + sizeof(struct near_l2_hash) + sizeof(size_t) + 2 * sizeof(near_bytes);
    char *block;

    for (size_t i = at; i < at + n; i++)
        keys += putting->cache->fields->prefix_size + putting->entities[putting->cells[i].row].size;
    block = calloc(1, n * each + keys);
    if (block == NULL)
        return false;
    *hashes        = (struct hashes){ .items = (struct near_l2_item *)(void *)block };
    hashes->hashes = (struct near_l2_hash *)(void *)&hashes->items[n];
    hashes->first  = (size_t *)(void *)&hashes->hashes[n];
    hashes->names  = (near_bytes *)(void *)&hashes->first[n];
    hashes->values = hashes->names + n;
    hashes->keys   = (char *)(hashes->values + n);
    return true;
}

static void
add_hash(struct hashes *hashes, const struct putting *putting, size_t at, size_t cell)
{
    const struct near__fields *fields = putting->cache->fields;
    near_bytes                 entity = putting->entities[putting->cells[cell].row];

    memcpy(hashes->keys, fields->prefix, fields->prefix_size);
    if (entity.size > 0)
        memcpy(hashes->keys + fields->prefix_size, entity.data, entity.size);
    hashes->hashes[hashes->n] = (struct near_l2_hash){ .fields = hashes->names + (cell - at),
                                                       .values = hashes->values + (cell - at) };
    hashes->items[hashes->n] =
        (struct near_l2_item){ .key    = { hashes->keys, fields->prefix_size + entity.size },
                               .ttl_ms = putting->ttl_ms,
                               .hash   = &hashes->hashes[hashes->n],
                               .plain  = true };
    hashes->first[hashes->n] = cell;
    hashes->keys += hashes->items[hashes->n].key.size;
    hashes->n++;
}

static near_status
status_of(const struct near_l2_item *item)
{
    if (item->answer == NEAR_L2_DONE)
        return NEAR_OK;
    return item->status != NEAR_OK ? item->status : NEAR_ERR_TIMEOUT;
}

/* What became of the exchange as a whole, which decides about the message: written, if anything was; else unknown, if anything is. */
static near_status
overall(const struct hashes *hashes)
{
    near_status status = NEAR_OK;
    bool        done   = false;

    for (size_t i = 0; i < hashes->n; i++) {
        if (hashes->items[i].answer == NEAR_L2_UNKNOWN)
            return status_of(&hashes->items[i]);
        if (hashes->items[i].answer == NEAR_L2_DONE)
            done = true;
        else
            status = status_of(&hashes->items[i]);
    }
    return done ? NEAR_OK : status;
}

static near_status
write_hashes(struct putting *putting, size_t at, size_t n, struct near_l2_announce *with)
{
    near_client  *client = putting->cache->client;
    struct hashes hashes;
    int64_t       began = near__client_now(client);
    near_status   status;

    if (!hashes_open(&hashes, putting, at, n)) {
        for (size_t i = at; i < at + n; i++)
            putting->cells[i].status = NEAR_ERR_NOMEM;
        return NEAR_ERR_NOMEM;
    }
    for (size_t i = at; i < at + n; i++) {
        const struct cell *cell = &putting->cells[i];

        if (i == at || cell->row != putting->cells[i - 1].row ||
            hashes.hashes[hashes.n - 1].count == NEAR_L2_FIELDS)
            add_hash(&hashes, putting, at, i);
        hashes.names[i - at]  = near__fields_wire(cell->column);
        hashes.values[i - at] = cell->value;
        hashes.hashes[hashes.n - 1].count++;
    }
    near__count(putting->cache, NEAR__l2_requests, 1);
    client->ops->hash_set_many(client->l2, hashes.items, hashes.n, with, putting->deadline);
    near__time(putting->cache, NEAR__TIME_l2_write, near__client_now(client) - began);
    for (size_t i = 0; i < hashes.n; i++)
        for (size_t k = 0; k < hashes.hashes[i].count; k++)
            putting->cells[hashes.first[i] + k].status = status_of(&hashes.items[i]);
    status = overall(&hashes);
    free(hashes.items);
    return status;
}

/* Between the brackets. */
static void
write_part(struct putting *putting, size_t at, size_t n)
{
    near_cache             *cache = putting->cache;
    struct near__announcing announcing;
    near_status             status =
        near__announce_begin(cache, NEAR__MESSAGE_INVALIDATE, putting->names + at, n, &announcing);
    near_status told;

    for (size_t i = at; i < at + n; i++)
        putting->cells[i].status = status;
    if (status != NEAR_OK)
        return;
    if (cache->client->ops != NULL)
        status = write_hashes(putting, at, n, announcing.with);
    told = near__announce_end(cache, &announcing, status, putting->deadline);
    if (told == NEAR_OK)
        return;
    for (size_t i = at; i < at + n; i++) {
        if (putting->cells[i].status == NEAR_OK)
            putting->cells[i].status = told;
        /* DEL of a name that L2 has nothing under, and the message once more */
        near__recovery_keep(cache, putting->names[i],
                            near__hash_keyed(&cache->client->secret, putting->names[i]));
    }
}

/* ---- the whole */

static near_status
check_cell(const near_cache *cache, near_bytes value)
{
    if (value.size > cache->settings.l2_max_value)
        return NEAR_ERR_TOO_LARGE;
    return NEAR_OK;
}

static near_status
add_cell(struct putting *putting, size_t index, size_t row, struct near__column *column, near_bytes value)
{
    near_cache  *cache  = putting->cache;
    near_bytes   entity = putting->entities[row];
    struct cell *cell   = &putting->cells[putting->n];
    int64_t      ttl    = cache->settings.ttl;
    uint32_t     version;

    if (column->info != NULL && column->info->ttl >= 0)
        ttl = column->info->ttl;
    if (entity.size > 0) {
        memcpy(putting->room, entity.data, entity.size);
        memcpy(putting->room + entity.size + NEAR__CELL_TAIL, entity.data, entity.size);
    }
    version = cache->fields->base + column->moment +
              near__field_row(cache->fields, near__hash_keyed(&cache->client->secret, entity));
    near__cell_tail_put(putting->room + entity.size, column->field, version);
    *cell = (struct cell){ .index = index, .row = row, .column = column, .value = value, .version = version };
    cell->key = (near_bytes){ putting->room, entity.size + NEAR__CELL_TAIL };
    putting->room += cell->key.size;
    near__wide_tail_put(putting->room + entity.size, column->field);
    putting->names[putting->n] = (near_bytes){ putting->room, entity.size + NEAR__WIDE_TAIL };
    putting->room += putting->names[putting->n].size;
    cell->hash = near__hash_keyed(&cache->client->secret, cell->key);
    if (putting->fill_l1) {
        void *bytes;

        cell->entry = near__entry_new(cell->key, cell->hash, value.size, &bytes);
        if (cell->entry != NULL) { /* else L1 does without */
            if (value.size > 0)
                memcpy(bytes, value.data, value.size);
            near__entry_date(cache, cell->entry, putting->now, ttl);
            if (near__decode(cache, cell->entry) != NEAR_OK)
                near__entry_release(&cell->entry);
        }
    }
    putting->n++;
    return NEAR_OK;
}

static near_status
put_rows(near_cache *cache, const near_bytes *entities, size_t n, struct near__column *columns, size_t m,
         const near_bytes *values, const near_put_options *options, near_status *statuses)
{
    struct putting putting = { .cache    = cache,
                               .entities = entities,
                               .now      = near__client_now(cache->client),
                               .ttl_ms   = options->ttl_ms > 0 ? options->ttl_ms : 0,
                               .statuses = statuses };
    size_t         bytes   = 0;
    bool           alone   = cache->client->ops == NULL && cache->client->coherence == NULL;
    void          *block;

    putting.fill_l1  = !(options->flags & NEAR_NO_FILL) && cache->settings.l1_max_bytes != 0;
    putting.deadline = near__time_after(
        putting.now, near__duration(options->timeout_ms, cache->client->settings.l2_timeout));
    for (size_t row = 0; row < n; row++)
        bytes += m * (2 * near__entity_room(entities[row]) + NEAR__CELL_TAIL + NEAR__WIDE_TAIL);
    block = malloc(n * m * (sizeof(struct cell) + sizeof(near_bytes)) + bytes);
    if (block == NULL)
        return NEAR_ERR_NOMEM;
    putting.cells = block;
    putting.names = (near_bytes *)(void *)&putting.cells[n * m];
    putting.room  = (uint8_t *)&putting.names[n * m];
    for (size_t i = 0; i < n * m; i++)
        if (statuses[i] == NEAR_OK && values[i].data != NULL)
            add_cell(&putting, i, i / m, &columns[i % m], values[i]);
    near__count(cache, NEAR__puts, putting.n);
    for (size_t at = 0, part; at < putting.n; at += part) {
        /* with nothing between the brackets they need not overlap, and where two share a fence neither is kept */
        part = alone ? 1 : part_of(&putting, at);
        begin(&putting, at, part);
        write_part(&putting, at, part);
        end(&putting, at, part);
    }
    free(block);
    return NEAR_OK;
}

/* Entries of their own: column by column, because each has its tag and TTL. */
static near_status
put_keys(near_cache *cache, const near_bytes *entities, size_t n, struct near__column *columns, size_t m,
         const near_bytes *values, const near_put_options *options, near_status *statuses)
{
    size_t       bytes = 0, used;
    char         tag[NEAR__FIELD_TAG_SIZE];
    const char  *tags[1] = { tag };
    near_bytes  *keys, *data;
    size_t      *index;
    near_status *answers;
    uint8_t     *room, *at;

    for (size_t row = 0; row < n; row++)
        bytes += near__entity_room(entities[row]) + NEAR__WIDE_TAIL;
    keys = malloc(n * (2 * sizeof(near_bytes) + sizeof(size_t) + sizeof(near_status)) + bytes);
    if (keys == NULL)
        return NEAR_ERR_NOMEM;
    data    = keys + n;
    index   = (size_t *)(void *)(data + n);
    answers = (near_status *)(void *)(index + n);
    room    = (uint8_t *)(answers + n);
    for (size_t column = 0; column < m; column++) {
        near_put_options mine = *options;

        near__field_tag(columns[column].field, tag);
        mine.struct_size = sizeof(mine);
        mine.tags        = tags;
        mine.tag_count   = 1;
        if (mine.ttl_ms < 0 && columns[column].info != NULL && columns[column].info->ttl >= 0)
            mine.ttl_ms = columns[column].info->ttl / NEAR_MS;
        used = 0;
        at   = room;
        for (size_t row = 0; row < n; row++) {
            size_t cell = row * m + column;

            if (statuses[cell] != NEAR_OK || values[cell].data == NULL)
                continue;
            if (entities[row].size > 0)
                memcpy(at, entities[row].data, entities[row].size);
            near__wide_tail_put(at + entities[row].size, columns[column].field);
            keys[used]    = (near_bytes){ at, entities[row].size + NEAR__WIDE_TAIL };
            data[used]    = values[cell];
            index[used++] = cell;
            at += entities[row].size + NEAR__WIDE_TAIL;
        }
        if (used > 0)
            near_put_many(cache, keys, data, used, &mine, answers);
        for (size_t i = 0; i < used; i++) {
            statuses[index[i]] = answers[i];
            if (answers[i] == NEAR_ERR_NOMEM) /* it may not even have begun */
                near__l1_invalidate(cache->l1, near__hash_keyed(&cache->client->secret, keys[i]), keys[i]);
        }
    }
    free(keys);
    return NEAR_OK;
}

/* Without memory nothing was begun; what is not acknowledged must not be read from L1 all the same. */
static near_status
give_up(near_cache *cache, const near_bytes *entities, size_t n, const near_field *fields, size_t m,
        near_status *statuses)
{
    for (size_t row = 0; row < n; row++)
        if (near__fields_entity_check(cache, entities[row]) == NEAR_OK)
            near__fields_forget(cache, entities[row], fields, m);
    return near__refuse_all(statuses, n * m, NEAR_ERR_NOMEM);
}

static near_status
check_call(const near_cache *cache, const near_put_options *options, const near_bytes *entities, size_t n,
           const near_field *fields, size_t m, const near_bytes *values)
{
    near_status status = near__cache_check(cache);

    if (status != NEAR_OK)
        return status;
    if (entities == NULL || fields == NULL || values == NULL || n > SIZE_MAX / 256 / m)
        return NEAR_ERR_INVALID;
    if ((options->flags & NEAR_IF_ABSENT) || options->unchanged != NULL)
        return NEAR_ERR_INVALID;
    if (options->tag_count > 0)
        return NEAR_ERR_UNSUPPORTED;
    if (cache->fields->layout == NEAR__FIELDS_KEYS && cache->bare)
        return NEAR_ERR_UNSUPPORTED; /* entries without an envelope have no tags */
    return NEAR_OK;
}

near_status
near_fields_put_many(near_cache *cache, const near_bytes *entities, size_t n, const near_field *fields,
                     size_t m, const near_bytes *values, const near_put_options *options,
                     near_status *statuses)
{
    near_put_options     mine = NEAR_PUT_OPTIONS_INIT;
    struct near__column *columns;
    near_status          status, unbegun;

    if (n == 0 || m == 0)
        return near__cache_check(cache);
    if (statuses == NULL)
        return NEAR_ERR_INVALID;
    near__options_take(&mine, sizeof(mine), options);
    status = check_call(cache, &mine, entities, n, fields, m, values);
    if (status != NEAR_OK)
        return near__refuse_all(statuses, n * m, status);
    near__fields_use(cache);
    columns = malloc(m * sizeof(*columns));
    if (columns == NULL)
        return give_up(cache, entities, n, fields, m, statuses);
    for (size_t i = 0; i < m; i++)
        near__fields_column(cache, fields[i], &columns[i]);
    for (size_t row = 0; row < n; row++) {
        status = near__fields_entity_check(cache, entities[row]);
        for (size_t i = row * m; i < (row + 1) * m; i++)
            statuses[i] = status != NEAR_OK ? status : check_cell(cache, values[i]);
    }
    unbegun = (cache->fields->layout == NEAR__FIELDS_ROWS ? put_rows : put_keys)(cache, entities, n, columns,
                                                                                 m, values, &mine, statuses);
    free(columns);
    return unbegun != NEAR_OK ? give_up(cache, entities, n, fields, m, statuses)
                              : near__first_error(statuses, n * m);
}
