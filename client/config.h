/*
 * The option table: every option once.  The parser, the defaults, the range checks, the environment, the manual page, `nearcache
 * config --list` and the tests are echoes of these lines.
 *
 * A near_config holds the texts that were set; near__settings holds the values, typed, of every option.
 */
#ifndef NEAR_CLIENT_CONFIG_H
#define NEAR_CLIENT_CONFIG_H

#include "base/base.h"
#include "l2/compress.h"

struct near_l2_ops;

/* Types: what a value looks like, and the field it becomes in near__settings. */
enum near__option_type {
    NEAR__SIZE,     /* uint64_t bytes: 0 512 64KiB 256MiB 1GiB 1TiB */
    NEAR__COUNT,    /* uint64_t */
    NEAR__DURATION, /* int64_t ns: 0 250us 250ms 30s 5m 1h 7d */
    NEAR__DECIMAL,  /* int64_t thousandths: 0 0.5 1 2.25 */
    NEAR__CHOICE,   /* unsigned: position in `accepts` */
    NEAR__TEXT      /* char[256] */
};

/* Scope: `cache` options may be overridden by near_cache_open(), `client` options not. */
enum near__option_scope { NEAR__SCOPE_CLIENT, NEAR__SCOPE_CACHE };

#define NEAR__KIB  (INT64_C(1) << 10)
#define NEAR__MIB  (INT64_C(1) << 20)
#define NEAR__TIB  (INT64_C(1) << 40)
#define NEAR__SEC  (1000 * NEAR_MS)
#define NEAR__DAY  (86400 * NEAR__SEC)
#define NEAR__PATH "a path of 0 .. 1000 characters from ! to ~"

/* clang-format off */
/*  X(field, name, type, scope, default, least, most, accepts, help): `accepts` is written for texts and choices; for numbers it
 *  follows from least and most. */
