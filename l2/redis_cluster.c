/*
 * The Redis Cluster backend: every key goes to the primary that serves its slot.
 *
 *     call      a `struct batch` on the caller's stack; each item that is not answered yet has a `struct way`
 *     round     ways are put together by node, one l2/redis_node.h call per node, all nodes at once; what is redirected or was
 *               lost goes another round, at once or after a pause, until the deadline
 *     node      an address, its lanes, and since when it is in trouble
 *     owner[]   the slot map: which node serves which slot, as far as we know
 *
 * Commands name one key each, so none can cross slots (rule C5), and a batch is one exchange per node.  A lease beside an entry
 * and a cache's generation have keys of their own and hence slots of their own: each is read and written alone, and nothing here or
 * in the client needs two of them to change together.
 *
 * The map is atomic numbers: readers take no lock, a MOVED mends one slot, a refresh any number (rule C3); a reader who sees an old
 * owner is redirected, no worse.  Nodes are only ever added while the backend is open, so an index stays good.  `lock` covers adding
 * nodes and the count of calls; the refresh has its own (l2/redis_slots.h) and its leader alone writes `map` and `known`.
 *
 * When a node does not answer, its items are put to another one: who knows the slot's new owner says MOVED, who is that owner answers, and
 * who knows no better names the dead one, and we come again after a pause.  So a failover is noticed within a pause of its end, without
 * asking for the map more than once a second.  A node that has been in trouble for longer than a failover takes is waited for no
 * more.
 *
 * What can never happen: "absent" from a server that does not serve the slot (it redirects instead); a second try of a conditional
 * write that may have been executed; an item answered twice; a value handed out from a reply that came for another command (replies are
 * matched by position, and lanes keep positions).
 */
#include "base/backoff.h"
#include "base/event.h"
#include "base/hash.h"
#include "base/lock.h"
#include "l2/backend.h"
#include "l2/redis_ops.h"
#include "l2/redis_slots.h"
#include "l2/redis_sweep.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NODES_MAX     1024 /* addresses ever seen: ten full changes of a large cluster */
#define GROUPS        64   /* nodes asked at once in a round; what is over takes the next */
#define HOPS          5    /* redirects of one item between two pauses (rule C3) */
#define DEAD_ENDS     4    /* rounds in a row in which no node answered: there is no cluster */
#define RELOSSES      4    /* times that a write is sent again although it may have been executed */
#define REPLY_MIN     ((size_t)4 << 20) /* of the largest reply allowed: CLUSTER SLOTS of a thousand nodes */
#define PAUSE_MIN     (2 * NEAR_MS)
#define PAUSE_MAX     (50 * NEAR_MS)
#define REFRESH_TRIES 3
#define REFRESH_MIN   (20 * NEAR_MS) /* for one node's answer, if the deadline lets */
#define REFRESH_LATE                                                                                         \
    (50 * NEAR_MS) /* the most that a call is held up by a refresh that it does not need itself */
/* A node's trouble is waited out, within deadlines, for this long: Redis's default node timeout of 15 s, and an election. */
#define PATIENCE (20000 * NEAR_MS)

struct node {
    struct cluster          *cluster;
    uint16_t                 index;
    struct near__address     address;
    char                     name[300];
    struct near__redis_node *redis;
    _Atomic int64_t          trouble; /* since when it has not done its work; 0: it has */
};

struct cluster {
    const struct near_l2_env *env;
    struct near__redis_server server;
    size_t                    max_stored;
    unsigned                  step;      /* fields per HMGET */
    int                       cancel_fd; /* event: raised once closed.  -1 in a forked child */
    char                      name[300];

    _Atomic(struct node *) nodes[NODES_MAX]; /* [0 .. node_count), never taken away */
    _Atomic unsigned       node_count;
    _Atomic uint16_t       owner[NEAR__SLOTS]; /* index of a node, or NEAR__SLOT_NOBODY */
    atomic_bool            known;              /* some map has been read */
    atomic_bool            stale;              /* somebody was redirected for good since the last refresh */
    struct near__refresh   refresh;

    struct near__lock lock;
    pthread_cond_t    idle; /* no call is in flight any more */
    unsigned          calls;
    bool              closed;
};

/* An item on its way to an answer. */
struct way {
    struct node *to;  /* of this round */
    struct node *ask; /* an ASK sends it there, once */
    uint16_t     item, slot;
    uint32_t     reply; /* which of its call's replies is its own, or the first of them */
    uint8_t      group; /* which call of this round; GROUPS: none */
    uint8_t      hops, relosses;
    bool         eval;  /* its script goes as text */
    bool         stray; /* its owner does not answer: ask somebody else */
    bool         doubt; /* a write: an earlier try may have been executed */
    near_status  why;   /* what went wrong last */
};

/* One node's call of a round. */
struct group {
    struct node             *node;
    struct near__redis_call *call;
    enum near__lane_outcome  outcome;
    near_status              status;
    bool nonsense; /* a reply that makes no sense: those behind it are not believed either */
};

struct batch {
    struct cluster       *c;
    enum near__redis_verb verb;
    enum near_l2_mode     mode;
    struct near_l2_item  *items;
    near_l2_deliver_fn    deliver;
    near_l2_field_fn      deliver_field;
    void                 *ctx;
    int64_t               deadline;

    size_t count;       /* ways: of what is not answered */
    size_t group_count; /* of this round */

    bool        heard;  /* a node answered in this round */
    bool        failed; /* a node could not be reached in this round */
    bool        wait;   /* nothing is won by coming again at once */
    unsigned    dead_ends;
    int64_t     pause;
    near_status refused; /* the first refusal that is an answer, for the log */
    char        word[64];

    /* last, and never cleared: a call of one item must not pay for 512 */
    struct group groups[GROUPS];
    struct way   ways[NEAR_L2_BATCH];
};

/* ------------------------------------------------------------------------------------------------- nodes */

static int64_t
now_of(const struct cluster *c)
{
    return near__now(c->env->clock);
}

