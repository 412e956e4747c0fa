/*
 * Decoded values in L1: which object a hit shows, what it costs, and that each is destroyed exactly once, after its last holder let go,
 * whatever became of its entry, its L1 and the memory meanwhile.  An object is poisoned when it is destroyed, so that one that is shown
 * too long is found out; a control shows it too long on purpose.
 */
#define TEST_NAME "objects"
#include "unit/l1_help.h"

#include "harness/shortage.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- objects: of a key and a version, alive until they are destroyed */

#define ALIVE UINT64_C(0xA11CE0B1EC7)
#define DEAD  UINT64_C(0xDEAD)

struct thing {
    _Atomic uint64_t state;
    uint32_t         key, version;
    struct thing    *next; /* of the dead */
};

/* The dead are kept until the test's end, so that a second destruction, or a look at one, reads no freed memory. */
static struct {
    pthread_mutex_t lock;
    struct thing   *dead;
    _Atomic int64_t made, destroyed, twice;
} things = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void
thing_destroy(void *object, void *ctx)
{
    struct thing *thing = object;

    assert_ptr_equal(ctx, &things);
    if (atomic_exchange(&thing->state, DEAD) != ALIVE) {
        atomic_fetch_add(&things.twice, 1);
        return;
    }
    atomic_fetch_add(&things.destroyed, 1);
    pthread_mutex_lock(&things.lock);
    thing->next = things.dead;
    things.dead = thing;
    pthread_mutex_unlock(&things.lock);
}

static int
things_begin(void **state)
{
    (void)state;
    shortage_end();
    things.made      = 0;
    things.destroyed = 0;
    things.twice     = 0;
    return 0;
}

static int
things_end(void **state)
{
    struct thing *next;

    (void)state;
    shortage_end();
    for (; things.dead != NULL; things.dead = next) {
        next = things.dead->next;
        free(things.dead);
    }
    return 0;
}

static int64_t
alive(void)
{
    assert_int_equal(things.twice, 0);
    return things.made - things.destroyed;
}

/* Takes nothing of the bytes: they are only kept, if they are. */
static struct near__entry *
decoded(near_bytes key, uint32_t number, uint32_t version, size_t size, near_bytes keep)
{
    struct near__entry *entry = entry_of(key, hash_of(key), text("bytes"));
    struct thing       *thing = __real_malloc(sizeof(*thing));

    assert_non_null(thing);
    *thing = (struct thing){ .state = ALIVE, .key = number, .version = version };
    if (entry != NULL)
        entry->object = near__object_new(thing, size, thing_destroy, &things, keep);
    if (entry == NULL || entry->object == NULL) {
        near__entry_release(&entry);
        free(thing);
        return NULL;
    }
    atomic_fetch_add(&things.made, 1);
    return entry;
}

#define NO_BYTES ((near_bytes){ NULL, 0 })

static enum near__l1_admission
put_decoded(struct near__l1 *l1, const char *key, uint32_t version, size_t size)
{
    struct near__entry     *entry = decoded(text(key), 0, version, size, NO_BYTES);
    enum near__l1_admission verdict;

    assert_non_null(entry);
    verdict = near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0);
    near__entry_release(&entry);
    return verdict;
}

static const struct thing *
shown(const near_value *value)
{
    return near_value_object(value);
}

static bool
shows(const near_value *value, uint32_t version)
{
    return shown(value) != NULL && shown(value)->state == ALIVE && shown(value)->version == version;
}

static near_value *
hit(struct near__l1 *l1, const char *key)
{
    near_value *value = near__l1_hit((struct near__l1_front *)l1, hash_of(text(key)), text(key), 0);

    assert_true((uintptr_t)value > NEAR__VALUE_BITS);
    return value;
}

/* ---- what a hit shows */

static void
test_a_hit_shows_the_object_and_no_bytes(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 1);
    near_value      *value;

    (void)state;
    assert_int_equal(put_decoded(l1, "a", 1, 100), NEAR__L1_ADMITTED);
    put(l1, "b", "bytes");
    value = hit(l1, "a");
    assert_true((uintptr_t)value & NEAR__VALUE_SLOT); /* as cheap as bytes: no count was touched */
    assert_true(shows(value, 1));
    assert_int_equal(near_value_bytes(value).size, 0);
    assert_null(near_value_bytes(value).data);
    near_value_release(value);
    value = hit(l1, "b");
    assert_null(near_value_object(value));
    assert_true(value_is(value, "bytes"));
    near_value_release(value);
    assert_null(near_value_object(NULL));
    near__l1_free(&l1);
    assert_int_equal(alive(), 0);
}

