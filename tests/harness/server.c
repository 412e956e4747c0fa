/*
 * Servers are child processes, each with a directory that holds its socket and its log.  All of them are on one list, owned by the
 * process that started the first; only the main thread starts, stops and lists them, so there is no lock.  What can never happen:
 * that a server which answers on our address but is not our child is taken for ours (its own word on its pid is compared).
 */
#include "harness/test.h"

#include "harness/server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_MS     10000 /* to the first answer, times test_slack() */
#define START_TRIES  20    /* a port found free may be taken by the time the server binds it */
#define ARGUMENTS    64
#define COMMAND_MS   5000 /* one harness command, times test_slack() */
#define TMPDIR_LIMIT 60   /* a longer one leaves no room for a socket's name */

static struct test_server *servers;      /* newest first */
static pid_t               owner;        /* whose they are: a forked child must not reap */
static bool                start_failed; /* some start failed although its binary is there */

/* ------------------------------------------------------------------------------------------- small talk */

static void
socket_timeouts(int fd)
{
    int64_t        ms = COMMAND_MS * test_slack();
    struct timeval tv = { ms / 1000, ms % 1000 * 1000 };

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
}

bool
test_unix_address(struct sockaddr_un *address, const char *path)
{
    size_t size = strlen(path);

    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    if (size >= sizeof(address->sun_path))
        return false;
    memcpy(address->sun_path, path, size);
    return true;
}

static int
connect_unix(const char *path)
{
    struct sockaddr_un to;
    int fd = test_unix_address(&to, path) ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;

    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int
connect_port(int port)
{
    struct sockaddr_in to  = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    int                fd  = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int                one = 1;

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof(to)) != 0) {
        close(fd);
        return -1;
    }
    if (fd >= 0)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

int
test_server_connect(const struct test_server *server)
{
    int fd = server->socket[0] != '\0' ? connect_unix(server->socket) : connect_port(server->port);

    if (fd >= 0)
        socket_timeouts(fd);
    return fd;
}

