/*
 * doctor, Redis: what it is, its memory, its clock, and which commands the login may use.
 *
 * Whether a command is allowed is found out by queueing it between MULTI and DISCARD: the server looks at rights, keys and channels when it
 * queues, and nothing is executed.  That needs no right that nearcache does not need itself.
 */
#include "doctor.h"

#include "l2/redis_home.h"
#include "l2/tls.h"
#include "l2/transport.h"
#include "publish.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define PROBE_KEY "doctor:probe"

struct patient {
    struct doctor           *doctor;
    struct near__redis_conn *conn;
    int64_t                  timeout;
    char                     key[100], channel[NEAR__CHANNEL_SIZE], stats[NEAR__CHANNEL_SIZE], prefix[66];
    char                     user[128];
    char                     add[400]; /* what ACL SETUSER would have to add */
    bool                     tracks;
};

/* ---- one command */

struct kept {
    redisReply *reply; /* its own; NULL: none came */
};

/* hiredis frees a reply after the callback: what is looked at later is copied. */
static void
keep_reply(void *ctx, size_t index, redisReply *reply)
{
    struct kept *kept = ctx;
    redisReply  *copy = calloc(1, sizeof(*copy));

    (void)index;
    if (copy == NULL)
        return;
    copy->type    = reply->type;
    copy->integer = reply->integer;
    if (reply->str != NULL)
        copy->str = strdup(reply->str);
    if (reply->type == REDIS_REPLY_ARRAY && reply->elements > 0 && reply->element[0]->str != NULL) {
        /* arrays of texts, of which the first two are of interest */
        free(copy->str);
        copy->str = strdup(reply->element[0]->str);
        if (reply->elements > 1 && reply->element[1]->str != NULL)
            copy->integer = strtoll(reply->element[1]->str, NULL, 10);
    }
    kept->reply = copy;
}

static void
forget(redisReply *reply)
{
    if (reply != NULL)
        free(reply->str);
    free(reply);
}

/* The reply, to be given to forget(); NULL: there is none, and the connection is over. */
static redisReply *
ask(struct patient *patient, size_t argc, const char *const *words)
{
    near_bytes  argv[12];
    struct kept kept = { NULL };
    near_error  error;

    for (size_t i = 0; i < argc; i++)
        argv[i] = near_key(words[i]);
    if (patient->conn == NULL || near__redis_append(patient->conn, argc, argv) != NEAR_OK ||
        near__redis_exchange(patient->conn, keep_reply, &kept, NULL, NULL,
                             near__time_after(near__now(&near__clock_system), patient->timeout),
                             &error) != NEAR_OK) {
        forget(kept.reply);
        return NULL;
    }
    return kept.reply;
}
#define ASK(patient, ...)                                                                                    \
    ask(patient, NEAR_COUNT_OF(((const char *[]){ __VA_ARGS__ })), (const char *[]){ __VA_ARGS__ })

static bool
is_text(const redisReply *reply)
{
    return reply != NULL && reply->type != REDIS_REPLY_ERROR && reply->str != NULL;
}

/* The value of a field of INFO; false: it is not told. */
static bool
info_field(const char *text, const char *field, char *out, size_t size)
{
    size_t      n  = strlen(field);
    const char *at = text;

    while (at != NULL && strncmp(at, field, n) != 0) {
        at = strchr(at, '\n');
        at = at != NULL ? at + 1 : NULL;
    }
    if (at == NULL || at[n] != ':')
        return false;
    snprintf(out, size, "%.*s", (int)strcspn(at + n + 1, "\r\n"), at + n + 1);
    return true;
}

/* ---- what it is */

static void
examine_role(struct patient *patient)
{
    redisReply *reply = ASK(patient, "INFO", "replication");
    char        role[16], link[16] = "";

    if (is_text(reply) && info_field(reply->str, "role", role, sizeof(role))) {
        info_field(reply->str, "master_link_status", link, sizeof(link));
        if (strcmp(role, "master") == 0)
            found(patient->doctor, FINE, "role", NULL, "primary");
        else
            found(patient->doctor, BAD, "role", "name the primary, or its sentinels: redis-sentinel://",
                  "%s (link to its primary %s): it takes no writes", role, link);
    }
    forget(reply);
}