static void
test_bytes_that_are_kept_are_shown_aligned(void **state)
{
    struct near__l1    *l1    = l1_open(1 << 20, 0, 1);
    struct near__entry *entry = decoded(text("a"), 0, 1, 100, text("the original"));
    near_value         *value;

    (void)state;
    near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0);
    assert_true(near__bytes_equal(near__entry_bytes(entry), text("the original")));
    near__entry_release(&entry);
    value = hit(l1, "a");
    assert_true(shows(value, 1) && value_is(value, "the original"));
    assert_int_equal((uintptr_t)near_value_bytes(value).data % 64, 0);
    near_value_release(value);
    near__l1_free(&l1);
    assert_int_equal(alive(), 0);
}

static void
test_numbers_labels_and_long_keys_go_with_it(void **state)
{
    struct near__l1     *l1 = l1_open(1 << 20, 0, 1);
    char                 key[300];
    struct near__labels *labels;
    struct near__meta    meta;

    (void)state;
    memset(key, 'k', sizeof(key));
    for (size_t length = 1; length < sizeof(key); length += 23) {
        near_bytes          name  = { key, length };
        struct near__entry *entry = decoded(name, 0, (uint32_t)length, 100, NO_BYTES);
        near_value         *value;

        labels           = calloc(1, sizeof(*labels) + 4);
        *labels          = (struct near__labels){ .n = 1, .stripes = { 7 }, .names_size = 4 };
        labels->names[0] = 3;
        memcpy(labels->names + 1, "tag", 3);
        entry->labels      = labels;
        entry->born        = 1000 * NEAR_MS;
        entry->expires     = 5000 * NEAR_MS;
        entry->fresh_until = 4000 * NEAR_MS;
        entry->stamp       = 42;
        entry->cost_us     = 7;
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 2000 * NEAR_MS),
                         NEAR__L1_ADMITTED);
        near__entry_release(&entry);
        value = near__l1_find(l1, hash_of(name), name, 2000 * NEAR_MS);
        assert_true(shows(value, (uint32_t)length));
        near__value_meta(value, 2000 * NEAR_MS, &meta);
        assert_int_equal(meta.expires, 5000 * NEAR_MS);
        assert_int_equal(meta.fresh_until, 4000 * NEAR_MS);
        assert_int_equal(meta.stamp, 42);
        assert_true(near__bytes_equal(near__value_names(value), (near_bytes){ "\003tag", 4 }));
        near_value_release(value);
        value = near__l1_find(l1, hash_of(name), name, 4500 * NEAR_MS);
        assert_true(((uintptr_t)value & NEAR__VALUE_STALE) != 0 && shows(value, (uint32_t)length));
        near_value_release(value);
    }
    near__l1_free(&l1);
    assert_int_equal(alive(), 0);
}

/* ---- the end of an object */

static void
test_it_ends_after_the_last_holder_and_not_before(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 1);
    near_value      *first, *second;

    (void)state;
    put_decoded(l1, "a", 1, 100);
    first  = hit(l1, "a");
    second = near_value_ref(first);
    put_decoded(l1, "a", 2, 100);
    near__l1_upkeep(l1, 0, 100);
    assert_true(shows(first, 1));
    near_value_release(first);
    near__l1_upkeep(l1, 0, 100);
    assert_true(shows(second, 1));
    assert_int_equal(alive(), 2);
    near_value_release(second);
    near__l1_upkeep(l1, 0, 100);
    assert_int_equal(alive(), 1);
    near__l1_invalidate(l1, hash_of(text("a")), text("a"));
    near__l1_upkeep(l1, 0, 100);
    assert_int_equal(alive(), 0);
    near__l1_free(&l1);
}

