/*
 * near_put, near_remove, near_clear, near_fence.
 *
 * A write of one key: bracket in L1 (write_begin moves the fence and drops the key; write_end moves it again and admits the new
 * value only if nobody else wrote meanwhile), and inside the bracket L2 and the message to the others.  Where the bus's server is
 * the L2's, L2 write and message are one atomic step; else the write comes first, then the message (never the other way round:
 * race 7).
 *
 * An outcome that is not known, or a refusal that leaves the older value in L2, is followed by an attempt to remove and
 * publish; what that does not settle is kept and repeated (recovery.h).  Either way the write is not acknowledged.  No lock is held
 * here.
 */
#include "write.h"

#include "announce.h"
#include "budget.h"
#include "codec.h"
#include "conditional.h"
#include "fields.h"
#include "generation.h"
#include "prefix.h"
#include "read.h"
#include "recovery.h"

#include <stdlib.h>
#include <string.h>

#include "base/hash_keyed.h"
#include "base/le.h"
#include "tags.h"

struct write {
    size_t                index; /* in the caller's arrays */
    near_bytes            key, value;
    uint64_t              hash;
    struct near__entry   *entry; /* put: what L1 is to keep; NULL: nothing */
    struct near__l1_write token;
    near_status           status;
};

struct writing {
    near_cache          *cache;
    struct write        *writes;
    size_t               n;
    bool                 fill_l1;
    uint8_t              pool; /* of L1; 0: not said */
    int64_t              ttl;  /* ns; 0 never expires */
    int64_t              now, deadline;
    int64_t              repair; /* deadline of all repairs of this call; 0: none was needed yet */
    uint64_t             generation;
    uint64_t             stamp;   /* of the one put; 0: drawn */
    near_bytes          *keys;    /* of the writes; NULL where nobody has to be told */
    struct near__labels *labels;  /* of all puts; NULL: none */
    struct near__object *object;  /* of the one put; NULL: not known */
    near_status          refused; /* why nothing of this call can be stored */
    struct write         one;     /* room for a single one */
    near_bytes           one_key;
};

/* ---- one exchange with L2 for part of the writes, all puts or all removals, with its message */

/* The stored forms of the values; false: out of memory. */
static bool
encode_values(const struct writing *writing, struct near__wire *wire, size_t at)
{
    near_cache         *cache   = writing->cache;
    const struct write *writes  = writing->writes + at;
    uint64_t            drawn   = near__stamps_draw(cache->client, wire->n);
    int64_t             wall_ms = near__wall_ms(&cache->client->clock);
    size_t              room    = 0;

    for (size_t i = 0; i < wire->n; i++)
        room += near__tier_room(cache, writes[i].key, writes[i].value, writing->labels);
    if (!near__wire_make_room(wire, room))
        return false;
    for (size_t i = 0; i < wire->n; i++) {
        struct near__stored stored = {
            .key        = writes[i].key,
            .value      = writes[i].value,
            .stamp      = writing->stamp != 0 ? writing->stamp : near__stamp_nth(drawn, i),
            .generation = writing->generation,
            .ttl        = writing->ttl,
            .labels     = writing->labels,
        };

        near__tier_store(cache, wire, &wire->items[i], &stored, wall_ms);
        if (writes[i].entry != NULL && !cache->bare) {
            writes[i].entry->stamp      = stored.stamp;
            writes[i].entry->generation = stored.generation;
        }
    }
    return true;
}

