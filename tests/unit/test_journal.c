/*
 * The journal, piece by piece: on the disk in memory, where calls fail and pages are lost on command, and on a real directory.  What
 * crashes leave is tests/long/test_journal_images.
 *
 * Linked with --wrap for the allocator.
 */
#include "harness/disk.h"
#include "harness/test.h"

#include "base/crc32c.h"
#include "base/hash.h"
#include "base/le.h"
#include "base/thread.h"
#include "journal.h"
#include "journal_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define ALL_KINDS (1u << NEAR__JOURNAL_PUT | 1u << NEAR__JOURNAL_ERASE | 1u << NEAR__JOURNAL_INTENT)

/* ---- memory that runs out */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);

static unsigned long allocations, allocation_fails_at; /* tests that set it have one thread */

static bool
is_refused(void)
{
    return allocation_fails_at != 0 && test_disk_allocating == 0 && ++allocations >= allocation_fails_at;
}

void *
__wrap_malloc(size_t size)
{
    return is_refused() ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t n, size_t size)
{
    return is_refused() ? NULL : __real_calloc(n, size);
}

void *
__wrap_realloc(void *old, size_t size)
{
    return is_refused() ? NULL : __real_realloc(old, size);
}

/* ---- help */

static char place[64]; /* a directory of our own, for each test */

static int
make_place(void **state)
{
    (void)state;
    snprintf(place, sizeof(place), "/tmp/near-journal-XXXXXX");
    return mkdtemp(place) == NULL ? -1 : 0;
}

static int
remove_place(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", place);
    return system(command);
}

static struct near__journal_options
real_options(enum near__journal_fsync fsync)
{
    return (struct near__journal_options){
        .directory = place, .fsync = fsync, .interval = 5 * NEAR_MS, .max_bytes = 1 << 20
    };
}

static struct near__journal_options
memory_options(struct test_disk *disk)
{
    return (struct near__journal_options){
        .directory = "journal", .max_bytes = 1 << 20, .manual = true, .disk = &disk->disk
    };
}

static struct near__journal *
opened(const struct near__journal_options *options)
{
    struct near__journal *journal;
    near_error            error = { .text = "" };

    if (near__journal_open(&journal, options, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    return journal;
}

static near_status
open_status(const struct near__journal_options *options, near_error *error)
{
    struct near__journal *journal;
    near_status           status = near__journal_open(&journal, options, error);

    assert_true((journal != NULL) == (status == NEAR_OK));
    near__journal_close(journal, NULL);
    return status;
}

static struct near__journal_record
put_of(const char *key, const char *data)
{
    return (struct near__journal_record){ NEAR__JOURNAL_PUT, near_key("cache"), near_key(key),
                                          near_key(data) };
}

static near_status
try_put(struct near__journal *journal, const char *key, const char *data, uint64_t *sequence)
{
    struct near__journal_record record = put_of(key, data);

    return near__journal_write(journal, &record, sequence);
}

static uint64_t
put(struct near__journal *journal, const char *key, const char *data)
{
    uint64_t sequence;

    assert_int_equal(try_put(journal, key, data, &sequence), NEAR_OK);
    return sequence;
}

static uint64_t
put_now(struct near__journal *journal, const char *key, const char *data)
{
    uint64_t sequence = put(journal, key, data);

    assert_int_equal(near__journal_commit(journal, sequence, NEAR_NEVER), NEAR_OK);
    return sequence;
}

/* "key=data key=data ..." in the order of the replay. */
struct told {
    char     text[4096];
    uint64_t sequences[256];
    size_t   n, most;
};

static bool
tell(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    struct told *told = ctx;
    size_t       used = strlen(told->text);
    char sign = record->kind == NEAR__JOURNAL_PUT ? '=' : record->kind == NEAR__JOURNAL_ERASE ? '-' : '?';

    snprintf(told->text + used, sizeof(told->text) - used, "%s%.*s%c%.*s", used > 0 ? " " : "",
             (int)record->key.size, (const char *)record->key.data, sign, (int)record->data.size,
             (const char *)record->data.data);
    if (told->n < NEAR_COUNT_OF(told->sequences))
        told->sequences[told->n] = sequence;
    return ++told->n != told->most;
}

static struct told
replay(struct near__journal *journal)
{
    struct told told = { .text = "" };

    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, &told), NEAR_OK);
    return told;
}

static struct near__journal_state
state_of(struct near__journal *journal)
{
    struct near__journal_state state;

    near__journal_state(journal, &state);
    return state;
}

static uint64_t
synced_of(struct near__journal *journal)
{
    return state_of(journal).synced;
}

/* ---- bytes */

static void
test_checksum(void **state)
{
    uint8_t  bytes[300], zeros[32] = { 0 };
    uint64_t dice = 1;

    (void)state;
    assert_int_equal(near__crc32c(0, "123456789", 9), 0xe3069283);
    assert_int_equal(near__crc32c_table(0, "123456789", 9), 0xe3069283);
    assert_int_equal(near__crc32c(0, zeros, 32), 0x8a9136aa);
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)test_random(&dice);
    for (size_t size = 0; size < sizeof(bytes); size++) {
        uint32_t whole = near__crc32c_table(0, bytes, size);

        assert_int_equal(near__crc32c(0, bytes, size), whole);
        assert_int_equal(near__crc32c(near__crc32c(0, bytes, size / 3), bytes + size / 3, size - size / 3),
                         whole);
    }
}

static void
test_record(void **state)
{
    struct near__journal_record record = put_of("key", "some data");
    struct near__record_view    view;
    uint8_t                     bytes[128], *exact;
    size_t                      size = near__record_size(&record);

    (void)state;
    assert_int_equal(size, 64); /* 40 and 5 + 3 + 9, to a multiple of 8 */
    near__record_encode(bytes, &record, 77, NEAR_OK);
    near__record_seal(bytes, 0x1122334455667788, 5, 512);
    assert_true(near__record_decode(&view, bytes, size, 0x1122334455667788));
    assert_int_equal(view.sequence, 77);
    assert_int_equal(view.previous, 5);
    assert_int_equal(view.synced, 512);
    assert_int_equal(view.record.kind, NEAR__JOURNAL_PUT);
    assert_true(near__bytes_equal(view.record.cache, near_key("cache")));
    assert_true(near__bytes_equal(view.record.key, near_key("key")));
    assert_true(near__bytes_equal(view.record.data, near_key("some data")));
    assert_false(near__record_decode(&view, bytes, size, 0x1122334455667789)); /* another segment's */
    for (size_t cut = 0; cut < size; cut++) {
        exact = malloc(cut + 1); /* a read behind it is seen by the sanitizer */
        memcpy(exact, bytes, cut);
        assert_false(near__record_decode(&view, exact, cut, 0x1122334455667788));
        free(exact);
    }
    for (size_t bit = 0; bit < size * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(near__record_decode(&view, bytes, size, 0x1122334455667788));
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void
test_record_limits(void **state)
{
    struct near__journal_record record = put_of("key", "");
    static char                 name[70];

    (void)state;
    record.cache = (near_bytes){ name, 64 };
    assert_true(near__record_size(&record) > 0);
    record.cache.size = 65;
    assert_int_equal(near__record_size(&record), 0);
    record.cache.size = 0;
    assert_int_equal(near__record_size(&record), 0);
    record      = put_of("key", "data");
    record.kind = NEAR__JOURNAL_ERASE;
    assert_int_equal(near__record_size(&record), 0);
    record.data.size = 0;
    assert_int_equal(near__record_size(&record), 48);
    record.key.size = (64 << 10) + 1;
    assert_int_equal(near__record_size(&record), 0);
    record           = put_of("key", "data");
    record.data.size = SIZE_MAX - 20; /* sums that would overflow */
    assert_int_equal(near__record_size(&record), 0);
}

static void
test_header(void **state)
{
    struct near__segment_header header = { .size        = 65536,
                                           .segment     = 9,
                                           .origin      = 4,
                                           .predecessor = 8,
                                           .floor       = 3 },
                                again;
    uint8_t bytes[NEAR__SEGMENT_HEADER], encoded[NEAR__SEGMENT_HEADER];

    (void)state;
    near__segment_encode(bytes, &header);
    assert_true(near__segment_decode(&again, bytes, sizeof(bytes)));
    near__segment_encode(encoded, &again);
    assert_memory_equal(encoded, bytes, sizeof(bytes));
    assert_int_equal(again.predecessor, 8);
    assert_int_equal(again.floor, 3);
    assert_false(near__segment_decode(&again, bytes, sizeof(bytes) - 1));
    for (size_t bit = 0; bit < sizeof(bytes) * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(near__segment_decode(&again, bytes, sizeof(bytes)));
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    header.predecessor = 9; /* its own: a chain without an end */
    near__segment_encode(bytes, &header);
    assert_false(near__segment_decode(&again, bytes, sizeof(bytes)));
}

/* Headers whose checksum is right and whose numbers are not: each number alone is enough. */
static void
test_header_limits(void **state)
{
    const struct near__segment_header good = { .size            = NEAR__SEGMENT_MAX,
                                               .segment         = 9,
                                               .predecessor     = 8,
                                               .predecessor_end = NEAR__SEGMENT_MAX,
                                               .floor           = 9,
                                               .first_sequence  = UINT64_MAX >> 2 };
    struct near__segment_header       bad[8], again;
    uint8_t                           bytes[NEAR__SEGMENT_HEADER];

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++)
        bad[i] = good;
    near__segment_encode(bytes, &bad[0]);
    assert_true(near__segment_decode(&again, bytes, sizeof(bytes)));
    bad[0].use             = NEAR__SEGMENT_DEAD + 1;
    bad[1].size            = NEAR__SEGMENT_HEADER - 1;
    bad[2].size            = NEAR__SEGMENT_MAX + 1u;
    bad[3]                 = (struct near__segment_header){ .size = 4096 }; /* segment 0 */
    bad[4].predecessor     = 9;
    bad[5].floor           = 10;
    bad[6].predecessor_end = NEAR__SEGMENT_MAX + 1u;
    bad[7].first_sequence  = (UINT64_MAX >> 2) + 1;
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++) {
        near__segment_encode(bytes, &bad[i]);
        if (near__segment_decode(&again, bytes, sizeof(bytes)))
            fail_msg("number %zu", i);
    }
    bad[0] = good;
    near__segment_encode(bytes, &bad[0]);
    bytes[8] ^= 2; /* another version */
    assert_false(near__segment_decode(&again, bytes, sizeof(bytes)));
    bytes[8] ^= 2;
    bytes[0] ^= 1; /* another magic */
    assert_false(near__segment_decode(&again, bytes, sizeof(bytes)));
}

/* The record in `bytes`, with its checksum made right again. */
static bool
verifies(const uint8_t *bytes, size_t size, size_t sealed)
{
    struct near__record_view view;
    uint8_t                  copy[256];
    uint32_t                 checksum = near__crc32c(0, bytes + 4, sealed - 4);

    memcpy(copy, bytes, size);
    for (int i = 0; i < 4; i++)
        copy[i] = (uint8_t)(checksum >> 8 * i);
    return near__record_decode(&view, copy, size, 7);
}

/* Records whose checksum is right and whose parts do not fit. */
static void
test_record_forms(void **state)
{
    struct near__journal_record record = put_of("key", "some data"); /* 40 and 5 + 3 + 9, 7 of padding */
    struct near__record_view    view;
    uint8_t                     good[64], bytes[256];

    (void)state;
    near__record_encode(good, &record, 77, NEAR_OK);
    near__record_seal(good, 7, 5, 512);
    assert_true(verifies(good, 64, 64));
#define SPOILT(at, value) (memcpy(bytes, good, 64), bytes[at] = (uint8_t)(value), verifies(bytes, 64, 64))
    assert_false(SPOILT(23, 0x40));                /* a number that was never given */
    assert_false(SPOILT(34, 8));                   /* more padding than rounding takes */
    assert_false(SPOILT(36, 25));                  /* a key that ends behind the record */
    assert_false(SPOILT(33, 20));                  /* a cache's name that does, behind the key */
    assert_false(SPOILT(33, 0));                   /* no cache */
    assert_false(SPOILT(32, 0));                   /* kinds that there are not, with a cache */
    assert_false(SPOILT(32, NEAR__JOURNAL_ERASE)); /* with data */
    assert_false(SPOILT(32, NEAR__JOURNAL_DONE));  /* with a cache and a key */
    assert_false(SPOILT(4, 56));                   /* shorter than its parts */
    assert_true(SPOILT(34, 0));                    /* zeros may be data */
#undef SPOILT
    memcpy(bytes, good, 64);
    bytes[4] = 60; /* no multiple of 8 */
    assert_false(verifies(bytes, 64, 60));
    bytes[4] = 32; /* less than its header */
    assert_false(verifies(bytes, 64, 32));
    assert_false(near__record_read(&view, good, NEAR__RECORD_HEADER - 1));

    record = (struct near__journal_record){ .kind = NEAR__JOURNAL_END };
    near__record_encode(bytes, &record, 77, NEAR_OK);
    near__record_seal(bytes, 7, 5, 512);
    assert_true(verifies(bytes, 40, 40));
    bytes[32] = NEAR__JOURNAL_DONE; /* of nothing */
    assert_true(verifies(bytes, 40, 40));
    bytes[32] = 3 + NEAR__JOURNAL_DONE;
    assert_false(verifies(bytes, 40, 40));
    bytes[32] = NEAR__JOURNAL_DONE;
    bytes[36] = 8; /* a key and no cache */
    bytes[4]  = 48;
    memset(bytes + 40, 0, 8);
    assert_false(verifies(bytes, 48, 48));
    bytes[36] = 0; /* 8 bytes of data: no whole range */
    assert_false(verifies(bytes, 48, 48));
    bytes[32] = NEAR__JOURNAL_END; /* that has no data at all */
    assert_false(verifies(bytes, 48, 48));
}

/* ---- a life after the other */

static void
check_lives(const struct near__journal_options *options)
{
    struct near__journal       *journal = opened(options);
    uint64_t                    origin  = near__journal_origin(journal), first, last;
    struct near__journal_record other   = {
          NEAR__JOURNAL_INTENT, near_key("other"), near_key("b"), { NULL, 0 }
    };
    struct near__journal_record erase = {
        NEAR__JOURNAL_ERASE, near_key("cache"), near_key("a"), { NULL, 0 }
    };
    struct told told;

    assert_true(origin != 0);
    first = put_now(journal, "a", "1");
    put_now(journal, "b", "2");
    assert_int_equal(near__journal_write(journal, &other, &last), NEAR_OK);
    assert_int_equal(near__journal_write(journal, &erase, &last), NEAR_OK);
    assert_int_equal(near__journal_commit(journal, last, NEAR_NEVER), NEAR_OK);
    told = replay(journal);
    assert_string_equal(told.text,
                        "a=1 b=2 a-"); /* this life's own as well: its cache may have been closed */
    put(journal, "c", "3");
    told = replay(journal);
    assert_string_equal(told.text, "a=1 b=2 a- c=3"); /* no file had it yet */
    near__journal_done(journal, &told.sequences[3], 1);
    near__journal_done(journal, &first, 1);
    assert_int_equal(state_of(journal).live, 3);
    assert_int_equal(near__journal_close(journal, NULL), NEAR_OK);

    journal = opened(options);
    assert_int_equal(near__journal_origin(journal), origin);
    assert_int_equal(state_of(journal).recovered, 3);
    told = replay(journal);
    assert_string_equal(told.text, "b=2 a-");
    assert_int_equal(put_now(journal, "c", "3"), last + 2); /* a clean end leaves no gap */
    told = replay(journal);
    assert_string_equal(told.text, "b=2 a- c=3"); /* until it is done, as often as one likes */
    near__journal_done(journal, told.sequences, 1);
    assert_int_equal(near__journal_close(journal, NULL), NEAR_OK);

    journal = opened(options);
    told    = replay(journal);
    assert_string_equal(told.text, "a- c=3");
    near__journal_done(journal, told.sequences, 2);
    near__journal_done(journal, told.sequences, 2); /* twice is nothing */
    assert_int_equal(state_of(journal).live, 1);    /* the other cache's */
    assert_int_equal(near__journal_close(journal, NULL), NEAR_OK);
}

static void
test_lives(void **state)
{
    (void)state;
    for (int fsync = NEAR__FSYNC_ALWAYS; fsync <= NEAR__FSYNC_NONE; fsync++) {
        struct near__journal_options options = real_options((enum near__journal_fsync)fsync);
        struct test_disk             disk;

        check_lives(&options);
        assert_int_equal(remove_place(NULL) | mkdir(place, 0700), 0);
        test_disk_init(&disk);
        options       = memory_options(&disk);
        options.fsync = (enum near__journal_fsync)fsync;
        check_lives(&options);
        test_disk_free(&disk);
    }
}

static void
test_replay_stops(void **state)
{
    struct near__journal_options options = real_options(NEAR__FSYNC_ALWAYS);
    struct near__journal        *journal = opened(&options);
    struct told                  told    = { .most = 2 };

    (void)state;
    for (int i = 0; i < 5; i++)
        put(journal, "k", "v");
    near__journal_close(journal, NULL);
    journal = opened(&options);
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, &told), NEAR_OK);
    assert_int_equal(told.n, 2);
    told = (struct told){ .n = 0 };
    assert_int_equal(near__journal_replay(journal, near_key("cache"), 1 << NEAR__JOURNAL_INTENT, tell, &told),
                     NEAR_OK);
    assert_int_equal(told.n, 0);
    near__journal_close(journal, NULL);
}

