/*
 * L1 under threads that do everything at once: every byte that is read is checked, and so is what a reader may see after what.
 *
 * KEYS registers stand for the store; a key has one writer.  A value says which key and version it is of, and all of its bytes and
 * its size follow from those two.  Readers hold values for a while, pass them to other threads, and check them again before they
 * let go.  What must hold: bytes are whole and of the key that was asked for; no version older than one that was acknowledged
 * before the find began, none older than the same thread has seen of that key; nothing is found at or after its expiry; at the end
 * L1 is empty or equal to the store, adopted memory was released exactly once, and the bytes are within the bound.
 *
 * The controls take one protection away each, in a child, and must be caught.
 *
 * NEAR_TEST_OPS: operations over all policies and threads (10 million).
 */
#define TEST_NAME "l1 stress"
#include "unit/l1_help.h"

#include "l1/policy.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    THREADS = 4,
    KEYS    = 3000,
    HOLDS   = 32, /* values a thread holds at most, for long */
    BOXES   = 64, /* where values wait for another thread */
    BATCH   = 8,
    TINY    = 12, /* the head */
    LARGE   = 70 * 1024,
    ADOPTED = 3000
};

#define BYTES ((size_t)2 << 20) /* about a third of the values */

enum harm { NO_HARM, NO_HOLD, NO_LOOK };

static _Atomic bool blind; /* L1 is told that nothing is held */

bool __real_near__hazard_held(const void *block);
bool __wrap_near__hazard_held(const void *block);

bool
__wrap_near__hazard_held(const void *block)
{
    return !atomic_load_explicit(&blind, memory_order_relaxed) && __real_near__hazard_held(block);
}

/* ---- values */

struct head {
    uint32_t key, version, check;
};

static uint64_t
mix(uint64_t key, uint64_t version)
{
    uint64_t state = key << 32 | version;

    return test_random(&state);
}

static size_t
size_of(uint32_t key, uint32_t version, bool *adopted)
{
    uint64_t dice = mix(key, version) >> 20;

    *adopted = false;
    switch (dice % 64) {
    case 0:
        return LARGE;
    case 1:
        *adopted = true;
        return ADOPTED;
    default:
        return dice % 5 < 2 ? TINY : dice % 5 < 4 ? 50 + dice / 64 % 100 : 1500 + dice / 64 % 1000;
    }
}

static uint64_t
word_of(uint64_t seed, size_t at)
{
    return (seed + at) * UINT64_C(0x9E3779B97F4A7C15);
}

static void
write_value(unsigned char *bytes, size_t size, uint32_t key, uint32_t version)
{
    uint64_t    seed = mix(key, version);
    struct head head = { key, version, (uint32_t)seed };
    size_t      at   = sizeof(head);

    memcpy(bytes, &head, sizeof(head));
    for (; at + 8 <= size; at += 8) {
        uint64_t word = word_of(seed, at);
        memcpy(bytes + at, &word, 8);
    }
    for (; at < size; at++)
        bytes[at] = (unsigned char)word_of(seed, at);
}

/* Whether these are the bytes of some version of the key, and of which. */
static bool
read_value(near_bytes data, uint32_t key, uint32_t *version)
{
    const unsigned char *bytes = data.data;
    struct head          head;
    uint64_t             seed, wrong = 0;
    size_t               at = sizeof(head);
    bool                 adopted;

    if (data.size < sizeof(head))
        return false;
    memcpy(&head, bytes, sizeof(head));
    seed     = mix(key, head.version);
    *version = head.version;
    if (head.key != key || head.check != (uint32_t)seed || data.size != size_of(key, head.version, &adopted))
        return false;
    for (; at + 8 <= data.size; at += 8) {
        uint64_t word;
        memcpy(&word, bytes + at, 8);
        wrong |= word ^ word_of(seed, at);
    }
    for (; at < data.size; at++)
        wrong |= bytes[at] ^ (unsigned char)word_of(seed, at);
    return wrong == 0;
}

/* ---- the world */

struct reg {
    _Atomic uint32_t version, acked;
};

