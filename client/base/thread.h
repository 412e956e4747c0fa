/* Background threads: named, every signal blocked before the first instruction, joined by whoever started them. */
#ifndef NEAR_BASE_THREAD_H
#define NEAR_BASE_THREAD_H

#include "base/base.h"

#include <pthread.h>

/* `name` has at most 15 characters.  NEAR_ERR_NOMEM when the system gives no thread. */
near_status near__thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx);

#endif
