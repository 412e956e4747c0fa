/*
 * Memory that runs out on command: for programs that are linked with --wrap for malloc, calloc, realloc and aligned_alloc.  The n-th allocation of the
 * process, on any thread, is refused, once or from then on.  hiredis and libc allocate for themselves: what is refused is what the library
 * and the test ask for.
 */
#ifndef TESTS_HARNESS_SHORTAGE_H
#define TESTS_HARNESS_SHORTAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

static _Atomic long shortage_after = -1; /* so many more are granted; -1: all */
static _Atomic bool shortage_lasts;
static _Atomic long shortage_count; /* refused so far */

static inline void
shortage_begin(long after, bool lasts)
{
    shortage_lasts = lasts;
    shortage_after = after;
}

static inline void
shortage_end(void)
{
    shortage_after = -1;
}

static inline bool
shortage_refuses(void)
{
    long left = atomic_load(&shortage_after);

    while (left > 0)
        if (atomic_compare_exchange_weak(&shortage_after, &left, left - 1))
            return false;
    if (left < 0)
        return false;
    if (!shortage_lasts)
        atomic_store(&shortage_after, -1);
    shortage_count++;
    return true;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *
__wrap_malloc(size_t size)
{
    return shortage_refuses() ? NULL : __real_malloc(size);
}
void *
__wrap_calloc(size_t n, size_t size)
{
    return shortage_refuses() ? NULL : __real_calloc(n, size);
}
void *
__wrap_realloc(void *memory, size_t size)
{
    return shortage_refuses() ? NULL : __real_realloc(memory, size);
}
void *
__wrap_aligned_alloc(size_t alignment, size_t size)
{
    return shortage_refuses() ? NULL : __real_aligned_alloc(alignment, size);
}

#endif
