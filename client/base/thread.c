#include "base/thread.h"

#include <signal.h>

near_status
near__thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *ctx)
{
    sigset_t all, before;
    int      rc;

    /* the new thread inherits the mask, so it never runs with a signal open */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(thread, NULL, run, ctx);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0)
        return NEAR_ERR_NOMEM;
    pthread_setname_np(*thread, name);
    return NEAR_OK;
}
