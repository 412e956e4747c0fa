/*
 * near_explain(): one key on every level.  It asks L2 as a read would, changes nothing, and is for people: what it tells of several levels
 * is not one moment's picture.
 */
#include "explain.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "back.h"
#include "client.h"
#include "metrics.h"
#include "read.h"
#include "tags.h"
#include "tier.h"

static const char *
boolean(bool is)
{
    return is ? "true" : "false";
}

/* Milliseconds until then; null: never. */
static void
print_left(FILE *out, const char *name, int64_t until, int64_t now)
{
    if (until == NEAR_NEVER)
        fprintf(out, ",\"%s\":null", name);
    else
        fprintf(out, ",\"%s\":%" PRId64, name, until > now ? (until - now) / NEAR_MS : 0);
}

static void
explain_l1(FILE *out, near_cache *cache, uint64_t hash, near_bytes key, int64_t now)
{
    struct near__hit hit  = near__l1_look(cache, hash, key, now);
    near_value_info  info = NEAR_VALUE_INFO_INIT;

    fprintf(out, ",\"l1\":{\"present\":%s", boolean(hit.value != NULL || hit.negative));
    if (cache->pools.n > 0 && (hit.value != NULL || hit.negative)) {
        unsigned pool = near__l1_pool_of(cache->l1, hash, key, now);

        if (pool != 0) /* else it has left meanwhile */
            fprintf(out, ",\"pool\":\"%s\"", cache->pools.pools[pool - 1].name);
    }
    if (hit.negative)
        fputs(",\"negative\":true", out);
    if (hit.value != NULL) {
        near_value_get_info(hit.value, &info);
        fprintf(out, ",\"size\":%zu,\"stale\":%s", near__value_size(hit.value),
                boolean(hit.fresh_until <= now));
        if (info.age_ms >= 0)
            fprintf(out, ",\"age_ms\":%" PRId64, info.age_ms);
        print_left(out, "ttl_ms", hit.fresh_until, now);
        print_left(out, "kept_ms", hit.expires, now);
        fprintf(out, ",\"load_us\":%" PRIu32, hit.cost_us);
        near_value_release(hit.value);
    }
    fputc('}', out);
}

static void
print_tags(FILE *out, const struct near__labels *labels)
{
    const uint8_t *names = labels->names;

    fputs(",\"tags\":[", out);
    for (size_t at = 0; at < labels->names_size; at += 1 + (size_t)names[at]) {
        if (at > 0)
            fputc(',', out);
        near__json_string(out, (near_bytes){ names + at + 1, names[at] });
    }
    fputc(']', out);
}

/* Whether the store is still to get a change of it (write.policy = back). */
static bool
is_pending(near_cache *cache, uint64_t hash, near_bytes key)
{
    struct near__entry *entry =
        near__back_may(cache, hash) ? near__dirty_find(&cache->back->dirty, hash, key) : NULL;
    bool pending = entry != NULL;

    near__entry_release(&entry);
    return pending;
}

static void
explain_l2(FILE *out, near_cache *cache, uint64_t hash, near_bytes key, int64_t now)
{
    static const char *const found[] = {
        [NEAR__UNASKED] = "not asked",     [NEAR__FOUND] = "present",
        [NEAR__STALE] = "stale",           [NEAR__ABSENT] = "absent",
        [NEAR__LEASED] = "leased",         [NEAR__OUTDATED] = "outdated",
        [NEAR__UNREADABLE] = "unreadable", [NEAR__UNREACHABLE] = "unreachable",
        [NEAR__MARKED] = "being written",
    };
    struct near__ask  ask = { .key = key, .hash = hash };
    struct near__ask *one = &ask;
    uint64_t          generation;

    if (cache->client->ops == NULL)
        return;
    ask.label_clock = near__l1_label_clock(cache->l1);
    near__tier_read(cache, &one, 1, now, near__time_after(now, cache->client->settings.l2_timeout),
                    &generation);
    fprintf(out, ",\"l2\":{\"answer\":\"%s\"", found[ask.found]);
    if (ask.found == NEAR__UNREACHABLE) {
        fputs(",\"why\":", out);
        near__json_string(out, near_key(near_status_text(ask.status)));
    }
    if (ask.stamp != 0)
        fprintf(out, ",\"version\":\"%016" PRIx64 "\"", ask.stamp);
    if (ask.entry != NULL) {
        fprintf(out, ",\"size\":%zu,\"negative\":%s,\"load_us\":%" PRIu32, ask.entry->value_size,
                boolean(ask.entry->negative), ask.entry->cost_us);
        print_left(out, "ttl_ms", ask.soft_until, now);
        print_left(out, "kept_ms", ask.entry->expires, now);
        if (ask.entry->labels != NULL)
            print_tags(out, ask.entry->labels);
    }
    near__entry_release(&ask.entry);
    fputc('}', out);
}

static void
explain_last(FILE *out, near_cache *cache, uint64_t hash, int64_t now)
{
    static const char *const sources[] = { "", "a write of this process", "another instance's message",
                                           "the server's word" };
    struct near__last       *last      = &cache->last;
    size_t                   slot      = hash % NEAR__LAST_SLOTS;
    uint64_t                 moment = atomic_load_explicit(&last->slots[slot].moment, memory_order_relaxed);

    if (moment == 0 || atomic_load_explicit(&last->slots[slot].hash, memory_order_relaxed) != hash)
        return;
    fprintf(out, ",\"invalidated\":{\"by\":\"%s\",\"ago_ms\":%" PRId64 "}", sources[moment & 3],
            (now - (int64_t)(moment & ~UINT64_C(3))) / NEAR_MS);
}

static const char *
gate_name(enum near__gate gate)
{
    return gate == NEAR__GATE_OPEN ? "open" : gate == NEAR__GATE_STALE ? "stale" : "closed";
}

char *
near_explain(near_cache *cache, near_bytes key)
{
    char    *text = NULL;
    size_t   size;
    FILE    *out;
    uint64_t hash;
    int64_t  now;
    bool     failed;

    if (near__cache_check(cache) != NEAR_OK || near__tier_key_check(cache, key) != NEAR_OK)
        return NULL;
    out = open_memstream(&text, &size);
    if (out == NULL)
        return NULL;
    hash = near__hash_keyed(&cache->client->secret, key);
    now  = near__client_now_exact(cache->client);
    fputs("{\"cache\":", out);
    near__json_string(out, near_key(cache->name));
    fprintf(out, ",\"hash\":\"%016" PRIx64 "\",\"gate\":\"%s\",\"owed\":%s,\"pending\":%s",
            near__hash_fixed(key), gate_name(near__cache_gate(cache, now)),
            boolean(near__recovery_owes(cache, key, hash)), boolean(is_pending(cache, hash, key)));
    explain_l1(out, cache, hash, key, now);
    explain_l2(out, cache, hash, key, now);
    explain_last(out, cache, hash, now);
    fputc('}', out);
    failed = ferror(out) != 0;
    if (fclose(out) == 0 && !failed)
        return text;
    free(text);
    return NULL;
}
