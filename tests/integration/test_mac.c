/*
 * A shared tier that others write to: with l2.mac_key_file nothing that was made, changed or moved by who has no key is served, nor
 * obeyed as a lease, a mark, a clear or a tag.  It is counted, the loader runs, and what it gives takes the forgery's place.
 *
 * The forger goes in by a backend of its own, mends every checksum, and copies what it cannot make.  The controls are instances without a
 * key: they believe it.
 */
#include "integration/back.h"
#include "integration/world.h"

#include <fcntl.h>
#include <nearcache.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/le.h"
#include "l2/envelope.h"

WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(memcached, TIER_MEMCACHED)

#define ONE   "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
#define OTHER "F0E0D0C0B0A090807060504030201000f0e0d0c0b0a09080706050403020100f"

/* ---- keys */

static char place[64], path[128];

static const char *
file_with(const char *text, size_t size, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, size), (ssize_t)size);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
    return path;
}

/* A build without OpenSSL has no MAC: then all there is to see is that it says so. */
static bool
has_mac(void)
{
#ifdef HAVE_OPENSSL
    return true;
#else
    return false;
#endif
}

/* An instance with these keys; NULL: without. */
static void
open_keyed(const struct world *w, struct instance *in, const char *keys)
{
    if (keys != NULL)
        OPEN(w, in, "l2.mac_key_file", file_with(keys, strlen(keys), 0600), "grace", "1m");
    else
        OPEN(w, in, "grace", "1m");
}

#define NEEDS_MAC(w)                                                                                         \
    do {                                                                                                     \
        NEEDS(w);                                                                                            \
        if (!has_mac())                                                                                      \
            skip();                                                                                          \
    } while (0)

/* ---- the forger */

struct bytes {
    uint8_t data[4096];
    size_t  size;
};

static void
note(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct bytes *bytes = ctx;

    (void)item;
    assert_in_range(stored.size, 0, sizeof(bytes->data));
    bytes->size = stored.size;
    memcpy(bytes->data, stored.data, stored.size);
}

static void
look(struct back *back, const char *wire, struct bytes *bytes)
{
    struct near_l2_item item = { .key = near_key(wire) };

    back->ops->get_many(back->self, &item, 1, note, bytes, soon());
    assert_int_equal(item.answer, NEAR_L2_DONE);
}

static void
plant(struct back *back, const char *wire, const struct bytes *bytes)
{
    struct near_l2_item item = { .key = near_key(wire), .value = { bytes->data, bytes->size } };

    back->ops->set_many(back->self, NEAR_L2_ALWAYS, &item, 1, NULL, soon());
    assert_int_equal(item.answer, NEAR_L2_DONE);
}

static void
reseal(struct bytes *bytes)
{
    near__le64_put(bytes->data + 56, near__hash_fixed2((near_bytes){ bytes->data, 56 },
                                                       (near_bytes){ bytes->data + 64, bytes->size - 64 }));
}

/* An entry of the forger's own, as anybody can make it. */
static void
make(struct bytes *bytes, unsigned flags, const char *key, uint64_t generation, near_bytes payload)
{
    struct near__envelope e = {
        .flags = flags, .stamp = 4711, .generation = generation, .key = near_key(key), .payload = payload
    };

    bytes->size = near__envelope_size(&e);
    near__envelope_encode(&e, bytes->data);
}

static uint64_t
generation_in(struct back *back, const char *wire)
{
    static struct bytes bytes;

    look(back, wire, &bytes);
    return near__le64_get(bytes.data + 48);
}

/* ---- reading */

#define assert_text(cache, key, expected)                                                                    \
    do {                                                                                                     \
        char   text_[64];                                                                                    \
        size_t size_;                                                                                        \
        assert_int_equal(near_get_copy(cache, near_key(key), text_, sizeof(text_), &size_, NULL), NEAR_OK);  \
        assert_int_equal(size_, strlen(expected));                                                           \
        assert_memory_equal(text_, expected, size_);                                                         \
    } while (0)

