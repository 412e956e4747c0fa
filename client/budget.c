/* See budget.h.  The rate is a virtual schedule (GCRA): `next` is when the next key would go if they went evenly, and it may be
 * ahead of its schedule by `burst`. */
#include "budget.h"

#define BURST                                                                                                \
    (NEAR__SEC / 50) /* what a rate lets through at once: 20 ms worth, so that short sleeps do not lower it */
#define SHARE 4      /* while others wait, nobody gets more than a quarter at once */

/* One caller's place in the queue, on its stack. */
struct near__budget_turn {
    struct near__budget_turn *next;
    pthread_cond_t            come;
};

void
near__budget_init(struct near__budget *budget, const struct near__settings *settings)
{
    near__lock_init(&budget->lock, NEAR__RANK_LEAF);
    budget->last = &budget->first;
    budget->most = (size_t)settings->load_max_concurrent;
    if (settings->load_rate != 0)
        budget->interval = NEAR__SEC / (int64_t)settings->load_rate;
    budget->burst = BURST > budget->interval ? BURST : budget->interval;
}

void
near__budget_fini(struct near__budget *budget)
{
    near__lock_fini(&budget->lock);
}

/* How many may go now; if none, *when it is worth asking again. */
static size_t
free_locked(const struct near__budget *budget, int64_t now, int64_t *when)
{
    size_t  places = budget->most != 0 ? budget->most - budget->open : SIZE_MAX;
    int64_t behind;

    *when = NEAR_NEVER;
    if (places == 0 || budget->interval == 0)
        return places;
    behind = now + budget->burst - (budget->next > now ? budget->next : now);
    if (behind < budget->interval) {
        *when = now + budget->interval - behind;
        return 0;
    }
    return (size_t)(behind / budget->interval) < places ? (size_t)(behind / budget->interval) : places;
}

static size_t
take_locked(struct near__budget *budget, size_t want, int64_t now, int64_t *when)
{
    size_t n = free_locked(budget, now, when);

    if (budget->first != NULL && budget->first->next != NULL && budget->most / SHARE < n)
        n = budget->most / SHARE > 0 ? budget->most / SHARE : 1;
    if (n > want)
        n = want;
    budget->open += budget->most != 0 ? n : 0;
    if (budget->interval != 0 && n > 0)
        budget->next = (budget->next > now ? budget->next : now) + (int64_t)n * budget->interval;
    return n;
}

static void
leave_locked(struct near__budget *budget, struct near__budget_turn *turn)
{
    struct near__budget_turn **at = &budget->first;

    while (*at != turn)
        at = &(*at)->next;
    *at = turn->next;
    if (budget->last == &turn->next)
        budget->last = at;
    if (budget->first != NULL)
        pthread_cond_signal(&budget->first->come);
}

static size_t
queue_locked(struct near__budget *budget, size_t want, int64_t deadline)
{
    struct near__budget_turn turn = { .next = NULL };
    size_t                   n    = 0;
    int64_t                  now  = 0;

    near__cond_init(&turn.come);
    *budget->last = &turn;
    budget->last  = &turn.next;
    while (n == 0 && now < deadline) {
        int64_t when = NEAR_NEVER;

        now = near__now(&near__clock_system);
        if (budget->first == &turn)
            n = take_locked(budget, want, now, &when);
        if (n == 0 && now < deadline)
            near__cond_wait(&turn.come, &budget->lock, when < deadline ? when : deadline);
    }
    leave_locked(budget, &turn);
    pthread_cond_destroy(&turn.come);
    return n;
}

size_t
near__budget_take(struct near__budget *budget, size_t want, int64_t deadline)
{
    int64_t now, when;
    size_t  n = 0;

    if (!near__budget_is_bound(budget))
        return want;
    now = near__now(&near__clock_system);
    near__lock(&budget->lock);
    if (budget->first == NULL)
        n = take_locked(budget, want, now, &when);
    if (n == 0 && now < deadline)
        n = queue_locked(budget, want, deadline);
    near__unlock(&budget->lock);
    return n;
}

void
near__budget_give(struct near__budget *budget, size_t n)
{
    if (budget->most == 0 || n == 0)
        return;
    near__lock(&budget->lock);
    budget->open -= n;
    if (budget->first != NULL)
        pthread_cond_signal(&budget->first->come);
    near__unlock(&budget->lock);
}
