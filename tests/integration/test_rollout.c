/*
 * Taking a cache into use step by step: keys outside go past both tiers, the same ones in every instance; a dry run fills and compares,
 * and serves what was loaded.  The control of each is the same cache with all keys in.
 */
#include "world.h"

#include "client.h"
#include "harness/sink.h"

WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(memcached, TIER_MEMCACHED_BUS)

static near_bytes
number(char text[32], unsigned i)
{
    snprintf(text, 32, "user:%u", i);
    return near_key(text);
}

static void
test_patterns(void **state)
{
    static const struct {
        const char *patterns, *text;
        bool        matches;
    } rows[] = {
        { "a", "a", true },
        { "a", "b", false },
        { "a", "", false },
        { "*", "", true },
        { "*", "anything", true },
        { "user:*", "user:", true },
        { "user:*", "user", false },
        { "*:name", "user:name", true },
        { "a*b*c", "aXbYbZc", true },
        { "a*b*c", "aXbYbZ", false },
        { "x,user:*", "user:1", true },
        { "x,,y", "", false },
        { "x,y", "y", true },
        { "**a**", "bab", true },
        { "*aab", "aaaab", true },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++)
        assert_int_equal(near__pattern_matches(rows[i].patterns, near_key(rows[i].text)), rows[i].matches);
}

/* Vectors: who takes part is the same in every later version, too. */
static void
test_the_same_keys_take_part_everywhere_and_more_at_more(void **state)
{
    static const char   parts[] = "10"; /* percent */
    struct world       *w       = *state;
    struct instance     a, b;
    size_t              ten = 0, at[5] = { 0 }, keys = test_scale(20000);
    static const double steps[] = { 0, 10, 33.3, 90, 100 };

    NEEDS(w);
    OPEN(w, &a, "rollout.percent", parts);
    OPEN(w, &b, "rollout.percent", parts);
    for (unsigned i = 0; i < keys; i++) {
        char       text[32];
        near_bytes key   = number(text, i);
        bool       takes = near_cache_rollout_takes(a.cache, key), before = false;

        assert_int_equal(near_cache_rollout_takes(b.cache, key), takes);
        ten += takes;
        for (size_t s = 0; s < NEAR_COUNT_OF(steps); s++) {
            bool now;

            assert_int_equal(near_cache_set_rollout(b.cache, steps[s], false), NEAR_OK);
            now = near_cache_rollout_takes(b.cache, key);
            assert_true(now || !before); /* in once, in for good */
            before = now;
            at[s] += now;
        }
        assert_int_equal(near_cache_set_rollout(b.cache, 10, false), NEAR_OK);
    }
    assert_int_equal(at[0], 0);
    assert_int_equal(at[1], ten);
    assert_in_range(ten, keys * 7 / 100, keys * 13 / 100);
    assert_in_range(at[2], keys * 30 / 100, keys * 37 / 100);
    assert_int_equal(at[4], keys);
    assert_int_equal(near_cache_set_rollout(b.cache, 101, false), NEAR_ERR_INVALID);
    assert_int_equal(near_cache_set_rollout(b.cache, -1, false), NEAR_ERR_INVALID);
    close_instance(&a);
    close_instance(&b);
}

static void
fetch_is(near_cache *cache, const char *key, const char *expected, near_source source)
{
    struct answer answer = fetch_with(cache, key, NULL);

    assert_string_equal(answer.text, expected);
    if (answer.status == NEAR_OK && source != NEAR_FROM_NOWHERE)
        assert_int_equal(answer.info.source, source);
}

static near_status
get_status(near_cache *cache, const char *key)
{
    near_value *value;
    near_status status = near_get(cache, near_key(key), &value);

    near_value_release(value);
    return status;
}