static bool
send_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t n = send(fd, data, size, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

/* Text collected for the caller: always ends with NUL, what does not fit is dropped. */
struct text {
    char  *out;
    size_t size, used;
};

static void
text_add(struct text *text, const char *data, size_t size)
{
    size_t room = text->size > text->used + 1 ? text->size - text->used - 1 : 0;

    if (size > room)
        size = room;
    memcpy(text->out + text->used, data, size);
    text->used += size;
    if (text->size > 0)
        text->out[text->used] = '\0';
}

static void
text_words(struct text *text, const char *words)
{
    text_add(text, words, strlen(words));
}

/* A buffered reader of one connection. */
struct reader {
    int    fd;
    size_t at, end;
    char   buffer[4096];
};

static int
read_byte(struct reader *reader)
{
    if (reader->at == reader->end) {
        ssize_t n;

        do
            n = recv(reader->fd, reader->buffer, sizeof(reader->buffer), 0);
        while (n < 0 && errno == EINTR);
        if (n <= 0)
            return -1;
        reader->at  = 0;
        reader->end = (size_t)n;
    }
    return (unsigned char)reader->buffer[reader->at++];
}

/* One line without its CRLF; longer ones are cut to `size`. */
static bool
read_line(struct reader *reader, char *line, size_t size)
{
    size_t used = 0;
    int    c;

    while ((c = read_byte(reader)) != '\n') {
        if (c < 0)
            return false;
        if (c != '\r' && used + 1 < size)
            line[used++] = (char)c;
    }
    line[used] = '\0';
    return true;
}

static bool
read_bulk(struct reader *reader, long long size, struct text *text)
{
    for (long long i = 0; i < size + 2; i++) {
        int  c = read_byte(reader);
        char byte;

        if (c < 0)
            return false;
        byte = (char)c;
        if (i < size)
            text_add(text, &byte, 1);
    }
    return true;
}

/* One RESP2 reply as text.  `*refused` is set by an error reply on top level. */
static bool
read_reply(struct reader *reader, struct text *text, bool *refused, int depth)
{
    char      line[1024];
    long long n;

    if (depth > 8 || !read_line(reader, line, sizeof(line)))
        return false;
    n = strtoll(line + 1, NULL, 10);
    switch (line[0]) {
    case '-':
        *refused = depth == 0;
        /* fall through */
    case '+':
    case ':':
        text_words(text, line + 1);
        return true;
    case '$':
        if (n < 0)
            text_words(text, "(nil)");
        return n < 0 || read_bulk(reader, n, text);
    case '*':
        if (n < 0)
            text_words(text, "(nil)");
        for (long long i = 0; i < n; i++) {
            if (i > 0)
                text_words(text, "\n");
            if (!read_reply(reader, text, refused, depth + 1))
                return false;
        }
        return true;
    default:
        return false;
    }
}

static bool
send_command(int fd, int argc, const char *const *argv)
{
    char head[32];

    snprintf(head, sizeof(head), "*%d\r\n", argc);
    if (!send_all(fd, head, strlen(head)))
        return false;
    for (int i = 0; i < argc; i++) {
        snprintf(head, sizeof(head), "$%zu\r\n", strlen(argv[i]));
        if (!send_all(fd, head, strlen(head)) || !send_all(fd, argv[i], strlen(argv[i])) ||
            !send_all(fd, "\r\n", 2))
            return false;
    }
    return true;
}

static bool
exchange(struct reader *reader, struct text *text, int argc, const char *const *argv)
{
    bool refused = false;

    text->used = 0;
    if (!send_command(reader->fd, argc, argv) || !read_reply(reader, text, &refused, 0)) {
        text->used = 0;
        text_words(text, "no answer: ");
        text_words(text, strerror(errno));
        return false;
    }
    return !refused;
}

bool
test_redis_command(struct test_server *server, char *out, size_t size, int argc, const char *const *argv)
{
    struct text   text   = { out, size, 0 };
    struct reader reader = { .fd = test_server_connect(server) };
    bool          ok     = reader.fd >= 0;

    if (!ok) {
        text_words(&text, "no connection: ");
        text_words(&text, strerror(errno));
        return false;
    }
    if (server->password != NULL)
        ok = exchange(&reader, &text, 2, (const char *[]){ "AUTH", server->password });
    ok = ok && exchange(&reader, &text, argc, argv);
    close(reader.fd);
    return ok;
}

static bool
memcached_last_line(const char *line)
{
    static const char *const more[] = { "STAT ", "VALUE ", "ITEM " };

    for (size_t i = 0; i < NEAR_COUNT_OF(more); i++)
        if (strncmp(line, more[i], strlen(more[i])) == 0)
            return false;
    return true;
}

/* The data block after "VALUE key flags bytes". */
static bool
memcached_data(struct reader *reader, const char *line, struct text *text)
{
    long long size;

    if (sscanf(line, "VALUE %*s %*s %lld", &size) != 1)
        return true;
    return read_bulk(reader, size, text);
}

bool
test_memcached_command(struct test_server *server, char *out, size_t size, const char *command)
{
    struct text   text   = { out, size, 0 };
    struct reader reader = { .fd = test_server_connect(server) };
    char          line[1024];
    bool          ok =
        reader.fd >= 0 && send_all(reader.fd, command, strlen(command)) && send_all(reader.fd, "\r\n", 2);

    text_add(&text, "", 0);
    while (ok) {
        ok = read_line(&reader, line, sizeof(line));
        if (!ok)
            break;
        if (text.used > 0)
            text_words(&text, "\n");
        text_words(&text, line);
        if (memcached_last_line(line))
            break;
        if (strncmp(line, "VALUE ", 6) == 0) {
            text_words(&text, "\n");
            ok = memcached_data(&reader, line, &text);
        }
    }
    if (reader.fd >= 0)
        close(reader.fd);
    return ok;
}

/* -------------------------------------------------------------------------------------------- processes */

static bool
is_redis(const struct test_server *server)
{
    return strcmp(server->kind, "redis") == 0;
}

/* What the server that answers on our address says its pid is; 0 when it does not say. */
static long
pid_that_answers(struct test_server *server)
{
    char  text[16384];
    char *found;
    bool  ok;

    if (is_redis(server))
        ok = test_redis_command(server, text, sizeof(text), 2, (const char *[]){ "INFO", "server" });
    else
        ok = test_memcached_command(server, text, sizeof(text), "stats");
    if (!ok)
        return 0;
    found = strstr(text, is_redis(server) ? "process_id:" : "STAT pid ");
    return found == NULL ? 0 : strtol(found + (is_redis(server) ? 11 : 9), NULL, 10);
}

/* In the child, between fork and exec: only calls that are safe there. */
static void
become_server(struct test_server *server, pid_t parent, const char *log)
{
    sigset_t none;
    int      fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int      in = open("/dev/null", O_RDONLY | O_CLOEXEC);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it died before the line above */
        _exit(127);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (fd < 0 || in < 0 || dup2(in, 0) < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0 ||
        chdir(server->directory) != 0)
        _exit(126);
    execv(server->argv[0], server->argv);
    _exit(127);
}

static void
reap_child(struct test_server *server)
{
    if (server->pid <= 0)
        return;
    kill(server->pid, SIGKILL); /* ends a stopped process too */
    while (waitpid(server->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    server->pid = 0;
}

/* 1: it answers and is our child; 0: not yet; -1: it has ended. */
static int
server_state(struct test_server *server)
{
    if (waitpid(server->pid, NULL, WNOHANG) == server->pid) {
        server->pid = 0;
        return -1;
    }
    return pid_that_answers(server) == (long)server->pid;
}

static int
settled(void *ctx)
{
    return server_state(ctx) != 0;
}

static bool
launch(struct test_server *server)
{
    char  log[160];
    pid_t parent = getpid();

    snprintf(log, sizeof(log), "%s/log", server->directory);
    if (server->socket[0] != '\0')
        unlink(server->socket);
    server->pid = fork();
    if (server->pid == 0)
        become_server(server, parent, log);
    if (server->pid < 0) {
        server->pid = 0;
        return false;
    }
    if (test_wait_for(settled, server, START_MS * test_slack()) && server->pid > 0)
        return true;
    reap_child(server);
    return false;
}

static void
show_log(const struct test_server *server)
{
    char  path[160], line[512];
    FILE *log;

    snprintf(path, sizeof(path), "%s/log", server->directory);
    log = fopen(path, "re");
    print_error("%s did not start; its log:\n", server->kind);
    while (log != NULL && fgets(line, sizeof(line), log) != NULL)
        print_error("    %s", line);
    if (log != NULL)
        fclose(log);
}

/* ------------------------------------------------------------------------------------------- addresses */

static bool
find_binary(const char *name, char *path, size_t size)
{
    static const char places[] = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
    const char       *search[] = { getenv("PATH"), places };

    for (size_t i = 0; i < NEAR_COUNT_OF(search); i++)
        for (const char *at = search[i]; at != NULL && *at != '\0';) {
            size_t n = strcspn(at, ":");

            snprintf(path, size, "%.*s/%s", (int)n, at, name);
            if (n > 0 && access(path, X_OK) == 0)
                return true;
            at += n + (at[n] == ':');
        }
    print_error("no %s on this machine (packages redis-server and memcached)\n", name);
    return false;
}

static bool
make_directory(struct test_server *server)
{
    const char *place = getenv("TMPDIR");

    if (place == NULL || *place == '\0' || strlen(place) > TMPDIR_LIMIT)
        place = "/tmp";
    snprintf(server->directory, sizeof(server->directory), "%s/near-test-XXXXXX", place);
    if (mkdtemp(server->directory) != NULL)
        return true;
    print_error("no directory under %s: %s\n", place, strerror(errno));
    server->directory[0] = '\0';
    return false;
}

int
test_free_port(void)
{
    struct sockaddr_in at   = { .sin_family = AF_INET };
    socklen_t          size = sizeof(at);
    int                fd   = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int                port = 0;

    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof(at)) == 0 &&
        getsockname(fd, (struct sockaddr *)&at, &size) == 0)
        port = ntohs(at.sin_port);
    if (fd >= 0)
        close(fd);
    return port;
}

static void
set_addresses(struct test_server *server, bool tcp)
{
    server->port = tcp ? test_free_port() : 0;
    if (is_redis(server) || !tcp)
        snprintf(server->socket, sizeof(server->socket), "%s/s", server->directory);
    if (tcp)
        snprintf(server->uri, sizeof(server->uri), "%s://127.0.0.1:%d%s", server->kind, server->port,
                 is_redis(server) ? "/0" : "");
    else
        snprintf(server->uri, sizeof(server->uri), "%s+unix://%s", server->kind, server->socket);
}

static void
free_arguments(struct test_server *server)
{
    for (char **arg = server->argv; arg != NULL && *arg != NULL; arg++)
        free(*arg);
    free(server->argv);
    server->argv = NULL;
}

static bool
set_arguments(struct test_server *server, const char *const *own, const char *const *extra)
{
    size_t n = 0;

    server->password = NULL;
    server->argv     = calloc(ARGUMENTS + 1, sizeof(*server->argv));
    for (; server->argv != NULL && *own != NULL && n < ARGUMENTS; own++)
        server->argv[n++] = strdup(*own);
    for (; server->argv != NULL && extra != NULL && *extra != NULL && n < ARGUMENTS; extra++) {
        server->argv[n++] = strdup(*extra);
        if (n > 1 && server->argv[n - 2] != NULL && strcmp(server->argv[n - 2], "--requirepass") == 0)
            server->password = server->argv[n - 1];
    }
    return server->argv != NULL;
}

static bool
redis_arguments(struct test_server *server, const char *binary, const char *const *extra)
{
    char        port[16];
    const char *own[] = { binary,
                          "--port",
                          port,
                          "--bind",
                          "127.0.0.1",
                          "--unixsocket",
                          server->socket,
                          "--unixsocketperm",
                          "700",
                          "--save",
                          "",
                          "--appendonly",
                          "no",
                          "--daemonize",
                          "no",
                          "--dir",
                          server->directory,
                          NULL };

    snprintf(port, sizeof(port), "%d", server->port);
    return set_arguments(server, own, extra);
}

/* A sentinel rewrites its file: it keeps what it has learnt there over a restart. */
static bool
sentinel_arguments(struct test_server *server, const char *binary, const char *config)
{
    char        path[160];
    const char *own[] = { binary, path, "--sentinel", NULL };
    FILE       *file;
    bool        ok;

    snprintf(path, sizeof(path), "%s/sentinel.conf", server->directory);
    file = fopen(path, "we");
    ok   = file != NULL &&
         fprintf(file, "port %d\nbind 127.0.0.1\nprotected-mode no\nunixsocket %s\ndir %s\n%s\n",
                 server->port, server->socket, server->directory, config) > 0;
    if (file != NULL)
        ok = fclose(file) == 0 && ok;
    return ok && set_arguments(server, own, NULL);
}

static bool
memcached_arguments(struct test_server *server, const char *binary, const char *const *extra)
{
    char        port[16];
    const char *by_port[]   = { binary, "-u", "root", "-U", "0", "-l", "127.0.0.1", "-p", port, NULL };
    const char *by_socket[] = { binary, "-u", "root", "-s", server->socket, "-a", "0700", NULL };

    snprintf(port, sizeof(port), "%d", server->port);
    return set_arguments(server, server->port != 0 ? by_port : by_socket, extra);
}

/* ------------------------------------------------------------------------------------------------ life */

static void
server_free(struct test_server *server)
{
    free_arguments(server);
    free(server);
}

static int
remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st, (void)type, (void)where;
    remove(path);
    return 0;
}

