/* Slots of keys, maps from CLUSTER SLOTS replies of every kind, redirects, and refreshes one at a time.  tests/integration/test_cluster
 * compares the slots with a server's own. */
#include "harness/test.h"

#include "harness/reply.h"
#include "l2/redis_slots.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct near__address asked = { .host = "10.1.1.1", .port = 7000, .weight = 1 };

static unsigned
slot(const char *key)
{
    return near__slot_of(near_key(key));
}

static void
C1_slots_are_those_of_the_specification(void **state)
{
    (void)state;
    assert_int_equal(slot("123456789"), 0x31c3); /* the check value of CRC16/XMODEM */
    assert_int_equal(slot(""), 0);
    assert_int_equal(near__slot_of((near_bytes){ NULL, 0 }), 0);
    assert_int_equal(slot("foo"), 12182);
}

/* Bit by bit, as the specification says it. */
static unsigned
slot_by_bits(const unsigned char *key, size_t size)
{
    unsigned crc = 0;

    for (size_t i = 0; i < size; i++) {
        crc ^= (unsigned)key[i] << 8;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc & 0x8000) != 0 ? (crc << 1 ^ 0x1021) & 0xffff : crc << 1;
    }
    return crc % NEAR__SLOTS;
}

static void
C1_slots_of_keys_of_every_size(void **state)
{
    unsigned char key[300];
    uint64_t      random = 11;

    (void)state;
    for (size_t round = 0; round < 20; round++)
        for (size_t size = 0; size <= sizeof(key); size++) {
            for (size_t i = 0; i < size; i++) {
                key[i] = (unsigned char)test_random(&random);
                if (key[i] == '{')
                    key[i] = 0;
            }
            assert_int_equal(near__slot_of((near_bytes){ key, size }), slot_by_bits(key, size));
        }
}

static void
C1_hash_tags(void **state)
{
    (void)state;
    assert_int_equal(slot("{user1000}.following"), slot("user1000"));
    assert_int_equal(slot("{user1000}.followers"), slot("user1000"));
    assert_int_equal(slot("foo{bar}{zap}"), slot("bar"));
    assert_int_equal(slot("foo{{bar}}zap"), slot("{bar"));
    assert_int_equal(slot("a}b{c}"), slot("c"));
    assert_int_equal(slot("near:cache:{42}"), slot("42"));
    /* nothing between the first pair, no end, an end before the beginning: the whole key */
    assert_int_not_equal(slot("foo{}{bar}"), slot("bar"));
    assert_int_not_equal(slot("foo{}{bar}"), slot(""));
    assert_int_not_equal(slot("{}"), slot(""));
    assert_int_not_equal(slot("{a"), slot("a"));
    assert_int_not_equal(slot("a}{"), slot("a"));
    assert_int_equal(near__slot_of((near_bytes){ "x{a\0b}", 6 }), near__slot_of((near_bytes){ "a\0b", 3 }));
}

/* ------------------------------------------------------------------------------------------------- maps */

static near_status
parse(struct near__slot_map **map, const char *bytes)
{
    redisReader             *reader = redisReaderCreate();
    void                    *reply  = NULL;
    struct near__redis_reply taken;
    near_status              status;

    assert_non_null(reader);
    assert_int_equal(redisReaderFeed(reader, bytes, strlen(bytes)), REDIS_OK);
    assert_int_equal(redisReaderGetReply(reader, &reply), REDIS_OK);
    assert_non_null(reply); /* else the test's own bytes are wrong */
    test_reply_take(&taken, reply);
    status = near__slot_map_parse(map, &taken, &asked);
    test_reply_free(&taken);
    assert_int_equal(*map != NULL, status == NEAR_OK);
    freeReplyObject(reply);
    redisReaderFree(reader);
    return status;
}

static void
assert_owner(const struct near__slot_map *map, unsigned at, const char *host, unsigned port)
{
    assert_int_not_equal(map->owner[at], NEAR__SLOT_NOBODY);
    assert_string_equal(map->nodes[map->owner[at]].host, host);
    assert_int_equal(map->nodes[map->owner[at]].port, port);
}

#define NODE(host, port) "*3\r\n$" host "\r\n:" port "\r\n$2\r\nid\r\n"

