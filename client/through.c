/*
 * See through.h.  Through, where L2 can hold marks:
 *
 *   1  L1's bracket opens: our own copy goes, and no fill of this process begun before counts any more
 *   2  our mark lies in L2 (mark.h), over whatever was there, a lease too: no fill begun before counts there any more
 *   3  the others are told to forget the key
 *   4  the store is called
 *   5  our mark, if nobody else has come, becomes the value; else we leave the list, and the last of us leaves nothing
 *   6  the others are told again; L1's bracket closes, with the value if 5 put it into L2
 *
 * Why a writer may die anywhere: before 4 the store is as it was, and what is missing is loaded.  From 4 on L2 holds a mark, nothing, or the
 * value.  No L1 holds the old one: 3 was sent before the store was touched, so whatever L1 has got since came from L2 or from a load;
 * L2 had nothing to give, and what is loaded over a mark is not kept.  A message still on its way in 3 is one that a living server
 * delivers, or the serve gate closes.  So when the mark's time is over (longer than the store may take) nothing older than the store is
 * anywhere.  Two writers at once: mark.h.
 *
 * What is left: a mark that is evicted, or removed by near_remove(), while its writer is under way and that writer then dies; a store that makes the
 * change later than the mark lives; an instance that could not read L2 while the mark lay there, and so kept what it loaded (l1.max_ttl).  The first two
 * are repaired by the intent that write_back.journal keeps: what a former life has not ended is removed and announced at open.
 *
 * An outcome of the store that is not known: the mark stays for its time, the others are told, and if the answer comes after all the
 * key is owed (recovery.h).  What could not be said to L2 or the bus is owed, too: where they are in trouble the store is written all the same (write.without_l2),
 * and until it is paid an instance that can reach L2 may read the old value there.
 *
 * Around, write.fast and l2.envelope = none: the store, then near_remove().  No lock is held here.
 */
#include "through.h"

#include <stdlib.h>

#include "announce.h"
#include "codec.h"
#include "generation.h"
#include "intent.h"
#include "mark.h"
#include "recovery.h"
#include "store.h"
#include "write.h"

struct change {
    near_cache             *cache;
    const near_put_options *options;
    struct near__store_item item;
    uint64_t                hash;
    int64_t                 now, ttl;
    uint64_t                stamp; /* of the value that replaced the mark */
    bool                    put;
    bool     untold; /* the store has been changed, or may have been, and not everybody could be told */
    uint64_t generation;
    struct near__labels *labels; /* NULL: none */
    struct near__object *object; /* what the value was decoded to; NULL: nothing */
    struct near__mark    mark;
};

/* An answer after the deadline.  On the store's thread: recovery sees to it. */
static void
answered_late(void *ctx, const struct near__store_item *item)
{
    near_cache *cache = ctx;

    uint64_t hash = near__hash_keyed(&cache->client->secret, item->key);

    near__recovery_keep(cache, item->key, hash);
    if (near__recovery_keeps(cache))
        near__intent_end(cache, item->key, hash, item->sequence);
}

/* What became of it: NEAR_ERR_TIMEOUT is not known, other errors say that the store is as it was. */
static near_status
call_store(struct change *change)
{
    near_cache *cache    = change->cache;
    int64_t     deadline = near__time_after(near__client_now(cache->client), cache->settings.store_timeout);

    near__store_write(cache, &change->item, 1, deadline, answered_late, cache);
    near__count(cache, NEAR__update_failures, change->item.status != NEAR_OK);
    return change->item.status;
}

static int64_t
l2_deadline(const struct change *change)
{
    const near_client *client = change->cache->client;

    return near__time_after(near__client_now(client),
                            near__duration(change->options->timeout_ms, client->settings.l2_timeout));
}

/* L2 or the bus cannot be reached, or refuses: no fault of the call's. */
static bool
is_trouble(near_status status)
{
    return status == NEAR_ERR_UNAVAILABLE || status == NEAR_ERR_TIMEOUT || status == NEAR_ERR_DENIED ||
           status == NEAR_ERR_PROTOCOL;
}

static bool
refuses(const struct change *change)
{
    return change->cache->settings.write_without_l2 == NEAR__WITHOUT_L2_REFUSE;
}

