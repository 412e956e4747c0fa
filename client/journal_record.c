/* See journal_record.h. */
#include "journal_record.h"

#include <string.h>

#include "base/crc32c.h"
#include "base/le.h"

static const uint8_t magic[8] = { 'n', 'e', 'a', 'r', 'j', 'r', 'n', 'l' };

enum {
    VERSION         = 1,
    HEADER_CHECKSUM = NEAR__SEGMENT_HEADER - 4,
};
#define SEQUENCE_MAX                                                                                         \
    (UINT64_MAX >> 2) /* no number that was given comes near it, and no sum of one overflows */

/* ---- segments */

void
near__segment_encode(uint8_t out[NEAR__SEGMENT_HEADER], struct near__segment_header *header)
{
    memset(out, 0, NEAR__SEGMENT_HEADER);
    memcpy(out, magic, sizeof(magic));
    near__le16_put(out + 8, VERSION);
    near__le16_put(out + 10, header->use);
    near__le32_put(out + 12, header->size);
    near__le64_put(out + 16, header->segment);
    near__le64_put(out + 24, header->origin);
    near__le64_put(out + 32, header->predecessor);
    near__le32_put(out + 40, header->predecessor_end);
    near__le32_put(out + 44, header->predecessor_checksum);
    near__le64_put(out + 48, header->floor);
    near__le64_put(out + 56, header->first_sequence);
    header->checksum = near__crc32c(0, out, HEADER_CHECKSUM);
    near__le32_put(out + HEADER_CHECKSUM, header->checksum);
}

static bool
header_makes_sense(const struct near__segment_header *header)
{
    return header->use <= NEAR__SEGMENT_DEAD && header->size >= NEAR__SEGMENT_HEADER &&
           header->size <= NEAR__SEGMENT_MAX && header->segment > 0 &&
           header->predecessor < header->segment && header->floor <= header->segment &&
           header->predecessor_end <= NEAR__SEGMENT_MAX && header->first_sequence <= SEQUENCE_MAX;
}

bool
near__segment_decode(struct near__segment_header *header, const uint8_t *bytes, size_t size)
{
    if (size < NEAR__SEGMENT_HEADER || memcmp(bytes, magic, sizeof(magic)) != 0 ||
        near__le16_get(bytes + 8) != VERSION)
        return false;
    *header = (struct near__segment_header){
        .use                  = near__le16_get(bytes + 10),
        .size                 = near__le32_get(bytes + 12),
        .segment              = near__le64_get(bytes + 16),
        .origin               = near__le64_get(bytes + 24),
        .predecessor          = near__le64_get(bytes + 32),
        .predecessor_end      = near__le32_get(bytes + 40),
        .predecessor_checksum = near__le32_get(bytes + 44),
        .floor                = near__le64_get(bytes + 48),
        .first_sequence       = near__le64_get(bytes + 56),
        .checksum             = near__le32_get(bytes + HEADER_CHECKSUM),
    };
    return header->checksum == near__crc32c(0, bytes, HEADER_CHECKSUM) && header_makes_sense(header);
}

uint64_t
near__segment_stamp(uint64_t origin, uint64_t segment)
{
    uint64_t mixed = origin + segment * UINT64_C(0x9e3779b97f4a7c15); /* both steps are one to one */

    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ mixed >> 31;
}

/* ---- what a record may be */

bool
near__record_is_the_callers(unsigned kind)
{
    return kind == NEAR__JOURNAL_PUT || kind == NEAR__JOURNAL_ERASE || kind == NEAR__JOURNAL_INTENT;
}

static bool
sizes_make_sense(unsigned kind, size_t cache, size_t key, size_t data)
{
    if (cache > NEAR__RECORD_CACHE_MAX || key > NEAR__RECORD_KEY_MAX)
        return false;
    if (near__record_is_the_callers(kind))
        return cache > 0 && (kind == NEAR__JOURNAL_PUT || data == 0);
    if (cache != 0 || key != 0)
        return false;
    return kind == NEAR__JOURNAL_DONE ? data % NEAR__DONE_RANGE == 0 : kind == NEAR__JOURNAL_END && data == 0;
}

