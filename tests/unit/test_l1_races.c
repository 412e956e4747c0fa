/*
 * l1/'s fences and write brackets.  Three parts: each race by name, played step by step; every interleaving
 * of a few writers and readers over a pretended L2; and threads that really collide, for the thread
 * sanitizer.  The controls run the same play with a cure left out and must see it fail.
 */
#define TEST_NAME "l1 races"
#include "unit/l1_help.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- races by name (numbers of doc/rules.md) */

static const char KEY[] = "key";

static uint64_t
fence_of(struct near__l1 *l1, const char *key)
{
    return near__l1_fence(l1, hash_of(text(key)));
}

static void
invalidate(struct near__l1 *l1, const char *key)
{
    near__l1_invalidate(l1, hash_of(text(key)), text(key));
}

/* Entries of these tests live until then, so that they can leave without an invalidation. */
#define LATER (3600 * 1000 * NEAR_MS)

/* What an eviction does: all leave, no fence moves. */
static void
expire_all(struct near__l1 *l1)
{
    for (int i = 0; i < 1000 && stats_of(l1).entries > 0; i++)
        near__l1_upkeep(l1, LATER, 10);
    assert_int_equal(stats_of(l1).entries, 0);
}

/* A fill that captured `fence` before it asked. */
static enum near__l1_admission
fill(struct near__l1 *l1, const char *key, const char *value, uint64_t fence)
{
    struct near__entry     *entry = entry_of(text(key), hash_of(text(key)), text(value));
    enum near__l1_admission verdict;

    entry->expires = LATER;
    verdict        = near__l1_insert(l1, entry, fence, 0);
    near__entry_release(&entry);
    return verdict;
}

static void
test_race1_slow_fill_is_refused(void **state)
{
    struct near__l1 *l1    = l1_open(1 << 20, 0, 0);
    uint64_t         fence = fence_of(l1, KEY);

    (void)state;
    invalidate(l1, KEY); /* the newer value's message overtakes the older value's reply */
    assert_int_equal(fill(l1, KEY, "old", fence), NEAR__L1_FENCED);
    assert_true(finds(l1, KEY, NULL));
    assert_int_equal(stats_of(l1).fills_refused, 1);
    assert_int_equal(fill(l1, KEY, "new", fence_of(l1, KEY)), NEAR__L1_ADMITTED);
    assert_true(finds(l1, KEY, "new"));
    near__l1_free(&l1);
}

static void
test_race1_control_fence_captured_late_admits_the_old_value(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);

    (void)state;
    invalidate(l1, KEY);
    assert_int_equal(fill(l1, KEY, "old", fence_of(l1, KEY)), NEAR__L1_ADMITTED);
    assert_true(finds(l1, KEY, "old"));
    near__l1_free(&l1);
}

static void
test_race2_fill_cannot_use_another_fills_place(void **state)
{
    struct near__l1 *l1    = l1_open(1 << 20, 0, 0);
    uint64_t         first = fence_of(l1, KEY), second;

    (void)state;
    invalidate(l1, KEY);
    second = fence_of(l1, KEY); /* a second fill is under way when the first comes home */
    assert_int_equal(fill(l1, KEY, "old", first), NEAR__L1_FENCED);
    assert_int_equal(fill(l1, KEY, "new", second), NEAR__L1_ADMITTED);
    assert_int_equal(fill(l1, KEY, "old", first), NEAR__L1_FENCED);
    assert_true(finds(l1, KEY, "new"));
    near__l1_free(&l1);
}

static void
test_race3_fence_survives_eviction(void **state)
{
    struct near__l1 *l1    = l1_open(SIZE_MAX, 1, 0);
    uint64_t         fence = fence_of(l1, KEY);

    (void)state;
    invalidate(l1, KEY);
    assert_int_equal(fill(l1, KEY, "new", fence_of(l1, KEY)), NEAR__L1_ADMITTED);
    assert_int_equal(put(l1, "other", "x"), NEAR__L1_ADMITTED); /* evicts the newer one */
    assert_true(finds(l1, KEY, NULL));
    assert_int_equal(fill(l1, KEY, "old", fence), NEAR__L1_FENCED);
    near__l1_free(&l1);
}

