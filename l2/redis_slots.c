/*
 * Slots, maps and redirects of a Redis Cluster.  See redis_slots.h.
 *
 * What can never happen: a map with an index outside its nodes; a map built from half a reply; an address with a port of 0 (which would
 * mean a unix socket) or a host that is not a plain word.
 */
#include "l2/redis_slots.h"

#include "base/hash.h"

#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------ slots */

/* CRC16/XMODEM: polynomial 0x1021, nothing reflected, from 0.  [i] is the remainder of byte i. */
static const uint16_t crc_table[256] = {
    0x0000, 0x1021, 0x2042, 0x3063, 0x4084, 0x50a5, 0x60c6, 0x70e7, 0x8108, 0x9129, 0xa14a, 0xb16b, 0xc18c,
    0xd1ad, 0xe1ce, 0xf1ef, 0x1231, 0x0210, 0x3273, 0x2252, 0x52b5, 0x4294, 0x72f7, 0x62d6, 0x9339, 0x8318,
    0xb37b, 0xa35a, 0xd3bd, 0xc39c, 0xf3ff, 0xe3de, 0x2462, 0x3443, 0x0420, 0x1401, 0x64e6, 0x74c7, 0x44a4,
    0x5485, 0xa56a, 0xb54b, 0x8528, 0x9509, 0xe5ee, 0xf5cf, 0xc5ac, 0xd58d, 0x3653, 0x2672, 0x1611, 0x0630,
    0x76d7, 0x66f6, 0x5695, 0x46b4, 0xb75b, 0xa77a, 0x9719, 0x8738, 0xf7df, 0xe7fe, 0xd79d, 0xc7bc, 0x48c4,
    0x58e5, 0x6886, 0x78a7, 0x0840, 0x1861, 0x2802, 0x3823, 0xc9cc, 0xd9ed, 0xe98e, 0xf9af, 0x8948, 0x9969,
    0xa90a, 0xb92b, 0x5af5, 0x4ad4, 0x7ab7, 0x6a96, 0x1a71, 0x0a50, 0x3a33, 0x2a12, 0xdbfd, 0xcbdc, 0xfbbf,
    0xeb9e, 0x9b79, 0x8b58, 0xbb3b, 0xab1a, 0x6ca6, 0x7c87, 0x4ce4, 0x5cc5, 0x2c22, 0x3c03, 0x0c60, 0x1c41,
    0xedae, 0xfd8f, 0xcdec, 0xddcd, 0xad2a, 0xbd0b, 0x8d68, 0x9d49, 0x7e97, 0x6eb6, 0x5ed5, 0x4ef4, 0x3e13,
    0x2e32, 0x1e51, 0x0e70, 0xff9f, 0xefbe, 0xdfdd, 0xcffc, 0xbf1b, 0xaf3a, 0x9f59, 0x8f78, 0x9188, 0x81a9,
    0xb1ca, 0xa1eb, 0xd10c, 0xc12d, 0xf14e, 0xe16f, 0x1080, 0x00a1, 0x30c2, 0x20e3, 0x5004, 0x4025, 0x7046,
    0x6067, 0x83b9, 0x9398, 0xa3fb, 0xb3da, 0xc33d, 0xd31c, 0xe37f, 0xf35e, 0x02b1, 0x1290, 0x22f3, 0x32d2,
    0x4235, 0x5214, 0x6277, 0x7256, 0xb5ea, 0xa5cb, 0x95a8, 0x8589, 0xf56e, 0xe54f, 0xd52c, 0xc50d, 0x34e2,
    0x24c3, 0x14a0, 0x0481, 0x7466, 0x6447, 0x5424, 0x4405, 0xa7db, 0xb7fa, 0x8799, 0x97b8, 0xe75f, 0xf77e,
    0xc71d, 0xd73c, 0x26d3, 0x36f2, 0x0691, 0x16b0, 0x6657, 0x7676, 0x4615, 0x5634, 0xd94c, 0xc96d, 0xf90e,
    0xe92f, 0x99c8, 0x89e9, 0xb98a, 0xa9ab, 0x5844, 0x4865, 0x7806, 0x6827, 0x18c0, 0x08e1, 0x3882, 0x28a3,
    0xcb7d, 0xdb5c, 0xeb3f, 0xfb1e, 0x8bf9, 0x9bd8, 0xabbb, 0xbb9a, 0x4a75, 0x5a54, 0x6a37, 0x7a16, 0x0af1,
    0x1ad0, 0x2ab3, 0x3a92, 0xfd2e, 0xed0f, 0xdd6c, 0xcd4d, 0xbdaa, 0xad8b, 0x9de8, 0x8dc9, 0x7c26, 0x6c07,
    0x5c64, 0x4c45, 0x3ca2, 0x2c83, 0x1ce0, 0x0cc1, 0xef1f, 0xff3e, 0xcf5d, 0xdf7c, 0xaf9b, 0xbfba, 0x8fd9,
    0x9ff8, 0x6e17, 0x7e36, 0x4e55, 0x5e74, 0x2e93, 0x3eb2, 0x0ed1, 0x1ef0,
};

