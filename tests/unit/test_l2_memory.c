/* The memory: backend from inside: who shares what, what the bound on bytes does, and that nothing outlives
 * its last owner.  What it has in common with the others is in tests/integration/test_l2_contract.c. */
#include "harness/test.h"

#include "base/le.h"
#include "l2/backend.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB   ((size_t)1 << 20)
#define BOUND (256 * MIB)

struct client {
    struct near__uri      uri;
    struct near_l2_env    env;
    struct near_l2_traits traits;
    void                 *self;
};

static struct test_clock clock_;

static void
open_client(struct client *c, const char *uri)
{
    memset(c, 0, sizeof(*c));
    assert_int_equal(near__uri_parse(&c->uri, "l2.uri", uri, NULL), NEAR_OK);
    c->env.uri        = &c->uri;
    c->env.clock      = &clock_.clock;
    c->env.max_stored = 8 * MIB;
    assert_int_equal(near__l2_memory.open(&c->self, &c->env, &c->traits, NULL), NEAR_OK);
}

static void
close_client(struct client *c)
{
    near__l2_memory.close(c->self);
    near__l2_memory.stop(c->self);
    near__l2_memory.fini(c->self);
    c->self = NULL;
}

static void
note(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    (void)item;
    *(near_bytes *)ctx = stored; /* looked at while the entry cannot go */
}

static enum near_l2_answer
get(struct client *c, const char *key)
{
    struct near_l2_item item = { .key = { key, strlen(key) } };
    near_bytes          stored;

    near__l2_memory.get_many(c->self, &item, 1, note, &stored, NEAR_NEVER);
    return item.answer;
}

static enum near_l2_answer
set(struct client *c, const char *key, near_bytes value, int64_t ttl_ms)
{
    struct near_l2_item item = { .key = { key, strlen(key) }, .value = value, .ttl_ms = ttl_ms };

    near__l2_memory.set_many(c->self, NEAR_L2_ALWAYS, &item, 1, NULL, NEAR_NEVER);
    return item.answer;
}

static void
held(struct client *c, size_t *entries, size_t *bytes)
{
    char text[160];

    assert_int_equal(near__l2_memory.health(c->self, text, sizeof(text), NEAR_NEVER, NULL), NEAR_OK);
    assert_int_equal(sscanf(strchr(text, ',') + 1, "%zu entries, %zu of", entries, bytes), 2);
}

static int
setup(void **state)
{
    (void)state;
    test_clock_init(&clock_, 1000 * NEAR_MS);
    return 0;
}

static void
test_a_name_is_shared_and_no_name_is_not(void **state)
{
    struct client a, b, other, alone, alone2;

    (void)state;
    open_client(&a, "memory:shared");
    open_client(&b, "memory:shared");
    open_client(&other, "memory:other");
    open_client(&alone, "memory:");
    open_client(&alone2, "memory:");
    assert_true(a.traits.shared);
    assert_false(alone.traits.shared);
    assert_int_equal(set(&a, "k", (near_bytes){ "v", 1 }, 0), NEAR_L2_DONE);
    assert_int_equal(set(&alone, "p", (near_bytes){ "v", 1 }, 0), NEAR_L2_DONE);
    assert_int_equal(get(&b, "k"), NEAR_L2_DONE);
    assert_int_equal(get(&other, "k"), NEAR_L2_ABSENT);
    assert_int_equal(get(&alone, "k"), NEAR_L2_ABSENT);
    assert_int_equal(get(&alone2, "p"), NEAR_L2_ABSENT);
    close_client(&a);
    assert_int_equal(get(&b, "k"), NEAR_L2_DONE); /* lives as long as its last client */
    close_client(&b);
    open_client(&a, "memory:shared");
    assert_int_equal(get(&a, "k"), NEAR_L2_ABSENT);
    close_client(&a);
    close_client(&other);
    close_client(&alone);
    close_client(&alone2);
}

static void
test_bytes_are_bounded_and_the_least_used_go_first(void **state)
{
    struct client c;
    char         *large = calloc(1, MIB), key[16];
    size_t        entries, bytes;

    (void)state;
    assert_non_null(large);
    open_client(&c, "memory:");
    for (unsigned i = 0; i < 300; i++) {
        snprintf(key, sizeof(key), "%u", i);
        assert_int_equal(set(&c, key, (near_bytes){ large, MIB }, 0), NEAR_L2_DONE);
        assert_int_equal(get(&c, "0"), NEAR_L2_DONE); /* always in use */
    }
    held(&c, &entries, &bytes);
    assert_true(bytes <= BOUND);
    assert_int_equal(entries, 255); /* of a MiB and a little each */
    assert_int_equal(get(&c, "1"), NEAR_L2_ABSENT);
    assert_int_equal(get(&c, "45"), NEAR_L2_ABSENT);
    assert_int_equal(get(&c, "46"), NEAR_L2_DONE);
    assert_int_equal(get(&c, "299"), NEAR_L2_DONE);
    close_client(&c);
    free(large);
}

