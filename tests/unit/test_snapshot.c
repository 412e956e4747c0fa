/*
 * Snapshots from inside: the bytes of the file under every kind of damage, its writing on a disk that fails and crashes, L1's walk and
 * return, and what a policy makes of entries that come back.  Whole caches: tests/integration/test_snapshot.c.
 */
#include "l1_help.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/crc32c.h"
#include "base/le.h"
#include "harness/disk.h"
#include "l1/policy.h"
#include "snapshot_file.h"

/* ---- files */

#define NAME "it.cache"

static const struct near__snap_head head = {
    .id = 77, .scope = 5, .wall_ms = 1000, .boot_ns = 2000, .entries = 9
};

/* Entry `i`, which says in its value what its key is. */
static struct near__snap_row
row_of(unsigned i, char key[24], char value[400])
{
    struct near__snap_row row = {
        .stamp      = i,
        .warmth     = (uint8_t)i,
        .expires_ms = NEAR__SNAP_FAR,
        .fresh_ms   = (int64_t)i,
        .pool       = i * 1000001,
        .unknown    = i == 5,
    };
    int n = snprintf(value, 400, "value of %u", i);

    memset(value + n, 'v', 40);
    row.key   = (near_bytes){ key, (size_t)snprintf(key, 24, "key %u", i) };
    row.value = (near_bytes){ value, (size_t)n + 40 };
    if (i % 3 == 0) {
        row.tags  = 2;
        row.names = (near_bytes){ "\3one\3two", 8 };
    }
    return row;
}

/* `n` rows; where `each`, in a block each.  0 or -errno. */
static int
write_file(const struct near__disk *disk, int directory, unsigned first, unsigned n)
{
    struct near__snap_writer writer;
    char                     key[24], value[400];
    struct near__snap_head   mine = head;
    int                      result;

    mine.entries = first; /* which file it is */
    near__snap_write_begin(&writer, disk, directory, NAME, &mine);
    for (unsigned i = first; i < first + n; i++) {
        struct near__snap_row row = row_of(i, key, value);

        near__snap_write_row(&writer, &row);
        if (i % 2 == 1 && writer.error == 0) { /* blocks of two rows */
            size_t room = writer.room;

            near__snap_block_seal(writer.block, writer.id, writer.number++, writer.used - NEAR__SNAP_BLOCK,
                                  writer.rows);
            writer.error = near__disk_write_all(disk, writer.fd, writer.block, writer.used, writer.at);
            writer.at += writer.used;
            writer.used = NEAR__SNAP_BLOCK;
            writer.rows = 0;
            assert_int_equal(room, writer.room);
        }
    }
    near__snap_write_end(&writer);
    result = near__snap_write_publish(&writer);
    near__snap_write_close(&writer);
    return result;
}

struct found {
    int      opened; /* 0 or -errno */
    bool     whole;
    unsigned rows, damaged;
    uint64_t first; /* of the file that it is */
    unsigned seen[16];
};

static struct found
read_file(const struct near__disk *disk, int directory)
{
    struct near__snap_reader reader;
    struct found             found = { .opened = near__snap_read_open(&reader, disk, directory, NAME) };
    struct near__snap_row    row, right;
    enum near__snap_piece    piece;
    char                     key[24], value[400];
    near_bytes               rows;
    int                      error;

    if (found.opened != 0)
        return found;
    found.first = reader.head.entries;
    while ((piece = near__snap_read_block(&reader, &rows, &error)) != NEAR__SNAP_OVER) {
        size_t at = 0;

        found.damaged += piece != NEAR__SNAP_GOOD;
        if (piece == NEAR__SNAP_BROKEN)
            break;
        if (piece != NEAR__SNAP_GOOD)
            continue;
        while (near__snap_row_decode(&row, rows, &at)) {
            right = row_of((unsigned)row.stamp, key, value);
            assert_true(near__bytes_equal(row.key, right.key) && near__bytes_equal(row.value, right.value) &&
                        near__bytes_equal(row.names, right.names) && row.tags == right.tags);
            assert_true(row.fresh_ms == right.fresh_ms && row.expires_ms == NEAR__SNAP_FAR &&
                        row.warmth == right.warmth && row.pool == right.pool && row.unknown == right.unknown);
            found.rows++;
            found.seen[row.stamp % 16]++;
        }
        assert_int_equal(at, rows.size);
    }
    found.whole = piece == NEAR__SNAP_OVER && found.damaged == 0;
    near__snap_read_close(&reader);
    return found;
}

