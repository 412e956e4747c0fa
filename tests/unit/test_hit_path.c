/*
 * What a hit executes, instruction by instruction: a child that reads is stepped through by its parent, who decodes enough of each
 * instruction to see a lock prefix, an exchange with memory, a fence, a system call or the cycle counter, and sees every address
 * outside the program (allocator, clock, mutexes).  Slow paths beside the hit's are not executed and so do not matter.  And 1000
 * hits with the allocator and the clock counted.  x86-64 only; not under a sanitizer, which adds calls of its own.
 */
#define TEST_NAME "hit path"
#include "harness/test.h"

#include "base/base.h"

#include <malloc.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <sys/user.h>
#endif

/* ---- counting what this thread asks of the system */

static _Thread_local bool     counting;
static _Thread_local unsigned allocations, clocks;
static void *volatile sink; /* what is stored here was asked for */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void  __real_free(void *memory);
int   __real_clock_gettime(clockid_t id, struct timespec *time);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
void  __wrap_free(void *memory);
int   __wrap_clock_gettime(clockid_t id, struct timespec *time);

void *
__wrap_malloc(size_t size)
{
    allocations += counting;
    return __real_malloc(size);
}

void *
__wrap_calloc(size_t n, size_t size)
{
    allocations += counting;
    return __real_calloc(n, size);
}

void *
__wrap_realloc(void *old, size_t size)
{
    allocations += counting;
    return __real_realloc(old, size);
}

void *
__wrap_aligned_alloc(size_t align, size_t size)
{
    allocations += counting;
    return __real_aligned_alloc(align, size);
}

void
__wrap_free(void *memory)
{
    allocations += counting;
    __real_free(memory);
}

int
__wrap_clock_gettime(clockid_t id, struct timespec *time)
{
    clocks += counting;
    return __real_clock_gettime(id, time);
}

/* ---- a client and its values */

enum { KEYS = 4, FRESH = KEYS, VALUE_MAX = 2000 };
static const char *const key_names[KEYS + 1]   = { "k", "user:12345:profile",
                                                   "a key that is longer than two vectors of sixteen bytes",
                                                   "user:12345", "user:12346:profile" };
static const size_t      value_sizes[KEYS + 1] = { 1, 100, VALUE_MAX, 100, 100 };

static near_bytes keys[KEYS + 1];

static near_client *client;
static near_cache  *cache;

static bool
client_up(bool timed)
{
    static char      value[VALUE_MAX];
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    near_value      *warm;

    options.ttl_ms = timed ? 3600 * 1000 : 0;
    if (near_client_open(NULL, &client, NULL) != NEAR_OK ||
        near_cache_open(client, "c", NULL, &cache, NULL) != NEAR_OK)
        return false;
    for (int i = 0; i <= FRESH; i++) {
        near_bytes bytes = { value, value_sizes[i] };

        keys[i] = near_key(key_names[i]);
        if (near_put(cache, keys[i], bytes, &options) != NEAR_OK)
            return false;
        for (int times = 0; i != FRESH && times < 3;
             times++) { /* the record exists, the mark is at its highest */
            if (near_get(cache, keys[i], &warm) != NEAR_OK)
                return false;
            near_value_release(warm);
        }
    }
    return true;
}

static bool
read_one(int which)
{
    near_value *value;
    near_bytes  bytes;

    if (near_get(cache, keys[which], &value) != NEAR_OK)
        return false;
    bytes = near_value_bytes(value);
    near_value_release(value);
    return bytes.size == value_sizes[which];
}

/* Entries expire, so hits are judged by the time that the scheduler tells: it begins to once somebody reads, and stops for a moment
 * now and then to see whether somebody still does. */
static bool
clock_is_not_asked(void)
{
    for (int tries = 0; tries < 5000; tries++) {
        clocks   = 0;
        counting = true;
        for (int i = 0; i < 1000 && clocks == 0; i++)
            if (!read_one(i % KEYS))
                return false;
        counting = false;
        if (clocks == 0)
            return true;
        usleep(1000);
    }
    return false;
}

static void
test_hits_allocate_nothing_and_read_no_clock(void **state)
{
    (void)state;
    assert_true(client_up(true));
    assert_true(clock_is_not_asked()); /* 1000 times in a row */
    assert_int_equal(allocations, 0);
    clocks   = 0;
    counting = true; /* the control: the counters count */
    sink     = malloc(1);
    free(sink);
    near__now(&near__clock_system);
    counting = false;
    assert_int_equal(allocations, 2);
    assert_int_equal(clocks, 1);
    assert_int_equal(near_client_close(client, NULL), NEAR_OK);
}

