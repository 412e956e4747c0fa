#include "l1/block.h"

#include "base/clock.h"

enum {
    SLOW_SHIFT  = 4,       /* births of what does not expire: units of 16 ms */
    LIFE_BYTES  = 3,       /* of what does: how long it lives, */
    LIFE_LONG   = 1 << 23, /* in milliseconds, or with this bit */
    LIFE_SHIFT  = 8,       /* in units of 256 ms */
    LABELS_HEAD = 6        /* clock and how many; stripes and names follow */
};

#define DAY (INT64_C(24) * 3600 * 1000 * NEAR_MS)
#define STALE_BACK                                                                                           \
    (1 *                                                                                                     \
     DAY) /* how long before its birth here an entry may have become stale; longer ago counts as that long */
#define FORCED_BACK (2 * DAY)

size_t
near__block_labelled(size_t end, const struct near__labels *labels)
{
    return ((end + 3) & ~(size_t)3) + LABELS_HEAD + labels->n * sizeof(labels->stripes[0]) +
           labels->names_size;
}

static unsigned char *
put_u32(unsigned char *at, uint32_t value)
{
    memcpy(at, &value, sizeof(value));
    return at + sizeof(value);
}

/* Rounded up, never down: what is older than it was would seem fresher than it is. */
static unsigned char *
put_life(unsigned char *at, int64_t life)
{
    uint64_t ms = life > 0 ? (uint64_t)life : 0; /* who came when it was over has lived 0 */

    if (ms >= LIFE_LONG)
        ms = LIFE_LONG | ((ms + (1 << LIFE_SHIFT) - 1) >> LIFE_SHIFT);
    for (int i = 0; i < LIFE_BYTES; i++)
        at[i] = (unsigned char)(ms >> (8 * i));
    return at + LIFE_BYTES;
}

static int64_t
take_life(const unsigned char *at)
{
    int64_t ms = at[0] | at[1] << 8 | at[2] << 16;

    return (ms & LIFE_LONG ? (ms ^ LIFE_LONG) << LIFE_SHIFT : ms) * NEAR_MS;
}

static void
put_labels(unsigned char *at, const struct near__labels *labels)
{
    memcpy(at, &labels->clock, sizeof(labels->clock));
    memcpy(at + sizeof(labels->clock), &labels->n, sizeof(labels->n));
    memcpy(at + LABELS_HEAD, labels->stripes, labels->n * sizeof(labels->stripes[0]));
    memcpy(at + LABELS_HEAD + labels->n * sizeof(labels->stripes[0]), labels->names, labels->names_size);
}

/* What must be refreshed whatever its age (INT64_MIN) lies farther back than anything else can. */
static uint32_t
fresh_number(const struct near__entry *entry, int64_t expires)
{
    int64_t fresh_until = entry->fresh_until < expires ? entry->fresh_until : expires;

    if (fresh_until > entry->born + NEAR__BLOCK_TTL_MAX)
        fresh_until = entry->born + NEAR__BLOCK_TTL_MAX;
    if (fresh_until == INT64_MIN)
        return near__block_time(entry->born - FORCED_BACK);
    return near__block_time(fresh_until < entry->born - STALE_BACK ? entry->born - STALE_BACK : fresh_until);
}

void
near__block_write(struct near__block *block, const struct near__entry *entry, near_bytes key, unsigned flags,
                  unsigned code)
{
    char          *value   = (char *)block + near__block_value_at(flags, entry->key_size, code);
    unsigned char *at      = block->rest;
    int64_t        expires = entry->expires;

    if (expires != NEAR_NEVER && expires - entry->born > NEAR__BLOCK_TTL_MAX)
        expires = entry->born + NEAR__BLOCK_TTL_MAX;
    block->flags      = (uint8_t)flags;
    block->key_size   = (uint8_t)entry->key_size;
    block->value_size = (uint16_t)code;
    if (flags & NEAR__BLOCK_EXPIRES)
        at = put_u32(at, near__block_time(expires));
    if (flags & NEAR__BLOCK_BORN)
        at = flags & NEAR__BLOCK_EXPIRES
                 ? put_life(at, expires / NEAR_MS - entry->born / NEAR_MS)
                 : put_u32(at, (uint32_t)((uint64_t)(entry->born / NEAR_MS) >> SLOW_SHIFT));
    if (flags & NEAR__BLOCK_FRESH)
        at = put_u32(at, fresh_number(entry, expires));
    if (flags & NEAR__BLOCK_COST)
        at = put_u32(at, entry->cost_us);
    if (flags & NEAR__BLOCK_STAMP) {
        memcpy(at, &entry->stamp, 8);
        at = put_u32(at + 8, (uint32_t)entry->generation);
    }
    if (key.size > 0)
        memcpy(at, key.data, key.size);
    if (code == NEAR__BLOCK_OBJECT) {
        memcpy(value, &entry->object->object, sizeof(void *));
        memcpy(value + sizeof(void *), &entry->object, sizeof(void *));
    } else if (entry->value_size > 0) {
        memcpy(value, entry->value, entry->value_size);
    }
    if (flags & NEAR__BLOCK_LABELS)
        put_labels((unsigned char *)(uintptr_t)near__block_labels(block), entry->labels);
}

