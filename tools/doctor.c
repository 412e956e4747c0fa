/*
 * nearcache doctor: connects as a client would and says what it found, one line a subject.  It stops at the first thing that is
 * wrong, since what follows would fail for the same reason.  No key is written.
 */
#include "connect.h"

#include "l2/backend.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static void
row(const char *subject, const char *text)
{
    printf("%-11s %s\n", subject, text);
}

static void
describe_limits(const struct near_l2_traits *traits)
{
    char text[160], value[48] = "not limited by the server";

    if (traits->max_value != 0)
        snprintf(value, sizeof(value), "up to %zu bytes stored", traits->max_value);
    snprintf(text, sizeof(text), "keys up to %zu bytes%s, values %s", traits->max_key,
             traits->binary_keys ? ", any bytes" : ", others are hashed", value);
    row("limits", text);
}

/* The shared tier by its own door: it answers with the reason when it cannot. */
static int
examine_l2(struct connect *connect)
{
    const struct near_l2_ops *ops = near__l2_backend_named(connect->l2_uri.scheme);
    struct near_l2_traits     traits;
    struct near_l2_env        env = {
               .uri             = &connect->l2_uri,
               .access          = &connect->access.l2,
               .clock           = &near__clock_system,
               .connect_timeout = connect->settings.l2_connect_timeout,
               .pool_size       = 1,
               .max_stored      = (size_t)connect->settings.l2_max_value + (1u << 17),
               .client_name     = "nearcache-doctor",
    };
    int64_t deadline =
        near__now(&near__clock_system) + connect->settings.l2_connect_timeout + connect->settings.l2_timeout;
    near_error  error;
    near_status status;
    char        text[256] = "";
    void       *self      = NULL;

    if (ops == NULL)
        return complain(EXIT_USAGE, "no backend for the scheme \"%s\"", connect->l2_uri.scheme);
    memset(&traits, 0, sizeof(traits));
    status = ops->open(&self, &env, &traits, &error);
    if (status == NEAR_OK)
        status = ops->health(self, text, sizeof(text), deadline, &error);
    if (status == NEAR_OK) {
        row("answers", text);
        describe_limits(&traits);
    } else {
        complain(EXIT_TROUBLE, "%s", error.text);
    }
    if (self != NULL) {
        ops->close(self);
        ops->stop(self);
        ops->fini(self);
    }
    return status == NEAR_OK ? EXIT_DONE : EXIT_TROUBLE;
}

static int64_t
now_us(void)
{
    return near__now(&near__clock_system) / (NEAR_MS / 1000);
}

/* The bus as a client has it: subscribed, and one message there and back. */
static int
examine_bus(near_client *client)
{
    near_stats  stats  = NEAR_STATS_INIT;
    int64_t     began  = now_us();
    near_status status = near_fence(client, -1);
    char        text[128];

    if (status == NEAR_ERR_UNSUPPORTED) {
        row("coherence", "no bus: L1 is kept true by l1.max_ttl alone");
        return EXIT_DONE;
    }
    near_stats_get(client, &stats);
    if (status != NEAR_OK)
        return complain(EXIT_TROUBLE, "coherence: the bus does not answer: %s", near_status_text(status));
    if (stats.bus_connected)
        snprintf(text, sizeof(text), "subscribed; a fence took %lld us", (long long)(now_us() - began));
    else
        snprintf(text, sizeof(text), "nothing is shared, nothing to keep coherent");
    row("coherence", text);
    return EXIT_DONE;
}

static int
examine(struct connect *connect)
{
    char         name[256];
    near_client *client;
    near_error   error;
    int          status;

    near__uri_display(&connect->l2_uri, name, sizeof(name));
    row("shared tier", name);
    if (connect->l2_uri.kind == NEAR__URI_NONE)
        return EXIT_DONE;
    status = examine_l2(connect);
    if (status != EXIT_DONE)
        return status;
    client = connect_client(connect);
    if (client == NULL)
        return EXIT_TROUBLE;
    status = examine_bus(client);
    if (near_client_close(client, &error) != NEAR_OK)
        status = complain(EXIT_TROUBLE, "%s", error.text);
    return status;
}

int
run_doctor(int argc, char **argv)
{
    struct connect connect;
    int            status = connect_options(&connect, argc, argv);

    if (status < 0 && argc - optind != 1)
        status = misuse("doctor");
    if (status < 0 && (!connect_set("l2.uri", argv[optind], &connect) || !connect_resolve(&connect)))
        status = EXIT_USAGE;
    if (status < 0)
        status = examine(&connect);
    connect_free(&connect);
    return status;
}
