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

/* What every hit needs of an L1.  Fixed after its birth, so whoever reads much may keep a copy where it looks anyway. */
struct near__l1_path {
    struct near__arena_view view;
    size_t                  shard_mask;
    struct near__table     *tables; /* one per shard, side by side */
    size_t                  number; /* of its count of hits */
    const _Atomic int64_t  *tick; /* the time as somebody tells it; 0: nobody does.  NULL: nobody ever will */
};

/* What readers load of an L1: fixed after its birth, but for `timed` and `labels`. */
struct near__l1_front {
    struct near__l1_path path;
    void (*watch)(struct near__order *order, uint32_t element, bool hit);
    void (*sample)(void *ctx, uint64_t hash,
                   near_bytes key); /* hears of one hit in NEAR__L1_SAMPLE; may be NULL */
    void        *sample_ctx;
    bool         fast;  /* the fast path may be taken: it keeps something, and membarrier is to be had */
    _Atomic bool timed; /* sticky: an entry that may expire was admitted */
    _Atomic(struct near__label_clock *) labels; /* NULL: no tag was ever seen */
};

#define NEAR__LIKELY(x)   __builtin_expect(!!(x), 1)
#define NEAR__UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Whether a hit is one to look at closely, by its number: a multiplication spreads them, so that no rhythm of the callers meets its
 * own. */
static inline bool
near__l1_is_sample(uint64_t number)
{
    return (uint32_t)number * UINT32_C(0x9E3779B1) < (UINT32_C(1) << 31) / (NEAR__L1_SAMPLE / 2);
}

/* Whether any entry may expire: while false, `now` makes no difference to a find. */
static inline bool
near__l1_timed(const struct near__l1 *l1)
{
    /* relaxed: who did not see it set does not know of that entry either */
    return atomic_load_explicit(&((const struct near__l1_front *)l1)->timed, memory_order_relaxed);
}

/* Whether one use more would leave the mark as it is: it was used in this tick, and as often as can be counted. */
static inline bool
near__l1_used_up(const struct near__table *table, uint8_t mark)
{
    /* relaxed: as in near__table_marks() */
    return (mark & atomic_load_explicit(&table->used_mask, memory_order_relaxed)) ==
           atomic_load_explicit(&table->used, memory_order_relaxed);
}

