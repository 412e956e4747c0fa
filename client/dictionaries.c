/* See dictionaries.h. */
#include "dictionaries.h"

#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "cache.h"
#include "generation.h"
#include "tier.h"

#define FORGET  NEAR__SEC /* L2 is asked again no sooner for what it does not have */
#define ID_SIZE 4
#define HEAD_MOST                                                                                            \
    (NEAR__ENVELOPE_MOST + 64 + NEAR__CACHE_NAME_MAX + 48) /* of its envelope, the key included */

bool
near__dictionaries_parse(const char *text, uint32_t *id)
{
    unsigned long long number;
    char              *end;

    *id = 0;
    if (text[0] == '\0' || strcmp(text, "auto") == 0)
        return true;
    if (text[strspn(text, "0123456789")] != '\0' || strlen(text) > 10)
        return false;
    number = strtoull(text, &end, 10);
    *id    = (uint32_t)number;
    return number >= 32768 && number <= INT32_MAX;
}

/* ---- in L2 */

struct found {
    const near_cache        *cache; /* read_one() sets it */
    struct near__dictionary *dictionary;
    uint32_t    wanted, id; /* wanted 0: the name of the newest is asked for, which becomes `id` */
    uint64_t    old;        /* its stamp, if it is sealed by a key that is only believed; else 0 */
    near_status status;
};

static void
deliver(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct found         *found = ctx;
    struct near__envelope envelope;

    found->status = NEAR_ERR_INVALID;
    if (near__tier_decode(found->cache, &envelope, item->key, stored, item->key) != NEAR__ENVELOPE_OK ||
        envelope.flags != 0)
        return;
    found->old = envelope.old_key ? envelope.stamp : 0;
    if (found->wanted != 0)
        found->status = near__dictionary_new(envelope.payload, found->wanted, &found->dictionary);
    else if (envelope.payload.size == ID_SIZE) {
        found->status = NEAR_OK;
        found->id     = near__le32_get(envelope.payload.data);
    }
}

static void
add_key(struct near__wire *wire, near_cache *cache, uint32_t id)
{
    if (id != 0)
        near__wire_add_dictionary(wire, cache, id);
    else
        near__wire_add_newest(wire, cache);
}

/* NEAR_OK with what was looked for; NEAR_MISS: it is not there; NEAR_ERR_INVALID: what is there is not it. */
static near_status
read_one(near_cache *cache, struct found *found, int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;
    near_status       status = near__wire_open(&wire, cache, 1, 0);

    if (status != NEAR_OK)
        return status;
    found->cache = cache;
    add_key(&wire, cache, found->wanted);
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->get_many(client->l2, wire.items, 1, deliver, found, deadline);
    status = near__item_status(&wire.items[0]);
    near__wire_close(&wire);
    return status == NEAR_OK ? found->status : status;
}

/* Under the key of the dictionary `id`, or, id 0, of the newest one's name.  NEAR_MISS: mode says if absent, and it is not; or under which
 * stamp, and it is another's. */
static near_status
write_under(near_cache *cache, uint32_t id, near_bytes payload, enum near_l2_mode mode, uint64_t expected,
            int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;
    near_status       status = near__wire_open(&wire, cache, 1, 0);

    if (status != NEAR_OK)
        return status;
    add_key(&wire, cache, id);
    if (near__wire_make_room(&wire, HEAD_MOST + payload.size)) {
        near__number_encode(cache, &wire.items[0], payload, wire.values);
        wire.items[0].expected = expected;
        near__count(cache, NEAR__l2_requests, 1);
        client->ops->set_many(client->l2, mode, wire.items, 1, NULL, deadline);
        status = near__item_status(&wire.items[0]);
    } else
        status = NEAR_ERR_NOMEM;
    near__wire_close(&wire);
    return status;
}

static near_status
write_one(near_cache *cache, uint32_t id, near_bytes payload, enum near_l2_mode mode, int64_t deadline)
{
    return write_under(cache, id, payload, mode, 0, deadline);
}

static near_status
usable(const near_cache *cache)
{
    return cache->client->ops == NULL || cache->bare ? NEAR_ERR_UNSUPPORTED : NEAR_OK;
}

