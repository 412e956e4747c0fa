/*
 * HMAC-SHA-256 out of OpenSSL's SHA-256.  See mac.h.
 *
 * The two halves of the key are hashed once, when it is made; a MAC begins with copies of these states on the stack.  For that the plain
 * functions are used: OpenSSL 3 prefers EVP_MAC, whose every MAC allocates, which can fail, and which takes 1.3 to 2.4 times as long
 * for 300 bytes.  They are asked for as of version 1.1, which knows them as they are; a library built without them has
 * no MAC here.
 */
#define OPENSSL_API_COMPAT 0x10100000L

#include "l2/mac.h"

#include "base/le.h"

#include <stdlib.h>
#include <string.h>

#ifdef HAVE_OPENSSL
#include <openssl/sha.h>
#endif

#if defined(HAVE_OPENSSL) && !defined(OPENSSL_NO_DEPRECATED_3_0)

#define BLOCK 64 /* of SHA-256 */

struct near__mac {
    size_t n;
    struct keyed {
        SHA256_CTX inner, outer; /* after the first block, which is the key's */
    } keys[NEAR__MAC_KEYS];
};

static void
begin(SHA256_CTX *ctx, const uint8_t key[NEAR__MAC_KEY_SIZE], uint8_t pad)
{
    uint8_t block[BLOCK];

    memset(block, pad, sizeof(block));
    for (size_t i = 0; i < NEAR__MAC_KEY_SIZE; i++)
        block[i] ^= key[i];
    SHA256_Init(ctx);
    SHA256_Update(ctx, block, sizeof(block));
    explicit_bzero(block, sizeof(block));
}

near_status
near__mac_new(struct near__mac **pmac, const uint8_t (*keys)[NEAR__MAC_KEY_SIZE], size_t n)
{
    struct near__mac *mac = calloc(1, sizeof(*mac));

    *pmac = mac;
    if (mac == NULL)
        return NEAR_ERR_NOMEM;
    for (; mac->n < n && mac->n < NEAR__MAC_KEYS; mac->n++) {
        begin(&mac->keys[mac->n].inner, keys[mac->n], 0x36);
        begin(&mac->keys[mac->n].outer, keys[mac->n], 0x5c);
    }
    return NEAR_OK;
}

void
near__mac_free(struct near__mac **mac)
{
    if (*mac == NULL)
        return;
    explicit_bzero(*mac, sizeof(**mac));
    free(*mac);
    *mac = NULL;
}

static void
update(SHA256_CTX *ctx, near_bytes bytes)
{
    if (bytes.size > 0)
        SHA256_Update(ctx, bytes.data, bytes.size);
}

static void
compute(const struct keyed *keyed, near_bytes place, near_bytes head, near_bytes body,
        uint8_t digest[SHA256_DIGEST_LENGTH])
{
    uint8_t    front[16] = "NrC-L2\x01";
    SHA256_CTX ctx       = keyed->inner;

    near__le64_put(front + 8, place.size);
    SHA256_Update(&ctx, front, sizeof(front));
    update(&ctx, place);
    update(&ctx, head);
    update(&ctx, body);
    SHA256_Final(digest, &ctx);
    ctx = keyed->outer;
    SHA256_Update(&ctx, digest, SHA256_DIGEST_LENGTH);
    SHA256_Final(digest, &ctx);
    explicit_bzero(&ctx, sizeof(ctx)); /* what is left of it would sign any message that begins so */
}

void
near__mac_sign(const struct near__mac *mac, near_bytes place, near_bytes head, near_bytes body,
               uint8_t out[NEAR__MAC_SIZE])
{
    uint8_t digest[SHA256_DIGEST_LENGTH];

    compute(&mac->keys[0], place, head, body, digest);
    memcpy(out, digest, NEAR__MAC_SIZE);
}

unsigned
near__mac_verify(const struct near__mac *mac, near_bytes place, near_bytes head, near_bytes body,
                 const uint8_t given[NEAR__MAC_SIZE])
{
    for (unsigned i = 0; i < mac->n; i++) {
        uint8_t  digest[SHA256_DIGEST_LENGTH];
        unsigned differ = 0;

        compute(&mac->keys[i], place, head, body, digest);
        for (size_t at = 0; at < NEAR__MAC_SIZE; at++)
            differ |= (unsigned)(digest[at] ^ given[at]);
        if (differ == 0)
            return i + 1;
    }
    return 0;
}

#else

near_status
near__mac_new(struct near__mac **mac, const uint8_t (*keys)[NEAR__MAC_KEY_SIZE], size_t n)
{
    (void)keys, (void)n;
    *mac = NULL;
    return NEAR_ERR_UNSUPPORTED;
}

/* There is none, so nobody gets here. */

void
near__mac_free(struct near__mac **mac)
{
    (void)mac;
}

void
near__mac_sign(const struct near__mac *mac, near_bytes place, near_bytes head, near_bytes body,
               uint8_t out[NEAR__MAC_SIZE])
{
    (void)mac, (void)place, (void)head, (void)body;
    memset(out, 0, NEAR__MAC_SIZE);
}

unsigned
near__mac_verify(const struct near__mac *mac, near_bytes place, near_bytes head, near_bytes body,
                 const uint8_t given[NEAR__MAC_SIZE])
{
    (void)mac, (void)place, (void)head, (void)body, (void)given;
    return 0;
}

#endif
