/*
 * Writing through to a store: near_update, near_erase with policies through and around, over each kind of L2.
 *
 * The store is a page that all processes share: per key the number of its value, 0 for none.  Values are the numbers in decimal, each
 * written once; the page remembers in which order they were committed.  Writers die inside the store, before it commits or after.  The
 * controls write without marks, and must leave something stale.
 */
#include "world.h"

#include "client/flight.h"
#include "harness/proxy.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KEYS = 4, VALUES = 1 << 16 };
enum how { COMMIT, REFUSE, HANG, UNKNOWN, DIE_BEFORE, DIE_AFTER, COMMIT_AND_HANG };

static struct page {
    _Atomic uint32_t value[KEYS];   /* what the store holds */
    _Atomic uint32_t place[VALUES]; /* of a value in the order of commits; 0: not committed */
    _Atomic uint32_t commits;
    _Atomic uint32_t acknowledged[KEYS]; /* the last place whose update returned NEAR_OK */
    _Atomic uint32_t fresh;              /* numbers given out */
    pthread_mutex_t  lock;               /* a commit is one step */
    _Atomic unsigned stale, reads;
} * page;

static int
setup(void **state)
{
    pthread_mutexattr_t shared;

    (void)state;
    page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return 1;
    pthread_mutexattr_init(&shared);
    pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&page->lock, &shared);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    return munmap(page, sizeof(*page));
}

static void
clear_page(void)
{
    for (unsigned k = 0; k < KEYS; k++)
        page->value[k] = page->acknowledged[k] = 0;
    page->stale = page->reads = 0;
}

/* Keys are "key0" and so on. */
static unsigned
key_number(near_bytes key)
{
    return (unsigned)(((const char *)key.data)[3] - '0');
}

static uint32_t
number_of(near_bytes text)
{
    uint32_t number = 0;

    for (size_t i = 0; i < text.size; i++)
        number = number * 10 + (uint32_t)(((const char *)text.data)[i] - '0');
    return number;
}

static void
commit(unsigned k, uint32_t number)
{
    pthread_mutex_lock(&page->lock);
    page->place[number] = ++page->commits;
    page->value[k]      = number;
    pthread_mutex_unlock(&page->lock);
}

struct db {
    _Atomic int      how;
    _Atomic unsigned calls, delay_us;
    near_write      *held; /* lock */
    pthread_mutex_t  lock;
    _Atomic bool     holds;
};
#define DB(...)                                                                                              \
    {                                                                                                        \
        .lock = PTHREAD_MUTEX_INITIALIZER, __VA_ARGS__                                                       \
    }

static void
store_one(struct db *db, near_write *write)
{
    unsigned k      = key_number(near_write_key(write));
    uint32_t number = near_write_data(write).data != NULL ? number_of(near_write_data(write)) : 0;
    int      how    = db->how;

    if (how == DIE_BEFORE)
        kill(getpid(), SIGKILL);
    if (how == COMMIT || how == DIE_AFTER || how == COMMIT_AND_HANG)
        commit(k, number);
    if (how == DIE_AFTER)
        kill(getpid(), SIGKILL);
    if (how == HANG || how == COMMIT_AND_HANG) {
        pthread_mutex_lock(&db->lock);
        db->held  = write;
        db->holds = true;
        pthread_mutex_unlock(&db->lock);
    } else if (how == REFUSE) {
        near_write_fail(write, NEAR_ERR_DENIED);
    } else if (how == UNKNOWN) {
        near_write_fail(write, NEAR_ERR_TIMEOUT);
    } else {
        near_write_done(write);
    }
}

static void
store_fn(near_write *writes[], size_t n, void *ctx)
{
    struct db *db = ctx;

    db->calls++;
    if (db->delay_us > 0)
        usleep(db->delay_us);
    for (size_t i = 0; i < n; i++)
        store_one(db, writes[i]);
}

static void
load_fn(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        uint32_t number = page->value[key_number(near_load_key(loads[i]))];
        char     text[16];

        snprintf(text, sizeof(text), "%u", number);
        if (number == 0)
            near_load_not_found(loads[i]);
        else
            near_load_set(loads[i], near_key(text));
    }
}

static uint32_t
fresh(void)
{
    uint32_t number = ++page->fresh;

    assert_true(number < VALUES);
    return number;
}

static near_status
update(const struct instance *in, unsigned k, uint32_t number)
{
    char key[8], text[16];

    snprintf(key, sizeof(key), "key%u", k);
    snprintf(text, sizeof(text), "%u", number);
    return near_update(in->cache, near_key(key), near_key(text), NULL);
}

static void
open_on(struct world *w, struct instance *in, struct db *db, const char *name, const char *value)
{
    OPEN(w, in, "l2.timeout", "300ms", "store.timeout", "100ms", name, value);
    near_cache_set_loader(in->cache, load_fn, NULL);
    if (db != NULL)
        near_cache_set_store(in->cache, store_fn, db);
}

#define OPEN_ON(w, in, db) open_on(w, in, db, "l1.max_ttl", "60s")

static const char *
text_of(uint32_t number)
{
    static char text[16];

    snprintf(text, sizeof(text), "%u", number);
    return text;
}

static bool
l2_has(const struct instance *in, const char *key)
{
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value;
    near_status      status;

    options.flags = NEAR_SKIP_L1 | NEAR_NO_FILL;
    status        = near_get_with(in->cache, near_key(key), &options, &value);
    near_value_release(value);
    return status == NEAR_OK;
}

/* ---- one writer */

static void
an_update_is_in_the_store_and_in_both_tiers(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB();
    struct instance a, b;
    uint32_t        number = fresh(), next = fresh();
    near_bytes      key = near_key("key0");

    NEEDS(w);
    clear_page();
    OPEN_ON(w, &a, &db);
    OPEN_ON(w, &b, NULL);
    assert_int_equal(update(&b, 0, number), NEAR_ERR_UNSUPPORTED);
    assert_int_equal(update(&a, 0, number), NEAR_OK);
    assert_int_equal(page->value[0], number);
    assert_fetch(a.cache, "key0", text_of(number));
    assert_int_equal(fetch(a.cache, "key0").info.source, NEAR_FROM_L1);
    if (w->tier != TIER_NONE)
        assert_int_equal(fetch(b.cache, "key0").info.source, NEAR_FROM_L2);
    assert_int_equal(update(&a, 0, next), NEAR_OK);
    if (w->tier != TIER_NONE)
        await_fetch(b.cache, "key0", text_of(next));
    assert_int_equal(near_erase(a.cache, key), NEAR_OK);
    assert_int_equal(page->value[0], 0);
    assert_int_equal(fetch(a.cache, "key0").status, NEAR_NOT_FOUND);
    if (w->tier != TIER_NONE)
        await_fetch(b.cache, "key0", "[2]");
    assert_int_equal(db.calls, 3);
    close_instance(&a);
    close_instance(&b);
}

