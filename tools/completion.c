/* nearcache completion: what the shells offer behind `nearcache`, made from the table of commands.c and the options of config.h. */
#include "command.h"

#include <getopt.h>
#include <string.h>

static const char schemes[] =
    "redis:// rediss:// redis+unix:/// redis-sentinel:// rediss-sentinel:// redis-cluster:// "
    "rediss-cluster:// memcached:// memcached+unix:/// memory: none:";

/* "a|b|c" as "a b c". */
static void
print_choices(const char *choices)
{
    for (; *choices != '\0'; choices++)
        putchar(*choices == '|' ? ' ' : *choices);
}

/* ---- bash */

static void
bash_option_names(const struct command *command)
{
    for (const struct command_option *option = command->options; option->name != NULL; option++)
        if (option->help != NULL)
            printf("%s%s ", option->name[1] != '\0' ? "--" : "-", option->name);
    printf("--help");
}

/* What follows an option that has an argument. */
static void
bash_argument(const struct command *command, const struct command_option *option)
{
    if (option->argument == NULL)
        return;
    printf("    %s:%s%s) ", command->name, option->name[1] != '\0' ? "--" : "-", option->name);
    switch (option->takes) {
    case TAKES_FILE:
        printf("_nearcache_files -f");
        break;
    case TAKES_DIRECTORY:
        printf("_nearcache_files -d");
        break;
    case TAKES_URI:
        printf("_nearcache_words \"$_nearcache_schemes\"; compopt -o nospace 2>/dev/null");
        break;
    case TAKES_SETTING:
        printf("_nearcache_words \"$_nearcache_settings\"; compopt -o nospace 2>/dev/null");
        break;
    case TAKES_CHOICE:
        printf("_nearcache_words \"");
        print_choices(option->argument);
        putchar('"');
        break;
    default:
        printf(":");
    }
    puts("; return ;;");
}

static void
bash_words(const struct command *command)
{
    printf("    %s)\n        case $cur in -*) _nearcache_words \"", command->name);
    bash_option_names(command);
    puts("\"; return ;; esac");
    if (command->words != NULL)
        printf("        [ \"$COMP_CWORD\" -gt 2 ] || { _nearcache_words \"%s\"; return; }\n", command->words);
    if (command->takes == TAKES_FILE)
        puts("        _nearcache_files -f");
    else if (command->takes == TAKES_DIRECTORY)
        puts("        _nearcache_files -d");
    else if (command->takes == TAKES_URI)
        puts("        _nearcache_words \"$_nearcache_schemes\"; compopt -o nospace 2>/dev/null");
    puts("        ;;");
}

static int
print_bash(void)
{
    printf("# bash completion for nearcache %s; made by `nearcache completion "
           "bash`\n\n_nearcache_schemes=\"%s\"\n",
           near_version(), schemes);
    printf("_nearcache_settings=\"");
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++)
        printf("%s%s=", i > 0 ? " " : "", near__options[i].name);
    puts("\"\n\n_nearcache_words()\n{\n    COMPREPLY=($(compgen -W \"$1\" -- \"$cur\"))\n}\n\n"
         "_nearcache_files()\n{\n    local IFS=$'\\n'\n    compopt -o filenames 2>/dev/null\n"
         "    COMPREPLY=($(compgen \"$1\" -- \"$cur\"))\n}\n\n"
         "_nearcache()\n{\n    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}\n\n"
         "    COMPREPLY=()\n    if [ \"$COMP_CWORD\" -eq 1 ]; then");
    printf("        _nearcache_words \"");
    for (size_t i = 0; i < near__command_count; i++)
        printf("%s ", near__commands[i].name);
    puts("help --help --version\"\n        return\n    fi\n    case ${COMP_WORDS[1]}:$prev in");
    for (size_t i = 0; i < near__command_count; i++)
        for (const struct command_option *option = near__commands[i].options; option->name != NULL; option++)
            bash_argument(&near__commands[i], option);
    puts("    esac\n    case ${COMP_WORDS[1]} in");
    for (size_t i = 0; i < near__command_count; i++)
        bash_words(&near__commands[i]);
    puts("    esac\n}\n\ncomplete -F _nearcache nearcache");
    return EXIT_DONE;
}

