/*
 * The Redis Cluster backend, against servers that say what a script wants and against a real cluster of three primaries and three
 * replicas: redirects, resharding of all slots under load, primaries killed under load.  The list of what every backend must do runs in
 * tests/integration/test_l2_contract.
 *
 * In `make check` each row is short.  Under `make check-long` and `make soak` (NEAR_TEST_LEVEL) the rows with load go on for their share of
 * NEAR_TEST_SECONDS and say how far they came.
 */
#include "harness/long.h"
#include "harness/test.h"

#include "base/le.h"
#include "harness/cluster.h"
#include "harness/script.h"
#include "l2/backend.h"
#include "l2/redis_slots.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define MAX_STORED ((size_t)1 << 20)
/* Six servers that mend themselves after a kill.  Where the processors are busy they miss each other's pings, and begin anew. */
#define WELL_MS (60000 * (int64_t)test_slack())
#define MEND_MS (1000 * (int64_t)test_slack()) /* before they are helped */
/* ms of silence after which a node is taken for dead: so much that nobody is because he has to wait for a processor; and less while a
 * primary is killed, to be replaced after two to three seconds. */
#define NODE_TIMEOUT 15000
#define KILL_TIMEOUT 1000

/* When a row with load ends: at once in `make check`, else after its share of the time. */
static int64_t
row_end(void)
{
    int64_t now = test_now_ms();

    return test_level() == TEST_CHECK ? now : now + (test_budget_ends() - now) / 3;
}

/* ---------------------------------------------------------------------------------------------- a backend */

struct backend {
    struct near__uri          uri;
    struct near_l2_env        env;
    struct near_l2_traits     traits;
    const struct near_l2_ops *ops;
    void                     *self;
};

static struct backend backend; /* of the test that runs */

static void
open_backend(struct backend *b, const char *uri)
{
    near_error error = { .text = "" };

    memset(b, 0, sizeof(*b));
    assert_int_equal(near__uri_parse(&b->uri, "l2.uri", uri, &error), NEAR_OK);
    b->ops = near__l2_backend_named(b->uri.scheme);
    assert_non_null(b->ops);
    b->env = (struct near_l2_env){ .uri             = &b->uri,
                                   .clock           = &near__clock_system,
                                   .connect_timeout = 1000 * NEAR_MS,
                                   .pool_size       = 4,
                                   .max_stored      = MAX_STORED,
                                   .client_name     = "test" };
    if (b->ops->open(&b->self, &b->env, &b->traits, &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

static void
close_backend(struct backend *b)
{
    if (b->self == NULL)
        return;
    b->ops->close(b->self);
    b->ops->stop(b->self);
    b->ops->fini(b->self);
    b->self = NULL;
}

static int64_t
in_ms(int64_t ms)
{
    return near__now(&near__clock_system) + ms * NEAR_MS;
}

struct text {
    char   at[128];
    size_t size;
};

/* `user` of an item is a struct text, or NULL. */
static void
keep_text(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct text *text = item->user;

    (void)ctx;
    if (text == NULL)
        return;
    text->size = stored.size < sizeof(text->at) - 1 ? stored.size : sizeof(text->at) - 1;
    memcpy(text->at, stored.data, text->size);
    text->at[text->size] = '\0';
}

static struct near_l2_item
get_key(const char *key, struct text *text, int64_t ms)
{
    struct near_l2_item item = { .key = near_key(key), .user = text };

    text->at[0] = '\0';
    text->size  = 0;
    backend.ops->get_many(backend.self, &item, 1, keep_text, NULL, in_ms(ms));
    return item;
}

static struct near_l2_item
set_key(enum near_l2_mode mode, const char *key, const char *value, int64_t ms)
{
    struct near_l2_item item = { .key = near_key(key), .value = near_key(value), .expected = 1 };

    backend.ops->set_many(backend.self, mode, &item, 1, NULL, in_ms(ms));
    return item;
}

static struct near_l2_item
remove_key(const char *key, int64_t ms)
{
    struct near_l2_item item = { .key = near_key(key) };

    backend.ops->remove_many(backend.self, NEAR_L2_ALWAYS, &item, 1, NULL, in_ms(ms));
    return item;
}

/* -------------------------------------------------------------------------------------- servers of a script
 *
 * Two nodes.  The map, which both hand out unless told otherwise, gives all slots to node 0.  What a node says to a command on keys is the
 * test's. */

struct stage {
    struct test_script node[2];
    int                number[2]; /* of each node: a script's ctx points to its own */
    int                port[2];
    /* what a node says to a command on a key; `turn` counts those of this node from 0 on */
    enum test_script_verdict (*act)(int node, int turn, bool asking, size_t argc, const near_bytes *argv,
                                    char *out, size_t size);
    const char *slots; /* what is said to CLUSTER SLOTS; NULL: the map */
    atomic_int  turns[2], maps, askings;
    bool        asked[2][4096]; /* by connection: ASKING was the last command.  The nodes' threads' own */
};

static struct stage stage;

static void
say_map(char *out, size_t size, int owner)
{
    snprintf(out, size, "*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:%d\r\n$2\r\nid\r\n",
             stage.port[owner]);
}

static enum test_script_verdict
play(struct test_script *script, unsigned conn, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    int  node   = *(int *)script->ctx;
    bool asking = stage.asked[node][conn % 4096];

    stage.asked[node][conn % 4096] = false;
    if (test_script_is(argv, argc, 0, "CLUSTER")) {
        atomic_fetch_add(&stage.maps, 1);
        if (stage.slots != NULL)
            snprintf(out, size, "%s", stage.slots);
        else
            say_map(out, size, 0);
        return TEST_SCRIPT_SAY;
    }
    if (test_script_is(argv, argc, 0, "ASKING")) {
        atomic_fetch_add(&stage.askings, 1);
        stage.asked[node][conn % 4096] = true;
        snprintf(out, size, "+OK\r\n");
        return TEST_SCRIPT_SAY;
    }
    return stage.act(node, atomic_fetch_add(&stage.turns[node], 1), asking, argc, argv, out, size);
}

static void
set_stage(enum test_script_verdict (*act)(int node, int turn, bool asking, size_t argc,
                                          const near_bytes *argv, char *out, size_t size),
          const char *slots)
{
    char uri[96];

    memset(&stage, 0, sizeof(stage));
    stage.act   = act;
    stage.slots = slots;
    for (int i = 0; i < 2; i++) {
        stage.number[i] = i;
        assert_true(test_script_start(&stage.node[i], play, &stage.number[i]));
        stage.port[i] = stage.node[i].port;
    }
    snprintf(uri, sizeof(uri), "redis-cluster://127.0.0.1:%d,127.0.0.1:%d", stage.node[0].port,
             stage.node[1].port);
    open_backend(&backend, uri);
}

static int
clear_stage(void **state)
{
    (void)state;
    close_backend(&backend);
    for (int i = 0; i < 2; i++)
        test_script_stop(&stage.node[i]);
    return 0;
}

static int
turns(int node)
{
    return atomic_load(&stage.turns[node]);
}

static enum test_script_verdict
say_value(int node, char *out, size_t size)
{
    snprintf(out, size, "$5\r\nnode%d\r\n", node);
    return TEST_SCRIPT_SAY;
}

static enum test_script_verdict
say_moved(const char *kind, size_t argc, const near_bytes *argv, int to, char *out, size_t size)
{
    size_t key = test_script_is(argv, argc, 0, "EVALSHA") || test_script_is(argv, argc, 0, "EVAL") ? 3 : 1;

    snprintf(out, size, "-%s %u 127.0.0.1:%d\r\n", kind, near__slot_of(argv[key]), stage.port[to]);
    return TEST_SCRIPT_SAY;
}

static enum test_script_verdict
say_words(const char *words, char *out, size_t size)
{
    snprintf(out, size, "%s\r\n", words);
    return TEST_SCRIPT_SAY;
}

/* ---- MOVED */

static enum test_script_verdict
all_moved_to_1(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)turn, (void)asking;
    return node == 0 ? say_moved("MOVED", argc, argv, 1, out, size) : say_value(node, out, size);
}

static void
C3_moved_mends_its_slot_at_once(void **state)
{
    struct text text;

    (void)state;
    set_stage(all_moved_to_1, NULL); /* the map stays wrong: only the slot is right */
    assert_int_equal(get_key("a", &text, 1000).answer, NEAR_L2_DONE);
    assert_string_equal(text.at, "node1");
    assert_int_equal(turns(0), 1);
    assert_int_equal(turns(1), 1);
    assert_int_equal(get_key("a", &text, 1000).answer, NEAR_L2_DONE);
    assert_int_equal(turns(0), 1); /* node 0 was not asked again */
    assert_int_equal(turns(1), 2);
    assert_int_equal(get_key("b", &text, 1000).answer, NEAR_L2_DONE);
    assert_int_equal(turns(0), 2); /* another slot */
}

static enum test_script_verdict
back_and_forth(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)turn, (void)asking;
    return say_moved("MOVED", argc, argv, 1 - node, out, size);
}

static void
C3_endless_redirects_end(void **state)
{
    struct near_l2_item item;
    struct text         text;
    int64_t             begun = test_now_ms();

    (void)state;
    set_stage(back_and_forth, NULL);
    item = get_key("a", &text, 5000);
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_UNAVAILABLE);
    assert_true(turns(0) + turns(1) <= 6); /* itself and five redirects */
    assert_true(test_now_ms() - begun < 2000 * test_slack());
}

