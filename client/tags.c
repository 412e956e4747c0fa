/* See tags.h. */
#include "tags.h"

#include "announce.h"

#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "generation.h"
#include "l2/envelope.h"
#include "recovery.h"

enum {
    SEEN      = 512, /* tags whose moment is remembered, direct mapped */
    SEEN_NAME = 86,  /* longer ones are not remembered */
    ROUNDS    = 8,   /* tries to move a clock that others move as well, before the deadline is looked at */
    MOMENT    = 16,  /* bytes of a stored one: lineage, moment */
    STORED    = NEAR__ENVELOPE_MOST + 64 + NEAR__CACHE_NAME_MAX + 48 + NEAR__LABEL_SIZE + MOMENT,
    WANTED    = NEAR_L2_BATCH - 1 /* tags asked for in one exchange, beside the clock */
};

/* A message whose moment is so far ahead of the clock that we knew is broken, or of somebody else: what it says of its tag is read, too. */
#define FAR (UINT64_C(1) << 20)

/* L2 keeps a tag that nobody reads any more for this long, and forgetting it costs its entries one miss. */
#define KEEP (24 * INT64_C(3600) * NEAR__SEC)

struct near__tag_seen {
    uint64_t               hash;
    struct near__tag_clock last;  /* its last invalidation; lineage 0: an empty place */
    uint64_t               as_of; /* true at this moment of the clock ... */
    uint64_t               epoch; /* ... and, where messages come, ever since if the epoch is the same */
    uint32_t told; /* messages about tags of this place: who asked L2 before one must not overwrite it */
    uint8_t  size;
    char     name[SEEN_NAME];
};

void
near__tags_init(struct near__tags *tags)
{
    near__lock_init(&tags->lock, NEAR__RANK_LEAF);
}

void
near__tags_fini(struct near__tags *tags)
{
    free(tags->seen);
    near__lock_fini(&tags->lock);
}

/* ---- labels */

static uint64_t
hash_of(const near_cache *cache, near_bytes tag)
{
    return near__hash_keyed(&cache->client->secret, tag);
}

/* The next name; false after the last. */
static bool
next_name(near_bytes names, size_t *at, near_bytes *name)
{
    const uint8_t *bytes = names.data;

    if (*at >= names.size)
        return false;
    *name = (near_bytes){ bytes + *at + 1, bytes[*at] };
    *at += (size_t)1 + bytes[*at];
    return true;
}

static near_bytes
names_of(const struct near__labels *labels)
{
    return (near_bytes){ labels->names, labels->names_size };
}

static bool
has_name(const struct near__labels *labels, near_bytes tag)
{
    near_bytes name;
    size_t     at = 0;

    while (labels != NULL && next_name(names_of(labels), &at, &name))
        if (near__bytes_equal(name, tag))
            return true;
    return false;
}

near_status
near__tags_add(near_cache *cache, struct near__labels **labels, near_bytes tag)
{
    size_t               have = *labels != NULL ? (*labels)->names_size : 0;
    struct near__labels *grown;

    if (tag.size == 0)
        return NEAR_ERR_INVALID;
    if (cache->bare)
        return NEAR_ERR_UNSUPPORTED;
    if (tag.size > NEAR__LABEL_SIZE || (*labels != NULL && (*labels)->n == NEAR__LABELS_MAX))
        return NEAR_ERR_TOO_LARGE;
    if (has_name(*labels, tag))
        return NEAR_OK;
    grown = realloc(*labels, sizeof(*grown) + have + 1 + tag.size);
    if (grown == NULL)
        return NEAR_ERR_NOMEM;
    if (*labels == NULL)
        memset(grown, 0, sizeof(*grown));
    grown->stripes[grown->n++]      = near__label_stripe(hash_of(cache, tag));
    grown->names[grown->names_size] = (uint8_t)tag.size;
    memcpy(grown->names + grown->names_size + 1, tag.data, tag.size);
    grown->names_size += 1 + tag.size;
    *labels = grown;
    atomic_store_explicit(&cache->tags.used, true, memory_order_relaxed);
    return NEAR_OK;
}

