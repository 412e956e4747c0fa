/*
 * What a crash may leave of a journal, on a disk that remembers every change: each image is opened, and what comes out is compared with what
 * was promised when the crash came.  One program, three sizes: `make check` some thousands of images, `make check-long` 10^5, `make soak`
 * until its time is over.
 *
 * The promise, for a crash behind any change: what was known to be on disk and not done is there; nothing is there that was never written, and
 * every byte of it is right; what is there is a prefix (no record is missing before one that is there, unless it was done); an older record
 * of a key never comes back without a newer one that was on disk; numbers go on above all that were given.  Opening can be crashed, too.
 */
#include "harness/disk.h"
#include "harness/long.h"
#include "harness/test.h"

#include "journal.h"
#include "journal_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the control: checksums that are never wrong */

uint32_t    __real_near__crc32c(uint32_t crc, const void *data, size_t size);
uint32_t    __wrap_near__crc32c(uint32_t crc, const void *data, size_t size);
static bool checksums_ignored;

uint32_t
__wrap_near__crc32c(uint32_t crc, const void *data, size_t size)
{
    return checksums_ignored ? 0 : __real_near__crc32c(crc, data, size);
}

/* ---- a run, and what it knows of each of its records */

enum { KEYS = 8, FACTS = 20000, NEVER = -1 };

struct fact {
    uint64_t sequence;
    int      key, kind;
    size_t   size;
    long     written, kept, safe,
        done; /* changes of the disk when: it was given to the journal; commit returned; known to be on disk; done was called */
};

struct run {
    struct test_disk      disk;
    struct near__journal *journal;
    struct fact          *facts;
    size_t                n, done_upto[KEYS];
    bool                  replacing; /* a write makes those before it of its key done, at once */
    uint64_t              state;
    size_t                images, wrong;
    bool                  quiet;
    char                  first[400]; /* what was wrong first */
};

static uint8_t
byte_of(size_t fact, size_t i)
{
    return (uint8_t)(fact * 131 + i * 7 + (i >> 8) + 1);
}

static struct near__journal_options
options_of(struct test_disk *disk, enum near__journal_fsync fsync)
{
    return (struct near__journal_options){
        .directory = "journal",
        .fsync     = fsync,
        .max_bytes = 1 << 20,
        .manual    = true,
        .disk      = &disk->disk,
    };
}

static void
write_one(struct run *run, size_t most)
{
    static uint8_t              bytes[8192];
    char                        key[8];
    struct near__journal_record record;
    struct fact                *fact = &run->facts[run->n];
    size_t                      dice = test_random(&run->state);

    *fact      = (struct fact){ .key = (int)(dice % KEYS), .kept = NEVER, .safe = NEVER, .done = NEVER };
    fact->kind = dice / 8 % 10 == 0   ? NEAR__JOURNAL_ERASE
                 : dice / 8 % 10 == 1 ? NEAR__JOURNAL_INTENT
                                      : NEAR__JOURNAL_PUT;
    fact->size = fact->kind == NEAR__JOURNAL_PUT ? 8 + dice / 128 % most : 0;
    memcpy(bytes, &run->n, 8);
    for (size_t i = 8; i < fact->size; i++)
        bytes[i] = byte_of(run->n, i);
    snprintf(key, sizeof(key), "key%d", fact->key);
    record = (struct near__journal_record){
        (enum near__journal_kind)fact->kind, near_key("cache"), near_key(key), { bytes, fact->size }
    };
    fact->written = (long)test_disk_changes(&run->disk);
    if (near__journal_write(run->journal, &record, &fact->sequence) == NEAR_OK)
        run->n++;
}

static void
note_safe(struct run *run)
{
    struct near__journal_state state;
    long                       changes = (long)test_disk_changes(&run->disk);

    near__journal_state(run->journal, &state);
    for (size_t i = run->n; i > 0 && run->facts[i - 1].safe == NEVER; i--)
        if (run->facts[i - 1].sequence <= state.synced)
            run->facts[i - 1].safe = changes;
}

static void
commit(struct run *run, bool always)
{
    long changes;

    assert_int_equal(near__journal_commit(run->journal, run->facts[run->n - 1].sequence, NEAR_NEVER),
                     NEAR_OK);
    changes = (long)test_disk_changes(&run->disk);
    for (size_t i = run->n; i > 0 && run->facts[i - 1].kept == NEVER && always; i--)
        run->facts[i - 1].kept = changes;
}