static void
test_race3_fence_survives_expiry_and_flush(void **state)
{
    struct near__l1 *l1    = l1_open(1 << 20, 0, 0);
    uint64_t         fence = fence_of(l1, KEY), later;

    (void)state;
    invalidate(l1, KEY);
    later = fence_of(l1, KEY);
    assert_int_equal(fill(l1, KEY, "new", later), NEAR__L1_ADMITTED);
    expire_all(l1);
    assert_true(finds(l1, KEY, NULL));
    assert_int_equal(fill(l1, KEY, "old", fence), NEAR__L1_FENCED);
    near__l1_flush(l1);
    assert_int_equal(fill(l1, KEY, "old", fence), NEAR__L1_FENCED);
    assert_int_equal(fill(l1, KEY, "from before the flush", later), NEAR__L1_FENCED);
    near__l1_free(&l1);
}

static void
test_race5_absent_key_moves_fence(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 0);
    uint64_t         before;

    (void)state;
    before = fence_of(l1, KEY);
    assert_true(finds(l1, KEY, NULL));
    invalidate(l1, KEY);
    assert_true(fence_of(l1, KEY) != before);
    near__l1_free(&l1);
}

static void
test_race15_flush_moves_every_fence(void **state)
{
    struct near__l1 *l1 = l1_open(1 << 20, 0, 4);
    uint64_t         fences[1000];
    char             key[16];

    (void)state;
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "%d", i);
        fences[i] = fence_of(l1, key);
    }
    near__l1_flush(l1);
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_int_equal(fill(l1, key, "from before the gap", fences[i]), NEAR__L1_FENCED);
    }
    near__l1_free(&l1);
}

/* An invalidation of one key should not cost the others their fills. */
/* ---- two reads of L2 at once */

static enum near__l1_admission
fill_version(struct near__l1 *l1, uint64_t stamp, int64_t born, uint64_t fence)
{
    struct near__entry *entry = entry_of(text(KEY), hash_of(text(KEY)), text(stamp == 480 ? "480" : "481"));
    enum near__l1_admission verdict;

    entry->expires = LATER;
    entry->stamp   = stamp;
    entry->born    = born;
    verdict        = near__l1_insert(l1, entry, fence, born);
    near__entry_release(&entry);
    return verdict;
}

static void
test_G1_of_two_reads_at_once_the_older_does_not_replace_the_newer(void **state)
{
    struct near__l1 *l1   = l1_open(1 << 20, 0, 0);
    uint64_t         slow = fence_of(l1, KEY), quick = slow, third = slow;

    (void)state;
    assert_int_equal(fill_version(l1, 481, NEAR_MS, quick), NEAR__L1_ADMITTED); /* and handed out */
    assert_int_equal(fill_version(l1, 480, NEAR_MS, slow), NEAR__L1_FENCED);
    assert_true(finds(l1, KEY, NULL)); /* which is the newer one nobody can tell */
    assert_int_equal(fill_version(l1, 480, NEAR_MS, third), NEAR__L1_FENCED);
    assert_int_equal(fill_version(l1, 481, NEAR_MS, fence_of(l1, KEY)), NEAR__L1_ADMITTED);
    assert_true(finds(l1, KEY, "481"));
    near__l1_free(&l1);
}

/* A read may take a minute, and an entry may seem older than it is. */
static void
test_G1_nor_does_a_read_that_took_nearly_a_minute(void **state)
{
    const int64_t lives[] = { 3600 * 1000, (1 << 23) + 1, INT64_C(19) * 24 * 3600 * 1000 + 1, 0 };
    const int64_t born    = INT64_C(1000007) * NEAR_MS;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(lives); i++) {
        struct near__l1    *l1    = l1_open(1 << 20, 0, 0);
        struct near__entry *entry = entry_of(text(KEY), hash_of(text(KEY)), text("481"));
        uint64_t            slow  = fence_of(l1, KEY);

        entry->expires = lives[i] != 0 ? born + lives[i] * NEAR_MS : NEAR_NEVER;
        entry->stamp   = 481;
        entry->born    = born;
        assert_int_equal(near__l1_insert(l1, entry, slow, born), NEAR__L1_ADMITTED);
        near__entry_release(&entry);
        assert_int_equal(fill_version(l1, 480, born + 59999 * NEAR_MS, slow), NEAR__L1_FENCED);
        near__l1_free(&l1);
    }
}

