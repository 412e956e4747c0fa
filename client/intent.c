/* See intent.h. */
#include "intent.h"

#include <stdlib.h>
#include <string.h>

#include "journal.h"
#include "recovery.h"
#include "store.h"
#include "write.h"

struct near__intent {
    struct near__intent *next;
    uint64_t             hash, sequence;
    size_t               key_size;
    unsigned char        key[];
};

void
near__intents_init(near_cache *cache)
{
    near__lock_init(&cache->intents_lock, NEAR__RANK_LEAF);
}

void
near__intents_fini(near_cache *cache)
{
    struct near__intent *intent;

    while ((intent = cache->intents) != NULL) {
        cache->intents = intent->next;
        free(intent);
    }
    near__lock_fini(&cache->intents_lock);
}

/* Wait for what is owed.  Without memory for that it stays in the journal, and is replayed. */
static void
wait_for(near_cache *cache, near_bytes key, uint64_t hash, uint64_t sequence)
{
    struct near__intent *intent = malloc(sizeof(*intent) + key.size);

    if (intent == NULL)
        return;
    *intent = (struct near__intent){ .hash = hash, .sequence = sequence, .key_size = key.size };
    if (key.size > 0)
        memcpy(intent->key, key.data, key.size);
    near__lock(&cache->intents_lock);
    intent->next   = cache->intents;
    cache->intents = intent;
    near__unlock(&cache->intents_lock);
}

/* Once the client is closed nothing can be said of what is owed, nor be paid: what is not over then is replayed. */
static bool
is_over(near_cache *cache, near_bytes key, uint64_t hash)
{
    /* in this order: what is owed is forgotten after the flag is set */
    return !near__recovery_owes(cache, key, hash) &&
           !atomic_load_explicit(&cache->client->closed, memory_order_relaxed);
}

void
near__intents_paid(near_cache *cache)
{
    struct near__intent *waiting, *intent, *still = NULL;

    near__lock(&cache->intents_lock);
    waiting        = cache->intents;
    cache->intents = NULL;
    near__unlock(&cache->intents_lock);
    while ((intent = waiting) != NULL) {
        waiting = intent->next;
        if (!is_over(cache, (near_bytes){ intent->key, intent->key_size }, intent->hash)) {
            intent->next = still;
            still        = intent;
            continue;
        }
        near__journal_done(cache->journal, &intent->sequence, 1);
        free(intent);
    }
    near__lock(&cache->intents_lock);
    while ((intent = still) != NULL) {
        still          = intent->next;
        intent->next   = cache->intents;
        cache->intents = intent;
    }
    near__unlock(&cache->intents_lock);
}

/* Where nothing may be owed (coherence.max_pending = 0) it is settled at once, or stays for the next life. */
static bool
replay_one(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    near_cache *cache = ctx;
    uint64_t    hash  = near__hash_keyed(&cache->client->secret, record->key);

    if (!near__recovery_keeps(cache)) {
        if (near__write_settle(cache, &record->key, 1) == NEAR_OK)
            near__journal_done(cache->journal, &sequence, 1);
        return true;
    }
    near__recovery_keep(cache, record->key, hash);
    wait_for(cache, record->key, hash, sequence);
    return true;
}

/* Which keys it named nobody knows: so all of them. */
static void
cannot_be_read(near_cache *cache, near_status status)
{
    const near_client *client = cache->client;

    near__log(
        &client->log, NEAR_LOG_ERROR,
        "cache %s: what its journal says of unfinished writes cannot be read (%s): the cache is cleared",
        cache->name, near_status_text(status));
    if (near__recovery_keeps(cache))
        near__recovery_keep_clear(cache);
    else
        near__clear_settle(cache, near__time_after(near__client_now(client), client->settings.l2_timeout));
}

void
near__intents_replay(near_cache *cache)
{
    near_status status;

    if (cache->journal == NULL)
        return;
    status = near__journal_replay(cache->journal, near_key(cache->name), 1u << NEAR__JOURNAL_INTENT,
                                  replay_one, cache);
    if (status != NEAR_OK)
        cannot_be_read(cache, status);
}

near_status
near__intent_begin(near_cache *cache, near_bytes key, uint64_t *origin, uint64_t *sequence)
{
    near_client                      *client = cache->client;
    const struct near__journal_record record = { .kind  = NEAR__JOURNAL_INTENT,
                                                 .cache = near_key(cache->name),
                                                 .key   = key };
    int64_t                           deadline;
    near_status                       status;

    if (cache->journal == NULL) {
        *origin   = near__store_origin(client);
        *sequence = near__store_sequence(client);
        return NEAR_OK;
    }
    *origin  = near__journal_origin(cache->journal);
    status   = near__journal_write(cache->journal, &record, sequence);
    deadline = near__time_after(near__client_now(client), cache->settings.store_timeout);
    if (status == NEAR_OK) {
        status = near__journal_commit(cache->journal, *sequence, deadline);
        if (status != NEAR_OK)
            near__journal_done(cache->journal, sequence, 1);
    }
    return status == NEAR_ERR_TIMEOUT ? NEAR_ERR_UNAVAILABLE : status; /* nothing has happened yet */
}

void
near__intent_end(near_cache *cache, near_bytes key, uint64_t hash, uint64_t sequence)
{
    if (cache->journal == NULL)
        return;
    if (is_over(cache, key, hash)) {
        near__journal_done(cache->journal, &sequence, 1);
        return;
    }
    wait_for(cache, key, hash, sequence);
    if (is_over(cache, key, hash)) /* paid before it was there to be seen */
        near__intents_paid(cache);
}
