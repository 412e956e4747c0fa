/*
 * See memcached_epoch.h.
 *
 * Reads without the lock are relaxed: nothing but the number itself is read through any of them, and what has
 * to come before what (storing a new epoch before believing the server again) is one thread's own order, or
 * goes through the server.
 */
#include "l2/memcached_epoch.h"

#include "base/hash.h"

#include <stdio.h>

void
near__memcached_epoch_init(struct near__memcached_epoch *epoch)
{
    near__lock_init(&epoch->lock, NEAR__RANK_LEAF);
}

void
near__memcached_epoch_fini(struct near__memcached_epoch *epoch)
{
    near__lock_fini(&epoch->lock);
}

uint32_t
near__memcached_epoch_fresh(void)
{
    uint32_t number;

    /* cannot fail once the system is up; the clock keeps even that case from repeating itself */
    if (!near__random(&number, sizeof(number)))
        number = (uint32_t)near__now(&near__clock_system);
    return number != 0 ? number : 1;
}

static void
note_change_locked(struct near__memcached_epoch *epoch) NEAR__NEEDS(epoch->lock)
{
    atomic_fetch_add_explicit(&epoch->changes, 1, memory_order_relaxed);
}

static void
know_locked(struct near__memcached_epoch *epoch, uint32_t number, int64_t now) NEAR__NEEDS(epoch->lock)
{
    if (atomic_exchange_explicit(&epoch->known, number, memory_order_relaxed) != number)
        note_change_locked(epoch);
    epoch->last = number;
    atomic_store_explicit(&epoch->looked, now, memory_order_relaxed);
}

void
near__memcached_epoch_forget(struct near__memcached_epoch *epoch)
{
    /* no change: a call that has made this connection for itself may learn by what it reads there */
    near__lock(&epoch->lock);
    atomic_store_explicit(&epoch->known, 0, memory_order_relaxed);
    near__unlock(&epoch->lock);
}

/* One number serves all that goes past the server until it is being stored: from then on it may be older than
 * the write. */
bool
near__memcached_distrust(struct near__memcached_epoch *epoch)
{
    uint32_t before;

    near__lock(&epoch->lock);
    before = atomic_load_explicit(&epoch->wanted, memory_order_relaxed);
    if (before == 0 || epoch->in_use) {
        atomic_store_explicit(&epoch->wanted, near__memcached_epoch_fresh(), memory_order_relaxed);
        epoch->in_use = false;
        note_change_locked(epoch);
    }
    near__unlock(&epoch->lock);
    return before == 0;
}

bool
near__memcached_is_distrusted(const struct near__memcached_epoch *epoch)
{
    return atomic_load_explicit(&epoch->wanted, memory_order_relaxed) != 0;
}

uint32_t
near__memcached_epoch_wanted(struct near__memcached_epoch *epoch)
{
    uint32_t wanted;

    near__lock(&epoch->lock);
    wanted        = atomic_load_explicit(&epoch->wanted, memory_order_relaxed);
    epoch->in_use = true;
    near__unlock(&epoch->lock);
    return wanted;
}

void
near__memcached_epoch_renewed(struct near__memcached_epoch *epoch, uint32_t wanted, int64_t now)
{
    near__lock(&epoch->lock);
    know_locked(epoch, wanted, now);
    note_change_locked(epoch);
    /* not so where another write has gone past it since: then that one's number has to be stored, too */
    if (atomic_load_explicit(&epoch->wanted, memory_order_relaxed) == wanted)
        atomic_store_explicit(&epoch->wanted, 0, memory_order_relaxed);
    near__unlock(&epoch->lock);
}

uint32_t
near__memcached_epoch_known(const struct near__memcached_epoch *epoch, uint64_t *changes)
{
    /* the count first: a change in between makes what is learnt by it void, not wrong; acquire pairs with
     * nothing but keeps the two loads in this order */
    *changes = atomic_load_explicit(&epoch->changes, memory_order_acquire);
    return atomic_load_explicit(&epoch->known, memory_order_relaxed);
}

bool
near__memcached_epoch_is_due(struct near__memcached_epoch *epoch, int64_t now)
{
    int64_t looked = atomic_load_explicit(&epoch->looked, memory_order_relaxed);

    if (atomic_load_explicit(&epoch->known, memory_order_relaxed) == 0)
        return true;
    if (now - looked < NEAR__MEMCACHED_LOOK)
        return false;
    /* one of those who come at this moment is enough; if its call takes long, others do so as well */
    return atomic_compare_exchange_strong_explicit(&epoch->looked, &looked, now, memory_order_relaxed,
                                                   memory_order_relaxed);
}

bool
near__memcached_epoch_learn(struct near__memcached_epoch *epoch, uint32_t number, uint64_t changes,
                            int64_t now)
{
    uint32_t before = number;

    near__lock(&epoch->lock);
    if (atomic_load_explicit(&epoch->changes, memory_order_relaxed) == changes) {
        before = epoch->last;
        know_locked(epoch, number, now);
    }
    near__unlock(&epoch->lock);
    return before != 0 && before != number;
}

uint32_t
near__memcached_epoch_decode(near_bytes stored)
{
    const char *at     = stored.data;
    uint64_t    number = 0;

    if (stored.size == 0 || stored.size > 10)
        return 0;
    for (size_t i = 0; i < stored.size; i++) {
        if (at[i] < '0' || at[i] > '9')
            return 0;
        number = number * 10 + (uint64_t)(at[i] - '0');
    }
    return number <= UINT32_MAX ? (uint32_t)number : 0;
}

size_t
near__memcached_epoch_encode(uint32_t number, char out[10])
{
    char text[11];
    int  size = snprintf(text, sizeof(text), "%lu", (unsigned long)number);

    __builtin_memcpy(out, text, (size_t)size);
    return (size_t)size;
}