/* Pairs with the release in insert_node(): what the index leads to is complete. */
static struct node *
node_at(struct cluster *c, unsigned index)
{
    return atomic_load_explicit(&c->nodes[index], memory_order_acquire);
}

static struct near__lanes *
lanes_of(struct node *node)
{
    return near__redis_node_lanes(node->redis);
}

static near_status
node_resolve(void *ctx, struct near__address *address, int64_t deadline, near_error *error)
{
    (void)deadline;
    (void)error;
    *address = ((struct node *)ctx)->address;
    return NEAR_OK;
}

static void
node_free(struct node *node)
{
    if (node == NULL)
        return;
    near__redis_node_free(&node->redis);
    free(node);
}

static struct node *
node_new(struct cluster *c, const struct near__address *address)
{
    struct node                *node = calloc(1, sizeof(*node));
    struct near__redis_node_env env;

    if (node == NULL)
        return NULL;
    node->cluster = c;
    node->address = *address;
    memcpy(node->name, "redis ", 6);
    near__address_display(address, node->name + 6, sizeof(node->name) - 6);
    env = (struct near__redis_node_env){ .server          = c->server,
                                         .resolve         = node_resolve,
                                         .ctx             = node,
                                         .log             = c->env->log,
                                         .name            = node->name,
                                         .most            = c->env->pool_size,
                                         .connect_timeout = c->env->connect_timeout,
                                         .timeout         = c->env->timeout,
                                         .fuse            = false };
    if (near__redis_node_new(&node->redis, &env) == NEAR_OK)
        return node;
    node_free(node);
    return NULL;
}

static struct node *
find_node(struct cluster *c, const struct near__address *address)
{
    unsigned count = atomic_load_explicit(&c->node_count, memory_order_acquire);

    for (unsigned i = 0; i < count; i++) {
        struct node *node = node_at(c, i);

        if (node->address.port == address->port && strcmp(node->address.host, address->host) == 0)
            return node;
    }
    return NULL;
}

/* With the lock held.  NULL: no room, or closed. */
static struct node *
insert_node(struct cluster *c, struct node *node)
{
    unsigned     count = atomic_load_explicit(&c->node_count, memory_order_relaxed);
    struct node *there = find_node(c, &node->address);

    if (there != NULL || c->closed || count == NODES_MAX)
        return there;
    node->index = (uint16_t)count;
    atomic_store_explicit(&c->nodes[count], node, memory_order_release);    /* node_at() */
    atomic_store_explicit(&c->node_count, count + 1, memory_order_release); /* who counts it finds it */
    return node;
}

/* The node of this address, made if it is new.  NULL: out of memory or of places. */
static struct node *
node_of(struct cluster *c, const struct near__address *address)
{
    struct node *node = find_node(c, address);
    struct node *made;

    if (node != NULL)
        return node;
    made = node_new(c, address);
    if (made == NULL)
        return NULL;
    near__lock(&c->lock);
    node = insert_node(c, made);
    near__unlock(&c->lock);
    if (node != made)
        node_free(made);
    if (node == NULL)
        near__log(c->env->log, NEAR_LOG_WARN, "l2 %s: more than %d nodes were seen, the newest is left out",
                  c->name, NODES_MAX);
    return node;
}

static bool
is_down(struct node *node)
{
    return near__lanes_down(lanes_of(node));
}

/* Any node but `avoid`, sooner one that is up. */
static struct node *
some_node(struct cluster *c, const struct node *avoid)
{
    unsigned     count = atomic_load_explicit(&c->node_count, memory_order_acquire);
    uint32_t     start = 0;
    struct node *last  = NULL;

    near__random(&start, sizeof(start));
    for (unsigned i = 0; i < count; i++) {
        struct node *node = node_at(c, (start + i) % count);

        if (node == avoid)
            continue;
        if (!is_down(node))
            return node;
        last = node;
    }
    return last != NULL ? last : node_at(c, 0);
}

static void
note_trouble(struct node *node)
{
    int64_t none = 0;

    atomic_compare_exchange_strong_explicit(&node->trouble, &none, now_of(node->cluster),
                                            memory_order_relaxed, memory_order_relaxed);
}

static void
note_well(struct node *node)
{
    if (atomic_load_explicit(&node->trouble, memory_order_relaxed) != 0)
        atomic_store_explicit(&node->trouble, 0, memory_order_relaxed);
}

/* Its trouble has lasted longer than any failover. */
static bool
is_lost_cause(struct node *node)
{
    int64_t since = atomic_load_explicit(&node->trouble, memory_order_relaxed);

    return since != 0 && now_of(node->cluster) - since > PATIENCE;
}

/* --------------------------------------------------------------------------------------------- the map */

static struct node *
owner_of(struct cluster *c, unsigned slot)
{
    uint16_t index = atomic_load_explicit(&c->owner[slot], memory_order_relaxed);

    return index == NEAR__SLOT_NOBODY ? NULL : node_at(c, index);
}

static void
set_owner(struct cluster *c, unsigned slot, const struct node *node)
{
    atomic_store_explicit(&c->owner[slot], node->index, memory_order_relaxed);
}

static void
apply_map(struct cluster *c, const struct near__slot_map *map)
{
    struct node *nodes[NEAR__SLOT_NODES];

    for (size_t i = 0; i < map->node_count; i++)
        nodes[i] = node_of(c, &map->nodes[i]);
    for (unsigned slot = 0; slot < NEAR__SLOTS; slot++)
        if (map->owner[slot] != NEAR__SLOT_NOBODY && nodes[map->owner[slot]] != NULL)
            set_owner(c, slot, nodes[map->owner[slot]]); /* of the others the last known owner may know */
}

