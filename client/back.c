/*
 * See back.h.
 *
 * Settling.  When the store has a change, L2 must hold that value or none, and so must every L1.  Meanwhile a reader of another
 * instance may have loaded the store's old value, after L2 had lost ours; another instance's change may lie there; our own put may have
 * failed.  So what lies in L2 is looked at: if it is our put, by its stamp, it has been there all the time, and it is put anew, under a
 * new stamp, in the place of that one.  Else, or if that is refused, it is removed.  In both cases the others are told: whoever loads
 * then gets what the store has.  This is the protocol of marks (doc/architecture.md), with the
 * value as its own mark: two instances that write one key cannot leave behind the one that the store has not.  L1's bracket lies around
 * it, so nothing read before remains there.
 *
 * Why a new stamp.  Our entry may be refreshed elsewhere (XFetch, grace) while the store has the old value still: that load may replace
 * the entry under its stamp, after we have looked.  With the new stamp L2 refuses it, or, if it was quicker, refuses ours, and we remove.  Why
 * the others are told: a load that L2 was not asked for (a hedge, a lease that was not waited for) fills an L1 alone; the message moves the
 * fence that it captured before it asked the store.  Generation, labels and end stay as they are: a clear, an invalidated tag or a TTL of
 * meanwhile holds for the new stamp, too.  A put that comes after its settling would undo it: so a write is settled only
 * when nobody is between the table and the end of his cache step (key->writers).
 *
 * A change leaves the table and the journal when it is settled, not before: a crash in between repeats it.
 *
 * Poison.  Who is refused waits longer each time (the queues are by tries), and flies in a smaller batch each time it is to blame, so that a
 * store that refuses whole batches refuses the guilty one alone in the end.  Whether it is to blame: it is refused for what it is, or
 * the store has taken others since it was refused last.  So an outage puts nothing aside.
 *
 * No lock is held while the store, L2, the bus or the journal's disk are at work.
 */
#include "back.h"

#include <stdlib.h>
#include <string.h>

#include "announce.h"
#include "base/backoff.h"
#include "base/hash_keyed.h"
#include "cache.h"
#include "codec.h"
#include "journal.h"
#include "tier.h"
#include "write.h"

#define RETRY_FIRST (20 * NEAR_MS)
#define RETRY_MOST  (5 * NEAR__SEC) /* a store that is back gets all within that */
#define POOL_PAUSE  (10 * NEAR_MS)  /* until a pool that had no thread for us is asked again */
#define FULL_PAUSE  (5 * NEAR_MS)   /* until a journal without room is asked again */

enum { SLICE = 32 }; /* seats that leave under one hold of the table's lock */

enum outcome {
    STORED,     /* the store has it */
    RETRY,      /* it will be tried again */
    DEAD,       /* it was put aside */
    DROPPED,    /* the store found that somebody else was first, and keeps his */
    SUPERSEDED, /* it failed, and there is a newer one */
};

/* One key of a flight. */
struct seat {
    struct near__dirty_key   *key;
    struct near__dirty_write *write;
    enum outcome              outcome;
    near_status               status;     /* the store's */
    bool                      was_stored; /* the store had it already */
    bool                      leaves;     /* the table */
    bool                      settles;    /* the caches */
    bool                      clean;      /* what lies in L2 is ours, and stays */
    bool                      under_way;  /* a newer change of ours was, when L2 was asked about a conflict */
    struct near__l1_write     token;
    struct near__ask          ask;
    struct near__entry       *settled; /* what lies in L2 by then, with its stamp; a reference, or NULL */
};

enum stage { BOARDING, LANDING };

struct near__flight_of_writes {
    struct near__back         *back;
    struct near__job           job;
    bool                       busy; /* table's lock, as the next three */
    enum stage                 stage;
    bool                       inside; /* near__store_begin() has not returned */
    bool                       answered;
    int64_t                    asked; /* when the store was called */
    size_t                     n;
    struct seat               *seats;
    struct near__store_item   *items; /* those of the seats that the store is given */
    struct seat              **of_items;
    struct near__ask         **asks;
    near_bytes                *keys;
    struct seat              **of_keys;
    uint64_t                  *done;
    struct near__dirty_write **gone;
};

static void launch_locked(struct near__back *back);

/* ---- reading */

bool
near__back_answers_slowly(near_cache *cache, uint64_t hash, near_bytes key, near_value **value,
                          near_status *status)
{
    struct near__entry *entry = near__dirty_find(&cache->back->dirty, hash, key);

    if (entry == NULL)
        return false;
    near__count(cache, NEAR__requests, 1);
    near__count(cache, NEAR__write_back_reads, 1);
    if (near__decodes(cache) && !entry->negative && entry->object == NULL) { /* of a former life */
        near__entry_release(&entry);
        *status = NEAR_ERR_DECODE;
        return true;
    }
    *status = near__hand_out(entry, NEAR_FROM_L1, value);
    return true;
}

/* ---- queues */

static unsigned
level_of(const struct near__dirty_key *key)
{
    unsigned level = NEAR__BACK_FRESH + key->tries;

    if (key->stored && key->tries == 0)
        return NEAR__BACK_STORED;
    return level < NEAR__BACK_LEVELS ? level : NEAR__BACK_LEVELS - 1;
}

static void
queue_locked(struct near__back *back, struct near__dirty_key *key, int64_t due) NEAR__NEEDS(back->dirty.lock)
{
    struct near__back_queue *queue = &back->queues[level_of(key)];

    if (queue->n > 0 && due < queue->due)
        due = queue->due; /* in order: the delays of a level differ by chance alone */
    key->place   = NEAR__DIRTY_QUEUED;
    key->due     = due;
    key->behind  = NULL;
    queue->due   = due;
    *queue->last = key;
    queue->last  = &key->behind;
    queue->n++;
}

static struct near__dirty_key *
unqueue_locked(struct near__back_queue *queue)
{
    struct near__dirty_key *key = queue->first;

    queue->first = key->behind;
    if (queue->first == NULL)
        queue->last = &queue->first;
    queue->n--;
    key->place = NEAR__DIRTY_IDLE;
    return key;
}

/* All that waits is due: somebody waits for it. */
static void
hurry_locked(struct near__back *back) NEAR__NEEDS(back->dirty.lock)
{
    int64_t now = near__client_now(back->cache->client);

    for (size_t i = 0; i < NEAR__BACK_LEVELS; i++) {
        for (struct near__dirty_key *key = back->queues[i].first; key != NULL; key = key->behind)
            if (key->due > now)
                key->due = now;
        if (back->queues[i].due > now)
            back->queues[i].due = now;
    }
}

/* When the level's first may fly.  What is stored is done but for its caches, and does not wait; nor does a full batch, nor anything
 * while others wait for room. */
static int64_t
due_locked(const struct near__back *back, size_t level) NEAR__NEEDS(back->dirty.lock)
{
    const struct near__back_queue *queue    = &back->queues[level];
    const struct near__settings   *settings = &back->cache->settings;

    if (queue->first == NULL)
        return NEAR_NEVER;
    if (level == NEAR__BACK_STORED)
        return 0;
    if (level == NEAR__BACK_FRESH &&
        (queue->n >= settings->write_back_batch || back->dirty.bytes > settings->write_back_max_pending / 2))
        return 0;
    return queue->first->due;
}

