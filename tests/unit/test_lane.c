/* Lanes over scripted servers: an echo protocol of our own, one server thread for each connection, and behaviour that tests set.
 *
 *     request and reply    4 bytes id | 4 bytes size | size bytes */
#include "harness/test.h"

#include "base/futex.h"
#include "l2/lane.h"
#include "l2/large.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HEAD        8
#define MOST        4 /* lanes, the one for bulk transfers included */
#define CONNECTIONS 512

/* What the servers do, and what they saw. */
static struct {
    _Atomic near_status dial_status;
    atomic_int          dial_ms, delay_ms;
    atomic_bool         silent; /* reads and says nothing */
    atomic_bool         drips;  /* a byte at a time */
    atomic_bool
        lies; /* the first of two requests that come together is answered with the second's id: the control */
    atomic_int cut; /* bytes of replies after which the connection is closed, once; -1: never */
    atomic_int dials, dialling, most_dialling, requests;
} server;

/* The servers hold back their answers, from a moment that one can be sure of: what is unanswered then stays so.  `lock` covers all of it. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t  over;
    bool            on, answered; /* answered: `watched` was, or is about to be */
    uint32_t        watched;      /* the id of a request */
    uint32_t        only;         /* that of the only request held; 0: all */
} hold = { .lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER };

static atomic_int polls,
    looks; /* calls of ppoll() by the lanes, and of usable() that were to look at the socket */

static struct near__lanes *lanes;
static int                 cancel_fd, logged_down, logged_up;
static pthread_mutex_t     threads_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_t           threads[CONNECTIONS];
static size_t              thread_count;

/* While `kept`, whoever finds that something has come is not let run, as on a busy machine; `keeping`: somebody is kept. */
static atomic_bool kept, keeping;
static atomic_bool poor; /* the system has no memory for ppoll() */

/* The lanes' own; the test and its servers use poll(). */
int
ppoll(struct pollfd *fds, nfds_t n, const struct timespec *time, const sigset_t *mask)
{
    struct timespec left = time != NULL ? *time : (struct timespec){ 0 };
    int             got;

    (void)mask;
    atomic_fetch_add(&polls, 1);
    if (atomic_load(&poor)) {
        errno = ENOMEM;
        return -1;
    }
    got = (int)syscall(SYS_ppoll, fds, n, time != NULL ? &left : NULL, NULL, 8);
    while (got > 0 && atomic_load(&kept)) {
        atomic_store(&keeping, true);
        usleep(1000);
    }
    return got;
}

/* ---------------------------------------------------------------------------------------------- the server */

