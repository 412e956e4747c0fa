/*
 * A block: what L1 keeps of one entry, in one piece of the arena.
 *
 *   flags | key size | value size | the numbers that the flags name, 3, 4 or 12 bytes each | key | gap | value | gap | labels
 *     1        1           2
 *
 * An entry that carries nothing pays 4 bytes.  The value begins at a multiple of 4, or of 64 when it has 1 KiB or more (such
 * blocks lie at a multiple of 64).  `value size` is a code above 64511: smaller values that the L1's owner wants aligned to 64 as well
 * (such an L1's blocks of 64 bytes and more all lie at a multiple of 64), and decoded ones, of which the block holds two pointers, the
 * application's object and the counted one around it (l1/object.h): so a hit reads the first without a step more.
 *
 * Times are milliseconds of the clock's low 32 bits: right for anything that is less than 20 days away, so nothing expires later than
 * that here.  An entry that expires keeps for its birth how long it lives: 24 bits, in milliseconds below 2 h 19 min, else in units of
 * 256 ms, so it seems older than it is by less than that.  The birth of one that does not is kept in units of 16 ms (two years).  What
 * does not fit (long keys, large and adopted values) is EXTERNAL: the block is a pointer to a counted entry.
 *
 * Written once before its reference is published, never changed until it was reclaimed: read without a lock by whoever holds it.
 */
#ifndef NEAR_L1_BLOCK_H
#define NEAR_L1_BLOCK_H

#include "l1/entry.h"

#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum {
    NEAR__BLOCK_EXPIRES  = 1,  /* u32 */
    NEAR__BLOCK_BORN     = 2,  /* u32; u24 of an entry that expires: how long it lives */
    NEAR__BLOCK_FRESH    = 4,  /* u32: stale from then on */
    NEAR__BLOCK_COST     = 8,  /* u32: microseconds of the load */
    NEAR__BLOCK_STAMP    = 16, /* u64 stamp, u32 low half of the generation */
    NEAR__BLOCK_NEGATIVE = 32,
    NEAR__BLOCK_EXTERNAL = 64,
    NEAR__BLOCK_LABELS =
        128 /* behind the value, at a multiple of 4: u32 clock, u16 how many, their stripes */
};

#define NEAR__BLOCK_HEAD       4
#define NEAR__BLOCK_KEY_MAX    255
#define NEAR__BLOCK_ALIGN_FROM 1024 /* values of this size and more lie at a multiple of 64 */
#define NEAR__BLOCK_OBJECT     (65536 - NEAR__BLOCK_ALIGN_FROM) /* code of a decoded value */
#define NEAR__BLOCK_ALIGNED                                                                                  \
    NEAR__BLOCK_OBJECT /* and this + size, of a smaller one that lies at a multiple of 64 */
#define NEAR__BLOCK_VALUE_MAX (NEAR__BLOCK_OBJECT - 1)
#define NEAR__BLOCK_POINTERS  (2 * sizeof(void *)) /* of a decoded one */
/* How much older an entry may seem than it is. */
#define NEAR__BLOCK_BORN_SLACK (256 * NEAR_MS)
#define NEAR__BLOCK_TTL_MAX    (INT64_C(20) * 24 * 3600 * 1000 * NEAR_MS)

struct near__block {
    uint8_t       flags;
    uint8_t       key_size;
    uint16_t      value_size; /* or a code */
    unsigned char rest[];
};

static inline uint32_t
near__block_time(int64_t time)
{
    return (uint32_t)(uint64_t)(time / NEAR_MS);
}

/* Bytes of the numbers that these flags name: four for each of the low four, seven for the first two together, twelve for the fifth.  As
 * many as there are flags, so that none need be masked. */
#define NEAR__BLOCK_32                                                                                       \
    0, 4, 4, 7, 4, 8, 8, 11, 4, 8, 8, 11, 8, 12, 12, 15, 12, 16, 16, 19, 16, 20, 20, 23, 16, 20, 20, 23, 20, \
        24, 24, 27
static inline size_t
near__block_numbers(uint8_t flags)
{
    static const uint8_t bytes[256] = { NEAR__BLOCK_32, NEAR__BLOCK_32, NEAR__BLOCK_32, NEAR__BLOCK_32,
                                        NEAR__BLOCK_32, NEAR__BLOCK_32, NEAR__BLOCK_32, NEAR__BLOCK_32 };

    return bytes[flags];
}

static inline const unsigned char *
near__block_key(const struct near__block *block)
{
    return block->rest + near__block_numbers(block->flags);
}

static inline struct near__entry *
near__block_external(const struct near__block *block)
{
    struct near__entry *entry;

    memcpy(&entry, block->rest + 4, sizeof(entry));
    return entry;
}

/* Where the value begins, from the block's start; `code`: its size, or what stands for it. */
static inline size_t
near__block_value_at(unsigned flags, size_t key_size, unsigned code)
{
    size_t at    = NEAR__BLOCK_HEAD + near__block_numbers(flags) + key_size;
    size_t align = code >= NEAR__BLOCK_ALIGN_FROM && code != NEAR__BLOCK_OBJECT ? 64 : 4;

    return (at + align - 1) & ~(align - 1);
}