/* What a fresh instance with these keys gets for "k", which is to be `expected`, and whether it refuses something for that. */
static void
reads_as(const struct world *w, const char *keys, const char *expected, bool refused)
{
    struct store    store = STORE(.newer = 0);
    struct instance in;
    bool            loads = strcmp(expected, "v1") == 0;
    near_stats      stats;

    open_keyed(w, &in, keys);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_fetch(in.cache, "k", expected);
    stats = stats_of(&in);
    assert_int_equal(store.keys, loads);
    assert_int_equal(stats.l2_unauthentic != 0, refused);
    close_instance(&in);
    if (!loads)
        return;
    /* what was loaded took its place */
    open_keyed(w, &in, keys);
    assert_text(in.cache, "k", "v1");
    close_instance(&in);
}

static void
put_as(const struct world *w, const char *keys, const char *key, const char *value)
{
    struct instance in;

    open_keyed(w, &in, keys);
    assert_int_equal(near_put(in.cache, near_key(key), near_key(value), NULL), NEAR_OK);
    close_instance(&in);
}

/* ---- what is refused */

static void
a_changed_value_is_refused(void **state)
{
    struct world       *w = *state;
    struct back         back;
    static struct bytes bytes;

    NEEDS_MAC(w);
    back_open(&back, w);
    put_as(w, ONE, "k", "genuine");
    reads_as(w, ONE, "genuine", false);
    reads_as(w, NULL, "genuine", false); /* sealed entries are for everybody to read */
    look(&back, "nc:things:k", &bytes);
    memcpy(bytes.data + bytes.size - 7, "planted", 7);
    reseal(&bytes);
    plant(&back, "nc:things:k", &bytes);
    reads_as(w, NULL, "planted", false); /* the control */
    reads_as(w, ONE, "v1", true);
    back_close(&back);
}

static void
an_entry_without_a_mac_is_refused(void **state)
{
    struct world       *w = *state;
    struct back         back;
    static struct bytes bytes;

    NEEDS_MAC(w);
    back_open(&back, w);
    put_as(w, ONE, "k", "genuine");
    make(&bytes, 0, "k", generation_in(&back, "nc:things:k"), near_key("planted"));
    plant(&back, "nc:things:k", &bytes);
    reads_as(w, NULL, "planted", false); /* the control */
    reads_as(w, ONE, "v1", true);
    back_close(&back);
}

static void
an_entry_with_another_key_is_refused(void **state)
{
    struct back   back; /* with it, what lies in memory: outlives its clients */
    struct world *w = *state;

    NEEDS_MAC(w);
    back_open(&back, w);
    put_as(w, ONE, "k", "genuine");
    put_as(w, OTHER, "k", "planted");     /* to which the generation is a forgery, too: it makes a new one */
    reads_as(w, OTHER, "planted", false); /* the control */
    reads_as(w, ONE, "v1", true);
    back_close(&back);
}

/* Whole, as they are, but under another name: of another key, which the entry says itself, and of another cache, which it does not. */

static void
a_moved_entry_is_refused(void **state)
{
    struct world       *w = *state;
    struct back         back;
    struct instance     in;
    near_cache         *others;
    static struct bytes bytes;
    uint64_t            generation;
    char                text[64];
    size_t              size;

    NEEDS_MAC(w);
    back_open(&back, w);
    put_as(w, ONE, "k", "genuine");
    put_as(w, ONE, "k2", "of another key");
    open_keyed(w, &in, ONE);
    assert_int_equal(near_cache_open(in.client, "others", NULL, &others, NULL), NEAR_OK);
    assert_int_equal(near_put(others, near_key("k"), near_key("of others"), NULL), NEAR_OK);
    close_instance(&in);

    look(&back, "nc:things:k2", &bytes);
    plant(&back, "nc:things:k", &bytes);
    open_keyed(w, &in, ONE);
    assert_int_equal(near_get_copy(in.cache, near_key("k"), text, sizeof(text), &size, NULL), NEAR_MISS);
    assert_int_equal(stats_of(&in).l2_wrong_key, 1);
    close_instance(&in);

    /* the two caches' generations differ: with the other one's in it only the MAC is in the way */
    generation = generation_in(&back, "nc:things:k2");
    look(&back, "nc:others:k", &bytes);
    plant(&back, "nc:things:k", &bytes);
    open_keyed(w, &in, ONE);
    assert_int_equal(near_get_copy(in.cache, near_key("k"), text, sizeof(text), &size, NULL), NEAR_MISS);
    assert_int_equal(stats_of(&in).l2_unauthentic, 1);
    close_instance(&in);
    near__le64_put(bytes.data + 48, generation);
    reseal(&bytes);
    plant(&back, "nc:things:k", &bytes);
    reads_as(w, NULL, "of others", false); /* the control */
    reads_as(w, ONE, "v1", true);
    back_close(&back);
}

