/* See report.h.  All numbers are printed in the C locale: the command never sets another. */
#include "report.h"

#include "command.h"
#include "streams.h"
#include "trace.h"

#include "metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WORTH 0.01 /* a policy or a doubling of memory that brings less than a point is not worth a change */

/* ---- advice */

static double
mean_ratio(const struct study *study, size_t policy)
{
    double sum = 0;

    for (size_t i = 0; i < study->n_sizes; i++)
        sum += result_at(study, policy, i)->ratio;
    return sum / (double)study->n_sizes;
}

/* The ratio at a size between those that were run: straight between them, by the logarithm of the size. */
static double
ratio_at(const struct study *study, size_t policy, double entries)
{
    size_t i = 0;

    while (i + 1 < study->n_sizes && (double)study->sizes[i + 1] < entries)
        i++;
    if (i + 1 >= study->n_sizes || entries <= (double)study->sizes[i])
        return result_at(study, policy, entries <= (double)study->sizes[i] ? i : study->n_sizes - 1)->ratio;
    return result_at(study, policy, i)->ratio +
           (result_at(study, policy, i + 1)->ratio - result_at(study, policy, i)->ratio) *
               log(entries / (double)study->sizes[i]) /
               log((double)study->sizes[i + 1] / (double)study->sizes[i]);
}

/* The default policy, unless another one is better by a point on average.  The knee: the smallest size from which no doubling brings a
 * point; if the largest one is not enough for that, the largest. */
void
study_judge(struct study *study)
{
    study->best_policy = 0;
    for (size_t i = 1; i < study->n_policies; i++)
        if (mean_ratio(study, i) > mean_ratio(study, study->best_policy))
            study->best_policy = i;
    for (size_t i = 0; i < study->n_policies; i++)
        if (strcmp(study->policies[i], "adaptive") == 0 &&
            mean_ratio(study, study->best_policy) - mean_ratio(study, i) < WORTH)
            study->best_policy = i;
    study->knee = study->n_sizes - 1;
    while (study->knee > 0) {
        double entries = (double)study->sizes[study->knee - 1];

        if (ratio_at(study, study->best_policy, 2 * entries) - ratio_at(study, study->best_policy, entries) >=
            WORTH)
            break;
        study->knee--;
    }
}

/* ---- numbers for people */

static const char *
human_bytes(double bytes, char text[32])
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };
    int                      unit    = 0;

    while (bytes >= 1023.5 && unit < 4) {
        bytes /= 1024;
        unit++;
    }
    snprintf(text, 32, bytes < 9.95 && unit > 0 ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}

/* What l1.max_bytes takes. */
static const char *
setting_bytes(double bytes, char text[32])
{
    if (bytes >= 1 << 30)
        snprintf(text, 32, "%.0fMiB", ceil(bytes / (1 << 20)));
    else
        snprintf(text, 32, "%.0fKiB", ceil(bytes / 1024));
    return text;
}

static double
highest(const struct study *study)
{
    return study->requests == 0 ? 0 : 1 - (double)study->keys / (double)study->requests;
}

/* Whether twice the knee is known to bring less than a point. */
static bool
is_enough(const struct study *study)
{
    return study->knee + 1 < study->n_sizes ||
           highest(study) - result_at(study, study->best_policy, study->knee)->ratio < WORTH;
}

static void
advice(FILE *out, const struct study *study)
{
    const struct result *at = result_at(study, study->best_policy, study->knee);
    char                 bytes[32], setting[32];

    fprintf(out, "%.2f %% hits with l1.policy = %s and room for %zu entries, %s: l1.max_bytes = %s.",
            100 * at->ratio, at->policy, at->entries, human_bytes(at->bytes, bytes),
            setting_bytes(at->bytes, setting));
    if (is_enough(study))
        fputs(" Twice that brings less than a point.", out);
    else
        fputs(" More would still bring something: try larger sizes.", out);
}

static const char *
value_source(const struct study *study)
{
    return study->sizes_known     ? "as the trace says"
           : study->sizes_learned ? "as the writes in it have"
                                  : "assumed: --value-size";
}