#define NEAR__OPTIONS(X)                                                                                              \
    X(l1_max_bytes, "l1.max_bytes", SIZE, CACHE, "64MiB", 0, NEAR__TIB, NULL,                                         \
      "Memory of this cache's L1, overhead included.  0: no L1, every read goes to L2.")                               \
    X(l1_total_bytes, "l1.total_bytes", SIZE, CLIENT, "0", 0, NEAR__TIB, NULL,                                        \
      "Memory of the L1s of all caches together.  Where their l1.max_bytes are more than that, each gets its part, in "  \
      "proportion, whenever a cache is opened, closed or resized.  0: each has its own bound only.")                  \
    X(l1_max_entries, "l1.max_entries", COUNT, CACHE, "0", 0, INT64_C(1) << 32, NULL,                                 \
      "Most entries in this cache's L1.  0: only l1.max_bytes bounds it.")                                            \
    X(l1_policy, "l1.policy", CHOICE, CACHE, "adaptive", 0, 0, "adaptive | lru | lfu | sieve | s3fifo | tinylfu",     \
      "Which entries leave L1 for room.  adaptive: keeps two queues and turns"  \
      " to the rule between them that shadow caches of sampled keys show to do best.")                                                                             \
    X(l1_shards, "l1.shards", COUNT, CACHE, "0", 0, 1024, NULL,                                                       \
      "Independently locked parts of L1, a power of two.  0: chosen from the size.")                                  \
    X(l1_align_from, "l1.align_from", SIZE, CACHE, "1KiB", 64, NEAR__KIB, NULL,                                       \
      "Values of this size and more lie at a multiple of 64 in L1, so that vectors are used in place.  Its price in "  \
      "memory: three in ten for values of 64 bytes, two in ten for 128, some percent from 256 on.")                          \
    X(l1_pools, "l1.pools", TEXT, CACHE, "", 0, 1000,                                                                \
      "NAME:SIZE[:POLICY[:TTL]], ...: at most 8 names of 1 .. 32 of A-Z a-z 0-9 _ . -, of 64KiB and more",            \
      "L1 in several parts, each with memory of its own (their sum stands for l1.max_bytes), its own policy (l1.policy) and perhaps a "    \
      "TTL that stands for l1.max_ttl, so that what is read in bulk evicts nothing of what is hot.  An entry's part is chosen by "     \
      "near_cache_set_pool_fn(), or by whoever writes or loads it, else it is the first.  All are read as one.  Empty: one part.") \
    X(l1_curve, "l1.curve", CHOICE, CACHE, "no", 0, 0, "no | yes",                                                    \
      "Whether ghosts of other sizes tell how this cache would hit with half, twice and four times its memory "       \
      "(near_curve_get, l1_hit_ratio among the metrics).  They take up to 2 MiB beside l1.max_bytes.")                \
    X(l1_max_ttl, "l1.max_ttl", DURATION, CACHE, "60s", 0, 365 * NEAR__DAY, NULL,                                     \
      "No entry stays in L1 longer: the staleness bound when everything else fails.  0: no bound.  Where L2 is "     \
      "shared but there is no bus, or l2.envelope is none, the default is 1s; where there is no L2 (none:), it is 0.")                                                                          \
    X(l2_uri, "l2.uri", TEXT, CLIENT, "memory:", 0, 0,                                                                \
      "none: | memory:[NAME] | redis[s]://[user:pass@]host[:port][/db] | redis+unix:///path[?db=n] | "               \
      "redis[s]-sentinel://h1,h2/master[/db] | redis[s]-cluster://h1,h2 | "                                           \
      "memcached://host[:port[:weight]],... | memcached+unix:///path",                                                \
      "The shared tier.  rediss: Redis over TLS, see tls.ca_file.")                                                   \
    X(l2_user, "l2.user", TEXT, CLIENT, "", 0, 127, "0 .. 127 characters from ! to ~",                                \
      "The user of a password that does not stand in l2.uri.  Empty: the server's default user.")                     \
    X(l2_password_file, "l2.password_file", TEXT, CLIENT, "", 0, 1000, NEAR__PATH,                                    \
      "The password is this file's first line, instead of in l2.uri.  Read when the client opens.")                   \
    X(l2_password_env, "l2.password_env", TEXT, CLIENT, "", 0, 127, "the name of an environment variable",            \
      "The password is this environment variable's value, instead of in l2.uri.")                                     \
    X(l2_allow_plaintext_auth, "l2.allow_plaintext_auth", CHOICE, CLIENT, "no", 0, 0, "no | yes",                     \
      "Whether a password may go to another host without TLS, to a sentinel or the bus as well.  no: that is refused.") \
    X(l2_timeout, "l2.timeout", DURATION, CLIENT, "200ms", NEAR_MS, 60 * NEAR__SEC, NULL,                             \
      "Bound on one exchange with L2, retries included.")                                                             \
    X(l2_connect_timeout, "l2.connect_timeout", DURATION, CLIENT, "500ms", NEAR_MS, 60 * NEAR__SEC, NULL,             \
      "Bound on making one connection, login included.  Also how long opening a client waits for the bus.")           \
    X(l2_pool_size, "l2.pool_size", COUNT, CLIENT, "8", 1, 1024, NULL,                                                \
      "Most connections to each L2 server.")                                                                          \
    X(l2_gutter, "l2.gutter", TEXT, CLIENT, "", 0, 0, "memcached://host[:port[:weight]],... | memcached+unix:///path",   \
      "memcached only: the servers that take the keys of a server that cannot be reached.  Empty: its keys are not "  \
      "cached in L2 meanwhile.")                                                                                      \
    X(l2_gutter_ttl, "l2.gutter_ttl", DURATION, CLIENT, "10s", NEAR__SEC, 3600 * NEAR__SEC, NULL,                     \
      "No entry stays on the servers of l2.gutter longer.")                                                           \
    X(l2_key_prefix, "l2.key_prefix", TEXT, CLIENT, "nc:", 0, 64, "0 .. 64 characters from ! to ~",                   \
      "Put before every key in L2, so that programs can share a server.")                                             \
    X(l2_max_value, "l2.max_value", SIZE, CLIENT, "1MiB", 1, 256 * NEAR__MIB, NULL,                                   \
      "Largest value; a larger one is refused before it goes anywhere.")                                              \
    X(l2_compression, "l2.compression", CHOICE, CACHE, "none", 0, 0, "none | auto | lz4 | zstd",                      \
      "How values are compressed in L2, where it makes them a tenth smaller at least.  auto: lz4, or zstd in a build "  \
      "without lz4.  Whatever this says, a value is read however it was stored; a program built without that algorithm " \
      "counts it in l2_unreadable and takes it for a miss.")                                                          \
    X(l2_compression_threshold, "l2.compression_threshold", SIZE, CACHE, "1KiB", 64, 256 * NEAR__MIB, NULL,           \
      "Smaller values are not compressed.")                                                                           \
    X(l2_dictionary, "l2.dictionary", TEXT, CACHE, "", 0, 10, "nothing | auto | the id of a dictionary",               \
      "What zstd compresses with: a dictionary that `nearcache dict train` has put into L2, auto: the newest one there.  With one, values "  \
      "from 64 bytes on are compressed, unless l2.compression_threshold is set; until it was found, without.  Readers fetch "  \
      "what a value needs by its id, whatever this says; a value whose dictionary is not in L2 any more is a miss (l2_dictionary_unknown).  "  \
      "Takes l2.compression = zstd or auto.  A dictionary takes twice its size and 27 KiB beside l1.max_bytes, the one that compresses some "  \
      "400 KiB more; no more than 16 are kept.")                                                                      \
    X(l2_dictionary_refresh, "l2.dictionary_refresh", DURATION, CACHE, "60s", 100 * NEAR_MS, NEAR__DAY, NULL,         \
      "How often it is looked for in L2: whether there is a newer one, and that the one in use is still there; if not, it is put back.") \
    X(l2_envelope, "l2.envelope", CHOICE, CACHE, "full", 0, 0, "full | none",                                         \
      "none: values lie in L2 as they are, under l2.key_prefix, the cache's name, ':' and the key, so that other "    \
      "programs can read and write them.  That turns off, in L2: checksum and key check, soft TTL, grace, early "     \
      "refresh, what is known not to exist, compression, near_clear, near_expire (which removes); fills are less "    \
      "strict (doc/guarantees.md).  l1.max_ttl is then 1s by default, and may not be 0.  All programs that use the "  \
      "cache must say the same.")                                                                                     \
    X(l2_mac_key_file, "l2.mac_key_file", TEXT, CACHE, "", 0, 1000, NEAR__PATH,                                       \
      "A file with one or two keys of 64 hexadecimal digits (openssl rand -hex 32), each a word, for a MAC (HMAC-SHA-256, "   \
      "16 bytes) in every entry of the cache in L2: so that who may write there, and does not have the key, can delete entries "  \
      "and put old ones back, but not make any.  The first key signs, both are believed, to change keys by.  What has no MAC or a wrong one is "  \
      "a miss (l2_unauthentic).  Counters (near_add) are refused then, and fields.layout = auto is keys.  A build without OpenSSL refuses it; a cache "  \
      "without a key reads what has a MAC like any other entry.  Empty: no MAC.")                                      \
    X(l2_mac_key_env, "l2.mac_key_env", TEXT, CACHE, "", 0, 127, "the name of an environment variable",               \
      "The same keys are this environment variable's value, instead of in a file.")                                   \
    X(ttl, "ttl", DURATION, CACHE, "5m", 0, 3650 * NEAR__DAY, NULL,                                                   \
      "How long a value is good.  0: until it is evicted or removed.  L2 keeps it for ttl and grace.")                                                \
    X(negative_ttl, "negative_ttl", DURATION, CACHE, "5s", 0, NEAR__DAY, NULL,                                        \
      "How long 'the store has no such thing' is remembered.  0: not at all.")                                        \
    X(ttl_jitter, "ttl.jitter", COUNT, CACHE, "0", 0, 50, NULL,                                                       \
      "The TTL of what is loaded is shortened by a random share of up to this many percent, so that what was loaded together " \
      "does not expire together.")                                                                                    \
    X(grace, "grace", DURATION, CACHE, "0", 0, 3650 * NEAR__DAY, NULL,                                                \
      "How long past its TTL a value is kept to be served, flagged stale, while its loader is slow or fails.  0: not "\
      "at all.")                                                                                                      \
    X(early_refresh_beta, "early_refresh.beta", DECIMAL, CACHE, "1", 0, 10000, NULL,                                  \
      "How eagerly a value in use is refreshed in the background before its TTL ends (XFetch): the larger the "       \
      "earlier, in proportion to what its load costs, at most a quarter of ttl.  0: not at all.")                     \
    X(loader_soft_timeout, "loader.soft_timeout", DURATION, CACHE, "0", 0, 3600 * NEAR__SEC, NULL,                    \
      "How long a fetch that has a stale value to fall back on (see grace) waits for the loader.  0: not at all, the "\
      "stale value is served and refreshed in the background.")                                                       \
    X(loader_hard_timeout, "loader.hard_timeout", DURATION, CACHE, "0", 0, 3600 * NEAR__SEC, NULL,                    \
      "How long anybody waits for one load: then it counts as failed, and finishes in the background.  Loaders run "  \
      "on the loader pool.  0: as long as it takes, on the caller's thread.")                                         \
    X(loader_threads, "loader.threads", COUNT, CLIENT, "8", 1, 256, NULL,                                             \
      "Most threads of the loader pool, which runs background refreshes and loads with a deadline.  They start when " \
      "they are needed.")                                                                                             \
    X(load_max_concurrent, "load.max_concurrent", COUNT, CACHE, "0", 0, 1000000, NULL,                                \
      "Most keys of this cache that are being loaded at a time in this process.  0: no bound.")                       \
    X(load_rate, "load.rate", COUNT, CACHE, "0", 0, 100000000, NULL,                                                  \
      "Most keys of this cache given to the loader per second in this process.  0: no bound.")                        \
    X(load_slow_start, "load.slow_start", DURATION, CACHE, "0", 0, 3600 * NEAR__SEC, NULL,                            \
      "For this long after a clear, or a flush for the bus's sake, load.max_concurrent and load.rate grow evenly from a "\
      "sixteenth to the whole.  0: they are whole at once.")                                                          \
    X(load_queue_timeout, "load.queue_timeout", DURATION, CACHE, "1s", 0, 3600 * NEAR__SEC, NULL,                     \
      "How long a load waits for its turn under load.max_concurrent and load.rate before its callers get a stale "    \
      "value or NEAR_ERR_BUSY.")                                                                                      \
    X(load_retry, "load.retry", DURATION, CACHE, "1s", 0, 3600 * NEAR__SEC, NULL,                                     \
      "After failures of a key's load the next attempt comes no sooner than this; the first pauses are shorter and "  \
      "double.  Meanwhile callers get a stale value or the failure.  0: no pause.")                                   \
    X(load_gather, "load.gather", DURATION, CACHE, "0", 0, NEAR__SEC, NULL,                                           \
      "How long a load waits for others, so that the loader gets them in one call.  0: not at all.")                  \
    X(l2_hedge_after, "l2.hedge_after", DURATION, CACHE, "0", 0, 60 * NEAR__SEC, NULL,                                \
      "A fetch whose read of L2 has not been answered in this time starts the loader besides; the first answer "      \
      "counts.  0: never.")                                                                                           \
    X(lease_timeout, "lease.timeout", DURATION, CACHE, "5s", 10 * NEAR_MS, 3600 * NEAR__SEC, NULL,                    \
      "How long one instance keeps the right to fill a key while the others wait (at least 3s on memcached).")                              \
    X(write_policy, "write.policy", CHOICE, CACHE, "through", 0, 0, "through | back | around",                         \
      "How near_update and near_erase reach the store.  through: L2 is marked, the store written, the mark replaced by the "  \
      "value.  back: acknowledged here, written later, in batches.  around: the store is written, then both tiers "    \
      "forget the key.")                                                                                              \
    X(write_fast, "write.fast", CHOICE, CACHE, "no", 0, 0, "no | yes",                                                \
      "yes: write.policy through without the mark, which saves an exchange with L2 and needs none before the store is " \
      "written.  A writer that dies between store and L2 then leaves the old value in L2 until its TTL, or until "     \
      "write_back.journal is replayed; the new value is not kept in L2, the next reader loads it.")                    \
    X(write_without_l2, "write.without_l2", CHOICE, CACHE, "store", 0, 0, "store | refuse",                           \
      "What near_update and near_erase do when L2 or the bus cannot be reached.  store: the store is written, and the key removed "  \
      "and announced as soon as that is possible; until then other instances that do reach L2 may read the old value.  "    \
      "refuse: they fail with NEAR_ERR_UNAVAILABLE before the store is asked (policy through), or with NEAR_ERR_TIMEOUT "  \
      "after it.")                                                                                                    \
    X(store_timeout, "store.timeout", DURATION, CACHE, "5s", NEAR_MS, 3600 * NEAR__SEC, NULL,                         \
      "How long a store may take for one call: what it has not answered then counts as unknown.")                      \
    X(write_back_interval, "write_back.interval", DURATION, CACHE, "1s", 0, 3600 * NEAR__SEC, NULL,                   \
      "write.policy = back: how long a change waits for others, so that the store gets them in one call, and for newer ones of its key, "   \
      "which take its place.  0: it goes at once.")                                                                   \
    X(write_back_batch, "write_back.batch", COUNT, CACHE, "128", 1, 4096, NULL,                                       \
      "Most changes in one call of the store; so many are not made to wait for write_back.interval.")                 \
    X(write_back_parallel, "write_back.parallel", COUNT, CACHE, "2", 1, 64, NULL,                                     \
      "Most calls of the store under way at a time, by write.policy = back.  A key is never in two of them.")         \
    X(write_back_coalesce, "write_back.coalesce", CHOICE, CACHE, "yes", 0, 0, "no | yes",                             \
      "yes: a newer change of a key takes the place of one that the store has not been given yet.  no: the store gets every one.")    \
    X(write_back_retries, "write_back.retries", COUNT, CACHE, "10", 0, 1000000, NULL,                                 \
      "So many times a change that the store refuses is tried, at growing intervals, before it is put aside, in the journal's dead "  \
      "letters where there is a journal.  While the store takes nothing at all, an answer that it is unavailable does not count.  "     \
      "0: for ever.")                                                                                                 \
    X(write_back_max_pending, "write_back.max_pending", SIZE, CACHE, "64MiB", NEAR__KIB, NEAR__TIB, NULL,             \
      "Most memory for changes that the store has not got.")                                                          \
    X(write_back_on_full, "write_back.on_full", CHOICE, CACHE, "wait", 0, 0, "wait | fail | through",                 \
      "What becomes of a change when there is no room: wait for room, up to store.timeout; fail at once, with NEAR_ERR_BUSY; "        \
      "through: wait until the store has this one, up to store.timeout.")                                             \
    X(write_back_journal, "write_back.journal", TEXT, CACHE, "", 0, 1000, NEAR__PATH,                                 \
      "Directory, on a file system of this machine, of the journal that keeps writes until they are in the store, and "   \
      "says after a crash what was under way.  Caches of one client may share it; programs not.  Empty: none, what is "     \
      "not in the store when the process ends is lost.")                                                              \
    X(write_back_fsync, "write_back.fsync", CHOICE, CACHE, "always", 0, 0, "always | interval | none",                \
      "always: a write is on disk when it is acknowledged, one fsync for all who wait.  interval: within "             \
      "write_back.fsync_interval; until then a crash may lose it.  none: it survives the end of the process, not of the machine.")     \
    X(write_back_fsync_interval, "write_back.fsync_interval", DURATION, CACHE, "100ms", NEAR_MS, 60 * NEAR__SEC, NULL, \
      "How often the journal is brought to disk with write_back.fsync = interval.")                                   \
    X(write_back_journal_max_bytes, "write_back.journal_max_bytes", SIZE, CACHE, "1GiB", NEAR__MIB, NEAR__TIB, NULL,  \
      "Most disk space of a journal, dead letters included.  What waits for the store may take a third of it.")          \
    X(disk_path, "disk.path", TEXT, CACHE, "", 0, 900, "a path of 0 .. 900 characters from ! to ~",                  \
      "Directory, on a file system of this machine, of the disk tier: what L1 has no room for is kept there, under the cache's name, " \
      "and looked up before L2 is asked.  Its entries age as L1's do: see l1.max_ttl.  One process at a time.  Empty: none.") \
    X(disk_max_bytes, "disk.max_bytes", SIZE, CACHE, "1GiB", NEAR__MIB, NEAR__TIB, NULL,                             \
      "Most disk space of the disk tier.  Its index takes about 10 bytes of memory for each entry, beside l1.max_bytes "  \
      "(disk_index_bytes: with all that grows with the log; while a former life is looked through that is a 512th of the log more).") \
    X(disk_timeout, "disk.timeout", DURATION, CACHE, "10ms", NEAR_MS / 10, NEAR__SEC, NULL,                          \
      "How long a read waits for the disk before L2 is asked, or the loader.")                                       \
    X(disk_admission, "disk.admission", CHOICE, CACHE, "second", 0, 0, "second | all",                               \
      "What is written to the disk tier.  second: what leaves L1 for the second time in a while, so that what is used once " \
      "does not wear it out.  all: everything that leaves L1 for room.")                                             \
    X(disk_queue_bytes, "disk.queue_bytes", SIZE, CACHE, "4MiB", 64 * NEAR__KIB, NEAR__TIB, NULL,                    \
      "Memory for what waits to be written to the disk tier.  What leaves L1 while it is full is dropped.")          \
    X(disk_io, "disk.io", CHOICE, CACHE, "auto", 0, 0, "auto | threads",                                             \
      "How the disk is read where the page cache has nothing.  auto: by io_uring where it was built in and the system allows it; " \
      "else, and with threads, by disk.threads threads.")                                                            \
    X(disk_threads, "disk.threads", COUNT, CACHE, "4", 1, 16, NULL, "Threads that read the disk tier.")              \
    X(disk_confirm_rate, "disk.confirm_rate", COUNT, CACHE, "20000", 0, 10 * 1000 * 1000, NULL,                      \
      "After a start, how many entries a second of the disk tier are compared with L2, whose word they need to be used again.  " \
      "0: none, the disk tier starts empty.  Without an L2 they need none, after a clean end.")                      \
    X(coherence_uri, "coherence.uri", TEXT, CLIENT, "auto", 0, 0,                                                     \
      "auto | none: | memory:NAME | redis[s]://[user:pass@]host[:port][/db] | redis+unix:///path | "                  \
      "redis[s]-sentinel://h1,h2/master | redis[s]-cluster://h1,h2",                                                  \
      "The bus that carries invalidations.  auto: the L2 server where that is Redis or memory:NAME, else none.")      \
    X(coherence_user, "coherence.user", TEXT, CLIENT, "", 0, 127, "0 .. 127 characters from ! to ~",                  \
      "As l2.user, for the bus.")                                                                                     \
    X(coherence_password_file, "coherence.password_file", TEXT, CLIENT, "", 0, 1000, NEAR__PATH,                      \
      "As l2.password_file, for the bus.  Where coherence.uri is auto and neither this nor coherence.password_env is set, " \
      "the bus has L2's user and password.")                                                                          \
    X(coherence_password_env, "coherence.password_env", TEXT, CLIENT, "", 0, 127,                                     \
      "the name of an environment variable", "As l2.password_env, for the bus.")                                      \
    X(coherence_mode, "coherence.mode", CHOICE, CLIENT, "auto", 0, 0, "auto | pubsub | tracking | both | none",       \
      "How instances hear of writes.  pubsub: they tell each other.  tracking, both: besides, the Redis or cluster that is both L2 and bus "   \
      "tells of every change under l2.key_prefix, whoever made it, of expiry and of eviction; it tells of our own writes and "  \
      "fills, too, so these stay in L1 from the next read on only.  Where the server refuses that, pubsub remains.  auto: pubsub where there is a bus.")                                            \
    X(coherence_channel, "coherence.channel", TEXT, CLIENT, "", 0, 128, "0 .. 128 characters from ! to ~",            \
      "Channel of the messages.  Empty: l2.key_prefix followed by 'bus'.")                                            \
    X(coherence_on_disconnect, "coherence.on_disconnect", CHOICE, CLIENT, "bypass", 0, 0, "bypass | stale | fail",    \
      "What L1 does once the serve window is over: bypass reads go to L2 and the loader; stale: L1 answers, "         \
      "flagged, up to l1.max_ttl; fail: reads fail at once.")                                            \
    X(coherence_serve_window, "coherence.serve_window", DURATION, CLIENT, "500ms", 10 * NEAR_MS, 3600 * NEAR__SEC,    \
      NULL, "L1 answers as fresh only this long after the bus was last known to be whole: the bound on staleness.")   \
    X(coherence_heartbeat, "coherence.heartbeat", DURATION, CLIENT, "100ms", NEAR_MS, 600 * NEAR__SEC, NULL,          \
      "How often the bus is asked for a sign of life; at most half of coherence.serve_window.")                       \
    X(coherence_max_pending, "coherence.max_pending", COUNT, CLIENT, "10000", 0, 10000000, NULL,                      \
      "Most keys whose failed writes are still to be made good, by removing them from L2 and telling the others, as "  \
      "soon as that is possible.  Of a cache with more, everything is invalidated.  0: it is tried once.")             \
    X(prefix_timeout, "prefix.timeout", DURATION, CACHE, "30s", NEAR_MS, 24 * 3600 * NEAR__SEC, NULL,                 \
      "How long near_invalidate_prefix looks through L2 before it gives up; the rest is then done in the background.") \
    X(sentinel_user, "sentinel.user", TEXT, CLIENT, "", 0, 127, "0 .. 127 characters from ! to ~",                    \
      "The user at the sentinels themselves.  Empty: their default user.")                                            \
    X(sentinel_password_file, "sentinel.password_file", TEXT, CLIENT, "", 0, 1000, NEAR__PATH,                        \
      "The password at the sentinels themselves is this file's first line.  Without one they are asked without login.") \
    X(sentinel_password_env, "sentinel.password_env", TEXT, CLIENT, "", 0, 127, "the name of an environment variable", \
      "The password at the sentinels themselves is this environment variable's value.")                               \
    X(tls_ca_file, "tls.ca_file", TEXT, CLIENT, "", 0, 1000, NEAR__PATH,                                              \
      "PEM file of the authorities that may have signed a server's certificate.  With neither this nor tls.ca_path: the " \
      "system's.")                                                                                                    \
    X(tls_ca_path, "tls.ca_path", TEXT, CLIENT, "", 0, 1000, NEAR__PATH,                                              \
      "Directory of such authorities, as openssl-rehash(1) makes it.")                                                \
    X(tls_cert_file, "tls.cert_file", TEXT, CLIENT, "", 0, 1000, NEAR__PATH,                                          \
      "PEM file of the client's certificate and its chain, for servers that ask for one.")                            \
    X(tls_key_file, "tls.key_file", TEXT, CLIENT, "", 0, 1000, NEAR__PATH,                                            \
      "PEM file of the key of tls.cert_file, without a passphrase.  Empty: it is in tls.cert_file.")                  \
    X(tls_server_name, "tls.server_name", TEXT, CLIENT, "", 0, 255, "0 .. 255 characters from ! to ~",                \
      "The name or address that the servers' certificates must be for.  Empty: the one that was connected to.")       \
    X(tls_verify, "tls.verify", CHOICE, CLIENT, "full", 0, 0, "full | ca",                                            \
      "full: the certificate must be valid, signed by an authority and for this server's name.  ca: for any name.")   \
    X(fields_layout, "fields.layout", CHOICE, CACHE, "auto", 0, 0, "auto | hash | keys",                              \
      "How fields lie in L2.  hash: as fields of a hash per entity, plain, as other programs write and read them.  keys: each as "  \
      "an entry of its own.  auto: hash where L2 has hashes (Redis, memory:) and there is no l2.mac_key_file, for a field of a hash has no MAC; else keys.")                            \
    X(fields_names, "fields.names", CHOICE, CACHE, "number", 0, 0, "number | text",                                   \
      "What fields are called in the hashes: number: the XXH32 of their name, in decimal.  text: the name they were registered with "  \
      "(their number, where they were not).")                                                                         \
    X(fields_key_prefix, "fields.key_prefix", TEXT, CACHE, "", 0, 250, "0 .. 250 characters from ! to ~",             \
      "What stands before an entity in the key of its hash.  Where it is not set: l2.key_prefix, the cache's name and a colon.  Set to "  \
      "nothing: the entity alone is the key.  With coherence.mode = tracking the server tells only of keys that begin with "  \
      "l2.key_prefix.")                                                                                               \
    X(close_timeout, "close.timeout", DURATION, CLIENT, "5s", 0, 3600 * NEAR__SEC, NULL,                              \
      "How long closing waits for loads that are still under way, and for changes that the store has not got (write.policy = back).")                                                   \
    X(audit_sample, "audit.sample", COUNT, CLIENT, "0", 0, 1000000000, NULL,                                          \
      "One in so many L1 hits is looked at again later beside L2, in the background: is it still what L2 has?  What "  \
      "is not is counted (audit_stale_1s, audit_stale_10s).  0: none.")                                               \
    X(audit_delay, "audit.delay", DURATION, CLIENT, "1s", NEAR_MS, 3600 * NEAR__SEC, NULL,                            \
      "How long after the hit that is; those that are still in L1 are looked at once more after ten times as long.")  \
    X(stats_publish, "stats.publish", DURATION, CLIENT, "0", 0, 3600 * NEAR__SEC, NULL,                               \
      "How often this client tells `nearcache top` what it counts: on the bus's server, on a channel called as coherence.channel with "  \
      "':stats' behind it.  Less than 100ms counts as that.  0: not at all.")                                         \
    X(stats_publish_keys, "stats.publish_keys", CHOICE, CLIENT, "none", 0, 0, "none | hash | plain",                  \
      "Whether that says which keys are asked for most, by their XXH64 or as they are.  Whoever may listen on the channel learns them.") \
    X(log_requests, "log.requests", TEXT, CACHE, "", 0, 1000, NEAR__PATH,                                             \
      "Beginning of the name of a file, to which a point and the cache's name are added, that logs which keys are asked for: "   \
      "see `nearcache simulate` and `nearcache warm`.  It is this user's alone (mode 0600), and appended to.  Empty: none.")  \
    X(log_requests_sample, "log.requests_sample", COUNT, CACHE, "100", 1, 1000000, NULL,                              \
      "One key in so many is logged, with all its requests; in every instance the same keys.  1: all.")               \
    X(log_requests_keys, "log.requests_keys", CHOICE, CACHE, "hash", 0, 0, "hash | plain",                            \
      "hash: the keys' XXH64, good for simulating (and no secret to who can guess keys).  plain: the keys, which warming needs.") \
    X(log_requests_max_bytes, "log.requests_max_bytes", SIZE, CACHE, "256MiB", NEAR__KIB, NEAR__TIB, NULL,             \
      "The file grows no larger than this.")                                                                          \
    X(snapshot_path, "snapshot.path", TEXT, CACHE, "", 0, 1000, NEAR__PATH,                                            \
      "Beginning of the name of a file, to which a point and the cache's name are added, that L1 is saved to when the cache is "   \
      "closed, and restored from when it is opened, in the background.  Its directory must be there, and nobody else may write in it.  "   \
      "What a shared L2 does not confirm is not restored; without one the file serves once, and only if nothing was written "  \
      "after it.  One process at a time.  Empty: none.")                                                              \
    X(snapshot_max_age, "snapshot.max_age", DURATION, CACHE, "1h", 0, 365 * NEAR__DAY, NULL,                          \
      "An older file is not restored.  0: however old it is.")                                                        \
    X(snapshot_rate, "snapshot.rate", COUNT, CACHE, "600000", 0, INT64_C(1) << 32, NULL,                              \
      "Most entries restored per second, so that reads meanwhile are not slowed.  0: no bound.")                      \
    X(snapshot_at_close, "snapshot.at_close", CHOICE, CACHE, "yes", 0, 0, "no | yes",                                 \
      "Whether closing saves.  It takes no longer than close.timeout: then it is given up, and said in the log.  no: only near_snapshot_save() does.")  \
    X(rollout_caches, "rollout.caches", TEXT, CLIENT, "", 0, 1000, "patterns separated by commas, * for any run of characters",  \
      "Caches that serve: reads in others, of a client that sets this, go past both tiers.  Empty: all.")              \
    X(rollout_percent, "rollout.percent", DECIMAL, CACHE, "100", 0, 100000, NULL,                                     \
      "So many percent of the keys are served by the cache, always the same ones, in every instance; near_cache_set_rollout() changes it. "  \
      "Reads of the others go past both tiers: near_fetch() to the loader, near_get() is a miss.  Writes and "        \
      "invalidations are done for all keys, and a change that the store does not have yet (write.policy = back) is served in any case.")                                                                          \
    X(rollout_allow, "rollout.allow", TEXT, CACHE, "", 0, 1000, "patterns separated by commas, * for any run of characters",   \
      "Of the keys, only those that one of these matches: user:*,item:*.  Empty: all.")                                \
    X(rollout_dry_run, "rollout.dry_run", CHOICE, CACHE, "no", 0, 0, "no | yes",                                      \
      "yes: both tiers are filled and asked, but nothing out of them is served: near_fetch() loads besides, answers with that and counts what "  \
      "differs by the age of the cached value (rollout_mismatches_1s ...); near_get() is a miss.  Fields of hashes are read from the hash, and "  \
      "that is compared with L1's.  Not compared: objects whose codec keeps no bytes; changes that the store does not have yet, which are served.")                     \
    X(log_level, "log.level", CHOICE, CLIENT, "warn", 0, 0, "error | warn | info | debug",                            \
      "Which messages reach the log callback.")
