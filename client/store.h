/*
 * Writes: changes given to the application's store, and its answers.
 *
 * A call of the store is a batch with copies of its keys and values.  It belongs to whoever waits for it and to each of its
 * unanswered writes: one that is answered after everybody has left, or never, touches nothing of theirs.  While any write of a cache is
 * unanswered, closing that cache waits for it as it waits for loads.
 *
 * The batch's lock (rank LOAD) covers the answers.  No lock is held in the store, nor in the functions called when it is over.
 */
#ifndef NEAR_CLIENT_STORE_H
#define NEAR_CLIENT_STORE_H

#include "client.h"

/* One change.  Borrowed for the call that hands it over. */
struct near__store_item {
    near_bytes key;
    near_bytes data; /* data NULL: an erase; else it is not NULL even if its size is 0 */
    uint64_t   origin, sequence;
    bool       conflict; /* for near_write_conflict() */
    void      *user;     /* the caller's */
    bool       answered; /* by the store, whatever it said: nothing will come late */
    near_status
        status; /* answered: NEAR_OK, an error of the store's, or NEAR_ERR_TIMEOUT: the outcome is not known */
};

/* All are answered, or the deadline has passed and the rest counts as NEAR_ERR_TIMEOUT.  The items are the batch's own copies, good for the
 * call.  Called once: on the thread of near__store_begin(), on one that answers, or on the scheduler's (so it must not block). */
typedef void (*near__store_done_fn)(void *ctx, struct near__store_item *items, size_t n);
/* One that had counted as NEAR_ERR_TIMEOUT has been answered after all, with item->status.  On the answering thread; must not block. */
typedef void (*near__store_late_fn)(void *ctx, const struct near__store_item *item);

struct near__store_ending {
    near__store_done_fn done; /* NULL: nobody is told (near__store_write()) */
    near__store_late_fn late; /* NULL: nobody needs to know */
    void               *ctx;  /* must live until the cache is freed, or until every write was answered */
};

/* Call the store on this thread, and wait for its answers until `deadline`.  NEAR_OK: the statuses of `items` say what became of each.
 * NEAR_ERR_NOMEM, NEAR_ERR_CLOSED, NEAR_ERR_UNSUPPORTED (no store): the store was not called, and each status is the same. */
near_status near__store_write(near_cache *cache, struct near__store_item *items, size_t n, int64_t deadline,
                              near__store_late_fn late, void *ctx);

/* The same without waiting: call the store on this thread; ending->done is told.  Anything but NEAR_OK: the store was not called and
 * nobody will be told. */
near_status near__store_begin(near_cache *cache, const struct near__store_item *items, size_t n,
                              int64_t deadline, const struct near__store_ending *ending);

/* The next number of a client that has no journal, and who numbers there. */
uint64_t near__store_origin(const near_client *client);
uint64_t near__store_sequence(near_client *client);

/* Whether this thread is inside a store. */
bool near__store_nested(void);

#endif