static void
test_keys_outside_go_past_both_tiers(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE();
    struct instance in, all;
    near_bytes  keys[] = { near_key("user:1"), near_key("item:1"), near_key("user:2"), near_key("item:2") };
    near_value *values[4];
    near_status statuses[4];
    near_stats  stats;

    NEEDS(w);
    OPEN(w, &all, "ttl", "5m");
    OPEN(w, &in, "rollout.allow", "user:*,other");
    near_cache_set_loader(in.cache, load_from_store, &store);
    near_cache_set_loader(all.cache, load_from_store, &store);
    fetch_is(in.cache, "user:1", "v1", NEAR_FROM_LOADER);
    fetch_is(in.cache, "user:1", "v1", NEAR_FROM_L1);
    assert_int_equal(store.keys, 1);
    for (unsigned i = 0; i < 3; i++)
        fetch_is(in.cache, "item:1", "v1", NEAR_FROM_LOADER);
    assert_int_equal(store.keys, 4);
    assert_int_equal(get_status(in.cache, "item:1"), NEAR_MISS);
    assert_int_equal(get_status(in.cache, "user:1"), NEAR_OK);
    /* nothing of it lies in L2; the control: of the other one it does */
    assert_int_equal(get_status(all.cache, "item:1"), NEAR_MISS);
    assert_int_equal(get_status(all.cache, "user:1"), NEAR_OK);
    /* what another instance has put there is not served either */
    fetch_is(all.cache, "item:1", "v1", NEAR_FROM_LOADER);
    fetch_is(all.cache, "item:1", "v1", NEAR_FROM_L1);
    assert_int_equal(store.keys, 5);
    assert_int_equal(get_status(in.cache, "item:1"), NEAR_MISS);
    fetch_is(in.cache, "item:1", "v1", NEAR_FROM_LOADER);
    /* batches */
    assert_int_equal(near_get_many(in.cache, keys, 4, values, statuses), NEAR_OK);
    assert_int_equal(statuses[0], NEAR_OK);
    for (size_t i = 1; i < 4; i++)
        assert_int_equal(statuses[i], NEAR_MISS);
    near_value_release(values[0]);
    assert_int_equal(near_fetch_many(in.cache, keys, 4, NULL, values, statuses), NEAR_OK);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(statuses[i], NEAR_OK);
        near_value_release(values[i]);
    }
    stats = stats_of(&in);
    assert_int_equal(stats.rollout_outside, 3 + 1 + 1 + 1 + 2 + 2);
    /* failures and absences of the store are the caller's as they are */
    store.mode = FAIL;
    fetch_is(in.cache, "item:9", "[-3]", NEAR_FROM_NOWHERE);
    store.mode = NOT_FOUND;
    fetch_is(in.cache, "item:9", "[2]", NEAR_FROM_NOWHERE);
    store.mode = ANSWER;
    fetch_is(in.cache, "item:9", "v1", NEAR_FROM_LOADER);
    close_instance(&in);
    close_instance(&all);
}

/* Writes are done for all keys, so a key that is let in finds what is right. */
static void
test_the_percentage_moves_while_it_runs(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE();
    struct instance in, plain;

    NEEDS(w);
    OPEN(w, &in, "rollout.percent", "100");
    OPEN(w, &plain, "ttl", "5m");
    near_cache_set_loader(in.cache, load_from_store, &store);
    fetch_is(in.cache, "k", "v1", NEAR_FROM_LOADER);
    fetch_is(in.cache, "k", "v1", NEAR_FROM_L1);
    assert_int_equal(near_cache_set_rollout(in.cache, 0, false), NEAR_OK);
    store.newer = 1;
    fetch_is(in.cache, "k", "v2", NEAR_FROM_LOADER);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("put"), NULL), NEAR_OK);
    fetch_is(in.cache, "k", "v2", NEAR_FROM_LOADER);
    assert_int_equal(near_cache_set_rollout(in.cache, 100, false), NEAR_OK);
    fetch_is(in.cache, "k", "put", NEAR_FROM_NOWHERE);
    assert_int_equal(near_cache_set_rollout(in.cache, 0, false), NEAR_OK);
    assert_int_equal(near_remove(in.cache, near_key("k")), NEAR_OK);
    assert_int_equal(near_cache_set_rollout(in.cache, 100, false), NEAR_OK);
    fetch_is(in.cache, "k", "v2", NEAR_FROM_LOADER);
    /* a cache that was opened without has none of it */
    assert_int_equal(near_cache_set_rollout(plain.cache, 50, false), NEAR_ERR_UNSUPPORTED);
    assert_true(near_cache_rollout_takes(plain.cache, near_key("k")));
    assert_null(plain.cache->rollout);
    close_instance(&in);
    close_instance(&plain);
}

