/*
 * nearcache simulate: L1's own index and policies over a trace, at many sizes.
 *
 * The trace is read once, into an array of hashes.  Each pair of policy and size is a job; threads take jobs, the largest first, and share
 * nothing but the array, which nobody writes any more.
 *
 * --sampled looks at some of the keys only, chosen by their hashes, and at caches that are smaller by the same factor: C. Waldspurger, N.
 * Park, A. Garthwaite, I. Ahmad, "Efficient MRC Construction with SHARDS", FAST'15, sections 3 and 5.3 (what the sample has too few or too
 * many requests of is made up for as hits).  A trace of which a good sample would be more than a twentieth is simulated whole: the error of a
 * smaller one can be several points, and nobody waits long for such a trace.
 */
#include "report.h"
#include "trace.h"

#include "command.h"

#include "base/clock.h"
#include "l1/arena.h"
#include "l1/simulate.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SIZES_MAX   = 64,
    THREADS_MAX = 64,
    SAMPLE_KEYS =
        24576, /* a sample has about that many: with half of them the error was over a point now and then */
    SAMPLE_WORTH = 20, /* the trace has so many times as many keys, or is simulated whole */
    SAMPLES      = 12,
    VALUE_SIZE   = 100 /* where nobody says */
};

/* What an entry with a TTL out of L2 has in its block beside key and value (doc/architecture.md, "Bytes per entry"): header, TTL, birth,
 * cost, stamp and generation. */
#define BLOCK_NUMBERS (4 + 4 + 3 + 4 + 12)

/* And index and policy, from the same table: 11.9 and 4. */
#define INDEX_BYTES 16

struct simulation {
    enum trace_format format;
    uint64_t         *hashes;
    uint32_t         *blocks; /* bytes of each request's entry in L1's memory */
    size_t            n, room;
    double            value_sum;
    size_t            with_size; /* requests whose size the trace tells */
    uint32_t          value_size;

    struct near__arena *arena; /* to ask it for its size classes */
    struct near__heap   heap;

    bool           json, sampled;
    double         rate;  /* as wished; 0: by the number of keys */
    size_t         taken; /* requests of the sample: hashes[0..taken) */
    unsigned       threads;
    const char    *svg, *html, *sizes, *policies;
    struct study   study;
    _Atomic size_t next, done;
    _Atomic bool   failed;
    bool           progress;
};

static double
now_seconds(void)
{
    return (double)near__now(&near__clock_system) / 1e9;
}

/* ---- reading */

static uint32_t
block_bytes(const struct simulation *sim, size_t key, size_t value)
{
    size_t at = BLOCK_NUMBERS + key, align = value >= 1024 ? 64 : 4;
    size_t size  = ((at + align - 1) & ~(align - 1)) + value;
    size_t bytes = near__heap_class_bytes(&sim->heap, (size + 7) & ~(size_t)7); /* as where sizes are mixed */

    if (bytes == 0) /* too large for the arena: an allocation of its own */
        bytes = size + 128;
    return bytes < UINT32_MAX ? (uint32_t)bytes : UINT32_MAX;
}

static bool
take_request(void *ctx, const struct trace_request *request)
{
    struct simulation *sim   = ctx;
    uint32_t           value = request->value_size;

    if (sim->n == sim->room) {
        size_t    room   = sim->room == 0 ? 1 << 16 : 2 * sim->room;
        uint64_t *hashes = realloc(sim->hashes, room * sizeof(*hashes));
        uint32_t *blocks;

        if (hashes == NULL)
            return false;
        sim->hashes = hashes;
        blocks      = realloc(sim->blocks, room * sizeof(*blocks));
        if (blocks == NULL)
            return false;
        sim->blocks = blocks;
        sim->room   = room;
    }
    if (value == TRACE_NO_SIZE)
        value = sim->value_size;
    else
        sim->with_size++;
    sim->value_sum += value;
    sim->blocks[sim->n]   = block_bytes(sim, request->key_size, value);
    sim->hashes[sim->n++] = request->hash;
    return true;
}

/* ---- keys: how many, and which make up the sample */

