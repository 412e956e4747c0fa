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
struct near__spill;
struct near__l1_domain;
struct near__curve_answer;

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
    void                  *sample_ctx;
    const _Atomic int64_t *tick;  /* the time, for reads that are not given it; 0 while nobody tells it */
    bool                   curve; /* keep ghosts of other sizes (l1/curve.h) */
    struct near__spill
        *spill; /* hears of what is evicted, filled and invalidated (l1/disk.h); NULL: nobody */
    /* No entry is fresh longer after its birth.  0: no such bound. */
    int64_t ttl, grace; /* grace: how long past `ttl` a value stays to be handed out as stale */
    bool
            is_pool; /* it is one of several: its owner keeps the fences (l1/pools.h), and tells the disk tier of what is its own */
    uint8_t pool;    /* ... its number there, from 1 */
    /* Several pools instead, each of its own size, policy and ttl; 0: none.  max_bytes and policy above are then nobody's, max_entries
     * is divided as the bytes are. */
    unsigned                      pools_n;
    const struct near__l1_domain *pools;
    /* The number of the pool for what does not say it, from 1; 0: the first.  Called with no lock held.  NULL: the first. */
    unsigned (*pool_of)(void *ctx, near_bytes key, size_t value_size);
    void *pool_ctx;
    /* Called after anything was invalidated or written, or is about to be, with no lock held, before the call that did it returns.  NULL:
     * nobody wants to know. */
    void (*wrote)(void *ctx);
    void *wrote_ctx;
    size_t
        align_from; /* values of this size and more lie at a multiple of 64; 0, or above 1024: from 1024 on */
};

#define NEAR__POOLS_MAX 8

