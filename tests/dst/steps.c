/* See steps.h. */
#undef _FORTIFY_SOURCE /* its longjmp(3) knows one stack */
#include "dst/steps.h"

#include <errno.h>
#include <link.h>
#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>

#include "base/lock.h"
#include "base/thread.h"
#include "l1/hazard.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#include <sanitizer/common_interface_defs.h>
#endif
#endif

enum {
    STACK       = 256 << 10,
    COARSE_STEP = 4000000, /* ns: what the coarse clock is late by at most */
    FAIR_AFTER  = 4000,    /* steps that one task may take in a row while others could */
    LOCALS      = 512
};

/* Where a task was left.  swapcontext(3) asks the kernel for the signal mask each time, which would be most of a switch: so it begins
 * tasks, and from then on they are left and entered by setjmp(3).  Except where AddressSanitizer watches the latter. */
struct place {
    ucontext_t context;
    jmp_buf    jump;
    bool       jumped;
};

struct task {
    struct place place;
    char        *stack; /* kept for later runs, and in reach: a world that hung lies on it */
    void (*run)(void *);
    void *(*thread)(void *);
    void       *ctx;
    const void *channel;  /* not NULL: waits there */
    int64_t     deadline; /* of the wait */
    unsigned    group;
    unsigned    priority;
    unsigned    in_row;
    bool        used, done, late;
    uint8_t     locals[LOCALS]; /* the program's thread-local variables, while others run */
};

static struct {
    bool         running, calm;
    uint64_t     random;
    int64_t      now, began;
    struct task *current;
    size_t       tasks;       /* the highest used, plus one */
    bool         by_priority; /* how this run chooses: by priorities that change now and then, or by lots */
    uint64_t     stay;        /* lots: of 16, how often nobody else is asked */
    uint64_t     jump;        /* one in so many steps, time goes on to the next deadline */
    int64_t      frozen[8];
    struct steps_result result;
} now_;
#define S now_

static struct task  tasks[STEPS_TASKS];
static struct place outside;

/* ---- lots */

static uint64_t
draw(void)
{
    uint64_t z = S.random += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

uint64_t
step_random(uint64_t below)
{
    return below < 2 ? 0 : draw() % below;
}

void
steps_violation(const char *format, ...)
{
    va_list args;

    if (S.result.violations++ > 0)
        return;
    va_start(args, format);
    vsnprintf(S.result.violation, sizeof(S.result.violation), format, args);
    va_end(args);
}

/* ---- switching */

static struct {
    uint8_t *at;
    size_t   size;
} locals;

static int
find_locals(struct dl_phdr_info *info, size_t size, void *ctx)
{
    (void)size;
    (void)ctx;
    if (info->dlpi_tls_modid != 1) /* the program itself; the library is part of it */
        return 0;
    locals.at = info->dlpi_tls_data;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS)
            locals.size = info->dlpi_phdr[i].p_memsz;
    return 1;
}

/* Tasks are threads to the library: each has its thread-local variables.  But for the record of hazard slots, which is given back when a
 * real thread ends: any number of tasks can share one. */
static void
exchange_locals(struct task *from, struct task *to)
{
    struct near__reader *reader = near__reader_mine;

    memcpy(from->locals, locals.at, locals.size);
    memcpy(locals.at, to->locals, locals.size);
    near__reader_mine = reader;
}

#ifdef __SANITIZE_ADDRESS__
static void
switch_to(struct place *from, struct place *to, const void *stack, size_t size, bool for_good)
{
    void *fake = NULL;

    __sanitizer_start_switch_fiber(for_good ? NULL : &fake, stack, size);
    swapcontext(&from->context, &to->context);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
}
#else
static void
switch_to(struct place *from, struct place *to, const void *stack, size_t size, bool for_good)
{
    (void)stack;
    (void)size;
    (void)for_good;
    from->jumped = true;
    if (_setjmp(from->jump) != 0)
        return;
    if (to->jumped)
        _longjmp(to->jump, 1);
    setcontext(&to->context);
}
#endif

static char  *outer_stack;
static size_t outer_size;

static void
leave(void)
{
    switch_to(&S.current->place, &outside, outer_stack, outer_size, S.current->done);
}

static void
go_on_with(struct task *task)
{
    struct task *before = S.current;

    if (task == before)
        return;
    S.current = task;
    S.result.switches++;
    exchange_locals(before, task);
    switch_to(&before->place, &task->place, task->stack, STACK, before->done);
}

static bool
is_ready(const struct task *task)
{
    return task->used && !task->done && task->channel == NULL && S.frozen[task->group] <= S.now;
}

