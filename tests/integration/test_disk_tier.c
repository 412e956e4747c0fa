/*
 * The disk tier of a cache (disk.path): what L1 has no room for is found again, nobody ever gets what was overwritten, removed or
 * cleared, here or elsewhere, before or after a restart, and a process killed at any moment leaves nothing behind that is answered
 * without L2's word.  L1 is so small that most keys are on the disk.
 */
#define TEST_NAME "disk tier"
#include "harness/test.h"

#include <nearcache.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness/server.h"
#include "l1/disk.h"

#define KEYS 5000

static char                dir[64], below[96];
static const char         *pools; /* l1.pools of the test; NULL: L1 is one */
static struct test_server *redis;

static int
setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof(dir), "/tmp/near-tier-XXXXXX");
    if (mkdtemp(dir) == NULL)
        return 1;
    snprintf(below, sizeof(below), "%s/c", dir);
    return 0;
}

static int
setup_pools(void **state)
{
    pools = "one:64KiB,two:64KiB";
    return setup(state);
}

static int
teardown(void **state)
{
    static const char *const names[] = { "c/log", "c/lock", "c/alive", "c", "." };
    char                     path[128];

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        remove(path);
    }
    rmdir(dir);
    pools = NULL;
    return 0;
}

struct instance {
    near_client *client;
    near_cache  *cache;
};

/* So that a key's next value may lie in another pool. */
static unsigned
by_size(near_bytes key, size_t value_size, void *ctx)
{
    (void)key, (void)ctx;
    return 1 + value_size % 2;
}

