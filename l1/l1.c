/*
 * The shards, the bounds and the fences.
 *
 *   l1 ── arena      one range of memory for everything that is cached, its index and its queues (l1/arena.h)
 *     ├── shards[]   64-byte aligned; each has a lock, a table (l1/table.h), a policy's order (l1/policy.h), a heap in the arena
 *     │              and a limbo of blocks that are unlinked but perhaps still read
 *     └── stripes[]  fence and count of local writes under way, for all keys whose hash selects the stripe
 *
 * The low bits of the hash select the stripe, fewer of them the shard, so one stripe lies in one shard and that shard's lock
 * covers it; the upper half is the table's element.  Fences are written under the shard's lock and read without (near__l1_fence).  An
 * L1 that keeps nothing has fences all the same, moved without a lock: flights and shared reads go by them.
 *
 * Reading takes no lock: find the slot, announce the block (l1/hazard.h), see that the slot still names it.  Everything else is done
 * under the shard's lock.  A block leaves in three steps: its slot is emptied, it waits in limbo for a barrier, and then its memory
 * is free, unless the barrier found it held: then it waits with the held ones for a later barrier.  Large and adopted values are
 * counted entries on the heap; their block is a pointer, and the L1's reference goes with the block.  Letting the last reference go
 * may call the application (an adopted value's release function), so those are collected and let go after the lock was dropped.
 *
 * The fence of a key is the sum of its stripe's counter and the whole cache's epoch.  Both only grow, so an equal
 * sum means that neither has moved, although the two are not read at one moment.  Flush closes the disk tier, moves the epoch and
 * then clears shard by shard: an insert that ran in a shard before the clearing is cleared, one that runs after it
 * sees the new epoch (the lock orders them) and is refused.  Clearing a shard is one step, whatever it holds: the table's
 * generation moves, and buckets of an older one count as empty until somebody gets round to emptying them.
 *
 * Why nothing older than an acknowledged write can remain
 *
 * Take the order in which L2 executed the writes.  The assumptions: every write, local or foreign, is executed by
 * L2 before its invalidation is sent (race 7), and a local one is executed between its begin and its end.  An
 * acknowledged local write is one whose end has returned; a foreign one counts once its invalidation was applied
 * here.  Claim: L1 never holds a value that L2 wrote before an acknowledged write.  A value gets in by two doors.
 *
 *   Fill: capture, read L2, insert.  Let W be an acknowledged write: its end, or its invalidation here.
 *     W | capture ...       the read comes after W in L2: not older.
 *     capture | W | insert  W moved the fence: refused, whether the key was present or absent, and evicted since
 *                           or not (races 1, 3, 5).
 *     insert | W            W drops the key under the same lock.
 *
 *   Local write A: begin, write L2, end.  B is another local write of the stripe, F a foreign invalidation.
 *     B.end | A.begin            B comes before A in L2: not older.
 *     A.end | B.begin            B's begin drops the key.
 *     A.begin | B.begin | A.end  their order in L2 is unknown, so neither may guess.  B's begin moved the fence:
 *                                A's end does not admit.  B was told `overlapped` at its begin: B's end does not
 *                                admit.  It does not matter which ends first, nor how many more overlap the two.
 *     A.begin | F | A.end        F's write may come before or after A's in L2.  F moved the fence: A's end does not
 *                                admit.
 *     F | A.begin                F's write was applied, so executed, before A's: not older.
 *     A.end | F                  F drops the key, needlessly if A's was the later one.
 *
 *   Each end moves the fence, so a fill that read between A.begin and A's turn in L2 is refused when it comes
 *   after the end (G1).  One that comes before the end is refused because a write is under way: it would be dropped
 *   at the end, and until then two such fills, one that read before A's turn and one after, could follow each
 *   other in the wrong order.  That rule and `overlapped` make reads monotonic, too: without foreign writers L1 is
 *   at every moment empty or equal to L2.  (tests/unit/test_l1_races.c plays all of it in every order.)
 *
 * Two things are left to others.  A write whose outcome is unknown may be executed after its end (which admits
 * nothing): until its invalidation comes back L1 may hold an acknowledged value that L2 has since lost to it; see
 * near__coherence_doubt().  And between a foreign write and its invalidation two fills can bring different values
 * and arrive in the wrong order: that lasts as long as the delivery (G2), and single-flight keeps it rare.
 *
 * What can never happen: a block is reused while a hazard slot names it that named it before it was unlinked; a reference is in two
 * slots; a slot names a block that is not of its shard's heap; the application is called with a lock held.
 *
 * Locks: the shard's, rank NEAR__RANK_SHARD, never two at once; under it the arena's and the hazard list's leaves.
 *
 * An L1 with pools is an empty one: l1/pools.c does its work with several others.
 */
#include "l1/l1.h"

#include "base/lock.h"
#include "l1/arena.h"
#include "l1/curve.h"
#include "l1/disk.h"
#include "l1/find.h"
#include "l1/hazard.h"
#include "l1/policy.h"
#include "l1/pools.h"

#include <stdlib.h>
#include <string.h>

enum {
    CACHE_LINE    = 64,
    SHARD_ENTRIES = 2048,            /* a shard should hold at least so many ... */
    SHARD_BYTES   = 4 * 1024 * 1024, /* ... and so much, so that a value of 1 MiB does not sweep it out */
    SHARDS_MAX    = 64,              /* when chosen here */
    ENTRY_BYTES   = 256,             /* expected, where only bytes are known */
    STRIPES_MIN   = 1024,            /* a batch of writes must not meet itself at every key */
    STRIPES_MAX   = 16384,           /* 256 KiB: each write needs one */
    SHARDS_LIMIT  = 1024,
    SHARD_LEAST   = 4096, /* bytes */
    SLAB_PARTS   = 256, /* a slab is this part of a shard: what stays unused in slabs is a few percent then */
    SLAB_MIN     = 512,
    SLAB_MAX     = 65536,
    RECORD_BYTES = 64,  /* of a slab, outside it (l1/arena.h) */
    OWN_PART     = 32,  /* what an L1 takes itself is deducted where it is less than this part */
    GROWTH       = 16,  /* how far an L1 may be resized ... */
    LIMBO        = 128, /* blocks of a shard that may wait for a barrier; a power of two */
    HELD_LOOKS   = 64,  /* held blocks looked at again after a barrier */
    DEAD         = 32,  /* counted entries let go after one hold of the lock */
    AHEAD_PART =
        64, /* victims taken ahead of need: so that one barrier serves that part of a shard's entries ... */
    AHEAD_MAX      = 32,   /* ... or so many */
    RESTORED_LEAST = 64,   /* bytes of an entry, for which an index is made beforehand */
    SHRINK_TRIES   = 128,  /* the same for a slab while there is more than is allowed: upkeep sees to that */
    TRIES          = 4096, /* rounds of eviction for one block before it is given up */
    HOMES_FIRST    = 4,    /* buckets of an empty shard */
    HOMES_APART =
        37, /* how far the first buckets of neighbouring shards lie apart: odd, so that all places are used */
    GROUP      = NEAR__L1_GROUP,
    RETRIES    = 8,       /* looks again when a bucket changed during a miss; then it is one */
    PAY_EVERY  = 256,     /* inserts between two looks at what the policy itself holds */
    TRIM_MAX   = 8 << 20, /* bytes given back at a time: some hundred microseconds */
    CLEAR_NOW  = 64,      /* buckets that a clear empties itself */
    SWEEP_LAPS = 40 /* calls of upkeep for one lap of looking for expired entries: 4 s at ten a second */
};

#define GROWN_MAX ((size_t)32 << 30) /* ... up to here: what references to 8 bytes can name */
#define BYTES_MAX ((size_t)1 << 40)  /* more is as good as unbounded */
#define FILLED_BITS                                                                                          \
    ((size_t)1                                                                                               \
     << 21) /* 256 KiB: with a million fills meanwhile two of five entries are refused for nothing */
#define READ_MAX (60 * 1000 * NEAR_MS + NEAR__BLOCK_BORN_SLACK) /* the longest l2.timeout */
#define SLEEP_MAX                                                                                            \
    (INT64_C(4) * 24 * 3600 * 1000 *                                                                         \
     NEAR_MS) /* what is left of half the circle beyond the longest TTL here */

struct stripe {
    _Atomic uint64_t fence;   /* written under the shard's lock, read by anybody */
    uint32_t         writers; /* local writes between begin and end; shard's lock */
    _Atomic uint32_t
        fills; /* admitted since the beginning; written under the shard's lock, read by anybody */
};

/* Counted entries, and objects, to be let go once the lock was dropped. */
struct dead {
    unsigned  n;
    uintptr_t what[DEAD + 1]; /* as near__let_go() takes them; one more for a block that nobody has seen */
};

struct waiting {
    uint64_t epoch;
    uint32_t ref;
};

struct shard {
    struct near__table   *table; /* l1->front.path.tables[this one]: what readers load lies together */
    struct near__lock     lock;  /* covers everything below and the table but what readers load */
    struct near__order    order;
    struct near__heap     heap;
    struct near__l1_stats stats;
    size_t                max_entries, max_bytes, policy_bytes; /* the heap gets what the policy leaves */
    unsigned              since_paid; /* inserts since the policy's memory was looked at */
    uint32_t              number;     /* its own, in the process */
    bool                  timed;      /* a block that may expire was linked since the last clear */
    uint32_t              stale_left; /* home buckets that may be of an older generation ... */
    uint32_t              stale_hand; /* ... and where to go on emptying them */
    uint32_t              sweep_hand; /* where to go on looking for expired entries */
    bool                  pressed;    /* memory was refused for want of budget: evict ahead of need */
    bool                  prompt;     /* a counted entry is in limbo: do not wait for others */
    size_t                externals;
    size_t                objects;      /* blocks that name one */
    struct near__object  *lost_objects; /* of blocks that nobody remembers */
    unsigned              revived; /* an entry of a former life is being linked: its warmth + 1; else 0 */
    struct waiting        limbo[LIMBO];
    uint32_t              limbo_from, limbo_n;
    uint32_t             *held;                /* blocks that a barrier found held */
    size_t held_n, held_room, held_hand, lost; /* lost: blocks that nobody remembers, for want of memory */
} __attribute__((aligned(CACHE_LINE)));

struct near__l1 {
    struct near__l1_front front; /* first: what readers load */
    /* the rest */
    size_t                     stripe_mask;
    struct shard              *shards;
    struct stripe             *stripes;
    const struct near__policy *policy;
    void                      *pool;   /* what the policy's orders share */
    struct near__curve        *curve;  /* NULL: not wanted */
    _Atomic uint64_t           unused; /* of the hits counted; known only with a curve */
    struct near__arena        *arena;
    void                      *grave; /* what near__hazard_bury() needs, so that the end cannot fail */
    uint64_t (*hash)(const void *ctx, near_bytes key);
    const void         *hash_ctx;
    size_t              grow_bytes;
    size_t              own_bytes;  /* what it takes itself, whatever it keeps */
    int64_t             ttl, grace; /* ttl 0: entries' own alone */
    size_t              align_from;
    bool                plain, off;
    bool                labels_shared; /* the clock of tags is somebody else's */
    struct near__pools *pools;         /* not NULL: `off`, they have everything, fences included */
    _Atomic int64_t     kept;          /* when upkeep ran last */
    struct near__spill *spill;         /* NULL: no disk tier */
    uint8_t pool_number;      /* 0: it is no pool.  A pool only tells the disk tier of what it evicts */
    void (*wrote)(void *ctx); /* NULL: nobody wants to know */
    void *wrote_ctx;
    _Atomic(_Atomic uint8_t *)
        filled; /* a bit for the hashes filled since near__l1_restore_begin(); shards' locks.  NULL: not wanted */
    _Atomic uint64_t epoch __attribute__((aligned(CACHE_LINE))); /* moved by flush: the fence of everything */
};

static size_t
smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- places */

static struct shard *
shard_of(const struct near__l1 *l1, uint64_t hash)
{
    return &l1->shards[hash & l1->front.path.shard_mask];
}

static struct stripe *
stripe_of(const struct near__l1 *l1, uint64_t hash)
{
    return &l1->stripes[hash & l1->stripe_mask];
}

static struct near__block *
block_at(const struct near__l1 *l1, uint32_t ref)
{
    return near__arena_at(&l1->front.path.view, ref);
}

static near_bytes
block_key(const struct near__block *block)
{
    if (block->flags & NEAR__BLOCK_EXTERNAL)
        return near__entry_key(near__block_external(block));
    return (near_bytes){ near__block_key(block), block->key_size };
}

/* The table asks for an entry's element when it splits a bucket. */
static uint32_t
element_of(void *ctx, uint32_t ref)
{
    const struct near__l1    *l1    = ctx;
    const struct near__block *block = block_at(l1, ref);

    if (block->flags & NEAR__BLOCK_EXTERNAL)
        return near__element(near__block_external(block)->hash);
    return near__element(l1->hash(l1->hash_ctx, block_key(block)));
}

static uint32_t
homes(const struct shard *sh)
{
    return near__table_homes(sh->table);
}

static uint32_t
home_of(const struct shard *sh, uint32_t element)
{
    return near__table_home(near__table_size(sh->table), element);
}

/* The key's slot.  Equal elements do not make equal keys (G0). */
static bool
lookup_locked(const struct near__l1 *l1, const struct shard *sh, uint64_t hash, near_bytes key,
              struct near__place *place)
{
    uint32_t             element = near__element(hash);
    struct near__bucket *bucket  = near__table_bucket(sh->table, home_of(sh, element));

    if (near__bucket_stale(sh->table, bucket))
        return false;
    for (; bucket != NULL; bucket = near__table_after(sh->table, bucket))
        for (uint32_t match = near__bucket_match(bucket, near__tag(element)); match != 0;
             match          = NEAR__LANE_NEXT(match)) {
            unsigned lane = NEAR__LANE(match);
            uint32_t ref  = near__bucket_ref(bucket, lane);

            if (ref != 0 && near__block_is(block_at(l1, ref), key)) {
                *place = (struct near__place){ bucket, lane };
                return true;
            }
        }
    return false;
}

/* ---- leaving: limbo, barrier, free */

/* The object's own counts are of one shard.  Another pool's, while what it had is not quite gone, names one around it.  A reference; NULL:
 * out of memory. */
static struct near__object *
object_here(const struct shard *sh, struct near__object *object)
{
    uint32_t owner = 0;

    /* relaxed: who finds himself the owner reads what he wrote himself, under his lock */
    if (atomic_compare_exchange_strong_explicit(&object->owner, &owner, sh->number, memory_order_relaxed,
                                                memory_order_relaxed) ||
        owner == sh->number)
        return near__object_ref(object);
    object = near__object_around(object);
    if (object != NULL)
        atomic_store_explicit(&object->owner, sh->number, memory_order_relaxed);
    return object;
}