#ifndef NEAR_TEST_POOLS
static void
test_G1_reads_of_one_version_and_refreshes_replace(void **state)
{
    struct near__l1 *l1     = l1_open(1 << 20, 0, 0);
    int64_t          minute = 60 * 1000 * NEAR_MS;
    uint64_t         one = fence_of(l1, KEY), other = one;

    (void)state;
    assert_int_equal(fill_version(l1, 480, NEAR_MS, one), NEAR__L1_ADMITTED);
    assert_int_equal(fill_version(l1, 480, NEAR_MS, other), NEAR__L1_ADMITTED);
    assert_int_equal(fill_version(l1, 481, 2 * NEAR_MS, fence_of(l1, KEY)), NEAR__L1_ADMITTED);
    assert_int_equal(fill_version(l1, 480, 2 * minute, one),
                     NEAR__L1_ADMITTED); /* what is there is from long ago */
    near__l1_free(&l1);
}
#endif

static void
test_G1_control_a_fence_that_knows_no_fills_goes_backwards(void **state)
{
    struct near__l1 *l1   = l1_open(1 << 20, 0, 0);
    uint64_t         slow = fence_of(l1, KEY);

    (void)state;
    assert_int_equal(fill_version(l1, 481, NEAR_MS, slow), NEAR__L1_ADMITTED);
    assert_int_equal(fill_version(l1, 480, NEAR_MS, fence_of(l1, KEY)), NEAR__L1_ADMITTED);
    assert_true(finds(l1, KEY, "480"));
    near__l1_free(&l1);
}

static void
test_other_keys_fences_stay(void **state)
{
    struct near__l1 *l1 = l1_open(64 << 20, 0, 0);
    char             key[16];
    int              moved = 0;
    uint64_t         before;

    (void)state;
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "%d", i);
        before = fence_of(l1, key);
        invalidate(l1, "somebody else");
        moved += fence_of(l1, key) != before;
    }
    assert_in_range(moved, 0, 3); /* one in 65536 is expected to share the stripe */
    near__l1_free(&l1);
}

/* ---- writes by name */

static struct near__l1_write
begin(struct near__l1 *l1, const char *key)
{
    return near__l1_write_begin(l1, hash_of(text(key)), text(key));
}

/* `value` NULL: nothing to admit. */
static void
end(struct near__l1 *l1, struct near__l1_write write, const char *key, const char *value)
{
    uint64_t            hash  = hash_of(text(key));
    struct near__entry *entry = value == NULL ? NULL : entry_of(text(key), hash, text(value));

    near__l1_write_end(l1, write, hash, text(key), entry, 0);
    near__entry_release(&entry);
}

static void
test_G1_own_write_is_read_back(void **state)
{
    struct near__l1      *l1 = l1_open(1 << 20, 0, 0);
    struct near__l1_write write;

    (void)state;
    put(l1, KEY, "old");
    write = begin(l1, KEY);
    assert_true(finds(l1, KEY, NULL)); /* from the first moment on */
    end(l1, write, KEY, "new");
    assert_true(finds(l1, KEY, "new"));
    write = begin(l1, KEY);
    end(l1, write, KEY, NULL);
    assert_true(finds(l1, KEY, NULL));
    near__l1_free(&l1);
}

static void
test_G1_fill_from_within_a_write_is_refused(void **state)
{
    struct near__l1      *l1 = l1_open(1 << 20, 0, 0);
    struct near__l1_write write;
    uint64_t              before, within;

    (void)state;
    before = fence_of(l1, KEY);
    write  = begin(l1, KEY);
    within = fence_of(l1, KEY);
    assert_int_equal(fill(l1, KEY, "old", before), NEAR__L1_FENCED);
    assert_int_equal(fill(l1, KEY, "old", within), NEAR__L1_FENCED); /* while the write is under way */
    end(l1, write, KEY, "new");
    assert_int_equal(fill(l1, KEY, "old", within), NEAR__L1_FENCED); /* and after it */
    assert_true(finds(l1, KEY, "new"));
    write = begin(l1, KEY);
    end(l1, write, KEY, NULL); /* failed: outcome unknown */
    assert_int_equal(fill(l1, KEY, "old", within), NEAR__L1_FENCED);
    assert_int_equal(fill(l1, KEY, "what L2 says", fence_of(l1, KEY)), NEAR__L1_ADMITTED);
    near__l1_free(&l1);
}

