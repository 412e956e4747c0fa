/*
 * The client's view of L2: keys and entries instead of wire keys and stored bytes.
 *
 * An ask is one key on its way through L2: read, lease, fill.  Nothing here touches L1; nothing holds a lock.
 */
#ifndef NEAR_CLIENT_TIER_H
#define NEAR_CLIENT_TIER_H

#include "base/le.h"
#include "client.h"
#include "l2/envelope.h"

enum near__found {
    NEAR__UNASKED = 0,
    NEAR__FOUND,      /* `entry` is set (it may be a negative one) */
    NEAR__STALE,      /* the same, past its TTL and within grace */
    NEAR__ABSENT,     /* the server's positive word */
    NEAR__LEASED,     /* a marker: somebody is loading it */
    NEAR__MARKED,     /* a mark: the store is being written.  Load it, and keep that nowhere */
    NEAR__OUTDATED,   /* an entry that may not be served: of an older generation, or expired by its header */
    NEAR__UNREADABLE, /* bytes that are no entry of ours, or another key's */
    NEAR__UNREACHABLE /* L2 could not say; `status` */
};

/* Whether an entry with tags may be served. */
enum near__labelled {
    NEAR__LABELS_GOOD,
    NEAR__LABELS_OLD,    /* a tag was invalidated after its value was asked for */
    NEAR__LABELS_UNKNOWN /* L2 could not say; `status` */
};

struct near__ask {
    near_bytes             key;
    uint64_t               hash;
    uint64_t               fence;       /* captured before L2 is asked */
    uint32_t               label_clock; /* alike: the L1's clock of tags */
    enum near__labelled    labelled;
    struct near__tag_clock clock; /* L2's clock of tags, as read or known before the load */
    struct near__entry    *entry; /* FOUND: a reference of the ask's owner.  fill: what to store */
    enum near__found       found;
    near_status            status; /* UNREACHABLE: why */
    uint64_t
             stamp; /* FOUND, STALE, OUTDATED, UNREADABLE, LEASED, MARKED: of what lies there; 0: not to be had, or has none */
    uint32_t dictionary; /* UNREADABLE: what it is compressed with is not here; else 0 */
    int64_t  soft_until; /* FOUND, STALE: end of its TTL, however long L1 may keep it; NEAR_NEVER */
    bool     counter;    /* FOUND: one of near_add()'s, which L1 does not keep */
    bool     disk;       /* FOUND: by the disk tier */
    bool     refresh;    /* FOUND, and to be replaced all the same */
    bool     lost;       /* another instance has the lease */
    bool     refused;    /* fill: something else lay there, or the lease was lost */
    bool     stored;     /* fill: it lies there */
    bool doubtful; /* fill, l2.envelope = none: it may lie there, and its lease may have been voided before */
    uint64_t
        lease; /* what a fill may replace: our marker's stamp, or that of the entry it refreshes; 0: nothing */
    uint64_t side; /* refresh: stamp of our marker beside the entry; 0: none */
    int64_t  ttl;  /* fill: ns, 0: never expires */
};

/* The generation of caches with l2.envelope = none, whose entries belong to none. */
#define NEAR__GENERATION_BARE 1

/* Soft expiry of an entry that near_expire() declared stale: a time long ago that no TTL gives. */
#define NEAR__SOFT_FORCED 1

/* ---- wire keys and items */

/* What a key of L2 is of ours: NEAR__L2_ENTRY (`key` is the user's), NEAR__L2_TAG (the tag's name), NEAR__L2_HASHED (of either, but
 * whose cannot be said), NEAR__L2_GENERATION, of the cache `name`; or nothing that L1 depends on. */
enum near__l2_key { NEAR__L2_ENTRY, NEAR__L2_TAG, NEAR__L2_HASHED, NEAR__L2_GENERATION, NEAR__L2_NOTHING };
enum near__l2_key near__l2_key_read(const near_client *client, near_bytes l2_key, near_bytes *name,
                                    near_bytes *key);

/* Items and their keys for one call of the backend, in one block: inside where that is enough, for it is for one key. */
struct near__wire {
    struct near_l2_item *items; /* all zero but the key */
    size_t               n;
    char                *keys;
    uint8_t             *values, *values_end; /* stored forms, in a block of their own; NULL: none */
    _Alignas(16) char inside[768];
};
/* Room for `n` items with keys of `key_bytes` in all (user keys, without prefixes).  NEAR_OK or NEAR_ERR_NOMEM. */
near_status near__wire_open(struct near__wire *wire, const near_cache *cache, size_t n, size_t key_bytes);
void        near__wire_close(struct near__wire *wire);

