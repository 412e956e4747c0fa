/*
 * The L2 entry: what the bytes in the shared tier look like.  Little-endian, 64 bytes of header, then the full key, then the
 * payload, and not a byte more (the tags, if there are any, between the two).
 *
 *   0  4  magic "NrC\x01"         24  8  hard expiry          48  8  namespace generation
 *   4  1  format version (1)     32  4  load cost, us         56  8  checksum: XXH64 seed 0 over bytes 0..55 and 64..end
 *   5  1  flags                   36  4  key size              64  .  key, then payload
 *   6  2  tags (at most 16)       40  4  payload size, raw
 *   8  8  stamp                   44  4  payload size, stored
 *  16  8  soft expiry            (expiries: wall clock ms since 1970, 0: never)
 *
 * Flags: 1 = negative ("the store has no such thing", no payload), 2 = lease (a marker: somebody is loading; never reaches a
 * caller), 4 = the payload is an lz4 block, 8 = it is a zstd frame.  A compressed payload is smaller than it was raw; else both sizes
 * are one.  The checksum covers the bytes as they are stored.  A reader refuses what it does not know: magic, version, flags, sizes,
 * end, checksum, key, each of them before the next is used.  Nothing is allocated by decoding, and nothing decompressed: that the raw
 * size is within bounds is for whoever makes room for it to check (see l2/compress.h).
 */
#ifndef NEAR_L2_ENVELOPE_H
#define NEAR_L2_ENVELOPE_H

#include "base/base.h"

#define NEAR__ENVELOPE_HEADER  64
#define NEAR__ENVELOPE_VERSION 1

enum {
    NEAR__ENVELOPE_NEGATIVE = 1u << 0,
    NEAR__ENVELOPE_LEASE    = 1u << 1,
    NEAR__ENVELOPE_LZ4      = 1u << 2,
    NEAR__ENVELOPE_ZSTD     = 1u << 3,
    NEAR__ENVELOPE_MARK     = 1u << 4 /* no value: the store is being written (client/mark.h) */
};
#define NEAR__ENVELOPE_COMPRESSED (NEAR__ENVELOPE_LZ4 | NEAR__ENVELOPE_ZSTD)

struct near__envelope {
    unsigned   flags;
    uint64_t   stamp;
    int64_t    soft_expiry_ms; /* wall clock; 0: never */
    int64_t    hard_expiry_ms;
    uint32_t   cost_us;
    uint64_t   generation;
    near_bytes key;
    near_bytes payload;  /* as stored */
    uint32_t   raw_size; /* of a compressed payload.  Encoding one that is not: ignored */
    /* of the tags: how many, the clock of tags before the value was asked for, and their names, each a byte of size and its bytes */
    unsigned   tags;
    uint64_t   lineage, moment;
    near_bytes names;
};

enum near__envelope_result {
    NEAR__ENVELOPE_OK,
    NEAR__ENVELOPE_CORRUPT,  /* truncated, damaged, foreign or from the future: a miss and a counter */
    NEAR__ENVELOPE_WRONG_KEY /* sound, but another key's */
};

#define NEAR__ENVELOPE_TAGS  16 /* the most tags of an entry */
#define NEAR__ENVELOPE_CLOCK 16 /* lineage and moment, before the names of the tags; not there without tags */

/* Bytes that near__envelope_encode() will write. */
size_t near__envelope_size(const struct near__envelope *envelope);
/* Write `envelope` to `out`, which has near__envelope_size() bytes.  A payload that lies there already stays where it is. */
void near__envelope_encode(const struct near__envelope *envelope, uint8_t *out);
/* Read and check.  On OK, key and payload point into `stored`.  `key` is what was asked for. */
enum near__envelope_result near__envelope_decode(struct near__envelope *envelope, near_bytes stored,
                                                 near_bytes key);

#endif
