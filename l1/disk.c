/*
 * See disk.h.
 *
 * Places.  The log has n segments and is written round: segment `turn % n` for turn = 1, 2, ... over all its lives.  A segment's
 * sequence is its turn.  Appending opens the next turn when a buffer is full; the writer clears segments ahead of that: reads what
 * lies there, takes it out of the index, appends what was used once more.  So whoever appends never waits and never reads.
 *
 * A buffer is one segment that is not in the file yet, or not wholly.  FILLING: one, the newest.  FULL: to be written.  Only then is it FREE
 * again.  `busy` counts who copies into it (the writer leaves it alone meanwhile), `pins` who copies out.
 */
#include "l1/disk.h"

#include "base/crc32c.h"
#include "base/hash.h"
#include "base/le.h"
#include "base/lock.h"
#include "base/thread.h"
#include "l1/disk_index.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SEGMENT_LEAST = 4096,
    SEGMENTS_MIN  = 4,
    BUFFERS_MIN   = 2,
    BUFFERS_MAX   = 64,
    AHEAD_MAX     = 4,  /* segments cleared ahead of need */
    FLUSH_MS     = 200, /* what is evicted is in the file that soon: a killed process loses no second of it */
    PAUSE_MS     = 1000, /* after a failed write */
    PAUSE_MAX_MS = 60 * 1000,
    ENTRY_BYTES  = 256, /* expected */
    DOOR_BITS    = 4,   /* bits for each entry expected, in each half of the filter */
    DOOR_MIN     = 1 << 14,
    TOUCHED_BITS = 1 << 24, /* 2 MiB while a former life is looked through */
    SLEWED_MS    = 1000,    /* what a wall clock that is being corrected may go back */
    OLD_MS       = 20,      /* between looks whether who reads a former life is to stop */
    SPIN         = 1000     /* looks at who is copying into a full buffer */
};

#define SEGMENT_MOST  (UINT32_C(1) << 20)
#define SEGMENT_USUAL (UINT32_C(256) << 10)
#define MAX_BYTES     ((UINT64_C(1) << 40) - (UINT64_C(1) << 30)) /* what a place can say */

enum state { FREE, FILLING, FULL };

struct buffer {
    uint8_t                   *bytes;
    enum state                 state;
    struct near__spill_segment segment; /* sequence: its turn */
    uint32_t                   fill, written;
    unsigned                   pins;
    _Atomic uint32_t           busy;
};

struct place {
    _Atomic uint64_t
        sequence; /* of what lies there; 0: nothing that counts.  Release: pairs with readers' acquire */
    _Atomic int64_t shift; /* to be added to its times: it was written by another clock */
    uint32_t        end;   /* writer's: where its last record ends; 0: not known */
};

struct counters {
    _Atomic uint64_t hits, misses, puts, put_bytes, kept, rejected, dropped, too_large, forgotten, evicted,
        moved, written_bytes, timeouts, corrupt, read_errors, write_errors, adopted;
};

struct near__spill {
    struct near__spill_config    config;
    const struct near__spill_os *os;
    int                          directory, lock_fd, fd;
    struct near__spill_log       log;
    struct near__spill_index    *index;
    struct near__spill_io       *io;
    struct place                *places;
    uint32_t                     segment_bytes;
    uint64_t                     segments;
    _Atomic bool                 read_now; /* the file system can say whether it would wait */
    struct counters              n;

    _Atomic uint32_t flushes;
    _Atomic uint64_t in_file; /* turns up to here are in no buffer */

    /* the former life: written before the first thread, and then by who looks at it */
    uint64_t                    old_newest; /* its last turn; 0: there was none */
    bool                        old_clean;
    _Atomic bool                old_stop; /* nobody wants to know any more */
    uint8_t                    *alive; /* the list of a clean end; NULL.  Of who looks at the former life */
    _Atomic uint64_t            alive_bytes;
    _Atomic(_Atomic uint64_t *) touched;
    _Atomic bool                touched_all;

    _Atomic uint64_t *door[2]; /* NEAR__SPILL_SECOND: who was evicted lately; two halves that take turns */
    uint64_t          door_mask;
    _Atomic uint32_t  door_now;
    _Atomic uint64_t  door_n;

    struct near__lock lock; /* covers the rest */
    pthread_cond_t    work, over;
    struct buffer    *buffers;
    unsigned          buffers_n;
    struct buffer    *filling; /* NULL: the next one has to be opened */
    uint64_t          turn;    /* the newest opened */
    uint64_t          cleared; /* turns up to here may be opened */
    int64_t           paused;  /* nothing is taken until then */
    int64_t           pause;
    bool              stop, ended;
    pthread_t         writer;
    _Atomic uint32_t  refs;    /* the owner and the writer */
    uint8_t          *scratch; /* writer's */
};

#define COUNT(spill, counter, by) atomic_fetch_add_explicit(&(spill)->n.counter, (by), memory_order_relaxed)

static uint64_t
smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

int64_t
near__spill_now(const struct near__spill *spill)
{
    return near__now(&spill->config.clock);
}

int64_t
near__spill_timeout(const struct near__spill *spill)
{
    return spill->config.timeout;
}

/* ---- places */

static uint64_t
place_at(const struct near__spill *spill, uint64_t turn)
{
    return NEAR__SPILL_PAGE + turn % spill->segments * spill->segment_bytes;
}

static struct place *
place_of(const struct near__spill *spill, uint64_t at)
{
    return &spill->places[(at - NEAR__SPILL_PAGE) / spill->segment_bytes];
}

static uint64_t
segment_start(const struct near__spill *spill, uint64_t at)
{
    return at - (at - NEAR__SPILL_PAGE) % spill->segment_bytes;
}

/* ---- admission */

static bool
door_set(_Atomic uint64_t *half, uint64_t bit)
{
    uint64_t mask = UINT64_C(1) << (bit & 63);

    return (atomic_fetch_or_explicit(&half[bit >> 6], mask, memory_order_relaxed) & mask) != 0;
}

static bool
door_has(const _Atomic uint64_t *half, uint64_t bit)
{
    return (atomic_load_explicit(&half[bit >> 6], memory_order_relaxed) >> (bit & 63) & 1) != 0;
}