/* Waits that are over. */
static void
look_at_deadlines(void)
{
    for (size_t i = 0; i < S.tasks; i++)
        if (tasks[i].used && tasks[i].channel != NULL && tasks[i].deadline <= S.now) {
            tasks[i].channel = NULL;
            tasks[i].late    = true;
        }
}

/* The next moment at which something happens by itself; NEAR_NEVER. */
static int64_t
next_moment(void)
{
    int64_t next = NEAR_NEVER;

    for (size_t i = 0; i < S.tasks; i++) {
        int64_t when;

        if (!tasks[i].used || tasks[i].done)
            continue;
        when = tasks[i].channel != NULL ? tasks[i].deadline : S.now;
        if (when != NEAR_NEVER && when < S.frozen[tasks[i].group])
            when = S.frozen[tasks[i].group];
        if (when > S.now && when < next)
            next = when;
    }
    return next;
}

static struct task *
choose_from(struct task **ready, size_t n)
{
    struct task *best = ready[0];

    if (!S.by_priority || S.calm)
        return ready[step_random(n)];
    for (size_t i = 1; i < n; i++)
        if (ready[i]->priority > best->priority)
            best = ready[i];
    return best;
}

static struct task *
choose(void)
{
    struct task *ready[STEPS_TASKS];
    size_t       n = 0;

    for (;;) {
        look_at_deadlines();
        for (size_t i = 0; i < S.tasks; i++)
            if (is_ready(&tasks[i]))
                ready[n++] = &tasks[i];
        if (n > 0)
            return choose_from(ready, n);
        if (next_moment() == NEAR_NEVER)
            return NULL;
        S.now = next_moment();
    }
}

static void
give_up(const char *why)
{
    S.result.hung = true;
    steps_violation("%s", why);
    leave();
    abort(); /* nobody comes back here */
}

static void
pass_on(void)
{
    struct task *next = choose();

    if (next == NULL)
        give_up("everybody waits for somebody");
    next->in_row    = 0;
    S.result.digest = (S.result.digest ^ (uint64_t)(next - tasks)) * UINT64_C(0x100000001B3);
    go_on_with(next);
}

void
step_point(void)
{
    struct task *self = S.current;

    if (!S.running)
        return;
    if (++S.result.steps > STEPS_MOST)
        give_up("it does not end");
    S.now += 100 + (int64_t)step_random(2000);
    if (S.calm)
        return;
    if (S.jump > 0 && step_random(S.jump) == 0 && next_moment() != NEAR_NEVER)
        S.now = next_moment();
    if (S.by_priority) {
        if (step_random(24) == 0 || ++self->in_row > FAIR_AFTER) /* others' turn */
            self->priority = (unsigned)draw() >> 1;
        pass_on();
    } else if (S.frozen[self->group] > S.now || step_random(16) >= S.stay) {
        pass_on();
    }
}

bool
step_wait(const void *channel, int64_t deadline)
{
    struct task *self = S.current;

    if (deadline <= S.now) {
        step_point();
        return false;
    }
    self->channel  = channel;
    self->deadline = deadline;
    self->late     = false;
    pass_on();
    return !self->late;
}

void
step_wake(const void *channel)
{
    for (size_t i = 0; i < S.tasks; i++)
        if (tasks[i].used && tasks[i].channel == channel)
            tasks[i].channel = NULL;
}

void
step_sleep(int64_t ns)
{
    step_wait(&S.current->used, near__time_after(S.now, ns));
}

int64_t
step_now(void)
{
    return S.now;
}

void
step_jump(int64_t ns)
{
    S.now += ns;
}

unsigned
step_self(void)
{
    return (unsigned)(S.current - tasks);
}

unsigned
step_group(void)
{
    return S.current->group;
}

void
step_enter(unsigned group)
{
    S.current->group = group;
}

void
step_freeze(unsigned group, int64_t until)
{
    S.frozen[group] = until;
}

void
step_calm(bool calm)
{
    S.calm = calm;
}

bool
steps_running(void)
{
    return S.running;
}

/* ---- tasks */

static void
begin(void)
{
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t      size;

    __sanitizer_finish_switch_fiber(NULL, &bottom, &size);
    if (S.current == &tasks[0]) {
        outer_stack = (char *)(uintptr_t)bottom;
        outer_size  = size;
    }
#endif
    if (S.current->thread != NULL)
        S.current->thread(S.current->ctx);
    else
        S.current->run(S.current->ctx);
    S.current->done = true;
    step_wake(&S.current->done);
    if (S.current == &tasks[0])
        leave();
    pass_on();
    abort(); /* a task that is done is not chosen */
}

static struct task *
new_task(void)
{
    size_t i = 0;

    while (i < STEPS_TASKS && tasks[i].used)
        i++;
    if (i == STEPS_TASKS)
        return NULL;
    if (i >= S.tasks)
        S.tasks = i + 1;
    if (tasks[i].stack == NULL)
        tasks[i].stack = malloc(STACK);
    return tasks[i].stack != NULL ? &tasks[i] : NULL;
}