/* ---- stepping */

#if defined(__x86_64__)

static _Atomic unsigned shared_word;

enum subject {
    HIT_0,
    HIT_1,
    HIT_2,
    HIT_3,
    HIT_FRESH,
    TIMED,
    NOTHING,
    LOCKED,
    EXCHANGE,
    FENCE,
    ALLOCATION,
    CLOCK
};

static void
perform(enum subject subject)
{
    struct timespec time;

    switch (subject) {
    case HIT_0:
    case HIT_1:
    case HIT_2:
    case HIT_3:
    case HIT_FRESH:
        if (!read_one((int)subject - HIT_0))
            _exit(3);
        break;
    case TIMED:
        if (!read_one(1))
            _exit(3);
        break;
    case NOTHING:
        atomic_store_explicit(&shared_word, atomic_load_explicit(&shared_word, memory_order_acquire) + 1,
                              memory_order_release);
        break;
    case LOCKED:
        atomic_fetch_add(&shared_word, 1);
        break;
    case EXCHANGE:
        atomic_store(&shared_word, 1); /* sequentially consistent: an xchg, or a store and a fence */
        break;
    case FENCE:
        __asm__ volatile("mfence" ::: "memory");
        break;
    case ALLOCATION:
        sink = malloc(10);
        break;
    case CLOCK:
        clock_gettime(CLOCK_MONOTONIC, &time);
        break;
    }
}

/* The child: what lies between the two traps is looked at. */
static void __attribute__((noreturn)) child(enum subject subject)
{
    if (!client_up(subject == TIMED) || !clock_is_not_asked() || ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
        _exit(2);
    perform(subject); /* addresses are resolved, pages are there */
    __asm__ volatile("int3" ::: "memory");
    perform(subject);
    __asm__ volatile("int3" ::: "memory");
    _exit(0);
}

struct finding {
    unsigned    instructions;
    const char *what; /* NULL: nothing that is forbidden */
    uint64_t    where;
};

/* The program's own instructions; its table of imports (.plt) is harmless, what it leads to is outside. */
extern const char __executable_start[], etext[];

static bool
inside(uint64_t address)
{
    return address >= (uint64_t)(uintptr_t)__executable_start && address < (uint64_t)(uintptr_t)etext + 4096;
}

static const char *
forbidden(const unsigned char *code, uint64_t address)
{
    bool lock = false, repeat = false;

    if (!inside(address))
        return "a call out of the program";
    for (;; code++) {
        if (*code == 0xf0)
            lock = true;
        else if (*code == 0xf3 || *code == 0xf2)
            repeat = true;
        else if (*code != 0x66 && *code != 0x67 && *code != 0x2e && *code != 0x36 && *code != 0x3e &&
                 *code != 0x26 && *code != 0x64 && *code != 0x65)
            break;
    }
    if (lock)
        return "a locked instruction";
    if ((*code & 0xf0) == 0x40)
        code++;
    if ((*code == 0x86 || *code == 0x87) && code[1] < 0xc0)
        return "an exchange with memory";
    if (code[0] == 0x0f && code[1] == 0xae && code[2] >= 0xe8 && !repeat)
        return "a fence";
    if (code[0] == 0x0f && (code[1] == 0x05 || code[1] == 0x34))
        return "a system call";
    if (code[0] == 0x0f && (code[1] == 0x31 || (code[1] == 0x01 && code[2] == 0xf9)))
        return "the cycle counter";
    return NULL;
}

static bool
fetch_code(pid_t pid, uint64_t address, unsigned char code[16])
{
    for (int i = 0; i < 2; i++) {
        long word;

        errno = 0;
        word  = ptrace(PTRACE_PEEKTEXT, pid, (void *)(uintptr_t)(address + 8 * (uint64_t)i), NULL);
        if (errno != 0)
            return i > 0; /* the end of a page will do */
        memcpy(code + 8 * i, &word, 8);
    }
    return true;
}

/* Step from one trap to the next.  False: the system does not let us. */
static bool
step_through(enum subject subject, struct finding *finding)
{
    struct user_regs_struct registers;
    unsigned char           code[16] = { 0 };
    int                     status;
    pid_t                   pid;

    *finding = (struct finding){ 0 };
    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        child(subject);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status)) {
        assert_int_not_equal(WEXITSTATUS(status), 3);
        return false;
    }
    assert_true(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    for (; finding->instructions < 100000; finding->instructions++) {
        if (ptrace(PTRACE_GETREGS, pid, NULL, &registers) != 0 || !fetch_code(pid, registers.rip, code) ||
            code[0] == 0xcc)
            break;
        if (finding->what == NULL) {
            finding->what  = forbidden(code, registers.rip);
            finding->where = registers.rip - (uint64_t)(uintptr_t)__executable_start;
        }
        if (ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) != 0 || waitpid(pid, &status, 0) != pid ||
            !WIFSTOPPED(status))
            break;
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    assert_int_equal(code[0], 0xcc); /* it came to its end */
    return true;
}

