/*
 * Holding a block of memory without writing anything that others write: hazard slots.
 *
 * A reader that found a block announces it in a slot of its own, by a plain store, and looks once more whether the block is still
 * linked; if so, nobody reuses the block's memory until the slot is empty again.  That is M. Michael, "Hazard Pointers", IEEE TPDS
 * 15(6), 2004, with the full fence between the store and the second look moved to the reclaimer: membarrier(2) makes every other
 * running thread pass a fence, so readers need only keep the compiler from reordering.  Where the kernel has no membarrier the
 * reader pays for a fence of its own.
 *
 * A slot is also the application's handle on a value: it stays occupied for as long as the value is held, by whoever, and is
 * emptied by a plain store from whatever thread lets go.  A value that is held for hours keeps its own block and nothing else.
 *
 * Reclaiming goes by barriers, numbered: a block that was unlinked before barrier k began may be reused once k is complete, unless
 * a slot named it then.  One barrier serves all shards of all L1s of the process.
 *
 * What exists: one record per thread that ever read (64 slots, more in chunks when more values are held at once), in one list of
 * the process.  Records are never freed, only taken over by later threads, so a slot's memory is valid for good: that is what
 * allows a release after the client was closed.  This list and the last barrier's result are the only state that belongs to the
 * process and not to a client.
 *
 * Threads: near__hazard_* under any locks but a leaf's.  The thread's own record is touched by that thread only; its slots are
 * emptied by anyone.
 */
#ifndef NEAR_L1_HAZARD_H
#define NEAR_L1_HAZARD_H

#include "base/base.h"

#include <stdatomic.h>

struct near__hazard {
    _Atomic(const void *) block; /* NULL: the slot is free */
    _Atomic uint32_t      more;  /* holders beyond the first (near_value_ref) */
} __attribute__((aligned(16)));

#define NEAR__HAZARD_SLOTS 63 /* in a chunk; the place of the 64th marks the end and is never free */

/* What a thread reads with; each field belongs to that thread, `hits` may be read by others (relaxed). */
struct near__reader {
    struct near__hazard *next; /* where to look for a free slot first */
    _Atomic uint64_t    *hits; /* counts per L1, by its number: plain additions, no other thread writes */
    size_t               hits_count; /* numbers below this have a count */
};

#define NEAR__INSIDE __attribute__((visibility("hidden"))) /* reached without the global offset table */

/* The record of a thread that has none: its only slot is never free, so whoever reads quickly need not ask. */
extern struct near__reader near__reader_nobody NEAR__INSIDE;

extern _Thread_local struct near__reader *near__reader_mine __attribute__((tls_model("initial-exec")))
NEAR__INSIDE;

/* What makes a release more than a store: bit 0, membarrier is not to be had (set before the first record exists); bit 1, something
 * is buried. */
enum { NEAR__HAZARD_FENCES = 1, NEAR__HAZARD_BURIED = 2 };
extern _Atomic unsigned near__hazard_flags NEAR__INSIDE;

static inline bool
near__hazard_fences(void)
{
    return atomic_load_explicit(&near__hazard_flags, memory_order_relaxed) & NEAR__HAZARD_FENCES;
}

/* The calling thread's record, made when it is first asked for.  NULL: no memory. */
struct near__reader *near__reader_new(void);
/* A free slot when `next` is none.  NULL: no memory. */
struct near__hazard *near__hazard_search(struct near__reader *reader);
/* Room for the count of L1 number `number`. */
bool near__reader_hits_grow(struct near__reader *reader, size_t number);

static inline struct near__reader *
near__reader(void)
{
    struct near__reader *mine = near__reader_mine;

    return __builtin_expect(mine != &near__reader_nobody, 1) ? mine : near__reader_new();
}

/* A free slot of the calling thread; it stays free until near__hazard_set().  NULL: no memory. */
static inline struct near__hazard *
near__hazard_slot(struct near__reader *reader)
{
    struct near__hazard *slot = reader->next;

    /* acquire: pairs with near__hazard_clear(), whoever emptied the slot is done with the block */
    if (__builtin_expect(atomic_load_explicit(&slot->block, memory_order_acquire) == NULL, 1))
        return slot;
    return near__hazard_search(reader);
}

/* Announce.  The caller looks again whether the block is linked after this. */
static inline void
near__hazard_set(struct near__hazard *slot, const void *block)
{
    /* release: a later content of the slot still says that what was read before is done (pairs with the scan) */
    atomic_store_explicit(&slot->block, block, memory_order_release);
    if (__builtin_expect(near__hazard_fences(), 0))
        atomic_fetch_add_explicit(&slot->more, 0,
                                  memory_order_seq_cst); /* a full fence that ThreadSanitizer knows */
    else
        atomic_signal_fence(
            memory_order_seq_cst); /* the other half is membarrier(2) in near__hazard_barrier() */
}

/* Empty the slot: the release pairs with the scan's acquire. */
static inline void
near__hazard_clear(struct near__hazard *slot)
{
    atomic_store_explicit(&slot->block, NULL, memory_order_release);
}

/* ---- reclaiming */

/* The number to retire a block with, taken after it was unlinked. */
uint64_t near__hazard_epoch(void);
/* Whether a barrier that began after that number has completed. */
bool near__hazard_passed(uint64_t epoch);
/* Complete a barrier that begins after `epoch` was taken, or find that somebody else's has.  Blocks for microseconds. */
void near__hazard_barrier(uint64_t epoch);
/* Whether a slot named the block in the last barrier. */
bool near__hazard_held(const void *block);
/* The number of blocks that were held in the last barrier: 0 saves asking for each. */
size_t near__hazard_count(void);

/* ---- values that outlive their L1
 *
 * The owner of a range of memory gives it up while blocks in it are still held: `end(ctx)` runs once, at the last release or at
 * once when nothing is held.  No lock may be held.  `grave` is memory that was put by for this in better times, taken over here; NULL:
 * none was, and NEAR_ERR_NOMEM is possible: nothing was done. */
void       *near__hazard_grave(void);
near_status near__hazard_bury(void *grave, const void *from, const void *to, void (*end)(void *ctx),
                              void *ctx);
/* The rest of a release while any of the flags is set; `block` is what the slot named. */
void near__hazard_wake(struct near__hazard *slot, const void *block);

/* The last holder lets go of a value. */
static inline void
near__hazard_release(struct near__hazard *slot)
{
    const void *block = atomic_load_explicit(&slot->block, memory_order_relaxed); /* the holder's own */

    near__hazard_clear(slot);
    atomic_signal_fence(memory_order_seq_cst); /* the other half is membarrier(2) in near__hazard_bury() */
    if (__builtin_expect(atomic_load_explicit(&near__hazard_flags, memory_order_relaxed) != 0, 0))
        near__hazard_wake(slot, block);
}

/* ---- counts of L1 hits, kept by the reading threads */

/* A number for an L1, from a small dense range; SIZE_MAX: no memory (count elsewhere). */
size_t near__hits_open(void);
/* The number is free again; its counts are lost. */
void     near__hits_close(size_t number);
uint64_t near__hits_sum(size_t number);

static inline void
near__hits_add(struct near__reader *reader, size_t number, uint64_t n)
{
    if (__builtin_expect(number >= reader->hits_count, 0) && !near__reader_hits_grow(reader, number))
        return;
    atomic_store_explicit(&reader->hits[number],
                          atomic_load_explicit(&reader->hits[number], memory_order_relaxed) + n,
                          memory_order_relaxed);
}

#endif
