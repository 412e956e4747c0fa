/*
 * Fuzz target: how a user's key becomes a key of L2, near__wire_add() and near__l2_key_read().
 *
 * Input: one byte n, n bytes of one key, the rest is another.  On memcached no byte of what goes over the wire may be anything but a printable
 * character, and it is never longer than the server takes; on every backend different keys stay different, an entry is never a
 * lease, a tag or a generation, and a key that went as it is comes back as it was, from any client that speaks of it.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "client.h"
#include "tier.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

/* Opened once and never asked for anything: nobody has to listen there. */
static const struct place {
    const char *uri, *envelope;
} places[] = {
    { "memcached://127.0.0.1:1", "full" },
    { "memcached://127.0.0.1:1", "none" },
    { "memory:", "full" },
};
static near_cache *caches[3];

static void
open_places(void)
{
    for (size_t i = 0; i < 3; i++) {
        near_config *config = near_config_new();
        near_client *client;

        check(config != NULL && near_config_set(config, "l2.uri", places[i].uri, NULL) == NEAR_OK);
        check(near_config_set(config, "l2.envelope", places[i].envelope, NULL) == NEAR_OK);
        check(near_config_set(config, "l1.max_ttl", "1s", NULL) == NEAR_OK);
        check(near_client_open(config, &client, NULL) == NEAR_OK);
        check(near_cache_open(client, "users", NULL, &caches[i], NULL) == NEAR_OK);
        near_config_free(config);
    }
}

static void
check_bytes(const near_cache *cache, near_bytes wire)
{
    const unsigned char *at = wire.data;

    check(wire.size <= cache->client->traits.max_key);
    for (size_t i = 0; !cache->client->traits.binary_keys && i < wire.size; i++)
        check(at[i] >= 0x21 && at[i] <= 0x7e);
}

static void
check_back(const near_cache *cache, near_bytes wire, near_bytes key, enum near__l2_key plain)
{
    near_bytes        name, back;
    enum near__l2_key kind = near__l2_key_read(cache->client, wire, &name, &back);

    check(kind == plain || kind == NEAR__L2_HASHED);
    check(near__bytes_equal(name, near_key("users")));
    check(kind == NEAR__L2_HASHED || near__bytes_equal(back, key));
}

static void
try_keys(const near_cache *cache, near_bytes a, near_bytes b)
{
    struct near__wire    wire;
    struct near_l2_item *items[6];

    check(near__wire_open(&wire, cache, 6, 3 * (a.size + b.size)) == NEAR_OK);
    items[0] = near__wire_add(&wire, cache, a);
    items[1] = near__wire_add(&wire, cache, b);
    items[2] = near__wire_add_side(&wire, cache, a);
    items[3] = near__wire_add_tag(&wire, cache, a);
    items[4] = near__wire_add_tag(&wire, cache, b);
    items[5] = near__wire_add_generation(&wire, cache);
    for (size_t i = 0; i < 6; i++)
        check_bytes(cache, items[i]->key);
    for (size_t i = 0; i < 6; i++)
        for (size_t j = 0; j < i; j++)
            check(!near__bytes_equal(items[i]->key, items[j]->key) ||
                  (near__bytes_equal(a, b) && ((i == 1 && j == 0) || (i == 4 && j == 3))));
    check_back(cache, items[0]->key, a, NEAR__L2_ENTRY);
    check_back(cache, items[1]->key, b, NEAR__L2_ENTRY);
    check_back(cache, items[3]->key, a, NEAR__L2_TAG);
    near__wire_close(&wire);
}

/* What another client of the server calls its keys is anything at all. */
static void
try_foreign(const near_cache *cache, near_bytes any)
{
    near_bytes name, key;

    (void)near__l2_key_read(cache->client, any, &name, &key);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    near_bytes a, b;

    if (size < 2)
        return 0;
    if (caches[0] == NULL)
        open_places();
    a = (near_bytes){ data + 1, data[0] < size - 1 ? data[0] : size - 1 };
    b = (near_bytes){ data + 1 + a.size, size - 1 - a.size };
    for (size_t i = 0; i < 3; i++) {
        if (a.size > 0 && b.size > 0)
            try_keys(caches[i], a, b);
        try_foreign(caches[i], b);
    }
    return 0;
}