/* Before the store: where nothing has happened yet an outcome that is not known is only a failure. */
static near_status
not_begun(near_status status)
{
    return status == NEAR_ERR_TIMEOUT ? NEAR_ERR_UNAVAILABLE : status;
}

static near_status
owe(struct change *change, near_status outcome)
{
    change->untold = true;
    near__recovery_keep(change->cache, change->item.key, change->hash);
    return refuses(change) ? NEAR_ERR_TIMEOUT : outcome;
}

/* ---- without a mark */

static near_status
write_unmarked(struct change *change)
{
    near_status outcome = call_store(change), removed;

    if (outcome != NEAR_OK && outcome != NEAR_ERR_TIMEOUT)
        return outcome;
    removed = near_remove(change->cache, change->item.key);
    return removed != NEAR_OK ? owe(change, outcome) : outcome;
}

/* For L1.  NULL: no memory, then it keeps nothing. */
static struct near__entry *
entry_of(const struct change *change)
{
    struct near__entry *entry =
        near__write_entry(change->cache, change->item.key, change->hash, change->item.data, change->now,
                          change->ttl, change->labels);

    if (entry != NULL)
        entry->object = near__object_ref(change->object);
    return entry;
}

/* L1 is all there is: its bracket orders two writers. */
static near_status
write_l1(struct change *change)
{
    near_cache           *cache = change->cache;
    near_bytes            key   = change->item.key;
    struct near__entry   *entry = NULL;
    struct near__l1_write token;
    near_status           status;

    if (change->put && !(change->options->flags & NEAR_NO_FILL))
        entry = entry_of(change);
    if (entry != NULL)
        entry->pool = (uint8_t)change->options->pool;
    token  = near__l1_write_begin(cache->l1, change->hash, key);
    status = call_store(change);
    if ((status == NEAR_OK || status == NEAR_ERR_TIMEOUT) &&
        near__announce_key(cache, key, l2_deadline(change)) != NEAR_OK)
        status = owe(change, status);
    near__l1_write_end(cache->l1, token, change->hash, key, status == NEAR_OK ? entry : NULL, change->now);
    near__entry_release(&entry);
    return status;
}

/* ---- with a mark */

/* Steps 2 and 3.  *marked: L2 holds our mark. */
static near_status
begin_marked(struct change *change, bool *marked)
{
    near_cache *cache    = change->cache;
    near_bytes  key      = change->item.key;
    int64_t     deadline = l2_deadline(change);
    near_status status   = near__generation_for_write(cache, deadline, &change->generation);

    if (status == NEAR_OK && change->labels != NULL)
        status = near__write_labels_prepare(cache, change->labels, deadline);
    if (status == NEAR_OK)
        status = near__mark_place(cache, key, &change->mark, deadline);
    *marked = status == NEAR_OK;
    if (status == NEAR_OK)
        status = near__announce_key(cache, key, deadline);
    if (is_trouble(status) && !refuses(change))
        return NEAR_OK;
    if (status != NEAR_OK && *marked)
        near__mark_leave(cache, key, &change->mark, false, l2_deadline(change));
    return not_begun(status);
}

static near_status
replace_mark(struct change *change, bool install, int64_t deadline)
{
    const struct near__stored stored = {
        .key   = change->item.key,
        .value = change->item.data,
        .stamp = change->stamp = near__stamp(change->cache->client),
        .generation            = change->generation,
        .ttl                   = change->ttl,
        .labels                = change->labels,
    };

    return near__mark_replace(change->cache, stored.key, &change->mark, install ? &stored : NULL, deadline);
}

