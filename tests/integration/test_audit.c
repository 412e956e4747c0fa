/*
 * The audit of L1 hits: what was planted behind the library's back is counted, what changed as it should is not, and an audit that is
 * off or far too busy costs memory that is bounded.
 */
#include "integration/world.h"

WORLD(redis, TIER_REDIS)
WORLD(memcached, TIER_MEMCACHED_BUS)

enum { KEYS = 20 };

/* An instance that audits every hit after 60 ms and 600 ms, and one that writes without a word to anybody. */
static struct instance auditor, silent;

static void
open_both(const struct world *w, const char *sample)
{
    struct world alone = *w;

    OPEN(w, &auditor, "audit.sample", sample, "audit.delay", "60ms", "ttl", "1h");
    strcpy(alone.bus, "none:");
    OPEN(&alone, &silent, "coherence.mode", "none", "l1.max_bytes", "0", "ttl", "1h");
}

static void
close_both(void)
{
    close_instance(&auditor);
    close_instance(&silent);
}

static near_bytes
key_of(char *out, unsigned i)
{
    return (near_bytes){ out, (size_t)sprintf(out, "key%u", i) };
}

static void
put_all(near_cache *cache, const char *text)
{
    char name[32];

    for (unsigned i = 0; i < KEYS; i++)
        assert_int_equal(near_put(cache, key_of(name, i), near_key(text), NULL), NEAR_OK);
}

/* Each key once, from L1. */
static void
hit_all(near_cache *cache, const char *text)
{
    char            name[32], got[32];
    near_value_info info = NEAR_VALUE_INFO_INIT;
    size_t          size;

    for (unsigned i = 0; i < KEYS; i++) {
        assert_int_equal(near_get_copy(cache, key_of(name, i), got, sizeof(got), &size, &info), NEAR_OK);
        assert_int_equal(info.source, NEAR_FROM_L1);
        assert_int_equal(size, strlen(text));
        assert_memory_equal(got, text, size);
    }
}

static int
first_looks_are_over(void *ctx)
{
    (void)ctx;
    return stats_of(&auditor).audit_checked >= KEYS;
}

static int
all_looks_are_over(void *ctx)
{
    (void)ctx;
    return stats_of(&auditor).audit_checked >= 2 * KEYS;
}

static void
await_looks(int (*over)(void *ctx))
{
    assert_true(test_wait_for(over, NULL, 20000 * test_slack()));
}

static void
test_what_is_right_is_checked_and_not_counted(void **state)
{
    near_stats stats;

    NEEDS((struct world *)*state);
    open_both(*state, "1");
    put_all(auditor.cache, "v1");
    hit_all(auditor.cache, "v1");
    await_looks(all_looks_are_over);
    stats = stats_of(&auditor);
    assert_int_equal(stats.audit_checked, 2 * KEYS);
    assert_int_equal(stats.audit_stale_1s + stats.audit_stale_10s + stats.audit_absent + stats.audit_skipped,
                     0);
    assert_int_equal(stats.hits_l1, KEYS); /* the audit's own looks are not counted */
    close_both();
}

static void
test_what_was_planted_is_counted(void **state)
{
    near_stats stats;

    NEEDS((struct world *)*state);
    open_both(*state, "1");
    put_all(auditor.cache, "v1");
    put_all(silent.cache, "v2");
    hit_all(auditor.cache, "v1");
    await_looks(first_looks_are_over);
    stats = stats_of(&auditor);
    assert_int_equal(stats.audit_stale_1s, KEYS);
    await_looks(all_looks_are_over);
    stats = stats_of(&auditor);
    assert_int_equal(stats.audit_stale_1s, KEYS);
    assert_int_equal(stats.audit_stale_10s, KEYS);
    assert_int_equal(stats.audit_absent, 0);
    hit_all(auditor.cache, "v1"); /* it mends nothing */
    close_both();
}

/* Batches are sampled, too. */
static void
test_hits_of_batches_and_fetches_are_looked_at(void **state)
{
    char         names[KEYS][32];
    near_bytes   keys[KEYS];
    near_value  *values[KEYS];
    near_status  statuses[KEYS];
    struct store store = { .lock = PTHREAD_MUTEX_INITIALIZER };

    NEEDS((struct world *)*state);
    open_both(*state, "1");
    near_cache_set_loader(auditor.cache, load_from_store, &store);
    put_all(auditor.cache, "v1");
    put_all(silent.cache, "v2");
    for (unsigned i = 0; i < KEYS; i++)
        keys[i] = key_of(names[i], i);
    assert_int_equal(near_get_many(auditor.cache, keys, KEYS / 2, values, statuses), NEAR_OK);
    for (unsigned i = 0; i < KEYS / 2; i++)
        near_value_release(values[i]);
    for (unsigned i = KEYS / 2; i < KEYS; i++)
        assert_fetch(auditor.cache, names[i], "v1");
    await_looks(first_looks_are_over);
    assert_int_equal(stats_of(&auditor).audit_stale_1s, KEYS);
    close_both();
}

