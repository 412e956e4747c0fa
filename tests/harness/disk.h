/*
 * A disk in memory for the journal: it remembers every change in order, so that what a crash may have left can be built, and it fails when it is
 * told to.
 *
 * What a crash leaves: of a file, everything before its last sync, and of each later write all, nothing or a part of it; of the
 * directory's names those before its last sync, and of the later changes any.
 */
#ifndef TESTS_HARNESS_DISK_H
#define TESTS_HARNESS_DISK_H

#include "journal_disk.h"

enum test_call {
    TEST_OPEN,
    TEST_STATUS,
    TEST_READ,
    TEST_WRITE,
    TEST_ALLOCATE,
    TEST_SYNC,
    TEST_SYNC_DIRECTORY,
    TEST_RENAME,
    TEST_UNLINK,
    TEST_LOCK,
    TEST_LIST,
    TEST_CLOSE
};

enum test_trouble_kind { TEST_FAIL, TEST_FAIL_AND_DROP, TEST_SHORT };

struct test_disk {
    struct near__disk      disk; /* hand out &disk.disk */
    struct test_disk_data *data;

    /* trouble: the call of this number (from 1; 0: none), and with `sticky` all later ones of any kind that changes something */
    unsigned long          calls, fail_at;
    int                    fail_errno;
    bool                   sticky;
    enum test_trouble_kind trouble;
    unsigned long          failed; /* how often it did */
    enum test_call         failed_call;
    bool                   lies;    /* a sync does nothing: the control */
    unsigned long          touched; /* writes and syncs of a file after one that failed */
};

extern volatile int test_disk_allocating; /* not 0 while the disk takes memory: that is not to fail */

void test_disk_init(struct test_disk *disk);
void test_disk_free(struct test_disk *disk);
/* Forgets what was remembered: everything that is there is as if synced. */
void test_disk_settle(struct test_disk *disk);

/* Changes remembered so far: crash points lie between them. */
size_t test_disk_changes(const struct test_disk *disk);
/* What a crash behind the first `changes` of them may have left, by lot.  `kept`: of what is not synced, 0 nothing, 1 all, 2 by lot (parts in sectors of 512
 * or 4096 bytes, or up to any byte). */
void test_disk_crash(struct test_disk *image, const struct test_disk *disk, size_t changes, int kept,
                     uint64_t *state);

/* What the end of the process behind the first `changes` leaves to the next: all, and the memory of what is not synced.  `image` takes over neither
 * trouble nor descriptors. */
void test_disk_kill(struct test_disk *image, const struct test_disk *disk, size_t changes);

/* The bytes of a file, to spoil them; NULL: there is none. */
uint8_t *test_disk_file(struct test_disk *disk, const char *name, size_t *size);
/* Names, one after the other: NULL behind the last. */
const char *test_disk_name(const struct test_disk *disk, size_t i);
uint64_t    test_disk_bytes(const struct test_disk *disk);

#endif
