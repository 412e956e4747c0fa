/* The scheduler and the loader pool: what runs, when, where, and what is left when they stop. */
#include "harness/test.h"

#include "client/scheduler.h"
#include "client/workers.h"

#include <dirent.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Threads of this process with that name. */
static unsigned
threads_named(const char *name)
{
    DIR           *directory = opendir("/proc/self/task");
    struct dirent *entry;
    unsigned       n = 0;
    char           path[300], text[32];

    while (directory != NULL && (entry = readdir(directory)) != NULL) {
        FILE *file;

        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
        file = fopen(path, "r");
        if (file == NULL)
            continue;
        if (fgets(text, sizeof(text), file) != NULL) {
            text[strcspn(text, "\n")] = '\0';
            n += strcmp(text, name) == 0;
        }
        fclose(file);
    }
    closedir(directory);
    return n;
}

/* ---- scheduler */

static struct near__scheduler scheduler;

static int
open_scheduler(void **state)
{
    (void)state;
    near__scheduler_init(&scheduler);
    return 0;
}

static int
close_scheduler(void **state)
{
    (void)state;
    near__scheduler_stop(&scheduler);
    near__scheduler_fini(&scheduler);
    return 0;
}

static int64_t
in_ms(int64_t ms)
{
    return near__time_after(near__now(&near__clock_system), ms * NEAR_MS);
}

struct seen {
    struct near__timer timer;
    _Atomic unsigned  *order;
    _Atomic unsigned   place, runs;
    _Atomic bool       early, signals_open;
    int64_t            due;
};

static void
see(void *ctx)
{
    struct seen *seen = ctx;
    sigset_t     mask;

    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    seen->signals_open = !sigismember(&mask, SIGTERM) || !sigismember(&mask, SIGUSR1);
    seen->early        = near__now(&near__clock_system) < seen->due;
    seen->place        = seen->order != NULL ? (*seen->order)++ : 0;
    seen->runs++;
}

static int
has_run(void *ctx)
{
    return ((struct seen *)ctx)->runs > 0;
}

static void
timers_run_in_the_order_of_their_times(void **state)
{
    enum { N = 200 };
    static struct seen seen[N];
    _Atomic unsigned   order = 0;
    int64_t            base  = in_ms(30);
    uint64_t           dice  = 1;
    bool               gone[N];

    (void)state;
    assert_int_equal(threads_named("near-scheduler"), 0); /* none before the first timer */
    for (size_t i = 0; i < N; i++) {
        seen[i]     = (struct seen){ .order = &order };
        seen[i].due = base + (int64_t)(test_random(&dice) % 50) * NEAR_MS;
        near__timer_init(&seen[i].timer, see, &seen[i]);
        assert_int_equal(near__timer_arm(&scheduler, &seen[i].timer, seen[i].due), NEAR_OK);
    }
    assert_int_equal(threads_named("near-scheduler"), 1);
    for (size_t i = 0; i < N; i++) {
        gone[i] = i % 7 == 0;
        if (gone[i])
            near__timer_disarm(&scheduler, &seen[i].timer);
    }
    for (size_t i = 0; i < N; i++)
        if (!gone[i])
            assert_true(test_wait_for(has_run, &seen[i], 5000 * test_slack()));
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(seen[i].runs, gone[i] ? 0 : 1);
        assert_false(seen[i].early);
        assert_false(seen[i].signals_open);
        for (size_t j = 0; j < N && !gone[i]; j++)
            if (!gone[j] && seen[i].due < seen[j].due)
                assert_true(seen[i].place < seen[j].place);
    }
}

static int
has_run_thrice(void *ctx)
{
    return ((struct seen *)ctx)->runs >= 3;
}

