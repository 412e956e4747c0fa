/* See world.h. */
#include "dst/world.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "client.h"
#include "coherence/bus.h"
#include "coherence/message.h"
#include "coherence/streams.h"
#include "flight.h"
#include "generation.h"
#include "l2/backend.h"
#include "l2/envelope.h"
#include "l2/stream.h"

enum {
    ITEMS     = 32,
    ITEM_MAX  = 512,
    QUEUE     = 512,
    FLOORS    = 256,
    HEARTBEAT = 10, /* ms */
    LOSSES    = 3,  /* a message and two of the beats that say it */
    TIMEOUT   = 20, /* ms: of L2 */
    SETTLED   = 400 /* ms until whatever went wrong must have been mended: recovery tries every 250 */
};

enum dst_cure dst_without;

/* ---------------------------------------------------------------------------------------------- the world */

struct floor {
    int64_t  at; /* acknowledged */
    unsigned client;
    uint64_t floor;
};

struct item {
    char    key[64];
    size_t  key_size, size;
    uint8_t bytes[ITEM_MAX];
    int64_t expires;
    bool    used;
};

enum news { MESSAGE, PONG, ACK };
struct post {
    enum news kind;
    int64_t   since;
    size_t    size;
    uint8_t  *bytes;
};

struct link {
    struct near__bus_env env;
    unsigned             client;
    bool                 up, stopping;
    unsigned             lives; /* counts connections */
    int64_t              silent_until;
    bool                 lose_next;
    unsigned             losses;
    unsigned             tasks;
    int64_t              heard;
    struct post          queue[QUEUE];
    size_t               first, n;
    uint64_t             streams[2], sequences[2]; /* of what this instance publishes */
};

struct instance {
    unsigned     number;
    near_client *client;
    near_cache  *cache;
    struct link  link;
    uint64_t     seen[DST_KEYS]; /* the highest number that a read of this instance has returned */
    uint64_t     loads[DST_KEYS];
};

static struct world {
    const struct dst_settings *is;
    struct instance            instances[DST_CLIENTS + 1]; /* number 0 is nobody's */
    unsigned                   opening;
    unsigned                   actors, zombies;
    bool                       healed;
    struct item                items[ITEMS];
    /* the accounts */
    uint64_t     mutations[DST_KEYS];    /* so many so far */
    uint64_t     number_of[DST_NUMBERS]; /* of a value's id: when it was executed; 0: not */
    uint64_t     ids;
    struct floor floors[DST_KEYS][FLOORS];
    size_t       n_floors[DST_KEYS];
    uint64_t     removal[STEPS_TASKS]; /* the number of the newest removal that each task has had executed */
    /* the store */
    uint64_t version[DST_KEYS];
    bool     absent[DST_KEYS][DST_NUMBERS];
    uint64_t loads[DST_KEYS];
    /* for runs without some cure */
    struct {
        const struct near__l1 *l1;
        uint64_t               n;
    } flushed[DST_CLIENTS];
} w;

static bool
chance(unsigned percent)
{
    return step_random(100) < percent;
}

static bool
fault(void)
{
    return !w.healed && w.is->faults > 0 && chance(w.is->faults);
}

static void
travel(void)
{
    step_point();
    if (!w.healed && step_random(8) == 0)
        step_sleep((int64_t)step_random(w.is->chaos ? 15 * NEAR_MS : NEAR_MS));
}

/* A read of L2, there or back. */
static void
travel_far(void)
{
    travel();
    if (!w.healed && w.is->slow && step_random(2) == 0)
        step_sleep((int64_t)step_random(50 * NEAR_MS));
}

/* Which of the keys lies under this name in L2; -1: something else. */
static int
user_key(near_bytes key)
{
    const char *at = key.data;

    return key.size == 6 && memcmp(at, "nc:c:", 5) == 0 ? at[5] - 'a' : -1;
}

/* ------------------------------------------------------------------------------------------------ the bus */

static void
post(struct link *link, enum news kind, int64_t since, const uint8_t *bytes, size_t size)
{
    struct post *p = &link->queue[(link->first + link->n) % QUEUE];

    if (link->n == QUEUE)
        return; /* as a server cuts a slow subscriber, but no run comes near it */
    *p = (struct post){ .kind = kind, .since = since, .size = size };
    if (size > 0) {
        p->bytes = malloc(size);
        memcpy(p->bytes, bytes, size);
    }
    link->n++;
    step_wake(link);
}

static void
drop_queue(struct link *link)
{
    for (; link->n > 0; link->n--, link->first = (link->first + 1) % QUEUE)
        free(link->queue[link->first].bytes);
}

static void
cut(struct link *link)
{
    drop_queue(link);
    link->up = false;
    step_wake(link);
}

/* Any message, also a sender's first, or a beat. */
static bool
loses(struct link *link)
{
    bool loses = link->lose_next;

    link->lose_next = false;
    return loses;
}

/* The server has it: everybody who listens gets it. */
static void
server_publish(const uint8_t *bytes, size_t size)
{
    for (unsigned i = 1; i <= w.is->clients; i++)
        if (w.instances[i].link.up && !loses(&w.instances[i].link))
            post(&w.instances[i].link, MESSAGE, 0, bytes, size);
}

static void
stamp(struct link *link, uint8_t *message, size_t at, uint64_t *stream)
{
    size_t which = step_random(2);

    *stream = link->streams[which];
    near__stream_claim(*stream);
    near__le64_put(message + at, *stream);
    near__le64_put(message + at + 8, ++link->sequences[which]);
}

/* The connection whose request was given up is not used again. */
static void
new_stream(struct link *link, uint64_t stream)
{
    for (size_t i = 0; i < 2; i++)
        if (link->streams[i] == stream) {
            link->streams[i]   = step_random(UINT64_MAX) | 1;
            link->sequences[i] = 0;
        }
}

