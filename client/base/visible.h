/* Keys that a text protocol can take: no blank, nothing that moves a cursor, nothing beyond ASCII. */
#ifndef NEAR_BASE_VISIBLE_H
#define NEAR_BASE_VISIBLE_H

#include "base/base.h"

/* Only bytes of 0x21 .. 0x7E, eight at a time: the high bit of each tells one below, one of 0x7F, or one beyond.  Borrows and carries
 * come from bytes that are outside anyway. */
static inline bool
near__bytes_visible(near_bytes bytes)
{
    const uint64_t       ones = UINT64_C(0x0101010101010101);
    const unsigned char *at   = bytes.data;
    uint64_t             bad  = 0, word;

    for (; bytes.size >= sizeof(word); at += sizeof(word), bytes.size -= sizeof(word)) {
        __builtin_memcpy(&word, at, sizeof(word));
        bad |= (word - ones * 0x21) | (word + ones) | word;
    }
    bad &= ones * 0x80;
    for (; bytes.size > 0; at++, bytes.size--)
        bad |= *at < 0x21 || *at > 0x7E;
    return bad == 0;
}

#endif