/* A counter is a number's text: without an envelope it has no MAC either. */
static void
a_number_is_refused_and_so_are_counters(void **state)
{
    struct world       *w = *state;
    struct back         back;
    struct instance     in;
    near_config        *bare = near_config_new();
    near_cache         *counters;
    int64_t             sum;
    static struct bytes bytes    = { .data = "12345", .size = 5 },
                        long_one = { .data = "-1234567890123456789", .size = 20 };

    NEEDS_MAC(w);
    back_open(&back, w);
    plant(&back, "nc:things:k", &bytes);
    reads_as(w, NULL, "12345", false); /* the control */
    reads_as(w, ONE, "v1", true);      /* and the generation, which that one made */
    plant(&back, "nc:things:k", &long_one);
    reads_as(w, ONE, "v1", true);
    back_close(&back);

    open_keyed(w, &in, ONE);
    assert_int_equal(near_add(in.cache, near_key("n"), 1, 1, &sum), NEAR_ERR_UNSUPPORTED);
    assert_int_equal(near_config_set(bare, "l2.mac_key_file", "", NULL), NEAR_OK);
    assert_int_equal(near_cache_open(in.client, "counters", bare, &counters, NULL), NEAR_OK);
    assert_int_equal(near_add(counters, near_key("n"), 1, 1, &sum), NEAR_OK);
    assert_int_equal(sum, 1);
    near_config_free(bare);
    close_instance(&in);
}

/* ---- what is not obeyed */

/* A lease that nobody holds makes readers wait; a mark that nobody set keeps their loads out of both tiers. */
static void
a_forged_marker_is_not_obeyed(void **state)
{
    static const unsigned flags[] = { NEAR__ENVELOPE_LEASE, NEAR__ENVELOPE_MARK };
    struct world         *w       = *state;
    struct back           back;
    static struct bytes   bytes;

    NEEDS_MAC(w);
    back_open(&back, w);
    put_as(w, ONE, "other", "so that there is a generation");
    for (size_t i = 0; i < NEAR_COUNT_OF(flags); i++) {
        struct store    store = STORE(.newer = 0);
        struct instance in;

        make(&bytes, flags[i], "k", 0, near_key(flags[i] == NEAR__ENVELOPE_MARK ? "tokens.." : ""));
        plant(&back, "nc:things:k", &bytes);
        open_keyed(w, &in, NULL); /* the control: waits, or keeps nothing */
        near_cache_set_loader(in.cache, load_from_store, &store);
        (void)fetch_within(in.cache, "k", 200);
        assert_int_equal(stats_of(&in).l2_fills, 0);
        close_instance(&in);
        reads_as(w, ONE, "v1", true);
    }
    back_close(&back);
}

/* A write through the store meets one on its way, too. */
static void
store_all(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_write_done(writes[i]);
}

static void
an_update_goes_over_a_forged_mark(void **state)
{
    struct world       *w = *state;
    struct back         back;
    struct instance     in;
    static struct bytes bytes;

    NEEDS_MAC(w);
    back_open(&back, w);
    put_as(w, ONE, "k", "genuine");
    make(&bytes, NEAR__ENVELOPE_MARK, "k", 0, near_key("tokens.."));
    plant(&back, "nc:things:k", &bytes);
    open_keyed(w, &in, ONE);
    near_cache_set_store(in.cache, store_all, NULL);
    assert_int_equal(near_update(in.cache, near_key("k"), near_key("updated"), NULL), NEAR_OK);
    assert_int_equal(stats_of(&in).marks_met, 0); /* it met none that counts, so its value stays */
    assert_int_equal(stats_of(&in).l2_unauthentic, 1);
    close_instance(&in);
    reads_as(w, ONE, "updated", false);
    back_close(&back);
}

/* A generation of the forger's, to which entries can belong that a clear has done away with. */
static void
a_forged_generation_is_not_believed(void **state)
{
    struct world       *w = *state;
    struct back         back;
    struct instance     in;
    static struct bytes old, generation;
    uint8_t             number[8];

    NEEDS_MAC(w);
    back_open(&back, w);
    put_as(w, ONE, "k", "old");
    look(&back, "nc:things:k", &old);
    open_keyed(w, &in, ONE);
    assert_int_equal(near_clear(in.cache), NEAR_OK);
    close_instance(&in);
    near__le64_put(number, near__le64_get(old.data + 48));
    make(&generation, 0, "nc:things@generation", 0, (near_bytes){ number, 8 });
    plant(&back, "nc:things@generation", &generation);
    plant(&back, "nc:things:k", &old);
    reads_as(w, NULL, "old", false); /* the control */
    reads_as(w, ONE, "v1", true);
    back_close(&back);
}

