/*
 * Lanes: see lane.h.
 *
 *     caller     -> inbox (a stack, one CAS) -> sleeps on words[epoch], or leads
 *     leader        inbox -> waiting -> begin: bytes into `out` -> outstanding -> receive: answered, its caller wakes
 *
 * Who owns what.  `inbox`, `leader`, `words` and `since` are everybody's.  The rest of a lane belongs to its leader, who holds it by
 * `leader` (acquire on taking, seq_cst on leaving).  A call belongs to its caller until it is in the inbox and after its state is
 * DONE; in between to the leader of its lane, who changes.  Only the caller may give it up, and only the leader frees it then.
 *
 *     state of a call    QUEUED -> SENT -> DONE            by leaders
 *                        QUEUED | SENT -> ABANDONED        by its caller: from QUEUED it is certain that it never leaves
 *
 * A leader takes what lies in the inbox once: those calls are a batch, and have an epoch in common.  Their callers sleep on one futex and
 * are woken together when the leader is done with the batch, or has to leave it to one of them.  Those who come meanwhile are the next
 * epoch; on leaving he wakes one of them to lead it.  The inbox's head word holds the epoch in its low bits.
 *
 * Who has calls on several lanes that others lead sleeps on the futexes of all: any of them may bring news, or the turn to lead.
 *
 * Lost wake-ups cannot happen: whoever pushes tries to lead afterwards, and whoever leaves looks at the inbox afterwards, all in one
 * order (seq_cst), so one of them sees the other; a sleeper reads its futex before it tries, and leaders change it after they left.
 * Who gives up may have been the one that was woken to lead, so he wakes another.
 *
 * A connection is dropped when it failed, when a reply makes no sense, and when nobody is left who waits for what is outstanding on it
 * and either the server has been silent (see below) or a write is outstanding: that must not be executed later than it has to.  Else
 * who gives up leaves alone, the replies are matched by their order, and the next leader reads them away.  A connection that has kept
 * everybody waiting for SLOW is avoided by those who come, as long as there are others.
 *
 * A server is silent when it owed us something for `silence` and not a byte came: measured on the connection (`quiet`), however short
 * the deadlines of those who wait.  That opens the breaker, once for all who waited, unless another connection has heard of the server
 * meanwhile.  What counts is what the server has sent, not what we have read: where the machine is busy, replies lie in sockets whose
 * leader does not get to run, and who gives up looks there first.  Dials that were broken off because their caller had no more time count
 * with the time that they had, as far as no other connection works.
 *
 * A dial that fails while another connection of the same server works (it takes no more clients, say) opens nothing: the calls move to
 * a lane that works, and for SPARE nobody is sent to one without a connection.  So it is after a dial that was broken off.
 */
#include "l2/lane.h"

#include "base/futex.h"
#include "base/hash.h"
#include "l2/breaker.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BASE       2 /* lanes that threads are spread over: more makes batches smaller for nothing gained */
#define APART      4 /* lanes over which few callers spread: a wake-up costs more than a sending of one's own */
#define SLOW       (2 * NEAR_MS) /* a batch that is out for longer sends newcomers to another lane */
#define YIELDS     2             /* before a follower sleeps */
#define LONG_YIELD NEAR_MS
#define EACH_YIELD (NEAR_MS / 8) /* more for each of the others, who have their turn first */
#define IMPOLITE   50
#define LOOK       (NEAR_MS / 4) /* how often who leads one lane looks whether another of his needs a leader */
#define READ_SIZE  ((size_t)64 * 1024)
#define PIECES     128           /* per sendmsg() */
#define TURNS      16            /* reads or writes before the leader looks at the time and at his own call */
#define GROUP      64            /* calls of one run that are under way together */
#define LATELY     (NEAR_MS / 4) /* a connection that was heard of since then is in use, not idle */
#define TRIES      3             /* connections that one call may lose */
#define SPARE      (500 * NEAR_MS) /* between dials of a server that refused one and works on other connections */
/* A server that says nothing for as long as a dial, or an answer, may take is down, within these bounds: shorter are pauses and lost
 * packets, and for longer nobody should pay. */
#define SILENCE_LEAST (100 * NEAR_MS)
#define SILENCE_MOST  (500 * NEAR_MS)
#define EPOCHS        16u /* fit the low bits of a pointer from malloc */
#define WORDS         4u  /* futexes: epochs apart enough that few sleepers wake for others */

enum { QUEUED, SENT, DONE, ABANDONED };
enum {
    ELSEWHERE = NEAR__LANE_GIVEN_UP + 1
}; /* an outcome between ourselves: NOT_SENT, but other lanes work */

struct near__lane_out {
    struct iovec *pieces;
    size_t        first, n, capacity;
    uint64_t      put, sent; /* bytes in the life of the connection */
    unsigned
        holds; /* pieces from holds_at[0] on are not to be sent yet, those from holds_at[1] on not after that */
    size_t holds_at[NEAR__LANE_HOLDS];
};

struct queue {
    struct near__lane_call *first, **end;
};

struct near__lane {
    alignas(64) _Atomic uintptr_t inbox; /* newest call | epoch */
    _Atomic uint32_t leader;
    _Atomic uint32_t words[WORDS];
    _Atomic unsigned users; /* calls between admission and settlement: stop() waits for 0 */
    _Atomic int64_t  since; /* when the batch under way went out; 0: none */
    /* written by leaders, relaxed: hints for who gives up and who picks a lane */
    _Atomic int64_t quiet;  /* not a byte since then, though something is outstanding; 0: nothing is */
    _Atomic int64_t polite; /* from then on callers may give way to others */
    _Atomic int64_t alive;  /* heard of the server at this time, or a little later; 0: never */
    _Atomic bool    connected;
    _Atomic int     fd;    /* of the connection, to look at; -1: none */
    _Atomic bool    doubt; /* a write that was given up is outstanding here, perhaps */

    /* the leader's */
    alignas(64) struct near__lanes *lanes;
    void                   *conn;
    struct near__transport *transport;
    char                   *in;
    struct queue            waiting, outstanding;
    struct near__lane_out   out;
    unsigned                touched; /* words whose sleepers have something to see */
    unsigned                epoch;
};

struct near__lanes {
    struct near__lanes_env env;
    struct near__breaker   breaker;
    unsigned     normal; /* lanes [0, normal), and one for bulk transfers behind them if there are several */
    _Atomic bool closed, probe; /* probe: a dial is allowed though the breaker is open */
    bool         forked;
    int64_t      silence;
    _Atomic unsigned  doubts;      /* lanes in doubt */
    int64_t           hurried;     /* ns of dials in a row that were broken off; his who dials */
    _Atomic int64_t   spare_until; /* until then only lanes that are connected are used, if there are any */
    _Atomic uint32_t  dialling;    /* futex: 1 while somebody dials */
    _Atomic uint64_t  connects, disconnects, calls, batches;
    struct near__lane lane[];
};

/* One run, on its caller's stack. */
struct run {
    struct near__lane_ask *asks;
    size_t                 n, open;
    int64_t                began, now, deadline;
    struct near__lane     *led[GROUP];
    size_t                 led_count;
    bool                   ending; /* it is giving up: nothing is begun any more */
    bool                   moved;  /* a call was put on another lane: look before sleeping */
    bool                   slow;   /* it has slept in vain: no more of near__transport_await() */
    near_error            *error;  /* the caller's; filled by the first failure */
};

/* seq_cst: after whatever the sleeper is to see, before it looks at the word. */
static void
wake(struct near__lane *lane, unsigned word, int sleepers)
{
    atomic_fetch_add(&lane->words[word], 1);
    near__futex_wake(&lane->words[word], sleepers);
}

/* ----------------------------------------------------------------------------------------------- queues */

static void
queue_init(struct queue *queue)
{
    queue->first = NULL;
    queue->end   = &queue->first;
}

static void
enqueue(struct queue *queue, struct near__lane_call *call)
{
    call->next  = NULL;
    *queue->end = call;
    queue->end  = &call->next;
}

static struct near__lane_call *
dequeue(struct queue *queue)
{
    struct near__lane_call *call = queue->first;

    queue->first = call->next;
    if (queue->first == NULL)
        queue->end = &queue->first;
    return call;
}

/* The first of `back` go before what is in `queue`. */
static void
put_before(struct queue *queue, struct queue *back)
{
    if (back->first == NULL)
        return;
    *back->end = queue->first;
    if (queue->first == NULL)
        queue->end = back->end;
    queue->first = back->first;
    queue_init(back);
}

