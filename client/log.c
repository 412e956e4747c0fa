/*
 * The client's side of the log: what rooms say goes through here to the application's callback.
 *
 * One leaf lock covers the state; it is dropped before the callback runs.  Messages that come before there is a callback are kept,
 * the last few of them, because the most interesting ones are said while a client opens.
 */
#include "client.h"

#include <stdio.h>
#include <string.h>

/* Under the lock: may this one pass?  The count of those that did not is told with the next that does. */
static bool
within_rate_locked(struct near__client_log *state, int64_t now, unsigned *suppressed) NEAR__NEEDS(state->lock)
{
    int64_t second = now / NEAR__SEC;

    *suppressed = 0;
    if (second != state->second) {
        state->second    = second;
        state->in_second = 0;
    }
    if (state->in_second >= NEAR__LOG_PER_SECOND) {
        state->suppressed++;
        return false;
    }
    state->in_second++;
    *suppressed       = state->suppressed;
    state->suppressed = 0;
    return true;
}

static void
keep_locked(struct near__client_log *state, near_log_level level, const char *message)
    NEAR__NEEDS(state->lock)
{
    if (state->kept == NEAR__LOG_BACKLOG) {
        memmove(&state->backlog[0], &state->backlog[1], sizeof(state->backlog[0]) * (NEAR__LOG_BACKLOG - 1));
        state->kept--;
    }
    state->backlog[state->kept].level = level;
    snprintf(state->backlog[state->kept].text, sizeof(state->backlog[0].text), "%s", message);
    state->kept++;
}

static void
client_log_write(void *ctx, near_log_level level, const char *message)
{
    near_client             *client     = ctx;
    struct near__client_log *state      = &client->log_state;
    near_log_fn              fn         = NULL;
    void                    *fn_ctx     = NULL;
    unsigned                 suppressed = 0;
    char                     text[600];

    if (level > state->level)
        return;
    near__lock(&state->lock);
    if (state->fn == NULL) {
        keep_locked(state, level, message);
    } else if (within_rate_locked(state, near__client_now(client), &suppressed)) {
        fn     = state->fn;
        fn_ctx = state->ctx;
    }
    near__unlock(&state->lock);
    if (fn == NULL)
        return;
    if (suppressed > 0)
        snprintf(text, sizeof(text), "%s (%u messages before this one were not shown)", message, suppressed);
    fn(level, suppressed > 0 ? text : message, fn_ctx);
}

void
near__client_log_init(near_client *client)
{
    near__lock_init(&client->log_state.lock, NEAR__RANK_LEAF);
    client->log_state.level = (near_log_level)client->settings.log_level;
    client->log.write       = client_log_write;
    client->log.ctx         = client;
}

void
near__client_log_fini(near_client *client)
{
    near__lock_fini(&client->log_state.lock);
}

void
near_set_log(near_client *client, near_log_fn fn, void *ctx)
{
    struct near__client_log *state;
    unsigned                 kept;
    struct {
        near_log_level level;
        char           text[512];
    } backlog[NEAR__LOG_BACKLOG];

    if (client == NULL || *client->alive == 0)
        return;
    state = &client->log_state;
    _Static_assert(sizeof(backlog) == sizeof(state->backlog), "one shape");
    near__lock(&state->lock);
    state->fn  = fn;
    state->ctx = ctx;
    kept       = fn != NULL ? state->kept : 0;
    memcpy(backlog, state->backlog, sizeof(backlog));
    if (fn != NULL)
        state->kept = 0;
    near__unlock(&state->lock);
    for (unsigned i = 0; i < kept; i++)
        fn(backlog[i].level, backlog[i].text, ctx);
}
