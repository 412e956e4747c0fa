/*
 * L1: the process-local cache of one near_cache.  Bounded in bytes (all overhead included) and in entries, sharded by hash.
 *
 *  - The caller computes the keyed hash once; the same 64 bits pick shard, bucket and fence.
 *  - Fences live here, outside the evictable entries: an array of counters that a key's hash selects, plus one for the whole.
 *    Each invalidation moves the fence of its key, whether the key is present or not.  A fill carries the fence it captured
 *    BEFORE it asked anybody slower, and is admitted only if that fence has not moved, checked under the lock that also orders
 *    the invalidation (races 1-5, doc/rules.md).
 *  - A hit takes no lock, executes no locked instruction or fence, allocates nothing and writes nothing that others write but
 *    the entry's use mark, and that only when it changes (adaptive then tries a lock, for the few keys it samples).  A value is valid as long as somebody holds it, and keeps nothing
 *    alive but its own memory (l1/hazard.h).
 *  - Time is a parameter: `now` is near__now() of the caller's clock.
 *
 * Threads: every function, any.  Nothing here calls the application while a lock is held (an adopted value's release function
 * runs after the shard's lock was dropped).
 */
#ifndef NEAR_L1_L1_H
#define NEAR_L1_L1_H

#include "l1/block.h"
#include "l1/entry.h"

struct near__l1;

struct near__l1_config {
    size_t max_bytes;   /* 0: keeps nothing */
    size_t max_entries; /* 0: no bound but the bytes */
    unsigned
        shards; /* power of two, at most 1024; 0: chosen so that a shard holds some thousand entries and no less than
                           4 MiB, 64 at most.  Never more shards than max_entries.  1 makes the policy's order one. */
    const char *policy; /* a name from near__policies */
    bool        plain;  /* keep no birth times of entries that do not expire: 4 bytes less each */
    /* The hash that callers pass, computed again: needed when the index grows or shrinks. */
    uint64_t (*hash)(const void *ctx, near_bytes key);
    const void *hash_ctx;
    /* Hears of about one hit in NEAR__L1_SAMPLE, on the reader's thread, while the value is held; may look keys up.  NULL: nobody. */
    void (*sample)(void *ctx, uint64_t hash, near_bytes key);
    void *sample_ctx;
};

#define NEAR__L1_SAMPLE 1024

/* NEAR_OK, NEAR_ERR_INVALID (unknown policy, shards out of range or not a power of two), NEAR_ERR_NOMEM. */
near_status near__l1_new(struct near__l1 **l1, const struct near__l1_config *config);
/* Lets go of every entry; values that are held stay valid until they are released.  NULL inside is fine. */
void near__l1_free(struct near__l1 **l1);

/* The key's value, held once more, with NEAR_FROM_L1 and whether it is past its fresh_until in its bits; NEAR__L1_NEGATIVE (not
 * held) when the entry says that there is no such thing; NULL: absent, expired, or no memory for a hazard slot. */
near_value *near__l1_find(struct near__l1 *l1, uint64_t hash, near_bytes key, int64_t now);
#define NEAR__L1_NEGATIVE ((near_value *)(uintptr_t)NEAR__VALUE_BITS)

/* The same for many keys at once, their memory accesses overlapped, NEAR__L1_GROUP of them at a time.  Writes values[i] for each. */
#define NEAR__L1_GROUP 32
void near__l1_find_many(struct near__l1 *l1, const uint64_t *hashes, const near_bytes *keys, size_t n,
                        int64_t now, near_value **values);

/* The fence of a key: how often it has moved, and in the low bits how many fills there were.  Capture it before the slower tier is asked.
 * Acquire: pairs with the release of whoever moves it, so what is asked afterwards is at least as new as that invalidation. */
uint64_t near__l1_fence(const struct near__l1 *l1, uint64_t hash);
#define NEAR__L1_FENCE_FILLS 16

/* How often it has moved between the two captures; fills do not move it. */
static inline uint64_t
near__l1_fence_moves(uint64_t before, uint64_t after)
{
    return (after >> NEAR__L1_FENCE_FILLS) - (before >> NEAR__L1_FENCE_FILLS);
}

static inline bool
near__l1_fence_same(uint64_t before, uint64_t after)
{
    return near__l1_fence_moves(before, after) == 0;
}

enum near__l1_admission {
    NEAR__L1_ADMITTED,
    NEAR__L1_FENCED,    /* the fence has moved, or a write of this process is under way */
    NEAR__L1_TOO_LARGE, /* costs more than half of its shard's bytes, or max_bytes is 0 */
    NEAR__L1_EXPIRED    /* expires <= now */
};

