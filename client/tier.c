/*
 * L2 in the client's terms.  See tier.h.
 *
 * Batches are cut to NEAR_L2_READS and NEAR_L2_BATCH.  The deliver callback turns borrowed stored bytes straight into an L1 entry: one
 * copy, or one decompression, of a size that was compared with l2.max_value before room was made for it.
 *
 * l2.envelope = none ("bare"): what lies in L2 is the value, so nothing can be told by looking at it, and no marker may lie in its
 * place.  The lease is always the one beside.  A fill adds, it never replaces; before it, it looks whether its lease still lives, and
 * after it gives the lease back under its stamp: if that finds the lease gone, a removal has voided it meanwhile, and the fill is taken
 * out again.  A removal voids the lease first (near__tier_void_leases).
 */
#include "tier.h"

#include <stdlib.h>
#include <string.h>

#include "base/visible.h"
#include "flight.h"
#include "generation.h"
#include "l2/envelope.h"
#include "recovery.h"
#include "tags.h"

/* ---- wire keys
 *
 *   prefix name ':' key              where the backend can take the key
 *   prefix name '#' 32 hex digits    its XXH3-128 where it cannot; the entry holds the full key, which is compared
 *   prefix name '!' key              the lease beside an entry that is being refreshed: so the entry stays in use meanwhile
 *   prefix name '%' 32 hex digits    the same for a hashed key
 *   prefix name '@generation'        the generation
 *   prefix name '@tags'              the clock of its tags
 *   prefix name '@dictionary'        the id of the newest dictionary
 *   prefix name '$' 8 hex digits     the dictionary with that id
 *   prefix name '=' tag              a tag's last invalidation
 *   prefix name '~' 32 hex digits    the same for a tag whose name cannot be a key
 * A cache's name holds none of : # ! % @ = ~ $, so they cannot meet. */

#define HASHED_KEY     (1 + 32)
#define GENERATION_KEY "@generation"
#define CLOCK_KEY      "@tags"
#define NEWEST_KEY     "@dictionary"

static bool
takes_key(const near_cache *cache, near_bytes key)
{
    const struct near_l2_traits *traits = &cache->client->traits;

    return cache->prefix_size + 1 + key.size <= traits->max_key &&
           (traits->binary_keys || near__bytes_visible(key));
}

near_status
near__wire_open(struct near__wire *wire, const near_cache *cache, size_t n, size_t key_bytes)
{
    size_t items = n * sizeof(struct near_l2_item);
    size_t keys  = n * (cache->prefix_size + HASHED_KEY + sizeof(GENERATION_KEY)) + key_bytes;
    char  *block = items + keys <= sizeof(wire->inside) ? wire->inside : malloc(items + keys);

    wire->n      = 0;
    wire->values = NULL;
    wire->items  = (struct near_l2_item *)(void *)block;
    if (block == NULL)
        return NEAR_ERR_NOMEM;
    memset(wire->items, 0, items);
    wire->keys = block + items;
    return NEAR_OK;
}

void
near__wire_close(struct near__wire *wire)
{
    free(wire->values);
    if (wire->items != (struct near_l2_item *)(void *)wire->inside)
        free(wire->items);
    wire->items  = NULL;
    wire->values = NULL;
}

bool
near__wire_make_room(struct near__wire *wire, size_t bytes)
{
    wire->values = wire->values_end = malloc(bytes > 0 ? bytes : 1);
    return wire->values != NULL;
}

static char *
put(char *at, const void *data, size_t size)
{
    if (size > 0)
        memcpy(at, data, size);
    return at + size;
}

static struct near_l2_item *
add_item(struct near__wire *wire, const near_cache *cache, char *end)
{
    struct near_l2_item *item = &wire->items[wire->n++];

    item->key   = (near_bytes){ wire->keys, (size_t)(end - wire->keys) };
    item->plain = cache->bare;
    wire->keys  = end;
    return item;
}

static struct near_l2_item *
add_key(struct near__wire *wire, const near_cache *cache, near_bytes key, char plain, char hashed)
{
    static const char hex[] = "0123456789abcdef";
    uint8_t           digest[16];
    char             *at = put(wire->keys, cache->prefix, cache->prefix_size);

    if (takes_key(cache, key)) {
        *at++ = plain;
        at    = put(at, key.data, key.size);
        return add_item(wire, cache, at);
    }
    near__hash_wide(key, digest);
    *at++ = hashed;
    for (size_t i = 0; i < sizeof(digest); i++) {
        *at++ = hex[digest[i] >> 4];
        *at++ = hex[digest[i] & 15];
    }
    return add_item(wire, cache, at);
}

struct near_l2_item *
near__wire_add(struct near__wire *wire, const near_cache *cache, near_bytes key)
{
    return add_key(wire, cache, key, ':', '#');
}

struct near_l2_item *
near__wire_add_side(struct near__wire *wire, const near_cache *cache, near_bytes key)
{
    return add_key(wire, cache, key, '!', '%');
}

struct near_l2_item *
near__wire_add_tag(struct near__wire *wire, const near_cache *cache, near_bytes tag)
{
    return add_key(wire, cache, tag, '=', '~');
}

struct near_l2_item *
near__wire_add_clock(struct near__wire *wire, const near_cache *cache)
{
    char *at = put(wire->keys, cache->prefix, cache->prefix_size);

    return add_item(wire, cache, put(at, CLOCK_KEY, sizeof(CLOCK_KEY) - 1));
}

struct near_l2_item *
near__wire_add_generation(struct near__wire *wire, const near_cache *cache)
{
    char *at = put(wire->keys, cache->prefix, cache->prefix_size);

    return add_item(wire, cache, put(at, GENERATION_KEY, sizeof(GENERATION_KEY) - 1));
}

struct near_l2_item *
near__wire_add_newest(struct near__wire *wire, const near_cache *cache)
{
    char *at = put(wire->keys, cache->prefix, cache->prefix_size);

    return add_item(wire, cache, put(at, NEWEST_KEY, sizeof(NEWEST_KEY) - 1));
}

