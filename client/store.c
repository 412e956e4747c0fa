/*
 * See store.h.  A batch is one block: the writes, what the store sees of them, and the bytes of keys and values.
 *
 * A write is PENDING until it is answered; the first answer stands.  The batch is over when none is pending or its deadline has passed;
 * whoever finds that first (an answer, the timer, the waiting caller) says so to `done`, once.  An answer that comes later goes to
 * `late`.  The last reference, of the waiting or beginning call, the timer and the unanswered writes, frees it.
 */
#include "store.h"

#include "back.h"

#include <stdlib.h>
#include <string.h>

#include "cache.h"

struct call;

struct near_write {
    struct call             *call;
    struct near__store_item *item;
    bool                     answered; /* call's lock */
};

struct call {
    struct near__lock         lock;
    pthread_cond_t            over_changed;
    unsigned                  refs;    /* lock */
    size_t                    pending; /* lock */
    bool                      over;    /* lock: `done` is told, or somebody is about to */
    bool                      timed;   /* the timer has a reference; lock */
    near_cache               *cache;   /* a reference */
    int64_t                   began;   /* when the store was called */
    struct near__store_ending ending;
    struct near__timer        timer;
    size_t                    n;
    struct near__store_item  *items;
    near_write              **pointers; /* what the store sees; it may read them until the last is answered */
    near_write                writes[];
};

/* How many stores this thread is in. */
static __thread unsigned stores_entered;

bool
near__store_nested(void)
{
    return stores_entered > 0;
}

uint64_t
near__store_origin(const near_client *client)
{
    return client->write_origin;
}

uint64_t
near__store_sequence(near_client *client)
{
    /* relaxed: all that matters is that nobody gets it twice */
    return atomic_fetch_add_explicit(&client->write_sequence, 1, memory_order_relaxed) + 1;
}

/* ---- the batch */

static near_bytes
copy(uint8_t **at, near_bytes bytes)
{
    uint8_t *to = *at;

    if (bytes.data == NULL)
        return (near_bytes){ NULL, 0 };
    if (bytes.size > 0)
        memcpy(to, bytes.data, bytes.size);
    *at += bytes.size;
    return (near_bytes){ to, bytes.size };
}

static struct call *
call_new(near_cache *cache, const struct near__store_item *items, size_t n,
         const struct near__store_ending *ending)
{
    size_t bytes = 1; /* so that an empty value at the end has an address inside */
    size_t fixed = sizeof(struct call) + n * (sizeof(near_write) + sizeof(*items) + sizeof(near_write *));
    struct call *call;
    uint8_t     *at;

    for (size_t i = 0; i < n; i++)
        bytes += items[i].key.size + items[i].data.size;
    call = malloc(fixed + bytes);
    if (call == NULL)
        return NULL;
    memset(call, 0, fixed);
    near__lock_init(&call->lock, NEAR__RANK_LOAD);
    near__cond_init(&call->over_changed);
    call->refs     = (unsigned)n + 1;
    call->pending  = n;
    call->cache    = cache;
    call->began    = near__client_now(cache->client);
    call->n        = n;
    call->ending   = *ending;
    call->items    = (struct near__store_item *)&call->writes[n];
    call->pointers = (near_write **)&call->items[n];
    at             = (uint8_t *)&call->pointers[n];
    for (size_t i = 0; i < n; i++) {
        call->items[i]          = items[i];
        call->items[i].key      = copy(&at, items[i].key);
        call->items[i].data     = copy(&at, items[i].data);
        call->items[i].status   = NEAR_ERR_TIMEOUT;
        call->items[i].answered = false;
        call->writes[i]         = (near_write){ .call = call, .item = &call->items[i] };
        call->pointers[i]       = &call->writes[i];
    }
    atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    return call;
}

static void
call_free(struct call *call)
{
    near_cache *cache = call->cache;

    near__lock_fini(&call->lock);
    pthread_cond_destroy(&call->over_changed);
    free(call);
    near__cache_release(cache);
}

static void
call_release(struct call *call)
{
    bool last;

    near__lock(&call->lock);
    last = --call->refs == 0;
    near__unlock(&call->lock);
    if (last)
        call_free(call);
}

/* From here on answers are late.  True: the caller is the one to say so. */
static bool
end_locked(struct call *call)
{
    bool first = !call->over;

    if (first)
        near__time(call->cache, NEAR__TIME_store, near__client_now(call->cache->client) - call->began);
    call->over = true;
    pthread_cond_broadcast(&call->over_changed);
    return first;
}

/* What `done` is told are copies: late answers may come while it looks at them. */
static void
tell(struct call *call)
{
    if (call->ending.done != NULL)
        call->ending.done(call->ending.ctx, call->items, call->n);
}

static void
time_is_up(void *ctx)
{
    struct call *call = ctx;
    bool         mine, had;

    near__lock(&call->lock);
    mine        = end_locked(call);
    had         = call->timed; /* false: it was not armed, and an answer gave its reference back */
    call->timed = false;
    near__unlock(&call->lock);
    if (mine)
        tell(call);
    if (had)
        call_release(call);
}

