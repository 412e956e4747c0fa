/*
 * Commands as RESP2 has them: an array of byte strings, each with its length.  What hiredis makes of the same arguments, byte for byte, without a
 * printf() for each of them, which took a seventh of a large read's time and more of a write's.  Replies are hiredis's to parse.
 */
#ifndef NEAR_L2_RESP_H
#define NEAR_L2_RESP_H

#include "base/base.h"

#define NEAR__RESP_MAX                                                                                       \
    ((size_t)512 * 1024 * 1024) /* of one command: what servers take at the most (proto-max-bulk-len) */

/* How many bytes a command will be; 0: too many, or no argument at all. */
size_t near__resp_size(size_t argc, const near_bytes *argv);
void   near__resp_put(char *at, size_t argc, const near_bytes *argv); /* so many of them */

/* malloc'ed.  NEAR_OK, NEAR_ERR_TOO_LARGE (or no argument at all), NEAR_ERR_NOMEM. */
near_status near__resp_format(char **bytes, size_t *size, size_t argc, const near_bytes *argv);

#endif