static bool
read_all(int fd, char *at, size_t size)
{
    while (size > 0) {
        ssize_t n = recv(fd, at, size, 0);

        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static bool
write_all(int fd, const char *at, size_t size)
{
    while (size > 0) {
        int     cut  = atomic_load(&server.cut);
        size_t  part = atomic_load(&server.drips) ? 1 : size;
        ssize_t n;

        if (cut == 0) {
            atomic_store(&server.cut, -1);
            return false;
        }
        if (cut > 0 && part > (size_t)cut)
            part = (size_t)cut;
        n = send(fd, at, part, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        if (cut > 0)
            atomic_store(&server.cut, cut - (int)n);
        if (atomic_load(&server.drips))
            usleep(100);
        at += n;
        size -= (size_t)n;
    }
    return true;
}

static bool
has_more(int fd)
{
    struct pollfd one = { fd, POLLIN, 0 };

    return poll(&one, 1, 0) == 1;
}

static void
watch(uint32_t id)
{
    pthread_mutex_lock(&hold.lock);
    hold.watched  = id;
    hold.answered = false;
    pthread_mutex_unlock(&hold.lock);
}

/* Whether the request that is watched has been answered before. */
static bool
hold_begin(void)
{
    bool answered;

    pthread_mutex_lock(&hold.lock);
    hold.on  = true;
    answered = hold.answered;
    pthread_mutex_unlock(&hold.lock);
    return answered;
}

static void
hold_end(void)
{
    pthread_mutex_lock(&hold.lock);
    hold.on   = false;
    hold.only = 0;
    pthread_cond_broadcast(&hold.over);
    pthread_mutex_unlock(&hold.lock);
}

static void
about_to_answer(uint32_t id)
{
    pthread_mutex_lock(&hold.lock);
    while (hold.on && (hold.only == 0 || hold.only == id))
        pthread_cond_wait(&hold.over, &hold.lock);
    hold.answered |= id == hold.watched;
    pthread_mutex_unlock(&hold.lock);
}

static void *
serve(void *ctx)
{
    int      fd = (int)(intptr_t)ctx;
    char     head[HEAD], *body = NULL;
    uint32_t id, size;

    while (read_all(fd, head, HEAD)) {
        memcpy(&id, head, 4);
        memcpy(&size, head + 4, 4);
        body = realloc(body, size + 1);
        if (body == NULL || !read_all(fd, body, size))
            break;
        atomic_fetch_add(&server.requests, 1);
        while (atomic_load(&server.silent) && !has_more(fd))
            usleep(1000);
        if (atomic_load(&server.silent))
            continue;
        usleep((unsigned)atomic_load(&server.delay_ms) * 1000);
        about_to_answer(id);
        if (atomic_load(&server.lies) && has_more(fd))
            id++;
        memcpy(head, &id, 4);
        if (!write_all(fd, head, HEAD) || !write_all(fd, body, size))
            break;
    }
    free(body);
    close(fd);
    return NULL;
}

static bool
start_server(int fd)
{
    bool started;

    pthread_mutex_lock(&threads_lock);
    started = thread_count < CONNECTIONS &&
              pthread_create(&threads[thread_count], NULL, serve, (void *)(intptr_t)fd) == 0;
    thread_count += started;
    pthread_mutex_unlock(&threads_lock);
    return started;
}

/* ----------------------------------------------------------------------------------------------- the codec */

struct call {
    struct near__lane_call lane;
    uint32_t               id, size;
    uint32_t               said; /* the id in the reply */
    bool                   intact;
    size_t                 got;
    char                   head[HEAD];
    char                   bytes[];
};

struct conn {
    struct near__transport transport;
    char                   head[HEAD];
    size_t                 head_size;
};

static atomic_int calls_alive;

static _Thread_local atomic_bool *dialled_here; /* where this thread notes that it dials; NULL: nowhere */

static struct call *
call_new(uint32_t id, uint32_t size, bool idempotent)
{
    struct call *call = calloc(1, sizeof(*call) + size);

    call->id              = id;
    call->size            = size;
    call->intact          = true;
    call->lane.idempotent = idempotent;
    call->lane.operation  = "ECHO";
    memset(call->bytes, (int)(id % 251), size);
    atomic_fetch_add(&calls_alive, 1);
    return call;
}

static void
call_free(struct near__lane_call *call)
{
    atomic_fetch_sub(&calls_alive, 1);
    free(call);
}

static near_status
dial(void *ctx, void **out, int64_t deadline, near_error *error)
{
    int          fds[2], now = atomic_fetch_add(&server.dialling, 1) + 1;
    struct conn *conn;

    (void)ctx;
    (void)deadline;
    atomic_fetch_add(&server.dials, 1);
    if (dialled_here != NULL)
        atomic_store(dialled_here, true);
    if (now > atomic_load(&server.most_dialling))
        atomic_store(&server.most_dialling, now);
    usleep((unsigned)atomic_load(&server.dial_ms) * 1000);
    atomic_fetch_sub(&server.dialling, 1);
    if (atomic_load(&server.dial_status) != NEAR_OK)
        return near__fail(error, atomic_load(&server.dial_status), "echo: nobody is at home");
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
        return near__fail(error, NEAR_ERR_NOMEM, "echo: no sockets");
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    conn = calloc(1, sizeof(*conn));
    conn->transport =
        (struct near__transport){ .fd = fds[0], .cancel_fd = cancel_fd, .clock = &near__clock_system };
    if (!start_server(fds[1])) {
        close(fds[0]);
        close(fds[1]);
        free(conn);
        return near__fail(error, NEAR_ERR_NOMEM, "echo: no thread");
    }
    *out = conn;
    return NEAR_OK;
}

static void
drop(void *self, bool goodbye)
{
    struct conn *conn = self;

    (void)goodbye;
    near__transport_close(&conn->transport);
    free(conn);
}

static void
abandon(void *self)
{
    near__transport_close(&((struct conn *)self)->transport);
}

static struct near__transport *
transport(void *self)
{
    return &((struct conn *)self)->transport;
}

static bool
usable(void *self, bool lately)
{
    atomic_fetch_add(&looks, !lately);
    return lately || near__transport_quiet(&((struct conn *)self)->transport);
}

static near_status
begin(void *self, struct near__lane_call *lane, struct near__lane_out *out)
{
    struct call *call = (struct call *)lane;

    (void)self;
    memcpy(call->head, &call->id, 4);
    memcpy(call->head + 4, &call->size, 4);
    return near__lane_put(out, lane, call->head, HEAD) &&
                   (call->size == 0 || near__lane_put(out, lane, call->bytes, call->size))
               ? NEAR_OK
               : NEAR_ERR_NOMEM;
}

static near_status
receive(void *self, struct near__lane_call *oldest, const char *data, size_t size, size_t *complete,
        near_error *error)
{
    struct conn *conn = self;

    for (; size > 0; oldest = conn->head_size == 0 ? oldest->next : oldest) {
        struct call *call = (struct call *)oldest;
        size_t       part;

        if (call == NULL)
            return near__fail(error, NEAR_ERR_PROTOCOL, "echo: one too many");
        part = HEAD - conn->head_size < size ? HEAD - conn->head_size : size;
        memcpy(conn->head + conn->head_size, data, part);
        conn->head_size += part;
        data += part;
        size -= part;
        if (conn->head_size < HEAD)
            return NEAR_OK;
        part = call->size - call->got < size ? call->size - call->got : size;
        for (size_t i = 0; i < part; i++)
            call->intact &= (unsigned char)data[i] == call->id % 251;
        call->got += part;
        data += part;
        size -= part;
        if (call->got < call->size)
            return NEAR_OK;
        memcpy(&call->said, conn->head, 4);
        conn->head_size = 0;
        ++*complete;
    }
    return NEAR_OK;
}

static void
rewind_call(struct near__lane_call *lane)
{
    ((struct call *)lane)->got = 0;
}

static const struct near__lane_codec codec = { .dial      = dial,
                                               .drop      = drop,
                                               .abandon   = abandon,
                                               .transport = transport,
                                               .usable    = usable,
                                               .begin     = begin,
                                               .receive   = receive,
                                               .rewind    = rewind_call,
                                               .free_call = call_free };

static void
take_log(void *ctx, near_log_level level, const char *message)
{
    (void)ctx;
    (void)level;
    logged_down += strstr(message, "is down") != NULL;
    logged_up += strstr(message, "answers again") != NULL;
}

static const struct near__log log_sink = { take_log, NULL };

static int
setup_lanes(unsigned most, int64_t connect_ms, int64_t timeout_ms)
{
    struct near__lanes_env env = { .codec           = &codec,
                                   .clock           = &near__clock_system,
                                   .log             = &log_sink,
                                   .name            = "echo",
                                   .most            = most,
                                   .connect_timeout = connect_ms * NEAR_MS,
                                   .timeout         = timeout_ms * NEAR_MS,
                                   .cancel_fd       = &cancel_fd };

    memset(&server, 0, sizeof(server));
    polls = looks = 0;
    server.cut    = -1;
    logged_down = logged_up = 0;
    cancel_fd               = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return near__lanes_new(&lanes, &env) == NEAR_OK ? 0 : -1;
}

static int
setup(void **state)
{
    (void)state;
    return setup_lanes(MOST, 1000, 0);
}

/* One lane for all, and one for bulk transfers. */
static int
setup_two(void **state)
{
    (void)state;
    return setup_lanes(2, 1000, 5000);
}

/* A server that is dialled in no time, and may think for long. */
static int
setup_thoughtful(void **state)
{
    (void)state;
    return setup_lanes(MOST, 100, 5000);
}

static int
setup_quick(void **state)
{
    (void)state;
    return setup_lanes(MOST, 100, 0);
}

static int
setup_single(void **state)
{
    (void)state;
    return setup_lanes(1, 100, 0);
}

static int
teardown(void **state)
{
    const uint64_t one = 1;

    (void)state;
    server.silent = false;
    atomic_store(&kept, false);
    atomic_store(&poor, false);
    hold_end();
    near__lanes_close(lanes);
    if (write(cancel_fd, &one, sizeof(one)) < 0)
        return -1;
    near__lanes_free(&lanes);
    close(cancel_fd);
    while (thread_count > 0)
        pthread_join(threads[--thread_count], NULL);
    return atomic_load(&calls_alive) == 0 ? 0 : -1;
}

/* -------------------------------------------------------------------------------------------------- callers */

struct outcome {
    enum near__lane_outcome outcome;
    near_status             status;
    bool                    right, wrong, refused;
    int64_t                 ns;
};

static struct outcome
echo(uint32_t id, uint32_t size, bool idempotent, bool bulk, int64_t ms)
{
    struct call          *call  = call_new(id, size, idempotent);
    struct near__lane_ask ask   = { .lanes = lanes, .call = &call->lane };
    int64_t               began = near__now(&near__clock_system);
    struct outcome        o     = { 0 };

    call->lane.bulk = bulk;
    near__lanes_run(&ask, 1, began + ms * NEAR_MS, NULL);
    o = (struct outcome){ .outcome = ask.outcome,
                          .status  = ask.status,
                          .refused = ask.refused,
                          .ns      = near__now(&near__clock_system) - began };
    if (ask.outcome == NEAR__LANE_ANSWERED) {
        o.right = call->said == id && call->intact;
        o.wrong = !o.right;
    }
    if (ask.call != NULL)
        call_free(ask.call);
    return o;
}

struct caller {
    uint32_t       first;
    size_t         rounds;
    uint32_t       size;
    int64_t        ms;
    bool           bulk;
    atomic_bool   *stop; /* ends it before its rounds are over; NULL: nothing does */
    size_t         right, wrong, failed, refused, late;
    struct outcome last;
};

static void *
caller_run(void *ctx)
{
    struct caller *c = ctx;

    for (size_t i = 0; i < c->rounds && (c->stop == NULL || !atomic_load(c->stop)); i++) {
        c->last = echo(c->first + (uint32_t)i, c->size, true, c->bulk, c->ms);
        c->right += c->last.right;
        c->wrong += c->last.wrong;
        c->refused += c->last.refused;
        c->failed += c->last.outcome != NEAR__LANE_ANSWERED;
        c->late += c->last.ns > (c->ms + 20) * NEAR_MS;
    }
    return NULL;
}

static struct caller
run_callers(struct caller *callers, size_t n)
{
    pthread_t    *ids = calloc(n, sizeof(*ids));
    struct caller sum = { 0 };

    for (size_t i = 0; i < n; i++)
        assert_int_equal(pthread_create(&ids[i], NULL, caller_run, &callers[i]), 0);
    for (size_t i = 0; i < n; i++) {
        pthread_join(ids[i], NULL);
        sum.right += callers[i].right;
        sum.wrong += callers[i].wrong;
        sum.failed += callers[i].failed;
        sum.refused += callers[i].refused;
        sum.late += callers[i].late;
    }
    free(ids);
    return sum;
}

static struct caller
run_alike(size_t n, size_t rounds, uint32_t size, int64_t ms)
{
    struct caller callers[64];

    for (size_t i = 0; i < n; i++)
        callers[i] =
            (struct caller){ .first = (uint32_t)(i * 1000000), .rounds = rounds, .size = size, .ms = ms };
    return run_callers(callers, n);
}

static struct near__lanes_stats
stats(void)
{
    struct near__lanes_stats s;

    near__lanes_stats(lanes, &s);
    return s;
}

/* ---------------------------------------------------------------------------------------------------- tests */

static void
a_lone_caller_is_answered_over_one_connection(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 100; i++)
        assert_true(echo(i, i, true, false, 1000).right);
    assert_int_equal(stats().connects, 1);
    assert_int_equal(stats().disconnects, 0);
}

/* What the others pay for is not asked of him: that the connection lives, what else might happen meanwhile. */
static void
a_lone_caller_sends_and_receives_and_nothing_else(void **state)
{
    (void)state;
    /* a busy machine may take long over some, and a sanitizer is such a machine */
    for (int tries = 0; tries == 0 || (tries < 20 && (polls >= 200 || looks >= 500)); tries++) {
        polls = looks = 0;
        for (uint32_t i = 0; i < 1000; i++)
            assert_true(echo(i, 10, true, false, 20000).right);
    }
    assert_int_equal(stats().connects, 1);
    assert_true(polls < 200);
    assert_true(looks < 500 || test_slack() > 1);
}

static void
control_an_idle_connection_is_looked_at_and_a_slow_answer_polled_for(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 5; i++) {
        assert_true(echo(i, 10, true, false, 1000).right);
        usleep(1000);
    }
    assert_int_equal(looks, 4);
    for (uint32_t i = 0; i < 5; i++)
        assert_true(
            echo(i, 10, false, false, 1000).right); /* writes: it might not be known what became of them */
    assert_int_equal(looks, 9);
    server.delay_ms = 30;
    polls           = 0;
    assert_true(echo(10, 10, true, false, 1000).right);
    assert_true(polls > 0);
    polls = 0;
    assert_int_equal(echo(11, 10, true, false, 10).status,
                     NEAR_ERR_TIMEOUT); /* too short to sleep without poll */
    assert_true(polls > 0);
    assert_true(echo(12, 10, true, false, 1000).right);
}

/* Where ppoll() fails for good a leader looks for himself, and sleeps in between. */
static void
a_system_that_cannot_poll_is_not_asked_all_the_time(void **state)
{
    (void)state;
    assert_true(echo(1, 10, true, false, 20000).right);
    server.delay_ms = 100;
    polls           = 0;
    atomic_store(&poor, true);
    assert_true(echo(2, 10, true, false, 20000).right);
    atomic_store(&poor, false);
    assert_in_range(polls, 1, 20000); /* one a millisecond; without a pause thousands */
}

static void
many_callers_get_their_own_replies_and_share_sendings(void **state)
{
    size_t        rounds = test_scale(500);
    struct caller sum    = run_alike(16, rounds, 20, 5000);

    (void)state;
    assert_int_equal(sum.right, 16 * rounds);
    assert_true(stats().connects <= MOST);
    assert_true(stats().batches < stats().calls);
}

/* The control: the test would see a reply that is another's. */
static void
control_a_reply_of_anothers_would_be_seen(void **state)
{
    struct caller sum;

    (void)state;
    server.lies = true;
    sum         = run_alike(16, 200, 20, 5000);
    assert_true(sum.wrong > 0);
}

/* Cut behind any byte: whoever may be asked again is, and gets his own reply. */
static void
a_reply_cut_at_any_byte_is_asked_again(void **state)
{
    (void)state;
    for (int cut = 0; cut < HEAD + 40; cut++) {
        struct caller sum;

        atomic_store(&server.cut, cut);
        sum = run_alike(4, 2, 20, 2000);
        assert_int_equal(sum.right, 8);
    }
    assert_true(stats().disconnects > 0);
}

/* A write is not: it is LOST, or it was answered. */
static void
a_write_cut_at_any_byte_is_lost_not_repeated(void **state)
{
    (void)state;
    for (int cut = 0; cut < HEAD + 20; cut++) {
        struct outcome o;
        int            before = atomic_load(&server.requests);

        atomic_store(&server.cut, cut);
        o = echo(7, 20, false, false, 2000);
        assert_int_equal(o.outcome, NEAR__LANE_LOST);
        assert_int_equal(o.status, NEAR_ERR_UNAVAILABLE);
        assert_int_equal(atomic_load(&server.requests), before + 1);
    }
}

static void
replies_that_drip_are_put_together(void **state)
{
    struct caller sum;

    (void)state;
    server.drips = true;
    sum          = run_alike(4, 3, 30, 5000);
    assert_int_equal(sum.right, 12);
}

/* The hasty leave, the patient are answered. */
static void
who_gives_up_disturbs_nobody(void **state)
{
    struct caller callers[16], sum;
    size_t        hasty = 0;

    (void)state;
    assert_true(echo(1, 1, true, false, 1000).right);
    server.delay_ms = 10;
    for (size_t i = 0; i < 16; i++)
        callers[i] = (struct caller){ .first  = (uint32_t)(i * 1000),
                                      .rounds = i % 2 == 0 ? 1 : 5,
                                      .size   = 9,
                                      .ms     = i % 2 == 0 ? 15 : 20000 };
    sum = run_callers(callers, 16);
    assert_int_equal(sum.wrong, 0);
    for (size_t i = 0; i < 16; i++) {
        if (i % 2 == 0)
            hasty += callers[i].failed;
        else
            assert_int_equal(callers[i].right, 5);
    }
    assert_true(hasty > 0);
}

/* However many the hasty are: it is the server that is judged.  No patient one is refused. */
static void
callers_in_a_hurry_do_not_open_the_breaker(void **state)
{
    struct caller callers[12], sum;
    size_t        hasty = 0;

    (void)state;
    server.delay_ms = 30;
    for (size_t i = 0; i < 12; i++)
        callers[i] = (struct caller){ .first  = (uint32_t)(i * 1000),
                                      .rounds = i % 2 == 0 ? 60 : 3,
                                      .size   = 9,
                                      .ms     = i % 2 == 0 ? 14 : 20000 };
    sum = run_callers(callers, 12);
    assert_int_equal(sum.wrong, 0);
    assert_int_equal(sum.refused, 0);
    for (size_t i = 0; i < 12; i++) {
        if (i % 2 == 0)
            hasty += callers[i].failed;
        else
            assert_int_equal(callers[i].right, 3);
    }
    assert_true(hasty > 0);
    assert_int_equal(stats().opened, 0);
}

static int
is_down(void *ctx)
{
    (void)ctx;
    echo(5, 9, true, false, 60);
    return near__lanes_down(lanes);
}

/* An answer takes longer than a dial may, and less than the configured patience.  Who has less has learnt nothing about the server; and
 * one that says nothing at all is found out by such callers alone. */
static void
a_thoughtful_server_is_not_a_silent_one(void **state)
{
    (void)state;
    assert_true(echo(1, 1, true, false, 20000).right);
    server.delay_ms = 200;
    assert_int_equal(echo(2, 9, true, false, 130).status, NEAR_ERR_TIMEOUT);
    assert_int_equal(stats().opened, 0);
    assert_true(echo(3, 9, true, false, 20000).right);
    assert_int_equal(stats().opened, 0);
    server.delay_ms = 0;
    server.silent   = true;
    assert_true(test_wait_for(is_down, NULL, 20000));
}

static int
is_kept(void *ctx)
{
    (void)ctx;
    return atomic_load(&keeping);
}

/* The reply has come, but the leader does not get to read it while another caller gives up. */
static void
what_was_not_read_in_time_is_not_silence(void **state)
{
    struct caller  patient = { .first = 10, .rounds = 1, .size = 9, .ms = 60000 };
    struct outcome hasty;
    pthread_t      id;

    (void)state;
    assert_true(echo(1, 1, true, false, 20000).right);
    server.delay_ms = 50;
    atomic_store(&keeping, false);
    atomic_store(&kept, true);
    assert_int_equal(pthread_create(&id, NULL, caller_run, &patient), 0);
    assert_true(test_wait_for(is_kept, NULL, 20000));
    hasty = echo(2, 9, true, false, 300); /* long enough to take it for silence */
    atomic_store(&kept, false);
    pthread_join(id, NULL);
    assert_int_equal(hasty.status, NEAR_ERR_TIMEOUT);
    assert_int_equal(patient.right, 1);
    assert_int_equal(stats().opened, 0);
}

/* A dial that its caller had no time to finish says nothing about a server to which there is a connection that works. */
static void
a_hurried_dial_does_not_count_while_another_lane_works(void **state)
{
    (void)state;
    assert_true(echo(1, 1, true, false, 20000).right);
    usleep(200000); /* nothing was heard lately */
    server.dial_status = NEAR_ERR_TIMEOUT;
    server.dial_ms     = 120;
    assert_int_equal(echo(2, 9, true, true, 80).status, NEAR_ERR_TIMEOUT);
    assert_true(server.dials > 1);
    assert_int_equal(stats().opened, 0);
    assert_true(echo(3, 9, true, false, 20000).right);
}

/* The control: there is none. */
static void
control_hurried_dials_count_while_no_lane_works(void **state)
{
    (void)state;
    server.dial_status = NEAR_ERR_TIMEOUT;
    server.dial_ms     = 120;
    assert_int_equal(echo(2, 9, true, true, 80).status, NEAR_ERR_TIMEOUT);
    assert_int_equal(stats().opened, 1);
}

/* Only hasty ones: their connections stay, late replies are read away, and the next patient caller finds them. */
static void
connections_survive_those_who_give_up(void **state)
{
    struct caller sum;
    int           dials;

    (void)state;
    server.delay_ms = 10;
    sum             = run_alike(4, 30, 9, 4);
    assert_true(sum.failed > 0);
    assert_int_equal(sum.wrong, 0);
    dials = atomic_load(&server.dials);
    assert_true(dials <= MOST);
    assert_int_equal(stats().disconnects, 0);
    server.delay_ms = 0;
    usleep(20000);
    assert_true(echo(1, 9, true, false, 5000).right);
    assert_int_equal(atomic_load(&server.dials), dials);
}

/* A write that is given up takes its connection with it when nobody else waits there: it shall not be executed later than it has to. */
static void
a_write_given_up_ends_its_connection(void **state)
{
    struct outcome o;

    (void)state;
    assert_true(echo(1, 1, true, false, 1000).right);
    server.delay_ms = 10;
    o               = echo(2, 9, false, false, 4);
    assert_int_equal(o.outcome, NEAR__LANE_LOST);
    assert_int_equal(stats().disconnects, 1);
}

struct large {
    atomic_bool    begun, dialled;
    struct outcome outcome;
};

static void *
write_large(void *ctx)
{
    struct large *large = ctx;

    dialled_here = &large->dialled;
    atomic_store(&large->begun, true);
    large->outcome = echo(8, 9, false, true, 60000);
    dialled_here   = NULL;
    return NULL;
}

static int
has_begun(void *ctx)
{
    return atomic_load(&((struct large *)ctx)->begun);
}

static int
has_dialled(void *ctx)
{
    return atomic_load(&((struct large *)ctx)->dialled);
}

/* A write that ends as expected, given up before it was answered or answered; the servers hold back their answers since.  It may as
 * well never leave, or take its connection along. */
static bool
write_and_hold(int64_t ms, enum near__lane_outcome expected)
{
    int64_t until = test_now_ms() + 20000;

    for (uint32_t id = 900000; test_now_ms() < until; id++) {
        enum near__lane_outcome outcome;
        bool                    answered;

        watch(id);
        outcome  = echo(id, 9, false, false, ms + id % 10).outcome;
        answered = hold_begin();
        if (outcome == expected && answered == (expected == NEAR__LANE_ANSWERED))
            return true;
        hold_end();
    }
    return false;
}

/* Eight patient readers keep all lanes busy; a write among them is given up, or answered; then a large one comes.  Does it dial, while
 * nothing is answered? */
static bool
a_large_write_dials_after(int64_t ms, enum near__lane_outcome expected, int64_t wait_ms)
{
    struct caller callers[8];
    struct large  large = { .begun = false };
    pthread_t     ids[8], id;
    atomic_bool   stop  = false;
    size_t        wrong = 0;
    bool          held, dials;

    server.delay_ms = 10;
    for (size_t i = 0; i < 8; i++) {
        callers[i] = (struct caller){
            .first = (uint32_t)(i * 100000 + 1000), .rounds = 99000, .size = 9, .ms = 60000, .stop = &stop
        };
        assert_int_equal(pthread_create(&ids[i], NULL, caller_run, &callers[i]), 0);
    }
    usleep(100000);
    held = write_and_hold(ms, expected);
    assert_int_equal(pthread_create(&id, NULL, write_large, &large), 0);
    test_wait_for(has_begun, &large, 20000);
    dials = test_wait_for(has_dialled, &large, wait_ms);
    hold_end();
    pthread_join(id, NULL);
    atomic_store(&stop, true);
    for (size_t i = 0; i < 8; i++) {
        pthread_join(ids[i], NULL);
        wrong += callers[i].wrong + callers[i].failed;
    }
    assert_true(held);
    assert_int_equal(large.outcome.outcome, NEAR__LANE_ANSWERED);
    assert_int_equal(wrong, 0);
    return dials;
}

/* It cannot overtake the first one: it goes over the same connection, though it would have one of its own. */
static void
a_write_follows_one_that_was_given_up(void **state)
{
    (void)state;
    assert_false(a_large_write_dials_after(12, NEAR__LANE_GIVEN_UP, 100 * test_slack()));
}

static void
control_a_large_write_has_a_connection_of_its_own(void **state)
{
    (void)state;
    assert_true(a_large_write_dials_after(20000, NEAR__LANE_ANSWERED, 20000));
}

/* The server takes no second connection: everybody shares the first, and nothing opens. */
static void
a_refused_dial_does_not_count_while_another_lane_works(void **state)
{
    struct caller sum;
    int           dials;

    (void)state;
    assert_true(echo(1, 1, true, false, 1000).right);
    server.dial_status = NEAR_ERR_UNAVAILABLE;
    server.delay_ms    = 1;
    sum                = run_alike(16, 20, 9, 5000);
    dials              = atomic_load(&server.dials);
    assert_int_equal(sum.right, 320);
    assert_int_equal(stats().opened, 0);
    assert_true(dials > 1); /* they did try */
    assert_true(dials < 20);
}

/* The control: nothing works, so it does. */
static void
control_a_refused_dial_counts_while_no_lane_works(void **state)
{
    (void)state;
    server.dial_status = NEAR_ERR_UNAVAILABLE;
    assert_false(echo(1, 1, true, false, 1000).right);
    assert_int_equal(stats().opened, 1);
}

static int
answers(void *ctx)
{
    (void)ctx;
    return echo(3, 3, true, false, 1000).right;
}

/* One silence is one failure, however many waited: the first probe is not far away. */
static void
a_silence_counts_once_and_the_server_is_found_again_within_a_second(void **state)
{
    int64_t began;

    (void)state;
    server.silent = true;
    run_alike(16, 14, 10, 60);
    assert_true(near__lanes_down(lanes));
    assert_int_equal(stats().opened, 1);
    usleep(1000000); /* let the pauses between probes grow */
    server.silent = false;
    began         = test_now_ms();
    assert_true(test_wait_for(answers, NULL, 3000));
    assert_true(test_now_ms() - began < 1000 * test_slack());
}

enum { SILENT_CALLERS = 8, SILENT_ROUNDS = 12, SILENT_MS = 60 };

/* How often a thread that only sleeps wakes too late. */
static void *
sleep_and_count(void *ctx)
{
    for (int i = 0; i < SILENT_ROUNDS; i++) {
        int64_t began = near__now(&near__clock_system);

        usleep(SILENT_MS * 1000);
        *(size_t *)ctx += near__now(&near__clock_system) - began > (SILENT_MS + 20) * NEAR_MS;
    }
    return NULL;
}

static void
a_silent_server_costs_the_deadline_and_no_more(void **state)
{
    struct caller sum;
    pthread_t     sleepers[SILENT_CALLERS];
    size_t        late[SILENT_CALLERS] = { 0 }, excused = 1;

    (void)state;
    server.silent = true;
    for (size_t i = 0; i < SILENT_CALLERS; i++)
        assert_int_equal(pthread_create(&sleepers[i], NULL, sleep_and_count, &late[i]), 0);
    sum = run_alike(SILENT_CALLERS, SILENT_ROUNDS, 10, SILENT_MS); /* long enough to be taken for silence */
    for (size_t i = 0; i < SILENT_CALLERS; i++) {
        pthread_join(sleepers[i], NULL);
        excused += 2 * late[i];
    }
    assert_int_equal(sum.right + sum.wrong, 0);
    assert_int_equal(sum.failed, SILENT_CALLERS * SILENT_ROUNDS);
    if (test_slack() == 1)
        assert_true(sum.late <= excused); /* a machine that is busy elsewhere */
    assert_true(near__lanes_down(lanes));
    assert_int_equal(logged_down, 1);
}

static void
the_breaker_opens_once_and_the_server_is_found_again(void **state)
{
    int64_t began;
    int     dials;

    (void)state;
    server.dial_status = NEAR_ERR_UNAVAILABLE;
    assert_int_equal(run_alike(16, 200, 1, 1000).failed, 3200);
    dials = atomic_load(&server.dials);
    assert_true(dials < 100);
    assert_int_equal(logged_down, 1);
    usleep(500000); /* let the pauses between probes grow */
    answers(NULL);
    server.dial_status = NEAR_OK;
    began              = test_now_ms();
    assert_true(test_wait_for(answers, NULL, 1000));
    assert_true(test_now_ms() - began < 100 * test_slack());
    assert_int_equal(logged_up, 1);
    assert_int_equal(stats().opened, 1);
}

static void
an_open_breaker_costs_next_to_nothing(void **state)
{
    enum { BATCHES = 20, CALLS = 1000 };
    struct call          *call = call_new(1, 1, true);
    struct near__lane_ask ask;
    int64_t               began, least = INT64_MAX;
    size_t                refused = 0;

    (void)state;
    server.dial_status = NEAR_ERR_DENIED; /* long pauses between probes */
    for (int i = 0; i < 40; i++) {
        echo(1, 1, true, false, 100);
        usleep(1000);
    }
    for (int batch = 0; batch < BATCHES; batch++) {
        int64_t spent = 0, n = 0;

        for (int i = 0; i < CALLS; i++) {
            ask   = (struct near__lane_ask){ .lanes = lanes, .call = &call->lane };
            began = near__now(&near__clock_system);
            near__lanes_run(&ask, 1, began + 1000 * NEAR_MS, NULL);
            spent += ask.refused ? near__now(&near__clock_system) - began : 0;
            n += ask.refused;
            assert_int_equal(ask.status, NEAR_ERR_DENIED);
        }
        refused += (size_t)n;
        if (n > CALLS / 2 && spent / n < least) /* one that lost the processor for a while says nothing */
            least = spent / n;
    }
    call_free(&call->lane);
    assert_true(refused > BATCHES * CALLS * 9 / 10);
    print_message("refused in %d ns\n", (int)least);
    assert_true(least < 1000 * test_slack());
}

static void
sixty_four_threads_dial_one_at_a_time(void **state)
{
    struct caller sum;

    (void)state;
    server.dial_ms = 10;
    sum            = run_alike(64, 3, 5, 10000);
    assert_int_equal(sum.right, 192);
    assert_int_equal(server.most_dialling, 1);
    assert_true(server.dials <= MOST);
}

/* Both ends have full buffers unless replies are read while requests are sent. */
static void
large_calls_both_ways_do_not_block_each_other(void **state)
{
    struct caller sum = run_alike(4, 2, 4 * 1024 * 1024, 20000);

    (void)state;
    assert_int_equal(sum.right, 8);
}

/* Small calls pass a large one: it has a connection of its own. */
static void
small_calls_do_not_wait_for_a_large_one(void **state)
{
    struct caller callers[2] = {
        { .first = 1, .rounds = 1, .size = 8 * 1024 * 1024, .ms = 20000, .bulk = true },
        { .first = 1000, .rounds = 50, .size = 10, .ms = 20000 }
    };

    (void)state;
    assert_int_equal(run_callers(callers, 2).right, 51);
    assert_int_equal(stats().connects, 2);
}

static void *
close_soon(void *ctx)
{
    const uint64_t one = 1;

    (void)ctx;
    usleep(30000);
    near__lanes_close(lanes);
    return (void *)(intptr_t)write(cancel_fd, &one, sizeof(one));
}

/* A caller of both lanes, `first` over the one for all and `first + 1` over the one for bulk transfers. */
struct both {
    uint32_t      first;
    int64_t       ms;
    size_t        asked; /* 2, or 1: only at lane `from` */
    size_t        from;
    struct rusage used;
    bool          answered[2];
};

static void *
both_run(void *ctx)
{
    struct both          *both = ctx;
    struct near__lane_ask asks[2];

    for (uint32_t i = 0; i < 2; i++) {
        struct call *call = call_new(both->first + i, 100, true);

        call->lane.bulk = i == 1;
        asks[i]         = (struct near__lane_ask){ .lanes = lanes, .call = &call->lane };
    }
    near__lanes_run(asks + both->from, both->asked,
                    near__time_after(near__now(&near__clock_system), both->ms * NEAR_MS), NULL);
    for (uint32_t i = 0; i < 2; i++) {
        struct call *call = (struct call *)asks[i].call;

        both->answered[i] = i >= both->from && i < both->from + both->asked &&
                            asks[i].outcome == NEAR__LANE_ANSWERED && call->said == both->first + i &&
                            call->intact;
        if (call != NULL)
            call_free(&call->lane);
    }
    getrusage(RUSAGE_THREAD, &both->used);
    return NULL;
}

static void
await_requests(int n)
{
    while (atomic_load(&server.requests) < n)
        usleep(1000);
}

/* Another leads both: news of either ends the sleep, and nothing else does. */
static void
who_waits_at_several_lanes_sleeps(void **state)
{
    static const _Atomic uint32_t word     = 1;
    struct both                   leader   = { .first = 10, .ms = 60000, .asked = 2 };
    struct both                   follower = { .first = 20, .ms = 60000, .asked = 2 };
    pthread_t                     ids[2];

    (void)state;
    if (!near__futex_wait_any(&(struct near__futex_seen){ &word, 0 }, 1, NEAR_MS))
        skip(); /* Linux before 5.16 */
    hold_begin();
    assert_int_equal(pthread_create(&ids[0], NULL, both_run, &leader), 0);
    await_requests(2);
    assert_int_equal(pthread_create(&ids[1], NULL, both_run, &follower), 0);
    usleep(400 * 1000);
    hold_end();
    for (int i = 0; i < 2; i++)
        pthread_join(ids[i], NULL);
    for (int i = 0; i < 2; i++) {
        assert_true(leader.answered[i]);
        assert_true(follower.answered[i]);
    }
    assert_true(follower.used.ru_nvcsw <= 200); /* 1,600 looks otherwise */
}

/* One lane says nothing, at the other the leader leaves: the follower of both takes over there. */
static void
who_waits_at_several_lanes_leads_any_of_them(void **state)
{
    struct both held     = { .first = 10, .ms = 60000, .asked = 1 };
    struct both leader   = { .first = 20, .ms = 60000, .asked = 1, .from = 1 };
    struct both follower = { .first = 30, .ms = 1500, .asked = 2 };
    pthread_t   ids[3];

    (void)state;
    hold_begin();
    pthread_mutex_lock(&hold.lock);
    hold.only = 10;
    pthread_mutex_unlock(&hold.lock);
    server.delay_ms = 200;
    assert_int_equal(pthread_create(&ids[0], NULL, both_run, &held), 0);
    assert_int_equal(pthread_create(&ids[1], NULL, both_run, &leader), 0);
    await_requests(2);
    assert_int_equal(pthread_create(&ids[2], NULL, both_run, &follower), 0);
    pthread_join(ids[2], NULL);
    hold_end();
    pthread_join(ids[0], NULL);
    pthread_join(ids[1], NULL);
    assert_true(held.answered[0]);
    assert_true(leader.answered[1]);
    assert_true(follower.answered[1]);
    assert_false(follower.answered[0]);
}

static void
close_wakes_everybody(void **state)
{
    struct caller callers[8], sum;
    pthread_t     closer;

    (void)state;
    server.silent = true;
    for (size_t i = 0; i < 8; i++)
        callers[i] = (struct caller){ .first = (uint32_t)i, .rounds = 1, .size = 3, .ms = 60000 };
    assert_int_equal(pthread_create(&closer, NULL, close_soon, NULL), 0);
    sum = run_callers(callers, 8);
    pthread_join(closer, NULL);
    assert_int_equal(sum.failed, 8);
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(callers[i].last.status, NEAR_ERR_CLOSED);
        assert_true(callers[i].last.ns < 5000 * NEAR_MS);
    }
}