#define ROWS 9

static void
test_what_is_written_is_read(void **state)
{
    struct test_disk disk;
    struct found     found;

    (void)state;
    test_disk_init(&disk);
    int directory = disk.disk.open_directory(disk.disk.ctx, "d", true);
    assert_int_equal(read_file(&disk.disk, directory).opened, -ENOENT);
    assert_int_equal(write_file(&disk.disk, directory, 0, ROWS), 0);
    found = read_file(&disk.disk, directory);
    assert_true(found.opened == 0 && found.whole && found.rows == ROWS);
    for (unsigned i = 0; i < ROWS; i++)
        assert_int_equal(found.seen[i], 1);
    assert_int_equal(write_file(&disk.disk, directory, 3, 0), 0); /* in its place */
    found = read_file(&disk.disk, directory);
    assert_true(found.whole && found.rows == 0 && found.first == 3);
    test_disk_free(&disk);
}

/* Version 1 had no pools: its rows say none.  A newer one than this is refused. */
static void
test_versions(void **state)
{
    struct near__snap_head back;
    uint8_t                bytes[NEAR__SNAP_HEAD];

    (void)state;
    for (uint32_t version = 0; version < 5; version++) {
        near__snap_head_encode(bytes, &head);
        assert_int_equal(near__le32_get(bytes + 8), NEAR__SNAP_NUMBER);
        near__le32_put(bytes + 8, version);
        near__le32_put(bytes + NEAR__SNAP_HEAD - 4, near__crc32c(0, bytes, NEAR__SNAP_HEAD - 4));
        assert_int_equal(near__snap_head_decode(&back, bytes, sizeof(bytes)), version == 1 || version == 2);
    }
}

/* A file as it is after `spoil`, and what is read of it. */
static struct found
read_spoilt(const uint8_t *bytes, size_t size, size_t flipped_bit)
{
    struct test_disk disk;
    struct found     found;
    int              directory, fd;

    test_disk_init(&disk);
    directory = disk.disk.open_directory(disk.disk.ctx, "d", true);
    fd        = disk.disk.open(disk.disk.ctx, directory, NAME, NEAR__DISK_NEW);
    assert_int_equal(near__disk_write_all(&disk.disk, fd, bytes, size, 0), 0);
    if (flipped_bit != SIZE_MAX) {
        uint8_t byte = bytes[flipped_bit / 8] ^ (uint8_t)(1u << flipped_bit % 8);

        assert_int_equal(near__disk_write_all(&disk.disk, fd, &byte, 1, flipped_bit / 8), 0);
    }
    disk.disk.close(disk.disk.ctx, fd);
    found = read_file(&disk.disk, directory);
    test_disk_free(&disk);
    return found;
}

static uint8_t *
good_file(size_t *size)
{
    struct test_disk disk;
    uint8_t         *bytes;
    int              directory;

    test_disk_init(&disk);
    directory = disk.disk.open_directory(disk.disk.ctx, "d", true);
    assert_int_equal(write_file(&disk.disk, directory, 0, ROWS), 0);
    test_disk_file(&disk, NAME, size);
    bytes = malloc(*size);
    assert_non_null(bytes);
    memcpy(bytes, test_disk_file(&disk, NAME, size), *size);
    test_disk_free(&disk);
    return bytes;
}

/* Whatever is cut off, what is before it comes, and that it was cut off is known. */
static void
test_every_prefix(void **state)
{
    size_t   size;
    uint8_t *bytes = good_file(&size);
    unsigned most  = 0;

    (void)state;
    for (size_t n = 0; n < size; n++) {
        struct found found = read_spoilt(bytes, n, SIZE_MAX);

        if (n < NEAR__SNAP_HEAD) {
            assert_int_equal(found.opened, -EBADMSG);
            continue;
        }
        assert_true(found.opened == 0 && !found.whole && found.damaged == 1 && found.rows >= most);
        most = found.rows;
    }
    assert_int_equal(most, ROWS); /* but for the end it is all there */
    assert_true(read_spoilt(bytes, size, SIZE_MAX).whole);
    free(bytes);
}

