/* See disk_index.h. */
#include "l1/disk_index.h"

#include "base/lock.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    PLACE_BITS   = 36, /* of units: 1 TiB */
    SIZE_BITS    = 8,
    TAG_BITS     = 19,
    USED_SHIFT   = PLACE_BITS + SIZE_BITS,
    TAG_SHIFT    = USED_SHIFT + 1,
    SIZE_EXACT   = 128,  /* units whose size is kept as it is; larger ones in sixteenths of a power of two */
    PART_ENTRIES = 1024, /* few enough that growing one is some microseconds, and tags are rarely shared */
    PARTS_MIN    = 16,
    PARTS_MAX    = 1 << 18,
    SLOTS_FIRST  = 16,
    PART_SHIFT   = 13, /* bits of the hash: what L1 selects its shards by lies below, */
    HASH_TAG     = 45  /* and the tag above */
};

#define USED (UINT64_C(1) << USED_SHIFT)

struct part {
    struct near__lock lock;
    uint64_t         *slots; /* 0: empty */
    uint32_t          size, count;
    uint32_t          epoch;
};

struct near__spill_index {
    struct part     *parts;
    uint64_t         mask;
    _Atomic uint32_t epoch;
    _Atomic uint32_t closed;
    _Atomic uint32_t tidied;         /* the epoch that near__spill_index_tidy() saw last */
    _Atomic uint64_t entries, slots; /* of slots that are there, of parts of any epoch: levels */
};

/* ---- slots */

static unsigned
size_code(uint32_t size)
{
    uint32_t units = (size + NEAR__SPILL_UNIT - 1) / NEAR__SPILL_UNIT, power;

    if (units < SIZE_EXACT)
        return units;
    if (units == SIZE_EXACT)
        units++;
    power = 31 - (uint32_t)__builtin_clz(units - 1);
    return SIZE_EXACT + (power - 7) * 16 + ((units - 1) >> (power - 4)) - 16;
}

static uint32_t
size_of_code(unsigned code)
{
    unsigned step = code - SIZE_EXACT;

    if (code < SIZE_EXACT)
        return code * NEAR__SPILL_UNIT;
    return ((17 + step % 16) << (3 + step / 16)) * NEAR__SPILL_UNIT;
}

uint32_t
near__spill_index_rounded(uint32_t size)
{
    return size_of_code(size_code(size));
}

static uint64_t
slot_of(uint32_t tag, struct near__spill_index_place place)
{
    return (uint64_t)tag << TAG_SHIFT | (uint64_t)size_code(place.size) << PLACE_BITS |
           place.at / NEAR__SPILL_UNIT;
}

static uint64_t
slot_at(uint64_t slot)
{
    return (slot & ((UINT64_C(1) << PLACE_BITS) - 1)) * NEAR__SPILL_UNIT;
}

static uint32_t
slot_size(uint64_t slot)
{
    return size_of_code((unsigned)(slot >> PLACE_BITS) & ((1u << SIZE_BITS) - 1));
}

static uint32_t
slot_tag(uint64_t slot)
{
    return (uint32_t)(slot >> TAG_SHIFT);
}

static uint32_t
tag_of(uint64_t hash)
{
    return (uint32_t)(hash >> HASH_TAG);
}

/* ---- partitions */

static struct part *
part_of(const struct near__spill_index *index, uint64_t hash)
{
    return &index->parts[(hash >> PART_SHIFT) & index->mask];
}

static uint32_t
home(const struct part *part, uint32_t tag)
{
    return (uint32_t)(((uint64_t)tag * part->size) >> TAG_BITS);
}

static uint32_t
after(const struct part *part, uint32_t at)
{
    return at + 1 == part->size ? 0 : at + 1;
}

/* The tag's slot, or the empty one where it would be. */
static uint64_t *
probe(const struct part *part, uint32_t tag)
{
    uint32_t at = home(part, tag);

    while (part->slots[at] != 0 && slot_tag(part->slots[at]) != tag)
        at = after(part, at);
    return &part->slots[at];
}

/* The tag's slot while nothing has cleared it; NULL: none. */
static uint64_t *
look_locked(const struct near__spill_index *index, const struct part *part, uint32_t tag)
{
    uint64_t *slot;

    /* acquire: pairs with near__spill_index_close() */
    if (part->count == 0 || part->epoch != atomic_load_explicit(&index->epoch, memory_order_acquire))
        return NULL;
    slot = probe(part, tag);
    return *slot != 0 ? slot : NULL;
}

/* The slot of that hash, if it is the one of `at`: another's with the same tag is none. */
static uint64_t *
look_at_locked(const struct near__spill_index *index, const struct part *part, uint64_t hash, uint64_t at)
{
    uint64_t *slot = look_locked(index, part, tag_of(hash));

    return slot != NULL && slot_at(*slot) == at ? slot : NULL;
}

