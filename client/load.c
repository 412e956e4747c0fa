/*
 * See load.h.  batch->lock (rank LOAD) covers the states of its loads and `leader`; the answers themselves are written by the
 * answering thread before the state changes and read by the finisher after.  No lock is held in the loader, in a fill or in a
 * landing.
 */
#include "load.h"

#include "base/probe.h"
#include "budget.h"
#include "cache.h"
#include "codec.h"
#include "early.h"
#include "fields.h"
#include "fields_inside.h"
#include "read.h"
#include "tags.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct batch;

struct near_load {
    struct batch         *batch;
    struct near__flight  *flight;   /* a reference, until finished */
    struct near__ask      ask;      /* its key lies in the flight */
    struct near__fallback previous; /* what it is to replace; a reference */
    int64_t               ttl;      /* ns, unless the loader says otherwise */
    int64_t               ttl_ms;   /* the loader's word; negative: none */
    uint8_t               pool;     /* the loader's word; 0: none */
    bool                  fill_l1;
    bool                  unkept; /* the loader's word: answer it, do not store it */
    bool bare; /* the object is all there is: its bytes are not known, so L2 cannot have them */
    bool keep; /* finishing: there is an entry, and it is worth storing */
    struct near__labels *labels; /* the loader's tags, until the answer takes them over */
    near_status          status; /* answer: NEAR_OK, NEAR_NOT_FOUND or an error */
    enum { PENDING, ANSWERED, FINISHED } state;
};

struct batch {
    struct near__lock       lock;
    pthread_cond_t          answered;
    unsigned                refs;   /* unanswered or unfinished loads, and the leader */
    bool                    leader; /* is here to finish what gets answered */
    near_cache             *cache;  /* a reference */
    struct near__load_terms terms;
    int64_t                 started;
    size_t                  n;
    struct near__ask      **asks;      /* room for one finishing round of the leader */
    near_load             **finishing; /* room for the same, as loads */
    near_load             **pointers;  /* what the loader sees; it may keep reading them after it returned */
    near_load               loads[];
};

/* How many loaders this thread is in: what they fetch is loaded right here. */
static __thread unsigned loaders_entered;

bool
near__load_nested(void)
{
    return loaders_entered > 0;
}

/* ---- batch */

static struct batch *
batch_new(near_cache *cache, struct near__leg **legs, size_t n, const struct near__load_terms *terms)
{
    size_t size =
        sizeof(struct batch) + n * (sizeof(near_load) + 2 * sizeof(near_load *) + sizeof(struct near__ask *));
    struct batch *batch = calloc(1, size);

    if (batch == NULL)
        return NULL;
    near__lock_init(&batch->lock, NEAR__RANK_LOAD);
    near__cond_init(&batch->answered);
    batch->refs      = (unsigned)n + 1;
    batch->leader    = true;
    batch->cache     = cache;
    batch->terms     = *terms;
    batch->n         = n;
    batch->pointers  = (near_load **)&batch->loads[n];
    batch->finishing = &batch->pointers[n];
    batch->asks      = (struct near__ask **)&batch->finishing[n];
    atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    for (size_t i = 0; i < n; i++) {
        near_load *load    = &batch->loads[i];
        load->batch        = batch;
        load->flight       = legs[i]->flight;
        load->ask          = legs[i]->ask;
        load->ask.entry    = NULL;
        load->ttl          = legs[i]->ttl;
        load->ttl_ms       = -1;
        load->fill_l1      = legs[i]->fill_l1;
        batch->pointers[i] = load;
        near__flight_ref(cache, load->flight);
        if (legs[i]->spare)
            load->previous = near__flight_fallback(cache, load->flight);
    }
    return batch;
}