/* The oldest records of a key, in their order. */
static void
done_some(struct run *run, size_t keep)
{
    int      key = (int)(test_random(&run->state) % KEYS);
    uint64_t sequences[16];
    size_t   n = 0;

    for (size_t i = run->done_upto[key]; i + keep < run->n && n < 16; i++) {
        if (run->facts[i].key != key)
            continue;
        sequences[n++]      = run->facts[i].sequence;
        run->facts[i].done  = (long)test_disk_changes(&run->disk);
        run->done_upto[key] = i + 1;
    }
    near__journal_done(run->journal, sequences, n);
}

/* What was written last replaces all those before it of its key, wherever it may be itself. */
static void
replace(struct run *run)
{
    int      key = run->facts[run->n - 1].key;
    uint64_t sequences[16];
    size_t   n = 0;

    for (size_t i = run->done_upto[key]; i + 1 < run->n && n < 16; i++) {
        if (run->facts[i].key != key)
            continue;
        sequences[n++]      = run->facts[i].sequence;
        run->facts[i].done  = (long)test_disk_changes(&run->disk);
        run->done_upto[key] = i + 1;
    }
    near__journal_done(run->journal, sequences, n);
}

static void
start_run(struct run *run, enum near__journal_fsync fsync, uint64_t seed, bool lies)
{
    struct near__journal_options options;
    near_error                   error;

    memset(run, 0, sizeof(*run));
    run->state = seed;
    run->facts = calloc(FACTS, sizeof(*run->facts));
    test_disk_init(&run->disk);
    run->disk.lies = lies;
    options        = options_of(&run->disk, fsync);
    assert_int_equal(near__journal_open(&run->journal, &options, &error), NEAR_OK);
}

/* Key 0 is left alone for long where `pinned`: its records hold old segments, and have to be copied. */
static void
act(struct run *run, enum near__journal_fsync fsync, size_t records, size_t most, bool pinned)
{
    for (size_t i = 0; i < records; i++) {
        write_one(run, most);
        if (run->replacing && (!pinned || run->facts[run->n - 1].key != 0))
            replace(run);
        if (test_random(&run->state) % 4 == 0)
            commit(run, fsync != NEAR__FSYNC_INTERVAL);
        if (fsync == NEAR__FSYNC_INTERVAL && test_random(&run->state) % 8 == 0)
            assert_int_equal(near__journal_tick(run->journal), NEAR_OK);
        note_safe(run);
        if (!run->replacing && test_random(&run->state) % 3 == 0)
            done_some(run, pinned ? 400 : 10);
    }
}

static void
end_run(struct run *run)
{
    if (run->journal != NULL)
        near__journal_close(run->journal, NULL);
    test_disk_free(&run->disk);
    free(run->facts);
}

/* ---- an image */

struct found {
    struct run *run;
    long        changes;
    bool       *there;
    uint64_t    last;
};

static void
wrong(struct run *run, long changes, const char *what, uint64_t detail)
{
    if (run->wrong++ == 0)
        snprintf(run->first, sizeof(run->first), "crash behind change %ld: %s (%llu)", changes, what,
                 (unsigned long long)detail);
}

static bool
is_right(const struct fact *fact, size_t index, const struct near__journal_record *record, uint64_t sequence,
         long changes)
{
    char           key[8];
    const uint8_t *bytes = record->data.data;

    snprintf(key, sizeof(key), "key%d", fact->key);
    if (fact->sequence != sequence || (int)record->kind != fact->kind || fact->written > changes ||
        record->data.size != fact->size || !near__bytes_equal(record->key, near_key(key)))
        return false;
    for (size_t i = 8; i < fact->size; i++)
        if (bytes[i] != byte_of(index, i))
            return false;
    return true;
}

