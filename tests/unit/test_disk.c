/*
 * The disk tier below the client: what it answers, and what it must not.  Its disk is the real one, in a directory of the test's own,
 * behind a table of calls that can be told to fail, to hang, or to run full.
 */
#define TEST_NAME "disk"
#include "harness/test.h"

#include "l1/disk.h"
#include "l1/disk_index.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the disk */

static struct {
    _Atomic int fail_write, fail_read, fail_sync; /* errno; 0: none */
    _Atomic int hang_ms;                          /* each read that may wait */
    _Atomic int writes_left;                      /* below 0: no bound; then ENOSPC */
    _Atomic int no_read_now;
    _Atomic int held; /* reads that may wait do so until they are let go */
} disk;

static _Atomic int files; /* open ones */

static char dir[64];

static ssize_t
test_read(void *ctx, int fd, void *bytes, size_t size, uint64_t at)
{
    if (disk.hang_ms > 0)
        usleep((unsigned)disk.hang_ms * 1000);
    while (disk.held)
        usleep(1000);
    if (disk.fail_read != 0)
        return -disk.fail_read;
    return near__spill_os_system.read(ctx, fd, bytes, size, at);
}

static ssize_t
test_read_now(void *ctx, int fd, void *bytes, size_t size, uint64_t at)
{
    if (disk.no_read_now)
        return -EOPNOTSUPP;
    if (disk.fail_read != 0 || disk.hang_ms > 0 || disk.held)
        return -EAGAIN;
    return near__spill_os_system.read_now(ctx, fd, bytes, size, at);
}

static ssize_t
test_write(void *ctx, int fd, const void *bytes, size_t size, uint64_t at)
{
    if (disk.fail_write != 0)
        return -disk.fail_write;
    if (disk.writes_left == 0)
        return -ENOSPC;
    if (disk.writes_left > 0)
        disk.writes_left--;
    return near__spill_os_system.write(ctx, fd, bytes, size, at);
}

static int
test_sync(void *ctx, int fd)
{
    (void)ctx, (void)fd; /* nobody pulls the plug here */
    return -disk.fail_sync;
}

static int
test_open(void *ctx, int directory, const char *name, bool fresh)
{
    int fd = near__spill_os_system.open(ctx, directory, name, fresh);

    files += fd >= 0;
    return fd;
}

static int
test_open_directory(void *ctx, const char *path)
{
    int fd = near__spill_os_system.open_directory(ctx, path);

    files += fd >= 0;
    return fd;
}

static int
test_close(void *ctx, int fd)
{
    int rc = near__spill_os_system.close(ctx, fd);

    files--;
    return rc;
}

static struct near__spill_os test_os;