static unsigned
crc16(const unsigned char *at, size_t size)
{
    unsigned crc = 0;

    for (size_t i = 0; i < size; i++)
        crc = ((crc << 8) & 0xffff) ^ crc_table[(crc >> 8) ^ at[i]];
    return crc;
}

unsigned
near__slot_of(near_bytes key)
{
    const unsigned char *at   = key.data;
    const unsigned char *open = key.size > 0 ? memchr(at, '{', key.size) : NULL;
    const unsigned char *close;

    if (open != NULL) {
        open++;
        close = memchr(open, '}', key.size - (size_t)(open - at));
        if (close != NULL && close > open)
            return crc16(open, (size_t)(close - open)) % NEAR__SLOTS;
    }
    return crc16(at, key.size) % NEAR__SLOTS;
}

/* -------------------------------------------------------------------------------------------- addresses */

/* A name or an address, IPv6 without brackets: printable, no blanks, and it fits. */
static bool
set_host(struct near__address *address, const char *text, size_t size)
{
    if (size == 0 || size >= sizeof(address->host))
        return false;
    for (size_t i = 0; i < size; i++)
        if (text[i] <= 0x20 || text[i] >= 0x7f || strchr("/?[]{}\"\\", text[i]) != NULL)
            return false;
    memcpy(address->host, text, size);
    address->host[size] = '\0';
    return true;
}

static bool
set_port(struct near__address *address, long long port)
{
    address->port   = (uint16_t)port;
    address->weight = 1;
    return port >= 1 && port <= 65535;
}

/* 1 to 5 digits. */
static bool
number(const char *text, size_t size, unsigned *value)
{
    unsigned v = 0;

    if (size < 1 || size > 5)
        return false;
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        v = v * 10 + (unsigned)(text[i] - '0');
    }
    *value = v;
    return true;
}

static bool
same_address(const struct near__address *a, const struct near__address *b)
{
    return a->port == b->port && strcmp(a->host, b->host) == 0;
}

/* --------------------------------------------------------------------------------------------- redirects */

/* The next word of `text`, which is shortened by it; empty at its end. */
static near_bytes
next_word(near_bytes *text)
{
    const char *at   = text->data;
    const char *end  = text->size > 0 ? memchr(at, ' ', text->size) : NULL;
    size_t      size = end != NULL ? (size_t)(end - at) : text->size;
    size_t      skip = end != NULL ? size + 1 : size;

    text->data = at + skip;
    text->size -= skip;
    return (near_bytes){ at, size };
}

static bool
word_is(near_bytes word, const char *text)
{
    return word.size == strlen(text) && memcmp(word.data, text, word.size) == 0;
}

/* host:port, divided at the last ':' because an IPv6 address holds others (rule C2).  No host: that of who was asked. */
static bool
parse_endpoint(struct near__address *to, near_bytes word, const struct near__address *asked)
{
    const char *at    = word.data;
    const char *colon = word.size > 0 ? memrchr(at, ':', word.size) : NULL;
    size_t      host;
    unsigned    port;

    if (colon == NULL)
        return false;
    host = (size_t)(colon - at);
    if (host == 0)
        *to = *asked;
    else if (!set_host(to, at, host))
        return false;
    return number(colon + 1, word.size - host - 1, &port) && set_port(to, port);
}

bool
near__redirect_parse(struct near__redirect *redirect, near_bytes error, const struct near__address *asked)
{
    near_bytes kind = next_word(&error);
    near_bytes slot = next_word(&error);
    near_bytes to   = next_word(&error);

    redirect->ask = word_is(kind, "ASK");
    return (redirect->ask || word_is(kind, "MOVED")) && number(slot.data, slot.size, &redirect->slot) &&
           redirect->slot < NEAR__SLOTS && parse_endpoint(&redirect->to, to, asked);
}

/* -------------------------------------------------------------------------------------------------- maps */

enum verdict { TAKEN, SKIPPED, REFUSED };