/* What captured packets were worth. */
static void
captured(FILE *out, const struct study *study)
{
    const struct streams_counts *counts = study->captures->streams;

    if (study->captures->files == 0)
        return;
    fprintf(out, " Captured: %" PRIu64 " packets, %" PRIu64 " streams to a server, %" PRIu64 " commands.",
            counts->packets, counts->streams, counts->commands);
    if (counts->resyncs > 0 || counts->lost > 0)
        fprintf(out,
                " %" PRIu64 " bytes are missing in it; %" PRIu64
                " times something was passed over up to the next command.",
                counts->lost, counts->resyncs);
}

static void
premises(FILE *out, const struct study *study)
{
    fprintf(out,
            "Memory: %.0f bytes an entry beside index and policy, for values of %.0f bytes on average (%s).",
            study->block_bytes, study->value_bytes, value_source(study));
    if (study->whole)
        fputs(" Not sampled: of so few keys a sample would be no good, so all of them were looked at.", out);
    if (study->rate < 1)
        fprintf(out, " Estimated from a sample of %.3g %% of the keys.", 100 * study->rate);
    if (study->exact)
        fputs(" The policies by their definitions, not as in production.", out);
    captured(out, study);
}

/* ---- table */

void
report_table(FILE *out, const struct study *study)
{
    char text[32];

    fprintf(out, "%" PRIu64 " requests, %s%" PRIu64 " keys, highest possible %.2f %%\n", study->requests,
            study->rate < 1 ? "about " : "", study->keys, 100 * highest(study));
    fprintf(out, "%10s %9s", "entries", "memory");
    for (size_t p = 0; p < study->n_policies; p++)
        fprintf(out, " %9s", study->policies[p]);
    fputc('\n', out);
    for (size_t s = 0; s < study->n_sizes; s++) {
        fprintf(out, "%10zu %9s", study->sizes[s],
                human_bytes(result_at(study, study->best_policy, s)->bytes, text));
        for (size_t p = 0; p < study->n_policies; p++)
            fprintf(out, " %9.2f", 100 * result_at(study, p, s)->ratio);
        fprintf(out, "%s\n", s == study->knee ? "  <- knee" : "");
    }
    advice(out, study);
    fputc('\n', out);
    premises(out, study);
    fprintf(out, "\nRead in %.2f s, simulated in %.2f s.\n", study->read_seconds, study->seconds);
}

/* ---- JSON */

void
report_json(FILE *out, const struct study *study)
{
    const struct result         *at     = result_at(study, study->best_policy, study->knee);
    const struct streams_counts *counts = study->captures->streams;

    fputs("{\"trace\":[", out);
    for (size_t i = 0; i < study->n_files; i++) {
        if (i > 0)
            fputc(',', out);
        near__json_string(out, near_key(study->files[i]));
    }
    fprintf(out,
            "],\"requests\":%" PRIu64 ",\"keys\":%" PRIu64
            ",\"highest\":%.6f,\"rate\":%.6g,\"exact\":%s,\"block_bytes\":%.1f,"
            "\"value_bytes\":%.1f,\"value_bytes_assumed\":%s,\"read_seconds\":%.3f,\"seconds\":%.3f,",
            study->requests, study->keys, highest(study), study->rate, study->exact ? "true" : "false",
            study->block_bytes, study->value_bytes,
            study->sizes_known || study->sizes_learned ? "false" : "true", study->read_seconds,
            study->seconds);
    if (study->captures->files > 0)
        fprintf(out,
                "\"captured\":{\"packets\":%" PRIu64 ",\"tcp\":%" PRIu64 ",\"streams\":%" PRIu64
                ",\"commands\":%" PRIu64 ",\"again\":%" PRIu64 ",\"reordered\":%" PRIu64
                ",\"lost_bytes\":%" PRIu64 ",\"resyncs\":%" PRIu64 ",\"fragments\":%" PRIu64 "},",
                counts->packets, counts->tcp, counts->streams, counts->commands, counts->again,
                counts->reordered, counts->lost, counts->resyncs, counts->fragments);
    fputs("\n\"results\":[", out);
    for (size_t i = 0; i < study->n_policies * study->n_sizes; i++)
        fprintf(out,
                "%s\n{\"policy\":\"%s\",\"entries\":%zu,\"bytes\":%.0f,\"hits\":%" PRIu64 ",\"ratio\":%.6f}",
                i > 0 ? "," : "", study->results[i].policy, study->results[i].entries,
                study->results[i].bytes, study->results[i].hits, study->results[i].ratio);
    fprintf(
        out,
        "],\n\"advice\":{\"policy\":\"%s\",\"entries\":%zu,\"bytes\":%.0f,\"ratio\":%.6f,\"enough\":%s}}\n",
        at->policy, at->entries, at->bytes, at->ratio, is_enough(study) ? "true" : "false");
}