static void
wipe(void)
{
    static const char *const names[] = { "log", "lock", "alive" };
    char                     path[128];

    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static int
setup(void **state)
{
    (void)state;
    memset(&disk, 0, sizeof(disk));
    disk.writes_left = -1;
    test_os          = near__spill_os_system;
    test_os.read     = test_read;
    test_os.read_now = test_read_now;
    test_os.write    = test_write;
    test_os.sync     = test_sync;

    test_os.open           = test_open;
    test_os.open_directory = test_open_directory;
    test_os.close          = test_close;
    snprintf(dir, sizeof(dir), "/tmp/near-disk-XXXXXX");
    return mkdtemp(dir) == NULL;
}

static int
teardown(void **state)
{
    static const char *const besides[] = { "kept", "other" };
    char                     path[128];

    (void)state;
    wipe();
    for (size_t i = 0; i < NEAR_COUNT_OF(besides); i++) { /* of a test that failed */
        snprintf(path, sizeof(path), "%s.%s", dir, besides[i]);
        unlink(path);
    }
    return files; /* all are closed */
}

/* ---- the tier */

static struct near__secret secret;

static struct near__spill_config
config_of(uint64_t max_bytes, uint32_t segment)
{
    return (struct near__spill_config){
        .path          = dir,
        .max_bytes     = max_bytes,
        .queue_bytes   = (uint64_t)8 * segment,
        .segment_bytes = segment,
        .timeout       = 100 * NEAR_MS,
        .threads       = 2,
        .clock         = near__clock_system,
        .os            = &test_os,
        .secret        = secret,
    };
}

static struct near__spill *
open_with(const struct near__spill_config *config)
{
    struct near__spill *spill;
    int                 reason;

    assert_int_equal(near__spill_open(&spill, config, &reason), NEAR_OK);
    return spill;
}

static struct near__spill *
open_small(void)
{
    struct near__spill_config config = config_of(NEAR__SPILL_PAGE + 16 * 4096, 4096);

    return open_with(&config);
}

static int64_t
in_ms(int64_t ms)
{
    return near__now(&near__clock_system) + ms * NEAR_MS;
}

static void
close_it(struct near__spill **spill)
{
    near__spill_close(spill, in_ms(20000), false);
}

static near_bytes
text(const char *words)
{
    return (near_bytes){ words, strlen(words) };
}

static uint64_t
hash_of(const char *key)
{
    return near__hash_keyed(&secret, text(key));
}

static void
put(struct near__spill *spill, const char *key, const char *value)
{
    struct near__spill_record record = { .key         = text(key),
                                         .value       = text(value),
                                         .born        = 1,
                                         .fresh_until = NEAR_NEVER,
                                         .expires     = NEAR_NEVER,
                                         .stamp       = 7 };

    near__spill_put(spill, hash_of(key), &record);
}

/* What it answers, or NULL; the value stays until the next call. */
static const char *
get(struct near__spill *spill, const char *key)
{
    static char             value[8192];
    struct near__spill_read read;

    if (!near__spill_begin(spill, hash_of(key), &read) ||
        !near__spill_finish(spill, &read, text(key), in_ms(5000)))
        return NULL;
    assert_true(read.record.value.size < sizeof(value));
    memcpy(value, read.record.value.data, read.record.value.size);
    value[read.record.value.size] = '\0';
    near__spill_end(&read);
    return value;
}

static void
assert_get(struct near__spill *spill, const char *key, const char *value)
{
    const char *got = get(spill, key);

    assert_non_null(got);
    assert_string_equal(got, value);
}

static struct near__spill_stats
stats_of(struct near__spill *spill)
{
    struct near__spill_stats stats;

    near__spill_stats(spill, &stats);
    return stats;
}

static void
drain(struct near__spill *spill)
{
    assert_true(near__spill_drain(spill, in_ms(20000)));
}

/* A value that says whose it is, of a size of its own. */
static const char *
value_of(unsigned i, unsigned version)
{
    static char value[512];
    int         n = snprintf(value, sizeof(value), "%u:%u:", i, version);

    memset(value + n, 'a' + (int)(i % 26), i % 300);
    value[n + (int)(i % 300)] = '\0';
    return value;
}

static const char *
key_of(unsigned i)
{
    static char key[32];

    snprintf(key, sizeof(key), "key:%u", i);
    return key;
}

/* No more than the writer keeps up with. */
static void
put_paced(struct near__spill *spill, unsigned i, unsigned version)
{
    put(spill, key_of(i), value_of(i, version));
    if (i % 8 == 7)
        drain(spill);
}

/* ---- what it answers */

static void
test_answers_from_memory_and_from_the_file(void **state)
{
    struct near__spill *spill = open_small();

    (void)state;
    assert_null(get(spill, "a"));
    put(spill, "a", "first");
    assert_get(spill, "a", "first");
    drain(spill);
    assert_get(spill, "a", "first");
    for (unsigned i = 0; i < 40; i++)
        put_paced(spill, i, 0);
    assert_get(spill, "a", "first");
    for (unsigned i = 0; i < 40; i++)
        assert_get(spill, key_of(i), value_of(i, 0));
    disk.no_read_now = 1; /* where the file system cannot say whether it would wait: through the threads */
    for (unsigned i = 0; i < 40; i++)
        assert_get(spill, key_of(i), value_of(i, 0));
    assert_int_equal(stats_of(spill).corrupt, 0);
    assert_int_equal(stats_of(spill).entries, 41);
    close_it(&spill);
}

/* By io_uring where it is to be had, by threads where it is not: the same answers, many reads under way at once. */
static void
test_many_reads_under_way(void **state)
{
    struct near__spill_config config = config_of(NEAR__SPILL_PAGE + 16 * 4096, 4096);
    struct near__spill_read   reads[32];
    struct near__spill       *spill;

    (void)state;
    config.ring = true;
    spill       = open_with(&config);
    print_message("             by %s\n", near__spill_has_ring(spill) ? "io_uring" : "threads");
    disk.no_read_now = 1;
    for (unsigned i = 0; i < 32; i++)
        put_paced(spill, i, 0);
    for (int round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 32; i++)
            assert_true(near__spill_begin(spill, hash_of(key_of(i)), &reads[i]));
        for (unsigned i = 0; i < 32; i++) {
            assert_true(near__spill_finish(spill, &reads[i], text(key_of(i)), in_ms(5000)));
            assert_true(near__bytes_equal(reads[i].record.value, text(value_of(i, 0))));
            near__spill_end(&reads[i]);
        }
    }
    close_it(&spill);
}