static enum verdict
parse_node(const struct near__redis_reply *node, const struct near__address *asked, struct near__address *out)
{
    const struct near__redis_reply *host, *port;

    if (node->type != REDIS_REPLY_ARRAY || node->elements < 2)
        return REFUSED;
    host = &node->element[0];
    port = &node->element[1];
    if (port->type != REDIS_REPLY_INTEGER)
        return REFUSED;
    if (host->type == REDIS_REPLY_NIL || (host->type == REDIS_REPLY_STRING && host->size == 0))
        *out = *asked;
    else if (host->type != REDIS_REPLY_STRING)
        return REFUSED;
    else if (!set_host(out, host->text, host->size)) /* "?": a node that the asked one knows no address of */
        return SKIPPED;
    return set_port(out, port->integer) ? TAKEN : REFUSED;
}

/* The index of an address among the map's nodes; NEAR__SLOT_NOBODY when there is no room for another. */
static uint16_t
index_of(struct near__slot_map *map, const struct near__address *address)
{
    for (size_t i = map->node_count; i > 0; i--) /* neighbours' ranges are often the same node's */
        if (same_address(&map->nodes[i - 1], address))
            return (uint16_t)(i - 1);
    if (map->node_count == NEAR__SLOT_NODES)
        return NEAR__SLOT_NOBODY;
    map->nodes[map->node_count] = *address;
    return (uint16_t)map->node_count++;
}

static bool
parse_range(struct near__slot_map *map, const struct near__redis_reply *range,
            const struct near__address *asked)
{
    const struct near__redis_reply *first, *last;
    struct near__address            address = { .port = 0 };
    uint16_t                        index;
    enum verdict                    verdict;

    if (range->type != REDIS_REPLY_ARRAY || range->elements < 3)
        return false;
    first = &range->element[0];
    last  = &range->element[1];
    if (first->type != REDIS_REPLY_INTEGER || last->type != REDIS_REPLY_INTEGER || first->integer < 0 ||
        first->integer > last->integer || last->integer >= NEAR__SLOTS)
        return false;
    verdict = parse_node(&range->element[2], asked, &address); /* the primary; replicas follow */
    if (verdict != TAKEN)
        return verdict == SKIPPED;
    index = index_of(map, &address);
    for (long long slot = first->integer; slot <= last->integer; slot++) {
        map->covered += map->owner[slot] == NEAR__SLOT_NOBODY && index != NEAR__SLOT_NOBODY;
        map->owner[slot] = index;
    }
    return index != NEAR__SLOT_NOBODY;
}

near_status
near__slot_map_parse(struct near__slot_map **out, const struct near__redis_reply *reply,
                     const struct near__address *asked)
{
    struct near__slot_map *map;

    *out = NULL;
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements > NEAR__SLOTS)
        return NEAR_ERR_PROTOCOL;
    map = malloc(sizeof(*map));
    if (map == NULL)
        return NEAR_ERR_NOMEM;
    map->covered = map->node_count = 0;
    memset(map->owner, 0xff, sizeof(map->owner)); /* NEAR__SLOT_NOBODY */
    for (size_t i = 0; i < reply->elements; i++)
        if (!parse_range(map, &reply->element[i], asked)) {
            free(map);
            return NEAR_ERR_PROTOCOL;
        }
    *out = map;
    return NEAR_OK;
}

void
near__slot_map_free(struct near__slot_map **map)
{
    free(*map);
    *map = NULL;
}

/* ---------------------------------------------------------------------------------------------- refreshes */

void
near__refresh_init(struct near__refresh *refresh)
{
    *refresh = (struct near__refresh){ .not_before = INT64_MIN };
    near__lock_init(&refresh->lock, NEAR__RANK_LEAF);
    near__cond_init(&refresh->done);
}

void
near__refresh_fini(struct near__refresh *refresh)
{
    pthread_cond_destroy(&refresh->done);
    near__lock_fini(&refresh->lock);
}

bool
near__refresh_begin(struct near__refresh *refresh, int64_t now, int64_t wait_until)
{
    bool     mine;
    uint64_t round;

    near__lock(&refresh->lock);
    mine  = !refresh->running && now >= refresh->not_before;
    round = refresh->rounds;
    if (mine)
        refresh->running = true;
    while (refresh->running && !mine && refresh->rounds == round && wait_until != 0)
        if (!near__cond_wait(&refresh->done, &refresh->lock, wait_until))
            break;
    near__unlock(&refresh->lock);
    return mine;
}

/* A quarter more at random: instances that saw the same change must not ask in step. */
void
near__refresh_end(struct near__refresh *refresh, int64_t now)
{
    uint32_t dice = 0;

    near__random(&dice, sizeof(dice)); /* without it there is no jitter, and no harm */
    near__lock(&refresh->lock);
    refresh->running    = false;
    refresh->not_before = now + NEAR__REFRESH_APART + NEAR__REFRESH_APART / 4 * (int64_t)(dice >> 16) / 65536;
    refresh->rounds++;
    pthread_cond_broadcast(&refresh->done);
    near__unlock(&refresh->lock);
}
