/*
 * A keyed MAC for what a cache keeps in a shared tier: HMAC-SHA-256 (RFC 2104, by OpenSSL's SHA-256), its first 16 bytes.
 *
 * What it covers, in this order: "NrC-L2\x01\x00", the size of the place (64 bits, little-endian), the place, the entry's first 56
 * bytes (all of the header but checksum and MAC), and what lies behind the MAC.  The place is the key that L2 knows the entry by, with
 * prefix, name of the cache and kind; so bytes under another key, of another cache, or of another kind do not verify.
 *
 * A near__mac is made while a cache opens and does not change until it is freed, after the last use: any number of threads may use it
 * at once, without a lock.  Using it cannot fail and allocates nothing: a mark that could not be signed for want of memory would be
 * none to those who read it.
 *
 * What can never happen: a comparison whose time says how many bytes were right, a key that stays in memory given back.
 */
#ifndef NEAR_L2_MAC_H
#define NEAR_L2_MAC_H

#include "base/base.h"

#define NEAR__MAC_SIZE                                                                                       \
    16 /* half of what SHA-256 gives: to hit it by chance takes 2^127 tries, each a visit to L2 */
#define NEAR__MAC_KEY_SIZE 32
#define NEAR__MAC_KEYS     2 /* the one that signs, and one that is only believed, while keys are changed */

struct near__mac;

/* A copy of the keys: keys[0] signs, all are believed.  NEAR_OK; NEAR_ERR_UNSUPPORTED: a build without OpenSSL; NEAR_ERR_NOMEM. */
near_status near__mac_new(struct near__mac **mac, const uint8_t (*keys)[NEAR__MAC_KEY_SIZE], size_t n);
/* Wipes it.  NULL inside is fine. */
void near__mac_free(struct near__mac **mac);

void near__mac_sign(const struct near__mac *mac, near_bytes place, near_bytes head, near_bytes body,
                    uint8_t out[NEAR__MAC_SIZE]);
/* Which of the keys has signed this: 1 the one that signs now, 2 the one that is only believed; 0: none. */
unsigned near__mac_verify(const struct near__mac *mac, near_bytes place, near_bytes head, near_bytes body,
                          const uint8_t given[NEAR__MAC_SIZE]);

#endif