/* ------------------------------------------------------------------------------------- bytes to be sent */

static bool
room_for_piece(struct near__lane_out *out)
{
    size_t        capacity = out->capacity == 0 ? 16 : out->capacity * 2;
    struct iovec *more;

    if (out->n < out->capacity)
        return true;
    more = reallocarray(out->pieces, capacity, sizeof(*more));
    if (more == NULL)
        return false;
    out->pieces   = more;
    out->capacity = capacity;
    return true;
}

/* It lies right behind what was put last: one piece with it, unless that may be sent and this may not. */
static bool
extends_last(const struct near__lane_out *out, const void *data)
{
    const struct iovec *last = out->pieces + out->n - 1;

    return out->n > out->first && (out->holds == 0 || out->holds_at[out->holds - 1] != out->n) &&
           (const char *)last->iov_base + last->iov_len == data;
}

bool
near__lane_put(struct near__lane_out *out, struct near__lane_call *call, const void *data, size_t size)
{
    bool extends = out->n > 0 && extends_last(out, data);

    if (!extends && !room_for_piece(out))
        return false;
    if (call->from == call->to)
        call->from = out->put;
    if (extends)
        out->pieces[out->n - 1].iov_len += size;
    else
        out->pieces[out->n++] = (struct iovec){ (void *)(uintptr_t)data, size };
    out->put += size;
    call->to = out->put;
    return true;
}

void
near__lane_put_with(struct near__lane_call *call, const struct near__lane_call *with)
{
    call->from = with->from;
    call->to   = with->to;
}

void
near__lane_hold(struct near__lane_out *out)
{
    if (out->holds < NEAR__LANE_HOLDS)
        out->holds_at[out->holds++] = out->n;
}

void
near__lane_release(struct near__lane_out *out)
{
    if (out->holds > 0)
        memmove(out->holds_at, out->holds_at + 1, --out->holds * sizeof(out->holds_at[0]));
}

static size_t
sendable(const struct near__lane_out *out)
{
    return (out->holds > 0 ? out->holds_at[0] : out->n) - out->first;
}

static void
out_reset(struct near__lane_out *out)
{
    out->first = out->n = 0;
    out->put = out->sent = 0;
    out->holds           = 0;
}

static void
advance(struct near__lane_out *out, size_t bytes)
{
    out->sent += bytes;
    while (out->first < out->n && bytes >= out->pieces[out->first].iov_len)
        bytes -= out->pieces[out->first++].iov_len;
    if (out->first == out->n) {
        out->first = out->n = 0;
        return;
    }
    out->pieces[out->first].iov_base = (char *)out->pieces[out->first].iov_base + bytes;
    out->pieces[out->first].iov_len -= bytes;
}

/* ------------------------------------------------------------------------------------- ends of calls */

static void
free_call(struct near__lane *lane, struct near__lane_call *call)
{
    lane->lanes->env.codec->free_call(call);
}

/* Hand it to its caller.  Afterwards it may be gone. */
static void
finish(struct near__lane *lane, struct run *run, struct near__lane_call *call,
       enum near__lane_outcome outcome)
{
    if (call->run != run)
        lane->touched |= 1u << (call->epoch % WORDS);
    call->outcome = (uint8_t)outcome;
    /* release: its caller sees replies and outcome; acquire: who abandoned it has stopped touching it */
    if (atomic_exchange_explicit(&call->state, DONE, memory_order_acq_rel) == ABANDONED)
        free_call(lane, call);
}

bool
near__lane_call_is_abandoned(struct near__lane_call *call)
{
    /* acquire: its caller is done with it, it may be freed */
    return atomic_load_explicit(&call->state, memory_order_acquire) == ABANDONED;
}

static void
fail(struct near__lane *lane, struct run *run, struct near__lane_call *call, enum near__lane_outcome outcome,
     const near_error *error)
{
    call->error = *error;
    finish(lane, run, call, outcome);
}

static void
fail_waiting(struct near__lane *lane, struct run *run, enum near__lane_outcome outcome,
             const near_error *error)
{
    while (lane->waiting.first != NULL)
        fail(lane, run, dequeue(&lane->waiting), outcome, error);
}

/* Take a call back to where it was before begin().  False: its caller has gone, and so has the call. */
static bool
unsend(struct near__lane *lane, struct near__lane_call *call)
{
    uint32_t sent = SENT;

    call->from = call->to = 0;
    /* acq_rel: a caller that abandons it meanwhile takes it for sent, which is the worse of both and does no harm */
    if (atomic_compare_exchange_strong_explicit(&call->state, &sent, QUEUED, memory_order_acq_rel,
                                                memory_order_acquire))
        return true;
    free_call(lane, call);
    return false;
}

/* ---------------------------------------------------------------------------------- losing a connection */

/* Writes that come follow those that were given up, over the same connection: so they cannot be overtaken. */
static void
doubt(struct near__lane *lane, bool yes)
{
    /* relaxed, both: who gives up and writes again is one thread; others are not ordered with it */
    if (atomic_exchange_explicit(&lane->doubt, yes, memory_order_relaxed) == yes)
        return;
    if (yes)
        atomic_fetch_add_explicit(&lane->lanes->doubts, 1, memory_order_relaxed);
    else
        atomic_fetch_sub_explicit(&lane->lanes->doubts, 1, memory_order_relaxed);
}

static void
end_doubt(struct near__lane *lane)
{
    if (atomic_load_explicit(&lane->doubt, memory_order_relaxed))
        doubt(lane, false);
}

static bool
has_writes(const struct queue *queue)
{
    for (struct near__lane_call *call = queue->first; call != NULL; call = call->next)
        if (!call->idempotent)
            return true;
    return false;
}

static void
drop_connection(struct near__lane *lane, bool goodbye, bool counts)
{
    struct near__lanes *lanes = lane->lanes;

    if (lane->conn == NULL)
        return;
    if (counts)
        atomic_fetch_add_explicit(&lanes->disconnects, 1, memory_order_relaxed);
    if (has_writes(&lane->outstanding))
        near__transport_forget(lane->transport); /* it could arrive when others have written since */
    atomic_store_explicit(&lane->fd, -1, memory_order_relaxed);
    lanes->env.codec->drop(lane->conn, goodbye);
    end_doubt(lane);
    lane->conn      = NULL;
    lane->transport = NULL;
    atomic_store_explicit(&lane->connected, false, memory_order_relaxed);
    atomic_store_explicit(&lane->quiet, 0, memory_order_relaxed);
    out_reset(&lane->out);
}

/* May it be sent again?  A reply that makes no sense is held against the oldest call only. */
static bool
may_retry(const struct near__lane_call *call, near_status status, bool first)
{
    if (call->tries + 1 >= TRIES || (call->sent > 0 && !call->idempotent))
        return false;
    if (status == NEAR_ERR_TIMEOUT || status == NEAR_ERR_CLOSED)
        return false; /* nobody waits for it any more */
    return status == NEAR_ERR_UNAVAILABLE || !first;
}

/* The connection is over: drop it, send again what may be, fail the rest. */
static void
lose(struct near__lane *lane, struct run *run, const near_error *error)
{
    const struct near__lane_codec *codec = lane->lanes->env.codec;
    uint64_t                       sent  = lane->out.sent;
    struct queue                   again;
    bool                           first = true;

    queue_init(&again);
    drop_connection(lane, false, true);
    for (; lane->outstanding.first != NULL; first = false) {
        struct near__lane_call *call = dequeue(&lane->outstanding);

        call->sent = sent <= call->from ? 0 : (sent < call->to ? sent : call->to) - call->from;
        if (near__lane_call_is_abandoned(call)) {
            free_call(lane, call);
        } else if (may_retry(call, error->code, first)) {
            call->tries++;
            codec->rewind(call);
            if (unsend(lane, call))
                enqueue(&again, call);
        } else {
            fail(lane, run, call, call->sent > 0 ? NEAR__LANE_LOST : NEAR__LANE_NOT_SENT, error);
        }
    }
    put_before(&lane->waiting, &again);
    atomic_store_explicit(&lane->since, 0, memory_order_relaxed);
}

static void
lose_io(struct near__lane *lane, struct run *run, int code)
{
    near_error  error = { 0 };
    char        why[160];
    const char *operation = lane->outstanding.first != NULL ? lane->outstanding.first->operation : "a call";

    near__transport_fault(lane->transport, code, why, sizeof(why));
    near__fail(&error, NEAR_ERR_UNAVAILABLE, "%s: %s failed: %s, connection dropped", lane->lanes->env.name,
               operation, why);
    lose(lane, run, &error);
}

