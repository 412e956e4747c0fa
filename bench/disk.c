/*
 * The disk tier by itself: memory of its index, and what a random hit costs beside a bare pread of the same file.
 *
 *   bench/disk [directory [entries [value bytes [hits [lmdb]]]]]      defaults: /tmp, 10000000, 200, 200000
 *
 * Writes `entries` records (keys of 16 bytes), then reads `hits` of them at random, in turns of 1000: near__spill_begin() and
 * near__spill_finish(), which verify the checksum and the key; then pread(2) of as many bytes at places of the same log, which
 * nobody looks at.  First a tenth of them with the page cache emptied of the log, so that the disk is read, then all with what the page
 * cache holds, the same for both.  Removes what it made.
 *
 * With "lmdb" the same entries go into an LMDB as well, in the order in which evictions come, which is none, in transactions of a thousand
 * that are not synced, and as many of them are looked up; where liblmdb-dev was there at configure.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifdef HAVE_LMDB
#include <lmdb.h>
#endif

#include "l1/disk.h"

enum { TURN = 1000 };

#define SCATTER UINT64_C(2654435761) /* a prime: no two numbers below another one come to the same */

static uint64_t
mix(uint64_t i)
{
    i = (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    i = (i ^ i >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    i = (i ^ i >> 27) * UINT64_C(0x94D049BB133111EB);
    return i ^ i >> 31;
}

static int64_t
now(void)
{
    return near__now(&near__clock_system);
}

/* Processor time of the process. */
static int64_t
used(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static void
report_fill(uint64_t entries, int64_t began, int64_t cpu)
{
    printf("filled in %.1f s: %.0f k entries/s, %.2f us of processor each\n", (double)(now() - began) / 1e9,
           (double)entries * 1e6 / (double)(now() - began), (double)(used() - cpu) / 1e3 / (double)entries);
}

static int
by_size(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

static void
key_of(char key[17], uint64_t i)
{
    snprintf(key, 17, "%016llx", (unsigned long long)i);
}

static void
fill(struct near__spill *spill, const struct near__secret *secret, uint64_t entries, size_t value_bytes)
{
    char                     key[17], *value = calloc(1, value_bytes);
    int64_t                  began = now(), cpu = used();
    struct near__spill_stats stats;

    for (uint64_t i = 0; i < entries; i++) {
        struct near__spill_record record = { .key         = { key, 16 },
                                             .value       = { value, value_bytes },
                                             .fresh_until = NEAR_NEVER,
                                             .expires     = NEAR_NEVER };

        key_of(key, i);
        memcpy(value, key, 16);
        near__spill_put(spill, near__hash_keyed(secret, record.key), &record);
        if (i % 2000 == 1999) /* as fast as the disk takes it */
            near__spill_drain(spill, now() + 60000 * NEAR_MS);
    }
    near__spill_drain(spill, now() + 60000 * NEAR_MS);
    near__spill_stats(spill, &stats);
    printf("entries %llu (%llu put, %llu of a tag that was there, %llu dropped)\n",
           (unsigned long long)stats.entries, (unsigned long long)stats.puts, (unsigned long long)stats.kept,
           (unsigned long long)stats.dropped);
    printf("index %.1f MB, %.2f bytes an entry\n", (double)stats.index_bytes / 1e6,
           (double)stats.index_bytes / (double)stats.entries);
    printf("log %.1f MB, written %.1f MB for %.1f MB put: amplification %.3f\n",
           (double)stats.log_bytes / 1e6, (double)stats.written_bytes / 1e6, (double)stats.put_bytes / 1e6,
           (double)stats.written_bytes / (double)stats.put_bytes);
    report_fill(entries, began, cpu);
    free(value);
}

/* Nanoseconds of one hit; 0: it is not there. */
static uint32_t
hit(struct near__spill *spill, const struct near__secret *secret, uint64_t i)
{
    struct near__spill_read read;
    char                    key[17];
    near_bytes              bytes = { key, 16 };
    uint64_t                hash;
    int64_t                 began;
    bool                    found;

    key_of(key, i);
    hash  = near__hash_keyed(secret, bytes); /* L1 has computed it */
    began = now();
    found = near__spill_begin(spill, hash, &read) &&
            near__spill_finish(spill, &read, bytes, began + 1000 * NEAR_MS);
    near__spill_end(&read);
    return found ? (uint32_t)(now() - began) : 0;
}

static uint32_t
bare(int fd, uint64_t size, uint32_t bytes, uint64_t random, char *buffer)
{
    uint64_t at    = random % (size - bytes) & ~(uint64_t)15;
    int64_t  began = now();

    return pread(fd, buffer, bytes, (off_t)at) == (ssize_t)bytes ? (uint32_t)(now() - began) : 0;
}

static void
report(const char *what, uint32_t *ns, size_t n)
{
    qsort(ns, n, sizeof(*ns), by_size);
    printf("%-12s n %zu p50 %.2f us p90 %.2f us p99 %.2f us\n", what, n, ns[n / 2] / 1e3,
           ns[n * 9 / 10] / 1e3, ns[n * 99 / 100] / 1e3);
}

static void
measure(struct near__spill *spill, const struct near__secret *secret, const char *log, uint64_t entries,
        uint32_t record, size_t hits, bool cold)
{
    uint32_t   *ours = calloc(hits, sizeof(*ours)), *theirs = calloc(hits, sizeof(*theirs));
    char       *buffer = malloc(record);
    int         fd     = open(log, O_RDONLY | O_CLOEXEC);
    struct stat st;
    size_t      n = 0, m = 0;

    if (fd < 0 || fstat(fd, &st) != 0)
        exit(1);
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    if (cold && (fdatasync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0))
        exit(1);
    printf("%s\n", cold ? "from the disk" : "from the page cache");
    for (size_t i = 0; i < hits; i++) {
        uint32_t took = i / TURN % 2 == 0 ? hit(spill, secret, mix(i) % entries)
                                          : bare(fd, (uint64_t)st.st_size, record, mix(i), buffer);

        if (took != 0 && i / TURN % 2 == 0)
            ours[n++] = took;
        else if (took != 0)
            theirs[m++] = took;
    }
    close(fd);
    report("hit", ours, n);
    report("bare pread", theirs, m);
    printf("ratio of p50 %.2f\n", (double)ours[n / 2] / (double)theirs[m / 2]);
    free(ours);
    free(theirs);
    free(buffer);
}

/* All of the log into the page cache. */
static void
warm(const char *log)
{
    static char piece[1 << 20];
    int         fd = open(log, O_RDONLY | O_CLOEXEC);

    while (fd >= 0 && read(fd, piece, sizeof(piece)) > 0)
        ;
    if (fd >= 0)
        close(fd);
}

/* ---- the peer */

#ifdef HAVE_LMDB
static void
check(int rc, const char *what)
{
    if (rc == 0)
        return;
    fprintf(stderr, "lmdb: %s: %s\n", what, mdb_strerror(rc));
    exit(1);
}

static MDB_env *
lmdb_open(const char *directory, uint64_t bytes, MDB_dbi *dbi)
{
    MDB_env *env;
    MDB_txn *txn;

    check(mdb_env_create(&env), "create");
    check(mdb_env_set_mapsize(env, bytes), "size");
    check(mdb_env_open(env, directory, MDB_NOSYNC | MDB_NORDAHEAD, 0600), "open");
    check(mdb_txn_begin(env, NULL, 0, &txn), "begin");
    check(mdb_dbi_open(txn, NULL, 0, dbi), "database");
    check(mdb_txn_commit(txn), "commit");
    return env;
}

/* What this process has had written to files so far. */
static double
written_mb(void)
{
    char      line[128];
    long long bytes = 0;
    FILE     *file  = fopen("/proc/self/io", "re");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        sscanf(line, "wchar: %lld", &bytes);
    if (file != NULL)
        fclose(file);
    return (double)bytes / 1e6;
}

static void
lmdb_fill(MDB_env *env, MDB_dbi dbi, uint64_t entries, size_t value_bytes)
{
    char    key[17], *value = calloc(1, value_bytes);
    int64_t began = now(), cpu = used();
    double  before = written_mb();

    for (uint64_t at = 0; at < entries; at += TURN) {
        MDB_txn *txn;

        check(mdb_txn_begin(env, NULL, 0, &txn), "begin");
        for (uint64_t i = at; i < at + TURN && i < entries; i++) {
            MDB_val name = { 16, key }, data = { value_bytes, value };

            key_of(key, i * SCATTER % entries);
            memcpy(value, key, 16);
            check(mdb_put(txn, dbi, &name, &data, 0), "put");
        }
        check(mdb_txn_commit(txn), "commit");
    }
    printf("lmdb: written %.1f MB for %.1f MB put: amplification %.2f\n", written_mb() - before,
           (double)(entries * (16 + value_bytes)) / 1e6,
           (written_mb() - before) * 1e6 / (double)(entries * (16 + value_bytes)));
    report_fill(entries, began, cpu);
    free(value);
}

/* A read takes the value out, as ours does: what a transaction shows is gone with it. */
static void
lmdb_hits(MDB_env *env, MDB_dbi dbi, uint64_t entries, size_t value_bytes, size_t hits)
{
    uint32_t *took = calloc(hits, sizeof(*took));
    char      key[17], *value = malloc(value_bytes);
    size_t    n = 0;
    MDB_txn  *txn;

    check(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn), "begin");
    mdb_txn_reset(txn);
    for (size_t i = 0; i < hits; i++) {
        MDB_val name = { 16, key }, data;
        int64_t began;

        key_of(key, mix(i) % entries);
        began = now();
        check(mdb_txn_renew(txn), "renew");
        if (mdb_get(txn, dbi, &name, &data) == 0 && data.mv_size <= value_bytes) {
            memcpy(value, data.mv_data, data.mv_size);
            took[n++] = (uint32_t)(now() - began);
        }
        mdb_txn_reset(txn);
    }
    mdb_txn_abort(txn);
    report("lmdb", took, n);
    free(took);
    free(value);
}

static void
lmdb(const char *under, uint64_t entries, size_t value_bytes, size_t hits)
{
    char        directory[512], path[600];
    uint64_t    bytes = (entries * (value_bytes + 64) * 3 + (64 << 20)) & ~(uint64_t)4095;
    struct stat st;
    MDB_env    *env;
    MDB_dbi     dbi;
    int         fd;

    snprintf(directory, sizeof(directory), "%s/near-lmdb-XXXXXX", under);
    if (mkdtemp(directory) == NULL)
        exit(1);
    env = lmdb_open(directory, bytes, &dbi);
    lmdb_fill(env, dbi, entries, value_bytes);
    mdb_env_close(env); /* what is mapped stays in memory */
    snprintf(path, sizeof(path), "%s/data.mdb", directory);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0 || fdatasync(fd) != 0 ||
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
        exit(1);
    close(fd);
    printf("lmdb: file %.1f MB\nfrom the disk\n", (double)st.st_size / 1e6);
    env = lmdb_open(directory, bytes, &dbi);
    lmdb_hits(env, dbi, entries, value_bytes, hits / 20);
    warm(path);
    printf("from the page cache\n");
    lmdb_hits(env, dbi, entries, value_bytes, hits / 2);
    lmdb_hits(env, dbi, entries, value_bytes, hits / 2); /* and mapped, as it is once it has been read */
    mdb_env_close(env);
    unlink(path);
    snprintf(path, sizeof(path), "%s/lock.mdb", directory);
    unlink(path);
    rmdir(directory);
}
#else
static void
lmdb(const char *under, uint64_t entries, size_t value_bytes, size_t hits)
{
    (void)under, (void)entries, (void)value_bytes, (void)hits;
    printf("lmdb: liblmdb-dev was not there at configure\n");
}
#endif

int
main(int argc, char **argv)
{
    const char               *under       = argc > 1 ? argv[1] : "/tmp";
    uint64_t                  entries     = argc > 2 ? strtoull(argv[2], NULL, 10) : 10 * 1000 * 1000;
    size_t                    value_bytes = argc > 3 ? strtoull(argv[3], NULL, 10) : 200;
    size_t                    hits        = argc > 4 ? strtoull(argv[4], NULL, 10) : 200 * 1000;
    struct near__spill_record one         = { .key   = { NULL, 16 },
                                              .value = { NULL, value_bytes < 16 ? 16 : value_bytes } };
    static const char *const  names[]     = { "log", "lock", "alive" };
    struct near__spill       *spill;
    struct near__secret       secret;
    struct near__spill_config config = {
        .queue_bytes = 8 << 20, .timeout = 1000 * NEAR_MS, .threads = 4, .ring = true
    };
    char directory[512], path[600];
    int  reason;

    snprintf(directory, sizeof(directory), "%s/near-bench-XXXXXX", under);
    if (mkdtemp(directory) == NULL || near__secret_init(&secret) != NEAR_OK)
        return 1;
    config.path      = directory;
    config.max_bytes = (entries + entries / 50 + 10000) * near__spill_record_size(&one);
    config.clock     = near__clock_system;
    config.os        = &near__spill_os_system;
    config.secret    = secret;
    if (near__spill_open(&spill, &config, &reason) != NEAR_OK) {
        fprintf(stderr, "cannot open %s: %s\n", directory, strerror(reason));
        return 1;
    }
    printf("io %s\n", near__spill_has_ring(spill) ? "io_uring" : "threads");
    fill(spill, &secret, entries, one.value.size);
    snprintf(path, sizeof(path), "%s/log", directory);
    measure(spill, &secret, path, entries, near__spill_record_size(&one), hits / 10, true);
    warm(path);
    measure(spill, &secret, path, entries, near__spill_record_size(&one), hits, false);
    near__spill_close(&spill, now() + 20000 * NEAR_MS, false);
    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++) {
        snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
    if (argc > 5 && strcmp(argv[5], "lmdb") == 0)
        lmdb(under, entries, one.value.size, hits);
    return 0;
}