static enum test_script_verdict
moved_to_itself(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)asking;
    if (node == 0 && turn < 5)
        return say_moved("MOVED", argc, argv, 0, out, size);
    return say_value(node, out, size);
}

static void
R1_moved_to_itself_is_paced_and_ends_well(void **state)
{
    struct text text;
    int64_t     begun = test_now_ms();

    (void)state;
    set_stage(moved_to_itself, NULL);
    assert_int_equal(get_key("a", &text, 5000).answer, NEAR_L2_DONE);
    assert_int_equal(turns(0), 6);
    assert_true(test_now_ms() - begun >= 5); /* there were pauses */
}

static enum test_script_verdict
forever_moved_to_itself(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out,
                        size_t size)
{
    (void)turn, (void)asking;
    return say_moved("MOVED", argc, argv, node, out, size);
}

static void
R1_moved_to_itself_for_ever_ends_with_the_deadline(void **state)
{
    struct near_l2_item item;
    struct text         text;
    int64_t             begun = test_now_ms();

    (void)state;
    set_stage(forever_moved_to_itself, NULL);
    item = get_key("a", &text, 300);
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_true(test_now_ms() - begun < 300 + 500 * test_slack());
    assert_true(turns(0) < 60);
}

static enum test_script_verdict
moved_to_nowhere(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)node, (void)turn, (void)asking, (void)argc, (void)argv;
    return say_words("-MOVED 99999 ?:0", out, size);
}

static void
C2_a_redirect_to_nowhere_is_a_refusal(void **state)
{
    struct text text;

    (void)state;
    set_stage(moved_to_nowhere, NULL);
    assert_int_equal(get_key("a", &text, 1000).answer, NEAR_L2_ERROR);
    assert_int_equal(turns(0), 1);
}

/* ---- ASK */

static enum test_script_verdict
ask_1(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)turn;
    if (node == 0)
        return say_moved("ASK", argc, argv, 1, out, size);
    return asking ? say_value(node, out, size) : say_moved("MOVED", argc, argv, 0, out, size);
}

static void
C3_ask_goes_there_once_and_the_map_stays(void **state)
{
    struct text text;

    (void)state;
    set_stage(ask_1, NULL);
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(get_key("a", &text, 1000).answer, NEAR_L2_DONE);
        assert_string_equal(text.at, "node1");
        assert_int_equal(turns(0), i); /* asked first each time */
        assert_int_equal(turns(1), i);
        assert_int_equal(atomic_load(&stage.askings), i);
    }
}

static void
C3_a_batch_under_ask_asks_before_each(void **state)
{
    enum { N = 50 };
    struct near_l2_item items[N];
    struct text         texts[N];
    char                keys[N][16];

    (void)state;
    set_stage(ask_1, NULL);
    for (int i = 0; i < N; i++) {
        snprintf(keys[i], sizeof(keys[i]), "k%d", i);
        items[i] = (struct near_l2_item){ .key = near_key(keys[i]), .user = &texts[i] };
    }
    backend.ops->get_many(backend.self, items, N, keep_text, NULL, in_ms(2000));
    for (int i = 0; i < N; i++) {
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
        assert_string_equal(texts[i].at, "node1");
    }
    assert_int_equal(atomic_load(&stage.askings), N);
    assert_int_equal(turns(1), N);
}

/* ---- refusals that pass */

static const char *passing_words;

static enum test_script_verdict
refuse_three_times(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out,
                   size_t size)
{
    (void)asking;
    if (turn < 3)
        return say_words(passing_words, out, size);
    if (test_script_is(argv, argc, 0, "SET"))
        return say_words("+OK", out, size);
    return say_value(node, out, size);
}

static void
C4_refusals_that_pass_are_waited_out(void **state)
{
    static const char *const words[] = { "-TRYAGAIN Multiple keys request during rehashing of slot",
                                         "-CLUSTERDOWN The cluster is down",
                                         "-CLUSTERDOWN Hash slot not served",
                                         "-LOADING Redis is loading the dataset in memory",
                                         "-MASTERDOWN Link with MASTER is down",
                                         "-READONLY You can't write against a read only replica." };
    struct text              text;

    for (size_t i = 0; i < NEAR_COUNT_OF(words); i++) {
        passing_words = words[i];
        set_stage(refuse_three_times, NULL);
        assert_int_equal(get_key("a", &text, 5000).answer, NEAR_L2_DONE);
        assert_int_equal(turns(0), 4);
        clear_stage(state);
        set_stage(refuse_three_times, NULL); /* refused is not done: a conditional write may come again */
        assert_int_equal(set_key(NEAR_L2_IF_ABSENT, "a", "v", 5000).answer, NEAR_L2_DONE);
        clear_stage(state);
    }
}

static void
C4_a_cluster_that_stays_down_costs_the_deadline(void **state)
{
    struct near_l2_item item;
    struct text         text;
    int64_t             begun = test_now_ms();

    (void)state;
    (void)begun;
    passing_words = "-CLUSTERDOWN The cluster is down";
    set_stage(refuse_three_times, NULL);
    atomic_store(&stage.turns[0], -1000000);
    item = get_key("a", &text, 250);
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_UNAVAILABLE);
    assert_true(test_now_ms() - begun < 250 + 500 * test_slack());
    assert_true(turns(0) + 1000000 < 60); /* paced */
}