static void
test_clear_lets_all_go(void **state)
{
    struct near__l1      *l1 = l1_open(4 << 20, 0, 2);
    struct near__l1_stats stats;
    char                  key[16];

    (void)state;
    for (int i = 0; i < 3000; i++) {
        snprintf(key, sizeof(key), "%d", i);
        put_decoded(l1, key, 1, 100);
    }
    assert_int_equal(alive(), 3000);
    near__l1_flush(l1);
    for (int i = 0; i < 1000 && near__l1_upkeep(l1, 0, 100); i++)
        ;
    near__l1_upkeep(l1, 0, 100);
    assert_int_equal(alive(), 0);
    near__l1_stats(l1, &stats);
    assert_int_equal(stats.entries, 0);
    near__l1_free(&l1);
}

static void
test_values_held_over_the_end_keep_their_objects(void **state)
{
    enum { HELD = 200 };
    struct near__l1 *l1 = l1_open(4 << 20, 0, 1);
    near_value      *held[HELD];
    char             key[16];

    (void)state;
    for (int i = 0; i < 2 * HELD; i++) {
        snprintf(key, sizeof(key), "%d", i);
        put_decoded(l1, key, (uint32_t)i, 100);
        if (i < HELD)
            held[i] = hit(l1, key);
    }
    near__l1_free(&l1);
    assert_int_equal(alive(), HELD);
    for (int i = 0; i < HELD; i++) {
        assert_true(shows(held[i], (uint32_t)i));
        near_value_release(held[i]);
    }
    assert_int_equal(alive(), 0);
}

static void
test_the_bound_counts_what_the_codec_says(void **state)
{
    enum { SIZE = 10000, MANY = 1000 };
    struct near__l1      *l1 = l1_open(1 << 20, 0, 1);
    struct near__l1_stats stats;
    char                  key[16];

    (void)state;
    for (int i = 0; i < MANY; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_int_equal(put_decoded(l1, key, 1, SIZE), NEAR__L1_ADMITTED);
        near__l1_stats(l1, &stats);
        assert_true(stats.bytes <= 1 << 20);
    }
    assert_in_range(stats.entries, 70, (1 << 20) / SIZE);
    assert_int_equal(put_decoded(l1, "huge", 1, 1 << 20), NEAR__L1_TOO_LARGE);
    assert_int_equal(put_decoded(l1, "lie", 1, SIZE_MAX), NEAR__L1_TOO_LARGE);
    near__l1_flush(l1);
    for (int i = 0; i < 1000 && near__l1_upkeep(l1, 0, 100); i++)
        ;
    near__l1_upkeep(l1, 0, 100);
    near__l1_stats(l1, &stats);
    assert_true(stats.bytes < 300 << 10); /* what was charged is given back */
    near__l1_free(&l1);
    assert_int_equal(alive(), 0);
}

/* One entry offered again and again, and copies of what is held: all of them name one object. */
static void
test_several_entries_may_share_an_object(void **state)
{
    struct near__l1      *l1    = l1_open(1 << 20, 0, 1);
    struct near__entry   *entry = decoded(text("a"), 0, 1, 5000, NO_BYTES), *copy;
    near_value           *value;
    struct near__l1_stats before, after;

    (void)state;
    near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0);
    near__l1_stats(l1, &before);
    for (int i = 0; i < 500; i++)
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0), NEAR__L1_ADMITTED);
    near__entry_release(&entry);
    near__l1_stats(l1, &after);
    assert_true(after.bytes < before.bytes + 20000); /* charged once */
    value = hit(l1, "a");
    copy  = near__value_counted(value, text("a"), hash_of(text("a")), 0);
    near_value_release(value);
    near__l1_free(&l1);
    assert_int_equal(alive(), 1);
    value = near__value_of(copy, NEAR_FROM_L1, false);
    assert_true(shows(value, 1));
    near_value_release(value);
    assert_int_equal(alive(), 0);
}

