/* See journal_index.h. */
#include "journal_index.h"

#include <stdlib.h>
#include <string.h>

#include "base/le.h"
#include "journal_record.h"

enum { SLOTS_FIRST = 64 };

/* ---- the table of pages */

static size_t
home_of(const struct near__index *index, uint64_t number)
{
    return (size_t)((number * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (index->capacity - 1);
}

static struct near__index_page *
page_of(struct near__index *index, uint64_t number)
{
    if (index->latest != NULL && index->latest->number == number)
        return index->latest;
    if (index->capacity == 0)
        return NULL;
    for (size_t at = home_of(index, number); index->slots[at] != NULL; at = (at + 1) & (index->capacity - 1))
        if (index->slots[at]->number == number)
            return index->latest = index->slots[at];
    return NULL;
}

static void
put_page(struct near__index *index, struct near__index_page *page)
{
    size_t at = home_of(index, page->number);

    while (index->slots[at] != NULL)
        at = (at + 1) & (index->capacity - 1);
    index->slots[at] = page;
}

static bool
make_room(struct near__index *index)
{
    struct near__index larger = *index;

    if (2 * (index->count + 1) <= index->capacity)
        return true;
    larger.capacity = index->capacity > 0 ? 2 * index->capacity : SLOTS_FIRST;
    larger.slots    = calloc(larger.capacity, sizeof(*larger.slots));
    if (larger.slots == NULL)
        return false;
    for (size_t i = 0; i < index->capacity; i++)
        if (index->slots[i] != NULL)
            put_page(&larger, index->slots[i]);
    free(index->slots);
    *index = larger;
    return true;
}

static struct near__index_page *
new_page(struct near__index *index, uint64_t number)
{
    struct near__index_page *page = index->spare;

    if (!make_room(index))
        return NULL;
    if (page == NULL)
        page = malloc(sizeof(*page));
    if (page == NULL)
        return NULL;
    index->spare  = NULL;
    page->number  = number;
    page->live    = 0;
    page->done    = 0;
    index->latest = page;
    index->count++;
    put_page(index, page);
    return page;
}

/* Closes the gap: whoever could lie in the emptied slot moves there. */
static void
remove_page(struct near__index *index, struct near__index_page *page)
{
    size_t mask = index->capacity - 1, hole = home_of(index, page->number);

    while (index->slots[hole] != page)
        hole = (hole + 1) & mask;
    for (size_t at = (hole + 1) & mask; index->slots[at] != NULL; at = (at + 1) & mask) {
        size_t home = home_of(index, index->slots[at]->number);

        if (((at - home) & mask) < ((at - hole) & mask))
            continue;
        index->slots[hole] = index->slots[at];
        hole               = at;
    }
    index->slots[hole] = NULL;
    index->count--;
}

static void
drop_if_empty(struct near__index *index, struct near__index_page *page)
{
    if (page->live != 0 || page->done != 0)
        return;
    remove_page(index, page);
    if (index->latest == page)
        index->latest = NULL;
    if (index->spare == NULL)
        index->spare = page;
    else
        free(page);
}

void
near__index_fini(struct near__index *index)
{
    for (size_t i = 0; i < index->capacity; i++)
        free(index->slots[i]);
    free(index->slots);
    free(index->spare);
    *index = (struct near__index){ .count = 0 };
}

/* ---- records */

static uint64_t
bit_of(uint64_t sequence)
{
    return UINT64_C(1) << sequence % NEAR__INDEX_PAGE;
}

static void
leave_segment(const struct near__index_place *place)
{
    if (place->segment == NULL)
        return;
    place->segment->live--;
    place->segment->live_bytes -= place->size;
}

static void
enter_segment(struct near__index_place *place, struct near__segment *segment, uint32_t at)
{
    place->segment = segment;
    place->at      = at;
    if (segment == NULL)
        return;
    segment->live++;
    segment->live_bytes += place->size;
}

bool
near__index_add(struct near__index *index, uint64_t sequence, uint32_t size, struct near__segment *segment,
                uint32_t at)
{
    struct near__index_page  *page = page_of(index, sequence / NEAR__INDEX_PAGE);
    struct near__index_place *place;

    if (page == NULL)
        page = new_page(index, sequence / NEAR__INDEX_PAGE);
    if (page == NULL)
        return false;
    place = &page->places[sequence % NEAR__INDEX_PAGE];
    if ((page->live & bit_of(sequence)) != 0) {
        leave_segment(place);
        index->live--;
        index->live_bytes -= place->size;
    }
    page->live |= bit_of(sequence);
    place->size = size;
    enter_segment(place, segment, at);
    index->live++;
    index->live_bytes += size;
    return true;
}

void
near__index_place(struct near__index *index, uint64_t sequence, struct near__segment *segment, uint32_t at)
{
    struct near__index_page  *page = page_of(index, sequence / NEAR__INDEX_PAGE);
    struct near__index_place *place;

    if (page == NULL || (page->live & bit_of(sequence)) == 0) {
        segment->turn = index->turn + (page != NULL && (page->done & bit_of(sequence)) != 0);
        return;
    }
    place = &page->places[sequence % NEAR__INDEX_PAGE];
    leave_segment(place);
    enter_segment(place, segment, at);
}

const struct near__index_place *
near__index_find(struct near__index *index, uint64_t sequence)
{
    struct near__index_page *page = page_of(index, sequence / NEAR__INDEX_PAGE);

    return page == NULL || (page->live & bit_of(sequence)) == 0 ? NULL
                                                                : &page->places[sequence % NEAR__INDEX_PAGE];
}

void
near__index_done(struct near__index *index, uint64_t sequence, bool note)
{
    struct near__index_page  *page = page_of(index, sequence / NEAR__INDEX_PAGE);
    struct near__index_place *place;

    if (page == NULL || (page->live & bit_of(sequence)) == 0)
        return;
    place = &page->places[sequence % NEAR__INDEX_PAGE];
    leave_segment(place);
    page->live &= ~bit_of(sequence);
    index->live--;
    index->live_bytes -= place->size;
    if (note && page->done == 0) {
        page->next_done = index->done;
        index->done     = page;
        index->done_pages++;
    }
    if (note)
        page->done |= bit_of(sequence);
    if (note && place->segment != NULL)
        place->segment->turn = index->turn + 1; /* the next one */
    drop_if_empty(index, page);
}

/* The part of a page that lies within `first` .. `last`. */
static void
done_in_page(struct near__index *index, struct near__index_page *page, uint64_t first, uint64_t last)
{
    uint64_t base = page->number * NEAR__INDEX_PAGE;

    for (uint64_t bits = page->live, sequence; bits != 0; bits &= bits - 1) {
        bool ends = (bits & (bits - 1)) == 0; /* the page may go with its last one */

        sequence = base + (unsigned)__builtin_ctzll(bits);
        if (sequence >= first && sequence <= last)
            near__index_done(index, sequence, false);
        if (ends)
            return;
    }
}

/* A range with more pages than there are.  False: no memory. */
static bool
done_in_all(struct near__index *index, uint64_t first, uint64_t last)
{
    size_t    n;
    uint64_t *numbers = near__index_pages(index, &n);

    for (size_t i = 0; i < n && numbers != NULL; i++)
        if (numbers[i] >= first / NEAR__INDEX_PAGE && numbers[i] <= last / NEAR__INDEX_PAGE)
            done_in_page(index, page_of(index, numbers[i]), first, last);
    free(numbers);
    return numbers != NULL || n == 0;
}

bool
near__index_done_range(struct near__index *index, uint64_t first, uint32_t count)
{
    uint64_t last = first + count - 1, number = first / NEAR__INDEX_PAGE;

    if (count == 0 || last < first)
        return true;
    if (last / NEAR__INDEX_PAGE - number <= index->count) {
        for (; number <= last / NEAR__INDEX_PAGE; number++) {
            struct near__index_page *page = page_of(index, number);

            if (page != NULL)
                done_in_page(index, page, first, last);
        }
        return true;
    }
    return done_in_all(index, first, last);
}

/* ---- pages */

static int
by_number(const void *a, const void *b)
{
    const uint64_t *left = a, *right = b;

    return (*left > *right) - (*left < *right);
}

uint64_t *
near__index_pages(const struct near__index *index, size_t *n)
{
    uint64_t *numbers = index->count > 0 ? malloc(index->count * sizeof(*numbers)) : NULL;
    size_t    used    = 0;

    *n = index->count;
    if (numbers == NULL)
        return NULL;
    for (size_t i = 0; i < index->capacity; i++)
        if (index->slots[i] != NULL)
            numbers[used++] = index->slots[i]->number;
    qsort(numbers, used, sizeof(*numbers), by_number);
    return numbers;
}

const struct near__index_page *
near__index_page(struct near__index *index, uint64_t number)
{
    return page_of(index, number);
}

/* ---- what is done */

size_t
near__index_done_size(const struct near__index *index)
{
    return index->done_pages * (NEAR__INDEX_PAGE / 2) * NEAR__DONE_RANGE; /* every second one, at worst */
}

/* Ascending, by merging: the list is short, or nearly in order (newest first). */
static struct near__index_page *
sorted(struct near__index_page *list)
{
    struct near__index_page *halves[2] = { NULL, NULL }, *result = NULL, **end = &result;

    if (list == NULL || list->next_done == NULL)
        return list;
    for (unsigned i = 0; list != NULL; i ^= 1) {
        struct near__index_page *next = list->next_done;

        list->next_done = halves[i];
        halves[i]       = list;
        list            = next;
    }
    halves[0] = sorted(halves[0]);
    halves[1] = sorted(halves[1]);
    while (halves[0] != NULL || halves[1] != NULL) {
        unsigned i = halves[0] == NULL || (halves[1] != NULL && halves[1]->number < halves[0]->number);

        *end      = halves[i];
        end       = &halves[i]->next_done;
        halves[i] = halves[i]->next_done;
    }
    *end = NULL;
    return result;
}

/* One more sequence, behind all those before: it lengthens the last range, or begins one. */
static uint8_t *
add_to_ranges(uint8_t *first, uint8_t *end, uint64_t sequence)
{
    uint8_t *last = end - NEAR__DONE_RANGE;

    if (end > first && near__le64_get(last) + near__le32_get(last + 8) == sequence) {
        near__le32_put(last + 8, near__le32_get(last + 8) + 1);
        return end;
    }
    near__le64_put(end, sequence);
    near__le32_put(end + 8, 1);
    return end + NEAR__DONE_RANGE;
}

size_t
near__index_take_done(struct near__index *index, uint8_t *out)
{
    struct near__index_page *page = sorted(index->done), *next;
    uint8_t                 *end  = out;

    index->done       = NULL;
    index->done_pages = 0;
    index->turn++;
    for (; page != NULL; page = next) {
        next = page->next_done;
        for (uint64_t bits = page->done; bits != 0; bits &= bits - 1)
            end = add_to_ranges(out, end, page->number * NEAR__INDEX_PAGE + (unsigned)__builtin_ctzll(bits));
        page->done = 0;
        drop_if_empty(index, page);
    }
    return (size_t)(end - out);
}
