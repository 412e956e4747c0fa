/* What get, set, remove and doctor share: options into a near_config, a client that logs to standard error. */
#ifndef NEAR_TOOLS_CONNECT_H
#define NEAR_TOOLS_CONNECT_H

#include "command.h"

#include "access.h"
#include "base/uri.h"

/* One run's configuration: the command line, before the environment, before the file. */
struct connect {
    near_config               *config;
    struct near__settings      settings; /* resolved */
    struct near__client_access access;
    struct near__uri           l2_uri;
};

/* -1 to go on; else the exit status to leave with (help was shown, or something was wrong). */
/* A subcommand's own options come to `take` (NULL: it has none), which says false after complaining. */
typedef bool (*connect_fn)(void *ctx, int code, const char *argument);
int  connect_options(struct connect *connect, int argc, char **argv, connect_fn take, void *ctx);
bool connect_set(const char *option, const char *value, struct connect *connect);
/* Resolve the settings and parse l2.uri.  False after complaining. */
bool connect_resolve(struct connect *connect);
/* False after complaining: in this process's own memory there is nothing to find. */
bool connect_is_shared(const struct connect *connect);
/* NULL after complaining. */
near_client *connect_client(const struct connect *connect);
void         connect_free(struct connect *connect);

#endif