struct near__l1_domain {
    size_t      max_bytes;
    const char *policy;
    int64_t     ttl; /* 0: the entry's own alone */
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

/*
 * Many values copied out, their memory accesses overlapped over groups: while the entries of one group are being copied those of the next
 * are on their way, and the index's lines of the one after.  Each group goes through aim, seek and copy; the sights are the caller's room.
 * No handle is taken for what is copied.
 */
struct near__l1_sight {
    struct near__table  *table;
    struct near__bucket *bucket;
    unsigned             lane;
    bool                 stale; /* cleared: nothing is there */
};
struct near__l1_copy {
    char  *to;
    size_t room;
    size_t size; /* COPIED: so many bytes */
    near_value *
        value; /* COPIED, or what near__l1_find() gives: nothing, something past its time, or larger than the room */
};
#define NEAR__L1_COPIED ((near_value *)(uintptr_t)1)
void near__l1_aim(struct near__l1 *l1, const uint64_t *hashes, size_t n, struct near__l1_sight *sights);
void near__l1_seek(struct near__l1 *l1, const uint64_t *hashes, size_t n, size_t room,
                   struct near__l1_sight *sights);
void near__l1_copy(struct near__l1 *l1, const uint64_t *hashes, const near_bytes *keys, size_t n, int64_t now,
                   const struct near__l1_sight *sights, struct near__l1_copy *copies);

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
/* For who inserts many: the lines that near__l1_fence() reads, or an insert besides, are on their way.  Changes nothing. */
void near__l1_bring_fence(const struct near__l1 *l1, uint64_t hash);
void near__l1_bring(const struct near__l1 *l1, uint64_t hash);

/* The same for a write that is judged by what its caller saw in L1 after capturing `fence`, in one step: FENCED, and nothing is
 * touched, if that may no longer be so or a local write of the stripe is under way; else the fence moves. */
enum near__l1_admission near__l1_store_if(struct near__l1 *l1, struct near__entry *entry, uint64_t fence,
                                          int64_t now);

/* The same for what the disk tier gave back, but that it is there already is no news to it.  FENCED, too, when the key is present, or
 * anything was filled since: what came from elsewhere is no older. */
enum near__l1_admission near__l1_return(struct near__l1 *l1, struct near__entry *entry, uint64_t fence,
                                        int64_t now);
/* Let the disk tier answer with a record of its former life: if nothing came since `fence` was captured, fills included, and before L2
 * was asked; `fence` NEAR__L1_UNTOUCHED: if nothing came since it was opened. */
bool near__l1_adopt(struct near__l1 *l1, uint64_t hash, near_bytes key, uint64_t fence, uint64_t at,
                    uint32_t size);
#define NEAR__L1_UNTOUCHED UINT64_MAX
/* Whether one of these tags was invalidated since they were captured. */
bool near__l1_labels_outdated(const struct near__l1 *l1, const struct near__labels *labels);

/* An invalidation: moves the key's fence and drops the key. */
void near__l1_invalidate(struct near__l1 *l1, uint64_t hash, near_bytes key);
/* Everything: moves all fences at once, drops all. */
void near__l1_flush(struct near__l1 *l1);

/* The clock of tags: capture it with the fence, before the slower tier is asked, for the labels of what it brings. */
uint32_t near__l1_label_clock(const struct near__l1 *l1);
/* The clock at the last invalidation of a tag with this hash, or of one that shares its stripe: it only grows.  0: never. */
uint32_t near__l1_label_moment(const struct near__l1 *l1, uint64_t hash);
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

/*
 * Snapshots.  A walk shows every entry that is there from its beginning to its end at least once, what comes and goes meanwhile perhaps,
 * some twice (a bucket that splits).  It takes no lock and counts no hit; what has ended is passed over.
 */
struct near__l1_seen {
    near_bytes        key, value;
    near_bytes        names; /* of its tags, as in near__labels */
    unsigned          tags;
    struct near__meta meta;
    bool              negative;
    bool              unknown; /* a decoded value whose bytes were not kept: there is no `value` */
    uint8_t           warmth;  /* how much it has been used, in the policy's own measure */
};
struct near__l1_cursor {
    unsigned pool; /* of an L1 with pools, from 0 */
    size_t   shard;
    uint32_t home;
};
/* Shows the entries of the next `homes` buckets, each borrowed for one call of `fn`, which may block: only the one that it is shown is kept
 * in place.  From a cursor of zeros on.  False: that was the end.  NEAR_ERR_NOMEM is not to be had: a reader without slots sees nothing. */
bool near__l1_walk(struct near__l1 *l1, struct near__l1_cursor *cursor, size_t homes, int64_t now,
                   void (*fn)(void *ctx, const struct near__l1_seen *seen), void *ctx);

/* Entries of a former life come back between these two.  `expected`: how many there may be (policies measure by it); 0: not known.  `alone`:
 * nobody confirms them, so fills are remembered (256 KiB) from begin on, and nothing that was filled meanwhile can be followed by something
 * older, evicted or not.  begin: NEAR_OK or NEAR_ERR_NOMEM. */
near_status near__l1_restore_begin(struct near__l1 *l1, size_t expected, bool alone);
void        near__l1_restore_end(struct near__l1 *l1);
/*
 * One of them, admitted as a fill is, and only where nothing is; the policy is told how warm it was, and that it is no new key.  `fence`:
 * captured before L2 was asked.  `alone`: nobody was; with NEAR__L1_FENCE_BIRTH it is refused if anything of its stripe was invalidated
 * since this L1 was made, or its key perhaps filled since near__l1_restore_begin().
 */
#define NEAR__L1_FENCE_BIRTH 0
enum near__l1_admission near__l1_restore(struct near__l1 *l1, struct near__entry *entry, near_bytes key,
                                         uint64_t fence, bool alone, uint8_t warmth, int64_t now);
/* That key comes soon: its lines of the index are wanted. */
void near__l1_expect(const struct near__l1 *l1, uint64_t hash);
/* Whether that would copy it: then `entry` may live on the caller's stack, with its `key` beside it and a value that is only borrowed. */
bool near__l1_copies(const struct near__l1 *l1, const struct near__entry *entry);

struct near__l1_stats {
    uint64_t fills, fills_refused, evictions, expired, too_large; /* counters */
    uint64_t hits;                                                /* values handed out, negative ones not */
    uint64_t entries,
        bytes; /* levels; bytes: the arena's slabs and everything outside it but the fences (16 bytes a stripe: one
                                stripe for 16 entries expected, 1024 to 16384 of them, so 16 to 256 KiB) */
};
void near__l1_stats(struct near__l1 *l1, struct near__l1_stats *stats);

/* How many pools it was opened with; 0: it is one. */
unsigned near__l1_pools(const struct near__l1 *l1);
/* One of them, by its number from 1: what it counts and may keep, and its curve (as near__l1_curve()). */
void near__l1_pool_stats(struct near__l1 *l1, unsigned pool, struct near__l1_stats *stats, size_t *max_bytes);
bool near__l1_pool_curve(struct near__l1 *l1, unsigned pool, struct near__curve_answer *answer);
/* The pool that has the key now, 0: none. */
unsigned near__l1_pool_of(struct near__l1 *l1, uint64_t hash, near_bytes key, int64_t now);
/* A new bound for one of them; the others keep theirs.  As near__l1_resize(). */
near_status near__l1_pool_resize(struct near__l1 *l1, unsigned pool, size_t max_bytes);

/* A request that a find did not answer, to be told for the curve; does nothing in an L1 without. */
void near__l1_missed(struct near__l1 *l1, uint64_t hash);
/* A value that was found, and counted as a hit, is not used as one: past its time, for instance. */
void near__l1_unused(struct near__l1 *l1);
/* How it would hit with other sizes.  False: it keeps no ghosts. */
bool near__l1_curve(struct near__l1 *l1, struct near__curve_answer *answer);

/* ---- what is handed out; more in l1/find.h */

/* `now` of the same clock as when the entry was made. */
void near__value_meta(const near_value *value, int64_t now, struct near__meta *meta);
void near__value_ref(near_value *value);
/* A counted entry with the value's bytes and numbers: the same one, or a copy of an arena's block, which needs its key and hash.
 * The caller's reference.  NULL: out of memory. */
struct near__entry *near__value_counted(const near_value *value, near_bytes key, uint64_t hash, int64_t now);

#endif
