/*
 * A cluster is made with SET-CONFIG-EPOCH, ADDSLOTSRANGE, MEET and REPLICATE, and slots are moved with SETSLOT and MIGRATE, pipelined: moving
 * all 16384 of them takes a second or two.  Each node's connection is dialled when first needed and again after a fault.
 */
#include "harness/test.h"

#include "harness/cluster.h"
#include "harness/reply.h"
#include "l2/redis_conn.h"
#include "l2/redis_slots.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS   16384
#define FORM_MS 20000 /* until everybody knows everybody, times test_slack() */
#define ASK_MS  5000
#define STEP    16  /* slots moved in one round */
#define KEYS    100 /* keys moved by one MIGRATE */
#define TRIES   5   /* a port found free may be taken before it is bound */

/* ------------------------------------------------------------------------------------------- conversation */

static int64_t
deadline(void)
{
    return near__now(&near__clock_system) + ASK_MS * test_slack() * NEAR_MS;
}

static struct near__redis_conn *
connection(struct test_cluster *c, unsigned node)
{
    struct near__uri          uri;
    char                      text[64];
    struct near__redis_server server = {
        .uri = &uri, .clock = &near__clock_system, .client_name = "harness", .max_reply = 64u << 20
    };

    if (c->conn[node] != NULL && near__redis_conn_usable(c->conn[node]))
        return c->conn[node];
    near__redis_conn_free(&c->conn[node]);
    snprintf(text, sizeof(text), "redis://127.0.0.1:%d", c->server[node]->port);
    if (near__uri_parse(&uri, "harness", text, NULL) == NEAR_OK)
        near__redis_dial(&c->conn[node], &server, deadline(), NULL);
    return c->conn[node];
}

struct answer {
    char  *out;
    size_t size, used;
    bool   good;
};

static void
add_text(struct answer *a, const redisReply *reply)
{
    int n = 0;

    if (a->used >= a->size)
        return;
    if (reply->type == REDIS_REPLY_INTEGER)
        n = snprintf(a->out + a->used, a->size - a->used, "%lld", reply->integer);
    else if (reply->type == REDIS_REPLY_NIL)
        n = snprintf(a->out + a->used, a->size - a->used, "(nil)");
    else if (reply->type != REDIS_REPLY_ARRAY)
        n = snprintf(a->out + a->used, a->size - a->used, "%s", reply->str);
    for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; i++) {
        if (i > 0 && a->used + 1 < a->size) {
            a->out[a->used++] = '\n';
            a->out[a->used]   = '\0';
        }
        add_text(a, reply->element[i]);
    }
    a->used += (size_t)n;
}

static void
take_text(void *ctx, size_t index, redisReply *reply)
{
    struct answer *a = ctx;

    (void)index;
    a->good = reply->type != REDIS_REPLY_ERROR;
    add_text(a, reply);
}

bool
test_cluster_ask(struct test_cluster *c, unsigned node, char *out, size_t size, int argc,
                 const char *const *argv)
{
    struct answer            a    = { out, size, 0, false };
    struct near__redis_conn *conn = connection(c, node);
    near_bytes               args[KEYS + 16];

    out[0] = '\0';
    for (int i = 0; i < argc; i++)
        args[i] = near_key(argv[i]);
    if (conn == NULL || near__redis_append(conn, (size_t)argc, args) != NEAR_OK ||
        near__redis_exchange(conn, take_text, &a, NULL, NULL, deadline(), NULL) != NEAR_OK)
        return false;
    return a.good;
}

#define ASK(c, node, out, ...)                                                                               \
    test_cluster_ask(c, node, out, sizeof(out), (int)NEAR_COUNT_OF(((const char *const[]){ __VA_ARGS__ })),  \
                     (const char *const[]){ __VA_ARGS__ })

static bool
tell(struct test_cluster *c, unsigned node, int argc, const char *const *argv)
{
    char text[512];

    if (test_cluster_ask(c, node, text, sizeof(text), argc, argv))
        return true;
    print_error("cluster node %u: %s %s refused: %s\n", node, argv[0], argc > 1 ? argv[1] : "", text);
    return false;
}

#define TELL(c, node, ...)                                                                                   \
    tell(c, node, (int)NEAR_COUNT_OF(((const char *const[]){ __VA_ARGS__ })),                                \
         (const char *const[]){ __VA_ARGS__ })

