/*
 * The probe: is the server that a link listens to still the one that writers talk to?  (G6)
 *
 * A subscriber's connection cannot tell: a primary that was demoted, or that lives on behind a proxy which leads everybody else
 * somewhere new, goes on answering PINGs and has nothing more to say.  So once a heartbeat every server is asked for its role, on
 * a connection beside, and that connection is made anew every serve window, by the address, as a writer's would be: then the run id
 * is compared with the one that the subscriber's connection gave before it subscribed.
 *
 * An answer vouches for the moment it was asked at, as a pong does; the gate moves by the older of both.  No answer vouches for
 * nothing, so the gate closes by itself.  A wrong answer makes the link suspect: it ends, and a new subscription begins with a
 * flush.  A server that does not answer such questions (ACL) is not probed: that is said once, and counted.
 *
 * Not noticed: a primary that was failed over and does not know yet.
 */
#include "coherence/redis_bus.h"

#include "base/event.h"

#include <stdio.h>
#include <string.h>

#define RENEW_MIN (500 * NEAR_MS) /* between two dials: many clients must not keep a server busy with them */
#define RENEW_CLUSTER                                                                                        \
    (5000 *                                                                                                  \
     NEAR_MS) /* there a dial asks for the map of slots, which is dear; and a message reaches every node */

static void
copy_run_id(struct near__identity *identity, const redisReply *reply)
{
    static const char label[] = "run_id:";
    const char       *at      = reply->type == REDIS_REPLY_STRING ? strstr(reply->str, label) : NULL;
    size_t            n       = 0;

    if (at == NULL)
        return;
    at += sizeof(label) - 1;
    while (n < sizeof(identity->run_id) - 1 && at[n] > ' ') {
        identity->run_id[n] = at[n];
        n++;
    }
    identity->run_id[n] = '\0';
}

static void
take_identity(void *ctx, size_t index, redisReply *reply)
{
    struct near__identity *identity = ctx;

    if (index == 2)
        return; /* CLIENT NO-EVICT may be refused: rule R15 */
    if (reply->type == REDIS_REPLY_ERROR) {
        identity->told = false;
        identity->busy |= near__redis_error_class(reply) == NEAR_ERR_UNAVAILABLE;
        near__redis_error_word(reply, identity->refused, sizeof(identity->refused));
        return;
    }
    if (index == 0)
        identity->primary = reply->type == REDIS_REPLY_ARRAY && reply->elements > 0 &&
                            reply->element[0]->type == REDIS_REPLY_STRING &&
                            strcmp(reply->element[0]->str, "master") == 0;
    else
        copy_run_id(identity, reply);
}

near_status
near__identity_ask(struct near__redis_conn *conn, bool fresh, struct near__identity *identity,
                   int64_t deadline, near_error *error)
{
    near_bytes  role[1] = { near_key("ROLE") };
    near_bytes  info[2] = { near_key("INFO"), near_key("server") };
    near_bytes  stay[3] = { near_key("CLIENT"), near_key("NO-EVICT"), near_key("on") };
    near_status st;

    *identity = (struct near__identity){ .told = true };
    st        = near__redis_append(conn, NEAR_COUNT_OF(role), role);
    if (st == NEAR_OK && fresh)
        st = near__redis_append(conn, NEAR_COUNT_OF(info), info);
    if (st == NEAR_OK && fresh)
        st = near__redis_append(conn, NEAR_COUNT_OF(stay), stay);
    if (st != NEAR_OK)
        return near__fail(error, st, "cannot make a ROLE");
    st = near__redis_exchange(conn, take_identity, identity, NULL, NULL, deadline, error);
    if (st == NEAR_OK && identity->busy)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "ROLE refused: %s", identity->refused);
    if (st == NEAR_OK && fresh && identity->run_id[0] == '\0')
        identity->told = false;
    return st;
}

