/*
 * See compress.h.  lz4 and zstd are known here only; without either this file still builds, and knows none.
 *
 * The bytes come from a server that others write to.  lz4 is bounded by the sizes that it is given; of a zstd frame the header is
 * read here, before the library sees it: the size must be stated and right, the window small, the frame alone.
 */
#include "l2/compress.h"

#include <string.h>

#ifdef NEAR_HAVE_LZ4
#include <lz4.h>
#endif
#ifdef NEAR_HAVE_ZSTD
#include <zstd.h>
#endif

bool
near__codec_is_built(enum near__codec codec)
{
    switch (codec) {
#ifdef NEAR_HAVE_LZ4
    case NEAR__CODEC_LZ4:
        return true;
#endif
#ifdef NEAR_HAVE_ZSTD
    case NEAR__CODEC_ZSTD:
        return true;
#endif
    default:
        return codec == NEAR__CODEC_NONE;
    }
}

enum near__codec
near__codec_fastest(void)
{
    if (near__codec_is_built(NEAR__CODEC_LZ4)) /* uncovered: which there are is the build's */
        return NEAR__CODEC_LZ4;
    /* uncovered: as above */
    return near__codec_is_built(NEAR__CODEC_ZSTD) ? NEAR__CODEC_ZSTD : NEAR__CODEC_NONE;
}

/* ---- lz4 */

#ifdef NEAR_HAVE_LZ4
#define LZ4_MOST 255 /* times: what one byte can stand for at most */

static size_t
lz4_pack(near_bytes raw, void *out, size_t room)
{
    int size;

    if (raw.size > LZ4_MAX_INPUT_SIZE || room > INT32_MAX)
        return 0;
    size = LZ4_compress_default(raw.data, out, (int)raw.size, (int)room);
    return size > 0 ? (size_t)size : 0;
}

static bool
lz4_is_plausible(near_bytes stored, size_t size)
{
    return size <= LZ4_MAX_INPUT_SIZE && size / LZ4_MOST <= stored.size; /* which is less than size */
}

static near_status
lz4_unpack(near_bytes stored, void *out, size_t size)
{
    return LZ4_decompress_safe(stored.data, out, (int)stored.size, (int)size) == (int)size ? NEAR_OK
                                                                                           : NEAR_ERR_INVALID;
}
#endif

/* ---- zstd */

#ifdef NEAR_HAVE_ZSTD
/* The library's own default: beyond it, speed falls faster than size. */
#define ZSTD_LEVEL ZSTD_CLEVEL_DEFAULT
/* What the format recommends every decoder to accept (RFC 8878, 3.1.1.1.2); our own frames stay far below. */
#define ZSTD_WINDOW_MOST ((uint64_t)8 << 20)

void *
near__packer_take(_Atomic(void *) *slots)
{
    /* acquire, pairs with the release in near__packer_keep(): who takes a context sees what was done with it */
    for (size_t i = 0; i < NEAR__PACKER_SLOTS; i++)
        if (atomic_load_explicit(&slots[i], memory_order_relaxed) != NULL) {
            void *context = atomic_exchange_explicit(&slots[i], NULL, memory_order_acquire);

            if (context != NULL)
                return context;
        }
    return NULL;
}

bool
near__packer_keep(_Atomic(void *) *slots, void *context)
{
    for (size_t i = 0; i < NEAR__PACKER_SLOTS; i++) {
        void *none = NULL;

        /* release, pairs with the acquire in near__packer_take() */
        if (atomic_compare_exchange_strong_explicit(&slots[i], &none, context, memory_order_release,
                                                    memory_order_relaxed))
            return true;
    }
    return false;
}

static size_t
zstd_pack(struct near__packer *packer, near_bytes raw, void *out, size_t room)
{
    ZSTD_CCtx *context = near__packer_take(packer->pack);
    size_t     size;

    if (context == NULL)
        context = ZSTD_createCCtx();
    if (context == NULL)
        return 0;
    size = ZSTD_compressCCtx(context, out, room, raw.data, raw.size, ZSTD_LEVEL);
    if (!near__packer_keep(packer->pack, context))
        ZSTD_freeCCtx(context);
    return ZSTD_isError(size) ? 0 : size;
}

/* Descriptor byte of a frame: bit 5 says that the window is the content and has no byte of its own, bit 3 is reserved; bits 0 and 1 that
 * there is a dictionary (l2/dictionary.h). */