near_status
near__tags_add_names(near_cache *cache, struct near__labels **labels, near_bytes names)
{
    near_status status = NEAR_OK;
    near_bytes  name;
    size_t      at = 0;

    while (status == NEAR_OK && next_name(names, &at, &name))
        status = near__tags_add(cache, labels, name);
    return status;
}

bool
near__labels_copy(struct near__labels **copy, const struct near__labels *labels)
{
    size_t size = labels != NULL ? sizeof(*labels) + labels->names_size : 0;

    *copy = size > 0 ? malloc(size) : NULL;
    if (*copy != NULL)
        memcpy(*copy, labels, size);
    return size == 0 || *copy != NULL;
}

struct near__labels *
near__tags_of(near_cache *cache, unsigned n, near_bytes names)
{
    struct near__labels *labels = calloc(1, sizeof(*labels) + names.size);
    near_bytes           name;
    size_t               at = 0;

    if (labels == NULL)
        return NULL;
    atomic_store_explicit(&cache->tags.used, true, memory_order_relaxed);
    while (labels->n < n && labels->n < NEAR__LABELS_MAX && next_name(names, &at, &name))
        labels->stripes[labels->n++] = near__label_stripe(hash_of(cache, name));
    labels->names_size = names.size;
    memcpy(labels->names, names.data, names.size);
    return labels;
}

/* ---- what is known */

bool
near__tags_known(near_cache *cache, int64_t now, struct near__tag_clock *clock, uint64_t *epoch)
{
    struct near__tags *tags = &cache->tags;
    bool               known;

    near__lock(&tags->lock);
    /* not for ever even with a bus: L2 may have lost the clock, and a new one is not announced */
    known  = tags->known && now - tags->learned < cache->max_ttl && near__holds(cache, now, tags->learned);
    *clock = known ? tags->clock : (struct near__tag_clock){ 0, 0 };
    *epoch = tags->doubts;
    near__unlock(&tags->lock);
    return known;
}

bool
near__tags_wanted(near_cache *cache, int64_t now, struct near__tag_clock *clock, uint64_t *epoch)
{
    *clock = (struct near__tag_clock){ 0, 0 };
    *epoch = 0;
    if (cache->bare || near__tags_known(cache, now, clock, epoch))
        return false;
    /* relaxed: a hint, in time for the next load */
    return atomic_load_explicit(&cache->tags.used, memory_order_relaxed) || near__hears(cache, now);
}

void
near__tags_learn(near_cache *cache, struct near__tag_clock clock, uint64_t epoch)
{
    struct near__tags *tags = &cache->tags;

    near__lock(&tags->lock);
    if (tags->doubts == epoch) {
        if (clock.lineage != tags->clock.lineage || clock.moment > tags->clock.moment)
            tags->clock = clock;
        tags->known   = true;
        tags->learned = near__client_now(cache->client);
    }
    near__unlock(&tags->lock);
}

void
near__tags_doubt(near_cache *cache)
{
    struct near__tags *tags = &cache->tags;

    near__lock(&tags->lock);
    tags->known = false;
    tags->doubts++;
    tags->epoch++;
    near__unlock(&tags->lock);
}

static uint64_t
epoch_now(struct near__tags *tags)
{
    uint64_t epoch;

    near__lock(&tags->lock);
    epoch = tags->epoch;
    near__unlock(&tags->lock);
    return epoch;
}

static struct near__tag_seen *
place_locked(const struct near__tags *tags, uint64_t hash) NEAR__NEEDS(tags->lock)
{
    return tags->seen != NULL ? &tags->seen[hash % SEEN] : NULL;
}

static bool
is_of(const struct near__tag_seen *seen, uint64_t hash, near_bytes tag)
{
    return seen->hash == hash && seen->last.lineage != 0 &&
           near__bytes_equal((near_bytes){ seen->name, seen->size }, tag);
}

