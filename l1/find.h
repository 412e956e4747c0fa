/*
 * The hit path, inline: from a hash to a held value, and what is done with one.
 *
 * It has no lock, no locked instruction, no fence, no allocation and no clock; it writes the thread's own hazard slot and count,
 * and the entry's mark when that changes.  It knows the common case only: the key is the first that has its tag.  Whatever is
 * different (a tag that two keys share, large values, a bucket that changes under it, a thread's first read) goes
 * to near__l1_find(), which gives the same answer more slowly.  See l1/l1.c for who owns what and why it is safe.
 */
#ifndef NEAR_L1_FIND_H
#define NEAR_L1_FIND_H

#include "l1/arena.h"
#include "l1/hazard.h"
#include "l1/l1.h"
#include "l1/policy.h"

/* What readers load of an L1: fixed after its birth, but for `timed`. */
struct near__l1_front {
    struct near__arena_view view;
    size_t                  shard_mask;
    struct near__table     *tables; /* one per shard, side by side */
    void (*watch)(struct near__order *order, uint32_t element, bool hit);
    size_t number; /* of its count of hits */
    void (*sample)(void *ctx, uint64_t hash,
                   near_bytes key); /* hears of one hit in NEAR__L1_SAMPLE; may be NULL */
    void        *sample_ctx;
    bool         fast;  /* the fast path may be taken: it keeps something, and membarrier is to be had */
    _Atomic bool timed; /* sticky: an entry that may expire was admitted */
    _Atomic(struct near__label_clock *) labels; /* NULL: no tag was ever seen */
};

#define NEAR__LIKELY(x)   __builtin_expect(!!(x), 1)
#define NEAR__UNLIKELY(x) __builtin_expect(!!(x), 0)

/* A use was noted that the policy wants to hear of. */
void near__l1_watch(struct near__l1_front *front, uint64_t hash);

/* Whether a hit is one to look at closely, by its number: a multiplication spreads them, so that no rhythm of the callers meets its
 * own. */
static inline bool
near__l1_is_sample(uint64_t number)
{
    return (uint32_t)number * UINT32_C(0x9E3779B1) < (UINT32_C(1) << 31) / (NEAR__L1_SAMPLE / 2);
}

void near__l1_sample(struct near__l1_front *front, uint64_t hash, near_bytes key);

/* Whether any entry may expire: while false, `now` makes no difference to a find. */
static inline bool
near__l1_timed(const struct near__l1 *l1)
{
    /* relaxed: who did not see it set does not know of that entry either */
    return atomic_load_explicit(&((const struct near__l1_front *)l1)->timed, memory_order_relaxed);
}

/* Note a use; whether the mark changed. */
static inline bool
near__l1_use(const struct near__table *table, struct near__bucket *bucket, unsigned lane)
{
    uint8_t old        = atomic_load_explicit(&bucket->marks[lane], memory_order_relaxed);
    uint8_t tick       = atomic_load_explicit(&table->tick, memory_order_relaxed);
    uint8_t count_mask = atomic_load_explicit(&table->count_mask, memory_order_relaxed);
    uint8_t mark;

    if (NEAR__LIKELY(old ==
                     (tick | (count_mask & 15)))) /* used in this tick and as often as can be counted */
        return false;
    mark = near__mark_hit(old, tick, count_mask);
    if (mark == old)
        return false;
    /* Relaxed.  A count or a tick may be lost when two write at once: they are hints.  Bits that the policy itself wrote must not be
     * overwritten by what they were: an exchange, and if it fails the use is lost. */
    if (count_mask & 0xf0)
        return atomic_compare_exchange_strong_explicit(&bucket->marks[lane], &old, mark, memory_order_relaxed,
                                                       memory_order_relaxed);
    atomic_store_explicit(&bucket->marks[lane], mark, memory_order_relaxed);
    return true;
}

/* What an announced arena block is worth now: a handle on the slot, NEAR__L1_NEGATIVE or NULL (expired, or a tag was
 * invalidated). */
static inline near_value *
near__l1_judge(const struct near__l1_front *front, unsigned flags, const struct near__block *block,
               struct near__hazard *slot, int64_t now)
{
    uintptr_t value = (uintptr_t)slot | NEAR__VALUE_SLOT | NEAR_FROM_L1;

    /* acquire: pairs with the release of whoever made the clock, before the block was linked */
    if ((flags & NEAR__BLOCK_LABELS) &&
        near__block_outdated(block, atomic_load_explicit(&front->labels, memory_order_acquire)))
        return NULL;
    if ((flags & NEAR__BLOCK_EXPIRES) &&
        NEAR__UNLIKELY(near__block_past(near__block_u32(block, NEAR__BLOCK_EXPIRES), now)))
        return NULL;
    if ((flags & NEAR__BLOCK_FRESH) && near__block_past(near__block_u32(block, NEAR__BLOCK_FRESH), now)) {
        if (flags & NEAR__BLOCK_NEGATIVE)
            return NULL; /* nothing to fall back on */
        value |= NEAR__VALUE_STALE;
    }
    return NEAR__UNLIKELY(flags & NEAR__BLOCK_NEGATIVE) ? NEAR__L1_NEGATIVE : (near_value *)value;
}

