/*
 * Decoded values (near_cache_set_codec): who gets an object by which way, how often it is decoded, what L2 and the store have of it, and
 * what happens to what cannot be decoded, to objects that outlive their cache, and where memory is short.
 *
 * The codec makes a `thing` of a text and refuses texts that begin with "bad".  A thing is poisoned when it is destroyed and its memory kept
 * until the test's end, so one that is shown too long, or destroyed twice, is found out.
 */
#include "world.h"

#include "harness/shortage.h"
#include "harness/sink.h"

/* ---- the codec */

#define ALIVE 0xA11CEu
#define DEAD  0xDEADu

struct thing {
    _Atomic uint32_t state;
    char             text[28];
    struct thing    *next; /* of the dead */
};

struct codec {
    pthread_mutex_t  lock; /* covers dead */
    struct thing    *dead;
    _Atomic unsigned made, destroyed, twice, refused;
    _Atomic unsigned delay_ms;
};
#define CODEC()                                                                                              \
    {                                                                                                        \
        .lock = PTHREAD_MUTEX_INITIALIZER                                                                    \
    }

static near_status
decode(near_bytes key, near_bytes bytes, void **object, void *ctx)
{
    struct codec *codec = ctx;
    struct thing *thing;

    (void)key;
    if (codec->delay_ms > 0)
        sleep_ms(codec->delay_ms);
    if (bytes.size >= sizeof(thing->text) || (bytes.size >= 3 && memcmp(bytes.data, "bad", 3) == 0)) {
        codec->refused++;
        return NEAR_ERR_INVALID;
    }
    thing = malloc(sizeof(*thing));
    if (thing == NULL)
        return NEAR_ERR_NOMEM;
    memset(thing, 0, sizeof(*thing));
    thing->state = ALIVE;
    if (bytes.size > 0)
        memcpy(thing->text, bytes.data, bytes.size);
    codec->made++;
    *object = thing;
    return NEAR_OK;
}

static size_t
size(const void *object, void *ctx)
{
    (void)object;
    (void)ctx;
    return sizeof(struct thing);
}

static void
destroy(void *object, void *ctx)
{
    struct codec *codec = ctx;
    struct thing *thing = object;

    if (atomic_exchange(&thing->state, DEAD) != ALIVE) {
        codec->twice++;
        return;
    }
    pthread_mutex_lock(&codec->lock);
    thing->next = codec->dead;
    codec->dead = thing;
    pthread_mutex_unlock(&codec->lock);
    codec->destroyed++;
}

static void
use_codec(struct instance *in, struct codec *codec, unsigned flags)
{
    near_codec functions = NEAR_CODEC_INIT;

    functions.flags   = flags;
    functions.decode  = decode;
    functions.size    = size;
    functions.destroy = destroy;
    assert_int_equal(near_cache_set_codec(in->cache, &functions, codec), NEAR_OK);
}

/* Everything that was made has ended, once. */
static void
codec_over(struct codec *codec)
{
    struct thing *next;

    assert_int_equal(codec->twice, 0);
    assert_int_equal(codec->made, codec->destroyed);
    for (; codec->dead != NULL; codec->dead = next) {
        next = codec->dead->next;
        free(codec->dead);
    }
}

WORLD(none, TIER_NONE)
WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)

/* ---- asking */

/* What the value's object says; "!" in front of it: stale. */
static const char *
told(near_status status, near_value *value)
{
    static _Thread_local char text[64];
    near_value_info           info  = NEAR_VALUE_INFO_INIT;
    const struct thing       *thing = near_value_object(value);

    near_value_get_info(value, &info);
    if (status != NEAR_OK)
        snprintf(text, sizeof(text), "[%d]", status);
    else if (thing == NULL)
        snprintf(text, sizeof(text), "no object");
    else
        snprintf(text, sizeof(text), "%s%s", info.stale ? "!" : "",
                 thing->state == ALIVE ? thing->text : "dead");
    near_value_release(value);
    return text;
}

static const char *
got(struct instance *in, const char *key)
{
    near_value *value;
    near_status status = near_get(in->cache, near_key(key), &value);

    return told(status, value);
}

static const char *
fetched(struct instance *in, const char *key)
{
    near_value *value;
    near_status status = near_fetch(in->cache, near_key(key), NULL, &value);

    return told(status, value);
}

