/*
 * A cluster's primaries, as far as they matter to who has them tell of changed keys: each has a link of its own, a tracker.
 *
 * Once a heartbeat the channel's home is asked for the cluster's epoch and size; when they have changed, a link was lost, or some
 * seconds have passed, for all nodes.  The answer vouches for the moment it was asked at, as the probe's does, and the gate moves by it:
 * who could not ask does not serve.  All primaries have a tracker, those without slots as well: so keys that move to one are heard of
 * from the first on.  A change of the set begins with a flush, as a new subscription does.
 *
 * Not noticed: what the home does not know yet.  Nodes tell each other within milliseconds; one that is cut off from most of them
 * says so itself after the cluster's node timeout.
 *
 * All of it runs in the probe's thread, which alone starts and ends trackers.
 */
#include "coherence/redis_bus.h"

#include "base/event.h"
#include "base/thread.h"
#include "l2/redis_home.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define READ_AGAIN (5000 * NEAR_MS) /* all nodes, whatever the epoch says */

struct primaries {
    size_t               n;
    bool                 too_many;
    struct near__address at[NEAR__TRACKERS_MAX];
};

struct text_answer {
    char       *text;    /* malloc'ed */
    near_status refused; /* what an error reply means */
};

static void
take_text(void *ctx, size_t index, redisReply *reply)
{
    struct text_answer *answer = ctx;

    (void)index;
    if (reply->type == REDIS_REPLY_STRING)
        answer->text = strdup(reply->str);
    else if (reply->type == REDIS_REPLY_ERROR)
        answer->refused = near__redis_error_class(reply);
}

/* Messages alone remain: do_without() follows. */
static void
note_refusal(struct near__redis_bus *b, const char *why)
{
    near__log(b->env.log, NEAR_LOG_WARN,
              "bus: %s: only messages of other instances are heard, no foreign writers", why);
    near__lock(&b->lock);
    b->refused = true;
    near__unlock(&b->lock);
}

/* The reply to CLUSTER `word`; NULL: none. */
static char *
ask(struct near__redis_bus *b, const char *word, int64_t deadline)
{
    near_bytes         argv[2] = { near_key("CLUSTER"), near_key(word) };
    struct text_answer answer  = { NULL, NEAR_OK };

    if (b->map_conn == NULL && near__redis_dial_home(&b->map_conn, &b->links[0].server, b->env.channel,
                                                     &b->map_at, deadline, NULL) != NEAR_OK)
        return NULL;
    if (near__redis_append(b->map_conn, 2, argv) == NEAR_OK &&
        near__redis_exchange(b->map_conn, take_text, &answer, NULL, NULL, deadline, NULL) == NEAR_OK &&
        answer.text != NULL)
        return answer.text;
    if (answer.refused == NEAR_ERR_DENIED)
        note_refusal(b, "the cluster does not tell us its nodes (CLUSTER INFO, CLUSTER NODES)");
    near__redis_conn_free(&b->map_conn);
    return NULL;
}

/* What changes whenever the primaries do; false: the cluster is not well, or does not say. */
static bool
summarise(const char *info, char *summary, size_t size)
{
    static const char *const fields[] = { "cluster_current_epoch:", "cluster_size:", "cluster_known_nodes:" };
    size_t                   at       = 0;

    summary[0] = '\0';
    if (strstr(info, "cluster_state:ok") == NULL)
        return false;
    for (size_t i = 0; i < NEAR_COUNT_OF(fields); i++) {
        const char *field = strstr(info, fields[i]);

        if (field == NULL)
            return false;
        at += (size_t)snprintf(summary + at, size - at, "%.*s ", (int)strcspn(field, "\r\n"), field);
        if (at >= size)
            return false;
    }
    return true;
}

static bool
has_word(const char *list, size_t size, const char *word)
{
    size_t n = strlen(word);

    for (const char *at = list; at + n <= list + size; at++)
        if (memcmp(at, word, n) == 0 && (at == list || at[-1] == ',') &&
            (at + n == list + size || at[n] == ','))
            return true;
    return false;
}