static void
test_a_dry_run_compares_and_serves_what_was_loaded(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE();
    struct instance in, other;
    near_bytes      keys[] = { near_key("a"), near_key("b") };
    near_value     *values[2];
    near_status     statuses[2];
    near_stats      stats;

    NEEDS(w);
    OPEN(w, &in, "rollout.dry_run", "yes");
    OPEN(w, &other, "ttl", "5m");
    near_cache_set_loader(in.cache, load_from_store, &store);
    fetch_is(in.cache, "a", "v1", NEAR_FROM_LOADER);
    assert_int_equal(store.keys, 1);
    assert_int_equal(get_status(other.cache, "a"), NEAR_OK); /* filled */
    assert_int_equal(get_status(in.cache, "a"), NEAR_MISS);  /* and not served */
    fetch_is(in.cache, "a", "v1", NEAR_FROM_LOADER);
    assert_int_equal(store.keys, 2);
    stats = stats_of(&in);
    assert_int_equal(stats.rollout_compared, 1);
    assert_int_equal(stats.rollout_mismatches, 0);
    /* the store has changed, and nobody has told: served is what it says, and the cache's is counted as wrong, by its age */
    store.newer = 1;
    fetch_is(in.cache, "a", "v2", NEAR_FROM_LOADER);
    stats = stats_of(&in);
    assert_int_equal(stats.rollout_compared, 2);
    assert_int_equal(stats.rollout_mismatches, 1);
    assert_int_equal(stats.rollout_mismatches_1s + stats.rollout_mismatches_10s, 1);
    sleep_ms(1050);
    assert_int_equal(near_fetch_many(in.cache, keys, 2, NULL, values, statuses), NEAR_OK);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(near_value_bytes(values[i]).size, 2);
        assert_memory_equal(near_value_bytes(values[i]).data, "v2", 2);
        near_value_release(values[i]);
    }
    stats = stats_of(&in);
    assert_int_equal(stats.rollout_compared, 3); /* b was loaded just now */
    assert_int_equal(stats.rollout_mismatches, 2);
    assert_in_range(stats.rollout_mismatches_10s, 1, 2);
    /* the store has it no more */
    store.mode = NOT_FOUND;
    fetch_is(in.cache, "a", "[2]", NEAR_FROM_NOWHERE);
    assert_int_equal(stats_of(&in).rollout_mismatches, 3);
    /* live: what is cached is served */
    assert_int_equal(near_cache_set_rollout(in.cache, 100, false), NEAR_OK);
    fetch_is(in.cache, "a", "v1", NEAR_FROM_NOWHERE);
    assert_int_equal(stats_of(&in).rollout_mismatches, 3);
    close_instance(&in);
    close_instance(&other);
}

static void
test_caches_by_name(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE();
    struct instance in;
    near_cache     *other;
    near_error      error;

    NEEDS(w);
    OPEN(w, &in, "rollout.caches", "feature*,things");
    assert_int_equal(near_cache_open(in.client, "others", NULL, &other, &error), NEAR_OK);
    near_cache_set_loader(in.cache, load_from_store, &store);
    near_cache_set_loader(other, load_from_store, &store);
    for (unsigned i = 0; i < 2; i++) {
        fetch_is(in.cache, "k", "v1", NEAR_FROM_NOWHERE);
        fetch_is(other, "k", "v1", NEAR_FROM_LOADER);
    }
    assert_int_equal(store.keys, 1 + 2);
    near_cache_close(other);
    close_instance(&in);
}

