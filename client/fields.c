/* See fields.h.  What is declared of fields, their keys, and what invalidations mean for them. */
#include "fields.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "announce.h"
#include "base/le.h"
#include "cache.h"
#include "fields_inside.h"
#include "read.h"

#define XXH_INLINE_ALL
#define XXH_FORCE_MEMORY_ACCESS 0 /* rule X2 */
#include <xxhash.h>

/* ---- the table of what was declared: open addressing, half empty; a larger one takes its place and keeps it until the end */

struct near__field_table {
    struct near__field_table          *older;
    size_t                             mask, used;
    _Atomic(struct near__field_info *) slots[];
};

#define FIRST_SLOTS 256

static size_t
place_of(near_field field)
{
    return (size_t)(field * UINT32_C(0x9E3779B1)) >> 8;
}

/* Where it is, or where it would be. */
static size_t
find_slot(const struct near__field_table *table, near_field field)
{
    size_t at = place_of(field) & table->mask;

    for (;; at = (at + 1) & table->mask) {
        /* acquire: pairs with the release in put_locked(), the record is whole */
        const struct near__field_info *info = atomic_load_explicit(&table->slots[at], memory_order_acquire);

        if (info == NULL || info->field == field)
            return at;
    }
}

const struct near__field_info *
near__field_of(const near_cache *cache, near_field field)
{
    /* acquire: pairs with the release in grow_locked() */
    const struct near__field_table *table = atomic_load_explicit(&cache->fields->table, memory_order_acquire);

    if (table == NULL)
        return NULL;
    return atomic_load_explicit(&table->slots[find_slot(table, field)], memory_order_acquire);
}

/* Room for one more.  False: out of memory. */
static bool
grow_locked(struct near__fields *fields)
{
    struct near__field_table *old  = atomic_load_explicit(&fields->table, memory_order_relaxed);
    size_t                    size = old != NULL ? 2 * (old->mask + 1) : FIRST_SLOTS;
    struct near__field_table *table;

    if (old != NULL && 2 * (old->used + 1) <= old->mask)
        return true;
    table = calloc(1, sizeof(*table) + size * sizeof(table->slots[0]));
    if (table == NULL)
        return false;
    table->mask  = size - 1;
    table->older = old;
    for (size_t i = 0; old != NULL && i <= old->mask; i++) {
        struct near__field_info *info = atomic_load_explicit(&old->slots[i], memory_order_relaxed);

        if (info == NULL)
            continue;
        atomic_init(&table->slots[find_slot(table, info->field)], info);
        table->used++;
    }
    /* release: pairs with the acquire in near__field_of() */
    atomic_store_explicit(&fields->table, table, memory_order_release);
    return true;
}

static void
put_locked(struct near__fields *fields, struct near__field_info *info)
{
    struct near__field_table *table = atomic_load_explicit(&fields->table, memory_order_relaxed);
    size_t                    at    = find_slot(table, info->field);

    table->used += atomic_load_explicit(&table->slots[at], memory_order_relaxed) == NULL;
    info->older = fields->all;
    fields->all = info;
    /* release: pairs with the acquires of readers */
    atomic_store_explicit(&table->slots[at], info, memory_order_release);
}

/* ---- declaring */

static uint64_t
tag_hash_of(const near_cache *cache, near_field field)
{
    char tag[NEAR__FIELD_TAG_SIZE];

    near__field_tag(field, tag);
    return near__hash_keyed(&cache->client->secret, near_key(tag));
}

static void
info_free(struct near__field_info *info)
{
    near__entry_release(&info->preset);
    free(info);
}

static struct near__entry *
preset_new(near_bytes value)
{
    void               *bytes;
    struct near__entry *entry = near__entry_new((near_bytes){ NULL, 0 }, 0, value.size, &bytes);

    if (entry == NULL)
        return NULL;
    if (value.size > 0)
        memcpy(bytes, value.data, value.size);
    entry->born        = -1;
    entry->fresh_until = entry->expires = NEAR_NEVER;
    entry->origin                       = NEAR_FROM_DEFAULT;
    return entry;
}