/* The process is killed: under `always` and `none` what was committed is there, and numbers go on far above. */
static void
test_killed(void **state)
{
    (void)state;
    for (int fsync = NEAR__FSYNC_ALWAYS; fsync <= NEAR__FSYNC_NONE; fsync += 2) {
        struct near__journal_options options = real_options((enum near__journal_fsync)fsync);
        struct near__journal        *journal;
        struct told                  told;
        int                          status;
        pid_t                        child = fork();

        if (child == 0) {
            journal = opened(&options);
            put_now(journal, "a", "1");
            put_now(journal, "b", "2");
            put(journal, "c", "3");
            _exit(0);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        journal = opened(&options);
        told    = replay(journal);
        assert_memory_equal(told.text, "a=1 b=2", 7);
        assert_true(put(journal, "d", "4") > 1000000);
        near__journal_close(journal, NULL);
        assert_int_equal(remove_place(NULL) | mkdir(place, 0700), 0);
    }
}

/* ---- who may */

static void
test_locked(void **state)
{
    struct near__journal_options options = real_options(NEAR__FSYNC_ALWAYS);
    struct near__journal        *journal = opened(&options);
    near_error                   error;
    char                         expected[200];
    pid_t                        child;
    int                          status;

    (void)state;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_BUSY);
    snprintf(expected, sizeof(expected), "journal %s: is open in process %ld already", place, (long)getpid());
    assert_string_equal(error.text, expected);
    child = fork();
    if (child == 0)
        _exit(open_status(&options, &error) == NEAR_ERR_BUSY ? 0 : 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    near__journal_close(journal, NULL);
    assert_int_equal(open_status(&options, &error), NEAR_OK);
}

static void
test_refused_places(void **state)
{
    struct near__journal_options options = real_options(NEAR__FSYNC_ALWAYS);
    char                         path[200], other[200];
    struct stat                  stat;
    near_error                   error;

    (void)state;
    near__journal_close(opened(&options), NULL);
    snprintf(path, sizeof(path), "%s/0000000000000001.seg", place);
    assert_int_equal(lstat(path, &stat), 0);
    assert_int_equal(stat.st_mode & 0777, 0600);
    assert_int_equal(chmod(path, 0622), 0);
    assert_int_equal(open_status(&options, &error), NEAR_ERR_DENIED);
    assert_non_null(strstr(error.text, "0000000000000001.seg"));
    assert_int_equal(chmod(path, 0600), 0);
    snprintf(other, sizeof(other), "%s/elsewhere", place);
    assert_int_equal(rename(path, other) | symlink(other, path), 0);
    assert_int_equal(open_status(&options, &error), NEAR_ERR_DENIED);
    assert_int_equal(unlink(path) | rename(other, path), 0);
    assert_int_equal(open_status(&options, &error), NEAR_OK);

    snprintf(path, sizeof(path), "%s/lock", place);
    assert_int_equal(rename(path, other) | symlink(other, path), 0);
    assert_int_equal(open_status(&options, &error), NEAR_ERR_DENIED);
    assert_int_equal(unlink(path) | mkfifo(path, 0600), 0);
    assert_int_equal(open_status(&options, &error), NEAR_ERR_DENIED);
    assert_int_equal(unlink(path), 0);

    assert_int_equal(chmod(place, 0707), 0);
    assert_int_equal(open_status(&options, &error), NEAR_ERR_DENIED);
    assert_int_equal(chmod(place, 0700), 0);
    snprintf(path, sizeof(path), "%s/a/b", place);
    options.directory = path;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_UNAVAILABLE); /* only the last part is made */
    snprintf(path, sizeof(path), "%s/new", place);
    assert_int_equal(open_status(&options, &error), NEAR_OK);
    assert_int_equal(lstat(path, &stat), 0);
    assert_int_equal(stat.st_mode & 0777, 0700);
    assert_int_equal(unlink(other) | symlink(path, other), 0);
    options.directory = other;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_UNAVAILABLE);
}

/* Those that lead to the journal's directory: a sanitizer has some of its own, now and then. */
static size_t
open_descriptors(void)
{
    char   link[64], target[256];
    size_t n = 0;

    for (int fd = 0; fd < 256; fd++) {
        ssize_t size;

        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        size = readlink(link, target, sizeof(target));
        n += size >= (ssize_t)strlen(place) && memcmp(target, place, strlen(place)) == 0;
    }
    return n;
}

/* Holds the child of a fork before the journal's own handler closes its descriptors: as a machine under load does. */
static int hold_child = -1;

static void
child_is_slow(void)
{
    char byte;

    if (hold_child >= 0 && read(hold_child, &byte, 1) != 1)
        _exit(2);
}

/* Whoever forks may close the journal and open it again, however late the child is. */
static void
test_slow_fork(void **state)
{
    struct near__journal_options options = real_options(NEAR__FSYNC_ALWAYS);
    struct near__journal        *journal = opened(&options);
    near_error                   error;
    int                          to_child[2], child_status;
    near_status                  status;
    pid_t                        child;

    (void)state;
    assert_int_equal(pipe(to_child), 0);
    hold_child = to_child[0];
    child      = fork();
    if (child == 0)
        _exit(open_descriptors() == 0 ? 0 : 1);
    hold_child = -1;
    put_now(journal, "a", "1");
    assert_int_equal(near__journal_close(journal, NULL), NEAR_OK);
    status = open_status(&options, &error);
    assert_int_equal(write(to_child[1], "", 1), 1);
    assert_int_equal(waitpid(child, &child_status, 0), child);
    assert_int_equal(child_status, 0);
    assert_int_equal(status, NEAR_OK);
    close(to_child[0]);
    close(to_child[1]);
}

