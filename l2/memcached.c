/*
 * The memcached: backend.
 *
 *     call -> router: which server has the key -> that server's lanes -> a connection (memcached_conn.c)
 *
 * A *ring* is a list of servers with its router.  There is one, or two: the second is the gutter (l2.gutter).
 * A call divides its items among the servers of the ring, makes one lane call for each, and runs them all at
 * once: what one server costs in time does not add to another, and a dead one's keys are errors while the
 * others are answered.  There is no ejection (rule L10): a key's server is the same whatever happens, else a
 * server that comes back would bring old values back.
 *
 * Where a gutter is set, the items of a server that cannot be reached are tried there, and live there for
 * l2.gutter_ttl at most.  Once the server is back, writes of its keys remove them from the gutter for as long
 * as something of it may be there.
 *
 * A server past which a write went is not believed any more until it has a new epoch: see memcached_epoch.h.
 *
 * memcached can do nothing atomically with a message, so nothing is announced.  Conditional writes compare
 * the stamp here, between `gets` and `cas`: see memcached_conn.h for how long a unique number is good.
 *
 * A value over the server's item_size_max is refused before it is sent, and nothing changes.  Where the
 * server itself refuses it (the limit is a little below the setting) it has removed what was there before:
 * the old value is gone, which we make sure of (rule M2).
 *
 * Calls are counted in `calls`; nothing else here changes after open, and no lock is held while a call runs.
 */
#include "base/backoff.h"
#include "base/event.h"
#include "base/le.h"
#include "base/lock.h"
#include "l2/backend.h"
#include "l2/memcached_conn.h"
#include "l2/memcached_router.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A clock of whole seconds, the server's and ours out of step: a shorter lease may last a moment only. */
#define MIN_LEASE_MS 3000
/* How often something is tried again that another process, or a restart of the server, came in between of. */
#define ROUNDS    3
#define EPOCH_KEY "@epoch" /* behind the prefix, where every other key has a cache's name, which holds no @ */

struct server {
    struct near__memcached_server shared;
    _Atomic int64_t               gutter_until; /* something of it may be in the gutter */
};

struct ring {
    struct near__memcached_router *router;
    bool                           is_gutter;
    size_t                         n;
    struct server                  servers[];
};

struct backend {
    const struct near_l2_env *env;
    struct ring              *primary, *gutter; /* gutter: NULL without */
    int                       cancel_fd;        /* event: raised once closed.  -1 in a forked child */
    bool                      forked;
    near_bytes                epoch_key;
    char                      epoch_name[80];

    atomic_size_t     calls; /* 2 for each under way; 1: closed */
    struct near__lock lock;  /* leaf; for `idle` only */
    pthread_cond_t    idle;
};

/* One call's items of one server. */
struct part {
    struct backend              *backend;
    struct server               *server;
    struct near_l2_item        **items;
    size_t                       n;
    struct near__memcached_call *call;     /* NULL: none, or given up */
    bool                         has_call; /* there is, or was, one to run */
    enum near__lane_outcome      outcome;
    near_status                  status;
    bool                         looking; /* the call reads the epoch, too, as its last key */
    uint32_t                     epoch;
    uint64_t                     changes; /* of the epoch, when the call was made */
};

struct parts {
    struct backend *backend;
    struct ring    *ring;
    int64_t         deadline;
    size_t          n;
    struct part     part[NEAR__URI_ADDRESSES];
};

/* The items of a call that are still to be dealt with. */
struct list {
    struct near_l2_item **items;
    size_t                n;
};

/* ----------------------------------------------------------------------------------------------- answers */

static void
answer(struct near_l2_item *item, enum near_l2_answer what, near_status status)
{
    item->answer = what;
    item->status = status;
}

static void
part_fails(struct part *part, near_status status)
{
    for (size_t i = 0; i < part->n; i++)
        answer(part->items[i], NEAR_L2_ERROR, status);
    part->n = 0;
}

/* --------------------------------------------------------------------------------------------- placement */

/* A key that no memcached can take is refused here (rule L4), whoever asked; after the deadline nothing is
 * tried. */
static void
list_items(const struct backend *b, struct list *list, struct near_l2_item **room, struct near_l2_item *items,
           size_t n, int64_t deadline)
{
    bool late = near__now(b->env->clock) >= deadline;

    *list = (struct list){ room, 0 };
    for (size_t i = 0; i < n; i++) {
        answer(&items[i], NEAR_L2_NOT_TRIED, NEAR_OK);
        if (!near__memcached_key_is_fit(items[i].key))
            answer(&items[i], NEAR_L2_ERROR, NEAR_ERR_INVALID);
        else if (!late)
            list->items[list->n++] = &items[i];
    }
}

static void
add_part(struct parts *parts, struct server *server, struct near_l2_item **items, size_t n)
{
    parts->part[parts->n++] =
        (struct part){ .backend = parts->backend, .server = server, .items = items, .n = n };
}

/* Sort the list by server: each part is a stretch of `room`, as large as the list. */
static void
divide(struct parts *parts, struct backend *b, struct ring *ring, const struct list *list,
       struct near_l2_item **room, int64_t deadline)
{
    size_t  counts[NEAR__URI_ADDRESSES], starts[NEAR__URI_ADDRESSES];
    uint8_t homes[NEAR_L2_READS];

    parts->backend  = b;
    parts->ring     = ring;
    parts->deadline = deadline;
    parts->n        = 0;
    memset(counts, 0, ring->n * sizeof(counts[0]));
    for (size_t i = 0; i < list->n; i++) {
        homes[i] = (uint8_t)near__memcached_route(ring->router, list->items[i]->key);
        counts[homes[i]]++;
    }
    for (size_t s = 0, at = 0; s < ring->n; at += counts[s++]) {
        starts[s] = at;
        if (counts[s] > 0)
            add_part(parts, &ring->servers[s], room + at, counts[s]);
    }
    for (size_t i = 0; i < list->n; i++)
        room[starts[homes[i]]++] = list->items[i];
}

/* -------------------------------------------------------------------------------------------- lane calls */

/* Make the part's next call.  False: out of memory. */
static bool
part_call(struct part *part, enum near__memcached_talk_kind kind, size_t n, size_t key_bytes,
          size_t value_bytes)
{
    part->call     = near__memcached_call_new(&part->server->shared, kind, n, key_bytes, value_bytes,
                                              part->backend->env->max_stored);
    part->has_call = part->call != NULL;
    return part->has_call;
}

