/*
 * What can be seen of a client: histograms and their bound on errors, the OpenMetrics text read by its own rules (and by promtool where
 * there is one), the JSON, counts per cache that survive a cache's end, and what the bus's times say.
 */
#define TEST_NAME "metrics"
#include "integration/world.h"

#include "base/histogram.h"
#include "client.h"
#include "metrics.h"

#include <ctype.h>
#include <locale.h>
#include <math.h>
#include <unistd.h>

/* ---- histograms */

static void
values_are_found_again_within_two_percent(void **state)
{
    uint64_t seed  = 1;
    int64_t  below = 0;

    (void)state;
    for (int i = 0; i < 200000; i++) {
        int64_t value = (int64_t)(test_random(&seed) >> (22 + test_random(&seed) % 42)) + 1;
        size_t  index = near__histogram_index(value);
        int64_t upper = near__histogram_upper(index);
        int64_t lower = index == 0 ? 0 : near__histogram_upper(index - 1);

        assert_true(lower < value && value <= upper);
        if (index >= 32)
            assert_true(fabs((double)(lower + upper) / 2 - (double)value) <= (double)value / 64);
    }
    for (size_t i = 0; i < NEAR__HISTOGRAM_CELLS; i++) {
        assert_true(near__histogram_upper(i) > below);
        below = near__histogram_upper(i);
    }
    assert_int_equal(near__histogram_index(-5), 0);
    assert_int_equal(near__histogram_index(0), 0);
    assert_int_equal(near__histogram_index(INT64_MAX), NEAR__HISTOGRAM_CELLS - 1);
}

static struct near__histogram histogram;

static void *
record_some(void *ctx)
{
    uint64_t seed = (uintptr_t)ctx;

    for (size_t i = 0; i < test_scale(20000); i++)
        near__histogram_record(&histogram, (int64_t)(test_random(&seed) % 1000000));
    return NULL;
}

static void
recorded_by_many_threads_nothing_is_lost(void **state)
{
    struct near__histogram_sums  *sums = calloc(1, sizeof(*sums));
    static struct near__histogram rest;
    pthread_t                     threads[4];

    (void)state;
    for (uintptr_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, record_some, (void *)(i + 1)), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    near__histogram_read(&histogram, sums);
    assert_int_equal(sums->count, 4 * test_scale(20000));
    assert_true(fabs(near__histogram_quantile(sums, 0.5) / 500000 - 1) < 0.05);
    assert_true(fabs(near__histogram_quantile(sums, 0.99) / 990000 - 1) < 0.03);
    assert_true(fabs((double)sums->sum / (double)sums->count / 500000 - 1) < 0.05);
    assert_int_equal(near__histogram_up_to(sums, 20), sums->count);
    near__histogram_move(&rest, &histogram);
    memset(sums, 0, sizeof(*sums));
    near__histogram_read(&histogram, sums);
    assert_int_equal(sums->count, 0);
    assert_true(near__histogram_quantile(sums, 0.5) == 0);
    near__histogram_read(&rest, sums);
    assert_int_equal(sums->count, 4 * test_scale(20000));
    near__histogram_fini(&rest);
    near__histogram_fini(&histogram);
    free(sums);
}

static void
bounds_are_inclusive(void **state)
{
    struct near__histogram_sums *sums = calloc(1, sizeof(*sums));

    (void)state;
    near__histogram_record(&histogram, 1024);
    near__histogram_record(&histogram, 1025);
    near__histogram_read(&histogram, sums);
    assert_int_equal(near__histogram_up_to(sums, 9), 0);
    assert_int_equal(near__histogram_up_to(sums, 10), 1);
    assert_int_equal(near__histogram_up_to(sums, 11), 2);
    near__histogram_fini(&histogram);
    free(sums);
}

/* ---- OpenMetrics, read strictly */

enum { SERIES_MAX = 8192, LINE_MAX_ = 512 };

