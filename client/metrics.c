/*
 * Counters and histograms as texts: JSON, OpenMetrics, and Prometheus' older format.  All are echoes of the tables in nearcache.h.
 *
 * A family of a cache's counter has a sample for each open cache, and one without a cache's name for what closed ones had, unless
 * there is none.  Names begin with "l2_" where a backend is what it is about: these carry its scheme.
 */
#include "metrics.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "curve.h"
#include "l1/curve.h"

enum {
    LE_FIRST = 5, /* 32 ns: an L1 hit takes about that */
    LE_LAST  = 36 /* 69 s: beyond that only +Inf */
};

struct text {
    FILE                       *out;
    char                       *bytes;
    size_t                      size;
    bool                        openmetrics;
    struct near__snapshot       snapshot;
    struct near__histogram_sums sums;
};

static struct text *
text_open(near_client *client)
{
    struct text *text = calloc(1, sizeof(*text));

    if (text == NULL)
        return NULL;
    if (near__snapshot_take(&text->snapshot, client) != NEAR_OK) {
        free(text);
        return NULL;
    }
    text->out = open_memstream(&text->bytes, &text->size);
    if (text->out != NULL)
        return text;
    near__snapshot_free(&text->snapshot);
    free(text);
    return NULL;
}

/* What was written, or NULL: out of memory. */
static char *
text_close(struct text *text)
{
    bool  failed = ferror(text->out) != 0;
    char *bytes;

    failed |= fclose(text->out) != 0;
    bytes = text->bytes;
    if (failed) {
        free(bytes);
        bytes = NULL;
    }
    near__snapshot_free(&text->snapshot);
    free(text);
    return bytes;
}

/* By integers: printf's floating point follows the application's locale, which may write a comma. */
static void
seconds(FILE *out, double ns)
{
    uint64_t whole = ns > 0 ? (uint64_t)(ns + 0.5) : 0;
    unsigned rest = (unsigned)(whole % NEAR__SEC), digits = 9;

    fprintf(out, "%" PRIu64, whole / NEAR__SEC);
    if (rest == 0)
        return;
    for (; rest % 10 == 0; rest /= 10)
        digits--;
    fprintf(out, ".%0*u", (int)digits, rest);
}

/* ---- OpenMetrics */

/* Metrics have base units: what is counted in milliseconds is shown in seconds. */
static bool
is_ms(const struct near__counter_row *row)
{
    return strcmp(row->unit, "ms") == 0;
}

const char *
near__metric_unit(const struct near__counter_row *row)
{
    if (is_ms(row))
        return "seconds";
    return strcmp(row->unit, "bytes") == 0 ? row->unit : NULL;
}

static bool
ends_with(const char *text, const char *end)
{
    size_t size = strlen(text), tail = strlen(end);

    return size > tail && strcmp(text + size - tail, end) == 0;
}

void
near__metric_name(const struct near__counter_row *row, char name[NEAR__METRIC_NAME_MAX])
{
    const char *unit = near__metric_unit(row);

    if (is_ms(row) && ends_with(row->name, "_ms"))
        snprintf(name, NEAR__METRIC_NAME_MAX, "nearcache_%.*s_seconds", (int)(strlen(row->name) - 3),
                 row->name);
    else if (unit != NULL && !ends_with(row->name, unit))
        snprintf(name, NEAR__METRIC_NAME_MAX, "nearcache_%s_%s", row->name, unit);
    else
        snprintf(name, NEAR__METRIC_NAME_MAX, "nearcache_%s", row->name);
}

void
near__metric_escape(FILE *out, const char *text, bool quotes)
{
    for (; *text != '\0'; text++)
        if (*text == '\\')
            fputs("\\\\", out);
        else if (*text == '\n')
            fputs("\\n", out);
        else if (*text == '"' && quotes)
            fputs("\\\"", out);
        else
            fputc(*text, out);
}

static void
label(FILE *out, unsigned *labels, const char *name, const char *value)
{
    fprintf(out, "%s%s=\"", (*labels)++ == 0 ? "{" : ",", name);
    near__metric_escape(out, value, true);
    fputc('"', out);
}

/* {cache="users",backend="redis",le="0.1"}, or nothing where there is nothing to say.  `power`: of the bucket's bound in ns; 0: this
 * is no bucket. */
static void
labels(const struct text *text, const char *field, const near_cache *cache, unsigned power)
{
    const near_client *client = text->snapshot.client;
    unsigned           n      = 0;

    if (cache != NULL)
        label(text->out, &n, "cache", cache->name);
    if (strncmp(field, "l2_", 3) == 0 && client->ops != NULL)
        label(text->out, &n, "backend", client->l2_uri.scheme);
    if (power > LE_LAST) {
        label(text->out, &n, "le", "+Inf");
    } else if (power != 0) {
        fprintf(text->out, "%sle=\"", n++ == 0 ? "{" : ",");
        seconds(text->out, (double)(UINT64_C(1) << power));
        fputc('"', text->out);
    }
    if (n > 0)
        fputc('}', text->out);
}