/* Every single bit: noticed, and no row that it lies in is believed; where a block's header is whole the others still come. */
static void
test_every_flip(void **state)
{
    size_t   size, flips = 0;
    uint8_t *bytes = good_file(&size);
    unsigned least = ROWS;

    (void)state;
    for (size_t bit = 0; bit < 8 * size; bit++, flips++) {
        struct found found = read_spoilt(bytes, size, bit);

        if (bit < (size_t)8 * NEAR__SNAP_HEAD) {
            assert_int_equal(found.opened, -EBADMSG);
            continue;
        }
        assert_true(found.opened == 0 && !found.whole && found.damaged == 1);
        least = found.rows < least ? found.rows : least;
    }
    assert_int_equal(least, 0); /* the first block's header */
    free(bytes);
    print_message("%zu flips, none missed\n", flips);
}

/* Several at once, anywhere, and parts overwritten: rows that come are right (read_file() looks). */
static void
test_random_damage(void **state)
{
    size_t   size;
    uint8_t *good = good_file(&size), *bytes = malloc(size);
    uint64_t dice = 1;

    (void)state;
    assert_non_null(bytes);
    for (size_t i = test_scale(20000); i > 0; i--) {
        memcpy(bytes, good, size);
        for (uint64_t n = test_random(&dice) % 5 + 1; n > 0; n--) {
            size_t at = test_random(&dice) % size, length = test_random(&dice) % 40 + 1;

            for (; length > 0 && at < size; length--, at++)
                bytes[at] = (uint8_t)test_random(&dice);
        }
        read_spoilt(bytes, size, SIZE_MAX);
    }
    free(good);
    free(bytes);
}

/* A block of an older file at the right place, checksums and all: its id gives it away. */
static void
test_blocks_of_another_file(void **state)
{
    size_t   size;
    uint8_t *bytes = good_file(&size);

    (void)state;
    near__le64_put(bytes + 16, 78); /* the head's id */
    near__le32_put(bytes + NEAR__SNAP_HEAD - 4, near__crc32c(0, bytes, NEAR__SNAP_HEAD - 4));
    struct found found = read_spoilt(bytes, size, SIZE_MAX);
    assert_true(found.opened == 0 && found.rows == 0 && found.damaged == 1);
    free(bytes);
}

/* ---- a disk that fails */

/* Each call in turn fails, once and for good, in several ways: there is the old file or the new one, whole; and who was told NEAR_OK has the
 * new one. */
static void
test_every_failing_call(void **state)
{
    static const int errors[] = { EIO, ENOSPC, EINTR };
    unsigned         failed   = 0;

    (void)state;
    for (unsigned variant = 0; variant < 8; variant++) {
        bool more = true;

        for (unsigned long at = 1; more; at++) {
            struct test_disk disk;
            struct found     found;
            unsigned long    before;
            int              directory, result;

            test_disk_init(&disk);
            directory = disk.disk.open_directory(disk.disk.ctx, "d", true);
            assert_int_equal(write_file(&disk.disk, directory, 0, 5), 0);
            before          = disk.calls;
            disk.fail_errno = errors[variant % 3];
            disk.sticky     = variant >= 3 && variant < 6;
            disk.trouble    = variant < 6 ? TEST_FAIL : variant == 6 ? TEST_SHORT : TEST_FAIL_AND_DROP;
            disk.fail_at    = before + at;
            result          = write_file(&disk.disk, directory, 1, 5);
            more            = disk.failed > 0;
            failed += more;
            disk.fail_at = 0;
            disk.sticky  = false;
            found        = read_file(&disk.disk, directory);
            assert_true(found.opened == 0 && found.whole && found.rows == 5);
            assert_true(result == 0 ? found.first == 1 : true);
            assert_int_equal(write_file(&disk.disk, directory, 2, 5), 0); /* and the next one goes well */
            assert_int_equal(read_file(&disk.disk, directory).first, 2);
            test_disk_free(&disk);
        }
    }
    print_message("%u failures\n", failed);
    assert_true(failed > 50);
}