/*
 * Admit an entry, in place of an older one of the same key, if `fence` has not moved and no local write of the stripe is under
 * way (its end would drop the entry anyway, and until then two fills could show a reader the new value and then the old one).
 * Not admitted either, and what is there dropped, where another version came in from L2 since `fence` was captured: the two reads
 * overlapped, and which is newer is not known (G1: reads never go backwards).
 * Takes its own reference; the caller keeps his.  Evicts until the bounds hold.  TOO_LARGE and EXPIRED leave the key absent:
 * what is there is no newer than what was offered.
 */
enum near__l1_admission near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence,
                                        int64_t now);

/* The same for a write that is judged by what its caller saw in L1 after capturing `fence`, in one step: FENCED, and nothing is
 * touched, if that may no longer be so or a local write of the stripe is under way; else the fence moves. */
enum near__l1_admission near__l1_store_if(struct near__l1 *l1, struct near__entry *entry, uint64_t fence,
                                          int64_t now);

/* An invalidation: moves the key's fence and drops the key. */
void near__l1_invalidate(struct near__l1 *l1, uint64_t hash, near_bytes key);
/* Everything: moves all fences at once, drops all. */
void near__l1_flush(struct near__l1 *l1);

/* The clock of tags: capture it with the fence, before the slower tier is asked, for the labels of what it brings. */
uint32_t near__l1_label_clock(const struct near__l1 *l1);
/* Everything that carries the tag with this hash (near__hash_keyed of its name), now or in a fill under way: gone, in O(1). */
void near__l1_invalidate_tag(struct near__l1 *l1, uint64_t hash);
/* Whether a tag of a value was invalidated since its value was asked for, and perhaps before `until`, a clock captured later (a
 * stripe remembers only its last move, so with two of them the answer is yes). */
bool near__l1_value_outdated(const struct near__l1 *l1, const near_value *value, uint32_t until);
/* The names of its tags, as in near__labels; borrowed while the value is held. */
near_bytes near__value_names(const near_value *value);

/*
 * A write of this process brackets its L2 write with these two (G1).  begin: invalidates.  end: admits the new entry if no
 * invalidation came and no other local write of the stripe overlapped (either order of their L2 writes is then possible, so
 * nobody may guess); else drops the key.  Either way the fence has moved when end returns: a fill that read L2 before the write
 * is refused.  `entry` NULL: nothing to admit (a removal, or a write that failed).
 */
struct near__l1_write {
    uint64_t fence;
    bool     overlapped;
};
struct near__l1_write near__l1_write_begin(struct near__l1 *l1, uint64_t hash, near_bytes key);
void near__l1_write_end(struct near__l1 *l1, struct near__l1_write write, uint64_t hash, near_bytes key,
                        struct near__entry *entry, int64_t now);

/* Begin and end in one, for a write that has nothing between them (no L2, no bus).  `entry` lives on the caller's stack, with `key`
 * beside it and a value that is only borrowed.  False: too large to be copied into the arena; nothing was done. */
bool near__l1_store(struct near__l1 *l1, struct near__entry *entry, near_bytes key, int64_t now);

/*
 * Upkeep, for a scheduler, every 100 ms or so: lets expired entries go, gives back what clears and invalidations have left, follows
 * a changed bound.  In bounded steps: `steps` (a few dozen buckets or victims each) per shard, none holds a lock for more than some
 * microseconds.  True: there was more to do.
 */
bool near__l1_upkeep(struct near__l1 *l1, int64_t now, size_t steps);

/* New bounds, larger or smaller, in force for the next insert; what is too much leaves step by step, by inserts and upkeep.
 * NEAR_ERR_INVALID: beyond what the addresses reserved at the beginning can hold (16 times the first size), or so little that the
 * index, which never shrinks, would take more than half of it. */
near_status near__l1_resize(struct near__l1 *l1, size_t max_bytes, size_t max_entries);

struct near__l1_stats {
    uint64_t fills, fills_refused, evictions, expired, too_large; /* counters */
    uint64_t hits;                                                /* values handed out, negative ones not */
    uint64_t entries,
        bytes; /* levels; bytes: the arena's slabs and everything outside it but the fences (16 bytes a stripe: one
                                stripe for 16 entries expected, 1024 to 16384 of them, so 16 to 256 KiB) */
};
void near__l1_stats(struct near__l1 *l1, struct near__l1_stats *stats);

/* ---- what is handed out; more in l1/find.h */

/* `now` of the same clock as when the entry was made. */
void near__value_meta(const near_value *value, int64_t now, struct near__meta *meta);
void near__value_ref(near_value *value);
/* A counted entry with the value's bytes and numbers: the same one, or a copy of an arena's block, which needs its key and hash.
 * The caller's reference.  NULL: out of memory. */
struct near__entry *near__value_counted(const near_value *value, near_bytes key, uint64_t hash, int64_t now);

#endif
