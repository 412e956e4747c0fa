/*
 * Tags: one call makes everybody forget all values that carry a label, whoever loaded them, wherever they lie, and whatever was under
 * way.  Over every pair of tiers; two or three clients stand for instances.
 */
#include "world.h"

#include <hiredis/hiredis.h>
#include <sched.h>

#include "client/tags.h"
#include "harness/proxy.h"
#include "l2/backend.h"

WORLD(none, TIER_NONE)
WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(both, TIER_MEMCACHED_BUS)
WORLD(memcached, TIER_MEMCACHED)

#define LARGE (100 * 1024) /* lives outside of L1's arena */

/* Tags of a key: "all" and its first letter.  "large..." has a value that begins with the version and is filled up. */
static void
answer_tagged(near_load *load, unsigned version)
{
    static char filler[LARGE];
    near_bytes  key    = near_load_key(load);
    char        tag[2] = { *(const char *)key.data, '\0' };
    char        text[32];

    near_load_tag(load, "all");
    near_load_tag(load, tag);
    if (tag[0] != 'l') {
        answer_version(load, version);
        return;
    }
    snprintf(text, sizeof(text), "v%u", version);
    char *bytes = malloc(LARGE);
    memcpy(bytes, filler, LARGE);
    memcpy(bytes, text, strlen(text));
    near_load_adopt(load, bytes, LARGE, free);
}

static void
load_tagged(struct store *store, near_load *load)
{
    answer_tagged(load, 1 + store->newer);
}

static void
hold(struct store *store, near_load *load)
{
    pthread_mutex_lock(&store->lock);
    store->held[store->n_held] = load;
    store->n_held++;
    pthread_mutex_unlock(&store->lock);
}

/* A tag is invalidated after the store was written. */
static void
change(struct store *store, near_cache *cache, const char *tag)
{
    store->newer++;
    assert_int_equal(near_invalidate_tag(cache, tag), NEAR_OK);
}

static char *
starts(near_cache *cache, const char *key)
{
    static char   text[3];
    struct answer answer = fetch(cache, key);

    memcpy(text, answer.text, 2);
    return text;
}

/* ---- one instance */

static void
an_invalidated_tag_takes_its_values_and_no_others(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = load_tagged);
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (int round = 0; round < 2; round++) {
        assert_fetch(a.cache, "a1", "v1");
        assert_fetch(a.cache, "a2", "v1");
        assert_fetch(a.cache, "b1", "v1");
        assert_string_equal(starts(a.cache, "large"), "v1");
    }
    assert_int_equal(store.keys, 4);
    change(&store, a.cache, "a");
    assert_fetch(a.cache, "a1", "v2");
    assert_fetch(a.cache, "a2", "v2");
    assert_fetch(a.cache, "b1", "v1"); /* the others stay */
    assert_string_equal(starts(a.cache, "large"), "v1");
    assert_int_equal(store.keys, 6);
    change(&store, a.cache, "l");
    assert_string_equal(starts(a.cache, "large"), "v3");
    assert_fetch(a.cache, "a1", "v2");
    change(&store, a.cache, "all");
    assert_fetch(a.cache, "a1", "v4");
    assert_fetch(a.cache, "b1", "v4");
    assert_string_equal(starts(a.cache, "large"), "v4");
    assert_int_equal(stats_of(&a).tag_invalidations, 3);
    close_instance(&a);
}

static void
a_get_does_not_see_what_a_tag_took(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = load_tagged);
    struct instance a;
    near_bytes      keys[2] = { near_key("a1"), near_key("b1") };
    near_value     *values[2];
    near_status     statuses[2];

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_fetch(a.cache, "a1", "v1");
    assert_fetch(a.cache, "b1", "v1");
    assert_int_equal(near_get_many(a.cache, keys, 2, values, statuses), NEAR_OK);
    assert_int_equal(statuses[0], NEAR_OK);
    near_value_release(values[0]);
    near_value_release(values[1]);
    change(&store, a.cache, "a");
    assert_int_equal(near_get_many(a.cache, keys, 2, values, statuses), NEAR_OK);
    assert_int_equal(statuses[0], NEAR_MISS);
    assert_int_equal(statuses[1], NEAR_OK);
    near_value_release(values[1]);
    assert_int_equal(near_get(a.cache, keys[0], &values[0]), NEAR_MISS);
    close_instance(&a);
}

