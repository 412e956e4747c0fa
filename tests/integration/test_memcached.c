/*
 * What memcached and libmemcached do that others do not: the rules marked (T) of the L and M lists, each by
 * its name.
 *
 * Against real servers where they can be brought to it, else against a server of our own (`fake`), which
 * answers as it is told.
 */
#include "harness/test.h"

#include "base/le.h"
#include "harness/log.h"
#include "harness/proxy.h"
#include "harness/server.h"
#include "l2/backend.h"
#include "l2/memcached_conn.h"
#include "l2/memcached_router.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LIMIT_MS (3000 * (int64_t)test_slack())
#define SLACK_MS (400 * (int64_t)test_slack())
#define SERVERS  3

/* ------------------------------------------------------------------------------ a server that misbehaves */

enum mood {
    MOOD_EMPTY,        /* has nothing, stores nothing, says so politely */
    MOOD_CLIENT_ERROR, /* answers writes so, and one line too many */
    MOOD_NO_MEMORY,    /* SERVER_ERROR out of memory storing object */
    MOOD_WRONG_KEY,    /* gives another key's value */
    MOOD_NO_END,       /* gives no value, and ends with ERROR instead of END */
    MOOD_HALF,         /* announces a value, gives half of it and closes */
    MOOD_CAS_ZERO,     /* gives the value asked for with unique 0 */
    MOOD_HANG_UP,      /* closes instead of answering a write */
    MOOD_DRIP,         /* gives a value a byte at a time, 20 ms each */
    MOOD_GONE,         /* closes once it has answered a read, as long as `gone` lasts */
    MOOD_HOSTILE,      /* answers anything */
    MOOD_WORD          /* answers everything with `word` */
};

struct fake {
    char                path[108];
    char                directory[64];
    int                 listener;
    pthread_t           thread;
    _Atomic int         mood;
    atomic_bool         no_stats;
    atomic_int          hang_ups; /* so many times closes instead of answering `stats` */
    const char *_Atomic word;
    atomic_int          connections, writes, cas, stats;
    atomic_int          gone;   /* so many reads more */
    atomic_int          orphan; /* `cas` on a connection that has read nothing */
    _Atomic uint64_t    dice;
};

struct fake_connection {
    struct fake *fake;
    int          fd;
    bool         has_read;
};

static void
fake_says(int fd, const char *words)
{
    (void)!send(fd, words, strlen(words), MSG_NOSIGNAL);
}

static void
fake_drips(int fd, const char *key)
{
    fake_says(fd, "VALUE ");
    fake_says(fd, key);
    fake_says(fd, " 7 150\r\n");
    for (int i = 0; i < 150 && send(fd, "v", 1, MSG_NOSIGNAL) == 1; i++)
        nanosleep(&(struct timespec){ 0, 20 * NEAR_MS }, NULL);
    fake_says(fd, "\r\nEND\r\n");
}

/* It has an epoch, whatever its mood: 7, which its values carry. */
#define FAKE_EPOCH      "VALUE @epoch 0 1\r\n7\r\n"
#define FAKE_EPOCH_GETS "VALUE @epoch 0 1 5\r\n7\r\n"

/* Something that a server says, if not here and now; often with a byte changed, one lost, or all that follows. */
static void
fake_says_anything(struct fake *f, int fd)
{
    static const char *const words[] = {
        "STORED\r\n",
        "NOT_STORED\r\n",
        "EXISTS\r\n",
        "NOT_FOUND\r\n",
        "DELETED\r\n",
        "END\r\n",
        "ERROR\r\n",
        "\r\n",
        "CLIENT_ERROR line too long\r\n",
        "SERVER_ERROR out of memory storing object\r\n",
        "SERVER_ERROR object too large for cache\r\n",
        "VALUE k 7 5\r\nvalue\r\nEND\r\n",
        "VALUE k 7 16 9\r\n01234567\x01\x01\x01\x01\x01\x01\x01\x01\r\n" FAKE_EPOCH_GETS "END\r\n",
        "VALUE k 7 5\r\nvalue\r\n" FAKE_EPOCH "END\r\n",
        "VALUE k 0 2147483647 9\r\nvalue\r\n",
        "VALUE k 7 99999999999999999999 9\r\nvalue\r\nEND\r\n",
        "VALUE "
        "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"
        "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk"
        "kkkk"
        "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk 7 1 "
        "1\r\nx\r\nEND\r\n",
        "VERSION 1\r\n",
        "STAT a b\r\nEND\r\n",
        "HD\r\n",
        "STORED\r\nSTORED\r\n",
    };
    char     bytes[600];
    uint64_t seed = atomic_fetch_add(&f->dice, 1), dice = test_random(&seed);
    size_t   size = (size_t)snprintf(bytes, sizeof(bytes), "%s", words[dice % NEAR_COUNT_OF(words)]);

    dice >>= 8;
    if (dice % 4 == 0)
        bytes[(dice >> 8) % size] = (char)(dice >> 24);
    else if (dice % 4 == 1)
        size = (dice >> 8) % size;
    (void)!send(fd, bytes, size, MSG_NOSIGNAL);
    if (dice % 4 == 1)
        shutdown(fd, SHUT_RDWR);
}

static void
fake_gets(struct fake *f, int fd, const char *line)
{
    bool numbers  = line[3] == 's';
    char key[256] = "", words[600];

    sscanf(line, "%*s %255s", key);
    if (strcmp(key, "@epoch") == 0) {
        fake_says(fd, numbers ? FAKE_EPOCH_GETS "END\r\n" : FAKE_EPOCH "END\r\n");
        return;
    }
    switch (atomic_load(&f->mood)) {
    case MOOD_WRONG_KEY:
        fake_says(fd, "VALUE another 7 32\r\n0123456789abcdef0123456789abcdef\r\nEND\r\n");
        break;
    case MOOD_NO_END:
        fake_says(fd, "ERROR\r\n");
        break;
    case MOOD_HALF:
        snprintf(words, sizeof(words), "VALUE %s 7 32\r\n0123456789abcdef", key);
        fake_says(fd, words);
        shutdown(fd, SHUT_RDWR);
        break;
    case MOOD_CAS_ZERO: /* the stamp is 1 */
        snprintf(words, sizeof(words), "VALUE %s 7 16 0\r\n01234567", key);
        fake_says(fd, words);
        (void)!send(fd, "\x01\0\0\0\0\0\0\0\r\nEND\r\n", 15, MSG_NOSIGNAL);
        break;
    case MOOD_DRIP:
        fake_drips(fd, key);
        break;
    case MOOD_GONE: /* the stamp is 1 */
        snprintf(words, sizeof(words), "VALUE %s 7 16 9\r\n01234567", key);
        fake_says(fd, words);
        (void)!send(fd, "\x01\0\0\0\0\0\0\0\r\nEND\r\n", 15, MSG_NOSIGNAL);
        if (atomic_fetch_sub(&f->gone, 1) > 0)
            shutdown(fd, SHUT_RDWR);
        break;
    case MOOD_HOSTILE:
        fake_says_anything(f, fd);
        break;
    case MOOD_WORD:
        fake_says(fd, f->word);
        break;
    default:
        if (strstr(line, " @epoch") != NULL)
            fake_says(fd, numbers ? FAKE_EPOCH_GETS : FAKE_EPOCH);
        fake_says(fd, "END\r\n");
    }
}