int
test_cluster_slot(struct test_cluster *c, const char *key)
{
    char text[64];

    return ASK(c, 0, text, "CLUSTER", "KEYSLOT", key) ? atoi(text) : -1;
}

bool
test_cluster_is_well(struct test_cluster *c, unsigned node)
{
    char text[2048], known[48];

    snprintf(known, sizeof(known), "cluster_known_nodes:%u\r", c->nodes);
    return ASK(c, node, text, "CLUSTER", "INFO") && strstr(text, "cluster_state:ok") != NULL &&
           strstr(text, "cluster_slots_ok:16384") != NULL && strstr(text, known) != NULL;
}

bool
test_cluster_is_master(struct test_cluster *c, unsigned node)
{
    char text[4096];

    return ASK(c, node, text, "ROLE") && strncmp(text, "master", 6) == 0;
}

static void
take_map(void *ctx, size_t index, redisReply *reply)
{
    static const struct near__address nobody = { .host = "?", .port = 1 };
    struct near__redis_reply          taken;

    (void)index;
    test_reply_take(&taken, reply);
    near__slot_map_parse(ctx, &taken, &nobody);
    test_reply_free(&taken);
}

static struct near__slot_map *
map_of(struct test_cluster *c, unsigned node)
{
    near_bytes               args[2] = { near_key("CLUSTER"), near_key("SLOTS") };
    struct near__redis_conn *conn    = connection(c, node);
    struct near__slot_map   *map     = NULL;

    if (conn != NULL && near__redis_append(conn, 2, args) == NEAR_OK)
        near__redis_exchange(conn, take_map, &map, NULL, NULL, deadline(), NULL);
    return map;
}

static bool
same_map(const struct near__slot_map *a, const struct near__slot_map *b)
{
    if (a == NULL || b == NULL)
        return false;
    for (size_t i = 0; i < SLOTS; i++)
        if (a->owner[i] == NEAR__SLOT_NOBODY || b->owner[i] == NEAR__SLOT_NOBODY ||
            a->nodes[a->owner[i]].port != b->nodes[b->owner[i]].port)
            return false;
    return true;
}

bool
test_cluster_is_agreed(struct test_cluster *c)
{
    struct near__slot_map *first = map_of(c, 0);
    bool                   same  = true;

    for (unsigned i = 1; same && i < c->nodes; i++) {
        struct near__slot_map *map = map_of(c, i);

        same = same_map(first, map);
        near__slot_map_free(&map);
    }
    near__slot_map_free(&first);
    return same;
}

/* Those of `node` that `other` knows of and it does not. */
static unsigned
mend_node(struct test_cluster *c, unsigned node, unsigned other)
{
    struct near__slot_map *mine = map_of(c, node), *theirs = map_of(c, other);
    unsigned               mended = 0;
    char                   slot[16];

    for (unsigned s = 0; mine != NULL && theirs != NULL && s < SLOTS; s++) {
        if (mine->owner[s] != NEAR__SLOT_NOBODY || theirs->owner[s] == NEAR__SLOT_NOBODY ||
            theirs->nodes[theirs->owner[s]].port != c->server[node]->port)
            continue;
        snprintf(slot, sizeof(slot), "%u", s);
        mended += TELL(c, node, "CLUSTER", "ADDSLOTS", slot);
    }
    near__slot_map_free(&mine);
    near__slot_map_free(&theirs);
    return mended;
}

unsigned
test_cluster_mend(struct test_cluster *c)
{
    unsigned mended = 0;

    for (unsigned i = 0; i < c->nodes; i++)
        if (test_cluster_is_master(c, i))
            mended += mend_node(c, i, (i + 1) % c->nodes);
    return mended;
}

void
test_cluster_set_timeout(struct test_cluster *c, unsigned timeout_ms)
{
    char text[64], number[16];

    snprintf(number, sizeof(number), "%u", timeout_ms);
    for (unsigned i = 0; i < c->nodes; i++)
        ASK(c, i, text, "CONFIG", "SET", "cluster-node-timeout", number);
}

/* ------------------------------------------------------------------------------------------------- birth */

static bool
with_tls(const char *const *extra)
{
    for (; extra != NULL && *extra != NULL; extra++)
        if (strcmp(*extra, "--tls-cluster") == 0)
            return true;
    return false;
}