/* Steps 5 and 6.  *installed: L2 holds the value. */
static near_status
end_marked(struct change *change, near_status outcome, bool *installed)
{
    near_cache *cache    = change->cache;
    near_bytes  key      = change->item.key;
    int64_t     deadline = l2_deadline(change);
    bool        changed  = outcome == NEAR_OK || outcome == NEAR_ERR_TIMEOUT;
    near_status status   = NEAR_OK;

    if (outcome != NEAR_ERR_TIMEOUT) {
        status     = replace_mark(change, outcome == NEAR_OK && change->put, deadline);
        *installed = status == NEAR_OK && outcome == NEAR_OK && change->put;
        if (status == NEAR_MISS) {
            near__count(cache, NEAR__marks_met, 1);
            status = near__mark_leave(cache, key, &change->mark, changed, deadline);
        }
    }
    if (!changed)
        return outcome; /* a mark that could not be taken away ends by itself */
    if (near__announce_key(cache, key, deadline) == NEAR_OK && status == NEAR_OK)
        return outcome;
    return owe(change, outcome);
}

/* L2 is in trouble: the store is written all the same.  There may be a mark of ours: it goes with what is owed. */
static near_status
end_unmarked(struct change *change, near_status outcome)
{
    return outcome == NEAR_OK || outcome == NEAR_ERR_TIMEOUT ? owe(change, outcome) : outcome;
}

static near_status
write_marked(struct change *change)
{
    near_cache           *cache     = change->cache;
    near_bytes            key       = change->item.key;
    bool                  installed = false, marked = false;
    struct near__entry   *entry  = NULL;
    struct near__l1_write token  = near__l1_write_begin(cache->l1, change->hash, key);
    near_status           status = begin_marked(change, &marked);

    if (status == NEAR_OK) {
        near_status outcome = call_store(change);

        status = marked ? end_marked(change, outcome, &installed) : end_unmarked(change, outcome);
    }
    if (installed && status == NEAR_OK && !(change->options->flags & NEAR_NO_FILL))
        entry = entry_of(change);
    if (entry != NULL) {
        entry->stamp      = change->stamp;
        entry->generation = change->generation;
        entry->pool       = (uint8_t)change->options->pool;
    }
    near__l1_write_end(cache->l1, token, change->hash, key, entry, change->now);
    near__entry_release(&entry);
    return status;
}

/* ---- the intent, around either */

/* What the store has not answered stays an intent until it does, or until the next life; what nobody could be told, and may not be
 * owed, until the next life. */
static near_status
with_intent(struct change *change, near_status (*write)(struct change *change))
{
    near_cache *cache = change->cache;
    near_status status =
        near__intent_begin(cache, change->item.key, &change->item.origin, &change->item.sequence);

    if (status != NEAR_OK)
        return status;
    change->item.status = NEAR_OK;
    status              = write(change);
    if (change->untold && !near__recovery_keeps(cache))
        return status; /* nobody else will remember it */
    if (change->item.status != NEAR_ERR_TIMEOUT || change->item.answered)
        near__intent_end(cache, change->item.key, change->hash, change->item.sequence);
    return status;
}

static near_status
write_change(near_cache *cache, near_bytes key, near_bytes data, const near_put_options *options,
             near_status (*write)(struct change *change))
{
    struct change change = {
        .cache   = cache,
        .options = options,
        .item    = { .key = key, .data = data },
        .hash    = near__hash_keyed(&cache->client->secret, key),
        .now     = near__client_now(cache->client),
        .ttl     = near__duration(options->ttl_ms, cache->settings.ttl),
        .put     = data.data != NULL,
    };
    near_status status = near__write_labels(cache, options, &change.labels);

    /* before the store: what L1 could not keep is refused while nothing has happened yet */
    if (status == NEAR_OK && near__decodes(cache) && change.put && write != write_unmarked &&
        !(options->flags & NEAR_NO_FILL))
        status = near__decode_bytes(cache, key, data, &change.object);
    if (status == NEAR_OK) {
        near__count(cache, NEAR__updates, 1);
        status = with_intent(&change, write);
    }
    near__object_release(&change.object);
    free(change.labels);
    return status;
}

near_status
near__through_write(near_cache *cache, near_bytes key, near_bytes data, const near_put_options *options)
{
    bool fast = cache->settings.write_fast == NEAR__YES || cache->bare;

    return write_change(cache, key, data, options,
                        cache->client->ops == NULL ? write_l1
                        : fast                     ? write_unmarked
                                                   : write_marked);
}

near_status
near__around_write(near_cache *cache, near_bytes key, near_bytes data, const near_put_options *options)
{
    return write_change(cache, key, data, options, write_unmarked);
}
