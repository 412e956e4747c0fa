/*
 * What a client and a cache are made of; shared by the files of client/ only.
 *
 * near_client  settings, secret, log, L2 backend, coherence, scheduler, loader pool, list of caches.  Counted: the application holds one reference, each
 *              cache one.  near_client_close() stops everything that has a thread or a wire; the memory goes with the last
 *              reference, so a load answered after the close finds closed doors, not freed memory.
 * near_cache   name, settings, L1 pool, table of flights, loader, load budget, known generation.  Counted: the application (until
 *              near_cache_close) holds one reference, each unanswered load or write and each plan in the background one.
 *
 * Locks: client->lock covers the list of caches (rank CLIENT).  Everything else has its own: see doc/architecture.md.
 * Fixed at open and read without a lock: settings, ops, traits, coherence, names, prefixes.
 */
#ifndef NEAR_CLIENT_CLIENT_H
#define NEAR_CLIENT_CLIENT_H

#include "access.h"
#include "base/hash.h"
#include "base/lock.h"
#include "base/uri.h"
#include "coherence/coherence.h"
#include "config.h"
#include "dictionaries.h"
#include "explain.h"
#include "hot.h"
#include "l1/find.h"
#include "l2/backend.h"
#include "l2/compress.h"
#include "pools.h"
#include "recovery.h"
#include "rollout.h"
#include "scheduler.h"
#include "stats.h"
#include "workers.h"

#define NEAR__KEY_MAX        (64u << 10)
#define NEAR__CACHE_NAME_MAX 64

/* ---- log: level filter, rate limit, and a short memory for messages that came before there was a callback */

#define NEAR__LOG_BACKLOG    8
#define NEAR__LOG_PER_SECOND 20
struct near__client_log {
    struct near__lock lock; /* leaf; covers all below */
    near_log_fn       fn;
    void             *ctx;
    near_log_level    level;
    int64_t           second;     /* the running second of the rate limit */
    unsigned          in_second;  /* messages in it */
    unsigned          suppressed; /* since the last delivered one */
    unsigned          kept;
    struct {
        near_log_level level;
        char           text[512];
    } backlog[NEAR__LOG_BACKLOG];
};

struct near__publish;
struct near_client {
    _Atomic unsigned refs;
    _Atomic bool     closed;
    const uint32_t  *alive; /* a page that a fork wipes: 0 in a child */
    _Atomic uint32_t
        *plain; /* in that page; 0: hits must not take the shortest path (a child; closed; audited) */
    struct near__settings   settings;
    struct near__clock      clock;
    struct near__secret     secret;
    struct near__log        log; /* handed to the other rooms; writes to log_state */
    struct near__client_log log_state;
    struct near__counters   counters; /* of no cache, and of closed ones; as the next */
    struct near__histogram  histograms[NEAR__TIMINGS];

    struct near__client_access access; /* to the servers of l2_uri and bus_uri */
    struct near__uri           l2_uri;
    struct near__uri           gutter_uri;
    const struct near_l2_ops  *ops; /* NULL: none: */
    void                      *l2;  /* the backend's self */
    struct near_l2_traits      traits;
    struct near_l2_env         env;
    char                       name[64]; /* for CLIENT SETNAME */
    char                       channel[NEAR__CHANNEL_SIZE];
    struct near__uri           bus_uri;
    struct near__coherence    *coherence; /* NULL: no bus */
    struct near__scheduler     scheduler;
    struct near__workers      *workers; /* the loader pool */
    struct near__audit        *audit;   /* NULL: off */
    struct near__publish      *publish; /* NULL: off */
    struct near__recovery      recovery;
    bool bus_on_l2; /* the bus's server is the L2's, and the backend announces: one atomic step */

