/* See fields_inside.h.  near_fields_get_many and near_fields_get_into: what the caller has and what L1 has. */
#include "fields_inside.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash_keyed.h"
#include "base/visible.h"
#include "l1/find.h"
#include "requests.h"
#include "rollout.h"

/* ---- answers */

static inline void
copy_cell(char *to, near_bytes from, size_t cell_bytes)
{
    if (__builtin_expect(from.size == cell_bytes && cell_bytes == 64, 1)) {
        memcpy(to, from.data, 64); /* a size that the compiler knows: four moves */
        return;
    }
    if (from.size > 0)
        memcpy(to, from.data, from.size);
    memset(to + from.size, 0, cell_bytes - from.size);
}

/* The one place that writes a cell of the matrix; false: the value is too long for it. */
static inline bool
fill_cell(const struct near__fields_reading *reading, size_t cell, near_bytes value, unsigned mark)
{
    char *to = reading->matrix + cell * reading->cell_bytes;

    if (__builtin_expect(value.size > reading->cell_bytes, 0))
        return false;
    copy_cell(to, value, reading->cell_bytes);
    if (reading->mask != NULL)
        reading->mask[cell] = (uint8_t)mark;
    return true;
}

static void
empty_cell(const struct near__fields_reading *reading, size_t cell)
{
    if (reading->matrix != NULL)
        memset(reading->matrix + cell * reading->cell_bytes, 0, reading->cell_bytes);
    if (reading->mask != NULL)
        reading->mask[cell] = 0;
    if (reading->values != NULL)
        reading->values[cell] = NULL;
}

static unsigned
mark_of(const near_value *value)
{
    return (unsigned)near__value_source(value) | ((uintptr_t)value & NEAR__VALUE_STALE ? NEAR_CELL_STALE : 0);
}

static void
say(struct near__fields_reading *reading, size_t cell, near_status status)
{
    if (reading->statuses != NULL)
        reading->statuses[cell] = status;
}

static void
fail(struct near__fields_reading *reading, size_t cell, near_status status)
{
    empty_cell(reading, cell);
    say(reading, cell, status);
    if (status < 0 && reading->first == NEAR_OK)
        reading->first = status;
}

/* A value, or what stands in for it. */
static bool
give(struct near__fields_reading *reading, size_t cell, near_value *value)
{
    bool fits = true;

    if (reading->values != NULL) {
        reading->values[cell] = value;
        return true;
    }
    if (reading->matrix != NULL && near__value_data(value).size == 0 && near__value_object(value) != NULL)
        fits = false; /* decoded, and the codec does not keep the bytes */
    else if (reading->matrix != NULL)
        fits = fill_cell(reading, cell, near__value_data(value), mark_of(value));
    near__value_release(value);
    return fits;
}

void
near__fields_preset(struct near__fields_reading *reading, size_t cell, const struct near__column *column,
                    near_status status)
{
    struct near__entry *preset = column->info != NULL ? column->info->preset : NULL;

    if (preset == NULL) {
        fail(reading, cell, status);
        return;
    }
    near__entry_ref(preset);
    if (!give(reading, cell, near__value_of(preset, NEAR_FROM_NOWHERE, false))) {
        fail(reading, cell, status < 0 ? status : NEAR_ERR_TOO_LARGE);
        return;
    }
    say(reading, cell, status);
    reading->presets++;
}

void
near__fields_answer(struct near__fields_reading *reading, size_t cell, near_status status, near_value *value)
{
    if (status != NEAR_OK)
        near__fields_preset(reading, cell, &reading->columns[cell % reading->m], status);
    else if (!give(reading, cell, value))
        near__fields_preset(reading, cell, &reading->columns[cell % reading->m], NEAR_ERR_TOO_LARGE);
    else
        say(reading, cell, NEAR_OK);
}

static void
answer_given(struct near__fields_reading *reading, size_t cell, near_bytes given)
{
    struct near__entry *entry;
    void               *bytes;

    if (reading->matrix != NULL) {
        if (fill_cell(reading, cell, given, NEAR_FROM_CALLER))
            say(reading, cell, NEAR_OK);
        else
            fail(reading, cell, NEAR_ERR_TOO_LARGE);
        return;
    }
    if (reading->values == NULL)
        return;
    entry = near__entry_new((near_bytes){ NULL, 0 }, 0, given.size, &bytes);
    if (entry == NULL) {
        fail(reading, cell, NEAR_ERR_NOMEM);
        return;
    }
    if (given.size > 0)
        memcpy(bytes, given.data, given.size);
    entry->born        = -1;
    entry->fresh_until = entry->expires = NEAR_NEVER;
    entry->origin                       = NEAR_FROM_CALLER;
    near__fields_answer(reading, cell, NEAR_OK, near__value_of(entry, NEAR_FROM_NOWHERE, false));
}