/* A block more names the object; the first one's reference and charge are for all. */
static void
object_named_locked(struct shard *sh, struct near__object *object)
{
    if (object->blocks++ == 0)
        near__object_ref(object);
    sh->objects++;
}

static void
object_unnamed_locked(struct shard *sh, struct near__object *object, struct dead *dead)
{
    sh->objects--;
    if (--object->blocks > 0)
        return;
    near__heap_discharge(&sh->heap, near__object_cost(object));
    dead->what[dead->n++] = (uintptr_t)object | NEAR__LEAVES_OBJECT;
}

static void
block_free_locked(struct near__l1 *l1, struct shard *sh, uint32_t ref, struct dead *dead)
{
    const struct near__block *block = block_at(l1, ref);

    /* the block itself has probably left the processor's cache: it is not looked at without need */
    if (sh->externals > 0 && (block->flags & NEAR__BLOCK_EXTERNAL)) {
        struct near__entry *entry = near__block_external(block);

        near__heap_discharge(&sh->heap, near__entry_cost(entry));
        sh->externals--;
        dead->what[dead->n++] = (uintptr_t)entry;
    } else if (sh->objects > 0 && near__block_has_object(block)) {
        object_unnamed_locked(sh, near__block_object(block), dead);
    }
    near__heap_free(&sh->heap, ref);
}

static bool
held_add_locked(struct shard *sh, uint32_t ref)
{
    size_t    room = sh->held_room == 0 ? 16 : 2 * sh->held_room;
    uint32_t *held;

    if (sh->held_n == sh->held_room) {
        held = realloc(sh->held, room * sizeof(*held));
        if (held == NULL)
            return false;
        sh->held      = held;
        sh->held_room = room;
    }
    sh->held[sh->held_n++] = ref;
    return true;
}

/* Free what a completed barrier has shown to be unread.  How many blocks it freed. */
static size_t
harvest_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    size_t freed = 0;

    for (size_t left = sh->limbo_n; left > 0 && dead->n < DEAD; left--) {
        struct waiting first = sh->limbo[sh->limbo_from % LIMBO];

        if (!near__hazard_passed(first.epoch))
            break;
        sh->limbo_from++;
        sh->limbo_n--;
        if (!near__hazard_held(block_at(l1, first.ref))) {
            block_free_locked(l1, sh, first.ref, dead);
            freed++;
        } else if (!held_add_locked(sh, first.ref)) {
            /* no memory to remember it elsewhere: it stays, behind those that need not wait for it */
            sh->limbo[(sh->limbo_from + sh->limbo_n++) % LIMBO] =
                (struct waiting){ near__hazard_epoch(), first.ref };
        }
    }
    if (sh->limbo_n == 0)
        sh->prompt = false;
    return freed;
}

/* Look again at some of the blocks that were held, in rotation: there may be many, and this is under the lock. */
static size_t
harvest_held_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    size_t freed = 0;

    for (size_t looks = smaller(sh->held_n, HELD_LOOKS); looks > 0 && sh->held_n > 0 && dead->n < DEAD;
         looks--) {
        uint32_t ref;

        if (sh->held_hand >= sh->held_n)
            sh->held_hand = 0;
        ref = sh->held[sh->held_hand];
        if (near__hazard_held(block_at(l1, ref))) {
            sh->held_hand++;
            continue;
        }
        block_free_locked(l1, sh, ref, dead);
        sh->held[sh->held_hand] = sh->held[--sh->held_n];
        freed++;
    }
    return freed;
}

/* Complete a barrier for everything in limbo, then free. */
static size_t
barrier_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    size_t freed = 0;

    if (sh->limbo_n > 0) {
        near__hazard_barrier(sh->limbo[(sh->limbo_from + sh->limbo_n - 1) % LIMBO].epoch);
        freed = harvest_locked(l1, sh, dead);
    }
    return freed + (sh->held_n > 0 ? harvest_held_locked(l1, sh, dead) : 0);
}

static size_t
ahead(const struct shard *sh)
{
    size_t part = sh->table->entries / AHEAD_PART;

    return part < 1 ? 1 : part > AHEAD_MAX ? AHEAD_MAX : part;
}

/* Limbo is full because no more can be let go in this hold of the lock: the first goes where a later one looks again.  It has had its
 * barrier, as who is held has. */
static void
put_aside_locked(struct shard *sh)
{
    struct waiting first = sh->limbo[sh->limbo_from % LIMBO];

    if (!near__hazard_passed(first.epoch) || !held_add_locked(sh, first.ref))
        return;
    sh->limbo_from++;
    sh->limbo_n--;
}

static void
lose_locked(struct near__l1 *l1, struct shard *sh, uint32_t ref)
{
    const struct near__block *block = block_at(l1, ref);
    struct near__object      *object;

    sh->lost++;
    if (!near__block_has_object(block))
        return;
    object = near__block_object(block);
    if (object->lost++ > 0)
        return;
    object->next     = sh->lost_objects;
    sh->lost_objects = object;
}

/* The block's slot was emptied.  Without room in limbo, and all that waits there held, and no memory to hold it elsewhere, its
 * memory is not used again before the L1 ends. */
static void
retire_locked(struct near__l1 *l1, struct shard *sh, uint32_t ref, struct dead *dead)
{
    if (sh->limbo_n == LIMBO && harvest_locked(l1, sh, dead) == 0)
        barrier_locked(l1, sh, dead);
    if (sh->limbo_n == LIMBO)
        put_aside_locked(sh);
    if (sh->limbo_n == LIMBO) {
        lose_locked(l1, sh, ref);
        return;
    }
    if (sh->externals > 0 && (block_at(l1, ref)->flags & NEAR__BLOCK_EXTERNAL))
        sh->prompt = true;
    sh->limbo[(sh->limbo_from + sh->limbo_n++) % LIMBO] = (struct waiting){ near__hazard_epoch(), ref };
}

static void
unlink_locked(struct near__l1 *l1, struct shard *sh, uint32_t element, struct near__place place,
              struct dead *dead)
{
    uint32_t ref = near__table_erase(sh->table, element, place);

    retire_locked(l1, sh, ref, dead);
}

/* Whether it was there. */
static bool
drop_locked(struct near__l1 *l1, struct shard *sh, uint64_t hash, near_bytes key, struct dead *dead)
{
    struct near__place place;

    if (!lookup_locked(l1, sh, hash, key, &place))
        return false;
    unlink_locked(l1, sh, near__element(hash), place, dead);
    return true;
}

/* Before the lock is dropped: what was adopted should not wait for the next barrier. */
static void
settle_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    if (sh->prompt && dead->n < DEAD)
        barrier_locked(l1, sh, dead);
}

/* No lock may be held: the last holder of an adopted value calls the application. */
static void
let_go(struct dead *dead)
{
    for (unsigned i = 0; i < dead->n; i++)
        near__let_go(dead->what[i]);
    dead->n = 0;
}

/* ---- clears */

struct moving {
    struct near__l1 *l1;
    struct shard    *shard;
    struct dead     *dead;
};

static void
dropped_locked(void *ctx, uint32_t ref)
{
    struct moving *moving = ctx;

    retire_locked(moving->l1, moving->shard, ref, moving->dead);
}

/* Empty a home bucket that a clear has left behind. */
static void
purge_locked(struct near__l1 *l1, struct shard *sh, uint32_t home, struct dead *dead)
{
    struct moving moving = { l1, sh, dead };

    if (NEAR__UNLIKELY(near__bucket_stale(sh->table, near__table_bucket(sh->table, home))))
        near__table_purge(sh->table, home, dropped_locked, &moving);
}

/* Go on emptying; at most `buckets` of them. */
static void
purge_some_locked(struct near__l1 *l1, struct shard *sh, size_t buckets, struct dead *dead)
{
    for (; buckets > 0 && sh->stale_left > 0 && dead->n < DEAD / 2; buckets--) {
        if (sh->stale_hand >= homes(sh))
            sh->stale_hand = 0;
        purge_locked(l1, sh, sh->stale_hand++, dead);
        sh->stale_left--;
    }
}

static void
clear(struct near__l1 *l1, struct shard *sh) NEAR__UNFOLLOWED
{
    struct dead dead;
    bool        more;

    dead.n = 0;
    near__lock(&sh->lock);
    near__table_clear(sh->table);
    sh->timed      = false;
    sh->stale_left = homes(sh);
    sh->order.policy->reset(&sh->order);
    do {
        purge_some_locked(l1, sh, CLEAR_NOW, &dead);
        settle_locked(l1, sh, &dead);
        more = sh->externals > 0 && sh->stale_left > 0; /* adopted values are let go at once */
        near__unlock(&sh->lock);
        let_go(&dead);
        if (more)
            near__lock(&sh->lock);
    } while (more);
}

/* ---- room */

/* A decoded value of which there are no bytes: what has room for them in its entry has none there. */
static bool
is_bare(const struct near__entry *entry)
{
    return entry->object != NULL && entry->object->bytes == NULL && entry->value_size == 0;
}

/* A counted entry's times are its own, perhaps longer than this L1 keeps it: on the disk it has no more than that either. */
static void
date_meta(const struct near__l1 *l1, struct near__meta *meta)
{
    int64_t end = near__time_after(meta->born, l1->ttl);

    if (NEAR__LIKELY(l1->ttl == 0))
        return;
    meta->fresh_until = meta->fresh_until < end ? meta->fresh_until : end;
    end               = near__time_after(end, l1->grace);
    meta->expires     = meta->expires < end ? meta->expires : end;
}

/* What leaves for want of room goes to the disk tier; not what has nothing to be written, or is somebody's object. */
static void
spill_locked(const struct near__l1 *l1, const struct near__block *block)
{
    struct near__spill_record record = { .key = block_key(block) };
    const struct near__entry *entry;
    struct near__labels       labels = { .n = 0 };
    struct near__meta         meta;

    if (block->flags & NEAR__BLOCK_EXTERNAL) {
        entry = near__block_external(block);
        if (entry->negative || entry->adopted || is_bare(entry))
            return;
        record.value = (near_bytes){ entry->value, entry->value_size };
        meta         = (struct near__meta){ entry->born,  entry->fresh_until, entry->expires,
                                            entry->stamp, entry->generation,  entry->cost_us };
        date_meta(l1, &meta);
        if (entry->labels != NULL) {
            labels       = *entry->labels;
            record.names = (near_bytes){ entry->labels->names, entry->labels->names_size };
        }
    } else {
        if (block->flags & NEAR__BLOCK_NEGATIVE)
            return;
        record.value = near__block_value(block);
        if (near__block_has_object(block) && record.value.data == NULL)
            return; /* a decoded value whose bytes were not kept */
        near__block_meta(block, near__spill_now(l1->spill), &meta);
        if (block->flags & NEAR__BLOCK_LABELS) {
            near__block_take_labels(block, &labels);
            record.names = near__block_names(block);
        }
    }
    record.pool        = l1->pool_number;
    record.born        = meta.born;
    record.fresh_until = meta.fresh_until;
    record.expires     = meta.expires;
    record.stamp       = meta.stamp;
    record.generation  = meta.generation;
    record.cost_us     = meta.cost_us;
    record.clock       = labels.clock;
    record.stripes     = (near_bytes){ labels.stripes, labels.n * sizeof(labels.stripes[0]) };
    near__spill_put(l1->spill, l1->hash(l1->hash_ctx, record.key), &record);
}

static bool
evict_one_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    struct near__place place;
    uint32_t           element;

    sh->table->full = sh->table->entries;
    if (!sh->order.policy->victim(&sh->order, &place, &element))
        return false;
    if (l1->spill != NULL)
        spill_locked(l1, block_at(l1, near__place_ref(place)));
    unlink_locked(l1, sh, element, place, dead);
    sh->stats.evictions++;
    return true;
}

/* What a clear has left goes first. */
static bool
evict_locked(struct near__l1 *l1, struct shard *sh, size_t n, struct dead *dead)
{
    bool any = false;

    if (sh->stale_left > 0) {
        purge_some_locked(l1, sh, n, dead);
        return true;
    }
    while (n-- > 0 && dead->n < DEAD / 2 && evict_one_locked(l1, sh, dead))
        any = true;
    return any;
}

/* Compaction asks for a block to be moved: possible while it is linked.  A pointer stays: its entry's reference goes with the block,
 * and a reader that has announced the old place may still take one of his own.  An object is named by both then. */
static bool
move_locked(void *ctx, uint32_t from, uint32_t to, size_t bytes)
{
    struct moving       *moving = ctx;
    struct shard        *sh     = moving->shard;
    struct near__block  *block  = block_at(moving->l1, from);
    struct near__bucket *bucket;

    if (sh->limbo_n == LIMBO || (block->flags & NEAR__BLOCK_EXTERNAL))
        return false;
    bucket = near__table_bucket(sh->table, home_of(sh, element_of(moving->l1, from)));
    for (; bucket != NULL; bucket = near__table_after(sh->table, bucket))
        for (unsigned lane = 0; lane < NEAR__LANES; lane++)
            if (near__bucket_ref(bucket, lane) == from) {
                memcpy(block_at(moving->l1, to), block, bytes);
                if (near__block_has_object(block))
                    object_named_locked(sh, near__block_object(block));
                /* release: pairs with the reader's acquire, the copy is complete */
                atomic_store_explicit(&bucket->refs[lane], to, memory_order_release);
                sh->limbo[(sh->limbo_from + sh->limbo_n++) % LIMBO] =
                    (struct waiting){ near__hazard_epoch(), from };
                return true;
            }
    return false;
}

static bool
compact_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    struct moving moving = { l1, sh, dead };
    bool          moved;

    if (dead->n > DEAD / 2)
        return false;
    barrier_locked(l1, sh, dead); /* what is in limbo cannot be moved */
    moved = near__heap_compact(&sh->heap, move_locked, &moving);
    return barrier_locked(l1, sh, dead) > 0 && moved;
}

/* One more step towards room.  False: there is nothing left to give. */
static bool
make_room_locked(struct near__l1 *l1, struct shard *sh, size_t tries, struct dead *dead)
{
    sh->pressed = true;
    if (harvest_locked(l1, sh, dead) > 0)
        return true;
    if (sh->limbo_n >= ahead(sh) && barrier_locked(l1, sh, dead) > 0)
        return true;
    if (tries % 8 == 7 && compact_locked(l1, sh, dead))
        return true;
    if (evict_locked(l1, sh, ahead(sh), dead))
        return true;
    return barrier_locked(l1, sh, dead) > 0 || compact_locked(l1, sh, dead);
}

static uint32_t
obtain_locked(struct near__l1 *l1, struct shard *sh, size_t size, struct dead *dead)
{
    uint32_t ref = near__heap_alloc(&sh->heap, size);

    for (size_t tries = 0; ref == 0 && tries < TRIES && dead->n < DEAD / 2; tries++) {
        if (!make_room_locked(l1, sh, tries, dead))
            return 0;
        ref = near__heap_alloc(&sh->heap, size);
    }
    return ref;
}

