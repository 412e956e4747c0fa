/*
 * What the library says, kept by a test: lines come from any of its threads, several at once where a bus has a thread for each of its
 * links.  One lock in each program is enough; a test reads the text when the threads are still.
 */
#ifndef NEAR_TESTS_HARNESS_LOG_H
#define NEAR_TESTS_HARNESS_LOG_H

#include <pthread.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t test_log_lock = PTHREAD_MUTEX_INITIALIZER;

/* Only the newest line, cut to SIZE. */
static inline void
test_log_newest(char *text, size_t size, const char *line)
{
    pthread_mutex_lock(&test_log_lock);
    snprintf(text, size, "%s", line);
    pthread_mutex_unlock(&test_log_lock);
}

/* Every line, while there is room for it. */
static inline void
test_log_append(char *text, size_t size, const char *line)
{
    pthread_mutex_lock(&test_log_lock);
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s\n", line);
    pthread_mutex_unlock(&test_log_lock);
}

#endif
