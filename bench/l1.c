/*
 * L1 hits beside a plain peer, in one run: W1 of the performance notes, every lookup a hit, one thread.
 *
 *     bench/l1 [KEYS [ROUNDS]]      default 1000000 keys, 5 rounds of 5 million lookups each
 *
 * Keys `user_feature_%08d`, values of 100 bytes, zipf 0.99 over scrambled ranks, the sequence drawn
 * beforehand.  Both sides hash the key anew, hand out a held value and read its first byte.  The peer is what
 * one writes in an afternoon: one mutex, a chained table, an LRU list, a reference count.  Rounds alternate;
 * medians are compared, because absolute times on a shared machine mean little.
 */
#include "l1/l1.h"
#include "base/clock.h"
#include "base/hash.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_SIZE = 21, VALUE_SIZE = 100, LOOKUPS = 5000000, ROUNDS_MAX = 99 };

struct world {
    struct near__secret secret;
    size_t              keys;
    char (*key)[KEY_SIZE + 1];
    uint32_t        *sequence;
    struct near__l1 *l1;
    struct peer     *peer;
};

/* ---- the peer */

struct peer_entry {
    _Atomic uint32_t   refs;
    uint32_t           key_size;
    uint64_t           hash;
    struct peer_entry *chain, *newer, *older;
    char               bytes[]; /* key, value */
};

struct peer {
    pthread_mutex_t     lock;
    size_t              mask;
    struct peer_entry **buckets;
    struct peer_entry   ends; /* newer: the oldest, older: the newest */
};

static void
peer_front(struct peer *peer, struct peer_entry *entry)
{
    entry->newer            = &peer->ends;
    entry->older            = peer->ends.older;
    peer->ends.older->newer = entry;
    peer->ends.older        = entry;
}

static bool
peer_open(struct world *world)
{
    struct peer *peer = calloc(1, sizeof(*peer));
    size_t       size = 1;

    if (peer == NULL)
        return false;
    while (size < world->keys)
        size *= 2;
    pthread_mutex_init(&peer->lock, NULL);
    peer->ends.older = peer->ends.newer = &peer->ends;
    peer->mask                          = size - 1;
    peer->buckets                       = calloc(size, sizeof(struct peer_entry *));
    world->peer                         = peer;
    return peer->buckets != NULL;
}

static bool
peer_put(struct peer *peer, uint64_t hash, near_bytes key)
{
    struct peer_entry *entry = malloc(sizeof(*entry) + key.size + VALUE_SIZE);

    if (entry == NULL)
        return false;
    atomic_init(&entry->refs, 1);
    entry->key_size = (uint32_t)key.size;
    entry->hash     = hash;
    memcpy(entry->bytes, key.data, key.size);
    memset(entry->bytes + key.size, 'v', VALUE_SIZE);
    entry->chain                     = peer->buckets[hash & peer->mask];
    peer->buckets[hash & peer->mask] = entry;
    peer_front(peer, entry);
    return true;
}

static struct peer_entry *
peer_get(struct peer *peer, uint64_t hash, near_bytes key)
{
    struct peer_entry *entry;

    pthread_mutex_lock(&peer->lock);
    entry = peer->buckets[hash & peer->mask];
    while (entry != NULL && (entry->hash != hash || entry->key_size != key.size ||
                             memcmp(entry->bytes, key.data, key.size) != 0))
        entry = entry->chain;
    if (entry != NULL) {
        entry->newer->older = entry->older;
        entry->older->newer = entry->newer;
        peer_front(peer, entry);
        atomic_fetch_add_explicit(&entry->refs, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&peer->lock);
    return entry;
}

/* ---- the workload */

static bool
draw_sequence(struct world *world)
{
    double  *cumulated = malloc(world->keys * sizeof(*cumulated));
    double   sum       = 0;
    uint64_t random    = 1;

    world->sequence = malloc(LOOKUPS * sizeof(*world->sequence));
    if (cumulated == NULL || world->sequence == NULL)
        return false;
    for (size_t i = 0; i < world->keys; i++)
        cumulated[i] = sum += pow((double)(i + 1), -0.99);
    for (size_t i = 0; i < LOOKUPS; i++) {
        size_t low = 0, high = world->keys - 1;

        random      = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        double draw = (double)(random >> 11) / 9007199254740992.0 * sum;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (cumulated[middle] < draw)
                low = middle + 1;
            else
                high = middle;
        }
        world->sequence[i] = (uint32_t)(low * UINT64_C(2654435761) % world->keys); /* scrambled */
    }
    free(cumulated);
    return true;
}

