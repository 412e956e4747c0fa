/* Little-endian numbers in wire formats, at any alignment.  Through memcpy, for compilers make one move of that; of shifts byte by byte they
 * made a loop, which was a ninth of a large read. */
#ifndef NEAR_BASE_LE_H
#define NEAR_BASE_LE_H

#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NEAR__LE_ORDER(bits, v) (v)
#else
#define NEAR__LE_ORDER(bits, v) __builtin_bswap##bits(v)
#endif

#define NEAR__LE(bits)                                                                                       \
    static inline void near__le##bits##_put(uint8_t *at, uint##bits##_t v)                                   \
    {                                                                                                        \
        uint##bits##_t ordered = NEAR__LE_ORDER(bits, v);                                                    \
                                                                                                             \
        memcpy(at, &ordered, sizeof(ordered));                                                               \
    }                                                                                                        \
    static inline uint##bits##_t near__le##bits##_get(const uint8_t *at)                                     \
    {                                                                                                        \
        uint##bits##_t v;                                                                                    \
                                                                                                             \
        memcpy(&v, at, sizeof(v));                                                                           \
        return NEAR__LE_ORDER(bits, v);                                                                      \
    }
NEAR__LE(16)
NEAR__LE(32)
NEAR__LE(64)
#undef NEAR__LE
#undef NEAR__LE_ORDER

#endif
