/* See disk_record.h. */
#include "l1/disk_record.h"

#include "base/crc32c.h"
#include "base/le.h"

#include <string.h>

enum {
    VERSION = 1,
    ALIGN   = 16,
    /* a record's head */
    AT_CRC        = 0,
    AT_VALUE      = 4,
    AT_KEY        = 8,
    AT_STRIPES    = 10,
    AT_COST       = 12,
    AT_STAMP      = 16,
    AT_GENERATION = 24,
    AT_BORN       = 32,
    AT_FRESH      = 40,
    AT_EXPIRES    = 48,
    AT_CLOCK      = 56,
    AT_NAMES      = 60,
    AT_POOL       = 62, /* and a zero: it was a part of the size of the names, which never went so far */
    AT_ZERO       = 63
};

#define LOG_MAGIC     UINT64_C(0x314c50535241454e) /* "NEARSPL1" */
#define SEGMENT_MAGIC UINT64_C(0x314745534c505352)

#define RECORD_MAX (UINT32_C(512) << 10) /* what the index can say */

void
near__spill_log_put(const struct near__spill_log *log, uint8_t bytes[NEAR__SPILL_HEAD])
{
    memset(bytes, 0, NEAR__SPILL_HEAD);
    near__le64_put(bytes, LOG_MAGIC);
    near__le32_put(bytes + 8, VERSION);
    near__le32_put(bytes + 12, log->segment_bytes);
    near__le64_put(bytes + 16, log->segments);
    near__le64_put(bytes + 24, log->name);
    near__le32_put(bytes + 60, near__crc32c(0, bytes, 60));
}

bool
near__spill_log_get(struct near__spill_log *log, const uint8_t bytes[NEAR__SPILL_HEAD])
{
    if (near__le64_get(bytes) != LOG_MAGIC || near__le32_get(bytes + 8) != VERSION ||
        near__le32_get(bytes + 60) != near__crc32c(0, bytes, 60))
        return false;
    *log = (struct near__spill_log){ near__le32_get(bytes + 12), near__le64_get(bytes + 16),
                                     near__le64_get(bytes + 24) };
    return true;
}

void
near__spill_segment_put(const struct near__spill_segment *segment, uint8_t bytes[NEAR__SPILL_HEAD])
{
    memset(bytes, 0, NEAR__SPILL_HEAD);
    near__le64_put(bytes, SEGMENT_MAGIC);
    near__le64_put(bytes + 8, segment->name);
    near__le64_put(bytes + 16, segment->sequence);
    near__le64_put(bytes + 24, (uint64_t)segment->clock);
    near__le64_put(bytes + 32, (uint64_t)segment->wall_ms);
    near__le32_put(bytes + 60, near__crc32c(0, bytes, 60));
}

bool
near__spill_segment_get(struct near__spill_segment *segment, const uint8_t bytes[NEAR__SPILL_HEAD])
{
    if (near__le64_get(bytes) != SEGMENT_MAGIC || near__le32_get(bytes + 60) != near__crc32c(0, bytes, 60))
        return false;
    *segment = (struct near__spill_segment){ near__le64_get(bytes + 8), near__le64_get(bytes + 16),
                                             (int64_t)near__le64_get(bytes + 24),
                                             (int64_t)near__le64_get(bytes + 32) };
    return true;
}

static uint32_t
whole(uint64_t key, uint64_t stripes, uint64_t names, uint64_t value)
{
    uint64_t size = NEAR__SPILL_HEAD + key + stripes + names + value;

    size = (size + ALIGN - 1) & ~(uint64_t)(ALIGN - 1);
    return size <= RECORD_MAX ? (uint32_t)size : 0;
}

uint32_t
near__spill_record_size(const struct near__spill_record *record)
{
    if (record->key.size > UINT16_MAX || record->stripes.size / 2 > UINT16_MAX ||
        record->names.size > UINT16_MAX || record->value.size > RECORD_MAX)
        return 0;
    return whole(record->key.size, record->stripes.size, record->names.size, record->value.size);
}

