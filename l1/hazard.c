#include "l1/hazard.h"

#include "base/lock.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    LINES =
        128, /* what belongs to one thread shares no line with what belongs to another, nor the line beside it */
    HALF = NEAR__HAZARD_SLOTS /
           2, /* a chunk with more slots taken is left alone: a search then costs two looks a slot */
    HITS_FIRST = 16,
    HELD_FIRST = 64,
    FEW        = 8 /* a thread seldom holds more than one value */
};

struct chunk {
    struct near__hazard slots[NEAR__HAZARD_SLOTS + 1]; /* the last one's block is never NULL */
    struct chunk       *next;
};

struct record {
    struct near__reader reader; /* first: a reader is its record */
    struct record      *next;   /* registry's lock */
    struct chunk       *chunks, *current;
    bool                owned; /* by a living thread; registry's lock */
};

struct burial {
    struct burial *next;
    const char    *from, *to;
    void (*end)(void *ctx);
    void *ctx;
};

static struct near__hazard         never_free          = { .block = &never_free };
struct near__reader                near__reader_nobody = { .next = &never_free };
_Thread_local struct near__reader *near__reader_mine __attribute__((tls_model("initial-exec"))) =
    &near__reader_nobody;
_Atomic unsigned near__hazard_flags;

/*
 * The process's own state.  `lock` is a leaf and covers everything but the atomics.
 */
static struct {
    pthread_once_t    once;
    pthread_key_t     key; /* its destructor gives a thread's record back */
    bool              key_made;
    struct near__lock lock;
    struct record    *records;
    /* barriers */
    _Atomic uint64_t begun, complete;
    /* What the last barrier found held, while it is little: read without the lock.  `few_version` is odd while it is being written. */
    _Atomic uint64_t      few_version;
    _Atomic size_t        held_count;
    _Atomic(const void *) few[FEW];
    const void          **held;                 /* open addressing, a power of two; NULL: free */
    size_t                held_size, held_room; /* in use, and allocated */
    bool                  held_unknown;         /* no memory for the set: everything counts as held */
    struct burial        *burials;
    _Atomic uintptr_t     buried_from, buried_to; /* all of them lie between */
    uint8_t              *hits_taken;
    size_t                hits_size;
} process = { .once = PTHREAD_ONCE_INIT, .buried_from = UINTPTR_MAX };

/* ---- birth and end of records */

static void
thread_ends(void *arg)
{
    struct record *record = arg;

    near__reader_mine =
        &near__reader_nobody; /* a later destructor of the same thread that reads must not share it with the next owner */
    near__lock(&process.lock);
    record->owned = false;
    near__unlock(&process.lock);
}

/* A child must not inherit the lock held: its only thread would wait for ever. */
static void
before_fork(void)
{
    pthread_mutex_lock(&process.lock.mutex);
}

static void
after_fork(void)
{
    pthread_mutex_unlock(&process.lock.mutex);
}

static void
process_init(void)
{
    near__lock_init(&process.lock, NEAR__RANK_LEAF);
    (void)pthread_atfork(before_fork, after_fork,
                         after_fork); /* without memory for it forks are as they were */
    process.key_made = pthread_key_create(&process.key, thread_ends) == 0;
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) != 0)
        atomic_fetch_or_explicit(&near__hazard_flags, NEAR__HAZARD_FENCES, memory_order_relaxed);
}

static struct chunk *
chunk_new(void)
{
    struct chunk *chunk = near__zeroed(LINES, sizeof(*chunk));

    if (chunk == NULL)
        return NULL;
    atomic_init(&chunk->slots[NEAR__HAZARD_SLOTS].block, chunk); /* the end */
    return chunk;
}

static struct record *
record_new(void)
{
    struct record *record = near__zeroed(LINES, sizeof(*record));

    if (record == NULL)
        return NULL;
    record->chunks = record->current = chunk_new();
    if (record->chunks == NULL) {
        free(record);
        return NULL;
    }
    record->reader.next = record->chunks->slots;
    record->owned       = true;
    return record;
}

static struct record *
record_unowned_locked(void)
{
    struct record *record = process.records;

    while (record != NULL && record->owned)
        record = record->next;
    if (record != NULL)
        record->owned = true;
    return record;
}

struct near__reader *
near__reader_new(void)
{
    struct record *record;

    pthread_once(&process.once, process_init);
    if (!process.key_made)
        return NULL; /* nobody would give the record back */
    near__lock(&process.lock);
    record = record_unowned_locked();
    near__unlock(&process.lock);
    if (record == NULL) {
        record = record_new();
        if (record == NULL)
            return NULL;
        near__lock(&process.lock);
        record->next    = process.records;
        process.records = record;
        near__unlock(&process.lock);
    }
    if (pthread_setspecific(process.key, record) != 0) {
        thread_ends(record);
        return NULL;
    }
    near__reader_mine = &record->reader;
    return near__reader_mine;
}

