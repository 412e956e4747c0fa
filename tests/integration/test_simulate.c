/*
 * nearcache simulate as a person uses it: figures that are known to the digit, every format of traces, and what is said, and left behind,
 * when something is wrong with one.
 */
#define TEST_NAME "simulate"
#include "harness/test.h"

#include "harness/trace.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char directory[] = "/tmp/near-simulate-XXXXXX";
static char out[1 << 20], err[1 << 16];

static void
read_all(const char *name, char *text, size_t room)
{
    char   path[128];
    FILE  *file;
    size_t n;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    file = fopen(path, "re");
    assert_non_null(file);
    n = fread(text, 1, room - 1, file);
    assert_true(n < room - 1);
    text[n] = '\0';
    fclose(file);
}

/* In the directory, by the shell: its exit status. */
static int
run(const char *arguments)
{
    char command[2048];
    int  status;

    snprintf(command, sizeof(command), "cd %s && '" TEST_TOOL "' simulate %s >.out 2>.err", directory,
             arguments);
    status = system(command);
    assert_true(WIFEXITED(status));
    read_all(".out", out, sizeof(out));
    read_all(".err", err, sizeof(err));
    return WEXITSTATUS(status);
}

static void
must(const char *command)
{
    char line[2048];

    snprintf(line, sizeof(line), "cd %s && { %s; }", directory, command);
    assert_int_equal(system(line), 0);
}

static void
write_file(const char *name, const char *bytes, size_t size)
{
    char  path[128];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    file = fopen(path, "we");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    fclose(file);
}
#define WRITE(name, text) write_file(name, text, sizeof(text) - 1)

static void
assert_says(const char *text, const char *part)
{
    if (strstr(text, part) == NULL)
        fail_msg("no \"%s\" in: %s", part, text);
}

