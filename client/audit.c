/* See audit.h. */
#include "audit.h"

#include <stdlib.h>
#include <string.h>

#include "l1/find.h"
#include "read.h"
#include "tier.h"

enum {
    KEY_MAX  = 256, /* longer keys are not sampled: samples have a fixed size */
    CAPACITY = 512, /* samples that wait for one of their looks: 160 KiB a queue */
    SUSPECTS = 64,
    BATCH    = 32, /* looked at together */
    LONG     = 10  /* the second look comes after so many delays */
};

/* What differs is looked at again after this: longer than a message takes, much shorter than any delay worth auditing. */
#define SUSPECT_FOR (100 * NEAR_MS)

enum look { FIRST, SECOND, LOOKS };

struct sample {
    near_cache *cache; /* NULL: forgotten */
    uint64_t    hash, digest;
    int64_t     taken, due;
    enum look   look;
    bool        suspect;
    uint16_t    key_size;
    char        key[KEY_MAX];
};

/* Samples in the order of their times: all of a queue wait equally long. */
struct queue {
    struct sample *samples;
    size_t         capacity, first, n;
};

enum { SUSPECTED = LOOKS, QUEUES };

struct near__audit {
    near_client       *client;
    uint64_t           threshold; /* of 2^64: the share of hits that are sampled */
    int64_t            delay;
    struct near__lock  lock; /* leaf; covers all below */
    struct queue       queues[QUEUES];
    bool               busy, closed; /* busy: the job waits or runs */
    struct near__job   job;
    struct near__timer timer;
};

/* ---- queues */

static struct sample *
queue_at(const struct queue *queue, size_t i)
{
    return &queue->samples[(queue->first + i) % queue->capacity];
}

/* A place at the end; NULL: full. */
static struct sample *
queue_add(struct queue *queue)
{
    return queue->n < queue->capacity ? queue_at(queue, queue->n++) : NULL;
}

static void
queue_drop_first(struct queue *queue)
{
    queue->first = (queue->first + 1) % queue->capacity;
    queue->n--;
}

/* When the next sample is due; NEAR_NEVER: there is none. */
static int64_t
next_due_locked(const struct near__audit *audit) NEAR__NEEDS(audit->lock)
{
    int64_t due = NEAR_NEVER;

    for (unsigned i = 0; i < QUEUES; i++)
        if (audit->queues[i].n > 0 && queue_at(&audit->queues[i], 0)->due < due)
            due = queue_at(&audit->queues[i], 0)->due;
    return due;
}

static void
arm(struct near__audit *audit)
{
    int64_t due;

    near__lock(&audit->lock);
    due = audit->closed || audit->busy ? NEAR_NEVER : next_due_locked(audit);
    near__unlock(&audit->lock);
    if (due != NEAR_NEVER)
        near__timer_arm_by(&audit->client->scheduler, &audit->timer, due);
}

/* Put a sample where it waits next.  False: no room, or its cache is being closed.  The caller holds the cache. */
static bool
enqueue(struct near__audit *audit, const struct sample *sample)
{
    struct queue  *queue = &audit->queues[sample->suspect ? SUSPECTED : sample->look];
    struct sample *place = NULL;
    bool           alone;

    near__lock(&audit->lock);
    alone = queue->n == 0;
    if (!audit->closed && !sample->cache->audit_over)
        place = queue_add(queue);
    if (place != NULL)
        *place = *sample;
    near__unlock(&audit->lock);
    if (place != NULL && alone)
        arm(audit);
    return place != NULL;
}

/* ---- a hit */

/* Decoded, and its bytes not kept: nothing to compare with what lies in L2. */
static bool
is_without_bytes(const near_value *value)
{
    const struct near__object *object = near__value_object(value);

    return object != NULL && object->bytes_size == 0;
}

static bool
take_sample(near_cache *cache, uint64_t hash, near_bytes key, const near_value *value)
{
    struct near__audit *audit = cache->client->audit;
    struct sample       sample;

    if (key.size > KEY_MAX || is_without_bytes(value))
        return false;
    sample.cache    = cache;
    sample.hash     = hash;
    sample.digest   = near__hash_keyed(&cache->client->secret, near__value_data(value));
    sample.taken    = near__client_now(cache->client);
    sample.due      = near__time_after(sample.taken, audit->delay);
    sample.look     = FIRST;
    sample.suspect  = false;
    sample.key_size = (uint16_t)key.size;
    memcpy(sample.key, key.data, key.size);
    return enqueue(audit, &sample);
}

void
near__audit_hit(near_cache *cache, uint64_t hash, near_bytes key, const near_value *value)
{
    /* Multiples of the golden ratio: evenly one in N, and in step with no pattern of keys. */
    static _Thread_local uint64_t drawn;

    drawn += UINT64_C(0x9E3779B97F4A7C15);
    if (drawn <= cache->client->audit->threshold && !take_sample(cache, hash, key, value))
        near__count(cache, NEAR__audit_skipped, 1);
}

