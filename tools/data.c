/* nearcache get, set, remove: one key through a client of its own, so that bytes, keys and messages are the fleet's. */
#include "connect.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct session {
    struct connect connect;
    near_client   *client;
    near_cache    *cache;
    char         **words; /* after CACHE */
};

static int
session_leave(struct session *session, int status)
{
    near_error error;

    near_cache_close(session->cache);
    if (session->client != NULL && near_client_close(session->client, &error) != NEAR_OK)
        status = complain(EXIT_TROUBLE, "%s", error.text);
    connect_free(&session->connect);
    return status;
}

/* In this process's own memory there is nothing to find. */
static bool
tier_is_shared(const struct connect *connect)
{
    if (connect->l2_uri.kind != NEAR__URI_NONE && connect->l2_uri.kind != NEAR__URI_MEMORY)
        return true;
    complain(EXIT_USAGE,
             "l2.uri = \"%s\" is no shared tier; name one with --l2 URI, --config FILE or NEARCACHE_L2_URI",
             connect->settings.l2_uri);
    return false;
}

/* Options, then CACHE and `words` more words.  -1 to go on. */
static int
session_enter(struct session *session, int argc, char **argv, int words)
{
    near_error error;
    int        status;

    memset(session, 0, sizeof(*session));
    status = connect_options(&session->connect, argc, argv);
    if (status >= 0)
        return status;
    if (argc - optind != words + 1)
        return misuse(argv[0]);
    if (!connect_resolve(&session->connect) || !tier_is_shared(&session->connect))
        return EXIT_USAGE;
    session->client = connect_client(&session->connect);
    if (session->client == NULL)
        return EXIT_TROUBLE;
    if (near_cache_open(session->client, argv[optind], NULL, &session->cache, &error) != NEAR_OK)
        return complain(EXIT_USAGE, "%s", error.text);
    session->words = argv + optind + 1;
    return -1;
}

static int
answer(const char *command, near_status status)
{
    if (status == NEAR_OK)
        return EXIT_DONE;
    if (status > 0)
        return complain(EXIT_NOT_FOUND, "%s", near_status_text(status));
    return complain(EXIT_TROUBLE, "%s: %s", command, near_status_text(status));
}

int
run_get(int argc, char **argv)
{
    struct session session;
    near_value    *value;
    near_bytes     bytes;
    int            status = session_enter(&session, argc, argv, 1);

    if (status >= 0)
        return session_leave(&session, status);
    status = answer("get", near_get(session.cache, near_key(session.words[0]), &value));
    if (status == EXIT_DONE) {
        bytes = near_value_bytes(value);
        fwrite(bytes.data, 1, bytes.size, stdout);
        if (isatty(STDOUT_FILENO))
            putchar('\n');
    }
    near_value_release(value);
    return session_leave(&session, status);
}

/* Standard input to its end, or until it is certainly too large.  False after complaining. */
static bool
read_input(char **data, size_t *size, size_t limit)
{
    size_t room = 0;

    *data = NULL;
    *size = 0;
    do {
        if (*size == room) {
            char *more = realloc(*data, room = room * 2 + 65536);

            if (more == NULL)
                return complain(0, "out of memory") != 0;
            *data = more;
        }
        *size += fread(*data + *size, 1, room - *size, stdin);
    } while (!feof(stdin) && !ferror(stdin) && *size <= limit);
    if (ferror(stdin))
        complain(0, "standard input: %s", strerror(errno));
    return !ferror(stdin);
}

int
run_set(int argc, char **argv)
{
    struct session session;
    near_bytes     value;
    char          *input  = NULL;
    int            status = session_enter(&session, argc, argv, 2);

    if (status >= 0)
        return session_leave(&session, status);
    value = near_key(session.words[1]);
    if (strcmp(session.words[1], "-") == 0) {
        size_t size;

        if (!read_input(&input, &size, (size_t)session.connect.settings.l2_max_value)) {
            free(input);
            return session_leave(&session, EXIT_TROUBLE);
        }
        value = (near_bytes){ input, size };
    }
    status = answer("set", near_put(session.cache, near_key(session.words[0]), value, NULL));
    free(input);
    return session_leave(&session, status);
}

int
run_remove(int argc, char **argv)
{
    struct session session;
    int            status = session_enter(&session, argc, argv, 1);

    if (status < 0)
        status = answer("remove", near_remove(session.cache, near_key(session.words[0])));
    return session_leave(&session, status);
}
