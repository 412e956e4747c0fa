/*
 * nearcache: a coherent multi-level cache for C and C++ services.
 *
 * A value is answered from the process's own memory (L1, tens of nanoseconds), else from a shared Redis or
 * memcached (L2, one round trip), else from the application's own loader, which runs once however many
 * threads ask.  When any instance writes, the L1 of every other instance forgets.
 *
 *     near_cache_set_loader(users, load_users_from_db, db);
 *     near_value *user;
 *     if (near_fetch(users, near_key("user:42"), NULL, &user) == NEAR_OK) {
 *         use(near_value_bytes(user));
 *         near_value_release(user);
 *     }
 *
 * Caveats, before anything else
 *
 *  - Values are immutable and shared.  What near_value_bytes() shows may be read by other threads at the same
 *    moment: never write to it.  Every value handed out is given back once with near_value_release().
 *  - fork(): a client does not survive into a child.  There every call answers NEAR_ERR_FORKED, and
 *    near_client_close() closes the descriptors without a byte on the parent's connections.
 *  - How stale may a hit be?  With a Redis L2: an L1 hit is never older than `coherence.serve_window` (500 ms
 *    by default) against acknowledged writes, typically one message's delivery.  With memcached and no bus:
 *    never older than `l1.max_ttl` (1 s there).  doc/guarantees.md states every promise, G0 to G8.
 *  - Writes that bypass nearcache are not seen before the entry's TTL (at most `l1.max_ttl` in L1), unless Redis is asked to tell of them:
 *    coherence.mode = tracking or both.
 *  - Without write_back.journal, what write.policy = back has acknowledged and not yet stored is lost with the process.  With
 *    write.policy = around or write.fast = yes a writer that dies may leave the old value cached until its TTL.
 *  - L1 looks at the time as often as it can afford: a TTL may end some milliseconds late there.  One of more than 20 days
 *    counts as 20 days in L1 (large and adopted values keep theirs).
 *  - Names: a server given by name is resolved by the system's resolver when a connection is made, and no deadline ends
 *    that.  Where DNS may hang, give addresses.
 *  - l2.envelope = none, for keys shared with other programs, weakens several promises: doc/guarantees.md says which.
 *  - Clocks: durations are measured with CLOCK_BOOTTIME.  No promise needs synchronised clocks.
 *
 * Conventions
 *
 *  - A function that can fail returns near_status: 0 is NEAR_OK, positive is an answer (NEAR_MISS,
 *    NEAR_NOT_FOUND), negative is an error.  An out-parameter for a value is NULL whenever there is none.
 *  - near_error is storage of the caller's; it may always be NULL.
 *  - Times are int64_t milliseconds; a negative one means "the configured default".
 *  - Option structs start with their size: initialise them with their macro (NEAR_FETCH_OPTIONS_INIT).  A NULL
 *    pointer to options means the cache's own settings.
 *  - "Threads: any" means any number of threads at once, on the same handle.
 *  - No function prints, exits, aborts or changes a signal's disposition.
 */
#ifndef NEARCACHE_H
#define NEARCACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define NEAR_API __attribute__((visibility("default")))
#else
#define NEAR_API
#endif

#define NEAR_VERSION_MAJOR 0
#define NEAR_VERSION_MINOR 1
#define NEAR_VERSION_PATCH 0

/* The version of the library that is loaded, "0.1.0".  Static storage.  Threads: any. */
NEAR_API const char *near_version(void);

/* ------------------------------------------------------------------------------------------------ status */

/* Every status once: name, number, text. */
#define NEAR_STATUS_TABLE(X)                                                                                 \
    X(NEAR_OK, 0, "ok")                                                                                      \
    X(NEAR_MISS, 1, "not in the caches")                                                                     \
    X(NEAR_NOT_FOUND, 2, "does not exist (the store said so)")                                               \
    X(NEAR_ERR_TIMEOUT, -1, "deadline passed, outcome unknown")                                              \
    X(NEAR_ERR_UNAVAILABLE, -2, "server or bus cannot be reached")                                           \
    X(NEAR_ERR_LOADER, -3, "the loader failed")                                                              \
    X(NEAR_ERR_TOO_LARGE, -4, "key, value or buffer outside its limit")                                      \
    X(NEAR_ERR_INVALID, -5, "invalid argument or setting")                                                   \
    X(NEAR_ERR_CONFLICT, -6, "another write came first")                                                     \
    X(NEAR_ERR_UNSUPPORTED, -7, "not possible with this configuration")                                      \
    X(NEAR_ERR_BUSY, -8, "refused for now: over a limit, or already under way")                              \
    X(NEAR_ERR_NOMEM, -9, "out of memory")                                                                   \
    X(NEAR_ERR_CLOSED, -10, "the client is closed")                                                          \
    X(NEAR_ERR_FORKED, -11, "the client belongs to the parent process")                                      \
    X(NEAR_ERR_DENIED, -12, "the server refused: credentials, rights or state")                              \
    X(NEAR_ERR_PROTOCOL, -13, "the server sent something that makes no sense")                               \
    X(NEAR_ERR_DECODE, -14, "the codec could not decode the value")

typedef enum near_status {
#define NEAR_STATUS_ENUM(name, number, text) name = (number),
    NEAR_STATUS_TABLE(NEAR_STATUS_ENUM)
#undef NEAR_STATUS_ENUM
} near_status;

/* What a status means, in a few English words.  Never NULL; static storage.  Threads: any. */
NEAR_API const char *near_status_text(near_status status);

/* What went wrong, for the person at 3 a.m.: which part, which server, which operation, what was said, what would
 * have been accepted.  Layout frozen.  `text` always ends in NUL. */
typedef struct near_error {
    near_status code;
    char        text[256];
} near_error;

/* ------------------------------------------------------------------------------------------------- types */

typedef struct near_config near_config;
typedef struct near_client near_client; /* one per process and configuration: connections, bus, threads */
typedef struct near_cache  near_cache;  /* a named region of a client: own keys, L1 pool, TTLs, loader */
typedef struct near_value  near_value;  /* an immutable value, held until near_value_release() */
typedef struct near_load   near_load;   /* one key that a loader has been asked for */
typedef struct near_write  near_write;  /* one change that a store has been asked to make */

/* Borrowed bytes; keys and values may hold any byte.  Layout frozen.  {NULL, 0} is the empty string. */
typedef struct near_bytes {
    const void *data;
    size_t      size;
} near_bytes;

/* The bytes of a C string, without its NUL; NULL gives {NULL, 0}.  Borrows `text`.  Threads: any. */
NEAR_API near_bytes near_key(const char *text);

/* Frees what this library allocated for the caller (near_stats_json and its like).  NULL is fine.  Threads: any. */
NEAR_API void near_free(void *memory);

/* --------------------------------------------------------------------------------------- configuration
 *
 * Strings, from one table: `nearcache config --list` and nearcache.conf(5) show every name with its default, what it
 * accepts and what it does.  Durations take 250ms 30s 5m 1h, sizes 64KiB 256MiB.  The environment overrides: the
 * variable for `l2.uri` is NEARCACHE_L2_URI; it is read by near_client_open().
 */

/* A new configuration with every option at its default.  NULL: out of memory.  Freed with near_config_free(). */
NEAR_API near_config *near_config_new(void);

/**
 * Set one option.  Both strings are copied.
 * @return NEAR_OK; NEAR_ERR_INVALID for an unknown name or a value that is not accepted, with the option, the value
 *         and what would be accepted in `error`, and the configuration unchanged; NEAR_ERR_NOMEM.
 * Threads: one at a time per configuration.   Blocks: never.
 */
NEAR_API near_status near_config_set(near_config *config, const char *name, const char *value,
                                     near_error *error);

/**
 * Read a file of `name = value` lines.  `#` starts a comment line; blank lines are skipped; a value ends at the line's
 * end, outer blanks cut.  All or nothing: on an error (file and line are named) the configuration is unchanged.
 * @return NEAR_OK, NEAR_ERR_INVALID, NEAR_ERR_UNAVAILABLE when the file cannot be read, NEAR_ERR_NOMEM.
 * Threads: one at a time per configuration.   Blocks: on the file.
 */
NEAR_API near_status near_config_load(near_config *config, const char *path, near_error *error);

/* Frees a configuration; NULL is fine.  Clients opened with it keep their copy. */
NEAR_API void near_config_free(near_config *config);

/* ------------------------------------------------------------------------------------- clients and caches */

/**
 * Open a client.
 * @param config  copied; NULL means every default.
 * @param client  on NEAR_OK the client, closed with near_client_close(); otherwise NULL.
 * An L2 or a bus that cannot be reached is no failure: the client opens, serves from its loaders, logs once and
 * reconnects by itself.
 * @return NEAR_OK; NEAR_ERR_INVALID for settings that contradict each other, a malformed URI or a bad environment
 *         variable; NEAR_ERR_UNSUPPORTED for a scheme this build does not have; NEAR_ERR_NOMEM.
 * Threads: any.   Blocks: up to l2.connect_timeout, waiting for the bus's first answer.
 */
NEAR_API near_status near_client_open(const near_config *config, near_client **client, near_error *error);

/**
 * Close a client and all its caches.  No other call on the client or its caches may be running or follow, except calls
 * on values: those still held stay valid until released.  Loads still unanswered are waited for up to close.timeout;
 * their near_load stays valid until answered.
 * @return NEAR_OK; NEAR_ERR_BUSY when loads were still unanswered, or changes (write.policy = back) not in the store: with
 *         write_back.journal they are kept there, without they are lost; NEAR_ERR_UNAVAILABLE when failed writes could not be
 *         made good (see coherence.max_pending).  `error` says how many; the client is closed all
 *         the same); NEAR_ERR_INVALID for NULL.
 * Threads: one.   Blocks: up to close.timeout.   In a forked child: closes the descriptors, sends nothing, and leaves the
 * memory to the process's end (a thread of the parent's may have held any lock at the fork).
 */
NEAR_API near_status near_client_close(near_client *client, near_error *error);

typedef enum near_log_level {
    NEAR_LOG_ERROR = 0,
    NEAR_LOG_WARN  = 1,
    NEAR_LOG_INFO  = 2,
    NEAR_LOG_DEBUG = 3
} near_log_level;

