/*
 * Reads of L2 shared by threads that want the same key (client/share.h): how many requests the server sees, and that nobody gets what
 * was read before a write or a fence of his own.  A read is caught between L2's answer and its reader.
 */
#include "world.h"

#include "client.h"
#include "tier.h"

WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)
WORLD(both, TIER_MEMCACHED_BUS)
WORLD(memcached, TIER_MEMCACHED)

/* ---- reads that can be caught */

static __thread bool    to_catch;
static pthread_mutex_t  lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t   cond = PTHREAD_COND_INITIALIZER;
static bool             caught, let_go;
static _Atomic unsigned reads;

void __real_near__tier_read(near_cache *cache, struct near__ask **asks, size_t n, int64_t now,
                            int64_t deadline, uint64_t *generation);
void __wrap_near__tier_read(near_cache *cache, struct near__ask **asks, size_t n, int64_t now,
                            int64_t deadline, uint64_t *generation);

void
__wrap_near__tier_read(near_cache *cache, struct near__ask **asks, size_t n, int64_t now, int64_t deadline,
                       uint64_t *generation)
{
    bool mine = to_catch;

    to_catch = false;
    reads++;
    __real_near__tier_read(cache, asks, n, now, deadline, generation);
    if (!mine)
        return;
    pthread_mutex_lock(&lock);
    caught = true;
    pthread_cond_broadcast(&cond);
    while (!let_go)
        pthread_cond_wait(&cond, &lock);
    pthread_mutex_unlock(&lock);
}

struct reader {
    near_cache *cache;
    const char *key;
    bool catch;
    int64_t     timeout_ms;
    unsigned    flags;
    near_status status;
    char        text[64];
    int64_t     took_ms;
    pthread_t   thread;
};

static void *
read_one(void *arg)
{
    struct reader   *reader  = arg;
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    int64_t          began   = test_now_ms();
    near_value      *value;

    to_catch           = reader->catch;
    options.timeout_ms = reader->timeout_ms;
    options.flags      = reader->flags;
    reader->status     = near_get_with(reader->cache, near_key(reader->key), &options, &value);
    reader->took_ms    = test_now_ms() - began;
    to_catch           = false;
    if (reader->status == NEAR_OK) {
        near_bytes bytes = near_value_bytes(value);

        snprintf(reader->text, sizeof(reader->text), "%.*s", (int)bytes.size, (const char *)bytes.data);
        near_value_release(value);
    }
    return NULL;
}

static void
start(struct reader *reader, near_cache *cache, const char *key)
{
    reader->cache = cache;
    reader->key   = key;
    if (reader->timeout_ms == 0)
        reader->timeout_ms = 20000;
    assert_int_equal(pthread_create(&reader->thread, NULL, read_one, reader), 0);
}

static void
finish(struct reader *reader)
{
    pthread_join(reader->thread, NULL);
}

/* A reader who has its answer from L2 and does not know it yet. */
static void
catch_reader(struct reader *reader, near_cache *cache, const char *key)
{
    reader->catch = true;
    caught        = false;
    let_go        = false;
    start(reader, cache, key);
    pthread_mutex_lock(&lock);
    while (!caught)
        pthread_cond_wait(&cond, &lock);
    pthread_mutex_unlock(&lock);
}

static void
let_reader_go(struct reader *reader)
{
    pthread_mutex_lock(&lock);
    let_go = true;
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&lock);
    finish(reader);
}

/* What the calling thread gets by itself, now. */
static struct reader
read_now(near_cache *cache, const char *key)
{
    struct reader reader = { .cache = cache, .key = key, .timeout_ms = 20000 };

    read_one(&reader);
    return reader;
}

#define OPEN_OFF(w, in, ...) OPEN(w, in, "l1.max_bytes", "0" __VA_OPT__(, ) __VA_ARGS__)
#define READERS              16

/* ---- how many are asked */

/* Keys that the server was asked for and had, whatever commands they came in. */
static unsigned
gets_seen(struct world *w)
{
    char        out[8192];
    const char *at;

    assert_true(test_redis_command(w->redis, out, sizeof(out), 2, (const char *[]){ "INFO", "stats" }));
    at = strstr(out, "keyspace_hits:");
    assert_non_null(at);
    return (unsigned)atoi(at + strlen("keyspace_hits:"));
}

/* The server stands still while they come: then there is one request for all of them, and one of his own for each who wants L2's word.
 * (What the backend makes of identical ones that it has not sent yet is its business.) */