/* The child has no descriptor of it, writes nothing, and does not keep the lock when the parent is gone. */
static void
test_fork(void **state)
{
    struct near__journal_options options = real_options(NEAR__FSYNC_ALWAYS);
    struct near__journal        *journal = opened(&options);
    uint64_t                     first   = put_now(journal, "a", "1");
    near_error                   error;
    int                          to_child[2], status;
    pid_t                        child;
    char                         byte;

    (void)state;
    assert_int_equal(open_descriptors(), 3); /* directory, lock, segment */
    assert_int_equal(pipe(to_child), 0);
    child = fork();
    if (child == 0) {
        uint64_t sequence;
        bool     good = open_descriptors() == 0 && try_put(journal, "b", "2", &sequence) == NEAR_ERR_FORKED;

        good = good && near__journal_commit(journal, first, NEAR_NEVER) == NEAR_ERR_FORKED;
        good = good && near__journal_sync(journal, first, NEAR_NEVER) == NEAR_ERR_FORKED;
        good = good && near__journal_tick(journal) == NEAR_ERR_FORKED && synced_of(journal) == 0;
        near__journal_done(journal, &first, 1);
        good = good &&
               near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, NULL) == NEAR_ERR_FORKED;
        good = good && near__journal_close(journal, NULL) == NEAR_OK;
        close(to_child[1]);
        good = good && read(to_child[0], &byte, 1) == 0; /* until the parent has opened it again */
        _exit(good ? 0 : 1);
    }
    close(to_child[0]);
    put_now(journal, "c", "3");
    assert_int_equal(near__journal_close(journal, NULL), NEAR_OK);
    assert_int_equal(open_status(&options, &error), NEAR_OK); /* the child lives */
    close(to_child[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    journal = opened(&options);
    assert_string_equal(replay(journal).text, "a=1 c=3");
    near__journal_close(journal, NULL);
}

/* ---- groups */

/* The system's disk, with a sync that takes as long as the test says. */
static struct {
    struct near__disk disk;
    atomic_int        syncs, writes, hold; /* while `hold` is set no sync returns */
    atomic_int        inside, fails;       /* while `fails` is set nothing gets to the disk */
    unsigned          slow_us;
} slow;

static int
slow_sync(void *ctx, int fd)
{
    int result = near__disk_system.sync(ctx, fd);

    atomic_fetch_add(&slow.syncs, 1);
    atomic_fetch_add(&slow.inside, 1);
    while (atomic_load(&slow.hold))
        usleep(200);
    usleep(slow.slow_us);
    atomic_fetch_sub(&slow.inside, 1);
    return atomic_load(&slow.fails) ? -EIO : result;
}

static ssize_t
counted_write(void *ctx, int fd, const void *buffer, size_t size, uint64_t at)
{
    atomic_fetch_add(&slow.writes, 1);
    return atomic_load(&slow.fails) ? -EIO : near__disk_system.write(ctx, fd, buffer, size, at);
}

static struct near__journal *
open_slowly(enum near__journal_fsync fsync, unsigned slow_us)
{
    struct near__journal_options options = real_options(fsync);
    struct near__journal        *journal;

    slow.disk       = near__disk_system;
    slow.disk.sync  = slow_sync;
    slow.disk.write = counted_write;
    slow.slow_us    = 0;
    atomic_store(&slow.hold, 0);
    atomic_store(&slow.fails, 0);
    options.disk = &slow.disk;
    journal      = opened(&options);
    slow.slow_us = slow_us;
    atomic_store(&slow.syncs, 0);
    atomic_store(&slow.writes, 0);
    return journal;
}

enum { WRITERS = 16, COMMITS = 20 };

static void *
commit_some(void *ctx)
{
    for (int i = 0; i < COMMITS; i++) {
        uint64_t sequence = 0;

        if (try_put(ctx, "key", "value", &sequence) != NEAR_OK ||
            near__journal_commit(ctx, sequence, NEAR_NEVER) != NEAR_OK || synced_of(ctx) < sequence)
            return ctx;
    }
    return NULL;
}

static void
test_group_commit(void **state)
{
    struct near__journal *journal = open_slowly(NEAR__FSYNC_ALWAYS, 1000);
    pthread_t             threads[WRITERS];
    void                 *failed;
    int                   syncs;

    (void)state;
    for (int i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, commit_some, journal), 0);
    for (int i = 0; i < WRITERS; i++) {
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    syncs = atomic_load(&slow.syncs);
    print_message("%d commits in %d fsyncs\n", WRITERS * COMMITS, syncs);
    assert_true(syncs * 4 < WRITERS * COMMITS);
    atomic_store(&slow.syncs, 0);
    assert_null(commit_some(journal)); /* the control: alone, each has its own */
    assert_int_equal(atomic_load(&slow.syncs), COMMITS);
    near__journal_close(journal, NULL);
}

static void *
commit_one(void *ctx)
{
    put_now(ctx, "held", "up");
    return NULL;
}

/* While an fsync hangs everybody may write, be done, and give up waiting. */
static void
test_no_lock_while_syncing(void **state)
{
    struct near__journal *journal = open_slowly(NEAR__FSYNC_ALWAYS, 0);
    pthread_t             thread;
    uint64_t              sequence;
    int64_t               begun;

    (void)state;
    atomic_store(&slow.hold, 1);
    assert_int_equal(pthread_create(&thread, NULL, commit_one, journal), 0);
    while (atomic_load(&slow.inside) == 0)
        usleep(200);
    begun    = test_now_ms();
    sequence = put(journal, "free", "to go");
    near__journal_done(journal, &sequence, 1);
    sequence = put(journal, "free", "again");
    assert_int_equal(near__journal_commit(journal, sequence, near__now(&near__clock_system) + 20 * NEAR_MS),
                     NEAR_ERR_TIMEOUT);
    assert_true(test_now_ms() - begun < 1000 * test_slack());
    atomic_store(&slow.hold, 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(near__journal_commit(journal, sequence, NEAR_NEVER), NEAR_OK);
    near__journal_close(journal, NULL);
}

static int
is_synced(void *ctx)
{
    return synced_of(ctx) > 0;
}

static void
test_interval(void **state)
{
    struct near__journal *journal = open_slowly(NEAR__FSYNC_INTERVAL, 0);
    uint64_t              sequence;

    (void)state;
    atomic_store(&slow.hold, 1);
    sequence = put_now(journal, "a", "1"); /* waits for nothing */
    assert_int_equal(synced_of(journal), 0);
    while (atomic_load(&slow.inside) == 0) /* the journal's thread is at it */
        usleep(200);
    assert_int_equal(near__journal_sync(journal, sequence, near__now(&near__clock_system) + 20 * NEAR_MS),
                     NEAR_ERR_TIMEOUT);
    atomic_store(&slow.hold, 0);
    assert_true(test_wait_for(is_synced, journal, 2000));
    sequence = put_now(journal, "b", "2");
    assert_int_equal(near__journal_sync(journal, sequence, NEAR_NEVER), NEAR_OK);
    assert_int_equal(synced_of(journal), sequence);
    near__journal_close(journal, NULL);
}

/* A small journal has little room for what is pending: the thread does not wait for the interval then. */
static void
test_interval_of_a_small_one(void **state)
{
    struct near__journal_options options = real_options(NEAR__FSYNC_INTERVAL);
    struct near__journal        *journal;
    static char                  value[1000];
    uint64_t                     sequence;
    int64_t                      ends = test_now_ms() + 5000;

    (void)state;
    options.interval = 3600 * 1000 * NEAR_MS;
    journal          = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    for (int i = 0; i < 300;) {
        near_status status = try_put(journal, "k", value, &sequence);

        i += status == NEAR_OK;
        if (status != NEAR_OK)
            assert_int_equal(status, NEAR_ERR_BUSY); /* for the moment: the loop is faster than any disk */
        if (status == NEAR_OK || test_now_ms() < ends)
            continue;
        fail_msg("busy after %d records, for good", i);
    }
    near__journal_close(journal, NULL);
}

static void
test_none(void **state)
{
    struct near__journal *journal = open_slowly(NEAR__FSYNC_NONE, 0);

    (void)state;
    put_now(journal, "a", "1");
    assert_int_equal(atomic_load(&slow.writes), 1);
    assert_int_equal(atomic_load(&slow.syncs), 0);
    near__journal_close(journal, NULL);
    assert_true(atomic_load(&slow.syncs) > 0);
}

/* ---- bounds */

/* One record is never done; a hundred times the bound goes through all the same, and it is never lost. */
static void
test_bounded(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    static char                  value[4000];
    uint64_t                     most = 0;

    (void)state;
    test_disk_init(&disk);
    options       = memory_options(&disk);
    options.fsync = NEAR__FSYNC_NONE;
    journal       = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    put_now(journal, "pinned", "since ever");
    for (int i = 0; i < 1500; i++) {
        uint64_t sequence = put_now(journal, "k", value);

        near__journal_done(journal, &sequence, 1);
        most = state_of(journal).bytes > most ? state_of(journal).bytes : most;
        if (i % 100 == 99)
            test_disk_settle(&disk); /* what it remembers is not wanted here */
    }
    print_message("%llu bytes at most, %llu copied\n", (unsigned long long)most,
                  (unsigned long long)state_of(journal).rewritten);
    assert_true(most <= options.max_bytes);
    assert_true(test_disk_bytes(&disk) <= options.max_bytes);
    assert_true(state_of(journal).rewritten > 0);
    near__journal_close(journal, NULL);
    journal = opened(&options);
    assert_string_equal(replay(journal).text, "pinned=since ever");
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* Dead letters up to their bound, nothing free without copying, groups as large as may be pending with a record as large as may be: the files, all together, stay within the bound. */
static void
test_bounded_in_all(void **state)
{
    enum { ALIVE = 10, GROUP = 31, VALUE = 4000, LARGE = 130000 };
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    static char                  value[VALUE], large[LARGE];
    uint64_t                     alive[ALIVE + GROUP], dead = 0, most = 0;
    size_t                       n = 0;

    (void)state;
    test_disk_init(&disk);
    options       = memory_options(&disk);
    options.fsync = NEAR__FSYNC_NONE;
    journal       = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    memset(large, 'v', sizeof(large) - 1);
    while (near__journal_dead(journal,
                              &(struct near__journal_record){ NEAR__JOURNAL_PUT, near_key("cache"),
                                                              near_key("k"), near_key(value) },
                              1, NEAR_ERR_INVALID) == NEAR_OK)
        dead += VALUE;
    assert_in_range(dead, options.max_bytes / 10, options.max_bytes / 8);
    put_now(journal, "pinned", "since ever"); /* so that no segment is free by itself */
    for (int round = 0; round < 60; round++) {
        uint64_t last = 0;

        for (int i = 1; i < GROUP && try_put(journal, "k", value, &last) == NEAR_OK; i++)
            alive[n++] = last;
        if (try_put(journal, "k", large, &last) == NEAR_OK) /* else there is no room at the moment */
            near__journal_done(journal, &last, 1);
        assert_int_equal(near__journal_commit(journal, last, NEAR_NEVER), NEAR_OK);
        most = test_disk_bytes(&disk) > most ? test_disk_bytes(&disk) : most;
        if (n > ALIVE) {
            near__journal_done(journal, alive, n - ALIVE);
            memmove(alive, alive + (n - ALIVE), ALIVE * sizeof(*alive));
            n = ALIVE;
        }
        test_disk_settle(&disk);
    }
    print_message("%llu bytes at most\n", (unsigned long long)most);
    assert_in_range(most, options.max_bytes / 2, options.max_bytes);
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* A range that needs memory to be looked through, and gets none: its records must not come back as if they were not done. */
static void
test_done_without_memory(void **state)
{
    struct near__index index = { .count = 0 };

    (void)state;
    assert_true(near__index_add(&index, 5, 100, NULL, 0));
    allocations         = 0;
    allocation_fails_at = 1;
    assert_false(near__index_done_range(&index, 0, UINT32_MAX));
    allocation_fails_at = 0;
    assert_true(near__index_done_range(&index, 0, UINT32_MAX));
    assert_null(near__index_find(&index, 5));
    near__index_fini(&index);
}

/* A segment that is needed and cannot be read any more holds all that follow: then writes are refused, before the bound is passed; until it is
 * done with. */
static void
test_bounded_behind_damage(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    static char                  value[4000];
    uint64_t                     pinned, sequence;
    size_t                       size, refused = 0;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    pinned = put_now(journal, "pinned", "since ever");
    test_disk_file(&disk, "0000000000000001.seg", &size)[NEAR__SEGMENT_HEADER + 50] ^= 1;
    for (int i = 0; i < 1500; i++) {
        near_status status = try_put(journal, "k", value, &sequence);

        if (status == NEAR_OK)
            assert_int_equal(near__journal_commit(journal, sequence, NEAR_NEVER), NEAR_OK);
        else
            assert_int_equal(status, NEAR_ERR_BUSY);
        refused += status != NEAR_OK;
        near__journal_done(journal, &sequence, 1);
        if (i % 10 == 0)
            near__journal_tick(journal);
        if (i % 100 == 99)
            test_disk_settle(&disk); /* what it remembers is not wanted here */
        assert_true(test_disk_bytes(&disk) <= options.max_bytes);
    }
    assert_true(refused > 1000);
    near__journal_done(journal, &pinned, 1);
    near__journal_tick(journal);
    put_now(journal, "k", value);
    assert_true(state_of(journal).bytes < options.max_bytes / 2);
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

static void
test_full(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    static char                  value[20000], large[140 << 10];
    uint64_t                     sequences[100];
    size_t                       n = 0;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    memset(large, 'l', sizeof(large) - 1);
    while (try_put(journal, "k", value, &sequences[n]) == NEAR_OK) {
        assert_int_equal(near__journal_commit(journal, sequences[n], NEAR_NEVER), NEAR_OK);
        assert_true(++n < 100);
    }
    assert_int_equal(try_put(journal, "k", value, &sequences[n]), NEAR_ERR_BUSY);
    assert_true(n * sizeof(value) > options.max_bytes / 4);
    assert_true(state_of(journal).bytes <= options.max_bytes);
    near__journal_done(journal, sequences, 7);
    assert_int_equal(try_put(journal, "k", value, &sequences[0]), NEAR_OK);
    assert_int_equal(try_put(journal, "k", large, &sequences[0]), NEAR_ERR_TOO_LARGE);
    large[100 << 10] = '\0'; /* larger than a segment: gets one of its own */
    assert_int_equal(try_put(journal, "large", large, &sequences[0]), NEAR_OK);
    assert_int_equal(near__journal_commit(journal, sequences[0], NEAR_NEVER), NEAR_OK);
    near__journal_close(journal, NULL);
    journal = opened(&options);
    assert_int_equal(state_of(journal).recovered, n - 7 + 2);
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

static bool
see_a(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    bool *seen = ctx;

    (void)sequence;
    *seen = *seen || near__bytes_equal(record->key, near_key("a"));
    return true;
}

/* "a" has its newest acknowledged value after a crash behind each change from `first` on, or the one that replaced it. */
static void
check_crashes(struct test_disk *disk, const struct near__journal_options *options, size_t first)
{
    struct near__journal_options later = *options;
    struct near__journal        *journal;
    struct test_disk             image;
    uint64_t                     dice = 1;

    for (size_t changes = first; changes <= test_disk_changes(disk); changes++) {
        bool seen;

        test_disk_crash(&image, disk, changes, 0, &dice);
        later.disk = &image.disk;
        journal    = opened(&later);
        seen       = false;
        near__journal_replay(journal, near_key("cache"), ALL_KINDS, see_a, &seen);
        if (!seen)
            fail_msg("a crash behind change %zu of %zu: a is lost", changes, test_disk_changes(disk));
        near__journal_close(journal, NULL);
        test_disk_free(&image);
    }
}

/* A record was replaced by one that is in memory only, and is done therefore: its segment stays until both are on disk, however many segments
 * the group fills before. */
static void
test_replaced(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    static char                  value[9000];
    uint64_t                     first, fillers[3];
    size_t                       acknowledged;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    first = put_now(journal, "a", "old");
    for (int i = 0; i < 3; i++)
        fillers[i] = put_now(journal, "k", value);
    near__journal_done(journal, fillers, 3);
    near__journal_tick(journal);
    acknowledged = test_disk_changes(&disk);
    for (int i = 0; i < 8; i++)
        put(journal, "k", value);
    put(journal, "a", "new");
    near__journal_done(journal, &first, 1);
    near__journal_tick(journal);
    check_crashes(&disk, &options, acknowledged);
    for (int i = 0; i < 8; i++)
        put_now(journal, "k", value);
    assert_null(test_disk_file(&disk, "0000000000000001.seg", &acknowledged)); /* then it goes */
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* ---- everything at once */

/* Each fifth fsync fails: never two that follow each other, so no failure sticks. */
static struct {
    struct near__disk disk;
    atomic_uint       syncs;
    atomic_bool       refused, dead; /* has been seen */
    atomic_bool       over;
} crowd;

static int
flaky_sync(void *ctx, int fd)
{
    int result = near__disk_system.sync(ctx, fd);

    usleep(300);
    return atomic_fetch_add(&crowd.syncs, 1) % 5 == 4 ? -EIO : result;
}

enum { CROWD = 6, OWN = 512, CROWD_MS = 300 };

/* One who writes, and what of it the journal owes at the end. */
struct one {
    struct near__journal    *journal;
    enum near__journal_fsync fsync;
    uint64_t                 seed, owed[OWN];
    size_t                   n;
    unsigned                 outcomes[32], dead;
    bool                     wrong;
};

static int64_t
some_deadline(struct one *one)
{
    uint64_t n = test_random(&one->seed) % 8;

    return n < 4 ? NEAR_NEVER : near__now(&near__clock_system) + (int64_t)(n - 4) * 200 * 1000;
}

static near_status
ask(struct one *one, uint64_t sequence)
{
    if (one->fsync == NEAR__FSYNC_INTERVAL || test_random(&one->seed) % 2 == 0)
        return near__journal_sync(one->journal, sequence, some_deadline(one));
    return near__journal_commit(one->journal, sequence, some_deadline(one));
}

static void
pay(struct one *one)
{
    near__journal_done(one->journal, one->owed, one->n);
    one->n = 0;
}

/* A large one, so that the journal is full at times; then what is owed is done. */
static near_status
write_one(struct one *one)
{
    static const char           data[4000];
    struct near__journal_record record = put_of("crowd", "");
    uint64_t                    sequence;
    near_status                 status;

    record.data = (near_bytes){ data, sizeof(data) };
    status      = near__journal_write(one->journal, &record, &sequence);
    if (status == NEAR_ERR_BUSY || one->n == OWN) {
        atomic_store(&crowd.refused, true);
        pay(one);
        usleep(200);
    }
    if (status != NEAR_OK)
        return status;
    status = ask(one, sequence);
    if (status == NEAR_OK)
        one->owed[one->n++] = sequence;
    if (test_random(&one->seed) % 16 == 0 &&
        near__journal_dead(one->journal, &record, sequence, NEAR_ERR_INVALID) == NEAR_OK) {
        one->dead++;
        atomic_store(&crowd.dead, true);
    }
    if (status != NEAR_OK)
        near__journal_done(one->journal, &sequence, 1);
    return status;
}

static void *
write_in_crowd(void *ctx)
{
    struct one *one    = ctx;
    near_status status = NEAR_OK;

    while (status != NEAR_ERR_CLOSED) {
        status = write_one(one);
        one->outcomes[(unsigned)-status % NEAR_COUNT_OF(one->outcomes)]++;
        one->wrong =
            one->wrong || (status != NEAR_OK && status != NEAR_ERR_BUSY && status != NEAR_ERR_TIMEOUT &&
                           status != NEAR_ERR_UNAVAILABLE && status != NEAR_ERR_CLOSED);
    }
    near__journal_release(one->journal);
    return NULL;
}

static bool
pass_over(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    (void)ctx;
    (void)record;
    (void)sequence;
    return true;
}

static void *
replay_in_crowd(void *ctx)
{
    while (!atomic_load(&crowd.over)) {
        near__journal_replay(ctx, near_key("cache"), ALL_KINDS, pass_over, NULL);
        near__journal_tick(ctx);
        usleep(1000);
    }
    return NULL;
}

static void
join_in_time(pthread_t thread)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20 * test_slack();
    if (pthread_timedjoin_np(thread, NULL, &until) != 0)
        fail_msg("somebody sleeps for ever");
}

struct found {
    uint64_t *sequences;
    size_t    n;
};

static bool
find(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    struct found *found = ctx;

    (void)record;
    found->sequences[found->n++] = sequence;
    return true;
}

/* What was acknowledged and not done is there in the next life. */
static void
assert_nothing_lost(const struct one *ones, const struct near__journal_options *options)
{
    struct near__journal *journal = opened(options);
    struct found          found   = { calloc(state_of(journal).live + 1, sizeof(uint64_t)), 0 };

    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, find, &found), NEAR_OK);
    for (unsigned i = 0; i < CROWD; i++)
        for (size_t k = 0; k < ones[i].n; k++) {
            size_t at = 0;

            while (at < found.n && found.sequences[at] != ones[i].owed[k])
                at++;
            if (at == found.n)
                fail_msg("%llu was acknowledged, and is lost", (unsigned long long)ones[i].owed[k]);
        }
    free(found.sequences);
    near__journal_close(journal, NULL);
}

static void
say_what_became(const struct one *ones)
{
    unsigned sums[5] = { 0 };

    for (unsigned i = 0; i < CROWD; i++) {
        assert_false(ones[i].wrong);
        sums[0] += ones[i].outcomes[0];
        sums[1] += ones[i].outcomes[(unsigned)-NEAR_ERR_TIMEOUT % 32];
        sums[2] += ones[i].outcomes[(unsigned)-NEAR_ERR_UNAVAILABLE % 32];
        sums[3] += ones[i].outcomes[(unsigned)-NEAR_ERR_BUSY % 32];
        sums[4] += ones[i].dead;
    }
    print_message("%u committed, %u late, %u told of a failure, %u refused, %u dead letters\n", sums[0],
                  sums[1], sums[2], sums[3], sums[4]);
    assert_true(sums[0] > 0);
    assert_true(sums[3] > 0);
    assert_true(sums[4] > 0);
}

static void
crowd_with(enum near__journal_fsync fsync)
{
    struct near__journal_options options = real_options(fsync);
    struct one                   ones[CROWD];
    pthread_t                    threads[CROWD], reader;
    struct near__journal        *journal;

    crowd.disk      = near__disk_system;
    crowd.disk.sync = flaky_sync;
    atomic_store(&crowd.syncs, 0);
    atomic_store(&crowd.over, false);
    atomic_store(&crowd.refused, false);
    atomic_store(&crowd.dead, false);
    options.disk = &crowd.disk;
    journal      = opened(&options);
    for (unsigned i = 0; i < CROWD; i++) {
        ones[i] = (struct one){ .journal = journal, .fsync = fsync, .seed = i + 1 };
        near__journal_hold(journal);
        assert_int_equal(pthread_create(&threads[i], NULL, write_in_crowd, &ones[i]), 0);
    }
    assert_int_equal(pthread_create(&reader, NULL, replay_in_crowd, journal), 0);
    for (int ms = 0; ms < 10000 && (ms < CROWD_MS || !crowd.refused || !crowd.dead); ms++)
        usleep(1000);
    atomic_store(&crowd.over, true);
    join_in_time(reader);
    near__journal_close(journal, NULL);
    for (unsigned i = 0; i < CROWD; i++)
        join_in_time(threads[i]);
    say_what_became(ones);
    options.disk = NULL;
    assert_nothing_lost(ones, &options);
}

/* Short deadlines, fsyncs that fail, a journal that is full, dead letters, replays, and a close in the middle of it. */
static void
test_crowd(void **state)
{
    (void)state;
    crowd_with(NEAR__FSYNC_ALWAYS);
}

static void
test_crowd_with_interval(void **state)
{
    (void)state;
    crowd_with(NEAR__FSYNC_INTERVAL);
}

static void
test_crowd_without_fsync(void **state)
{
    (void)state;
    crowd_with(NEAR__FSYNC_NONE);
}

/* Who came too late for a group writes the next one: nobody else is there to do it. */
static void
test_next_in_turn(void **state)
{
    struct near__journal_options options = real_options(NEAR__FSYNC_ALWAYS);
    struct near__journal        *journal = open_slowly(NEAR__FSYNC_ALWAYS, 0);
    pthread_t                    first, second;

    (void)state;
    near__journal_close(journal, NULL);
    options.disk   = &slow.disk;
    options.manual = true;
    journal        = opened(&options);
    atomic_store(&slow.hold, 1);
    assert_int_equal(pthread_create(&first, NULL, commit_one, journal), 0);
    while (atomic_load(&slow.inside) == 0)
        usleep(200);
    assert_int_equal(pthread_create(&second, NULL, commit_one, journal), 0);
    usleep(20000); /* it is asleep by then, or the row says less */
    atomic_store(&slow.hold, 0);
    join_in_time(first);
    join_in_time(second);
    near__journal_close(journal, NULL);
}

/* ---- failures */

static void
test_failed_fsync(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    uint64_t                     sequence;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    put_now(journal, "a", "1");
    sequence     = put(journal, "b", "2");
    disk.trouble = TEST_FAIL_AND_DROP;
    disk.fail_at = disk.calls + 2; /* write, then sync */
    assert_int_equal(near__journal_commit(journal, sequence, NEAR_NEVER), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(disk.failed_call, TEST_SYNC);
    assert_int_equal(near__journal_commit(journal, sequence, NEAR_NEVER),
                     NEAR_OK); /* by now it is on disk elsewhere */
    put_now(journal, "c", "3");
    assert_int_equal(disk.touched, 0);
    assert_int_equal(state_of(journal).failures, 1);
    assert_int_equal(state_of(journal).failed, NEAR_OK);
    near__journal_close(journal, NULL);
    journal = opened(&options);
    assert_string_equal(replay(journal).text, "a=1 b=2 c=3");
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

static void
test_sticky_failure(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    uint64_t                     sequence;
    near_error                   error;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    put_now(journal, "a", "1");
    sequence        = put(journal, "b", "2");
    disk.fail_errno = ENOSPC;
    disk.fail_at    = disk.calls + 1;
    disk.sticky     = true;
    assert_int_equal(near__journal_commit(journal, sequence, NEAR_NEVER), NEAR_ERR_UNAVAILABLE);
    disk.fail_at = 0; /* the disk is well again; the journal is not */
    assert_int_equal(try_put(journal, "c", "3", &sequence), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(near__journal_tick(journal), NEAR_ERR_UNAVAILABLE);
    assert_int_equal(state_of(journal).failed, NEAR_ERR_UNAVAILABLE);
    assert_int_equal(near__journal_close(journal, &error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "No space left"));
    journal = opened(&options);
    assert_string_equal(replay(journal).text, "a=1");
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* Until a record was copied forward, or `most` groups: how many there were.  The call `fail_at` fails. */
static unsigned
write_until_short(struct test_disk *disk, unsigned long fail_at, unsigned most, unsigned long *calls_before)
{
    struct near__journal_options options = memory_options(disk);
    struct near__journal        *journal = opened(&options);
    static char                  value[16000];
    uint64_t                     sequence;
    unsigned                     n = 0;

    disk->trouble = TEST_FAIL_AND_DROP;
    disk->fail_at = fail_at;
    memset(value, 'v', sizeof(value) - 1);
    put_now(journal, "pinned", "since ever");
    for (; n < most && (fail_at != 0 || state_of(journal).rewritten == 0); n++) {
        *calls_before = disk->calls;
        if (try_put(journal, "k", value, &sequence) != NEAR_OK)
            fail_msg("call %lu failed, and the journal with it", fail_at);
        near__journal_commit(journal, sequence, NEAR_NEVER);
        near__journal_done(journal, &sequence, 1);
    }
    assert_int_equal(state_of(journal).failed, NEAR_OK);
    assert_int_equal(disk->touched, 0);
    near__journal_close(journal, NULL);
    return n;
}

/* Every call of a group that makes room fails once: another segment takes over. */
static void
test_failed_room(void **state)
{
    struct near__journal_options options;
    struct near__journal        *journal;
    struct test_disk             disk;
    unsigned long                before = 0, end, ignored, failures = 0;
    unsigned                     groups;

    (void)state;
    test_disk_init(&disk);
    groups = write_until_short(&disk, 0, 1000, &before);
    end    = disk.calls - 6; /* the close is another matter */
    test_disk_free(&disk);
    for (unsigned long at = before + 1; at <= end; at++) {
        test_disk_init(&disk);
        write_until_short(&disk, at, groups + 3, &ignored);
        failures += disk.failed; /* a close never does */
        disk.fail_at = 0;
        options      = memory_options(&disk);
        journal      = opened(&options);
        assert_string_equal(replay(journal).text, "pinned=since ever");
        near__journal_close(journal, NULL);
        test_disk_free(&disk);
    }
    assert_true(failures >= 6);
}

/* A life with a bit of everything; what it was told is on disk counts, whatever fails. */
struct trial {
    char kept[20];    /* keys whose commit returned NEAR_OK */
    char written[20]; /* keys that were given to the journal */
    char done[20];
};

static void
trial_put(struct trial *trial, struct near__journal *journal, char key, const char *data)
{
    char     name[2] = { key, '\0' };
    uint64_t sequence;

    strcat(trial->written, name);
    if (try_put(journal, name, data, &sequence) != NEAR_OK ||
        near__journal_commit(journal, sequence, NEAR_NEVER) != NEAR_OK)
        return;
    strcat(trial->kept, name);
}

static void
live_a_bit(struct trial *trial, const struct near__journal_options *options)
{
    static char                 value[9000];
    struct near__journal_record poison = put_of("p", "poison");
    struct near__journal       *journal;
    struct told                 told = { .text = "" };
    near_error                  error;

    memset(value, 'v', sizeof(value) - 1);
    if (near__journal_open(&journal, options, &error) != NEAR_OK)
        return;
    trial_put(trial, journal, 'a', "1");
    for (char key = 'b'; key <= 'h'; key++) /* more than a segment */
        trial_put(trial, journal, key, value);
    near__journal_dead(journal, &poison, 1, NEAR_ERR_INVALID);
    near__journal_close(journal, &error);
    if (near__journal_open(&journal, options, &error) != NEAR_OK)
        return;
    if (near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, &told) == NEAR_OK && told.n > 0) {
        near__journal_done(journal, told.sequences, 1);
        strcat(trial->done, "a");
    }
    trial_put(trial, journal, 'i', value);
    near__journal_tick(journal);
    trial_put(trial, journal, 'j', "end");
    near__journal_close(journal, &error);
}

static bool
tell_keys(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    char *keys = ctx;

    (void)sequence;
    keys[strlen(keys) + 1] = 0; /* room for 39 */
    keys[strlen(keys)]     = *(const char *)record->key.data;
    return true;
}

static void
check_trial(const struct trial *trial, struct test_disk *disk, const char *what)
{
    struct near__journal_options options = memory_options(disk);
    struct near__journal        *journal;
    char                         keys[40] = "";
    near_error                   error;

    if (near__journal_open(&journal, &options, &error) != NEAR_OK)
        fail_msg("%s: %s", what, error.text);
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell_keys, keys), NEAR_OK);
    for (const char *key = trial->kept; *key != '\0'; key++)
        if (strchr(keys, *key) == NULL && strchr(trial->done, *key) == NULL)
            fail_msg("%s: '%c' was acknowledged (%s) and is not there: %s", what, *key, trial->kept, keys);
    for (const char *key = keys; *key != '\0'; key++)
        if (strchr(trial->written, *key) == NULL)
            fail_msg("%s: '%c' was never written", what, *key);
    near__journal_close(journal, NULL);
}

/* Fail the n-th call, for all n: what was acknowledged is there when the machine goes on, and when it dies that moment. */
static size_t
fail_each_call(enum test_trouble_kind kind, int number, bool sticky)
{
    size_t        failures = 0;
    unsigned long step     = test_scale(100) < 100 ? 7 : 1;

    for (unsigned long n = 1;; n += step) {
        struct trial                 trial = { .kept = "" };
        struct near__journal_options options;
        struct test_disk             disk, image;
        uint64_t                     dice = n;
        char                         what[100];
        bool                         beyond;

        test_disk_init(&disk);
        disk.trouble    = kind;
        disk.fail_errno = number;
        disk.fail_at    = n;
        disk.sticky     = sticky;
        options         = memory_options(&disk);
        live_a_bit(&trial, &options);
        beyond = disk.calls < n;
        failures += disk.failed > 0;
        snprintf(what, sizeof(what), "call %lu (kind %d), %s, %s", n, (int)disk.failed_call, strerror(number),
                 sticky ? "sticky" : "once");
        if (disk.touched > 0)
            fail_msg("%s: a file was touched after it had failed", what);
        disk.fail_at = 0;
        test_disk_crash(&image, &disk, test_disk_changes(&disk), 0, &dice);
        if (trial.kept[0] != '\0' || test_disk_name(&image, 0) != NULL)
            check_trial(&trial, &image, what);
        strcat(what, ", alive");
        check_trial(&trial, &disk, what);
        test_disk_free(&image);
        test_disk_free(&disk);
        if (beyond)
            return failures;
    }
}

static void
test_each_call_fails(void **state)
{
    size_t failures = 0;

    (void)state;
    for (int sticky = 0; sticky < 2; sticky++) {
        failures += fail_each_call(TEST_FAIL, EIO, sticky);
        failures += fail_each_call(TEST_FAIL, ENOSPC, sticky);
        failures += fail_each_call(TEST_FAIL, EINTR, sticky);
        failures += fail_each_call(TEST_FAIL_AND_DROP, EIO, sticky);
        fail_each_call(TEST_SHORT, EIO, sticky);
    }
    print_message("%zu failures survived\n", failures);
}

static void
test_each_allocation_fails(void **state)
{
    unsigned long n;

    (void)state;
    for (n = 1;; n++) {
        struct trial                 trial = { .kept = "" };
        struct near__journal_options options;
        struct test_disk             disk;
        near_error                   error;
        struct near__journal        *journal;
        char                         keys[40] = "";
        bool                         beyond;

        test_disk_init(&disk);
        options = memory_options(&disk);
        journal = opened(&options);
        trial_put(&trial, journal, 'a', "1");
        trial_put(&trial, journal, 'b', "2");
        near__journal_close(journal, NULL);
        allocations         = 0;
        allocation_fails_at = n;
        if (near__journal_open(&journal, &options, &error) == NEAR_OK) {
            uint64_t sequence;

            near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell_keys, keys);
            if (try_put(journal, "c", "3", &sequence) == NEAR_OK) {
                near__journal_done(journal, &sequence, 1);
                near__journal_commit(journal, sequence, NEAR_NEVER);
            }
            allocation_fails_at = 0; /* it can be closed with none */
            near__journal_close(journal, NULL);
        } else {
            assert_int_equal(error.code, NEAR_ERR_NOMEM);
        }
        beyond              = allocations < n;
        allocation_fails_at = 0;
        strcat(trial.written, "c");
        check_trial(&trial, &disk, "memory");
        test_disk_free(&disk);
        if (beyond)
            break;
    }
    print_message("%lu allocations\n", n);
    assert_true(n > 8);
}

/* ---- damage */

static void
write_three_segments(struct test_disk *disk)
{
    struct near__journal_options options = memory_options(disk);
    struct near__journal        *journal = opened(&options);
    static char                  value[9000];
    char                         key[2] = "a";

    memset(value, 'v', sizeof(value) - 1);
    for (; key[0] <= 'i'; key[0]++)
        put_now(journal, key, value);
    near__journal_close(journal, NULL);
}

static char *
keys_of(const struct near__journal_options *options, char keys[40])
{
    struct near__journal *journal = opened(options);

    keys[0] = '\0';
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell_keys, keys), NEAR_OK);
    near__journal_close(journal, NULL);
    return keys;
}

/* 64 bytes each, in one segment. */
static void
write_three_puts(const struct near__journal_options *options)
{
    struct near__journal *journal = opened(options);

    put_now(journal, "a", "some data, 18 byte");
    put_now(journal, "b", "some data, 18 byte");
    put_now(journal, "c", "some data, 18 byte");
    near__journal_close(journal, NULL);
}

static void
test_damage(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    near_error                   error;
    size_t                       size;
    char                         keys[40];

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    write_three_segments(&disk);
    test_disk_file(&disk, "0000000000000002.seg", &size)[512 + 9048 + 5000] ^=
        1; /* the second of three in it */
    assert_int_equal(open_status(&options, &error), NEAR_ERR_PROTOCOL);
    assert_non_null(strstr(error.text, "0000000000000002.seg: damaged at offset 9560"));
    assert_int_equal(open_status(&options, &error), NEAR_ERR_PROTOCOL); /* looking has changed nothing */
    options.salvage = true;
    assert_string_equal(keys_of(&options, keys), "abcdfghi");
    options.salvage = false;
    assert_string_equal(keys_of(&options, keys), "abcdfghi");
    assert_non_null(test_disk_file(&disk, "0000000000000002.bad", &size));
    test_disk_free(&disk);
}

/* The same in the last segment, anywhere: of three records what is whole is saved, and is there in every life that follows. */
static void
test_damage_at_the_end(void **state)
{
    struct near__journal_options options;
    char                         keys[40], again[40];

    (void)state;
    for (size_t at = NEAR__SEGMENT_HEADER; at < NEAR__SEGMENT_HEADER + 3 * 64; at++)
        for (int flip = 0; flip < 3; flip++) {
            struct test_disk disk;
            size_t           size, which = (at - NEAR__SEGMENT_HEADER) / 64;
            uint8_t         *bytes;

            test_disk_init(&disk);
            options = memory_options(&disk);
            write_three_puts(&options);
            bytes = test_disk_file(&disk, "0000000000000001.seg", &size);
            bytes[at] ^= (uint8_t)(flip == 0 ? 1 : flip == 1 ? 0x80 : bytes[at] != 0 ? bytes[at] : 255);
            options.salvage = true;
            keys_of(&options, keys);
            assert_string_equal(keys, which == 0 ? "bc" : which == 1 ? "ac" : "ab");
            options.salvage = false;
            assert_string_equal(keys_of(&options, again), keys);
            test_disk_free(&disk);
        }
}

static void
test_missing_segment(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    near_error                   error;
    char                         keys[40];

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    write_three_segments(&disk);
    assert_int_equal(
        disk.disk.unlink(&disk, disk.disk.open_directory(&disk, "journal", false), "0000000000000002.seg"),
        0);
    assert_int_equal(open_status(&options, &error), NEAR_ERR_PROTOCOL);
    assert_non_null(strstr(error.text, "0000000000000002.seg: missing"));
    options.salvage = true;
    assert_string_equal(keys_of(&options, keys), "abcghi");
    test_disk_free(&disk);
}

static void
test_damaged_header(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    near_error                   error;
    size_t                       size;
    char                         keys[40];

    (void)state;
    for (int segment = 1; segment <= 3; segment++) {
        char name[40];

        test_disk_init(&disk);
        options = memory_options(&disk);
        write_three_segments(&disk);
        near__segment_name(name, (uint64_t)segment, "seg");
        memset(test_disk_file(&disk, name, &size), 0, 512);
        assert_int_equal(open_status(&options, &error), NEAR_ERR_PROTOCOL);
        assert_non_null(strstr(error.text, name));
        options.salvage = true;
        assert_string_equal(keys_of(&options, keys), "abcdefghi");
        options.salvage = false;
        assert_string_equal(keys_of(&options, keys), "abcdefghi");
        test_disk_free(&disk);
    }
}

/* ---- dead letters */

struct dead {
    char        text[200];
    near_status status;
};

static near_status
see_dead(void *ctx, const struct near__record_view *view)
{
    struct dead *dead = ctx;

    snprintf(dead->text, sizeof(dead->text), "%.*s=%.*s", (int)view->record.key.size,
             (const char *)view->record.key.data, (int)view->record.data.size,
             (const char *)view->record.data.data);
    dead->status = view->status;
    return NEAR_OK;
}

static void
test_dead_letters(void **state)
{
    struct test_disk                disk;
    struct near__journal_options    options;
    struct near__journal           *journal;
    struct near__journal_record     record  = put_of("poison", "cup");
    struct dead                     dead    = { .text = "" };
    const struct near__scan_visitor visitor = { NULL, NULL, see_dead, NULL, NULL, &dead };
    struct near__scan_report        report;
    struct near__journal_dir        dir;
    near_error                      error;
    static char                     value[20000];
    near_status                     status = NEAR_OK;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    assert_int_equal(near__journal_dead(journal, &record, 7, NEAR_ERR_CONFLICT), NEAR_OK);
    near__journal_close(journal, NULL);
    journal = opened(&options);
    assert_int_equal(state_of(journal).dead_letters, 1);
    assert_int_equal(near__journal_dir_open(&dir, &disk.disk, "journal", false, &error), NEAR_OK);
    assert_int_equal(near__journal_scan(&dir, false, &visitor, &report, &error), NEAR_OK);
    assert_int_equal(report.dead_letters, 1);
    assert_string_equal(dead.text, "poison=cup");
    assert_int_equal(dead.status, NEAR_ERR_CONFLICT);
    disk.disk.close(&disk, dir.fd);
    memset(value, 'v', sizeof(value) - 1);
    record = put_of("poison", value);
    for (int i = 0; i < 20 && status == NEAR_OK; i++)
        status = near__journal_dead(journal, &record, 8, NEAR_ERR_INVALID);
    assert_int_equal(status, NEAR_ERR_BUSY); /* they are bounded, too */
    put_now(journal, "a", "1");
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

static size_t
dead_letters_in(const struct near__journal_options *options)
{
    struct near__journal *journal = opened(options);
    size_t                n       = state_of(journal).dead_letters;

    near__journal_close(journal, NULL);
    return n;
}

/* Damaged dead letters are damage like any other: named, refused, and left behind by salvaging, with all else where it was. */
static void
test_damaged_dead_letters(void **state)
{
    struct near__journal_record record = put_of("poison", "a cup");

    (void)state;
    for (size_t at = 8; at < NEAR__SEGMENT_HEADER + 2 * 56; at += at < NEAR__SEGMENT_HEADER ? 100 : 3) {
        struct test_disk             disk;
        struct near__journal_options options;
        struct near__journal        *journal;
        near_error                   error;
        size_t                       size, left = at < NEAR__SEGMENT_HEADER ? 3 : 2;
        char                         keys[40];

        test_disk_init(&disk);
        options = memory_options(&disk);
        journal = opened(&options);
        put_now(journal, "a", "1");
        for (uint64_t i = 0; i < 3; i++)
            assert_int_equal(near__journal_dead(journal, &record, i, NEAR_ERR_CONFLICT), NEAR_OK);
        near__journal_close(journal, NULL);
        test_disk_file(&disk, "0000000000000002.dead", &size)[at] ^= 1;
        assert_int_equal(open_status(&options, &error), NEAR_ERR_PROTOCOL);
        assert_non_null(strstr(error.text, "0000000000000002.dead: "));
        options.salvage = true;
        assert_string_equal(keys_of(&options, keys), "a");
        options.salvage = false;
        assert_string_equal(keys_of(&options, keys), "a");
        assert_int_equal(dead_letters_in(&options), left);
        assert_non_null(test_disk_file(&disk, "0000000000000002.bad", &size));
        assert_null(test_disk_file(&disk, "0000000000000001.bad", &size)); /* the log was whole */
        test_disk_free(&disk);
    }
}

/* ---- odd disks */

/* What the disk says of its `odd_look`-th file or directory, from 1 on. */
static struct {
    struct test_disk disk;
    int (*status)(void *ctx, int fd, struct near__disk_status *status);
    unsigned looks, odd_look;
    int      result;
    uint64_t shrunk;
    bool     theirs, irregular;
} odd;

static int
odd_status(void *ctx, int fd, struct near__disk_status *status)
{
    int result = odd.status(ctx, fd, status);

    if (++odd.looks != odd.odd_look)
        return result;
    if (odd.shrunk > 0)
        status->size = odd.shrunk;
    status->ours      = status->ours && !odd.theirs;
    status->regular   = status->regular && !odd.irregular;
    status->directory = status->directory && !odd.irregular;
    return odd.result;
}

static int
odd_lock(void *ctx, int fd)
{
    (void)ctx, (void)fd;
    return odd.result;
}

static struct near__journal_options
odd_options(void)
{
    memset(&odd, 0, sizeof(odd));
    test_disk_init(&odd.disk);
    odd.status           = odd.disk.disk.status;
    odd.disk.disk.status = odd_status;
    return memory_options(&odd.disk);
}

/* Directory, lock and segment, each of somebody else, of another kind, or not to be looked at. */
static void
test_what_the_disk_says_of_files(void **state)
{
    struct near__journal_options options = odd_options();
    near_error                   error;
    unsigned                     looks;

    (void)state;
    write_three_puts(&options);
    odd.looks = 0;
    assert_int_equal(open_status(&options, &error), NEAR_OK);
    looks = odd.looks;
    assert_true(looks >= 3); /* the directory, the lock, the segment */
    for (odd.odd_look = 1; odd.odd_look <= 3; odd.odd_look++) {
        odd.looks  = 0;
        odd.result = -EIO;
        assert_int_equal(open_status(&options, &error), NEAR_ERR_UNAVAILABLE);
        odd.looks = odd.result = 0;
        odd.theirs             = true;
        assert_int_equal(open_status(&options, &error), NEAR_ERR_DENIED);
        odd.looks     = 0;
        odd.theirs    = false;
        odd.irregular = true;
        assert_int_equal(open_status(&options, &error), NEAR_ERR_DENIED);
        odd.irregular = false;
    }
    odd.odd_look = 0;
    assert_int_equal(open_status(&options, &error), NEAR_OK); /* and nothing was lost by it */
    test_disk_free(&odd.disk);
}

static void
test_locks_that_fail(void **state)
{
    struct near__journal_options options = odd_options();
    near_error                   error;

    (void)state;
    odd.disk.disk.lock = odd_lock;
    odd.result         = -EIO;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "cannot lock it"));
    odd.result = -EWOULDBLOCK; /* and who has it has not yet signed */
    assert_int_equal(open_status(&options, &error), NEAR_ERR_BUSY);
    assert_non_null(strstr(error.text, "process 0"));
    test_disk_free(&odd.disk);
}

/* A file that somebody cuts between two looks: no memory is taken for what it has not. */
static void
test_a_file_that_shrinks(void **state)
{
    struct near__journal_options options = odd_options();
    near_error                   error;

    (void)state;
    write_three_puts(&options);
    odd.shrunk   = 600;
    odd.odd_look = 4; /* directory, lock, header, records */
    odd.looks    = 0;
    assert_true(open_status(&options, &error) != NEAR_OK);
    odd.odd_look = 3;
    odd.looks    = 0;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_PROTOCOL); /* less than its header says */
    odd.shrunk = 100;
    odd.looks  = 0;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_PROTOCOL);
    assert_non_null(strstr(error.text, "cut short"));
    odd.odd_look = 0;
    assert_int_equal(open_status(&options, &error), NEAR_OK);
    test_disk_free(&odd.disk);
}

