/*
 * liburcu's lock-free hash table: look-ups write nothing, nothing is ever evicted.
 *
 * Of a fixed size, made for its keys: told to resize itself it went on growing here, on a thread of its own, beyond 16 GiB.
 * Readers hold the RCU read lock while they look at a value; an overwritten entry is freed by call_rcu.  Every thread that comes
 * here is registered for the length of its loop.
 */
#define _LGPL_SOURCE /* its small functions inline, as its users have them */
#define URCU_INLINE_SMALL_FUNCTIONS
#define XXH_INLINE_ALL
#include "bench/l1.h"

#include <stdlib.h>
#include <urcu.h>
#include <urcu/rculfhash.h>
#include <xxhash.h>

struct entry {
    struct cds_lfht_node node;
    struct rcu_head      head;
    uint32_t             key_size, value_size;
    char                 bytes[];
};

static int
is_key(struct cds_lfht_node *node, const void *wanted)
{
    const struct entry *entry = caa_container_of(node, struct entry, node);
    const near_bytes   *key   = wanted;

    return entry->key_size == key->size && memcmp(entry->bytes, key->data, key->size) == 0;
}

static inline bool
rcu_get(void *cache, near_bytes key, uint64_t *sum)
{
    struct cds_lfht_iter  iter;
    struct cds_lfht_node *node;
    const struct entry   *entry;

    urcu_memb_read_lock();
    cds_lfht_lookup(cache, XXH3_64bits(key.data, key.size), is_key, &key, &iter);
    node = cds_lfht_iter_get_node(&iter);
    if (node != NULL) {
        entry = caa_container_of(node, struct entry, node);
        *sum += (unsigned char)entry->bytes[entry->key_size];
    }
    urcu_memb_read_unlock();
    return node != NULL;
}

static void
let_go(struct rcu_head *head)
{
    free(caa_container_of(head, struct entry, head));
}

static bool
put_registered(void *cache, near_bytes key, near_bytes value)
{
    struct entry         *entry = malloc(sizeof(*entry) + key.size + value.size);
    struct cds_lfht_node *old;

    if (entry == NULL)
        return false;
    cds_lfht_node_init(&entry->node);
    entry->key_size   = (uint32_t)key.size;
    entry->value_size = (uint32_t)value.size;
    memcpy(entry->bytes, key.data, key.size);
    memcpy(entry->bytes + key.size, value.data, value.size);
    urcu_memb_read_lock();
    old = cds_lfht_add_replace(cache, XXH3_64bits(key.data, key.size), is_key, &key, &entry->node);
    urcu_memb_read_unlock();
    if (old != NULL)
        urcu_memb_call_rcu(&caa_container_of(old, struct entry, node)->head, let_go);
    return true;
}

/* From the one thread that fills, registered since rcu_open(). */
static bool
rcu_put(void *cache, near_bytes key, near_bytes value)
{
    return put_registered(cache, key, value);
}

static void
loop_get(struct l1_thread *t)
{
    urcu_memb_register_thread();
    l1_loop_get(t, rcu_get);
    urcu_memb_unregister_thread();
}

static void
loop_mixed(struct l1_thread *t)
{
    urcu_memb_register_thread();
    l1_loop_mixed(t, rcu_get, put_registered);
    urcu_memb_unregister_thread();
}

static void *
rcu_open(const struct l1_peer *peer, const struct l1_world *world, uint32_t capacity, const char **why)
{
    unsigned long buckets = 1;

    (void)peer;
    (void)capacity;
    *why = "out of memory";
    while (buckets < world->keys)
        buckets *= 2;
    urcu_memb_register_thread();
    return cds_lfht_new_flavor(buckets, buckets, buckets, 0, &urcu_memb_flavor, NULL);
}

static void
rcu_close(void *cache)
{
    struct cds_lfht_iter  iter;
    struct cds_lfht_node *node;

    urcu_memb_read_lock();
    for (cds_lfht_first(cache, &iter); (node = cds_lfht_iter_get_node(&iter)) != NULL;
         cds_lfht_next(cache, &iter))
        if (cds_lfht_del(cache, node) == 0)
            urcu_memb_call_rcu(&caa_container_of(node, struct entry, node)->head, let_go);
    urcu_memb_read_unlock();
    urcu_memb_barrier();
    urcu_memb_unregister_thread();
    cds_lfht_destroy(cache, NULL);
}

const struct l1_peer l1_rcu = {
    .name  = "liburcu rculfhash",
    .open  = rcu_open,
    .put   = rcu_put,
    .close = rcu_close,
    .loops = { [L1_GET] = loop_get, [L1_MIXED] = loop_mixed },
};