static void
a_periodic_timer_runs_until_it_is_disarmed(void **state)
{
    struct seen seen = { .order = NULL };
    unsigned    runs;

    (void)state;
    near__timer_init(&seen.timer, see, &seen);
    assert_int_equal(near__timer_every(&scheduler, &seen.timer, 2 * NEAR_MS), NEAR_OK);
    assert_true(test_wait_for(has_run_thrice, &seen, 5000 * test_slack()));
    near__timer_disarm(&scheduler, &seen.timer);
    runs = seen.runs;
    assert_int_equal(near__timer_arm(&scheduler, &seen.timer, in_ms(3600 * 1000)), NEAR_OK);
    assert_int_equal(near__timer_arm_by(&scheduler, &seen.timer, in_ms(7200 * 1000)),
                     NEAR_OK); /* not later */
    assert_true(seen.timer.when < in_ms(3700 * 1000));
    assert_int_equal(near__timer_arm_by(&scheduler, &seen.timer, in_ms(10)), NEAR_OK); /* but sooner */
    assert_true(seen.timer.when < in_ms(3000 * 1000));
    near__timer_disarm(&scheduler, &seen.timer);
    assert_true(seen.runs <= runs + 1);
}

struct slow {
    struct near__timer timer;
    sem_t              inside;
    _Atomic bool       out;
};

static void
be_slow(void *ctx)
{
    struct slow *slow = ctx;

    sem_post(&slow->inside);
    nanosleep(&(struct timespec){ 0, 30 * NEAR_MS }, NULL);
    slow->out = true;
}

/* Whoever disarms may free what the function uses. */
static void
disarming_waits_for_the_function(void **state)
{
    struct slow slow = { .out = false };

    (void)state;
    sem_init(&slow.inside, 0, 0);
    near__timer_init(&slow.timer, be_slow, &slow);
    assert_int_equal(near__timer_arm(&scheduler, &slow.timer, 0), NEAR_OK);
    sem_wait(&slow.inside);
    near__timer_disarm(&scheduler, &slow.timer);
    assert_true(slow.out);
    near__scheduler_stop(&scheduler);
    assert_int_equal(threads_named("near-scheduler"), 0);
    assert_int_equal(near__timer_arm(&scheduler, &slow.timer, 0), NEAR_ERR_CLOSED);
    sem_destroy(&slow.inside);
}

/* ---- loader pool */

struct task {
    struct near__job job;
    sem_t           *hold; /* what it waits for */
    _Atomic unsigned runs, cancels;
};

static void
do_task(struct near__job *job, bool cancelled)
{
    struct task *task = (struct task *)job;

    if (cancelled) {
        task->cancels++;
        return;
    }
    if (task->hold != NULL)
        sem_wait(task->hold);
    task->runs++;
}

static void
the_pool_runs_each_job_once_on_few_threads(void **state)
{
    enum { N = 1000 };
    static struct task    tasks[N];
    struct near__workers *workers = near__workers_new(3);

    (void)state;
    assert_non_null(workers);
    assert_int_equal(threads_named("near-loader"), 0);
    memset(tasks, 0, sizeof(tasks));
    for (size_t i = 0; i < N; i++) {
        tasks[i].job.fn = do_task;
        assert_int_equal(near__workers_submit(workers, &tasks[i].job), NEAR_OK);
    }
    assert_in_range(threads_named("near-loader"), 1, 3);
    assert_int_equal(near__workers_stop(workers, NEAR_NEVER), 0);
    for (size_t i = 0; i < N; i++)
        assert_int_equal(tasks[i].runs + tasks[i].cancels, 1);
    assert_int_equal(near__workers_submit(workers, &tasks[0].job), NEAR_ERR_CLOSED);
    assert_int_equal(threads_named("near-loader"), 0);
    near__workers_free(&workers);
}

static int
no_loader_threads(void *ctx)
{
    (void)ctx;
    return threads_named("near-loader") == 0;
}

