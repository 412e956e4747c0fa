/* Ghosts (see the header). */
#include "l1/ghost.h"

#include "l1/pages.h"

#include <stdlib.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* The exact ghost: nodes in a doubly linked list by age and in chains by element, numbered from 1; 0 is the end of both. */
struct node {
    uint32_t element, newer, older, chain;
};
struct near__ghost_list {
    size_t       keys, count;
    uint32_t     mask, free;
    uint32_t    *heads;
    struct node *nodes; /* [0]: newer is the oldest, older the newest */
};

#define LINE_BYTES ((size_t)NEAR__GHOST_LANES * sizeof(uint16_t))

/* ---- the exact one */

static void
list_clear(struct near__ghost_list *list)
{
    memset(list->heads, 0, ((size_t)list->mask + 1) * sizeof(*list->heads));
    memset(list->nodes, 0, (list->keys + 1) * sizeof(*list->nodes));
    for (size_t i = 1; i < list->keys; i++)
        list->nodes[i].chain = (uint32_t)i + 1;
    list->free  = list->keys == 0 ? 0 : 1;
    list->count = 0;
}

static void
list_free(struct near__ghost_list *list)
{
    if (list == NULL)
        return;
    free(list->heads);
    free(list->nodes);
    free(list);
}

static struct near__ghost_list *
list_new(size_t keys)
{
    struct near__ghost_list *list = calloc(1, sizeof(*list));

    if (list == NULL)
        return NULL;
    list->keys  = keys;
    list->mask  = keys < 2 ? 1 : UINT32_MAX >> __builtin_clz((uint32_t)keys);
    list->heads = calloc((size_t)list->mask + 1, sizeof(*list->heads));
    list->nodes = calloc(keys + 1, sizeof(*list->nodes));
    if (list->heads == NULL || list->nodes == NULL) {
        list_free(list);
        return NULL;
    }
    list_clear(list);
    return list;
}

static void
list_remove(struct near__ghost_list *list, uint32_t number)
{
    struct node *node = &list->nodes[number];
    uint32_t    *link = &list->heads[node->element & list->mask];

    while (*link != number)
        link = &list->nodes[*link].chain;
    *link                          = node->chain;
    list->nodes[node->newer].older = node->older;
    list->nodes[node->older].newer = node->newer;
    node->chain                    = list->free;
    list->free                     = number;
    list->count--;
}

static bool
list_take(struct near__ghost_list *list, uint32_t element)
{
    uint32_t number = list->heads[element & list->mask];

    while (number != 0 && list->nodes[number].element != element)
        number = list->nodes[number].chain;
    if (number == 0)
        return false;
    list_remove(list, number);
    return true;
}

static void
list_add(struct near__ghost_list *list, uint32_t element)
{
    uint32_t number, *head = &list->heads[element & list->mask];

    if (list->keys == 0)
        return;
    if (list->count == list->keys)
        list_remove(list, list->nodes[0].newer);
    number                                  = list->free;
    list->free                              = list->nodes[number].chain;
    list->nodes[number]                     = (struct node){ element, 0, list->nodes[0].older, *head };
    *head                                   = number;
    list->nodes[list->nodes[0].older].newer = number;
    list->nodes[0].older                    = number;
    list->count++;
}

/* ---- the one of lines */

static void
lines_free(struct near__ghost *ghost)
{
    near__pages_free(ghost->lines, ghost->count * LINE_BYTES);
}

void
near__ghost_size(struct near__ghost *ghost, size_t keys, bool exact)
{
    uint32_t count = (uint32_t)((keys + NEAR__GHOST_LANES / 2) / NEAR__GHOST_LANES);

    if (exact) {
        list_free(ghost->list);
        ghost->list = list_new(keys);
        return;
    }
    count        = count == 0 ? 1 : count;
    ghost->lanes = keys < NEAR__GHOST_LANES ? (uint32_t)keys : NEAR__GHOST_LANES;
    if (count != ghost->count) {
        lines_free(ghost);
        ghost->lines = near__lines_new(count * LINE_BYTES);
        ghost->count = ghost->lines == NULL ? 0 : count;
    }
    near__ghost_clear(ghost);
}

void
near__ghost_fini(struct near__ghost *ghost)
{
    lines_free(ghost);
    list_free(ghost->list);
    *ghost = (struct near__ghost){ 0 };
}

void
near__ghost_clear(struct near__ghost *ghost)
{
    if (ghost->count != 0)
        memset(ghost->lines, 0, ghost->count * LINE_BYTES);
    if (ghost->list != NULL)
        list_clear(ghost->list);
}

/* Elements have chosen shard and bucket already: their bits are mixed anew (the finalizer of MurmurHash3). */
static uint32_t
mix(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ x >> 16;
}

static uint16_t
print_of(uint32_t mixed)
{
    uint16_t print = (uint16_t)(mixed * 0x9e3779b1u >> 16); /* not the upper bits: they choose the line */

    return print == 0 ? 1 : print;
}

static uint16_t *
line_of(const struct near__ghost *ghost, uint32_t mixed)
{
    return ghost->lines[(uint64_t)mixed * ghost->count >> 32];
}

void
near__ghost_add(struct near__ghost *ghost, uint32_t element)
{
    uint32_t  mixed = mix(element);
    uint16_t *line;

    if (ghost->list != NULL)
        list_add(ghost->list, element);
    if (ghost->count == 0 || ghost->lanes == 0)
        return;
    line = line_of(ghost, mixed);
    memmove(line + 1, line, (ghost->lanes - 1) * sizeof(*line));
    line[0] = print_of(mixed);
}

/* A bit for each lane that holds the print. */
static uint32_t
lanes_with(const uint16_t *line, uint16_t print)
{
    uint32_t lanes = 0;

#if defined(__SSE2__)
    const __m128i *parts  = (const __m128i *)(const void *)line;
    __m128i        wanted = _mm_set1_epi16((short)print);

    for (unsigned i = 0; i < NEAR__GHOST_LANES / 16; i++) {
        __m128i low  = _mm_cmpeq_epi16(_mm_loadu_si128(parts + 2 * i), wanted);
        __m128i high = _mm_cmpeq_epi16(_mm_loadu_si128(parts + 2 * i + 1), wanted);

        lanes |= (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(low, high)) << 16 * i;
    }
#else
    for (unsigned lane = 0; lane < NEAR__GHOST_LANES; lane++)
        lanes |= (uint32_t)(line[lane] == print) << lane;
#endif
    return lanes;
}

bool
near__ghost_take(struct near__ghost *ghost, uint32_t element)
{
    uint32_t  mixed = mix(element);
    uint16_t *line, print = print_of(mixed);
    uint32_t  lanes;
    unsigned  lane;

    if (ghost->list != NULL)
        return list_take(ghost->list, element);
    if (ghost->count == 0)
        return false;
    line  = line_of(ghost, mixed);
    lanes = lanes_with(line, print);
    if (ghost->lanes < NEAR__GHOST_LANES)
        lanes &= (1u << ghost->lanes) - 1;
    if (lanes == 0)
        return false;
    lane = (unsigned)__builtin_ctz(lanes);
    memmove(line + lane, line + lane + 1, (ghost->lanes - 1 - lane) * sizeof(*line));
    line[ghost->lanes - 1] = 0;
    return true;
}

size_t
near__ghost_bytes(const struct near__ghost *ghost)
{
    return near__pages_bytes(ghost->count * LINE_BYTES);
}