static void
deliver_post(struct link *link, struct post *p)
{
    struct near__bus_listener *to = &link->env.listener;

    switch (p->kind) {
    case ACK:
        to->subscribed(to->ctx);
        break;
    case MESSAGE:
        to->message(to->ctx, (near_bytes){ p->bytes, p->size });
        break;
    case PONG:
        to->heard(to->ctx, dst_without == DST_PONG_AS_NOW ? step_now() : p->since);
        if (p->since > link->heard)
            link->heard = p->since;
        step_wake(&link->heard);
        break;
    }
    free(p->bytes);
}

static void
connect_link(struct link *link)
{
    if (link->lives > 0)
        step_sleep((int64_t)step_random((w.is->slow ? 25 : 6) * NEAR_MS));
    step_point();
    if (link->stopping)
        return;
    link->lives++;
    link->up = true;
    post(link, ACK, 0, NULL, 0);
}

static void
listen(void *ctx)
{
    struct link *link = ctx;
    bool         was_up;

    while (!link->stopping) {
        was_up = link->up;
        if (!was_up)
            connect_link(link);
        while (link->up && !link->stopping) {
            struct post p;

            if (link->silent_until > step_now()) {
                step_wait(link, link->silent_until);
                if (link->silent_until <= step_now() && step_random(2) == 0)
                    cut(link);
                continue;
            }
            if (link->n == 0) {
                step_wait(link, NEAR_NEVER);
                continue;
            }
            p           = link->queue[link->first];
            link->first = (link->first + 1) % QUEUE;
            link->n--;
            deliver_post(link, &p);
            step_point();
        }
        if (!link->stopping)
            link->env.listener.lost(link->env.listener.ctx, "cut");
    }
    drop_queue(link);
    link->tasks--;
    step_wake(&link->tasks);
}

static void
ping(void *ctx)
{
    struct link *link = ctx;

    while (!link->stopping) {
        unsigned life  = link->lives;
        int64_t  since = step_now();

        travel();
        if (link->up && link->lives == life && !link->stopping)
            post(link, PONG, since, NULL, 0);
        if (link->up && !link->stopping)
            link->env.listener.beat(link->env.listener.ctx);
        if (!link->stopping)
            step_wait(&link->stopping, near__time_after(step_now(), HEARTBEAT * NEAR_MS));
    }
    link->tasks--;
    step_wake(&link->tasks);
}

static near_status
bus_open(void **self, const struct near__bus_env *env, near_error *error)
{
    struct link *link = &w.instances[w.opening].link;

    (void)error;
    link->env        = *env;
    link->client     = w.opening;
    link->tasks      = 2;
    link->streams[0] = step_random(UINT64_MAX) | 1;
    link->streams[1] = step_random(UINT64_MAX) | 1;
    *self            = link;
    step_spawn(listen, link, w.opening);
    step_spawn(ping, link, w.opening);
    return NEAR_OK;
}

static near_status
bus_publish(void *self, uint8_t *message, size_t size, size_t stamp_at, uint64_t *stream, int64_t deadline,
            near_error *error)
{
    struct link *link = self;
    bool         lost, heard;

    (void)deadline;
    *stream = 0;
    travel();
    if (fault() && step_random(2) == 0)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "refused");
    stamp(link, message, stamp_at, stream);
    lost  = fault();
    heard = !lost || step_random(2) == 0;
    if (heard)
        server_publish(message, size);
    if (lost)
        new_stream(link, *stream);
    travel();
    return lost ? near__fail(error, NEAR_ERR_TIMEOUT, "no answer") : NEAR_OK;
}

static near_status
bus_fence(void *self, int64_t deadline, near_error *error)
{
    struct link *link  = self;
    int64_t      since = step_now();
    unsigned     life  = link->lives;

    travel();
    if (link->up && link->lives == life)
        post(link, PONG, since, NULL, 0);
    while (link->heard < since)
        if (link->stopping || !step_wait(&link->heard, deadline))
            return near__fail(error, NEAR_ERR_TIMEOUT, "fence");
    return NEAR_OK;
}

static void
bus_stop(void *self)
{
    struct link *link = self;

    link->stopping = true;
    step_wake(link);
    step_wake(&link->stopping);
    step_wake(&link->heard);
    while (link->tasks > 0)
        step_wait(&link->tasks, NEAR_NEVER);
}

static void
bus_fini(void *self)
{
    (void)self;
}

static const struct near__bus_ops bus_ops = {
    .version = NEAR__BUS_OPS_V1,
    .scheme  = "memory",
    .open    = bus_open,
    .publish = bus_publish,
    .fence   = bus_fence,
    .stop    = bus_stop,
    .fini    = bus_fini,
    .forked  = bus_fini,
    .beats   = true,
};

/* --------------------------------------------------------------------------------------------- the server */

static struct item *
find(near_bytes key)
{
    for (size_t i = 0; i < ITEMS; i++) {
        struct item *item = &w.items[i];

        if (item->used && item->expires <= step_now())
            item->used = false;
        if (item->used && item->key_size == key.size && memcmp(item->key, key.data, key.size) == 0)
            return item;
    }
    return NULL;
}

/* A value's id, or version; 0: none (a marker, an absence).  Entries name the application's key, the last byte of ours. */
static uint64_t
id_of(near_bytes stored, near_bytes key)
{
    struct near__envelope e;

    key = (near_bytes){ (const char *)key.data + key.size - 1, 1 };
    if (near__envelope_decode(&e, stored, key) != NEAR__ENVELOPE_OK || e.flags != 0 || e.payload.size != 9)
        return 0;
    return near__le64_get((const uint8_t *)e.payload.data + 1);
}

static uint64_t
stamp_of(const struct item *item)
{
    return item->size >= 16 ? near__le64_get(item->bytes + NEAR_L2_STAMP_AT) : 0;
}

