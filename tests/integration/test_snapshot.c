/*
 * Warm starts as an application sees them: what comes back, and above all what does not.  Every cure has its control, in which it is
 * switched off (near__snap_controls) and the stale value appears.
 */
#include "instance.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "harness/server.h"
#include "l1/l1.h"
#include "snapshot.h"

static struct test_server *redis, *memcached;
static char                directory[64], path[96], file[100];

static const char *const alone[] = { "l2.uri", "none:", "ttl", "1h", NULL };

static void
let_time_pass(int64_t ms)
{
    nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

static int
has_restored(void *ctx)
{
    return stats(ctx).snapshot_restoring == 0;
}

/* An instance with snapshots, whatever it finds restored. */
static void
open_warm(struct instance *in, const char *const *settings, const char *const *more)
{
    near_config *config = near_config_new();
    near_error   error;

    near_config_set(config, "snapshot.path", path, NULL);
    set_all(config, settings);
    set_all(config, more);
    if (near_client_open(config, &in->client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    assert_int_equal(near_cache_open(in->client, "c", NULL, &in->cache, &error), NEAR_OK);
    near_set_log(in->client, log_write, NULL);
}

static void
open_restored(struct instance *in, const char *const *settings, const char *const *more)
{
    open_warm(in, settings, more);
    assert_true(test_wait_for(has_restored, in, SOON));
}

#define WITH(...) ((const char *const[]){ __VA_ARGS__, NULL })
#define PATIENT   "l2.timeout", "20s", "l2.connect_timeout", "20s" /* servers may not be let run for long */

static void
key_of(unsigned i, char key[24])
{
    snprintf(key, 24, "key %u", i);
}

static void
put_text(near_cache *cache, const char *key, const char *value)
{
    assert_int_equal(near_put(cache, near_key(key), near_key(value), NULL), NEAR_OK);
}

/* What L1 itself answers: "-" for nothing. */
static const char *
in_l1(const struct instance *in, const char *key)
{
    static char      text[128];
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    near_value      *value;
    near_status      status;

    options.flags = NEAR_ONLY_L1;
    status        = near_get_with(in->cache, near_key(key), &options, &value);
    if (status != NEAR_OK)
        return status == NEAR_NOT_FOUND ? "nothing" : "-";
    snprintf(text, sizeof(text), "%.*s", (int)near_value_bytes(value).size,
             (const char *)near_value_bytes(value).data);
    near_value_release(value);
    return text;
}

static bool
file_is_there(void)
{
    return access(file, F_OK) == 0;
}

/* ---- alone */

#define SHORT_MS 300

static void
load(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++) {
        const char *key = near_load_key(loads[i]).data;

        if (key[0] == 'n') {
            near_load_not_found(loads[i]);
            continue;
        }
        near_load_tag(loads[i], key[0] == 't' ? "red" : "blue");
        near_load_ttl(loads[i], key[0] == 's' ? SHORT_MS : 600000);
        near_load_set(loads[i], near_load_key(loads[i]));
    }
}

static void
fetch(struct instance *in, const char *key)
{
    near_value *value = NULL;

    near_fetch(in->cache, near_key(key), NULL, &value);
    if (value != NULL)
        near_value_release(value);
}

static void
test_it_comes_back(void **state)
{
    struct instance in   = { 0 };
    near_value_info info = NEAR_VALUE_INFO_INIT;
    near_value     *value;
    struct stat     about;
    char            key[24], large[100000];
    int64_t         began, took;

    (void)state;
    open_warm(&in, alone, NULL);
    near_cache_set_loader(in.cache, load, NULL);
    for (unsigned i = 0; i < 5000; i++) {
        key_of(i, key);
        put_text(in.cache, key, key);
    }
    memset(large, 'x', sizeof(large));
    assert_int_equal(near_put(in.cache, near_key("large"), (near_bytes){ large, sizeof(large) }, NULL),
                     NEAR_OK);
    fetch(&in, "tagged");
    began = test_now_ms();
    fetch(&in, "short");
    fetch(&in, "none");
    assert_int_equal(near_client_close(in.client, NULL), NEAR_OK);
    took = test_now_ms() - began;
    assert_int_equal(stat(file, &about), 0);
    assert_int_equal(about.st_mode & 07777, 0600);
    let_time_pass(400);

    open_restored(&in, alone, NULL);
    assert_false(file_is_there()); /* it serves once */
    assert_int_equal(stats(&in).snapshot_restored, 5003);
    if (took < SHORT_MS || stats(&in).snapshot_dropped != 0) /* else it had ended before it could be saved */
        assert_int_equal(stats(&in).snapshot_dropped, 1);
    for (unsigned i = 0; i < 5000; i++) {
        key_of(i, key);
        assert_string_equal(in_l1(&in, key), key);
    }
    assert_int_equal(near_get(in.cache, near_key("large"), &value), NEAR_OK);
    assert_int_equal(near_value_bytes(value).size, sizeof(large));
    assert_memory_equal(near_value_bytes(value).data, large, sizeof(large));
    near_value_release(value);
    assert_string_equal(in_l1(&in, "short"), "-"); /* time went on */
    assert_string_equal(in_l1(&in, "none"), "nothing");
    assert_int_equal(near_get(in.cache, near_key("tagged"), &value), NEAR_OK);
    near_value_get_info(value, &info);
    assert_true(info.ttl_ms > 500000 && info.ttl_ms <= 599700);
    near_value_release(value);
    near_invalidate_tag(in.cache, "blue");
    assert_string_equal(in_l1(&in, "tagged"), "tagged");
    near_invalidate_tag(in.cache, "red");
    assert_string_equal(in_l1(&in, "tagged"), "-");
    close_instance(&in);
}

/* Each way of writing. */
static void
store(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_write_done(writes[i]);
}

static void
write_somehow(struct instance *in, int how)
{
    near_bytes       key = near_key("k"), value = near_key("new");
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    near_status      status;

    switch (how) {
    case 0:
        put_text(in->cache, "k", "new");
        break;
    case 1:
        near_put_many(in->cache, &key, &value, 1, NULL, &status);
        break;
    case 2:
        near_remove(in->cache, key);
        break;
    case 3:
        near_remove_many(in->cache, &key, 1, &status);
        break;
    case 4:
        near_expire(in->cache, key);
        break;
    case 5:
        near_invalidate_tag(in->cache, "red");
        break;
    case 6:
        near_invalidate_prefix(in->cache, near_key("k"));
        break;
    case 7:
        near_clear(in->cache);
        break;
    case 8:
        near_update(in->cache, key, value, NULL);
        break;
    case 9:
        near_erase(in->cache, key);
        break;
    case 10:
        near_remove(in->cache, key);
        options.flags = NEAR_IF_ABSENT;
        near_put(in->cache, key, value, &options);
        break;
    default:
        fail();
    }
}
#define WAYS 11

/* What the next start finds after a save and then a write, both acknowledged, and the end of the process without a close. */
static void
write_after_save(const char *const *settings, int how, bool expect_file)
{
    struct instance in   = { 0 };
    const char     *late = "snapshot.at_close";
    int             ended;
    pid_t           child = fork();

    if (child == 0) {
        open_restored(&in, settings, WITH(late, "no"));
        near_cache_set_store(in.cache, store, NULL);
        put_text(in.cache, "k", "old");
        if (near_snapshot_save(in.cache, NULL) != NEAR_OK || !file_is_there())
            _exit(1);
        fetch(&in, "k"); /* a read leaves it alone */
        if (!file_is_there())
            _exit(2);
        write_somehow(&in, how);
        _exit(file_is_there() == expect_file ? 0 : 3);
    }
    assert_int_equal(waitpid(child, &ended, 0), child);
    if (ended != 0)
        fail_msg("way %d: %x", how, ended);
}

static const char *const back[]       = { "l2.uri", "none:", "ttl", "1h", "write.policy", "back", NULL };
static const char *const private_l2[] = { "l2.uri", "memory:", "ttl", "1h", NULL };

static void
test_a_write_takes_it_away(void **state)
{
    static const char *const *const settings[] = { alone, private_l2, back };
    struct instance                 in         = { 0 };

    (void)state;
    if (TEST_UNDER_TSAN)
        skip(); /* forks */
    for (size_t i = 0; i < 3; i++)
        for (int how = 0; how < WAYS; how++) {
            write_after_save(settings[i], how, false);
            open_restored(&in, alone, WITH("snapshot.at_close", "no"));
            assert_string_equal(in_l1(&in, "k"), "-");
            close_instance(&in);
        }
    /* the control: left alone, it is believed */
    near__snap_controls = NEAR__SNAP_UNVOIDED;
    write_after_save(alone, 2, true);
    near__snap_controls = 0;
    open_restored(&in, alone, WITH("snapshot.at_close", "no"));
    assert_string_equal(in_l1(&in, "k"), "old");
    close_instance(&in);
}

/* Who is killed while nothing was written after the save finds it. */
static void
test_a_kill_after_a_save(void **state)
{
    struct instance in = { 0 };
    int             ended;
    pid_t           child;

    (void)state;
    if (TEST_UNDER_TSAN)
        skip();
    child = fork();
    if (child == 0) {
        open_restored(&in, alone, NULL);
        put_text(in.cache, "k", "v");
        if (near_snapshot_save(in.cache, NULL) == NEAR_OK)
            kill(getpid(), SIGKILL);
        _exit(1);
    }
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFSIGNALED(ended));
    open_restored(&in, alone, NULL);
    assert_string_equal(in_l1(&in, "k"), "v");
    close_instance(&in);
}

static _Atomic bool     stop_writing;
static _Atomic unsigned written;

static void *
write_on(void *ctx)
{
    struct instance *in = ctx;

    while (!atomic_load(&stop_writing)) {
        put_text(in->cache, "k", "v");
        atomic_fetch_add(&written, 1);
    }
    return NULL;
}

/* The second one to end has begun since. */
static int
wrote_twice_since(void *ctx)
{
    return atomic_load(&written) - *(unsigned *)ctx >= 2;
}

/* A write while it is being saved. */
static void
test_a_write_meanwhile(void **state)
{
    struct instance in = { 0 };
    pthread_t       thread;
    near_error      error;
    unsigned        had;
    char            key[24];

    (void)state;
    open_warm(&in, alone, NULL);
    for (unsigned i = 0; i < 3000; i++) {
        key_of(i, key);
        put_text(in.cache, key, key);
    }
    stop_writing = false;
    assert_int_equal(pthread_create(&thread, NULL, write_on, &in), 0);
    for (int i = 0; i < 3; i++) {
        near_status status = near_snapshot_save(in.cache, &error);

        if (status != NEAR_OK) /* all of it may have gone by before the writer's turn */
            assert_int_equal(status, NEAR_ERR_CONFLICT);
    }
    had = written;
    assert_true(test_wait_for(wrote_twice_since, &had, SOON));
    stop_writing = true;
    pthread_join(thread, NULL);
    assert_false(file_is_there());
    assert_int_equal(near_snapshot_save(in.cache, &error), NEAR_OK);
    assert_true(file_is_there());
    close_instance(&in);
    unlink(file);
}

/* Removed while it comes back, slowly. */
static unsigned
removed_meanwhile(void)
{
    struct instance in  = { 0 };
    unsigned        old = 0;
    char            key[24];

    open_warm(&in, alone, NULL);
    for (unsigned i = 0; i < 2000; i++) {
        key_of(i, key);
        put_text(in.cache, key, "old");
    }
    close_instance(&in);
    open_warm(&in, alone, WITH("snapshot.rate", "4000", "snapshot.at_close", "no"));
    for (unsigned i = 0; i < 2000; i += 2) {
        key_of(i, key);
        if (i % 4 == 0)
            near_remove(in.cache, near_key(key));
        else
            put_text(in.cache, key, "new");
    }
    assert_true(test_wait_for(has_restored, &in, SOON));
    for (unsigned i = 0; i < 2000; i += 2) {
        key_of(i, key);
        old += strcmp(in_l1(&in, key), "old") == 0;
    }
    close_instance(&in);
    return old;
}

static void
test_what_is_written_meanwhile(void **state)
{
    unsigned old = 0;

    (void)state;
    assert_int_equal(removed_meanwhile(), 0);
    near__snap_controls = NEAR__SNAP_UNFENCED;
    for (int tries = 0; tries < 10 && old <= 100; tries++) /* on a busy machine it may all be back before */
        old = removed_meanwhile();
    assert_true(old > 100);
    near__snap_controls = 0;
}

/* ---- decoded values */

static _Atomic unsigned destroyed;

/* An object is the text in brackets. */
static near_status
decode(near_bytes key, near_bytes bytes, void **object, void *ctx)
{
    char *text = malloc(bytes.size + 3);

    (void)key, (void)ctx;
    if (text == NULL)
        return NEAR_ERR_NOMEM;
    sprintf(text, "[%.*s]", (int)bytes.size, (const char *)bytes.data);
    *object = text;
    return NEAR_OK;
}

static void
destroy(void *object, void *ctx)
{
    (void)ctx;
    free(object);
    atomic_fetch_add(&destroyed, 1);
}

static void
set_codec(struct instance *in, unsigned flags)
{
    near_codec codec = NEAR_CODEC_INIT;

    codec.flags   = flags;
    codec.decode  = decode;
    codec.destroy = destroy;
    assert_int_equal(near_cache_set_codec(in->cache, &codec, NULL), NEAR_OK);
}

/* How many of them L1 answers with their objects. */
static unsigned
objects_in_l1(const struct instance *in, unsigned n)
{
    near_get_options options = NEAR_GET_OPTIONS_INIT;
    unsigned         found   = 0;
    char             key[24], right[32];

    options.flags = NEAR_ONLY_L1;
    for (unsigned i = 0; i < n; i++) {
        near_value *value;

        key_of(i, key);
        snprintf(right, sizeof(right), "[%s]", key);
        if (near_get_with(in->cache, near_key(key), &options, &value) != NEAR_OK)
            continue;
        assert_non_null(near_value_object(value));
        assert_string_equal(near_value_object(value), right);
        near_value_release(value);
        found++;
    }
    return found;
}

/* What looks like a key that is there, or shares its fence with one that was written, does not come back: one in some thousands. */
static bool
is_nearly(uint64_t n, uint64_t all)
{
    return n <= all && n + 5 >= all;
}

static void
put_some(struct instance *in, unsigned n)
{
    char key[24];

    for (unsigned i = 0; i < n; i++) {
        key_of(i, key);
        put_text(in->cache, key, key);
    }
}

/* Nobody else has the values: the file waits for the codec, for what L1 has are objects. */
static void
test_objects_come_back(void **state)
{
    struct instance in = { 0 };

    (void)state;
    open_warm(&in, alone, NULL);
    set_codec(&in, NEAR_KEEP_BYTES);
    put_some(&in, 500);
    close_instance(&in);

    open_warm(&in, alone, NULL);
    let_time_pass(50); /* it must not have come back as bytes by then */
    assert_int_equal(stats(&in).snapshot_restored, 0);
    set_codec(&in, NEAR_KEEP_BYTES);
    put_text(in.cache, "key 7", "key 7"); /* newer than the file */
    assert_true(test_wait_for(has_restored, &in, SOON));
    assert_true(is_nearly(stats(&in).snapshot_restored, 500)); /* "key 7" may have come back first */
    assert_true(is_nearly(objects_in_l1(&in, 500), 500));
    assert_int_equal(near_clear(in.cache), NEAR_OK);
    assert_int_equal(objects_in_l1(&in, 500), 0);
    put_some(&in, 500);
    close_instance(&in);

    /* a clear between the codec and the first entry is no codec's flush */
    open_warm(&in, alone, NULL);
    assert_int_equal(near_clear(in.cache), NEAR_OK);
    set_codec(&in, NEAR_KEEP_BYTES);
    assert_true(test_wait_for(has_restored, &in, SOON));
    assert_int_equal(stats(&in).snapshot_restored, 0);
    assert_int_equal(objects_in_l1(&in, 500), 0);
    close_instance(&in);
}

/* Bytes that L1 does not keep: L2 has them. */
static void
test_objects_come_back_from_l2(void **state)
{
    const char *const *const settings = WITH("l2.uri", "memory:decoded", "ttl", "1h");
    struct instance          in = { 0 }, other = { 0 };

    (void)state;
    open_with(&other, settings, NULL); /* what keeps that L2 */
    open_warm(&in, settings, NULL);
    set_codec(&in, 0);
    put_some(&in, 500);
    close_instance(&in);
    put_text(other.cache, "key 7", "new");
    open_warm(&in, settings, NULL);
    let_time_pass(50); /* setting the codec would take with it what has come back by then */
    assert_int_equal(stats(&in).snapshot_restored, 0);
    set_codec(&in, 0);
    assert_true(test_wait_for(has_restored, &in, SOON));
    assert_int_equal(near_remove(in.cache, near_key("key 7")), NEAR_OK);
    assert_true(is_nearly(stats(&in).snapshot_restored, 500));
    assert_true(is_nearly(objects_in_l1(&in, 500), 499));
    close_instance(&in);
    close_instance(&other);
    unlink(file);
}

/* ---- pools */

static unsigned
in_pool(struct instance *in, unsigned pool, unsigned n)
{
    unsigned found = 0;
    char     key[24];

    for (unsigned i = 0; i < n; i++) {
        key_of(i, key);
        found += near__l1_pool_of(in->cache->l1, near__hash_keyed(&in->client->secret, near_key(key)),
                                  near_key(key), near__client_now(in->client)) == pool;
    }
    return found;
}

/* An entry that was put into a pool comes back there, though pools are listed otherwise by then. */
static void
pools_come_back(const char *uri)
{
    const char      *pools = "one:1MiB,two:1MiB,three:1MiB";
    near_put_options into  = NEAR_PUT_OPTIONS_INIT;
    struct instance  in = { 0 }, other = { 0 };
    char             key[24];

    if (strcmp(uri, "none:") != 0)
        open_with(&other, WITH("l2.uri", uri), NULL);
    open_warm(&in, WITH("l2.uri", uri, "ttl", "1h", "l1.pools", pools), NULL);
    for (unsigned i = 0; i < 300; i++) {
        key_of(i, key);
        into.pool = 1 + i % 3;
        assert_int_equal(near_put(in.cache, near_key(key), near_key(key), &into), NEAR_OK);
    }
    close_instance(&in);
    pools = "three:1MiB,none:1MiB,two:1MiB";
    open_restored(&in, WITH("l2.uri", uri, "ttl", "1h", "l1.pools", pools), WITH("snapshot.at_close", "no"));
    assert_true(is_nearly(stats(&in).snapshot_restored, 300));
    assert_true(is_nearly(in_pool(&in, 3, 300), 100));
    assert_int_equal(in_pool(&in, 2, 300), 0);
    assert_true(is_nearly(in_pool(&in, 1, 300), 200)); /* there is no "one": the function's, the first */
    close_instance(&in);
    if (other.client != NULL)
        close_instance(&other);
    unlink(file);
}

static void
test_pools_come_back(void **state)
{
    (void)state;
    pools_come_back("none:");
    pools_come_back("memory:pooled");
}

/* ---- files that are not to be believed */

static void
save_some(const char *const *settings, unsigned n)
{
    struct instance in = { 0 };
    char            key[24];

    /* whatever they are tested with: with its bus there, which empties L1 when it comes */
    open_restored(&in, settings, WITH("l2.connect_timeout", "20s"));
    for (unsigned i = 0; i < n; i++) {
        key_of(i, key);
        put_text(in.cache, key, key);
    }
    close_instance(&in);
    assert_true(file_is_there());
}

static size_t
read_whole(uint8_t *bytes, size_t room)
{
    int     fd = open(file, O_RDONLY);
    ssize_t n  = read(fd, bytes, room);

    close(fd);
    assert_true(n > 0 && (size_t)n < room);
    return (size_t)n;
}

static void
write_whole(const uint8_t *bytes, size_t size)
{
    int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_int_equal(write(fd, bytes, size), (ssize_t)size);
    close(fd);
}

/* Whatever is there, the cache works, and L1 has right values or none. */
static near_stats
open_over_damage(const char *const *settings, unsigned n)
{
    struct instance in = { 0 };
    near_stats      counted;
    char            key[24];

    open_restored(&in, settings, WITH("snapshot.at_close", "no"));
    for (unsigned i = 0; i < n; i++) {
        const char *found;

        key_of(i, key);
        found = in_l1(&in, key);
        assert_true(strcmp(found, key) == 0 || strcmp(found, "-") == 0);
    }
    put_text(in.cache, "more", "v");
    assert_string_equal(in_l1(&in, "more"), "v");
    counted = stats(&in);
    close_instance(&in);
    return counted;
}

static void
test_torn_and_damaged(void **state)
{
    static uint8_t good[1 << 16], bad[1 << 16];
    uint64_t       dice = 5;
    size_t         size, step;

    (void)state;
    save_some(alone, 10);
    size = read_whole(good, sizeof(good));
    step = 1 + size / test_scale(120); /* every byte, of the reader itself: unit/test_snapshot */
    for (size_t n = 0; n < size; n += step) {
        write_whole(good, n);
        near_stats counted = open_over_damage(alone, 10);

        assert_true(counted.snapshot_damaged == 1 && counted.snapshot_failures == 1);
        assert_false(file_is_there());
    }
    for (size_t i = test_scale(100); i > 0; i--) {
        memcpy(bad, good, size);
        bad[test_random(&dice) % size] ^= (uint8_t)(1u << test_random(&dice) % 8);
        write_whole(bad, size);
        near_stats counted = open_over_damage(alone, 10);

        assert_true(counted.snapshot_damaged == 1 && counted.snapshot_failures == 1);
    }
    write_whole(good, size);
    assert_int_equal(open_over_damage(alone, 10).snapshot_restored, 10);
}

static void
test_others_files(void **state)
{
    static uint8_t  good[1 << 16];
    struct instance in = { 0 };
    size_t          size;
    char            link[128];

    (void)state;
    save_some(alone, 10);
    size = read_whole(good, sizeof(good));
    chmod(file, 0666); /* others may have written it */
    assert_int_equal(open_over_damage(alone, 10).snapshot_restored, 0);
    write_whole(good, size);
    snprintf(link, sizeof(link), "%s/elsewhere", directory);
    assert_int_equal(rename(file, link), 0);
    assert_int_equal(symlink(link, file), 0);
    assert_int_equal(open_over_damage(alone, 10).snapshot_restored, 0);
    unlink(file);
    unlink(link);
    assert_int_equal(mkfifo(file, 0600), 0);
    assert_int_equal(open_over_damage(alone, 10).snapshot_restored, 0);
    unlink(file);
    /* another cache's, put in this one's place */
    write_whole(good, size);
    snprintf(link, sizeof(link), "%s.d", path);
    assert_int_equal(rename(file, link), 0);
    open_restored(&in, alone, WITH("snapshot.at_close", "no"));
    near_cache *other;
    assert_int_equal(near_cache_open(in.client, "d", NULL, &other, NULL), NEAR_OK);
    assert_true(test_wait_for(has_restored, &in, SOON));
    assert_int_equal(stats(&in).snapshot_restored, 0);
    assert_int_equal(stats(&in).snapshot_failures, 1);
    close_instance(&in);
    unlink(link);
    /* too old */
    write_whole(good, size);
    let_time_pass(30);
    open_restored(&in, alone, WITH("snapshot.at_close", "no", "snapshot.max_age", "20ms"));
    assert_int_equal(stats(&in).snapshot_restored, 0);
    close_instance(&in);
    assert_false(file_is_there());
    /* a directory in which others may put files */
    write_whole(good, size);
    chmod(directory, 0777);
    assert_int_equal(open_over_damage(alone, 10).snapshot_restored, 0);
    chmod(directory, 0700);
    unlink(file);
}

/* The disk is full (no file may grow); the directory has gone. */
static void
test_no_room_and_no_directory(void **state)
{
    struct rlimit   before, little = { 4096, 4096 };
    struct instance in = { 0 };
    near_error      error;
    char            key[24], aside[80];

    (void)state;
    open_restored(&in, alone, NULL);
    for (unsigned i = 0; i < 5000; i++) {
        key_of(i, key);
        put_text(in.cache, key, key);
    }
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    little.rlim_max = before.rlim_max;
    setrlimit(RLIMIT_FSIZE, &little);
    assert_int_equal(near_snapshot_save(in.cache, &error), NEAR_ERR_UNAVAILABLE);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(rmdir(directory), 0); /* nothing was left in it */
    assert_int_equal(near_snapshot_save(in.cache, &error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "No such file"));
    assert_string_equal(in_l1(&in, "key 1"), "key 1");
    assert_int_equal(mkdir(directory, 0700), 0);
    assert_int_equal(near_snapshot_save(in.cache, &error), NEAR_OK);
    /* moved away: a write finds it there all the same */
    snprintf(aside, sizeof(aside), "%s.aside", directory);
    assert_int_equal(rename(directory, aside), 0);
    put_text(in.cache, "k", "v");
    assert_int_equal(rename(aside, directory), 0);
    assert_false(file_is_there());
    assert_int_equal(stats(&in).snapshot_failures, 2);
    close_instance(&in);
    unlink(file);
}

static void
test_what_is_refused(void **state)
{
    struct instance in = { 0 };
    near_error      error;

    (void)state;
    open_with(&in, alone, NULL);
    assert_int_equal(near_snapshot_save(in.cache, &error), NEAR_ERR_UNSUPPORTED); /* no path */
    close_instance(&in);
    open_warm(&in, WITH("l2.uri", "none:", "coherence.uri", "memory:snapshots"), NULL);
    assert_int_equal(near_snapshot_save(in.cache, &error),
                     NEAR_ERR_UNSUPPORTED); /* others, and nobody to ask */
    close_instance(&in);
    assert_false(file_is_there());
    assert_int_equal(near_snapshot_save(NULL, &error), NEAR_ERR_INVALID);
}

/* ---- a shared L2 */

struct shared {
    const char *settings[12];
    unsigned    entries;
};

/* What is in L1 after a stop in which somebody else wrote; how many values are older than what he wrote. */
static unsigned
written_meanwhile(const char *const *settings, unsigned n)
{
    struct instance in = { 0 }, other = { 0 };
    unsigned        stale = 0, right = 0;
    char            key[24];

    open_restored(&in, settings, NULL);
    near_cache_set_loader(in.cache, load, NULL);
    for (unsigned i = 0; i < n; i++) {
        key_of(i, key);
        put_text(in.cache, key, "old");
    }
    fetch(&in, "tagged");
    assert_string_equal(in_l1(&in, "key 1"), "old");
    assert_string_equal(in_l1(&in, "tagged"), "tagged");
    close_instance(&in);

    open_with(&other, settings, NULL);
    for (unsigned i = 0; i < n; i++) {
        key_of(i, key);
        if (i % 3 == 0)
            put_text(other.cache, key, "new");
        if (i % 3 == 1)
            assert_int_equal(near_remove(other.cache, near_key(key)), NEAR_OK);
    }
    near_invalidate_tag(other.cache, "red");
    close_instance(&other);

    open_restored(&in, settings, WITH("snapshot.at_close", "no"));
    for (unsigned i = 0; i < n; i++) {
        const char *found;

        key_of(i, key);
        found = in_l1(&in, key);
        if (i % 3 == 0)
            stale += strcmp(found, "old") == 0;
        if (i % 3 == 1)
            stale += strcmp(found, "-") != 0;
        if (i % 3 == 2)
            right += strcmp(found, "old") == 0;
    }
    stale += strcmp(in_l1(&in, "tagged"), "-") != 0;
    if (near__snap_controls == 0) {
        assert_int_equal(right, n / 3);
        assert_int_equal(stats(&in).snapshot_renewed, (n + 2) / 3);
        assert_int_equal(stats(&in).snapshot_restored, n / 3 + (n + 2) / 3);
    }
    close_instance(&in);
    unlink(file);
    return stale;
}

#define KEYS 600 /* more than one exchange has */

static void
over(const char *const *settings)
{
    assert_int_equal(written_meanwhile(settings, KEYS), 0);
    near__snap_controls = NEAR__SNAP_UNCONFIRMED;
    assert_true(written_meanwhile(settings, KEYS) >= 2 * KEYS / 3);
    near__snap_controls = 0;
}

static void
test_redis(void **state)
{
    (void)state;
    test_need_server(redis);
    over(WITH("l2.uri", redis->uri, PATIENT, "coherence.serve_window", "20s", "l1.max_ttl", "60s"));
}

static void
test_memcached(void **state)
{
    (void)state;
    test_need_server(memcached);
    over(WITH("l2.uri", memcached->uri, PATIENT, "l1.max_ttl", "60s"));
}

static void
test_cleared(void **state)
{
    struct instance          in       = { 0 };
    const char *const *const settings = WITH("l2.uri", redis->uri, PATIENT, "coherence.serve_window", "20s");

    (void)state;
    test_need_server(redis);
    save_some(settings, 100);
    open_with(&in, settings, NULL);
    assert_int_equal(near_clear(in.cache), NEAR_OK);
    close_instance(&in);
    open_restored(&in, settings, NULL);
    assert_int_equal(stats(&in).snapshot_restored, 0);
    assert_int_equal(stats(&in).snapshot_dropped, 100);
    assert_string_equal(in_l1(&in, "key 1"), "-");
    close_instance(&in);
    unlink(file);
}

/* Plain bytes: no version; what L2 has counts, and it is told whether that is what the file had. */
static void
test_without_envelope(void **state)
{
    static const char *const get[] = { "SET", "nc:c:key 1", "by another program" };
    struct instance          in    = { 0 };
    char                     reply[64];

    (void)state;
    test_need_server(redis);
    const char *const *const settings = WITH("l2.uri", redis->uri, PATIENT, "l2.envelope", "none",
                                             "l1.max_ttl", "60s", "coherence.serve_window", "20s");
    save_some(settings, 100);
    assert_true(test_redis_command(redis, reply, sizeof(reply), 3, get));
    open_restored(&in, settings, NULL);
    assert_string_equal(in_l1(&in, "key 1"), "by another program");
    assert_string_equal(in_l1(&in, "key 2"), "key 2");
    assert_int_equal(stats(&in).snapshot_restored, 100);
    assert_int_equal(stats(&in).snapshot_renewed, 1);
    close_instance(&in);
    unlink(file);
}

/* A server that is not there when the cache opens: it is waited for. */
static void
test_server_comes_late(void **state)
{
    struct instance          in       = { 0 };
    const char *const *const settings = WITH("l2.uri", redis->uri, "l2.timeout", "200ms",
                                             "l2.connect_timeout", "200ms", "coherence.serve_window", "20s");

    (void)state;
    test_need_server(redis);
    save_some(settings, 100);
    test_server_pause(redis);
    open_warm(&in, settings, NULL);
    let_time_pass(300);
    assert_int_equal(stats(&in).snapshot_restored, 0);
    test_server_resume(redis);
    assert_true(test_wait_for(has_restored, &in, SOON));
    assert_int_equal(stats(&in).snapshot_restored, 100);
    assert_string_equal(in_l1(&in, "key 1"), "key 1");
    close_instance(&in);
    /* and a close does not wait for one that never comes, nor spoil the file */
    test_server_pause(redis);
    open_warm(&in, settings, WITH("close.timeout", "100ms"));
    int64_t began = test_now_ms();
    close_instance(&in);
    assert_true(test_now_ms() - began < 3000 * (int64_t)test_slack());
    test_server_resume(redis);
    open_restored(&in, settings, NULL);
    assert_int_equal(stats(&in).snapshot_restored, 100);
    close_instance(&in);
    unlink(file);
}

/* Writers in another process while it is restored: L1 is what L2 is in the end. */
static void
test_writers_while_it_is_restored(void **state)
{
    struct instance in = { 0 }, other = { 0 };
    near_value     *value;
    unsigned        differ = 0;
    char            key[24], text[24];

    (void)state;
    test_need_server(redis);
    const char *const *const settings =
        WITH("l2.uri", redis->uri, PATIENT, "coherence.serve_window", "20s", "l1.max_ttl", "60s");
    save_some(settings, 3000);
    open_with(&other, settings, NULL);
    open_warm(&in, settings, WITH("snapshot.rate", "20000"));
    for (unsigned round = 0; stats(&in).snapshot_restoring > 0 || round == 0; round++)
        for (unsigned i = 0; i < 3000; i += 7) {
            key_of(i, key);
            snprintf(text, sizeof(text), "round %u", round);
            put_text(round % 2 == 0 ? other.cache : in.cache, key, text);
        }
    assert_int_equal(near_fence(in.client, SOON), NEAR_OK);
    for (unsigned i = 0; i < 3000; i++) {
        key_of(i, key);
        const char *found = in_l1(&in, key);
        if (strcmp(found, "-") == 0)
            continue;
        assert_int_equal(near_get(other.cache, near_key(key), &value), NEAR_OK);
        differ += near_value_bytes(value).size != strlen(found) ||
                  memcmp(near_value_bytes(value).data, found, strlen(found)) != 0;
        near_value_release(value);
    }
    assert_int_equal(differ, 0);
    close_instance(&in);
    close_instance(&other);
    unlink(file);
}

/* ---- a restart under load */

static void
load_quickly(near_load *loads[], size_t n, void *ctx)
{
    (void)ctx;
    for (size_t i = 0; i < n; i++)
        near_load_set(loads[i], near_load_key(loads[i]));
}

enum { TOGETHER = 50, POPULAR = 40000 };

/* Requests for a few keys in a hundred thousand, skewed. */
static void
ask_for_some(struct instance *in, uint64_t *dice)
{
    static char names[TOGETHER][24];
    near_bytes  keys[TOGETHER];
    near_value *values[TOGETHER];
    near_status statuses[TOGETHER];

    for (int i = 0; i < TOGETHER; i++) {
        double u = (double)(test_random(dice) >> 11) / (double)(UINT64_C(1) << 53);

        key_of((unsigned)(POPULAR * u * u * u), names[i]);
        keys[i] = near_key(names[i]);
    }
    near_fetch_many(in->cache, keys, TOGETHER, NULL, values, statuses);
    for (int i = 0; i < TOGETHER; i++)
        if (values[i] != NULL)
            near_value_release(values[i]);
}

static double
ratio_between(const near_stats *before, const near_stats *after)
{
    return (double)(after->hits_l1 - before->hits_l1) / (double)(after->requests - before->requests);
}

/* The share of requests that L1 answered, of six hundred times TOGETHER. */
static double
ask_often(struct instance *in, uint64_t dice)
{
    near_stats before = stats(in), after;

    for (int i = 0; i < 600; i++)
        ask_for_some(in, &dice);
    after = stats(in);
    return ratio_between(&before, &after);
}

/* The same at a leisurely pace, three hundred times at least, and thirty times as often as until all is restored: what a minute is to a
 * large cache.  Counted, for time does not pass evenly on a busy machine. */
static double
ask_after_start(struct instance *in, uint64_t dice)
{
    unsigned   asked = 0, restored = 0;
    near_stats before = stats(in), after;

    do {
        ask_for_some(in, &dice);
        let_time_pass(2);
        after = stats(in);
        asked++;
        if (restored == 0 && after.snapshot_restoring == 0)
            restored = asked;
    } while (restored == 0 || asked < 300 || asked < 30 * restored);
    return ratio_between(&before, &after);
}

static double
restart(const char *with, const char *const *settings, double *before)
{
    struct instance in = { 0 };
    double          after;

    open_warm(&in, settings, NULL);
    near_cache_set_loader(in.cache, load_quickly, NULL);
    ask_often(&in, 1);
    ask_often(&in, 2);
    *before = ask_often(&in, 3);
    close_instance(&in);
    open_warm(&in, settings, WITH("snapshot.path", with));
    near_cache_set_loader(in.cache, load_quickly, NULL);
    after = ask_after_start(&in, 4);
    assert_int_equal(stats(&in).snapshot_damaged, 0);
    close_instance(&in);
    unlink(file);
    return after;
}

static void
test_restart_under_load(void **state)
{
    double before, warm, cold, ignored;

    (void)state;
    test_need_server(redis);
    const char *const *const settings = WITH("l2.uri", redis->uri, PATIENT, "coherence.serve_window", "20s",
                                             "l1.max_entries", "15000", "l1.max_ttl", "10m", "ttl", "10m");
    warm                              = restart(path, settings, &before);
    cold                              = restart("", settings, &ignored);
    print_message("L1 hit ratio before %.3f, after %.3f, without a snapshot %.3f\n", before, warm, cold);
    assert_true(warm >= 0.95 * before);
    assert_true(cold < 0.95 * before); /* the control */
}

/* ---- */

static int
start(void **state)
{
    (void)state;
    redis     = test_redis_start(0, NULL);
    memcached = test_memcached_start(0, NULL);
    snprintf(directory, sizeof(directory), "/tmp/near-snapshot-XXXXXX");
    if (mkdtemp(directory) == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s/it", directory);
    snprintf(file, sizeof(file), "%s.c", path);
    return 0;
}

static int
stop(void **state)
{
    (void)state;
    test_server_stop(&redis);
    test_server_stop(&memcached);
    unlink(file);
    return rmdir(directory); /* nothing is left in it */
}

static int
nothing_left(void **state)
{
    (void)state;
    near__snap_controls = 0;
    unlink(file);
    return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, nothing_left)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_it_comes_back),
        TEST(test_a_write_takes_it_away),
        TEST(test_a_kill_after_a_save),
        TEST(test_a_write_meanwhile),
        TEST(test_what_is_written_meanwhile),
        TEST(test_objects_come_back),
        TEST(test_objects_come_back_from_l2),
        TEST(test_pools_come_back),
        TEST(test_torn_and_damaged),
        TEST(test_others_files),
        TEST(test_no_room_and_no_directory),
        TEST(test_what_is_refused),
        TEST(test_redis),
        TEST(test_memcached),
        TEST(test_cleared),
        TEST(test_without_envelope),
        TEST(test_server_comes_late),
        TEST(test_writers_while_it_is_restored),
        TEST(test_restart_under_load),
    };

    return TEST_MAIN(tests, start, stop);
}
