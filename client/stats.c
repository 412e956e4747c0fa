/* Counters out: the struct and the JSON are echoes of the table in nearcache.h. */
#include "stats.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "back.h"
#include "client.h"
#include "journals.h"

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

/* A closed cache's counters stay in the client's sums; its levels do not. */
void
near__stats_keep(near_client *client, near_cache *cache)
{
    struct near__l1_stats l1;

    near__l1_stats(cache->l1, &l1);
    l1.entries = l1.bytes = 0;
    add_l1(&client->closed_l1, &l1);
}

static void
collect_l1(near_client *client, near_stats *stats)
{
    struct near__l1_stats sum, one;

    near__lock(&client->lock);
    sum = client->closed_l1;
    for (near_cache *cache = client->caches; cache != NULL; cache = cache->next) {
        near__l1_stats(cache->l1, &one);
        add_l1(&sum, &one);
    }
    near__unlock(&client->lock);
    stats->requests += sum.hits;
    stats->hits_l1 += sum.hits;
    stats->l1_fills         = sum.fills;
    stats->l1_fills_refused = sum.fills_refused;
    stats->l1_evictions     = sum.evictions;
    stats->l1_expired       = sum.expired;
    stats->l1_too_large     = sum.too_large;
    stats->l1_entries       = sum.entries;
    stats->l1_bytes         = sum.bytes;
}

static void
collect_bus(near_client *client, near_stats *stats)
{
    struct near__coherence_stats bus;

    if (client->coherence == NULL)
        return;
    near__coherence_stats(client->coherence, &bus);
    stats->bus_sent += bus.sent;
    stats->bus_send_failures += bus.send_failures;
    stats->bus_received        = bus.received;
    stats->bus_keys_received   = bus.keys_received;
    stats->bus_filled_received = bus.filled_received;
    stats->bus_echoes          = bus.echoes;
    stats->bus_bad_messages    = bus.bad_messages;
    stats->bus_gaps            = bus.gaps;
    stats->bus_flushes         = bus.flushes;
    stats->bus_connects        = bus.connects;
    stats->bus_connected       = bus.connected;
    stats->bus_beats           = bus.beats;
    stats->bus_suspicions      = bus.suspicions;
    stats->bus_recognised      = bus.recognised;
    stats->bus_tracking        = bus.tracking;
    stats->bus_changed         = bus.changed;
    stats->bus_storms          = bus.storms;
}

static void
collect_writes(near_client *client, near_stats *stats)
{
    struct near__journal_state journals;
    struct near__back_levels   one;
    int64_t                    oldest = NEAR_NEVER;

    near__lock(&client->lock);
    for (near_cache *cache = client->caches; cache != NULL; cache = cache->next) {
        if (cache->back == NULL)
            continue;
        near__back_levels(cache->back, &one);
        stats->write_back_pending += one.writes;
        stats->write_back_bytes += one.bytes;
        oldest = one.oldest != 0 && one.oldest < oldest ? one.oldest : oldest;
    }
    near__unlock(&client->lock);
    if (oldest != NEAR_NEVER)
        stats->write_back_age_ms = (uint64_t)(near__client_now(client) - oldest) / NEAR_MS;
    near__journals_state(client, &journals);
    stats->journal_live         = journals.live;
    stats->journal_bytes        = journals.bytes;
    stats->journal_fsyncs       = journals.fsyncs;
    stats->journal_failures     = journals.failures;
    stats->journal_dead_letters = journals.dead_letters;
}

static void
collect(near_client *client, near_stats *stats)
{
    struct near_l2_stats l2 = { 0, 0 };

#define COLLECT(field, kind, unit, help) stats->field = near__counters_sum(&client->counters, NEAR__##field);
    NEAR_STATS_TABLE(COLLECT)
#undef COLLECT
    collect_l1(client, stats);
    collect_bus(client, stats);
    collect_writes(client, stats);
    stats->invalidations_pending = atomic_load_explicit(&client->recovery.pending, memory_order_relaxed);
    if (client->ops != NULL)
        client->ops->stats(client->l2, &l2);
    stats->l2_connects    = l2.connects;
    stats->l2_disconnects = l2.disconnects;
}

near_status
near_stats_get(near_client *client, near_stats *stats)
{
    near_stats full = NEAR_STATS_INIT;
    size_t     size;

    if (client == NULL || stats == NULL || stats->struct_size < sizeof(size_t))
        return NEAR_ERR_INVALID;
    if (*client->alive == 0)
        return NEAR_ERR_FORKED;
    size = stats->struct_size < sizeof(full) ? stats->struct_size : sizeof(full);
    collect(client, &full);
    full.struct_size = size;
    memcpy(stats, &full, size);
    return NEAR_OK;
}

char *
near_stats_json(near_client *client)
{
    near_stats stats = NEAR_STATS_INIT;
    char      *text  = NULL;
    size_t     size;
    FILE      *out;
    bool       failed;

    if (near_stats_get(client, &stats) != NEAR_OK)
        return NULL;
    out = open_memstream(&text, &size);
    if (out == NULL)
        return NULL;
    fprintf(out, "{\"version\":\"%s\"", near_version());
#define PRINT(field, kind, unit, help) fprintf(out, ",\"" #field "\":%" PRIu64, stats.field);
    NEAR_STATS_TABLE(PRINT)
#undef PRINT
    fputc('}', out);
    failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}