/* Ask one node for the map.  NULL: it has none to give. */
static struct near__slot_map *
fetch_map(struct node *node, int64_t deadline)
{
    near_bytes               argv[2] = { near_key("CLUSTER"), near_key("SLOTS") };
    struct near__redis_call *call    = near__redis_call_new(node->redis, 0);
    struct near__slot_map   *map     = NULL;
    struct near__lane_ask    ask;

    if (call == NULL || near__redis_call_add(call, 2, argv) != NEAR_OK) {
        near__redis_call_free(call);
        return NULL;
    }
    near__redis_call_idempotent(call, true);
    ask = near__redis_ask(call);
    near__lanes_run(&ask, 1, deadline, NULL);
    if (ask.call == NULL) /* the lane's now */
        return NULL;
    if (ask.outcome == NEAR__LANE_ANSWERED &&
        near__slot_map_parse(&map, near__redis_call_reply(call, 0), &node->address) == NEAR_OK &&
        map->covered == 0)
        near__slot_map_free(&map); /* it belongs to no cluster (any more) */
    near__redis_call_free(call);
    return map;
}

static bool
refresh_from(struct cluster *c, struct node *node, int64_t deadline)
{
    struct near__slot_map *map  = fetch_map(node, deadline);
    bool                   good = map != NULL;

    if (good)
        apply_map(c, map);
    near__slot_map_free(&map);
    return good;
}

/* The leader of a refresh. */
static bool
refresh(struct cluster *c, int64_t deadline)
{
    struct node *node = NULL;
    bool         good = false;

    atomic_store_explicit(&c->stale, false, memory_order_relaxed); /* redirects from now on want another */
    for (int tries = 0; !good && tries < REFRESH_TRIES; tries++) {
        int64_t now  = now_of(c);
        int64_t part = (deadline - now) / 2;

        if (now >= deadline)
            break;
        node = some_node(c, node);
        part = part > REFRESH_MIN ? part : REFRESH_MIN;
        part = part < c->env->connect_timeout ? part : c->env->connect_timeout;
        good = refresh_from(c, node,
                            near__time_after(now, part) < deadline ? near__time_after(now, part) : deadline);
    }
    if (good)
        atomic_store_explicit(&c->known, true, memory_order_relaxed);
    else
        atomic_store_explicit(&c->stale, true, memory_order_relaxed);
    return good;
}

/* One refresh for all who want it now. */
static void
refresh_shared(struct cluster *c, int64_t deadline, bool wait)
{
    if (!near__refresh_begin(&c->refresh, now_of(c), wait ? deadline : 0))
        return;
    refresh(c, deadline);
    near__refresh_end(&c->refresh, now_of(c));
}

/* ------------------------------------------------------------------------------------------------ answers */

static void
note_refusal(struct batch *b, const struct near__redis_reply *reply)
{
    if (b->refused != NEAR_OK)
        return;
    b->refused = near__redis_reply_class(reply);
    near__redis_reply_word(reply, b->word, sizeof(b->word));
}

static struct near_l2_item *
item_of(const struct batch *b, const struct way *w)
{
    return &b->items[w->item];
}

/* Whatever happens after a write that may have been executed, it may have been. */
static void
settle(struct batch *b, struct way *w, enum near_l2_answer answer, near_status status)
{
    if (answer == NEAR_L2_ERROR && w->doubt)
        answer = NEAR_L2_UNKNOWN;
    near__redis_answer(item_of(b, w), answer, status);
}

/* Not done, and what it was refused for passes: the deadline alone ends the waiting, unless this has been going on for too long. */
static void
again_later(struct batch *b, struct way *w, near_status why)
{
    if (is_lost_cause(w->to)) {
        settle(b, w, NEAR_L2_ERROR, why);
        return;
    }
    b->wait = true;
    w->why  = why;
}

/* First words of refusals that pass (rules R1, C4). */
static bool
passes(const struct near__redis_reply *reply, bool *ill)
{
    static const struct {
        const char *word;
        bool        ill; /* the node's state, not the key's */
    } words[] = { { "TRYAGAIN", false },
                  { "CLUSTERDOWN", true },
                  { "MASTERDOWN", true },
                  { "LOADING", true },
                  { "READONLY", true } };

    for (size_t i = 0; i < NEAR_COUNT_OF(words); i++) {
        size_t n = strlen(words[i].word);

        if (reply->size >= n && memcmp(reply->text, words[i].word, n) == 0 &&
            (reply->size == n || reply->text[n] == ' ')) {
            *ill = words[i].ill;
            return true;
        }
    }
    return false;
}

static void
take_moved(struct batch *b, struct way *w, const struct near__redirect *redirect, struct node *to)
{
    struct cluster *c = b->c;

    atomic_store_explicit(&c->stale, true, memory_order_relaxed);
    if (to == w->to) { /* to itself: it does not know what it says */
        note_trouble(w->to);
        again_later(b, w, NEAR_ERR_UNAVAILABLE);
        return;
    }
    if (redirect->slot == w->slot)
        set_owner(c, w->slot, to);
    w->why = NEAR_ERR_UNAVAILABLE;
    if (is_down(to)) { /* known already, and not replaced yet */
        w->to = to;
        again_later(b, w, NEAR_ERR_UNAVAILABLE);
    }
}

static void
take_redirect(struct batch *b, struct way *w, const struct near__redirect *redirect,
              const struct near__redis_reply *reply)
{
    struct node *to = node_of(b->c, &redirect->to);

    if (to == NULL || ++w->hops > HOPS) {
        note_refusal(b, reply);
        settle(b, w, NEAR_L2_ERROR, NEAR_ERR_UNAVAILABLE);
    } else if (redirect->ask) {
        w->ask = to;
        w->why = NEAR_ERR_UNAVAILABLE;
    } else {
        take_moved(b, w, redirect, to);
    }
}

static void
take_refusal(struct batch *b, struct way *w, const struct near__redis_reply *reply)
{
    struct near__redirect redirect;
    near_bytes            text = { reply->text, reply->size };
    bool                  ill  = false;

    if (near__redirect_parse(&redirect, text, &w->to->address)) {
        note_well(w->to);
        take_redirect(b, w, &redirect, reply);
    } else if (passes(reply, &ill)) {
        if (ill) {
            note_trouble(w->to);
            atomic_store_explicit(&b->c->stale, true, memory_order_relaxed);
        }
        again_later(b, w, NEAR_ERR_UNAVAILABLE);
    } else {
        note_refusal(b, reply);
        settle(b, w, NEAR_L2_ERROR, near__redis_reply_class(reply));
    }
}

