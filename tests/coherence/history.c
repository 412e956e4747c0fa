/* See history.h. */
#include "coherence/history.h"

#include <stdio.h>
#include <sys/mman.h>

#include "base/clock.h"

#define PENDING INT64_MAX
#define FAILED  (INT64_MAX - 1) /* ended, and not acknowledged */

struct event {
    _Atomic uint64_t version; /* 0: being replaced */
    _Atomic int64_t  began, ended;
    _Atomic unsigned writer, how;
};

struct of_key {
    _Alignas(64) _Atomic uint64_t newest;
    _Atomic uint64_t failed[HISTORY_FAILED / 64];
    struct event     ring[HISTORY_RING];
};

struct history {
    unsigned      keys;
    size_t        size;
    struct of_key of[];
};

struct history *
history_new(unsigned keys)
{
    size_t          size = sizeof(struct history) + keys * sizeof(struct of_key);
    struct history *history =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (history == MAP_FAILED)
        return NULL;
    history->keys = keys;
    history->size = size;
    return history;
}

void
history_free(struct history **history)
{
    if (*history != NULL)
        munmap(*history, (*history)->size);
    *history = NULL;
}

static void
note_failed(struct of_key *of, uint64_t version, bool failed)
{
    _Atomic uint64_t *word = &of->failed[version % HISTORY_FAILED / 64];
    uint64_t          bit  = UINT64_C(1) << version % 64;

    if (failed)
        atomic_fetch_or(word, bit);
    else if (atomic_load(word) & bit)
        atomic_fetch_and(word, ~bit);
}

static bool
has_failed(const struct of_key *of, uint64_t version)
{
    return atomic_load(&of->failed[version % HISTORY_FAILED / 64]) >> version % 64 & 1;
}

uint64_t
history_begin(struct history *history, unsigned key, unsigned writer, unsigned how)
{
    struct of_key *of      = &history->of[key];
    uint64_t       version = atomic_load(&of->newest) + 1;
    struct event  *event;

    for (;; version++) {
        uint64_t before = version - 1;

        event = &of->ring[version % HISTORY_RING];
        if (atomic_load(&event->ended) == PENDING)
            return 0; /* of the write a ring earlier, or of somebody who was faster just now */
        if (atomic_compare_exchange_strong(&of->newest, &before, version))
            break;
        version = before;
    }
    atomic_store(&event->version, 0);
    atomic_store(&event->ended, PENDING);
    atomic_store(&event->writer, writer);
    atomic_store(&event->how, how);
    note_failed(of, version, false);
    atomic_store(&event->began, near__now(&near__clock_system));
    atomic_store(&event->version, version);
    return version;
}

void
history_end(struct history *history, unsigned key, uint64_t version, bool acknowledged)
{
    struct of_key *of = &history->of[key];

    note_failed(of, version, !acknowledged);
    atomic_store(&of->ring[version % HISTORY_RING].ended,
                 acknowledged ? near__now(&near__clock_system) : FAILED);
}

uint64_t
history_record(struct history *history, unsigned key, unsigned writer, int64_t began, int64_t ended)
{
    uint64_t      version = history_begin(history, key, writer, 0);
    struct event *event   = &history->of[key].ring[version % HISTORY_RING];

    atomic_store(&event->began, began);
    atomic_store(&event->ended, ended);
    note_failed(&history->of[key], version, ended == FAILED);
    return version;
}

uint64_t
history_newest(const struct history *history, unsigned key)
{
    return atomic_load(&history->of[key].newest);
}

struct found {
    int64_t  began, ended;
    unsigned writer;
};

/* A whole picture of a version's event; false: it is not there (any more, or yet). */
static bool
find(const struct of_key *of, uint64_t version, struct found *found)
{
    const struct event *event = &of->ring[version % HISTORY_RING];

    if (version == 0 || atomic_load(&event->version) != version)
        return false;
    found->began  = atomic_load(&event->began);
    found->ended  = atomic_load(&event->ended);
    found->writer = atomic_load(&event->writer);
    return atomic_load(&event->version) == version;
}

/* The writes that outdate the value of a write that ended at `ended`, by when they did: *end and *own_end, NEAR_NEVER: none. */
static void
find_end(const struct of_key *of, uint64_t version, int64_t ended, unsigned reader, int64_t *end,
         int64_t *own_end, uint64_t *by)
{
    uint64_t     newest = atomic_load(&of->newest);
    uint64_t     first  = newest >= version + HISTORY_RING ? newest - HISTORY_RING + 1 : version + 1;
    struct found other;

    *end = *own_end = NEAR_NEVER;
    for (uint64_t at = first; at <= newest; at++) {
        if (!find(of, at, &other) || other.ended >= FAILED || other.began <= ended)
            continue;
        if (other.ended < *end) {
            *end = other.ended;
            *by  = *own_end == NEAR_NEVER ? at : *by;
        }
        if (other.writer == reader && other.ended < *own_end) {
            *own_end = other.ended;
            *by      = at;
        }
    }
}

struct history_verdict
history_judge(const struct history *history, unsigned key, uint64_t version, unsigned reader, int64_t began,
              int64_t ended)
{
    const struct of_key   *of      = &history->of[key];
    struct history_verdict verdict = { .lapped = false };
    struct found           mine;
    int64_t                end, own_end;
    uint64_t               newest = atomic_load(&of->newest);

    if (version == 0 || version > newest) {
        verdict.impossible = true;
        return verdict;
    }
    if (!find(of, version, &mine)) {
        /* its place was given to a later write, which was allowed only after it had ended: when exactly is lost */
        struct found heir;
        uint64_t     last = newest - (newest - version) % HISTORY_RING;

        verdict.lapped = last > version;
        mine.began     = 0;
        mine.ended     = verdict.lapped && find(of, last, &heir) ? heir.began : PENDING;
    }
    verdict.impossible = mine.began > ended;
    verdict.unjudged   = mine.ended == FAILED || (verdict.lapped && has_failed(of, version));
    if (verdict.impossible || verdict.unjudged || mine.ended == PENDING || (version == newest))
        return verdict;
    find_end(of, version, mine.ended, reader, &end, &own_end, &verdict.by);
    verdict.outdated        = end < began ? began - end : 0;
    verdict.outdated_by_own = own_end < began ? began - own_end : 0;
    return verdict;
}

unsigned
history_how(const struct history *history, unsigned key, uint64_t version)
{
    const struct event *event = &history->of[key].ring[version % HISTORY_RING];
    unsigned            how   = atomic_load(&event->how);

    return atomic_load(&event->version) == version ? how : ~0u;
}

const char *
history_describe(const struct history *history, unsigned key, uint64_t version, int64_t now, char *out,
                 size_t size)
{
    struct found found;

    if (!find(&history->of[key], version, &found))
        snprintf(out, size, "%llu", (unsigned long long)version);
    else
        snprintf(out, size, "%llu (op %u of process %u, %.3f to %.3f ms before%s)",
                 (unsigned long long)version, history_how(history, key, version), found.writer,
                 (double)(now - found.began) / 1e6,
                 found.ended < FAILED ? (double)(now - found.ended) / 1e6 : 0.0,
                 found.ended < FAILED ? "" : ", not acknowledged");
    return out;
}

bool
history_precedes(const struct history *history, unsigned key, uint64_t first, uint64_t second)
{
    const struct of_key *of = &history->of[key];
    struct found         one, other;

    return first < second && find(of, first, &one) && find(of, second, &other) && one.ended < FAILED &&
           one.ended < other.began;
}