struct near_l2_item *
near__wire_add_dictionary(struct near__wire *wire, const near_cache *cache, uint32_t id)
{
    static const char hex[] = "0123456789abcdef";
    char             *at    = put(wire->keys, cache->prefix, cache->prefix_size);

    *at++ = '$';
    for (int shift = 28; shift >= 0; shift -= 4)
        *at++ = hex[id >> shift & 15];
    return add_item(wire, cache, at);
}

enum near__l2_key
near__l2_key_read(const near_client *client, near_bytes l2_key, near_bytes *name, near_bytes *key)
{
    const char *prefix = client->settings.l2_key_prefix;
    const char *at     = l2_key.data;
    size_t      skip   = strlen(prefix), end;

    if (l2_key.size < skip || memcmp(at, prefix, skip) != 0)
        return NEAR__L2_NOTHING;
    end = skip;
    while (end < l2_key.size && strchr(":#!%@=~$", at[end]) == NULL) /* a NUL counts as one: no name has it */
        end++;
    *name = (near_bytes){ at + skip, end - skip };
    *key  = (near_bytes){ at + end, l2_key.size - end };
    if (near__bytes_equal(*key, near_key(GENERATION_KEY)))
        return NEAR__L2_GENERATION;
    if (key->size == 0)
        return NEAR__L2_NOTHING;
    *key = (near_bytes){ at + end + 1, l2_key.size - end - 1 };
    switch (at[end]) {
    case ':':
        return NEAR__L2_ENTRY;
    case '=':
        return NEAR__L2_TAG;
    case '#':
    case '~':
        return NEAR__L2_HASHED;
    default:
        return NEAR__L2_NOTHING; /* a lease beside an entry, the clock of tags, or somebody else's */
    }
}

/* ---- entries to bytes and back */

size_t
near__tier_measure(const near_cache *cache, struct near__envelope *envelope)
{
    envelope->sealed = cache->mac != NULL;
    return near__envelope_size(envelope);
}

near_bytes
near__tier_encode(const near_cache *cache, struct near__envelope *envelope, near_bytes place, uint8_t *bytes)
{
    size_t size = near__tier_measure(cache, envelope);

    if (cache->mac != NULL)
        near__envelope_seal(envelope, cache->mac, place, bytes);
    else
        near__envelope_encode(envelope, bytes);
    return (near_bytes){ bytes, size };
}

enum near__envelope_result
near__tier_decode(const near_cache *cache, struct near__envelope *envelope, near_bytes place,
                  near_bytes stored, near_bytes key)
{
    enum near__envelope_result result = near__envelope_decode(envelope, stored, key);
    unsigned                   by;

    if (result != NEAR__ENVELOPE_OK || cache->mac == NULL)
        return result;
    by                = near__envelope_verify(envelope, cache->mac, place, stored);
    envelope->old_key = by > 1;
    if (by > 0)
        return NEAR__ENVELOPE_OK;
    near__count(cache, NEAR__l2_unauthentic, 1);
    return NEAR__ENVELOPE_FORGED;
}

near_status
near__tier_key_check(const near_cache *cache, near_bytes key)
{
    near_status status = near__key_check(key);

    return status == NEAR_OK && cache->bare && !takes_key(cache, key) ? NEAR_ERR_INVALID : status;
}

/* Compress as the cache does.  The bytes it took; 0: it is not worth it, or not tried. */
static size_t
compress_into(near_cache *cache, near_bytes raw, uint8_t *at)
{
    struct near__packer     *packer = &cache->client->packer;
    size_t                   room   = NEAR__GAIN_ROOM(raw.size), size;
    struct near__dictionary *dictionary;

    if (!near__gain_try(&cache->gain, raw.size))
        return 0;
    dictionary = near__dictionaries_current(cache, raw.size);
    if (dictionary == NULL && raw.size < cache->settings.l2_compression_threshold)
        return 0;
    size = dictionary != NULL ? near__dictionary_pack(packer, dictionary, raw, at, room)
                              : near__pack(packer, cache->codec, raw, at, room);
    near__gain_learn(&cache->gain, raw.size, size);
    near__count(cache, NEAR__l2_compress_tries, 1);
    if (dictionary != NULL && size > 0)
        near__count(cache, NEAR__l2_dictionary_compressed, 1);
    near__dictionary_release(dictionary);
    return size;
}

/* The payload, compressed at the place where it will lie, if that is worth it: the room for it there is as large as it is raw. */
static void
compress(near_cache *cache, struct near__envelope *envelope, uint8_t *at)
{
    near_bytes raw = envelope->payload;
    size_t     size;

    if (cache->codec == NEAR__CODEC_NONE || raw.size < cache->compress_from)
        return;
    size = compress_into(cache, raw, at);
    if (size == 0)
        return;
    near__count(cache, NEAR__l2_compressed, 1);
    near__count(cache, NEAR__l2_compress_saved, raw.size - size);
    envelope->flags |= cache->codec == NEAR__CODEC_LZ4 ? NEAR__ENVELOPE_LZ4 : NEAR__ENVELOPE_ZSTD;
    envelope->raw_size = (uint32_t)raw.size;
    envelope->payload  = (near_bytes){ at, size };
}

void
near__tier_store(near_cache *cache, struct near__wire *wire, struct near_l2_item *item,
                 const struct near__stored *stored, int64_t wall_ms)
{
    int64_t               ttl      = stored->ttl;
    int64_t               kept     = near__kept_for(cache, stored->negative, ttl);
    struct near__envelope envelope = {
        .flags          = stored->negative ? NEAR__ENVELOPE_NEGATIVE : 0,
        .stamp          = stored->stamp,
        .soft_expiry_ms = ttl == 0 ? 0 : near__time_after(wall_ms, near__ttl_ms(ttl)),
        .hard_expiry_ms = kept == 0 ? 0 : near__time_after(wall_ms, near__ttl_ms(kept)),
        .cost_us        = stored->cost_us,
        .generation     = stored->generation,
        .key            = stored->key,
        .payload        = stored->value,
    };

    item->ttl_ms = near__ttl_ms(kept);
    item->value  = stored->value;
    if (cache->bare)
        return;
    if (stored->labels != NULL) {
        envelope.tags    = stored->labels->n;
        envelope.lineage = stored->labels->lineage;
        envelope.moment  = stored->labels->moment;
        envelope.names   = (near_bytes){ stored->labels->names, stored->labels->names_size };
    }
    compress(cache, &envelope, wire->values_end + near__tier_measure(cache, &envelope) - stored->value.size);
    item->value = near__tier_encode(cache, &envelope, item->key, wire->values_end);
    wire->values_end += item->value.size;
}