/* Hashes are used for shards and elements: the sample goes by other bits of them. */
static uint64_t
mixed(uint64_t hash, uint64_t salt)
{
    hash ^= hash >> 33 ^ salt;
    hash *= UINT64_C(0xff51afd7ed558ccd);
    hash ^= hash >> 29;
    hash *= UINT64_C(0xc4ceb9fe1a85ec53);
    return hash ^ hash >> 32;
}

struct counted {
    uint64_t requests, keys;
    double   bytes; /* of the keys' blocks */
};

/* Those whose mixed hash is at most `limit`.  False: out of memory. */
static bool
count_keys(const struct simulation *sim, uint64_t salt, uint64_t limit, struct counted *counted)
{
    size_t    mask = (1 << 16) - 1, used = 0;
    uint64_t *seen = calloc(mask + 1, sizeof(*seen));

    *counted = (struct counted){ .requests = 0 };
    for (size_t i = 0; seen != NULL && i < sim->n; i++) {
        uint64_t key = mixed(sim->hashes[i], salt);
        size_t   at;

        if (key > limit)
            continue;
        key += key == 0;
        counted->requests++;
        for (at = key & mask; seen[at] != 0 && seen[at] != key; at = (at + 1) & mask)
            ;
        if (seen[at] == key)
            continue;
        seen[at] = key;
        counted->bytes += sim->blocks[i];
        if (++used * 2 > mask) {
            size_t    wide = 4 * mask + 3;
            uint64_t *more = calloc(wide + 1, sizeof(*more));

            for (size_t j = 0; more != NULL && j <= mask; j++) {
                size_t to = seen[j] & wide;

                if (seen[j] == 0)
                    continue;
                while (more[to] != 0)
                    to = (to + 1) & wide;
                more[to] = seen[j];
            }
            free(seen);
            seen = more;
            mask = wide;
        }
    }
    counted->keys = used;
    free(seen);
    return seen != NULL;
}

static uint64_t
limit_of(double rate)
{
    return rate >= 1 ? UINT64_MAX : (uint64_t)(rate * 0x1p64);
}

/* The sample to the front. */
static void
choose_sample(struct simulation *sim, uint64_t salt, uint64_t limit)
{
    sim->taken = 0;
    for (size_t i = 0; i < sim->n; i++)
        if (mixed(sim->hashes[i], salt) <= limit)
            sim->hashes[sim->taken++] = sim->hashes[i];
}

/* Of several samples the one that has its part of the requests, and of the keys: a few keys that are asked for very often are in or not. */
static bool
find_sample(struct simulation *sim)
{
    uint64_t limit = limit_of(sim->study.rate), best_salt = 0;
    double   requests = (double)sim->n * sim->study.rate, keys = (double)sim->study.keys * sim->study.rate,
           best = INFINITY;

    for (uint64_t i = 0; i < SAMPLES; i++) {
        uint64_t       salt = i * UINT64_C(0x9E3779B97F4A7C15);
        struct counted counted;
        double         off;

        if (!count_keys(sim, salt, limit, &counted))
            return false;
        off = fabs((double)counted.requests / requests - 1) + fabs((double)counted.keys / keys - 1);
        if (off < best) {
            best      = off;
            best_salt = salt;
        }
    }
    choose_sample(sim, best_salt, limit);
    return true;
}

static bool
look_at_keys(struct simulation *sim)
{
    double         look = sim->sampled && sim->n > 1000000 ? 1.0 / 8 : 1;
    struct counted counted;

    if (!count_keys(sim, 0, limit_of(look), &counted))
        return false;
    sim->study.block_bytes = counted.keys == 0 ? 0 : counted.bytes / (double)counted.keys;
    sim->study.keys        = (uint64_t)((double)counted.keys / look);
    sim->study.rate        = 1;
    sim->taken             = sim->n;
    if (sim->sampled && sim->rate != 0)
        sim->study.rate = sim->rate;
    else if (sim->sampled && sim->study.keys >= (uint64_t)SAMPLE_WORTH * SAMPLE_KEYS)
        sim->study.rate = (double)SAMPLE_KEYS / (double)sim->study.keys;
    sim->study.whole = sim->sampled && sim->study.rate >= 1;
    return sim->study.rate == 1 || find_sample(sim);
}

/* ---- jobs */