static void
take_value(struct batch *b, struct way *w, const struct near__redis_reply *reply)
{
    if (reply->size > b->c->max_stored) {
        settle(b, w, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
        return;
    }
    settle(b, w, NEAR_L2_DONE, NEAR_OK);
    b->deliver(b->ctx, item_of(b, w), (near_bytes){ reply->text, reply->size });
}

static void
take_reply(struct batch *b, struct group *g, struct way *w, const struct near__redis_reply *reply)
{
    enum near__redis_meaning meaning =
        g->nonsense ? NEAR__REDIS_NONSENSE : near__redis_meaning(b->verb, b->mode, item_of(b, w), reply);

    b->heard = true;
    w->ask   = NULL;
    w->stray = false;
    switch (meaning) {
    case NEAR__REDIS_SAID:
        note_well(w->to);
        break;
    case NEAR__REDIS_VALUE:
        note_well(w->to);
        take_value(b, w, reply);
        break;
    case NEAR__REDIS_NOSCRIPT:
        w->eval = true;
        w->why  = NEAR_ERR_PROTOCOL;
        if (++w->hops > HOPS)
            settle(b, w, NEAR_L2_ERROR, NEAR_ERR_PROTOCOL);
        break;
    case NEAR__REDIS_REFUSED:
        take_refusal(b, w, reply);
        break;
    case NEAR__REDIS_NONSENSE:
        g->nonsense = true;
        near__redis_answer_lost(b->verb, item_of(b, w), NEAR_ERR_PROTOCOL);
        break;
    }
}

/* All replies are there.  The first that is none of values speaks for the rest. */
static void
take_hash(struct batch *b, struct group *g, struct way *w)
{
    struct near_l2_item *item   = item_of(b, w);
    unsigned             stride = w->ask != NULL ? 2 : 1;

    for (size_t part = 0; part < near__redis_parts(item, b->c->step); part++) {
        const struct near__redis_reply *reply = near__redis_call_reply(g->call, w->reply + part * stride);

        if (g->nonsense || reply->type != REDIS_REPLY_ARRAY) {
            take_reply(b, g, w, reply);
            return;
        }
        near__redis_take_fields(item, part, b->c->step, reply, b->c->max_stored, b->deliver_field, b->ctx);
    }
    b->heard = true;
    w->ask   = NULL;
    w->stray = false;
    note_well(w->to);
    settle(b, w, NEAR_L2_DONE, NEAR_OK);
}

/* Its node could not be reached, and it was certainly not executed. */
static void
take_unreached(struct batch *b, struct way *w, near_status status)
{
    bool passing =
        status == NEAR_ERR_UNAVAILABLE || (status == NEAR_ERR_TIMEOUT && now_of(b->c) < b->deadline);

    w->ask = NULL;
    if (passing) {
        b->failed = true;
        note_trouble(w->to);
        w->stray = true;
        w->why   = NEAR_ERR_UNAVAILABLE;
        if (is_lost_cause(w->to))
            settle(b, w, NEAR_L2_ERROR, NEAR_ERR_UNAVAILABLE);
    } else {
        settle(b, w, NEAR_L2_ERROR, status);
    }
}

/* May it be sent again although it may have been executed?  A value written twice by one call is written by that call; a removal, too.  What
 * depends on what is there does not bear it: its second time would deny its first. */
static bool
is_repeatable(const struct batch *b, const struct way *w)
{
    return near__redis_reads(b->verb) || (b->mode == NEAR_L2_ALWAYS && w->relosses < RELOSSES);
}

static void
take_lost(struct batch *b, const struct group *g, struct way *w)
{
    bool executed = w->reply < near__redis_call_left(g->call); /* for all we know */

    w->doubt |= executed && !near__redis_reads(b->verb);
    if (executed && !is_repeatable(b, w)) {
        settle(b, w, NEAR_L2_ERROR, g->status);
        return;
    }
    w->relosses += executed;
    take_unreached(b, w, g->status == NEAR_ERR_PROTOCOL ? NEAR_ERR_UNAVAILABLE : g->status);
}

static void
take_outcome(struct batch *b, struct way *w)
{
    struct group *g    = &b->groups[w->group];
    size_t        last = w->reply;

    if (b->verb == NEAR__REDIS_HASH_GET)
        last += (near__redis_parts(item_of(b, w), b->c->step) - 1) * (w->ask != NULL ? 2 : 1);
    if (g->outcome == NEAR__LANE_GIVEN_UP)
        near__redis_answer_lost(b->verb, item_of(b, w), g->status);
    else if (g->outcome == NEAR__LANE_NOT_SENT)
        take_unreached(b, w, g->status);
    else if (last < near__redis_call_replies(g->call) && b->verb == NEAR__REDIS_HASH_GET)
        take_hash(b, g, w);
    else if (last < near__redis_call_replies(g->call))
        take_reply(b, g, w, near__redis_call_reply(g->call, w->reply));
    else
        take_lost(b, g, w);
}

/* ------------------------------------------------------------------------------------------------- rounds */

static struct node *
choose(struct cluster *c, struct way *w)
{
    struct node *owner = w->ask != NULL ? w->ask : owner_of(c, w->slot);

    if (owner == NULL)
        return some_node(c, NULL);
    return w->stray ? some_node(c, owner) : owner;
}

/* The call to this node that small or large values go with; NULL: no more calls in this round. */
static struct group *
group_for(struct batch *b, struct node *node)
{
    struct group *g;

    for (size_t i = b->group_count; i > 0; i--)
        if (b->groups[i - 1].node == node)
            return &b->groups[i - 1];
    if (b->group_count == GROUPS)
        return NULL;
    g  = &b->groups[b->group_count++];
    *g = (struct group){ .node    = node,
                         .call    = near__redis_call_new(node->redis, 0),
                         .outcome = NEAR__LANE_NOT_SENT,
                         .status  = NEAR_ERR_NOMEM };
    return g;
}

/* Its command, or the commands that read its hash. */
static near_status
add_commands(struct batch *b, struct way *w, struct near__redis_call *call)
{
    const struct near_l2_item *item   = item_of(b, w);
    near_bytes                 asking = near_key("ASKING");
    near_status                status = NEAR_OK;

    w->reply = (uint32_t)near__redis_call_commands(call) + (w->ask != NULL);
    if (b->verb == NEAR__REDIS_HASH_GET)
        return near__redis_add_fields(call, item, b->c->step, w->ask != NULL);
    if (w->ask != NULL)
        status = near__redis_call_add(call, 1, &asking);
    if (status == NEAR_OK)
        status = near__redis_add(call, b->verb, b->mode, item, w->eval);
    if (status == NEAR_OK)
        near__redis_call_expects(call, near__redis_kinds(b->verb, b->mode));
    return status;
}

/* Commands are put into calls; what cannot be is answered. */
static void
add_way(struct batch *b, struct way *w)
{
    struct group *g;
    near_status   status;

    w->to    = choose(b->c, w);
    w->group = GROUPS;
    g        = group_for(b, w->to);
    if (g == NULL)
        return;
    w->group = (uint8_t)(g - b->groups);
    status   = g->call == NULL ? NEAR_ERR_NOMEM : add_commands(b, w, g->call);
    if (status == NEAR_OK)
        return;
    if (w->ask != NULL)
        g->node = NULL; /* no more in this call: an ASKING without its command would speak for the next one */
    settle(b, w, NEAR_L2_ERROR, status);
}

/* Only what is NOT_TRIED stays. */
static void
drop_answered(struct batch *b)
{
    size_t kept = 0;

    for (size_t i = 0; i < b->count; i++)
        if (item_of(b, &b->ways[i])->answer == NEAR_L2_NOT_TRIED)
            b->ways[kept++] = b->ways[i];
    b->count = kept;
}

static void
run_groups(struct batch *b)
{
    struct near__lane_ask asks[GROUPS];
    size_t                index[GROUPS], n = 0;

    for (size_t i = 0; i < b->group_count; i++) {
        struct group *g = &b->groups[i];

        if (g->call == NULL || near__redis_call_commands(g->call) == 0)
            continue;
        near__redis_call_idempotent(g->call, near__redis_reads(b->verb));
        asks[n]    = near__redis_ask(g->call);
        index[n++] = i;
    }
    if (n > 0)
        near__lanes_run(asks, n, b->deadline, NULL);
    for (size_t i = 0; i < n; i++) {
        struct group *g = &b->groups[index[i]];

        g->outcome = asks[i].outcome;
        g->status  = asks[i].status;
        if (asks[i].call == NULL)
            g->call = NULL; /* the lane's now */
    }
}

static void
round_of(struct batch *b)
{
    b->group_count = 0;
    b->heard = b->failed = b->wait = false;
    for (size_t i = 0; i < b->count; i++)
        add_way(b, &b->ways[i]);
    drop_answered(b);
    run_groups(b);
    for (size_t i = 0; i < b->count; i++)
        if (b->ways[i].group != GROUPS)
            take_outcome(b, &b->ways[i]);
    for (size_t i = 0; i < b->group_count; i++)
        near__redis_call_free(b->groups[i].call);
    drop_answered(b);
}

/* Sleep; closing ends it.  False: closed. */
static bool
sleep_for(struct cluster *c, int64_t until)
{
    struct pollfd cancel = { .fd = c->cancel_fd, .events = POLLIN };

    for (int64_t now = now_of(c); now < until; now = now_of(c)) {
        int got = poll(&cancel, 1, near__poll_timeout(now, until));

        if (got > 0)
            return false;
        if (got < 0 && errno != EINTR) /* a system without memory for it: do not ask it all the time */
            nanosleep(&(struct timespec){ .tv_nsec = NEAR_MS }, NULL);
    }
    return true;
}

/* Half to all of it, twice as long the next time. */
static bool
pause_batch(struct batch *b)
{
    int64_t until = near__time_after(now_of(b->c), near__jittered(b->pause));

    b->pause = 2 * b->pause < PAUSE_MAX ? 2 * b->pause : PAUSE_MAX;
    for (size_t i = 0; i < b->count; i++)
        b->ways[i].hops = 0; /* five more: it is paced */
    return sleep_for(b->c, until < b->deadline ? until : b->deadline);
}

static void
answer_rest(struct batch *b, near_status status)
{
    for (size_t i = 0; i < b->count; i++) {
        struct way *w = &b->ways[i];

        settle(b, w, NEAR_L2_ERROR, status != NEAR_OK ? status : w->why);
    }
    b->count = 0;
}

/* What stands between two rounds: the map, a pause, or the end. */
static void
between_rounds(struct batch *b)
{
    struct cluster *c = b->c;

    b->dead_ends = b->heard ? 0 : b->dead_ends + 1;
    if (b->failed || b->wait) /* else what is redirected goes on first */
        refresh_shared(c, b->deadline, true);
    if (b->dead_ends > DEAD_ENDS)
        answer_rest(b, NEAR_OK);
    else if (b->wait && !pause_batch(b))
        answer_rest(b, NEAR_ERR_CLOSED);
}

static void
enter(struct cluster *c)
{
    near__lock(&c->lock);
    c->calls++;
    near__unlock(&c->lock);
}

static void
leave(struct cluster *c)
{
    near__lock(&c->lock);
    if (--c->calls == 0)
        pthread_cond_broadcast(&c->idle);
    near__unlock(&c->lock);
}

static void
travel(struct batch *b)
{
    struct cluster *c = b->c;

    b->pause = PAUSE_MIN;
    if (!atomic_load_explicit(&c->known, memory_order_relaxed))
        refresh_shared(c, b->deadline, true);
    while (b->count > 0) {
        if (now_of(c) >= b->deadline) {
            answer_rest(b, NEAR_OK);
            break;
        }
        round_of(b);
        if (b->count > 0)
            between_rounds(b);
    }
    if (atomic_load_explicit(&c->stale, memory_order_relaxed)) {
        int64_t late = near__time_after(now_of(c), REFRESH_LATE);

        refresh_shared(c, late < b->deadline ? late : b->deadline, false);
    }
    if (b->refused != NEAR_OK)
        near__log(c->env->log, NEAR_LOG_WARN, "l2 %s: %s refused: %s", c->name,
                  near__redis_verb_name(b->verb), b->word);
}

/* Answer what cannot be sent, make ways for the rest, and go. */
static void
converse(struct batch *b, size_t n)
{
    struct cluster *c = b->c;

    for (size_t i = 0; i < n; i++) {
        struct near_l2_item *item = &b->items[i];

        if (!near__redis_fits(b->verb, item, c->max_stored)) {
            near__redis_answer(item, NEAR_L2_ERROR, NEAR_ERR_TOO_LARGE);
            continue;
        }
        near__redis_answer(item, NEAR_L2_NOT_TRIED, NEAR_OK);
        b->ways[b->count++] = (struct way){ .item = (uint16_t)i,
                                            .slot = (uint16_t)near__slot_of(item->key),
                                            .why  = NEAR_ERR_TIMEOUT };
    }
    if (b->count == 0)
        return;
    enter(c);
    travel(b);
    leave(c);
}

static void
batch_init(struct batch *b, struct cluster *c, enum near__redis_verb verb, enum near_l2_mode mode,
           struct near_l2_item *items, int64_t deadline)
{
    memset(b, 0, offsetof(struct batch, groups));
    b->c        = c;
    b->verb     = verb;
    b->mode     = mode;
    b->items    = items;
    b->deadline = deadline;
}

static void
cluster_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_deliver_fn deliver, void *ctx,
                 int64_t deadline)
{
    struct batch b;

    if (!near__l2_valid_get(items, n))
        return;
    for (size_t at = 0; at < n; at += NEAR_L2_BATCH) {
        batch_init(&b, self, NEAR__REDIS_GET, NEAR_L2_ALWAYS, items + at, deadline);
        b.deliver = deliver;
        b.ctx     = ctx;
        converse(&b, n - at < NEAR_L2_BATCH ? n - at : NEAR_L2_BATCH);
    }
}