static void
around_and_fast_leave_nothing_in_l2(void **state)
{
    static const char *const ways[][2] = { { "write.policy", "around" }, { "write.fast", "yes" } };
    struct world            *w         = *state;
    struct db                db        = DB();
    struct instance          a;

    NEEDS(w);
    for (size_t i = 0; i < 2; i++) {
        uint32_t first = fresh(), second = fresh();

        clear_page();
        open_on(w, &a, &db, ways[i][0], ways[i][1]);
        db.how = COMMIT;
        assert_int_equal(update(&a, 0, first), NEAR_OK);
        assert_false(l2_has(&a, "key0"));
        assert_fetch(a.cache, "key0", text_of(first));
        assert_true(l2_has(&a, "key0"));
        assert_int_equal(update(&a, 0, second), NEAR_OK);
        assert_fetch(a.cache, "key0", text_of(second));
        db.how = REFUSE;
        assert_int_equal(update(&a, 0, fresh()), NEAR_ERR_DENIED);
        assert_true(l2_has(&a, "key0"));
        assert_int_equal(near_erase(a.cache, near_key("key0")), NEAR_ERR_DENIED);
        db.how = COMMIT;
        assert_int_equal(near_erase(a.cache, near_key("key0")), NEAR_OK);
        close_instance(&a);
    }
}

static void
what_the_store_refuses_changes_nothing(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB();
    struct instance a;
    uint32_t        number = fresh();

    NEEDS(w);
    clear_page();
    OPEN_ON(w, &a, &db);
    assert_int_equal(update(&a, 0, number), NEAR_OK);
    db.how = REFUSE;
    assert_int_equal(update(&a, 0, fresh()), NEAR_ERR_DENIED);
    assert_fetch(a.cache, "key0", text_of(number));
    if (w->tier != TIER_NONE)
        assert_true(l2_has(&a, "key0")); /* the mark has gone, or the load could not have been stored */
    assert_int_equal(stats_of(&a).update_failures, 1);
    close_instance(&a);
}

static int
is_in_l2(void *ctx)
{
    return l2_has(ctx, "key0");
}

static int
is_fetched_into_l2(void *ctx)
{
    struct instance *in = ctx;

    fetch(in->cache, "key0");
    return is_in_l2(ctx);
}

static void
a_late_answer_is_made_good(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB();
    struct instance a, b;
    uint32_t        old = fresh(), number = fresh();

    NEEDS(w);
    clear_page();
    OPEN_ON(w, &a, &db);
    OPEN_ON(w, &b, NULL);
    assert_int_equal(update(&a, 0, old), NEAR_OK);
    db.how = HANG;
    assert_int_equal(update(&a, 0, number), NEAR_ERR_TIMEOUT);
    assert_true(db.holds);
    assert_fetch(a.cache, "key0", text_of(old));
    if (w->tier != TIER_NONE) {
        assert_fetch(b.cache, "key0", text_of(old));
        assert_false(l2_has(&b, "key0")); /* the mark lies there yet */
    }
    commit(0, number);
    near_write_done(db.held);
    if (w->tier != TIER_NONE) {
        assert_fetch(b.cache, "key0", text_of(number)); /* it had nothing to keep */
        assert_true(test_wait_for(is_fetched_into_l2, &b, 10000 * test_slack()));
        await_fetch(a.cache, "key0", text_of(number));
        assert_fetch(b.cache, "key0", text_of(number));
    }
    db.how = UNKNOWN;
    assert_int_equal(update(&a, 0, fresh()), NEAR_ERR_TIMEOUT);
    close_instance(&a);
    close_instance(&b);
}

static void
a_store_that_never_answers_is_reported_at_the_close(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB(.how = HANG);
    struct instance a;
    near_error      error;

    NEEDS(w);
    clear_page();
    open_on(w, &a, &db, "close.timeout", "50ms");
    assert_int_equal(update(&a, 0, fresh()), NEAR_ERR_TIMEOUT);
    assert_int_equal(near_client_close(a.client, &error), NEAR_ERR_BUSY);
    near_write_done(db.held); /* and nothing of it is used after it was freed */
}

/* ---- while the store is being written */

struct writer {
    struct instance *in;
    unsigned         k;
    uint32_t         number;
    near_status      status;
};

static void *
write_one(void *ctx)
{
    struct writer *writer = ctx;

    writer->status = update(writer->in, writer->k, writer->number);
    return NULL;
}

static int
has_held(void *ctx)
{
    return ((struct db *)ctx)->holds;
}

static void
release(struct db *db, bool commits, unsigned k, uint32_t number)
{
    near_write *write;

    pthread_mutex_lock(&db->lock);
    write     = db->held;
    db->holds = false;
    pthread_mutex_unlock(&db->lock);
    if (commits)
        commit(k, number);
    near_write_done(write);
}

static void
begin_held(struct writer *writer, struct db *db, pthread_t *thread)
{
    db->how = HANG;
    pthread_create(thread, NULL, write_one, writer);
    assert_true(test_wait_for(has_held, db, 10000));
}

/* A writer whose store holds, and a reader in another instance. */
struct pair {
    struct db       db;
    struct instance a, b;
    uint32_t        old, number; /* of key0: before, and what is being written */
    struct writer   writer;
    pthread_t       thread;
};

static void
open_writer(struct world *w, struct pair *pair)
{
    *pair = (struct pair){ .db = DB(), .old = fresh(), .number = fresh() };
    clear_page();
    open_on(w, &pair->a, &pair->db, "store.timeout", "60s");
    assert_int_equal(update(&pair->a, 0, pair->old), NEAR_OK);
}