/* Called for what the library has to say: from any thread, with no lock held, rate limited.  `message` is one line
 * without newline, valid for the call.  It holds no key, value or password.  Must not call near_client_close(). */
typedef void (*near_log_fn)(near_log_level level, const char *message, void *ctx);

/* Set (or with NULL remove) the log callback; the last few messages from before are delivered at once.  Which levels
 * come is set by log.level.  Threads: any; when it returns the old callback may still be running in another thread
 * only until that call ends. */
NEAR_API void near_set_log(near_client *client, near_log_fn fn, void *ctx);

/**
 * Open a cache, a region of the client with its own keys, L1 pool and loader.
 * @param name       1 to 64 of A-Z a-z 0-9 _ . -; instances that share data use the same name.  A name can be open
 *                   once per client: NEAR_ERR_BUSY otherwise.
 * @param overrides  options for this cache only (those `nearcache config --list` marks "cache"); NULL for none.  Options
 *                   that belong to the client are refused.  Copied.
 * @return NEAR_OK, NEAR_ERR_INVALID, NEAR_ERR_BUSY, NEAR_ERR_NOMEM, NEAR_ERR_FORKED.
 * Threads: any.   Blocks: never, but for opening the file of a snapshot (snapshot.path).
 */
NEAR_API near_status near_cache_open(near_client *client, const char *name, const near_config *overrides,
                                     near_cache **cache, near_error *error);

/**
 * Give a cache's L1 other bounds while it is in use.  A larger one is in force at once; what is too much for a smaller one leaves
 * step by step, within seconds.  Where l1.total_bytes bounds all caches of the client together, the parts are dealt out again.
 * @param max_bytes    l1.max_bytes, not 0.
 * @param max_entries  l1.max_entries; 0: only the bytes bound it.
 * @return NEAR_OK; NEAR_ERR_INVALID when it is more than 16 times what the cache was opened with, less than its index needs, or when
 *         the cache keeps nothing in L1 (all stays as it was); NEAR_ERR_CLOSED, NEAR_ERR_FORKED.
 * Threads: any.   Blocks: never.
 */
NEAR_API near_status near_cache_resize(near_cache *cache, size_t max_bytes, size_t max_entries,
                                       near_error *error);

/*
 * Pools: with the option l1.pools a cache's L1 has several parts, each with memory, policy and TTL of its own.  All are read as one; what
 * comes into one evicts nothing of the others.  An entry is in the pool that near_put_options or near_load_pool() name, else in the one
 * that the cache's function says, else in the first.  L2 does not keep it: what is read from there goes by the function alone.  The disk tier
 * and snapshots do, the latter by the pool's name; fields of hashes (near_fields_get_many) always go by the function.
 */

/**
 * Which pool of L1 an entry belongs to, by its key and the size of its value (0: known not to exist): near_pool_number() of one, 0 for the
 * first.  Called whenever L1 is given an entry of which nobody said it, on the thread that brings it, with no lock held; it must be quick, be
 * safe to run on several threads at once, and not call the library.  A key whose answer changes moves to the other pool with its next value.
 */
typedef unsigned (*near_pool_fn)(near_bytes key, size_t value_size, void *ctx);

/* Set it, before the cache is used.  Without l1.pools it is never called.  Threads: one, before others use the cache. */
NEAR_API void near_cache_set_pool_fn(near_cache *cache, near_pool_fn fn, void *ctx);

/* The number of the pool with this name, from 1 in the order of l1.pools; 0: there is none.  Threads: any.  Blocks: never. */
NEAR_API unsigned near_pool_number(const near_cache *cache, const char *name);

/**
 * Give one pool another size while the cache is in use; the others keep theirs.  near_cache_resize() divides its bytes among the pools in
 * proportion to what they have.
 * @return as near_cache_resize(); NEAR_ERR_INVALID also for a pool that there is not, and less than 64 KiB.
 * Threads: any.   Blocks: never.
 */
NEAR_API near_status near_pool_resize(near_cache *cache, unsigned pool, size_t max_bytes, near_error *error);
/**
 * Save what the cache's L1 holds to its file (snapshot.path), now: the next near_cache_open() of that name with that path restores it in the
 * background.  Closing does the same (snapshot.at_close).  The file is written beside and renamed when all of it is on disk, so what was there
 * stays until then; it is this user's alone (mode 0600), for it holds keys and values.  Readers and writers are not held up.
 *
 * With an L2 that others share only what L2 still holds comes back, in the version that it has by then, however old the file is.  Without
 * (none:, memory:) nobody could say what was written since: the file is good as long as this process writes, removes and invalidates nothing
 * in the cache, and the first call that does removes it; it serves one start.
 * @param error  may be NULL.
 * NEAR_OK: it is on disk.  NEAR_ERR_UNSUPPORTED: snapshot.path is not set, or there is a bus and no shared L2.  NEAR_ERR_BUSY: one is being saved or
 * restored.  NEAR_ERR_CONFLICT: without a shared L2, something was written meanwhile.  NEAR_ERR_UNAVAILABLE: the disk refused; NEAR_ERR_NOMEM;
 * NEAR_ERR_INVALID, NEAR_ERR_CLOSED, NEAR_ERR_FORKED.  Threads: any.  Blocks: for writing as many bytes as L1 holds, and an fsync.
 */
NEAR_API near_status near_snapshot_save(near_cache *cache, near_error *error);
/**
 * Change how much of a cache is in use, while it is: see rollout.percent and rollout.dry_run.  In force for reads that begin later.
 * @param percent  0 to 100, in steps of a thousandth.  Keys that are in at some percentage are at any larger one.
 * @param dry_run  fill and compare, but serve nothing that was cached.
 * @return NEAR_OK; NEAR_ERR_INVALID; NEAR_ERR_UNSUPPORTED: the cache was opened without any of the options rollout.* (set
 *         rollout.percent = 100 to begin with all); NEAR_ERR_CLOSED, NEAR_ERR_FORKED.
 * Threads: any.   Blocks: never.
 */
NEAR_API near_status near_cache_set_rollout(near_cache *cache, double percent, bool dry_run);

/* Whether reads of this key are served by the cache, by rollout.caches, rollout.percent and rollout.allow.  Threads: any.  Blocks: never. */
NEAR_API bool near_cache_rollout_takes(near_cache *cache, near_bytes key);

/* Close a cache before its client; NULL is fine.  No other call on it may be running or follow; values still held stay
 * valid.  What is in L2 stays there.  Threads: one.  Blocks: until loads under way are answered, up to close.timeout. */
NEAR_API void near_cache_close(near_cache *cache);

/* ------------------------------------------------------------------------------------------------- values */

typedef enum near_source {
    NEAR_FROM_NOWHERE = 0,
    NEAR_FROM_L1      = 1,
    NEAR_FROM_L2      = 2,
    NEAR_FROM_LOADER  = 3,
    NEAR_FROM_CALLER  = 4, /* of fields: what the caller had already */
    NEAR_FROM_DEFAULT = 5  /* of fields: what was declared for when there is nothing else */
} near_source;

typedef struct near_value_info {
    size_t      struct_size; /* NEAR_VALUE_INFO_INIT */
    size_t      size;        /* bytes of the value */
    near_source source;      /* the tier that gave this value to this caller */
    bool        stale;       /* past its freshness: within grace, or while the bus is lost */
    /* since this process got it from L2, a loader or a write; of what does not expire to 16 ms, of what expires after more than two
     * hours up to 256 ms too much; -1: not known (an entry that does not expire, in a cache without L2) */
    int64_t age_ms;
    int64_t ttl_ms; /* until it has to be refreshed here; -1: never, 0: overdue */
} near_value_info;
/* clang-format off */
#define NEAR_VALUE_INFO_INIT { sizeof(near_value_info), 0, NEAR_FROM_NOWHERE, false, 0, 0 }
/* clang-format on */

/* The value's bytes, never written again, valid until this holder releases it.  Aligned to 4 bytes, to 64 when the value
 * has `l1.align_from` bytes or more (an adopted one lies where the loader put it), so that vectors of floats can be used in place.
 * NULL gives {NULL, 0}, and so does a decoded value whose codec does not keep bytes.  Threads: any. */
NEAR_API near_bytes near_value_bytes(const near_value *value);

/**
 * What the cache's codec made of the value: the same object for all holders, valid until this holder releases the value, and used by
 * other threads at the same moment.
 * @return NULL for NULL, in a cache without a codec, for a counter (near_add), whose text near_value_bytes() shows, and for what the
 *         caller himself gave or declared (NEAR_FROM_CALLER, NEAR_FROM_DEFAULT).
 * Threads: any.   Blocks: never.
 */
NEAR_API void *near_value_object(const near_value *value);

/* Where the value came from and how fresh it is.  `info` must be initialised with NEAR_VALUE_INFO_INIT.  Threads: any. */
NEAR_API void near_value_get_info(const near_value *value, near_value_info *info);

/* One more holder; give each back with near_value_release().  Returns its argument.  Threads: any. */
NEAR_API near_value *near_value_ref(near_value *value);

/* Give a value back.  NULL is fine; any thread may release; valid after the client was closed, too.  Never blocks.
 * A value may be held for any length of time: it keeps its own memory from being used again, and nothing else (after the
 * client was closed, the cache's address range as well, without what is free in it). */
NEAR_API void near_value_release(near_value *value);

/* ------------------------------------------------------------------------------------------------- codecs
 *
 * A cache with a codec keeps objects in L1 where others keep bytes.  A value is decoded once, when it comes in from L2, a loader or a
 * writer of this process, however many callers wait for it; each is handed the same near_value, with near_value_object().  L2, the journal
 * and the store have the bytes, so instances with and without a codec can share a cache.  What is told apart by bytes needs them kept
 * (NEAR_KEEP_BYTES): audits, snapshots, and a dry run (rollout.dry_run), which does not compare objects without.
 */