/* The clock is read along with the first of several exchanges; where there is none it is made before the loads, however many came after. */
static void
a_batch_of_several_exchanges_has_its_tags(void **state)
{
    enum { N = 2 * NEAR_L2_BATCH };
    struct world      *w     = *state;
    struct store       store = STORE(.answer = load_tagged);
    struct instance    a, b;
    static char        names[N][16];
    static near_bytes  keys[N];
    static near_value *values[N];
    static near_status statuses[N];

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    OPEN(w, &b, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof(names[i]), "a%d", i);
        keys[i] = near_key(names[i]);
    }
    assert_int_equal(near_fetch_many(a.cache, keys, N, NULL, values, statuses), NEAR_OK);
    for (int i = 0; i < N; i++)
        near_value_release(values[i]);
    assert_int_equal(near_get_many(b.cache, keys, N, values, statuses), NEAR_OK);
    for (int i = 0; i < N; i++) {
        if (statuses[i] != NEAR_OK)
            fail_msg("%s: %s", names[i], near_status_text(statuses[i]));
        near_value_release(values[i]);
    }
    close_instance(&a);
    close_instance(&b);
}

struct knower {
    struct instance       *in;
    struct near__tag_clock clock;
};

/* A read of L2 brings the clock along where it is not known. */
static int
knows_the_clock(void *ctx)
{
    struct knower *knower = ctx;
    near_value    *value;
    uint64_t       epoch;

    near_get(knower->in->cache, near_key("nothing"), &value);
    near_value_release(value);
    return near__tags_known(knower->in->cache, near__client_now(knower->in->client), &knower->clock, &epoch);
}

/* Somebody, or a defect, sends a message about a tag with a moment that L2 has not reached.  What is loaded afterwards must not carry
 * it. */