static void
examine_memory(struct patient *patient)
{
    redisReply *reply    = ASK(patient, "INFO", "memory");
    char        most[32] = "", used[32] = "", policy[40] = "";

    if (is_text(reply) && info_field(reply->str, "maxmemory", most, sizeof(most)) &&
        info_field(reply->str, "maxmemory_policy", policy, sizeof(policy))) {
        info_field(reply->str, "used_memory_human", used, sizeof(used));
        if (strcmp(most, "0") == 0)
            found(patient->doctor, NOTE, "memory", "CONFIG SET maxmemory, with maxmemory-policy allkeys-lfu",
                  "%s in use, no maxmemory: it grows until the machine has none left", used);
        else if (strcmp(policy, "noeviction") == 0)
            found(patient->doctor, CHANGE, "memory", "CONFIG SET maxmemory-policy allkeys-lfu",
                  "%s in use of %s bytes; noeviction: when that is full every write is refused", used, most);
        else if (strncmp(policy, "volatile", 8) == 0)
            found(patient->doctor, NOTE, "memory", NULL,
                  "%s in use of %s bytes; %s: what has no TTL (ttl = 0) never makes room", used, most,
                  policy);
        else
            found(patient->doctor, FINE, "memory", NULL, "%s in use of %s bytes, %s", used, most, policy);
    }
    forget(reply);
}

static void
examine_clock(struct patient *patient)
{
    int64_t     before = doctor_wall_us();
    redisReply *reply  = ASK(patient, "TIME");

    if (is_text(reply))
        doctor_clock(patient->doctor, strtoll(reply->str, NULL, 10) * 1000000 + reply->integer, before);
    forget(reply);
}

static void
examine_item(struct patient *patient)
{
    redisReply *reply = ASK(patient, "CONFIG", "GET", "proto-max-bulk-len");
    uint64_t    most  = patient->doctor->connect.settings.l2_max_value;

    if (is_text(reply) && reply->integer > 0 && (uint64_t)reply->integer < most)
        found(patient->doctor, CHANGE, "item size",
              "a smaller l2.max_value, or CONFIG SET proto-max-bulk-len",
              "the server takes values of %lld bytes, l2.max_value is %llu", reply->integer,
              (unsigned long long)most);
    else if (is_text(reply) && reply->integer > 0)
        found(patient->doctor, FINE, "item size", NULL, "up to %lld bytes (proto-max-bulk-len)",
              reply->integer);
    forget(reply);
}

static void
examine_user(struct patient *patient)
{
    redisReply *reply = ASK(patient, "ACL", "WHOAMI");

    snprintf(patient->user, sizeof(patient->user), "%s",
             is_text(reply)                                    ? reply->str
             : patient->doctor->connect.l2_uri.user[0] != '\0' ? patient->doctor->connect.l2_uri.user
                                                               : "default");
    forget(reply);
}

/* ---- rights */

enum { NEVER, ALWAYS, IF_TRACKING, IF_CLUSTER }; /* when it is needed */
struct right {
    const char  *words[10]; /* KEY, CHANNEL, STATS and PREFIX stand for ours */
    const char  *acl;       /* what ACL SETUSER adds */
    const char  *purpose;
    enum finding lack;
};

