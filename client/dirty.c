/* See dirty.h. */
#include "dirty.h"

#include <stdlib.h>
#include <string.h>

#define BUCKETS_FIRST 256

bool
near__dirty_init(struct near__dirty *dirty)
{
    near__lock_init(&dirty->lock, NEAR__RANK_DIRTY);
    dirty->buckets_n = BUCKETS_FIRST;
    dirty->buckets   = calloc(BUCKETS_FIRST, sizeof(*dirty->buckets));
    return dirty->buckets != NULL;
}

static void
write_free(struct near__dirty_write *write)
{
    near__entry_release(&write->entry);
    free(write);
}

void
near__dirty_fini(struct near__dirty *dirty)
{
    for (size_t i = 0; dirty->buckets != NULL && i < dirty->buckets_n; i++)
        for (struct near__dirty_key *key = dirty->buckets[i], *chain; key != NULL; key = chain) {
            while (key->first != NULL)
                write_free(near__dirty_pop_locked(dirty, key));
            chain = key->chain;
            free(key);
        }
    free(dirty->buckets);
    near__lock_fini(&dirty->lock);
}

static struct near__dirty_key **
bucket_of(struct near__dirty *dirty, uint64_t hash)
{
    return &dirty->buckets[(hash >> 8) & (dirty->buckets_n - 1)];
}

struct near__dirty_key *
near__dirty_key_locked(struct near__dirty *dirty, uint64_t hash, near_bytes bytes) NEAR__NEEDS(dirty->lock)
{
    struct near__dirty_key *key = *bucket_of(dirty, hash);

    while (key != NULL && (key->hash != hash || !near__bytes_equal(near__dirty_key_of(key), bytes)))
        key = key->chain;
    return key;
}

struct near__entry *
near__dirty_find(struct near__dirty *dirty, uint64_t hash, near_bytes bytes)
{
    struct near__entry     *entry = NULL;
    struct near__dirty_key *key;

    near__lock(&dirty->lock);
    key = near__dirty_key_locked(dirty, hash, bytes);
    if (key != NULL && key->last != NULL) {
        entry = key->last->entry;
        near__entry_ref(entry);
    }
    near__unlock(&dirty->lock);
    return entry;
}

struct near__dirty_key *
near__dirty_key_new(uint64_t hash, near_bytes bytes)
{
    struct near__dirty_key *key = malloc(sizeof(*key) + bytes.size);

    if (key == NULL)
        return NULL;
    *key = (struct near__dirty_key){ .hash = hash, .size = bytes.size };
    if (bytes.size > 0)
        memcpy(key->key, bytes.data, bytes.size);
    return key;
}

/* Twice the buckets, if there is memory: without it the chains get longer. */
static void
grow_locked(struct near__dirty *dirty) NEAR__NEEDS(dirty->lock)
{
    size_t                   old_n = dirty->buckets_n;
    struct near__dirty_key **old   = dirty->buckets;
    struct near__dirty_key **fresh = calloc(2 * old_n, sizeof(*fresh));

    if (fresh == NULL)
        return;
    dirty->buckets   = fresh;
    dirty->buckets_n = 2 * old_n;
    for (size_t i = 0; i < old_n; i++)
        for (struct near__dirty_key *key = old[i], *chain; key != NULL; key = chain) {
            struct near__dirty_key **at = bucket_of(dirty, key->hash);

            chain      = key->chain;
            key->chain = *at;
            *at        = key;
        }
    free(old);
}

static _Atomic uint32_t *
cell_of(struct near__dirty *dirty, const struct near__dirty_key *key)
{
    return &dirty->filter[(key->hash >> 20) % NEAR__DIRTY_CELLS];
}

void
near__dirty_link_locked(struct near__dirty *dirty, struct near__dirty_key *key) NEAR__NEEDS(dirty->lock)
{
    struct near__dirty_key **at;

    if (dirty->keys_n >= dirty->buckets_n)
        grow_locked(dirty);
    at         = bucket_of(dirty, key->hash);
    key->chain = *at;
    *at        = key;
    dirty->keys_n++;
    /* relaxed: who must see it has been told of the write, or is the writer himself */
    atomic_fetch_add_explicit(cell_of(dirty, key), 1, memory_order_relaxed);
}

void
near__dirty_unlink_locked(struct near__dirty *dirty, struct near__dirty_key *key) NEAR__NEEDS(dirty->lock)
{
    struct near__dirty_key **at = bucket_of(dirty, key->hash);

    while (*at != key)
        at = &(*at)->chain;
    *at = key->chain;
    dirty->keys_n--;
    /* release: pairs with near__dirty_may() */
    atomic_fetch_sub_explicit(cell_of(dirty, key), 1, memory_order_release);
}

static void
count_locked(struct near__dirty *dirty, const struct near__dirty_write *write) NEAR__NEEDS(dirty->lock)
{
    dirty->writes++;
    dirty->bytes += write->cost;
}

static void
discount_locked(struct near__dirty *dirty, const struct near__dirty_write *write) NEAR__NEEDS(dirty->lock)
{
    dirty->writes--;
    dirty->bytes -= write->cost;
}

void
near__dirty_append_locked(struct near__dirty *dirty, struct near__dirty_key *key,
                          struct near__dirty_write *write) NEAR__NEEDS(dirty->lock)
{
    write->key   = key;
    write->next  = NULL;
    write->newer = NULL;
    write->older = dirty->newest;
    if (key->last != NULL)
        key->last->next = write;
    else
        key->first = write;
    key->last = write;
    if (dirty->newest != NULL)
        dirty->newest->newer = write;
    else
        dirty->oldest = write;
    dirty->newest = write;
    count_locked(dirty, write);
}

static void
take_place_locked(struct near__dirty *dirty, const struct near__dirty_write *old,
                  struct near__dirty_write *write) NEAR__NEEDS(dirty->lock)
{
    *(old->older != NULL ? &old->older->newer : &dirty->oldest) = write;
    *(old->newer != NULL ? &old->newer->older : &dirty->newest) = write;
}

void
near__dirty_replace_locked(struct near__dirty *dirty, struct near__dirty_write *old,
                           struct near__dirty_write *write) NEAR__NEEDS(dirty->lock)
{
    struct near__dirty_key    *key = old->key;
    struct near__dirty_write **at  = &key->first;

    while (*at != old) /* two at most, or as many as nobody may coalesce */
        at = &(*at)->next;
    *at          = write;
    key->last    = write;
    write->key   = key;
    write->next  = NULL;
    write->since = old->since;
    write->older = old->older;
    write->newer = old->newer;
    take_place_locked(dirty, old, write);
    discount_locked(dirty, old);
    count_locked(dirty, write);
}

struct near__dirty_write *
near__dirty_pop_locked(struct near__dirty *dirty, struct near__dirty_key *key) NEAR__NEEDS(dirty->lock)
{
    struct near__dirty_write *write = key->first;

    key->first = write->next;
    if (key->first == NULL)
        key->last = NULL;
    *(write->older != NULL ? &write->older->newer : &dirty->oldest) = write->newer;
    *(write->newer != NULL ? &write->newer->older : &dirty->newest) = write->older;
    discount_locked(dirty, write);
    return write;
}
