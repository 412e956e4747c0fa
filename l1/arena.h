/*
 * The memory of one L1: one range of addresses, cut into slabs, handed to the shards.
 *
 *   arena ── the range, reserved once, committed as it is needed; free slabs           (its own leaf lock)
 *   heap  ── one per shard: slabs of that shard by size class, free blocks, the budget  (the shard's lock)
 *
 * A block is named by a 32-bit reference: its distance from the arena's base in granules (4 bytes, 8 in arenas that may grow beyond
 * 16 GiB, more in huge ones); 0 names none.  Blocks never move on their own; near__heap_compact() asks the owner to move them.
 *
 * What counts: a heap's bytes are its slabs, whole, used or not, and what was charged to it, so the sum over all heaps is what the
 * arena's pages and the charged memory cost.  As long as the heaps' budgets sum up to the arena's, resident pages and charges
 * together stay within it: pages of free slabs are given back before others are taken.  Not counted: 64 bytes for each slab of
 * 32 KiB or more (0.2 %), 24 for each smaller one.
 *
 * Classes are multiples of the granule up to 160 bytes, of 8 up to 256, then an eighth apart.  Those that are no multiple of 8 have slabs
 * only where half of the blocks are theirs: many classes that are each used a little cost more than they save.
 *
 * What is lost: rounding to classes, and after compaction less than one slab's worth of free slots in each class in use.  With sizes
 * that change from tiny to 2 KiB to mixed a heap of 256 slabs was used to 80-95 %, one of 512 slabs to 87-95 %
 * (tests/unit/test_arena.c prints it).
 *
 * Threads: an arena's functions, any; a heap's, whoever holds its shard's lock.  Heaps of one arena work side by side: they meet
 * only when a whole slab moves.
 *
 * Addresses that were once handed out stay readable until the arena is closed, whatever became of the block.
 */
#ifndef NEAR_L1_ARENA_H
#define NEAR_L1_ARENA_H

#include "base/lock.h"

struct near__arena;

/* What readers need, copied to where they look anyway; it never changes. */
struct near__arena_view {
    char    *base;
    unsigned shift; /* log2 of the granule */
};
static inline void *
near__arena_at(const struct near__arena_view *view, uint32_t ref)
{
    return view->base + ((size_t)ref << view->shift);
}

/*
 * A range that can hold `max_bytes` and grow to `grow_bytes` later, with slabs of `slab_bytes` (a power of two, 512 bytes to
 * 64 KiB).  Growth ends where the references of a granule that fits `max_bytes` end (8 bytes: 32 GiB; 4 bytes are taken only where all
 * of `grow_bytes` fits), and where the system refuses to reserve more.  Uses 2 MiB pages where the system offers them and whole ones fit
 * into the budget.
 * NEAR_ERR_INVALID (slab_bytes), NEAR_ERR_NOMEM.
 */
near_status near__arena_open(struct near__arena **arena, size_t max_bytes, size_t grow_bytes,
                             size_t slab_bytes);
/* The same where blocks of `line_from` bytes and more (64 to 1024, else the nearest of these) are rounded to, and lie at, multiples of
 * 64; above it is 1024. */
near_status near__arena_open_lines(struct near__arena **arena, size_t max_bytes, size_t grow_bytes,
                                   size_t slab_bytes, size_t line_from);
/* Unmaps everything; heaps need no near__heap_fini() before.  NULL inside is fine. */
void                    near__arena_close(struct near__arena **arena);
struct near__arena_view near__arena_view(const struct near__arena *arena);
size_t                  near__arena_slab_bytes(const struct near__arena *arena);
/* A new budget for the pages, larger or smaller: only a number.  A smaller one is kept once the heaps were limited, have evicted
 * and compacted, and near__arena_trim() has run. */
void near__arena_limit(struct near__arena *arena, size_t max_bytes);
/* How many bytes of slabs the range can hold at most: what near__arena_limit() may usefully be raised to. */
size_t near__arena_range(const struct near__arena *arena);
/* Pages really committed (touched and not given back), the arena's own tables included, for tests against RSS. */
size_t near__arena_committed(const struct near__arena *arena);
/* Give the pages of free slabs back to the system, at most about `budget` bytes of them (a 2 MiB page at a time where all of it is
 * free); how many it gave. */