static size_t
first_due_locked(const struct near__back *back, int64_t *due) NEAR__NEEDS(back->dirty.lock)
{
    size_t first = 0;

    *due = NEAR_NEVER;
    for (size_t i = 0; i < NEAR__BACK_LEVELS; i++) {
        int64_t one = due_locked(back, i);

        if (one < *due) {
            *due  = one;
            first = i;
        }
    }
    return first;
}

/* A flight for what is due, else the timer for what will be. */
static void
go_on_locked(struct near__back *back) NEAR__NEEDS(back->dirty.lock)
{
    int64_t due;

    if (!back->started || back->stopped)
        return;
    first_due_locked(back, &due);
    if (due == NEAR_NEVER)
        return;
    if (due <= near__client_now(back->cache->client))
        launch_locked(back);
    else
        back->unarmed = near__timer_arm_by(&back->cache->client->scheduler, &back->timer, due) != NEAR_OK;
}

static void
time_has_come(void *ctx)
{
    struct near__back *back = ctx;

    near__lock(&back->dirty.lock);
    go_on_locked(back);
    near__unlock(&back->dirty.lock);
}

static void
launch_locked(struct near__back *back) NEAR__NEEDS(back->dirty.lock)
{
    near_client *client = back->cache->client;
    size_t       i      = 0;

    while (i < back->flights_n && back->flights[i].busy)
        i++;
    if (i == back->flights_n)
        return; /* the first that lands goes on */
    back->flights[i].stage = BOARDING;
    if (near__workers_submit(client->workers, &back->flights[i].job) != NEAR_OK) {
        back->unarmed = near__timer_arm_by(&client->scheduler, &back->timer,
                                           near__time_after(near__client_now(client), POOL_PAUSE)) != NEAR_OK;
        return;
    }
    back->flights[i].busy = true;
    back->flying++;
    atomic_fetch_add_explicit(&back->cache->refs, 1, memory_order_relaxed);
}

/* ---- boarding */

/* The more often it was to blame, the fewer fly with it; before it is put aside it flies alone. */
static size_t
company_of(const struct near__back *back, const struct near__dirty_key *key)
{
    const struct near__settings *settings = &back->cache->settings;
    size_t                       most     = settings->write_back_batch;

    most = key->strikes < 16 ? most >> key->strikes : 1;
    if (settings->write_back_retries != 0 && key->strikes + 1 >= settings->write_back_retries &&
        key->strikes > 0)
        most = 1;
    return most > 0 ? most : 1;
}

/* False: it is for the next flight, which has fewer seats. */
static bool
seat_locked(struct near__flight_of_writes *flight, struct near__back_queue *queue, size_t *most)
{
    struct near__back      *back = flight->back;
    struct near__dirty_key *key  = queue->first;
    struct seat            *seat = &flight->seats[flight->n];
    size_t                  company;

    if (key->first == NULL) {
        unqueue_locked(queue);
        near__dirty_unlink_locked(&back->dirty, key); /* its only write was withdrawn */
        free(key);
        return true;
    }
    company = company_of(back, key);
    if (flight->n > 0 && company <= flight->n)
        return false;
    *most = company < *most ? company : *most;
    unqueue_locked(queue);
    if (key->tries == 0)
        key->stored_seen = back->stored;
    key->place   = NEAR__DIRTY_FLYING;
    key->touched = true;
    *seat        = (struct seat){ .key = key, .write = key->first, .was_stored = key->stored };
    seat->ask    = (struct near__ask){ .key = near__dirty_key_of(key), .hash = key->hash };
    flight->n++;
    return true;
}

/* What is due, of one level after the other; but those that are stored fly alone: with a seat less a full batch would leave one behind,
 * which then waits for its time. */
static void
board_locked(struct near__flight_of_writes *flight) NEAR__UNFOLLOWED /* flight->back has it */
{
    struct near__back *back = flight->back;
    int64_t            now  = near__client_now(back->cache->client), due;
    size_t             most = back->cache->settings.write_back_batch;

    flight->n = 0;
    while (!back->stopped && flight->n < most) {
        size_t                   level = first_due_locked(back, &due);
        struct near__back_queue *queue = &back->queues[level];

        if (due > now)
            return;
        while (flight->n < most && queue->first != NULL && (due == 0 || queue->first->due <= now))
            if (!seat_locked(flight, queue, &most))
                return;
        if (level == NEAR__BACK_STORED && flight->n > 0)
            return;
    }
}

/* Is what lies in L2 somebody else's?  Asked where that may be: mostly nobody is suspect, and nothing is asked. */
static bool
is_suspect_locked(const struct near__back *back, const struct seat *seat) NEAR__NEEDS(back->dirty.lock)
{
    const near_client *client = back->cache->client;

    if (back->cache->bare || client->ops == NULL)
        return false;
    return seat->key->suspect || seat->write->sequence <= back->suspect_until ||
           /* while a put of ours is on its way there may be anything before it, or of our own */
           (client->traits.shared && client->coherence == NULL && seat->key->writers == 0);
}

static int64_t
l2_deadline(const near_cache *cache)
{
    return near__time_after(near__client_now(cache->client), cache->client->settings.l2_timeout);
}

/* The cache's generation. */
static uint64_t
read_l2(near_cache *cache, struct near__ask **asks, size_t n)
{
    uint64_t generation = 0;

    if (n > 0)
        near__tier_read(cache, asks, n, near__client_now(cache->client), l2_deadline(cache), &generation);
    return generation;
}

static bool
lies_there(const struct seat *seat)
{
    return (seat->ask.found == NEAR__FOUND || seat->ask.found == NEAR__STALE) && seat->write->stamp != 0 &&
           seat->ask.stamp == seat->write->stamp;
}

/* The read's answer used up. */
static void
forget_answer(struct seat *seat)
{
    near__entry_release(&seat->ask.entry);
    seat->ask = (struct near__ask){ .key = seat->ask.key, .hash = seat->ask.hash };
}

/* What we were told of may have been our own change (the server tells of any): the one before this is no conflict, nor is an absence where
 * an erase is to be, or where a newer change of ours may be on its way or have been there.  Without a bus an absence is mostly an eviction. */
static bool
is_of_nobody_else(near_client *client, const struct seat *seat)
{
    switch (seat->ask.found) {
    case NEAR__FOUND:
    case NEAR__STALE:
        return near__stamp_is_own(client, seat->ask.stamp);
    case NEAR__ABSENT:
        return client->coherence == NULL || seat->write->entry->negative || seat->under_way;
    default:
        return seat->ask.found == NEAR__UNREACHABLE;
    }
}

/* Whether there is a newer change of ours: L2 may have it, or be about to, and an erase of ours is an absence. */
static bool
has_newer_locked(const struct seat *seat)
{
    return seat->key->writers > 0 || seat->key->last != seat->write;
}

