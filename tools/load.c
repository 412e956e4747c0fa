/* See load.h. */
#include "load.h"

#include "config.h"

#include "base/hash.h"
#include "base/thread.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum {
    DRAWN_LEAST = 1 << 20,
    DRAWN_MOST  = 1 << 24,
    BATCH_MOST  = 1000,
    FILL        = 500,
    SPIN        = 30000, /* ns: what a sleep may be late by is waited for awake */
    TRIES       = 5,     /* of a batch that took too long: filling is no part of the measurement */
    CLEAN_UP    = 2      /* s: how long calls that are behind their time may go on after the end */
};

static uint64_t
draw(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static double
draw_unit(uint64_t *state)
{
    return (double)(draw(state) >> 11) / 9007199254740992.0;
}

/* ---- zipf, by rejection and inversion: W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone discrete
 * distributions", ACM TOMACS 6(3), 1996.  No table, so that any number of keys will do. */

struct zipf {
    double s, low, high, squeeze;
    double n;
};

static double
zipf_area(const struct zipf *zipf, double x)
{
    return fabs(zipf->s - 1) < 1e-9 ? log(x) : (pow(x, 1 - zipf->s) - 1) / (1 - zipf->s);
}

static double
zipf_inverse(const struct zipf *zipf, double area)
{
    return fabs(zipf->s - 1) < 1e-9 ? exp(area) : pow(1 + area * (1 - zipf->s), 1 / (1 - zipf->s));
}

static struct zipf
zipf_of(double s, uint64_t n)
{
    struct zipf zipf = { .s = s, .n = (double)n };

    zipf.low     = zipf_area(&zipf, 1.5) - 1;
    zipf.high    = zipf_area(&zipf, zipf.n + 0.5);
    zipf.squeeze = 2 - zipf_inverse(&zipf, zipf_area(&zipf, 2.5) - pow(2, -s));
    return zipf;
}

/* 0 is the most wanted. */
static uint64_t
zipf_draw(const struct zipf *zipf, uint64_t *state)
{
    for (;;) {
        double area = zipf->high + draw_unit(state) * (zipf->low - zipf->high);
        double x = zipf_inverse(zipf, area), k = floor(x + 0.5);

        k = k < 1 ? 1 : k > zipf->n ? zipf->n : k;
        if (k - x <= zipf->squeeze || area >= zipf_area(zipf, k + 0.5) - pow(k, -zipf->s))
            return (uint64_t)k - 1;
    }
}

/* ---- the sequence */

bool
load_draw(struct load *load)
{
    uint64_t    state = 20, wanted = 4 * load->keys;
    struct zipf zipf = zipf_of(load->zipf, load->keys);

    /* half of it compressible, as values are */
    load->block = malloc((size_t)load->value_most + 1);
    for (uint64_t i = 0; load->block != NULL && i < load->value_most; i++)
        load->block[i] = (uint8_t)(draw(&state) >> (i % 2 != 0 ? 60 : 56));
    if (load->hashes != NULL || load->block == NULL)
        return load->block != NULL;
    load->n     = wanted < DRAWN_LEAST ? DRAWN_LEAST : wanted > DRAWN_MOST ? DRAWN_MOST : (size_t)wanted;
    load->drawn = malloc(load->n * sizeof(*load->drawn));
    for (size_t i = 0; load->drawn != NULL && i < load->n; i++)
        load->drawn[i] = (uint32_t)(load->zipf > 0 ? zipf_draw(&zipf, &state) : draw(&state) % load->keys);
    return load->drawn != NULL;
}

void
load_free(struct load *load)
{
    free(load->block);
    free(load->drawn);
    free(load->hashes);
    free(load->sizes);
}

/* "key:0000000000042", or a trace's hash. */
static void
key_text(const struct load *load, uint64_t number, char key[LOAD_KEY_SIZE])
{
    static const char digits[] = "0123456789abcdef";

    if (load->hashes != NULL) {
        for (int i = LOAD_KEY_SIZE; i-- > 0; number >>= 4)
            key[i] = digits[number & 15];
        return;
    }
    memcpy(key, "key:", 4);
    for (int i = LOAD_KEY_SIZE; i-- > 4; number /= 10)
        key[i] = (char)('0' + number % 10);
}

void
load_key(const struct load *load, size_t at, char key[LOAD_KEY_SIZE])
{
    key_text(load, load->hashes != NULL ? load->hashes[at] : load->drawn[at], key);
}

/* The same for a key whenever it is stored. */
static uint32_t
size_of(const struct load *load, const char key[LOAD_KEY_SIZE])
{
    uint64_t span = load->value_most - load->value_least + 1;

    return (uint32_t)(load->value_least +
                      (span > 1 ? near__hash_fixed((near_bytes){ key, LOAD_KEY_SIZE }) % span : 0));
}

uint32_t
load_value_size(const struct load *load, size_t at)
{
    char key[LOAD_KEY_SIZE];

    if (load->sizes != NULL && load->sizes[at] != UINT32_MAX)
        return load->sizes[at] < load->value_most ? load->sizes[at] : (uint32_t)load->value_most;
    load_key(load, at, key);
    return size_of(load, key);
}

void
load_answer(near_load *loads[], size_t n, void *ctx)
{
    const struct load *load = ctx;
    struct timespec    wait = { load->loader / NEAR__SEC, load->loader % NEAR__SEC };

    if (load->loader > 0)
        nanosleep(&wait, NULL);
    for (size_t i = 0; i < n; i++) {
        near_bytes key = near_load_key(loads[i]);

        near_load_set(loads[i],
                      (near_bytes){ load->block, key.size == LOAD_KEY_SIZE ? size_of(load, key.data) : 0 });
    }
}

near_status
load_fill(const struct load *load, near_cache *cache, const _Atomic bool *stop,
          void (*progress)(size_t done, size_t all))
{
    static char        text[FILL][LOAD_KEY_SIZE];
    static near_bytes  keys[FILL], values[FILL];
    static near_status statuses[FILL];
    size_t             all    = load->hashes != NULL ? load->n : load->keys;
    near_status        status = NEAR_OK;

    for (size_t at = 0; at < all && !atomic_load(stop); at += FILL) {
        size_t n = all - at < FILL ? all - at : FILL;

        for (size_t i = 0; i < n; i++) {
            uint32_t size;

            key_text(load, load->hashes != NULL ? load->hashes[at + i] : at + i, text[i]);
            size      = load->hashes != NULL ? load_value_size(load, at + i) : size_of(load, text[i]);
            keys[i]   = (near_bytes){ text[i], LOAD_KEY_SIZE };
            values[i] = (near_bytes){ load->block, size };
        }
        for (int tries = 0; tries == 0 || (status == NEAR_ERR_TIMEOUT && tries < TRIES); tries++)
            status = near_put_many(cache, keys, values, n, NULL, statuses);
        if (status != NEAR_OK)
            return status;
        progress(at + n, all);
    }
    return NEAR_OK;
}

/* ---- calls */

/* Where the threads wait until all of them are there. */
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t  opened;
    int64_t         began; /* lock; 0: closed; -1: nobody is to begin */
};