/* At its own moment what is said of a tag is exact, whatever else is under way. */
static void
note_locked(const struct near__tags *tags, struct near__tag_seen *seen, uint64_t hash, near_bytes tag,
            struct near__tag_clock last) NEAR__NEEDS(tags->lock)
{
    if (tag.size > SEEN_NAME) {
        seen->last.lineage = 0;
        return;
    }
    seen->hash  = hash;
    seen->last  = last;
    seen->as_of = last.moment;
    seen->epoch = tags->epoch;
    seen->size  = (uint8_t)tag.size;
    memcpy(seen->name, tag.data, tag.size);
}

/* `confirmed`: L2 has said so, else it is hearsay. */
static void
note(near_cache *cache, near_bytes tag, struct near__tag_clock moment, bool confirmed)
{
    struct near__tags     *tags = &cache->tags;
    uint64_t               hash = hash_of(cache, tag);
    struct near__tag_seen *seen;
    bool                   far;

    near__lock(&tags->lock);
    far = moment.lineage == tags->clock.lineage && moment.moment > tags->clock.moment &&
          moment.moment - tags->clock.moment > FAR;
    if (moment.lineage != tags->clock.lineage) { /* of a count that we do not know: read it */
        tags->known = false;
        tags->doubts++;
        tags->epoch++;
    } else if (moment.moment > tags->clock.moment && confirmed) {
        tags->clock.moment = moment.moment;
    } else if (moment.moment > tags->clock.moment) {
        tags->known = false;
        tags->doubts++; /* who reads it now may have read it before that */
    }
    seen = place_locked(tags, hash);
    if (seen != NULL) {
        seen->told++;
        /* of a tag that is not remembered this may be an old message: it is to be read */
        if (!is_of(seen, hash, tag) || seen->last.lineage != moment.lineage || (far && !confirmed))
            seen->last.lineage = 0;
        else if (seen->last.moment < moment.moment)
            note_locked(tags, seen, hash, tag, moment);
    }
    near__unlock(&tags->lock);
}

void
near__tags_told(near_cache *cache, near_bytes tag, struct near__tag_clock moment)
{
    note(cache, tag, moment, false);
}

/* ---- asking */

struct wanted {
    near_bytes             name;
    uint64_t               hash;
    struct near__tag_clock last; /* lineage 0: not known */
    uint32_t               told;
    uint64_t               stamp; /* of what lies there, 0: nothing */
    uint64_t               old;   /* the same, if it is sealed by a key that is only believed; else 0 */
    bool                   absent;
};

struct asking {
    near_cache            *cache;
    struct near__tag_clock clock;
    bool                   hears;
    uint64_t               epoch;  /* of what is remembered of tags */
    uint64_t               doubts; /* for near__tags_learn() */
    near_status            status; /* why something could not be said */
    size_t                 n;
    struct wanted          wanted[WANTED];
};

/* What is remembered of a tag, if it is still true; else *told to learn it by. */
static bool
recall(const struct asking *asking, struct wanted *wanted)
{
    struct near__tags           *tags = &asking->cache->tags;
    const struct near__tag_seen *seen;
    bool                         known = false;

    near__lock(&tags->lock);
    if (tags->seen == NULL)
        tags->seen = calloc(SEEN, sizeof(*tags->seen)); /* without memory nothing is remembered */
    seen = place_locked(tags, wanted->hash);
    if (seen != NULL) {
        wanted->told = seen->told;
        known        = is_of(seen, wanted->hash, wanted->name) &&
                (asking->hears
                     ? seen->epoch == tags->epoch
                     : seen->as_of == asking->clock.moment && seen->last.lineage == asking->clock.lineage);
        if (known)
            wanted->last = seen->last;
    }
    near__unlock(&tags->lock);
    return known;
}

static void
remember(const struct asking *asking, const struct wanted *wanted)
{
    struct near__tags     *tags = &asking->cache->tags;
    struct near__tag_seen *seen;

    near__lock(&tags->lock);
    seen = place_locked(tags, wanted->hash);
    if (seen != NULL && seen->told == wanted->told && tags->epoch == asking->epoch) {
        note_locked(tags, seen, wanted->hash, wanted->name, wanted->last);
        seen->as_of = asking->clock.moment;
    }
    near__unlock(&tags->lock);
}