static void
test_what_is_forgotten_is_gone(void **state)
{
    struct near__spill *spill = open_small();

    (void)state;
    put(spill, "a", "old");
    put(spill, "b", "stays");
    near__spill_forget(spill, hash_of("a"));
    assert_null(get(spill, "a"));
    put(spill, "a", "new");
    assert_get(spill, "a", "new");
    assert_get(spill, "b", "stays");
    near__spill_flush_begin(spill);
    assert_null(get(spill, "b"));
    put(spill, "c", "while it is flushed");
    near__spill_flush_end(spill);
    assert_null(get(spill, "a"));
    assert_null(get(spill, "c"));
    put(spill, "a", "after");
    assert_get(spill, "a", "after");
    close_it(&spill);
}

/* A read under way while its key is invalidated is not answered, wherever it was: in memory, in the file, with a thread. */
static void
test_read_under_way_is_fenced(void **state)
{
    struct near__spill     *spill = open_small();
    struct near__spill_read read;

    (void)state;
    for (int where = 0; where < 3; where++)
        for (int how = 0; how < 4; how++) {
            put(spill, "a", "old");
            if (where > 0)
                drain(spill);
            disk.no_read_now = where == 2;
            assert_true(near__spill_begin(spill, hash_of("a"), &read));
            if (how == 1)
                near__spill_forget(spill, hash_of("a"));
            if (how >= 2) {
                near__spill_flush_begin(spill);
                near__spill_flush_end(spill);
            }
            if (how == 3)
                put(spill, "a", "new"); /* somewhere else */
            assert_int_equal(near__spill_finish(spill, &read, text("a"), in_ms(5000)),
                             how == 0); /* 0: the control */
            near__spill_end(&read);
            near__spill_forget(spill, hash_of("a"));
        }
    close_it(&spill);
}

static void
test_what_has_ended_is_not_answered(void **state)
{
    struct near__spill       *spill  = open_small();
    struct near__spill_record record = { .key = text("a"), .value = text("v"), .expires = NEAR_NEVER };

    (void)state;
    record.fresh_until = in_ms(-1);
    near__spill_put(spill, hash_of("a"), &record);
    assert_null(get(spill, "a"));
    assert_int_equal(stats_of(spill).entries, 0);
    record.fresh_until = in_ms(60000);
    near__spill_put(spill, hash_of("a"), &record);
    assert_get(spill, "a", "v");
    close_it(&spill);
}

/* Round and round: the oldest leaves, what was used stays, nothing is ever another key's. */
static void
test_log_goes_round(void **state)
{
    struct near__spill      *spill = open_small();
    struct near__spill_stats stats;
    unsigned                 found = 0, lost = 0;

    (void)state;
    for (unsigned i = 0; i < 2000; i++) {
        const char *used;

        put_paced(spill, i, 0);
        used = get(spill, key_of(3));
        if (i >= 3 && used == NULL) { /* there was no room to move it to: the writer was late */
            lost++;
            put(spill, key_of(3), value_of(3, 0));
        }
    }
    for (unsigned i = 0; i < 2000; i++) {
        const char *got = get(spill, key_of(i));

        if (got != NULL) {
            assert_string_equal(got, value_of(i, 0));
            found++;
        }
    }
    stats = stats_of(spill);
    assert_true(lost < 10); /* of some thirty-five segments that were written over with it */
    assert_true(found > 100 && found < 500);
    assert_true(stats.moved > 3 && stats.evicted > 1000);
    assert_int_equal(stats.corrupt, 0);
    assert_int_equal(stats.entries, found);
    assert_true(stats.written_bytes >= stats.put_bytes);
    assert_true(stats.log_bytes <= 16 * 4096);
    close_it(&spill);
}

static void
test_admission_wants_to_see_a_key_twice(void **state)
{
    struct near__spill_config config = config_of(NEAR__SPILL_PAGE + 64 * 4096, 4096);
    struct near__spill       *spill;

    (void)state;
    config.admission = NEAR__SPILL_SECOND;
    spill            = open_with(&config);
    for (unsigned i = 0; i < 500; i++)
        put_paced(spill, i, 0);
    assert_true(stats_of(spill).rejected > 490); /* it is a filter: some seem known */
    assert_true(stats_of(spill).puts < 10);
    for (unsigned i = 0; i < 500; i++)
        put_paced(spill, i, 0);
    assert_true(stats_of(spill).puts > 490);
    for (unsigned i = 0; i < 500; i++)
        put_paced(spill, i, 0);
    assert_true(stats_of(spill).kept > 490); /* there already: not written again */
    assert_true(stats_of(spill).written_bytes < 500 * 600);
    close_it(&spill);
}