struct reader {
    char        family[LINE_MAX_], type[32], unit[32];
    bool        help, samples;
    char        seen[512][96]; /* families */
    size_t      families;
    char       *series[SERIES_MAX];
    size_t      n;
    char        group[LINE_MAX_]; /* of a histogram: labels without le */
    double      le, below, infinite;
    const char *wrong; /* the first thing that is */
};

static bool
wrong(struct reader *r, const char *what)
{
    if (r->wrong == NULL)
        r->wrong = what;
    return false;
}

static bool
is_metric_name(const char *text)
{
    if (!isalpha((unsigned char)*text) && *text != '_')
        return false;
    return strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_:") == strlen(text);
}

static bool
new_family(struct reader *r, const char *name)
{
    if (!is_metric_name(name))
        return wrong(r, "a family's name");
    if (r->families > 0 && !r->samples)
        return wrong(r, "a family without samples");
    for (size_t i = 0; i < r->families; i++)
        if (strcmp(r->seen[i], name) == 0)
            return wrong(r, "a family that comes twice");
    snprintf(r->seen[r->families++], 96, "%.95s", name);
    snprintf(r->family, sizeof(r->family), "%s", name);
    r->type[0] = r->unit[0] = r->group[0] = '\0';
    r->help = r->samples = false;
    return true;
}

static bool
metadata(struct reader *r, const char *line)
{
    char name[LINE_MAX_], rest[LINE_MAX_];
    char kind[8];

    if (sscanf(line, "# %7s %511s %511[^\n]", kind, name, rest) != 3)
        return wrong(r, "a line of metadata");
    if (strcmp(name, r->family) != 0 && !new_family(r, name))
        return false;
    if (r->samples)
        return wrong(r, "metadata after samples");
    if (strcmp(kind, "TYPE") == 0 && r->type[0] == '\0' &&
        (strcmp(rest, "counter") == 0 || strcmp(rest, "gauge") == 0 || strcmp(rest, "histogram") == 0 ||
         strcmp(rest, "info") == 0)) {
        snprintf(r->type, sizeof(r->type), "%.31s", rest);
        return true;
    }
    if (strcmp(kind, "UNIT") == 0 && r->unit[0] == '\0') {
        size_t size = strlen(name), tail = strlen(rest);

        snprintf(r->unit, sizeof(r->unit), "%.31s", rest);
        return size > tail + 1 && strcmp(name + size - tail, rest) == 0 && name[size - tail - 1] == '_'
                   ? true
                   : wrong(r, "a unit that its name does not end with");
    }
    if (strcmp(kind, "HELP") == 0 && !r->help) {
        r->help = true;
        for (const char *at = rest; *at != '\0'; at++)
            if (*at == '"' || (*at == '\\' && strchr("\\n\"", *++at) == NULL))
                return wrong(r, "an escape in help");
        return true;
    }
    return wrong(r, "metadata that is unknown or comes twice");
}

/* {a="b",c="d"}: past it, with `le` taken out of what is copied to `group`.  NULL: wrong. */
static const char *
read_labels(struct reader *r, const char *at, char *group, double *le)
{
    char name[64], value[256];

    *group = '\0';
    if (*at != '{')
        return at;
    do {
        size_t n = 0, size = strcspn(++at, "=");

        if (size >= sizeof(name))
            return wrong(r, "a label"), NULL;
        memcpy(name, at, size);
        name[size] = '\0';
        if (!is_metric_name(name) || strchr(name, ':') != NULL || at[size + 1] != '"')
            return wrong(r, "a label"), NULL;
        for (at += size + 2; *at != '"'; at++) {
            if (*at == '\0' || *at == '\n' || n + 2 >= sizeof(value) ||
                (*at == '\\' && strchr("\\n\"", at[1]) == NULL))
                return wrong(r, "a label's value"), NULL;
            if (*at == '\\')
                value[n++] = *at++;
            value[n++] = *at;
        }
        value[n] = '\0';
        at++;
        if (strcmp(name, "le") == 0)
            *le = strcmp(value, "+Inf") == 0 ? INFINITY : strtod(value, NULL);
        else
            snprintf(group + strlen(group), LINE_MAX_ - strlen(group), "%s=%s;", name, value);
    } while (*at == ',');
    return *at == '}' ? at + 1 : (wrong(r, "the end of labels"), NULL);
}