/* ---- the picture */

enum { WIDTH = 860, HEIGHT = 470, LEFT = 74, RIGHT = 130, TOP = 24, BOTTOM = 70 };

static const char *const colours[] = { "#1b6ca8", "#d1495b", "#3c9d5d", "#edae49",
                                       "#7b4fa3", "#00798c", "#8d5a2b", "#444444" };

static double
x_of(const struct study *study, double entries)
{
    double first = log((double)study->sizes[0]), last = log((double)study->sizes[study->n_sizes - 1]);

    if (last <= first)
        return LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
    return LEFT + (WIDTH - LEFT - RIGHT) * (log(entries) - first) / (last - first);
}

/* The axis shows the tens of percents that there are: curves that lie close together are told apart. */
struct span {
    int from, to; /* percent */
};

static struct span
span_of(const struct study *study)
{
    double least = highest(study), most = highest(study);

    for (size_t i = 0; i < study->n_policies * study->n_sizes; i++) {
        least = fmin(least, study->results[i].ratio);
        most  = fmax(most, study->results[i].ratio);
    }
    return (struct span){ .from = 10 * (int)floor(fmax(least, 0) * 9.999),
                          .to   = 10 * (int)ceil(fmin(most, 1) * 10) };
}

static double
y_of(const struct study *study, double ratio)
{
    struct span span = span_of(study);

    return TOP + (HEIGHT - TOP - BOTTOM) * (span.to - 100 * ratio) /
                     (span.to - span.from > 0 ? span.to - span.from : 1);
}

/* 13 756: with thin spaces between thousands (as an entity, for both formats). */
static const char *
grouped(size_t n, char text[64])
{
    char  digits[32];
    char *at   = text;
    int   left = snprintf(digits, sizeof(digits), "%zu", n);

    for (const char *from = digits; left > 0; left--) {
        *at++ = *from++;
        if (left > 1 && left % 3 == 1)
            at += sprintf(at, "&#8201;");
    }
    *at = '\0';
    return text;
}

static void
axes(FILE *out, const struct study *study)
{
    enum { LABEL = 58 }; /* pixels that the names of a size need */
    char        text[32], number[64];
    struct span span   = span_of(study);
    double      before = -LABEL, last = x_of(study, (double)study->sizes[study->n_sizes - 1]);

    for (int percent = span.from; percent <= span.to; percent += span.to - span.from > 50 ? 20 : 10)
        fprintf(out,
                "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%d %%</text>\n",
                LEFT, WIDTH - RIGHT, y_of(study, percent / 100.0), y_of(study, percent / 100.0), LEFT - 6,
                y_of(study, percent / 100.0) + 4, percent);
    for (size_t i = 0; i < study->n_sizes; i++) {
        double x = x_of(study, (double)study->sizes[i]);

        fprintf(out, "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#888\"/>\n", x, x,
                HEIGHT - BOTTOM, HEIGHT - BOTTOM + 5);
        if (i + 1 < study->n_sizes && (x < before + LABEL || x > last - LABEL))
            continue; /* no room for what it is called */
        before = x;
        fprintf(out,
                "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>"
                "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\" fill=\"#666\">%s</text>\n",
                x, HEIGHT - BOTTOM + 20, grouped(study->sizes[i], number), x, HEIGHT - BOTTOM + 36,
                human_bytes(result_at(study, study->best_policy, i)->bytes, text));
    }
    fprintf(out,
            "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">room in L1: entries, and the memory they take "
            "(each step "
            "to the right multiplies)</text>\n",
            LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 10);
    fprintf(out,
            "<text x=\"16\" y=\"%d\" text-anchor=\"middle\" transform=\"rotate(-90 16 %d)\">requests that L1 "
            "answers</text>\n",
            TOP + (HEIGHT - TOP - BOTTOM) / 2, TOP + (HEIGHT - TOP - BOTTOM) / 2);
    fprintf(out,
            "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#777\" stroke-dasharray=\"3 4\"/>"
            "<text x=\"%d\" y=\"%.1f\" fill=\"#666\">highest possible: %.2f %%</text>\n",
            LEFT, WIDTH - RIGHT, y_of(study, highest(study)), y_of(study, highest(study)), LEFT + 4,
            y_of(study, highest(study)) - 5, 100 * highest(study));
}

