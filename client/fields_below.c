/*
 * See fields_inside.h.  What L1 has not answered: hashes in L2, the loader, presets; and what is read after its caller has left.
 *
 * The fence of a cell is captured before the disk tier and L2 are asked, its version before that; what they give is offered to L1 with both.
 * A cell that another thread is asking for is waited for, after all that this call asks for has been answered, so calls cannot wait for each
 * other.
 * No lock is held here.
 */
#include "fields_inside.h"

#include <stdlib.h>
#include <string.h>

#include "cache.h"
#include "codec.h"
#include "disk.h"
#include "rollout.h"

#define FOR_MISSING(reading, missing)                                                                        \
    for (struct near__chunk *chunk_ = (reading)->chunks; chunk_ != NULL; chunk_ = chunk_->next)              \
        for (struct near__missing *missing = chunk_->cells; missing < chunk_->cells + chunk_->n; missing++)

/* ---- missing cells */

static struct near__chunk *
chunk_new(size_t stride)
{
    struct near__chunk *chunk = malloc(sizeof(*chunk) + NEAR__MISSING_CHUNK * stride);

    if (chunk == NULL)
        return NULL;
    chunk->next = NULL;
    chunk->n    = 0;
    chunk->keys = (uint8_t *)(chunk + 1);
    return chunk;
}

struct near__missing *
near__fields_miss(struct near__fields_reading *reading, size_t cell, struct near__column *column,
                  near_bytes entity, near_bytes key, uint64_t hash)
{
    struct near__chunk *chunk =
        reading->missed % NEAR__MISSING_CHUNK != 0
            ? (struct near__chunk *)((char *)reading->tail - offsetof(struct near__chunk, next))
            : chunk_new(reading->stride);
    struct near__missing *missing;
    uint8_t              *bytes;

    if (chunk == NULL)
        return NULL;
    if (chunk->n == 0) {
        *reading->tail = chunk;
        reading->tail  = &chunk->next;
    }
    bytes = chunk->keys + chunk->n * reading->stride;
    memcpy(bytes, key.data, key.size);
    missing  = &chunk->cells[chunk->n++];
    *missing = (struct near__missing){
        .ask    = { .key = { bytes, key.size }, .hash = hash },
        .cell   = cell,
        .column = column,
        .entity = entity,
    };
    near__l1_bring_fence(reading->cache->l1, hash);
    reading->missed++;
    return missing;
}