/* A crash at any moment, with what a disk may have left of what was not synced: the old file, or the new one, whole. */
static unsigned
crash_everywhere(bool lies)
{
    struct test_disk disk, image;
    uint64_t         dice  = 3;
    unsigned         wrong = 0;
    size_t           first;
    int              directory;

    test_disk_init(&disk);
    directory = disk.disk.open_directory(disk.disk.ctx, "d", true);
    assert_int_equal(write_file(&disk.disk, directory, 0, 5), 0);
    first     = test_disk_changes(&disk);
    disk.lies = lies;
    assert_int_equal(write_file(&disk.disk, directory, 1, 5), 0);
    for (size_t changes = first; changes <= test_disk_changes(&disk); changes++)
        for (unsigned i = 0; i < 40; i++) {
            test_disk_crash(&image, &disk, changes, (int)(i < 2 ? i : 2), &dice);
            struct found found =
                read_file(&image.disk, image.disk.open_directory(image.disk.ctx, "d", false));

            wrong += found.opened != 0 || !found.whole ||
                     (changes == test_disk_changes(&disk) && found.first != 1);
            test_disk_free(&image);
        }
    test_disk_free(&disk);
    return wrong;
}

static void
test_crashes(void **state)
{
    (void)state;
    assert_int_equal(crash_everywhere(false), 0);
    assert_true(crash_everywhere(true) > 0); /* the control: a sync that does nothing */
}

/* ---- L1 */

struct walked {
    unsigned             n, seen[1000];
    struct near__l1_seen last;
};

static void
note(void *ctx, const struct near__l1_seen *seen)
{
    struct walked *walked  = ctx;
    char           key[16] = { 0 };

    memcpy(key, seen->key.data, seen->key.size < 15 ? seen->key.size : 15);
    walked->n++;
    walked->last = *seen;
    walked->seen[atoi(key) % 1000]++;
    assert_true(near__bytes_equal(seen->key, seen->value) || seen->value.size > 1000);
}

static void
walk(struct near__l1 *l1, size_t homes, int64_t now, struct walked *walked)
{
    struct near__l1_cursor cursor = { .shard = 0 };

    *walked = (struct walked){ .n = 0 };
    while (near__l1_walk(l1, &cursor, homes, now, note, walked))
        ;
}

static void
test_walk_shows_all(void **state)
{
    struct near__l1_config config = l1_config(8 << 20, 0, 4, "adaptive");
    struct near__l1       *l1     = l1_open_with(&config);
    static char            large[100000];
    struct walked          walked;
    char                   key[16];

    (void)state;
    for (unsigned i = 0; i < 1000; i++) {
        snprintf(key, sizeof(key), "%u", i);
        put(l1, key, key);
    }
    for (size_t homes = 1; homes < 10000; homes *= 7) {
        walk(l1, homes, 0, &walked);
        assert_int_equal(walked.n, 1000);
        for (unsigned i = 0; i < 1000; i++)
            assert_int_equal(walked.seen[i], 1);
    }
    near__l1_invalidate(l1, hash_of(text("7")), text("7"));
    memset(large, 'x', sizeof(large) - 1);
    put(l1, "8", large); /* lies outside the arena */
    walk(l1, 64, 0, &walked);
    assert_true(walked.n == 999 && walked.seen[7] == 0 && walked.seen[8] == 1);
    near__l1_flush(l1);
    walk(l1, 64, 0, &walked);
    assert_int_equal(walked.n, 0);
    near__l1_free(&l1);
}

/* Entries that come, go and move under it. */
static void *
disturb(void *ctx)
{
    struct near__l1 *l1 = *(struct near__l1 *volatile *)ctx;
    char             key[16];

    for (unsigned i = 0; i < test_scale(60000); i++) {
        snprintf(key, sizeof(key), "%u", 500 + i % 500);
        if (i % 3 == 0)
            near__l1_invalidate(l1, hash_of(text(key)), text(key));
        else
            put(l1, key, key);
        snprintf(key, sizeof(key), "%u", 1000 + i);
        put(l1, key, key);
    }
    return NULL;
}

static void
test_walk_beside_writers(void **state)
{
    struct near__l1_config config = l1_config(64 << 20, 0, 2, "lru");
    struct near__l1       *l1     = l1_open_with(&config);
    struct walked          walked;
    pthread_t              thread;
    char                   key[16];

    (void)state;
    for (unsigned i = 0; i < 500; i++) {
        snprintf(key, sizeof(key), "%u", i);
        put(l1, key, key);
    }
    assert_int_equal(pthread_create(&thread, NULL, disturb, &l1), 0);
    for (int i = 0; i < 20; i++) {
        walk(l1, 16, 0, &walked);
        assert_true(walked.n >= 450); /* a chain from which something is taken meanwhile may hide its last */
    }
    pthread_join(thread, NULL);
    near__l1_free(&l1);
}