/* Whether the hash came by before; it has now.  A filter: now and then it says so of one that did not. */
static bool
passed_door(struct near__spill *spill, uint64_t hash)
{
    uint32_t now  = atomic_load_explicit(&spill->door_now, memory_order_relaxed) & 1;
    uint64_t a    = (hash ^ hash >> 29) & spill->door_mask;
    uint64_t b    = (hash >> 24 ^ hash >> 47) * UINT64_C(0x9E3779B97F4A7C15) >> 20 & spill->door_mask;
    bool     here = door_set(spill->door[now], a);

    here = door_set(spill->door[now], b) && here;
    if (here || (door_has(spill->door[!now], a) && door_has(spill->door[!now], b)))
        return true;
    atomic_fetch_add_explicit(&spill->door_n, 1, memory_order_relaxed);
    return false;
}

/* The writer's: when the newer half has seen enough the older one is emptied and takes its place. */
static void
turn_door(struct near__spill *spill)
{
    uint32_t now;

    if (spill->door[0] == NULL ||
        atomic_load_explicit(&spill->door_n, memory_order_relaxed) <= spill->door_mask / 8)
        return;
    now = atomic_load_explicit(&spill->door_now, memory_order_relaxed) & 1;
    for (uint64_t i = 0; i <= spill->door_mask >> 6; i++)
        atomic_store_explicit(&spill->door[!now][i], 0, memory_order_relaxed);
    atomic_store_explicit(&spill->door_n, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&spill->door_now, 1, memory_order_relaxed);
}

static void
touch(struct near__spill *spill, uint64_t hash)
{
    _Atomic uint64_t *touched = atomic_load_explicit(&spill->touched, memory_order_acquire);

    if (touched != NULL && !atomic_load_explicit(&spill->touched_all, memory_order_relaxed))
        door_set(touched, hash >> 3 & (TOUCHED_BITS - 1));
}

bool
near__spill_touched(const struct near__spill *spill, uint64_t hash)
{
    _Atomic uint64_t *touched = atomic_load_explicit(&spill->touched, memory_order_acquire);

    return touched == NULL || atomic_load_explicit(&spill->touched_all, memory_order_relaxed) ||
           door_has(touched, hash >> 3 & (TOUCHED_BITS - 1));
}

/* ---- appending */

struct room {
    struct buffer *buffer;
    uint8_t       *bytes;
    uint64_t       at;
};

static struct buffer *
free_buffer_locked(struct near__spill *spill)
{
    for (unsigned i = 0; i < spill->buffers_n; i++)
        if (spill->buffers[i].state == FREE && spill->buffers[i].pins == 0)
            return &spill->buffers[i];
    return NULL;
}

static void
close_filling_locked(struct near__spill *spill)
{
    if (spill->filling != NULL)
        spill->filling->state = FULL;
    spill->filling = NULL;
    pthread_cond_signal(&spill->work);
}

/* The next turn, if a buffer is free and its segment cleared. */
static bool
open_next_locked(struct near__spill *spill)
{
    struct buffer *buffer = free_buffer_locked(spill);
    struct place  *place;

    if (buffer == NULL || spill->turn >= spill->cleared) {
        pthread_cond_signal(&spill->work);
        return false;
    }
    spill->turn++;
    buffer->state   = FILLING;
    buffer->segment = (struct near__spill_segment){ spill->log.name, spill->turn, near__spill_now(spill),
                                                    near__wall_ms(&spill->config.clock) };
    buffer->written = 0;
    buffer->fill    = NEAR__SPILL_HEAD;
    near__spill_segment_put(&buffer->segment, buffer->bytes);
    place      = place_of(spill, place_at(spill, spill->turn));
    place->end = 0;
    atomic_store_explicit(&place->shift, 0, memory_order_relaxed); /* ordered by the sequence */
    atomic_store_explicit(&place->sequence, spill->turn, memory_order_release);
    spill->filling = buffer;
    return true;
}

static bool
reserve(struct near__spill *spill, uint32_t size, struct room *room)
{
    bool done = false;

    near__lock(&spill->lock);
    if (spill->filling != NULL && spill->filling->fill + size > spill->segment_bytes)
        close_filling_locked(spill);
    if (!spill->stop && spill->paused == 0 && (spill->filling != NULL || open_next_locked(spill))) {
        room->buffer = spill->filling;
        room->bytes  = room->buffer->bytes + room->buffer->fill;
        room->at     = place_at(spill, room->buffer->segment.sequence) + room->buffer->fill;
        room->buffer->fill += size;
        atomic_fetch_add_explicit(&room->buffer->busy, 1, memory_order_relaxed);
        done = true;
    }
    near__unlock(&spill->lock);
    return done;
}

static void
commit(struct room *room)
{
    /* release: pairs with the writer's acquire, the record is there */
    atomic_fetch_sub_explicit(&room->buffer->busy, 1, memory_order_release);
}

void
near__spill_put(struct near__spill *spill, uint64_t hash, const struct near__spill_record *record)
{
    uint32_t    size = near__spill_record_size(record);
    struct room room;

    touch(spill, hash);
    if (near__spill_index_has(spill->index, hash)) {
        COUNT(spill, kept, 1); /* it came from here and nothing newer has come since, or it would have left */
        return;
    }
    if (size == 0 || size > spill->segment_bytes - NEAR__SPILL_HEAD) {
        COUNT(spill, too_large, 1);
        return;
    }
    if (spill->door[0] != NULL && !passed_door(spill, hash)) {
        COUNT(spill, rejected, 1);
        return;
    }
    if (!reserve(spill, size, &room)) {
        COUNT(spill, dropped, 1);
        return;
    }
    near__spill_record_put(record, &room.buffer->segment, room.bytes);
    if (near__spill_index_put(spill->index, hash, (struct near__spill_index_place){ room.at, size })) {
        COUNT(spill, puts, 1);
        COUNT(spill, put_bytes, size);
    } else {
        COUNT(spill, dropped, 1);
    }
    commit(&room);
}

void
near__spill_forget(struct near__spill *spill, uint64_t hash)
{
    touch(spill, hash);
    if (near__spill_index_remove(spill->index, hash))
        COUNT(spill, forgotten, 1);
}

void
near__spill_flush_begin(struct near__spill *spill)
{
    atomic_store_explicit(&spill->touched_all, true, memory_order_relaxed);
    near__spill_index_close(spill->index);
}

void
near__spill_flush_end(struct near__spill *spill)
{
    atomic_fetch_add_explicit(&spill->flushes, 1, memory_order_relaxed); /* a hint: fences decide */
    near__spill_index_open(spill->index);
}

/* ---- reading */

