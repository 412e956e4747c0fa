/*
 * The index of one shard: a hash table of 64-byte buckets that readers search without a lock.
 *
 * A bucket is one cache line: eight slots of {16-bit tag, 32-bit reference, 8-bit mark}, a version, a generation and a link to an
 * overflow bucket.  The table grows and shrinks by linear hashing, one bucket at a time (Litwin, "Linear hashing: a new tool for
 * file and table addressing", VLDB 1980), so that no operation touches more than one chain.  Buckets live in chunks that are never
 * moved and never returned while the table lives: a late reader may look into any bucket at any time and finds, at worst, nothing.
 *
 * Who may do what.  Readers: any thread, no lock, by the inline functions below.  Everything else: the shard's lock.
 *
 * The element of a key is the upper half of its keyed hash.  It is all that the table and the policies know of a key: low bits
 * select the bucket, the upper 16 are the tag.  Two keys may share an element; whoever must not mix them up compares the keys.
 *
 * What can never happen: a slot whose reference is published before its tag and mark; a slot that moves while its bucket's version
 * stands still; a reference that is in no slot of its home chain once the shard's lock was dropped.
 */
#ifndef NEAR_L1_TABLE_H
#define NEAR_L1_TABLE_H

#include "base/base.h"

#include <stdatomic.h>
#include <stddef.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define NEAR__LANES 8

/*
 * How full: a split is due above 7.3 entries per home bucket, a join below 5.  A chain overflows into buckets of the same kind, so
 * memory is spent on 64 (1 + P(more than 8 in a home)) / 7.3 bytes an entry: 11.5 between doublings and 11.9 in the middle of one,
 * where some homes hold twice as many as others.  Fuller homes save nothing (at 8 it is 11.3) and cost readers a second line more
 * often: one entry in twelve lies in an overflow bucket.  The gap to the join keeps a table of steady size from doing either.
 */
#define NEAR__FILL_SPLIT_NUM 73
#define NEAR__FILL_SPLIT_DEN 10
#define NEAR__FILL_JOIN      5

struct near__bucket {
    union {
        _Atomic uint64_t words[2]; /* as readers take them */
        _Atomic uint16_t lanes[NEAR__LANES];
    } tags;
    _Atomic uint32_t refs[NEAR__LANES]; /* 0: the slot is free */
    union {
        _Atomic uint8_t  marks[NEAR__LANES];
        _Atomic uint64_t mark_word; /* all of them, for a policy that scans */
    };
    _Atomic uint16_t
        version; /* of a home: moves whenever an entry of its chain moved: a miss must look again */
    _Atomic uint16_t generation; /* not the table's: everything in this home bucket's chain is gone */
    _Atomic uint32_t next;       /* overflow bucket, as its number + 1; 0: none */
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct near__bucket) == 64, "a bucket is a cache line");

/* Chunks whose directory lies in the table itself, where a reader looks anyway: three of the homes' in its first line. */
#define NEAR__NEAR_HOMES 11
#define NEAR__NEAR_OVERS 8

