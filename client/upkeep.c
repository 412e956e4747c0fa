/*
 * Upkeep of the L1s, and the tick.
 *
 * Upkeep runs ten times a second while there is something to do (entries that may expire, a clear to finish, a bound that has
 * shrunk) and for clients with a bus, whose coarse clock must hear soon that the machine has slept; once a second otherwise.
 * It works in small steps, so that nobody waits for a shard for long.
 *
 * The tick is the time that hits on caches without a bus are judged by: reading a clock would cost as much as the hit.  It is
 * written every millisecond while somebody reads, and that is found out by stopping: for a moment every LAP ticks it says 0, readers
 * ask the clock themselves and leave word; without word the ticking ends until upkeep finds word again.
 *
 * Everything here but the two atomics that readers touch belongs to the scheduler's thread.
 */
#include "upkeep.h"

#include "client.h"

enum {
    BUSY_MS = 100,
    IDLE_MS = 1000,
    MORE_MS = 5,  /* until the next step of something unfinished */
    STEPS   = 4,  /* of near__l1_upkeep() at a time */
    LAP     = 200 /* ticks until readers are asked whether they still are there */
};

/* The newest cache older than `id`, with a reference; NULL at the end. */
static near_cache *
cache_before(near_client *client, uint64_t id)
{
    near_cache *cache;

    near__lock(&client->lock);
    for (cache = client->caches; cache != NULL && cache->id >= id; cache = cache->next)
        ;
    if (cache != NULL)
        atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    near__unlock(&client->lock);
    return cache;
}

static void
tick(void *ctx)
{
    near_client *client = ctx;
    int64_t      now    = near__client_now_exact(client);

    if (client->ticks_left == 0 &&
        atomic_exchange_explicit(&client->tick_wanted, false, memory_order_relaxed))
        client->ticks_left = LAP;
    else if (client->ticks_left > 0)
        client->ticks_left--;
    client->ticking = client->ticks_left > 0 || atomic_load_explicit(&client->tick, memory_order_relaxed) !=
                                                    0; /* one more look for word */
    /* relaxed: a time orders nothing */
    atomic_store_explicit(&client->tick, client->ticks_left > 0 ? now : 0, memory_order_relaxed);
    if (client->ticking &&
        near__timer_arm(&client->scheduler, &client->ticker, near__time_after(now, NEAR_MS)) != NEAR_OK) {
        client->ticking = false;
        atomic_store_explicit(&client->tick, 0, memory_order_relaxed);
    }
}

static void
upkeep(void *ctx)
{
    near_client *client = ctx;
    near_cache  *cache;
    uint64_t     id   = UINT64_MAX;
    bool         more = false, busy = client->coherence != NULL;
    int64_t      now = near__client_now_exact(client);

    while ((cache = cache_before(client, id)) != NULL) {
        id = cache->id;
        more |= near__l1_upkeep(cache->l1, now, STEPS);
        busy |= near__l1_timed(cache->l1);
        near__cache_release(cache);
    }
    if (!client->ticking && atomic_load_explicit(&client->tick_wanted, memory_order_relaxed))
        tick(client);
    near__timer_arm(&client->scheduler, &client->upkeep,
                    near__time_after(now, (more   ? MORE_MS
                                           : busy ? BUSY_MS
                                                  : IDLE_MS) *
                                              NEAR_MS));
}

void
near__upkeep_init(near_client *client)
{
    near__timer_init(&client->upkeep, upkeep, client);
    near__timer_init(&client->ticker, tick, client);
}

void
near__upkeep_start(near_client *client)
{
    near__timer_arm_by(&client->scheduler, &client->upkeep,
                       near__time_after(near__client_now(client), BUSY_MS * NEAR_MS));
}