/* Tags as if they had never been invalidated. */
static void
a_forged_tag_is_not_believed(void **state)
{
    struct world       *w = *state;
    struct back         back;
    struct instance     in;
    const char         *tags[] = { "red" };
    near_put_options    tagged = NEAR_PUT_OPTIONS_INIT;
    static struct bytes entry, clock, tag;

    NEEDS_MAC(w);
    back_open(&back, w);
    tagged.tags      = tags;
    tagged.tag_count = 1;
    open_keyed(w, &in, ONE);
    assert_int_equal(near_invalidate_tag(in.cache, "red"), NEAR_OK); /* so that there is one */
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("old"), &tagged), NEAR_OK);
    close_instance(&in);
    look(&back, "nc:things:k", &entry);
    look(&back, "nc:things@tags", &clock);
    look(&back, "nc:things=red", &tag);
    open_keyed(w, &in, ONE);
    assert_int_equal(near_invalidate_tag(in.cache, "red"), NEAR_OK);
    close_instance(&in);
    /* the payloads of before, in envelopes of the forger's */
    make(&clock, 0, "nc:things@tags", 0,
         (near_bytes){ memcpy(clock.data + 1024, clock.data + clock.size - 16, 16), 16 });
    make(&tag, 0, "nc:things=red", 0,
         (near_bytes){ memcpy(tag.data + 1024, tag.data + tag.size - 16, 16), 16 });
    plant(&back, "nc:things@tags", &clock);
    plant(&back, "nc:things=red", &tag);
    plant(&back, "nc:things:k", &entry);
    open_keyed(w, &in, NULL); /* the control */
    assert_text(in.cache, "k", "old");
    close_instance(&in);
    open_keyed(w, &in, ONE);
    {
        struct store store = STORE(.newer = 0);

        near_cache_set_loader(in.cache, load_from_store, &store);
        assert_fetch(in.cache, "k", "v1");
        assert_true(stats_of(&in).l2_unauthentic >= 1);
    }
    close_instance(&in);
    back_close(&back);
}

/* Bytes where the clock of tags or a tag lies that have no stamp by which they could be replaced: too short, or zeros for one. */
static void
junk_does_not_stop_tags(void **state)
{
    struct world       *w = *state;
    struct back         back;
    struct instance     in;
    const char         *tags[] = { "red" };
    near_put_options    tagged = NEAR_PUT_OPTIONS_INIT;
    near_value         *value  = NULL;
    static struct bytes junk[] = { { .data = "junk", .size = 4 }, { .size = 100 } };

    NEEDS_MAC(w);
    back_open(&back, w);
    tagged.tags      = tags;
    tagged.tag_count = 1;
    for (size_t i = 0; i < NEAR_COUNT_OF(junk); i++) {
        plant(&back, "nc:things@tags", &junk[i]);
        plant(&back, "nc:things=red", &junk[i]);
        open_keyed(w, &in, ONE);
        assert_int_equal(near_put(in.cache, near_key("k"), near_key("tagged"), &tagged), NEAR_OK);
        close_instance(&in);
        plant(&back, "nc:things=red", &junk[i]);
        open_keyed(w, &in, ONE);
        assert_int_equal(near_invalidate_tag(in.cache, "red"), NEAR_OK);
        close_instance(&in);
        open_keyed(w, &in, ONE);
        assert_int_equal(near_get(in.cache, near_key("k"), &value), NEAR_MISS);
        assert_int_equal(near_put(in.cache, near_key("k"), near_key("tagged"), &tagged), NEAR_OK);
        close_instance(&in);
        open_keyed(w, &in, ONE);
        assert_text(in.cache, "k", "tagged");
        close_instance(&in);
    }
    back_close(&back);
}

