/*
 * The memory: bus.  Members of one name in one process hear each other; memory: without a name is a room of its own, where a member
 * hears only itself.
 *
 * No thread and no queue: publish() calls the listeners of all members, one after the other, in the publisher's thread, and
 * returns when they have returned.  So what was acknowledged has been delivered, the gate stays open for good (heard(NEAR_NEVER)
 * once) and a fence has nothing to wait for.
 *
 * Streams: several threads may publish through one member at once, and their messages reach a listener in any order.  To number
 * them in one stream would need an order over whole deliveries: a lock held while calling out, or publishers standing in line
 * for each other.  Instead every publish is a stream of its own, with one message, number 1.  That is the truth (nothing orders two
 * concurrent publishes) and nothing is lost by it: here no message can get lost, so there is no gap to notice.
 *
 * One lock for the process's registry of rooms covers the lists, the members' flags and counts.  It is not held while a listener is
 * called: the member is held in place by its count `busy`, for which stop() waits.
 *
 * fork(): the lock may be held, and members be busy, by threads that do not exist in the child.  So a registry belongs to a
 * process: a child makes a new one on its first open() and never locks the inherited one; inherited members are only freed.
 */
#include "coherence/bus.h"

#include "base/hash.h"
#include "base/le.h"
#include "base/lock.h"
#include "l2/stream.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct room;

struct registry {
    pid_t             pid;
    struct near__lock lock;
    pthread_cond_t    idle; /* some member's count `busy` came to 0 while it was stopping */
    struct room      *rooms;
    struct registry  *inherited; /* our parent's: kept in reach, never used */
};

struct room {
    char           name[sizeof(((struct near__uri *)0)->name)]; /* empty: private, not in the list */
    struct room   *next;
    struct member *members;
};

struct member {
    struct registry          *registry;
    struct room              *room;
    struct member            *next;
    struct near__bus_listener listener;
    unsigned                  busy; /* publishes through it and deliveries to it under way */
    bool                      stopping;
    bool                      forked;
};

static _Atomic(struct registry *) current;

/* This process's registry, made on first use and kept: NULL when out of memory. */
static struct registry *
registry_here(void)
{
    /* acquire, and release in the exchange: who finds a registry finds it initialised */
    struct registry *seen = atomic_load_explicit(&current, memory_order_acquire);
    struct registry *made;
    pid_t            pid = getpid();

    if (seen != NULL && seen->pid == pid)
        return seen;
    made = calloc(1, sizeof(*made));
    if (made == NULL)
        return NULL;
    made->pid       = pid;
    made->inherited = seen;
    near__lock_init(&made->lock, NEAR__RANK_REGISTRY);
    near__cond_init(&made->idle);
    /* uncovered: false for the second of two first members in the same moment */
    if (atomic_compare_exchange_strong_explicit(&current, &seen, made, memory_order_acq_rel,
                                                memory_order_acquire))
        return made;
    pthread_cond_destroy(&made->idle); /* another thread was first */
    near__lock_fini(&made->lock);
    free(made);
    return seen;
}

static struct room *
find_room_locked(struct registry *r, const char *name)
{
    struct room *room = r->rooms;

    while (room != NULL && strcmp(room->name, name) != 0)
        room = room->next;
    return room;
}

/* Into the room of this name, or into `spare` as a new one; the spare that was not needed is given back. */
static struct room *
enter(struct registry *r, struct member *member, const char *name, struct room *spare)
{
    struct room *room;

    near__lock(&r->lock);
    room = name[0] == '\0' ? NULL : find_room_locked(r, name);
    if (room == NULL) {
        room  = spare;
        spare = NULL;
        snprintf(room->name, sizeof(room->name), "%s", name);
        if (name[0] != '\0') {
            room->next = r->rooms;
            r->rooms   = room;
        }
    }
    member->room  = room;
    member->next  = room->members;
    room->members = member;
    near__unlock(&r->lock);
    return spare;
}

/* Out of the room; the last one out takes it away.  Returns the room to free, if any. */
static struct room *
leave_locked(struct registry *r, struct member *member)
{
    struct room    *room = member->room;
    struct member **link = &room->members;
    struct room   **at   = &r->rooms;

    while (*link != member)
        link = &(*link)->next;
    *link        = member->next;
    member->room = NULL;
    if (room->members != NULL)
        return NULL;
    while (*at != NULL && *at != room)
        at = &(*at)->next;
    if (*at == room)
        *at = room->next;
    return room;
}