static near_status
put(struct instance *in, const char *key, const char *text)
{
    return near_put(in->cache, near_key(key), near_key(text), NULL);
}

#define UNDECODABLE "[-14]"

/* ---- the ways of a value */

static void
test_all_reads_hand_out_the_object(void **state)
{
    struct world   *w      = *state;
    struct codec    codec  = CODEC();
    struct store    store  = STORE();
    near_bytes      keys[] = { near_key("a"), near_key("loaded"), near_key("gone"), near_key("a") };
    near_value     *values[4], *value;
    near_status     statuses[4];
    struct instance in;
    char            copy[16];
    size_t          copied;

    NEEDS(w);
    OPEN(w, &in, "l1.max_ttl", "0");
    use_codec(&in, &codec, 0);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_int_equal(put(&in, "a", "one"), NEAR_OK);
    assert_string_equal(got(&in, "a"), "one");
    assert_string_equal(fetched(&in, "loaded"), "v1");
    assert_string_equal(fetched(&in, "loaded"), "v1");
    assert_int_equal(codec.made, 2); /* once per fill */
    assert_int_equal(near_get_many(in.cache, keys, 4, values, statuses), NEAR_OK);
    assert_int_equal(statuses[2], NEAR_MISS);
    assert_ptr_equal(near_value_object(values[0]), near_value_object(values[3]));
    assert_string_equal(told(statuses[0], values[0]), "one");
    assert_string_equal(told(statuses[1], values[1]), "v1");
    near_value_release(values[3]);
    assert_int_equal(near_get(in.cache, near_key("a"), &value), NEAR_OK);
    assert_int_equal(near_value_bytes(value).size, 0);
    near_value_release(value);
    assert_int_equal(near_get_copy(in.cache, near_key("a"), copy, sizeof(copy), &copied, NULL),
                     NEAR_ERR_UNSUPPORTED);
    assert_int_equal(stats_of(&in).decodes, 2);
    store.mode = NOT_FOUND;
    assert_int_equal(near_fetch(in.cache, near_key("nothing"), NULL, &value), NEAR_NOT_FOUND);
    assert_int_equal(near_get(in.cache, near_key("nothing"), &value), NEAR_NOT_FOUND);
    close_instance(&in);
    codec_over(&codec);
}

static void
test_L2_keeps_the_bytes_and_another_instance_decodes_them(void **state)
{
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    struct instance in, plain;
    near_value     *value, *again;

    NEEDS(w);
    OPEN(w, &plain, NULL);
    OPEN(w, &in, NULL);
    use_codec(&in, &codec, 0);
    assert_int_equal(put(&in, "mine", "text"), NEAR_OK);
    assert_int_equal(put(&plain, "theirs", "other"), NEAR_OK);
    await_get(plain.cache, "mine", "text");
    assert_int_equal(near_get(in.cache, near_key("theirs"), &value), NEAR_OK);
    assert_int_equal(near_get(in.cache, near_key("theirs"), &again), NEAR_OK);
    assert_ptr_equal(near_value_object(value), near_value_object(again)); /* one fill, one object */
    near_value_release(again);
    assert_string_equal(told(NEAR_OK, value), "other");
    assert_int_equal(codec.made, 2);
    close_instance(&in);
    close_instance(&plain);
    codec_over(&codec);
}

static void
test_kept_bytes_are_there_beside_the_object(void **state)
{
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    struct instance in;
    near_value     *value;
    char            copy[16];
    size_t          copied;

    OPEN(w, &in, NULL);
    use_codec(&in, &codec, NEAR_KEEP_BYTES);
    assert_int_equal(put(&in, "a", "one"), NEAR_OK);
    assert_int_equal(near_get(in.cache, near_key("a"), &value), NEAR_OK);
    assert_int_equal(near_value_bytes(value).size, 3);
    assert_memory_equal(near_value_bytes(value).data, "one", 3);
    assert_string_equal(told(NEAR_OK, value), "one");
    assert_int_equal(near_get_copy(in.cache, near_key("a"), copy, sizeof(copy), &copied, NULL), NEAR_OK);
    assert_int_equal(copied, 3);
    close_instance(&in);
    codec_over(&codec);
}

