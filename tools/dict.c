/*
 * nearcache dict: dictionaries for zstd (the option l2.dictionary): trained from samples, put into L2, shown, chosen.
 *
 * Samples come from files, from the values of listed keys, or from those of keys that a Redis server names (SCAN).  Every eighth is
 * kept back: what the dictionary does is measured on values that it was not made of.  Nothing is stored that does not help.
 */
#include "connect.h"

#include "client.h"
#include "l2/dictionary.h"
#include "l2/redis_home.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef NEAR_HAVE_ZSTD
#include <zdict.h>
#include <zstd.h>

enum {
    SAMPLE_MOST  = 128 << 10, /* of a larger one, its beginning: a dictionary is for small values */
    SAMPLES_MOST = 200000,
    BYTES_MOST   = 256 << 20,
    LEAST        = 16, /* samples: with fewer there is nothing in common to be found */
    BATCH        = 100,
    KEPT_BACK    = 8 /* one in so many */
};

struct dict {
    struct connect connect;
    near_client   *client;
    near_cache    *cache;
    const char    *keys_path, *output;
    uint64_t       size, sample;
    bool           lines, dry_run, json;
    bool           full; /* of samples: no more are read */

    char   *bytes; /* of all samples, one behind the other */
    size_t *sizes;
    size_t  n, used, room, sizes_room;

    near_bytes keys[BATCH];
    size_t     n_keys;
};

/* ---- samples */

static int
add_sample(struct dict *dict, near_bytes sample)
{
    size_t size = sample.size < SAMPLE_MOST ? sample.size : SAMPLE_MOST;

    dict->full = dict->full || dict->n == SAMPLES_MOST || dict->used + size > BYTES_MOST;
    if (size == 0 || dict->full)
        return -1;
    if (dict->used + size > dict->room) {
        size_t room = 2 * (dict->used + size);
        char  *more = realloc(dict->bytes, room);

        if (more == NULL)
            return complain(EXIT_TROUBLE, "out of memory");
        dict->bytes = more;
        dict->room  = room;
    }
    if (dict->n == dict->sizes_room) {
        size_t  room = 2 * dict->sizes_room + 1024;
        size_t *more = realloc(dict->sizes, room * sizeof(*more));

        if (more == NULL)
            return complain(EXIT_TROUBLE, "out of memory");
        dict->sizes      = more;
        dict->sizes_room = room;
    }
    memcpy(dict->bytes + dict->used, sample.data, size);
    dict->used += size;
    dict->sizes[dict->n++] = size;
    return -1;
}

static int
read_lines(struct dict *dict, FILE *file)
{
    char   *line     = NULL;
    size_t  capacity = 0;
    ssize_t size;
    int     status = -1;

    while (status < 0 && !dict->full && (size = getline(&line, &capacity, file)) >= 0)
        status = add_sample(dict, (near_bytes){ line, (size_t)size - (size > 0 && line[size - 1] == '\n') });
    free(line);
    return status;
}

static int
read_file(struct dict *dict, const char *path)
{
    FILE  *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    char  *text;
    size_t size;
    int    status;

    if (file == NULL)
        return complain(EXIT_TROUBLE, "%s: %s", path, strerror(errno));
    if (dict->lines) {
        status = read_lines(dict, file);
    } else {
        text   = malloc(SAMPLE_MOST);
        size   = text != NULL ? fread(text, 1, SAMPLE_MOST, file) : 0;
        status = text != NULL ? add_sample(dict, (near_bytes){ text, size })
                              : complain(EXIT_TROUBLE, "out of memory");
        free(text);
    }
    if (status < 0 && ferror(file))
        status = complain(EXIT_TROUBLE, "%s: %s", path, strerror(errno));
    if (file != stdin)
        fclose(file);
    return status;
}