static void
lose_protocol(struct near__lane *lane, struct run *run, const char *what)
{
    near_error error = { 0 };

    near__fail(&error, NEAR_ERR_PROTOCOL, "%s: %s, connection dropped", lane->lanes->env.name, what);
    lose(lane, run, &error);
}

/* -------------------------------------------------------------------------------------------- dialling */

/* One dial at a time per server.  NEAR_OK: it is this caller's turn; else the deadline is over or the lanes are closed. */
static near_status
take_turn(struct near__lanes *lanes, int64_t deadline)
{
    for (;;) {
        uint32_t idle = 0;
        int64_t  left;

        if (atomic_load(&lanes->closed))
            return NEAR_ERR_CLOSED;
        /* acquire and release pair with each other: the next one sees what this dial said to the breaker */
        if (atomic_compare_exchange_strong_explicit(&lanes->dialling, &idle, 1, memory_order_acquire,
                                                    memory_order_relaxed))
            return NEAR_OK;
        left = deadline - near__now(lanes->env.clock);
        if (left <= 0)
            return NEAR_ERR_TIMEOUT;
        near__futex_wait(&lanes->dialling, 1, left);
    }
}

static void
end_turn(struct near__lanes *lanes)
{
    atomic_store_explicit(&lanes->dialling, 0, memory_order_release);
    near__futex_wake(&lanes->dialling, INT_MAX);
}

/* Was it our caller's hurry, not the server, that ended this dial? */
static bool
was_hurried(const struct near__lanes *lanes, const near_error *error, int64_t began, int64_t until)
{
    return error->code == NEAR_ERR_TIMEOUT && until - began < lanes->env.connect_timeout;
}

/* As far as is known: connected, and not silent. */
static bool
works(struct near__lane *lane, int64_t now)
{
    int64_t quiet = atomic_load_explicit(&lane->quiet, memory_order_relaxed);

    return atomic_load_explicit(&lane->connected, memory_order_relaxed) &&
           (quiet == 0 || now - quiet < lane->lanes->silence);
}

static struct near__lane *
another_that_works(struct near__lanes *lanes, const struct near__lane *but, int64_t now)
{
    for (unsigned i = 0; i < lanes->env.most; i++)
        if (&lanes->lane[i] != but && works(&lanes->lane[i], now))
            return &lanes->lane[i];
    return NULL;
}

/* The server has sent something here, and the leader has not come to read it yet: on a busy machine a thread may be kept from running for
 * longer than any silence.  Without a leader nobody knows how old that is.  Where the connection is dropped in this moment, and its
 * descriptor is another's, the answer is wrong, and who gives up next asks again. */
static bool
has_unread(struct near__lane *lane)
{
    /* relaxed, both: hints */
    struct pollfd look = { atomic_load_explicit(&lane->fd, memory_order_relaxed), POLLIN, 0 };

    return look.fd >= 0 && atomic_load_explicit(&lane->leader, memory_order_relaxed) != 0 &&
           poll(&look, 1, 0) == 1 && (look.revents & POLLIN) != 0;
}

/* Heard of the server lately, on whichever connection that lives. */
static bool
is_heard(struct near__lanes *lanes, int64_t now)
{
    for (unsigned i = 0; i < lanes->env.most; i++) {
        struct near__lane *lane = &lanes->lane[i];

        if (atomic_load_explicit(&lane->connected, memory_order_relaxed) &&
            now - atomic_load_explicit(&lane->alive, memory_order_relaxed) < lanes->silence)
            return true;
    }
    for (unsigned i = 0; i < lanes->env.most; i++)
        if (has_unread(&lanes->lane[i]))
            return true;
    return false;
}

static void
spare_dials(struct near__lanes *lanes, int64_t now)
{
    atomic_store_explicit(&lanes->spare_until, near__time_after(now, SPARE), memory_order_relaxed);
}

/* His deadline is over; the others have time left.  Only the time of all such dials together says something about the server. */
static void
dial_was_hurried(struct near__lane *lane, const near_error *error, int64_t took, int64_t now)
{
    struct near__lanes *lanes = lane->lanes;

    lanes->hurried += took;
    if (another_that_works(lanes, lane, now) != NULL) {
        spare_dials(lanes, now);
        lanes->hurried = 0; /* on the other one it will be seen whether the server is silent */
    }
    if (near__breaker_open(&lanes->breaker))
        near__breaker_silent(&lanes->breaker, error, true, now);
    else if (lanes->hurried >= lanes->silence && !is_heard(lanes, now))
        near__breaker_silent(&lanes->breaker, error, false, now);
}

static void
dial_failed(struct near__lane *lane, struct run *run, near_error *error, int64_t began, int64_t until)
{
    struct near__lanes *lanes = lane->lanes;
    int64_t             now   = near__now(lanes->env.clock);

    if (error->code == NEAR_ERR_CLOSED)
        return; /* everybody sees it by himself */
    if (was_hurried(lanes, error, began, until)) {
        dial_was_hurried(lane, error, now - began, now);
        return;
    }
    lanes->hurried = 0;
    if (error->code != NEAR_ERR_NOMEM && !near__breaker_open(&lanes->breaker) &&
        another_that_works(lanes, lane, now) != NULL) {
        spare_dials(lanes, now);
        fail_waiting(lane, run, (enum near__lane_outcome)ELSEWHERE, error);
        return;
    }
    if (error->code != NEAR_ERR_NOMEM)
        near__breaker_failed(&lanes->breaker, error, now);
    fail_waiting(lane, run, NEAR__LANE_NOT_SENT, error);
}

static near_status
open_connection(struct near__lane *lane, int64_t until, near_error *error)
{
    struct near__lanes *lanes = lane->lanes;
    near_status         status;

    if (lane->in == NULL)
        lane->in = malloc(READ_SIZE);
    if (lane->in == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "%s: out of memory", lanes->env.name);
    status      = lanes->env.codec->dial(lanes->env.ctx, &lane->conn, until, error);
    error->code = status;
    if (status != NEAR_OK) {
        lane->conn = NULL;
        return status;
    }
    out_reset(&lane->out);
    lane->transport = lanes->env.codec->transport(lane->conn);
    near__transport_make_patient(lane->transport); /* or it is polled */
    lanes->hurried = 0;
    atomic_store_explicit(&lane->fd, lane->transport->fd, memory_order_relaxed);
    atomic_store_explicit(&lane->connected, true, memory_order_relaxed);
    atomic_fetch_add_explicit(&lanes->connects, 1, memory_order_relaxed);
    return NEAR_OK;
}

/* The breaker is open, and nobody was told to find out. */
static bool
is_refused(struct near__lanes *lanes)
{
    return near__breaker_open(&lanes->breaker) && !atomic_exchange(&lanes->probe, false);
}

/* A connection for the waiting calls, by the run's deadline; `share`: so many dials have to do with that time. */
static void
connect_lane(struct near__lane *lane, struct run *run, size_t share)
{
    struct near__lanes *lanes = lane->lanes;
    near_error          error = { 0 };
    int64_t             until;

    until = run->now + (run->deadline - run->now) / (int64_t)share;
    if (take_turn(lanes, until) != NEAR_OK)
        return;
    run->now = near__now(lanes->env.clock);
    until    = run->now + (run->deadline - run->now) / (int64_t)share;
    if (until > near__time_after(run->now, lanes->env.connect_timeout))
        until = near__time_after(run->now, lanes->env.connect_timeout);
    if (is_refused(lanes)) {
        end_turn(lanes);
        near__breaker_refuse(&lanes->breaker, &error);
        fail_waiting(lane, run, NEAR__LANE_NOT_SENT, &error);
        return;
    }
    if (open_connection(lane, until, &error) != NEAR_OK)
        dial_failed(lane, run, &error, run->now, until);
    end_turn(lanes);
    run->now = near__now(lanes->env.clock);
}

/* -------------------------------------------------------------------------------------- leading: bytes */

/* What has come since is the next batch. */
static void
take_inbox(struct near__lane *lane)
{
    uintptr_t               old;
    struct near__lane_call *call, *turned = NULL;

    /* relaxed: only a hint; the exchange decides */
    if ((atomic_load_explicit(&lane->inbox, memory_order_relaxed) & ~(uintptr_t)(EPOCHS - 1)) == 0)
        return;
    lane->epoch = (lane->epoch + 1) % EPOCHS;
    /* acquire pairs with the push: the calls are complete */
    old  = atomic_exchange_explicit(&lane->inbox, lane->epoch, memory_order_acq_rel);
    call = (struct near__lane_call *)(old & ~(uintptr_t)(EPOCHS - 1));
    while (call != NULL) {
        struct near__lane_call *next = call->next;

        call->next = turned;
        turned     = call;
        call       = next;
    }
    while (turned != NULL) {
        call   = turned;
        turned = call->next;
        enqueue(&lane->waiting, call);
    }
}