struct reading {
    near_cache            *cache;
    int64_t                now, wall_ms;
    uint64_t               generation;  /* as read in this exchange; 0: not */
    struct near__tag_clock clock;       /* alike */
    bool                   no_clock;    /* L2's word that there is none, or what lies there is not one */
    uint64_t old_generation, old_clock; /* stamps of those that an old key has sealed; 0: they are not */
};

/* Nanoseconds until a wall time; may be negative.  0 is never. */
static int64_t
left_until(const struct reading *reading, int64_t wall_ms)
{
    int64_t left = wall_ms - reading->wall_ms;

    if (wall_ms == 0 || left > NEAR_NEVER / NEAR_MS)
        return NEAR_NEVER;
    return left < -(NEAR_NEVER / NEAR_MS) ? -NEAR_NEVER : left * NEAR_MS;
}

/* A sound entry's place in time.  False: it may not be served, not even as stale. */
static bool
set_expiry(const struct reading *reading, struct near__ask *ask, struct near__entry *entry,
           const struct near__envelope *envelope)
{
    int64_t hard = left_until(reading, envelope->hard_expiry_ms);
    int64_t soft = left_until(reading, envelope->soft_expiry_ms);
    int64_t end;

    if (hard <= 0)
        return false;
    if (soft > hard)
        soft = hard;
    near__entry_date(reading->cache, entry, reading->now, soft > 0 && soft != NEAR_NEVER ? soft : 0);
    ask->soft_until = soft == NEAR_NEVER ? NEAR_NEVER : near__time_after(reading->now, soft);
    if (soft <= 0 && envelope->soft_expiry_ms == NEAR__SOFT_FORCED) {
        entry->fresh_until = ask->soft_until = NEAR__FRESH_FORCED;
        entry->expires                       = near__time_after(reading->now, reading->cache->settings.grace);
    } else if (soft <= 0) {
        entry->fresh_until = reading->now + soft;
        entry->expires =
            entry->negative ? 0 : near__time_after(entry->fresh_until, reading->cache->settings.grace);
    }
    end            = near__time_after(reading->now, hard);
    entry->expires = entry->expires < end ? entry->expires : end;
    return entry->expires > reading->now;
}

/* False: no memory. */
static bool
take_labels(const struct reading *reading, const struct near__ask *ask, struct near__entry *entry,
            const struct near__envelope *envelope)
{
    if (envelope->tags == 0)
        return true;
    entry->labels = near__tags_of(reading->cache, envelope->tags, envelope->names);
    if (entry->labels == NULL)
        return false;
    entry->labels->clock   = ask->label_clock;
    entry->labels->lineage = envelope->lineage;
    entry->labels->moment  = envelope->moment;
    return true;
}

/* Room for an answer; NULL: the ask has been answered with that. */
static struct near__entry *
entry_for(struct near__ask *ask, size_t size, void **value)
{
    struct near__entry *entry = near__entry_new(ask->key, ask->hash, size, value);

    if (entry == NULL) {
        ask->found  = NEAR__UNREACHABLE;
        ask->status = NEAR_ERR_NOMEM;
    }
    return entry;
}

/* A sound envelope around a payload that is none: to be replaced like damaged bytes, by its stamp. */
static void
refuse_payload(const struct reading *reading, struct near__ask *ask, const struct near__envelope *envelope,
               enum near__counter counter)
{
    near__count(reading->cache, counter, 1);
    ask->found = NEAR__UNREADABLE;
    ask->stamp = envelope->stamp;
}

/* What it is compressed with, or NULL for nothing; false: it is not here, which the ask says: see fetch_dictionaries(). */
static bool
find_dictionary(const struct reading *reading, struct near__ask *ask, const struct near__envelope *envelope,
                enum near__codec codec, struct near__dictionary **dictionary)
{
    uint32_t id = near__dictionary_needed(codec, envelope->payload);

    if (id == 0)
        return true;
    *dictionary = near__dictionaries_find(reading->cache, id);
    if (*dictionary != NULL)
        return true;
    ask->dictionary = id;
    ask->found      = NEAR__UNREADABLE;
    ask->stamp      = envelope->stamp;
    return false;
}

/* The entry with its value; NULL: the ask has been answered without. */
static struct near__entry *
take_payload(const struct reading *reading, struct near__ask *ask, const struct near__envelope *envelope)
{
    near_cache              *cache      = reading->cache;
    near_bytes               bytes      = envelope->payload;
    size_t                   size       = envelope->raw_size;
    enum near__codec         codec      = NEAR__CODEC_NONE;
    struct near__dictionary *dictionary = NULL;
    struct near__entry      *entry;
    near_status              status;
    void                    *value;

    if (envelope->flags & NEAR__ENVELOPE_COMPRESSED)
        codec = envelope->flags & NEAR__ENVELOPE_LZ4 ? NEAR__CODEC_LZ4 : NEAR__CODEC_ZSTD;
    if (!near__codec_is_built(codec)) {
        refuse_payload(reading, ask, envelope, NEAR__l2_unreadable);
        return NULL;
    }
    if (codec != NEAR__CODEC_NONE &&
        (size > cache->settings.l2_max_value || !near__unpack_is_plausible(codec, bytes, size))) {
        refuse_payload(reading, ask, envelope, NEAR__l2_corrupt);
        return NULL;
    }
    if (!find_dictionary(reading, ask, envelope, codec, &dictionary))
        return NULL;
    entry = entry_for(ask, size, &value);
    if (entry == NULL) {
        near__dictionary_release(dictionary);
        return NULL;
    }
    if (codec == NEAR__CODEC_NONE) {
        put(value, bytes.data, bytes.size);
        return entry;
    }
    status = dictionary != NULL
                 ? near__dictionary_unpack(&cache->client->packer, dictionary, bytes, value, size)
                 : near__unpack(&cache->client->packer, codec, bytes, value, size);
    near__dictionary_release(dictionary);
    if (status == NEAR_OK)
        return entry;
    near__entry_release(&entry);
    if (status == NEAR_ERR_NOMEM) {
        ask->found  = NEAR__UNREACHABLE;
        ask->status = status;
    } else {
        refuse_payload(reading, ask, envelope, NEAR__l2_corrupt);
    }
    return NULL;
}