/* ---- the former life */

struct old {
    struct near__spill *spill;
    unsigned            seen, wrong;
    bool                adopt;
};

static void
old_record(void *ctx, const struct near__spill_record *record, uint64_t hash, uint64_t at, uint32_t size)
{
    struct old *old = ctx;
    unsigned    i   = 0;
    char        key[32];

    snprintf(key, sizeof(key), "%.*s", (int)record->key.size, (const char *)record->key.data);
    old->seen++;
    if (sscanf(key, "key:%u", &i) != 1 || !near__bytes_equal(record->value, text(value_of(i, 0))) ||
        hash != near__hash_keyed(&secret, record->key))
        old->wrong++;
    if (old->adopt && !near__spill_touched(old->spill, hash))
        near__spill_adopt(old->spill, hash, at, size);
}

static struct old
look_at_old(struct near__spill *spill, bool adopt)
{
    struct old old = { spill, 0, 0, adopt };

    for (uint64_t i = 0; i < near__spill_old_count(spill); i++)
        near__spill_old(spill, i, old_record, &old);
    near__spill_old_done(spill);
    return old;
}

static void
test_clean_end_lists_what_is_alive(void **state)
{
    struct near__spill *spill = open_small();
    struct old          old;

    (void)state;
    for (unsigned i = 0; i < 40; i++)
        put_paced(spill, i, 0);
    for (unsigned i = 0; i < 20; i++)
        near__spill_forget(spill, hash_of(key_of(i)));
    close_it(&spill);

    near__secret_init(&secret); /* hashes are another process's now */
    spill = open_small();
    assert_true(near__spill_old_is_clean(spill));
    assert_null(get(spill, key_of(30))); /* not before somebody vouches for it */
    near__spill_forget(spill, hash_of(key_of(31)));
    old = look_at_old(spill, true);
    assert_int_equal(old.seen, 20);
    assert_int_equal(old.wrong, 0);
    for (unsigned i = 0; i < 40; i++) {
        if (i < 20 || i == 31)
            assert_null(get(spill, key_of(i)));
        else
            assert_get(spill, key_of(i), value_of(i, 0));
    }
    close_it(&spill);
}

/* A copy of the directory's log, as a kill leaves it: nothing is closed. */
static void
copy_log(const char *to, off_t size)
{
    char    from[128];
    char   *bytes = malloc(1 << 20);
    ssize_t got;
    int     fd;

    snprintf(from, sizeof(from), "%s/log", dir);
    fd  = open(from, O_RDONLY | O_CLOEXEC);
    got = pread(fd, bytes, 1 << 20, 0);
    close(fd);
    fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_int_equal(pwrite(fd, bytes, (size_t)(size < got ? size : got), 0), size < got ? size : got);
    close(fd);
    free(bytes);
}

static void
test_bad_end_lists_nothing(void **state)
{
    struct near__spill *spill = open_small();
    char                keep[128], log[128];
    struct old          old;

    (void)state;
    snprintf(keep, sizeof(keep), "%s.kept", dir);
    snprintf(log, sizeof(log), "%s/log", dir);
    for (unsigned i = 0; i < 40; i++)
        put_paced(spill, i, 0);
    near__spill_forget(spill, hash_of(key_of(5)));
    drain(spill);
    copy_log(keep, 1 << 20);
    close_it(&spill);
    wipe();
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_int_equal(rename(keep, log), 0);
    spill = open_small();
    assert_false(near__spill_old_is_clean(spill));
    old = look_at_old(spill, false);
    assert_int_equal(old.seen, 40); /* what was removed, too: so L2 has to be asked */
    assert_int_equal(old.wrong, 0);
    close_it(&spill);
}

