/* See dictionary.h. */
#include "l2/dictionary.h"

#include "base/hash.h"
#include "base/le.h"

#include <stdlib.h>
#include <string.h>

#ifdef NEAR_HAVE_ZSTD
#include <zstd.h>
#endif

enum {
    AT_ID   = 4, /* behind the magic number (RFC 8878, 5) */
    CONTENT = 8
};
/* What lies below and above is reserved by the format for registered dictionaries. */
#define ID_LEAST UINT32_C(32768)
#define ID_END   (UINT32_C(1) << 31)

uint32_t
near__dictionary_identify(near_bytes bytes)
{
    static const uint8_t magic[4] = { 0x37, 0xA4, 0x30, 0xEC };
    const uint8_t       *at       = bytes.data;
    near_bytes           content;

    if (bytes.size < NEAR__DICTIONARY_LEAST || bytes.size > NEAR__DICTIONARY_MOST ||
        memcmp(at, magic, sizeof(magic)) != 0)
        return 0;
    content = (near_bytes){ at + CONTENT, bytes.size - CONTENT };
    return ID_LEAST + (uint32_t)(near__hash_fixed(content) % (ID_END - ID_LEAST));
}

uint32_t
near__dictionary_seal(uint8_t *bytes, size_t size)
{
    uint32_t id = near__dictionary_identify((near_bytes){ bytes, size });

    if (id != 0)
        near__le32_put(bytes + AT_ID, id);
    return id;
}

#ifdef NEAR_HAVE_ZSTD

#define LEVEL ZSTD_CLEVEL_DEFAULT /* as without */

struct near__dictionary {
    _Atomic unsigned refs;
    uint32_t         id;
    ZSTD_DDict      *unpack;
    ZSTD_CDict      *pack; /* NULL before near__dictionary_prepare() */
    size_t           size;
    uint8_t          bytes[];
};

near_status
near__dictionary_new(near_bytes bytes, uint32_t id, struct near__dictionary **pdictionary)
{
    struct near__dictionary *dictionary;

    *pdictionary = NULL;
    if (id == 0 || near__dictionary_identify(bytes) != id ||
        near__le32_get((const uint8_t *)bytes.data + AT_ID) != id)
        return NEAR_ERR_INVALID;
    dictionary = calloc(1, sizeof(*dictionary) + bytes.size);
    if (dictionary == NULL)
        return NEAR_ERR_NOMEM;
    atomic_init(&dictionary->refs, 1);
    dictionary->id   = id;
    dictionary->size = bytes.size;
    memcpy(dictionary->bytes, bytes.data, bytes.size);
    /* NULL for bytes whose tables make no sense, and without memory: it does not say which */
    dictionary->unpack = ZSTD_createDDict(dictionary->bytes, dictionary->size);
    if (dictionary->unpack == NULL || ZSTD_getDictID_fromDDict(dictionary->unpack) != id) {
        near__dictionary_release(dictionary);
        return NEAR_ERR_INVALID;
    }
    *pdictionary = dictionary;
    return NEAR_OK;
}

struct near__dictionary *
near__dictionary_ref(struct near__dictionary *dictionary)
{
    atomic_fetch_add_explicit(&dictionary->refs, 1, memory_order_relaxed); /* from one who holds one */
    return dictionary;
}

void
near__dictionary_release(struct near__dictionary *dictionary)
{
    /* acq_rel: the last one sees what the others did before they let go */
    if (dictionary == NULL || atomic_fetch_sub_explicit(&dictionary->refs, 1, memory_order_acq_rel) != 1)
        return;
    ZSTD_freeDDict(dictionary->unpack);
    ZSTD_freeCDict(dictionary->pack);
    free(dictionary);
}

uint32_t
near__dictionary_id(const struct near__dictionary *dictionary)
{
    return dictionary->id;
}

near_bytes
near__dictionary_bytes(const struct near__dictionary *dictionary)
{
    return (near_bytes){ dictionary->bytes, dictionary->size };
}