static struct near__field_info *
info_new(const near_cache *cache, near_field field, const char *name, const near_field_options *options)
{
    size_t                   size = name != NULL ? strlen(name) : 0;
    struct near__field_info *info = calloc(1, sizeof(*info) + size + 1 + sizeof("4294967295"));
    char                    *number;

    if (info == NULL)
        return NULL;
    info->field    = field;
    info->named    = name != NULL;
    info->ttl      = near__duration(options->ttl_ms, -1);
    info->tag_hash = tag_hash_of(cache, field);
    if (size > 0)
        memcpy(info->name, name, size);
    number     = info->name + size + 1;
    info->wire = (near_bytes){ number, (size_t)sprintf(number, "%" PRIu32, field) };
    if (info->named && cache->settings.fields_names == NEAR__FIELD_TEXT)
        info->wire = (near_bytes){ info->name, size };
    if (options->preset.data == NULL)
        return info;
    info->preset = preset_new(options->preset);
    if (info->preset == NULL) {
        info_free(info);
        return NULL;
    }
    return info;
}

/* Two names of one number: values could not be told apart. */
static near_status
refuse_collision(const near_cache *cache, const struct near__field_info *other, const char *name,
                 near_error *error)
{
    if (name == NULL || other == NULL || !other->named || strcmp(other->name, name) == 0)
        return NEAR_OK;
    return near__fail(error, NEAR_ERR_CONFLICT,
                      "cache %s: fields \"%.64s\" and \"%.64s\" have the same number, %" PRIu32, cache->name,
                      other->name, name, other->field);
}

/* Records are kept until the end, so who declares the same before each request must not make one each time. */
static bool
says_the_same(const struct near__field_info *info, const char *name, const near_field_options *options)
{
    if (info == NULL || info->named != (name != NULL) || info->ttl != near__duration(options->ttl_ms, -1) ||
        (info->preset != NULL) != (options->preset.data != NULL))
        return false;
    return info->preset == NULL || near__bytes_equal(near__entry_bytes(info->preset), options->preset);
}

static near_status
declare(near_cache *cache, near_field field, const char *name, const near_field_options *options,
        near_error *error)
{
    struct near__fields           *fields = cache->fields;
    near_field_options             mine   = NEAR_FIELD_OPTIONS_INIT;
    const char                    *kept   = name;
    const struct near__field_info *other;
    struct near__field_info       *info;
    near_status                    status;
    bool                           known;

    near__options_take(&mine, sizeof(mine), options);
    if (mine.preset.data == NULL && mine.preset.size != 0)
        return near__fail(error, NEAR_ERR_INVALID, "cache %s: a preset value without data", cache->name);
    if (mine.preset.size > cache->settings.l2_max_value)
        return near__fail(error, NEAR_ERR_TOO_LARGE, "cache %s: a preset value over l2.max_value",
                          cache->name);
    near__lock(&fields->lock);
    other  = near__field_of(cache, field);
    status = refuse_collision(cache, other, name, error);
    if (name == NULL && other != NULL && other->named)
        kept = other->name; /* by its number, and its name is known */
    known = says_the_same(other, kept, &mine);
    info  = status == NEAR_OK && !known ? info_new(cache, field, kept, &mine) : NULL;
    if (status == NEAR_OK && !known && (info == NULL || !grow_locked(fields)))
        status = near__fail(error, NEAR_ERR_NOMEM, "cache %s: out of memory for a field", cache->name);
    if (status == NEAR_OK && !known)
        put_locked(fields, info);
    near__unlock(&fields->lock);
    if (status != NEAR_OK && info != NULL)
        info_free(info);
    return status;
}

near_status
near_field_register(near_cache *cache, const char *name, const near_field_options *options, near_field *field,
                    near_error *error)
{
    near_status status = near__cache_check(cache);
    near_field  number;

    if (error != NULL)
        *error = (near_error){ .code = NEAR_OK };
    if (field != NULL)
        *field = 0;
    if (status == NEAR_OK && (name == NULL || name[0] == '\0' || field == NULL))
        status = NEAR_ERR_INVALID;
    if (status == NEAR_OK && strlen(name) > NEAR_FIELD_NAME_MAX)
        status = NEAR_ERR_TOO_LARGE;
    if (status != NEAR_OK)
        return near__fail(error, status, "near_field_register: %s", near_status_text(status));
    number = XXH32(name, strlen(name), 0);
    status = declare(cache, number, name, options, error);
    if (status == NEAR_OK)
        *field = number;
    return status;
}