/* Change the header of a segment and make its checksum right again. */
static void
spoil_header(struct test_disk *disk, const char *name, void (*spoil)(struct near__segment_header *header))
{
    struct near__segment_header header;
    size_t                      size;
    uint8_t                    *bytes = test_disk_file(disk, name, &size);

    assert_true(near__segment_decode(&header, bytes, size));
    spoil(&header);
    near__segment_encode(bytes, &header);
}

static void
another_number(struct near__segment_header *header)
{
    header->segment += 16;
}

static void
another_use(struct near__segment_header *header)
{
    header->use ^= NEAR__SEGMENT_DEAD;
}

static void
another_size(struct near__segment_header *header)
{
    header->size *= 2;
}

static void
another_origin(struct near__segment_header *header)
{
    header->origin ^= 1;
}

static void
an_early_end(struct near__segment_header *header)
{
    header->predecessor_end = NEAR__SEGMENT_HEADER - 8;
}

static void
a_late_end(struct near__segment_header *header)
{
    header->predecessor_end = NEAR__SEGMENT_MAX;
}

static void
another_end(struct near__segment_header *header)
{
    header->predecessor_checksum ^= 1;
}

static void
no_predecessor(struct near__segment_header *header)
{
    header->predecessor = 0;
}

/* Headers that are whole and lie: refused, and what is behind them is saved.  An origin is what records verify by: what stands behind another one
 * is nobody's. */