static bool
start_node(struct test_cluster *c, unsigned node, unsigned timeout_ms, const char *const *extra)
{
    char        port[16], timeout[16], tls_port[16];
    bool        tls      = with_tls(extra);
    const char *argv[40] = { "--cluster-enabled",
                             "yes",
                             "--cluster-node-timeout",
                             timeout,
                             "--cluster-port",
                             port,
                             "--repl-diskless-sync-delay",
                             "0",
                             "--cluster-allow-replica-migration",
                             "no",
                             "--cluster-replica-validity-factor",
                             "0" }; /* a replica that was held up follows all the same */
    size_t      n        = 12;

    if (tls) {
        argv[n++] = "--tls-port";
        argv[n++] = tls_port;
    }
    for (; extra != NULL && *extra != NULL && n + 1 < NEAR_COUNT_OF(argv); extra++)
        argv[n++] = *extra;
    snprintf(timeout, sizeof(timeout), "%u", timeout_ms);
    for (int tries = 0; tries < TRIES && c->server[node] == NULL; tries++) {
        snprintf(port, sizeof(port), "%d", test_free_port());
        c->tls_port[node] = tls ? test_free_port() : 0;
        snprintf(tls_port, sizeof(tls_port), "%d", c->tls_port[node]);
        c->server[node] = test_redis_start(TEST_SERVER_TCP, argv);
    }
    return c->server[node] != NULL && ASK(c, node, c->id[node], "CLUSTER", "MYID");
}

static bool
give_slots(struct test_cluster *c, unsigned node)
{
    unsigned first = SLOTS * node / c->masters, last = SLOTS * (node + 1) / c->masters - 1;
    char     from[16], to[16], epoch[16];

    snprintf(from, sizeof(from), "%u", first);
    snprintf(to, sizeof(to), "%u", last);
    snprintf(epoch, sizeof(epoch), "%u", node + 1);
    memset(c->owner + first, (int)node, last - first + 1);
    return TELL(c, node, "CLUSTER", "SET-CONFIG-EPOCH", epoch) &&
           TELL(c, node, "CLUSTER", "ADDSLOTSRANGE", from, to);
}

/* Each meets all before it: gossip alone would take longer. */
static bool
introduce(struct test_cluster *c)
{
    char port[16];

    for (unsigned i = 1; i < c->nodes; i++)
        for (unsigned j = 0; j < i; j++) {
            char bus[16];
            char text[64];

            snprintf(port, sizeof(port), "%d", c->server[j]->port);
            if (!ASK(c, j, text, "CONFIG", "GET", "cluster-port"))
                return false;
            snprintf(bus, sizeof(bus), "%s", strchr(text, '\n') != NULL ? strchr(text, '\n') + 1 : "");
            if (!TELL(c, i, "CLUSTER", "MEET", "127.0.0.1", port, bus))
                return false;
        }
    return true;
}

static int
everybody_is_well(void *ctx)
{
    struct test_cluster *c = ctx;

    for (unsigned i = 0; i < c->nodes; i++)
        if (!test_cluster_is_well(c, i))
            return false;
    return true;
}

bool
test_cluster_is_in_step(struct test_cluster *c)
{
    char text[8192];

    for (unsigned i = 0; i < c->nodes; i++) {
        if (!ASK(c, i, text, "INFO", "replication"))
            return false;
        if (strstr(text, "role:slave") != NULL && strstr(text, "master_link_status:up") == NULL)
            return false;
        if (strstr(text, "role:master") != NULL && strstr(text, "connected_slaves:0") != NULL)
            return c->nodes == c->masters;
    }
    return true;
}

/* What a primary has written, and what its first replica says it has of that; false while it has said nothing. */
static bool
offsets(const char *text, long long *written, long long *replicated)
{
    const char *mine  = strstr(text, "master_repl_offset:");
    const char *their = strstr(text, "slave0:");

    their = their != NULL ? strstr(their, "offset=") : NULL;
    return mine != NULL && their != NULL && sscanf(mine, "master_repl_offset:%lld", written) == 1 &&
           sscanf(their, "offset=%lld", replicated) == 1;
}

bool
test_cluster_is_replicated(struct test_cluster *c)
{
    char      text[8192];
    long long written = 0, replicated = -1;

    for (unsigned i = 0; i < c->nodes; i++) {
        if (!ASK(c, i, text, "INFO", "replication"))
            return false;
        if (strstr(text, "role:master") != NULL &&
            (!offsets(text, &written, &replicated) || written != replicated))
            return false;
    }
    return true;
}