typedef struct near_codec {
    size_t   struct_size; /* NEAR_CODEC_INIT */
    unsigned flags;       /* NEAR_KEEP_BYTES */
    /* Make *object, not NULL, of a value's bytes, which lie at any address and are valid for the call only.
     * NEAR_OK; anything else says that they cannot be decoded (NEAR_ERR_NOMEM: not now), and nothing was made */
    near_status (*decode)(near_bytes key, near_bytes bytes, void **object, void *ctx);
    /* What the object counts for in l1.max_bytes, always the same; NULL: its bytes' number */
    size_t (*size)(const void *object, void *ctx);
    /* Called once for each object made, after its last holder has let go, L1 being one; NULL: nothing is */
    void (*destroy)(void *object, void *ctx);
} near_codec;
/* clang-format off */
#define NEAR_CODEC_INIT { sizeof(near_codec), 0, NULL, NULL, NULL }
/* clang-format on */

/* near_codec.flags: L1 keeps the bytes beside the object, so that near_value_bytes() and near_get_copy() have them. */
enum { NEAR_KEEP_BYTES = 1u << 0 };

/**
 * Give a cache a codec, before anything is read or written, and before its store is set.
 *
 * All three functions run with no lock held, on any thread of the application's or the library's, several at once, for different values or
 * (destroy) objects.  They must not call this library.  `destroy` runs where it is noticed that nobody can be looking at the object any
 * more: with the release of a value, with another call on the cache, or within some hundred milliseconds on a thread of the library's; for
 * objects that are held when their cache is closed, when the last value of that cache is released.  It must not block.  `ctx` is needed
 * until then.
 *
 * What cannot be decoded is counted (decode_failures), kept in no L1, and NEAR_ERR_DECODE: for a read without a loader of what lies in L2
 * (a fetch loads anew over it), for the callers of a loader that gave it, and for a put or update, which then has changed nothing (but with
 * NEAR_NO_FILL, and write.policy = around, nothing is decoded).  Without NEAR_KEEP_BYTES near_value_bytes() is empty, near_get_copy() answers
 * NEAR_ERR_UNSUPPORTED, a value confirmed by near_load_unchanged() gets its new TTL in this process's L1 only, hits are not audited
 * (audit.sample), the disk tier keeps none of it (disk.path), and a snapshot has the keys alone, which an L2 that others share can fill.
 *
 * What lies in L1 is forgotten by this call, and what a snapshot has brought back until then.  The snapshot of a cache that had a codec therefore
 * waits until one is set (10 seconds at most) before its values come back, decoded.
 * @param codec  copied; NULL: none, values are bytes.
 * @return NEAR_OK; NEAR_ERR_INVALID (no `decode`); NEAR_ERR_CLOSED, NEAR_ERR_FORKED.
 * Threads: one, before others use the cache.   Blocks: never.
 */
NEAR_API near_status near_cache_set_codec(near_cache *cache, const near_codec *codec, void *ctx);

/* ------------------------------------------------------------------------------------------------ reading */

/**
 * Look a key up in L1, then in L2.  Never runs the loader; see near_fetch() for that.  What is past its TTL is a miss here,
 * whatever `grace` says.
 * Threads that want the same key at the same moment share one read of L2, where that makes nobody's answer older than an L1
 * hit might be.  A cache that is to have no L1 is opened with l1.max_bytes = 0; one call goes past it with NEAR_SKIP_L1.
 * @param key    any bytes, up to 64 KiB (with l2.envelope = none: what the server takes, else NEAR_ERR_INVALID); borrowed for
 *               the call.
 * @param value  on NEAR_OK a held value, given back with near_value_release(); otherwise set to NULL.
 * @return NEAR_OK; NEAR_MISS, an answer and not an error; NEAR_NOT_FOUND when the store is known not to have it;
 *         NEAR_ERR_TIMEOUT, NEAR_ERR_UNAVAILABLE, NEAR_ERR_DENIED or NEAR_ERR_PROTOCOL when L1 had nothing and L2
 *         could not say (UNAVAILABLE also by coherence.on_disconnect=fail); NEAR_ERR_TOO_LARGE, NEAR_ERR_INVALID,
 *         NEAR_ERR_NOMEM, NEAR_ERR_FORKED.
 * Upholds G0 (never another key's value) and G1, G2 (freshness).
 * Threads: any.   Blocks: never on an L1 hit, else up to l2.timeout.
 */
NEAR_API near_status near_get(near_cache *cache, near_bytes key, near_value **value);

enum {
    NEAR_SKIP_L1 =
        1u << 0, /* do not read L1; ask L2, by a request of one's own (and fill L1, unless NEAR_NO_FILL) */
    NEAR_ONLY_L1   = 1u << 1, /* ask nobody but L1 */
    NEAR_NO_FILL   = 1u << 2, /* do not keep in L1 what was found further down */
    NEAR_IF_ABSENT = 1u << 3  /* near_put(): only where L2 has no value for the key */
};

typedef struct near_get_options {
    size_t   struct_size; /* NEAR_GET_OPTIONS_INIT */
    unsigned flags;       /* NEAR_SKIP_L1 | NEAR_ONLY_L1 | NEAR_NO_FILL */
    int64_t  timeout_ms;  /* bound on the L2 part; negative: l2.timeout */
} near_get_options;
/* clang-format off */
#define NEAR_GET_OPTIONS_INIT { sizeof(near_get_options), 0, -1 }
/* clang-format on */

/* near_get() with a choice of levels and its own deadline.  `options` may be NULL. */
NEAR_API near_status near_get_with(near_cache *cache, near_bytes key, const near_get_options *options,
                                   near_value **value);

/**
 * near_get() into the caller's memory: nothing to release.
 * @param size  set to the value's size on NEAR_OK, and on NEAR_ERR_TOO_LARGE when `capacity` was too small (then nothing
 *              is copied); otherwise to 0.
 * @param info  may be NULL.
 */
NEAR_API near_status near_get_copy(near_cache *cache, near_bytes key, void *buffer, size_t capacity,
                                   size_t *size, near_value_info *info);

/**
 * Look many keys up: one pass over L1, then one exchange with each L2 server for all that was missing.
 * @param values    array of `n`, written for every key.
 * @param statuses  array of `n`, written for every key: statuses[i] is what near_get() would return.
 *                          A key may occur more than once.
 * @return NEAR_OK when every status is an answer (>= 0); else the first error among them.
 * Threads: any.   Blocks: up to l2.timeout.
 */
NEAR_API near_status near_get_many(near_cache *cache, const near_bytes *keys, size_t n, near_value **values,
                                   near_status *statuses);

/* ------------------------------------------------------------------------------------------------ loading */

/**
 * The application's way to a value: a batch of keys to be answered, each exactly once, by near_load_set(),
 * near_load_adopt(), near_load_unchanged(), near_load_not_found() or near_load_fail(); inside the call or later, from any
 * thread.  A load that has been answered must not be touched again.  `loads` may be read until the last of them is answered.
 *
 * It runs with no lock held, on the thread of the caller of near_fetch(), or on the client's loader pool (loader.threads):
 * there when the call has a timeout_ms or the cache a loader.hard_timeout, and for every refresh of a value that is still
 * in use.  It must be safe to run on several threads at once.
 *
 * It may call the library, also near_fetch() for other keys: what such a fetch has to load is loaded right there, on the
 * same thread, outside the load budget.  For a key that this thread is itself loading the answer is NEAR_ERR_BUSY.  Loaders
 * that fetch keys whose loaders fetch keys can wait for each other in a circle, as with any locks: such a fetch should
 * have a timeout_ms.
 */
typedef void (*near_load_fn)(near_load *loads[], size_t n, void *ctx);

/* Set the loader of a cache, before the first near_fetch().  Threads: one, before others use the cache. */
NEAR_API void near_cache_set_loader(near_cache *cache, near_load_fn fn, void *ctx);

/* The key to load; valid until the load is answered. */
NEAR_API near_bytes near_load_key(const near_load *load);

/* This value's TTL in ms instead of the cache's `ttl` (or `negative_ttl`); 0: never expires; negative: the default.
 * Before the answer. */
NEAR_API void near_load_ttl(near_load *load, int64_t ttl_ms);

/* The pool of L1 that this value is kept in (near_pool_number()); 0: see near_cache_set_pool_fn().  NEAR_OK; NEAR_ERR_INVALID, and nothing
 * is changed: there is no such pool.  Before the answer. */
NEAR_API near_status near_load_pool(near_load *load, unsigned pool);

/* Answer with a copy of `value`.  NEAR_OK; NEAR_ERR_TOO_LARGE (over l2.max_value) and NEAR_ERR_NOMEM: the load has been
 * answered with that failure. */
NEAR_API near_status near_load_set(near_load *load, near_bytes value);

/* Answer with memory that the library takes over, without copying: `release(data)` is called once, from any thread, soon
 * after the last holder has let go, once no reader can be looking at it any more (also when this call fails).  L1 is a
 * holder while it keeps the value.  `release` may be NULL.  As near_load_set() otherwise.
 * `release` runs wherever that is noticed, perhaps on the bus's thread or the scheduler's: it must not block and must not
 * close a client or a cache. */
NEAR_API near_status near_load_adopt(near_load *load, void *data, size_t size, void (*release)(void *data));

/* The value that this load is to replace, for a conditional query to the store; NULL when there is none.  Borrowed until the load
 * is answered. */
NEAR_API const near_value *near_load_previous(const near_load *load);

/* Answer that the previous value is still right: it gets a new TTL, and keeps its tags, besides those that this load names.  As
 * near_load_set(), TOO_LARGE also when these are more than 16 together; NEAR_ERR_INVALID when there is no previous value (the load
 * has then been answered with NEAR_ERR_LOADER). */
NEAR_API near_status near_load_unchanged(near_load *load);

/* What this load is answered with goes to those who wait for it and is stored nowhere.  Before the answer. */
NEAR_API void near_load_unkept(near_load *load);

/* Label the value: near_invalidate_tag() makes everybody forget all values with that tag.  Up to 16 tags of 1 to 255 bytes; before
 * the answer.  NEAR_OK; NEAR_ERR_INVALID (empty), NEAR_ERR_TOO_LARGE (a tag or their number), NEAR_ERR_NOMEM: the load goes on
 * without that one. */
NEAR_API near_status near_load_tag(near_load *load, const char *tag);

/* Answer that the store has no such thing: callers get NEAR_NOT_FOUND, remembered for `negative_ttl`. */
NEAR_API void near_load_not_found(near_load *load);