static void
test_a_hit_executes_nothing_that_is_locked(void **state)
{
    static const enum subject hits[] = { HIT_0, HIT_1, HIT_2, HIT_3,
                                         HIT_FRESH }; /* the last one moves its mark */
    struct finding            finding, nothing;

    (void)state;
    if (test_slack() > 1 || !step_through(NOTHING, &nothing))
        skip();
    for (size_t i = 0; i < NEAR_COUNT_OF(hits); i++) {
        assert_true(step_through(hits[i], &finding));
        /* adaptive tries a lock when the mark of a key that it samples moves, and which keys those are is every child's own secret */
        for (int tries = 0; hits[i] == HIT_FRESH && finding.what != NULL && tries < 4; tries++)
            assert_true(step_through(hits[i], &finding));
        print_message("# key of %zu, value of %zu: %u instructions; %s\n", strlen(key_names[i]),
                      value_sizes[i], finding.instructions - nothing.instructions,
                      finding.what == NULL ? "nothing forbidden" : finding.what);
        if (finding.what != NULL)
            print_message("# at %#llx from the program's start\n", (unsigned long long)finding.where);
        assert_null(finding.what);
        assert_in_range(finding.instructions, 20, 600);
    }
}

/* The same of entries that expire.  While the scheduler does not tell the time, the clock is asked: that may happen here. */
static void
test_a_hit_that_may_expire_executes_no_more(void **state)
{
    struct finding finding;

    (void)state;
    if (test_slack() > 1 || !step_through(TIMED, &finding))
        skip();
    for (int tries = 0; tries < 10 && finding.what != NULL; tries++)
        assert_true(step_through(TIMED, &finding));
    if (finding.what != NULL && strcmp(finding.what, "a call out of the program") == 0)
        skip(); /* a machine so slow that the scheduler stops each time; the test with counters says the same */
    assert_null(finding.what);
    print_message("# that may expire: %u instructions\n", finding.instructions);
}

static void
test_control_what_is_forbidden_is_seen(void **state)
{
    static const struct {
        enum subject subject;
        const char  *what;
    } rows[] = { { LOCKED, "a locked instruction" },
                 { EXCHANGE, "an exchange with memory" },
                 { FENCE, "a fence" },
                 { ALLOCATION, "a call out of the program" },
                 { CLOCK, "a call out of the program" } };
    struct finding finding;

    (void)state;
    if (test_slack() > 1 || !step_through(NOTHING, &finding))
        skip();
    assert_null(finding.what);
    for (size_t i = 0; i < NEAR_COUNT_OF(rows); i++) {
        assert_true(step_through(rows[i].subject, &finding));
        print_message("# %s: %s\n", rows[i].what, finding.what == NULL ? "not seen" : finding.what);
        assert_non_null(finding.what);
        if (rows[i].subject != EXCHANGE) /* compilers differ */
            assert_string_equal(finding.what, rows[i].what);
    }
}

#else

static void
test_a_hit_executes_nothing_that_is_locked(void **state)
{
    (void)state;
    skip(); /* only x86-64 is decoded */
}

static void
test_a_hit_that_may_expire_executes_no_more(void **state)
{
    (void)state;
    skip();
}

static void
test_control_what_is_forbidden_is_seen(void **state)
{
    (void)state;
    skip();
}

#endif

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_hit_executes_nothing_that_is_locked),
        cmocka_unit_test(test_a_hit_that_may_expire_executes_no_more),
        cmocka_unit_test(test_control_what_is_forbidden_is_seen),
        cmocka_unit_test(test_hits_allocate_nothing_and_read_no_clock),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