/* What a server was told by hand: SET under the entry's key, and DEL. */
static void
test_what_redis_was_told_by_hand_is_counted(void **state)
{
    struct world *w = *state;
    char          out[64], name[64];
    near_stats    stats;

    NEEDS(w);
    open_both(w, "1");
    put_all(auditor.cache, "v1");
    for (unsigned i = 0; i < KEYS; i++) {
        snprintf(name, sizeof(name), "nc:things:key%u", i);
        assert_true(i % 2 == 0
                        ? test_redis_command(w->redis, out, sizeof(out), 3,
                                             (const char *[]){ "SET", name, "by hand" })
                        : test_redis_command(w->redis, out, sizeof(out), 2, (const char *[]){ "DEL", name }));
    }
    hit_all(auditor.cache, "v1");
    await_looks(first_looks_are_over);
    stats = stats_of(&auditor);
    assert_int_equal(stats.audit_stale_1s, KEYS / 2);
    assert_int_equal(stats.audit_absent, KEYS - KEYS / 2);
    close_both();
}

/* An ordinary write by somebody else: L1 has dropped the key, there is nothing to compare. */
static void
test_what_was_written_as_it_should_be_is_not_counted(void **state)
{
    struct instance other;
    near_stats      stats;

    NEEDS((struct world *)*state);
    open_both(*state, "1");
    OPEN((struct world *)*state, &other, "ttl", "1h");
    put_all(auditor.cache, "v1");
    hit_all(auditor.cache, "v1");
    put_all(other.cache, "v2");
    sleep_ms(100);
    for (unsigned i = 0; i < KEYS; i++)
        await_get(auditor.cache, "key3", "v2");
    sleep_ms(900);
    stats = stats_of(&auditor);
    assert_int_equal(stats.audit_stale_1s + stats.audit_stale_10s + stats.audit_absent, 0);
    close_instance(&other);
    close_both();
}

static void
test_one_in_n_is_sampled_and_no_more_than_there_is_room_for(void **state)
{
    near_stats stats;

    NEEDS((struct world *)*state);
    open_both(*state, "10");
    put_all(auditor.cache, "v1");
    for (unsigned i = 0; i < 100; i++)
        hit_all(auditor.cache, "v1");
    sleep_ms(300);
    stats = stats_of(&auditor);
    assert_in_range(stats.audit_checked + stats.audit_skipped, 100 * KEYS / 10 - 5, 100 * KEYS / 10 + 5);
    close_both();
    open_both(*state, "1");
    put_all(auditor.cache, "v1");
    for (unsigned i = 0; i < 100; i++) /* more than wait at a time */
        hit_all(auditor.cache, "v1");
    stats = stats_of(&auditor);
    assert_true(stats.audit_skipped > 0 || test_slack() > 1);
    close_both(); /* with looks that are due */
}

static void
test_a_cache_may_close_before_its_looks(void **state)
{
    near_cache *other;

    NEEDS((struct world *)*state);
    open_both(*state, "1");
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(near_cache_open(auditor.client, "other", NULL, &other, NULL), NEAR_OK);
        put_all(other, "v1");
        hit_all(other, "v1");
        sleep_ms(i % 4 == 0 ? 59 + (int64_t)i / 4 : 0);
        near_cache_close(other);
    }
    close_both();
}

static void
test_without_it_nothing_is_looked_at(void **state)
{
    NEEDS((struct world *)*state);
    open_both(*state, "0");
    put_all(auditor.cache, "v1");
    put_all(silent.cache, "v2");
    hit_all(auditor.cache, "v1");
    sleep_ms(200);
    assert_int_equal(stats_of(&auditor).audit_checked, 0);
    close_both();
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER(redis, test_what_is_right_is_checked_and_not_counted),
        OVER(memcached, test_what_is_right_is_checked_and_not_counted),
        OVER(redis, test_what_was_planted_is_counted),
        OVER(memcached, test_what_was_planted_is_counted),
        OVER(redis, test_hits_of_batches_and_fetches_are_looked_at),
        OVER(redis, test_what_redis_was_told_by_hand_is_counted),
        OVER(redis, test_what_was_written_as_it_should_be_is_not_counted),
        OVER(redis, test_one_in_n_is_sampled_and_no_more_than_there_is_room_for),
        OVER(redis, test_a_cache_may_close_before_its_looks),
        OVER(redis, test_without_it_nothing_is_looked_at),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