static bool
histogram_line(struct reader *r, const char *suffix, const char *group, double le, double value)
{
    if (strcmp(suffix, "_bucket") == 0) {
        if (isnan(le))
            return wrong(r, "a bucket without le");
        if (strcmp(r->group, group) != 0 || r->le == INFINITY) {
            r->le    = -INFINITY;
            r->below = 0;
            snprintf(r->group, sizeof(r->group), "%s", group);
        }
        if (le <= r->le || value < r->below)
            return wrong(r, "buckets that do not grow");
        r->le    = le;
        r->below = r->infinite = value;
        return true;
    }
    if (r->le != INFINITY || strcmp(r->group, group) != 0)
        return wrong(r, "no bucket +Inf");
    if (strcmp(suffix, "_count") == 0)
        return value == r->infinite ? true : wrong(r, "a count that is not the last bucket");
    return strcmp(suffix, "_sum") == 0 ? true : wrong(r, "a sample that a histogram has not");
}

static bool
sample(struct reader *r, const char *line)
{
    char        name[LINE_MAX_], group[LINE_MAX_];
    size_t      size = strcspn(line, "{ "), family = strlen(r->family);
    double      le = NAN, value;
    const char *at;
    char       *end;

    snprintf(name, sizeof(name), "%.*s", (int)size, line);
    if (!is_metric_name(name) || strncmp(name, r->family, family) != 0 || r->type[0] == '\0')
        return wrong(r, "a sample outside of its family");
    at = read_labels(r, line + size, group, &le);
    if (at == NULL)
        return false;
    if (*at != ' ' || isspace((unsigned char)at[1]))
        return wrong(r, "no single space before the value");
    for (size_t i = 0; i < r->n; i++)
        if (strlen(r->series[i]) == (size_t)(at - line) &&
            strncmp(r->series[i], line, (size_t)(at - line)) == 0)
            return wrong(r, "a series that comes twice");
    assert_true(r->n < SERIES_MAX);
    r->series[r->n++] = strndup(line, (size_t)(at - line));
    value             = strtod(at + 1, &end);
    if (*end != '\0' || end == at + 1 || value < 0)
        return wrong(r, "a value");
    r->samples = true;
    if (strcmp(r->type, "histogram") == 0)
        return histogram_line(r, name + family, group, le, value);
    if (strcmp(name + family, strcmp(r->type, "counter") == 0 ? "_total"
                              : strcmp(r->type, "info") == 0  ? "_info"
                                                              : "") != 0)
        return wrong(r, "a suffix that does not go with the type");
    return true;
}

/* NULL: all is as it must be; else what is not. */
static const char *
read_openmetrics(const char *text)
{
    struct reader *r = calloc(1, sizeof(*r));
    char           line[LINE_MAX_];
    const char    *what;
    bool           end = false;

    while (*text != '\0' && r->wrong == NULL) {
        size_t size = strcspn(text, "\n");

        if (text[size] != '\n' || size >= sizeof(line) || end) {
            wrong(r, "something after the end, or no end of a line");
            break;
        }
        memcpy(line, text, size);
        line[size] = '\0';
        text += size + 1;
        if (strcmp(line, "# EOF") == 0)
            end = true;
        else if (*line == '#')
            metadata(r, line);
        else
            sample(r, line);
    }
    if (!end)
        wrong(r, "no # EOF");
    what = r->wrong;
    for (size_t i = 0; i < r->n; i++)
        free(r->series[i]);
    free(r);
    return what;
}