/* Files whose names do not begin with a dot. */
static unsigned
count_files(void)
{
    DIR           *dir = opendir(directory);
    struct dirent *entry;
    unsigned       n = 0;

    while ((entry = readdir(dir)) != NULL)
        n += entry->d_name[0] != '.';
    closedir(dir);
    return n;
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

static int
empty_directory(void **state)
{
    (void)state;
    must("rm -rf *");
    return 0;
}

/* The number behind `name` in the result of a policy and a size. */
static double
result(const char *policy, size_t entries, const char *name)
{
    char        head[128];
    const char *at;

    snprintf(head, sizeof(head), "{\"policy\":\"%s\",\"entries\":%zu,", policy, entries);
    at = strstr(out, "\"results\":");
    assert_non_null(at);
    at = strstr(at, head);
    if (at == NULL)
        fail_msg("no %s in: %s", head, out);
    snprintf(head, sizeof(head), "\"%s\":", name);
    at = strstr(at, head);
    assert_non_null(at);
    return strtod(at + strlen(head), NULL);
}

/* ---- figures */

/* Some figures take seconds: `make check-long` looks at those. */
static bool
is_long(void)
{
    return getenv("NEAR_TEST_LEVEL") != NULL;
}

static void
exact_lru_gives_the_known_figures(void **state)
{
    static const struct {
        const char *name;
        const char *sizes;
        size_t      size[5];
    } traces[] = { { "web12", "138,688,1376,3439", { 138, 688, 1376, 3439 } },
                   { "orm-night-1m", "2068", { 2068 } },
                   { "oltp", "1869", { 1869 } } };
    char command[256];

    (void)state;
    for (size_t i = 0; i < (is_long() ? NEAR_COUNT_OF(traces) : 1); i++) {
        snprintf(command, sizeof(command),
                 "--json --exact --policies lru --sizes %s " TEST_DATA "/traces/%s.keys.zst", traces[i].sizes,
                 traces[i].name);
        assert_int_equal(run(command), 0);
        for (size_t j = 0; traces[i].size[j] != 0; j++)
            assert_true(
                result("lru", traces[i].size[j], "hits") ==
                (double)test_trace_expected(TEST_DATA "/traces", traces[i].name, traces[i].size[j], "lru"));
    }
    assert_true(test_trace_expected(TEST_DATA "/traces", "web12", 138, "lru") > 0);
}

static void
a_monitor_log_gives_the_known_figures(void **state)
{
    (void)state;
    assert_int_equal(
        run("--json --exact --policies lru --sizes 1000 " TEST_DATA "/traces/hmget-feature-store.log.zst"),
        0);
    assert_says(out, "\"requests\":5758144,\"keys\":1552945,");
    assert_true(result("lru", 1000, "hits") == 154110);
}

static void
a_sample_comes_near(void **state)
{
    static const char *const policies[] = { "lru", "sieve", "adaptive" };
    static const size_t      sizes[]    = { 9344, 37376, 93440 };
    double                   whole[9], off = 0;

    (void)state;
    assert_int_equal(run("--json --policies lru,sieve,adaptive --sizes 9344,37376,93440 " TEST_DATA
                         "/traces/oltp.keys.zst"),
                     0);
    assert_says(out, "\"rate\":1,");
    for (size_t i = 0; i < 9; i++)
        whole[i] = result(policies[i / 3], sizes[i % 3], "ratio");
    assert_int_equal(run("--json --rate 0.1 --policies lru,sieve,adaptive --sizes 9344,37376,93440 " TEST_DATA
                         "/traces/oltp.keys.zst"),
                     0);
    assert_says(out, "\"rate\":0.1,");
    for (size_t i = 0; i < 9; i++)
        off = fmax(off, fabs(result(policies[i / 3], sizes[i % 3], "ratio") - whole[i]));
    assert_true(off < 0.01);
    assert_true(off > 0); /* else it was no sample */
}

/* The same on a small scale: half of the keys, and a rate of 1 is no sample. */
static void
half_of_the_keys_come_near(void **state)
{
    double whole;

    (void)state;
    assert_int_equal(run("--json --policies lru --sizes 1376 " TEST_DATA "/traces/web12.keys.zst"), 0);
    whole = result("lru", 1376, "ratio");
    assert_int_equal(run("--json --rate 1 --policies lru --sizes 1376 " TEST_DATA "/traces/web12.keys.zst"),
                     0);
    assert_true(result("lru", 1376, "ratio") == whole);
    assert_int_equal(run("--json --rate 0.5 --policies lru --sizes 1376 " TEST_DATA "/traces/web12.keys.zst"),
                     0);
    assert_true(fabs(result("lru", 1376, "ratio") - whole) < 0.02);
    assert_true(result("lru", 1376, "ratio") != whole);
}

/* ---- formats */

static void
all_formats_are_recognised_and_mean_the_same(void **state)
{
    static const char *const names[] = { "keys", "sized", "csv",        "named.csv", "monitor",
                                         "mget", "crlf",  "packed.zst", "packed.gz", "- <keys" };

    (void)state;
    WRITE("keys", "# a comment\na\nb\n\na\nc\nb\na\nd");
    WRITE("sized", "a 10\nb 20\na 10\nc 5\nb 20\na 10\nd 1\n");
    WRITE("csv", "1.5,a,10\n2,b,20\n3,a,10\n4,c,5\n5,b,20\n6,a,10\n7,d,1\n");
    WRITE("named.csv", "time,key,size\n1.5,a,10\n2,b,20\n3,a,10\n4,c,5\n5,b,20\n6,a,10\n7,d,1\n");
    WRITE("monitor", "OK\n1339518083.107412 [0 127.0.0.1:60866] \"GET\" \"a\"\n1.1 [0 lua] \"get\" \"b\"\n"
                     "1.2 [0 x] \"SET\" \"zz\" \"\\x00\\n\"\n1.2 [0 x] \"MGET\" \"a\" \"c\" \"b\"\n"
                     "1.3 [0 x] \"PING\"\n1.2 [0 x] \"GET\" \"\\x61\"\n1.2 [0 x] \"GET\" \"d\"\n");
    WRITE("mget", "9.9 [0 x] \"MGET\" \"a\" \"b\" \"a\" \"c\" \"b\" \"a\" \"d\"\n");
    WRITE("crlf", "a\r\nb\r\na\r\nc\r\nb\r\na\r\nd\r\n");
    must("zstd -q keys -o packed.zst && gzip -c keys >packed.gz");
    for (size_t i = 0; i < NEAR_COUNT_OF(names); i++) {
        char command[128];
        int  status;

        snprintf(command, sizeof(command), "--json --exact --policies lru --sizes 2 %s", names[i]);
        status = run(command);
        if (status == 3 && strstr(err, "this build has no") != NULL)
            continue;
        if (status != 0)
            fail_msg("%s: %s", names[i], err);
        assert_says(out, "\"requests\":7,\"keys\":4,");
        assert_true(result("lru", 2, "hits") == 1); /* the second a alone */
    }
    assert_int_equal(run("--json --sizes 100% keys csv"), 0); /* one behind the other */
    assert_says(out, "\"requests\":14,\"keys\":4,");
}

static void
fields_of_a_hash_are_keys_with_it(void **state)
{
    (void)state;
    WRITE("plain", "HMGET e1 f1 f2\nHMGET e2 f1\nhmget e1 f2\n");
    WRITE("monitor", "OK\n1.0 [0 x] \"HMGET\" \"e1\" \"f1\" \"f2\"\n1.0 [0 x] \"HGET\" \"e2\" \"f1\"\n"
                     "1.0 [0 x] \"HSET\" \"e1\" \"f2\" \"v\"\n1.0 [0 x] \"HGET\" \"e1\" \"f2\"\n");
    for (int i = 0; i < 2; i++) {
        assert_int_equal(run(i == 0 ? "--json --exact --policies lru --sizes 10 plain"
                                    : "--json --exact --policies lru --sizes 10 monitor"),
                         0);
        assert_says(out, "\"requests\":4,\"keys\":3,");
        assert_true(result("lru", 10, "hits") == 1);
    }
}

static void
memory_goes_by_the_sizes_of_the_trace(void **state)
{
    double small, large;

    (void)state;
    WRITE("small", "a 10\nb 10\nc 10\n");
    WRITE("large", "a 5000\nb 5000\nc 5000\n");
    assert_int_equal(run("--json --policies lru --sizes 1000 small"), 0);
    assert_says(out, "\"value_bytes\":10.0,\"value_bytes_assumed\":false,");
    small = result("lru", 1000, "bytes");
    assert_int_equal(run("--json --policies lru --sizes 1000 large"), 0);
    large = result("lru", 1000, "bytes");
    assert_true(small > 1000 * 40 && large > 1000 * 5000 && large < 1000 * 8000 && small < large / 10);
    assert_int_equal(run("--json --policies lru --sizes 1MiB large"), 0);
    assert_says(out, "\"value_bytes\":5000.0");
}

/* ---- what is written */

static void
pictures_and_pages_are_whole(void **state)
{
    static char page[1 << 20];

    (void)state;
    must("cp " TEST_DATA "/traces/web12.keys.zst 'a<b>&.zst'");
    assert_int_equal(run("--svg p.svg --html p.html --policies lru,sieve --sizes 138,1376 'a<b>&.zst'"), 0);
    assert_says(out, "95607 requests, 13756 keys, highest possible 85.61 %");
    assert_says(out, "l1.max_bytes = ");
    read_all("p.svg", page, sizeof(page));
    assert_int_equal(strncmp(page, "<?xml ", 6), 0);
    assert_says(page, "</svg>\n");
    assert_says(page, ">sieve</text>");
    assert_null(strstr(page, "nan"));
    read_all("p.html", page, sizeof(page));
    assert_says(page, "a&lt;b&gt;&amp;.zst");
    assert_null(strstr(page, "a<b>"));
    assert_says(page, "</body></html>\n");
    assert_null(strstr(page, "http://www.w3.org/1999")); /* nothing is fetched from anywhere */
    assert_null(strstr(page, "src="));
    assert_int_equal(count_files(), 3);
}

/* ---- trouble */

static void
a_bad_trace_is_named_with_its_line(void **state)
{
    static const struct {
        const char *name, *says;
    } bad[] = {
        { "absent", "absent: No such file" },
        { "empty", "empty: no requests in it" },
        { "prose", "prose:2: expected KEY or KEY SIZE" },
        { "nul", "nul:2: a NUL byte" },
        { "short.csv", "short.csv:2: expected TIME,KEY" },
        { "size.csv", "size.csv:1: expected TIME,KEY" },
        { "cut.log", "cut.log:3: not a line of MONITOR" },
        { "escape.log", "escape.log:1: not a line of MONITOR" },
        { "lone.log", "lone.log:2: not a line of MONITOR" },
        { "hmget", "hmget:2: expected HMGET" },
        { "cut.zst", "cut.zst: ends in the middle of compressed data" },
        { "bad.zst", "bad.zst: damaged compressed data" },
        { "cap", "cap: offset 0: ends in the middle of a packet" },
        { ".", ".: " },
    };
    static char garbage[200000];
    char        command[128];

    (void)state;
    WRITE("empty", "# nothing\n\n");
    WRITE("prose", "word\nthis is no trace\n");
    WRITE("nul", "key\nk\0y\n");
    WRITE("short.csv", "1,a\n2\n");
    WRITE("size.csv", "1,a,big\n");
    WRITE("cut.log", "OK\n1.0 [0 x] \"GET\" \"a\"\n1.0 [0 x] \"GET\" \"a");
    WRITE("escape.log", "1.0 [0 x] \"GET\" \"\\q\"\n");
    WRITE("lone.log", "1.0 [0 x] \"GET\" \"a\"\n1.0 [0 x] \"GET\"\n");
    WRITE("hmget", "HMGET a b\nHMGET a\n");
    WRITE("cap", "\xD4\xC3\xB2\xA1\x02\x00\x04\x00");
    must("head -c 50000 " TEST_DATA "/traces/web12.keys.zst >cut.zst");
    memset(garbage, 'x', sizeof(garbage));
    memcpy(garbage, "\x28\xB5\x2F\xFD", 4);
    write_file("bad.zst", garbage, sizeof(garbage));
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++) {
        unsigned files = count_files();

        snprintf(command, sizeof(command), "--svg p.svg --html p.html %s", bad[i].name);
        assert_int_equal(run(command), 3);
        assert_says(err, bad[i].says);
        assert_int_equal(out[0], '\0');
        assert_int_equal(count_files(), files);
    }
}