static void
test_a_cold_key_is_asked_once(void **state)
{
    struct world   *w = *state;
    struct reader   readers[READERS];
    struct instance in;

    NEEDS(w);
    for (unsigned alone = 0; alone < 2; alone++) {
        uint64_t before, exchanges;

        OPEN_OFF(w, &in, "l2.pool_size", "32", "l2.timeout", "20s");
        assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
        assert_string_equal(read_now(in.cache, "k").text, "v");
        before    = gets_seen(w);
        exchanges = stats_of(&in).l2_requests;
        test_server_pause(w->redis);
        for (size_t i = 0; i < READERS; i++) {
            readers[i] = (struct reader){ .flags = alone ? NEAR_SKIP_L1 : 0 };
            start(&readers[i], in.cache, "k");
        }
        sleep_ms(100 * test_slack());
        test_server_resume(w->redis);
        for (size_t i = 0; i < READERS; i++) {
            finish(&readers[i]);
            assert_int_equal(readers[i].status, NEAR_OK);
            assert_string_equal(readers[i].text, "v");
        }
        assert_int_equal(stats_of(&in).l2_requests - exchanges, alone ? READERS : 1); /* alone: the control */
        if (!alone)
            assert_int_equal(gets_seen(w) - before, 1);
        assert_int_equal(stats_of(&in).l2_reads_joined, alone ? 0 : READERS - 1);
        close_instance(&in);
    }
}

/* Another key than the n that there are, of one letter, and in none of their cells (one in 256 is, by chance, or rather by the client's
 * secret). */
static const char *
key_apart(const near_cache *cache, const char *const *others, size_t n)
{
    static const char letters[] = "a\0b\0c\0d\0e\0f\0g\0h";

    for (const char *letter = letters; letter < letters + sizeof(letters); letter += 2) {
        uint64_t hash  = near__hash_keyed(&cache->client->secret, near_key(letter));
        bool     apart = true;

        for (size_t i = 0; i < n; i++) {
            uint64_t other = near__hash_keyed(&cache->client->secret, near_key(others[i]));
            apart          = apart && hash % NEAR__SHARE_CELLS != other % NEAR__SHARE_CELLS;
        }
        if (apart)
            return letter;
    }
    fail();
    return NULL;
}

static void
test_batches_join_key_by_key(void **state)
{
    const char     *names[] = { "k", "k", "k", "k" };
    struct world   *w       = *state;
    struct reader   first   = { 0 };
    struct instance in;
    near_bytes      keys[4];
    near_value     *values[4];
    near_status     statuses[4];
    unsigned        before;

    NEEDS(w);
    OPEN_OFF(w, &in);
    names[0] = key_apart(in.cache, &names[1], 1);
    names[2] = key_apart(in.cache, names, 2);
    for (size_t i = 0; i < 4; i++) {
        keys[i] = near_key(names[i]);
        assert_int_equal(near_put(in.cache, keys[i], keys[i], NULL), NEAR_OK);
    }
    /* alone, with a key twice in it: it joins itself */
    assert_int_equal(near_get_many(in.cache, keys, 4, values, statuses), NEAR_OK);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(near_value_bytes(values[i]).size, 1);
        assert_memory_equal(near_value_bytes(values[i]).data, names[i], 1);
        near_value_release(values[i]);
    }
    assert_int_equal(stats_of(&in).l2_reads_joined, 1);
    /* all that it wants is on its way: it asks for nothing, and has its answer when that comes */
    before = reads;
    catch_reader(&first, in.cache, "k");
    {
        struct reader late = { .timeout_ms = 20000 };

        start(&late, in.cache, "k");
        sleep_ms(20);
        assert_int_equal(reads, before + 1);
        let_reader_go(&first);
        finish(&late);
        assert_string_equal(late.text, "k");
    }
    assert_int_equal(reads, before + 1);
    close_instance(&in);
}

/* ---- what may not be joined */

/* G1: a write that has returned is seen by every read that starts later, whatever is still on its way. */
static void
test_G1_no_reader_gets_what_was_read_before_a_write_of_his_own(void **state)
{
    struct world   *w     = *state;
    struct reader   early = { 0 }, joins = { 0 };
    struct instance in;

    NEEDS(w);
    OPEN_OFF(w, &in);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("old"), NULL), NEAR_OK);
    catch_reader(&early, in.cache, "k");
    start(&joins, in.cache, "k"); /* before the write: it may have either */
    sleep_ms(50);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("new"), NULL), NEAR_OK);
    assert_string_equal(read_now(in.cache, "k").text, "new");
    assert_int_equal(near_remove(in.cache, near_key("k")), NEAR_OK);
    assert_int_equal(read_now(in.cache, "k").status, NEAR_MISS);
    let_reader_go(&early);
    finish(&joins);
    assert_string_equal(early.text, "old");
    assert_string_equal(joins.text, "old"); /* the control: it did join */
    assert_int_equal(stats_of(&in).l2_reads_joined, 1);
    close_instance(&in);
}

