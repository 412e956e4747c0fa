/*
 * See memcached_talk.h.
 *
 * One block: records, then the bytes that are said.  Values that are heard lie in chunks, small ones together,
 * a large one alone in a chunk of its size.
 */
#include "l2/memcached_talk.h"

#include <stdlib.h>
#include <string.h>

/* Small values share chunks of this size: a batch of a hundred small ones takes a few allocations, and a lone
 * one not much more than it needs. */
#define CHUNK_FIRST 512 /* malloc has such sizes at hand */
#define CHUNK_NEXT  (16 << 10)
#define ALONE       (4 << 10) /* from this size on a value has a chunk of its own */

struct near__memcached_chunk {
    struct near__memcached_chunk *next;
    size_t                        used, size;
    char                          data[];
};

/* The command of a record. */
enum { STORE_SET, STORE_ADD, STORE_CAS, DELETE, READ };
_Static_assert(STORE_SET == (int)NEAR__MEMCACHED_SET && STORE_ADD == (int)NEAR__MEMCACHED_ADD &&
                   STORE_CAS == (int)NEAR__MEMCACHED_CAS,
               "verbs are commands");

static bool
reads(const struct near__memcached_talk *talk)
{
    return talk->kind == NEAR__MEMCACHED_READS || talk->kind == NEAR__MEMCACHED_READS_NUMBERS;
}

static bool
wants_numbers(const struct near__memcached_talk *talk)
{
    return talk->kind == NEAR__MEMCACHED_READS_NUMBERS;
}

/* ---------------------------------------------------------------------------------------------- to say */

static size_t
said_size(size_t n, size_t key_bytes, size_t value_bytes)
{
    return n * (NEAR__MEMCACHED_COMMAND - NEAR__MEMCACHED_KEY + 2) + key_bytes + value_bytes + 32;
}

size_t
near__memcached_talk_size(size_t n, size_t key_bytes, size_t value_bytes)
{
    return n * sizeof(struct near__memcached_record) + said_size(n, key_bytes, value_bytes);
}

void
near__memcached_talk_init(struct near__memcached_talk *talk, enum near__memcached_talk_kind kind, size_t n,
                          size_t key_bytes, size_t value_bytes, size_t max_value)
{
    char *block = (char *)(talk + 1);

    memset(talk, 0, sizeof(*talk));
    talk->kind      = kind;
    talk->capacity  = n;
    talk->max_value = max_value;
    talk->records   = (struct near__memcached_record *)(void *)block;
    talk->bytes     = block + n * sizeof(talk->records[0]);
    talk->room      = said_size(n, key_bytes, value_bytes);
}

static void
say(struct near__memcached_talk *talk, const char *bytes, size_t size)
{
    if (size > 0)
        memcpy(talk->bytes + talk->size, bytes, size);
    talk->size += size;
}

/* The record of the next command; `at`: where in the bytes its key begins. */
static struct near__memcached_record *
add_record(struct near__memcached_talk *talk, int command, size_t at, size_t key_size)
{
    struct near__memcached_record *record = &talk->records[talk->n++];

    *record         = (struct near__memcached_record){ .key = { talk->bytes + at, key_size } };
    record->command = (uint8_t)command;
    return record;
}

void
near__memcached_add_read(struct near__memcached_talk *talk, near_bytes key)
{
    if (talk->n % NEAR__MEMCACHED_KEYS == 0) {
        if (talk->n > 0)
            say(talk, "\r\n", 2);
        say(talk, "gets", wants_numbers(talk) ? 4 : 3);
    }
    add_record(talk, READ, talk->size + 1, key.size);
    talk->size = (size_t)(near__memcached_format_asked(talk->bytes + talk->size, key) - talk->bytes);
    talk->records[talk->n - 1].end = talk->size + 2;
}