struct held {
    near_value *value;
    uint32_t    key, version;
};

struct box {
    pthread_mutex_t lock;
    struct held     held;
};

struct storm {
    struct near__l1 *l1;
    struct reg       regs[KEYS];
    struct box       boxes[BOXES];
    size_t           rounds; /* per thread */
    enum harm        harm;
    _Atomic int64_t  now;
    _Atomic size_t   running;
    _Atomic uint64_t broken, stale, backwards, late, writes, passed, misses, resizes;
};

struct worker {
    struct storm *storm;
    pthread_t     thread;
    uint64_t      random;
    uint32_t      number;
    struct held   holds[HOLDS];
    uint32_t      seen[KEYS];
};

static _Atomic int64_t adopted_alive;

static void
adopted_release(void *data)
{
    atomic_fetch_sub(&adopted_alive, 1);
    free(data);
}

static uint64_t
key_hash(const uint32_t *key)
{
    return hash_of((near_bytes){ key, sizeof(*key) });
}

/* Keys without a store: what was written lives in L1 alone. */
static bool
alone(uint32_t key)
{
    return key % 8 == 7;
}

static struct near__entry *
make_entry(uint32_t key, uint32_t version, int64_t now)
{
    near_bytes          name = { &key, sizeof(key) };
    struct near__entry *entry;
    bool                adopted;
    size_t              size = size_of(key, version, &adopted);
    void               *room;

    if (adopted) {
        room = malloc(size);
        if (room == NULL)
            return NULL;
        atomic_fetch_add(&adopted_alive, 1);
        entry = near__entry_adopt(name, hash_of(name), room, size, adopted_release);
    } else {
        entry = near__entry_new(name, hash_of(name), size, &room);
    }
    if (entry == NULL)
        return NULL;
    write_value(room, size, key, version);
    entry->born = now;
    if (key % 5 == 0)
        entry->expires = now + (int64_t)(1 + mix(key, version) % 50) * NEAR_MS;
    return entry;
}

/* ---- holding */

static void
check_again(struct storm *storm, const struct held *held)
{
    uint32_t version;

    if (!read_value(near__value_data(held->value), held->key, &version) || version != held->version)
        atomic_fetch_add(&storm->broken, 1);
}

static void
let_go_checked(struct storm *storm, struct held *held)
{
    if (held->value == NULL)
        return;
    check_again(storm, held);
    near__value_release(held->value);
    held->value = NULL;
}

/* Put it where another thread may find it, who lets go of what was there. */
static void
pass_on(struct worker *worker, struct held held)
{
    struct storm *storm = worker->storm;
    struct box   *box   = &storm->boxes[test_random(&worker->random) % BOXES];
    struct held   other;

    pthread_mutex_lock(&box->lock);
    other     = box->held;
    box->held = held;
    pthread_mutex_unlock(&box->lock);
    let_go_checked(storm, &other);
    atomic_fetch_add_explicit(&storm->passed, 1, memory_order_relaxed);
}

static void
keep(struct worker *worker, struct held held, uint64_t dice)
{
    struct held *place = &worker->holds[dice % HOLDS];

    if (dice / HOLDS % 4 == 0) {
        near__value_ref(held.value); /* held here and there */
        pass_on(worker, held);
    }
    if (dice / HOLDS % 4 == 1 && place->value != NULL) {
        pass_on(worker, *place);
        place->value = NULL;
    }
    let_go_checked(worker->storm, place);
    *place = held;
}

/* ---- what threads do */

static void
take(struct worker *worker, near_value *value, uint32_t key, uint32_t acked, int64_t now)
{
    struct storm     *storm   = worker->storm;
    uint64_t          dice    = test_random(&worker->random);
    near_bytes        data    = near__value_data(value);
    uint32_t          version = 0;
    struct near__meta meta;

    near__value_meta(value, now, &meta);
    if (storm->harm == NO_HOLD) {
        near__value_release(value);
        sched_yield();
    }
    if (!read_value(data, key, &version))
        atomic_fetch_add(&storm->broken, 1);
    if (version < acked)
        atomic_fetch_add(&storm->stale, 1);
    if (version < worker->seen[key])
        atomic_fetch_add(&storm->backwards, 1);
    else
        worker->seen[key] = version;
    if (meta.expires <= now)
        atomic_fetch_add(&storm->late, 1);
    if (storm->harm == NO_HOLD)
        return;
    if (dice % 16 == 0)
        keep(worker, (struct held){ value, key, version }, dice / 16);
    else
        near__value_release(value);
}

