/* See journal.h. */
#include "journal.h"

near_status
near__journal_open(struct near__journal **journal, const struct near__journal_options *options,
                   near_error *error)
{
    *journal = NULL;
    return near__fail(error, NEAR_ERR_UNSUPPORTED, "%s: no journals yet", options->directory);
}
uint64_t
near__journal_origin(const struct near__journal *journal)
{
    (void)journal;
    return 0;
}
near_status
near__journal_write(struct near__journal *journal, const struct near__journal_record *record,
                    uint64_t *sequence)
{
    (void)journal, (void)record, (void)sequence;
    return NEAR_ERR_UNSUPPORTED;
}
near_status
near__journal_commit(struct near__journal *journal, uint64_t sequence, int64_t deadline)
{
    (void)journal, (void)sequence, (void)deadline;
    return NEAR_ERR_UNSUPPORTED;
}
uint64_t
near__journal_synced(struct near__journal *journal)
{
    (void)journal;
    return 0;
}
void
near__journal_done(struct near__journal *journal, const uint64_t *sequences, size_t n)
{
    (void)journal, (void)sequences, (void)n;
}
near_status
near__journal_dead(struct near__journal *journal, const struct near__journal_record *record,
                   uint64_t sequence, near_status reason)
{
    (void)journal, (void)record, (void)sequence, (void)reason;
    return NEAR_ERR_UNSUPPORTED;
}
near_status
near__journal_replay(struct near__journal *journal, near_bytes cache, unsigned kinds,
                     near__journal_deliver deliver, void *ctx)
{
    (void)journal, (void)cache, (void)kinds, (void)deliver, (void)ctx;
    return NEAR_ERR_UNSUPPORTED;
}
void
near__journal_state(struct near__journal *journal, struct near__journal_state *state)
{
    (void)journal;
    *state = (struct near__journal_state){ .live = 0 };
}
near_status
near__journal_tick(struct near__journal *journal)
{
    (void)journal;
    return NEAR_ERR_UNSUPPORTED;
}
near_status
near__journal_close(struct near__journal *journal, near_error *error)
{
    (void)journal, (void)error;
    return NEAR_OK;
}
