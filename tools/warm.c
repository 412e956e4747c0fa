/*
 * nearcache warm: the keys of a request log, or of a list, into a shared tier: from another one, or from a command that knows the
 * values.
 *
 * Keys go in batches at a bounded rate.  What is there already is left alone: a copy is put only where nothing is, and a loaded value is
 * stored under a lease, as any fetch stores it, so that a write of the service meanwhile wins.  With --state the offset of the first line
 * that is not done is kept beside, written and renamed, so that a run that was interrupted goes on where it ended.
 */
#include "connect.h"

#include "base/clock.h"
#include "base/hash.h"
#include "metrics.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 100,
    BATCH_TEXT =
        32 << 10, /* of lines for a command: they fit its pipe, so that nobody waits for the other one */
    LINE_MOST = 3 * (64 << 10) + 64,
    PAUSE     = 100 /* ms between tries of a batch, doubling */
};

struct warm {
    struct connect connect, from_connect;
    near_client   *client, *from_client;
    near_cache    *cache, *from;
    const char    *from_uri, *command, *state_path, *path;
    double         rate;
    uint64_t       limit;
    int64_t        retry;
    bool           json, progress;

    FILE    *file;
    char    *line;
    uint64_t number, offset, size; /* lines read, bytes done with, bytes in all (0: not known) */
    bool     log;                  /* keys stand as in a request log */

    /* the batch */
    near_bytes  keys[BATCH];
    near_value *values[BATCH];
    near_status statuses[BATCH];
    size_t      n, text;

    /* those that were asked for already */
    uint64_t *seen;
    size_t    seen_n, seen_room;

    /* the command */
    pid_t child;
    FILE *to_child, *from_child;
    bool  child_failed;

    uint64_t asked, present, stored, absent, refused, repeated;
    int64_t  began;
};

static _Atomic bool interrupted;

static void
interrupt(int signal)
{
    (void)signal;
    atomic_store(&interrupted, true);
}

/* ---- keys of a line */

static int
digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* %XX as bytes, in place; a lone % is the empty key.  False: malformed. */
static bool
decode(char *text, size_t *size)
{
    size_t to = 0;

    if (*size == 1 && *text == '%') {
        *size = 0;
        return true;
    }
    for (size_t at = 0; at < *size; at++, to++)
        if (text[at] != '%') {
            text[to] = text[at];
        } else {
            if (at + 2 >= *size || digit(text[at + 1]) < 0 || digit(text[at + 2]) < 0)
                return false;
            text[to] = (char)(digit(text[at + 1]) << 4 | digit(text[at + 2]));
            at += 2;
        }
    *size = to;
    return true;
}

static int
bad_line(const struct warm *warm, const char *why)
{
    return complain(EXIT_TROUBLE, "%s:%" PRIu64 ": %s", warm->path, warm->number, why);
}

static int
read_head(struct warm *warm)
{
    if (strncmp(warm->line, "# nearcache requests ", 21) != 0)
        return -1;
    if (strncmp(warm->line + 21, "v1 ", 3) != 0)
        return bad_line(warm, "a request log of a version that this one does not know");
    warm->log = true;
    if (strstr(warm->line, " keys=plain") == NULL)
        return bad_line(warm, "a log of hashes: keys are needed, log them with log.requests_keys = plain");
    return -1;
}

/* The key of the line, in it.  -1 to go on; *size SIZE_MAX: there is none. */
static int
key_of_line(struct warm *warm, size_t length, near_bytes *key)
{
    char  *at = warm->line + strspn(warm->line, " \t");
    size_t size;

    key->size = SIZE_MAX;
    if (strlen(warm->line) != length)
        return bad_line(warm, "a NUL byte: not a list of keys");
    if (*at == '#')
        return read_head(warm);
    size = strcspn(at, " \t");
    if (size == 0)
        return -1;
    if (warm->log && !decode(at, &size))
        return bad_line(warm, "malformed: % without two digits");
    if (size > (64 << 10))
        return bad_line(warm, "a key of more than 64 KiB");
    *key = (near_bytes){ at, size };
    return -1;
}