static void
C2_a_map_of_ranges(void **state)
{
    struct near__slot_map *map;

    (void)state;
    assert_int_equal(
        parse(&map, "*4\r\n"
                    "*4\r\n:0\r\n:5460\r\n" NODE("8\r\n10.0.0.1", "1")
                        NODE("8\r\n10.0.0.9", "9") "*3\r\n:5461\r\n:5461\r\n" NODE(
                            "2\r\n::", "65535") "*3\r\n:6000\r\n:6000\r\n*4\r\n$8\r\n10.0.0.1\r\n:1\r\n$"
                                                "2\r\nid\r\n*2\r\n$8\r\nhostname\r\n$1\r\nh\r\n"
                                                "*3\r\n:16383\r\n:16383\r\n*2\r\n$4\r\nname\r\n:80\r\n"),
        NEAR_OK);
    assert_int_equal(map->node_count, 3);
    assert_int_equal(map->covered, 5461 + 3);
    assert_owner(map, 0, "10.0.0.1", 1);
    assert_owner(map, 5460, "10.0.0.1", 1);
    assert_owner(map, 5461, "::", 65535);
    assert_owner(map, 6000, "10.0.0.1", 1);
    assert_owner(map, 16383, "name", 80);
    assert_int_equal(map->owner[5462], NEAR__SLOT_NOBODY);
    near__slot_map_free(&map);
    assert_int_equal(parse(&map, "*0\r\n"), NEAR_OK); /* a node that nobody has given slots */
    assert_int_equal(map->covered, 0);
    near__slot_map_free(&map);
    assert_null(map);
}

static void
C2_a_host_left_out_is_who_was_asked_and_an_unknown_one_is_skipped(void **state)
{
    struct near__slot_map *map;

    (void)state;
    assert_int_equal(parse(&map, "*4\r\n"
                                 "*3\r\n:0\r\n:9\r\n*3\r\n$-1\r\n:7001\r\n$2\r\nid\r\n"
                                 "*3\r\n:10\r\n:19\r\n*3\r\n$0\r\n\r\n:7002\r\n$2\r\nid\r\n"
                                 "*3\r\n:20\r\n:29\r\n*3\r\n$1\r\n?\r\n:7003\r\n$2\r\nid\r\n"
                                 "*3\r\n:30\r\n:39\r\n*3\r\n$3\r\na b\r\n:7003\r\n$2\r\nid\r\n"),
                     NEAR_OK);
    assert_owner(map, 9, "10.1.1.1", 7001);
    assert_owner(map, 10, "10.1.1.1", 7002);
    assert_int_equal(map->owner[20], NEAR__SLOT_NOBODY);
    assert_int_equal(map->owner[30], NEAR__SLOT_NOBODY);
    assert_int_equal(map->covered, 20);
    near__slot_map_free(&map);
}

static void
C2_nonsense_is_refused_whole(void **state)
{
    static const char *const nonsense[] = {
        ":1\r\n",
        "$2\r\nhi\r\n",
        "*-1\r\n",
        "-ERR This instance has cluster support disabled\r\n",
        "*1\r\n:1\r\n",
        "*1\r\n*0\r\n",
        "*1\r\n*2\r\n:0\r\n:1\r\n",
        "*1\r\n*3\r\n:-1\r\n:1\r\n" NODE("1\r\nh", "1"),
        "*1\r\n*3\r\n:0\r\n:16384\r\n" NODE("1\r\nh", "1"),
        "*1\r\n*3\r\n:9\r\n:8\r\n" NODE("1\r\nh", "1"),
        "*1\r\n*3\r\n:0\r\n:4294967296\r\n" NODE("1\r\nh", "1"),
        "*1\r\n*3\r\n$1\r\n0\r\n:1\r\n" NODE("1\r\nh", "1"),
        "*1\r\n*3\r\n:0\r\n$-1\r\n" NODE("1\r\nh", "1"),
        "*1\r\n*3\r\n:0\r\n:1\r\n" NODE("1\r\nh", "0"),
        "*1\r\n*3\r\n:0\r\n:1\r\n" NODE("1\r\nh", "-1"),
        "*1\r\n*3\r\n:0\r\n:1\r\n" NODE("1\r\nh", "65536"),
        "*1\r\n*3\r\n:0\r\n:1\r\n" NODE("1\r\nh", "65537"),
        "*1\r\n*3\r\n:0\r\n:1\r\n" NODE("1\r\nh", "4294967376"),
        "*1\r\n*3\r\n:0\r\n:1\r\n*1\r\n$1\r\nh\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n:1\r\n:1\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\nh\r\n$1\r\n1\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n$-1\r\n",
        /* a good range before a bad one */
        "*2\r\n*3\r\n:0\r\n:1\r\n" NODE("1\r\nh", "1") "*3\r\n:2\r\n:99999\r\n" NODE("1\r\nh", "1"),
    };
    struct near__slot_map *map;

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(nonsense); i++)
        assert_int_equal(parse(&map, nonsense[i]), NEAR_ERR_PROTOCOL);
}

