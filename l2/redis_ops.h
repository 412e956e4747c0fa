/*
 * What the Redis backends have in common: the commands that do what l2/backend.h asks for one item, and what their replies say about it.
 * No connections, no state.
 *
 * A read of a hash may take several HMGETs, each of as many fields as a reply has room for if all values are as large as they may be.
 */
#ifndef NEAR_L2_REDIS_OPS_H
#define NEAR_L2_REDIS_OPS_H

#include "l2/backend.h"
#include "l2/redis_node.h"

#define NEAR__REDIS_MAX_VALUE ((size_t)512 * 1024 * 1024) /* the server's proto-max-bulk-len */
#define NEAR__REDIS_MAX_STORED                                                                               \
    ((size_t)511 * 1024 * 1024) /* leaves room for the command around it (rule H4) */
#define NEAR__REDIS_MAX_KEY ((size_t)128 * 1024)

enum near__redis_verb {
    NEAR__REDIS_GET,
    NEAR__REDIS_SET,
    NEAR__REDIS_REMOVE,
    NEAR__REDIS_INCREMENT,
    NEAR__REDIS_HASH_GET,
    NEAR__REDIS_HASH_SET
};
const char *near__redis_verb_name(enum near__redis_verb verb);

static inline bool
near__redis_reads(enum near__redis_verb verb)
{
    return verb == NEAR__REDIS_GET || verb == NEAR__REDIS_HASH_GET;
}

/* Whether it can be sent at all, with values of up to max_stored bytes. */
bool near__redis_fits(enum near__redis_verb verb, const struct near_l2_item *item, size_t max_stored);
/* Bytes of the item that its command has. */
size_t near__redis_bytes(enum near__redis_verb verb, const struct near_l2_item *item);

/* The item's command.  `eval`: a script with its text, else by its SHA-1 (rule R5).  As near__redis_call_add(). */
near_status near__redis_add(struct near__redis_call *call, enum near__redis_verb verb, enum near_l2_mode mode,
                            const struct near_l2_item *item, bool eval);

/* How many values of max_stored bytes are allowed in one reply, and what they take. */
unsigned near__redis_values_most(size_t max_stored);
size_t   near__redis_values_bytes(unsigned values, size_t max_stored);

/* The commands that read the fields of a hash, `step` (near__redis_values_most()) in each; `asking`: with an ASKING before every one. */
near_status near__redis_add_fields(struct near__redis_call *call, const struct near_l2_item *item,
                                   unsigned step, bool asking);
size_t      near__redis_parts(const struct near_l2_item *item, unsigned step);
/* The reply to one of them, an array: each field that is not answered yet is, and delivered. */
void near__redis_take_fields(struct near_l2_item *item, size_t part, unsigned step,
                             const struct near__redis_reply *reply, size_t max_stored,
                             near_l2_field_fn deliver, void *ctx);

/* For near__redis_call_expects(). */
unsigned near__redis_kinds(enum near__redis_verb verb, enum near_l2_mode mode);

enum near__redis_meaning {
    NEAR__REDIS_SAID,     /* the item is answered */
    NEAR__REDIS_VALUE,    /* get: the reply is the value, or the values; the item is not answered */
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
    near__redis_answer(item, near__redis_reads(verb) ? NEAR_L2_ERROR : NEAR_L2_UNKNOWN, status);
}

#endif