struct near__tag_clock
near__tags_decode(const near_cache *cache, near_bytes place, near_bytes stored, uint64_t *old)
{
    struct near__tag_clock clock = { 0, 0 };
    struct near__envelope  envelope;

    *old = 0;
    if (near__tier_decode(cache, &envelope, place, stored, place) != NEAR__ENVELOPE_OK ||
        envelope.payload.size != MOMENT)
        return clock;
    *old          = envelope.old_key ? envelope.stamp : 0;
    clock.lineage = near__le64_get(envelope.payload.data);
    clock.moment  = near__le64_get((const uint8_t *)envelope.payload.data + 8);
    return clock;
}

static void
encode_moment(const near_cache *cache, struct near_l2_item *item, struct near__tag_clock clock,
              uint8_t *bytes)
{
    uint8_t payload[MOMENT];

    near__le64_put(payload, clock.lineage);
    near__le64_put(payload + 8, clock.moment);
    near__number_encode(cache, item, (near_bytes){ payload, sizeof(payload) }, bytes);
}

/* Damaged bytes are as good as nothing, and are overwritten: their stamp says so where they have one. */
static void
deliver(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct wanted *wanted = item->user;

    wanted->stamp  = near__stamp_in(stored);
    wanted->last   = near__tags_decode(ctx, item->key, stored, &wanted->old);
    wanted->absent = wanted->last.lineage == 0;
}

/* What lies there has no stamp under which it could be replaced, and is nothing: it goes.  If it was another's by then, that is as if L2
 * had evicted it. */
static near_status
clear_away(near_cache *cache, struct near_l2_item *item, struct wanted *wanted, int64_t deadline)
{
    near_status status;

    *item = (struct near_l2_item){ .key = item->key };
    near__count(cache, NEAR__l2_corrupt, 1);
    near__count(cache, NEAR__l2_requests, 1);
    cache->client->ops->remove_many(cache->client->l2, NEAR_L2_ALWAYS, item, 1, NULL, deadline);
    status         = near__item_status(item);
    wanted->absent = true;
    return status == NEAR_MISS ? NEAR_OK : status;
}

/* Read tags (or the clock, which has no name) into wanted[0..n). */
static near_status
read_wanted(near_cache *cache, struct wanted *wanted, size_t n, int64_t deadline)
{
    near_client      *client = cache->client;
    size_t            bytes  = 0;
    struct near__wire wire;
    near_status       status;

    for (size_t i = 0; i < n; i++)
        bytes += wanted[i].name.size;
    status = near__wire_open(&wire, cache, n, bytes);
    if (status != NEAR_OK)
        return status;
    for (size_t i = 0; i < n; i++) {
        struct near_l2_item *item = wanted[i].name.size > 0 ? near__wire_add_tag(&wire, cache, wanted[i].name)
                                                            : near__wire_add_clock(&wire, cache);
        item->user                = &wanted[i];
    }
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->get_many(client->l2, wire.items, n, deliver, cache, deadline);
    for (size_t i = 0; i < n && status == NEAR_OK; i++) {
        if (wire.items[i].answer == NEAR_L2_ABSENT)
            wanted[i].absent = true;
        else
            status = near__item_status(&wire.items[i]);
        if (status == NEAR_ERR_TOO_LARGE ||
            (wire.items[i].answer == NEAR_L2_DONE && wanted[i].last.lineage == 0 && wanted[i].stamp == 0))
            status = clear_away(cache, &wire.items[i], &wanted[i], deadline);
    }
    near__wire_close(&wire);
    return status;
}

/* How long L2 keeps a tag that nobody asks for: past the end of every entry that has it. */
static int64_t
kept_ms(const near_cache *cache)
{
    int64_t longest = near__kept_for(cache, false, cache->settings.ttl);

    return near__ttl_ms(near__time_after(KEEP, longest < KEEP ? longest : KEEP));
}