/* seat->clean: nobody else has written it, as far as can be known. */
static void
find_conflicts(struct near__flight_of_writes *flight)
{
    struct near__back *back = flight->back;
    size_t             n    = 0;

    near__lock(&back->dirty.lock);
    for (size_t i = 0; i < flight->n; i++) {
        struct seat *seat = &flight->seats[i];

        seat->clean     = seat->was_stored || !is_suspect_locked(back, seat);
        seat->under_way = has_newer_locked(seat);
        if (!seat->clean)
            flight->asks[n++] = &seat->ask;
    }
    near__unlock(&back->dirty.lock);
    if (n == 0)
        return;
    read_l2(back->cache, flight->asks, n);
    near__lock(&back->dirty.lock);
    for (size_t i = 0; i < flight->n; i++) /* or came while L2 was asked */
        flight->seats[i].under_way |= has_newer_locked(&flight->seats[i]);
    near__unlock(&back->dirty.lock);
    for (size_t i = 0; i < flight->n; i++) {
        struct seat *seat = &flight->seats[i];

        if (seat->clean)
            continue;
        seat->clean = is_of_nobody_else(back->cache->client, seat);
        near__count(back->cache, NEAR__write_back_conflicts, !seat->clean);
        forget_answer(seat);
    }
}

static size_t
make_items(struct near__flight_of_writes *flight)
{
    size_t n = 0;

    for (size_t i = 0; i < flight->n; i++) {
        struct seat              *seat  = &flight->seats[i];
        const struct near__entry *entry = seat->write->entry;

        if (seat->was_stored)
            continue;
        flight->of_items[n] = seat;
        flight->items[n++]  = (struct near__store_item){
             .key  = near__dirty_key_of(seat->key),
             .data = { entry->negative         ? NULL
                       : entry->value_size > 0 ? entry->value
                                               : "",
                       entry->value_size },
             .origin   = flight->back->origin,
             .sequence = seat->write->sequence,
             .conflict = !seat->clean,
        };
    }
    return n;
}

/* The store is never ahead of the journal: else, after a crash, an older write than the store has would be given to it. */
static near_status
sync_journal(const struct near__flight_of_writes *flight)
{
    struct near__back *back   = flight->back;
    uint64_t           newest = 0;

    if (back->journal == NULL)
        return NEAR_OK;
    for (size_t i = 0; i < flight->n; i++)
        if (flight->seats[i].write->sequence > newest)
            newest = flight->seats[i].write->sequence;
    return near__journal_sync(
        back->journal, newest,
        near__time_after(near__client_now(back->cache->client), back->cache->settings.store_timeout));
}

/* ---- the store's answers */

static void
store_done(void *ctx, struct near__store_item *items, size_t n)
{
    struct near__flight_of_writes *flight = ctx;
    struct near__back             *back   = flight->back;

    near__time(back->cache, NEAR__TIME_store, near__client_now(back->cache->client) - flight->asked);
    near__lock(&back->dirty.lock);
    for (size_t i = 0; i < n; i++)
        flight->of_items[i]->status = items[i].status;
    flight->answered = true;
    flight->stage    = LANDING;
    /* if the pool is closed, so are we: what is in the journal is done again by the next process */
    if (!flight->inside && near__workers_submit(back->cache->client->workers, &flight->job) != NEAR_OK) {
        near__unlock(&back->dirty.lock);
        flight->job.fn(&flight->job, true);
        return;
    }
    near__unlock(&back->dirty.lock);
}

/* An answer that nobody waited for any more: if the write has not been given out again, it need not be. */
static void
store_late(void *ctx, const struct near__store_item *item)
{
    struct near__back      *back = ((struct near__flight_of_writes *)ctx)->back;
    struct near__dirty_key *key;

    if (item->status != NEAR_OK)
        return;
    near__lock(&back->dirty.lock);
    key = near__dirty_key_locked(&back->dirty, near__hash_keyed(&back->cache->client->secret, item->key),
                                 item->key);
    if (key != NULL && key->first != NULL && key->first->sequence == item->sequence &&
        key->place == NEAR__DIRTY_QUEUED && key->first == key->last && !key->stored) {
        key->stored = true;
        back->stored++;
        near__count(back->cache, NEAR__write_back_stored, 1);
    }
    near__unlock(&back->dirty.lock);
}

/* The store is called, on this thread, with no step of ours under way.  True: the answers are there. */
static bool
ask_store(struct near__flight_of_writes *flight, size_t n, near_status status)
{
    struct near__back              *back   = flight->back;
    near_cache                     *cache  = back->cache;
    const struct near__store_ending ending = { store_done, store_late, flight };
    bool                            answered;

    if (n == 0)
        return true;
    near__lock(&back->dirty.lock);
    flight->inside   = true;
    flight->answered = false;
    flight->asked    = near__client_now(cache->client);
    near__unlock(&back->dirty.lock);
    if (status == NEAR_OK)
        status = near__store_begin(cache, flight->items, n,
                                   near__time_after(flight->asked, cache->settings.store_timeout), &ending);
    near__lock(&back->dirty.lock);
    flight->inside = false;
    answered       = flight->answered || status != NEAR_OK;
    for (size_t i = 0; status != NEAR_OK && i < n; i++)
        flight->of_items[i]->status = status;
    near__unlock(&back->dirty.lock);
    return answered;
}

/* ---- landing */

static bool
is_own_fault(const struct near__back *back, const struct near__dirty_key *key, near_status status)
{
    if (status != NEAR_ERR_UNAVAILABLE && status != NEAR_ERR_TIMEOUT && status != NEAR_ERR_BUSY &&
        status != NEAR_ERR_NOMEM && status != NEAR_ERR_CLOSED)
        return true;
    return back->stored != key->stored_seen;
}

/* Nobody is on his way into the caches with an older value, and there is no newer one. */
static bool
is_last_locked(const struct seat *seat)
{
    return seat->key->last == seat->write && seat->key->writers == 0;
}

static void
judge_locked(struct near__back *back, struct seat *seat) NEAR__NEEDS(back->dirty.lock)
{
    const struct near__settings *settings = &back->cache->settings;
    struct near__dirty_key      *key      = seat->key;

    if (seat->status == NEAR_OK) {
        seat->outcome = STORED;
    } else if (seat->status == NEAR_ERR_CONFLICT) {
        seat->outcome = DROPPED;
    } else {
        key->tries += key->tries < UINT32_MAX;
        key->strikes += is_own_fault(back, key, seat->status);
        key->stored_seen = back->stored;
        seat->outcome    = RETRY;
        if (settings->write_back_coalesce && key->last != seat->write && seat->write->waiter == NULL)
            seat->outcome = SUPERSEDED;
        else if (settings->write_back_retries != 0 && key->strikes >= settings->write_back_retries)
            seat->outcome = DEAD;
    }
    seat->leaves  = seat->outcome != RETRY;
    seat->settles = seat->leaves && is_last_locked(seat);
}