/* A field of its own entry in L2 has its field's tag. */
static void
tag_fields(struct batch *batch)
{
    char tag[NEAR__FIELD_TAG_SIZE];

    for (size_t i = 0; i < batch->n; i++)
        if (near__field_tag_of(batch->cache, batch->loads[i].ask.key, tag) &&
            near__tags_add(batch->cache, &batch->loads[i].labels, near_key(tag)) != NEAR_OK)
            batch->loads[i].unkept = true; /* nobody could make others forget it */
}

static void
batch_free(struct batch *batch)
{
    near_cache *cache = batch->cache;

    near__lock_fini(&batch->lock);
    pthread_cond_destroy(&batch->answered);
    free(batch);
    near__cache_release(cache);
}

/* One whose loader was never called. */
static void
batch_drop(struct batch *batch)
{
    for (size_t i = 0; i < batch->n; i++) {
        near_value_release(batch->loads[i].previous.value);
        near__flight_release(batch->cache, &batch->loads[i].flight);
        free(batch->loads[i].labels);
    }
    batch_free(batch);
}

static void
batch_release(struct batch *batch, unsigned n)
{
    bool last;

    near__lock(&batch->lock);
    batch->refs -= n;
    last = batch->refs == 0;
    near__unlock(&batch->lock);
    if (last)
        batch_free(batch);
}

/* ---- finishing: fills and landings, for answered loads that are the caller's alone by now */

/* A little less, by ttl.jitter: entries made together do not end together.  Never more, so no bound is exceeded. */
static int64_t
jittered(const struct near__settings *settings, int64_t ttl)
{
    if (settings->ttl_jitter == 0 || ttl == 0)
        return ttl;
    return ttl - (int64_t)((double)ttl * (double)settings->ttl_jitter / 100 * near__random_unit());
}

static void
prepare_entry(const struct batch *batch, near_load *load, int64_t now)
{
    const struct near__settings *settings = &batch->cache->settings;
    struct near__entry          *entry    = load->ask.entry;

    load->ask.ttl = jittered(
        settings, near__duration(load->ttl_ms, entry->negative ? settings->negative_ttl : load->ttl));
    load->keep        = !load->unkept && (load->ask.ttl != 0 || !entry->negative ||
                                   load->ttl_ms == 0); /* negative_ttl = 0: do not remember */
    entry->generation = batch->terms.generation;
    if (batch->cache->client->ops == NULL)
        entry->stamp = near__stamp(batch->cache->client); /* else that of what L2 gets */
    entry->cost_us = near__early_cost(entry->cost_us, load->previous.cost_us, load->ask.ttl);
    /* all from the start of the load: what it read may be that old, whenever it came back (race 4) */
    near__entry_date(batch->cache, entry, batch->started, load->ask.ttl);
    entry->pool = load->pool;
    if (load->ask.ttl == 0)
        return;
    load->ask.ttl -= now - batch->started;
    if (load->ask.ttl == 0)
        load->ask.ttl = -1; /* 0 would be for ever */
    /* a load slower than its TTL still makes something to fall back on */
    load->keep = load->keep && near__kept_for(batch->cache, entry->negative, load->ask.ttl) > 0;
}

/* Tell other instances, who may be waiting for our lease, what was stored.  Moves no fence anywhere; a loss costs nobody more than
 * the wait.  Not before the landing: nobody here waits for it. */
static void
announce_filled(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline)
{
    near_client *client = cache->client;
    near_bytes   name   = near_key(cache->name);
    near_bytes  *keys;

    if (client->coherence == NULL || !client->traits.shared)
        return;
    keys = calloc(n, sizeof(*keys));
    for (size_t i = 0; keys != NULL && i < n; i++)
        keys[i] = asks[i]->key;
    for (size_t at = 0; keys != NULL && at < n;) {
        size_t   fit = near__message_fit(keys + at, n - at);
        uint8_t *message;
        size_t   size;

        if (near__message_encode(NEAR__MESSAGE_FILLED, near__coherence_sender(client->coherence), name,
                                 keys + at, fit, &message, &size) == NEAR_OK) {
            near__coherence_publish(client->coherence, message, size, deadline, NULL);
            free(message);
        }
        at += fit;
    }
    free(keys);
}