/* While what the first pool had of it is held and waits there, the second one has it too: each counts for itself. */
static void
test_an_object_may_go_from_pool_to_pool_and_back(void **state)
{
    static const struct near__l1_domain domains[] = { { .max_bytes = 1 << 20, .policy = "lru" },
                                                      { .max_bytes = 1 << 20, .policy = "sieve" } };
    struct near__l1_config              config    = l1_config(0, 0, 1, "lru");
    struct near__entry                 *entry     = decoded(text("a"), 0, 1, 100, text("kept"));
    struct near__l1                    *l1;
    near_value                         *held[8];

    (void)state;
    config.pools_n = 2;
    config.pools   = domains;
    l1             = l1_open_with(&config);
    for (uint8_t i = 0; i < 8; i++) {
        entry->pool = 1 + i % 2;
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0), NEAR__L1_ADMITTED);
        held[i] = find_at(l1, "a", 0);
        assert_true(shows(held[i], 1) && value_is(held[i], "kept"));
        assert_ptr_equal(shown(held[i]), shown(held[0]));
    }
    near__entry_release(&entry);
    for (int i = 0; i < 4; i++)
        near_value_release(held[i]);
    near__l1_upkeep(l1, 0, 100);
    near__l1_free(&l1);
    assert_int_equal(alive(), 1);
    for (int i = 4; i < 8; i++) {
        assert_true(shows(held[i], 1) && value_is(held[i], "kept"));
        near_value_release(held[i]);
    }
    assert_int_equal(alive(), 0);
}