/* The values of the keys collected: what is not there, or cannot be read, is no sample. */
static int
read_values(struct dict *dict)
{
    near_value *values[BATCH];
    near_status statuses[BATCH], first;
    int         status = -1;

    if (dict->n_keys == 0)
        return -1;
    first = near_get_many(dict->cache, dict->keys, dict->n_keys, values, statuses);
    for (size_t i = 0; i < dict->n_keys; i++) {
        if (status < 0 && statuses[i] == NEAR_OK)
            status = add_sample(dict, near_value_bytes(values[i]));
        near_value_release(values[i]);
        free((void *)(uintptr_t)dict->keys[i].data);
    }
    dict->n_keys = 0;
    if (status < 0 && (first == NEAR_ERR_UNAVAILABLE || first == NEAR_ERR_TIMEOUT))
        status = complain(EXIT_TROUBLE, "the shared tier: %s", near_status_text(first));
    return status;
}

static int
add_key(struct dict *dict, const char *key, size_t size)
{
    char *copy = malloc(size + 1);

    if (copy == NULL)
        return complain(EXIT_TROUBLE, "out of memory");
    memcpy(copy, key, size);
    dict->keys[dict->n_keys++] = (near_bytes){ copy, size };
    return dict->n_keys == BATCH ? read_values(dict) : -1;
}

/* A key as the first word of each line. */
static int
read_listed(struct dict *dict)
{
    FILE  *file     = strcmp(dict->keys_path, "-") == 0 ? stdin : fopen(dict->keys_path, "re");
    char  *line     = NULL;
    size_t capacity = 0;
    int    status   = -1;

    if (file == NULL)
        return complain(EXIT_TROUBLE, "%s: %s", dict->keys_path, strerror(errno));
    while (status < 0 && !dict->full && getline(&line, &capacity, file) >= 0) {
        const char *key  = line + strspn(line, " \t");
        size_t      size = strcspn(key, " \t\r\n");

        if (size > 0 && key[0] != '#')
            status = add_key(dict, key, size);
    }
    free(line);
    if (file != stdin)
        fclose(file);
    return status < 0 ? read_values(dict) : status;
}

/* ---- keys that the server names */

struct scan {
    struct dict *dict;
    char         cursor[24];
    size_t       skip; /* what stands before our keys */
    uint64_t     left;
    bool         sound;
    int          status;
};

static void
take_page(void *ctx, size_t index, redisReply *reply)
{
    struct scan *scan = ctx;
    redisReply  *page;

    (void)index;
    scan->sound = reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
                  reply->element[0]->type == REDIS_REPLY_STRING &&
                  reply->element[0]->len < sizeof(scan->cursor) &&
                  reply->element[1]->type == REDIS_REPLY_ARRAY;
    if (!scan->sound)
        return;
    memcpy(scan->cursor, reply->element[0]->str, reply->element[0]->len + 1);
    page = reply->element[1];
    for (size_t i = 0; i < page->elements && scan->status < 0 && scan->left > 0; i++) {
        const redisReply *key = page->element[i];

        if (key->type != REDIS_REPLY_STRING || key->len <= scan->skip)
            continue;
        scan->left--;
        scan->status = add_key(scan->dict, key->str + scan->skip, key->len - scan->skip);
    }
}

/* Bytes that SCAN's patterns take for something else get a backslash. */
static void
print_pattern(char *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (strchr("*?[]^\\-", *text) != NULL)
            *out++ = '\\';
        *out++ = *text;
    }
    memcpy(out, "*", 2);
}