/* The older format knows a counter by the name of its samples. */
static void
family(const struct text *text, const char *name, const char *type, const char *unit, const char *help)
{
    const char *total = !text->openmetrics && strcmp(type, "counter") == 0 ? "_total" : "";

    fprintf(text->out, "# TYPE %s%s %s\n", name, total, type);
    if (unit != NULL && text->openmetrics)
        fprintf(text->out, "# UNIT %s%s %s\n", name, total, unit);
    fprintf(text->out, "# HELP %s%s ", name, total);
    near__metric_escape(text->out, help,
                        text->openmetrics); /* the older format leaves quotes alone in help */
    fputc('\n', text->out);
}

static void
counter_family(const struct text *text, enum near__counter which)
{
    const struct near__counter_row *row = &near__counter_rows[which];
    const struct near__snapshot    *all = &text->snapshot;
    char                            name[NEAR__METRIC_NAME_MAX];

    near__metric_name(row, name);
    family(text, name, row->grows ? "counter" : "gauge", near__metric_unit(row), row->help);
    for (size_t i = 0; i <= all->caches; i++) {
        uint64_t n = row->whole ? near__snapshot_total(all, which) : all->of[i].n[which];

        if (i == 0 && !row->whole && n == 0 && all->caches > 0)
            continue;
        fprintf(text->out, "%s%s", name, row->grows ? "_total" : "");
        labels(text, row->name, all->of[i].cache, 0);
        fputc(' ', text->out);
        if (is_ms(row))
            seconds(text->out, (double)n * NEAR_MS);
        else
            fprintf(text->out, "%" PRIu64, n);
        fputc('\n', text->out);
        if (row->whole)
            return;
    }
}

static void
histogram_sample(const struct text *text, const char *field, const near_cache *cache)
{
    const struct near__histogram_sums *sums = &text->sums;
    FILE                              *out  = text->out;

    for (unsigned power = LE_FIRST; power <= LE_LAST + 1; power++) {
        fprintf(out, "nearcache_%s_seconds_bucket", field);
        labels(text, field, cache, power);
        fprintf(out, " %" PRIu64 "\n", power <= LE_LAST ? near__histogram_up_to(sums, power) : sums->count);
    }
    fprintf(out, "nearcache_%s_seconds_sum", field);
    labels(text, field, cache, 0);
    fputc(' ', out);
    seconds(out, (double)sums->sum);
    fprintf(out, "\nnearcache_%s_seconds_count", field);
    labels(text, field, cache, 0);
    fprintf(out, " %" PRIu64 "\n", sums->count);
}

static void
histogram_family(struct text *text, enum near__timing which)
{
    const struct near__timing_row *row = &near__timing_rows[which];
    const struct near__snapshot   *all = &text->snapshot;
    char                           name[NEAR__METRIC_NAME_MAX];

    snprintf(name, sizeof(name), "nearcache_%s_seconds", row->name);
    family(text, name, "histogram", "seconds", row->help);
    for (size_t i = 0; i <= all->caches; i++) {
        near__snapshot_histogram(all, row->whole ? SIZE_MAX : i, which, &text->sums);
        if (i == 0 && !row->whole && text->sums.count == 0 && all->caches > 0)
            continue;
        histogram_sample(text, row->name, all->of[i].cache);
        if (row->whole)
            return;
    }
}

/* near_curve_get(), by the size's name. */
static void
curve_family(const struct text *text)
{
    const struct near__snapshot *all   = &text->snapshot;
    bool                         first = true;

    for (size_t i = 1; i <= all->caches; i++) {
        near_curve curve;

        if (!near__curve_known(all->of[i].cache, &curve))
            continue;
        if (first)
            family(text, NEAR__CURVE_METRIC, "gauge", NULL, NEAR__CURVE_HELP);
        first = false;
        for (int at = 0; at < NEAR__CURVE_SIZES; at++) {
            unsigned n = 0;

            fputs(NEAR__CURVE_METRIC, text->out);
            label(text->out, &n, "cache", all->of[i].cache->name);
            label(text->out, &n, "memory", near__curve_sizes[at].label);
            fputs("} ", text->out);
            near__curve_print(text->out, near__curve_sizes[at].ratio(&curve));
            fputc('\n', text->out);
        }
    }
}

/* What l1.pools are seen by; of each cache that has some. */
enum { POOL_HITS, POOL_FILLS, POOL_EVICTIONS, POOL_EXPIRED, POOL_ENTRIES, POOL_BYTES, POOL_MAX, POOL_ROWS };