static void
a_message_from_the_future_makes_nothing_immune(void **state)
{
    struct world          *w     = *state;
    struct store           store = STORE(.answer = load_tagged);
    struct instance        a, b;
    struct knower          knower = { .in = &a };
    struct near__tag_clock clock;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    OPEN(w, &b, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    assert_fetch(a.cache, "a1", "v1");
    assert_true(test_wait_for(knows_the_clock, &knower, 10000 * test_slack()));
    clock = knower.clock;
    clock.moment += 1000;
    near__tags_told(a.cache, near_key("other"), clock); /* near enough to be true */
    clock.moment += UINT64_C(1) << 60;
    near__tags_told(a.cache, near_key("c"), clock);
    assert_fetch(a.cache, "b1", "v1");
    assert_fetch(a.cache, "c1", "v1");
    change(&store, b.cache, "all");
    assert_fetch(b.cache, "a1", "v2");
    assert_fetch(b.cache, "b1", "v2");
    assert_fetch(b.cache, "c1", "v2");
    await_fetch(a.cache, "b1", "v2"); /* when it has heard of it */
    await_fetch(a.cache, "c1", "v2");
    /* and it is no lasting harm: the clock is L2's again */
    assert_true(test_wait_for(knows_the_clock, &knower, 10000 * test_slack()));
    assert_true(knower.clock.lineage == clock.lineage && knower.clock.moment < 1000);
    close_instance(&a);
    close_instance(&b);
}

static void
renew_tagged(struct store *store, near_load *load)
{
    if (near_load_previous(load) == NULL || store->newer > 0) {
        near_load_ttl(load, 60); /* of the first one only */
        answer_tagged(load, 1 + store->newer);
    } else if (near_load_tag(load, "renewed") != NEAR_OK || near_load_unchanged(load) != NEAR_OK) {
        abort();
    }
}

/* A renewed value has its own tags still, and the ones that the load named. */
static void
a_renewed_value_keeps_its_tags(void **state)
{
    static const char *const keys[][2] = {
        { "a1", "a" }, { "large", "l" }, { "c1", "all" }, { "d1", "renewed" }
    };
    struct world   *w     = *state;
    struct store    store = STORE(.answer = renew_tagged);
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s", "grace", "60s", "loader.soft_timeout", "10s", "early_refresh.beta", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (size_t i = 0; i < NEAR_COUNT_OF(keys); i++)
        assert_string_equal(starts(a.cache, keys[i][0]), "v1");
    sleep_ms(100);
    for (size_t i = 0; i < NEAR_COUNT_OF(keys); i++)
        assert_string_equal(starts(a.cache, keys[i][0]), "v1");
    assert_int_equal(store.keys, 2 * NEAR_COUNT_OF(keys)); /* renewed */
    for (size_t i = 0; i < NEAR_COUNT_OF(keys); i++)
        assert_string_equal(starts(a.cache, keys[i][0]), "v1");
    assert_int_equal(store.keys, 2 * NEAR_COUNT_OF(keys)); /* control: and good for long */
    for (size_t i = 0; i < NEAR_COUNT_OF(keys); i++) {
        change(&store, a.cache, keys[i][1]);
        assert_string_equal(starts(a.cache, keys[i][0]), ((const char *[]){ "v2", "v3", "v4", "v5" })[i]);
    }
    close_instance(&a);
}

static void
puts_have_tags(void **state)
{
    struct world    *w       = *state;
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    const char      *tags[]  = { "x", "y", "x" };
    struct instance  a;
    near_value      *value;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    options.tags      = tags;
    options.tag_count = 3;
    for (unsigned skip = 0; skip < 2; skip++) { /* from L1, and from L2 */
        near_get_options how = NEAR_GET_OPTIONS_INIT;

        if (skip && w->tier == TIER_NONE)
            continue;
        how.flags = skip ? NEAR_SKIP_L1 : 0;
        assert_int_equal(near_put(a.cache, near_key("k"), near_key("v"), &options), NEAR_OK);
        assert_int_equal(near_put(a.cache, near_key("plain"), near_key("v"), NULL), NEAR_OK);
        assert_int_equal(near_get_with(a.cache, near_key("k"), &how, &value), NEAR_OK);
        near_value_release(value);
        assert_int_equal(near_invalidate_tag(a.cache, "z"), NEAR_OK);
        assert_int_equal(near_get_with(a.cache, near_key("k"), &how, &value), NEAR_OK);
        near_value_release(value);
        assert_int_equal(near_invalidate_tag(a.cache, "y"), NEAR_OK);
        assert_int_equal(near_get_with(a.cache, near_key("k"), &how, &value), NEAR_MISS);
        assert_int_equal(near_get_with(a.cache, near_key("plain"), &how, &value), NEAR_OK);
        near_value_release(value);
    }
    close_instance(&a);
}

static void
tags_have_limits(void **state)
{
    struct world    *w       = *state;
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    char             names[17][300];
    const char      *tags[17];
    struct instance  a;

    OPEN(w, &a, "ttl", "60s");
    for (int i = 0; i < 17; i++) {
        snprintf(names[i], sizeof(names[i]), "tag %d", i);
        tags[i] = names[i];
    }
    options.tags      = tags;
    options.tag_count = 17;
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("v"), &options), NEAR_ERR_TOO_LARGE);
    options.tag_count = 16;
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("v"), &options), NEAR_OK);
    memset(names[0], 'x', 256);
    names[0][256] = '\0';
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("v"), &options), NEAR_ERR_TOO_LARGE);
    assert_int_equal(near_invalidate_tag(a.cache, names[0]), NEAR_ERR_TOO_LARGE);
    names[0][255] = '\0'; /* too long for a key of memcached: hashed */
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("v"), &options), NEAR_OK);
    assert_int_equal(near_invalidate_tag(a.cache, names[0]), NEAR_OK);
    names[0][0] = '\0';
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("v"), &options), NEAR_ERR_INVALID);
    assert_int_equal(near_invalidate_tag(a.cache, ""), NEAR_ERR_INVALID);
    assert_int_equal(near_invalidate_tag(a.cache, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_invalidate_tag(NULL, "x"), NEAR_ERR_INVALID);
    options.tags = NULL;
    assert_int_equal(near_put(a.cache, near_key("k"), near_key("v"), &options), NEAR_ERR_INVALID);
    close_instance(&a);
}

