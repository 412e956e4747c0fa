/* The nearcache command: the table of subcommands, and help about them. */
#include "command.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CLIENT_OPTIONS                                                                                       \
    "  --l2 URI           the shared tier, as -o l2.uri=URI\n"                                               \
    "  -o NAME=VALUE      any option that `nearcache config --list` shows; before file and environment\n"    \
    "  --config FILE      options from a file\n"

static const struct command commands[] = {
    { "get", "[--l2 URI] [-o NAME=VALUE]... CACHE KEY", "print a value from the shared tier", run_get,
      CLIENT_OPTIONS "The bytes go to standard output as they are; a newline follows on a terminal only.\n"
                     "Exit status 1: the key is not there.\n" },
    { "set", "[--l2 URI] [-o NAME=VALUE]... CACHE KEY VALUE|-", "store a value and tell every instance",
      run_set,
      CLIENT_OPTIONS "VALUE - reads standard input to its end.  -o ttl=30s sets how long it is good.\n" },
    { "remove", "[--l2 URI] [-o NAME=VALUE]... CACHE KEY", "remove a key and tell every instance", run_remove,
      CLIENT_OPTIONS "Removing what is not there is no failure.\n" },
    { "config", "--list [--json] | --check FILE", "show every option, or check a configuration file",
      run_config,
      "  --list             every option with its default, in the form of a configuration file\n"
      "  --list --json      the same for programs\n"
      "  --check FILE       refuse unknown names, bad values and contradictions; exit status 3\n" },
    { "doctor", "[-o NAME=VALUE]... URI", "say whether a shared tier can be used, or why not", run_doctor,
      "  -o NAME=VALUE      any option that `nearcache config --list` shows\n"
      "  --config FILE      options from a file\n"
      "Reads only; no key is written.\n" },
    { "metrics", "--list [--json]", "show every counter and histogram", run_metrics,
      "  --list             names as in near_stats_prometheus(), kind, unit and meaning\n"
      "  --list --json      the same for programs\n" },
    { "simulate", "[OPTION]... TRACE...", "hit ratios of L1 over a trace, at many sizes and policies",
      run_simulate,
      "  --sizes LIST       up to 64 of 1000, 10k, 2M entries, 5% of the keys, 64MiB of memory; by default "
      "eight, 1% to\n"
      "                     100%\n"
      "  --policies LIST    of those that l1.policy accepts; by default all\n"
      "  --exact            the policies by their definitions, one shard, instead of L1 as it is in "
      "production\n"
      "  --sampled          estimate from a sample of the keys (some 25000 of them)\n"
      "  --rate R           the same with this part of the keys, more than 0, up to 1\n"
      "  --format FORMAT    auto, keys (KEY [SIZE]), csv (TIME,KEY[,SIZE]), monitor (redis-cli MONITOR), "
      "hmget (HMGET KEY\n"
      "                     FIELD...)\n"
      "  --value-size N     bytes of a value where the trace does not say; by default 100\n"
      "  --threads N        by default one for each processor\n"
      "  --json             for programs, instead of a table\n"
      "  --svg FILE         the curves as a picture\n"
      "  --html FILE        picture, table and advice as one page\n"
      "TRACE - is standard input; several are read as one.  Files compressed with zstd or gzip are read as "
      "they are.\n"
      "Exit status 3: a trace that cannot be read or makes no sense (file and line are named), or a file "
      "that cannot be\n"
      "written; then none is left behind.\n" },
    { "journal", "inspect [--records] [--json] DIR | verify DIR | salvage DIR",
      "look into the journal of unfinished writes", run_journal,
      "  inspect DIR        what is there: files, what is not done by cache, dead letters, damage\n"
      "  --records          besides, each record that is not done and each dead letter, without its value\n"
      "  --json             for programs\n"
      "  verify DIR         whether every byte is what was written; exit status 3 where it is not\n"
      "  salvage DIR        save what can be read of a damaged journal that no program has open; the "
      "damaged\n"
      "                     files are kept as *.bad\n" },
};

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

static const struct command *
command_named(const char *name)
{
    for (size_t i = 0; i < NEAR_COUNT_OF(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

int
misuse(const char *name)
{
    const struct command *command = command_named(name);

    fprintf(stderr, "usage: nearcache %s %s\n", command->name, command->usage);
    return EXIT_USAGE;
}

int
help_on(const char *name)
{
    const struct command *command = command_named(name);

    printf("usage: nearcache %s %s\n%s\n\n%s", command->name, command->usage, command->help, command->more);
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
    for (size_t i = 0; i < NEAR_COUNT_OF(commands); i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].help);
    fputs("\n`nearcache COMMAND --help` says more; `nearcache --version` names the library.\n"
          "Exit status: 0 done, 1 not found, 2 wrong usage, 3 trouble.\n",
          out);
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