/* Answer that loading failed, with a negative status of the loader's choice (anything else counts as NEAR_ERR_LOADER).
 * Nothing is cached; everybody waiting gets this status, or the stale value where there is one within grace; and for a
 * pause (load.retry) those who come later, too. */
NEAR_API void near_load_fail(near_load *load, near_status status);

typedef struct near_fetch_options {
    size_t   struct_size; /* NEAR_FETCH_OPTIONS_INIT */
    unsigned flags;       /* NEAR_SKIP_L1 | NEAR_NO_FILL */
    /* bound on the caller's whole wait, whatever L2 and the loader do; negative: none but the cache's own timeouts.  At
     * the deadline each key has its value, a stale one within grace, or NEAR_ERR_TIMEOUT; the rest goes on and is cached */
    int64_t timeout_ms;
    int64_t ttl_ms; /* TTL of what gets loaded; the loader's near_load_ttl() wins; negative: `ttl` */
} near_fetch_options;
/* clang-format off */
#define NEAR_FETCH_OPTIONS_INIT { sizeof(near_fetch_options), 0, -1, -1 }
/* clang-format on */

/**
 * Get a value, loading it if neither L1 nor L2 has it.  Concurrent callers of one key share one load (single-flight); a
 * write or invalidation of the key while it loads starts a new one for those who come after it.  While another instance
 * loads the key, its fill is waited for (lease).
 *
 * A value past its TTL is, within `grace`, served at once, flagged stale, and refreshed in the background; with
 * loader.soft_timeout it is served only when the loader takes longer than that or fails.  After a failure the key is not
 * loaded again before a pause is over (load.retry): till then callers get the stale value, or the same failure.
 * A value in use is refreshed before its TTL ends (early_refresh.beta), so its readers wait for nobody.
 *
 * @param value  on NEAR_OK a held value; otherwise NULL.
 * @return NEAR_OK; NEAR_NOT_FOUND; NEAR_ERR_LOADER or the loader's own status; NEAR_ERR_TIMEOUT (timeout_ms or
 *         loader.hard_timeout: the load goes on and is cached); NEAR_ERR_UNAVAILABLE (only by
 *         coherence.on_disconnect=fail); NEAR_ERR_BUSY when there was no place in the load budget within
 *         load.queue_timeout, and for a loader asking for the key it is loading; NEAR_ERR_INVALID, also when the cache has
 *         no loader; NEAR_ERR_TOO_LARGE, NEAR_ERR_NOMEM, NEAR_ERR_FORKED, NEAR_ERR_CLOSED.  A failing L2 is never a
 *         reason to fail here.
 * Upholds G1, G2 and G8 (one load per key, in this process and, by leases, over all instances).
 * Threads: any.   Blocks: never on an L1 hit; else for L2, for the loader or another's and, where that runs on this thread,
 * up to l2.timeout for storing what was loaded; never longer than timeout_ms.
 */
NEAR_API near_status near_fetch(near_cache *cache, near_bytes key, const near_fetch_options *options,
                                near_value **value);

/* near_fetch() for many keys: L1 once, L2 once, and one call of the loader for everything that nobody else is loading
 * already (in parts where the load budget asks for it; together with other calls' keys where load.gather says so).
 * Arrays and return value as in near_get_many(). */
NEAR_API near_status near_fetch_many(near_cache *cache, const near_bytes *keys, size_t n,
                                     const near_fetch_options *options, near_value **values,
                                     near_status *statuses);

/* ------------------------------------------------------------------------------------------------ writing
 *
 * Down to near_fence(), these touch the caches, not the store: write to the store first, then put or remove (or let
 * near_update() do both).  When one returns NEAR_OK, no read
 * in this process that starts later returns an older value (G1), and the invalidation has been handed to the bus.  An
 * error means the write is not acknowledged: it may or may not have reached L2; this process has dropped its own copy.
 */

typedef struct near_put_options {
    size_t   struct_size; /* NEAR_PUT_OPTIONS_INIT */
    unsigned flags;       /* NEAR_NO_FILL: write L2, do not keep in L1 | NEAR_IF_ABSENT (near_put() only) */
    int64_t  timeout_ms;  /* bound on the L2 part; negative: l2.timeout */
    int64_t  ttl_ms;      /* 0: never expires; negative: `ttl` */
    const char *const
          *tags; /* labels for near_invalidate_tag(), see near_load_tag(); may be NULL when tag_count is 0 */
    size_t tag_count;
    /* near_put() only: put only while the version that this value was read from is still the newest one; NULL: whatever is
     * there.  Borrowed for the call.  Not together with NEAR_IF_ABSENT */
    const near_value *unchanged;
    /* the pool of L1 that it is kept in (near_pool_number()); 0: see near_cache_set_pool_fn() */
    unsigned pool;
} near_put_options;
/* clang-format off */
#define NEAR_PUT_OPTIONS_INIT { sizeof(near_put_options), 0, -1, -1, NULL, 0, NULL, 0 }
/* clang-format on */

/**
 * Write a value to both tiers and tell the other instances.
 *
 * With NEAR_IF_ABSENT, or with options->unchanged, of any number of instances that try at the same moment one at most gets NEAR_OK, the
 * others NEAR_ERR_CONFLICT, and what is there stays.  The judge is L2 (L1 where there is nothing else): what has expired or was evicted
 * there is absent, and has changed.  A value known not to exist is absent; bytes in L2 that are no entry of this library's may count as
 * there until they are removed.
 * @param value  copied; at most l2.max_value bytes, else NEAR_ERR_TOO_LARGE and nothing is changed anywhere.
 * @return NEAR_OK; NEAR_ERR_CONFLICT; NEAR_ERR_UNSUPPORTED for `unchanged` when its version is not known: with l2.envelope = none, for
 *         a counter, for a change of near_update() that the store has not got yet (write.policy = back), and for a value that was loaded
 *         but not to be stored in L2 (one that could not be stored is in conflict); NEAR_ERR_TIMEOUT (unknown outcome), NEAR_ERR_UNAVAILABLE, NEAR_ERR_DENIED, NEAR_ERR_PROTOCOL;
 *         NEAR_ERR_BUSY (with a condition and without L2: a near_update() of the key, or of one that shares its fence, is under way);
 *         NEAR_ERR_TOO_LARGE, NEAR_ERR_INVALID, NEAR_ERR_NOMEM, NEAR_ERR_FORKED.
 * Threads: any.   Blocks: up to l2.timeout, and once more when the outcome is unknown or refused: then the key is removed
 * and the others are told, as far as the server can be reached.
 */
NEAR_API near_status near_put(near_cache *cache, near_bytes key, near_bytes value,
                              const near_put_options *options);

/* near_put() for many keys: one exchange with each server and one invalidation message per 512 keys or 64 KiB of keys.
 * statuses[i] as near_put(); it may not be NULL.  Not atomic over keys.  Returns NEAR_OK or the first error. */
NEAR_API near_status near_put_many(near_cache *cache, const near_bytes *keys, const near_bytes *values,
                                   size_t n, const near_put_options *options, near_status *statuses);

/* Remove a key from both tiers and tell the other instances.  NEAR_OK whether it was there or not; errors as near_put().
 * A load of the key that is under way will not be cached. */
NEAR_API near_status near_remove(near_cache *cache, near_bytes key);

/* near_remove() for many keys, in parts like near_put_many().  statuses[i] as near_remove(); it may not be NULL.  Returns
 * NEAR_OK or the first error. */
NEAR_API near_status near_remove_many(near_cache *cache, const near_bytes *keys, size_t n,
                                      near_status *statuses);

/* Declare a key's value stale in both tiers and tell the other instances: the next fetch waits for the loader, and gets the old
 * value, flagged, only within `grace` and only if the load fails or takes longer than loader.soft_timeout.  near_get() answers
 * NEAR_MISS meanwhile.  A load of the key that is under way will not be cached.  Without grace, with l2.envelope = none, and for what is
 * only known not to exist, this is near_remove().  Errors as near_put(). */
NEAR_API near_status near_expire(near_cache *cache, near_bytes key);

/**
 * Forget every value of this cache that carries `tag`, in L2 and in every instance, in O(1), however many there are: what was there
 * is never answered again (its memory returns by TTL and eviction).  A load that is under way when its tag is invalidated serves
 * those who asked before and is not kept.  Upholds G1, and G3 towards other instances: L2 first, then the message.  Where no bus tells
 * of it, other instances notice with reads of L2 10 ms later, and in L1 after l1.max_ttl.
 * @param tag  1 to 255 bytes.
 * @return as near_clear(); NEAR_ERR_INVALID, NEAR_ERR_TOO_LARGE.
 * Threads: any.   Blocks: for some four exchanges with L2, l2.timeout in all; once more when that failed, to tell the others.
 */
NEAR_API near_status near_invalidate_tag(near_cache *cache, const char *tag);

/**
 * Forget every value of this cache whose key begins with `prefix`, in L2 and in every instance.  L2 is looked through from end to end
 * (SCAN and UNLINK, in small steps on connections of its own, on a cluster at every primary): that takes a second for some
 * hundred thousand keys, whoever's they are.  Labels that are known when a value is stored are better served by tags.
 * All instances empty this cache's L1, which does not know its keys' beginnings.  A load that is under way serves those who asked
 * before and is not kept.  A value written meanwhile may be forgotten as well.  Upholds G1, and G3 towards other instances: L2
 * first, then the message.
 * @param prefix  any bytes, up to 64 KiB; empty: every key.
 * @return NEAR_OK: all of it is gone; NEAR_ERR_UNSUPPORTED where L2 cannot find keys (memcached: use tags); NEAR_ERR_TIMEOUT
 *         after prefix.timeout, NEAR_ERR_UNAVAILABLE, NEAR_ERR_DENIED, NEAR_ERR_PROTOCOL: some may be left, and it is begun anew
 *         in the background until it has succeeded (coherence.max_pending), while this process believes nothing L2 says of
 *         such keys; NEAR_ERR_INVALID, NEAR_ERR_TOO_LARGE, NEAR_ERR_NOMEM, NEAR_ERR_FORKED.
 * Threads: any.   Blocks: up to prefix.timeout.  Stats: prefix_invalidations, prefix_removed (grows while it works).
 */