/* What the backend said of a conditional write: NEAR_MISS when the condition did not hold. */
static inline near_status
near__item_status(const struct near_l2_item *item)
{
    if (item->answer == NEAR_L2_DONE)
        return NEAR_OK;
    if (item->answer == NEAR_L2_ABSENT)
        return NEAR_MISS;
    return item->status != NEAR_OK ? item->status : NEAR_ERR_TIMEOUT;
}
/* Room for `bytes` of stored forms, once.  False: out of memory. */
bool                 near__wire_make_room(struct near__wire *wire, size_t bytes);
struct near_l2_item *near__wire_add(struct near__wire *wire, const near_cache *cache, near_bytes key);
/* The lease beside an entry that stays in use while it is refreshed. */
struct near_l2_item *near__wire_add_side(struct near__wire *wire, const near_cache *cache, near_bytes key);
/* A tag, and the clock of all tags (client/tags.h). */
struct near_l2_item *near__wire_add_tag(struct near__wire *wire, const near_cache *cache, near_bytes tag);
struct near_l2_item *near__wire_add_clock(struct near__wire *wire, const near_cache *cache);
/* The item of the dictionary with that id, and of the newest one's name. */
struct near_l2_item *near__wire_add_dictionary(struct near__wire *wire, const near_cache *cache, uint32_t id);
struct near_l2_item *near__wire_add_newest(struct near__wire *wire, const near_cache *cache);
/* The item of the cache's generation. */
struct near_l2_item *near__wire_add_generation(struct near__wire *wire, const near_cache *cache);

/* Fresh stamps, never 0: a sequence (splitmix64) of the client's own, from a place drawn at random when it was opened.  Asking the
 * kernel for each would cost more than all the rest of a small entry.  A forked child cannot go on with it: it cannot use the
 * client. */
#define NEAR__STAMP_STEP         UINT64_C(0x9E3779B97F4A7C15)
#define NEAR__STAMP_STEP_INVERSE UINT64_C(0xF1DE83E19937733D) /* modulo 2^64 */

/* Draw `n` at once; relaxed, for all that matters is that nobody gets them twice. */
static inline uint64_t
near__stamps_draw(near_client *client, size_t n)
{
    return client->stamp_base +
           atomic_fetch_add_explicit(&client->stamps, n, memory_order_relaxed) * NEAR__STAMP_STEP;
}

