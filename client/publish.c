/* See publish.h. */
#include "publish.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "requests.h"

enum { HOT_SHOWN = 5 };

#define LEAST (100 * NEAR_MS) /* a text costs some tens of microseconds */

struct near__publish {
    near_client       *client;
    char               channel[NEAR__CHANNEL_SIZE];
    uint64_t           id, number;
    int64_t            began;
    bool               failing; /* and that was said; the job's */
    struct near__lock  lock;    /* leaf */
    bool               busy;
    struct near__job   job;
    struct near__timer timer;
};

/* ---- the text */

/* One word: what would end it is replaced. */
static void
print_word(FILE *out, const char *word)
{
    for (; *word != '\0'; word++)
        fputc(*word > ' ' && *word < 0x7F ? *word : '_', out);
}

static void
print_instance(FILE *out, const struct near__publish *p)
{
    char host[65] = "?";

    if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0')
        snprintf(host, sizeof(host), "?");
    fprintf(out, "nearcache-stats 1\ninstance %016" PRIx64 " ", p->id);
    print_word(out, host);
    fprintf(out, " %ld ", (long)getpid());
    print_word(out, program_invocation_short_name[0] != '\0' ? program_invocation_short_name : "?");
    fprintf(out, " %s\ntime %" PRIu64 " %" PRId64 " %" PRId64 "\n", near_version(), p->number,
            (near__client_now(p->client) - p->began) / NEAR_MS, p->client->settings.stats_publish / NEAR_MS);
}

static void
print_counters(FILE *out, const struct near__snapshot *all, size_t i)
{
    for (int which = 0; which < NEAR__COUNTERS; which++) {
        bool     whole = near__counter_rows[which].whole;
        uint64_t n =
            i == SIZE_MAX ? near__snapshot_total(all, (enum near__counter)which) : all->of[i].n[which];

        if (whole == (i == SIZE_MAX) && n != 0)
            fprintf(out, " %s=%" PRIu64, near__counter_rows[which].name, n);
    }
    fputc('\n', out);
}

/* In whole numbers: printf's floating point follows the application's locale. */
static void
print_quantiles(FILE *out, const struct near__snapshot *all, struct near__histogram_sums *sums)
{
    for (int which = 0; which < NEAR__TIMINGS; which++) {
        near__snapshot_histogram(all, SIZE_MAX, (enum near__timing)which, sums);
        if (sums->count > 0)
            fprintf(out, "quantiles %s %" PRIu64 " %.0f %.0f %.0f\n", near__timing_rows[which].name,
                    sums->count, near__histogram_quantile(sums, 0.5), near__histogram_quantile(sums, 0.99),
                    near__histogram_quantile(sums, 1));
    }
}

static void
print_hot(FILE *out, near_cache *cache, bool plain)
{
    struct near__hot_key top[HOT_SHOWN];
    uint64_t             total;
    size_t               n = near__hot_top(cache, top, HOT_SHOWN, &total);

    for (size_t i = 0; i < n && total > 0; i++) {
        near_bytes key = { top[i].key, top[i].size < NEAR__HOT_KEY ? top[i].size : NEAR__HOT_KEY };
        char       text[3 * NEAR__HOT_KEY + 1];

        fprintf(out, "hot %s %" PRIu64 " %016" PRIx64, cache->name,
                (top[i].count - top[i].over / 2) * 1000000 / total, near__hash_fixed(key));
        if (plain)
            fprintf(out, " %.*s", (int)near__key_print(text, key), text);
        fputc('\n', out);
    }
}

static void
print_caches(FILE *out, const near_client *client, const struct near__snapshot *all)
{
    unsigned keys  = client->settings.stats_publish_keys;
    size_t   shown = all->caches < NEAR__PUBLISH_CACHES ? all->caches : NEAR__PUBLISH_CACHES;

    for (size_t i = 1; i <= shown; i++) {
        fprintf(out, "cache %s", all->of[i].cache->name);
        print_counters(out, all, i);
    }
    if (shown < all->caches)
        fprintf(out, "more %zu\n", all->caches - shown);
    for (size_t i = 1; keys != NEAR__PUBLISH_NONE && i <= shown; i++) /* last: what does not fit is cut off */
        print_hot(out, all->of[i].cache, keys == NEAR__PUBLISH_PLAIN);
}