/* ---- looking */

static near_bytes
key_of(const struct sample *sample)
{
    return (near_bytes){ sample->key, sample->key_size };
}

/* Whether L1 would answer with that very value now. */
static bool
is_held(const struct sample *sample)
{
    near_cache      *cache = sample->cache;
    int64_t          now   = near__client_now_exact(cache->client);
    struct near__hit hit;
    bool             same;

    if (near__cache_gate(cache, now) != NEAR__GATE_OPEN)
        return false;
    hit = near__l1_look(cache, sample->hash, key_of(sample), now);
    if (hit.value == NULL)
        return false;
    same = hit.fresh_until > now &&
           near__hash_keyed(&cache->client->secret, near__value_data(hit.value)) == sample->digest;
    near__value_release(hit.value);
    return same;
}

enum opinion { UNKNOWN, EQUAL, DIFFERENT, GONE };

static enum opinion
opinion_of(const struct sample *sample, const struct near__ask *ask)
{
    switch (ask->found) {
    case NEAR__FOUND:
    case NEAR__STALE:
        if (!ask->entry->negative &&
            near__hash_keyed(&sample->cache->client->secret,
                             (near_bytes){ ask->entry->value, ask->entry->value_size }) == sample->digest)
            return EQUAL;
        return DIFFERENT;
    case NEAR__OUTDATED:
    case NEAR__UNREADABLE:
        return DIFFERENT;
    case NEAR__ABSENT: /* removed behind our back, evicted or expired: L2 does not say which */
    case NEAR__LEASED:
        return GONE;
    default:
        return UNKNOWN;
    }
}

/* What L2 has of each; all of one cache. */
static void
ask_l2(const struct sample *samples, size_t n, enum opinion *opinions)
{
    near_cache      *cache = samples[0].cache;
    struct near__ask asks[BATCH], *pointers[BATCH];
    uint64_t         generation;
    int64_t          now = near__client_now_exact(cache->client);

    for (size_t i = 0; i < n; i++) {
        asks[i]             = (struct near__ask){ .key = key_of(&samples[i]), .hash = samples[i].hash };
        asks[i].label_clock = near__l1_label_clock(cache->l1);
        pointers[i]         = &asks[i];
    }
    near__tier_read(cache, pointers, n, now, near__time_after(now, cache->client->settings.l2_timeout),
                    &generation);
    for (size_t i = 0; i < n; i++) {
        opinions[i] = opinion_of(&samples[i], &asks[i]);
        near__entry_release(&asks[i].entry);
    }
}

static void
suspect(struct near__audit *audit, struct sample *sample)
{
    sample->suspect = true;
    sample->due     = near__time_after(near__client_now(audit->client), SUSPECT_FOR);
    if (!enqueue(audit, sample))
        near__count(sample->cache, NEAR__audit_skipped, 1);
}

/* A sample's look is over, and L1 still had it: on to the next one. */
static void
next_look(struct near__audit *audit, struct sample *sample)
{
    near__count(sample->cache, NEAR__audit_checked, 1);
    if (++sample->look == LOOKS)
        return;
    sample->suspect = false;
    sample->due     = near__time_after(sample->taken, LONG * audit->delay);
    if (!enqueue(audit, sample))
        near__count(sample->cache, NEAR__audit_skipped, 1);
}

static void
confirm(struct near__audit *audit, const struct sample *sample, enum opinion opinion)
{
    if (opinion == GONE) {
        near__count(sample->cache, NEAR__audit_absent, 1);
        return;
    }
    near__count(sample->cache, sample->look == FIRST ? NEAR__audit_stale_1s : NEAR__audit_stale_10s, 1);
    near__log(&audit->client->log, NEAR_LOG_WARN,
              "audit: cache %s: L1 answers with a value that L2 no longer has, %lld ms after it was read",
              sample->cache->name, (long long)((near__client_now(audit->client) - sample->taken) / NEAR_MS));
}

/* All messages that were published before now have been applied, or there is nobody who sends any. */
static bool
messages_are_in(near_client *client)
{
    if (client->coherence == NULL)
        return true;
    return near__coherence_fence(client->coherence,
                                 near__time_after(near__client_now(client), client->settings.l2_timeout),
                                 NULL) == NEAR_OK;
}

/* Samples of one cache, which the caller holds. */
static void
look(struct near__audit *audit, struct sample *samples, size_t n)
{
    enum opinion opinions[BATCH];
    size_t       held     = 0;
    bool         suspects = false, quiet = true;

    for (size_t i = 0; i < n; i++)
        if (is_held(&samples[i])) {
            suspects |= samples[i].suspect;
            samples[held++] = samples[i];
        }
    if (held == 0)
        return;
    ask_l2(samples, held, opinions);
    if (suspects)
        quiet = messages_are_in(audit->client);
    for (size_t i = 0; i < held; i++) {
        struct sample *sample  = &samples[i];
        bool           differs = opinions[i] == DIFFERENT || opinions[i] == GONE;

        if (opinions[i] == UNKNOWN || (differs && sample->suspect && (!quiet || !is_held(sample))))
            continue;
        if (differs && !sample->suspect) {
            suspect(audit, sample);
            continue;
        }
        if (differs)
            confirm(audit, sample, opinions[i]);
        next_look(audit, sample);
    }
}