static void
plant_large(struct back *back, const char *wire)
{
    static const uint8_t large[200 << 10];
    struct near_l2_item  item = { .key = near_key(wire), .value = { large, sizeof(large) } };

    back->ops->set_many(back->self, NEAR_L2_ALWAYS, &item, 1, NULL, soon());
    assert_int_equal(item.answer, NEAR_L2_DONE);
}

/* The same with more than anybody reads, there and where the generation lies. */
static void
nor_does_what_is_too_large(void **state)
{
    static const char *const places[] = { "nc:things@tags", "nc:things=red", "nc:things@generation" };
    struct store             store    = STORE(.newer = 0);
    struct world            *w        = *state;
    struct back              back;
    struct instance          in;
    const char              *tags[] = { "red" };
    near_put_options         tagged = NEAR_PUT_OPTIONS_INIT;

    NEEDS_MAC(w);
    back_open(&back, w);
    tagged.tags      = tags;
    tagged.tag_count = 1;
    for (size_t i = 0; i < NEAR_COUNT_OF(places); i++)
        plant_large(&back, places[i]);
    OPEN(w, &in, "l2.mac_key_file", file_with(ONE, strlen(ONE), 0600), "l2.max_value", "4KiB");
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("tagged"), &tagged), NEAR_OK);
    assert_int_equal(near_invalidate_tag(in.cache, "red"), NEAR_OK);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("tagged"), &tagged), NEAR_OK);
    close_instance(&in);
    OPEN(w, &in, "l2.mac_key_file", file_with(ONE, strlen(ONE), 0600), "l2.max_value", "4KiB");
    assert_text(in.cache, "k", "tagged");
    close_instance(&in);
    /* readers mend it as well */
    plant_large(&back, "nc:things@generation");
    for (int i = 0; i < 2; i++) {
        OPEN(w, &in, "l2.mac_key_file", file_with(ONE, strlen(ONE), 0600), "l2.max_value", "4KiB");
        near_cache_set_loader(in.cache, load_from_store, &store);
        assert_fetch(in.cache, "k", "v1");
        close_instance(&in);
    }
    assert_int_equal(store.keys, 1);
    back_close(&back);
}

/* ---- what works */

/* Keys are changed in three steps; at each, whoever is at it and whoever is one behind believe each other. */
static void
keys_are_changed_without_a_miss(void **state)
{
    static const char *const steps[] = { ONE, ONE "\n" OTHER "\n", OTHER " " ONE, OTHER };
    struct back              back; /* with it, what lies in memory: outlives its clients */
    struct world            *w = *state;

    NEEDS_MAC(w);
    back_open(&back, w);
    for (size_t i = 0; i + 1 < NEAR_COUNT_OF(steps); i++) {
        put_as(w, steps[i], "k", "of before");
        reads_as(w, steps[i], "of before",
                 false); /* and so seals the generation anew, where it is of the old key */
        reads_as(w, steps[i + 1], "of before", false);
        put_as(w, steps[i + 1], "k", "of after");
        reads_as(w, steps[i], "of after", false);
    }
    put_as(w, steps[2], "k", "signed by the second key");
    reads_as(w, steps[0], "v1", true); /* the control: two steps at once; the generation is refused as well */
    back_close(&back);
}

/* The same where all that instances do first is to write: what they then know of generation and tags they need not read again. */
static void
writers_seal_anew_as_well(void **state)
{
    struct world    *w      = *state;
    const char      *tags[] = { "red" };
    near_put_options tagged = NEAR_PUT_OPTIONS_INIT;
    struct back      back; /* as above */
    struct instance  in;

    NEEDS_MAC(w);
    back_open(&back, w);
    tagged.tags      = tags;
    tagged.tag_count = 1;
    open_keyed(w, &in, ONE);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("of before"), &tagged), NEAR_OK);
    close_instance(&in);
    open_keyed(w, &in, OTHER " " ONE);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("tagged"), &tagged), NEAR_OK);
    assert_int_equal(near_put(in.cache, near_key("plain"), near_key("of after"), NULL), NEAR_OK);
    close_instance(&in);
    open_keyed(w, &in, OTHER);
    assert_text(in.cache, "plain", "of after");
    assert_text(in.cache, "k", "tagged");
    assert_int_equal(stats_of(&in).l2_old_generation, 0);
    close_instance(&in);
    back_close(&back);
}

/* Everything else that lies in L2 between instances: all of it sealed, none of it refused. */