static bool
is_marker(const struct item *item)
{
    return item->size > 5 && (item->bytes[5] & NEAR__ENVELOPE_LEASE) != 0;
}

static bool
holds(enum near_l2_mode mode, const struct item *there, uint64_t expected)
{
    if (dst_without == DST_NO_CONDITION)
        return true;
    if (mode == NEAR_L2_IF_ABSENT)
        return there == NULL || dst_without == DST_NO_LEASE;
    if (mode == NEAR_L2_IF_STAMP && dst_without == DST_LEASE_BY_KEY)
        return there != NULL && (is_marker(there) || stamp_of(there) == expected);
    return mode == NEAR_L2_ALWAYS || (there != NULL && stamp_of(there) == expected);
}

static void
execute_set(enum near_l2_mode mode, struct near_l2_item *item)
{
    struct item *there = find(item->key);
    int          user  = user_key(item->key);

    item->status = NEAR_OK;
    item->answer = holds(mode, there, item->expected) ? NEAR_L2_DONE : NEAR_L2_ABSENT;
    if (item->answer != NEAR_L2_DONE)
        return;
    for (size_t i = 0; there == NULL && i < ITEMS; i++)
        if (!w.items[i].used)
            there = &w.items[i];
    if (there == NULL || item->key.size > sizeof(there->key) || item->value.size > ITEM_MAX) {
        steps_violation("the fake server is too small");
        return;
    }
    there->used     = true;
    there->key_size = item->key.size;
    there->size     = item->value.size;
    there->expires  = item->ttl_ms > 0 ? near__time_after(step_now(), item->ttl_ms * NEAR_MS) : NEAR_NEVER;
    memcpy(there->key, item->key.data, item->key.size);
    memcpy(there->bytes, item->value.data, item->value.size);
    if (user >= 0 && !w.is->loads) {
        uint64_t id = id_of(item->value, item->key);

        if (id != 0)
            w.number_of[id % DST_NUMBERS] = ++w.mutations[user];
    }
}

static void
execute_remove(enum near_l2_mode mode, struct near_l2_item *item)
{
    struct item *there = find(item->key);
    int          user  = user_key(item->key);

    item->status = NEAR_OK;
    item->answer = NEAR_L2_DONE;
    if (mode == NEAR_L2_IF_STAMP && (there == NULL || stamp_of(there) != item->expected)) {
        item->answer = NEAR_L2_ABSENT;
        return;
    }
    if (there != NULL)
        there->used = false;
    if (user >= 0 && !w.is->loads)
        w.removal[step_self()] = ++w.mutations[user];
}

static void
execute(enum near_l2_mode mode, struct near_l2_item *items, size_t n, bool set)
{
    for (size_t i = 0; i < n; i++)
        (set ? execute_set : execute_remove)(mode, &items[i]);
}

static void
answer_all(struct near_l2_item *items, size_t n, enum near_l2_answer answer, near_status status)
{
    near__l2_answer_all(items, n, answer, status);
}

/* A request that nobody waits for any more, on its way. */
struct zombie {
    enum near_l2_mode   mode;
    bool                set;
    struct near_l2_item item;
    uint8_t             key[64], value[ITEM_MAX], message[ITEM_MAX];
    size_t              message_size;
};

static void
haunt(void *ctx)
{
    struct zombie *z = ctx;

    step_sleep((int64_t)step_random(40 * NEAR_MS));
    execute(z->mode, &z->item, 1, z->set);
    if (z->message_size > 0)
        server_publish(z->message, z->message_size);
    free(z);
    w.zombies--;
    step_wake(&w.zombies);
}

static void
wander_off(enum near_l2_mode mode, const struct near_l2_item *item, bool set,
           const struct near_l2_announce *announce)
{
    struct zombie *z = calloc(1, sizeof(*z));

    z->mode = mode;
    z->set  = set;
    z->item = *item;
    memcpy(z->key, item->key.data, item->key.size);
    z->item.key.data = z->key;
    if (set) {
        memcpy(z->value, item->value.data, item->value.size);
        z->item.value.data = z->value;
    }
    if (announce != NULL) {
        z->message_size = announce->size;
        memcpy(z->message, announce->message, announce->size);
    }
    w.zombies++;
    step_spawn(haunt, z, STEPS_NOBODY);
}

static void
write_many(struct link *link, enum near_l2_mode mode, struct near_l2_item *items, size_t n, bool set,
           struct near_l2_announce *announce, int64_t deadline)
{
    enum { FINE, REFUSED, LOST, UNHEARD, LATE } fate = FINE;

    if (announce != NULL)
        announce->stream = 0;
    travel();
    if (fault())
        fate = REFUSED + step_random(4);
    if (fate == LATE && (n > 1 || (mode == NEAR_L2_ALWAYS && announce == NULL)))
        fate = UNHEARD;
    if (fate == REFUSED) {
        answer_all(items, n, NEAR_L2_ERROR, NEAR_ERR_UNAVAILABLE);
        return;
    }
    if (announce != NULL)
        stamp(link, announce->message, announce->stamp_at, &announce->stream);
    if (announce != NULL && dst_without == DST_MESSAGE_FIRST) {
        server_publish(announce->message, announce->size);
        travel();
        execute(mode, items, n, set);
    } else if (fate == FINE || fate == UNHEARD) {
        execute(mode, items, n, set);
        if (announce != NULL)
            server_publish(announce->message, announce->size);
    } else if (fate == LATE)
        wander_off(mode, items, set, announce);
    if (fate != FINE) {
        if (announce != NULL)
            new_stream(link, announce->stream);
        if (step_random(2) == 0 && deadline > step_now())
            step_sleep(deadline - step_now());
        answer_all(items, n, NEAR_L2_UNKNOWN, NEAR_ERR_TIMEOUT);
    }
    travel();
}