static const struct near__counter_row pool_rows[POOL_ROWS] = {
    [POOL_HITS]  = { "l1_pool_hits", "requests", "values that this pool of L1 answered with", true, false },
    [POOL_FILLS] = { "l1_pool_fills", "entries", "entries put into this pool of L1", true, false },
    [POOL_EVICTIONS] = { "l1_pool_evictions", "entries", "entries that left this pool for room", true,
                         false },
    [POOL_EXPIRED]   = { "l1_pool_expired", "entries", "entries that left this pool at their end", true,
                         false },
    [POOL_ENTRIES]   = { "l1_pool_entries", "entries", "entries in this pool of L1 now", false, false },
    [POOL_BYTES]     = { "l1_pool_bytes", "bytes", "memory of this pool of L1 now", false, false },
    [POOL_MAX]       = { "l1_pool_max_bytes", "bytes", "what l1_pool_bytes is bounded by", false, false },
};

static void
pool_numbers(near_cache *cache, unsigned pool, uint64_t n[POOL_ROWS])
{
    struct near__l1_stats stats;
    size_t                max_bytes;

    near__l1_pool_stats(cache->l1, pool, &stats, &max_bytes);
    n[POOL_HITS]      = stats.hits;
    n[POOL_FILLS]     = stats.fills;
    n[POOL_EVICTIONS] = stats.evictions;
    n[POOL_EXPIRED]   = stats.expired;
    n[POOL_ENTRIES]   = stats.entries;
    n[POOL_BYTES]     = stats.bytes;
    n[POOL_MAX]       = max_bytes;
}

static void
pool_samples(const struct text *text, const char *name, int which, near_cache *cache)
{
    for (unsigned pool = 1; pool <= cache->pools.n; pool++) {
        uint64_t n[POOL_ROWS];
        unsigned labels = 0;

        pool_numbers(cache, pool, n);
        fprintf(text->out, "%s%s", name, pool_rows[which].grows ? "_total" : "");
        label(text->out, &labels, "cache", cache->name);
        label(text->out, &labels, "pool", cache->pools.pools[pool - 1].name);
        fprintf(text->out, "} %" PRIu64 "\n", n[which]);
    }
}

static void
pool_families(const struct text *text)
{
    const struct near__snapshot *all = &text->snapshot;
    bool                         any = false;

    for (size_t i = 1; i <= all->caches; i++)
        any |= all->of[i].cache->pools.n > 0;
    for (int which = 0; any && which < POOL_ROWS; which++) {
        const struct near__counter_row *row = &pool_rows[which];
        char                            name[NEAR__METRIC_NAME_MAX];

        near__metric_name(row, name);
        family(text, name, row->grows ? "counter" : "gauge", near__metric_unit(row), row->help);
        for (size_t i = 1; i <= all->caches; i++)
            pool_samples(text, name, which, all->of[i].cache);
    }
}

static char *
metrics(near_client *client, bool openmetrics)
{
    struct text *text = text_open(client);

    if (text == NULL)
        return NULL;
    text->openmetrics = openmetrics;
    fprintf(text->out,
            openmetrics ? "# TYPE nearcache_build info\n# HELP nearcache_build the library's version\n"
                          "nearcache_build_info{version=\"%s\"} 1\n"
                        : "# TYPE nearcache_build_info gauge\n# HELP nearcache_build_info the library's "
                          "version\nnearcache_build_info{version=\"%s\"} 1\n",
            near_version());
    for (int i = 0; i < NEAR__COUNTERS; i++)
        counter_family(text, (enum near__counter)i);
    for (int i = 0; i < NEAR__TIMINGS; i++)
        histogram_family(text, (enum near__timing)i);
    curve_family(text);
    pool_families(text);
    if (openmetrics)
        fputs("# EOF\n", text->out);
    return text_close(text);
}

char *
near_stats_prometheus(near_client *client)
{
    return metrics(client, true);
}

char *
near_stats_prometheus_text(near_client *client)
{
    return metrics(client, false);
}

/* ---- JSON */

void
near__json_string(FILE *out, near_bytes text)
{
    const unsigned char *at = text.data;

    fputc('"', out);
    for (size_t i = 0; i < text.size; i++)
        if (at[i] < ' ' ||
            at[i] >= 0x7F) /* bytes beyond ASCII as if they were Latin-1: it need not be UTF-8 */
            fprintf(out, "\\u%04x", at[i]);
        else
            fprintf(out, "%s%c", at[i] == '"' || at[i] == '\\' ? "\\" : "", at[i]);
    fputc('"', out);
}

static void
json_number(const struct text *text, const char *name, double ns)
{
    fprintf(text->out, ",\"%s\":", name);
    seconds(text->out, ns);
}

