/*
 * Writing and reading the entry format of envelope.h.  Pure functions over the caller's bytes: no state, no
 * allocation.
 *
 * What is read comes from a server that others write to, so no field is used before it was checked, and
 * lengths are added in 64 bits, where two 32-bit sizes and the header cannot overflow.
 */
#include "l2/envelope.h"

#include "base/hash.h"
#include "base/le.h"

#include <string.h>

enum {
    AT_MAGIC      = 0,
    AT_VERSION    = 4,
    AT_FLAGS      = 5,
    AT_TAGS       = 6,
    AT_STAMP      = 8,
    AT_SOFT       = 16,
    AT_HARD       = 24,
    AT_COST       = 32,
    AT_KEY_SIZE   = 36,
    AT_RAW_SIZE   = 40,
    AT_SIZE       = 44,
    AT_GENERATION = 48,
    AT_CHECKSUM   = 56,
    AT_MAC        = NEAR__ENVELOPE_HEADER
};

#define KNOWN_FLAGS                                                                                          \
    (NEAR__ENVELOPE_NEGATIVE | NEAR__ENVELOPE_LEASE | NEAR__ENVELOPE_COMPRESSED | NEAR__ENVELOPE_MARK)

/* Flag 32 says how the bytes lie; in a near__envelope it is `sealed`. */
#define SEALED 0x20u

static const uint8_t magic[4] = { 'N', 'r', 'C', 1 };

/* Where the key begins. */
static size_t
head_size(bool sealed)
{
    return sealed ? NEAR__ENVELOPE_MOST : NEAR__ENVELOPE_HEADER;
}

size_t
near__envelope_size(const struct near__envelope *envelope)
{
    size_t tags = envelope->tags != 0 ? NEAR__ENVELOPE_CLOCK + envelope->names.size : 0;

    return head_size(envelope->sealed) + envelope->key.size + tags + envelope->payload.size;
}

/* Everything but the checksum itself. */
static uint64_t
checksum(const uint8_t *entry, size_t size)
{
    near_bytes head = { entry, AT_CHECKSUM };
    near_bytes body = { entry + NEAR__ENVELOPE_HEADER, size - NEAR__ENVELOPE_HEADER };

    return near__hash_fixed2(head, body);
}

static uint8_t *
append(uint8_t *at, near_bytes bytes)
{
    if (bytes.size > 0 && bytes.data != at)
        memcpy(at, bytes.data, bytes.size);
    return at + bytes.size;
}

/* All but MAC and checksum; the size. */
static size_t
write_out(const struct near__envelope *envelope, uint8_t *out)
{
    uint32_t raw = (envelope->flags & NEAR__ENVELOPE_COMPRESSED) != 0 ? envelope->raw_size
                                                                      : (uint32_t)envelope->payload.size;
    uint8_t *end;

    memcpy(out + AT_MAGIC, magic, sizeof(magic));
    out[AT_VERSION] = NEAR__ENVELOPE_VERSION;
    out[AT_FLAGS]   = (uint8_t)(envelope->flags | (envelope->sealed ? SEALED : 0));
    near__le16_put(out + AT_TAGS, (uint16_t)envelope->tags);
    near__le64_put(out + AT_STAMP, envelope->stamp);
    near__le64_put(out + AT_SOFT, (uint64_t)envelope->soft_expiry_ms);
    near__le64_put(out + AT_HARD, (uint64_t)envelope->hard_expiry_ms);
    near__le32_put(out + AT_COST, envelope->cost_us);
    near__le32_put(out + AT_KEY_SIZE, (uint32_t)envelope->key.size);
    near__le32_put(out + AT_RAW_SIZE, raw);
    near__le32_put(out + AT_SIZE, (uint32_t)envelope->payload.size);
    near__le64_put(out + AT_GENERATION, envelope->generation);
    end = append(out + head_size(envelope->sealed), envelope->key);
    if (envelope->tags != 0) {
        near__le64_put(end, envelope->lineage);
        near__le64_put(end + 8, envelope->moment);
        end = append(end + NEAR__ENVELOPE_CLOCK, envelope->names);
    }
    end = append(end, envelope->payload);
    return (size_t)(end - out);
}

void
near__envelope_encode(const struct near__envelope *envelope, uint8_t *out)
{
    size_t size = write_out(envelope, out);

    if (envelope->sealed)
        memcpy(out + AT_MAC, envelope->mac, NEAR__MAC_SIZE);
    near__le64_put(out + AT_CHECKSUM, checksum(out, size));
}

/* What a MAC covers. */
static near_bytes
head_of(const uint8_t *entry)
{
    return (near_bytes){ entry, AT_CHECKSUM };
}

static near_bytes
body_of(const uint8_t *entry, size_t size)
{
    return (near_bytes){ entry + NEAR__ENVELOPE_MOST, size - NEAR__ENVELOPE_MOST };
}

void
near__envelope_seal(const struct near__envelope *envelope, const struct near__mac *mac, near_bytes place,
                    uint8_t *out)
{
    size_t size = write_out(envelope, out);

    near__mac_sign(mac, place, head_of(out), body_of(out, size), out + AT_MAC);
    near__le64_put(out + AT_CHECKSUM, checksum(out, size));
}

