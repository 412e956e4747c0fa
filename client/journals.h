/*
 * The journals of a client: one per directory that its caches name, opened with the first of them, closed with the client.
 *
 * Each cache holds a reference of its own: a late answer of a store, which keeps the cache, finds the journal closed, not freed.
 *
 * The list is under the client's lock; while a journal is being opened, which takes a while, it is in nobody's list: two caches that
 * name a new directory at once meet at the directory's own lock, and the second one is refused.
 */
#ifndef NEAR_CLIENT_JOURNALS_H
#define NEAR_CLIENT_JOURNALS_H

#include "client.h"
#include "journal.h"

/* Set cache->journal, by the cache's settings, with a reference of the cache's: NULL where write_back.journal is empty. */
near_status near__journals_get(near_cache *cache, near_error *error);
/* After the caches; nobody writes any more.  The first error. */
near_status near__journals_close(near_client *client, near_error *error);
/* Sums over the journals. */
void near__journals_state(near_client *client, struct near__journal_state *sum);

#endif