static void
forget_abandoned(struct near__lane *lane)
{
    struct queue kept;

    queue_init(&kept);
    while (lane->waiting.first != NULL) {
        struct near__lane_call *call = dequeue(&lane->waiting);

        if (near__lane_call_is_abandoned(call))
            free_call(lane, call);
        else
            enqueue(&kept, call);
    }
    put_before(&lane->waiting, &kept);
}

/* An idle connection is looked at before it is used (rule P5).  One that was heard of a moment ago is not idle: what could have happened
 * to it since then can as well happen after the look.  Reads are asked again where it did; writes are worth the look. */
static void
check_idle(struct near__lane *lane, int64_t now)
{
    bool lately;

    if (lane->conn == NULL || lane->outstanding.first != NULL)
        return;
    lately = now - atomic_load_explicit(&lane->alive, memory_order_relaxed) < LATELY &&
             !has_writes(&lane->waiting);
    if (!lane->lanes->env.codec->usable(lane->conn, lately))
        drop_connection(lane, false, true);
}

/* Begin what waits.  False: no memory for what was kept back, the connection cannot go on. */
static bool
begin_waiting(struct near__lane *lane, struct run *run)
{
    const struct near__lane_codec *codec = lane->lanes->env.codec;
    size_t                         begun = 0;
    near_status                    status;

    if (lane->outstanding.first != NULL && codec->spent != NULL && codec->spent(lane->conn))
        return true; /* no more on this one: it goes when what is out has been answered */
    while (lane->waiting.first != NULL) {
        struct near__lane_call *call   = lane->waiting.first;
        uint32_t                queued = QUEUED;

        /* acq_rel: from here on its caller must take it for sent */
        if (!atomic_compare_exchange_strong_explicit(&call->state, &queued, SENT, memory_order_acq_rel,
                                                     memory_order_acquire)) {
            free_call(lane, dequeue(&lane->waiting));
            continue;
        }
        dequeue(&lane->waiting);
        call->from = call->to = 0;
        status                = codec->begin(lane->conn, call, &lane->out);
        if (status == NEAR_ERR_BUSY) {
            struct queue back;

            queue_init(&back);
            if (unsend(lane, call))
                enqueue(&back, call);
            put_before(&lane->waiting, &back);
            break;
        }
        if (status != NEAR_OK) {
            near_error error = { 0 };

            near__fail(&error, status, "%s: %s: %s", lane->lanes->env.name, call->operation,
                       near_status_text(status));
            fail(lane, run, call, NEAR__LANE_NOT_SENT, &error);
            continue;
        }
        enqueue(&lane->outstanding, call);
        begun++;
    }
    if (begun == 0)
        return true;
    /* relaxed, all of them: counts, and a hint for newcomers */
    atomic_fetch_add_explicit(&lane->lanes->calls, begun, memory_order_relaxed);
    atomic_fetch_add_explicit(&lane->lanes->batches, 1, memory_order_relaxed);
    if (atomic_load_explicit(&lane->since, memory_order_relaxed) == 0)
        atomic_store_explicit(&lane->since, run->now, memory_order_relaxed);
    if (atomic_load_explicit(&lane->quiet, memory_order_relaxed) == 0)
        atomic_store_explicit(&lane->quiet, run->now, memory_order_relaxed);
    return codec->flush == NULL || codec->flush(lane->conn, &lane->out) == NEAR_OK;
}

/* The `complete` oldest have all of their replies.  False: more than had been asked. */
static bool
finish_oldest(struct near__lane *lane, struct run *run, size_t complete)
{
    while (complete-- > 0) {
        struct near__lane_call *call = lane->outstanding.first;

        if (call == NULL || call->to > lane->out.sent)
            return false;
        finish(lane, run, dequeue(&lane->outstanding), NEAR__LANE_ANSWERED);
    }
    return true;
}

static void
take_bytes(struct near__lane *lane, struct run *run, size_t size)
{
    struct near__lanes *lanes    = lane->lanes;
    near_error          error    = { 0 };
    size_t              complete = 0;
    near_status         status;

    near__breaker_heard(&lanes->breaker);
    status =
        lanes->env.codec->receive(lane->conn, lane->outstanding.first, lane->in, size, &complete, &error);
    error.code = status;
    if (!finish_oldest(lane, run, complete))
        lose_protocol(lane, run, "more replies than commands");
    else if (status != NEAR_OK)
        lose(lane, run, &error);
}

/* `run->now` may be as old as the last sleep, which is early enough for `alive`. */
static void
note_heard(struct near__lane *lane, const struct run *run)
{
    int64_t quiet = lane->outstanding.first == NULL ? 0 : near__now(lane->lanes->env.clock);

    atomic_store_explicit(&lane->quiet, quiet, memory_order_relaxed);
    atomic_store_explicit(&lane->alive, run->now, memory_order_relaxed);
}

/* Receive what is there; `sleep`: sleep until there is something, if it does not take long. */
static void
receive_some(struct near__lane *lane, struct run *run, bool sleep)
{
    ssize_t n;
    bool    heard = false;
    int     turns = 0;

    do {
        n = sleep && turns == 0 ? near__transport_await(lane->transport, lane->in, READ_SIZE)
                                : near__transport_receive(lane->transport, lane->in, READ_SIZE);
        if (n < 0) {
            lose_io(lane, run, errno);
            return;
        }
        if (n == 0)
            break;
        heard = true;
        take_bytes(lane, run, (size_t)n);
    } while (++turns < TURNS && lane->conn != NULL &&
             ((size_t)n == READ_SIZE || near__transport_pending(lane->transport)));
    if (heard)
        note_heard(lane, run);
    else
        run->slow |= sleep;
}

/* What had arrived before tells which calls, and how much of them, were executed. */
static void
send_failed(struct near__lane *lane, struct run *run, int code)
{
    receive_some(lane, run, false);
    if (lane->conn != NULL)
        lose_io(lane, run, code);
}

/* Send what the system takes without blocking. */
static void
send_some(struct near__lane *lane, struct run *run)
{
    struct near__lane_out *out = &lane->out;

    for (int turns = 0; turns < TURNS && lane->conn != NULL && sendable(out) > 0; turns++) {
        size_t  n     = sendable(out) < PIECES ? sendable(out) : PIECES;
        ssize_t bytes = near__transport_send(lane->transport, out->pieces + out->first, n);

        if (bytes == 0)
            return;
        if (bytes > 0)
            advance(out, (size_t)bytes);
        else
            send_failed(lane, run, errno);
    }
}

/* --------------------------------------------------------------------------------- leading: one step on */

/* Nothing is outstanding any more: the batch is over. */
static void
end_batch(struct near__lane *lane)
{
    const struct near__lane_codec *codec = lane->lanes->env.codec;

    /* relaxed: a hint for newcomers */
    atomic_store_explicit(&lane->since, 0, memory_order_relaxed);
    end_doubt(lane);
    if (lane->conn != NULL && codec->spent != NULL && codec->spent(lane->conn))
        drop_connection(lane, false, true);
}

static bool others_wait(const struct queue *queue, const struct run *run);
static bool is_silent(struct near__lane *lane, int64_t now);

/* What was asked here got no answer, and nobody waits for it any more: whatever became of this connection, a new one finds out sooner
 * whether the server is there. */
static void
check_silent(struct near__lane *lane, struct run *run)
{
    near_error error = { 0 };

    if (lane->outstanding.first == NULL || !is_silent(lane, run->now) ||
        others_wait(&lane->outstanding, NULL))
        return;
    near__fail(&error, NEAR_ERR_UNAVAILABLE, "%s: silent, connection dropped", lane->lanes->env.name);
    lose(lane, run, &error);
}

