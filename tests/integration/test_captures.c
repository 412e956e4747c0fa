/*
 * nearcache simulate over packet captures: every kind of file and link, TCP with all that can happen to it, both protocols, what is not in
 * order, and what tcpdump itself has saved of real servers.
 */
#define TEST_NAME "captures"
#include "harness/packets.h"
#include "harness/server.h"
#include "harness/test.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char directory[] = "/tmp/near-captures-XXXXXX";
static char out[1 << 20], err[1 << 16];

static const char *
path_of(const char *name)
{
    static char path[128];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return path;
}

static void
read_all(const char *name, char *text, size_t room)
{
    FILE  *file = fopen(path_of(name), "re");
    size_t n;

    assert_non_null(file);
    n = fread(text, 1, room - 1, file);
    assert_true(n < room - 1);
    text[n] = '\0';
    fclose(file);
}

static int
run(const char *arguments)
{
    char command[2048];
    int  status;

    snprintf(command, sizeof(command),
             "cd %s && '" TEST_TOOL "' simulate --json --exact --policies lru %s >.out 2>.err", directory,
             arguments);
    status = system(command);
    assert_true(WIFEXITED(status));
    read_all(".out", out, sizeof(out));
    read_all(".err", err, sizeof(err));
    return WEXITSTATUS(status);
}

static void
assert_says(const char *text, const char *part)
{
    if (strstr(text, part) == NULL)
        fail_msg("no \"%s\" in: %s %s", part, text, err);
}

static struct test_capture
begin(const char *name, struct test_capture capture)
{
    capture.file = fopen(path_of(name), "we");
    assert_non_null(capture.file);
    test_capture_begin(&capture);
    return capture;
}

static void
end(const struct test_capture *capture)
{
    assert_int_equal(fclose(capture->file), 0);
}

/* A client's next words, and where the stream is then. */
static uint32_t
say(const struct test_capture *capture, unsigned client, uint32_t seq, const char *text)
{
    test_segment(capture, client, 6379, false, seq, TEST_ACK, text, strlen(text));
    return seq + (uint32_t)strlen(text);
}

/* ---- files and links */

#define GET(key) "*2\r\n$3\r\nGET\r\n$1\r\n" key "\r\n"

static void
every_kind_of_file_and_link_is_read(void **state)
{
    static const struct test_capture kinds[] = {
        { .link = 1 },
        { .link = 1, .big = true },
        { .link = 1, .nano = true },
        { .link = 1, .nano = true, .big = true },
        { .link = 1, .blocks = true },
        { .link = 1, .blocks = true, .big = true },
        { .link = 1, .vlan = 1 },
        { .link = 1, .vlan = 2 },
        { .link = 1, .ipv6 = true },
        { .link = 0 },
        { .link = 101 },
        { .link = 101, .ipv6 = true, .blocks = true },
        { .link = 113 },
        { .link = 276, .ipv6 = true },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        struct test_capture c = begin("kind", kinds[i]);
        uint32_t            seq;

        test_segment(&c, 40000, 6379, false, 999, TEST_SYN, "", 0);
        test_segment(&c, 40000, 6379, true, 1, TEST_SYN | TEST_ACK, "", 0);
        seq = say(&c, 40000, 1000, GET("a"));
        test_segment(&c, 40000, 6379, true, 2, TEST_ACK, "*2\r\n$3\r\nGET\r\n$1\r\nz\r\n",
                     21); /* an answer */
        seq = say(&c, 40000, seq, "*3\r\n$4\r\nMGET\r\n$1\r\nb\r\n$1\r\na\r\n");
        test_segment(&c, 40000, 6379, false, seq, TEST_FIN | TEST_ACK, "", 0);
        end(&c);
        if (run("--sizes 2 kind") != 0)
            fail_msg("kind %zu: %s", i, err);
        assert_says(out, "\"requests\":3,\"keys\":2,");
        assert_says(out, "\"hits\":1,");
        assert_says(out, "\"commands\":2,");
        assert_says(out, "\"streams\":1,");
        assert_says(out, "\"resyncs\":0,");
    }
    assert_int_equal(run("--sizes 2 --format pcap - <kind"), 0);
    assert_says(out, "\"requests\":3,");
    snprintf(err, sizeof(err), "cd %s && zstd -q kind -o kind.zst && gzip kind", directory);
    assert_int_equal(system(err), 0);
    if (run("--sizes 2 kind.zst kind.gz") == 0)
        assert_says(out, "\"requests\":6,");
    else
        assert_says(err, "this build has no");
}

