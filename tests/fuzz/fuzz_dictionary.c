/*
 * Fuzz target: bytes that L2 has under a dictionary's key, and what is compressed with them (l2/dictionary.h).
 *
 * Input: two bytes, little-endian, that say how long a payload is; the payload; the rest is the dictionary.  Its id is sealed into it first, for
 * whoever writes to L2 can compute that, and a fuzzer can not.  Whatever it is: with any other id, and with a bit turned over, it is refused; what
 * is accepted has the bytes that were given, gives every sample back as it was, and makes of any payload as many bytes as were announced, or none.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "l2/dictionary.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

#define ROOM ((size_t)64 << 10) /* what a payload may announce here */

static void
check_refused(const uint8_t *bytes, size_t size, uint32_t id)
{
    struct near__dictionary *dictionary;

    check(near__dictionary_new((near_bytes){ bytes, size }, id, &dictionary) != NEAR_OK);
    check(dictionary == NULL);
}

/* What it made is told apart from what it did not by a byte behind the end. */
static void
check_payload(struct near__packer *packer, const struct near__dictionary *dictionary, near_bytes payload)
{
    static uint8_t out[ROOM + 1];
    size_t         size = payload.size * 16 < ROOM ? payload.size * 16 : ROOM;

    (void)near__dictionary_needed(NEAR__CODEC_ZSTD, payload);
    out[size] = 0xa5;
    (void)near__dictionary_unpack(packer, dictionary, payload, out, size);
    check(out[size] == 0xa5);
}

static void
check_sample(struct near__packer *packer, const struct near__dictionary *dictionary, near_bytes sample)
{
    static uint8_t packed[2 * ROOM], back[ROOM];
    size_t         size = near__dictionary_pack(packer, dictionary, sample, packed, sizeof(packed));

    if (size == 0)
        return; /* its tables do not do for this one */
    check(near__dictionary_needed(NEAR__CODEC_ZSTD, (near_bytes){ packed, size }) ==
          near__dictionary_id(dictionary));
    check(near__dictionary_unpack(packer, dictionary, (near_bytes){ packed, size }, back, sample.size) ==
          NEAR_OK);
    check(memcmp(back, sample.data, sample.size) == 0);
    check_payload(packer, dictionary, (near_bytes){ packed, size - 1 });
}

static void
check_dictionary(struct near__dictionary *dictionary, near_bytes bytes, near_bytes payload)
{
    static struct near__packer packer;

    check(near__bytes_equal(near__dictionary_bytes(dictionary), bytes));
    check_payload(&packer, dictionary, payload);
    if (near__dictionary_prepare(dictionary) == NEAR_OK && payload.size > 0)
        check_sample(&packer, dictionary, payload);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct near__dictionary *dictionary;
    near_bytes               payload = { NULL, 0 };
    uint8_t                 *bytes;
    uint32_t                 id;

    if (size >= 2) {
        payload = (near_bytes){ data + 2, data[0] | (size_t)data[1] << 8 };
        data += 2;
        size -= 2;
        payload.size = payload.size < size ? payload.size : size;
        data += payload.size;
        size -= payload.size;
    }
    bytes = malloc(size + 1);
    check(bytes != NULL);
    memcpy(bytes, data, size);
    id = near__dictionary_seal(bytes, size);
    check(near__dictionary_identify((near_bytes){ bytes, size }) == id);
    check_refused(bytes, size, 0);
    check_refused(bytes, size, id + 1);
    if (id != 0 && near__dictionary_new((near_bytes){ bytes, size }, id, &dictionary) == NEAR_OK) {
        check_dictionary(dictionary, (near_bytes){ bytes, size }, payload);
        near__dictionary_release(dictionary);
    }
    if (id != 0) {
        bytes[size - 1 - (payload.size % (size - 8))] ^= 1; /* behind the id */
        check_refused(bytes, size, id);
    }
    free(bytes);
    return 0;
}