static void
remove_directory(struct test_server *server)
{
    if (server->directory[0] != '\0')
        nftw(server->directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void
enlist(struct test_server *server)
{
    if (owner != getpid()) {
        servers = NULL; /* a parent's, inherited by fork: not ours */
        owner   = getpid();
        atexit(test_servers_reap);
    }
    server->next = servers;
    servers      = server;
}

/* How one kind is started: `ctx` is what the caller gave. */
typedef bool (*arguments_fn)(struct test_server *server, const char *binary, const void *ctx);

static bool
redis_start(struct test_server *server, const char *binary, const void *extra)
{
    return redis_arguments(server, binary, extra);
}

static bool
memcached_start(struct test_server *server, const char *binary, const void *extra)
{
    return memcached_arguments(server, binary, extra);
}

static bool
sentinel_start(struct test_server *server, const char *binary, const void *config)
{
    return sentinel_arguments(server, binary, config);
}

static struct test_server *
start(const char *kind, const char *binary, unsigned flags, arguments_fn arguments, const void *ctx,
      const char *password)
{
    struct test_server *server = calloc(1, sizeof(*server));
    bool                tcp    = (flags & TEST_SERVER_TCP) != 0;
    char                path[512];

    if (server == NULL)
        return NULL;
    server->kind = kind;
    if (!find_binary(binary, path, sizeof(path))) {
        server_free(server);
        return NULL;
    }
    if (!make_directory(server)) {
        start_failed = true;
        server_free(server);
        return NULL;
    }
    for (int tries = tcp ? START_TRIES : 1; tries > 0; tries--) {
        free_arguments(server);
        set_addresses(server, tcp);
        if (!arguments(server, path, ctx))
            break;
        if (password != NULL)
            server->password = password;
        if (launch(server)) {
            enlist(server);
            return server;
        }
    }
    start_failed = true;
    show_log(server);
    remove_directory(server);
    server_free(server);
    return NULL;
}

struct test_server *
test_redis_start(unsigned flags, const char *const *extra)
{
    return start("redis", "redis-server", flags, redis_start, extra, NULL);
}

struct test_server *
test_memcached_start(unsigned flags, const char *const *extra)
{
    return start("memcached", "memcached", flags, memcached_start, extra, NULL);
}

struct test_server *
test_sentinel_start(const char *config, const char *password)
{
    return start("redis", "redis-server", TEST_SERVER_TCP, sentinel_start, config, password);
}

void
test_need_server(const struct test_server *server)
{
    const char *require = getenv("NEAR_TEST_REQUIRE_SERVERS");

    if (server != NULL)
        return;
    if (start_failed || (require != NULL && *require != '\0' && strcmp(require, "0") != 0))
        fail_msg("there is no server");
    skip();
}

void
test_server_pause(struct test_server *server)
{
    if (server->pid <= 0 || kill(server->pid, SIGSTOP) != 0)
        return;
    while (waitpid(server->pid, NULL, WUNTRACED) < 0 && errno == EINTR)
        ;
}

void
test_server_resume(struct test_server *server)
{
    if (server->pid > 0)
        kill(server->pid, SIGCONT);
}

void
test_server_kill(struct test_server *server)
{
    reap_child(server);
}

bool
test_server_restart(struct test_server *server)
{
    reap_child(server);
    for (int tries = START_TRIES; tries > 0; tries--)
        if (launch(server))
            return true;
    show_log(server);
    return false;
}

void
test_server_stop(struct test_server **server)
{
    struct test_server *s = *server;

    *server = NULL;
    if (s == NULL)
        return;
    for (struct test_server **at = &servers; *at != NULL; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    reap_child(s);
    remove_directory(s);
    server_free(s);
}

void
test_servers_reap(void)
{
    if (owner != getpid())
        return;
    while (servers != NULL) {
        struct test_server *first = servers;

        test_server_stop(&first);
    }
}