static void
C2_more_nodes_than_there_can_be_are_refused(void **state)
{
    enum { MANY = NEAR__SLOT_NODES + 1 };
    static char            text[MANY * 64];
    struct near__slot_map *map;
    size_t                 n;

    (void)state;
    for (size_t count = NEAR__SLOT_NODES; count <= MANY; count++) {
        n = (size_t)snprintf(text, sizeof(text), "*%zu\r\n", count);
        for (size_t i = 0; i < count; i++)
            n += (size_t)snprintf(text + n, sizeof(text) - n,
                                  "*3\r\n:%zu\r\n:%zu\r\n*2\r\n$1\r\nh\r\n:%zu\r\n", i, i, i + 1);
        assert_int_equal(parse(&map, text), count == MANY ? NEAR_ERR_PROTOCOL : NEAR_OK);
        near__slot_map_free(&map);
    }
}

/* --------------------------------------------------------------------------------------------- redirects */

static bool
redirect(const char *text, struct near__redirect *r)
{
    memset(r, 0, sizeof(*r));
    return near__redirect_parse(r, near_key(text), &asked);
}

static void
C2_C3_redirects(void **state)
{
    static const char *const none[] = {
        "",
        "MOVED",
        "MOVED ",
        "MOVED 1",
        "MOVED 1 ",
        "MOVED 1 host",
        "MOVED 1 host:",
        "MOVED 1 host:0",
        "MOVED 1 host:65536",
        "MOVED 1 host:655360000",
        "MOVED 1 host:1x",
        "MOVED 1 ?:6379",
        "MOVED 16384 host:1",
        "MOVED -1 host:1",
        "MOVED x host:1",
        "MOVED  1 host:1",
        "MOVEDX 1 host:1",
        "moved 1 host:1",
        "ASK 99999 host:1",
        "ASKING 1 host:1",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN The cluster is down",
    };
    struct near__redirect r;

    (void)state;
    assert_true(redirect("MOVED 3999 127.0.0.1:6381", &r));
    assert_false(r.ask);
    assert_int_equal(r.slot, 3999);
    assert_string_equal(r.to.host, "127.0.0.1");
    assert_int_equal(r.to.port, 6381);
    assert_true(redirect("ASK 16383 fe80::1%eth0:1", &r));
    assert_true(r.ask);
    assert_int_equal(r.slot, 16383);
    assert_string_equal(r.to.host, "fe80::1%eth0");
    assert_int_equal(r.to.port, 1);
    assert_true(redirect("MOVED 0 :7009", &r));
    assert_string_equal(r.to.host, asked.host);
    assert_int_equal(r.to.port, 7009);
    for (size_t i = 0; i < NEAR_COUNT_OF(none); i++)
        assert_false(redirect(none[i], &r));
}

/* ---------------------------------------------------------------------------------------------- refreshes */

struct crowd {
    struct near__refresh refresh;
    atomic_int           leaders;
};

static void *
want_one(void *ctx)
{
    struct crowd *crowd = ctx;
    int64_t       now   = near__now(&near__clock_system);

    if (near__refresh_begin(&crowd->refresh, now, now + 5000 * NEAR_MS)) {
        atomic_fetch_add(&crowd->leaders, 1);
        usleep(50 * 1000);
        near__refresh_end(&crowd->refresh, near__now(&near__clock_system));
    }
    return NULL;
}

static void
C3_one_refresh_for_a_crowd(void **state)
{
    enum { CROWD = 16 };
    struct crowd crowd = { .leaders = 0 };
    pthread_t    threads[CROWD];

    (void)state;
    near__refresh_init(&crowd.refresh);
    for (size_t i = 0; i < CROWD; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, want_one, &crowd), 0);
    for (size_t i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(crowd.leaders, 1);
    near__refresh_fini(&crowd.refresh);
}

static void
C3_refreshes_are_apart(void **state)
{
    struct near__refresh refresh;
    int64_t              now = 1000;

    (void)state;
    near__refresh_init(&refresh);
    assert_true(near__refresh_begin(&refresh, now, 0));
    assert_false(near__refresh_begin(&refresh, now, 0)); /* one runs; not waited for */
    near__refresh_end(&refresh, now);
    assert_false(near__refresh_begin(&refresh, now + NEAR__REFRESH_APART - 1, NEAR_NEVER));
    assert_true(near__refresh_begin(&refresh, now + NEAR__REFRESH_APART / 4 * 5, 0));
    near__refresh_end(&refresh, now);
    near__refresh_fini(&refresh);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(C1_slots_are_those_of_the_specification),
        cmocka_unit_test(C1_slots_of_keys_of_every_size),
        cmocka_unit_test(C1_hash_tags),
        cmocka_unit_test(C2_a_map_of_ranges),
        cmocka_unit_test(C2_a_host_left_out_is_who_was_asked_and_an_unknown_one_is_skipped),
        cmocka_unit_test(C2_nonsense_is_refused_whole),
        cmocka_unit_test(C2_more_nodes_than_there_can_be_are_refused),
        cmocka_unit_test(C2_C3_redirects),
        cmocka_unit_test(C3_one_refresh_for_a_crowd),
        cmocka_unit_test(C3_refreshes_are_apart),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