static void
test_G1_overlapping_writers_admit_nothing(void **state)
{
    struct near__l1      *l1 = l1_open(1 << 20, 0, 0);
    struct near__l1_write a, b, c;

    (void)state;
    a = begin(l1, KEY); /* A outlives B */
    b = begin(l1, KEY);
    end(l1, b, KEY, "B");
    assert_true(finds(l1, KEY, NULL));
    end(l1, a, KEY, "A");
    assert_true(finds(l1, KEY, NULL));

    a = begin(l1, KEY); /* A ends first; C meets only B */
    b = begin(l1, KEY);
    end(l1, a, KEY, "A");
    c = begin(l1, KEY);
    end(l1, b, KEY, "B");
    end(l1, c, KEY, "C");
    assert_true(finds(l1, KEY, NULL));
    assert_int_equal(stats_of(l1).fills, 0);
    assert_int_equal(stats_of(l1).fills_refused, 5);

    a = begin(l1, KEY); /* and the next one that is alone is admitted */
    end(l1, a, KEY, "A");
    assert_true(finds(l1, KEY, "A"));
    near__l1_free(&l1);
}

static void
test_G1_foreign_invalidation_within_a_write_admits_nothing(void **state)
{
    struct near__l1      *l1 = l1_open(1 << 20, 0, 0);
    struct near__l1_write write;

    (void)state;
    write = begin(l1, KEY);
    invalidate(l1, KEY);
    end(l1, write, KEY, "mine, perhaps the older one");
    assert_true(finds(l1, KEY, NULL));
    write = begin(l1, KEY);
    near__l1_flush(l1);
    end(l1, write, KEY, "mine, perhaps the older one");
    assert_true(finds(l1, KEY, NULL));
    near__l1_free(&l1);
}

/* ---- every interleaving
 *
 * One key, one L2 that executes writes one after the other.  A value is its place in that order: 0 at the
 * start, then 1, 2, ...
 * Actors take their steps in every possible order; after each step we look into L1 as a reader would.
 */

struct world {
    struct near__l1 *l1;
    uint64_t         hash;
    uint64_t         l2;    /* what L2 holds now */
    uint64_t         floor; /* newest value that is acknowledged, or whose invalidation was applied */
    bool             local; /* no foreign writers: L1 must be empty or equal to L2 at every moment */
    size_t           schedules, broken, filled; /* filled: L1 held something at the end */
};

struct actor {
    struct near__l1_write write;
    uint64_t              fence, value;
};

typedef void step(struct world *world, struct actor *actor);

static void
raise_floor(struct world *world, uint64_t value)
{
    if (world->floor < value)
        world->floor = value;
}

static struct near__entry *
entry_holding(const struct world *world, uint64_t value)
{
    struct near__entry *entry = entry_of(text(KEY), world->hash, (near_bytes){ &value, sizeof(value) });

    if (entry != NULL)
        entry->expires = LATER;
    return entry;
}

static void
write_begin(struct world *world, struct actor *actor)
{
    actor->write = near__l1_write_begin(world->l1, world->hash, text(KEY));
}

static void
write_l2(struct world *world, struct actor *actor)
{
    actor->value = ++world->l2;
}

static void
write_end(struct world *world, struct actor *actor)
{
    struct near__entry *entry = entry_holding(world, actor->value);

    near__l1_write_end(world->l1, actor->write, world->hash, text(KEY), entry, 0);
    near__entry_release(&entry);
    raise_floor(world, actor->value);
}

/* The outcome is not known, so it is not acknowledged; here L2 has executed it. */
static void
write_end_failed(struct world *world, struct actor *actor)
{
    near__l1_write_end(world->l1, actor->write, world->hash, text(KEY), NULL, 0);
    (void)actor;
}

static void
read_capture(struct world *world, struct actor *actor)
{
    actor->fence = near__l1_fence(world->l1, world->hash);
}

static void
read_l2(struct world *world, struct actor *actor)
{
    actor->value = world->l2;
}

static void
read_insert(struct world *world, struct actor *actor)
{
    struct near__entry *entry = entry_holding(world, actor->value);

    near__l1_insert(world->l1, entry, actor->fence, 0);
    near__entry_release(&entry);
}

static void
foreign_deliver(struct world *world, struct actor *actor)
{
    near__l1_invalidate(world->l1, world->hash, text(KEY));
    raise_floor(world, actor->value);
}

static void
foreign_flush(struct world *world, struct actor *actor)
{
    near__l1_flush(world->l1);
    raise_floor(world, actor->value);
}

static void
evict(struct world *world, struct actor *actor)
{
    (void)actor;
    expire_all(world->l1);
}

/* The wrong ways, for the controls. */
static void
wrong_read_insert(struct world *world, struct actor *actor)
{
    read_capture(world, actor); /* the fence of now, not of then */
    read_insert(world, actor);
}

static void
wrong_write_begin(struct world *world, struct actor *actor)
{
    (void)actor;
    near__l1_invalidate(world->l1, world->hash, text(KEY));
}