/* Of what follows the checksum, under the name of the segment's present life. */
static uint32_t
checksum(const struct near__spill_segment *segment, const uint8_t *bytes, uint32_t size)
{
    uint8_t life[16];

    near__le64_put(life, segment->name);
    near__le64_put(life + 8, segment->sequence);
    return near__crc32c(near__crc32c(0, life, sizeof(life)), bytes + AT_VALUE, size - AT_VALUE);
}

static uint8_t *
put(uint8_t *at, near_bytes bytes)
{
    if (bytes.size > 0)
        memcpy(at, bytes.data, bytes.size);
    return at + bytes.size;
}

void
near__spill_record_put(const struct near__spill_record *record, const struct near__spill_segment *segment,
                       uint8_t *bytes)
{
    uint32_t size = near__spill_record_size(record);
    uint8_t *end;

    near__le32_put(bytes + AT_VALUE, (uint32_t)record->value.size);
    near__le16_put(bytes + AT_KEY, (uint16_t)record->key.size);
    near__le16_put(bytes + AT_STRIPES, (uint16_t)(record->stripes.size / 2));
    near__le32_put(bytes + AT_COST, record->cost_us);
    near__le64_put(bytes + AT_STAMP, record->stamp);
    near__le64_put(bytes + AT_GENERATION, record->generation);
    near__le64_put(bytes + AT_BORN, (uint64_t)record->born);
    near__le64_put(bytes + AT_FRESH, (uint64_t)record->fresh_until);
    near__le64_put(bytes + AT_EXPIRES, (uint64_t)record->expires);
    near__le32_put(bytes + AT_CLOCK, record->clock);
    near__le16_put(bytes + AT_NAMES, (uint16_t)record->names.size);
    bytes[AT_POOL] = record->pool;
    bytes[AT_ZERO] = 0;
    end            = put(put(put(put(bytes + NEAR__SPILL_HEAD, record->key), record->stripes), record->names),
                         record->value);
    memset(end, 0, (size_t)(bytes + size - end));
    near__le32_put(bytes + AT_CRC, checksum(segment, bytes, size));
}

uint32_t
near__spill_record_claims(const uint8_t *bytes, size_t size)
{
    uint32_t claimed;

    if (size < NEAR__SPILL_HEAD)
        return 0;
    claimed = whole(near__le16_get(bytes + AT_KEY), (uint64_t)2 * near__le16_get(bytes + AT_STRIPES),
                    near__le16_get(bytes + AT_NAMES), near__le32_get(bytes + AT_VALUE));
    return bytes[AT_ZERO] == 0 ? claimed : 0;
}

uint32_t
near__spill_record_get(struct near__spill_record *record, const struct near__spill_segment *segment,
                       const uint8_t *bytes, size_t size)
{
    uint32_t       claimed = near__spill_record_claims(bytes, size);
    const uint8_t *at      = bytes + NEAR__SPILL_HEAD;

    if (claimed == 0 || claimed > size || near__le32_get(bytes + AT_CRC) != checksum(segment, bytes, claimed))
        return 0;
    record->key         = (near_bytes){ at, near__le16_get(bytes + AT_KEY) };
    at                  = at + record->key.size;
    record->stripes     = (near_bytes){ at, (size_t)2 * near__le16_get(bytes + AT_STRIPES) };
    at                  = at + record->stripes.size;
    record->names       = (near_bytes){ at, near__le16_get(bytes + AT_NAMES) };
    at                  = at + record->names.size;
    record->value       = (near_bytes){ at, near__le32_get(bytes + AT_VALUE) };
    record->cost_us     = near__le32_get(bytes + AT_COST);
    record->stamp       = near__le64_get(bytes + AT_STAMP);
    record->generation  = near__le64_get(bytes + AT_GENERATION);
    record->born        = (int64_t)near__le64_get(bytes + AT_BORN);
    record->fresh_until = (int64_t)near__le64_get(bytes + AT_FRESH);
    record->expires     = (int64_t)near__le64_get(bytes + AT_EXPIRES);
    record->clock       = near__le32_get(bytes + AT_CLOCK);
    record->pool        = bytes[AT_POOL];
    return claimed;
}
