/* See requests.h. */
#include "requests.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"

enum {
    RINGS    = 8,
    ROOM     = 1 << 16, /* of a buffer: at ten a second, 5 MB/s of lines in all */
    KEY_MOST = 4096,    /* longer keys are not logged */
    LINE     = 3 * KEY_MOST + 32,
    BEATS    = 100 /* ms */
};

struct ring {
    _Alignas(64) struct near__lock lock; /* leaf */
    char    *fill, *spare;
    size_t   used;
    uint64_t lines;
};

struct near__requests {
    near_cache  *cache;
    char         path[NEAR__TEXT_SIZE + NEAR__CACHE_NAME_MAX + 2];
    uint64_t     limit; /* of 2^32: what a mixed hash is below */
    bool         plain;
    _Atomic bool over; /* nothing is taken any more */
    int          fd;   /* the job's, as the next */
    uint64_t     left; /* bytes until it is full */
    struct ring  rings[RINGS];

    struct near__lock  lock; /* leaf */
    pthread_cond_t     idle;
    bool               busy, closed;
    struct near__job   job;
    struct near__timer timer;
};

/* ---- a caller */

/* Sizes in L1 and their shards go by other bits of such hashes: the sample is to be none of theirs. */
static bool
is_sampled(const struct near__requests *r, uint64_t hash)
{
    return (hash * UINT64_C(0x9E3779B97F4A7C15)) >> 32 < r->limit;
}

size_t
near__key_print(char *out, near_bytes key)
{
    static const char    digits[] = "0123456789abcdef";
    const unsigned char *at       = key.data;
    size_t               n        = 0;

    for (size_t i = 0; i < key.size; i++)
        if (at[i] > ' ' && at[i] < 0x7F && at[i] != '%' && at[i] != ',' && at[i] != '#' && at[i] != '"') {
            out[n++] = (char)at[i];
        } else {
            out[n++] = '%';
            out[n++] = digits[at[i] >> 4];
            out[n++] = digits[at[i] & 15];
        }
    if (key.size == 0)
        out[n++] = '%';
    return n;
}

static size_t
print_line(char line[LINE], const struct near__requests *r, near_bytes key, uint64_t hash,
           const near_value *value)
{
    size_t n = r->plain ? near__key_print(line, key) : (size_t)snprintf(line, LINE, "%016" PRIx64, hash);

    n += value != NULL ? (size_t)snprintf(line + n, LINE - n, " %zu", near__value_size(value)) : 0;
    line[n++] = '\n';
    return n;
}

static bool
put_line(struct near__requests *r, const char *line, size_t size)
{
    struct ring *ring = &r->rings[((uintptr_t)pthread_self() >> 12) % RINGS];
    bool         fits;

    /* not near__lock(): a reader does not wait for a log.  A leaf that is only tried cannot be part of a circle */
    if (pthread_mutex_trylock(&ring->lock.mutex) != 0)
        return false;
    fits = ring->used + size <= ROOM;
    if (fits) {
        memcpy(ring->fill + ring->used, line, size);
        ring->used += size;
        ring->lines++;
    }
    pthread_mutex_unlock(&ring->lock.mutex);
    return fits;
}

void
near__requests_note(near_cache *cache, near_bytes key, const near_value *value)
{
    struct near__requests *r    = cache->requests;
    uint64_t               hash = near__hash_fixed(key);
    char                   line[LINE];

    /* relaxed: who misses the end only fills a buffer that nobody writes */
    if (!is_sampled(r, hash) || atomic_load_explicit(&r->over, memory_order_relaxed))
        return;
    if (key.size > KEY_MOST || !put_line(r, line, print_line(line, r, key, hash, value)))
        near__count(cache, NEAR__log_requests_dropped, 1);
}

/* ---- the file, by the job or by who closes */

static bool
write_all(struct near__requests *r, const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t n = write(r->fd, bytes, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        bytes += n;
        size -= (size_t)n;
    }
    return true;
}

static void
end_log(struct near__requests *r, near_log_level level, const char *why)
{
    atomic_store_explicit(&r->over, true, memory_order_relaxed);
    near__log(&r->cache->client->log, level, "log.requests: %s: %s: no more is written", r->path, why);
}

static void
write_lines(struct near__requests *r, const char *bytes, size_t size, uint64_t lines)
{
    if (atomic_load_explicit(&r->over, memory_order_relaxed))
        return;
    if (size > r->left) {
        end_log(r, NEAR_LOG_INFO, "as large as log.requests_max_bytes allows");
        near__count(r->cache, NEAR__log_requests_dropped, lines);
        return;
    }
    if (!write_all(r, bytes, size)) {
        end_log(r, NEAR_LOG_WARN, near__errno_text(errno));
        return;
    }
    r->left -= size;
    near__count(r->cache, NEAR__log_requests, lines);
}

static void
drain(struct near__requests *r)
{
    for (int i = 0; i < RINGS; i++) {
        struct ring *ring = &r->rings[i];
        uint64_t     lines;
        size_t       used;
        char        *full;

        near__lock(&ring->lock);
        full        = ring->fill;
        used        = ring->used;
        lines       = ring->lines;
        ring->fill  = ring->spare;
        ring->spare = full;
        ring->used  = 0;
        ring->lines = 0;
        near__unlock(&ring->lock);
        if (used > 0)
            write_lines(r, full, used, lines);
    }
}

static void
run(struct near__job *job, bool cancelled)
{
    struct near__requests *r = (struct near__requests *)((char *)job - offsetof(struct near__requests, job));
    near_cache            *cache = r->cache;

    if (!cancelled)
        drain(r);
    near__lock(&r->lock);
    r->busy = false;
    pthread_cond_broadcast(&r->idle);
    near__unlock(&r->lock);
    near__cache_release(cache);
}

