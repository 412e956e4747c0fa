/* What this process has of the system: memory, descriptors, threads.  Read from /proc; -1 where that is not there. */
#ifndef TESTS_HARNESS_PROCESS_H
#define TESTS_HARNESS_PROCESS_H

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* How many names a directory has, but for the two that all have. */
static inline long
process_names_in(const char *path)
{
    DIR *directory = opendir(path);
    long n         = -2;

    if (directory == NULL)
        return -1;
    while (readdir(directory) != NULL)
        n++;
    closedir(directory);
    return n;
}

/* With the one that looks. */
static inline long
process_descriptors(void)
{
    return process_names_in("/proc/self/fd");
}

static inline long
process_threads(void)
{
    return process_names_in("/proc/self/task");
}

/* Whether this thread of ours has this name, and is not about to end: who was joined may be seen for a moment more. */
static inline bool
process_thread_is(const char *task, const char *name)
{
    enum { EXITING = 4 }; /* the kernel's PF_EXITING */
    char        path[300], text[512], *end = NULL;
    const char *begin = NULL;
    unsigned    flags;
    FILE       *file;

    snprintf(path, sizeof(path), "/proc/self/task/%s/stat", task);
    file = fopen(path, "re");
    if (file == NULL)
        return false;                              /* it has ended; or "." */
    if (fgets(text, sizeof(text), file) != NULL) { /* number (name) state and five more, flags */
        begin = strchr(text, '(');
        end   = strrchr(text, ')');
    }
    fclose(file);
    if (begin == NULL || end == NULL || sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) != 1)
        return false;
    *end = '\0';
    return strcmp(begin + 1, name) == 0 && (flags & EXITING) == 0;
}

/* Of these, those with this name. */
static inline long
process_threads_named(const char *name)
{
    DIR                 *directory = opendir("/proc/self/task");
    const struct dirent *task;
    long                 n = 0;

    if (directory == NULL)
        return -1;
    while ((task = readdir(directory)) != NULL)
        n += process_thread_is(task->d_name, name);
    closedir(directory);
    return n;
}

/* Resident memory, KiB. */
static inline long
process_rss_kib(void)
{
    FILE *file = fopen("/proc/self/statm", "re");
    long  pages, resident = -1;

    if (file == NULL)
        return -1;
    if (fscanf(file, "%ld %ld", &pages, &resident) != 2)
        resident = -1;
    fclose(file);
    return resident < 0 ? -1 : resident * (sysconf(_SC_PAGESIZE) / 1024);
}

#endif