static enum test_script_verdict
refuse_for_good(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)node, (void)turn, (void)asking, (void)argc, (void)argv;
    return say_words("-OOM command not allowed when used memory > 'maxmemory'.", out, size);
}

static void
R1_other_refusals_are_answers(void **state)
{
    struct near_l2_item item;

    (void)state;
    set_stage(refuse_for_good, NULL);
    item = set_key(NEAR_L2_ALWAYS, "a", "v", 2000);
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(item.status, NEAR_ERR_DENIED);
    assert_int_equal(turns(0), 1);
}

static enum test_script_verdict
no_script_once(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)node, (void)turn, (void)asking;
    return say_words(test_script_is(argv, argc, 0, "EVALSHA") ? "-NOSCRIPT No matching script." : ":1", out,
                     size);
}

static void
R5_a_missing_script_is_sent(void **state)
{
    (void)state;
    set_stage(no_script_once, NULL);
    assert_int_equal(set_key(NEAR_L2_IF_STAMP, "a", "v", 2000).answer, NEAR_L2_DONE);
    assert_int_equal(turns(0), 2);
}

/* ---- rubbish */

static enum test_script_verdict
values(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)turn, (void)asking, (void)argc, (void)argv;
    return say_value(node, out, size);
}

static void
C2_a_map_of_rubbish_leaves_the_seeds(void **state)
{
    static const char *const maps[] = {
        "$5\r\nhello\r\n",
        "*0\r\n",
        "*1\r\n:5\r\n",
        "-ERR This instance has cluster support disabled\r\n",
        "*1\r\n*3\r\n:0\r\n:99999\r\n*3\r\n$9\r\n127.0.0.1\r\n:1\r\n$2\r\nid\r\n",
        "*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$1\r\n?\r\n:1\r\n$2\r\nid\r\n",
    };
    struct text text;

    for (size_t i = 0; i < NEAR_COUNT_OF(maps); i++) {
        set_stage(values, maps[i]);
        assert_int_equal(get_key("a", &text, 2000).answer, NEAR_L2_DONE);
        clear_stage(state);
    }
}

static enum test_script_verdict
wrong_kind(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)node, (void)turn, (void)asking, (void)argc, (void)argv;
    return say_words("*1\r\n:7", out, size);
}

static void
a_reply_of_the_wrong_kind_is_never_an_absence(void **state)
{
    struct text text;

    (void)state;
    set_stage(wrong_kind, NULL);
    assert_int_equal(get_key("a", &text, 1000).answer, NEAR_L2_ERROR);
    assert_int_equal(set_key(NEAR_L2_ALWAYS, "a", "v", 1000).answer, NEAR_L2_UNKNOWN);
    assert_int_equal(remove_key("a", 1000).answer, NEAR_L2_UNKNOWN);
}

/* ---- connections lost */

static enum test_script_verdict
hang_up_once(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)asking;
    if (turn == 0)
        return TEST_SCRIPT_HANG_UP;
    if (test_script_is(argv, argc, 0, "SET"))
        return say_words("+OK", out, size);
    if (test_script_is(argv, argc, 0, "GET"))
        return say_value(node, out, size);
    return say_words(":1", out, size);
}

static void
C6_only_what_bears_it_is_sent_again(void **state)
{
    struct text text;

    set_stage(hang_up_once, NULL);
    assert_int_equal(get_key("a", &text, 2000).answer, NEAR_L2_DONE);
    clear_stage(state);
    set_stage(hang_up_once, NULL);
    assert_int_equal(set_key(NEAR_L2_ALWAYS, "a", "v", 2000).answer, NEAR_L2_DONE);
    assert_true(turns(0) + turns(1) >= 2);
    clear_stage(state);
    set_stage(hang_up_once, NULL);
    assert_int_equal(remove_key("a", 2000).answer, NEAR_L2_DONE);
    clear_stage(state);
    set_stage(hang_up_once, NULL);
    assert_int_equal(set_key(NEAR_L2_IF_ABSENT, "a", "v", 2000).answer, NEAR_L2_UNKNOWN);
    assert_int_equal(turns(0) + turns(1), 1);
    clear_stage(state);
    set_stage(hang_up_once, NULL);
    assert_int_equal(set_key(NEAR_L2_IF_STAMP, "a", "v", 2000).answer, NEAR_L2_UNKNOWN);
    assert_int_equal(turns(0) + turns(1), 1);
}

static enum test_script_verdict
hang_up_always(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)node, (void)turn, (void)asking, (void)argc, (void)argv, (void)out, (void)size;
    return TEST_SCRIPT_HANG_UP;
}

/* ---- hashes */

#define ROW 200 /* fields: more than one HMGET has here */

struct row {
    struct near_l2_hash hash;
    near_bytes          fields[ROW], values[ROW];
    enum near_l2_answer answers[ROW];
    char                names[ROW][24];
    unsigned            delivered, wrong;
};

/* Of each field its name is the value. */
static void
keep_field(void *ctx, struct near_l2_item *item, size_t field, near_bytes value)
{
    struct row *row = item->user;

    (void)ctx;
    row->delivered++;
    row->wrong += !near__bytes_equal(value, row->fields[field]);
}

static struct near_l2_item
row_item(struct row *row, const char *key, size_t count)
{
    memset(row, 0, sizeof(*row));
    row->hash = (struct near_l2_hash){ row->fields, count, row->values, row->answers };
    for (size_t i = 0; i < count; i++) {
        snprintf(row->names[i], sizeof(row->names[i]), "f%zu", i);
        row->fields[i] = row->values[i] = near_key(row->names[i]);
    }
    return (struct near_l2_item){ .key = near_key(key), .hash = &row->hash, .user = row };
}

static struct near_l2_item
get_row(struct row *row, const char *key, size_t count, int64_t ms)
{
    struct near_l2_item item = row_item(row, key, count);

    backend.ops->hash_get_many(backend.self, &item, 1, keep_field, NULL, in_ms(ms));
    return item;
}

static enum near_l2_answer
set_row(const char *key, size_t count, int64_t ttl_ms)
{
    struct row          row;
    struct near_l2_item item = row_item(&row, key, count);

    item.ttl_ms = ttl_ms;
    backend.ops->hash_set_many(backend.self, &item, 1, NULL, in_ms(2000));
    return item.answer;
}

/* All of it, each field once. */
static void
assert_row(const char *key, size_t count)
{
    struct row row;

    assert_int_equal(get_row(&row, key, count, 2000).answer, NEAR_L2_DONE);
    assert_int_equal(row.delivered, count);
    assert_int_equal(row.wrong, 0);
}

static enum test_script_verdict
say_row(const near_bytes *argv, size_t argc, char *out, size_t size)
{
    size_t n = (size_t)snprintf(out, size, "*%zu\r\n", argc - 2);

    for (size_t i = 2; i < argc; i++)
        n += (size_t)snprintf(out + n, size - n, "$%zu\r\n%.*s\r\n", argv[i].size, (int)argv[i].size,
                              (const char *)argv[i].data);
    return TEST_SCRIPT_SAY;
}

static enum test_script_verdict
rows_moved_to_1(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)turn, (void)asking;
    if (node == 0)
        return say_moved("MOVED", argc, argv, 1, out, size);
    if (test_script_is(argv, argc, 0, "HSET"))
        return say_words(":2", out, size);
    return say_row(argv, argc, out, size);
}