/* L2 first, then the message; in one step where the backend can.  NEAR_OK: what was written is announced. */
static near_status
exchange(struct writing *writing, struct near__wire *wire, bool put, struct near__announcing *announcing,
         int64_t deadline)
{
    near_client             *client = writing->cache->client;
    struct near_l2_announce *with   = announcing->with;
    int64_t began = client->ops != NULL || announcing->message != NULL ? near__client_now(client) : 0;

    near__count(writing->cache, NEAR__l2_requests, client->ops != NULL);
    if (client->ops == NULL)
        near__l2_answer_all(wire->items, wire->n, NEAR_L2_DONE, NEAR_OK); /* only the others' L1 to tell */
    else if (put)
        client->ops->set_many(client->l2, NEAR_L2_ALWAYS, wire->items, wire->n, with, deadline);
    else
        client->ops->remove_many(client->l2, NEAR_L2_ALWAYS, wire->items, wire->n, with, deadline);
    if (client->ops != NULL)
        near__time(writing->cache, NEAR__TIME_l2_write, near__client_now(client) - began);
    if (announcing->message == NULL)
        return NEAR_OK;
    if (with == NULL)
        return near__coherence_publish(client->coherence, announcing->message, announcing->size, deadline,
                                       NULL);
    for (size_t i = 0; with->stream != 0 && i < wire->n; i++)
        if (wire->items[i].answer == NEAR_L2_UNKNOWN) {
            near__coherence_doubt(client->coherence,
                                  with->stream); /* its echo may come late, and must then be heard */
            near__count(writing->cache, NEAR__bus_send_failures, 1);
            return NEAR_OK;
        }
    near__count(writing->cache, NEAR__bus_sent, wire->items[0].answer == NEAR_L2_DONE);
    if (wire->items[0].answer == NEAR_L2_DONE)
        near__coherence_announced_since(client->coherence, announcing->message, began);
    return NEAR_OK;
}

static bool
all_done(const struct near__wire *wire)
{
    for (size_t i = 0; i < wire->n; i++)
        if (wire->items[i].answer != NEAR_L2_DONE)
            return false;
    return true;
}

static near_status
item_status(const struct near_l2_item *item)
{
    if (item->answer == NEAR_L2_DONE)
        return NEAR_OK;
    return item->status != NEAR_OK ? item->status : NEAR_ERR_TIMEOUT;
}

/* Leave only those items whose keys must be removed: not written for certain, or written and not announced.  False: none.  The
 * message still names all keys: hearing of too many costs the others a miss. */
static bool
keep_doubtful(struct near__wire *wire, near_status status)
{
    size_t kept = 0;

    for (size_t i = 0; i < wire->n; i++) {
        if (status == NEAR_OK && wire->items[i].answer == NEAR_L2_DONE)
            continue;
        wire->items[kept]        = (struct near_l2_item){ .key = wire->items[i].key };
        wire->items[kept].answer = NEAR_L2_NOT_TRIED;
        kept++;
    }
    wire->n = kept;
    return kept > 0;
}

/* An unknown outcome mostly means that the call's deadline has passed: the attempts to repair it have one of their own, all
 * together. */
static int64_t
repair_deadline(struct writing *writing)
{
    const near_client *client = writing->cache->client;

    if (writing->repair == 0)
        writing->repair = near__time_after(near__client_now(client), client->settings.l2_timeout);
    return writing->repair;
}

/* What was not written for certain, or not announced, and could not be removed either. */
static void
keep_for_later(const struct writing *writing, size_t at, size_t n)
{
    for (size_t i = at; i < at + n; i++)
        if (writing->writes[i].status != NEAR_OK)
            near__recovery_keep(writing->cache, writing->writes[i].key, writing->writes[i].hash);
}

/* Write L2 for writes[at .. at + n), which are at most one batch and one message. */
static void
write_l2(struct writing *writing, size_t at, size_t n, bool put)
{
    near_cache       *cache = writing->cache;
    const near_bytes *keys  = writing->keys + at;
    struct near__wire wire;
    size_t            bytes = 0;
    near_status       status;

    struct near__announcing announcing = { .message = NULL };

    for (size_t i = 0; i < n; i++)
        bytes += keys[i].size;
    status = near__wire_open(&wire, cache, n, bytes);
    for (size_t i = 0; status == NEAR_OK && i < n; i++)
        near__wire_add(&wire, cache, keys[i]);
    if (status == NEAR_OK)
        status = near__announce_begin(cache, NEAR__MESSAGE_INVALIDATE, keys, n, &announcing);
    if (status == NEAR_OK && put && cache->client->ops != NULL && !encode_values(writing, &wire, at))
        status = NEAR_ERR_NOMEM;
    if (status == NEAR_OK && !put && cache->bare)
        status = near__tier_void_leases(cache, keys, n, writing->deadline);
    if (status == NEAR_OK)
        status = exchange(writing, &wire, put, &announcing, writing->deadline);
    for (size_t i = 0; i < n; i++)
        writing->writes[at + i].status = status != NEAR_OK ? status : item_status(&wire.items[i]);
    if (wire.n != n || (keep_doubtful(&wire, status) &&
                        (exchange(writing, &wire, false, &announcing, repair_deadline(writing)) != NEAR_OK ||
                         !all_done(&wire))))
        keep_for_later(writing, at, n);
    near__wire_close(&wire);
    free(announcing.message);
}