/* Whether anything was stored. */
static bool
fill_l2(struct batch *batch, struct near__ask **asks, size_t keep, size_t drop, size_t n, int64_t deadline)
{
    near_cache *cache  = batch->cache;
    size_t      stored = 0;

    if (atomic_load_explicit(&cache->client->closed, memory_order_relaxed))
        return false;
    if (keep > 0)
        stored = near__tier_fill(cache, asks, keep, batch->terms.generation, deadline);
    if (drop > 0)
        near__tier_unlease(cache, asks + (n - drop), drop, deadline);
    return stored > 0;
}

/* Whether L1 should be offered it.  What L2 refused is not stored anywhere; if a fence has moved as well L1 will say so itself. */
static bool
is_for_l1(near_cache *cache, const near_load *load)
{
    return load->keep && load->fill_l1 &&
           !(load->ask.refused &&
             near__l1_fence_same(near__l1_fence(cache->l1, load->ask.hash), load->ask.fence));
}

static void
finish_one(struct batch *batch, near_load *load, int64_t now)
{
    near_cache         *cache = batch->cache;
    struct near__entry *entry = load->ask.entry;

    load->ask.entry = NULL;
    if (load->status < 0) {
        near__flight_fail(cache, load->flight, load->status);
    } else if (!batch->terms.hedge && cache->settings.l2_hedge_after == 0) {
        if (is_for_l1(cache, load))
            near__l1_insert(cache->l1, entry, load->ask.fence, now);
    } else if (near__flight_claim(cache, load->flight) && is_for_l1(cache, load) &&
               (!batch->terms.hedge || near__flight_hold(cache, load->flight, entry))) {
        near__l1_insert(cache->l1, entry, load->ask.fence, now);
    }
    if (load->status == NEAR_OK)
        near__flight_land(cache, load->flight, NEAR_OK, near__value_of(entry, NEAR_FROM_LOADER, false));
    else if (load->status > 0)
        near__flight_land(cache, load->flight, load->status, NULL);
    if (load->status != NEAR_OK)
        near__entry_release(&entry);
}

/* With tags: not what one of them has overtaken (nor into L1), nor what L2 cannot judge. */
static bool
goes_to_l2(const near_load *load)
{
    const struct near__labels *labels = load->ask.entry->labels;

    if (load->bare)
        return false;
    return labels == NULL || (labels->lineage != 0 && load->ask.labelled == NEAR__LABELS_GOOD);
}

static void
judge_labels(struct batch *batch, near_load **loads, size_t n, struct near__ask **asks, int64_t deadline)
{
    size_t any = 0;

    for (size_t i = 0; i < n; i++)
        if (loads[i]->ask.lease != 0 && loads[i]->keep && loads[i]->ask.entry->labels != NULL &&
            loads[i]->ask.entry->labels->lineage != 0)
            asks[any++] = &loads[i]->ask;
    if (any == 0)
        return;
    near__tags_judge(batch->cache, asks, any, asks[0]->clock, deadline);
    for (size_t i = 0; i < n; i++)
        loads[i]->keep = loads[i]->keep && loads[i]->ask.labelled != NEAR__LABELS_OLD;
}