static enum near__l1_admission
come_back(struct near__l1 *l1, const char *key, const char *value, uint64_t fence, bool alone)
{
    struct near__entry     *entry = entry_of(text(key), hash_of(text(key)), text(value));
    enum near__l1_admission verdict;

    entry->expires = entry->fresh_until = NEAR_NEVER;
    verdict                             = near__l1_restore(l1, entry, text(key), fence, alone, 1, 0);
    near__entry_release(&entry);
    return verdict;
}

static void
test_nothing_newer_is_replaced(void **state)
{
    struct near__l1    *l1 = l1_open(1 << 20, 4, 1);
    char                key[16];
    static char         bytes[2 << 20];
    struct near__entry *large;

    (void)state;
    assert_int_equal(near__l1_restore_begin(l1, 10, true), NEAR_OK);
    assert_int_equal(come_back(l1, "a", "old", NEAR__L1_FENCE_BIRTH, true), NEAR__L1_ADMITTED);
    assert_true(finds_at(l1, "a", 0, "old"));
    put(l1, "b", "loaded");
    assert_int_equal(come_back(l1, "b", "old", NEAR__L1_FENCE_BIRTH, true), NEAR__L1_FENCED);
    for (unsigned i = 0; i < 40; i++) { /* "b" is evicted: what was loaded is remembered all the same */
        snprintf(key, sizeof(key), "%u", i);
        put(l1, key, "x");
    }
    assert_true(finds_at(l1, "b", 0, NULL));
    assert_int_equal(come_back(l1, "b", "old", NEAR__L1_FENCE_BIRTH, true), NEAR__L1_FENCED);
    assert_int_equal(come_back(l1, "b", "old", NEAR__L1_FENCE_BIRTH, false),
                     NEAR__L1_ADMITTED); /* the control */
    near__l1_invalidate(l1, hash_of(text("c")), text("c"));
    assert_int_equal(come_back(l1, "c", "old", NEAR__L1_FENCE_BIRTH, true), NEAR__L1_FENCED);
    large = entry_of(text("d"), hash_of(text("d")), (near_bytes){ bytes, sizeof(bytes) });
    assert_int_equal(near__l1_insert(l1, large, near__l1_fence(l1, large->hash), 0), NEAR__L1_TOO_LARGE);
    near__entry_release(&large);
    /* nor is it kept, but its caller has it */
    assert_int_equal(come_back(l1, "d", "old", NEAR__L1_FENCE_BIRTH, true), NEAR__L1_FENCED);
    assert_int_equal(come_back(l1, "c", "old", near__l1_fence(l1, hash_of(text("c"))), false),
                     NEAR__L1_ADMITTED);
    near__l1_flush(l1);
    assert_int_equal(come_back(l1, "d", "old", NEAR__L1_FENCE_BIRTH, true), NEAR__L1_FENCED);
    near__l1_restore_end(l1);
    assert_int_equal(come_back(l1, "e", "old", near__l1_fence(l1, hash_of(text("e"))), true),
                     NEAR__L1_FENCED);
    near__l1_free(&l1);
}

static void
count_write(void *ctx)
{
    ++*(unsigned *)ctx;
}

/* Each function that writes or invalidates tells; fills do not. */
static void
test_writes_are_told(void **state)
{
    unsigned               told   = 0, before;
    struct near__l1_config config = l1_config(1 << 20, 0, 1, "lru");
    near_bytes             key    = text("k");
    uint64_t               hash   = hash_of(key);
    struct near__l1_write  write;
    struct near__entry    *entry;
    struct near__l1       *l1;

    (void)state;
    config.wrote     = count_write;
    config.wrote_ctx = &told;
    l1               = l1_open_with(&config);
    put(l1, "k", "v");
    assert_int_equal(told, 0);
#define TELLS(call)                                                                                          \
    do {                                                                                                     \
        before = told;                                                                                       \
        call;                                                                                                \
        assert_true(told > before);                                                                          \
    } while (0)
    TELLS(near__l1_invalidate(l1, hash, key));
    TELLS(near__l1_flush(l1));
    TELLS(near__l1_invalidate_tag(l1, 5));
    TELLS(write = near__l1_write_begin(l1, hash, key));
    TELLS(near__l1_write_end(l1, write, hash, key, NULL, 0));
    entry = entry_of(key, hash, text("w"));
    TELLS(near__l1_store_if(l1, entry, near__l1_fence(l1, hash), 0));
    TELLS(near__l1_store(l1, entry, key, 0));
    near__entry_release(&entry);
    near__l1_free(&l1);
}