static void
wrong_write_end(struct world *world, struct actor *actor)
{
    near__l1_invalidate(world->l1, world->hash, text(KEY));
    wrong_read_insert(world, actor); /* "I wrote it, so it must be the newest" */
    raise_floor(world, actor->value);
}

static void
wrong_write_end_blind(struct world *world, struct actor *actor)
{
    actor->write.overlapped = false; /* the fence alone will do? */
    write_end(world, actor);
}

static void
wrong_deliver(struct world *world, struct actor *actor)
{
    (void)actor;
    near__l1_invalidate(world->l1, world->hash, text(KEY)); /* the message goes first, the write follows */
}

static void
wrong_foreign_write(struct world *world, struct actor *actor)
{
    write_l2(world, actor);
    raise_floor(world, actor->value);
}

/* What a reader sees in L1; UINT64_MAX: nothing. */
static uint64_t
look(struct world *world)
{
    near_value *held  = near__l1_hit((struct near__l1_front *)world->l1, world->hash, text(KEY), 0);
    uint64_t    value = UINT64_MAX;

    if (held != NULL)
        memcpy(&value, near__value_data(held).data, sizeof(value));
    let_go_of(held);
    return value;
}

enum { ACTORS = 4, STEPS = 3 };
typedef step *cast_of[ACTORS][STEPS]; /* NULL: no such step */

/* Play one schedule: who takes each step. */
static void
play(struct world *world, const cast_of cast, const uint8_t *order, size_t length)
{
    struct actor actors[ACTORS] = { 0 };
    size_t       next[ACTORS]   = { 0 };
    bool         broken         = false;
    uint64_t     seen;

    world->l2 = world->floor = 0;
    near__l1_invalidate(world->l1, world->hash, text(KEY));
    read_capture(world, &actors[0]);
    read_insert(world, &actors[0]); /* L1 starts with what L2 has */
    for (size_t i = 0; i < length; i++) {
        size_t who = order[i];
        cast[who][next[who]++](world, &actors[who]);
        seen = look(world);
        broken |= seen != UINT64_MAX && seen < world->floor;
        broken |= seen != UINT64_MAX && world->local && seen != world->l2;
    }
    seen = look(world);
    broken |= seen != UINT64_MAX && seen != world->l2;
    world->schedules++;
    world->broken += broken;
    world->filled += seen != UINT64_MAX;
}

static void
play_all(struct world *world, const cast_of cast, uint8_t *order, size_t length, size_t *taken)
{
    bool complete = true;

    for (size_t who = 0; who < ACTORS; who++) {
        if (taken[who] == STEPS || cast[who][taken[who]] == NULL)
            continue;
        complete = false;
        taken[who]++;
        order[length] = (uint8_t)who;
        play_all(world, cast, order, length + 1, taken);
        taken[who]--;
    }
    if (complete)
        play(world, cast, order, length);
}

static struct world
every_interleaving(const cast_of cast, bool local)
{
    struct world world         = { 0 };
    size_t       taken[ACTORS] = { 0 };
    uint8_t      order[ACTORS * STEPS];

    world.l1    = l1_open(1 << 20, 0, 1);
    world.hash  = hash_of(text(KEY));
    world.local = local;
    play_all(&world, cast, order, 0, taken);
    near__l1_free(&world.l1);
    return world;
}

#define WRITER                                                                                               \
    {                                                                                                        \
        write_begin, write_l2, write_end                                                                     \
    }
#define FAILING                                                                                              \
    {                                                                                                        \
        write_begin, write_l2, write_end_failed                                                              \
    }
#define READER                                                                                               \
    {                                                                                                        \
        read_capture, read_l2, read_insert                                                                   \
    }
#define FOREIGN                                                                                              \
    {                                                                                                        \
        write_l2, foreign_deliver, NULL                                                                      \
    }
#define FLUSHED                                                                                              \
    {                                                                                                        \
        write_l2, foreign_flush, NULL                                                                        \
    }
#define EVICTOR                                                                                              \
    {                                                                                                        \
        evict, NULL, NULL                                                                                    \
    }

static void
test_G1_every_interleaving_of_local_and_foreign_writers(void **state)
{
    static const cast_of casts[] = {
        { WRITER, WRITER, READER, FOREIGN },  { WRITER, FAILING, READER, FOREIGN },
        { WRITER, WRITER, READER, FLUSHED },  { WRITER, READER, READER, FOREIGN },
        { READER, READER, FOREIGN, FOREIGN }, { WRITER, READER, FOREIGN, EVICTOR },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(casts); i++) {
        struct world world = every_interleaving(casts[i], false);

        print_message("# cast %zu: %zu schedules, L1 ends filled in %zu\n", i, world.schedules, world.filled);
        assert_int_equal(world.broken, 0);
        assert_in_range(world.filled, 1, world.schedules - 1); /* it does cache, and it does refuse */
    }
}