static void
C3_hashes_follow_moved(void **state)
{
    (void)state;
    set_stage(rows_moved_to_1, NULL);
    assert_row("a", 2);
    assert_row("a", 2);
    assert_int_equal(turns(0), 1); /* the slot is mended */
    assert_int_equal(turns(1), 2);
    assert_int_equal(set_row("b", 2, 0), NEAR_L2_DONE);
    assert_int_equal(turns(0), 2);
}

static enum test_script_verdict
rows_under_ask(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)turn;
    if (node == 0)
        return say_moved("ASK", argc, argv, 1, out, size);
    return asking ? say_row(argv, argc, out, size) : say_moved("MOVED", argc, argv, 0, out, size);
}

static void
C3_hashes_ask_before_each(void **state)
{
    enum { N = 20 };
    struct near_l2_item items[N];
    static struct row   rows[N];
    char                keys[N][16];

    (void)state;
    set_stage(rows_under_ask, NULL);
    for (int i = 0; i < N; i++) {
        snprintf(keys[i], sizeof(keys[i]), "k%d", i);
        items[i] = row_item(&rows[i], keys[i], 3);
    }
    backend.ops->hash_get_many(backend.self, items, N, keep_field, NULL, in_ms(2000));
    for (int i = 0; i < N; i++) {
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
        assert_int_equal(rows[i].delivered, 3);
        assert_int_equal(rows[i].wrong, 0);
    }
    assert_int_equal(atomic_load(&stage.askings), N);
    assert_int_equal(turns(1), N);
}

static enum test_script_verdict
one_value_short(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)node, (void)turn, (void)asking;
    return say_row(argv, argc - 1, out, size);
}

static void
a_row_of_another_length_is_never_an_answer(void **state)
{
    struct near_l2_item item;
    struct row          row;

    (void)state;
    set_stage(one_value_short, NULL);
    item = get_row(&row, "a", 3, 1000);
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(row.delivered, 0);
    assert_int_equal(row.answers[0], NEAR_L2_NOT_TRIED);
}

static enum test_script_verdict
rows_after_a_hang_up(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out,
                     size_t size)
{
    (void)node, (void)asking;
    if (turn == 0)
        return TEST_SCRIPT_HANG_UP;
    if (test_script_is(argv, argc, 0, "HMGET"))
        return say_row(argv, argc, out, size);
    if (test_script_is(argv, argc, 0, "EVALSHA"))
        return say_words("-NOSCRIPT No matching script.", out, size);
    return say_words(":1", out, size);
}

static void
C6_R5_hashes_are_sent_again(void **state)
{
    for (int ttl = 0; ttl < 2; ttl++) {
        set_stage(rows_after_a_hang_up, NULL);
        assert_row("a", 2);
        clear_stage(state);
        set_stage(rows_after_a_hang_up, NULL);
        assert_int_equal(set_row("a", 2, ttl * 1000), NEAR_L2_DONE);
        clear_stage(state);
    }
    set_stage(hang_up_always, NULL);
    assert_int_equal(set_row("a", 2, 0), NEAR_L2_UNKNOWN);
}

/* ---- writes in doubt */

static enum test_script_verdict
hang_up_then_refuse(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out,
                    size_t size)
{
    (void)node, (void)asking, (void)argc, (void)argv;
    return turn == 0 ? TEST_SCRIPT_HANG_UP : say_words("-OOM command not allowed", out, size);
}

/* Once a write may have been executed nothing that comes later makes it certain that it was not. */
static void
C6_a_write_in_doubt_stays_in_doubt(void **state)
{
    struct text text;

    set_stage(hang_up_always, NULL);
    assert_int_equal(set_key(NEAR_L2_ALWAYS, "a", "v", 1000).answer, NEAR_L2_UNKNOWN);
    assert_true(turns(0) + turns(1) <= 5); /* it was not sent over and over */
    assert_int_equal(remove_key("a", 1000).answer, NEAR_L2_UNKNOWN);
    assert_int_equal(get_key("a", &text, 1000).answer, NEAR_L2_ERROR);
    clear_stage(state);
    set_stage(hang_up_then_refuse, NULL);
    assert_int_equal(set_key(NEAR_L2_ALWAYS, "a", "v", 1000).answer, NEAR_L2_UNKNOWN);
    assert_int_equal(set_key(NEAR_L2_ALWAYS, "a", "v", 1000).answer,
                     NEAR_L2_ERROR); /* control: refused at once */
}

static atomic_bool promoted;

static enum test_script_verdict
survivor(int node, int turn, bool asking, size_t argc, const near_bytes *argv, char *out, size_t size)
{
    (void)turn, (void)asking;
    if (node == 0 || atomic_load(&promoted))
        return say_value(node, out, size);
    return say_moved("MOVED", argc, argv, 0, out, size);
}

static void *
promote_later(void *ctx)
{
    usleep(400 * 1000);
    atomic_store(&promoted, true);
    return ctx;
}

static void
C6_a_failover_is_waited_for_and_found(void **state)
{
    struct text text;
    pthread_t   thread;
    int64_t     begun;
    int         asked;

    (void)state;
    atomic_store(&promoted, false);
    set_stage(survivor, NULL);
    assert_int_equal(get_key("a", &text, 1000).answer, NEAR_L2_DONE);
    assert_string_equal(text.at, "node0");
    test_script_stop(&stage.node[0]);
    asked = turns(1);
    begun = test_now_ms();
    assert_int_equal(pthread_create(&thread, NULL, promote_later, NULL), 0);
    assert_int_equal(get_key("a", &text, 5000).answer, NEAR_L2_DONE);
    pthread_join(thread, NULL);
    assert_string_equal(text.at, "node1");
    assert_true(test_now_ms() - begun < 400 + 600 * test_slack());
    assert_true(turns(1) - asked < 60); /* and was not asked all the time */
}

static void
C6_no_node_at_all_is_soon_known(void **state)
{
    struct near_l2_item item;
    struct text         text;
    int64_t             begun;

    (void)state;
    set_stage(values, NULL);
    assert_int_equal(get_key("a", &text, 1000).answer, NEAR_L2_DONE);
    test_script_stop(&stage.node[0]);
    test_script_stop(&stage.node[1]);
    for (int i = 0; i < 20; i++) {
        begun = test_now_ms();
        item  = get_key("a", &text, 5000);
        assert_int_equal(item.answer, NEAR_L2_ERROR);
        assert_int_equal(item.status, NEAR_ERR_UNAVAILABLE);
        assert_true(test_now_ms() - begun < 1000 * test_slack());
    }
}

/* ---- refreshes */

static void *
get_some(void *ctx)
{
    struct text text;
    char        key[32];

    for (int i = 0; i < 20; i++) {
        snprintf(key, sizeof(key), "t%d:%d", *(int *)ctx, i);
        if (get_key(key, &text, 5000).answer != NEAR_L2_DONE)
            return ctx;
    }
    return NULL;
}