void
test_cluster_print(struct test_cluster *c)
{
    char nodes[8192], replication[8192];

    for (unsigned i = 0; i < c->nodes; i++) {
        bool asked = ASK(c, i, nodes, "CLUSTER", "NODES") && ASK(c, i, replication, "INFO", "replication");

        print_error("node %u%s:\n%s%s\n", i, test_cluster_is_well(c, i) ? ", well" : "",
                    asked ? nodes : "does not answer", asked ? replication : "");
    }
    print_error("the nodes agree on the slots: %d; replicas are in step: %d\n", test_cluster_is_agreed(c),
                test_cluster_is_in_step(c));
}

static int
replicas_are_in_step(void *ctx)
{
    return test_cluster_is_in_step(ctx);
}

static bool
form(struct test_cluster *c)
{
    int64_t limit = FORM_MS * test_slack();

    for (unsigned i = 0; i < c->masters; i++)
        if (!give_slots(c, i))
            return false;
    if (!introduce(c) || !test_wait_for(everybody_is_well, c, limit))
        return false;
    for (unsigned i = c->masters; i < c->nodes; i++)
        if (!TELL(c, i, "CLUSTER", "REPLICATE", c->id[i % c->masters]))
            return false;
    return c->nodes == c->masters || test_wait_for(replicas_are_in_step, c, limit);
}

struct test_cluster *
test_cluster_start(unsigned masters, unsigned replicas, unsigned timeout_ms, const char *const *extra)
{
    struct test_cluster *c  = calloc(1, sizeof(*c));
    bool                 ok = c != NULL && masters * (1 + replicas) <= TEST_CLUSTER_NODES;
    int                  n =
        ok ? snprintf(c->uri, sizeof(c->uri), "%s://", with_tls(extra) ? "rediss-cluster" : "redis-cluster")
                            : 0;

    if (!ok) {
        free(c);
        return NULL;
    }
    c->masters = masters;
    for (; ok && c->nodes < masters * (1 + replicas); c->nodes++) {
        ok = start_node(c, c->nodes, timeout_ms, extra);
        if (ok)
            n += snprintf(c->uri + n, sizeof(c->uri) - (size_t)n, "%s127.0.0.1:%d", c->nodes > 0 ? "," : "",
                          c->tls_port[c->nodes] != 0 ? c->tls_port[c->nodes] : c->server[c->nodes]->port);
    }
    if (ok && form(c))
        return c;
    print_error("no cluster came about\n");
    test_cluster_stop(&c);
    return NULL;
}

void
test_cluster_stop(struct test_cluster **cluster)
{
    struct test_cluster *c = *cluster;

    *cluster = NULL;
    if (c == NULL)
        return;
    for (unsigned i = 0; i < TEST_CLUSTER_NODES; i++) {
        near__redis_conn_free(&c->conn[i]);
        test_server_stop(&c->server[i]);
    }
    free(c);
}

/* ------------------------------------------------------------------------------------------ moving slots */

/* Many commands in one exchange. */
struct round {
    struct test_cluster     *c;
    struct near__redis_conn *conn;
    unsigned                 node;
    bool                     good;
    char                     word[128];
};

static void
round_begin(struct round *r, struct test_cluster *c, unsigned node)
{
    *r      = (struct round){ .c = c, .node = node, .conn = connection(c, node) };
    r->good = r->conn != NULL;
}

static void
round_add(struct round *r, int argc, const char *const *argv)
{
    near_bytes args[KEYS + 16];

    for (int i = 0; i < argc; i++)
        args[i] = near_key(argv[i]);
    r->good = r->good && near__redis_append(r->conn, (size_t)argc, args) == NEAR_OK;
}

static void
round_reply(void *ctx, size_t index, redisReply *reply)
{
    struct round *r = ctx;

    (void)index;
    if (reply->type != REDIS_REPLY_ERROR)
        return;
    r->good = false;
    snprintf(r->word, sizeof(r->word), "%s", reply->str);
}

static bool
round_end(struct round *r, near__redis_reply_fn reply, void *ctx)
{
    near_error error = { .text = "no connection" };

    if (r->good && near__redis_exchange(r->conn, reply, ctx, NULL, NULL, deadline(), &error) == NEAR_OK &&
        r->good)
        return true;
    print_error("cluster node %u: %s\n", r->node, r->word[0] != '\0' ? r->word : error.text);
    return false;
}