size_t
near__record_size(const struct near__journal_record *record)
{
    size_t size = NEAR__RECORD_HEADER;

    if (!sizes_make_sense((unsigned)record->kind, record->cache.size, record->key.size, record->data.size) ||
        record->data.size >
            NEAR__RECORD_MAX - NEAR__RECORD_HEADER - NEAR__RECORD_CACHE_MAX - NEAR__RECORD_KEY_MAX - 8)
        return 0;
    size += record->cache.size + record->key.size + record->data.size;
    return (size + 7) & ~(size_t)7;
}

/* ---- writing */

static uint8_t *
append(uint8_t *at, near_bytes bytes)
{
    if (bytes.size > 0)
        memcpy(at, bytes.data, bytes.size);
    return at + bytes.size;
}

void
near__record_encode(uint8_t *out, const struct near__journal_record *record, uint64_t sequence,
                    near_status status)
{
    size_t   size = near__record_size(record);
    uint8_t *at   = out + NEAR__RECORD_HEADER;

    memset(out, 0, NEAR__RECORD_HEADER);
    at = append(at, record->cache);
    at = append(at, record->key);
    at = append(at, record->data);
    memset(at, 0, (size_t)(out + size - at));
    near__le32_put(out + 4, (uint32_t)size);
    near__le64_put(out + 16, sequence);
    out[32] = (uint8_t)record->kind;
    out[33] = (uint8_t)record->cache.size;
    out[34] = (uint8_t)(out + size - at);
    out[35] = (uint8_t)status;
    near__le32_put(out + 36, (uint32_t)record->key.size);
}

uint32_t
near__record_seal(uint8_t *out, uint64_t stamp, uint32_t previous, uint32_t synced)
{
    uint32_t checksum;

    near__le64_put(out + 8, stamp);
    near__le32_put(out + 24, previous);
    near__le32_put(out + 28, synced);
    checksum = near__crc32c(0, out + 4, near__le32_get(out + 4) - 4);
    near__le32_put(out, checksum);
    return checksum;
}

uint32_t
near__record_encoded_size(const uint8_t *at)
{
    return near__le32_get(at + 4);
}

uint64_t
near__record_encoded_sequence(const uint8_t *at)
{
    return near__le64_get(at + 16);
}

/* ---- reading */

/* The parts of a record whose size has been looked at. */
static bool
take_parts(struct near__record_view *view, const uint8_t *bytes)
{
    size_t cache = bytes[33], padding = bytes[34], key = near__le32_get(bytes + 36);
    size_t room = view->size - NEAR__RECORD_HEADER;

    if (padding > 7 || key > room || cache + padding > room - key)
        return false;
    bytes += NEAR__RECORD_HEADER;
    view->record.cache = (near_bytes){ bytes, cache };
    view->record.key   = (near_bytes){ bytes + cache, key };
    view->record.data  = (near_bytes){ bytes + cache + key, room - cache - key - padding };
    return sizes_make_sense((unsigned)view->record.kind, cache, key, view->record.data.size);
}

bool
near__record_read(struct near__record_view *view, const uint8_t *bytes, size_t size)
{
    if (size < NEAR__RECORD_HEADER)
        return false;
    *view = (struct near__record_view){
        .sequence    = near__le64_get(bytes + 16),
        .checksum    = near__le32_get(bytes),
        .size        = near__le32_get(bytes + 4),
        .previous    = near__le32_get(bytes + 24),
        .synced      = near__le32_get(bytes + 28),
        .record.kind = (enum near__journal_kind)bytes[32],
        .status      = (near_status)(int8_t)bytes[35],
    };
    return view->size >= NEAR__RECORD_HEADER && view->size <= size && view->size % 8 == 0 &&
           view->sequence <= SEQUENCE_MAX && take_parts(view, bytes);
}

bool
near__record_decode(struct near__record_view *view, const uint8_t *bytes, size_t size, uint64_t stamp)
{
    return size >= NEAR__RECORD_HEADER && near__le64_get(bytes + 8) == stamp &&
           near__record_read(view, bytes, size) &&
           view->checksum == near__crc32c(0, bytes + 4, view->size - 4);
}

size_t
near__record_search(struct near__record_view *view, const uint8_t *bytes, size_t size, size_t at,
                    uint64_t stamp)
{
    for (at = (at + 7) & ~(size_t)7; at + NEAR__RECORD_HEADER <= size; at += 8)
        if (near__record_decode(view, bytes + at, size - at, stamp))
            return at;
    return size;
}