    _Atomic int64_t
        boot_offset; /* what CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC: the machine slept for that long */
    int64_t            coarse_step; /* resolution of the coarse clock: it may be late by that */
    _Atomic int64_t    tick; /* the time as the scheduler tells it, to 1 ms; 0: it does not, ask the clock */
    _Atomic bool       tick_wanted;    /* somebody had to ask the clock */
    struct near__timer upkeep, ticker; /* client/upkeep.c, whose thread the next two belong to */
    unsigned           ticks_left;
    bool               ticking;

    struct near__lock      lock;         /* rank CLIENT */
    near_cache            *caches;       /* list, newest first */
    uint64_t               opened;       /* caches ever: the newest one's id */
    uint64_t               stamp_base;   /* random: where this client's stamps begin */
    _Atomic uint64_t       stamps;       /* drawn so far */
    uint64_t               write_origin; /* random: who numbers the writes where there is no journal */
    _Atomic uint64_t       write_sequence;
    struct near__journals *journals;  /* client's lock */
    struct near__packer    packer;    /* contexts of compression for all caches */
    struct near__l1_stats  closed_l1; /* counters of caches that were closed */
    unsigned               snapshots; /* being read: near__stats_keep() */
};

/* What is known of a cache's generation (client/generation.c). */
struct near__generation {
    struct near__lock lock;    /* leaf */
    uint64_t          value;   /* 0: never known */
    bool              known;   /* to be trusted while the gate is open */
    int64_t           learned; /* when it was read */
    uint64_t
        epoch; /* moved by everything that makes it doubtful; a reader installs only what it began to read in this epoch */
};

/* What is known of a cache's tags (client/tags.c). */
struct near__tag_clock {
    uint64_t lineage, moment; /* lineage 0: not known */
};
struct near__tag_seen;

/* What decodes a cache's values (client/codec.c); fixed before the cache is used, but for a snapshot that may be coming back. */
struct near__decoder {
    _Atomic bool set; /* the rest is */
    near_codec   codec;
    void        *ctx;
};

struct near__requests;
struct near__fields;
struct near__tags {
    _Atomic bool           used; /* sticky: a tag was met */
    struct near__lock      lock; /* leaf; the rest */
    struct near__tag_clock clock;
    bool                   known;
    int64_t                learned;
    uint64_t               epoch;  /* moved by everything that makes what is known of tags doubtful */
    uint64_t               doubts; /* the same for the clock: by messages about it as well */
    struct near__tag_seen *seen;   /* NULL before the first one */
};

#define NEAR__FLIGHT_STRIPES 64
#define NEAR__FLIGHT_CHAINS  16
#define NEAR__FAILURE_SLOTS  256
#define NEAR__FAILURES       1024 /* a stripe remembers no more: some megabytes in all when everything fails */
struct near__flight;
struct near__failure;
struct near__flight_stripe {
    struct near__lock      lock; /* rank FLIGHT */
    struct near__flight   *chains[NEAR__FLIGHT_CHAINS];
    struct near__failure **failures; /* NEAR__FAILURE_SLOTS chains; NULL before the first failure */
    size_t                 n_failures;
};

/* How many loads may run at a time and per second (client/budget.c). */
struct near__budget_turn;
struct near__budget {
    struct near__lock         lock;             /* leaf */
    size_t                    open;             /* keys being loaded, of those that count */
    size_t                    most;             /* 0: no bound */
    int64_t                   interval, burst;  /* ns per key and how much may come at once; 0: no bound */
    int64_t                   next;             /* when the rate alone would let the next one go */
    int64_t                   slow, slow_since; /* ns of slow start, and when it began; 0: it is over */
    struct near__budget_turn *first, **last;    /* who waits, in order */
};

/* Keys that another instance is loading (client/watch.c). */
#define NEAR__WATCH_BUCKETS 64
struct near__parked;
struct near__watch {
    struct near__lock    lock; /* leaf */
    struct near__timer   timer;
    struct near__parked *buckets[NEAR__WATCH_BUCKETS];
    size_t               n;
    bool                 closed;
};

/* Loads that wait a moment for company (client/load.c). */
struct near__gather {
    struct near__lock lock; /* leaf */
    bool              open; /* somebody collects */
    size_t            n, capacity;
    struct near__leg *legs; /* flights with a reference each */
};

