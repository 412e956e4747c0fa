/* See codec.h. */
#include "codec.h"

#include "read.h"
#include "snapshot.h"
#include "tier.h"

static near_status
make(near_cache *cache, near_bytes key, near_bytes bytes, struct near__object **object)
{
    const struct near__decoder *decoder = &cache->decoder;
    const near_codec           *codec   = &decoder->codec;
    near_bytes                  keep    = { NULL, 0 };
    void                       *made    = NULL;
    near_status                 status  = codec->decode(key, bytes, &made, decoder->ctx);
    size_t                      size;

    if (status != NEAR_OK)
        return status == NEAR_ERR_NOMEM ? status : NEAR_ERR_DECODE;
    if (made == NULL)
        return NEAR_ERR_DECODE;
    size = codec->size != NULL ? codec->size(made, decoder->ctx) : bytes.size;
    if (codec->flags & NEAR_KEEP_BYTES)
        keep = bytes;
    *object = near__object_new(made, size, codec->destroy, decoder->ctx, keep);
    if (*object != NULL)
        return NEAR_OK;
    if (codec->destroy != NULL)
        codec->destroy(made, decoder->ctx);
    return NEAR_ERR_NOMEM;
}

near_status
near__decode_bytes(near_cache *cache, near_bytes key, near_bytes bytes, struct near__object **object)
{
    near_status status;

    *object = NULL;
    status  = make(cache, key, bytes, object);
    near__count(cache, status == NEAR_OK ? NEAR__decodes : NEAR__decode_failures, 1);
    return status;
}

void
near__decode_asks(near_cache *cache, struct near__ask **asks, size_t n, bool loads)
{
    for (size_t i = 0; near__decodes(cache) && i < n; i++) {
        struct near__ask *ask = asks[i];
        near_status       status;

        if (ask->counter || !(ask->found == NEAR__FOUND || (loads && ask->found == NEAR__STALE)))
            continue;
        status = near__decode(cache, ask->entry);
        if (status == NEAR_OK)
            continue;
        near__entry_release(&ask->entry);
        ask->found  = loads && status == NEAR_ERR_DECODE ? NEAR__UNREADABLE : NEAR__UNREACHABLE;
        ask->status = status;
    }
}

near_status
near_cache_set_codec(near_cache *cache, const near_codec *codec, void *ctx)
{
    near_status status = near__cache_check(cache);
    near_codec  mine   = NEAR_CODEC_INIT;

    if (status != NEAR_OK)
        return status;
    near__options_take(&mine, sizeof(mine), codec);
    if (codec != NULL && mine.decode == NULL)
        return NEAR_ERR_INVALID;
    if (codec != NULL) {
        cache->decoder.codec = mine;
        cache->decoder.ctx   = ctx;
    }
    /* release: pairs with near__decodes().  What a snapshot has brought back meanwhile are bytes, and what it is about to bring has a fence
     * from before the flush, asks anew, or has waited for this */
    atomic_store_explicit(&cache->decoder.set, codec != NULL, memory_order_release);
    near__l1_flush(cache->l1);
    near__snap_codec(cache);
    return NEAR_OK;
}