static near_status
l2_open(void **self, const struct near_l2_env *env, struct near_l2_traits *traits, near_error *error)
{
    (void)env;
    (void)error;
    *traits = (struct near_l2_traits){ .shared       = true,
                                       .announces    = w.is->atomic,
                                       .binary_keys  = true,
                                       .max_key      = 60,
                                       .max_value    = ITEM_MAX,
                                       .min_lease_ms = 1 };
    *self   = &w.instances[w.opening].link;
    return NEAR_OK;
}

static void
l2_get(void *self, struct near_l2_item *items, size_t n, near_l2_deliver_fn deliver, void *ctx,
       int64_t deadline)
{
    struct item *copies = calloc(n, sizeof(*copies));

    (void)self;
    travel_far();
    if (fault()) {
        if (step_random(2) == 0 && deadline > step_now())
            step_sleep(deadline - step_now());
        answer_all(items, n, NEAR_L2_ERROR, NEAR_ERR_TIMEOUT);
        free(copies);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        struct item *there = find(items[i].key);

        if (there != NULL)
            copies[i] = *there;
    }
    travel_far();
    for (size_t i = 0; i < n; i++) {
        items[i].answer = copies[i].used ? NEAR_L2_DONE : NEAR_L2_ABSENT;
        items[i].status = NEAR_OK;
        if (copies[i].used)
            deliver(ctx, &items[i], (near_bytes){ copies[i].bytes, copies[i].size });
    }
    free(copies);
}

static void
l2_set(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
       struct near_l2_announce *announce, int64_t deadline)
{
    write_many(self, mode, items, n, true, announce, deadline);
}

static void
l2_remove(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
          struct near_l2_announce *announce, int64_t deadline)
{
    write_many(self, mode, items, n, false, announce, deadline);
}

static void
l2_nothing(void *self)
{
    (void)self;
}

static const struct near_l2_ops l2_ops = {
    .version     = NEAR_L2_OPS_V1,
    .scheme      = "memory",
    .open        = l2_open,
    .get_many    = l2_get,
    .set_many    = l2_set,
    .remove_many = l2_remove,
    .close       = l2_nothing,
    .stop        = l2_nothing,
    .fini        = l2_nothing,
    .forked      = l2_nothing,
};

/* ------------------------------------------------------------------------------------------- the accounts */

/* From now on nobody may get `floor` or less of this key: `client` at once, others after the window. */
static void
raise_floor(unsigned client, unsigned key, uint64_t floor)
{
    if (w.n_floors[key] < FLOORS)
        w.floors[key][w.n_floors[key]++] = (struct floor){ step_now(), client, floor };
}

/* What a question asked at `since` must not be answered with. */
static int64_t
window(void)
{
    return (w.is->windows == 0 ? 1 : w.is->windows) * DST_WINDOW * NEAR_MS;
}

static uint64_t
floor_for(unsigned client, unsigned key, int64_t since, int64_t within)
{
    uint64_t floor = 0;

    for (size_t i = 0; i < w.n_floors[key]; i++) {
        const struct floor *f = &w.floors[key][i];

        if (f->at <= (f->client == client ? since : since - within) && f->floor > floor)
            floor = f->floor;
    }
    return floor;
}

/* The id in a value of this key; 0 (and a violation) if it is none. */
static uint64_t
id_in(const near_value *value, unsigned key)
{
    near_bytes bytes = near_value_bytes(value);

    if (bytes.size == 9 && *(const char *)bytes.data == (char)('a' + key))
        return near__le64_get((const uint8_t *)bytes.data + 1);
    steps_violation("G0: a value of another key, or none of ours");
    return 0;
}

static uint64_t
number_in(const near_value *value, unsigned key)
{
    uint64_t id = id_in(value, key);

    return w.is->loads ? id : w.number_of[id % DST_NUMBERS];
}

static near_bytes
key_of(unsigned key)
{
    static const char names[] = "abcdefgh";

    return (near_bytes){ names + key, 1 };
}

static bool
absence_is_true(unsigned key, uint64_t floor)
{
    for (uint64_t v = floor + 1; v <= w.version[key] && v < DST_NUMBERS; v++)
        if (w.absent[key][v])
            return true;
    return false;
}

static bool
is_stale(const near_value *value)
{
    near_value_info info = NEAR_VALUE_INFO_INIT;

    near_value_get_info(value, &info);
    return info.stale;
}

static const char *
source_of(const near_value *value)
{
    near_value_info info = NEAR_VALUE_INFO_INIT;

    near_value_get_info(value, &info);
    return info.source == NEAR_FROM_L1 ? "L1" : info.source == NEAR_FROM_L2 ? "L2" : "the loader";
}

/* What a read that began at `since` was answered with. */
static void
judge(struct instance *i, unsigned key, int64_t since, int64_t within, near_status status, near_value *value)
{
    uint64_t floor = floor_for(i->number, key, since, within), number;

    if (status == NEAR_NOT_FOUND && w.is->loads && !absence_is_true(key, floor))
        steps_violation("instance %u: key %c is not absent, and has not been since version %llu", i->number,
                        'a' + (int)key, (unsigned long long)floor);
    if (value == NULL || is_stale(value)) {
        near_value_release(value);
        return;
    }
    number = number_in(value, key);
    if (number == 0)
        steps_violation("instance %u: key %c: a value that nobody wrote", i->number, 'a' + (int)key);
    else if (number <= floor)
        steps_violation("instance %u: key %c: number %llu from %s, although %llu was outdated %s", i->number,
                        'a' + (int)key, (unsigned long long)number, source_of(value),
                        (unsigned long long)floor,
                        floor_for(i->number, key, since, NEAR_NEVER / 2) >= number ? "by a write of its own"
                                                                                   : "for the window");
    near_value_release(value);
}

/* ---------------------------------------------------------------------------------------------- the store */

struct load {
    near_load *load;
    unsigned   key;
};