struct near__table {
    /* The line that every reader loads.  A cache has dozens of tables: what lies elsewhere is one line more of each, and a page, in
     * what the processor can keep at hand. */
    _Atomic uint64_t size; /* home buckets, and above them the mask: the next power of two - 1 */
    /* directories of home and of overflow buckets: the near ones, while they are enough, then larger ones.  A directory's entry is set
     * once, and published by the size beyond it, or by a link to the bucket; one that was outgrown stays for late readers. */
    _Atomic(struct near__bucket **) homes, overs;
    _Atomic uint16_t generation; /* moved by a clear; a home bucket of another one counts as empty */
    _Atomic uint8_t  tick; /* the time part of a mark, set by near__table_marks() (see near__mark_hit) */
    _Atomic uint8_t  count_mask;  /* the counting part of a mark (see near__mark_hit) */
    _Atomic uint8_t  used;        /* what a mark is after enough uses in this tick ... */
    _Atomic uint8_t  used_mask;   /* ... in these bits: all but those that only the policy writes */
    uint8_t          chunk_shift; /* log2 of the buckets in a chunk */
    bool             exact;       /* hits are reported to the policy under the lock (the simulator) */
    uint32_t         chunk_mask;  /* buckets in a chunk - 1 */
    uint16_t
        color; /* where in a chunk the first one lies: many small tables would else meet in the same few sets of
                                     the processor's cache */
    struct near__bucket *near_homes[NEAR__NEAR_HOMES]; /* these two: never changed once set */
    struct near__bucket *near_overs[NEAR__NEAR_OVERS];
    /* the rest, on lines of its own: shard's lock */
    size_t   max_chunks __attribute__((aligned(64))); /* of either kind: they share nothing but the source */
    uint32_t home_chunks, over_chunks;                /* in use */
    uint32_t homes_room, overs_room;                  /* of their directories ... */
    struct near__directory *homes_wide, *overs_wide;  /* ... which these are; NULL: the near ones */
    uint32_t                over_free; /* chain of free overflow buckets through `next`, number + 1 */
    size_t                  entries;   /* slots in use, of the current generation */
    uint32_t                over_used; /* overflow buckets in chains */
    size_t full;     /* entries when a victim was last asked for; 0: never (set by whoever asks) */
    size_t capacity; /* entries the owner will keep at most; 0: bounded by bytes only */
    /* a chunk of zeroed memory (1 << chunk_shift buckets), or NULL; and its return at the end */
    void *(*chunk_new)(void *ctx);
    void (*chunk_free)(void *ctx, void *chunk);
    void *chunk_ctx;
    /* the element of an entry again, from its reference; may be slow (it hashes the key) */
    uint32_t (*element_of)(void *ctx, uint32_t ref);
    void     *element_ctx;
    uint32_t *stamps; /* exact only: 32-bit time of each slot's last use, by near__table_stamp() */
};
_Static_assert(sizeof(void *) != 8 || offsetof(struct near__table, near_homes) == 40, "the first line");
_Static_assert(sizeof(struct near__table) / 64 % 2 == 1,
               "tables would meet in the same few sets of the processor's cache");

/* Where an entry is. */
struct near__place {
    struct near__bucket *bucket;
    unsigned             lane;
};

static inline uint32_t
near__element(uint64_t hash)
{
    return (uint32_t)(hash >> 32);
}

static inline uint16_t
near__tag(uint32_t element)
{
    return (uint16_t)(element >> 16);
}

/* ---- what readers need */

static inline struct near__bucket *
near__table_bucket(const struct near__table *table, uint32_t number)
{
    /* Acquire: pairs with the release in directory_grow().  Whoever knows of that number knows of a directory that has it. */
    struct near__bucket *const *homes = atomic_load_explicit(&table->homes, memory_order_acquire);

    return homes[number >> table->chunk_shift] + ((number + table->color) & table->chunk_mask);
}

static inline struct near__bucket *
near__table_overflow(const struct near__table *table, uint32_t next)
{
    /* acquire: as in near__table_bucket() */
    struct near__bucket *const *overs = atomic_load_explicit(&table->overs, memory_order_acquire);

    return overs[(next - 1) >> table->chunk_shift] + ((next - 1) & table->chunk_mask);
}

static inline uint32_t
near__table_home(uint64_t size, uint32_t element)
{
    uint32_t mask   = (uint32_t)(size >> 32);
    uint32_t number = element & mask;

    return number < (uint32_t)size ? number : number & (mask >> 1);
}

/* The slots whose tag is `tag`: two bits a slot, see NEAR__LANE. */
static inline uint32_t
near__bucket_match(const struct near__bucket *bucket, uint16_t tag)
{
    /* acquire: pairs with the release in near__table_insert(); who sees a slot's next tag sees the version that moved before */
#if defined(__SSE2__) && !NEAR__TSAN
    __m128i tags;

    /* All lanes in one load, which the language cannot say of atomics: each lane is whole, as the processor's aligned loads are, and
     * lanes need not be of one moment. */
    __asm__ volatile("movdqa %1, %0" : "=x"(tags) : "m"(bucket->tags) : "memory");
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi16(tags, _mm_set1_epi16((short)tag)));
#else
    uint64_t low   = atomic_load_explicit(&bucket->tags.words[0], memory_order_acquire);
    uint64_t high  = atomic_load_explicit(&bucket->tags.words[1], memory_order_acquire);
    uint32_t found = 0;
    for (unsigned lane = 0; lane < NEAR__LANES; lane++)
        if ((uint16_t)((lane < 4 ? low : high) >> (16 * (lane & 3))) == tag)
            found |= 3u << (2 * lane);
    return found;
#endif
}
#define NEAR__LANE(match)      ((unsigned)__builtin_ctz(match) >> 1)
#define NEAR__LANE_NEXT(match) ((match) & ~(3u << __builtin_ctz(match)))