static void
all_else_is_as_without(void **state)
{
    static char       large[3000];
    struct world     *w = *state;
    struct instance   a, b;
    struct store      store  = STORE(.newer = 0);
    const char       *tags[] = { "red" };
    near_put_options  tagged = NEAR_PUT_OPTIONS_INIT, once = NEAR_PUT_OPTIONS_INIT;
    near_bytes        keys[3] = { near_key("m1"), near_key("m2"), near_key("m3") };
    near_status       statuses[3];
    near_get_options  below = NEAR_GET_OPTIONS_INIT;
    near_value       *value;
    char              key[400];
    const char *const settings[] = { "l2.mac_key_env", "NEAR_TEST_MAC", "grace", "1m", "l2.compression",
                                     "auto",           "l1.max_bytes",  "0",     NULL };

    NEEDS_MAC(w);
    tagged.tags      = tags;
    tagged.tag_count = 1;
    once.flags       = NEAR_IF_ABSENT;
    below.flags      = NEAR_SKIP_L1;
    assert_int_equal(setenv("NEAR_TEST_MAC", ONE, 1), 0);
    open_with(w, &a, settings);
    open_with(w, &b, settings);
    near_cache_set_loader(b.cache, load_from_store, &store);
    near_cache_set_store(a.cache, store_all, NULL);

    memset(large, 'a', sizeof(large));
    assert_int_equal(near_put(a.cache, near_key("l"), (near_bytes){ large, sizeof(large) }, NULL), NEAR_OK);
    assert_int_equal(near_get(b.cache, near_key("l"), &value), NEAR_OK);
    assert_int_equal(near_value_bytes(value).size, sizeof(large));
    assert_memory_equal(near_value_bytes(value).data, large, sizeof(large));
    near_value_release(value);

    memset(key, 'k', sizeof(key) - 1); /* memcached has it under its hash */
    key[sizeof(key) - 1] = '\0';
    assert_int_equal(near_put(a.cache, near_key(key), near_key("long"), NULL), NEAR_OK);
    assert_text(b.cache, key, "long");

    assert_int_equal(near_put_many(a.cache, keys, keys, 3, NULL, statuses), NEAR_OK);
    assert_text(b.cache, "m2", "m2");
    assert_int_equal(near_put(a.cache, near_key("t"), near_key("tagged"), &tagged), NEAR_OK);
    assert_text(b.cache, "t", "tagged");
    assert_int_equal(near_invalidate_tag(a.cache, "red"), NEAR_OK);
    await_fetch(b.cache, "t", "v1"); /* by a lease, and a fill over it */
    assert_text(a.cache, "t", "v1");

    assert_int_equal(near_put(a.cache, near_key("t"), near_key("again"), &once), NEAR_ERR_CONFLICT);
    assert_int_equal(near_get_with(a.cache, near_key("t"), &below, &value), NEAR_OK);
    once.flags     = 0;
    once.unchanged = value;
    assert_int_equal(near_put(a.cache, near_key("t"), near_key("v9"), &once), NEAR_OK);
    near_value_release(value);
    assert_text(b.cache, "t", "v9");

    assert_int_equal(near_expire(a.cache, near_key("t")), NEAR_OK);
    (void)near_fence(b.client, 5000); /* a message that came in the middle would make it two loads */
    store.mode = FAIL;
    assert_fetch(b.cache, "t", "!v9");
    store.mode = NOT_FOUND;
    assert_int_equal(fetch(b.cache, "none").status, NEAR_NOT_FOUND);
    assert_int_equal(near_get(a.cache, near_key("none"), &value), NEAR_NOT_FOUND);

    assert_int_equal(near_update(a.cache, near_key("u"), near_key("updated"), NULL), NEAR_OK);
    assert_text(b.cache, "u", "updated");
    assert_int_equal(near_erase(a.cache, near_key("u")), NEAR_OK);
    assert_int_equal(near_get(b.cache, near_key("u"), &value), NEAR_MISS);
    assert_int_equal(near_clear(a.cache), NEAR_OK);
    await_fetch(b.cache, "m2", "[2]"); /* NEAR_NOT_FOUND */

    assert_int_equal(stats_of(&a).l2_unauthentic + stats_of(&a).l2_corrupt, 0);
    assert_int_equal(stats_of(&b).l2_unauthentic + stats_of(&b).l2_corrupt, 0);
    close_instance(&a);
    close_instance(&b);
    assert_int_equal(unsetenv("NEAR_TEST_MAC"), 0);
}

