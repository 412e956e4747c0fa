/* See budget.h.  The rate is a virtual schedule (GCRA): `next` is when the next key would go if they went evenly, and it may be
 * ahead of its schedule by `burst`. */
#include "budget.h"

#define BURST                                                                                                \
    (NEAR__SEC / 50) /* what a rate lets through at once: 20 ms worth, so that short sleeps do not lower it */
#define SHARE 4      /* while others wait, nobody gets more than a quarter at once */

#define SLOWEST 16 /* a slow start begins with this fraction */

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
    budget->slow  = settings->load_slow_start;
    budget->burst = BURST > budget->interval ? BURST : budget->interval;
}

void
near__budget_fini(struct near__budget *budget)
{
    near__lock_fini(&budget->lock);
}

/* What slow start leaves of `whole`, in sixteenths of it; it ends by itself. */
static int64_t
sixteenths_locked(struct near__budget *budget, int64_t now) NEAR__NEEDS(budget->lock)
{
    int64_t passed = now - budget->slow_since;

    if (budget->slow_since == 0)
        return SLOWEST;
    if (passed >= budget->slow) {
        budget->slow_since = 0;
        return SLOWEST;
    }
    return passed <= 0 ? 1 : 1 + (SLOWEST - 1) * passed / budget->slow;
}

void
near__budget_slow_start(struct near__budget *budget)
{
    if (budget->slow == 0 || !near__budget_is_bound(budget))
        return;
    near__lock(&budget->lock);
    budget->slow_since = near__now(&near__clock_system);
    near__unlock(&budget->lock);
}

/* How many may go now; if none, *when it is worth asking again. */
static size_t
free_locked(struct near__budget *budget, int64_t now, int64_t *when) NEAR__NEEDS(budget->lock)
{
    int64_t part     = sixteenths_locked(budget, now);
    int64_t interval = budget->interval * SLOWEST / part;
    int64_t burst    = budget->burst > interval ? budget->burst : interval;
    size_t  most     = budget->most * (size_t)part / SLOWEST;
    size_t  places   = SIZE_MAX;
    int64_t behind;

    *when = budget->slow_since != 0 ? now + budget->slow / SLOWEST : NEAR_NEVER;
    if (budget->most != 0) {
        most   = most > 0 ? most : 1;
        places = most > budget->open ? most - budget->open : 0;
    }
    if (places == 0 || interval == 0)
        return places;
    behind = now + burst - (budget->next > now ? budget->next : now);
    if (behind < interval) {
        *when = now + interval - behind;
        return 0;
    }
    return (size_t)(behind / interval) < places ? (size_t)(behind / interval) : places;
}

static size_t
take_locked(struct near__budget *budget, size_t want, int64_t now, int64_t *when) NEAR__NEEDS(budget->lock)
{
    size_t n = free_locked(budget, now, when);

    if (budget->first != NULL && budget->first->next != NULL && budget->most / SHARE < n)
        n = budget->most / SHARE > 0 ? budget->most / SHARE : 1;
    if (n > want)
        n = want;
    budget->open += budget->most != 0 ? n : 0;
    if (budget->interval != 0 && n > 0)
        budget->next = (budget->next > now ? budget->next : now) +
                       (int64_t)n * (budget->interval * SLOWEST / sixteenths_locked(budget, now));
    return n;
}

static void
leave_locked(struct near__budget *budget, struct near__budget_turn *turn) NEAR__NEEDS(budget->lock)
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
queue_locked(struct near__budget *budget, size_t want, int64_t deadline) NEAR__NEEDS(budget->lock)
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