static void
test_headers_that_lie(void **state)
{
    static const struct {
        const char *name;
        void (*spoil)(struct near__segment_header *header);
        const char *keys;
    } rows[] = {
        { "0000000000000002.seg", another_number, "abcdefghi" },
        { "0000000000000002.seg", another_use, "abcdefghi" },
        { "0000000000000002.seg", another_size, "abcdefghi" },
        { "0000000000000002.seg", another_origin, "abcdefghi" },
        { "0000000000000001.seg", another_size, "abcdefghi" },
        { "0000000000000002.seg", an_early_end, "abcdefghi" },
        { "0000000000000002.seg", a_late_end, "abcdefghi" },
        { "0000000000000002.seg", another_end, "abcdefghi" },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        struct test_disk             disk;
        struct near__journal_options options;
        near_error                   error;
        char                         keys[40];

        test_disk_init(&disk);
        options = memory_options(&disk);
        write_three_segments(&disk);
        spoil_header(&disk, rows[i].name, rows[i].spoil);
        if (open_status(&options, &error) != NEAR_ERR_PROTOCOL)
            fail_msg("row %zu", i);
        options.salvage = true;
        assert_string_equal(keys_of(&options, keys), rows[i].keys);
        options.salvage = false;
        assert_string_equal(keys_of(&options, keys), rows[i].keys);
        test_disk_free(&disk);
    }
}

