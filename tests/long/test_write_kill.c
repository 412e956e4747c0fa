/*
 * Row 9: kill -9 of a process that writes back with a journal, at random moments and at named points.
 *
 * A child writes, one change after the other, and says through a pipe which are acknowledged.  It is killed; another child opens the
 * same journal, and flushes (it may be killed on the way, too).  The store is a file that both append to.  Then: what was acknowledged is
 * in the store, nothing is there that was not written, and the numbers of a key never go back.
 *
 * The named points are the doors between write-back and its neighbours: the linker puts our wrappers there, so the library has no hooks.
 * The controls take a part of the protection away and must be caught.
 */
#include "harness/long.h"
#include "harness/test.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/client.h"
#include "client/journal.h"
#include "client/store.h"
#include "client/write.h"
#include "nearcache.h"

enum { KEYS = 6, ROUNDS_PER_DIRECTORY = 25 };
enum { BEGUN, ACKNOWLEDGED }; /* in the sequence of rows on the pipe */

/* One line of the store. */
struct row {
    uint32_t key, erased;
    uint64_t n, origin, sequence;
};

/* ---- named points: `left` passages until the end; 0: none */

enum point {
    AT_NOTHING,
    BEFORE_JOURNAL_WRITE,
    AFTER_JOURNAL_WRITE,
    BEFORE_COMMIT,
    AFTER_COMMIT,
    BEFORE_CACHES,
    AFTER_CACHES,
    AFTER_ACKNOWLEDGE,
    BEFORE_SYNC,
    AFTER_SYNC,
    BEFORE_STORE,
    IN_STORE_BEFORE,
    IN_STORE_BETWEEN,
    IN_STORE_AFTER,
    AFTER_STORE,
    BEFORE_DONE,
    AFTER_DONE,
    BEFORE_REPLAY,
    IN_REPLAY,
    POINTS
};

static enum point       point;
static _Atomic unsigned left;
static bool             no_commit, done_early; /* the controls */

static void
pass(enum point here)
{
    if (here == point && atomic_fetch_sub(&left, 1) == 1)
        kill(getpid(), SIGKILL);
}

near_status __real_near__journal_write(struct near__journal *, const struct near__journal_record *,
                                       uint64_t *);
near_status __wrap_near__journal_write(struct near__journal *, const struct near__journal_record *,
                                       uint64_t *);
near_status __real_near__journal_commit(struct near__journal *, uint64_t, int64_t);
near_status __wrap_near__journal_commit(struct near__journal *, uint64_t, int64_t);
near_status __real_near__journal_sync(struct near__journal *, uint64_t, int64_t);
near_status __wrap_near__journal_sync(struct near__journal *, uint64_t, int64_t);
void        __real_near__journal_done(struct near__journal *, const uint64_t *, size_t);
void        __wrap_near__journal_done(struct near__journal *, const uint64_t *, size_t);
near_status __real_near__journal_replay(struct near__journal *, near_bytes, unsigned, near__journal_deliver,
                                        void *);
near_status __wrap_near__journal_replay(struct near__journal *, near_bytes, unsigned, near__journal_deliver,
                                        void *);
near_status __real_near__write_known(near_cache *, near_bytes, near_bytes, const near_put_options *,
                                     uint64_t);
near_status __wrap_near__write_known(near_cache *, near_bytes, near_bytes, const near_put_options *,
                                     uint64_t);
near_status __real_near__store_begin(near_cache *, const struct near__store_item *, size_t, int64_t,
                                     const struct near__store_ending *);
near_status __wrap_near__store_begin(near_cache *, const struct near__store_item *, size_t, int64_t,
                                     const struct near__store_ending *);

near_status
__wrap_near__journal_write(struct near__journal *journal, const struct near__journal_record *record,
                           uint64_t *sequence)
{
    near_status status;

    pass(BEFORE_JOURNAL_WRITE);
    status = __real_near__journal_write(journal, record, sequence);
    pass(AFTER_JOURNAL_WRITE);
    return status;
}

near_status
__wrap_near__journal_commit(struct near__journal *journal, uint64_t sequence, int64_t deadline)
{
    near_status status;

    pass(BEFORE_COMMIT);
    status = no_commit ? NEAR_OK : __real_near__journal_commit(journal, sequence, deadline);
    pass(AFTER_COMMIT);
    return status;
}

near_status
__wrap_near__journal_sync(struct near__journal *journal, uint64_t sequence, int64_t deadline)
{
    near_status status;

    pass(BEFORE_SYNC);
    status = no_commit ? NEAR_OK : __real_near__journal_sync(journal, sequence, deadline);
    pass(AFTER_SYNC);
    return status;
}

