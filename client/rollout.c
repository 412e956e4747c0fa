/* See rollout.h. */
#include "rollout.h"

#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "fields_inside.h"

/* Of its own: who takes part has nothing to do with which keys are sampled for the log, or who owns them. */
#define SEED UINT64_C(0x726f6c6c6f757431)

/* One pattern.  The last * met is gone back to, each time a byte further on. */
static bool
matches(const char *pattern, size_t size, near_bytes text)
{
    const char *at = text.data;
    size_t      p = 0, t = 0, star = size, from = 0;

    while (t < text.size) {
        if (p < size && pattern[p] == '*') {
            star = p++;
            from = t;
        } else if (p < size && pattern[p] == at[t]) {
            p++;
            t++;
        } else if (star < size) {
            p = star + 1;
            t = ++from;
        } else
            return false;
    }
    while (p < size && pattern[p] == '*')
        p++;
    return p == size;
}

bool
near__pattern_matches(const char *patterns, near_bytes text)
{
    while (true) {
        size_t size = strcspn(patterns, ",");

        if (size > 0 && matches(patterns, size, text))
            return true;
        if (patterns[size] == '\0')
            return false;
        patterns += size + 1;
    }
}

near_status
near__rollout_open(struct near__rollout **prollout, const struct near__settings *settings, const char *name)
{
    struct near__rollout *rollout;

    *prollout = NULL;
    if (!settings->set[NEAR__OPTION_rollout_percent] && !settings->set[NEAR__OPTION_rollout_allow] &&
        !settings->set[NEAR__OPTION_rollout_caches] && !settings->set[NEAR__OPTION_rollout_dry_run])
        return NEAR_OK;
    rollout = calloc(1, sizeof(*rollout));
    if (rollout == NULL)
        return NEAR_ERR_NOMEM;
    rollout->allowed = settings->rollout_caches[0] == '\0' ||
                       near__pattern_matches(settings->rollout_caches, near_key(name));
    rollout->keys = settings->rollout_allow;
    atomic_init(&rollout->reach, (uint32_t)settings->rollout_percent);
    atomic_init(&rollout->dry, settings->rollout_dry_run == NEAR__YES);
    *prollout = rollout;
    return NEAR_OK;
}

static bool
is_in_reach(const struct near__rollout *rollout, near_bytes key)
{
    uint64_t place = near__hash_seeded(key, SEED) >> 32;

    /* relaxed: a read goes by the old or by the new one */
    return rollout->allowed &&
           place * NEAR__ROLLOUT_WHOLE >> 32 < atomic_load_explicit(&rollout->reach, memory_order_relaxed);
}

bool
near__rollout_takes_cell(const struct near__rollout *rollout, near_bytes entity, near_bytes name)
{
    return is_in_reach(rollout, entity) &&
           (rollout->keys[0] == '\0' || near__pattern_matches(rollout->keys, entity) ||
            near__pattern_matches(rollout->keys, name));
}

bool
near__rollout_takes(const struct near__rollout *rollout, near_bytes key)
{
    struct near__column column;
    near_bytes          entity;
    near_field          field;

    if (rollout->cells == NULL || !near__field_wide(key, &entity, &field))
        return is_in_reach(rollout, key) &&
               (rollout->keys[0] == '\0' || near__pattern_matches(rollout->keys, key));
    near__fields_column(rollout->cells, field, &column);
    return near__rollout_takes_cell(rollout, entity, near__fields_name(&column));
}

near_status
near_cache_set_rollout(near_cache *cache, double percent, bool dry_run)
{
    near_status status = near__cache_check(cache);

    if (status != NEAR_OK)
        return status;
    if (!(percent >= 0 && percent <= 100))
        return NEAR_ERR_INVALID;
    if (cache->rollout == NULL)
        return NEAR_ERR_UNSUPPORTED;
    atomic_store_explicit(&cache->rollout->reach, (uint32_t)(percent * 1000 + 0.5), memory_order_relaxed);
    atomic_store_explicit(&cache->rollout->dry, dry_run, memory_order_relaxed);
    return NEAR_OK;
}

bool
near_cache_rollout_takes(near_cache *cache, near_bytes key)
{
    return cache != NULL && (key.data != NULL || key.size == 0) &&
           (cache->rollout == NULL || near__rollout_takes(cache->rollout, key));
}

/* How old a cached value is, in ms.  What came from L2 is older than the time that it is here; what is left of its TTL tells, where that is
 * not cut short by l1.max_ttl. */
static int64_t
age_of(const near_cache *cache, const near_value *value)
{
    near_value_info info = NEAR_VALUE_INFO_INIT;
    int64_t         ttl = cache->settings.ttl, used = 0;

    near_value_get_info(value, &info);
    if (ttl > 0 && ttl <= cache->max_ttl && info.ttl_ms >= 0)
        used = ttl / NEAR_MS - info.ttl_ms;
    return info.age_ms > used ? info.age_ms : used;
}

static enum near__counter
counter_for(int64_t age_ms)
{
    if (age_ms < 1000)
        return NEAR__rollout_mismatches_1s;
    if (age_ms < 10000)
        return NEAR__rollout_mismatches_10s;
    if (age_ms < 60000)
        return NEAR__rollout_mismatches_1m;
    return age_ms < 600000 ? NEAR__rollout_mismatches_10m : NEAR__rollout_mismatches_older;
}

/* An object whose bytes are not kept. */
static bool
is_opaque(const near_value *value)
{
    return near_value_object(value) != NULL && near_value_bytes(value).data == NULL;
}

void
near__rollout_compare(near_cache *cache, near_status cached, const near_value *value, near_status loaded,
                      const near_value *fresh)
{
    if (cached < 0 || loaded < 0 || is_opaque(value) || is_opaque(fresh))
        return; /* one of them says nothing */
    near__count(cache, NEAR__rollout_compared, 1);
    if (cached == loaded && near__bytes_equal(near_value_bytes(value), near_value_bytes(fresh)))
        return;
    near__count(cache, NEAR__rollout_mismatches, 1);
    if (value != NULL)
        near__count(cache, counter_for(age_of(cache, value)), 1);
}