near_status
near__write_settle(near_cache *cache, const near_bytes *keys, size_t n)
{
    struct writing          writing = { .cache = cache };
    struct near__announcing announcing;
    struct near__wire       wire;
    size_t                  bytes = 0;
    near_status             status;

    for (size_t i = 0; i < n; i++)
        bytes += keys[i].size;
    status = near__wire_open(&wire, cache, n, bytes);
    if (status != NEAR_OK)
        return status;
    for (size_t i = 0; i < n; i++)
        near__wire_add(&wire, cache, keys[i]);
    status = near__announce_begin(cache, NEAR__MESSAGE_INVALIDATE, keys, n, &announcing);
    if (status == NEAR_OK && cache->bare)
        status = near__tier_void_leases(cache, keys, n, repair_deadline(&writing));
    if (status == NEAR_OK)
        status = exchange(&writing, &wire, false, &announcing, repair_deadline(&writing));
    if (status == NEAR_OK && !all_done(&wire))
        status = NEAR_ERR_UNAVAILABLE;
    near__wire_close(&wire);
    free(announcing.message);
    return status;
}

/* ---- the bracket: per part, so that two keys of a large batch that share a stripe seldom void each other */

static void
begin(struct writing *writing, size_t at, size_t n)
{
    for (size_t i = at; i < at + n; i++) {
        struct write *write = &writing->writes[i];

        write->token = near__l1_write_begin(writing->cache->l1, write->hash, write->key);
        near__fields_row_moved(writing->cache, write->hash);
        near__last_note(&writing->cache->last, write->hash, NEAR__LAST_WRITE, writing->now);
        write->status = writing->refused;
    }
}

static void
end(struct writing *writing, size_t at, size_t n, near_status *statuses)
{
    for (size_t i = at; i < at + n; i++) {
        struct write       *write = &writing->writes[i];
        struct near__entry *admit = write->status == NEAR_OK ? write->entry : NULL;

        near__l1_write_end(writing->cache->l1, write->token, write->hash, write->key, admit, writing->now);
        near__fields_row_moved(writing->cache, write->hash); /* it may have been read in between */
        near__entry_release(&write->entry);
        statuses[write->index] = write->status;
        if (write->status != NEAR_OK)
            near__count(writing->cache, NEAR__write_failures, 1);
    }
}

/* How many from `at` on go together. */
static size_t
part_of(const struct writing *writing, size_t at)
{
    size_t fit = writing->keys != NULL ? near__message_fit(writing->keys + at, writing->n - at) : 1;

    return fit < NEAR_L2_BATCH ? fit : NEAR_L2_BATCH;
}

near_status
near__write_labels(near_cache *cache, const near_put_options *options, struct near__labels **labels)
{
    uint32_t    clock  = near__l1_label_clock(cache->l1);
    near_status status = NEAR_OK;

    if ((options->tag_count > 0 && options->tags == NULL) || options->pool > cache->pools.n)
        status = NEAR_ERR_INVALID;
    *labels = NULL;
    for (size_t i = 0; i < options->tag_count && status == NEAR_OK; i++)
        status = options->tags[i] == NULL ? NEAR_ERR_INVALID
                                          : near__tags_add(cache, labels, near_key(options->tags[i]));
    if (status != NEAR_OK) {
        free(*labels);
        *labels = NULL;
    } else if (*labels != NULL) {
        (*labels)->clock = clock;
    }
    return status;
}

near_status
near__write_labels_prepare(near_cache *cache, struct near__labels *labels, int64_t deadline)
{
    struct near__tag_clock clock;
    struct near__entry     entry = { .labels = labels };
    struct near__ask       ask = { .entry = &entry }, *one = &ask;
    near_status            status;

    status = near__tags_now(cache, &clock, deadline);
    if (status != NEAR_OK)
        return status;
    labels->lineage = clock.lineage;
    labels->moment  = clock.moment;
    near__tags_judge(cache, &one, 1, clock, deadline);
    return ask.labelled == NEAR__LABELS_UNKNOWN ? ask.status : NEAR_OK;
}