/* A tag's moment, or the clock (no name). */
static near_status
write_moment(near_cache *cache, near_bytes tag, struct near__tag_clock moment, enum near_l2_mode mode,
             uint64_t expected, int64_t deadline)
{
    near_client         *client = cache->client;
    struct near_l2_item *item;
    struct near__wire    wire;
    uint8_t              bytes[STORED];
    near_status          status = near__wire_open(&wire, cache, 1, tag.size);

    if (status != NEAR_OK)
        return status;
    item = tag.size > 0 ? near__wire_add_tag(&wire, cache, tag) : near__wire_add_clock(&wire, cache);
    encode_moment(cache, item, moment, bytes);
    item->expected = expected;
    item->ttl_ms   = tag.size > 0 ? kept_ms(cache) : 0;
    near__count(cache, NEAR__l2_requests, 1);
    client->ops->set_many(client->l2, mode, item, 1, NULL, deadline);
    status = near__item_status(item);
    near__wire_close(&wire);
    return status;
}

/* How to replace what was read, and nothing else. */
static enum near_l2_mode
over(const struct wanted *found)
{
    if (found->stamp != 0)
        return NEAR_L2_IF_STAMP;
    return found->absent ? NEAR_L2_IF_ABSENT : NEAR_L2_ALWAYS;
}

/* As it is, but by the key that signs now: see near__tier_read().  Whoever was quicker has done it. */
static void
seal_anew(near_cache *cache, const struct wanted *found, int64_t deadline)
{
    if (found->old != 0)
        (void)write_moment(cache, found->name, found->last, NEAR_L2_IF_STAMP, found->old, deadline);
}

/* The clock as it is; made where there is none. */
static near_status
read_clock(near_cache *cache, struct near__tag_clock *clock, int64_t deadline)
{
    for (int round = 0; round < 3; round++) {
        struct wanted found  = { .hash = 0 };
        near_status   status = read_wanted(cache, &found, 1, deadline);

        *clock = found.last;
        if (status == NEAR_OK)
            seal_anew(cache, &found, deadline);
        if (status != NEAR_OK || found.last.lineage != 0)
            return status;
        *clock = (struct near__tag_clock){ near__stamp(cache->client), 1 };
        status = write_moment(cache, (near_bytes){ NULL, 0 }, *clock, over(&found), found.stamp, deadline);
        if (status != NEAR_MISS) /* else somebody was quicker */
            return status;
    }
    return NEAR_ERR_UNAVAILABLE; /* made and lost again, every time */
}

/* The clock first: then a moment that is read is at least as new as the clock says. */
static void
read_all(struct asking *asking, int64_t deadline)
{
    if (asking->clock.lineage == 0) {
        asking->status = read_clock(asking->cache, &asking->clock, deadline);
        if (asking->status == NEAR_OK)
            near__tags_learn(asking->cache, asking->clock, asking->doubts);
    }
    if (asking->status == NEAR_OK)
        asking->status = read_wanted(asking->cache, asking->wanted, asking->n, deadline);
}

/* What is not there, or of an older count, begins at the clock's present moment: what was forgotten is not later than that. */
static void
make_missing(struct asking *asking, int64_t deadline)
{
    struct near__tag_clock now = { 0, 0 };

    for (size_t i = 0; i < asking->n && asking->status == NEAR_OK; i++) {
        struct wanted *wanted = &asking->wanted[i];

        if (wanted->last.lineage == asking->clock.lineage) {
            seal_anew(asking->cache, wanted, deadline);
            remember(asking, wanted);
            continue;
        }
        if (now.lineage == 0)
            asking->status = read_clock(asking->cache, &now, deadline);
        if (asking->status != NEAR_OK)
            return;
        wanted->last = now;
        asking->status =
            write_moment(asking->cache, wanted->name, now, over(wanted), wanted->stamp, deadline);
        if (asking->status == NEAR_OK) {
            remember(asking, wanted);
        } else if (asking->status == NEAR_MISS) { /* somebody was quicker, perhaps with an invalidation */
            wanted->last.moment = UINT64_MAX;
            asking->status      = NEAR_OK;
        }
    }
}