static void
part_done(struct part *part)
{
    near__memcached_call_free(part->call);
    part->call     = NULL;
    part->has_call = false;
}

static bool
part_is_answered(const struct part *part)
{
    return part->call != NULL && part->outcome == NEAR__LANE_ANSWERED;
}

/* Whether the log should hear of it: not that a server is still down. */
static bool
is_news(const struct near__lane_ask *ask)
{
    return ask->outcome != NEAR__LANE_ANSWERED && !ask->refused && ask->status != NEAR_ERR_CLOSED;
}

/* Run the calls of all parts that have one, at once. */
static void
run(struct parts *parts)
{
    struct near__lane_ask asks[NEAR__URI_ADDRESSES];
    near_error            error = { .code = NEAR_OK };
    size_t                n     = 0;
    bool                  news  = false;

    for (size_t p = 0; p < parts->n; p++) {
        if (parts->part[p].has_call)
            asks[n++] = near__memcached_ask(parts->part[p].call);
    }
    if (n == 0)
        return;
    near__lanes_run(asks, n, parts->deadline, &error);
    for (size_t p = 0, i = 0; p < parts->n; p++) {
        struct part *part = &parts->part[p];
        if (!part->has_call)
            continue;
        part->outcome = asks[i].outcome;
        part->status  = asks[i].status;
        if (asks[i].call == NULL)
            part->call = NULL; /* the lane's now */
        news |= is_news(&asks[i]);
        i++;
    }
    if (news)
        near__log(parts->backend->env->log, NEAR_LOG_WARN, "%s", error.text);
}

static size_t
key_bytes(const struct part *part)
{
    size_t sum = 0;

    for (size_t i = 0; i < part->n; i++)
        sum += part->items[i]->key.size;
    return sum;
}

/* ------------------------------------------------------------------------------------------------ epochs */

static void
distrust(struct part *part)
{
    if (near__memcached_distrust(&part->server->shared.epoch))
        near__log(part->backend->env->log, NEAR_LOG_WARN,
                  "%s: a write went past it: what it holds will not be used any more",
                  part->server->shared.name);
}

/* What others hold of the server's entries may be as old as those. */
static void
epoch_changed(struct part *part)
{
    const struct near_l2_env *env = part->backend->env;

    near__log(env->log, NEAR_LOG_INFO,
              "%s: another process found it behind: what it held is not used any more",
              part->server->shared.name);
    if (env->outdated != NULL)
        env->outdated(env->outdated_ctx);
}

static void
learn(struct part *part, uint32_t number)
{
    part->epoch = number;
    if (number != 0 && near__memcached_epoch_learn(&part->server->shared.epoch, number, part->changes,
                                                   near__now(part->backend->env->clock)))
        epoch_changed(part);
}

static void
make_epoch_store(struct part *part, enum near__memcached_verb verb, uint32_t number)
{
    char   text[10];
    size_t size = near__memcached_epoch_encode(number, text);

    part->epoch = number;
    if (part_call(part, NEAR__MEMCACHED_WRITES, 1, part->backend->epoch_key.size, size))
        near__memcached_add_store(&part->call->talk, verb, part->backend->epoch_key, 0, 0,
                                  (near_bytes){ text, size }, 0);
}

static enum near__memcached_word
word_at(const struct part *part, size_t i)
{
    return part_is_answered(part) ? part->call->talk.records[i].word : NEAR__MEMCACHED_UNANSWERED;
}

/* Servers past which something went get their new epoch first; what cannot be said to one is said to its
 * items. */
static void
renew(struct parts *parts, bool removing)
{
    for (size_t p = 0; p < parts->n; p++) {
        struct part *part   = &parts->part[p];
        uint32_t     wanted = near__memcached_epoch_wanted(&part->server->shared.epoch);

        if (wanted == 0)
            continue; /* trusted; or another thread was faster */
        make_epoch_store(part, NEAR__MEMCACHED_SET, wanted);
        if (!part->has_call)
            part_fails(part, NEAR_ERR_NOMEM);
    }
    run(parts);
    for (size_t p = 0; p < parts->n; p++) {
        struct part *part = &parts->part[p];

        if (!part->has_call)
            continue;
        if (word_at(part, 0) == NEAR__MEMCACHED_DONE)
            near__memcached_epoch_renewed(&part->server->shared.epoch, part->epoch,
                                          near__now(part->backend->env->clock));
        else
            part_fails(part, part->status != NEAR_OK ? part->status : NEAR_ERR_DENIED);
        /* again: a number that may be on its way is not asked for twice, lest it come back over another's */
        if (word_at(part, 0) != NEAR__MEMCACHED_DONE && (removing || part->outcome != NEAR__LANE_NOT_SENT))
            near__memcached_distrust(&part->server->shared.epoch);
        part_done(part);
    }
}

static void
settle(struct parts *parts, bool removing)
{
    for (size_t p = 0; p < parts->n; p++) {
        if (near__memcached_is_distrusted(&parts->part[p].server->shared.epoch)) {
            renew(parts, removing);
            return;
        }
    }
}

static void
make_epoch_read(struct part *part)
{
    near__memcached_epoch_known(&part->server->shared.epoch, &part->changes);
    if (part_call(part, NEAR__MEMCACHED_READS, 1, part->backend->epoch_key.size, 0)) {
        near__memcached_add_read(&part->call->talk, part->backend->epoch_key);
        part->call->lane.idempotent = true;
    }
}

/* One round of find_epochs(): read them, or make them.  How many were still to be found. */
static size_t
ask_for_epochs(struct parts *parts, bool make)
{
    size_t missing = 0;

    for (size_t p = 0; p < parts->n; p++) {
        struct part *part = &parts->part[p];

        if (!part->looking || part->epoch != 0)
            continue;
        missing++;
        if (make)
            make_epoch_store(part, NEAR__MEMCACHED_ADD, near__memcached_epoch_fresh());
        else
            make_epoch_read(part);
    }
    if (missing > 0)
        run(parts);
    return missing;
}

static void
take_epoch(struct part *part, bool make)
{
    enum near__memcached_word word = word_at(part, 0);
    uint32_t                  made = part->epoch;

    part->epoch = 0;
    if (word == NEAR__MEMCACHED_UNANSWERED)
        part->looking = false; /* no use */
    else if (word == NEAR__MEMCACHED_DONE)
        learn(part, make ? made : near__memcached_epoch_decode(part->call->talk.records[0].value));
    part_done(part);
}

