/*
 * Write-back: what readers see before the store has it, order, coalescing, batches, refusals, back-pressure, flush and close, and what
 * the caches hold afterwards.
 */
#include "integration/world.h"

#include "client/back.h"
#include "client/write.h"
#include "harness/sink.h"

WORLD(none, TIER_NONE)
WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(memcached, TIER_MEMCACHED)

#define NEVER "1h" /* an interval that no test waits for: what is due goes by a batch or by near_flush() */

static void
open_back(const struct world *w, struct instance *in, struct sink *sink, const char *const *settings)
{
    const char *all[40] = { "write.policy", "back" };
    size_t      n       = 2;

    for (size_t i = 0; settings[i] != NULL; i++)
        all[n++] = settings[i];
    open_with(w, in, all);
    near_cache_set_store(in->cache, sink_store, sink);
}
#define OPEN_BACK(w, in, sink, ...) open_back(w, in, sink, (const char *const[]){ __VA_ARGS__, NULL })

static void
update(struct instance *in, const char *key, const char *value)
{
    assert_int_equal(near_update(in->cache, near_key(key), near_key(value), NULL), NEAR_OK);
}

static void
flush(struct instance *in)
{
    assert_int_equal(near_flush(in->client, 10000 * test_slack()), NEAR_OK);
}

/* "" for NEAR_NOT_FOUND, "-" for NEAR_MISS. */
static const char *
read_with(struct instance *in, const char *key, unsigned flags)
{
    static _Thread_local char text[64];
    near_get_options          options = NEAR_GET_OPTIONS_INIT;
    near_value               *value;
    near_status               status;

    options.flags = flags;
    status        = near_get_with(in->cache, near_key(key), &options, &value);
    if (status == NEAR_NOT_FOUND || status == NEAR_MISS)
        return status == NEAR_MISS ? "-" : "";
    assert_int_equal(status, NEAR_OK);
    sink_text(near_value_bytes(value), text, sizeof(text));
    near_value_release(value);
    return text;
}

static const char *
read_one(struct instance *in, const char *key)
{
    return read_with(in, key, 0);
}

static int
nothing_pending(void *ctx)
{
    return stats_of(ctx).write_back_pending == 0;
}

static int
is_held(void *ctx)
{
    struct sink *sink = ctx;
    size_t       n;

    pthread_mutex_lock(&sink->lock);
    n = sink->n_held;
    pthread_mutex_unlock(&sink->lock);
    return n > 0;
}

/* The last thing that the origin said: a loader over the sink, so that who loads gets what the store has. */
static void
load_from_sink(near_load *loads[], size_t n, void *ctx)
{
    for (size_t i = 0; i < n; i++) {
        char key[48];

        sink_text(near_load_key(loads[i]), key, sizeof(key));
        if (sink_value(ctx, key)[0] == '\0')
            near_load_not_found(loads[i]);
        else
            near_load_set(loads[i], near_key(sink_value(ctx, key)));
    }
}

static const char *
fetch_one(struct instance *in, const char *key)
{
    static _Thread_local char text[64];
    near_value               *value;
    near_status               status = near_fetch(in->cache, near_key(key), NULL, &value);

    if (status == NEAR_NOT_FOUND)
        return "";
    assert_int_equal(status, NEAR_OK);
    sink_text(near_value_bytes(value), text, sizeof(text));
    near_value_release(value);
    return text;
}

/* ---- what readers see */

static void
test_readers_see_what_the_store_has_not(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;
    char            buffer[16];
    size_t          size;
    near_bytes      keys[] = { near_key("k"), near_key("other"), near_key("gone") };
    near_value     *values[3];
    near_status     statuses[3];

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    near_cache_set_loader(a.cache, load_from_sink, sink);
    update(&a, "k", "v1");
    assert_int_equal(near_erase(a.cache, near_key("gone")), NEAR_OK);
    near_put(a.cache, near_key("other"), near_key("o"), NULL);
    assert_int_equal(sink->calls, 0);
    assert_string_equal(read_one(&a, "k"), "v1");
    assert_string_equal(read_with(&a, "k", NEAR_ONLY_L1), "v1");
    assert_string_equal(read_with(&a, "k", NEAR_SKIP_L1), "v1");
    assert_string_equal(read_one(&a, "gone"), "");
    assert_string_equal(fetch_one(&a, "k"), "v1");
    assert_string_equal(fetch_one(&a, "gone"), "");
    assert_int_equal(near_get_copy(a.cache, near_key("k"), buffer, sizeof(buffer), &size, NULL), NEAR_OK);
    assert_memory_equal(buffer, "v1", 2);
    assert_int_equal(near_get_many(a.cache, keys, 3, values, statuses), NEAR_OK);
    assert_int_equal(statuses[0], NEAR_OK);
    assert_int_equal(statuses[1], NEAR_OK);
    assert_int_equal(statuses[2], NEAR_NOT_FOUND);
    assert_memory_equal(near_value_bytes(values[0]).data, "v1", 2);
    near_value_release(values[0]);
    near_value_release(values[1]);
    assert_int_equal(near_fetch_many(a.cache, keys, 3, NULL, values, statuses), NEAR_OK);
    assert_int_equal(statuses[2], NEAR_NOT_FOUND);
    assert_memory_equal(near_value_bytes(values[0]).data, "v1", 2);
    near_value_release(values[0]);
    near_value_release(values[1]);
    /* nothing takes it away */
    near_clear(a.cache);
    assert_string_equal(read_one(&a, "k"), "v1");
    near_remove(a.cache, near_key("k"));
    assert_string_equal(read_one(&a, "k"), "v1");
    near_put(a.cache, near_key("k"), near_key("not the store's"), NULL);
    near_put(a.cache, near_key("gone"), near_key("not the store's"), NULL);
    assert_string_equal(fetch_one(&a, "k"), "v1");
    assert_string_equal(fetch_one(&a, "gone"), "");
    assert_int_equal(sink->calls, 0);
    flush(&a);
    assert_string_equal(sink_value(sink, "k"), "v1");
    assert_string_equal(fetch_one(&a, "k"), "v1");
    assert_string_equal(fetch_one(&a, "gone"), "");
    close_instance(&a);
}