void
near__memcached_add_store(struct near__memcached_talk *talk, enum near__memcached_verb verb, near_bytes key,
                          uint32_t flags, int64_t exptime, near_bytes value, uint64_t unique)
{
    char *out = talk->bytes + talk->size;

    add_record(talk, (int)verb, talk->size + 4, key.size);
    out        = near__memcached_format_store(out, verb, key, flags, exptime, value.size, unique);
    talk->size = (size_t)(out - talk->bytes);
    say(talk, value.data, value.size);
    say(talk, "\r\n", 2);
    talk->records[talk->n - 1].end = talk->size;
}

void
near__memcached_add_delete(struct near__memcached_talk *talk, near_bytes key)
{
    add_record(talk, DELETE, talk->size + 7, key.size);
    talk->size = (size_t)(near__memcached_format_delete(talk->bytes + talk->size, key) - talk->bytes);
    talk->records[talk->n - 1].end = talk->size;
}

void
near__memcached_talk_ready(struct near__memcached_talk *talk)
{
    if (reads(talk))
        say(talk, "\r\n", 2);
    if (talk->kind == NEAR__MEMCACHED_ASK_VERSION)
        say(talk, "version\r\n", 9);
    if (talk->kind == NEAR__MEMCACHED_ASK_SETTINGS)
        say(talk, "stats settings\r\n", 16);
    if (talk->kind == NEAR__MEMCACHED_ASK_VERSION || talk->kind == NEAR__MEMCACHED_ASK_SETTINGS) {
        talk->n          = 1;
        talk->records[0] = (struct near__memcached_record){ .unique = 0 }; /* of a setting that is not told */
    }
    near__memcached_rewind(talk);
}

static void
free_chunks(struct near__memcached_talk *talk)
{
    while (talk->chunks != NULL) {
        struct near__memcached_chunk *next = talk->chunks->next;
        free(talk->chunks);
        talk->chunks = next;
    }
}

void
near__memcached_talk_fini(struct near__memcached_talk *talk)
{
    free_chunks(talk);
}

void
near__memcached_rewind(struct near__memcached_talk *talk)
{
    free_chunks(talk);
    talk->fused    = NULL;
    talk->complete = false;
    talk->answered = 0;
    talk->at_talk  = talk;
    talk->at       = 0;
    talk->filling  = NULL;
    talk->left     = 0;
    for (size_t i = 0; i < talk->n; i++) {
        struct near__memcached_record *record = &talk->records[i];

        record->word    = NEAR__MEMCACHED_UNANSWERED;
        record->same    = NULL;
        record->follows = false;
        record->value   = (near_bytes){ NULL, 0 };
        if (record->command == READ)
            record->unique = 0;
    }
}

bool
near__memcached_can_fuse(const struct near__memcached_talk *talk)
{
    return reads(talk) && talk->n <= NEAR__MEMCACHED_KEYS;
}

void
near__memcached_fuse(struct near__memcached_talk *last, struct near__memcached_talk *talk)
{
    last->fused = talk;
}

near_bytes
near__memcached_key_said(const struct near__memcached_record *record)
{
    return (near_bytes){ (const char *)record->key.data - 1, record->key.size + 1 };
}

void
near__memcached_follow(struct near__memcached_record *asked, struct near__memcached_talk *talk,
                       struct near__memcached_record *record)
{
    record->follows = true;
    record->talk    = talk;
    record->same    = asked->same;
    asked->same     = record;
}

/* ------------------------------------------------------------------------------------ values: their place */

static char *
place_in(struct near__memcached_talk *talk, size_t room, size_t size)
{
    struct near__memcached_chunk *chunk = malloc(sizeof(*chunk) + room);

    if (chunk == NULL)
        return NULL;
    *chunk       = (struct near__memcached_chunk){ .next = talk->chunks, .used = size, .size = room };
    talk->chunks = chunk;
    return chunk->data;
}

static char *
place(struct near__memcached_talk *talk, size_t size)
{
    struct near__memcached_chunk *chunk = talk->chunks;

    if (size >= ALONE)
        return place_in(talk, size, size);
    if (chunk == NULL || chunk->size - chunk->used < size)
        return place_in(talk, chunk == NULL && size <= CHUNK_FIRST && talk->n <= 2 ? CHUNK_FIRST : CHUNK_NEXT,
                        size);
    chunk->used += size;
    return chunk->data + chunk->used - size;
}

