/*
 * nearcache bench: a load on a cache, and what it took; of two configurations, in turns, and what lies between them.
 *
 * A side is a client with one cache.  Rounds of the sides alternate, each time in the other order, so that a machine whose speed changes
 * does not favour one of them; ratios are taken within a round, and the median of the rounds is told beside the extremes.
 */
#include "connect.h"
#include "load.h"
#include "trace.h"

#include "metrics.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS_MOST = 100, AGAINST_MOST = 16, SIDES = 2 };

/* What is told of a distribution. */
enum { MEAN, P50, P90, P99, P99_9, P99_99, MAX, MARKS };
static const struct {
    const char *name, *title;
    double      share;
} marks[MARKS] = {
    { "mean", "mean", 0 },  { "p50", "p50", 0.5 },       { "p90", "p90", 0.9 },
    { "p99", "p99", 0.99 }, { "p99_9", "p99.9", 0.999 }, { "p99_99", "p99.99", 0.9999 },
    { "max", "max", 1 },
};

struct side {
    struct connect connect;
    near_client   *client;
    near_cache    *cache;
    char           name[300];
    /* all rounds together */
    struct near__histogram_sums reads, writes, service;
    uint64_t                    requests, errors, unbegun;
    near_status                 last_error;
    double                      seconds;
    near_stats                  before, after;
    /* each: requests per second, then of reads and writes together */
    double rate[ROUNDS_MOST], p50[ROUNDS_MOST], p99[ROUNDS_MOST];
};

struct bench {
    struct load load;
    const char *against[AGAINST_MOST];
    size_t      n_against, sides, rounds;
    const char *trace, *ttl;
    int64_t     duration, warm_up;
    bool        json, no_fill, progress;
    struct side side[SIDES];
};

static _Atomic bool interrupted;

static void
interrupt(int signal)
{
    (void)signal;
    atomic_store(&interrupted, true);
}

/* ---- options */

static bool
read_real(const char *option, const char *text, double least, double most, double *number)
{
    char *end;

    *number = strtod(text, &end);
    if (end != text && (*end == '\0' || ((*end == '%' || *end == 'k' || *end == 'M') && end[1] == '\0'))) {
        *number *= *end == 'k' ? 1e3 : *end == 'M' ? 1e6 : 1;
        if (*number >= least && *number <= most)
            return true;
    }
    return complain(0, "--%s: \"%.64s\": accepts %g .. %g", option, text, least, most) != 0;
}

static bool
read_values(struct bench *bench, const char *text)
{
    char        least[32];
    const char *dash = strchr(text, '-');
    uint64_t    most = UINT64_C(64) << 20;

    if (dash == NULL)
        return read_number("value-size", text, 0, most, &bench->load.value_least) &&
               ((bench->load.value_most = bench->load.value_least), true);
    snprintf(least, sizeof(least), "%.*s", (int)(dash - text), text);
    return read_number("value-size", least, 0, most, &bench->load.value_least) &&
           read_number("value-size", dash + 1, bench->load.value_least, most, &bench->load.value_most);
}

static bool
take_option(void *ctx, int code, const char *argument)
{
    struct bench *bench = ctx;
    struct load  *load  = &bench->load;
    uint64_t      n;

    switch (code) {
    case 'j':
        bench->json = true;
        return true;
    case OPT_AGAINST:
        if (bench->n_against == AGAINST_MOST)
            return complain(0, "--against: accepts %d at most", AGAINST_MOST) != 0;
        bench->against[bench->n_against++] = argument;
        return true;
    case OPT_KEYS:
        return read_number("keys", argument, 1, UINT32_MAX, &load->keys);
    case OPT_ZIPF:
        return read_real("zipf", argument, 0.01, 10, &load->zipf);
    case OPT_UNIFORM:
        load->zipf = 0;
        return true;
    case OPT_TRACE:
        bench->trace = argument;
        return true;
    case OPT_THREADS:
        return read_number("threads", argument, 1, 1000, &load->threads);
    case OPT_RATE:
        return read_real("rate", argument, 0.1, 1e8, &load->rate);
    case OPT_BATCH:
        return read_number("batch", argument, 1, 1000, &load->batch);
    case OPT_PUTS:
        if (!read_real("puts", argument, 0, 100, &load->puts))
            return false;
        load->puts /= 100;
        return true;
    case OPT_VALUES:
        return read_values(bench, argument);
    case OPT_TTL:
        bench->ttl = argument;
        return true;
    case OPT_LOADER:
        load->loads = true;
        return read_duration("loader", argument, &load->loader);
    case OPT_SECONDS:
        return read_duration("duration", argument, &bench->duration);
    case OPT_WARM_UP:
        return read_duration("warm-up", argument, &bench->warm_up);
    case OPT_ROUNDS:
        if (!read_number("rounds", argument, 1, ROUNDS_MOST, &n))
            return false;
        bench->rounds = (size_t)n;
        return true;
    case OPT_NO_FILL:
        bench->no_fill = true;
        return true;
    default:
        return false;
    }
}

