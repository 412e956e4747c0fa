/* Commands and replies of the Redis backends.  See redis_ops.h. */
#include "l2/redis_ops.h"

#include "base/le.h"

#include <string.h>

/* A century: more would overflow in the server, "invalid expire time". */
#define MAX_TTL_MS INT64_C(3153600000000)

#define REPLY_BYTES   ((size_t)64 * 1024 * 1024) /* the most that one reply of many values may hold */
#define VALUE_FRAMING 64                         /* what RESP and a handshake add to a reply, generously */

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
                         "string.find(r.err, 'WRONGTYPE', 1, true) then return 0 end return r" },
  /* ARGV: ttl in ms, names and values.  What is no hash ends it before it is given a time to live. */
    hash_script = { "8d9a70439e8f734d418058adcb2cab225401b47a",
                    "redis.call('HSET', KEYS[1], unpack(ARGV, 2)) redis.call('PEXPIRE', KEYS[1], ARGV[1]) "
                    "return 1" };

const char *
near__redis_verb_name(enum near__redis_verb verb)
{
    static const char *const names[] = { "get", "set", "remove", "increment", "hash get", "hash set" };

    return names[verb];
}

bool
near__redis_fits(enum near__redis_verb verb, const struct near_l2_item *item, size_t max_stored)
{
    bool fits = item->key.size <= NEAR__REDIS_MAX_KEY;

    if (verb == NEAR__REDIS_SET)
        return fits && item->value.size <= max_stored;
    if (verb != NEAR__REDIS_HASH_SET)
        return fits;
    for (size_t i = 0; i < item->hash->count; i++)
        fits = fits && (item->hash->values[i].data == NULL || item->hash->values[i].size <= max_stored);
    return fits && near__l2_hash_bytes(item->hash) <= NEAR__REDIS_MAX_STORED;
}

size_t
near__redis_bytes(enum near__redis_verb verb, const struct near_l2_item *item)
{
    return item->key.size +
           (verb == NEAR__REDIS_HASH_SET ? near__l2_hash_bytes(item->hash) : item->value.size);
}

/* ---------------------------------------------------------------------------------------------- commands */

/* A command's arguments and the numbers in them.  Borrows from the item. */
struct args {
    near_bytes argv[8];
    size_t     argc;
    char       ttl[NEAR_L2_DECIMAL], delta[NEAR_L2_DECIMAL], initial[NEAR_L2_DECIMAL];
    uint8_t    stamp[8];
};

static void
arg(struct args *a, near_bytes bytes)
{
    a->argv[a->argc++] = bytes;
}

static near_bytes
number_text(char *out, int64_t number)
{
    return (near_bytes){ out, near__l2_decimal_write(number, out) };
}

/* Not by printf: with it this would be a third of what a SET costs the client. */
static near_bytes
ttl_text(char *out, int64_t ttl_ms)
{
    if (ttl_ms < 0)
        ttl_ms = 1; /* 0 would mean for ever */
    if (ttl_ms > MAX_TTL_MS)
        ttl_ms = MAX_TTL_MS;
    return number_text(out, ttl_ms);
}

static void
set_args(struct args *a, const struct near_l2_item *item, bool if_absent)
{
    arg(a, near_key("SET"));
    arg(a, item->key);
    arg(a, item->value);
    if (if_absent)
        arg(a, near_key("NX"));
    if (item->ttl_ms == 0)
        return; /* PX 0 is an error (rule R2) */
    arg(a, near_key("PX"));
    arg(a, ttl_text(a->ttl, item->ttl_ms));
}

static void
script_args(struct args *a, bool set, const struct near_l2_item *item, bool eval)
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
    arg(a, ttl_text(a->ttl, item->ttl_ms));
}

static void
increment_args(struct args *a, const struct near_l2_item *item, bool eval)
{
    arg(a, near_key(eval ? "EVAL" : "EVALSHA"));
    arg(a, near_key(eval ? increment_script.text : increment_script.sha));
    arg(a, near_key("1"));
    arg(a, item->key);
    arg(a, number_text(a->delta, item->sum->delta));
    arg(a, number_text(a->initial, item->sum->initial));
    arg(a, item->ttl_ms == 0 ? near_key("0") : ttl_text(a->ttl, item->ttl_ms));
}

