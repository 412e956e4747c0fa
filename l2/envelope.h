/*
 * The L2 entry: what the bytes in the shared tier look like.  Little-endian, 64 bytes of header, then the full key, then the
 * payload, and not a byte more (the tags, if there are any, between the two; a MAC, if there is one, before the key).
 *
 *   0  4  magic "NrC\x01"         24  8  hard expiry          48  8  namespace generation
 *   4  1  format version (1)     32  4  load cost, us         56  8  checksum: XXH64 seed 0 over bytes 0..55 and 64..end
 *   5  1  flags                   36  4  key size              64  .  key, then payload
 *   6  2  tags (at most 16)       40  4  payload size, raw
 *   8  8  stamp                   44  4  payload size, stored
 *  16  8  soft expiry            (expiries: wall clock ms since 1970, 0: never)
 *                                64 16  with flag 32: MAC over place, bytes 0..55 and 80..end (l2/mac.h); key and payload from 80 on
 *
 * Flags: 1 = negative ("the store has no such thing", no payload), 2 = lease (a marker: somebody is loading; never reaches a
 * caller), 4 = the payload is an lz4 block, 8 = it is a zstd frame, 16 = mark (the store is being written; the payload lists the
 * writers; no other flag but 32; never reaches a caller), 32 = sealed: there is a MAC.  A compressed payload is smaller than it was raw; else both sizes
 * are one.  The checksum covers the bytes as they are stored.  A reader refuses what it does not know: magic, version, flags, sizes,
 * end, checksum, key, each of them before the next is used.  Nothing is allocated by decoding, and nothing decompressed: that the raw
 * size is within bounds is for whoever makes room for it to check (see l2/compress.h).
 *
 * The checksum finds accidents, the MAC forgeries; it is inside the checksum.  Who has no key reads sealed entries like any other, who has
 * one believes no others: that is for the caller, by near__envelope_verify().  Builds that do not know the flag take them for damaged.
 */
#ifndef NEAR_L2_ENVELOPE_H
#define NEAR_L2_ENVELOPE_H

#include "l2/mac.h"

#define NEAR__ENVELOPE_HEADER  64
#define NEAR__ENVELOPE_MOST    (NEAR__ENVELOPE_HEADER + NEAR__MAC_SIZE) /* before the key */
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
    bool       sealed; /* has a MAC: */
    uint8_t    mac[NEAR__MAC_SIZE];
    bool       old_key; /* for near__tier_decode() */
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
    NEAR__ENVELOPE_CORRUPT,   /* truncated, damaged, foreign or from the future: a miss and a counter */
    NEAR__ENVELOPE_WRONG_KEY, /* sound, but another key's */
    NEAR__ENVELOPE_FORGED     /* sound, and not sealed as the cache asks: see near__tier_decode() */
};

#define NEAR__ENVELOPE_TAGS  16 /* the most tags of an entry */
#define NEAR__ENVELOPE_CLOCK 16 /* lineage and moment, before the names of the tags; not there without tags */

/* Bytes that near__envelope_encode() will write. */
size_t near__envelope_size(const struct near__envelope *envelope);
/* Write `envelope` to `out`, which has near__envelope_size() bytes.  A payload that lies there already stays where it is.  Of a sealed
 * one the MAC is written as it stands in `envelope`. */
void near__envelope_encode(const struct near__envelope *envelope, uint8_t *out);
/* The same of a sealed one, with the MAC that it has at `place`, which is L2's key. */
void near__envelope_seal(const struct near__envelope *envelope, const struct near__mac *mac, near_bytes place,
                         uint8_t *out);
/* Read and check.  On OK, key and payload point into `stored`.  `key` is what was asked for. */
enum near__envelope_result near__envelope_decode(struct near__envelope *envelope, near_bytes stored,
                                                 near_bytes key);
/* By which key of `mac` what was decoded from `stored` is sealed for this place (near__mac_verify()); 0: by none, or not at all. */
unsigned near__envelope_verify(const struct near__envelope *envelope, const struct near__mac *mac,
                               near_bytes place, near_bytes stored);

#endif
