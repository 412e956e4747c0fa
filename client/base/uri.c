/*
 * URIs are configuration that people type, so every refusal says which option, which part and what would
 * do.  And they hold passwords, so nothing that could be one is ever quoted: what stands before the last '@'
 * is skipped unseen, a text with an '@' in the wrong place is not quoted at all, and of a Redis URI no part
 * is: redis://password or redis://user:password, the host forgotten, or ?password=... would be.
 *
 * Parsing works on spans of the text, allocates nothing and leaves an all-zero result behind every refusal.
 */
#include "base/uri.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#define ACCEPTED                                                                                             \
    "none:, memory:[NAME], redis[s]://[user:pass@]host[:port][/db], redis+unix:///path[?db=n], "             \
    "redis[s]-sentinel://h1,h2/master[/db], redis[s]-cluster://h1,h2, "                                      \
    "memcached://h1[:port],h2 or memcached+unix:///path"
#define SOCKET_PATH_MAX (sizeof(((struct sockaddr_un *)0)->sun_path) - 1)
#define DATABASE_MAX    65535 /* Redis counts from 0 to its `databases` setting, 16 by default */
#define WEIGHT_MAX      1000
#define REDIS_PORT      6379
#define SENTINEL_PORT   26379
#define MEMCACHED_PORT  11211

struct span {
    const char *at;
    size_t      size;
};

struct parse {
    struct near__uri *uri;
    const char       *option;
    near_error       *error;
};

struct quoted {
    char text[64];
};

static near_status refuse(struct parse *p, near_status code, const char *format, ...) NEAR_PRINTF(3, 4);

static near_status
refuse(struct parse *p, near_status code, const char *format, ...)
{
    char    text[sizeof(p->error->text)];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    memset(p->uri, 0, sizeof(*p->uri)); /* only now: the arguments may point into it */
    return near__fail(p->error, code, "%s: %s", p->option, text);
}

/* A part fit for a message: bounded, printable ASCII. */
static struct quoted
quote(struct span s)
{
    struct quoted q;
    size_t        n = 0;

    for (; n < s.size && n < sizeof(q.text) - 4; n++)
        q.text[n] = s.at[n] >= 0x20 && s.at[n] < 0x7f ? s.at[n] : '?';
    memcpy(q.text + n, n < s.size ? "..." : "", n < s.size ? 4 : 1);
    return q;
}

/* The same, or an ellipsis where the part may be a password that got into the wrong place. */
static struct quoted
quote_open(const struct parse *p, struct span s)
{
    return p->uri->kind == NEAR__URI_REDIS ? (struct quoted){ "..." } : quote(s);
}

static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool
is_word(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == '.' ||
           c == '-';
}

static bool
all_words(struct span s)
{
    for (size_t i = 0; i < s.size; i++) {
        if (!is_word(s.at[i]))
            return false;
    }
    return s.size > 0;
}

/* 1 to 9 digits that make a number in min .. max. */
static bool
number(struct span s, unsigned min, unsigned max, unsigned *value)
{
    unsigned v = 0;

    if (s.size == 0 || s.size > 9)
        return false;
    for (size_t i = 0; i < s.size; i++) {
        if (!is_digit(s.at[i]))
            return false;
        v = v * 10 + (unsigned)(s.at[i] - '0');
    }
    *value = v;
    return v >= min && v <= max;
}

static void
copy(char *out, struct span s)
{
    if (s.size > 0) /* {NULL, 0}: nothing was there */
        memcpy(out, s.at, s.size);
    out[s.size] = '\0';
}

/* What stands before the first `c`, or everything; `rest` is what stands after it, {NULL, 0} when there is
 * none. */
static struct span
cut(struct span s, char c, struct span *rest)
{
    const char *at = s.size > 0 ? memchr(s.at, c, s.size) : NULL;

    if (at == NULL) {
        *rest = (struct span){ NULL, 0 };
        return s;
    }
    *rest = (struct span){ at + 1, s.size - (size_t)(at + 1 - s.at) };
    return (struct span){ s.at, (size_t)(at - s.at) };
}