static bool
run_job(struct simulation *sim, struct result *result)
{
    double                        rate     = sim->study.rate;
    size_t                        capacity = (size_t)((double)result->entries * rate + 0.5);
    struct near__simulator_config config   = { .policy   = result->policy,
                                               .capacity = capacity > 0 ? capacity : 1,
                                               .exact    = sim->study.exact };
    struct near__simulator       *simulator;
    struct near__simulator_bytes  bytes;
    double                        expected = (double)sim->n * rate, hits;
    uint64_t                      counted  = 0;

    if (near__simulator_open(&simulator, &config) != NEAR_OK)
        return false;
    for (size_t i = 0; i < sim->taken; i++)
        counted += near__simulator_access(simulator, sim->hashes[i]);
    bytes = near__simulator_bytes(simulator);
    near__simulator_close(&simulator);
    hits = (double)counted;
    if (rate < 1)
        hits = fmax(0, fmin(expected, hits + expected - (double)sim->taken));
    result->hits  = rate < 1 ? (uint64_t)(hits / rate) : counted;
    result->ratio = hits / expected;
    result->bytes = (double)result->entries * sim->study.block_bytes;
    if (rate >= 1 && bytes.entries * 10 >= capacity * 9)
        result->bytes += (double)result->entries * (double)(bytes.index + bytes.policy + bytes.pool) /
                         (double)bytes.entries;
    else
        result->bytes += (double)result->entries * INDEX_BYTES; /* a sample, or too few keys to see */
    return true;
}

static void
show_progress(struct simulation *sim, size_t jobs)
{
    size_t done = atomic_fetch_add_explicit(&sim->done, 1, memory_order_relaxed) + 1;

    if (sim->progress && done < jobs)
        fprintf(stderr, "\rsimulated %zu of %zu", done, jobs);
    else if (sim->progress)
        fprintf(stderr, "\r%40s\r", "");
}

static void *
work(void *ctx)
{
    struct simulation *sim  = ctx;
    size_t             jobs = sim->study.n_policies * sim->study.n_sizes, i;

    while ((i = atomic_fetch_add_explicit(&sim->next, 1, memory_order_relaxed)) < jobs) {
        size_t size = sim->study.n_sizes - 1 - i / sim->study.n_policies; /* the largest first */

        if (!run_job(sim, result_at(&sim->study, i % sim->study.n_policies, size)))
            atomic_store_explicit(&sim->failed, true, memory_order_relaxed);
        show_progress(sim, jobs);
    }
    return NULL;
}

static bool
run_jobs(struct simulation *sim)
{
    size_t    jobs = sim->study.n_policies * sim->study.n_sizes, started = 0;
    pthread_t threads[THREADS_MAX];

    sim->study.results = calloc(jobs, sizeof(*sim->study.results));
    if (sim->study.results == NULL)
        return false;
    for (size_t p = 0; p < sim->study.n_policies; p++)
        for (size_t s = 0; s < sim->study.n_sizes; s++)
            *result_at(&sim->study, p, s) =
                (struct result){ .policy = sim->study.policies[p], .entries = sim->study.sizes[s] };
    while (started + 1 < sim->threads && started + 1 < jobs &&
           pthread_create(&threads[started], NULL, work, sim) == 0)
        started++;
    work(sim);
    while (started > 0)
        pthread_join(threads[--started], NULL);
    return !atomic_load_explicit(&sim->failed, memory_order_relaxed);
}

/* ---- sizes and policies */

static int
by_size(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;

    return (x > y) - (x < y);
}

/* "1000", "10k", "2M" entries; "5%" of the keys; "64MiB" of memory. */
static bool
parse_size(const struct simulation *sim, const char *text, size_t *entries)
{
    static const struct {
        const char *unit;
        double      factor;
        bool        bytes;
    } units[] = { { "", 1, false },      { "k", 1e3, false },      { "M", 1e6, false },
                  { "KiB", 1024, true }, { "MiB", 1 << 20, true }, { "GiB", 1 << 30, true } };
    char  *end;
    double n = strtod(text, &end);

    if (end == text || !(n > 0))
        return false;
    if (strcmp(end, "%") == 0) {
        if (!(n <= 1000))
            return false;
        *entries = (size_t)(n / 100 * (double)sim->study.keys + 0.5);
        *entries += *entries == 0;
        return true;
    }
    for (size_t i = 0; i < NEAR_COUNT_OF(units); i++)
        if (strcmp(end, units[i].unit) == 0) {
            n *= units[i].factor;
            if (units[i].bytes)
                n /= sim->study.block_bytes + INDEX_BYTES;
            if (!(n >= 1 && n <= 1e9))
                return false;
            *entries = (size_t)n;
            return true;
        }
    return false;
}

