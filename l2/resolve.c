/*
 * The process's resolver.
 *
 *     name     what is known of one host: the last good answer, and the lookup that is under way, if any
 *     lookup   one call of getaddrinfo(): waits in the queue, is run by a worker, and is waited for by any number of callers
 *
 * One lock (rank LEAF) covers everything that is static here and what hangs on it; it is not held while asking, waiting or starting
 * threads.  A lookup is counted: one reference of the queue or its worker, one of each caller; who drops the last frees it.  Its
 * event is raised once, when it is done, and never drained, so that everybody sees it.  A name with a lookup is not removed.
 *
 * In a forked child there are no workers: the lookups of the parent are forgotten there, the answers are kept.
 *
 * What can never happen: a caller that waits for the system's resolver past its deadline, two lookups of one name at a time, more
 * threads than the bound.
 */
#include "l2/resolve.h"

#include "base/event.h"
#include "base/lock.h"
#include "base/thread.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAMES 64 /* the most that is remembered: a URI has that many at most */
/* How long an answer is not asked for again: dials come in bursts when a server has gone, and an address that changed may be found out
 * this much later. */
#define FRESH (500 * NEAR_MS)
/* How long the resolver is waited for where there is an old answer to go on with: a local cache answers in less than a millisecond, a
 * near server in a few. */
#define PATIENCE (50 * NEAR_MS)

struct lookup {
    struct lookup        *next; /* in the queue */
    struct name          *name;
    unsigned              refs;
    int                   fd; /* readable: done */
    bool                  done;
    int                   code; /* 0 or EAI_ */
    struct near__resolved found;
};

struct name {
    struct name          *next; /* the one used last comes first */
    struct lookup        *lookup;
    int64_t               good_at; /* near__clock_system's time */
    struct near__resolved good;    /* n = 0: none yet */
    char                  host[sizeof(((struct near__address *)0)->host)];
};

static pthread_once_t    once = PTHREAD_ONCE_INIT;
static bool              ready;
static struct near__lock lock;
static struct name      *names;
static struct lookup    *queue, **queue_end = &queue;
static size_t            threads;
static near__resolve_fn  ask_system;
static int64_t           fresh = FRESH;

/* ---- the system's resolver */

static void
keep_addresses(struct near__resolved *found, const struct addrinfo *list)
{
    for (const struct addrinfo *a = list; a != NULL && found->n < NEAR__RESOLVE_ADDRESSES; a = a->ai_next) {
        if (a->ai_addrlen > sizeof(found->at[0].address))
            continue;
        memcpy(&found->at[found->n].address, a->ai_addr, a->ai_addrlen);
        found->at[found->n++].size = a->ai_addrlen;
    }
}

static int
ask(const char *host, int flags, struct near__resolved *found)
{
    struct addrinfo hints = { .ai_flags = flags, .ai_socktype = SOCK_STREAM }, *list = NULL;
    int             code = getaddrinfo(host, NULL, &hints, &list);

    found->n = 0;
    if (code != 0)
        return code;
    keep_addresses(found, list);
    freeaddrinfo(list);
    return found->n > 0 ? 0 : EAI_NONAME;
}

static int
ask_getaddrinfo(const char *host, struct near__resolved *found)
{
    return ask(host, 0, found);
}

/* ---- birth and fork */

static void
drop_locked(struct lookup *lookup)
{
    if (--lookup->refs > 0)
        return;
    near__event_close(&lookup->fd);
    free(lookup);
}

static void
before_fork(void)
{
    pthread_mutex_lock(&lock.mutex); /* whatever else the forking thread holds: no rank is checked */
}

static void
after_fork(void)
{
    pthread_mutex_unlock(&lock.mutex);
}

/* Neither the workers nor the other callers are here. */
static void
in_child(void)
{
    for (struct name *name = names; name != NULL; name = name->next) {
        if (name->lookup == NULL)
            continue;
        name->lookup->refs = 1;
        drop_locked(name->lookup);
        name->lookup = NULL;
    }
    queue     = NULL;
    queue_end = &queue;
    threads   = 0;
    pthread_mutex_unlock(&lock.mutex);
}

static void
start_up(void)
{
    near__lock_init(&lock, NEAR__RANK_LEAF);
    ask_system = ask_getaddrinfo;
    ready      = pthread_atfork(before_fork, after_fork, in_child) == 0;
}