near_status
near__dictionaries_newest(near_cache *cache, uint32_t *id, int64_t deadline)
{
    struct found found  = { .status = NEAR_MISS };
    near_status  status = usable(cache);

    if (status == NEAR_OK)
        status = read_one(cache, &found, deadline);
    *id = found.id;
    return status == NEAR_MISS ? NEAR_OK : status;
}

near_status
near__dictionaries_name(near_cache *cache, uint32_t id, int64_t deadline)
{
    near_status status = usable(cache);
    uint8_t     name[ID_SIZE];

    near__le32_put(name, id);
    return status != NEAR_OK
               ? status
               : write_one(cache, 0, (near_bytes){ name, sizeof(name) }, NEAR_L2_ALWAYS, deadline);
}

near_status
near__dictionaries_store(near_cache *cache, near_bytes bytes, uint32_t id, int64_t deadline)
{
    struct found found  = { .wanted = id };
    near_status  status = usable(cache);

    if (status != NEAR_OK)
        return status;
    status = write_one(cache, id, bytes, NEAR_L2_IF_ABSENT, deadline);
    if (status != NEAR_MISS)
        return status;
    status = read_one(cache, &found, deadline);
    if (status == NEAR_OK &&
        !near__bytes_equal(near__dictionary_bytes(found.dictionary), bytes)) /* one in 2^31 */
        status = NEAR_ERR_CONFLICT;
    near__dictionary_release(found.dictionary);
    /* what lies there is damaged: nobody can have used it */
    return status == NEAR_ERR_INVALID ? write_one(cache, id, bytes, NEAR_L2_ALWAYS, deadline) : status;
}

/* ---- by id */

static struct near__dictionary_slot *
slot_of_locked(struct near__dictionaries *all, uint32_t id)
{
    for (size_t i = 0; i < NEAR__DICTIONARIES; i++)
        if (all->slots[i].id == id)
            return &all->slots[i];
    return NULL;
}

/* The one not used for longest, of those that nobody fetches into; NULL: all are being fetched. */
static struct near__dictionary_slot *
free_slot_locked(struct near__dictionaries *all)
{
    struct near__dictionary_slot *oldest = NULL;

    for (size_t i = 0; i < NEAR__DICTIONARIES; i++)
        if (!all->slots[i].fetching && (oldest == NULL || all->slots[i].used < oldest->used))
            oldest = &all->slots[i];
    return oldest;
}

struct near__dictionary *
near__dictionaries_find(near_cache *cache, uint32_t id)
{
    struct near__dictionaries    *all   = &cache->dictionaries;
    struct near__dictionary      *found = NULL;
    struct near__dictionary_slot *slot;

    near__lock(&all->lock);
    slot = slot_of_locked(all, id);
    if (slot != NULL && slot->dictionary != NULL) {
        slot->used = ++all->uses;
        found      = near__dictionary_ref(slot->dictionary);
    }
    near__unlock(&all->lock);
    return found;
}

struct near__dictionary *
near__dictionaries_current(near_cache *cache, size_t raw)
{
    struct near__dictionaries *all     = &cache->dictionaries;
    struct near__dictionary   *current = NULL;

    if (!all->wants || raw < all->threshold)
        return NULL;
    near__lock(&all->lock);
    if (all->current != NULL)
        current = near__dictionary_ref(all->current);
    near__unlock(&all->lock);
    return current;
}

/* A slot of our own to fetch into; NULL: *status says what is known, or that there is no room. */
static struct near__dictionary_slot *
begin(near_cache *cache, uint32_t id, int64_t deadline, near_status *status)
{
    struct near__dictionaries    *all  = &cache->dictionaries;
    struct near__dictionary      *gone = NULL;
    struct near__dictionary_slot *slot;
    bool                          more = true;

    *status = NEAR_ERR_TIMEOUT;
    near__lock(&all->lock);
    while ((slot = slot_of_locked(all, id)) != NULL && slot->fetching && more)
        more = near__cond_wait(&all->changed, &all->lock, deadline);
    if (slot != NULL &&
        (slot->fetching || slot->dictionary != NULL || near__client_now(cache->client) < slot->until)) {
        if (!slot->fetching)
            *status = slot->dictionary != NULL ? NEAR_OK : slot->status;
        slot = NULL;
    } else {
        if (slot == NULL)
            slot = free_slot_locked(all);
        if (slot == NULL)
            *status = NEAR_ERR_BUSY;
        else {
            gone  = slot->dictionary;
            *slot = (struct near__dictionary_slot){ .id = id, .fetching = true, .used = ++all->uses };
        }
    }
    near__unlock(&all->lock);
    near__dictionary_release(gone);
    return slot;
}