/* ---- a trace's keys */

static bool
take_request(void *ctx, const struct trace_request *request)
{
    struct load *load = ctx;

    if (load->n % (1 << 16) == 0) {
        size_t    room   = load->n + (1 << 16);
        uint64_t *hashes = realloc(load->hashes, room * sizeof(*hashes));
        uint32_t *sizes;

        if (hashes == NULL)
            return false;
        load->hashes = hashes;
        sizes        = realloc(load->sizes, room * sizeof(*sizes));
        if (sizes == NULL)
            return false;
        load->sizes = sizes;
    }
    load->sizes[load->n]    = request->value_size;
    load->hashes[load->n++] = request->hash;
    return true;
}

static int
prepare_load(struct bench *bench, uint64_t value_limit)
{
    struct load *load = &bench->load;

    if (load->value_most > value_limit)
        return complain(EXIT_USAGE, "--value-size: %" PRIu64 " is more than l2.max_value, %" PRIu64,
                        load->value_most, value_limit);
    if (bench->trace != NULL) {
        if (!trace_read(bench->trace, TRACE_AUTO, take_request, load))
            return EXIT_TROUBLE;
        if (load->n < load->threads)
            return complain(EXIT_TROUBLE, "%s: %zu requests for %" PRIu64 " threads", bench->trace, load->n,
                            load->threads);
        for (size_t i = 0; i < load->n; i++)
            if (load->sizes[i] != TRACE_NO_SIZE && load->sizes[i] > load->value_most)
                load->value_most = load->sizes[i] < value_limit ? load->sizes[i] : value_limit;
    }
    return load_draw(load) ? -1 : complain(EXIT_TROUBLE, "out of memory");
}

/* ---- sides */

/* What --against says on top of the first configuration: a setting, a URI, or a file of settings. */
static int
set_against(struct connect *connect, const char *text)
{
    near_error  error;
    size_t      name  = strcspn(text, "=:/");
    const char *colon = strchr(text, ':');
    char        option[64];

    if (text[name] == '=') {
        snprintf(option, sizeof(option), "%.*s", (int)(name < 63 ? name : 63), text);
        return connect_set(option, text + name + 1, connect) ? -1 : EXIT_USAGE;
    }
    if (colon != NULL && memchr(text, '/', (size_t)(colon - text)) == NULL)
        return connect_set("l2.uri", text, connect) ? -1 : EXIT_USAGE;
    return near_config_load(connect->config, text, &error) == NEAR_OK
               ? -1
               : complain(EXIT_TROUBLE, "--against: %s", error.text);
}

/* -1 to go on. */
static int
open_side(struct bench *bench, size_t which, const char *uri)
{
    struct side *side   = &bench->side[which];
    int          status = -1;
    near_error   error;

    if (uri != NULL && !connect_set("l2.uri", uri, &side->connect))
        status = EXIT_USAGE;
    if (status < 0 && bench->ttl != NULL && !connect_set("ttl", bench->ttl, &side->connect))
        status = EXIT_USAGE;
    for (size_t i = 0; which == 1 && status < 0 && i < bench->n_against; i++)
        status = set_against(&side->connect, bench->against[i]);
    if (status < 0 && !connect_resolve(&side->connect))
        status = EXIT_USAGE;
    if (status < 0) {
        near__uri_display(&side->connect.l2_uri, side->name, sizeof(side->name));
        side->client = connect_client(&side->connect);
        if (side->client == NULL)
            status = EXIT_TROUBLE;
    }
    if (status < 0 &&
        near_cache_open(side->client, which == 0 ? "bench" : "bench2", NULL, &side->cache, &error) != NEAR_OK)
        status = complain(EXIT_TROUBLE, "%s", error.text);
    if (status < 0 && bench->load.loads)
        near_cache_set_loader(side->cache, load_answer, &bench->load);
    return status;
}

static void
close_side(struct side *side)
{
    near_error error;

    near_cache_close(side->cache);
    if (side->client != NULL && near_client_close(side->client, &error) != NEAR_OK)
        complain(0, "%s", error.text);
    connect_free(&side->connect);
}

