/*
 * Turns: who is the writer, and who waits for him.
 *
 *     turns.begun, ended   groups; the one that is being written is begun - 1                                     `lock`
 *     turns.waiting        callers asleep for a group, by its number's last bit                                   `lock`
 *     turns.words          what they sleep on; moves when their group ends, or when one of them is to be the next writer
 *     turns.queued         others who want to be the writer (thread, replay, dead letters, close), asleep on `changed`  `lock`
 *
 * Whoever commits and finds nobody writing is the writer of the next group.  While he writes, others fall asleep for his group or for the one after it; when
 * it ends he wakes those of his group, who look at `written` or `synced` and go home without the lock, and one of those behind, who writes next unless
 * somebody was quicker.  So nobody wakes for nothing, and no lock is fought for by all that wake at once.
 *
 * Company.  Those whom the last group let go are about to come again: for a part of what an fsync takes it is worth waiting for them, else half
 * of them would just miss this one.  One of them sleeps with an alarm; the last to come writes for all, so that nobody is woken for that, either.  Who
 * has always been alone does not wait.
 *
 * What can never happen: sleepers and no writer (but for the alarm); two writers; a sleeper whose record is in a group that ended.
 */
#include "base/futex.h"
#include "journal_inside.h"

/* ---- turns */

/* Whom to wake, once the lock is free. */
struct wake {
    unsigned all, one; /* words, by their bits */
};

static void
move_word_locked(struct near__journal *journal, unsigned word) NEAR__NEEDS(journal->lock)
{
    /* relaxed: a sleeper reads it under the lock; what he is to see is in `written` and `synced` */
    atomic_fetch_add_explicit(&journal->turns.words[word], 1, memory_order_relaxed);
}

static struct wake
end_turn_locked(struct near__journal *journal) NEAR__NEEDS(journal->lock)
{
    struct near__turns *turns  = &journal->turns;
    struct wake         wake   = { 0, 0 };
    bool                group  = turns->begun > turns->ended;
    unsigned            served = (unsigned)(turns->begun + 1) & 1, behind = (unsigned)turns->begun & 1;

    turns->ended = turns->begun;
    if (group && turns->waiting[served] > 0) {
        turns->waiting[served] = 0;
        wake.all               = 1u << served;
        move_word_locked(journal, served);
    }
    turns->handed =
        group && turns->queued > 0; /* after a group: so neither they nor those who commit can starve */
    journal->writing = turns->handed;
    if (turns->queued > 0)
        pthread_cond_signal(&journal->changed);
    if (!turns->handed && turns->waiting[behind] > 0) {
        wake.one = 1u << behind;
        move_word_locked(journal, behind);
    }
    if (journal->failed != NEAR_OK)
        wake.all |= wake.one; /* all of them are told */
    return wake;
}

static void
wake_up(struct near__journal *journal, struct wake wake)
{
    for (unsigned i = 0; i < 2; i++)
        if ((wake.all >> i & 1) != 0)
            near__futex_wake(&journal->turns.words[i], INT_MAX);
        else if ((wake.one >> i & 1) != 0)
            near__futex_wake(&journal->turns.words[i], 1);
}

void
near__writer_become_locked(struct near__journal *journal) NEAR__NEEDS(journal->lock)
{
    journal->turns.queued++;
    while (journal->writing && !journal->turns.handed)
        near__cond_wait(&journal->changed, &journal->lock, NEAR_NEVER);
    journal->turns.queued--;
    journal->turns.handed = false;
    journal->writing      = true;
}

void
near__writer_cease_locked(struct near__journal *journal) NEAR__NEEDS(journal->lock)
{
    wake_up(journal, end_turn_locked(journal));
}

void
near__writer_run_locked(struct near__journal *journal, bool sync) NEAR__NEEDS(journal->lock)
{
    near__writer_group_locked(journal, sync);
    near__writer_cease_locked(journal);
}

void
near__commit_tell_all_locked(struct near__journal *journal) NEAR__NEEDS(journal->lock)
{
    for (unsigned i = 0; i < 2; i++)
        move_word_locked(journal, i);
    wake_up(journal, (struct wake){ .all = 3 });
}

/* ---- waiting */

/* One who waits for `sequence`. */
struct waiter {
    struct near__journal   *journal;
    const _Atomic uint64_t *reached;
    uint64_t                sequence, failures;
    bool                    sync;
    bool                    patient; /* has not waited for company yet */
};

/* Acquire, pairs with the writer's release: who sees his record on disk sees that a write of it failed before. */
static bool
is_reached(const struct waiter *waiter)
{
    return atomic_load_explicit(waiter->reached, memory_order_acquire) >= waiter->sequence;
}

/* It is there, and nothing failed meanwhile; no lock needed. */
static bool
is_served(const struct waiter *waiter)
{
    return is_reached(waiter) &&
           atomic_load_explicit(&waiter->journal->failures, memory_order_relaxed) == waiter->failures;
}