/* ---- workers */

static struct lookup *
next_locked(void)
{
    struct lookup *lookup = queue;

    if (lookup == NULL)
        return NULL;
    queue = lookup->next;
    if (queue == NULL)
        queue_end = &queue;
    return lookup;
}

/* The resolver's own: an answer from before is as good as ever.  Else it says that there is no such name. */
static bool
is_trouble(int code)
{
    return code == EAI_AGAIN || code == EAI_FAIL || code == EAI_SYSTEM || code == EAI_MEMORY;
}

static void
finish_locked(struct lookup *lookup, int code, const struct near__resolved *found)
{
    lookup->done = true;
    lookup->code = code;
    if (code == 0) {
        lookup->name->good    = *found;
        lookup->name->good_at = near__now(&near__clock_system);
    } else if (!is_trouble(code)) {
        lookup->name->good.n = 0;
    }
    lookup->found        = lookup->name->good;
    lookup->name->lookup = NULL;
    near__event_raise(lookup->fd);
    drop_locked(lookup);
}

static void *
work(void *ctx)
{
    struct near__resolved found = { 0 };
    struct lookup        *lookup;
    near__resolve_fn      fn;

    (void)ctx;
    near__lock(&lock);
    while ((lookup = next_locked()) != NULL) {
        char host[sizeof(lookup->name->host)];
        int  code;

        memcpy(host, lookup->name->host, sizeof(host));
        fn = ask_system;
        near__unlock(&lock);
        code = fn(host, &found);
        near__lock(&lock);
        finish_locked(lookup, code, &found);
    }
    threads--;
    near__unlock(&lock);
    return NULL;
}

/* A place has been counted for it.  When no thread can be had and none is there, nobody would answer. */
static void
start_worker(void)
{
    static const struct near__resolved none;
    pthread_t                          thread;
    struct lookup                     *lookup;

    if (near__thread_start(&thread, "near-resolve", work, NULL) == NEAR_OK) {
        pthread_detach(thread); /* it ends by itself, and nobody could wait for it by a deadline */
        return;
    }
    near__lock(&lock);
    threads--;
    while (threads == 0 && (lookup = next_locked()) != NULL)
        finish_locked(lookup, EAI_MEMORY, &none);
    near__unlock(&lock);
}

/* ---- callers */

/* The name, in front now; made when it is new.  NULL: out of memory. */
static struct name *
name_locked(const char *host)
{
    struct name **at, *name, **oldest = NULL;
    size_t        n = 0;

    for (at = &names; *at != NULL && strcmp((*at)->host, host) != 0; at = &(*at)->next, n++)
        if ((*at)->lookup == NULL)
            oldest = at;
    if (*at == NULL && n >= NAMES && oldest != NULL) {
        name    = *oldest;
        *oldest = name->next;
        memset(name, 0, sizeof(*name));
    } else if (*at == NULL) {
        name = calloc(1, sizeof(*name));
    } else {
        name = *at;
        *at  = name->next;
    }
    if (name == NULL)
        return NULL;
    snprintf(name->host, sizeof(name->host), "%s", host);
    name->next = names;
    names      = name;
    return name;
}

static struct lookup *
new_lookup_locked(struct name *name)
{
    struct lookup *lookup = calloc(1, sizeof(*lookup));

    if (lookup == NULL)
        return NULL;
    lookup->fd = near__event_open();
    if (lookup->fd < 0) {
        free(lookup);
        return NULL;
    }
    lookup->refs = 1; /* the queue's */
    lookup->name = name;
    name->lookup = lookup;
    *queue_end   = lookup;
    queue_end    = &lookup->next;
    return lookup;
}

/* What is known already: a fresh answer in `found` (NULL is returned and found->n > 0), or a lookup to wait for, held. */
static struct lookup *
join(const char *host, struct near__resolved *found, bool *has_old)
{
    struct lookup *lookup = NULL;
    struct name   *name;
    bool           hire = false;

    near__lock(&lock);
    name     = name_locked(host);
    *has_old = name != NULL && name->good.n > 0;
    if (*has_old && name->lookup == NULL && near__now(&near__clock_system) - name->good_at < fresh) {
        *found = name->good;
    } else if (name != NULL) {
        lookup = name->lookup;
        if (lookup == NULL) {
            lookup = new_lookup_locked(name);
            hire   = lookup != NULL && threads < NEAR__RESOLVE_THREADS;
            threads += hire;
        }
        if (lookup != NULL)
            lookup->refs++;
    }
    near__unlock(&lock);
    if (hire)
        start_worker();
    return lookup;
}