/* The first time: false for what was there already, and when there is no memory to remember it. */
static bool
is_repeated(struct warm *warm, near_bytes key)
{
    uint64_t hash = near__hash_fixed(key) | 1; /* 0 is an empty place */
    size_t   at;

    if (2 * (warm->seen_n + 1) > warm->seen_room) {
        size_t    room   = warm->seen_room == 0 ? 1 << 16 : 2 * warm->seen_room;
        uint64_t *larger = calloc(room, sizeof(*larger));

        if (larger == NULL)
            return false;
        for (size_t i = 0; i < warm->seen_room; i++) {
            if (warm->seen[i] == 0)
                continue;
            for (at = (warm->seen[i] >> 1) % room; larger[at] != 0;)
                at = at + 1 < room ? at + 1 : 0;
            larger[at] = warm->seen[i];
        }
        free(warm->seen);
        warm->seen      = larger;
        warm->seen_room = room;
    }
    for (at = (hash >> 1) % warm->seen_room; warm->seen[at] != 0;) {
        if (warm->seen[at] == hash)
            return true;
        at = at + 1 < warm->seen_room ? at + 1 : 0;
    }
    warm->seen[at] = hash;
    warm->seen_n++;
    return false;
}

/* ---- the command that knows the values */

static int
start_command(struct warm *warm)
{
    int in[2], out[2];

    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
        return complain(EXIT_TROUBLE, "--loader: %s", strerror(errno));
    warm->child = fork();
    if (warm->child == 0) {
        if (dup2(in[0], STDIN_FILENO) >= 0 && dup2(out[1], STDOUT_FILENO) >= 0)
            execl("/bin/sh", "sh", "-c", warm->command, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    warm->to_child   = fdopen(in[1], "w");
    warm->from_child = fdopen(out[0], "r");
    if (warm->child < 0 || warm->to_child == NULL || warm->from_child == NULL)
        return complain(EXIT_TROUBLE, "--loader: %s", strerror(errno));
    return -1;
}

/* As in a request log: one word whatever the bytes. */
static void
print_key(FILE *out, near_bytes key)
{
    const unsigned char *at = key.data;

    for (size_t i = 0; i < key.size; i++)
        if (at[i] > ' ' && at[i] < 0x7F && at[i] != '%' && at[i] != ',' && at[i] != '#' && at[i] != '"')
            fputc(at[i], out);
        else
            fprintf(out, "%%%02x", at[i]);
    fputs(key.size == 0 ? "%\n" : "\n", out);
}

/* SIZE, a newline, so many bytes, a newline; or -1. */
static bool
take_answer(struct warm *warm, near_load *load)
{
    long long size;
    char      line[32], *value, *end;
    bool      whole;

    if (fgets(line, sizeof(line), warm->from_child) == NULL)
        return false;
    size = strtoll(line, &end, 10);
    if (end == line || *end != '\n' || size < -1 ||
        (size > 0 && (uint64_t)size > warm->connect.settings.l2_max_value))
        return false;
    if (size == -1) {
        near_load_not_found(load);
        return true;
    }
    value = malloc((size_t)size + 1);
    whole = value != NULL && fread(value, 1, (size_t)size + 1, warm->from_child) == (size_t)size + 1 &&
            value[size] == '\n';
    if (whole)
        near_load_set(load, (near_bytes){ value, (size_t)size });
    free(value);
    return whole;
}

static void
load_by_command(near_load *loads[], size_t n, void *ctx)
{
    struct warm *warm = ctx;
    size_t       i    = 0;

    for (size_t k = 0; k < n; k++)
        print_key(warm->to_child, near_load_key(loads[k]));
    if (fflush(warm->to_child) == 0)
        while (i < n && take_answer(warm, loads[i]))
            i++;
    warm->child_failed |= i < n;
    for (; i < n; i++)
        near_load_fail(loads[i], NEAR_ERR_LOADER);
}

static void
end_command(struct warm *warm)
{
    int status;

    if (warm->to_child != NULL)
        fclose(warm->to_child);
    if (warm->from_child != NULL)
        fclose(warm->from_child);
    if (warm->child > 0)
        while (waitpid(warm->child, &status, 0) < 0 && errno == EINTR)
            ;
}

/* ---- a batch */

static void
pause_for(int64_t ns)
{
    struct timespec wait = { ns / NEAR__SEC, ns % NEAR__SEC };

    if (ns > 0)
        nanosleep(&wait, NULL); /* a signal ends it */
}

static near_status
copy_one(struct warm *warm, size_t i)
{
    near_put_options options = NEAR_PUT_OPTIONS_INIT;
    near_value_info  info    = NEAR_VALUE_INFO_INIT;

    near_value_get_info(warm->values[i], &info);
    options.flags  = NEAR_IF_ABSENT | NEAR_NO_FILL;
    options.ttl_ms = info.ttl_ms < 0 ? 0 : info.ttl_ms > 0 ? info.ttl_ms : 1;
    return near_put(warm->cache, warm->keys[i], near_value_bytes(warm->values[i]), &options);
}

/* What became of key i: counted, once. */
static near_status
settle(struct warm *warm, size_t i)
{
    near_status     status = warm->statuses[i];
    near_value_info info   = NEAR_VALUE_INFO_INIT;

    if (status == NEAR_OK && warm->from != NULL)
        status = copy_one(warm, i);
    else if (status == NEAR_OK)
        near_value_get_info(warm->values[i], &info);
    if (status == NEAR_ERR_CONFLICT || (status == NEAR_OK && info.source == NEAR_FROM_L2))
        warm->present++;
    else if (status == NEAR_OK)
        warm->stored++;
    else if (status > 0)
        warm->absent++;
    else if (status == NEAR_ERR_TOO_LARGE || status == NEAR_ERR_INVALID)
        warm->refused++;
    else
        return status;
    return NEAR_OK;
}

/* Those that failed are left, at the front. */
static near_status
try_batch(struct warm *warm)
{
    near_status first = NEAR_OK;
    size_t      left  = 0;

    if (warm->from != NULL)
        near_get_many(warm->from, warm->keys, warm->n, warm->values, warm->statuses);
    else if (warm->command != NULL)
        near_fetch_many(warm->cache, warm->keys, warm->n, NULL, warm->values, warm->statuses);
    else
        near_get_many(warm->cache, warm->keys, warm->n, warm->values, warm->statuses);
    for (size_t i = 0; i < warm->n; i++) {
        near_status status = settle(warm, i);

        near_value_release(warm->values[i]);
        if (status == NEAR_OK) {
            free((void *)(uintptr_t)warm->keys[i].data);
            continue;
        }
        first              = first == NEAR_OK ? status : first;
        warm->keys[left++] = warm->keys[i];
    }
    warm->n = left;
    return first;
}

static int
run_batch(struct warm *warm)
{
    int64_t pause = PAUSE * NEAR_MS, due, end = near__time_after(near__now(&near__clock_system), warm->retry);
    near_status status = NEAR_OK;

    warm->asked += warm->n;
    while (warm->n > 0 && !atomic_load(&interrupted)) {
        status = try_batch(warm);
        if (warm->child_failed && atomic_load(&interrupted))
            break; /* the signal was the command's as well, or came in the midst of its answer */
        if (warm->child_failed)
            return complain(EXIT_TROUBLE,
                            "--loader: the command ended, or answered with something that is no value");
        if (warm->n == 0 || near__now(&near__clock_system) >= end)
            break;
        pause_for(pause);
        pause *= 2;
    }
    if (warm->n > 0 && !atomic_load(&interrupted))
        return complain(EXIT_TROUBLE, "%zu keys could not be warmed: %s", warm->n, near_status_text(status));
    warm->text = 0;
    due        = warm->began + (int64_t)((double)warm->asked / warm->rate * 1e9);
    while (near__now(&near__clock_system) < due && !atomic_load(&interrupted))
        pause_for(due - near__now(&near__clock_system));
    return -1;
}

static bool
add_key(struct warm *warm, near_bytes key)
{
    char *copy = malloc(key.size + 1);

    if (copy == NULL)
        return false;
    memcpy(copy, key.data, key.size);
    warm->keys[warm->n++] = (near_bytes){ copy, key.size };
    warm->text += 3 * key.size + 1;
    return true;
}

/* ---- the state */

/* The list's beginning, by which it is known again. */
static uint64_t
list_mark(const struct warm *warm)
{
    char    head[4096];
    ssize_t n = pread(fileno(warm->file), head, sizeof(head), 0);

    /* as much as was there when it was begun: a log grows */
    return near__hash_fixed((near_bytes){ head, n < 64 ? (size_t)(n < 0 ? 0 : n) : 64 });
}

static int
write_state(const struct warm *warm)
{
    char  path[4096 + 8];
    int   fd;
    FILE *out;
    bool  ok;

    if (warm->state_path == NULL)
        return -1;
    if ((size_t)snprintf(path, sizeof(path), "%s.new", warm->state_path) >= sizeof(path))
        return complain(EXIT_TROUBLE, "--state: the name is too long");
    unlink(path);
    fd  = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    out = fd < 0 ? NULL : fdopen(fd, "w");
    if (out == NULL) {
        if (fd >= 0)
            close(fd);
        return complain(EXIT_TROUBLE, "%s: %s", path, strerror(errno));
    }
    fprintf(out, "nearcache warm v1 offset=%" PRIu64 " line=%" PRIu64 " log=%d list=%016" PRIx64 "\n",
            warm->offset, warm->number, warm->log, list_mark(warm));
    ok = fflush(out) == 0 && fsync(fd) == 0;
    ok = fclose(out) == 0 && ok;
    if (ok && rename(path, warm->state_path) == 0)
        return -1;
    complain(0, "%s: %s", warm->state_path, strerror(errno));
    unlink(path);
    return EXIT_TROUBLE;
}

/* Where the last run ended, if there was one. */
static int
read_state(struct warm *warm)
{
    uint64_t mark;
    FILE    *in;
    int      log, n;

    if (warm->state_path == NULL)
        return -1;
    in = fopen(warm->state_path, "re");
    if (in == NULL && errno == ENOENT)
        return write_state(warm); /* whether it can be written is found out now */
    if (in == NULL)
        return complain(EXIT_TROUBLE, "%s: %s", warm->state_path, strerror(errno));
    n = fscanf(in, "nearcache warm v1 offset=%" SCNu64 " line=%" SCNu64 " log=%d list=%" SCNx64,
               &warm->offset, &warm->number, &log, &mark);
    fclose(in);
    if (n != 4)
        return complain(EXIT_TROUBLE, "%s:1: is no state of `nearcache warm`", warm->state_path);
    if (mark != list_mark(warm))
        return complain(EXIT_TROUBLE, "%s: is the state of another list than %s", warm->state_path,
                        warm->path);
    warm->log = log != 0;
    if (fseeko(warm->file, (off_t)warm->offset, SEEK_SET) != 0)
        return complain(EXIT_TROUBLE, "%s: %s", warm->path, strerror(errno));
    return -1;
}

/* ---- progress */

static void
show_progress(const struct warm *warm, uint64_t from, bool last)
{
    static int64_t shown;
    int64_t        now     = near__now(&near__clock_system);
    double         seconds = (double)(now - warm->began) / 1e9, share;

    if (!warm->progress || (!last && now - shown < NEAR__SEC / 5))
        return;
    shown = now;
    if (last) {
        fputs("\r\033[K", stderr);
        return;
    }
    fprintf(stderr, "\r\033[K%" PRIu64 " keys, %" PRIu64 " stored, %.0f/s", warm->asked, warm->stored,
            (double)warm->asked / (seconds > 0 ? seconds : 1));
    share = warm->size > from ? (double)(warm->offset - from) / (double)(warm->size - from) : 0;
    if (share > 0)
        fprintf(stderr, ", %.0f %%, %.0f s left", 100 * (double)warm->offset / (double)warm->size,
                seconds / share - seconds);
}

/* ---- the list */

static int
open_list(struct warm *warm)
{
    struct stat about;
    int         magic;

    warm->file = strcmp(warm->path, "-") == 0 ? stdin : fopen(warm->path, "re");
    if (warm->file == NULL)
        return complain(EXIT_TROUBLE, "%s: %s", warm->path, strerror(errno));
    if (warm->file == stdin) {
        warm->path = "standard input";
        return warm->state_path == NULL ? -1 : complain(EXIT_USAGE, "--state: standard input cannot go on");
    }
    if (fstat(fileno(warm->file), &about) == 0 && S_ISREG(about.st_mode))
        warm->size = (uint64_t)about.st_size;
    magic = fgetc(warm->file);
    if (magic == 0x1F || magic == 0x28)
        return complain(EXIT_TROUBLE, "%s: is compressed; unpack it into a pipe and read -", warm->path);
    rewind(warm->file);
    return read_state(warm);
}

/* The next line with its end, as getline(3), but of LINE_MOST bytes at most: then it has no end. */
static ssize_t
read_line(struct warm *warm)
{
    ssize_t n = 0;
    int     c = 0;

    if (warm->line == NULL)
        warm->line = malloc(LINE_MOST + 1);
    if (warm->line == NULL)
        return -1;
    while (n < LINE_MOST && c != '\n' && (c = getc_unlocked(warm->file)) != EOF)
        warm->line[n++] = (char)c;
    warm->line[n] = '\0';
    return n > 0 ? n : -1;
}

/* Lines up to a full batch.  -1: there may be more; EXIT_DONE: that was all. */
static int
gather(struct warm *warm)
{
    near_bytes key;
    ssize_t    length;
    int        status;

    while (warm->n < BATCH && warm->text < BATCH_TEXT && warm->asked + warm->n < warm->limit) {
        length = read_line(warm);
        if (warm->line == NULL || ferror(warm->file))
            return complain(EXIT_TROUBLE, "%s: %s", warm->path, strerror(errno));
        if (length < 0)
            return EXIT_DONE;
        warm->number++;
        warm->offset += (uint64_t)length;
        if (length == LINE_MOST)
            return bad_line(warm, "a line of more than 192 KiB: not a list of keys");
        while (length > 0 && (warm->line[length - 1] == '\n' || warm->line[length - 1] == '\r'))
            warm->line[--length] = '\0';
        status = key_of_line(warm, (size_t)length, &key);
        if (status >= 0)
            return status;
        if (key.size == SIZE_MAX)
            continue;
        if (is_repeated(warm, key))
            warm->repeated++;
        else if (!add_key(warm, key))
            return complain(EXIT_TROUBLE, "out of memory");
    }
    return warm->asked + warm->n < warm->limit ? -1 : EXIT_DONE;
}

static int
warm_all(struct warm *warm)
{
    uint64_t from  = warm->offset, safe_offset, safe_number;
    int64_t  saved = near__now(&near__clock_system);
    int      got, status;

    warm->began = saved;
    do {
        safe_offset = warm->offset;
        safe_number = warm->number;
        got         = gather(warm);
        status      = got > EXIT_DONE ? got : run_batch(warm);
        if (status >= 0 || (warm->n > 0 && atomic_load(&interrupted))) { /* this batch again, the next time */
            warm->offset = safe_offset;
            warm->number = safe_number;
        }
        show_progress(warm, from, status >= 0 || got == EXIT_DONE || atomic_load(&interrupted));
        if (status < 0 && near__now(&near__clock_system) - saved > NEAR__SEC) {
            saved  = near__now(&near__clock_system);
            status = write_state(warm);
        }
    } while (status < 0 && got < 0 && !atomic_load(&interrupted));
    if (status < 0 && atomic_load(&interrupted))
        status = EXIT_INTERRUPTED;
    if (status < 0) {
        if (warm->state_path != NULL && unlink(warm->state_path) != 0 && errno != ENOENT)
            return complain(EXIT_TROUBLE, "%s: %s", warm->state_path, strerror(errno));
        return EXIT_DONE;
    }
    got = write_state(warm);
    return got >= 0 ? got : status;
}

static void
tell(const struct warm *warm, int status)
{
    double seconds = (double)(near__now(&near__clock_system) - warm->began) / 1e9;

    if (warm->json)
        printf("{ \"keys\": %" PRIu64 ", \"stored\": %" PRIu64 ", \"present\": %" PRIu64
               ", \"absent\": %" PRIu64 ", \"refused\": %" PRIu64 ", \"repeated\": %" PRIu64
               ", \"seconds\": %.3f, \"offset\": %" PRIu64 ", \"line\": %" PRIu64 ", \"complete\": %s }\n",
               warm->asked, warm->stored, warm->present, warm->absent, warm->refused, warm->repeated, seconds,
               warm->offset, warm->number, status == EXIT_DONE ? "true" : "false");
    else
        printf("%" PRIu64 " keys in %.1f s: %" PRIu64 " stored, %" PRIu64 " were there, %" PRIu64
               " have no value, %" PRIu64 " refused\n",
               warm->asked, seconds, warm->stored, warm->present, warm->absent, warm->refused);
}

/* ---- the whole */

static bool
take_option(void *ctx, int code, const char *argument)
{
    struct warm *warm = ctx;
    uint64_t     n;

    switch (code) {
    case 'j':
        warm->json = true;
        return true;
    case OPT_FROM:
        warm->from_uri = argument;
        return true;
    case OPT_LOADER:
        warm->command = argument;
        return true;
    case OPT_STATE:
        warm->state_path = argument;
        return true;
    case OPT_RATE:
        if (!read_number("rate", argument, 1, 100000000, &n))
            return false;
        warm->rate = (double)n;
        return true;
    case OPT_RETRY:
        return read_duration("retry", argument, &warm->retry);
    default:
        return read_number("limit", argument, 1, UINT64_MAX, &warm->limit);
    }
}

static near_cache *
open_cache(near_client *client, const char *name)
{
    near_cache *cache = NULL;
    near_error  error;

    if (near_cache_open(client, name, NULL, &cache, &error) != NEAR_OK)
        complain(0, "%s", error.text);
    return cache;
}

/* Nothing is to stay in this process, and of the source nothing need be heard. */
static int
open_both(struct warm *warm, int argc, char **argv, const char *name)
{
    int status;

    if (!connect_set("l1.max_bytes", "0", &warm->connect) || !connect_resolve(&warm->connect))
        return EXIT_USAGE;
    if (!connect_is_shared(&warm->connect))
        return EXIT_USAGE;
    warm->client = connect_client(&warm->connect);
    if (warm->client == NULL)
        return EXIT_TROUBLE;
    warm->cache = open_cache(warm->client, name);
    if (warm->cache == NULL)
        return EXIT_USAGE;
    if (warm->command != NULL)
        near_cache_set_loader(warm->cache, load_by_command, warm);
    if (warm->from_uri == NULL)
        return -1;
    status = connect_options(&warm->from_connect, argc, argv, take_option, warm);
    if (status >= 0 || !connect_set("l2.uri", warm->from_uri, &warm->from_connect) ||
        !connect_set("l1.max_bytes", "0", &warm->from_connect) ||
        !connect_set("l1.max_ttl", "0", &warm->from_connect) || /* bounds what it says of TTLs, too */
        !connect_set("coherence.mode", "none", &warm->from_connect) || !connect_resolve(&warm->from_connect))
        return EXIT_USAGE;
    warm->from_client = connect_client(&warm->from_connect);
    if (warm->from_client == NULL)
        return EXIT_TROUBLE;
    warm->from = open_cache(warm->from_client, name);
    return warm->from != NULL ? -1 : EXIT_USAGE;
}

static int
run(struct warm *warm, int argc, char **argv)
{
    struct sigaction action = { .sa_handler = interrupt }, ignore = { .sa_handler = SIG_IGN };
    const char      *name;
    int              status = connect_options(&warm->connect, argc, argv, take_option, warm);

    if (status >= 0)
        return status;
    if (argc - optind != 2 || (warm->from_uri != NULL && warm->command != NULL))
        return misuse("warm");
    name       = argv[optind];
    warm->path = argv[optind + 1];
    status     = open_list(warm);
    if (status < 0)
        status = open_both(warm, argc, argv, name);
    if (status < 0 && warm->command != NULL)
        status = start_command(warm);
    if (status >= 0)
        return status;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
    warm->progress = isatty(STDERR_FILENO) == 1;
    status         = warm_all(warm);
    tell(warm, status);
    return status;
}

static void
close_one(near_cache *cache, near_client *client, struct connect *connect)
{
    near_error error;

    near_cache_close(cache);
    if (client != NULL && near_client_close(client, &error) != NEAR_OK)
        complain(0, "%s", error.text);
    connect_free(connect);
}

int
run_warm(int argc, char **argv)
{
    struct warm *warm = calloc(1, sizeof(*warm));
    int          status;

    if (warm == NULL)
        return complain(EXIT_TROUBLE, "out of memory");
    warm->rate  = 1000;
    warm->limit = UINT64_MAX;
    warm->retry = 5 * NEAR__SEC;
    status      = run(warm, argc, argv);
    close_one(warm->from, warm->from_client, &warm->from_connect);
    close_one(warm->cache, warm->client, &warm->connect);
    end_command(warm);
    for (size_t i = 0; i < warm->n; i++)
        free((void *)(uintptr_t)warm->keys[i].data);
    if (warm->file != NULL && warm->file != stdin)
        fclose(warm->file);
    free(warm->seen);
    free(warm->line);
    free(warm);
    return status;
}