static void
fake_write(struct fake *f, int fd, FILE *in, const char *line)
{
    size_t size = 0;

    sscanf(line, "%*s %*s %*s %*s %zu", &size);
    for (size += 2; size > 0; size--)
        getc(in);
    if (strstr(line, " @epoch ") != NULL) {
        fake_says(fd, "STORED\r\n");
        return;
    }
    atomic_fetch_add(&f->writes, 1);
    atomic_fetch_add(&f->cas, strncmp(line, "cas ", 4) == 0);
    switch (atomic_load(&f->mood)) {
    case MOOD_CLIENT_ERROR:
        fake_says(fd, "CLIENT_ERROR bad data chunk\r\nERROR\r\n");
        break;
    case MOOD_NO_MEMORY:
        fake_says(fd, "SERVER_ERROR out of memory storing object\r\n");
        break;
    case MOOD_GONE:
        fake_says(fd, "STORED\r\n");
        break;
    case MOOD_HOSTILE:
        fake_says_anything(f, fd);
        break;
    case MOOD_HANG_UP:
        shutdown(fd, SHUT_RDWR);
        break;
    case MOOD_WORD:
        fake_says(fd, f->word);
        break;
    default:
        fake_says(fd, "NOT_STORED\r\n");
    }
}

static void
fake_delete(struct fake *f, int fd)
{
    switch (atomic_load(&f->mood)) {
    case MOOD_HOSTILE:
        fake_says_anything(f, fd);
        break;
    case MOOD_HANG_UP:
        atomic_fetch_add(&f->writes, 1);
        shutdown(fd, SHUT_RDWR);
        break;
    case MOOD_WORD:
        atomic_fetch_add(&f->writes, 1);
        fake_says(fd, f->word);
        break;
    default:
        fake_says(fd, "NOT_FOUND\r\n");
    }
}

static void
fake_stats(struct fake *f, int fd)
{
    atomic_fetch_add(&f->stats, 1);
    if (atomic_fetch_sub(&f->hang_ups, 1) > 0)
        shutdown(fd, SHUT_RDWR);
    else
        fake_says(fd, f->no_stats ? "ERROR\r\n" : "STAT item_size_max 1048576\r\nEND\r\n");
}

static void *
fake_serve(void *ctx)
{
    struct fake_connection *c  = ctx;
    FILE                   *in = fdopen(c->fd, "r");
    char                    line[2048];

    while (in != NULL && fgets(line, sizeof(line), in) != NULL) {
        if (strncmp(line, "version", 7) == 0) {
            fake_says(c->fd, "VERSION 1.6.18\r\n");
        } else if (strncmp(line, "stats", 5) == 0) {
            fake_stats(c->fake, c->fd);
        } else if (strncmp(line, "get ", 4) == 0 || strncmp(line, "gets ", 5) == 0) {
            c->has_read = c->has_read || strncmp(line, "gets k", 6) == 0;
            fake_gets(c->fake, c->fd, line);
        } else if (strncmp(line, "quit", 4) == 0) {
            break;
        } else if (strncmp(line, "delete ", 7) == 0) {
            fake_delete(c->fake, c->fd);
        } else {
            atomic_fetch_add(&c->fake->orphan, strncmp(line, "cas k ", 6) == 0 && !c->has_read);
            fake_write(c->fake, c->fd, in, line);
        }
    }
    if (in != NULL)
        fclose(in);
    free(c);
    return NULL;
}

static void *
fake_accept(void *ctx)
{
    struct fake *f = ctx;
    pthread_t    threads[4096];
    size_t       n = 0;
    int          fd;

    while (n < NEAR_COUNT_OF(threads) && (fd = accept(f->listener, NULL, NULL)) >= 0) {
        struct fake_connection *c = malloc(sizeof(*c));
        atomic_fetch_add(&f->connections, 1);
        *c = (struct fake_connection){ f, fd, false };
        if (pthread_create(&threads[n], NULL, fake_serve, c) == 0)
            n++;
    }
    while (n > 0)
        pthread_join(threads[--n], NULL); /* their clients have gone by then */
    return NULL;
}

static bool
fake_start(struct fake *f, enum mood mood)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };

    memset(f, 0, sizeof(*f));
    f->mood = (int)mood;
    snprintf(f->directory, sizeof(f->directory), "/tmp/near-fake-XXXXXX");
    if (mkdtemp(f->directory) == NULL)
        return false;
    snprintf(f->path, sizeof(f->path), "%s/s", f->directory);
    snprintf(at.sun_path, sizeof(at.sun_path), "%s", f->path);
    f->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    return f->listener >= 0 && bind(f->listener, (struct sockaddr *)&at, sizeof(at)) == 0 &&
           listen(f->listener, 16) == 0 && pthread_create(&f->thread, NULL, fake_accept, f) == 0;
}

static void
fake_stop(struct fake *f)
{
    if (f->directory[0] == '\0')
        return;
    shutdown(f->listener, SHUT_RDWR);
    pthread_join(f->thread, NULL);
    close(f->listener);
    unlink(f->path);
    rmdir(f->directory);
    f->directory[0] = '\0';
}

/* --------------------------------------------------------------------------- an address that is not there */

/* Nobody accepts and the queue is full: whoever connects hears nothing. */
struct hole {
    int fds[8]; /* the listener first */
};

static void
hole_close(struct hole *hole)
{
    for (size_t i = 0; i < NEAR_COUNT_OF(hole->fds); i++) {
        if (hole->fds[i] > 0)
            close(hole->fds[i]);
        hole->fds[i] = 0;
    }
}

static bool
hole_open(struct hole *hole, uint32_t address, int *port)
{
    struct sockaddr_in at   = { .sin_family = AF_INET, .sin_port = htons((uint16_t)*port) };
    socklen_t          size = sizeof(at);

    at.sin_addr.s_addr = htonl(address);
    hole->fds[0]       = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(hole->fds[0], (struct sockaddr *)&at, sizeof(at)) != 0 || listen(hole->fds[0], 0) != 0 ||
        getsockname(hole->fds[0], (struct sockaddr *)&at, &size) != 0)
        return false;
    *port              = ntohs(at.sin_port);
    at.sin_addr.s_addr = htonl(address == INADDR_ANY ? INADDR_LOOPBACK : address);
    for (size_t i = 1; i < NEAR_COUNT_OF(hole->fds); i++) {
        hole->fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        connect(hole->fds[i], (struct sockaddr *)&at, size);
    }
    return true;
}

/* In this program, "several.test" is a name with these addresses, for libmemcached as well. */
static const char *several[8];

int
getaddrinfo(const char *restrict name, const char *restrict service, const struct addrinfo *restrict hints,
            struct addrinfo **restrict found)
{
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    struct addrinfo **end = found;
    int               code;