/* ---- TCP */

static void
segments_find_their_order(void **state)
{
    static const char text[] = GET("a") GET("b") GET("c") GET("a") GET("d") GET("e");
    const size_t      size   = sizeof(text) - 1;
    uint64_t          seed   = 7;

    (void)state;
    for (int round = 0; round < 20;
         round++) { /* cut anywhere, shuffled, some twice, some overlapping, around 2^32 */
        struct test_capture c     = begin("order", (struct test_capture){ .link = 1 });
        uint32_t            first = UINT32_MAX - 40;
        size_t              cuts[64], n = 0, at;

        test_segment(&c, 40000, 6379, false, first - 1, TEST_SYN, "", 0);
        for (at = 0; at < size; at += 1 + test_random(&seed) % 9)
            cuts[n++] = at;
        for (size_t i = n - 1; i > 0; i--) {
            size_t j = test_random(&seed) % (i + 1), swap = cuts[i];

            cuts[i] = cuts[j];
            cuts[j] = swap;
        }
        for (size_t i = 0; i < n; i++) {
            size_t length = 9 + test_random(&seed) % 5; /* over the next cut, too */

            length = length < size - cuts[i] ? length : size - cuts[i];
            test_segment(&c, 40000, 6379, false, first + (uint32_t)cuts[i], TEST_ACK, text + cuts[i], length);
            if (i % 3 == 0)
                test_segment(&c, 40000, 6379, false, first + (uint32_t)cuts[i], TEST_ACK, text + cuts[i],
                             length);
        }
        end(&c);
        assert_int_equal(run("--sizes 10 order"), 0);
        assert_says(out, "\"requests\":6,\"keys\":5,");
        assert_says(out, "\"hits\":1,");
        assert_says(out, "\"lost_bytes\":0,\"resyncs\":0,");
        assert_null(strstr(out, "\"reordered\":0,"));
    }
}

static void
what_is_lost_is_passed_over_and_counted(void **state)
{
    struct test_capture c = begin("lost", (struct test_capture){ .link = 1 });
    uint32_t            seq;

    (void)state;
    test_segment(&c, 40000, 6379, false, 999, TEST_SYN, "", 0);
    seq = say(&c, 40000, 1000, GET("a") "*2\r\n$3\r\nGET\r\n$1\r");
    seq = say(&c, 40000, seq + 7, "y\r\n$1\r\nz\r\n" GET("b")); /* the rest of something, then a command */
    seq = say(&c, 40000, seq, GET("a"));
    /* a connection that was there before: it begins in the middle of a command */
    seq = say(&c, 40001, 5, "ET\r\n$1\r\nq\r\n" GET("c"));
    /* a port used again, without an end of the first connection */
    test_segment(&c, 40000, 6379, false, 777777, TEST_SYN, "", 0);
    say(&c, 40000, 777778, GET("d"));
    end(&c);
    assert_int_equal(run("--sizes 10 lost"), 0);
    assert_says(out, "\"requests\":5,\"keys\":4,");
    assert_says(out, "\"lost_bytes\":7,\"resyncs\":1,");
    assert_says(out, "\"streams\":3,");
}

/* As far from its place as a number can be, in front or behind: neither reads beyond the packet. */
static void
numbers_half_the_space_away_are_harmless(void **state)
{
    struct test_capture c = begin("far", (struct test_capture){ .link = 1 });
    uint32_t            seq;

    (void)state;
    test_segment(&c, 40000, 6379, false, 999, TEST_SYN, "", 0);
    seq = say(&c, 40000, 1000, GET("a"));
    say(&c, 40000, seq + (UINT32_C(1) << 31), GET("b"));
    say(&c, 40000, seq + (UINT32_C(1) << 31) + 1, GET("c"));
    say(&c, 40000, seq, GET("a"));
    end(&c);
    assert_int_equal(run("--sizes 10 far"), 0);
    assert_says(out, "\"requests\":2,\"keys\":1,");
    assert_says(out, "\"again\":2,");
}