/* On the scheduler's thread, which may not wait for a disk. */
static void
when_due(void *ctx)
{
    struct near__requests *r     = ctx;
    near_cache            *cache = r->cache;
    bool                   begin;

    near__lock(&r->lock);
    begin   = !r->busy && !r->closed;
    r->busy = r->busy || begin;
    near__unlock(&r->lock);
    if (!begin)
        return;
    atomic_fetch_add_explicit(&cache->refs, 1, memory_order_relaxed);
    if (near__workers_submit(cache->client->workers, &r->job) == NEAR_OK)
        return;
    near__lock(&r->lock);
    r->busy = false; /* no thread to be had: next time */
    pthread_cond_broadcast(&r->idle);
    near__unlock(&r->lock);
    near__cache_release(cache); /* not the last one: the timer has been disarmed before that */
}

/* ---- life */

/* A regular file of ours, not by way of a link.  Why not, or NULL. */
static const char *
open_file(struct near__requests *r, uint64_t most)
{
    struct stat about;
    const char *why = NULL;

    /* nonblocking: a pipe would wait for its reader */
    r->fd = open(r->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (r->fd < 0)
        return errno == ELOOP ? "is a symbolic link" : near__errno_text(errno);
    if (fstat(r->fd, &about) != 0)
        why = near__errno_text(errno);
    else if (!S_ISREG(about.st_mode) || about.st_uid != geteuid() || about.st_nlink != 1)
        why = "is no file of this user's alone";
    else if ((about.st_mode & 077) != 0 && fchmod(r->fd, 0600) != 0)
        why = near__errno_text(errno);
    if (why == NULL)
        r->left = (uint64_t)about.st_size < most ? most - (uint64_t)about.st_size : 0;
    return why;
}

static const char *
begin_file(struct near__requests *r)
{
    const struct near__settings *settings = &r->cache->settings;
    const char                  *why      = open_file(r, settings->log_requests_max_bytes);
    char                         head[200];
    int                          size;

    if (why != NULL)
        return why;
    size = snprintf(head, sizeof(head), "# nearcache requests v1 cache=%s sample=%" PRIu64 " keys=%s\n",
                    r->cache->name, settings->log_requests_sample, r->plain ? "plain" : "hash");
    if ((uint64_t)size > r->left)
        return "as large as log.requests_max_bytes allows";
    if (!write_all(r, head, (size_t)size))
        return near__errno_text(errno);
    r->left -= (uint64_t)size;
    return NULL;
}

static bool
make_rings(struct near__requests *r)
{
    for (int i = 0; i < RINGS; i++) {
        r->rings[i].fill  = malloc(ROOM);
        r->rings[i].spare = malloc(ROOM);
        if (r->rings[i].fill == NULL || r->rings[i].spare == NULL)
            return false;
    }
    return true;
}

/* Why not, or NULL. */
static const char *
begin(struct near__requests *r)
{
    const char *why;

    if (!make_rings(r))
        return "out of memory";
    why = begin_file(r);
    if (why == NULL && near__timer_every(&r->cache->client->scheduler, &r->timer, BEATS * NEAR_MS) != NEAR_OK)
        why = "no timer";
    return why;
}

void
near__requests_open(near_cache *cache)
{
    const struct near__settings *settings = &cache->settings;
    struct near__requests       *r;
    const char                  *why;

    if (settings->log_requests[0] == '\0')
        return;
    r = near__zeroed(_Alignof(struct near__requests), sizeof(*r));
    if (r == NULL) {
        near__log(&cache->client->log, NEAR_LOG_WARN, "log.requests: out of memory");
        return;
    }
    r->cache  = cache;
    r->fd     = -1;
    r->limit  = (UINT64_C(1) << 32) / settings->log_requests_sample;
    r->plain  = settings->log_requests_keys == NEAR__KEYS_PLAIN;
    r->job.fn = run;
    near__lock_init(&r->lock, NEAR__RANK_LEAF);
    near__cond_init(&r->idle);
    near__timer_init(&r->timer, when_due, r);
    for (int i = 0; i < RINGS; i++)
        near__lock_init(&r->rings[i].lock, NEAR__RANK_LEAF);
    snprintf(r->path, sizeof(r->path), "%s.%s", settings->log_requests, cache->name);
    cache->requests = r;
    why             = begin(r);
    if (why != NULL) {
        near__log(&cache->client->log, NEAR_LOG_WARN, "log.requests: %s: %s: requests are not logged",
                  r->path, why);
        near__requests_free(cache);
    }
}

void
near__requests_close(near_cache *cache, int64_t deadline)
{
    struct near__requests *r    = cache->requests;
    bool                   more = true;

    if (r == NULL)
        return;
    near__timer_disarm(&cache->client->scheduler, &r->timer);
    near__lock(&r->lock);
    r->closed = true;
    while (r->busy && more)
        more = near__cond_wait(&r->idle, &r->lock, deadline);
    more = r->busy;
    near__unlock(&r->lock);
    if (!more) /* else the job waits behind loaders that do not end: it holds the cache, and does it if it still comes to it */
        drain(r);
}

void
near__requests_free(near_cache *cache)
{
    struct near__requests *r = cache->requests;

    if (r == NULL)
        return;
    cache->requests = NULL;
    near__timer_disarm(&cache->client->scheduler, &r->timer);
    for (int i = 0; i < RINGS; i++) {
        free(r->rings[i].fill);
        free(r->rings[i].spare);
        near__lock_fini(&r->rings[i].lock);
    }
    if (r->fd >= 0)
        close(r->fd);
    pthread_cond_destroy(&r->idle);
    near__lock_fini(&r->lock);
    free(r);
}