/* What is made of a hit in one pool goes to the other, over and over: one object around the first is enough. */
static void
test_moves_make_no_chain_of_objects(void **state)
{
    static const struct near__l1_domain domains[] = { { .max_bytes = 1 << 20, .policy = "lru" },
                                                      { .max_bytes = 1 << 20, .policy = "sieve" } };
    struct near__l1_config              config    = l1_config(0, 0, 1, "lru");
    struct near__entry                 *entry     = decoded(text("a"), 0, 1, 100, NO_BYTES);
    struct near__l1                    *l1;

    (void)state;
    config.pools_n = 2;
    config.pools   = domains;
    l1             = l1_open_with(&config);
    for (uint8_t i = 0; i < 20; i++) {
        const struct near__object *object;
        near_value                *value;

        entry->pool = 1 + i % 2;
        assert_int_equal(near__l1_insert(l1, entry, near__l1_fence(l1, entry->hash), 0), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
        value  = find_at(l1, "a", 0);
        object = near__value_object(value);
        assert_true(shows(value, 1));
        assert_true(object->ctx == &things || ((const struct near__object *)object->ctx)->ctx == &things);
        entry = near__value_counted(value, text("a"), hash_of(text("a")), 0);
        near_value_release(value);
    }
    near__entry_release(&entry);
    near__l1_free(&l1);
    assert_int_equal(alive(), 0);
}

static void
count_unknown(void *ctx, const struct near__l1_seen *seen)
{
    assert_true(seen->unknown);
    assert_int_equal(seen->value.size, 0);
    ++*(int *)ctx;
}

/* A twin of a hit whose bytes were not kept has none (near_expire()); one with a long key is a counted entry in L1.  A snapshot may
 * have its key, but must not take it for an empty value. */
static void
test_what_has_no_bytes_is_walked_as_unknown(void **state)
{
    struct near__l1       *l1     = l1_open(1 << 20, 0, 1);
    struct near__l1_cursor cursor = { .pool = 0 };
    int                    seen   = 0;
    char                   key[300];

    (void)state;
    memset(key, 'k', sizeof(key));
    for (size_t length = 5; length <= sizeof(key); length += 295) {
        near_bytes          name = { key, length };
        struct near__entry *full = decoded(name, 0, 1, 100, NO_BYTES), *bare;
        void               *room;

        bare         = near__entry_new(name, hash_of(name), 0, &room);
        bare->object = near__object_ref(full->object);
        near__entry_release(&full);
        assert_int_equal(near__l1_insert(l1, bare, near__l1_fence(l1, bare->hash), 0), NEAR__L1_ADMITTED);
        near__entry_release(&bare);
    }
    while (near__l1_walk(l1, &cursor, 64, 0, count_unknown, &seen))
        ;
    assert_int_equal(seen, 2);
    near__l1_free(&l1);
    assert_int_equal(alive(), 0);
}

/* Blocks move when the sizes of what is kept change; the objects stay where they are, held ones too. */
static void
test_compaction_moves_blocks_and_no_objects(void **state)
{
    enum { KEYS = 20000 };
    struct near__l1 *l1 = l1_open(2 << 20, 0, 1);
    near_value      *held[64];
    uint64_t         random = 1;
    char             key[64];

    (void)state;
    memset(held, 0, sizeof(held));
    for (int i = 0; i < KEYS; i++) {
        size_t place = i % 64;

        /* long keys after short ones: classes change */
        snprintf(key, sizeof(key), "%0*d", i < KEYS / 2 ? 8 : 60, (int)(test_random(&random) % 5000));
        if (put_decoded(l1, key, (uint32_t)i, i < KEYS / 2 ? 10 : 300) != NEAR__L1_ADMITTED)
            continue;
        if (i % 7 != 0)
            continue;
        if (held[place] != NULL) {
            assert_int_equal(shown(held[place])->state, ALIVE);
            near_value_release(held[place]);
        }
        held[place] = hit(l1, key);
    }
    for (int i = 0; i < 64; i++)
        if (held[i] != NULL)
            near_value_release(held[i]);
    near__l1_free(&l1);
    assert_int_equal(alive(), 0);
    assert_true(things.destroyed > KEYS / 2);
}

/* Many values are held and replaced, and there is no memory to remember the blocks with: their objects wait for the end. */
static void
test_without_memory_objects_wait_for_the_end(void **state)
{
    enum { HELD = 600 };
    struct near__l1    *l1 = l1_open(8 << 20, 0, 1);
    struct near__entry *fresh[HELD];
    near_value         *held[HELD];
    char                key[16];

    (void)state;
    for (int i = 0; i < HELD; i++) {
        snprintf(key, sizeof(key), "%d", i);
        put_decoded(l1, key, (uint32_t)i, 50);
        held[i]  = hit(l1, key);
        fresh[i] = decoded(text(key), 0, (uint32_t)(HELD + i), 50, NO_BYTES);
    }
    shortage_begin(0, true);
    for (int i = 0; i < HELD; i++)
        near__l1_insert(l1, fresh[i], near__l1_fence(l1, fresh[i]->hash), 0);
    shortage_end();
    for (int i = 0; i < HELD; i++) {
        near__entry_release(&fresh[i]);
        assert_true(shows(held[i], (uint32_t)i));
        near_value_release(held[i]);
    }
    near__l1_upkeep(l1, 0, 100);
    near__l1_upkeep(l1, 0, 100);
    assert_true(alive() >= HELD);
    near__l1_free(&l1);
    assert_int_equal(alive(), 0);
}

/* ---- everything at once */

enum { THREADS = 4, KEYS = 400, HOLDS = 16, BOXES = 32 };

struct storm {
    struct near__l1 *l1;
    _Atomic int64_t  broken, hits;
    bool             careless; /* the control: looks after it let go */
    size_t           rounds;
    struct {
        pthread_mutex_t lock;
        near_value     *value;
    } boxes[BOXES];
};

struct worker {
    struct storm       *storm;
    uint64_t            random;
    const struct thing *seen[HOLDS]; /* the control's */
};

static void
check(struct storm *storm, const near_value *value, uint32_t key)
{
    const struct thing *thing = shown(value);

    if (thing == NULL || thing->state != ALIVE || (key != UINT32_MAX && thing->key != key))
        atomic_fetch_add(&storm->broken, 1);
}

/* Somebody else lets go of it. */
static void
pass_on(struct worker *worker, near_value *value)
{
    struct storm *storm = worker->storm;
    size_t        box   = test_random(&worker->random) % BOXES;
    near_value   *other;

    pthread_mutex_lock(&storm->boxes[box].lock);
    other                   = storm->boxes[box].value;
    storm->boxes[box].value = value;
    pthread_mutex_unlock(&storm->boxes[box].lock);
    if (other == NULL)
        return;
    if (shown(other)->state != ALIVE)
        atomic_fetch_add(&storm->broken, 1);
    near_value_release(other);
}

static void
storm_get(struct worker *worker, near_value **holds, uint32_t key, near_bytes name)
{
    struct storm *storm = worker->storm;
    near_value   *value = near__l1_hit((struct near__l1_front *)storm->l1, hash_of(name), name, 0);
    size_t        place = test_random(&worker->random) % HOLDS;

    if (value == NULL)
        return;
    atomic_fetch_add_explicit(&storm->hits, 1, memory_order_relaxed);
    check(storm, value, key);
    if (storm->careless) {
        if (worker->seen[place] != NULL && worker->seen[place]->state != ALIVE)
            atomic_fetch_add(&storm->broken, 1);
        worker->seen[place] = shown(value);
        near_value_release(value);
        return;
    }
    if (place % 4 == 0)
        pass_on(worker, near_value_ref(value));
    if (holds[place] != NULL) {
        check(storm, holds[place], UINT32_MAX);
        near_value_release(holds[place]);
    }
    holds[place] = value;
}

static void
storm_put(struct worker *worker, uint32_t key, near_bytes name)
{
    struct storm       *storm = worker->storm;
    uint64_t            fence = near__l1_fence(storm->l1, hash_of(name));
    struct near__entry *entry = decoded(name, key, 0, 100 + test_random(&worker->random) % 3000, NO_BYTES);

    near__l1_insert(storm->l1, entry, fence, 0);
    near__entry_release(&entry);
}

static void *
storm_run(void *ctx)
{
    struct worker *worker       = ctx;
    struct storm  *storm        = worker->storm;
    near_value    *holds[HOLDS] = { NULL };

    for (size_t i = 0; i < storm->rounds; i++) {
        uint32_t   key  = (uint32_t)(test_random(&worker->random) % KEYS);
        near_bytes name = { &key, sizeof(key) };
        uint64_t   dice = test_random(&worker->random) % 1000;

        if (dice < 600)
            storm_get(worker, holds, key, name);
        else if (dice < 900)
            storm_put(worker, key, name);
        else if (dice < 980)
            near__l1_invalidate(storm->l1, hash_of(name), name);
        else if (dice < 998)
            near__l1_upkeep(storm->l1, 0, 10);
        else
            near__l1_flush(storm->l1);
    }
    for (size_t i = 0; i < HOLDS; i++)
        if (holds[i] != NULL)
            pass_on(worker, holds[i]);
    return NULL;
}

static int64_t
storm_of(bool careless)
{
    struct storm  storm = { .l1 = l1_open(300 << 10, 0, 2), .careless = careless };
    struct worker workers[THREADS];
    pthread_t     threads[THREADS];

    storm.rounds = test_scale(40000);
    for (size_t i = 0; i < BOXES; i++)
        pthread_mutex_init(&storm.boxes[i].lock, NULL);
    for (size_t i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){ .storm = &storm, .random = i + 1 };
        assert_int_equal(pthread_create(&threads[i], NULL, storm_run, &workers[i]), 0);
    }
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    near__l1_free(&storm.l1); /* what lies in the boxes outlives it */
    for (size_t i = 0; i < BOXES; i++) {
        if (storm.boxes[i].value != NULL && shown(storm.boxes[i].value)->state != ALIVE)
            atomic_fetch_add(&storm.broken, 1);
        near_value_release(storm.boxes[i].value);
        pthread_mutex_destroy(&storm.boxes[i].lock);
    }
    assert_int_equal(alive(), 0);
    assert_true(storm.hits > 0);
    print_message("# %lld objects, %lld hits%s: %lld broken\n", (long long)things.made, (long long)storm.hits,
                  careless ? ", looked at too late" : "", (long long)storm.broken);
    return storm.broken;
}

