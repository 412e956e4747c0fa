/*
 * The nearcache command: one file a subcommand (or a family of them), one row each in the table of nearcache.c.  A subcommand gets
 * its own argv, argv[0] being its name, and returns an exit status.  Results go to standard output, everything else to standard
 * error.
 */
#ifndef NEAR_TOOLS_COMMAND_H
#define NEAR_TOOLS_COMMAND_H

#include "config.h"

/* What the process answers; nearcache(1) documents them. */
enum near__exit { EXIT_DONE = 0, EXIT_NOT_FOUND = 1, EXIT_USAGE = 2, EXIT_TROUBLE = 3 };

struct command {
    const char *name;
    const char *usage; /* what follows "nearcache NAME" */
    const char *help;  /* one line */
    int (*run)(int argc, char **argv);
    const char *more; /* lines for `nearcache NAME --help` */
};

/* "nearcache: ..." to standard error; returns `status`. */
int complain(int status, const char *format, ...) NEAR_PRINTF(2, 3);
/* How the command is called, to standard error; returns EXIT_USAGE. */
int misuse(const char *command);
/* For `--help` among a subcommand's arguments: to standard output; returns EXIT_DONE. */
int help_on(const char *command);
/* Standard output is flushed; EXIT_TROUBLE instead of EXIT_DONE when it could not be written. */
int finish_output(int status);

int run_get(int argc, char **argv);
int run_set(int argc, char **argv);
int run_remove(int argc, char **argv);
int run_config(int argc, char **argv);
int run_doctor(int argc, char **argv);
int run_metrics(int argc, char **argv);
int run_simulate(int argc, char **argv);
int run_journal(int argc, char **argv);

#endif