static void
test_a_codec_without_decode_is_refused_and_NULL_takes_it_away(void **state)
{
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    near_codec      none  = NEAR_CODEC_INIT;
    struct instance in;

    OPEN(w, &in, NULL);
    assert_int_equal(near_cache_set_codec(in.cache, &none, NULL), NEAR_ERR_INVALID);
    assert_int_equal(near_cache_set_codec(NULL, &none, NULL), NEAR_ERR_INVALID);
    use_codec(&in, &codec, 0);
    assert_int_equal(near_cache_set_codec(in.cache, NULL, NULL), NEAR_OK);
    assert_int_equal(put(&in, "a", "bad"), NEAR_OK);
    assert_string_equal(got(&in, "a"), "no object");
    close_instance(&in);
    codec_over(&codec);
}

/* ---- once, however many wait */

struct crowd {
    struct instance  *in;
    bool              fetches;
    _Atomic uintptr_t objects[16];
    _Atomic unsigned  arrived;
};

static void *
crowd_ask(void *ctx)
{
    struct crowd *crowd = ctx;
    unsigned      mine  = crowd->arrived++;
    near_value   *value = NULL;

    if (crowd->fetches)
        near_fetch(crowd->in->cache, near_key("k"), NULL, &value);
    else
        near_get(crowd->in->cache, near_key("k"), &value);
    crowd->objects[mine] = (uintptr_t)near_value_object(value);
    near_value_release(value);
    return NULL;
}

static void
test_a_load_that_many_wait_for_is_decoded_once(void **state)
{
    enum { CROWD = 16 };
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    struct store    store = STORE(.delay_ms = 50);
    struct instance in;
    struct crowd    crowd = { .in = &in, .fetches = true };
    pthread_t       threads[CROWD];

    NEEDS(w);
    OPEN(w, &in, NULL);
    codec.delay_ms = 20;
    use_codec(&in, &codec, 0);
    near_cache_set_loader(in.cache, load_from_store, &store);
    for (size_t i = 0; i < CROWD; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_ask, &crowd), 0);
    for (size_t i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(codec.made, 1);
    for (size_t i = 0; i < CROWD; i++)
        assert_int_equal(crowd.objects[i], crowd.objects[0]);
    close_instance(&in);
    codec_over(&codec);
}

static int
serves_from_l1(void *ctx)
{
    const struct instance *in   = ctx;
    near_value_info        info = NEAR_VALUE_INFO_INIT;
    near_value            *value;

    if (near_get(in->cache, near_key("warm"), &value) != NEAR_OK)
        return 0;
    near_value_get_info(value, &info);
    near_value_release(value);
    return info.source == NEAR_FROM_L1;
}

static void
test_a_read_that_many_share_is_decoded_once(void **state)
{
    enum { CROWD = 16 };
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    struct instance in, other;
    struct crowd    crowd = { .in = &in };
    pthread_t       threads[CROWD];
    unsigned        made;

    NEEDS(w);
    OPEN(w, &other, NULL);
    assert_int_equal(put(&other, "k", "text"), NEAR_OK);
    OPEN(w, &in, "l2.timeout", "60s"); /* whoever waits for another's read waits for its decoding too */
    use_codec(&in, &codec, 0);
    assert_int_equal(put(&in, "warm", "text"), NEAR_OK);
    assert_true(test_wait_for(serves_from_l1, &in,
                              10000 * test_slack())); /* while the gate is closed nothing is shared */
    made           = codec.made;
    codec.delay_ms = 200 * test_slack(); /* the others come while it decodes: the read is not over before */
    for (size_t i = 0; i < CROWD; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, crowd_ask, &crowd), 0);
    for (size_t i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    for (size_t i = 0; i < CROWD; i++)
        assert_int_not_equal(crowd.objects[i], 0);
    assert_int_equal(codec.made - made, 1);
    close_instance(&in);
    close_instance(&other);
    codec_over(&codec);
}

/* ---- what cannot be decoded */