/* Note a use; whether the mark changed. */
static inline bool
near__l1_use(const struct near__table *table, _Atomic uint8_t *place)
{
    uint8_t old = atomic_load_explicit(place, memory_order_relaxed);
    uint8_t mark;

    if (near__l1_used_up(table, old))
        return false;
    mark = near__mark_hit(old, atomic_load_explicit(&table->tick, memory_order_relaxed),
                          atomic_load_explicit(&table->count_mask, memory_order_relaxed));
    if (mark == old)
        return false;
    /* Relaxed, and no exchange.  A count or a tick may be lost when two write at once: they are hints.  What the policy itself wrote
     * between our load and this store is lost, too: queues know that (near__rings_short()). */
    atomic_store_explicit(place, mark, memory_order_relaxed);
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

/* What was found. */
struct near__l1_held {
    near_value      *value;
    _Atomic uint8_t *mark; /* in its bucket */
    bool             more; /* near__l1_after() is due: its mark is to change, or it is a sample */
};

/* What a block is judged by.  Either the time is given, or it is read where it is told, for the few entries that need it; then only what
 * is simple is wanted: fresh values without tags. */
struct near__l1_time {
    int64_t now;
    bool    is_told;
};

static inline __attribute__((always_inline)) near_value *
near__l1_worth(const struct near__l1_path *path, const struct near__l1_front *front,
               const struct near__block *block, unsigned flags, struct near__hazard *hazard,
               struct near__l1_time time)
{
    uint32_t ms;
    int64_t  now;

    if (!time.is_told)
        return near__l1_judge(front, flags, block, hazard, time.now);
    if (flags & (NEAR__BLOCK_NEGATIVE | NEAR__BLOCK_LABELS))
        return NULL;
    now = atomic_load_explicit(path->tick, memory_order_relaxed); /* relaxed: a time, it orders nothing */
    ms  = (uint32_t)((uint64_t)now / NEAR_MS); /* never negative, which a division need not know of */
    if (NEAR__UNLIKELY(now == 0))
        return NULL;
    if ((flags & NEAR__BLOCK_EXPIRES) &&
        NEAR__UNLIKELY(near__block_passed(near__block_u32(block, NEAR__BLOCK_EXPIRES), ms)))
        return NULL;
    if ((flags & NEAR__BLOCK_FRESH) &&
        NEAR__UNLIKELY(near__block_passed(near__block_u32(block, NEAR__BLOCK_FRESH), ms)))
        return NULL;
    return (near_value *)((uintptr_t)hazard | NEAR__VALUE_SLOT | NEAR_FROM_L1);
}

/* A slot of a bucket whose tag is the key's: hold its block and see whether it is what is wanted.  False: not so simple.  `front` is
 * not looked at where the time is told. */
static inline __attribute__((always_inline)) bool
near__l1_hold(const struct near__l1_path *path, const struct near__l1_front *front,
              struct near__reader *reader, struct near__hazard *hazard, struct near__table *table,
              struct near__place place, near_bytes key, struct near__l1_time time, struct near__l1_held *held)
{
    uint32_t                  ref   = near__bucket_ref(place.bucket, place.lane);
    const struct near__block *block = near__arena_at(&path->view, ref);
    unsigned                  flags;
    uint64_t                  hits;
    size_t                    number;

    /* release and the compiler's fence: as in near__hazard_set(); the other half of the fence is membarrier(2) */
    atomic_store_explicit(&hazard->block, block, memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
    if (NEAR__UNLIKELY(near__bucket_ref(place.bucket, place.lane) != ref || ref == 0 ||
                       !near__block_is_plain(block, key)))
        goto not_simple;
    held->value = (near_value *)((uintptr_t)hazard | NEAR__VALUE_SLOT | NEAR_FROM_L1);
    held->mark  = &place.bucket->marks[place.lane];
    flags       = block->flags;
    number      = path->number;
    if (NEAR__UNLIKELY(reader->hits_count <= number))
        goto not_simple;
    if (flags & (NEAR__BLOCK_EXPIRES | NEAR__BLOCK_FRESH | NEAR__BLOCK_NEGATIVE | NEAR__BLOCK_LABELS)) {
        held->value = near__l1_worth(path, front, block, flags, hazard, time);
        if (NEAR__UNLIKELY((uintptr_t)held->value <= NEAR__VALUE_BITS))
            goto not_simple;
    }
    reader->next = hazard + 1;
    hits         = atomic_load_explicit(&reader->hits[number], memory_order_relaxed) + 1;
    atomic_store_explicit(&reader->hits[number], hits, memory_order_relaxed);
    held->more =
        NEAR__UNLIKELY(!near__l1_used_up(table, atomic_load_explicit(held->mark, memory_order_relaxed))) ||
        NEAR__UNLIKELY(near__l1_is_sample(hits));
    return true;
not_simple:
    near__hazard_clear(hazard);
    return false;
}

/* What a few hits leave to do while the value is held.  NEAR_OK, so that a caller may end with it. */
near_status near__l1_after(struct near__l1_front *front, _Atomic uint8_t *mark, uint64_t hash,
                           near_bytes key);

/* The same from the hash on; the key is the first in its chain that has its tag.  False: not so simple, which a miss is, too. */
static inline __attribute__((always_inline)) bool
near__l1_meet(const struct near__l1_path *path, const struct near__l1_front *front, uint64_t hash,
              near_bytes key, struct near__l1_time time, struct near__l1_held *held)
{
    struct near__reader *reader  = near__reader_mine;
    uint32_t             element = near__element(hash), match;
    struct near__bucket *bucket;
    struct near__hazard *hazard;
    struct near__table  *table;

    hazard = reader->next;
    /* acquire: as in near__hazard_slot() */
    if (NEAR__UNLIKELY(atomic_load_explicit(&hazard->block, memory_order_acquire) != NULL))
        return false; /* it is taken, or the chunk's end, or the thread has none */
    table  = &path->tables[hash & path->shard_mask];
    bucket = near__table_bucket(table, near__table_home(near__table_size(table), element));
    if (NEAR__UNLIKELY(near__bucket_stale(table, bucket)))
        return false;
    while (NEAR__UNLIKELY((match = near__bucket_match(bucket, near__tag(element))) == 0)) {
        bucket = near__table_after(table, bucket);
        if (bucket == NULL)
            return false;
    }
    return near__l1_hold(path, front, reader, hazard, table,
                         (struct near__place){ bucket, NEAR__LANE(match) }, key, time, held);
}

/* Whether the key is absent, if that can be told by its tag alone, as it nearly always can.  False says nothing. */
static inline bool
near__l1_lacks(const struct near__l1_path *path, uint64_t hash)
{
    struct near__table  *table   = &path->tables[hash & path->shard_mask];
    uint64_t             size    = near__table_size(table);
    struct near__bucket *home    = near__table_bucket(table, near__table_home(size, near__element(hash)));
    uint16_t             version = near__bucket_version(home);

    if (near__bucket_stale(table, home))
        return true;
    for (struct near__bucket *bucket = home; bucket != NULL; bucket = near__table_after(table, bucket))
        for (uint32_t match = near__bucket_match(bucket, near__tag(near__element(hash))); match != 0;
             match          = NEAR__LANE_NEXT(match))
            if (near__bucket_ref(bucket, NEAR__LANE(match)) !=
                0) /* a slot keeps its tag when it is emptied */
                return false;
    return near__table_settled(table, size, home, version);
}

/* near__l1_find(), quickly where it is simple. */
static inline __attribute__((always_inline)) near_value *
near__l1_hit(struct near__l1_front *front, uint64_t hash, near_bytes key, int64_t now)
{
    struct near__l1_time time = { .now = now };
    struct near__l1_held held;

    if (NEAR__UNLIKELY(!front->fast || !near__l1_meet(&front->path, front, hash, key, time, &held)))
        return near__l1_find((struct near__l1 *)front, hash, key, now);
    if (NEAR__UNLIKELY(held.more))
        near__l1_after(front, held.mark, hash, key);
    return held.value;
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
    if (NEAR__LIKELY((uintptr_t)value & NEAR__VALUE_SLOT))
        return near__block_value(near__slot_block(near__value_address(value)));
    return near__entry_bytes(near__value_address(value));
}

/* The counted object of a decoded value, held as long as the value is; NULL: it has none. */
static inline struct near__object *
near__value_object(const near_value *value)
{
    const struct near__entry *entry = near__value_address(value);
    const struct near__block *block;

    if (!((uintptr_t)value & NEAR__VALUE_SLOT))
        return entry->object;
    block = near__slot_block(near__value_address(value));
    return near__block_has_object(block) ? near__block_object(block) : NULL;
}

/* What it counts as: its bytes, or what its codec said. */
static inline size_t
near__value_size(const near_value *value)
{
    const struct near__object *object = near__value_object(value);

    return object != NULL ? object->size : near__value_data(value).size;
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