static void
test_a_value_survives_eviction(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;
    char            key[32], value[1001];

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "l1.max_bytes", "256KiB", "write_back.batch", "4096",
              "ttl", "50ms");
    memset(value, 'x', 1000);
    value[1000] = '\0';
    for (unsigned i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        update(&a, key, value);
    }
    sleep_ms(60); /* past every TTL, too */
    for (unsigned i = 0; i < 1000; i++) {
        near_value *found;

        snprintf(key, sizeof(key), "k%u", i);
        assert_int_equal(near_get(a.cache, near_key(key), &found), NEAR_OK);
        assert_int_equal(near_value_bytes(found).size, 1000);
        near_value_release(found);
    }
    assert_int_equal(sink->calls, 0);
    flush(&a);
    assert_int_equal(sink->writes, 1000);
    assert_string_equal(read_with(&a, "k0", NEAR_ONLY_L1),
                        "-"); /* the control: without the table it is gone */
    close_instance(&a);
}

/* Race 38. */
static void
test_a_foreign_write_does_not_hide_ours(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a, b;

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    OPEN(w, &b, "write.policy", "through");
    near_cache_set_loader(a.cache, load_from_sink, sink);
    near_cache_set_loader(b.cache, load_from_sink, sink);
    update(&a, "k", "ours");
    assert_int_equal(near_fence(b.client, -1), NEAR_OK);
    assert_string_equal(read_one(&b, "k"), "ours"); /* by L2 */
    assert_int_equal(near_put(b.cache, near_key("k"), near_key("theirs"), NULL), NEAR_OK);
    assert_int_equal(near_fence(a.client, -1), NEAR_OK);
    assert_string_equal(read_one(&a, "k"), "ours");
    assert_string_equal(read_one(&b, "k"), "theirs");
    flush(&a);
    assert_int_equal(sink->conflicts, 1);
    assert_int_equal(stats_of(&a).write_back_conflicts, 1);
    /* the store has ours: so must everybody */
    assert_int_equal(near_fence(b.client, -1), NEAR_OK);
    assert_string_equal(fetch_one(&b, "k"), "ours");
    assert_string_equal(fetch_one(&a, "k"), "ours");
    close_instance(&a);
    close_instance(&b);
}

/* The server tells of our own changes as of any: these compete with nobody. */
struct updates {
    struct instance *in;
    _Atomic bool     over;
    pthread_t        thread;
};

static void *
update_until_over(void *ctx)
{
    struct updates *updates = ctx;

    for (unsigned i = 0; !updates->over; i++)
        if (i % 5 == 4)
            assert_int_equal(near_erase(updates->in->cache, near_key("k")), NEAR_OK);
        else
            update(updates->in, "k", "v");
    return NULL;
}

static void
test_echoes_of_our_own_are_no_conflict(void **state)
{
    struct world   *w       = *state;
    struct sink    *sink    = &(struct sink)SINK();
    struct updates  updates = { .over = false };
    int64_t         until   = test_now_ms() + 300;
    struct instance a, b;

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "coherence.mode", "tracking");
    updates.in = &a;
    pthread_create(&updates.thread, NULL, update_until_over, &updates);
    while (test_now_ms() < until)
        flush(&a);
    updates.over = true;
    pthread_join(updates.thread, NULL);
    flush(&a);
    assert_true(sink->writes > 10);
    assert_int_equal(sink->conflicts, 0);
    OPEN(w, &b, "write.policy", "through"); /* the control */
    update(&a, "k", "ours");
    assert_int_equal(near_put(b.cache, near_key("k"), near_key("theirs"), NULL), NEAR_OK);
    assert_int_equal(near_fence(a.client, -1), NEAR_OK);
    flush(&a);
    assert_int_equal(sink->conflicts, 1);
    close_instance(&a);
    close_instance(&b);
}

/* A value that was read while the store had it not has no version; once it has been settled it has. */
static near_status
put_if_unchanged(struct instance *in, const char *key, const near_value *old)
{
    near_put_options options = NEAR_PUT_OPTIONS_INIT;

    options.unchanged = old;
    return near_put(in->cache, near_key(key), near_key("put"), &options);
}

static void
test_what_is_settled_has_a_version(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;
    near_value     *dirty, *settled;
    near_value_info info = NEAR_VALUE_INFO_INIT;

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    update(&a, "k", "v1");
    assert_int_equal(near_get(a.cache, near_key("k"), &dirty), NEAR_OK);
    flush(&a);
    assert_int_equal(near_get(a.cache, near_key("k"), &settled), NEAR_OK);
    near_value_get_info(settled, &info);
    assert_int_equal(info.source, NEAR_FROM_L1);
    if (w->tier != TIER_NONE)
        assert_int_equal(put_if_unchanged(&a, "k", dirty), NEAR_ERR_UNSUPPORTED);
    assert_int_equal(put_if_unchanged(&a, "k", settled), NEAR_OK);
    assert_int_equal(put_if_unchanged(&a, "k", settled), NEAR_ERR_CONFLICT);
    near_value_release(dirty);
    near_value_release(settled);
    close_instance(&a);
}

/* Without the cures: readers that do not look into the table first, and a flusher that is not told. */
static _Atomic bool no_table, no_suspicion;

struct near__entry *__real_near__dirty_find(struct near__dirty *dirty, uint64_t hash, near_bytes key);
struct near__entry *__wrap_near__dirty_find(struct near__dirty *dirty, uint64_t hash, near_bytes key);
struct near__entry *
__wrap_near__dirty_find(struct near__dirty *dirty, uint64_t hash, near_bytes key)
{
    return no_table ? NULL : __real_near__dirty_find(dirty, hash, key);
}

void __real_near__back_suspect(near_cache *cache, uint64_t hash, near_bytes key);
void __wrap_near__back_suspect(near_cache *cache, uint64_t hash, near_bytes key);
void
__wrap_near__back_suspect(near_cache *cache, uint64_t hash, near_bytes key)
{
    if (!no_suspicion)
        __real_near__back_suspect(cache, hash, key);
}

static void
control_race38(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.keep_on_conflict = true);
    struct instance a, b;

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    OPEN_BACK(w, &b, sink, "write_back.interval", NEVER);
    no_table = no_suspicion = true;
    update(&a, "k", "ours");
    update(&b, "k", "theirs");
    assert_int_equal(near_fence(a.client, -1), NEAR_OK);
    assert_string_equal(read_one(&a, "k"), "theirs"); /* an acknowledged change of its own is gone */
    flush(&b);
    flush(&a);
    no_table = no_suspicion = false;
    assert_int_equal(sink->conflicts, 0); /* and the store keeps what nobody knows to be in competition */
    assert_string_equal(sink_value(sink, "k"), "ours");
    close_instance(&a);
    close_instance(&b);
}