/* "histograms":{...} of those that are not empty. */
static void
json_histograms(struct text *text, size_t i)
{
    const struct near__histogram_sums *sums  = &text->sums;
    const char                        *comma = "";

    fputs(",\"histograms\":{", text->out);
    for (int which = 0; which < NEAR__TIMINGS; which++) {
        if (i != SIZE_MAX && near__timing_rows[which].whole)
            continue;
        near__snapshot_histogram(&text->snapshot, i, (enum near__timing)which, &text->sums);
        if (sums->count == 0)
            continue;
        fprintf(text->out, "%s\"%s\":{\"count\":%" PRIu64, comma, near__timing_rows[which].name, sums->count);
        json_number(text, "sum", (double)sums->sum);
        json_number(text, "mean", (double)sums->sum / (double)sums->count);
        json_number(text, "p50", near__histogram_quantile(sums, 0.5));
        json_number(text, "p90", near__histogram_quantile(sums, 0.9));
        json_number(text, "p99", near__histogram_quantile(sums, 0.99));
        json_number(text, "p99_9", near__histogram_quantile(sums, 0.999));
        json_number(text, "max", near__histogram_quantile(sums, 1));
        fputc('}', text->out);
        comma = ",";
    }
    fputc('}', text->out);
}

static void
json_curve(const struct text *text, near_cache *cache)
{
    near_curve curve;

    if (!near__curve_known(cache, &curve))
        return;
    fputs(",\"curve\":{\"share\":", text->out);
    near__curve_print(text->out, curve.share);
    fprintf(text->out, ",\"requests\":%" PRIu64 ",\"entries\":%" PRIu64, (uint64_t)curve.requests,
            curve.entries);
    for (int at = 0; at < NEAR__CURVE_SIZES; at++) {
        fprintf(text->out, ",\"%s\":", near__curve_sizes[at].label);
        near__curve_print(text->out, near__curve_sizes[at].ratio(&curve));
    }
    fputc('}', text->out);
}

/* "pools":{...}, with the metrics' names but for what they begin with. */
static void
json_pools(const struct text *text, near_cache *cache)
{
    if (cache->pools.n == 0)
        return;
    fputs(",\"pools\":", text->out);
    for (unsigned pool = 1; pool <= cache->pools.n; pool++) {
        struct near__curve_answer curve;
        uint64_t                  n[POOL_ROWS];

        pool_numbers(cache, pool, n);
        fputc(pool == 1 ? '{' : ',', text->out);
        near__json_string(text->out, near_key(cache->pools.pools[pool - 1].name));
        for (int which = 0; which < POOL_ROWS; which++)
            fprintf(text->out, "%s\"%s\":%" PRIu64, which == 0 ? ":{" : ",",
                    pool_rows[which].name + strlen("l1_pool_"), n[which]);
        if (near__l1_pool_curve(cache->l1, pool, &curve) && curve.share > 0) {
            fputs(",\"curve\":", text->out);
            for (int at = 0; at < NEAR__CURVE_SIZES; at++) {
                fprintf(text->out, "%s\"%s\":", at == 0 ? "{" : ",", near__curve_sizes[at].label);
                near__curve_print(text->out, curve.ratio[at]);
            }
            fputc('}', text->out);
        }
        fputc('}', text->out);
    }
    fputc('}', text->out);
}

static void
json_cache(struct text *text, size_t i)
{
    const struct near__stats_of *of    = &text->snapshot.of[i];
    const char                  *comma = "";

    near__json_string(text->out, near_key(of->cache->name));
    fputs(":{", text->out);
    for (int which = 0; which < NEAR__COUNTERS; which++) {
        if (near__counter_rows[which].whole)
            continue;
        fprintf(text->out, "%s\"%s\":%" PRIu64, comma, near__counter_rows[which].name, of->n[which]);
        comma = ",";
    }
    json_histograms(text, i);
    json_curve(text, of->cache);
    json_pools(text, of->cache);
    fputc('}', text->out);
}

char *
near_stats_json(near_client *client)
{
    struct text *text = text_open(client);

    if (text == NULL)
        return NULL;
    fprintf(text->out, "{\"version\":\"%s\"", near_version());
    for (int which = 0; which < NEAR__COUNTERS; which++)
        fprintf(text->out, ",\"%s\":%" PRIu64, near__counter_rows[which].name,
                near__snapshot_total(&text->snapshot, (enum near__counter)which));
    json_histograms(text, SIZE_MAX);
    fputs(",\"caches\":{", text->out);
    for (size_t i = 1; i <= text->snapshot.caches; i++) {
        if (i > 1)
            fputc(',', text->out);
        json_cache(text, i);
    }
    fputs("}}", text->out);
    return text_close(text);
}