/* ---- what loaders and writers may count on all the same */

struct own {
    near_cache *cache;
    unsigned    depth, deepest;
    near_status inner; /* of the outermost loader's fetch */
};

static void
load_by_itself(near_load *loads[], size_t n, void *ctx)
{
    struct own *own   = ctx;
    near_value *value = NULL;

    own->depth++;
    if (own->depth > own->deepest)
        own->deepest = own->depth;
    if (own->depth < 4) /* or it would never come back */
        own->inner = near_fetch(own->cache, near_load_key(loads[0]), NULL, &value);
    near_value_release(value);
    own->depth--;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], near_key("v"));
}

/* A loader that fetches what it is loading is refused, inside (the control), outside and in a dry run. */
static void
test_a_loader_is_not_run_for_its_own_key(void **state)
{
    struct world   *w = *state;
    struct instance in;
    near_bytes      keys[] = { near_key("x"), near_key("y") };
    near_value     *values[2];
    near_status     statuses[2];

    NEEDS(w);
    OPEN(w, &in, "rollout.percent", "100");
    for (int mode = 0; mode < 4; mode++) {
        struct own own = { .cache = in.cache };

        near_cache_set_loader(in.cache, load_by_itself, &own);
        assert_int_equal(near_cache_set_rollout(in.cache, mode % 2 == 0 ? 100 : 0, mode == 2), NEAR_OK);
        fetch_is(in.cache, mode < 2 ? "k" : "l", "v", NEAR_FROM_LOADER);
        fetch_is(in.cache, mode < 2 ? "k" : "l", "v", NEAR_FROM_NOWHERE);
        assert_int_equal(own.inner, NEAR_ERR_BUSY);
        assert_int_equal(near_fetch_many(in.cache, keys, 2, NULL, values, statuses), NEAR_OK);
        for (size_t i = 0; i < 2; i++)
            near_value_release(values[i]);
        assert_int_equal(own.deepest, 1);
    }
    close_instance(&in);
}

struct mover {
    near_cache *cache;
    bool        moved;
};

static void
load_and_move(near_load *loads[], size_t n, void *ctx)
{
    struct mover *mover = ctx;

    mover->moved = near_cache_set_rollout(mover->cache, 100, false) == NEAR_OK;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], near_key("v"));
}

/* The percentage moves in the middle of a batch: every key is answered all the same. */
static void
test_a_batch_is_whole_while_the_percentage_moves(void **state)
{
    struct world   *w = *state;
    struct instance in;
    struct mover    mover = { 0 };
    near_bytes      keys[40];
    char            texts[40][32];
    near_value     *values[40];
    near_status     statuses[40];
    size_t          inside = 0;

    NEEDS(w);
    OPEN(w, &in, "rollout.percent", "50");
    mover.cache = in.cache;
    near_cache_set_loader(in.cache, load_and_move, &mover);
    for (unsigned i = 0; i < 40; i++) {
        keys[i] = number(texts[i], i);
        inside += near_cache_rollout_takes(in.cache, keys[i]);
    }
    assert_in_range(inside, 1, 39); /* of both kinds */
    assert_int_equal(near_fetch_many(in.cache, keys, 40, NULL, values, statuses), NEAR_OK);
    assert_true(mover.moved);
    for (size_t i = 0; i < 40; i++) {
        assert_int_equal(statuses[i], NEAR_OK);
        near_value_release(values[i]);
    }
    close_instance(&in);
}

