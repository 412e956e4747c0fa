/*
 * nearcache journal: what the files of a journal hold, whether they are whole, and getting out of damaged ones what can be had.
 *
 * inspect and verify read without the lock and change nothing.  Two passes: the first finds what is not done, the second says what that
 * is.  Values are never shown.
 */
#include "command.h"

#include "journal_file.h"

#include "base/le.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CACHES = 256, KINDS = 3 };

struct tally {
    char     name[NEAR__RECORD_CACHE_MAX + 1];
    uint64_t kinds[KINDS + 1]; /* PUT, ERASE, INTENT: from 1 */
    uint64_t bytes;
};

struct view {
    const char              *path;
    struct near__journal_dir dir;
    struct near__scan_report report;
    struct near__index       index;
    struct near__segment    *segments; /* the index points at them; newest first */
    struct tally             caches[CACHES];
    size_t                   cache_count;
    bool                     records, json, first;
    near_error               error;
};

static const char *const kind_names[] = { "", "put", "erase", "intent" };

/* ---- output */

/* Any bytes, in one line and in quotes: what JSON takes, and people can read. */
static void
print_text(near_bytes text)
{
    const unsigned char *at = text.data;

    putchar('"');
    for (size_t i = 0; i < text.size; i++)
        if (at[i] < ' ' || at[i] > '~')
            printf("\\u%04x", at[i]);
        else
            printf("%s%c", at[i] == '"' || at[i] == '\\' ? "\\" : "", at[i]);
    putchar('"');
}

static void
print_record(struct view *view, const struct near__record_view *record, const char *state)
{
    if (view->json) {
        printf("%s\n    { \"sequence\": %" PRIu64 ", \"kind\": \"%s\", \"state\": \"%s\", \"cache\": ",
               view->first ? "" : ",", record->sequence, kind_names[record->record.kind], state);
        print_text(record->record.cache);
        printf(", \"key\": ");
        print_text(record->record.key);
        printf(", \"bytes\": %zu", record->record.data.size);
        if (record->status != NEAR_OK)
            printf(", \"status\": %d", record->status);
        printf(" }");
    } else {
        printf("%-6s %-6s %20" PRIu64 " ", state, kind_names[record->record.kind], record->sequence);
        print_text(record->record.cache);
        putchar(' ');
        print_text(record->record.key);
        printf(" %zu bytes%s%s\n", record->record.data.size, record->status != NEAR_OK ? ": " : "",
               record->status != NEAR_OK ? near_status_text(record->status) : "");
    }
    view->first = false;
}

static void
print_summary(const struct view *view)
{
    const struct near__scan_report *report = &view->report;

    printf("directory   %s\norigin      %016" PRIx64 "\n", view->path, report->origin);
    printf("segments    %" PRIu64 ", %" PRIu64 " bytes\n", report->segments, report->bytes);
    printf("records     %" PRIu64 ", of which %" PRIu64 " are not done\n", report->records, view->index.live);
    for (size_t i = 0; i < view->cache_count; i++)
        printf("cache       %s: %" PRIu64 " puts, %" PRIu64 " erases, %" PRIu64 " intents, %" PRIu64
               " bytes\n",
               view->caches[i].name, view->caches[i].kinds[NEAR__JOURNAL_PUT],
               view->caches[i].kinds[NEAR__JOURNAL_ERASE], view->caches[i].kinds[NEAR__JOURNAL_INTENT],
               view->caches[i].bytes);
    printf("dead        %" PRIu64 " letters, %" PRIu64 " bytes\n", report->dead_letters, report->dead_bytes);
    if (report->cut_bytes > 0)
        printf("end         torn: %" PRIu64 " bytes will be left out\n", report->cut_bytes);
    else
        printf("end         %s\n", report->origin == 0 ? "no journal yet"
                                   : report->clean     ? "closed"
                                                       : "not closed");
    if (report->gaps > 0)
        printf("damage      %" PRIu64 " places, the first: %s\n", report->gaps, report->damage);
}

