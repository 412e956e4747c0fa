/*
 * Fields: values by (entity, field), as feature stores keep them: `HSET entity field value`.
 *
 * A field is a 32-bit number, the XXH32 of its name.  What is declared of one (name, preset value, TTL) lies in a record that never
 * changes once it is published; records are kept until the cache goes, so readers need no lock.  fields->lock (a leaf) covers
 * declaring alone.
 *
 * Two layouts, chosen when the cache is opened:
 *
 *   rows   L2 has hashes, or there is no L2.  One hash per entity, plain values, nothing of ours in it.  L1 has each value under a
 *          *cell key* of this process alone: entity, number, version.
 *   keys   L2 has no hashes (memcached), or fields.layout says so.  Each value is an ordinary entry of the cache, in L1 and in L2,
 *          under its *wide key*: entity, number, 0, 'F'; it carries its field's tag.
 *
 * The version in a cell key is what makes "all fields of this entity" and "this field of all entities" O(1): it is the sum of a
 * random number of this cache, of how often a tag that shares the field's stripe was invalidated (L1's clock of tags, so whatever
 * invalidates the field's tag reaches its values by itself), and of how often somebody was heard to change the entity as a whole.
 * A sum of numbers that only grow never comes back.  What is kept under an older version is not found any more and leaves by TTL
 * and eviction; a read that began before, with the older version, fills where nobody looks.  So versions need no fences.  Single
 * cells, which messages name by their wide keys, are dropped under their present version, fences and all, as any key.
 *
 * Can never happen: a cell of another entity or field (the whole key is compared); a cell key that an application also uses with
 * near_get() (32 of its bits are random and never leave the process, but for request logs).
 */
#ifndef NEAR_CLIENT_FIELDS_H
#define NEAR_CLIENT_FIELDS_H

#include "client.h"

/* Tails of keys, behind the entity. */
#define NEAR__CELL_TAIL 8 /* number, version: both 32 bits, little-endian */
#define NEAR__WIDE_TAIL 6 /* number, 0, 'F' */

#define NEAR__FIELD_TAG_SIZE sizeof("@field:00000000")

/* Counts of changes by stripe of entities: two that share one cost each other's values a miss.  1 MiB of addresses per cache, of which a
 * page is real once it is used. */
#define NEAR__FIELD_STRIPES (1u << 18)

enum near__fields_layout { NEAR__FIELDS_ROWS, NEAR__FIELDS_KEYS };

struct near__field_info {
    struct near__field_info *older; /* all that were ever made, newest first */
    near_field               field;
    bool                     named;
    int64_t                  ttl;    /* ns; negative: the cache's */
    struct near__entry      *preset; /* a reference; NULL: none */
    near_bytes               wire;   /* its name in a hash */
    uint64_t                 tag_hash;
    char                     name[]; /* ends in NUL; then the wire name */
};

struct near__field_table;

struct near__fields {
    enum near__fields_layout layout;
    bool                     hashed; /* rows, and L2 has them */
    bool              shares_keys;   /* the hash of an entity lies where near_put() puts a key of that name */
    char              prefix[NEAR__CACHE_NAME_MAX + 300]; /* of the hashes' keys in L2 */
    size_t            prefix_size;
    uint32_t          base; /* random */
    _Atomic bool      used; /* sticky: a field was asked for or written */
    _Atomic unsigned  late; /* reads under way in the background */
    _Atomic uint32_t *stripes;

    struct near__lock                   lock;  /* leaf: declaring */
    struct near__field_info            *all;   /* lock */
    _Atomic(struct near__field_table *) table; /* NULL: nothing was declared */
};

near_status near__fields_open(near_cache *cache, near_error *error);
void        near__fields_close(near_cache *cache); /* nobody uses it any more; NULL inside is fine */

/* What was declared of a field; NULL: nothing. */
const struct near__field_info *near__field_of(const near_cache *cache, near_field field);
/* The tag that all values of a field have. */
void near__field_tag(near_field field, char tag[NEAR__FIELD_TAG_SIZE]);
/* The tag of the field that a wide key names; false: the key is none. */
bool near__field_tag_of(const near_cache *cache, near_bytes key, char tag[NEAR__FIELD_TAG_SIZE]);

/* From the first field call on. */
static inline bool
near__fields_used(const near_cache *cache)
{
    /* acquire: pairs with the store in near__fields_use(), which comes before anything is asked */
    return atomic_load_explicit(&cache->fields->used, memory_order_acquire);
}
void near__fields_use(near_cache *cache);

/* A key was invalidated, whatever it is: the cell that it names as a wide key goes, or the row of an entity. */
void near__fields_told(near_cache *cache, near_bytes key, uint64_t hash);
/* The server tells of a key of its own: the row of an entity, in whichever cache has such hashes. */
void near__fields_changed(near_client *client, near_bytes l2_key);
/* This process writes a key by near_put() and its like, which may be an entity's whole hash.  Before and after. */
static inline void near__fields_row_moved(near_cache *cache, uint64_t hash);

/* ---- snapshots: a cell key means nothing to another process, so cells are saved under their wide keys */

#define NEAR__FIELD_SAVED_MAX 512 /* bytes of such a key; cells with longer ones are not saved */
/* What to save a key as: itself, the wide key of a cell, in `room`; false: not at all, it is a cell of an older version, or too long. */
bool near__field_saved_key(const near_cache *cache, near_bytes *key, uint8_t room[NEAR__FIELD_SAVED_MAX]);
/* Whether a saved key is a cell's, in a cache that keeps cells under keys of their own; *key is then the cell key with which this process
 * began: if the field or the entity was invalidated since, nobody finds it. */
bool near__field_restored_key(near_cache *cache, near_bytes *key, uint8_t room[NEAR__FIELD_SAVED_MAX]);
bool near__field_is_saved(const near_cache *cache, near_bytes key);
/* Read such cells from L2 into L1, under versions and fences of now.  found[i]: it has one. */
#define NEAR__FIELDS_CONFIRM 256 /* at most */
void near__fields_confirm(near_cache *cache, const near_bytes *keys, size_t n, bool *found);

/* ---- versions */

static inline uint32_t
near__field_row(const struct near__fields *fields, uint64_t entity_hash)
{
    /* acquire: pairs with near__fields_move(); what is asked of L2 next is at least as new as that change */
    return atomic_load_explicit(&fields->stripes[entity_hash % NEAR__FIELD_STRIPES], memory_order_acquire);
}

static inline void
near__fields_move(struct near__fields *fields, uint64_t entity_hash)
{
    atomic_fetch_add_explicit(&fields->stripes[entity_hash % NEAR__FIELD_STRIPES], 1, memory_order_release);
}

static inline void
near__fields_row_moved(near_cache *cache, uint64_t hash)
{
    if (near__fields_used(cache) && cache->fields->shares_keys)
        near__fields_move(cache->fields, hash);
}

/* The part of a version that belongs to a field. */
uint32_t near__field_moment(const near_cache *cache, near_field field, const struct near__field_info *info);

static inline size_t
near__cell_tail_put(uint8_t *at, near_field field, uint32_t version)
{
    uint64_t tail = (uint64_t)field | (uint64_t)version << 32;

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    tail = __builtin_bswap64(tail);
#endif
    memcpy(at, &tail, sizeof(tail));
    return NEAR__CELL_TAIL;
}

static inline void
near__wide_tail_put(uint8_t *at, near_field field)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(field >> 8 * i);
    at[4] = 0;
    at[5] = 'F';
}

#endif