static struct wanted *
find_wanted(struct asking *asking, uint64_t hash, near_bytes name)
{
    for (size_t i = 0; i < asking->n; i++)
        if (asking->wanted[i].hash == hash && near__bytes_equal(asking->wanted[i].name, name))
            return &asking->wanted[i];
    return NULL;
}

static bool
is_later(const struct near__labels *labels, struct near__tag_clock last)
{
    return labels->lineage != last.lineage || last.moment > labels->moment;
}

/* Judge by what is remembered; what is not becomes wanted. */
static void
recall_all(struct asking *asking, struct near__ask *ask)
{
    const struct near__labels *labels = ask->entry->labels;
    struct wanted              one    = { .hash = 0 };
    size_t                     at     = 0;

    ask->labelled = NEAR__LABELS_GOOD;
    while (next_name(names_of(labels), &at, &one.name)) {
        one.hash = hash_of(asking->cache, one.name);
        one.last = (struct near__tag_clock){ 0, 0 };
        if (near__recovery_owes_tag(asking->cache, one.name)) { /* what L2 says of it is from before */
            ask->labelled = NEAR__LABELS_OLD;
            return;
        }
        if (find_wanted(asking, one.hash, one.name) != NULL)
            ask->labelled = NEAR__LABELS_UNKNOWN;
        else if (!recall(asking, &one)) {
            asking->wanted[asking->n++] = one;
            ask->labelled               = NEAR__LABELS_UNKNOWN;
        } else if (is_later(labels, one.last)) {
            ask->labelled = NEAR__LABELS_OLD;
            return;
        }
    }
}

static void
judge_one(struct asking *asking, struct near__ask *ask)
{
    const struct near__labels *labels = ask->entry->labels;
    near_bytes                 name;
    size_t                     at = 0;

    ask->labelled = NEAR__LABELS_GOOD;
    while (next_name(names_of(labels), &at, &name)) {
        const struct wanted *wanted = find_wanted(asking, hash_of(asking->cache, name), name);

        if (wanted != NULL && is_later(labels, wanted->last)) {
            ask->labelled = NEAR__LABELS_OLD;
            return;
        }
    }
}

/* Judge asks[0..n), all of whose tags have a place in `wanted` if they need one. */
static void
judge_part(struct asking *asking, struct near__ask **asks, size_t n, int64_t deadline)
{
    if (asking->n > 0) {
        read_all(asking, deadline);
        make_missing(asking, deadline);
    }
    for (size_t i = 0; i < n; i++) {
        if (asks[i]->entry == NULL || asks[i]->entry->labels == NULL ||
            asks[i]->labelled != NEAR__LABELS_UNKNOWN)
            continue;
        asks[i]->status = asking->status;
        if (asking->status == NEAR_OK)
            judge_one(asking, asks[i]);
    }
    asking->n = 0;
}

void
near__tags_judge(near_cache *cache, struct near__ask **asks, size_t n, struct near__tag_clock clock,
                 int64_t deadline)
{
    struct asking *asking = NULL;
    size_t         from   = 0;

    for (size_t i = 0; i < n; i++) {
        const struct near__labels *labels = asks[i]->entry != NULL ? asks[i]->entry->labels : NULL;

        if (labels == NULL)
            continue;
        if (asking == NULL) {
            asking = calloc(1, sizeof(*asking));
            if (asking != NULL) {
                struct near__tag_clock known;

                asking->cache = cache;
                asking->clock = clock;
                asking->hears = near__hears(cache, near__client_now(cache->client));
                near__tags_known(cache, near__client_now(cache->client), &known, &asking->doubts);
                asking->epoch = epoch_now(&cache->tags);
            }
        }
        asks[i]->labelled = NEAR__LABELS_UNKNOWN;
        asks[i]->status   = NEAR_ERR_NOMEM;
        if (asking == NULL)
            continue;
        if (asking->n + labels->n > WANTED) {
            judge_part(asking, asks + from, i - from, deadline);
            from = i;
        }
        asks[i]->status = NEAR_OK;
        recall_all(asking, asks[i]);
    }
    if (asking == NULL)
        return;
    judge_part(asking, asks + from, n - from, deadline);
    free(asking);
}