static inline uint64_t
near__stamp_nth(uint64_t drawn, size_t i)
{
    uint64_t mixed = drawn + i * NEAR__STAMP_STEP;

    mixed = (mixed ^ mixed >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    mixed = (mixed ^ mixed >> 27) * UINT64_C(0x94D049BB133111EB);
    mixed ^= mixed >> 31;
    return mixed != 0 ? mixed : 1;
}

static inline uint64_t
near__stamp(near_client *client)
{
    return near__stamp_nth(near__stamps_draw(client, 1), 0);
}

/* Whether this client drew it: the way back through near__stamp_nth().  Relaxed: whoever has met a stamp knows of its drawing. */
static inline bool
near__stamp_is_own(near_client *client, uint64_t stamp)
{
    uint64_t drawn = stamp;

    drawn = (drawn ^ drawn >> 31 ^ drawn >> 62) * UINT64_C(0x319642B2D24D8EC3);
    drawn = (drawn ^ drawn >> 27 ^ drawn >> 54) * UINT64_C(0x96DE1B173F119089);
    drawn ^= drawn >> 30 ^ drawn >> 60;
    return (drawn - client->stamp_base) * NEAR__STAMP_STEP_INVERSE <
           atomic_load_explicit(&client->stamps, memory_order_relaxed);
}

/* ---- asks */

/* Read all.  `now`: no later than this call, and what the answers are dated with.  *generation: the cache's, 0 when there is none yet or L2 could not say. */
void near__tier_read(near_cache *cache, struct near__ask **asks, size_t n, int64_t now, int64_t deadline,
                     uint64_t *generation);
/* Try to take the lease of each that is ABSENT, OUTDATED, UNREADABLE, STALE or to be refreshed: sets `lease` of those won, `lost` of
 * those that somebody else has. */
void near__tier_lease(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation,
                      int64_t deadline);
/* Store `entry` of each that has a lease, if what it may replace is still there; else sets `refused`.  Returns how many were
 * stored.  Leases beside an entry are given back. */
size_t near__tier_fill(near_cache *cache, struct near__ask **asks, size_t n, uint64_t generation,
                       int64_t deadline);
/* Give the lease of each back without a value: an entry that was to be refreshed stays. */
void near__tier_unlease(near_cache *cache, struct near__ask **asks, size_t n, int64_t deadline);

/* ---- envelopes of a cache: sealed where it has a key (l2.mac_key_file), and then none is believed that is not */

/* An envelope's bytes before its key. */
static inline size_t
near__head_room(const near_cache *cache)
{
    return cache->mac != NULL ? NEAR__ENVELOPE_MOST : NEAR__ENVELOPE_HEADER;
}

/* The bytes that near__tier_encode() will write.  Sets `sealed`. */
size_t near__tier_measure(const near_cache *cache, struct near__envelope *envelope);
/* Write it to `bytes`, which are returned, to lie in L2 under the key `place`. */
near_bytes near__tier_encode(const near_cache *cache, struct near__envelope *envelope, near_bytes place,
                             uint8_t *bytes);
/* What lay in L2 under the key `place`; `key` is what the entry must say.  `old_key` is set where the key that sealed it is one that is
 * only believed.  Of one that is not sealed as it should be,
 * NEAR__ENVELOPE_FORGED, and counted: it is of no more use than damaged bytes, whose stamp is good for replacing them. */
enum near__envelope_result near__tier_decode(const near_cache *cache, struct near__envelope *envelope,
                                             near_bytes place, near_bytes stored, near_bytes key);

/* The stamp of whatever lies there, by its place; 0: too short to have one. */
static inline uint64_t
near__stamp_in(near_bytes stored)
{
    if (stored.size < NEAR_L2_STAMP_AT + 8)
        return 0;
    return near__le64_get((const uint8_t *)stored.data + NEAR_L2_STAMP_AT);
}

/* What is to be stored. */
struct near__stored {
    near_bytes key, value;
    uint64_t   stamp, generation;
    int64_t    ttl; /* ns, 0: never expires */
    uint32_t   cost_us;
    bool       negative;

    const struct near__labels *labels; /* NULL: none */
};
/* The room that its stored form may need in a wire. */
static inline size_t
near__tier_room(const near_cache *cache, near_bytes key, near_bytes value, const struct near__labels *labels)
{
    size_t tags = labels != NULL ? NEAR__ENVELOPE_CLOCK + labels->names_size : 0;

    return cache->bare ? 0 : near__head_room(cache) + key.size + tags + value.size;
}
/* Put it on the wire as the value of `item`; l2.envelope = none: by reference.  wall_ms: now. */
void near__tier_store(near_cache *cache, struct near__wire *wire, struct near_l2_item *item,
                      const struct near__stored *stored, int64_t wall_ms);

/* Whether L2 can have an entry under that key: any, but for l2.envelope = none, where an entry does not say its key and so must lie
 * under it.  NEAR_OK, NEAR_ERR_INVALID, NEAR_ERR_TOO_LARGE. */
near_status near__tier_key_check(const near_cache *cache, near_bytes key);

/* l2.envelope = none: void every lease on these keys, so that no load under way fills them.  NEAR_OK, or why not all. */
near_status near__tier_void_leases(near_cache *cache, const near_bytes *keys, size_t n, int64_t deadline);

/* Date an entry that is good for `ttl` ns (0: for ever) from `born` on: when it has to be refreshed and when it leaves L1. */
static inline void
near__entry_date(const near_cache *cache, struct near__entry *entry, int64_t born, int64_t ttl)
{
    entry->born        = born;
    entry->fresh_until = near__time_after(born, ttl != 0 && ttl < cache->max_ttl ? ttl : cache->max_ttl);
    entry->expires     = near__time_after(entry->fresh_until, entry->negative ? 0 : cache->settings.grace);
}

/* How long L2 keeps what is good for `ttl`: grace longer.  0: for ever; below 0: it has ended already, perhaps with its grace. */
static inline int64_t
near__kept_for(const near_cache *cache, bool negative, int64_t ttl)
{
    if (ttl == 0 || negative || cache->bare) /* who else reads it knows no grace */
        return ttl;
    return ttl < 0 ? ttl + cache->settings.grace : near__time_after(ttl, cache->settings.grace);
}

/* Milliseconds for the wire: rounded up, 0 only for "never". */
static inline int64_t
near__ttl_ms(int64_t ttl)
{
    return ttl / NEAR_MS + (ttl % NEAR_MS != 0);
}

#endif