/* Ten times as many keys as there are places: none is known that was not noted, and all can be forgotten. */
static void
large_values_are_remembered_until_they_are_small(void **state)
{
    static struct near__large large;
    char                      key[16];
    unsigned                  known = 0;

    (void)state;
    near__large_note(&large, near_key("small"), NEAR__LARGE - 1);
    assert_int_equal(large.n, 0);
    near__large_note(&large, near_key("k"), NEAR__LARGE);
    near__large_note(&large, near_key("k"), NEAR__LARGE);
    assert_true(near__large_has(&large, near_key("k")));
    assert_false(near__large_has(&large, near_key("small")));
    near__large_note(&large, near_key("other"), 1);
    assert_true(near__large_has(&large, near_key("k")));
    near__large_note(&large, near_key("k"), 1);
    assert_false(near__large_has(&large, near_key("k")));
    assert_int_equal(large.n, 0);
    for (unsigned i = 0; i < 10 * NEAR__LARGE_PLACES; i++) {
        snprintf(key, sizeof(key), "key%u", i);
        assert_false(near__large_has(&large, near_key(key)));
        near__large_note(&large, near_key(key), NEAR__LARGE);
    }
    assert_true(large.n <= NEAR__LARGE_PLACES && large.n > NEAR__LARGE_PLACES / 2);
    for (unsigned i = 0; i < 10 * NEAR__LARGE_PLACES; i++) {
        snprintf(key, sizeof(key), "key%u", i);
        known += near__large_has(&large, near_key(key));
        near__large_note(&large, near_key(key), 0);
    }
    assert_true(known > NEAR__LARGE_PLACES / 2);
    assert_int_equal(large.n, 0);
}