static void
test_bytes_go_back_to_nothing(void **state)
{
    struct client c;
    char          key[16];
    size_t        entries, bytes;

    (void)state;
    open_client(&c, "memory:");
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 5000; i++) { /* the table grows on the way */
            struct near_l2_item item = { .value = { "0123456789abcdef", i % 17 } };
            item.key.data            = key;
            item.key.size            = (size_t)snprintf(key, sizeof(key), "%u", i);
            item.ttl_ms              = round == 2 ? 10 : 0;
            near__l2_memory.set_many(c.self, NEAR_L2_ALWAYS, &item, 1, NULL, NEAR_NEVER);
            assert_int_equal(item.answer, NEAR_L2_DONE);
        }
        held(&c, &entries, &bytes);
        assert_int_equal(entries, 5000);
        test_clock_advance(&clock_, 11);
        for (unsigned i = 0; i < 5000; i++) {
            struct near_l2_item item = { .key = { key, 0 } };
            item.key.size            = (size_t)snprintf(key, sizeof(key), "%u", i);
            if (round < 2)
                near__l2_memory.remove_many(c.self, NEAR_L2_ALWAYS, &item, 1, NULL, NEAR_NEVER);
            else
                assert_int_equal(get(&c, key), NEAR_L2_ABSENT); /* expired: removed when it is looked for */
        }
        held(&c, &entries, &bytes);
        assert_int_equal(entries, 0);
        assert_int_equal(bytes, 0);
    }
    close_client(&c);
}

static void
test_ttl_ends_on_its_nanosecond(void **state)
{
    struct client c;

    (void)state;
    open_client(&c, "memory:");
    assert_int_equal(set(&c, "k", (near_bytes){ "v", 1 }, 10), NEAR_L2_DONE);
    test_clock_advance(&clock_, 9);
    assert_int_equal(get(&c, "k"), NEAR_L2_DONE);
    test_clock_advance(&clock_, 1);
    assert_int_equal(get(&c, "k"), NEAR_L2_ABSENT);
    assert_int_equal(set(&c, "k", (near_bytes){ "v", 1 }, 0), NEAR_L2_DONE);
    assert_int_equal(set(&c, "k", (near_bytes){ "v", 1 }, -1), NEAR_L2_DONE);
    assert_int_equal(get(&c, "k"), NEAR_L2_ABSENT); /* below 0: gone at once */
    assert_int_equal(set(&c, "k", (near_bytes){ "v", 1 }, INT64_MAX), NEAR_L2_DONE);
    test_clock_advance(&clock_, INT64_C(1) << 40);
    assert_int_equal(get(&c, "k"), NEAR_L2_DONE);
    close_client(&c);
}

static void
test_impossible_calls_are_refused(void **state)
{
    struct client       c;
    struct near_l2_item items[NEAR_L2_READS + 1];
    near_error          error = { 0 };
    near_bytes          stored;
    void               *none;

    (void)state;
    open_client(&c, "memory:");
    memset(items, 0, sizeof(items));
    for (size_t i = 0; i < NEAR_COUNT_OF(items); i++)
        items[i].key = (near_bytes){ "k", 1 };
    near__l2_memory.set_many(c.self, NEAR_L2_ALWAYS, items, NEAR_L2_BATCH + 1, NULL, NEAR_NEVER);
    assert_int_equal(items[NEAR_L2_BATCH].status, NEAR_ERR_INVALID);
    near__l2_memory.get_many(c.self, items, NEAR_L2_READS + 1, note, &stored, NEAR_NEVER);
    assert_int_equal(items[0].status, NEAR_ERR_INVALID);
    near__l2_memory.remove_many(c.self, NEAR_L2_IF_ABSENT, items, 1, NULL, NEAR_NEVER);
    assert_int_equal(items[0].status, NEAR_ERR_INVALID);
    c.env.max_stored = 0;
    assert_int_equal(near__l2_memory.open(&none, &c.env, &c.traits, &error), NEAR_ERR_INVALID);
    assert_null(none);
    close_client(&c);
}

static void
test_trait_max_value_is_what_is_taken(void **state)
{
    struct client         c;
    struct near_l2_traits traits;
    void                 *other;

    (void)state;
    open_client(&c, "memory:");
    assert_int_equal(c.traits.max_value, 8 * MIB);
    c.env.max_stored = BOUND;
    assert_int_equal(near__l2_memory.open(&other, &c.env, &traits, NULL), NEAR_OK);
    assert_int_equal(traits.max_value, BOUND / 2);
    near__l2_memory.fini(other);
    close_client(&c);
}

/* The lock is not held while a value is delivered: what is delivered may write and remove, and stays as it
 * was. */
static void
rewrite(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct client      *c     = ctx;
    struct near_l2_item again = { .key = item->key, .value = { "new", 3 } };

    near__l2_memory.set_many(c->self, NEAR_L2_ALWAYS, &again, 1, NULL, NEAR_NEVER);
    assert_int_equal(again.answer, NEAR_L2_DONE);
    near__l2_memory.remove_many(c->self, NEAR_L2_ALWAYS, &again, 1, NULL, NEAR_NEVER);
    assert_int_equal(again.answer, NEAR_L2_DONE);
    assert_int_equal(stored.size, 3);
    assert_memory_equal(stored.data, "old", 3);
}

