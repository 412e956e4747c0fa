/*
 * Capture files of a test's own making: TCP segments with what the test says in them, in the order in which it says so.
 *
 * One link and one kind of file a capture; numbers are little-endian unless `big`.
 */
#ifndef TESTS_HARNESS_PACKETS_H
#define TESTS_HARNESS_PACKETS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { TEST_FIN = 1, TEST_SYN = 2, TEST_RST = 4, TEST_ACK = 16 };

struct test_capture {
    FILE    *file;
    bool     big, nano, blocks, ipv6; /* blocks: pcapng */
    unsigned link;                    /* 1 Ethernet, 101 raw IP, 113 and 276 cooked, 0 loopback */
    unsigned vlan;                    /* tags before IP, of Ethernet */
    unsigned snap;                    /* bytes kept of a packet; 0: all */
};

static inline void
test_put(const struct test_capture *capture, uint64_t n, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        unsigned place =
            capture->big ? bytes - 1 - i : i; /* 12 bytes may be put: those beyond n's own are 0 */

        putc(place < sizeof(n) ? (int)(n >> 8 * place & 0xFF) : 0, capture->file);
    }
}

static inline void
test_capture_begin(const struct test_capture *capture)
{
    if (!capture->blocks) {
        test_put(capture, capture->nano ? 0xA1B23C4D : 0xA1B2C3D4, 4);
        test_put(capture, 2, 2);
        test_put(capture, 4, 2);
        test_put(capture, 0, 8);
        test_put(capture, 262144, 4);
        test_put(capture, capture->link, 4);
        return;
    }
    test_put(capture, 0x0A0D0D0A, 4); /* section */
    test_put(capture, 28, 4);
    test_put(capture, 0x1A2B3C4D, 4);
    test_put(capture, 1, 2);
    test_put(capture, 0, 2);
    test_put(capture, UINT64_MAX, 8);
    test_put(capture, 28, 4);
    test_put(capture, 5, 4); /* statistics, which nobody needs */
    test_put(capture, 12, 4);
    test_put(capture, 12, 4);
    test_put(capture, 1, 4); /* interface */
    test_put(capture, 20, 4);
    test_put(capture, capture->link, 2);
    test_put(capture, 0, 2);
    test_put(capture, 262144, 4);
    test_put(capture, 20, 4);
}

static inline void
test_packet(const struct test_capture *capture, const unsigned char *bytes, size_t size)
{
    size_t kept = capture->snap != 0 && size > capture->snap ? capture->snap : size, padding = -kept & 3;

    if (capture->blocks) {
        test_put(capture, 6, 4);
        test_put(capture, 32 + kept + padding, 4);
        test_put(capture, 0, 12);
        test_put(capture, kept, 4);
        test_put(capture, size, 4);
        fwrite(bytes, 1, kept, capture->file);
        test_put(capture, 0, (unsigned)padding);
        test_put(capture, 32 + kept + padding, 4);
        return;
    }
    test_put(capture, 1700000000, 4);
    test_put(capture, 0, 4);
    test_put(capture, kept, 4);
    test_put(capture, size, 4);
    fwrite(bytes, 1, kept, capture->file);
}

static inline unsigned char *
test_be(unsigned char *at, uint64_t n, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        at[i] = (unsigned char)(n >> 8 * (bytes - 1 - i));
    return at + bytes;
}

static inline unsigned char *
test_link_head(const struct test_capture *capture, unsigned char *at)
{
    unsigned type = capture->ipv6 ? 0x86DD : 0x0800;

    if (capture->link == 276)
        at = test_be(test_be(at, type, 2), 0, 2);
    for (unsigned i = 0; i < (capture->link == 1     ? 12
                              : capture->link == 113 ? 14
                              : capture->link == 276 ? 16
                                                     : 0);
         i++)
        *at++ = 0;
    for (unsigned i = 0; capture->link == 1 && i < capture->vlan; i++)
        at = test_be(at, i == 0 && capture->vlan > 1 ? 0x88A80007 : 0x81000007, 4);
    if (capture->link == 1 || capture->link == 113)
        at = test_be(at, type, 2);
    if (capture->link == 0)
        at = test_be(at, 0x02000000, 4);
    return at;
}

/* From a client's port to a server's, or with `back` the other way. */
static inline void
test_segment(const struct test_capture *capture, unsigned client, unsigned server, bool back, uint32_t seq,
             unsigned flags, const char *data, size_t size)
{
    static unsigned char bytes[70000];
    unsigned char       *at = test_link_head(capture, bytes);

    if (capture->ipv6) {
        at = test_be(test_be(test_be(test_be(at, 0x60000000, 4), (uint32_t)(20 + 8 + size), 2), 0, 1), 64, 1);
        memset(at, back ? 2 : 1, 16);
        memset(at + 16, back ? 1 : 2, 16);
        at = test_be(test_be(at + 32, 6 << 8 | 0, 2), 0, 6); /* hop by hop options */
    } else {
        at = test_be(test_be(test_be(at, 0x4500, 2), (uint32_t)(40 + size), 2), 0, 4);
        at = test_be(test_be(test_be(at, 64, 1), 6, 1), 0, 2);
        at = test_be(test_be(at, back ? 0x7F000002 : 0x7F000001, 4), back ? 0x7F000001 : 0x7F000002, 4);
    }
    at = test_be(test_be(at, back ? server : client, 2), back ? client : server, 2);
    at = test_be(test_be(test_be(at, seq, 4), 0, 4), 0x5000 | flags, 2);
    at = test_be(test_be(at, 65535, 2), 0, 4);
    memcpy(at, data, size);
    test_packet(capture, bytes, (size_t)(at - bytes) + size);
}

#endif
