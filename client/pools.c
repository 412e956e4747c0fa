/* See pools.h.  Nothing here changes while a cache is in use. */
#include "pools.h"

#include <stdio.h>
#include <string.h>

#include "client.h"
#include "l1/policy.h"

#define POOL_LEAST ((int64_t)65536) /* below it a pool's own structures are more than what it keeps */

/* ---- the option */

static bool
is_name(const char *text, size_t size)
{
    return size >= 1 && size <= NEAR__POOL_NAME_MAX &&
           strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-") >= size;
}

/* Cut off the next part, up to `end` or the text's end; NULL: there is none. */
static char *
cut(char **text, char end)
{
    char *part = *text, *at;

    if (part == NULL)
        return NULL;
    at    = strchr(part, end);
    *text = at != NULL ? at + 1 : NULL;
    if (at != NULL)
        *at = '\0';
    return part;
}

static char *
without_blanks(char *text)
{
    size_t size;

    while (*text == ' ' || *text == '\t')
        text++;
    for (size = strlen(text); size > 0 && (text[size - 1] == ' ' || text[size - 1] == '\t'); size--)
        text[size - 1] = '\0';
    return text;
}

/* One NAME:SIZE[:POLICY[:TTL]], in pieces.  NULL: sound; else what would be. */
static const char *
parse_one(char *text, struct near__pool *pool)
{
    char   *name = cut(&text, ':'), *size = cut(&text, ':'), *policy = cut(&text, ':'), *ttl = text;
    int64_t number;

    *pool = (struct near__pool){ .bytes = 0 };
    if (!is_name(name, strlen(name)))
        return "a name of 1 .. 32 of A-Z a-z 0-9 _ . -";
    memcpy(pool->name, name, strlen(name) + 1);
    if (size == NULL || !near__option_number(NEAR__SIZE, size, &number) || number < POOL_LEAST ||
        number > NEAR__TIB)
        return "NAME:SIZE[:POLICY[:TTL]] with a size of 64KiB .. 1TiB";
    pool->bytes = (uint64_t)number;
    if (policy != NULL && *policy != '\0') {
        const struct near__policy *named = near__policy_named(policy);

        if (named == NULL)
            return "as policy adaptive | lru | lfu | sieve | s3fifo | tinylfu";
        pool->policy = named->name;
    }
    if (ttl != NULL && (!near__option_number(NEAR__DURATION, ttl, &pool->ttl) || pool->ttl < NEAR_MS ||
                        pool->ttl > 365 * NEAR__DAY))
        return "as TTL 1ms .. 365d";
    return NULL;
}

near_status
near__pool_list_parse(struct near__pool_list *list, const char *origin, const char *text, near_error *error)
{
    struct near__pool_list mine;
    char                   copy[NEAR__TEXT_SIZE], *rest = copy, *part;

    mine.n = 0;
    if (strlen(text) >= sizeof(copy))
        return near__fail(error, NEAR_ERR_INVALID, "%s: longer than %zu bytes", origin, sizeof(copy) - 1);
    memcpy(copy, text, strlen(text) + 1);
    if (*without_blanks(copy) == '\0')
        rest = NULL;
    while ((part = cut(&rest, ',')) != NULL) {
        char        shown[65];
        const char *wanted;

        part = without_blanks(part);
        snprintf(shown, sizeof(shown), "%s", part);
        if (mine.n == NEAR__POOLS_MAX)
            return near__fail(error, NEAR_ERR_INVALID, "%s: accepts at most %d pools", origin,
                              NEAR__POOLS_MAX);
        wanted = parse_one(part, &mine.pools[mine.n]);
        if (wanted != NULL)
            return near__fail(error, NEAR_ERR_INVALID, "%s: pool \"%s\": accepts %s", origin, shown, wanted);
        for (unsigned i = 0; i < mine.n; i++)
            if (strcmp(mine.pools[i].name, mine.pools[mine.n].name) == 0)
                return near__fail(error, NEAR_ERR_INVALID, "%s: pool \"%s\": accepts each name once", origin,
                                  mine.pools[mine.n].name);
        mine.n++;
    }
    if (list != NULL)
        *list = mine;
    return NEAR_OK;
}