static bool
charge_locked(struct near__l1 *l1, struct shard *sh, size_t bytes, struct dead *dead)
{
    for (size_t tries = 0; tries < TRIES && dead->n < DEAD / 2; tries++) {
        if (near__heap_charge(&sh->heap, bytes))
            return true;
        /* whole slabs are wanted: what has left already must not leave twice */
        if (!compact_locked(l1, sh, dead) && !make_room_locked(l1, sh, tries, dead))
            return false;
    }
    return false;
}

/* Room for one slab more, for the index. */
static bool
slab_room_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    size_t slab = near__arena_slab_bytes(l1->arena);
    size_t most = sh->heap.bytes > sh->heap.max_bytes ? SHRINK_TRIES : TRIES;

    for (size_t tries = 0; sh->heap.bytes + slab > sh->heap.max_bytes; tries++)
        if (tries == most || dead->n >= DEAD / 2 ||
            !(compact_locked(l1, sh, dead) || make_room_locked(l1, sh, tries, dead)))
            return false;
    return true;
}

/* Whether the next split needs memory. */
static bool
split_costs(const struct near__table *table)
{
    uint32_t chunk = near__table_homes(table) >> table->chunk_shift;

    return chunk < table->max_chunks && chunk >= table->home_chunks;
}

/* The index grows by a bucket or two with each new entry that needs it, and pays for it. */
static void
grow_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    for (int i = 0; i < 2 && near__table_wants(sh->table) > 0; i++) {
        uint32_t size = homes(sh), half = (uint32_t)(near__table_size(sh->table) >> 32) / 2 + 1;

        if (split_costs(sh->table) && !slab_room_locked(l1, sh, dead))
            return;
        purge_locked(l1, sh, size == 2 * half ? 0 : size - half, dead);
        if (!near__table_split(sh->table))
            return;
        sh->stale_left += sh->stale_left > 0; /* the new one may lie before the hand */
    }
}

/* The policy's own memory is paid for, too. */
static void
pay_policy_locked(const struct near__l1 *l1, struct shard *sh)
{
    size_t bytes = sh->order.policy->bytes(&sh->order);

    if (l1->policy->pool_bytes != NULL && l1->pool != NULL)
        bytes += l1->policy->pool_bytes(l1->pool) / (l1->front.path.shard_mask + 1);
    sh->policy_bytes = bytes;
    /* by what it may hold, not by a charge: a full heap would refuse that for ever */
    near__heap_limit(&sh->heap, bytes < sh->max_bytes / 2 ? sh->max_bytes - bytes : sh->max_bytes / 2);
}

/* ---- birth and end */

/* The largest power of two that is not above `n`; 1 for 0. */
static size_t
power_below(size_t n)
{
    return n == 0 ? 1 : (size_t)1 << (63 - __builtin_clzll(n));
}

static size_t
choose_shards(const struct near__l1_config *config)
{
    size_t entries = config->max_entries != 0 ? config->max_entries : SIZE_MAX;

    if (config->shards != 0) /* each must be allowed one entry, and some memory for it */
        return smaller(smaller(config->shards, power_below(entries)),
                       power_below(config->max_bytes / SHARD_LEAST));
    return smaller(power_below(smaller(entries / SHARD_ENTRIES, config->max_bytes / SHARD_BYTES)),
                   SHARDS_MAX);
}

static size_t
expected_entries(const struct near__l1_config *config)
{
    size_t expected = config->max_bytes / ENTRY_BYTES;

    return config->max_entries != 0 ? smaller(expected, config->max_entries) : expected;
}

static size_t
choose_stripes(const struct near__l1_config *config, size_t shards)
{
    size_t stripes = smaller(power_below(expected_entries(config) / 16), STRIPES_MAX);

    if (config->is_pool)
        return shards; /* not used */
    if (stripes < STRIPES_MIN)
        stripes = STRIPES_MIN;
    return stripes < shards ? shards : stripes;
}

/* What addresses to reserve: for growing, but no more than the entries allowed can fill (what is larger lies elsewhere). */
static size_t
choose_range(const struct near__l1_config *config, size_t shards, size_t slab)
{
    size_t bytes = smaller(config->max_bytes, BYTES_MAX), grown = smaller(GROWTH * bytes, GROWN_MAX);
    size_t range = bytes > grown ? bytes : grown;

    if (config->max_entries != 0 && config->max_entries < BYTES_MAX / GROWTH / SLAB_MAX)
        range = smaller(range,
                        GROWTH * config->max_entries * SLAB_MAX + 2 * NEAR__HEAP_CLASSES_MAX * shards * slab);
    return range;
}

static size_t
choose_slab(const struct near__l1_config *config, size_t shards)
{
    size_t part = power_below(config->max_bytes / shards / SLAB_PARTS);

    return part < SLAB_MIN ? SLAB_MIN : part > SLAB_MAX ? SLAB_MAX : part;
}

static size_t
entries_of_shard(size_t max_entries, size_t index, size_t shards)
{
    return max_entries == 0 ? SIZE_MAX : max_entries / shards + (index < max_entries % shards);
}

/* What a shard may keep: stripes, shards and the records of slabs are paid for by all.  In small caches they are more than a trifle, and
 * not counted. */
static size_t
bytes_of_shard(const struct near__l1 *l1, size_t max_bytes, size_t shards)
{
    size_t own = l1->own_bytes + max_bytes / near__arena_slab_bytes(l1->arena) * RECORD_BYTES;

    return (own < max_bytes / OWN_PART ? max_bytes - own : max_bytes) / shards;
}

static void *
chunk_new(void *ctx)
{
    return near__heap_slab(ctx);
}

static void
chunk_free(void *ctx, void *chunk)
{
    near__heap_slab_free(ctx, chunk);
}

static near_status
shard_init(struct near__l1 *l1, struct shard *sh, const struct near__l1_config *config, size_t index,
           size_t shards)
{
    size_t      slab = near__arena_slab_bytes(l1->arena);
    near_status status;

    static _Atomic uint32_t numbers;

    near__lock_init(&sh->lock, NEAR__RANK_SHARD);
    sh->number      = atomic_fetch_add_explicit(&numbers, 1, memory_order_relaxed) + 1; /* only to differ */
    sh->table       = &l1->front.path.tables[index];
    sh->max_entries = entries_of_shard(config->max_entries, index, shards);
    sh->max_bytes   = bytes_of_shard(l1, config->max_bytes, shards);
    near__heap_init(&sh->heap, l1->arena, (uint32_t)index, sh->max_bytes);
    sh->table->chunk_shift = (uint8_t)__builtin_ctzll(slab / sizeof(struct near__bucket));
    sh->table->color       = (uint16_t)(index * HOMES_APART);
    sh->table->chunk_new   = chunk_new;
    sh->table->chunk_free  = chunk_free;
    sh->table->chunk_ctx   = &sh->heap;
    sh->table->max_chunks =
        l1->grow_bytes / shards / slab / 2 + 2; /* an entry takes more than its share of the index */
    sh->table->capacity    = sh->max_entries == SIZE_MAX ? 0 : sh->max_entries;
    sh->table->element_of  = element_of;
    sh->table->element_ctx = l1;
    status                 = near__table_init(sh->table, HOMES_FIRST);
    if (status != NEAR_OK)
        return status;
    sh->order.policy = l1->policy;
    sh->order.table  = sh->table;
    sh->order.pool   = l1->pool;
    status           = sh->order.policy->open(&sh->order);
    if (status != NEAR_OK)
        near__table_fini(sh->table);
    return status;
}

static void
shard_fini(struct shard *sh)
{
    sh->order.policy->close(&sh->order);
    near__table_fini(sh->table);
    near__lock_fini(&sh->lock);
}

static bool
config_valid(const struct near__l1_config *config)
{
    return near__policy_named(config->policy) != NULL && config->shards <= SHARDS_LIMIT &&
           (config->shards & (config->shards - 1)) == 0;
}

static near_status
shards_init(struct near__l1 *l1, const struct near__l1_config *config, size_t shards)
{
    near_status status = NEAR_OK;
    size_t      done   = 0;

    while (done < shards && status == NEAR_OK) {
        status = shard_init(l1, &l1->shards[done], config, done, shards);
        done += status == NEAR_OK;
    }
    if (status == NEAR_OK)
        return status;
    near__lock_fini(&l1->shards[done].lock);
    while (done-- > 0)
        shard_fini(&l1->shards[done]);
    return status;
}

/* What nobody needs who only holds values. */
static void
l1_close(struct near__l1 *l1)
{
    near__hits_close(l1->front.path.number);
    if (l1->pool != NULL)
        l1->policy->pool_close(l1->pool);
    near__pools_free(&l1->pools);
    near__curve_free(&l1->curve);
    free(atomic_load_explicit(&l1->filled, memory_order_relaxed));
    free(l1->grave);
    free(l1->front.path.tables);
    free(l1->stripes);
}

static void
l1_delete(struct near__l1 *l1)
{
    near__arena_close(&l1->arena);
    if (!l1->labels_shared)
        free(atomic_load_explicit(&l1->front.labels, memory_order_relaxed)); /* nobody else is left */
    free(l1->shards);
    free(l1);
}

/* For an L1 whose curve wants to hear of what its policy does not. */
static void
watch_nothing(struct near__order *order, uint32_t element, bool hit)
{
    (void)order;
    (void)element;
    (void)hit;
}

/* An L1 that is made of pools. */
static near_status
pooled_new(struct near__l1 **out, const struct near__l1_config *config)
{
    struct near__label_clock *labels = calloc(1, sizeof(*labels));
    struct near__l1          *l1     = near__zeroed(CACHE_LINE, sizeof(*l1));
    near_status               status = NEAR_ERR_NOMEM;

    if (l1 == NULL || labels == NULL) {
        free(labels);
        free(l1);
        return NEAR_ERR_NOMEM;
    }
    atomic_init(&l1->front.labels, labels);
    l1->front.path.number = near__hits_open();
    l1->off               = true;
    l1->wrote             = config->wrote;
    l1->wrote_ctx         = config->wrote_ctx;
    l1->shards            = near__zeroed(CACHE_LINE, sizeof(struct shard)); /* that nobody looks into */
    l1->stripes           = calloc(1, sizeof(*l1->stripes));
    if (l1->shards != NULL && l1->stripes != NULL)
        status = near__pools_new(&l1->pools, config, labels, &l1->front.timed);
    if (status == NEAR_OK) {
        *out = l1;
        return NEAR_OK;
    }
    l1_close(l1);
    l1_delete(l1);
    return status;
}

near_status
near__l1_new(struct near__l1 **out, const struct near__l1_config *config)
{
    size_t           shards, stripes, slab;
    struct near__l1 *l1;
    near_status      status;

    *out = NULL;
    if (config->pools_n > 0)
        return pooled_new(out, config);
    if (!config_valid(config))
        return NEAR_ERR_INVALID;
    shards  = choose_shards(config);
    stripes = choose_stripes(config, shards);
    l1      = near__zeroed(CACHE_LINE, sizeof(*l1));
    if (l1 == NULL)
        return NEAR_ERR_NOMEM;
    l1->front.path.number     = near__hits_open();
    l1->shards                = near__zeroed(CACHE_LINE, shards * sizeof(struct shard));
    l1->front.path.tables     = near__zeroed(CACHE_LINE, shards * sizeof(struct near__table));
    l1->stripes               = calloc(stripes, sizeof(*l1->stripes));
    l1->front.path.shard_mask = shards - 1;
    l1->stripe_mask           = stripes - 1;
    l1->align_from            = config->align_from != 0 ? config->align_from : NEAR__BLOCK_ALIGN_FROM;
    l1->plain                 = config->plain;
    l1->ttl                   = config->ttl;
    l1->grace                 = config->grace;
    l1->off                   = config->max_bytes < SHARD_LEAST / 2;
    l1->hash                  = config->hash;
    l1->hash_ctx              = config->hash_ctx;
    l1->policy                = near__policy_named(config->policy);
    l1->front.watch           = l1->policy->watch;
    l1->front.sample          = config->sample;
    l1->front.sample_ctx      = config->sample_ctx;
    l1->front.path.tick       = config->tick;
    l1->spill                 = config->spill;
    l1->pool_number           = config->is_pool ? config->pool : 0;
    l1->wrote                 = config->wrote;
    l1->wrote_ctx             = config->wrote_ctx;
    slab                      = choose_slab(config, shards);
    l1->grow_bytes            = choose_range(config, shards, slab);
    l1->own_bytes             = sizeof(*l1) + stripes * sizeof(struct stripe) +
                    shards * (sizeof(struct shard) + sizeof(struct near__table));
    l1->grave = near__hazard_grave();
    status = l1->shards == NULL || l1->front.path.tables == NULL || l1->stripes == NULL || l1->grave == NULL
                 ? NEAR_ERR_NOMEM
                 : NEAR_OK;
    if (status == NEAR_OK && !l1->off)
        status = near__arena_open_lines(&l1->arena, smaller(config->max_bytes, l1->grow_bytes),
                                        l1->grow_bytes, slab, l1->align_from);
    if (status == NEAR_OK && !l1->off) {
        l1->front.path.view = near__arena_view(l1->arena);
        if (l1->policy->pool_open != NULL)
            status = l1->policy->pool_open(&l1->pool, expected_entries(config));
        if (status == NEAR_OK && config->curve)
            status = near__curve_new(&l1->curve, config->policy, config->max_entries);
        if (status == NEAR_OK) /* the last: who fails takes his own down again */
            status = shards_init(l1, config, shards);
        if (l1->curve != NULL && l1->front.watch == NULL)
            l1->front.watch = watch_nothing;
    }
    if (status != NEAR_OK) {
        l1_close(l1);
        l1_delete(l1);
        return status;
    }
    near__reader(); /* what the first one finds out about the system, the fast path must know */
    l1->front.fast = !l1->off && !near__hazard_fences();
    *out           = l1;
    return NEAR_OK;
}

/* The object of a block that was held when its L1 ended. */
static void
block_end(struct near__l1 *l1, uint32_t ref)
{
    const struct near__block *block = block_at(l1, ref);
    struct near__object      *object;

    if (!near__block_has_object(block))
        return;
    object = near__block_object(block);
    if (--object->blocks == 0)
        near__object_release(&object);
}

/* Nobody else knows of the shard any more.  What was held has been let go. */
static void
shard_end(struct near__l1 *l1, struct shard *sh)
{
    struct near__object *object = sh->lost_objects, *next;

    for (; sh->limbo_n > 0; sh->limbo_n--)
        block_end(l1, sh->limbo[sh->limbo_from++ % LIMBO].ref);
    while (sh->held_n > 0)
        block_end(l1, sh->held[--sh->held_n]);
    for (; object != NULL; object = next) {
        next = object->next;
        object->blocks -= object->lost;
        if (object->blocks == 0)
            near__object_release(&object);
    }
    free(sh->held);
}

