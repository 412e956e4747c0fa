/*
 * nearcache with L1 off: every get goes to L2.  One client for all threads, as in a service; the bus is what `auto` makes it, so a put
 * on Redis announces what it has written.
 */
#include "bench/l2.h"

#include <pthread.h>
#include <stdlib.h>

enum { FILL = 500, FILL_THREADS = 4 };

struct ours {
    near_client *client;
    near_cache  *cache;
};

static void *
open_with_ttl(const struct l2_target *target, const char *ttl)
{
    /* Deadlines that a busy machine keeps: the peers have none. */
    const char *const settings[] = { "l1.max_bytes", "0",   "l2.timeout", "5s", "l2.connect_timeout",
                                     "5s",           "ttl", ttl,          NULL };
    struct ours      *ours       = calloc(1, sizeof(*ours));
    near_config      *config     = near_config_new();
    near_error        error;

    if (ours == NULL || config == NULL)
        l2_fail("nearcache", "out of memory");
    if (near_config_set(config, "l2.uri", target->uri, &error) != NEAR_OK)
        l2_fail("nearcache", error.text);
    for (size_t i = 0; settings[i] != NULL; i += 2)
        if (near_config_set(config, settings[i], settings[i + 1], &error) != NEAR_OK)
            l2_fail("nearcache", error.text);
    if (near_client_open(config, &ours->client, &error) != NEAR_OK ||
        near_cache_open(ours->client, "b", NULL, &ours->cache, &error) != NEAR_OK)
        l2_fail("nearcache", error.text);
    near_config_free(config);
    return ours;
}

/* Without an end, as what the peers store: SETs with PX cost the server half as much again. */
static void *
ours_open(const struct l2_target *target, unsigned threads)
{
    (void)threads;
    return open_with_ttl(target, "0");
}

static void *
ours_open_px(const struct l2_target *target, unsigned threads)
{
    (void)threads;
    return open_with_ttl(target, "24h");
}

static void
ours_close(void *shared)
{
    struct ours *ours = shared;

    near_client_close(ours->client, NULL);
    free(ours);
}

static void *
ours_join(void *shared, const struct l2_target *target)
{
    (void)target;
    return shared;
}

static void
ours_leave(void *own)
{
    (void)own;
}

static near_bytes
bytes_of(const struct l2_key *key)
{
    return (near_bytes){ key->text, L2_KEY_SIZE };
}

static bool
is_right(near_status status, near_value *value, const struct l2_key *key)
{
    near_bytes bytes = near_value_bytes(value);
    bool       right = status == NEAR_OK && l2_right(key, bytes.data, bytes.size);

    near_value_release(value);
    return right;
}

static unsigned
get(void *own, const struct l2_key *keys, unsigned n)
{
    struct ours *ours = own;
    near_value  *value;
    near_status  status = near_get(ours->cache, bytes_of(&keys[0]), &value);

    (void)n;
    return is_right(status, value, &keys[0]);
}

static unsigned
get_many(void *own, const struct l2_key *keys, unsigned n)
{
    struct ours *ours = own;
    near_bytes   asked[L2_BATCH_MAX];
    near_value  *values[L2_BATCH_MAX];
    near_status  statuses[L2_BATCH_MAX];
    unsigned     right = 0;

    asked[0] = bytes_of(&keys[0]); /* or the compiler thinks of n = 0 */
    for (unsigned i = 1; i < n; i++)
        asked[i] = bytes_of(&keys[i]);
    near_get_many(ours->cache, asked, n, values, statuses);
    for (unsigned i = 0; i < n; i++)
        right += is_right(statuses[i], values[i], &keys[i]);
    return right;
}

static unsigned
put(void *own, const struct l2_key *keys, unsigned n)
{
    struct ours *ours  = own;
    unsigned     right = 0;
    char         value[L2_VALUE_SIZE];

    l2_value(value, 1);
    for (unsigned i = 0; i < n; i++) {
        memcpy(value, keys[i].text + 4, 12);
        right +=
            near_put(ours->cache, bytes_of(&keys[i]), (near_bytes){ value, sizeof(value) }, NULL) == NEAR_OK;
    }
    return right;
}

