/*
 * What a journal costs: bench/journal DIRECTORY [SECONDS]
 *
 *     write     records of 100 bytes per second that one thread gives to it, under each policy; `always` waits for each
 *     groups    `always` from 1 and from 16 threads, side by side in rounds: how much the fsync that serves all who wait is worth
 *     replay    opening a journal of a million such records and reading all of them again
 *
 * DIRECTORY is made, and ought to lie on the disk that is meant; its files are removed.
 */
#include "bench/median.h"

#include "journal.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { VALUE = 100, ROUNDS = 5, MOST_THREADS = 16, REPLAYED = 1000000 };

static const char *directory;

static void
fail(const char *what)
{
    fprintf(stderr, "bench/journal: %s\n", what);
    exit(1);
}

static double
now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void
clear(void)
{
    DIR           *stream = opendir(directory);
    struct dirent *entry;
    char           path[4096];

    while (stream != NULL && (entry = readdir(stream)) != NULL) {
        snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
        unlink(path);
    }
    if (stream != NULL)
        closedir(stream);
}

static struct near__journal *
open_journal(enum near__journal_fsync fsync)
{
    struct near__journal_options options = {
        .directory = directory, .fsync = fsync, .interval = 100 * NEAR_MS, .max_bytes = UINT64_C(1) << 30
    };
    struct near__journal *journal;
    near_error            error;

    if (near__journal_open(&journal, &options, &error) != NEAR_OK)
        fail(error.text);
    return journal;
}

struct writer {
    struct near__journal *journal;
    double                until;
    size_t                n;
};

/* Each is done at once, but in batches, as a store that keeps up would have it. */
static void *
write_until(void *ctx)
{
    struct writer              *writer = ctx;
    static const char           value[VALUE];
    struct near__journal_record record = {
        NEAR__JOURNAL_PUT, near_key("bench"), near_key("key:00000042"), { value, VALUE }
    };
    uint64_t sequences[64];

    while (now() < writer->until) {
        size_t n = 0;

        while (n < 64 && (n == 0 || now() < writer->until)) {
            near_status status = near__journal_write(writer->journal, &record, &sequences[n]);

            if (status == NEAR_ERR_BUSY)
                break; /* more than the disk takes: wait for it */
            if (status != NEAR_OK ||
                near__journal_commit(writer->journal, sequences[n], NEAR_NEVER) != NEAR_OK)
                fail("a write failed");
            n++;
        }
        near__journal_done(writer->journal, sequences, n);
        writer->n += n;
        if (n == 0)
            usleep(1000);
    }
    return NULL;
}

static double
rate(enum near__journal_fsync fsync, size_t threads, double seconds)
{
    struct near__journal *journal = open_journal(fsync);
    struct writer         writers[MOST_THREADS];
    pthread_t             ids[MOST_THREADS];
    double                begun = now(), sum = 0;

    for (size_t i = 0; i < threads; i++) {
        writers[i] = (struct writer){ journal, begun + seconds, 0 };
        if (pthread_create(&ids[i], NULL, write_until, &writers[i]) != 0)
            fail("no thread");
    }
    for (size_t i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        sum += (double)writers[i].n;
    }
    sum /= now() - begun;
    near__journal_close(journal, NULL);
    clear();
    return sum;
}

static void
bench_write(double seconds)
{
    static const char *const names[] = { "always", "interval", "none" };

    for (int fsync = NEAR__FSYNC_ALWAYS; fsync <= NEAR__FSYNC_NONE; fsync++) {
        double rates[ROUNDS];

        for (size_t i = 0; i < ROUNDS; i++)
            rates[i] = rate((enum near__journal_fsync)fsync, 1, seconds / 30);
        printf("write %-10s %10.0f records/s\n", names[fsync], median(rates, ROUNDS));
    }
}

static void
bench_groups(double seconds)
{
    double ones[ROUNDS], manys[ROUNDS], ratios[ROUNDS];

    for (size_t i = 0; i < ROUNDS; i++) {
        ones[i]   = rate(NEAR__FSYNC_ALWAYS, 1, seconds / 20);
        manys[i]  = rate(NEAR__FSYNC_ALWAYS, MOST_THREADS, seconds / 20);
        ratios[i] = manys[i] / ones[i];
    }
    printf("groups 1 thread   %10.0f records/s\n", median(ones, ROUNDS));
    printf("groups 16 threads %10.0f records/s\n", median(manys, ROUNDS));
    printf("groups ratio      %10.1f\n", median(ratios, ROUNDS));
}

static bool
count(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    size_t *n = ctx;

    (void)record, (void)sequence;
    ++*n;
    return true;
}

static void
bench_replay(void)
{
    static const char           value[VALUE];
    struct near__journal_record record = {
        NEAR__JOURNAL_PUT, near_key("bench"), near_key("key:00000042"), { value, VALUE }
    };
    struct near__journal *journal = open_journal(NEAR__FSYNC_NONE);
    uint64_t              sequence;
    size_t                n = 0;
    double                begun, opened, ended;

    for (size_t i = 0; i < REPLAYED; i++) {
        if (near__journal_write(journal, &record, &sequence) != NEAR_OK)
            fail("a write failed");
        if (i % 1024 == 0)
            near__journal_commit(journal, sequence, NEAR_NEVER);
    }
    near__journal_close(journal, NULL);
    begun   = now();
    journal = open_journal(NEAR__FSYNC_NONE);
    opened  = now();
    near__journal_replay(journal, near_key("bench"), 1 << NEAR__JOURNAL_PUT, count, &n);
    ended = now();
    near__journal_close(journal, NULL);
    clear();
    if (n != REPLAYED)
        fail("records are missing");
    printf("replay open       %10.0f records/s\n", (double)n / (opened - begun));
    printf("replay read       %10.0f records/s\n", (double)n / (ended - opened));
    printf("replay both       %10.0f records/s\n", (double)n / (ended - begun));
}

int
main(int argc, char **argv)
{
    double seconds = argc > 2 ? atof(argv[2]) : 20;

    if (argc < 2 || argc > 3 || seconds <= 0) {
        fprintf(stderr, "usage: bench/journal DIRECTORY [SECONDS]\n");
        return 2;
    }
    directory = argv[1];
    bench_write(seconds);
    bench_groups(seconds);
    bench_replay();
    rmdir(directory);
    return 0;
}