static void
fill(struct worker *worker, uint32_t key, int64_t now)
{
    struct storm       *storm = worker->storm;
    uint64_t            fence = near__l1_fence(storm->l1, key_hash(&key));
    struct near__entry *entry = make_entry(key, atomic_load(&storm->regs[key].version), now);

    if (entry != NULL)
        near__l1_insert(storm->l1, entry, fence, now);
    near__entry_release(&entry);
}

static void
miss(struct worker *worker, uint32_t key, int64_t now)
{
    atomic_fetch_add_explicit(&worker->storm->misses, 1, memory_order_relaxed);
    if (!alone(key))
        fill(worker, key, now);
}

static void
get(struct worker *worker, uint32_t key)
{
    struct storm *storm = worker->storm;
    uint32_t      acked = atomic_load(&storm->regs[key].acked);
    int64_t       now   = atomic_load(&storm->now);
    near_value   *value = near__l1_hit((struct near__l1_front *)storm->l1, key_hash(&key),
                                       (near_bytes){ &key, sizeof(key) }, now);

    if (value == NULL)
        miss(worker, key, now);
    else
        take(worker, value, key, acked, now);
}

static void
get_many(struct worker *worker, uint32_t first)
{
    struct storm *storm = worker->storm;
    int64_t       now   = atomic_load(&storm->now);
    uint64_t      hashes[BATCH];
    near_bytes    names[BATCH];
    near_value   *values[BATCH];
    uint32_t      keys[BATCH], acked[BATCH];

    for (size_t i = 0; i < BATCH; i++) {
        keys[i]   = (uint32_t)((first + 37 * i) % KEYS);
        names[i]  = (near_bytes){ &keys[i], sizeof(keys[i]) };
        hashes[i] = key_hash(&keys[i]);
        acked[i]  = atomic_load(&storm->regs[keys[i]].acked);
    }
    near__l1_find_many(storm->l1, hashes, names, BATCH, now, values);
    for (size_t i = 0; i < BATCH; i++) {
        if (values[i] == NULL)
            miss(worker, keys[i], now);
        else
            take(worker, values[i], keys[i], acked[i], now);
    }
}

/* One writer per key. */
static void
put_new(struct worker *worker, uint32_t key)
{
    struct storm         *storm   = worker->storm;
    struct reg           *reg     = &storm->regs[key];
    near_bytes            name    = { &key, sizeof(key) };
    uint64_t              hash    = key_hash(&key);
    int64_t               now     = atomic_load(&storm->now);
    struct near__l1_write write   = near__l1_write_begin(storm->l1, hash, name);
    uint32_t              version = atomic_fetch_add(&reg->version, 1) + 1;
    struct near__entry   *entry   = make_entry(key, version, now);

    near__l1_write_end(storm->l1, write, hash, name, version % 7 == 0 ? NULL : entry, now);
    near__entry_release(&entry);
    atomic_store(&reg->acked, version);
    atomic_fetch_add_explicit(&storm->writes, 1, memory_order_relaxed);
}

/* In one step, where there is no store; what is too large for that goes the long way. */
static void
put_alone(struct worker *worker, uint32_t key)
{
    struct storm       *storm = worker->storm;
    struct reg         *reg   = &storm->regs[key];
    int64_t             now   = atomic_load(&storm->now);
    struct near__entry *entry = make_entry(key, atomic_load(&reg->version) + 1, now);
    uint32_t            version;

    if (entry == NULL)
        return;
    if (!near__l1_store(storm->l1, entry, (near_bytes){ &key, sizeof(key) }, now)) {
        near__entry_release(&entry);
        put_new(worker, key);
        return;
    }
    near__entry_release(&entry);
    version = atomic_fetch_add(&reg->version, 1) + 1;
    atomic_store(&reg->acked, version);
    atomic_fetch_add_explicit(&storm->writes, 1, memory_order_relaxed);
}