static bool
is_given(const struct near__fields_reading *reading, size_t cell)
{
    return reading->given != NULL && reading->given[cell].data != NULL;
}

/* It takes part and the others are read, or the other way round. */
static inline bool
is_left_out(const struct near__fields_reading *reading, size_t cell)
{
    return NEAR__UNLIKELY(reading->past != NULL) && reading->past[cell] != reading->passing;
}

/* ---- L1, a group of cells at a time */

#define SHORT  120 /* an entity that the room on the stack has place for */
#define STRIDE (SHORT + NEAR__CELL_TAIL)

struct group {
    size_t                n;
    size_t                cells[NEAR__GROUP];
    struct near__column  *columns[NEAR__GROUP];
    near_bytes            entities[NEAR__GROUP];
    near_bytes            keys[NEAR__GROUP];
    uint64_t              hashes[NEAR__GROUP];
    near_value           *hits[NEAR__GROUP];
    uint8_t              *room;                /* NEAR__GROUP keys, `stride` each */
    struct near__l1_sight sights[NEAR__GROUP]; /* of a matrix */
};

/* Groups of a matrix on their way: one being made, one whose place in the index is on its way, one whose entries are. */
#define UNDER_WAY 3
struct pipeline {
    struct group *groups[UNDER_WAY]; /* newest first */
    size_t        size;              /* of a group */
    bool          copies;            /* else one group, and no passes beside each other */
};

static inline bool
asks_l1(const struct near__view *view)
{
    return !(view->flags & NEAR_SKIP_L1) && (view->gate == NEAR__GATE_OPEN || view->gate == NEAR__GATE_STALE);
}

static inline bool
is_fresh(const near_value *hit)
{
    return NEAR__LIKELY((uintptr_t)hit > NEAR__VALUE_BITS && !((uintptr_t)hit & NEAR__VALUE_STALE));
}

/* What L1 would have answered, had it been asked: nobody is served by it, so it is no hit. */
static near_value *
answer_of_l1(const struct near__fields_reading *reading, const struct group *group, size_t i)
{
    near_value *hit;

    if (reading->view.gate != NEAR__GATE_OPEN)
        return NULL;
    hit = near__l1_find(reading->cache->l1, group->hashes[i], group->keys[i], reading->view.now);
    if ((uintptr_t)hit <= NEAR__VALUE_BITS)
        return hit;
    near__hit_back(reading->cache);
    if (is_fresh(hit))
        return hit;
    near__value_release(hit);
    return NULL;
}

static void
miss(struct near__fields_reading *reading, const struct group *group, size_t i, near_value *stale)
{
    struct near__missing *missing = near__fields_miss(reading, group->cells[i], group->columns[i],
                                                      group->entities[i], group->keys[i], group->hashes[i]);

    if (missing == NULL) {
        near_value_release(stale);
        near__fields_preset(reading, group->cells[i], group->columns[i], NEAR_ERR_NOMEM);
        return;
    }
    missing->stale = stale;
    if (NEAR__UNLIKELY(reading->compares))
        missing->cached = answer_of_l1(reading, group, i);
}

/* Not a fresh value. */
static void
take_other(struct near__fields_reading *reading, const struct group *group, size_t i)
{
    near_cache *cache = reading->cache;
    near_value *hit   = group->hits[i];

    near__hot_miss(cache, group->hashes[i], group->keys[i]);
    if (hit == NEAR__L1_NEGATIVE && reading->view.gate == NEAR__GATE_OPEN) {
        near__count(cache, NEAR__negative_hits, 1);
        near__fields_preset(reading, group->cells[i], group->columns[i], NEAR_NOT_FOUND);
        return;
    }
    if ((uintptr_t)hit <= NEAR__VALUE_BITS)
        hit = NULL;
    else
        near__hit_back(cache);
    miss(reading, group, i, hit);
}