static void
test_what_cannot_be_decoded_is_told_and_replaced_by_a_loader(void **state)
{
    struct world   *w      = *state;
    struct codec    codec  = CODEC();
    struct store    store  = STORE();
    near_bytes      keys[] = { near_key("k"), near_key("good") };
    near_value     *values[2];
    near_status     statuses[2];
    struct instance in, plain;

    NEEDS(w);
    OPEN(w, &plain, NULL);
    assert_int_equal(put(&plain, "k", "bad bytes"), NEAR_OK);
    assert_int_equal(put(&plain, "good", "bytes"), NEAR_OK);
    OPEN(w, &in, NULL);
    use_codec(&in, &codec, 0);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_string_equal(got(&in, "k"), UNDECODABLE);
    assert_string_equal(got(&in, "k"), UNDECODABLE); /* it is kept nowhere */
    assert_int_equal(near_get_many(in.cache, keys, 2, values, statuses), NEAR_ERR_DECODE);
    assert_int_equal(statuses[0], NEAR_ERR_DECODE);
    assert_null(values[0]);
    assert_string_equal(told(statuses[1], values[1]), "bytes");
    assert_int_equal(stats_of(&in).decode_failures, 3);
    assert_string_equal(fetched(&in, "k"), "v1");
    assert_string_equal(got(&in, "k"), "v1");
    near_fence(plain.client, -1);
    close_instance(&in);
    codec_over(&codec);
    OPEN(w, &in, NULL); /* what L2 has now */
    assert_int_equal(near_get(in.cache, near_key("k"), &values[0]), NEAR_OK);
    assert_int_equal(near_value_bytes(values[0]).size, 2);
    near_value_release(values[0]);
    close_instance(&in);
    close_instance(&plain);
}

static void
answer_badly(struct store *store, near_load *load)
{
    static const char bytes[] = "bad answer";

    (void)store;
    assert_int_equal(near_load_set(load, (near_bytes){ bytes, sizeof(bytes) - 1 }), NEAR_ERR_DECODE);
}

static _Atomic unsigned adopted_released;

static void
adopted_release(void *data)
{
    (void)data;
    adopted_released++;
}

static void
adopt_badly(struct store *store, near_load *load)
{
    static char bytes[] = "bad answer";

    (void)store;
    assert_int_equal(near_load_adopt(load, bytes, sizeof(bytes) - 1, adopted_release), NEAR_ERR_DECODE);
}

static void
adopt_well(struct store *store, near_load *load)
{
    static char bytes[] = "adopted";

    (void)store;
    assert_int_equal(near_load_adopt(load, bytes, sizeof(bytes) - 1, adopted_release), NEAR_OK);
}

static void
test_a_loader_that_gives_nonsense_fails_the_load(void **state)
{
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    struct store    store = STORE(.answer = answer_badly);
    struct instance in;

    NEEDS(w);
    OPEN(w, &in, "load.retry", "0");
    use_codec(&in, &codec, 0);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_string_equal(fetched(&in, "k"), UNDECODABLE);
    assert_int_equal(stats_of(&in).load_failures, 1);
    adopted_released = 0;
    store.answer     = adopt_badly;
    assert_string_equal(fetched(&in, "k"), UNDECODABLE);
    assert_int_equal(adopted_released, 1);
    store.answer = adopt_well;
    assert_string_equal(fetched(&in, "k"), "adopted");
    assert_string_equal(got(&in, "k"), "adopted");
    assert_int_equal(adopted_released, 2); /* L1 has the object, nobody the bytes */
    close_instance(&in);
    codec_over(&codec);
}