near_status
near_field_number(near_cache *cache, near_field field, const near_field_options *options)
{
    near_status status = near__cache_check(cache);

    return status != NEAR_OK ? status : declare(cache, field, NULL, options, NULL);
}

/* ---- a cache's fields */

static near_status
choose_layout(near_cache *cache, near_error *error)
{
    const near_client *client = cache->client;
    unsigned           layout = cache->settings.fields_layout;
    bool               can    = client->ops != NULL && near_l2_has_hashes(client->ops);
    bool               plain  = layout == NEAR__LAYOUT_HASH || cache->mac == NULL;

    if (layout == NEAR__LAYOUT_HASH && client->ops != NULL && !can)
        return near__fail(error, NEAR_ERR_UNSUPPORTED,
                          "cache %s: fields.layout = hash, but L2 (%s) has no hashes", cache->name,
                          client->ops->scheme);
    cache->fields->hashed = can && plain && layout != NEAR__LAYOUT_KEYS;
    cache->fields->layout =
        client->ops == NULL || cache->fields->hashed ? NEAR__FIELDS_ROWS : NEAR__FIELDS_KEYS;
    return NEAR_OK;
}

static void
choose_prefix(near_cache *cache)
{
    struct near__fields *fields = cache->fields;
    int                  size;

    fields->shares_keys = fields->hashed && !cache->settings.set[NEAR__OPTION_fields_key_prefix];
    if (cache->settings.set[NEAR__OPTION_fields_key_prefix])
        size = snprintf(fields->prefix, sizeof(fields->prefix), "%.250s", cache->settings.fields_key_prefix);
    else
        size = snprintf(fields->prefix, sizeof(fields->prefix), "%s:", cache->prefix);
    fields->prefix_size = (size_t)size;
}

near_status
near__fields_open(near_cache *cache, near_error *error)
{
    struct near__fields *fields = calloc(1, sizeof(*fields));

    cache->fields = fields;
    if (fields == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "cache %s: out of memory", cache->name);
    near__lock_init(&fields->lock, NEAR__RANK_LEAF);
    fields->stripes = calloc(NEAR__FIELD_STRIPES, sizeof(*fields->stripes));
    if (fields->stripes == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "cache %s: out of memory", cache->name);
    if (!near__random(&fields->base, sizeof(fields->base)))
        fields->base = (uint32_t)near__hash_keyed(&cache->client->secret, near_key("fields"));
    if (choose_layout(cache, error) != NEAR_OK)
        return NEAR_ERR_UNSUPPORTED;
    choose_prefix(cache);
    return NEAR_OK;
}

void
near__fields_close(near_cache *cache)
{
    struct near__fields      *fields = cache->fields;
    struct near__field_table *table, *older;
    struct near__field_info  *info, *next;

    if (fields == NULL)
        return;
    for (table = atomic_load_explicit(&fields->table, memory_order_relaxed); table != NULL; table = older) {
        older = table->older;
        free(table);
    }
    for (info = fields->all; info != NULL; info = next) {
        next = info->older;
        info_free(info);
    }
    near__lock_fini(&fields->lock);
    free(fields->stripes);
    free(fields);
    cache->fields = NULL;
}

void
near__fields_use(near_cache *cache)
{
    /* Sequentially consistent: what is asked of L2 afterwards is asked by those who will be told.  Whoever is told before this is seen
     * is told of a change that L2 had before it was asked. */
    if (!near__fields_used(cache))
        atomic_store_explicit(&cache->fields->used, true, memory_order_seq_cst);
}

/* ---- tags and versions */

void
near__field_tag(near_field field, char tag[NEAR__FIELD_TAG_SIZE])
{
    snprintf(tag, NEAR__FIELD_TAG_SIZE, "@field:%08" PRIx32, field);
}

uint32_t
near__field_moment(const near_cache *cache, near_field field, const struct near__field_info *info)
{
    if (near__l1_label_clock(cache->l1) == 0) /* no tag was ever invalidated here */
        return 0;
    return near__l1_label_moment(cache->l1, info != NULL ? info->tag_hash : tag_hash_of(cache, field));
}

/* What a wide key names; false: it is none. */
bool
near__field_wide(near_bytes key, near_bytes *entity, near_field *field)
{
    const uint8_t *tail = (const uint8_t *)key.data + key.size - NEAR__WIDE_TAIL;

    if (key.size < NEAR__WIDE_TAIL || tail[4] != 0 || tail[5] != 'F')
        return false;
    *entity = (near_bytes){ key.data, key.size - NEAR__WIDE_TAIL };
    *field  = near__le32_get(tail);
    return true;
}

