/*
 * The index of the disk tier: where the record of a key lies, in 8 bytes a slot.
 *
 * A slot is {tag 19, used 1, size 8, place 36}: the tag is of the key's hash, the place counts NEAR__SPILL_UNIT bytes of the log, the
 * size is how much to read for the record, rounded up by an eighth at most.  Partitions of about a thousand entries, chosen by the
 * hash, are open-addressed tables that grow by an eighth at 7/8 full: 9 to 10.3 bytes an entry.  Keys themselves are not here:
 * a slot only says where to look, and who looks compares.  Two keys of one tag share a slot: the second one is not taken, and
 * removing either removes it.  Both cost a miss and nothing else.
 *
 * Clearing is one step: the index has an epoch, and a partition of an older one counts as empty.  While it is closed
 * (near__spill_index_close) nothing is found and nothing taken, and a put that began before cannot be found afterwards.
 *
 * Each partition has its lock, a leaf; nobody takes two.  What can never happen: a slot is found after the removal of its key, or the
 * clear, has returned.
 */
#ifndef NEAR_L1_DISK_INDEX_H
#define NEAR_L1_DISK_INDEX_H

#include "base/base.h"

#define NEAR__SPILL_UNIT 16

struct near__spill_index;

struct near__spill_index_place {
    uint64_t at;   /* bytes from the log's beginning, a multiple of NEAR__SPILL_UNIT */
    uint32_t size; /* bytes to read: the record's, rounded up */
};

/* `entries`: how many are expected.  NULL: out of memory. */
struct near__spill_index *near__spill_index_new(uint64_t entries);
void                      near__spill_index_free(struct near__spill_index **index);

bool near__spill_index_find(struct near__spill_index *index, uint64_t hash,
                            struct near__spill_index_place *place);
/* Whether something of that hash is here; it counts as used then. */
bool near__spill_index_has(struct near__spill_index *index, uint64_t hash);
/* False: there is something of that hash already, it is closed, or out of memory. */
bool near__spill_index_put(struct near__spill_index *index, uint64_t hash,
                           struct near__spill_index_place place);
/* Whatever is of that hash leaves.  True: there was something. */
bool near__spill_index_remove(struct near__spill_index *index, uint64_t hash);

/* Of that hash, and at that place: */
bool near__spill_index_use(struct near__spill_index *index, uint64_t hash,
                           uint64_t at); /* still here?  It counts as used */
bool near__spill_index_take(struct near__spill_index *index, uint64_t hash, uint64_t at,
                            bool *used); /* removes it; was it used? */
bool near__spill_index_used(struct near__spill_index *index, uint64_t hash, uint64_t at);
/* It lies elsewhere now, and is not used there yet. */
bool near__spill_index_move(struct near__spill_index *index, uint64_t hash, uint64_t from,
                            struct near__spill_index_place to);

/* All that lies there leaves: how many.  Looks at everything, partition by partition. */
uint64_t near__spill_index_drop(struct near__spill_index *index, uint64_t from, uint64_t to);
/* Every place, in no order. */
void near__spill_index_each(struct near__spill_index *index, void (*each)(void *ctx, uint64_t at), void *ctx);

/* Memory of what clears have left goes; for whoever has the time. */
void near__spill_index_tidy(struct near__spill_index *index);

/* All leaves, and nothing comes until it is opened again.  Calls nest. */
void near__spill_index_close(struct near__spill_index *index);
void near__spill_index_open(struct near__spill_index *index);

uint64_t near__spill_index_entries(const struct near__spill_index *index);
uint64_t near__spill_index_bytes(const struct near__spill_index *index);

/* How many bytes near__spill_index_find() will say for a record of so many. */
uint32_t near__spill_index_rounded(uint32_t size);
#define NEAR__SPILL_INDEX_MAX (UINT32_C(512) << 10)

#endif