static void
item_args(struct args *args, enum near__redis_verb verb, enum near_l2_mode mode,
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

/* Under a time to live a script: HSET and PEXPIRE are one step, and none of it where no hash lies. */
static near_status
add_hash_set(struct near__redis_call *call, const struct near_l2_item *item, bool eval)
{
    const struct near_l2_hash *hash = item->hash;
    near_bytes                 argv[5 + 2 * NEAR_L2_FIELDS];
    char                       ttl[NEAR_L2_DECIMAL];
    size_t                     argc = 0;

    if (item->ttl_ms != 0) {
        argv[argc++] = near_key(eval ? "EVAL" : "EVALSHA");
        argv[argc++] = near_key(eval ? hash_script.text : hash_script.sha);
        argv[argc++] = near_key("1");
        argv[argc++] = item->key;
        argv[argc++] = ttl_text(ttl, item->ttl_ms);
    } else {
        argv[argc++] = near_key("HSET");
        argv[argc++] = item->key;
    }
    for (size_t i = 0; i < hash->count; i++) {
        if (hash->values[i].data == NULL)
            continue;
        argv[argc++] = hash->fields[i];
        argv[argc++] = hash->values[i];
    }
    return near__redis_call_add(call, argc, argv);
}

near_status
near__redis_add(struct near__redis_call *call, enum near__redis_verb verb, enum near_l2_mode mode,
                const struct near_l2_item *item, bool eval)
{
    struct args args;

    if (verb == NEAR__REDIS_HASH_SET)
        return add_hash_set(call, item, eval);
    item_args(&args, verb, mode, item, eval);
    return near__redis_call_add(call, args.argc, args.argv);
}

unsigned
near__redis_values_most(size_t max_stored)
{
    size_t most = REPLY_BYTES / (max_stored + VALUE_FRAMING);

    return most < 1 ? 1 : most > NEAR_L2_FIELDS ? NEAR_L2_FIELDS : (unsigned)most;
}

size_t
near__redis_values_bytes(unsigned values, size_t max_stored)
{
    return values * (max_stored + VALUE_FRAMING);
}

size_t
near__redis_parts(const struct near_l2_item *item, unsigned step)
{
    return (item->hash->count + step - 1) / step;
}

static size_t
fields_in(const struct near_l2_item *item, size_t part, unsigned step)
{
    size_t left = item->hash->count - part * step;

    return left < step ? left : step;
}

static near_status
add_part(struct near__redis_call *call, const struct near_l2_item *item, size_t part, unsigned step)
{
    near_bytes  argv[2 + NEAR_L2_FIELDS] = { near_key("HMGET"), item->key };
    size_t      n                        = fields_in(item, part, step);
    near_status status;

    memcpy(argv + 2, item->hash->fields + part * step, n * sizeof(argv[0]));
    status = near__redis_call_add(call, 2 + n, argv);
    if (status == NEAR_OK)
        near__redis_call_expects_values(call, (uint32_t)n);
    return status;
}

near_status
near__redis_add_fields(struct near__redis_call *call, const struct near_l2_item *item, unsigned step,
                       bool asking)
{
    near_bytes  word   = near_key("ASKING");
    size_t      parts  = near__redis_parts(item, step);
    near_status status = NEAR_OK;

    for (size_t part = 0; part < parts && status == NEAR_OK; part++) {
        if (asking)
            status = near__redis_call_add(call, 1, &word);
        if (status == NEAR_OK)
            status = add_part(call, item, part, step);
    }
    return status;
}

/* ----------------------------------------------------------------------------------------------- replies */

/* Those that are answered already have been so by the same hash elsewhere, before it moved. */
void
near__redis_take_fields(struct near_l2_item *item, size_t part, unsigned step,
                        const struct near__redis_reply *reply, size_t max_stored, near_l2_field_fn deliver,
                        void *ctx)
{
    for (size_t i = 0; i < reply->elements; i++) {
        const struct near__redis_reply *value = &reply->element[i];
        enum near_l2_answer            *word  = &item->hash->answers[part * step + i];

        if (*word != NEAR_L2_NOT_TRIED)
            continue;
        *word = value->type == REDIS_REPLY_NIL ? NEAR_L2_ABSENT
                : value->size > max_stored     ? NEAR_L2_ERROR
                                               : NEAR_L2_DONE;
        if (*word == NEAR_L2_DONE)
            deliver(ctx, item, part * step + i, (near_bytes){ value->text, value->size });
    }
}

unsigned
near__redis_kinds(enum near__redis_verb verb, enum near_l2_mode mode)
{
    if (verb == NEAR__REDIS_GET)
        return NEAR__REDIS_KIND(REDIS_REPLY_STRING) | NEAR__REDIS_KIND(REDIS_REPLY_NIL);
    if (verb == NEAR__REDIS_INCREMENT)
        return NEAR__REDIS_KIND(REDIS_REPLY_STATUS) | NEAR__REDIS_KIND(REDIS_REPLY_STRING) |
               NEAR__REDIS_KIND(REDIS_REPLY_INTEGER);
    if (verb == NEAR__REDIS_REMOVE || verb == NEAR__REDIS_HASH_SET || mode == NEAR_L2_IF_STAMP)
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

static bool
is_script(enum near__redis_verb verb, enum near_l2_mode mode, const struct near_l2_item *item)
{
    if (verb == NEAR__REDIS_HASH_SET)
        return item->ttl_ms != 0;
    return !near__redis_reads(verb) && mode == NEAR_L2_IF_STAMP;
}

enum near__redis_meaning
near__redis_meaning(enum near__redis_verb verb, enum near_l2_mode mode, struct near_l2_item *item,
                    const struct near__redis_reply *reply)
{
    bool script = is_script(verb, mode, item);

    if (reply->type == REDIS_REPLY_ERROR)
        return script && is_noscript(reply) ? NEAR__REDIS_NOSCRIPT : NEAR__REDIS_REFUSED;
    if (verb == NEAR__REDIS_INCREMENT)
        return increment_meaning(item, reply);
    if (verb == NEAR__REDIS_GET && reply->type == REDIS_REPLY_STRING)
        return NEAR__REDIS_VALUE;
    if (verb == NEAR__REDIS_GET && reply->type == REDIS_REPLY_NIL)
        return said(item, NEAR_L2_ABSENT);
    if (verb == NEAR__REDIS_HASH_GET && reply->type == REDIS_REPLY_ARRAY)
        return NEAR__REDIS_VALUE;
    if (verb == NEAR__REDIS_HASH_SET && reply->type == REDIS_REPLY_INTEGER)
        return said(item, NEAR_L2_DONE);
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
