/* The nearcache command: picks the subcommand; messages, help and parsing by the table in commands.c. */
#include "command.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_WIDTH = 100, HELP_COLUMN = 21 };

char near__letters[32];

int
complain(int status, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fputs("nearcache: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return status;
}

/* ---- options */

const struct option *
long_options(const char *name)
{
    static struct option         options[40];
    const struct command        *command = command_named(name);
    const struct command_option *row     = command->options;
    size_t                       n       = 0, letters;

    memset(options, 0, sizeof(options));
    /* a key may begin with a dash: there the first word that is no option ends them */
    letters = (size_t)snprintf(near__letters, sizeof(near__letters), "%sh",
                               command->takes == TAKES_WORD ? "+" : "");
    for (; row->name != NULL && n + 2 < NEAR_COUNT_OF(options); row++)
        if (row->name[1] != '\0')
            options[n++] = (struct option){ row->name, row->argument != NULL, NULL, row->code };
        else if (letters + 3 < sizeof(near__letters))
            letters += (size_t)snprintf(near__letters + letters, sizeof(near__letters) - letters, "%c%s",
                                        row->code, row->argument != NULL ? ":" : "");
    options[n] = (struct option){ "help", no_argument, NULL, 'h' };
    return options;
}

bool
read_number(const char *option, const char *text, uint64_t least, uint64_t most, uint64_t *number)
{
    unsigned long long n;
    uint64_t           factor = 1;
    char              *end;

    errno = 0;
    n     = strtoull(text, &end, 10);
    if (*end != '\0' && end[1] == '\0')
        factor = *end == 'k' ? 1000 : *end == 'M' ? 1000000 : *end == 'G' ? 1000000000 : 0;
    else if (*end != '\0')
        factor = 0;
    if (!isdigit((unsigned char)*text) || errno != 0 || factor == 0 ||
        __builtin_mul_overflow(n, factor, number) || *number < least || *number > most) {
        complain(0, "--%s: \"%.64s\": accepts %llu .. %llu", option, text, (unsigned long long)least,
                 (unsigned long long)most);
        return false;
    }
    return true;
}

bool
read_duration(const char *option, const char *text, int64_t *ns)
{
    static const struct {
        const char *name;
        int64_t     factor;
    } units[] = { { "us", NEAR_MS / 1000 }, { "ms", NEAR_MS },         { "s", NEAR__SEC },
                  { "m", 60 * NEAR__SEC },  { "h", 3600 * NEAR__SEC }, { "d", NEAR__DAY } };
    char  *end;
    double n = strtod(text, &end);

    for (size_t i = 0; isdigit((unsigned char)*text) && i < NEAR_COUNT_OF(units); i++)
        if (strcmp(end, units[i].name) == 0 && n * (double)units[i].factor <= 366.0 * (double)NEAR__DAY) {
            *ns = (int64_t)(n * (double)units[i].factor);
            return true;
        }
    if (strcmp(text, "0") == 0) {
        *ns = 0;
        return true;
    }
    complain(0, "--%s: \"%.64s\": accepts a duration: 250us, 10ms, 30s, 5m, 1h", option, text);
    return false;
}

/* ---- help */

int
misuse(const char *name)
{
    const struct command *command = command_named(name);

    fprintf(stderr, "usage: nearcache %s %s\n", command->name, command->usage);
    return EXIT_USAGE;
}

/* Words, broken into lines that begin `indent` columns in; the first one is at `column` already. */
static void
print_wrapped(const char *text, size_t column, size_t indent)
{
    while (*text != '\0') {
        size_t word = strcspn(text, " \n");

        if (column > indent && column + 1 + word > HELP_WIDTH) {
            putchar('\n');
            column = 0;
        }
        if (column < indent)
            printf("%*s", (int)(indent - column), "");
        column = column < indent ? indent : column;
        column += (size_t)printf("%s%.*s", column > indent ? " " : "", (int)word, text);
        text += word;
        if (*text == '\n') {
            putchar('\n');
            column = 0;
            text++;
        }
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void
print_option(const struct command_option *option)
{
    int column;

    if (option->help == NULL)
        return;
    column = printf("  %s%s%s%s", option->name[1] != '\0' ? "--" : "-", option->name,
                    option->argument != NULL ? " " : "", option->argument != NULL ? option->argument : "");
    if (column >= HELP_COLUMN) {
        putchar('\n');
        column = 0;
    }
    print_wrapped(option->help, (size_t)column, HELP_COLUMN);
}

int
help_on(const char *name)
{
    const struct command *command = command_named(name);

    printf("usage: nearcache %s %s\n%s\n\n", command->name, command->usage, command->help);
    for (const struct command_option *option = command->options; option->name != NULL; option++)
        print_option(option);
    if (command->more != NULL)
        print_wrapped(command->more, 0, 0);
    return EXIT_DONE;
}

int
finish_output(int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    return status == EXIT_DONE ? complain(EXIT_TROUBLE, "standard output: %s", strerror(errno)) : status;
}

static void
overview(FILE *out)
{
    fputs("usage: nearcache COMMAND [ARGUMENT...]\n\n", out);
    for (size_t i = 0; i < near__command_count; i++)
        fprintf(out, "  %-10s %s\n", near__commands[i].name, near__commands[i].help);
    fputs("\n`nearcache COMMAND --help` says more; `nearcache --version` names the library.\n"
          "Exit status:\n",
          out);
#define EXIT_LINE(name, number, text) fprintf(out, "  %d  %s\n", number, text);
    EXIT_TABLE(EXIT_LINE)
#undef EXIT_LINE
}

static int
run_help(int argc, char **argv)
{
    if (argc < 2) {
        overview(stdout);
        return EXIT_DONE;
    }
    if (command_named(argv[1]) == NULL)
        return complain(EXIT_USAGE, "no command \"%s\"; `nearcache --help` lists them", argv[1]);
    return help_on(argv[1]);
}

static int
run(int argc, char **argv)
{
    const struct command *command;

    if (argc < 2) {
        overview(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)
        return run_help(argc - 1, argv + 1);
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("nearcache %s\n", near_version());
        return EXIT_DONE;
    }
    if (strcmp(argv[1], "--man") == 0) { /* the source of nearcache(1) */
        print_manual();
        return EXIT_DONE;
    }
    command = command_named(argv[1]);
    if (command == NULL)
        return complain(EXIT_USAGE, "no command \"%s\"; `nearcache --help` lists them", argv[1]);
    return command->run(argc - 1, argv + 1);
}

int
main(int argc, char **argv)
{
    return finish_output(run(argc, argv));
}