NEAR_API near_status near_invalidate_prefix(near_cache *cache, near_bytes prefix);

/* Forget everything of this cache, in L2 and in every instance, in O(1): what was there is never answered again (its
 * memory in L2 returns by TTL and eviction).  Errors as near_put(); NEAR_ERR_UNSUPPORTED with l2.envelope = none, whose entries do
 * not say what they belong to: nothing is forgotten then.  Threads: any.  Blocks: as near_put(). */
NEAR_API near_status near_clear(near_cache *cache);

/**
 * Reads that start after this returns NEAR_OK see every write that any instance had acknowledged before the call (G2+).
 * Callers in flight share one round trip.
 * @param timeout_ms  negative: l2.timeout.
 * @return NEAR_OK (at once where no tier is shared); NEAR_ERR_TIMEOUT, NEAR_ERR_UNAVAILABLE when the bus cannot say;
 *         NEAR_ERR_UNSUPPORTED where L2 is shared but there is no bus; NEAR_ERR_FORKED, NEAR_ERR_INVALID.
 * Threads: any.   Blocks: up to timeout_ms.
 */
NEAR_API near_status near_fence(near_client *client, int64_t timeout_ms);

#define NEAR_WRITE_TOKEN_SIZE 64

/**
 * Name the newest acknowledged write of the calling thread through this client (a put, removal, expiry, clear or invalidation), so that
 * another process can wait until it has seen it: near_fence_token().  The text has letters and digits only and fits a header or a
 * cookie; it tells nothing of keys or values.  Take it in the thread that wrote; of a thread whose writes are not remembered (it has
 * written nothing, or through many clients since) the token is one that always costs a round trip.
 * @return NEAR_OK; NEAR_ERR_UNSUPPORTED where L2 is shared but there is no bus; NEAR_ERR_INVALID, NEAR_ERR_FORKED: token is "".
 * Threads: any.   Blocks: never.
 */
NEAR_API near_status near_write_token(near_client *client, char token[NEAR_WRITE_TOKEN_SIZE]);

/**
 * Reads that start after this returns NEAR_OK see the write that the token names, and all that were acknowledged before it.  When this
 * process has applied it already that is known without a round trip; else, also of a sender that is not known or has gone, this
 * is near_fence().
 * @param token  of any process with the same bus.
 * @return as near_fence(); NEAR_ERR_INVALID for what is no token.
 * Threads: any.   Blocks: up to timeout_ms (negative: l2.timeout).
 */
NEAR_API near_status near_fence_token(near_client *client, const char *token, int64_t timeout_ms);

/* ------------------------------------------------------------------------------------- writing to the store
 *
 * near_update() and near_erase() change the store and the caches in one call, by write.policy:
 *
 *   through  (default) L2's entry is marked as being changed, the store is written, the mark is replaced by the new value.  Readers
 *            neither take what is marked nor fill over it; they load.  A writer that dies at any point leaves nothing stale behind.
 *   back     the change is kept here (and in write_back.journal, where one is set), and acknowledged; the store gets it later, in
 *            batches and in order per key.
 *   around   the store is written, then both tiers forget the key.
 *
 * doc/guarantees.md says what each promises when a process, the server or the store fails.
 */

/**
 * The application's way to its store: a batch of changes to be made, each answered exactly once by near_write_done() or
 * near_write_fail(); inside the call or later, from any thread.  A write that has been answered must not be touched again.
 * `writes` may be read until the last of them is answered.  No key occurs twice in a batch.
 *
 * What is not answered within store.timeout counts as unknown: the store may have made the change, or may make it yet.  A change is
 * never given to the store again by near_update() itself; with write.policy = back it is, until it is answered.
 *
 * It runs with no lock held: on the thread of near_update() (through, around), or on a thread of the client's (back).  It must be safe
 * to run on several threads at once.  It may call the library, but must not write to a key it has been given.
 */
typedef void (*near_store_fn)(near_write *writes[], size_t n, void *ctx);

/* Set the store of a cache, before the first near_update() or near_erase().  With write_back.journal, what an earlier process left
 * undone is handed to it from here on.  Threads: one, before others use the cache.  Blocks: never. */
NEAR_API void near_cache_set_store(near_cache *cache, near_store_fn fn, void *ctx);

/* The key to change; valid until the write is answered. */
NEAR_API near_bytes near_write_key(const near_write *write);

/* The new value; `data` is NULL for an erase, and not NULL for an empty value.  Valid until the write is answered. */
NEAR_API near_bytes near_write_data(const near_write *write);

/* Who numbered this write: with write_back.journal a random number of the journal's, the same after a restart; else one of the
 * client's.  Together with near_write_sequence() it names a write for ever: a store that remembers, with the key, the last pair it
 * has applied, and leaves out what is not newer, applies each write exactly once. */
NEAR_API uint64_t near_write_origin(const near_write *write);

/* The write's number: 1 and up, growing per origin.  A write that is handed over again has the number it had. */
NEAR_API uint64_t near_write_sequence(const near_write *write);

/* write.policy = back: whether another instance has, or may have, written the key since this change was accepted.  The store may make
 * the change all the same (the last one wins), or keep what it has by near_write_fail(write, NEAR_ERR_CONFLICT): then the change is
 * dropped, not tried again, and the caches forget the key.  With a bus, a change by an instance is known when its message has arrived;
 * without one, only while the other's value lies in L2.  Valid until the write is answered.  Threads: any. */
NEAR_API bool near_write_conflict(const near_write *write);

/* Answer that the store holds the change, for good.  Threads: any.  Blocks: never. */
NEAR_API void near_write_done(near_write *write);

/* Answer that the change was not made, with a negative status of the store's choice (anything else counts as
 * NEAR_ERR_UNAVAILABLE).  NEAR_ERR_TIMEOUT says that it is not known whether it was made.  Threads: any.  Blocks: never. */
NEAR_API void near_write_fail(near_write *write, near_status status);

/**
 * Give a key a new value, in the store and in the caches.
 * @param value    copied; at most l2.max_value bytes.
 * @param options  timeout_ms bounds each exchange with L2, not the store (store.timeout does); ttl_ms, tags and NEAR_NO_FILL as in
 *                 near_put().  NEAR_IF_ABSENT and `unchanged` are refused: the store is the judge of that.
 * @return NEAR_OK: the store has it (back: it will), and no read that starts later in this process, or in another one after the
 *         message has arrived there, returns an older value.
 *         That L2 or the bus is in trouble is no failure (but see write.without_l2): then the key is removed and announced
 *         as soon as that is possible, this process believes nothing that L2 says of it before, and other instances
 *         may read the old value until then.
 *         NEAR_ERR_TIMEOUT: the store has it, or may have it, or may get it yet.  What the caches held is removed, at once or as
 *         soon as L2 can be reached.
 *         Everything else: the store has not got it, and the caches were left as they were, or emptied:
 *         what the store answered; NEAR_ERR_UNAVAILABLE, NEAR_ERR_DENIED, NEAR_ERR_PROTOCOL (write.without_l2 = refuse: L2 could not be
 *         marked, so the store was not asked); NEAR_ERR_BUSY (back: write_back.max_pending; or no room in the journal);
 *         NEAR_ERR_UNSUPPORTED (no store); NEAR_ERR_TOO_LARGE, NEAR_ERR_INVALID, NEAR_ERR_NOMEM, NEAR_ERR_FORKED, NEAR_ERR_CLOSED.
 * Upholds G1, G2, G3; with write_back.journal G7.
 * Threads: any; two at once for one key are done in the order in which the store does them, and no cache keeps the loser.
 * Blocks: through and around: for the store, up to store.timeout, and for L2, as near_put(), once before it and once after; back: for
 * the journal (write_back.fsync) and for room (write_back.max_pending).
 */
NEAR_API near_status near_update(near_cache *cache, near_bytes key, near_bytes value,
                                 const near_put_options *options);

/* Remove a key from the store and from both tiers.  As near_update(). */
NEAR_API near_status near_erase(near_cache *cache, near_bytes key);

/**
 * Wait until every change that was acknowledged before the call, in all caches of the client, is in the store (write.policy = back;
 * others have nothing to wait for).
 * @param timeout_ms  0: do not wait; negative: for as long as it takes.
 * @return NEAR_OK; NEAR_ERR_TIMEOUT; NEAR_ERR_UNAVAILABLE when some were put aside as the store refused them; NEAR_ERR_UNSUPPORTED when
 *         the journal had changes for a cache that has no store yet; NEAR_ERR_INVALID,
 *         NEAR_ERR_FORKED, NEAR_ERR_CLOSED.
 * Threads: any.   Blocks: up to timeout_ms.
 */
NEAR_API near_status near_flush(near_client *client, int64_t timeout_ms);

/* ------------------------------------------------------------------------------------------------ counters */

/**
 * Add to a counter that lives in L2, in one step on its server: of concurrent callers, each gets a result of its own.
 *
 * A counter's entry is its decimal text alone, without envelope (on Redis and memcached other programs may read it, and INCRBY it).
 * near_get() and near_fetch() answer that text, from L2 each time: counters are not kept in L1 (but with l2.envelope =
 * none they are values like all).  near_remove() removes it, a put
 * replaces it.  Having no envelope it has no tags, is not forgotten by near_clear(), and is not known by checksum or key.
 * @param delta    added when there is a counter; may be negative, or 0 to read it.
 * @param initial  the counter's value when there is none; `delta` is not added to it then.  It gets the cache's `ttl`, from its
 *                 creation on.
 * @param result   the counter's value after the call, on NEAR_OK; may be NULL.
 * @return NEAR_OK; NEAR_ERR_CONFLICT: there is a value that is no counter, or the key is being changed by near_update();
 *         NEAR_ERR_INVALID also where the sum does not fit into 64 bits, and the counter is as it was;
 *         NEAR_ERR_TIMEOUT: not known whether it was added: it is never tried again; NEAR_ERR_UNAVAILABLE, NEAR_ERR_DENIED,
 *         NEAR_ERR_PROTOCOL: it was not; NEAR_ERR_BUSY: nor, as others were always quicker; NEAR_ERR_UNSUPPORTED without L2, where
 *         the backend cannot, and in a cache with l2.mac_key_file (a counter has no MAC); NEAR_ERR_TOO_LARGE, NEAR_ERR_NOMEM, NEAR_ERR_FORKED.
 * Threads: any.   Blocks: up to l2.timeout.
 */
