/*
 * Entries: birth, holders, end.
 *
 * One block per entry, by malloc, or from 8 KiB on by mmap: [struct near__entry][key][gap][value].  Large values come and go in all
 * sizes, and what malloc cannot give back between them would be memory that nobody counts; pages are given back.  The gap brings the value to an address
 * divisible by 16, or by 64 when it has 64 bytes or more: an entry small enough for the arena lives for a moment only, and then
 * lies there.  The 64 are found inside a plain block that is 48
 * bytes longer, not by aligned_alloc(): glibc would cut a bigger block in three and leave crumbs beside each
 * value, memory that nobody counts.
 *
 * The reference count is the only field that changes while an entry is shared.  Taking one more is relaxed,
 * because who takes it already holds one (or has announced the block that keeps the L1's).  Letting
 * go is a release, so that everything a holder read from the value comes before the end; the last one's
 * acquire fence pairs with all of them.
 */
#include "l1/entry.h"

#include "base/lock.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    BLOCK_ALIGN   = 16, /* what malloc gives */
    VALUE_ALIGN   = 64, /* a cache line, and the widest vector */
    LARGE         = 64, /* what a vector may be read from in place (l1.align_from) */
    MALLOC_HEADER = 8,  /* glibc keeps the size before the block */
    PAGE          = 4096,
    MAPPED_FROM   = 2 * PAGE
};

_Static_assert(BLOCK_ALIGN > NEAR__VALUE_BITS, "a handle keeps its flags in the address's low bits");

static uintptr_t
align_up(uintptr_t at, uintptr_t to)
{
    return (at + to - 1) & ~(to - 1);
}

/* Zero but for what malloc leaves behind the fields; mapped_pages is set.  Where the system has no more mappings to give, malloc
 * does. */
static struct near__entry *
block_get(size_t size)
{
    size_t              pages = (size + PAGE - 1) / PAGE;
    struct near__entry *entry = MAP_FAILED;

    if (size >= MAPPED_FROM && pages <= UINT32_MAX)
        entry = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (entry != MAP_FAILED) {
        entry->mapped_pages = (uint32_t)pages;
        return entry;
    }
    entry = malloc(size);
    if (entry != NULL)
        memset(entry, 0, sizeof(*entry));
    return entry;
}

static void
block_put(struct near__entry *entry)
{
    size_t bytes = (size_t)entry->mapped_pages * PAGE;

    if (bytes == 0)
        free(entry);
    else if (munmap(entry, bytes) !=
             0) /* no room to note that a mapping has a hole now: its pages go all the same */
        madvise(entry, bytes, MADV_DONTNEED);
}

/* A block with `room` bytes behind the key: the fields set that never change, the others zero. */
static struct near__entry *
block_new(near_bytes key, uint64_t hash, size_t room)
{
    size_t              head = sizeof(struct near__entry) + key.size;
    struct near__entry *entry;

    if (key.size > UINT32_MAX || head > PTRDIFF_MAX || room > PTRDIFF_MAX - head)
        return NULL;
    entry = block_get(head + room);
    if (entry == NULL)
        return NULL;
    atomic_init(&entry->refs, 1);
    entry->key_size = (uint32_t)key.size;
    entry->hash     = hash;
    entry->expires = entry->fresh_until = NEAR_NEVER;
    if (key.size > 0)
        memcpy(entry->key, key.data, key.size);
    return entry;
}

struct near__entry *
near__entry_new(near_bytes key, uint64_t hash, size_t value_size, void **value)
{
    size_t align = value_size >= LARGE ? VALUE_ALIGN : BLOCK_ALIGN;
    size_t head  = sizeof(struct near__entry) + key.size;
    size_t gap   = align_up(head, BLOCK_ALIGN) - head + align - BLOCK_ALIGN; /* the most it can take */
    struct near__entry *entry;

    if (value_size > PTRDIFF_MAX - gap)
        return NULL;
    entry = block_new(key, hash, gap + value_size);
    if (entry == NULL)
        return NULL;
    entry->value      = (void *)align_up((uintptr_t)entry->key + key.size, align);
    entry->value_size = value_size;
    if (value != NULL)
        *value = (void *)(uintptr_t)entry->value;
    return entry;
}

struct near__entry *
near__entry_adopt(near_bytes key, uint64_t hash, void *data, size_t size, void (*release)(void *))
{
    struct near__entry *entry = block_new(key, hash, 0);

    if (entry == NULL)
        return NULL;
    entry->value      = data;
    entry->value_size = size;
    entry->release    = release;
    entry->adopted    = true;
    return entry;
}

void
near__entry_ref(struct near__entry *entry)
{
    atomic_fetch_add_explicit(&entry->refs, 1, memory_order_relaxed);
}

void
near__entry_release(struct near__entry **entry)
{
    struct near__entry *e = *entry;

    *entry = NULL;
    if (e == NULL || atomic_fetch_sub_explicit(&e->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (e->release != NULL)
        near__lock_none();
    if (e->release != NULL)
        e->release((void *)(uintptr_t)e->value);
    near__object_release(&e->object);
    free(e->labels);
    block_put(e);
}

size_t
near__entry_cost(const struct near__entry *entry)
{
    size_t cost = entry->mapped_pages != 0 ? (size_t)entry->mapped_pages * PAGE
                                           : malloc_usable_size((void *)(uintptr_t)entry) + MALLOC_HEADER;

    if (entry->labels != NULL)
        cost += malloc_usable_size(entry->labels) + MALLOC_HEADER;
    if (entry->object != NULL)
        cost += near__object_cost(entry->object);
    if (entry->adopted)
        cost += align_up(entry->value_size + MALLOC_HEADER, BLOCK_ALIGN); /* as malloc would have given it */
    return cost;
}
