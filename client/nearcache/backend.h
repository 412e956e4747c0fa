/*
 * A shared tier of your own: an L2 backend, registered by the same table that the library's own are.
 *
 *     static const struct near_l2_ops mine = { .version = NEAR_L2_OPS_V1, .scheme = "x-mine", .open = mine_open, ... };
 *
 *     near_config_add_backend(config, &mine, NULL);
 *     near_config_set(config, "l2.uri", "x-mine://whatever-it-wants", NULL);
 *
 * The vtable is batch-shaped.  Every call carries an absolute deadline (ns, near_l2_now()) and every item gets its own
 * answer.  "Absent" is said only on the server's positive word; a fault is never an absence.
 *
 * Stored bytes are opaque but for one thing: bytes 8..15 are a little-endian 64-bit *stamp*, the entry's version.
 * The conditional modes compare it, in one atomic step with the write; stored bytes shorter than 16 match no stamp.  A stamp is
 * never 0.  near_l2_has_stamp() compares.  An entry that is evicted or expired is absent, as one that never was.
 *
 * Besides such entries a server may hold *hashes*: named fields with plain values under one key, as Redis has them and as other programs
 * write them.  A table of version NEAR_L2_OPS_V2 may read and write their fields (hash_get_many, hash_set_many); a backend without these
 * leaves them NULL or is of version 1, and loses nothing but that.
 *
 * There is no bus for such an L2 unless coherence.uri names one.
 */
#ifndef NEARCACHE_BACKEND_H
#define NEARCACHE_BACKEND_H

#include <nearcache.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NEAR_L2_OPS_V1   1    /* the table ends with `forked` */
#define NEAR_L2_OPS_V2   2    /* and then come the operations on hashes */
#define NEAR_L2_BATCH    512  /* the most items of one call: callers cut larger batches */
#define NEAR_L2_READS    1024 /* the most of get_many */
#define NEAR_L2_FIELDS   512  /* the most fields of one item: likewise */
#define NEAR_L2_STAMP_AT 8

enum near_l2_answer {
    NEAR_L2_NOT_TRIED =
        0, /* what callers put in; also left by a call whose deadline passed before the item was sent */
    NEAR_L2_DONE, /* get: found, `deliver` was called; set: stored; remove: is gone; hash: every field is answered */
    NEAR_L2_ABSENT, /* get: the server says it has no such key; conditional set or remove: the condition did not hold */
    NEAR_L2_ERROR, /* refused or unreachable: certainly not done.  `status` says why */
    NEAR_L2_UNKNOWN /* writes only: sent, and no word of the outcome.  May have been done, or may be done yet */
};

struct near_l2_item {
    /* asked */
    near_bytes key;      /* as near_l2_traits allows */
    near_bytes value;    /* set */
    uint64_t   expected; /* IF_STAMP: the stamp that must be there */
    /* set: 0 never expires, below 0 it is gone at once (or within a millisecond).  Rounded up to what the server
     * can express, never to "expired" */
    int64_t ttl_ms;
    void   *user; /* the caller's */
    union {
        struct near_l2_sum  *sum;  /* increment; else NULL */
        struct near_l2_hash *hash; /* hash_get_many, hash_set_many */
    };
    bool
        plain; /* shared with programs that know nothing of us: stored and read without marks of the backend's own */
    /* answered */
    enum near_l2_answer answer;
    near_status         status; /* ERROR, UNKNOWN: why; else NEAR_OK */
};

/* Called at most once per item, in the calling thread, with no lock held.  `stored` is borrowed for the call.  Other threads may wait for
 * the connection meanwhile: it must not take long, and must not call the backend. */
typedef void (*near_l2_deliver_fn)(void *ctx, struct near_l2_item *item, near_bytes stored);

/* So many keys more are gone.  In the calling thread, no lock held, after each step of a long work. */
typedef void (*near_l2_progress_fn)(void *ctx, size_t removed);

/* What increment() adds and answers. */
struct near_l2_sum {
    int64_t delta;   /* added to what is there */
    int64_t initial; /* stored where nothing is */
    /* answered */
    int64_t result;  /* DONE: what lies there now */
    bool    created; /* DONE: `initial` was stored */
};

/* Fields of the hash under item->key.  Names and values are any bytes. */
struct near_l2_hash {
    const near_bytes *fields; /* their names, no two alike */
    size_t            count;  /* 1 .. NEAR_L2_FIELDS */
    const near_bytes
        *values; /* set: one for each, at least one of them; `data` NULL: that field stays as it is */
    /* answered by a get, one for each (the caller's room): DONE: delivered; ABSENT: the hash, if there is one, has no such field; ERROR:
     * its value is larger than max_stored; NOT_TRIED: `status` of the item says why nothing is known */
    enum near_l2_answer *answers;
};