/* Into the dead letters.  False: they do not take it, so it stays. */
static bool
bury(struct near__back *back, const struct seat *seat)
{
    near_cache                       *cache  = back->cache;
    const struct near__entry         *entry  = seat->write->entry;
    const struct near__journal_record record = {
        .kind  = entry->negative ? NEAR__JOURNAL_ERASE : NEAR__JOURNAL_PUT,
        .cache = near_key(cache->name),
        .key   = near__dirty_key_of(seat->key),
        .data  = { entry->value, entry->value_size },
    };
    near_status status = NEAR_OK;

    if (back->journal != NULL)
        status = near__journal_dead(back->journal, &record, seat->write->sequence, seat->status);
    if (status == NEAR_OK)
        near__log(&cache->client->log, NEAR_LOG_ERROR,
                  "cache %s: the store refused a change %u times (%s): it is %s", cache->name,
                  seat->key->tries, near_status_text(seat->status),
                  back->journal != NULL ? "in the journal's dead letters" : "lost, for there is no journal");
    else
        near__log(&cache->client->log, NEAR_LOG_ERROR,
                  "cache %s: the store refuses a change (%s), and it cannot be put aside (%s): it will be "
                  "tried again",
                  cache->name, near_status_text(seat->status), near_status_text(status));
    return status == NEAR_OK;
}

/* What of ours lies in L2 gets a new stamp: whoever was to replace it under the old one is refused.  See the top. */
static void
restamp(struct near__flight_of_writes *flight)
{
    near_cache *cache = flight->back->cache;
    size_t      n = 0, ours = 0;
    uint64_t    generation;
    int64_t     now;

    for (size_t i = 0; i < flight->n; i++) {
        struct seat *seat = &flight->seats[i];

        seat->clean = false;
        if (seat->settles && seat->outcome == STORED && seat->write->stamp != 0 && !cache->bare &&
            cache->client->ops != NULL)
            flight->asks[n++] = &seat->ask;
    }
    generation = read_l2(cache, flight->asks, n);
    now        = near__client_now(cache->client);
    for (size_t i = 0; i < flight->n; i++) {
        struct seat *seat = &flight->seats[i];

        if (seat->ask.found != NEAR__FOUND || !lies_there(seat) || seat->ask.soft_until <= now)
            continue;
        seat->ask.lease      = seat->ask.stamp;
        seat->ask.ttl        = seat->ask.soft_until == NEAR_NEVER ? 0 : seat->ask.soft_until - now;
        flight->asks[ours++] = &seat->ask;
    }
    if (ours > 0)
        near__tier_fill(cache, flight->asks, ours, generation, l2_deadline(cache));
    for (size_t i = 0; i < flight->n; i++) {
        struct seat *seat = &flight->seats[i];

        seat->clean = seat->ask.stored;
        if (seat->clean) {
            seat->settled       = seat->ask.entry; /* which was found, and stored again */
            seat->ask.entry     = NULL;
            seat->settled->pool = seat->write->entry->pool;
            if (near__decode_like(cache, seat->settled, seat->write->entry->object) != NEAR_OK)
                near__entry_release(&seat->settled);
        }
        forget_answer(seat);
    }
}

/* Those whose entry stays (`clean`) are announced, the others are removed and announced; what cannot be is owed. */
static void
tell_of(struct near__flight_of_writes *flight, bool clean)
{
    near_cache *cache = flight->back->cache;
    size_t      n     = 0;

    for (size_t i = 0; i < flight->n; i++) {
        struct seat *seat = &flight->seats[i];

        if (!seat->settles || seat->clean != clean)
            continue;
        flight->of_keys[n] = seat;
        flight->keys[n++]  = seat->ask.key;
    }
    for (size_t at = 0, part; at < n; at += part) {
        near_status status;

        part = near__message_fit(flight->keys + at, n - at);
        part = part < NEAR_L2_BATCH ? part : NEAR_L2_BATCH;
        if (clean)
            status = near__announce_keys(cache, flight->keys + at, part, l2_deadline(cache));
        else
            status = near__write_settle(cache, flight->keys + at, part);
        near__count(cache, NEAR__write_back_settled, clean ? 0 : part);
        for (size_t i = at; status != NEAR_OK && i < at + part; i++)
            near__recovery_keep(cache, flight->keys[i], flight->of_keys[i]->ask.hash);
    }
}

static void
settle_in_l2(struct near__flight_of_writes *flight)
{
    restamp(flight);
    tell_of(flight, false);
    if (flight->back->cache->client->coherence != NULL)
        tell_of(flight, true);
}

/* The caches of what the store has now.  See the top. */
static void
settle(struct near__flight_of_writes *flight)
{
    near_cache        *cache  = flight->back->cache;
    const near_client *client = cache->client;
    bool               alone  = client->ops == NULL && client->coherence == NULL;

    for (size_t i = 0; i < flight->n; i++)
        if (flight->seats[i].settles)
            flight->seats[i].token =
                near__l1_write_begin(cache->l1, flight->seats[i].ask.hash, flight->seats[i].ask.key);
    if (!alone)
        settle_in_l2(flight);
    for (size_t i = 0; i < flight->n; i++) {
        struct seat        *seat = &flight->seats[i];
        struct near__entry *admit;

        if (!seat->settles)
            continue;
        admit = alone ? seat->write->entry : seat->settled;
        if (seat->outcome != STORED || !seat->write->kept)
            admit = NULL;
        near__l1_write_end(cache->l1, seat->token, seat->ask.hash, seat->ask.key, admit,
                           near__client_now(client));
        near__entry_release(&seat->settled);
    }
}

static void
tell_waiter(struct near__dirty_write *write, near_status status)
{
    if (write->waiter == NULL)
        return;
    write->waiter->status = status;
    write->waiter->over   = true;
    write->waiter         = NULL;
}

/* The key's next write, if there is one; else the key goes.  `pause`: its predecessor failed. */
static void
next_of_key_locked(struct near__back *back, struct near__dirty_key *key, bool pause)
    NEAR__NEEDS(back->dirty.lock)
{
    const struct near__settings *settings = &back->cache->settings;
    int64_t                      now      = near__client_now(back->cache->client);

    if (key->first == NULL) {
        near__dirty_unlink_locked(&back->dirty, key);
        free(key);
        return;
    }
    key->strikes = 0;
    key->tries   = pause ? 1 : 0;
    if (pause)
        queue_locked(back, key, near__time_after(now, near__backoff(1, RETRY_FIRST, RETRY_MOST)));
    else
        queue_locked(back, key,
                     settings->write_back_coalesce
                         ? near__time_after(key->first->entry->born, settings->write_back_interval)
                         : now);
}

/* It leaves, or stays for another try, or (the store has it, but its caches cannot be settled yet) for that. */
static void
close_seat_locked(struct near__back *back, struct seat *seat, size_t *gone,
                  struct near__dirty_write **gone_writes) NEAR__NEEDS(back->dirty.lock)
{
    struct near__dirty_key *key = seat->key;
    int64_t                 now = near__client_now(back->cache->client);

    key->place = NEAR__DIRTY_IDLE;
    if (!seat->leaves) {
        key->tries += key->tries == 0;
        queue_locked(back, key, near__time_after(now, near__backoff(key->tries, RETRY_FIRST, RETRY_MOST)));
        return;
    }
    if (!seat->settles && key->last == seat->write) {
        key->stored = true;
        key->tries = key->strikes = 0;
        if (seat->outcome != STORED) {
            seat->write->stamp = 0; /* the store has not got it: settling removes it */
            seat->write->kept  = false;
            tell_waiter(seat->write, seat->status);
        }
        if (key->writers == 0)
            queue_locked(back, key, now); /* he who was on his way has arrived since */
        return;
    }
    key->stored = false;
    tell_waiter(seat->write, seat->outcome == STORED ? NEAR_OK : seat->status);
    gone_writes[(*gone)++] = near__dirty_pop_locked(&back->dirty, key);
    next_of_key_locked(back, key, seat->outcome == SUPERSEDED);
}