static void
cluster_set_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                 struct near_l2_announce *announce, int64_t deadline)
{
    struct batch b;

    if (!near__l2_valid_set(mode, items, n, announce))
        return;
    if (announce != NULL)
        announce->stream = 0; /* not ours to send: see the traits */
    batch_init(&b, self, NEAR__REDIS_SET, mode, items, deadline);
    converse(&b, n);
}

static void
cluster_remove_many(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                    struct near_l2_announce *announce, int64_t deadline)
{
    struct batch b;

    if (!near__l2_valid_remove(mode, items, n, announce))
        return;
    if (announce != NULL)
        announce->stream = 0; /* not ours to send: see the traits */
    batch_init(&b, self, NEAR__REDIS_REMOVE, mode, items, deadline);
    converse(&b, n);
}

static void
cluster_hash_get_many(void *self, struct near_l2_item *items, size_t n, near_l2_field_fn deliver, void *ctx,
                      int64_t deadline)
{
    struct batch b;

    if (!near__l2_valid_hash_get(items, n))
        return;
    near__l2_forget_fields(items, n);
    batch_init(&b, self, NEAR__REDIS_HASH_GET, NEAR_L2_ALWAYS, items, deadline);
    b.deliver_field = deliver;
    b.ctx           = ctx;
    converse(&b, n);
}