static void
test_a_store_may_keep_the_other_ones_value(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.keep_on_conflict = true);
    struct instance a, b;

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    OPEN_BACK(w, &b, sink, "write_back.interval", NEVER);
    near_cache_set_loader(a.cache, load_from_sink, sink);
    update(&a, "k", "first");
    update(&b, "k", "second");
    flush(&b);
    assert_int_equal(near_fence(a.client, -1), NEAR_OK);
    assert_string_equal(read_one(&a, "k"), "first");
    flush(&a);
    assert_int_equal(sink->conflicts, 1);
    assert_string_equal(sink_value(sink, "k"), "second");
    assert_string_equal(fetch_one(&a, "k"), "second");
    close_instance(&a);
    close_instance(&b);
}

/* While a change waits, L2 loses it, and another instance loads the store's old value into L2 and into its own L1. */
static void
test_G7_nothing_old_stays_behind(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a, b;

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    OPEN(w, &b, "l1.max_ttl", "60s");
    near_cache_set_loader(a.cache, load_from_sink, sink);
    near_cache_set_loader(b.cache, load_from_sink, sink);
    update(&a, "k", "old");
    update(&a, "gone", "old");
    flush(&a);
    update(&a, "k", "new");
    assert_int_equal(near_erase(a.cache, near_key("gone")), NEAR_OK);
    near_remove(b.cache, near_key("k")); /* an eviction, for example */
    assert_string_equal(fetch_one(&b, "k"), "old");
    assert_string_equal(fetch_one(&b, "gone"), "old"); /* the control: this is how old values get there */
    assert_string_equal(read_with(&b, "k", NEAR_SKIP_L1), "old");
    assert_string_equal(fetch_one(&a, "k"), "new");
    assert_string_equal(fetch_one(&a, "gone"), "");
    flush(&a);
    if (w->tier != TIER_MEMCACHED)
        assert_int_equal(near_fence(b.client, -1), NEAR_OK);
    if (w->tier == TIER_MEMCACHED) /* nobody tells b: G4 */
        near_cache_resize(b.cache, 64 << 20, 0, NULL);
    if (w->tier != TIER_MEMCACHED) {
        assert_string_equal(fetch_one(&b, "k"), "new");
        assert_string_equal(fetch_one(&b, "gone"), "");
    } else {
        near_fetch_options past = NEAR_FETCH_OPTIONS_INIT;
        near_value        *value;

        past.flags = NEAR_SKIP_L1;
        assert_int_equal(near_fetch(b.cache, near_key("k"), &past, &value), NEAR_OK);
        assert_memory_equal(near_value_bytes(value).data, "new", 3);
        near_value_release(value);
        assert_int_equal(near_fetch(b.cache, near_key("gone"), &past, &value), NEAR_NOT_FOUND);
    }
    assert_string_equal(fetch_one(&a, "k"), "new");
    assert_string_equal(fetch_one(&a, "gone"), "");
    close_instance(&a);
    close_instance(&b);
}

/* What nobody disturbed stays where it is: in L2, and in L1. */
static void
test_an_undisturbed_value_stays_cached(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    update(&a, "k", "v1");
    flush(&a);
    assert_string_equal(read_with(&a, "k", NEAR_ONLY_L1), "v1");
    if (w->tier != TIER_NONE)
        assert_string_equal(read_with(&a, "k", NEAR_SKIP_L1), "v1");
    assert_int_equal(stats_of(&a).write_back_settled, 0);
    close_instance(&a);
}

/* A refresh under way elsewhere: it has asked the store before that had our change, and may replace the entry that it found. */
struct refresher {
    struct instance *in;
    struct sink     *sink;
    _Atomic bool     inside, go_on;
};

static void
load_old_and_wait(near_load *loads[], size_t n, void *ctx)
{
    struct refresher *refresher = ctx;
    char              value[64];

    assert_int_equal(n, 1);
    snprintf(value, sizeof(value), "%s", sink_value(refresher->sink, "k"));
    refresher->inside = true;
    while (!refresher->go_on)
        sleep_ms(1);
    near_load_set(loads[0], near_key(value));
}

static int
is_inside(void *ctx)
{
    return ((struct refresher *)ctx)->inside;
}

static void *
refresh(void *arg)
{
    struct refresher  *refresher = arg;
    near_fetch_options options   = NEAR_FETCH_OPTIONS_INIT;
    near_value        *value;

    for (options.flags = NEAR_SKIP_L1; !refresher->inside;) { /* XFetch throws a die */
        assert_int_equal(near_fetch(refresher->in->cache, near_key("k"), &options, &value), NEAR_OK);
        near_value_release(value);
        sleep_ms(1);
    }
    return NULL;
}

static void
test_a_refresh_under_way_does_not_bring_back_the_old_value(void **state)
{
    struct world      *w    = *state;
    struct sink       *sink = &(struct sink)SINK();
    struct instance    a, b;
    struct refresher   refresher = { .in = &b, .sink = sink };
    near_fetch_options past      = NEAR_FETCH_OPTIONS_INIT;
    near_value        *value;
    pthread_t          thread;

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "ttl", "100ms", "grace", "60s");
    OPEN(w, &b, "ttl", "60s", "grace", "60s");
    near_cache_set_loader(b.cache, load_old_and_wait, &refresher);
    update(&a, "k", "old");
    flush(&a);
    update(&a, "k", "new");
    sleep_ms(120); /* it is stale, and may be refreshed */
    assert_int_equal(pthread_create(&thread, NULL, refresh, &refresher), 0);
    assert_true(test_wait_for(is_inside, &refresher, 10000 * test_slack()));
    assert_string_equal(sink_value(sink, "k"), "old");
    flush(&a);
    refresher.go_on = true;
    pthread_join(thread, NULL);
    sleep_ms(50); /* it fills what it may */
    near_cache_set_loader(b.cache, load_from_sink, sink);
    if (w->tier != TIER_MEMCACHED) /* nobody tells b: G4 */
        assert_string_equal(fetch_one(&b, "k"), "new");
    past.flags = NEAR_SKIP_L1;
    assert_int_equal(near_fetch(b.cache, near_key("k"), &past, &value), NEAR_OK);
    assert_memory_equal(near_value_bytes(value).data, "new", 3);
    near_value_release(value);
    close_instance(&a);
    close_instance(&b);
}