NEAR_API near_status near_add(near_cache *cache, near_bytes key, int64_t delta, int64_t initial,
                              int64_t *result);

/* ------------------------------------------------------------------------------------------------- fields
 *
 * Values by (entity, field), as feature stores keep them: of each of n entities the same m fields, hundreds of cells per call.  L1
 * has each cell by itself.  In L2 an entity is a hash (`HSET entity field value`: plain values, written by whomever; fields.layout,
 * fields.key_prefix, fields.names), and what L1 lacks is asked for with one HMGET per entity, all in one exchange with each server; on
 * a server without hashes (memcached) each cell is an entry of its own, all in one multi-get.
 *
 * A cell's value comes from the first that has one: the caller (options->given), L1, L2, the store (the cache's loader, see
 * near_load_field()), the field's declared preset.  With hashes, what the loader brings is kept in L1 alone: the hash is for who
 * writes it, which may be near_fields_put_many().
 *
 * Freshness is that of near_get(), and cells are invalidated as keys are, with these differences: what L2 has as a hash carries nothing
 * of this library's, so near_clear() and near_fields_invalidate() empty the L1s and leave the hashes alone; where the server tells of
 * changes (coherence.mode = tracking), a change of the hash by anybody makes all L1s forget that entity; and two reads of L2 that
 * overlap a write of another instance may, until its message has come, be kept in either order.  A hash that lies under the key of
 * near_put(entity), as it does by default, is removed by near_remove(entity).
 * A cache may have keys and fields; an entity must not end in a NUL and 'F'.  Of rollout.*: a cell takes part by the hash of its entity,
 * and when a pattern of rollout.allow matches its entity or its field's name; of hashes, cells that take no part are read past L1, and a
 * dry run reads all of them so, and compares.
 */

typedef uint32_t near_field; /* XXH32 of its name, seed 0; or any number that writers and readers agree on */

#define NEAR_FIELD_NAME_MAX 512 /* bytes */

typedef struct near_field_options {
    size_t     struct_size; /* NEAR_FIELD_OPTIONS_INIT */
    near_bytes preset;      /* what a cell has when nothing else is to be had; data NULL: none.  Copied */
    int64_t    ttl_ms; /* in L1, and in L2 where each cell is an entry; 0: never expires; negative: `ttl` */
} near_field_options;
/* clang-format off */
#define NEAR_FIELD_OPTIONS_INIT { sizeof(near_field_options), { NULL, 0 }, -1 }
/* clang-format on */

/**
 * Declare a field by its name.  Again: what is said last holds, for calls that begin later.
 * @param name     1 to NEAR_FIELD_NAME_MAX bytes.  Copied.
 * @param options  NULL: no preset, the cache's TTL.
 * @param field    on NEAR_OK its number; else 0.
 * @return NEAR_OK; NEAR_ERR_CONFLICT when another registered name has the same number (`error` names both);
 *         NEAR_ERR_INVALID, NEAR_ERR_TOO_LARGE (the name, or the preset over l2.max_value), NEAR_ERR_NOMEM, NEAR_ERR_CLOSED,
 *         NEAR_ERR_FORKED.
 * Threads: any.   Blocks: never.
 */
NEAR_API near_status near_field_register(near_cache *cache, const char *name,
                                         const near_field_options *options, near_field *field,
                                         near_error *error);

/* The same for a field that is known by its number alone.  Fields of which nothing was declared can be read and written, too: they
 * have no preset and the cache's TTL. */
NEAR_API near_status near_field_number(near_cache *cache, near_field field,
                                       const near_field_options *options);

typedef struct near_fields_options {
    size_t   struct_size; /* NEAR_FIELDS_OPTIONS_INIT */
    unsigned flags;       /* NEAR_SKIP_L1 | NEAR_ONLY_L1 | NEAR_NO_FILL */
    /* bound on the whole call; negative: l2.timeout for L2 and the loader's own bounds.  At the deadline cells that have no value yet
     * have their preset (status NEAR_ERR_TIMEOUT); they go on being asked for in the background, and are cached */
    int64_t timeout_ms;
    /* NULL, or n * m values as in the results: where data is not NULL, that is the cell's value and nobody is asked */
    const near_bytes *given;
} near_fields_options;
/* clang-format off */
#define NEAR_FIELDS_OPTIONS_INIT { sizeof(near_fields_options), 0, -1, NULL }
/* clang-format on */

/**
 * Read m fields of n entities.
 * @param entities  n names, any bytes, up to 64 KiB less 16 (of hashes: what the server takes, with fields.key_prefix).
 * @param fields    m numbers, no two alike.
 * @param values    array of n * m, row by row: values[e * m + f] is field f of entity e.  A held value or NULL; each is given back
 *                  with near_value_release().  near_value_get_info() tells where it came from (NEAR_FROM_CALLER, NEAR_FROM_L1,
 *                  NEAR_FROM_L2, NEAR_FROM_LOADER, NEAR_FROM_DEFAULT), its age, and whether it is stale: within `grace`, and only
 *                  when L2 and the loader failed.
 * @param statuses  array of n * m, or NULL.  NEAR_OK: the value is the cell's.  Else it is the preset, if there is one, and the
 *                  status says why: NEAR_NOT_FOUND (the hash or the store has none), NEAR_MISS (not in the caches, and there is no
 *                  loader), NEAR_ERR_TIMEOUT, NEAR_ERR_UNAVAILABLE or whatever the loader said.
 * @return NEAR_OK when every cell has a value or an answer (>= 0); else the first error of a cell without a value.
 * Threads: any.   Blocks: up to timeout_ms.
 */
NEAR_API near_status near_fields_get_many(near_cache *cache, const near_bytes *entities, size_t n,
                                          const near_field *fields, size_t m,
                                          const near_fields_options *options, near_value **values,
                                          near_status *statuses);

enum {
    NEAR_CELL_STALE = 0x80 /* in a mask: beside the source */
};

/**
 * The same into one dense matrix: no values to release.
 * @param matrix      n * m cells of `cell_bytes`, row by row, at any alignment.  A shorter value is followed by zeros; a cell without
 *                    a value is zeros.
 * @param cell_bytes  a longer value counts as none: NEAR_ERR_TOO_LARGE; so does an object whose codec does not keep the bytes.
 * @param mask        array of n * m, or NULL: each cell's near_source, 0 where there is no value, plus NEAR_CELL_STALE.
 */
NEAR_API near_status near_fields_get_into(near_cache *cache, const near_bytes *entities, size_t n,
                                          const near_field *fields, size_t m,
                                          const near_fields_options *options, void *matrix, size_t cell_bytes,
                                          uint8_t *mask, near_status *statuses);

/**
 * Write m fields of n entities to both tiers, and tell the other instances which cells to forget: one HSET per entity and one message,
 * in one exchange (on Redis one step), per 512 entities, 512 fields and 64 KiB of names of cells.  On a server without hashes: one
 * exchange and one message per field.
 * @param values    n * m, row by row; data NULL: that cell stays as it is (status NEAR_OK).
 * @param options   ttl_ms: of the whole hash; 0 or negative: as it has (with keys: as in near_put_many(), a field's own TTL wins).  No
 *                  tags (NEAR_ERR_UNSUPPORTED) and no conditions (NEAR_ERR_INVALID).
 * @param statuses  array of n * m, not NULL: as near_put().  An error means that the write is not acknowledged: it may or may not have
 *                  been made; this process has dropped its own copy, and the others were told if they could be.
 * @return NEAR_OK or the first error.  Upholds G1 and G3 as near_put().
 * Threads: any.   Blocks: up to l2.timeout for each exchange.
 */
NEAR_API near_status near_fields_put_many(near_cache *cache, const near_bytes *entities, size_t n,
                                          const near_field *fields, size_t m, const near_bytes *values,
                                          const near_put_options *options, near_status *statuses);

/* Forget one field of all entities, in O(1) and by one message: after a feature was computed anew, say.  It is near_invalidate_tag() with
 * a tag that all its cells have, "@field:" and eight hexadecimal digits; hashes in L2 stay as they are, and are read again. */
NEAR_API near_status near_fields_invalidate(near_cache *cache, near_field field);

/* Inside a loader: which cell is wanted.  `entity` is borrowed until the load is answered.  NEAR_OK; NEAR_ERR_INVALID: it is a key and no
 * cell.  Threads: any. */
NEAR_API near_status near_load_field(const near_load *load, near_bytes *entity, near_field *field);
/* ---------------------------------------------------------------------------------------------- owners of keys */

/* One of those who share keys out among themselves. */
typedef struct near_member {
    near_bytes name;   /* its own, the same bytes wherever it is asked for */
    uint32_t   weight; /* its part of the keys, in proportion to the others' weights; 0: none */
} near_member;

/**
 * Which member of a fleet owns a key, by weighted rendezvous hashing (highest random weight; Thaler and Ravishankar): so that requests
 * for a key can be sent where its value is in L1, and each instance's L1 holds its part instead of the same as all others.
 *
 * Everybody who asks with the same names and weights gets the same answer, in whatever order they stand, on every machine and in every
 * later version: hashes are XXH64, and there is no floating point.  When a member joins, leaves or gets another weight, keys move from or
 * to that one alone, and no more of them than its part changes by.  Takes some 50 ns for each member.
 * @param members  names of any bytes, each one once; borrowed for the call.
 * @return its index; `n` when there is none (n is 0, or every weight).
 * Threads: any.   Blocks: never.
 */
NEAR_API size_t near_owner(const near_member *members, size_t n, near_bytes key);

/**
 * The first `most` owners of a key, best first: the one of near_owner(), then the one that it would be without that one, and so on.  For
 * copies, and for whom to ask while the owner is away.
 * @param owners  indices are written here, `most` at most.
 * @return how many: fewer than `most` where fewer members have a weight.
 * Threads: any.   Blocks: never.
 */