static int
read_scanned(struct dict *dict)
{
    const struct near__settings *settings = &dict->connect.settings;
    struct near__redis_server    server   = { .uri       = &dict->connect.l2_uri,
                                              .access    = &dict->connect.access.l2,
                                              .clock     = &near__clock_system,
                                              .max_reply = 16 << 20 };
    struct scan                  scan = { .dict = dict, .cursor = "0", .left = dict->sample, .status = -1 };
    struct near__redis_conn     *conn;
    char                         prefix[160], pattern[2 * sizeof(prefix) + 2];
    near_error                   error;

    if (strncmp(dict->connect.l2_uri.scheme, "redis", 5) != 0 ||
        strstr(dict->connect.l2_uri.scheme, "cluster") != NULL)
        return complain(EXIT_USAGE, "--sample: only a Redis server names its keys; give a list with --keys");
    snprintf(prefix, sizeof(prefix), "%.64s%s:", settings->l2_key_prefix, dict->cache->name);
    print_pattern(pattern, prefix);
    scan.skip = strlen(prefix);
    if (near__redis_dial_home(&conn, &server, prefix, NULL,
                              near__time_after(near__now(&near__clock_system), settings->l2_connect_timeout),
                              &error) != NEAR_OK)
        return complain(EXIT_TROUBLE, "%s", error.text);
    do {
        near_bytes words[] = { near_key("SCAN"),  near_key(scan.cursor), near_key("MATCH"),
                               near_key(pattern), near_key("COUNT"),     near_key("500") };

        scan.sound = false;
        if (near__redis_append(conn, NEAR_COUNT_OF(words), words) != NEAR_OK ||
            near__redis_exchange(conn, take_page, &scan, NULL, NULL,
                                 near__time_after(near__now(&near__clock_system), 5 * NEAR__SEC),
                                 &error) != NEAR_OK ||
            !scan.sound) {
            near__redis_conn_free(&conn);
            return complain(EXIT_TROUBLE, "SCAN: the server refuses, or does not answer");
        }
    } while (scan.status < 0 && scan.left > 0 && !dict->full && strcmp(scan.cursor, "0") != 0);
    near__redis_conn_free(&conn);
    return scan.status < 0 ? read_values(dict) : scan.status;
}

/* ---- training */

struct trained {
    uint8_t *bytes;
    size_t   size;
    uint32_t id;
    uint64_t raw, with, without; /* bytes of the samples kept back */
    size_t   tested;
};

static int
train(struct dict *dict, struct trained *trained)
{
    size_t *sizes = malloc(dict->n * sizeof(*sizes)), n = 0, used = 0, at = 0, got;
    char   *bytes = malloc(dict->used);

    trained->bytes = malloc(dict->size);
    if (sizes == NULL || bytes == NULL || trained->bytes == NULL) {
        free(sizes);
        free(bytes);
        return complain(EXIT_TROUBLE, "out of memory");
    }
    for (size_t i = 0; i < dict->n; at += dict->sizes[i++])
        if (i % KEPT_BACK != KEPT_BACK - 1) {
            memcpy(bytes + used, dict->bytes + at, dict->sizes[i]);
            used += dict->sizes[i];
            sizes[n++] = dict->sizes[i];
        }
    got = ZDICT_trainFromBuffer(trained->bytes, dict->size, bytes, sizes, (unsigned)n);
    free(sizes);
    free(bytes);
    if (ZDICT_isError(got))
        return complain(EXIT_TROUBLE,
                        "no dictionary can be made of %zu samples, %zu bytes: %s; more of them, and some "
                        "hundred times --size in all, do",
                        dict->n, dict->used, ZDICT_getErrorName(got));
    trained->size = got;
    trained->id   = near__dictionary_seal(trained->bytes, got);
    return trained->id != 0 ? -1 : complain(EXIT_TROUBLE, "what was made is no dictionary");
}

static int
measure(const struct dict *dict, struct trained *trained)
{
    static struct near__packer packer;
    struct near__dictionary   *dictionary;
    size_t                     at     = 0, size;
    uint8_t                   *room   = malloc(SAMPLE_MOST);
    int                        status = -1;

    if (room == NULL || near__dictionary_new((near_bytes){ trained->bytes, trained->size }, trained->id,
                                             &dictionary) != NEAR_OK) {
        free(room);
        return complain(EXIT_TROUBLE, "what was made cannot be used");
    }
    if (near__dictionary_prepare(dictionary) != NEAR_OK)
        status = complain(EXIT_TROUBLE, "out of memory");
    for (size_t i = 0; status < 0 && i < dict->n; at += dict->sizes[i++]) {
        near_bytes sample = { dict->bytes + at, dict->sizes[i] };

        if (i % KEPT_BACK != KEPT_BACK - 1)
            continue;
        trained->tested++;
        trained->raw += sample.size;
        size = near__dictionary_pack(&packer, dictionary, sample, room, sample.size);
        trained->with += size > 0 ? size : sample.size;
        size = near__pack(&packer, NEAR__CODEC_ZSTD, sample, room, sample.size);
        trained->without += size > 0 ? size : sample.size;
    }
    near__packer_fini(&packer);
    near__dictionary_release(dictionary);
    free(room);
    return status;
}