/* clang-format on */

#define NEAR__TEXT_SIZE 1024

typedef uint64_t near__field_SIZE;
typedef uint64_t near__field_COUNT;
typedef int64_t  near__field_DURATION;
typedef int64_t  near__field_DECIMAL;
typedef unsigned near__field_CHOICE;
typedef char     near__field_TEXT[NEAR__TEXT_SIZE];

enum near__option_index {
#define NEAR__OPTION_INDEX(field, name, type, scope, preset, least, most, accepts, help) NEAR__OPTION_##field,
    NEAR__OPTIONS(NEAR__OPTION_INDEX)
#undef NEAR__OPTION_INDEX
        NEAR__OPTION_COUNT
};

#define NEAR__CHANNEL_SIZE 160

struct near__settings {
#define NEAR__OPTION_FIELD(field, name, type, scope, preset, least, most, accepts, help)                     \
    near__field_##type field;
    NEAR__OPTIONS(NEAR__OPTION_FIELD)
#undef NEAR__OPTION_FIELD
    bool set[NEAR__OPTION_COUNT]; /* said by somebody, not the default */
};

/* Positions of the choices. */
enum { NEAR__MODE_AUTO, NEAR__MODE_PUBSUB, NEAR__MODE_TRACKING, NEAR__MODE_BOTH, NEAR__MODE_NONE };
enum { NEAR__NO, NEAR__YES };
enum { NEAR__VERIFY_FULL, NEAR__VERIFY_CA };
enum { NEAR__DISCONNECT_BYPASS, NEAR__DISCONNECT_STALE, NEAR__DISCONNECT_FAIL };
enum { NEAR__COMPRESSION_NONE, NEAR__COMPRESSION_AUTO, NEAR__COMPRESSION_LZ4, NEAR__COMPRESSION_ZSTD };
enum { NEAR__ENVELOPE_FULL, NEAR__ENVELOPE_NONE };
enum { NEAR__WITHOUT_L2_STORE, NEAR__WITHOUT_L2_REFUSE };
enum { NEAR__DISK_ADMIT_SECOND, NEAR__DISK_ADMIT_ALL };
enum { NEAR__DISK_IO_AUTO, NEAR__DISK_IO_THREADS };
enum { NEAR__WRITE_THROUGH, NEAR__WRITE_BACK, NEAR__WRITE_AROUND };
enum { NEAR__PUBLISH_NONE, NEAR__PUBLISH_HASH, NEAR__PUBLISH_PLAIN };
enum { NEAR__KEYS_HASH, NEAR__KEYS_PLAIN };
enum { NEAR__LAYOUT_AUTO, NEAR__LAYOUT_HASH, NEAR__LAYOUT_KEYS };
enum { NEAR__FIELD_NUMBER, NEAR__FIELD_TEXT };
enum { NEAR__FULL_WAIT, NEAR__FULL_FAIL, NEAR__FULL_THROUGH };

