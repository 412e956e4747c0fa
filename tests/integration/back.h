/*
 * Behind the client's back: a handle of our own on the store that a world's instances share, by the backend's own contract, without
 * envelope, breaker or cache.
 */
#ifndef NEAR_TESTS_INTEGRATION_BACK_H
#define NEAR_TESTS_INTEGRATION_BACK_H

#include "integration/world.h"

#include "l2/backend.h"

struct back {
    struct near__uri          uri;
    struct near__log          log;
    struct near_l2_env        env;
    struct near_l2_traits     traits;
    const struct near_l2_ops *ops;
    void                     *self;
};

static inline void
back_open(struct back *back, const struct world *w)
{
    memset(back, 0, sizeof(*back));
    assert_int_equal(near__uri_parse(&back->uri, "l2.uri", w->l2, NULL), NEAR_OK);
    back->ops = near__l2_backend_named(back->uri.scheme);
    back->env = (struct near_l2_env){ .uri             = &back->uri,
                                      .clock           = &near__clock_system,
                                      .log             = &back->log,
                                      .connect_timeout = 2000 * NEAR_MS,
                                      .pool_size       = 1,
                                      .key_prefix  = "nc:", /* the marks that backends make are the same */
                                      .max_stored  = 16 << 20,
                                      .client_name = "back" };
    assert_int_equal(back->ops->open(&back->self, &back->env, &back->traits, NULL), NEAR_OK);
}

static inline void
back_close(struct back *back)
{
    back->ops->close(back->self);
    back->ops->stop(back->self);
    back->ops->fini(back->self);
}

/* The deadline of a call that is to work. */
static inline int64_t
soon(void)
{
    return near__now(&near__clock_system) + 5000 * NEAR_MS;
}

#endif