/* Packets cut short by the capture (tcpdump -s): long values lose nothing, and what else is cut is passed over. */
static void
packets_may_be_cut(void **state)
{
    static char         value[2000];
    char                text[2200];
    struct test_capture c = begin("cut", (struct test_capture){ .link = 1, .snap = 14 + 20 + 20 + 60 });
    uint32_t            seq;

    (void)state;
    memset(value, 'v', sizeof(value) - 1);
    test_segment(&c, 40000, 6379, false, 999, TEST_SYN, "", 0);
    seq = say(&c, 40000, 1000, GET("a"));
    snprintf(text, sizeof(text), "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1999\r\n%s\r\n", value);
    seq = say(&c, 40000, seq, text);
    seq = say(&c, 40000, seq, GET("b"));
    say(&c, 40000, seq, GET("a"));
    end(&c);
    assert_int_equal(run("--sizes 10 cut"), 0);
    assert_says(out, "\"requests\":3,\"keys\":2,");
}

/* ---- protocols */

static void
both_protocols_are_understood(void **state)
{
    struct test_capture c = begin("words", (struct test_capture){ .link = 101 });
    uint32_t            seq;

    (void)state;
    test_segment(&c, 40000, 6379, false, 0, TEST_SYN, "", 0); /* Redis */
    seq = say(&c, 40000, 1, "*4\r\n$5\r\nhmget\r\n$2\r\ne1\r\n$2\r\nf1\r\n$2\r\nf2\r\n");
    seq = say(&c, 40000, seq,
              "*3\r\n$4\r\nHGET\r\n$2\r\ne1\r\n$2\r\nf1\r\n"
              "*1\r\n$4\r\nPING\r\n");
    seq = say(&c, 40000, seq, "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$25\r\n*2\r\n$3\r\nGET\r\n$4\r\ntrap\r\n--\r\n");
    seq = say(&c, 40000, seq,
              "GET a\r\nmget a b\r\nPING\r\n\r\n"
              "*0\r\n");
    test_segment(&c, 40001, 6379, false, 0, TEST_SYN, "", 0); /* memcached */
    seq = say(&c, 40001, 1, "get a\r\ngets a b c\r\n");
    seq = say(&c, 40001, seq,
              "set k 0 60 12\r\nget trap\r\n\r\n\r\n"
              "get d\r\n");
    seq = say(&c, 40001, seq, "cas k 0 60 9 77 noreply\r\nget trap\n\r\ngat 60 a\r\ndelete x\r\n");
    end(&c);
    assert_int_equal(run("--sizes 100 words"), 0);
    assert_says(out, "\"requests\":12,\"keys\":6,"); /* e1/f1, e1/f2, a, b, c, d */
    assert_says(out, "\"resyncs\":0,");
    assert_says(out, "\"value_bytes\":18.5,\"value_bytes_assumed\":false"); /* of 25 and of 12 */
}

/* ---- not in order */

static void
assert_bad(const char *name, const char *says)
{
    char command[128];

    snprintf(command, sizeof(command), "--svg p.svg --html p.html %s", name);
    assert_int_equal(run(command), 3);
    assert_says(err, says);
    assert_int_equal(out[0], '\0');
    assert_int_equal(access(path_of("p.svg"), F_OK), -1);
    assert_int_equal(access(path_of("p.html"), F_OK), -1);
}

static void
half_a_capture_is_named_with_its_offset(void **state)
{
    struct stat         file;
    struct test_capture c;

    (void)state;
    for (int blocks = 0; blocks < 2; blocks++) {
        c = begin("half", (struct test_capture){ .link = 1, .blocks = blocks == 1 });
        test_segment(&c, 40000, 6379, false, 0, TEST_SYN, "", 0);
        say(&c, 40000, 1, GET("a"));
        end(&c);
        assert_int_equal(stat(path_of("half"), &file), 0);
        assert_int_equal(run("--sizes 1 half"), 0);
        assert_int_equal(truncate(path_of("half"), file.st_size - 1), 0);
        assert_bad("half", blocks ? "half: offset 148: ends in the middle of a packet"
                                  : "half: offset 94: ends in the middle of a packet");
        assert_int_equal(truncate(path_of("half"), 10), 0);
        assert_bad("half", "half: offset 0: ends in the middle of a packet");
    }
}

static void
what_is_no_capture_is_refused(void **state)
{
    struct test_capture c;

    (void)state;
    c = begin("huge", (struct test_capture){ .link = 1 });
    test_put(&c, 0, 8);
    test_put(&c, UINT32_MAX, 4);
    test_put(&c, UINT32_MAX, 4);
    end(&c);
    assert_bad("huge", "huge: offset 24: this cannot be a packet");
    c = begin("link", (struct test_capture){ .link = 147 });
    end(&c);
    assert_bad("link", "link: offset 0: packets of an unknown kind of link, number 147");
    c = begin("nothing", (struct test_capture){ .link = 1 });
    end(&c);
    assert_bad("nothing", "nothing: no TCP in these packets");
    c = begin("secret", (struct test_capture){ .link = 1 });
    test_segment(&c, 40000, 6379, false, 0, TEST_SYN, "", 0);
    say(&c, 40000, 1, "\x16\x03\x01\x02\x05\x01\x02\x01\x03\x03");
    end(&c);
    assert_bad("secret", "secret: no commands of Redis or memcached");
    assert_bad("--format=pcap /dev/null", "/dev/null: this is no packet capture");
}

