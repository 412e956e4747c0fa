/* See redis_sweep.h. */
#include "l2/redis_sweep.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEP      "512" /* keys that a SCAN looks at: some 100 us of the server's time */
#define STEP_KEYS 512   /* of one UNLINK, which frees their memory elsewhere */
/* The largest reply: keys have 64 KiB at most, and a step may bring some more than it was asked for. */
#define REPLY_MAX ((size_t)256 << 20)

struct sweeping {
    struct near__redis_sweep *sweep;
    struct near__redis_conn  *conn;
    near_bytes                pattern; /* malloc'ed */
    char                      name[300];
    char                      cursor[24];
    size_t                    removed; /* by this step */
    near_status               refused;
    char                      word[64];
};

/* Every byte stands for itself. */
static bool
make_pattern(struct sweeping *s)
{
    const uint8_t *from = s->sweep->prefix.data;
    char          *made = malloc(2 * s->sweep->prefix.size + 1), *at = made;

    for (size_t i = 0; made != NULL && i < s->sweep->prefix.size; i++) {
        if (from[i] != '\0' && strchr("*?[]\\^", from[i]) != NULL)
            *at++ = '\\';
        *at++ = (char)from[i];
    }
    if (made != NULL)
        *at++ = '*';
    s->pattern = (near_bytes){ made, (size_t)(at - made) };
    return made != NULL;
}

static near_status
refuse(const struct sweeping *s, const char *what, const redisReply *reply, near_error *error)
{
    char word[64];

    if (reply->type != REDIS_REPLY_ERROR)
        return near__fail(error, NEAR_ERR_PROTOCOL, "redis %s: %s: a reply of unexpected shape", s->name,
                          what);
    near__redis_error_word(reply, word, sizeof(word));
    return near__fail(error, near__redis_error_class(reply), "redis %s: %s refused: %s", s->name, what, word);
}

static near_status
ask(struct sweeping *s, const char *what, size_t argc, const near_bytes *argv, redisReply **reply,
    near_error *error)
{
    near_status st = near__redis_append(s->conn, argc, argv);

    *reply = NULL;
    if (st != NEAR_OK)
        return near__fail(error, st, "redis %s: cannot make a %s", s->name, what);
    st = near__redis_flush(s->conn, s->sweep->deadline, error);
    if (st == NEAR_OK)
        st = near__redis_read_one(s->conn, reply, -1, s->sweep->deadline, error);
    if (st == NEAR_ERR_TIMEOUT)
        return near__fail(error, st, "redis %s: %s: not all keys were looked at in time", s->name, what);
    return st;
}

/* Does this node say that a slot is on its way to it or from it? */
static near_status
look_for_moves(struct sweeping *s, near_error *error)
{
    near_bytes  nodes[2] = { near_key("CLUSTER"), near_key("NODES") };
    redisReply *reply;
    const char *line;
    near_status st = ask(s, "CLUSTER NODES", NEAR_COUNT_OF(nodes), nodes, &reply, error);

    if (st != NEAR_OK)
        return st;
    line = reply->type == REDIS_REPLY_STRING ? strstr(reply->str, "myself") : NULL;
    if (line == NULL)
        st = refuse(s, "CLUSTER NODES", reply, error);
    else if (memchr(line, '[', strcspn(line, "\n")) != NULL)
        s->sweep->moving = true;
    freeReplyObject(reply);
    return st;
}

static void
take_unlinked(void *ctx, size_t index, redisReply *reply)
{
    struct sweeping *s = ctx;

    (void)index;
    if (reply->type == REDIS_REPLY_INTEGER) {
        s->removed += (size_t)reply->integer;
        return;
    }
    if (reply->type == REDIS_REPLY_ERROR && s->sweep->cluster &&
        (strncmp(reply->str, "MOVED", 5) == 0 || strncmp(reply->str, "ASK", 3) == 0 ||
         strncmp(reply->str, "TRYAGAIN", 8) == 0)) {
        s->sweep->moving = true;
        return;
    }
    s->refused = reply->type == REDIS_REPLY_ERROR ? near__redis_error_class(reply) : NEAR_ERR_PROTOCOL;
    if (reply->type == REDIS_REPLY_ERROR)
        near__redis_error_word(reply, s->word, sizeof(s->word));
}

