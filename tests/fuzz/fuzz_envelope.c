/*
 * Fuzz target: near__envelope_decode() over bytes that anybody may have written, and what a compressed payload becomes.
 *
 * Input: one byte n, n bytes of key, the rest is the stored entry.  Whatever it is, decoding stays inside it;
 * what it accepts points into it and encodes back to the very same bytes; a payload becomes as many bytes as the
 * header says or none at all.  An entry whose checksum is wrong is tried again with the right one: whoever writes
 * to L2 can compute it, a fuzzer can not.  No input may verify under a key it does not know; what is sealed with that key does, and
 * under another name does not.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "base/hash.h"
#include "base/le.h"
#include "l2/compress.h"
#include "l2/envelope.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

static bool
inside(near_bytes part, const uint8_t *bytes, size_t size)
{
    const uint8_t *at = part.data;

    return at >= bytes && at <= bytes + size && part.size <= (size_t)(bytes + size - at);
}

#define MOST ((uint32_t)1 << 20)

/* As client/tier.c does it. */
static void
check_payload(const struct near__envelope *e)
{
    static struct near__packer packer;
    enum near__codec           codec = e->flags & NEAR__ENVELOPE_LZ4 ? NEAR__CODEC_LZ4 : NEAR__CODEC_ZSTD;
    uint8_t                   *out;

    if ((e->flags & NEAR__ENVELOPE_COMPRESSED) == 0) {
        check(e->raw_size == e->payload.size);
        return;
    }
    check(e->payload.size > 0 && e->raw_size > e->payload.size);
    if (e->raw_size > MOST || !near__unpack_is_plausible(codec, e->payload, e->raw_size))
        return;
    out = malloc(e->raw_size);
    check(out != NULL);
    (void)near__unpack(&packer, codec, e->payload, out, e->raw_size);
    free(out);
}

static const struct near__mac *
keyed(void)
{
    static struct near__mac *mac;
    static const uint8_t     key[1][NEAR__MAC_KEY_SIZE] = { "a fuzzer does not know this one" };

    if (mac == NULL && near__mac_new(&mac, key, 1) == NEAR_ERR_NOMEM)
        check(false);
    return mac; /* NULL: a build without OpenSSL */
}

/* As client/tier.c does it: only what was decoded whole is looked at. */
static void
check_seal(struct near__envelope *e, const uint8_t *bytes, uint8_t *back, size_t size)
{
    static const near_bytes here = { "nc:things:k", 11 }, there = { "nc:others:k", 11 };
    struct near__envelope   again;

    if (keyed() == NULL)
        return;
    check(near__envelope_verify(e, keyed(), here, (near_bytes){ bytes, size }) == 0);
    if (!e->sealed)
        return;
    near__envelope_seal(e, keyed(), here, back);
    check(near__envelope_decode(&again, (near_bytes){ back, size }, e->key) == NEAR__ENVELOPE_OK);
    check(near__envelope_verify(&again, keyed(), here, (near_bytes){ back, size }) == 1);
    check(near__envelope_verify(&again, keyed(), there, (near_bytes){ back, size }) == 0);
}

static void
check_entry(uint8_t *bytes, uint8_t *back, size_t size, near_bytes key)
{
    struct near__envelope      e;
    enum near__envelope_result result = near__envelope_decode(&e, (near_bytes){ bytes, size }, key);

    if (result == NEAR__ENVELOPE_CORRUPT)
        return;
    check(inside(e.key, bytes, size) && inside(e.payload, bytes, size));
    check(near__bytes_equal(e.key, key) == (result == NEAR__ENVELOPE_OK));
    check(near__envelope_size(&e) == size);
    near__envelope_encode(&e, back);
    check(memcmp(back, bytes, size) == 0);
    check_payload(&e);
    check_seal(&e, bytes, back, size);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    near_bytes key = { NULL, 0 };
    uint8_t   *bytes, *back;

    if (size > 0) {
        key.size = data[0] < size ? data[0] : size - 1;
        key.data = data + 1;
        data += 1 + key.size;
        size -= 1 + key.size;
    }
    bytes = malloc(size + 1);
    back  = malloc(size + 1);
    check(bytes != NULL && back != NULL);
    memcpy(bytes, data, size);
    check_entry(bytes, back, size, key);
    if (size >= NEAR__ENVELOPE_HEADER) {
        near_bytes head = { bytes, 56 };
        near_bytes body = { bytes + NEAR__ENVELOPE_HEADER, size - NEAR__ENVELOPE_HEADER };

        near__le64_put(bytes + 56, near__hash_fixed2(head, body));
        check_entry(bytes, back, size, key);
    }
    free(bytes);
    free(back);
    return 0;
}