static void
C3_many_redirects_refresh_once(void **state)
{
    enum { CROWD = 16 };
    pthread_t threads[CROWD];
    int       numbers[CROWD];
    void     *failed = NULL;
    int64_t   begun  = test_now_ms(), took;

    (void)state;
    set_stage(all_moved_to_1, NULL); /* a map that never mends: every call wants another */
    for (int i = 0; i < CROWD; i++) {
        numbers[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, get_some, &numbers[i]), 0);
    }
    for (int i = 0; i < CROWD; i++) {
        void *result;

        pthread_join(threads[i], &result);
        failed = failed != NULL ? failed : result;
    }
    took = test_now_ms() - begun;
    assert_null(failed);
    assert_true(turns(0) > 100); /* so many redirects */
    assert_in_range(atomic_load(&stage.maps), 1, 1 + took / 1000);
}

/* ------------------------------------------------------------------------------------------ a real cluster */

static struct test_cluster *cluster;
static bool                 cluster_tried;

static void
need_cluster(void)
{
    if (!cluster_tried)
        cluster = test_cluster_start(3, 1, NODE_TIMEOUT, NULL);
    cluster_tried = true;
    test_need_server(cluster != NULL ? cluster->server[0] : NULL);
}

static void
need_cluster_backend(void)
{
    need_cluster();
    open_backend(&backend, cluster->uri);
}

static int
everybody_is_well(void *ctx)
{
    bool well = true;

    (void)ctx;
    for (unsigned i = 0; i < cluster->nodes && well; i++)
        well = test_cluster_is_well(cluster, i);
    well = well && test_cluster_is_agreed(cluster) && test_cluster_is_in_step(cluster);
    if (!well)
        nanosleep(&(struct timespec){ 0, 20 * NEAR_MS }, NULL); /* asked all the time they would not get on */
    return well;
}

/* The nodes, with a little help.  Says what they think of each other when they do not. */
static bool
gets_well(void)
{
    int64_t until = test_now_ms() + WELL_MS;

    while (!test_wait_for(everybody_is_well, NULL, MEND_MS)) {
        unsigned mended = test_cluster_mend(cluster);

        if (mended > 0)
            print_message("slots that the servers had lost: %u\n", mended);
        if (test_now_ms() < until)
            continue;
        test_cluster_print(cluster);
        return false;
    }
    return true;
}

static void join_load(void);

static int
teardown(void **state)
{
    (void)state;
    join_load(); /* of a row that failed: the next one's figures must not be its */
    close_backend(&backend);
    return 0;
}

static int
group_teardown(void **state)
{
    (void)state;
    test_cluster_stop(&cluster);
    return 0;
}

static void
C1_slots_agree_with_the_servers_own(void **state)
{
    static const char *const keys[] = { "a",
                                        "{}",
                                        "{a",
                                        "a}b{c}",
                                        "{b}c",
                                        "x{{y}}z",
                                        "near:users:{42}:name",
                                        "{}{a}",
                                        "}{",
                                        "key with spaces {in it}",
                                        "\xc3\xa9{\xc3\xa9}" };
    char                     key[32];

    (void)state;
    need_cluster();
    for (size_t i = 0; i < NEAR_COUNT_OF(keys); i++)
        assert_int_equal(near__slot_of(near_key(keys[i])), test_cluster_slot(cluster, keys[i]));
    for (unsigned i = 0; i < 200; i++) {
        snprintf(key, sizeof(key), "key:%u", i * 7919);
        assert_int_equal(near__slot_of(near_key(key)), test_cluster_slot(cluster, key));
    }
}

static void
C5_a_batch_over_all_nodes_and_slots(void **state)
{
    enum { N = 300 };
    static struct near_l2_item items[N];
    static char                keys[N][32];
    static struct text         texts[N];

    (void)state;
    need_cluster_backend();
    for (unsigned i = 0; i < N; i++) {
        snprintf(keys[i], sizeof(keys[i]), i % 3 == 0 ? "{tag}:%u" : "batch:%u", i);
        items[i] = (struct near_l2_item){ .key = near_key(keys[i]), .value = near_key(keys[i]) };
    }
    backend.ops->set_many(backend.self, NEAR_L2_ALWAYS, items, N, NULL, in_ms(2000));
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
    for (unsigned i = 0; i < N; i++)
        items[i] = (struct near_l2_item){ .key = near_key(keys[i]), .user = &texts[i] };
    items[7].key = near_key("not there");
    backend.ops->get_many(backend.self, items, N, keep_text, NULL, in_ms(2000));
    for (unsigned i = 0; i < N; i++) {
        assert_int_equal(items[i].answer, i == 7 ? NEAR_L2_ABSENT : NEAR_L2_DONE);
        if (i != 7)
            assert_string_equal(texts[i].at, keys[i]);
    }
    for (unsigned i = 0; i < N; i++)
        items[i] = (struct near_l2_item){ .key = near_key(keys[i]) };
    backend.ops->remove_many(backend.self, NEAR_L2_ALWAYS, items, N, NULL, in_ms(2000));
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(items[i].answer, NEAR_L2_DONE);
    for (unsigned i = 0; i < N; i++)
        items[i] = (struct near_l2_item){ .key = near_key(keys[i]) };
    backend.ops->get_many(backend.self, items, N, keep_text, NULL, in_ms(2000));
    for (unsigned i = 0; i < N; i++)
        assert_int_equal(items[i].answer, NEAR_L2_ABSENT);
}

/* Every step of a slot's move held still: who has the key says so, who has it not says ASK. */
static void
C3_a_slot_in_the_middle_of_its_move(void **state)
{
    struct text text;
    unsigned    slot = near__slot_of(near_key("mid")), to;

    (void)state;
    need_cluster_backend();
    assert_true(gets_well());
    assert_int_equal(set_key(NEAR_L2_ALWAYS, "{mid}:old", "1", 2000).answer, NEAR_L2_DONE);
    assert_int_equal(set_row("{mid}:row", ROW, 0), NEAR_L2_DONE);
    to = (cluster->owner[slot] + 1) % cluster->masters;
    assert_true(test_cluster_begin_move(cluster, slot, to));
    assert_int_equal(get_key("{mid}:old", &text, 2000).answer, NEAR_L2_DONE); /* still there */
    assert_row("{mid}:row", ROW);
    assert_true(test_cluster_move_key(cluster, "{mid}:old", to));
    assert_int_equal(get_key("{mid}:old", &text, 2000).answer, NEAR_L2_DONE); /* by ASK */
    assert_string_equal(text.at, "1");
    assert_int_equal(get_key("{mid}:none", &text, 2000).answer, NEAR_L2_ABSENT); /* in neither's hands */
    assert_int_equal(set_key(NEAR_L2_ALWAYS, "{mid}:old", "2", 2000).answer, NEAR_L2_DONE);
    assert_int_equal(set_key(NEAR_L2_IF_ABSENT, "{mid}:new", "3", 2000).answer, NEAR_L2_DONE);
    assert_int_equal(set_key(NEAR_L2_IF_ABSENT, "{mid}:new", "4", 2000).answer, NEAR_L2_ABSENT);
    assert_int_equal(set_key(NEAR_L2_IF_STAMP, "{mid}:new", "5", 2000).answer, NEAR_L2_ABSENT);
    assert_true(test_cluster_move_key(cluster, "{mid}:row", to));
    assert_row("{mid}:row", ROW); /* by ASK, before each of its parts */
    assert_int_equal(set_row("{mid}:row", 2, 60000), NEAR_L2_DONE);
    assert_row("{mid}:row", ROW);
    assert_true(test_cluster_move(cluster, slot, slot, to));
    assert_row("{mid}:row", ROW);
    assert_int_equal(get_key("{mid}:old", &text, 2000).answer, NEAR_L2_DONE);
    assert_string_equal(text.at, "2");
    assert_int_equal(get_key("{mid}:new", &text, 2000).answer, NEAR_L2_DONE);
    assert_string_equal(text.at, "3");
    assert_int_equal(remove_key("{mid}:old", 2000).answer, NEAR_L2_DONE);
    assert_int_equal(get_key("{mid}:old", &text, 2000).answer, NEAR_L2_ABSENT);
}

