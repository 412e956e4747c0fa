/* doctor, memcached: each server's limits, memory and clock, by its own `stats`. */
#include "doctor.h"

#include "l2/transport.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { REPLY_MOST = 1 << 16 };

struct server {
    struct doctor         *doctor;
    struct near__transport transport;
    int64_t                deadline;
    char                   name[300];
    char                   reply[REPLY_MOST];
    size_t                 size;
};

/* Say `line` and hear up to END; false: it does not answer that. */
static bool
ask(struct server *server, const char *line)
{
    struct iovec piece = { (void *)(uintptr_t)line, strlen(line) };

    server->size = 0;
    while (piece.iov_len > 0) {
        ssize_t n = near__transport_send(&server->transport, &piece, 1);

        if (n < 0 ||
            (n == 0 && near__transport_wait(&server->transport, true, -1, server->deadline) != NEAR_OK))
            return false;
        piece.iov_base = (char *)piece.iov_base + n;
        piece.iov_len -= (size_t)n;
    }
    for (;;) {
        ssize_t n;

        if (server->size + 1 >= sizeof(server->reply))
            return false;
        n = near__transport_receive(&server->transport, server->reply + server->size,
                                    sizeof(server->reply) - 1 - server->size);
        if (n < 0 ||
            (n == 0 && near__transport_wait(&server->transport, false, -1, server->deadline) != NEAR_OK))
            return false;
        server->size += (size_t)n;
        server->reply[server->size] = '\0';
        if (server->size >= 5 && strcmp(server->reply + server->size - 5, "END\r\n") == 0)
            return true;
        if (strncmp(server->reply, "ERROR", 5) == 0)
            return false;
    }
}

/* STAT name value */
static bool
stat_text(const struct server *server, const char *name, char *out, size_t size)
{
    char        line[80];
    const char *at;
    size_t      n = (size_t)snprintf(line, sizeof(line), "STAT %s ", name);

    at = strstr(server->reply, line);
    if (at == NULL || (at != server->reply && at[-1] != '\n'))
        return false;
    snprintf(out, size, "%.*s", (int)strcspn(at + n, "\r\n"), at + n);
    return true;
}

static uint64_t
stat_number(const struct server *server, const char *name)
{
    char text[32];

    return stat_text(server, name, text, sizeof(text)) ? strtoull(text, NULL, 10) : 0;
}

static void
examine_settings(struct server *server)
{
    const struct near__settings *settings = &server->doctor->connect.settings;
    uint64_t                     item     = stat_number(server, "item_size_max");
    char                         text[16] = "";

    if (item != 0 && item < settings->l2_max_value)
        found(server->doctor, NOTE, "item size", "memcached -I, or a smaller l2.max_value",
              "%s: up to %llu bytes; what is larger, up to l2.max_value (%llu), is refused", server->name,
              (unsigned long long)item, (unsigned long long)settings->l2_max_value);
    else if (item != 0)
        found(server->doctor, FINE, "item size", NULL, "%s: up to %llu bytes", server->name,
              (unsigned long long)item);
    if (stat_text(server, "evictions", text, sizeof(text)) && strcmp(text, "off") == 0)
        found(server->doctor, CHANGE, "memory", "start it without -M",
              "%s: does not evict: when it is full every write is refused", server->name);
}

static void
examine_state(struct server *server, int64_t before)
{
    uint64_t most = stat_number(server, "limit_maxbytes"), used = stat_number(server, "bytes");

    if (most != 0)
        found(server->doctor, FINE, "memory", NULL, "%s: %llu of %llu MiB in use, %llu evicted so far",
              server->name, (unsigned long long)(used >> 20), (unsigned long long)(most >> 20),
              (unsigned long long)stat_number(server, "evictions"));
    if (stat_number(server, "rejected_connections") > 0 || stat_number(server, "listen_disabled_num") > 0)
        found(server->doctor, CHANGE, "connections", "memcached -c, or a smaller l2.pool_size",
              "%s: had to refuse or delay some: %llu are open", server->name,
              (unsigned long long)stat_number(server, "curr_connections"));
    if (stat_number(server, "time") != 0) /* whole seconds: it is half a second in on average */
        doctor_clock(server->doctor, (int64_t)stat_number(server, "time") * 1000000 + 500000, before);
}

static void
examine_server(struct server *server, const struct near__address *address)
{
    near_error error;
    int64_t    before;

    near__address_display(address, server->name, sizeof(server->name));
    if (near__transport_open(&server->transport, address, server->deadline, &error) != NEAR_OK) {
        found(server->doctor, BAD, "server", NULL, "%s: %s", server->name, error.text);
        return;
    }
    if (!near__transport_private(&server->transport))
        found(server->doctor, NOTE, "transport", "a network that nobody else is on", "%s: not encrypted",
              server->name);
    if (ask(server, "stats settings\r\n"))
        examine_settings(server);
    before = doctor_wall_us();
    if (ask(server, "stats\r\n"))
        examine_state(server, before);
    else
        found(server->doctor, NOTE, "server", NULL, "%s: does not answer `stats`", server->name);
    near__transport_close(&server->transport);
}

void
examine_memcached(struct doctor *doctor)
{
    const struct near__uri *uri = &doctor->connect.l2_uri;

    for (size_t i = 0; i < uri->address_count; i++) {
        struct server *server = calloc(1, sizeof(*server));

        if (server == NULL) {
            found(doctor, BAD, "server", NULL, "out of memory");
            return;
        }
        server->doctor              = doctor;
        server->transport.fd        = -1;
        server->transport.cancel_fd = -1;
        server->transport.clock     = &near__clock_system;
        server->deadline =
            near__time_after(near__now(&near__clock_system), doctor->connect.settings.l2_connect_timeout +
                                                                 doctor->connect.settings.l2_timeout);
        examine_server(server, &uri->addresses[i]);
        free(server);
    }
}