void
__wrap_near__journal_done(struct near__journal *journal, const uint64_t *sequences, size_t n)
{
    pass(BEFORE_DONE);
    __real_near__journal_done(journal, sequences, n);
    pass(AFTER_DONE);
}

near_status
__wrap_near__write_known(near_cache *cache, near_bytes key, near_bytes data, const near_put_options *options,
                         uint64_t stamp)
{
    near_status status;

    pass(BEFORE_CACHES);
    status = __real_near__write_known(cache, key, data, options, stamp);
    pass(AFTER_CACHES);
    return status;
}

near_status
__wrap_near__store_begin(near_cache *cache, const struct near__store_item *items, size_t n, int64_t deadline,
                         const struct near__store_ending *ending)
{
    near_status status;

    for (size_t i = 0; done_early && i < n; i++)
        __real_near__journal_done(cache->journal, &items[i].sequence, 1);
    if (done_early)
        near__journal_tick(cache->journal);
    pass(BEFORE_STORE);
    status = __real_near__store_begin(cache, items, n, deadline, ending);
    pass(AFTER_STORE);
    return status;
}

struct delivering {
    near__journal_deliver deliver;
    void                 *ctx;
};

static bool
deliver_one(void *ctx, const struct near__journal_record *record, uint64_t sequence)
{
    struct delivering *delivering = ctx;

    pass(IN_REPLAY);
    return delivering->deliver(delivering->ctx, record, sequence);
}

near_status
__wrap_near__journal_replay(struct near__journal *journal, near_bytes cache, unsigned kinds,
                            near__journal_deliver deliver, void *ctx)
{
    struct delivering delivering = { deliver, ctx };

    pass(BEFORE_REPLAY);
    return __real_near__journal_replay(journal, cache, kinds, deliver_one, &delivering);
}

/* ---- the store */

static void
append(near_write *writes[], size_t n, void *ctx)
{
    int fd = *(int *)ctx;

    pass(IN_STORE_BEFORE);
    for (size_t i = 0; i < n; i++) {
        near_bytes key = near_write_key(writes[i]), data = near_write_data(writes[i]);
        struct row row = { .erased   = data.data == NULL,
                           .origin   = near_write_origin(writes[i]),
                           .sequence = near_write_sequence(writes[i]) };

        memcpy(&row.key, key.data, sizeof(row.key));
        if (data.data != NULL)
            memcpy(&row.n, data.data, sizeof(row.n));
        if (write(fd, &row, sizeof(row)) != sizeof(row))
            _exit(9);
        if (i == 0)
            pass(IN_STORE_BETWEEN);
    }
    pass(IN_STORE_AFTER);
    for (size_t i = 0; i < n; i++)
        near_write_done(writes[i]);
}

/* ---- a life */

struct world {
    char        directory[64];
    const char *fsync, *coalesce;
    uint64_t    random;
    uint64_t    issued[KEYS]; /* the newest number of a key, of a change that was begun */
    uint64_t    holds[KEYS];  /* what the store must hold by what was acknowledged; 0: nothing */
    uint64_t    may[KEYS];    /* what it may hold by what was only begun */
    uint64_t    lost, phantoms, misordered;
};

static near_status
open_life(const struct world *w, near_client **client, near_cache **cache, int *fd)
{
    char         path[96];
    near_config *config = near_config_new();
    near_error   error;
    near_status  status;

    snprintf(path, sizeof(path), "%s/store", w->directory);
    *fd = open(path, O_WRONLY | O_APPEND | O_CREAT, 0600);
    snprintf(path, sizeof(path), "%s/journal", w->directory);
    near_config_set(config, "l2.uri", "none:", NULL);
    near_config_set(config, "write.policy", "back", NULL);
    near_config_set(config, "write_back.interval", "1ms", NULL);
    near_config_set(config, "write_back.batch", "4", NULL);
    near_config_set(config, "write_back.journal", path, NULL);
    near_config_set(config, "write_back.journal_max_bytes", "1MiB", NULL);
    near_config_set(config, "write_back.fsync", w->fsync, NULL);
    near_config_set(config, "write_back.coalesce", w->coalesce, NULL);
    status = near_client_open(config, client, &error);
    if (status == NEAR_OK)
        status = near_cache_open(*client, "orders", NULL, cache, &error);
    if (status != NEAR_OK)
        fprintf(stderr, "%s\n", error.text);
    near_config_free(config);
    return status;
}