static bool
resize_locked(struct near__spill_index *index, struct part *part, uint32_t size)
{
    struct part grown = *part;

    grown.size  = size;
    grown.slots = calloc(size, sizeof(*grown.slots));
    if (grown.slots == NULL)
        return false;
    for (uint32_t i = 0; i < part->size; i++)
        if (part->slots[i] != 0)
            *probe(&grown, slot_tag(part->slots[i])) = part->slots[i];
    atomic_fetch_add_explicit(&index->slots, (uint64_t)size - part->size, memory_order_relaxed);
    free(part->slots);
    part->slots = grown.slots;
    part->size  = size;
    return true;
}

static void
empty_locked(struct near__spill_index *index, struct part *part)
{
    atomic_fetch_sub_explicit(&index->entries, part->count, memory_order_relaxed);
    atomic_fetch_sub_explicit(&index->slots, part->size, memory_order_relaxed);
    free(part->slots);
    part->slots = NULL;
    part->size = part->count = 0;
}

static bool
room_locked(struct near__spill_index *index, struct part *part)
{
    if (part->count + 1 <= part->size - part->size / 8 && part->size > 0)
        return true;
    return resize_locked(index, part, part->size == 0 ? SLOTS_FIRST : part->size + part->size / 8 + 2);
}

/* Those behind it move up, so that no search ends too early. */
static void
erase_locked(struct near__spill_index *index, struct part *part, uint64_t *slot)
{
    uint32_t hole = (uint32_t)(slot - part->slots);

    for (uint32_t at = after(part, hole); part->slots[at] != 0; at = after(part, at)) {
        uint32_t from = home(part, slot_tag(part->slots[at]));
        uint32_t far  = at >= from ? at - from : at + part->size - from;
        uint32_t gap  = at >= hole ? at - hole : at + part->size - hole;

        if (far >= gap) {
            part->slots[hole] = part->slots[at];
            hole              = at;
        }
    }
    part->slots[hole] = 0;
    part->count--;
    atomic_fetch_sub_explicit(&index->entries, 1, memory_order_relaxed);
}

/* ---- the face */

struct near__spill_index *
near__spill_index_new(uint64_t entries)
{
    struct near__spill_index *index = calloc(1, sizeof(*index));
    uint64_t                  parts = PARTS_MIN;

    while (parts < PARTS_MAX && parts < entries / PART_ENTRIES)
        parts *= 2;
    if (index != NULL)
        index->parts = calloc(parts, sizeof(*index->parts));
    if (index == NULL || index->parts == NULL) {
        free(index);
        return NULL;
    }
    index->mask = parts - 1;
    for (uint64_t i = 0; i < parts; i++)
        near__lock_init(&index->parts[i].lock, NEAR__RANK_LEAF);
    return index;
}

void
near__spill_index_free(struct near__spill_index **pindex)
{
    struct near__spill_index *index = *pindex;

    *pindex = NULL;
    if (index == NULL)
        return;
    for (uint64_t i = 0; i <= index->mask; i++) {
        near__lock_fini(&index->parts[i].lock);
        free(index->parts[i].slots);
    }
    free(index->parts);
    free(index);
}

bool
near__spill_index_find(struct near__spill_index *index, uint64_t hash, struct near__spill_index_place *place)
{
    struct part *part = part_of(index, hash);
    uint64_t    *slot;

    near__lock(&part->lock);
    slot = look_locked(index, part, tag_of(hash));
    if (slot != NULL)
        *place = (struct near__spill_index_place){ slot_at(*slot), slot_size(*slot) };
    near__unlock(&part->lock);
    return slot != NULL;
}

bool
near__spill_index_has(struct near__spill_index *index, uint64_t hash)
{
    struct part *part = part_of(index, hash);
    uint64_t    *slot;

    near__lock(&part->lock);
    slot = look_locked(index, part, tag_of(hash));
    if (slot != NULL)
        *slot |= USED;
    near__unlock(&part->lock);
    return slot != NULL;
}

/* The partition as one of that epoch; false: it is of a later one. */
static bool
bring_up_locked(struct near__spill_index *index, struct part *part, uint32_t epoch)
{
    if (part->epoch == epoch)
        return true;
    if ((int32_t)(epoch - part->epoch) < 0)
        return false;
    empty_locked(index, part);
    part->epoch = epoch;
    return true;
}

bool
near__spill_index_put(struct near__spill_index *index, uint64_t hash, struct near__spill_index_place place)
{
    struct part *part = part_of(index, hash);
    uint64_t    *slot;
    uint32_t     epoch;
    bool         done = false;

    near__lock(&part->lock);
    /* the epoch first, acquire: who sees the one that a close has begun sees that it is closed, or that a later one has come */
    epoch = atomic_load_explicit(&index->epoch, memory_order_acquire);
    if (atomic_load_explicit(&index->closed, memory_order_acquire) == 0 &&
        bring_up_locked(index, part, epoch) && room_locked(index, part)) {
        slot = probe(part, tag_of(hash));
        done = *slot == 0;
        if (done) {
            *slot = slot_of(tag_of(hash), place);
            part->count++;
            atomic_fetch_add_explicit(&index->entries, 1, memory_order_relaxed);
        }
    }
    near__unlock(&part->lock);
    return done;
}

