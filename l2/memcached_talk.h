/*
 * A talk: what one caller says to one memcached, and what it was answered.  Commands of one kind (keys to
 * read, or writes), formatted into one block, each with a record for its answer.
 *
 *     new -> add ... add -> [say bytes] -> hear, hear, ... COMPLETE -> records
 *                           rewind to say it again on another connection
 *
 * A talk knows no socket: bytes that were received are put into hear() as they come, in pieces of any size.
 * It belongs to one thread at a time; values are the talk's own until it is freed.
 *
 * Reads of several talks can be said as one command (near__memcached_fuse): then the first one hears for all,
 * and all are complete at the server's one END.  A key that several of them want is said once, and each has a
 * copy of the value.
 *
 * What can never happen: an answer that is not one of the command's own counts for anything but the end of
 * the connection (rule L2); a value under a key that was not asked for reaches a record (rule L3); a key is
 * "not there" before the server's END has come (rules L6, L16); memory is taken for a value before its size
 * was compared with the bound.
 */
#ifndef NEAR_L2_MEMCACHED_TALK_H
#define NEAR_L2_MEMCACHED_TALK_H

#include "l2/memcached_codec.h"

/* Keys of one `get` line.  More gain nothing: the server's cost for a key is flat from about a hundred on,
 * and what is read at a time must find room in buffers on both sides. */
#define NEAR__MEMCACHED_KEYS 128

enum near__memcached_word {
    NEAR__MEMCACHED_UNANSWERED = 0,
    NEAR__MEMCACHED_DONE,     /* read: the record has the value; write: is done */
    NEAR__MEMCACHED_NO,       /* the server's word: the condition did not hold, or no such key */
    NEAR__MEMCACHED_OVERSIZE, /* read: larger than the bound; write: refused for its size, and `set` has removed
                                 what was there before */
    NEAR__MEMCACHED_REFUSED   /* write: the server has no memory for it; `set` has removed what was there */
};

struct near__memcached_record {
    near_bytes key; /* in the talk's own bytes */
    near_bytes value;
    uint64_t   unique;
    uint32_t   flags;
    size_t     end; /* of the command: how many of the talk's bytes must have left for it to be whole */
    uint8_t    command;
    bool       follows; /* another record asks for its key, and hands on what it hears */
    enum near__memcached_word      word;
    struct near__memcached_record *same; /* the next that is to hear of this key */
    struct near__memcached_talk   *talk; /* the one that follows is in */
};

enum near__memcached_talk_kind {
    NEAR__MEMCACHED_READS,         /* get */
    NEAR__MEMCACHED_READS_NUMBERS, /* gets: with unique numbers, for a tenth more of the server's time */
    NEAR__MEMCACHED_WRITES,
    NEAR__MEMCACHED_ASK_VERSION, /* of the server; one record */
    NEAR__MEMCACHED_ASK_SETTINGS /* one record: item_size_max in `unique`, 0 where it is not told */
};

struct near__memcached_chunk;

struct near__memcached_talk {
    enum near__memcached_talk_kind kind;
    size_t                         n, capacity; /* records */
    size_t                         max_value;   /* a larger one is read past */
    char                          *bytes;       /* what is said: bytes[0 .. size) */
    size_t                         size, room;
    struct near__memcached_talk   *fused; /* the next that hears with this one */

    /* hearing */
    bool   complete;
    size_t answered; /* writes: records; reads: those of lines that have come to their END */
    struct near__memcached_talk   *at_talk; /* reads: where the next value is looked for first */
    size_t                         at;
    struct near__memcached_record *filling; /* a value is being received; NULL when a line is next */
    char                          *into;    /* NULL: it is read past */
    size_t                         left;    /* of it, its CRLF included */
    struct near__memcached_chunk  *chunks;
    char                           version[32];

    struct near__memcached_record *records;
};

/* Bytes of one block for a talk of up to `n` commands with `key_bytes` of keys and `value_bytes` of values in
 * all, and to make a talk of it.  The caller may put its own things before it, in one allocation. */
size_t near__memcached_talk_size(size_t n, size_t key_bytes, size_t value_bytes);
void   near__memcached_talk_init(struct near__memcached_talk *talk, enum near__memcached_talk_kind kind,
                                 size_t n, size_t key_bytes, size_t value_bytes, size_t max_value);
/* Its values go; the block is the caller's. */
void near__memcached_talk_fini(struct near__memcached_talk *talk);

/* Keys are fit and, with values, within what was announced. */
void near__memcached_add_read(struct near__memcached_talk *talk, near_bytes key);
void near__memcached_add_store(struct near__memcached_talk *talk, enum near__memcached_verb verb,
                               near_bytes key, uint32_t flags, int64_t exptime, near_bytes value,
                               uint64_t unique);
void near__memcached_add_delete(struct near__memcached_talk *talk, near_bytes key);
/* After the last one.  Settings and version have nothing added. */
void near__memcached_talk_ready(struct near__memcached_talk *talk);

/* "get", "set" (the first of several), ... */
const char *near__memcached_talk_name(const struct near__memcached_talk *talk);

/* Reads of one line, to be said together: the name ("get") once, then the keys of each, then "\r\n". */
bool near__memcached_can_fuse(const struct near__memcached_talk *talk);
/* `talk` hears with the group that `last` ends, whose first is the one that hears. */
void near__memcached_fuse(struct near__memcached_talk *last, struct near__memcached_talk *talk);

/* One key of such a line; those of a talk lie one behind the other. */
near_bytes near__memcached_key_said(const struct near__memcached_record *record);
/* `record` of `talk` is not said: `asked`, in the same group, asks for its key already. */
void near__memcached_follow(struct near__memcached_record *asked, struct near__memcached_talk *talk,
                            struct near__memcached_record *record);

/* As if nothing had been said: alone again, all answers forgotten. */
void near__memcached_rewind(struct near__memcached_talk *talk);

enum near__memcached_progress {
    NEAR__MEMCACHED_WAITING,  /* for more bytes */
    NEAR__MEMCACHED_COMPLETE, /* every record has its answer; bytes after *used are another talk's */
    NEAR__MEMCACHED_NONSENSE, /* the connection is over; `why` says what was heard */
    NEAR__MEMCACHED_NO_ROOM   /* the connection is over: no memory for a value */
};

/* bytes[0 .. size) were received after all that was heard before.  *used of them are done with; what is left
 * when WAITING (less than NEAR__MEMCACHED_LINE) has to be put in again with more behind it. */
enum near__memcached_progress near__memcached_hear(struct near__memcached_talk *talk, const char *bytes,
                                                   size_t size, size_t *used, near_error *why);

#endif