static void
count_outcomes_locked(struct near__flight_of_writes *flight)
{
    struct near__back *back = flight->back;

    for (size_t i = 0; i < flight->n; i++) {
        const struct seat *seat = &flight->seats[i];

        if (seat->was_stored)
            continue; /* counted before */
        back->stored += seat->outcome == STORED;
        back->dead += seat->outcome == DEAD;
        near__count(back->cache, NEAR__write_back_stored, seat->outcome == STORED);
        near__count(back->cache, NEAR__write_back_dead, seat->outcome == DEAD);
        near__count(back->cache, NEAR__write_back_retries, seat->outcome == RETRY);
    }
}

/* Under the lock, so that the writes of a key are done in their order: else a crash could bring back an older one alone. */
static void
done_locked(struct near__back *back, const uint64_t *sequences, size_t n) NEAR__NEEDS(back->dirty.lock)
{
    if (back->journal != NULL && n > 0)
        near__journal_done(back->journal, sequences, n);
}

/* The next few seats leave.  What they held is freed behind the lock: writers wait for it for a few microseconds at most, which they
 * spend spinning. */
static size_t
close_some(struct near__flight_of_writes *flight, size_t at)
{
    struct near__back *back = flight->back;
    size_t             gone = 0, end = flight->n - at < SLICE ? flight->n : at + SLICE;

    near__lock(&back->dirty.lock);
    for (size_t i = at; i < end; i++)
        close_seat_locked(back, &flight->seats[i], &gone, flight->gone);
    for (size_t i = 0; i < gone; i++)
        flight->done[i] = flight->gone[i]->sequence;
    done_locked(back, flight->done, gone);
    near__unlock(&back->dirty.lock);
    for (size_t i = 0; i < gone; i++) {
        near__entry_release(&flight->gone[i]->entry);
        free(flight->gone[i]);
    }
    return end;
}

static void
land(struct near__flight_of_writes *flight)
{
    struct near__back *back = flight->back;

    near__lock(&back->dirty.lock);
    for (size_t i = 0; i < flight->n; i++)
        judge_locked(back, &flight->seats[i]);
    near__unlock(&back->dirty.lock);
    for (size_t i = 0; i < flight->n; i++)
        if (flight->seats[i].outcome == DEAD && !bury(back, &flight->seats[i])) {
            flight->seats[i].outcome = RETRY;
            flight->seats[i].leaves = flight->seats[i].settles = false;
        }
    settle(flight);
    near__lock(&back->dirty.lock);
    count_outcomes_locked(flight);
    near__unlock(&back->dirty.lock);
    for (size_t at = 0; at < flight->n;)
        at = close_some(flight, at);
}

/* ---- a flight's turns in the pool
 *
 * What it does there, but for the call of the store, is steps: a close lets nobody begin another one and waits for those under way.  So
 * a store that comes back after everything is closed finds nothing left to do. */

static bool
step_begins(struct near__back *back)
{
    bool may;

    near__lock(&back->dirty.lock);
    may = !back->over;
    back->steps += may;
    near__unlock(&back->dirty.lock);
    return may;
}

static void
step_ends(struct near__back *back)
{
    near__lock(&back->dirty.lock);
    back->steps--;
    pthread_cond_broadcast(&back->moved);
    near__unlock(&back->dirty.lock);
}

static void
leave_pool(struct near__flight_of_writes *flight)
{
    struct near__back *back  = flight->back;
    near_cache        *cache = back->cache;

    near__lock(&back->dirty.lock);
    flight->busy = false;
    back->flying--;
    go_on_locked(back);
    pthread_cond_broadcast(&back->moved);
    near__unlock(&back->dirty.lock);
    near__cache_release(cache);
}

/* Two at a time are seldom enough: who boards sends the next one.  False: the answers will bring us back. */
static bool
depart(struct near__flight_of_writes *flight)
{
    struct near__back *back   = flight->back;
    near_status        status = NEAR_OK;
    size_t             n      = 0;

    flight->n = 0;
    if (!step_begins(back))
        return true;
    near__lock(&back->dirty.lock);
    board_locked(flight);
    if (flight->n > 0)
        go_on_locked(back);
    near__unlock(&back->dirty.lock);
    if (flight->n > 0) {
        find_conflicts(flight);
        n      = make_items(flight);
        status = sync_journal(flight);
    }
    step_ends(back);
    return ask_store(flight, n, status);
}

static void
work(struct near__job *job, bool cancelled)
{
    struct near__flight_of_writes *flight =
        (struct near__flight_of_writes *)(void *)((char *)job - offsetof(struct near__flight_of_writes, job));

    if (!cancelled && flight->stage == BOARDING && !depart(flight))
        return;
    if (!cancelled && flight->n > 0 && step_begins(flight->back)) {
        land(flight);
        step_ends(flight->back);
    }
    leave_pool(flight);
}

/* ---- accepting */

struct change {
    near_cache               *cache;
    near_bytes                key;
    uint64_t                  hash;
    bool                      put;
    struct near__dirty_key   *node; /* a spare, until it is linked */
    struct near__dirty_write *write;
    struct near__dirty_waiter waiter;
    uint64_t                  sequence; /* of the write, which is the table's from then on */
    bool                      waits;    /* for the store */
    struct near__dirty_write *old;      /* has left the table for it: to be freed */
};

/* The newest write of the key, where a newer one may take its place: the store has not been given it. */
static struct near__dirty_write *
replaceable_locked(const near_cache *cache, const struct near__dirty_key *key)
{
    struct near__dirty_write *last = key != NULL ? key->last : NULL;

    if (last == NULL || last->waiter != NULL || (key->place == NEAR__DIRTY_FLYING && key->first == last))
        return NULL;
    return cache->settings.write_back_coalesce || key->stored ? last : NULL;
}

static bool
has_room_locked(struct near__back *back, const struct near__dirty_write *write,
                const struct near__dirty_write *old) NEAR__NEEDS(back->dirty.lock)
{
    size_t bytes = back->dirty.bytes - (old != NULL ? old->cost : 0);

    if (old != NULL && write->cost <= old->cost)
        return true;
    return bytes == 0 || bytes + write->cost <= back->cache->settings.write_back_max_pending;
}

static near_status
number_locked(struct near__back *back, const struct change *change) NEAR__NEEDS(back->dirty.lock)
{
    struct near__dirty_write *write = change->write;

    if (back->journal == NULL) {
        write->sequence = near__store_sequence(back->cache->client);
        return NEAR_OK;
    }
    return near__journal_write(back->journal,
                               &(struct near__journal_record){
                                   .kind  = change->put ? NEAR__JOURNAL_PUT : NEAR__JOURNAL_ERASE,
                                   .cache = near_key(back->cache->name),
                                   .key   = change->key,
                                   .data  = { write->entry->value, write->entry->value_size },
                               },
                               &write->sequence);
}

/* Into the table.  The journal knows it already, so that what it replaces is done with. */
static void
insert_locked(struct near__back *back, struct change *change, struct near__dirty_key *key,
              struct near__dirty_write *old) NEAR__NEEDS(back->dirty.lock)
{
    struct near__dirty_write *write = change->write;