static void
take_entry(const struct reading *reading, struct near__ask *ask, const struct near__envelope *envelope)
{
    struct near__entry *entry = take_payload(reading, ask, envelope);

    if (entry == NULL)
        return;
    entry->negative   = (envelope->flags & NEAR__ENVELOPE_NEGATIVE) != 0;
    entry->stamp      = envelope->stamp;
    entry->generation = envelope->generation;
    entry->cost_us    = envelope->cost_us;
    ask->stamp        = envelope->stamp;
    if (!take_labels(reading, ask, entry, envelope)) {
        near__entry_release(&entry);
        ask->found  = NEAR__UNREACHABLE;
        ask->status = NEAR_ERR_NOMEM;
        return;
    }
    if (!set_expiry(reading, ask, entry, envelope)) {
        ask->found = NEAR__OUTDATED;
        near__entry_release(&entry);
        return;
    }
    ask->entry = entry;
    ask->found = entry->fresh_until > reading->now ? NEAR__FOUND : NEAR__STALE;
}

/* The bytes are the value, good for as long as a load would be, for what is left of that is not known.  But not an entry of somebody
 * who has another l2.envelope: that is checked to the last byte, so it is never another program's value. */
static void
take_bare(const struct reading *reading, struct near__ask *ask, near_bytes stored)
{
    const near_cache     *cache = reading->cache;
    struct near__envelope envelope;
    struct near__entry   *entry;
    void                 *value;

    if (near__envelope_decode(&envelope, stored, ask->key) == NEAR__ENVELOPE_OK) {
        refuse_payload(reading, ask, &envelope, NEAR__l2_corrupt);
        return;
    }
    entry = entry_for(ask, stored.size, &value);
    if (entry == NULL)
        return;
    put(value, stored.data, stored.size);
    entry->generation = NEAR__GENERATION_BARE;
    near__entry_date(cache, entry, reading->now, cache->settings.ttl);
    ask->soft_until = NEAR_NEVER;
    ask->entry      = entry;
    ask->found      = NEAR__FOUND;
}

/* A counter has no envelope: its text, to the last byte, is what tells it.  Nor has it a MAC, so where that is asked for it is none. */
static bool
take_counter(const struct reading *reading, struct near__ask *ask, near_bytes stored)
{
    struct near__entry *entry;
    int64_t             number;
    void               *value;

    if (!near__l2_decimal_read(stored, &number))
        return false;
    if (reading->cache->mac != NULL) {
        near__count(reading->cache, NEAR__l2_unauthentic, 1);
        ask->found = NEAR__UNREADABLE;
        ask->stamp = near__stamp_in(stored);
        return true;
    }
    entry = entry_for(ask, stored.size, &value);
    if (entry == NULL)
        return true;
    put(value, stored.data, stored.size);
    near__entry_date(reading->cache, entry, reading->now, reading->cache->settings.ttl);
    ask->soft_until = NEAR_NEVER;
    ask->entry      = entry;
    ask->counter    = true;
    ask->found      = NEAR__FOUND;
    return true;
}

static void
deliver(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct reading            *reading = ctx;
    struct near__ask          *ask     = item->user;
    struct near__envelope      envelope;
    enum near__envelope_result result;

    if (reading->cache->bare) {
        take_bare(reading, ask, stored);
        return;
    }
    if (ask == NULL) {
        reading->generation =
            near__generation_decode(reading->cache, item->key, stored, &reading->old_generation);
        return;
    }
    if (item->user == reading) {
        reading->clock = near__tags_decode(reading->cache, item->key, stored, &reading->old_clock);
        return;
    }
    result = near__tier_decode(reading->cache, &envelope, item->key, stored, ask->key);
    if (result == NEAR__ENVELOPE_OK) {
        if (envelope.flags & NEAR__ENVELOPE_MARK) {
            ask->found = NEAR__MARKED; /* of whatever generation: that writer has not finished */
            ask->stamp = envelope.stamp;
        } else if (envelope.flags & NEAR__ENVELOPE_LEASE) {
            ask->found      = NEAR__LEASED;
            ask->stamp      = envelope.stamp;
            ask->soft_until = (int64_t)envelope.generation; /* of the marker, for check_generation() */
        } else
            take_entry(reading, ask, &envelope);
        return;
    }
    if (take_counter(reading, ask, stored))
        return;
    if (result != NEAR__ENVELOPE_FORGED) /* that has been counted */
        near__count(reading->cache,
                    result == NEAR__ENVELOPE_WRONG_KEY ? NEAR__l2_wrong_key : NEAR__l2_corrupt, 1);
    ask->found = NEAR__UNREADABLE;
    ask->stamp = near__stamp_in(stored);
}

/* ---- reading */

/* What the backend said of an item whose bytes did not come. */
static void
take_answer(near_cache *cache, const struct near_l2_item *item)
{
    struct near__ask *ask = item->user;

    if (item->answer == NEAR_L2_DONE)
        return; /* deliver() dealt with it */
    if (item->answer == NEAR_L2_ABSENT) {
        ask->found = NEAR__ABSENT;
        return;
    }
    ask->found  = NEAR__UNREACHABLE;
    ask->status = item->status != NEAR_OK ? item->status : NEAR_ERR_TIMEOUT;
    near__count(cache, NEAR__l2_errors, 1);
}

static size_t
key_bytes(struct near__ask **asks, size_t n)
{
    size_t sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += asks[i]->key.size;
    return sum;
}

static void
unreachable(struct near__ask **asks, size_t n, near_status status)
{
    for (size_t i = 0; i < n; i++) {
        asks[i]->found  = NEAR__UNREACHABLE;
        asks[i]->status = status;
    }
}

#define OWN 2 /* items of our own in an exchange: the generation and the clock of tags */

/* One exchange; with `generation` not NULL it is read as well: its item's answer comes back in it.  With `clock` that of the tags,
 * too. */