struct near__option {
    const char             *name;
    enum near__option_type  type;
    enum near__option_scope scope;
    const char             *preset;
    int64_t                 least, most;
    const char             *accepts; /* NULL: from least and most */
    const char             *help;
    size_t                  offset; /* in near__settings */
};
extern const struct near__option near__options[NEAR__OPTION_COUNT];

/* A number as an option of this type has it, "64MiB", "5m".  False: it is none. */
bool near__option_number(enum near__option_type type, const char *text, int64_t *value);

/* What the option accepts, in words: "1ms .. 1m", "lru | lfu".  `out` has at least 256 bytes. */
void near__option_accepts(const struct near__option *option, char *out, size_t size);
/* "NEARCACHE_L2_URI" for "l2.uri". */
void near__option_variable(const struct near__option *option, char *out, size_t size);

/* The backend that was added to `config` (may be NULL) with this scheme, or NULL. */
const struct near_l2_ops *near__config_backend(const near_config *config, const char *scheme);

/* The values of a client: defaults, then `config` (may be NULL), then the environment; checked one by one and together. */
near_status near__settings_resolve(struct near__settings *settings, const near_config *config,
                                   near_error *error);
/* The values of a cache: the client's, then `overrides` (may be NULL), which may name cache options only. */
near_status near__settings_override(struct near__settings *settings, const struct near__settings *client,
                                    const near_config *overrides, near_error *error);

/* What values are compressed with. */
/* The name of the bus's channel, with `suffix` behind it; NEAR__CHANNEL_SIZE bytes suffice. */
void             near__settings_channel(const struct near__settings *settings, const char *suffix, char *name,
                                        size_t size);
enum near__codec near__settings_codec(const struct near__settings *settings);

#endif