/* Take due samples of one cache, with a reference to it. */
static size_t
take_due(struct near__audit *audit, struct sample *samples)
{
    int64_t     now   = near__client_now(audit->client);
    near_cache *cache = NULL;
    size_t      n     = 0;

    near__lock(&audit->lock);
    for (unsigned i = 0; i < QUEUES; i++) {
        struct queue *queue = &audit->queues[i];

        for (; n < BATCH && queue->n > 0; queue_drop_first(queue)) {
            struct sample *first = queue_at(queue, 0);

            if (first->cache == NULL)
                continue;
            if (first->due > now || (cache != NULL && first->cache != cache))
                break;
            cache        = first->cache;
            samples[n++] = *first;
        }
    }
    if (cache != NULL)
        atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    near__unlock(&audit->lock);
    return n;
}

static void
run(struct near__job *job, bool cancelled)
{
    struct near__audit *audit  = (struct near__audit *)((char *)job - offsetof(struct near__audit, job));
    near_client        *client = audit->client; /* a reference: the close does not wait for ever */
    struct sample       samples[BATCH];
    size_t              n;

    while (!cancelled && (n = take_due(audit, samples)) > 0) {
        near_cache *cache = samples[0].cache;

        look(audit, samples, n);
        near__cache_release(cache);
    }
    near__lock(&audit->lock);
    audit->busy = false;
    near__unlock(&audit->lock);
    if (!cancelled)
        arm(audit);
    near__client_release(client);
}

/* On the scheduler's thread, which may not wait for L2. */
static void
when_due(void *ctx)
{
    struct near__audit *audit = ctx;
    bool                begin;

    near__lock(&audit->lock);
    begin       = !audit->busy && !audit->closed;
    audit->busy = audit->busy || begin;
    near__unlock(&audit->lock);
    if (!begin)
        return;
    atomic_fetch_add_explicit(&audit->client->refs, 1, memory_order_relaxed);
    if (near__workers_submit(audit->client->workers, &audit->job) == NEAR_OK)
        return;
    near__lock(&audit->lock);
    audit->busy = false;
    near__unlock(&audit->lock); /* no thread to be had: the next sample tries again */
    near__client_release(audit->client);
}

/* ---- life */

near_status
near__audit_open(near_client *client)
{
    static const size_t capacities[QUEUES] = { CAPACITY, CAPACITY, SUSPECTS };
    struct near__audit *audit;

    if (client->settings.audit_sample == 0 || client->ops == NULL)
        return NEAR_OK;
    audit = calloc(1, sizeof(*audit));
    if (audit == NULL)
        return NEAR_ERR_NOMEM;
    audit->client    = client;
    audit->threshold = UINT64_MAX / client->settings.audit_sample;
    audit->delay     = client->settings.audit_delay;
    audit->job.fn    = run;
    near__lock_init(&audit->lock, NEAR__RANK_LEAF);
    near__timer_init(&audit->timer, when_due, audit);
    client->audit = audit;
    for (unsigned i = 0; i < QUEUES; i++) {
        audit->queues[i].samples  = malloc(capacities[i] * sizeof(struct sample));
        audit->queues[i].capacity = capacities[i];
        if (audit->queues[i].samples == NULL)
            return NEAR_ERR_NOMEM;
    }
    /* relaxed: nobody has the client yet */
    atomic_store_explicit(client->plain, 0, memory_order_relaxed);
    return NEAR_OK;
}

void
near__audit_forget(near_cache *cache)
{
    struct near__audit *audit = cache->client->audit;

    if (audit == NULL)
        return;
    near__lock(&audit->lock);
    cache->audit_over = true; /* a look that is under way puts nothing back */
    for (unsigned i = 0; i < QUEUES; i++)
        for (size_t k = 0; k < audit->queues[i].n; k++)
            if (queue_at(&audit->queues[i], k)->cache == cache)
                queue_at(&audit->queues[i], k)->cache = NULL;
    near__unlock(&audit->lock);
}

void
near__audit_close(near_client *client)
{
    struct near__audit *audit = client->audit;

    if (audit == NULL)
        return;
    near__lock(&audit->lock);
    audit->closed = true;
    for (unsigned i = 0; i < QUEUES; i++)
        audit->queues[i].n = 0;
    near__unlock(&audit->lock);
}

void
near__audit_free(near_client *client)
{
    struct near__audit *audit = client->audit;

    if (audit == NULL)
        return;
    for (unsigned i = 0; i < QUEUES; i++)
        free(audit->queues[i].samples);
    near__lock_fini(&audit->lock);
    free(audit);
    client->audit = NULL;
}