static void
print_json_summary(const struct view *view)
{
    const struct near__scan_report *report = &view->report;

    printf(",\n  \"origin\": \"%016" PRIx64 "\", \"segments\": %" PRIu64 ", \"bytes\": %" PRIu64
           ", \"records\": %" PRIu64 ", \"not_done\": %" PRIu64 ",\n  \"dead_letters\": %" PRIu64
           ", \"dead_bytes\": %" PRIu64 ", \"closed\": %s, \"torn_bytes\": %" PRIu64
           ",\n  \"damaged_places\": %" PRIu64 ", \"damage\": ",
           report->origin, report->segments, report->bytes, report->records, view->index.live,
           report->dead_letters, report->dead_bytes, report->clean ? "true" : "false", report->cut_bytes,
           report->gaps);
    print_text(near_key(report->damage));
    printf(",\n  \"caches\": [");
    for (size_t i = 0; i < view->cache_count; i++) {
        printf("%s\n    { \"name\": ", i > 0 ? "," : "");
        print_text(near_key(view->caches[i].name));
        printf(", \"puts\": %" PRIu64 ", \"erases\": %" PRIu64 ", \"intents\": %" PRIu64
               ", \"bytes\": %" PRIu64 " }",
               view->caches[i].kinds[NEAR__JOURNAL_PUT], view->caches[i].kinds[NEAR__JOURNAL_ERASE],
               view->caches[i].kinds[NEAR__JOURNAL_INTENT], view->caches[i].bytes);
    }
    printf("%s]\n}\n", view->cache_count > 0 ? "\n  " : "");
}

/* ---- the passes */

static near_status
note_segment(void *ctx, const struct near__scan_segment *found, bool begun)
{
    struct view          *view    = ctx;
    struct near__segment *segment = begun ? calloc(1, sizeof(*segment)) : NULL;

    if (!begun)
        return NEAR_OK;
    if (segment == NULL)
        return NEAR_ERR_NOMEM;
    segment->id    = found->header.segment;
    segment->next  = view->segments;
    view->segments = segment;
    return NEAR_OK;
}

static near_status
note_record(void *ctx, const struct near__scan_segment *segment, const struct near__record_view *record,
            uint32_t at)
{
    struct view *view = ctx;

    (void)segment;
    return near__scan_index(&view->index, record, view->segments, at);
}

static struct tally *
tally_of(struct view *view, near_bytes cache)
{
    for (size_t i = 0; i < view->cache_count; i++)
        if (near__bytes_equal(near_key(view->caches[i].name), cache))
            return &view->caches[i];
    if (view->cache_count == CACHES)
        return NULL; /* no program has as many; the sum is right all the same */
    memcpy(view->caches[view->cache_count].name, cache.data, cache.size);
    return &view->caches[view->cache_count++];
}

static near_status
count_record(void *ctx, const struct near__scan_segment *segment, const struct near__record_view *record,
             uint32_t at)
{
    struct view                    *view = ctx;
    const struct near__index_place *place;
    struct tally                   *tally;

    if ((unsigned)record->record.kind > KINDS)
        return NEAR_OK;
    place = near__index_find(&view->index, record->sequence);
    if (place == NULL || place->at != at || place->segment->id != segment->header.segment)
        return NEAR_OK;
    tally = tally_of(view, record->record.cache);
    if (tally != NULL) {
        tally->kinds[record->record.kind]++;
        tally->bytes += record->size;
    }
    if (view->records)
        print_record(view, record, "live");
    return NEAR_OK;
}

static near_status
show_dead(void *ctx, const struct near__record_view *record)
{
    struct view *view = ctx;

    if (view->records && (unsigned)record->record.kind <= KINDS)
        print_record(view, record, "dead");
    return NEAR_OK;
}

static near_status
look(struct view *view)
{
    const struct near__scan_visitor first  = { note_segment, note_record, NULL, NULL, NULL, view };
    const struct near__scan_visitor second = { NULL, count_record, show_dead, NULL, NULL, view };
    near_status status = near__journal_scan(&view->dir, true, &first, &view->report, &view->error);

    return status == NEAR_OK ? near__journal_scan(&view->dir, true, &second, &view->report, &view->error)
                             : status;
}