/* `settings`: name, value, ..., NULL, over those of these tests. */
static struct instance
open_instance(const char *uri, bool disk, const char *const *settings)
{
    near_config    *config = near_config_new();
    struct instance instance;
    near_error      error;

    assert_int_equal(near_config_set(config, "l2.uri", uri, &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "l1.max_bytes", "128KiB", &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "disk.path", disk ? dir : "", &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "disk.max_bytes", "16MiB", &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "disk.admission", "all", &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "disk.confirm_rate", "1000000", &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "disk.timeout", "1s", &error), NEAR_OK);
    assert_int_equal(near_config_set(config, "l2.timeout", "5s", &error), NEAR_OK); /* beside other load */
    if (pools != NULL)
        assert_int_equal(near_config_set(config, "l1.pools", pools, &error), NEAR_OK);
    for (; settings != NULL && *settings != NULL; settings += 2)
        assert_int_equal(near_config_set(config, settings[0], settings[1], &error), NEAR_OK);
    if (near_client_open(config, &instance.client, &error) != NEAR_OK ||
        near_cache_open(instance.client, "c", NULL, &instance.cache, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    if (pools != NULL)
        near_cache_set_pool_fn(instance.cache, by_size, NULL);
    return instance;
}

static void
close_instance(struct instance *instance)
{
    near_error error;

    assert_int_equal(near_client_close(instance->client, &error), NEAR_OK);
}

static near_stats
stats_of(const struct instance *instance)
{
    near_stats stats = NEAR_STATS_INIT;

    assert_int_equal(near_stats_get(instance->client, &stats), NEAR_OK);
    return stats;
}

static const char *
key_of(unsigned i)
{
    static char key[32];

    snprintf(key, sizeof(key), "key:%u", i);
    return key;
}

static const char *
value_of(unsigned i, unsigned version)
{
    static char value[160];

    snprintf(value, sizeof(value), "%u:%u:%0100u", i, version, i);
    return value;
}

static void
put(const struct instance *instance, unsigned i, unsigned version)
{
    assert_int_equal(near_put(instance->cache, near_key(key_of(i)), near_key(value_of(i, version)), NULL),
                     NEAR_OK);
    if (i % 64 == 63)
        usleep(200); /* the disk keeps up */
}

static void
fill(const struct instance *instance, unsigned version)
{
    for (unsigned i = 0; i < KEYS; i++)
        put(instance, i, version);
}

/* The version that is found, -1: none; whatever else it says must be the key's. */
static int
take(unsigned i, near_status status, near_value *value)
{
    unsigned found, version;
    char     text[200];

    if (status != NEAR_OK) {
        assert_true(status == NEAR_MISS || status == NEAR_NOT_FOUND);
        return -1;
    }
    snprintf(text, sizeof(text), "%.*s", (int)near_value_bytes(value).size,
             (const char *)near_value_bytes(value).data);
    near_value_release(value);
    assert_int_equal(sscanf(text, "%u:%u:", &found, &version), 2);
    assert_string_equal(text, value_of(i, version));
    return (int)version;
}

static int
get(const struct instance *instance, unsigned i, unsigned flags)
{
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value;
    near_status      status;

    options.flags = flags;
    status        = near_get_with(instance->cache, near_key(key_of(i)), &options, &value);
    return take(i, status, value);
}

/* ---- one process */

static void
test_what_l1_has_no_room_for_is_found(void **state)
{
    struct instance a = open_instance("none:", true, NULL);
    near_stats      stats;
    unsigned        found = 0;

    (void)state;
    fill(&a, 1);
    for (unsigned i = 0; i < KEYS; i++)
        found += get(&a, i, 0) == 1;
    stats = stats_of(&a);
    assert_true(found + stats.disk_dropped + KEYS / 50 >= KEYS); /* two of one tag share a place */
    assert_true(found > KEYS / 2);
    assert_true(stats.disk_hits > KEYS / 3);
    assert_int_equal(stats.requests, stats.hits_l1 + stats.disk_hits + stats.misses);
    assert_int_equal(stats.disk_corrupt + stats.disk_errors, 0);
    assert_int_equal(get(&a, 3, NEAR_ONLY_L1) == 1 || get(&a, 4, NEAR_ONLY_L1) == 1, 0);
    close_instance(&a);
}

/* The control: without the option nothing of it is there. */
static void
test_without_a_path_there_is_none(void **state)
{
    struct instance a     = open_instance("none:", false, NULL);
    unsigned        found = 0;

    (void)state;
    fill(&a, 1);
    for (unsigned i = 0; i < KEYS; i++)
        found += get(&a, i, 0) == 1;
    assert_true(found < KEYS / 2);
    assert_int_equal(stats_of(&a).disk_hits + stats_of(&a).disk_misses + stats_of(&a).disk_bytes, 0);
    close_instance(&a);
}

static void
load_nothing(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_load_not_found(loads[i]);
}

static void
test_batches_and_fetches_ask_it(void **state)
{
    struct instance a     = open_instance("none:", true, NULL);
    unsigned        found = 0, fetched = 0;
    near_value     *values[100], *value;
    near_status     statuses[100];
    near_bytes      keys[100];
    char            names[100][32];

    (void)state;
    near_cache_set_loader(a.cache, load_nothing, NULL);
    fill(&a, 1);
    for (unsigned at = 0; at < KEYS / 2; at += 100) {
        for (unsigned i = 0; i < 100; i++) {
            strcpy(names[i], key_of(at + i));
            keys[i] = near_key(names[i]);
        }
        near_get_many(a.cache, keys, 100, values, statuses);
        for (unsigned i = 0; i < 100; i++)
            found += take(at + i, statuses[i], values[i]) == 1;
    }
    assert_true(found + stats_of(&a).disk_dropped > KEYS / 2 - KEYS / 50);
    for (unsigned i = KEYS / 2; i < KEYS * 3 / 4; i++) {
        near_status status = near_fetch(a.cache, near_key(key_of(i)), NULL, &value);

        fetched += take(i, status, value) == 1;
    }
    assert_true(fetched + stats_of(&a).disk_dropped > KEYS / 4 - KEYS / 50);
    assert_true(stats_of(&a).disk_hits > KEYS / 3);
    close_instance(&a);
}

/* Fields of hashes are read back, and invalidated by value, by entity, by field. */
#define FIELDS 10

static int
field_of(const struct instance *instance, unsigned entity, near_field field, near_value_info *info)
{
    near_bytes  name = near_key(key_of(entity));
    near_value *value;
    near_status status;
    char        text[64];
    unsigned    found, which, version;

    near_fields_get_many(instance->cache, &name, 1, &field, 1, NULL, &value, &status);
    if (status != NEAR_OK)
        return -1;
    near_value_get_info(value, info);
    snprintf(text, sizeof(text), "%.*s", (int)near_value_bytes(value).size,
             (const char *)near_value_bytes(value).data);
    near_value_release(value);
    assert_int_equal(sscanf(text, "%u/%u/%u", &found, &which, &version), 3);
    assert_int_equal(found, entity);
    assert_int_equal(which, field);
    return (int)version;
}

static void
put_fields(const struct instance *instance, unsigned entity, unsigned version)
{
    near_bytes  name = near_key(key_of(entity)), values[FIELDS];
    near_field  fields[FIELDS];
    near_status statuses[FIELDS];
    char        texts[FIELDS][64];

    for (unsigned i = 0; i < FIELDS; i++) {
        fields[i] = i + 1;
        values[i] = (near_bytes){ texts[i], (size_t)snprintf(texts[i], 64, "%u/%u/%u %30u", entity, i + 1,
                                                             version, i) };
    }
    assert_int_equal(near_fields_put_many(instance->cache, &name, 1, fields, FIELDS, values, NULL, statuses),
                     NEAR_OK);
    if (entity % 8 == 7)
        usleep(200);
}

static void
fields_are_read_back(const char *uri)
{
    static const unsigned    entities = KEYS / FIELDS;
    static const char *const alike[]  = { "coherence.serve_window", "20s", "l2.timeout", "5s", NULL };
    struct instance          a        = open_instance(uri, true, alike);
    near_value_info          info     = NEAR_VALUE_INFO_INIT;
    near_stats               stats;
    unsigned                 found = 0, from_l1 = 0;

    for (unsigned i = 0; i < entities; i++)
        put_fields(&a, i, 1);
    for (unsigned i = 0; i < entities; i++) /* what L2 gives is kept, and evicted */
        for (unsigned f = 1; f <= FIELDS; f++)
            field_of(&a, i, f, &info);
    for (unsigned i = 0; i < entities; i++)
        for (unsigned f = 1; f <= FIELDS; f++) {
            int version = field_of(&a, i, f, &info);

            assert_true(version == 1 || version == -1);
            found += version == 1;
            from_l1 += version == 1 && info.source == NEAR_FROM_L1;
        }
    stats = stats_of(&a);
    assert_true(found > KEYS / 2);
    assert_true(from_l1 > KEYS / 2);
    assert_true(stats.disk_hits > KEYS / 3);
    assert_int_equal(stats.requests, stats.hits_l1 + stats.hits_l2 + stats.disk_hits + stats.misses);
    for (unsigned i = 0; i < entities; i += 2)
        put_fields(&a, i, 2);
    assert_int_equal(near_fields_invalidate(a.cache, 3), NEAR_OK);
    found = 0;
    for (unsigned i = 0; i < entities; i++)
        for (unsigned f = 1; f <= FIELDS; f++) {
            int version = field_of(&a, i, f, &info), right = i % 2 == 0 ? 2 : 1;

            if (f == 3 && version != -1)
                assert_int_not_equal(info.source, NEAR_FROM_L1); /* L2's, which keeps it */
            assert_true(version == -1 || version == right);
            found += version == right;
        }
    assert_true(found > KEYS / 3);
    close_instance(&a);
}

static void
test_fields_are_read_back(void **state)
{
    (void)state;
    fields_are_read_back("none:");
}

static void
test_fields_are_read_back_beside_redis(void **state)
{
    (void)state;
    test_need_server(redis);
    fields_are_read_back(redis->uri);
}

/* A put on condition that there is nothing sees what only the disk has. */
static void
test_conditional_puts_see_it(void **state)
{
    struct instance  a    = open_instance("none:", true, NULL);
    near_put_options once = NEAR_PUT_OPTIONS_INIT;
    unsigned         seen = 0, won = 0;

    (void)state;
    once.flags = NEAR_IF_ABSENT;
    fill(&a, 1);
    for (unsigned i = 0; i < KEYS; i += 7) {
        bool here = get(&a, i, 0) == 1;

        for (unsigned other = 0; other < 1500; other += 500) /* out of L1 again, mostly */
            get(&a, (i + other + 1) % KEYS, 0);
        if (!here)
            continue;
        near_status status = near_put(a.cache, near_key(key_of(i)), near_key(value_of(i, 2)), &once);

        seen += status == NEAR_ERR_CONFLICT;
        won += status == NEAR_OK;
    }
    for (unsigned i = 0; i < KEYS; i += 100) {
        assert_int_equal(near_remove(a.cache, near_key(key_of(i))), NEAR_OK);
        assert_int_equal(near_put(a.cache, near_key(key_of(i)), near_key(value_of(i, 3)), &once), NEAR_OK);
    }
    assert_true(seen > KEYS / 7 / 2);
    assert_true(won <= KEYS / 7 / 100 + 1); /* one that the log's end took in between */
    close_instance(&a);
}

/* Overwritten, removed, tagged, cleared: none of it is answered again. */
static void
test_invalidations_reach_it(void **state)
{
    static const char *const tags[] = { "odd" };
    struct instance          a      = open_instance("none:", true, NULL);
    near_put_options         tagged = NEAR_PUT_OPTIONS_INIT;
    unsigned                 kept = 0, forgotten = 0;

    (void)state;
    tagged.tags      = tags;
    tagged.tag_count = 1;
    for (unsigned i = 0; i < KEYS; i++) {
        assert_int_equal(
            near_put(a.cache, near_key(key_of(i)), near_key(value_of(i, 1)), i % 2 ? &tagged : NULL),
            NEAR_OK);
        if (i % 64 == 63)
            usleep(200);
    }
    for (unsigned i = 0; i < KEYS; i += 3)
        put(&a, i, 2);
    for (unsigned i = 1; i < KEYS; i += 3)
        assert_int_equal(near_remove(a.cache, near_key(key_of(i))), NEAR_OK);
    for (unsigned i = 0; i < KEYS; i++) {
        int version = get(&a, i, 0);

        assert_true(version == -1 || (i % 3 == 0 && version == 2) || (i % 3 == 2 && version == 1));
        kept += version != -1;
    }
    assert_true(kept > KEYS / 3);
    assert_true(stats_of(&a).disk_forgotten > KEYS / 3);
    assert_int_equal(near_invalidate_tag(a.cache, "odd"), NEAR_OK);
    for (unsigned i = 0; i < KEYS; i++) {
        int version = get(&a, i, 0);

        assert_true(version == -1 || i % 3 == 0 || (i % 3 == 2 && i % 2 == 0));
        forgotten += version == -1 && i % 6 == 5;
    }
    assert_int_equal(forgotten, KEYS / 6);
    assert_int_equal(near_clear(a.cache), NEAR_OK);
    for (unsigned i = 0; i < KEYS; i++)
        assert_int_equal(get(&a, i, 0), -1);
    close_instance(&a);
}

/* What another instance writes is heard of, and leaves the disk. */
static void
test_foreign_writes_reach_it(void **state)
{
    static const char *const no_l2[] = { "l2.timeout", "1s", NULL };
    struct instance          a       = open_instance("memory:disk", true, no_l2),
                    b                = open_instance("memory:disk", false, NULL);
    unsigned old                     = 0;

    (void)state;
    fill(&a, 1);
    for (unsigned i = 0; i < KEYS; i++)
        assert_int_equal(get(&a, i, 0), 1);
    assert_true(stats_of(&a).disk_hits > KEYS / 3);
    for (unsigned i = 0; i < KEYS; i += 2)
        put(&b, i, 2);
    assert_int_equal(near_fence(a.client, 5000), NEAR_OK);
    for (unsigned i = 0; i < KEYS; i++)
        old += get(&a, i, 0) != (i % 2 == 0 ? 2 : 1);
    assert_int_equal(old, 0);
    close_instance(&a);
    close_instance(&b);
}

/* What a pool keeps for a while only is not kept longer on the disk: values so large that L1 counts them, and has their times outside. */
static void
test_a_pools_ttl_holds_there(void **state)
{
    enum { LARGE = 60000, N = 100 };
    static const char *const times[] = { "l1.pools", "brief:1MiB::300ms,long:1MiB", "disk.max_bytes", "32MiB",
                                         NULL };
    struct instance          a       = open_instance("none:", true, times);
    near_put_options         into    = NEAR_PUT_OPTIONS_INIT;
    unsigned                 found[2] = { 0, 0 };
    char                    *large    = calloc(1, LARGE), key[24];

    (void)state;
    for (unsigned i = 0; i < 2 * N; i++) {
        into.pool = 1 + i % 2;
        snprintf(key, sizeof(key), "large %u", i);
        assert_int_equal(near_put(a.cache, near_key(key), (near_bytes){ large, LARGE }, &into), NEAR_OK);
        usleep(1000);
    }
    assert_true(stats_of(&a).disk_puts > N / 2);
    usleep(350 * 1000);
    for (unsigned i = 0; i < 2 * N; i++) {
        near_value *value;

        snprintf(key, sizeof(key), "large %u", i);
        if (near_get(a.cache, near_key(key), &value) != NEAR_OK)
            continue;
        near_value_release(value);
        found[i % 2]++;
    }
    assert_int_equal(found[0], 0);
    assert_true(found[1] > N / 3);
    free(large);
    close_instance(&a);
}

/* ---- restarts */

struct waiting {
    const struct instance *instance;
    uint64_t               least, last, same;
};

static int
has_looked(void *ctx)
{
    struct waiting *waiting = ctx;
    near_stats      stats   = stats_of(waiting->instance);
    uint64_t        now     = stats.disk_confirmed > 0 ? stats.disk_entries : 0;

    usleep(10000);
    waiting->same = now == waiting->last && now > 0 && now >= waiting->least ? waiting->same + 1 : 0;
    waiting->last = now;
    return waiting->same > 20;
}

/* Until nothing more is found of the former life, for 200 ms; there must be `least`, beside other load perhaps after a while. */
static uint64_t
await_confirmed(const struct instance *instance, uint64_t least)
{
    struct waiting waiting = { instance, least, 0, 0 };

    test_wait_for(has_looked, &waiting, least > 0 ? 20000 : 4000);
    return waiting.last;
}

static void
test_clean_restart_without_l2(void **state)
{
    struct instance a = open_instance("none:", true, NULL);
    uint64_t        entries, confirmed;
    unsigned        found = 0;

    (void)state;
    fill(&a, 1);
    for (unsigned i = 0; i < 100; i++)
        assert_int_equal(near_remove(a.cache, near_key(key_of(i))), NEAR_OK);
    entries = stats_of(&a).disk_entries;
    close_instance(&a);
    a = open_instance("none:", true, NULL);
    put(&a, 200, 2);
    confirmed = await_confirmed(&a, entries * 9 / 10 + 1);
    assert_true(confirmed > entries * 9 / 10);
    for (unsigned i = 0; i < KEYS; i++) {
        int version = get(&a, i, 0);

        assert_true(version == -1 || version == (i == 200 ? 2 : 1));
        assert_true(i >= 100 || version == -1);
        found += version != -1;
    }
    assert_true(found > entries * 8 / 10);
    close_instance(&a);
}

/* While it was down a third was overwritten and a third removed, and nobody told it: L2's word decides.  The control is the log itself,
 * which has all of the old ones. */
static void
count_old(void *ctx, const struct near__spill_record *record, uint64_t hash, uint64_t at, uint32_t size)
{
    (void)record, (void)hash, (void)at, (void)size;
    ++*(unsigned *)ctx;
}

static unsigned
records_in_log(void)
{
    struct near__spill_config config = {
        .path        = below,
        .max_bytes   = 16 << 20,
        .queue_bytes = 4 << 20,
        .timeout     = NEAR_MS,
        .threads     = 1,
        .clock       = near__clock_system,
        .os          = &near__spill_os_system,
    };
    struct near__spill *spill;
    unsigned            n = 0;
    int                 reason;

    assert_int_equal(near__spill_open(&spill, &config, &reason), NEAR_OK);
    for (uint64_t i = 0; i < near__spill_old_count(spill); i++)
        near__spill_old(spill, i, count_old, &n);
    near__spill_close(&spill, near__now(&near__clock_system) + 5000 * NEAR_MS, false);
    return n;
}

static void
restart_with(const char *uri)
{
    struct instance b = open_instance(uri, false, NULL), a = open_instance(uri, true, NULL);
    near_stats      stats;
    uint64_t        entries, confirmed;

    fill(&a, 1);
    entries = stats_of(&a).disk_entries;
    assert_true(entries > KEYS / 2);
    close_instance(&a);
    for (unsigned i = 0; i < KEYS; i++) {
        if (i % 3 == 0)
            put(&b, i, 2);
        else if (i % 3 == 1)
            assert_int_equal(near_remove(b.cache, near_key(key_of(i))), NEAR_OK);
    }
    a         = open_instance(uri, true, NULL);
    confirmed = await_confirmed(&a, entries / 3 * 8 / 10 + 1);
    for (int round = 0; round < 10;
         round++) { /* the bus may begin with a flush: then all is compared again */
        for (unsigned i = 0; i < KEYS; i++)
            assert_int_equal(get(&a, i, 0), i % 3 == 0 ? 2 : i % 3 == 1 ? -1 : 1);
        stats = stats_of(&a);
        if (stats.disk_hits > confirmed * 7 / 10)
            break;
    }
    assert_true(confirmed > entries / 3 * 8 / 10 && confirmed < entries / 3 * 12 / 10);
    if (stats.disk_hits < confirmed * 7 / 10)
        fail_msg("%llu hits of %llu, %llu misses, %llu timeouts, gate closed %llu",
                 (unsigned long long)stats.disk_hits, (unsigned long long)confirmed,
                 (unsigned long long)stats.disk_misses, (unsigned long long)stats.disk_timeouts,
                 (unsigned long long)stats.gate_closed_reads);
    close_instance(&a);
    close_instance(&b);
}

static void
test_restart_asks_l2(void **state)
{
    (void)state;
    restart_with("memory:restart");
}

static void
test_restart_asks_redis(void **state)
{
    (void)state;
    test_need_server(redis);
    restart_with(redis->uri);
}

/* The control of both: with no word of L2 to be had nothing is answered, although all of it lies there. */
static void
test_old_values_are_there_and_not_answered(void **state)
{
    static const char *const never[] = { "disk.confirm_rate", "0", NULL };
    struct instance          a       = open_instance("memory:never", true, NULL),
                    b                = open_instance("memory:never", false, NULL);

    (void)state;
    fill(&a, 1);
    close_instance(&a);
    for (unsigned i = 0; i < KEYS; i++)
        assert_int_equal(near_remove(b.cache, near_key(key_of(i))), NEAR_OK);
    assert_true(records_in_log() > KEYS / 2);
    a = open_instance("memory:never", true, never);
    for (unsigned i = 0; i < KEYS; i++)
        assert_int_equal(get(&a, i, 0), -1);
    assert_int_equal(stats_of(&a).disk_hits, 0);
    close_instance(&a);
    close_instance(&b);
}

/* ---- killed */

struct progress {
    _Atomic uint64_t entries; /* on its disk, a second ago or longer */
    _Atomic int      ready;
};

static void
child(const char *uri, struct progress *progress, bool idle)
{
    struct instance a = open_instance(uri, true, NULL);

    for (unsigned version = 1;; version++) {
        for (unsigned i = 0; i < KEYS; i++) {
            char value[160], key[32];

            strcpy(key, key_of(i));
            strcpy(value, value_of(i, version));
            near_put(a.cache, near_key(key), near_key(value), NULL);
            if (i % 64 == 63)
                usleep(200);
        }
        if (idle) {
            progress->entries = stats_of(&a).disk_entries;
            usleep(1000 * 1000); /* what may be missing is of the last second */
            progress->ready = 1;
            pause();
        }
        progress->ready = 1;
    }
}

static int
is_ready(void *ctx)
{
    return ((struct progress *)ctx)->ready;
}

static void
kill_one(const char *uri, bool idle, uint64_t *seed)
{
    struct progress *progress =
        mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct instance a, b;
    uint64_t        confirmed;
    unsigned        wrong = 0;
    pid_t           pid;

    memset(progress, 0, sizeof(*progress));
    pid = fork();
    if (pid == 0) {
        child(uri, progress, idle);
        _exit(0);
    }
    assert_true(test_wait_for(is_ready, progress, 60000));
    if (!idle)
        usleep((unsigned)(test_random(seed) % 300000));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    b = open_instance(uri, false, NULL);
    for (unsigned i = 0; i < KEYS; i += 5)
        put(&b, i, 1000000);
    close_instance(&b);
    a         = open_instance(uri, true, NULL);
    confirmed = await_confirmed(&a, idle ? progress->entries * 4 / 5 * 97 / 100 : 1);
    for (unsigned i = 0; i < KEYS; i++) {
        int here = get(&a, i, 0), there = get(&a, i, NEAR_SKIP_L1);

        wrong += here != there || (i % 5 == 0 && here != 1000000);
    }
    assert_int_equal(wrong, 0);
    /* else all of it may be of the last second */
    if (idle && confirmed < progress->entries * 4 / 5 * 97 / 100)
        fail_msg("%llu of %llu are found again", (unsigned long long)confirmed,
                 (unsigned long long)progress->entries * 4 / 5);
    assert_int_equal(stats_of(&a).disk_errors, 0);
    close_instance(&a);
    munmap(progress, sizeof(*progress));
}

static void
test_killed_at_any_moment(void **state)
{
    uint64_t seed = (uint64_t)getpid();

    (void)state;
    if (TEST_UNDER_TSAN)
        skip(); /* forks */
    test_need_server(redis);
    kill_one(redis->uri, true, &seed);
    for (size_t i = test_scale(3); i > 0; i--)
        kill_one(redis->uri, false, &seed);
}

/* ---- what cannot be had */

static void
test_no_directory_is_no_reason_to_fail(void **state)
{
    static const char *const nowhere[] = { "disk.path", "/nonexistent/near", NULL };
    struct instance          a         = open_instance("none:", true, nowhere);

    (void)state;
    put(&a, 1, 1);
    assert_int_equal(get(&a, 1, 0), 1);
    assert_int_equal(stats_of(&a).disk_errors, 1);
    assert_int_equal(stats_of(&a).disk_bytes, 0);
    close_instance(&a);
}

static void
test_vanished_directory_is_no_reason_to_fail(void **state)
{
    struct instance a     = open_instance("none:", true, NULL);
    unsigned        found = 0;

    (void)state;
    teardown(state);
    fill(&a, 1);
    for (unsigned i = 0; i < KEYS; i++)
        found += get(&a, i, 0) == 1;
    assert_true(found > KEYS / 2);
    close_instance(&a);
}

static int
start_redis(void **state)
{
    (void)state;
    redis = test_redis_start(0, NULL);
    return 0;
}

static int
stop_redis(void **state)
{
    (void)state;
    test_server_stop(&redis);
    return 0;
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TEST_POOLS(name)                                                                                     \
    {                                                                                                        \
        "pools: " #name, name, setup_pools, teardown, NULL                                                   \
    }
    const struct CMUnitTest tests[] = {
        TEST(test_what_l1_has_no_room_for_is_found),
        TEST(test_without_a_path_there_is_none),
        TEST(test_batches_and_fetches_ask_it),
        TEST(test_fields_are_read_back),
        TEST(test_fields_are_read_back_beside_redis),
        TEST(test_conditional_puts_see_it),
        TEST(test_invalidations_reach_it),
        TEST(test_foreign_writes_reach_it),
        TEST(test_clean_restart_without_l2),
        TEST(test_restart_asks_l2),
        TEST(test_restart_asks_redis),
        TEST(test_old_values_are_there_and_not_answered),
        TEST(test_killed_at_any_moment),
        TEST_POOLS(test_what_l1_has_no_room_for_is_found),
        TEST_POOLS(test_batches_and_fetches_ask_it),
        TEST_POOLS(test_fields_are_read_back),
        TEST_POOLS(test_conditional_puts_see_it),
        TEST_POOLS(test_invalidations_reach_it),
        TEST_POOLS(test_foreign_writes_reach_it),
        TEST(test_a_pools_ttl_holds_there),
        TEST_POOLS(test_clean_restart_without_l2),
        TEST_POOLS(test_restart_asks_l2),
        TEST(test_no_directory_is_no_reason_to_fail),
        TEST(test_vanished_directory_is_no_reason_to_fail),
    };

    return TEST_MAIN(tests, start_redis, stop_redis);
}