static void
read_batch(near_cache *cache, struct reading *reading, struct near__ask **asks, size_t n, int64_t deadline,
           struct near_l2_item *generation, bool clock)
{
    near_client      *client = cache->client;
    struct near__wire wire;
    int64_t           began;

    if (near__wire_open(&wire, cache, n + OWN, key_bytes(asks, n)) != NEAR_OK) {
        unreachable(asks, n, NEAR_ERR_NOMEM);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        asks[i]->dictionary                              = 0;
        near__wire_add(&wire, cache, asks[i]->key)->user = asks[i];
    }
    if (generation != NULL)
        near__wire_add_generation(&wire, cache);
    if (clock)
        near__wire_add_clock(&wire, cache)->user = reading;
    near__count(cache, NEAR__l2_requests, 1);
    began = near__client_now(client);
    client->ops->get_many(client->l2, wire.items, wire.n, deliver, reading, deadline);
    near__time(cache, NEAR__TIME_l2_read, near__client_now(client) - began);
    for (size_t i = 0; i < n; i++)
        take_answer(cache, &wire.items[i]);
    if (generation != NULL)
        *generation = wire.items[n];
    if (clock) /* else what the exchange before has said is still true */
        reading->no_clock = wire.items[wire.n - 1].answer == NEAR_L2_ABSENT ||
                            (wire.items[wire.n - 1].answer == NEAR_L2_DONE && reading->clock.lineage == 0);
    near__wire_close(&wire);
}

/* Entries of another generation than the cache's must not be served. */
static void
check_generation(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation,
                 near_status unknown)
{
    bool foreign = false;
    for (size_t i = 0; i < n; i++) {
        struct near__ask *ask = asks[i];

        /* a marker from before a clear: its load will not count, so nobody need wait for it */
        if (ask->found == NEAR__LEASED && unknown == NEAR_OK && generation != 0 && ask->soft_until != 0 &&
            (uint64_t)ask->soft_until != generation)
            ask->found = NEAR__OUTDATED;
        if (ask->found != NEAR__FOUND && ask->found != NEAR__STALE)
            continue;
        if (ask->counter || (unknown == NEAR_OK && ask->entry->generation == generation))
            continue; /* a counter is of no generation */
        near__entry_release(&ask->entry);
        if (unknown != NEAR_OK) {
            unreachable(&asks[i], 1, unknown);
            continue;
        }
        ask->found = NEAR__OUTDATED;
        foreign    = true;
        near__count(cache, NEAR__l2_old_generation, 1);
    }
    if (foreign) /* theirs may be the newer one: look again next time */
        near__generation_doubt(cache, false);
}

/* Entries one of whose tags was invalidated since must not be served. */
static void
check_labels(near_cache *cache, struct near__ask **asks, size_t n, struct near__tag_clock clock,
             int64_t deadline)
{
    bool any = false;

    for (size_t i = 0; i < n && !any; i++)
        any = asks[i]->entry != NULL && asks[i]->entry->labels != NULL;
    if (!any)
        return;
    near__tags_judge(cache, asks, n, clock, deadline);
    for (size_t i = 0; i < n; i++) {
        if (asks[i]->entry == NULL || asks[i]->entry->labels == NULL ||
            asks[i]->labelled == NEAR__LABELS_GOOD)
            continue;
        near__entry_release(&asks[i]->entry);
        if (asks[i]->labelled == NEAR__LABELS_UNKNOWN) {
            unreachable(&asks[i], 1, asks[i]->status);
            continue;
        }
        asks[i]->found = NEAR__OUTDATED;
        near__count(cache, NEAR__l2_old_tags, 1);
    }
}

/* Of a key whose invalidation is still owed L2 may hold what a write of ours was to replace. */
static void
distrust_owed(near_cache *cache, struct near__ask **asks, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!near__recovery_owes(cache, asks[i]->key, asks[i]->hash))
            continue;
        near__entry_release(&asks[i]->entry);
        unreachable(&asks[i], 1, NEAR_ERR_UNAVAILABLE);
    }
}

/* Fetch what entries need to be unpacked.  Those that can be now stand at `again`; their number.  The first time that an id is met only. */
static size_t
fetch_dictionaries(near_cache *cache, struct near__ask **asks, size_t n, struct near__ask **again,
                   int64_t deadline)
{
    uint32_t    known  = 0;
    near_status status = NEAR_OK;
    size_t      k      = 0;

    for (size_t i = 0; i < n; i++) {
        struct near__ask *ask = asks[i];

        if (ask->dictionary == 0)
            continue;
        if (ask->dictionary != known)
            status = near__dictionaries_fetch(cache, ask->dictionary, deadline);
        known = ask->dictionary;
        if (status == NEAR_OK)
            again[k++] = ask;
        else if (status != NEAR_MISS)
            unreachable(&asks[i], 1, status); /* it may be there: the entry stays */
        else
            near__count(cache, NEAR__l2_dictionary_unknown, 1);
    }
    for (size_t i = 0; i < k; i++) {
        again[i]->dictionary = 0;
        again[i]->found      = NEAR__UNASKED;
        again[i]->stamp      = 0;
    }
    return k;
}

/* Once more, those that needed a dictionary that was not here. */
static void
read_packed(near_cache *cache, struct reading *reading, struct near__ask **asks, size_t n, int64_t deadline)
{
    struct near__ask *few[16], **again = n <= NEAR_COUNT_OF(few) ? few : malloc(n * sizeof(*again));
    size_t            k;

    if (again == NULL) {
        for (size_t i = 0; i < n; i++)
            if (asks[i]->dictionary != 0)
                unreachable(&asks[i], 1, NEAR_ERR_NOMEM);
        return;
    }
    k = fetch_dictionaries(cache, asks, n, again, deadline);
    if (k > 0)
        read_batch(cache, reading, again, k, deadline, NULL, false);
    for (size_t i = 0; i < k; i++)
        if (again[i]->dictionary !=
            0) /* written anew, with another one, in between; or too many are in use */
            unreachable(&again[i], 1, NEAR_ERR_BUSY);
    if (again != few)
        free(again);
}

static bool
any_packed(struct near__ask **asks, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (asks[i]->dictionary != 0)
            return true;
    return false;
}