/* `loads[i]` are ANSWERED and nobody else's; `asks` has room for n. */
static void
finish(struct batch *batch, near_load **loads, size_t n, struct near__ask **asks)
{
    near_cache *cache    = batch->cache;
    int64_t     now      = near__client_now(cache->client);
    int64_t     deadline = near__time_after(now, cache->client->settings.l2_timeout);
    size_t      keep = 0, drop = 0;
    bool        stored = false;

    for (size_t i = 0; i < n; i++) {
        near__time(cache, NEAR__TIME_load, now - batch->started);
        if (loads[i]->ask.entry != NULL)
            prepare_entry(batch, loads[i], now);
    }
    judge_labels(batch, loads, n, asks, deadline);
    for (size_t i = 0; i < n; i++) {
        near_load *load = loads[i];

        if (load->ask.lease == 0)
            continue;
        if (load->keep && batch->terms.generation != 0 && goes_to_l2(load))
            asks[keep++] = &load->ask;
        else
            asks[n - ++drop] = &load->ask;
    }
    /* L2 before the landing: until it has landed, callers in this process join instead of loading again */
    if (keep + drop > 0)
        stored = fill_l2(batch, asks, keep, drop, n, deadline);
    for (size_t i = 0; i < n; i++)
        finish_one(batch, loads[i], now);
    if (batch->terms.counted)
        near__budget_give(&cache->budget, n);
    if (stored)
        announce_filled(cache, asks, keep, deadline);
    for (size_t i = 0; i < n; i++) {
        near_value_release(loads[i]->previous.value);
        near__flight_release(cache, &loads[i]->flight); /* and with it the key */
        free(loads[i]->labels);
    }
}

/* ---- the leader */

/* Collect what is answered into finishing[0..]; they become FINISHED, ours. */
static size_t
take_answered_locked(struct batch *batch)
{
    size_t taken = 0;

    for (size_t i = 0; i < batch->n; i++)
        if (batch->loads[i].state == ANSWERED) {
            batch->loads[i].state     = FINISHED;
            batch->finishing[taken++] = &batch->loads[i];
        }
    return taken;
}

/* The leader's thread goes its way, and may come back for these keys like anybody else. */
static void
leave_locked(struct batch *batch)
{
    batch->leader = false;
    for (size_t i = 0; i < batch->n; i++)
        if (batch->loads[i].state == PENDING)
            near__flight_lead(batch->cache, batch->loads[i].flight, NULL);
}

static void
lead(struct batch *batch)
{
    near_cache *cache = batch->cache;
    size_t      open  = batch->n;
    bool        more  = true;

    while (open > 0 && more) {
        size_t taken;

        near__lock(&batch->lock);
        while ((taken = take_answered_locked(batch)) == 0 && more)
            more = near__cond_wait(&batch->answered, &batch->lock, batch->terms.wait);
        if (taken == 0)
            leave_locked(batch); /* from here on, who answers finishes */
        near__unlock(&batch->lock);
        finish(batch, batch->finishing, taken, batch->asks);
        near__cache_work_ends(cache, taken);
        open -= taken;
        if (taken > 0)
            more = true;
        batch_release(batch, (unsigned)taken); /* the leader's own reference keeps it alive */
    }
}

static void
load_nothing(near_cache *cache, struct near__leg **legs, size_t n, const struct near__load_terms *terms,
             near_status status)
{
    int64_t deadline = near__client_now(cache->client) + cache->client->settings.l2_timeout;

    for (size_t i = 0; i < n; i++) {
        struct near__ask *mine = &legs[i]->ask;

        /* one by one, which takes no memory: else all would wait for a load that will not come */
        if (mine->lease != 0)
            near__tier_unlease(cache, &mine, 1, deadline);
        near__flight_land(cache, legs[i]->flight, status, NULL);
    }
    if (terms->counted)
        near__budget_give(&cache->budget, n);
}

static void
load_now(near_cache *cache, struct near__leg **legs, size_t n, const struct near__load_terms *terms)
{
    struct batch *batch = batch_new(cache, legs, n, terms);

    if (batch == NULL || !near__cache_work_begins(cache, n)) {
        load_nothing(cache, legs, n, terms, batch == NULL ? NEAR_ERR_NOMEM : NEAR_ERR_CLOSED);
        if (batch != NULL)
            batch_drop(batch);
        return;
    }
    near__count(cache, NEAR__loads, n);
    near__count(cache, NEAR__load_calls, 1);
    if (near__fields_used(cache))
        tag_fields(batch);
    batch->started = near__client_now(cache->client);
    NEAR__PROBE3(load__start, cache->name, n, batch);
    loaders_entered++;
    cache->loader(batch->pointers, n, cache->loader_ctx);
    loaders_entered--;
    lead(batch);
    NEAR__PROBE4(load__end, cache->name, n, batch, near__client_now(cache->client) - batch->started);
    batch_release(batch, 1);
}