static const struct right rights[] = {
    { { "PING" }, "+ping", "a sign of life", BAD },
    { { "GET", "KEY" }, "+get", "reading", BAD },
    { { "MGET", "KEY" }, "+mget", "reading several keys", BAD },
    { { "SET", "KEY", "v", "PX", "1000" }, "+set", "writing, and leases", BAD },
    { { "GETRANGE", "KEY", "0", "15" }, "+getrange", "writing under a condition, and leases", BAD },
    { { "UNLINK", "KEY" }, "+unlink", "removing", BAD },
    { { "EVAL", "return 0", "1", "KEY" }, "+eval", "writing under a condition, and leases", BAD },
    { { "EVALSHA", "0000000000000000000000000000000000000000", "1", "KEY" },
      "+evalsha",
      "writing under a condition, and leases",
      BAD },
    { { "PUBLISH", "CHANNEL", "x" }, "+publish", "telling other instances", BAD },
    { { "SUBSCRIBE", "CHANNEL" }, "+subscribe", "hearing other instances", BAD },
    { { "EXISTS", "KEY" }, "+exists", "counters: near_add()", CHANGE },
    { { "ROLE" }, "+role", "noticing a failover (G6)", CHANGE },
    { { "INFO", "server" }, "+info", "noticing a failover (G6), and this report", CHANGE },
    { { "CLIENT", "SETNAME", "x" }, "+client|setname", "names in CLIENT LIST", NOTE },
    { { "HMGET", "KEY", "f" }, "+hmget", "fields in hashes: near_fields_get_many()", NOTE },
    { { "HSET", "KEY", "f", "v" }, "+hset", "fields in hashes: near_fields_put_many()", NOTE },
    { { "SCAN", "0", "MATCH", "PREFIX*" }, "+scan", "near_invalidate_prefix()", NOTE },
    { { "PUBLISH", "STATS", "x" }, "+publish", "stats.publish", NOTE },
    { { "CLIENT", "ID" }, "+client|id", "coherence.mode = tracking", NOTE },
    { { "CLIENT", "TRACKING", "ON" }, "+client|tracking", "coherence.mode = tracking", NOTE },
    { { "SUBSCRIBE", "__redis__:invalidate" }, "+subscribe", "coherence.mode = tracking", NOTE },
};

static const char *
own_word(const struct patient *patient, const char *word)
{
    if (strcmp(word, "KEY") == 0)
        return patient->key;
    if (strcmp(word, "CHANNEL") == 0)
        return patient->channel;
    if (strcmp(word, "STATS") == 0)
        return patient->stats;
    return strcmp(word, "PREFIX*") == 0 ? patient->prefix : word;
}

static void
add_right(struct patient *patient, const char *right)
{
    size_t used = strlen(patient->add);

    if (strstr(patient->add, right) == NULL)
        snprintf(patient->add + used, sizeof(patient->add) - used, " %s", right);
}

/* Why the server said no; NULL: it did not. */
static const char *
refusal(struct patient *patient, const struct right *right, const redisReply *reply)
{
    char pattern[180];

    if (reply == NULL)
        return "the connection was lost";
    if (reply->type != REDIS_REPLY_ERROR || reply->str == NULL)
        return NULL;
    if (strncmp(reply->str, "NOPERM", 6) == 0) {
        const char *key = strstr(reply->str, "key"), *channel = strstr(reply->str, "channel");

        if (channel != NULL) {
            snprintf(pattern, sizeof(pattern), "&%s", own_word(patient, right->words[1]));
            add_right(patient, pattern);
            return "no right to the channel";
        }
        if (key != NULL) {
            snprintf(pattern, sizeof(pattern), "~%s", patient->prefix);
            add_right(patient, pattern);
            return "no right to the key";
        }
        add_right(patient, right->acl);
        return "no right to the command";
    }
    return strncasecmp(reply->str, "ERR unknown", 11) == 0 ? "the server does not have it" : NULL;
}

static const char *
try_right(struct patient *patient, const struct right *right)
{
    const char *words[10];
    size_t      n = 0;
    redisReply *reply;
    const char *why;

    for (; n < NEAR_COUNT_OF(right->words) && right->words[n] != NULL; n++)
        words[n] = own_word(patient, right->words[n]);
    reply = ask(patient, n, words);
    why   = refusal(patient, right, reply);
    forget(reply);
    return why;
}

static bool
wants_tracking(const struct patient *patient)
{
    unsigned mode = patient->doctor->connect.settings.coherence_mode;

    return mode == NEAR__MODE_TRACKING || mode == NEAR__MODE_BOTH;
}

