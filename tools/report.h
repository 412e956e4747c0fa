/* What a simulation found, and the forms in which it is told. */
#ifndef NEAR_TOOLS_REPORT_H
#define NEAR_TOOLS_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct result {
    const char *policy;
    size_t      entries; /* capacity */
    double      ratio;   /* of hits to requests, 0 to 1 */
    uint64_t    hits;    /* counted; of a sample: estimated for the whole */
    double      bytes;   /* of L1 at this size, overhead included */
};

struct study {
    char *const *files;
    size_t       n_files;
    uint64_t     requests, keys; /* keys of a sampled study: estimated */
    double       rate;           /* of the sample; 1: all */
    bool         exact;
    double       block_bytes;   /* of an average entry in L1's memory, without index and policy */
    double       value_bytes;   /* average value */
    bool         sizes_known;   /* out of the trace; else assumed ... */
    bool         sizes_learned; /* ... or what the writes in captures had */
    bool         whole;         /* a sample was asked for, and not worth while */
    const struct trace_captures *captures;
    double                       read_seconds, seconds;
    size_t                       n_policies, n_sizes;
    const char                  *policies[16];
    size_t                      *sizes;   /* entries, growing */
    struct result               *results; /* by policy, then size */
    /* the advice: indices */
    size_t best_policy, knee;
};

static inline struct result *
result_at(const struct study *study, size_t policy, size_t size)
{
    return &study->results[policy * study->n_sizes + size];
}

/* Which policy, and from which size on more memory brings little. */
void study_judge(struct study *study);

void report_table(FILE *out, const struct study *study);
void report_json(FILE *out, const struct study *study);
void report_svg(FILE *out, const struct study *study);
void report_html(FILE *out, const struct study *study);

/* Write beside `path` and rename: nothing is left behind on a failure.  False after complaining. */
bool report_file(const char *path, void (*write)(FILE *, const struct study *), const struct study *study);

#endif