/* Begin and send what can be, without sleeping but for a dial if `may_dial`. */
static void
push_on(struct near__lane *lane, struct run *run, bool may_dial, size_t share)
{
    near_error error = { 0 };

    while (lane->waiting.first != NULL) {
        check_idle(lane, run->now);
        check_silent(lane, run);
        if (lane->conn == NULL && may_dial)
            connect_lane(lane, run, share);
        if (lane->conn == NULL)
            return;
        if (!begin_waiting(lane, run)) {
            near__fail(&error, NEAR_ERR_NOMEM, "%s: out of memory", lane->lanes->env.name);
            lose(lane, run, &error);
            continue;
        }
        send_some(lane, run);
        if (lane->outstanding.first != NULL || lane->conn != NULL)
            return;
    }
}

/* The descriptor had an event, or may have something without one; or, `sleep`, nothing is known of it. */
static void
move_on(struct near__lane *lane, struct run *run, bool sleep)
{
    send_some(lane, run);
    if (lane->conn != NULL)
        receive_some(lane, run, sleep);
    if (lane->conn != NULL && sendable(&lane->out) > 0)
        send_some(lane, run); /* what a reply has released */
    if (lane->outstanding.first == NULL)
        end_batch(lane);
}

/* ----------------------------------------------------------------------------------- taking and leaving */

static bool
try_lead(struct near__lane *lane)
{
    uint32_t free = 0;

    /* relaxed: looked at first, so that followers do not fight for the line; seq_cst: see above */
    return atomic_load(&lane->leader) == 0 && atomic_compare_exchange_strong(&lane->leader, &free, 1);
}

static bool
others_wait(const struct queue *queue, const struct run *run)
{
    for (struct near__lane_call *call = queue->first; call != NULL; call = call->next)
        if (call->run != run && !near__lane_call_is_abandoned(call))
            return true;
    return false;
}

static bool
inbox_is_empty(struct near__lane *lane)
{
    return (atomic_load(&lane->inbox) & ~(uintptr_t)(EPOCHS - 1)) == 0;
}

static void
wake_one_of_all(struct near__lane *lane)
{
    for (unsigned i = 0; i < WORDS; i++)
        wake(lane, i, 1);
}

static void
wake_touched(struct near__lane *lane)
{
    unsigned touched = lane->touched;

    lane->touched = 0;
    for (unsigned i = 0; touched != 0; i++, touched >>= 1)
        if (touched & 1)
            wake(lane, i, INT_MAX);
}

/* Leave a lane that this caller has led.  Whoever has something to see wakes; if something is left to do, so does one who does it. */
static void
leave(struct near__lane *lane)
{
    unsigned touched = lane->touched, next = lane->epoch % WORDS;
    bool     left = lane->outstanding.first != NULL || lane->waiting.first != NULL;

    lane->touched = 0;
    atomic_store(&lane->leader, 0); /* seq_cst: before the look at the inbox */
    for (unsigned i = 0; touched != 0; i++, touched >>= 1)
        if (touched & 1)
            wake(lane, i, INT_MAX);
    if (left)
        for (unsigned i = 0; i < WORDS; i++)
            wake(lane, i, INT_MAX);
    else if (!inbox_is_empty(lane))
        wake(lane, next, 1);
}

static unsigned
users_of(const struct near__lane *lane)
{
    return atomic_load_explicit(&lane->users, memory_order_relaxed); /* a hint */
}

/* Let others have the processor for a moment: on few processors they put their calls down meanwhile, or the leader gets done, and nobody has to
 * sleep and be woken, which costs more than all the rest of a small call.  Where that moment turns out long, because somebody else
 * computes, it is not done again for fifty times as long.  False: not done. */
static bool
give_way(struct near__lane *lane)
{
    const struct near__clock *clock = lane->lanes->env.clock;
    int64_t                   began = near__now(clock), ended;

    /* relaxed: a hint */
    if (began < atomic_load_explicit(&lane->polite, memory_order_relaxed))
        return false;
    sched_yield();
    ended = near__now(clock);
    if (ended - began > LONG_YIELD + users_of(lane) * EACH_YIELD)
        atomic_store_explicit(&lane->polite, ended + IMPOLITE * (ended - began), memory_order_relaxed);
    return true;
}

static void
lead(struct run *run, struct near__lane *lane)
{
    if (run->led_count == 0 && users_of(lane) > 1)
        give_way(lane); /* those who are about to come make the batch larger */
    run->led[run->led_count++] = lane;
    take_inbox(lane);
}

static bool
leads(const struct run *run, const struct near__lane *lane)
{
    for (size_t i = 0; i < run->led_count; i++)
        if (run->led[i] == lane)
            return true;
    return false;
}

/* ---------------------------------------------------------------------------------------- one run: asks */

static void
settle(struct run *run, struct near__lane_ask *ask, enum near__lane_outcome outcome, near_status status)
{
    ask->settled = true;
    ask->outcome = outcome;
    ask->status  = status;
    run->open--;
}

static void
tell(struct run *run, const near_error *error)
{
    if (run->error != NULL && run->error->code == NEAR_OK)
        *run->error = *error;
}

static void
refuse(struct run *run, struct near__lane_ask *ask, const near_error *error)
{
    tell(run, error);
    settle(run, ask, NEAR__LANE_NOT_SENT, error->code);
}

static void
refuse_down(struct run *run, struct near__lane_ask *ask)
{
    near_error error;

    ask->refused = true;
    near__breaker_refuse(&ask->lanes->breaker, &error);
    refuse(run, ask, &error);
}

static void
refuse_closed(struct run *run, struct near__lane_ask *ask)
{
    near_error error = { 0 };

    near__fail(&error, NEAR_ERR_CLOSED, "%s: closed", ask->lanes->env.name);
    refuse(run, ask, &error);
}

static void push(struct near__lane *lane, struct near__lane_ask *ask);

static void
put_on_lane(struct run *run, struct near__lane_ask *ask, struct near__lane *lane)
{
    ask->lane = lane;
    atomic_fetch_add(&lane->users, 1); /* seq_cst: before the look at `closed`, see near__lanes_stop() */
    run->moved = true;
}

/* Its lane has got no connection, but there is one that works: once. */
static bool
move_elsewhere(struct run *run, struct near__lane_ask *ask)
{
    struct near__lane *from = ask->lane, *to = another_that_works(ask->lanes, from, run->now);

    if (run->ending || ask->moved || to == NULL)
        return false;
    ask->moved   = true;
    ask->dialled = false; /* not there */
    put_on_lane(run, ask, to);
    /* release: see run_group() */
    atomic_fetch_sub_explicit(&from->users, 1, memory_order_release);
    atomic_store_explicit(&ask->call->state, QUEUED, memory_order_relaxed); /* push() publishes it */
    push(to, ask);
    if (leads(run, to))
        take_inbox(to);
    return true;
}

/* Has its outcome come? */
static bool
collect(struct run *run, struct near__lane_ask *ask)
{
    struct near__lane_call *call = ask->call;

    /* acquire pairs with finish(): replies and outcome are there */
    if (atomic_load_explicit(&call->state, memory_order_acquire) != DONE)
        return false;
    if (call->outcome == NEAR__LANE_ANSWERED) {
        settle(run, ask, NEAR__LANE_ANSWERED, NEAR_OK);
        return true;
    }
    if (call->outcome == ELSEWHERE) {
        if (move_elsewhere(run, ask))
            return false;
        call->outcome = NEAR__LANE_NOT_SENT;
    }
    tell(run, &call->error);
    settle(run, ask, call->outcome, call->error.code);
    return true;
}

static unsigned
thread_number(void)
{
    static _Atomic unsigned       next;
    static _Thread_local unsigned mine;

    if (mine == 0)
        mine = atomic_fetch_add_explicit(&next, 1, memory_order_relaxed) + 1;
    return mine - 1;
}

static bool
is_slow(struct near__lane *lane, int64_t now)
{
    /* relaxed: a hint */
    int64_t since = atomic_load_explicit(&lane->since, memory_order_relaxed);

    /* with nobody there it waits for one who reads away what was given up */
    return since != 0 && now - since > SLOW && users_of(lane) > 0;
}

/* A dial has failed lately: a lane that is connected, the one asked for if it is. */
static struct near__lane *
rather_connected(struct near__lanes *lanes, struct near__lane *picked, int64_t now)
{
    struct near__lane *other;

    /* relaxed, all: hints */
    if (now >= atomic_load_explicit(&lanes->spare_until, memory_order_relaxed) ||
        atomic_load_explicit(&picked->connected, memory_order_relaxed))
        return picked;
    other = another_that_works(lanes, picked, now);
    return other != NULL ? other : picked;
}

/* The lane of this thread's own.  Another, while there are so few callers that each can have one; from two at one lane on it pays to
 * share.  Another, too, when this one has kept its callers waiting for long. */
