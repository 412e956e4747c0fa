/*
 * A client with a cache, for tests that choose its servers and settings themselves (over every pair of tiers: world.h).  What its
 * threads log is kept in `logged`, which test_log_lock covers.
 */
#ifndef NEAR_INTEGRATION_INSTANCE_H
#define NEAR_INTEGRATION_INSTANCE_H

#include "harness/test.h"

#include "harness/log.h"

#include <nearcache.h>
#include <stdio.h>
#include <string.h>

#define SOON 20000 /* ms: what has not happened by then does not happen */

struct instance {
    near_client *client;
    near_cache  *cache, *other; /* `other` is opened by the test that wants it */
};

static char logged[8192];

static inline void
log_write(near_log_level level, const char *message, void *ctx)
{
    (void)ctx;
    (void)level;
    test_log_append(logged, sizeof(logged),
                    message); /* each client says what it has to say from threads of its own */
}

static inline unsigned
times_logged(const char *word)
{
    unsigned times = 0;

    pthread_mutex_lock(&test_log_lock);
    for (const char *at = strstr(logged, word); at != NULL; at = strstr(at + 1, word))
        times++;
    pthread_mutex_unlock(&test_log_lock);
    return times;
}

/* Names and values by turns, ended by NULL.  Several may be given: later ones win. */
static inline void
set_all(near_config *config, const char *const *settings)
{
    near_error error;

    for (; settings != NULL && settings[0] != NULL; settings += 2)
        if (near_config_set(config, settings[0], settings[1], &error) != NEAR_OK)
            fail_msg("%s", error.text);
}

/* The client, with the cache "c". */
static inline void
open_with(struct instance *in, const char *const *settings, const char *const *more)
{
    near_config *config = near_config_new();
    near_error   error;

    set_all(config, settings);
    set_all(config, more);
    if (near_client_open(config, &in->client, &error) != NEAR_OK)
        fail_msg("%s", error.text);
    near_config_free(config);
    assert_int_equal(near_cache_open(in->client, "c", NULL, &in->cache, &error), NEAR_OK);
    near_set_log(in->client, log_write, NULL);
}

/* If it is open. */
static inline void
close_instance(struct instance *in)
{
    if (in->client != NULL)
        near_client_close(in->client, NULL);
    in->client = NULL;
}

static inline near_stats
stats(const struct instance *in)
{
    near_stats s = NEAR_STATS_INIT;

    assert_int_equal(near_stats_get(in->client, &s), NEAR_OK);
    return s;
}

static inline int
owes_nothing(void *ctx)
{
    return stats(ctx).invalidations_pending == 0;
}

#endif