static void
cluster_hash_set_many(void *self, struct near_l2_item *items, size_t n, struct near_l2_announce *announce,
                      int64_t deadline)
{
    struct batch b;

    if (announce != NULL)
        announce->stream = 0; /* not ours to send: see the traits */
    if (!near__l2_valid_hash_set(items, n))
        return;
    batch_init(&b, self, NEAR__REDIS_HASH_SET, NEAR_L2_ALWAYS, items, deadline);
    converse(&b, n);
}

/* By its mode like what depends on a stamp: not to be repeated. */
static void
cluster_increment(void *self, struct near_l2_item *items, size_t n, int64_t deadline)
{
    struct batch b;

    if (!near__l2_valid_increment(items, n))
        return;
    batch_init(&b, self, NEAR__REDIS_INCREMENT, NEAR_L2_IF_STAMP, items, deadline);
    converse(&b, n);
}

/* ---------------------------------------------------------------------------------------------- health */

/* The value of `field` in the text of an INFO reply, when it is there and short. */
static void
info_field(const struct near__redis_reply *reply, const char *field, char *out, size_t size)
{
    const char *at = reply->type == REDIS_REPLY_STRING ? strstr(reply->text, field) : NULL;
    size_t      n;

    if (at == NULL || (at != reply->text && at[-1] != '\n'))
        return;
    at += strlen(field);
    n = strcspn(at, "\r\n");
    if (n < size)
        snprintf(out, size, "%.*s", (int)n, at);
}

/* What one primary says of itself and of the cluster. */
static near_status
take_health(const struct group *g, char *text, size_t size, near_error *error)
{
    const struct near__redis_reply *info =
        g->outcome == NEAR__LANE_ANSWERED ? near__redis_call_reply(g->call, 1) : NULL;
    char version[32] = "unknown", state[16] = "unknown", slots[16] = "?", masters[16] = "?", word[64];

    if (info == NULL)
        return near__fail(error, g->status, "%s: does not answer: %s", g->node->name,
                          near_status_text(g->status));
    if (info->type == REDIS_REPLY_ERROR) {
        near__redis_reply_word(info, word, sizeof(word));
        return near__fail(error, near__redis_reply_class(info), "%s: CLUSTER INFO refused: %s", g->node->name,
                          word);
    }
    info_field(near__redis_call_reply(g->call, 0), "redis_version:", version, sizeof(version));
    info_field(info, "cluster_state:", state, sizeof(state));
    info_field(info, "cluster_slots_ok:", slots, sizeof(slots));
    info_field(info, "cluster_size:", masters, sizeof(masters));
    snprintf(text, size, "redis cluster %s, state %s, %s primaries, %s of %d slots served", version, state,
             masters, slots, NEAR__SLOTS);
    return strcmp(state, "fail") == 0
               ? near__fail(error, NEAR_ERR_UNAVAILABLE, "%s: the cluster is down", g->node->name)
               : NEAR_OK;
}