static bool
choose_sizes(struct simulation *sim)
{
    static const char preset[] = "1%,2%,5%,10%,20%,40%,70%,100%";
    char             *list = strdup(sim->sizes != NULL ? sim->sizes : preset), *rest = list, *word;
    struct study     *study = &sim->study;
    size_t            kept  = 0;

    study->sizes = calloc(SIZES_MAX, sizeof(*study->sizes));
    while (list != NULL && study->sizes != NULL && (word = strsep(&rest, ",")) != NULL) {
        if (study->n_sizes == SIZES_MAX || !parse_size(sim, word, &study->sizes[study->n_sizes++])) {
            complain(EXIT_USAGE, "--sizes: \"%s\": accepts up to %d of 1000, 10k, 2M, 5%% or 64MiB", word,
                     SIZES_MAX);
            free(list);
            return false;
        }
    }
    free(list);
    if (study->n_sizes == 0) {
        complain(EXIT_TROUBLE, "out of memory");
        return false;
    }
    qsort(study->sizes, study->n_sizes, sizeof(*study->sizes), by_size);
    for (size_t i = 0; i < study->n_sizes; i++)
        if (kept == 0 || study->sizes[kept - 1] != study->sizes[i])
            study->sizes[kept++] = study->sizes[i];
    study->n_sizes = kept;
    return true;
}

static bool
choose_policies(struct simulation *sim)
{
    struct study *study = &sim->study;
    char         *list, *rest, *word;
    bool          ok = true;

    if (sim->policies == NULL) {
        for (size_t i = 0; near__policies[i] != NULL; i++)
            study->policies[study->n_policies++] = near__policies[i]->name;
        return true;
    }
    list = rest = strdup(sim->policies);
    while (ok && list != NULL && (word = strsep(&rest, ",")) != NULL) {
        const struct near__policy *policy = near__policy_named(word);

        ok = policy != NULL && study->n_policies < NEAR_COUNT_OF(study->policies);
        if (ok)
            study->policies[study->n_policies++] = policy->name;
        else
            complain(EXIT_USAGE,
                     "--policies: no policy \"%s\"; l1.policy in `nearcache config --list` names them", word);
    }
    free(list);
    return ok && study->n_policies > 0;
}

/* ---- the command */

static bool
parse_options(struct simulation *sim, int argc, char **argv, int *status)
{
    enum { JSON = 256, EXACT, SAMPLED, RATE, SVG, HTML, SIZES, POLICIES, FORMAT, VALUE, THREADS };
    static const struct option options[] = { { "json", no_argument, NULL, JSON },
                                             { "exact", no_argument, NULL, EXACT },
                                             { "sampled", no_argument, NULL, SAMPLED },
                                             { "rate", required_argument, NULL, RATE },
                                             { "svg", required_argument, NULL, SVG },
                                             { "html", required_argument, NULL, HTML },
                                             { "sizes", required_argument, NULL, SIZES },
                                             { "policies", required_argument, NULL, POLICIES },
                                             { "format", required_argument, NULL, FORMAT },
                                             { "value-size", required_argument, NULL, VALUE },
                                             { "threads", required_argument, NULL, THREADS },
                                             { "help", no_argument, NULL, 'h' },
                                             { NULL, 0, NULL, 0 } };
    char                      *end;
    long                       n;
    int                        c;

    *status = EXIT_USAGE;
    optind  = 0;
    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1)
        switch (c) {
        case JSON:
            sim->json = true;
            break;
        case EXACT:
            sim->study.exact = true;
            break;
        case SAMPLED:
            sim->sampled = true;
            break;
        case RATE:
            sim->sampled = true;
            sim->rate    = strtod(optarg, &end);
            if (*end != '\0' || !(sim->rate > 0) || sim->rate > 1)
                return complain(0, "--rate: \"%s\": accepts more than 0, up to 1", optarg);
            break;
        case SVG:
            sim->svg = optarg;
            break;
        case HTML:
            sim->html = optarg;
            break;
        case SIZES:
            sim->sizes = optarg;
            break;
        case POLICIES:
            sim->policies = optarg;
            break;
        case FORMAT:
            sim->format = trace_format_named(optarg);
            if ((int)sim->format < 0)
                return complain(0, "--format: \"%s\": accepts auto, keys, csv, monitor, hmget or pcap",
                                optarg);
            break;
        case VALUE:
        case THREADS:
            n = strtol(optarg, &end, 10);
            if (*optarg == '\0' || *end != '\0' || n < (c == THREADS) ||
                n > (c == THREADS ? THREADS_MAX : 1 << 30))
                return complain(0, "--%s: \"%s\": accepts a number", c == THREADS ? "threads" : "value-size",
                                optarg);
            if (c == THREADS)
                sim->threads = (unsigned)n;
            else
                sim->value_size = (uint32_t)n;
            break;
        case 'h':
            *status = help_on("simulate");
            return false;
        default:
            misuse("simulate");
            return false;
        }
    if (optind == argc)
        misuse("simulate");
    return optind < argc;
}

