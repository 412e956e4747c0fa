/* CRC-32C (Castagnoli): finds every error of up to 32 neighbouring bits, and every three bits in what a journal's record is long. */
#ifndef NEAR_BASE_CRC32C_H
#define NEAR_BASE_CRC32C_H

#include "base/base.h"

/* `crc` is 0, or the result for the bytes before these. */
uint32_t near__crc32c(uint32_t crc, const void *data, size_t size);
/* The same without help from the processor: what near__crc32c() does where there is none. */
uint32_t near__crc32c_table(uint32_t crc, const void *data, size_t size);

#endif