static void
examine_rights(struct patient *patient)
{
    static const struct right multi = { { "MULTI" }, "+multi +exec", "writing and telling in one step", BAD };
    const char               *why   = try_right(patient, &multi);
    size_t                    lacked = 0;

    if (why != NULL) {
        found(patient->doctor, BAD, "rights", NULL,
              "MULTI: %s; needed for %s, and to find out about the others", why, multi.purpose);
        lacked++;
    }
    for (size_t i = 0; why == NULL && i < NEAR_COUNT_OF(rights); i++) {
        const struct right *right    = &rights[i];
        bool                tracking = strcmp(right->purpose, "coherence.mode = tracking") == 0;
        const char         *lack     = try_right(patient, right);
        const char         *second;
        enum finding        finding = tracking && wants_tracking(patient) ? CHANGE : right->lack;

        patient->tracks &= !tracking || lack == NULL;
        if (lack == NULL)
            continue;
        lacked++;
        second = right->words[1] != NULL && strcmp(right->words[1], "KEY") != 0
                     ? own_word(patient, right->words[1])
                     : "";
        second = strncmp(right->words[0], "EVAL", 4) == 0 || second[0] == '0' ? "" : second;
        found(patient->doctor, finding, "rights", NULL, "%s%s%s: %s; needed for %s", right->words[0],
              second[0] != '\0' ? " " : "", second, lack, right->purpose);
    }
    if (why == NULL)
        forget(ASK(patient, "DISCARD"));
    if (lacked == 0)
        found(patient->doctor, FINE, "rights", NULL, "user %s has all that nearcache uses", patient->user);
    else if (patient->add[0] != '\0') {
        char advice[600];

        snprintf(advice, sizeof(advice), "ACL SETUSER %s%s", patient->user, patient->add);
        found(patient->doctor, FINE, "rights", advice, "user %s lacks %zu of them", patient->user, lacked);
    }
}

static void
examine_tracking(struct patient *patient)
{
    if (patient->doctor->worst == BAD)
        return;
    if (patient->tracks)
        found(patient->doctor, FINE, "tracking", NULL,
              "coherence.mode = tracking or both can be used: the server tells of foreign writers, too");
    else
        found(patient->doctor, wants_tracking(patient) ? CHANGE : NOTE, "tracking", NULL,
              "not to be had: coherence.mode = pubsub, so writes past nearcache are seen after l1.max_ttl");
}

/* ---- the connection */

static void
examine_transport(struct patient *patient)
{
    struct near__transport      *transport = near__redis_conn_transport(patient->conn);
    const struct near__settings *settings  = &patient->doctor->connect.settings;
    const struct near__uri      *uri       = &patient->doctor->connect.l2_uri;
    char                         text[256];

    if (transport->tls == NULL) {
        found(patient->doctor, near__transport_private(transport) ? FINE : NOTE, "transport",
              near__transport_private(transport) ? NULL : "rediss://, or a network that nobody else is on",
              "%s", near__transport_private(transport) ? "does not leave this machine" : "not encrypted");
        return;
    }
    near__tls_describe(transport->tls, text, sizeof(text));
    found(patient->doctor, settings->tls_verify == NEAR__VERIFY_CA ? NOTE : FINE, "transport",
          settings->tls_verify == NEAR__VERIFY_CA ? "tls.verify = full, with tls.server_name if need be"
                                                  : NULL,
          "%s; checked for %s", text,
          settings->tls_verify == NEAR__VERIFY_CA ? "any name"
          : settings->tls_server_name[0] != '\0'  ? settings->tls_server_name
                                                  : uri->addresses[0].host);
}

void
examine_redis(struct doctor *doctor)
{
    const struct near__settings *settings = &doctor->connect.settings;
    struct patient            patient = { .doctor = doctor, .timeout = settings->l2_timeout, .tracks = true };
    struct near__redis_server server  = { .uri       = &doctor->connect.l2_uri,
                                          .access    = &doctor->connect.access.l2,
                                          .clock     = &near__clock_system,
                                          .max_reply = 1 << 20 };
    int64_t    deadline = near__time_after(near__now(&near__clock_system), settings->l2_connect_timeout);
    near_error error;

    snprintf(patient.key, sizeof(patient.key), "%.64s" PROBE_KEY, settings->l2_key_prefix);
    snprintf(patient.prefix, sizeof(patient.prefix), "%.64s*", settings->l2_key_prefix);
    near__settings_channel(settings, "", patient.channel, sizeof(patient.channel));
    near__settings_channel(settings, NEAR__PUBLISH_SUFFIX, patient.stats, sizeof(patient.stats));
    if (near__redis_dial_home(&patient.conn, &server, patient.key, NULL, deadline, &error) != NEAR_OK) {
        found(doctor, BAD, "connection", NULL, "%s", error.text);
        return;
    }
    examine_transport(&patient);
    examine_role(&patient);
    examine_memory(&patient);
    examine_item(&patient);
    examine_clock(&patient);
    examine_user(&patient);
    examine_rights(&patient);
    examine_tracking(&patient);
    near__redis_conn_free(&patient.conn);
}