static inline bool
near__block_has_object(const struct near__block *block)
{
    return block->value_size == NEAR__BLOCK_OBJECT;
}

/* Of a block that has one. */
static inline struct near__object *
near__block_object(const struct near__block *block)
{
    struct near__object *object;
    size_t               at = near__block_value_at(block->flags, block->key_size, NEAR__BLOCK_OBJECT);

    memcpy(&object, (const char *)block + at + sizeof(void *), sizeof(object));
    return object;
}

/* Before anybody has seen the block. */
static inline void
near__block_name(struct near__block *block, struct near__object *object)
{
    size_t at = near__block_value_at(block->flags, block->key_size, NEAR__BLOCK_OBJECT);

    memcpy((char *)block + at + sizeof(void *), &object, sizeof(object));
}

/* What the codec made; NULL: the block holds bytes. */
static inline void *
near__block_decoded(const struct near__block *block)
{
    size_t at = NEAR__BLOCK_HEAD + near__block_numbers(block->flags) + block->key_size;
    void  *decoded;

    if (!near__block_has_object(block))
        return NULL;
    memcpy(&decoded, (const char *)block + ((at + 3) & ~(size_t)3), sizeof(decoded));
    return decoded;
}

/* Of one whose value is large, aligned, or decoded. */
static inline near_bytes
near__block_value_wide(const struct near__block *block)
{
    size_t at   = near__block_value_at(block->flags, block->key_size, block->value_size);
    size_t size = block->value_size;

    if (near__block_has_object(block))
        return near__object_bytes(near__block_object(block));
    return (near_bytes){ (const char *)block + at,
                         size > NEAR__BLOCK_ALIGNED ? size - NEAR__BLOCK_ALIGNED : size };
}

/* The value's bytes; of a decoded one those that were kept. */
static inline near_bytes
near__block_value(const struct near__block *block)
{
    size_t at = NEAR__BLOCK_HEAD + near__block_numbers(block->flags) + block->key_size;

    if (__builtin_expect(block->value_size >= NEAR__BLOCK_ALIGN_FROM, 0))
        return near__block_value_wide(block);
    return (near_bytes){ (const char *)block + ((at + 3) & ~(size_t)3), block->value_size };
}

/* The labels of a block that has some: behind the value. */
static inline const unsigned char *
near__block_labels(const struct near__block *block)
{
    size_t at   = near__block_value_at(block->flags, block->key_size, block->value_size);
    size_t size = block->value_size;

    if (size == NEAR__BLOCK_OBJECT)
        size = NEAR__BLOCK_POINTERS;
    else if (size > NEAR__BLOCK_ALIGNED)
        size -= NEAR__BLOCK_ALIGNED;

    return (const unsigned char *)block + ((at + size + 3) & ~(size_t)3);
}

/* Clock and stripes of such a block. */
void near__block_take_labels(const struct near__block *block, struct near__labels *labels);
/* Its tags' names, as in near__labels. */
near_bytes near__block_names(const struct near__block *block);
/* Whether a tag of the block was invalidated since it was asked for. */
bool near__block_outdated(const struct near__block *block, const struct near__label_clock *clock);

/* In words, the last one overlapping: keys are short, and a call costs as much as comparing 64 bytes. */
static inline bool
near__block_same_short(const unsigned char *a, const unsigned char *b, size_t size)
{
    uint64_t x, y, v, w;

    if (size >= sizeof(x)) {
        memcpy(&x, a, sizeof(x));
        memcpy(&y, b, sizeof(y));
        memcpy(&v, a + size - sizeof(v), sizeof(v));
        memcpy(&w, b + size - sizeof(w), sizeof(w));
        return ((x ^ y) | (v ^ w)) == 0;
    }
    for (size_t at = 0; at < size; at++)
        if (a[at] != b[at])
            return false;
    return true;
}

static inline int
near__block_same16(const unsigned char *a, const unsigned char *b)
{
#if defined(__SSE2__)
    return _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)a),
                                            _mm_loadu_si128((const __m128i *)(const void *)b))) == 0xffff;
#else
    return near__block_same_short(a, b, 16);
#endif
}

/* The first 16 bytes and the last, in one comparison. */
static inline bool
near__block_same_ends(const unsigned char *a, const unsigned char *b, size_t size)
{
#if defined(__SSE2__)
    __m128i first = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)a),
                                   _mm_loadu_si128((const __m128i *)(const void *)b));
    __m128i last  = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)(a + size - 16)),
                                   _mm_loadu_si128((const __m128i *)(const void *)(b + size - 16)));

    return _mm_movemask_epi8(_mm_and_si128(first, last)) == 0xffff;
#else
    return near__block_same16(a, b) && near__block_same16(a + size - 16, b + size - 16);
#endif
}

static inline bool
near__block_same(const unsigned char *a, const unsigned char *b, size_t size)
{
    if (size < 16)
        return near__block_same_short(a, b, size);
    for (size_t at = 16; __builtin_expect(at < size - 16, 0); at += 16)
        if (!near__block_same16(a + at, b + at))
            return false;
    return near__block_same_ends(a, b, size);
}