/* The chain says what belongs to the log: what it does not lead to is free, for salvaging it counts. */
static void
test_a_chain_that_ends_early(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    char                         keys[40];

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    write_three_segments(&disk);
    spoil_header(&disk, "0000000000000003.seg", no_predecessor);
    options.salvage = true;
    assert_string_equal(keys_of(&options, keys), "abcdefghi");
    test_disk_free(&disk);
}

static void
test_dead_letters_that_lie(void **state)
{
    static void (*const spoil[])(struct near__segment_header *) = { another_number, another_use };
    struct near__journal_record record                          = put_of("poison", "a cup");

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(spoil); i++) {
        struct test_disk             disk;
        struct near__journal_options options;
        struct near__journal        *journal;
        near_error                   error;
        char                         keys[40];

        test_disk_init(&disk);
        options = memory_options(&disk);
        journal = opened(&options);
        put_now(journal, "a", "1");
        assert_int_equal(near__journal_dead(journal, &record, 1, NEAR_ERR_CONFLICT), NEAR_OK);
        near__journal_close(journal, NULL);
        spoil_header(&disk, "0000000000000002.dead", spoil[i]);
        assert_int_equal(open_status(&options, &error), NEAR_ERR_PROTOCOL);
        options.salvage = true;
        assert_string_equal(keys_of(&options, keys), "a");
        assert_int_equal(dead_letters_in(&options), 1);
        test_disk_free(&disk);
    }
}

/* ---- the system's disk */

static int
stop_at_once(void *ctx, const char *name)
{
    (void)name;
    ++*(int *)ctx;
    return -ENOMEM;
}

static int
count_names(void *ctx, const char *name)
{
    (void)name;
    ++*(int *)ctx;
    return 0;
}

static void
test_system_disk_says_errno(void **state)
{
    const struct near__disk *disk = &near__disk_system;
    struct near__disk_status status;
    char                     byte = 'x', path[4096];
    int                      n    = 0, directory, fd;
    size_t                   used;

    (void)state;
    assert_int_equal(disk->status(NULL, -1, &status), -EBADF);
    assert_int_equal(disk->read(NULL, -1, &byte, 1, 0), -EBADF);
    assert_int_equal(disk->write(NULL, -1, &byte, 1, 0), -EBADF);
    assert_int_equal(disk->list(NULL, -1, count_names, &n), -EBADF);
    directory = disk->open_directory(NULL, place, false);
    assert_true(directory >= 0);
    assert_int_equal(disk->list(NULL, directory, stop_at_once, &n), -ENOMEM); /* what the visitor says */
    assert_int_equal(n, 1);
    fd = disk->open(NULL, directory, "file", NEAR__DISK_NEW);
    assert_true(fd >= 0);
    assert_int_equal(disk->open(NULL, directory, "file", NEAR__DISK_NEW), -EEXIST);
    assert_int_equal(disk->allocate(NULL, fd, 0), -EOPNOTSUPP); /* the caller then tries resize() */
    assert_int_equal(near__disk_write_all(disk, fd, "abc", 3, 0), 0);
    assert_int_equal(near__disk_read_all(disk, fd, path, 4, 0), -EIO); /* there are three */
    assert_int_equal(near__disk_read_all(disk, fd, path, 3, 0), 0);
    disk->close(NULL, fd);
    disk->close(NULL, directory);

    /* a new directory whose parent's name would be too long for a call, although its own is not */
    used = (size_t)snprintf(path, sizeof(path), "%s", place);
    while (used < 4096 - 3)
        used += (size_t)snprintf(path + used, sizeof(path) - used, used % 2 == 0 ? "//" : "/");
    snprintf(path + used, sizeof(path) - used, "n");
    assert_int_equal(disk->open_directory(NULL, path, true), -ENAMETOOLONG);
}

static ssize_t
write_nothing(void *ctx, int fd, const void *buffer, size_t size, uint64_t at)
{
    (void)ctx, (void)fd, (void)buffer, (void)size, (void)at;
    return 0;
}

static ssize_t
never_gets_on(void *ctx, int fd, void *buffer, size_t size, uint64_t at)
{
    (void)ctx, (void)fd, (void)buffer, (void)size, (void)at;
    return -EINTR;
}

/* A file system that takes nothing and says so politely, and one that is interrupted for ever: errors, and no endless loop. */
static void
test_a_disk_that_does_not_get_on(void **state)
{
    struct near__disk disk = { .write = write_nothing, .read = never_gets_on };
    char              byte;

    (void)state;
    assert_int_equal(near__disk_write_all(&disk, 0, "a", 1, 0), -EIO);
    assert_int_equal(near__disk_read_all(&disk, 0, &byte, 1, 0), -EINTR);
}

/* ---- the index */

enum { NUMBERS = 4096 };

static bool
says_live(struct near__index *index, const bool *live, uint64_t spread)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < NUMBERS; i++) {
        n += live[i];
        if ((near__index_find(index, i * spread) != NULL) != live[i])
            return false;
    }
    return index->live == n;
}

/* What takes the form of ranges, and what of it is nonsense: against an array. */
static void
done_by_ranges(struct near__index *index, bool *live, uint64_t spread, uint64_t *dice)
{
    uint64_t first = test_random(dice) % NUMBERS, n = test_random(dice) % 300;

    if (test_random(dice) % 8 == 0)
        n = NUMBERS; /* more pages than there are */
    assert_true(near__index_done_range(index, first * spread, (uint32_t)(n * spread)));
    for (uint64_t i = first; i < first + n && i < NUMBERS; i++)
        live[i] = false;
    assert_true(near__index_done_range(index, first * spread, 0));
    assert_true(near__index_done_range(index, UINT64_MAX - 5, 100)); /* beyond the last number */
}

/* Pages are many, far apart and come and go, so that they share the slots of the table. */
static void
test_index_agrees_with_an_array(void **state)
{
    static const uint64_t spreads[] = { 1, 7, 64, 640 };
    static bool           live[NUMBERS];
    static uint8_t        ranges[NUMBERS * NEAR__DONE_RANGE];
    uint64_t              dice = 5;

    (void)state;
    for (size_t s = 0; s < NEAR_COUNT_OF(spreads); s++) {
        struct near__index   index   = { .count = 0 };
        struct near__segment segment = { .id = 1 };

        memset(live, 0, sizeof(live));
        for (size_t round = 0; round < 40; round++) {
            size_t marked = 0, size;

            for (size_t i = 0; i < 300; i++) {
                uint64_t number = test_random(&dice) % NUMBERS;

                assert_true(near__index_add(&index, number * spreads[s], 8, i % 2 == 0 ? &segment : NULL, 0));
                live[number] = true;
            }
            for (size_t i = 0; i < 250; i++) {
                uint64_t number = test_random(&dice) % NUMBERS;

                marked += live[number];
                near__index_done(&index, number * spreads[s], true);
                near__index_place(&index, number * spreads[s], &segment, 0);
                live[number] = false;
            }
            done_by_ranges(&index, live, spreads[s], &dice);
            if (!says_live(&index, live, spreads[s]))
                fail_msg("spread %u, round %zu", (unsigned)spreads[s], round);
            assert_true(near__index_done_size(&index) <= sizeof(ranges));
            size = near__index_take_done(&index, ranges);
            assert_int_equal(size % NEAR__DONE_RANGE, 0);
            for (size_t at = 0; at < size; at += NEAR__DONE_RANGE)
                marked -= near__le32_get(ranges + at + 8);
            assert_int_equal(marked, 0);
        }
        near__index_done_range(&index, 0, UINT32_MAX);
        assert_int_equal(index.live, 0);
        assert_int_equal(segment.live, 0);
        assert_int_equal(segment.live_bytes, 0);
        near__index_fini(&index);
    }
}

/* Nothing of a range that needs memory to be done is lost: it says so, and is done the next time. */
static void
test_a_range_without_memory(void **state)
{
    struct near__index index = { .count = 0 };

    (void)state;
    for (uint64_t i = 0; i < 4; i++)
        assert_true(near__index_add(&index, i * 1000, 8, NULL, 0));
    allocations         = 0;
    allocation_fails_at = 1;
    assert_false(near__index_done_range(&index, 0, UINT32_MAX));
    allocation_fails_at = 0;
    assert_int_equal(index.live, 4);
    assert_true(near__index_done_range(&index, 0, UINT32_MAX));
    assert_int_equal(index.live, 0);
    allocations         = 0;
    allocation_fails_at = 1; /* of none there is nothing to allocate */
    assert_true(near__index_done_range(&index, 0, UINT32_MAX));
    allocation_fails_at = 0;
    near__index_fini(&index);
}

/* ---- what opening and writing are refused */

bool        __real_near__random(void *out, size_t size);
bool        __wrap_near__random(void *out, size_t size);
near_status __real_near__thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx);
near_status __wrap_near__thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx);

static bool no_random, no_thread;

bool
__wrap_near__random(void *out, size_t size)
{
    return !no_random && __real_near__random(out, size);
}

near_status
__wrap_near__thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx)
{
    return no_thread ? NEAR_ERR_UNAVAILABLE : __real_near__thread_start(thread, name, run, ctx);
}

static void
test_what_opening_needs(void **state)
{
    struct near__journal_options options = real_options(NEAR__FSYNC_ALWAYS);
    char                         path[200];
    struct stat                  file;
    near_error                   error;

    (void)state;
    no_random = true;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "no random bytes"));
    no_random = false;
    no_thread = true;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "no thread"));
    no_thread         = false;
    options.max_bytes = 0;                                    /* the default */
    assert_int_equal(open_status(&options, &error), NEAR_OK); /* and the lock was let go each time */
    snprintf(path, sizeof(path), "%s/large", place);
    options.directory = path;
    options.max_bytes =
        UINT64_C(1) << 30; /* a segment is read into memory in one piece: so much and no more */
    assert_int_equal(open_status(&options, &error), NEAR_OK);
    strcat(path, "/0000000000000001.seg");
    assert_int_equal(stat(path, &file), 0);
    assert_int_equal(file.st_size, 16 << 20);
}