/* "host:port@bus,name" of a node; an empty host is the one that was asked. */
static bool
parse_address(const char *text, size_t size, const struct near__address *asked, struct near__address *address)
{
    size_t      whole = strcspn(text, "@ ");
    const char *colon = memrchr(text, ':', whole < size ? whole : size);
    long        port  = colon != NULL ? strtol(colon + 1, NULL, 10) : 0;
    size_t      n     = colon != NULL ? (size_t)(colon - text) : 0;

    if (port < 1 || port > 65535 || n >= sizeof(address->host))
        return false;
    *address = (struct near__address){ .port = (uint16_t)port };
    if (n == 0)
        memcpy(address->host, asked->host, sizeof(address->host));
    else
        memcpy(address->host, text, n);
    return true;
}

/* One line of CLUSTER NODES: id, address, flags, ... */
static void
parse_node(const char *line, size_t size, const struct near__address *asked, struct primaries *found)
{
    const char          *address = memchr(line, ' ', size), *flags;
    struct near__address at;
    size_t               n;

    if (address == NULL)
        return;
    address++;
    flags = memchr(address, ' ', size - (size_t)(address - line));
    if (flags == NULL)
        return;
    flags++;
    n = strcspn(flags, " \n");
    if (!has_word(flags, n, "master") || has_word(flags, n, "fail") || has_word(flags, n, "noaddr") ||
        has_word(flags, n, "handshake") || !parse_address(address, (size_t)(flags - 1 - address), asked, &at))
        return;
    found->too_many |= found->n == NEAR__TRACKERS_MAX;
    if (!found->too_many)
        found->at[found->n++] = at;
}

static bool
is_same(const struct near__address *a, const struct near__address *b)
{
    return a->port == b->port && strcmp(a->host, b->host) == 0;
}

static bool
is_primary(const struct primaries *primaries, const struct near__address *address)
{
    for (size_t i = 0; i < primaries->n; i++)
        if (is_same(&primaries->at[i], address))
            return true;
    return false;
}

static bool
has_tracker(const struct near__redis_bus *b, const struct near__address *address)
{
    for (size_t i = b->publishing; i < b->n; i++)
        if (b->links[i].used && is_same(&b->links[i].address, address))
            return true;
    return false;
}

static void
retire(struct near__bus_link *l)
{
    struct near__redis_bus *b = l->bus;

    near__lock(&b->lock);
    l->retired = true;
    near__unlock(&b->lock);
    near__event_raise(l->wake);
    near__event_raise(l->cancel); /* it may be dialling */
    if (l->running)
        pthread_join(l->thread, NULL);
    l->running = false;
    near__redis_conn_free(&l->probe);
    near__lock(&b->lock);
    l->used = l->subscribed = false;
    b->losses++; /* who waits for it waits for nothing */
    pthread_cond_broadcast(&b->news);
    near__unlock(&b->lock);
}

/* False: no memory, place or thread for it. */
static bool
start(struct near__redis_bus *b, const struct near__address *address)
{
    size_t                 i = b->publishing;
    struct near__bus_link *l;
    int                    wake, cancel;
    uint64_t               life;

    while (i < b->n && b->links[i].used)
        i++;
    if (i == b->capacity)
        return false;
    l      = &b->links[i];
    wake   = l->wake;
    cancel = l->cancel;
    life   = l->life;
    near__lock(&b->lock);
    *l = (struct near__bus_link){
        .wake = wake, .cancel = cancel, .life = life, .tracker = true, .address = *address
    };
    near__unlock(&b->lock);
    if (near__link_init(l, b, &l->address, NULL) != NEAR_OK)
        return false;
    near__event_drain(l->wake);
    near__event_drain(l->cancel);
    near__lock(&b->lock);
    l->used = true;
    b->n    = i < b->n ? b->n : i + 1;
    near__unlock(&b->lock);
    l->running = near__thread_start(&l->thread, "near-bus", near__link_run, l) == NEAR_OK;
    if (l->running)
        return true;
    retire(l);
    return false;
}