near_status
near__pool_list_check(const struct near__settings *settings, near_error *error)
{
    struct near__pool_list list;
    near_status            status = near__pool_list_parse(&list, "l1.pools", settings->l1_pools, error);

    if (status != NEAR_OK || list.n == 0)
        return status;
    if (settings->l1_max_bytes == 0)
        return near__fail(error, NEAR_ERR_INVALID,
                          "l1.pools with l1.max_bytes = 0: accepts none; the cache has no L1");
    if (settings->l1_max_entries != 0 && settings->l1_max_entries < list.n)
        return near__fail(error, NEAR_ERR_INVALID,
                          "l1.max_entries = %llu with %u pools: accepts 0 or %u and more",
                          (unsigned long long)settings->l1_max_entries, list.n, list.n);
    for (unsigned i = 0; i < list.n; i++)
        if (settings->set[NEAR__OPTION_l1_max_ttl] && settings->l1_max_ttl != 0 &&
            list.pools[i].ttl > settings->l1_max_ttl)
            return near__fail(error, NEAR_ERR_INVALID,
                              "l1.pools: pool \"%s\": accepts as TTL no more than l1.max_ttl (%lldms)",
                              list.pools[i].name, (long long)(settings->l1_max_ttl / NEAR_MS));
    return NEAR_OK;
}

/* ---- a cache's */

static unsigned
pool_of(void *ctx, near_bytes key, size_t value_size)
{
    const near_cache *cache = ctx;
    /* acquire: pairs with near_cache_set_pool_fn(); a snapshot may be coming back already */
    near_pool_fn fn = atomic_load_explicit(&cache->pool_fn, memory_order_acquire);

    return fn != NULL ? fn(key, value_size, cache->pool_ctx) : 0;
}

/* The longest of them is the cache's; pools that have none of their own keep what it was. */
static int64_t
longest_ttl(const near_cache *cache)
{
    int64_t longest = cache->max_ttl;

    for (unsigned i = 0; i < cache->pools.n; i++)
        longest = cache->pools.pools[i].ttl > longest ? cache->pools.pools[i].ttl : longest;
    return longest;
}

void
near__pool_list_open(near_cache *cache, struct near__l1_config *config, struct near__l1_domain *domains)
{
    int64_t longest;

    /* it has been parsed before, by near__pool_list_check() */
    if (near__pool_list_parse(&cache->pools, "l1.pools", cache->settings.l1_pools, NULL) != NEAR_OK)
        cache->pools.n = 0;
    if (cache->pools.n == 0)
        return;
    longest           = longest_ttl(cache);
    config->max_bytes = 0;
    /* every entry is dated by the longest; a shorter one is the pool's own business */
    for (unsigned i = 0; i < cache->pools.n; i++) {
        const struct near__pool *pool = &cache->pools.pools[i];
        int64_t                  ttl  = pool->ttl != 0 ? pool->ttl : cache->max_ttl;

        domains[i] = (struct near__l1_domain){ .max_bytes = (size_t)pool->bytes,
                                               .policy = pool->policy != NULL ? pool->policy : config->policy,
                                               .ttl    = ttl < longest ? ttl : 0 };
        config->max_bytes += (size_t)pool->bytes;
    }
    cache->max_ttl               = longest;
    cache->settings.l1_max_bytes = config->max_bytes;
    config->grace                = cache->settings.grace;
    config->pools_n              = cache->pools.n;
    config->pools                = domains;
    config->pool_of              = pool_of;
    config->pool_ctx             = cache;
}

/* ---- the application's side */

void
near_cache_set_pool_fn(near_cache *cache, near_pool_fn fn, void *ctx)
{
    if (near__cache_check(cache) != NEAR_OK)
        return;
    if (fn != NULL)
        cache->pool_ctx = ctx;
    /* release: pairs with pool_of() */
    atomic_store_explicit(&cache->pool_fn, fn, memory_order_release);
}

unsigned
near_pool_number(const near_cache *cache, const char *name)
{
    if (cache == NULL || name == NULL)
        return 0;
    for (unsigned i = 0; i < cache->pools.n; i++)
        if (strcmp(cache->pools.pools[i].name, name) == 0)
            return i + 1;
    return 0;
}
