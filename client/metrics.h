/* What the texts of client/metrics.c are made of, for its tests and for the command's list of metrics. */
#ifndef NEAR_CLIENT_METRICS_H
#define NEAR_CLIENT_METRICS_H

#include "stats.h"

#include <stdio.h>

#define NEAR__METRIC_NAME_MAX 96

/* "nearcache_requests": the family's name, its unit at the end where that is one that OpenMetrics knows (bytes). */
void near__metric_name(const struct near__counter_row *row, char name[NEAR__METRIC_NAME_MAX]);
/* Its unit in OpenMetrics' sense; NULL: none. */
const char *near__metric_unit(const struct near__counter_row *row);
/* `text` as the value of a label, or (quotes false) as help: escaped by the rules of the format. */
void near__metric_escape(FILE *out, const char *text, bool quotes);

/* Text as a JSON string, quotes and all. */
void near__json_string(FILE *out, near_bytes text);

#endif