/* A read of L2 that others may share (client/share.c). */
#define NEAR__SHARE_CELLS 256
struct near__cell {
    _Alignas(64) _Atomic(uintptr_t) word; /* what leads, and a bit */
    _Atomic uint32_t  epoch;              /* futex: moves when those who joined have been answered */
    struct near__lock lock;               /* leaf */
};

/* What the short paths of a hit need, copied together: each line and each step less is one that the caller's next get can begin
 * with.  Set when the cache is opened, never changed. */
struct near__shortest {
    /* the first line */
    struct near__l1_path path;
    const _Atomic uint32_t
        *quick; /* `plain`, or a 0 where there is no shortest path (a bus, write-behind, nothing kept) */
    const _Atomic uint32_t *plain; /* the client's, or a 0 where requests are logged */
    /* of the next ones as much as the key's size takes */
    struct near__secret secret;
    /* the rest */
    struct near__l1_front *front;
    struct near__l1_front *guarded; /* there is a path behind a gate: the same; else NULL */
    const _Atomic int64_t *gate, *boot_offset;
    int64_t                coarse_step;
};

struct near_cache {
    /* nothing that is written while the cache is in use shares its line, nor the one after it */
    struct near__shortest shortest __attribute__((aligned(64)));
    near_client          *client;
    near_cache           *next;
    uint64_t              id; /* counts up: the list is in falling order */
    char                  name[NEAR__CACHE_NAME_MAX + 1];
    char                  prefix[64 + NEAR__CACHE_NAME_MAX + 2]; /* of L2 keys, without the separator */
    size_t                prefix_size;
    struct near__settings settings;
    int64_t               max_ttl;       /* l1.max_ttl, or its stricter default */
    size_t wanted_bytes, wanted_entries; /* bounds of its L1 before l1.total_bytes; client's lock */
    struct near__pool_list     pools;
    _Atomic(near_pool_fn)      pool_fn; /* NULL: none */
    void                      *pool_ctx;
    struct near__l1           *l1;
    struct near__decoder       decoder;
    enum near__codec           codec; /* of what it stores in L2 */
    struct near__gain          gain;  /* and how much that has helped */
    struct near__dictionaries  dictionaries;
    uint64_t                   compress_from; /* values smaller than this never are */
    struct near__back         *back;          /* NULL: write.policy is another one */
    struct near__journal      *journal;       /* NULL: none; a reference */
    struct near__disk_tier    *disk;          /* NULL: none */
    bool                       bare;          /* l2.envelope = none: values lie in L2 as they are */
    struct near__mac          *mac;           /* NULL: entries are not sealed (l2.mac_key_file) */
    struct near__rollout      *rollout;       /* NULL: all keys, always */
    near_load_fn               loader;
    void                      *loader_ctx;
    near_store_fn              store; /* NULL: none */
    void                      *store_ctx;
    struct near__generation    generation;
    struct near__tags          tags;
    struct near__flight_stripe flights[NEAR__FLIGHT_STRIPES];
    struct near__cell          cells[NEAR__SHARE_CELLS];
    struct near__budget        budget;
    struct near__watch         watch;
    struct near__gather        gather;
    int64_t early_reach; /* ns before its end, per us of cost, from which a value may be refreshed early */
    int64_t early_most;  /* ns: never earlier */
    struct near__lock    work_lock; /* leaf: unanswered loads and writes, closing */
    pthread_cond_t       work_done;
    size_t               work_open;
    bool                 closing;      /* neither loader nor store is called any more */
    struct near__lock    intents_lock; /* leaf */
    struct near__intent *intents;      /* intents_lock; that wait for what is owed (client/intent.h) */
    uint64_t    owes_clear; /* recovery's lock, as the next: 0, or its count when this was kept last */
    near_cache *owing;
    bool        audit_over; /* the audit's lock: it is being closed */