/* --------------------------------------------------------------------------------------------------- load */

enum { WORKERS = 4, KEYS = 100, SAMPLES = 1 << 20 };

struct worker {
    pthread_t   thread;
    unsigned    number;
    uint64_t    random;
    unsigned    version[KEYS]; /* of what was acknowledged; 0: removed, or never written */
    bool        doubt[KEYS];   /* a write's outcome was not known */
    uint64_t    calls, failed, wrong, lost;
    near_status why;
};

static struct {
    atomic_bool   stop;
    bool          runs;     /* threads are to be joined */
    bool          lossy;    /* acknowledged writes may be lost: a primary is killed */
    int64_t       deadline; /* ms for a call */
    struct worker workers[WORKERS];
    int64_t       took[SAMPLES]; /* ns */
    atomic_size_t samples;
} load;

static void
worker_key(char *out, size_t size, const struct worker *w, unsigned key)
{
    snprintf(out, size, key % 4 == 0 ? "{load:%u}:%u" : "load:%u:%u", w->number, key);
}

static void
note_failure(struct worker *w, const struct near_l2_item *item)
{
    w->failed++;
    if (w->why == NEAR_OK)
        w->why = item->status != NEAR_OK ? item->status : NEAR_ERR_TIMEOUT;
}

static void
check_read(struct worker *w, unsigned key, const struct near_l2_item *item, const char *name)
{
    const struct text *text    = item->user;
    size_t             size    = strlen(name);
    unsigned           version = 0;

    if (item->answer != NEAR_L2_DONE && item->answer != NEAR_L2_ABSENT) {
        note_failure(w, item);
        return;
    }
    if (item->answer == NEAR_L2_DONE &&
        (strncmp(text->at, name, size) != 0 || sscanf(text->at + size, "=%u", &version) != 1))
        w->wrong++; /* another key's value */
    else if (version != w->version[key] && !w->doubt[key])
        w->lost++;
    if (version > w->version[key] && !w->doubt[key])
        w->wrong++; /* from the future */
    w->version[key] = version;
    w->doubt[key]   = false;
}

static void
sample(int64_t ns)
{
    size_t at = atomic_fetch_add(&load.samples, 1);

    if (at < SAMPLES)
        load.took[at] = ns;
}

static void
one_call(struct worker *w)
{
    enum { MOST = 20 };
    struct near_l2_item items[MOST];
    struct text         texts[MOST];
    char                names[MOST][48], values[MOST][128];
    unsigned            keys[MOST], n = 1 + (unsigned)(test_random(&w->random) % MOST);
    unsigned            verb  = (unsigned)(test_random(&w->random) % 8);
    unsigned            first = (unsigned)(test_random(&w->random) % KEYS);
    int64_t             begun = near__now(&near__clock_system);

    if (verb > 2 && n > 5)
        n = 1;
    for (unsigned i = 0; i < n; i++) {
        keys[i] = (first + i) % KEYS;
        worker_key(names[i], sizeof(names[i]), w, keys[i]);
        items[i] = (struct near_l2_item){ .key = near_key(names[i]), .user = &texts[i] };
        snprintf(values[i], sizeof(values[i]), "%s=%u", names[i], w->version[keys[i]] + 1);
        if (verb == 1)
            items[i].value = near_key(values[i]);
    }
    if (verb == 1)
        backend.ops->set_many(backend.self, NEAR_L2_ALWAYS, items, n, NULL, in_ms(load.deadline));
    else if (verb == 2)
        backend.ops->remove_many(backend.self, NEAR_L2_ALWAYS, items, n, NULL, in_ms(load.deadline));
    else
        backend.ops->get_many(backend.self, items, n, keep_text, NULL, in_ms(load.deadline));
    sample(near__now(&near__clock_system) - begun);
    w->calls++;
    for (unsigned i = 0; i < n; i++) {
        if (verb != 1 && verb != 2) {
            check_read(w, keys[i], &items[i], names[i]);
        } else if (items[i].answer == NEAR_L2_DONE) {
            w->version[keys[i]] = verb == 1 ? w->version[keys[i]] + 1 : 0;
            w->doubt[keys[i]]   = false;
        } else {
            w->doubt[keys[i]] = true;
            note_failure(w, &items[i]);
        }
    }
}

static void *
work(void *ctx)
{
    struct worker *w = ctx;

    while (!atomic_load(&load.stop))
        one_call(w);
    return NULL;
}

static void
start_load(int64_t deadline)
{
    static unsigned number;

    memset(load.workers, 0, sizeof(load.workers));
    atomic_store(&load.stop, false);
    atomic_store(&load.samples, 0);
    load.deadline = deadline * test_slack();
    for (unsigned i = 0; i < WORKERS; i++) {
        load.workers[i].number = ++number;
        load.workers[i].random = number;
        assert_int_equal(pthread_create(&load.workers[i].thread, NULL, work, &load.workers[i]), 0);
    }
    load.runs = true;
}

static void
join_load(void)
{
    atomic_store(&load.stop, true);
    for (unsigned i = 0; load.runs && i < WORKERS; i++)
        pthread_join(load.workers[i].thread, NULL);
    load.runs = false;
}

static int
compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

static void
stop_load(const char *what, struct worker *sum)
{
    size_t n;

    join_load();
    *sum = (struct worker){ .calls = 0 };
    for (unsigned i = 0; i < WORKERS; i++) {
        sum->calls += load.workers[i].calls;
        sum->failed += load.workers[i].failed;
        sum->wrong += load.workers[i].wrong;
        sum->lost += load.workers[i].lost;
        sum->why = sum->why != NEAR_OK ? sum->why : load.workers[i].why;
    }
    n = atomic_load(&load.samples) < SAMPLES ? atomic_load(&load.samples) : SAMPLES;
    qsort(load.took, n, sizeof(load.took[0]), compare_ns);
    if (n == 0)
        return;
    print_message("%s: %llu calls, %llu failed items%s%s, %llu wrong, %llu not the last acknowledged; "
                  "p50 %lld us, p99 %lld us, p99.9 %lld us, max %lld ms\n",
                  what, (unsigned long long)sum->calls, (unsigned long long)sum->failed,
                  sum->failed > 0 ? ": " : "", sum->failed > 0 ? near_status_text(sum->why) : "",
                  (unsigned long long)sum->wrong, (unsigned long long)sum->lost,
                  (long long)(load.took[n / 2] / 1000), (long long)(load.took[n * 99 / 100] / 1000),
                  (long long)(load.took[n * 999 / 1000] / 1000), (long long)(load.took[n - 1] / NEAR_MS));
}