    if (key == NULL) {
        key          = change->node;
        change->node = NULL;
        near__dirty_link_locked(&back->dirty, key);
    }
    write->since   = write->sequence;
    back->numbered = write->sequence > back->numbered ? write->sequence : back->numbered;
    if (old != NULL) {
        near__dirty_replace_locked(&back->dirty, old, write);
        change->old = old;
        done_locked(back, &old->sequence, 1);
        near__count(back->cache, NEAR__write_back_coalesced, !key->stored);
    } else {
        near__dirty_append_locked(&back->dirty, key, write);
    }
    key->stored = false;
    if (key->first == write)
        key->strikes = 0; /* those were of the one before; its delay stays, for the store may be in trouble */
    key->touched |= write->waiter == NULL;
    if (key->place == NEAR__DIRTY_IDLE) {
        key->tries = key->strikes = 0;
        queue_locked(back, key,
                     write->waiter != NULL
                         ? write->entry->born
                         : near__time_after(write->entry->born, back->cache->settings.write_back_interval));
    }
    /* the first of a queue sets the timer, a full batch goes at once; who comes between changes nothing, unless there was no memory for the
     * timer */
    if (back->unarmed || back->queues[NEAR__BACK_FRESH].n == 1 ||
        back->queues[NEAR__BACK_FRESH].n == back->cache->settings.write_back_batch || write->waiter != NULL ||
        back->dirty.bytes > back->cache->settings.write_back_max_pending / 2)
        go_on_locked(back);
}

/* What happens where there is no room.  True: try again. */
static bool
wait_locked(struct near__back *back, int64_t deadline, int64_t pause) NEAR__NEEDS(back->dirty.lock)
{
    int64_t now = near__client_now(back->cache->client);
    int64_t end =
        pause != 0 && near__time_after(now, pause) < deadline ? near__time_after(now, pause) : deadline;

    if (now >= deadline || near__store_nested() ||
        back->cache->settings.write_back_on_full == NEAR__FULL_FAIL)
        return false;
    go_on_locked(back);
    near__workers_wait_begins(
        back->cache->client->workers); /* a loader's thread may be the one that a flight needs */
    near__cond_wait(&back->moved, &back->dirty.lock, end);
    near__workers_wait_ends(back->cache->client->workers);
    return true;
}

/* NEAR_OK: it is in the table, and (*key)->writers counts us. */
static near_status
accept(struct near__back *back, struct change *change, struct near__dirty_key **key, int64_t deadline)
{
    const struct near__settings *settings = &back->cache->settings;
    near_status                  status;
    bool                         again = true;

    near__lock(&back->dirty.lock);
    do {
        struct near__dirty_write *old;

        *key   = near__dirty_key_locked(&back->dirty, change->hash, change->key);
        old    = replaceable_locked(back->cache, *key);
        status = back->closing ? NEAR_ERR_CLOSED : NEAR_ERR_BUSY;
        if (back->closing)
            break;
        change->write->waiter = NULL;
        if (!has_room_locked(back, change->write, old)) {
            if (settings->write_back_on_full != NEAR__FULL_THROUGH || near__store_nested()) {
                again = wait_locked(back, deadline, 0);
                continue;
            }
            change->write->waiter = &change->waiter;
            old                   = NULL;
            if (*key != NULL && (*key)->stored && (*key)->place != NEAR__DIRTY_FLYING)
                old = (*key)->last;
        }
        if (*key == NULL && change->node == NULL)
            change->node = near__dirty_key_new(change->hash, change->key);
        status = *key == NULL && change->node == NULL ? NEAR_ERR_NOMEM : number_locked(back, change);
        if (status == NEAR_ERR_BUSY) { /* the journal is full: nobody tells when it is not */
            again = wait_locked(back, deadline, FULL_PAUSE);
            continue;
        }
        again = false;
        if (status == NEAR_OK) {
            change->sequence = change->write->sequence;
            change->waits    = change->write->waiter != NULL;
            insert_locked(back, change, *key, old);
            *key = change->write->key;
            (*key)->writers += !change->waits;
        }
    } while (again);
    near__unlock(&back->dirty.lock);
    return status;
}

/* The store was not given it: as if it had never been.  Readers may have seen it meanwhile, and its caller gets an error. */
static void
withdraw_locked(struct near__back *back, struct change *change) NEAR__NEEDS(back->dirty.lock)
{
    struct near__dirty_key *key = change->write->key;

    change->write->waiter = NULL;
    if (key->touched || key->first != change->write || key->last != change->write ||
        key->place != NEAR__DIRTY_QUEUED)
        return;
    change->old = near__dirty_pop_locked(&back->dirty, key);
    done_locked(back, &change->old->sequence, 1); /* the empty node goes when its turn comes */
    pthread_cond_broadcast(&back->moved);         /* there is room again */
}

/* write_back.on_full = through: it is acknowledged when the store has it. */
static near_status
await_store(struct near__back *back, struct change *change, int64_t deadline)
{
    near_status status = NEAR_ERR_TIMEOUT;
    bool        more   = true;

    near__workers_wait_begins(back->cache->client->workers);
    near__lock(&back->dirty.lock);
    while (!change->waiter.over && more)
        more = near__cond_wait(&back->moved, &back->dirty.lock, deadline);
    if (change->waiter.over)
        status = change->waiter.status;
    else
        withdraw_locked(back, change);
    near__unlock(&back->dirty.lock);
    near__workers_wait_ends(back->cache->client->workers);
    return status;
}

static void
cache_step_ends(struct near__back *back, struct near__dirty_key *key)
{
    near__lock(&back->dirty.lock);
    if (--key->writers == 0 && key->stored && key->place == NEAR__DIRTY_IDLE) {
        queue_locked(back, key, near__client_now(back->cache->client));
        go_on_locked(back);
    }
    near__unlock(&back->dirty.lock);
}

static void
forget_replaced(struct change *change)
{
    if (change->old == NULL)
        return;
    near__entry_release(&change->old->entry);
    free(change->old);
    change->old = NULL;
}

static near_status
change_make(struct change *change, near_bytes data, const near_put_options *options)
{
    near_cache               *cache = change->cache;
    int64_t                   now   = near__client_now(cache->client);
    struct near__dirty_write *write = calloc(1, sizeof(*write));
    near_status               status;
    void                     *bytes;

    if (write == NULL)
        return NEAR_ERR_NOMEM;
    change->put   = data.data != NULL;
    change->write = write;
    write->entry  = near__entry_new(change->key, change->hash, data.size, &bytes);
    if (write->entry == NULL)
        return NEAR_ERR_NOMEM;
    if (data.size > 0)
        memcpy(bytes, data.data, data.size);
    write->entry->negative = !change->put;
    write->entry->pool     = (uint8_t)options->pool;
    status                 = near__decode(cache, write->entry);
    near__entry_date(cache, write->entry, now, near__duration(options->ttl_ms, cache->settings.ttl));
    write->entry->born = now;
    if (cache->client->ops == NULL)
        write->entry->stamp = near__stamp(cache->client); /* else that of what L2 has when it is settled */
    write->stamp = change->put && !cache->bare ? near__stamp(cache->client) : 0;
    write->kept  = change->put && options->tag_count == 0 && !(options->flags & NEAR_NO_FILL) &&
                  cache->settings.l1_max_bytes != 0 && status == NEAR_OK;
    write->cost =
        near__entry_cost(write->entry) + sizeof(*write) + sizeof(struct near__dirty_key) + change->key.size;
    return status;
}