/* ---- the real thing */

static pid_t
start_tcpdump(const char *file, int port, int port2)
{
    char  filter[64];
    pid_t pid;

    snprintf(filter, sizeof(filter), "tcp port %d or tcp port %d", port, port2);
    pid = fork();
    if (pid == 0) {
        freopen(path_of("heard"), "w", stderr);
        execlp("tcpdump", "tcpdump", "-i", "lo", "-U", "-s", "0", "-w", file, filter, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static bool
has_size(const char *name, long size)
{
    struct stat file;

    return stat(path_of(name), &file) == 0 && file.st_size >= size;
}

/* It says so on its standard error once it hears, which is after it wrote its header. */
static bool
is_listening(void)
{
    char  line[512] = "";
    FILE *file      = fopen(path_of("heard"), "r");
    bool  listens   = false;

    while (file != NULL && !listens && fgets(line, sizeof(line), file) != NULL)
        listens = strstr(line, "listening on") != NULL;
    if (file != NULL)
        fclose(file);
    return listens;
}

static void
what_tcpdump_saves_is_understood(void **state)
{
    struct test_server *redis     = test_redis_start(TEST_SERVER_TCP, NULL);
    struct test_server *memcached = test_memcached_start(TEST_SERVER_TCP, NULL);
    char                file[128], command[1024];
    pid_t               pid;
    int                 status, rounds = 0;

    (void)state;
    test_need_server(redis);
    test_need_server(memcached);
    snprintf(file, sizeof(file), "%s/real", directory);
    pid = start_tcpdump(file, redis->port, memcached->port);
    assert_true(pid > 0);
    while (!(is_listening() && has_size("real", 24)) && waitpid(pid, &status, WNOHANG) == 0 && rounds++ < 500)
        usleep(10000);
    if (!has_size("real", 24)) {
        kill(pid, SIGTERM);
        waitpid(pid, &status, 0);
        print_message("# tcpdump is not there, or not allowed to listen\n");
        skip();
    }
    snprintf(command, sizeof(command),
             "{ for i in 1 2 3 1; do echo \"GET key$i\"; echo \"HMGET h f1 f2\"; echo \"SET key$i "
             "0123456789\"; done; } | "
             "redis-cli -p %d >/dev/null",
             redis->port);
    assert_int_equal(system(command), 0);
    for (int i = 0; i < 3; i++) {
        char reply[256];

        assert_true(test_memcached_command(memcached, reply, sizeof(reply), "get key1 key2"));
    }
    for (rounds = 0; rounds < 300; rounds++) {
        if (run("--sizes 100 real") == 0 && strstr(out, "\"requests\":18,\"keys\":5,") != NULL)
            break;
        usleep(10000);
    }
    kill(pid, SIGTERM);
    waitpid(pid, &status, 0);
    assert_int_equal(run("--sizes 100 real"), 0);
    assert_says(out, "\"requests\":18,\"keys\":5,"); /* key1-3, h/f1, h/f2 */
    assert_says(out, "\"hits\":13,");
    assert_says(out, "\"resyncs\":0,");
    assert_says(out, "\"value_bytes\":10.0,");
    test_server_stop(&redis);
    test_server_stop(&memcached);
}

static int
make_directory(void **state)
{
    (void)state;
    return mkdtemp(directory) == NULL ? -1 : 0;
}

static int
remove_directory(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return system(command);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_of_file_and_link_is_read),
        cmocka_unit_test(segments_find_their_order),
        cmocka_unit_test(what_is_lost_is_passed_over_and_counted),
        cmocka_unit_test(numbers_half_the_space_away_are_harmless),
        cmocka_unit_test(packets_may_be_cut),
        cmocka_unit_test(both_protocols_are_understood),
        cmocka_unit_test(half_a_capture_is_named_with_its_offset),
        cmocka_unit_test(what_is_no_capture_is_refused),
        cmocka_unit_test(what_tcpdump_saves_is_understood),
    };

    return TEST_MAIN(tests, make_directory, remove_directory);
}
