/*
 * One dial is one pass over the sentinels, in the order of a copy that is taken first: dials of several threads do not wait for each
 * other.  An address that was disproved is not dialled again in the same pass, whoever names it.
 *
 * What a sentinel says is input like any other: it may name a replica, a server of somebody else's or nonsense.  What can never happen:
 * a connection handed out whose server did not say that it is a master; a pass that goes on past its deadline or round in circles.
 */
#include "l2/redis_sentinel.h"

#include "base/lock.h"
#include "l2/access.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A sentinel in the same network answers in a millisecond or two; one that is silent must not cost the time for the others. */
#define ASK_TIME  (200 * NEAR_MS)
#define REPLY_MAX (64 * 1024) /* an address and its port */
#define DISPROVED 8           /* addresses remembered in one pass; the next ones are dialled for nothing */

struct near__sentinels {
    struct near__uri  login; /* the sentinels' own user and password, TLS, addresses; name: the master's */
    struct near__lock lock;
    uint8_t           order[NEAR__URI_ADDRESSES]; /* indices into login.addresses, first to be asked first */
    struct near__address master;                  /* the last that proved to be one; port 0: none yet */
    _Atomic uint64_t     epoch;                   /* how often it changed; changes under the lock */
};

near_status
near__sentinels_new(struct near__sentinels **sentinels, const struct near__uri *uri, const char *user,
                    const char *password, near_error *error)
{
    struct near__sentinels *s = calloc(1, sizeof(*s));

    *sentinels = s;
    if (s == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "sentinel: out of memory");
    near__lock_init(&s->lock, NEAR__RANK_LEAF);
    s->login          = *uri;
    s->login.layout   = NEAR__LAYOUT_SINGLE;
    s->login.database = 0;
    snprintf(s->login.user, sizeof(s->login.user), "%s", user);
    snprintf(s->login.password, sizeof(s->login.password), "%s", password);
    for (size_t i = 0; i < uri->address_count; i++)
        s->order[i] = (uint8_t)i;
    return NEAR_OK;
}

void
near__sentinels_free(struct near__sentinels **sentinels)
{
    struct near__sentinels *s = *sentinels;

    *sentinels = NULL;
    if (s == NULL)
        return;
    near__lock_fini(&s->lock);
    explicit_bzero(s, sizeof(*s)); /* a password */
    free(s);
}

/* ------------------------------------------------------------------------------------------- what is kept */

/* `who` goes to the front or to the end of the order. */
static void
move(struct near__sentinels *s, uint8_t who, bool front)
{
    size_t n = s->login.address_count, at = 0;

    near__lock(&s->lock);
    while (at < n && s->order[at] != who)
        at++;
    if (front) {
        memmove(s->order + 1, s->order, at);
        s->order[0] = who;
    } else {
        memmove(s->order + at, s->order + at + 1, n - at - 1);
        s->order[n - 1] = who;
    }
    near__unlock(&s->lock);
}

static bool
same_address(const struct near__address *a, const struct near__address *b)
{
    return a->port == b->port && strcmp(a->host, b->host) == 0;
}

/* It proved to be the master: the epoch of connections to it. */
static uint64_t
confirm(struct near__sentinels *s, const struct near__address *master)
{
    uint64_t epoch;

    near__lock(&s->lock);
    if (s->master.port != 0 && !same_address(&s->master, master))
        atomic_fetch_add_explicit(&s->epoch, 1, memory_order_relaxed);
    s->master = *master;
    epoch     = atomic_load_explicit(&s->epoch, memory_order_relaxed);
    near__unlock(&s->lock);
    return epoch;
}

/* ------------------------------------------------------------------------------------------ asking one */

struct question {
    struct near__address *master;
    char                  problem[96]; /* empty: answered */
};

/* A port in digits, 1 to 65535; 0: it is none. */
static uint16_t
port_of(const redisReply *reply)
{
    unsigned long value = 0;

    for (size_t i = 0; i < reply->len; i++) {
        if (reply->str[i] < '0' || reply->str[i] > '9' || value > 65535)
            return 0;
        value = value * 10 + (unsigned long)(reply->str[i] - '0');
    }
    return value <= 65535 ? (uint16_t)value : 0;
}

/* A host as it may stand in a URI: nothing else is looked up or shown. */
static bool
is_host(const redisReply *reply)
{
    for (size_t i = 0; i < reply->len; i++) {
        char c    = reply->str[i];
        bool word = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');

        if (!word && (c == '\0' || strchr("._-:%", c) == NULL))
            return false;
    }
    return reply->len > 0 && reply->len < sizeof(((struct near__address *)0)->host);
}

static void
take_address(void *ctx, size_t index, redisReply *reply)
{
    struct question *q    = ctx;
    redisReply     **part = reply->element;

    (void)index;
    if (reply->type == REDIS_REPLY_ERROR) {
        near__redis_error_word(reply, q->problem, sizeof(q->problem));
    } else if (reply->type == REDIS_REPLY_NIL) {
        snprintf(q->problem, sizeof(q->problem), "it knows no master of this name");
    } else if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
               part[0]->type != REDIS_REPLY_STRING || part[1]->type != REDIS_REPLY_STRING ||
               !is_host(part[0]) || port_of(part[1]) == 0) {
        snprintf(q->problem, sizeof(q->problem), "what it says is no address");
    } else {
        snprintf(q->master->host, sizeof(q->master->host), "%s", part[0]->str);
        q->master->port   = port_of(part[1]);
        q->master->weight = 1;
    }
}