/* Trackers for these and no others.  *changed: there were others.  False: not all could be made. */
static bool
follow(struct near__redis_bus *b, const struct primaries *primaries, bool *changed)
{
    bool whole = true;

    *changed = false;
    for (size_t i = b->publishing; i < b->n; i++) {
        if (!b->links[i].used || is_primary(primaries, &b->links[i].address))
            continue;
        *changed = true;
        retire(&b->links[i]);
    }
    for (size_t i = 0; i < primaries->n && whole; i++) {
        if (has_tracker(b, &primaries->at[i]))
            continue;
        *changed = true;
        whole    = start(b, &primaries->at[i]);
    }
    return whole;
}

static void
set_mapped(struct near__redis_bus *b, int64_t at)
{
    near__lock(&b->lock);
    b->mapped = at;
    pthread_cond_broadcast(&b->news);
    near__unlock(&b->lock);
}

/* A change of the set: nothing is served that was not read after the flush, and not before all trackers listen. */
static bool
adopt(struct near__redis_bus *b, const struct primaries *primaries)
{
    int64_t before = b->mapped; /* written by this thread alone */
    bool    changed, whole;

    set_mapped(b, INT64_MIN);
    whole = follow(b, primaries, &changed);
    if (changed)
        b->env.listener.subscribed(b->env.listener.ctx);
    else
        set_mapped(b, before);
    return whole;
}

static bool
read_nodes(struct near__redis_bus *b, int64_t deadline)
{
    struct primaries *primaries = calloc(1, sizeof(*primaries));
    char             *nodes     = ask(b, "NODES", deadline);
    bool              good      = primaries != NULL && nodes != NULL;

    for (char *line = nodes; good && *line != '\0';) {
        size_t size = strcspn(line, "\n");

        parse_node(line, size, &b->map_at, primaries);
        line += size + (line[size] == '\n');
    }
    if (good && primaries->too_many)
        note_refusal(b, "the cluster has too many primaries to listen to each");
    good = good && !primaries->too_many && primaries->n > 0 && adopt(b, primaries);
    free(nodes);
    free(primaries);
    return good;
}

/* Messages remain. */
static void
do_without(struct near__redis_bus *b)
{
    static const struct primaries none = { .n = 0 };
    bool                          changed;

    follow(b, &none, &changed);
    near__redis_conn_free(&b->map_conn);
    set_mapped(b, NEAR_NEVER);
    b->env.listener.subscribed(b->env.listener.ctx);
    near__bus_tell(b);
}

void
near__topology_check(struct near__redis_bus *b)
{
    int64_t asked    = near__now(b->env.clock);
    int64_t deadline = near__time_after(
        asked, b->env.silence < b->env.connect_timeout ? b->env.silence : b->env.connect_timeout);
    char summary[sizeof(b->map_summary)], *info;
    bool wanted, refused;

    if (b->mapped == NEAR_NEVER)
        return;
    near__lock(&b->lock);
    wanted        = b->map_wanted;
    b->map_wanted = false;
    refused       = b->refused;
    near__unlock(&b->lock);
    if (refused) {
        do_without(b);
        return;
    }
    info = ask(b, "INFO", deadline);
    if (info == NULL || !summarise(info, summary, sizeof(summary))) {
        near__redis_conn_free(&b->map_conn); /* perhaps another one knows better */
        free(info);
        return;
    }
    free(info);
    if (wanted || asked - b->map_read >= READ_AGAIN || strcmp(summary, b->map_summary) != 0) {
        if (!read_nodes(b, deadline))
            return;
        b->map_read = asked;
        memcpy(b->map_summary, summary, sizeof(summary));
    }
    set_mapped(b, asked);
    near__bus_tell(b);
}