/* The bytes out of a buffer.  False: they are in the file. */
static bool
copy_out(struct near__spill *spill, uint64_t sequence, uint64_t at, struct near__spill_wait *wait)
{
    struct buffer *buffer = NULL;
    uint32_t       from   = (uint32_t)(at - segment_start(spill, at));

    /* acquire: pairs with settle_locked() */
    if (sequence <= atomic_load_explicit(&spill->in_file, memory_order_acquire))
        return false;
    near__lock(&spill->lock);
    for (unsigned i = 0; i < spill->buffers_n && buffer == NULL; i++)
        if (spill->buffers[i].state != FREE && spill->buffers[i].segment.sequence == sequence)
            buffer = &spill->buffers[i];
    if (buffer != NULL) {
        buffer->pins++;
        wait->got = (ssize_t)smaller(wait->size, buffer->fill > from ? buffer->fill - from : 0);
    }
    near__unlock(&spill->lock);
    if (buffer == NULL)
        return false;
    /* no more than the record: what is behind it may be being written */
    wait->got = (ssize_t)smaller((uint64_t)wait->got,
                                 near__spill_record_claims(buffer->bytes + from, (size_t)wait->got));
    memcpy(wait->bytes, buffer->bytes + from, (size_t)wait->got);
    near__lock(&spill->lock);
    buffer->pins--;
    near__unlock(&spill->lock);
    return true;
}

/* True: all of the record is there, or an error. */
static bool
read_at_once(struct near__spill *spill, struct near__spill_wait *wait)
{
    ssize_t  got;
    uint32_t claims;

    if (!atomic_load_explicit(&spill->read_now, memory_order_relaxed))
        return false;
    got = spill->os->read_now(spill->os->ctx, spill->fd, wait->bytes, wait->size, wait->at);
    if (got == -EOPNOTSUPP || got == -ENOSYS || got == -EINVAL) {
        atomic_store_explicit(&spill->read_now, false, memory_order_relaxed);
        return false;
    }
    if (got < 0)
        return false; /* a thread finds out what it is */
    claims    = near__spill_record_claims(wait->bytes, (size_t)got);
    wait->got = got;
    return claims != 0 && claims <= (size_t)got;
}

bool
near__spill_begin(struct near__spill *spill, uint64_t hash, struct near__spill_read *read)
{
    struct near__spill_index_place place;

    *read = (struct near__spill_read){ .hash = hash };
    if (!near__spill_index_find(spill->index, hash, &place)) {
        COUNT(spill, misses, 1);
        return false;
    }
    read->at       = place.at;
    read->sequence = atomic_load_explicit(&place_of(spill, place.at)->sequence, memory_order_acquire);
    read->wait     = near__spill_wait_new(place.at, place.size);
    if (read->wait == NULL) {
        COUNT(spill, misses, 1);
        return false;
    }
    if (copy_out(spill, read->sequence, place.at, read->wait) || read_at_once(spill, read->wait))
        return true;
    read->pending = near__spill_io_begin(spill->io, read->wait, spill->config.timeout);
    if (read->pending)
        return true;
    COUNT(spill, timeouts, 1);
    COUNT(spill, misses, 1);
    near__spill_end(read);
    return false;
}

void
near__spill_end(struct near__spill_read *read)
{
    near__spill_wait_free(&read->wait);
}

static int64_t
shifted(int64_t time, int64_t shift)
{
    int64_t sum;

    if (time == NEAR_NEVER || time == INT64_MIN)
        return time;
    return __builtin_add_overflow(time, shift, &sum) ? INT64_MIN : sum; /* nonsense is past its time */
}

/* What was read is no record of this segment's life: nobody need look there again. */
static void
discard(struct near__spill *spill, const struct near__spill_read *read)
{
    bool used;

    near__spill_index_take(spill->index, read->hash, read->at, &used);
}

static bool
verify(struct near__spill *spill, struct near__spill_read *read)
{
    struct near__spill_segment segment = { .name = spill->log.name, .sequence = read->sequence };
    struct place              *place   = place_of(spill, read->at);
    int64_t                    shift;

    if (read->wait->got < 0) {
        COUNT(spill, read_errors, 1);
        discard(spill, read);
        return false;
    }
    if (near__spill_record_get(&read->record, &segment, read->wait->bytes, (size_t)read->wait->got) == 0) {
        /* unless it has been overwritten, rightly, since the index was asked */
        if (atomic_load_explicit(&place->sequence, memory_order_acquire) == read->sequence) {
            COUNT(spill, corrupt, 1);
            discard(spill, read);
        }
        return false;
    }
    shift                    = atomic_load_explicit(&place->shift, memory_order_relaxed);
    read->record.born        = shifted(read->record.born, shift);
    read->record.fresh_until = shifted(read->record.fresh_until, shift);
    read->record.expires     = shifted(read->record.expires, shift);
    return true;
}

/* What was read is what the index has of it still.  The index first: had the place been written over since, and had the key come to lie
 * there once more, whoever put it there would have come by the index's lock after the new sequence. */
static bool
is_current(struct near__spill *spill, const struct near__spill_read *read)
{
    /* acquire: pairs with open_next_locked() */
    return near__spill_index_use(spill->index, read->hash, read->at) &&
           atomic_load_explicit(&place_of(spill, read->at)->sequence, memory_order_acquire) == read->sequence;
}

bool
near__spill_finish(struct near__spill *spill, struct near__spill_read *read, near_bytes key, int64_t deadline)
{
    int64_t now;

    if (read->pending && !near__spill_io_await(spill->io, read->wait, deadline)) {
        COUNT(spill, timeouts, 1);
        COUNT(spill, misses, 1);
        near__spill_end(read);
        return false;
    }
    if (verify(spill, read) && near__bytes_equal(read->record.key, key)) {
        now = near__spill_now(spill);
        if (read->record.fresh_until <= now || read->record.expires <= now) {
            discard(spill, read);
        } else if (is_current(spill, read)) {
            COUNT(spill, hits, 1);
            return true;
        }
    }
    COUNT(spill, misses, 1);
    near__spill_end(read);
    return false;
}

/* ---- the writer */

/* Records of a segment in memory: calls for each, says where they end. */
static uint32_t
walk(const struct near__spill_segment *segment, const uint8_t *bytes, size_t size,
     void (*each)(void *ctx, const struct near__spill_record *record, uint32_t at, uint32_t size), void *ctx)
{
    struct near__spill_record record;
    uint32_t                  at = NEAR__SPILL_HEAD, one;

    while (at < size && (one = near__spill_record_get(&record, segment, bytes + at, size - at)) != 0) {
        each(ctx, &record, at, one);
        at += one;
    }
    return at;
}