static void
writing_begins(struct pair *pair)
{
    pair->writer = (struct writer){ .in = &pair->a, .number = pair->number };
    begin_held(&pair->writer, &pair->db, &pair->thread);
}

static void
writing_ends(struct pair *pair, bool commits)
{
    release(&pair->db, commits, 0, pair->number);
    pthread_join(pair->thread, NULL);
    assert_int_equal(pair->writer.status, NEAR_OK);
}

static void
close_pair(struct pair *pair)
{
    close_instance(&pair->a);
    close_instance(&pair->b);
}

static void
readers_load_and_keep_nothing_meanwhile(void **state)
{
    struct world    *w = *state;
    struct pair      pair;
    struct instance *a = &pair.a, *b = &pair.b;

    NEEDS(w);
    open_writer(w, &pair);
    OPEN_ON(w, b, NULL);
    assert_fetch(b->cache, "key0", text_of(pair.old)); /* and b keeps it */
    writing_begins(&pair);
    if (near_fence(b->client, 5000) == NEAR_OK) {
        assert_fetch(b->cache, "key0", text_of(pair.old));
        assert_int_equal(fetch(b->cache, "key0").info.source, NEAR_FROM_LOADER);
        assert_int_equal(fetch(b->cache, "key0").info.source, NEAR_FROM_LOADER);
    }
    assert_int_equal(fetch(a->cache, "key0").info.source, NEAR_FROM_LOADER);
    assert_false(l2_has(b, "key0"));
    assert_int_equal(near_expire(b->cache, near_key("key0")), NEAR_OK); /* leaves the mark alone */
    assert_int_equal(fetch(b->cache, "key0").info.source, NEAR_FROM_LOADER);
    assert_int_equal(fetch(b->cache, "key0").info.source, NEAR_FROM_LOADER);
    writing_ends(&pair, true);
    await_fetch(b->cache, "key0", text_of(pair.number));
    assert_fetch(a->cache, "key0", text_of(pair.number));
    close_pair(&pair);
}

/* A mark is evicted, an older value loaded in between: the writer finds it and takes it away. */
static void
a_lost_mark_is_noticed(void **state)
{
    struct world    *w = *state;
    struct pair      pair;
    struct instance *b = &pair.b;

    NEEDS(w);
    open_writer(w, &pair);
    OPEN_ON(w, b, NULL);
    writing_begins(&pair);
    assert_int_equal(near_remove(b->cache, near_key("key0")), NEAR_OK);
    assert_fetch(b->cache, "key0", text_of(pair.old));
    assert_true(l2_has(b, "key0"));
    writing_ends(&pair, true);
    assert_fetch(pair.a.cache, "key0", text_of(pair.number));
    await_fetch(b->cache, "key0", text_of(pair.number));
    assert_int_equal(stats_of(&pair.a).marks_met, 1);
    close_pair(&pair);
}

static int
key1_is_in_l1(void *ctx)
{
    return fetch(((struct instance *)ctx)->cache, "key1").info.source == NEAR_FROM_L1;
}

/* A hedge loads before L2 has said that the key is being written: L1 keeps that only once L2 has said that it is not. */
static _Atomic bool hedges_keep; /* the control: at once */

bool __real_near__flight_hold(near_cache *cache, struct near__flight *flight, struct near__entry *entry);
bool __wrap_near__flight_hold(near_cache *cache, struct near__flight *flight, struct near__entry *entry);
bool
__wrap_near__flight_hold(near_cache *cache, struct near__flight *flight, struct near__entry *entry)
{
    return hedges_keep || __real_near__flight_hold(cache, flight, entry);
}

/* What a hedge's reader reads of key0 when the store has been changed and nobody has said so; and before, and then. */
static void
hedge_beside_a_writer(struct world *w, char *text, struct pair *numbers)
{
    struct test_server *server = w->memcached != NULL ? w->memcached : w->redis;
    struct test_proxy  *proxy;
    struct pair         pair;
    struct instance    *b = &pair.b;
    uint32_t            other;

    proxy = test_proxy_start(server);
    open_writer(w, &pair);
    OPEN(w, b, "l2.uri", test_proxy_unix_uri(proxy), "coherence.uri", w->redis->uri, "l2.hedge_after",
         "50ms");
    near_cache_set_loader(b->cache, load_fn, NULL);
    commit(1, other = fresh());
    assert_fetch(b->cache, "key2", "[2]"); /* connected, and it knows the generation */
    writing_begins(&pair);
    assert_int_equal(near_fence(b->client, 5000), NEAR_OK);
    sleep_ms(300); /* the first beat of a sender may empty L1 */

    test_proxy_fault(proxy, (struct test_fault){ TEST_FAULT_DELAY, TEST_DOWN, .ms = 300 });
    assert_fetch(b->cache, "key0", text_of(pair.old));
    assert_fetch(b->cache, "key1", text_of(other));
    assert_true(stats_of(b).hedges >= 2);
    assert_true(test_wait_for(key1_is_in_l1, b, 10000 * test_slack())); /* L2 had nothing against that one */
    commit(0, pair.number); /* and of that nobody hears, for the writer may die now */
    strcpy(text, fetch(b->cache, "key0").text);
    *numbers = pair;

    writing_ends(&pair, false);
    test_proxy_heal(proxy);
    close_pair(&pair);
    test_proxy_stop(&proxy);
}

static void
a_hedge_keeps_nothing_that_is_being_written(void **state)
{
    struct pair numbers;
    char        text[64];

    NEEDS((struct world *)*state);
    hedge_beside_a_writer(*state, text, &numbers);
    assert_string_equal(text, text_of(numbers.number));
}

static void
control_a_hedge_that_keeps_at_once_is_stale(void **state)
{
    struct pair numbers;
    char        text[64];

    NEEDS((struct world *)*state);
    hedges_keep = true;
    hedge_beside_a_writer(*state, text, &numbers);
    hedges_keep = false;
    assert_string_equal(text, text_of(numbers.old));
}

