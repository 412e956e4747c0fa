/*
 * The arena: one range of addresses in slabs, and the heaps that cut slabs into blocks.
 *
 *   range   one mapping, PROT_NONE until a chunk of 2 MiB is opened; never smaller again.  Its base lies one slab before the first
 *           slab, so that slabs are numbered from 1 and no block has the reference 0.
 *   slabs   what is known of each slab, out of line, found by its number; opened along with the chunks.
 *   tables  free slabs as bits (with sums of 64 above them, so that the lowest is found in some steps), resident units, chunks.
 *
 * Who owns what.  A free slab is the arena's; from slab_take() to slab_give() it belongs to one heap, and so does its record but for
 * `owner`.  The arena's lock (a leaf) covers tables, owners and whatever else of the arena changes; a shard's lock covers its heap
 * and the records of its slabs.  One slab goes from heap to heap through the arena's lock, which orders what they wrote.
 *
 * Pages.  A unit is a page or a slab, whichever is larger: the piece that is given back.  `resident` says which units cost memory.
 * A chunk asks for a 2 MiB page when the first of its slabs is taken, if all of it still fits into the budget: it is resident as a
 * whole from then on.  All other chunks refuse 2 MiB pages, or the system would fill them up on its own.  Free slabs are taken lowest
 * first, which keeps whole chunks free at the upper end.
 *
 * What can never happen: a reference to slab 0; a slab in two heaps, or in a heap and free; a ring of partial slabs with a full,
 * draining or foreign one in it; a free block or slab that AddressSanitizer lets pass, but for
 * the 4 bytes of a block that share a word with one in use.
 */
#include "l1/arena.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define ARENA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_ASAN 1
#endif
#endif
#ifdef ARENA_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(address, size)   ASAN_POISON_MEMORY_REGION(address, size)
#define UNPOISON(address, size) ASAN_UNPOISON_MEMORY_REGION(address, size)
#else
#define POISON(address, size)   ((void)(address), (void)(size))
#define UNPOISON(address, size) ((void)(address), (void)(size))
#endif

#define CHUNK_SHIFT  21 /* a 2 MiB page, on machines with pages of 4 KiB */
#define CHUNK_BYTES  ((size_t)1 << CHUNK_SHIFT)
#define SLAB_MIN     ((size_t)512)
#define SLAB_MAX     ((size_t)65536)
#define RANGE_MAX    ((size_t)1 << 46) /* more than a process can address */
#define GRANULE_BITS 2                 /* at least; values begin at multiples of 4 (l1/block.h) */
#define WORD         ((size_t)8)       /* a granule above FINER */
#define FINER_CLASSES                                                                                        \
    160 /* up to here each multiple of the granule is a class: overhead per entry is what small ones pay */
#define FINE_CLASSES 256          /* up to here each multiple of a word */
#define LINE         ((size_t)64) /* blocks of this size and more ... */
#define LINE_FROM                                                                                            \
    ((size_t)1024) /* ... lie at a multiple of it, unless smaller ones are to: values are promised to (l1/block.h) */
#define RARE_PART 2    /* a class between two words that fewer than this part of the blocks are of is rare */
#define ASKED_MAX 4096 /* blocks: then what was asked for counts half */
#define LEVELS    6    /* 64^6 slabs: more than references can name */
#define META_STEP ((size_t)65536) /* records are opened in steps of this many bytes */
#define WIDE_SLAB ((size_t)32768) /* from here on a record has a cache line to itself (0.2 %) */
#define SCAN_MAX  64              /* partial slabs that a compaction looks at: the choice is bounded, too */
#define NOTHING   UINT16_MAX      /* no free block; the largest offset is 64 KiB / 4 - 1 */

enum slab_state {
    SLAB_FREE,     /* the arena's */
    SLAB_PARTIAL,  /* in its class's ring */
    SLAB_STUCK,    /* the same, but a compaction was refused here */
    SLAB_FULL,     /* in no ring */
    SLAB_DRAINING, /* in no ring: its blocks have moved and wait to be freed */
    SLAB_WHOLE     /* handed out as one piece */
};

struct slab {
    uint32_t prev, next; /* in the ring, by number */
    uint32_t owner;      /* arena's lock */
    uint16_t
        free; /* first free block, as its offset in granules; the block's first word names the next one */
    uint16_t bump; /* granules of blocks that were ever used, from fresh_offset() on */
    uint16_t live; /* blocks in use */
    uint16_t last; /* one more free block, named only here: a free and the next take leave its memory alone */
    uint8_t class;
    uint8_t state;
};
_Static_assert(sizeof(struct slab) == 24, "the header promises this");

struct chunk {
    uint16_t resident; /* units */
    uint16_t used;     /* slabs */
    bool     huge;     /* told to use a 2 MiB page */
};

struct size_class {
    uint16_t granules, slots;
};

struct near__arena {
    /* fixed once it is open */
    char    *base;
    char    *slabs;                           /* records, `stride` apart */
    unsigned shift, slab_shift, number_shift; /* of granule and slab in bytes, of a slab in references */
    unsigned stride;
    size_t   line_from;
    unsigned class_count;
    struct size_class classes[NEAR__HEAP_CLASSES_MAX];
    uint8_t          *class_of; /* by size in granules, rounded up; up to half a slab */
    size_t            page, unit, range, slab_count;
    bool              huge_pages;
    char             *map, *meta_map, *tables;
    size_t            map_bytes, meta_bytes, tables_bytes;

    _Atomic size_t max_bytes;
    _Atomic size_t charged;  /* by all heaps */
    _Atomic size_t resident; /* bytes of resident units; changes under the lock */
    _Atomic size_t touched;  /* bytes of records that were ever used; changes under the lock */