/* ---- running */

static bool shows_progress;

static void
show_fill(size_t done, size_t all)
{
    if (shows_progress && (done % 50000 == 0 || done == all))
        fprintf(stderr, "\r\033[Kfilling: %zu of %zu keys", done, all);
}

static int
fill_side(struct bench *bench, struct side *side)
{
    near_status status;

    if (bench->no_fill || bench->load.loads || side->connect.l2_uri.kind == NEAR__URI_OTHER)
        return -1;
    status = load_fill(&bench->load, side->cache, &interrupted, show_fill);
    if (shows_progress)
        fputs("\r\033[K", stderr);
    return status == NEAR_OK ? -1
                             : complain(EXIT_TROUBLE, "%s: cannot store the keys: %s", side->name,
                                        near_status_text(status));
}

static void
add_round(struct side *side, struct round *round, size_t number)
{
    struct near__histogram_sums both;

    memset(&both, 0, sizeof(both));
    near__histogram_read(&round->read, &both);
    near__histogram_read(&round->write, &both);
    near__histogram_read(&round->read, &side->reads);
    near__histogram_read(&round->write, &side->writes);
    near__histogram_read(&round->service, &side->service);
    side->requests += round->requests;
    side->errors += round->errors;
    side->unbegun += round->unbegun;
    if (round->errors > 0)
        side->last_error = (near_status)round->last_error;
    side->seconds += round->seconds;
    side->rate[number] = round->seconds > 0 ? (double)round->requests / round->seconds : 0;
    side->p50[number]  = near__histogram_quantile(&both, 0.5);
    side->p99[number]  = near__histogram_quantile(&both, 0.99);
}

/* `number` SIZE_MAX: to warm up, and not counted. */
static bool
run_round(struct bench *bench, struct side *side, size_t number, int64_t duration)
{
    struct round *round = calloc(1, sizeof(*round));
    bool          ok    = round != NULL && load_run(&bench->load, side->cache, duration, round, &interrupted);

    if (!ok)
        complain(0, "out of memory or threads");
    if (ok && number != SIZE_MAX)
        add_round(side, round, number);
    if (round != NULL) {
        near__histogram_fini(&round->read);
        near__histogram_fini(&round->write);
        near__histogram_fini(&round->service);
    }
    free(round);
    return ok;
}

/* How many rounds both sides have run; SIZE_MAX after complaining. */
static size_t
run_rounds(struct bench *bench)
{
    int64_t each = bench->duration / (int64_t)bench->rounds;
    size_t  number;

    for (size_t i = 0; i < bench->sides; i++) {
        if (bench->warm_up > 0 && !run_round(bench, &bench->side[i], SIZE_MAX, bench->warm_up))
            return SIZE_MAX;
        near_stats_get(bench->side[i].client, &bench->side[i].before);
    }
    for (number = 0; number < bench->rounds && !atomic_load(&interrupted); number++)
        for (size_t i = 0; i < bench->sides; i++) {
            size_t which = number % 2 == 0 ? i : bench->sides - 1 - i;

            if (shows_progress)
                fprintf(stderr, "\r\033[Kround %zu of %zu: %s", number + 1, bench->rounds,
                        bench->side[which].name);
            if (!run_round(bench, &bench->side[which], number, each))
                return SIZE_MAX;
        }
    if (shows_progress)
        fputs("\r\033[K", stderr);
    for (size_t i = 0; i < bench->sides; i++)
        near_stats_get(bench->side[i].client, &bench->side[i].after);
    return number;
}

/* ---- telling */

static double
mark_of(const struct near__histogram_sums *sums, int mark)
{
    if (sums->count == 0)
        return 0;
    return mark == MEAN ? (double)sums->sum / (double)sums->count
                        : near__histogram_quantile(sums, marks[mark].share);
}

static void
print_time(double ns)
{
    if (ns < 1e3)
        printf(" %7.0f ns", ns);
    else if (ns < 1e6)
        printf(" %7.2f us", ns / 1e3);
    else if (ns < 1e9)
        printf(" %7.2f ms", ns / 1e6);
    else
        printf(" %7.2f s ", ns / 1e9);
}

static void
print_row(const char *what, const struct near__histogram_sums *sums)
{
    if (sums->count == 0)
        return;
    printf("  %-8s", what);
    for (int mark = 0; mark < MARKS; mark++)
        print_time(mark_of(sums, mark));
    putchar('\n');
}

static double
share(uint64_t part, uint64_t whole)
{
    return whole == 0 ? 0 : 100 * (double)part / (double)whole;
}