static void
the_reader_refuses_what_is_wrong(void **state)
{
    static const char *const bad[] = {
        "",
        "# TYPE a counter\na_total 1\n",
        "# TYPE a counter\na 1\n# EOF\n",
        "# TYPE a gauge\na 1\na 2\n# EOF\n",
        "# TYPE a gauge\na{b=\"x\ny\"} 1\n# EOF\n",
        "# TYPE a gauge\na{b=\"x\\y\"} 1\n# EOF\n",
        "# TYPE a gauge\na 0,5\n# EOF\n",
        "# TYPE a gauge\n# UNIT a bytes\na 1\n# EOF\n",
        "# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n# TYPE a gauge\na{c=\"d\"} 1\n# EOF\n",
        "# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n# EOF\n",
        "# TYPE a histogram\na_bucket{le=\"1\"} 1\na_sum 1\na_count 1\n# EOF\n",
        "# TYPE a gauge\na 1\n# EOF\n\n",
    };

    (void)state;
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++)
        if (read_openmetrics(bad[i]) == NULL)
            fail_msg("taken: %s", bad[i]);
    assert_null(read_openmetrics("# TYPE a gauge\n# HELP a b\\nc\na{b=\"x\\\"\\\\\\n\"} 1\n# EOF\n"));
}

static void
label_values_are_escaped(void **state)
{
    char  *text = NULL;
    size_t size;
    FILE  *out = open_memstream(&text, &size);

    (void)state;
    fputs("# TYPE a gauge\na{b=\"", out);
    near__metric_escape(out, "back\\slash, \"quote\", new\nline", true);
    fputs("\"} 1\n# EOF\n", out);
    fclose(out);
    assert_non_null(strstr(text, "back\\\\slash, \\\"quote\\\", new\\nline"));
    assert_null(read_openmetrics(text));
    free(text);
}

/* ---- a client's */

WORLD(memory, TIER_MEMORY)
WORLD(redis, TIER_REDIS)

static void
put_and_get(near_cache *cache, const char *key, int gets)
{
    near_value *value;

    assert_int_equal(near_put(cache, near_key(key), near_key("v"), NULL), NEAR_OK);
    for (int i = 0; i < gets; i++) {
        assert_int_equal(near_get(cache, near_key(key), &value), NEAR_OK);
        near_value_release(value);
    }
}

static char *
text_of(near_client *client)
{
    char       *text = near_stats_prometheus(client);
    const char *bad;

    assert_non_null(text);
    bad = read_openmetrics(text);
    if (bad != NULL)
        fail_msg("%s in:\n%s", bad, text);
    return text;
}

static void
assert_has(const char *text, const char *part)
{
    if (strstr(text, part) == NULL)
        fail_msg("no \"%s\" in:\n%s", part, text);
}

static void
promtool_accepts(const char *text)
{
    FILE *tool;

    if (system("command -v promtool >/dev/null 2>&1") != 0)
        return;
    tool = popen("promtool check metrics >/dev/null", "w");
    assert_non_null(tool);
    assert_true(fputs(text, tool) >= 0);
    assert_int_equal(pclose(tool), 0);
}

static void
the_text_is_openmetrics_and_counts_by_cache(void **state)
{
    struct world   *w = *state;
    struct instance in;
    near_cache     *other;
    char           *text;

    NEEDS(w);
    OPEN(w, &in, "l1.max_entries", "1000");
    assert_int_equal(near_cache_open(in.client, "other-1.x", NULL, &other, NULL), NEAR_OK);
    put_and_get(in.cache, "secret-key", 3);
    put_and_get(other, "k", 5);
    text = text_of(in.client);
    assert_has(text, "nearcache_hits_l1_total{cache=\"things\"} 3\n");
    assert_has(text, "nearcache_hits_l1_total{cache=\"other-1.x\"} 5\n");
    assert_has(text, "nearcache_requests_total{cache=\"other-1.x\"} 5\n");
    assert_has(text, "nearcache_l1_max_entries{cache=\"things\"} 1000\n");
    assert_has(text, "# UNIT nearcache_l1_bytes bytes\n");
    assert_has(text, "# UNIT nearcache_write_back_age_seconds seconds\n"); /* and not in milliseconds */
    assert_has(text, "\nnearcache_write_back_age_seconds 0\n");
    assert_has(text, "# UNIT nearcache_l2_compress_saved_bytes bytes\n");
    assert_has(text, w->tier == TIER_REDIS ? "nearcache_l2_connects_total{backend=\"redis+unix\"} "
                                           : "nearcache_l2_connects_total{backend=\"memory\"} 0\n");
    assert_has(text, "nearcache_l2_write_seconds_count{cache=\"things\",backend=\"");
    assert_null(strstr(text, "secret-key"));
    near_free(text);
    /* what a closed cache has counted is not lost, and its name can come again */
    near_cache_close(other);
    text = text_of(in.client);
    assert_has(text, "nearcache_hits_l1_total 5\nnearcache_hits_l1_total{cache=\"things\"} 3\n");
    assert_null(strstr(text, "other-1.x"));
    near_free(text);
    assert_int_equal(stats_of(&in).hits_l1, 8);
    assert_int_equal(stats_of(&in).puts, 2);
    text = near_stats_prometheus_text(in.client);
    assert_non_null(text);
    assert_has(text, "# TYPE nearcache_puts_total counter\n");
    assert_null(strstr(text, "# EOF"));
    promtool_accepts(text);
    near_free(text);
    close_instance(&in);
}