/* ---- loads under way */

static void
a_load_that_its_tag_overtook_is_not_kept(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = load_tagged);
    struct instance a;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (int seen = 0; seen < 2; seen++) { /* a tag nobody knows yet, and one that everybody knows */
        store.answer = hold;
        store.n_held = 0;
        assert_string_equal(fetch_within(a.cache, seen ? "c2" : "c1", 50).text, "[-1]");
        await_held(&store, 1);
        change(&store, a.cache, "c");
        store.answer = load_tagged;
        answer_tagged(store.held[0], 1); /* read before the change */
        await_fetch(a.cache, seen ? "c2" : "c1", seen ? "v3" : "v2");
    }
    close_instance(&a);
}

struct fetcher {
    near_cache   *cache;
    const char   *key;
    struct answer answer;
};

static void *
run_fetcher(void *ctx)
{
    struct fetcher *fetcher = ctx;

    fetcher->answer = fetch(fetcher->cache, fetcher->key);
    return NULL;
}

static int
has_coalesced(void *ctx)
{
    return stats_of(ctx).coalesced >= 1;
}

static void
who_comes_after_the_invalidation_gets_nothing_older(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = hold);
    struct instance a;
    struct fetcher  before, after;
    pthread_t       first, second;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    before = after = (struct fetcher){ .cache = a.cache, .key = "d" };
    assert_int_equal(pthread_create(&first, NULL, run_fetcher, &before), 0);
    await_held(&store, 1);
    change(&store, a.cache, "d");
    assert_int_equal(pthread_create(&second, NULL, run_fetcher, &after), 0);
    assert_true(test_wait_for(has_coalesced, &a, 10000 * test_slack())); /* it waits for the old load ... */
    store.answer = load_tagged;
    answer_tagged(store.held[0], 1);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    assert_string_equal(before.answer.text, "v1"); /* he asked before */
    assert_string_equal(after.answer.text,
                        "v2"); /* ... and has another one when it turns out to be too old */
    assert_fetch(a.cache, "d", "v2");
    close_instance(&a);
}

/* ---- several instances */

static void
meet_tags(struct instance *a, struct instance *b)
{
    assert_int_equal(near_invalidate_tag(a->cache, "none of ours"), NEAR_OK);
    assert_int_equal(near_invalidate_tag(b->cache, "none of ours"), NEAR_OK);
}

static void
the_other_instance_forgets_too(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = load_tagged);
    struct instance a, b;
    bool            heard = w->tier != TIER_MEMCACHED;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    OPEN(w, &b, "ttl", "60s", "l1.max_ttl", heard ? "60s" : "20ms");
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    if (!heard) /* there a cache asks for the clock of tags once it has met one: its first load has to do without */
        meet_tags(&a, &b);
    for (unsigned round = 1; round <= 5; round++) {
        char text[8];

        snprintf(text, sizeof(text), "v%u", round);
        assert_fetch(a.cache, "e1", text);
        assert_fetch(b.cache, "e1", text);
        assert_fetch(b.cache, "e2", text);
        change(&store, a.cache, "e");
        if (heard)
            assert_int_equal(near_fence(b.client, 5000), NEAR_OK);
        else
            sleep_ms(25);
    }
    assert_fetch(b.cache, "e1", "v6"); /* not the old one out of L2 */
    assert_fetch(b.cache, "e2", "v6");
    assert_int_equal(store.keys, 12); /* each time one load per key, all instances together */
    close_instance(&a);
    close_instance(&b);
}

