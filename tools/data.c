/* nearcache get, set, remove, invalidate, tag, explain: one key, tag or prefix through a client of its own, so that bytes, keys and
 * messages are the fleet's. */
#include "connect.h"

#include "metrics.h"

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
    int            n;     /* of them */
    bool           json, all;
    const char    *prefix;
};

static bool
take_option(void *ctx, int code, const char *argument)
{
    struct session *session = ctx;

    session->json = session->json || code == 'j';
    session->all  = session->all || code == OPT_ALL;
    if (code == OPT_PREFIX)
        session->prefix = argument;
    return true;
}

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

/* Options, then CACHE and `words` more words (or, below 0, any number).  -1 to go on. */
static int
session_enter(struct session *session, int argc, char **argv, int words)
{
    near_error error;
    int        status;

    memset(session, 0, sizeof(*session));
    status = connect_options(&session->connect, argc, argv, take_option, session);
    if (status >= 0)
        return status;
    session->n = argc - optind - 1;
    if (session->n < 0 || (words >= 0 && session->n != words))
        return misuse(argv[0]);
    /* bounds what is told of TTLs, and nothing stays here long enough for it */
    if (!connect_set("l1.max_ttl", "0", &session->connect) || !connect_resolve(&session->connect) ||
        !connect_is_shared(&session->connect))
        return EXIT_USAGE;
    session->client = connect_client(&session->connect);
    if (session->client == NULL)
        return EXIT_TROUBLE;
    if (near_cache_open(session->client, argv[optind], NULL, &session->cache, &error) != NEAR_OK)
        return complain(EXIT_USAGE, "%s", error.text);
    session->words = argv + optind + 1;
    return -1;
}

/* `status` of a call about `subject`, and the exit status that it makes. */
static int
answer(const struct session *session, const char *command, near_status status)
{
    if (session->json)
        printf("{ \"status\": \"%s\", \"code\": %d }\n", near_status_text(status), (int)status);
    if (status == NEAR_OK)
        return EXIT_DONE;
    if (status > 0)
        return session->json ? EXIT_NOT_FOUND : complain(EXIT_NOT_FOUND, "%s", near_status_text(status));
    return complain(EXIT_TROUBLE, "%s: %s", command, near_status_text(status));
}

static void
print_value(const struct session *session, const near_value *value)
{
    near_bytes      bytes = near_value_bytes(value);
    near_value_info info  = NEAR_VALUE_INFO_INIT;

    if (!session->json) {
        fwrite(bytes.data, 1, bytes.size, stdout);
        if (isatty(STDOUT_FILENO))
            putchar('\n');
        return;
    }
    near_value_get_info(value, &info);
    printf("{ \"status\": \"ok\", \"code\": 0, \"size\": %zu, \"ttl_ms\": %lld, \"value\": ", bytes.size,
           (long long)info.ttl_ms);
    near__json_string(stdout, bytes);
    puts(" }");
}

int
run_get(int argc, char **argv)
{
    struct session session;
    near_value    *value;
    near_status    got;
    int            status = session_enter(&session, argc, argv, 1);

    if (status >= 0)
        return session_leave(&session, status);
    got = near_get(session.cache, near_key(session.words[0]), &value);
    if (got == NEAR_OK)
        print_value(&session, value);
    else
        status = answer(&session, "get", got);
    near_value_release(value);
    return session_leave(&session, got == NEAR_OK ? EXIT_DONE : status);
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
    status = answer(&session, "set", near_put(session.cache, near_key(session.words[0]), value, NULL));
    free(input);
    return session_leave(&session, status);
}

int
run_remove(int argc, char **argv)
{
    struct session session;
    int            status = session_enter(&session, argc, argv, 1);

    if (status < 0)
        status = answer(&session, "remove", near_remove(session.cache, near_key(session.words[0])));
    return session_leave(&session, status);
}

static near_status
invalidate(const struct session *session)
{
    near_status first = NEAR_OK;

    if (session->all)
        return near_clear(session->cache);
    if (session->prefix != NULL)
        return near_invalidate_prefix(session->cache, near_key(session->prefix));
    for (int i = 0; i < session->n; i++) {
        near_status status = near_expire(session->cache, near_key(session->words[i]));

        first = first == NEAR_OK ? status : first;
    }
    return first;
}

int
run_invalidate(int argc, char **argv)
{
    struct session session;
    int            status = session_enter(&session, argc, argv, -1);

    if (status < 0 && session.all + (session.prefix != NULL) + (session.n > 0) != 1)
        status = misuse("invalidate");
    if (status < 0)
        status = answer(&session, "invalidate", invalidate(&session));
    return session_leave(&session, status);
}

int
run_tag(int argc, char **argv)
{
    struct session session;
    int            status = session_enter(&session, argc, argv, 1);

    if (status < 0)
        status = answer(&session, "tag", near_invalidate_tag(session.cache, session.words[0]));
    return session_leave(&session, status);
}

/* An object of our own as lines: what is within another one is named by both. */
static void
print_object(const char *at)
{
    char   path[128] = "";
    size_t depth[8] = { 0 }, level = 0, used = 0;

    for (; *at != '\0'; at++) {
        if (*at == '{' && level + 1 < NEAR_COUNT_OF(depth)) {
            depth[++level] = used;
        } else if (*at == '}' && level > 0) {
            level--;
            used = depth[level];
        } else if (*at == '"') {
            size_t name = strcspn(at + 1, "\"");
            size_t value;

            used = depth[level];
            used += (size_t)snprintf(path + used, sizeof(path) - used, "%s%.*s", used > 0 ? " " : "",
                                     (int)name, at + 1);
            at += name + 3; /* past the colon */
            if (*at == '{') {
                at--;
                continue;
            }
            /* a value: to the comma or brace behind it, strings and lists as they are */
            for (value = 0; at[value] != '\0' && at[value] != ',' && at[value] != '}'; value++)
                if (at[value] == '"')
                    for (value++; at[value] != '"' && at[value] != '\0'; value++)
                        value += at[value] == '\\';
                else if (at[value] == '[')
                    value += strcspn(at + value, "]");
            printf("%-20s %.*s\n", path, (int)(*at == '"' ? value - 2 : value), *at == '"' ? at + 1 : at);
            at += value - 1;
        }
    }
}

int
run_explain(int argc, char **argv)
{
    struct session session;
    char          *text;
    int            status = session_enter(&session, argc, argv, 1);

    if (status >= 0)
        return session_leave(&session, status);
    text = near_explain(session.cache, near_key(session.words[0]));
    if (text == NULL)
        status = complain(EXIT_TROUBLE, "explain: no such key is possible, or out of memory");
    else if (strstr(text, "\"answer\":\"unreachable\"") != NULL)
        status = complain(EXIT_TROUBLE, "explain: the shared tier does not answer");
    else
        status = EXIT_DONE;
    if (text != NULL && session.json)
        puts(text);
    else if (text != NULL)
        print_object(text);
    near_free(text);
    return session_leave(&session, status);
}