static void
curve(FILE *out, const struct study *study, size_t policy)
{
    const char *colour = colours[policy % NEAR_COUNT_OF(colours)];
    bool        chosen = policy == study->best_policy;

    fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" points=\"", colour,
            chosen ? "3.5" : "1.5");
    for (size_t i = 0; i < study->n_sizes; i++)
        fprintf(out, "%s%.1f,%.1f", i > 0 ? " " : "", x_of(study, (double)study->sizes[i]),
                y_of(study, result_at(study, policy, i)->ratio));
    fputs("\"/>\n", out);
    for (size_t i = 0; i < study->n_sizes; i++) {
        const struct result *at = result_at(study, policy, i);

        fprintf(
            out,
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>%s, %zu: %.2f %%</title></circle>\n",
            x_of(study, (double)at->entries), y_of(study, at->ratio), colour, at->policy, at->entries,
            100 * at->ratio);
    }
    fprintf(out,
            "<rect x=\"%d\" y=\"%zu\" width=\"12\" height=\"12\" fill=\"%s\"/><text x=\"%d\" "
            "y=\"%zu\"%s>%s</text>\n",
            WIDTH - RIGHT + 16, TOP + 20 * policy, colour, WIDTH - RIGHT + 34, TOP + 20 * policy + 11,
            chosen ? " font-weight=\"bold\"" : "", study->policies[policy]);
}

static void
picture(FILE *out, const struct study *study)
{
    const struct result *knee = result_at(study, study->best_policy, study->knee);
    char                 text[32];

    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"hit ratio by size\">\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT, WIDTH, HEIGHT);
    axes(out, study);
    fprintf(
        out,
        "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%d\" stroke=\"#000\" stroke-dasharray=\"2 3\"/>\n",
        x_of(study, (double)knee->entries), x_of(study, (double)knee->entries), y_of(study, knee->ratio),
        HEIGHT - BOTTOM);
    for (size_t i = 0; i < study->n_policies; i++)
        if (i != study->best_policy)
            curve(out, study, i);
    curve(out, study, study->best_policy); /* on top */
    fprintf(out,
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"8\" fill=\"none\" stroke=\"#000\" stroke-width=\"1.5\"/>"
            "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-weight=\"bold\">knee: %.1f %% with "
            "%s</text>\n</svg>\n",
            x_of(study, (double)knee->entries), y_of(study, knee->ratio),
            x_of(study, (double)knee->entries) + (study->knee * 2 > study->n_sizes ? -8 : 8),
            (double)(HEIGHT - BOTTOM - 8), study->knee * 2 > study->n_sizes ? "end" : "start",
            100 * knee->ratio, human_bytes(knee->bytes, text));
}

void
report_svg(FILE *out, const struct study *study)
{
    fputs("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n", out);
    picture(out, study);
}

static void
html_text(FILE *out, const char *text)
{
    for (; *text != '\0'; text++)
        switch (*text) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc(*text, out);
        }
}