/* ----------------------------------------------------------------------------------------------- to hear */

/* What the server says to each command, and what that means; everything else is nonsense. */
static enum near__memcached_word
word_of(int command, enum near__memcached_kind kind)
{
    if (command == DELETE) {
        if (kind == NEAR__MEMCACHED_DELETED)
            return NEAR__MEMCACHED_DONE;
        return kind == NEAR__MEMCACHED_NOT_FOUND ? NEAR__MEMCACHED_NO : NEAR__MEMCACHED_UNANSWERED;
    }
    switch (kind) {
    case NEAR__MEMCACHED_STORED:
        return NEAR__MEMCACHED_DONE;
    case NEAR__MEMCACHED_NOT_STORED:
        return command == STORE_ADD ? NEAR__MEMCACHED_NO : NEAR__MEMCACHED_UNANSWERED;
    case NEAR__MEMCACHED_EXISTS:
    case NEAR__MEMCACHED_NOT_FOUND:
        return command == STORE_CAS ? NEAR__MEMCACHED_NO : NEAR__MEMCACHED_UNANSWERED;
    case NEAR__MEMCACHED_TOO_LARGE:
        return NEAR__MEMCACHED_OVERSIZE;
    case NEAR__MEMCACHED_NO_MEMORY:
        return NEAR__MEMCACHED_REFUSED;
    default:
        return NEAR__MEMCACHED_UNANSWERED;
    }
}

static const char *const command_names[] = {
    [STORE_SET] = "set", [STORE_ADD] = "add", [STORE_CAS] = "cas", [DELETE] = "delete", [READ] = "get",
};

const char *
near__memcached_talk_name(const struct near__memcached_talk *talk)
{
    if (talk->kind == NEAR__MEMCACHED_ASK_VERSION)
        return "version";
    if (talk->kind == NEAR__MEMCACHED_ASK_SETTINGS)
        return "stats settings";
    if (wants_numbers(talk))
        return "gets";
    return command_names[talk->records[talk->answered < talk->n ? talk->answered : 0].command];
}

static enum near__memcached_progress
nonsense(const struct near__memcached_talk *talk, const struct near__memcached_line *line, near_error *why)
{
    if (line->kind == NEAR__MEMCACHED_ERROR)
        near__fail(why, NEAR_ERR_PROTOCOL, "%s: the server says %.*s", near__memcached_talk_name(talk),
                   (int)(line->text.size < 100 ? line->text.size : 100), (const char *)line->text.data);
    else
        near__fail(why, NEAR_ERR_PROTOCOL, "%s: %s", near__memcached_talk_name(talk),
                   line->kind == NEAR__MEMCACHED_BAD     ? "not an answer of memcached"
                   : line->kind == NEAR__MEMCACHED_VALUE ? "a value that was not asked for"
                                                         : "another command's answer");
    return NEAR__MEMCACHED_NONSENSE;
}

/* The keys of the line that is being answered: of the group's only line, or of the talk's next one. */
static size_t
line_end(const struct near__memcached_talk *talk)
{
    size_t end = talk->answered + NEAR__MEMCACHED_KEYS;

    return end < talk->n ? end : talk->n;
}

/* One step of the walk over the keys of the line, around at its end. */
static void
step(struct near__memcached_talk *first)
{
    if (++first->at < line_end(first->at_talk))
        return;
    first->at_talk = first->at_talk->fused != NULL ? first->at_talk->fused : first;
    first->at      = first->at_talk->answered;
}

/* Servers answer in the order asked, so that looking on from the last one found is enough; a proxy that asks
 * several servers answers in another order, and that costs a walk around. */
