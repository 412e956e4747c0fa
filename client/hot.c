/* See hot.h; and near_hot_keys(). */
#include "hot.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/probe.h"
#include "client.h"
#include "metrics.h"

enum {
    MISSES  = 64,      /* one of so many is counted */
    HALVING = 1 << 14, /* samples until counts are halved: of 16 million hits */
    TIMED   = 8,       /* one of so many samples is timed */
    SHOWN   = 32
};

void
near__hot_init(struct near__hot *hot)
{
    near__lock_init(&hot->lock, NEAR__RANK_LEAF);
}

void
near__hot_fini(struct near__hot *hot)
{
    near__lock_fini(&hot->lock);
}

/* Not near__lock(): a reader does not wait for a statistic.  A leaf that is only tried cannot be part of a circle. */
static bool
hot_try(struct near__hot *hot) NEAR__TRIES(hot->lock) NEAR__UNFOLLOWED
{
    return pthread_mutex_trylock(&hot->lock.mutex) == 0;
}

static void
hot_leave(struct near__hot *hot) NEAR__GIVES(hot->lock) NEAR__UNFOLLOWED
{
    pthread_mutex_unlock(&hot->lock.mutex);
}

static void
halve_locked(struct near__hot *hot) NEAR__NEEDS(hot->lock)
{
    for (int i = 0; i < NEAR__HOT_COUNTERS; i++) {
        hot->keys[i].count /= 2;
        hot->keys[i].over /= 2;
    }
    hot->total /= 2;
}

static void
count_locked(struct near__hot *hot, uint64_t hash, near_bytes key, uint64_t n) NEAR__NEEDS(hot->lock)
{
    struct near__hot_key *at = NULL, *least = &hot->keys[0];

    for (int i = 0; i < NEAR__HOT_COUNTERS && at == NULL; i++) {
        if (hot->keys[i].hash == hash && hot->keys[i].count > 0)
            at = &hot->keys[i];
        else if (hot->keys[i].count < least->count)
            least = &hot->keys[i];
    }
    if (at == NULL) {
        at       = least;
        at->over = at->count;
        at->hash = hash;
        at->size = (uint32_t)key.size;
        if (key.size > 0)
            memcpy(at->key, key.data, key.size < NEAR__HOT_KEY ? key.size : NEAR__HOT_KEY);
    }
    at->count += n;
    hot->total += n;
    if (++hot->samples % HALVING == 0)
        halve_locked(hot);
}

/* A key from among the counted ones, whole, and hot enough to be in L1 still.  False: it is too long. */
static bool
pick_locked(const struct near__hot *hot, struct near__hot_key *picked) NEAR__NEEDS(hot->lock)
{
    *picked = hot->keys[hot->samples / TIMED % NEAR__HOT_COUNTERS];
    return picked->count > 0 && picked->size <= NEAR__HOT_KEY;
}

/* A look-up as near_get() makes it, between two looks at the clock; a third one tells what these cost. */
static void
time_one(near_cache *cache, const struct near__hot_key *picked)
{
    near_client *client = cache->client;
    near_bytes   key    = { picked->key, picked->size };
    int64_t      first = near__client_now(client), begin = near__client_now(client), end;
    near_value  *value = near__l1_hit((struct near__l1_front *)cache->l1, picked->hash, key, begin);

    end = near__client_now(client);
    if ((uintptr_t)value <= NEAR__VALUE_BITS)
        return; /* it has left meanwhile */
    near__value_release(value);
    near__count(cache, NEAR__requests, (uint64_t)-1); /* L1 has counted a hit that nobody had */
    near__count(cache, NEAR__hits_l1, (uint64_t)-1);
    near__time(cache, NEAR__TIME_l1_hit, end - begin - (begin - first));
}

void
near__hot_hit(void *ctx, uint64_t hash, near_bytes key)
{
    near_cache          *cache = ctx;
    struct near__hot    *hot   = &cache->hot;
    struct near__hot_key picked;
    bool                 timed;

    if (!hot_try(hot))
        return;
    count_locked(hot, hash, key, NEAR__L1_SAMPLE);
    timed = hot->samples % TIMED == 0 && pick_locked(hot, &picked);
    hot_leave(hot);
    if (timed)
        time_one(cache, &picked);
}