static void
load_all(near_load *loads[], size_t n, void *ctx)
{
    struct instance *i = ctx;

    for (size_t j = 0; j < n; j++) {
        unsigned key = (unsigned)(*(const char *)near_load_key(loads[j]).data - 'a');
        uint8_t  value[9];
        uint64_t version;
        bool     absent;

        i->loads[key]++;
        w.loads[key]++;
        travel();
        version = w.version[key];
        absent  = w.absent[key][version];
        travel();
        if (step_random(w.is->slow ? 3 : 16) == 0 && w.is->chaos && !w.healed)
            step_sleep((int64_t)step_random((w.is->slow ? 5 : 2) * DST_WINDOW * NEAR_MS));
        value[0] = (uint8_t)('a' + key);
        near__le64_put(value + 1, version);
        if (fault())
            near_load_fail(loads[j], NEAR_ERR_LOADER);
        else if (absent)
            near_load_not_found(loads[j]);
        else
            near_load_set(loads[j], (near_bytes){ value, sizeof(value) });
    }
}

/* --------------------------------------------------------------------------------------------- the actors */

/* What was acknowledged a window before `since` must be seen. */
static void
get(struct instance *i, unsigned key, int64_t since, int64_t within)
{
    near_value *value = NULL;
    near_status status;

    if (w.is->loads)
        status = near_fetch(i->cache, key_of(key), NULL, &value);
    else
        status = near_get(i->cache, key_of(key), &value);
    judge(i, key, since, within, status, value);
}

static void
get_both(struct instance *i)
{
    int64_t     since = step_now();
    near_bytes  keys[DST_KEYS];
    near_value *values[DST_KEYS];
    near_status statuses[DST_KEYS];

    for (unsigned k = 0; k < w.is->keys; k++)
        keys[k] = key_of(k);
    if (w.is->loads)
        near_fetch_many(i->cache, keys, w.is->keys, NULL, values, statuses);
    else
        near_get_many(i->cache, keys, w.is->keys, values, statuses);
    for (unsigned k = 0; k < w.is->keys; k++)
        judge(i, k, since, window(), statuses[k], values[k]);
}

/* What was acknowledged before a fence must be seen after it, by whomever. */
static void
get_fenced(struct instance *i, unsigned key)
{
    int64_t since = step_now();

    if (near_fence(i->client, TIMEOUT) == NEAR_OK)
        get(i, key, since, w.is->chaos & DST_LOSE ? window() : 0); /* a fence finds no loss */
}

static void
put(struct instance *i, unsigned key)
{
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    const char      *tags[]  = { "t" };
    uint64_t         id      = ++w.ids;
    uint8_t          value[9];

    value[0] = (uint8_t)('a' + key);
    near__le64_put(value + 1, id);
    if (w.is->tags) {
        options.tags      = tags;
        options.tag_count = 1;
    }
    if (near_put(i->cache, key_of(key), (near_bytes){ value, sizeof(value) }, &options) == NEAR_OK)
        raise_floor(i->number, key, w.number_of[id % DST_NUMBERS] - 1);
}

static void
drop(struct instance *i, unsigned key)
{
    w.removal[step_self()] = 0;
    if (near_remove(i->cache, key_of(key)) == NEAR_OK && w.removal[step_self()] != 0)
        raise_floor(i->number, key, w.removal[step_self()]);
}

/* The store first, then the caches. */
static void
change_store(struct instance *i, unsigned key)
{
    uint64_t version;

    travel();
    version = ++w.version[key];
    if (w.is->absent && step_random(3) == 0)
        w.absent[key][version] = true;
    travel();
    if (near_remove(i->cache, key_of(key)) == NEAR_OK)
        raise_floor(i->number, key, version - 1);
}

static void
clear(struct instance *i, bool tag)
{
    uint64_t before[DST_KEYS];

    memcpy(before, w.mutations, sizeof(before));
    if ((tag ? near_invalidate_tag(i->cache, "t") : near_clear(i->cache)) == NEAR_OK)
        for (unsigned k = 0; k < w.is->keys; k++)
            raise_floor(i->number, k, before[k]);
}

static void
act(struct instance *i)
{
    unsigned key = (unsigned)step_random(w.is->keys);
    uint64_t lot = step_random(16);

    if (w.is->herd)
        get(i, key, step_now(), window());
    else if (lot < 6)
        get(i, key, step_now(), window());
    else if (lot == 6)
        get_both(i);
    else if (lot == 7)
        get_fenced(i, key);
    else if (lot == 8 && (w.is->clears || w.is->tags))
        clear(i, w.is->tags);
    else if (w.is->loads)
        change_store(i, key);
    else if (lot < 14)
        put(i, key);
    else
        drop(i, key);
}

static void
live(void *ctx)
{
    struct instance *i = ctx;
    unsigned         n = 2 + (unsigned)step_random(6);

    for (unsigned j = 0; j < n; j++) {
        if (step_random(4) == 0)
            step_sleep((int64_t)step_random((w.is->chaos ? 3 * DST_WINDOW : 10) * NEAR_MS));
        act(i);
    }
    w.actors--;
    step_wake(&w.actors);
}

/* --------------------------------------------------------------------------------------------- misfortune */

/* One of the messages on their way; NULL. */
static struct post *
some_message(struct link *link)
{
    struct post *p = link->n > 0 ? &link->queue[(link->first + step_random(link->n)) % QUEUE] : NULL;

    return p != NULL && p->kind == MESSAGE ? p : NULL;
}

static void
repeat(struct link *link)
{
    struct post *p = some_message(link);

    if (p != NULL)
        post(link, MESSAGE, 0, p->bytes, p->size);
}

static void
evict(void)
{
    struct item *item = &w.items[step_random(ITEMS)];

    for (size_t i = 0; i < ITEMS && !item->used; i++)
        item = &w.items[i];
    if (item->used && (user_key((near_bytes){ item->key, item->key_size }) >= 0 || step_random(4) == 0))
        item->used = false;
}