/* Called once for each field that was found, in the calling thread, with no lock held.  `value` is borrowed for the call. */
typedef void (*near_l2_field_fn)(void *ctx, struct near_l2_item *item, size_t field, near_bytes value);

enum near_l2_mode {
    NEAR_L2_ALWAYS,
    NEAR_L2_IF_ABSENT, /* set only: memcached add, Redis SET NX.  The holder of a lease is made by it */
    NEAR_L2_IF_STAMP   /* only over (or: remove only) an entry whose stamp is item->expected */
};

/*
 * A message to publish in the same atomic step as a write, by backends whose traits say `announces`.  Either all of the call's
 * items are written and the message is published, or neither.  The backend stamps 16 bytes at message + stamp_at: two
 * little-endian 64-bit numbers, the stream (one connection's life, random) and the message's number in it (1, 2, ...), so that
 * a receiver sees each stream in order and notices a gap.  When all is done they stand in `message`, too.
 */
struct near_l2_announce {
    near_bytes channel;
    uint8_t   *message;
    size_t     size;
    size_t     stamp_at;
    /* answered: the stream the message was (or may yet be) published in; 0 when it certainly was not sent */
    uint64_t stream;
};

struct near_l2_traits {
    bool    shared;       /* other clients may write the same data */
    bool    announces;    /* honours near_l2_announce */
    bool    binary_keys;  /* else keys are bytes 0x21..0x7E only */
    size_t  max_key;      /* bytes */
    size_t  max_value;    /* stored bytes the server takes, 0: not known */
    int64_t min_lease_ms; /* shortest TTL that is kept reliably: 3000 on memcached's one-second clock */
};

/* What a backend is opened with; good until fini().  The fields below `outdated_ctx` are the library's own backends'. */
struct near__uri;
struct near__access;
struct near__clock;
struct near__log;
struct near_l2_env {
    const char *text; /* l2.uri as it was set: whatever a backend of an application's wants to read in it */
    int64_t     connect_timeout; /* ns: one dial, handshake included */
    unsigned    pool_size;       /* connections per server */
    size_t      max_stored;      /* a stored entry larger than this is refused, sent or received.  Never 0 */
    const char *client_name;     /* for a server's list of clients: no blanks */
    const char *key_prefix; /* of every key: for what a backend itself keeps on its servers.  NULL: none */
    /* A server turned out to have missed writes of another process: what was read from it and kept may be as
     * old.  Called in the thread of a call, no lock held.  May be NULL */
    void (*outdated)(void *ctx);
    void *outdated_ctx;

    const struct near__uri    *uri;
    const struct near__access *access; /* l2/access.h; NULL: nothing special is needed to get in */
    const struct near__clock  *clock;  /* near_l2_now() */
    const struct near__log    *log;    /* near_l2_log() */
    /* memcached: where the keys of a server go that cannot be reached, and for how long (ns).  NULL: nowhere */
    const struct near__uri *gutter;
    int64_t                 gutter_ttl;
    int64_t timeout; /* l2.timeout in ns: what a call without a deadline of its own waits.  0: not known */
};

struct near_l2_stats { /* all 0 before stats() is called */
    uint64_t connects, disconnects;
    uint64_t down; /* servers that were seen down just now: calls to them fail at once */
};

struct near_l2_ops {
    unsigned    version; /* NEAR_L2_OPS_V1 or NEAR_L2_OPS_V2; anything else is refused */
    const char *scheme;  /* picks the row, names the errors */

    /* Checks the settings and sets up; does not dial, so an absent server is no failure.  env and what it points to outlive
     * self.  On failure *self stays NULL.  No lock held. */
    near_status (*open)(void **self, const struct near_l2_env *env, struct near_l2_traits *traits,
                        near_error *error);

    /* Many threads at once, no nearcache lock held.  n is 1 .. NEAR_L2_BATCH, here .. NEAR_L2_READS.  Back by `deadline` (plus
     * scheduling).  `deliver` may be called as values come, while others are still on their way. */
    void (*get_many)(void *self, struct near_l2_item *items, size_t n, near_l2_deliver_fn deliver, void *ctx,
                     int64_t deadline);
    /* `announce` may be NULL; it is given with NEAR_L2_ALWAYS only. */
    void (*set_many)(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                     struct near_l2_announce *announce, int64_t deadline);
    /* NEAR_L2_ALWAYS or NEAR_L2_IF_STAMP.  A key that was not there counts as DONE (ALWAYS) or ABSENT (IF_STAMP). */
    void (*remove_many)(void *self, enum near_l2_mode mode, struct near_l2_item *items, size_t n,
                        struct near_l2_announce *announce, int64_t deadline);