bool
near__field_tag_of(const near_cache *cache, near_bytes key, char tag[NEAR__FIELD_TAG_SIZE])
{
    near_bytes entity;
    near_field field;

    if (!near__fields_used(cache) || cache->fields->layout != NEAR__FIELDS_KEYS ||
        !near__field_wide(key, &entity, &field))
        return false;
    near__field_tag(field, tag);
    return true;
}

uint32_t
near__field_version(const near_cache *cache, near_bytes entity, near_field field)
{
    uint64_t hash = near__hash_keyed(&cache->client->secret, entity);

    return cache->fields->base + near__field_row(cache->fields, hash) +
           near__field_moment(cache, field, near__field_of(cache, field));
}

/* ---- what others say */

void
near__field_drop(near_cache *cache, near_bytes entity, near_field field)
{
    uint8_t    room[256], *bytes = room;
    near_bytes key;

    if (entity.size + NEAR__CELL_TAIL > sizeof(room))
        bytes = malloc(entity.size + NEAR__CELL_TAIL);
    if (bytes == NULL) { /* then all of the entity */
        near__fields_move(cache->fields, near__hash_keyed(&cache->client->secret, entity));
        return;
    }
    if (entity.size > 0)
        memcpy(bytes, entity.data, entity.size);
    near__cell_tail_put(bytes + entity.size, field, near__field_version(cache, entity, field));
    key = (near_bytes){ bytes, entity.size + NEAR__CELL_TAIL };
    near__l1_invalidate(cache->l1, near__hash_keyed(&cache->client->secret, key), key);
    if (bytes != room)
        free(bytes);
}

void
near__fields_forget(near_cache *cache, near_bytes entity, const near_field *fields, size_t m)
{
    uint8_t    room[256];
    near_bytes key = { room, entity.size + NEAR__WIDE_TAIL };

    if (cache->fields->layout == NEAR__FIELDS_ROWS) {
        near__fields_move(cache->fields, near__hash_keyed(&cache->client->secret, entity));
        return;
    }
    if (key.size > sizeof(room)) { /* rare enough: then everything */
        near__l1_flush(cache->l1);
        return;
    }
    if (entity.size > 0)
        memcpy(room, entity.data, entity.size);
    for (size_t i = 0; i < m; i++) {
        near__wide_tail_put(room + entity.size, fields[i]);
        near__l1_invalidate(cache->l1, near__hash_keyed(&cache->client->secret, key), key);
    }
}

void
near__fields_told(near_cache *cache, near_bytes key, uint64_t hash)
{
    near_bytes entity;
    near_field field;

    if (!near__fields_used(cache) || cache->fields->layout != NEAR__FIELDS_ROWS)
        return;
    if (near__field_wide(key, &entity, &field))
        near__field_drop(cache, entity, field);
    else if (cache->fields->shares_keys)
        near__fields_move(cache->fields, hash);
}

void
near__fields_changed(near_client *client, near_bytes l2_key)
{
    near__lock(&client->lock);
    for (near_cache *cache = client->caches; cache != NULL; cache = cache->next) {
        const struct near__fields *fields = cache->fields;
        near_bytes                 entity;

        if (!fields->hashed || fields->shares_keys || !near__fields_used(cache) ||
            l2_key.size < fields->prefix_size ||
            memcmp(l2_key.data, fields->prefix, fields->prefix_size) != 0)
            continue;
        entity = (near_bytes){ (const char *)l2_key.data + fields->prefix_size,
                               l2_key.size - fields->prefix_size };
        near__fields_move(cache->fields, near__hash_keyed(&client->secret, entity));
    }
    near__unlock(&client->lock);
}

/* ---- one field of all entities */

