/*
 * What it takes to get into the servers of one URI, besides the URI: made by whoever opens the backend or the bus (client/access.c),
 * borrowed by every dial, and gone only after the last connection.  Nothing in it changes while it is used but the sentinels' state,
 * which has its own lock.
 */
#ifndef NEAR_L2_ACCESS_H
#define NEAR_L2_ACCESS_H

#include "base/base.h"

struct near__sentinels;
struct near__tls_context;

struct near__access {
    struct near__tls_context *tls;       /* NULL: there is none, and a URI that wants TLS cannot be dialled */
    struct near__sentinels   *sentinels; /* NULL: the URI names the server itself */
    bool                      plaintext_auth; /* a password may go to another host without TLS */
};

#endif