struct clearing {
    struct near__spill *spill;
    uint64_t            start;
    uint32_t            left;  /* bytes that may be written once more */
    int64_t             shift; /* of the segment */
};

/* Once more, at the end of the log. */
static bool
move_record(struct clearing *clearing, const struct near__spill_record *record, uint64_t hash, uint64_t at,
            uint32_t size)
{
    struct near__spill       *spill = clearing->spill;
    struct near__spill_record again = *record;
    struct room               room;
    bool                      done;

    again.born        = shifted(record->born, clearing->shift);
    again.fresh_until = shifted(record->fresh_until, clearing->shift);
    again.expires     = shifted(record->expires, clearing->shift);
    if (size > clearing->left || again.fresh_until <= near__spill_now(spill) || !reserve(spill, size, &room))
        return false;
    near__spill_record_put(&again, &room.buffer->segment, room.bytes);
    done = near__spill_index_move(spill->index, hash, at, (struct near__spill_index_place){ room.at, size });
    commit(&room);
    clearing->left -= size;
    return done;
}

static void
clear_record(void *ctx, const struct near__spill_record *record, uint32_t at, uint32_t size)
{
    struct clearing    *clearing = ctx;
    struct near__spill *spill    = clearing->spill;
    uint64_t            hash     = near__hash_keyed(&spill->config.secret, record->key);
    uint64_t            place    = clearing->start + at;
    bool                used;

    if (near__spill_index_used(spill->index, hash, place) && move_record(clearing, record, hash, place, size))
        COUNT(spill, moved, 1);
    else if (near__spill_index_take(spill->index, hash, place, &used))
        COUNT(spill, evicted, 1);
}

/* Make the segment of that turn ready to be written over. */
static void
clear_segment(struct near__spill *spill, uint64_t turn)
{
    uint64_t                   at       = place_at(spill, turn);
    struct place              *place    = place_of(spill, at);
    uint64_t                   sequence = atomic_load_explicit(&place->sequence, memory_order_relaxed);
    struct near__spill_segment segment  = { .name = spill->log.name, .sequence = sequence };
    struct clearing            clearing = { spill, at, spill->segment_bytes / 2,
                                            atomic_load_explicit(&place->shift, memory_order_relaxed) };
    ssize_t                    got;
    uint32_t                   end;

    if (sequence == 0)
        return;
    got = near__spill_read_all(spill->os, spill->fd, spill->scratch, spill->segment_bytes, at);
    if (got < 0)
        COUNT(spill, read_errors, 1);
    end = got > 0 ? walk(&segment, spill->scratch, (size_t)got, clear_record, &clearing) : 0;
    /* release: a reader that finds another sequence than it began with has read what it must not answer */
    atomic_store_explicit(&place->sequence, 0, memory_order_release);
    if (place->end == 0 || end < place->end)
        COUNT(spill, evicted, near__spill_index_drop(spill->index, at, at + spill->segment_bytes));
}

/* One more segment cleared; false: there are enough. */
static bool
clear_ahead(struct near__spill *spill)
{
    uint64_t turn, ahead = smaller(AHEAD_MAX, spill->segments / 2);
    bool     wanted;

    near__lock(&spill->lock);
    turn   = spill->cleared + 1;
    wanted = !spill->stop && spill->cleared < spill->turn + ahead;
    near__unlock(&spill->lock);
    if (!wanted)
        return false;
    clear_segment(spill, turn);
    near__lock(&spill->lock);
    spill->cleared = turn;
    near__unlock(&spill->lock);
    return true;
}

/* A buffer has become free. */
static void
settle_locked(struct near__spill *spill)
{
    uint64_t oldest = spill->turn + 1;

    for (unsigned i = 0; i < spill->buffers_n; i++)
        if (spill->buffers[i].state != FREE && spill->buffers[i].segment.sequence < oldest)
            oldest = spill->buffers[i].segment.sequence;
    /* release: pairs with copy_out(), the file has it */
    atomic_store_explicit(&spill->in_file, oldest - 1, memory_order_release);
}

/* It cannot be written: what was in it is gone, and the disk has a rest. */
static void
give_up(struct near__spill *spill, struct buffer *buffer, int error)
{
    uint64_t at = place_at(spill, buffer->segment.sequence);
    int64_t  pause;
    bool     tell;

    COUNT(spill, write_errors, 1);
    near__lock(&spill->lock);
    tell = spill->paused == 0 && !spill->stop;
    if (spill->paused == 0) { /* else it is one of those that were waiting when the first one failed */
        spill->pause = spill->pause == 0 ? PAUSE_MS * NEAR_MS : 2 * spill->pause;
        if (spill->pause > PAUSE_MAX_MS * NEAR_MS)
            spill->pause = PAUSE_MAX_MS * NEAR_MS;
        spill->paused = near__time_after(near__spill_now(spill), spill->pause);
    }
    pause = spill->pause;
    if (spill->filling == buffer)
        spill->filling = NULL;
    buffer->state = FULL; /* nobody adds to it */
    near__unlock(&spill->lock);
    while (atomic_load_explicit(&buffer->busy, memory_order_acquire) > 0)
        sched_yield(); /* a copy of a record */
    atomic_store_explicit(&place_of(spill, at)->sequence, 0, memory_order_release);
    COUNT(spill, dropped, near__spill_index_drop(spill->index, at, at + spill->segment_bytes));
    near__lock(&spill->lock);
    buffer->state = FREE;
    settle_locked(spill);
    near__unlock(&spill->lock);
    if (tell)
        near__log(&spill->config.log, NEAR_LOG_WARN,
                  "disk tier %s: cannot write: %s; nothing is written for %lld ms", spill->config.path,
                  near__errno_text(-error), (long long)(pause / NEAR_MS));
}

/* The oldest that has something to be written; what of it is whole.  NULL: nothing. */
static struct buffer *
next_to_write_locked(struct near__spill *spill, uint32_t *to)
{
    struct buffer *oldest = NULL;

    for (unsigned i = 0; i < spill->buffers_n; i++) {
        struct buffer *buffer = &spill->buffers[i];

        if (buffer->state != FREE && (buffer->state == FULL || buffer->fill > buffer->written) &&
            (oldest == NULL || buffer->segment.sequence < oldest->segment.sequence))
            oldest = buffer;
    }
    if (oldest == NULL)
        return NULL;
    /* acquire: pairs with commit() */
    for (int i = 0; atomic_load_explicit(&oldest->busy, memory_order_acquire) > 0; i++)
        if (i == SPIN)
            return NULL; /* who copies was interrupted: next time */
    *to = oldest->fill;
    return oldest;
}

