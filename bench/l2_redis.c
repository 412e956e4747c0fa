/*
 * Redis by hiredis, as its users have it: blocking, a connection a thread or a few connections for all; for batches a pipeline of
 * GETs (append all, read all) and MGET.  Commands are formatted by redisAppendCommandArgv and redisCommandArgv, the fastest it has.
 */
#include "bench/l2.h"

#include <hiredis/hiredis.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

enum { POOL = 4, FILL = 1000 };

static redisContext *
dial(const struct l2_target *target)
{
    redisContext *c =
        target->socket != NULL ? redisConnectUnix(target->socket) : redisConnect("127.0.0.1", target->port);

    if (c == NULL || c->err != 0)
        l2_fail("hiredis", c == NULL ? "out of memory" : c->errstr);
    return c;
}

static void *
join(void *shared, const struct l2_target *target)
{
    (void)shared;
    return dial(target);
}

static void
leave(void *own)
{
    redisFree(own);
}

static bool
is_right(const redisReply *reply, const struct l2_key *key, bool entries)
{
    return reply != NULL && reply->type == REDIS_REPLY_STRING &&
           l2_wire_right(key, reply->str, reply->len, entries);
}

static unsigned
get(void *own, const struct l2_key *keys, unsigned n)
{
    const char  *argv[] = { "GET", keys[0].text };
    const size_t size[] = { 3, L2_KEY_SIZE };
    redisReply  *reply  = redisCommandArgv(own, 2, argv, size);
    bool         right  = is_right(reply, &keys[0], false);

    (void)n;
    freeReplyObject(reply);
    return right;
}

static unsigned
pipeline_as(void *own, const struct l2_key *keys, unsigned n, bool entries)
{
    unsigned right = 0;

    for (unsigned i = 0; i < n; i++) {
        char           name[L2_NAME_SIZE];
        struct l2_wire wire   = l2_wire(name, &keys[i], entries);
        const char    *argv[] = { "GET", wire.text };
        const size_t   size[] = { 3, wire.size };

        redisAppendCommandArgv(own, 2, argv, size);
    }
    for (unsigned i = 0; i < n; i++) {
        void *reply = NULL;

        redisGetReply(own, &reply);
        right += is_right(reply, &keys[i], entries);
        freeReplyObject(reply);
    }
    return right;
}

static unsigned
mget_as(void *own, const struct l2_key *keys, unsigned n, bool entries)
{
    char        names[L2_BATCH_MAX][L2_NAME_SIZE];
    const char *argv[1 + L2_BATCH_MAX] = { "MGET" };
    size_t      size[1 + L2_BATCH_MAX] = { 4 };
    unsigned    right                  = 0;
    redisReply *reply;

    for (unsigned i = 0; i < n; i++) {
        struct l2_wire wire = l2_wire(names[i], &keys[i], entries);

        argv[1 + i] = wire.text;
        size[1 + i] = wire.size;
    }
    reply = redisCommandArgv(own, (int)n + 1, argv, size);
    for (unsigned i = 0; reply != NULL && i < reply->elements && i < n; i++)
        right += is_right(reply->element[i], &keys[i], entries);
    freeReplyObject(reply);
    return right;
}

static unsigned
pipeline(void *own, const struct l2_key *keys, unsigned n)
{
    return pipeline_as(own, keys, n, false);
}

static unsigned
mget(void *own, const struct l2_key *keys, unsigned n)
{
    return mget_as(own, keys, n, false);
}

/* The same for what nearcache has stored: as many bytes, and as much for the server to do. */

static unsigned
pipeline_entries(void *own, const struct l2_key *keys, unsigned n)
{
    return pipeline_as(own, keys, n, true);
}

static unsigned
mget_entries(void *own, const struct l2_key *keys, unsigned n)
{
    return mget_as(own, keys, n, true);
}

static uint32_t
index_of(const struct l2_key *key)
{
    char digits[13] = { 0 };

    memcpy(digits, key->text + 4, 12);
    return (uint32_t)strtoul(digits, NULL, 10);
}

/* px: with a time to live, as nearcache writes them. */
static unsigned
set_all(redisContext *c, const struct l2_key *keys, unsigned n, bool px)
{
    char     value[L2_VALUE_SIZE];
    unsigned right = 0;

    l2_value(value, index_of(&keys[0]));
    for (unsigned i = 0; i < n; i++) {
        const char  *argv[] = { "SET", keys[i].text, value, "PX", "86400000" };
        const size_t size[] = { 3, L2_KEY_SIZE, sizeof(value), 2, 8 };
        memcpy(value, keys[i].text + 4, 12);
        redisAppendCommandArgv(c, px ? 5 : 3, argv, size);
    }
    for (unsigned i = 0; i < n; i++) {
        redisReply *reply = NULL;
        redisGetReply(c, (void **)&reply);
        right += reply != NULL && reply->type == REDIS_REPLY_STATUS;
        freeReplyObject(reply);
    }
    return right;
}