static void
test_no_lock_is_held_while_delivering(void **state)
{
    struct client       c;
    struct near_l2_item item = { .key = { "k", 1 } };

    (void)state;
    open_client(&c, "memory:");
    assert_int_equal(set(&c, "k", (near_bytes){ "old", 3 }, 0), NEAR_L2_DONE);
    near__l2_memory.get_many(c.self, &item, 1, rewrite, &c, NEAR_NEVER);
    assert_int_equal(item.answer, NEAR_L2_DONE);
    assert_int_equal(get(&c, "k"), NEAR_L2_ABSENT);
    close_client(&c);
}

/* --------------------------------------------------------------------------------------- several threads */

struct worker {
    pthread_t thread;
    unsigned  number, wrong;
};

static void
check_whole(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    const char *at = stored.data;

    (void)item;
    for (size_t i = 1; i < stored.size; i++) /* every value is one letter, many times */
        *(unsigned *)ctx += at[i] != at[0];
}

/* Clients come and go while others write the same few keys: values are whole, the store is one. */
static void *
come_and_go(void *ctx)
{
    struct worker     *me = ctx;
    struct near__uri   uri;
    struct near_l2_env env = { .uri = &uri, .clock = &near__clock_system, .max_stored = MIB };
    char               value[500];

    near__uri_parse(&uri, "l2.uri", "memory:crowd", NULL);
    memset(value, 'a' + (int)me->number, sizeof(value));
    for (size_t round = 0; round < test_scale(200); round++) {
        struct near_l2_traits traits;
        void                 *self;
        if (near__l2_memory.open(&self, &env, &traits, NULL) != NEAR_OK) {
            me->wrong++;
            continue;
        }
        for (unsigned i = 0; i < 20; i++) {
            char                key  = (char)('k' + i % 4);
            struct near_l2_item item = { .key = { &key, 1 }, .value = { value, 16 + i * 20 } };
            near__l2_memory.set_many(self, NEAR_L2_ALWAYS, &item, 1, NULL, NEAR_NEVER);
            near__l2_memory.get_many(self, &item, 1, check_whole, &me->wrong, NEAR_NEVER);
            if (i % 5 == 0)
                near__l2_memory.remove_many(self, NEAR_L2_ALWAYS, &item, 1, NULL, NEAR_NEVER);
        }
        near__l2_memory.fini(self);
    }
    return NULL;
}

static void
test_clients_come_and_go_on_many_threads(void **state)
{
    struct worker workers[6] = { 0 };

    (void)state;
    for (unsigned i = 0; i < 6; i++) {
        workers[i].number = i;
        assert_int_equal(pthread_create(&workers[i].thread, NULL, come_and_go, &workers[i]), 0);
    }
    for (unsigned i = 0; i < 6; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].wrong, 0);
    }
}

struct churn {
    atomic_bool   stop;
    struct client client;
};

static void *
keep_locking(void *ctx)
{
    struct churn *c = ctx;

    while (!atomic_load(&c->stop)) {
        struct client other;
        open_client(&other, "memory:forked");
        set(&other, "k", (near_bytes){ "v", 1 }, 0);
        close_client(&other);
    }
    return NULL;
}

/* P3: the locks may be held in the moment of the fork.  A child frees what it inherited and opens its own,
 * and never waits. */
static void
test_P3_child_never_waits_for_an_inherited_lock(void **state)
{
    struct churn churn = { .stop = false };
    pthread_t    thread;

    (void)state;
    open_client(&churn.client, "memory:forked");
    assert_int_equal(pthread_create(&thread, NULL, keep_locking, &churn), 0);
    for (size_t round = 0; round < test_scale(100); round++) {
        int   status = -1;
        pid_t child  = fork();
        if (child == 0) {
            struct client own;
            alarm(20); /* a child that waits is killed and seen */
            near__l2_memory.forked(churn.client.self);
            near__l2_memory.fini(churn.client.self);
            open_client(&own, "memory:forked");
            status = get(&own, "k") == NEAR_L2_ABSENT ? 0 : 1;
            close_client(&own);
            _exit(status);
        }
        assert_true(child > 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
    }
    atomic_store(&churn.stop, true);
    pthread_join(thread, NULL);
    close_client(&churn.client);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_a_name_is_shared_and_no_name_is_not, setup),
        cmocka_unit_test_setup(test_bytes_are_bounded_and_the_least_used_go_first, setup),
        cmocka_unit_test_setup(test_bytes_go_back_to_nothing, setup),
        cmocka_unit_test_setup(test_ttl_ends_on_its_nanosecond, setup),
        cmocka_unit_test_setup(test_impossible_calls_are_refused, setup),
        cmocka_unit_test_setup(test_trait_max_value_is_what_is_taken, setup),
        cmocka_unit_test_setup(test_no_lock_is_held_while_delivering, setup),
        cmocka_unit_test_setup(test_clients_come_and_go_on_many_threads, setup),
        cmocka_unit_test_setup(test_P3_child_never_waits_for_an_inherited_lock, setup),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
