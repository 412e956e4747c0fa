/* See pcap.h. */
#include "pcap.h"

#include "command.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIECE_MOST  = 16 << 20, /* a packet, or a block of pcapng: more is no capture */
    LINKS_MOST  = 256,      /* interfaces of a section */
    FILE_HEAD   = 24,
    ITEM_HEAD   = 16,
    BLOCK_LEAST = 12
};

struct capture {
    struct source  *source;
    struct streams *streams;
    unsigned char  *bytes;
    size_t          at, end, room;
    uint64_t        offset; /* of bytes[at] in the file, unpacked */
    bool            big;    /* numbers are big-endian */
    unsigned        links[LINKS_MOST], n_links;
};

static bool
bad(const struct capture *c, const char *why)
{
    complain(EXIT_TROUBLE, "%s: offset %" PRIu64 ": %s", c->source->name, c->offset, why);
    return false;
}

static uint16_t
n16(const struct capture *c, const unsigned char *at)
{
    return (uint16_t)(c->big ? at[0] << 8 | at[1] : at[1] << 8 | at[0]);
}

static uint32_t
n32(const struct capture *c, const unsigned char *at)
{
    return c->big ? (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3]
                  : (uint32_t)at[3] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[1] << 8 | at[0];
}

enum found { FOUND, THE_END, FAILED };

/* The next n bytes at bytes[at], not yet passed over.  THE_END: there is not one more. */
static enum found
need(struct capture *c, size_t n)
{
    while (c->end - c->at < n) {
        ssize_t got;

        if (c->at > 0) {
            memmove(c->bytes, c->bytes + c->at, c->end - c->at);
            c->end -= c->at;
            c->at = 0;
        }
        if (c->room < n) {
            size_t         room  = n < 1 << 17 ? 1 << 17 : n;
            unsigned char *bytes = realloc(c->bytes, room);

            if (bytes == NULL) {
                bad(c, "out of memory");
                return FAILED;
            }
            c->bytes = bytes;
            c->room  = room;
        }
        got = source_read(c->source, (char *)c->bytes + c->end, c->room - c->end);
        if (got < 0)
            return FAILED;
        if (got == 0 && c->end == 0)
            return THE_END;
        if (got == 0) {
            bad(c, "ends in the middle of a packet");
            return FAILED;
        }
        c->end += (size_t)got;
    }
    return FOUND;
}

static void
pass(struct capture *c, size_t n)
{
    c->at += n;
    c->offset += n;
}

static bool
link_is_known(const struct capture *c, unsigned link)
{
    char why[80];

    if (streams_link_known(link))
        return true;
    snprintf(why, sizeof(why), "packets of an unknown kind of link, number %u", link);
    return bad(c, why);
}

static bool
give(struct capture *c, unsigned link, const unsigned char *bytes, size_t captured, size_t length)
{
    return streams_packet(c->streams, link, bytes, captured, length) || bad(c, "out of memory");
}

/* ---- pcap */

static bool
read_plain(struct capture *c)
{
    enum found found = need(c, FILE_HEAD);
    unsigned   link;

    if (found != FOUND)
        return found == THE_END && bad(c, "ends in the middle of a packet");
    c->big = c->bytes[c->at] == 0xA1;
    link   = n32(c, c->bytes + c->at + 20) & 0x03FFFFFF; /* above: whether checksums follow */
    if (!link_is_known(c, link))
        return false;
    pass(c, FILE_HEAD);
    while ((found = need(c, ITEM_HEAD)) == FOUND) {
        size_t captured = n32(c, c->bytes + c->at + 8), length = n32(c, c->bytes + c->at + 12);

        if (captured > PIECE_MOST || captured > length)
            return bad(c, "this cannot be a packet");
        if (need(c, ITEM_HEAD + captured) != FOUND)
            return false;
        if (!give(c, link, c->bytes + c->at + ITEM_HEAD, captured, length))
            return false;
        pass(c, ITEM_HEAD + captured);
    }
    return found == THE_END;
}

/* ---- pcapng */

enum { SECTION = 0x0A0D0D0A, INTERFACE = 1, SIMPLE_PACKET = 3, PACKET = 6 };

static bool
take_block(struct capture *c, uint32_t type, const unsigned char *body, size_t size)
{
    if (type == INTERFACE) {
        if (size < 8 || c->n_links == LINKS_MOST)
            return bad(c, "this cannot be an interface");
        c->links[c->n_links++] = n16(c, body);
        return link_is_known(c, n16(c, body));
    }
    if (type == SIMPLE_PACKET && size >= 4 && c->n_links > 0) {
        size_t length = n32(c, body), captured = length < size - 4 ? length : size - 4;

        return give(c, c->links[0], body + 4, captured, length);
    }
    if (type == PACKET && size >= 20) {
        uint32_t interface = n32(c, body), captured = n32(c, body + 12), length = n32(c, body + 16);

        if (interface >= c->n_links || captured > size - 20 || captured > length)
            return bad(c, "this cannot be a packet");
        return give(c, c->links[interface], body + 20, captured, length);
    }
    if (type == PACKET || type == SIMPLE_PACKET)
        return bad(c, "this cannot be a packet");
    return true;
}

static bool
read_blocks(struct capture *c)
{
    static const unsigned char section[] = { 0x0A, 0x0D, 0x0D, 0x0A };
    enum found                 found;

    while ((found = need(c, BLOCK_LEAST)) == FOUND) {
        const unsigned char *at = c->bytes + c->at;
        size_t               size;

        if (memcmp(at, section, sizeof(section)) == 0) {
            c->big     = at[8] == 0x1A;
            c->n_links = 0;
            if (n32(c, at + 8) != 0x1A2B3C4D)
                return bad(c, "this cannot be a section");
        }
        size = n32(c, at + 4);
        if (size < BLOCK_LEAST || size > PIECE_MOST || size % 4 != 0)
            return bad(c, "this cannot be a block");
        if (need(c, size) != FOUND)
            return false;
        at = c->bytes + c->at;
        if (n32(c, at + size - 4) != size)
            return bad(c, "this cannot be a block");
        if (!take_block(c, n32(c, at), at + 8, size - BLOCK_LEAST))
            return false;
        pass(c, size);
    }
    return found == THE_END;
}

bool
pcap_begins(const unsigned char *bytes, size_t size)
{
    static const unsigned char known[][4] = { { 0xD4, 0xC3, 0xB2, 0xA1 },
                                              { 0xA1, 0xB2, 0xC3, 0xD4 },
                                              { 0x4D, 0x3C, 0xB2, 0xA1 },
                                              { 0xA1, 0xB2, 0x3C, 0x4D },
                                              { 0x0A, 0x0D, 0x0D, 0x0A } };

    for (size_t i = 0; size >= 4 && i < NEAR_COUNT_OF(known); i++)
        if (memcmp(bytes, known[i], 4) == 0)
            return true;
    return false;
}

bool
pcap_read(struct source *source, const void *first, size_t n, struct streams *streams)
{
    struct capture c = { .source = source, .streams = streams, .bytes = malloc(n), .end = n, .room = n };
    bool           ok;

    if (c.bytes == NULL)
        return bad(&c, "out of memory");
    memcpy(c.bytes, first, n);
    ok = need(&c, 4) == FOUND && (c.bytes[0] == 0x0A ? read_blocks(&c) : read_plain(&c));
    free(c.bytes);
    return ok && (streams_end(streams) || bad(&c, "out of memory"));
}