static inline bool
near__block_is(const struct near__block *block, near_bytes key)
{
    if (__builtin_expect(block->flags & NEAR__BLOCK_EXTERNAL, 0))
        return near__bytes_equal(near__entry_key(near__block_external(block)), key);
    return block->key_size == key.size && near__block_same(near__block_key(block), key.data, key.size);
}

/* The same of a block in the arena; false of an external one. */
static inline bool
near__block_is_plain(const struct near__block *block, near_bytes key)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint16_t head;

    memcpy(&head, block, sizeof(head)); /* flags and key size at once */
    if ((head & (0xff00u | NEAR__BLOCK_EXTERNAL)) != key.size << 8)
        return false;
#else
    if ((block->flags & NEAR__BLOCK_EXTERNAL) || block->key_size != key.size)
        return false;
#endif
    return near__block_same(near__block_key(block), key.data, key.size);
}

/* Any number of four bytes: not the life of an entry that expires. */
static inline uint32_t
near__block_u32(const struct near__block *block, unsigned number)
{
    uint32_t value;

    /* the numbers lie in the order of their flags */
    memcpy(&value, block->rest + near__block_numbers(block->flags & (number - 1)), sizeof(value));
    return value;
}

/* Has this moment (a number of the block's) come?  Times are compared around the circle. */
static inline bool
near__block_passed(uint32_t moment, uint32_t now)
{
    return (int32_t)(moment - now) <= 0;
}

static inline bool
near__block_past(uint32_t moment, int64_t now)
{
    return near__block_passed(moment, near__block_time(now));
}

/* The code of an entry's value: decoded, or its size, and whether it is large enough to be aligned. */
static inline unsigned
near__block_code(const struct near__entry *entry, size_t align_from)
{
    if (entry->object != NULL)
        return NEAR__BLOCK_OBJECT;
    if (entry->value_size >= align_from && entry->value_size < NEAR__BLOCK_ALIGN_FROM &&
        entry->value_size > 0)
        return NEAR__BLOCK_ALIGNED + (unsigned)entry->value_size;
    return (unsigned)entry->value_size;
}

/* The flags of an entry's block.  `plain`: the owner wants no birth times of entries that do not expire. */
static inline unsigned
near__block_flags(const struct near__entry *entry, bool plain)
{
    unsigned flags = 0;

    if (entry->expires != NEAR_NEVER)
        flags |= NEAR__BLOCK_EXPIRES;
    if (entry->fresh_until < entry->expires)
        flags |= NEAR__BLOCK_FRESH | NEAR__BLOCK_BORN;
    if (entry->expires != NEAR_NEVER || !plain)
        flags |= NEAR__BLOCK_BORN;
    if (entry->cost_us != 0)
        flags |= NEAR__BLOCK_COST;
    if (entry->stamp != 0)
        flags |= NEAR__BLOCK_STAMP;
    if (entry->negative)
        flags |= NEAR__BLOCK_NEGATIVE;
    if (entry->labels != NULL)
        flags |= NEAR__BLOCK_LABELS;
    return flags;
}

/* Whether an entry must be external whatever its size class. */
static inline bool
near__block_wide(const struct near__entry *entry)
{
    if (entry->key_size > NEAR__BLOCK_KEY_MAX)
        return true;
    return entry->object == NULL && (entry->adopted || entry->value_size > NEAR__BLOCK_VALUE_MAX);
}

/* What a block takes beside key, value and labels, at most: the head, all numbers, the value's alignment. */
#define NEAR__BLOCK_MORE 128

/* Where a block ends that ends here without its labels. */
size_t near__block_labelled(size_t end, const struct near__labels *labels);

static inline size_t
near__block_size(const struct near__entry *entry, unsigned flags, unsigned code)
{
    size_t size = code == NEAR__BLOCK_OBJECT ? NEAR__BLOCK_POINTERS : entry->value_size;
    size_t end  = near__block_value_at(flags, entry->key_size, code) + size;

    return flags & NEAR__BLOCK_LABELS ? near__block_labelled(end, entry->labels) : end;
}

/* `key` is the entry's, which need not lie in it.  The reference to its object is the caller's to take. */
void near__block_write(struct near__block *block, const struct near__entry *entry, near_bytes key,
                       unsigned flags, unsigned code);
void near__block_write_external(struct near__block *block, struct near__entry *entry);
/* The same, that it is over at `expires`, whatever the entry says; `now`: of the writing. */
void near__block_end_external(struct near__block *block, int64_t expires, int64_t now);
#define NEAR__BLOCK_EXTERNAL_SIZE 16

/* What there is to know of an entry, times on the clock's scale. */
struct near__meta {
    int64_t  born; /* -1: not kept */
    int64_t  fresh_until, expires;
    uint64_t stamp, generation;
    uint32_t cost_us;
};
void near__block_meta(const struct near__block *block, int64_t now, struct near__meta *meta);

#endif