/* Without foreign writers the claim is stronger: L1 is empty or equals L2 at every moment, so reads never go back
 * in time, not even to and fro between an unacknowledged write and what was before. */
static void
test_G1_every_interleaving_of_local_writers_is_monotonic(void **state)
{
    static const cast_of casts[] = {
        { WRITER, WRITER, READER, EVICTOR },
        { WRITER, READER, READER, EVICTOR },
        { WRITER, WRITER, FAILING, EVICTOR },
        { WRITER, WRITER, READER, READER },
    };
    size_t count = NEAR_COUNT_OF(casts);

    (void)state;
    if (test_scale(100) < 100)
        count--; /* the last has 369600 schedules */
    for (size_t i = 0; i < count; i++) {
        struct world world = every_interleaving(casts[i], true);

        print_message("# cast %zu: %zu schedules, L1 ends filled in %zu\n", i, world.schedules, world.filled);
        assert_int_equal(world.broken, 0);
        assert_in_range(world.filled, 1, world.schedules - 1);
    }
}

/* Each of these leaves one cure out: the interleavings must find it. */
static void
test_every_interleaving_control(void **state)
{
    static const struct {
        const char *what;
        bool        local;
        cast_of     cast;
    } rows[] = {
        { "fence captured at the insert",
          false,
          { { read_capture, read_l2, wrong_read_insert }, FOREIGN, { NULL }, { NULL } } },
        { "fence captured at the insert, local writer",
          false,
          { { read_capture, read_l2, wrong_read_insert }, WRITER, { NULL }, { NULL } } },
        { "fence captured after the read",
          false,
          { { read_l2, read_capture, read_insert }, FOREIGN, { NULL }, { NULL } } },
        { "writers that always admit",
          false,
          { { wrong_write_begin, write_l2, wrong_write_end },
            { wrong_write_begin, write_l2, wrong_write_end },
            { NULL },
            { NULL } } },
        { "a writer that always admits, foreign writer",
          false,
          { { wrong_write_begin, write_l2, wrong_write_end }, FOREIGN, { NULL }, { NULL } } },
        { "overlap not looked at",
          true,
          { { write_begin, write_l2, wrong_write_end_blind },
            { write_begin, write_l2, wrong_write_end_blind },
            { NULL },
            { NULL } } },
        { "fills admitted during a write",
          true,
          { { wrong_write_begin, write_l2, foreign_deliver }, READER, READER, { NULL } } },
        { "race 7: told before written",
          false,
          { READER, { wrong_deliver, wrong_foreign_write, NULL }, { NULL }, { NULL } } },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        struct world world = every_interleaving(rows[i].cast, rows[i].local);

        print_message("# control, %s: %zu of %zu schedules break\n", rows[i].what, world.broken,
                      world.schedules);
        assert_in_range(world.broken, 1, world.schedules);
    }
}

/* ---- threads
 *
 * KEYS registers are L2; a value is a key number and the version L2 gave the write.  A reader that knows of
 * an acknowledged version must not find an older one (G1); what it finds must be of its key (G0).  Foreign
 * writes count as acknowledged once their invalidation was applied.
 */

enum { KEYS = 200, THREADS = 6 };

struct sim_register {
    pthread_mutex_t  lock; /* L2 executes one write of a key at a time */
    uint64_t         version;
    _Atomic uint64_t acked;
};

struct storm {
    struct near__l1    *l1;
    struct sim_register l2[KEYS];
    size_t              rounds;
    bool                wrong; /* the control: fills with the fence of now */
    _Atomic uint64_t    stale, foreign_key, hits;
};

struct worker {
    pthread_t     thread;
    struct storm *storm;
    uint64_t      random;
};

struct payload {
    uint64_t key, version;
};

static uint64_t
storm_hash(const uint64_t *key)
{
    return hash_of((near_bytes){ key, sizeof(*key) });
}

static struct near__entry *
storm_entry(const uint64_t *key, uint64_t version)
{
    struct payload payload = { *key, version };

    return entry_of((near_bytes){ key, sizeof(*key) }, storm_hash(key),
                    (near_bytes){ &payload, sizeof(payload) });
}