static struct near__memcached_record *
find_asked(struct near__memcached_talk *first, near_bytes key)
{
    const struct near__memcached_talk *began_talk = first->at_talk;
    size_t                             began      = first->at;

    do {
        struct near__memcached_record *record = &first->at_talk->records[first->at];

        step(first);
        if (record->word == NEAR__MEMCACHED_UNANSWERED && !record->follows &&
            near__bytes_equal(record->key, key))
            return record;
    } while (first->at_talk != began_talk || first->at != began);
    return NULL;
}

/* Whose chunks the record's value belongs in. */
static struct near__memcached_talk *
owner_of(struct near__memcached_talk *first, const struct near__memcached_record *record)
{
    while (record < first->records || record >= first->records + first->n)
        first = first->fused;
    return first;
}

static enum near__memcached_progress
hear_value(struct near__memcached_talk *first, const struct near__memcached_line *line, near_error *why)
{
    struct near__memcached_record *record = find_asked(first, line->key);
    struct near__memcached_talk   *owner;

    if (record == NULL || (line->unique != 0) != wants_numbers(first))
        return nonsense(first, line, why);
    owner          = owner_of(first, record);
    first->filling = record;
    first->into    = NULL;
    first->left    = line->bytes + 2;
    record->flags  = line->flags;
    record->unique = line->unique;
    if (line->bytes > owner->max_value)
        return NEAR__MEMCACHED_WAITING;
    first->into = place(owner, line->bytes);
    if (first->into == NULL) {
        near__fail(why, NEAR_ERR_NOMEM, "get: out of memory");
        return NEAR__MEMCACHED_NO_ROOM;
    }
    record->value = (near_bytes){ first->into, line->bytes };
    return NEAR__MEMCACHED_WAITING;
}

/* What the server has not named by now is not there. */
static enum near__memcached_progress
hear_end(struct near__memcached_talk *first)
{
    for (struct near__memcached_talk *talk = first; talk != NULL; talk = talk->fused) {
        size_t end = line_end(talk);

        for (; talk->answered < end; talk->answered++) {
            if (talk->records[talk->answered].word == NEAR__MEMCACHED_UNANSWERED)
                talk->records[talk->answered].word = NEAR__MEMCACHED_NO;
        }
        talk->complete = talk->answered == talk->n;
    }
    first->at_talk = first;
    first->at      = first->answered;
    return first->complete ? NEAR__MEMCACHED_COMPLETE : NEAR__MEMCACHED_WAITING;
}

static enum near__memcached_progress
hear_write(struct near__memcached_talk *talk, const struct near__memcached_line *line, near_error *why)
{
    struct near__memcached_record *record = &talk->records[talk->answered];

    record->word = word_of(record->command, line->kind);
    if (record->word == NEAR__MEMCACHED_UNANSWERED)
        return nonsense(talk, line, why);
    talk->complete = ++talk->answered == talk->n;
    return talk->complete ? NEAR__MEMCACHED_COMPLETE : NEAR__MEMCACHED_WAITING;
}

static enum near__memcached_progress
hear_version(struct near__memcached_talk *talk, const struct near__memcached_line *line, near_error *why)
{
    size_t size = line->text.size < sizeof(talk->version) - 1 ? line->text.size : sizeof(talk->version) - 1;

    if (line->kind != NEAR__MEMCACHED_VERSION)
        return nonsense(talk, line, why);
    memcpy(talk->version, line->text.data, size);
    talk->version[size]   = '\0';
    talk->records[0].word = NEAR__MEMCACHED_DONE;
    talk->complete        = true;
    return NEAR__MEMCACHED_COMPLETE;
}

static uint64_t
number_in(near_bytes text)
{
    const char *at     = text.data;
    uint64_t    number = 0;

    for (size_t i = 0; i < text.size; i++) {
        if (at[i] < '0' || at[i] > '9' || __builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(at[i] - '0'), &number))
            return 0;
    }
    return number;
}