/* The gate is closed, or the caller has asked to go past L1. */
static void
take_unasked(struct near__fields_reading *reading, const struct group *group)
{
    near_cache *cache = reading->cache;

    near__count(cache, NEAR__requests, group->n);
    if (!(reading->view.flags & NEAR_SKIP_L1))
        near__count(cache, NEAR__gate_closed_reads, group->n);
    for (size_t i = 0; i < group->n; i++) {
        if (reading->view.gate == NEAR__GATE_FAIL)
            near__fields_preset(reading, group->cells[i], group->columns[i], NEAR_ERR_UNAVAILABLE);
        else
            miss(reading, group, i, NULL);
    }
}

/* A hit, or what there is instead; 1 if it is not counted as one. */
static inline size_t
take_one(struct near__fields_reading *reading, struct group *group, size_t i, near_value *hit)
{
    group->hits[i] = hit;
    if (NEAR__UNLIKELY(!is_fresh(hit))) {
        take_other(reading, group, i);
        return 1;
    }
    if (NEAR__UNLIKELY(reading->view.gate == NEAR__GATE_STALE))
        hit = near__value_as_stale(hit);
    near__fields_answer(reading, group->cells[i], NEAR_OK, hit);
    return 0;
}

static void
take_group(struct near__fields_reading *reading, struct group *group)
{
    size_t other = 0;

    for (size_t i = 0; i < group->n; i++)
        other += take_one(reading, group, i, group->hits[i]);
    if (other > 0)
        near__count(reading->cache, NEAR__requests, other);
    if (NEAR__UNLIKELY(reading->view.gate == NEAR__GATE_STALE))
        near__count(reading->cache, NEAR__stale_served, group->n - other);
}

/* The hash of a key of a common size without a call. */
static inline uint64_t
hash_of(const near_cache *cache, near_bytes key)
{
    return NEAR__LIKELY(key.size - 17 <= 15) ? near__hash_between(&cache->client->secret, key, 17, 32)
                                             : near__hash_keyed_inline(&cache->client->secret, key);
}

/* The index is asked for; or, where there is to be no copy, the answers are taken at once. */
static __attribute__((flatten)) void
hash_group(const near_cache *cache, struct group *group)
{
    for (size_t i = 0; i < group->n; i++)
        group->hashes[i] = hash_of(cache, group->keys[i]);
}

/* By their wide keys, which are the same in every process. */
static void
note_requests(near_cache *cache, const struct group *group)
{
    uint8_t room[NEAR__FIELD_SAVED_MAX];

    for (size_t i = 0; i < group->n; i++) {
        near_bytes entity = group->entities[i];

        if (entity.size + NEAR__WIDE_TAIL > sizeof(room))
            continue;
        if (entity.size > 0)
            memcpy(room, entity.data, entity.size);
        near__wide_tail_put(room + entity.size, group->columns[i]->field);
        near__requests_note(cache, (near_bytes){ room, entity.size + NEAR__WIDE_TAIL },
                            is_fresh(group->hits[i]) ? group->hits[i] : NULL);
    }
}

/* All at once. */
static void
look(struct near__fields_reading *reading, struct group *group)
{
    near_cache *cache = reading->cache;

    if (group->n == 0)
        return;
    hash_group(cache, group);
    if (NEAR__UNLIKELY(!asks_l1(&reading->view))) {
        take_unasked(reading, group);
    } else {
        near__l1_find_many(cache->l1, group->hashes, group->keys, group->n, reading->view.now, group->hits);
        if (NEAR__UNLIKELY(cache->requests != NULL))
            note_requests(cache, group);
        take_group(reading, group);
    }
    group->n = 0;
}

/* The last step of a group of a matrix. */
static void
copy_group(struct near__fields_reading *reading, struct group *group)
{
    struct near__l1_copy copies[NEAR__GROUP];
    size_t               cell_bytes = reading->cell_bytes, others = 0;

    for (size_t i = 0; i < group->n; i++) {
        copies[i].to   = reading->matrix + group->cells[i] * cell_bytes;
        copies[i].room = cell_bytes;
    }
    near__l1_copy(reading->cache->l1, group->hashes, group->keys, group->n, reading->view.now, group->sights,
                  copies);
    for (size_t i = 0; i < group->n; i++) {
        if (NEAR__UNLIKELY(copies[i].value != NEAR__L1_COPIED)) {
            others += take_one(reading, group, i, copies[i].value);
            continue;
        }
        if (NEAR__UNLIKELY(copies[i].size < cell_bytes))
            memset(copies[i].to + copies[i].size, 0, cell_bytes - copies[i].size);
        if (reading->mask != NULL)
            reading->mask[group->cells[i]] = NEAR_FROM_L1;
        say(reading, group->cells[i], NEAR_OK);
    }
    if (others > 0)
        near__count(reading->cache, NEAR__requests, others);
    group->n = 0;
}

