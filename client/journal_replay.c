/*
 * Replay: what is not done is read again, as the writer (so that no segment is freed meanwhile), in batches that are delivered with no lock held.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "journal_inside.h"

/* ---- reading what was written */

/* A part of a segment's file, in memory: the writer's while it copies or replays. */
struct window {
    uint64_t segment;
    int      fd;
    uint64_t at, size;
    size_t   capacity;
    uint8_t *bytes;
};

static int
window_turn(struct near__journal *journal, struct window *window, uint64_t segment)
{
    char name[NEAR__SEGMENT_NAME];

    if (window->segment == segment)
        return 0;
    if (window->fd >= 0)
        journal->disk->close(journal->disk->ctx, window->fd);
    near__segment_name(name, segment, "seg");
    window->size    = 0;
    window->segment = 0;
    window->fd = journal->disk->open(journal->disk->ctx, journal->fds[FD_DIRECTORY], name, NEAR__DISK_READ);
    if (window->fd < 0)
        return window->fd;
    window->segment = segment;
    return 0;
}

/* `size` bytes at `at` of a segment that is known to reach to `end`; NULL and `*result` otherwise. */
static const uint8_t *
window_bytes(struct near__journal *journal, struct window *window, uint64_t segment, uint32_t at,
             uint32_t size, uint32_t end, int *result)
{
    size_t want = end - at < WINDOW ? end - at : WINDOW;

    *result = window_turn(journal, window, segment);
    if (*result < 0)
        return NULL;
    if (at >= window->at && at + (uint64_t)size <= window->at + window->size)
        return window->bytes + (at - window->at);
    want = want < size ? size : want;
    if (want > window->capacity) {
        free(window->bytes);
        window->bytes    = malloc(want);
        window->capacity = window->bytes != NULL ? want : 0;
        window->size     = 0;
    }
    if (window->bytes == NULL)
        return *result = -ENOMEM, NULL;
    window->size = 0;
    *result      = near__disk_read_all(journal->disk, window->fd, window->bytes, want, at);
    if (*result < 0)
        return NULL;
    window->at   = at;
    window->size = want;
    return window->bytes;
}

/* ---- replay */

struct item {
    uint64_t sequence;
    size_t   at;
};

struct replay {
    struct near__journal *journal;
    near_bytes            cache;
    unsigned              kinds;
    uint64_t              upto;   /* what came later need not be handed out */
    bool                  missed; /* something is in memory only, and no file takes it */
    uint64_t             *pages;
    size_t                page_count, page; /* the next one */
    struct window         window;
    uint8_t              *bytes; /* of the batch */
    size_t                used, capacity;
    struct item          *items;
    size_t                item_count, item_capacity;
};

static bool
replay_room(struct replay *replay, size_t size)
{
    if (replay->used + size > replay->capacity) {
        size_t   capacity = replay->used + size > BATCH ? replay->used + size : BATCH;
        uint8_t *bytes    = realloc(replay->bytes, capacity);

        if (bytes == NULL)
            return false;
        replay->bytes    = bytes;
        replay->capacity = capacity;
    }
    if (replay->item_count == replay->item_capacity) {
        size_t       capacity = 2 * replay->item_capacity + 64;
        struct item *items    = realloc(replay->items, capacity * sizeof(*items));

        if (items == NULL)
            return false;
        replay->items         = items;
        replay->item_capacity = capacity;
    }
    return true;
}

/* One record into the batch, if it is asked for. */
static int
replay_take(struct replay *replay, const struct near__index_place *place, uint64_t sequence)
{
    struct near__journal    *journal = replay->journal;
    struct near__segment    *segment = place->segment;
    uint32_t                 end     = segment == journal->last ? journal->end : segment->end;
    struct near__record_view view;
    const uint8_t           *bytes;
    int                      result;

    bytes = window_bytes(journal, &replay->window, segment->id, place->at, place->size, end, &result);
    if (bytes == NULL)
        return result;
    if (!near__record_decode(&view, bytes, place->size, near__segment_stamp(journal->origin, segment->id)) ||
        view.sequence != sequence)
        return -EIO;
    if ((replay->kinds >> (unsigned)view.record.kind & 1) == 0 ||
        !near__bytes_equal(view.record.cache, replay->cache))
        return 0;
    if (!replay_room(replay, view.size))
        return -ENOMEM;
    replay->items[replay->item_count++] = (struct item){ sequence, replay->used };
    memcpy(replay->bytes + replay->used, bytes, view.size);
    replay->used += view.size;
    return 0;
}