static struct near__lane *
pick_lane(struct near__lanes *lanes, bool bulk, int64_t now)
{
    unsigned base = lanes->normal < BASE ? lanes->normal : BASE;
    unsigned own  = thread_number() % base;

    if (bulk && lanes->env.most > 1)
        return &lanes->lane[lanes->normal];
    if (users_of(&lanes->lane[own]) == 1)
        for (unsigned i = 0; i < lanes->normal && i < APART; i++)
            if (users_of(&lanes->lane[i]) == 0)
                return &lanes->lane[i];
    for (unsigned i = 0; i < lanes->normal; i++) {
        struct near__lane *lane = &lanes->lane[(own + i) % lanes->normal];

        if (!is_slow(lane, now))
            return lane;
    }
    return &lanes->lane[own];
}

static void
push(struct near__lane *lane, struct near__lane_ask *ask)
{
    uintptr_t old = atomic_load_explicit(&lane->inbox, memory_order_relaxed);

    do {
        ask->call->next  = (struct near__lane_call *)(old & ~(uintptr_t)(EPOCHS - 1));
        ask->call->epoch = (uint8_t)(old & (EPOCHS - 1));
        ask->epoch       = ask->call->epoch; /* of our own: the call may be gone when we wait */
        /* seq_cst: before this caller tries to lead; as a release it hands over the call */
    } while (!atomic_compare_exchange_weak(&lane->inbox, &old, (uintptr_t)ask->call | (old & (EPOCHS - 1))));
}

static struct near__lane *
choose_lane(struct near__lanes *lanes, const struct near__lane_call *call, int64_t now)
{
    if ((!call->idempotent || call->follows) &&
        atomic_load_explicit(&lanes->doubts, memory_order_relaxed) > 0)
        for (unsigned i = 0; i < lanes->env.most; i++)
            if (atomic_load_explicit(&lanes->lane[i].doubt, memory_order_relaxed))
                return &lanes->lane[i];
    return rather_connected(lanes, pick_lane(lanes, call->bulk, now), now);
}

/* Where an earlier call of this run to the same server went: they are to leave in their order. */
static struct near__lane *
lane_of_run(const struct run *run, const struct near__lane_ask *ask)
{
    for (const struct near__lane_ask *at = run->asks; at != ask; at++)
        if (at->lanes == ask->lanes && !at->settled && at->call->bulk == ask->call->bulk)
            return at->lane;
    return NULL;
}

static void
admit(struct run *run, struct near__lane_ask *ask)
{
    struct near__lanes     *lanes   = ask->lanes;
    struct near__lane_call *call    = ask->call;
    enum near__verdict      verdict = near__breaker_ask(&lanes->breaker, run->now);
    struct near__lane      *lane;

    if (verdict == NEAR__REFUSE) {
        refuse_down(run, ask);
        return;
    }
    lane = lane_of_run(run, ask);
    put_on_lane(run, ask, lane != NULL ? lane : choose_lane(lanes, call, run->now));
    if (atomic_load(&lanes->closed)) {
        refuse_closed(run, ask);
        return;
    }
    ask->probe = verdict == NEAR__PROBE;
    if (ask->probe)
        atomic_store(&lanes->probe, true);
    call->run   = run;
    call->tries = 0;
    call->from = call->to = call->sent = 0;
    /* relaxed: push() publishes it */
    atomic_store_explicit(&call->state, QUEUED, memory_order_relaxed);
    push(ask->lane, ask);
}

/* --------------------------------------------------------------------------------------- one run: sleep */

static bool
serves_somebody(const struct run *run)
{
    for (size_t i = 0; i < run->led_count; i++)
        if (run->led[i]->outstanding.first != NULL)
            return true;
    return false;
}

/* As wait_for_led(), for several of them or for long. */
static bool
poll_led(struct run *run, int64_t until)
{
    struct pollfd      fds[GROUP + 1];
    struct near__lane *lanes[GROUP];
    nfds_t             n = 0;
    struct timespec    time;
    int64_t            left = until - run->now;
    bool               blind;
    int                got;

    for (size_t i = 0; i < run->led_count; i++) {
        struct near__lane *lane = run->led[i];

        wake_touched(lane); /* who has his answer need not wait for ours */
        if (lane->outstanding.first == NULL)
            continue;
        if (near__transport_pending(lane->transport))
            left = 0;
        fds[n] =
            (struct pollfd){ .fd     = lane->transport->fd,
                             .events = near__transport_events(lane->transport, sendable(&lane->out) > 0) };
        lanes[n++] = lane;
    }
    fds[n] =
        (struct pollfd){ .fd = lanes[0]->lanes->env.cancel_fd == NULL ? -1 : *lanes[0]->lanes->env.cancel_fd,
                         .events = POLLIN };
    if (left < 0)
        left = 0;
    time = (struct timespec){ left / (1000 * NEAR_MS), left % (1000 * NEAR_MS) };
    got  = ppoll(fds, n + 1, until == NEAR_NEVER ? NULL : &time, NULL);
    /* a system without memory for it: look at all of them, and do not ask it all the time */
    blind = got < 0 && errno != EINTR;
    if (blind && left > 0)
        nanosleep(&(struct timespec){ 0, left < NEAR_MS ? left : NEAR_MS }, NULL);
    /* what is heard now was not heard when this sleep began */
    run->now = near__now(lanes[0]->lanes->env.clock);
    if (got > 0 && fds[n].revents != 0)
        return false;
    for (nfds_t i = 0; i < n; i++)
        if (blind || (got > 0 && fds[i].revents != 0) || near__transport_pending(lanes[i]->transport))
            move_on(lanes[i], run, false);
    return true;
}

/* A run that waits for nothing but what one lane will receive soon need not be told by poll() when that is. */
static struct near__lane *
may_await(const struct run *run, int64_t until)
{
    struct near__lane *lane = run->led[0];

    return run->led_count == 1 && !run->slow && lane->transport->patient && sendable(&lane->out) == 0 &&
                   until - run->now >= 2 * NEAR__TRANSPORT_PATIENCE
               ? lane
               : NULL;
}

/* Sleep until a led lane can go on, or it is time to look after the others.  False: cancelled. */
static bool
wait_for_led(struct run *run, int64_t until)
{
    struct near__lane *lane = may_await(run, until);

    if (lane == NULL)
        return poll_led(run, until);
    wake_touched(lane);
    move_on(lane, run, true);
    return true;
}

static struct near__lane_ask *
first_followed(const struct run *run)
{
    for (size_t i = 0; i < run->n; i++)
        if (!run->asks[i].settled && !leads(run, run->asks[i].lane))
            return &run->asks[i];
    return NULL;
}

static bool
several_lanes(const struct run *run, const struct near__lane *one)
{
    for (size_t i = 0; i < run->n; i++)
        if (!run->asks[i].settled && run->asks[i].lane != one)
            return true;
    return false;
}

static const _Atomic uint32_t *
word_of(const struct near__lane_ask *ask)
{
    return &ask->lane->words[ask->epoch % WORDS];
}

/* Look at the futex of every call that others lead, before trying to lead it and before collecting it. */
static void
watch(struct run *run)
{
    for (size_t i = 0; i < run->n; i++) {
        struct near__lane_ask *ask = &run->asks[i];

        ask->watched = !ask->settled && !leads(run, ask->lane);
        if (ask->watched)
            ask->seen = atomic_load(word_of(ask));
    }
}

/* Whether it may sleep: what it waits for was all looked at. */
static bool
is_watched(const struct run *run)
{
    for (size_t i = 0; i < run->n; i++)
        if (!run->asks[i].settled && !run->asks[i].watched)
            return false;
    return true;
}

/* Several lanes have news for this run, or are to be led by it: whichever is first.  False: the system cannot wait for several. */
static bool
follow_all(const struct run *run, int64_t left)
{
    struct near__futex_seen words[GROUP];
    size_t                  n = 0;

    _Static_assert(GROUP <= NEAR__FUTEX_WORDS, "a call, a word");
    for (size_t i = 0; i < run->n; i++)
        if (!run->asks[i].settled)
            words[n++] = (struct near__futex_seen){ word_of(&run->asks[i]), run->asks[i].seen };
    return near__futex_wait_any(words, n, left);
}