/* A slot of a bucket whose tag is the key's: hold its block and see whether it is what is wanted.  NULL: not so simple. */
static inline __attribute__((always_inline)) near_value *
near__l1_take(struct near__l1_front *front, struct near__reader *reader, struct near__hazard *hazard,
              struct near__table *table, struct near__place place, uint64_t hash, near_bytes key, int64_t now)
{
    uint32_t                  ref    = near__bucket_ref(place.bucket, place.lane);
    size_t                    number = front->number;
    uint64_t                  hits;
    const struct near__block *block = near__arena_at(&front->view, ref);
    near_value               *value;

    /* release and the compiler's fence: as in near__hazard_set(); the other half of the fence is membarrier(2) */
    atomic_store_explicit(&hazard->block, block, memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
    if (NEAR__UNLIKELY(ref == 0 || near__bucket_ref(place.bucket, place.lane) != ref ||
                       !near__block_is_plain(block, key) || reader->hits_count <= number))
        goto not_simple;
    value = (near_value *)((uintptr_t)hazard | NEAR__VALUE_SLOT | NEAR_FROM_L1);
    if (block->flags &
        (NEAR__BLOCK_EXPIRES | NEAR__BLOCK_FRESH | NEAR__BLOCK_NEGATIVE | NEAR__BLOCK_LABELS)) {
        value = near__l1_judge(front, block->flags, block, hazard, now);
        if (NEAR__UNLIKELY((uintptr_t)value <= NEAR__VALUE_BITS))
            goto not_simple;
    }
    if (NEAR__UNLIKELY(near__l1_use(table, place.bucket, place.lane)) && front->watch != NULL)
        near__l1_watch(front, hash);
    reader->next = hazard + 1;
    hits         = atomic_load_explicit(&reader->hits[number], memory_order_relaxed) + 1;
    atomic_store_explicit(&reader->hits[number], hits, memory_order_relaxed);
    if (NEAR__UNLIKELY(near__l1_is_sample(hits)))
        near__l1_sample(front, hash, key);
    return value;
not_simple:
    near__hazard_clear(hazard);
    return NULL;
}

/* near__l1_find(), quickly where it is simple. */
static inline __attribute__((always_inline)) near_value *
near__l1_hit(struct near__l1_front *front, uint64_t hash, near_bytes key, int64_t now)
{
    struct near__reader *reader  = near__reader_mine;
    uint32_t             element = near__element(hash), match;
    struct near__bucket *home, *bucket;
    struct near__hazard *hazard;
    struct near__table  *table;
    near_value          *value;
    uint64_t             size;
    uint16_t             version;

    if (NEAR__UNLIKELY(reader == NULL || !front->fast))
        goto slow;
    hazard = near__hazard_slot(reader);
    if (NEAR__UNLIKELY(hazard == NULL))
        return NULL;
    table   = &front->tables[hash & front->shard_mask];
    size    = near__table_size(table);
    home    = near__table_bucket(table, near__table_home(size, element));
    bucket  = home;
    version = near__bucket_version(home);
    if (NEAR__UNLIKELY(near__bucket_stale(table, home)))
        goto slow;
    while (NEAR__UNLIKELY((match = near__bucket_match(bucket, near__tag(element))) == 0)) {
        bucket = near__table_after(table, bucket);
        if (bucket != NULL)
            continue;
        if (near__table_settled(table, size, home, version))
            return NULL;
        goto slow;
    }
    value = near__l1_take(front, reader, hazard, table, (struct near__place){ bucket, NEAR__LANE(match) },
                          hash, key, now);
    if (NEAR__LIKELY(value != NULL))
        return value;
slow:
    return near__l1_find((struct near__l1 *)front, hash, key, now);
}

/* ---- what is handed out */

/* The slot of a value that is held in the arena; NULL: it is a counted entry. */
static inline struct near__hazard *
near__value_slot(const near_value *value)
{
    return (uintptr_t)value & NEAR__VALUE_SLOT ? near__value_address(value) : NULL;
}

static inline const struct near__block *
near__slot_block(const struct near__hazard *slot)
{
    /* relaxed: the holder's own slot, or he was given the value by somebody who synchronised with him */
    return atomic_load_explicit(&slot->block, memory_order_relaxed);
}

static inline near_bytes
near__value_data(const near_value *value)
{
    const struct near__entry *entry = near__value_address(value);

    if (NEAR__LIKELY((uintptr_t)value & NEAR__VALUE_SLOT))
        return near__block_value(near__slot_block(near__value_address(value)));
    return (near_bytes){ entry->value, entry->value_size };
}

/* The value without its mark of staleness: whoever knows its times marks it himself. */
static inline near_value *
near__value_fresh_bits(near_value *value)
{
    return (near_value *)((uintptr_t)value & ~NEAR__VALUE_STALE);
}

/* One of several holders of a slot: false, he was the last. */
bool near__value_shared_release(struct near__hazard *slot);

/* Of a counted entry. */
void near__value_release_counted(near_value *value);

static inline void
near__value_release(near_value *value)
{
    struct near__hazard *slot = near__value_address(value);

    if (NEAR__UNLIKELY(!((uintptr_t)value & NEAR__VALUE_SLOT))) {
        near__value_release_counted(value);
        return;
    }
    /* Nobody but a holder makes it more, so 0 means that this is the last.  acquire: pairs with the release of the other holders,
     * what they read comes before the block's reuse. */
    if (NEAR__UNLIKELY(atomic_load_explicit(&slot->more, memory_order_acquire) != 0) &&
        near__value_shared_release(slot))
        return;
    near__hazard_release(slot);
}

#endif