static void
change_unmake(struct change *change)
{
    free(change->node);
    if (change->write != NULL)
        near__entry_release(&change->write->entry);
    free(change->write);
}

/* What near_put() would refuse, before anything is done. */
static near_status
check(const near_cache *cache, near_bytes key, near_bytes data, const near_put_options *options)
{
    near_status status = near__tier_key_check(cache, key);

    if (status != NEAR_OK)
        return status;
    if ((options->flags & NEAR_IF_ABSENT) || options->unchanged != NULL ||
        (options->tag_count > 0 && options->tags == NULL) || options->pool > cache->pools.n)
        return NEAR_ERR_INVALID;
    for (size_t i = 0; i < options->tag_count; i++) {
        size_t size = options->tags[i] != NULL ? strlen(options->tags[i]) : 0;

        if (size == 0)
            return NEAR_ERR_INVALID;
        if (size > 255)
            return NEAR_ERR_TOO_LARGE;
    }
    return data.size > cache->settings.l2_max_value ? NEAR_ERR_TOO_LARGE : NEAR_OK;
}

near_status
near__back_write(near_cache *cache, near_bytes key, near_bytes data, const near_put_options *options)
{
    struct near__back      *back = cache->back;
    struct near__dirty_key *node;
    struct change           change   = { .cache = cache, .key = key };
    near_status             status   = check(cache, key, data, options);
    int64_t                 deadline = 0;
    struct near__known      known    = { 0, NULL };

    if (status == NEAR_OK && cache->store == NULL)
        status = NEAR_ERR_UNSUPPORTED;
    if (status != NEAR_OK)
        return status;
    change.hash = near__hash_keyed(&cache->client->secret, key);
    status      = change_make(&change, data, options);
    if (status == NEAR_OK) {
        known    = (struct near__known){ change.write->stamp, near__object_ref(change.write->entry->object) };
        deadline = near__time_after(change.write->entry->born, cache->settings.store_timeout);
        status   = accept(back, &change, &node, deadline);
    }
    near__count(cache, NEAR__write_back_refused, status == NEAR_ERR_BUSY);
    if (status != NEAR_OK) {
        near__object_release(&known.object);
        change_unmake(&change);
        return status;
    }
    free(change.node);
    near__count(cache, NEAR__write_back_accepted, 1);
    forget_replaced(&change);
    if (change.waits) {
        near__object_release(&known.object);
        status = await_store(back, &change, deadline);
        forget_replaced(&change);
        return status;
    }
    if (back->journal != NULL)
        status = near__journal_commit(back->journal, change.sequence, deadline);
    /* What is not acknowledged may reach the store all the same: then nothing is better than its value. */
    near__write_known(cache, key, status == NEAR_OK ? data : (near_bytes){ NULL, 0 }, options, &known);
    near__object_release(&known.object);
    cache_step_ends(back, node);
    return status;
}

/* ---- what was left undone by a former life */

struct replay {
    struct near__back *back;
    near_status        status;
    uint64_t           n;
};

static bool
replay_one(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    struct replay                *replay  = ctx;
    struct near__back            *back    = replay->back;
    struct change                 change  = { .cache = back->cache, .key = record->key };
    static const near_put_options options = NEAR_PUT_OPTIONS_INIT;
    near_bytes                    data    = record->data;
    struct near__dirty_key       *key;

    if (record->kind == NEAR__JOURNAL_PUT && data.data == NULL)
        data.data = "";
    if (record->kind == NEAR__JOURNAL_ERASE)
        data = (near_bytes){ NULL, 0 };
    change.hash    = near__hash_keyed(&back->cache->client->secret, record->key);
    replay->status = change_make(&change, data, &options);
    if (replay->status == NEAR_ERR_DECODE) /* the store is to have it all the same */
        replay->status = NEAR_OK;
    if (replay->status != NEAR_OK) {
        change_unmake(&change);
        return false;
    }
    change.write->sequence = sequence;
    change.write->stamp    = 0; /* whatever lies in L2 goes */
    change.node            = near__dirty_key_new(change.hash, record->key);
    if (change.node == NULL) {
        change_unmake(&change);
        replay->status = NEAR_ERR_NOMEM;
        return false;
    }
    near__lock(&back->dirty.lock);
    key = near__dirty_key_locked(&back->dirty, change.hash, record->key);
    insert_locked(back, &change, key, replaceable_locked(back->cache, key));
    near__unlock(&back->dirty.lock);
    free(change.node);
    forget_replaced(&change);
    replay->n++;
    return true;
}

static near_status
replay_all(struct near__back *back, near_error *error)
{
    near_cache   *cache  = back->cache;
    struct replay replay = { .back = back, .status = NEAR_OK };
    near_status   status;

    status = near__journal_replay(back->journal, near_key(cache->name),
                                  1u << NEAR__JOURNAL_PUT | 1u << NEAR__JOURNAL_ERASE, replay_one, &replay);
    if (status == NEAR_OK)
        status = replay.status;
    if (status != NEAR_OK)
        return near__fail(error, status, "cache %s: write_back.journal: its changes cannot be read: %s",
                          cache->name, near_status_text(status));
    near__count(cache, NEAR__write_back_replayed, replay.n);
    if (replay.n > 0)
        near__log(&cache->client->log, NEAR_LOG_INFO,
                  "cache %s: %llu changes of a former life are in the journal and go to the store",
                  cache->name, (unsigned long long)replay.n);
    return NEAR_OK;
}

/* ---- somebody else's changes */

void
near__back_suspect(near_cache *cache, uint64_t hash, near_bytes bytes)
{
    struct near__dirty     *dirty = &cache->back->dirty;
    struct near__dirty_key *key;

    if (!near__dirty_may(dirty, hash))
        return;
    near__lock(&dirty->lock);
    key = near__dirty_key_locked(dirty, hash, bytes);
    if (key != NULL)
        key->suspect = true;
    near__unlock(&dirty->lock);
}

void
near__back_suspect_all(near_cache *cache)
{
    struct near__back *back = cache->back;

    near__lock(&back->dirty.lock);
    back->suspect_until = back->numbered;
    near__unlock(&back->dirty.lock);
}

/* ---- waiting for all */

/* Everything up to `number` has left the table, or the deadline. */
static bool
await_locked(struct near__back *back, uint64_t number, int64_t deadline) NEAR__NEEDS(back->dirty.lock)
{
    bool more = true;

    hurry_locked(back);
    go_on_locked(back);
    while (back->dirty.oldest != NULL && back->dirty.oldest->since <= number && more)
        more = near__cond_wait(&back->moved, &back->dirty.lock, deadline);
    return back->dirty.oldest == NULL || back->dirty.oldest->since > number;
}