static int
view_enter(struct view *view, const char *path)
{
    view->path = path;
    if (near__journal_dir_open(&view->dir, &near__disk_system, path, false, &view->error) != NEAR_OK)
        return complain(EXIT_TROUBLE, "%s", view->error.text);
    return EXIT_DONE;
}

static int
view_leave(struct view *view, int status)
{
    for (struct near__segment *segment = view->segments, *next; segment != NULL; segment = next) {
        next = segment->next;
        free(segment);
    }
    near__index_fini(&view->index);
    if (view->dir.fd >= 0)
        near__disk_system.close(NULL, view->dir.fd);
    return status;
}

/* ---- the commands */

static int
inspect(struct view *view)
{
    view->first = true;
    if (view->json) {
        printf("{ \"directory\": ");
        print_text(near_key(view->path));
        if (view->records)
            printf(",\n  \"list\": [");
    }
    if (look(view) != NEAR_OK)
        return complain(EXIT_TROUBLE, "%s", view->error.text);
    if (view->json && view->records)
        printf("\n  ]");
    if (view->json)
        print_json_summary(view);
    else
        print_summary(view);
    return view->report.gaps > 0 ? EXIT_TROUBLE : EXIT_DONE;
}

static int
verify(struct view *view)
{
    if (look(view) != NEAR_OK)
        return complain(EXIT_TROUBLE, "%s", view->error.text);
    if (view->report.gaps > 0)
        return complain(EXIT_TROUBLE, "journal %s: %" PRIu64 " damaged places, the first: %s", view->path,
                        view->report.gaps, view->report.damage);
    printf("whole: %" PRIu64 " records in %" PRIu64 " segments, %" PRIu64 " not done", view->report.records,
           view->report.segments, view->index.live);
    if (view->report.cut_bytes > 0)
        printf("; a torn end of %" PRIu64 " bytes, as a crash leaves it", view->report.cut_bytes);
    putchar('\n');
    return EXIT_DONE;
}

static int
salvage(struct view *view)
{
    struct near__journal_options options = { .directory = view->path, .salvage = true, .manual = true };
    struct near__journal_state   state;
    struct near__journal        *journal;

    if (look(view) != NEAR_OK)
        return complain(EXIT_TROUBLE, "%s", view->error.text);
    if (view->report.gaps == 0) {
        printf("nothing to do: the journal is whole\n");
        return EXIT_DONE;
    }
    if (near__journal_open(&journal, &options, &view->error) != NEAR_OK)
        return complain(EXIT_TROUBLE, "%s", view->error.text);
    near__journal_state(journal, &state);
    if (near__journal_close(journal, &view->error) != NEAR_OK)
        return complain(EXIT_TROUBLE, "%s", view->error.text);
    printf("%" PRIu64 " records that are not done were saved; %" PRIu64 " damaged places, the first: %s\n"
           "The damaged files are kept beside, as *.bad.\n",
           state.recovered, state.salvaged_gaps, view->report.damage);
    return EXIT_DONE;
}

int
run_journal(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(struct view *view);
    } verbs[]                    = { { "inspect", inspect }, { "verify", verify }, { "salvage", salvage } };
    const struct option *options = long_options("journal");
    static struct view   view; /* large */
    int                  option, status;

    view.dir.fd = -1;
    while ((option = getopt_long(argc, argv, near__letters, options, NULL)) != -1) {
        if (option == 'h')
            return help_on(argv[0]);
        if (option == '?')
            return misuse(argv[0]);
        view.json    = view.json || option == 'j';
        view.records = view.records || option == 'r';
    }
    if (argc - optind != 2)
        return misuse(argv[0]);
    for (size_t i = 0; i < NEAR_COUNT_OF(verbs); i++) {
        if (strcmp(argv[optind], verbs[i].name) != 0)
            continue;
        if ((view.json || view.records) && verbs[i].run != inspect)
            return misuse(argv[0]);
        status = view_enter(&view, argv[optind + 1]);
        return view_leave(&view, status == EXIT_DONE ? verbs[i].run(&view) : status);
    }
    return misuse(argv[0]);
}