/* Two at once: whatever the order in which the store does them, nothing older than the store remains. */
static void
two_writers_leave_nothing_old(void **state)
{
    struct world   *w    = *state;
    struct db       mine = DB(), theirs = DB();
    struct instance a, b;
    uint32_t        first, second;

    NEEDS(w);
    clear_page();
    open_on(w, &a, &mine, "store.timeout", "60s");
    open_on(w, &b, &theirs, "store.timeout", "60s");
    for (unsigned order = 0; order < 4; order++) {
        struct writer one = { .in = &a, .number = first = fresh() },
                      two = { .in = &b, .number = second = fresh() };
        pthread_t threads[2];

        begin_held(&one, &mine, &threads[0]);
        begin_held(&two, &theirs, &threads[1]);
        if (order & 1)
            commit(0, first);
        commit(0, second);
        if ((order & 1) == 0)
            commit(0, first);
        if (order & 2) {
            release(&mine, false, 0, 0);
            pthread_join(threads[0], NULL);
            assert_false(l2_has(&a, "key0"));
            fetch(a.cache, "key0");
            assert_false(l2_has(&a, "key0")); /* the other is still at it */
            release(&theirs, false, 0, 0);
            pthread_join(threads[1], NULL);
        } else {
            release(&theirs, false, 0, 0);
            pthread_join(threads[1], NULL);
            fetch(a.cache, "key0");
            assert_false(l2_has(&a, "key0"));
            release(&mine, false, 0, 0);
            pthread_join(threads[0], NULL);
        }
        assert_int_equal(one.status, NEAR_OK);
        assert_int_equal(two.status, NEAR_OK);
        await_fetch(a.cache, "key0", text_of(page->value[0]));
        await_fetch(b.cache, "key0", text_of(page->value[0]));
        assert_true(l2_has(&a, "key0")); /* both have left their mark */
    }
    close_instance(&a);
    close_instance(&b);
}

/* ---- many at once, with a checker */

struct racer {
    pthread_t        thread;
    struct instance *in;
    uint64_t         seed;
    size_t           rounds;
    bool             writes, control;
};

static void
raise_to(_Atomic uint32_t *level, uint32_t to)
{
    uint32_t was = *level;

    while (was < to && !atomic_compare_exchange_weak(level, &was, to))
        ;
}

/* What everybody would write without us: the store, then the cache. */
static near_status
update_by_hand(const struct instance *in, unsigned k, uint32_t number)
{
    char key[8], text[16];

    snprintf(key, sizeof(key), "key%u", k);
    snprintf(text, sizeof(text), "%u", number);
    commit(k, number);
    usleep(number % 300);
    return near_put(in->cache, near_key(key), near_key(text), NULL);
}

static void
check_read(const struct instance *in, unsigned k)
{
    uint32_t      least = page->acknowledged[k];
    char          key[8];
    struct answer answer;

    snprintf(key, sizeof(key), "key%u", k);
    if (near_fence(in->client, 5000) != NEAR_OK)
        return;
    answer = fetch(in->cache, key);
    if (answer.status != NEAR_OK)
        return;
    page->reads++;
    page->stale += page->place[number_of(near_key(answer.text))] < least;
}

static void *
race(void *ctx)
{
    struct racer *racer = ctx;

    for (size_t i = 0; i < racer->rounds; i++) {
        unsigned k = (unsigned)(test_random(&racer->seed) % KEYS);
        uint32_t number;

        if (!racer->writes) {
            check_read(racer->in, k);
            continue;
        }
        number = fresh();
        if ((racer->control ? update_by_hand : update)(racer->in, k, number) == NEAR_OK)
            raise_to(&page->acknowledged[k], page->place[number]);
    }
    return NULL;
}

#define RACERS 6

static void
run_race(struct world *w, bool control)
{
    struct db       db = DB(.delay_us = 50);
    struct instance in[2];
    struct racer    racers[RACERS];

    clear_page();
    for (size_t i = 0; i < 2; i++)
        open_on(w, &in[i], &db, "store.timeout", "60s");
    for (size_t i = 0; i < RACERS; i++) {
        racers[i] = (struct racer){
            .in = &in[i % 2], .seed = i + 1, .rounds = test_scale(300), .writes = i < 4, .control = control
        };
        pthread_create(&racers[i].thread, NULL, race, &racers[i]);
    }
    for (size_t i = 0; i < RACERS; i++)
        pthread_join(racers[i].thread, NULL);
    for (unsigned k = 0; k < KEYS; k++)
        for (size_t i = 0; i < 2; i++)
            check_read(&in[i], k);
    close_instance(&in[0]);
    close_instance(&in[1]);
}

static void
no_read_is_older_than_an_acknowledged_update(void **state)
{
    struct world *w = *state;

    NEEDS(w);
    run_race(w, false);
    assert_true(page->reads > 0);
    assert_int_equal(page->stale, 0);
}

static void
the_checker_sees_what_store_then_put_does(void **state)
{
    struct world *w = *state;

    NEEDS(w);
    for (int i = 0; i < 20 && page->stale == 0; i++)
        run_race(w, true);
    assert_true(page->stale > 0);
}

/* ---- writers that die */

static void
die_writing(struct world *w, enum how how, const char *name, const char *value, uint32_t number)
{
    pid_t pid = fork();

    if (pid == 0) {
        static struct db db = DB();
        struct instance  in;

        db.how = how;
        open_on(w, &in, &db, name, value);
        update(&in, 0, number);
        _exit(1); /* it should not have lived */
    }
    assert_true(pid > 0);
    {
        int status;

        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
    }
}

static void
a_writer_may_die_in_the_store(void **state)
{
    static const enum how ways[] = { DIE_BEFORE, DIE_AFTER };
    struct world         *w      = *state;
    struct db             db     = DB();
    struct instance       a;

    NEEDS(w);
    if (TEST_UNDER_TSAN)
        skip();
    clear_page();
    open_on(w, &a, &db, "l2.timeout", "100ms");
    for (size_t i = 0; i < 2; i++) {
        uint32_t first = fresh(), second = fresh();

        assert_int_equal(update(&a, 0, first), NEAR_OK);
        die_writing(w, ways[i], "l2.timeout", "100ms", second);
        assert_int_equal(near_fence(a.client, 5000), NEAR_OK);
        assert_int_equal(page->value[0], ways[i] == DIE_AFTER ? second : first);
        assert_fetch(a.cache, "key0", text_of(page->value[0]));
        assert_false(l2_has(&a, "key0")); /* for as long as the mark lives */
        assert_fetch(a.cache, "key0", text_of(page->value[0]));
        if (ways[i] == DIE_AFTER && w->tier == TIER_REDIS) {
            /* its time is 2 * (store.timeout + l2.timeout) + 1 s */
            assert_true(test_wait_for(is_fetched_into_l2, &a, 10000 * test_slack()));
            assert_fetch(a.cache, "key0", text_of(page->value[0]));
        } else {
            assert_int_equal(near_remove(a.cache, near_key("key0")), NEAR_OK);
        }
    }
    close_instance(&a);
}