static void
test_every_object_ends_once_under_races(void **state)
{
    (void)state;
    assert_int_equal(storm_of(false), 0);
}

static void
test_control_an_object_looked_at_too_late_is_noticed(void **state)
{
    (void)state;
    assert_true(storm_of(true) > 0);
}

#define THINGS_TEST(test) cmocka_unit_test_setup_teardown(test, things_begin, things_end)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        THINGS_TEST(test_a_hit_shows_the_object_and_no_bytes),
        THINGS_TEST(test_bytes_that_are_kept_are_shown_aligned),
        THINGS_TEST(test_numbers_labels_and_long_keys_go_with_it),
        THINGS_TEST(test_it_ends_after_the_last_holder_and_not_before),
        THINGS_TEST(test_clear_lets_all_go),
        THINGS_TEST(test_values_held_over_the_end_keep_their_objects),
        THINGS_TEST(test_the_bound_counts_what_the_codec_says),
        THINGS_TEST(test_several_entries_may_share_an_object),
        THINGS_TEST(test_an_object_may_go_from_pool_to_pool_and_back),
        THINGS_TEST(test_moves_make_no_chain_of_objects),
        THINGS_TEST(test_what_has_no_bytes_is_walked_as_unknown),
        THINGS_TEST(test_compaction_moves_blocks_and_no_objects),
        THINGS_TEST(test_without_memory_objects_wait_for_the_end),
        THINGS_TEST(test_every_object_ends_once_under_races),
        THINGS_TEST(test_control_an_object_looked_at_too_late_is_noticed),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