static void
written(struct near__spill *spill, struct buffer *buffer, uint32_t to)
{
    near__lock(&spill->lock);
    buffer->written = to;
    spill->pause    = 0;
    if (buffer->state == FULL && buffer->fill == to) {
        place_of(spill, place_at(spill, buffer->segment.sequence))->end = to;
        buffer->state                                                   = FREE;
        settle_locked(spill);
    }
    near__unlock(&spill->lock);
}

/* False: nothing to write. */
static bool
write_one(struct near__spill *spill)
{
    struct buffer *buffer;
    uint32_t       from, to = 0;
    int            rc;

    near__lock(&spill->lock);
    buffer = next_to_write_locked(spill, &to);
    from   = buffer != NULL ? buffer->written : 0;
    near__unlock(&spill->lock);
    if (buffer == NULL)
        return false;
    rc = from < to ? near__spill_write_all(spill->os, spill->fd, buffer->bytes + from, to - from,
                                           place_at(spill, buffer->segment.sequence) + from)
                   : 0;
    if (rc != 0) {
        give_up(spill, buffer, rc);
        return false;
    }
    COUNT(spill, written_bytes, to - from);
    written(spill, buffer, to);
    return true;
}

static void release(struct near__spill *spill);
static void save_alive(struct near__spill *spill);

static bool
has_unwritten(struct near__spill *spill)
{
    bool any = false;

    near__lock(&spill->lock);
    for (unsigned i = 0; i < spill->buffers_n; i++)
        any = any || (spill->buffers[i].state != FREE && spill->buffers[i].fill > spill->buffers[i].written);
    near__unlock(&spill->lock);
    return any;
}

static bool
has_full_locked(const struct near__spill *spill)
{
    for (unsigned i = 0; i < spill->buffers_n; i++)
        if (spill->buffers[i].state == FULL)
            return true;
    return false;
}

/* Until there is something to do, or it is time for what is half full. */
static bool
rest(struct near__spill *spill)
{
    int64_t now = near__spill_now(spill);
    bool    go_on;

    near__lock(&spill->lock);
    pthread_cond_broadcast(&spill->over);
    if (spill->paused != 0 && spill->paused <= now)
        spill->paused = 0;
    if (!spill->stop && !has_full_locked(spill) &&
        spill->cleared >= spill->turn + smaller(AHEAD_MAX, spill->segments / 2))
        near__cond_wait(&spill->work, &spill->lock, near__time_after(now, FLUSH_MS * NEAR_MS));
    go_on = !spill->stop;
    near__unlock(&spill->lock);
    return go_on;
}

static void *
write_thread(void *ctx)
{
    struct near__spill *spill = ctx;

    do {
        while (write_one(spill))
            ;
        while (clear_ahead(spill))
            while (write_one(spill))
                ;
        turn_door(spill);
        near__spill_index_tidy(spill->index);
    } while (rest(spill));
    while (has_unwritten(spill)) /* and what cannot be written has left the index before it is listed */
        write_one(spill);
    save_alive(spill);
    near__lock(&spill->lock);
    spill->ended = true;
    pthread_cond_broadcast(&spill->over);
    near__unlock(&spill->lock);
    release(spill);
    return NULL;
}

bool
near__spill_drain(struct near__spill *spill, int64_t deadline)
{
    uint64_t ahead = smaller(AHEAD_MAX, spill->segments / 2);
    bool     done = false, more = true;

    while (!done && more) {
        near__lock(&spill->lock);
        done = spill->cleared >= spill->turn + ahead;
        for (unsigned i = 0; i < spill->buffers_n; i++)
            done = done &&
                   (spill->buffers[i].state == FREE || (spill->buffers[i].state == FILLING &&
                                                        spill->buffers[i].fill == spill->buffers[i].written));
        if (!done) {
            pthread_cond_signal(&spill->work);
            more = near__cond_wait(&spill->over, &spill->lock, deadline);
        }
        near__unlock(&spill->lock);
    }
    return done;
}

/* ---- the former life */

#define LIST_NAME  "alive"
#define LIST_MAGIC UINT64_C(0x324556494c41454e)
#define LIST_HEAD  32 /* magic, the log's name, newest turn, crc of the bits */
/* A bit for as many bytes of the log as the least record has: no two begin in them.  So the list is a 512th of the log. */
#define LIST_UNIT NEAR__SPILL_HEAD

static size_t
list_bytes(const struct near__spill *spill)
{
    return (size_t)((NEAR__SPILL_PAGE + spill->segments * spill->segment_bytes) / LIST_UNIT / 8 + 8);
}

static void
note_alive(void *ctx, uint64_t at)
{
    uint8_t *bits = ctx;

    bits[at / LIST_UNIT / 8] |= (uint8_t)(1u << at / LIST_UNIT % 8);
}

static bool
is_alive(const struct near__spill *spill, uint64_t at)
{
    return spill->alive == NULL ||
           (spill->alive[LIST_HEAD + at / LIST_UNIT / 8] >> at / LIST_UNIT % 8 & 1) != 0;
}

static void
free_alive(struct near__spill *spill)
{
    free(spill->alive);
    spill->alive = NULL;
    atomic_store_explicit(&spill->alive_bytes, 0, memory_order_relaxed);
}

/* What of the log may be answered: the index as a list of places.  Without it the end counts as none, and that is right. */
static void
save_alive(struct near__spill *spill)
{
    size_t   size = list_bytes(spill);
    uint8_t *list = calloc(1, LIST_HEAD + size);
    int      fd;
    bool     good;

    if (list == NULL)
        return;
    near__spill_index_each(spill->index, note_alive, list + LIST_HEAD);
    near__le64_put(list, LIST_MAGIC);
    near__le64_put(list + 8, spill->log.name);
    near__le64_put(list + 16, spill->turn);
    near__le32_put(list + 28, near__crc32c(near__crc32c(0, list, 28), list + LIST_HEAD, size));
    fd   = spill->os->sync(spill->os->ctx, spill->fd) == 0
               ? spill->os->open(spill->os->ctx, spill->directory, LIST_NAME, true)
               : -EIO;
    good = fd >= 0 && near__spill_write_all(spill->os, fd, list, LIST_HEAD + size, 0) == 0 &&
           spill->os->sync(spill->os->ctx, fd) == 0;
    if (fd >= 0)
        spill->os->close(spill->os->ctx, fd);
    if (!good)
        COUNT(spill, write_errors, 1);
    free(list);
}