/* As the memory of an L1 that is full would. */
static void
evict_l1(struct instance *i)
{
    near__l1_resize(i->cache->l1, (size_t)1 << 20, 1);
    near__l1_resize(i->cache->l1, (size_t)1 << 20, 1000);
}

static void
befall(struct instance *i, enum dst_misfortune what)
{
    switch (what) {
    case DST_CUT:
        cut(&i->link);
        break;
    case DST_SILENT:
        i->link.silent_until = step_now() + (int64_t)(1 + step_random(3)) * DST_WINDOW * NEAR_MS;
        step_wake(&i->link);
        break;
    case DST_LOSE:
        i->link.lose_next = i->link.losses < LOSSES;
        i->link.losses += i->link.lose_next;
        break;
    case DST_REPEAT:
        repeat(&i->link);
        break;
    case DST_FREEZE:
        step_freeze(i->number, step_now() + (int64_t)step_random(4 * DST_WINDOW * NEAR_MS));
        break;
    case DST_JUMP:
        step_jump((int64_t)step_random(2 * DST_WINDOW * NEAR_MS));
        break;
    case DST_EVICT:
        evict();
        break;
    default:
        evict_l1(i);
        break;
    }
}

static void
misfortune(void *ctx)
{
    unsigned n = 1 + (unsigned)step_random(8);

    (void)ctx;
    while (n > 0 && w.actors > 1) {
        unsigned what = 1u << step_random(8);

        if ((what & w.is->chaos) == 0)
            continue;
        step_sleep((int64_t)step_random(15 * NEAR_MS));
        befall(&w.instances[1 + step_random(w.is->clients)], (enum dst_misfortune)what);
        n--;
    }
    w.actors--;
    step_wake(&w.actors);
}

/* ------------------------------------------------------------------------------------ a run from end to end */

static near_config *
configuration(void)
{
    static const char *const settings[][2] = {
        { "l2.uri", "memory:dst" },
        { "l1.max_bytes", "1MiB" },
        { "l1.policy", "lru" },
        { "l1.shards", "1" },
        { "l2.timeout", "20ms" },
        { "l2.connect_timeout", "50ms" },
        { "coherence.heartbeat", "10ms" },
        { "loader.threads", "2" },
        { "close.timeout", "200ms" },
        { "lease.timeout", "100ms" },
        { "negative_ttl", "1s" },
        { "load.retry", "0" },
        { "coherence.serve_window", "60ms" },
    };
    near_config *config = near_config_new();

    for (size_t i = 0; i < NEAR_COUNT_OF(settings); i++)
        if (near_config_set(config, settings[i][0], settings[i][1], NULL) != NEAR_OK)
            steps_violation("no such setting: %s", settings[i][0]);
    if (w.is->alone)
        near_config_set(config, "l2.uri", "none:", NULL);
    return config;
}

static bool
open_one(unsigned number, near_config *config)
{
    struct instance *i = &w.instances[number];

    i->number = number;
    w.opening = number;
    step_enter(number);
    if (near_client_open(config, &i->client, NULL) != NEAR_OK ||
        near_cache_open(i->client, "c", NULL, &i->cache, NULL) != NEAR_OK) {
        steps_violation("instance %u does not open", number);
        return false;
    }
    if (w.is->loads)
        near_cache_set_loader(i->cache, load_all, i);
    return true;
}

/* When all is mended, L1 holds the newest of each key or nothing. */
static void
check_settled(struct instance *i)
{
    near_get_options only = NEAR_GET_OPTIONS_INIT;

    only.flags = NEAR_ONLY_L1;
    for (unsigned k = 0; k < w.is->keys; k++) {
        near_value *value = NULL;
        uint64_t    now   = w.is->loads ? w.version[k] : w.mutations[k];

        if (near_get_with(i->cache, key_of(k), &only, &value) == NEAR_OK && number_in(value, k) != now)
            steps_violation("instance %u: key %c: %llu stays in L1 for good, %llu is the newest", i->number,
                            'a' + (int)k, (unsigned long long)number_in(value, k), (unsigned long long)now);
        near_value_release(value);
        value = NULL;
        if (!w.is->loads)
            continue;
        if (near_fetch(i->cache, key_of(k), NULL, &value) == NEAR_OK && number_in(value, k) != now)
            steps_violation("instance %u: key %c: %llu stays for good, %llu is the newest", i->number,
                            'a' + (int)k, (unsigned long long)number_in(value, k), (unsigned long long)now);
        near_value_release(value);
    }
}

static void
check_herd(void)
{
    for (unsigned k = 0; k < w.is->keys; k++)
        if (w.loads[k] > 1)
            steps_violation("key %c was loaded %llu times", 'a' + (int)k, (unsigned long long)w.loads[k]);
}

static void
settle(void)
{
    while (w.actors > 0)
        step_wait(&w.actors, NEAR_NEVER);
    w.healed = true;
    for (unsigned i = 1; i <= w.is->clients; i++)
        step_freeze(i, 0), w.instances[i].link.silent_until = 0, step_wake(&w.instances[i].link);
    while (w.zombies > 0)
        step_wait(&w.zombies, NEAR_NEVER);
    step_calm(true);
    step_sleep(SETTLED * NEAR_MS);
    if (w.is->herd)
        check_herd();
    for (unsigned i = 1; i <= w.is->clients; i++)
        check_settled(&w.instances[i]);
}

