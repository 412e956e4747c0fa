/* nearcache metrics: the tables of counters and histograms, for people, programs and the manual page. */
#include "command.h"

#include "curve.h"
#include "metrics.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

struct metric {
    char        name[NEAR__METRIC_NAME_MAX + 16]; /* of its samples */
    const char *kind, *unit, *field, *help;
    bool        whole;
};

enum form { PLAIN, JSON, MAN };

static struct metric
counter_metric(const struct near__counter_row *row)
{
    struct metric metric = {
        "", row->grows ? "counter" : "gauge", row->unit, row->name, row->help, row->whole
    };
    char name[NEAR__METRIC_NAME_MAX];

    near__metric_name(row, name);
    snprintf(metric.name, sizeof(metric.name), "%s%s", name, row->grows ? "_total" : "");
    return metric;
}

static struct metric
timing_metric(const struct near__timing_row *row)
{
    struct metric metric = { "", "histogram", "seconds", row->name, row->help, row->whole };

    snprintf(metric.name, sizeof(metric.name), "nearcache_%s_seconds", row->name);
    return metric;
}

static void
print_one(const struct metric *metric, enum form form, bool first)
{
    const char *of = metric->whole ? "the client" : "each cache";

    if (form == PLAIN) {
        printf("%s (%s, %s, of %s)\n    %s\n", metric->name, metric->kind, metric->unit, of, metric->help);
    } else if (form == MAN) {
        printf(".TP\n.B %s\n", metric->name);
        print_roff(metric->help);
        printf(".\n.br\nA %s, in %s, of %s; in JSON ", metric->kind, metric->unit, of);
        printf("\\fB%s\\fR.\n", metric->field);
    } else {
        printf("%s\n  { \"name\": \"%s\", \"field\": \"%s\", \"kind\": \"%s\", \"unit\": \"%s\", \"of\": "
               "\"%s\", \"help\": ",
               first ? "" : ",", metric->name, metric->field, metric->kind, metric->unit,
               metric->whole ? "client" : "cache");
        near__json_string(stdout, near_key(metric->help));
        fputs(" }", stdout);
    }
}

static void
man_head(void)
{
    printf(".TH NEARCACHE-METRICS 7 \"\" \"nearcache %s\" \"nearcache\"\n", near_version());
    fputs(".nh\n.ad l\n.SH NAME\nnearcache-metrics \\- what a nearcache client counts and measures\n"
          ".SH DESCRIPTION\n"
          "near_stats_get() fills a struct, near_stats_json() writes JSON, near_stats_prometheus() "
          "OpenMetrics text and\n"
          "near_stats_prometheus_text() the older text format of Prometheus, all with the fields below.\n"
          ".PP\n"
          "Samples of a cache carry its name in the label\n.BR cache ,\n"
          "those about L2 the backend's scheme in\n.BR backend ;\n"
          "keys are never shown. What closed caches had counted stands in samples without a cache's name.\n"
          ".PP\n"
          "Histograms are log\\-linear: a value that is read out differs from the one measured by at most "
          "1.6 %. Their\n"
          "bounds in the texts are powers of two nanoseconds. In JSON each has count, sum, mean, p50, p90, "
          "p99, p99_9 and\n"
          "max, in seconds.\n.SH METRICS\n",
          stdout);
}

static int
list(enum form form)
{
    static const struct metric curve = {
        NEAR__CURVE_METRIC, "gauge", "of 1", "curve", NEAR__CURVE_HELP, false
    };
    bool first = true;

    if (form == MAN)
        man_head();
    if (form == JSON)
        putchar('[');
    for (size_t i = 0; i < NEAR__COUNTERS; i++, first = false) {
        struct metric metric = counter_metric(&near__counter_rows[i]);

        print_one(&metric, form, first);
    }
    for (size_t i = 0; i < NEAR__TIMINGS; i++) {
        struct metric metric = timing_metric(&near__timing_rows[i]);

        print_one(&metric, form, false);
    }
    print_one(&curve, form, false);
    if (form == JSON)
        puts("\n]");
    if (form == MAN)
        puts(".SH SEE ALSO\n.BR nearcache (1)");
    return EXIT_DONE;
}

int
run_metrics(int argc, char **argv)
{
    const struct option *options = long_options("metrics");
    enum form            form    = PLAIN;
    bool                 listing = false;
    int                  c;

    optind = 0;
    while ((c = getopt_long(argc, argv, near__letters, options, NULL)) != -1)
        switch (c) {
        case 'l':
            listing = true;
            break;
        case 'j':
            form = JSON;
            break;
        case 'm':
            form = MAN;
            break;
        case 'h':
            return help_on("metrics");
        default:
            return misuse("metrics");
        }
    return listing && optind == argc ? list(form) : misuse("metrics");
}
