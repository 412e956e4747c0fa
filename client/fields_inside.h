/*
 * What the files of fields share: one call on a matrix of cells, entities by fields.
 *
 * A reading belongs to the thread that makes it; no lock covers it.  Cells are numbered row by row: entity * m + field.  What L1 has
 * not answered is a missing cell, in chunks that do not move, because others may join its read of L2 (share.h).
 */
#ifndef NEAR_CLIENT_FIELDS_INSIDE_H
#define NEAR_CLIENT_FIELDS_INSIDE_H

#include "fields.h"
#include "read.h"
#include "share.h"

/* What is the same for all rows. */
struct near__column {
    near_field                     field;
    const struct near__field_info *info; /* NULL: not declared */
    uint32_t                       moment;
    near_bytes                     wire;
    char                           digits[11]; /* the wire name of what was not declared */
};

struct near__missing {
    struct near__ask     ask; /* its key lies in the chunk; near__fields_below() captures its fence */
    struct near__shared  shared;
    size_t               cell;
    struct near__column *column;
    near_bytes           entity;
    near_value          *stale; /* past its TTL and within grace, while the fence stays */
    near_value *cached;         /* a dry run's: what L1 would have answered, which may be NEAR__L1_NEGATIVE */
    bool        joined;         /* another thread asks for it */
    bool        late;           /* the call's own deadline came before L2's */
};

#define NEAR__MISSING_CHUNK 64
struct near__chunk {
    struct near__chunk  *next;
    size_t               n;
    uint8_t             *keys; /* behind the cells, `stride` each */
    struct near__missing cells[NEAR__MISSING_CHUNK];
};

struct near__fields_reading {
    near_cache          *cache;
    struct near__view    view;
    const near_bytes    *entities, *given;
    size_t               n, m;
    struct near__column *columns;
    int64_t              deadline; /* of the call; NEAR_NEVER */
    size_t               stride;   /* room for a key */
    /* where answers go: values, or a matrix, or (in the background) nowhere */
    near_value **values;
    char        *matrix;
    size_t       cell_bytes;
    uint8_t     *mask;
    near_status *statuses; /* may be NULL */
    near_status  first;    /* the first error that nothing stands in for */
    size_t       presets;
    bool         storeless; /* the loader is not to be asked */
    /* of each cell whether it is read past L1 (rollout.h), NULL: none; and which kind is read now */
    const bool *past;
    bool        passing;
    bool        compares; /* what L1 has is not served, but held against what is (rollout.h) */

    struct near__chunk *chunks, **tail;
    size_t              missed;
};

uint32_t near__field_version(const near_cache *cache, near_bytes entity, near_field field);
/* A cell is dropped from L1, and reads of it that are under way will not be kept, whatever version they began with. */
void near__field_drop(near_cache *cache, near_bytes entity, near_field field);
/* The same of an entity's cells, in either layout and without memory; perhaps of more than these. */
void        near__fields_forget(near_cache *cache, near_bytes entity, const near_field *fields, size_t m);
bool        near__field_wide(near_bytes key, near_bytes *entity, near_field *field);
near_status near__field_read(const near_cache *cache, near_bytes key, near_bytes *entity, near_field *field);

near_status near__fields_entity_check(const near_cache *cache, near_bytes entity);
/* The room that a call makes for an entity before it is checked: one that is too long is refused and never copied, and a size that is
 * no size must not make a sum of sizes wrap. */
static inline size_t
near__entity_room(near_bytes entity)
{
    return entity.size <= NEAR__KEY_MAX ? entity.size : 0;
}

/* Its version is captured here. */
void       near__fields_column(const near_cache *cache, near_field field, struct near__column *column);
near_bytes near__fields_wire(struct near__column *column);
/* What it was registered as; else its number in digits. */
near_bytes near__fields_name(struct near__column *column);

/* One more missing cell, whose key is copied.  NULL: no memory. */
struct near__missing *near__fields_miss(struct near__fields_reading *reading, size_t cell,
                                        struct near__column *column, near_bytes entity, near_bytes key,
                                        uint64_t hash);
void                  near__fields_chunks_free(struct near__fields_reading *reading);
/* L2, the store, what is stale, presets, for all missing cells: each is answered. */
void near__fields_below(struct near__fields_reading *reading);
/* Read all cells (but those given) of rows that `late` says (NULL: of all) once more, without the caller, so that L1 gets them. */
void near__fields_read_later(struct near__fields_reading *reading, const bool *late);
void near__fields_read_quietly(near_cache *cache, const near_bytes *entities, size_t n,
                               const near_field *fields, size_t m, const near_bytes *given);

/* A cell's answer: takes the value over (NULL unless it is NEAR_OK, or a preset of a field of which the store has nothing). */
void near__fields_answer(struct near__fields_reading *reading, size_t cell, near_status status,
                         near_value *value);
/* There is nothing, or it cannot be had: the declared value, if there is one. */
void near__fields_preset(struct near__fields_reading *reading, size_t cell, const struct near__column *column,
                         near_status status);

#endif