/* Ask for, and where there is none make, the epoch of each part that is `looking` and has none.  Whoever has
 * none afterwards has the reason in `status`. */
static void
find_epochs(struct parts *parts)
{
    for (int round = 0; round < 2 * ROUNDS; round++) {
        if (ask_for_epochs(parts, round % 2 != 0) == 0)
            return;
        for (size_t p = 0; p < parts->n; p++) {
            if (parts->part[p].has_call)
                take_epoch(&parts->part[p], round % 2 != 0);
        }
    }
}

/* The same servers, for calls beside those of `parts`: `errand`'s parts have no items. */
static void
send_out(struct parts *errand, const struct parts *parts)
{
    errand->backend  = parts->backend;
    errand->ring     = parts->ring;
    errand->deadline = parts->deadline;
    errand->n        = 0;
    for (size_t p = 0; p < parts->n; p++)
        add_part(errand, parts->part[p].server, NULL, 0);
}

/* Before a write: the epoch to write with, whatever it costs. */
static void
need_epochs(struct parts *parts)
{
    bool missing = false;

    for (size_t p = 0; p < parts->n; p++) {
        struct part *part = &parts->part[p];
        part->epoch       = near__memcached_epoch_known(&part->server->shared.epoch, &part->changes);
        part->status      = NEAR_OK;
        part->looking     = part->n > 0 && part->epoch == 0;
        missing           = missing || part->looking;
    }
    if (!missing)
        return;
    find_epochs(parts);
    for (size_t p = 0; p < parts->n; p++) {
        struct part *part = &parts->part[p];
        if (part->epoch != 0)
            continue;
        for (size_t i = 0; i < part->n; i++)
            answer(part->items[i], NEAR_L2_ERROR,
                   part->status != NEAR_OK ? part->status : NEAR_ERR_UNAVAILABLE);
        part->n = 0;
    }
}

/* ----------------------------------------------------------------------------------------- life of calls */

static bool
call_begin(struct backend *b, struct near_l2_item *items, size_t n)
{
    /* acquire pairs with nothing: what counts is that stop() sees the 2, or we see the 1, of one number */
    if ((atomic_fetch_add_explicit(&b->calls, 2, memory_order_acquire) & 1) == 0)
        return true;
    if (atomic_fetch_sub_explicit(&b->calls, 2, memory_order_release) == 3) {
        near__lock(&b->lock);
        pthread_cond_broadcast(&b->idle);
        near__unlock(&b->lock);
    }
    near__l2_answer_all(items, n, NEAR_L2_ERROR, NEAR_ERR_CLOSED);
    return false;
}

static void
call_end(struct backend *b)
{
    /* release pairs with the acquire in stop(): what this call did is done before the memory goes */
    if (atomic_fetch_sub_explicit(&b->calls, 2, memory_order_release) != 3)
        return;
    near__lock(&b->lock);
    pthread_cond_broadcast(&b->idle);
    near__unlock(&b->lock);
}

/* ----------------------------------------------------------------------------------------------- reading */

/* A read of all keys of each part, and of its epoch where that is due: as the last key, so that what it is
 * has been so while the others were read. */
static void
make_reads(struct parts *parts, enum near__memcached_talk_kind kind)
{
    int64_t now = near__now(parts->backend->env->clock);

    for (size_t p = 0; p < parts->n; p++) {
        struct part                  *part  = &parts->part[p];
        struct near__memcached_epoch *epoch = &part->server->shared.epoch;

        if (part->n == 0)
            continue;
        part->epoch   = near__memcached_epoch_known(epoch, &part->changes);
        part->looking = near__memcached_epoch_is_due(epoch, now);
        if (!part_call(part, kind, part->n + 1, key_bytes(part) + part->backend->epoch_key.size, 0)) {
            part_fails(part, NEAR_ERR_NOMEM);
            continue;
        }
        part->call->lane.idempotent = true;
        for (size_t i = 0; i < part->n; i++)
            near__memcached_add_read(&part->call->talk, part->items[i]->key);
        if (part->looking)
            near__memcached_add_read(&part->call->talk, part->backend->epoch_key);
    }
}

static bool
is_of_epoch(const struct part *part, size_t i)
{
    return part->items[i]->plain || part->call->talk.records[i].flags == part->epoch;
}

/* Whether something was found that what we know of the epoch does not fit. */
static bool
has_doubtful(const struct part *part)
{
    for (size_t i = 0; i < part->n; i++) {
        if (part->call->talk.records[i].word == NEAR__MEMCACHED_DONE && !is_of_epoch(part, i))
            return true;
    }
    return false;
}

/* The epoch that the part's answer is to be judged by.  False: not known yet. */
static bool
judge_alone(struct part *part)
{
    const struct near__memcached_record *r = &part->call->talk.records[part->n];

    if (!part->looking)
        return !has_doubtful(part); /* else theirs may be the newer one */
    learn(part, r->word == NEAR__MEMCACHED_DONE ? near__memcached_epoch_decode(r->value) : 0);
    return part->epoch != 0; /* else it has to be made; nothing that was found is of it */
}

static void
judge(struct parts *parts)
{
    struct parts errand;
    bool         ask = false;

    send_out(&errand, parts);
    for (size_t p = 0; p < parts->n; p++) {
        errand.part[p].looking = part_is_answered(&parts->part[p]) && !judge_alone(&parts->part[p]);
        ask                    = ask || errand.part[p].looking;
    }
    if (!ask)
        return;
    for (size_t p = 0; p < parts->n; p++)
        parts->part[p].looking = errand.part[p].looking;
    find_epochs(&errand);
    for (size_t p = 0; p < parts->n; p++) {
        if (!parts->part[p].looking)
            continue;
        parts->part[p].epoch = errand.part[p].epoch;
        if (errand.part[p].epoch == 0)
            parts->part[p].status = errand.part[p].status;
    }
}

/* Whether what lies there is of another epoch. */
static bool
is_refused(const struct near__memcached_record *r, uint32_t epoch)
{
    return r->word == NEAR__MEMCACHED_DONE && epoch != 0 && r->flags != epoch;
}