static unsigned
put_many(void *own, const struct l2_key *keys, unsigned n)
{
    struct ours *ours = own;
    near_bytes   names[L2_BATCH_MAX], values[L2_BATCH_MAX];
    near_status  statuses[L2_BATCH_MAX];
    char         data[L2_BATCH_MAX][L2_VALUE_SIZE];
    unsigned     right = 0;

    l2_value(data[0], 1);
    for (unsigned i = 0; i < n; i++) {
        memcpy(data[i], data[0], L2_VALUE_SIZE);
        memcpy(data[i], keys[i].text + 4, 12);
        names[i]  = bytes_of(&keys[i]);
        values[i] = (near_bytes){ data[i], L2_VALUE_SIZE };
    }
    near_put_many(ours->cache, names, values, n, NULL, statuses);
    for (unsigned i = 0; i < n; i++)
        right += statuses[i] == NEAR_OK;
    return right;
}

bool
l2_ours_can(const struct l2_target *target)
{
    near_config *config = near_config_new();
    near_client *client = NULL;
    near_error   error;
    bool         can;

    can = config != NULL && near_config_set(config, "l2.uri", target->uri, &error) == NEAR_OK &&
          near_client_open(config, &client, &error) == NEAR_OK;
    if (can)
        near_client_close(client, NULL);
    near_config_free(config);
    return can;
}

/* ---- filling */

struct filler {
    struct ours *ours;
    uint32_t     from, to;
    uint32_t     stored;
};

static void *
fill_part(void *ctx)
{
    struct filler *filler = ctx;
    struct l2_key  keys[FILL];

    for (uint32_t at = filler->from; at < filler->to; at += FILL) {
        uint32_t n = filler->to - at < FILL ? filler->to - at : FILL;
        for (uint32_t i = 0; i < n; i++)
            l2_key_print(&keys[i], at + i);
        filler->stored += put_many(filler->ours, keys, n);
    }
    return NULL;
}

void
l2_ours_fill(const struct l2_target *target)
{
    struct ours  *ours = ours_open(target, 0);
    struct filler parts[FILL_THREADS];
    pthread_t     ids[FILL_THREADS];

    for (uint32_t i = 0; i < FILL_THREADS; i++) {
        parts[i] = (struct filler){ ours, (uint32_t)((uint64_t)target->keys * i / FILL_THREADS),
                                    (uint32_t)((uint64_t)target->keys * (i + 1) / FILL_THREADS), 0 };
        if (pthread_create(&ids[i], NULL, fill_part, &parts[i]) != 0)
            l2_fail("filling", "no more threads");
    }
    for (uint32_t i = 0; i < FILL_THREADS; i++) {
        pthread_join(ids[i], NULL);
        if (parts[i].stored != parts[i].to - parts[i].from)
            l2_fail("filling", "near_put_many did not store everything");
    }
    ours_close(ours);
}

#define OURS .close = ours_close, .join = ours_join, .leave = ours_leave, .ours = true
const struct l2_peer l2_ours_get = { OURS, .open = ours_open, .name = "nearcache, near_get", .call = get };
const struct l2_peer l2_ours_get_many = { OURS, .open = ours_open, .name = "nearcache, near_get_many",
                                          .call = get_many };
const struct l2_peer l2_ours_put = { OURS, .open = ours_open, .name = "nearcache, near_put", .call = put };
const struct l2_peer l2_ours_put_many    = { OURS, .open = ours_open, .name = "nearcache, near_put_many",
                                             .call = put_many };
const struct l2_peer l2_ours_put_many_px = { OURS, .open = ours_open_px,
                                             .name = "nearcache, near_put_many with a TTL",
                                             .call = put_many };
