/*
 * The bytes of a journal: segments and records, in memory.  Pure functions: no file, no state, no allocation.
 *
 * A segment is a file of fixed size: a header of 512 bytes, which is written once, then records one behind the other.  All numbers are
 * little-endian, records begin at multiples of 8.
 *
 *     header   0 magic 8 | 8 version 2 | 10 use 2 | 12 size 4 | 16 segment 8 | 24 origin 8 | 32 predecessor 8 | 40 its end 4
 *              44 its last checksum 4 | 48 floor 8 | 56 first sequence 8 | 64 zeros | 508 checksum 4
 *     record   0 checksum 4 | 4 size 4 | 8 stamp 8 | 16 sequence 8 | 24 previous 4 | 28 synced 4 | 32 kind 1 | 33 cache's size 1
 *              34 padding 1 | 35 status 1 | 36 key's size 4 | 40 cache, key, data, 0 .. 7 zeros
 *
 * Checksums are CRC-32C of everything in the header, or the record, but themselves.  `previous` is the checksum of the record before, of the header for the first: so
 * records are a chain, and nothing that was left out, put in or exchanged continues it.  `stamp` follows from the directory's origin, which is
 * random, and the segment, which is never given twice: what a recycled file held before does not verify, nor does what somebody who
 * does not know the origin put into a value.  `synced` is how far the segment was on disk when the record was sealed:
 * what does not verify before that is damage, what does not behind it may be the end of a crash.  A segment says where its predecessor ended and
 * with which checksum, so only the last one can have a torn end; segments below the highest `floor` are free, whatever they hold.
 *
 * What can never happen: a read past the bytes that were given; a size believed before it was compared with what is there.
 */
#ifndef NEAR_CLIENT_JOURNAL_RECORD_H
#define NEAR_CLIENT_JOURNAL_RECORD_H

#include "journal.h"

enum {
    NEAR__SEGMENT_HEADER =
        512, /* a sector of its own: never written again, so never torn by what comes after */
    NEAR__RECORD_HEADER    = 40,
    NEAR__RECORD_CACHE_MAX = 64,
    NEAR__RECORD_KEY_MAX   = 64 << 10,
    NEAR__RECORD_MAX       = 512 << 20,
    NEAR__SEGMENT_MAX      = 1 << 30, /* offsets are 32 bits with room to spare */
    NEAR__DONE_RANGE       = 12       /* of a DONE's data: first sequence 8, how many 4 */
};

/* What a segment is for. */
enum { NEAR__SEGMENT_LOG = 0, NEAR__SEGMENT_DEAD = 1 };

struct near__segment_header {
    uint16_t use;
    uint32_t size; /* of the file */
    uint64_t segment, origin;
    uint64_t predecessor; /* 0: none */
    uint32_t predecessor_end, predecessor_checksum;
    uint64_t floor;
    uint64_t first_sequence;
    uint32_t checksum; /* out of near__segment_decode(), and of near__segment_encode() */
};

/* What records of this segment bear.  Of one origin no two segments have the same. */
uint64_t near__segment_stamp(uint64_t origin, uint64_t segment);

/* DONE: data is ranges of sequences, each 8 bytes of the first and 4 of how many.  END: sequence is the next one to give. */

/* A record where it lies: borrowed bytes. */
struct near__record_view {
    struct near__journal_record record; /* kind may be DONE or END */
    uint64_t                    sequence;
    uint32_t                    size, checksum, previous, synced;
    near_status                 status; /* of a dead letter */
};

void near__segment_encode(uint8_t out[NEAR__SEGMENT_HEADER], struct near__segment_header *header);
/* False: not a header that this version wrote. */
bool near__segment_decode(struct near__segment_header *header, const uint8_t *bytes, size_t size);

/* Whether writers make such records; the others are the journal's own. */
bool near__record_is_the_callers(unsigned kind);

/* Bytes of the record in a segment, or 0 where it is outside its limits. */
size_t near__record_size(const struct near__journal_record *record);
/* All but what near__record_seal() fills in.  `out` has near__record_size() bytes. */
void near__record_encode(uint8_t *out, const struct near__journal_record *record, uint64_t sequence,
                         near_status status);
/* Gives the encoded record its place; returns its checksum. */
uint32_t near__record_seal(uint8_t *out, uint64_t stamp, uint32_t previous, uint32_t synced);
/* Of encoded records, sealed or not: the library's own memory, never bytes from a file. */
uint32_t near__record_encoded_size(const uint8_t *at);
uint64_t near__record_encoded_sequence(const uint8_t *at);

/* The record at the beginning of `size` bytes, of whatever predecessor.  False: what is there is no record of this segment. */
bool near__record_decode(struct near__record_view *view, const uint8_t *bytes, size_t size, uint64_t stamp);

/* The same without stamp and checksum: for a record that was decoded before. */
bool near__record_read(struct near__record_view *view, const uint8_t *bytes, size_t size);

/* The first multiple of 8 from `at` on where a record of this segment is; `size` where there is none. */
size_t near__record_search(struct near__record_view *view, const uint8_t *bytes, size_t size, size_t at,
                           uint64_t stamp);

#endif