static near_status
wait_for(const struct lookup *lookup, int cancel_fd, const struct near__clock *clock, int64_t until)
{
    struct pollfd fds[2] = { { lookup->fd, POLLIN, 0 }, { cancel_fd, POLLIN, 0 } };

    for (;;) {
        int64_t now = near__now(clock);
        int     got = poll(fds, 2, near__poll_timeout(now, until));

        if (got < 0 && errno != EINTR)
            return NEAR_ERR_UNAVAILABLE;
        if (got > 0)
            return fds[1].revents != 0 ? NEAR_ERR_CLOSED : NEAR_OK;
        if (now >= until)
            return NEAR_ERR_TIMEOUT;
    }
}

/* What came of it; `status` is how the wait ended.  The lookup is let go. */
static near_status
leave(struct lookup *lookup, near_status status, struct near__resolved *found, near_error *error)
{
    const struct name *name = lookup->name; /* if the lookup is not done; else it may be gone */
    int                code = EAI_AGAIN;
    bool               done;

    near__lock(&lock);
    done = lookup->done;
    if (done) {
        code   = lookup->code;
        *found = lookup->found;
    } else {
        *found = name->good;
    }
    drop_locked(lookup);
    near__unlock(&lock);
    if (status == NEAR_ERR_CLOSED)
        return near__fail(error, status, "looking the name up was given up");
    if (found->n > 0)
        return NEAR_OK;
    if (!done)
        return near__fail(error, status, "the resolver does not answer");
    return near__fail(error, code == EAI_MEMORY ? NEAR_ERR_NOMEM : NEAR_ERR_UNAVAILABLE,
                      "cannot resolve the name: %s", gai_strerror(code));
}

static near_status
look_up(const char *host, struct near__resolved *found, int cancel_fd, const struct near__clock *clock,
        int64_t deadline, near_error *error)
{
    int64_t        now = near__now(clock), until;
    bool           has_old;
    struct lookup *lookup = join(host, found, &has_old);

    if (found->n > 0)
        return NEAR_OK;
    if (lookup == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "no memory or descriptors to look the name up");
    until = has_old && deadline > now + PATIENCE ? now + PATIENCE : deadline;
    return leave(lookup, wait_for(lookup, cancel_fd, clock, until), found, error);
}

static void
set_ports(struct near__resolved *found, uint16_t port)
{
    for (size_t i = 0; i < found->n; i++) {
        struct sockaddr *address = (struct sockaddr *)&found->at[i].address;

        if (address->sa_family == AF_INET)
            ((struct sockaddr_in *)address)->sin_port = htons(port);
        else if (address->sa_family == AF_INET6)
            ((struct sockaddr_in6 *)address)->sin6_port = htons(port);
    }
}

near_status
near__resolve(const struct near__address *address, struct near__resolved *found, int cancel_fd,
              const struct near__clock *clock, int64_t deadline, near_error *error)
{
    near_status status = NEAR_OK;

    pthread_once(&once, start_up);
    found->n = 0;
    if (!ready)
        return near__fail(error, NEAR_ERR_NOMEM, "out of memory");
    if (ask(address->host, AI_NUMERICHOST, found) != 0)
        status = look_up(address->host, found, cancel_fd, clock, deadline, error);
    if (status == NEAR_OK)
        set_ports(found, address->port);
    return status;
}

/* ---- for tests */

void
near__resolve_test(near__resolve_fn fn, int64_t fresh_for)
{
    pthread_once(&once, start_up);
    near__lock(&lock);
    ask_system = fn != NULL ? fn : ask_getaddrinfo;
    fresh      = fresh_for < 0 ? FRESH : fresh_for;
    for (struct name **at = &names; *at != NULL;) {
        struct name *name = *at;

        name->good.n = 0;
        if (name->lookup != NULL) {
            at = &name->next;
            continue;
        }
        *at = name->next;
        free(name);
    }
    near__unlock(&lock);
}

size_t
near__resolve_threads(void)
{
    size_t n;

    pthread_once(&once, start_up);
    near__lock(&lock);
    n = threads;
    near__unlock(&lock);
    return n;
}