/* Resolve %XX.  False: a broken escape, a NUL, or too long for `size` bytes with the final NUL. */
static bool
unescape(struct span s, char *out, size_t size)
{
    size_t n = 0;

    for (size_t i = 0; i < s.size; i++) {
        int c = (unsigned char)s.at[i];
        if (c == '%') {
            if (i + 2 >= s.size || near__hex_digit(s.at[i + 1]) < 0 || near__hex_digit(s.at[i + 2]) < 0)
                return false;
            c = near__hex_digit(s.at[i + 1]) * 16 + near__hex_digit(s.at[i + 2]);
            i += 2;
        }
        if (c == 0 || n + 1 >= size)
            return false;
        out[n++] = (char)c;
    }
    out[n] = '\0';
    return true;
}

static near_status
parse_credentials(struct parse *p, struct span s)
{
    struct near__uri *uri = p->uri;
    struct span       password;
    struct span       user = cut(s, ':', &password);

    if (password.size == 0)
        return refuse(p, NEAR_ERR_INVALID,
                      "what stands before '@' has no password; accepts user:password@ or :password@");
    if (!unescape(user, uri->user, sizeof(uri->user)))
        return refuse(p, NEAR_ERR_INVALID,
                      "the user is over %zu bytes or holds a '%%' that is not %%XX (or is %%00)",
                      sizeof(uri->user) - 1);
    if (!unescape(password, uri->password, sizeof(uri->password)))
        return refuse(p, NEAR_ERR_INVALID,
                      "the password is over %zu bytes or holds a '%%' that is not %%XX (or is %%00)",
                      sizeof(uri->password) - 1);
    return NEAR_OK;
}

/* An IPv6 address as it stands between brackets, perhaps with a %zone. */
static near_status
parse_ipv6(struct parse *p, struct span host, struct near__address *address)
{
    struct span     zone;
    struct span     plain = cut(host, '%', &zone);
    char            text[INET6_ADDRSTRLEN];
    struct in6_addr parsed;
    bool sound = plain.size < sizeof(text) && (zone.at == NULL || (all_words(zone) && zone.size < 32));

    if (sound) {
        copy(text, plain);
        sound = inet_pton(AF_INET6, text, &parsed) == 1;
    }
    if (!sound)
        return refuse(p, NEAR_ERR_INVALID, "\"[%s]\" is no IPv6 address; accepts [::1]",
                      quote_open(p, host).text);
    copy(address->host, host);
    return NEAR_OK;
}

static near_status
parse_host(struct parse *p, struct span host, struct near__address *address)
{
    if (host.size == 0)
        return refuse(p, NEAR_ERR_INVALID, "a host is missing; accepts %s", ACCEPTED);
    if (host.size >= sizeof(address->host))
        return refuse(p, NEAR_ERR_INVALID, "the host \"%s\" is over %zu bytes", quote_open(p, host).text,
                      sizeof(address->host) - 1);
    if (!all_words(host))
        return refuse(
            p, NEAR_ERR_INVALID,
            "the host \"%s\" holds something else than A-Z a-z 0-9 . _ - (IPv6 stands in brackets: [::1])",
            quote_open(p, host).text);
    copy(address->host, host);
    return NEAR_OK;
}

/* host or [IPv6]; what follows it, ':' included, is left in `rest`. */
static near_status
parse_host_part(struct parse *p, struct span s, struct near__address *address, struct span *rest)
{
    const char *end;

    if (s.size > 0 && s.at[0] == '[') {
        end = memchr(s.at, ']', s.size);
        if (end == NULL)
            return refuse(p, NEAR_ERR_INVALID, "'[' without ']'; an IPv6 address looks like [::1]");
        *rest = (struct span){ end + 1, s.size - (size_t)(end + 1 - s.at) };
        return parse_ipv6(p, (struct span){ s.at + 1, (size_t)(end - s.at - 1) }, address);
    }
    end   = s.size > 0 ? memchr(s.at, ':', s.size) : NULL;
    end   = end != NULL ? end : s.at + s.size;
    *rest = (struct span){ end, s.size - (size_t)(end - s.at) };
    return parse_host(p, (struct span){ s.at, (size_t)(end - s.at) }, address);
}

