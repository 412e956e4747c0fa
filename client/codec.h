/*
 * A cache's codec: what makes objects of the values' bytes.
 *
 * An entry is decoded by whoever makes it, once, before anybody else sees it: on the thread that read L2, answered the load or writes the
 * value.  From then on the object goes where the entry goes (l1/object.h): to all who share that read or load, into L1, into the table
 * of changes that are written back.  L2, the journal and the store get the bytes.  An entry that says that there is no such thing has no
 * object, and the text of a counter is not decoded.
 *
 * Fixed before the cache is used, and read without a lock.  No lock is held while the codec is called.
 */
#ifndef NEAR_CLIENT_CODEC_H
#define NEAR_CLIENT_CODEC_H

#include "client.h"

struct near__ask;

/* Whether values of this cache are decoded. */
static inline bool
near__decodes(const near_cache *cache)
{
    /* acquire: pairs with the release in near_cache_set_codec() */
    return __builtin_expect(atomic_load_explicit(&cache->decoder.set, memory_order_acquire), 0);
}

/* What the codec makes of them, with one reference.  NEAR_OK; NEAR_ERR_DECODE; NEAR_ERR_NOMEM.  *object is NULL unless NEAR_OK. */
near_status near__decode_bytes(near_cache *cache, near_bytes key, near_bytes bytes,
                               struct near__object **object);

/* Give an entry that nobody else has seen its object, where the cache has a codec and the entry none yet.  As above. */
static inline near_status
near__decode(near_cache *cache, struct near__entry *entry)
{
    if (!near__decodes(cache) || entry->negative || entry->object != NULL)
        return NEAR_OK;
    return near__decode_bytes(cache, near__entry_key(entry), (near_bytes){ entry->value, entry->value_size },
                              &entry->object);
}

/* The same for a new value of which the caller has the object already, perhaps: it is shared. */
static inline near_status
near__decode_like(near_cache *cache, struct near__entry *entry, struct near__object *object)
{
    entry->object = near__object_ref(object);
    return near__decode(cache, entry);
}

/* The same for what was read from L2.  What cannot be decoded is NEAR__UNREACHABLE with its status; or, where it is going to be loaded
 * anew, NEAR__UNREADABLE, to be replaced as damaged bytes are. */
void near__decode_asks(near_cache *cache, struct near__ask **asks, size_t n, bool loads);

#endif