static void
html_table(FILE *out, const struct study *study)
{
    char text[32], number[64];

    fputs("<table><thead><tr><th>entries</th><th>memory</th>", out);
    for (size_t p = 0; p < study->n_policies; p++)
        fprintf(out, "<th>%s</th>", study->policies[p]);
    fputs("<th></th></tr></thead><tbody>\n", out);
    for (size_t s = 0; s < study->n_sizes; s++) {
        double best = 0;

        for (size_t p = 0; p < study->n_policies; p++)
            best = fmax(best, result_at(study, p, s)->ratio);
        fprintf(out, "<tr%s><td>%s</td><td>%s</td>", s == study->knee ? " class=\"knee\"" : "",
                grouped(study->sizes[s], number),
                human_bytes(result_at(study, study->best_policy, s)->bytes, text));
        for (size_t p = 0; p < study->n_policies; p++)
            fprintf(out, "<td%s>%.2f</td>",
                    result_at(study, p, s)->ratio >= best - 0.0005 ? " class=\"best\"" : "",
                    100 * result_at(study, p, s)->ratio);
        fprintf(out, "<td>%s</td></tr>\n", s == study->knee ? "&#9664; knee" : "");
    }
    fputs("</tbody></table>\n", out);
}

void
report_html(FILE *out, const struct study *study)
{
    const struct result *at = result_at(study, study->best_policy, study->knee);
    char                 setting[32], number[64], keys[64];

    fputs(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Hit ratio by size</title>\n"
        "<style>body{font:15px/1.5 sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse}td,th{text-align:right;padding:.2em .8em;border-bottom:1px solid "
        "#ddd}"
        ".knee{background:#fff4d6}.best{font-weight:bold}td{font-variant-numeric:tabular-nums}"
        "pre{background:#f4f4f4;padding:.8em "
        "1em;overflow:auto}.note{color:#555}.advice{background:#eef5fb;padding:.8em 1em}"
        "svg{max-width:100%;height:auto}</style></head><body>\n<h1>Hit ratio by size</h1>\n<p>",
        out);
    for (size_t i = 0; i < study->n_files; i++) {
        fputs(i > 0 ? ", " : "", out);
        html_text(out, study->files[i]);
    }
    fprintf(out, ": %s requests for %s%s keys; highest possible ratio %.2f %%.</p>\n",
            grouped(study->requests, number), study->rate < 1 ? "about " : "", grouped(study->keys, keys),
            100 * highest(study));
    fputs("<p class=\"advice\">", out);
    advice(out, study);
    fprintf(out, "</p>\n<pre>l1.policy    = %s\nl1.max_bytes = %s</pre>\n", at->policy,
            setting_bytes(at->bytes, setting));
    picture(out, study);
    fputs("<h2>Hits in percent of all requests</h2>\n", out);
    html_table(out, study);
    fputs("<p class=\"note\">Bold: the best policy of a size, give or take 0.05 points. Knee: the smallest "
          "size of which twice "
          "as much brings less than a point. The memory stated is that of the policy advised, and is what "
          "l1.max_bytes bounds.</p>\n<p class=\"note\">",
          out);
    premises(out, study);
    fputs("</p>\n</body></html>\n", out);
}

/* ---- files */

bool
report_file(const char *path, void (*write)(FILE *, const struct study *), const struct study *study)
{
    size_t size   = strlen(path) + 8;
    char  *beside = malloc(size);
    FILE  *out    = NULL;
    bool   ok     = false;
    int    fd;

    if (beside == NULL) {
        complain(EXIT_TROUBLE, "out of memory");
        return false;
    }
    snprintf(beside, size, "%s.XXXXXX", path);
    fd = mkstemp(beside);
    if (fd >= 0)
        out = fdopen(fd, "w");
    if (out != NULL) {
        mode_t mask = umask(0);

        umask(mask);
        write(out, study);
        ok = fflush(out) == 0 && !ferror(out) && fchmod(fd, 0666 & ~mask) == 0;
        ok = fclose(out) == 0 && ok && rename(beside, path) == 0;
    } else if (fd >= 0) {
        close(fd);
    }
    if (!ok) {
        complain(EXIT_TROUBLE, "%s: %s", path, strerror(errno));
        if (fd >= 0)
            unlink(beside);
    }
    free(beside);
    return ok;
}