/* Somebody else leads: sleep until he has news. */
static void
follow(struct run *run, struct near__lane_ask *ask)
{
    int64_t left = run->deadline - run->now;

    for (int i = 0; i < YIELDS; i++) {
        if (!give_way(ask->lane))
            break;
        /* a look; collect() and try_lead() have the orders */
        if (atomic_load_explicit(&ask->call->state, memory_order_relaxed) == DONE ||
            atomic_load_explicit(&ask->lane->leader, memory_order_relaxed) == 0)
            return;
    }
    if (several_lanes(run, ask->lane)) {
        if (follow_all(run, left))
            return;
        left = left < LOOK ? left : LOOK;
    }
    near__futex_wait(word_of(ask), ask->seen, left);
}

/* ------------------------------------------------------------------------------------ one run: giving up */

static void
fail_late(near_error *error, const struct near__lanes *lanes, const char *operation, near_status status,
          int64_t waited)
{
    if (status == NEAR_ERR_CLOSED)
        near__fail(error, status, "%s: %s given up: %s", lanes->env.name, operation,
                   near_status_text(status));
    else
        near__fail(error, status, "%s: %s timed out after %dms", lanes->env.name, operation,
                   (int)(waited / NEAR_MS));
}

static bool
is_silent(struct near__lane *lane, int64_t now)
{
    /* relaxed: a hint, or the leader's own */
    int64_t quiet = atomic_load_explicit(&lane->quiet, memory_order_relaxed);

    return quiet != 0 && now - quiet >= lane->lanes->silence;
}

/* What is outstanding here has been so for so long that a new connection will serve better; the server need not be silent. */
static bool
is_behind(struct near__lane *lane, int64_t now)
{
    int64_t since = atomic_load_explicit(&lane->since, memory_order_relaxed);

    return since != 0 && now - since >= lane->lanes->silence;
}

/* Nobody but this run waits for what is outstanding on this lane.  The connection goes if it is far behind, or if a write is outstanding;
 * then it is known how far its calls came.  Else the next leader reads the replies away. */
static void
give_up_lane(struct run *run, struct near__lane *lane, near_status status)
{
    near_error error = { 0 };
    char       text[sizeof(error.text)];

    forget_abandoned(lane);
    if (lane->outstanding.first == NULL || others_wait(&lane->outstanding, run))
        return;
    if (status == NEAR_ERR_TIMEOUT && !is_behind(lane, run->now) && !has_writes(&lane->outstanding))
        return;
    fail_late(&error, lane->lanes, lane->outstanding.first->operation, status, run->now - run->began);
    memcpy(text, error.text, sizeof(text));
    near__fail(&error, status, "%.230s, connection dropped", text);
    lose(lane, run, &error);
}

/* The call stays with its lane. */
static void
abandon(struct run *run, struct near__lane_ask *ask, near_status status)
{
    near_error  error     = { 0 };
    const char *operation = ask->call->operation;
    bool        writes    = !ask->call->idempotent;
    uint32_t    state     = QUEUED;
    char        name[32];

    strncpy(name, operation, sizeof(name) - 1); /* it may be in the call */
    name[sizeof(name) - 1] = '\0';
    /* acq_rel: what this caller did to the call is over when the lane frees it */
    while (!atomic_compare_exchange_weak_explicit(&ask->call->state, &state, ABANDONED, memory_order_acq_rel,
                                                  memory_order_acquire))
        if (state == DONE) {
            collect(run, ask);
            return;
        }
    ask->call = NULL;
    if (state != QUEUED && writes)
        doubt(ask->lane, true);
    fail_late(&error, ask->lanes, name, status, run->now - run->began);
    tell(run, &error);
    settle(run, ask, state == QUEUED ? NEAR__LANE_NOT_SENT : NEAR__LANE_GIVEN_UP, status);
}

/* The breaker hears of servers that are silent; and of a probe that was in vain, however long it waited. */
static void
report_silence(struct run *run, const struct near__lane_ask *ask)
{
    struct near__lanes *lanes = ask->lanes;
    near_error          error = { 0 };
    bool                probe = ask->probe && near__breaker_open(&lanes->breaker);

    /* relaxed: a hint */
    if (atomic_load_explicit(&ask->lane->quiet, memory_order_relaxed) == 0)
        return; /* it waited for a dial, which has reported by itself */
    if (probe ? has_unread(ask->lane) : (!is_silent(ask->lane, run->now) || is_heard(lanes, run->now)))
        return;
    fail_late(&error, lanes, "a call", NEAR_ERR_TIMEOUT, run->now - run->began);
    near__breaker_silent(&lanes->breaker, &error, probe, run->now);
}

static void
report_silences(struct run *run)
{
    for (size_t i = 0; i < run->n; i++)
        if (!run->asks[i].settled && !collect(run, &run->asks[i]))
            report_silence(run, &run->asks[i]);
}

static void
give_up(struct run *run, near_status status)
{
    run->ending = true;
    if (status == NEAR_ERR_TIMEOUT)
        report_silences(run);
    for (size_t i = 0; i < run->led_count; i++)
        give_up_lane(run, run->led[i], status);
    for (size_t i = 0; i < run->n; i++) {
        struct near__lane_ask *ask  = &run->asks[i];
        struct near__lane     *lane = ask->lane;

        if (ask->settled)
            continue;
        if (!collect(run, ask))
            abandon(run, ask, status);
        if (!leads(run, lane) && atomic_load(&lane->leader) == 0)
            wake_one_of_all(lane); /* we may have been the one who was woken to lead */
    }
    for (size_t i = 0; i < run->led_count; i++) {
        forget_abandoned(run->led[i]);
        leave(run->led[i]);
    }
    run->led_count = 0;
}

/* ------------------------------------------------------------------------------------------- one run: on */

static void
collect_all(struct run *run)
{
    for (size_t i = 0; i < run->n; i++)
        if (!run->asks[i].settled)
            collect(run, &run->asks[i]);
}

/* Does anybody else wait for what the leader does here? */
static bool
is_shared(struct near__lane *lane, const struct run *run)
{
    return !inbox_is_empty(lane) || others_wait(&lane->waiting, run) || others_wait(&lane->outstanding, run);
}

/* The calls are this leader's as long as they are not done. */
static void
show_what_came(struct run *run)
{
    for (size_t i = 0; i < run->n; i++) {
        struct near__lane_ask *ask = &run->asks[i];

        if (ask->settled || ask->came == NULL || !leads(run, ask->lane) || is_shared(ask->lane, run))
            continue;
        wake_touched(ask->lane); /* who has his answer need not wait for that */
        ask->came(ask);
    }
}

static bool
waits_at(const struct run *run, const struct near__lane *lane)
{
    for (size_t i = 0; i < run->n; i++)
        if (!run->asks[i].settled && run->asks[i].lane == lane)
            return true;
    return false;
}

/* Lanes where this run has nothing to wait for any more are left. */
static void
leave_served(struct run *run)
{
    size_t kept = 0;

    for (size_t i = 0; i < run->led_count; i++) {
        if (waits_at(run, run->led[i]))
            run->led[kept++] = run->led[i];
        else
            leave(run->led[i]);
    }
    run->led_count = kept;
}

static void
lead_those(struct run *run, bool dialled)
{
    for (size_t i = 0; i < run->n; i++) {
        struct near__lane_ask *ask = &run->asks[i];

        if (!ask->settled && ask->dialled == dialled && !leads(run, ask->lane) && try_lead(ask->lane))
            lead(run, ask->lane);
    }
}

/* A lane for which this run has dialled in vain is left to others, until there is nothing else to do. */
static void
lead_more(struct run *run)
{
    lead_those(run, false);
    if (!serves_somebody(run))
        lead_those(run, true);
}

static bool
needs_dial(const struct near__lane *lane)
{
    return lane->waiting.first != NULL && lane->conn == NULL;
}

/* Leave the lanes that need a dial, or those that need none. */
static void
leave_those(struct run *run, bool need)
{
    size_t kept = 0;

    for (size_t i = 0; i < run->led_count; i++) {
        if (needs_dial(run->led[i]) == need)
            leave(run->led[i]);
        else
            run->led[kept++] = run->led[i];
    }
    run->led_count = kept;
}

static void
note_dialled(struct run *run)
{
    for (size_t i = 0; i < run->n; i++)
        if (!run->asks[i].settled && leads(run, run->asks[i].lane) && needs_dial(run->asks[i].lane))
            run->asks[i].dialled = true;
}

/* Lanes that need a connection.  Those where something is outstanding are left meanwhile, others may lead them; and the dials get a
 * part of the time only, so that there is some to read what came on them. */