/* To be freed; NULL: out of memory. */
static char *
make_text(const struct near__publish *p, size_t *size)
{
    struct near__histogram_sums *sums = malloc(sizeof(*sums));
    struct near__snapshot        all  = { .of = NULL };
    char                        *text = NULL;
    FILE                        *out  = NULL;
    bool                         ok   = false;

    if (sums != NULL && near__snapshot_take(&all, p->client) == NEAR_OK)
        out = open_memstream(&text, size);
    if (out != NULL) {
        print_instance(out, p);
        fputs("client", out);
        print_counters(out, &all, SIZE_MAX);
        print_quantiles(out, &all, sums);
        print_caches(out, p->client, &all);
        ok = !ferror(out);
        ok = fclose(out) == 0 && ok;
    }
    near__snapshot_free(&all);
    free(sums);
    if (ok) {
        for (; *size > NEAR__PUBLISH_MOST; --*size) /* whole lines */
            ;
        while (*size > 0 && text[*size - 1] != '\n')
            --*size;
        return text;
    }
    free(text);
    return NULL;
}

/* ---- the job */

static void
tell(struct near__publish *p)
{
    near_client *client = p->client;
    size_t       size   = 0;
    near_error   error  = { .code = NEAR_OK };
    near_status  status;
    char        *text;

    p->number++;
    text = make_text(p, &size);
    if (text == NULL)
        return;
    status = near__coherence_announce(client->coherence, p->channel, (near_bytes){ text, size },
                                      near__time_after(near__client_now(client), client->settings.l2_timeout),
                                      &error);
    free(text);
    if (status != NEAR_OK && status != NEAR_ERR_CLOSED && !p->failing)
        near__log(&client->log, NEAR_LOG_WARN, "stats.publish: channel %s: %s", p->channel, error.text);
    p->failing = status != NEAR_OK;
}

static void
run(struct near__job *job, bool cancelled)
{
    struct near__publish *p = (struct near__publish *)((char *)job - offsetof(struct near__publish, job));
    near_client          *client = p->client;

    if (!cancelled)
        tell(p);
    near__lock(&p->lock);
    p->busy = false;
    near__unlock(&p->lock);
    near__client_release(client);
}

/* On the scheduler's thread, which may not wait for a server. */
static void
when_due(void *ctx)
{
    struct near__publish *p      = ctx;
    near_client          *client = p->client;
    bool                  begin;

    near__lock(&p->lock);
    begin   = !p->busy;
    p->busy = true;
    near__unlock(&p->lock);
    if (!begin)
        return;
    atomic_fetch_add_explicit(&client->refs, 1, memory_order_relaxed);
    if (near__workers_submit(client->workers, &p->job) == NEAR_OK)
        return;
    near__lock(&p->lock);
    p->busy = false;
    near__unlock(&p->lock);
    near__client_release(client); /* not the last one: the application has it open */
}

near_status
near__publish_open(near_client *client)
{
    struct near__publish *p;

    if (client->settings.stats_publish == 0)
        return NEAR_OK;
    if (client->coherence == NULL || !near__coherence_announces(client->coherence)) {
        near__log(&client->log, NEAR_LOG_WARN,
                  "stats.publish: there is no bus with a server that carries messages: nothing is published");
        return NEAR_OK;
    }
    p = calloc(1, sizeof(*p));
    if (p == NULL)
        return NEAR_ERR_NOMEM;
    p->client = client;
    p->began  = near__client_now(client);
    p->job.fn = run;
    near__settings_channel(&client->settings, NEAR__PUBLISH_SUFFIX, p->channel, sizeof(p->channel));
    near__lock_init(&p->lock, NEAR__RANK_LEAF);
    near__timer_init(&p->timer, when_due, p);
    client->publish = p;
    if (!near__random(&p->id, sizeof(p->id)))
        return NEAR_ERR_UNAVAILABLE;
    return near__timer_every(&client->scheduler, &p->timer,
                             client->settings.stats_publish > LEAST ? client->settings.stats_publish : LEAST);
}

void
near__publish_free(near_client *client)
{
    if (client->publish == NULL)
        return;
    near__lock_fini(&client->publish->lock);
    free(client->publish);
    client->publish = NULL;
}