static near_status
flush_cache(near_cache *cache, int64_t deadline)
{
    struct near__back *back   = cache->back;
    near_status        status = NEAR_OK;
    uint64_t           dead;

    near__lock(&back->dirty.lock);
    dead = back->dead;
    if (!back->started && back->dirty.oldest != NULL)
        status = NEAR_ERR_UNSUPPORTED; /* from the journal, and no store to give it to */
    else if (!await_locked(back, back->numbered, deadline))
        status = NEAR_ERR_TIMEOUT;
    else if (back->dead != dead)
        status = NEAR_ERR_UNAVAILABLE;
    near__unlock(&back->dirty.lock);
    return status;
}

/* The newest cache with an id below `id`, with a reference. */
static near_cache *
cache_below(near_client *client, uint64_t id)
{
    near_cache *cache;

    near__lock(&client->lock);
    for (cache = client->caches; cache != NULL && (cache->id >= id || cache->back == NULL);
         cache = cache->next)
        ;
    if (cache != NULL)
        atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    near__unlock(&client->lock);
    return cache;
}

near_status
near_flush(near_client *client, int64_t timeout_ms)
{
    near_status status = NEAR_OK;
    near_cache *cache;
    int64_t     deadline;
    uint64_t    id = UINT64_MAX;

    if (client == NULL)
        return NEAR_ERR_INVALID;
    if (*client->alive == 0)
        return NEAR_ERR_FORKED;
    if (atomic_load_explicit(&client->closed, memory_order_relaxed))
        return NEAR_ERR_CLOSED;
    deadline = near__time_after(near__client_now(client), near__duration(timeout_ms, NEAR_NEVER));
    if (near__store_nested())
        deadline = 0; /* it would wait for itself */
    while ((cache = cache_below(client, id)) != NULL) {
        near_status one = flush_cache(cache, deadline);

        status = status == NEAR_OK || one == NEAR_ERR_TIMEOUT ? one : status;
        id     = cache->id;
        near__cache_release(cache);
    }
    return status;
}

void
near__back_levels(struct near__back *back, struct near__back_levels *levels)
{
    near__lock(&back->dirty.lock);
    levels->writes = back->dirty.writes;
    levels->bytes  = back->dirty.bytes;
    levels->oldest = back->dirty.oldest != NULL ? back->dirty.oldest->entry->born : 0;
    near__unlock(&back->dirty.lock);
}

/* ---- life and death */

static void
flight_fini(struct near__flight_of_writes *flight)
{
    free(flight->seats);
    free(flight->items);
    free(flight->of_items);
    free(flight->asks);
    free(flight->keys);
    free(flight->of_keys);
    free(flight->done);
    free(flight->gone);
}

static bool
flight_init(struct near__flight_of_writes *flight, struct near__back *back, size_t batch)
{
    flight->back     = back;
    flight->job.fn   = work;
    flight->seats    = calloc(batch, sizeof(*flight->seats));
    flight->items    = calloc(batch, sizeof(*flight->items));
    flight->of_items = calloc(batch, sizeof(struct seat *));
    flight->asks     = calloc(batch, sizeof(struct near__ask *));
    flight->keys     = calloc(batch, sizeof(*flight->keys));
    flight->of_keys  = calloc(batch, sizeof(struct seat *));
    flight->done     = calloc(batch, sizeof(*flight->done));
    flight->gone     = calloc(batch, sizeof(struct near__dirty_write *));
    return flight->seats != NULL && flight->items != NULL && flight->of_items != NULL &&
           flight->asks != NULL && flight->keys != NULL && flight->of_keys != NULL && flight->done != NULL &&
           flight->gone != NULL;
}

static bool
make(struct near__back *back)
{
    const struct near__settings *settings = &back->cache->settings;
    bool                         made     = near__dirty_init(&back->dirty);

    near__cond_init(&back->moved);
    near__timer_init(&back->timer, time_has_come, back);
    for (size_t i = 0; i < NEAR__BACK_LEVELS; i++)
        back->queues[i].last = &back->queues[i].first;
    back->flights = calloc(settings->write_back_parallel, sizeof(*back->flights));
    if (back->flights == NULL)
        return false;
    for (size_t i = 0; i < settings->write_back_parallel && made; i++) {
        made = flight_init(&back->flights[i], back, settings->write_back_batch);
        back->flights_n++;
    }
    return made;
}

near_status
near__back_open(near_cache *cache, near_error *error)
{
    struct near__back *back;

    if (cache->settings.write_policy != NEAR__WRITE_BACK)
        return NEAR_OK;
    back = near__zeroed(_Alignof(struct near__back), sizeof(*back));
    if (back == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "cache %s: out of memory", cache->name);
    cache->back   = back;
    back->cache   = cache;
    back->journal = cache->journal;
    back->origin =
        back->journal != NULL ? near__journal_origin(back->journal) : near__store_origin(cache->client);
    if (!make(back))
        return near__fail(error, NEAR_ERR_NOMEM, "cache %s: out of memory", cache->name);
    return back->journal != NULL ? replay_all(back, error) : NEAR_OK;
}

void
near__back_free(near_cache *cache)
{
    struct near__back *back = cache->back;

    if (back == NULL)
        return;
    for (size_t i = 0; i < back->flights_n; i++)
        flight_fini(&back->flights[i]);
    free(back->flights);
    near__dirty_fini(&back->dirty);
    pthread_cond_destroy(&back->moved);
    free(back);
    cache->back = NULL;
}

void
near__back_start(near_cache *cache)
{
    struct near__back *back = cache->back;

    if (back == NULL || cache->store == NULL)
        return;
    near__lock(&back->dirty.lock);
    back->started = true;
    go_on_locked(back);
    near__unlock(&back->dirty.lock);
}

void
near__back_closing(near_client *client)
{
    uint64_t    id = UINT64_MAX;
    near_cache *cache;

    while ((cache = cache_below(client, id)) != NULL) {
        near__lock(&cache->back->dirty.lock);
        cache->back->closing = true;
        hurry_locked(cache->back);
        go_on_locked(cache->back);
        near__unlock(&cache->back->dirty.lock);
        id = cache->id;
        near__cache_release(cache);
    }
}

size_t
near__back_close(near_cache *cache, int64_t deadline)
{
    struct near__back *back = cache->back;
    bool               more = true;
    size_t             left;

    if (back == NULL)
        return 0;
    near__lock(&back->dirty.lock);
    back->closing = true;
    if (back->started)
        await_locked(back, UINT64_MAX, deadline);
    back->stopped = true;
    pthread_cond_broadcast(&back->moved); /* whoever waits for room */
    while (back->flying > 0 && more)      /* their last steps, or stores that do not answer */
        more = near__cond_wait(&back->moved, &back->dirty.lock, deadline);
    back->over = true;
    while (back->steps > 0) /* L2 and the journal have deadlines */
        near__cond_wait(&back->moved, &back->dirty.lock, NEAR_NEVER);
    left = back->dirty.writes;
    near__unlock(&back->dirty.lock);
    near__timer_disarm(&cache->client->scheduler, &back->timer);
    if (left > 0)
        near__log(&cache->client->log, NEAR_LOG_WARN,
                  "cache %s: closed with %zu changes that the store has not got: %s", cache->name, left,
                  back->journal != NULL ? "they are in the journal"
                                        : "they are lost, for there is no journal");
    return left;
}