void
near__block_take_labels(const struct near__block *block, struct near__labels *labels)
{
    const unsigned char *at = near__block_labels(block);

    memcpy(&labels->clock, at, sizeof(labels->clock));
    memcpy(&labels->n, at + sizeof(labels->clock), sizeof(labels->n));
    memcpy(labels->stripes, at + LABELS_HEAD, labels->n * sizeof(labels->stripes[0]));
}

near_bytes
near__block_names(const struct near__block *block)
{
    const unsigned char *at = near__block_labels(block), *names;
    uint16_t             n;
    size_t               size = 0;

    memcpy(&n, at + sizeof(uint32_t), sizeof(n));
    names = at + LABELS_HEAD + n * sizeof(uint16_t);
    for (; n > 0; n--)
        size += (size_t)1 + names[size];
    return (near_bytes){ names, size };
}

bool
near__block_outdated(const struct near__block *block, const struct near__label_clock *clock)
{
    struct near__labels labels;

    near__block_take_labels(block, &labels);
    return near__labels_moved(clock, labels.clock, labels.stripes, labels.n);
}

void
near__block_write_external(struct near__block *block, struct near__entry *entry)
{
    memset(block, 0, NEAR__BLOCK_EXTERNAL_SIZE);
    block->flags = NEAR__BLOCK_EXTERNAL | (entry->negative ? NEAR__BLOCK_NEGATIVE : 0);
    memcpy(block->rest + 4, &entry, sizeof(entry));
}

void
near__block_end_external(struct near__block *block, int64_t expires, int64_t now)
{
    uint32_t end;

    if (expires > near__time_after(now, NEAR__BLOCK_TTL_MAX))
        expires = near__time_after(now, NEAR__BLOCK_TTL_MAX);
    end = near__block_time(expires);
    block->flags |= NEAR__BLOCK_EXPIRES;
    memcpy(block->rest, &end, sizeof(end)); /* where the first of the numbers lies */
}

/* A moment near `now` from its low bits. */
static int64_t
moment(uint32_t low, int64_t now)
{
    return now + (int64_t)(int32_t)(low - near__block_time(now)) * NEAR_MS;
}

static int64_t
birth(const struct near__block *block, int64_t now, int64_t expires)
{
    uint32_t here, low;

    if (block->flags & NEAR__BLOCK_EXPIRES)
        return expires - take_life(block->rest + near__block_numbers(NEAR__BLOCK_EXPIRES));
    here = (uint32_t)((uint64_t)(now / NEAR_MS) >> SLOW_SHIFT);
    low  = near__block_u32(block, NEAR__BLOCK_BORN);
    return now - (int64_t)(uint32_t)(here - low) * (NEAR_MS << SLOW_SHIFT);
}

void
near__block_meta(const struct near__block *block, int64_t now, struct near__meta *meta)
{
    *meta = (struct near__meta){ .born = -1, .fresh_until = NEAR_NEVER, .expires = NEAR_NEVER };
    if (block->flags & NEAR__BLOCK_EXPIRES)
        meta->expires = moment(near__block_u32(block, NEAR__BLOCK_EXPIRES), now);
    if (block->flags & NEAR__BLOCK_BORN)
        meta->born = birth(block, now, meta->expires);
    meta->fresh_until = meta->expires;
    if (block->flags & NEAR__BLOCK_FRESH)
        meta->fresh_until = moment(near__block_u32(block, NEAR__BLOCK_FRESH), now);
    if (meta->fresh_until < meta->born - STALE_BACK)
        meta->fresh_until = INT64_MIN;
    if (block->flags & NEAR__BLOCK_COST)
        meta->cost_us = near__block_u32(block, NEAR__BLOCK_COST);
    if (block->flags & NEAR__BLOCK_STAMP) {
        const unsigned char *at = block->rest + near__block_numbers(block->flags & 15);
        uint32_t             generation;

        memcpy(&meta->stamp, at, 8);
        memcpy(&generation, at + 8, 4);
        meta->generation = generation;
    }
}
