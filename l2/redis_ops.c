/* Commands and replies of the Redis backends.  See redis_ops.h. */
#include "l2/redis_ops.h"

#include "base/le.h"

#include <stdio.h>
#include <string.h>

/* A century: more would overflow in the server, "invalid expire time". */
#define MAX_TTL_MS INT64_C(3153600000000)

/* Compare the stamp (8 bytes at 8, so an entry of fewer than 16 bytes never matches), then act.  Constant
 * texts: the server keeps them by their SHA-1.  ARGV: stamp, and for set: value, ttl in ms or 0. */
static const struct script {
    const char *sha, *text;
} set_script    = { "199fba27b7dde6a4643bc2471aab5ed7358b22b0",
                    "if redis.call('GETRANGE', KEYS[1], 8, 15) ~= ARGV[1] then return 0 end "
                       "if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2]) "
                       "else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end return 1" },
  remove_script = { "618a3994cfdc607807dc3e260eea7389c4a09a89",
                    "if redis.call('GETRANGE', KEYS[1], 8, 15) ~= ARGV[1] then return 0 end "
                    "return redis.call('UNLINK', KEYS[1])" },
  /* ARGV: delta, initial, ttl in ms or 0.  A status: it was not there; a string: the sum (a number would pass through a double); 0: no
 * counter; 1: too large. */
    increment_script = { "ae421f756be2fc215f852fbd49ae6041873f102c",
                         "if redis.call('EXISTS', KEYS[1]) == 0 then if ARGV[3] == '0' then "
                         "redis.call('SET', KEYS[1], ARGV[2]) else redis.call('SET', KEYS[1], ARGV[2], "
                         "'PX', ARGV[3]) end return redis.status_reply(ARGV[2]) end local r = "
                         "redis.pcall('INCRBY', KEYS[1], ARGV[1]) if type(r) ~= 'table' then return "
                         "redis.call('GET', KEYS[1]) end if string.find(r.err, 'would overflow', 1, true) "
                         "then return 1 end if string.find(r.err, 'not an integer', 1, true) or "
                         "string.find(r.err, 'WRONGTYPE', 1, true) then return 0 end return r" };

const char *
near__redis_verb_name(enum near__redis_verb verb)
{
    static const char *const names[] = { "get", "set", "remove", "increment" };

    return names[verb];
}

/* ---------------------------------------------------------------------------------------------- commands */

static void
arg(struct near__redis_args *a, near_bytes bytes)
{
    a->argv[a->argc++] = bytes;
}

static near_bytes
ttl_text(struct near__redis_args *a, int64_t ttl_ms)
{
    if (ttl_ms < 0)
        ttl_ms = 1; /* 0 would mean for ever */
    if (ttl_ms > MAX_TTL_MS)
        ttl_ms = MAX_TTL_MS;
    snprintf(a->ttl, sizeof(a->ttl), "%lld", (long long)ttl_ms);
    return near_key(a->ttl);
}

static void
set_args(struct near__redis_args *a, const struct near_l2_item *item, bool if_absent)
{
    arg(a, near_key("SET"));
    arg(a, item->key);
    arg(a, item->value);
    if (if_absent)
        arg(a, near_key("NX"));
    if (item->ttl_ms == 0)
        return; /* PX 0 is an error (rule R2) */
    arg(a, near_key("PX"));
    arg(a, ttl_text(a, item->ttl_ms));
}

static void
script_args(struct near__redis_args *a, bool set, const struct near_l2_item *item, bool eval)
{
    const struct script *script = set ? &set_script : &remove_script;

    near__le64_put(a->stamp, item->expected);
    arg(a, near_key(eval ? "EVAL" : "EVALSHA"));
    arg(a, near_key(eval ? script->text : script->sha));
    arg(a, near_key("1"));
    arg(a, item->key);
    arg(a, (near_bytes){ a->stamp, sizeof(a->stamp) });
    if (!set)
        return;
    arg(a, item->value);
    arg(a, ttl_text(a, item->ttl_ms));
}

static near_bytes
number_text(char *out, int64_t number)
{
    return (near_bytes){ out, near__l2_decimal_write(number, out) };
}

static void
increment_args(struct near__redis_args *a, const struct near_l2_item *item, bool eval)
{
    arg(a, near_key(eval ? "EVAL" : "EVALSHA"));
    arg(a, near_key(eval ? increment_script.text : increment_script.sha));
    arg(a, near_key("1"));
    arg(a, item->key);
    arg(a, number_text(a->delta, item->sum->delta));
    arg(a, number_text(a->initial, item->sum->initial));
    arg(a, item->ttl_ms == 0 ? near_key("0") : ttl_text(a, item->ttl_ms));
}