static unsigned
set(void *own, const struct l2_key *keys, unsigned n)
{
    return set_all(own, keys, n, false);
}

static unsigned
set_px(void *own, const struct l2_key *keys, unsigned n)
{
    return set_all(own, keys, n, true);
}

/* ---- a pool: POOL connections, whoever comes waits for one */

struct pool {
    pthread_mutex_t lock; /* covers the rest */
    pthread_cond_t  back;
    unsigned        idle;
    redisContext   *connections[POOL];
};

static void *
pool_open(const struct l2_target *target, unsigned threads)
{
    struct pool *pool = calloc(1, sizeof(*pool));

    (void)threads;
    if (pool == NULL)
        l2_fail("hiredis pool", "out of memory");
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->back, NULL);
    while (pool->idle < POOL)
        pool->connections[pool->idle++] = dial(target);
    return pool;
}

static void
pool_close(void *shared)
{
    struct pool *pool = shared;

    for (unsigned i = 0; i < POOL; i++)
        redisFree(pool->connections[i]);
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->back);
    free(pool);
}

static void *
pool_join(void *shared, const struct l2_target *target)
{
    (void)target;
    return shared;
}

static void
pool_leave(void *own)
{
    (void)own;
}

static unsigned
pool_get(void *own, const struct l2_key *keys, unsigned n)
{
    struct pool  *pool = own;
    redisContext *c;
    unsigned      right;

    pthread_mutex_lock(&pool->lock);
    while (pool->idle == 0)
        pthread_cond_wait(&pool->back, &pool->lock);
    c = pool->connections[--pool->idle];
    pthread_mutex_unlock(&pool->lock);
    right = get(c, keys, n);
    pthread_mutex_lock(&pool->lock);
    pool->connections[pool->idle++] = c;
    pthread_cond_signal(&pool->back);
    pthread_mutex_unlock(&pool->lock);
    return right;
}

/* ---- filling */

void
l2_redis_fill(const struct l2_target *target)
{
    redisContext  *c    = dial(target);
    struct l2_key *keys = calloc(FILL, sizeof(*keys));
    char           value[L2_VALUE_SIZE];

    if (keys == NULL)
        l2_fail("filling", "out of memory");
    for (uint32_t at = 0; at < target->keys; at += FILL) {
        uint32_t n = target->keys - at < FILL ? target->keys - at : FILL;
        for (uint32_t i = 0; i < n; i++) {
            const char  *argv[] = { "SET", keys[i].text, value };
            const size_t size[] = { 3, L2_KEY_SIZE, sizeof(value) };
            l2_key_print(&keys[i], at + i);
            l2_value(value, at + i);
            redisAppendCommandArgv(c, 3, argv, size);
        }
        for (uint32_t i = 0; i < n; i++) {
            void *reply = NULL;
            if (redisGetReply(c, &reply) != REDIS_OK)
                l2_fail("filling", c->errstr);
            freeReplyObject(reply);
        }
    }
    free(keys);
    redisFree(c);
}

const struct l2_peer l2_hiredis_get = {
    .name = "hiredis, a connection a thread", .join = join, .leave = leave, .call = get
};
const struct l2_peer l2_hiredis_pool     = { .name  = "hiredis, a pool of 4",
                                             .open  = pool_open,
                                             .close = pool_close,
                                             .join  = pool_join,
                                             .leave = pool_leave,
                                             .call  = pool_get };
const struct l2_peer l2_hiredis_pipeline = {
    .name = "hiredis, GETs appended and read", .join = join, .leave = leave, .call = pipeline
};
const struct l2_peer l2_hiredis_mget = {
    .name = "hiredis, MGET", .join = join, .leave = leave, .call = mget
};
const struct l2_peer l2_hiredis_pipeline_entries = { .name  = "hiredis, GETs of nearcache's entries",
                                                     .join  = join,
                                                     .leave = leave,
                                                     .call  = pipeline_entries,
                                                     .ours  = true };
const struct l2_peer l2_hiredis_mget_entries     = { .name  = "hiredis, MGET of nearcache's entries",
                                                     .join  = join,
                                                     .leave = leave,
                                                     .call  = mget_entries,
                                                     .ours  = true };
const struct l2_peer l2_hiredis_set = { .name = "hiredis, SET", .join = join, .leave = leave, .call = set };
const struct l2_peer l2_hiredis_pipeline_set = {
    .name = "hiredis, SETs appended and read", .join = join, .leave = leave, .call = set
};
const struct l2_peer l2_hiredis_pipeline_set_px = {
    .name = "hiredis, SETs with PX", .join = join, .leave = leave, .call = set_px
};
const struct l2_peer l2_redis_benchmark = { .name = "redis-benchmark -P 100 -c 50", .external = true };