static int64_t
gate_wait(struct gate *gate)
{
    int64_t began;

    pthread_mutex_lock(&gate->lock);
    while (gate->began == 0)
        pthread_cond_wait(&gate->opened, &gate->lock);
    began = gate->began;
    pthread_mutex_unlock(&gate->lock);
    return began;
}

static void
gate_open(struct gate *gate, int64_t began)
{
    pthread_mutex_lock(&gate->lock);
    gate->began = began;
    pthread_cond_broadcast(&gate->opened);
    pthread_mutex_unlock(&gate->lock);
}

struct worker {
    const struct load  *load;
    near_cache         *cache;
    struct round       *round;
    const _Atomic bool *stop;
    pthread_t           thread;
    struct gate        *gate;
    int64_t             duration;
    unsigned            id;
    size_t              at; /* in the sequence */
    uint64_t            random, requests, errors;
    near_status         last_error;
    /* a batch */
    near_bytes  *keys;
    near_value **values;
    near_status *statuses;
    char (*text)[LOAD_KEY_SIZE];
};

static void
note(struct worker *w, near_status status)
{
    w->requests++;
    if (status >= 0)
        return;
    w->errors++;
    w->last_error = status;
}

static void
next_key(struct worker *w, char key[LOAD_KEY_SIZE])
{
    load_key(w->load, w->at, key);
    w->at = w->at + 1 < w->load->n ? w->at + 1 : 0;
}

static void
write_one(struct worker *w)
{
    char       key[LOAD_KEY_SIZE];
    near_bytes value = { w->load->block, load_value_size(w->load, w->at) };

    next_key(w, key);
    note(w, near_put(w->cache, (near_bytes){ key, LOAD_KEY_SIZE }, value, NULL));
}

static void
read_one(struct worker *w)
{
    char        key[LOAD_KEY_SIZE];
    near_value *value;

    next_key(w, key);
    note(w, w->load->loads ? near_fetch(w->cache, (near_bytes){ key, LOAD_KEY_SIZE }, NULL, &value)
                           : near_get(w->cache, (near_bytes){ key, LOAD_KEY_SIZE }, &value));
    near_value_release(value);
}

static void
read_batch(struct worker *w)
{
    size_t n = (size_t)w->load->batch;

    for (size_t i = 0; i < n; i++) {
        next_key(w, w->text[i]);
        w->keys[i] = (near_bytes){ w->text[i], LOAD_KEY_SIZE };
    }
    if (w->load->loads)
        near_fetch_many(w->cache, w->keys, n, NULL, w->values, w->statuses);
    else
        near_get_many(w->cache, w->keys, n, w->values, w->statuses);
    for (size_t i = 0; i < n; i++) {
        note(w, w->statuses[i]);
        near_value_release(w->values[i]);
    }
}