void
near__redis_args(struct near__redis_args *args, enum near__redis_verb verb, enum near_l2_mode mode,
                 const struct near_l2_item *item, bool eval)
{
    args->argc = 0;
    if (verb == NEAR__REDIS_INCREMENT) {
        increment_args(args, item, eval);
    } else if (verb != NEAR__REDIS_GET && mode == NEAR_L2_IF_STAMP) {
        script_args(args, verb == NEAR__REDIS_SET, item, eval);
    } else if (verb == NEAR__REDIS_SET) {
        set_args(args, item, mode == NEAR_L2_IF_ABSENT);
    } else {
        arg(args, near_key(verb == NEAR__REDIS_GET ? "GET" : "UNLINK")); /* rule R3 */
        arg(args, item->key);
    }
}

/* ----------------------------------------------------------------------------------------------- replies */

unsigned
near__redis_kinds(enum near__redis_verb verb, enum near_l2_mode mode)
{
    if (verb == NEAR__REDIS_GET)
        return NEAR__REDIS_KIND(REDIS_REPLY_STRING) | NEAR__REDIS_KIND(REDIS_REPLY_NIL);
    if (verb == NEAR__REDIS_INCREMENT)
        return NEAR__REDIS_KIND(REDIS_REPLY_STATUS) | NEAR__REDIS_KIND(REDIS_REPLY_STRING) |
               NEAR__REDIS_KIND(REDIS_REPLY_INTEGER);
    if (verb == NEAR__REDIS_REMOVE || mode == NEAR_L2_IF_STAMP)
        return NEAR__REDIS_KIND(REDIS_REPLY_INTEGER);
    if (mode == NEAR_L2_IF_ABSENT)
        return NEAR__REDIS_KIND(REDIS_REPLY_STATUS) | NEAR__REDIS_KIND(REDIS_REPLY_NIL);
    return NEAR__REDIS_KIND(REDIS_REPLY_STATUS);
}

static enum near__redis_meaning
said(struct near_l2_item *item, enum near_l2_answer answer)
{
    near__redis_answer(item, answer, NEAR_OK);
    return NEAR__REDIS_SAID;
}

static bool
is_ok(const struct near__redis_reply *reply)
{
    return reply->type == REDIS_REPLY_STATUS && reply->size == 2 && memcmp(reply->text, "OK", 2) == 0;
}

static bool
is_noscript(const struct near__redis_reply *reply)
{
    return reply->size >= 8 && memcmp(reply->text, "NOSCRIPT", 8) == 0;
}

static enum near__redis_meaning
increment_meaning(struct near_l2_item *item, const struct near__redis_reply *reply)
{
    struct near_l2_sum *sum = item->sum;

    if (reply->type == REDIS_REPLY_INTEGER && reply->integer == 0)
        return said(item, NEAR_L2_ABSENT);
    if (reply->type == REDIS_REPLY_INTEGER) {
        near__redis_answer(item, NEAR_L2_ERROR, NEAR_ERR_INVALID);
        return NEAR__REDIS_SAID;
    }
    if ((reply->type != REDIS_REPLY_STATUS && reply->type != REDIS_REPLY_STRING) ||
        !near__l2_decimal_read((near_bytes){ reply->text, reply->size }, &sum->result))
        return NEAR__REDIS_NONSENSE;
    sum->created = reply->type == REDIS_REPLY_STATUS;
    return said(item, NEAR_L2_DONE);
}

enum near__redis_meaning
near__redis_meaning(enum near__redis_verb verb, enum near_l2_mode mode, struct near_l2_item *item,
                    const struct near__redis_reply *reply)
{
    bool script = verb != NEAR__REDIS_GET && mode == NEAR_L2_IF_STAMP;

    if (reply->type == REDIS_REPLY_ERROR)
        return script && is_noscript(reply) ? NEAR__REDIS_NOSCRIPT : NEAR__REDIS_REFUSED;
    if (verb == NEAR__REDIS_INCREMENT)
        return increment_meaning(item, reply);
    if (verb == NEAR__REDIS_GET && reply->type == REDIS_REPLY_STRING)
        return NEAR__REDIS_VALUE;
    if (verb == NEAR__REDIS_GET && reply->type == REDIS_REPLY_NIL)
        return said(item, NEAR_L2_ABSENT);
    if (script && reply->type == REDIS_REPLY_INTEGER)
        return said(item, reply->integer > 0 ? NEAR_L2_DONE : NEAR_L2_ABSENT);
    if (verb == NEAR__REDIS_REMOVE && !script && reply->type == REDIS_REPLY_INTEGER)
        return said(item, NEAR_L2_DONE);
    if (verb == NEAR__REDIS_SET && !script && is_ok(reply))
        return said(item, NEAR_L2_DONE);
    if (verb == NEAR__REDIS_SET && mode == NEAR_L2_IF_ABSENT && reply->type == REDIS_REPLY_NIL)
        return said(item, NEAR_L2_ABSENT);
    return NEAR__REDIS_NONSENSE;
}