/* What the dashboard and the alerts ask for is there. */
static void
contributed_files_name_what_there_is(void **state)
{
    static const char *const files[] = { TEST_DATA "/../../contrib/alerts.yml",
                                         TEST_DATA "/../../contrib/grafana.json" };
    struct world            *w       = *state;
    struct instance          in;
    char                    *text, line[2048], name[96];
    unsigned                 names = 0;

    NEEDS(w);
    OPEN(w, &in, "l1.max_entries", "1000");
    text = near_stats_prometheus(in.client);
    for (size_t i = 0; i < NEAR_COUNT_OF(files); i++) {
        FILE *file = fopen(files[i], "re");

        assert_non_null(file);
        while (fgets(line, sizeof(line), file) != NULL)
            for (char *at = line; (at = strstr(at, "nearcache_")) != NULL; names++) {
                size_t size = strspn(at, "abcdefghijklmnopqrstuvwxyz0123456789_");

                snprintf(name, sizeof(name), "\n%.*s", (int)size, at);
                assert_has(text, name);
                at += size;
            }
        fclose(file);
    }
    assert_true(names > 30);
    near_free(text);
    close_instance(&in);
    if (system("command -v promtool >/dev/null 2>&1") == 0)
        assert_int_equal(system("promtool check rules " TEST_DATA "/../../contrib/alerts.yml >/dev/null"), 0);
}

/* Brackets and quotes match; enough to see that nothing was left out. */
static void
assert_is_json(const char *text)
{
    char   open[64];
    size_t depth  = 0;
    bool   quoted = false;

    for (; *text != '\0'; text++) {
        if (*text == '"')
            quoted = !quoted;
        else if (quoted && *text == '\\')
            text++;
        else if (!quoted && (*text == '{' || *text == '['))
            open[depth++] = *text;
        else if (!quoted && (*text == '}' || *text == ']'))
            assert_true(depth-- > 0 && open[depth] == (*text == '}' ? '{' : '['));
        assert_true(depth > 0 || text[1] == '\0');
        assert_true(depth < sizeof(open));
    }
    assert_true(depth == 0 && !quoted);
}

static void
slow_answer(struct store *store, near_load *load)
{
    (void)store;
    sleep_ms(20);
    near_load_set(load, near_key("v"));
}

static void
json_has_each_cache_and_its_times(void **state)
{
    struct world   *w     = *state;
    struct store    store = STORE(.answer = slow_answer);
    struct instance in;
    near_value     *value;
    char           *text, *at;
    double          seconds;

    NEEDS(w);
    OPEN(w, &in, "l1.max_entries", "1000");
    near_cache_set_loader(in.cache, load_from_store, &store);
    assert_int_equal(near_fetch(in.cache, near_key("k"), NULL, &value), NEAR_OK);
    near_value_release(value);
    text = near_stats_json(in.client);
    assert_non_null(text);
    assert_is_json(text);
    assert_has(text, "\"caches\":{\"things\":{\"requests\":1,");
    assert_has(text, "\"l2_read\":{\"count\":1,");
    at = strstr(text, "\"load\":{\"count\":1,\"sum\":");
    assert_non_null(at);
    seconds = strtod(at + strlen("\"load\":{\"count\":1,\"sum\":"), NULL);
    assert_true(seconds >= 0.02 && seconds < 5);
    at = strstr(text, "\"fetch\":{\"count\":1,\"sum\":");
    assert_non_null(at);
    assert_true(strtod(at + strlen("\"fetch\":{\"count\":1,\"sum\":"), NULL) >= 0.02);
    near_free(text);
    close_instance(&in);
}

