/*
 * One Redis server behind lanes: calls of any commands, and their replies.
 *
 *     users   l2/redis.c (one server, or whichever Sentinel names), l2/redis_cluster.c (one node each)
 *     here    the codec of l2/lane.h for RESP2 over hiredis: commands by l2/resp.h, replies by redisReader with reply
 *             functions of our own, which put them into the call's memory (rules H1, H15)
 *     below   l2/redis_conn.h: dialling and handshake
 *
 *     call = near__redis_call_new(node);
 *     near__redis_call_add(call, argc, argv) ...          any number of commands, sent in their order, without another's between
 *     asks[i] = near__redis_ask(call); near__lanes_run(asks, n, deadline, &error);
 *     near__redis_call_replies(call), near__redis_call_reply(call, i), near__redis_call_left(call, i)
 *     near__redis_call_free(call)
 */
#ifndef NEAR_L2_REDIS_NODE_H
#define NEAR_L2_REDIS_NODE_H

#include "l2/lane.h"
#include "l2/redis_conn.h"

struct near__redis_node;
struct near__redis_call;
struct near__redis_note;

/* A reply in its call's memory: valid until the call is freed. */
struct near__redis_reply {
    int                       type; /* REDIS_REPLY_STRING, _ARRAY, _INTEGER, _NIL, _STATUS, _ERROR */
    uint32_t                  elements;
    long long                 integer;
    size_t                    size; /* of the text, which has a NUL behind it */
    const char               *text;
    struct near__redis_reply *element; /* `elements` of them, one behind the other */
};

/* ------------------------------------------------------------------------------------------------ nodes */

struct near__redis_node_env {
    struct near__redis_server server; /* user, password, database, name, limits: see l2/redis_conn.h */
    /* The address of this node now: called before each dial, may ask others (Sentinel) by `deadline`.  NULL: server.uri's first. */
    near_status (*resolve)(void *ctx, struct near__address *address, int64_t deadline, near_error *error);
    /* After the handshake: NEAR_OK, or why this connection will not do (role is not master...).  NULL: always good. */
    near_status (*accept)(void *ctx, struct near__redis_conn *conn, int64_t deadline, near_error *error);
    void                   *ctx;
    const struct near__log *log;
    const char             *name;                     /* "redis 10.0.0.7:6379".  Copied */
    unsigned                most;                     /* connections */
    int64_t                 connect_timeout, timeout; /* as struct near__lanes_env has them */
    unsigned mget; /* keys per MGET at most, so that server.max_reply suffices; 0: no bound of the caller's */
    bool     fuse; /* GETs of several callers may travel as one MGET: not in a cluster */
};

near_status near__redis_node_new(struct near__redis_node **node, const struct near__redis_node_env *env);
/* Stopped and freed; `forked` nodes only free.  Leaves NULL behind. */
void                near__redis_node_free(struct near__redis_node **node);
struct near__lanes *near__redis_node_lanes(
    struct near__redis_node *node); /* for close, stop, forked, stats, run */

/* ------------------------------------------------------------------------------------------------ calls */

/* `bytes`: about how many the replies will have, 0: not known.  NULL: out of memory. */
struct near__redis_call *near__redis_call_new(struct near__redis_node *node, size_t bytes);
void                     near__redis_call_free(struct near__redis_call *call); /* NULL is fine */

/* One more command.  NEAR_OK, NEAR_ERR_NOMEM, NEAR_ERR_TOO_LARGE (rule H4): the call is as before. */
near_status near__redis_call_add(struct near__redis_call *call, size_t argc, const near_bytes *argv);
/* A read of keys.  Its replies are one per key, however it travels (GETs, an MGET, fused with other callers' reads; a key asked for by
 * several at once is asked once): reply i of the call is key i's, if nothing else is in the call, which is so by contract. */
near_status near__redis_call_get(struct near__redis_call *call, const near_bytes *keys, size_t n);
/* The last argument of the command added last is a message: it is stamped at `stamp_at` with the connection's stream and next number
 * (see near_l2_announce) when it leaves.  Once per call.  The number is given out again when the call's last reply is an error that
 * leaves no doubt that it was not published; once that was so, calls with messages travel alone for a while, one at a time on their
 * connection, so that receivers see no gap.  NEAR_OK, with a note that outlives the call; NEAR_ERR_NOMEM. */
near_status near__redis_call_stamped(struct near__redis_call *call, size_t message_size, size_t stamp_at,
                                     struct near__redis_note **note);
/* In which stream the message was, or may yet be, published, and as which number; 0: it never left.  Frees the note.  given_up: of a call that was GIVEN_UP,
 * which its leader may be stamping right now; one that was not SENT is never stamped again. */
uint64_t near__redis_note_read(struct near__redis_note *note, bool given_up, uint64_t *number);

/* Of what kinds the reply to the command added last can be, as a mask of NEAR__REDIS_KIND(REDIS_REPLY_...); errors always can.  Any
 * other kind says that replies and commands do not match: the connection is dropped, the call is LOST.  Default: any. */
#define NEAR__REDIS_KIND(type) (1u << (type))
void near__redis_call_expects(struct near__redis_call *call, unsigned kinds);

/* Instead: an array of exactly n strings or nils, or an error.  n is 1 or more. */
void near__redis_call_expects_values(struct near__redis_call *call, uint32_t n);

void                  near__redis_call_idempotent(struct near__redis_call *call,
                                                  bool                     idempotent); /* default: false, get: true */
struct near__lane_ask near__redis_ask(struct near__redis_call *call);
/* The same commands, to another node (ASK, MOVED).  Only before the run or after it; replies are forgotten. */
void near__redis_call_redirect(struct near__redis_call *call, struct near__redis_node *node);

size_t near__redis_call_commands(const struct near__redis_call *call); /* added; for reads: keys */
/* How many replies arrived: all when ANSWERED, perhaps some when LOST. */
size_t                          near__redis_call_replies(const struct near__redis_call *call);
const struct near__redis_reply *near__redis_call_reply(const struct near__redis_call *call, size_t i);
/* LOST: how many commands had left in full when the connection was lost.  The others were certainly not executed. */
size_t near__redis_call_left(const struct near__redis_call *call);

/* What an error reply means: as near__redis_error_class(), _drops(), _word() do for hiredis's. */
near_status near__redis_reply_class(const struct near__redis_reply *reply);
bool        near__redis_reply_drops(const struct near__redis_reply *reply);
void        near__redis_reply_word(const struct near__redis_reply *reply, char *out, size_t size);

#endif