/* Every prefix of a small log, and random flips: no record that was not put, no crash, and it goes on. */
static void
test_torn_and_flipped_logs(void **state)
{
    struct near__spill_config config = config_of(NEAR__SPILL_PAGE + 4 * 4096, 4096);
    struct near__spill       *spill  = open_with(&config);
    char                      keep[128], log[128];
    uint64_t                  seed = 4711;
    unsigned                  most = 0;
    struct stat               st;

    (void)state;
    snprintf(keep, sizeof(keep), "%s.kept", dir);
    snprintf(log, sizeof(log), "%s/log", dir);
    for (unsigned i = 0; i < 2; i++)
        put_paced(spill, i, 0);
    drain(spill);
    close_it(&spill);
    copy_log(keep, 1 << 20);
    assert_int_equal(stat(keep, &st), 0);
    for (off_t size = 0; size < st.st_size + (off_t)test_scale(100); size++) {
        struct old old;
        bool       flips = size > st.st_size;
        int        fd;

        if (!flips && size > NEAR__SPILL_HEAD && size < NEAR__SPILL_PAGE)
            continue; /* zeros */
        wipe();
        mkdir(dir, 0700);
        assert_int_equal(rename(keep, log), 0);
        copy_log(keep, 1 << 20);
        fd = open(log, O_RDWR | O_CLOEXEC);
        if (!flips)
            assert_int_equal(ftruncate(fd, size), 0);
        for (unsigned n = flips ? 1 + (unsigned)(test_random(&seed) % 8) : 0; n > 0; n--) {
            off_t   at = (off_t)(test_random(&seed) % (uint64_t)st.st_size);
            uint8_t byte;

            assert_int_equal(pread(fd, &byte, 1, at), 1);
            byte ^= (uint8_t)(1u << test_random(&seed) % 8);
            assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        }
        close(fd);
        spill = open_with(&config);
        old   = look_at_old(spill, true);
        assert_int_equal(old.wrong, 0);
        assert_true(old.seen <= 2);
        if (old.seen > most)
            most = old.seen;
        put(spill, "new", "value");
        assert_get(spill, "new", "value");
        close_it(&spill);
    }
    assert_int_equal(most, 2); /* the control: whole, all of it is seen */
    unlink(keep);
}

/* What becomes damaged while it runs is a miss, once. */
static void
test_damage_under_way_is_a_miss(void **state)
{
    struct near__spill *spill = open_small();
    char                log[128];
    uint8_t             byte;
    int                 fd;

    (void)state;
    put(spill, "a", "value");
    drain(spill);
    snprintf(log, sizeof(log), "%s/log", dir);
    fd = open(log, O_RDWR | O_CLOEXEC);
    assert_int_equal(pread(fd, &byte, 1, NEAR__SPILL_PAGE + 2 * 4096 - 4096 + 64 + 64), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, NEAR__SPILL_PAGE + 4096 + 64 + 64), 1);
    close(fd);
    /* it lies in the buffer yet: fill it, so that it is read from the file */
    for (unsigned i = 0; i < 60; i++)
        put_paced(spill, i, 0);
    assert_null(get(spill, "a"));
    assert_int_equal(stats_of(spill).corrupt, 1);
    assert_null(get(spill, "a"));
    assert_int_equal(stats_of(spill).corrupt, 1);
    close_it(&spill);
}

/* ---- faults */

static void
test_full_disk_is_counted_and_left_alone(void **state)
{
    struct near__spill *spill = open_small();

    (void)state;
    for (unsigned i = 0; i < 16; i++)
        put_paced(spill, i, 0);
    disk.writes_left = 0;
    for (unsigned i = 100; i < 200; i++)
        put(spill, key_of(i), value_of(i, 0));
    drain(spill);
    assert_true(stats_of(spill).write_errors > 0);
    assert_true(stats_of(spill).dropped > 0);
    for (unsigned i = 100; i < 200; i++)
        assert_null(get(spill, key_of(i)));
    disk.writes_left = -1;
    usleep(1300 * 1000); /* the pause */
    for (unsigned i = 200; i < 208; i++)
        put_paced(spill, i, 0);
    for (unsigned i = 200; i < 208; i++)
        assert_get(spill, key_of(i), value_of(i, 0));
    close_it(&spill);
    spill = open_small();
    assert_int_equal(look_at_old(spill, false).wrong, 0);
    close_it(&spill);
}

static void
test_reads_that_fail_are_misses(void **state)
{
    struct near__spill *spill = open_small();

    (void)state;
    for (unsigned i = 0; i < 60; i++)
        put_paced(spill, i, 0);
    disk.fail_read = EIO;
    assert_null(get(spill, key_of(20)));
    assert_true(stats_of(spill).read_errors > 0);
    for (unsigned i = 100; i < 400; i++) /* and what is evicted cannot be read to be moved */
        put_paced(spill, i, 0);
    disk.fail_read = 0;
    for (unsigned i = 0; i < 400; i++) {
        const char *got = get(spill, key_of(i));

        assert_true(got == NULL || strcmp(got, value_of(i, 0)) == 0);
    }
    assert_get(spill, key_of(399), value_of(399, 0));
    close_it(&spill);
}