static void
store_slowly(near_write *writes[], size_t n, void *ctx)
{
    (void)ctx;
    sleep_ms(20);
    for (size_t i = 0; i < n; i++)
        near_write_done(writes[i]);
}

static void
the_store_is_timed(void **state)
{
    struct world   *w = *state;
    struct instance in;
    char           *text, *at;
    double          seconds;

    NEEDS(w);
    OPEN(w, &in, "l1.max_entries", "1000");
    near_cache_set_store(in.cache, store_slowly, NULL);
    assert_int_equal(near_update(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    text = near_stats_json(in.client);
    at   = strstr(text, "\"store\":{\"count\":1,\"sum\":");
    assert_non_null(at);
    seconds = strtod(at + strlen("\"store\":{\"count\":1,\"sum\":"), NULL);
    assert_true(seconds >= 0.02 && seconds < 5);
    near_free(text);
    close_instance(&in);
}

static int
heard_itself(void *ctx)
{
    char *text = near_stats_json(((struct instance *)ctx)->client);
    bool  is   = strstr(text, "\"coherence_lag\":{\"count\":3,") != NULL;

    near_free(text);
    return is;
}

/* All three ways of telling: with the write, after it, and a clear. */
static void
the_lag_is_measured_by_our_own_echo(void **state)
{
    struct world   *w = *state;
    struct instance in;
    near_error      error;
    char           *text, *at;

    NEEDS(w);
    OPEN(w, &in, "l1.max_entries", "1000");
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("v"), NULL), NEAR_OK);
    assert_int_equal(near_remove(in.cache, near_key("k")), NEAR_OK);
    assert_int_equal(near_clear(in.cache), NEAR_OK);
    assert_true(test_wait_for(heard_itself, &in, 5000));
    text = near_stats_json(in.client);
    at   = strstr(text, "\"coherence_lag\":{\"count\":3,\"sum\":");
    assert_true(strtod(at + strlen("\"coherence_lag\":{\"count\":3,\"sum\":"), NULL) < 3.0 * test_slack());
    near_free(text);
    assert_int_equal(near_client_close(in.client, &error), NEAR_OK);
}

static int
gate_is_shut(void *ctx)
{
    return stats_of(ctx).gate_open == 0;
}

static int
gate_is_open(void *ctx)
{
    return stats_of(ctx).gate_open == 1;
}

static void
the_time_that_the_gate_was_closed_is_told(void **state)
{
    struct world   *w = *state;
    struct instance in;
    char           *text, *at;
    double          seconds;

    NEEDS(w);
    OPEN(w, &in, "coherence.serve_window", "100ms", "coherence.heartbeat", "20ms");
    assert_true(test_wait_for(gate_is_open, &in, 5000));
    test_server_pause(w->redis);
    assert_true(test_wait_for(gate_is_shut, &in, 5000));
    sleep_ms(150);
    test_server_resume(w->redis);
    assert_true(test_wait_for(gate_is_open, &in, 10000));
    text = near_stats_json(in.client);
    at   = strstr(text, "\"gate_closed\":{\"count\":");
    assert_non_null(at);
    at      = strstr(at, "\"sum\":");
    seconds = strtod(at + strlen("\"sum\":"), NULL);
    assert_true(seconds >= 0.14 && seconds < 10);
    near_free(text);
    close_instance(&in);
}

/* ---- hot keys, and one key on every level */