struct near__entry *
near__write_entry(near_cache *cache, near_bytes key, uint64_t hash, near_bytes value, int64_t now,
                  int64_t ttl, const struct near__labels *labels)
{
    void               *bytes;
    struct near__entry *entry = near__entry_new(key, hash, value.size, &bytes);

    if (entry == NULL)
        return NULL;
    if (value.size > 0)
        memcpy(bytes, value.data, value.size);
    near__entry_date(cache, entry, now, ttl);
    if (!near__labels_copy(&entry->labels, labels))
        near__entry_release(&entry);
    return entry;
}

/* The keys as an array, and a generation to write with.  What cannot be stored for want of one is removed: the old value must not
 * stay, and a removal needs none. */
static void
prepare(struct writing *writing, bool *put)
{
    near_cache *cache = writing->cache;

    writing->keys = writing->n == 1 ? &writing->one_key : malloc(writing->n * sizeof(*writing->keys));
    if (writing->keys == NULL) {
        writing->refused = NEAR_ERR_NOMEM;
        return;
    }
    for (size_t i = 0; i < writing->n; i++)
        writing->keys[i] = writing->writes[i].key;
    if (!*put || cache->client->ops == NULL)
        return;
    writing->refused = near__generation_for_write(cache, writing->deadline, &writing->generation);
    if (writing->refused == NEAR_OK && writing->labels != NULL)
        writing->refused = near__write_labels_prepare(cache, writing->labels, writing->deadline);
    if (writing->refused == NEAR_OK)
        return;
    *put              = false;
    writing->deadline = repair_deadline(writing);
}

static void
write_parts(struct writing *writing, bool put, near_status *statuses)
{
    const near_client *client = writing->cache->client;
    bool               shared = client->ops != NULL || client->coherence != NULL;

    if (shared && writing->n > 0)
        prepare(writing, &put);
    for (size_t at = 0, n; at < writing->n; at += n) {
        n = part_of(writing, at);
        begin(writing, at, n);
        if (shared && writing->keys != NULL)
            write_l2(writing, at, n, put);
        for (size_t i = at; writing->refused != NEAR_OK && i < at + n; i++)
            writing->writes[i].status = writing->refused;
        end(writing, at, n, statuses);
    }
    if (writing->keys != &writing->one_key)
        free(writing->keys);
}

static near_status
add_put(struct writing *writing, size_t index, near_bytes key, near_bytes value)
{
    near_cache   *cache  = writing->cache;
    struct write *write  = &writing->writes[writing->n];
    near_status   status = NEAR_OK;

    if (value.data == NULL && value.size != 0)
        return NEAR_ERR_INVALID;
    if (value.size > cache->settings.l2_max_value)
        return NEAR_ERR_TOO_LARGE;
    *write = (struct write){
        .index = index, .key = key, .value = value, .hash = near__hash_keyed(&cache->client->secret, key)
    };
    if (writing->fill_l1) {
        write->entry =
            near__write_entry(cache, key, write->hash, value, writing->now, writing->ttl, writing->labels);
        if (write->entry != NULL)
            write->entry->pool = writing->pool;
        status =
            write->entry != NULL ? near__decode_like(cache, write->entry, writing->object) : NEAR_ERR_NOMEM;
    }
    if (status == NEAR_OK)
        writing->n++;
    else
        near__entry_release(&write->entry);
    return status;
}

static void
add_remove(struct writing *writing, size_t index, near_bytes key)
{
    writing->writes[writing->n++] = (struct write){
        .index = index,
        .key   = key,
        .hash  = near__hash_keyed(&writing->cache->client->secret, key),
    };
}

