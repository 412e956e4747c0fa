/*
 * The memory of one L1: one range of addresses, cut into slabs, handed to the shards.
 *
 *   arena ── the range, reserved once, committed as it is needed; free slabs           (its own leaf lock)
 *   heap  ── one per shard: slabs of that shard by size class, free blocks, the budget  (the shard's lock)
 *
 * A block is named by a 32-bit reference: its distance from the arena's base in granules (8 bytes, more in huge arenas);
 * 0 names none.  Blocks never move on their own; near__heap_compact() asks the owner to move them.
 *
 * What counts: a heap's bytes are its slabs, whole, used or not, so the sum over all heaps is what the arena's pages cost.
 */
#ifndef NEAR_L1_ARENA_H
#define NEAR_L1_ARENA_H

#include "base/lock.h"

struct near__arena; /* opaque but for the two fields readers need */
struct near__arena_view {
    char    *base;
    unsigned shift; /* log2 of the granule */
};
static inline void *
near__arena_at(const struct near__arena_view *view, uint32_t ref)
{
    return view->base + ((size_t)ref << view->shift);
}

/* A range that can hold `max_bytes` and grow to `grow_bytes` later (as far as addresses allow), with slabs of `slab_bytes` (a power
 * of two, 512 bytes to 64 KiB).  Uses 2 MiB pages where the system offers them and whole ones fit into the budget. */
near_status near__arena_open(struct near__arena **arena, size_t max_bytes, size_t grow_bytes, size_t slab_bytes);
/* Unmaps everything. */
void                    near__arena_close(struct near__arena **arena);
struct near__arena_view near__arena_view(const struct near__arena *arena);
/* Bytes of addresses reserved, from the view's base on. */
size_t                  near__arena_range(const struct near__arena *arena);
size_t                  near__arena_slab_bytes(const struct near__arena *arena);
/* Pages really committed (touched and not given back), for tests against RSS. */
size_t near__arena_committed(const struct near__arena *arena);
/* Give the pages of free slabs back to the system, at most about `budget` bytes of them; how many it gave. */
size_t near__arena_trim(struct near__arena *arena, size_t budget);

#define NEAR__HEAP_CLASSES_MAX 96
struct near__heap_class {
    uint32_t partial;    /* first slab of this class that has room, as slab number + 1 */
    uint32_t slabs;      /* how many slabs the class has */
    size_t   free_slots; /* over all its slabs */
};
struct near__heap {
    struct near__arena     *arena;
    uint32_t                owner; /* number of the shard */
    size_t                  bytes; /* slabs held, and what near__heap_charge() added */
    size_t                  max_bytes;
    struct near__heap_class classes[NEAR__HEAP_CLASSES_MAX];
};
void near__heap_init(struct near__heap *heap, struct near__arena *arena, uint32_t owner, size_t max_bytes);
/* Gives all slabs back, whatever is in them. */
void near__heap_fini(struct near__heap *heap);

/* The largest block: half a slab (the header of l1/l1.c says where larger values live). */
size_t near__heap_largest(const struct near__heap *heap);
/* The bytes a block of this size really takes (its class), 0 if it is too large. */
size_t near__heap_class_bytes(const struct near__heap *heap, size_t size);
/* A block, or 0: the budget is used up (or the system gives no memory).  Aligned to the granule. */
uint32_t near__heap_alloc(struct near__heap *heap, size_t size);
void     near__heap_free(struct near__heap *heap, uint32_t ref);
/* Bytes of the block's class. */
size_t near__heap_block_bytes(const struct near__heap *heap, uint32_t ref);
/* A whole slab of zeroed memory for index, queues ...; counts against the budget.  Zeroed.  NULL as above. */
void *near__heap_slab(struct near__heap *heap);
void  near__heap_slab_free(struct near__heap *heap, void *slab);
/* Memory from elsewhere that this shard must pay for: false (nothing charged) if it does not fit. */
bool near__heap_charge(struct near__heap *heap, size_t bytes);
void near__heap_discharge(struct near__heap *heap, size_t bytes);
/* A new budget, larger or smaller: only a number; bytes > max_bytes afterwards means that the owner must evict and compact. */
void near__heap_limit(struct near__heap *heap, size_t max_bytes);

/*
 * Memory moves between classes: empty one slab.  Chooses the sparsest slab of the class with most free slots that the class can do
 * without, and calls `move(ctx, from, to, bytes)` for each of its live blocks, with `to` allocated in another slab of the class:
 * the owner copies, makes its index point to `to`, retires `from` and returns true; or returns false (the block cannot be moved
 * now: `to` is free again and the slab stays).  The emptied slab is free once the owner has freed the last retired `from`.
 * Bounded: one slab.  False: there is nothing to gain (no class has a slab's worth of free slots).
 */
bool near__heap_compact(struct near__heap *heap, bool (*move)(void *ctx, uint32_t from, uint32_t to, size_t bytes),
                        void *ctx);

/* Bytes in free slots, and in rounding to classes that the owner asked for (requested sizes are not kept: slots only). */
size_t near__heap_slack(const struct near__heap *heap);

#endif