static void
control_without_the_call_the_old_value_stays(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = load_tagged);
    struct instance a, b;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    OPEN(w, &b, "ttl", "60s", "l1.max_ttl", "20ms");
    near_cache_set_loader(a.cache, load_from_store, &store);
    near_cache_set_loader(b.cache, load_from_store, &store);
    meet_tags(&a, &b);
    assert_fetch(a.cache, "f", "v1");
    store.newer = 1;
    assert_int_equal(near_invalidate_tag(a.cache, "other"), NEAR_OK);
    sleep_ms(25);
    assert_fetch(a.cache, "f", "v1");
    assert_fetch(b.cache, "f", "v1");
    close_instance(&a);
    close_instance(&b);
}

/* A key of its own of the cache's, gone as if evicted. */
static void
evict(const struct world *w, const char *pattern)
{
    redisContext *c    = redisConnectUnix(w->redis->socket);
    redisReply   *keys = redisCommand(c, "KEYS %s", pattern), *reply;

    assert_true(keys != NULL && keys->type == REDIS_REPLY_ARRAY && keys->elements == 1);
    reply = redisCommand(c, "DEL %b", keys->element[0]->str, keys->element[0]->len);
    assert_true(reply != NULL && reply->integer == 1);
    freeReplyObject(reply);
    freeReplyObject(keys);
    redisFree(c);
}

static void
what_L2_forgets_of_tags_never_revives_a_value(void **state)
{
    static const char *const patterns[] = { "*=g", "*@tags" };
    struct world            *w          = *state;

    NEEDS(w);
    for (unsigned i = 0; i < 2; i++) {
        struct store    store = STORE(.answer = load_tagged);
        struct instance a, b;

        OPEN(w, &a, "ttl", "60s");
        near_cache_set_loader(a.cache, load_from_store, &store);
        near_clear(a.cache);
        assert_fetch(a.cache, "g1", "v1");
        assert_fetch(a.cache, "h", "v1");
        change(&store, a.cache, "g");
        evict(w, patterns[i]);
        OPEN(w, &b, "ttl", "60s"); /* knows nothing */
        near_cache_set_loader(b.cache, load_from_store, &store);
        assert_fetch(b.cache, "g1", "v2"); /* L2 has v1, and nothing that says it was invalidated */
        assert_fetch(b.cache, "h", i == 0 ? "v1" : "v2"); /* without the clock, a miss too much */
        assert_fetch(b.cache, "g1", "v2");
        close_instance(&b);
        OPEN(w, &b, "ttl", "60s");
        near_cache_set_loader(b.cache, load_from_store, &store);
        store.newer = 5;
        assert_fetch(b.cache, "g1", "v2"); /* what was loaded anew is kept: one miss, not many */
        close_instance(&b);
        close_instance(&a);
    }
}

static void
one_message_whatever_the_number_of_entries(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = load_tagged);
    struct instance a;
    size_t          n = test_scale(10000);
    uint64_t        sent;
    char            key[32];

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s");
    near_cache_set_loader(a.cache, load_from_store, &store);
    for (size_t i = 0; i < n; i++) {
        snprintf(key, sizeof(key), "i%zu", i);
        assert_fetch(a.cache, key, "v1");
    }
    sent = stats_of(&a).bus_sent;
    change(&store, a.cache, "i");
    assert_int_equal(stats_of(&a).bus_sent - sent, w->tier == TIER_MEMCACHED ? 0 : 1);
    for (size_t i = 0; i < n; i += 97) {
        snprintf(key, sizeof(key), "i%zu", i);
        assert_fetch(a.cache, key, "v2");
    }
    close_instance(&a);
}

/* ---- all at once: who has been told of an invalidation sees nothing older, in any thread of any instance */

struct hammer {
    struct store    *store;
    struct instance *in;
    _Atomic unsigned acknowledged; /* versions up to this one were invalidated and fenced */
    _Atomic bool     stop;
    _Atomic unsigned stale, reads;
};

static void *
hammer_reads(void *ctx)
{
    struct hammer *hammer = ctx;
    char           key[8];

    for (unsigned i = 0; !atomic_load(&hammer->stop); i++) {
        unsigned      least = atomic_load(&hammer->acknowledged);
        struct answer answer;

        snprintf(key, sizeof(key), "j%u", i % 7);
        answer = fetch(hammer->in->cache, key);
        if (answer.status == NEAR_OK && strtoul(answer.text + 1, NULL, 10) < least)
            hammer->stale++;
        hammer->reads++;
    }
    return NULL;
}

