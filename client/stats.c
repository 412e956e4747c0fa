/* Counters and histograms read out: near_stats_get, and the snapshot that client/metrics.c writes texts from. */
#include "stats.h"

#include <stdlib.h>
#include <string.h>

#include "back.h"
#include "client.h"
#include "disk.h"
#include "journals.h"

const struct near__counter_row near__counter_rows[NEAR__COUNTERS] = {
#define ROW(field, kind, unit, help)                                                                         \
    { #field, unit, help, #kind[0] == 'c' || #kind[0] == 'C', #kind[0] == 'C' || #kind[0] == 'G' },
    NEAR_STATS_TABLE(ROW)
#undef ROW
};

const struct near__timing_row near__timing_rows[NEAR__TIMINGS] = {
#define ROW(field, scope, help) { #field, help, #scope[0] == 'C' },
    NEAR_HISTOGRAM_TABLE(ROW)
#undef ROW
};

uint64_t
near__counters_sum(const struct near__counters *counters, enum near__counter counter)
{
    uint64_t sum = 0;

    for (size_t row = 0; row < NEAR__COUNTER_ROWS; row++)
        sum += atomic_load_explicit(&counters->rows[row].n[counter], memory_order_relaxed);
    return sum;
}

static void
add_l1(struct near__l1_stats *sum, const struct near__l1_stats *one)
{
    sum->hits += one->hits;
    sum->fills += one->fills;
    sum->fills_refused += one->fills_refused;
    sum->evictions += one->evictions;
    sum->expired += one->expired;
    sum->too_large += one->too_large;
    sum->entries += one->entries;
    sum->bytes += one->bytes;
}

/* ---- caches that are closed: what they counted stays in the client's sums; their levels do not */

static void
move_counters(near_client *client, near_cache *cache)
{
    for (int row = 0; row < NEAR__COUNTER_ROWS; row++)
        for (int i = 0; i < NEAR__COUNTERS; i++) {
            uint64_t n = atomic_exchange_explicit(&cache->counters.rows[row].n[i], 0, memory_order_relaxed);

            if (n != 0)
                near__counters_add(&client->counters, (enum near__counter)i, n);
        }
}

static void
move_histograms(near_client *client, near_cache *cache)
{
    for (int i = 0; i < NEAR__TIMINGS; i++)
        near__histogram_move(&client->histograms[i], &cache->histograms[i]);
}

void
near__stats_move(near_client *client, near_cache *cache)
{
    move_counters(client, cache);
    move_histograms(client, cache);
}

/* Who has a snapshot reads the histograms afterwards, the client's before the cache's: moved in between they would be in neither.  He has
 * a reference, so near__stats_move() comes after him. */
void
near__stats_keep(near_client *client, near_cache *cache)
{
    struct near__l1_stats l1;

    near__l1_stats(cache->l1, &l1);
    l1.entries = l1.bytes = 0;
    add_l1(&client->closed_l1, &l1);
    near__disk_keep(client, cache);
    move_counters(client, cache);
    if (client->snapshots == 0)
        move_histograms(client, cache);
}

/* ---- collecting */

static void
collect_l1(uint64_t n[], const struct near__l1_stats *l1)
{
    n[NEAR__requests] += l1->hits;
    n[NEAR__hits_l1] += l1->hits;
    n[NEAR__l1_fills]         = l1->fills;
    n[NEAR__l1_fills_refused] = l1->fills_refused;
    n[NEAR__l1_evictions]     = l1->evictions;
    n[NEAR__l1_expired]       = l1->expired;
    n[NEAR__l1_too_large]     = l1->too_large;
    n[NEAR__l1_entries]       = l1->entries;
    n[NEAR__l1_bytes]         = l1->bytes;
}

static void
collect_bus(near_client *client, uint64_t n[])
{
    struct near__coherence_stats bus;

    n[NEAR__gate_open] = 1;
    if (client->coherence == NULL)
        return;
    near__coherence_stats(client->coherence, &bus);
    n[NEAR__bus_sent] += bus.sent;
    n[NEAR__bus_send_failures] += bus.send_failures;
    n[NEAR__bus_received]        = bus.received;
    n[NEAR__bus_keys_received]   = bus.keys_received;
    n[NEAR__bus_filled_received] = bus.filled_received;
    n[NEAR__bus_echoes]          = bus.echoes;
    n[NEAR__bus_bad_messages]    = bus.bad_messages;
    n[NEAR__bus_gaps]            = bus.gaps;
    n[NEAR__bus_flushes]         = bus.flushes;
    n[NEAR__bus_connects]        = bus.connects;
    n[NEAR__bus_connected]       = bus.connected;
    n[NEAR__bus_beats]           = bus.beats;
    n[NEAR__bus_suspicions]      = bus.suspicions;
    n[NEAR__bus_recognised]      = bus.recognised;
    n[NEAR__bus_tracking]        = bus.tracking;
    n[NEAR__bus_changed]         = bus.changed;
    n[NEAR__bus_storms]          = bus.storms;
    n[NEAR__gate_open]           = near__coherence_gate(client->coherence) > near__client_now(client);
}

static void
collect_counters(uint64_t n[], const struct near__counters *counters)
{
    for (int i = 0; i < NEAR__COUNTERS; i++)
        n[i] = near__counters_sum(counters, (enum near__counter)i);
}

/* What others than caches count. */
static void
collect_client(near_client *client, uint64_t n[])
{
    struct near_l2_stats       l2 = { .connects = 0 };
    struct near__journal_state journals;

    collect_bus(client, n);
    n[NEAR__invalidations_pending] = atomic_load_explicit(&client->recovery.pending, memory_order_relaxed);
    near__journals_state(client, &journals);
    n[NEAR__journal_live]         = journals.live;
    n[NEAR__journal_bytes]        = journals.bytes;
    n[NEAR__journal_fsyncs]       = journals.fsyncs;
    n[NEAR__journal_failures]     = journals.failures;
    n[NEAR__journal_dead_letters] = journals.dead_letters;
    if (client->ops != NULL)
        client->ops->stats(client->l2, &l2);
    n[NEAR__l2_connects]     = l2.connects;
    n[NEAR__l2_disconnects]  = l2.disconnects;
    n[NEAR__l2_servers_down] = l2.down;
}

/* *oldest: the lesser of it and when the oldest change that waits here was accepted. */
static void
collect_cache_locked(near_cache *cache, uint64_t n[], int64_t *oldest)
{
    struct near__l1_stats    l1;
    struct near__back_levels back;

    collect_counters(n, &cache->counters); /* first: some are corrected by what L1 has counted too much */
    near__l1_stats(cache->l1, &l1);
    collect_l1(n, &l1);
    near__disk_count(cache, n);
    n[NEAR__l1_max_bytes]   = cache->wanted_bytes;
    n[NEAR__l1_max_entries] = cache->wanted_entries;
    if (cache->back == NULL)
        return;
    near__back_levels(cache->back, &back);
    n[NEAR__write_back_pending] = back.writes;
    n[NEAR__write_back_bytes]   = back.bytes;
    if (back.oldest != 0 && back.oldest < *oldest)
        *oldest = back.oldest;
}

/* Into the room that there is; false: there are more caches by now. */
static bool
collect(struct near__snapshot *snapshot, size_t room)
{
    near_client *client = snapshot->client;
    near_cache  *cache;
    size_t       n      = 0, at;
    int64_t      oldest = NEAR_NEVER;

    near__lock(&client->lock);
    for (cache = client->caches; cache != NULL; cache = cache->next)
        n++;
    if (n <= room) {
        client->snapshots++;
        collect_counters(snapshot->of[0].n, &client->counters);
        collect_l1(snapshot->of[0].n, &client->closed_l1);
        snapshot->of[0].cache = NULL;
        at                    = n;
        for (cache = client->caches; cache != NULL; cache = cache->next, at--) { /* newest first */
            atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
            snapshot->of[at].cache = cache;
            collect_cache_locked(cache, snapshot->of[at].n, &oldest);
        }
    }
    near__unlock(&client->lock);
    if (n <= room && oldest != NEAR_NEVER)
        snapshot->of[0].n[NEAR__write_back_age_ms] = (uint64_t)(near__client_now(client) - oldest) / NEAR_MS;
    snapshot->caches = n;
    return n <= room;
}

near_status
near__snapshot_take(struct near__snapshot *snapshot, near_client *client)
{
    size_t room = 8;

    *snapshot = (struct near__snapshot){ .client = client };
    if (client == NULL)
        return NEAR_ERR_INVALID;
    if (*client->alive == 0)
        return NEAR_ERR_FORKED;
    for (;;) {
        snapshot->of = calloc(room + 1, sizeof(*snapshot->of));
        if (snapshot->of == NULL)
            return NEAR_ERR_NOMEM;
        if (collect(snapshot, room)) {
            collect_client(client, snapshot->of[0].n);
            return NEAR_OK;
        }
        room = snapshot->caches + 8;
        free(snapshot->of);
    }
}

void
near__snapshot_free(struct near__snapshot *snapshot)
{
    if (snapshot->of == NULL)
        return;
    near__lock(&snapshot->client->lock);
    snapshot->client->snapshots--;
    near__unlock(&snapshot->client->lock);
    for (size_t i = 1; i <= snapshot->caches; i++)
        near__cache_release(snapshot->of[i].cache);
    free(snapshot->of);
    snapshot->of = NULL;
}

uint64_t
near__snapshot_total(const struct near__snapshot *snapshot, enum near__counter counter)
{
    uint64_t sum = 0;

    for (size_t i = 0; i <= snapshot->caches; i++)
        sum += snapshot->of[i].n[counter];
    return sum;
}

static const struct near__histogram *
client_histogram(const near_client *client, enum near__timing timing)
{
    const struct near__histogram *echo, *closures;

    if (client->coherence == NULL || (timing != NEAR__TIME_coherence_lag && timing != NEAR__TIME_gate_closed))
        return &client->histograms[timing];
    near__coherence_histograms(client->coherence, &echo, &closures);
    return timing == NEAR__TIME_coherence_lag ? echo : closures;
}

void
near__snapshot_histogram(const struct near__snapshot *snapshot, size_t i, enum near__timing timing,
                         struct near__histogram_sums *sums)
{
    size_t first = i == SIZE_MAX ? 0 : i, last = i == SIZE_MAX ? snapshot->caches : i;

    memset(sums, 0, sizeof(*sums));
    for (size_t at = first; at <= last; at++)
        near__histogram_read(at == 0 ? client_histogram(snapshot->client, timing)
                                     : &snapshot->of[at].cache->histograms[timing],
                             sums);
}

near_status
near_stats_get(near_client *client, near_stats *stats)
{
    struct near__snapshot snapshot;
    near_stats            full = NEAR_STATS_INIT;
    near_status           status;
    size_t                size;

    if (client == NULL || stats == NULL || stats->struct_size < sizeof(size_t))
        return NEAR_ERR_INVALID;
    status = near__snapshot_take(&snapshot, client);
    if (status != NEAR_OK)
        return status;
#define TAKE(field, kind, unit, help) full.field = near__snapshot_total(&snapshot, NEAR__##field);
    NEAR_STATS_TABLE(TAKE)
#undef TAKE
    near__snapshot_free(&snapshot);
    size             = stats->struct_size < sizeof(full) ? stats->struct_size : sizeof(full);
    full.struct_size = size;
    memcpy(stats, &full, size);
    return NEAR_OK;
}
