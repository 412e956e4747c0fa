#include "connect.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The library lets the environment override what a program has set; what stands on the command line is newer still, so its
 * variable is taken away. */
bool
connect_set(const char *name, const char *value, struct connect *connect)
{
    near_error error;
    char       variable[64];

    if (near_config_set(connect->config, name, value, &error) != NEAR_OK) {
        complain(EXIT_USAGE, "%s", error.text);
        return false;
    }
    for (size_t i = 0; i < NEAR__OPTION_COUNT; i++)
        if (strcmp(near__options[i].name, name) == 0) {
            near__option_variable(&near__options[i], variable, sizeof(variable));
            unsetenv(variable);
        }
    return true;
}

static bool
set_pair(const char *pair, struct connect *connect)
{
    const char *equals = strchr(pair, '=');
    char       *name;
    bool        ok;

    if (equals == NULL) {
        complain(EXIT_USAGE, "-o %s: expected NAME=VALUE", pair);
        return false;
    }
    name = strndup(pair, (size_t)(equals - pair));
    ok   = name != NULL && connect_set(name, equals + 1, connect);
    free(name);
    return ok;
}

/* A file must not override what stood before it on the command line: it is loaded in a first pass. */
static bool
load_files(struct connect *connect, int argc, char **argv, const struct option *options)
{
    near_error error;
    int        c;

    opterr = 0;
    optind = 0;
    while ((c = getopt_long(argc, argv, near__letters, options, NULL)) != -1)
        if (c == 'c' && near_config_load(connect->config, optarg, &error) != NEAR_OK) {
            complain(EXIT_TROUBLE, "%s", error.text);
            return false;
        }
    opterr = 1;
    optind = 0;
    return true;
}

int
connect_options(struct connect *connect, int argc, char **argv, connect_fn take, void *ctx)
{
    const struct option *options = long_options(argv[0]);
    int                  c;

    memset(connect, 0, sizeof(*connect));
    connect->config = near_config_new();
    if (connect->config == NULL)
        return complain(EXIT_TROUBLE, "out of memory");
    if (!load_files(connect, argc, argv, options))
        return EXIT_TROUBLE;
    while ((c = getopt_long(argc, argv, near__letters, options, NULL)) != -1)
        switch (c) {
        case 'l':
            if (!connect_set("l2.uri", optarg, connect))
                return EXIT_USAGE;
            break;
        case 'o':
            if (!set_pair(optarg, connect))
                return EXIT_USAGE;
            break;
        case 'c':
            break;
        case 'h':
            return help_on(argv[0]);
        case '?':
            return misuse(argv[0]);
        default:
            if (!take(ctx, c, optarg))
                return EXIT_USAGE;
        }
    return -1;
}

bool
connect_resolve(struct connect *connect)
{
    near_error  error;
    near_status status = near__settings_resolve(&connect->settings, connect->config, &error);

    if (status == NEAR_OK)
        status = near__uri_parse(&connect->l2_uri, "l2.uri", connect->settings.l2_uri, &error);
    if (status == NEAR_OK)
        status = near__access_l2(&connect->access, &connect->settings, &connect->l2_uri, &error);
    if (status != NEAR_OK)
        complain(EXIT_USAGE, "%s", error.text);
    return status == NEAR_OK;
}

bool
connect_is_shared(const struct connect *connect)
{
    if (connect->l2_uri.kind != NEAR__URI_NONE && connect->l2_uri.kind != NEAR__URI_MEMORY)
        return true;
    complain(EXIT_USAGE,
             "l2.uri = \"%s\" is no shared tier; name one with --l2 URI, --config FILE or NEARCACHE_L2_URI",
             connect->settings.l2_uri);
    return false;
}

static void
log_line(near_log_level level, const char *message, void *ctx)
{
    static const char *const names[] = { "error", "warning", "info", "debug" };

    (void)ctx;
    complain(0, "%s: %s", level <= NEAR_LOG_DEBUG ? names[level] : "?", message);
}

near_client *
connect_client(const struct connect *connect)
{
    near_client *client;
    near_error   error;

    if (near_client_open(connect->config, &client, &error) != NEAR_OK) {
        complain(EXIT_TROUBLE, "%s", error.text);
        return NULL;
    }
    near_set_log(client, log_line, NULL);
    return client;
}

void
connect_free(struct connect *connect)
{
    near_config_free(connect->config);
    near__access_free(&connect->access);
    explicit_bzero(connect, sizeof(*connect)); /* passwords */
}