/* `values` NULL: removals. */
static near_status
write_many(near_cache *cache, const near_bytes *keys, const near_bytes *values, size_t n,
           const near_put_options *options, const struct near__known *known, near_status *statuses)
{
    near_put_options mine = NEAR_PUT_OPTIONS_INIT;
    struct writing   writing;
    near_status      status = near__batch_check(cache, keys, n, NULL, statuses);

    if (status != NEAR_OK || n == 0)
        return status;
    near__options_take(&mine, sizeof(mine), options);
    writing = (struct writing){ .cache = cache, .now = near__client_now(cache->client) };
    if (known != NULL) {
        writing.stamp  = known->stamp;
        writing.object = known->object;
    }
    writing.fill_l1 = !(mine.flags & NEAR_NO_FILL) && cache->settings.l1_max_bytes != 0;
    if (n > 1 && ((mine.flags & NEAR_IF_ABSENT) || mine.unchanged != NULL))
        return near__refuse_all(statuses, n, NEAR_ERR_INVALID); /* one key at a time */
    status = near__write_labels(cache, &mine, &writing.labels);
    if (status != NEAR_OK)
        return near__refuse_all(statuses, n, status);
    writing.pool = (uint8_t)mine.pool;
    writing.ttl  = near__duration(mine.ttl_ms, cache->settings.ttl);
    writing.deadline =
        near__time_after(writing.now, near__duration(mine.timeout_ms, cache->client->settings.l2_timeout));
    writing.writes = n == 1 ? &writing.one : malloc(n * sizeof(*writing.writes));
    for (size_t i = 0; i < n; i++) {
        if (statuses[i] < 0)
            continue;
        statuses[i] = NEAR_OK;
        if (writing.writes == NULL)
            statuses[i] = NEAR_ERR_NOMEM;
        else if (values != NULL)
            statuses[i] = add_put(&writing, i, keys[i], values[i]);
        else
            add_remove(&writing, i, keys[i]);
    }
    for (size_t i = 0; i < n; i++)
        if (statuses[i] == NEAR_ERR_NOMEM) /* not bracketed below: our copy must go all the same */
            near__l1_invalidate(cache->l1, near__hash_keyed(&cache->client->secret, keys[i]), keys[i]);
    near__count(cache, values != NULL ? NEAR__puts : NEAR__removes, n);
    write_parts(&writing, values != NULL, statuses);
    if (writing.writes != &writing.one)
        free(writing.writes);
    free(writing.labels);
    return near__first_error(statuses, n);
}

near_status
near_put_many(near_cache *cache, const near_bytes *keys, const near_bytes *values, size_t n,
              const near_put_options *options, near_status *statuses)
{
    if (n > 0 && values == NULL)
        return statuses != NULL ? near__refuse_all(statuses, n, NEAR_ERR_INVALID) : NEAR_ERR_INVALID;
    return write_many(cache, keys, values, n, options, NULL, statuses);
}

/* What never expires has no date in an L1 that is alone: no clock is read for it.  Pools may have a TTL of their own. */
static bool
dates_nothing(const near_cache *cache)
{
    return cache->settings.ttl == 0 && cache->max_ttl == NEAR_NEVER && cache->pools.n == 0;
}

/* Where L1 is all there is, a write is one step under its lock, and needs no memory of its own.  False: not so, or not so simple. */
static bool
put_alone(near_cache *cache, near_bytes key, near_bytes value)
{
    const near_client *client;
    struct near__entry entry = { .key_size = (uint32_t)key.size };
    int64_t            now;

    if (near__cache_check(cache) != NEAR_OK || near__decodes(cache) || near__key_check(key) != NEAR_OK ||
        (value.data == NULL && value.size != 0))
        return false;
    client = cache->client;
    if (client->ops != NULL || client->coherence != NULL || value.size > cache->settings.l2_max_value)
        return false;
    now              = dates_nothing(cache) ? 0 : near__client_now(client);
    entry.hash       = near__hash_keyed_inline(&client->secret, key);
    entry.value      = value.data;
    entry.value_size = value.size;
    near__entry_date(cache, &entry, now, cache->settings.ttl);
    if (!near__l1_store(cache->l1, &entry, key, now))
        return false;
    near__count(cache, NEAR__puts, 1);
    return true;
}

static __attribute__((noinline)) near_status
put_one(near_cache *cache, near_bytes key, near_bytes value, const near_put_options *options)
{
    near_put_options mine = NEAR_PUT_OPTIONS_INIT;
    near_status      status;

    near__options_take(&mine, sizeof(mine), options);
    if ((mine.flags & NEAR_IF_ABSENT) || mine.unchanged != NULL)
        return near__put_conditional(cache, key, value, &mine);
    return write_many(cache, &key, &value, 1, options, NULL, &status);
}

