/*
 * The nearcache command: one file a subcommand (or a family of them), one row each in the table of commands.c, from which --help, the
 * manual page, the shells' completions and the parsing of options are made.  A subcommand gets its own argv, argv[0] being its name,
 * and returns an exit status.  Results go to standard output, everything else to standard error.
 */
#ifndef NEAR_TOOLS_COMMAND_H
#define NEAR_TOOLS_COMMAND_H

#include "config.h"

#include <stdio.h>

/* What the process answers, once: name, number, what it means. */
#define EXIT_TABLE(X)                                                                                        \
    X(EXIT_DONE, 0, "done")                                                                                  \
    X(EXIT_NOT_FOUND, 1,                                                                                     \
      "the answer is no: get: the key is not there; doctor: it works, and something should be changed; "     \
      "top: no instance was heard")                                                                          \
    X(EXIT_USAGE, 2, "wrong usage: an unknown command, option or value")                                     \
    X(EXIT_TROUBLE, 3,                                                                                       \
      "trouble: a server that cannot be reached or refuses, a file that is not in order or cannot be "       \
      "written")                                                                                             \
    X(EXIT_INTERRUPTED, 4, "interrupted by a signal; what was done until then is told, and kept")

enum near__exit {
#define EXIT_ENUM(name, number, text) name = (number),
    EXIT_TABLE(EXIT_ENUM)
#undef EXIT_ENUM
};

/* What an option or a word is, for the shells. */
enum takes {
    TAKES_NOTHING,
    TAKES_WORD,
    TAKES_FILE,
    TAKES_DIRECTORY,
    TAKES_URI,
    TAKES_SETTING, /* NAME=VALUE of nearcache.conf(5) */
    TAKES_CHOICE   /* `argument` is "a|b|c" */
};

/* Codes of long options that have no letter. */
enum option_code {
    OPT_AGAINST = 256,
    OPT_KEYS,
    OPT_ZIPF,
    OPT_UNIFORM,
    OPT_TRACE,
    OPT_THREADS,
    OPT_RATE,
    OPT_BATCH,
    OPT_PUTS,
    OPT_VALUES,
    OPT_TTL,
    OPT_LOADER,
    OPT_SECONDS,
    OPT_WARM_UP,
    OPT_ROUNDS,
    OPT_NO_FILL,
    OPT_STATE,
    OPT_FROM,
    OPT_FORMAT,
    OPT_LIMIT,
    OPT_ONCE,
    OPT_EVERY,
    OPT_WAIT,
    OPT_ALL,
    OPT_RETRY,
    OPT_PREFIX,
    OPT_LINES,
    OPT_DRY_RUN,
    OPT_OUTPUT,
    OPT_SAMPLE,
    OPT_SIZE
};

struct command_option {
    const char *name;     /* without dashes: one letter, or a long name; NULL ends a table */
    const char *argument; /* as it is shown; NULL: none */
    enum takes  takes;
    int         code; /* what the parser says: 'h' is --help's everywhere */
    const char *help; /* NULL: not shown */
};

struct command {
    const char *name;
    const char *usage; /* what follows "nearcache NAME" */
    const char *help;  /* one line */
    int (*run)(int argc, char **argv);
    const struct command_option *options;
    const char                  *words; /* first words to offer, "a b c"; NULL: none */
    enum takes                   takes; /* the other words */
    const char                  *more;  /* for `nearcache NAME --help` and the manual, paragraphs; or NULL */
};

extern const struct command near__commands[];
extern const size_t         near__command_count;
const struct command       *command_named(const char *name); /* NULL: there is none */

/* The options of the command for getopt_long(), --help besides; its letters in near__letters.  Good until the next call. */
struct option;
const struct option *long_options(const char *command);
extern char          near__letters[32];

/* "nearcache: ..." to standard error; returns `status`. */
int complain(int status, const char *format, ...) NEAR_PRINTF(2, 3);
/* How the command is called, to standard error; returns EXIT_USAGE. */
int misuse(const char *command);
/* For `--help` among a subcommand's arguments: to standard output; returns EXIT_DONE. */
int help_on(const char *command);
/* Standard output is flushed; EXIT_TROUBLE instead of EXIT_DONE when it could not be written. */
int finish_output(int status);
/* A number from `least` to `most`; with k, M, G behind it thousands.  False after complaining. */
bool read_number(const char *option, const char *text, uint64_t least, uint64_t most, uint64_t *number);
/* A duration as in nearcache.conf(5), in ns.  False after complaining. */
bool read_duration(const char *option, const char *text, int64_t *ns);
/* Text for troff: a backslash is written \e, a hyphen is a minus, and no line begins with a dot or an apostrophe. */
void print_roff(const char *text);
void print_manual(void); /* nearcache(1) */

int run_get(int argc, char **argv);
int run_set(int argc, char **argv);
int run_remove(int argc, char **argv);
int run_invalidate(int argc, char **argv);
int run_tag(int argc, char **argv);
int run_explain(int argc, char **argv);
int run_config(int argc, char **argv);
int run_doctor(int argc, char **argv);
int run_metrics(int argc, char **argv);
int run_simulate(int argc, char **argv);
int run_journal(int argc, char **argv);
int run_bench(int argc, char **argv);
int run_warm(int argc, char **argv);
int run_top(int argc, char **argv);
int run_dict(int argc, char **argv);
int run_completion(int argc, char **argv);

#endif
