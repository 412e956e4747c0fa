/* URIs: what is accepted and what it becomes, what is refused and how it is said, and that no message shows a
 * password. */
#include "harness/test.h"

#include "base/uri.h"

#include <stdio.h>
#include <string.h>

struct accepted {
    const char         *text, *display;
    enum near__uri_kind kind;
    const char         *scheme, *user, *password;
    unsigned            database;
};

static void
test_accepted(void **state)
{
    static const struct accepted cases[] = {
        { "none:", "none", NEAR__URI_NONE, "none", "", "", 0 },
        { "memory:", "memory", NEAR__URI_MEMORY, "memory", "", "", 0 },
        { "memory:a_B.9-", "memory a_B.9-", NEAR__URI_MEMORY, "memory", "", "", 0 },
        { "redis://h", "redis h:6379", NEAR__URI_REDIS, "redis", "", "", 0 },
        { "redis://h/", "redis h:6379", NEAR__URI_REDIS, "redis", "", "", 0 },
        { "redis://10.0.0.7:1/15", "redis 10.0.0.7:1", NEAR__URI_REDIS, "redis", "", "", 15 },
        { "redis://[::1]:65535/65535", "redis [::1]:65535", NEAR__URI_REDIS, "redis", "", "", 65535 },
        { "redis://[fe80::1%eth0]", "redis [fe80::1%eth0]:6379", NEAR__URI_REDIS, "redis", "", "", 0 },
        { "redis://:p@h", "redis h:6379", NEAR__URI_REDIS, "redis", "", "p", 0 },
        { "redis://u:p@h:7/1", "redis h:7", NEAR__URI_REDIS, "redis", "u", "p", 1 },
        { "redis://%75%3A:%40%2f%ff@h", "redis h:6379", NEAR__URI_REDIS, "redis", "u:", "@/\xff", 0 },
        { "redis://u:a@b/c:d?e@h/2", "redis h:6379", NEAR__URI_REDIS, "redis", "u", "a@b/c:d?e", 2 },
        { "redis+unix:///run/r.sock", "redis /run/r.sock", NEAR__URI_REDIS, "redis+unix", "", "", 0 },
        { "redis+unix:///run/a@b?db=3", "redis /run/a@b", NEAR__URI_REDIS, "redis+unix", "", "", 3 },
        { "redis+unix://u:p@/run/r?db=3", "redis /run/r", NEAR__URI_REDIS, "redis+unix", "u", "p", 3 },
        { "rediss://u:p@h/1", "redis+tls h:6379", NEAR__URI_REDIS, "rediss", "u", "p", 1 },
        { "redis-cluster://a:7000,b", "redis cluster a:7000,b:6379", NEAR__URI_REDIS, "redis-cluster", "", "",
          0 },
        { "rediss-cluster://u:p@a/", "redis+tls cluster a:6379", NEAR__URI_REDIS, "rediss-cluster", "u", "p",
          0 },
        { "redis-sentinel://a,[::1]:5/my-master", "redis sentinel my-master a:26379,[::1]:5", NEAR__URI_REDIS,
          "redis-sentinel", "", "", 0 },
        { "rediss-sentinel://u:p@a/m/3", "redis+tls sentinel m a:26379", NEAR__URI_REDIS, "rediss-sentinel",
          "u", "p", 3 },
        { "memcached://h", "memcached h:11211", NEAR__URI_MEMCACHED, "memcached", "", "", 0 },
        { "memcached://a:1:2,b,[::1]:3", "memcached a:1,b:11211,[::1]:3", NEAR__URI_MEMCACHED, "memcached",
          "", "", 0 },
        { "memcached+unix:///m", "memcached /m", NEAR__URI_MEMCACHED, "memcached+unix", "", "", 0 },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(cases); i++) {
        const struct accepted *c = &cases[i];
        struct near__uri       uri;
        near_error             error = { 0 };
        char                   display[200];

        assert_int_equal(near__uri_parse(&uri, "l2.uri", c->text, &error), NEAR_OK);
        assert_string_equal(error.text, "");
        assert_int_equal(uri.kind, c->kind);
        assert_string_equal(uri.scheme, c->scheme);
        assert_string_equal(uri.user, c->user);
        assert_string_equal(uri.password, c->password);
        assert_int_equal(uri.database, c->database);
        near__uri_display(&uri, display, sizeof(display));
        assert_string_equal(display, c->display);
        assert_true(near__uri_same_server(&uri, &uri) == (uri.address_count > 0 || uri.name[0] != '\0'));
    }
}