static void
nobody_reads_what_an_acknowledged_invalidation_took(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = load_tagged);
    struct instance in[2];
    struct hammer   hammers[2];
    pthread_t       threads[4];
    bool            heard  = w->tier != TIER_MEMCACHED;
    unsigned        rounds = (unsigned)test_scale(heard ? 500 : 60);

    NEEDS(w);
    for (int i = 0; i < 2; i++) {
        OPEN(w, &in[i], "ttl", "60s", "l1.max_bytes", heard ? "64MiB" : "0");
        near_cache_set_loader(in[i].cache, load_from_store, &store);
        hammers[i] = (struct hammer){ .store = &store, .in = &in[i] };
    }
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, hammer_reads, &hammers[i % 2]), 0);
    for (unsigned round = 0; round < rounds; round++) {
        while (hammers[0].reads < round ||
               hammers[1].reads < round) /* in step: each read meets something new */
            sched_yield();
        store.newer++;
        if (near_invalidate_tag(in[round % 2].cache, "j") != NEAR_OK)
            continue;
        hammers[round % 2].acknowledged = 1 + store.newer; /* own writes: at once */
        if (!heard)
            sleep_ms(15); /* what is known of the clock may be 10 ms old */
        if (!heard || near_fence(in[1 - round % 2].client, 5000) == NEAR_OK)
            hammers[1 - round % 2].acknowledged = 1 + store.newer;
    }
    for (int i = 0; i < 2; i++)
        hammers[i].stop = true;
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(hammers[0].stale + hammers[1].stale, 0);
    assert_true(hammers[0].acknowledged > rounds / 2);
    close_instance(&in[0]);
    close_instance(&in[1]);
}

/* ---- several at once: the slower one must not undo what the quicker one noted */

#define CLIENTS 4

static void *
invalidate_once(void *ctx)
{
    struct instance *in = ctx;

    return near_invalidate_tag(in->cache, "k") == NEAR_OK ? NULL : ctx;
}

struct filler {
    near_cache  *cache;
    _Atomic bool stop;
};

static void *
fill_and_fill(void *ctx)
{
    struct filler     *filler  = ctx;
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;

    options.flags = NEAR_SKIP_L1;
    while (!filler->stop)
        fetch_with(filler->cache, "k", &options);
    return NULL;
}

static void
invalidations_at_once_never_step_back(void **state)
{
    struct world      *w     = *state;
    struct store       store = STORE(.answer = load_tagged);
    struct instance    in[CLIENTS];
    near_fetch_options skip = NEAR_FETCH_OPTIONS_INIT;
    struct filler      filler;
    pthread_t          threads[CLIENTS], filling;
    char               text[16];

    NEEDS(w);
    skip.flags = NEAR_SKIP_L1;
    for (int i = 0; i < CLIENTS; i++) {
        OPEN(w, &in[i], "ttl", "60s", "l1.max_ttl", "60s");
        near_cache_set_loader(in[i].cache, load_from_store, &store);
    }
    filler = (struct filler){ .cache = in[0].cache };
    assert_int_equal(pthread_create(&filling, NULL, fill_and_fill, &filler), 0);
    for (unsigned round = 0; round < test_scale(w->tier == TIER_MEMCACHED ? 25 : 80); round++) {
        store.newer++;
        for (int i = 0; i < CLIENTS; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, invalidate_once, &in[i]), 0);
        for (int i = 0; i < CLIENTS; i++) {
            void *failed;

            pthread_join(threads[i], &failed);
            assert_null(failed);
        }
        if (w->tier == TIER_MEMCACHED)
            sleep_ms(15);
        snprintf(text, sizeof(text), "v%u", 1 + store.newer);
        for (int i = 0; i < CLIENTS; i++)
            assert_string_equal(fetch_with(in[i].cache, "k", &skip).text, text);
    }
    filler.stop = true;
    pthread_join(filling, NULL);
    for (int i = 0; i < CLIENTS; i++)
        close_instance(&in[i]);
}

