/* The nearcache command, run as a person runs it: the built binary, its two outputs and its exit status. */
#ifndef TESTS_INTEGRATION_TOOL_H
#define TESTS_INTEGRATION_TOOL_H

#include "harness/test.h"

#include "harness/proxy.h"
#include "harness/server.h"

#include <fcntl.h>
#include <nearcache.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct world {
    struct test_server *server;
    struct test_proxy  *proxy;
    char                l2[300]; /* "--l2=URI" */
    char                file[64];
    char                out[65536], err[65536];
    size_t              out_size;
};

static inline int
world_setup(void **state)
{
    *state = calloc(1, sizeof(struct world));
    return *state == NULL ? -1 : 0;
}

static inline int
world_teardown(void **state)
{
    struct world *world = *state;

    if (world->file[0] != '\0')
        unlink(world->file);
    test_proxy_stop(&world->proxy);
    test_server_stop(&world->server);
    free(world);
    return 0;
}

/* Collect both outputs to their ends. */
static inline void
collect(struct world *world, int out, int err)
{
    struct pollfd places[2] = { { out, POLLIN, 0 }, { err, POLLIN, 0 } };
    char         *texts[2]  = { world->out, world->err };
    size_t        used[2]   = { 0, 0 };

    while (places[0].fd >= 0 || places[1].fd >= 0) {
        if (poll(places, 2, -1) < 0)
            continue;
        for (int i = 0; i < 2; i++) {
            ssize_t n;

            if (places[i].fd < 0 || places[i].revents == 0)
                continue;
            n = read(places[i].fd, texts[i] + used[i], sizeof(world->out) - 1 - used[i]);
            if (n <= 0)
                places[i].fd = -1;
            else
                used[i] += (size_t)n;
        }
    }
    world->out_size   = used[0];
    texts[0][used[0]] = '\0';
    texts[1][used[1]] = '\0';
}

static inline _Noreturn void
become_tool(const char *const *arguments, int in, int out, int err)
{
    const char *argv[32] = { "nearcache" };

    for (int i = 0; arguments[i] != NULL && i < 30; i++)
        argv[i + 1] = arguments[i];
    if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        _exit(126);
    execv(TEST_TOOL, (char **)argv);
    _exit(127);
}

/* Run the command with `input` on standard input; its exit status. */
static inline int
run_with(struct world *world, const char *input, size_t size, const char *const *arguments)
{
    int   in[2], out[2], err[2], status;
    pid_t child;

    assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
    child = fork();
    if (child == 0)
        become_tool(arguments, in[0], out[1], err[1]);
    assert_true(child > 0);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    if (size > 0)
        assert_int_equal(write(in[1], input, size), size);
    close(in[1]);
    collect(world, out[0], err[0]);
    close(out[0]);
    close(err[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#define RUN(...)             run_with(world, NULL, 0, (const char *[]){ __VA_ARGS__, NULL })
#define RUN_INPUT(text, ...) run_with(world, text, sizeof(text) - 1, (const char *[]){ __VA_ARGS__, NULL })

static inline void
assert_says(const char *text, const char *part)
{
    if (strstr(text, part) == NULL)
        fail_msg("no \"%s\" in: %s", part, text);
}

static inline void
start_redis(struct world *world)
{
    world->server = test_redis_start(0, NULL);
    test_need_server(world->server);
    snprintf(world->l2, sizeof(world->l2), "--l2=%s", world->server->uri);
}

static inline void
start_memcached(struct world *world)
{
    world->server = test_memcached_start(TEST_SERVER_TCP, NULL);
    test_need_server(world->server);
    snprintf(world->l2, sizeof(world->l2), "--l2=%s", world->server->uri);
}

/* A file with this text, removed by the tear-down. */
static inline const char *
write_file(struct world *world, const char *text)
{
    int fd;

    strcpy(world->file, "/tmp/near-tool-XXXXXX");
    fd = mkstemp(world->file);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    return world->file;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)

#endif