static near_bytes
key_at(const struct world *world, size_t i)
{
    return (near_bytes){ world->key[i], KEY_SIZE };
}

static bool
fill(struct world *world)
{
    struct near__l1_config config = { world->keys * 1024 + (1 << 20), 0, 0, "lru" };

    if (near__l1_new(&world->l1, &config) != NEAR_OK || !peer_open(world))
        return false;
    world->key = calloc(world->keys, sizeof(*world->key));
    if (world->key == NULL)
        return false;
    for (size_t i = 0; i < world->keys; i++) {
        snprintf(world->key[i], sizeof(world->key[i]), "user_feature_%08u", (unsigned)(i % 100000000));
        uint64_t            hash  = near__hash_keyed(&world->secret, key_at(world, i));
        void               *room  = NULL;
        struct near__entry *entry = near__entry_new(key_at(world, i), hash, VALUE_SIZE, &room);
        if (entry == NULL || !peer_put(world->peer, hash, key_at(world, i)))
            return false;
        memset(room, 'v', VALUE_SIZE);
        near__l1_insert(world->l1, entry, near__l1_fence(world->l1, hash), 0);
        near__entry_release(&entry);
    }
    return true;
}

/* Nanoseconds per lookup; `hits` counts, so that nothing is optimised away and a miss cannot hide. */
static double
run_l1(struct world *world, size_t *hits)
{
    int64_t start = near__now(&near__clock_system);

    for (size_t i = 0; i < LOOKUPS; i++) {
        near_bytes          key   = key_at(world, world->sequence[i]);
        struct near__entry *entry = near__l1_find(world->l1, near__hash_keyed(&world->secret, key), key, 0);
        *hits += entry != NULL && *(const char *)entry->value == 'v';
        near__entry_release(&entry);
    }
    return (double)(near__now(&near__clock_system) - start) / LOOKUPS;
}

static double
run_peer(struct world *world, size_t *hits)
{
    int64_t start = near__now(&near__clock_system);

    for (size_t i = 0; i < LOOKUPS; i++) {
        near_bytes         key   = key_at(world, world->sequence[i]);
        struct peer_entry *entry = peer_get(world->peer, near__hash_keyed(&world->secret, key), key);
        *hits += entry != NULL && entry->bytes[KEY_SIZE] == 'v';
        if (entry != NULL)
            atomic_fetch_sub_explicit(&entry->refs, 1, memory_order_acq_rel);
    }
    return (double)(near__now(&near__clock_system) - start) / LOOKUPS;
}

static int
by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double
median(double *values, size_t n)
{
    qsort(values, n, sizeof(*values), by_size);
    return values[n / 2];
}

int
main(int argc, char **argv)
{
    struct world world  = { .keys = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000000 };
    size_t       rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : 5, hits[2] = { 0, 0 };
    double       ours[ROUNDS_MAX], theirs[ROUNDS_MAX], l1, peer;

    if (world.keys == 0 || world.keys > 100000000 || rounds == 0 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: %s [KEYS (1 .. 100000000) [ROUNDS (1 .. %d)]]\n", argv[0], ROUNDS_MAX);
        return 2;
    }
    if (near__secret_init(&world.secret) != NEAR_OK || !draw_sequence(&world) || !fill(&world)) {
        fprintf(stderr, "%s: out of memory\n", argv[0]);
        return 1;
    }
    for (size_t i = 0; i < rounds; i++) {
        ours[i]   = run_l1(&world, &hits[0]);
        theirs[i] = run_peer(&world, &hits[1]);
    }
    if (hits[0] != rounds * LOOKUPS || hits[1] != rounds * LOOKUPS) {
        fprintf(stderr, "%s: not every lookup was a hit\n", argv[0]);
        return 1;
    }
    l1   = median(ours, rounds);
    peer = median(theirs, rounds);
    printf("W1, 1 thread, %zu keys, median of %zu rounds: l1 %.1f ns, one-mutex LRU %.1f ns, l1 x%.2f\n",
           world.keys, rounds, l1, peer, peer / l1);
    return 0; /* the memory goes with the process */
}
