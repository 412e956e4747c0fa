/*
 * What snapshots cost: bench/snapshot DIRECTORY [ENTRIES]
 *
 *     save       L1 to a file, synced, beside a plain write(2) and fdatasync(2) of as many bytes, side by side in rounds
 *     restore    the file to L1 without a bound on the rate, beside a plain read(2) of as many bytes; for small values and for 1 KiB
 *     at rate    the same at snapshot.rate's default: how long for a million entries of 100 bytes
 *     reads      hits of another cache of the same client, by one thread, before and while that goes on
 *
 * Beside the clock's figures stand those of the processor's time, which other programs on the machine change less.
 *
 * DIRECTORY is made, and ought to lie on the disk that is meant; its files are removed.  ENTRIES: a million.
 */
#include "bench/median.h"

#include <nearcache.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 3, CHUNK = 256 * 1024, READ_KEYS = 100000, SLICES = 64 };

static const char *directory;
static char        path[1024], file[1100], plain[1100];

static void
fail(const char *what)
{
    fprintf(stderr, "bench/snapshot: %s\n", what);
    exit(1);
}

static double
read_clock(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static double
now(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

static double
used(void)
{
    return read_clock(CLOCK_PROCESS_CPUTIME_ID);
}

/* ---- caches */

static near_client *
open_client(const char *rate, bool at_close)
{
    near_config *config = near_config_new();
    near_client *client;
    near_error   error;

    near_config_set(config, "l2.uri", "none:", NULL);
    near_config_set(config, "ttl", "0", NULL);
    near_config_set(config, "l1.max_bytes", "4GiB", NULL);
    near_config_set(config, "close.timeout", "60s", NULL);
    near_config_set(config, "snapshot.path", path, NULL);
    near_config_set(config, "snapshot.at_close", at_close ? "yes" : "no", NULL);
    if (rate != NULL)
        near_config_set(config, "snapshot.rate", rate, NULL);
    if (near_client_open(config, &client, &error) != NEAR_OK)
        fail(error.text);
    near_config_free(config);
    return client;
}

static near_cache *
open_cache(near_client *client, const char *name)
{
    near_cache *cache;
    near_error  error;

    if (near_cache_open(client, name, NULL, &cache, &error) != NEAR_OK)
        fail(error.text);
    return cache;
}

static void
fill(near_cache *cache, unsigned n, size_t size)
{
    static char value[1 << 16];
    char        key[24];

    memset(value, 'v', sizeof(value));
    for (unsigned i = 0; i < n; i++) {
        snprintf(key, sizeof(key), "user:%010u", i);
        if (near_put(cache, near_key(key), (near_bytes){ value, size }, NULL) != NEAR_OK)
            fail("a put failed");
    }
}

static near_stats
stats(near_client *client)
{
    near_stats s = NEAR_STATS_INIT;

    near_stats_get(client, &s);
    return s;
}

/* ---- plain files */

/* What something took, by the clock and of the processor. */
struct took {
    double wall[ROUNDS], cpu[ROUNDS];
};

static void
begin(struct took *took, int round)
{
    took->wall[round] = -now();
    took->cpu[round]  = -used();
}

static void
end(struct took *took, int round)
{
    took->wall[round] += now();
    took->cpu[round] += used();
}

static void
plain_write(size_t size, struct took *took, int round)
{
    static char buffer[CHUNK];
    int         fd = open(plain, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    begin(took, round);
    for (size_t at = 0; at < size; at += CHUNK) {
        memset(buffer, (int)at, CHUNK); /* the bytes must come from somewhere */
        if (write(fd, buffer, CHUNK) != CHUNK)
            fail("cannot write");
    }
    if (fdatasync(fd) != 0)
        fail("cannot sync");
    end(took, round);
    close(fd);
}

static void
plain_read(size_t size, struct took *took, int round)
{
    static char buffer[CHUNK];
    int         fd = open(plain, O_RDONLY);

    begin(took, round);
    for (size_t at = 0; at < size; at += CHUNK)
        if (read(fd, buffer, CHUNK) <= 0)
            fail("cannot read");
    end(took, round);
    close(fd);
}

/* ---- rows */

static void
print_took(const char *what, double size, struct took *took)
{
    printf(" %s %6.0f MB/s (%6.0f MB per second of processor)", what, size / 1e6 / median(took->wall, ROUNDS),
           size / 1e6 / median(took->cpu, ROUNDS));
}

static void
save_and_restore(unsigned n, size_t value)
{
    struct took  save, written, restore, read;
    double       size   = 0;
    near_client *client = open_client("0", false);
    near_cache  *cache  = open_cache(client, "c");
    near_error   error;

    fill(cache, n, value);
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t before = stats(client).snapshot_bytes;

        begin(&save, i);
        if (near_snapshot_save(cache, &error) != NEAR_OK)
            fail(error.text);
        end(&save, i);
        size = (double)(stats(client).snapshot_bytes - before);
        plain_write((size_t)size, &written, i);
    }
    near_client_close(client, NULL);
    for (int i = 0; i < ROUNDS; i++) {
        client = open_client("0", true);
        begin(&restore, i);
        cache = open_cache(client, "c");
        while (stats(client).snapshot_restoring > 0)
            usleep(1000);
        end(&restore, i);
        if (stats(client).snapshot_restored != n)
            fail("not all came back");
        plain_read((size_t)size, &read, i);
        near_client_close(client, NULL);
    }
    printf("%u entries of %zu bytes, %.1f MB:\n", n, value, size / 1e6);
    print_took("    saved   ", size, &save);
    print_took("  plain write and sync", size, &written);
    print_took("\n    restored", size, &restore);
    print_took("  plain read          ", size, &read);
    printf("\n    restored in %.2f s (%.2f s of processor): %.2f M entries/s\n", median(restore.wall, ROUNDS),
           median(restore.cpu, ROUNDS), n / 1e6 / median(restore.wall, ROUNDS));
    unlink(file);
    unlink(plain);
}

/* Nanoseconds per hit over a slice of reads, of the processor. */
static double
slice(near_cache *cache, uint64_t *dice, double *wall)
{
    double began = read_clock(CLOCK_THREAD_CPUTIME_ID), start = now();
    char   key[24];

    for (int i = 0; i < 20000; i++) {
        near_value *value;

        *dice = *dice * UINT64_C(6364136223846793005) + 1442695040888963407u;
        snprintf(key, sizeof(key), "user:%010u", (unsigned)((*dice >> 33) % READ_KEYS));
        if (near_get(cache, near_key(key), &value) == NEAR_OK)
            near_value_release(value);
    }
    *wall = (now() - start) / 20000 * 1e9;
    return (read_clock(CLOCK_THREAD_CPUTIME_ID) - began) / 20000 * 1e9;
}

static void
reads_meanwhile(unsigned n)
{
    static double quiet[SLICES], busy[1 << 12], quiet_wall[SLICES], busy_wall[1 << 12];
    double        restored, began;
    uint64_t      dice   = 1;
    near_client  *client = open_client(NULL, true);
    near_cache   *other;
    size_t        slices = 0;

    fill(open_cache(client, "c"), n, 100);
    near_client_close(client, NULL);
    client = open_client(NULL, false);
    other  = open_cache(client, "other");
    fill(other, READ_KEYS, 100);
    for (int i = 0; i < SLICES; i++)
        quiet[i] = slice(other, &dice, &quiet_wall[i]);
    began = now();
    open_cache(client, "c");
    while (stats(client).snapshot_restoring > 0 && slices < sizeof(busy) / sizeof(busy[0])) {
        busy[slices] = slice(other, &dice, &busy_wall[slices]);
        slices++;
    }
    restored = now() - began;
    printf("at snapshot.rate's default: %u entries of 100 bytes restored in %.2f s\n", n, restored);
    if (slices > 0)
        printf("one thread's hits in another cache: %.1f ns before, %.1f ns meanwhile: x%.3f; of processor "
               "%.1f, %.1f: x%.3f (medians of "
               "%d and %zu)\n",
               median(quiet_wall, SLICES), median(busy_wall, slices),
               median(busy_wall, slices) / median(quiet_wall, SLICES), median(quiet, SLICES),
               median(busy, slices), median(busy, slices) / median(quiet, SLICES), SLICES, slices);
    near_client_close(client, NULL);
}

int
main(int argc, char **argv)
{
    unsigned n = argc > 2 ? (unsigned)atoi(argv[2]) : 1000000;

    if (argc < 2 || n == 0) {
        fprintf(stderr, "usage: bench/snapshot DIRECTORY [ENTRIES]\n");
        return 2;
    }
    directory = argv[1];
    mkdir(directory, 0700);
    snprintf(path, sizeof(path), "%.900s/bench", directory);
    snprintf(file, sizeof(file), "%s.c", path);
    snprintf(plain, sizeof(plain), "%s.plain", path);
    save_and_restore(n, 100);
    save_and_restore(n / 4, 1024);
    save_and_restore(n / 40, 10240);
    reads_meanwhile(n);
    unlink(file);
    rmdir(directory);
    return 0;
}