/* It is not shown: in user:password without what should follow them, it is the password.  (memcached takes none, which not everybody knows.) */
static near_status
bad_port(struct parse *p, const struct near__address *address)
{
    struct quoted host = quote((struct span){ address->host, strlen(address->host) });

    if (p->uri->kind == NEAR__URI_REDIS)
        return refuse(p, NEAR_ERR_INVALID, "what follows the host is no port; accepts 1 .. 65535");
    return refuse(p, NEAR_ERR_INVALID, "what follows \"%s\" is no port; accepts 1 .. 65535", host.text);
}

/* host[:port[:weight]]; a weight only where `weighted`. */
static near_status
parse_address(struct parse *p, struct span s, unsigned default_port, bool weighted)
{
    struct near__address *address = &p->uri->addresses[p->uri->address_count];
    struct span           rest = { NULL, 0 }, port, weight = { NULL, 0 };
    unsigned              value = default_port;
    near_status           st    = parse_host_part(p, s, address, &rest);

    if (st != NEAR_OK)
        return st;
    address->weight = 1;
    if (rest.size > 0) {
        port = rest.at[0] == ':' ? (struct span){ rest.at + 1, rest.size - 1 } : rest;
        if (weighted)
            port = cut(port, ':', &weight);
        if (rest.at[0] != ':' || !number(port, 1, 65535, &value))
            return bad_port(p, address);
        if (weight.at != NULL && !number(weight, 1, WEIGHT_MAX, &address->weight))
            return refuse(p, NEAR_ERR_INVALID, "the weight \"%s\" is no number in 1 .. %d",
                          quote(weight).text, WEIGHT_MAX);
    }
    address->port = (uint16_t)value;
    p->uri->address_count++;
    return NEAR_OK;
}

static near_status
parse_database(struct parse *p, struct span s)
{
    if (s.size > 0 && !number(s, 0, DATABASE_MAX, &p->uri->database))
        return refuse(p, NEAR_ERR_INVALID, "the database is no number in 0 .. %d", DATABASE_MAX);
    return NEAR_OK;
}

static struct span
span_until(struct span s, const char *end)
{
    return (struct span){ s.at, (size_t)(end - s.at) };
}

static struct span
span_from(struct span s, const char *at)
{
    return (struct span){ at, s.size - (size_t)(at - s.at) };
}

/* [user:pass@] in front of the addresses.  The last '@' divides, so that a password with a raw '@' or '/' is still no
 * host. */
static near_status
parse_login(struct parse *p, struct span *s)
{
    const char *at = s->size > 0 ? memrchr(s->at, '@', s->size) : NULL;
    near_status st;

    if (at == NULL)
        return NEAR_OK;
    st = parse_credentials(p, span_until(*s, at));
    *s = span_from(*s, at + 1);
    return st;
}

/* [user:pass@]host[:port][/db] */
static near_status
parse_redis(struct parse *p, struct span s)
{
    struct span database;
    near_status st = parse_login(p, &s);

    if (st != NEAR_OK)
        return st;
    s  = cut(s, '/', &database);
    st = parse_address(p, s, REDIS_PORT, false);
    if (st != NEAR_OK)
        return st;
    return parse_database(p, database);
}

static near_status
parse_path(struct parse *p, struct span path)
{
    struct near__address *address = &p->uri->addresses[0];

    if (path.size < 2 || path.at[0] != '/')
        return refuse(p, NEAR_ERR_INVALID, "a unix socket needs an absolute path: %s:///path",
                      p->uri->scheme);
    if (path.size > SOCKET_PATH_MAX)
        return refuse(p, NEAR_ERR_INVALID,
                      "the path \"%s\" is over %zu bytes, the most a unix socket may have",
                      quote_open(p, path).text, SOCKET_PATH_MAX);
    copy(address->host, path);
    address->weight       = 1;
    p->uri->address_count = 1;
    return NEAR_OK;
}