near_status
near__dictionary_prepare(struct near__dictionary *dictionary)
{
    if (dictionary->pack == NULL)
        dictionary->pack = ZSTD_createCDict(dictionary->bytes, dictionary->size, LEVEL);
    return dictionary->pack != NULL ? NEAR_OK : NEAR_ERR_NOMEM;
}

uint32_t
near__dictionary_needed(enum near__codec codec, near_bytes stored)
{
    return codec == NEAR__CODEC_ZSTD ? ZSTD_getDictID_fromFrame(stored.data, stored.size) : 0;
}

size_t
near__dictionary_pack(struct near__packer *packer, const struct near__dictionary *dictionary, near_bytes raw,
                      void *out, size_t room)
{
    ZSTD_CCtx *context = near__packer_take(packer->pack);
    size_t     size;

    if (context == NULL)
        context = ZSTD_createCCtx();
    if (context == NULL)
        return 0;
    size = ZSTD_CCtx_refCDict(context, dictionary->pack);
    if (!ZSTD_isError(size))
        size = ZSTD_compress2(context, out, room, raw.data, raw.size);
    /* the next one may be without: it refers to nothing that may go */
    ZSTD_CCtx_reset(context, ZSTD_reset_session_and_parameters);
    if (!near__packer_keep(packer->pack, context))
        ZSTD_freeCCtx(context);
    return ZSTD_isError(size) ? 0 : size;
}

near_status
near__dictionary_unpack(struct near__packer *packer, const struct near__dictionary *dictionary,
                        near_bytes stored, void *out, size_t size)
{
    ZSTD_DCtx *context = near__packer_take(packer->unpack);
    size_t     got;

    if (context == NULL)
        context = ZSTD_createDCtx();
    if (context == NULL)
        return NEAR_ERR_NOMEM;
    got = ZSTD_decompress_usingDDict(context, out, size, stored.data, stored.size, dictionary->unpack);
    ZSTD_DCtx_reset(context, ZSTD_reset_session_and_parameters);
    if (!near__packer_keep(packer->unpack, context))
        ZSTD_freeDCtx(context);
    return !ZSTD_isError(got) && got == size ? NEAR_OK : NEAR_ERR_INVALID;
}

#else

near_status
near__dictionary_new(near_bytes bytes, uint32_t id, struct near__dictionary **dictionary)
{
    (void)bytes, (void)id;
    *dictionary = NULL;
    return NEAR_ERR_UNSUPPORTED;
}

struct near__dictionary *
near__dictionary_ref(struct near__dictionary *dictionary)
{
    return dictionary;
}

void
near__dictionary_release(struct near__dictionary *dictionary)
{
    (void)dictionary;
}

uint32_t
near__dictionary_id(const struct near__dictionary *dictionary)
{
    (void)dictionary;
    return 0;
}

near_bytes
near__dictionary_bytes(const struct near__dictionary *dictionary)
{
    (void)dictionary;
    return (near_bytes){ NULL, 0 };
}

near_status
near__dictionary_prepare(struct near__dictionary *dictionary)
{
    (void)dictionary;
    return NEAR_ERR_UNSUPPORTED;
}

uint32_t
near__dictionary_needed(enum near__codec codec, near_bytes stored)
{
    (void)codec, (void)stored;
    return 0;
}

size_t
near__dictionary_pack(struct near__packer *packer, const struct near__dictionary *dictionary, near_bytes raw,
                      void *out, size_t room)
{
    (void)packer, (void)dictionary, (void)raw, (void)out, (void)room;
    return 0;
}

near_status
near__dictionary_unpack(struct near__packer *packer, const struct near__dictionary *dictionary,
                        near_bytes stored, void *out, size_t size)
{
    (void)packer, (void)dictionary, (void)stored, (void)out, (void)size;
    return NEAR_ERR_INVALID;
}

#endif