static void
test_addresses_are_filled_in(void **state)
{
    struct near__uri uri;

    (void)state;
    assert_int_equal(near__uri_parse(&uri, "o", "memcached://a:1:1000,b:2,c", NULL), NEAR_OK);
    assert_int_equal(uri.address_count, 3);
    assert_string_equal(uri.addresses[0].host, "a");
    assert_int_equal(uri.addresses[0].weight, 1000);
    assert_int_equal(uri.addresses[1].port, 2);
    assert_int_equal(uri.addresses[1].weight, 1);
    assert_int_equal(uri.addresses[2].port, 11211);
    assert_int_equal(near__uri_parse(&uri, "o", "redis+unix:///s", NULL), NEAR_OK);
    assert_string_equal(uri.addresses[0].host, "/s");
    assert_int_equal(uri.addresses[0].port, 0);
}

struct refused {
    const char *text;
    near_status status;
    const char *says; /* a part of the message that names the fault */
};

static void
test_refused_with_a_reason(void **state)
{
    static const struct refused cases[] = {
        { NULL, NEAR_ERR_INVALID, "no URI; accepts none:" },
        { "", NEAR_ERR_INVALID, "it has no ':'" },
        { "localhost", NEAR_ERR_INVALID, "it has no ':'" },
        { "http://h", NEAR_ERR_INVALID, "the scheme \"http\" is unknown; accepts none:, memory:[NAME]" },
        { "REDIS://h", NEAR_ERR_INVALID, "the scheme \"REDIS\" is unknown" },
        { ":x", NEAR_ERR_INVALID, "the scheme \"\" is unknown" },
        { "rediss-unix:///s", NEAR_ERR_INVALID, "the scheme \"rediss-unix\" is unknown" },
        { "rediss://", NEAR_ERR_INVALID, "a host is missing" },
        { "redis-cluster://a,b/1", NEAR_ERR_INVALID, "a cluster has no databases" },
        { "redis-cluster://a,", NEAR_ERR_INVALID, "a host is missing" },
        { "rediss-cluster://a,a:6379", NEAR_ERR_INVALID, "the server \"...\" is named twice" },
        { "redis-sentinel://a", NEAR_ERR_INVALID,
          "the master's name is not 1 to 63 of A-Z a-z 0-9 _ . -; accepts "
          "redis-sentinel://h1,h2/master[/db]" },
        { "redis-sentinel://a/", NEAR_ERR_INVALID, "the master's name" },
        { "redis-sentinel://a/m x", NEAR_ERR_INVALID, "the master's name" },
        { "redis-sentinel://a/m/x", NEAR_ERR_INVALID, "the database is no number" },
        { "rediss-sentinel:///m", NEAR_ERR_INVALID, "a host is missing" },
        { "rediss-sentinel://a:x/m", NEAR_ERR_INVALID, "is no port" },
        { "none:x", NEAR_ERR_INVALID, "nothing may follow" },
        { "memory://x", NEAR_ERR_INVALID, "the name \"//x\"" },
        { "memory:a b", NEAR_ERR_INVALID, "1 to 63 of A-Z a-z 0-9 _ . -" },
        { "memory:0123456789012345678901234567890123456789012345678901234567890123", NEAR_ERR_INVALID,
          "1 to 63" },
        { "redis:h", NEAR_ERR_INVALID, "\"//\" must follow \"redis:\"" },
        { "redis:/h", NEAR_ERR_INVALID, "\"//\" must follow" },
        { "redis://", NEAR_ERR_INVALID, "a host is missing" },
        { "redis://:1", NEAR_ERR_INVALID, "a host is missing" },
        { "redis:///0", NEAR_ERR_INVALID, "a host is missing" },
        { "redis://h:0", NEAR_ERR_INVALID, "what follows the host is no port; accepts 1 .. 65535" },
        { "redis://h:65536", NEAR_ERR_INVALID, "is no port" },
        { "redis://h:", NEAR_ERR_INVALID, "what follows the host is no port" },
        { "redis://h:1x", NEAR_ERR_INVALID, "is no port" },
        { "redis://h:+1", NEAR_ERR_INVALID, "is no port" },
        { "redis://h:1:1", NEAR_ERR_INVALID, "is no port" },
        { "redis://a,b", NEAR_ERR_INVALID, "the host \"...\" holds something else than A-Z" },
        { "redis://a b", NEAR_ERR_INVALID, "the host \"...\" holds" },
        { "redis://::1", NEAR_ERR_INVALID, "a host is missing" },
        { "redis://[::1", NEAR_ERR_INVALID, "'[' without ']'" },
        { "redis://[::1]x", NEAR_ERR_INVALID, "is no port" },
        { "redis://[h]", NEAR_ERR_INVALID, "no IPv6 address" },
        { "redis://[]", NEAR_ERR_INVALID, "no IPv6 address" },
        { "redis://h/x", NEAR_ERR_INVALID, "the database is no number in 0 .. 65535" },
        { "redis://h/65536", NEAR_ERR_INVALID, "the database" },
        { "redis://h/1/2", NEAR_ERR_INVALID, "the database is no number" },
        { "redis://h/1?x=y", NEAR_ERR_INVALID, "the database is no number" },
        { "redis://h/99999999999999999999", NEAR_ERR_INVALID, "the database" },
        { "redis://u@h", NEAR_ERR_INVALID, "no password; accepts user:password@ or :password@" },
        { "redis://u:@h", NEAR_ERR_INVALID, "no password" },
        { "redis://u:%4@h", NEAR_ERR_INVALID, "the password is over 255 bytes or holds a '%'" },
        { "redis://u:%zz@h", NEAR_ERR_INVALID, "the password" },
        { "redis://u:%00@h", NEAR_ERR_INVALID, "the password" },
        { "redis://%:p@h", NEAR_ERR_INVALID, "the user" },
        { "redis://h\n", NEAR_ERR_INVALID, "byte 10 is a control character (0x0a)" },
        { "redis://h\x7f", NEAR_ERR_INVALID, "control character" },
        { "redis+unix://x", NEAR_ERR_INVALID, "an absolute path: redis+unix:///path" },
        { "redis+unix:///", NEAR_ERR_INVALID, "an absolute path" },
        { "redis+unix://u:p@x", NEAR_ERR_INVALID, "an absolute path" },
        { "redis+unix:///s?x=1", NEAR_ERR_INVALID,
          "what follows '?' after the path is unknown; accepts ?db=n" },
        { "redis+unix:///s?db=", NEAR_ERR_INVALID, "after the path is unknown" },
        { "redis+unix:///s?db=a", NEAR_ERR_INVALID, "the database is no number" },
        { "memcached://", NEAR_ERR_INVALID, "a host is missing" },
        { "memcached://a,", NEAR_ERR_INVALID, "a host is missing" },
        { "memcached://,a", NEAR_ERR_INVALID, "a host is missing" },
        { "memcached://a:x", NEAR_ERR_INVALID, "what follows \"a\" is no port" },
        { "memcached://a:1:0", NEAR_ERR_INVALID, "the weight \"0\" is no number in 1 .. 1000" },
        { "memcached://a:1:1001", NEAR_ERR_INVALID, "the weight" },
        { "memcached://a:1:1:1", NEAR_ERR_INVALID, "the weight \"1:1\"" },
        { "memcached://a/1", NEAR_ERR_INVALID, "the host \"a/1\"" },
        { "memcached://a,b:1,a:11211", NEAR_ERR_INVALID, "the server \"a:11211\" is named twice" },
        { "memcached://u:p@a", NEAR_ERR_INVALID, "memcached takes no user or password" },
        { "memcached+unix://m", NEAR_ERR_INVALID, "an absolute path" },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(cases); i++) {
        struct near__uri uri, zero = { 0 };
        near_error       error = { 0 };

        assert_int_equal(near__uri_parse(&uri, "l2.uri", cases[i].text, &error), cases[i].status);
        assert_int_equal(error.code, cases[i].status);
        assert_memory_equal(error.text, "l2.uri: ", 8);
        if (strstr(error.text, cases[i].says) == NULL)
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].text, error.text, cases[i].says);
        assert_memory_equal(&uri, &zero, sizeof(uri));
        assert_int_equal(near__uri_parse(&uri, "l2.uri", cases[i].text, NULL), cases[i].status);
    }
}