NEAR_API size_t near_owners(const near_member *members, size_t n, near_bytes key, size_t *owners,
                            size_t most);

/* ------------------------------------------------------------------------------------------------- seeing */

/* Every counter once: field, kind (c: only grows; g: a level; C, G: the same, but of the client as a whole, not of its caches one by
 * one), unit, help. */
#define NEAR_STATS_TABLE(X)                                                                                  \
    X(requests, c, "keys", "keys asked for by get and fetch")                                                \
    X(hits_l1, c, "keys", "answered from this process's memory")                                             \
    X(hits_l2, c, "keys", "answered by the shared tier")                                                     \
    X(misses, c, "keys", "in neither tier")                                                                  \
    X(negative_hits, c, "keys", "answered 'does not exist' from a tier")                                     \
    X(stale_served, c, "keys", "served flagged stale: past the serve window, or past the TTL within grace")  \
    X(loads, c, "keys", "keys given to a loader")                                                            \
    X(load_calls, c, "calls", "times a loader was called")                                                   \
    X(load_failures, c, "keys", "loads answered with a failure")                                             \
    X(coalesced, c, "keys", "callers that waited for somebody else's load")                                  \
    X(flights_detached, c, "keys", "loads overtaken by a write: later callers loaded anew")                  \
    X(puts, c, "keys", "keys written")                                                                       \
    X(removes, c, "keys", "keys removed")                                                                    \
    X(clears, c, "calls", "caches cleared by this process")                                                  \
    X(write_failures, c, "keys", "puts and removes not acknowledged")                                        \
    X(l1_fills, c, "entries", "entries admitted to L1")                                                      \
    X(l1_fills_refused, c, "entries", "fills refused by a fence: a write came in between")                   \
    X(l1_evictions, c, "entries", "entries that left L1 for room")                                           \
    X(l1_expired, c, "entries", "entries that left L1 by their TTL")                                         \
    X(l1_too_large, c, "entries", "entries not admitted to L1 for their size")                               \
    X(l1_entries, g, "entries", "entries in L1 now")                                                         \
    X(l1_bytes, g, "bytes", "memory of L1 now, overhead included")                                           \
    X(l2_requests, c, "exchanges", "batches sent to L2")                                                     \
    X(l2_errors, c, "keys", "keys L2 could not answer")                                                      \
    X(l2_corrupt, c, "entries", "L2 entries refused: corrupt, truncated or foreign bytes")                   \
    X(l2_wrong_key, c, "entries", "L2 entries refused: another key's")                                       \
    X(l2_old_generation, c, "entries", "L2 entries refused: written before a clear")                         \
    X(l2_connects, C, "connections", "connections to L2 opened")                                             \
    X(l2_disconnects, C, "connections", "connections to L2 dropped for an error")                            \
    X(leases_won, c, "keys", "leases taken")                                                                 \
    X(leases_lost, c, "keys", "leases held by another instance")                                             \
    X(l2_fills, c, "entries", "entries stored in L2 after a load")                                           \
    X(l2_fills_refused, c, "entries", "L2 fills refused: the lease was voided by a write")                   \
    X(gate_closed_reads, c, "keys", "reads that went past L1 because the serve gate was closed")             \
    X(bus_sent, C, "messages", "messages sent: invalidations, clears, fills")                                \
    X(bus_send_failures, C, "messages", "messages that could not be sent")                                   \
    X(bus_received, C, "messages", "messages of other instances applied")                                    \
    X(bus_keys_received, C, "keys", "keys in them")                                                          \
    X(bus_filled_received, C, "keys", "keys other instances announced as filled")                            \
    X(bus_echoes, C, "messages", "own messages heard and skipped")                                           \
    X(bus_bad_messages, C, "messages", "messages that made no sense: L1 was flushed")                        \
    X(bus_gaps, C, "gaps", "gaps in a sender's numbers: L1 was flushed")                                     \
    X(bus_flushes, C, "flushes", "times all of L1 was flushed for the bus's sake")                           \
    X(bus_connects, C, "connections", "times the bus was (re)subscribed")                                    \
    X(bus_connected, G, "0 or 1", "whether the bus is subscribed now")                                       \
    X(early_refreshes, c, "keys", "refreshes begun in the background before a value's end")                  \
    X(lease_waits, c, "keys", "times another instance's load was waited for")                                \
    X(loads_throttled, c, "keys", "loads not attempted because the key's last one failed a moment ago")      \
    X(loads_refused, c, "keys", "loads not begun because the load budget was used up")                       \
    X(load_timeouts, c, "keys", "loads given up after loader.hard_timeout")                                  \
    X(hedges, c, "keys", "loads begun because L2 was slow to answer")                                        \
    X(expires, c, "keys", "keys declared stale by near_expire")                                              \
    X(tag_invalidations, c, "tags", "tags invalidated by this process")                                      \
    X(l2_old_tags, c, "entries", "L2 entries refused: one of their tags was invalidated")                    \
    X(l2_unreadable, c, "entries", "L2 entries refused: compressed in a way this build does not have")       \
    X(l2_compress_tries, c, "values", "values whose compression was tried")                                  \
    X(l2_compressed, c, "values", "values stored compressed")                                                \
    X(l2_compress_saved, c, "bytes", "bytes that compression kept off the wire and out of L2")               \
    X(l2_reads_joined, c, "keys",                                                                            \
      "reads of L2 that another thread was making already, and that served both")                            \
    X(bus_beats, C, "messages",                                                                              \
      "beats sent: what others should have heard of us, so that a lost last message is noticed")             \
    X(bus_suspicions, C, "servers",                                                                          \
      "times the bus's server was found to be another one, or no primary any more")                          \
    X(bus_recognised, G, "0 or 1",                                                                           \
      "whether the bus's servers tell who they are, so that a failover is noticed")                          \
    X(bus_tracking, G, "0 or 1", "whether the servers themselves tell of every changed key")                 \
    X(bus_changed, C, "keys", "changed keys that the servers told of")                                       \
    X(bus_storms, C, "times",                                                                                \
      "times L1 was bypassed because messages were missing or unreadable at a high rate")                    \
    X(invalidations_kept, c, "keys", "invalidations that could not be sent and were kept")                   \
    X(invalidations_settled, c, "keys", "of them: sent and confirmed later")                                 \
    X(invalidations_overflowed, c, "caches", "times there were too many and all of a cache was invalidated") \
    X(invalidations_pending, G, "keys", "kept now")                                                          \
    X(gate_open, G, "0 or 1", "whether L1 may answer as fresh now (1 where there is no bus)")                \
    X(l1_max_bytes, g, "bytes", "what l1_bytes is bounded by")                                               \
    X(l1_max_entries, g, "entries", "what l1_entries is bounded by; 0: by the bytes alone")                  \
    X(prefix_invalidations, c, "calls", "prefixes invalidated by this process")                              \
    X(prefix_removed, c, "keys", "keys removed from L2 for them")                                            \
    X(updates, c, "keys", "changes begun by near_update and near_erase, through and around")                 \
    X(update_failures, c, "keys", "of them: refused by the store, or not known whether made")                \
    X(marks_met, c, "keys", "of them: another writer was at the key, so that no value was left in L2")       \
    X(additions, c, "keys", "counters added to by near_add")                                                 \
    X(write_back_accepted, c, "writes", "changes taken to be written back")                                  \
    X(write_back_coalesced, c, "writes", "of them: replaced by a newer one before the store was given them") \
    X(write_back_stored, c, "writes", "of them: in the store")                                               \
    X(write_back_retries, c, "writes", "times that the store refused one and it was kept for another try")   \
    X(write_back_dead, c, "writes", "changes that the store refused for good: put aside")                    \
    X(write_back_conflicts, c, "writes", "changes of keys that another instance may have written meanwhile") \
    X(write_back_settled, c, "keys", "stored keys removed from L2, where something else lay by then")        \
    X(write_back_refused, c, "writes", "changes refused for want of room")                                   \
    X(write_back_reads, c, "keys", "reads answered by a change that the store has not got yet")              \
    X(write_back_replayed, c, "writes", "changes of a former life found in the journal")                     \
    X(write_back_pending, g, "writes", "changes that the store has not got yet")                             \
    X(write_back_bytes, g, "bytes", "their memory")                                                          \
    X(write_back_age_ms, G, "ms", "how long the oldest of them has waited")                                  \
    X(journal_live, G, "records", "records of journals that are not done with")                              \
    X(journal_bytes, G, "bytes", "disk space of journals")                                                   \
    X(journal_fsyncs, C, "calls", "times a journal was brought to disk")                                     \
    X(journal_failures, C, "calls", "writes and fsyncs of journals that failed")                             \
    X(journal_dead_letters, G, "writes", "dead letters in journals")                                         \
    X(audit_checked, c, "hits", "sampled L1 hits that were compared with L2 later (audit.sample)")           \
    X(audit_stale_1s, c, "hits", "of them: L1 still had a value that L2 no longer had after audit.delay")    \
    X(audit_stale_10s, c, "hits", "the same after ten times audit.delay")                                    \
    X(audit_absent, c, "hits", "of those compared: L2 had nothing any more (evicted, or removed unheard)")   \
    X(audit_skipped, c, "hits", "sampled and not compared: too many at a time, or a key over 256 bytes")     \
    X(l2_servers_down, G, "servers",                                                                         \
      "servers of L2 seen down just now, so that calls to them fail at once (the breaker is open)")          \
    X(log_requests, c, "requests", "requests written to the request log (log.requests)")                     \
    X(log_requests_dropped, c, "requests",                                                                   \
      "lost to it: too many at a time, a key over 4 KiB, or it is full")                                     \
    X(fields_defaults, c, "fields", "fields answered with their declared default")                           \
    X(fields_late, c, "fields", "fields read in the background because their caller's deadline had passed")  \
    X(decodes, c, "values", "values that the cache's codec decoded")                                         \
    X(decode_failures, c, "values", "values that it could not decode")                                       \
    X(snapshot_saves, c, "files", "snapshots of L1 that were saved (snapshot.path)")                         \
    X(snapshot_saved, c, "entries", "entries in them")                                                       \
    X(snapshot_bytes, c, "bytes", "their size")                                                              \
    X(snapshot_restored, c, "entries", "entries that came back from a snapshot")                             \
    X(snapshot_renewed, c, "entries", "of them: in the newer version that L2 had of them")                   \
    X(snapshot_dropped, c, "entries", "entries of a snapshot that did not: expired, gone, or written since") \
    X(snapshot_damaged, c, "pieces", "parts of snapshots that did not verify")                               \
    X(snapshot_failures, c, "files", "snapshots that could not be saved, not be believed, or were damaged")  \
    X(snapshot_restoring, g, "caches", "caches whose snapshot is being restored now")                        \
    X(l2_dictionary_compressed, c, "values", "of l2_compressed: with a dictionary (l2.dictionary)")          \
    X(l2_dictionary_unknown, c, "entries", "L2 entries refused: their dictionary is not in L2")              \
    X(l2_dictionaries_fetched, c, "dictionaries", "dictionaries read from L2")                               \
    X(l2_dictionaries_refused, c, "dictionaries", "refused: damaged, too large, or not the one they lie as") \
    X(rollout_outside, c, "keys", "reads that went past the cache: their keys take no part (rollout.*)")     \
    X(rollout_compared, c, "keys", "cached values compared with what was loaded (rollout.dry_run)")          \
    X(rollout_mismatches, c, "keys", "of them: not the same")                                                \
    X(rollout_mismatches_1s, c, "keys", "of those: the cached value was younger than a second")              \
    X(rollout_mismatches_10s, c, "keys", "the same, from a second to ten")                                   \
    X(rollout_mismatches_1m, c, "keys", "the same, from ten seconds to a minute")                            \
    X(rollout_mismatches_10m, c, "keys", "the same, from one minute to ten")                                 \
    X(rollout_mismatches_older, c, "keys", "the same, older than ten minutes")                               \
    X(disk_hits, c, "keys", "answered by the disk tier (disk.path)")                                         \
    X(disk_misses, c, "keys", "looked for there and not found, or not in time")                              \
    X(disk_puts, c, "entries", "taken by the disk tier when they left L1")                                   \
    X(disk_put_bytes, c, "bytes", "their size there")                                                        \
    X(disk_written_bytes, c, "bytes",                                                                        \
      "written to the disk: over disk_put_bytes it is the write amplification")                              \
    X(disk_kept, c, "entries", "left L1 and were on the disk already")                                       \
    X(disk_rejected, c, "entries", "left L1 and were not taken: disk.admission")                             \
    X(disk_dropped, c, "entries", "not taken because the disk did not keep up or failed, or for their size") \
    X(disk_forgotten, c, "entries", "left the disk tier because of an invalidation or a newer value")        \
    X(disk_evicted, c, "entries", "left the disk tier for room")                                             \
    X(disk_moved, c, "entries", "of the oldest there: were used, and written once more")                     \
    X(disk_timeouts, c, "keys", "given up after disk.timeout, or not asked because the disk hangs")          \
    X(disk_corrupt, c, "entries", "refused: what the disk gave did not verify")                              \
    X(disk_errors, c, "calls", "calls of the system that failed for the disk tier")                          \
    X(disk_confirmed, c, "entries", "of a former life: found to be right yet")                               \
    X(disk_entries, g, "entries", "in the disk tier now")                                                    \
    X(disk_bytes, g, "bytes", "disk space of its log")                                                       \
    X(disk_index_bytes, g, "bytes", "memory of its index, and of what else grows with its log")              \
    X(l2_unauthentic, c, "entries",                                                                          \
      "L2 entries refused: without a MAC, or with a wrong one (l2.mac_key_file)")