/* ---- slots */

static struct near__hazard *
chunk_search(struct chunk *chunk)
{
    struct near__hazard *found = NULL;
    unsigned             taken = 0;

    for (unsigned i = 0; i < NEAR__HAZARD_SLOTS; i++) {
        /* acquire: as in near__hazard_slot() */
        if (atomic_load_explicit(&chunk->slots[i].block, memory_order_acquire) != NULL)
            taken++;
        else if (found == NULL)
            found = &chunk->slots[i];
    }
    return taken <= HALF ? found : NULL;
}

struct near__hazard *
near__hazard_search(struct near__reader *reader)
{
    struct record       *record = (struct record *)reader;
    struct near__hazard *slot   = record->current->slots;
    struct chunk        *chunk;

    if (reader->next == &slot[NEAR__HAZARD_SLOTS] &&
        atomic_load_explicit(&slot->block, memory_order_acquire) == NULL) {
        reader->next = slot; /* once round; acquire: as in near__hazard_slot() */
        return slot;
    }
    slot = chunk_search(record->current);

    for (chunk = record->chunks; slot == NULL && chunk != NULL; chunk = chunk->next) {
        slot = chunk_search(chunk);
        if (slot != NULL)
            record->current = chunk;
    }
    if (slot == NULL) {
        chunk = chunk_new();
        if (chunk == NULL)
            return NULL;
        near__lock(&process.lock); /* a scan walks the chain */
        chunk->next    = record->chunks;
        record->chunks = chunk;
        near__unlock(&process.lock);
        record->current = chunk;
        slot            = chunk->slots;
    }
    reader->next = slot;
    return slot;
}

/* ---- barriers */

uint64_t
near__hazard_epoch(void)
{
    /* What was unlinked before this number was read must be seen by every reader that the barrier after it finds past its fence:
     * a fence here, because membarrier strikes the processors one after the other. */
#if NEAR__TSAN
    return atomic_fetch_add_explicit(&process.begun, 0, memory_order_seq_cst); /* it does not know fences */
#else
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&process.begun, memory_order_acquire);
#endif
}

bool
near__hazard_passed(uint64_t epoch)
{
    /* acquire: pairs with the release in near__hazard_barrier(), the set of held blocks is that barrier's or a later one's */
    return atomic_load_explicit(&process.complete, memory_order_acquire) > epoch;
}

static size_t
held_place(const void *block)
{
    return (size_t)(((uintptr_t)block >> 3) * UINT64_C(0x9E3779B97F4A7C15) >> 20) & (process.held_size - 1);
}

static void
held_add_locked(const void *block, size_t number)
{
    size_t at = held_place(block);

    if (number < FEW)
        atomic_store_explicit(&process.few[number], block,
                              memory_order_release); /* pairs with held_among_few() */

    while (process.held[at] != NULL && process.held[at] != block)
        at = (at + 1) & (process.held_size - 1);
    process.held[at] = block;
}

/* Room for `count` blocks at half load; empty.  No larger than that: each barrier clears it. */
static bool
held_clear_locked(size_t count)
{
    size_t       size = HELD_FIRST;
    const void **held;

    while (size < 2 * count)
        size *= 2;
    if (size > process.held_room) {
        held = realloc(process.held, size * sizeof(const void *));
        if (held == NULL)
            return false;
        process.held      = held;
        process.held_room = size;
    }
    process.held_size = size;
    memset(process.held, 0, size * sizeof(const void *));
    return true;
}

/* Every block that a slot names now.  acquire: pairs with near__hazard_clear() and _set(), what the holder read comes before the
 * reuse.  `visit` says whether to go on; false: it did not. */
static bool
slots_visit_locked(bool (*visit)(void *ctx, const void *block), void *ctx)
{
    for (struct record *record = process.records; record != NULL; record = record->next)
        for (struct chunk *chunk = record->chunks; chunk != NULL; chunk = chunk->next)
            for (unsigned i = 0; i < NEAR__HAZARD_SLOTS; i++) {
                const void *block = atomic_load_explicit(&chunk->slots[i].block, memory_order_acquire);

                if (block != NULL && !visit(ctx, block))
                    return false;
            }
    return true;
}

static bool
count_one(void *ctx, const void *block)
{
    (void)block;
    ++*(size_t *)ctx;
    return true;
}