/* ---- in the middle of somebody's invalidation, which a slow line stretches out */

struct slow {
    struct test_proxy *proxy;
    struct instance    in;
    pthread_t          thread;
};

static void
begin_slowly(const struct world *w, struct slow *slow, const char *bus)
{
    struct world behind = *w;

    slow->proxy = test_proxy_start(w->redis);
    assert_non_null(slow->proxy);
    snprintf(behind.l2, sizeof(behind.l2), "%s", test_proxy_unix_uri(slow->proxy));
    OPEN(&behind, &slow->in, "l2.timeout", "20s", "coherence.mode", bus);
    assert_int_equal(near_invalidate_tag(slow->in.cache, "none of ours"), NEAR_OK); /* it is connected */
    test_proxy_fault(slow->proxy,
                     (struct test_fault){ .kind = TEST_FAULT_DELAY, .direction = TEST_UP, .ms = 100 });
    assert_int_equal(pthread_create(&slow->thread, NULL, invalidate_once, &slow->in), 0);
}

static void
end_slowly(struct slow *slow)
{
    void *failed;

    pthread_join(slow->thread, &failed);
    assert_null(failed);
    close_instance(&slow->in);
    test_proxy_stop(&slow->proxy);
}

/* The clock and the tag as they lie there: whatever changes first, the other one is still to come. */
static void
read_notes(const struct world *w, char *notes, size_t size)
{
    size_t half = size / 2;

    test_redis_command(w->redis, notes, half, 2, (const char *[]){ "GET", "nc:things@tags" });
    test_redis_command(w->redis, notes + half, half, 2, (const char *[]){ "GET", "nc:things=k" });
}

struct notes {
    const struct world *w;
    char                before[512];
};

static int
have_changed(void *ctx)
{
    struct notes *notes = ctx;
    char          now[512];

    memset(now, 0, sizeof(now));
    read_notes(notes->w, now, sizeof(now));
    return memcmp(now, notes->before, sizeof(now)) != 0;
}

static void
a_slow_invalidation_does_not_undo_a_quicker_one(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = load_tagged);
    struct notes    notes = { .w = w };
    struct instance a, fresh;
    struct slow     slow;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s", "coherence.mode", "none", "l1.max_bytes", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_int_equal(near_invalidate_tag(a.cache, "none of ours"), NEAR_OK);
    assert_fetch(a.cache, "k", "v1");
    begin_slowly(w, &slow, "none");
    read_notes(w, notes.before, sizeof(notes.before));
    assert_true(test_wait_for(have_changed, &notes, 10000));
    sleep_ms(15); /* so that the clock is read again */
    assert_int_equal(near_remove(a.cache, near_key("k")), NEAR_OK);
    assert_fetch(a.cache, "k", "v1"); /* filled between the two halves */
    change(&store, a.cache, "k");
    end_slowly(&slow);
    OPEN(w, &fresh, "ttl", "60s", "coherence.mode", "none", "l1.max_bytes", "0");
    near_cache_set_loader(fresh.cache, load_from_store, &store);
    assert_fetch(fresh.cache, "k", "v2");
    close_instance(&fresh);
    close_instance(&a);
}

