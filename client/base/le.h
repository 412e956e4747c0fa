/* Little-endian numbers in wire formats, at any alignment. */
#ifndef NEAR_BASE_LE_H
#define NEAR_BASE_LE_H

#include <stdint.h>

#define NEAR__LE(bits)                                                                                       \
    static inline void near__le##bits##_put(uint8_t *at, uint##bits##_t v)                                   \
    {                                                                                                        \
        for (unsigned i = 0; i < bits / 8; i++)                                                              \
            at[i] = (uint8_t)(v >> (8 * i));                                                                 \
    }                                                                                                        \
    static inline uint##bits##_t near__le##bits##_get(const uint8_t *at)                                     \
    {                                                                                                        \
        uint##bits##_t v = 0;                                                                                \
        for (unsigned i = 0; i < bits / 8; i++)                                                              \
            v |= (uint##bits##_t)((uint##bits##_t)at[i] << (8 * i));                                         \
        return v;                                                                                            \
    }
NEAR__LE(16)
NEAR__LE(32)
NEAR__LE(64)
#undef NEAR__LE

#endif