/* A connection, as new as it has to be; the probe's own. */
static near_status
have_connection(struct near__bus_link *l, int64_t now, bool *fresh, int64_t deadline, near_error *error)
{
    int64_t     window = l->bus->env.serve_window;
    int64_t     least  = l->bus->env.uri->layout == NEAR__LAYOUT_CLUSTER ? RENEW_CLUSTER : RENEW_MIN;
    int64_t     renew  = window > least ? window : least;
    near_status st;

    if (l->probe != NULL && now - l->probe_dialled >= renew)
        near__redis_conn_free(&l->probe);
    *fresh = l->probe == NULL;
    if (!*fresh)
        return NEAR_OK;
    st = near__link_dial(&l->probe, l, deadline, error);
    if (st == NEAR_OK)
        l->probe_dialled = now;
    return st;
}

/* What is wrong with it, as text; NULL: nothing. */
static const char *
suspicion(const struct near__identity *was, const struct near__identity *is, bool fresh)
{
    if (!is->told)
        return "does not tell its role any more";
    if (!is->primary)
        return "is no primary any more";
    return fresh && strcmp(was->run_id, is->run_id) != 0 ? "is another server now" : NULL;
}

static void
take_verdict(struct near__bus_link *l, uint64_t life, const char *wrong, int64_t asked)
{
    struct near__redis_bus *b = l->bus;

    near__lock(&b->lock);
    if (l->subscribed && l->life == life) {
        if (wrong == NULL) {
            l->vouched = asked;
        } else if (!l->suspect) {
            l->suspect = true;
            b->suspicions++;
            snprintf(l->suspicion, sizeof(l->suspicion), "%s", wrong);
        }
    }
    near__unlock(&b->lock);
    if (wrong != NULL)
        near__event_raise(l->wake);
    else
        near__bus_tell(b);
}

static void
probe_link(struct near__bus_link *l)
{
    struct near__redis_bus *b = l->bus;
    struct near__identity   was, is;
    int64_t                 asked = near__now(b->env.clock);
    int64_t                 deadline;
    uint64_t                life;
    bool                    wanted, fresh;
    const char             *wrong;

    near__lock(&b->lock);
    wanted = l->used && l->subscribed && l->identity.told && !l->suspect;
    life   = l->life;
    was    = l->identity;
    near__unlock(&b->lock);
    if (!wanted) {
        near__redis_conn_free(&l->probe); /* the next subscription wants a fresh look */
        return;
    }
    deadline = near__time_after(asked, b->env.silence < b->env.connect_timeout ? b->env.silence
                                                                               : b->env.connect_timeout);
    if (have_connection(l, asked, &fresh, deadline, NULL) != NEAR_OK)
        return;
    if (near__identity_ask(l->probe, fresh, &is, deadline, NULL) != NEAR_OK) {
        near__redis_conn_free(&l->probe);
        return;
    }
    wrong = suspicion(&was, &is, fresh);
    take_verdict(l, life, wrong, asked);
}

/* Until the next heartbeat, or somebody wants it now.  False: stopping. */
static bool
rest(struct near__redis_bus *b, int64_t until)
{
    bool more = true, stopping;

    near__lock(&b->lock);
    while (more && !b->stopping && !b->probe_wanted)
        more = near__cond_wait(&b->beat, &b->lock, until);
    b->probe_wanted = false;
    stopping        = b->stopping;
    near__unlock(&b->lock);
    return !stopping;
}

void *
near__probe_run(void *ctx)
{
    struct near__redis_bus *b    = ctx;
    int64_t                 next = near__now(b->env.clock), now;

    while (rest(b, next)) {
        near__topology_check(b);
        for (size_t i = 0; i < b->n; i++) /* n: changed by this thread alone */
            probe_link(&b->links[i]);
        now = near__now(b->env.clock);
        if (now < next)
            continue; /* was wanted in between */
        next = near__time_after(now, b->env.heartbeat);
        if (b->env.listener.beat != NULL)
            b->env.listener.beat(b->env.listener.ctx);
    }
    for (size_t i = 0; i < b->n; i++)
        near__redis_conn_free(&b->links[i].probe);
    near__redis_conn_free(&b->map_conn);
    return NULL;
}