    struct near__lock lock __attribute__((aligned(64))); /* covers the rest */
    size_t            used;                              /* slabs in heaps */
    size_t            opened;                            /* chunks */
    size_t            meta_opened;                       /* bytes of records */
    uint64_t         *free[LEVELS];                      /* free[0]: a bit for each slab, its number - 1 */
    unsigned          levels;
    uint64_t         *resident_units;
    struct chunk     *chunks;
};

/* ---- sizes and places */

static size_t
round_up(size_t size, size_t step)
{
    return (size + step - 1) & ~(step - 1);
}

static size_t
slab_bytes(const struct near__arena *arena)
{
    return (size_t)1 << arena->slab_shift;
}

static struct slab *
slab_at(const struct near__arena *arena, uint32_t number)
{
    return (struct slab *)(void *)(arena->slabs + (size_t)number * arena->stride);
}

static char *
slab_memory(const struct near__arena *arena, uint32_t number)
{
    return arena->base + ((size_t)number << arena->slab_shift);
}

static char *
units_memory(const struct near__arena *arena, size_t unit)
{
    return slab_memory(arena, 1) + unit * arena->unit;
}

static size_t
class_bytes(const struct near__arena *arena, unsigned class)
{
    return (size_t)arena->classes[class].granules << arena->shift;
}

/* The last chunk of a range may be shorter. */
static size_t
chunk_bytes(const struct near__arena *arena, size_t chunk)
{
    size_t left = arena->range - (chunk << CHUNK_SHIFT);

    return left < CHUNK_BYTES ? left : CHUNK_BYTES;
}

static size_t
chunk_units(const struct near__arena *arena, size_t chunk)
{
    return chunk_bytes(arena, chunk) / arena->unit;
}

static bool
bit_get(const uint64_t *bits, size_t i)
{
    return (bits[i / 64] >> (i % 64)) & 1;
}

static void
bit_set(uint64_t *bits, size_t i)
{
    bits[i / 64] |= UINT64_C(1) << (i % 64);
}

