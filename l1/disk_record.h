/*
 * What lies in the log of the disk tier: its first page, segments, records.
 *
 *   page 0     64 bytes of head: magic, version, segment size, how many, the log's name (random)
 *   segment    64 bytes of head: magic, log's name, sequence, the clocks when it was begun; then records
 *   record     64 bytes of head, key, tags, value, to a multiple of 16
 *
 * Little-endian.  Each has a CRC32C.  A record's begins with the log's name and its segment's sequence, so what is left of a segment's former lives
 * does not verify.  Bytes that do not verify are never looked at further.  No state; nothing here allocates.
 */
#ifndef NEAR_L1_DISK_RECORD_H
#define NEAR_L1_DISK_RECORD_H

#include "base/base.h"

#define NEAR__SPILL_PAGE 4096
#define NEAR__SPILL_HEAD 64 /* of each of the three */

struct near__spill_log {
    uint32_t segment_bytes;
    uint64_t segments;
    uint64_t name;
};

struct near__spill_segment {
    uint64_t name, sequence;
    int64_t  clock, wall_ms; /* of the writing process, at one moment */
};

struct near__spill_record {
    near_bytes key, value;
    int64_t    born, fresh_until, expires; /* on the clock of the segment; NEAR_NEVER */
    uint64_t   stamp, generation;
    uint32_t   cost_us;
    uint32_t   clock;   /* of tags (l1/labels.h) */
    uint8_t    pool;    /* that it left, from 1; 0: L1 has none */
    near_bytes stripes; /* 2 bytes for each tag */
    near_bytes names;
};

void near__spill_log_put(const struct near__spill_log *log, uint8_t bytes[NEAR__SPILL_HEAD]);
bool near__spill_log_get(struct near__spill_log *log, const uint8_t bytes[NEAR__SPILL_HEAD]);
void near__spill_segment_put(const struct near__spill_segment *segment, uint8_t bytes[NEAR__SPILL_HEAD]);
bool near__spill_segment_get(struct near__spill_segment *segment, const uint8_t bytes[NEAR__SPILL_HEAD]);

/* Bytes of a record, a multiple of 16; 0: it cannot be one (too large). */
uint32_t near__spill_record_size(const struct near__spill_record *record);
void     near__spill_record_put(const struct near__spill_record  *record,
                                const struct near__spill_segment *segment, uint8_t *bytes);
/* The record at the beginning of `bytes`, borrowed from there: its size, 0: not one, or not all of it. */
uint32_t near__spill_record_get(struct near__spill_record *record, const struct near__spill_segment *segment,
                                const uint8_t *bytes, size_t size);
/* What a record's head says of its size, whether or not it verifies; 0: nothing possible. */
uint32_t near__spill_record_claims(const uint8_t *bytes, size_t size);

#endif