/* One of the cache's own numbers as it is, but sealed by the key that signs now; unless somebody has written it meanwhile.  Else all
 * of a cache would be lost at the moment that its old key is no longer believed: these are the entries that nobody writes anew. */
static void
seal_anew(near_cache *cache, struct near_l2_item *(*add)(struct near__wire *, const near_cache *),
          near_bytes number, uint64_t stamp, int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;

    if (stamp == 0 || near__wire_open(&wire, cache, 1, 0) != NEAR_OK)
        return; /* whoever reads it next has another try */
    add(&wire, cache);
    wire.items->expected = stamp;
    if (near__wire_make_room(&wire, NEAR__ENVELOPE_MOST + wire.items->key.size + number.size)) {
        near__number_encode(cache, wire.items, number, wire.values);
        near__count(cache, NEAR__l2_requests, 1);
        client->ops->set_many(client->l2, NEAR_L2_IF_STAMP, wire.items, 1, NULL, deadline);
    }
    near__wire_close(&wire);
}

static void
seal_numbers_anew(near_cache *cache, const struct reading *reading, int64_t deadline)
{
    uint8_t number[16];

    near__le64_put(number, reading->generation);
    seal_anew(cache, near__wire_add_generation, (near_bytes){ number, 8 }, reading->old_generation, deadline);
    near__le64_put(number, reading->clock.lineage);
    near__le64_put(number + 8, reading->clock.moment);
    seal_anew(cache, near__wire_add_clock, (near_bytes){ number, 16 }, reading->old_clock, deadline);
}

void
near__tier_read(near_cache *cache, struct near__ask **asks, size_t n, int64_t now, int64_t deadline,
                uint64_t *generation)
{
    struct reading reading = {
        .cache   = cache,
        .now     = now,
        .wall_ms = near__wall_ms(&cache->client->clock),
    };
    struct near_l2_item item    = { .answer = NEAR_L2_NOT_TRIED };
    near_status         unknown = NEAR_OK;
    uint64_t            epoch;
    bool                known = near__generation_known(cache, reading.now, generation, &epoch);
    uint64_t            tags_epoch;
    bool                ask_clock = near__tags_wanted(cache, reading.now, &reading.clock, &tags_epoch);

    for (size_t at = 0; at < n; at += NEAR_L2_READS - OWN) {
        size_t part = n - at < NEAR_L2_READS - OWN ? n - at : NEAR_L2_READS - OWN;
        read_batch(cache, &reading, asks + at, part, deadline, !known && at == 0 ? &item : NULL,
                   ask_clock && at == 0);
        if (NEAR__UNLIKELY(any_packed(asks + at, part)))
            read_packed(cache, &reading, asks + at, part, deadline);
    }
    if (NEAR__UNLIKELY((reading.old_generation | reading.old_clock) != 0))
        seal_numbers_anew(cache, &reading, deadline);
    if (ask_clock && reading.clock.lineage != 0)
        near__tags_learn(cache, reading.clock, tags_epoch);
    else if (reading.no_clock) /* one is made now, before the load that will need it */
        near__tags_now(cache, &reading.clock, deadline);
    for (size_t i = 0; i < n; i++)
        asks[i]->clock = reading.clock;
    if (!known && item.answer == NEAR_L2_DONE && reading.generation != 0) {
        *generation = reading.generation;
        near__generation_learn(cache, *generation, epoch);
    } else if (!known && (item.answer == NEAR_L2_ABSENT || item.answer == NEAR_L2_DONE ||
                          item.status == NEAR_ERR_TOO_LARGE)) {
        *generation = 0; /* none, or damaged: whatever is there belongs to no generation */
        near__generation_doubt(cache, true); /* nor may the last known one be written with any more */
    } else if (!known && *generation == 0) {
        unknown = item.status != NEAR_OK ? item.status
                                         : NEAR_ERR_UNAVAILABLE; /* not known: nothing can be judged */
    } /* else: cannot be read just now; one read within l1.max_ttl goes on (a ring with one dead server) */
    check_generation(cache, asks, n, *generation, unknown);
    check_labels(cache, asks, n, reading.clock, deadline);
    distrust_owed(cache, asks, n);
}

/* ---- leases */

/* How a lease is taken: where there is nothing, over what may not be served, or beside what still may. */
enum how { NOT, IF_ABSENT, OVER, BESIDE };

static enum how
how_to_lease(const near_cache *cache, const struct near__ask *ask)
{
    if (ask->lease != 0 || ask->lost)
        return NOT;
    if (cache->bare)
        return ask->found == NEAR__ABSENT ? BESIDE : NOT;
    switch (ask->found) {
    case NEAR__ABSENT:
        return IF_ABSENT;
    case NEAR__OUTDATED:
    case NEAR__UNREADABLE:
        return ask->stamp != 0 ? OVER : NOT;
    case NEAR__STALE:
        return BESIDE;
    case NEAR__FOUND:
        return ask->refresh ? BESIDE : NOT;
    default:
        return NOT;
    }
}

/* The marker: an entry without value whose stamp is the lease. */
static void
put_marker(const near_cache *cache, struct near__wire *wire, struct near_l2_item *item, near_bytes key,
           uint64_t lease, uint64_t generation)
{
    struct near__envelope envelope = {
        .flags = NEAR__ENVELOPE_LEASE, .stamp = lease, .generation = generation, .key = key
    };

    item->value = near__tier_encode(cache, &envelope, item->key, wire->values_end);
    wire->values_end += item->value.size;
}

static void
take_lease_answer(near_cache *cache, const struct near_l2_item *item, enum how how)
{
    struct near__ask *ask = item->user;

    if (item->answer == NEAR_L2_DONE) {
        uint64_t stamp = near__le64_get((const uint8_t *)item->value.data + NEAR_L2_STAMP_AT);

        ask->side  = how == BESIDE ? stamp : 0;
        ask->lease = how == BESIDE && !cache->bare ? ask->stamp : stamp;
        near__count(cache, NEAR__leases_won, 1);
        return;
    }
    ask->lost = item->answer == NEAR_L2_ABSENT; /* else L2 could not say: then nobody is waited for */
    near__count(cache, NEAR__leases_lost, 1);
}