/* An invalidation that brings nothing new. */
static void
invalidate(struct worker *worker, uint32_t key)
{
    near__l1_invalidate(worker->storm->l1, key_hash(&key), (near_bytes){ &key, sizeof(key) });
}

static void
write_something(struct worker *worker, uint64_t dice)
{
    uint32_t key = (uint32_t)(dice % (KEYS / THREADS)) * THREADS + worker->number;

    if (dice / KEYS % 8 == 0)
        invalidate(worker, key);
    else if (alone(key))
        put_alone(worker, key);
    else
        put_new(worker, key);
}

static void *
work(void *ctx)
{
    struct worker *worker = ctx;
    struct storm  *storm  = worker->storm;

    for (size_t i = 0; i < storm->rounds; i++) {
        uint64_t dice = test_random(&worker->random), key = (dice >> 32) % KEYS;

        key = key * key / KEYS; /* some keys are hotter */
        if (dice % 1024 < 120)
            write_something(worker, dice >> 20);
        else if (dice % 1024 < 140) {
            get_many(worker, (uint32_t)key);
            i += BATCH - 1;
        } else if (dice % (1 << 20) == 1023)
            near__l1_flush(storm->l1);
        else
            get(worker, (uint32_t)key);
    }
    for (size_t i = 0; i < HOLDS; i++)
        let_go_checked(storm, &worker->holds[i]);
    atomic_fetch_sub(&storm->running, 1);
    return NULL;
}

/* Time passes, upkeep runs, bounds change. */
static void *
keep_up(void *ctx)
{
    static const size_t bounds[][2] = {
        { BYTES, 0 }, { BYTES / 4, 0 }, { 2 * BYTES, 0 }, { BYTES, KEYS / 4 }
    };
    struct storm *storm = ctx;

    for (size_t i = 0; atomic_load(&storm->running) > 0; i++) {
        atomic_fetch_add(&storm->now, NEAR_MS);
        near__l1_upkeep(storm->l1, atomic_load(&storm->now), 4);
        if (i % 16 == 15) {
            const size_t *bound = bounds[i / 16 % NEAR_COUNT_OF(bounds)];
            near__l1_resize(storm->l1, bound[0], bound[1]);
            atomic_fetch_add(&storm->resizes, 1);
        }
        usleep(500);
    }
    return NULL;
}

/* ---- running it */

static size_t
operations(void)
{
    const char *text = getenv("NEAR_TEST_OPS");

    return text != NULL && atoll(text) > 0 ? (size_t)atoll(text) : test_scale(10000000);
}

static struct storm *
storm_new(const char *policy, size_t rounds, enum harm harm)
{
    struct near__l1_config config = l1_config(BYTES, 0, 4, policy);
    struct storm          *storm  = calloc(1, sizeof(*storm));

    assert_non_null(storm);
    storm->l1     = l1_open_with(&config);
    storm->rounds = rounds;
    storm->harm   = harm;
    for (size_t i = 0; i < BOXES; i++)
        pthread_mutex_init(&storm->boxes[i].lock, NULL);
    return storm;
}

static void
storm_free(struct storm *storm)
{
    for (size_t i = 0; i < BOXES; i++)
        pthread_mutex_destroy(&storm->boxes[i].lock);
    free(storm);
}