/* A page: what of it is not done. */
static int
replay_page(struct replay *replay, uint64_t number)
{
    struct near__journal          *journal = replay->journal;
    struct near__index_place       places[NEAR__INDEX_PAGE];
    const struct near__index_page *page;
    uint64_t                       live   = 0;
    int                            result = 0;

    near__lock(&journal->lock);
    page = near__index_page(&journal->index, number);
    if (page != NULL) {
        live = page->live;
        memcpy(places, page->places, sizeof(places));
    }
    near__unlock(&journal->lock);
    for (; live != 0 && result == 0; live &= live - 1) {
        unsigned i        = (unsigned)__builtin_ctzll(live);
        uint64_t sequence = number * NEAR__INDEX_PAGE + i;

        replay->missed = replay->missed || (places[i].segment == NULL && sequence <= replay->upto);
        if (places[i].segment != NULL)
            result = replay_take(replay, &places[i], sequence);
    }
    return result;
}

/* As the writer, so that no segment is freed meanwhile: records worth a batch. */
static int
replay_gather(struct replay *replay)
{
    struct near__journal *journal = replay->journal;
    int                   result  = 0;

    near__lock(&journal->lock);
    near__writer_become_locked(journal);
    near__unlock(&journal->lock);
    replay->used = replay->item_count = 0;
    while (replay->page < replay->page_count && replay->used < BATCH && result == 0)
        result = replay_page(replay, replay->pages[replay->page++]);
    if (replay->window.fd >= 0)
        journal->disk->close(journal->disk->ctx,
                             replay->window.fd); /* its segment may be another's tomorrow */
    replay->window.fd      = -1;
    replay->window.segment = 0;
    near__lock(&journal->lock);
    near__writer_cease_locked(journal);
    near__unlock(&journal->lock);
    return result;
}

static bool
replay_deliver(const struct replay *replay, near__journal_deliver deliver, void *ctx)
{
    struct near__record_view view;

    for (size_t i = 0; i < replay->item_count; i++)
        if (!near__record_read(&view, replay->bytes + replay->items[i].at,
                               replay->used - replay->items[i].at) ||
            !deliver(ctx, &view.record, replay->items[i].sequence))
            return false;
    return true;
}

near_status
near__journal_replay(struct near__journal *journal, near_bytes cache, unsigned kinds,
                     near__journal_deliver deliver, void *ctx)
{
    struct replay replay = { .journal = journal, .cache = cache, .kinds = kinds, .window.fd = -1 };
    bool          go_on  = true;
    int           result = 0;

    if (near__journal_is_forked(journal))
        return NEAR_ERR_FORKED;
    near__lock(&journal->lock);
    replay.upto = journal->next_sequence - 1;
    near__unlock(&journal->lock);
    near__commit_wait(journal, &journal->written, journal->options.fsync != NEAR__FSYNC_NONE, replay.upto,
                      NEAR_NEVER); /* what a failure left in memory is found below */
    near__lock(&journal->lock);
    replay.pages = near__index_pages(&journal->index, &replay.page_count);
    near__unlock(&journal->lock);
    if (replay.pages == NULL && replay.page_count > 0)
        return NEAR_ERR_NOMEM;
    while (go_on && result == 0 && replay.page < replay.page_count) {
        result = replay_gather(&replay);
        go_on  = replay_deliver(&replay, deliver, ctx);
    }
    free(replay.window.bytes); /* its descriptor is closed behind each batch */
    free(replay.pages);
    free(replay.bytes);
    free(replay.items);
    if (result == -ENOMEM)
        return NEAR_ERR_NOMEM;
    if (result < 0)
        near__log(&journal->options.log, NEAR_LOG_ERROR, "journal %s: a record cannot be read again: %s",
                  journal->path, near__errno_text(-result));
    return result == 0 && !replay.missed ? NEAR_OK : NEAR_ERR_UNAVAILABLE;
}