static near_status
memory_open(void **self, const struct near__bus_env *env, near_error *error)
{
    struct registry *r      = registry_here();
    struct member   *member = calloc(1, sizeof(*member));
    struct room     *spare  = calloc(1, sizeof(*spare));

    *self = NULL;
    if (r == NULL || member == NULL || spare == NULL) {
        free(member);
        free(spare);
        return near__fail(error, NEAR_ERR_NOMEM, "bus memory:%s: out of memory", env->uri->name);
    }
    member->registry = r;
    member->listener = env->listener;
    *self            = member;
    /* in the room before subscribed(): what is published from then on is not missed.  What comes a moment earlier is a
     * message too many, which does no harm */
    free(enter(r, member, env->uri->name, spare));
    member->listener.subscribed(member->listener.ctx);
    member->listener.heard(member->listener.ctx, NEAR_NEVER);
    return NEAR_OK;
}

static void
put_down_locked(struct registry *r, struct member *member)
{
    if (--member->busy == 0 && member->stopping)
        pthread_cond_broadcast(&r->idle);
}

static void
deliver_to_all(struct registry *r, struct room *room, near_bytes message)
{
    near__lock(&r->lock);
    for (struct member *m = room->members; m != NULL; m = m->next) {
        if (m->stopping)
            continue;
        m->busy++; /* holds it in the list while the lock is open, so that its `next` is good afterwards */
        near__unlock(&r->lock);
        m->listener.message(m->listener.ctx, message);
        near__lock(&r->lock);
        put_down_locked(r, m);
    }
    near__unlock(&r->lock);
}

static bool
random_stream(uint64_t *stream)
{
    do {
        if (!near__random(stream, sizeof(*stream)))
            return false;
    } while (*stream == 0);
    return true;
}

static near_status
memory_publish(void *self, uint8_t *message, size_t size, size_t stamp_at, uint64_t *stream, int64_t deadline,
               near_error *error)
{
    struct member   *member = self;
    struct registry *r      = member->registry;
    bool             stopping;

    (void)deadline; /* nothing here waits */
    *stream = 0;
    near__lock(&r->lock);
    stopping = member->stopping;
    member->busy += !stopping;
    near__unlock(&r->lock);
    if (stopping)
        return near__fail(error, NEAR_ERR_CLOSED, "bus memory: closed");
    if (random_stream(stream)) {
        near__le64_put(message + stamp_at, *stream);
        near__le64_put(message + stamp_at + 8, 1);
        near__stream_claim(*stream);
        deliver_to_all(r, member->room, (near_bytes){ message, size });
        near__stream_disclaim(*stream);
    }
    near__lock(&r->lock);
    put_down_locked(r, member);
    near__unlock(&r->lock);
    if (*stream == 0)
        return near__fail(error, NEAR_ERR_UNAVAILABLE, "bus memory: the system gives no random bytes");
    return NEAR_OK;
}

static near_status
memory_fence(void *self, int64_t deadline, near_error *error)
{
    struct member *member = self;
    bool           stopping;

    (void)deadline;
    near__lock(&member->registry->lock);
    stopping = member->stopping;
    near__unlock(&member->registry->lock);
    return stopping ? near__fail(error, NEAR_ERR_CLOSED, "bus memory: closed") : NEAR_OK;
}

static void
memory_stop(void *self)
{
    struct member   *member = self;
    struct registry *r      = member->registry;
    struct room     *empty  = NULL;

    near__lock(&r->lock);
    member->stopping = true;
    while (member->busy > 0)
        near__cond_wait(&r->idle, &r->lock, NEAR_NEVER);
    if (member->room != NULL)
        empty = leave_locked(r, member);
    near__unlock(&r->lock);
    free(empty);
}

static void
memory_fini(void *self)
{
    struct member *member = self;

    if (member == NULL)
        return;
    if (!member->forked)
        memory_stop(member); /* again, or for an owner that failed half-way */
    else if (member->room != NULL && member->room->name[0] == '\0')
        free(
            member->room); /* ours alone; a named one stays in the inherited list, which nobody walks again */
    free(member);
}

static void
memory_forked(void *self)
{
    struct member *member = self;

    member->forked = true;
}

const struct near__bus_ops near__bus_memory = {
    .version = NEAR__BUS_OPS_V1,
    .scheme  = "memory",
    .open    = memory_open,
    .publish = memory_publish,
    .fence   = memory_fence,
    .stop    = memory_stop,
    .fini    = memory_fini,
    .forked  = memory_forked,
};