static void
hot_keys_are_found_among_many(void **state)
{
    struct world   *w = *state;
    struct instance in;
    near_value     *value;
    char           *text, *at, key[32];
    uint64_t        seed = 1;
    double          share;

    NEEDS(w);
    OPEN(w, &in, "l1.max_entries", "5000");
    for (int i = 0; i < 2000; i++) {
        snprintf(key, sizeof(key), "k%d", i);
        assert_int_equal(near_put(in.cache, near_key(key), near_key("v"), NULL), NEAR_OK);
    }
    for (size_t i = 0; i < test_scale(600000);
         i++) { /* k7: three of ten, hit; "absent": one of ten, missed; the rest: 2000 others */
        unsigned what = (unsigned)(test_random(&seed) % 10);

        snprintf(key, sizeof(key),
                 what < 3   ? "k7"
                 : what < 4 ? "absent"
                            : "k%u",
                 (unsigned)(test_random(&seed) % 2000));
        if (near_get(in.cache, near_key(key), &value) == NEAR_OK)
            near_value_release(value);
    }
    text = near_hot_keys(in.cache, NEAR_PLAIN_KEYS);
    assert_non_null(text);
    assert_is_json(text);
    if (test_scale(100) == 100) {
        at = strstr(text, "\"key\":\"k7\"");
        assert_non_null(at);
        share = strtod(strstr(at, "\"share\":") + strlen("\"share\":"), NULL);
        assert_true(share > 0.2 && share < 0.4);
        at = strstr(text, "\"key\":\"absent\"");
        assert_non_null(at);
        share = strtod(strstr(at, "\"share\":") + strlen("\"share\":"), NULL);
        assert_true(share > 0.05 && share < 0.2);
    }
    near_free(text);
    text = near_hot_keys(in.cache, 0);
    assert_null(strstr(text, "\"key\""));
    assert_null(strstr(text, "k7"));
    near_free(text);
    assert_null(near_hot_keys(NULL, 0));
    /* and hits are timed by sample, without being counted more than once */
    text = near_stats_json(in.client);
    if (test_scale(100) == 100)
        assert_has(text, "\"l1_hit\":{\"count\":");
    near_free(text);
    assert_true(stats_of(&in).requests == test_scale(600000));
    close_instance(&in);
}

static void
a_key_is_explained_on_every_level(void **state)
{
    static const char *const tags[]  = { "red", "a\"b" };
    struct world            *w       = *state;
    near_put_options         options = NEAR_PUT_OPTIONS_INIT;
    struct instance          in, other;
    char                    *text;

    NEEDS(w);
    OPEN(w, &in, "l1.max_entries", "1000");
    OPEN(w, &other, "l1.max_entries", "1000");
    text = near_explain(in.cache, near_key("k"));
    assert_is_json(text);
    assert_has(text, "\"l1\":{\"present\":false},\"l2\":{\"answer\":\"absent\"}");
    assert_null(strstr(text, "invalidated"));
    near_free(text);
    options.ttl_ms    = 49500;
    options.tags      = tags;
    options.tag_count = 2;
    assert_int_equal(near_put(in.cache, near_key("k"), near_key("value"), &options), NEAR_OK);
    text = near_explain(in.cache, near_key("k"));
    assert_is_json(text);
    assert_has(text, "\"gate\":\"open\",\"owed\":false,\"pending\":false,\"l1\":{\"present\":true,\"size\":5,"
                     "\"stale\":false,");
    assert_has(text, "\"ttl_ms\":4");
    assert_has(text, "\"l2\":{\"answer\":\"present\",");
    assert_has(text, "\"tags\":[\"red\",\"a\\\"b\"]");
    assert_has(text, "\"invalidated\":{\"by\":\"a write of this process\"");
    near_free(text);
    assert_int_equal(near_remove(other.cache, near_key("k")), NEAR_OK);
    assert_int_equal(near_fence(in.client, 5000), NEAR_OK);
    text = near_explain(in.cache, near_key("k"));
    assert_has(text, "\"l1\":{\"present\":false},\"l2\":{\"answer\":\"absent\"}");
    assert_has(text, "\"by\":\"another instance's message\"");
    near_free(text);
    assert_null(near_explain(NULL, near_key("k")));
    assert_null(near_explain(in.cache, (near_bytes){ NULL, 3 }));
    close_instance(&in);
    close_instance(&other);
}

