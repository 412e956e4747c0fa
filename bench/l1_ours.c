/*
 * The library as an application sees it: near_get and near_value_release, near_get_many, near_get_copy, near_put, through the
 * shared object.  No L2 and no bus, except where the memory of an L2-backed cache is measured.
 */
#include "bench/l1.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define AMPLE (UINT64_C(256) << 20) /* bytes: more than 1 M entries need, as one would size it for them */

struct ours {
    near_client *client;
    near_cache  *cache;
};

/* ---- the loops */

static inline bool
ours_get(void *cache, near_bytes key, uint64_t *sum)
{
    near_value *value;

    if (near_get(((struct ours *)cache)->cache, key, &value) != NEAR_OK)
        return false;
    *sum += *(const unsigned char *)near_value_bytes(value).data;
    near_value_release(value);
    return true;
}

static inline bool
ours_copy(void *cache, near_bytes key, uint64_t *sum)
{
    unsigned char copy[L1_VALUE_SIZE];
    size_t        size;

    if (near_get_copy(((struct ours *)cache)->cache, key, copy, sizeof(copy), &size, NULL) != NEAR_OK)
        return false;
    *sum += copy[0];
    return true;
}

static inline unsigned
ours_many(void *cache, const near_bytes *keys, uint64_t *sum)
{
    near_value *values[L1_BATCH];
    near_status statuses[L1_BATCH];
    unsigned    hits = 0;

    near_get_many(((struct ours *)cache)->cache, keys, L1_BATCH, values, statuses);
    for (int i = 0; i < L1_BATCH; i++)
        if (statuses[i] == NEAR_OK) {
            *sum += *(const unsigned char *)near_value_bytes(values[i]).data;
            near_value_release(values[i]);
            hits++;
        }
    return hits;
}

static bool
ours_put(void *cache, near_bytes key, near_bytes value)
{
    return near_put(((struct ours *)cache)->cache, key, value, NULL) == NEAR_OK;
}

static void
loop_get(struct l1_thread *t)
{
    l1_loop_get(t, ours_get);
}

/* A hit with one counter more, of the kind that it has: a word of the thread's own, loaded and stored. */
static _Thread_local _Atomic uint64_t counted;

static inline bool
ours_get_counted(void *cache, near_bytes key, uint64_t *sum)
{
    /* relaxed: nobody else looks */
    atomic_store_explicit(&counted, atomic_load_explicit(&counted, memory_order_relaxed) + 1,
                          memory_order_relaxed);
    return ours_get(cache, key, sum);
}

static void
loop_counted(struct l1_thread *t)
{
    l1_loop_get(t, ours_get_counted);
}

void
l1_ours_count_more(struct l1_peer *peer)
{
    peer->loops[L1_GET] = loop_counted;
}

static void
loop_copy(struct l1_thread *t)
{
    l1_loop_get(t, ours_copy);
}

static void
loop_many(struct l1_thread *t)
{
    l1_loop_many(t, ours_many);
}

static void
loop_churn(struct l1_thread *t)
{
    l1_loop_churn(t, ours_get, ours_put);
}

static void
loop_sampled(struct l1_thread *t)
{
    l1_loop_sampled(t, ours_get, ours_put);
}

static void
loop_mixed(struct l1_thread *t)
{
    l1_loop_mixed(t, ours_get, ours_put);
}

/* ---- opening */

static bool
set(near_config *config, const char *name, const char *value)
{
    return near_config_set(config, name, value, NULL) == NEAR_OK;
}

static bool
set_number(near_config *config, const char *name, uint64_t value)
{
    char text[32];

    snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    return set(config, name, text);
}

/* "Without TTL" is as far without as the library lets it be: bounded by nothing, else by the longest l1.max_ttl. */
static bool
set_times(near_config *config, bool ttl)
{
    if (ttl)
        return set(config, "ttl", "1h") && set(config, "l1.max_ttl", "1h");
    return set(config, "ttl", "0") && (set(config, "l1.max_ttl", "0") || set(config, "l1.max_ttl", "365d"));
}