/* The newest group is full: each goes one step on. */
static void
step(struct near__fields_reading *reading, struct pipeline *pipeline)
{
    struct near__l1 *l1  = reading->cache->l1;
    struct group *newest = pipeline->groups[0], *middle = pipeline->groups[1], *oldest = pipeline->groups[2];

    if (!pipeline->copies) {
        look(reading, newest);
        return;
    }
    hash_group(reading->cache, newest);
    near__l1_aim(l1, newest->hashes, newest->n, newest->sights);
    near__l1_seek(l1, middle->hashes, middle->n, reading->cell_bytes, middle->sights);
    copy_group(reading, oldest);
    pipeline->groups[0] = oldest;
    pipeline->groups[1] = newest;
    pipeline->groups[2] = middle;
}

/* The entity, by moves of a known size where it is short: `from` then has room behind it. */
static inline void
put_entity(uint8_t *to, const uint8_t *from, size_t size)
{
    if (size <= 16)
        memcpy(to, from, 16);
    else if (size <= 32)
        memcpy(to, from, 32);
    else
        memcpy(to, from, size);
}

static void
look_at_row(struct near__fields_reading *reading, struct pipeline *pipeline, size_t row)
{
    near_cache    *cache   = reading->cache;
    near_bytes     entity  = reading->entities[row];
    uint32_t       version = cache->fields->base;
    uint8_t        padded[SHORT];
    const uint8_t *bytes = entity.data;

    if (entity.size <= SHORT) {
        if (entity.size > 0)
            memcpy(padded, entity.data, entity.size);
        bytes = padded;
    }
    version += near__field_row(cache->fields, near__hash_keyed_inline(&cache->client->secret, entity));
    for (size_t i = 0; i < reading->m; i++) {
        struct group *group = pipeline->groups[0];
        size_t        cell = row * reading->m + i, at = group->n;
        uint8_t      *key = group->room + at * reading->stride;

        if (is_left_out(reading, cell))
            continue;
        if (NEAR__UNLIKELY(is_given(reading, cell))) {
            answer_given(reading, cell, reading->given[cell]);
            continue;
        }
        put_entity(key, bytes, entity.size);
        near__cell_tail_put(key + entity.size, reading->columns[i].field,
                            version + reading->columns[i].moment);
        group->cells[at]    = cell;
        group->columns[at]  = &reading->columns[i];
        group->entities[at] = entity;
        group->keys[at]     = (near_bytes){ key, entity.size + NEAR__CELL_TAIL };
        if (++group->n == pipeline->size)
            step(reading, pipeline);
    }
}

near_status
near__fields_entity_check(const near_cache *cache, near_bytes entity)
{
    const struct near_l2_traits *traits = &cache->client->traits;
    near_status                  status = near__key_check(entity);

    if (status == NEAR_OK && entity.size > NEAR__KEY_MAX - 16)
        return NEAR_ERR_TOO_LARGE;
    if (status == NEAR_OK && cache->fields->hashed &&
        (cache->fields->prefix_size + entity.size > traits->max_key ||
         (!traits->binary_keys && !near__bytes_visible(entity))))
        return NEAR_ERR_INVALID;
    return status;
}

/* False: the row has been refused. */
static bool
row_is_good(struct near__fields_reading *reading, size_t row)
{
    near_status status = near__fields_entity_check(reading->cache, reading->entities[row]);

    for (size_t i = 0; status != NEAR_OK && i < reading->m; i++)
        fail(reading, row * reading->m + i, status);
    return status == NEAR_OK;
}

/* A cell of 64 bytes takes four lines of memory, and a processor has a dozen or two under way at a time: what is asked for too early waits in
 * front of what is needed first.  On one machine 4 to 6 took the same time, 8 a fifth more, 16 a half more (bench/gather). */
#define COPIED_TOGETHER 5