static near_status
unlink_keys(struct sweeping *s, const redisReply *keys, near_error *error)
{
    near_bytes  argv[1 + STEP_KEYS];
    size_t      most = s->sweep->cluster ? 1 : STEP_KEYS, n;
    near_status st   = NEAR_OK;

    argv[0] = near_key("UNLINK");
    for (size_t at = 0; at < keys->elements && st == NEAR_OK; at += n) {
        n = keys->elements - at < most ? keys->elements - at : most;
        for (size_t i = 0; i < n; i++)
            argv[1 + i] = (near_bytes){ keys->element[at + i]->str, (size_t)keys->element[at + i]->len };
        st = near__redis_append(s->conn, 1 + n, argv);
    }
    if (st != NEAR_OK)
        return near__fail(error, st, "redis %s: cannot make an UNLINK", s->name);
    if (keys->elements == 0)
        return NEAR_OK;
    st = near__redis_exchange(s->conn, take_unlinked, s, NULL, NULL, s->sweep->deadline, error);
    if (st == NEAR_OK && s->refused != NEAR_OK)
        st = near__fail(error, s->refused, "redis %s: UNLINK refused: %s", s->name, s->word);
    return st;
}

static bool
is_step(const redisReply *reply)
{
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[0]->type != REDIS_REPLY_STRING || reply->element[1]->type != REDIS_REPLY_ARRAY)
        return false;
    for (size_t i = 0; i < reply->element[1]->elements; i++)
        if (reply->element[1]->element[i]->type != REDIS_REPLY_STRING)
            return false;
    return reply->element[0]->len > 0 && reply->element[0]->len < 24;
}

/* One SCAN and its UNLINK.  *last: there is no more. */
static near_status
step(struct sweeping *s, bool *last, near_error *error)
{
    near_bytes  argv[6] = { near_key("SCAN"), near_key(s->cursor), near_key("MATCH"),
                            s->pattern,       near_key("COUNT"),   near_key(STEP) };
    redisReply *reply;
    near_status st = ask(s, "SCAN", NEAR_COUNT_OF(argv), argv, &reply, error);

    if (st != NEAR_OK)
        return st;
    s->removed = 0;
    if (is_step(reply)) {
        memcpy(s->cursor, reply->element[0]->str, reply->element[0]->len + 1);
        *last = strcmp(s->cursor, "0") == 0;
        st    = unlink_keys(s, reply->element[1], error);
    } else {
        st = refuse(s, "SCAN", reply, error);
    }
    freeReplyObject(reply);
    if (s->removed > 0)
        s->sweep->progress(s->sweep->ctx, s->removed);
    if (st == NEAR_OK && near__redis_conn_outdated(s->conn))
        st = near__fail(error, NEAR_ERR_UNAVAILABLE, "redis %s: another master has been found", s->name);
    return st;
}

static near_status
sweep_all(struct sweeping *s, near_error *error)
{
    bool        last = false;
    near_status st   = s->sweep->cluster ? look_for_moves(s, error) : NEAR_OK;

    while (st == NEAR_OK && !last)
        st = step(s, &last, error);
    return st == NEAR_OK && s->sweep->cluster ? look_for_moves(s, error) : st;
}

near_status
near__redis_sweep(struct near__redis_sweep *sweep, near_error *error)
{
    struct sweeping s         = { .sweep = sweep, .cursor = "0" };
    int64_t         connected = near__time_after(near__now(sweep->server.clock), sweep->connect_timeout);
    near_status     st;

    sweep->moving           = false;
    sweep->server.max_reply = REPLY_MAX;
    near__address_display(sweep->server.address != NULL ? sweep->server.address
                                                        : &sweep->server.uri->addresses[0],
                          s.name, sizeof(s.name));
    if (!make_pattern(&s))
        return near__fail(error, NEAR_ERR_NOMEM, "redis %s: out of memory", s.name);
    st = near__redis_dial(&s.conn, &sweep->server, connected < sweep->deadline ? connected : sweep->deadline,
                          error);
    if (st == NEAR_OK)
        st = sweep_all(&s, error);
    near__redis_conn_free(&s.conn);
    free((void *)(uintptr_t)s.pattern.data);
    return st;
}