#define LANE_TEST(f)             cmocka_unit_test_setup_teardown(f, setup, teardown)
#define LANE_TEST_WITH(f, setup) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        LANE_TEST(a_lone_caller_is_answered_over_one_connection),
        LANE_TEST(a_lone_caller_sends_and_receives_and_nothing_else),
        LANE_TEST(control_an_idle_connection_is_looked_at_and_a_slow_answer_polled_for),
        LANE_TEST(a_system_that_cannot_poll_is_not_asked_all_the_time),
        LANE_TEST(many_callers_get_their_own_replies_and_share_sendings),
        LANE_TEST(control_a_reply_of_anothers_would_be_seen),
        LANE_TEST(a_reply_cut_at_any_byte_is_asked_again),
        LANE_TEST(a_write_cut_at_any_byte_is_lost_not_repeated),
        LANE_TEST(replies_that_drip_are_put_together),
        LANE_TEST(who_gives_up_disturbs_nobody),
        LANE_TEST(callers_in_a_hurry_do_not_open_the_breaker),
        LANE_TEST_WITH(a_thoughtful_server_is_not_a_silent_one, setup_thoughtful),
        LANE_TEST_WITH(what_was_not_read_in_time_is_not_silence, setup_single),
        LANE_TEST_WITH(a_hurried_dial_does_not_count_while_another_lane_works, setup_quick),
        LANE_TEST_WITH(control_hurried_dials_count_while_no_lane_works, setup_quick),
        LANE_TEST(connections_survive_those_who_give_up),
        LANE_TEST(a_write_given_up_ends_its_connection),
        LANE_TEST(a_write_follows_one_that_was_given_up),
        LANE_TEST(control_a_large_write_has_a_connection_of_its_own),
        LANE_TEST(a_refused_dial_does_not_count_while_another_lane_works),
        LANE_TEST(control_a_refused_dial_counts_while_no_lane_works),
        LANE_TEST(a_silence_counts_once_and_the_server_is_found_again_within_a_second),
        LANE_TEST(a_silent_server_costs_the_deadline_and_no_more),
        LANE_TEST(the_breaker_opens_once_and_the_server_is_found_again),
        LANE_TEST(an_open_breaker_costs_next_to_nothing),
        LANE_TEST(sixty_four_threads_dial_one_at_a_time),
        LANE_TEST(large_calls_both_ways_do_not_block_each_other),
        LANE_TEST(small_calls_do_not_wait_for_a_large_one),
        LANE_TEST(close_wakes_everybody),
        LANE_TEST_WITH(who_waits_at_several_lanes_sleeps, setup_two),
        LANE_TEST_WITH(who_waits_at_several_lanes_leads_any_of_them, setup_two),
        cmocka_unit_test(large_values_are_remembered_until_they_are_small),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