static void
C3_resharding_all_slots_under_load_fails_no_call(void **state)
{
    struct worker sum;
    int64_t       end    = row_end();
    unsigned      rounds = 0;
    bool          moved  = true;

    (void)state;
    need_cluster_backend();
    start_load(test_level() == TEST_CHECK
                   ? 5000
                   : 2000); /* servers write each step down, to a disk that others use */
    usleep(100 * 1000);
    do {
        for (unsigned i = 0; moved && i < cluster->masters; i++)
            moved = test_cluster_move(cluster, 16384 * i / 3, 16384 * (i + 1) / 3 - 1,
                                      (i + 1 + rounds) % cluster->masters);
        rounds++;
    } while (moved && test_now_ms() < end);
    usleep(100 * 1000);
    stop_load("all slots moved under load", &sum);
    print_message("rounds: %u\n", rounds);
    assert_true(moved);
    assert_true(sum.calls > 100);
    assert_int_equal(sum.failed, 0);
    assert_int_equal(sum.wrong, 0);
    assert_int_equal(sum.lost, 0);
}

static int
reigns(void *ctx)
{
    return test_cluster_is_master(cluster, *(unsigned *)ctx);
}

#define NOBODY UINT_MAX

/* Kills a primary and waits for its replica to follow it; who was killed.  NOBODY: it does not. */
static unsigned
kill_and_heal(unsigned victim)
{
    unsigned heir = victim + cluster->masters;

    if (!test_cluster_is_master(cluster, victim)) {
        heir   = victim;
        victim = victim + cluster->masters;
    }
    test_cluster_set_timeout(cluster, KILL_TIMEOUT);
    test_server_kill(cluster->server[victim]);
    if (!test_wait_for(reigns, &heir, 30000 * test_slack()))
        return NOBODY;
    test_cluster_set_timeout(cluster, NODE_TIMEOUT);
    return victim;
}

static void
C6_a_primary_killed_under_load_fails_no_call(void **state)
{
    struct worker sum;
    int64_t       end   = row_end();
    unsigned      kills = 0, dead;
    bool          good;

    (void)state;
    need_cluster_backend();
    start_load(test_level() == TEST_CHECK ? 30000 : 10000);
    usleep(200 * 1000);
    good = gets_well();
    while (good) {
        dead = kill_and_heal(kills++ % cluster->masters);
        usleep(300 * 1000);
        good = dead != NOBODY && test_server_restart(cluster->server[dead]) && gets_well();
        if (test_now_ms() >= end)
            break;
    }
    stop_load("primaries killed under load", &sum);
    print_message("kills: %u\n", kills);
    assert_true(good);
    assert_true(sum.calls > 100);
    assert_int_equal(sum.failed, 0);
    assert_int_equal(sum.wrong,
                     0); /* the last acknowledged writes may be lost: replication is asynchronous */
}

/* ------------------------------------------------------------------------------------ two whole instances */

struct instance {
    near_client *client;
    near_cache  *cache;
};

