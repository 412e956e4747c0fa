/* See share.h. */
#include "share.h"

#include <limits.h>

#include "base/futex.h"
#include "tier.h"

#define JOINED ((uintptr_t)1)

static struct near__cell *
cell_of(near_cache *cache, uint64_t hash)
{
    return &cache->cells[hash % NEAR__SHARE_CELLS];
}

void
near__share_init(near_cache *cache)
{
    for (size_t i = 0; i < NEAR__SHARE_CELLS; i++)
        near__lock_init(&cache->cells[i].lock, NEAR__RANK_LEAF);
}

void
near__share_fini(near_cache *cache)
{
    for (size_t i = 0; i < NEAR__SHARE_CELLS; i++)
        near__lock_fini(&cache->cells[i].lock);
}

/* Without a bus nothing is heard of others' writes: then what L1 may keep is the measure. */
static bool
is_young_enough(const near_cache *cache, const struct near__shared *leader, int64_t now)
{
    const near_client *client = cache->client;

    if (client->coherence != NULL)
        return now < near__coherence_gate(client->coherence);
    return !client->traits.shared ||
           (cache->settings.l1_max_bytes != 0 && now - leader->began < cache->max_ttl);
}

static bool
may_join(const near_cache *cache, const struct near__shared *leader, const struct near__ask *ask, int64_t now)
{
    return leader->ask->hash == ask->hash && near__bytes_equal(leader->ask->key, ask->key) &&
           near__l1_fence_same(leader->ask->fence, ask->fence) &&
           leader->ask->label_clock == ask->label_clock && is_young_enough(cache, leader, now);
}

/* The record in the cell, kept there as long as we have the lock; NULL: there is none. */
static struct near__shared *
hold_locked(struct near__cell *cell)
{
    /* acquire, here and in the exchange: pairs with the release in near__share_begin(), so that the record is whole */
    uintptr_t word = atomic_load_explicit(&cell->word, memory_order_acquire);

    while (word != 0 && (word & JOINED) == 0 &&
           !atomic_compare_exchange_weak_explicit(&cell->word, &word, word | JOINED, memory_order_acquire,
                                                  memory_order_acquire))
        ;
    return (struct near__shared *)(word & ~JOINED);
}

static bool
join(near_cache *cache, struct near__cell *cell, struct near__shared *shared, int64_t now)
{
    struct near__shared *leader;
    bool                 joins;

    near__lock(&cell->lock);
    leader = hold_locked(cell);
    joins  = leader != NULL && may_join(cache, leader, shared->ask, now);
    if (joins) {
        shared->leader          = leader;
        shared->leader_deadline = leader->deadline;
        shared->next            = leader->joined;
        shared->epoch  = atomic_load_explicit(&cell->epoch, memory_order_relaxed); /* the lock orders it */
        leader->joined = shared;
    }
    near__unlock(&cell->lock);
    return joins;
}

bool
near__share_begin(near_cache *cache, struct near__shared *shared, const struct near__ask *ask, int64_t now,
                  int64_t deadline)
{
    struct near__cell *cell = cell_of(cache, ask->hash);
    uintptr_t          none = 0;

    shared->ask      = ask;
    shared->began    = now;
    shared->deadline = deadline;
    shared->joined   = NULL;
    shared->leader   = NULL;
    shared->entry    = NULL;
    atomic_init(&shared->answered, false);
    /* release, pairs with the acquire in hold_locked() */
    shared->leading = atomic_compare_exchange_strong_explicit(&cell->word, &none, (uintptr_t)shared,
                                                              memory_order_release, memory_order_relaxed);
    return !shared->leading && join(cache, cell, shared, now);
}

/* Returns the next one: the record is gone with its thread as soon as it is answered. */
static struct near__shared *
answer_locked(struct near__shared *joined, const struct near__ask *ask)
{
    struct near__shared *next = joined->next;

    joined->status = ask->found == NEAR__UNREACHABLE ? ask->status : NEAR_OK;
    if (ask->found == NEAR__FOUND) {
        near__entry_ref(ask->entry);
        joined->entry = ask->entry;
    }
    /* release, pairs with the acquire in is_answered() */
    atomic_store_explicit(&joined->answered, true, memory_order_release);
    return next;
}

void
near__share_end(near_cache *cache, struct near__shared *shared)
{
    struct near__cell   *cell = cell_of(cache, shared->ask->hash);
    uintptr_t            word = (uintptr_t)shared;
    struct near__shared *one;

    /* relaxed: nobody has looked into the record, or the bit would be set; then the lock orders all */
    if (!shared->leading || atomic_compare_exchange_strong_explicit(
                                &cell->word, &word, 0, memory_order_relaxed, memory_order_relaxed))
        return;
    near__lock(&cell->lock);
    atomic_store_explicit(&cell->word, 0, memory_order_relaxed);
    for (one = shared->joined; one != NULL;)
        one = answer_locked(one, shared->ask);
    /* release, pairs with the acquire in sleep_until_answered(): who reads the new epoch sees that it is answered */
    atomic_fetch_add_explicit(&cell->epoch, 1, memory_order_release);
    near__unlock(&cell->lock);
    if (shared->joined != NULL)
        near__futex_wake(&cell->epoch, INT_MAX);
}

static bool
is_answered(const struct near__shared *shared)
{
    /* acquire, pairs with the release in answer_locked() */
    return atomic_load_explicit(&shared->answered, memory_order_acquire);
}

/* False: the deadline has passed. */
static bool
sleep_until_answered(const near_cache *cache, struct near__cell *cell, const struct near__shared *shared)
{
    uint32_t epoch = shared->epoch;

    while (!is_answered(shared)) {
        int64_t left = shared->deadline - near__client_now(cache->client);

        if (left <= 0)
            return false;
        near__futex_wait(&cell->epoch, epoch, left);
        /* acquire: see near__share_end().  If it has moved for others, ours moves it once more */
        epoch = atomic_load_explicit(&cell->epoch, memory_order_acquire);
    }
    return true;
}

static void
leave(struct near__cell *cell, struct near__shared *shared)
{
    struct near__shared **at;

    near__lock(&cell->lock);
    if (!is_answered(shared)) {
        for (at = &shared->leader->joined; *at != shared;)
            at = &(*at)->next;
        *at                     = shared->next;
        shared->status          = NEAR_ERR_TIMEOUT;
        shared->leader_deadline = NEAR_NEVER; /* it is our own that has passed */
    }
    near__unlock(&cell->lock);
}

bool
near__share_wait(near_cache *cache, struct near__shared *shared, struct near__ask *ask)
{
    struct near__cell *cell = cell_of(cache, ask->hash);

    if (!sleep_until_answered(cache, cell, shared))
        leave(cell, shared);
    if (shared->status == NEAR_ERR_TIMEOUT && shared->leader_deadline < shared->deadline)
        return false;
    near__count(cache, NEAR__l2_reads_joined, 1);
    ask->entry  = shared->entry;
    ask->status = shared->status;
    ask->found  = shared->status < 0 ? NEAR__UNREACHABLE : shared->entry != NULL ? NEAR__FOUND : NEAR__ABSENT;
    return true;
}