/* SETSLOT of those of slots [first, last] that `from` serves; to `node`. */
static bool
set_slots(struct test_cluster *c, unsigned node, unsigned first, unsigned last, unsigned from,
          const char *state, const char *id)
{
    struct round r;
    char         slot[16];

    round_begin(&r, c, node);
    for (unsigned s = first; s <= last; s++) {
        snprintf(slot, sizeof(slot), "%u", s);
        if (c->owner[s] == from)
            round_add(&r, 5, (const char *const[]){ "CLUSTER", "SETSLOT", slot, state, id });
    }
    return !r.good || near__redis_queued(r.conn) > 0 ? round_end(&r, round_reply, &r) : true;
}

/* The keys found in one round. */
struct listing {
    char  *keys[STEP * KEYS];
    size_t key_count;
};

static void
list_reply(void *ctx, size_t index, redisReply *reply)
{
    struct listing *l = ctx;

    (void)index;
    for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; i++)
        if (l->key_count < NEAR_COUNT_OF(l->keys))
            l->keys[l->key_count++] = strdup(reply->element[i]->str);
}

static bool
list_keys(struct test_cluster *c, unsigned first, unsigned last, unsigned from, struct listing *l)
{
    struct round r;
    char         slot[16];

    l->key_count = 0;
    round_begin(&r, c, from);
    for (unsigned s = first; s <= last; s++) {
        snprintf(slot, sizeof(slot), "%u", s);
        if (c->owner[s] == from)
            round_add(&r, 4, (const char *const[]){ "CLUSTER", "GETKEYSINSLOT", slot, "100" });
    }
    if (r.good && near__redis_queued(r.conn) == 0)
        return true;
    return round_end(&r, list_reply, l);
}

/* MIGRATE takes keys of any slots: it does not ask whose they are. */
static bool
move_keys(struct test_cluster *c, unsigned from, unsigned to, struct listing *l)
{
    struct round r;
    char         port[16];
    bool         good;

    snprintf(port, sizeof(port), "%d", c->server[to]->port);
    round_begin(&r, c, from);
    for (size_t i = 0; i < l->key_count; i++)
        round_add(&r, 8,
                  (const char *const[]){ "MIGRATE", "127.0.0.1", port, "", "0", "5000", "KEYS", l->keys[i] });
    good = l->key_count == 0 || round_end(&r, round_reply, &r);
    for (size_t i = 0; i < l->key_count; i++)
        free(l->keys[i]);
    return good;
}

static bool
move_some(struct test_cluster *c, unsigned first, unsigned last, unsigned from, unsigned to)
{
    struct listing *l    = malloc(sizeof(*l));
    bool            good = l != NULL && set_slots(c, to, first, last, from, "IMPORTING", c->id[from]) &&
                set_slots(c, from, first, last, from, "MIGRATING", c->id[to]);

    do
        good = good && list_keys(c, first, last, from, l) && move_keys(c, from, to, l);
    while (good && l->key_count > 0);
    free(l);
    good = good && set_slots(c, to, first, last, from, "NODE", c->id[to]) &&
           set_slots(c, from, first, last, from, "NODE", c->id[to]);
    for (unsigned s = first; good && s <= last; s++)
        if (c->owner[s] == from)
            c->owner[s] = (unsigned char)(to | 0x80); /* done: not the next `from`'s in this round */
    return good;
}

bool
test_cluster_move(struct test_cluster *c, unsigned first, unsigned last, unsigned to)
{
    bool good = true;

    for (unsigned at = first; good && at <= last; at += STEP) {
        unsigned end = at + STEP - 1 < last ? at + STEP - 1 : last;

        for (unsigned from = 0; good && from < c->nodes; from++)
            if (from != to && memchr(c->owner + at, (int)from, end - at + 1) != NULL)
                good = move_some(c, at, end, from, to);
        for (unsigned s = at; s <= end; s++)
            c->owner[s] &= 0x7f;
    }
    return good;
}

bool
test_cluster_begin_move(struct test_cluster *c, unsigned slot, unsigned to)
{
    unsigned from = c->owner[slot];

    return set_slots(c, to, slot, slot, from, "IMPORTING", c->id[from]) &&
           set_slots(c, from, slot, slot, from, "MIGRATING", c->id[to]);
}

bool
test_cluster_move_key(struct test_cluster *c, const char *key, unsigned to)
{
    int  slot = test_cluster_slot(c, key);
    char port[16];

    snprintf(port, sizeof(port), "%d", c->server[to]->port);
    return slot >= 0 && TELL(c, c->owner[slot], "MIGRATE", "127.0.0.1", port, key, "0", "5000");
}
