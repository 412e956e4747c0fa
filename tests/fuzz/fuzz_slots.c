/*
 * Fuzz target: what a cluster's servers say about slots.
 *
 * Input: a first byte, then either a reply to CLUSTER SLOTS as on the wire (even) or the text of an error (odd).  Whatever it is, a map that is
 * accepted leads nowhere outside itself, and so does a redirect.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "harness/reply.h"
#include "l2/redis_slots.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

static const struct near__address asked = { .host = "10.1.1.1", .port = 7000, .weight = 1 };

static void
check_address(const struct near__address *address)
{
    check(address->port != 0 && address->host[0] != '\0');
    check(memchr(address->host, '\0', sizeof(address->host)) != NULL);
}

static void
check_map(const struct near__slot_map *map)
{
    size_t covered = 0;

    check(map->node_count <= NEAR__SLOT_NODES);
    for (size_t i = 0; i < map->node_count; i++)
        check_address(&map->nodes[i]);
    for (size_t i = 0; i < NEAR__SLOTS; i++) {
        check(map->owner[i] == NEAR__SLOT_NOBODY || map->owner[i] < map->node_count);
        covered += map->owner[i] != NEAR__SLOT_NOBODY;
    }
    check(covered == map->covered);
}

#if HIREDIS_MAJOR >= 1
typedef size_t element_count;
#else
typedef int element_count;
#endif

static redisReplyObjectFunctions bounded, *theirs;

/* Arrays are bounded where replies are read (l2/redis_conn.c, fuzz_resp); hiredis would allocate whatever they announce. */
static void *
bounded_array(const redisReadTask *task, element_count elements)
{
    return elements > 64 * 1024 ? NULL : theirs->createArray(task, elements);
}

static void
bound(redisReader *reader)
{
    theirs              = reader->fn;
    bounded             = *theirs;
    bounded.createArray = bounded_array;
    reader->fn          = &bounded;
}

static void
try_reply(const uint8_t *data, size_t size)
{
    redisReader             *reader = redisReaderCreate();
    void                    *reply  = NULL;
    struct near__redis_reply taken;
    struct near__slot_map   *map;

    check(reader != NULL);
    bound(reader);
    check(redisReaderFeed(reader, (const char *)data, size) == REDIS_OK);
    if (redisReaderGetReply(reader, &reply) == REDIS_OK && reply != NULL) {
        test_reply_take(&taken, reply);
        if (near__slot_map_parse(&map, &taken, &asked) == NEAR_OK)
            check_map(map);
        near__slot_map_free(&map);
        test_reply_free(&taken);
        freeReplyObject(reply);
    }
    redisReaderFree(reader);
}

static void
try_error(const uint8_t *data, size_t size)
{
    struct near__redirect redirect;
    char                 *text = malloc(size + 1); /* its own block: a read past its end is seen */

    check(text != NULL);
    memcpy(text, data, size);
    if (near__redirect_parse(&redirect, (near_bytes){ text, size }, &asked)) {
        check(redirect.slot < NEAR__SLOTS);
        check_address(&redirect.to);
    }
    check(near__slot_of((near_bytes){ text, size }) < NEAR__SLOTS);
    free(text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] % 2 == 0)
        try_reply(data + 1, size - 1);
    else
        try_error(data + 1, size - 1);
    return 0;
}
