/*
 * Memory of the policies and the index outside the arena: what is large comes from the system in pages of its own and goes back to it,
 * so that what is counted is what is resident.  From malloc it would leave holes when a cache of many small entries becomes one of few
 * large ones, and queues are a part of the entries.
 *
 * Owned by whoever asked; he remembers the size.
 */
#ifndef NEAR_L1_PAGES_H
#define NEAR_L1_PAGES_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define NEAR__PAGE                                                                                           \
    ((size_t)4096) /* from here on; a system with larger pages rounds up, and is counted a little short */

/* What `bytes` cost. */
static inline size_t
near__pages_bytes(size_t bytes)
{
    return bytes < NEAR__PAGE ? bytes : (bytes + NEAR__PAGE - 1) & ~(NEAR__PAGE - 1);
}

/* Zeroed, at a multiple of 64 where it is NEAR__PAGE or more; NULL: no memory. */
static inline void *
near__pages_new(size_t bytes)
{
    void *memory;

    if (bytes < NEAR__PAGE)
        return calloc(1, bytes);
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

/* The same in lines of 64 bytes (`bytes` a multiple of that): each at such an address, however few they are. */
static inline void *
near__lines_new(size_t bytes)
{
    void *memory;

    if (bytes >= NEAR__PAGE)
        return near__pages_new(bytes);
    memory = aligned_alloc(64, bytes);
    return memory == NULL ? NULL : memset(memory, 0, bytes);
}

static inline void
near__pages_free(void *memory, size_t bytes)
{
    if (memory != NULL && bytes >= NEAR__PAGE)
        munmap(memory, bytes);
    else
        free(memory);
}

#endif