static _Noreturn void
live(const struct world *w, int pipe_fd)
{
    struct world mine = *w;
    near_client *client;
    near_cache  *cache;
    int          fd;

    if (open_life(w, &client, &cache, &fd) != NEAR_OK)
        _exit(8);
    near_cache_set_store(cache, append, &fd);
    for (;;) {
        uint32_t   key   = (uint32_t)(test_random(&mine.random) % KEYS);
        uint64_t   n     = ++mine.issued[key];
        bool       erase = test_random(&mine.random) % 8 == 0;
        near_bytes name  = { &key, sizeof(key) };
        struct row row   = { .key = key, .erased = erase, .n = n, .sequence = BEGUN };

        if (write(pipe_fd, &row, sizeof(row)) != sizeof(row))
            _exit(6);
        row.sequence = ACKNOWLEDGED;
        if ((erase ? near_erase(cache, name)
                   : near_update(cache, name, (near_bytes){ &n, sizeof(n) }, NULL)) != NEAR_OK)
            _exit(7);
        if (write(pipe_fd, &row, sizeof(row)) != sizeof(row))
            _exit(6);
        pass(AFTER_ACKNOWLEDGE);
    }
}

static _Noreturn void
recover(const struct world *w)
{
    near_client *client;
    near_cache  *cache;
    near_error   error;
    int          fd;

    if (open_life(w, &client, &cache, &fd) != NEAR_OK)
        _exit(8);
    near_cache_set_store(cache, append, &fd);
    if (near_flush(client, 20000) != NEAR_OK)
        _exit(7);
    if (near_client_close(client, &error) != NEAR_OK)
        _exit(6);
    _exit(0);
}

static void
choose_point(struct world *w, bool named, enum point first, enum point last)
{
    point = AT_NOTHING;
    if (!named)
        return;
    point = first + (enum point)(test_random(&w->random) % (uint64_t)(last - first + 1));
    left  = 1 + (unsigned)(test_random(&w->random) % 12);
}

static void
take_acknowledgements(struct world *w, int fd)
{
    struct row row;

    while (read(fd, &row, sizeof(row)) == sizeof(row)) {
        uint64_t value = row.erased ? 0 : row.n;

        w->issued[row.key] = row.n;
        w->may[row.key]    = value;
        if (row.sequence == ACKNOWLEDGED)
            w->holds[row.key] = value;
    }
}

/* A child that writes and is killed. */
static void
write_and_kill(struct world *w, bool named)
{
    int64_t us = (int64_t)(test_random(&w->random) % 6000);
    int     fds[2], status;
    pid_t   child;

    assert_int_equal(pipe(fds), 0);
    fcntl(fds[1], F_SETPIPE_SZ, 1 << 20); /* so that nobody waits for the reader */
    choose_point(w, named, BEFORE_JOURNAL_WRITE, AFTER_DONE);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(fds[0]);
        live(w, fds[1]);
    }
    close(fds[1]);
    if (point == AT_NOTHING) {
        nanosleep(&(struct timespec){ 0, (long)us * 1000 }, NULL);
        kill(child, SIGKILL);
    }
    take_acknowledgements(w, fds[0]);
    close(fds[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status))
        fail_msg("the child ended by itself: %d", WEXITSTATUS(status));
}

static bool
recover_once(struct world *w, bool may_die, bool named)
{
    int64_t us = (int64_t)(test_random(&w->random) % 4000);
    pid_t   child;
    int     status;

    choose_point(w, may_die && named, BEFORE_SYNC, IN_REPLAY);
    child = fork();
    assert_true(child >= 0);
    if (child == 0)
        recover(w);
    if (may_die && point == AT_NOTHING) {
        nanosleep(&(struct timespec){ 0, (long)us * 1000 }, NULL);
        kill(child, SIGKILL);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
        fail_msg("recovery ended with %d", WEXITSTATUS(status));
    return WIFEXITED(status);
}

/* ---- what the store has */

static void
check_store(struct world *w)
{
    struct row row, last[KEYS];
    char       path[96];
    FILE      *file;

    memset(last, 0, sizeof(last));
    snprintf(path, sizeof(path), "%s/store", w->directory);
    file = fopen(path, "r");
    assert_non_null(file);
    while (fread(&row, sizeof(row), 1, file) == 1) {
        struct row *before = &last[row.key];

        assert_in_range(row.key, 0, KEYS - 1);
        /* by its own number a store knows what it has: what is not newer it may leave out.  Where changes coalesce nothing older comes
         * at all. */
        if (before->origin == row.origin && row.sequence < before->sequence) {
            w->misordered += strcmp(w->coalesce, "yes") == 0;
            continue;
        }
        w->misordered += before->origin == row.origin && before->sequence < row.sequence && !row.erased &&
                         row.n < before->n;
        row.n   = row.erased ? before->n : row.n;
        *before = row;
    }
    fclose(file);
    for (unsigned i = 0; i < KEYS; i++) {
        uint64_t value = last[i].erased ? 0 : last[i].n;

        w->phantoms += value > w->issued[i];
        w->lost += value <= w->issued[i] && value != w->holds[i] && value != w->may[i];
        w->holds[i] = w->may[i] = value;
    }
}

static void
directory_make(struct world *w)
{
    snprintf(w->directory, sizeof(w->directory), "/dev/shm/write_kill_XXXXXX");
    if (strcmp(w->fsync, "always") == 0 || access("/dev/shm", W_OK) != 0)
        snprintf(w->directory, sizeof(w->directory), "/tmp/write_kill_XXXXXX");
    assert_non_null(mkdtemp(w->directory));
    memset(w->issued, 0, sizeof(w->issued));
    memset(w->holds, 0, sizeof(w->holds));
    memset(w->may, 0, sizeof(w->may));
}

static void
directory_drop(const struct world *w)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", w->directory);
    assert_int_equal(system(command), 0);
}

