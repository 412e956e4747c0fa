/*
 * The one place where URIs are parsed.
 *
 *   none:                                  memory:[NAME]
 *   redis://[user:pass@]host[:port][/db]   redis+unix://[user:pass@]/path[?db=n]
 *   redis-sentinel://[user:pass@]h1[:port],h2.../master[/db]
 *   redis-cluster://[user:pass@]h1[:port],h2...
 *   rediss://, rediss-sentinel://, rediss-cluster://: the same over TLS
 *   memcached://h1[:port[:weight]],h2...   memcached+unix:///path
 *   x-NAME:whatever (a backend of an application's, <nearcache/backend.h>)
 *
 * Of a redis-sentinel URI the hosts are sentinels, and user and password are the Redis server's.
 * IPv6 addresses stand in brackets.  User and password may hold %XX.  The text of a URI may hold a password:
 * messages show near__uri_display(), never the text.
 */
#ifndef NEAR_BASE_URI_H
#define NEAR_BASE_URI_H

#include "base/base.h"

enum near__uri_kind {
    NEAR__URI_NONE,
    NEAR__URI_MEMORY,
    NEAR__URI_REDIS,
    NEAR__URI_MEMCACHED,
    NEAR__URI_OTHER /* x-NAME, a scheme of somebody's own: only `scheme` is filled in */
};

/* What the addresses of a Redis URI are. */
enum near__uri_layout {
    NEAR__LAYOUT_SINGLE,   /* one server */
    NEAR__LAYOUT_SENTINEL, /* sentinels, who know the server */
    NEAR__LAYOUT_CLUSTER   /* some nodes of a cluster */
};

struct near__address {
    char     host[256]; /* name, address without brackets, or the socket's path */
    uint16_t port;      /* 0: unix socket */
    unsigned weight;    /* memcached: 1 .. 1000 */
};

#define NEAR__URI_ADDRESSES 64
struct near__uri {
    enum near__uri_kind   kind;
    enum near__uri_layout layout; /* Redis */
    bool                  tls;    /* Redis: every connection, the sentinels' as well */
    char     scheme[24]; /* "redis", "memory", ...: picks the row in the tables of backends and buses */
    char     name[64];   /* memory:NAME; Sentinel: the master's */
    char     user[128];  /* empty: none */
    char     password[256];
    unsigned database;
    size_t   address_count;
    struct near__address addresses[NEAR__URI_ADDRESSES];
};

/* NEAR_OK, or NEAR_ERR_INVALID / NEAR_ERR_UNSUPPORTED with a message that names `option`, the offending part
 * and what is accepted, and never shows a password. */
near_status near__uri_parse(struct near__uri *uri, const char *option, const char *text, near_error *error);

/* "redis 10.0.0.7:6379", "memory NAME": for logs and errors.  Writes at most `size` bytes, NUL included. */
void near__uri_display(const struct near__uri *uri, char *out, size_t size);
/* "10.0.0.7:6379", "[::1]:6379" or "/path". */
void near__address_display(const struct near__address *address, char *out, size_t size);
/* Whether both name the same server and database with the same credentials.  A private `memory:` is nobody
 * else's: false. */
bool near__uri_same_server(const struct near__uri *a, const struct near__uri *b);

#endif