static void
print_side(const struct bench *bench, const struct side *side, char letter)
{
    uint64_t requests = side->after.requests - side->before.requests;

    printf("%c: %s\n  %.0f requests/s", letter, side->name,
           side->seconds > 0 ? (double)side->requests / side->seconds : 0);
    if (bench->load.rate > 0)
        printf(" of %.0f wanted", bench->load.rate);
    printf(", %" PRIu64 " in %.1f s, L1 %.1f %%, L2 %.1f %%, missed %.1f %%, loaded %.1f %%", side->requests,
           side->seconds, share(side->after.hits_l1 - side->before.hits_l1, requests),
           share(side->after.hits_l2 - side->before.hits_l2, requests),
           share(side->after.misses - side->before.misses, requests),
           share(side->after.loads - side->before.loads, requests));
    if (side->errors > 0)
        printf(", %" PRIu64 " errors (%s)", side->errors, near_status_text(side->last_error));
    if (side->unbegun > 0)
        printf(", %" PRIu64 " calls not begun in time", side->unbegun);
    printf("\n  %-8s", "");
    for (int mark = 0; mark < MARKS; mark++)
        printf(" %10s", marks[mark].title);
    putchar('\n');
    print_row("reads", &side->reads);
    print_row("writes", &side->writes);
    print_row("service", &side->service);
}

static int
by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* B's by A's in each round, sorted; how many. */
static size_t
ratios_of(const double *a, const double *b, size_t n, double out[ROUNDS_MOST])
{
    size_t found = 0;

    for (size_t i = 0; i < n; i++)
        if (a[i] > 0)
            out[found++] = b[i] / a[i];
    qsort(out, found, sizeof(*out), by_size);
    return found;
}

static void
tell_ratio(const struct bench *bench, const char *name, const double *a, const double *b, size_t n, bool last)
{
    double ratios[ROUNDS_MOST];
    size_t found = ratios_of(a, b, n, ratios);

    if (found == 0)
        ratios[0] = 0;
    found = found == 0 ? 1 : found;
    if (bench->json)
        printf("\"%s\": { \"median\": %.4f, \"least\": %.4f, \"most\": %.4f }%s", name, ratios[found / 2],
               ratios[0], ratios[found - 1], last ? "" : ", ");
    else
        printf("  %-6s x %.3f  (%.3f .. %.3f)\n", name, ratios[found / 2], ratios[0], ratios[found - 1]);
}

static void
tell_ratios(const struct bench *bench, size_t rounds)
{
    const struct side *a = &bench->side[0], *b = &bench->side[1];

    tell_ratio(bench, "rate", a->rate, b->rate, rounds, false);
    tell_ratio(bench, "p50", a->p50, b->p50, rounds, false);
    tell_ratio(bench, "p99", a->p99, b->p99, rounds, true);
}

static void
json_times(const char *name, const struct near__histogram_sums *sums)
{
    printf(",\n      \"%s\": { \"count\": %" PRIu64, name, sums->count);
    for (int mark = 0; mark < MARKS && sums->count > 0; mark++)
        printf(", \"%s\": %.9f", marks[mark].name, mark_of(sums, mark) / 1e9);
    fputs(" }", stdout);
}

static void
json_side(const struct side *side)
{
    uint64_t requests = side->after.requests - side->before.requests;

    fputs("    { \"name\": ", stdout);
    near__json_string(stdout, near_key(side->name));
    printf(",\n      \"requests\": %" PRIu64 ", \"seconds\": %.3f, \"rate\": %.1f, \"errors\": %" PRIu64
           ", \"not_begun\": %" PRIu64,
           side->requests, side->seconds, side->seconds > 0 ? (double)side->requests / side->seconds : 0,
           side->errors, side->unbegun);
    printf(",\n      \"l1\": %.4f, \"l2\": %.4f, \"missed\": %.4f, \"loaded\": %.4f",
           share(side->after.hits_l1 - side->before.hits_l1, requests) / 100,
           share(side->after.hits_l2 - side->before.hits_l2, requests) / 100,
           share(side->after.misses - side->before.misses, requests) / 100,
           share(side->after.loads - side->before.loads, requests) / 100);
    json_times("reads", &side->reads);
    json_times("writes", &side->writes);
    json_times("service", &side->service);
    fputs(" }", stdout);
}