/* The set is made for so many; more came meanwhile: next time. */
static bool
add_one(void *ctx, const void *block)
{
    size_t *added = ctx;

    if (*added == process.held_size / 2)
        return false;
    held_add_locked(block, (*added)++);
    return true;
}

/* Slots that fill up between the two visits hold blocks that are still linked: a retired one cannot be announced any more. */
static void
held_scan_locked(void)
{
    size_t count = 0, added = 0;

    slots_visit_locked(count_one, &count);
    atomic_fetch_add_explicit(&process.few_version, 1,
                              memory_order_acq_rel); /* odd: what follows is being written */
    process.held_unknown =
        !held_clear_locked(2 * count + HELD_FIRST) || (count > 0 && !slots_visit_locked(add_one, &added));
    /* those that came between the two visits are in the set, too, and do no harm there */
    if (process.held_unknown)
        added = SIZE_MAX;
    /* release: pairs with held_among_few() */
    atomic_store_explicit(&process.held_count, added, memory_order_release);
    atomic_fetch_add_explicit(&process.few_version, 1, memory_order_release);
}

void
near__hazard_barrier(uint64_t epoch)
{
    uint64_t number;

    pthread_once(&process.once, process_init);
    near__lock(&process.lock);
    if (near__hazard_passed(epoch)) { /* another thread's, while this one waited for the lock */
        near__unlock(&process.lock);
        return;
    }
    number = atomic_fetch_add_explicit(&process.begun, 1, memory_order_seq_cst) + 1;
    if (!near__hazard_fences())
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
    held_scan_locked();
    atomic_store_explicit(&process.complete, number,
                          memory_order_release); /* pairs with near__hazard_passed() */
    near__unlock(&process.lock);
}

size_t
near__hazard_count(void)
{
    return atomic_load_explicit(&process.held_count, memory_order_relaxed);
}

/* 1 held, 0 not held, -1: too many to tell without the lock, or they are being written. */
static int
held_among_few(const void *block)
{
    /* acquire, all of them: no later one is read before an earlier one; pair with held_scan_locked() */
    uint64_t version = atomic_load_explicit(&process.few_version, memory_order_acquire);
    size_t   count   = atomic_load_explicit(&process.held_count, memory_order_acquire);
    int      held    = 0;

    if (version % 2 != 0 || count > FEW)
        return -1;
    for (size_t i = 0; i < count; i++)
        held |= atomic_load_explicit(&process.few[i], memory_order_acquire) == block;
    return atomic_load_explicit(&process.few_version, memory_order_acquire) == version ? held : -1;
}

bool
near__hazard_held(const void *block)
{
    bool   held = true;
    int    few  = held_among_few(block);
    size_t at;

    if (few >= 0)
        return few == 1;
    near__lock(&process.lock);
    if (!process.held_unknown && process.held_size > 0) {
        at = held_place(block);
        while (process.held[at] != NULL && process.held[at] != block)
            at = (at + 1) & (process.held_size - 1);
        held = process.held[at] == block;
    }
    near__unlock(&process.lock);
    return held;
}

/* ---- burials */

static bool
lies_outside(void *ctx, const void *block)
{
    const struct burial *burial = ctx;

    return (const char *)block < burial->from || (const char *)block >= burial->to;
}

/* Burials of which nothing is held any more, taken off the list. */
static struct burial *
burials_over_locked(void)
{
    struct burial *over = NULL, **link = &process.burials, *one;

    while ((one = *link) != NULL) {
        if (!slots_visit_locked(lies_outside, one)) {
            link = &one->next;
            continue;
        }
        *link     = one->next;
        one->next = over;
        over      = one;
    }
    if (process.burials == NULL) {
        atomic_store_explicit(&process.buried_from, UINTPTR_MAX, memory_order_relaxed);
        atomic_store_explicit(&process.buried_to, 0, memory_order_relaxed);
        atomic_fetch_and_explicit(&near__hazard_flags, ~(unsigned)NEAR__HAZARD_BURIED, memory_order_relaxed);
    }
    return over;
}

static void
burials_end(void)
{
    struct burial *over, *next;

    near__lock(&process.lock);
    over = burials_over_locked();
    near__unlock(&process.lock);
    for (; over != NULL; over = next) {
        next = over->next;
        over->end(over->ctx);
        free(over);
    }
}