/* The last "@/" of a text that does not begin with its path. */
static const char *
end_of_credentials(struct span s)
{
    for (size_t i = s.size; i >= 2; i--) {
        if (s.at[i - 2] == '@' && s.at[i - 1] == '/')
            return s.at + i - 2;
    }
    return NULL;
}

/* [user:pass@]/path[?db=n] */
static near_status
parse_redis_unix(struct parse *p, struct span s)
{
    const char *at = s.size > 0 && s.at[0] != '/' ? end_of_credentials(s) : NULL;
    struct span query;
    near_status st;

    if (at != NULL) {
        st = parse_credentials(p, span_until(s, at));
        if (st != NEAR_OK)
            return st;
        s = span_from(s, at + 1);
    }
    s  = cut(s, '?', &query);
    st = parse_path(p, s);
    if (st != NEAR_OK || query.at == NULL)
        return st;
    if (query.size <= 3 || memcmp(query.at, "db=", 3) != 0)
        return refuse(p, NEAR_ERR_INVALID, "what follows '?' after the path is unknown; accepts ?db=n");
    return parse_database(p, span_from(query, query.at + 3));
}

static bool
named_before(const struct near__uri *uri)
{
    const struct near__address *last = &uri->addresses[uri->address_count - 1];

    for (const struct near__address *a = uri->addresses; a < last; a++) {
        if (a->port == last->port && strcmp(a->host, last->host) == 0)
            return true;
    }
    return false;
}

/* One or more, divided by commas, none twice. */
static near_status
parse_addresses(struct parse *p, struct span s, unsigned default_port, bool weighted)
{
    near_status st;

    do {
        struct span one = cut(s, ',', &s);
        if (p->uri->address_count == NEAR__URI_ADDRESSES)
            return refuse(p, NEAR_ERR_INVALID, "more than %d servers", NEAR__URI_ADDRESSES);
        st = parse_address(p, one, default_port, weighted);
        if (st != NEAR_OK)
            return st;
        if (named_before(p->uri))
            return refuse(p, NEAR_ERR_INVALID, "the server \"%s\" is named twice", quote_open(p, one).text);
    } while (s.at != NULL);
    return NEAR_OK;
}

/* [user:pass@]h1[:port],h2.../master[/db] */
static near_status
parse_sentinel(struct parse *p, struct span s)
{
    struct span master, database = { NULL, 0 };
    near_status st = parse_login(p, &s);

    if (st != NEAR_OK)
        return st;
    p->uri->layout = NEAR__LAYOUT_SENTINEL;
    s              = cut(s, '/', &master);
    master         = master.at != NULL ? cut(master, '/', &database) : master;
    if (master.size >= sizeof(p->uri->name) || !all_words(master))
        return refuse(p, NEAR_ERR_INVALID,
                      "the master's name is not 1 to 63 of A-Z a-z 0-9 _ . -; accepts %s://h1,h2/master[/db]",
                      p->uri->scheme);
    copy(p->uri->name, master);
    st = parse_addresses(p, s, SENTINEL_PORT, false);
    return st == NEAR_OK ? parse_database(p, database) : st;
}

/* [user:pass@]h1[:port],h2...: a cluster has the database 0 only (rule C6) */
static near_status
parse_cluster(struct parse *p, struct span s)
{
    struct span database;
    near_status st = parse_login(p, &s);

    if (st != NEAR_OK)
        return st;
    p->uri->layout = NEAR__LAYOUT_CLUSTER;
    s              = cut(s, '/', &database);
    if (database.size > 0)
        return refuse(p, NEAR_ERR_INVALID, "a cluster has no databases: nothing may follow the hosts");
    return parse_addresses(p, s, REDIS_PORT, false);
}

/* h1[:port[:weight]],h2... */
static near_status
parse_memcached(struct parse *p, struct span s)
{
    if (s.size > 0 && memchr(s.at, '@', s.size) != NULL)
        return refuse(p, NEAR_ERR_INVALID, "memcached takes no user or password ('@'); accepts %s", ACCEPTED);
    return parse_addresses(p, s, MEMCACHED_PORT, true);
}

static near_status
parse_memcached_unix(struct parse *p, struct span s)
{
    return parse_path(p, s);
}