/* Ask for the numbers of those of the part's items that are refused. */
static void
look_at_refused(struct part *errand, const struct part *part)
{
    errand->epoch = part->epoch;
    for (size_t i = 0; part_is_answered(part) && i < part->n; i++) {
        const struct near__memcached_record *r = &part->call->talk.records[i];

        if (part->items[i]->plain || !is_refused(r, part->epoch))
            continue;
        if (!errand->has_call &&
            !part_call(errand, NEAR__MEMCACHED_READS_NUMBERS, part->n, key_bytes(part), 0))
            return;
        near__memcached_add_read(&errand->call->talk, r->key);
    }
}

static void
remove_refused(struct part *errand, const struct part *seen)
{
    for (size_t i = 0; part_is_answered(seen) && i < seen->call->talk.n; i++) {
        const struct near__memcached_record *r = &seen->call->talk.records[i];

        if (!is_refused(r, seen->epoch))
            continue;
        if (!errand->has_call && !part_call(errand, NEAR__MEMCACHED_WRITES, seen->call->talk.n,
                                            seen->call->talk.n * NEAR__MEMCACHED_KEY, 0))
            return;
        errand->call->life = seen->call->lives;
        near__memcached_add_store(&errand->call->talk, NEAR__MEMCACHED_CAS, r->key, 0,
                                  NEAR__MEMCACHED_EXPIRED, (near_bytes){ "", 0 }, r->unique);
    }
}

/* Entries of another epoch go, unless somebody has written meanwhile; else they would be in the way of an
 * `add`.  Where that fails their TTL ends them. */
static void
clear_away(struct parts *parts)
{
    struct parts look, errand;
    bool         any = false;

    send_out(&look, parts);
    for (size_t p = 0; p < parts->n; p++) {
        look_at_refused(&look.part[p], &parts->part[p]);
        any = any || look.part[p].has_call;
    }
    if (!any)
        return;
    run(&look);
    send_out(&errand, parts);
    for (size_t p = 0; p < parts->n; p++)
        remove_refused(&errand.part[p], &look.part[p]);
    run(&errand);
    for (size_t p = 0; p < parts->n; p++) {
        part_done(&look.part[p]);
        part_done(&errand.part[p]);
    }
}

static void
answer_read(struct part *part, size_t i, near_l2_deliver_fn deliver, void *ctx)
{
    const struct near__memcached_record *r    = &part->call->talk.records[i];
    struct near_l2_item                 *item = part->items[i];

    if (r->word == NEAR__MEMCACHED_OVERSIZE) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
    } else if (r->word == NEAR__MEMCACHED_NO) {
        answer(item, NEAR_L2_ABSENT, NEAR_OK);
    } else if (is_of_epoch(part, i)) {
        answer(item, NEAR_L2_DONE, NEAR_OK);
        deliver(ctx, item, r->value);
    } else if (part->epoch == 0) {
        answer(item, NEAR_L2_ERROR, part->status != NEAR_OK ? part->status : NEAR_ERR_UNAVAILABLE);
    } else {
        answer(item, NEAR_L2_ABSENT, NEAR_OK);
    }
}

static void
answer_reads(struct part *part, near_l2_deliver_fn deliver, void *ctx)
{
    for (size_t i = 0; i < part->n; i++) {
        if (part_is_answered(part))
            answer_read(part, i, deliver, ctx);
        else
            answer(part->items[i], NEAR_L2_ERROR, part->status);
    }
    part_done(part);
}

static void
read_from(struct backend *b, struct ring *ring, const struct list *list, near_l2_deliver_fn deliver,
          void *ctx, int64_t deadline)
{
    struct near_l2_item *room[NEAR_L2_READS];
    struct parts         parts;

    divide(&parts, b, ring, list, room, deadline);
    settle(&parts, false);
    make_reads(&parts, NEAR__MEMCACHED_READS);
    run(&parts);
    judge(&parts);
    clear_away(&parts);
    for (size_t p = 0; p < parts.n; p++)
        answer_reads(&parts.part[p], deliver, ctx);
}

/* ------------------------------------------------------------------------------------------- the gutter */

/* Leave on the list those whose server could not be reached.  False: none, or there is no gutter. */
static bool
keep_unreachable(struct backend *b, struct list *list)
{
    size_t kept = 0;

    for (size_t i = 0; b->gutter != NULL && i < list->n; i++) {
        if (list->items[i]->answer == NEAR_L2_ERROR && list->items[i]->status == NEAR_ERR_UNAVAILABLE)
            list->items[kept++] = list->items[i];
    }
    list->n = kept;
    return kept > 0;
}

static struct server *
home_of(struct ring *ring, const struct near_l2_item *item)
{
    return &ring->servers[near__memcached_route(ring->router, item->key)];
}

/* For as long as an entry written there now can live, and its clock's tick. */
static void
note_in_gutter(struct backend *b, const struct list *list)
{
    int64_t until = near__time_after(near__now(b->env->clock), b->env->gutter_ttl + 2000 * NEAR_MS);

    /* relaxed: whoever writes next in this process may miss it by a moment, as if he had written before */
    for (size_t i = 0; i < list->n; i++)
        atomic_store_explicit(&home_of(b->primary, list->items[i])->gutter_until, until,
                              memory_order_relaxed);
}

static int64_t
gutter_ttl_ms(const struct backend *b, int64_t ttl_ms)
{
    int64_t most = b->env->gutter_ttl / NEAR_MS;

    return ttl_ms == 0 || ttl_ms > most ? most : ttl_ms;
}

static void
memcached_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_deliver_fn deliver, void *ctx,
                   int64_t deadline)
{
    struct backend      *b = self;
    struct near_l2_item *room[NEAR_L2_READS];
    struct list          list;

    if (!near__l2_valid_get(items, n) || !call_begin(b, items, n))
        return;
    list_items(b, &list, room, items, n, deadline);
    read_from(b, b->primary, &list, deliver, ctx, deadline);
    if (keep_unreachable(b, &list))
        read_from(b, b->gutter, &list, deliver, ctx, deadline);
    call_end(b);
}

/* ----------------------------------------------------------------------------------------------- writing */

/* What is written: values, or with `remove` their absence. */
struct writing {
    struct backend   *backend;
    enum near_l2_mode mode;
    bool              remove, in_gutter;
};

/* Over our limit, or for certain over the server's, which is known since the dial at the latest. */
static bool
is_oversize(const struct part *part, const struct near_l2_item *item)
{
    size_t max = atomic_load_explicit(&part->server->shared.item_max, memory_order_relaxed);

    return item->value.size > part->backend->env->max_stored ||
           (max > 0 && item->value.size + item->key.size > max);
}