/* What makes the same true of what is not stale here, but there: the clocks of two machines. */
static void
test_what_stays_has_a_new_stamp(void **state)
{
    struct world    *w    = *state;
    struct sink     *sink = &(struct sink)SINK();
    struct instance  a, b;
    near_put_options options = NEAR_PUT_OPTIONS_INIT, tagged = NEAR_PUT_OPTIONS_INIT;
    const char      *tags[] = { "t" };
    near_value      *value;

    NEEDS(w);
    tagged.tags      = tags;
    tagged.tag_count = 1;
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "ttl", "2s");
    OPEN(w, &b, "ttl", "60s");
    update(&a, "k", "v");
    assert_int_equal(near_update(a.cache, near_key("tagged"), near_key("v"), &tagged), NEAR_OK);
    assert_int_equal(near_get(b.cache, near_key("k"), &value), NEAR_OK);
    sleep_ms(1000);
    flush(&a);
    assert_int_equal(stats_of(&a).write_back_settled, 0);
    if (w->tier != TIER_MEMCACHED)
        assert_int_equal(near_fence(b.client, -1), NEAR_OK);
    if (w->tier == TIER_REDIS || w->tier == TIER_MEMORY)
        assert_string_equal(read_with(&b, "k", NEAR_ONLY_L1), "-"); /* it was told */
    options.unchanged = value;
    assert_int_equal(near_put(b.cache, near_key("k"), near_key("not this one"), &options), NEAR_ERR_CONFLICT);
    near_value_release(value);
    assert_string_equal(read_with(&b, "k", NEAR_SKIP_L1), "v");
    assert_string_equal(read_with(&b, "tagged", NEAR_SKIP_L1), "v");
    /* labels and end are what they were */
    assert_int_equal(near_invalidate_tag(b.cache, "t"), NEAR_OK);
    assert_string_equal(read_with(&b, "tagged", NEAR_SKIP_L1), "-");
    sleep_ms(1100);
    assert_string_equal(read_with(&b, "k", NEAR_SKIP_L1), "-");
    close_instance(&a);
    close_instance(&b);
}

/* ---- order, coalescing, batches */

static void
test_changes_of_a_key_coalesce(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    for (unsigned i = 0; i < 100; i++) {
        char value[16];

        snprintf(value, sizeof(value), "v%u", i);
        update(&a, "k", value);
    }
    assert_int_equal(near_erase(a.cache, near_key("k")), NEAR_OK);
    update(&a, "k", "last");
    flush(&a);
    assert_int_equal(sink_writes(sink, "k"), 1);
    assert_string_equal(sink_value(sink, "k"), "last");
    assert_int_equal(stats_of(&a).write_back_coalesced, 101);
    close_instance(&a);
}

static void
test_every_change_is_kept_where_that_is_asked_for(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "write_back.coalesce", "no");
    for (unsigned i = 0; i < 100; i++) {
        char value[16];

        snprintf(value, sizeof(value), "v%u", i);
        update(&a, i % 2 == 0 ? "even" : "odd", value);
    }
    flush(&a);
    assert_int_equal(sink_writes(sink, "even"), 50);
    assert_int_equal(sink_writes(sink, "odd"), 50);
    assert_int_equal(sink->misordered, 0);
    assert_string_equal(sink_value(sink, "odd"), "v99");
    close_instance(&a);
}

static void
test_batches_by_size_and_by_time(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;
    char            key[16];
    int64_t         began;

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "write_back.batch", "50");
    for (unsigned i = 0; i < 100; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        update(&a, key, "v");
    }
    assert_true(test_wait_for(nothing_pending, &a, 5000 * test_slack()));
    assert_int_equal(sink->most, 50);
    assert_int_equal(sink->writes, 100);
    close_instance(&a);
    OPEN_BACK(w, &a, sink, "write_back.interval", "100ms", "write_back.batch", "50");
    began = test_now_ms();
    update(&a, "one", "v");
    assert_true(test_wait_for(nothing_pending, &a, 5000 * test_slack()));
    assert_in_range(test_now_ms() - began, 95, 100 + 900 * test_slack());
    close_instance(&a);
}

/* A writer that is stopped between the table and its cache step. */
static __thread bool to_hold;
static _Atomic bool  held, let_go;

near_status __real_near__write_known(near_cache *cache, near_bytes key, near_bytes data,
                                     const near_put_options *options, const struct near__known *known);
near_status __wrap_near__write_known(near_cache *cache, near_bytes key, near_bytes data,
                                     const near_put_options *options, const struct near__known *known);
near_status
__wrap_near__write_known(near_cache *cache, near_bytes key, near_bytes data, const near_put_options *options,
                         const struct near__known *known)
{
    if (to_hold) {
        held = true;
        while (!let_go)
            sleep_ms(1);
    }
    return __real_near__write_known(cache, key, data, options, known);
}

static void *
update_held(void *ctx)
{
    to_hold = true;
    update(ctx, "held", "v");
    to_hold = false;
    return NULL;
}

static int
one_is_pending(void *ctx)
{
    return stats_of(ctx).write_back_pending == 1;
}

static void
update_some(struct instance *in, char letter, unsigned n)
{
    char key[16];

    for (unsigned i = 0; i < n; i++) {
        snprintf(key, sizeof(key), "%c%u", letter, i);
        update(in, key, "v");
    }
}

/* What the store has before its writer is through waits for him, not for the next batch, and takes nobody's seat there. */
static void
test_what_is_stored_early_is_in_no_batch(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;
    pthread_t       writer;

    held = let_go = false;
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "write_back.batch", "50");
    update_some(&a, 'a', 49);
    assert_int_equal(pthread_create(&writer, NULL, update_held, &a), 0);
    assert_true(test_wait_for(one_is_pending, &a, 5000 * test_slack())); /* the store has it */
    assert_true(held);
    assert_int_equal(sink->writes, 50);
    update_some(&a, 'b', 49);
    let_go = true;
    pthread_join(writer, NULL);
    update_some(&a, 'c', 1);
    assert_true(test_wait_for(nothing_pending, &a, 5000 * test_slack()));
    assert_int_equal(sink->writes, 100);
    assert_int_equal(sink->most, 50);
    close_instance(&a);
}

struct crowd {
    struct instance *in;
    unsigned         id, rounds, failed;
};