/* One call; true: it wrote. */
static bool
call(struct worker *w)
{
    if (w->load->puts > 0 && draw_unit(&w->random) < w->load->puts) {
        write_one(w);
        return true;
    }
    if (w->load->batch > 1)
        read_batch(w);
    else
        read_one(w);
    return false;
}

static void
sleep_until(int64_t moment)
{
    int64_t left = moment - near__now(&near__clock_system) - SPIN;

    if (left > 0) {
        struct timespec wait = { left / NEAR__SEC, left % NEAR__SEC };

        nanosleep(&wait, NULL);
    }
    while (near__now(&near__clock_system) < moment)
        ;
}

static void
run_closed(struct worker *w, int64_t began)
{
    int64_t now = near__now(&near__clock_system), end = began + w->duration, then;

    while (now < end && !atomic_load_explicit(w->stop, memory_order_relaxed)) {
        bool wrote = call(w);

        then = near__now(&near__clock_system); /* one look at the clock a call: an end is a beginning */
        near__histogram_record(wrote ? &w->round->write : &w->round->read, then - now);
        now = then;
    }
}

/* Calls begin at multiples of the interval, the threads in turn. */
static void
run_open(struct worker *w, int64_t began)
{
    double  interval = 1e9 * (double)w->load->batch / w->load->rate;
    int64_t end = began + w->duration, last = end + CLEAN_UP * NEAR__SEC;

    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    for (uint64_t i = w->id;; i += w->load->threads) {
        int64_t intended = began + (int64_t)(interval * (double)i), now, then;
        bool    wrote;

        if (intended >= end)
            return;
        now = near__now(&near__clock_system);
        if (now < intended) {
            sleep_until(intended);
            now = near__now(&near__clock_system);
        }
        if (now >= last || atomic_load_explicit(w->stop, memory_order_relaxed)) {
            /* it has waited for so long already, and its end is not in sight */
            near__histogram_record(&w->round->read, now - intended);
            atomic_fetch_add_explicit(&w->round->unbegun, 1, memory_order_relaxed);
            if (now < last)
                return;
            continue;
        }
        wrote = call(w);
        then  = near__now(&near__clock_system);
        near__histogram_record(wrote ? &w->round->write : &w->round->read, then - intended);
        near__histogram_record(&w->round->service, then - now);
    }
}

static void *
work(void *ctx)
{
    struct worker *w     = ctx;
    int64_t        began = gate_wait(w->gate);

    if (began < 0)
        return NULL;
    if (w->load->rate > 0)
        run_open(w, began);
    else
        run_closed(w, began);
    atomic_fetch_add(&w->round->requests, w->requests);
    atomic_fetch_add(&w->round->errors, w->errors);
    if (w->errors > 0)
        atomic_store(&w->round->last_error, w->last_error);
    return NULL;
}

static bool
worker_init(struct worker *w, const struct load *load)
{
    size_t n = (size_t)load->batch;

    if (n <= 1)
        return true;
    w->keys     = calloc(n, sizeof(*w->keys));
    w->values   = calloc(n, sizeof(near_value *));
    w->statuses = calloc(n, sizeof(*w->statuses));
    w->text     = calloc(n, sizeof(*w->text));
    return w->keys != NULL && w->values != NULL && w->statuses != NULL && w->text != NULL;
}

static void
worker_fini(struct worker *w)
{
    free(w->keys);
    free(w->values);
    free(w->statuses);
    free(w->text);
}

/* How many of them run. */
static size_t
start_workers(struct worker *workers, const struct worker *like)
{
    static unsigned    runs;
    const struct load *load = like->load;
    uint64_t           seed = ++runs;

    for (size_t i = 0; i < load->threads; i++) {
        workers[i]        = *like;
        workers[i].id     = (unsigned)i;
        workers[i].random = draw(&seed);
        workers[i].at =
            load->hashes != NULL ? i * (load->n / load->threads) : (size_t)(draw(&seed) % load->n);
        if (!worker_init(&workers[i], load) ||
            near__thread_start(&workers[i].thread, "near-load", work, &workers[i]) != NEAR_OK) {
            worker_fini(&workers[i]);
            return i;
        }
    }
    return (size_t)load->threads;
}

bool
load_run(const struct load *load, near_cache *cache, int64_t duration, struct round *round,
         const _Atomic bool *stop)
{
    struct gate   gate = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 };
    struct worker like = {
        .load = load, .cache = cache, .round = round, .stop = stop, .gate = &gate, .duration = duration
    };
    struct worker *workers = calloc((size_t)load->threads, sizeof(*workers));
    size_t         started = workers != NULL ? start_workers(workers, &like) : 0;
    int64_t        began   = near__now(&near__clock_system) + NEAR_MS;

    gate_open(&gate, started == load->threads ? began : -1);
    for (size_t i = 0; i < started; i++) {
        pthread_join(workers[i].thread, NULL);
        worker_fini(&workers[i]);
    }
    round->seconds = (double)(near__now(&near__clock_system) - began) / 1e9;
    free(workers);
    return started == load->threads;
}