/* Some with a key and some without, as while one is introduced: what those without write is a miss to the others, and no more. */
static void
a_fleet_that_is_not_of_one_mind_goes_on(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.newer = 0);
    struct instance with, without;
    near_value     *value = NULL;

    NEEDS_MAC(w);
    open_keyed(w, &with, ONE);
    OPEN(w, &without, "l1.max_bytes", "0"); /* without a bus its own L1 would answer it */
    near_cache_set_loader(with.cache, load_from_store, &store);
    for (int i = 0; i < 5; i++) {
        char key[16];

        snprintf(key, sizeof(key), "k%d", i);
        assert_int_equal(near_put(without.cache, near_key(key), near_key("plain"), NULL), NEAR_OK);
        assert_fetch(with.cache, key, "v1");
        assert_int_equal(near_put(with.cache, near_key(key), near_key("sealed"), NULL), NEAR_OK);
        await_get(without.cache, key, "sealed");
        assert_int_equal(near_invalidate_tag(without.cache, "red"), NEAR_OK);
        assert_int_equal(near_invalidate_tag(with.cache, "red"), NEAR_OK);
        assert_int_equal(near_clear(i % 2 == 0 ? with.cache : without.cache), NEAR_OK);
        assert_int_equal(near_fence(with.client, 10000), NEAR_OK);
        assert_int_equal(near_get(with.cache, near_key(key), &value), NEAR_MISS);
    }
    close_instance(&with);
    close_instance(&without);
}

/* Fields lie in hashes, which others write, without a MAC: where there is a key they become entries of their own, unless told. */
static void
fields_are_entries_where_there_is_a_key(void **state)
{
    static const char *const layouts[] = { "auto", "hash" };
    struct world            *w         = *state;

    NEEDS_MAC(w);
    for (size_t i = 0; i < NEAR_COUNT_OF(layouts); i++) {
        struct instance in;
        near_bytes      entity = near_key("e"), cell = near_key("1.5");
        near_field      field = 7;
        char            out[64];
        near_status     status;

        OPEN(w, &in, "l2.mac_key_file", file_with(ONE, strlen(ONE), 0600), "fields.layout", layouts[i]);
        assert_int_equal(near_fields_put_many(in.cache, &entity, 1, &field, 1, &cell, NULL, &status),
                         NEAR_OK);
        assert_true(
            test_redis_command(w->redis, out, sizeof(out), 2, (const char *[]){ "EXISTS", "nc:things:e" }));
        assert_string_equal(out, i == 0 ? "0" : "1");
        close_instance(&in);
    }
}

/* ---- settings */

struct refused {
    const char *text;
    size_t      size;
    mode_t      mode;
    const char *says;
};

#define KEYS_WANTED "l2.mac_key_file: accepts one or two keys of 64 hexadecimal digits"

static near_status
open_refused(const char *file, const char *env, const char *envelope, near_error *error)
{
    near_config *config = near_config_new();
    near_client *client = NULL;
    near_cache  *cache  = NULL;
    near_status  status;

    assert_int_equal(near_config_set(config, "l2.mac_key_file", file, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.mac_key_env", env, NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.envelope", envelope, NULL), NEAR_OK);
    status = near_client_open(config, &client, error);
    if (status == NEAR_OK)
        status = near_cache_open(client, "things", NULL, &cache, error);
    if (client != NULL)
        assert_int_equal(near_client_close(client, NULL), NEAR_OK);
    near_config_free(config);
    return status;
}