static near_status
parse_memory(struct parse *p, struct span s)
{
    if (s.size == 0)
        return NEAR_OK;
    if (s.size >= sizeof(p->uri->name) || !all_words(s)) {
        if (memchr(s.at, '@', s.size) != NULL)
            return refuse(p, NEAR_ERR_INVALID, "memory:NAME takes 1 to 63 of A-Z a-z 0-9 _ . -");
        return refuse(p, NEAR_ERR_INVALID, "the name \"%s\" is not 1 to 63 of A-Z a-z 0-9 _ . -",
                      quote(s).text);
    }
    copy(p->uri->name, s);
    return NEAR_OK;
}

static near_status
parse_none(struct parse *p, struct span s)
{
    if (s.size > 0)
        return refuse(p, NEAR_ERR_INVALID, "nothing may follow \"none:\"");
    return NEAR_OK;
}

static const struct scheme {
    const char         *name;
    enum near__uri_kind kind;
    bool                slashes; /* "//" follows the colon */
    bool                tls;
    near_status (*parse)(struct parse *p, struct span s);
} schemes[] = {
    { "none", NEAR__URI_NONE, false, false, parse_none },
    { "memory", NEAR__URI_MEMORY, false, false, parse_memory },
    { "redis", NEAR__URI_REDIS, true, false, parse_redis },
    { "rediss", NEAR__URI_REDIS, true, true, parse_redis },
    { "redis+unix", NEAR__URI_REDIS, true, false, parse_redis_unix },
    { "redis-sentinel", NEAR__URI_REDIS, true, false, parse_sentinel },
    { "rediss-sentinel", NEAR__URI_REDIS, true, true, parse_sentinel },
    { "redis-cluster", NEAR__URI_REDIS, true, false, parse_cluster },
    { "rediss-cluster", NEAR__URI_REDIS, true, true, parse_cluster },
    { "memcached", NEAR__URI_MEMCACHED, true, false, parse_memcached },
    { "memcached+unix", NEAR__URI_MEMCACHED, true, false, parse_memcached_unix },
};

static const struct scheme *
scheme_named(struct span name)
{
    for (size_t i = 0; i < NEAR_COUNT_OF(schemes); i++) {
        if (strlen(schemes[i].name) == name.size && memcmp(schemes[i].name, name.at, name.size) == 0)
            return &schemes[i];
    }
    return NULL;
}

/* A scheme may be shown if it looks like one: "password@host" does not. */
static near_status
unknown_scheme(struct parse *p, struct span name)
{
    for (size_t i = 0; i < name.size; i++) {
        if (!is_word(name.at[i]) && name.at[i] != '+')
            return refuse(p, NEAR_ERR_INVALID, "this is no URI; accepts %s", ACCEPTED);
    }
    return refuse(p, NEAR_ERR_INVALID, "the scheme \"%s\" is unknown; accepts %s", quote(name).text,
                  ACCEPTED);
}

/* "x-" and a name: an application's own backend, which alone knows how to read the rest. */
static bool
is_foreign(struct span name)
{
    bool fits =
        name.size > 2 && name.size < sizeof(((struct near__uri *)0)->scheme) && memcmp(name.at, "x-", 2) == 0;

    for (size_t i = 0; fits && i < name.size; i++)
        fits = (name.at[i] >= 'a' && name.at[i] <= 'z') || (name.at[i] >= '0' && name.at[i] <= '9') ||
               name.at[i] == '-';
    return fits;
}