void
near__hazard_wake(struct near__hazard *slot, const void *block)
{
    uintptr_t at = (uintptr_t)block;

    /* The fence that others have from membarrier.  The slot is free already: a thread that takes it meanwhile does not mind. */
    if (near__hazard_fences())
        atomic_fetch_add_explicit(&slot->more, 0, memory_order_seq_cst);
    /* relaxed: ordered by the flags, the range only grows while something is buried */
    if ((atomic_load_explicit(&near__hazard_flags, memory_order_acquire) & NEAR__HAZARD_BURIED) &&
        at >= atomic_load_explicit(&process.buried_from, memory_order_relaxed) &&
        at < atomic_load_explicit(&process.buried_to, memory_order_relaxed))
        burials_end();
}

void *
near__hazard_grave(void)
{
    return malloc(sizeof(struct burial));
}

near_status
near__hazard_bury(void *grave, const void *from, const void *to, void (*end)(void *ctx), void *ctx)
{
    struct burial *burial = grave != NULL ? grave : malloc(sizeof(*burial));

    if (burial == NULL)
        return NEAR_ERR_NOMEM;
    *burial = (struct burial){ NULL, from, to, end, ctx };
    pthread_once(&process.once, process_init);
    near__lock(&process.lock);
    burial->next    = process.burials;
    process.burials = burial;
    if ((uintptr_t)from < atomic_load_explicit(&process.buried_from, memory_order_relaxed))
        atomic_store_explicit(&process.buried_from, (uintptr_t)from, memory_order_relaxed);
    if ((uintptr_t)to > atomic_load_explicit(&process.buried_to, memory_order_relaxed))
        atomic_store_explicit(&process.buried_to, (uintptr_t)to, memory_order_relaxed);
    atomic_fetch_or_explicit(&near__hazard_flags, NEAR__HAZARD_BURIED, memory_order_seq_cst);
    /* Who empties a slot looks at the flag afterwards.  After this barrier either the slot is seen empty here or the flag there. */
    if (!near__hazard_fences())
        syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
    near__unlock(&process.lock);
    burials_end();
    return NEAR_OK;
}

/* ---- counts */

bool
near__reader_hits_grow(struct near__reader *reader, size_t number)
{
    size_t            count = reader->hits_count == 0 ? HITS_FIRST : reader->hits_count;
    _Atomic uint64_t *hits, *old;

    if (number == SIZE_MAX)
        return false;
    while (count <= number)
        count *= 2;
    hits = near__zeroed(LINES, count * sizeof(*hits));
    if (hits == NULL)
        return false;
    for (size_t i = 0; i < reader->hits_count; i++)
        atomic_init(&hits[i], atomic_load_explicit(&reader->hits[i], memory_order_relaxed));
    near__lock(&process.lock); /* a sum reads the array */
    old                = reader->hits;
    reader->hits       = hits;
    reader->hits_count = count;
    near__unlock(&process.lock);
    free(old);
    return true;
}

static size_t
hits_free_locked(void)
{
    size_t   at = 0, size;
    uint8_t *taken;

    while (at < process.hits_size && process.hits_taken[at])
        at++;
    if (at < process.hits_size)
        return at;
    size  = process.hits_size == 0 ? HITS_FIRST : 2 * process.hits_size;
    taken = realloc(process.hits_taken, size);
    if (taken == NULL)
        return SIZE_MAX;
    memset(taken + process.hits_size, 0, size - process.hits_size);
    process.hits_taken = taken;
    process.hits_size  = size;
    return at;
}

static uint64_t
hits_sum_locked(size_t number, bool clear)
{
    uint64_t sum = 0;

    for (struct record *record = process.records; record != NULL; record = record->next) {
        if (number >= record->reader.hits_count)
            continue;
        sum += atomic_load_explicit(&record->reader.hits[number], memory_order_relaxed);
        if (clear)
            atomic_store_explicit(&record->reader.hits[number], 0, memory_order_relaxed);
    }
    return sum;
}

size_t
near__hits_open(void)
{
    size_t number;

    pthread_once(&process.once, process_init);
    near__lock(&process.lock);
    number = hits_free_locked();
    if (number != SIZE_MAX) {
        process.hits_taken[number] = 1;
        hits_sum_locked(number, true); /* of whoever had the number before; nobody counts on it now */
    }
    near__unlock(&process.lock);
    return number;
}

void
near__hits_close(size_t number)
{
    if (number == SIZE_MAX)
        return;
    near__lock(&process.lock);
    process.hits_taken[number] = 0;
    near__unlock(&process.lock);
}

uint64_t
near__hits_sum(size_t number)
{
    uint64_t sum = 0;

    if (number == SIZE_MAX)
        return 0;
    near__lock(&process.lock);
    sum = hits_sum_locked(number, false);
    near__unlock(&process.lock);
    return sum;
}