/* One call to each node that serves a slot; to a seed when none is known.  Of a larger cluster not all. */
static void
add_owners(struct batch *b)
{
    near_bytes info[2] = { near_key("INFO"), near_key("server") };
    near_bytes more[2] = { near_key("CLUSTER"), near_key("INFO") };
    size_t     before;

    for (unsigned slot = 0; slot < NEAR__SLOTS; slot++) {
        struct node  *owner = owner_of(b->c, slot);
        struct group *g;

        if (owner == NULL && (slot > 0 || (owner = some_node(b->c, NULL)) == NULL))
            continue;
        before = b->group_count;
        g      = group_for(b, owner);
        if (g == NULL || b->group_count == before || g->call == NULL)
            continue;
        if (near__redis_call_add(g->call, 2, info) != NEAR_OK ||
            near__redis_call_add(g->call, 2, more) != NEAR_OK)
            g->status = NEAR_ERR_NOMEM;
    }
}

static near_status
cluster_health(void *self, char *text, size_t size, int64_t deadline, near_error *error)
{
    struct cluster *c      = self;
    near_status     status = NEAR_OK;
    struct batch    b;

    if (size > 0)
        text[0] = '\0';
    enter(c);
    batch_init(&b, c, NEAR__REDIS_GET, NEAR_L2_ALWAYS, NULL, deadline);
    refresh_shared(c, deadline, true);
    add_owners(&b);
    run_groups(&b);
    for (size_t i = 0; i < b.group_count; i++) {
        if (status == NEAR_OK)
            status = take_health(&b.groups[i], text, size, error);
        near__redis_call_free(b.groups[i].call);
    }
    leave(c);
    if (status != NEAR_OK && size > 0)
        text[0] = '\0';
    return status;
}

/* ------------------------------------------------------------------------------------- all keys with a prefix */

#define PASSES     5 /* over all primaries, when slots move */
#define PASS_PAUSE (200 * NEAR_MS)

static struct near__slot_map *
fetch_any_map(struct cluster *c, int64_t deadline)
{
    struct near__slot_map *map  = NULL;
    struct node           *node = NULL;

    for (int tries = 0; map == NULL && tries < REFRESH_TRIES; tries++) {
        int64_t soon = near__time_after(now_of(c), c->env->connect_timeout);

        node = some_node(c, node);
        map  = fetch_map(node, soon < deadline ? soon : deadline);
    }
    return map;
}

/* The same primary for every slot?  The order of the primaries may differ. */
static bool
is_same_map(const struct near__slot_map *a, const struct near__slot_map *b)
{
    for (unsigned slot = 0; slot < NEAR__SLOTS; slot++) {
        uint16_t                    i = a->owner[slot], j = b->owner[slot];
        const struct near__address *x, *y;

        if (i == NEAR__SLOT_NOBODY || j == NEAR__SLOT_NOBODY)
            return false;
        if (slot > 0 && i == a->owner[slot - 1] && j == b->owner[slot - 1])
            continue;
        x = &a->nodes[i];
        y = &b->nodes[j];
        if (x->port != y->port || strcmp(x->host, y->host) != 0)
            return false;
    }
    return true;
}

/* Every primary once.  *again: a slot moved meanwhile, and keys with it, perhaps from where we had not been to where we had. */
static near_status
sweep_primaries(struct cluster *c, struct near__redis_sweep *sweep, bool *again, near_error *error)
{
    struct near__slot_map *before = fetch_any_map(c, sweep->deadline), *after = NULL;
    near_status            status = NEAR_OK;

    *again = false;
    if (before == NULL)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "%s: no node tells who serves the slots", c->name);
    for (size_t i = 0; i < before->node_count && status == NEAR_OK; i++) {
        sweep->server.address = &before->nodes[i];
        status                = near__redis_sweep(sweep, error);
        *again |= sweep->moving;
    }
    if (status == NEAR_OK)
        after = fetch_any_map(c, sweep->deadline);
    *again |= after == NULL || !is_same_map(before, after);
    near__slot_map_free(&before);
    near__slot_map_free(&after);
    return status;
}

static near_status
cluster_remove_prefix(void *self, near_bytes prefix, near_l2_progress_fn progress, void *ctx,
                      int64_t deadline, near_error *error)
{
    struct cluster          *c      = self;
    near_status              status = NEAR_OK;
    bool                     again  = true;
    struct near__redis_sweep sweep  = { .server          = c->server,
                                        .prefix          = prefix,
                                        .cluster         = true,
                                        .progress        = progress,
                                        .ctx             = ctx,
                                        .deadline        = deadline,
                                        .connect_timeout = c->env->connect_timeout };

    enter(c);
    for (int pass = 0; status == NEAR_OK && again && pass < PASSES; pass++) {
        if (pass > 0 && !sleep_for(c, near__time_after(now_of(c), PASS_PAUSE)))
            status = near__fail(error, NEAR_ERR_CLOSED, "%s: closed", c->name);
        else
            status = sweep_primaries(c, &sweep, &again, error);
    }
    leave(c);
    if (status == NEAR_OK && again)
        status =
            near__fail(error, NEAR_ERR_UNAVAILABLE, "%s: slots are being moved, or are nobody's", c->name);
    return status;
}

static void
cluster_stats(void *self, struct near_l2_stats *stats)
{
    struct cluster *c     = self;
    unsigned        count = atomic_load_explicit(&c->node_count, memory_order_acquire);

    *stats = (struct near_l2_stats){ .connects = 0 };
    for (unsigned i = 0; i < count; i++) {
        struct near__lanes_stats one;

        near__lanes_stats(lanes_of(node_at(c, i)), &one);
        stats->connects += one.connects;
        stats->disconnects += one.disconnects;
        stats->down += near__lanes_down(lanes_of(node_at(c, i)));
    }
}