/* The counter that lies there becomes the item's value, the sum.  False: the item is answered with why not. */
static bool
sum_up(const struct part *part, size_t i)
{
    const struct near__memcached_record *r     = &part->call->talk.records[i];
    struct near_l2_item                 *item  = part->items[i];
    struct near_l2_sum                  *sum   = item->sum;
    bool                                 there = r->word == NEAR__MEMCACHED_DONE;

    sum->created = !there || !is_of_epoch(part, i); /* to be */
    if (!there || (!sum->created && !near__l2_decimal_read(r->value, &sum->result))) {
        answer(item, NEAR_L2_ABSENT, NEAR_OK);
        return false;
    }
    if (sum->created) { /* over what an outage has outdated, which `add` would not replace */
        sum->result = sum->initial;
    } else if (__builtin_add_overflow(sum->result, sum->delta, &sum->result)) {
        answer(item, NEAR_L2_ERROR, NEAR_ERR_INVALID);
        return false;
    }
    /* the room is the caller's, for as many digits as there can be */
    item->value.size = near__l2_decimal_write(sum->result, (char *)(uintptr_t)item->value.data);
    return true;
}

/* Answer those and take them off the part. */
static void
refuse_oversize(struct part *part)
{
    size_t kept = 0;

    for (size_t i = 0; i < part->n; i++) {
        if (is_oversize(part, part->items[i]))
            answer(part->items[i], NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
        else
            part->items[kept++] = part->items[i];
    }
    part->n = kept;
}

static size_t
value_bytes(const struct part *part)
{
    size_t sum = 0;

    for (size_t i = 0; i < part->n; i++)
        sum += part->items[i]->sum != NULL ? NEAR_L2_DECIMAL : part->items[i]->value.size;
    return sum;
}

static void
add_write(const struct writing *writing, struct part *part, enum near__memcached_verb verb,
          const struct near_l2_item *item, uint64_t unique)
{
    const struct near_l2_env *env    = writing->backend->env;
    int64_t                   ttl_ms = item->ttl_ms;

    if (writing->in_gutter)
        ttl_ms = gutter_ttl_ms(writing->backend, ttl_ms);
    if (writing->remove && verb == NEAR__MEMCACHED_CAS)
        near__memcached_add_store(&part->call->talk, verb, item->key, 0, NEAR__MEMCACHED_EXPIRED,
                                  (near_bytes){ "", 0 }, unique);
    else if (writing->remove)
        near__memcached_add_delete(&part->call->talk, item->key);
    else
        near__memcached_add_store(&part->call->talk, verb, item->key, item->plain ? 0 : part->epoch,
                                  near__memcached_exptime(ttl_ms, near__wall_ms(env->clock)), item->value,
                                  unique);
}

/* What may be sent again after it had left.  The server may come to the first copy late, when it has acknowledged the second one and
 * somebody's newer value: of a removal that costs a miss, a set would bring its old value back. */
static bool
repeats(const struct writing *writing)
{
    return writing->remove && writing->mode == NEAR_L2_ALWAYS;
}

/* What became of command i, which is item's, when the connection was lost after it had (perhaps) left. */
static void
answer_lost(const struct writing *writing, const struct part *part, struct near_l2_item *item, size_t i)
{
    bool left = (repeats(writing) && part->call->begins > 1) ||
                part->call->talk.records[i].end <= part->call->lane.sent;

    answer(item, left ? NEAR_L2_UNKNOWN : NEAR_L2_ERROR, part->status);
}

static void
answer_word(const struct writing *writing, const struct part *part, struct near_l2_item *item, size_t i)
{
    switch (part->call->talk.records[i].word) {
    case NEAR__MEMCACHED_DONE:
        answer(item, NEAR_L2_DONE, NEAR_OK);
        break;
    case NEAR__MEMCACHED_NO: /* removed without condition: was not there, so it is gone */
        answer(item, writing->mode == NEAR_L2_ALWAYS ? NEAR_L2_DONE : NEAR_L2_ABSENT, NEAR_OK);
        break;
    case NEAR__MEMCACHED_OVERSIZE:
        answer(item, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
        break;
    case NEAR__MEMCACHED_REFUSED:
        answer(item, NEAR_L2_ERROR, NEAR_ERR_DENIED);
        break;
    default:
        answer_lost(writing, part, item, i);
    }
}

static void
answer_writes(const struct writing *writing, struct part *part)
{
    for (size_t i = 0; i < part->n; i++) {
        if (part->call != NULL && part->outcome != NEAR__LANE_NOT_SENT)
            answer_word(writing, part, part->items[i], i);
        else if (part->outcome == NEAR__LANE_NOT_SENT)
            answer(part->items[i], NEAR_L2_ERROR, part->status);
        else
            answer(part->items[i], NEAR_L2_UNKNOWN, part->status);
    }
}

/* Whether this has gone past the server: a removal that was not made.  What was given up is still on its way,
 * and its connection minds it; a set that was not made is followed by a removal. */
static bool
went_past(const struct writing *writing, const struct part *part, const struct near_l2_item *item)
{
    return writing->mode == NEAR_L2_ALWAYS && writing->remove && item->answer != NEAR_L2_DONE &&
           part->outcome != NEAR__LANE_GIVEN_UP && part->status != NEAR_ERR_CLOSED;
}

static void
note_past(const struct writing *writing, struct part *part)
{
    for (size_t i = 0; i < part->n; i++) {
        if (went_past(writing, part, part->items[i])) {
            distrust(part);
            return;
        }
    }
}

/* A `set` that the server has refused has removed what was there; this is to be sure of it (rule M2). */
static void
remove_refused_sets(struct parts *parts)
{
    struct parts errand;

    send_out(&errand, parts);
    for (size_t p = 0; p < parts->n; p++) {
        struct part *part = &parts->part[p], *to = &errand.part[p];

        for (size_t i = 0; part_is_answered(part) && i < part->n; i++) {
            enum near__memcached_word word = part->call->talk.records[i].word;
            if (word != NEAR__MEMCACHED_OVERSIZE && word != NEAR__MEMCACHED_REFUSED)
                continue;
            if (!to->has_call && !part_call(to, NEAR__MEMCACHED_WRITES, part->n, key_bytes(part), 0))
                break;
            to->call->lane.idempotent = to->call->lane.follows = true;
            near__memcached_add_delete(&to->call->talk, part->items[i]->key);
        }
    }
    run(&errand);
    for (size_t p = 0; p < errand.n; p++)
        part_done(&errand.part[p]);
}

/* Without condition, or only where nothing is. */
static void
write_plainly(const struct writing *writing, struct parts *parts)
{
    enum near__memcached_verb verb =
        writing->mode == NEAR_L2_ALWAYS ? NEAR__MEMCACHED_SET : NEAR__MEMCACHED_ADD;

    for (size_t p = 0; p < parts->n; p++) {
        struct part *part = &parts->part[p];

        if (part->n == 0)
            continue;
        if (!part_call(part, NEAR__MEMCACHED_WRITES, part->n, key_bytes(part),
                       writing->remove ? 0 : value_bytes(part))) {
            part_fails(part, NEAR_ERR_NOMEM);
            continue;
        }
        part->call->lane.idempotent = part->call->lane.follows = part->call->counts = repeats(writing);
        for (size_t i = 0; i < part->n; i++)
            add_write(writing, part, verb, part->items[i], 0);
    }
    run(parts);
    for (size_t p = 0; p < parts->n; p++) {
        answer_writes(writing, &parts->part[p]);
        note_past(writing, &parts->part[p]);
    }
    if (!writing->remove && writing->mode == NEAR_L2_ALWAYS)
        remove_refused_sets(parts);
    for (size_t p = 0; p < parts->n; p++)
        part_done(&parts->part[p]);
}

/* ---- over a stamp */

static bool
holds_stamp(const struct part *part, size_t i)
{
    const struct near__memcached_record *r  = &part->call->talk.records[i];
    const uint8_t                       *at = r->value.data;

    return r->word == NEAR__MEMCACHED_DONE && is_of_epoch(part, i) && r->value.size >= NEAR_L2_STAMP_AT + 8 &&
           near__le64_get(at + NEAR_L2_STAMP_AT) == part->items[i]->expected;
}

/* From what was read to the writes that may be made: `errand` gets those items and its call.  Everything else
 * is answered. */
static void
choose_writes(const struct writing *writing, struct part *part, struct part *errand)
{
    size_t chosen = 0;

    *errand = (struct part){
        .backend = part->backend, .server = part->server, .items = part->items, .epoch = part->epoch
    };
    if (!part_is_answered(part) || part->epoch == 0) {
        for (size_t i = 0; i < part->n; i++)
            answer(part->items[i], NEAR_L2_ERROR,
                   part->status != NEAR_OK ? part->status : NEAR_ERR_UNAVAILABLE);
        return;
    }
    if (!part_call(errand, NEAR__MEMCACHED_WRITES, part->n, key_bytes(part),
                   writing->remove ? 0 : value_bytes(part))) {
        part_fails(part, NEAR_ERR_NOMEM);
        return;
    }
    errand->call->life = part->call->lives;
    for (size_t i = 0; i < part->n; i++) {
        if (part->items[i]->sum != NULL ? sum_up(part, i) : holds_stamp(part, i)) {
            add_write(writing, errand, NEAR__MEMCACHED_CAS, part->items[i],
                      part->call->talk.records[i].unique);
            part->items[chosen++] = part->items[i];
        } else if (part->items[i]->sum == NULL) {
            answer(part->items[i], NEAR_L2_ABSENT, NEAR_OK);
        }
    }
    errand->n = chosen;
    if (chosen == 0)
        part_done(errand);
}

/* One `gets` and one `cas`.  The items whose numbers were outdated by a new connection are left in the parts,
 * the others are answered.  Whether there are any. */
static bool
write_over_once(const struct writing *writing, struct parts *parts)
{
    struct parts errand;
    bool         again = false;

    make_reads(parts, NEAR__MEMCACHED_READS_NUMBERS);
    run(parts);
    judge(parts);
    send_out(&errand, parts);
    for (size_t p = 0; p < parts->n; p++) {
        choose_writes(writing, &parts->part[p], &errand.part[p]);
        part_done(&parts->part[p]);
    }
    run(&errand);
    for (size_t p = 0; p < parts->n; p++) {
        struct part *part = &errand.part[p];

        parts->part[p].n = 0;
        if (part_is_answered(part) && part->call->outdated) {
            parts->part[p].n = part->n;
            again            = true;
        } else {
            answer_writes(writing, part);
        }
        part_done(part);
    }
    return again;
}

static void
write_over_stamp(const struct writing *writing, struct parts *parts)
{
    for (int round = 0; round < ROUNDS; round++) {
        if (!write_over_once(writing, parts))
            return;
    }
    for (size_t p = 0; p < parts->n; p++)
        part_fails(&parts->part[p], NEAR_ERR_UNAVAILABLE);
}

/* ---- all writes */

static void
write_to(const struct writing *writing, struct ring *ring, const struct list *list, int64_t deadline)
{
    struct near_l2_item *room[NEAR_L2_BATCH];
    struct parts         parts;

    divide(&parts, writing->backend, ring, list, room, deadline);
    settle(&parts, writing->mode == NEAR_L2_ALWAYS && writing->remove);
    if (!writing->remove)
        need_epochs(&parts);
    for (size_t p = 0; !writing->remove && p < parts.n; p++)
        refuse_oversize(&parts.part[p]);
    if (writing->mode == NEAR_L2_IF_STAMP)
        write_over_stamp(writing, &parts);
    else
        write_plainly(writing, &parts);
}

/* Of those written or perhaps written: what may lie in the gutter from before. */
static void
clean_gutter(struct writing writing, struct near_l2_item *items, size_t n, int64_t deadline)
{
    struct near_l2_item copies[NEAR_L2_BATCH], *room[NEAR_L2_BATCH];
    struct list         list = { room, 0 };
    struct backend     *b    = writing.backend;
    int64_t             now  = near__now(b->env->clock);

    for (size_t i = 0; i < n; i++) {
        bool written = items[i].answer == NEAR_L2_DONE || items[i].answer == NEAR_L2_UNKNOWN;

        if (!written ||
            now >= atomic_load_explicit(&home_of(b->primary, &items[i])->gutter_until, memory_order_relaxed))
            continue;
        copies[list.n] = (struct near_l2_item){ .key = items[i].key };
        room[list.n]   = &copies[list.n];
        list.n++;
    }
    if (list.n == 0)
        return;
    writing.mode   = NEAR_L2_ALWAYS;
    writing.remove = writing.in_gutter = true;
    write_to(&writing, b->gutter, &list, deadline);
}

static void
write_many(struct writing writing, struct near_l2_item *items, size_t n, int64_t deadline)
{
    struct backend      *b = writing.backend;
    struct near_l2_item *room[NEAR_L2_BATCH];
    struct list          list;

    if (!call_begin(b, items, n))
        return;
    list_items(b, &list, room, items, n, deadline);
    write_to(&writing, b->primary, &list, deadline);
    if (b->gutter != NULL)
        clean_gutter(writing, items, n, deadline);
    if (items->sum == NULL &&
        keep_unreachable(b, &list)) { /* a counter that began anew there would be no counter */
        note_in_gutter(b, &list);
        writing.in_gutter = true;
        write_to(&writing, b->gutter, &list, deadline);
    }
    call_end(b);
}

static void
memcached_set_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                   struct near_l2_announce *announce, int64_t deadline)
{
    if (announce != NULL)
        announce->stream = 0; /* certainly not sent: the traits say so */
    if (near__l2_valid_set(mode, items, n, announce))
        write_many((struct writing){ .backend = self, .mode = mode }, items, n, deadline);
}

static void
memcached_remove_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                      struct near_l2_announce *announce, int64_t deadline)
{
    if (announce != NULL)
        announce->stream = 0; /* certainly not sent: the traits say so */
    if (near__l2_valid_remove(mode, items, n, announce))
        write_many((struct writing){ .backend = self, .mode = mode, .remove = true }, items, n, deadline);
}