/* ---- policies */

enum { KEYS = 40000, ROOM = 4000 };

/* Skewed towards small numbers, with new keys mixed in. */
static unsigned
next_key(uint64_t *dice)
{
    double u = (double)(test_random(dice) >> 11) / (double)(UINT64_C(1) << 53);

    return (unsigned)((double)KEYS * u * u * u * u);
}

static double
requests(struct near__l1 *l1, uint64_t *dice, unsigned n)
{
    unsigned hits = 0;
    char     key[16];

    for (unsigned i = 0; i < n; i++) {
        near_value *value;

        snprintf(key, sizeof(key), "%u", next_key(dice));
        value = near__l1_hit((struct near__l1_front *)l1, hash_of(text(key)), text(key), 0);
        if (value != NULL) {
            hits++;
            let_go_of(value);
        } else {
            put(l1, key, key);
        }
    }
    return (double)hits / n;
}

struct copy {
    struct near__l1 *to;
    bool             cold; /* as new keys: the control */
};

static void
copy_entry(void *ctx, const struct near__l1_seen *seen)
{
    struct copy        *copy  = ctx;
    uint64_t            hash  = hash_of(seen->key);
    struct near__entry *entry = entry_of(seen->key, hash, seen->value);

    entry->expires = entry->fresh_until = NEAR_NEVER;
    if (copy->cold)
        near__l1_insert(copy->to, entry, near__l1_fence(copy->to, hash), 0);
    else
        near__l1_restore(copy->to, entry, seen->key, near__l1_fence(copy->to, hash), false, seen->warmth, 0);
    near__entry_release(&entry);
}

/* A cache, a copy of it by way of a snapshot, and one whose marks were lost, under what comes next; then a scan of new keys, which a
 * policy must know from what was in use. */
static void
compare(const char *policy, double *kept, double *warm, double *cold)
{
    struct near__l1_config config = l1_config(8 << 20, ROOM, 1, policy);
    struct near__l1       *l1[3];
    uint64_t               dice = 11;

    for (int i = 0; i < 3; i++)
        l1[i] = l1_open_with(&config);
    requests(l1[0], &dice, 200000);
    for (int i = 1; i < 3; i++) {
        struct near__l1_cursor cursor = { .shard = 0 };
        struct copy            copy   = { l1[i], i == 2 };

        near__l1_restore_begin(l1[i], ROOM, false);
        while (near__l1_walk(l1[0], &cursor, 64, 0, copy_entry, &copy))
            ;
        near__l1_restore_end(l1[i]);
    }
    double ratio[3];
    for (int i = 0; i < 3; i++) {
        uint64_t same = 12;
        char     key[16];

        for (unsigned k = 0; k < ROOM / 2; k++) { /* half a cache of keys that nobody asks for again */
            snprintf(key, sizeof(key), "%u", KEYS + k);
            put(l1[i], key, key);
        }
        ratio[i] = requests(l1[i], &same, 4000);
        near__l1_free(&l1[i]);
    }
    *kept = ratio[0];
    *warm = ratio[1];
    *cold = ratio[2];
}

static void
test_policies_know_them_again(void **state)
{
    double   kept, warm, cold;
    unsigned better = 0;

    (void)state;
    for (size_t i = 0; near__policies[i] != NULL; i++) {
        compare(near__policies[i]->name, &kept, &warm, &cold);
        print_message("%-8s as it was %.4f, restored %.4f, restored as new keys %.4f\n",
                      near__policies[i]->name, kept, warm, cold);
        assert_true(warm >= 0.97 * kept);
        better += warm > cold + 0.01;
    }
    assert_true(better >= 3); /* the control */
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_written_is_read),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_every_prefix),
        cmocka_unit_test(test_every_flip),
        cmocka_unit_test(test_random_damage),
        cmocka_unit_test(test_blocks_of_another_file),
        cmocka_unit_test(test_every_failing_call),
        cmocka_unit_test(test_crashes),
        cmocka_unit_test(test_walk_shows_all),
        cmocka_unit_test(test_walk_beside_writers),
        cmocka_unit_test(test_nothing_newer_is_replaced),
        cmocka_unit_test(test_writes_are_told),
        cmocka_unit_test(test_policies_know_them_again),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
