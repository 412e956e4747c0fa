/*
 * L2 in the client's terms.  See tier.h.
 *
 * Batches are cut to NEAR_L2_BATCH.  The deliver callback turns borrowed stored bytes straight into an L1 entry: one copy.
 */
#include "tier.h"

#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "flight.h"
#include "generation.h"
#include "l2/envelope.h"
#include "recovery.h"

uint64_t
near__stamp(void)
{
    uint64_t stamp;

    /* getrandom cannot fail once the pool is up, and it was when the client opened; the clock keeps even that case sound */
    if (!near__random(&stamp, sizeof(stamp)))
        stamp = (uint64_t)near__now(&near__clock_system);
    return stamp != 0 ? stamp : 1;
}

/* ---- wire keys
 *
 *   prefix name ':' key              where the backend can take the key
 *   prefix name '#' 32 hex digits    its XXH3-128 where it cannot; the entry holds the full key, which is compared
 *   prefix name '!' key              the lease beside an entry that is being refreshed: so the entry stays in use meanwhile
 *   prefix name '%' 32 hex digits    the same for a hashed key
 *   prefix name '@generation'        the generation
 * A cache's name holds none of : # ! % @, so they cannot meet. */

#define HASHED_KEY     (1 + 32)
#define GENERATION_KEY "@generation"

static bool
takes_key(const near_cache *cache, near_bytes key)
{
    const struct near_l2_traits *traits = &cache->client->traits;
    const unsigned char         *at     = key.data;

    if (cache->prefix_size + 1 + key.size > traits->max_key)
        return false;
    for (size_t i = 0; !traits->binary_keys && i < key.size; i++)
        if (at[i] < 0x21 || at[i] > 0x7E)
            return false;
    return true;
}

near_status
near__wire_open(struct near__wire *wire, const near_cache *cache, size_t n, size_t key_bytes)
{
    size_t items = n * sizeof(struct near_l2_item);
    size_t keys  = n * (cache->prefix_size + HASHED_KEY + sizeof(GENERATION_KEY)) + key_bytes;
    char  *block = calloc(1, items + keys);

    *wire = (struct near__wire){ .capacity = n };
    if (block == NULL)
        return NEAR_ERR_NOMEM;
    wire->items    = (struct near_l2_item *)block;
    wire->keys     = block + items;
    wire->keys_end = wire->keys + keys;
    return NEAR_OK;
}

void
near__wire_close(struct near__wire *wire)
{
    free(wire->items);
    wire->items = NULL;
}

void
near__wire_free_values(struct near__wire *wire)
{
    for (size_t i = 0; i < wire->n; i++) {
        free((void *)(uintptr_t)wire->items[i].value.data);
        wire->items[i].value = (near_bytes){ NULL, 0 };
    }
}

static char *
put(char *at, const void *data, size_t size)
{
    if (size > 0)
        memcpy(at, data, size);
    return at + size;
}

static struct near_l2_item *
add_item(struct near__wire *wire, char *end)
{
    struct near_l2_item *item = &wire->items[wire->n++];

    item->key  = (near_bytes){ wire->keys, (size_t)(end - wire->keys) };
    wire->keys = end;
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
        return add_item(wire, at);
    }
    near__hash_wide(key, digest);
    *at++ = hashed;
    for (size_t i = 0; i < sizeof(digest); i++) {
        *at++ = hex[digest[i] >> 4];
        *at++ = hex[digest[i] & 15];
    }
    return add_item(wire, at);
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
near__wire_add_generation(struct near__wire *wire, const near_cache *cache)
{
    char *at = put(wire->keys, cache->prefix, cache->prefix_size);

    return add_item(wire, put(at, GENERATION_KEY, sizeof(GENERATION_KEY) - 1));
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
    while (end < l2_key.size && strchr(":#!%@", at[end]) == NULL) /* a NUL counts as one: no name has it */
        end++;
    *name = (near_bytes){ at + skip, end - skip };
    *key  = (near_bytes){ at + end, l2_key.size - end };
    if (near__bytes_equal(*key, near_key(GENERATION_KEY)))
        return NEAR__L2_GENERATION;
    if (key->size == 0 || (at[end] != ':' && at[end] != '#'))
        return NEAR__L2_NOTHING; /* a lease beside an entry, or somebody else's */
    *key = (near_bytes){ at + end + 1, l2_key.size - end - 1 };
    return at[end] == ':' ? NEAR__L2_ENTRY : NEAR__L2_HASHED;
}