/* ------------------------------------------------------------------------------------------ birth and end */

static void
cluster_fini(void *self)
{
    struct cluster *c = self;

    if (c == NULL)
        return;
    for (unsigned i = 0; i < NODES_MAX; i++)
        node_free(node_at(c, i));
    near__event_close(&c->cancel_fd);
    near__refresh_fini(&c->refresh);
    pthread_cond_destroy(&c->idle);
    near__lock_fini(&c->lock);
    free(c);
}

static near_status
check_settings(const struct near_l2_env *env, near_error *error)
{
    const struct near__uri *uri = env->uri;

    if (uri->address_count < 1)
        return near__fail(error, NEAR_ERR_INVALID, "redis-cluster: no address given, at least one is needed");
    for (size_t i = 0; i < uri->address_count; i++)
        if (uri->addresses[i].port == 0)
            return near__fail(error, NEAR_ERR_INVALID, "redis-cluster: unix sockets are not possible");
    if (uri->database != 0)
        return near__fail(error, NEAR_ERR_INVALID, "redis-cluster: a cluster has database 0 only");
    if (env->pool_size == 0)
        return near__fail(error, NEAR_ERR_INVALID,
                          "redis-cluster: a pool of 0 connections; at least 1 is needed");
    return NEAR_OK;
}

static near_status
set_up(struct cluster *c, const struct near_l2_env *env)
{
    size_t most = env->max_stored;

    near__lock_init(&c->lock, NEAR__RANK_LEAF);
    near__cond_init(&c->idle);
    near__refresh_init(&c->refresh);
    c->env        = env;
    c->cancel_fd  = near__event_open();
    c->max_stored = most == 0 || most > NEAR__REDIS_MAX_STORED ? NEAR__REDIS_MAX_STORED : most;
    c->step       = near__redis_values_most(c->max_stored);
    near__uri_display(env->uri, c->name, sizeof(c->name));
    for (unsigned slot = 0; slot < NEAR__SLOTS; slot++)
        atomic_init(&c->owner[slot], NEAR__SLOT_NOBODY);
    c->server = (struct near__redis_server){ .uri         = env->uri,
                                             .access      = env->access,
                                             .clock       = env->clock,
                                             .client_name = env->client_name,
                                             .max_reply =
                                                 near__redis_values_bytes(c->step, c->max_stored) + REPLY_MIN,
                                             .cancel_fd = &c->cancel_fd };
    if (c->cancel_fd < 0)
        return NEAR_ERR_NOMEM;
    for (size_t i = 0; i < env->uri->address_count; i++) /* the seeds, known for ever (rule C6) */
        if (node_of(c, &env->uri->addresses[i]) == NULL)
            return NEAR_ERR_NOMEM;
    return NEAR_OK;
}

static near_status
cluster_open(void **self, const struct near_l2_env *env, struct near_l2_traits *traits, near_error *error)
{
    near_status     status = check_settings(env, error);
    struct cluster *c;

    *self = NULL;
    if (status != NEAR_OK)
        return status;
    c = calloc(1, sizeof(*c));
    if (c == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "redis-cluster: out of memory");
    status = set_up(c, env);
    if (status != NEAR_OK) {
        cluster_fini(c);
        return near__fail(error, status, "redis-cluster: no memory or descriptors to open");
    }
    *traits = (struct near_l2_traits){ .shared       = true,
                                       .announces    = false, /* see doc/architecture.md, "Redis Cluster" */
                                       .binary_keys  = true,
                                       .max_key      = NEAR__REDIS_MAX_KEY,
                                       .max_value    = NEAR__REDIS_MAX_VALUE,
                                       .min_lease_ms = 1 };
    *self   = c;
    return NEAR_OK;
}

static void
cluster_close(void *self)
{
    struct cluster *c = self;
    unsigned        count;

    near__lock(&c->lock);
    c->closed = true; /* no more nodes */
    count     = atomic_load_explicit(&c->node_count, memory_order_relaxed);
    near__unlock(&c->lock);
    for (unsigned i = 0; i < count; i++)
        near__lanes_close(lanes_of(node_at(c, i)));
    near__event_raise(c->cancel_fd);
}

static void
cluster_stop(void *self)
{
    struct cluster *c = self;

    cluster_close(c); /* without it calls might keep coming */
    near__lock(&c->lock);
    while (c->calls > 0)
        near__cond_wait(&c->idle, &c->lock, NEAR_NEVER);
    near__unlock(&c->lock);
    for (unsigned i = 0; i < atomic_load_explicit(&c->node_count, memory_order_acquire); i++)
        near__lanes_stop(lanes_of(node_at(c, i)));
}

static void
cluster_forked(void *self)
{
    struct cluster *c = self;

    near__lock_init(&c->lock, NEAR__RANK_LEAF); /* a thread that does not exist here may have held it */
    near__cond_init(&c->idle);
    near__refresh_init(&c->refresh);
    c->calls  = 0;
    c->closed = true;
    for (unsigned i = 0; i < atomic_load_explicit(&c->node_count, memory_order_acquire); i++)
        near__lanes_forked(lanes_of(node_at(c, i)));
    near__event_close(&c->cancel_fd);
}

#define CLUSTER_OPS(name)                                                                                    \
    {                                                                                                        \
        .version = NEAR_L2_OPS_V2, .scheme = (name), .open = cluster_open, .get_many = cluster_get_many,     \
        .set_many = cluster_set_many, .remove_many = cluster_remove_many, .increment = cluster_increment,    \
        .remove_prefix = cluster_remove_prefix, .health = cluster_health, .stats = cluster_stats,            \
        .close = cluster_close, .stop = cluster_stop, .fini = cluster_fini, .forked = cluster_forked,        \
        .hash_get_many = cluster_hash_get_many, .hash_set_many = cluster_hash_set_many                       \
    }

const struct near_l2_ops near__l2_redis_cluster  = CLUSTER_OPS("redis-cluster");
const struct near_l2_ops near__l2_rediss_cluster = CLUSTER_OPS("rediss-cluster");