/* Nobody waits longer than he said, and when all threads hang nobody waits at all. */
static void
test_a_disk_that_hangs_costs_little(void **state)
{
    struct near__spill *spill = open_small();
    int64_t             began, took;

    (void)state;
    for (unsigned i = 0; i < 60; i++)
        put_paced(spill, i, 0);
    disk.hang_ms = 1500;
    for (unsigned i = 0; i < 2; i++) {
        struct near__spill_read read;

        began = test_now_ms();
        assert_true(near__spill_begin(spill, hash_of(key_of(i + 10)), &read));
        assert_false(near__spill_finish(spill, &read, text(key_of(i + 10)), in_ms(20)));
        took = test_now_ms() - began;
        assert_true(took >= 19 && took < 20 + 100 * test_slack());
    }
    usleep(150 * 1000);
    began = test_now_ms();
    for (unsigned i = 14; i < 34; i++)
        assert_null(get(spill, key_of(i)));
    assert_true(test_now_ms() - began < 100 * test_slack());
    assert_true(stats_of(spill).timeouts >= 20);
    disk.hang_ms = 0;
    usleep(1600 * 1000);
    assert_get(spill, key_of(55), value_of(55, 0));
    close_it(&spill);
}

static int
all_closed(void *ctx)
{
    (void)ctx;
    return files == 0;
}

/* The disk hangs past the close: who reads then comes back to what is his own. */
static void
test_reads_that_outlive_the_tier(void **state)
{
    struct near__spill_config config = config_of(NEAR__SPILL_PAGE + 16 * 4096, 4096);
    struct near__spill       *spill;
    struct near__spill_read   reads[6];

    (void)state;
    config.timeout = 1000 * NEAR_MS;
    spill          = open_with(&config);
    for (unsigned i = 0; i < 60; i++)
        put_paced(spill, i, 0);
    disk.held = 1;
    for (unsigned i = 0; i < NEAR_COUNT_OF(reads); i++)
        assert_true(near__spill_begin(spill, hash_of(key_of(i + 10)), &reads[i]));
    for (unsigned i = 0; i + 1 < NEAR_COUNT_OF(reads); i++)
        assert_false(near__spill_finish(spill, &reads[i], text(key_of(i + 10)), in_ms(1)));
    near__spill_close(&spill, in_ms(10), false);
    disk.held = 0;
    assert_true(test_wait_for(all_closed, NULL, 10000));
    near__spill_end(&reads[NEAR_COUNT_OF(reads) - 1]); /* somebody had not given up */
}

/* Nor does a close wait for who looks at a former life. */
static void
test_a_former_life_on_a_disk_that_hangs(void **state)
{
    struct near__spill *spill = open_small();
    struct old          old   = { NULL, 0, 0, false };

    (void)state;
    for (unsigned i = 0; i < 40; i++)
        put_paced(spill, i, 0);
    close_it(&spill);
    spill = open_small();
    drain(spill);
    old.spill = spill;
    assert_true(near__spill_old(spill, 0, old_record, &old));
    assert_true(old.seen > 0);
    disk.held = 1;
    near__spill_old_stop(spill);
    assert_false(near__spill_old(spill, 0, old_record, &old));
    near__spill_close(&spill, in_ms(10), false);
    disk.held = 0;
    assert_true(test_wait_for(all_closed, NULL, 10000));
}

/* ---- how old it is */

static int64_t wall;

static int64_t
wall_now(void *ctx)
{
    (void)ctx;
    return wall;
}

static unsigned
seen_after(int64_t went_by_ms)
{
    struct near__spill_config config = config_of(NEAR__SPILL_PAGE + 16 * 4096, 4096);
    struct near__spill       *spill;
    unsigned                  seen;

    wall                 = 1000 * 1000;
    config.clock.wall_ms = wall_now;
    spill                = open_with(&config);
    for (unsigned i = 0; i < 20; i++)
        put_paced(spill, i, 0);
    close_it(&spill);
    wall += went_by_ms;
    spill = open_with(&config);
    seen  = look_at_old(spill, false).seen;
    put(spill, key_of(50), value_of(50, 0)); /* and it goes on */
    drain(spill);
    assert_get(spill, key_of(50), value_of(50, 0));
    close_it(&spill);
    wipe();
    assert_int_equal(mkdir(dir, 0700), 0);
    return seen;
}