static int
write_output(const char *path, const struct trained *trained)
{
    FILE *out = fopen(path, "we");
    bool  ok  = out != NULL && fwrite(trained->bytes, 1, trained->size, out) == trained->size;

    if (out != NULL && fclose(out) != 0)
        ok = false;
    return ok ? -1 : complain(EXIT_TROUBLE, "%s: %s", path, strerror(errno));
}

static int64_t
deadline(const struct dict *dict)
{
    return near__time_after(near__now(&near__clock_system), dict->connect.settings.l2_timeout);
}

static int
store(struct dict *dict, near_bytes bytes, uint32_t id)
{
    near_status status = near__dictionaries_store(dict->cache, bytes, id, deadline(dict));

    if (status == NEAR_OK)
        status = near__dictionaries_name(dict->cache, id, deadline(dict));
    return status == NEAR_OK ? EXIT_DONE
                             : complain(EXIT_TROUBLE, "the shared tier: %s", near_status_text(status));
}

static int
run_train(struct dict *dict, char **paths)
{
    struct trained trained = { 0 };
    bool           helps;
    int            status = -1;

    for (; status < 0 && !dict->full && *paths != NULL; paths++)
        status = read_file(dict, *paths);
    if (status < 0 && !dict->full && dict->keys_path != NULL)
        status = read_listed(dict);
    if (status < 0 && !dict->full && dict->sample > 0)
        status = read_scanned(dict);
    if (status < 0 && dict->n < LEAST)
        status = complain(EXIT_TROUBLE, "%zu samples: at least %d are needed", dict->n, LEAST);
    if (status < 0)
        status = train(dict, &trained);
    if (status < 0)
        status = measure(dict, &trained);
    if (status < 0 && dict->output != NULL)
        status = write_output(dict->output, &trained);
    helps = trained.with * 10 <= trained.raw * 9; /* as a cache judges it */
    if (status < 0 && !dict->dry_run && helps)
        status = store(dict, (near_bytes){ trained.bytes, trained.size }, trained.id);
    if (status < 0 || status == EXIT_DONE) {
        printf(dict->json ? "{ \"id\": %" PRIu32
                            ", \"size\": %zu, \"samples\": %zu, \"tested\": %zu, \"raw\": %" PRIu64
                            ", \"with\": %" PRIu64 ", \"without\": %" PRIu64 ", \"stored\": %s }\n"
                          : "dictionary %" PRIu32 ", %zu bytes, of %zu samples; %zu others: %" PRIu64
                            " bytes, %" PRIu64 " with it, %" PRIu64 " without; stored: %s\n",
               trained.id, trained.size, dict->n, trained.tested, trained.raw, trained.with, trained.without,
               status != EXIT_DONE ? dict->json ? "false" : "no"
               : dict->json        ? "true"
                                   : "yes");
        if (!helps)
            status = complain(EXIT_NOT_FOUND, "it does not help: values like these are not compressible");
        status = status < 0 ? EXIT_DONE : status;
    }
    free(trained.bytes);
    return status;
}

static int
run_show(struct dict *dict)
{
    uint32_t                 id;
    struct near__dictionary *dictionary;
    near_status              status = near__dictionaries_newest(dict->cache, &id, deadline(dict));

    if (status == NEAR_OK && id != 0)
        status = near__dictionaries_fetch(dict->cache, id, deadline(dict));
    if (status < 0)
        return complain(EXIT_TROUBLE, "the shared tier: %s", near_status_text(status));
    if (id == 0)
        return complain(EXIT_NOT_FOUND, "the cache has no dictionary");
    if (status != NEAR_OK)
        return complain(EXIT_NOT_FOUND, "dictionary %" PRIu32 " is named, and not there", id);
    dictionary = near__dictionaries_find(dict->cache, id);
    printf(dict->json ? "{ \"id\": %" PRIu32 ", \"size\": %zu }\n" : "dictionary %" PRIu32 ", %zu bytes\n",
           id, dictionary != NULL ? near__dictionary_bytes(dictionary).size : 0);
    near__dictionary_release(dictionary);
    return EXIT_DONE;
}

