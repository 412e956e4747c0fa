/*
 * Writing through to a store: near_update, near_erase with policies through and around, over each kind of L2.
 *
 * The store is a page that all processes share: per key the number of its value, 0 for none.  Values are the numbers in decimal, each
 * written once; the page remembers in which order they were committed.  Writers die inside the store, before it commits or after.  The
 * controls write without marks, and must leave something stale.
 */
#include "world.h"

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

static void
readers_load_and_keep_nothing_meanwhile(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB();
    struct instance a, b;
    uint32_t        old = fresh(), number = fresh();
    struct writer   writer = { .in = &a, .number = number };
    pthread_t       thread;

    NEEDS(w);
    clear_page();
    open_on(w, &a, &db, "store.timeout", "60s");
    OPEN_ON(w, &b, NULL);
    assert_int_equal(update(&a, 0, old), NEAR_OK);
    assert_fetch(b.cache, "key0", text_of(old)); /* and b keeps it */
    begin_held(&writer, &db, &thread);
    if (near_fence(b.client, 5000) == NEAR_OK) {
        assert_fetch(b.cache, "key0", text_of(old));
        assert_int_equal(fetch(b.cache, "key0").info.source, NEAR_FROM_LOADER);
        assert_int_equal(fetch(b.cache, "key0").info.source, NEAR_FROM_LOADER);
    }
    assert_int_equal(fetch(a.cache, "key0").info.source, NEAR_FROM_LOADER);
    assert_false(l2_has(&b, "key0"));
    assert_int_equal(near_expire(b.cache, near_key("key0")), NEAR_OK); /* leaves the mark alone */
    assert_int_equal(fetch(b.cache, "key0").info.source, NEAR_FROM_LOADER);
    assert_int_equal(fetch(b.cache, "key0").info.source, NEAR_FROM_LOADER);
    release(&db, true, 0, number);
    pthread_join(thread, NULL);
    assert_int_equal(writer.status, NEAR_OK);
    await_fetch(b.cache, "key0", text_of(number));
    assert_fetch(a.cache, "key0", text_of(number));
    close_instance(&a);
    close_instance(&b);
}

/* A mark is evicted, an older value loaded in between: the writer finds it and takes it away. */
static void
a_lost_mark_is_noticed(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB();
    struct instance a, b;
    uint32_t        old = fresh(), number = fresh();
    struct writer   writer = { .in = &a, .number = number };
    pthread_t       thread;

    NEEDS(w);
    clear_page();
    open_on(w, &a, &db, "store.timeout", "60s");
    OPEN_ON(w, &b, NULL);
    assert_int_equal(update(&a, 0, old), NEAR_OK);
    begin_held(&writer, &db, &thread);
    assert_int_equal(near_remove(b.cache, near_key("key0")), NEAR_OK);
    assert_fetch(b.cache, "key0", text_of(old));
    assert_true(l2_has(&b, "key0"));
    release(&db, true, 0, number);
    pthread_join(thread, NULL);
    assert_int_equal(writer.status, NEAR_OK);
    assert_fetch(a.cache, "key0", text_of(number));
    await_fetch(b.cache, "key0", text_of(number));
    assert_int_equal(stats_of(&a).marks_met, 1);
    close_instance(&a);
    close_instance(&b);
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
        /* its time is 2 * (store.timeout + l2.timeout) + 1 s, or what a memcached keeps */
        assert_true(test_wait_for(is_fetched_into_l2, &a, 10000 * test_slack()));
        assert_fetch(a.cache, "key0", text_of(page->value[0]));
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

/* ---- L2 in trouble */

static void
without_l2_the_store_is_not_asked(void **state)
{
    struct world   *w  = *state;
    struct db       db = DB();
    struct instance a;
    uint32_t        number = fresh();

    NEEDS(w);
    clear_page();
    open_on(w, &a, &db, "close.timeout", "1s");
    assert_int_equal(update(&a, 0, number), NEAR_OK);
    test_server_kill(w->redis);
    assert_int_equal(update(&a, 0, fresh()), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(db.calls, 1);
    assert_int_equal(page->value[0], number);
    assert_true(test_server_restart(w->redis));
    near_client_close(a.client, NULL);
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
        OVER(redis, without_l2_the_store_is_not_asked),
    };

    return TEST_MAIN(tests, setup, teardown);
}
