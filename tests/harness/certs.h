/*
 * Throw-away certificates for tests of TLS, made by OpenSSL in this process.  Only in builds with OpenSSL.
 *
 * An authority and what it signs are PEM files in one directory, `NAME.crt` and `NAME.key` (mode 0600).  False or NULL: printed why.
 */
#ifndef TESTS_HARNESS_CERTS_H
#define TESTS_HARNESS_CERTS_H

#include <stdbool.h>

struct test_ca;

struct test_ca *test_ca_new(const char *directory, const char *name);
void            test_ca_free(struct test_ca **ca); /* the files stay */
/* `names` as OpenSSL writes them: "DNS:localhost,IP:127.0.0.1".  Good from yesterday for `days`; below 0: it ended then. */
bool test_ca_issue(struct test_ca *ca, const char *name, const char *names, int days);

#endif