/* Read, and gone before anything changes: an end that does not write it anew is no clean one. */
static void
load_alive(struct near__spill *spill)
{
    size_t   size = list_bytes(spill);
    int      fd   = spill->os->open(spill->os->ctx, spill->directory, LIST_NAME, false);
    uint8_t *list = fd >= 0 ? malloc(LIST_HEAD + size) : NULL;
    bool     good = list != NULL &&
                near__spill_read_all(spill->os, fd, list, LIST_HEAD + size, 0) == (ssize_t)(LIST_HEAD + size);

    if (fd >= 0)
        spill->os->close(spill->os->ctx, fd);
    good = good && near__le64_get(list) == LIST_MAGIC && near__le64_get(list + 8) == spill->log.name &&
           near__le64_get(list + 16) == spill->old_newest &&
           near__le32_get(list + 28) == near__crc32c(near__crc32c(0, list, 28), list + LIST_HEAD, size);
    if (good) {
        spill->alive = list;
        atomic_store_explicit(&spill->alive_bytes, LIST_HEAD + size, memory_order_relaxed);
    } else {
        free(list);
    }
    /* a list that cannot be taken away would be believed again after a life that ended badly */
    spill->old_clean = good && spill->os->unlink(spill->os->ctx, spill->directory, LIST_NAME) == 0 &&
                       spill->os->sync(spill->os->ctx, spill->directory) == 0;
}

uint64_t
near__spill_old_count(const struct near__spill *spill)
{
    return smaller(spill->old_newest, spill->segments);
}

bool
near__spill_old_is_clean(const struct near__spill *spill)
{
    return spill->old_clean;
}

struct looking {
    struct near__spill *spill;
    near__spill_each   *each;
    void               *ctx;
    uint64_t            start;
    int64_t             shift;
};

static void
look_at_old(void *ctx, const struct near__spill_record *record, uint32_t at, uint32_t size)
{
    struct looking           *looking = ctx;
    struct near__spill       *spill   = looking->spill;
    struct near__spill_record now     = *record;

    if (!is_alive(spill, looking->start + at))
        return;
    now.born        = shifted(record->born, looking->shift);
    now.fresh_until = shifted(record->fresh_until, looking->shift);
    now.expires     = shifted(record->expires, looking->shift);
    looking->each(looking->ctx, &now, near__hash_keyed(&spill->config.secret, record->key),
                  looking->start + at, size);
}

void
near__spill_old_stop(struct near__spill *spill)
{
    atomic_store_explicit(&spill->old_stop, true, memory_order_relaxed); /* a flag, it orders nothing */
}

static bool
is_old_stopped(const struct near__spill *spill)
{
    return atomic_load_explicit(&spill->old_stop, memory_order_relaxed);
}

/* By those who read for everybody: of a disk that hangs it is they who wait.  False: to stop. */
static bool
read_old(struct near__spill *spill, struct near__spill_wait *wait)
{
    const struct timespec pause = { 0, OLD_MS * NEAR_MS };

    while (!near__spill_io_begin(spill->io, wait, INT64_MAX)) {
        if (is_old_stopped(spill))
            return false;
        nanosleep(&pause, NULL);
    }
    while (!near__spill_io_await(spill->io, wait, near__time_after(near__spill_now(spill), OLD_MS * NEAR_MS)))
        if (is_old_stopped(spill))
            return false;
    return true;
}

bool
near__spill_old(struct near__spill *spill, uint64_t which, near__spill_each *each, void *ctx)
{
    uint64_t                   turn    = spill->old_newest - which;
    uint64_t                   at      = place_at(spill, turn);
    struct place              *place   = place_of(spill, at);
    struct near__spill_segment segment = { .name = spill->log.name, .sequence = turn };
    struct looking             looking = { spill, each, ctx, at,
                                           atomic_load_explicit(&place->shift, memory_order_relaxed) };
    struct near__spill_wait   *wait;
    bool                       good;

    if (which >= near__spill_old_count(spill) ||
        atomic_load_explicit(&place->sequence, memory_order_acquire) != turn)
        return false; /* never whole, or written over by now */
    wait = near__spill_wait_new(at, spill->segment_bytes);
    if (wait == NULL)
        return false;
    good = read_old(spill, wait);
    if (good && wait->got < 0) {
        COUNT(spill, read_errors, 1);
        good = false;
    }
    if (good)
        walk(&segment, wait->bytes, (size_t)wait->got, look_at_old, &looking);
    near__spill_wait_free(&wait);
    return good;
}

bool
near__spill_adopt(struct near__spill *spill, uint64_t hash, uint64_t at, uint32_t size)
{
    struct place *place    = place_of(spill, at);
    uint64_t      sequence = atomic_load_explicit(&place->sequence, memory_order_acquire);
    bool          used;

    if (sequence == 0 || sequence > spill->old_newest ||
        !near__spill_index_put(spill->index, hash, (struct near__spill_index_place){ at, size }))
        return false;
    /* acquire: pairs with clear_segment(); what it drops after that it has not overlooked, what it overlooked is seen here */
    if (atomic_load_explicit(&place->sequence, memory_order_acquire) != sequence) {
        near__spill_index_take(spill->index, hash, at, &used);
        return false;
    }
    COUNT(spill, adopted, 1);
    return true;
}

void
near__spill_old_over(struct near__spill *spill)
{
    free_alive(spill);
}

void
near__spill_old_done(struct near__spill *spill)
{
    /* the bits are freed with the rest: somebody may be looking */
    atomic_store_explicit(&spill->touched_all, true, memory_order_relaxed);
}

uint32_t
near__spill_flushes(const struct near__spill *spill)
{
    return atomic_load_explicit(&spill->flushes, memory_order_relaxed);
}

void
near__spill_old_again(struct near__spill *spill)
{
    free_alive(spill);
    spill->old_clean = false;
    near__lock(&spill->lock);
    spill->old_newest = spill->turn;
    near__unlock(&spill->lock);
}

