/*
 * Coherence: what messages mean, whether L1 may be trusted, and which numbers were seen.
 *
 * Owns one bus, the serve gate and the table of streams.  The gate is one atomic time: L1 may answer as fresh while now is before
 * it.  Only heard() moves it forward (since + serve window), and only after a flush that followed the newest subscribed(): so
 * what was missed while the link was down can never be served (races 13-15).
 *
 * Tells its owner through `struct near__coherence_sink`, with no lock held.
 */
#ifndef NEAR_COHERENCE_COHERENCE_H
#define NEAR_COHERENCE_COHERENCE_H

#include "base/clock.h"
#include "base/histogram.h"
#include "base/uri.h"
#include "coherence/message.h"

#include <stdatomic.h>

/* What the owner does about messages.  May be called by several threads at once, with no lock held; must not block. */
struct near__coherence_sink {
    void *ctx;
    void (*invalidate)(void *ctx, near_bytes cache,
                       near_bytes key); /* move the fence, drop the key, detach its flight */
    void (*filled)(void *ctx, near_bytes cache,
                   near_bytes key); /* somebody stored it: wake who waits for it */
    void (*cleared)(void *ctx, near_bytes cache, uint64_t generation);
    void (*tagged)(void *ctx, near_bytes cache, near_bytes tag, uint64_t lineage,
                   uint64_t moment); /* the tag was invalidated */
    void (*flush)(
        void *ctx); /* distrust everything: move all fences, drop all L1, forget known generations */
    /* The server says that what lies under this key of its own has changed, whoever did it.  NULL: not wanted. */
    void (*changed)(void *ctx, near_bytes server_key);
    void (*prefixed)(void *ctx, near_bytes cache, near_bytes prefix); /* all keys that begin so are gone */
};

struct near__coherence_config {
    const struct near__uri     *uri;
    const struct near__access  *access; /* as in near__bus_env */
    const struct near__clock   *clock;
    const struct near__log     *log;
    const char                 *channel;
    const char                 *client_name;
    const char                 *prefix;                                   /* see near__bus_env */
    int64_t                     heartbeat, serve_window, connect_timeout; /* ns */
    struct near__coherence_sink sink;
};

struct near__coherence;

/* Opens the bus and returns at once; near__coherence_await() waits for it.  What config points to outlives it.  The sink may be
 * called before this returns.  NEAR_ERR_UNSUPPORTED: no bus of this scheme. */
near_status near__coherence_open(struct near__coherence             **coherence,
                                 const struct near__coherence_config *config, near_error *error);
struct near__bus_ops;
/* The same over a given bus: tests bring one of their own. */
near_status near__coherence_open_over(struct near__coherence **coherence, const struct near__bus_ops *ops,
                                      const struct near__coherence_config *config, near_error *error);
/* Wait until the gate is open for the first time, or `deadline`, or the bus's first attempt has failed.  True: it is open. */
bool near__coherence_await(struct near__coherence *coherence, int64_t deadline);
void near__coherence_stop(struct near__coherence *coherence);   /* no sink call afterwards */
void near__coherence_free(struct near__coherence **coherence);  /* NULL inside is fine */
void near__coherence_forked(struct near__coherence *coherence); /* in a child, instead of stop */

uint64_t near__coherence_sender(const struct near__coherence *coherence);

/* Until when L1 may answer as fresh.  Acquire: pairs with the release in heard(), which came after the flush. */
int64_t near__coherence_gate(const struct near__coherence *coherence);
/* Where that lies, for a reader that knows its order. */
const _Atomic int64_t *near__coherence_gate_at(const struct near__coherence *coherence);

/* Publish an encoded message (it gets stamped).  On a failure whose outcome is unknown the stream is doubted at once. */
near_status near__coherence_publish(struct near__coherence *coherence, uint8_t *message, size_t size,
                                    int64_t deadline, near_error *error);

/*
 * Own messages come back.  They are skipped, because the writer has already dealt with its own L1, but only while their writer
 * knows the outcome: after an unknown one (a timeout) the write may be executed later than the local L1 was dropped.  Call this
 * with the announcement's stream before near__l1_write_end(); from then on the echoes of that stream are applied like
 * anybody's messages.  The connection is closed by then, so the stream has no further use.
 */
void near__coherence_doubt(struct near__coherence *coherence, uint64_t stream);

/* A message that was published in another way (with the write itself) has been acknowledged; it holds its stamp. */
void near__coherence_announced(struct near__coherence *coherence, const uint8_t *message);
/* The same where it is known when it was begun, which tells how long messages take (coherence/lag.h). */
void near__coherence_announced_since(struct near__coherence *coherence, const uint8_t *message,
                                     int64_t since);

/* Where a message stands.  sequence 0: nowhere; UINT64_MAX: that is not known. */
struct near__position {
    uint64_t sender, stream, sequence;
};
/* Of the newest message that the calling thread has published here and knows to be acknowledged. */
void near__coherence_position(const struct near__coherence *coherence, struct near__position *position);
/* Has that message been applied here?  False: it is not known. */
bool near__coherence_applied(struct near__coherence *coherence, const struct near__position *position);

/* Publish a text that is no message, on another channel of the bus's server.  NEAR_ERR_UNSUPPORTED: the bus has no server. */
near_status near__coherence_announce(struct near__coherence *coherence, const char *channel, near_bytes text,
                                     int64_t deadline, near_error *error);
bool        near__coherence_announces(const struct near__coherence *coherence);

near_status near__coherence_fence(struct near__coherence *coherence, int64_t deadline, near_error *error);

struct near__coherence_stats {
    uint64_t sent, send_failures, received, keys_received, filled_received, echoes, bad_messages, gaps,
        flushes, connects;
    uint64_t late;                 /* duplicates and messages out of order: applied like any other */
    uint64_t beats;                /* sent */
    uint64_t changed;              /* keys that the server itself told of */
    bool     tracking, recognised; /* see near__bus_state */
    uint64_t suspicions;
    uint64_t storms; /* times L1 was bypassed because there would have been too many flushes */
    bool     connected;
};
void near__coherence_stats(struct near__coherence *coherence, struct near__coherence_stats *stats);
/* From sending a message to hearing it oneself; and how long the gate was closed, each time it opened again. */
void near__coherence_histograms(const struct near__coherence *coherence, const struct near__histogram **echo,
                                const struct near__histogram **closures);

#endif