/* ---- zsh */

/* Within '...[...]': quotes, brackets and colons are the shell's. */
static void
print_zsh(const char *text)
{
    for (; *text != '\0'; text++)
        if (*text == '\'')
            fputs("'\\''", stdout);
        else
            printf("%s%c", strchr("[]:\\", *text) != NULL ? "\\" : "", *text);
}

static void
zsh_action(enum takes takes, const char *choices)
{
    switch (takes) {
    case TAKES_FILE:
        fputs("_files", stdout);
        break;
    case TAKES_DIRECTORY:
        fputs("_files -/", stdout);
        break;
    case TAKES_URI:
        fputs("compadd -S \"\" -a schemes", stdout);
        break;
    case TAKES_SETTING:
        fputs("compadd -S \"\" -a settings", stdout);
        break;
    case TAKES_CHOICE:
        putchar('(');
        print_choices(choices);
        putchar(')');
        break;
    default:
        putchar(' ');
    }
}

static void
zsh_option(const struct command_option *option)
{
    if (option->help == NULL)
        return;
    printf(" \\\n        '%s%s%s[", option->takes == TAKES_SETTING ? "*" : "",
           option->name[1] != '\0' ? "--" : "-", option->name);
    print_zsh(option->help);
    putchar(']');
    if (option->argument != NULL) {
        putchar(':');
        print_zsh(option->takes == TAKES_CHOICE ? option->name : option->argument);
        putchar(':');
        zsh_action(option->takes, option->argument);
    }
    putchar('\'');
}

static int
print_zsh_functions(void)
{
    puts("#compdef nearcache\n# zsh completion for nearcache; made by `nearcache completion "
         "zsh`\n\n_nearcache()\n{\n"
         "    local -a commands settings schemes\n    commands=(");
    for (size_t i = 0; i < near__command_count; i++) {
        printf("        '%s:", near__commands[i].name);
        print_zsh(near__commands[i].help);
        puts("'");
    }
    printf("    )\n    schemes=(%s)\n    settings=(", schemes);
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++)
        printf(" %s=", near__options[i].name);
    puts(" )\n    if (( CURRENT == 2 )); then\n        _describe command commands\n        return\n    fi\n"
         "    local command=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $command in");
    for (size_t i = 0; i < near__command_count; i++) {
        const struct command *command = &near__commands[i];

        printf("    %s) _arguments '--help[How it is called.]'", command->name);
        for (const struct command_option *option = command->options; option->name != NULL; option++)
            zsh_option(option);
        if (command->words != NULL)
            printf(" \\\n        '1:what:(%s)'", command->words);
        if (command->takes == TAKES_FILE || command->takes == TAKES_DIRECTORY)
            printf(" \\\n        '*:file:%s'", command->takes == TAKES_FILE ? "_files" : "_files -/");
        else if (command->takes == TAKES_URI)
            printf(" \\\n        '*:uri:compadd -S \"\" -a schemes'");
        puts(" ;;");
    }
    puts("    esac\n}\n\n_nearcache \"$@\"");
    return EXIT_DONE;
}

int
run_completion(int argc, char **argv)
{
    const struct option *options = long_options("completion");
    int                  c;

    optind = 0;
    while ((c = getopt_long(argc, argv, near__letters, options, NULL)) != -1)
        return c == 'h' ? help_on("completion") : misuse("completion");
    if (argc - optind != 1)
        return misuse("completion");
    if (strcmp(argv[optind], "bash") == 0)
        return print_bash();
    if (strcmp(argv[optind], "zsh") == 0)
        return print_zsh_functions();
    return misuse("completion");
}