/* What its times lack to be ours.  False: it is from the future, or nonsense, so nobody knows how old it is. */
static bool
shift_of(const struct near__spill_segment *segment, int64_t now, int64_t wall, int64_t *shift)
{
    int64_t gone; /* while nobody ran, too */

    if (__builtin_sub_overflow(wall, segment->wall_ms, &gone) || gone < -SLEWED_MS)
        return false;
    gone = gone > 0 ? gone : 0;
    return !__builtin_mul_overflow(gone, NEAR_MS, &gone) &&
           !__builtin_sub_overflow(now, segment->clock, shift) &&
           !__builtin_sub_overflow(*shift, gone, shift);
}

/* Which segments there are: their heads. */
static void
find_old(struct near__spill *spill)
{
    int64_t now = near__spill_now(spill), wall = near__wall_ms(&spill->config.clock);
    uint8_t head[NEAR__SPILL_HEAD];

    for (uint64_t i = 0; i < spill->segments; i++) {
        struct near__spill_segment segment;
        int64_t                    shift;
        uint64_t                   at  = NEAR__SPILL_PAGE + i * spill->segment_bytes;
        ssize_t                    got = near__spill_read_all(spill->os, spill->fd, head, sizeof(head), at);

        if (got == 0)
            break;
        if (got != (ssize_t)sizeof(head) || !near__spill_segment_get(&segment, head) ||
            segment.name != spill->log.name || segment.sequence == 0 ||
            segment.sequence % spill->segments != i || segment.sequence > UINT64_MAX / 2)
            continue;
        if (segment.sequence > spill->old_newest)
            spill->old_newest = segment.sequence; /* turns go on behind it, whatever it is good for */
        if (!shift_of(&segment, now, wall, &shift))
            continue;
        atomic_store_explicit(&spill->places[i].sequence, segment.sequence, memory_order_relaxed);
        atomic_store_explicit(&spill->places[i].shift, shift, memory_order_relaxed);
    }
}

/* What was never written needs no clearing. */
static void
clear_empty(struct near__spill *spill)
{
    uint64_t ahead = smaller(AHEAD_MAX, spill->segments / 2);

    spill->turn = spill->cleared = spill->old_newest;
    while (spill->cleared < spill->turn + ahead &&
           atomic_load_explicit(&place_of(spill, place_at(spill, spill->cleared + 1))->sequence,
                                memory_order_relaxed) == 0)
        spill->cleared++;
}

/* ---- birth and end */

static bool
door_init(struct near__spill *spill, uint64_t entries)
{
    uint64_t bits = DOOR_MIN;

    if (spill->config.admission != NEAR__SPILL_SECOND)
        return true;
    while (bits < entries * DOOR_BITS)
        bits *= 2;
    spill->door_mask = bits - 1;
    spill->door[0]   = calloc(bits / 64, sizeof(uint64_t));
    spill->door[1]   = calloc(bits / 64, sizeof(uint64_t));
    return spill->door[0] != NULL && spill->door[1] != NULL;
}

static void
choose_sizes(struct near__spill *spill)
{
    const struct near__spill_config *config = &spill->config;
    uint64_t                         bytes  = config->segment_bytes;

    if (bytes == 0) {
        bytes = config->max_bytes / 64 & ~(uint64_t)(SEGMENT_LEAST - 1);
        bytes = bytes > SEGMENT_USUAL ? SEGMENT_USUAL : bytes;
        while (bytes < SEGMENT_MOST && config->max_bytes / bytes > (1 << 18))
            bytes *= 2;
        bytes = bytes < SEGMENT_LEAST ? SEGMENT_LEAST : bytes;
    }
    spill->segment_bytes = (uint32_t)bytes;
    spill->segments      = config->max_bytes > NEAR__SPILL_PAGE
                               ? (smaller(config->max_bytes, MAX_BYTES) - NEAR__SPILL_PAGE) / bytes
                               : 0;
}

static near_status
allocate(struct near__spill *spill)
{
    uint64_t entries = spill->config.max_bytes / ENTRY_BYTES;
    uint64_t buffers = spill->config.queue_bytes / spill->segment_bytes;

    buffers          = buffers < BUFFERS_MIN ? BUFFERS_MIN : smaller(buffers, BUFFERS_MAX);
    spill->index     = near__spill_index_new(entries);
    spill->places    = calloc(spill->segments, sizeof(*spill->places));
    spill->scratch   = malloc(spill->segment_bytes);
    spill->buffers   = calloc(buffers, sizeof(*spill->buffers));
    spill->buffers_n = spill->buffers != NULL ? (unsigned)buffers : 0;
    for (unsigned i = 0; i < spill->buffers_n; i++) {
        spill->buffers[i].bytes = malloc(spill->segment_bytes);
        if (spill->buffers[i].bytes == NULL)
            return NEAR_ERR_NOMEM;
    }
    if (spill->index == NULL || spill->places == NULL || spill->scratch == NULL || spill->buffers == NULL ||
        !door_init(spill, entries))
        return NEAR_ERR_NOMEM;
    return NEAR_OK;
}

static void delete (struct near__spill *spill)
{
    near__spill_index_free(&spill->index);
    for (unsigned i = 0; i < spill->buffers_n; i++)
        free(spill->buffers[i].bytes);
    free(spill->buffers);
    free(spill->places);
    free(spill->scratch);
    free_alive(spill);
    free((void *)spill->door[0]);
    free((void *)spill->door[1]);
    free((void *)atomic_load_explicit(&spill->touched, memory_order_relaxed));
    if (spill->fd >= 0)
        spill->os->close(spill->os->ctx, spill->fd);
    if (spill->lock_fd >= 0) {
        spill->os->unlock(spill->os->ctx, spill->lock_fd);
        spill->os->close(spill->os->ctx, spill->lock_fd);
    }
    if (spill->directory >= 0)
        spill->os->close(spill->os->ctx, spill->directory);
    pthread_cond_destroy(&spill->work);
    pthread_cond_destroy(&spill->over);
    near__lock_fini(&spill->lock);
    free((void *)(uintptr_t)spill->config.path);
    free(spill);
}

static void
release(struct near__spill *spill)
{
    /* acq_rel: the last one sees what the other did */
    if (atomic_fetch_sub_explicit(&spill->refs, 1, memory_order_acq_rel) == 1)
        delete (spill);
}