/* A write or fsync failed that this record was part of, or may have been. */
static bool
has_failed(const struct waiter *waiter)
{
    struct near__journal *journal = waiter->journal;
    bool                  failed;

    near__lock(&journal->lock);
    failed = journal->failures != waiter->failures && waiter->sequence <= journal->failed_upto;
    near__unlock(&journal->lock);
    return failed;
}

static bool
may_write_locked(const struct waiter *waiter)
{
    const struct near__turns *turns = &waiter->journal->turns;

    return !waiter->journal->writing &&
           (!waiter->sync || !waiter->patient || turns->waiting[turns->begun & 1] + 1 >= turns->company);
}

/* The lock is dropped. */
static void
write_locked(struct near__journal *journal, bool sync) NEAR__GIVES(journal->lock)
{
    struct near__turns *turns = &journal->turns;
    struct wake         wake;

    journal->writing = true;
    near__writer_group_locked(journal, sync);
    turns->company = turns->waiting[0] + turns->waiting[1] + 1;
    wake           = end_turn_locked(journal);
    near__unlock(&journal->lock);
    wake_up(journal, wake);
}

/* Until when company is waited for; nobody is writing. */
static int64_t
alarm_locked(const struct near__journal *journal, int64_t deadline) NEAR__NEEDS(journal->lock)
{
    int64_t most  = journal->sync_time / 2 < GATHER ? journal->sync_time / 2 : GATHER;
    int64_t until = near__time_after(near__now(&near__clock_system), most);

    return until < deadline ? until : deadline;
}

/* For the group that the record is in, or will be in.  The lock is dropped.  False: the deadline has passed. */
static bool
sleep_locked(struct waiter *waiter, int64_t deadline) NEAR__UNFOLLOWED
{
    struct near__journal *journal  = waiter->journal;
    struct near__turns   *turns    = &journal->turns;
    bool                  on_board = turns->begun > turns->ended && waiter->sequence <= turns->taken;
    uint64_t              group    = turns->begun - on_board;
    _Atomic uint32_t     *word     = &turns->words[group & 1];
    uint32_t              seen     = atomic_load_explicit(word, memory_order_relaxed);
    bool                  gathers  = !journal->writing && !turns->gathering, woken;

    if (gathers)
        deadline = alarm_locked(journal, deadline);
    turns->waiting[group & 1]++;
    turns->gathering = turns->gathering || gathers;
    near__unlock(&journal->lock);
    woken = near__futex_wait(word, seen,
                             deadline == NEAR_NEVER ? NEAR_NEVER : deadline - near__now(&near__clock_system));
    if (is_served(waiter))
        return true; /* the group has ended, or will and then forgets who waited */
    near__lock(&journal->lock);
    if (group >= turns->ended)
        turns->waiting[group & 1]--;
    if (gathers && group == turns->begun)
        turns->gathering = false;
    near__unlock(&journal->lock);
    waiter->patient = waiter->patient && !gathers;
    return woken || gathers;
}

near_status
near__commit_wait(struct near__journal *journal, const _Atomic uint64_t *reached, bool sync,
                  uint64_t sequence, int64_t deadline) NEAR__UNFOLLOWED /* the lock is waiter.journal's */
{
    struct waiter waiter = { .journal  = journal,
                             .reached  = reached,
                             .sequence = sequence,
                             .failures = atomic_load_explicit(&journal->failures, memory_order_relaxed),
                             .sync     = sync,
                             .patient  = true };

    while (!is_reached(&waiter)) {
        near_status failed;
        bool        in_time = true;

        near__lock(&journal->lock);
        failed = is_reached(&waiter) ? NEAR_OK : journal->failed;
        if (failed != NEAR_OK || is_reached(&waiter))
            near__unlock(&journal->lock);
        else if (may_write_locked(&waiter))
            write_locked(journal, sync);
        else
            in_time = sleep_locked(&waiter, deadline);
        if (failed != NEAR_OK)
            return failed;
        if (is_served(&waiter))
            return NEAR_OK;
        if (has_failed(&waiter))
            return NEAR_ERR_UNAVAILABLE;
        if (!in_time && !is_reached(&waiter))
            return NEAR_ERR_TIMEOUT;
    }
    return NEAR_OK;
}

static near_status
make_durable(struct near__journal *journal, bool sync, uint64_t sequence, int64_t deadline)
{
    return near__commit_wait(journal, sync ? &journal->synced : &journal->written, sync, sequence, deadline);
}

near_status
near__journal_commit(struct near__journal *journal, uint64_t sequence, int64_t deadline)
{
    if (near__journal_is_forked(journal))
        return NEAR_ERR_FORKED;
    if (journal->options.fsync == NEAR__FSYNC_INTERVAL)
        return NEAR_OK;
    return make_durable(journal, journal->options.fsync == NEAR__FSYNC_ALWAYS, sequence, deadline);
}

near_status
near__journal_sync(struct near__journal *journal, uint64_t sequence, int64_t deadline)
{
    if (near__journal_is_forked(journal))
        return NEAR_ERR_FORKED;
    return make_durable(journal, journal->options.fsync != NEAR__FSYNC_NONE, sequence, deadline);
}