/* The occupied lanes of a bucket, a bit each. */
static inline unsigned
near__bucket_occupied(const struct near__bucket *bucket)
{
#if defined(__SSE2__) && !NEAR__TSAN
    const __m128i none = _mm_setzero_si128();
    __m128i       first, last;

    /* as in near__bucket_match(): each reference is whole */
    __asm__ volatile("movdqa %1, %0" : "=x"(first) : "m"(*(const __m128i *)(const void *)&bucket->refs[0]));
    __asm__ volatile("movdqa %1, %0" : "=x"(last) : "m"(*(const __m128i *)(const void *)&bucket->refs[4]));
    first = _mm_packs_epi32(_mm_cmpeq_epi32(first, none), _mm_cmpeq_epi32(last, none));
    return ~(unsigned)_mm_movemask_epi8(_mm_packs_epi16(first, none)) & 0xff;
#else
    unsigned lanes = 0;

    for (unsigned lane = 0; lane < NEAR__LANES; lane++)
        lanes |= (unsigned)(atomic_load_explicit(&bucket->refs[lane], memory_order_relaxed) != 0) << lane;
    return lanes;
#endif
}

/*
 * How a reader searches (relaxed and acquire loads only; all of it pairs with releases in table.c):
 *
 *     size = near__table_size(table); home = near__table_bucket(table, near__table_home(size, element));
 *     version = near__bucket_version(home);
 *     if (near__bucket_stale(table, home)) the key is absent, else for each bucket of the chain (near__table_after),
 *     for each lane of near__bucket_match: the reference by near__bucket_ref, 0: gone; compare the key.
 *     Found nothing: if (!near__table_settled(table, size, home, version)) search again.
 *
 * A key that is present all the time is then found: see the head of table.c.
 */
static inline uint64_t
near__table_size(const struct near__table *table)
{
    return atomic_load_explicit(&table->size, memory_order_acquire);
}

static inline uint16_t
near__bucket_version(const struct near__bucket *home)
{
    return atomic_load_explicit(&home->version, memory_order_acquire);
}

static inline bool
near__bucket_stale(const struct near__table *table, const struct near__bucket *home)
{
    return atomic_load_explicit(&home->generation, memory_order_acquire) !=
           atomic_load_explicit(&table->generation, memory_order_acquire);
}

static inline uint32_t
near__bucket_ref(const struct near__bucket *bucket, unsigned lane)
{
    return atomic_load_explicit(&bucket->refs[lane], memory_order_acquire);
}

static inline struct near__bucket *
near__table_after(const struct near__table *table, const struct near__bucket *bucket)
{
    uint32_t next = atomic_load_explicit(&bucket->next, memory_order_acquire);

    return next == 0 ? NULL : near__table_overflow(table, next);
}

/* Size first: a join between our two loads of it that restores the old size has moved the version before. */
static inline bool
near__table_settled(const struct near__table *table, uint64_t size, const struct near__bucket *home,
                    uint16_t version)
{
    return near__table_size(table) == size && near__bucket_version(home) == version;
}

/*
 * A mark after one more use.  `count_mask` has two parts: its low nibble is the counter's maximum (0, 1, 3, 7 or 15: those bits
 * count up to it), its high nibble are bits that the policy wrote and that uses leave alone.  All other bits are the tick of the
 * last use.  A policy that knows no time leaves the tick at 0, one that does not count has the mask 0.
 */
static inline uint8_t
near__mark_hit(uint8_t mark, uint8_t tick, uint8_t count_mask)
{
    uint8_t kept = mark & count_mask;

    return (uint8_t)(tick | (kept + ((kept & 15) < (count_mask & 15))));
}

/* ---- under the lock */

/* The time and the counting part of marks from now on.  Relaxed: a reader that mixes old and new leaves a mark that is as good as
 * one use more or less. */
static inline void
near__table_marks(struct near__table *table, uint8_t tick, uint8_t count_mask)
{
    atomic_store_explicit(&table->tick, tick, memory_order_relaxed);
    atomic_store_explicit(&table->count_mask, count_mask, memory_order_relaxed);
    atomic_store_explicit(&table->used_mask, (uint8_t) ~(count_mask & 0xf0), memory_order_relaxed);
    atomic_store_explicit(&table->used, tick | (count_mask & 15), memory_order_relaxed);
}

/* `buckets` homes to begin with.  The caller has set max_chunks, chunk_shift, color, chunk_new and its like, element_*, exact and capacity, all else is 0.
 * NEAR_ERR_NOMEM, after which nothing is left to free. */
near_status near__table_init(struct near__table *table, uint32_t buckets);
void        near__table_fini(struct near__table *table);