/* Every histogram of durations once: field, scope (c: of each cache; C: of the client as a whole), help.  Values that are read out
 * differ from those measured by at most 1.6 %.  An L1 hit is timed by sample: see l1_hit. */
#define NEAR_HISTOGRAM_TABLE(X)                                                                              \
    X(l1_hit, c, "an L1 hit, looked up once more for the sake of timing it: one in some thousand")           \
    X(l2_read, c, "one exchange with L2 that reads, as its caller sees it")                                  \
    X(l2_write, c, "one exchange with L2 that writes or removes, its message included")                      \
    X(load, c, "from calling the loader to its answer, for each key")                                        \
    X(fetch, c, "a near_fetch or near_fetch_many that L1 could not answer alone")                            \
    X(store, c, "from calling the store to its last answer, or to store.timeout")                            \
    X(coherence_lag, C, "from sending an invalidation to hearing it oneself, by one clock")                  \
    X(gate_closed, C, "how long L1 could not answer as fresh, each time that ended")

typedef struct near_stats {
    size_t struct_size; /* NEAR_STATS_INIT */
#define NEAR_STATS_FIELD(field, kind, unit, help) uint64_t field;
    NEAR_STATS_TABLE(NEAR_STATS_FIELD)
#undef NEAR_STATS_FIELD
} near_stats;
/* clang-format off */
#define NEAR_STATS_INIT { sizeof(near_stats) NEAR_STATS_TABLE(NEAR_STATS_ZERO) }
#define NEAR_STATS_ZERO(field, kind, unit, help) , 0
/* clang-format on */

/* Fill `stats` (initialised with NEAR_STATS_INIT) with the client's counters, summed over its caches.  Each counter is
 * exact when nothing is running; together they are not one instant's picture.  NEAR_OK, NEAR_ERR_INVALID, NEAR_ERR_FORKED,
 * NEAR_ERR_NOMEM.
 * Threads: any.  Blocks: never for long. */
NEAR_API near_status near_stats_get(near_client *client, near_stats *stats);

/**
 * The same as one JSON object, freed with near_free().  Beside the fields of near_stats: `caches`, an object that has one of its own
 * for each open cache by name, with its counters (and `pools`, by name, where it has l1.pools); and in both `histograms`, by name: count, sum, mean, p50, p90, p99, p99_9 and max,
 * in seconds.  Only those of which something was measured.  Caches with l1.curve = yes have `curve`, see near_curve_get().
 * NULL: out of memory, a NULL client, or a forked child.  Threads: any.
 */
NEAR_API char *near_stats_json(near_client *client);

/**
 * All counters and histograms as OpenMetrics 1.0 text (content type application/openmetrics-text; version=1.0.0; charset=utf-8), freed
 * with near_free(): `nearcache_requests_total{cache="users"} 17`.  Samples carry the cache's name and, where it is about L2, the
 * backend's scheme; never a key.  What caches had counted that were closed meanwhile stands in samples without a cache's name, so that
 * sums never fall.  Histograms have bounds at powers of two nanoseconds, written in seconds.
 * NULL: as near_stats_json().  Threads: any.
 */
NEAR_API char *near_stats_prometheus(near_client *client);

/* The same in Prometheus' older text format 0.0.4 (text/plain), for what does not read OpenMetrics: a node exporter's directory of text
 * files, for one. */
NEAR_API char *near_stats_prometheus_text(near_client *client);

/* How a cache's L1 would answer with other sizes: see near_curve_get(). */
typedef struct near_curve {
    size_t   struct_size; /* NEAR_CURVE_INIT */
    double   share; /* of the keys that are followed, 0 to 1.  0: nothing is known yet, and all else is 0 */
    double   requests; /* that the ratios stand for; older ones count less and less */
    uint64_t entries;  /* of an L1 that is full */
    /* of its requests, 0 to 1, those that L1 would answer with half of its memory, as it is, with twice and four times as much */
    double half, same, twice, four_times;
} near_curve;
/* clang-format off */
#define NEAR_CURVE_INIT { sizeof(near_curve), 0, 0, 0, 0, 0, 0, 0 }
/* clang-format on */

/**
 * The hit-rate curve of a cache opened with l1.curve = yes: what more memory would bring, and less would cost.  L1's policy is run beside it
 * in ghosts of these sizes for a sample of the keys (SHARDS).  With l1.policy = adaptive or lru it is right to about a point, but where hits
 * rise steeply at just that size; for others the half is to some points.  TTLs, invalidations and removals count as they do in L1, and
 * sizes of values as if they were the same for all.  The same in near_stats_json() (`curve`) and near_stats_prometheus() (nearcache_l1_hit_ratio).
 * @param curve  initialised with NEAR_CURVE_INIT.
 * NEAR_OK, also when nothing is known yet; NEAR_ERR_UNSUPPORTED: l1.curve is no, or there is no L1; NEAR_ERR_INVALID, NEAR_ERR_CLOSED,
 * NEAR_ERR_FORKED.  Threads: any.  Blocks: never for long.
 */
NEAR_API near_status near_curve_get(near_cache *cache, near_curve *curve);

enum {
    NEAR_PLAIN_KEYS = 1u << 8 /* near_hot_keys(): the keys themselves, too, not only their hashes */
};

/**
 * Which keys are asked for most, by a sample of this cache's hits and misses, as one JSON object: `requests`, how many the sample stands
 * for, and `keys`, at most 32, most wanted first: `hash` (XXH64 of the key's first 112 bytes, the same in every process), `size` in bytes,
 * `share` of the requests, give or take `error`.  What is older counts less and less.  Freed with near_free().
 * @param flags  NEAR_PLAIN_KEYS adds `key`: its first 112 bytes, those that are not ASCII as \u0080 to \u00ff.
 * NULL: out of memory, no cache, a closed client or a forked child.  Threads: any.  Blocks: never.
 */
NEAR_API char *near_hot_keys(near_cache *cache, unsigned flags);

/**
 * One key on every level, as one JSON object, for a person who wonders: `gate` (may L1 answer?), `hash` (XXH64 of the whole key), `pending`
 * (write-back: the store has not got its newest change yet), `owed` (an invalidation of it could not
 * be sent yet), `l1` and `l2` (present or not, its pool, age, size, what is left of its TTL and until it is dropped, tags, what its load took),
 * and `invalidated`: by whom last, and when, if that is remembered.  Asks L2 as a read would; changes nothing.  Freed with near_free().
 * NULL: as near_hot_keys(), and for a key that the cache cannot have.  Threads: any.  Blocks: up to l2.timeout.
 */
NEAR_API char *near_explain(near_cache *cache, near_bytes key);

#ifdef __cplusplus
}
#endif

#endif /* NEARCACHE_H */