static void
test_writes_that_cannot_be_decoded_change_nothing(void **state)
{
    struct world *w      = *state;
    near_bytes    keys[] = { near_key("a"), near_key("b") }, values[] = { near_key("bad"), near_key("two") };
    struct sink  *sink       = calloc(1, sizeof(*sink));
    struct codec  codec      = CODEC();
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    near_status      statuses[2];
    near_value      *value;
    struct instance  in;

    NEEDS(w);
    pthread_mutex_init(&sink->lock, NULL);
    OPEN(w, &in, NULL);
    use_codec(&in, &codec, 0);
    near_cache_set_store(in.cache, sink_store, sink);
    assert_int_equal(put(&in, "a", "one"), NEAR_OK);
    assert_int_equal(put(&in, "a", "bad"), NEAR_ERR_DECODE);
    assert_string_equal(got(&in, "a"), "one");
    assert_int_equal(near_put_many(in.cache, keys, values, 2, NULL, statuses), NEAR_ERR_DECODE);
    assert_string_equal(got(&in, "a"), "one");
    assert_string_equal(got(&in, "b"), "two");
    options.flags = NEAR_IF_ABSENT;
    assert_int_equal(near_put(in.cache, near_key("c"), near_key("bad"), &options), NEAR_ERR_DECODE);
    assert_string_equal(got(&in, "c"), "[1]");
    assert_int_equal(near_put(in.cache, near_key("c"), near_key("three"), &options), NEAR_OK);
    assert_string_equal(got(&in, "c"), "three");
    options = (near_put_options)NEAR_PUT_OPTIONS_INIT;
    assert_int_equal(near_get(in.cache, near_key("c"), &value), NEAR_OK);
    assert_int_equal(put(&in, "c", "four"), NEAR_OK);
    options.unchanged = value; /* no bytes here, and none there: two versions all the same */
    assert_int_equal(near_put(in.cache, near_key("c"), near_key("five"), &options), NEAR_ERR_CONFLICT);
    near_value_release(value);
    assert_int_equal(near_get(in.cache, near_key("c"), &value), NEAR_OK);
    options.unchanged = value;
    assert_int_equal(near_put(in.cache, near_key("c"), near_key("six"), &options), NEAR_OK);
    near_value_release(value);
    assert_string_equal(got(&in, "c"), "six");
    assert_int_equal(near_update(in.cache, near_key("d"), near_key("bad"), NULL), NEAR_ERR_DECODE);
    assert_int_equal(sink->writes, 0); /* the store was not asked */
    assert_int_equal(near_update(in.cache, near_key("d"), near_key("seven"), NULL), NEAR_OK);
    assert_string_equal(got(&in, "d"), "seven");
    assert_string_equal(sink_value(sink, "d"), "seven");
    close_instance(&in);
    codec_over(&codec);
    free(sink);
}

/* ---- what is kept elsewhere than in L1 */

static void
test_changes_that_are_written_back_have_objects(void **state)
{
    struct world   *w     = *state;
    struct sink    *sink  = calloc(1, sizeof(*sink));
    struct codec    codec = CODEC();
    struct store    store = STORE();
    struct instance in;

    NEEDS(w);
    pthread_mutex_init(&sink->lock, NULL);
    OPEN(w, &in, "write.policy", "back", "write_back.interval", "1h");
    use_codec(&in, &codec, 0);
    near_cache_set_loader(in.cache, load_from_store, &store);
    near_cache_set_store(in.cache, sink_store, sink);
    assert_int_equal(near_update(in.cache, near_key("k"), near_key("bad"), NULL), NEAR_ERR_DECODE);
    assert_string_equal(got(&in, "k"), "[1]");
    for (int i = 0; i < 3; i++)
        assert_int_equal(near_update(in.cache, near_key("k"), near_key("dirty"), NULL), NEAR_OK);
    assert_int_equal(codec.made, 3); /* one each, for the table and L1 together */
    assert_int_equal(stats_of(&in).write_back_pending, 1);
    assert_string_equal(got(&in, "k"), "dirty");
    assert_string_equal(fetched(&in, "k"), "dirty");
    assert_int_equal(near_flush(in.client, 10000 * test_slack()), NEAR_OK);
    assert_string_equal(sink_value(sink, "k"), "dirty");
    assert_string_equal(got(&in, "k"), "dirty");
    assert_int_equal(codec.made, 3);
    assert_int_equal(near_erase(in.cache, near_key("k")), NEAR_OK);
    assert_int_equal(near_flush(in.client, 10000 * test_slack()), NEAR_OK);
    close_instance(&in);
    codec_over(&codec);
    free(sink);
}

static void
test_stale_values_have_objects(void **state)
{
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    struct store    store = STORE();
    struct instance in;

    NEEDS(w);
    OPEN(w, &in, "grace", "1h", "load.retry", "0");
    use_codec(&in, &codec, 0);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_string_equal(fetched(&in, "k"), "v1");
    store.mode = FAIL;
    assert_int_equal(near_expire(in.cache, near_key("k")), NEAR_OK);
    assert_string_equal(got(&in, "k"), "[1]");
    assert_string_equal(fetched(&in, "k"), "!v1");
    assert_string_equal(fetched(&in, "k"), "!v1");
    store.mode  = ANSWER;
    store.newer = 1;
    assert_string_equal(fetched(&in, "k"), "v2");
    close_instance(&in);
    codec_over(&codec);
}