static void *
write_in_crowd(void *ctx)
{
    struct crowd *crowd  = ctx;
    uint64_t      random = crowd->id;
    char          key[32], value[32];

    for (unsigned i = 1; i <= crowd->rounds; i++) {
        near_status status;

        snprintf(key, sizeof(key), "t%u.%u", crowd->id, (unsigned)(test_random(&random) % 8));
        snprintf(value, sizeof(value), "%u", i);
        if (i % 50 == 0)
            status = near_erase(crowd->in->cache, near_key(key));
        else
            status = near_update(crowd->in->cache, near_key(key), near_key(value), NULL);
        crowd->failed += status != NEAR_OK;
        crowd->failed += strcmp(fetch_one(crowd->in, key), i % 50 == 0 ? "" : value) != 0;
        /* all at one key, too: whose value is last nobody can say, but the order of numbers must hold */
        near_update(crowd->in->cache, near_key("shared"), near_key(value), NULL);
    }
    return NULL;
}

/* The sink is slow, refuses now and then, and checks that numbers grow; each thread reads its own writes all the time. */
static void
run_crowd(const struct world *w, struct sink *sink, const char *coalesce, const char *full, unsigned rounds)
{
    struct crowd    crowd[8];
    pthread_t       threads[8];
    struct instance a;
    uint64_t        most = 0;

    sink->refusal = NEAR_ERR_UNAVAILABLE;
    OPEN_BACK(w, &a, sink, "write_back.interval", "1ms", "write_back.coalesce", coalesce, "write_back.batch",
              "16", "write_back.max_pending", "16KiB", "write_back.on_full", full, "write_back.retries", "0",
              "store.timeout", "60s");
    near_cache_set_loader(a.cache, load_from_sink, sink);
    for (unsigned i = 0; i < 8; i++) {
        crowd[i] = (struct crowd){ &a, i, rounds, 0 };
        pthread_create(&threads[i], NULL, write_in_crowd, &crowd[i]);
    }
    for (unsigned i = 0; i < 100; i++) {
        near_stats stats = stats_of(&a);

        most = stats.write_back_bytes > most ? stats.write_back_bytes : most;
        sleep_ms(1);
    }
    for (unsigned i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    flush(&a);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(crowd[i].failed, 0);
        for (unsigned k = 0; k < 8; k++) {
            char key[32];

            snprintf(key, sizeof(key), "t%u.%u", i, k);
            assert_string_equal(sink_value(sink, key), fetch_one(&a, key));
        }
    }
    assert_int_equal(sink->misordered, 0);
    assert_in_range(most, 1, (16 << 10) + 8 * 1024); /* one more each who is let through */
    assert_int_equal(stats_of(&a).write_back_pending, 0);
    assert_int_equal(stats_of(&a).write_back_bytes, 0);
    close_instance(&a);
}

static void
test_G7_order_under_a_crowd(void **state)
{
    struct world *w      = *state;
    unsigned      rounds = (unsigned)test_scale(200);

    NEEDS(w);
    run_crowd(w, &(struct sink)SINK(.delay_us = 200), "yes", "wait", rounds);
    run_crowd(w, &(struct sink)SINK(.refuse_per_1000 = 10), "no", "wait", rounds);
    run_crowd(w, &(struct sink)SINK(.refuse_per_1000 = 10, .delay_us = 200), "yes", "through", rounds / 2);
}

/* ---- refusals */

static void
test_poison_is_put_aside_and_others_go_on(void **state)
{
    struct world *w = *state;
    struct sink  *sink =
        &(struct sink)SINK(.poison = "bad", .all_or_nothing = true, .refusal = NEAR_ERR_UNAVAILABLE);
    struct instance a;
    char            key[16];

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "write_back.retries", "5", "write_back.batch",
              "4096");
    near_cache_set_loader(a.cache, load_from_sink, sink);
    update(&a, "bad", "v");
    for (unsigned i = 0; i < 20; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        update(&a, key, "v");
    }
    /* the store refuses whole batches: the others are to get through all the same, and something must be said of the one that does not */
    for (unsigned i = 0; i < 40 && stats_of(&a).write_back_dead == 0; i++) {
        snprintf(key, sizeof(key), "more%u", i);
        update(&a, key, "v");
        near_flush(a.client, 200);
    }
    assert_true(test_wait_for(nothing_pending, &a, 10000 * test_slack()));
    assert_int_equal(stats_of(&a).write_back_dead, 1);
    for (unsigned i = 0; i < 20; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        assert_string_equal(sink_value(sink, key), "v");
    }
    assert_string_equal(fetch_one(&a, "bad"), ""); /* the caches hold what the store has */
    sink->poison = NULL;
    update(&a, "bad", "good");
    flush(&a);
    assert_string_equal(sink_value(sink, "bad"), "good");
    close_instance(&a);
}

static void
test_flush_says_what_was_put_aside(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.poison = "bad", .refusal = NEAR_ERR_INVALID);
    struct instance a;

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "write_back.retries", "2");
    update(&a, "bad", "v");
    update(&a, "k", "v");
    assert_int_equal(near_flush(a.client, 10000), NEAR_ERR_UNAVAILABLE);
    assert_string_equal(sink_value(sink, "k"), "v");
    assert_int_equal(stats_of(&a).write_back_dead, 1);
    close_instance(&a);
}

static int
is_pending(void *ctx)
{
    return stats_of(ctx).write_back_pending > 0;
}

static void *
update_k(void *in)
{
    update(in, "k", "v");
    return NULL;
}

/* The store drops a change while its writer is still on his way into L2. */
static void
test_what_was_dropped_is_not_kept(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.refusal = NEAR_ERR_CONFLICT);
    struct instance a;
    pthread_t       writer;

    NEEDS(w);
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    update(&a, "warm", "v");
    flush(&a);
    sink->mode = SINK_REFUSE;
    test_server_pause(w->redis);
    assert_int_equal(pthread_create(&writer, NULL, update_k, &a), 0);
    assert_true(test_wait_for(is_pending, &a, 10000 * test_slack()));
    near_flush(a.client, 200);
    test_server_resume(w->redis);
    pthread_join(writer, NULL);
    flush(&a);
    assert_int_equal(sink->calls, 2);
    assert_string_equal(read_with(&a, "k", NEAR_ONLY_L1), "-");
    assert_string_equal(read_with(&a, "k", NEAR_SKIP_L1), "-");
    assert_string_equal(read_with(&a, "warm", NEAR_SKIP_L1), "v"); /* the control: L2 is there */
    close_instance(&a);
}

