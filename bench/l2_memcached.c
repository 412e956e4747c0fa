/*
 * memcached by libmemcached, as its users have it: a handle a thread, memcached_pool with as many handles as threads and with fewer,
 * memcached_mget for batches.  Text protocol, no delay.
 */
#include "bench/l2.h"

#include <libmemcached/memcached.h>
#include <libmemcachedutil-1.0/pool.h>
#include <stdlib.h>
#include <unistd.h>

enum { SMALL_POOL = 16, FILL = 1000 };

static memcached_st *
handle_for(const struct l2_target *target)
{
    memcached_st *mc = memcached_create(NULL);

    if (mc == NULL)
        l2_fail("libmemcached", "out of memory");
    if (target->socket != NULL)
        memcached_server_add_unix_socket(mc, target->socket);
    else
        memcached_server_add(mc, "127.0.0.1", (in_port_t)target->port);
    memcached_behavior_set(mc, MEMCACHED_BEHAVIOR_TCP_NODELAY, 1);
    return mc;
}

static void *
join(void *shared, const struct l2_target *target)
{
    (void)shared;
    return handle_for(target);
}

static void
leave(void *own)
{
    memcached_free(own);
}

static unsigned
get(void *own, const struct l2_key *keys, unsigned n)
{
    size_t             size;
    uint32_t           flags;
    memcached_return_t rc;
    char              *value = memcached_get(own, keys[0].text, L2_KEY_SIZE, &size, &flags, &rc);
    bool               right = value != NULL && l2_right(&keys[0], value, size);

    (void)n;
    free(value);
    return right;
}

/* Answers come in the server's order, each with its key. */
static unsigned
mget_as(void *own, const struct l2_key *keys, unsigned n, bool entries)
{
    char                names[L2_BATCH_MAX][L2_NAME_SIZE];
    const char         *texts[L2_BATCH_MAX];
    size_t              sizes[L2_BATCH_MAX];
    unsigned            right = 0;
    memcached_result_st result;
    memcached_return_t  rc;

    for (unsigned i = 0; i < n; i++) {
        struct l2_wire wire = l2_wire(names[i], &keys[i], entries);

        texts[i] = wire.text;
        sizes[i] = wire.size;
    }
    if (memcached_mget(own, texts, sizes, n) != MEMCACHED_SUCCESS)
        return 0;
    memcached_result_create(own, &result);
    while (memcached_fetch_result(own, &result, &rc) != NULL) {
        struct l2_key key;

        if (memcached_result_key_length(&result) != sizes[0])
            continue;
        memcpy(key.text, memcached_result_key_value(&result) + sizes[0] - L2_KEY_SIZE, L2_KEY_SIZE);
        right +=
            l2_wire_right(&key, memcached_result_value(&result), memcached_result_length(&result), entries);
    }
    memcached_result_free(&result);
    return right < n ? right : n;
}

static unsigned
mget(void *own, const struct l2_key *keys, unsigned n)
{
    return mget_as(own, keys, n, false);
}

/* The same for what nearcache has stored: as many bytes, and as much for the server to do. */
static unsigned
mget_entries(void *own, const struct l2_key *keys, unsigned n)
{
    return mget_as(own, keys, n, true);
}

static unsigned
set(void *own, const struct l2_key *keys, unsigned n)
{
    char     value[L2_VALUE_SIZE];
    unsigned right = 0;

    l2_value(value, 1);
    for (unsigned i = 0; i < n; i++) {
        memcpy(value, keys[i].text + 4, 12);
        right +=
            memcached_set(own, keys[i].text, L2_KEY_SIZE, value, sizeof(value), 0, 0) == MEMCACHED_SUCCESS;
    }
    return right;
}

/* ---- memcached_pool */

struct pool {
    memcached_st      *master;
    memcached_pool_st *pool;
};

static void *
pool_of(const struct l2_target *target, unsigned handles)
{
    struct pool *pool = calloc(1, sizeof(*pool));

    if (pool == NULL)
        l2_fail("memcached_pool", "out of memory");
    pool->master = handle_for(target);
    pool->pool   = memcached_pool_create(pool->master, handles, handles);
    if (pool->pool == NULL)
        l2_fail("memcached_pool", "cannot be made");
    return pool;
}

static void *
pool_open(const struct l2_target *target, unsigned threads)
{
    return pool_of(target, threads);
}

static void *
small_pool_open(const struct l2_target *target, unsigned threads)
{
    return pool_of(target, threads < SMALL_POOL ? threads : SMALL_POOL);
}

static void
pool_close(void *shared)
{
    struct pool *pool = shared;

    memcached_pool_destroy(pool->pool);
    memcached_free(pool->master);
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
    struct pool       *pool = own;
    memcached_return_t rc;
    struct timespec    wait = { 5, 0 };
    memcached_st      *mc   = memcached_pool_fetch(pool->pool, &wait, &rc);
    unsigned           right;

    if (mc == NULL)
        return 0;
    right = get(mc, keys, n);
    memcached_pool_release(pool->pool, mc);
    return right;
}

/* ---- filling: text `set`s without replies, then one command that has one */

static void
write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, data, size);
        if (n <= 0)
            l2_fail("filling", "memcached closed the connection");
        data += n;
        size -= (size_t)n;
    }
}

void
l2_memcached_fill(const struct l2_target *target)
{
    int   fd  = test_server_connect(target->servers[0]);
    char *out = malloc((size_t)FILL * 200), answer[64];

    if (fd < 0 || out == NULL)
        l2_fail("filling", "no connection to memcached");
    for (uint32_t at = 0; at < target->keys;) {
        char *to = out;
        for (uint32_t end = at + FILL < target->keys ? at + FILL : target->keys; at < end; at++) {
            struct l2_key key;
            l2_key_print(&key, at);
            to += sprintf(to, "set %.*s 0 0 %d noreply\r\n", L2_KEY_SIZE, key.text, L2_VALUE_SIZE);
            l2_value(to, at);
            memcpy(to + L2_VALUE_SIZE, "\r\n", 2);
            to += L2_VALUE_SIZE + 2;
        }
        write_all(fd, out, (size_t)(to - out));
    }
    write_all(fd, "version\r\n", 9);
    if (read(fd, answer, sizeof(answer)) <= 0 || memcmp(answer, "VERSION", 7) != 0)
        l2_fail("filling", "memcached refused");
    close(fd);
    free(out);
}

const struct l2_peer l2_memcached_get = {
    .name = "libmemcached, a handle a thread", .join = join, .leave = leave, .call = get
};
const struct l2_peer l2_memcached_pool   = { .name  = "memcached_pool, a handle a thread",
                                             .open  = pool_open,
                                             .close = pool_close,
                                             .join  = pool_join,
                                             .leave = pool_leave,
                                             .call  = pool_get };
const struct l2_peer l2_memcached_pool16 = { .name  = "memcached_pool of 16",
                                             .open  = small_pool_open,
                                             .close = pool_close,
                                             .join  = pool_join,
                                             .leave = pool_leave,
                                             .call  = pool_get };
const struct l2_peer l2_memcached_mget   = {
      .name = "memcached_mget", .join = join, .leave = leave, .call = mget
};
const struct l2_peer l2_memcached_mget_entries = { .name  = "memcached_mget of nearcache's entries",
                                                   .join  = join,
                                                   .leave = leave,
                                                   .call  = mget_entries,
                                                   .ours  = true };
const struct l2_peer l2_memcached_set          = {
             .name = "memcached_set", .join = join, .leave = leave, .call = set
};
