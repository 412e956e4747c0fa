/* nearcache(1), written from the table of commands.c. */
#include "command.h"

#include <string.h>

void
print_roff(const char *text)
{
    if (*text == '.' || *text == '\'')
        fputs("\\&", stdout);
    for (; *text != '\0'; text++)
        if (*text == '\\')
            fputs("\\e", stdout);
        else if (*text == '-')
            fputs("\\-", stdout);
        else if (*text == '\n' && (text[1] == '.' || text[1] == '\''))
            fputs("\n\\&", stdout);
        else
            putchar(*text);
}

/* Sentences one a line: roff sets the blanks between them. */
static void
print_sentences(const char *text)
{
    const char *end;

    while ((end = strstr(text, ".  ")) != NULL) {
        char sentence[2048];

        snprintf(sentence, sizeof(sentence), "%.*s\n", (int)(end + 1 - text), text);
        print_roff(sentence);
        text = end + 3;
    }
    print_roff(text);
    putchar('\n');
}

static void
print_paragraphs(const char *text)
{
    const char *end;

    while ((end = strchr(text, '\n')) != NULL) {
        char paragraph[4096];

        snprintf(paragraph, sizeof(paragraph), "%.*s", (int)(end - text), text);
        puts(".PP");
        print_sentences(paragraph);
        text = end + 1;
    }
    puts(".PP");
    print_sentences(text);
}

static void
print_one(const struct command *command)
{
    printf(".SS nearcache %s ", command->name);
    print_roff(command->usage);
    putchar('\n');
    printf("%c", command->help[0] & ~0x20);
    print_roff(command->help + 1);
    puts(".");
    if (command->more != NULL)
        print_paragraphs(command->more);
    for (const struct command_option *option = command->options; option->name != NULL; option++) {
        if (option->help == NULL)
            continue;
        printf(".TP\n.BI \"\\-%s", option->name[1] != '\0' ? "\\-" : "");
        print_roff(option->name);
        if (option->argument != NULL) {
            printf("\" \" ");
            print_roff(option->argument);
        }
        puts("\"");
        print_sentences(option->help);
    }
}

void
print_manual(void)
{
    printf(".TH NEARCACHE 1 \"\" \"nearcache %s\" \"nearcache\"\n", near_version());
    fputs(
        ".nh\n.ad l\n.SH NAME\nnearcache \\- look into, size, try and check the caches of a service\n"
        ".SH SYNOPSIS\n.B nearcache\n.I COMMAND\n.RI [ ARGUMENT ]...\n.br\n"
        ".B nearcache\n.I COMMAND\n.B \\-\\-help\n.br\n.B nearcache \\-\\-version\n.SH DESCRIPTION\n"
        "Commands that go to a server open a client of their own, with the same keys, value format and "
        "invalidation\nmessages as the service whose shared tier they are pointed at: what they set or "
        "remove, "
        "every instance\nnotices.\n.PP\n"
        "The command line comes before the environment, and the environment before a file. A key that begins "
        "with \\-\nis given after\n.BR \\-\\- .\n"
        "Results go to standard output, everything else to standard error; progress is shown on a terminal "
        "only.\n"
        ".SH COMMANDS\n",
        stdout);
    for (size_t i = 0; i < near__command_count; i++)
        print_one(&near__commands[i]);
    fputs(".SH ENVIRONMENT\nEvery option of\n.BR nearcache.conf (5)\nhas a variable, for instance\n"
          ".B NEARCACHE_L2_URI\nfor\n.BR l2.uri .\n"
          "A password in a URI on the command line can be seen by other users of the machine; in the "
          "environment "
          "or a\nfile it cannot.\n.SH EXIT STATUS\n",
          stdout);
#define EXIT_ROW(name, number, text)                                                                         \
    printf(".TP\n.B %d\n", number);                                                                          \
    print_roff(text);                                                                                        \
    puts(".");
    EXIT_TABLE(EXIT_ROW)
#undef EXIT_ROW
    fputs(".SH EXAMPLES\n.nf\n"
          "export NEARCACHE_L2_URI=redis://127.0.0.1\n"
          "nearcache doctor redis://127.0.0.1\n"
          "nearcache set \\-o ttl=30s users user:42 \"Ada\"\n"
          "nearcache get users user:42\n"
          "nearcache explain users user:42\n"
          "nearcache remove users user:42\n"
          "nearcache config \\-\\-list >service.conf\n"
          "redis\\-cli MONITOR | head \\-n 1000000 >requests.log\n"
          "nearcache simulate \\-\\-html sizes.html requests.log\n"
          "nearcache bench \\-\\-threads 4 \\-\\-rate 20k redis://127.0.0.1 \\-\\-against "
          "memcached://127.0.0.1\n"
          "nearcache warm \\-\\-rate 5k \\-\\-state warm.state users requests.log\n"
          ".fi\n.SH SEE ALSO\n.BR nearcache.conf (5),\n.BR nearcache\\-metrics (7)\n",
          stdout);
}
