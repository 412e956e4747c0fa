/*
 * Finding a word's home: a node is asked for the word as if it were a key.  Who serves its slot answers something, who does not says MOVED
 * and where to; so the connection that is handed out has just proved to lead there.  No state, no lock; nothing is written.
 */
#include "l2/redis_home.h"

#include "l2/redis_slots.h"

#include <stdlib.h>
#include <string.h>

#define HOPS 5

struct answer {
    const struct near__address *asked;
    bool                        home;
    bool                        moved;
    near_status                 status; /* neither: why */
    struct near__redirect       redirect;
    char                        word[64];
};

static bool
is_wrong_type(const redisReply *reply)
{
    return reply->len >= 9 && strncmp(reply->str, "WRONGTYPE", 9) == 0;
}

static void
take_answer(void *ctx, size_t index, redisReply *reply)
{
    struct answer *a = ctx;

    (void)index;
    a->home = reply->type != REDIS_REPLY_ERROR || is_wrong_type(reply);
    if (a->home)
        return;
    if (near__redirect_parse(&a->redirect, (near_bytes){ reply->str, reply->len }, a->asked)) {
        a->home  = a->redirect.ask; /* who asks others about some of its keys is still their owner */
        a->moved = !a->home;
        return;
    }
    a->status = near__redis_error_class(reply);
    near__redis_error_word(reply, a->word, sizeof(a->word));
}

/* Where is the word at home, in the words of who is at the other end? */
static near_status
ask(struct near__redis_conn *conn, const struct near__uri *uri, const char *word, struct answer *a,
    int64_t deadline, near_error *error)
{
    near_bytes  argv[2] = { near_key("GET"), near_key(word) };
    char        name[300];
    near_status status;

    *a     = (struct answer){ .asked = &uri->addresses[0] };
    status = near__redis_append(conn, 2, argv);
    if (status != NEAR_OK)
        return near__fail(error, status, "redis cluster: %s", near_status_text(status));
    status = near__redis_exchange(conn, take_answer, a, NULL, NULL, deadline, error);
    if (status != NEAR_OK || a->home || a->moved)
        return status;
    near__address_display(a->asked, name, sizeof(name));
    return near__fail(error, a->status, "redis %s: GET refused: %s", name, a->word);
}

/* From the address that stands in `uri`, which changes on the way. */
static near_status
follow(struct near__redis_conn **conn, const struct near__redis_server *server, struct near__uri *uri,
       const char *word, int64_t deadline, near_error *error)
{
    struct answer a;
    near_status   status = NEAR_OK;

    for (int hops = 0; hops <= HOPS && status == NEAR_OK; hops++) {
        status = near__redis_dial(conn, server, deadline, error);
        if (status == NEAR_OK)
            status = ask(*conn, uri, word, &a, deadline, error);
        if (status == NEAR_OK && a.home)
            return NEAR_OK;
        near__redis_conn_free(conn);
        if (status == NEAR_OK)
            uri->addresses[0] = a.redirect.to;
    }
    return status != NEAR_OK
               ? status
               : near__fail(error, NEAR_ERR_UNAVAILABLE, "redis cluster: redirects without an end");
}

static near_status
find(struct near__redis_conn **conn, const struct near__redis_server *server, struct near__uri *uri,
     const char *word, int64_t deadline, near_error *error)
{
    const struct near__uri *seeds  = server->uri;
    near_status             status = NEAR_ERR_UNAVAILABLE;

    for (size_t i = 0; i < seeds->address_count; i++) {
        int64_t                   now  = near__now(server->clock);
        int64_t                   part = (deadline - now) / (int64_t)(seeds->address_count - i);
        struct near__redis_server one  = *server;

        one.uri            = uri;
        uri->addresses[0]  = seeds->addresses[i];
        uri->address_count = 1;
        uri->layout        = NEAR__LAYOUT_SINGLE;
        status             = follow(conn, &one, uri, word, now + part, error);
        if (status == NEAR_OK || status == NEAR_ERR_CLOSED || status == NEAR_ERR_DENIED)
            break;
    }
    return status;
}

near_status
near__redis_dial_home(struct near__redis_conn **conn, const struct near__redis_server *server,
                      const char *word, struct near__address *at, int64_t deadline, near_error *error)
{
    struct near__uri *uri;
    near_status       status;

    if (server->uri->layout != NEAR__LAYOUT_CLUSTER)
        return near__redis_dial(conn, server, deadline, error);
    *conn = NULL;
    uri   = malloc(sizeof(*uri));
    if (uri == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "redis cluster: out of memory");
    *uri   = *server->uri;
    status = find(conn, server, uri, word, deadline, error);
    if (at != NULL)
        *at = uri->addresses[0];
    explicit_bzero(uri, sizeof(*uri)); /* it holds the password */
    free(uri);
    return status;
}
