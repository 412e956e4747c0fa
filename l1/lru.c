/*
 * Least recently used: one list from the newest to the oldest.  A new entry and a hit go to the newest end,
 * the victim is the oldest.  Exact: with one shard the hits are those of the textbook's definition.
 */
#include "l1/policy.h"

static void
lru_link(struct near__l1_queue *queue, struct near__entry *entry)
{
    entry->newer = NULL;
    entry->older = queue->newest;
    if (queue->newest != NULL)
        queue->newest->newer = entry;
    else
        queue->oldest = entry;
    queue->newest = entry;
}

static void
lru_unlink(struct near__l1_queue *queue, struct near__entry *entry)
{
    if (entry->newer != NULL)
        entry->newer->older = entry->older;
    else
        queue->newest = entry->older;
    if (entry->older != NULL)
        entry->older->newer = entry->newer;
    else
        queue->oldest = entry->newer;
    entry->newer = entry->older = NULL;
}

static void
lru_hit(struct near__l1_queue *queue, struct near__entry *entry)
{
    if (queue->newest == entry)
        return;
    lru_unlink(queue, entry);
    lru_link(queue, entry);
}

static struct near__entry *
lru_victim(struct near__l1_queue *queue)
{
    return queue->oldest;
}

const struct near__l1_policy near__l1_lru = { "lru", lru_link, lru_hit, lru_unlink, lru_victim };