static void
test_a_log_from_the_future_is_not_believed(void **state)
{
    (void)state;
    assert_int_equal(seen_after(5000), 20);
    assert_int_equal(seen_after(-100), 20); /* a clock that is being corrected */
    assert_int_equal(seen_after(-5000), 0);
}

/* ---- who has it */

static int
reason_of_refusal(void)
{
    struct near__spill_config config = config_of(NEAR__SPILL_PAGE + 16 * 4096, 4096);
    struct near__spill       *spill;
    int                       reason;

    assert_int_equal(near__spill_open(&spill, &config, &reason), NEAR_ERR_UNAVAILABLE);
    return reason;
}

static void
test_files_of_others_are_left_alone(void **state)
{
    struct near__spill *spill = open_small();
    char                log[128], other[128];

    (void)state;
    put(spill, key_of(1), value_of(1, 0));
    close_it(&spill);
    snprintf(log, sizeof(log), "%s/log", dir);
    snprintf(other, sizeof(other), "%s.other", dir);
    assert_int_equal(link(log, other), 0);
    assert_int_equal(reason_of_refusal(), EPERM);
    assert_int_equal(unlink(log), 0);
    assert_int_equal(symlink(other, log), 0);
    assert_int_equal(reason_of_refusal(), ELOOP);
    assert_int_equal(unlink(log), 0);
    assert_int_equal(unlink(other), 0);
    assert_int_equal(chmod(dir, 0707), 0);
    assert_int_equal(reason_of_refusal(), EPERM);
    assert_int_equal(chmod(dir, 0700), 0);
    spill = open_small();
    close_it(&spill);
}

/* What was forked meanwhile has the same lock, and may live long. */
static void
test_a_child_does_not_keep_the_lock(void **state)
{
    struct near__spill *spill = open_small();
    pid_t               child;
    int                 status;

    (void)state;
    child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    assert_true(child > 0);
    close_it(&spill);
    spill = open_small();
    close_it(&spill);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
}