static void
prepare(struct task *task)
{
    getcontext(&task->place.context);
    task->place.context.uc_stack.ss_sp   = task->stack;
    task->place.context.uc_stack.ss_size = STACK;
    task->place.context.uc_link          = NULL;
    makecontext(&task->place.context, begin, 0);
}

static struct task *
spawn(void (*run)(void *), void *(*thread)(void *), void *ctx, unsigned group)
{
    struct task *task = new_task();
    char        *stack;

    if (task == NULL)
        return NULL;
    stack      = task->stack;
    *task      = (struct task){ .stack = stack, .run = run, .thread = thread, .ctx = ctx, .group = group };
    task->used = true;
    task->priority = (unsigned)draw() >> 1;
    prepare(task);
    return task;
}

void
step_spawn(void (*run)(void *ctx), void *ctx, unsigned group)
{
    if (spawn(run, NULL, ctx, group) == NULL)
        steps_violation("too many tasks");
}

/* Stacks of a world that was left as it lies are not used again: it may be in the middle of anything. */
static void
forget_tasks(bool hung)
{
    for (size_t i = 0; i < STEPS_TASKS; i++) {
        static char  *kept[64 * STEPS_TASKS];
        static size_t n;

        if (hung && tasks[i].used && n < sizeof(kept) / sizeof(kept[0])) {
            kept[n++]      = tasks[i].stack;
            tasks[i].stack = NULL;
        }
        tasks[i].used = false;
    }
}

void
steps_run(uint64_t seed, void (*body)(void *ctx), void *ctx, struct steps_result *result)
{
    memset(&S, 0, sizeof(S));
    S.random        = seed * UINT64_C(0xD1342543DE82EF95) + 1;
    S.began         = INT64_C(1000) * 1000 * NEAR_MS;
    S.now           = S.began;
    S.result.digest = UINT64_C(0xCBF29CE484222325);
    S.by_priority   = draw() % 3 == 0;
    S.stay          = draw() % 16;
    S.jump          = draw() % 4 == 0 ? 0 : 200 + draw() % 2000;
    S.running       = true;
    S.current       = spawn(body, NULL, ctx, STEPS_NOBODY);
    dl_iterate_phdr(find_locals, NULL);
    if (locals.size > LOCALS)
        abort();
    switch_to(&outside, &S.current->place, S.current->stack, STACK, false);
    S.running = false;
    forget_tasks(S.result.hung);
    S.result.ended = S.now - S.began;
    *result        = S.result;
}

/* ---- what the code under test gets instead of the system */

void        __real_near__lock(struct near__lock *lock);
void        __wrap_near__lock(struct near__lock *lock);
void        __real_near__unlock(struct near__lock *lock);
void        __wrap_near__unlock(struct near__lock *lock);
bool        __real_near__cond_wait(pthread_cond_t *cond, struct near__lock *lock, int64_t deadline);
bool        __wrap_near__cond_wait(pthread_cond_t *cond, struct near__lock *lock, int64_t deadline);
int         __real_pthread_cond_signal(pthread_cond_t *cond);
int         __wrap_pthread_cond_signal(pthread_cond_t *cond);
int         __real_pthread_cond_broadcast(pthread_cond_t *cond);
int         __wrap_pthread_cond_broadcast(pthread_cond_t *cond);
near_status __real_near__thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx);
near_status __wrap_near__thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx);
int         __real_pthread_join(pthread_t thread, void **result);
int         __wrap_pthread_join(pthread_t thread, void **result);
int         __real_pthread_detach(pthread_t thread);
int         __wrap_pthread_detach(pthread_t thread);
pthread_t   __real_pthread_self(void);
pthread_t   __wrap_pthread_self(void);
int         __real_clock_gettime(clockid_t id, struct timespec *ts);
int         __wrap_clock_gettime(clockid_t id, struct timespec *ts);
int         __real_clock_getres(clockid_t id, struct timespec *ts);
int         __wrap_clock_getres(clockid_t id, struct timespec *ts);
int         __real_nanosleep(const struct timespec *time, struct timespec *left);
int         __wrap_nanosleep(const struct timespec *time, struct timespec *left);
ssize_t     __real_getrandom(void *buffer, size_t size, unsigned flags);
ssize_t     __wrap_getrandom(void *buffer, size_t size, unsigned flags);
long        __real_syscall(long number, long a, long b, long c, long d, long e, long f);
long        __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);