/* The last value that was held is free. */
static void
end(void *ctx)
{
    struct near__l1 *l1 = ctx;

    for (size_t i = 0; i <= l1->front.path.shard_mask; i++)
        shard_end(l1, &l1->shards[i]);
    l1_delete(l1);
}

/* Everything leaves; false: something is held. */
static bool
shard_drain(struct near__l1 *l1, struct shard *sh)
{
    struct dead dead;
    size_t      before;

    dead.n = 0;
    clear(l1, sh);
    do {
        near__lock(&sh->lock);
        before = sh->limbo_n;
        purge_some_locked(l1, sh, SIZE_MAX, &dead);
        barrier_locked(l1, sh, &dead);
        near__unlock(&sh->lock);
        let_go(&dead);
    } while (sh->stale_left > 0 || sh->limbo_n < before);
    near__hazard_barrier(near__hazard_epoch());
    for (size_t left = sh->held_n / HELD_LOOKS + 1; left > 0; left--) {
        near__lock(&sh->lock);
        harvest_held_locked(l1, sh, &dead);
        near__unlock(&sh->lock);
        let_go(&dead);
    }
    return sh->limbo_n + sh->held_n + sh->lost == 0;
}

void
near__l1_free(struct near__l1 **out)
{
    struct near__l1        *l1   = *out;
    bool                    idle = true;
    void                   *grave;
    struct near__arena_view view;
    size_t                  range, slab;

    *out = NULL;
    if (l1 == NULL)
        return;
    if (l1->off) {
        l1_close(l1);
        l1_delete(l1);
        return;
    }
    for (size_t i = 0; i <= l1->front.path.shard_mask; i++)
        idle &= shard_drain(l1, &l1->shards[i]);
    view  = l1->front.path.view;
    range = near__arena_range(l1->arena);
    slab  = near__arena_slab_bytes(l1->arena); /* slabs are numbered from 1 */
    if (!idle)
        near__arena_trim(l1->arena, SIZE_MAX);
    for (size_t i = 0; i <= l1->front.path.shard_mask; i++)
        shard_fini(&l1->shards[i]);
    grave     = l1->grave;
    l1->grave = idle ? grave : NULL;
    l1_close(l1);
    if (idle)
        end(l1);
    else
        near__hazard_bury(grave, view.base, view.base + slab + range, end, l1);
}

/* ---- reading */

/* The block in a slot, announced; NULL: the slot has changed hands meanwhile and is empty now. */
static const struct near__block *
announce(const struct near__l1 *l1, struct near__hazard *slot, const struct near__bucket *bucket,
         unsigned lane)
{
    /* acquire: pairs with the release of whoever published the reference, the block is complete */
    uint32_t ref = near__bucket_ref(bucket, lane);

    while (ref != 0) {
        const struct near__block *block = block_at(l1, ref);
        uint32_t                  again;

        near__hazard_set(slot, block);
        again = near__bucket_ref(bucket, lane);
        if (again == ref)
            return block;
        ref = again;
    }
    return NULL;
}

/* Whether a tag of theirs was invalidated since. */
static bool
outdated(const struct near__l1 *l1, const struct near__labels *labels)
{
    return labels != NULL && near__labels_moved(atomic_load_explicit(&l1->front.labels, memory_order_acquire),
                                                labels->clock, labels->stripes, labels->n);
}

/* Whether a counted entry has been here for as long as this L1 allows, `before` that time; its own times are its own. */
static bool
external_past(const struct near__block *block, int64_t before, int64_t now)
{
    return (block->flags & NEAR__BLOCK_EXPIRES) &&
           near__block_past(near__block_u32(block, NEAR__BLOCK_EXPIRES) - (uint32_t)(before / NEAR_MS), now);
}

/* A counted entry found through its block: the reference is taken while the block is announced. */
static near_value *
hand_out_external(struct near__l1 *l1, struct near__reader *reader, struct near__hazard *slot,
                  const struct near__block *block, int64_t now)
{
    struct near__entry *entry = near__block_external(block);
    near_value         *value = NULL;

    if (outdated(l1, entry->labels)) {
        value = NULL;
    } else if (external_past(block, 0, now)) {
        value = NULL;
    } else if (entry->expires > now && entry->negative) {
        value = entry->fresh_until > now ? NEAR__L1_NEGATIVE : NULL;
    } else if (entry->expires > now) {
        near__entry_ref(entry);
        value = near__value_of(entry, NEAR_FROM_L1,
                               entry->fresh_until <= now || external_past(block, l1->grace, now));
        near__hits_add(reader, l1->front.path.number, 1);
    }
    near__hazard_clear(slot);
    return value;
}

/* The entry was found and its block is announced: what the caller gets. */
static near_value *
hand_out(struct near__l1 *l1, struct near__reader *reader, struct near__hazard *slot,
         const struct near__block *block, int64_t now)
{
    near_value *value;

    if (block->flags & NEAR__BLOCK_EXTERNAL)
        return hand_out_external(l1, reader, slot, block, now);
    value = near__l1_judge(&l1->front, block->flags, block, slot, now);
    if (value == NULL || value == NEAR__L1_NEGATIVE) {
        near__hazard_clear(slot);
        return value;
    }
    reader->next = slot + 1;
    near__hits_add(reader, l1->front.path.number, 1);
    return value;
}

/* The time as far as it is known without asking for it: upkeep's, or what is told to readers. */
static int64_t
curve_time(const struct near__l1 *l1)
{
    int64_t kept = atomic_load_explicit(&l1->kept, memory_order_relaxed); /* times, they order nothing */
    int64_t told =
        l1->front.path.tick != NULL ? atomic_load_explicit(l1->front.path.tick, memory_order_relaxed) : 0;

    return told > kept ? told : kept;
}

static void
watched(struct near__l1_front *front, uint64_t hash)
{
    struct near__l1 *l1 = (struct near__l1 *)front;

    front->watch(&shard_of(l1, hash)->order, near__element(hash), true);
    if (l1->curve != NULL && near__curve_follows(l1->curve, hash))
        near__curve_note(l1->curve, hash, true, curve_time(l1));
}

/* Note a use, and tell a policy, or a curve, that wants to hear of it. */
static inline void
use(struct near__l1_front *front, struct near__table *table, _Atomic uint8_t *mark, uint64_t hash)
{
    if (near__l1_use(table, mark) && front->watch != NULL)
        watched(front, hash);
}

void
near__l1_missed(struct near__l1 *l1, uint64_t hash)
{
    if (NEAR__UNLIKELY(l1->pools != NULL))
        near__pools_missed(l1->pools, hash);
    if (NEAR__UNLIKELY(l1->curve != NULL) && near__curve_follows(l1->curve, hash))
        near__curve_note(l1->curve, hash, false, curve_time(l1));
}

void
near__l1_unused(struct near__l1 *l1)
{
    if (NEAR__UNLIKELY(l1->curve != NULL))
        atomic_fetch_add_explicit(&l1->unused, 1, memory_order_relaxed);
}

/* An entry was admitted. */
static void
told_of_fill(struct near__l1 *l1, const struct near__entry *entry)
{
    if (NEAR__LIKELY(l1->curve == NULL) || !near__curve_follows(l1->curve, entry->hash))
        return;
    near__curve_filled(l1->curve, entry->hash,
                       entry->fresh_until < entry->expires ? entry->fresh_until : entry->expires);
}

/* A key was invalidated. */
static void
told_of_end(struct near__l1 *l1, uint64_t hash)
{
    if (NEAR__UNLIKELY(l1->curve != NULL) && near__curve_follows(l1->curve, hash))
        near__curve_drop(l1->curve, hash);
}

/* A value was handed out and counted: is it one to look at closely? */
static inline void
sample(struct near__l1_front *front, const struct near__reader *reader, uint64_t hash, near_bytes key)
{
    if (front->path.number < reader->hits_count &&
        near__l1_is_sample(atomic_load_explicit(&reader->hits[front->path.number], memory_order_relaxed)) &&
        front->sample != NULL)
        front->sample(front->sample_ctx, hash, key);
}

near_status
near__l1_after(struct near__l1_front *front, _Atomic uint8_t *mark, uint64_t hash, near_bytes key)
{
    use(front, &front->path.tables[hash & front->path.shard_mask], mark, hash);
    sample(front, near__reader_mine, hash, key);
    return NEAR_OK;
}

/* The slower path has handed a value out. */
static near_value *
sampled(struct near__l1 *l1, struct near__reader *reader, uint64_t hash, near_bytes key, near_value *value)
{
    if ((uintptr_t)value > NEAR__VALUE_BITS)
        sample(&l1->front, reader, hash, key);
    return value;
}

near_value *
near__l1_find(struct near__l1 *l1, uint64_t hash, near_bytes key, int64_t now)
{
    struct near__reader *reader  = near__reader();
    uint32_t             element = near__element(hash);
    struct near__table  *table;
    struct near__hazard *slot;
    near_value          *value;

    if (reader == NULL || l1->off)
        return l1->pools != NULL ? near__pools_find(l1->pools, hash, key, now) : NULL;
    slot = near__hazard_slot(reader);
    if (slot == NULL)
        return NULL;
    table = &l1->front.path.tables[hash & l1->front.path.shard_mask];
    for (int tries = 0; tries < RETRIES; tries++) {
        uint64_t             size   = near__table_size(table);
        struct near__bucket *home   = near__table_bucket(table, near__table_home(size, element)),
                            *bucket = home;
        uint16_t version            = near__bucket_version(home);

        if (near__bucket_stale(table, home))
            break;
        for (; bucket != NULL; bucket = near__table_after(table, bucket))
            for (uint32_t match = near__bucket_match(bucket, near__tag(element)); match != 0;
                 match          = NEAR__LANE_NEXT(match)) {
                unsigned                  lane  = NEAR__LANE(match);
                const struct near__block *block = announce(l1, slot, bucket, lane);

                if (block == NULL || !near__block_is(block, key))
                    continue;
                value = hand_out(l1, reader, slot, block, now);
                if (value != NULL) /* what has ended is not used by being met */
                    use(&l1->front, table, &bucket->marks[lane], hash);
                return sampled(l1, reader, hash, key, value);
            }
        if (near__table_settled(table, size, home, version))
            break;
        /* an entry that moved while we looked was perhaps missed */
    }
    near__hazard_clear(slot);
    return NULL;
}

/* Where a key of a group seems to be: the first slot with its tag; `lane` is NEAR__LANES where there is none. */
struct seeming {
    struct near__table *table;
    struct near__place  place;
    bool                stale; /* cleared: nothing is there */
};

/* Look for the tag in the bucket and bring the block's lines; false: not there, but there is an overflow bucket, on its way now. */
static inline bool
seems_here(const struct near__l1_front *front, struct seeming *at, uint64_t hash)
{
    uint32_t             match = near__bucket_match(at->place.bucket, near__tag(near__element(hash)));
    struct near__bucket *next;
    const char          *block;

    at->place.lane = NEAR__LANES;
    if (NEAR__UNLIKELY(match == 0)) {
        next = near__table_after(at->table, at->place.bucket);
        if (next == NULL)
            return true;
        at->place.bucket = next;
        __builtin_prefetch(next);
        return false;
    }
    at->place.lane = NEAR__LANE(match);
    block          = near__arena_at(&front->path.view, near__bucket_ref(at->place.bucket, at->place.lane));
    __builtin_prefetch(block);
    __builtin_prefetch(block + CACHE_LINE);
    return true;
}

/* Passes, so that the memory accesses of all keys are under way at once: homes, blocks (and overflow buckets, and their blocks),
 * then the finds. */
static void
find_group(struct near__l1 *l1, const uint64_t *hashes, const near_bytes *keys, size_t n, int64_t now,
           near_value **values)
{
    struct near__l1_front *front  = &l1->front;
    struct near__reader   *reader = near__reader();
    struct near__l1_time   time   = { .now = now };
    struct seeming         at[GROUP];
    uint8_t                overflowed[GROUP];
    size_t                 others = 0;

    for (size_t i = 0; i < n; i++) {
        at[i].table        = &front->path.tables[hashes[i] & front->path.shard_mask];
        at[i].place.bucket = near__table_bucket(
            at[i].table, near__table_home(near__table_size(at[i].table), near__element(hashes[i])));
        __builtin_prefetch(at[i].place.bucket);
    }
    for (size_t i = 0; i < n; i++) {
        at[i].stale = near__bucket_stale(at[i].table, at[i].place.bucket);
        if (!seems_here(front, &at[i], hashes[i]))
            overflowed[others++] = (uint8_t)i;
    }
    for (size_t i = 0; i < others; i++)
        seems_here(front, &at[overflowed[i]], hashes[overflowed[i]]);
    for (size_t i = 0; i < n; i++) {
        struct near__hazard *hazard = NULL;
        struct near__l1_held held;

        if (NEAR__LIKELY(at[i].place.lane != NEAR__LANES && reader != NULL && !at[i].stale))
            hazard = near__hazard_slot(reader);
        if (NEAR__UNLIKELY(hazard == NULL || !near__l1_hold(&front->path, front, reader, hazard, at[i].table,
                                                            at[i].place, keys[i], time, &held))) {
            values[i] = near__l1_find(l1, hashes[i], keys[i], now);
            continue;
        }
        values[i] = held.value;
        if (NEAR__UNLIKELY(held.more))
            near__l1_after(front, held.mark, hashes[i], keys[i]);
    }
}

void
near__l1_find_many(struct near__l1 *l1, const uint64_t *hashes, const near_bytes *keys, size_t n, int64_t now,
                   near_value **values)
{
    if (l1->pools != NULL) {
        near__pools_find_many(l1->pools, hashes, keys, n, now, values);
        return;
    }
    for (size_t at = 0; at < n; at += GROUP) {
        size_t group = smaller(n - at, GROUP);

        if (l1->front.fast)
            find_group(l1, hashes + at, keys + at, group, now, values + at);
        else
            for (size_t i = at; i < at + group; i++)
                values[i] = near__l1_find(l1, hashes[i], keys[i], now);
    }
}

#define SMALL_HEAD   35  /* header, TTL, birth, a key of 21 bytes, gap, and no line more than it takes */
#define BROUGHT_MOST 512 /* of a larger value the processor fetches the rest ahead by itself */

/* ---- copies: the same passes, of several groups at a time */

void
near__l1_aim(struct near__l1 *l1, const uint64_t *hashes, size_t n, struct near__l1_sight *sights)
{
    struct near__l1_front *front = &l1->front;

    for (size_t i = 0; l1->front.fast && i < n; i++) {
        sights[i].table  = &front->path.tables[hashes[i] & front->path.shard_mask];
        sights[i].bucket = near__table_bucket(
            sights[i].table, near__table_home(near__table_size(sights[i].table), near__element(hashes[i])));
        __builtin_prefetch(sights[i].bucket);
    }
}