static void
test_records_that_are_refused(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    struct near__journal_record  record = put_of("key", "data");
    static char                  huge[1 << 18];
    uint64_t                     sequence;
    int                          status;
    pid_t                        child;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    record  = (struct near__journal_record){ .kind = NEAR__JOURNAL_END }; /* the journal's own */
    assert_int_equal(near__journal_write(journal, &record, &sequence), NEAR_ERR_INVALID);
    assert_int_equal(near__journal_dead(journal, &record, 1, NEAR_ERR_INVALID), NEAR_ERR_INVALID);
    record            = put_of("key", "");
    record.cache.size = 0;
    assert_int_equal(near__journal_write(journal, &record, &sequence), NEAR_ERR_TOO_LARGE);
    assert_int_equal(near__journal_dead(journal, &record, 1, NEAR_ERR_INVALID), NEAR_ERR_INVALID);
    record      = put_of("key", "");
    record.data = (near_bytes){ huge, sizeof(huge) }; /* of a journal of 1 MiB */
    assert_int_equal(near__journal_write(journal, &record, &sequence), NEAR_ERR_TOO_LARGE);
    record              = put_of("key", "data");
    allocations         = 0;
    allocation_fails_at = 1;
    assert_int_equal(near__journal_dead(journal, &record, 1, NEAR_ERR_INVALID), NEAR_ERR_NOMEM);
    assert_int_equal(near__journal_write(journal, &record, &sequence), NEAR_ERR_NOMEM);
    allocations         = 0;
    allocation_fails_at = 2; /* there is room for its bytes, and none to know of it by */
    assert_int_equal(near__journal_write(journal, &record, &sequence), NEAR_ERR_NOMEM);
    allocation_fails_at = 0;
    assert_int_equal(state_of(journal).dead_letters, 0);
    assert_int_equal(state_of(journal).live, 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        near__journal_hold(journal);
        near__journal_release(journal); /* it stays as it is */
        _exit(near__journal_dead(journal, &record, 1, NEAR_ERR_INVALID) == NEAR_ERR_FORKED ? 7 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    near__journal_release(NULL);
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* Several at once, closed in any order; a child leaves all of them. */
static void
test_two_at_once(void **state)
{
    struct test_disk             disks[3];
    struct near__journal_options options[3];
    struct near__journal        *journals[3];
    int                          status;
    pid_t                        child;

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        test_disk_init(&disks[i]);
        options[i]  = memory_options(&disks[i]);
        journals[i] = opened(&options[i]);
        put_now(journals[i], "a", "1");
    }
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        bool     left = true;
        uint64_t sequence;

        for (size_t i = 0; i < 3; i++)
            left &= try_put(journals[i], "b", "2", &sequence) == NEAR_ERR_FORKED;
        _exit(left ? 7 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    near__journal_close(journals[0], NULL);
    near__journal_close(journals[2], NULL);
    near__journal_close(journals[1], NULL);
    for (size_t i = 0; i < 3; i++) {
        char keys[40];

        assert_string_equal(keys_of(&options[i], keys), "a");
        test_disk_free(&disks[i]);
    }
}

static int
cannot_allocate(void *ctx, int fd, uint64_t size)
{
    (void)ctx, (void)fd, (void)size;
    return -EOPNOTSUPP;
}

/* A file system without fallocate(): files are given their size, and nothing else changes. */
static void
test_a_disk_that_cannot_allocate(void **state)
{
    struct near__journal_options options = odd_options();
    char                         keys[40];

    (void)state;
    odd.disk.disk.allocate = cannot_allocate;
    write_three_puts(&options);
    assert_string_equal(keys_of(&options, keys), "abc");
    test_disk_free(&odd.disk);
}

/* Who only wants to know whether it can be read. */
static void
test_a_scan_without_a_visitor(void **state)
{
    const struct near__scan_visitor nobody = { .ctx = NULL };
    struct near__journal_record     record = put_of("poison", "cup");
    struct near__scan_report        report;
    struct near__journal_options    options;
    struct near__journal_dir        dir;
    struct near__journal           *journal;
    struct test_disk                disk;
    near_error                      error;
    size_t                          size;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    write_three_puts(&options);
    journal = opened(&options);
    assert_int_equal(near__journal_dead(journal, &record, 7, NEAR_ERR_CONFLICT), NEAR_OK);
    assert_int_equal(near__journal_dead(journal, &record, 8, NEAR_ERR_CONFLICT), NEAR_OK);
    near__journal_close(journal, NULL);
    assert_int_equal(near__journal_dir_open(&dir, &disk.disk, "journal", false, &error), NEAR_OK);
    assert_int_equal(near__journal_scan(&dir, false, &nobody, &report, &error), NEAR_OK);
    assert_int_equal(report.dead_letters, 2);
    assert_in_range(report.records, 4, 12);
    assert_true(report.clean);
    for (size_t i = 0; test_disk_name(&disk, i) != NULL; i++)
        if (strstr(test_disk_name(&disk, i), ".dead") != NULL)
            test_disk_file(&disk, test_disk_name(&disk, i), &size)[NEAR__SEGMENT_HEADER + 20] ^= 1;
    assert_int_equal(near__journal_scan(&dir, true, &nobody, &report, &error), NEAR_OK); /* salvaging */
    assert_int_equal(report.dead_letters, 1);
    assert_int_equal(report.dead_gaps, 1);
    disk.disk.close(&disk, dir.fd);
    test_disk_free(&disk);
}

/* What was spoilt, or cannot be read, between opening and replay: whatever is handed out is whole, and that it is not all is said. */
static void
test_a_replay_of_what_has_been_spoilt(void **state)
{
    (void)state;
    for (size_t at = 0; at < 64; at += 4) { /* anywhere in the second of three records */
        struct test_disk             disk;
        struct near__journal_options options;
        struct near__journal        *journal;
        struct told                  told = { .text = "" };
        size_t                       size;

        test_disk_init(&disk);
        options = memory_options(&disk);
        write_three_puts(&options);
        journal = opened(&options);
        for (size_t i = 0; test_disk_name(&disk, i) != NULL; i++)
            if (strstr(test_disk_name(&disk, i), ".seg") != NULL)
                test_disk_file(&disk, test_disk_name(&disk, i), &size)[NEAR__SEGMENT_HEADER + 64 + at] ^= 1;
        assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, &told),
                         NEAR_ERR_UNAVAILABLE);
        assert_true(told.n <= 1); /* the one before it */
        near__journal_close(journal, NULL);
        test_disk_free(&disk);
    }
}

static ssize_t
cannot_read(void *ctx, int fd, void *buffer, size_t size, uint64_t at)
{
    (void)ctx, (void)fd, (void)buffer, (void)size, (void)at;
    return -EIO;
}

static void
test_a_replay_that_cannot_read(void **state)
{
    struct near__journal_options options = odd_options();
    struct near__journal        *journal;
    struct told                  told                                          = { .text = "" };
    ssize_t (*read)(void *ctx, int fd, void *buffer, size_t size, uint64_t at) = odd.disk.disk.read;

    (void)state;
    write_three_puts(&options);
    journal            = opened(&options);
    odd.disk.disk.read = cannot_read;
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, &told),
                     NEAR_ERR_UNAVAILABLE);
    assert_int_equal(told.n, 0);
    odd.disk.disk.read = read;
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, &told), NEAR_OK);
    assert_int_equal(told.n, 3); /* nothing was lost by it */
    near__journal_close(journal, NULL);
    test_disk_free(&odd.disk);
}

/* Two lives with three dead letters each, behind three segments. */
static void
write_two_files_of_dead_letters(struct test_disk *disk)
{
    struct near__journal_options options = memory_options(disk);
    struct near__journal_record  record  = put_of("poison", "a cup");

    write_three_segments(disk);
    for (int life = 0; life < 2; life++) {
        struct near__journal *journal = opened(&options);

        for (uint64_t i = 0; i < 3; i++)
            assert_int_equal(near__journal_dead(journal, &record, i, NEAR_ERR_CONFLICT), NEAR_OK);
        near__journal_close(journal, NULL);
    }
}

static void
spoil_a_record_and_two_dead_letters(struct test_disk *disk)
{
    size_t size;

    test_disk_file(disk, "0000000000000002.seg", &size)[512 + 9048 + 5000] ^= 1; /* "e" */
    for (size_t i = 0; test_disk_name(disk, i) != NULL; i++)
        if (strstr(test_disk_name(disk, i), ".dead") != NULL)
            test_disk_file(disk, test_disk_name(disk, i), &size)[NEAR__SEGMENT_HEADER + 60] ^= 1;
    test_disk_settle(disk);
}

/* Opening, and salvaging, are lives like any other: fail the n-th call, or allocation, and all that verified is there in the next one. */
static void
open_in_trouble(bool salvage, bool memory)
{
    size_t survived = 0;

    for (unsigned long n = 1;; n++) {
        struct test_disk             disk;
        struct near__journal_options options;
        struct near__journal        *journal;
        char                         keys[40];
        near_error                   error;
        bool                         beyond;

        test_disk_init(&disk);
        options         = memory_options(&disk);
        options.salvage = salvage;
        write_two_files_of_dead_letters(&disk);
        if (salvage)
            spoil_a_record_and_two_dead_letters(&disk);
        if (memory) {
            allocations         = 0;
            allocation_fails_at = n;
        } else {
            disk.calls      = 0;
            disk.fail_at    = n;
            disk.fail_errno = EIO;
        }
        if (near__journal_open(&journal, &options, &error) == NEAR_OK) {
            allocation_fails_at = 0;
            near__journal_close(journal, NULL);
        }
        beyond = memory ? allocations < n : disk.calls < n; /* a close is a call, and never fails */
        survived += memory ? allocations >= n : disk.failed > 0;
        allocation_fails_at = 0;
        disk.fail_at        = 0;
        if (strcmp(keys_of(&options, keys), salvage ? "abcdfghi" : "abcdefghi") != 0)
            fail_msg("%s %lu: %s", memory ? "allocation" : "call", n, keys);
        if (salvage)
            assert_in_range(dead_letters_in(&options), 4, 8); /* killed in between they are there twice */
        else
            assert_int_equal(dead_letters_in(&options), 6);
        test_disk_free(&disk);
        if (beyond)
            break;
    }
    print_message("%zu survived\n", survived);
    assert_true(survived > 10);
}

static void
test_opening_in_trouble(void **state)
{
    (void)state;
    open_in_trouble(false, false);
    open_in_trouble(false, true);
}

static void
test_salvage_in_trouble(void **state)
{
    (void)state;
    open_in_trouble(true, false);
    open_in_trouble(true, true);
}

/* What a killed process left is opened without the n-th allocation: refused for want of memory, or whole. */
static void
test_opening_a_torn_one_without_memory(void **state)
{
    struct test_disk             disk, image;
    struct near__journal_options options;
    struct near__journal        *journal;
    uint64_t                     sequence;
    unsigned long                refused = 0;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    put_now(journal, "a", "1");
    sequence = put_now(journal, "b", "2");
    put_now(journal, "c", "3");
    near__journal_done(journal, &sequence, 1);
    put_now(journal, "d", "4"); /* what is done goes with it */
    for (unsigned long n = 1;; n++) {
        char       keys[40];
        near_error error;
        bool       beyond;

        test_disk_kill(&image, &disk, test_disk_changes(&disk));
        options             = memory_options(&image);
        allocations         = 0;
        allocation_fails_at = n;
        if (open_status(&options, &error) != NEAR_OK) {
            assert_int_equal(error.code, NEAR_ERR_NOMEM);
            refused++;
        }
        beyond              = allocations < n;
        allocation_fails_at = 0;
        assert_string_equal(keys_of(&options, keys), "acd");
        test_disk_free(&image);
        if (beyond)
            break;
    }
    assert_true(refused > 3);
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* Without memory for its end a journal is closed all the same; nothing is missing but the word that nothing is torn. */
static void
test_closing_without_memory(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    char                         keys[40];

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    put_now(journal, "a", "1");
    allocations         = 0;
    allocation_fails_at = 1;
    assert_int_equal(near__journal_close(journal, NULL), NEAR_OK);
    allocation_fails_at = 0;
    assert_string_equal(keys_of(&options, keys), "a");
    test_disk_free(&disk);
}

/* ---- large ones */

/* Its first record is followed by another, which came after the replay began: that is not handed out, and nothing is missing. */
struct late {
    struct near__journal *journal;
    size_t                n;
};

static bool
put_a_late_one(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    struct late *late = ctx;

    assert_false(near__bytes_equal(record->key, near_key("late")));
    if (late->n++ == 0)
        assert_true(put(late->journal, "late", "1") > sequence);
    return true;
}

/* More pending than memory is kept for afterwards, records larger than a piece of it, and a replay of several batches. */
static void
test_large_ones(void **state)
{
    enum { SMALL = 130, LARGE = 3 };
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    static char                  value[20000], large[300000];
    struct late                  late                        = { .n = 0 };
    uint64_t                     last                        = 0;
    char                         keys[SMALL + 2 * LARGE + 8] = "";

    (void)state;
    test_disk_init(&disk);
    options           = memory_options(&disk);
    options.max_bytes = 64 << 20;
    journal           = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    memset(large, 'l', sizeof(large) - 1);
    for (int i = 0; i < SMALL; i++)
        last = put(journal, "k", value);
    for (int i = 0; i < LARGE; i++)
        last = put(journal, "l", large);
    assert_int_equal(near__journal_commit(journal, last, NEAR_NEVER), NEAR_OK);
    for (int i = 0; i < LARGE; i++) /* into what was kept, and beside it */
        last = put(journal, "m", i == 1 ? large : value);
    assert_int_equal(near__journal_commit(journal, last, NEAR_NEVER), NEAR_OK);
    late.journal = journal;
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, put_a_late_one, &late),
                     NEAR_OK);
    assert_int_equal(late.n, SMALL + 2 * LARGE);
    near__journal_close(journal, NULL);
    journal = opened(&options);
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell_keys, keys), NEAR_OK);
    assert_int_equal(strspn(keys, "k"), SMALL);
    assert_string_equal(keys + SMALL, "lllmmml");
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* A file of dead letters ends at a segment's largest size; the next letter begins another, and none is lost. */
static void
test_dead_letters_of_two_files(void **state)
{
    enum { LETTERS = 90 };
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    static char                  value[200000];
    struct near__journal_record  record;
    size_t                       files = 0;

    (void)state;
    test_disk_init(&disk);
    options           = memory_options(&disk);
    options.max_bytes = 256 << 20;
    journal           = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    record = put_of("poison", value);
    for (uint64_t i = 0; i < LETTERS; i++)
        assert_int_equal(near__journal_dead(journal, &record, i, NEAR_ERR_CONFLICT), NEAR_OK);
    near__journal_close(journal, NULL);
    for (size_t i = 0; test_disk_name(&disk, i) != NULL; i++)
        files += strstr(test_disk_name(&disk, i), ".dead") != NULL;
    assert_int_equal(files, 2);
    assert_int_equal(dead_letters_in(&options), LETTERS);
    test_disk_free(&disk);
}

/* The last segment is full, or has room for less than a record has in front, when the process is killed. */
static void
test_killed_with_a_full_segment(void **state)
{
    enum { LEAST = 32 << 10, FRONT = 46 }; /* a record's header, "cache" and "k" */
    static char value[LEAST];

    (void)state;
    for (size_t left = 0; left <= 48; left += 8) {
        struct test_disk             disk, image;
        struct near__journal_options options;
        struct near__journal        *journal;
        char                         keys[40];

        test_disk_init(&disk);
        options = memory_options(&disk);
        journal = opened(&options);
        memset(value, 0, sizeof(value));
        memset(value, 'v', LEAST - NEAR__SEGMENT_HEADER - FRONT - left);
        put_now(journal, "k", value);
        test_disk_kill(&image, &disk, test_disk_changes(&disk));
        options = memory_options(&image);
        assert_string_equal(keys_of(&options, keys), "k");
        test_disk_free(&image);
        near__journal_close(journal, NULL);
        test_disk_free(&disk);
    }
}

/* More is in it than a smaller bound lets in: all of it stays, nothing is taken until some is done, and a segment has its least size at
 * least. */
static void
test_a_smaller_bound_than_before(void **state)
{
    enum { N = 40 };
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    static char                  value[20000];
    uint64_t                     sequence;
    struct told                  told = { .text = "" };

    (void)state;
    test_disk_init(&disk);
    options           = memory_options(&disk);
    options.max_bytes = 16 << 20;
    journal           = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    for (int i = 0; i < N; i++)
        put_now(journal, "k", value);
    near__journal_close(journal, NULL);
    for (options.max_bytes = 1 << 20; options.max_bytes >= 256 << 10; options.max_bytes /= 4) {
        journal = opened(&options);
        assert_int_equal(state_of(journal).recovered, N);
        assert_int_equal(try_put(journal, "k", value, &sequence), NEAR_ERR_BUSY);
        assert_int_equal(near__journal_tick(journal), NEAR_OK);
        near__journal_close(journal, NULL);
    }
    journal = opened(&options);
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, &told), NEAR_OK);
    assert_int_equal(told.n, N);
    near__journal_done(journal, told.sequences, told.n);
    assert_int_equal(near__journal_tick(journal), NEAR_OK);
    put_now(journal, "k", "1");
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* ---- disks that fail in between */

static void
test_bounded_behind_what_cannot_be_read(void **state)
{
    struct near__journal_options options = odd_options();
    struct near__journal        *journal;
    static char                  value[4000];
    ssize_t (*read)(void *ctx, int fd, void *buffer, size_t size, uint64_t at) = odd.disk.disk.read;
    uint64_t sequence;
    size_t   refused = 0;

    (void)state;
    journal = opened(&options);
    memset(value, 'v', sizeof(value) - 1);
    put_now(journal, "pinned", "since ever");
    odd.disk.disk.read = cannot_read;
    for (int i = 0; i < 500; i++) {
        near_status status = try_put(journal, "k", value, &sequence);

        if (status == NEAR_OK) {
            assert_int_equal(near__journal_commit(journal, sequence, NEAR_NEVER), NEAR_OK);
            near__journal_done(journal, &sequence, 1);
        } else {
            assert_int_equal(status, NEAR_ERR_BUSY);
            near__journal_tick(journal);
        }
        refused += status != NEAR_OK;
        assert_true(test_disk_bytes(&odd.disk) <= options.max_bytes);
    }
    assert_true(refused > 100);
    odd.disk.disk.read = read; /* well again: the segment is copied, and there is room */
    for (int i = 0; i < 10; i++)
        near__journal_tick(journal);
    sequence = put_now(journal, "k", value);
    near__journal_done(journal, &sequence, 1);
    near__journal_close(journal, NULL);
    journal = opened(&options);
    assert_string_equal(replay(journal).text, "pinned=since ever");
    near__journal_close(journal, NULL);
    test_disk_free(&odd.disk);
}

