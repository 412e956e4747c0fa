/*
 * Compressed payloads: lz4 and zstd, whichever this build has, and the judgement of when it helps.
 *
 * Both ways are one pass between two pieces of memory of known size: nothing is allocated for what compressed bytes claim to become.
 * Whoever decompresses has compared the claim with a limit of his own, asked near__unpack_is_plausible(), and then made room for
 * exactly that.
 *
 * near__packer  contexts of zstd, which are large, for the next caller; one per client.  No lock: a slot is emptied and filled by
 *               one atomic exchange.
 * near__gain    what compression has done for a cache's values so far; one per cache.  Relaxed numbers of no consequence but speed.
 */
#ifndef NEAR_L2_COMPRESS_H
#define NEAR_L2_COMPRESS_H

#include "base/base.h"

#include <stdatomic.h>

enum near__codec { NEAR__CODEC_NONE, NEAR__CODEC_LZ4, NEAR__CODEC_ZSTD };

bool near__codec_is_built(enum near__codec codec);
/* The faster one of what this build has; NONE. */
enum near__codec near__codec_fastest(void);

#define NEAR__PACKER_SLOTS 4 /* of either kind; what does not fit is freed */
struct near__packer {
    _Atomic(void *) pack[NEAR__PACKER_SLOTS], unpack[NEAR__PACKER_SLOTS]; /* all zero: none yet */
};
void near__packer_fini(struct near__packer *packer);
/* A context that somebody has left, of packer->pack or packer->unpack; NULL: there is none. */
void *near__packer_take(_Atomic(void *) *slots);
/* Leave one.  False: there is no room, it is still the caller's. */
bool near__packer_keep(_Atomic(void *) *slots, void *context);

/* Compress `raw` into `out`.  The bytes it took; 0: it does not fit into `room`, or there was no memory. */
size_t near__pack(struct near__packer *packer, enum near__codec codec, near_bytes raw, void *out,
                  size_t room);
/* Whether `stored` can be what near__pack() made of `size` bytes, as far as that is seen without unpacking. */
bool near__unpack_is_plausible(enum near__codec codec, near_bytes stored, size_t size);
/* Decompress into exactly `size` bytes what needs no dictionary.  NEAR_OK; NEAR_ERR_INVALID: it is not that; NEAR_ERR_NOMEM. */
near_status near__unpack(struct near__packer *packer, enum near__codec codec, near_bytes stored, void *out,
                         size_t size);

/*
 * Whether to try.  For each class of sizes (below 256 bytes, and a factor of four each) the share stored / raw is averaged over the values tried, the
 * latest counting an eighth; a value that did not shrink to NEAR__GAIN_ROOM counts as 1.  While the average is above nine tenths,
 * only every 64th value of the class is tried: so a cache whose values do not shrink stops paying after some 18 of them, and one
 * whose values begin to shrink again finds out by the second one tried.
 */
#define NEAR__GAIN_CLASSES 8
struct near__gain {
    _Atomic uint32_t share[NEAR__GAIN_CLASSES];   /* 65536: as large as before.  0 at first */
    _Atomic uint32_t skipped[NEAR__GAIN_CLASSES]; /* values not tried */
};
/* The most that a compressed form may take, to be worth keeping: every read pays for it. */
#define NEAR__GAIN_ROOM(raw) ((raw) - (raw) / 10)
bool near__gain_try(struct near__gain *gain, size_t raw);
/* All that was learnt is void. */
void near__gain_forget(struct near__gain *gain);
/* `stored` 0: it did not shrink enough. */
void near__gain_learn(struct near__gain *gain, size_t raw, size_t stored);

#endif