static void
open_instance(struct instance *in)
{
    static const char *const settings[][2] = {
        { "l2.timeout", "5s" },   { "l2.connect_timeout", "1s" },        { "l2.key_prefix", "pair:" },
        { "l1.max_ttl", "600s" }, { "coherence.serve_window", "500ms" }, { "coherence.heartbeat", "50ms" },
    };
    near_config *config = near_config_new();
    near_error   error  = { .text = "" };

    assert_int_equal(near_config_set(config, "l2.uri", cluster->uri, &error), NEAR_OK);
    for (size_t i = 0; i < NEAR_COUNT_OF(settings); i++)
        if (near_config_set(config, settings[i][0], settings[i][1], &error) != NEAR_OK)
            fail_msg("%s", error.text);
    if (near_client_open(config, &in->client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    if (near_cache_open(in->client, "things", NULL, &in->cache, &error) != NEAR_OK)
        fail_msg("%s", error.text);
}

static int
hears(void *ctx)
{
    return near_fence(((struct instance *)ctx)->client, 200) == NEAR_OK;
}

static uint64_t
l1_hits(const struct instance *in)
{
    near_stats stats = NEAR_STATS_INIT;

    assert_int_equal(near_stats_get(in->client, &stats), NEAR_OK);
    return stats.hits_l1;
}

static void
assert_reads(const struct instance *in, near_bytes key, const char *expected)
{
    near_value *value = NULL;

    assert_int_equal(near_get(in->cache, key, &value), NEAR_OK);
    assert_true(near_value_bytes(value).size == strlen(expected) &&
                memcmp(near_value_bytes(value).data, expected, strlen(expected)) == 0);
    near_value_release(value);
}

/* B holds what A overwrites, for many keys in as many slots. */
static void
exchange_news(const struct instance *a, const struct instance *b, const char *first, const char *second)
{
    enum { N = 50 };
    char     key[32];
    uint64_t hits;

    for (int i = 0; i < N; i++) {
        snprintf(key, sizeof(key), "thing %d", i);
        assert_int_equal(near_put(a->cache, near_key(key), near_key(first), NULL), NEAR_OK);
    }
    assert_int_equal(near_fence(b->client, 5000), NEAR_OK);
    for (int round = 0; round < 2; round++) {
        hits = l1_hits(b);
        for (int i = 0; i < N; i++) {
            snprintf(key, sizeof(key), "thing %d", i);
            assert_reads(b, near_key(key), first);
        }
    }
    assert_int_equal(l1_hits(b) - hits, N); /* control: they would be answered by L1 */
    for (int i = 0; i < N; i++) {
        snprintf(key, sizeof(key), "thing %d", i);
        assert_int_equal(near_put(a->cache, near_key(key), near_key(second), NULL), NEAR_OK);
    }
    assert_int_equal(near_fence(b->client, 5000), NEAR_OK);
    for (int i = 0; i < N; i++) {
        snprintf(key, sizeof(key), "thing %d", i);
        assert_reads(b, near_key(key), second);
    }
}

static int
everything_is_replicated(void *ctx)
{
    (void)ctx;
    return test_cluster_is_replicated(cluster);
}

static void
C7_G2_instances_hear_each_other_also_after_their_meeting_place_died(void **state)
{
    struct instance a, b;
    unsigned        home, dead;

    (void)state;
    need_cluster();
    assert_true(gets_well());
    open_instance(&a);
    open_instance(&b);
    assert_true(test_wait_for(hears, &a, 5000 * test_slack()));
    assert_true(test_wait_for(hears, &b, 5000 * test_slack()));
    exchange_news(&a, &b, "one", "two");
    assert_true(test_wait_for(everything_is_replicated, NULL, 10000 * test_slack()));
    home = cluster->owner[near__slot_of(near_key("pair:bus"))];
    dead = kill_and_heal(home);
    assert_int_not_equal(dead, NOBODY);
    assert_true(test_wait_for(hears, &a, 10000 * test_slack()));
    assert_true(test_wait_for(hears, &b, 10000 * test_slack()));
    exchange_news(&a, &b, "three", "four");
    assert_int_equal(near_client_close(a.client, NULL), NEAR_OK);
    assert_int_equal(near_client_close(b.client, NULL), NEAR_OK);
    assert_true(test_server_restart(cluster->server[dead]));
}

/* ------------------------------------------------------------------------------------------------- figures */

/* Who is asked: the cluster, or servers that know nothing of each other, one or three. */
struct asked {
    struct backend backends[3];
    unsigned       n;
};

struct asker {
    struct asked      *asked;
    pthread_t          thread;
    unsigned           number;
    uint64_t           calls, failed;
    const atomic_bool *stop;
};

static void *
ask_on_and_on(void *ctx)
{
    struct asker *asker = ctx;
    struct text   text;
    uint64_t      random = asker->number + 1;
    char          key[32];

    while (!atomic_load_explicit(asker->stop, memory_order_relaxed)) {
        unsigned            number = (unsigned)(test_random(&random) % 1000);
        struct backend     *b      = &asker->asked->backends[number % asker->asked->n];
        struct near_l2_item item   = { .user = &text };

        snprintf(key, sizeof(key), "figure:%u", number);
        item.key = near_key(key);
        b->ops->get_many(b->self, &item, 1, keep_text, NULL, in_ms(5000));
        asker->failed += item.answer != NEAR_L2_DONE;
        asker->calls++;
    }
    return NULL;
}

static double
cpu_us(void)
{
    struct rusage use;

    getrusage(RUSAGE_SELF, &use);
    return 1e6 * (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

/* CPU of this process per GET, in microseconds. */
static double
cpu_per_get(const char *const *uris, unsigned n, unsigned threads, uint64_t *calls)
{
    static struct asked asked; /* backends hold on to their URIs */
    struct asker        askers[16];
    atomic_bool         stop = false;
    char                key[32];
    double              before;
    uint64_t            failed = 0;

    asked.n = n;
    for (unsigned b = 0; b < n; b++) {
        open_backend(&asked.backends[b], uris[b]);
        for (unsigned i = b; i < 1000; i += n) {
            struct near_l2_item item = { .value = near_key("0123456789012345678901234567890123456789") };

            snprintf(key, sizeof(key), "figure:%u", i);
            item.key = near_key(key);
            asked.backends[b].ops->set_many(asked.backends[b].self, NEAR_L2_ALWAYS, &item, 1, NULL,
                                            in_ms(5000));
            assert_int_equal(item.answer, NEAR_L2_DONE);
        }
    }
    before = cpu_us();
    for (unsigned i = 0; i < threads; i++) {
        askers[i] = (struct asker){ .asked = &asked, .number = i, .stop = &stop };
        assert_int_equal(pthread_create(&askers[i].thread, NULL, ask_on_and_on, &askers[i]), 0);
    }
    usleep(1000 * 1000);
    atomic_store(&stop, true);
    *calls = 0;
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(askers[i].thread, NULL);
        *calls += askers[i].calls;
        failed += askers[i].failed;
    }
    before = cpu_us() - before;
    for (unsigned b = 0; b < n; b++)
        close_backend(&asked.backends[b]);
    assert_int_equal(failed, 0);
    return before / (double)*calls;
}

static int
compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double
median(double *values, size_t n)
{
    qsort(values, n, sizeof(values[0]), compare_doubles);
    return values[n / 2];
}

/* Said, not asserted: the machine decides.  Three servers that know nothing of each other show what comes of there being three. */
static void
figures_cpu_per_request_beside_single_servers(void **state)
{
    enum { ROUNDS = 5, KINDS = 3 };
    static const char *const names[KINDS]  = { "one server", "three servers", "cluster of three" };
    static const unsigned    counts[KINDS] = { 1, 3, 1 };
    static const unsigned    threads[]     = { 1, 4, 16 };
    struct test_server      *single[3];
    const char              *uris[KINDS][3] = { { NULL } };
    double                   us[KINDS][ROUNDS], ratio[ROUNDS];
    uint64_t                 calls[KINDS];

    (void)state;
    if (test_level() == TEST_CHECK)
        skip();
    need_cluster();
    assert_true(gets_well());
    for (int i = 0; i < 3; i++) {
        single[i] = test_redis_start(TEST_SERVER_TCP, NULL);
        test_need_server(single[i]);
        uris[1][i] = single[i]->uri;
    }
    uris[0][0] = single[0]->uri;
    uris[2][0] = cluster->uri;
    for (size_t t = 0; t < NEAR_COUNT_OF(threads); t++) {
        for (int i = 0; i < ROUNDS; i++) {
            for (int k = 0; k < KINDS; k++)
                us[k][i] = cpu_per_get(uris[k], counts[k], threads[t], &calls[k]);
            ratio[i] = us[2][i] / us[1][i];
        }
        for (int k = 0; k < KINDS; k++)
            print_message("%2u threads, %s: CPU per GET %.2f us (last round: %llu GETs in a second)\n",
                          threads[t], names[k], median(us[k], ROUNDS), (unsigned long long)calls[k]);
        print_message("%2u threads: the cluster costs %.2f times the three servers (medians of %d)\n",
                      threads[t], median(ratio, ROUNDS), ROUNDS);
    }
    for (int i = 0; i < 3; i++)
        test_server_stop(&single[i]);
}

int
main(void)
{
#define CLUSTER_TEST(name) cmocka_unit_test_teardown(name, teardown)
#define STAGE_TEST(name)   cmocka_unit_test_teardown(name, clear_stage)
    const struct CMUnitTest tests[] = {
        STAGE_TEST(C3_moved_mends_its_slot_at_once),
        STAGE_TEST(C3_endless_redirects_end),
        STAGE_TEST(R1_moved_to_itself_is_paced_and_ends_well),
        STAGE_TEST(R1_moved_to_itself_for_ever_ends_with_the_deadline),
        STAGE_TEST(C2_a_redirect_to_nowhere_is_a_refusal),
        STAGE_TEST(C3_ask_goes_there_once_and_the_map_stays),
        STAGE_TEST(C3_a_batch_under_ask_asks_before_each),
        STAGE_TEST(C4_refusals_that_pass_are_waited_out),
        STAGE_TEST(C4_a_cluster_that_stays_down_costs_the_deadline),
        STAGE_TEST(R1_other_refusals_are_answers),
        STAGE_TEST(R5_a_missing_script_is_sent),
        STAGE_TEST(C2_a_map_of_rubbish_leaves_the_seeds),
        STAGE_TEST(a_reply_of_the_wrong_kind_is_never_an_absence),
        STAGE_TEST(C3_hashes_follow_moved),
        STAGE_TEST(C3_hashes_ask_before_each),
        STAGE_TEST(a_row_of_another_length_is_never_an_answer),
        STAGE_TEST(C6_R5_hashes_are_sent_again),
        STAGE_TEST(C6_only_what_bears_it_is_sent_again),
        STAGE_TEST(C6_a_write_in_doubt_stays_in_doubt),
        STAGE_TEST(C6_a_failover_is_waited_for_and_found),
        STAGE_TEST(C6_no_node_at_all_is_soon_known),
        STAGE_TEST(C3_many_redirects_refresh_once),
        CLUSTER_TEST(C1_slots_agree_with_the_servers_own),
        CLUSTER_TEST(C5_a_batch_over_all_nodes_and_slots),
        CLUSTER_TEST(C3_a_slot_in_the_middle_of_its_move),
        CLUSTER_TEST(C3_resharding_all_slots_under_load_fails_no_call),
        CLUSTER_TEST(C6_a_primary_killed_under_load_fails_no_call),
        CLUSTER_TEST(C7_G2_instances_hear_each_other_also_after_their_meeting_place_died),
        CLUSTER_TEST(figures_cpu_per_request_beside_single_servers),
    };

    if (getenv("NEAR_TEST_ROWS") != NULL)
        cmocka_set_test_filter(getenv("NEAR_TEST_ROWS"));
    return TEST_MAIN(tests, NULL, group_teardown);
}
