/*
 * Invalidation messages: what instances tell each other.  Binary, little-endian, versioned; many keys in one message.
 *
 *   0  4  magic "NrM\x01"      8  8  sender          32  4  number of keys
 *   4  1  version (1)         16  8  stream          36  4  size of all
 *   5  1  kind                24  8  sequence        40  .  cache name, then each key: 4-byte size, bytes
 *   6  2  size of cache name
 *
 * sender: random, one client's life.  stream: random, one connection's life, because messages of two connections may arrive in any
 * order; sequence: 1, 2, ... within the stream.  Both are stamped by whoever owns the connection, at the moment of sending.
 */
#ifndef NEAR_COHERENCE_MESSAGE_H
#define NEAR_COHERENCE_MESSAGE_H

#include "base/base.h"

#define NEAR__MESSAGE_HEADER   40
#define NEAR__MESSAGE_KIND_AT  5
#define NEAR__MESSAGE_STAMP_AT 16
#define NEAR__MESSAGE_TAG_TAIL 16
#define NEAR__MESSAGE_MAX      (256u << 10) /* a receiver refuses more */
#define NEAR__MESSAGE_KEYS     (64u << 10)  /* a sender starts a new message beyond this many bytes of keys */

enum near__message_kind {
    NEAR__MESSAGE_INVALIDATE = 1, /* keys were written or removed */
    NEAR__MESSAGE_FILLED     = 2, /* keys were loaded and stored: wakes waiters, moves no fence */
    NEAR__MESSAGE_CLEAR = 3, /* the cache has a new generation: the one key is its 8 bytes, little-endian */
    NEAR__MESSAGE_BEAT =
        4, /* what the sender has published since its last beat; of no cache.  The first key is the beat's number,
                              * 8 bytes; each further one 24 bytes: a stream, the first and the last number in it */
    NEAR__MESSAGE_TAG =
        5, /* a tag was invalidated: its name, and behind it 16 bytes, lineage and moment, little-endian */
    NEAR__MESSAGE_PREFIX = 6 /* all keys that begin with the one key were removed; it may be empty */
};

#define NEAR__MESSAGE_BEAT_CACHE "@" /* no cache has this name */
#define NEAR__MESSAGE_BEAT_ENTRY 24

struct near__message {
    enum near__message_kind kind;
    uint64_t                sender, stream, sequence;
    near_bytes              cache;
    uint32_t                count;
    near_bytes              keys; /* encoded; walk with near__message_next() */
};

/* Encode into malloc'ed memory at *out.  stream and sequence are zero until stamped.  NEAR_ERR_NOMEM; NEAR_ERR_TOO_LARGE. */
near_status near__message_encode(enum near__message_kind kind, uint64_t sender, near_bytes cache,
                                 const near_bytes *keys, size_t n, uint8_t **out, size_t *size);
/* How many of the keys fit into one message: at least 1 when n > 0. */
size_t near__message_fit(const near_bytes *keys, size_t n);
/* Check everything and fill `message`, which then borrows from `bytes`.  False: makes no sense or is of a version we do not know. */
bool near__message_decode(struct near__message *message, near_bytes bytes);
/* Walk the keys: start with *at = 0; false after the last.  Only on a message that near__message_decode() accepted. */
bool near__message_next(const struct near__message *message, size_t *at, near_bytes *key);

#endif