void
near__fields_chunks_free(struct near__fields_reading *reading)
{
    struct near__chunk *chunk = reading->chunks, *next;

    for (; chunk != NULL; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    reading->chunks = NULL;
}

/* ---- one exchange with L2: an item per entity */

/* What an exchange needs, in one block. */
struct exchange {
    struct near__missing **missing; /* of all asked for, row by row */
    size_t                 n;
    struct near_l2_item   *items;
    struct near_l2_hash   *hashes;
    near_bytes            *names;
    enum near_l2_answer   *answers;
    char                  *keys;
    size_t                 n_items;
};

static bool
same_entity(const struct near__missing *a, const struct near__missing *b)
{
    return a->entity.data == b->entity.data && a->entity.size == b->entity.size;
}

/* `asked` is sorted by rows already.  False: out of memory. */
static bool
exchange_open(struct exchange *exchange, const near_cache *cache, struct near__missing **asked, size_t n)
{
    size_t prefix = cache->fields->prefix_size, keys = 0;
    size_t each = sizeof(struct near_l2_item) + sizeof(struct near_l2_hash) + sizeof(near_bytes) +
                  sizeof(enum near_l2_answer);
    char *block;

    for (size_t i = 0; i < n; i++)
        if (i == 0 || !same_entity(asked[i], asked[i - 1]) || i % NEAR_L2_FIELDS == 0)
            keys += prefix + asked[i]->entity.size;
    keys += prefix + (n > 0 ? asked[0]->entity.size : 0);
    block = calloc(1, n * each + keys + n * 0);
    if (block == NULL)
        return false;
    *exchange = (struct exchange){ .missing = asked, .n = n, .items = (struct near_l2_item *)(void *)block };
    exchange->hashes  = (struct near_l2_hash *)(void *)&exchange->items[n];
    exchange->names   = (near_bytes *)(void *)&exchange->hashes[n];
    exchange->answers = (enum near_l2_answer *)(void *)&exchange->names[n];
    exchange->keys    = (char *)&exchange->answers[n];
    return true;
}

static void
add_item(struct exchange *exchange, const struct near__fields *fields, size_t at)
{
    struct near__missing *first = exchange->missing[at];
    struct near_l2_item  *item  = &exchange->items[exchange->n_items];
    struct near_l2_hash  *hash  = &exchange->hashes[exchange->n_items++];

    memcpy(exchange->keys, fields->prefix, fields->prefix_size);
    if (first->entity.size > 0)
        memcpy(exchange->keys + fields->prefix_size, first->entity.data, first->entity.size);
    *hash = (struct near_l2_hash){ .fields = &exchange->names[at], .answers = &exchange->answers[at] };
    *item = (struct near_l2_item){ .key   = { exchange->keys, fields->prefix_size + first->entity.size },
                                   .user  = &exchange->missing[at],
                                   .hash  = hash,
                                   .plain = true };
    exchange->keys += item->key.size;
}

struct taking {
    near_cache *cache;
    int64_t     now;
};

/* The cell's entry; NULL: no memory. */
static struct near__entry *
entry_new(const struct taking *taking, const struct near__missing *missing, near_bytes value, bool negative)
{
    near_cache         *cache = taking->cache;
    int64_t             ttl   = negative ? cache->settings.negative_ttl : cache->settings.ttl;
    void               *bytes;
    struct near__entry *entry = near__entry_new(missing->ask.key, missing->ask.hash, value.size, &bytes);

    if (entry == NULL)
        return NULL;
    if (value.size > 0)
        memcpy(bytes, value.data, value.size);
    if (!negative && missing->column->info != NULL && missing->column->info->ttl >= 0)
        ttl = missing->column->info->ttl;
    entry->negative = negative;
    near__entry_date(cache, entry, taking->now, ttl);
    return entry;
}

static void
deliver(void *ctx, struct near_l2_item *item, size_t field, near_bytes value)
{
    struct near__missing *missing = ((struct near__missing **)item->user)[field];
    struct near__ask     *ask     = &missing->ask;

    near__entry_release(&ask->entry);
    ask->entry  = entry_new(ctx, missing, value, false);
    ask->found  = ask->entry != NULL ? NEAR__FOUND : NEAR__UNREACHABLE;
    ask->status = ask->entry != NULL ? NEAR_OK : NEAR_ERR_NOMEM;
}

/* What the backend said of fields that were not delivered. */
static void
take_answers(near_cache *cache, const struct near_l2_item *item)
{
    struct near__missing **missing = item->user;
    size_t                 errors  = 0;

    for (size_t i = 0; i < item->hash->count; i++) {
        struct near__ask *ask = &missing[i]->ask;

        if (ask->found != NEAR__UNASKED)
            continue;
        if (item->hash->answers[i] == NEAR_L2_ABSENT) {
            ask->found = NEAR__ABSENT;
            continue;
        }
        ask->found  = NEAR__UNREACHABLE;
        ask->status = item->hash->answers[i] == NEAR_L2_ERROR ? NEAR_ERR_TOO_LARGE
                      : item->status != NEAR_OK               ? item->status
                                                              : NEAR_ERR_TIMEOUT;
        errors++;
    }
    if (errors > 0)
        near__count(cache, NEAR__l2_errors, errors);
}

static void
ask_items(near_cache *cache, struct exchange *exchange, int64_t now, int64_t deadline)
{
    near_client  *client = cache->client;
    struct taking taking = { cache, now };

    for (size_t at = 0; at < exchange->n_items; at += NEAR_L2_BATCH) {
        size_t  part  = exchange->n_items - at < NEAR_L2_BATCH ? exchange->n_items - at : NEAR_L2_BATCH;
        int64_t began = near__client_now(client);

        near__count(cache, NEAR__l2_requests, 1);
        client->ops->hash_get_many(client->l2, exchange->items + at, part, deliver, &taking, deadline);
        near__time(cache, NEAR__TIME_l2_read, near__client_now(client) - began);
        for (size_t i = at; i < at + part; i++)
            take_answers(cache, &exchange->items[i]);
    }
}

static void
ask_l2(near_cache *cache, struct near__missing **asked, size_t n, int64_t now, int64_t deadline)
{
    struct exchange exchange;

    if (n == 0)
        return;
    if (!exchange_open(&exchange, cache, asked, n)) {
        for (size_t i = 0; i < n; i++) {
            asked[i]->ask.found  = NEAR__UNREACHABLE;
            asked[i]->ask.status = NEAR_ERR_NOMEM;
        }
        return;
    }
    for (size_t i = 0; i < n; i++) {
        struct near_l2_hash *hash;

        if (i == 0 || !same_entity(asked[i], asked[i - 1]) ||
            exchange.hashes[exchange.n_items - 1].count == NEAR_L2_FIELDS)
            add_item(&exchange, cache->fields, i);
        hash              = &exchange.hashes[exchange.n_items - 1];
        exchange.names[i] = near__fields_wire(asked[i]->column);
        hash->count++;
    }
    ask_items(cache, &exchange, now, deadline);
    free(exchange.items);
    for (size_t i = 0; i < n; i++) {
        struct near__ask *ask = &asked[i]->ask;

        near__decode_asks(cache, &ask, 1, cache->loader != NULL);
    }
}

/* What L1 had no room for (disk.path) is answered from there: such asks are found before L2 is thought of. */
static void
read_disk(struct near__fields_reading *reading, int64_t deadline)
{
    near_cache        *cache = reading->cache;
    struct near__ask **asks;
    size_t             n = 0;

    if (NEAR__LIKELY(cache->disk == NULL) || (reading->view.flags & (NEAR_SKIP_L1 | NEAR_ONLY_L1)) ||
        !near__disk_may_answer(cache, reading->view.now))
        return;
    asks = malloc(reading->missed * sizeof(*asks));
    if (asks == NULL)
        return; /* all are asked for below, then */
    FOR_MISSING(reading, missing)
    asks[n++] = &missing->ask;
    near__disk_read(cache, asks, n, deadline);
    free(asks);
}

/* Those that nobody is asking for, of all that are not found yet; the others are joined. */
static size_t
lead_or_join(struct near__fields_reading *reading, struct near__missing **asked, int64_t deadline)
{
    near_cache *cache  = reading->cache;
    bool        shares = !(reading->view.flags & NEAR_SKIP_L1);
    size_t      n      = 0;

    FOR_MISSING(reading, missing)
    {
        if (missing->ask.disk)
            continue;
        missing->shared = (struct near__shared){ .ask = &missing->ask };
        missing->joined =
            shares && near__share_begin(cache, &missing->shared, &missing->ask, reading->view.now, deadline);
        if (!missing->joined)
            asked[n++] = missing;
    }
    return n;
}

static void
read_hashes(struct near__fields_reading *reading, int64_t deadline)
{
    near_cache            *cache = reading->cache;
    struct near__missing **asked = malloc(reading->missed * sizeof(struct near__missing *));
    size_t                 n = 0, alone = 0;

    if (asked == NULL) {
        FOR_MISSING(reading, missing)
        if (!missing->ask.disk) {
            missing->ask.found  = NEAR__UNREACHABLE;
            missing->ask.status = NEAR_ERR_NOMEM;
        }
        return;
    }
    n = lead_or_join(reading, asked, deadline);
    ask_l2(cache, asked, n, reading->view.now, deadline);
    for (size_t i = 0; i < n; i++)
        near__share_end(cache, &asked[i]->shared);
    /* only now: who waits for us does not wait for what we wait for */
    FOR_MISSING(reading, missing)
    if (missing->joined && !near__share_wait(cache, &missing->shared, &missing->ask)) {
        missing->joined = false;
        asked[alone++]  = missing;
    }
    ask_l2(cache, asked, alone, near__client_now(cache->client), deadline);
    free(asked);
}

/* ---- answers */

/* Of a dry run: what the cell is answered with, beside what L1 had.  An error says nothing. */
static void
compare(const struct near__fields_reading *reading, struct near__missing *missing, near_status status,
        const near_value *fresh)
{
    bool negative = missing->cached == NEAR__L1_NEGATIVE;

    if (missing->cached == NULL)
        return;
    near__rollout_compare(reading->cache, negative ? NEAR_NOT_FOUND : NEAR_OK,
                          negative ? NULL : missing->cached, status, fresh);
    if (!negative)
        near_value_release(missing->cached);
    missing->cached = NULL;
}

/* Past its TTL and within grace, and nothing has happened to it since. */
static bool
answer_stale(struct near__fields_reading *reading, struct near__missing *missing)
{
    near_value *stale = missing->stale;

    missing->stale = NULL;
    if (stale == NULL)
        return false;
    if (!near__l1_fence_same(near__l1_fence(reading->cache->l1, missing->ask.hash), missing->ask.fence)) {
        near_value_release(stale);
        return false;
    }
    near__count(reading->cache, NEAR__stale_served, 1);
    near__fields_answer(reading, missing->cell, NEAR_OK, stale);
    return true;
}

static void
answer_found(struct near__fields_reading *reading, struct near__missing *missing)
{
    near_cache *cache = reading->cache;
    bool        fill = !(reading->view.flags & NEAR_NO_FILL) && !missing->joined, disk = missing->ask.disk;
    near_value *value = near__value_of(missing->ask.entry, disk ? NEAR_FROM_L1 : NEAR_FROM_L2, false);

    compare(reading, missing, NEAR_OK, value);
    if (disk)
        near__disk_take(cache, &missing->ask, fill, reading->view.now);
    else if (fill)
        near__l1_insert(cache->l1, missing->ask.entry, missing->ask.fence, reading->view.now);
    near_value_release(missing->stale);
    missing->stale = NULL;
    near__fields_answer(reading, missing->cell, NEAR_OK, value);
}

/* The hash has no such field, and there is no loader to ask: that is worth remembering. */
static void
remember_absent(struct near__fields_reading *reading, const struct near__missing *missing)
{
    near_cache         *cache  = reading->cache;
    struct taking       taking = { cache, reading->view.now };
    struct near__entry *entry;

    if (missing->joined || (reading->view.flags & NEAR_NO_FILL) || cache->settings.negative_ttl == 0)
        return;
    entry = entry_new(&taking, missing, (near_bytes){ NULL, 0 }, true);
    if (entry == NULL)
        return;
    near__l1_insert(cache->l1, entry, missing->ask.fence, reading->view.now);
    near__entry_release(&entry);
}

static void
answer_absent(struct near__fields_reading *reading, struct near__missing *missing)
{
    bool said = missing->ask.found == NEAR__ABSENT; /* else nobody was asked */

    near_value_release(missing->stale); /* the server's word: it is no more */
    missing->stale = NULL;
    compare(reading, missing, said ? NEAR_NOT_FOUND : NEAR_ERR_UNAVAILABLE, NULL);
    if (said)
        remember_absent(reading, missing);
    near__fields_answer(reading, missing->cell, said ? NEAR_NOT_FOUND : NEAR_MISS, NULL);
}

static void
answer_failed(struct near__fields_reading *reading, struct near__missing *missing, near_status status)
{
    compare(reading, missing, status, NULL);
    if (!answer_stale(reading, missing))
        near__fields_answer(reading, missing->cell, status, NULL);
}

/* ---- the store */

static int64_t
ttl_of(const near_cache *cache, const struct near__column *column)
{
    return column->info != NULL && column->info->ttl >= 0 ? column->info->ttl : cache->settings.ttl;
}

static void
load(struct near__fields_reading *reading, struct near__missing **wanted, size_t n)
{
    size_t               each   = sizeof(struct near__absent) + sizeof(near_value *) + sizeof(near_status);
    struct near__absent *absent = malloc(n * each);
    near_value         **values;
    near_status         *statuses;

    if (absent == NULL) {
        for (size_t i = 0; i < n; i++)
            answer_failed(reading, wanted[i], NEAR_ERR_NOMEM);
        return;
    }
    values   = (near_value **)(void *)&absent[n];
    statuses = (near_status *)(void *)&values[n];
    for (size_t i = 0; i < n; i++)
        absent[i] = (struct near__absent){ .key  = wanted[i]->ask.key,
                                           .hash = wanted[i]->ask.hash,
                                           .ttl  = ttl_of(reading->cache, wanted[i]->column) };
    near__fetch_absent(reading->cache, &reading->view, absent, n, reading->deadline, values, statuses);
    for (size_t i = 0; i < n; i++) {
        if (statuses[i] < 0) {
            answer_failed(reading, wanted[i], statuses[i]);
            continue;
        }
        near_value_release(wanted[i]->stale);
        wanted[i]->stale = NULL;
        compare(reading, wanted[i], statuses[i], values[i]);
        near__fields_answer(reading, wanted[i]->cell, statuses[i], values[i]);
    }
    free(absent);
}

/* Whether the loader is asked for a cell.  Not when the call's time was over before L2 could say: then L2 may well have it. */
static bool
is_to_be_loaded(const struct near__fields_reading *reading, const struct near__missing *missing)
{
    return reading->cache->loader != NULL && !reading->storeless && !(reading->view.flags & NEAR_ONLY_L1) &&
           !missing->late && missing->ask.found != NEAR__FOUND;
}

static void
load_all(struct near__fields_reading *reading, size_t n)
{
    struct near__missing **wanted = malloc(n * sizeof(struct near__missing *));
    size_t                 at     = 0;

    FOR_MISSING(reading, missing)
    {
        if (!is_to_be_loaded(reading, missing))
            continue;
        if (wanted != NULL)
            wanted[at++] = missing;
        else
            answer_failed(reading, missing, NEAR_ERR_NOMEM);
    }
    if (wanted != NULL)
        load(reading, wanted, at);
    free(wanted);
}

/* ---- all of it */

/* Fences, all before L2 is asked for anything: their lines have come meanwhile. */
static void
capture(struct near__fields_reading *reading)
{
    struct near__l1 *l1 = reading->cache->l1;

    FOR_MISSING(reading, missing)
    {
        missing->ask.fence       = near__l1_fence(l1, missing->ask.hash);
        missing->ask.label_clock = near__l1_label_clock(l1);
    }
}

/* So many cells before a cell is inserted, what its insertion reads first is asked for: a few hundred nanoseconds. */
#define AHEAD 4

static void
bring(const struct near__fields_reading *reading, const struct near__chunk *chunk, size_t i)
{
    if (i < chunk->n && chunk->cells[i].ask.found == NEAR__FOUND)
        near__l1_bring(reading->cache->l1, chunk->cells[i].ask.hash);
}

/* What is known without the loader.  Returns how many it is to be asked for. */
static size_t
answer_known(struct near__fields_reading *reading)
{
    size_t wanted = 0, hits = 0, misses = 0;

    FOR_MISSING(reading, missing)
    {
        bring(reading, chunk_, (size_t)(missing - chunk_->cells) + AHEAD);
        if (missing->ask.found == NEAR__FOUND) {
            hits += !missing->ask.disk;
            answer_found(reading, missing);
        } else if (is_to_be_loaded(reading, missing)) {
            wanted++;
        } else if (missing->ask.found == NEAR__UNREACHABLE) {
            answer_failed(reading, missing, missing->ask.status);
        } else {
            answer_absent(reading, missing);
            misses++;
        }
    }
    if (!reading->storeless) { /* else nobody has asked */
        near__count(reading->cache, NEAR__hits_l2, hits);
        near__count(reading->cache, NEAR__misses, misses);
    }
    return wanted;
}

/* Cells that the server may yet have had an answer for: their rows are read once more without the caller. */
static void
follow_up(struct near__fields_reading *reading)
{
    bool *late = NULL, any = false;

    FOR_MISSING(reading, missing)
    {
        if (!missing->late)
            continue;
        if (!any)
            late = calloc(reading->n, sizeof(bool));
        any = true;
        if (late != NULL)
            late[missing->cell / reading->m] = true;
    }
    if (late != NULL)
        near__fields_read_later(reading, late);
    free(late);
}

void
near__fields_below(struct near__fields_reading *reading)
{
    near_cache        *cache  = reading->cache;
    const near_client *client = cache->client;
    int64_t            full, deadline;
    size_t             wanted;

    near__view_exact(cache, &reading->view);
    capture(reading);
    full     = near__time_after(reading->view.now, client->settings.l2_timeout);
    deadline = reading->deadline < full ? reading->deadline : full;
    read_disk(reading, deadline);
    if (cache->fields->hashed && !(reading->view.flags & NEAR_ONLY_L1))
        read_hashes(reading, deadline);
    if (reading->deadline < full)
        FOR_MISSING(reading, missing)
    missing->late = missing->ask.found == NEAR__UNREACHABLE && missing->ask.status == NEAR_ERR_TIMEOUT;
    wanted        = answer_known(reading);
    if (wanted > 0)
        load_all(reading, wanted);
    if (reading->deadline < full)
        follow_up(reading);
}

/* ---- after a restart: cells of a snapshot, each with a column of its own, as one row */

void
near__fields_confirm(near_cache *cache, const near_bytes *keys, size_t n, bool *found)
{
    struct near__fields_reading reading = { .cache = cache, .n = 1, .m = n, .storeless = true };
    uint8_t                     room[NEAR__FIELD_SAVED_MAX + NEAR__CELL_TAIL];
    struct near__column        *columns = calloc(n, sizeof(*columns));

    memset(found, 0, n * sizeof(*found));
    if (columns == NULL || !cache->fields->hashed) {
        free(columns);
        return;
    }
    near__fields_use(cache);
    reading.view     = near__view_of(cache, 0);
    reading.deadline = NEAR_NEVER;
    reading.columns  = columns;
    reading.stride   = sizeof(room);
    reading.tail     = &reading.chunks;
    for (size_t i = 0; i < n; i++) {
        near_bytes entity, key = { room, 0 };
        near_field field;

        if (!near__field_wide(keys[i], &entity, &field) || entity.size > NEAR__FIELD_SAVED_MAX)
            continue;
        near__fields_column(cache, field, &columns[i]);
        memcpy(room, entity.data, entity.size);
        key.size = entity.size +
                   near__cell_tail_put(room + entity.size, field, near__field_version(cache, entity, field));
        near__fields_miss(&reading, i, &columns[i], entity, key,
                          near__hash_keyed(&cache->client->secret, key));
    }
    if (reading.missed > 0)
        near__fields_below(&reading);
    FOR_MISSING((&reading), missing)
    found[missing->cell] = missing->ask.found == NEAR__FOUND;
    near__fields_chunks_free(&reading);
    free(columns);
}

/* ---- in the background */

/* So many at a time per cache: a server that is slow for everybody is not to be asked everything twice without end. */
#define LATE_MOST 16

struct later {
    struct near__job job;   /* first: the pool gives it back */
    near_cache      *cache; /* a reference */
    size_t           n, m;
    near_bytes      *entities; /* all of these behind it, in the same block */
    near_bytes      *given;
    near_field      *fields;
};

static void
later_free(struct later *later)
{
    near_cache *cache = later->cache;

    atomic_fetch_sub_explicit(&cache->fields->late, 1, memory_order_relaxed);
    free(later);
    near__cache_release(cache);
}

static void
run_later(struct near__job *job, bool cancelled)
{
    struct later *later = (struct later *)job;

    if (!cancelled)
        near__fields_read_quietly(later->cache, later->entities, later->n, later->fields, later->m,
                                  later->given);
    later_free(later);
}

/* A row that was refused is not asked for again: what it points to may be nothing. */
static bool
is_late(const struct near__fields_reading *reading, const bool *late, size_t row)
{
    return (late == NULL || late[row]) &&
           near__fields_entity_check(reading->cache, reading->entities[row]) == NEAR_OK;
}

static struct later *
later_new(const struct near__fields_reading *reading, const bool *late)
{
    size_t        rows = 0, bytes = 0;
    struct later *later;
    char         *room;

    for (size_t i = 0; i < reading->n; i++)
        if (is_late(reading, late, i)) {
            rows++;
            bytes += reading->entities[i].size;
        }
    later = calloc(1, sizeof(*later) + rows * sizeof(near_bytes) + rows * reading->m * sizeof(near_bytes) +
                          reading->m * sizeof(near_field) + bytes);
    if (later == NULL)
        return NULL;
    later->m        = reading->m;
    later->entities = (near_bytes *)(void *)(later + 1);
    later->given    = later->entities + rows;
    later->fields   = (near_field *)(void *)(later->given + rows * reading->m);
    room            = (char *)(later->fields + reading->m);
    for (size_t i = 0; i < reading->m; i++)
        later->fields[i] = reading->columns[i].field;
    for (size_t i = 0; i < reading->n; i++) {
        if (!is_late(reading, late, i))
            continue;
        for (size_t k = 0; reading->given != NULL && k < reading->m; k++)
            if (reading->given[i * reading->m + k].data != NULL)
                later->given[later->n * reading->m + k] = (near_bytes){ "", 0 };
        if (reading->entities[i].size > 0)
            memcpy(room, reading->entities[i].data, reading->entities[i].size);
        later->entities[later->n++] = (near_bytes){ room, reading->entities[i].size };
        room += reading->entities[i].size;
    }
    return later;
}

void
near__fields_read_later(struct near__fields_reading *reading, const bool *late)
{
    near_cache   *cache = reading->cache;
    struct later *later;
    size_t        cells;

    if (reading->view.flags & NEAR_NO_FILL)
        return;
    if (atomic_fetch_add_explicit(&cache->fields->late, 1, memory_order_relaxed) >= LATE_MOST ||
        (later = later_new(reading, late)) == NULL) {
        atomic_fetch_sub_explicit(&cache->fields->late, 1, memory_order_relaxed);
        return;
    }
    later->cache  = cache;
    later->job.fn = run_later;
    cells         = later->n * later->m;
    atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed); /* relaxed: the caller has one */
    if (near__workers_submit(cache->client->workers, &later->job) == NEAR_OK)
        near__count(cache, NEAR__fields_late,
                    cells); /* the caller holds the cache; the job is gone, perhaps */
    else
        later_free(later);
}