/* The lines of a block with a value of that size behind the two that are on their way already.  Where the value ends depends on a header
 * that is not here yet: with a key of 20 bytes or so. */
static inline void
bring_rest(const struct near__l1_front *front, struct near__place place, size_t room)
{
    const char *block = near__arena_at(&front->path.view, near__bucket_ref(place.bucket, place.lane));
    const char *last  = block + SMALL_HEAD + smaller(room, BROUGHT_MOST);

    for (const char *line = block + 2 * CACHE_LINE; line < last + CACHE_LINE; line += CACHE_LINE)
        __builtin_prefetch(line < last ? line : last);
}

void
near__l1_seek(struct near__l1 *l1, const uint64_t *hashes, size_t n, size_t room,
              struct near__l1_sight *sights)
{
    for (size_t i = 0; l1->front.fast && i < n; i++) {
        struct seeming at = { .table = sights[i].table, .place = { .bucket = sights[i].bucket } };

        sights[i].stale = near__bucket_stale(at.table, at.place.bucket);
        if (NEAR__UNLIKELY(!seems_here(&l1->front, &at, hashes[i])))
            seems_here(&l1->front, &at, hashes[i]); /* waits for the overflow bucket: one key in fifty */
        sights[i].bucket = at.place.bucket;
        sights[i].lane   = at.place.lane;
        if (NEAR__LIKELY(at.place.lane != NEAR__LANES))
            bring_rest(&l1->front, at.place, room);
    }
}

/* False: as a handle, if at all. */
static inline bool
copy_one(struct near__l1_front *front, struct near__reader *reader, const struct near__l1_sight *sight,
         uint64_t hash, near_bytes key, int64_t now, struct near__l1_copy *copy)
{
    struct near__place   place  = { sight->bucket, sight->lane };
    struct near__l1_time time   = { .now = now };
    struct near__hazard *hazard = near__hazard_slot(reader);
    struct near__l1_held held;
    near_bytes           bytes;

    if (NEAR__UNLIKELY(hazard == NULL || !near__l1_hold(&front->path, front, reader, hazard, sight->table,
                                                        place, key, time, &held)))
        return false;
    bytes       = near__block_value(near__slot_block(hazard));
    copy->value = held.value;
    if (NEAR__UNLIKELY(held.more))
        near__l1_after(front, held.mark, hash, key);
    if (NEAR__UNLIKELY(((uintptr_t)held.value & NEAR__VALUE_STALE) || bytes.size > copy->room ||
                       bytes.size == 0)) /* an object, perhaps */
        return true;
    if (NEAR__LIKELY(bytes.size == 64))
        memcpy(copy->to, bytes.data, 64); /* of a size that the compiler knows */
    else
        memcpy(copy->to, bytes.data, bytes.size);
    copy->size  = bytes.size;
    copy->value = NEAR__L1_COPIED;
    near__hazard_release(hazard);
    reader->next = hazard; /* for the next one: nothing is held any more */
    return true;
}

/* Several pools, or a process without membarrier: with handles. */
static void
find_for_copies(struct near__l1 *l1, const uint64_t *hashes, const near_bytes *keys, size_t n, int64_t now,
                struct near__l1_copy *copies)
{
    near_value *values[GROUP];

    for (size_t at = 0; at < n; at += GROUP) {
        size_t group = smaller(n - at, GROUP);

        near__l1_find_many(l1, hashes + at, keys + at, group, now, values);
        for (size_t i = 0; i < group; i++)
            copies[at + i].value = values[i];
    }
}

void
near__l1_copy(struct near__l1 *l1, const uint64_t *hashes, const near_bytes *keys, size_t n, int64_t now,
              const struct near__l1_sight *sights, struct near__l1_copy *copies)
{
    struct near__reader *reader = near__reader();

    if (NEAR__UNLIKELY(!l1->front.fast)) {
        find_for_copies(l1, hashes, keys, n, now, copies);
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (NEAR__UNLIKELY(reader == NULL || sights[i].stale || sights[i].lane == NEAR__LANES ||
                           !copy_one(&l1->front, reader, &sights[i], hashes[i], keys[i], now, &copies[i])))
            copies[i].value = near__l1_find(l1, hashes[i], keys[i], now);
}

static uint64_t
fence_of(const struct near__l1 *l1, uint64_t hash)
{
    const struct stripe *stripe = stripe_of(l1, hash);
    /* acquire: the stripe's pairs with fence_move(), the epoch's with near__l1_flush() */
    uint64_t moves = atomic_load_explicit(&stripe->fence, memory_order_acquire) +
                     atomic_load_explicit(&l1->epoch, memory_order_acquire);

    /* acquire: pairs with near__l1_insert(); who sees a fill asks L2 after it, and gets nothing older */
    return moves << NEAR__L1_FENCE_FILLS |
           (atomic_load_explicit(&stripe->fills, memory_order_acquire) & ((1u << NEAR__L1_FENCE_FILLS) - 1));
}

uint64_t
near__l1_fence(const struct near__l1 *l1, uint64_t hash)
{
    return l1->pools != NULL ? near__pools_fence(l1->pools, hash) : fence_of(l1, hash);
}

void
near__l1_bring_fence(const struct near__l1 *l1, uint64_t hash)
{
    if (l1->pools == NULL && l1->stripes != NULL)
        __builtin_prefetch(stripe_of(l1, hash));
}

void
near__l1_bring(const struct near__l1 *l1, uint64_t hash)
{
    const struct near__table *table;

    near__l1_bring_fence(l1, hash);
    if (!l1->front.fast)
        return;
    table = &l1->front.path.tables[hash & l1->front.path.shard_mask];
    __builtin_prefetch(
        near__table_bucket(table, near__table_home(near__table_size(table), near__element(hash))));
}

/* No lock is held: whoever keeps something that a write makes void hears of it before the writer's caller does. */
static void
tell_of_write(const struct near__l1 *l1)
{
    if (NEAR__UNLIKELY(l1->wrote != NULL))
        l1->wrote(l1->wrote_ctx);
}

/* ---- tags */

/* Made when the first tag is met.  NULL: no memory. */
static struct near__label_clock *
label_clock(struct near__l1 *l1)
{
    struct near__label_clock *clock = atomic_load_explicit(&l1->front.labels, memory_order_acquire);
    struct near__label_clock *mine;

    if (clock != NULL)
        return clock;
    mine = calloc(1, sizeof(*mine));
    if (mine == NULL)
        return NULL;
    /* release: pairs with the acquires of readers */
    if (atomic_compare_exchange_strong_explicit(&l1->front.labels, &clock, mine, memory_order_acq_rel,
                                                memory_order_acquire))
        return mine;
    free(mine);
    return clock;
}

uint32_t
near__l1_label_clock(const struct near__l1 *l1)
{
    const struct near__label_clock *clock = atomic_load_explicit(&l1->front.labels, memory_order_acquire);

    /* acquire: pairs with the release below, so what is asked afterwards is at least as new as that invalidation */
    return clock != NULL ? (uint32_t)atomic_load_explicit(&clock->now, memory_order_acquire) : 0;
}

uint32_t
near__l1_label_moment(const struct near__l1 *l1, uint64_t hash)
{
    const struct near__label_clock *clock = atomic_load_explicit(&l1->front.labels, memory_order_acquire);

    /* acquire: pairs with near__l1_invalidate_tag(), as near__l1_label_clock() */
    return clock != NULL ? (uint32_t)atomic_load_explicit(&clock->stripes[near__label_stripe(hash)],
                                                          memory_order_acquire)
                         : 0;
}

/* The clock first: who captures the new moment asks L2 after this call began.  Everything captured before is behind the stripe
 * when this returns. */
void
near__l1_invalidate_tag(struct near__l1 *l1, uint64_t hash)
{
    struct near__label_clock *clock = l1->off && l1->pools == NULL ? NULL : label_clock(l1);
    _Atomic uint64_t         *stripe;
    uint64_t                  moment, old;

    if (clock == NULL) {
        near__l1_flush(l1); /* no memory to be exact with */
        return;
    }
    stripe = &clock->stripes[near__label_stripe(hash)];
    moment = atomic_fetch_add_explicit(&clock->now, 1, memory_order_acq_rel) + 1;
    old    = atomic_load_explicit(stripe, memory_order_relaxed);
    while (moment > old && !atomic_compare_exchange_weak_explicit(stripe, &old, moment, memory_order_seq_cst,
                                                                  memory_order_relaxed))
        ; /* somebody else's moment: the later one stays */
    if (moment % NEAR__LABEL_LAP == 0)
        near__l1_flush(l1);
    tell_of_write(l1);
}

/* ---- filling */

/* Under the shard's lock, which orders it with evictions. */
static inline void
forget(struct near__l1 *l1, uint64_t hash)
{
    if (NEAR__UNLIKELY(l1->spill != NULL) && l1->pool_number == 0)
        near__spill_forget(l1->spill, hash);
}

/* Forgotten first: who captures the new fence may give back what the disk had after that. */
static void
fence_move(struct near__l1 *l1, uint64_t hash)
{
    forget(l1, hash);
    /* release: who captures the new fence asks L2, or the disk, after everything that came before this invalidation */
    atomic_fetch_add_explicit(&stripe_of(l1, hash)->fence, 1, memory_order_release);
}

/* The entry with no more time than this L1 gives it: itself, or what is written to `dated`, which has no key of its own and no count. */
static const struct near__entry *
dated_entry(const struct near__l1 *l1, const struct near__entry *entry, struct near__entry *dated)
{
    const size_t counts = sizeof(entry->refs); /* others may be changing that one */
    int64_t      end;

    if (NEAR__LIKELY(l1->ttl == 0))
        return entry;
    end = near__time_after(entry->born, l1->ttl);
    memcpy((char *)dated + counts, (const char *)entry + counts, sizeof(*dated) - counts);
    if (dated->fresh_until > end)
        dated->fresh_until = end;
    if (!dated->negative)
        end = near__time_after(end, l1->grace);
    if (dated->expires > end)
        dated->expires = end;
    return dated;
}

/* Whether the entry is copied into the arena, and how; else its block is a pointer. */
static inline bool
lives_in_arena(const struct near__l1 *l1, const struct shard *sh, const struct near__entry *entry,
               unsigned *flags, size_t *size)
{
    *flags = near__block_flags(entry, l1->plain);
    *size  = near__block_size(entry, *flags, near__block_code(entry, l1->align_from));
    return !near__block_wide(entry) && *size <= sh->heap.largest;
}

/* The block, which is not linked yet, names the object from now on, if that can be paid for; 0: it cannot, and the block is free. */
static uint32_t
object_paid_locked(struct near__l1 *l1, struct shard *sh, uint32_t ref, struct near__object *whole,
                   struct dead *dead)
{
    struct near__object *object = object_here(sh, whole);

    if (object == NULL || (object->blocks == 0 && !charge_locked(l1, sh, near__object_cost(object), dead))) {
        near__heap_free(&sh->heap, ref);
        ref = 0;
    } else {
        near__block_name(block_at(l1, ref), object);
        object_named_locked(sh, object);
    }
    near__object_release(&object); /* never the last: the entry is held by our caller */
    return ref;
}

/* A block with the entry in it, not linked yet; 0: there is no room, or it would take more than half of the shard's. */
static uint32_t
block_new_locked(struct near__l1 *l1, struct shard *sh, struct near__entry *entry, near_bytes key,
                 int64_t now, struct dead *dead)
{
    unsigned                  flags;
    size_t                    size;
    uint32_t                  ref;
    struct near__entry        dated;
    const struct near__entry *as = dated_entry(l1, entry, &dated);

    if (lives_in_arena(l1, sh, as, &flags, &size)) {
        size_t cost = entry->object != NULL ? near__object_cost(entry->object) : 0;

        if (size + cost > sh->max_bytes / 4 && /* a class is not twice as large */
            near__heap_class_bytes(&sh->heap, size) + cost > sh->max_bytes / 2)
            return 0;
        ref = obtain_locked(l1, sh, size, dead);
        if (ref == 0)
            return 0;
        near__block_write(block_at(l1, ref), as, key, flags, near__block_code(as, l1->align_from));
        return entry->object != NULL ? object_paid_locked(l1, sh, ref, entry->object, dead) : ref;
    }
    if (near__entry_cost(entry) + NEAR__BLOCK_EXTERNAL_SIZE > sh->max_bytes / 2)
        return 0;
    ref = obtain_locked(l1, sh, NEAR__BLOCK_EXTERNAL_SIZE, dead);
    if (ref == 0)
        return 0;
    near__block_write_external(block_at(l1, ref), entry); /* now: compaction looks at every block */
    if (l1->ttl != 0)
        near__block_end_external(block_at(l1, ref), as->expires, now);
    if (!charge_locked(l1, sh, near__entry_cost(entry), dead)) {
        near__heap_free(&sh->heap, ref);
        return 0;
    }
    near__entry_ref(entry);
    sh->externals++;
    return ref;
}

static uint8_t
enter_locked(struct shard *sh, uint32_t element)
{
    if (NEAR__UNLIKELY(sh->revived > 0) && sh->order.policy->revive != NULL)
        return sh->order.policy->revive(&sh->order, element, (uint8_t)(sh->revived - 1));
    return sh->order.policy->enter(&sh->order, element);
}

/* Put the block where the key's older one is, or into a slot of its own. */
static bool
link_locked(struct near__l1 *l1, struct shard *sh, uint64_t hash, near_bytes key, uint32_t ref,
            struct dead *dead)
{
    uint32_t           element = near__element(hash), old;
    struct near__place place;
    uint8_t            mark;

    purge_locked(l1, sh, home_of(sh, element), dead);
    if (lookup_locked(l1, sh, hash, key, &place)) {
        old = near__place_ref(place);
        /* release: pairs with announce() */
        atomic_store_explicit(&place.bucket->refs[place.lane], ref, memory_order_release);
        retire_locked(l1, sh, old, dead);
        near__l1_use(sh->table, &place.bucket->marks[place.lane]);
        return true;
    }
    /* one, or after a resize a few more, until the bound is reached */
    for (int i = 0; sh->table->entries >= sh->max_entries && i < AHEAD_MAX && dead->n < DEAD / 2; i++)
        if (!evict_one_locked(l1, sh, dead))
            break;
    mark = enter_locked(sh, element);
    if (!near__table_insert(sh->table, element, ref, mark, &place)) {
        if (!slab_room_locked(l1, sh, dead))
            return false;
        mark =
            enter_locked(sh, element); /* making room may have met the first one's element, and dropped it */
        if (!near__table_insert(sh->table, element, ref, mark, &place))
            return false;
    }
    grow_locked(l1, sh, dead);
    return true;
}

/* So many counted entries have to be let go that the lock must be dropped for it: the same once more. */
#define AGAIN NEAR__L1_AGAIN

/* The fence has been found unmoved.  Whatever the answer (but AGAIN), an older value of the key is gone afterwards. */
static enum near__l1_admission
link_new_locked(struct near__l1 *l1, struct shard *sh, struct near__entry *entry, near_bytes key, int64_t now,
                struct dead *dead)
{
    uint32_t           ref;
    struct near__entry dated;

    if (dated_entry(l1, entry, &dated)->expires <= now ||
        (entry->labels != NULL && label_clock(l1) == NULL)) {
        drop_locked(l1, sh, entry->hash, key, dead);
        return NEAR__L1_EXPIRED;
    }
    ref = block_new_locked(l1, sh, entry, key, now, dead);
    if (ref == 0 && dead->n >= DEAD / 2)
        return AGAIN;
    if (ref == 0) {
        drop_locked(l1, sh, entry->hash, key, dead);
        sh->stats.too_large++;
        return NEAR__L1_TOO_LARGE;
    }
    if (entry->expires != NEAR_NEVER || l1->ttl != 0) {
        sh->timed = true;
        atomic_store_explicit(&l1->front.timed, true, memory_order_relaxed);
    }
    sh->timed |= entry->labels != NULL; /* to be swept as well */
    if (!link_locked(l1, sh, entry->hash, key, ref, dead)) {
        block_free_locked(l1, sh, ref, dead); /* nobody has seen it */
        return NEAR__L1_TOO_LARGE;
    }
    sh->stats.fills++;
    return NEAR__L1_ADMITTED;
}

/* The same for what does not come from the disk tier: that forgets the key, now, for making room may have evicted the older value. */
static enum near__l1_admission
admit_locked(struct near__l1 *l1, struct shard *sh, struct near__entry *entry, near_bytes key, int64_t now,
             struct dead *dead)
{
    enum near__l1_admission verdict = link_new_locked(l1, sh, entry, key, now, dead);

    forget(l1, entry->hash);
    return verdict;
}

/* Fewer entries or bytes than there are were allowed. */
static bool
shrink_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    bool too_many = sh->table->entries > sh->max_entries, too_much = sh->heap.bytes > sh->heap.max_bytes;

    if (!too_many && !too_much)
        return false;
    if (too_much && compact_locked(l1, sh, dead))
        return true;
    return evict_locked(l1, sh, AHEAD_MAX, dead);
}