static void
confirm(struct store *store, near_load *load)
{
    if (near_load_previous(load) == NULL) {
        answer_version(load, 1);
        return;
    }
    assert_non_null(near_value_object(near_load_previous(load)));
    store->newer++;
    assert_int_equal(near_load_unchanged(load), NEAR_OK);
}

static void
confirmed(struct world *w, unsigned flags)
{
    struct codec    codec = CODEC();
    struct store    store = STORE(.answer = confirm);
    struct instance in;
    near_value     *before, *after;

    OPEN(w, &in, "grace", "1h");
    use_codec(&in, &codec, flags);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_int_equal(near_fetch(in.cache, near_key("k"), NULL, &before), NEAR_OK);
    assert_int_equal(near_expire(in.cache, near_key("k")), NEAR_OK);
    assert_string_equal(fetched(&in, "k"), "v1");
    assert_int_equal(store.newer, 1);
    assert_int_equal(near_get(in.cache, near_key("k"), &after), NEAR_OK);
    if (w->tier == TIER_NONE) /* else L2's copy was decoded for the load to look at */
        assert_ptr_equal(near_value_object(before), near_value_object(after));
    near_value_release(before);
    assert_string_equal(told(NEAR_OK, after), "v1");
    close_instance(&in);
    codec_over(&codec);
}

static void
test_a_confirmed_value_keeps_its_object(void **state)
{
    struct world *w = *state;

    NEEDS(w);
    confirmed(w, 0);
    confirmed(w, NEAR_KEEP_BYTES);
}

static void
test_a_counter_is_its_text(void **state)
{
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    struct instance in;
    near_value     *value;

    NEEDS(w);
    OPEN(w, &in, NULL);
    use_codec(&in, &codec, 0);
    assert_int_equal(near_add(in.cache, near_key("n"), 1, 41, NULL), NEAR_OK);
    assert_int_equal(near_add(in.cache, near_key("n"), 1, 41, NULL), NEAR_OK);
    assert_int_equal(near_get(in.cache, near_key("n"), &value), NEAR_OK);
    assert_null(near_value_object(value));
    assert_int_equal(near_value_bytes(value).size, 2);
    near_value_release(value);
    close_instance(&in);
    codec_over(&codec);
}

/* ---- the end */

static int
only_held(void *ctx)
{
    struct codec *codec = ctx;

    return codec->made - codec->destroyed == 1;
}

static void
test_objects_end_soon_after_they_are_replaced_and_cleared(void **state)
{
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    struct instance in;
    char            key[16];

    OPEN(w, &in, NULL);
    use_codec(&in, &codec, 0);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(put(&in, "k", "text"), NEAR_OK);
    assert_true(test_wait_for(only_held, &codec, 10000 * test_slack()));
    for (int i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "%d", i);
        assert_int_equal(put(&in, key, "text"), NEAR_OK);
    }
    assert_int_equal(near_clear(in.cache), NEAR_OK);
    assert_int_equal(put(&in, "k", "text"), NEAR_OK);
    assert_true(test_wait_for(only_held, &codec, 10000 * test_slack()));
    close_instance(&in);
    codec_over(&codec);
}

static void
test_held_objects_outlive_their_client(void **state)
{
    struct world   *w     = *state;
    struct codec    codec = CODEC();
    struct store    store = STORE();
    near_value     *values[3];
    struct instance in;

    OPEN(w, &in, NULL);
    use_codec(&in, &codec, 0);
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_int_equal(near_fetch(in.cache, near_key("loaded"), NULL, &values[0]), NEAR_OK); /* counted */
    assert_int_equal(near_get(in.cache, near_key("loaded"), &values[1]), NEAR_OK);         /* in place */
    assert_int_equal(put(&in, "put", "text"), NEAR_OK);
    assert_int_equal(near_get(in.cache, near_key("put"), &values[2]), NEAR_OK);
    close_instance(&in);
    assert_int_equal(codec.destroyed, 0);
    assert_string_equal(told(NEAR_OK, values[0]), "v1");
    assert_int_equal(codec.destroyed, 0);
    assert_string_equal(told(NEAR_OK, values[1]), "v1");
    assert_string_equal(told(NEAR_OK, values[2]), "text");
    codec_over(&codec);
}