static bool
configure(near_config *config, const struct l1_peer *peer, uint64_t max_bytes, uint32_t max_entries,
          const char *l2)
{
    return config != NULL && set(config, "l2.uri", l2) && set(config, "coherence.uri", "none:") &&
           set(config, "coherence.mode", "none") && set(config, "l1.policy", peer->policy) &&
           set_number(config, "l1.max_bytes", max_bytes) &&
           set_number(config, "l1.max_entries", max_entries) && set_times(config, peer->ttl) &&
           (peer->option == NULL || set(config, peer->option, peer->setting));
}

static void
ours_close(void *cache)
{
    struct ours *ours = cache;

    if (ours == NULL)
        return;
    if (ours->client != NULL)
        near_client_close(ours->client, NULL);
    free(ours);
}

void *
l1_ours_open(const struct l1_peer *peer, uint64_t max_bytes, uint32_t max_entries, const char *l2,
             const char **why)
{
    static near_error error;
    near_config      *config = near_config_new();
    struct ours      *ours   = calloc(1, sizeof(*ours));

    *why = "a setting was refused";
    if (ours == NULL || !configure(config, peer, max_bytes, max_entries, l2) ||
        (*why = error.text, near_client_open(config, &ours->client, &error) != NEAR_OK) ||
        near_cache_open(ours->client, "bench", NULL, &ours->cache, &error) != NEAR_OK) {
        ours_close(ours);
        ours = NULL;
    }
    near_config_free(config);
    return ours;
}

static void *
ours_open(const struct l1_peer *peer, const struct l1_world *world, uint32_t capacity, const char **why)
{
    (void)world;
    return l1_ours_open(peer, AMPLE, capacity, "none:", why);
}

bool
l1_ours(struct l1_peer *peer, const char *policy, bool ttl)
{
    near_config *config = near_config_new();
    bool         known  = config != NULL && set(config, "l1.policy", policy);

    near_config_free(config);
    *peer = (struct l1_peer){
        .policy = policy,
        .ttl    = ttl,
        .open   = ours_open,
        .put    = ours_put,
        .close  = ours_close,
        .loops  = { loop_get, loop_many, loop_copy, loop_churn, loop_sampled, loop_mixed },
        .evicts = true,
    };
    snprintf(peer->name, sizeof(peer->name), "nearcache %s%s", policy, ttl ? " ttl" : "");
    return known;
}

/* ---- for the memory figures */

uint64_t
l1_ours_counted(void *cache)
{
    near_stats stats = NEAR_STATS_INIT;

    return near_stats_get(((struct ours *)cache)->client, &stats) == NEAR_OK ? stats.l1_bytes : 0;
}

/* Key after key into L2 alone, from where a get brings it into L1 afterwards.  `n` keys from `first` on. */
static bool
into_l2(near_cache *cache, uint32_t first, uint32_t n)
{
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    unsigned char    value[L1_VALUE_SIZE];
    char             key[L1_KEY_SIZE];

    options.flags = NEAR_NO_FILL;
    for (uint32_t i = first; i < first + n; i++) {
        l1_key_print(key, i);
        l1_value(value, i);
        if (near_put(cache, l1_bytes(key, sizeof(key)), l1_bytes(value, sizeof(value)), &options) != NEAR_OK)
            return false;
    }
    return true;
}

static bool
from_l2(near_cache *cache, uint32_t first, uint32_t n)
{
    char        key[L1_KEY_SIZE];
    near_value *value;

    for (uint32_t i = first; i < first + n; i++) {
        l1_key_print(key, i);
        if (near_get(cache, l1_bytes(key, sizeof(key)), &value) != NEAR_OK)
            return false;
        near_value_release(value);
    }
    return true;
}

/*
 * `memory:` keeps less than a million entries, in this very process.  So it is filled until it evicts; `between` looks at the
 * memory then; and afterwards portions go through it into L1 while it stays at its size.
 */
bool
l1_ours_fill_through_l2(void *cache, uint32_t n, void (*between)(void *ctx), void *ctx)
{
    enum { PORTION = 1000 };
    near_cache *ours = ((struct ours *)cache)->cache;

    if (!into_l2(ours, 0, n))
        return false;
    between(ctx);
    for (uint32_t first = 0; first < n; first += PORTION) {
        uint32_t portion = n - first < PORTION ? n - first : PORTION;
        if (!into_l2(ours, first, portion) || !from_l2(ours, first, portion))
            return false;
    }
    return true;
}