/* What memory alone has after a failure for good cannot be read again: the replay says so, however much it is. */
static void
test_a_replay_behind_a_failure(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    struct told                  told = { .text = "" };

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    put_now(journal, "a", "1");
    put(journal, "b", "2");
    put(journal, "c", "3");
    disk.fail_errno = EIO;
    disk.fail_at    = disk.calls + 1;
    disk.sticky     = true;
    assert_int_equal(near__journal_tick(journal), NEAR_ERR_UNAVAILABLE);
    disk.fail_at = 0;
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, &told),
                     NEAR_ERR_UNAVAILABLE);
    assert_string_equal(told.text, "a=1");
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* A record that verifies where another one should be: what is there is not handed out in its place. */
static void
test_a_replay_of_another_record(void **state)
{
    struct test_disk             disk;
    struct near__journal_options options;
    struct near__journal        *journal;
    struct told                  told = { .text = "" };
    uint8_t                     *bytes;
    size_t                       size;

    (void)state;
    test_disk_init(&disk);
    options = memory_options(&disk);
    journal = opened(&options);
    put_now(journal, "a", "some data, 18 byte");
    put_now(journal, "b", "some data, 18 byte");
    bytes = test_disk_file(&disk, "0000000000000001.seg", &size) + NEAR__SEGMENT_HEADER;
    memcpy(bytes + 64, bytes, 64);
    assert_int_equal(near__journal_replay(journal, near_key("cache"), ALL_KINDS, tell, &told),
                     NEAR_ERR_UNAVAILABLE);
    assert_string_equal(told.text, "a=some data, 18 byte");
    near__journal_close(journal, NULL);
    test_disk_free(&disk);
}

/* A file whose size the disk says wrongly, once: nothing is written where it was not salvaged, and what cannot be is no crash. */
static void
test_sizes_that_the_disk_says_wrongly(void **state)
{
    static const uint64_t sizes[] = { 100, 600, NEAR__SEGMENT_HEADER, UINT64_C(1) << 33 };

    (void)state;
    for (int salvage = 0; salvage < 2; salvage++)
        for (size_t i = 0; i < NEAR_COUNT_OF(sizes); i++)
            for (unsigned look = 3, looks = look; look <= looks;
                 look++) { /* behind the directory and the lock */
                struct near__journal_options options = odd_options();
                near_error                   error;
                char                         keys[40];

                write_two_files_of_dead_letters(&odd.disk);
                options.salvage = salvage == 1;
                odd.shrunk      = sizes[i];
                odd.odd_look    = look;
                odd.looks       = 0;
                open_status(&options, &error);
                looks = odd.looks > looks && look == 3 ? odd.looks + 8 : looks; /* a refusal looks at fewer */
                odd.odd_look = 0;
                keys_of(&options, keys);
                if (salvage == 0) {
                    assert_string_equal(keys, "abcdefghi");
                    assert_int_equal(dead_letters_in(&options), 6);
                }
                test_disk_free(&odd.disk);
            }
}

static near_status
refuse_dead(void *ctx, const struct near__record_view *view)
{
    (void)view;
    ++*(int *)ctx;
    return NEAR_ERR_CONFLICT;
}

static void
test_a_visitor_that_has_enough(void **state)
{
    int                             n       = 0;
    const struct near__scan_visitor visitor = { NULL, NULL, refuse_dead, NULL, NULL, &n };
    struct near__scan_report        report;
    struct near__journal_dir        dir;
    struct test_disk                disk;
    near_error                      error;

    (void)state;
    test_disk_init(&disk);
    write_two_files_of_dead_letters(&disk);
    assert_int_equal(near__journal_dir_open(&dir, &disk.disk, "journal", false, &error), NEAR_OK);
    assert_int_equal(near__journal_scan(&dir, false, &visitor, &report, &error), NEAR_ERR_CONFLICT);
    assert_int_equal(n, 1);
    disk.disk.close(&disk, dir.fd);
    test_disk_free(&disk);
}

/* Whoever ticks, closes or has just committed while the writer's disk fails for good is told so; nobody waits for what will not come. */
struct beside {
    struct near__journal *journal;
    near_status           committed, ticked, closed;
    uint64_t              sequence;
};

static void *
commit_beside(void *ctx)
{
    struct beside *beside = ctx;

    beside->committed = near__journal_commit(beside->journal, beside->sequence, NEAR_NEVER);
    near__journal_release(beside->journal);
    return NULL;
}

static void *
tick_beside(void *ctx)
{
    struct beside *beside = ctx;

    beside->ticked = near__journal_tick(beside->journal);
    near__journal_release(beside->journal);
    return NULL;
}

static void *
close_beside(void *ctx)
{
    struct beside *beside = ctx;

    beside->closed = near__journal_close(beside->journal, NULL);
    return NULL;
}

static void
test_others_beside_a_failure(void **state)
{
    struct beside beside = { .journal = open_slowly(NEAR__FSYNC_ALWAYS, 0) };
    pthread_t     threads[3];

    (void)state;
    put_now(beside.journal, "a", "1");
    beside.sequence = put(beside.journal, "b", "2");
    near__journal_hold(beside.journal);
    near__journal_hold(beside.journal);
    atomic_store(&slow.hold, 1);
    assert_int_equal(pthread_create(&threads[0], NULL, commit_beside, &beside), 0);
    while (atomic_load(&slow.inside) == 0)
        usleep(200);
    assert_int_equal(pthread_create(&threads[1], NULL, tick_beside, &beside), 0);
    assert_int_equal(pthread_create(&threads[2], NULL, close_beside, &beside), 0);
    usleep(100000); /* most likely both wait for the writer by now; whoever comes later is told the same */
    atomic_store(&slow.fails, 1);
    atomic_store(&slow.hold, 0);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_int_not_equal(beside.committed, NEAR_OK);
    assert_int_not_equal(beside.ticked, NEAR_OK);
    assert_int_equal(beside.closed, NEAR_ERR_UNAVAILABLE);
    atomic_store(&slow.fails, 0);
}

/* It fails in the journal's own thread, which has nothing to do from then on. */
static void
test_a_failure_in_the_thread(void **state)
{
    struct near__journal *journal = open_slowly(NEAR__FSYNC_INTERVAL, 0);
    uint64_t              sequence;

    (void)state;
    put(journal, "a", "1");
    assert_int_equal(near__journal_sync(journal, 1, NEAR_NEVER), NEAR_OK);
    atomic_store(&slow.fails, 1);
    put(journal, "b", "2");
    while (state_of(journal).failed == NEAR_OK)
        usleep(1000);
    assert_int_equal(try_put(journal, "c", "3", &sequence), NEAR_ERR_UNAVAILABLE);
    usleep(20000);
    assert_int_equal(near__journal_close(journal, NULL), NEAR_ERR_UNAVAILABLE);
    atomic_store(&slow.fails, 0);
}

/* ---- a system that refuses */

static bool no_strdup;
static int  refused_number; /* what a directory's stream and its names are refused with; 0: they are not */
static int  allocate_number;

char          *__real_strdup(const char *text);
char          *__wrap_strdup(const char *text);
DIR           *__real_fdopendir(int fd);
DIR           *__wrap_fdopendir(int fd);
struct dirent *__real_readdir(DIR *stream);
struct dirent *__wrap_readdir(DIR *stream);
struct dirent *__real_readdir64(DIR *stream);
struct dirent *__wrap_readdir64(DIR *stream);
int            __real_fallocate(int fd, int mode, off_t at, off_t size);
int            __wrap_fallocate(int fd, int mode, off_t at, off_t size);
int            __real_fallocate64(int fd, int mode, off_t at, off_t size);
int            __wrap_fallocate64(int fd, int mode, off_t at, off_t size);

static bool no_stream;

char *
__wrap_strdup(const char *text)
{
    return no_strdup ? NULL : __real_strdup(text);
}

DIR *
__wrap_fdopendir(int fd)
{
    if (!no_stream)
        return __real_fdopendir(fd);
    errno = ENOMEM;
    return NULL;
}

/* Its number and no name. */
static bool
no_name(void)
{
    if (refused_number == 0)
        return false;
    errno = refused_number;
    return true;
}

struct dirent *
__wrap_readdir(DIR *stream)
{
    return no_name() ? NULL : __real_readdir(stream);
}

struct dirent *
__wrap_readdir64(DIR *stream)
{
    return no_name() ? NULL : __real_readdir64(stream);
}

static bool
no_blocks(void)
{
    if (allocate_number == 0)
        return false;
    errno = allocate_number;
    return true;
}

int
__wrap_fallocate(int fd, int mode, off_t at, off_t size)
{
    return no_blocks() ? -1 : __real_fallocate(fd, mode, at, size);
}

int
__wrap_fallocate64(int fd, int mode, off_t at, off_t size)
{
    return no_blocks() ? -1 : __real_fallocate64(fd, mode, at, size);
}

static void
test_a_system_that_refuses(void **state)
{
    struct near__journal_options options = real_options(NEAR__FSYNC_ALWAYS);
    struct near__journal        *journal;
    near_error                   error;

    (void)state;
    no_strdup = true;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_NOMEM);
    no_strdup = false;
    allocate_number =
        ENOSYS; /* a kernel, or a file system, that has no such call: files get their size otherwise */
    journal = opened(&options);
    put_now(journal, "a", "1");
    near__journal_close(journal, NULL);
    allocate_number = EOPNOTSUPP;
    journal         = opened(&options);
    put_now(journal, "b", "2");
    near__journal_close(journal, NULL);
    allocate_number = ENOSPC; /* no room is another matter */
    assert_int_equal(open_status(&options, &error), NEAR_ERR_UNAVAILABLE);
    allocate_number = 0;
    no_stream       = true;
    assert_int_equal(open_status(&options, &error), NEAR_ERR_NOMEM);
    no_stream      = false;
    refused_number = EIO; /* a directory that is not read to its end is none without segments */
    assert_int_equal(open_status(&options, &error), NEAR_ERR_UNAVAILABLE);
    refused_number = 0;
    journal        = opened(&options);
    assert_string_equal(replay(journal).text, "a=1 b=2");
    near__journal_close(journal, NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checksum),
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_record_limits),
        cmocka_unit_test(test_header),
        cmocka_unit_test(test_header_limits),
        cmocka_unit_test(test_record_forms),
        cmocka_unit_test_setup_teardown(test_lives, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_replay_stops, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_killed, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_locked, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_refused_places, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_fork, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_slow_fork, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_group_commit, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_no_lock_while_syncing, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_interval, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_interval_of_a_small_one, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_none, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_crowd, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_crowd_with_interval, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_crowd_without_fsync, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_next_in_turn, make_place, remove_place),
        cmocka_unit_test(test_bounded),
        cmocka_unit_test(test_bounded_in_all),
        cmocka_unit_test(test_done_without_memory),
        cmocka_unit_test(test_bounded_behind_damage),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_replaced),
        cmocka_unit_test(test_failed_fsync),
        cmocka_unit_test(test_sticky_failure),
        cmocka_unit_test(test_failed_room),
        cmocka_unit_test(test_each_call_fails),
        cmocka_unit_test(test_each_allocation_fails),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_damage_at_the_end),
        cmocka_unit_test(test_missing_segment),
        cmocka_unit_test(test_damaged_header),
        cmocka_unit_test(test_dead_letters),
        cmocka_unit_test(test_damaged_dead_letters),
        cmocka_unit_test(test_what_the_disk_says_of_files),
        cmocka_unit_test(test_locks_that_fail),
        cmocka_unit_test(test_a_file_that_shrinks),
        cmocka_unit_test(test_headers_that_lie),
        cmocka_unit_test(test_a_chain_that_ends_early),
        cmocka_unit_test(test_dead_letters_that_lie),
        cmocka_unit_test_setup_teardown(test_system_disk_says_errno, make_place, remove_place),
        cmocka_unit_test(test_a_disk_that_does_not_get_on),
        cmocka_unit_test(test_index_agrees_with_an_array),
        cmocka_unit_test(test_a_range_without_memory),
        cmocka_unit_test_setup_teardown(test_what_opening_needs, make_place, remove_place),
        cmocka_unit_test(test_records_that_are_refused),
        cmocka_unit_test(test_two_at_once),
        cmocka_unit_test(test_a_disk_that_cannot_allocate),
        cmocka_unit_test(test_a_scan_without_a_visitor),
        cmocka_unit_test(test_a_replay_of_what_has_been_spoilt),
        cmocka_unit_test(test_a_replay_that_cannot_read),
        cmocka_unit_test(test_opening_in_trouble),
        cmocka_unit_test(test_salvage_in_trouble),
        cmocka_unit_test(test_opening_a_torn_one_without_memory),
        cmocka_unit_test(test_closing_without_memory),
        cmocka_unit_test(test_large_ones),
        cmocka_unit_test(test_dead_letters_of_two_files),
        cmocka_unit_test(test_killed_with_a_full_segment),
        cmocka_unit_test(test_a_smaller_bound_than_before),
        cmocka_unit_test(test_bounded_behind_what_cannot_be_read),
        cmocka_unit_test(test_a_replay_behind_a_failure),
        cmocka_unit_test(test_a_replay_of_another_record),
        cmocka_unit_test(test_sizes_that_the_disk_says_wrongly),
        cmocka_unit_test(test_a_visitor_that_has_enough),
        cmocka_unit_test_setup_teardown(test_others_beside_a_failure, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_a_failure_in_the_thread, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_a_system_that_refuses, make_place, remove_place),
    };

    pthread_atfork(NULL, NULL, child_is_slow); /* before the journal's: those run in this order */
    if (getenv("NEAR_TEST_ROWS") != NULL)
        cmocka_set_test_filter(getenv("NEAR_TEST_ROWS"));
    return TEST_MAIN(tests, NULL, NULL);
}