static uint64_t
storm_write_l2(struct storm *storm, uint64_t key)
{
    struct sim_register *reg = &storm->l2[key];
    uint64_t             version;

    pthread_mutex_lock(&reg->lock);
    version = ++reg->version;
    pthread_mutex_unlock(&reg->lock);
    return version;
}

static uint64_t
storm_read_l2(struct storm *storm, uint64_t key)
{
    struct sim_register *reg = &storm->l2[key];
    uint64_t             version;

    pthread_mutex_lock(&reg->lock);
    version = reg->version;
    pthread_mutex_unlock(&reg->lock);
    return version;
}

static void
storm_ack(struct storm *storm, uint64_t key, uint64_t version)
{
    _Atomic uint64_t *acked = &storm->l2[key].acked;
    uint64_t          seen  = atomic_load(acked);

    while (seen < version && !atomic_compare_exchange_weak(acked, &seen, version))
        ;
}

static void
storm_put(struct storm *storm, uint64_t key)
{
    uint64_t              hash  = storm_hash(&key);
    near_bytes            bytes = { &key, sizeof(key) };
    struct near__l1_write write = near__l1_write_begin(storm->l1, hash, bytes);
    uint64_t              version;
    struct near__entry   *entry;

    version = storm_write_l2(storm, key);
    entry   = storm_entry(&key, version);
    near__l1_write_end(storm->l1, write, hash, bytes, entry, 0);
    near__entry_release(&entry);
    storm_ack(storm, key, version);
}

static void
storm_foreign(struct storm *storm, uint64_t key)
{
    uint64_t version = storm_write_l2(storm, key);

    near__l1_invalidate(storm->l1, storm_hash(&key), (near_bytes){ &key, sizeof(key) });
    storm_ack(storm, key, version);
}

static void
storm_check(struct storm *storm, const near_value *value, uint64_t key, uint64_t acked)
{
    struct payload payload = { UINT64_MAX, 0 };
    near_bytes     data    = near__value_data(value);

    if (data.size == sizeof(payload))
        memcpy(&payload, data.data, sizeof(payload));
    if (payload.key != key)
        atomic_fetch_add(&storm->foreign_key, 1);
    if (payload.version < acked)
        atomic_fetch_add(&storm->stale, 1);
    atomic_fetch_add(&storm->hits, 1);
}

static void
storm_get(struct storm *storm, uint64_t key)
{
    uint64_t    hash = storm_hash(&key), acked = atomic_load(&storm->l2[key].acked), fence;
    near_value *value =
        near__l1_hit((struct near__l1_front *)storm->l1, hash, (near_bytes){ &key, sizeof(key) }, 0);
    struct near__entry *entry;

    if (value != NULL) {
        storm_check(storm, value, key, acked);
        near__value_release(value);
        return;
    }
    fence = near__l1_fence(storm->l1, hash);
    entry = storm_entry(&key, storm_read_l2(storm, key));
    if (storm->wrong) {
        sched_yield(); /* a slow reply */
        fence = near__l1_fence(storm->l1, hash);
    }
    near__l1_insert(storm->l1, entry, fence, 0);
    near__entry_release(&entry);
}

static void *
storm_run(void *ctx)
{
    struct worker *worker = ctx;
    struct storm  *storm  = worker->storm;

    for (size_t i = 0; i < storm->rounds; i++) {
        uint64_t dice = test_random(&worker->random), key = (dice >> 32) % KEYS;

        key = key * key / KEYS; /* some keys are hotter */
        if (dice % 100 < 80)
            storm_get(storm, key);
        else if (dice % 100 < 90)
            storm_put(storm, key);
        else if (dice % 100 < 99)
            storm_foreign(storm, key);
        else if (dice % 1000 < 100)
            near__l1_flush(storm->l1);
        else
            near__l1_upkeep(storm->l1, 0, 10);
    }
    return NULL;
}

/* Runs the storm and leaves the counts in it; no asserts in the threads (rule K2). */
static void
storm_blow(struct storm *storm)
{
    struct worker workers[THREADS];
    int           started = 0;

    storm->l1 = l1_open(SIZE_MAX, KEYS / 2, 4); /* half of it fits: eviction all the time */
    for (size_t i = 0; i < KEYS; i++)
        pthread_mutex_init(&storm->l2[i].lock, NULL);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){ .storm = storm, .random = (uint64_t)i };
        if (pthread_create(&workers[i].thread, NULL, storm_run, &workers[i]) != 0)
            break;
        started++;
    }
    for (int i = 0; i < started; i++)
        pthread_join(workers[i].thread, NULL);
    assert_int_equal(started, THREADS);
}