void
near__hot_miss(near_cache *cache, uint64_t hash, near_bytes key)
{
    static _Thread_local uint32_t misses;

    near__l1_missed(cache->l1, hash);
    NEAR__PROBE3(miss, cache->name, hash, key.size);
    if ((++misses * UINT32_C(0x9E3779B1)) >= UINT32_MAX / MISSES || !hot_try(&cache->hot))
        return;
    count_locked(&cache->hot, hash, key, MISSES);
    hot_leave(&cache->hot);
}

/* ---- near_hot_keys */

static int
by_count(const void *a, const void *b)
{
    const struct near__hot_key *x = a, *y = b;

    return (x->count < y->count) - (x->count > y->count);
}

/* Whether its count is mostly its own. */
static bool
is_certain(const struct near__hot_key *key)
{
    return key->count > 0 && key->over * 2 <= key->count;
}

size_t
near__hot_top(near_cache *cache, struct near__hot_key *top, size_t n, uint64_t *total)
{
    struct near__hot_key *keys  = malloc(sizeof(cache->hot.keys));
    size_t                found = 0;

    *total = 0;
    if (keys == NULL)
        return 0;
    near__lock(&cache->hot.lock);
    memcpy(keys, cache->hot.keys, sizeof(cache->hot.keys));
    *total = cache->hot.total;
    near__unlock(&cache->hot.lock);
    qsort(keys, NEAR__HOT_COUNTERS, sizeof(*keys), by_count);
    for (size_t i = 0; i < NEAR__HOT_COUNTERS && found < n; i++)
        if (is_certain(&keys[i]))
            top[found++] = keys[i];
    free(keys);
    return found;
}

static void
print_share(FILE *out, uint64_t part, uint64_t whole)
{
    unsigned share = whole == 0 ? 0 : (unsigned)((double)part / (double)whole * 10000 + 0.5);

    fprintf(out, "%u.%04u", share / 10000, share % 10000); /* no floating point: see client/metrics.c */
}

static void
print_key(FILE *out, const struct near__hot_key *key, uint64_t total, bool plain)
{
    size_t size = key->size < NEAR__HOT_KEY ? key->size : NEAR__HOT_KEY;

    fprintf(out, "{\"hash\":\"%016" PRIx64 "\",", near__hash_fixed((near_bytes){ key->key, size }));
    if (plain) {
        fputs("\"key\":", out);
        near__json_string(out, (near_bytes){ key->key, size });
        fputc(',', out);
    }
    if (size < key->size)
        fputs("\"cut\":true,", out);
    fprintf(out, "\"size\":%" PRIu32 ",\"share\":", key->size);
    print_share(out, key->count - key->over / 2, total);
    fputs(",\"error\":", out);
    print_share(out, key->over - key->over / 2, total);
    fputc('}', out);
}

static bool
print_keys(FILE *out, const near_cache *cache, struct near__hot_key *keys, uint64_t total, bool plain)
{
    unsigned n = 0;

    qsort(keys, NEAR__HOT_COUNTERS, sizeof(*keys), by_count);
    fputs("{\"cache\":", out);
    near__json_string(out, near_key(cache->name));
    fprintf(out, ",\"requests\":%" PRIu64 ",\"keys\":[", total);
    for (size_t i = 0; i < SHOWN && keys[i].count > 0; i++) {
        if (keys[i].over * 2 > keys[i].count) /* it may be anybody's */
            continue;
        if (n++ > 0)
            fputc(',', out);
        print_key(out, &keys[i], total, plain);
    }
    fputs("]}", out);
    return !ferror(out);
}

char *
near_hot_keys(near_cache *cache, unsigned flags)
{
    struct near__hot_key *keys;
    uint64_t              total;
    char                 *text = NULL;
    size_t                size;
    FILE                 *out;
    bool                  ok = false;

    if (near__cache_check(cache) != NEAR_OK)
        return NULL;
    keys = malloc(sizeof(cache->hot.keys));
    out  = keys != NULL ? open_memstream(&text, &size) : NULL;
    if (out != NULL) {
        near__lock(&cache->hot.lock);
        memcpy(keys, cache->hot.keys, sizeof(cache->hot.keys));
        total = cache->hot.total;
        near__unlock(&cache->hot.lock);
        ok = print_keys(out, cache, keys, total, (flags & NEAR_PLAIN_KEYS) != 0);
        ok = fclose(out) == 0 && ok;
    }
    free(keys);
    if (ok)
        return text;
    free(text);
    return NULL;
}