near_status
near__dictionaries_fetch(near_cache *cache, uint32_t id, int64_t deadline)
{
    struct near__dictionaries    *all   = &cache->dictionaries;
    struct found                  found = { .wanted = id };
    near_status                   status;
    struct near__dictionary_slot *slot = begin(cache, id, deadline, &status);

    if (slot == NULL)
        return status;
    status = read_one(cache, &found, deadline);
    if (status == NEAR_OK)
        near__count(cache, NEAR__l2_dictionaries_fetched, 1);
    if (status == NEAR_ERR_INVALID)
        near__count(cache, NEAR__l2_dictionaries_refused, 1);
    near__lock(&all->lock);
    slot->fetching   = false;
    slot->dictionary = found.dictionary;
    slot->status     = status == NEAR_ERR_INVALID ? NEAR_MISS : status;
    slot->until      = near__time_after(near__client_now(cache->client), FORGET);
    if (slot->status < 0) {
        slot->id   = 0; /* L2 could not say: whoever comes next asks again */
        slot->used = 0; /* and takes this place before one that is in use */
    }
    status = slot->status;
    pthread_cond_broadcast(&all->changed);
    near__unlock(&all->lock);
    return status;
}

/* ---- the one to compress with */

static void
use(near_cache *cache, struct near__dictionary *dictionary)
{
    struct near__dictionaries *all = &cache->dictionaries;
    struct near__dictionary   *old;

    near__lock(&all->lock);
    old          = all->current;
    all->current = dictionary;
    near__unlock(&all->lock);
    near__dictionary_release(old);
    near__gain_forget(&cache->gain);
    if (dictionary != NULL)
        near__log(&cache->client->log, NEAR_LOG_INFO, "cache %s: compresses with the dictionary %lu",
                  cache->name, (unsigned long)near__dictionary_id(dictionary));
}

/* L2 may have evicted it: then values that need it are lost to everybody else. */
static void
put_back(near_cache *cache, struct near__dictionary *current, bool unnamed, int64_t deadline)
{
    uint32_t     id    = near__dictionary_id(current);
    struct found found = { .wanted = id };
    near_status  status;
    uint8_t      name[ID_SIZE];

    status = read_one(cache, &found, deadline);
    if (status == NEAR_MISS ||
        status == NEAR_ERR_INVALID) /* damaged: what lies there is of no use to anybody */
        (void)write_one(cache, id, near__dictionary_bytes(current),
                        status == NEAR_MISS ? NEAR_L2_IF_ABSENT : NEAR_L2_ALWAYS, deadline);
    if (status == NEAR_OK && found.old != 0) /* else nobody could read it once that key is not believed */
        (void)write_under(cache, id, near__dictionary_bytes(found.dictionary), NEAR_L2_IF_STAMP, found.old,
                          deadline);
    near__dictionary_release(found.dictionary);
    near__le32_put(name, id);
    if (unnamed)
        (void)write_one(cache, 0, (near_bytes){ name, sizeof(name) }, NEAR_L2_IF_ABSENT, deadline);
}

static void
take_up(near_cache *cache, uint32_t id, int64_t deadline)
{
    struct near__dictionary *dictionary;

    if (near__dictionaries_fetch(cache, id, deadline) != NEAR_OK)
        return;
    dictionary = near__dictionaries_find(cache, id);
    if (dictionary != NULL && near__dictionary_prepare(dictionary) == NEAR_OK)
        use(cache, dictionary);
    else
        near__dictionary_release(dictionary);
}