/* Exact tables have a fixed number of buckets (make them for their capacity, in one chunk) and never grow. */

static inline uint32_t
near__table_homes(const struct near__table *table)
{
    return (uint32_t)atomic_load_explicit(&table->size, memory_order_relaxed);
}

/* The home buckets from `home` on, of those below `end`, that lie side by side: the first one, and how many they are. */
static inline struct near__bucket *
near__table_run(const struct near__table *table, uint32_t home, uint32_t end, uint32_t *n)
{
    uint32_t mask = table->chunk_mask, to_chunk = mask - (home & mask),
             to_turn = mask - ((home + table->color) & mask);

    *n = end - home;
    if (*n > to_chunk)
        *n = to_chunk + 1;
    if (*n > to_turn)
        *n = to_turn + 1;
    return near__table_bucket(table, home);
}

/* The first entry that this element may stand for.  Home buckets of an old generation count as empty. */
bool near__table_locate(const struct near__table *table, uint32_t element, struct near__place *place);

/* A free slot in the element's chain, filled: tag and mark first, then the reference with release.  False: no memory for an
 * overflow bucket.  The home bucket must be of the current generation (the caller has purged it). */
bool near__table_insert(struct near__table *table, uint32_t element, uint32_t ref, uint8_t mark,
                        struct near__place *place);
/* Empties the slot and fills it again from the chain's last bucket, so that only the last one has free slots; gives that one back
 * when it is empty.  Other places in this chain are void.  Returns the reference. */
uint32_t near__table_erase(struct near__table *table, uint32_t element, struct near__place place);

/* What of an element can be told from its slot: the upper 16 bits and those that chose the home.  Enough to find it again while the
 * table keeps its size; between the two there may be bits that are lost (0). */
static inline uint32_t
near__table_partial(uint32_t home, uint16_t tag)
{
    return (uint32_t)tag << 16 | home;
}

static inline uint8_t
near__place_mark(struct near__place place)
{
    return atomic_load_explicit(&place.bucket->marks[place.lane], memory_order_relaxed);
}

/* Relaxed: a reader's use that meets this store may be lost; marks carry no other data. */
static inline void
near__place_mark_set(struct near__place place, uint8_t mark)
{
    atomic_store_explicit(&place.bucket->marks[place.lane], mark, memory_order_relaxed);
}

static inline uint32_t
near__place_ref(struct near__place place)
{
    return atomic_load_explicit(&place.bucket->refs[place.lane], memory_order_relaxed);
}

/* One bucket more or less, and the entries concerned moved.  False: nothing was done (no memory, the directory is full, only one
 * bucket left, a chain beyond all measure, or, for a join, one of the two homes is of an old generation). */
bool near__table_split(struct near__table *table);
bool near__table_join(struct near__table *table);
/* Whether a split or a join is due by the number of entries. */
static inline int
near__table_wants(const struct near__table *table) /* +1 split, -1 join, 0 neither */
{
    uint64_t homes = near__table_homes(table);

    if (table->exact)
        return 0;
    if ((uint64_t)table->entries * NEAR__FILL_SPLIT_DEN > homes * NEAR__FILL_SPLIT_NUM)
        return 1;
    if (homes == 1 || table->entries >= homes * NEAR__FILL_JOIN)
        return 0;
    /* in the smallest tables one home less may be too few */
    return (uint64_t)table->entries * NEAR__FILL_SPLIT_DEN > (homes - 1) * NEAR__FILL_SPLIT_NUM ? 0 : -1;
}

/* Everything is gone at once.  The owner purges a home before it inserts there, and purges every home at least once in 65535
 * clears (a few with each), or what it forgot would come back. */
void near__table_clear(struct near__table *table);
/* Empties the chain of a home of an old generation and makes it current; `drop` gets each reference.  False: it was current. */
bool near__table_purge(struct near__table *table, uint32_t home, void (*drop)(void *ctx, uint32_t ref),
                       void *ctx);

/* How many entries it holds when it is full: what policies measure their queues by.  A bound that memory does not let it reach says
 * nothing. */
static inline size_t
near__table_fill(const struct near__table *table)
{
    if (table->full != 0)
        return table->full > table->entries ? table->full
                                            : table->entries; /* it may have been given more room */
    return table->capacity > table->entries ? table->capacity : table->entries;
}

/* Exact tables: the time of a slot's last use. */
uint32_t *near__table_stamp(const struct near__table *table, struct near__place place);

/* Bytes of the chunks and directories. */
size_t near__table_bytes(const struct near__table *table);

#endif