near_status
near__tags_now(near_cache *cache, struct near__tag_clock *clock, int64_t deadline)
{
    uint64_t    epoch;
    near_status status;

    if (near__tags_known(cache, near__client_now(cache->client), clock, &epoch))
        return NEAR_OK;
    status = read_clock(cache, clock, deadline);
    if (status == NEAR_OK)
        near__tags_learn(cache, *clock, epoch);
    return status;
}

/* ---- invalidating */

/* Write over what was found.  NEAR_MISS: somebody has, meanwhile. */
static near_status
replace(near_cache *cache, struct wanted *found, struct near__tag_clock moment, int64_t deadline)
{
    near_status status = write_moment(cache, found->name, moment, over(found), found->stamp, deadline);

    if (status == NEAR_OK)
        found->last = moment;
    return status;
}

/* Move the clock on from wherever it is.  NEAR_MISS: it is of another lineage by now. */
static near_status
move_clock(near_cache *cache, struct wanted *clock, struct near__tag_clock at_least, int64_t deadline)
{
    near_status status = NEAR_MISS;

    while (status == NEAR_MISS) {
        struct near__tag_clock next = at_least;

        if (clock->last.lineage == next.lineage && clock->last.moment >= next.moment)
            next.moment = clock->last.moment + 1;
        status = replace(cache, clock, next, deadline);
        if (status != NEAR_MISS)
            return status;
        *clock = (struct wanted){ .hash = 0 };
        status = read_wanted(cache, clock, 1, deadline);
        if (status == NEAR_OK)
            status = clock->last.lineage == at_least.lineage ? NEAR_MISS : NEAR_OK;
        if (status == NEAR_OK)
            return NEAR_MISS;
        if (near__client_now(cache->client) >= deadline)
            return NEAR_ERR_TIMEOUT;
    }
    return status;
}

/* The clock stands at `moment` or later: is the tag still as we wrote it?  L2 may have evicted it, and who found none before the
 * clock moved has made it at the moment before, or will.  What is missing or older gets the clock's moment, read after the tag: ours
 * could be behind another invalidation by now.  NEAR_MISS: the clock is of another lineage. */
static near_status
confirm(near_cache *cache, near_bytes tag, struct near__tag_clock moment, int64_t deadline)
{
    near_status status = NEAR_MISS;

    for (int round = 0; status == NEAR_MISS; round++) {
        struct wanted found = { .name = tag }, clock = { .hash = 0 };

        if (round >= ROUNDS && near__client_now(cache->client) >= deadline)
            return NEAR_ERR_TIMEOUT;
        status = read_wanted(cache, &found, 1, deadline);
        if (status != NEAR_OK || (found.last.lineage == moment.lineage && found.last.moment >= moment.moment))
            return status;
        status = read_wanted(cache, &clock, 1, deadline);
        if (status != NEAR_OK)
            return status;
        if (clock.last.lineage != moment.lineage || clock.last.moment < moment.moment)
            return NEAR_MISS;
        status = replace(cache, &found, clock.last, deadline);
    }
    return status;
}

/*
 * Note the invalidation in L2.  The order is what makes it sound:
 *
 *     read the clock  ->  tag to one moment more, never back  ->  move the clock  ->  look at the tag again  ->  tell the others
 *
 * What is loaded with the clock at that moment or later is loaded after this call began, for the clock was not there yet.  What is
 * read of the tag before it was written is known as of a clock that moves afterwards, so nobody believes it any longer.  And nobody
 * hears of a moment that the clock has not reached.
 */