static near_status
ask_over(struct near__sentinels *s, struct near__redis_conn *conn, struct near__address *master,
         int64_t deadline, near_error *error)
{
    near_bytes      argv[3]  = { near_key("SENTINEL"), near_key("get-master-addr-by-name"),
                                 near_key(s->login.name) };
    struct question question = { .master = master };
    near_status     status   = near__redis_append(conn, 3, argv);

    if (status != NEAR_OK)
        return near__fail(error, status, "%s", near_status_text(status));
    status = near__redis_exchange(conn, take_address, &question, NULL, NULL, deadline, error);
    if (status == NEAR_OK && question.problem[0] != '\0')
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "asked for %.63s: %s", s->login.name,
                          question.problem);
    return status;
}

static near_status
ask(struct near__sentinels *s, const struct near__redis_server *server, uint8_t who,
    struct near__address *master, int64_t deadline, near_error *error)
{
    struct near__access       access   = { .tls            = server->access->tls,
                                           .plaintext_auth = server->access->plaintext_auth };
    struct near__redis_server sentinel = *server;
    struct near__redis_conn  *conn     = NULL;
    near_error                reason   = { 0 };
    near_status               status;
    char                      name[sizeof(s->login.addresses[0].host) + 16];

    sentinel.uri       = &s->login;
    sentinel.address   = &s->login.addresses[who];
    sentinel.access    = &access;
    sentinel.max_reply = REPLY_MAX;
    status             = near__redis_dial_at(&conn, &sentinel, false, deadline, &reason);
    if (status == NEAR_OK)
        status = ask_over(s, conn, master, deadline, &reason);
    near__redis_conn_free(&conn);
    if (status == NEAR_OK)
        return NEAR_OK;
    near__address_display(sentinel.address, name, sizeof(name));
    return near__fail(error, status, "sentinel %.100s: %s", name, reason.text);
}

/* ---------------------------------------------------------------------------------------------- one pass */

struct pass {
    uint8_t              order[NEAR__URI_ADDRESSES];
    size_t               n;
    struct near__address disproved[DISPROVED];
    size_t               disproved_count;
};

static bool
is_disproved(const struct pass *pass, const struct near__address *address)
{
    for (size_t i = 0; i < pass->disproved_count; i++)
        if (same_address(&pass->disproved[i], address))
            return true;
    return false;
}

/* `parts` have to share what is left; at most `most`. */
static int64_t
share_of(const struct near__redis_server *server, int64_t deadline, size_t parts, int64_t most)
{
    int64_t now  = near__now(server->clock);
    int64_t left = deadline > now ? deadline - now : 0;
    int64_t part = left / (int64_t)parts;

    return near__time_after(now, part < most ? part : most);
}

/* Ask this one and dial what it names.  `others`: how many are left after it. */
static near_status
follow(struct near__sentinels *s, struct pass *pass, uint8_t who, size_t others,
       struct near__redis_conn **conn, const struct near__redis_server *server, int64_t deadline,
       near_error *error)
{
    struct near__redis_server to     = *server;
    struct near__address      master = { .port = 0 };
    near_status               status =
        ask(s, server, who, &master, share_of(server, deadline, others + 2, ASK_TIME), error);

    if (status != NEAR_OK)
        return status;
    if (is_disproved(pass, &master)) /* `error` still says why */
        return NEAR_ERR_UNAVAILABLE;
    to.address = &master;
    status     = near__redis_dial_at(conn, &to, true,
                                 others > 0 ? share_of(server, deadline, 2, NEAR_NEVER) : deadline, error);
    if (status == NEAR_OK) {
        near__redis_conn_watch(*conn, &s->epoch, confirm(s, &master));
        move(s, who, true);
        return NEAR_OK;
    }
    if (pass->disproved_count < DISPROVED)
        pass->disproved[pass->disproved_count++] = master;
    move(s, who, false);
    return status;
}

near_status
near__sentinels_dial(struct near__redis_conn **conn, const struct near__redis_server *server,
                     int64_t deadline, near_error *error)
{
    struct near__sentinels *s      = server->access != NULL ? server->access->sentinels : NULL;
    struct pass             pass   = { .disproved_count = 0 };
    near_status             status = NEAR_ERR_UNAVAILABLE;

    *conn = NULL;
    if (s == NULL)
        return near__fail(error, NEAR_ERR_UNSUPPORTED, "redis: sentinels are to be asked and not set up");
    pass.n = s->login.address_count;
    near__lock(&s->lock);
    memcpy(pass.order, s->order, sizeof(pass.order));
    near__unlock(&s->lock);
    for (size_t i = 0; i < pass.n; i++) {
        status = follow(s, &pass, pass.order[i], pass.n - i - 1, conn, server, deadline, error);
        if (status == NEAR_OK || status == NEAR_ERR_CLOSED || status == NEAR_ERR_NOMEM ||
            near__now(server->clock) >= deadline)
            break;
    }
    return status;
}