/* After an admission, before the lock is dropped: keep a few blocks on their way out, so that one barrier serves many. */
static void
ahead_locked(struct near__l1 *l1, struct shard *sh, struct dead *dead)
{
    if (++sh->since_paid == PAY_EVERY) {
        sh->since_paid = 0;
        pay_policy_locked(l1, sh);
        /* the policy has grown at the entries' expense: a slab now and then is as fast as it grows */
        if (sh->heap.bytes > sh->heap.max_bytes && shrink_locked(l1, sh, dead))
            near__arena_trim(l1->arena, near__arena_slab_bytes(l1->arena));
    }
    if (sh->limbo_n >= LIMBO / 2 && harvest_locked(l1, sh, dead) == 0)
        barrier_locked(l1, sh, dead);
    if (sh->pressed && sh->limbo_n < ahead(sh) &&
        sh->heap.bytes + near__arena_slab_bytes(l1->arena) > sh->heap.max_bytes)
        evict_locked(l1, sh, 1, dead);
    settle_locked(l1, sh, dead);
}

/* Whether there is another version of the key that came from L2, no longer ago than a read takes. */
static bool
has_other_locked(const struct near__l1 *l1, const struct shard *sh, const struct near__entry *entry,
                 int64_t now)
{
    struct near__place        place;
    const struct near__block *block;
    struct near__meta         meta;

    if (!lookup_locked(l1, sh, entry->hash, near__entry_key(entry), &place))
        return false;
    block = block_at(l1, near__place_ref(place));
    if (block->flags & NEAR__BLOCK_EXTERNAL)
        meta = (struct near__meta){ .stamp = near__block_external(block)->stamp,
                                    .born  = near__block_external(block)->born };
    else
        near__block_meta(block, now, &meta);
    return meta.stamp != 0 && meta.stamp != entry->stamp && entry->born - meta.born < READ_MAX;
}

/* Two reads of L2 under way at once, of which the older may end last: since this one asked, another has filled the key with another
 * version.  Which of them is the newer one cannot be told by their stamps.  What is there for longer than any read takes is only
 * being refreshed. */
static bool
is_overtaken_locked(const struct near__l1 *l1, const struct shard *sh, const struct near__entry *entry,
                    uint64_t fence, int64_t now)
{
    return entry->stamp != 0 && fence_of(l1, entry->hash) != fence && has_other_locked(l1, sh, entry, now);
}

/* ---- what was filled while entries of a former life come back */

static size_t
filled_at(uint64_t hash)
{
    return (size_t)((hash * UINT64_C(0x9E3779B97F4A7C15)) >> 40) % FILLED_BITS;
}

static void
note_fill_locked(const struct near__l1 *l1, uint64_t hash)
{
    _Atomic uint8_t *filled = atomic_load_explicit(&l1->filled, memory_order_acquire);
    size_t           at     = filled_at(hash);

    if (NEAR__UNLIKELY(filled !=
                       NULL)) /* relaxed: a hash has one shard, whose lock orders it; a byte may have two */
        atomic_fetch_or_explicit(&filled[at / 8], (uint8_t)(1u << at % 8), memory_order_relaxed);
}

static bool
was_filled_locked(const struct near__l1 *l1, uint64_t hash)
{
    _Atomic uint8_t *filled = atomic_load_explicit(&l1->filled, memory_order_acquire);
    size_t           at     = filled_at(hash);

    return filled == NULL || (atomic_load_explicit(&filled[at / 8], memory_order_relaxed) >> at % 8 & 1);
}

/* What a fill (from L2 or a loader) and a conditional write offer; the write's own condition is that nothing came since `fence`. */
static enum near__l1_admission
offer_locked(struct near__l1 *l1, struct shard *sh, struct near__entry *entry, uint64_t fence, bool is_write,
             int64_t now, struct dead *dead)
{
    struct stripe          *stripe = stripe_of(l1, entry->hash);
    enum near__l1_admission verdict;

    if (!near__l1_fence_same(fence_of(l1, entry->hash), fence) || stripe->writers > 0) {
        sh->stats.fills_refused += !is_write;
        return NEAR__L1_FENCED;
    }
    if (!is_write && is_overtaken_locked(l1, sh, entry, fence, now)) {
        fence_move(l1, entry->hash); /* neither, and no third one from before */
        drop_locked(l1, sh, entry->hash, near__entry_key(entry), dead);
        settle_locked(l1, sh, dead);
        sh->stats.fills_refused++;
        return NEAR__L1_FENCED;
    }
    verdict = admit_locked(l1, sh, entry, near__entry_key(entry), now, dead);
    if (is_write && verdict != AGAIN)
        fence_move(l1, entry->hash);       /* what was asked for before is older */
    else if (verdict == NEAR__L1_ADMITTED) /* release: pairs with near__l1_fence() */
        atomic_fetch_add_explicit(&stripe->fills, 1, memory_order_release);
    if (verdict != AGAIN)
        note_fill_locked(l1, entry->hash); /* kept or not: its caller has seen it */
    ahead_locked(l1, sh, dead);
    return verdict;
}

static enum near__l1_admission
offer(struct near__l1 *l1, struct near__entry *entry, uint64_t fence, bool is_write, int64_t now)
{
    struct shard           *sh = shard_of(l1, entry->hash);
    struct dead             dead;
    enum near__l1_admission verdict;

    dead.n = 0;
    if (l1->pools != NULL) {
        verdict = near__pools_offer(l1->pools, entry, fence, is_write, now);
        if (is_write)
            tell_of_write(l1);
        return verdict;
    }
    if (l1->off)
        return NEAR__L1_TOO_LARGE;
    do {
        near__lock(&sh->lock);
        verdict = offer_locked(l1, sh, entry, fence, is_write, now, &dead);
        near__unlock(&sh->lock);
        let_go(&dead);
    } while (verdict == AGAIN);
    if (verdict == NEAR__L1_ADMITTED && l1->front.watch != NULL)
        l1->front.watch(&sh->order, near__element(entry->hash), false);
    if (verdict == NEAR__L1_ADMITTED)
        told_of_fill(l1, entry);
    if (is_write)
        tell_of_write(l1);
    return verdict;
}

enum near__l1_admission
near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence, int64_t now)
{
    return offer(l1, entry, fence, false, now);
}

enum near__l1_admission
near__l1_store_if(struct near__l1 *l1, struct near__entry *entry, uint64_t fence, int64_t now)
{
    return offer(l1, entry, fence, true, now);
}

/* ---- what the disk tier gives back */

static enum near__l1_admission
return_locked(struct near__l1 *l1, struct shard *sh, struct near__entry *entry, uint64_t fence, int64_t now,
              struct dead *dead)
{
    near_bytes              key    = near__entry_key(entry);
    struct stripe          *stripe = stripe_of(l1, entry->hash);
    enum near__l1_admission verdict;
    struct near__place      place;

    if (near__l1_fence(l1, entry->hash) != fence || stripe->writers > 0 ||
        lookup_locked(l1, sh, entry->hash, key, &place)) {
        sh->stats.fills_refused++;
        return NEAR__L1_FENCED;
    }
    verdict = link_new_locked(l1, sh, entry, key, now, dead);
    if (verdict == NEAR__L1_ADMITTED) /* release: pairs with near__l1_fence() */
        atomic_fetch_add_explicit(&stripe->fills, 1, memory_order_release);
    ahead_locked(l1, sh, dead);
    return verdict;
}

enum near__l1_admission
near__l1_return(struct near__l1 *l1, struct near__entry *entry, uint64_t fence, int64_t now)
{
    struct shard           *sh = shard_of(l1, entry->hash);
    struct dead             dead;
    enum near__l1_admission verdict;

    dead.n = 0;
    if (l1->pools != NULL)
        return near__pools_return(l1->pools, entry, fence, now);
    if (l1->off)
        return NEAR__L1_TOO_LARGE;
    do {
        near__lock(&sh->lock);
        verdict = return_locked(l1, sh, entry, fence, now, &dead);
        near__unlock(&sh->lock);
        let_go(&dead);
    } while (verdict == AGAIN);
    if (verdict == NEAR__L1_ADMITTED && l1->front.watch != NULL)
        l1->front.watch(&sh->order, near__element(entry->hash), false);
    if (verdict == NEAR__L1_ADMITTED)
        told_of_fill(l1, entry);
    return verdict;
}

bool
near__l1_adopt(struct near__l1 *l1, uint64_t hash, near_bytes key, uint64_t fence, uint64_t at, uint32_t size)
{
    struct shard      *sh = shard_of(l1, hash);
    struct near__place place;
    bool               done;

    if (l1->pools != NULL)
        return near__pools_adopt(l1->pools, hash, fence, at, size);
    if (l1->off || l1->spill == NULL)
        return false;
    near__lock(&sh->lock);
    done = stripe_of(l1, hash)->writers == 0 &&
           (fence == NEAR__L1_UNTOUCHED ? !near__spill_touched(l1->spill, hash)
                                        : near__l1_fence(l1, hash) == fence) &&
           !lookup_locked(l1, sh, hash, key, &place) && near__spill_adopt(l1->spill, hash, at, size);
    near__unlock(&sh->lock);
    return done;
}

bool
near__l1_labels_outdated(const struct near__l1 *l1, const struct near__labels *labels)
{
    return outdated(l1, labels);
}

/* ---- invalidating */

void
near__l1_invalidate(struct near__l1 *l1, uint64_t hash, near_bytes key)
{
    struct shard *sh = shard_of(l1, hash);
    struct dead   dead;

    dead.n = 0;
    if (l1->pools != NULL) {
        near__pools_invalidate(l1->pools, hash, key);
        tell_of_write(l1);
        return;
    }
    if (l1->off) {
        fence_move(l1, hash);
        return;
    }
    near__lock(&sh->lock);
    fence_move(l1, hash);
    drop_locked(l1, sh, hash, key, &dead);
    settle_locked(l1, sh, &dead);
    near__unlock(&sh->lock);
    let_go(&dead);
    told_of_end(l1, hash);
    tell_of_write(l1);
}

void
near__l1_flush(struct near__l1 *l1)
{
    if (l1->pools != NULL) {
        near__pools_flush(l1->pools);
        tell_of_write(l1);
        return;
    }
    /* first: nobody gives back with the new fence what the disk had before */
    if (l1->spill != NULL && !l1->off)
        near__spill_flush_begin(l1->spill);
    /* before the shards, and release: pairs with near__l1_fence(), as in fence_move() */
    atomic_fetch_add_explicit(&l1->epoch, 1, memory_order_release);
    if (l1->off)
        return;
    for (size_t i = 0; i <= l1->front.path.shard_mask; i++)
        clear(l1, &l1->shards[i]);
    if (l1->spill != NULL) /* not before: until it is cleared a shard may evict */
        near__spill_flush_end(l1->spill);
    if (l1->curve != NULL)
        near__curve_clear(l1->curve);
    tell_of_write(l1);
}

/* ---- writing */

struct near__l1_write
near__l1_write_begin(struct near__l1 *l1, uint64_t hash, near_bytes key)
{
    struct shard         *sh     = shard_of(l1, hash);
    struct stripe        *stripe = stripe_of(l1, hash);
    struct dead           dead;
    struct near__l1_write write = { 0, false };

    dead.n = 0;
    if (l1->pools != NULL) {
        write = near__pools_write_begin(l1->pools, hash, key);
        tell_of_write(l1);
        return write;
    }
    if (l1->off) {
        fence_move(l1, hash);
        return write;
    }
    near__lock(&sh->lock);
    fence_move(l1, hash);
    drop_locked(l1, sh, hash, key, &dead);
    write.fence      = fence_of(l1, hash);
    write.overlapped = stripe->writers > 0;
    stripe->writers++;
    settle_locked(l1, sh, &dead);
    near__unlock(&sh->lock);
    let_go(&dead);
    tell_of_write(l1);
    return write;
}

void
near__l1_write_end(struct near__l1 *l1, struct near__l1_write write, uint64_t hash, near_bytes key,
                   struct near__entry *entry, int64_t now)
{
    struct shard *sh = shard_of(l1, hash);
    struct dead   dead;
    bool          alone;

