/* See journals.h. */
#include "journals.h"

#include <stdlib.h>
#include <string.h>

struct near__journals {
    struct near__journals *next;
    struct near__journal  *journal;
    char                   directory[];
};

/* With a reference. */
static struct near__journal *
find(near_client *client, const char *directory)
{
    struct near__journals *at;

    near__lock(&client->lock);
    for (at = client->journals; at != NULL && strcmp(at->directory, directory) != 0; at = at->next)
        ;
    if (at != NULL)
        near__journal_hold(at->journal);
    near__unlock(&client->lock);
    return at != NULL ? at->journal : NULL;
}

static near_status
open_new(near_cache *cache, near_error *error)
{
    near_client                       *client   = cache->client;
    const struct near__settings       *settings = &cache->settings;
    const char                        *name     = settings->write_back_journal;
    const struct near__journal_options options  = {
         .directory = name,
         .fsync =
             (enum near__journal_fsync)settings->write_back_fsync, /* the choices are in the enum's order */
         .interval  = settings->write_back_fsync_interval,
         .max_bytes = settings->write_back_journal_max_bytes,
         .clock     = &client->clock,
         .log       = client->log,
    };
    struct near__journals *one = malloc(sizeof(*one) + strlen(name) + 1);
    near_status            status;

    if (one == NULL)
        return near__fail(error, NEAR_ERR_NOMEM, "cache %s: out of memory", cache->name);
    status = near__journal_open(&one->journal, &options, error);
    if (status != NEAR_OK) {
        free(one);
        return status;
    }
    strcpy(one->directory, name);
    near__journal_hold(one->journal);
    near__lock(&client->lock);
    one->next        = client->journals;
    client->journals = one;
    near__unlock(&client->lock);
    cache->journal = one->journal;
    return NEAR_OK;
}

near_status
near__journals_get(near_cache *cache, near_error *error)
{
    if (cache->settings.write_back_journal[0] == '\0')
        return NEAR_OK;
    cache->journal = find(cache->client, cache->settings.write_back_journal);
    return cache->journal != NULL ? NEAR_OK : open_new(cache, error);
}

near_status
near__journals_close(near_client *client, near_error *error)
{
    near_status status = NEAR_OK;

    while (client->journals != NULL) {
        struct near__journals *one = client->journals;
        near_error             inner;
        near_status            closed = near__journal_close(one->journal, &inner);

        if (status == NEAR_OK && closed != NEAR_OK)
            status = near__fail(error, closed, "closing: %s", inner.text);
        client->journals = one->next;
        free(one);
    }
    return status;
}

void
near__journals_state(near_client *client, struct near__journal_state *sum)
{
    struct near__journal_state one;

    *sum = (struct near__journal_state){ .live = 0 };
    near__lock(&client->lock);
    for (const struct near__journals *at = client->journals; at != NULL; at = at->next) {
        near__journal_state(at->journal, &one);
        sum->live += one.live;
        sum->bytes += one.bytes;
        sum->fsyncs += one.fsyncs;
        sum->failures += one.failures;
        sum->dead_letters += one.dead_letters;
    }
    near__unlock(&client->lock);
}
