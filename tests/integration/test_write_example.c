/* The example that counts orders: killed at random moments, no order that it acknowledged is missing afterwards, and none counts twice. */
#include "harness/test.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t
start(const char *directory, const char *orders, int *out)
{
    int   fds[2];
    pid_t child;

    assert_int_equal(pipe(fds), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(fds[1], 1);
        close(fds[0]);
        close(fds[1]);
        execl(TEST_EXAMPLE, TEST_EXAMPLE, directory, orders, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    *out = fds[0];
    return child;
}

/* Lines until `acknowledged` is `most`, or the end.  The last number acknowledged, and the orders reported. */
static long
listen_to(FILE *lines, long most, long *orders, long *numbers)
{
    char text[200];
    long acknowledged = 0;

    while (acknowledged < most && fgets(text, sizeof(text), lines) != NULL) {
        if (strchr(text, '\n') == NULL)
            break; /* cut off */
        sscanf(text, "acknowledged %ld", &acknowledged);
        if (orders != NULL)
            sscanf(text, "in the database: %ld orders, %*d cents, %ld numbers", orders, numbers);
    }
    return acknowledged;
}

static void
test_no_order_is_missing(void **state)
{
    char   directory[]  = "/tmp/write_example_XXXXXX", command[64];
    size_t lives        = test_scale(5);
    long   acknowledged = 0, orders = -1, numbers = -1, last, more;
    int    fd, status;
    pid_t  child;
    FILE  *lines;

    (void)state;
    if (access(TEST_EXAMPLE, X_OK) != 0)
        skip(); /* built without SQLite */
    assert_non_null(mkdtemp(directory));
    for (size_t i = 0; i < lives; i++) {
        child = start(directory, "100000000", &fd);
        lines = fdopen(fd, "r");
        last  = listen_to(lines, 300 + 400 * (long)i, NULL, NULL);
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        more = listen_to(lines, LONG_MAX, NULL, NULL); /* what it had said before it died */
        acknowledged += more > last ? more : last;
        fclose(lines);
    }
    child = start(directory, "0", &fd);
    lines = fdopen(fd, "r");
    listen_to(lines, 1, &orders, &numbers);
    fclose(lines);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    print_message("%zu lives: %ld orders acknowledged, %ld in the database\n", lives, acknowledged, orders);
    assert_in_range(orders, acknowledged, acknowledged + (long)lives); /* one each may have been under way */
    assert_int_equal(orders, numbers);
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    assert_int_equal(system(command), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_no_order_is_missing) };

    return TEST_MAIN(tests, NULL, NULL);
}