static void
look_at_rows(struct near__fields_reading *reading, struct pipeline *pipeline)
{
    for (size_t row = 0; row < reading->n; row++)
        if (row_is_good(reading, row))
            look_at_row(reading, pipeline, row);
    for (int i = 0; i < UNDER_WAY; i++) /* those that are on their way */
        step(reading, pipeline);
}

static void
read_rows(struct near__fields_reading *reading)
{
    uint8_t         room[UNDER_WAY * NEAR__GROUP * STRIDE], *keys = room;
    struct group    groups[UNDER_WAY];
    struct pipeline pipeline = { .copies = reading->matrix != NULL && reading->view.gate == NEAR__GATE_OPEN &&
                                           asks_l1(&reading->view) && reading->cache->requests == NULL };

    pipeline.size = pipeline.copies ? COPIED_TOGETHER : NEAR__GROUP;
    if (reading->stride > STRIDE)
        keys = malloc(UNDER_WAY * NEAR__GROUP * reading->stride);
    for (size_t i = 0; keys == NULL && i < reading->n * reading->m; i++)
        if (!is_left_out(reading, i))
            near__fields_preset(reading, i, &reading->columns[i % reading->m], NEAR_ERR_NOMEM);
    for (size_t i = 0; keys != NULL && i < UNDER_WAY; i++) {
        groups[i].n        = 0;
        groups[i].room     = keys + i * NEAR__GROUP * reading->stride;
        pipeline.groups[i] = &groups[i];
    }
    if (keys != NULL)
        look_at_rows(reading, &pipeline);
    if (keys != room)
        free(keys);
    if (reading->missed > 0)
        near__fields_below(reading);
}

/* ---- cells that are entries of their own: by what reads keys */

struct wide {
    size_t      *cells;
    near_bytes  *keys;
    near_value **values;
    near_status *statuses;
    uint8_t     *room;
    size_t       n;
};

static bool
wide_open(const struct near__fields_reading *reading, struct wide *wide)
{
    size_t cells = reading->n * reading->m, bytes = 0;

    for (size_t row = 0; row < reading->n; row++)
        bytes += reading->m * (near__entity_room(reading->entities[row]) + NEAR__WIDE_TAIL);
    *wide = (struct wide){ .cells = malloc(cells * (sizeof(size_t) + sizeof(near_bytes) +
                                                    sizeof(near_value *) + sizeof(near_status)) +
                                           bytes) };
    if (wide->cells == NULL)
        return false;
    wide->keys     = (near_bytes *)&wide->cells[cells];
    wide->values   = (near_value **)&wide->keys[cells];
    wide->statuses = (near_status *)&wide->values[cells];
    wide->room     = (uint8_t *)&wide->statuses[cells];
    return true;
}

static void
add_wide(struct near__fields_reading *reading, struct wide *wide, size_t row)
{
    near_bytes entity = reading->entities[row];

    for (size_t i = 0; i < reading->m; i++) {
        size_t cell = row * reading->m + i;

        if (is_given(reading, cell)) {
            answer_given(reading, cell, reading->given[cell]);
            continue;
        }
        if (entity.size > 0)
            memcpy(wide->room, entity.data, entity.size);
        near__wide_tail_put(wide->room + entity.size, reading->columns[i].field);
        wide->cells[wide->n]  = cell;
        wide->keys[wide->n++] = (near_bytes){ wide->room, entity.size + NEAR__WIDE_TAIL };
        wide->room += entity.size + NEAR__WIDE_TAIL;
    }
}

static void
read_keys(struct near__fields_reading *reading)
{
    near_cache        *cache   = reading->cache;
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;
    int64_t            left    = -1;
    struct wide        wide;
    bool               late = false;

    if (!wide_open(reading, &wide)) {
        for (size_t i = 0; i < reading->n * reading->m; i++)
            near__fields_preset(reading, i, &reading->columns[i % reading->m], NEAR_ERR_NOMEM);
        return;
    }
    for (size_t row = 0; row < reading->n; row++)
        if (row_is_good(reading, row))
            add_wide(reading, &wide, row);
    if (reading->deadline != NEAR_NEVER) {
        left = reading->deadline - near__client_now(cache->client);
        left = left > 0 ? (left + NEAR_MS - 1) / NEAR_MS : 0;
    }
    options.flags      = reading->view.flags;
    options.timeout_ms = left;
    if (wide.n > 0 && cache->loader != NULL && !(reading->view.flags & NEAR_ONLY_L1))
        near_fetch_many(cache, wide.keys, wide.n, &options, wide.values, wide.statuses);
    else if (wide.n > 0)
        near__get_many(cache, wide.keys, wide.n, reading->view.flags, left, wide.values, wide.statuses);
    for (size_t i = 0; i < wide.n; i++) {
        late |= wide.statuses[i] == NEAR_ERR_TIMEOUT && cache->loader == NULL;
        near__fields_answer(reading, wide.cells[i], wide.statuses[i], wide.values[i]);
    }
    free(wide.cells);
    if (late && reading->deadline != NEAR_NEVER)
        near__fields_read_later(reading, NULL);
}