near_status
near_put(near_cache *cache, near_bytes key, near_bytes value, const near_put_options *options)
{
    return options == NULL && put_alone(cache, key, value) ? NEAR_OK : put_one(cache, key, value, options);
}

near_status
near__write_known(near_cache *cache, near_bytes key, near_bytes data, const near_put_options *options,
                  const struct near__known *known)
{
    near_status status;

    if (data.data == NULL)
        return write_many(cache, &key, NULL, 1, NULL, NULL, &status);
    if (options->ttl_ms < 0 && options->tag_count == 0 && options->pool == 0 &&
        !(options->flags & NEAR_NO_FILL) && put_alone(cache, key, data))
        return NEAR_OK;
    return write_many(cache, &key, &data, 1, options, known, &status);
}

near_status
near_remove_many(near_cache *cache, const near_bytes *keys, size_t n, near_status *statuses)
{
    return write_many(cache, keys, NULL, n, NULL, NULL, statuses);
}

near_status
near_remove(near_cache *cache, near_bytes key)
{
    near_status status;

    return write_many(cache, &key, NULL, 1, NULL, NULL, &status);
}

/* ---- clear and fence */

static near_status
clear_others(near_cache *cache, uint64_t fresh, int64_t deadline)
{
    unsigned char           number[8];
    near_bytes              key = { number, sizeof(number) };
    struct near__announcing announcing;
    near_status             status;

    near__le64_put(number, fresh);
    status = near__announce_begin(cache, NEAR__MESSAGE_CLEAR, &key, 1, &announcing);
    if (status != NEAR_OK)
        return status;
    if (cache->client->ops != NULL)
        status = near__generation_renew(cache, fresh, announcing.with, deadline);
    return near__announce_end(cache, &announcing, status, deadline);
}

near_status
near__clear_settle(near_cache *cache, int64_t deadline)
{
    int64_t     end = near__time_after(near__client_now(cache->client), cache->client->settings.l2_timeout);
    near_status status;

    if (cache->bare && cache->client->ops != NULL && cache->client->ops->remove_prefix != NULL)
        return near__prefix_settle(cache, (near_bytes){ "", 0 }, deadline); /* no generation would do */
    status = clear_others(cache, near__generation_fresh(cache), end < deadline ? end : deadline);
    near__generation_doubt(cache, true);
    near__l1_flush(cache->l1);
    return status;
}

near_status
near_clear(near_cache *cache)
{
    near_status status = near__cache_check(cache);
    int64_t     deadline;

    if (status == NEAR_OK && cache->bare)
        status = NEAR_ERR_UNSUPPORTED; /* entries say nothing of what they belong to */
    if (status != NEAR_OK)
        return status;
    deadline = near__time_after(near__client_now(cache->client), cache->client->settings.l2_timeout);
    near__count(cache, NEAR__clears, 1);
    near__generation_doubt(cache, true);
    near__l1_flush(cache->l1);
    if (cache->client->ops != NULL || cache->client->coherence != NULL)
        status = clear_others(cache, near__generation_fresh(cache), deadline);
    if (status != NEAR_OK)
        near__recovery_keep_clear(cache);
    near__budget_slow_start(&cache->budget);
    /* again: what was read in between may be of the old generation */
    near__generation_doubt(cache, true);
    near__l1_flush(cache->l1);
    return status;
}

near_status
near_fence(near_client *client, int64_t timeout_ms)
{
    int64_t deadline;

    if (client == NULL)
        return NEAR_ERR_INVALID;
    if (*client->alive == 0)
        return NEAR_ERR_FORKED;
    if (client->coherence == NULL && (client->ops == NULL || !client->traits.shared))
        return NEAR_OK; /* nobody else writes what we read */
    if (client->coherence == NULL)
        return NEAR_ERR_UNSUPPORTED;
    deadline =
        near__time_after(near__client_now(client), near__duration(timeout_ms, client->settings.l2_timeout));
    return near__coherence_fence(client->coherence, deadline, NULL);
}
