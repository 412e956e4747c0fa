/*
 * L1: the process-local cache of one near_cache.  Bounded in bytes (overhead included) and in entries, sharded by hash.
 *
 * The meaning of this header is settled; how it is done inside is the room's own business (shards with a lock each today):
 *
 *  - The caller computes the keyed hash once; the same 64 bits pick shard, bucket and fence.
 *  - Fences live here, outside the evictable entries: an array of counters that a key's hash selects, plus one for the whole.
 *    Each invalidation moves the fence of its key, whether the key is present or not.  A fill carries the fence it captured
 *    BEFORE it asked anybody slower, and is admitted only if that fence has not moved, checked under the lock that also orders
 *    the invalidation (races 1-5, doc/rules.md).
 *  - A hit allocates nothing.  An entry is valid as long as somebody holds it.
 *  - Time is a parameter: `now` is near__now() of the caller's clock.
 *
 * Threads: every function, any.  Nothing here calls the application while a lock is held (an adopted value's release function
 * runs after the shard's lock was dropped).
 */
#ifndef NEAR_L1_L1_H
#define NEAR_L1_L1_H

#include "l1/entry.h"

struct near__l1;

struct near__l1_config {
    size_t max_bytes;   /* 0: keeps nothing */
    size_t max_entries; /* 0: no bound but the bytes */
    unsigned
        shards; /* power of two, at most 65536; 0: chosen so that a shard holds some thousand entries and no less
                        than 4 MiB, 64 at most.  Never more shards than max_entries.  1 makes the policy exact. */
    const char *policy; /* a name from near__l1_policies */
};

/* One row per eviction policy; each is one file.  All members run under the shard's lock and call nothing.  A flush empties a
 * queue by zeroing it. */
struct near__l1_queue {
    struct near__entry *newest, *oldest;
};
struct near__l1_policy {
    const char *name;
    void (*link)(struct near__l1_queue *queue, struct near__entry *entry);
    void (*hit)(struct near__l1_queue *queue, struct near__entry *entry);
    void (*unlink)(struct near__l1_queue *queue, struct near__entry *entry);
    struct near__entry *(*victim)(struct near__l1_queue *queue); /* NULL when empty; stays linked */
};
extern const struct near__l1_policy *const near__l1_policies[];                     /* ends with NULL */
const struct near__l1_policy              *near__l1_policy_named(const char *name); /* NULL: there is none */

/* NEAR_OK, NEAR_ERR_INVALID (unknown policy, shards out of range or not a power of two), NEAR_ERR_NOMEM. */
near_status near__l1_new(struct near__l1 **l1, const struct near__l1_config *config);
/* Lets go of every entry.  NULL inside is fine. */
void near__l1_free(struct near__l1 **l1);

/* The key's entry with one more reference, or NULL.  An expired one is unlinked and counts as absent. */
struct near__entry *near__l1_find(struct near__l1 *l1, uint64_t hash, near_bytes key, int64_t now);

/* The fence of a key: opaque, compared for equality only.  Capture it before the slower tier is asked.
 * Acquire: pairs with the release of whoever moves it, so what is asked afterwards is at least as new as that invalidation. */
uint64_t near__l1_fence(const struct near__l1 *l1, uint64_t hash);

enum near__l1_admission {
    NEAR__L1_ADMITTED,
    NEAR__L1_FENCED,    /* the fence has moved, or a write of this process is under way */
    NEAR__L1_TOO_LARGE, /* costs more than half of its shard's bytes, or max_bytes is 0 */
    NEAR__L1_EXPIRED    /* expires <= now */
};

/*
 * Admit an entry, in place of an older one of the same key, if `fence` has not moved and no local write of the stripe is under
 * way (its end would drop the entry anyway, and until then two fills could show a reader the new value and then the old one).
 * Takes its own reference; the caller keeps his.  Evicts until the bounds hold.  TOO_LARGE and EXPIRED leave the key absent:
 * what is there is no newer than what was offered.
 */
enum near__l1_admission near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence,
                                        int64_t now);

/* An invalidation: moves the key's fence and drops the key. */
void near__l1_invalidate(struct near__l1 *l1, uint64_t hash, near_bytes key);
/* Everything: moves all fences at once, drops all. */
void near__l1_flush(struct near__l1 *l1);

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

/* Let expired entries go, at most about `budget` of them looked at per shard; for a scheduler. */
void near__l1_expire(struct near__l1 *l1, int64_t now, size_t budget);

struct near__l1_stats {
    uint64_t fills, fills_refused, evictions, expired, too_large; /* counters */
    uint64_t entries,
        bytes; /* levels; bytes: entries and tables, not the fences (16 bytes a stripe: one stripe
                                for 4 entries expected, 1024 to 65536 of them, so 16 KiB to 1 MiB) */
};
void near__l1_stats(struct near__l1 *l1, struct near__l1_stats *stats);

#endif
