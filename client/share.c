/* See share.h. */
#include "share.h"

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
           leader->ask->fence == ask->fence && leader->ask->label_clock == ask->label_clock &&
           is_young_enough(cache, leader, now);
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
        near__cond_init(&shared->wake);
        shared->leader          = leader;
        shared->leader_deadline = leader->deadline;
        shared->next            = leader->joined;
        leader->joined          = shared;
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
    shared->answered = false;
    /* release, pairs with the acquire in hold_locked() */
    shared->leading = atomic_compare_exchange_strong_explicit(&cell->word, &none, (uintptr_t)shared,
                                                              memory_order_release, memory_order_relaxed);
    return !shared->leading && join(cache, cell, shared, now);
}

static void
answer_locked(struct near__shared *joined, const struct near__ask *ask)
{
    joined->status = ask->found == NEAR__UNREACHABLE ? ask->status : NEAR_OK;
    if (ask->found == NEAR__FOUND) {
        near__entry_ref(ask->entry);
        joined->entry = ask->entry;
    }
    joined->answered = true;
    pthread_cond_signal(&joined->wake);
}

void
near__share_end(near_cache *cache, struct near__shared *shared)
{
    struct near__cell *cell = cell_of(cache, shared->ask->hash);
    uintptr_t          word = (uintptr_t)shared;

    /* relaxed: nobody has looked into the record, or the bit would be set; then the lock orders all */
    if (!shared->leading || atomic_compare_exchange_strong_explicit(
                                &cell->word, &word, 0, memory_order_relaxed, memory_order_relaxed))
        return;
    near__lock(&cell->lock);
    atomic_store_explicit(&cell->word, 0, memory_order_relaxed);
    for (struct near__shared *one = shared->joined; one != NULL; one = one->next)
        answer_locked(one, shared->ask);
    near__unlock(&cell->lock);
}

static void
leave_locked(struct near__shared *shared)
{
    struct near__shared **at = &shared->leader->joined;

    while (*at != shared)
        at = &(*at)->next;
    *at = shared->next;
}

bool
near__share_wait(near_cache *cache, struct near__shared *shared, struct near__ask *ask)
{
    struct near__cell *cell = cell_of(cache, ask->hash);

    near__lock(&cell->lock);
    while (!shared->answered && near__cond_wait(&shared->wake, &cell->lock, shared->deadline))
        ;
    if (!shared->answered) {
        leave_locked(shared);
        shared->status = NEAR_ERR_TIMEOUT;
    }
    near__unlock(&cell->lock);
    pthread_cond_destroy(&shared->wake);
    if (shared->answered && shared->status == NEAR_ERR_TIMEOUT && shared->leader_deadline < shared->deadline)
        return false;
    near__count(cache, NEAR__l2_reads_joined, 1);
    ask->entry  = shared->entry;
    ask->status = shared->status;
    ask->found  = shared->status < 0 ? NEAR__UNREACHABLE : shared->entry != NULL ? NEAR__FOUND : NEAR__ABSENT;
    return true;
}