/* ---- the calls */

void
near__fields_column(const near_cache *cache, near_field field, struct near__column *column)
{
    column->field     = field;
    column->info      = near__field_of(cache, field);
    column->moment    = near__field_moment(cache, field, column->info);
    column->wire.data = NULL;
}

near_bytes
near__fields_wire(struct near__column *column)
{
    if (column->wire.data == NULL && column->info != NULL)
        column->wire = column->info->wire;
    else if (column->wire.data == NULL)
        column->wire = (near_bytes){ column->digits, near__l2_decimal_write(column->field, column->digits) };
    return column->wire;
}

near_bytes
near__fields_name(struct near__column *column)
{
    if (column->info != NULL && column->info->named)
        return near_key(column->info->name);
    return near__fields_wire(column);
}

static near_status
refuse(const struct near__fields_reading *reading, near_status status)
{
    for (size_t i = 0; i < reading->n * reading->m; i++) {
        empty_cell(reading, i);
        if (reading->statuses != NULL)
            reading->statuses[i] = status;
    }
    return status;
}

#define COLUMNS_INSIDE 64 /* as many as a request has, mostly: 4 KiB of stack */

/* Which cells take no part, and how many. */
static size_t
divide(const struct near__fields_reading *reading, bool *past)
{
    size_t outside = 0;

    for (size_t row = 0; row < reading->n; row++) {
        bool good = near__fields_entity_check(reading->cache, reading->entities[row]) == NEAR_OK;

        for (size_t i = 0; good && i < reading->m; i++) {
            size_t cell = row * reading->m + i;

            past[cell] = !is_given(reading, cell) &&
                         !near__rollout_takes_cell(reading->cache->rollout, reading->entities[row],
                                                   near__fields_name(&reading->columns[i]));
            outside += past[cell];
        }
    }
    return outside;
}

/* Cells that take no part are read from the hash, or from the store, and leave nothing in L1.  A dry run reads all of them so, but for
 * what it leaves, and compares what it finds with what was there. */
static void
read_rolling(struct near__fields_reading *reading)
{
    near_cache *cache = reading->cache;
    unsigned    flags = reading->view.flags;
    bool  *past = calloc(reading->n, reading->m), quiet = reading->values == NULL && reading->matrix == NULL;
    size_t outside;

    for (size_t i = 0; past == NULL && i < reading->n * reading->m; i++)
        near__fields_preset(reading, i, &reading->columns[i % reading->m], NEAR_ERR_NOMEM);
    if (past == NULL)
        return;
    outside       = divide(reading, past);
    reading->past = past;
    if (near__rollout_is_dry(cache->rollout) && !quiet) {
        reading->view     = near__view_of(cache, flags | NEAR_SKIP_L1);
        reading->compares = !(flags & NEAR_SKIP_L1);
    }
    read_rows(reading);
    reading->compares = false;
    if (outside > 0 && !quiet) {
        near__count(cache, NEAR__rollout_outside, outside);
        near__fields_chunks_free(reading);
        reading->tail    = &reading->chunks;
        reading->missed  = 0;
        reading->passing = true;
        reading->view    = near__view_of(cache, flags | NEAR_SKIP_L1 | NEAR_NO_FILL);
        read_rows(reading);
    }
    reading->past = NULL;
    free(past);
}