/* ---- gathering: the first of several calls waits a moment and loads for all
 *
 * Legs handed over are copies with a flight reference of their own; whose terms differ (a hedge) goes alone. */

#define GATHER_MOST 4096 /* keys in one call of the loader: beyond that company brings nothing more */

void
near__gather_init(struct near__gather *gather)
{
    near__lock_init(&gather->lock, NEAR__RANK_LEAF);
}

void
near__gather_fini(struct near__gather *gather)
{
    free(gather->legs);
    near__lock_fini(&gather->lock);
}

static bool
gather_room_locked(struct near__gather *gather, size_t n)
{
    size_t            capacity = gather->capacity != 0 ? gather->capacity : 64;
    struct near__leg *legs;

    while (capacity < gather->n + n)
        capacity *= 2;
    if (gather->n + n > GATHER_MOST)
        return false;
    if (capacity == gather->capacity)
        return true;
    legs = realloc(gather->legs, capacity * sizeof(*legs));
    if (legs == NULL)
        return false;
    gather->legs     = legs;
    gather->capacity = capacity;
    return true;
}

/* True: somebody else will load them. */
static bool
hand_over(near_cache *cache, struct near__leg **legs, size_t n)
{
    struct near__gather *gather = &cache->gather;
    bool                 taken;

    for (size_t i = 0; i < n; i++) { /* before: the collector may be quick */
        near__flight_ref(cache, legs[i]->flight);
        near__flight_lead(cache, legs[i]->flight, NULL);
    }
    near__lock(&gather->lock);
    taken = gather->open && gather_room_locked(gather, n);
    for (size_t i = 0; taken && i < n; i++) {
        gather->legs[gather->n]           = *legs[i];
        gather->legs[gather->n].ask.entry = NULL;
        gather->n++;
    }
    near__unlock(&gather->lock);
    for (size_t i = 0; !taken && i < n; i++) {
        struct near__flight *extra = legs[i]->flight;

        near__flight_lead(cache, extra, legs[i]);
        near__flight_release(cache, &extra);
    }
    return taken;
}

/* Collect for the window; what came is the caller's to free, with `n` legs. */
static struct near__leg *
collect(near_cache *cache, size_t *n)
{
    struct near__gather *gather = &cache->gather;
    int64_t              window = cache->settings.load_gather;
    struct near__leg    *legs;

    nanosleep(&(struct timespec){ (time_t)(window / NEAR__SEC), (long)(window % NEAR__SEC) }, NULL);
    near__lock(&gather->lock);
    legs             = gather->legs;
    *n               = gather->n;
    gather->open     = false;
    gather->legs     = NULL;
    gather->n        = 0;
    gather->capacity = 0;
    near__unlock(&gather->lock);
    return legs;
}

static void
load_with_company(near_cache *cache, struct near__leg **legs, size_t n, const struct near__load_terms *terms)
{
    size_t             more;
    struct near__leg  *company = collect(cache, &more);
    struct near__leg **all     = more > 0 ? calloc(n + more, sizeof(*all)) : NULL;

    if (all == NULL) {
        load_now(cache, legs, n, terms);
    } else {
        memcpy(all, legs, n * sizeof(*all));
        for (size_t i = 0; i < more; i++) {
            near__flight_lead(cache, company[i].flight, legs);
            all[n + i] = &company[i];
        }
        load_now(cache, all, n + more, terms);
    }
    for (size_t i = 0; i < more; i++) {
        if (all == NULL) /* no memory to load them with */
            near__flight_land(cache, company[i].flight, NEAR_ERR_NOMEM, NULL);
        near__flight_release(cache, &company[i].flight);
    }
    if (all == NULL && terms->counted)
        near__budget_give(&cache->budget, more);
    free(all);
    free(company);
}