static void
who_looks_between_clock_and_tag_is_not_misled(void **state)
{
    struct world      *w     = *state;
    struct store       store = STORE(.answer = load_tagged);
    near_fetch_options skip  = NEAR_FETCH_OPTIONS_INIT;
    struct notes       notes = { .w = w };
    struct instance    a;
    struct slow        slow;

    NEEDS(w);
    skip.flags = NEAR_SKIP_L1;
    OPEN(w, &a, "ttl", "60s", "coherence.mode", "none", "l1.max_bytes", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_int_equal(near_invalidate_tag(a.cache, "none of ours"), NEAR_OK);
    assert_string_equal(fetch_with(a.cache, "k", &skip).text, "v1");
    store.newer++;
    begin_slowly(w, &slow, "none");
    read_notes(w, notes.before, sizeof(notes.before));
    assert_true(test_wait_for(have_changed, &notes, 10000));
    for (int i = 0; i < 8; i++) { /* and again when what it knows of the clock is too old */
        fetch_with(a.cache, "k", &skip);
        sleep_ms(5);
    }
    end_slowly(&slow);
    sleep_ms(15);
    assert_string_equal(fetch_with(a.cache, "k", &skip).text, "v2");
    close_instance(&a);
}

/* Evicted right after the invalidation has written it, and made again by a reader before the clock has moved. */
static void
a_tag_that_is_evicted_within_its_invalidation_revives_nothing(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = load_tagged);
    struct notes    notes = { .w = w };
    char            now[512], clock[256];
    struct instance a, reader;
    struct slow     slow;

    NEEDS(w);
    OPEN(w, &a, "ttl", "60s", "coherence.mode", "none", "l1.max_bytes", "0");
    near_cache_set_loader(a.cache, load_from_store, &store);
    assert_int_equal(near_invalidate_tag(a.cache, "none of ours"), NEAR_OK);
    begin_slowly(w, &slow, "none");
    sleep_ms(15); /* so that the value is of the clock's present moment */
    assert_fetch(a.cache, "k", "v1");
    store.newer++;
    memset(notes.before, 0, sizeof(notes.before));
    read_notes(w, notes.before, sizeof(notes.before));
    assert_true(test_wait_for(have_changed, &notes, 10000));
    evict(w, "*=k");
    OPEN(w, &reader, "ttl", "60s", "coherence.mode", "none", "l1.max_bytes", "0");
    near_cache_set_loader(reader.cache, load_from_store, &store);
    assert_fetch(reader.cache, "k", "v1"); /* it has not been acknowledged */
    memset(now, 0, sizeof(now));
    read_notes(w, now, sizeof(now));
    memcpy(clock, notes.before, sizeof(clock));
    assert_memory_equal(now, clock,
                        sizeof(clock)); /* and the clock stands where it did: else nothing is tried here */
    close_instance(&reader);
    end_slowly(&slow);
    OPEN(w, &reader, "ttl", "60s", "coherence.mode", "none", "l1.max_bytes", "0");
    near_cache_set_loader(reader.cache, load_from_store, &store);
    assert_fetch(reader.cache, "k", "v2");
    close_instance(&reader);
    close_instance(&a);
}

#define OVER_SHARED(test) OVER(memory, test), OVER(redis, test), OVER(both, test), OVER(memcached, test)
#define OVER_ALL(test)    OVER(none, test), OVER_SHARED(test)
#define OVER_HEARD(test)  OVER(memory, test), OVER(redis, test), OVER(both, test)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER_ALL(an_invalidated_tag_takes_its_values_and_no_others),
        OVER_ALL(a_get_does_not_see_what_a_tag_took),
        OVER_HEARD(a_batch_of_several_exchanges_has_its_tags),
        OVER_HEARD(a_message_from_the_future_makes_nothing_immune),
        OVER_ALL(a_renewed_value_keeps_its_tags),
        OVER_ALL(puts_have_tags),
        OVER(memory, tags_have_limits),
        OVER_ALL(a_load_that_its_tag_overtook_is_not_kept),
        OVER_ALL(who_comes_after_the_invalidation_gets_nothing_older),
        OVER_SHARED(the_other_instance_forgets_too),
        OVER_SHARED(control_without_the_call_the_old_value_stays),
        OVER(redis, what_L2_forgets_of_tags_never_revives_a_value),
        OVER_SHARED(one_message_whatever_the_number_of_entries),
        OVER_SHARED(nobody_reads_what_an_acknowledged_invalidation_took),
        OVER_SHARED(invalidations_at_once_never_step_back),
        OVER(redis, a_slow_invalidation_does_not_undo_a_quicker_one),
        OVER(redis, who_looks_between_clock_and_tag_is_not_misled),
        OVER(redis, a_tag_that_is_evicted_within_its_invalidation_revives_nothing),
    };
    return TEST_MAIN(tests, NULL, NULL);
}
