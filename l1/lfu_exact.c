/* See the header. */
#include "l1/lfu_exact.h"

#include <stdlib.h>
#include <string.h>

struct key {
    uint32_t count; /* 0: not resident */
    uint32_t newer, older;
};

struct list {
    uint32_t newest, oldest;
};

struct near__lfu_exact {
    size_t       capacity, entries;
    struct key  *keys; /* by number */
    size_t       keys_room;
    struct list *lists; /* by count */
    size_t       lists_room;
    uint32_t     lowest; /* no list below it has entries */
};

near_status
near__lfu_exact_open(struct near__lfu_exact **out, size_t capacity)
{
    *out = calloc(1, sizeof(**out));
    if (*out == NULL)
        return NEAR_ERR_NOMEM;
    (*out)->capacity = capacity;
    return NEAR_OK;
}

void
near__lfu_exact_close(struct near__lfu_exact **out)
{
    struct near__lfu_exact *lfu = *out;

    *out = NULL;
    if (lfu == NULL)
        return;
    free(lfu->keys);
    free(lfu->lists);
    free(lfu);
}

/* Room for array[index], what is new being zero. */
static bool
reach(void **array, size_t *room, size_t index, size_t each)
{
    size_t wanted = *room == 0 ? 1024 : *room;
    char  *more;

    if (index < *room)
        return true;
    while (wanted <= index)
        wanted *= 2;
    more = realloc(*array, wanted * each);
    if (more == NULL)
        return false;
    memset(more + *room * each, 0, (wanted - *room) * each);
    *array = more;
    *room  = wanted;
    return true;
}

static void
unlink_key(struct near__lfu_exact *lfu, uint32_t number)
{
    struct key  *key  = &lfu->keys[number];
    struct list *list = &lfu->lists[key->count];

    *(key->newer != 0 ? &lfu->keys[key->newer].older : &list->newest) = key->older;
    *(key->older != 0 ? &lfu->keys[key->older].newer : &list->oldest) = key->newer;
}

static void
link_newest(struct near__lfu_exact *lfu, uint32_t number, uint32_t count)
{
    struct key  *key  = &lfu->keys[number];
    struct list *list = &lfu->lists[count];

    *key = (struct key){ .count = count, .older = list->newest };
    *(list->newest != 0 ? &lfu->keys[list->newest].newer : &list->oldest) = number;
    list->newest                                                          = number;
}

static void
evict(struct near__lfu_exact *lfu)
{
    uint32_t number;

    while (lfu->lists[lfu->lowest].oldest == 0)
        lfu->lowest++;
    number = lfu->lists[lfu->lowest].oldest;
    unlink_key(lfu, number);
    lfu->keys[number].count = 0;
    lfu->entries--;
}

bool
near__lfu_exact_access(struct near__lfu_exact *lfu, uint32_t number)
{
    uint32_t count;

    if (!reach((void **)&lfu->keys, &lfu->keys_room, number, sizeof(*lfu->keys)))
        return false;
    count = lfu->keys[number].count;
    if (!reach((void **)&lfu->lists, &lfu->lists_room, (size_t)count + 1, sizeof(*lfu->lists)))
        return count != 0;
    if (count != 0) {
        unlink_key(lfu, number);
        link_newest(lfu, number, count + 1);
        return true;
    }
    while (lfu->entries > 0 && lfu->entries >= lfu->capacity)
        evict(lfu);
    link_newest(lfu, number, 1);
    lfu->lowest = 1;
    lfu->entries++;
    return false;
}

bool
near__lfu_exact_has(const struct near__lfu_exact *lfu, uint32_t number)
{
    return number < lfu->keys_room && lfu->keys[number].count != 0;
}

bool
near__lfu_exact_remove(struct near__lfu_exact *lfu, uint32_t number)
{
    if (!near__lfu_exact_has(lfu, number))
        return false;
    unlink_key(lfu, number);
    lfu->keys[number].count = 0;
    lfu->entries--;
    return true;
}

void
near__lfu_exact_clear(struct near__lfu_exact *lfu)
{
    if (lfu->keys_room > 0)
        memset(lfu->keys, 0, lfu->keys_room * sizeof(*lfu->keys));
    if (lfu->lists_room > 0)
        memset(lfu->lists, 0, lfu->lists_room * sizeof(*lfu->lists));
    lfu->entries = 0;
}

void
near__lfu_exact_resize(struct near__lfu_exact *lfu, size_t capacity)
{
    lfu->capacity = capacity;
}

size_t
near__lfu_exact_entries(const struct near__lfu_exact *lfu)
{
    return lfu->entries;
}