static void
lease_batch(near_cache *cache, struct near__ask **asks, size_t n, enum how how, uint64_t generation,
            int64_t deadline)
{
    near_client      *client = cache->client;
    int64_t           ttl_ms = near__ttl_ms(cache->settings.lease_timeout);
    enum near_l2_mode mode   = how == OVER ? NEAR_L2_IF_STAMP : NEAR_L2_IF_ABSENT;
    uint64_t          drawn  = near__stamps_draw(client, n);
    size_t            bytes  = key_bytes(asks, n);
    struct near__wire wire;

    if (near__wire_open(&wire, cache, n, bytes) != NEAR_OK)
        return;
    if (!near__wire_make_room(&wire, n * near__head_room(cache) + bytes))
        n = 0;
    for (size_t i = 0; i < n; i++) {
        struct near_l2_item *item;
        struct near__ask    *ask = asks[i];

        if (how_to_lease(cache, ask) != how)
            continue;
        item       = how == BESIDE ? near__wire_add_side(&wire, cache, ask->key)
                                   : near__wire_add(&wire, cache, ask->key);
        item->user = ask;
        put_marker(cache, &wire, item, ask->key, near__stamp_nth(drawn, i), generation);
        item->expected = ask->stamp;
        item->ttl_ms   = ttl_ms > client->traits.min_lease_ms ? ttl_ms : client->traits.min_lease_ms;
    }
    if (wire.n > 0) {
        near__count(cache, NEAR__l2_requests, 1);
        client->ops->set_many(client->l2, mode, wire.items, wire.n, NULL, deadline);
    }
    for (size_t i = 0; i < wire.n; i++)
        take_lease_answer(cache, &wire.items[i], how);
    near__wire_close(&wire);
}

/* Damaged bytes too short to have a stamp; and where no lease may lie over it, an entry of another l2.envelope, which has one. */
static bool
must_be_removed(const near_cache *cache, const struct near__ask *ask)
{
    return ask->found == NEAR__UNREADABLE && (ask->stamp == 0 || cache->bare);
}

/* Out of the way, then as if absent. */
static void
remove_unreadable(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;

    if (near__wire_open(&wire, cache, n, key_bytes(asks, n)) != NEAR_OK)
        return;
    for (size_t i = 0; i < n; i++)
        if (must_be_removed(cache, asks[i])) {
            struct near_l2_item *item = near__wire_add(&wire, cache, asks[i]->key);

            item->user     = asks[i];
            item->expected = asks[i]->stamp;
        }
    if (wire.n > 0)
        client->ops->remove_many(client->l2, cache->bare ? NEAR_L2_IF_STAMP : NEAR_L2_ALWAYS, wire.items,
                                 wire.n, NULL, deadline);
    for (size_t i = 0; i < wire.n; i++)
        if (wire.items[i].answer == NEAR_L2_DONE)
            ((struct near__ask *)wire.items[i].user)->found = NEAR__ABSENT;
    near__wire_close(&wire);
}

/* Whether any of the asks needs it: saves an exchange and a block of memory. */
static bool
any_wants(const near_cache *cache, struct near__ask **asks, size_t n, enum how how)
{
    for (size_t i = 0; i < n; i++)
        if (how_to_lease(cache, asks[i]) == how)
            return true;
    return false;
}

static bool
any_unreadable(const near_cache *cache, struct near__ask **asks, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (must_be_removed(cache, asks[i]))
            return true;
    return false;
}

void
near__tier_lease(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation, int64_t deadline)
{
    for (size_t at = 0; at < n; at += NEAR_L2_BATCH) {
        struct near__ask **part = asks + at;
        size_t             size = n - at < NEAR_L2_BATCH ? n - at : NEAR_L2_BATCH;

        if (any_unreadable(cache, part, size))
            remove_unreadable(cache, part, size, deadline);
        for (enum how how = IF_ABSENT; how <= BESIDE; how++)
            if (any_wants(cache, part, size, how))
                lease_batch(cache, part, size, how, generation, deadline);
    }
}

/* Remove the markers: those beside entries, or those in the place of values. */
static void
remove_markers(near_cache *cache, struct near__ask **asks, size_t n, bool beside, int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;

    if (near__wire_open(&wire, cache, n, key_bytes(asks, n)) != NEAR_OK)
        return; /* their own TTL ends them */
    for (size_t i = 0; i < n; i++) {
        struct near__ask    *ask  = asks[i];
        struct near_l2_item *item = NULL;

        if (beside && ask->side != 0)
            item = near__wire_add_side(&wire, cache, ask->key);
        if (!beside && ask->side == 0 && ask->lease != 0)
            item = near__wire_add(&wire, cache, ask->key);
        if (item == NULL)
            continue;
        item->user     = ask;
        item->expected = beside ? ask->side : ask->lease;
    }
    if (wire.n > 0) {
        near__count(cache, NEAR__l2_requests, 1);
        client->ops->remove_many(client->l2, NEAR_L2_IF_STAMP, wire.items, wire.n, NULL, deadline);
    }
    for (size_t i = 0; i < wire.n; i++)
        if (wire.items[i].answer == NEAR_L2_DONE)
            ((struct near__ask *)wire.items[i].user)->doubtful = false; /* ours to the end */
    near__wire_close(&wire);
}

static bool
any_beside(struct near__ask **asks, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (asks[i]->side != 0)
            return true;
    return false;
}

static size_t
fill_room(const near_cache *cache, struct near__ask **asks, size_t n)
{
    size_t room = 0;

    for (size_t i = 0; i < n; i++)
        if (asks[i]->entry != NULL)
            room += near__tier_room(cache, asks[i]->key,
                                    (near_bytes){ asks[i]->entry->value, asks[i]->entry->value_size },
                                    asks[i]->entry->labels);
    return room;
}

/* Whether an ask has something to store and may.  Where an absence cannot be written down it is not. */
static bool
has_fill(const near_cache *cache, const struct near__ask *ask)
{
    return ask->lease != 0 && ask->entry != NULL && !ask->refused && !(cache->bare && ask->entry->negative);
}