/* Reads in a capture do not tell how large values are, but the writes beside them do. */
static void
learn_from_stores(struct simulation *sim)
{
    struct study *study = &sim->study;
    double        mean;

    if (study->sizes_known || study->captures->stores == 0)
        return;
    mean = (double)study->captures->stored_bytes / (double)study->captures->stores;
    study->block_bytes += mean - study->value_bytes;
    study->value_bytes   = mean;
    study->sizes_learned = true;
}

static int
simulate(struct simulation *sim)
{
    struct study *study = &sim->study;
    double        began = now_seconds();

    if (near__arena_open(&sim->arena, 64 << 20, 64 << 20, 64 << 10) != NEAR_OK)
        return complain(EXIT_TROUBLE, "out of memory");
    near__heap_init(&sim->heap, sim->arena, 0, 64 << 20);
    for (size_t i = 0; i < study->n_files; i++)
        if (!trace_read(study->files[i], sim->format, take_request, sim))
            return EXIT_TROUBLE;
    if (sim->n == 0)
        return complain(EXIT_TROUBLE, "%s: no requests in it", study->files[0]);
    study->read_seconds = now_seconds() - began;
    began               = now_seconds();
    study->requests     = sim->n;
    study->value_bytes  = sim->value_sum / (double)sim->n;
    study->sizes_known  = sim->with_size > 0;
    study->captures     = trace_captures();
    if (!look_at_keys(sim))
        return complain(EXIT_TROUBLE, "out of memory");
    learn_from_stores(sim);
    if (!choose_sizes(sim))
        return EXIT_USAGE;
    if (sim->taken == 0)
        return complain(EXIT_TROUBLE, "%s: too few keys for a sample of that rate", study->files[0]);
    if (!run_jobs(sim))
        return complain(EXIT_TROUBLE, "out of memory");
    study->seconds = now_seconds() - began;
    study_judge(study);
    if (sim->svg != NULL && !report_file(sim->svg, report_svg, study))
        return EXIT_TROUBLE;
    if (sim->html != NULL && !report_file(sim->html, report_html, study)) {
        if (sim->svg != NULL)
            unlink(sim->svg);
        return EXIT_TROUBLE;
    }
    (sim->json ? report_json : report_table)(stdout, study);
    return EXIT_DONE;
}

int
run_simulate(int argc, char **argv)
{
    struct simulation sim    = { .value_size = VALUE_SIZE };
    long              online = sysconf(_SC_NPROCESSORS_ONLN);
    int               status;

    sim.threads  = online < 1 ? 1 : online > THREADS_MAX ? THREADS_MAX : (unsigned)online;
    sim.progress = isatty(STDERR_FILENO);
    if (!parse_options(&sim, argc, argv, &status))
        return status;
    sim.study.files   = argv + optind;
    sim.study.n_files = (size_t)(argc - optind);
    status            = choose_policies(&sim) ? simulate(&sim) : EXIT_USAGE;
    near__arena_close(&sim.arena);
    free(sim.hashes);
    free(sim.blocks);
    free(sim.study.sizes);
    free(sim.study.results);
    return status;
}
