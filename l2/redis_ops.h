/*
 * What the Redis backends have in common: the commands that do what l2/backend.h asks for one item, and what their replies say about it.
 * No connections, no state.
 */
#ifndef NEAR_L2_REDIS_OPS_H
#define NEAR_L2_REDIS_OPS_H

#include "l2/backend.h"
#include "l2/redis_node.h"

#define NEAR__REDIS_MAX_VALUE ((size_t)512 * 1024 * 1024) /* the server's proto-max-bulk-len */
#define NEAR__REDIS_MAX_STORED                                                                               \
    ((size_t)511 * 1024 * 1024) /* leaves room for the command around it (rule H4) */
#define NEAR__REDIS_MAX_KEY ((size_t)128 * 1024)

enum near__redis_verb { NEAR__REDIS_GET, NEAR__REDIS_SET, NEAR__REDIS_REMOVE, NEAR__REDIS_INCREMENT };
const char *near__redis_verb_name(enum near__redis_verb verb);

/* A command's arguments and the numbers in them.  Borrows from the item. */
struct near__redis_args {
    near_bytes argv[8];
    size_t     argc;
    char       ttl[24], delta[NEAR_L2_DECIMAL], initial[NEAR_L2_DECIMAL];
    uint8_t    stamp[8];
};

/* `eval`: a conditional write's or an increment's script with its text, else by its SHA-1 (rule R5). */
void near__redis_args(struct near__redis_args *args, enum near__redis_verb verb, enum near_l2_mode mode,
                      const struct near_l2_item *item, bool eval);

/* For near__redis_call_expects(). */
unsigned near__redis_kinds(enum near__redis_verb verb, enum near_l2_mode mode);

enum near__redis_meaning {
    NEAR__REDIS_SAID,     /* the item is answered */
    NEAR__REDIS_VALUE,    /* get: the reply's text is the value; the item is not answered */
    NEAR__REDIS_NOSCRIPT, /* certainly not done: to be sent again with the script's text */
    NEAR__REDIS_REFUSED,  /* an error reply: certainly not done; the item is not answered */
    NEAR__REDIS_NONSENSE  /* no command of ours can have such a reply; the item is not answered */
};
enum near__redis_meaning near__redis_meaning(enum near__redis_verb verb, enum near_l2_mode mode,
                                             struct near_l2_item            *item,
                                             const struct near__redis_reply *reply);

static inline void
near__redis_answer(struct near_l2_item *item, enum near_l2_answer answer, near_status status)
{
    item->answer = answer;
    item->status = status;
}

/* What goes for an item whose outcome nobody will tell us: a read has failed, a write may have been done. */
static inline void
near__redis_answer_lost(enum near__redis_verb verb, struct near_l2_item *item, near_status status)
{
    near__redis_answer(item, verb == NEAR__REDIS_GET ? NEAR_L2_ERROR : NEAR_L2_UNKNOWN, status);
}

#endif