/* ---- counters: `gets` and `cas`, which also renews the TTL, or `add`; until nobody comes in between */

#define SUM_PAUSE (100 * INT64_C(1000)) /* ns, the first; about an exchange */

/* Whether the item has its answer. */
static bool
increment_once(struct backend *b, struct near_l2_item *item, int64_t deadline)
{
    struct near_l2_sum *sum = item->sum;
    char                text[NEAR_L2_DECIMAL + 1];
    bool                lost;

    *sum         = (struct near_l2_sum){ .delta = sum->delta, .initial = sum->initial };
    item->answer = NEAR_L2_NOT_TRIED;
    item->value  = (near_bytes){ text, sizeof(text) };
    write_many((struct writing){ .backend = b, .mode = NEAR_L2_IF_STAMP }, item, 1, deadline);
    /* refused by `cas`, whose text is written: somebody was quicker */
    lost = item->answer == NEAR_L2_ABSENT && item->value.size < sizeof(text);
    if (item->answer == NEAR_L2_ABSENT && sum->created) {
        item->answer = NEAR_L2_NOT_TRIED;
        item->value  = (near_bytes){ text, near__l2_decimal_write(sum->initial, text) };
        sum->result  = sum->initial;
        write_many((struct writing){ .backend = b, .mode = NEAR_L2_IF_ABSENT }, item, 1, deadline);
        lost = item->answer == NEAR_L2_ABSENT;
    }
    item->value = (near_bytes){ NULL, 0 };
    return !lost;
}