static void
enter_store(near_cache *cache, struct call *call)
{
    stores_entered++;
    cache->store(call->pointers, call->n, cache->store_ctx);
    stores_entered--;
}

static near_status
call_open(near_cache *cache, const struct near__store_item *items, size_t n,
          const struct near__store_ending *ending, struct call **pcall)
{
    struct call *call;

    if (cache->store == NULL)
        return NEAR_ERR_UNSUPPORTED;
    if (!near__cache_work_begins(cache, n))
        return NEAR_ERR_CLOSED;
    call = call_new(cache, items, n, ending);
    if (call == NULL) {
        near__cache_work_ends(cache, n);
        return NEAR_ERR_NOMEM;
    }
    *pcall = call;
    return NEAR_OK;
}

near_status
near__store_write(near_cache *cache, struct near__store_item *items, size_t n, int64_t deadline,
                  near__store_late_fn late, void *ctx)
{
    const struct near__store_ending ending = { .late = late, .ctx = ctx };
    struct call                    *call;
    near_status                     status = call_open(cache, items, n, &ending, &call);
    bool                            more   = true;

    for (size_t i = 0; status != NEAR_OK && i < n; i++)
        items[i].status = status;
    if (status != NEAR_OK)
        return status;
    enter_store(cache, call);
    near__lock(&call->lock);
    while (call->pending > 0 && more)
        more = near__cond_wait(&call->over_changed, &call->lock, deadline);
    end_locked(call);
    for (size_t i = 0; i < n; i++) {
        items[i].status   = call->items[i].status;
        items[i].answered = call->items[i].answered;
    }
    near__unlock(&call->lock);
    call_release(call);
    return NEAR_OK;
}

near_status
near__store_begin(near_cache *cache, const struct near__store_item *items, size_t n, int64_t deadline,
                  const struct near__store_ending *ending)
{
    struct near__scheduler *scheduler = &cache->client->scheduler;
    struct call            *call;
    near_status             status = call_open(cache, items, n, ending, &call);
    bool                    armed;

    if (status != NEAR_OK)
        return status;
    near__timer_init(&call->timer, time_is_up, call);
    call->timed = true;
    call->refs++;
    armed = deadline == NEAR_NEVER || near__timer_arm(scheduler, &call->timer, deadline) == NEAR_OK;
    enter_store(cache, call);
    if (!armed)
        time_is_up(call); /* nobody else would: what has not been answered by now is late */
    call_release(call);
    return NEAR_OK;
}

/* ---- the store's side */

near_bytes
near_write_key(const near_write *write)
{
    return write != NULL ? write->item->key : (near_bytes){ NULL, 0 };
}

near_bytes
near_write_data(const near_write *write)
{
    return write != NULL ? write->item->data : (near_bytes){ NULL, 0 };
}

uint64_t
near_write_origin(const near_write *write)
{
    return write != NULL ? write->item->origin : 0;
}

uint64_t
near_write_sequence(const near_write *write)
{
    return write != NULL ? write->item->sequence : 0;
}

bool
near_write_conflict(const near_write *write)
{
    return write != NULL && write->item->conflict;
}

/* The timer's reference, unless it has run.  No lock held: it may be running. */
static void
forget_timer(struct call *call)
{
    bool armed;

    near__timer_disarm(&call->cache->client->scheduler, &call->timer);
    near__lock(&call->lock);
    armed       = call->timed;
    call->timed = false;
    near__unlock(&call->lock);
    if (armed)
        call_release(call);
}

/* The one way an answer takes. */
static void
answer(near_write *write, near_status status)
{
    struct call            *call = write->call;
    struct near__store_item late = { .status = status };
    bool                    mine = false, timed, is_late;

    if (*call->cache->client->alive == 0)
        return; /* in a child: the write is the parent's to answer */
    near__lock(&call->lock);
    if (write->answered) { /* twice, and the memory is still there: the first answer stands */
        near__unlock(&call->lock);
        return;
    }
    write->answered = true;
    is_late         = call->over;
    if (is_late) {
        late        = *write->item;
        late.status = status;
    } else {
        write->item->status   = status;
        write->item->answered = true;
        mine                  = --call->pending == 0 && end_locked(call);
    }
    timed = mine && call->timed;
    near__unlock(&call->lock);
    if (is_late && call->ending.late != NULL)
        call->ending.late(call->ending.ctx, &late);
    if (mine)
        tell(call);
    if (timed)
        forget_timer(call);
    near__cache_work_ends(call->cache, 1);
    call_release(call);
}

void
near_write_done(near_write *write)
{
    if (write != NULL)
        answer(write, NEAR_OK);
}

void
near_write_fail(near_write *write, near_status status)
{
    if (write != NULL)
        answer(write, status < 0 ? status : NEAR_ERR_UNAVAILABLE);
}

void
near_cache_set_store(near_cache *cache, near_store_fn fn, void *ctx)
{
    if (near__cache_check(cache) != NEAR_OK)
        return;
    cache->store     = fn;
    cache->store_ctx = ctx;
    near__back_start(cache);
}