static void
play(void *ctx)
{
    near_config *config = configuration();
    bool         opened = true;

    (void)ctx;
    step_calm(true);
    for (unsigned i = 1; i <= w.is->clients; i++)
        opened = opened && open_one(i, config);
    near_config_free(config);
    step_enter(STEPS_NOBODY);
    if (opened) {
        for (unsigned k = 0; w.is->loads && k < w.is->keys; k++)
            w.version[k] = 1;
        step_calm(false);
        w.actors = w.is->clients + 2 + (w.is->chaos != 0);
        for (unsigned i = 1; i <= w.is->clients; i++)
            step_spawn(live, &w.instances[i], i);
        step_spawn(live, &w.instances[1], 1); /* three threads in one, one in each other */
        step_spawn(live, &w.instances[1], 1);
        if (w.is->chaos)
            step_spawn(misfortune, NULL, STEPS_NOBODY);
        settle();
    }
    for (unsigned i = 1; i <= w.is->clients; i++)
        if (w.instances[i].client != NULL) {
            step_enter(i);
            near_client_close(w.instances[i].client, NULL);
        }
}

static void
run_once(const struct dst_settings *settings, uint64_t seed, struct steps_result *result)
{
    near__stream_disclaim_all(); /* the process's, as a new process has it */
    memset(&w, 0, sizeof(w));
    w.is = settings;
    steps_run(seed, play, NULL, result);
}

void
dst_run(const struct dst_settings *settings, uint64_t seed, struct steps_result *result)
{
    static bool warm;

    /* what a process does once (the list of hazard records) is done by a run that does not count */
    if (!warm)
        run_once(settings, 0, result);
    warm = true;
    run_once(settings, seed, result);
}

/* ------------------------------------------------------------- where the library meets the world, and cures */

const struct near__bus_ops *__real_near__bus_named(const char *scheme);
const struct near__bus_ops *__wrap_near__bus_named(const char *scheme);
const struct near_l2_ops   *__real_near__l2_backend_named(const char *scheme);
const struct near_l2_ops   *__wrap_near__l2_backend_named(const char *scheme);

const struct near__bus_ops *
__wrap_near__bus_named(const char *scheme)
{
    return steps_running() ? &bus_ops : __real_near__bus_named(scheme);
}

const struct near_l2_ops *
__wrap_near__l2_backend_named(const char *scheme)
{
    return steps_running() ? &l2_ops : __real_near__l2_backend_named(scheme);
}

uint64_t                __real_near__l1_fence(const struct near__l1 *l1, uint64_t hash);
uint64_t                __wrap_near__l1_fence(const struct near__l1 *l1, uint64_t hash);
enum near__l1_admission __real_near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence,
                                               int64_t now);
enum near__l1_admission __wrap_near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence,
                                               int64_t now);
void                    __real_near__l1_invalidate(struct near__l1 *l1, uint64_t hash, near_bytes key);
void                    __wrap_near__l1_invalidate(struct near__l1 *l1, uint64_t hash, near_bytes key);
void                    __real_near__l1_flush(struct near__l1 *l1);
void                    __wrap_near__l1_flush(struct near__l1 *l1);
void                    __real_near__l1_invalidate_tag(struct near__l1 *l1, uint64_t hash);
void                    __wrap_near__l1_invalidate_tag(struct near__l1 *l1, uint64_t hash);
struct near__l1_write   __real_near__l1_write_begin(struct near__l1 *l1, uint64_t hash, near_bytes key);
struct near__l1_write   __wrap_near__l1_write_begin(struct near__l1 *l1, uint64_t hash, near_bytes key);
void    __real_near__l1_write_end(struct near__l1 *l1, struct near__l1_write write, uint64_t hash,
                                  near_bytes key, struct near__entry *entry, int64_t now);
void    __wrap_near__l1_write_end(struct near__l1 *l1, struct near__l1_write write, uint64_t hash,
                                  near_bytes key, struct near__entry *entry, int64_t now);
int64_t __real_near__coherence_gate(const struct near__coherence *c);
int64_t __wrap_near__coherence_gate(const struct near__coherence *c);
void    __real_near__coherence_doubt(struct near__coherence *c, uint64_t stream);
void    __wrap_near__coherence_doubt(struct near__coherence *c, uint64_t stream);
void    __real_near__recovery_keep(near_cache *cache, near_bytes key, uint64_t hash);
void    __wrap_near__recovery_keep(near_cache *cache, near_bytes key, uint64_t hash);
enum near__stream_news __real_near__streams_heard(struct near__streams *s, uint64_t sender, uint64_t stream,
                                                  uint64_t sequence);
enum near__stream_news __wrap_near__streams_heard(struct near__streams *s, uint64_t sender, uint64_t stream,
                                                  uint64_t sequence);
enum near__stream_news __real_near__streams_announced(struct near__streams *s, uint64_t sender,
                                                      uint64_t stream, uint64_t first, uint64_t last,
                                                      bool whole);
enum near__stream_news __wrap_near__streams_announced(struct near__streams *s, uint64_t sender,
                                                      uint64_t stream, uint64_t first, uint64_t last,
                                                      bool whole);
void                   __real_near__generation_doubt(near_cache *cache, bool replaced);
void                   __wrap_near__generation_doubt(near_cache *cache, bool replaced);
void __real_near__flight_fail(near_cache *cache, struct near__flight *flight, near_status status);
void __wrap_near__flight_fail(near_cache *cache, struct near__flight *flight, near_status status);

/* How often each L1 was flushed, for runs in which that moves no fence. */
static uint64_t *
flushes_of(const struct near__l1 *l1)
{
    size_t i = 0;

    while (i + 1 < DST_CLIENTS && w.flushed[i].l1 != l1 && w.flushed[i].l1 != NULL)
        i++;
    w.flushed[i].l1 = l1;
    return &w.flushed[i].n;
}

static bool
is_present(struct near__l1 *l1, uint64_t hash, near_bytes key)
{
    near_value *value = near__l1_find(l1, hash, key, step_now());

    if (value != NULL && value != NEAR__L1_NEGATIVE)
        near_value_release(value);
    return value != NULL;
}