/* A decimal comma must not get in. */
static void
the_application_may_have_a_locale(void **state)
{
    struct world   *w = *state;
    struct instance in;
    char           *text;

    if (setlocale(LC_ALL, "de_DE.UTF-8") == NULL && setlocale(LC_ALL, "fr_FR.UTF-8") == NULL)
        print_message("no locale with a decimal comma is installed\n");
    OPEN(w, &in, "l1.max_entries", "1000");
    put_and_get(in.cache, "k", 1);
    text = text_of(in.client);
    near_free(text);
    close_instance(&in);
    setlocale(LC_ALL, "C");
}

/* Ghosts tell what more memory would bring: a loop over 3000 keys fits into twice the room, and not into this one. */
static void
the_curve_is_told(void **state)
{
    struct world   *w = *state;
    struct instance in;
    near_curve      curve = NEAR_CURVE_INIT;
    near_value     *value;
    char            key[32], *text;

    NEEDS(w);
    OPEN(w, &in, "l1.max_entries", "2000", "l1.policy", "lru", "l1.curve", "yes");
    assert_int_equal(near_curve_get(in.cache, &curve), NEAR_OK);
    assert_true(curve.share == 0);
    for (int round = 0; round < 10; round++)
        for (int i = 0; i < 3000; i++) {
            snprintf(key, sizeof(key), "k%d", i);
            if (near_get(in.cache, near_key(key), &value) == NEAR_OK)
                near_value_release(value);
            else
                assert_int_equal(near_put(in.cache, near_key(key), near_key("v"), NULL), NEAR_OK);
        }
    assert_int_equal(near_curve_get(in.cache, &curve), NEAR_OK);
    assert_true(curve.share > 0 && curve.entries > 1800 && curve.entries <= 2000);
    /* many requests at once: perhaps only some of the keys are followed, and that from a moment on */
    assert_true(curve.half < 0.1 && curve.same < 0.4 && curve.twice > 0.5 && curve.four_times > 0.5);
    text = text_of(in.client);
    assert_non_null(strstr(text, "nearcache_l1_hit_ratio{cache=\""));
    assert_non_null(strstr(text, ",memory=\"2x\"} 0."));
    near_free(text);
    text = near_stats_json(in.client);
    assert_is_json(text);
    assert_non_null(strstr(text, "\"curve\":{\"share\":"));
    near_free(text);
    close_instance(&in);
    OPEN(w, &in, "l1.curve", "no");
    assert_int_equal(near_curve_get(in.cache, &curve), NEAR_ERR_UNSUPPORTED);
    assert_int_equal(near_curve_get(NULL, &curve), NEAR_ERR_INVALID);
    assert_int_equal(near_curve_get(in.cache, NULL), NEAR_ERR_INVALID);
    text = near_stats_prometheus(in.client);
    assert_null(strstr(text, "hit_ratio"));
    near_free(text);
    close_instance(&in);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_are_found_again_within_two_percent),
        cmocka_unit_test(recorded_by_many_threads_nothing_is_lost),
        cmocka_unit_test(bounds_are_inclusive),
        cmocka_unit_test(the_reader_refuses_what_is_wrong),
        cmocka_unit_test(label_values_are_escaped),
        OVER(memory, the_text_is_openmetrics_and_counts_by_cache),
        OVER(redis, the_text_is_openmetrics_and_counts_by_cache),
        OVER(memory, contributed_files_name_what_there_is),
        OVER(memory, json_has_each_cache_and_its_times),
        OVER(redis, json_has_each_cache_and_its_times),
        OVER(memory, the_store_is_timed),
        OVER(redis, the_lag_is_measured_by_our_own_echo),
        OVER(redis, the_time_that_the_gate_was_closed_is_told),
        OVER(memory, hot_keys_are_found_among_many),
        OVER(memory, the_curve_is_told),
        OVER(redis, a_key_is_explained_on_every_level),
        OVER(memory, the_application_may_have_a_locale),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