static void
tell_json(const struct bench *bench, size_t rounds)
{
    const struct load *load = &bench->load;

    printf("{ \"version\": \"%s\", \"keys\": %" PRIu64 ", \"zipf\": %g, \"trace\": ", near_version(),
           bench->trace != NULL ? (uint64_t)load->n : load->keys, bench->trace != NULL ? 0 : load->zipf);
    if (bench->trace != NULL)
        near__json_string(stdout, near_key(bench->trace));
    else
        fputs("null", stdout);
    printf(", \"threads\": %" PRIu64 ", \"batch\": %" PRIu64 ", \"puts\": %g, \"rate\": ", load->threads,
           load->batch, load->puts);
    if (load->rate > 0)
        printf("%g", load->rate);
    else
        fputs("null", stdout);
    printf(", \"rounds\": %zu, \"interrupted\": %s,\n  \"sides\": [\n", rounds,
           atomic_load(&interrupted) ? "true" : "false");
    for (size_t i = 0; i < bench->sides; i++) {
        if (i > 0)
            puts(",");
        json_side(&bench->side[i]);
    }
    fputs("\n  ]", stdout);
    if (bench->sides > 1) {
        fputs(",\n  \"ratios\": { ", stdout);
        tell_ratios(bench, rounds);
        fputs(" }", stdout);
    }
    puts("\n}");
}

static void
tell(const struct bench *bench, size_t rounds)
{
    if (bench->json) {
        tell_json(bench, rounds);
        return;
    }
    for (size_t i = 0; i < bench->sides; i++)
        print_side(bench, &bench->side[i], (char)('A' + i));
    if (bench->load.rate > 0)
        puts("Times count from the moment a call was to begin; service: from when it did.");
    if (bench->sides > 1) {
        printf("B by A, the median of %zu rounds (least .. most)\n", rounds);
        tell_ratios(bench, rounds);
    }
}

/* ---- the whole */

static int
run_bench_on(struct bench *bench)
{
    struct sigaction action = { .sa_handler = interrupt }, before;
    size_t           rounds;
    int              status = -1;

    sigaction(SIGINT, &action, &before);
    shows_progress = isatty(STDERR_FILENO) == 1;
    for (size_t i = 0; i < bench->sides && status < 0; i++)
        status = fill_side(bench, &bench->side[i]);
    if (status >= 0)
        return status;
    rounds = run_rounds(bench);
    sigaction(SIGINT, &before, NULL);
    if (rounds == SIZE_MAX)
        return EXIT_TROUBLE;
    for (size_t i = 0; i < bench->sides; i++)
        if (bench->side[i].requests > 0 && bench->side[i].errors == bench->side[i].requests)
            return complain(EXIT_TROUBLE, "%s: not one request was answered: %s", bench->side[i].name,
                            near_status_text(bench->side[i].last_error));
    tell(bench, rounds);
    return atomic_load(&interrupted) ? EXIT_INTERRUPTED : EXIT_DONE;
}

/* Both sides begin with the same command line; the second one has --against on top. */
static int
open_sides(struct bench *bench, int argc, char **argv)
{
    int status = -1;

    for (size_t i = 0; i < bench->sides && status < 0; i++) {
        bench->n_against = 0;
        status           = connect_options(&bench->side[i].connect, argc, argv, take_option, bench);
        if (status < 0 && argc - optind > 1)
            status = misuse("bench");
        if (status >= 0)
            return status;
        bench->sides = bench->n_against > 0 ? SIDES : 1;
        status       = open_side(bench, i, optind < argc ? argv[optind] : NULL);
    }
    return status;
}

int
run_bench(int argc, char **argv)
{
    struct bench *bench = calloc(1, sizeof(*bench));
    int           status;

    if (bench == NULL)
        return complain(EXIT_TROUBLE, "out of memory");
    bench->load     = (struct load){ .keys        = 100000,
                                     .zipf        = 0.99,
                                     .threads     = 1,
                                     .batch       = 1,
                                     .puts        = 0.05,
                                     .value_least = 100,
                                     .value_most  = 100 };
    bench->duration = 10 * NEAR__SEC;
    bench->warm_up  = NEAR__SEC / 2;
    bench->sides    = 1;
    for (size_t i = 0; i < SIDES; i++)
        bench->side[i].before = bench->side[i].after = (near_stats)NEAR_STATS_INIT;
    status = open_sides(bench, argc, argv);
    if (bench->rounds == 0)
        bench->rounds = bench->sides > 1 ? 5 : 1;
    if (status < 0)
        status = prepare_load(bench, bench->side[0].connect.settings.l2_max_value);
    if (status < 0)
        status = run_bench_on(bench);
    for (size_t i = 0; i < SIDES; i++)
        close_side(&bench->side[i]);
    load_free(&bench->load);
    free(bench);
    return status;
}