size_t near__arena_trim(struct near__arena *arena, size_t budget);
/* The same while nothing presses: 2 MiB pages of which more than a quarter is in use stay whole. */
void near__arena_tidy(struct near__arena *arena, size_t budget);

#define NEAR__HEAP_CLASSES_MAX 100 /* slabs of 64 KiB in granules of 4 make 98 at most */
struct near__heap_class {
    uint32_t partial;    /* first of the ring of slabs that have room; slabs are numbered from 1 */
    uint32_t slabs;      /* how many slabs the class has */
    size_t   free_slots; /* over all its slabs that take new blocks */
    uint32_t asked;      /* blocks of late, as heap.asked */
};
struct near__heap {
    struct near__arena *arena;
    uint32_t            owner; /* number of the shard, of no other heap of this arena */
    uint32_t            spare; /* the one empty slab that the heap keeps, in a class's ring; 0: none */
    size_t              bytes; /* slabs held, and what near__heap_charge() added */
    size_t              max_bytes;
    uint32_t            asked; /* blocks of late: halved now and then */
    size_t largest; /* the largest block: half a slab (the header of l1/l1.c says where larger values live) */
    struct near__heap_class classes[NEAR__HEAP_CLASSES_MAX];
};
void near__heap_init(struct near__heap *heap, struct near__arena *arena, uint32_t owner, size_t max_bytes);
/* Gives all slabs back, whatever is in them, and forgets its charges. */
void near__heap_fini(struct near__heap *heap);

/* The bytes a block of this size really takes (its class), 0 if it is too large. */
size_t near__heap_class_bytes(const struct near__heap *heap, size_t size);
/* A block, or 0: the budget is used up (or the system gives no memory).  Aligned to the granule.  When there is no room for a slab
 * of the size's own class, it may come from the next one (see near__heap_block_bytes). */
uint32_t near__heap_alloc(struct near__heap *heap, size_t size);
void     near__heap_free(struct near__heap *heap, uint32_t ref);
/* Bytes of the block's class. */
size_t near__heap_block_bytes(const struct near__heap *heap, uint32_t ref);
/* A whole slab of zeroed memory for index, queues ...; counts against the budget.  Zeroed.  NULL as above. */
void *near__heap_slab(struct near__heap *heap);
void  near__heap_slab_free(struct near__heap *heap, void *slab);
/* Memory from elsewhere that this shard must pay for: false (nothing charged) if it does not fit.  Gives pages of free slabs back
 * if that is what it takes. */
bool near__heap_charge(struct near__heap *heap, size_t bytes);
void near__heap_discharge(struct near__heap *heap, size_t bytes);
/* A new budget, larger or smaller: only a number; bytes > max_bytes afterwards means that the owner must evict and compact. */
void near__heap_limit(struct near__heap *heap, size_t max_bytes);

/*
 * Memory moves between classes: empty one slab.  Takes the class with most free bytes that has a slab's worth of free slots, and
 * there the sparsest of some partial slabs, and calls `move(ctx, from, to, bytes)` for each of its live blocks, with `to` allocated
 * in another slab of the class: the owner copies, makes its index point to `to`, retires `from` and returns true; or returns false
 * (the block cannot be moved now: `to` is free again, the rest of the slab stays and is not tried again before one of its blocks
 * was freed).  The emptied slab is free once the owner has freed the last retired `from`; until then it takes no new blocks.
 * move() may free `from` itself, and nothing else of this heap.
 *
 * Bounded: one slab.  True: a slab is, or will be, free.  False: there is nothing to gain (no class has a slab's worth of free
 * slots), or move() refused.
 */
bool near__heap_compact(struct near__heap *heap,
                        bool (*move)(void *ctx, uint32_t from, uint32_t to, size_t bytes), void *ctx);

/* Bytes in free slots (rounding to classes is not in it: requested sizes are not kept). */
size_t near__heap_slack(const struct near__heap *heap);

#endif