unsigned
near__envelope_verify(const struct near__envelope *envelope, const struct near__mac *mac, near_bytes place,
                      near_bytes stored)
{
    if (!envelope->sealed)
        return 0;
    return near__mac_verify(mac, place, head_of(stored.data), body_of(stored.data, stored.size),
                            envelope->mac);
}

/* One algorithm at most, of a value, and it has made it smaller; or none, and nothing has changed. */
static bool
sizes_are_sound(unsigned flags, uint32_t raw, uint32_t stored)
{
    unsigned algorithm = flags & NEAR__ENVELOPE_COMPRESSED;

    if ((flags & NEAR__ENVELOPE_MARK) != 0 && flags != NEAR__ENVELOPE_MARK)
        return false;
    if (algorithm == 0)
        return raw == stored && ((flags & NEAR__ENVELOPE_NEGATIVE) == 0 || stored == 0);
    return algorithm != NEAR__ENVELOPE_COMPRESSED && flags == algorithm && stored > 0 && stored < raw;
}

/* Whether the header is one of ours and its sizes end exactly where the bytes do. */
static bool
header_is_sound(const uint8_t *at, size_t size)
{
    uint32_t raw, stored;
    uint64_t sum;
    bool     sealed;

    if (size < NEAR__ENVELOPE_HEADER || memcmp(at + AT_MAGIC, magic, sizeof(magic)) != 0)
        return false;
    if (at[AT_VERSION] != NEAR__ENVELOPE_VERSION || (at[AT_FLAGS] & ~(KNOWN_FLAGS | SEALED)) != 0)
        return false;
    sealed = (at[AT_FLAGS] & SEALED) != 0;
    if (near__le16_get(at + AT_TAGS) > NEAR__ENVELOPE_TAGS)
        return false;
    raw    = near__le32_get(at + AT_RAW_SIZE);
    stored = near__le32_get(at + AT_SIZE);
    if (!sizes_are_sound(at[AT_FLAGS] & ~SEALED, raw, stored))
        return false;
    sum = (uint64_t)head_size(sealed) + near__le32_get(at + AT_KEY_SIZE) + stored;
    return near__le16_get(at + AT_TAGS) == 0 ? sum == size : sum + NEAR__ENVELOPE_CLOCK < size;
}

/* Whether the names fill their place exactly. */
static bool
names_are_sound(near_bytes names, unsigned n)
{
    const uint8_t *bytes = names.data;
    size_t         at    = 0;

    for (; n > 0 && at < names.size && bytes[at] > 0; n--)
        at += (size_t)1 + bytes[at];
    return n == 0 && at == names.size;
}

/* What lies between key and payload; false: it makes no sense. */
static bool
take_tags(struct near__envelope *envelope, const uint8_t *at, size_t size)
{
    envelope->tags = near__le16_get(at + AT_TAGS);
    if (envelope->tags == 0)
        return true;
    at += head_size(envelope->sealed) + envelope->key.size;
    envelope->lineage = near__le64_get(at);
    envelope->moment  = near__le64_get(at + 8);
    envelope->names =
        (near_bytes){ at + NEAR__ENVELOPE_CLOCK, size - head_size(envelope->sealed) - envelope->key.size -
                                                     envelope->payload.size - NEAR__ENVELOPE_CLOCK };
    return names_are_sound(envelope->names, envelope->tags);
}

enum near__envelope_result
near__envelope_decode(struct near__envelope *envelope, near_bytes stored, near_bytes key)
{
    const uint8_t *at = stored.data;

    memset(envelope, 0, sizeof(*envelope));
    if (!header_is_sound(at, stored.size))
        return NEAR__ENVELOPE_CORRUPT;
    if (near__le64_get(at + AT_CHECKSUM) != checksum(at, stored.size))
        return NEAR__ENVELOPE_CORRUPT;
    envelope->flags          = at[AT_FLAGS] & ~SEALED;
    envelope->sealed         = (at[AT_FLAGS] & SEALED) != 0;
    envelope->stamp          = near__le64_get(at + AT_STAMP);
    envelope->soft_expiry_ms = (int64_t)near__le64_get(at + AT_SOFT);
    envelope->hard_expiry_ms = (int64_t)near__le64_get(at + AT_HARD);
    envelope->cost_us        = near__le32_get(at + AT_COST);
    envelope->generation     = near__le64_get(at + AT_GENERATION);
    envelope->key = (near_bytes){ at + head_size(envelope->sealed), near__le32_get(at + AT_KEY_SIZE) };
    envelope->payload.size = near__le32_get(at + AT_SIZE);
    envelope->raw_size     = near__le32_get(at + AT_RAW_SIZE);
    envelope->payload.data = at + stored.size - envelope->payload.size;
    if (envelope->sealed)
        memcpy(envelope->mac, at + AT_MAC, NEAR__MAC_SIZE);
    if (!take_tags(envelope, at, stored.size))
        return NEAR__ENVELOPE_CORRUPT;
    return near__bytes_equal(envelope->key, key) ? NEAR__ENVELOPE_OK : NEAR__ENVELOPE_WRONG_KEY;
}