static void
refresh(near_cache *cache)
{
    struct near__dictionaries *all = &cache->dictionaries;
    int64_t deadline = near__time_after(near__client_now(cache->client), cache->client->settings.l2_timeout);
    struct found             found  = { .id = all->wanted };
    near_status              status = all->newest ? read_one(cache, &found, deadline) : NEAR_OK;
    struct near__dictionary *current;
    uint8_t                  name[ID_SIZE];

    if (status != NEAR_OK && status != NEAR_MISS)
        return; /* L2 cannot say: as before */
    if (status == NEAR_OK && found.old != 0) {
        near__le32_put(name, found.id);
        (void)write_under(cache, 0, (near_bytes){ name, sizeof(name) }, NEAR_L2_IF_STAMP, found.old,
                          deadline);
    }
    near__lock(&all->lock);
    current = all->current != NULL ? near__dictionary_ref(all->current) : NULL;
    near__unlock(&all->lock);
    if (current != NULL && (status == NEAR_MISS || found.id == near__dictionary_id(current)))
        put_back(cache, current, status == NEAR_MISS, deadline);
    else if (found.id != 0)
        take_up(cache, found.id, deadline);
    else if (current != NULL)
        use(cache, NULL); /* 0: somebody has said none */
    near__dictionary_release(current);
}

static void
arm(near_cache *cache, int64_t after)
{
    struct near__dictionaries *all = &cache->dictionaries;
    bool                       closed;

    near__lock(&all->lock);
    all->busy = false;
    closed    = all->closed;
    near__unlock(&all->lock);
    if (!closed)
        (void)near__timer_arm(&cache->client->scheduler, &all->timer,
                              near__time_after(near__client_now(cache->client), after));
}

static void
run(struct near__job *job, bool cancelled)
{
    near_cache *cache = (near_cache *)(void *)((char *)job - offsetof(near_cache, dictionaries.job));

    if (!cancelled) {
        refresh(cache);
        arm(cache, cache->settings.l2_dictionary_refresh);
    }
    near__cache_work_ends(cache, 1);
    near__cache_release(cache);
}

/* On the scheduler's thread, which may not wait for L2. */
static void
when_due(void *ctx)
{
    near_cache                *cache = ctx;
    struct near__dictionaries *all   = &cache->dictionaries;
    bool                       begins;

    near__lock(&all->lock);
    begins    = !all->busy && !all->closed;
    all->busy = all->busy || begins;
    near__unlock(&all->lock);
    if (!begins || !near__cache_work_begins(cache, 1))
        return;
    atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    all->job.fn = run;
    if (near__workers_submit(cache->client->workers, &all->job) == NEAR_OK)
        return;
    arm(cache, cache->settings.l2_dictionary_refresh); /* no thread to be had */
    near__cache_work_ends(cache, 1);
    near__cache_release(cache);
}

/* ---- life */

void
near__dictionaries_init(near_cache *cache)
{
    near__lock_init(&cache->dictionaries.lock, NEAR__RANK_LEAF);
    near__cond_init(&cache->dictionaries.changed);
    near__timer_init(&cache->dictionaries.timer, when_due, cache);
}

void
near__dictionaries_open(near_cache *cache)
{
    struct near__dictionaries   *all      = &cache->dictionaries;
    const struct near__settings *settings = &cache->settings;

    all->newest    = strcmp(settings->l2_dictionary, "auto") == 0;
    all->threshold = settings->set[NEAR__OPTION_l2_compression_threshold] ? settings->l2_compression_threshold
                                                                          : NEAR__DICTIONARY_THRESHOLD;
    (void)near__dictionaries_parse(settings->l2_dictionary, &all->wanted); /* was checked */
    all->wants           = settings->l2_dictionary[0] != '\0' && cache->client->ops != NULL;
    cache->compress_from = all->wants ? all->threshold : settings->l2_compression_threshold;
    if (all->wants)
        arm(cache, 0);
}

void
near__dictionaries_close(near_cache *cache)
{
    struct near__dictionaries *all = &cache->dictionaries;

    near__lock(&all->lock);
    all->closed = true;
    near__unlock(&all->lock);
    near__timer_disarm(&cache->client->scheduler, &all->timer);
}

void
near__dictionaries_fini(near_cache *cache)
{
    struct near__dictionaries *all = &cache->dictionaries;

    near__timer_disarm(&cache->client->scheduler, &all->timer); /* armed beside the close */
    for (size_t i = 0; i < NEAR__DICTIONARIES; i++)
        near__dictionary_release(all->slots[i].dictionary);
    near__dictionary_release(all->current);
    pthread_cond_destroy(&all->changed);
    near__lock_fini(&all->lock);
}
