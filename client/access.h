/*
 * From settings to what it takes to get into the servers: passwords out of files and variables, TLS, sentinels.  Made while a client
 * opens, gone with it; between that nothing changes.
 */
#ifndef NEAR_CLIENT_ACCESS_H
#define NEAR_CLIENT_ACCESS_H

#include "base/uri.h"
#include "config.h"
#include "l2/access.h"
#include "l2/mac.h"

struct near__client_access {
    struct near__tls_context *tls; /* one for all connections of the client; NULL: no URI wants any */
    struct near__access       l2, bus;
};

/* `uri` is the parsed l2.uri; it gets the user and password that do not stand in it.  NEAR_ERR_INVALID: a file that cannot be used,
 * two passwords, or one that would travel in the clear; NEAR_ERR_UNSUPPORTED: TLS, and a build without it.  No message holds a password. */
near_status near__access_l2(struct near__client_access *access, const struct near__settings *settings,
                            struct near__uri *uri, near_error *error);
/* The same for the bus's URI, which may be a copy of L2's, filled in already. */
near_status near__access_bus(struct near__client_access *access, const struct near__settings *settings,
                             struct near__uri *uri, near_error *error);
/* What a cache's entries are sealed with; NULL inside: nothing.  NEAR_ERR_INVALID: the keys cannot be had, or are none;
 * NEAR_ERR_UNSUPPORTED: a build without OpenSSL.  No message holds a part of a key. */
near_status near__access_mac(struct near__mac **mac, const struct near__settings *settings,
                             near_error *error);
/* After the last connection. */
void near__access_free(struct near__client_access *access);

#endif
