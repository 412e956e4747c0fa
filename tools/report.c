/* See report.h.  All numbers are printed in the C locale: the command never sets another. */
#include "report.h"

#include "command.h"

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

static void
premises(FILE *out, const struct study *study)
{
    fprintf(out,
            "Memory: %.0f bytes an entry beside index and policy, for values of %.0f bytes on average (%s).",
            study->block_bytes, study->value_bytes,
            study->sizes_known ? "as the trace says" : "assumed: --value-size");
    if (study->rate < 1)
        fprintf(out, " Estimated from a sample of %.3g %% of the keys.", 100 * study->rate);
    if (study->exact)
        fputs(" The policies by their definitions, not as in production.", out);
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
    const struct result *at = result_at(study, study->best_policy, study->knee);

    fputs("{\"trace\":[", out);
    for (size_t i = 0; i < study->n_files; i++) {
        if (i > 0)
            fputc(',', out);
        near__json_string(out, near_key(study->files[i]));
    }
    fprintf(out,
            "],\"requests\":%" PRIu64 ",\"keys\":%" PRIu64
            ",\"highest\":%.6f,\"rate\":%.6g,\"exact\":%s,\"block_bytes\":%.1f,"
            "\"value_bytes\":%.1f,\"value_bytes_assumed\":%s,\"read_seconds\":%.3f,\"seconds\":%.3f,"
            "\n\"results\":[",
            study->requests, study->keys, highest(study), study->rate, study->exact ? "true" : "false",
            study->block_bytes, study->value_bytes, study->sizes_known ? "false" : "true",
            study->read_seconds, study->seconds);
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

enum { WIDTH = 840, HEIGHT = 460, LEFT = 60, RIGHT = 130, TOP = 24, BOTTOM = 64 };

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

static double
y_of(double ratio)
{
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - ratio);
}

static void
axes(FILE *out, const struct study *study)
{
    char text[32];

    for (int percent = 0; percent <= 100; percent += 20)
        fprintf(out,
                "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%d %%</text>\n",
                LEFT, WIDTH - RIGHT, y_of(percent / 100.0), y_of(percent / 100.0), LEFT - 6,
                y_of(percent / 100.0) + 4, percent);
    for (size_t i = 0; i < study->n_sizes; i++) {
        double x = x_of(study, (double)study->sizes[i]);

        fprintf(out,
                "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#888\"/>"
                "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%zu</text>"
                "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\" fill=\"#777\">%s</text>\n",
                x, x, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 5, x, HEIGHT - BOTTOM + 20, study->sizes[i], x,
                HEIGHT - BOTTOM + 36, human_bytes(result_at(study, study->best_policy, i)->bytes, text));
    }
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">entries, and memory of L1</text>\n",
            LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8);
    fprintf(out,
            "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#999\" stroke-dasharray=\"3 4\"/>"
            "<text x=\"%d\" y=\"%.1f\" fill=\"#777\">highest possible</text>\n",
            LEFT, WIDTH - RIGHT, y_of(highest(study)), y_of(highest(study)), LEFT + 4,
            y_of(highest(study)) - 5);
}

static void
curve(FILE *out, const struct study *study, size_t policy)
{
    const char *colour = colours[policy % NEAR_COUNT_OF(colours)];

    fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", colour);
    for (size_t i = 0; i < study->n_sizes; i++)
        fprintf(out, "%s%.1f,%.1f", i > 0 ? " " : "", x_of(study, (double)study->sizes[i]),
                y_of(result_at(study, policy, i)->ratio));
    fputs("\"/>\n", out);
    for (size_t i = 0; i < study->n_sizes; i++) {
        const struct result *at = result_at(study, policy, i);

        fprintf(
            out,
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>%s, %zu: %.2f %%</title></circle>\n",
            x_of(study, (double)at->entries), y_of(at->ratio), colour, at->policy, at->entries,
            100 * at->ratio);
    }
    fprintf(out,
            "<rect x=\"%d\" y=\"%zu\" width=\"12\" height=\"12\" fill=\"%s\"/><text x=\"%d\" "
            "y=\"%zu\">%s</text>\n",
            WIDTH - RIGHT + 16, TOP + 20 * policy, colour, WIDTH - RIGHT + 34, TOP + 20 * policy + 11,
            study->policies[policy]);
}

static void
picture(FILE *out, const struct study *study)
{
    const struct result *knee = result_at(study, study->best_policy, study->knee);

    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"12\" role=\"img\" aria-label=\"hit ratio by size\">\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT, WIDTH, HEIGHT);
    axes(out, study);
    for (size_t i = 0; i < study->n_policies; i++)
        curve(out, study, i);
    fprintf(out,
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"8\" fill=\"none\" stroke=\"#000\" stroke-width=\"1.5\"/>"
            "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" font-weight=\"bold\">knee</text>\n</svg>\n",
            x_of(study, (double)knee->entries), y_of(knee->ratio), x_of(study, (double)knee->entries),
            y_of(knee->ratio) + 24);
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
    char text[32];

    fputs("<table><thead><tr><th>entries</th><th>memory</th>", out);
    for (size_t p = 0; p < study->n_policies; p++)
        fprintf(out, "<th>%s</th>", study->policies[p]);
    fputs("</tr></thead><tbody>\n", out);
    for (size_t s = 0; s < study->n_sizes; s++) {
        fprintf(out, "<tr%s><td>%zu</td><td>%s</td>", s == study->knee ? " class=\"knee\"" : "",
                study->sizes[s], human_bytes(result_at(study, study->best_policy, s)->bytes, text));
        for (size_t p = 0; p < study->n_policies; p++)
            fprintf(out, "<td>%.2f</td>", 100 * result_at(study, p, s)->ratio);
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table>\n", out);
}

void
report_html(FILE *out, const struct study *study)
{
    fputs(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Hit ratio by size</title>\n"
        "<style>body{font:15px/1.5 sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}"
        "table{border-collapse:collapse}td,th{text-align:right;padding:.2em .8em;border-bottom:1px solid "
        "#ddd}"
        ".knee{background:#fff4d6;font-weight:bold}.advice{background:#eef5fb;padding:.8em 1em}"
        "svg{max-width:100%;height:auto}</style></head><body>\n<h1>Hit ratio by size</h1>\n<p>",
        out);
    for (size_t i = 0; i < study->n_files; i++) {
        fputs(i > 0 ? ", " : "", out);
        html_text(out, study->files[i]);
    }
    fprintf(out, ": %" PRIu64 " requests for %s%" PRIu64 " keys; highest possible ratio %.2f %%.</p>\n",
            study->requests, study->rate < 1 ? "about " : "", study->keys, 100 * highest(study));
    fputs("<p class=\"advice\">", out);
    advice(out, study);
    fputs("</p>\n", out);
    picture(out, study);
    fputs("<h2>In percent of requests</h2>\n", out);
    html_table(out, study);
    fputs("<p>", out);
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