void
near__load_run(near_cache *cache, struct near__leg **legs, size_t n, const struct near__load_terms *terms)
{
    struct near__gather *gather = &cache->gather;
    bool                 first;

    if (cache->settings.load_gather == 0 || terms->hedge || near__load_nested()) {
        load_now(cache, legs, n, terms);
        return;
    }
    if (hand_over(cache, legs, n))
        return;
    near__lock(&gather->lock);
    first        = !gather->open;
    gather->open = true;
    near__unlock(&gather->lock);
    if (first)
        load_with_company(cache, legs, n, terms);
    else /* somebody began to collect just now, or there is no room */
        load_now(cache, legs, n, terms);
}

/* ---- the loader's side */

near_bytes
near_load_key(const near_load *load)
{
    return load != NULL ? load->ask.key : (near_bytes){ NULL, 0 };
}

void
near_load_ttl(near_load *load, int64_t ttl_ms)
{
    if (load != NULL)
        load->ttl_ms = ttl_ms;
}

near_status
near_load_pool(near_load *load, unsigned pool)
{
    if (load == NULL || pool > load->batch->cache->pools.n)
        return NEAR_ERR_INVALID;
    load->pool = (uint8_t)pool;
    return NEAR_OK;
}

near_status
near_load_tag(near_load *load, const char *tag)
{
    if (load == NULL || tag == NULL)
        return NEAR_ERR_INVALID;
    return near__tags_add(load->batch->cache, &load->labels, near_key(tag));
}

near_status
near_load_field(const near_load *load, near_bytes *entity, near_field *field)
{
    if (load == NULL || entity == NULL || field == NULL)
        return NEAR_ERR_INVALID;
    return near__field_read(load->batch->cache, load->ask.key, entity, field);
}

void
near_load_unkept(near_load *load)
{
    if (load != NULL)
        load->unkept = true;
}

const near_value *
near_load_previous(const near_load *load)
{
    return load != NULL ? load->previous.value : NULL;
}