static near_status
note_in_l2(near_cache *cache, near_bytes tag, struct near__tag_clock *moment, int64_t deadline)
{
    near_status status = NEAR_MISS;

    for (int round = 0; status == NEAR_MISS; round++) {
        struct wanted found[2] = { { .hash = 0 }, { .name = tag } };

        if (round >= ROUNDS && near__client_now(cache->client) >= deadline)
            return NEAR_ERR_TIMEOUT;
        status = read_wanted(cache, found, 2, deadline);
        if (status != NEAR_OK)
            return status;
        *moment = found[0].last.lineage != 0
                      ? (struct near__tag_clock){ found[0].last.lineage, found[0].last.moment + 1 }
                      : (struct near__tag_clock){ near__stamp(cache->client), 1 };
        if (found[1].last.lineage != moment->lineage || found[1].last.moment < moment->moment)
            status = replace(cache, &found[1], *moment, deadline);
        if (status == NEAR_OK)
            status = move_clock(cache, &found[0], *moment, deadline);
        if (status == NEAR_OK)
            status = confirm(cache, tag, *moment, deadline);
    }
    return status;
}

static near_status
tell(near_cache *cache, near_bytes tag, struct near__tag_clock moment, int64_t deadline)
{
    uint8_t                 key[NEAR__LABEL_SIZE + NEAR__MESSAGE_TAG_TAIL];
    near_bytes              whole = { key, tag.size + NEAR__MESSAGE_TAG_TAIL };
    struct near__announcing announcing;
    near_status             status;

    memcpy(key, tag.data, tag.size);
    near__le64_put(key + tag.size, moment.lineage);
    near__le64_put(key + tag.size + 8, moment.moment);
    status = near__announce_begin(cache, NEAR__MESSAGE_TAG, &whole, 1, &announcing);
    if (status != NEAR_OK)
        return status;
    announcing.with = NULL; /* no one write to go with */
    return near__announce_end(cache, &announcing, NEAR_OK, deadline);
}

/* Whatever became of it in L2, the others are told: they must look.  Of one that failed they hear no moment: L2's clock may not have
 * reached it, and what they then load with it would outlive the next invalidation, which may get that same moment. */
static near_status
invalidate(near_cache *cache, near_bytes tag, struct near__tag_clock *moment, int64_t deadline)
{
    near_client *client = cache->client;
    near_status  status = NEAR_OK, told = NEAR_OK;

    if (client->ops != NULL)
        status = note_in_l2(cache, tag, moment, deadline);
    if (status != NEAR_OK)
        deadline = near__time_after(near__client_now(client), client->settings.l2_timeout);
    if (client->coherence != NULL)
        told = tell(cache, tag, status == NEAR_OK ? *moment : (struct near__tag_clock){ 0, 0 }, deadline);
    return status != NEAR_OK ? status : told;
}

near_status
near__tags_settle(near_cache *cache, near_bytes name, int64_t deadline)
{
    int64_t own = near__time_after(near__client_now(cache->client), cache->client->settings.l2_timeout);
    struct near__tag_clock moment = { 0, 0 };
    near_status            status = invalidate(cache, name, &moment, own < deadline ? own : deadline);

    if (status == NEAR_OK && moment.lineage != 0)
        note(cache, name, moment, true);
    else
        near__tags_doubt(cache); /* it may have happened or not: look */
    /* what was read in between may be from before */
    near__l1_invalidate_tag(cache->l1, hash_of(cache, name));
    return status;
}

near_status
near_invalidate_tag(near_cache *cache, const char *tag)
{
    near_status status = near__cache_check(cache);
    near_bytes  name;

    if (status == NEAR_OK && (tag == NULL || tag[0] == '\0'))
        status = NEAR_ERR_INVALID;
    if (status == NEAR_OK && cache->bare)
        status = NEAR_ERR_UNSUPPORTED;
    if (status != NEAR_OK)
        return status;
    name = near_key(tag);
    if (name.size > NEAR__LABEL_SIZE)
        return NEAR_ERR_TOO_LARGE;
    atomic_store_explicit(&cache->tags.used, true, memory_order_relaxed);
    near__count(cache, NEAR__tag_invalidations, 1);
    near__l1_invalidate_tag(cache->l1, hash_of(cache, name));
    status = near__tags_settle(cache, name, NEAR_NEVER);
    if (status == NEAR_OK)
        return NEAR_OK;
    near__recovery_keep_tag(cache, name);
    near__l1_invalidate_tag(cache->l1, hash_of(cache, name)); /* who believed L2 until now fills nothing */
    return status;
}