/* When all is quiet L1 is empty or equals L2, key by key. */
static size_t
storm_differences(struct storm *storm)
{
    size_t different = 0;

    for (uint64_t key = 0; key < KEYS; key++) {
        near_value *value = near__l1_find(storm->l1, storm_hash(&key), (near_bytes){ &key, sizeof(key) }, 0);
        struct payload payload = { key, storm->l2[key].version };

        if (value != NULL)
            memcpy(&payload, near__value_data(value).data, sizeof(payload));
        different += payload.version != storm->l2[key].version || payload.key != key;
        let_go_of(value);
    }
    return different;
}

static int
storm_free(void **state)
{
    struct storm *storm = *state;

    if (storm == NULL)
        return 0;
    near__l1_free(&storm->l1);
    for (size_t i = 0; i < KEYS; i++)
        pthread_mutex_destroy(&storm->l2[i].lock);
    free(storm);
    return 0;
}

static struct storm *
storm_new(void **state, size_t rounds, bool wrong)
{
    struct storm *storm = calloc(1, sizeof(*storm));

    assert_non_null(storm);
    *state        = storm;
    storm->rounds = rounds;
    storm->wrong  = wrong;
    return storm;
}

static void
test_G1_threads_never_read_behind_an_acknowledged_write(void **state)
{
    struct storm         *storm = storm_new(state, test_scale(200000), false);
    struct near__l1_stats stats;

    storm_blow(storm);
    stats = stats_of(storm->l1);
    print_message("# %llu hits, %llu fills, %llu refused, %llu evictions\n",
                  (unsigned long long)atomic_load(&storm->hits), (unsigned long long)stats.fills,
                  (unsigned long long)stats.fills_refused, (unsigned long long)stats.evictions);
    assert_int_equal(atomic_load(&storm->stale), 0);
    assert_int_equal(atomic_load(&storm->foreign_key), 0);
    assert_int_equal(storm_differences(storm), 0);
    assert_true(atomic_load(&storm->hits) > 0 && stats.fills > 0 && stats.evictions > 0);
    assert_in_range(stats.entries, 0, KEYS / 2);
}

static void
test_G1_threads_control(void **state)
{
    struct storm *storm = storm_new(state, 100000, true);

    storm_blow(storm);
    print_message("# control: %llu stale hits\n", (unsigned long long)atomic_load(&storm->stale));
    assert_true(atomic_load(&storm->stale) > 0);
    assert_int_equal(atomic_load(&storm->foreign_key), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_race1_slow_fill_is_refused),
        cmocka_unit_test(test_race1_control_fence_captured_late_admits_the_old_value),
        cmocka_unit_test(test_race2_fill_cannot_use_another_fills_place),
        cmocka_unit_test(test_race3_fence_survives_eviction),
        cmocka_unit_test(test_race3_fence_survives_expiry_and_flush),
        cmocka_unit_test(test_race5_absent_key_moves_fence),
        cmocka_unit_test(test_race15_flush_moves_every_fence),
        cmocka_unit_test(test_other_keys_fences_stay),
        cmocka_unit_test(test_G1_of_two_reads_at_once_the_older_does_not_replace_the_newer),
        cmocka_unit_test(test_G1_nor_does_a_read_that_took_nearly_a_minute),
#ifndef NEAR_TEST_POOLS /* there a fill that moves a key moves its fence */
        cmocka_unit_test(test_G1_reads_of_one_version_and_refreshes_replace),
#endif
        cmocka_unit_test(test_G1_control_a_fence_that_knows_no_fills_goes_backwards),
        cmocka_unit_test(test_G1_own_write_is_read_back),
        cmocka_unit_test(test_G1_fill_from_within_a_write_is_refused),
        cmocka_unit_test(test_G1_overlapping_writers_admit_nothing),
        cmocka_unit_test(test_G1_foreign_invalidation_within_a_write_admits_nothing),
        cmocka_unit_test(test_G1_every_interleaving_of_local_and_foreign_writers),
        cmocka_unit_test(test_G1_every_interleaving_of_local_writers_is_monotonic),
        cmocka_unit_test(test_every_interleaving_control),
        cmocka_unit_test_teardown(test_G1_threads_never_read_behind_an_acknowledged_write, storm_free),
        cmocka_unit_test_teardown(test_G1_threads_control, storm_free),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