    dead.n = 0;
    if (l1->pools != NULL) {
        near__pools_write_end(l1->pools, write, hash, key, entry, now);
        tell_of_write(l1);
        return;
    }
    if (l1->off) {
        fence_move(l1, hash);
        return;
    }
    near__lock(&sh->lock);
    alone = !write.overlapped && near__l1_fence_same(fence_of(l1, hash), write.fence);
    while (entry != NULL && alone &&
           admit_locked(l1, sh, entry, near__entry_key(entry), now, &dead) == AGAIN) {
        near__unlock(&sh->lock);
        let_go(&dead);
        near__lock(&sh->lock);
        alone = !write.overlapped && near__l1_fence_same(fence_of(l1, hash), write.fence);
    }
    stripe_of(l1, hash)->writers--;
    fence_move(l1, hash);
    if (entry == NULL || !alone)
        drop_locked(l1, sh, hash, key,
                    &dead); /* a belt: begin dropped it, and inserts have been refused since */
    sh->stats.fills_refused += entry != NULL && !alone;
    ahead_locked(l1, sh, &dead);
    near__unlock(&sh->lock);
    let_go(&dead);
    tell_of_write(l1);
}

bool
near__l1_store(struct near__l1 *l1, struct near__entry *entry, near_bytes key, int64_t now)
{
    struct shard *sh = shard_of(l1, entry->hash);
    struct dead   dead;
    bool          again;
    unsigned      flags;
    size_t        size;

    dead.n = 0;
    if (l1->pools != NULL) {
        again = near__pools_store(l1->pools, entry, key, now);
        if (again) /* it was */
            tell_of_write(l1);
        return again;
    }
    if (l1->off || near__block_wide(entry) ||
        ((key.size + entry->value_size + NEAR__BLOCK_MORE > sh->heap.largest || entry->labels != NULL) &&
         !lives_in_arena(l1, sh, entry, &flags, &size)))
        return false;
    __builtin_prefetch(stripe_of(l1, entry->hash), 1); /* with the lock's line, not after it */
    do {
        near__lock(&sh->lock);
        fence_move(l1, entry->hash);
        again = false;
        if (stripe_of(l1, entry->hash)->writers == 0)
            again = admit_locked(l1, sh, entry, key, now, &dead) == AGAIN;
        else
            drop_locked(l1, sh, entry->hash, key, &dead);
        if (NEAR__UNLIKELY(l1->spill != NULL)) /* once more: the older value was evicted there, perhaps */
            fence_move(l1, entry->hash);
        ahead_locked(l1, sh, &dead);
        near__unlock(&sh->lock);
        let_go(&dead);
    } while (again);
    if (l1->front.watch != NULL)
        l1->front.watch(&sh->order, near__element(entry->hash), false);
    told_of_fill(l1, entry);
    tell_of_write(l1);
    return true;
}

/* ---- snapshots */

/* Past its time, or a tag of its was invalidated: gone for readers already. */
static bool
expired(const struct near__l1 *l1, const struct near__block *block, int64_t now)
{
    if (block->flags & NEAR__BLOCK_EXTERNAL)
        return near__block_external(block)->expires <= now || external_past(block, 0, now) ||
               outdated(l1, near__block_external(block)->labels);
    if ((block->flags & NEAR__BLOCK_LABELS) &&
        near__block_outdated(block, atomic_load_explicit(&l1->front.labels, memory_order_acquire)))
        return true;
    return (block->flags & NEAR__BLOCK_EXPIRES) &&
           near__block_past(near__block_u32(block, NEAR__BLOCK_EXPIRES), now);
}

/* What the announced block says; false: it has ended, or has nothing to say. */
static bool
describe(const struct near__l1 *l1, const struct near__block *block, int64_t now, struct near__l1_seen *seen)
{
    const struct near__entry *entry;
    struct near__labels       labels;

    if (expired(l1, block, now))
        return false;
    *seen =
        (struct near__l1_seen){ .key = block_key(block), .negative = block->flags & NEAR__BLOCK_NEGATIVE };
    if (block->flags & NEAR__BLOCK_EXTERNAL) {
        entry         = near__block_external(block);
        seen->unknown = is_bare(entry);
        seen->value   = (near_bytes){ entry->value, entry->value_size };
        seen->meta    = (struct near__meta){ .born        = entry->born,
                                             .fresh_until = entry->fresh_until,
                                             .expires     = entry->expires,
                                             .stamp       = entry->stamp,
                                             .generation  = entry->generation,
                                             .cost_us     = entry->cost_us };
        if (entry->labels != NULL) {
            seen->tags  = entry->labels->n;
            seen->names = (near_bytes){ entry->labels->names, entry->labels->names_size };
        }
        return true;
    }
    if (near__block_has_object(block) && near__block_object(block)->bytes == NULL)
        seen->unknown = true;
    else
        seen->value = near__block_value(block);
    near__block_meta(block, now, &seen->meta);
    if (block->flags & NEAR__BLOCK_LABELS) {
        near__block_take_labels(block, &labels);
        seen->tags  = labels.n;
        seen->names = near__block_names(block);
    }
    return true;
}

static void
walk_home(struct near__l1 *l1, struct shard *sh, uint32_t home, struct near__hazard *slot, int64_t now,
          void (*fn)(void *ctx, const struct near__l1_seen *seen), void *ctx)
{
    struct near__bucket *bucket = near__table_bucket(sh->table, home);
    struct near__l1_seen seen;

    if (near__bucket_stale(sh->table, bucket))
        return;
    for (; bucket != NULL; bucket = near__table_after(sh->table, bucket)) {
        for (unsigned lane = 0; lane < NEAR__LANES; lane++) /* a block that has left by now is still memory */
            __builtin_prefetch(block_at(l1, near__bucket_ref(bucket, lane)));
        for (unsigned lane = 0; lane < NEAR__LANES; lane++) {
            const struct near__block *block = announce(l1, slot, bucket, lane);
            /* relaxed: marks carry no other data */
            uint8_t mark = atomic_load_explicit(&bucket->marks[lane], memory_order_relaxed);

            if (block == NULL || !describe(l1, block, now, &seen))
                continue;
            if (l1->policy->warmth != NULL)
                seen.warmth = l1->policy->warmth(&sh->order, mark);
            fn(ctx, &seen);
        }
    }
}

static bool
walk(struct near__l1 *l1, struct near__l1_cursor *cursor, size_t homes_wanted, int64_t now,
     void (*fn)(void *ctx, const struct near__l1_seen *seen), void *ctx)
{
    struct near__reader *reader = near__reader();
    struct near__hazard *slot   = reader != NULL ? near__hazard_slot(reader) : NULL;

    for (; slot != NULL && !l1->off && cursor->shard <= l1->front.path.shard_mask; homes_wanted--) {
        struct shard *sh = &l1->shards[cursor->shard];

        if (homes_wanted == 0)
            break;
        /* acquire, in near__table_size(): the buckets are there */
        if (cursor->home >= (uint32_t)near__table_size(sh->table)) {
            *cursor = (struct near__l1_cursor){ cursor->pool, cursor->shard + 1, 0 };
            continue;
        }
        walk_home(l1, sh, cursor->home++, slot, now, fn, ctx);
    }
    if (slot != NULL)
        near__hazard_clear(slot);
    return slot != NULL && !l1->off && cursor->shard <= l1->front.path.shard_mask;
}

/* The index as large as so many need, while it is empty: later each bucket that is split has its entries' keys hashed again.  For no more
 * than what has 64 bytes each, for the number may be anybody's. */
static void
grow_to_locked(struct near__l1 *l1, struct shard *sh, size_t expected, struct dead *dead)
{
    size_t most = smaller(expected, sh->max_bytes / RESTORED_LEAST);

    while (sh->table->entries == 0 && dead->n < DEAD / 2 &&
           (uint64_t)homes(sh) * NEAR__FILL_SPLIT_NUM < (uint64_t)most * NEAR__FILL_SPLIT_DEN)
        if ((split_costs(sh->table) && !slab_room_locked(l1, sh, dead)) || !near__table_split(sh->table))
            break;
}

static near_status
restore_begin(struct near__l1 *l1, size_t expected, bool alone)
{
    size_t           each   = expected / (l1->front.path.shard_mask + 1);
    _Atomic uint8_t *filled = NULL;
    struct dead      dead;

    if (l1->off)
        return NEAR_OK;
    if (alone) {
        filled = calloc(1, FILLED_BITS / 8);
        if (filled == NULL)
            return NEAR_ERR_NOMEM;
    }
    /* release: pairs with note_fill_locked() and was_filled_locked() */
    atomic_store_explicit(&l1->filled, filled, memory_order_release);
    for (size_t i = 0; i <= l1->front.path.shard_mask; i++) {
        struct shard *sh = &l1->shards[i];

        near__lock(&sh->lock);
        if (sh->table->full == 0 && sh->table->capacity == 0)
            sh->table->full = smaller(each, sh->max_bytes / NEAR__BLOCK_EXTERNAL_SIZE);
        dead.n = 0;
        grow_to_locked(l1, sh, each, &dead);
        near__unlock(&sh->lock);
        let_go(&dead); /* what a flush before this left in limbo */
    }
    return NEAR_OK;
}

bool
near__l1_walk(struct near__l1 *l1, struct near__l1_cursor *cursor, size_t homes_wanted, int64_t now,
              void (*fn)(void *ctx, const struct near__l1_seen *seen), void *ctx)
{
    if (l1->pools != NULL)
        return near__pools_walk(l1->pools, cursor, homes_wanted, now, fn, ctx);
    return walk(l1, cursor, homes_wanted, now, fn, ctx);
}

near_status
near__l1_restore_begin(struct near__l1 *l1, size_t expected, bool alone)
{
    if (l1->pools != NULL)
        return near__pools_restore_begin(l1->pools, expected, alone);
    return restore_begin(l1, expected, alone);
}

void
near__l1_restore_end(struct near__l1 *l1)
{
    _Atomic uint8_t *filled = atomic_exchange_explicit(&l1->filled, NULL, memory_order_acq_rel);

    if (l1->pools != NULL)
        near__pools_restore_end(l1->pools);
    for (size_t i = 0; filled != NULL && i <= l1->front.path.shard_mask;
         i++) { /* whoever still uses it has this lock */
        near__lock(&l1->shards[i].lock);
        near__unlock(&l1->shards[i].lock);
    }
    free(filled);
}

struct restoring {
    struct near__entry *entry;
    near_bytes          key;
    uint64_t            fence;
    bool                alone;
    uint8_t             warmth;
};

static enum near__l1_admission
restore_locked(struct near__l1 *l1, struct shard *sh, const struct restoring *what, int64_t now,
               struct dead *dead)
{
    uint64_t                hash   = what->entry->hash;
    struct stripe          *stripe = stripe_of(l1, hash);
    enum near__l1_admission verdict;
    struct near__place      place;

    if (!near__l1_fence_same(near__l1_fence(l1, hash), what->fence) || stripe->writers > 0 ||
        lookup_locked(l1, sh, hash, what->key, &place) || (what->alone && was_filled_locked(l1, hash)))
        return NEAR__L1_FENCED;
    sh->revived = 1u + what->warmth;
    verdict     = admit_locked(l1, sh, what->entry, what->key, now, dead);
    sh->revived = 0;
    if (verdict == NEAR__L1_ADMITTED) /* release: pairs with near__l1_fence() */
        atomic_fetch_add_explicit(&stripe->fills, 1, memory_order_release);
    ahead_locked(l1, sh, dead);
    return verdict;
}

enum near__l1_admission
near__l1_restore(struct near__l1 *l1, struct near__entry *entry, near_bytes key, uint64_t fence, bool alone,
                 uint8_t warmth, int64_t now)
{
    struct restoring        what = { entry, key, fence, alone, warmth };
    struct shard           *sh   = shard_of(l1, entry->hash);
    struct dead             dead;
    enum near__l1_admission verdict;

    dead.n = 0;
    if (l1->pools != NULL)
        return near__pools_restore(l1->pools, entry, key, fence, alone, warmth, now);
    if (l1->off)
        return NEAR__L1_TOO_LARGE;
    do {
        near__lock(&sh->lock);
        verdict = restore_locked(l1, sh, &what, now, &dead);
        near__unlock(&sh->lock);
        let_go(&dead);
    } while (verdict == AGAIN);
    return verdict;
}

void
near__l1_expect(const struct near__l1 *l1, uint64_t hash)
{
    const struct near__l1_front *front = &l1->front;
    const _Atomic uint8_t *filled      = atomic_load_explicit(&l1->filled, memory_order_relaxed); /* a hint */
    struct near__table    *table;

    if (l1->off || l1->pools != NULL)
        return;
    table = &front->path.tables[hash & front->path.shard_mask];
    __builtin_prefetch(
        near__table_bucket(table, near__table_home(near__table_size(table), near__element(hash))), 1);
    __builtin_prefetch(stripe_of(l1, hash), 1);
    if (filled != NULL)
        __builtin_prefetch(&filled[filled_at(hash) / 8]);
}

/* ---- upkeep */

static bool
find_expired(const struct near__l1 *l1, struct shard *sh, uint32_t home, int64_t now,
             struct near__place *place)
{
    struct near__bucket *bucket = near__table_bucket(sh->table, home);

    for (; bucket != NULL; bucket = near__table_after(sh->table, bucket)) {
        for (unsigned lane = 0; lane < NEAR__LANES; lane++)
            __builtin_prefetch(block_at(l1, near__bucket_ref(bucket, lane)));
        for (unsigned lane = 0; lane < NEAR__LANES; lane++) {
            uint32_t ref = near__bucket_ref(bucket, lane);

            *place = (struct near__place){ bucket, lane };
            if (ref != 0 && expired(l1, block_at(l1, ref), now))
                return true;
        }
    }
    return false;
}

static void
sweep_home_locked(struct near__l1 *l1, struct shard *sh, uint32_t home, int64_t now, struct dead *dead)
{
    struct near__place place;

    purge_locked(l1, sh, home, dead);
    /* an erasure moves others of the chain: from its beginning each time */
    while (dead->n < DEAD / 2 && find_expired(l1, sh, home, now, &place)) {
        unlink_locked(l1, sh, element_of((void *)(uintptr_t)l1, near__place_ref(place)), place, dead);
        sh->stats.expired++;
    }
}

/* A few buckets of the lap; false when it does not matter any more. */
static void
sweep_locked(struct near__l1 *l1, struct shard *sh, int64_t now, size_t buckets, struct dead *dead)
{
    for (; buckets > 0 && sh->timed && dead->n < DEAD / 2; buckets--) {
        if (sh->sweep_hand >= homes(sh))
            sh->sweep_hand = 0;
        sweep_home_locked(l1, sh, sh->sweep_hand++, now, dead);
        if (sh->limbo_n > LIMBO / 2)
            barrier_locked(l1, sh, dead);
    }
}