/* Where entries can have no tags (l2.envelope = none) the message alone says it: L2's hashes are the truth. */
static near_status
invalidate_by_message(near_cache *cache, near_bytes tag)
{
    uint8_t    text[NEAR__FIELD_TAG_SIZE + NEAR__MESSAGE_TAG_TAIL] = { 0 };
    near_bytes key    = { text, tag.size + NEAR__MESSAGE_TAG_TAIL };
    int64_t  deadline = near__time_after(near__client_now(cache->client), cache->client->settings.l2_timeout);
    uint64_t hash     = near__hash_keyed(&cache->client->secret, tag);
    near_status             status;
    struct near__announcing announcing;

    memcpy(text, tag.data, tag.size);
    near__count(cache, NEAR__tag_invalidations, 1);
    near__l1_invalidate_tag(cache->l1, hash);
    status = near__announce_begin(cache, NEAR__MESSAGE_TAG, &key, 1, &announcing);
    if (status != NEAR_OK)
        return status;
    announcing.with = NULL; /* L2 is not written */
    return near__announce_end(cache, &announcing, NEAR_OK, deadline);
}

near_status
near_fields_invalidate(near_cache *cache, near_field field)
{
    char        tag[NEAR__FIELD_TAG_SIZE];
    near_status status = near__cache_check(cache);

    if (status != NEAR_OK)
        return status;
    near__field_tag(field, tag);
    if (!cache->bare)
        return near_invalidate_tag(cache, tag);
    return cache->fields->layout == NEAR__FIELDS_ROWS ? invalidate_by_message(cache, near_key(tag))
                                                      : NEAR_ERR_UNSUPPORTED;
}

/* ---- snapshots */

bool
near__field_saved_key(const near_cache *cache, near_bytes *key, uint8_t room[NEAR__FIELD_SAVED_MAX])
{
    const uint8_t *bytes = key->data;
    near_bytes     entity;
    near_field     field;
    uint32_t       version, now;

    if (!near__fields_used(cache) || cache->fields->layout != NEAR__FIELDS_ROWS ||
        key->size < NEAR__CELL_TAIL)
        return true;
    entity  = (near_bytes){ key->data, key->size - NEAR__CELL_TAIL };
    field   = near__le32_get(bytes + entity.size);
    version = near__le32_get(bytes + entity.size + 4) - cache->fields->base;
    now     = near__field_version(cache, entity, field) - cache->fields->base;
    if (version > now)
        return true; /* a key: see fields.h */
    if (version < now || entity.size + NEAR__WIDE_TAIL > NEAR__FIELD_SAVED_MAX)
        return false;
    memcpy(room, entity.data, entity.size);
    near__wide_tail_put(room + entity.size, field);
    *key = (near_bytes){ room, entity.size + NEAR__WIDE_TAIL };
    return true;
}

bool
near__field_is_saved(const near_cache *cache, near_bytes key)
{
    near_bytes entity;
    near_field field;

    return cache->fields->layout == NEAR__FIELDS_ROWS && near__field_wide(key, &entity, &field);
}

bool
near__field_restored_key(near_cache *cache, near_bytes *key, uint8_t room[NEAR__FIELD_SAVED_MAX])
{
    near_bytes entity;
    near_field field;

    if (cache->fields->layout != NEAR__FIELDS_ROWS || !near__field_wide(*key, &entity, &field) ||
        entity.size + NEAR__CELL_TAIL > NEAR__FIELD_SAVED_MAX)
        return false;
    near__fields_use(cache);
    memcpy(room, entity.data, entity.size);
    near__cell_tail_put(room + entity.size, field, cache->fields->base);
    *key = (near_bytes){ room, entity.size + NEAR__CELL_TAIL };
    return true;
}

/* ---- inside a loader */

near_status
near__field_read(const near_cache *cache, near_bytes key, near_bytes *entity, near_field *field)
{
    const uint8_t *bytes = key.data;
    near_bytes     name;
    near_field     number;
    uint32_t       version;

    *entity = (near_bytes){ NULL, 0 };
    *field  = 0;
    if (cache->fields->layout == NEAR__FIELDS_KEYS)
        return near__field_wide(key, entity, field) ? NEAR_OK : NEAR_ERR_INVALID;
    if (!near__fields_used(cache) || key.size < NEAR__CELL_TAIL)
        return NEAR_ERR_INVALID;
    name    = (near_bytes){ key.data, key.size - NEAR__CELL_TAIL };
    number  = near__le32_get(bytes + name.size);
    version = near__le32_get(bytes + name.size + 4) - cache->fields->base;
    if (version > near__field_version(cache, name, number) - cache->fields->base)
        return NEAR_ERR_INVALID; /* a key: no cell has had that version yet */
    *entity = name;
    *field  = number;
    return NEAR_OK;
}