bool
near__spill_index_remove(struct near__spill_index *index, uint64_t hash)
{
    struct part *part = part_of(index, hash);
    uint64_t    *slot;

    near__lock(&part->lock);
    slot = look_locked(index, part, tag_of(hash));
    if (slot != NULL)
        erase_locked(index, part, slot);
    near__unlock(&part->lock);
    return slot != NULL;
}

bool
near__spill_index_use(struct near__spill_index *index, uint64_t hash, uint64_t at)
{
    struct part *part = part_of(index, hash);
    uint64_t    *slot;

    near__lock(&part->lock);
    slot = look_at_locked(index, part, hash, at);
    if (slot != NULL)
        *slot |= USED;
    near__unlock(&part->lock);
    return slot != NULL;
}

bool
near__spill_index_take(struct near__spill_index *index, uint64_t hash, uint64_t at, bool *used)
{
    struct part *part = part_of(index, hash);
    uint64_t    *slot;

    near__lock(&part->lock);
    slot = look_at_locked(index, part, hash, at);
    if (slot != NULL) {
        *used = (*slot & USED) != 0;
        erase_locked(index, part, slot);
    }
    near__unlock(&part->lock);
    return slot != NULL;
}

bool
near__spill_index_used(struct near__spill_index *index, uint64_t hash, uint64_t at)
{
    struct part *part = part_of(index, hash);
    uint64_t    *slot;
    bool         used;

    near__lock(&part->lock);
    slot = look_at_locked(index, part, hash, at);
    used = slot != NULL && (*slot & USED) != 0;
    near__unlock(&part->lock);
    return used;
}

bool
near__spill_index_move(struct near__spill_index *index, uint64_t hash, uint64_t from,
                       struct near__spill_index_place to)
{
    struct part *part = part_of(index, hash);
    uint64_t    *slot;

    near__lock(&part->lock);
    slot = look_at_locked(index, part, hash, from);
    if (slot != NULL)
        *slot = slot_of(tag_of(hash), to);
    near__unlock(&part->lock);
    return slot != NULL;
}

/* Erasing moves others to places before: from the beginning of the run again, which is short. */
static uint64_t
drop_locked(struct near__spill_index *index, struct part *part, uint64_t from, uint64_t to)
{
    uint64_t dropped = 0;

    for (uint32_t i = 0; i < part->size;) {
        uint64_t slot = part->slots[i];

        if (slot != 0 && slot_at(slot) >= from && slot_at(slot) < to) {
            erase_locked(index, part, &part->slots[i]);
            dropped++;
        } else {
            i++;
        }
    }
    return dropped;
}

uint64_t
near__spill_index_drop(struct near__spill_index *index, uint64_t from, uint64_t to)
{
    uint64_t dropped = 0, one;

    for (uint64_t i = 0; i <= index->mask; i++) {
        struct part *part = &index->parts[i];

        near__lock(&part->lock);
        do { /* a run that goes round the end brings some back to the beginning */
            one = drop_locked(index, part, from, to);
            dropped += one;
        } while (one > 0);
        near__unlock(&part->lock);
    }
    return dropped;
}

void
near__spill_index_each(struct near__spill_index *index, void (*each)(void *ctx, uint64_t at), void *ctx)
{
    for (uint64_t i = 0; i <= index->mask; i++) {
        struct part *part = &index->parts[i];

        near__lock(&part->lock);
        if (part->epoch == atomic_load_explicit(&index->epoch, memory_order_acquire))
            for (uint32_t s = 0; s < part->size; s++)
                if (part->slots[s] != 0)
                    each(ctx, slot_at(part->slots[s]));
        near__unlock(&part->lock);
    }
}

void
near__spill_index_tidy(struct near__spill_index *index)
{
    uint32_t epoch = atomic_load_explicit(&index->epoch, memory_order_acquire);

    if (atomic_exchange_explicit(&index->tidied, epoch, memory_order_relaxed) == epoch)
        return;
    for (uint64_t i = 0; i <= index->mask; i++) {
        near__lock(&index->parts[i].lock);
        bring_up_locked(index, &index->parts[i], epoch);
        near__unlock(&index->parts[i].lock);
    }
}

void
near__spill_index_close(struct near__spill_index *index)
{
    atomic_fetch_add_explicit(&index->closed, 1, memory_order_acq_rel);
    /* release: pairs with the acquires in look_locked() and near__spill_index_put() */
    atomic_fetch_add_explicit(&index->epoch, 1, memory_order_acq_rel);
}

void
near__spill_index_open(struct near__spill_index *index)
{
    atomic_fetch_add_explicit(&index->epoch, 1, memory_order_acq_rel);
    atomic_fetch_sub_explicit(&index->closed, 1, memory_order_acq_rel);
}

uint64_t
near__spill_index_entries(const struct near__spill_index *index)
{
    return atomic_load_explicit(&index->entries, memory_order_relaxed);
}

uint64_t
near__spill_index_bytes(const struct near__spill_index *index)
{
    return sizeof(*index) + (index->mask + 1) * sizeof(struct part) +
           atomic_load_explicit(&index->slots, memory_order_relaxed) * sizeof(uint64_t);
}
