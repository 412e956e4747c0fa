/* nearcache config: the option table for people, programs and manual pages; and checking a file against it. */
#include "command.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const type_names[] = {
    [NEAR__SIZE] = "size",       [NEAR__COUNT] = "number",  [NEAR__DURATION] = "duration",
    [NEAR__DECIMAL] = "decimal", [NEAR__CHOICE] = "choice", [NEAR__TEXT] = "text",
};
static const char *const scope_names[] = { "client", "cache" };

struct row {
    const struct near__option *option;
    const char                *type, *scope;
    char                       accepts[256], variable[64];
};

static struct row
row_of(const struct near__option *option)
{
    struct row row = { option, type_names[option->type], scope_names[option->scope], "", "" };

    near__option_accepts(option, row.accepts, sizeof(row.accepts));
    near__option_variable(option, row.variable, sizeof(row.variable));
    return row;
}

/* Words of `text`, broken into lines of at most 100 characters that begin with "# ". */
static void
print_comment(const char *text)
{
    size_t column = 0;

    while (*text != '\0') {
        size_t word = strcspn(text, " ");

        if (column == 0 || column + 1 + word > 98)
            column = (size_t)printf("%s# %.*s", column == 0 ? "" : "\n", (int)word, text) - 2;
        else
            column += (size_t)printf(" %.*s", (int)word, text);
        text += word;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void
list_file_row(const struct row *row)
{
    char line[512];

    print_comment(row->option->help);
    snprintf(line, sizeof(line), "%s, %s option, accepts %s", row->type, row->scope, row->accepts);
    print_comment(line);
    printf("#%s = %s\n", row->option->name, row->option->preset);
}

static void
print_json(const char *name, const char *text, const char *after)
{
    printf("\"%s\": \"", name);
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < ' ')
            printf("\\u%04x", (unsigned)*text);
        else
            printf("%s%c", *text == '"' || *text == '\\' ? "\\" : "", *text);
    printf("\"%s", after);
}

static void
list_json_row(const struct row *row)
{
    printf("  { ");
    print_json("name", row->option->name, ", ");
    print_json("type", row->type, ", ");
    print_json("scope", row->scope, ", ");
    print_json("default", row->option->preset, ",\n    ");
    print_json("accepts", row->accepts, ",\n    ");
    print_json("environment", row->variable, ",\n    ");
    print_json("help", row->option->help, " }");
}

static void
list_man_row(const struct row *row)
{
    printf(".TP\n.B ");
    print_roff(row->option->name);
    printf("\n");
    print_roff(row->option->help);
    printf("\n.br\nA %s option, a %s; default ", row->scope, row->type);
    if (row->option->preset[0] == '\0')
        printf("empty");
    print_roff(row->option->preset);
    printf("; accepts\n");
    print_roff(row->accepts);
    printf(".\n.br\nEnvironment: ");
    print_roff(row->variable);
    printf(".\n");
}

static void
list_man_head(void)
{
    printf(".TH NEARCACHE.CONF 5 \"\" \"nearcache %s\" \"nearcache\"\n", near_version());
    fputs(
        ".nh\n.ad l\n.SH NAME\nnearcache.conf \\- options of nearcache clients and caches\n"
        ".SH DESCRIPTION\n"
        "A configuration is a set of names with values. It comes from near_config_set(), from files read by\n"
        "near_config_load(), and from the environment, which overrides both.\n"
        ".PP\n"
        "A file has lines of the form\n.RS\n.I name\n=\n.I value\n.RE\n"
        "Lines that begin with # and blank lines are passed over. A value ends with its line; blanks around "
        "it are\n"
        "cut. An unknown name or a bad value is refused, and then nothing of the file is taken.\n"
        ".PP\n"
        "Durations are written 250us, 250ms, 30s, 5m, 1h or 7d, sizes 512, 64KiB, 256MiB, 1GiB or 1TiB.\n"
        "Cache options may be set for one cache by near_cache_open(); client options hold for the client.\n"
        ".SH OPTIONS\n",
        stdout);
}

static int
list(bool json, bool man)
{
    if (man)
        list_man_head();
    if (json)
        puts("[");
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++) {
        struct row row = row_of(&near__options[i]);

        if (json && i > 0)
            puts(",");
        if (!json && !man && i > 0)
            putchar('\n');
        (json ? list_json_row : man ? list_man_row : list_file_row)(&row);
    }
    if (json)
        puts("\n]");
    if (man)
        puts(".SH SEE ALSO\n.BR nearcache (1)");
    return EXIT_DONE;
}

/* The file by itself: what the environment would override does not matter here. */
static int
check(const char *path, bool json)
{
    struct near__settings settings;
    near_config          *config = near_config_new();
    near_error            error, inner;
    char                  variable[64];
    near_status           status;

    if (config == NULL)
        return complain(EXIT_TROUBLE, "out of memory");
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++) {
        near__option_variable(&near__options[i], variable, sizeof(variable));
        unsetenv(variable);
    }
    status = near_config_load(config, path, &error);
    if (status == NEAR_OK && near__settings_resolve(&settings, config, &inner) != NEAR_OK)
        status = near__fail(&error, inner.code, "%s: %s", path, inner.text);
    if (json) {
        fputs("{ ", stdout);
        print_json("file", path, ", ");
        print_json("error", status == NEAR_OK ? "" : error.text,
                   status == NEAR_OK ? ", \"ok\": true }\n" : ", \"ok\": false }\n");
    }
    if (status != NEAR_OK)
        complain(EXIT_TROUBLE, "%s", error.text);
    explicit_bzero(&settings, sizeof(settings));
    near_config_free(config);
    if (status == NEAR_OK && !json)
        printf("%s: ok\n", path);
    return status == NEAR_OK ? EXIT_DONE : EXIT_TROUBLE;
}

int
run_config(int argc, char **argv)
{
    const struct option *options = long_options("config");
    bool                 listing = false, json = false, man = false;
    const char          *path = NULL;
    int                  c;

    optind = 0;
    while ((c = getopt_long(argc, argv, near__letters, options, NULL)) != -1)
        switch (c) {
        case 'l':
            listing = true;
            break;
        case 'j':
            json = true;
            break;
        case 'm':
            man = true;
            break;
        case 'c':
            path = optarg;
            break;
        case 'h':
            return help_on("config");
        default:
            return misuse("config");
        }
    if (optind != argc || listing == (path != NULL) || (man && !listing) || (json && man))
        return misuse("config");
    return listing ? list(json, man) : check(path, json);
}