static void *
fetch_one(void *arg)
{
    struct reader *reader = arg;

    snprintf(reader->text, sizeof(reader->text), "%s", fetch(reader->cache, reader->key).text);
    return NULL;
}

/* The same for near_fetch and its flights, whose fences must move where there is no L1, too. */
static void
test_G1_without_an_L1_a_write_detaches_a_load(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.mode = HOLD);
    struct reader   early = { 0 };
    struct instance in;

    NEEDS(w);
    OPEN_OFF(w, &in);
    near_cache_set_loader(in.cache, load_from_store, &store);
    early.cache = in.cache;
    early.key   = "k";
    assert_int_equal(pthread_create(&early.thread, NULL, fetch_one, &early), 0);
    await_held(&store, 1);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("new"), NULL), NEAR_OK);
    assert_string_equal(fetch_within(in.cache, "k", 5000 * test_slack()).text, "new");
    answer_version(store.held[0], 1);
    finish(&early);
    assert_string_equal(early.text, "v1");
    assert_int_equal(store.calls, 1);
    close_instance(&in);
}

/* G2+: nor before another instance's write that a fence has brought in. */
static void
test_G2_no_reader_gets_what_was_read_before_a_fence(void **state)
{
    struct world   *w     = *state;
    struct reader   early = { 0 };
    struct instance in, other;

    NEEDS(w);
    OPEN_OFF(w, &in);
    OPEN_OFF(w, &other);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("old"), NULL), NEAR_OK);
    assert_int_equal(near_fence(in.client, 5000), NEAR_OK);
    catch_reader(&early, in.cache, "k");
    assert_int_equal(near_put(other.cache, near_key("k"), near_key("new"), NULL), NEAR_OK);
    assert_int_equal(near_fence(in.client, 5000), NEAR_OK);
    assert_string_equal(read_now(in.cache, "k").text, "new");
    let_reader_go(&early);
    assert_string_equal(early.text, "old");
    assert_int_equal(stats_of(&in).l2_reads_joined, 0);
    close_instance(&in);
    close_instance(&other);
}

/* Where nothing is heard of others, only what L1 might have answered may be shared. */
static void
test_without_a_bus_only_an_L1_allows_it(void **state)
{
    struct world   *w = *state;
    struct instance in;

    NEEDS(w);
    for (unsigned off = 0; off < 2; off++) {
        struct reader early = { 0 }, late = { 0 };

        OPEN(w, &in, "l1.max_bytes", off ? "0" : "1MiB");
        assert_int_equal(near_remove(in.cache, near_key("k")), NEAR_OK);
        catch_reader(&early, in.cache, "k");
        start(&late, in.cache, "k");
        sleep_ms(50);
        if (off)
            finish(&late); /* it does not wait */
        let_reader_go(&early);
        if (!off)
            finish(&late);
        assert_int_equal(late.status, NEAR_MISS);
        assert_int_equal(stats_of(&in).l2_reads_joined, off ? 0 : 1);
        close_instance(&in);
    }
}

static int
gate_is_closed(void *ctx)
{
    struct instance *in = ctx;

    near_get(in->cache, near_key("other"), &(near_value *){ NULL });
    return stats_of(in).gate_closed_reads > 0;
}

/* G5: with the bus lost reads are L2's own. */
static void
test_G5_with_a_closed_gate_nobody_joins(void **state)
{
    struct world   *w     = *state;
    struct reader   early = { 0 };
    struct instance in;

    NEEDS(w);
    OPEN(w, &in, "coherence.serve_window", "100ms", "coherence.heartbeat", "20ms");
    test_server_kill(w->redis);
    sleep_ms(200); /* an answer from before may yet be heard, and is good for 100 */
    assert_true(test_wait_for(gate_is_closed, &in, 10000 * test_slack()));
    catch_reader(&early, in.cache, "k");
    assert_int_equal(read_now(in.cache, "k").status, NEAR_MISS); /* would hang if it joined */
    let_reader_go(&early);
    assert_int_equal(stats_of(&in).l2_reads_joined, 0);
    close_instance(&in);
}

/* ---- deadlines */

