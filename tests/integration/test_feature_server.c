/* The example that serves features: over SQLite and over a Redis's hashes it comes to the same scores, a larger L1 serves more, and its plot is
 * one. */
#include "harness/test.h"

#include "harness/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINES "400" /* of the log: a second */
#define SIZES 3

static char directory[] = "/tmp/feature_server_XXXXXX";

struct shown {
    double share[SIZES], hiredis; /* percent; -1: not shown */
    size_t requests;
    bool   same;
};

/* Run it; what it prints. */
static struct shown
run(const char *arguments)
{
    struct shown shown = { .hiredis = -1 };
    char         command[700], line[200];
    size_t       n = 0;
    double       share;
    FILE        *out;

    snprintf(command, sizeof(command), "%s --lines " LINES " --sizes 300,3000,30000 --svg %s/plot.svg %s",
             TEST_EXAMPLE, directory, arguments);
    out = popen(command, "r");
    assert_non_null(out);
    while (fgets(line, sizeof(line), out) != NULL) {
        size_t entries;

        if (sscanf(line, "L1 of %zu %lf%%", &entries, &share) == 2 && n < SIZES)
            shown.share[n++] = share;
        sscanf(line, "hiredis %lf%%", &shown.hiredis);
        sscanf(line, "%*u exchanges, %zu requests", &shown.requests);
        shown.same |= strcmp(line, "all loops: the same scores\n") == 0;
    }
    assert_int_equal(pclose(out), 0);
    assert_int_equal(n, SIZES);
    return shown;
}

static size_t
count(const char *text, const char *word)
{
    size_t n = 0;

    while ((text = strstr(text, word)) != NULL) {
        text += strlen(word);
        n++;
    }
    return n;
}

static void
assert_plot(void)
{
    static char text[1 << 16];
    char        path[64];
    FILE       *file;
    size_t      size;

    snprintf(path, sizeof(path), "%s/plot.svg", directory);
    file = fopen(path, "r");
    assert_non_null(file);
    size       = fread(text, 1, sizeof(text) - 1, file);
    text[size] = '\0';
    fclose(file);
    unlink(path);
    assert_int_equal(strncmp(text, "<svg ", 5), 0);
    assert_string_equal(text + size - 7, "</svg>\n");
    assert_int_equal(count(text, "<polyline "), SIZES);
    assert_int_equal(count(text, "<text "), count(text, "</text>"));
    assert_int_equal(count(text, ">30000</text>"), 1);
    assert_int_equal(count(text, "nan"), 0);
}

static void
need_example(void)
{
    if (access(TEST_EXAMPLE, X_OK) != 0)
        skip(); /* built without SQLite */
}

static void
it_serves_from_sqlite(void **state)
{
    struct shown shown;

    (void)state;
    need_example();
    shown = run("");
    assert_true(shown.same);
    assert_true(shown.share[0] < shown.share[1] && shown.share[1] < shown.share[2]);
    assert_in_range((uint64_t)shown.share[2], 20, 60); /* what this piece repeats */
    assert_true(shown.hiredis < 0);
    assert_plot();
}

/* Of INFO commandstats. */
static size_t
calls_of(struct test_server *server, const char *command)
{
    static char stats[16384];
    char        name[64];
    const char *at;

    assert_true(
        test_redis_command(server, stats, sizeof(stats), 2, (const char *[]){ "INFO", "commandstats" }));
    snprintf(name, sizeof(name), "cmdstat_%s:calls=", command);
    at = strstr(stats, name);
    return at == NULL ? 0 : strtoul(at + strlen(name), NULL, 10);
}

static void
it_serves_from_hashes(void **state)
{
    struct test_server *server = test_redis_start(TEST_SERVER_TCP, NULL);
    struct shown        shown;
    char                arguments[64];
    size_t              calls;

    (void)state;
    test_need_server(server);
    need_example();
    snprintf(arguments, sizeof(arguments), "--redis 127.0.0.1:%d", server->port);
    shown = run(arguments);
    calls = calls_of(server, "hmget");
    test_server_stop(&server);
    assert_true(shown.same);
    assert_true(shown.share[0] < shown.share[1] && shown.share[1] < shown.share[2]);
    assert_true(shown.hiredis == 0);
    assert_in_range(calls, shown.requests + 1,
                    4 * shown.requests - 1); /* some were answered by L1 as a whole */
    assert_plot();
}

/* What is in the repository is what the script makes of the log. */
static void
its_log_is_a_piece_of_the_trace(void **state)
{
    (void)state;
    if (system("command -v zstd >/dev/null") != 0)
        skip();
    assert_int_equal(system("zstd -dc " TEST_DATA
                            "/traces/hmget-feature-store.log.zst 2>/dev/null | awk -v requests=20000 "
                            "-f " EXAMPLES_DATA "/predictions.awk | cmp - " EXAMPLES_DATA "/predictions.txt"),
                     0);
}

static int
set_up(void **state)
{
    (void)state;
    return mkdtemp(directory) == NULL;
}

static int
tear_down(void **state)
{
    (void)state;
    return rmdir(directory);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_serves_from_sqlite),
        cmocka_unit_test(it_serves_from_hashes),
        cmocka_unit_test(its_log_is_a_piece_of_the_trace),
    };

    return TEST_MAIN(tests, set_up, tear_down);
}
