/*
 * The library's own backends: memory.c, redis.c, redis_cluster.c and memcached.c implement exactly the table of <nearcache/backend.h>, which says what a
 * backend must do; a new one is one new file and one row in l2/backends.c.
 */
#ifndef NEAR_L2_BACKEND_H
#define NEAR_L2_BACKEND_H

#include "base/clock.h"
#include "base/uri.h"
#include "nearcache/backend.h"

extern const struct near_l2_ops near__l2_memory, near__l2_redis, near__l2_rediss, near__l2_redis_unix,
    near__l2_redis_sentinel, near__l2_rediss_sentinel, near__l2_redis_cluster, near__l2_rediss_cluster,
    near__l2_memcached, near__l2_memcached_unix;

/* The row whose scheme this is, or NULL. */
const struct near_l2_ops *near__l2_backend_named(const char *scheme);

/* Every item answered alike: for calls that fail as a whole. */
void near__l2_answer_all(struct near_l2_item *items, size_t n, enum near_l2_answer answer,
                         near_status status);
/* Those still NOT_TRIED become ERROR with `status`. */
void near__l2_answer_rest(struct near_l2_item *items, size_t n, near_status status);

/* What backends have in common that is checked before anything else: the number of items, and a mode that the
 * call can have.  False: the items are answered NEAR_ERR_INVALID. */
bool near__l2_valid_get(struct near_l2_item *items, size_t n);
bool near__l2_valid_set(enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                        const struct near_l2_announce *announce);
bool near__l2_valid_remove(enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                           const struct near_l2_announce *announce);
bool near__l2_valid_increment(struct near_l2_item *items, size_t n);
bool near__l2_valid_hash_get(struct near_l2_item *items, size_t n);
bool near__l2_valid_hash_set(struct near_l2_item *items, size_t n);

/* No field of these is answered yet. */
void near__l2_forget_fields(struct near_l2_item *items, size_t n);
/* Bytes of the names and values that a write of this hash has. */
size_t near__l2_hash_bytes(const struct near_l2_hash *hash);

/* A counter's text.  read: false when it is none, to the last byte.  write: at most NEAR_L2_DECIMAL bytes, no NUL; how many. */
#define NEAR_L2_DECIMAL 20
bool   near__l2_decimal_read(near_bytes text, int64_t *number);
size_t near__l2_decimal_write(int64_t number, char *out);

#endif