static near_status
read_all(struct near__fields_reading *reading, const near_field *fields, const near_fields_options *options)
{
    near_cache         *cache = reading->cache;
    near_fields_options mine  = NEAR_FIELDS_OPTIONS_INIT;
    struct near__column inside[COLUMNS_INSIDE];

    near__options_take(&mine, sizeof(mine), options);
    near__fields_use(cache);
    reading->given    = mine.given;
    reading->view     = near__view_of(cache, mine.flags & (NEAR_SKIP_L1 | NEAR_ONLY_L1 | NEAR_NO_FILL));
    reading->deadline = NEAR_NEVER;
    if (mine.timeout_ms >= 0)
        reading->deadline =
            near__time_after(near__client_now_exact(cache->client), near__duration(mine.timeout_ms, 0));
    reading->columns = inside;
    if (reading->m > COLUMNS_INSIDE)
        reading->columns = malloc(reading->m * sizeof(*reading->columns));
    if (reading->columns == NULL)
        return refuse(reading, NEAR_ERR_NOMEM);
    reading->stride = STRIDE;
    for (size_t i = 0; i < reading->n; i++)
        if (near__entity_room(reading->entities[i]) + NEAR__CELL_TAIL > reading->stride)
            reading->stride = (near__entity_room(reading->entities[i]) + NEAR__CELL_TAIL + 15) & ~(size_t)15;
    /* versions first: what is asked of L1 and L2 after them is no older than what they count */
    for (size_t i = 0; i < reading->m; i++)
        near__fields_column(cache, fields[i], &reading->columns[i]);
    reading->tail = &reading->chunks;
    if (cache->fields->layout == NEAR__FIELDS_KEYS)
        read_keys(reading);
    else if (NEAR__UNLIKELY(cache->rollout != NULL))
        read_rolling(reading);
    else
        read_rows(reading);
    near__fields_chunks_free(reading);
    if (reading->presets > 0)
        near__count(cache, NEAR__fields_defaults, reading->presets);
    if (reading->columns != inside)
        free(reading->columns);
    return reading->first;
}

static near_status
check(const struct near__fields_reading *reading, const near_field *fields)
{
    near_status status = near__cache_check(reading->cache);

    if (status == NEAR_OK &&
        ((reading->n > 0 && reading->entities == NULL) || (reading->m > 0 && fields == NULL)))
        status = NEAR_ERR_INVALID;
    if (reading->m > 0 && reading->n > SIZE_MAX / 256 / reading->m)
        return NEAR_ERR_INVALID; /* no such arrays */
    return status != NEAR_OK ? refuse(reading, status) : NEAR_OK;
}

near_status
near_fields_get_many(near_cache *cache, const near_bytes *entities, size_t n, const near_field *fields,
                     size_t m, const near_fields_options *options, near_value **values, near_status *statuses)
{
    struct near__fields_reading reading = {
        .cache = cache, .entities = entities, .n = n, .m = m, .values = values, .statuses = statuses
    };
    near_status status;

    if (n > 0 && m > 0 && values == NULL)
        return NEAR_ERR_INVALID;
    status = check(&reading, fields);
    if (status != NEAR_OK || n == 0 || m == 0)
        return status;
    return read_all(&reading, fields, options);
}

near_status
near_fields_get_into(near_cache *cache, const near_bytes *entities, size_t n, const near_field *fields,
                     size_t m, const near_fields_options *options, void *matrix, size_t cell_bytes,
                     uint8_t *mask, near_status *statuses)
{
    struct near__fields_reading reading = { .cache      = cache,
                                            .entities   = entities,
                                            .n          = n,
                                            .m          = m,
                                            .matrix     = matrix,
                                            .cell_bytes = cell_bytes,
                                            .mask       = mask,
                                            .statuses   = statuses };
    near_status                 status;

    if (n > 0 && m > 0 && (matrix == NULL || cell_bytes == 0))
        return NEAR_ERR_INVALID;
    status = check(&reading, fields);
    if (status != NEAR_OK || n == 0 || m == 0)
        return status;
    return read_all(&reading, fields, options);
}

/* In the background: what is found goes into L1 and to nobody. */
void
near__fields_read_quietly(near_cache *cache, const near_bytes *entities, size_t n, const near_field *fields,
                          size_t m, const near_bytes *given)
{
    struct near__fields_reading reading = { .cache = cache, .entities = entities, .n = n, .m = m };
    near_fields_options         options = NEAR_FIELDS_OPTIONS_INIT;

    options.given = given;
    if (check(&reading, fields) == NEAR_OK)
        read_all(&reading, fields, &options);
}