static void
what_cannot_be_written_leaves_nothing_behind(void **state)
{
    (void)state;
    WRITE("keys", "a\nb\na\n");
    assert_int_equal(run("--svg none/p.svg keys"), 3);
    assert_says(err, "none/p.svg: No such file");
    must("mkdir p.html"); /* it cannot be renamed to that */
    assert_int_equal(run("--svg p.svg --html p.html keys"), 3);
    assert_says(err, "p.html: ");
    assert_int_equal(out[0], '\0');
    assert_int_equal(count_files(), 2);
    if (access("/dev/full", W_OK) == 0) {
        must("'" TEST_TOOL "' simulate keys >/dev/full 2>.err; test $? = 3");
        read_all(".err", err, sizeof(err));
        assert_says(err, "standard output: ");
    }
}

static void
wrong_usage_is_refused(void **state)
{
    (void)state;
    WRITE("keys", "a\nb\na\n");
    assert_int_equal(run(""), 2);
    assert_int_equal(run("--policies lru,best keys"), 2);
    assert_says(err, "no policy \"best\"");
    assert_int_equal(run("--sizes 10,-5 keys"), 2);
    assert_says(err, "\"-5\"");
    assert_int_equal(run("--sizes 0 keys"), 2);
    assert_int_equal(run("--rate 2 keys"), 2);
    assert_int_equal(run("--threads 0 keys"), 2);
    assert_int_equal(run("--format pcap keys"), 3);
    assert_says(err, "keys: this is no packet capture");
    assert_int_equal(run("--format cap keys"), 2);
    assert_int_equal(run("--nonsense keys"), 2);
    assert_int_equal(run("--help"), 0);
    assert_says(out, "--exact");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_lru_gives_the_known_figures),
        cmocka_unit_test(half_of_the_keys_come_near),
        cmocka_unit_test_setup(all_formats_are_recognised_and_mean_the_same, empty_directory),
        cmocka_unit_test_setup(fields_of_a_hash_are_keys_with_it, empty_directory),
        cmocka_unit_test_setup(memory_goes_by_the_sizes_of_the_trace, empty_directory),
        cmocka_unit_test_setup(pictures_and_pages_are_whole, empty_directory),
        cmocka_unit_test_setup(a_bad_trace_is_named_with_its_line, empty_directory),
        cmocka_unit_test_setup(what_cannot_be_written_leaves_nothing_behind, empty_directory),
        cmocka_unit_test_setup(wrong_usage_is_refused, empty_directory),
    };

    const struct CMUnitTest long_tests[] = {
        cmocka_unit_test(exact_lru_gives_the_known_figures),
        cmocka_unit_test(a_monitor_log_gives_the_known_figures),
        cmocka_unit_test(a_sample_comes_near),
    };

    if (is_long())
        return TEST_MAIN(long_tests, make_directory, remove_directory);
    return TEST_MAIN(tests, make_directory, remove_directory);
}
