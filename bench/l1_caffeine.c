/*
 * Caffeine, in a Java process of its own that runs the same sequences (L1Caffeine.java) and reports figures by the line.
 *
 * The child lives as long as its cache is open: it ends when its stdin is closed.  Where java or the jar is missing the peer is
 * left out.  L1_CAFFEINE_JAR names another jar than Debian's.
 */
#include "bench/l1.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef L1_CAFFEINE_JAR
#define L1_CAFFEINE_JAR "/usr/share/java/caffeine.jar"
#endif

struct caffeine {
    pid_t pid;
    FILE *to, *from;
};

static const char *
jar(void)
{
    const char *path = getenv("L1_CAFFEINE_JAR");

    return path != NULL ? path : L1_CAFFEINE_JAR;
}

static void
become_java(const struct l1_world *world, uint32_t capacity, const int in[2], const int out[2])
{
    char file[40], length[16], threads[16], keys[16], most[16];

    dup2(in[0], 0);
    dup2(out[1], 1);
    close(in[1]);
    close(out[0]);
    snprintf(file, sizeof(file), "/proc/self/fd/%d", world->file);
    snprintf(length, sizeof(length), "%d", L1_SEQUENCE);
    snprintf(threads, sizeof(threads), "%u", world->threads);
    snprintf(keys, sizeof(keys), "%u", world->keys);
    snprintf(most, sizeof(most), "%u", capacity);
    execlp("java", "java", "-Xms2g", "-Xmx2g", "-cp", jar(), L1_SOURCE "/L1Caffeine.java", file, length,
           threads, keys, most, (char *)NULL);
    _exit(127);
}

static void
caffeine_close(void *cache)
{
    struct caffeine *caffeine = cache;

    fclose(caffeine->to);
    fclose(caffeine->from);
    waitpid(caffeine->pid, NULL, 0);
    free(caffeine);
}

static bool
start(struct caffeine *caffeine, const struct l1_world *world, uint32_t capacity)
{
    int in[2], out[2];

    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
        return false;
    fflush(NULL);
    caffeine->pid = fork();
    if (caffeine->pid == 0)
        become_java(world, capacity, in, out);
    close(in[0]);
    close(out[1]);
    caffeine->to   = fdopen(in[1], "w");
    caffeine->from = fdopen(out[0], "r");
    return caffeine->pid > 0;
}

static void *
caffeine_open(const struct l1_peer *peer, const struct l1_world *world, uint32_t capacity, const char **why)
{
    struct caffeine *caffeine = calloc(1, sizeof(*caffeine));
    char             line[64];

    (void)peer;
    signal(SIGPIPE, SIG_IGN); /* a child that has died shows as a failed read */
    *why = "needs java 11 or later and caffeine.jar (packages default-jdk-headless and libcaffeine-java)";
    if (caffeine == NULL || access(jar(), R_OK) != 0 || !start(caffeine, world, capacity)) {
        free(caffeine);
        return NULL;
    }
    if (fgets(line, sizeof(line), caffeine->from) != NULL && strcmp(line, "ready\n") == 0)
        return caffeine;
    caffeine_close(caffeine);
    return NULL;
}

static bool
caffeine_run(void *cache, enum l1_op op, unsigned threads, double seconds, struct l1_figures *figures)
{
    static const char *const names[L1_OPS] = {
        [L1_GET] = "get", [L1_CHURN] = "churn", [L1_SAMPLED] = "sampled", [L1_MIXED] = "mixed"
    };
    struct caffeine *caffeine = cache;
    char             line[256];
    int              wrong;

    fprintf(caffeine->to, "%s %u %g\n", names[op], threads, seconds);
    fflush(caffeine->to);
    if (fgets(line, sizeof(line), caffeine->from) == NULL ||
        sscanf(line, "%lf %lf %lf %lf %lf %lf %lf %d", &figures->ns, &figures->rate, &figures->cpu,
               &figures->hits, &figures->p50, &figures->p99, &figures->p999, &wrong) != 8)
        return false;
    figures->wrong = wrong != 0;
    return true;
}

static double
caffeine_bytes(void *cache)
{
    struct caffeine *caffeine = cache;
    char             line[64];

    fprintf(caffeine->to, "bytes\n");
    fflush(caffeine->to);
    return fgets(line, sizeof(line), caffeine->from) != NULL ? strtod(line, NULL) : -1;
}

static void
elsewhere(struct l1_thread *thread) /* marks the operations that run in the child; never called */
{
    (void)thread;
}

const struct l1_peer l1_caffeine = {
    .name   = "Caffeine (Java)",
    .open   = caffeine_open,
    .close  = caffeine_close,
    .loops  = { [L1_GET]     = elsewhere,
                [L1_CHURN]   = elsewhere,
                [L1_SAMPLED] = elsewhere,
                [L1_MIXED]   = elsewhere },
    .run    = caffeine_run,
    .bytes  = caffeine_bytes,
    .evicts = true,
};
