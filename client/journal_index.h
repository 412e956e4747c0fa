/*
 * What of a journal is not done, by sequence: where each record lies, and how much of each segment that is.
 *
 * Pages of 64 sequences, found by a table of their numbers; a page lives while one of its records is not done, or is done and that is not
 * written down yet.  Belongs to its journal, whose lock covers it.  Nothing here does I/O.
 *
 * What can never happen: that near__index_done() or near__index_place() need memory.
 */
#ifndef NEAR_CLIENT_JOURNAL_INDEX_H
#define NEAR_CLIENT_JOURNAL_INDEX_H

#include "base/base.h"

enum { NEAR__INDEX_PAGE = 64 };

/* A segment that may still hold what is not done; the list, oldest first, is the journal's. */
struct near__segment {
    struct near__segment *next;
    uint64_t              id;
    uint32_t              size; /* of the file */
    uint32_t              end;  /* of the records, but in the last segment */
    uint64_t              live, live_bytes;
    uint64_t
         turn; /* the turn of near__index_take_done() that says the last of what was here is done; on disk before the file goes */
    bool failed;     /* a write or fsync of it did: its file is not used again */
    bool unreadable; /* was logged */
};

struct near__index_place {
    struct near__segment *segment; /* NULL: in memory only */
    uint32_t              at, size;
};

struct near__index_page {
    uint64_t                 number; /* sequence / 64 */
    uint64_t                 live;   /* a bit each */
    uint64_t                 done;   /* not written down yet; never live at once */
    struct near__index_page *next_done;
    struct near__index_place places[NEAR__INDEX_PAGE];
};

struct near__index {
    struct near__index_page **slots; /* open addressing, at most half full */
    size_t                    capacity, count;
    struct near__index_page  *latest; /* where the last one was found */
    struct near__index_page  *spare;
    struct near__index_page  *done; /* pages with `done`, and their number */
    size_t                    done_pages;
    uint64_t                  turn; /* how often near__index_take_done() was called */
    uint64_t                  live, live_bytes;
};

void near__index_fini(struct near__index *index);

/* A record that is not done, in memory only (`segment` NULL) or in a file; again: its newest place.  False: no memory. */
bool near__index_add(struct near__index *index, uint64_t sequence, uint32_t size,
                     struct near__segment *segment, uint32_t at);
/* It lies there now, if it is not done; if it is, that has to be on disk before the segment goes. */
void near__index_place(struct near__index *index, uint64_t sequence, struct near__segment *segment,
                       uint32_t at);
/* NULL: done, or never was. */
const struct near__index_place *near__index_find(struct near__index *index, uint64_t sequence);
/* It is done.  `note`: that is still to be written down. */
void near__index_done(struct near__index *index, uint64_t sequence, bool note);

/* All of a range, which may be nonsense; nothing is noted.  Takes no longer than the index is large.  False: no memory, and not all of it is done. */
bool near__index_done_range(struct near__index *index, uint64_t first, uint32_t count);

/* Page numbers in use, ascending, in malloc()ed memory; NULL and 0: there are none; NULL and more: no memory. */
uint64_t *near__index_pages(const struct near__index *index, size_t *n);
/* NULL: not in use any more. */
const struct near__index_page *near__index_page(struct near__index *index, uint64_t number);

/* What is done and not written down yet, as ranges in ascending order (see NEAR__DONE_RANGE): bytes that all of it takes at most; then the
 * bytes themselves.  After that it counts as taken with turn `index->turn`. */
size_t near__index_done_size(const struct near__index *index);
size_t near__index_take_done(struct near__index *index, uint8_t *out);

#endif