/* A change that takes the place of one that was refused is not to blame for that. */
static void
test_a_newer_change_has_all_its_tries(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.poison = "k", .refusal = NEAR_ERR_INVALID);
    struct instance a;
    uint64_t        before;

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "write_back.retries", "8");
    update(&a, "k", "v1");
    while (stats_of(&a).write_back_retries < 5)
        near_flush(a.client, 1);
    before = stats_of(&a).write_back_retries;
    update(&a, "k", "v2");
    while (stats_of(&a).write_back_dead == 0)
        near_flush(a.client, 1);
    assert_true(stats_of(&a).write_back_retries >= before + 7 || before >= 7);
    close_instance(&a);
}

static void
test_an_outage_puts_nothing_aside(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.mode = SINK_REFUSE);
    struct instance a;
    char            key[16];

    OPEN_BACK(w, &a, sink, "write_back.interval", "1ms", "write_back.retries", "2");
    for (unsigned i = 0; i < 300; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        update(&a, key, "v");
    }
    sleep_ms(300);
    assert_in_range(stats_of(&a).write_back_retries, 600, UINT32_MAX);
    assert_int_equal(stats_of(&a).write_back_dead, 0);
    sink->mode = SINK_TAKE;
    flush(&a);
    for (unsigned i = 0; i < 300; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        assert_string_equal(sink_value(sink, key), "v");
    }
    close_instance(&a);
}

/* One answer in two never comes, or comes when nobody waits for it any more. */
static void
test_unknown_outcomes(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.mode = SINK_HOLD);
    struct instance a;

    OPEN_BACK(w, &a, sink, "write_back.interval", "1ms", "store.timeout", "100ms", "close.timeout", "200ms");
    update(&a, "k", "v1");
    assert_true(test_wait_for(is_held, sink, 5000 * test_slack()));
    update(&a, "k", "v2"); /* waits until the first one's outcome is known, or given up */
    assert_string_equal(read_one(&a, "k"), "v2");
    assert_int_equal(sink->writes, 1);
    sleep_ms(150);
    sink->mode = SINK_TAKE;
    flush(&a);
    assert_string_equal(sink_value(sink, "k"), "v2");
    sink->misordered = 0;
    pthread_mutex_lock(&sink->lock);
    for (size_t i = 0; i < sink->n_held; i++)
        near_write_done(sink->held[i]); /* the store has done it long ago */
    sink->n_held = 0;
    pthread_mutex_unlock(&sink->lock);
    assert_string_equal(read_one(&a, "k"), "v2");
    /* the late answer is in time to spare the next try */
    sink->mode = SINK_HOLD;
    update(&a, "late", "v");
    assert_true(test_wait_for(is_held, sink, 5000 * test_slack()));
    sleep_ms(110);
    sink_release(sink);
    sink->mode = SINK_TAKE;
    flush(&a);
    assert_string_equal(sink_value(sink, "late"), "v");
    close_instance(&a);
}

static void
test_a_hanging_store_holds_up_its_own_keys_only(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.mode = SINK_HOLD);
    struct instance a;

    OPEN_BACK(w, &a, sink, "write_back.interval", "1ms", "store.timeout", "60s");
    update(&a, "hangs", "v");
    assert_true(test_wait_for(is_held, sink, 5000 * test_slack()));
    sink->mode = SINK_TAKE;
    for (unsigned i = 0; i < 100; i++) {
        char key[16];

        snprintf(key, sizeof(key), "k%u", i);
        update(&a, key, "v");
    }
    assert_int_equal(near_flush(a.client, 50), NEAR_ERR_TIMEOUT);
    for (int64_t until = test_now_ms() + 5000;
         strcmp(sink_value(sink, "k99"), "v") != 0 && test_now_ms() < until;)
        sleep_ms(1);
    assert_string_equal(sink_value(sink, "k99"), "v");
    assert_string_equal(sink_value(sink, "hangs"), "");
    assert_int_equal(sink_release(sink), 1);
    flush(&a);
    assert_string_equal(sink_value(sink, "hangs"), "v");
    close_instance(&a);
}

/* ---- room */

static void
test_full_fail(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.mode = SINK_REFUSE);
    struct instance a;
    char            key[16];
    unsigned        accepted = 0, refused = 0;

    OPEN_BACK(w, &a, sink, "write_back.interval", "1ms", "write_back.max_pending", "16KiB",
              "write_back.on_full", "fail");
    for (unsigned i = 0; i < 1000; i++) {
        near_status status;

        snprintf(key, sizeof(key), "k%u", i);
        status = near_update(a.cache, near_key(key), near_key("v"), NULL);
        assert_true(status == NEAR_OK || status == NEAR_ERR_BUSY);
        accepted += status == NEAR_OK;
        refused += status == NEAR_ERR_BUSY;
    }
    assert_in_range(accepted, 20, 200);
    assert_in_range(stats_of(&a).write_back_bytes, 1, 16 << 10);
    assert_int_equal(stats_of(&a).write_back_refused, refused);
    /* in the place of another, unless that one is with the store just now */
    for (unsigned i = 0; i < 5000 && near_update(a.cache, near_key("k0"), near_key("w"), NULL) != NEAR_OK;
         i++)
        sleep_ms(1);
    assert_string_equal(read_one(&a, "k0"), "w");
    assert_string_equal(read_with(&a, "k999", NEAR_ONLY_L1), "-");
    sink->mode = SINK_TAKE;
    flush(&a);
    assert_int_equal(sink->n, accepted);
    close_instance(&a);
}

static void
test_full_wait(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.delay_us = 1000);
    struct instance a;
    char            key[16];

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "write_back.max_pending", "16KiB",
              "write_back.batch", "4096", "store.timeout", "300ms");
    for (unsigned i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        update(&a, key, "v");
        assert_in_range(stats_of(&a).write_back_bytes, 0, 16 << 10);
    }
    flush(&a);
    sink->mode = SINK_REFUSE;
    for (unsigned i = 0;; i++) {
        int64_t     began = test_now_ms();
        near_status status;

        snprintf(key, sizeof(key), "w%u", i);
        status = near_update(a.cache, near_key(key), near_key("v"), NULL);
        if (status == NEAR_OK)
            continue;
        assert_int_equal(status, NEAR_ERR_BUSY);
        assert_in_range(test_now_ms() - began, 295, 300 + 700 * test_slack());
        break;
    }
    sink->mode = SINK_TAKE;
    close_instance(&a);
}