static void
put_fill(near_cache *cache, struct near__wire *wire, struct near__ask *ask, uint64_t stamp,
         uint64_t generation, int64_t wall_ms)
{
    const struct near__entry *entry  = ask->entry;
    struct near_l2_item      *item   = near__wire_add(wire, cache, ask->key);
    struct near__stored       stored = {
              .key        = near__entry_key(entry),
              .value      = { entry->value, entry->value_size },
              .stamp      = stamp,
              .generation = generation,
              .ttl        = ask->ttl,
              .cost_us    = entry->cost_us,
              .labels     = entry->labels,
              .negative   = entry->negative,
    };

    item->user     = ask;
    item->expected = ask->lease;
    near__tier_store(cache, wire, item, &stored, wall_ms);
    if (!cache->bare)
        ask->entry->stamp = stamp; /* nobody else has seen it yet */
}

static void
fill_batch(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation, int64_t deadline)
{
    near_client      *client  = cache->client;
    enum near_l2_mode mode    = cache->bare ? NEAR_L2_IF_ABSENT : NEAR_L2_IF_STAMP;
    uint64_t          drawn   = near__stamps_draw(client, n);
    int64_t           wall_ms = near__wall_ms(&client->clock);
    struct near__wire wire;

    if (near__wire_open(&wire, cache, n, key_bytes(asks, n)) != NEAR_OK)
        return;
    if (near__wire_make_room(&wire, fill_room(cache, asks, n)))
        for (size_t i = 0; i < n; i++)
            if (has_fill(cache, asks[i]))
                put_fill(cache, &wire, asks[i], near__stamp_nth(drawn, i), generation, wall_ms);
    if (wire.n > 0) {
        near__count(cache, NEAR__l2_requests, 1);
        client->ops->set_many(client->l2, mode, wire.items, wire.n, NULL, deadline);
    }
    for (size_t i = 0; i < wire.n; i++) {
        struct near__ask *ask = wire.items[i].user;

        ask->stored   = wire.items[i].answer == NEAR_L2_DONE;
        ask->refused  = wire.items[i].answer == NEAR_L2_ABSENT;
        ask->doubtful = cache->bare && (ask->stored || wire.items[i].answer == NEAR_L2_UNKNOWN);
        if (!ask->stored)
            near__count(cache, ask->refused ? NEAR__l2_fills_refused : NEAR__l2_errors, 1);
    }
    near__wire_close(&wire);
}

/* ---- fills with l2.envelope = none: see the top */

static void
deliver_marker(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct near__ask     *ask = item->user;
    struct near__envelope envelope;

    (void)ctx;
    ask->refused = near__envelope_decode(&envelope, stored, ask->key) != NEAR__ENVELOPE_OK ||
                   envelope.stamp != ask->side;
}

/* Refuse those whose lease is no more: it has been voided, or has run out. */
static void
look_at_leases(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;

    if (near__wire_open(&wire, cache, n, key_bytes(asks, n)) != NEAR_OK)
        return; /* then without the look: what follows the fill still finds it out */
    for (size_t i = 0; i < n; i++)
        if (has_fill(cache, asks[i]) && asks[i]->side != 0) {
            asks[i]->refused                                      = true;
            near__wire_add_side(&wire, cache, asks[i]->key)->user = asks[i];
        }
    if (wire.n > 0) {
        near__count(cache, NEAR__l2_requests, 1);
        client->ops->get_many(client->l2, wire.items, wire.n, deliver_marker, NULL, deadline);
    }
    for (size_t i = 0; i < wire.n; i++)
        near__count(cache, NEAR__l2_fills_refused, ((struct near__ask *)wire.items[i].user)->refused);
    near__wire_close(&wire);
}

/* Take those fills out again that the removal of a key may have overlooked. */
static void
take_back(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;

    /* without memory they stay, as they do when this process ends here: until their TTL */
    if (near__wire_open(&wire, cache, n, key_bytes(asks, n)) != NEAR_OK)
        return;
    for (size_t i = 0; i < n; i++)
        if (asks[i]->doubtful) {
            near__wire_add(&wire, cache, asks[i]->key);
            asks[i]->refused = true;
            asks[i]->stored  = false;
        }
    if (wire.n > 0) {
        near__count(cache, NEAR__l2_requests, 1);
        near__count(cache, NEAR__l2_fills_refused, wire.n);
        client->ops->remove_many(client->l2, NEAR_L2_ALWAYS, wire.items, wire.n, NULL, deadline);
    }
    near__wire_close(&wire);
}

size_t
near__tier_fill(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation, int64_t deadline)
{
    size_t stored = 0;

    for (size_t at = 0; at < n; at += NEAR_L2_BATCH) {
        size_t part = n - at < NEAR_L2_BATCH ? n - at : NEAR_L2_BATCH;

        if (cache->bare)
            look_at_leases(cache, asks + at, part, deadline);
        fill_batch(cache, asks + at, part, generation, deadline);
        if (any_beside(asks + at, part))
            remove_markers(cache, asks + at, part, true, deadline);
        if (cache->bare)
            take_back(cache, asks + at, part, deadline);
        for (size_t i = at; i < at + part; i++)
            stored += asks[i]->stored;
    }
    near__count(cache, NEAR__l2_fills, stored);
    return stored;
}

void
near__tier_unlease(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline)
{
    for (size_t at = 0; at < n; at += NEAR_L2_BATCH) {
        size_t part = n - at < NEAR_L2_BATCH ? n - at : NEAR_L2_BATCH;

        if (any_beside(asks + at, part))
            remove_markers(cache, asks + at, part, true, deadline);
        remove_markers(cache, asks + at, part, false, deadline);
    }
}

near_status
near__tier_void_leases(near_cache *cache, const near_bytes *keys, size_t n, int64_t deadline)
{
    near_client      *client = cache->client;
    near_status       status = NEAR_OK;
    size_t            bytes  = 0;
    struct near__wire wire;

    for (size_t i = 0; i < n; i++)
        bytes += keys[i].size;
    if (near__wire_open(&wire, cache, n, bytes) != NEAR_OK)
        return NEAR_ERR_NOMEM;
    for (size_t i = 0; i < n; i++)
        near__wire_add_side(&wire, cache, keys[i]);
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->remove_many(client->l2, NEAR_L2_ALWAYS, wire.items, wire.n, NULL, deadline);
    for (size_t i = 0; i < n && status == NEAR_OK; i++)
        status = near__item_status(&wire.items[i]);
    near__wire_close(&wire);
    return status;
}