static size_t
kill_rounds(struct world *w, size_t rounds)
{
    int64_t until = test_budget_ends();
    size_t  round = 0;

    for (; round < rounds && test_now_ms() < until; round++) {
        if (round % ROUNDS_PER_DIRECTORY == 0) {
            if (round > 0)
                directory_drop(w);
            w->fsync    = round / ROUNDS_PER_DIRECTORY % 4 == 3 ? "always" : "none";
            w->coalesce = round / ROUNDS_PER_DIRECTORY % 2 == 1 ? "no" : "yes";
            directory_make(w);
        }
        write_and_kill(w, round % 2 == 1);
        if (round % 3 == 0)
            recover_once(w, true, round % 2 == 0);
        assert_true(recover_once(w, false, false));
        check_store(w);
    }
    if (round > 0)
        directory_drop(w);
    return round;
}

static void
test_G7_nothing_acknowledged_is_lost(void **state)
{
    struct world w      = { .random = (uint64_t)test_now_ms() };
    uint64_t     seed   = w.random;
    size_t       rounds = test_sized(40, 5000, 100000), done;

    (void)state;
    done = kill_rounds(&w, rounds);
    print_message("%zu of %zu kills (seed %llu): %llu lost, %llu phantoms, %llu out of order\n", done, rounds,
                  (unsigned long long)seed, (unsigned long long)w.lost, (unsigned long long)w.phantoms,
                  (unsigned long long)w.misordered);
    assert_int_equal(w.lost, 0);
    assert_int_equal(w.phantoms, 0);
    assert_int_equal(w.misordered, 0);
}

/* ---- controls */

static uint64_t
lost_in(struct world *w, enum point where, size_t rounds)
{
    w->fsync    = "none";
    w->coalesce = "yes";
    for (size_t round = 0; round < rounds && w->lost == 0; round++) {
        int   fds[2], status;
        pid_t child;

        directory_make(w);
        assert_int_equal(pipe(fds), 0);
        point = where;
        left  = 3;
        child = fork();
        if (child == 0) {
            close(fds[0]);
            live(w, fds[1]);
        }
        close(fds[1]);
        take_acknowledgements(w, fds[0]);
        close(fds[0]);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        assert_true(recover_once(w, false, false));
        check_store(w);
        directory_drop(w);
    }
    return w->lost;
}

static void
test_control_without_the_journals_disk(void **state)
{
    struct world w = { .random = 1 };

    (void)state;
    no_commit = true;
    assert_true(lost_in(&w, AFTER_ACKNOWLEDGE, 20) > 0);
    no_commit = false;
    w.lost    = 0;
    assert_int_equal(lost_in(&w, AFTER_ACKNOWLEDGE, 3), 0);
}

static void
test_control_done_before_it_is_stored(void **state)
{
    struct world w = { .random = 1 };

    (void)state;
    done_early = true;
    assert_true(lost_in(&w, IN_STORE_BEFORE, 20) > 0);
    done_early = false;
    w.lost     = 0;
    assert_int_equal(lost_in(&w, IN_STORE_BEFORE, 3), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_G7_nothing_acknowledged_is_lost),
        cmocka_unit_test(test_control_without_the_journals_disk),
        cmocka_unit_test(test_control_done_before_it_is_stored),
    };

    signal(SIGPIPE, SIG_IGN);
    return TEST_MAIN(tests, NULL, NULL);
}