static void
test_full_through(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK();
    struct instance a;
    char            key[16], value[2001];
    unsigned        direct = 0;
    near_status     status;

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "write_back.max_pending", "16KiB",
              "write_back.batch", "4096", "write_back.on_full", "through", "store.timeout", "300ms",
              "close.timeout", "100ms");
    near_cache_set_loader(a.cache, load_from_sink, sink);
    memset(value, 'x', sizeof(value) - 1);
    value[sizeof(value) - 1] = '\0';
    sink->delay_us           = 20000; /* so that there is no room at once */
    for (unsigned i = 0; i < 20; i++) {
        snprintf(key, sizeof(key), "k%u", i);
        status = near_update(a.cache, near_key(key), near_key(value), NULL);
        assert_true(status == NEAR_OK || status == NEAR_ERR_TIMEOUT); /* on a busy machine */
        direct += status == NEAR_OK && sink_value(sink, key)[0] == 'x';
    }
    assert_in_range(direct, 1, 29);
    sink->delay_us = 0;
    flush(&a);
    sink->mode = SINK_HOLD; /* and now it hangs: nothing more is kept than room is for */
    for (unsigned i = 0; i < 10; i++) {
        snprintf(key, sizeof(key), "h%u", i);
        near_update(a.cache, near_key(key), near_key(value), NULL);
    }
    assert_in_range(stats_of(&a).write_back_bytes, 1, 3 * (16 << 10));
    sink->mode = SINK_TAKE;
    sink_release(sink);
    flush(&a);
    close_instance(&a);
}

/* A loader in the pool that changes something where there is no room: what makes room needs a thread of the pool, too. */
static void
load_and_update(near_load *loads[], size_t n, void *ctx)
{
    struct instance *a = ctx;

    for (size_t i = 0; i < n; i++)
        if (near_update(a->cache, near_key("other"), near_key("v"), NULL) == NEAR_OK)
            near_load_set(loads[i], near_key("v"));
        else
            near_load_fail(loads[i], NEAR_ERR_LOADER);
}

static void *
release_in_a_while(void *ctx)
{
    sleep_ms(100);
    sink_release(ctx);
    return NULL;
}

static void
test_a_loader_may_wait_for_room(void **state)
{
    static const char *const ways[] = { "wait", "through" };
    struct world            *w      = *state;
    char                     value[17000];
    struct instance          a;
    pthread_t                thread;

    memset(value, 'x', sizeof(value) - 1);
    value[sizeof(value) - 1] = '\0';
    for (size_t i = 0; i < 2; i++) {
        struct sink *sink = &(struct sink)SINK();

        OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "write_back.max_pending", "16KiB",
                  "write_back.on_full", ways[i], "loader.threads", "1", "loader.hard_timeout", "60s",
                  "store.timeout", "2s");
        near_cache_set_loader(a.cache, load_and_update, &a);
        sink->mode = SINK_HOLD;
        update(&a, "full", value);
        assert_true(
            test_wait_for(is_held, sink, 10000 * test_slack())); /* over half of the room: it goes at once */
        sink->mode = SINK_TAKE;
        pthread_create(&thread, NULL, release_in_a_while, sink);
        assert_string_equal(fetch_one(&a, "k"), "v");
        pthread_join(thread, NULL);
        flush(&a);
        close_instance(&a);
    }
}

/* ---- flush and close */

static void
test_close_says_how_many(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(.mode = SINK_REFUSE);
    struct instance a;
    near_error      error;

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "close.timeout", "200ms");
    for (unsigned i = 0; i < 7; i++) {
        char key[16];

        snprintf(key, sizeof(key), "k%u", i);
        update(&a, key, "v");
    }
    assert_int_equal(near_flush(a.client, 0), NEAR_ERR_TIMEOUT);
    assert_int_equal(near_client_close(a.client, &error), NEAR_ERR_BUSY);
    assert_non_null(strstr(error.text, "7 changes"));
    sink->mode = SINK_TAKE;
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    update(&a, "k", "v");
    close_instance(&a); /* drains */
    assert_string_equal(sink_value(sink, "k"), "v");
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER);
    update(&a, "k2", "v");
    near_cache_close(a.cache);
    assert_string_equal(sink_value(sink, "k2"), "v");
    assert_int_equal(near_client_close(a.client, &error), NEAR_OK);
}

/* A store that hangs has its own cache's changes left over, not those of the others. */
static void
test_close_has_time_for_every_cache(void **state)
{
    struct world   *w    = *state;
    struct sink    *sink = &(struct sink)SINK(), *hung = &(struct sink)SINK(.mode = SINK_HOLD);
    struct instance a;
    near_cache     *other;
    near_error      error;

    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "close.timeout", "300ms");
    assert_int_equal(near_cache_open(a.client, "other", NULL, &other, &error), NEAR_OK);
    near_cache_set_store(other, sink_store, hung);
    update(&a, "k", "v");
    assert_int_equal(near_update(other, near_key("k"), near_key("v"), NULL), NEAR_OK);
    assert_int_equal(near_client_close(a.client, &error), NEAR_ERR_BUSY);
    assert_non_null(strstr(error.text, "1 changes"));
    assert_string_equal(sink_value(sink, "k"), "v");
    assert_int_equal(sink_release(hung), 1);
}

/* A cache is closed while its store is down and opened again by the same client: its change is there, and goes to the store before a newer one. */
static void
test_a_cache_that_is_opened_again(void **state)
{
    struct world   *w           = *state;
    struct sink    *sink        = &(struct sink)SINK(.mode = SINK_REFUSE);
    char            directory[] = "/tmp/test_back_XXXXXX", command[64];
    struct instance a;
    near_error      error;

    assert_non_null(mkdtemp(directory));
    OPEN_BACK(w, &a, sink, "write_back.interval", NEVER, "close.timeout", "50ms", "write_back.journal",
              directory);
    update(&a, "k", "v1");
    near_cache_close(a.cache);
    assert_int_equal(near_cache_open(a.client, "things", NULL, &a.cache, &error), NEAR_OK);
    near_cache_set_store(a.cache, sink_store, sink);
    assert_string_equal(read_one(&a, "k"), "v1");
    sink->mode = SINK_TAKE;
    update(&a, "k", "v2");
    flush(&a);
    assert_string_equal(sink_value(sink, "k"), "v2");
    close_instance(&a);
    OPEN_BACK(w, &a, sink, "write_back.journal", directory);
    flush(&a);
    assert_string_equal(sink_value(sink, "k"), "v2"); /* nothing older came behind it */
    assert_int_equal(stats_of(&a).write_back_replayed, 0);
    assert_int_equal(sink->misordered, 0);
    close_instance(&a);
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    assert_int_equal(system(command), 0);
}