static void
test_one_process_at_a_time(void **state)
{
    struct near__spill       *spill  = open_small(), *other;
    struct near__spill_config config = config_of(NEAR__SPILL_PAGE + 16 * 4096, 4096);
    int                       reason;

    (void)state;
    assert_int_equal(near__spill_open(&other, &config, &reason), NEAR_ERR_BUSY);
    assert_null(other);
    config.path = "/nonexistent/near";
    assert_int_equal(near__spill_open(&other, &config, &reason), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(reason, ENOENT);
    config.path      = dir;
    config.max_bytes = 4096;
    assert_int_equal(near__spill_open(&other, &config, &reason), NEAR_ERR_INVALID);
    close_it(&spill);
}

/* ---- the index */

static void
test_index_in_ten_bytes(void **state)
{
    uint64_t                  n = test_scale(300000), found = 0;
    struct near__spill_index *index = near__spill_index_new(n);

    (void)state;
    for (uint64_t i = 1; i <= n; i++) {
        uint64_t seed = i;

        near__spill_index_put(index, test_random(&seed), (struct near__spill_index_place){ i * 4096, 272 });
    }
    for (uint64_t i = 1; i <= n; i++) {
        struct near__spill_index_place place;
        uint64_t                       seed = i;

        if (near__spill_index_find(index, test_random(&seed), &place) && place.at == i * 4096) {
            assert_int_equal(place.size, 272);
            found++;
        }
    }
    assert_true(found > n - n / 200); /* two of one tag share a slot */
    if (n >= 100000)
        assert_true(near__spill_index_bytes(index) < n * 12);
    for (uint64_t i = 1; i <= n; i += 2) {
        uint64_t seed = i;

        near__spill_index_remove(index, test_random(&seed));
    }
    found = 0;
    for (uint64_t i = 2; i <= n; i += 2) {
        struct near__spill_index_place place;
        uint64_t                       seed = i;

        found += near__spill_index_find(index, test_random(&seed), &place) && place.at == i * 4096;
    }
    assert_true(found > n / 2 - n / 200);
    assert_true(near__spill_index_drop(index, 0, n * 2048) > n / 4 - n / 100);
    near__spill_index_close(index);
    near__spill_index_open(index);
    near__spill_index_tidy(index);
    assert_int_equal(near__spill_index_entries(index), 0);
    near__spill_index_free(&index);
}

static void
test_sizes_are_rounded_up_by_little(void **state)
{
    (void)state;
    for (uint32_t size = 16; size <= NEAR__SPILL_INDEX_MAX; size += 16) {
        uint32_t rounded = near__spill_index_rounded(size);

        if (rounded < size || rounded > size + size / 8)
            fail_msg("%u is rounded to %u", size, rounded);
    }
}

/* ---- threads that collide, for the thread sanitizer; and every answer is the last that was put */

#define KEYS    64
#define WORKERS 3

struct shared {
    struct near__spill *spill;
    pthread_mutex_t     locks[KEYS]; /* what L1's shards are */
    unsigned            versions[KEYS];
    _Atomic unsigned    wrong, hits;
};

static void *
collide(void *ctx)
{
    struct shared *shared = ctx;
    uint64_t       seed   = (uint64_t)(uintptr_t)&seed;

    for (size_t round = test_scale(6000); round > 0; round--) {
        unsigned                i = (unsigned)(test_random(&seed) % KEYS), before;
        char                    key[32], value[64];
        struct near__spill_read read;

        snprintf(key, sizeof(key), "key:%u", i);
        if (round % 3 == 0) { /* a write: what is there goes, the new one is evicted at once */
            struct near__spill_record record = { .key         = text(key),
                                                 .fresh_until = NEAR_NEVER,
                                                 .expires     = NEAR_NEVER };

            pthread_mutex_lock(&shared->locks[i]);
            near__spill_forget(shared->spill, hash_of(key));
            snprintf(value, sizeof(value), "%u", ++shared->versions[i]);
            record.value = text(value);
            near__spill_put(shared->spill, hash_of(key), &record);
            pthread_mutex_unlock(&shared->locks[i]);
            continue;
        }
        pthread_mutex_lock(&shared->locks[i]);
        before = shared->versions[i];
        pthread_mutex_unlock(&shared->locks[i]);
        if (near__spill_begin(shared->spill, hash_of(key), &read) &&
            near__spill_finish(shared->spill, &read, text(key), in_ms(1000))) {
            snprintf(value, sizeof(value), "%.*s", (int)read.record.value.size,
                     (const char *)read.record.value.data);
            shared->wrong += (unsigned)atoi(value) < before;
            shared->hits++;
            near__spill_end(&read);
        }
        if (round % 999 == 0) {
            near__spill_flush_begin(shared->spill);
            near__spill_flush_end(shared->spill);
        }
    }
    return NULL;
}

static void
test_threads_never_see_what_was_replaced(void **state)
{
    static struct shared shared;
    pthread_t            threads[WORKERS];

    (void)state;
    memset(&shared, 0, sizeof(shared));
    shared.spill = open_small();
    for (unsigned i = 0; i < KEYS; i++)
        pthread_mutex_init(&shared.locks[i], NULL);
    for (unsigned i = 0; i < WORKERS; i++)
        pthread_create(&threads[i], NULL, collide, &shared);
    for (unsigned i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(shared.wrong, 0);
    assert_true(shared.hits > 10);
    close_it(&shared.spill);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_answers_from_memory_and_from_the_file),
        TEST(test_many_reads_under_way),
        TEST(test_what_is_forgotten_is_gone),
        TEST(test_read_under_way_is_fenced),
        TEST(test_what_has_ended_is_not_answered),
        TEST(test_log_goes_round),
        TEST(test_admission_wants_to_see_a_key_twice),
        TEST(test_clean_end_lists_what_is_alive),
        TEST(test_bad_end_lists_nothing),
        TEST(test_torn_and_flipped_logs),
        TEST(test_damage_under_way_is_a_miss),
        TEST(test_full_disk_is_counted_and_left_alone),
        TEST(test_reads_that_fail_are_misses),
        TEST(test_a_disk_that_hangs_costs_little),
        TEST(test_reads_that_outlive_the_tier),
        TEST(test_a_former_life_on_a_disk_that_hangs),
        TEST(test_a_log_from_the_future_is_not_believed),
        TEST(test_files_of_others_are_left_alone),
        TEST(test_a_child_does_not_keep_the_lock),
        TEST(test_one_process_at_a_time),
        cmocka_unit_test(test_index_in_ten_bytes),
        cmocka_unit_test(test_sizes_are_rounded_up_by_little),
        TEST(test_threads_never_see_what_was_replaced),
    };

    near__secret_init(&secret);
    return TEST_MAIN(tests, NULL, NULL);
}