static void
memcached_increment(void *self, struct near_l2_item *items, size_t n, int64_t deadline)
{
    struct backend *b = self;

    if (!near__l2_valid_increment(items, n))
        return;
    for (size_t i = 0; i < n; i++) {
        for (unsigned lost = 1; !increment_once(b, &items[i], deadline); lost++) {
            int64_t pause = near__backoff(lost, SUM_PAUSE, 5 * NEAR_MS);

            if (near__time_after(near__now(b->env->clock), pause) >= deadline) {
                answer(&items[i], NEAR_L2_ERROR,
                       NEAR_ERR_BUSY); /* others are always quicker; ours was never done */
                break;
            }
            nanosleep(&(struct timespec){ .tv_nsec = (long)pause }, NULL);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ seeing */

static near_status
server_health(struct server *server, int64_t deadline, char *version, size_t size, near_error *error)
{
    struct near__memcached_call *call =
        near__memcached_call_new(&server->shared, NEAR__MEMCACHED_ASK_VERSION, 1, 0, 0, 0);
    struct near__lane_ask ask;

    if (call == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "%s: out of memory", server->shared.name);
    ask                   = near__memcached_ask(call);
    call->lane.idempotent = true;
    near__lanes_run(&ask, 1, deadline, error);
    if (ask.outcome == NEAR__LANE_ANSWERED)
        snprintf(version, size, "%s", call->talk.version);
    if (ask.call != NULL)
        near__memcached_call_free(call);
    return ask.outcome == NEAR__LANE_ANSWERED ? NEAR_OK : ask.status;
}

static near_status
memcached_health(void *self, char *text, size_t size, int64_t deadline, near_error *error)
{
    struct backend *b           = self;
    struct ring    *ring        = b->primary;
    char            version[32] = "";
    near_status     st          = NEAR_OK;

    if (!call_begin(b, NULL, 0))
        return near__fail(error, NEAR_ERR_CLOSED, "memcached: closed");
    for (size_t s = 0; st == NEAR_OK && s < ring->n; s++)
        st = server_health(&ring->servers[s], deadline, version, sizeof(version), error);
    call_end(b);
    if (st == NEAR_OK)
        snprintf(text, size, "memcached %s, %zu server%s, item_size_max %zu", version, ring->n,
                 ring->n == 1 ? "" : "s",
                 atomic_load_explicit(&ring->servers[0].shared.item_max, memory_order_relaxed));
    return st;
}

static void
memcached_stats(void *self, struct near_l2_stats *stats)
{
    struct backend    *b       = self;
    struct ring *const rings[] = { b->primary, b->gutter };

    *stats = (struct near_l2_stats){ .connects = 0 };
    for (size_t r = 0; r < NEAR_COUNT_OF(rings); r++) {
        for (size_t s = 0; rings[r] != NULL && s < rings[r]->n; s++) {
            struct near__lanes_stats one;
            near__lanes_stats(rings[r]->servers[s].shared.lanes, &one);
            stats->connects += one.connects;
            stats->disconnects += one.disconnects;
            stats->down += near__lanes_down(rings[r]->servers[s].shared.lanes);
        }
    }
}

/* ------------------------------------------------------------------------------------------ life and end */

static void
each_lanes(struct backend *b, void (*what)(struct near__lanes *lanes))
{
    struct ring *const rings[] = { b->primary, b->gutter };

    for (size_t r = 0; r < NEAR_COUNT_OF(rings); r++) {
        for (size_t s = 0; rings[r] != NULL && s < rings[r]->n; s++)
            what(rings[r]->servers[s].shared.lanes);
    }
}

static void
memcached_close(void *self)
{
    struct backend *b = self;

    atomic_fetch_or_explicit(&b->calls, 1, memory_order_relaxed);
    near__event_raise(b->cancel_fd);
    each_lanes(b, near__lanes_close);
}

static void
memcached_stop(void *self)
{
    struct backend *b = self;

    memcached_close(b);
    near__lock(&b->lock);
    /* acquire pairs with the release in call_end() */
    while (atomic_load_explicit(&b->calls, memory_order_acquire) > 1)
        near__cond_wait(&b->idle, &b->lock, NEAR_NEVER);
    near__unlock(&b->lock);
    each_lanes(b, near__lanes_stop);
}

/* Accepts half-built ones. */
static void
free_ring(struct ring *ring)
{
    if (ring == NULL)
        return;
    for (size_t s = 0; s < ring->n; s++) {
        near__lanes_free(&ring->servers[s].shared.lanes);
        near__memcached_epoch_fini(&ring->servers[s].shared.epoch);
    }
    near__memcached_router_free(&ring->router);
    free(ring);
}

static void
memcached_fini(void *self)
{
    struct backend *b = self;

    if (b == NULL)
        return;
    free_ring(b->primary);
    free_ring(b->gutter);
    near__event_close(&b->cancel_fd);
    if (!b->forked) {
        pthread_cond_destroy(&b->idle);
        near__lock_fini(&b->lock);
    }
    free(b);
}

static void
memcached_forked(void *self)
{
    struct backend *b = self;

    b->forked = true;
    atomic_store_explicit(&b->calls, 1, memory_order_relaxed); /* those calls' threads are not here */
    near__event_close(&b->cancel_fd);
    near__lock_init(&b->lock, NEAR__RANK_LEAF);
    each_lanes(b, near__lanes_forked);
}

static near_status
make_server(struct backend *b, struct ring *ring, const struct near__address *address)
{
    struct server                 *server = &ring->servers[ring->n];
    struct near__memcached_server *shared = &server->shared;
    char                           where[sizeof(address->host) + 16];
    struct near__lanes_env         env = {
                .codec           = &near__memcached_lane,
                .ctx             = shared,
                .clock           = b->env->clock,
                .log             = b->env->log,
                .name            = shared->name,
                .most            = b->env->pool_size,
                .connect_timeout = b->env->connect_timeout,
                .timeout         = b->env->timeout,
                .cancel_fd       = &b->cancel_fd,
    };
    near_status status;

    shared->address   = address;
    shared->clock     = b->env->clock;
    shared->log       = b->env->log;
    shared->cancel_fd = &b->cancel_fd;
    near__address_display(address, where, sizeof(where));
    snprintf(shared->name, sizeof(shared->name), "%s %s", ring->is_gutter ? "gutter" : "memcached", where);
    status = near__lanes_new(&shared->lanes, &env);
    if (status != NEAR_OK)
        return status;
    near__memcached_epoch_init(&shared->epoch);
    ring->n++;
    return NEAR_OK;
}

static near_status
make_ring(struct backend *b, struct ring **out, const struct near__uri *uri, bool is_gutter)
{
    struct ring *ring = calloc(1, sizeof(*ring) + uri->address_count * sizeof(ring->servers[0]));
    near_status  status;

    *out = ring;
    if (ring == NULL)
        return NEAR_ERR_NOMEM;
    ring->is_gutter = is_gutter;
    status          = near__memcached_router_new(&ring->router, uri);
    for (size_t s = 0; status == NEAR_OK && s < uri->address_count; s++)
        status = make_server(b, ring, &uri->addresses[s]);
    return status;
}

static near_status
build(struct backend *b)
{
    const struct near_l2_env *env = b->env;
    int                       size;
    near_status               status;

    near__lock_init(&b->lock, NEAR__RANK_LEAF);
    near__cond_init(&b->idle);
    b->cancel_fd = near__event_open();
    if (b->cancel_fd < 0)
        return NEAR_ERR_NOMEM;
    size = snprintf(b->epoch_name, sizeof(b->epoch_name), "%s" EPOCH_KEY,
                    env->key_prefix != NULL ? env->key_prefix : "");
    if (size < 0 || (size_t)size >= sizeof(b->epoch_name))
        return NEAR_ERR_INVALID;
    b->epoch_key = (near_bytes){ b->epoch_name, (size_t)size };
    status       = make_ring(b, &b->primary, env->uri, false);
    if (status == NEAR_OK && env->gutter != NULL)
        status = make_ring(b, &b->gutter, env->gutter, true);
    return status;
}

static near_status
memcached_open(void **self, const struct near_l2_env *env, struct near_l2_traits *traits, near_error *error)
{
    struct backend *b;
    near_status     st;

    *self = NULL;
    if (env->max_stored == 0)
        return near__fail(error, NEAR_ERR_INVALID, "memcached: no room for a value (max_stored is 0)");
    b = calloc(1, sizeof(*b));
    if (b == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "memcached: out of memory");
    b->env = env;
    st     = build(b);
    if (st != NEAR_OK) {
        memcached_fini(b);
        return near__fail(error, st, "memcached: %s",
                          st == NEAR_ERR_NOMEM ? "out of memory" : "bad settings");
    }
    *traits = (struct near_l2_traits){
        .shared       = true,
        .announces    = false,
        .binary_keys  = false,
        .max_key      = NEAR__MEMCACHED_KEY,
        .max_value    = 0, /* the server's setting, known once it was reached */
        .min_lease_ms = MIN_LEASE_MS,
    };
    *self = b;
    return NEAR_OK;
}

#define MEMCACHED_OPS(name)                                                                                  \
    {                                                                                                        \
        .version = NEAR_L2_OPS_V1, .scheme = (name), .open = memcached_open, .get_many = memcached_get_many, \
        .set_many = memcached_set_many, .remove_many = memcached_remove_many,                                \
        .increment = memcached_increment, .health = memcached_health, .stats = memcached_stats,              \
        .close = memcached_close, .stop = memcached_stop, .fini = memcached_fini,                            \
        .forked = memcached_forked,                                                                          \
    }

const struct near_l2_ops near__l2_memcached      = MEMCACHED_OPS("memcached");
const struct near_l2_ops near__l2_memcached_unix = MEMCACHED_OPS("memcached+unix");