static uint32_t
cost_since(const struct batch *batch)
{
    int64_t us = (near__client_now(batch->cache->client) - batch->started) / 1000;

    return us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

/* The loader's tags, with the clocks of before the load: what a tag's invalidation has overtaken since is outdated at birth. */
static struct near__labels *
take_labels(near_load *load)
{
    struct near__labels *labels = load->labels;

    load->labels = NULL;
    if (labels == NULL)
        return NULL;
    labels->clock   = load->ask.label_clock;
    labels->lineage = load->ask.clock.lineage;
    labels->moment  = load->ask.clock.moment;
    return labels;
}

/* The one way an answer takes.  Takes `entry` over. */
static void
answer(near_load *load, near_status status, struct near__entry *entry)
{
    struct batch     *batch = load->batch;
    struct near__ask *ask   = &load->ask;
    bool              mine;

    if (*batch->cache->client->alive == 0) { /* in a child: the load is the parent's to answer */
        near__entry_release(&entry);
        return;
    }
    if (status < 0)
        near__count(batch->cache, NEAR__load_failures, 1);
    if (entry != NULL) {
        entry->cost_us = cost_since(batch);
        entry->labels  = take_labels(load);
    }
    near__lock(&batch->lock);
    if (load->state != PENDING) { /* answered twice, and the memory is still there: the first answer stands */
        near__unlock(&batch->lock);
        near__entry_release(&entry);
        return;
    }
    load->status = status;
    ask->entry   = entry;
    mine         = !batch->leader;
    load->state  = mine ? FINISHED : ANSWERED;
    if (!mine)
        pthread_cond_signal(&batch->answered);
    near__unlock(&batch->lock);
    if (!mine)
        return; /* the leader finishes it, and `load` may be gone by now */
    finish(batch, &load, 1, &ask);
    near__cache_work_ends(batch->cache, 1);
    batch_release(batch, 1);
}

/* A value, decoded where the cache has a codec.  Takes `entry` over; NULL: out of memory. */
static near_status
answer_value(near_load *load, struct near__entry *entry)
{
    near_status status = entry != NULL ? near__decode(load->batch->cache, entry) : NEAR_ERR_NOMEM;

    if (status != NEAR_OK)
        near__entry_release(&entry);
    answer(load, status, entry);
    return status;
}

static struct near__entry *
entry_with(const near_load *load, near_bytes value)
{
    void               *bytes;
    struct near__entry *entry = near__entry_new(load->ask.key, load->ask.hash, value.size, &bytes);

    if (entry != NULL && value.size > 0)
        memcpy(bytes, value.data, value.size);
    return entry;
}

near_status
near_load_set(near_load *load, near_bytes value)
{
    if (load == NULL)
        return NEAR_ERR_INVALID;
    if (value.data == NULL && value.size != 0) {
        answer(load, NEAR_ERR_LOADER, NULL);
        return NEAR_ERR_INVALID;
    }
    if (value.size > load->batch->cache->settings.l2_max_value) {
        answer(load, NEAR_ERR_TOO_LARGE, NULL);
        return NEAR_ERR_TOO_LARGE;
    }
    return answer_value(load, entry_with(load, value));
}

near_status
near_load_adopt(near_load *load, void *data, size_t size, void (*release)(void *data))
{
    struct near__entry *entry  = NULL;
    near_status         status = NEAR_OK;

    if (load == NULL || (data == NULL && size != 0))
        status = NEAR_ERR_INVALID;
    else if (size > load->batch->cache->settings.l2_max_value)
        status = NEAR_ERR_TOO_LARGE;
    else if ((entry = near__entry_adopt(load->ask.key, load->ask.hash, data, size, release)) == NULL)
        status = NEAR_ERR_NOMEM;
    if (status == NEAR_OK)
        return answer_value(load, entry);
    if (release != NULL)
        release(data);
    if (load != NULL)
        answer(load, status == NEAR_ERR_INVALID ? NEAR_ERR_LOADER : status, NULL);
    return status;
}

near_status
near_load_unchanged(near_load *load)
{
    struct near__entry *entry;
    near_status         status;

    if (load == NULL)
        return NEAR_ERR_INVALID;
    if (load->previous.value == NULL) {
        answer(load, NEAR_ERR_LOADER, NULL);
        return NEAR_ERR_INVALID;
    }
    status = near__tags_add_names(load->batch->cache, &load->labels, near__value_names(load->previous.value));
    if (status != NEAR_OK) {
        answer(load, status, NULL);
        return status;
    }
    entry = entry_with(load, near_value_bytes(load->previous.value));
    if (entry != NULL)
        entry->object = near__object_ref(near__value_object(load->previous.value));
    load->bare = entry != NULL && entry->object != NULL &&
                 !(load->batch->cache->decoder.codec.flags & NEAR_KEEP_BYTES);
    return answer_value(load, entry);
}

void
near_load_not_found(near_load *load)
{
    struct near__entry *entry;
    void               *none;

    if (load == NULL)
        return;
    entry = near__entry_new(load->ask.key, load->ask.hash, 0, &none);
    if (entry != NULL)
        entry->negative = true;
    answer(load, NEAR_NOT_FOUND, entry); /* without memory to remember it, it is still the answer */
}

void
near_load_fail(near_load *load, near_status status)
{
    if (load != NULL)
        answer(load, status < 0 ? status : NEAR_ERR_LOADER, NULL);
}