void
__wrap_near__lock(struct near__lock *lock)
{
    if (!S.running) {
        __real_near__lock(lock);
        return;
    }
    step_point();
    while (pthread_mutex_trylock(&lock->mutex) != 0)
        step_wait(lock, NEAR_NEVER);
}

void
__wrap_near__unlock(struct near__lock *lock)
{
    if (!S.running) {
        __real_near__unlock(lock);
        return;
    }
    pthread_mutex_unlock(&lock->mutex);
    step_wake(lock);
    step_point();
}

bool
__wrap_near__cond_wait(pthread_cond_t *cond, struct near__lock *lock, int64_t deadline)
{
    if (!S.running)
        return __real_near__cond_wait(cond, lock, deadline);
    if (deadline != NEAR_NEVER && deadline <= S.now)
        return false;
    pthread_mutex_unlock(&lock->mutex);
    step_wake(lock);
    step_wait(cond, deadline);
    while (pthread_mutex_trylock(&lock->mutex) != 0)
        step_wait(lock, NEAR_NEVER);
    return S.now < deadline;
}

/* Condition variables may wake too many: so a signal wakes all. */
int
__wrap_pthread_cond_signal(pthread_cond_t *cond)
{
    step_wake(cond);
    return S.running ? 0 : __real_pthread_cond_signal(cond);
}

int
__wrap_pthread_cond_broadcast(pthread_cond_t *cond)
{
    step_wake(cond);
    return S.running ? 0 : __real_pthread_cond_broadcast(cond);
}

near_status
__wrap_near__thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx)
{
    struct task *task;

    if (!S.running)
        return __real_near__thread_start(thread, name, run, ctx);
    task = spawn(NULL, run, ctx, S.current->group);
    if (task == NULL)
        return NEAR_ERR_NOMEM;
    *thread = (pthread_t)(((uintptr_t)(task - tasks) + 1) << 12);
    return NEAR_OK;
}

int
__wrap_pthread_join(pthread_t thread, void **result)
{
    struct task *task = &tasks[((uintptr_t)thread >> 12) - 1];

    if (!S.running)
        return __real_pthread_join(thread, result);
    while (!task->done)
        step_wait(&task->done, NEAR_NEVER);
    task->used = false;
    return 0;
}

int
__wrap_pthread_detach(pthread_t thread)
{
    return S.running ? 0 : __real_pthread_detach(thread);
}

pthread_t
__wrap_pthread_self(void)
{
    return S.running ? (pthread_t)(((uintptr_t)(S.current - tasks) + 1) << 12) : __real_pthread_self();
}

int
__wrap_clock_gettime(clockid_t id, struct timespec *ts)
{
    int64_t now;

    if (!S.running)
        return __real_clock_gettime(id, ts);
    step_point();
    now = S.now;
    if (id == CLOCK_MONOTONIC_COARSE)
        now -= now % COARSE_STEP;
    if (id == CLOCK_REALTIME)
        now += INT64_C(1700000000) * 1000000000;
    ts->tv_sec  = (time_t)(now / 1000000000);
    ts->tv_nsec = (long)(now % 1000000000);
    return 0;
}

int
__wrap_clock_getres(clockid_t id, struct timespec *ts)
{
    if (!S.running)
        return __real_clock_getres(id, ts);
    *ts = (struct timespec){ 0, id == CLOCK_MONOTONIC_COARSE ? COARSE_STEP : 1 };
    return 0;
}

int
__wrap_nanosleep(const struct timespec *time, struct timespec *left)
{
    if (!S.running)
        return __real_nanosleep(time, left);
    step_sleep((int64_t)time->tv_sec * 1000000000 + time->tv_nsec);
    return 0;
}

ssize_t
__wrap_getrandom(void *buffer, size_t size, unsigned flags)
{
    uint8_t *bytes = buffer;

    if (!S.running)
        return __real_getrandom(buffer, size, flags);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(draw() >> 32);
    return (ssize_t)size;
}

static long
futex(const _Atomic uint32_t *word, int what, uint32_t value, const struct timespec *time)
{
    if ((what & FUTEX_CMD_MASK) == FUTEX_WAKE) {
        step_wake((const void *)word);
        step_point();
        return 0;
    }
    step_point();
    if (*word != value) {
        errno = EAGAIN;
        return -1;
    }
    step_wait((const void *)word,
              time == NULL ? NEAR_NEVER
                           : near__time_after(S.now, (int64_t)time->tv_sec * 1000000000 + time->tv_nsec));
    return 0;
}

long
__wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
    if (S.running && number == SYS_futex)
        return futex((const _Atomic uint32_t *)a, (int)b, (uint32_t)c, (const struct timespec *)d);
    return __real_syscall(number, a, b, c, d, e, f);
}

int64_t
steps_real_ms(void)
{
    struct timespec ts;

    __real_clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}