static near_status
parse_text(struct parse *p, struct span text)
{
    struct span          rest;
    struct span          name   = cut(text, ':', &rest);
    const struct scheme *scheme = rest.at != NULL ? scheme_named(name) : NULL;

    for (size_t i = 0; i < text.size; i++) {
        if ((unsigned char)text.at[i] < 0x20 || text.at[i] == 0x7f)
            return refuse(p, NEAR_ERR_INVALID, "byte %zu is a control character (0x%02x)", i + 1,
                          (unsigned char)text.at[i]);
    }
    if (rest.at == NULL)
        return refuse(p, NEAR_ERR_INVALID, "this is no URI, it has no ':'; accepts %s", ACCEPTED);
    if (scheme == NULL && is_foreign(name)) {
        p->uri->kind = NEAR__URI_OTHER;
        copy(p->uri->scheme, name);
        return NEAR_OK;
    }
    if (scheme == NULL)
        return unknown_scheme(p, name);
    p->uri->kind = scheme->kind;
    p->uri->tls  = scheme->tls;
    copy(p->uri->scheme, name);
    if (scheme->slashes && (rest.size < 2 || memcmp(rest.at, "//", 2) != 0))
        return refuse(p, NEAR_ERR_INVALID, "\"//\" must follow \"%s:\"; accepts %s", scheme->name, ACCEPTED);
    return scheme->parse(p, scheme->slashes ? span_from(rest, rest.at + 2) : rest);
}

near_status
near__uri_parse(struct near__uri *uri, const char *option, const char *text, near_error *error)
{
    struct parse p = { uri, option != NULL ? option : "uri", error };

    memset(uri, 0, sizeof(*uri));
    if (text == NULL)
        return refuse(&p, NEAR_ERR_INVALID, "no URI; accepts %s", ACCEPTED);
    return parse_text(&p, (struct span){ text, strlen(text) });
}

void
near__address_display(const struct near__address *address, char *out, size_t size)
{
    if (address->port == 0)
        snprintf(out, size, "%s", address->host);
    else if (strchr(address->host, ':') != NULL)
        snprintf(out, size, "[%s]:%u", address->host, address->port);
    else
        snprintf(out, size, "%s:%u", address->host, address->port);
}

/* "memcached h1:11211,h2:11211", "redis+tls sentinel mymaster h1:26379"; cut where `size` ends. */
static void
display_addresses(const struct near__uri *uri, const char *kind, char *out, size_t size)
{
    static const char *const layouts[] = { "", " sentinel ", " cluster" };
    char                     one[sizeof(uri->addresses[0].host) + 16];
    size_t n = (size_t)snprintf(out, size, "%s%s%s%s", kind, uri->tls ? "+tls" : "", layouts[uri->layout],
                                uri->layout == NEAR__LAYOUT_SENTINEL ? uri->name : "");

    for (size_t i = 0; i < uri->address_count && n < size; i++) {
        near__address_display(&uri->addresses[i], one, sizeof(one));
        n += (size_t)snprintf(out + n, size - n, "%s%s", i == 0 ? " " : ",", one);
    }
}

void
near__uri_display(const struct near__uri *uri, char *out, size_t size)
{
    if (size == 0)
        return;
    switch (uri->kind) {
    case NEAR__URI_NONE:
        snprintf(out, size, "none");
        return;
    case NEAR__URI_MEMORY:
        snprintf(out, size, "memory%s%s", uri->name[0] != '\0' ? " " : "", uri->name);
        return;
    case NEAR__URI_REDIS:
        display_addresses(uri, "redis", out, size);
        return;
    case NEAR__URI_MEMCACHED:
        display_addresses(uri, "memcached", out, size);
        return;
    case NEAR__URI_OTHER:
        snprintf(out, size, "%s", uri->scheme);
        return;
    }
}

bool
near__uri_same_server(const struct near__uri *a, const struct near__uri *b)
{
    if (a->kind != b->kind || a->address_count != b->address_count || a->database != b->database)
        return false;
    if (a->layout != b->layout || a->tls != b->tls)
        return false;
    if (a->layout == NEAR__LAYOUT_SENTINEL && strcmp(a->name, b->name) != 0)
        return false;
    if (a->address_count == 0)
        return a->kind == NEAR__URI_MEMORY && a->name[0] != '\0' && strcmp(a->name, b->name) == 0;
    for (size_t i = 0; i < a->address_count; i++) {
        if (a->addresses[i].port != b->addresses[i].port ||
            strcmp(a->addresses[i].host, b->addresses[i].host) != 0)
            return false;
    }
    return strcmp(a->user, b->user) == 0 && strcmp(a->password, b->password) == 0;
}