static bool
upkeep_shard(struct near__l1 *l1, struct shard *sh, int64_t now, size_t steps)
{
    struct dead dead;
    bool        more = true;
    size_t      left = 0;

    dead.n = 0;
    for (; steps > 0 && more; steps--) {
        near__lock(&sh->lock);
        left = sh->timed ? homes(sh) / SWEEP_LAPS + 1 : 0;
        purge_some_locked(l1, sh, CLEAR_NOW, &dead);
        more = shrink_locked(l1, sh, &dead) || sh->stale_left > 0;
        if (!more && near__table_wants(sh->table) < 0)
            more = near__table_join(sh->table);
        barrier_locked(l1, sh, &dead);
        near__unlock(&sh->lock);
        let_go(&dead);
    }
    for (; left > 0; left -= smaller(left, CLEAR_NOW)) {
        near__lock(&sh->lock);
        sweep_locked(l1, sh, now, smaller(left, CLEAR_NOW), &dead);
        barrier_locked(l1, sh, &dead);
        near__unlock(&sh->lock);
        let_go(&dead);
    }
    near__lock(&sh->lock);
    pay_policy_locked(l1, sh);
    if (sh->held_n > 0) { /* nobody else may be reclaiming: released since the last barrier? */
        near__hazard_barrier(near__hazard_epoch());
        harvest_held_locked(l1, sh, &dead);
    }
    near__unlock(&sh->lock);
    let_go(&dead);
    return more;
}

/* Give pages back that the heaps may no longer fill: because of what the policies hold, or a smaller bound. */
static void
trim(struct near__l1 *l1, size_t steps)
{
    size_t allowed = 0, committed;

    for (size_t i = 0; i <= l1->front.path.shard_mask; i++) {
        near__lock(&l1->shards[i].lock);
        allowed += l1->shards[i].heap.max_bytes;
        near__unlock(&l1->shards[i].lock);
    }
    near__arena_limit(l1->arena, smaller(allowed, near__arena_range(l1->arena)));
    committed = near__arena_committed(l1->arena);
    if (committed > allowed)
        near__arena_trim(l1->arena, smaller(committed - allowed, TRIM_MAX));
    else
        near__arena_tidy(l1->arena,
                         steps * near__arena_slab_bytes(l1->arena)); /* nobody needs them just now */
}

static uint64_t
used_hits(const struct near__l1 *l1)
{
    uint64_t unused = atomic_load_explicit(&l1->unused, memory_order_relaxed);
    uint64_t hits   = near__hits_sum(l1->front.path.number);

    return hits > unused ? hits - unused : 0;
}

static void
keep_curve(struct near__l1 *l1, int64_t now)
{
    struct near__curve_levels levels = { .now = now };
    struct near__l1_stats     stats;

    near__l1_stats(l1, &stats);
    levels.hits    = used_hits(l1);
    levels.entries = stats.entries;
    levels.bytes   = stats.bytes;
    for (size_t i = 0; i <= l1->front.path.shard_mask; i++) {
        struct shard *sh = &l1->shards[i];

        near__lock(&sh->lock);
        levels.max_bytes += sh->max_bytes;
        levels.max_entries += sh->max_entries == SIZE_MAX ? 0 : sh->max_entries;
        near__unlock(&sh->lock);
    }
    near__curve_upkeep(l1->curve, &levels);
}

bool
near__l1_curve(struct near__l1 *l1, struct near__curve_answer *answer)
{
    if (l1->pools != NULL)
        return near__pools_curve(l1->pools, answer);
    if (l1->curve == NULL)
        return false;
    near__curve_read(l1->curve, used_hits(l1), answer);
    return true;
}

bool
near__l1_upkeep(struct near__l1 *l1, int64_t now, size_t steps)
{
    bool    more = false;
    int64_t before;

    if (l1->pools != NULL)
        return near__pools_upkeep(l1->pools, now, steps);
    if (l1->off)
        return false;
    /* times are known around a circle only: what slept through half of it cannot be told from what is yet to come */
    before = atomic_exchange_explicit(&l1->kept, now, memory_order_relaxed);
    if (before != 0 && now - before > SLEEP_MAX)
        near__l1_flush(l1);
    for (size_t i = 0; i <= l1->front.path.shard_mask; i++)
        more |= upkeep_shard(l1, &l1->shards[i], now, steps);
    trim(l1, steps);
    if (l1->curve != NULL)
        keep_curve(l1, now);
    return more;
}

static size_t
index_bytes(struct shard *sh)
{
    size_t bytes;

    near__lock(&sh->lock);
    bytes = near__table_bytes(sh->table);
    near__unlock(&sh->lock);
    return bytes;
}

near_status
near__l1_resize(struct near__l1 *l1, size_t max_bytes, size_t max_entries)
{
    size_t shards = l1->front.path.shard_mask + 1;

    if (l1->pools != NULL)
        return near__pools_resize(l1->pools, max_bytes, max_entries);
    if (l1->off || max_bytes / shards < SHARD_LEAST || max_bytes > l1->grow_bytes ||
        max_bytes > near__arena_range(l1->arena) || (max_entries != 0 && max_entries < shards))
        return NEAR_ERR_INVALID;
    for (size_t i = 0; i < shards; i++)
        if (index_bytes(&l1->shards[i]) > max_bytes / shards / 2) /* which never shrinks */
            return NEAR_ERR_INVALID;
    near__arena_limit(l1->arena, max_bytes);
    for (size_t i = 0; i < shards; i++) {
        struct shard *sh = &l1->shards[i];

        near__lock(&sh->lock);
        sh->max_bytes = bytes_of_shard(l1, max_bytes, shards);
        pay_policy_locked(l1, sh);
        sh->max_entries     = entries_of_shard(max_entries, i, shards);
        sh->table->capacity = sh->max_entries == SIZE_MAX ? 0 : sh->max_entries;
        near__unlock(&sh->lock);
    }
    return NEAR_OK;
}

void
near__l1_stats(struct near__l1 *l1, struct near__l1_stats *stats)
{
    memset(stats, 0, sizeof(*stats));
    if (l1->pools != NULL) {
        near__pools_stats(l1->pools, stats);
        return;
    }
    stats->hits = near__hits_sum(l1->front.path.number);
    for (size_t i = 0; i <= l1->front.path.shard_mask && !l1->off; i++) {
        struct shard *sh = &l1->shards[i];

        near__lock(&sh->lock);
        stats->fills += sh->stats.fills;
        stats->fills_refused += sh->stats.fills_refused;
        stats->evictions += sh->stats.evictions;
        stats->expired += sh->stats.expired;
        stats->too_large += sh->stats.too_large;
        stats->entries += sh->table->entries;
        stats->bytes += sh->heap.bytes + sh->policy_bytes;
        near__unlock(&sh->lock);
    }
}

/* ---- as a pool, and with pools */

/* What left goes up. */
static void
hand_up(struct dead *dead, struct near__leaving *leaving)
{
    for (unsigned i = 0; i < dead->n; i++)
        leaving->what[leaving->n++] = dead->what[i];
    dead->n = 0;
}

enum near__l1_admission
near__l1_seat(struct near__l1 *l1, struct near__entry *entry, near_bytes key, int64_t now,
              struct near__leaving *leaving)
{
    struct shard           *sh = shard_of(l1, entry->hash);
    struct dead             dead;
    enum near__l1_admission verdict;

    dead.n = 0;
    near__lock(&sh->lock);
    verdict = admit_locked(l1, sh, entry, key, now, &dead);
    if (verdict != AGAIN)
        note_fill_locked(l1, entry->hash); /* as in offer_locked(); a write's, too: that does no harm */
    ahead_locked(l1, sh, &dead);
    near__unlock(&sh->lock);
    hand_up(&dead, leaving);
    if (verdict == NEAR__L1_ADMITTED && l1->front.watch != NULL)
        l1->front.watch(&sh->order, near__element(entry->hash), false);
    if (verdict == NEAR__L1_ADMITTED)
        told_of_fill(l1, entry);
    return verdict;
}

enum near__l1_admission
near__l1_reseat(struct near__l1 *l1, struct near__entry *entry, near_bytes key, uint8_t warmth, int64_t now,
                struct near__leaving *leaving)
{
    struct shard           *sh = shard_of(l1, entry->hash);
    struct dead             dead;
    enum near__l1_admission verdict;

    dead.n = 0;
    near__lock(&sh->lock);
    sh->revived = 1u + warmth;
    verdict     = admit_locked(l1, sh, entry, key, now, &dead);
    sh->revived = 0;
    ahead_locked(l1, sh, &dead);
    near__unlock(&sh->lock);
    hand_up(&dead, leaving);
    return verdict;
}

bool
near__l1_was_filled(struct near__l1 *l1, uint64_t hash)
{
    struct shard *sh = shard_of(l1, hash);
    bool          was;

    near__lock(&sh->lock);
    was = was_filled_locked(l1, hash);
    near__unlock(&sh->lock);
    return was;
}

bool
near__l1_unseat(struct near__l1 *l1, uint64_t hash, near_bytes key, struct near__leaving *leaving)
{
    struct shard *sh = shard_of(l1, hash);
    struct dead   dead;
    bool          was;

    dead.n = 0;
    near__lock(&sh->lock);
    was = drop_locked(l1, sh, hash, key, &dead);
    settle_locked(l1, sh, &dead);
    near__unlock(&sh->lock);
    hand_up(&dead, leaving);
    told_of_end(l1, hash);
    return was;
}

bool
near__l1_copies(const struct near__l1 *l1, const struct near__entry *entry)
{
    struct near__entry dated;
    unsigned           flags;
    size_t             size;

    if (l1->pools != NULL)
        return near__pools_copy(l1->pools, entry);
    return !l1->off &&
           lives_in_arena(l1, shard_of(l1, entry->hash), dated_entry(l1, entry, &dated), &flags, &size);
}

bool
near__l1_is_overtaken(struct near__l1 *l1, const struct near__entry *entry, int64_t now)
{
    struct shard *sh = shard_of(l1, entry->hash);
    bool          is;

    near__lock(&sh->lock);
    is = has_other_locked(l1, sh, entry, now);
    near__unlock(&sh->lock);
    return is;
}

void
near__l1_share_labels(struct near__l1 *l1, struct near__label_clock *labels)
{
    l1->labels_shared = true;
    atomic_init(&l1->front.labels, labels);
}

unsigned
near__l1_pools(const struct near__l1 *l1)
{
    return l1->pools != NULL ? near__pools_count(l1->pools) : 0;
}

void
near__l1_pool_stats(struct near__l1 *l1, unsigned pool, struct near__l1_stats *stats, size_t *max_bytes)
{
    near__l1_stats(near__pools_at(l1->pools, pool, max_bytes), stats);
}

bool
near__l1_pool_curve(struct near__l1 *l1, unsigned pool, struct near__curve_answer *answer)
{
    size_t max_bytes;

    return near__l1_curve(near__pools_at(l1->pools, pool, &max_bytes), answer);
}

near_status
near__l1_pool_resize(struct near__l1 *l1, unsigned pool, size_t max_bytes)
{
    return l1->pools != NULL ? near__pools_resize_one(l1->pools, pool, max_bytes) : NEAR_ERR_INVALID;
}

unsigned
near__l1_pool_of(struct near__l1 *l1, uint64_t hash, near_bytes key, int64_t now)
{
    for (unsigned pool = near__l1_pools(l1); pool > 0; pool--) {
        size_t      max_bytes;
        near_value *value = near__l1_find(near__pools_at(l1->pools, pool, &max_bytes), hash, key, now);

        if (value == NULL)
            continue;
        if ((uintptr_t)value > NEAR__VALUE_BITS)
            near__value_release(value);
        return pool;
    }
    return 0;
}

/* ---- what was handed out */

void
near__value_meta(const near_value *value, int64_t now, struct near__meta *meta)
{
    struct near__hazard      *slot = near__value_slot(value);
    const struct near__entry *entry;

    if (slot != NULL) {
        near__block_meta(near__slot_block(slot), now, meta);
        return;
    }
    entry = near__value_address(value);
    *meta = (struct near__meta){
        .born        = entry->born,
        .fresh_until = entry->fresh_until,
        .expires     = entry->expires,
        .stamp       = entry->stamp,
        .generation  = entry->generation,
        .cost_us     = entry->cost_us,
    };
}

bool
near__l1_value_outdated(const struct near__l1 *l1, const near_value *value, uint32_t until)
{
    const struct near__entry *entry = near__value_address(value);
    const struct near__block *block;
    struct near__labels       labels;

    if (near__value_slot(value) == NULL)
        return entry->labels != NULL && near__label_after(until, entry->labels->clock) &&
               outdated(l1, entry->labels);
    block = near__slot_block(near__value_slot(value));
    if (!(block->flags & NEAR__BLOCK_LABELS))
        return false;
    near__block_take_labels(block, &labels);
    return near__label_after(until, labels.clock) && outdated(l1, &labels);
}

near_bytes
near__value_names(const near_value *value)
{
    const struct near__entry *entry = near__value_address(value);
    const struct near__block *block;

    if (near__value_slot(value) == NULL)
        return entry->labels != NULL ? (near_bytes){ entry->labels->names, entry->labels->names_size }
                                     : (near_bytes){ NULL, 0 };
    block = near__slot_block(near__value_slot(value));
    return block->flags & NEAR__BLOCK_LABELS ? near__block_names(block) : (near_bytes){ NULL, 0 };
}

void
near__value_ref(near_value *value)
{
    struct near__hazard *slot = near__value_slot(value);

    if (slot != NULL)
        atomic_fetch_add_explicit(&slot->more, 1,
                                  memory_order_relaxed); /* relaxed: the caller holds the value already */
    else
        near__entry_ref(near__value_address(value));
}

void
near__value_release_counted(near_value *value)
{
    struct near__entry *entry = near__value_address(value);

    near__entry_release(&entry);
}

bool
near__value_shared_release(struct near__hazard *slot)
{
    /* acquire and release: pair with those of the other holders */
    if (atomic_fetch_sub_explicit(&slot->more, 1, memory_order_acq_rel) != 0)
        return true;
    atomic_store_explicit(&slot->more, 0, memory_order_relaxed); /* ordered by the release of the slot */
    return false;
}

struct near__entry *
near__value_counted(const near_value *value, near_bytes key, uint64_t hash, int64_t now)
{
    near_bytes          data = near__value_data(value);
    struct near__entry *entry;
    struct near__meta   meta;
    void               *copy;

    if (near__value_slot(value) == NULL) {
        entry = near__value_address(value);
        near__entry_ref(entry);
        return entry;
    }
    entry = near__entry_new(key, hash, data.size, &copy);
    if (entry == NULL)
        return NULL;
    near__value_meta(value, now, &meta);
    if (data.size > 0)
        memcpy(copy, data.data, data.size);
    entry->born        = meta.born;
    entry->fresh_until = meta.fresh_until;
    entry->expires     = meta.expires;
    entry->stamp       = meta.stamp;
    entry->generation  = meta.generation;
    entry->cost_us     = meta.cost_us;
    entry->object      = near__object_ref(near__value_object(value));
    return entry;
}