/* Fields have their sizes; one byte more is refused and none overflows. */
static void
test_over_long_parts_are_refused(void **state)
{
    static const struct {
        const char *before, *after;
        size_t      fits;
    } parts[] = {
        { "redis://", "", 255 },           { "redis://", ":p@h", 127 }, { "redis://u:", "@h", 255 },
        { "redis+unix:///", "", 106 },     { "memory:", "", 63 },       { "memcached://", ":1", 255 },
        { "memcached+unix:///", "", 106 },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(parts); i++) {
        for (size_t size = parts[i].fits - 1; size < parts[i].fits + 3; size++) {
            struct near__uri uri;
            char             text[600], filler[400];

            memset(filler, 'a', size);
            filler[size] = '\0';
            snprintf(text, sizeof(text), "%s%s%s", parts[i].before, filler, parts[i].after);
            assert_int_equal(near__uri_parse(&uri, "o", text, NULL),
                             size <= parts[i].fits ? NEAR_OK : NEAR_ERR_INVALID);
        }
    }
}

static void
test_64_servers_and_no_more(void **state)
{
    char             text[2048] = "memcached://";
    struct near__uri uri;

    (void)state;
    for (int i = 0; i < 64; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%sh%d", i > 0 ? "," : "", i);
    assert_int_equal(near__uri_parse(&uri, "o", text, NULL), NEAR_OK);
    assert_int_equal(uri.address_count, 64);
    strcat(text, ",h64");
    assert_int_equal(near__uri_parse(&uri, "o", text, NULL), NEAR_ERR_INVALID);
}

/* A password can get into the wrong place in many ways; whatever the mistake, no message shows it. */
static void
test_no_message_shows_the_password(void **state)
{
    static const char *const mistakes[] = {
        "redis://u:SECRET@",
        "redis://u:SECRET@h:x",
        "redis://u:SECRET@h/x",
        "redis://SECRET@h",
        "redis://:SECRET",
        "redis://u:SECRET",
        "redis://u:SECRET/0",
        "redis:u:SECRET@h",
        "redis:/u:SECRET@h",
        "rdis://u:SECRET@h",
        "rediss://u:SECRET@h:x",
        "redis-sentinel://u:SECRET@h",
        "redis-sentinel://SECRET@h/m",
        "redis-sentinel://SECRET,SECRET/m",
        "redis-cluster://SECRET,SECRET",
        "u:SECRET@h",
        "SECRET@h",
        "SECRET@h:6379",
        "memory:u:SECRET@h",
        "memory:SECRET@h",
        "memcached://u:SECRET@h",
        "memcached+unix://u:SECRET@/",
        "redis+unix://u:SECRET@",
        "redis+unix://u:SECRET@h",
        "redis://u:SECRET%@h",
        "redis://u:SECRET%00@h",
        "redis://u:SECRET\n@h",
        "redis://SE@CRET:SECRET@",
        "redis://u:SEC/SECRET@h:x",
        "redis://u:SECRET/@h/x",
        "none:u:SECRET@h",
        "redis-cluster://u:SECRET@h/1",
        "redis+unix://u:SECRET@/?x",
        "redis+unix:///s?password=SECRET",
        "redis+unix:///s?db=1&password=SECRET",
        "redis://h/0?password=SECRET",
        "redis://h?password=SECRET",
        "redis://SECRET!pw",
        "redis://SECRET:x",
        "redis://[SECRET]",
        "redis://[::1]SECRET",
        "redis://user:12/SECRET",
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(mistakes); i++) {
        struct near__uri uri;
        near_error       error = { 0 };

        assert_int_not_equal(near__uri_parse(&uri, "l2.uri", mistakes[i], &error), NEAR_OK);
        if (strstr(error.text, "SECRET") != NULL)
            fail_msg("%s", error.text);
    }
}

static void
test_same_server(void **state)
{
    static const struct {
        const char *a, *b;
        bool        same;
    } pairs[] = {
        { "redis://h", "redis://h:6379/0", true },
        { "redis://h", "redis://h/1", false },
        { "redis://h", "redis://h:1", false },
        { "redis://:a@h", "redis://:b@h", false },
        { "redis://a:a@h", "redis://b:a@h", false },
        { "redis://h", "redis://H", false },
        { "memory:", "memory:", false },
        { "memory:a", "memory:a", true },
        { "memory:a", "memory:b", false },
        { "none:", "none:", false },
        { "memcached://h", "redis://h:11211", false },
        { "memcached://a,b", "memcached://a", false },
        { "redis+unix:///s", "redis+unix:///s", true },
        { "redis://h", "rediss://h", false },
        { "redis://h", "redis-cluster://h", false },
        { "redis-sentinel://h/m", "redis-sentinel://h/m", true },
        { "redis-sentinel://h/m", "redis-sentinel://h/n", false },
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(pairs); i++) {
        struct near__uri a, b;

        assert_int_equal(near__uri_parse(&a, "o", pairs[i].a, NULL), NEAR_OK);
        assert_int_equal(near__uri_parse(&b, "o", pairs[i].b, NULL), NEAR_OK);
        assert_int_equal(near__uri_same_server(&a, &b), pairs[i].same);
        assert_int_equal(near__uri_same_server(&b, &a), pairs[i].same);
    }
}

static void
test_display_keeps_within_its_room(void **state)
{
    struct near__uri uri;
    char             out[64];

    (void)state;
    assert_int_equal(near__uri_parse(&uri, "o", "memcached://aaaa,bbbb,cccc", NULL), NEAR_OK);
    for (size_t size = 0; size < 48; size++) {
        memset(out, '#', sizeof(out));
        near__uri_display(&uri, out, size);
        assert_int_equal(out[size], '#');
        if (size > 0)
            assert_true(strnlen(out, size) < size);
    }
}

/* Mutations of good URIs: nothing crashes, every field ends, and what is refused says so. */
static void
test_fuzz_mutations(void **state)
{
    static const char *const seeds[] = {
        "none:",
        "memory:name",
        "redis://user:pass%41@host.example:6379/12",
        "redis://[fe80::1%eth0]:1/0",
        "redis+unix://u:p@/run/redis.sock?db=3",
        "memcached://a:1:2,b:11211,[::1]:3:1000",
        "memcached+unix:///run/m.sock",
        "rediss-sentinel://u:p@a,b:1/m/0",
        "redis-cluster://u:p@a,b:1",
    };
    static const char spice[] = ":/@%[]?,.-+=0159azAZ \r\n\x7f\x80\xff";
    uint64_t          random  = 20240229;

    (void)state;
    for (size_t round = 0; round < test_scale(200000); round++) {
        char             text[128];
        struct near__uri uri;
        near_error       error = { 0 };
        near_status      st;
        size_t           size;

        snprintf(text, sizeof(text), "%s", seeds[test_random(&random) % NEAR_COUNT_OF(seeds)]);
        for (size_t n = test_random(&random) % 5; n > 0; n--) {
            size      = strlen(text);
            size_t at = size > 0 ? test_random(&random) % size : 0;
            char   c  = spice[test_random(&random) % (sizeof(spice) - 1)];
            switch (test_random(&random) % 4) {
            case 0:
                text[at] = c;
                break;
            case 1:
                memmove(text + at, text + at + 1, size - at);
                break;
            case 2:
                if (size + 2 < sizeof(text)) {
                    memmove(text + at + 1, text + at, size - at + 1);
                    text[at] = c;
                }
                break;
            case 3:
                text[at] = '\0';
                break;
            }
        }
        st = near__uri_parse(&uri, "o", text, &error);
        assert_true(st == NEAR_OK || st == NEAR_ERR_INVALID || st == NEAR_ERR_UNSUPPORTED);
        assert_true((error.text[0] == '\0') == (st == NEAR_OK));
        assert_true(memchr(error.text, '\0', sizeof(error.text)) != NULL);
        assert_true(memchr(uri.scheme, '\0', sizeof(uri.scheme)) != NULL);
        assert_true(memchr(uri.name, '\0', sizeof(uri.name)) != NULL);
        assert_true(memchr(uri.user, '\0', sizeof(uri.user)) != NULL);
        assert_true(memchr(uri.password, '\0', sizeof(uri.password)) != NULL);
        assert_true(uri.address_count <= NEAR__URI_ADDRESSES);
        for (size_t i = 0; i < uri.address_count; i++)
            assert_true(uri.addresses[i].host[0] != '\0' &&
                        memchr(uri.addresses[i].host, '\0', sizeof(uri.addresses[i].host)) != NULL);
        for (const char *p = error.text; *p != '\0'; p++)
            assert_true(*p >= 0x20 && *p < 0x7f);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_addresses_are_filled_in),
        cmocka_unit_test(test_refused_with_a_reason),
        cmocka_unit_test(test_over_long_parts_are_refused),
        cmocka_unit_test(test_64_servers_and_no_more),
        cmocka_unit_test(test_no_message_shows_the_password),
        cmocka_unit_test(test_same_server),
        cmocka_unit_test(test_display_keeps_within_its_room),
        cmocka_unit_test(test_fuzz_mutations),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