static void
dial_led(struct run *run)
{
    bool   serves = serves_somebody(run);
    size_t need   = 0;

    for (size_t i = 0; i < run->led_count; i++)
        need += needs_dial(run->led[i]);
    if (need == 0)
        return;
    if (serves)
        leave_those(run, false);
    for (size_t i = 0; i < run->led_count; i++)
        if (needs_dial(run->led[i]))
            push_on(run->led[i], run, true, need-- + serves);
    if (!serves)
        return;
    note_dialled(run);
    leave_those(run, true);
}

static void
push_on_led(struct run *run)
{
    for (size_t i = 0; i < run->led_count; i++)
        if (run->led[i]->outstanding.first == NULL || run->led[i]->waiting.first != NULL)
            push_on(run->led[i], run, false, 1);
    dial_led(run);
}

static bool
is_closed(const struct run *run)
{
    for (size_t i = 0; i < run->n; i++)
        if (!run->asks[i].settled && atomic_load(&run->asks[i].lanes->closed))
            return true;
    return false;
}

static void
go(struct run *run)
{
    struct near__lane_ask *followed;
    near_status            end = NEAR_OK;

    while (run->open > 0) {
        run->moved = false;
        watch(run);
        lead_more(run);
        push_on_led(run);
        collect_all(run);
        leave_served(run);
        if (run->open == 0)
            return;
        followed = first_followed(run);
        if (serves_somebody(run)) {
            int64_t look = near__time_after(run->now, LOOK);

            if (!wait_for_led(run, followed != NULL && look < run->deadline ? look : run->deadline))
                end = NEAR_ERR_CLOSED;
            collect_all(run);
            leave_served(run);
            if (run->open == 0)
                return;
            show_what_came(run);
        } else if (run->led_count == 0 && is_watched(run) && !run->moved) { /* else: look first, then sleep */
            follow(run, followed);
            collect_all(run);
            if (run->open == 0)
                return;
        }
        run->now = near__now(run->asks[0].lanes->env.clock);
        if (is_closed(run))
            end = NEAR_ERR_CLOSED;
        else if (run->now >= run->deadline)
            end = NEAR_ERR_TIMEOUT;
        if (end != NEAR_OK) {
            give_up(run, end);
            return;
        }
    }
}

static void
refuse_late(struct run *run, struct near__lane_ask *ask)
{
    near_error error = { 0 };

    fail_late(&error, ask->lanes, ask->call->operation, NEAR_ERR_TIMEOUT, 0);
    refuse(run, ask, &error);
}

static void
run_group(struct near__lane_ask *asks, size_t n, int64_t deadline, near_error *error)
{
    struct run run;

    run.asks = asks;
    run.n = run.open = n;
    run.began = run.now = near__now(asks[0].lanes->env.clock);
    run.deadline        = deadline;
    run.led_count       = 0;
    run.ending = run.slow = false;
    run.error             = error;
    for (size_t i = 0; i < n; i++) {
        asks[i].lane    = NULL;
        asks[i].settled = asks[i].refused = false;
        asks[i].moved = asks[i].dialled = asks[i].probe = false;
        if (run.now < deadline)
            admit(&run, &asks[i]);
        else
            refuse_late(&run, &asks[i]);
    }
    go(&run);
    for (size_t i = 0; i < n; i++)
        if (asks[i].lane != NULL) /* stop() acquires: this caller is through with the lane */
            atomic_fetch_sub_explicit(&asks[i].lane->users, 1, memory_order_release);
}

void
near__lanes_run(struct near__lane_ask *asks, size_t n, int64_t deadline, near_error *error)
{
    if (error != NULL)
        error->code = NEAR_OK;
    for (size_t at = 0; at < n; at += GROUP)
        run_group(asks + at, n - at < GROUP ? n - at : GROUP, deadline, error);
}

/* -------------------------------------------------------------------------------------------- one server */

near_status
near__lanes_new(struct near__lanes **lanes, const struct near__lanes_env *env)
{
    struct near__lanes *l;

    *lanes = NULL;
    if (env->most == 0)
        return NEAR_ERR_INVALID;
    l = near__zeroed(alignof(struct near__lane), sizeof(*l) + env->most * sizeof(l->lane[0]));
    if (l == NULL)
        return NEAR_ERR_NOMEM;
    l->env     = *env;
    l->normal  = env->most > 1 ? env->most - 1 : 1;
    l->silence = env->connect_timeout > env->timeout ? env->connect_timeout : env->timeout;
    if (l->silence < SILENCE_LEAST)
        l->silence = SILENCE_LEAST;
    if (l->silence > SILENCE_MOST)
        l->silence = SILENCE_MOST;
    near__breaker_init(&l->breaker, env->log, env->name, env->connect_timeout);
    for (unsigned i = 0; i < env->most; i++) {
        l->lane[i].lanes = l;
        l->lane[i].fd    = -1;
        queue_init(&l->lane[i].waiting);
        queue_init(&l->lane[i].outstanding);
    }
    *lanes = l;
    return NEAR_OK;
}

void
near__lanes_stats(struct near__lanes *lanes, struct near__lanes_stats *stats)
{
    /* relaxed: counts */
    stats->connects    = atomic_load_explicit(&lanes->connects, memory_order_relaxed);
    stats->disconnects = atomic_load_explicit(&lanes->disconnects, memory_order_relaxed);
    stats->calls       = atomic_load_explicit(&lanes->calls, memory_order_relaxed);
    stats->batches     = atomic_load_explicit(&lanes->batches, memory_order_relaxed);
    stats->opened      = atomic_load_explicit(&lanes->breaker.opened, memory_order_relaxed);
}

const char *
near__lanes_name(const struct near__lanes *lanes)
{
    return lanes->env.name;
}

bool
near__lanes_down(struct near__lanes *lanes)
{
    return near__breaker_open(&lanes->breaker);
}

void
near__lanes_close(struct near__lanes *lanes)
{
    if (atomic_exchange(&lanes->closed, true))
        return;
    for (unsigned i = 0; i < lanes->env.most; i++)
        for (unsigned word = 0; word < WORDS; word++)
            wake(&lanes->lane[i], word, INT_MAX);
    near__futex_wake(&lanes->dialling, INT_MAX);
}

static void
drain(struct near__lane *lane)
{
    take_inbox(lane);
    put_before(&lane->waiting, &lane->outstanding);
    while (lane->waiting.first != NULL)
        free_call(lane, dequeue(&lane->waiting)); /* nobody's: their callers are gone */
}

/* `users` is raised before a caller looks at `closed`, and `closed` is set before this looks at `users`. */
void
near__lanes_stop(struct near__lanes *lanes)
{
    near__lanes_close(lanes);
    for (unsigned i = 0; i < lanes->env.most; i++) {
        struct near__lane *lane = &lanes->lane[i];

        while (atomic_load(&lane->users) > 0 || atomic_load(&lane->leader) != 0)
            nanosleep(&(struct timespec){ 0, NEAR_MS / 4 }, NULL);
        drain(lane);
        drop_connection(lane, !lanes->forked, false);
    }
}

void
near__lanes_free(struct near__lanes **lanes)
{
    struct near__lanes *l = *lanes;

    *lanes = NULL;
    if (l == NULL)
        return;
    near__lanes_stop(l);
    for (unsigned i = 0; i < l->env.most; i++) {
        free(l->lane[i].out.pieces);
        free(l->lane[i].in);
    }
    near__breaker_fini(&l->breaker);
    free(l);
}

/* Calls belonged to threads that do not exist here, and what a leader had in his hands may have been in mid-change: only descriptors
 * are closed, memory is left alone. */
void
near__lanes_forked(struct near__lanes *lanes)
{
    const struct near__lane_codec *codec = lanes->env.codec;

    near__breaker_forked(&lanes->breaker);
    lanes->forked = true;
    atomic_store(&lanes->closed, true);
    atomic_store(&lanes->dialling, 0);
    for (unsigned i = 0; i < lanes->env.most; i++) {
        struct near__lane *lane = &lanes->lane[i];
        bool               idle = atomic_load(&lane->leader) == 0 && lane->outstanding.first == NULL;

        if (lane->conn != NULL && idle)
            codec->drop(lane->conn, false);
        else if (lane->conn != NULL)
            codec->abandon(lane->conn);
        lane->conn      = NULL;
        lane->transport = NULL;
        atomic_store(&lane->fd, -1);
        queue_init(&lane->waiting);
        queue_init(&lane->outstanding);
        atomic_store(&lane->inbox, lane->epoch);
        atomic_store(&lane->leader, 0);
        atomic_store(&lane->users, 0);
    }
}