/* A job that hangs does not hang the close: the rest is cancelled, and the pool's memory outlives the thread. */
static void
stopping_is_bounded_when_a_job_hangs(void **state)
{
    static sem_t          hold;
    static struct task    hung, rest;
    struct near__workers *workers = near__workers_new(1);
    int64_t               began   = test_now_ms();

    (void)state;
    sem_init(&hold, 0, 0);
    hung = (struct task){ .job.fn = do_task, .hold = &hold };
    rest = (struct task){ .job.fn = do_task };
    assert_int_equal(near__workers_submit(workers, &hung.job), NEAR_OK);
    assert_int_equal(near__workers_submit(workers, &rest.job), NEAR_OK);
    nanosleep(&(struct timespec){ 0, 20 * NEAR_MS }, NULL); /* the first one is taken */
    assert_int_equal(near__workers_stop(workers, in_ms(50)), 1);
    assert_true(test_now_ms() - began < 2000 * (int64_t)test_slack());
    near__workers_free(&workers);
    assert_int_equal(rest.runs, 0);
    assert_int_equal(rest.cancels, 1);
    sem_post(&hold);
    assert_true(test_wait_for(no_loader_threads, NULL, 5000 * test_slack()));
    assert_int_equal(hung.runs, 1);
    sem_destroy(&hold);
}

/* ---- a loader that fetches what only the pool can load */

struct nest {
    near_cache      *cache;
    _Atomic unsigned inner_asked, outer_runs;
};

static void
load_nested(near_load *loads[], size_t n, void *ctx)
{
    struct nest *nest = ctx;

    for (size_t i = 0; i < n; i++) {
        near_value *inner = NULL;

        if (near_load_key(loads[i]).size == strlen("outer")) {
            atomic_store(&nest->outer_runs, 1);
            while (atomic_load(&nest->inner_asked) ==
                   0) /* by another caller, whose plan waits for this pool */
                usleep(1000);
            usleep(50000);
            near_value_release(near_fetch(nest->cache, near_key("i"), NULL, &inner) == NEAR_OK ? inner
                                                                                               : NULL);
        }
        near_load_set(loads[i], near_key("x"));
    }
}

static void *
fetch_inner(void *ctx)
{
    struct nest       *nest    = ctx;
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;
    near_value        *value   = NULL;

    options.timeout_ms = 20000;
    while (atomic_load(&nest->outer_runs) == 0)
        usleep(1000);
    atomic_store(&nest->inner_asked, 1);
    if (near_fetch(nest->cache, near_key("i"), &options, &value) == NEAR_OK)
        near_value_release(value);
    return NULL;
}

static void
a_nested_fetch_does_not_starve_the_pool(void **state)
{
    near_config       *config  = near_config_new();
    near_fetch_options options = NEAR_FETCH_OPTIONS_INIT;
    struct nest        nest    = { .cache = NULL };
    near_client       *client;
    near_value        *value = NULL;
    pthread_t          other;

    (void)state;
    assert_int_equal(near_config_set(config, "l2.uri", "none:", NULL), NEAR_OK);
    assert_int_equal(near_config_set(config, "loader.threads", "1", NULL), NEAR_OK);
    assert_int_equal(near_client_open(config, &client, NULL), NEAR_OK);
    assert_int_equal(near_cache_open(client, "c", NULL, &nest.cache, NULL), NEAR_OK);
    near_cache_set_loader(nest.cache, load_nested, &nest);
    assert_int_equal(pthread_create(&other, NULL, fetch_inner, &nest), 0);
    options.timeout_ms = 10000; /* with a deadline the loader runs in the pool: its only thread */
    assert_int_equal(near_fetch(nest.cache, near_key("outer"), &options, &value), NEAR_OK);
    near_value_release(value);
    pthread_join(other, NULL);
    near_cache_close(nest.cache);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
    near_config_free(config);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(timers_run_in_the_order_of_their_times, open_scheduler,
                                        close_scheduler),
        cmocka_unit_test_setup_teardown(a_periodic_timer_runs_until_it_is_disarmed, open_scheduler,
                                        close_scheduler),
        cmocka_unit_test_setup_teardown(disarming_waits_for_the_function, open_scheduler, close_scheduler),
        cmocka_unit_test(the_pool_runs_each_job_once_on_few_threads),
        cmocka_unit_test(stopping_is_bounded_when_a_job_hangs),
        cmocka_unit_test(a_nested_fetch_does_not_starve_the_pool),
    };
    return TEST_MAIN(tests, NULL, NULL);
}