/* ---- entries to bytes and back */

uint8_t *
near__tier_encode(const near_cache *cache, const struct near__entry *entry, unsigned flags, uint64_t stamp,
                  uint64_t generation, int64_t ttl, size_t *size)
{
    int64_t               wall     = near__wall_ms(&cache->client->clock);
    int64_t               kept     = near__kept_for(cache, entry->negative, ttl);
    struct near__envelope envelope = {
        .flags          = flags | (entry->negative ? NEAR__ENVELOPE_NEGATIVE : 0),
        .stamp          = stamp,
        .soft_expiry_ms = ttl == 0 ? 0 : near__time_after(wall, near__ttl_ms(ttl)),
        .hard_expiry_ms = kept == 0 ? 0 : near__time_after(wall, near__ttl_ms(kept)),
        .cost_us        = entry->cost_us,
        .generation     = generation,
        .key            = near__entry_key(entry),
        .payload        = { entry->value, entry->value_size },
    };
    uint8_t *bytes;

    *size = near__envelope_size(envelope.key, envelope.payload);
    bytes = malloc(*size);
    if (bytes != NULL)
        near__envelope_encode(&envelope, bytes);
    return bytes;
}

struct reading {
    near_cache *cache;
    int64_t     now, wall_ms;
    uint64_t    generation; /* as read in this exchange; 0: not */
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

static void
take_entry(const struct reading *reading, struct near__ask *ask, const struct near__envelope *envelope)
{
    void               *value;
    struct near__entry *entry = near__entry_new(ask->key, ask->hash, envelope->payload.size, &value);

    if (entry == NULL) {
        ask->found  = NEAR__UNREACHABLE;
        ask->status = NEAR_ERR_NOMEM;
        return;
    }
    put(value, envelope->payload.data, envelope->payload.size);
    entry->negative   = (envelope->flags & NEAR__ENVELOPE_NEGATIVE) != 0;
    entry->stamp      = envelope->stamp;
    entry->generation = envelope->generation;
    entry->cost_us    = envelope->cost_us;
    ask->stamp        = envelope->stamp;
    if (!set_expiry(reading, ask, entry, envelope)) {
        ask->found = NEAR__OUTDATED;
        near__entry_release(&entry);
        return;
    }
    ask->entry = entry;
    ask->found = entry->fresh_until > reading->now ? NEAR__FOUND : NEAR__STALE;
}

static void
deliver(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct reading            *reading = ctx;
    struct near__ask          *ask     = item->user;
    struct near__envelope      envelope;
    enum near__envelope_result result;

    if (ask == NULL) {
        reading->generation = near__generation_decode(stored, item->key);
        return;
    }
    result = near__envelope_decode(&envelope, stored, ask->key);
    if (result == NEAR__ENVELOPE_OK) {
        if (envelope.flags & NEAR__ENVELOPE_LEASE) {
            ask->found      = NEAR__LEASED;
            ask->stamp      = envelope.stamp;
            ask->soft_until = (int64_t)envelope.generation; /* of the marker, for check_generation() */
        } else
            take_entry(reading, ask, &envelope);
        return;
    }
    near__count(reading->cache, result == NEAR__ENVELOPE_WRONG_KEY ? NEAR__l2_wrong_key : NEAR__l2_corrupt,
                1);
    ask->found = NEAR__UNREADABLE;
    ask->stamp = stored.size >= NEAR_L2_STAMP_AT + 8
                     ? near__le64_get((const uint8_t *)stored.data + NEAR_L2_STAMP_AT)
                     : 0;
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

/* One exchange; with `generation` not NULL it is read as well: its item's answer comes back in it. */
static void
read_batch(near_cache *cache, struct reading *reading, struct near__ask **asks, size_t n, int64_t deadline,
           struct near_l2_item *generation)
{
    near_client      *client = cache->client;
    struct near__wire wire;

    if (near__wire_open(&wire, cache, n + 1, key_bytes(asks, n)) != NEAR_OK) {
        unreachable(asks, n, NEAR_ERR_NOMEM);
        return;
    }
    for (size_t i = 0; i < n; i++)
        near__wire_add(&wire, cache, asks[i]->key)->user = asks[i];
    if (generation != NULL)
        near__wire_add_generation(&wire, cache);
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->get_many(client->l2, wire.items, wire.n, deliver, reading, deadline);
    for (size_t i = 0; i < n; i++)
        take_answer(cache, &wire.items[i]);
    if (generation != NULL)
        *generation = wire.items[n];
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
        if (unknown == NEAR_OK && ask->entry->generation == generation)
            continue;
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

void
near__tier_read(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline, uint64_t *generation)
{
    struct reading reading = {
        .cache   = cache,
        .now     = near__client_now(cache->client),
        .wall_ms = near__wall_ms(&cache->client->clock),
    };
    struct near_l2_item item    = { .answer = NEAR_L2_NOT_TRIED };
    near_status         unknown = NEAR_OK;
    uint64_t            epoch;
    bool                known = near__generation_known(cache, reading.now, generation, &epoch);

    for (size_t at = 0; at < n; at += NEAR_L2_BATCH - 1) {
        size_t part = n - at < NEAR_L2_BATCH - 1 ? n - at : NEAR_L2_BATCH - 1;
        read_batch(cache, &reading, asks + at, part, deadline, !known && at == 0 ? &item : NULL);
    }
    if (!known && item.answer == NEAR_L2_DONE && reading.generation != 0) {
        *generation = reading.generation;
        near__generation_learn(cache, *generation, epoch);
    } else if (!known && (item.answer == NEAR_L2_ABSENT || item.answer == NEAR_L2_DONE)) {
        *generation = 0; /* none, or damaged: whatever is there belongs to no generation */
        near__generation_doubt(cache, true); /* nor may the last known one be written with any more */
    } else if (!known && *generation == 0) {
        unknown = item.status != NEAR_OK ? item.status
                                         : NEAR_ERR_UNAVAILABLE; /* not known: nothing can be judged */
    } /* else: cannot be read just now; one read within l1.max_ttl goes on (a ring with one dead server) */
    check_generation(cache, asks, n, *generation, unknown);
    distrust_owed(cache, asks, n);
}

/* ---- leases */

/* How a lease is taken: where there is nothing, over what may not be served, or beside what still may. */
enum how { NOT, IF_ABSENT, OVER, BESIDE };

static enum how
how_to_lease(const struct near__ask *ask)
{
    if (ask->lease != 0 || ask->lost)
        return NOT;
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
static uint8_t *
encode_marker(near_bytes key, uint64_t lease, uint64_t generation, size_t *size)
{
    struct near__envelope envelope = {
        .flags = NEAR__ENVELOPE_LEASE, .stamp = lease, .generation = generation, .key = key
    };
    uint8_t *bytes;

    *size = near__envelope_size(key, envelope.payload);
    bytes = malloc(*size);
    if (bytes != NULL)
        near__envelope_encode(&envelope, bytes);
    return bytes;
}

static void
take_lease_answer(near_cache *cache, const struct near_l2_item *item, enum how how)
{
    struct near__ask *ask = item->user;

    if (item->answer == NEAR_L2_DONE) {
        uint64_t stamp = near__le64_get((const uint8_t *)item->value.data + NEAR_L2_STAMP_AT);

        ask->side  = how == BESIDE ? stamp : 0;
        ask->lease = how == BESIDE ? ask->stamp : stamp;
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
    struct near__wire wire;

    if (near__wire_open(&wire, cache, n, key_bytes(asks, n)) != NEAR_OK)
        return;
    for (size_t i = 0; i < n; i++) {
        struct near_l2_item *item;
        struct near__ask    *ask = asks[i];
        uint8_t             *marker;
        size_t               size;

        if (how_to_lease(ask) != how)
            continue;
        marker = encode_marker(ask->key, near__stamp(), generation, &size);
        if (marker == NULL)
            continue;
        item           = how == BESIDE ? near__wire_add_side(&wire, cache, ask->key)
                                       : near__wire_add(&wire, cache, ask->key);
        item->user     = ask;
        item->value    = (near_bytes){ marker, size };
        item->expected = ask->stamp;
        item->ttl_ms   = ttl_ms > client->traits.min_lease_ms ? ttl_ms : client->traits.min_lease_ms;
    }
    if (wire.n > 0) {
        near__count(cache, NEAR__l2_requests, 1);
        client->ops->set_many(client->l2, mode, wire.items, wire.n, NULL, deadline);
    }
    for (size_t i = 0; i < wire.n; i++)
        take_lease_answer(cache, &wire.items[i], how);
    near__wire_free_values(&wire);
    near__wire_close(&wire);
}

/* Damaged bytes too short to have a stamp: out of the way, then as if absent. */
static void
remove_unreadable(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline)
{
    near_client      *client = cache->client;
    struct near__wire wire;

    if (near__wire_open(&wire, cache, n, key_bytes(asks, n)) != NEAR_OK)
        return;
    for (size_t i = 0; i < n; i++)
        if (asks[i]->found == NEAR__UNREADABLE && asks[i]->stamp == 0)
            near__wire_add(&wire, cache, asks[i]->key)->user = asks[i];
    if (wire.n > 0)
        client->ops->remove_many(client->l2, NEAR_L2_ALWAYS, wire.items, wire.n, NULL, deadline);
    for (size_t i = 0; i < wire.n; i++)
        if (wire.items[i].answer == NEAR_L2_DONE)
            ((struct near__ask *)wire.items[i].user)->found = NEAR__ABSENT;
    near__wire_close(&wire);
}

/* Whether any of the asks needs it: saves an exchange and a block of memory. */
static bool
any_wants(struct near__ask **asks, size_t n, enum how how)
{
    for (size_t i = 0; i < n; i++)
        if (how_to_lease(asks[i]) == how)
            return true;
    return false;
}

static bool
any_unreadable(struct near__ask **asks, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (asks[i]->found == NEAR__UNREADABLE && asks[i]->stamp == 0)
            return true;
    return false;
}

void
near__tier_lease(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation, int64_t deadline)
{
    for (size_t at = 0; at < n; at += NEAR_L2_BATCH) {
        struct near__ask **part = asks + at;
        size_t             size = n - at < NEAR_L2_BATCH ? n - at : NEAR_L2_BATCH;

        if (any_unreadable(part, size))
            remove_unreadable(cache, part, size, deadline);
        for (enum how how = IF_ABSENT; how <= BESIDE; how++)
            if (any_wants(part, size, how))
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
        if (beside && asks[i]->side != 0)
            near__wire_add_side(&wire, cache, asks[i]->key)->expected = asks[i]->side;
        if (!beside && asks[i]->side == 0 && asks[i]->lease != 0)
            near__wire_add(&wire, cache, asks[i]->key)->expected = asks[i]->lease;
    }
    if (wire.n > 0) {
        near__count(cache, NEAR__l2_requests, 1);
        client->ops->remove_many(client->l2, NEAR_L2_IF_STAMP, wire.items, wire.n, NULL, deadline);
    }
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
fill_batch(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation, int64_t deadline)
{
    near_client      *client = cache->client;
    size_t            stored = 0;
    struct near__wire wire;

    if (near__wire_open(&wire, cache, n, key_bytes(asks, n)) != NEAR_OK)
        return 0;
    for (size_t i = 0; i < n; i++) {
        struct near_l2_item *item;
        struct near__ask    *ask   = asks[i];
        uint64_t             stamp = near__stamp();
        uint8_t             *bytes;
        size_t               size;

        if (ask->lease == 0 || ask->entry == NULL)
            continue;
        bytes = near__tier_encode(cache, ask->entry, 0, stamp, generation, ask->ttl, &size);
        if (bytes == NULL)
            continue;
        item           = near__wire_add(&wire, cache, ask->key);
        item->user     = ask;
        item->value    = (near_bytes){ bytes, size };
        item->expected = ask->lease;
        item->ttl_ms   = near__ttl_ms(near__kept_for(cache, ask->entry->negative, ask->ttl));
    }
    if (wire.n > 0) {
        near__count(cache, NEAR__l2_requests, 1);
        client->ops->set_many(client->l2, NEAR_L2_IF_STAMP, wire.items, wire.n, NULL, deadline);
    }
    for (size_t i = 0; i < wire.n; i++) {
        ((struct near__ask *)wire.items[i].user)->refused = wire.items[i].answer == NEAR_L2_ABSENT;
        if (wire.items[i].answer == NEAR_L2_DONE)
            stored++;
        else
            near__count(cache,
                        wire.items[i].answer == NEAR_L2_ABSENT ? NEAR__l2_fills_refused : NEAR__l2_errors, 1);
    }
    near__count(cache, NEAR__l2_fills, stored);
    near__wire_free_values(&wire);
    near__wire_close(&wire);
    return stored;
}

size_t
near__tier_fill(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation, int64_t deadline)
{
    size_t stored = 0;

    for (size_t at = 0; at < n; at += NEAR_L2_BATCH) {
        size_t part = n - at < NEAR_L2_BATCH ? n - at : NEAR_L2_BATCH;

        stored += fill_batch(cache, asks + at, part, generation, deadline);
        if (any_beside(asks + at, part))
            remove_markers(cache, asks + at, part, true, deadline);
    }
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