static bool
zstd_is_plausible(near_bytes stored, size_t size)
{
    static const uint8_t magic[4] = { 0x28, 0xB5, 0x2F, 0xFD };
    const uint8_t       *at       = stored.data;
    uint64_t             base;

    if (stored.size < 6 || memcmp(at, magic, sizeof(magic)) != 0 || (at[4] & 0x08) != 0)
        return false;
    if (ZSTD_getFrameContentSize(stored.data, stored.size) != size)
        return false;
    if ((at[4] & 0x20) == 0) {
        if (at[5] >> 3 > 20) /* shifted no further than makes sense */
            return false;
        base = (uint64_t)1 << (10 + (at[5] >> 3));
        if (base + base / 8 * (at[5] & 7) > ZSTD_WINDOW_MOST)
            return false;
    }
    return ZSTD_findFrameCompressedSize(stored.data, stored.size) == stored.size;
}

static near_status
zstd_unpack(struct near__packer *packer, near_bytes stored, void *out, size_t size)
{
    ZSTD_DCtx *context = near__packer_take(packer->unpack);
    size_t     got;

    if (context == NULL)
        context = ZSTD_createDCtx();
    if (context == NULL)
        return NEAR_ERR_NOMEM;
    got = ZSTD_decompressDCtx(context, out, size, stored.data, stored.size);
    if (!near__packer_keep(packer->unpack, context))
        ZSTD_freeDCtx(context);
    return !ZSTD_isError(got) && got == size ? NEAR_OK : NEAR_ERR_INVALID;
}
#endif

/* ---- the doors */

void
near__packer_fini(struct near__packer *packer)
{
#ifdef NEAR_HAVE_ZSTD
    for (size_t i = 0; i < NEAR__PACKER_SLOTS; i++) {
        ZSTD_freeCCtx(packer->pack[i]);
        ZSTD_freeDCtx(packer->unpack[i]);
        packer->pack[i] = packer->unpack[i] = NULL;
    }
#else
    (void)packer;
#endif
}

size_t
near__pack(struct near__packer *packer, enum near__codec codec, near_bytes raw, void *out, size_t room)
{
    (void)packer, (void)raw, (void)out, (void)room;
    switch (codec) {
#ifdef NEAR_HAVE_LZ4
    case NEAR__CODEC_LZ4:
        return lz4_pack(raw, out, room);
#endif
#ifdef NEAR_HAVE_ZSTD
    case NEAR__CODEC_ZSTD:
        return zstd_pack(packer, raw, out, room);
#endif
    default:
        return 0;
    }
}

bool
near__unpack_is_plausible(enum near__codec codec, near_bytes stored, size_t size)
{
    if (stored.size == 0 || stored.size >= size)
        return false;
    switch (codec) {
#ifdef NEAR_HAVE_LZ4
    case NEAR__CODEC_LZ4:
        return lz4_is_plausible(stored, size);
#endif
#ifdef NEAR_HAVE_ZSTD
    case NEAR__CODEC_ZSTD:
        return zstd_is_plausible(stored, size);
#endif
    default:
        return false;
    }
}

near_status
near__unpack(struct near__packer *packer, enum near__codec codec, near_bytes stored, void *out, size_t size)
{
    (void)packer, (void)stored, (void)out, (void)size;
    switch (codec) {
#ifdef NEAR_HAVE_LZ4
    case NEAR__CODEC_LZ4:
        return lz4_unpack(stored, out, size);
#endif
#ifdef NEAR_HAVE_ZSTD
    case NEAR__CODEC_ZSTD:
        return zstd_unpack(packer, stored, out, size);
#endif
    default:
        return NEAR_ERR_INVALID;
    }
}

/* ---- the gain */

#define WHOLE       65536u
#define HELPS       (WHOLE / 10 * 9) /* an average up to here is worth the trouble */
#define WEIGHT      8
#define PROBE_EVERY 64

static size_t
class_of(size_t raw)
{
    size_t class = 0;

    for (raw >>= 8; raw > 0 && class < NEAR__GAIN_CLASSES - 1; raw >>= 2)
        class ++;
    return class;
}

bool
near__gain_try(struct near__gain *gain, size_t raw)
{
    size_t class = class_of(raw);

    if (atomic_load_explicit(&gain->share[class], memory_order_relaxed) <= HELPS)
        return true;
    return atomic_fetch_add_explicit(&gain->skipped[class], 1, memory_order_relaxed) % PROBE_EVERY ==
           PROBE_EVERY - 1;
}

void
near__gain_learn(struct near__gain *gain, size_t raw, size_t stored)
{
    _Atomic uint32_t *share  = &gain->share[class_of(raw)];
    int64_t           before = atomic_load_explicit(share, memory_order_relaxed);
    int64_t latest = stored != 0 && stored < raw ? (int64_t)((uint64_t)stored * WHOLE / raw) : WHOLE;

    /* two at once may lose one of the two: it is an average */
    atomic_store_explicit(share, (uint32_t)(before + (latest - before) / WEIGHT), memory_order_relaxed);
}

void
near__gain_forget(struct near__gain *gain)
{
    for (size_t i = 0; i < NEAR__GAIN_CLASSES; i++)
        atomic_store_explicit(&gain->share[i], 0, memory_order_relaxed);
}