static int
run_use(struct dict *dict, const char *word)
{
    uint32_t    id     = 0;
    near_status status = NEAR_OK;

    if (strcmp(word, "none") != 0 && (!near__dictionaries_parse(word, &id) || id == 0))
        return complain(EXIT_USAGE, "\"%.64s\": accepts the id of a dictionary, or none", word);
    if (id != 0)
        status = near__dictionaries_fetch(dict->cache, id, deadline(dict));
    if (status == NEAR_MISS)
        return complain(EXIT_NOT_FOUND, "there is no dictionary %" PRIu32, id);
    if (status == NEAR_OK)
        status = near__dictionaries_name(dict->cache, id, deadline(dict));
    return status == NEAR_OK ? EXIT_DONE
                             : complain(EXIT_TROUBLE, "the shared tier: %s", near_status_text(status));
}

/* ---- the whole */

static bool
take_option(void *ctx, int code, const char *argument)
{
    struct dict *dict = ctx;

    switch (code) {
    case 'j':
        return dict->json = true;
    case OPT_KEYS:
        dict->keys_path = argument;
        return true;
    case OPT_LINES:
        return dict->lines = true;
    case OPT_DRY_RUN:
        return dict->dry_run = true;
    case OPT_OUTPUT:
        dict->output = argument;
        return true;
    case OPT_SAMPLE:
        return read_number("sample", argument, LEAST, SAMPLES_MOST, &dict->sample);
    default:
        return read_number("size", argument, 1024, NEAR__DICTIONARY_MOST, &dict->size);
    }
}

static int
run(struct dict *dict, int argc, char **argv)
{
    const char *verb;
    near_error  error;
    int         status = connect_options(&dict->connect, argc, argv, take_option, dict);

    if (status >= 0)
        return status;
    if (argc - optind < 2)
        return misuse("dict");
    verb = argv[optind];
    argv += optind + 1;
    argc -= optind + 1;
    if (strcmp(verb, "train") != 0 && !(strcmp(verb, "show") == 0 && argc == 1) &&
        !(strcmp(verb, "use") == 0 && argc == 2))
        return misuse("dict");
    /* what is read is not kept here, nor compressed */
    if (!connect_set("l1.max_bytes", "0", &dict->connect) ||
        !connect_set("l2.dictionary", "", &dict->connect) || !connect_resolve(&dict->connect) ||
        !connect_is_shared(&dict->connect))
        return EXIT_USAGE;
    dict->client = connect_client(&dict->connect);
    if (dict->client == NULL)
        return EXIT_TROUBLE;
    if (near_cache_open(dict->client, argv[0], NULL, &dict->cache, &error) != NEAR_OK)
        return complain(EXIT_USAGE, "%s", error.text);
    if (strcmp(verb, "train") == 0)
        return run_train(dict, argv + 1);
    return strcmp(verb, "show") == 0 ? run_show(dict) : run_use(dict, argv[1]);
}

int
run_dict(int argc, char **argv)
{
    struct dict dict = { .size = 32 << 10 };
    near_error  error;
    int         status = run(&dict, argc, argv);

    for (size_t i = 0; i < dict.n_keys; i++)
        free((void *)(uintptr_t)dict.keys[i].data);
    near_cache_close(dict.cache);
    if (dict.client != NULL && near_client_close(dict.client, &error) != NEAR_OK)
        status = complain(EXIT_TROUBLE, "%s", error.text);
    connect_free(&dict.connect);
    free(dict.bytes);
    free(dict.sizes);
    return status;
}

#else

int
run_dict(int argc, char **argv)
{
    (void)argc, (void)argv;
    return complain(EXIT_TROUBLE, "dict: this build has no libzstd");
}

#endif