static void
bit_clear(uint64_t *bits, size_t i)
{
    bits[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

/* ---- free slabs: a bit above is set if any of its 64 below are */

static void
free_add(struct near__arena *arena, size_t i)
{
    for (unsigned level = 0; level < arena->levels; level++, i /= 64) {
        uint64_t before = arena->free[level][i / 64];

        bit_set(arena->free[level], i);
        if (before != 0)
            return;
    }
}

static void
free_remove(struct near__arena *arena, size_t i)
{
    for (unsigned level = 0; level < arena->levels; level++, i /= 64) {
        bit_clear(arena->free[level], i);
        if (arena->free[level][i / 64] != 0)
            return;
    }
}

/* The lowest free slab; there must be one. */
static size_t
free_lowest(const struct near__arena *arena)
{
    size_t i = 0;

    for (unsigned level = arena->levels; level-- > 0;)
        i = i * 64 + (size_t)__builtin_ctzll(arena->free[level][i]);
    return i;
}

static bool
free_any(const struct near__arena *arena)
{
    return arena->free[arena->levels - 1][0] != 0;
}

/* Whether all slabs of a unit are free. */
static bool
unit_free(const struct near__arena *arena, size_t unit)
{
    size_t slabs = arena->unit >> arena->slab_shift;

    for (size_t i = unit * slabs; i < (unit + 1) * slabs; i++)
        if (!bit_get(arena->free[0], i))
            return false;
    return true;
}

/* ---- pages: all of it under the arena's lock */

static size_t
resident(const struct near__arena *arena)
{
    return atomic_load_explicit(&arena->resident,
                                memory_order_relaxed); /* a number, no more: orders nothing */
}

static void
resident_add(struct near__arena *arena, size_t bytes)
{
    atomic_store_explicit(&arena->resident, resident(arena) + bytes, memory_order_relaxed);
}

/* What the pages may cost. */
static size_t
page_budget(struct near__arena *arena)
{
    size_t max     = atomic_load_explicit(&arena->max_bytes, memory_order_relaxed); /* numbers, as above */
    size_t charged = atomic_load_explicit(&arena->charged, memory_order_relaxed);

    return charged < max ? max - charged : 0;
}

static bool
chunk_advise(struct near__arena *arena, size_t chunk, bool huge)
{
    char *memory = slab_memory(arena, 1) + (chunk << CHUNK_SHIFT);

    if (madvise(memory, chunk_bytes(arena, chunk), huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) != 0)
        return false;
    arena->chunks[chunk].huge = huge;
    return true;
}

/* Give back `count` resident units from `unit` on, all of one chunk.  False: the system keeps them (locked memory). */
static bool
units_drop(struct near__arena *arena, size_t unit, size_t count)
{
    struct chunk *chunk = &arena->chunks[unit * arena->unit >> CHUNK_SHIFT];

    if (madvise(units_memory(arena, unit), count * arena->unit, MADV_DONTNEED) != 0)
        return false;
    for (size_t i = unit; i < unit + count; i++) {
        if (!bit_get(arena->resident_units, i))
            continue;
        bit_clear(arena->resident_units, i);
        chunk->resident--;
        resident_add(arena, -arena->unit);
    }
    return true;
}

/* Give back free units of a chunk that is in use, from the upper end. */
static size_t
chunk_trim(struct near__arena *arena, size_t number, size_t budget)
{
    struct chunk *chunk = &arena->chunks[number];
    size_t        first = (number << CHUNK_SHIFT) / arena->unit, unit = first + chunk_units(arena, number);
    size_t        given = 0;

    while (unit > first && given < budget) {
        size_t end = unit;

        while (unit > first && given + (end - unit) * arena->unit < budget &&
               bit_get(arena->resident_units, unit - 1) && unit_free(arena, unit - 1))
            unit--;
        if (unit == end) {
            unit--;
            continue;
        }
        /* a chunk with holes must not be filled up again behind our back */
        if (chunk->huge && !chunk_advise(arena, number, false))
            return given;
        if (!units_drop(arena, unit, end - unit))
            return given;
        given += (end - unit) * arena->unit;
    }
    return given;
}

/* A large page that is used for more than a quarter: the rest is not worth that readers meet small pages instead. */
static bool
worth_keeping(const struct chunk *chunk, size_t slab_shift)
{
    return chunk->huge && (size_t)chunk->used << slab_shift > CHUNK_BYTES / 4;
}

/* `all`: even what makes small pages of a large one that is well used. */
static size_t
trim(struct near__arena *arena, size_t budget, bool all)
{
    size_t given = 0;

    for (size_t i = arena->opened; i-- > 0 && given < budget;) { /* chunks that are free as a whole */
        size_t bytes = arena->chunks[i].resident * arena->unit;

        if (arena->chunks[i].used == 0 && bytes > 0 &&
            units_drop(arena, (i << CHUNK_SHIFT) / arena->unit, chunk_units(arena, i)))
            given += bytes;
    }
    for (size_t i = arena->opened; i-- > 0 && given < budget;) {
        struct chunk *chunk = &arena->chunks[i];

        if (chunk->resident > 0 && (all || !worth_keeping(chunk, arena->slab_shift)) &&
            (size_t)chunk->resident * arena->unit > (size_t)chunk->used << arena->slab_shift)
            given += chunk_trim(arena, i, budget - given);
    }
    return given;
}

/* The first slab of an empty chunk is about to be used: as one 2 MiB page, if all of it fits? */
static bool
chunk_begin_huge(struct near__arena *arena, size_t number)
{
    struct chunk *chunk = &arena->chunks[number];
    size_t        first = (number << CHUNK_SHIFT) / arena->unit, units = chunk_units(arena, number);

    if (!arena->huge_pages || chunk_bytes(arena, number) < CHUNK_BYTES ||
        resident(arena) + CHUNK_BYTES > page_budget(arena))
        return false;
    if (!chunk->huge && !chunk_advise(arena, number, true))
        return false;
    for (size_t i = first; i < first + units; i++)
        bit_set(arena->resident_units, i);
    chunk->resident = (uint16_t)units;
    resident_add(arena, CHUNK_BYTES);
    return true;
}

/* Account for the unit of a slab that is about to be used.  True: its pages are new, so all zero. */
static bool
unit_touch(struct near__arena *arena, size_t i)
{
    size_t        unit   = (i << arena->slab_shift) / arena->unit;
    size_t        number = (i << arena->slab_shift) >> CHUNK_SHIFT;
    struct chunk *chunk  = &arena->chunks[number];

    if (bit_get(arena->resident_units, unit))
        return false;
    if (chunk->resident == 0) {
        if (chunk_begin_huge(arena, number))
            return true;
        if (chunk->huge)
            chunk_advise(arena, number,
                         false); /* refused: the page may be a large one, which trim() will find */
    }
    /* free slabs elsewhere hold pages: those go first */
    if (resident(arena) + arena->unit > page_budget(arena) && resident(arena) > arena->used
                                                                                    << arena->slab_shift)
        trim(arena, arena->unit, true);
    bit_set(arena->resident_units, unit);
    resident_add(arena, arena->unit);
    chunk->resident++;
    /* no holes left: the system may make it one page */
    if (arena->huge_pages && !chunk->huge && chunk_bytes(arena, number) == CHUNK_BYTES &&
        chunk->resident == chunk_units(arena, number))
        chunk_advise(arena, number, true);
    return true;
}

/* One more chunk that slabs can come from.  Records first: if the second step fails they just wait. */
static bool
chunk_open(struct near__arena *arena)
{
    size_t start = arena->opened << CHUNK_SHIFT;
    size_t slabs, first = start >> arena->slab_shift, records;

    if (start >= arena->range)
        return false;
    slabs   = chunk_bytes(arena, arena->opened) >> arena->slab_shift;
    records = (first + slabs + 1) * arena->stride;
    if (records > arena->meta_opened) {
        size_t bytes = round_up(records, META_STEP);

        bytes = bytes < arena->meta_bytes ? bytes : arena->meta_bytes;
        if (mprotect(arena->slabs, bytes, PROT_READ | PROT_WRITE) != 0)
            return false;
        arena->meta_opened = bytes;
    }
    if (mprotect(slab_memory(arena, 1) + start, chunk_bytes(arena, arena->opened), PROT_READ | PROT_WRITE) !=
        0)
        return false;
    POISON(slab_memory(arena, 1) + start, chunk_bytes(arena, arena->opened));
    arena->opened++;
    for (size_t i = first; i < first + slabs; i++)
        free_add(arena, i);
    return true;
}

/* ---- slabs between the arena and its heaps */

/* The lowest free slab's number, or 0.  `*zeroed`: nobody has used its pages yet. */
static uint32_t
slab_take(struct near__arena *arena, uint32_t owner, bool *zeroed)
{
    uint32_t number = 0;

    near__lock(&arena->lock);
    if (free_any(arena) || chunk_open(arena)) {
        size_t i       = free_lowest(arena);
        size_t records = round_up((i + 2) * arena->stride, arena->page);

        number  = (uint32_t)i + 1;
        *zeroed = unit_touch(arena, i) && arena->unit == slab_bytes(arena);
        free_remove(arena, i);
        arena->used++;
        arena->chunks[(i << arena->slab_shift) >> CHUNK_SHIFT].used++;
        slab_at(arena, number)->owner = owner;
        slab_at(arena, number)->state = SLAB_FULL; /* its heap knows better */
        if (records > atomic_load_explicit(&arena->touched, memory_order_relaxed))
            atomic_store_explicit(&arena->touched, records, memory_order_relaxed);
    }
    near__unlock(&arena->lock);
    return number;
}

static void
slab_give_locked(struct near__arena *arena, uint32_t number)
{
    size_t i = number - 1;

    POISON(slab_memory(arena, number), slab_bytes(arena));
    slab_at(arena, number)->state = SLAB_FREE;
    arena->used--;
    arena->chunks[(i << arena->slab_shift) >> CHUNK_SHIFT].used--;
    free_add(arena, i);
}

static void
slab_give(struct near__heap *heap, uint32_t number)
{
    struct near__arena *arena = heap->arena;

    near__lock(&arena->lock);
    slab_give_locked(arena, number);
    near__unlock(&arena->lock);
    heap->bytes -= slab_bytes(arena);
}

/* ---- opening and closing */

/*
 * The class after one of `bytes`: the next multiple of the granule up to FINER_CLASSES, of a word up to FINE_CLASSES, then at most an
 * eighth more.  Each is as
 * large as its number of blocks in a slab allows, so that no slab ends in a rest that its blocks could have used; among the largest
 * the step from one number of blocks to the next is more than an eighth.
 */
static size_t
class_after(const struct near__arena *arena, size_t bytes, size_t granule, size_t slab)
{
    size_t step  = bytes < FINER_CLASSES || granule > WORD ? granule : WORD;
    size_t slots = slab / (bytes + step);
    size_t aim   = bytes + bytes / 8;

    if (bytes >= FINE_CLASSES && ((slab / ((slab + aim - 1) / aim)) & ~(step - 1)) > bytes)
        slots = (slab + aim - 1) / aim;
    for (;; slots--) {
        size_t next = slab / slots;

        next &= ~((next >= arena->line_from ? LINE : step) - 1);
        if (next > bytes)
            return next;
    }
}

static void
classes_make(struct near__arena *arena)
{
    size_t   granule = (size_t)1 << arena->shift, slab = slab_bytes(arena), largest = slab / 2;
    unsigned count = 0;

    for (size_t bytes = granule;; bytes = class_after(arena, bytes, granule, slab)) {
        if (count == NEAR__HEAP_CLASSES_MAX - 1)
            bytes = largest; /* cannot happen */
        arena->classes[count].granules = (uint16_t)(bytes >> arena->shift);
        arena->classes[count].slots    = (uint16_t)(slab / bytes);
        count++;
        if (bytes == largest)
            break;
    }
    arena->class_count = count;
    for (size_t i = 0, class = 0; i <= largest >> arena->shift; i++) {
        if (i > arena->classes[class].granules)
            class ++;
        arena->class_of[i] = (uint8_t) class;
    }
}

/* The granule that `range` bytes and the slab before them need, of at least `shift` bits. */
static unsigned
granule_shift(size_t range, size_t slab, unsigned shift)
{
    while (((range + slab) >> shift) > (size_t)UINT32_MAX + 1)
        shift++;
    return shift;
}

/* The smallest granule for a range that may grow to all that was asked for, else for one that can be what it must be at once: then
 * growth ends sooner. */
static unsigned
choose_shift(size_t max_bytes, size_t grow_bytes, size_t unit, size_t slab)
{
    size_t most = round_up(grow_bytes > max_bytes ? grow_bytes : max_bytes, unit);

    if (granule_shift(most, slab, GRANULE_BITS) == GRANULE_BITS)
        return GRANULE_BITS;
    return granule_shift(round_up(max_bytes, unit), slab, GRANULE_BITS + 1);
}

static void *
reserve(size_t bytes, int protection)
{
    void *map = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return map == MAP_FAILED ? NULL : map;
}

/* The range of the arena and, before it, the slab that nobody uses. */
static bool
range_reserve(struct near__arena *arena)
{
    size_t lead  = arena->unit;
    size_t align = arena->range >= CHUNK_BYTES ? CHUNK_BYTES : arena->page;
    char  *start;

    arena->map_bytes = lead + align + arena->range;
    arena->map       = reserve(arena->map_bytes, PROT_NONE);
    if (arena->map == NULL)
        return false;
    start       = (char *)round_up((size_t)arena->map + lead, align);
    arena->base = start - slab_bytes(arena);
    /* a system without 2 MiB pages refuses this, which says so */
    arena->huge_pages = arena->page == 4096 && madvise(start, arena->range, MADV_NOHUGEPAGE) == 0;
    return true;
}

static bool
records_reserve(struct near__arena *arena)
{
    arena->meta_bytes = round_up((arena->slab_count + 1) * arena->stride, arena->page);
    arena->meta_map   = reserve(arena->meta_bytes, PROT_NONE);
    if (arena->meta_map == NULL)
        return false;
    arena->slabs = arena->meta_map;
    madvise(arena->slabs, arena->meta_bytes, MADV_NOHUGEPAGE); /* only some of them may ever be used */
    return true;
}

static bool
tables_reserve(struct near__arena *arena)
{
    size_t words[LEVELS], bytes = 0, bits = arena->slab_count;
    size_t units  = (arena->range / arena->unit + 63) / 64;
    size_t chunks = (arena->range + CHUNK_BYTES - 1) >> CHUNK_SHIFT;
    char  *at;

    arena->levels = 0;
    do {
        bits                   = (bits + 63) / 64;
        words[arena->levels++] = bits;
        bytes += bits * sizeof(uint64_t);
    } while (bits > 1);
    bytes += units * sizeof(uint64_t) + chunks * sizeof(struct chunk);
    arena->tables_bytes = round_up(bytes, arena->page);
    at = arena->tables = reserve(arena->tables_bytes, PROT_READ | PROT_WRITE);
    if (at == NULL)
        return false;
    madvise(at, arena->tables_bytes, MADV_NOHUGEPAGE);
    for (unsigned i = 0; i < arena->levels; at += words[i++] * sizeof(uint64_t))
        arena->free[i] = (uint64_t *)(void *)at;
    arena->resident_units = (uint64_t *)(void *)at;
    arena->chunks         = (struct chunk *)(void *)(at + units * sizeof(uint64_t));
    return true;
}

static void
unmap(char **map, size_t bytes)
{
    if (*map != NULL)
        munmap(*map, bytes);
    *map = NULL;
}

static bool
reserve_all(struct near__arena *arena, size_t range)
{
    arena->range      = range;
    arena->slab_count = range >> arena->slab_shift;
    if (range_reserve(arena) && records_reserve(arena) && tables_reserve(arena))
        return true;
    unmap(&arena->map, arena->map_bytes);
    unmap(&arena->meta_map, arena->meta_bytes);
    return false;
}

/* As much as the system lets us have between what is needed and what would be nice. */
static bool
reserve_most(struct near__arena *arena, size_t least, size_t most)
{
    for (size_t range = most; range > least; range = round_up(least + (range - least) / 2, arena->unit)) {
        if (reserve_all(arena, range))
            return true;
        if (range - least <= arena->unit || range - least < CHUNK_BYTES)
            break; /* not worth another try */
    }
    return reserve_all(arena, least);
}

near_status
near__arena_open(struct near__arena **out, size_t max_bytes, size_t grow_bytes, size_t slab)
{
    return near__arena_open_lines(out, max_bytes, grow_bytes, slab, LINE_FROM);
}

near_status
near__arena_open_lines(struct near__arena **out, size_t max_bytes, size_t grow_bytes, size_t slab,
                       size_t line_from)
{
    struct near__arena *arena;
    unsigned            shift;
    size_t              page = (size_t)sysconf(_SC_PAGESIZE), unit = slab > page ? slab : page, limit;

    *out = NULL;
    if (slab < SLAB_MIN || slab > SLAB_MAX || (slab & (slab - 1)) != 0)
        return NEAR_ERR_INVALID;
    if (max_bytes > RANGE_MAX)
        return NEAR_ERR_NOMEM;
    max_bytes  = max_bytes < unit ? unit : max_bytes;
    grow_bytes = grow_bytes < RANGE_MAX ? grow_bytes : RANGE_MAX;
    shift      = choose_shift(max_bytes, grow_bytes, unit, slab);
    if (((size_t)16 << shift) > slab)
        return NEAR_ERR_NOMEM; /* slabs so small cannot fill a range so large */
    limit = (((size_t)UINT32_MAX + 1) << shift) - unit;

    arena = aligned_alloc(64, round_up(sizeof(*arena), 64));
    if (arena == NULL)
        return NEAR_ERR_NOMEM;
    memset(arena, 0, sizeof(*arena));
    arena->class_of = calloc(1, (slab / 2 >> shift) + 1);
    if (arena->class_of == NULL) {
        free(arena);
        return NEAR_ERR_NOMEM;
    }
    arena->line_from    = line_from < LINE ? LINE : line_from < LINE_FROM ? line_from : LINE_FROM;
    arena->shift        = shift;
    arena->slab_shift   = (unsigned)__builtin_ctzll(slab);
    arena->number_shift = arena->slab_shift - shift;
    arena->stride       = slab >= WIDE_SLAB ? 64 : sizeof(struct slab);
    arena->page         = page;
    arena->unit         = unit;
    atomic_init(&arena->max_bytes, max_bytes);
    classes_make(arena);
    max_bytes  = round_up(max_bytes, unit);
    grow_bytes = round_up(grow_bytes < limit ? grow_bytes : limit, unit);
    if (!reserve_most(arena, max_bytes, grow_bytes > max_bytes ? grow_bytes : max_bytes)) {
        free(arena->class_of);
        free(arena);
        return NEAR_ERR_NOMEM;
    }
    near__lock_init(&arena->lock, NEAR__RANK_LEAF);
    *out = arena;
    return NEAR_OK;
}

void
near__arena_close(struct near__arena **out)
{
    struct near__arena *arena = *out;

    *out = NULL;
    if (arena == NULL)
        return;
    for (size_t i = 0; i < arena->opened; i++) /* whoever gets these addresses next may use them */
        UNPOISON(slab_memory(arena, 1) + (i << CHUNK_SHIFT), chunk_bytes(arena, i));
    near__lock_fini(&arena->lock);
    unmap(&arena->map, arena->map_bytes);
    unmap(&arena->meta_map, arena->meta_bytes);
    unmap(&arena->tables, arena->tables_bytes);
    free(arena->class_of);
    free(arena);
}

struct near__arena_view
near__arena_view(const struct near__arena *arena)
{
    return (struct near__arena_view){ arena->base, arena->shift };
}

size_t
near__arena_slab_bytes(const struct near__arena *arena)
{
    return slab_bytes(arena);
}

void
near__arena_limit(struct near__arena *arena, size_t max_bytes)
{
    atomic_store_explicit(&arena->max_bytes, max_bytes, memory_order_relaxed); /* a number, no more */
}

size_t
near__arena_range(const struct near__arena *arena)
{
    return arena->range;
}

size_t
near__arena_committed(const struct near__arena *arena)
{
    return resident(arena) + atomic_load_explicit(&arena->touched, memory_order_relaxed);
}

size_t
near__arena_trim(struct near__arena *arena, size_t budget)
{
    size_t given;

    near__lock(&arena->lock);
    given = trim(arena, budget, true);
    near__unlock(&arena->lock);
    return given;
}

void
near__arena_tidy(struct near__arena *arena, size_t budget)
{
    near__lock(&arena->lock);
    trim(arena, budget, false);
    near__unlock(&arena->lock);
}

/* ---- the rings of partial slabs */

/* Into the ring before its head, which is its end. */
static void
ring_append(struct near__heap *heap, uint32_t *head, uint32_t number)
{
    struct slab *slab = slab_at(heap->arena, number);

    if (*head == 0) {
        slab->prev = slab->next = *head = number;
        return;
    }
    struct slab *first = slab_at(heap->arena, *head), *last = slab_at(heap->arena, first->prev);

    slab->next  = *head;
    slab->prev  = first->prev;
    last->next  = number;
    first->prev = number;
}

static void
ring_push(struct near__heap *heap, uint32_t *head, uint32_t number)
{
    ring_append(heap, head, number);
    *head = number;
}

static void
ring_remove(struct near__heap *heap, uint32_t *head, uint32_t number)
{
    struct slab *slab = slab_at(heap->arena, number);

    if (slab->next == number) {
        *head = 0;
        return;
    }
    slab_at(heap->arena, slab->prev)->next = slab->next;
    slab_at(heap->arena, slab->next)->prev = slab->prev;
    if (*head == number)
        *head = slab->next;
}

/* ---- heaps */

void
near__heap_init(struct near__heap *heap, struct near__arena *arena, uint32_t owner, size_t max_bytes)
{
    memset(heap, 0, sizeof(*heap));
    heap->arena     = arena;
    heap->owner     = owner;
    heap->max_bytes = max_bytes;
    heap->largest   = slab_bytes(arena) / 2;
}

void
near__heap_fini(struct near__heap *heap)
{
    struct near__arena *arena = heap->arena;
    size_t              slabs = 0, opened;

    near__lock(&arena->lock);
    opened = arena->opened << CHUNK_SHIFT < arena->range ? arena->opened << CHUNK_SHIFT : arena->range;
    for (size_t number = 1; number <= opened >> arena->slab_shift; number++) {
        if (bit_get(arena->free[0], number - 1) || slab_at(arena, (uint32_t)number)->owner != heap->owner)
            continue;
        slab_give_locked(arena, (uint32_t)number);
        slabs++;
    }
    near__unlock(&arena->lock);
    near__heap_discharge(heap, heap->bytes - (slabs << arena->slab_shift));
    near__heap_init(heap, arena, heap->owner, heap->max_bytes);
}

static unsigned
class_of(const struct near__arena *arena, size_t size)
{
    return arena->class_of[(size + ((size_t)1 << arena->shift) - 1) >> arena->shift];
}

size_t
near__heap_class_bytes(const struct near__heap *heap, size_t size)
{
    return size > heap->largest ? 0 : class_bytes(heap->arena, class_of(heap->arena, size));
}

/* The heap's empty slab leaves its class. */
static uint32_t
spare_detach(struct near__heap *heap)
{
    uint32_t number            = heap->spare;
    unsigned class             = slab_at(heap->arena, number)->class;
    struct near__heap_class *c = &heap->classes[class];

    heap->spare = 0;
    ring_remove(heap, &c->partial, number);
    c->slabs--;
    c->free_slots -= heap->arena->classes[class].slots;
    return number;
}

/* An empty slab for whatever: the spare one, or one of the arena's. */
static uint32_t
heap_slab(struct near__heap *heap, bool *zeroed)
{
    size_t   bytes = slab_bytes(heap->arena);
    uint32_t number;

    *zeroed = false;
    if (heap->spare != 0)
        return spare_detach(heap);
    if (heap->bytes > heap->max_bytes || heap->max_bytes - heap->bytes < bytes)
        return 0;
    number = slab_take(heap->arena, heap->owner, zeroed);
    heap->bytes += number != 0 ? bytes : 0;
    return number;
}

static bool
class_grow(struct near__heap *heap, unsigned class)
{
    struct near__heap_class *c = &heap->classes[class];
    bool                     zeroed;
    uint32_t                 number = heap_slab(heap, &zeroed);
    struct slab             *slab;

    if (number == 0)
        return false;
    slab        = slab_at(heap->arena, number);
    slab->free  = NOTHING;
    slab->last  = NOTHING;
    slab->bump  = 0;
    slab->live  = 0;
    slab->class = (uint8_t) class;
    slab->state = SLAB_PARTIAL;
    ring_push(heap, &c->partial, number);
    c->slabs++;
    c->free_slots += heap->arena->classes[class].slots;
    return true;
}

/* Where the block lies that is the next one never used.  Each slab begins at another of its blocks and goes round: if all began at
 * their start, slabs that are partly filled would meet in the same sets of the processor's cache. */
static size_t
fresh_offset(struct size_class sizes, uint32_t number, size_t bump)
{
    size_t end = (size_t)sizes.slots * sizes.granules, offset = bump + number % sizes.slots * sizes.granules;

    return offset < end ? offset : offset - end;
}

static uint32_t
block_take(struct near__heap *heap, unsigned class)
{
    const struct near__arena *arena  = heap->arena;
    struct size_class         sizes  = arena->classes[class];
    struct near__heap_class  *c      = &heap->classes[class];
    uint32_t                  number = c->partial;
    struct slab              *slab   = slab_at(arena, number);
    size_t                    offset = slab->last;
    char                     *block;

    if (offset != NOTHING)
        slab->last = NOTHING;
    else if (slab->free != NOTHING)
        offset = slab->free;
    else {
        offset     = fresh_offset(sizes, number, slab->bump);
        slab->bump = (uint16_t)(slab->bump + sizes.granules);
    }
    block = slab_memory(arena, number) + (offset << arena->shift);
    UNPOISON(block, (size_t)sizes.granules << arena->shift);
    if (offset == slab->free) {
        slab->free = (uint16_t) * (uint32_t *)(void *)block;
        if (slab->free != NOTHING) /* its first word is what the take after this one waits for */
            __builtin_prefetch(slab_memory(arena, number) + ((size_t)slab->free << arena->shift));
    }
    if (slab->live == 0 && heap->spare == number)
        heap->spare = 0;
    c->free_slots--;
    if (++slab->live == sizes.slots) {
        slab->state = SLAB_FULL;
        ring_remove(heap, &c->partial, number);
    }
    return (number << arena->number_shift) + (uint32_t)offset;
}

/* No slab for this class: a block of the next one is better than none, if it is not much larger.  (The owner would evict something
 * else while that one lies idle.) */
static uint32_t
block_borrow(struct near__heap *heap, unsigned class)
{
    size_t bytes = class_bytes(heap->arena, class);

    for (unsigned next = class + 1; next < heap->arena->class_count; next++) {
        if (class_bytes(heap->arena, next) > bytes + bytes / 8)
            return 0;
        if (heap->classes[next].partial != 0)
            return block_take(heap, next);
    }
    return 0;
}

/* One block more is asked for.  What was asked for long ago counts for less and less. */
static void
ask(struct near__heap *heap, struct near__heap_class *class)
{
    class->asked++;
    if (++heap->asked < ASKED_MAX)
        return;
    heap->asked /= 2;
    for (unsigned i = 0; i < heap->arena->class_count; i++)
        heap->classes[i].asked /= 2;
}

/* Among sizes that are mixed, half a slab for each of the fine classes would cost more than their blocks save: a class between two words
 * gets a slab if many blocks are of it.  Others take blocks of the word above. */
static bool
is_rare(const struct near__heap *heap, unsigned class)
{
    size_t bytes = class_bytes(heap->arena, class);

    return bytes % WORD != 0 && class_bytes(heap->arena, class + 1) == round_up(bytes, WORD) &&
           (size_t)heap->classes[class].asked * RARE_PART < heap->asked;
}

uint32_t
near__heap_alloc(struct near__heap *heap, size_t size)
{
    unsigned class;

    if (size > heap->largest)
        return 0;
    class = class_of(heap->arena, size);
    ask(heap, &heap->classes[class]);
    if (heap->classes[class].partial == 0 && is_rare(heap, class))
        class ++;
    if (heap->classes[class].partial == 0 && !class_grow(heap, class))
        return block_borrow(heap, class);
    return block_take(heap, class);
}

static void
block_link(const struct near__arena *arena, struct slab *slab, char *block, size_t offset)
{
    if (slab->last == NOTHING)
        slab->last = (uint16_t)offset;
    else {
        *(uint32_t *)(void *)block = slab->free;
        slab->free                 = (uint16_t)offset;
    }
    POISON(block, class_bytes(arena, slab->class));
}

/* The last block of a slab that takes new ones is free: the heap keeps one such slab. */
static void
slab_empty(struct near__heap *heap, uint32_t number)
{
    struct slab *slab = slab_at(heap->arena, number);

    if (heap->spare == 0 && heap->bytes <= heap->max_bytes) {
        heap->spare = number;
        slab->free  = NOTHING; /* from its start again */
        slab->last  = NOTHING;
        slab->bump  = 0;
        return;
    }
    uint32_t kept = heap->spare;

    heap->spare = number;
    slab_give(heap, spare_detach(heap));
    heap->spare = kept;
}

/* A block of a slab that is anything but partial, or becomes empty. */
static void
free_rare(struct near__heap *heap, uint32_t number, char *block, size_t offset)
{
    struct slab             *slab = slab_at(heap->arena, number);
    struct near__heap_class *c    = &heap->classes[slab->class];

    block_link(heap->arena, slab, block, offset);
    if (slab->state == SLAB_DRAINING) {
        if (slab->live > 0)
            return;
        c->slabs--;
        slab_give(heap, number);
        return;
    }
    c->free_slots++;
    if (slab->state == SLAB_FULL)
        ring_push(heap, &c->partial, number);
    slab->state = SLAB_PARTIAL;
    if (slab->live == 0)
        slab_empty(heap, number);
}

void
near__heap_free(struct near__heap *heap, uint32_t ref)
{
    const struct near__arena *arena  = heap->arena;
    uint32_t                  number = ref >> arena->number_shift;
    size_t                    offset = ref & ((1u << arena->number_shift) - 1);
    struct slab              *slab   = slab_at(arena, number);
    char                     *block  = arena->base + ((size_t)ref << arena->shift);

    if (--slab->live == 0 || slab->state != SLAB_PARTIAL) {
        free_rare(heap, number, block, offset);
        return;
    }
    block_link(arena, slab, block, offset);
    heap->classes[slab->class].free_slots++;
}

size_t
near__heap_block_bytes(const struct near__heap *heap, uint32_t ref)
{
    return class_bytes(heap->arena, slab_at(heap->arena, ref >> heap->arena->number_shift)->class);
}

void *
near__heap_slab(struct near__heap *heap)
{
    bool     zeroed;
    uint32_t number = heap_slab(heap, &zeroed);
    char    *memory;

    if (number == 0)
        return NULL;
    memory = slab_memory(heap->arena, number);
    UNPOISON(memory, slab_bytes(heap->arena));
    slab_at(heap->arena, number)->state = SLAB_WHOLE;
    if (!zeroed)
        memset(memory, 0, slab_bytes(heap->arena));
    return memory;
}

void
near__heap_slab_free(struct near__heap *heap, void *slab)
{
    slab_give(heap, (uint32_t)((size_t)((char *)slab - heap->arena->base) >> heap->arena->slab_shift));
}

static void
spare_drop(struct near__heap *heap)
{
    if (heap->spare != 0)
        slab_give(heap, spare_detach(heap));
}

bool
near__heap_charge(struct near__heap *heap, size_t bytes)
{
    struct near__arena *arena = heap->arena;
    size_t              budget;

    if (heap->bytes > heap->max_bytes || heap->max_bytes - heap->bytes < bytes)
        spare_drop(heap);
    if (heap->bytes > heap->max_bytes || heap->max_bytes - heap->bytes < bytes)
        return false;
    heap->bytes += bytes;
    atomic_fetch_add_explicit(&arena->charged, bytes,
                              memory_order_relaxed); /* a number, as in page_budget() */
    budget = page_budget(arena);
    if (resident(arena) > budget)
        near__arena_trim(arena, resident(arena) - budget);
    return true;
}

void
near__heap_discharge(struct near__heap *heap, size_t bytes)
{
    heap->bytes -= bytes;
    atomic_fetch_sub_explicit(&heap->arena->charged, bytes, memory_order_relaxed); /* as above */
}

void
near__heap_limit(struct near__heap *heap, size_t max_bytes)
{
    heap->max_bytes = max_bytes;
    if (heap->bytes > max_bytes)
        spare_drop(heap);
}

size_t
near__heap_slack(const struct near__heap *heap)
{
    size_t bytes = 0;

    for (unsigned i = 0; i < heap->arena->class_count; i++)
        bytes += heap->classes[i].free_slots * class_bytes(heap->arena, i);
    return bytes;
}

/* ---- compaction */

/* The sparsest of the last partial slabs of a class (those that new blocks have not reached for longest); 0: all are stuck. */
static uint32_t
sparsest(const struct near__heap *heap, unsigned class)
{
    uint32_t head = heap->classes[class].partial, number = head, best = 0;

    if (head == 0)
        return 0;
    for (unsigned i = 0; i < SCAN_MAX; i++) {
        const struct slab *slab;

        number = slab_at(heap->arena, number)->prev;
        slab   = slab_at(heap->arena, number);
        if (slab->state == SLAB_PARTIAL && (best == 0 || slab->live < slab_at(heap->arena, best)->live))
            best = number;
        if (number == head)
            break;
    }
    return best;
}

/* The slab to empty: of the class with most free bytes that has a slab's worth of free slots, so that what is live in the slab fits
 * into the others. */
static uint32_t
choose(const struct near__heap *heap)
{
    size_t   most   = 0;
    uint32_t chosen = 0;

    for (unsigned i = 0; i < heap->arena->class_count; i++) {
        size_t   slots = heap->classes[i].free_slots, bytes = slots * class_bytes(heap->arena, i);
        uint32_t number;

        if (slots < heap->arena->classes[i].slots || bytes <= most)
            continue;
        number = sparsest(heap, i);
        if (number == 0)
            continue;
        most   = bytes;
        chosen = number;
    }
    return chosen;
}

/* Which of the slab's blocks are live, by index. */
static void
live_blocks(const struct near__arena *arena, uint32_t number, uint64_t *bits)
{
    const struct slab *slab     = slab_at(arena, number);
    unsigned           granules = arena->classes[slab->class].granules;

    for (unsigned i = 0; i < slab->bump / granules; i++)
        bit_set(bits, fresh_offset(arena->classes[slab->class], number, (size_t)i * granules) / granules);
    if (slab->last != NOTHING)
        bit_clear(bits, slab->last / granules);
    for (size_t offset = slab->free; offset != NOTHING;) {
        char *block = slab_memory(arena, number) + (offset << arena->shift);

        bit_clear(bits, offset / granules);
        UNPOISON(block, sizeof(uint32_t));
        offset = *(uint32_t *)(void *)block;
        POISON(block, (size_t)1 << arena->shift);
    }
}

/* Move the live blocks; false as soon as one cannot be moved. */
static bool
drain(struct near__heap *heap, uint32_t number, bool (*move)(void *, uint32_t, uint32_t, size_t), void *ctx)
{
    const struct near__arena *arena = heap->arena;
    unsigned class = slab_at(arena, number)->class, granules = arena->classes[class].granules;
    uint64_t bits[SLAB_MAX >> GRANULE_BITS >> 6] = { 0 };

    live_blocks(arena, number, bits);
    for (size_t i = 0; i < arena->classes[class].slots; i++) {
        uint32_t     from = (number << arena->number_shift) + (uint32_t)(i * granules), to;
        struct slab *other;
        uint8_t      state;

        if (!bit_get(bits, i))
            continue;
        other = slab_at(arena, heap->classes[class].partial);
        state = other->state;
        to    = block_take(heap, class);
        if (move(ctx, from, to, class_bytes(arena, class)))
            continue;
        near__heap_free(heap, to);
        if (state == SLAB_STUCK)
            other->state = SLAB_STUCK; /* nothing has really left it */
        return false;
    }
    return true;
}

bool
near__heap_compact(struct near__heap *heap, bool (*move)(void *ctx, uint32_t from, uint32_t to, size_t bytes),
                   void              *ctx)
{
    uint32_t                 number;
    struct slab             *slab;
    struct near__heap_class *c;
    bool                     drained;

    if (heap->spare != 0) {
        spare_drop(heap);
        return true;
    }
    number = choose(heap);
    if (number == 0)
        return false;
    slab = slab_at(heap->arena, number);
    c    = &heap->classes[slab->class];
    ring_remove(heap, &c->partial, number);
    c->free_slots -= heap->arena->classes[slab->class].slots - slab->live;
    slab->state = SLAB_DRAINING;
    slab->live++; /* ours: move() may free the blocks at once, but the slab stays until we are done */
    drained = drain(heap, number, move, ctx);
    slab->live--;
    if (slab->live == 0) {
        c->slabs--;
        slab_give(heap, number);
        return true;
    }
    if (drained)
        return true;
    slab->state = SLAB_STUCK;
    c->free_slots += heap->arena->classes[slab->class].slots - slab->live;
    ring_append(heap, &c->partial, number);
    return false;
}