/* What write.policy = back has acknowledged is read by its writer before the store has it, whoever takes part. */
static void
test_pending_changes_are_read(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE();
    struct sink     sink  = SINK();
    struct instance in;
    near_bytes      keys[] = { near_key("k"), near_key("other") };
    near_value     *values[2];
    near_status     statuses[2];

    NEEDS(w);
    OPEN(w, &in, "write.policy", "back", "write_back.interval", "1h", "rollout.percent", "0");
    near_cache_set_store(in.cache, sink_store, &sink);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_int_equal(near_update(in.cache, keys[0], near_key("mine"), NULL), NEAR_OK);
    for (int dry = 0; dry < 2; dry++) {
        assert_int_equal(near_cache_set_rollout(in.cache, dry * 100, dry), NEAR_OK);
        fetch_is(in.cache, "k", "mine", NEAR_FROM_NOWHERE);
        fetch_is(in.cache, "other", "v1", NEAR_FROM_LOADER); /* the control */
        assert_int_equal(get_status(in.cache, "k"), NEAR_OK);
        assert_int_equal(get_status(in.cache, "other"), NEAR_MISS);
        assert_int_equal(near_get_many(in.cache, keys, 2, values, statuses), NEAR_OK);
        assert_int_equal(statuses[0], NEAR_OK);
        assert_int_equal(statuses[1], NEAR_MISS);
        near_value_release(values[0]);
        assert_int_equal(near_fetch_many(in.cache, keys, 2, NULL, values, statuses), NEAR_OK);
        assert_int_equal(near_value_bytes(values[0]).size, 4);
        assert_int_equal(near_value_bytes(values[1]).size, 2);
        near_value_release(values[0]);
        near_value_release(values[1]);
    }
    assert_int_equal(stats_of(&in).rollout_mismatches, 0);
    assert_int_equal(near_flush(in.client, 10000 * test_slack()), NEAR_OK);
    fetch_is(in.cache, "k", "v1", NEAR_FROM_LOADER); /* what this store says by itself */
    close_instance(&in);
}

static near_status
decode_nothing(near_bytes key, near_bytes bytes, void **object, void *ctx)
{
    (void)key, (void)bytes;
    *object = ctx;
    return NEAR_OK;
}

/* Objects whose bytes are not kept cannot be compared, and are not said to be the same. */
static void
test_objects_without_bytes_are_not_compared(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE();
    struct instance in;

    NEEDS(w);
    for (unsigned keeps = 0; keeps < 2; keeps++) {
        near_codec codec = NEAR_CODEC_INIT;

        OPEN(w, &in, "rollout.dry_run", "yes");
        codec.decode = decode_nothing;
        codec.flags  = keeps ? NEAR_KEEP_BYTES : 0;
        assert_int_equal(near_cache_set_codec(in.cache, &codec, &store), NEAR_OK);
        near_cache_set_loader(in.cache, load_from_store, &store);
        for (unsigned i = 0; i < 2; i++) {
            near_value *value;

            assert_int_equal(near_fetch(in.cache, near_key(keeps ? "k" : "l"), NULL, &value), NEAR_OK);
            assert_ptr_equal(near_value_object(value), &store);
            near_value_release(value);
        }
        assert_int_equal(stats_of(&in).rollout_compared, keeps);
        assert_int_equal(stats_of(&in).rollout_mismatches, 0);
        close_instance(&in);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_patterns),
        OVER(memory, test_the_same_keys_take_part_everywhere_and_more_at_more),
        OVER(memory, test_keys_outside_go_past_both_tiers),
        OVER(redis, test_keys_outside_go_past_both_tiers),
        OVER(memcached, test_keys_outside_go_past_both_tiers),
        OVER(memory, test_the_percentage_moves_while_it_runs),
        OVER(redis, test_the_percentage_moves_while_it_runs),
        OVER(memory, test_a_dry_run_compares_and_serves_what_was_loaded),
        OVER(redis, test_a_dry_run_compares_and_serves_what_was_loaded),
        OVER(memory, test_caches_by_name),
        OVER(memory, test_a_loader_is_not_run_for_its_own_key),
        OVER(memory, test_a_batch_is_whole_while_the_percentage_moves),
        OVER(memory, test_pending_changes_are_read),
        OVER(memory, test_objects_without_bytes_are_not_compared),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