uint64_t
__wrap_near__l1_fence(const struct near__l1 *l1, uint64_t hash)
{
    static uint64_t calls;
    uint64_t        fence = __real_near__l1_fence(l1, hash);

    if (dst_without == DST_NO_EPOCH)
        fence -= *flushes_of(l1) << NEAR__L1_FENCE_FILLS;
    if (dst_without == DST_NO_FLIGHTS)
        fence += ++calls << 40;
    return fence;
}

enum near__l1_admission
__wrap_near__l1_insert(struct near__l1 *l1, struct near__entry *entry, uint64_t fence, int64_t now)
{
    bool any = dst_without == DST_NO_FENCE ||
               (dst_without == DST_FENCE_IN_ENTRY && !is_present(l1, entry->hash, near__entry_key(entry)));

    if (dst_without == DST_NO_EPOCH)
        fence += *flushes_of(l1) << NEAR__L1_FENCE_FILLS;
    if (dst_without == DST_NO_FLIGHTS)
        fence &= (UINT64_C(1) << 40) - 1;
    return __real_near__l1_insert(l1, entry, any ? __real_near__l1_fence(l1, entry->hash) : fence, now);
}

/* Whether this key was invalidated a moment ago, too. */
static bool
is_repeated(const struct near__l1 *l1, uint64_t hash)
{
    static struct {
        const struct near__l1 *l1;
        uint64_t               hash;
        int64_t                at;
    } last[64];
    size_t  place    = (hash ^ (uintptr_t)l1 >> 8) % NEAR_COUNT_OF(last);
    int64_t before   = last[place].at;
    bool    repeated = last[place].l1 == l1 && last[place].hash == hash && before <= step_now() &&
                    step_now() - before < 5000 * NEAR_MS;

    last[place].l1   = l1;
    last[place].hash = hash;
    last[place].at   = step_now();
    return repeated;
}

void
__wrap_near__l1_invalidate(struct near__l1 *l1, uint64_t hash, near_bytes key)
{
    if (dst_without == DST_IGNORE_ABSENT && !is_present(l1, hash, key))
        return;
    if (dst_without == DST_ONCE && is_repeated(l1, hash))
        return;
    __real_near__l1_invalidate(l1, hash, key);
}

void
__wrap_near__l1_flush(struct near__l1 *l1)
{
    if (dst_without == DST_NO_EPOCH)
        ++*flushes_of(l1);
    if (dst_without != DST_NO_FLUSH)
        __real_near__l1_flush(l1);
}

void
__wrap_near__l1_invalidate_tag(struct near__l1 *l1, uint64_t hash)
{
    if (dst_without != DST_NO_TAG_MOVE)
        __real_near__l1_invalidate_tag(l1, hash);
}

struct near__l1_write
__wrap_near__l1_write_begin(struct near__l1 *l1, uint64_t hash, near_bytes key)
{
    if (dst_without == DST_NO_BRACKET)
        return (struct near__l1_write){ 0, false };
    return __real_near__l1_write_begin(l1, hash, key);
}

void
__wrap_near__l1_write_end(struct near__l1 *l1, struct near__l1_write write, uint64_t hash, near_bytes key,
                          struct near__entry *entry, int64_t now)
{
    if (dst_without != DST_NO_BRACKET)
        __real_near__l1_write_end(l1, write, hash, key, entry, now);
    else if (entry != NULL)
        __real_near__l1_insert(l1, entry, __real_near__l1_fence(l1, hash), now);
    else
        __real_near__l1_invalidate(l1, hash, key);
}

int64_t
__wrap_near__coherence_gate(const struct near__coherence *c)
{
    int64_t gate = __real_near__coherence_gate(c);

    return dst_without == DST_NO_GATE && gate != 0 ? NEAR_NEVER : gate;
}

void
__wrap_near__coherence_doubt(struct near__coherence *c, uint64_t stream)
{
    if (dst_without != DST_NO_DOUBT)
        __real_near__coherence_doubt(c, stream);
}

void
__wrap_near__recovery_keep(near_cache *cache, near_bytes key, uint64_t hash)
{
    if (dst_without != DST_NO_RECOVERY)
        __real_near__recovery_keep(cache, key, hash);
}

enum near__stream_news
__wrap_near__streams_heard(struct near__streams *s, uint64_t sender, uint64_t stream, uint64_t sequence)
{
    enum near__stream_news news = __real_near__streams_heard(s, sender, stream, sequence);

    return dst_without == DST_NO_NUMBERS ? NEAR__STREAM_NEXT : news;
}

enum near__stream_news
__wrap_near__streams_announced(struct near__streams *s, uint64_t sender, uint64_t stream, uint64_t first,
                               uint64_t last, bool whole)
{
    enum near__stream_news news = __real_near__streams_announced(s, sender, stream, first, last, whole);

    return dst_without == DST_NO_NUMBERS ? NEAR__STREAM_NEXT : news;
}

void
__wrap_near__generation_doubt(near_cache *cache, bool replaced)
{
    if (dst_without != DST_KEEP_GENERATION)
        __real_near__generation_doubt(cache, replaced);
}

void
__wrap_near__flight_fail(near_cache *cache, struct near__flight *flight, near_status status)
{
    if (dst_without != DST_LEAK_FLIGHTS)
        __real_near__flight_fail(cache, flight, status);
}

enum near__boarding __real_near__flight_board(near_cache *cache, near_bytes key, uint64_t hash,
                                              const void *call, int64_t now, struct near__flight **flight);
enum near__boarding __wrap_near__flight_board(near_cache *cache, near_bytes key, uint64_t hash,
                                              const void *call, int64_t now, struct near__flight **flight);

enum near__boarding
__wrap_near__flight_board(near_cache *cache, near_bytes key, uint64_t hash, const void *call, int64_t now,
                          struct near__flight **flight)
{
    /* at time 0 every gate that was ever opened is open */
    return __real_near__flight_board(cache, key, hash, call, dst_without == DST_JOIN_ANY ? 0 : now, flight);
}