static bool
storm_blow(struct storm *storm)
{
    struct worker *workers = calloc(THREADS, sizeof(*workers));
    pthread_t      upkeep;
    bool           right = workers != NULL;

    if (!right)
        return false;
    atomic_store(&storm->running, THREADS);
    for (uint32_t i = 0; i < THREADS; i++) {
        workers[i].storm  = storm;
        workers[i].number = i;
        workers[i].random = i;
        right &= pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0;
    }
    right &= pthread_create(&upkeep, NULL, keep_up, storm) == 0;
    for (uint32_t i = 0; i < THREADS; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_join(upkeep, NULL);
    for (size_t i = 0; i < BOXES; i++)
        let_go_checked(storm, &storm->boxes[i].held);
    free(workers);
    return right;
}

static size_t
storm_differences(struct storm *storm, size_t *found)
{
    size_t different = 0;

    for (uint32_t key = 0; key < KEYS; key++) {
        near_value *value = near__l1_find(storm->l1, key_hash(&key), (near_bytes){ &key, sizeof(key) },
                                          atomic_load(&storm->now));
        uint32_t    version;

        if (value == NULL)
            continue;
        different += !read_value(near__value_data(value), key, &version) ||
                     version != atomic_load(&storm->regs[key].version);
        ++*found;
        near__value_release(value);
    }
    return different;
}

static uint64_t
faults(struct storm *storm)
{
    return atomic_load(&storm->broken) + atomic_load(&storm->stale) + atomic_load(&storm->backwards) +
           atomic_load(&storm->late);
}

static void
test_everything_at_once(void **state)
{
    size_t count = 0;

    (void)state;
    while (near__policies[count] != NULL)
        count++;
    for (size_t p = 0; p < count; p++) {
        struct storm *storm = storm_new(near__policies[p]->name, operations() / count / THREADS, NO_HARM);
        size_t        found = 0, different;
        struct near__l1_stats stats;

        assert_true(storm_blow(storm));
        different = storm_differences(storm, &found);
        near__l1_resize(storm->l1, BYTES, 0);
        upkeep_all(storm->l1, atomic_load(&storm->now));
        stats = stats_of(storm->l1);
        print_message("# %s: %llu hits, %llu misses, %llu writes, %llu fills, %llu refused, %llu evictions, "
                      "%llu expired, %llu passed on, "
                      "%llu resizes, %llu too large\n",
                      near__policies[p]->name, (unsigned long long)stats.hits,
                      (unsigned long long)atomic_load(&storm->misses),
                      (unsigned long long)atomic_load(&storm->writes), (unsigned long long)stats.fills,
                      (unsigned long long)stats.fills_refused, (unsigned long long)stats.evictions,
                      (unsigned long long)stats.expired, (unsigned long long)atomic_load(&storm->passed),
                      (unsigned long long)atomic_load(&storm->resizes), (unsigned long long)stats.too_large);
        assert_int_equal(atomic_load(&storm->broken), 0);
        assert_int_equal(atomic_load(&storm->stale), 0);
        assert_int_equal(atomic_load(&storm->backwards), 0);
        assert_int_equal(atomic_load(&storm->late), 0);
        assert_int_equal(different, 0);
        assert_in_range(stats.bytes, 0, BYTES);
        assert_true(stats.hits > 0 && stats.evictions > 0 && found > 0);
        near__l1_free(&storm->l1);
        assert_int_equal(atomic_load(&adopted_alive), 0);
        storm_free(storm);
    }
}

/* ---- controls */

static void
control(enum harm harm, const char *what)
{
    int   status;
    pid_t pid;

    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct storm *storm;

        alarm(120);
        setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
        fclose(stderr); /* a sanitizer has much to say */
        storm = storm_new("lru", 300000, harm);
        atomic_store(&blind, harm == NO_LOOK);
        _exit(storm_blow(storm) && faults(storm) == 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    print_message("# control, %s: %s\n", what,
                  WIFSIGNALED(status) ? "died"
                  : status == 0       ? "not caught"
                                      : "caught");
    assert_int_not_equal(status, 0);
}

static void
test_control_readers_that_do_not_hold(void **state)
{
    (void)state;
    control(NO_HOLD, "values read after their release");
}

static void
test_control_memory_used_again_although_held(void **state)
{
    (void)state;
    control(NO_LOOK, "memory used again although held");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_control_readers_that_do_not_hold),
        cmocka_unit_test(test_control_memory_used_again_although_held),
        cmocka_unit_test(test_everything_at_once),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