static void
test_who_joins_keeps_his_own_deadline(void **state)
{
    struct world   *w     = *state;
    struct reader   early = { 0 }, hasty = { .timeout_ms = 50 }, patient = { 0 };
    struct instance in;

    NEEDS(w);
    OPEN_OFF(w, &in);
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    catch_reader(&early, in.cache, "k");
    start(&patient, in.cache, "k");
    start(&hasty, in.cache, "k");
    finish(&hasty);
    assert_int_equal(hasty.status, NEAR_ERR_TIMEOUT);
    assert_in_range(hasty.took_ms, 49, 50 + 200 * test_slack());
    let_reader_go(&early);
    finish(&patient);
    assert_string_equal(patient.text, "v");
    close_instance(&in);
}

/* A leader in a hurry does not take the others with it. */
static void
test_a_leader_that_gives_up_is_not_followed(void **state)
{
    struct world   *w     = *state;
    struct reader   hasty = { .timeout_ms = 100 }, patient = { 0 };
    struct instance in;

    NEEDS(w);
    OPEN_OFF(w, &in, "l2.timeout", "20s");
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    assert_string_equal(read_now(in.cache, "k").text, "v");
    test_server_pause(w->redis);
    start(&hasty, in.cache, "k");
    sleep_ms(30);
    start(&patient, in.cache, "k");
    finish(&hasty);
    assert_int_equal(hasty.status, NEAR_ERR_TIMEOUT);
    test_server_resume(w->redis);
    finish(&patient);
    assert_int_equal(patient.status, NEAR_OK);
    assert_string_equal(patient.text, "v");
    close_instance(&in);
}

/* ---- and all at once */

struct crowd {
    near_cache      *cache;
    _Atomic int      wrong;
    _Atomic uint64_t written;
    atomic_bool      stop;
};

static void *
write_up(void *arg)
{
    struct crowd *crowd = arg;

    for (uint64_t i = 1; i <= test_scale(3000); i++) {
        if (near_put(crowd->cache, near_key("k"), (near_bytes){ &i, sizeof(i) }, NULL) != NEAR_OK)
            crowd->wrong++;
        crowd->written = i;
    }
    crowd->stop = true;
    return NULL;
}

static void *
read_up(void *arg)
{
    struct crowd *crowd = arg;

    while (!crowd->stop) {
        near_bytes  keys[3] = { near_key("k"), near_key("x"), near_key("k") };
        near_value *values[3];
        near_status statuses[3];
        uint64_t    least = crowd->written, got = 0;

        near_get_many(crowd->cache, keys, 3, values, statuses);
        for (size_t i = 0; i < 3; i++) {
            if (i == 1)
                continue;
            if (statuses[i] == NEAR_OK)
                memcpy(&got, near_value_bytes(values[i]).data, sizeof(got));
            if (got < least)
                crowd->wrong++;
            near_value_release(values[i]);
        }
        least = crowd->written;
        if (near_get(crowd->cache, near_key("k"), &values[0]) == NEAR_OK) {
            memcpy(&got, near_value_bytes(values[0]).data, sizeof(got));
            near_value_release(values[0]);
        }
        if (got < least)
            crowd->wrong++;
    }
    return NULL;
}

static void
test_G1_under_load(void **state)
{
    struct world   *w     = *state;
    struct crowd    crowd = { .wrong = 0 };
    pthread_t       threads[6];
    struct instance in;

    NEEDS(w);
    OPEN_OFF(w, &in, "l2.pool_size", "16");
    crowd.cache = in.cache;
    for (size_t i = 0; i < NEAR_COUNT_OF(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, i == 0 ? write_up : read_up, &crowd), 0);
    for (size_t i = 0; i < NEAR_COUNT_OF(threads); i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(crowd.wrong, 0);
    if (w->tier == TIER_REDIS) /* in memory: reads hardly ever meet */
        assert_true(stats_of(&in).l2_reads_joined > 0);
    close_instance(&in);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        OVER(redis, test_a_cold_key_is_asked_once),
        OVER(memory, test_batches_join_key_by_key),
        OVER(memory, test_G1_no_reader_gets_what_was_read_before_a_write_of_his_own),
        OVER(redis, test_G1_no_reader_gets_what_was_read_before_a_write_of_his_own),
        OVER(memory, test_G1_without_an_L1_a_write_detaches_a_load),
        OVER(redis, test_G1_without_an_L1_a_write_detaches_a_load),
        OVER(redis, test_G2_no_reader_gets_what_was_read_before_a_fence),
        OVER(both, test_G2_no_reader_gets_what_was_read_before_a_fence),
        OVER(memcached, test_without_a_bus_only_an_L1_allows_it),
        OVER(both, test_G5_with_a_closed_gate_nobody_joins),
        OVER(memory, test_who_joins_keeps_his_own_deadline),
        OVER(redis, test_a_leader_that_gives_up_is_not_followed),
        OVER(memory, test_G1_under_load),
        OVER(redis, test_G1_under_load),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