static void
says(const near_error *error, const char *words)
{
    if (strstr(error->text, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error->text, words);
    for (size_t i = 0; i + 6 <= strlen(ONE); i++) { /* no part of a key */
        char part[7];

        snprintf(part, sizeof(part), "%.6s", &ONE[i]);
        assert_null(strcasestr(error->text, part));
    }
}

static void
keys_that_are_none_are_refused(void **state)
{
    static char          large[1024 + 65];
    const struct refused rows[] = {
        { "", 0, 0600, KEYS_WANTED },
        { " \n\t\r\n", 5, 0600, KEYS_WANTED },
        { ONE, 63, 0600, KEYS_WANTED },
        { ONE "0", 65, 0600, KEYS_WANTED },
        { ONE "\0", 65, 0600, KEYS_WANTED },
        { "g" ONE, 64, 0600, KEYS_WANTED },
        { "0x" ONE, 64, 0600, KEYS_WANTED },
        { ONE OTHER, 128, 0600, KEYS_WANTED },
        { ONE "," OTHER, 129, 0600, KEYS_WANTED },
        { ONE " " OTHER " " ONE, 194, 0600, KEYS_WANTED },
        { ONE " secret", 71, 0600, KEYS_WANTED },
        { large, sizeof(large), 0600, KEYS_WANTED },
        { ONE, 64, 0604, "neither readable nor writable by everybody" },
        { ONE, 64, 0602, "neither readable nor writable by everybody" },
    };
    near_error error;

    (void)state;
    memset(large, ' ', sizeof(large)); /* not read to its end */
    memcpy(large, ONE, 64);
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        assert_int_equal(
            open_refused(file_with(rows[i].text, rows[i].size, rows[i].mode), "", "full", &error),
            NEAR_ERR_INVALID);
        says(&error, rows[i].says);
    }
    assert_int_equal(open_refused("/nowhere/mac", "", "full", &error), NEAR_ERR_INVALID);
    says(&error, "l2.mac_key_file = \"/nowhere/mac\": No such file");
    assert_int_equal(open_refused(place, "", "full", &error), NEAR_ERR_INVALID);
    says(&error, "neither readable nor writable by everybody");
    file_with(ONE, 64, 0600);
    assert_int_equal(open_refused(path, "HOME", "full", &error), NEAR_ERR_INVALID);
    says(&error, "l2.mac_key_file and l2.mac_key_env: only one of them");
    assert_int_equal(open_refused("", "NEAR_TEST_NOT_SET", "full", &error), NEAR_ERR_INVALID);
    says(&error, "l2.mac_key_env = \"NEAR_TEST_NOT_SET\": there is no such variable");
    assert_int_equal(setenv("NEAR_TEST_MAC", "12" ONE, 1), 0);
    assert_int_equal(open_refused("", "NEAR_TEST_MAC", "full", &error), NEAR_ERR_INVALID);
    says(&error, "l2.mac_key_env: accepts one or two keys");
    assert_int_equal(unsetenv("NEAR_TEST_MAC"), 0);
    assert_int_equal(open_refused(path, "", "none", &error), NEAR_ERR_INVALID);
    says(&error, "l2.mac_key_file with l2.envelope = none");
    /* the control: this one is a key; and what a build that cannot use it says */
    if (has_mac()) {
        assert_int_equal(open_refused(path, "", "full", &error), NEAR_OK);
    } else {
        assert_int_equal(open_refused(path, "", "full", &error), NEAR_ERR_UNSUPPORTED);
        says(&error, "l2.mac_key_file: this build has no MAC");
    }
}

static int
make_place(void **state)
{
    (void)state;
    snprintf(place, sizeof(place), "/tmp/near-mac-XXXXXX");
    if (mkdtemp(place) == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s/key", place);
    return 0;
}

static int
remove_place(void **state)
{
    (void)state;
    (void)unlink(path);
    return rmdir(place);
}

#define OVER_ALL(test) OVER(memory, test), OVER(redis, test), OVER(memcached, test)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER_ALL(a_changed_value_is_refused),
        OVER_ALL(an_entry_without_a_mac_is_refused),
        OVER_ALL(an_entry_with_another_key_is_refused),
        OVER_ALL(a_moved_entry_is_refused),
        OVER_ALL(a_number_is_refused_and_so_are_counters),
        OVER_ALL(a_forged_marker_is_not_obeyed),
        OVER_ALL(an_update_goes_over_a_forged_mark),
        OVER_ALL(a_forged_generation_is_not_believed),
        OVER_ALL(a_forged_tag_is_not_believed),
        OVER_ALL(junk_does_not_stop_tags),
        OVER_ALL(nor_does_what_is_too_large),
        OVER_ALL(keys_are_changed_without_a_miss),
        OVER_ALL(writers_seal_anew_as_well),
        OVER_ALL(all_else_is_as_without),
        OVER(memory, a_fleet_that_is_not_of_one_mind_goes_on),
        OVER(redis, a_fleet_that_is_not_of_one_mind_goes_on),
        OVER(redis, fields_are_entries_where_there_is_a_key),
        cmocka_unit_test(keys_that_are_none_are_refused),
    };

    return TEST_MAIN(tests, make_place, remove_place);
}
