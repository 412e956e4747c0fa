/*
 * nearcache doctor: connects as a client would and says what it found, one line a subject, and what to change.  What cannot be reached
 * ends it, since the rest would fail for the same reason.  No key is written and nobody is told anything: rights to write are found
 * out by commands that are queued in a transaction and discarded.
 */
#include "doctor.h"

#include "l2/backend.h"
#include "metrics.h"

#include <getopt.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

static const char *const levels[] = { "ok", "note", "change", "bad" };

void
found(struct doctor *doctor, enum finding finding, const char *subject, const char *advice,
      const char *format, ...)
{
    char    text[512];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    doctor->worst = finding > doctor->worst ? finding : doctor->worst;
    if (!doctor->json) {
        if (finding == BAD)
            complain(0, "%s: %s", subject, text);
        else
            printf("%-11s %s%s\n", subject, finding == CHANGE ? "! " : "", text);
        if (advice != NULL)
            printf("%-11s -> %s\n", "", advice);
        return;
    }
    printf("%s\n    { \"subject\": \"%s\", \"level\": \"%s\", \"text\": ", doctor->said++ > 0 ? "," : "",
           subject, levels[finding]);
    near__json_string(stdout, near_key(text));
    if (advice != NULL) {
        fputs(", \"advice\": ", stdout);
        near__json_string(stdout, near_key(advice));
    }
    fputs(" }", stdout);
}

int64_t
doctor_wall_us(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

void
doctor_clock(struct doctor *doctor, int64_t theirs, int64_t before)
{
    int64_t now = doctor_wall_us(), skew = theirs - before - (now - before) / 2;
    int64_t limit = 500000 + (now - before);

    if (skew < limit && skew > -limit)
        found(doctor, FINE, "clock", NULL, "%+lld ms against ours, asked in %lld us",
              (long long)(skew / 1000), (long long)(now - before));
    else
        found(doctor, NOTE, "clock",
              "synchronise the clocks (NTP); no promise of nearcache needs it, but refreshes come early or "
              "late",
              "%+.1f s against ours", (double)skew / 1e6);
}

static void
describe_limits(struct doctor *doctor, const struct near_l2_traits *traits)
{
    char value[48] = "not limited by the server";

    if (traits->max_value != 0)
        snprintf(value, sizeof(value), "up to %zu bytes stored", traits->max_value);
    found(doctor, FINE, "limits", NULL, "keys up to %zu bytes%s, values %s", traits->max_key,
          traits->binary_keys ? ", any bytes" : ", others are hashed", value);
}

/* The shared tier by its own door: it answers with the reason when it cannot. */
static bool
examine_l2(struct doctor *doctor)
{
    struct connect           *connect = &doctor->connect;
    const struct near_l2_ops *ops     = near__l2_backend_named(connect->l2_uri.scheme);
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

    memset(&traits, 0, sizeof(traits));
    status = ops->open(&self, &env, &traits, &error);
    if (status == NEAR_OK)
        status = ops->health(self, text, sizeof(text), deadline, &error);
    if (status == NEAR_OK) {
        found(doctor, FINE, "answers", NULL, "%s", text);
        describe_limits(doctor, &traits);
    } else {
        found(doctor, BAD, "answers", NULL, "%s", error.text);
    }
    if (self != NULL) {
        ops->close(self);
        ops->stop(self);
        ops->fini(self);
    }
    return status == NEAR_OK;
}

/* The bus as a client has it: subscribed, and one message there and back. */
static void
examine_bus(struct doctor *doctor, near_client *client)
{
    near_stats  stats  = NEAR_STATS_INIT;
    int64_t     began  = near__now(&near__clock_system);
    near_status status = near_fence(client, -1);

    if (status == NEAR_ERR_UNSUPPORTED) {
        found(doctor, NOTE, "coherence",
              "coherence.uri = a Redis, so that instances hear of each other's writes",
              "no bus: L1 is kept true by l1.max_ttl alone");
        return;
    }
    near_stats_get(client, &stats);
    if (status != NEAR_OK)
        found(doctor, BAD, "coherence", NULL, "the bus does not answer: %s", near_status_text(status));
    else if (stats.bus_connected)
        found(doctor, FINE, "coherence", NULL, "subscribed; a fence took %lld us",
              (long long)((near__now(&near__clock_system) - began) / 1000));
    else
        found(doctor, FINE, "coherence", NULL, "nothing is shared, nothing to keep coherent");
}

static void
examine_client(struct doctor *doctor)
{
    near_client *client = connect_client(&doctor->connect);
    near_error   error;

    if (client == NULL) {
        doctor->worst = BAD;
        return;
    }
    examine_bus(doctor, client);
    if (near_client_close(client, &error) != NEAR_OK)
        found(doctor, BAD, "closing", NULL, "%s", error.text);
}

static void
examine(struct doctor *doctor)
{
    const struct near__uri *uri = &doctor->connect.l2_uri;
    char                    name[256];

    near__uri_display(uri, name, sizeof(name));
    found(doctor, FINE, "shared tier", NULL, "%s", name);
    if (uri->kind == NEAR__URI_NONE || !examine_l2(doctor))
        return;
    if (uri->kind == NEAR__URI_REDIS)
        examine_redis(doctor);
    if (uri->kind == NEAR__URI_MEMCACHED)
        examine_memcached(doctor);
    if (doctor->worst < BAD)
        examine_client(doctor);
}

static int
tell(struct doctor *doctor)
{
    if (doctor->json)
        fputs("{ \"findings\": [", stdout);
    examine(doctor);
    if (doctor->json)
        printf("\n  ], \"worst\": \"%s\" }\n", levels[doctor->worst]);
    return doctor->worst == BAD ? EXIT_TROUBLE : doctor->worst == CHANGE ? EXIT_NOT_FOUND : EXIT_DONE;
}

static bool
take_option(void *ctx, int code, const char *argument)
{
    struct doctor *doctor = ctx;

    (void)argument;
    doctor->json |= code == 'j';
    return true;
}

int
run_doctor(int argc, char **argv)
{
    struct doctor doctor = { .json = false };
    int           status = connect_options(&doctor.connect, argc, argv, take_option, &doctor);

    if (status < 0 && argc - optind != 1)
        status = misuse("doctor");
    if (status < 0 &&
        (!connect_set("l2.uri", argv[optind], &doctor.connect) || !connect_resolve(&doctor.connect)))
        status = EXIT_USAGE;
    if (status < 0 && doctor.connect.l2_uri.kind != NEAR__URI_NONE &&
        near__l2_backend_named(doctor.connect.l2_uri.scheme) == NULL)
        status = complain(EXIT_USAGE, "no backend for the scheme \"%s\"", doctor.connect.l2_uri.scheme);
    if (status < 0)
        status = tell(&doctor);
    connect_free(&doctor.connect);
    return status;
}