    /* Remove every key that begins with `prefix` and is there from this call's beginning to its end; what is written meanwhile may
     * go or stay.  In small steps, on connections of its own: nobody else waits for it.  NEAR_OK: certainly all; anything else: some
     * may be left.  NULL: this backend cannot find keys. */
    near_status (*remove_prefix)(void *self, near_bytes prefix, near_l2_progress_fn progress, void *ctx,
                                 int64_t deadline, near_error *error);
    /* Add item->sum->delta to each, one atomic step each.  A counter is its decimal text alone: as `printf("%lld")` writes it, nothing before
     * and nothing behind.  Where there is none, `initial` is stored, for item->ttl_ms.  DONE: the sum has the result.  ABSENT: what lies
     * there is no counter.  ERROR with NEAR_ERR_INVALID: the sum does not fit into 64 bits, and is not stored.  Nothing of which the
     * outcome is not known is tried again: UNKNOWN.  NULL: this backend cannot. */
    void (*increment)(void *self, struct near_l2_item *items, size_t n, int64_t deadline);

    /* One line about the server ("redis 7.0.15, maxmemory 0, noeviction") into `text`; dials if need be. */
    near_status (*health)(void *self, char *text, size_t size, int64_t deadline, near_error *error);
    void (*stats)(void *self, struct near_l2_stats *stats);

    void (*close)(
        void *self); /* no new calls; wakes blocked ones (NEAR_ERR_CLOSED); returns at once; idempotent */
    void (*stop)(void *self); /* returns when no call is in flight */
    void (*fini)(
        void *self); /* frees self; NULL is fine.  Goodbyes to servers only if `forked` was not called */
    void (*forked)(
        void *self); /* in a child: close descriptors without a byte on the wire, so that fini only frees */

    /* From here on: NEAR_L2_OPS_V2.  Both, or neither (NULL): this backend has no hashes. */

    /* As get_many: the fields of n hashes.  A hash that is not there is DONE, with all of its fields ABSENT.  ERROR: some fields may have
     * been delivered all the same; with NEAR_ERR_PROTOCOL: also when what lies under the key is no hash, which is no fault of the others. */
    void (*hash_get_many)(void *self, struct near_l2_item *items, size_t n, near_l2_field_fn deliver,
                          void *ctx, int64_t deadline);
    /* Write fields of n hashes, each hash in one atomic step; where nothing lies a hash is made.  ttl_ms is the whole hash's: 0 leaves what it has (a new
     * one: for ever).  `announce` may be NULL; with it all are one step with the message, but for this: a hash that could not be written because
     * something else lies there is ERROR, the others are DONE, and the message is published. */
    void (*hash_set_many)(void *self, struct near_l2_item *items, size_t n, struct near_l2_announce *announce,
                          int64_t deadline);
};

/* Whether there are operations on hashes: nothing behind `forked` may be looked at otherwise. */
static inline bool
near_l2_has_hashes(const struct near_l2_ops *ops)
{
    return ops->version >= NEAR_L2_OPS_V2 && ops->hash_get_many != NULL;
}

/**
 * Make a backend known to the clients that will be opened with this configuration: l2.uri picks it by its scheme.
 * @param ops     borrowed: must stay as it is until the last of those clients has been closed.
 * @return NEAR_OK; NEAR_ERR_INVALID: an unknown version of the table, a function missing, or a scheme that is not "x-" followed by up to 20 of a-z 0-9 -;
 *         NEAR_ERR_BUSY: the configuration has that scheme, or eight backends, already.
 * Threads: one at a time per configuration.   Blocks: never.
 */
NEAR_API near_status near_config_add_backend(near_config *config, const struct near_l2_ops *ops,
                                             near_error *error);

/* The time that deadlines are measured by, in ns.  Threads: any. */
NEAR_API int64_t near_l2_now(const struct near_l2_env *env);

/* Say something in the client's log: one line, no key, value or password.  Threads: any, with no lock held. */
NEAR_API void near_l2_log(const struct near_l2_env *env, near_log_level level, const char *text);

/* Whether an entry with these stored bytes has this stamp. */
static inline bool
near_l2_has_stamp(near_bytes stored, uint64_t stamp)
{
    const unsigned char *at   = (const unsigned char *)stored.data;
    uint64_t             seen = 0;

    for (size_t i = 0; stored.size >= NEAR_L2_STAMP_AT + 8 && i < 8; i++)
        seen |= (uint64_t)at[NEAR_L2_STAMP_AT + i] << 8 * i;
    return stored.size >= NEAR_L2_STAMP_AT + 8 && seen == stamp;
}

#ifdef __cplusplus
}
#endif

#endif