static void
without_a_mark_that_leaves_the_old_value(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB();
    struct instance a;
    uint32_t        first = fresh(), second = fresh();

    NEEDS(w);
    if (TEST_UNDER_TSAN)
        skip();
    clear_page();
    OPEN_ON(w, &a, &db);
    assert_int_equal(update(&a, 0, first), NEAR_OK);
    die_writing(w, DIE_AFTER, "write.fast", "yes", second);
    assert_int_equal(page->value[0], second);
    assert_fetch(a.cache, "key0", text_of(first));
    close_instance(&a);
}

static int
l2_is_empty(void *ctx)
{
    return !l2_has(ctx, "key0");
}

static int
nothing_is_owed(void *ctx)
{
    return stats_of(ctx).invalidations_pending == 0;
}

/* ... until the next life of the writer's journal, if it has one. */
static void
an_intent_makes_that_good(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB(.how = DIE_AFTER);
    struct instance a, next;
    uint32_t        first = fresh(), second = fresh();
    char            journal[200];
    pid_t           pid;
    int             status;

    NEEDS(w);
    if (TEST_UNDER_TSAN)
        skip();
    clear_page();
    snprintf(journal, sizeof(journal), "%s/journal", w->redis->directory);
    OPEN_ON(w, &a, NULL);
    commit(0, first);
    assert_fetch(a.cache, "key0", text_of(first));
    pid = fork();
    if (pid == 0) {
        OPEN(w, &next, "write.fast", "yes", "write_back.journal", journal, "write_back.fsync", "none");
        near_cache_set_store(next.cache, store_fn, &db);
        update(&next, 0, second);
        _exit(1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(page->value[0], second);
    assert_fetch(a.cache, "key0", text_of(first)); /* stale */
    assert_true(l2_has(&a, "key0"));
    OPEN(w, &next, "write.fast", "yes", "write_back.journal", journal, "write_back.fsync", "none");
    assert_true(test_wait_for(l2_is_empty, &a, 10000 * test_slack()));
    await_fetch(a.cache, "key0", text_of(second));
    db.how = COMMIT;
    near_cache_set_store(next.cache, store_fn, &db);
    assert_int_equal(update(&next, 0, first), NEAR_OK); /* and its own intent ends with it */
    close_instance(&next);
    assert_fetch(a.cache, "key0", text_of(first));
    OPEN(w, &next, "write_back.journal", journal, "write_back.fsync", "none");
    assert_int_equal(stats_of(&next).invalidations_kept, 0);
    close_instance(&next);
    close_instance(&a);
}

/* The store answers when client and journal are closed: the cache that it keeps must not lead it to what is gone. */
static void
an_answer_after_the_close_finds_the_journal_closed(void **state)
{
    struct world   *w           = *state;
    struct db       db          = DB(.how = HANG);
    char            directory[] = "/tmp/test_update_XXXXXX", command[64];
    struct instance a;
    near_error      error;

    NEEDS(w);
    clear_page();
    assert_non_null(mkdtemp(directory));
    for (int around = 0; around < 2; around++) {
        OPEN(w, &a, "write.policy", around ? "around" : "through", "store.timeout", "20ms", "close.timeout",
             "50ms", "write_back.journal", directory, "write_back.fsync", "none");
        near_cache_set_store(a.cache, store_fn, &db);
        assert_int_equal(update(&a, 0, fresh()), NEAR_ERR_TIMEOUT);
        assert_int_equal(near_client_close(a.client, &error), NEAR_ERR_BUSY);
        near_write_done(db.held);
        /* nobody noted that it was answered: so its key is owed in the next life */
        OPEN(w, &a, "write_back.journal", directory, "write_back.fsync", "none");
        assert_int_equal(stats_of(&a).invalidations_kept, 1);
        assert_true(test_wait_for(nothing_is_owed, &a, 10000 * test_slack()));
        db.how = COMMIT; /* whose end looks at those that wait, too */
        near_cache_set_store(a.cache, store_fn, &db);
        assert_int_equal(update(&a, 1, fresh()), NEAR_OK);
        db.how = UNKNOWN; /* answered, with an outcome that is not known: that is no intent for ever */
        assert_int_equal(update(&a, 1, fresh()), NEAR_ERR_TIMEOUT);
        db.how = HANG;
        close_instance(&a);
        OPEN(w, &a, "write_back.journal", directory, "write_back.fsync", "none");
        assert_int_equal(stats_of(&a).invalidations_kept, 0);
        close_instance(&a);
    }
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    assert_int_equal(system(command), 0);
}

/* ---- L2 in trouble */

static void
l2_in_trouble_does_not_stop_the_store(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB();
    struct instance a, b;
    uint32_t        old = fresh(), number = fresh();

    NEEDS(w);
    clear_page();
    OPEN_ON(w, &a, &db);
    OPEN_ON(w, &b, NULL);
    assert_int_equal(update(&a, 0, old), NEAR_OK);
    assert_fetch(b.cache, "key0", text_of(old));
    test_server_pause(w->redis); /* it keeps what it has */
    assert_int_equal(update(&a, 0, number), NEAR_OK);
    assert_int_equal(page->value[0], number);
    assert_fetch(a.cache, "key0", text_of(number));
    test_server_resume(w->redis);
    await_fetch(b.cache, "key0", text_of(number));
    await_fetch(a.cache, "key0", text_of(number));
    assert_true(test_wait_for(is_fetched_into_l2, &b, 10000 * test_slack()));
    assert_fetch(b.cache, "key0", text_of(number));
    test_server_kill(w->redis);
    assert_int_equal(update(&a, 0, number = fresh()), NEAR_OK);
    assert_fetch(a.cache, "key0", text_of(number));
    assert_true(test_server_restart(w->redis));
    await_fetch(b.cache, "key0", text_of(number));
    near_client_close(a.client, NULL);
    close_instance(&b);
}

static void
or_does_if_told_so(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB();
    struct instance a;
    uint32_t        number = fresh();

    NEEDS(w);
    clear_page();
    open_on(w, &a, &db, "write.without_l2", "refuse");
    assert_int_equal(update(&a, 0, number), NEAR_OK);
    test_server_kill(w->redis);
    assert_int_equal(update(&a, 0, fresh()), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(db.calls, 1);
    assert_int_equal(page->value[0], number);
    assert_true(test_server_restart(w->redis));
    near_client_close(a.client, NULL);
}

/* ---- counters */

static near_status
add(const struct instance *in, const char *key, int64_t delta, int64_t initial, int64_t *result)
{
    return near_add(in->cache, near_key(key), delta, initial, result);
}

static void
a_counter_counts(void **state)
{
    struct world   *w = *state;
    struct instance a, b;
    int64_t         result = 0;

    NEEDS(w);
    OPEN_ON(w, &a, NULL);
    OPEN_ON(w, &b, NULL);
    assert_int_equal(add(&a, "n", 5, 100, &result), NEAR_OK);
    assert_int_equal(result, 100);
    assert_int_equal(add(&b, "n", 5, 100, &result), NEAR_OK);
    assert_int_equal(result, 105);
    await_get(a.cache, "n", "105");
    assert_int_equal(add(&b, "n", -206, 0, NULL), NEAR_OK);
    await_get(a.cache, "n", "-101"); /* not out of L1 */
    assert_int_equal(add(&a, "n", 0, 0, &result), NEAR_OK);
    assert_int_equal(result, -101);
    assert_int_equal(add(&a, "big", 0, INT64_MAX - 1, NULL), NEAR_OK);
    assert_int_equal(add(&a, "big", 1, 0, &result), NEAR_OK);
    assert_true(result == INT64_MAX);
    assert_int_equal(add(&a, "big", 1, 0, &result), NEAR_ERR_INVALID);
    assert_int_equal(add(&a, "big", 0, 0, &result), NEAR_OK);
    assert_true(result == INT64_MAX);
    assert_int_equal(add(&a, "low", 0, INT64_MIN, NULL), NEAR_OK);
    assert_int_equal(add(&a, "low", -1, 0, NULL), NEAR_ERR_INVALID);
    assert_int_equal(add(&a, "low", INT64_MAX, 0, &result), NEAR_OK);
    assert_int_equal(result, -1);
    assert_int_equal(near_put(a.cache, near_key("text"), near_key("7"), NULL), NEAR_OK);
    assert_int_equal(add(&a, "text", 1, 0, NULL),
                     NEAR_ERR_CONFLICT); /* a value of near_put()'s is no counter */
    assert_int_equal(near_remove(b.cache, near_key("text")), NEAR_OK);
    assert_int_equal(add(&a, "text", 1, 0, &result), NEAR_OK);
    assert_int_equal(result, 0);
    assert_int_equal(near_put(b.cache, near_key("n"), near_key("text"), NULL), NEAR_OK);
    await_get(a.cache, "n", "text");
    close_instance(&a);
    close_instance(&b);
}

/* What is known not to exist, and the lease of somebody who died, are in nobody's way. */
static void
a_counter_begins_over_what_is_no_value(void **state)
{
    struct world   *w = *state;
    struct instance a, b;
    int64_t         result = 1;

    NEEDS(w);
    clear_page();
    OPEN_ON(w, &a, NULL);
    OPEN_ON(w, &b, NULL);
    assert_int_equal(fetch(a.cache, "key1").status, NEAR_NOT_FOUND);
    assert_int_equal(fetch(b.cache, "key1").status, NEAR_NOT_FOUND);
    assert_int_equal(add(&a, "key1", 1, 41, &result), NEAR_OK);
    assert_int_equal(result, 41);
    await_fetch(b.cache, "key1", "41");
    assert_int_equal(add(&b, "key1", 1, 0, &result), NEAR_OK);
    assert_fetch(a.cache, "key1", "42");
    assert_int_equal(stats_of(&a).additions, 1);
    close_instance(&a);
    close_instance(&b);
}

static void
without_l2_there_are_no_counters(void **state)
{
    struct world   *w = *state;
    struct instance a;

    OPEN_ON(w, &a, NULL);
    assert_int_equal(add(&a, "n", 1, 1, NULL), NEAR_ERR_UNSUPPORTED);
    close_instance(&a);
}

/* ---- puts with a condition */

static near_status
put_if(const struct instance *in, const char *key, const char *text, unsigned flags,
       const near_value *unchanged)
{
    near_put_options options = NEAR_PUT_OPTIONS_INIT;

    options.flags     = flags;
    options.unchanged = unchanged;
    return near_put(in->cache, near_key(key), near_key(text), &options);
}

static void
a_put_if_absent_replaces_nothing(void **state)
{
    struct world   *w = *state;
    struct instance a, b;
    near_value     *value;

    NEEDS(w);
    clear_page();
    OPEN_ON(w, &a, NULL);
    OPEN_ON(w, &b, NULL);
    assert_int_equal(put_if(&a, "x", "1", NEAR_IF_ABSENT, NULL), NEAR_OK);
    assert_int_equal(put_if(&a, "x", "2", NEAR_IF_ABSENT, NULL), NEAR_ERR_CONFLICT);
    if (w->tier != TIER_NONE)
        assert_int_equal(put_if(&b, "x", "2", NEAR_IF_ABSENT, NULL), NEAR_ERR_CONFLICT);
    assert_int_equal(near_get(a.cache, near_key("x"), &value), NEAR_OK);
    assert_memory_equal(near_value_bytes(value).data, "1", 1);
    assert_int_equal(put_if(&a, "x", "2", NEAR_IF_ABSENT, value), NEAR_ERR_INVALID);
    near_value_release(value);
    assert_int_equal(near_remove(a.cache, near_key("x")), NEAR_OK);
    assert_int_equal(put_if(&b, "x", "3", NEAR_IF_ABSENT, NULL), NEAR_OK);
    assert_int_equal(near_clear(b.cache), NEAR_OK);
    assert_int_equal(put_if(&b, "x", "4", NEAR_IF_ABSENT, NULL), NEAR_OK); /* over what was cleared */
    assert_int_equal(fetch(b.cache, "key2").status, NEAR_NOT_FOUND);
    assert_int_equal(put_if(&b, "key2", "5", NEAR_IF_ABSENT, NULL), NEAR_OK); /* over what does not exist */
    await_get(b.cache, "key2", "5");
    if (w->tier != TIER_NONE)
        await_get(a.cache, "key2", "5");
    close_instance(&a);
    close_instance(&b);
}

/* Bytes of somebody else that have no version cannot be told from a winner of a moment later: they count as there. */
static void
foreign_bytes_are_in_the_way_of_conditions(void **state)
{
    static const char *const set[] = { "SET", "nc:things:raw", "abc" };
    struct world            *w     = *state;
    struct instance          a;
    char                     reply[32];

    NEEDS(w);
    OPEN_ON(w, &a, NULL);
    assert_true(test_redis_command(w->redis, reply, sizeof(reply), 3, set));
    assert_int_equal(put_if(&a, "raw", "1", NEAR_IF_ABSENT, NULL), NEAR_ERR_CONFLICT);
    assert_int_equal(add(&a, "raw", 1, 1, NULL), NEAR_ERR_CONFLICT);
    assert_int_equal(near_remove(a.cache, near_key("raw")), NEAR_OK);
    assert_int_equal(put_if(&a, "raw", "1", NEAR_IF_ABSENT, NULL), NEAR_OK);
    close_instance(&a);
}

static near_value *
held(const struct instance *in, const char *key, unsigned flags)
{
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value;

    options.flags = flags;
    assert_int_equal(near_get_with(in->cache, near_key(key), &options, &value), NEAR_OK);
    return value;
}

static void
a_put_if_unchanged_knows_its_version(void **state)
{
    struct world   *w = *state;
    struct instance a, b;
    near_value     *value, *same;

    NEEDS(w);
    clear_page();
    page->value[3] = fresh();
    OPEN_ON(w, &a, NULL);
    OPEN_ON(w, &b, NULL);
    /* of an own put, out of L1 */
    assert_int_equal(near_put(a.cache, near_key("x"), near_key("1"), NULL), NEAR_OK);
    value = held(&a, "x", NEAR_ONLY_L1);
    same  = held(&a, "x", 0);
    assert_int_equal(put_if(&a, "x", "2", 0, value), NEAR_OK);
    assert_int_equal(put_if(&a, "x", "3", 0, same), NEAR_ERR_CONFLICT);
    await_get(a.cache, "x", "2");
    near_value_release(value);
    near_value_release(same);
    /* of a loader */
    assert_int_equal(near_fetch(a.cache, near_key("key3"), NULL, &value), NEAR_OK);
    assert_int_equal(put_if(&a, "key3", "0", 0, value), NEAR_OK);
    assert_int_equal(put_if(&a, "key3", "0", 0, value), NEAR_ERR_CONFLICT);
    near_value_release(value);
    if (w->tier != TIER_NONE) {
        /* out of L2, put by another */
        value = held(&b, "x", NEAR_SKIP_L1);
        assert_int_equal(near_put(a.cache, near_key("x"), near_key("2"), NULL), NEAR_OK);
        assert_int_equal(put_if(&b, "x", "3", 0, value), NEAR_ERR_CONFLICT);
        near_value_release(value);
        value = held(&b, "x", NEAR_SKIP_L1);
        assert_int_equal(put_if(&b, "x", "3", 0, value), NEAR_OK);
        near_value_release(value);
        await_get(a.cache, "x", "3");
        /* of a counter */
        assert_int_equal(add(&a, "n", 1, 1, NULL), NEAR_OK);
        value = held(&a, "n", 0);
        assert_int_equal(put_if(&a, "n", "3", 0, value), NEAR_ERR_UNSUPPORTED);
        near_value_release(value);
    }
    value = held(&a, "x", 0);
    assert_int_equal(near_remove(a.cache, near_key("x")), NEAR_OK);
    assert_int_equal(put_if(&a, "x", "4", 0, value), NEAR_ERR_CONFLICT);
    near_value_release(value);
    close_instance(&a);
    close_instance(&b);
}

struct contender {
    pthread_t        thread;
    struct instance *in;
    size_t           rounds, won;
    bool             swaps;
};

/* With `swaps`: the value is a number, to be raised by one; else to be the first at each key. */
static void *
contend(void *ctx)
{
    struct contender *me = ctx;
    char              key[16], text[16];
    near_value       *value;

    for (size_t i = 0; i < me->rounds; i++) {
        snprintf(key, sizeof(key), me->swaps ? "swap" : "first%zu", i);
        if (!me->swaps) {
            me->won += put_if(me->in, key, "1", NEAR_IF_ABSENT, NULL) == NEAR_OK;
            continue;
        }
        if (near_get(me->in->cache, near_key(key), &value) != NEAR_OK)
            continue;
        snprintf(text, sizeof(text), "%u", number_of(near_value_bytes(value)) + 1);
        me->won += put_if(me->in, key, text, 0, value) == NEAR_OK;
        near_value_release(value);
    }
    return NULL;
}

#define CONTENDERS 6

static void
of_several_one_wins(void **state)
{
    struct world    *w      = *state;
    size_t           rounds = test_scale(60), won = 0;
    struct instance  in[2];
    struct contender all[CONTENDERS];

    NEEDS(w);
    for (size_t i = 0; i < 2; i++)
        OPEN(w, &in[i], "l2.timeout", "10s");
    assert_int_equal(near_put(in[0].cache, near_key("swap"), near_key("0"), NULL), NEAR_OK);
    for (int swaps = 0; swaps < 2; swaps++) {
        won = 0;
        for (size_t i = 0; i < CONTENDERS; i++) {
            all[i] = (struct contender){ .in = &in[i % 2], .rounds = rounds, .swaps = swaps };
            pthread_create(&all[i].thread, NULL, contend, &all[i]);
        }
        for (size_t i = 0; i < CONTENDERS; i++) {
            pthread_join(all[i].thread, NULL);
            won += all[i].won;
        }
        if (!swaps)
            assert_int_equal(won, rounds);
    }
    assert_true(won > 0);
    {
        near_value *value = held(&in[0], "swap", NEAR_SKIP_L1);

        assert_int_equal(number_of(near_value_bytes(value)), won);
        near_value_release(value);
    }
    close_instance(&in[0]);
    close_instance(&in[1]);
}

/* ---- counters, many at once */

struct adder {
    pthread_t        thread;
    struct instance *in;
    size_t           rounds;
    size_t           failed;
};

static void *
add_often(void *ctx)
{
    struct adder *adder = ctx;

    for (size_t i = 0; i < adder->rounds; i++)
        adder->failed += add(adder->in, "sum", 1, 1, NULL) != NEAR_OK;
    return NULL;
}

#define ADDERS 16

static size_t
add_from_threads(struct instance *in, size_t rounds)
{
    struct adder adders[ADDERS];
    size_t       failed = 0;

    for (size_t i = 0; i < ADDERS; i++) {
        adders[i] = (struct adder){ .in = in, .rounds = rounds };
        pthread_create(&adders[i].thread, NULL, add_often, &adders[i]);
    }
    for (size_t i = 0; i < ADDERS; i++) {
        pthread_join(adders[i].thread, NULL);
        failed += adders[i].failed;
    }
    return failed;
}

static void
no_addition_is_lost(void **state)
{
    struct world   *w      = *state;
    size_t          rounds = test_scale(w->tier == TIER_REDIS ? 100 : 20);
    struct instance in;
    int64_t         result;
    int             status = 0;
    pid_t           pid    = 0;

    NEEDS(w);
    if (!TEST_UNDER_TSAN && (pid = fork()) == 0) {
        OPEN(w, &in, "l2.timeout", "10s");
        _exit(add_from_threads(&in, rounds) != 0);
    }
    OPEN(w, &in, "l2.timeout", "10s");
    assert_int_equal(add_from_threads(&in, rounds), 0);
    if (pid != 0)
        waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    assert_int_equal(add(&in, "sum", 0, 0, &result), NEAR_OK);
    assert_int_equal(result, ADDERS * rounds * (pid != 0 ? 2 : 1));
    close_instance(&in);
}

WORLD(none, TIER_NONE)
WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(memcached, TIER_MEMCACHED_BUS)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER(none, an_update_is_in_the_store_and_in_both_tiers),
        OVER(memory, an_update_is_in_the_store_and_in_both_tiers),
        OVER(redis, an_update_is_in_the_store_and_in_both_tiers),
        OVER(memcached, an_update_is_in_the_store_and_in_both_tiers),
        OVER(memory, around_and_fast_leave_nothing_in_l2),
        OVER(redis, around_and_fast_leave_nothing_in_l2),
        OVER(none, what_the_store_refuses_changes_nothing),
        OVER(redis, what_the_store_refuses_changes_nothing),
        OVER(memcached, what_the_store_refuses_changes_nothing),
        OVER(none, a_late_answer_is_made_good),
        OVER(memory, a_late_answer_is_made_good),
        OVER(memory, an_answer_after_the_close_finds_the_journal_closed),
        OVER(redis, an_answer_after_the_close_finds_the_journal_closed),
        OVER(redis, a_late_answer_is_made_good),
        OVER(memcached, a_late_answer_is_made_good),
        OVER(memory, a_store_that_never_answers_is_reported_at_the_close),
        OVER(memory, readers_load_and_keep_nothing_meanwhile),
        OVER(redis, readers_load_and_keep_nothing_meanwhile),
        OVER(memcached, readers_load_and_keep_nothing_meanwhile),
        OVER(memory, a_lost_mark_is_noticed),
        OVER(redis, a_lost_mark_is_noticed),
        OVER(memcached, a_lost_mark_is_noticed),
        OVER(memory, two_writers_leave_nothing_old),
        OVER(redis, two_writers_leave_nothing_old),
        OVER(memcached, two_writers_leave_nothing_old),
        OVER(memory, no_read_is_older_than_an_acknowledged_update),
        OVER(redis, no_read_is_older_than_an_acknowledged_update),
        OVER(memcached, no_read_is_older_than_an_acknowledged_update),
        OVER(redis, the_checker_sees_what_store_then_put_does),
        OVER(redis, a_writer_may_die_in_the_store),
        OVER(memcached, a_writer_may_die_in_the_store),
        OVER(redis, without_a_mark_that_leaves_the_old_value),
        OVER(redis, a_hedge_keeps_nothing_that_is_being_written),
        OVER(memcached, a_hedge_keeps_nothing_that_is_being_written),
        OVER(redis, control_a_hedge_that_keeps_at_once_is_stale),
        OVER(redis, an_intent_makes_that_good),
        OVER(redis, l2_in_trouble_does_not_stop_the_store),
        OVER(redis, or_does_if_told_so),
        OVER(memory, a_counter_counts),
        OVER(redis, a_counter_counts),
        OVER(memcached, a_counter_counts),
        OVER(memory, a_counter_begins_over_what_is_no_value),
        OVER(redis, a_counter_begins_over_what_is_no_value),
        OVER(memcached, a_counter_begins_over_what_is_no_value),
        OVER(none, without_l2_there_are_no_counters),
        OVER(none, a_put_if_absent_replaces_nothing),
        OVER(memory, a_put_if_absent_replaces_nothing),
        OVER(redis, a_put_if_absent_replaces_nothing),
        OVER(memcached, a_put_if_absent_replaces_nothing),
        OVER(redis, foreign_bytes_are_in_the_way_of_conditions),
        OVER(none, a_put_if_unchanged_knows_its_version),
        OVER(memory, a_put_if_unchanged_knows_its_version),
        OVER(redis, a_put_if_unchanged_knows_its_version),
        OVER(memcached, a_put_if_unchanged_knows_its_version),
        OVER(memory, of_several_one_wins),
        OVER(redis, of_several_one_wins),
        OVER(memcached, of_several_one_wins),
        OVER(redis, no_addition_is_lost),
        OVER(memcached, no_addition_is_lost),
    };

    return TEST_MAIN(tests, setup, teardown);
}