static size_t
fact_of(const struct run *run, uint64_t sequence)
{
    size_t low = 0, high = run->n;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (run->facts[middle].sequence < sequence)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool
deliver(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    struct found *found = ctx;
    size_t        index = fact_of(found->run, sequence);

    if (sequence <= found->last && found->last != 0)
        wrong(found->run, found->changes, "out of order", sequence);
    found->last = sequence;
    if (index == found->run->n ||
        !is_right(&found->run->facts[index], index, record, sequence, found->changes))
        wrong(found->run, found->changes, "never written like that", sequence);
    else
        found->there[index] = true;
    return true;
}

static bool
happened(long when, long changes)
{
    return when != NEVER && when <= changes;
}

/* Of what replaces one another something is always there, once the first one was on disk. */
static void
judge_key(struct run *run, const struct found *found, int key, int kept)
{
    bool there = false;

    for (size_t i = run->n; i > 0 && !there; i--) {
        const struct fact *fact = &run->facts[i - 1];

        there = fact->key == key && found->there[i - 1];
        if (fact->key != key || there ||
            !(happened(fact->safe, found->changes) || (kept == 1 && happened(fact->kept, found->changes))))
            continue;
        wrong(run, found->changes, "replaced by nothing", fact->sequence);
        return;
    }
}

/* From the newest record to the oldest. */
static void
judge(struct run *run, const struct found *found, int kept)
{
    bool later = false, newer_missing[KEYS] = { false };

    for (size_t i = run->n; i > 0; i--) {
        const struct fact *fact = &run->facts[i - 1];
        bool               safe = happened(kept == 1 ? fact->kept : fact->safe, found->changes) ||
                    happened(fact->safe, found->changes);
        bool may_be_done = happened(fact->done, found->changes);

        if (!found->there[i - 1] && safe && !may_be_done)
            wrong(run, found->changes, "lost", fact->sequence);
        if (!found->there[i - 1] && later && !may_be_done)
            wrong(run, found->changes, "a hole", fact->sequence);
        if (found->there[i - 1] && newer_missing[fact->key] && fact->kind != NEAR__JOURNAL_INTENT)
            wrong(run, found->changes, "came back without a newer one", fact->sequence);
        if (!found->there[i - 1] && safe && fact->kind != NEAR__JOURNAL_INTENT)
            newer_missing[fact->key] = true;
        later = later || found->there[i - 1];
    }
    for (int key = 0; key < KEYS && run->replacing; key++)
        judge_key(run, found, key, kept);
}

/* Recover `image`, and judge; or only begin to, and leave the disk to the next. */
static void
recover(struct run *run, struct test_disk *image, enum near__journal_fsync fsync, size_t changes, int kept,
        bool judged)
{
    struct near__journal_options options = options_of(image, fsync);
    struct near__journal_record  record  = {
          NEAR__JOURNAL_ERASE, near_key("cache"), near_key("x"), { NULL, 0 }
    };
    struct found          found = { .run = run, .changes = (long)changes };
    struct near__journal *journal;
    near_error            error;
    uint64_t              sequence;
    unsigned kinds = 1 << NEAR__JOURNAL_PUT | 1 << NEAR__JOURNAL_ERASE | 1 << NEAR__JOURNAL_INTENT;

    if (near__journal_open(&journal, &options, &error) != NEAR_OK) {
        wrong(run, found.changes, error.text, 0);
        return;
    }
    found.there = calloc(run->n + 1, 1);
    if (near__journal_replay(journal, near_key("cache"), kinds, deliver, &found) != NEAR_OK)
        wrong(run, found.changes, "replay failed", 0);
    if (judged) {
        judge(run, &found, kept);
        if (near__journal_write(journal, &record, &sequence) == NEAR_OK)
            for (size_t i = run->n; i > 0; i--)
                if (run->facts[i - 1].written <= found.changes && run->facts[i - 1].sequence >= sequence) {
                    wrong(run, found.changes, "a number given twice", sequence);
                    break;
                }
    }
    near__journal_close(journal, &error);
    free(found.there);
}

static void
try_image(struct run *run, enum near__journal_fsync fsync, size_t changes, int kept)
{
    struct test_disk image, again;

    test_disk_crash(&image, &run->disk, changes, kept, &run->state);
    run->images++;
    if (run->images % 4 != 0) {
        recover(run, &image, fsync, changes, kept, true);
        test_disk_free(&image);
        return;
    }
    /* the recovery is crashed, too, anywhere; every other time it follows the end of the process, with a kernel that lives on */
    if (run->images % 8 == 0) {
        test_disk_free(&image);
        test_disk_kill(&image, &run->disk, changes);
    } else {
        test_disk_settle(&image);
    }
    {
        size_t begun = test_disk_changes(&image);

        recover(run, &image, fsync, changes, kept, false);
        test_disk_crash(&again, &image,
                        begun + test_random(&run->state) % (test_disk_changes(&image) - begun + 1), 2,
                        &run->state);
    }
    test_disk_free(&image);
    recover(run, &again, fsync, changes, kept, true);
    test_disk_free(&again);
}

static void
try_images(struct run *run, enum near__journal_fsync fsync, size_t count)
{
    size_t all = test_disk_changes(&run->disk);

    for (size_t i = 0; i < count; i++)
        try_image(run, fsync, i < all ? i : test_random(&run->state) % (all + 1),
                  (int)(i % 8 == 0   ? 0
                        : i % 8 == 1 ? 1
                                     : 2));
}

/* `count` images of runs like this one, each of another seed; how many were wrong. */
static size_t
images_of(enum near__journal_fsync fsync, size_t records, size_t most, bool pinned, size_t count, bool lies,
          bool replacing, const char *name)
{
    size_t     images = 0, bad = 0;
    int64_t    ends = test_budget_ends();
    struct run run;

    for (uint64_t seed = 1; images < count && test_now_ms() < ends; seed++) {
        size_t share = count - images < 500 ? count - images : 500;

        start_run(&run, fsync, seed * 77 + fsync, lies);
        run.replacing = replacing;
        act(&run, fsync, records, most, pinned);
        try_images(&run, fsync, share);
        images += run.images;
        if (run.wrong > 0 && bad == 0)
            print_message("%s: seed %llu: %s\n", name, (unsigned long long)seed, run.first);
        bad += run.wrong;
        end_run(&run);
    }
    print_message("%s: %zu images, %zu wrong\n", name, images, bad);
    return bad;
}

static void
test_images_always(void **state)
{
    (void)state;
    assert_int_equal(images_of(NEAR__FSYNC_ALWAYS, 120, 600, false, test_sized(1500, 60000, 2000000), false,
                               false, "always"),
                     0);
}

static void
test_images_interval(void **state)
{
    (void)state;
    assert_int_equal(images_of(NEAR__FSYNC_INTERVAL, 150, 900, false, test_sized(1000, 25000, 1000000), false,
                               false, "interval"),
                     0);
}

static void
test_images_none(void **state)
{
    (void)state;
    assert_int_equal(
        images_of(NEAR__FSYNC_NONE, 150, 900, false, test_sized(500, 10000, 500000), false, false, "none"),
        0);
}

/* Segments are copied, freed and used again. */
static void
test_images_pinned(void **state)
{
    (void)state;
    assert_int_equal(images_of(NEAR__FSYNC_ALWAYS, 2500, 1200, true, test_sized(150, 6000, 100000), false,
                               false, "pinned"),
                     0);
}

/* Every write replaces those before it: what is done is so by something that no file has yet, and whole groups fill several segments. */
static void
test_images_replaced(void **state)
{
    (void)state;
    assert_int_equal(images_of(NEAR__FSYNC_INTERVAL, 700, 8000, false, test_sized(150, 6000, 100000), false,
                               true, "replaced"),
                     0);
    assert_int_equal(images_of(NEAR__FSYNC_ALWAYS, 700, 8000, true, test_sized(150, 6000, 100000), false,
                               true, "replaced, pinned"),
                     0);
}

static void
test_control_without_fsync(void **state)
{
    (void)state;
    assert_true(
        images_of(NEAR__FSYNC_ALWAYS, 120, 600, false, 200, true, false, "control: syncs do nothing") > 0);
}

static void
test_control_without_checksums(void **state)
{
    (void)state;
    checksums_ignored = true;
    assert_true(images_of(NEAR__FSYNC_INTERVAL, 120, 900, false, 300, false, false,
                          "control: checksums ignored") > 0);
    checksums_ignored = false;
}

/* ---- every single bit of a 64 KiB journal */

enum { ROT_SEGMENT = 65536, ROT_BYTES = 2 << 20 };

struct rot {
    struct run *run;
    size_t      delivered;
    bool        phantom;
};

static near_status
rot_record(void *ctx, const struct near__scan_segment *segment, const struct near__record_view *view,
           uint32_t at)
{
    struct rot *rot   = ctx;
    size_t      index = fact_of(rot->run, view->sequence);

    (void)segment, (void)at;
    if (view->record.kind >= NEAR__JOURNAL_DONE)
        return NEAR_OK;
    rot->delivered++;
    if (index == rot->run->n ||
        !is_right(&rot->run->facts[index], index, &view->record, view->sequence, INT32_MAX))
        rot->phantom = true;
    return NEAR_OK;
}

/* Exactly full: the last byte of the file is the last byte of the last record. */
static void
fill_segment(struct run *run)
{
    struct near__journal_options options;
    near_error                   error;
    size_t                       left = ROT_SEGMENT - NEAR__SEGMENT_HEADER - NEAR__RECORD_HEADER;

    memset(run, 0, sizeof(*run));
    run->state = 5;
    run->facts = calloc(FACTS, sizeof(*run->facts));
    test_disk_init(&run->disk);
    options           = options_of(&run->disk, NEAR__FSYNC_ALWAYS);
    options.max_bytes = ROT_BYTES;
    assert_int_equal(near__journal_open(&run->journal, &options, &error), NEAR_OK);
    while (left > 0) {
        static uint8_t              bytes[1024];
        struct near__journal_record record = {
            NEAR__JOURNAL_PUT, near_key("cache"), near_key("key1"), { bytes, 0 }
        };
        struct fact *fact = &run->facts[run->n];
        size_t       size = left < 1000 ? left : 64 + test_random(&run->state) % 50 * 8;

        /* 9 bytes are the names'; what is left last fits exactly */
        record.data.size = size - NEAR__RECORD_HEADER - 9;
        memcpy(bytes, &run->n, 8);
        for (size_t i = 8; i < record.data.size; i++)
            bytes[i] = byte_of(run->n, i);
        *fact = (struct fact){ .key = 1, .kind = NEAR__JOURNAL_PUT, .size = record.data.size };
        assert_int_equal(near__journal_write(run->journal, &record, &fact->sequence), NEAR_OK);
        run->n++;
        left -= near__record_size(&record);
    }
    assert_int_equal(near__journal_close(run->journal, &error), NEAR_OK);
    run->journal = NULL;
}

static void
test_every_bit(void **state)
{
    struct run                      run;
    struct rot                      rot     = { .run = &run };
    const struct near__scan_visitor visitor = { NULL, rot_record, NULL, NULL, NULL, &rot };
    struct near__scan_report        report;
    struct near__journal_dir        dir;
    near_error                      error;
    size_t   size, flips = 0, refused = 0, cut = 0, missed = 0, step = test_level() == TEST_CHECK ? 61 : 1;
    uint8_t *bytes;
    uint64_t records;

    (void)state;
    fill_segment(&run);
    bytes = test_disk_file(&run.disk, "0000000000000001.seg", &size);
    assert_int_equal(size, ROT_SEGMENT);
    assert_int_equal(near__journal_dir_open(&dir, &run.disk.disk, "journal", false, &error), NEAR_OK);
    assert_int_equal(near__journal_scan(&dir, false, &visitor, &report, &error), NEAR_OK);
    assert_int_equal(rot.delivered, run.n);
    assert_true(report.clean && report.cut_bytes == 0 && report.last_end == ROT_SEGMENT);
    records = report.records;
    for (size_t bit = 0; bit < size * 8; bit += step, flips++) {
        near_status status;

        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        rot.phantom = false;
        status      = near__journal_scan(&dir, false, &visitor, &report, &error);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        refused += status != NEAR_OK;
        cut += status == NEAR_OK && report.cut_bytes > 0 && report.records == records - 1;
        missed +=
            rot.phantom || (status == NEAR_OK && !(report.cut_bytes > 0 && report.records == records - 1));
    }
    print_message("bits: %zu flipped, %zu refused, %zu in the end mark and cut, %zu missed\n", flips, refused,
                  cut, missed);
    assert_int_equal(missed, 0);
    run.disk.disk.close(run.disk.disk.ctx, dir.fd);
    end_run(&run);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_images_always),
        cmocka_unit_test(test_images_interval),
        cmocka_unit_test(test_images_none),
        cmocka_unit_test(test_images_pinned),
        cmocka_unit_test(test_images_replaced),
        cmocka_unit_test(test_control_without_fsync),
        cmocka_unit_test(test_control_without_checksums),
        cmocka_unit_test(test_every_bit),
    };
    const char *rows = getenv("NEAR_TEST_ROWS");

    if (rows != NULL)
        cmocka_set_test_filter(rows);
    return TEST_MAIN(tests, NULL, NULL);
}