static enum near__memcached_progress
hear_setting(struct near__memcached_talk *talk, const struct near__memcached_line *line, near_error *why)
{
    static const near_bytes name = { "item_size_max", 13 };

    if (line->kind == NEAR__MEMCACHED_STAT) {
        if (near__bytes_equal(line->key, name))
            talk->records[0].unique = number_in(line->text);
        return NEAR__MEMCACHED_WAITING;
    }
    if (line->kind != NEAR__MEMCACHED_END)
        return nonsense(talk, line, why);
    talk->records[0].word = NEAR__MEMCACHED_DONE;
    talk->complete        = true;
    return NEAR__MEMCACHED_COMPLETE;
}

static enum near__memcached_progress
hear_line(struct near__memcached_talk *talk, const struct near__memcached_line *line, near_error *why)
{
    if (line->kind == NEAR__MEMCACHED_BAD)
        return nonsense(talk, line, why);
    switch (talk->kind) {
    case NEAR__MEMCACHED_READS:
    case NEAR__MEMCACHED_READS_NUMBERS:
        if (line->kind == NEAR__MEMCACHED_VALUE)
            return hear_value(talk, line, why);
        return line->kind == NEAR__MEMCACHED_END ? hear_end(talk) : nonsense(talk, line, why);
    case NEAR__MEMCACHED_WRITES:
        return hear_write(talk, line, why);
    case NEAR__MEMCACHED_ASK_VERSION:
        return hear_version(talk, line, why);
    default:
        return hear_setting(talk, line, why);
    }
}

/* What a record has heard is told to all who follow it. */
static bool
hand_on(const struct near__memcached_record *heard)
{
    for (struct near__memcached_record *record = heard->same; record != NULL; record = record->same) {
        char *copy = heard->value.data == NULL ? NULL : place(record->talk, heard->value.size);

        if (heard->value.data != NULL && copy == NULL)
            return false;
        if (heard->value.size > 0)
            memcpy(copy, heard->value.data, heard->value.size);
        record->value  = (near_bytes){ copy, heard->value.size };
        record->unique = heard->unique;
        record->flags  = heard->flags;
        record->word   = heard->word;
    }
    return true;
}

/* Bytes of the value that is being received, and the CRLF behind it. */
static enum near__memcached_progress
hear_data(struct near__memcached_talk *talk, const char *bytes, size_t size, size_t *used, near_error *why)
{
    size_t                         data = talk->left > 2 ? talk->left - 2 : 0;
    struct near__memcached_record *record;

    if (data > size)
        data = size;
    if (talk->into != NULL && data > 0) {
        memcpy(talk->into, bytes, data);
        talk->into += data;
    }
    talk->left -= data;
    for (*used = data; *used < size && talk->left > 0 && talk->left <= 2; talk->left--) {
        if (bytes[(*used)++] != (talk->left == 2 ? '\r' : '\n')) {
            near__fail(why, NEAR_ERR_PROTOCOL, "get: a value is longer than the server said");
            return NEAR__MEMCACHED_NONSENSE;
        }
    }
    if (talk->left > 0)
        return NEAR__MEMCACHED_WAITING;
    record        = talk->filling;
    record->word  = record->value.data != NULL ? NEAR__MEMCACHED_DONE : NEAR__MEMCACHED_OVERSIZE;
    talk->filling = NULL;
    if (hand_on(record))
        return NEAR__MEMCACHED_WAITING;
    near__fail(why, NEAR_ERR_NOMEM, "get: out of memory");
    return NEAR__MEMCACHED_NO_ROOM;
}

enum near__memcached_progress
near__memcached_hear(struct near__memcached_talk *talk, const char *bytes, size_t size, size_t *used,
                     near_error *why)
{
    enum near__memcached_progress progress = NEAR__MEMCACHED_WAITING;
    struct near__memcached_line   line;
    size_t                        done;

    *used = 0;
    while (progress == NEAR__MEMCACHED_WAITING && *used < size) {
        if (talk->filling != NULL) {
            progress = hear_data(talk, bytes + *used, size - *used, &done, why);
            *used += done;
            continue;
        }
        near__memcached_parse_line(&line, bytes + *used, size - *used);
        if (line.kind == NEAR__MEMCACHED_MORE)
            break;
        *used += line.size;
        progress = hear_line(talk, &line, why);
    }
    return progress;
}