/* The store comes back when client, journal and pool are closed. */
static void
test_a_store_that_outlives_its_client(void **state)
{
    struct world   *w           = *state;
    struct sink    *sink        = &(struct sink)SINK(.delay_us = 700000);
    char            directory[] = "/tmp/test_back_XXXXXX", command[64];
    struct instance a;
    near_error      error;

    assert_non_null(mkdtemp(directory));
    OPEN_BACK(w, &a, sink, "write_back.interval", "0", "close.timeout", "50ms", "write_back.journal",
              directory, "write_back.fsync", "none");
    update(&a, "k", "v");
    while (sink->calls == 0)
        sleep_ms(1);
    assert_int_equal(near_client_close(a.client, &error), NEAR_ERR_BUSY);
    assert_non_null(strstr(error.text, "1 changes"));
    for (int64_t until = test_now_ms() + 5000;
         strcmp(sink_value(sink, "k"), "v") != 0 && test_now_ms() < until;)
        sleep_ms(1);
    sleep_ms(20);
    sink->delay_us = 0;
    OPEN_BACK(w, &a, sink, "write_back.journal", directory); /* nobody noted that it was done: once more */
    flush(&a);
    assert_int_equal(sink_writes(sink, "k"), 2);
    assert_int_equal(sink->misordered, 0);
    assert_int_equal(stats_of(&a).write_back_replayed, 1);
    close_instance(&a);
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    assert_int_equal(system(command), 0);
}

static void
test_refusals_of_arguments(void **state)
{
    struct world    *w       = *state;
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    struct sink     *sink    = &(struct sink)SINK();
    struct instance  a;

    OPEN(w, &a, "write.policy", "back", "l2.max_value", "1KiB");
    assert_int_equal(near_update(a.cache, near_key("k"), near_key("v"), NULL), NEAR_ERR_UNSUPPORTED);
    near_cache_set_store(a.cache, sink_store, sink);
    options.flags = NEAR_IF_ABSENT;
    assert_true(near_update(a.cache, near_key("k"), near_key("v"), &options) < 0);
    assert_int_equal(near_update(a.cache, near_key("k"), (near_bytes){ options.tags, 2048 }, NULL),
                     NEAR_ERR_INVALID);
    assert_int_equal(near_update(a.cache, (near_bytes){ NULL, 3 }, near_key("v"), NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_flush(NULL, 0), NEAR_ERR_INVALID);
    assert_int_equal(near_flush(a.client, 0), NEAR_OK);
    update(&a, "empty", "");
    flush(&a);
    pthread_mutex_lock(&sink->lock);
    assert_true(sink_row_locked(sink, "empty")->present);
    pthread_mutex_unlock(&sink->lock);
    close_instance(&a);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER(none, test_readers_see_what_the_store_has_not),
        OVER(memory, test_readers_see_what_the_store_has_not),
        OVER(redis, test_readers_see_what_the_store_has_not),
        OVER(none, test_a_value_survives_eviction),
        OVER(memory, test_a_foreign_write_does_not_hide_ours),
        OVER(redis, test_a_foreign_write_does_not_hide_ours),
        OVER(redis, test_echoes_of_our_own_are_no_conflict),
        OVER(none, test_what_is_settled_has_a_version),
        OVER(memory, test_what_is_settled_has_a_version),
        OVER(redis, test_what_is_settled_has_a_version),
        OVER(memcached, test_what_is_settled_has_a_version),
        OVER(memory, control_race38),
        OVER(redis, control_race38),
        OVER(memory, test_a_store_may_keep_the_other_ones_value),
        OVER(redis, test_a_store_may_keep_the_other_ones_value),
        OVER(memory, test_G7_nothing_old_stays_behind),
        OVER(redis, test_G7_nothing_old_stays_behind),
        OVER(memcached, test_G7_nothing_old_stays_behind),
        OVER(none, test_an_undisturbed_value_stays_cached),
        OVER(memory, test_an_undisturbed_value_stays_cached),
        OVER(redis, test_an_undisturbed_value_stays_cached),
        OVER(memcached, test_an_undisturbed_value_stays_cached),
        OVER(memory, test_a_refresh_under_way_does_not_bring_back_the_old_value),
        OVER(redis, test_a_refresh_under_way_does_not_bring_back_the_old_value),
        OVER(memcached, test_a_refresh_under_way_does_not_bring_back_the_old_value),
        OVER(memory, test_what_stays_has_a_new_stamp),
        OVER(redis, test_what_stays_has_a_new_stamp),
        OVER(memcached, test_what_stays_has_a_new_stamp),
        OVER(memory, test_changes_of_a_key_coalesce),
        OVER(memory, test_every_change_is_kept_where_that_is_asked_for),
        OVER(memory, test_batches_by_size_and_by_time),
        OVER(memory, test_what_is_stored_early_is_in_no_batch),
        OVER(none, test_G7_order_under_a_crowd),
        OVER(memory, test_G7_order_under_a_crowd),
        OVER(none, test_poison_is_put_aside_and_others_go_on),
        OVER(memory, test_flush_says_what_was_put_aside),
        OVER(redis, test_what_was_dropped_is_not_kept),
        OVER(none, test_a_newer_change_has_all_its_tries),
        OVER(none, test_an_outage_puts_nothing_aside),
        OVER(memory, test_unknown_outcomes),
        OVER(none, test_a_hanging_store_holds_up_its_own_keys_only),
        OVER(none, test_full_fail),
        OVER(none, test_full_wait),
        OVER(memory, test_full_through),
        OVER(none, test_a_loader_may_wait_for_room),
        OVER(memory, test_close_says_how_many),
        OVER(none, test_close_has_time_for_every_cache),
        OVER(memory, test_a_store_that_outlives_its_client),
        OVER(memory, test_a_cache_that_is_opened_again),
        OVER(memory, test_refusals_of_arguments),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