/* ---- races: replacing, removing, clearing, resizing, fetching, while others hold; then closing while they still do */

enum { RACERS = 4, RACE_KEYS = 60, RACE_HOLDS = 32 };

struct race {
    struct instance  in;
    _Atomic unsigned broken;
    near_value      *left[RACERS][RACE_HOLDS];
    size_t           rounds;
};

struct racer {
    struct race *race;
    unsigned     number;
};

static void
look_at(struct race *race, near_value *value)
{
    const struct thing *thing = near_value_object(value);

    if (value != NULL && (thing == NULL || thing->state != ALIVE))
        race->broken++;
}

static void *
race_run(void *ctx)
{
    struct racer *racer  = ctx;
    struct race  *race   = racer->race;
    near_cache   *cache  = race->in.cache;
    uint64_t      random = racer->number + 1;

    for (size_t i = 0; i < race->rounds; i++) {
        near_value **place = &race->left[racer->number][test_random(&random) % RACE_HOLDS];
        uint64_t     dice  = test_random(&random) % 100;
        near_value  *value = NULL;
        char         text[32];
        near_bytes   key;

        snprintf(text, sizeof(text), "key %llu", (unsigned long long)(test_random(&random) % RACE_KEYS));
        key = near_key(text);
        if (dice < 50)
            near_fetch(cache, key, NULL, &value);
        else if (dice < 70)
            near_get(cache, key, &value);
        else if (dice < 88)
            near_put(cache, key, key, NULL);
        else if (dice < 96)
            near_remove(cache, key);
        else if (dice < 98)
            near_cache_resize(cache, dice == 96 ? 64 << 10 : 128 << 10, 0, NULL);
        else if (dice < 99)
            near_expire(cache, key);
        else
            near_clear(cache);
        look_at(race, value);
        look_at(race, *place);
        if (value != NULL) {
            near_value_release(*place);
            *place = value;
        }
    }
    return NULL;
}

static void *
release_all(void *ctx)
{
    struct racer *racer = ctx;

    for (size_t i = 0; i < RACE_HOLDS; i++) {
        look_at(racer->race, racer->race->left[racer->number][i]);
        near_value_release(racer->race->left[racer->number][i]);
    }
    return NULL;
}

static void
test_every_object_ends_once_whatever_races(void **state)
{
    struct world *w     = *state;
    struct codec  codec = CODEC();
    struct store  store = STORE();
    struct race  *race  = calloc(1, sizeof(*race));
    struct racer  racers[RACERS];
    pthread_t     threads[RACERS];

    NEEDS(w);
    OPEN(w, &race->in, "l1.max_bytes", "128KiB", "grace", "1s", "ttl", "20ms", "l1.shards", "1");
    use_codec(&race->in, &codec, 0);
    near_cache_set_loader(race->in.cache, load_from_store, &store);
    race->rounds = test_scale(w->tier == TIER_REDIS ? 1500 : 10000);
    for (unsigned i = 0; i < RACERS; i++) {
        racers[i] = (struct racer){ race, i };
        assert_int_equal(pthread_create(&threads[i], NULL, race_run, &racers[i]), 0);
    }
    for (size_t i = 0; i < RACERS; i++)
        pthread_join(threads[i], NULL);
    for (size_t i = 0; i < RACERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, release_all, &racers[i]), 0);
    close_instance(&race->in); /* while they let go */
    for (size_t i = 0; i < RACERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(race->broken, 0);
    print_message("# %u objects\n", codec.made);
    codec_over(&codec);
    free(race);
}

/* ---- without memory */