/* A log of ours, of these sizes, or a new one. */
static int
open_log(struct near__spill *spill)
{
    const struct near__spill_os *os = spill->os;
    uint8_t                      head[NEAR__SPILL_HEAD];
    int                          rc;

    spill->fd = os->open(os->ctx, spill->directory, "log", false);
    if (spill->fd < 0)
        return spill->fd;
    if (near__spill_read_all(os, spill->fd, head, sizeof(head), 0) == (ssize_t)sizeof(head) &&
        near__spill_log_get(&spill->log, head) && spill->log.segment_bytes == spill->segment_bytes &&
        spill->log.segments == spill->segments) {
        find_old(spill);
        load_alive(spill);
        return 0;
    }
    spill->log = (struct near__spill_log){ spill->segment_bytes, spill->segments, 0 };
    if (!near__random(&spill->log.name, sizeof(spill->log.name)))
        return -EIO;
    near__spill_log_put(&spill->log, head);
    rc = os->resize(os->ctx, spill->fd, 0);
    os->unlink(os->ctx, spill->directory, LIST_NAME); /* it names another log anyway */
    return rc != 0 ? rc : near__spill_write_all(os, spill->fd, head, sizeof(head), 0);
}

static int
open_files(struct near__spill *spill)
{
    const struct near__spill_os *os = spill->os;
    int                          rc;

    spill->directory = os->open_directory(os->ctx, spill->config.path);
    if (spill->directory < 0)
        return spill->directory;
    spill->lock_fd = os->open(os->ctx, spill->directory, "lock", false);
    if (spill->lock_fd < 0)
        return spill->lock_fd;
    rc = os->lock(os->ctx, spill->lock_fd);
    return rc != 0 ? rc : open_log(spill);
}

static near_status
open_all(struct near__spill *spill, int *reason)
{
    near_status status = allocate(spill);
    int         reads;

    if (status != NEAR_OK)
        return status;
    *reason = -open_files(spill);
    if (*reason != 0)
        return *reason == EWOULDBLOCK ? NEAR_ERR_BUSY : NEAR_ERR_UNAVAILABLE;
    clear_empty(spill);
    if (spill->old_newest > 0)
        atomic_init(&spill->touched, calloc(TOUCHED_BITS / 64, sizeof(uint64_t)));
    /* its own descriptor: a thread that hangs keeps it for as long as it needs it */
    reads = spill->os->open(spill->os->ctx, spill->directory, "log", false);
    if (reads < 0) {
        *reason = -reads;
        return NEAR_ERR_UNAVAILABLE;
    }
    spill->io =
        near__spill_io_new(spill->os, reads, spill->config.threads, spill->config.ring, &spill->config.clock);
    if (spill->io == NULL) {
        spill->os->close(spill->os->ctx, reads);
        return NEAR_ERR_NOMEM;
    }
    atomic_fetch_add_explicit(&spill->refs, 1, memory_order_relaxed);
    status = near__thread_start(&spill->writer, "near-disk-write", write_thread, spill);
    if (status == NEAR_OK)
        return status;
    atomic_fetch_sub_explicit(&spill->refs, 1, memory_order_relaxed);
    near__spill_io_free(&spill->io, NEAR_NEVER);
    return status;
}

near_status
near__spill_open(struct near__spill **out, const struct near__spill_config *config, int *reason)
{
    struct near__spill *spill = calloc(1, sizeof(*spill));
    near_status         status;

    *out    = NULL;
    *reason = 0;
    if (spill == NULL)
        return NEAR_ERR_NOMEM;
    spill->config      = *config;
    spill->config.path = strdup(config->path);
    spill->os          = config->os;
    spill->directory = spill->lock_fd = spill->fd = -1;
    near__lock_init(&spill->lock, NEAR__RANK_LEAF);
    near__cond_init(&spill->work);
    near__cond_init(&spill->over);
    atomic_init(&spill->refs, 1);
    atomic_init(&spill->read_now, true);
    choose_sizes(spill);
    if (spill->config.path == NULL)
        status = NEAR_ERR_NOMEM;
    else if (spill->segments < SEGMENTS_MIN || spill->segment_bytes % SEGMENT_LEAST != 0 ||
             spill->segment_bytes > SEGMENT_MOST)
        status = NEAR_ERR_INVALID;
    else
        status = open_all(spill, reason);
    if (status != NEAR_OK) {
        delete (spill);
        return status;
    }
    *out = spill;
    return NEAR_OK;
}

void
near__spill_close(struct near__spill **pspill, int64_t deadline, bool quick)
{
    struct near__spill *spill = *pspill;
    bool                more  = true, ended;

    *pspill = NULL;
    if (spill == NULL || quick)
        return; /* in a child there are no threads, and their locks may be taken for ever */
    near__lock(&spill->lock);
    spill->stop = true;
    pthread_cond_broadcast(&spill->work);
    while (!spill->ended && more)
        more = near__cond_wait(&spill->over, &spill->lock, deadline);
    ended = spill->ended;
    near__unlock(&spill->lock);
    if (ended)
        pthread_join(spill->writer, NULL);
    else
        pthread_detach(spill->writer); /* hangs in the system: frees what is left when it comes back */
    near__spill_io_free(&spill->io, deadline);
    release(spill);
}

/* ---- seeing */

/* What there is in memory that grows with the log, but for the index. */
static uint64_t
beside_index_bytes(const struct near__spill *spill)
{
    uint64_t bytes = spill->segments * sizeof(*spill->places) +
                     atomic_load_explicit(&spill->alive_bytes, memory_order_relaxed);

    if (spill->door[0] != NULL)
        bytes += 2 * ((spill->door_mask + 1) / 8);
    if (atomic_load_explicit(&spill->touched, memory_order_relaxed) != NULL)
        bytes += TOUCHED_BITS / 8;
    return bytes;
}

void
near__spill_stats(struct near__spill *spill, struct near__spill_stats *stats)
{
#define READ(counter) stats->counter = atomic_load_explicit(&spill->n.counter, memory_order_relaxed)
    READ(hits);
    READ(misses);
    READ(puts);
    READ(put_bytes);
    READ(kept);
    READ(rejected);
    READ(dropped);
    READ(too_large);
    READ(forgotten);
    READ(evicted);
    READ(moved);
    READ(written_bytes);
    READ(timeouts);
    READ(corrupt);
    READ(read_errors);
    READ(write_errors);
    READ(adopted);
#undef READ
    near__lock(&spill->lock);
    stats->log_bytes = smaller(spill->turn, spill->segments) * spill->segment_bytes;
    near__unlock(&spill->lock);
    stats->entries     = near__spill_index_entries(spill->index);
    stats->index_bytes = near__spill_index_bytes(spill->index) + beside_index_bytes(spill);
}

bool
near__spill_has_ring(const struct near__spill *spill)
{
    return near__spill_io_has_ring(spill->io);
}
