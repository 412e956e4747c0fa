/*
 * A store for tests of writing: a table of what it holds, that counts what was done to it and checks the promises of order.  It does
 * what the test says: answers at once, late, never, refuses by chance or by key, on the caller's thread or another one.
 */
#ifndef TESTS_HARNESS_SINK_H
#define TESTS_HARNESS_SINK_H

#include "harness/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nearcache.h"

#define SINK_KEYS 4096

enum sink_mode { SINK_TAKE, SINK_REFUSE, SINK_HOLD, SINK_FORGET };

struct sink_row {
    char     key[48], value[64];
    bool     present;
    uint64_t origin, sequence; /* of the last write it was given */
    unsigned writes, in_flight;
};

struct sink {
    pthread_mutex_t  lock; /* covers all but the atomics */
    struct sink_row  rows[SINK_KEYS];
    size_t           n;
    _Atomic int      mode;
    _Atomic int      refusal;         /* the status of refusals; 0: NEAR_ERR_UNAVAILABLE */
    _Atomic unsigned refuse_per_1000; /* by chance */
    _Atomic unsigned delay_us;
    _Atomic unsigned calls, writes, most, conflicts, misordered, doubled;
    const char      *poison; /* a key that is always refused; its whole batch, if `all_or_nothing` */
    bool             all_or_nothing, keep_on_conflict;
    near_write      *held[4096];
    size_t           n_held;
    uint64_t         random;
};
#define SINK(...)                                                                                            \
    {                                                                                                        \
        .lock = PTHREAD_MUTEX_INITIALIZER, __VA_ARGS__                                                       \
    }

static inline void
sink_text(near_bytes bytes, char *out, size_t size)
{
    size_t n = bytes.size < size - 1 ? bytes.size : size - 1;

    if (n > 0)
        memcpy(out, bytes.data, n);
    out[n] = '\0';
}

static inline struct sink_row *
sink_row_locked(struct sink *sink, const char *key)
{
    for (size_t i = 0; i < sink->n; i++)
        if (strcmp(sink->rows[i].key, key) == 0)
            return &sink->rows[i];
    assert_true(sink->n < SINK_KEYS);
    snprintf(sink->rows[sink->n].key, sizeof(sink->rows[0].key), "%s", key);
    return &sink->rows[sink->n++];
}

/* What it holds of a key: "" if nothing.  Static storage of the calling thread. */
static inline const char *
sink_value(struct sink *sink, const char *key)
{
    static _Thread_local char text[64];
    struct sink_row          *row;

    pthread_mutex_lock(&sink->lock);
    row = sink_row_locked(sink, key);
    snprintf(text, sizeof(text), "%s", row->present ? row->value : "");
    pthread_mutex_unlock(&sink->lock);
    return text;
}

static inline unsigned
sink_writes(struct sink *sink, const char *key)
{
    unsigned n;

    pthread_mutex_lock(&sink->lock);
    n = sink_row_locked(sink, key)->writes;
    pthread_mutex_unlock(&sink->lock);
    return n;
}

static inline void
sink_apply_locked(struct sink *sink, const near_write *write)
{
    char             key[48];
    struct sink_row *row;
    near_bytes       data = near_write_data(write);

    sink_text(near_write_key(write), key, sizeof(key));
    row = sink_row_locked(sink, key);
    /* an older write after a newer one; the same one again is allowed */
    sink->misordered += row->origin == near_write_origin(write) && row->sequence > near_write_sequence(write);
    row->origin   = near_write_origin(write);
    row->sequence = near_write_sequence(write);
    row->present  = data.data != NULL;
    sink_text(data, row->value, sizeof(row->value));
    row->writes++;
}

/* Give an answer to one that was held. */
static inline void
sink_take(struct sink *sink, near_write *write)
{
    pthread_mutex_lock(&sink->lock);
    sink_apply_locked(sink, write);
    pthread_mutex_unlock(&sink->lock);
    near_write_done(write);
}

/* Answer all that is held. */
static inline size_t
sink_release(struct sink *sink)
{
    near_write *held[4096];
    size_t      n;

    pthread_mutex_lock(&sink->lock);
    n = sink->n_held;
    memcpy(held, sink->held, n * sizeof(held[0]));
    sink->n_held = 0;
    pthread_mutex_unlock(&sink->lock);
    for (size_t i = 0; i < n; i++)
        sink_take(sink, held[i]);
    return n;
}

static inline bool
sink_refuses(struct sink *sink, near_write *write)
{
    char key[48];

    sink_text(near_write_key(write), key, sizeof(key));
    if (sink->poison != NULL && strcmp(sink->poison, key) == 0)
        return true;
    return sink->refuse_per_1000 != 0 && test_random(&sink->random) % 1000 < sink->refuse_per_1000;
}

static inline void
sink_one(struct sink *sink, near_write *write, bool refused)
{
    if (near_write_conflict(write)) {
        sink->conflicts++;
        if (sink->keep_on_conflict) {
            near_write_fail(write, NEAR_ERR_CONFLICT);
            return;
        }
    }
    if (refused || sink->mode == SINK_REFUSE) {
        near_write_fail(write, sink->refusal != 0 ? (near_status)sink->refusal : NEAR_ERR_UNAVAILABLE);
    } else if (sink->mode == SINK_TAKE) {
        sink_take(sink, write);
    } else if (sink->mode == SINK_HOLD) {
        pthread_mutex_lock(&sink->lock);
        assert_true(sink->n_held < 4096);
        sink->held[sink->n_held++] = write;
        pthread_mutex_unlock(&sink->lock);
    }
}

/* near_store_fn */
static inline void
sink_store(near_write *writes[], size_t n, void *ctx)
{
    struct sink *sink = ctx;
    bool         refused[4096], any = false;

    sink->calls++;
    sink->writes += (unsigned)n;
    if (n > sink->most)
        sink->most = (unsigned)n;
    if (sink->delay_us > 0)
        nanosleep(&(struct timespec){ 0, (long)sink->delay_us * 1000 }, NULL);
    pthread_mutex_lock(&sink->lock);
    for (size_t i = 0; i < n; i++)
        any |= refused[i] = sink_refuses(sink, writes[i]);
    pthread_mutex_unlock(&sink->lock);
    for (size_t i = 0; i < n; i++)
        sink_one(sink, writes[i], sink->all_or_nothing ? any : refused[i]);
}

#endif