/* True: the n-th allocation was not reached. */
static bool
one_round(const struct world *w, long n)
{
    struct codec    codec = CODEC();
    struct store    store = STORE();
    struct sink    *sink  = calloc(1, sizeof(*sink));
    near_value     *value;
    near_status     statuses[6];
    struct instance in, plain;
    bool            done;

    pthread_mutex_init(&sink->lock, NULL);
    OPEN(w, &plain, NULL);
    assert_int_equal(put(&plain, "theirs", "text"), NEAR_OK);
    OPEN(w, &in, "load.retry", "0", "grace", "1h");
    use_codec(&in, &codec, NEAR_KEEP_BYTES);
    near_cache_set_loader(in.cache, load_from_store, &store);
    near_cache_set_store(in.cache, sink_store, sink);
    shortage_begin(n, false);
    statuses[0] = put(&in, "mine", "text");
    statuses[1] = near_get(in.cache, near_key("theirs"), &value);
    near_value_release(value);
    statuses[2] = near_fetch(in.cache, near_key("loaded"), NULL, &value);
    near_value_release(value);
    statuses[3] = near_update(in.cache, near_key("updated"), near_key("text"), NULL);
    statuses[4] = near_expire(in.cache, near_key("loaded"));
    statuses[5] = near_fetch(in.cache, near_key("loaded"), NULL, &value);
    near_value_release(value);
    done = shortage_after > 0; /* not all were asked for */
    shortage_end();
    for (size_t i = 0; i < 6; i++)
        if (statuses[i] != NEAR_OK && statuses[i] != NEAR_ERR_NOMEM && statuses[i] != NEAR_MISS)
            fail_msg("allocation %ld: call %zu answers %d", n, i, statuses[i]);
    assert_string_equal(fetched(&in, "loaded"), "v1");
    assert_int_equal(put(&in, "mine", "again"), NEAR_OK);
    assert_string_equal(got(&in, "mine"), "again");
    close_instance(&in);
    close_instance(&plain);
    codec_over(&codec);
    free(sink);
    return done;
}

static void
test_every_allocation_fails_once(void **state)
{
    long n = 0;

    while (!one_round(*state, n))
        assert_true(++n < 400);
    print_message("# %ld allocations failed one by one\n", n);
    assert_true(n > 5);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        OVER(none, test_all_reads_hand_out_the_object),
        OVER(memory, test_all_reads_hand_out_the_object),
        OVER(redis, test_all_reads_hand_out_the_object),
        OVER(memory, test_L2_keeps_the_bytes_and_another_instance_decodes_them),
        OVER(redis, test_L2_keeps_the_bytes_and_another_instance_decodes_them),
        OVER(none, test_kept_bytes_are_there_beside_the_object),
        OVER(memory, test_kept_bytes_are_there_beside_the_object),
        OVER(none, test_a_codec_without_decode_is_refused_and_NULL_takes_it_away),
        OVER(none, test_a_load_that_many_wait_for_is_decoded_once),
        OVER(redis, test_a_load_that_many_wait_for_is_decoded_once),
        OVER(memory, test_a_read_that_many_share_is_decoded_once),
        OVER(redis, test_a_read_that_many_share_is_decoded_once),
        OVER(memory, test_what_cannot_be_decoded_is_told_and_replaced_by_a_loader),
        OVER(redis, test_what_cannot_be_decoded_is_told_and_replaced_by_a_loader),
        OVER(none, test_a_loader_that_gives_nonsense_fails_the_load),
        OVER(memory, test_a_loader_that_gives_nonsense_fails_the_load),
        OVER(none, test_writes_that_cannot_be_decoded_change_nothing),
        OVER(memory, test_writes_that_cannot_be_decoded_change_nothing),
        OVER(redis, test_writes_that_cannot_be_decoded_change_nothing),
        OVER(none, test_changes_that_are_written_back_have_objects),
        OVER(memory, test_changes_that_are_written_back_have_objects),
        OVER(redis, test_changes_that_are_written_back_have_objects),
        OVER(none, test_stale_values_have_objects),
        OVER(memory, test_stale_values_have_objects),
        OVER(none, test_a_confirmed_value_keeps_its_object),
        OVER(memory, test_a_confirmed_value_keeps_its_object),
        OVER(memory, test_a_counter_is_its_text),
        OVER(none, test_objects_end_soon_after_they_are_replaced_and_cleared),
        OVER(none, test_held_objects_outlive_their_client),
        OVER(none, test_every_object_ends_once_whatever_races),
        OVER(memory, test_every_object_ends_once_whatever_races),
        OVER(redis, test_every_object_ends_once_whatever_races),
        OVER(none, test_every_allocation_fails_once),
        OVER(memory, test_every_allocation_fails_once),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