    struct near__counters  counters;
    struct near__histogram histograms[NEAR__TIMINGS];
    _Atomic unsigned       refs;     /* moved by each message of the bus */
    struct near__hot       hot;      /* the keys asked for most */
    struct near__requests *requests; /* NULL: they are not logged */
    struct near__snap     *snap;     /* NULL: no snapshots */
    struct near__last      last;     /* invalidations, for near_explain() */
    struct near__fields   *fields;   /* client/fields.h */
};

void near__client_release(near_client *client);
void near__cache_release(near_cache *cache);

static inline int64_t
near__client_now(const near_client *client)
{
    return near__now(&client->clock);
}

/* The clock, and what readers of L1 derive their cheaper one from. */
int64_t near__client_now_exact(near_client *client);
/* For caches with a bus: the coarse clock on near__client_now()'s scale, late by coarse_step at most. */
static inline int64_t
near__now_coarse(const _Atomic int64_t *boot_offset)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec +
           atomic_load_explicit(boot_offset, memory_order_relaxed);
}

static inline int64_t
near__client_now_coarse(const near_client *client)
{
    return near__now_coarse(&client->boot_offset);
}
/* Nobody ticks: the clock, and a word to the scheduler. */
int64_t near__client_now_unticked(near_client *client);

/* The time an L1 hit is judged by, of a cache without a bus.  Where nothing depends on it none is read. */
static inline int64_t
near__client_hit_time_alone(const near_cache *cache)
{
    int64_t tick;

    if (!near__l1_timed(cache->l1))
        return 0;
    tick = atomic_load_explicit(&cache->client->tick, memory_order_relaxed);
    return tick != 0 ? tick : near__client_now_unticked(cache->client);
}

static inline int64_t
near__client_hit_time(const near_cache *cache)
{
    return cache->client->coherence != NULL ? near__client_now_coarse(cache->client)
                                            : near__client_hit_time_alone(cache);
}

/* The door of every public call: NEAR_OK, NEAR_ERR_INVALID, NEAR_ERR_FORKED, NEAR_ERR_CLOSED. */
static inline near_status
near__cache_check(const near_cache *cache)
{
    if (cache == NULL)
        return NEAR_ERR_INVALID;
    if (*cache->client->alive == 0)
        return NEAR_ERR_FORKED;
    if (atomic_load_explicit(&cache->client->closed, memory_order_relaxed))
        return NEAR_ERR_CLOSED;
    return NEAR_OK;
}

static inline near_status
near__key_check(near_bytes key)
{
    if (key.data == NULL && key.size != 0)
        return NEAR_ERR_INVALID;
    return key.size > NEAR__KEY_MAX ? NEAR_ERR_TOO_LARGE : NEAR_OK;
}

/* Nanoseconds from a call's milliseconds; negative: `preset`.  No overflow. */
static inline int64_t
near__duration(int64_t ms, int64_t preset)
{
    if (ms < 0)
        return preset;
    return ms > NEAR_NEVER / NEAR_MS ? NEAR_NEVER : ms * NEAR_MS;
}

/* May L1 answer now? */
enum near__gate {
    NEAR__GATE_OPEN,   /* as fresh */
    NEAR__GATE_STALE,  /* flagged (coherence.on_disconnect=stale) */
    NEAR__GATE_CLOSED, /* not at all */
    NEAR__GATE_FAIL    /* and reads fail at once (coherence.on_disconnect=fail) */
};
enum near__gate near__cache_gate(const near_cache *cache, int64_t now);

static inline void
near__count(const near_cache *cache, enum near__counter counter, uint64_t n)
{
    near__counters_add(&cache->counters, counter, n);
}

/* Something took that long. */
static inline void
near__time(const near_cache *cache, enum near__timing timing, int64_t ns)
{
    near__histogram_record(&((near_cache *)(uintptr_t)cache)->histograms[timing], ns);
}

void near__client_log_init(near_client *client);
void near__client_log_fini(near_client *client);

#endif