    *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    if (name == NULL || strcmp(name, "several.test") != 0)
        return real(name, service, hints, found);
    if (hints != NULL && (hints->ai_flags & AI_NUMERICHOST) != 0)
        return EAI_NONAME;
    for (size_t i = 0; i < NEAR_COUNT_OF(several) && several[i] != NULL; i++) {
        code = real(several[i], service, hints, end);
        if (code != 0)
            return code;
        while (*end != NULL)
            end = &(*end)->ai_next;
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------- world */

struct world {
    const struct near_l2_ops *ops;
    void                     *self;
    struct near__uri          uri;
    struct near_l2_env        env;
    struct near_l2_traits     traits;
    struct near__log          log;
    char                      logged[512]; /* the last line */
    struct test_server       *server[SERVERS];
    struct test_proxy        *proxy;
    struct fake               fake;
    struct hole               hole;
    int64_t                   connect_ms; /* 0: a second */
};

static void
note_log(void *ctx, near_log_level level, const char *message)
{
    struct world *w = ctx;

    (void)level;
    test_log_newest(w->logged, sizeof(w->logged), message);
}

static int
world_setup(void **state)
{
    *state = calloc(1, sizeof(struct world));
    return *state == NULL;
}

static void
world_close(struct world *w)
{
    if (w->self != NULL)
        w->ops->fini(w->self);
    w->self = NULL;
}

static int
world_teardown(void **state)
{
    struct world *w = *state;

    for (size_t i = 0; i < SERVERS; i++) {
        if (w->server[i] != NULL)
            test_server_resume(w->server[i]);
    }
    world_close(w);
    fake_stop(&w->fake);
    hole_close(&w->hole);
    test_proxy_stop(&w->proxy);
    for (size_t i = 0; i < SERVERS; i++)
        test_server_stop(&w->server[i]);
    free(w);
    return 0;
}

static void
world_open(struct world *w, const char *uri)
{
    near_error error = { 0 };

    assert_int_equal(near__uri_parse(&w->uri, "l2.uri", uri, &error), NEAR_OK);
    w->log = (struct near__log){ note_log, w };
    w->env = (struct near_l2_env){
        .uri             = &w->uri,
        .clock           = &near__clock_system,
        .log             = &w->log,
        .connect_timeout = (w->connect_ms > 0 ? w->connect_ms : 1000) * NEAR_MS,
        .pool_size       = 2,
        .max_stored      = (size_t)8 << 20,
        .client_name     = "test",
    };
    w->ops = near__l2_backend_named(w->uri.scheme);
    assert_int_equal(w->ops->open(&w->self, &w->env, &w->traits, &error), NEAR_OK);
}

static void
with_server(struct world *w, unsigned flags, const char *const *extra)
{
    w->server[0] = test_memcached_start(flags, extra);
    test_need_server(w->server[0]);
    world_open(w, w->server[0]->uri);
}

static void
with_ring(struct world *w)
{
    char uri[1024] = "memcached://";

    for (size_t i = 0; i < SERVERS; i++) {
        w->server[i] = test_memcached_start(TEST_SERVER_TCP, NULL);
        test_need_server(w->server[i]);
        snprintf(uri + strlen(uri), sizeof(uri) - strlen(uri), "%s127.0.0.1:%d", i > 0 ? "," : "",
                 w->server[i]->port);
    }
    world_open(w, uri);
}

static void
with_fake(struct world *w, enum mood mood)
{
    char uri[160];

    assert_true(fake_start(&w->fake, mood));
    snprintf(uri, sizeof(uri), "memcached+unix://%s", w->fake.path);
    world_open(w, uri);
}

static int64_t
after_ms(int64_t ms)
{
    return near__now(&near__clock_system) + ms * NEAR_MS;
}

struct got {
    unsigned times;
    size_t   size;
    char     data[64];
};

static void
note(void *ctx, struct near_l2_item *item, near_bytes stored)
{
    struct got *got = ctx;

    (void)item;
    got->times++;
    got->size = stored.size;
    memcpy(got->data, stored.data, stored.size < sizeof(got->data) ? stored.size : sizeof(got->data));
}

static enum near_l2_answer
get_status(struct world *w, const char *key, struct got *got, near_status *status, int64_t ms)
{
    struct near_l2_item item = { .key = { key, strlen(key) } };

    memset(got, 0, sizeof(*got));
    w->ops->get_many(w->self, &item, 1, note, got, after_ms(ms));
    *status = item.status;
    return item.answer;
}

static enum near_l2_answer
get(struct world *w, const char *key)
{
    struct got  got;
    near_status status;

    return get_status(w, key, &got, &status, LIMIT_MS);
}

static enum near_l2_answer
put(struct world *w, enum near_l2_mode mode, const char *key, near_bytes value, uint64_t expected,
    near_status *status)
{
    struct near_l2_item item = { .key = { key, strlen(key) }, .value = value, .expected = expected };

    w->ops->set_many(w->self, mode, &item, 1, NULL, after_ms(LIMIT_MS));
    *status = item.status;
    return item.answer;
}

static const near_bytes sample = { "01234567\x01\0\0\0\0\0\0\0sample", 22 };

static enum near_l2_answer
set(struct world *w, const char *key)
{
    near_status status;

    return put(w, NEAR_L2_ALWAYS, key, sample, 0, &status);
}

static uint64_t
connects(struct world *w)
{
    struct near_l2_stats stats;

    w->ops->stats(w->self, &stats);
    return stats.connects;
}

static long
server_stat(struct test_server *server, const char *name)
{
    char text[16384], line[64], *at;

    if (!test_memcached_command(server, text, sizeof(text), "stats"))
        return -1;
    snprintf(line, sizeof(line), "STAT %s ", name);
    at = strstr(text, line);
    return at == NULL ? -1 : strtol(at + strlen(line), NULL, 10);
}

/* ----------------------------------------------------------------------------------------------- L rules */

/* After an answer that is not on the list the connection is one line behind: it must not be used again. */
static void
test_L2_connection_is_dropped_after_a_client_error(void **state)
{
    struct world *w = *state;
    near_status   status;

    with_fake(w, MOOD_CLIENT_ERROR);
    assert_int_equal(put(w, NEAR_L2_ALWAYS, "k", sample, 0, &status), NEAR_L2_UNKNOWN);
    assert_int_equal(status, NEAR_ERR_PROTOCOL);
    assert_int_equal(w->fake.connections, 1);
    assert_non_null(strstr(w->logged, w->fake.path)); /* names the server, the operation and what follows */
    assert_non_null(strstr(w->logged, ": set: "));
    assert_non_null(strstr(w->logged, "connection dropped"));
    w->fake.mood = MOOD_EMPTY;
    assert_int_equal(get(w, "k"), NEAR_L2_ABSENT);
    assert_int_equal(w->fake.connections, 2);
    assert_int_equal(get(w, "k"), NEAR_L2_ABSENT);
    assert_int_equal(w->fake.connections, 2);
}

/* What is harmless as one command's answer is nonsense as another's: the replies have slipped. */
static void
test_L2_another_commands_answer_is_no_answer(void **state)
{
    static const char *const reads[]   = { "STORED\r\n", "DELETED\r\n", "NOT_STORED\r\n", "EXISTS\r\n" };
    static const char *const writes[]  = { "EXISTS\r\n", "NOT_FOUND\r\n", "NOT_STORED\r\n" };
    static const char *const deletes[] = { "STORED\r\n", "EXISTS\r\n", "NOT_STORED\r\n" };
    struct world            *w         = *state;
    struct near_l2_item      item      = { .key = { "k", 1 } };
    struct got               got;
    near_status              status;
    int                      dials = 0;

    with_fake(w, MOOD_WORD);
    for (size_t i = 0; i < NEAR_COUNT_OF(reads); i++) {
        w->fake.word = reads[i];
        assert_int_equal(get_status(w, "k", &got, &status, LIMIT_MS), NEAR_L2_ERROR);
        assert_int_equal(status, NEAR_ERR_PROTOCOL);
        assert_int_equal(w->fake.connections, ++dials);
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(writes); i++) {
        w->fake.word = writes[i];
        assert_int_equal(put(w, NEAR_L2_ALWAYS, "k", sample, 0, &status), NEAR_L2_UNKNOWN);
        assert_int_equal(status, NEAR_ERR_PROTOCOL);
        assert_int_equal(w->fake.connections, ++dials);
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(deletes); i++) {
        w->fake.word = deletes[i];
        w->ops->remove_many(w->self, NEAR_L2_ALWAYS, &item, 1, NULL, after_ms(LIMIT_MS));
        assert_int_equal(item.answer, NEAR_L2_UNKNOWN);
        assert_int_equal(item.status, NEAR_ERR_PROTOCOL);
        assert_int_equal(w->fake.connections, ++dials);
    }
}

static void
test_L2_server_out_of_memory_is_a_refusal(void **state)
{
    struct world *w = *state;
    near_status   status;

    with_fake(w, MOOD_NO_MEMORY);
    assert_int_equal(put(w, NEAR_L2_ALWAYS, "k", sample, 0, &status), NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_DENIED);
    assert_int_equal(w->fake.connections, 1); /* it has read the value to its end: nothing is in doubt */
    w->fake.mood = MOOD_EMPTY;
    assert_int_equal(get(w, "k"), NEAR_L2_ABSENT);
    assert_int_equal(w->fake.connections, 1);
}

/* G0: what comes back under another name is nobody's value. */
static void
test_L3_G0_another_keys_value_is_refused(void **state)
{
    struct world *w = *state;
    struct got    got;
    near_status   status;

    with_fake(w, MOOD_WRONG_KEY);
    assert_int_equal(get_status(w, "k", &got, &status, LIMIT_MS), NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_PROTOCOL);
    assert_int_equal(got.times, 0);
    w->fake.mood = MOOD_EMPTY;
    assert_int_equal(get(w, "k"), NEAR_L2_ABSENT);
    assert_int_equal(w->fake.connections, 2);
}

static void
test_L4_keys_are_checked_by_ourselves(void **state)
{
    char key[251];

    (void)state;
    memset(key, 'k', sizeof(key));
    assert_false(near__memcached_key_is_fit((near_bytes){ key, 0 }));
    assert_false(near__memcached_key_is_fit((near_bytes){ NULL, 0 }));
    assert_true(near__memcached_key_is_fit((near_bytes){ key, 1 }));
    assert_true(near__memcached_key_is_fit((near_bytes){ key, 250 }));
    assert_false(near__memcached_key_is_fit((near_bytes){ key, 251 }));
    for (unsigned byte = 0; byte < 256; byte++) {
        for (size_t at = 0; at < 3; at++) {
            key[at] = (char)byte;
            assert_int_equal(near__memcached_key_is_fit((near_bytes){ key, 3 }), byte > 0x20 && byte < 0x7F);
            key[at] = 'k';
        }
    }
}

static unsigned
route(const struct near__uri *uri, const char *key)
{
    struct near__memcached_router *router;
    unsigned                       home;

    assert_int_equal(near__memcached_router_new(&router, uri), NEAR_OK);
    home = (unsigned)near__memcached_route(router, (near_bytes){ key, strlen(key) });
    near__memcached_router_free(&router);
    return home;
}

/* Items of a dead or silent server are errors, those of the others are answered. */
static void
check_ring(struct world *w, unsigned down, int64_t ms)
{
    struct near_l2_item items[60];
    char                names[60][16];
    struct got          got   = { 0 };
    int64_t             began = test_now_ms();

    memset(items, 0, sizeof(items));
    for (unsigned i = 0; i < 60; i++) {
        snprintf(names[i], sizeof(names[i]), "ring:%u", i);
        items[i].key = (near_bytes){ names[i], strlen(names[i]) };
    }
    w->ops->get_many(w->self, items, 60, note, &got, after_ms(ms));
    assert_true(test_now_ms() - began < ms + SLACK_MS);
    for (unsigned i = 0; i < 60; i++) {
        if (route(&w->uri, names[i]) != down)
            assert_int_equal(items[i].answer, i % 2 == 0 ? NEAR_L2_DONE : NEAR_L2_ABSENT);
        else
            assert_true(items[i].answer == NEAR_L2_ERROR || items[i].answer == NEAR_L2_NOT_TRIED);
    }
}

static void
test_L6_a_dead_server_of_a_ring_is_not_absence(void **state)
{
    struct world *w = *state;
    char          name[16];

    with_ring(w);
    for (unsigned i = 0; i < 60; i += 2) {
        snprintf(name, sizeof(name), "ring:%u", i);
        assert_int_equal(set(w, name), NEAR_L2_DONE);
    }
    check_ring(w, SERVERS, LIMIT_MS);
    test_server_pause(w->server[1]);
    for (int round = 0; round < 3; round++)
        check_ring(w, 1, 300 * test_slack());
    test_server_resume(w->server[1]);
    test_server_kill(w->server[2]);
    for (int round = 0; round < 3; round++) {
        struct timespec pause = { 0,
                                  600 * NEAR_MS }; /* server 1 may be held back for half a second at most */
        if (round == 0)
            nanosleep(&pause, NULL);
        check_ring(w, 2, 300 * test_slack());
    }
}

static void
test_L6_failures_do_not_look_like_the_end(void **state)
{
    static const enum mood moods[] = { MOOD_NO_END, MOOD_HALF };
    struct world          *w       = *state;

    with_fake(w, MOOD_EMPTY);
    for (size_t i = 0; i < NEAR_COUNT_OF(moods); i++) {
        struct got  got;
        near_status status;
        w->fake.mood = (int)moods[i];
        assert_int_equal(get_status(w, "k", &got, &status, LIMIT_MS), NEAR_L2_ERROR);
        assert_int_not_equal(status, NEAR_OK);
        assert_int_equal(got.times, 0);
        w->fake.mood = MOOD_EMPTY;
        assert_int_equal(get(w, "k"), NEAR_L2_ABSENT);
    }
}

/* libmemcached's timeout begins anew with every poll: a server that sends a byte now and then would hold a
 * caller for ever. */
static void
test_L9_deadline_holds_when_bytes_drip(void **state)
{
    struct world *w = *state;
    static char   value[4000];
    struct got    got;
    near_status   status;
    int64_t       began;

    w->server[0] = test_memcached_start(0, NULL);
    test_need_server(w->server[0]);
    w->proxy = test_proxy_start(w->server[0]);
    assert_non_null(w->proxy);
    world_open(w, test_proxy_unix_uri(w->proxy));
    assert_int_equal(put(w, NEAR_L2_ALWAYS, "k", (near_bytes){ value, sizeof(value) }, 0, &status),
                     NEAR_L2_DONE);
    test_proxy_fault(w->proxy, (struct test_fault){ TEST_FAULT_DRIP, TEST_DOWN, .ms = 20, .bytes = 1 });
    began = test_now_ms();
    assert_int_equal(get_status(w, "k", &got, &status, 200), NEAR_L2_ERROR);
    assert_true(test_now_ms() - began < 200 + SLACK_MS);
    assert_int_equal(status, NEAR_ERR_TIMEOUT);
    assert_int_equal(got.times, 0);
}

/* One time for all addresses of a name, not one for each. */
static void
test_L9_a_name_with_several_dead_addresses(void **state)
{
    struct world *w = *state;
    struct got    got;
    near_status   status;
    char          uri[64];
    int64_t       began;
    int           port = 0;

    assert_true(hole_open(&w->hole, INADDR_ANY, &port));
    memcpy(several, (const char *[8]){ "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4" }, sizeof(several));
    snprintf(uri, sizeof(uri), "memcached://several.test:%d", port);
    world_open(w, uri);
    began = test_now_ms();
    assert_int_equal(get_status(w, "k", &got, &status, LIMIT_MS), NEAR_L2_ERROR);
    assert_true(test_now_ms() - began < 1000 + SLACK_MS);
    assert_int_equal(status, NEAR_ERR_TIMEOUT);
}

/* And a dead address leaves time for the next. */
static void
test_L9_a_dead_address_before_a_live_one(void **state)
{
    struct world *w = *state;
    char          uri[64];

    w->connect_ms = LIMIT_MS / 2;
    w->server[0]  = test_memcached_start(TEST_SERVER_TCP, NULL);
    test_need_server(w->server[0]);
    assert_true(hole_open(&w->hole, INADDR_LOOPBACK + 1, &w->server[0]->port));
    memcpy(several, (const char *[8]){ "127.0.0.2", "127.0.0.1" }, sizeof(several));
    snprintf(uri, sizeof(uri), "memcached://several.test:%d", w->server[0]->port);
    world_open(w, uri);
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    assert_int_equal(get(w, "k"), NEAR_L2_DONE);
    assert_int_equal(connects(w), 1);
}

/* The first try may meet the pool's pause after a dial that failed. */
static enum near_l2_answer
get_at_last(struct world *w, const char *key)
{
    enum near_l2_answer answer = get(w, key);

    for (int i = 0; i < 50 && answer == NEAR_L2_ERROR; i++) {
        nanosleep(&(struct timespec){ 0, 20 * NEAR_MS }, NULL);
        answer = get(w, key);
    }
    return answer;
}

/* libmemcached connects anew where it finds its socket closed, and the guard would shut the old one: such a
 * connection is never used. */
static void
test_L9_deadline_holds_after_a_hang_up_while_dialling(void **state)
{
    struct world *w = *state;
    struct got    got;
    near_status   status;
    int64_t       began;

    with_fake(w, MOOD_DRIP);
    w->fake.hang_ups = 1;
    began            = test_now_ms();
    assert_int_equal(get_status(w, "k", &got, &status, 300), NEAR_L2_ERROR);
    assert_true(test_now_ms() - began < 300 + SLACK_MS);
    assert_int_equal(got.times, 0);
    assert_int_equal(w->fake.connections, 1);
    w->fake.mood = MOOD_EMPTY;
    assert_int_equal(get_at_last(w, "k"), NEAR_L2_ABSENT);
    assert_int_equal(w->fake.connections, 2);
}

static void
test_L9_changing_timeouts_keep_the_connection(void **state)
{
    struct world *w = *state;
    struct got    got;
    near_status   status;

    with_server(w, 0, NULL);
    for (int i = 0; i < 100; i++)
        assert_int_equal(get_status(w, "k", &got, &status, LIMIT_MS + 10 * i), NEAR_L2_ABSENT);
    assert_int_equal(connects(w), 1);
}

static int
has_kicked(void *ctx)
{
    return server_stat(ctx, "idle_kicks") > 0;
}

/* The server closes a connection that idles; the first call afterwards succeeds all the same. */
static void
test_L11_idle_connection_closed_by_the_server(void **state)
{
    struct world *w = *state;
    near_status   status;

    with_server(w, TEST_SERVER_TCP,
                (const char *[]){ "-o", "idle_timeout=1", NULL }); /* it spares unix sockets */
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    assert_true(test_wait_for(has_kicked, w->server[0], 15000));
    assert_int_equal(put(w, NEAR_L2_IF_ABSENT, "new", sample, 0, &status), NEAR_L2_DONE);
    assert_int_equal(get(w, "k"), NEAR_L2_DONE);
    assert_int_equal(connects(w), 2);
}

static enum near_l2_answer
drop(struct world *w, const char *key, near_status *status)
{
    struct near_l2_item item = { .key = { key, strlen(key) } };

    w->ops->remove_many(w->self, NEAR_L2_ALWAYS, &item, 1, NULL, after_ms(LIMIT_MS));
    *status = item.status;
    return item.answer;
}

/* A removal is tried again, a write is not: its first copy may be executed after somebody else's newer one.  Neither is
 * said to be undone. */
static void
test_L11_a_lost_write_is_repeated_only_where_it_may_be(void **state)
{
    struct world *w = *state;
    near_status   status;

    with_fake(w, MOOD_HANG_UP);
    assert_int_equal(put(w, NEAR_L2_ALWAYS, "k", sample, 0, &status), NEAR_L2_UNKNOWN);
    assert_int_equal(status, NEAR_ERR_UNAVAILABLE);
    assert_int_equal(w->fake.writes, 1);
    assert_int_equal(put(w, NEAR_L2_IF_ABSENT, "k", sample, 0, &status), NEAR_L2_UNKNOWN);
    assert_int_equal(w->fake.writes, 2);
    assert_int_equal(drop(w, "k", &status), NEAR_L2_UNKNOWN);
    assert_int_equal(status, NEAR_ERR_UNAVAILABLE);
    assert_int_equal(w->fake.writes, 5); /* as often as lanes try */
}

struct writer {
    struct world       *world;
    pthread_t           thread;
    enum near_l2_answer answer;
    near_status         status;
};

static void *
write_blocked(void *ctx)
{
    struct writer *writer = ctx;

    writer->answer = put(writer->world, NEAR_L2_ALWAYS, "k", sample, 0, &writer->status);
    return NULL;
}

static int
is_the_older(void *ctx)
{
    struct world *w = ctx;
    struct got    got;
    near_status   status;

    return get_status(w, "k", &got, &status, LIMIT_MS) == NEAR_L2_DONE && got.size == sample.size;
}

/* A set whose connection is lost lies in front of the server; another one is acknowledged; then the server comes to the
 * first.  Had it been sent again, its writer would have heard that all is well. */
static void
test_L11_race9_a_set_that_may_come_late_is_not_acknowledged(void **state)
{
    static const near_bytes newer  = { "01234567\x02\0\0\0\0\0\0\0newer!!", 23 };
    struct world           *w      = *state;
    struct writer           writer = { .world = w };
    near_status             status;

    w->server[0] = test_memcached_start(0, NULL);
    test_need_server(w->server[0]);
    w->proxy = test_proxy_start(w->server[0]);
    assert_non_null(w->proxy);
    world_open(w, test_proxy_unix_uri(w->proxy));
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    test_proxy_fault(w->proxy, (struct test_fault){ TEST_FAULT_DELAY, TEST_UP, .ms = 3 * SLACK_MS });
    assert_int_equal(pthread_create(&writer.thread, NULL, write_blocked, &writer), 0);
    nanosleep(&(struct timespec){ 0, 100 * NEAR_MS }, NULL); /* until it has sent */
    test_proxy_fault(w->proxy, (struct test_fault){ .kind = TEST_FAULT_HANG_UP });
    pthread_join(writer.thread, NULL);
    assert_int_equal(put(w, NEAR_L2_ALWAYS, "k", newer, 0, &status), NEAR_L2_DONE);
    assert_false(is_the_older(w));
    assert_true(test_wait_for(is_the_older, w, LIMIT_MS)); /* the first one, late: nothing can prevent that */
    assert_int_equal(writer.answer, NEAR_L2_UNKNOWN);
    assert_int_equal(writer.status, NEAR_ERR_UNAVAILABLE);
}

/* `cas` with 0 is an error in one protocol and an unconditional write in the other. */
static void
test_L15_cas_zero_is_never_sent(void **state)
{
    struct world       *w    = *state;
    struct near_l2_item item = { .key = { "k", 1 }, .expected = 1 };
    near_status         status;

    with_fake(w, MOOD_CAS_ZERO);
    assert_int_equal(put(w, NEAR_L2_IF_STAMP, "k", sample, 1, &status), NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_PROTOCOL);
    w->ops->remove_many(w->self, NEAR_L2_IF_STAMP, &item, 1, NULL, after_ms(LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_ERROR);
    assert_int_equal(w->fake.writes, 0);
    assert_int_equal(w->fake.cas, 0);
}

/* The unique numbers of a server begin anew when it restarts: one from before must not meet one from
 * after. */
static void
test_L15_restart_between_writes_is_no_match(void **state)
{
    struct world *w = *state;
    near_status   status;

    with_server(w, 0, NULL);
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    test_server_kill(w->server[0]);
    assert_true(test_server_restart(w->server[0]));
    assert_int_equal(put(w, NEAR_L2_IF_STAMP, "k", sample, 1, &status), NEAR_L2_ABSENT);
}

/* Where the connection is lost between `gets` and `cas`, the number is not used on the next one: it is read
 * again. */
static void
test_L15_race31_no_number_outlives_its_connections(void **state)
{
    struct world       *w    = *state;
    struct near_l2_item item = { .key = { "k", 1 }, .expected = 1 };
    int                 done = 0;
    near_status         status;

    with_fake(w, MOOD_GONE);
    for (int round = 0; round < 20;
         round++) { /* now and then the `cas` is faster than the end: not known, then */
        w->fake.gone = 1 + round % 2;
        if (round % 4 < 2) {
            item.answer = put(w, NEAR_L2_IF_STAMP, "k", sample, 1, &status);
        } else {
            item.answer = NEAR_L2_NOT_TRIED;
            w->ops->remove_many(w->self, NEAR_L2_IF_STAMP, &item, 1, NULL, after_ms(LIMIT_MS));
        }
        assert_true(item.answer == NEAR_L2_DONE || item.answer == NEAR_L2_UNKNOWN);
        done += item.answer == NEAR_L2_DONE;
    }
    assert_true(done > 0 && w->fake.connections > 10);
    assert_int_equal(w->fake.orphan, 0);
    w->fake.gone = 1000; /* not for ever */
    item.answer  = put(w, NEAR_L2_IF_STAMP, "k", sample, 1, &status);
    assert_true(item.answer == NEAR_L2_ERROR || item.answer == NEAR_L2_UNKNOWN);
    assert_int_equal(w->fake.orphan, 0);
}

/* Without the cure a `cas` goes wherever there is a connection. */
static _Atomic bool numbers_outlive;

struct near__lane_ask __real_near__memcached_ask(struct near__memcached_call *call);
struct near__lane_ask __wrap_near__memcached_ask(struct near__memcached_call *call);
struct near__lane_ask
__wrap_near__memcached_ask(struct near__memcached_call *call)
{
    if (numbers_outlive)
        call->life = 0;
    return __real_near__memcached_ask(call);
}

static void
control_race31(void **state)
{
    struct world *w = *state;
    near_status   status;

    with_fake(w, MOOD_GONE);
    numbers_outlive = true;
    for (int round = 0; round < 200 && w->fake.orphan == 0; round++) {
        w->fake.gone = 1;
        put(w, NEAR_L2_IF_STAMP, "k", sample, 1, &status);
    }
    numbers_outlive = false;
    assert_true(w->fake.orphan > 0);
}

/* Whatever a server says, it ends connections and nothing else: every call has an answer in time, and a value
 * only under the key that was asked for. */
static void
test_L19_a_hostile_server_can_end_nothing(void **state)
{
    struct world *w          = *state;
    unsigned      answers[5] = { 0 };

    with_fake(w, MOOD_HOSTILE);
    for (unsigned i = 0; i < test_scale(300) && w->fake.connections < 4000; i++) {
        struct near_l2_item items[3] = { { .key = { "k", 1 }, .value = sample, .expected = 1 },
                                         { .key = { "k2", 2 }, .value = sample, .expected = 1 },
                                         { .key = { "k3", 2 }, .value = sample, .expected = 1 } };
        struct got          got      = { 0 };
        int64_t             began    = test_now_ms();

        if (i % 4 == 0)
            w->ops->get_many(w->self, items, 1 + i % 3, note, &got, after_ms(50));
        else if (i % 4 == 1)
            w->ops->remove_many(w->self, NEAR_L2_ALWAYS, items, 1 + i % 3, NULL, after_ms(50));
        else
            w->ops->set_many(w->self, (enum near_l2_mode)(i % 3), items, 1 + i % 3, NULL, after_ms(50));
        assert_true(test_now_ms() - began < 50 + SLACK_MS);
        for (unsigned n = 0; n < 1 + i % 3; n++)
            answers[items[n].answer]++;
    }
    assert_true(answers[NEAR_L2_DONE] > 0 && answers[NEAR_L2_ERROR] > 0 && answers[NEAR_L2_UNKNOWN] > 0);
    w->fake.mood = MOOD_EMPTY;
    assert_int_equal(get_at_last(w, "k"), NEAR_L2_ABSENT);
}

/* The expected servers were computed with an independent implementation of libketama's algorithm: 40 MD5
 * digests "label-i" for a server of average weight, four little-endian points each; a key belongs to the
 * first point at or after the first four bytes of its MD5.  libmemcached leaves the default port out of the
 * label. */
static void
test_L17_placement_is_ketamas(void **state)
{
    static const struct {
        const char *uri, *homes; /* of key:0, key:1, ... */
    } vectors[] = {
        { "memcached://10.0.1.1:11212,10.0.1.2:11212,10.0.1.3:11212",
          "0012000001212001012120211100122210012001212110212002211011111022" },
        { "memcached://10.0.1.1:11212:1,10.0.1.2:11212:2,10.0.1.3:11212:5",
          "1212000202222221222120222210222212012221222102222012211112122022" },
        { "memcached://cache-a,cache-b:11211,cache-c:11212",
          "1120102020101100000210101120022022000222002201200002101210210010" },
    };

    (void)state;
    for (size_t v = 0; v < NEAR_COUNT_OF(vectors); v++) {
        struct near__uri uri;
        assert_int_equal(near__uri_parse(&uri, "l2.uri", vectors[v].uri, NULL), NEAR_OK);
        for (unsigned i = 0; i < strlen(vectors[v].homes); i++) {
            char key[16];
            snprintf(key, sizeof(key), "key:%u", i);
            assert_int_equal(route(&uri, key), vectors[v].homes[i] - '0');
        }
    }
}

/* And what the router says is where the value lies. */
static void
test_L17_values_lie_where_the_router_says(void **state)
{
    struct world *w = *state;

    with_ring(w);
    for (unsigned i = 0; i < 30; i++) {
        char     key[16], command[32], reply[256];
        unsigned home;

        snprintf(key, sizeof(key), "key:%u", i);
        snprintf(command, sizeof(command), "get %s", key);
        home = route(&w->uri, key);
        assert_int_equal(set(w, key), NEAR_L2_DONE);
        for (unsigned s = 0; s < SERVERS; s++) {
            assert_true(test_memcached_command(w->server[s], reply, sizeof(reply), command));
            assert_int_equal(strncmp(reply, "VALUE ", 6) == 0, s == home);
        }
    }
}

/* A silent server costs what it may cost, each time. */
static void
test_L20_a_silent_server_never_costs_more_than_the_deadline(void **state)
{
    struct world *w = *state;

    with_server(w, 0, NULL);
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    test_server_pause(w->server[0]);
    for (int i = 0; i < 10; i++) {
        struct got  got;
        near_status status;
        int64_t     began = test_now_ms();
        assert_int_equal(get_status(w, "k", &got, &status, 60), NEAR_L2_ERROR);
        assert_true(status == NEAR_ERR_TIMEOUT || status == NEAR_ERR_UNAVAILABLE);
        assert_true(test_now_ms() - began < 60 + SLACK_MS);
    }
}

/* ----------------------------------------------------------------------------------------------- M rules */

static void
test_M1_ttl_to_exptime(void **state)
{
    const int64_t day = INT64_C(86400) * 1000, wall = INT64_C(1700000000) * 1000;

    (void)state;
    assert_int_equal(near__memcached_exptime(0, wall), 0);
    assert_int_equal(near__memcached_exptime(-1, wall), NEAR__MEMCACHED_EXPIRED);
    assert_int_equal(near__memcached_exptime(INT64_MIN, wall), NEAR__MEMCACHED_EXPIRED);
    assert_int_equal(near__memcached_exptime(1, wall),
                     2); /* rounded up, and the tick that may be about to come */
    assert_int_equal(near__memcached_exptime(999, wall), 2);
    assert_int_equal(near__memcached_exptime(1000, wall), 2);
    assert_int_equal(near__memcached_exptime(1001, wall), 3);
    assert_int_equal(near__memcached_exptime(30 * day - 1000, wall), 2592000);
    assert_int_equal(near__memcached_exptime(30 * day, wall),
                     1700000000 + 2592001); /* absolute from here on */
    assert_int_equal(near__memcached_exptime(31 * day, wall), 1700000000 + 31 * 86400 + 1);
    assert_int_equal(near__memcached_exptime(INT64_MAX, wall),
                     INT32_MAX); /* as late as the protocol can say */
}

/* Gone at once, and the old value with it. */
static void
test_M1_below_0_is_gone_at_once(void **state)
{
    struct world       *w    = *state;
    struct near_l2_item item = { .key = { "k", 1 }, .value = sample, .ttl_ms = -1 };

    with_server(w, 0, NULL);
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    w->ops->set_many(w->self, NEAR_L2_ALWAYS, &item, 1, NULL, after_ms(LIMIT_MS));
    assert_int_equal(item.answer, NEAR_L2_DONE);
    assert_int_equal(get(w, "k"), NEAR_L2_ABSENT);
}

/* Not a byte is sent for a call that cannot be: too many items, none, or a removal of what is absent. */
static void
test_impossible_calls_are_refused(void **state)
{
    struct world       *w = *state;
    struct near_l2_item items[NEAR_L2_READS + 1];
    struct got          got = { 0 };
    void               *none;
    near_error          error = { 0 };

    with_fake(w, MOOD_EMPTY);
    memset(items, 0, sizeof(items));
    for (size_t i = 0; i < NEAR_COUNT_OF(items); i++)
        items[i].key = (near_bytes){ "k", 1 };
    w->ops->get_many(w->self, items, NEAR_L2_READS + 1, note, &got, after_ms(LIMIT_MS));
    assert_int_equal(items[NEAR_L2_READS].status, NEAR_ERR_INVALID);
    w->ops->get_many(w->self, items, 0, note, &got, after_ms(LIMIT_MS));
    w->ops->set_many(w->self, NEAR_L2_ALWAYS, items, NEAR_L2_BATCH + 1, NULL, after_ms(LIMIT_MS));
    assert_int_equal(items[0].answer, NEAR_L2_ERROR);
    items[0].answer = NEAR_L2_NOT_TRIED;
    w->ops->remove_many(w->self, NEAR_L2_IF_ABSENT, items, 1, NULL, after_ms(LIMIT_MS));
    assert_int_equal(items[0].answer, NEAR_L2_ERROR);
    assert_int_equal(items[0].status, NEAR_ERR_INVALID);
    assert_int_equal(w->fake.connections, 0);
    w->env.max_stored = 0;
    assert_int_equal(w->ops->open(&none, &w->env, &w->traits, &error), NEAR_ERR_INVALID);
    assert_null(none);
}

static void
test_M2_over_the_setting_is_refused_before_harm(void **state)
{
    struct world *w     = *state;
    char         *large = calloc(1, (size_t)2 << 20);
    near_status   status;

    assert_non_null(large);
    with_server(w, 0, NULL); /* item_size_max 1 MiB */
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    assert_int_equal(put(w, NEAR_L2_ALWAYS, "k", (near_bytes){ large, (size_t)2 << 20 }, 0, &status),
                     NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_TOO_LARGE);
    assert_int_equal(get(w, "k"), NEAR_L2_DONE);
    assert_int_equal(connects(w), 1);
    free(large);
}

/* The server's true limit is a little lower.  It refuses and has removed the old value; so have we. */
static void
test_M2_refused_by_the_server_leaves_no_old_value(void **state)
{
    struct world *w     = *state;
    size_t        size  = ((size_t)1 << 20) - 10;
    char         *large = calloc(1, size);
    near_status   status;

    assert_non_null(large);
    with_server(w, 0, NULL);
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    assert_int_equal(put(w, NEAR_L2_ALWAYS, "k", (near_bytes){ large, size }, 0, &status), NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_TOO_LARGE);
    assert_int_equal(get(w, "k"), NEAR_L2_ABSENT);
    /* a condition that fails for its size changes nothing */
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    assert_int_equal(put(w, NEAR_L2_IF_STAMP, "k", (near_bytes){ large, size }, 1, &status), NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_TOO_LARGE);
    assert_int_equal(put(w, NEAR_L2_IF_ABSENT, "new", (near_bytes){ large, size }, 0, &status),
                     NEAR_L2_ERROR);
    assert_int_equal(get(w, "new"), NEAR_L2_ABSENT);
    assert_int_equal(get(w, "k"), NEAR_L2_DONE);
    free(large);
}

static void
test_M2_server_that_tells_no_settings_is_asked_once(void **state)
{
    struct world *w = *state;

    with_fake(w, MOOD_EMPTY);
    w->fake.no_stats = true;
    for (int i = 0; i < 20 && get(w, "k") != NEAR_L2_ABSENT;
         i++) /* the first dial is lost by it, and backed off for 10 ms */
        nanosleep(&(struct timespec){ 0, 20 * NEAR_MS }, NULL);
    assert_int_equal(get(w, "k"), NEAR_L2_ABSENT);
    assert_int_equal(w->fake.stats, 1);
}

/* A server that went away in the moment it was asked is asked again: its limit is worth knowing. */
static void
test_M2_settings_are_asked_for_again_after_a_hang_up(void **state)
{
    struct world *w     = *state;
    char         *large = calloc(1, (size_t)2 << 20);
    near_status   status;

    assert_non_null(large);
    with_fake(w, MOOD_EMPTY);
    w->fake.hang_ups = 1;
    assert_int_equal(get_at_last(w, "k"), NEAR_L2_ABSENT);
    assert_int_equal(w->fake.stats, 2);
    assert_int_equal(put(w, NEAR_L2_ALWAYS, "k", (near_bytes){ large, (size_t)2 << 20 }, 0, &status),
                     NEAR_L2_ERROR);
    assert_int_equal(status, NEAR_ERR_TOO_LARGE);
    assert_int_equal(w->fake.writes, 0);
    free(large);
}

/* A proxy that hangs up on what it does not know is not asked for ever. */
static void
test_M2_proxy_that_hangs_up_when_asked_is_used_all_the_same(void **state)
{
    struct world *w = *state;

    with_fake(w, MOOD_EMPTY);
    w->fake.hang_ups = 1000;
    assert_int_equal(get_at_last(w, "k"), NEAR_L2_ABSENT);
    assert_int_equal(w->fake.stats, 3);
}

/* -------------------------------------------------------------------------------------------------- fork */

struct reader {
    struct world       *world;
    int64_t             ms;
    pthread_t           thread;
    enum near_l2_answer answer;
    near_status         status;
};

static void *
read_blocked(void *ctx)
{
    struct reader *r = ctx;
    struct got     got;

    r->answer = get_status(r->world, "k", &got, &r->status, r->ms);
    return NULL;
}

/* How many unix sockets to `path` are open here. */
static int
sockets_to(const char *path)
{
    int n = 0;

    for (int fd = 0; fd < 256; fd++) {
        struct sockaddr_un peer = { 0 };
        socklen_t          size = sizeof(peer);
        n += getpeername(fd, (struct sockaddr *)&peer, &size) == 0 && peer.sun_family == AF_UNIX &&
             strcmp(peer.sun_path, path) == 0;
    }
    return n;
}

static void
start_blocked(struct reader *reader)
{
    assert_int_equal(pthread_create(&reader->thread, NULL, read_blocked, reader), 0);
    nanosleep(&(struct timespec){ 0, 100 * NEAR_MS }, NULL); /* until it has sent */
}

/* close() ends a dial that nobody answers, and says so. */
static void
test_close_wakes_a_dial(void **state)
{
    struct world *w      = *state;
    struct reader reader = { .world = w, .ms = 20 * LIMIT_MS };
    char          uri[64];
    int64_t       began;
    int           port = 0;

    w->connect_ms = 20 * LIMIT_MS;
    assert_true(hole_open(&w->hole, INADDR_LOOPBACK, &port));
    snprintf(uri, sizeof(uri), "memcached://127.0.0.1:%d", port);
    world_open(w, uri);
    start_blocked(&reader);
    began = test_now_ms();
    w->ops->close(w->self);
    pthread_join(reader.thread, NULL);
    assert_true(test_now_ms() - began < LIMIT_MS);
    assert_int_equal(reader.answer, NEAR_L2_ERROR);
    assert_int_equal(reader.status, NEAR_ERR_CLOSED);
}

/* One connection idle and one in use: the child closes both, says nothing on either, and both serve the
 * parent on. */
static void
test_P3_child_closes_descriptors_and_says_nothing(void **state)
{
    struct world *w   = *state;
    struct reader one = { .world = w, .ms = LIMIT_MS }, two = one;
    int           status = -1;
    long          clients;
    uint64_t      opened;
    pid_t         child;

    with_server(w, 0, NULL);
    assert_int_equal(set(w, "k"), NEAR_L2_DONE);
    test_server_pause(w->server[0]);
    start_blocked(&one);
    start_blocked(&two); /* dials */
    test_server_resume(w->server[0]);
    pthread_join(one.thread, NULL);
    pthread_join(two.thread, NULL);
    opened  = connects(w);
    clients = server_stat(w->server[0], "curr_connections");
    assert_int_equal(sockets_to(w->server[0]->socket), opened);
    test_server_pause(w->server[0]);
    start_blocked(&one);
    child = fork();
    if (child == 0) {
        int left;
        w->ops->forked(w->self);
        left = sockets_to(w->server[0]->socket);
        w->ops->fini(w->self);
        _exit(left);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    test_server_resume(w->server[0]);
    pthread_join(one.thread, NULL);
    assert_int_equal(status, 0);
    assert_int_equal(get(w, "k"), NEAR_L2_DONE);
    assert_int_equal(server_stat(w->server[0], "curr_connections"), clients);
    assert_int_equal(connects(w), opened);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_L2_connection_is_dropped_after_a_client_error),
        TEST(test_L2_another_commands_answer_is_no_answer),
        TEST(test_L2_server_out_of_memory_is_a_refusal),
        TEST(test_L3_G0_another_keys_value_is_refused),
        TEST(test_L4_keys_are_checked_by_ourselves),
        TEST(test_L6_a_dead_server_of_a_ring_is_not_absence),
        TEST(test_L6_failures_do_not_look_like_the_end),
        TEST(test_L9_deadline_holds_when_bytes_drip),
        TEST(test_L9_a_name_with_several_dead_addresses),
        TEST(test_L9_a_dead_address_before_a_live_one),
        TEST(test_L9_deadline_holds_after_a_hang_up_while_dialling),
        TEST(test_L9_changing_timeouts_keep_the_connection),
        TEST(test_L11_idle_connection_closed_by_the_server),
        TEST(test_L11_a_lost_write_is_repeated_only_where_it_may_be),
        TEST(test_L11_race9_a_set_that_may_come_late_is_not_acknowledged),
        TEST(test_L15_cas_zero_is_never_sent),
        TEST(test_L15_restart_between_writes_is_no_match),
        TEST(test_L15_race31_no_number_outlives_its_connections),
        TEST(control_race31),
        TEST(test_L17_placement_is_ketamas),
        TEST(test_L17_values_lie_where_the_router_says),
        TEST(test_L19_a_hostile_server_can_end_nothing),
        TEST(test_L20_a_silent_server_never_costs_more_than_the_deadline),
        TEST(test_M1_ttl_to_exptime),
        TEST(test_M1_below_0_is_gone_at_once),
        TEST(test_impossible_calls_are_refused),
        TEST(test_M2_over_the_setting_is_refused_before_harm),
        TEST(test_M2_refused_by_the_server_leaves_no_old_value),
        TEST(test_M2_server_that_tells_no_settings_is_asked_once),
        TEST(test_M2_settings_are_asked_for_again_after_a_hang_up),
        TEST(test_M2_proxy_that_hangs_up_when_asked_is_used_all_the_same),
        TEST(test_close_wakes_a_dial),
        TEST(test_P3_child_closes_descriptors_and_says_nothing),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
