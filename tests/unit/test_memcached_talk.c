/*
 * The memcached text protocol without a socket: what is said, to the byte, and what is made of anything that
 * can be answered: cut everywhere, a byte changed everywhere, another command's answer, another's key.
 */
#include "harness/test.h"

#include "l2/memcached_talk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_VALUE 4096

static near_bytes
text(const char *words)
{
    return (near_bytes){ words, strlen(words) };
}

static struct near__memcached_talk *
talk_new(enum near__memcached_talk_kind kind, size_t n, size_t key_bytes, size_t value_bytes)
{
    struct near__memcached_talk *talk =
        malloc(sizeof(*talk) + near__memcached_talk_size(n, key_bytes, value_bytes));

    assert_non_null(talk);
    near__memcached_talk_init(talk, kind, n, key_bytes, value_bytes, MAX_VALUE);
    return talk;
}

static void
talk_free(struct near__memcached_talk *talk)
{
    near__memcached_talk_fini(talk);
    free(talk);
}

static struct near__memcached_talk *
reads(size_t n, const char *const *keys)
{
    struct near__memcached_talk *talk =
        talk_new(NEAR__MEMCACHED_READS_NUMBERS, n, n * NEAR__MEMCACHED_KEY, 0);

    for (size_t i = 0; i < n; i++)
        near__memcached_add_read(talk, text(keys[i]));
    near__memcached_talk_ready(talk);
    return talk;
}

static struct near__memcached_talk *
writes(void)
{
    struct near__memcached_talk *talk = talk_new(NEAR__MEMCACHED_WRITES, 4, 40, 40);

    near__memcached_add_store(talk, NEAR__MEMCACHED_SET, text("one"), 7, 60, text("v1"), 0);
    near__memcached_add_store(talk, NEAR__MEMCACHED_ADD, text("two"), 0, 0, text(""), 0);
    near__memcached_add_store(talk, NEAR__MEMCACHED_CAS, text("three"), UINT32_MAX, NEAR__MEMCACHED_EXPIRED,
                              text("\r\nEND\r\n"), UINT64_MAX);
    near__memcached_add_delete(talk, text("four"));
    near__memcached_talk_ready(talk);
    return talk;
}

/* As a connection does it: what is not used up is put in again with more behind it, `step` bytes at a time. */
static enum near__memcached_progress
hear_in_steps(struct near__memcached_talk *talk, const char *bytes, size_t size, size_t step, size_t *left,
              near_error *why)
{
    enum near__memcached_progress progress = NEAR__MEMCACHED_WAITING;
    size_t                        from = 0, to = 0, used;

    near__memcached_rewind(talk);
    while (progress == NEAR__MEMCACHED_WAITING && to < size) {
        char *exact;

        to    = to + step < size ? to + step : size;
        exact = malloc(to - from); /* so that a read beyond it is seen */
        assert_non_null(exact);
        memcpy(exact, bytes + from, to - from);
        progress = near__memcached_hear(talk, exact, to - from, &used, why);
        free(exact);
        assert_true(used <= to - from);
        from += used;
        if (progress == NEAR__MEMCACHED_WAITING)
            assert_true(to - from < NEAR__MEMCACHED_LINE);
    }
    *left = size - from;
    return progress;
}

static enum near__memcached_progress
hear(struct near__memcached_talk *talk, const char *words)
{
    near_error why = { 0 };
    size_t     left;

    return hear_in_steps(talk, words, strlen(words), strlen(words), &left, &why);
}

/* ------------------------------------------------------------------------------------------------- saying */

static void
test_what_is_said(void **state)
{
    static const char *const     keys[] = { "a", "bc", "def" };
    struct near__memcached_talk *talk   = reads(3, keys);
    static const char            writes_say[] =
        "set one 7 60 2\r\nv1\r\nadd two 0 0 0\r\n\r\ncas three 4294967295 2592001 7 18446744073709551615\r\n"
        "\r\nEND\r\n\r\ndelete four\r\n";

    (void)state;
    assert_int_equal(talk->size, strlen("gets a bc def\r\n"));
    assert_memory_equal(talk->bytes, "gets a bc def\r\n", talk->size);
    assert_true(near__bytes_equal(near__memcached_key_said(&talk->records[0]), text(" a")));
    assert_true(near__bytes_equal(near__memcached_key_said(&talk->records[2]), text(" def")));
    talk_free(talk);
    talk = talk_new(NEAR__MEMCACHED_READS, 1, 8, 0);
    near__memcached_add_read(talk, text("abc"));
    near__memcached_talk_ready(talk);
    assert_int_equal(talk->size, strlen("get abc\r\n"));
    assert_memory_equal(talk->bytes, "get abc\r\n", talk->size);
    assert_true(near__bytes_equal(near__memcached_key_said(&talk->records[0]), text(" abc")));
    /* its answers have no numbers */
    assert_int_equal(hear(talk, "VALUE abc 7 2\r\nok\r\nEND\r\n"), NEAR__MEMCACHED_COMPLETE);
    assert_int_equal(talk->records[0].flags, 7);
    assert_true(near__bytes_equal(talk->records[0].value, text("ok")));
    assert_int_equal(hear(talk, "VALUE abc 7 2 1\r\nok\r\nEND\r\n"), NEAR__MEMCACHED_NONSENSE);
    talk_free(talk);
    talk = writes();
    assert_int_equal(talk->size, sizeof(writes_say) - 1);
    assert_memory_equal(talk->bytes, writes_say, talk->size);
    assert_int_equal(talk->records[0].end, 20);
    assert_int_equal(talk->records[3].end, talk->size);
    assert_true(near__bytes_equal(talk->records[2].key, text("three")));
    assert_false(near__memcached_can_fuse(talk));
    talk_free(talk);
}

/* The largest of everything finds room, and many keys are several lines. */
static void
test_the_most_that_is_said(void **state)
{
    enum { N = 2 * NEAR__MEMCACHED_KEYS + 1 };
    struct near__memcached_talk *talk = talk_new(NEAR__MEMCACHED_READS, N, N * NEAR__MEMCACHED_KEY, 0);
    char                         key[NEAR__MEMCACHED_KEY];
    size_t                       lines = 0;

    (void)state;
    memset(key, 'k', sizeof(key));
    for (size_t i = 0; i < N; i++)
        near__memcached_add_read(talk, (near_bytes){ key, sizeof(key) });
    near__memcached_talk_ready(talk);
    assert_true(talk->size <= talk->room);
    assert_false(near__memcached_can_fuse(talk));
    for (size_t i = 0; i < talk->size; i++)
        lines += talk->bytes[i] == '\n';
    assert_int_equal(lines, 3);
    talk_free(talk);
    talk = talk_new(NEAR__MEMCACHED_WRITES, 3, 3 * sizeof(key), 3);
    for (size_t i = 0; i < 3; i++)
        near__memcached_add_store(talk, NEAR__MEMCACHED_CAS, (near_bytes){ key, sizeof(key) }, UINT32_MAX,
                                  INT32_MAX, text("v"), UINT64_MAX);
    near__memcached_talk_ready(talk);
    assert_true(talk->size <= talk->room);
    talk_free(talk);
}

/* ------------------------------------------------------------------------------------------------ hearing */

static const char *const asked[]  = { "alpha", "bravo-2", "charlie--3" };
static const char        answer[] = "VALUE alpha 9 5 77\r\nvalue\r\n"
                                    "VALUE charlie--3 0 12 18446744073709551615\r\n\r\nEND\r\nabc\r\n\r\n"
                                    "END\r\n";

static void
check_answer(const struct near__memcached_talk *talk)
{
    const struct near__memcached_record *r = talk->records;

    assert_true(talk->complete);
    assert_int_equal(r[0].word, NEAR__MEMCACHED_DONE);
    assert_true(near__bytes_equal(r[0].value, text("value")));
    assert_int_equal(r[0].flags, 9);
    assert_int_equal(r[0].unique, 77);
    assert_int_equal(r[1].word, NEAR__MEMCACHED_NO);
    assert_int_equal(r[2].word, NEAR__MEMCACHED_DONE);
    assert_true(near__bytes_equal(r[2].value, text("\r\nEND\r\nabc\r\n")));
    assert_true(r[2].unique == UINT64_MAX);
}

/* Whatever the pieces, the answer is the same, and nothing is answered before its end has come. */
static void
test_answers_in_pieces_of_every_size(void **state)
{
    struct near__memcached_talk *talk = reads(3, asked);
    size_t                       size = sizeof(answer) - 1, left;
    near_error                   why  = { 0 };

    (void)state;
    for (size_t step = 1; step <= size; step++) {
        assert_int_equal(hear_in_steps(talk, answer, size, step, &left, &why), NEAR__MEMCACHED_COMPLETE);
        assert_int_equal(left, 0);
        check_answer(talk);
    }
    for (size_t cut = 0; cut < size; cut++) {
        assert_int_equal(hear_in_steps(talk, answer, cut, 1, &left, &why), NEAR__MEMCACHED_WAITING);
        assert_false(talk->complete);
        assert_int_equal(talk->answered, 0);
        assert_int_equal(talk->records[1].word, NEAR__MEMCACHED_UNANSWERED);
    }
    talk_free(talk);
}

static void
test_answers_to_writes(void **state)
{
    struct near__memcached_talk *talk   = writes();
    static const char            good[] = "STORED\r\nNOT_STORED\r\nEXISTS\r\nDELETED\r\n";
    near_error                   why    = { 0 };
    size_t                       left;

    (void)state;
    for (size_t step = 1; step < sizeof(good); step++) {
        assert_int_equal(hear_in_steps(talk, good, sizeof(good) - 1, step, &left, &why),
                         NEAR__MEMCACHED_COMPLETE);
        assert_int_equal(talk->records[0].word, NEAR__MEMCACHED_DONE);
        assert_int_equal(talk->records[1].word, NEAR__MEMCACHED_NO);
        assert_int_equal(talk->records[2].word, NEAR__MEMCACHED_NO);
        assert_int_equal(talk->records[3].word, NEAR__MEMCACHED_DONE);
    }
    assert_int_equal(hear(talk, "SERVER_ERROR object too large for cache\r\n"
                                "SERVER_ERROR out of memory storing object\r\nSTORED\r\nNOT_FOUND\r\n"),
                     NEAR__MEMCACHED_COMPLETE);
    assert_int_equal(talk->records[0].word, NEAR__MEMCACHED_OVERSIZE);
    assert_int_equal(talk->records[1].word, NEAR__MEMCACHED_REFUSED);
    assert_int_equal(talk->records[2].word, NEAR__MEMCACHED_DONE);
    assert_int_equal(talk->records[3].word, NEAR__MEMCACHED_NO);
    /* what was answered before the nonsense stays answered */
    assert_int_equal(hear(talk, "STORED\r\nSTORED\r\nnonsense\r\n"), NEAR__MEMCACHED_NONSENSE);
    assert_int_equal(talk->answered, 2);
    assert_int_equal(talk->records[2].word, NEAR__MEMCACHED_UNANSWERED);
    talk_free(talk);
}

/* L2: what is sound as one command's answer is none of another's. */
static void
test_L2_every_answer_to_every_command(void **state)
{
    static const char *const lines[] = {
        "END\r\n",     "STORED\r\n",  "NOT_STORED\r\n",     "EXISTS\r\n",
        "DELETED\r\n", "ERROR\r\n",   "VERSION 1.6.18\r\n", "STAT item_size_max 5\r\n",
        "OK\r\n",      "TOUCHED\r\n", "CLIENT_ERROR x\r\n", "SERVER_ERROR x\r\n",
        "\r\n",        "HD\r\n",      "NOT_FOUND\r\n",      "SERVER_ERROR object too large for cache\r\n",
    };
    /* by line: which of gets, set, add, cas, delete, version, settings take it */
    static const char *const taken[] = {
        "g.....s", ".sac...", "..a....", "...c...", "....d..", ".......", ".....v.", "......s",
        ".......", ".......", ".......", ".......", ".......", ".......", "...cd..", ".sac...",
    };
    static const char *const one[] = { "k" };

    (void)state;
    for (size_t l = 0; l < NEAR_COUNT_OF(lines); l++) {
        for (size_t command = 0; command < 7; command++) {
            struct near__memcached_talk *talk;

            if (command == 0) {
                talk = reads(1, one);
            } else {
                talk = talk_new(command == 5   ? NEAR__MEMCACHED_ASK_VERSION
                                : command == 6 ? NEAR__MEMCACHED_ASK_SETTINGS
                                               : NEAR__MEMCACHED_WRITES,
                                1, 8, 8);
                if (command == 4)
                    near__memcached_add_delete(talk, text("k"));
                else if (command < 4)
                    near__memcached_add_store(talk, (enum near__memcached_verb)(command - 1), text("k"), 0, 0,
                                              text("v"), 1);
                near__memcached_talk_ready(talk);
            }
            assert_int_equal(hear(talk, lines[l]) == NEAR__MEMCACHED_NONSENSE, taken[l][command] == '.');
            talk_free(talk);
        }
    }
}

/* L4: every byte at every place of keys of every size that are looked at eight bytes at a time and one by one. */
static void
test_L4_what_a_key_can_hold(void **state)
{
    static const char fill[] = { 0x21, 'k', 0x7E };
    char              key[20];

    (void)state;
    for (size_t size = 1; size <= sizeof(key); size++)
        for (size_t at = 0; at < size; at++)
            for (unsigned byte = 0; byte < 256; byte++) {
                memset(key, fill[byte % 3], sizeof(key));
                key[at] = (char)byte;
                assert_int_equal(near__memcached_key_is_fit((near_bytes){ key, size }),
                                 byte >= 0x21 && byte <= 0x7E);
            }
    assert_false(near__memcached_key_is_fit(text("")));
}

/* L3, L6: names that were not asked for, twice the same, and forms that are nearly right. */
static void
test_L3_bad_values(void **state)
{
    static const char *const bad[] = {
        "VALUE other 0 1 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 1 1\r\nv\r\nVALUE alpha 0 1 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 1 0\r\nv\r\nEND\r\n", /* L15 */
        "VALUE alpha 0 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 1 1 \r\nv\r\nEND\r\n",
        "VALUE alpha 0 1 1\nv\r\nEND\r\n",
        "VALUE  alpha 0 1 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 -1 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 +1 1\r\nv\r\nEND\r\n",
        "VALUE alpha 4294967296 1 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 2147483648 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 1 18446744073709551616\r\nv\r\nEND\r\n",
        "VALUE alpha 0 99999999999999999999999999 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 0 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 2 1\r\nv\r\nEND\r\n",
        "VALUE alpha 0 1 1\r\nv\rEND\r\n",
        "VALUE alpha 0 1 1\r\nv\n\rEND\r\n",
        "VALUE\r\n",
        "VALUE \r\n",
        "END \r\n",
        "END\n",
        "end\r\n",
        " END\r\n",
        "VERSION \x1b[2J\r\n",
    };
    struct near__memcached_talk *talk = reads(3, asked);
    char                        *line = malloc(2 * NEAR__MEMCACHED_LINE);

    (void)state;
    assert_non_null(line);
    for (size_t i = 0; i < NEAR_COUNT_OF(bad); i++) {
        assert_int_equal(hear(talk, bad[i]), NEAR__MEMCACHED_NONSENSE);
        assert_int_equal(talk->records[1].word, NEAR__MEMCACHED_UNANSWERED);
    }
    /* a line without an end, and a key longer than a key can be */
    memset(line, 'x', 2 * NEAR__MEMCACHED_LINE);
    line[NEAR__MEMCACHED_LINE - 1] = '\0';
    assert_int_equal(hear(talk, line), NEAR__MEMCACHED_WAITING);
    line[NEAR__MEMCACHED_LINE - 1] = 'x';
    line[NEAR__MEMCACHED_LINE]     = '\0';
    assert_int_equal(hear(talk, line), NEAR__MEMCACHED_NONSENSE);
    memcpy(line, "VALUE ", 6);
    memcpy(line + 6 + 251, " 0 1 1\r\nv\r\nEND\r\n", 17);
    assert_int_equal(hear(talk, line), NEAR__MEMCACHED_NONSENSE);
    free(line);
    talk_free(talk);
}

/* A byte changed anywhere: the connection ends, or waits, or what was answered differs in that byte only. */
static void
test_a_byte_changed_anywhere(void **state)
{
    struct near__memcached_talk *talk     = reads(3, asked);
    size_t                       size     = sizeof(answer) - 1, left;
    size_t                       complete = 0, nonsense = 0;
    char                         bytes[sizeof(answer)];
    near_error                   why = { 0 };

    (void)state;
    for (size_t at = 0; at < size; at++) {
        for (unsigned with = 0; with < 256; with++) {
            enum near__memcached_progress progress;

            memcpy(bytes, answer, sizeof(answer));
            if (bytes[at] == (char)with)
                continue;
            bytes[at] = (char)with;
            progress  = hear_in_steps(talk, bytes, size, size, &left, &why);
            complete += progress == NEAR__MEMCACHED_COMPLETE;
            nonsense += progress == NEAR__MEMCACHED_NONSENSE;
            if (progress != NEAR__MEMCACHED_COMPLETE)
                continue;
            assert_int_equal(talk->records[0].word, NEAR__MEMCACHED_DONE);
            assert_int_equal(talk->records[0].value.size, 5);
            assert_int_equal(talk->records[1].word, NEAR__MEMCACHED_NO);
            assert_int_equal(talk->records[2].value.size, 12);
        }
    }
    assert_true(complete > 0 && nonsense > complete);
    talk_free(talk);
}

/* A value that is too large is read past; no memory is taken for it, and those around it are whole. */
static void
test_a_value_too_large_is_read_past(void **state)
{
    struct near__memcached_talk *talk = reads(3, asked);
    char                         bytes[2 * MAX_VALUE + 200];
    size_t     size = (size_t)snprintf(bytes, sizeof(bytes), "VALUE alpha 0 %d 1\r\n", MAX_VALUE + 1);
    near_error why  = { 0 };
    size_t     left;

    (void)state;
    memset(bytes + size, 'v', MAX_VALUE + 1);
    size += MAX_VALUE + 1;
    size += (size_t)snprintf(bytes + size, sizeof(bytes) - size, "\r\nVALUE bravo-2 0 2 1\r\nok\r\nEND\r\n");
    for (size_t step = 1; step < size; step = step * 3 + 1) {
        assert_int_equal(hear_in_steps(talk, bytes, size, step, &left, &why), NEAR__MEMCACHED_COMPLETE);
        assert_int_equal(talk->records[0].word, NEAR__MEMCACHED_OVERSIZE);
        assert_int_equal(talk->records[1].word, NEAR__MEMCACHED_DONE);
        assert_true(near__bytes_equal(talk->records[1].value, text("ok")));
        assert_int_equal(talk->records[2].word, NEAR__MEMCACHED_NO);
    }
    /* as large as the protocol can say: nothing is allocated for it */
    assert_int_equal(hear(talk, "VALUE alpha 0 2147483647 1\r\nxxx"), NEAR__MEMCACHED_WAITING);
    assert_null(talk->chunks);
    talk_free(talk);
}

/* Many values of every size: each in its place. */
static void
test_many_values(void **state)
{
    enum { N = 300 };
    struct near__memcached_talk *talk  = talk_new(NEAR__MEMCACHED_READS_NUMBERS, N, N * 10, 0);
    char                        *bytes = malloc(N * (MAX_VALUE + 100)), key[16];
    size_t                       size  = 0, left;
    near_error                   why   = { 0 };

    (void)state;
    assert_non_null(bytes);
    for (unsigned i = 0; i < N; i++) {
        snprintf(key, sizeof(key), "key:%u", i);
        near__memcached_add_read(talk, text(key));
    }
    near__memcached_talk_ready(talk);
    for (unsigned i = 0; i < N; i++) {
        size_t length = (i * 37u) % MAX_VALUE;

        if (i % 3 != 0) {
            size += (size_t)sprintf(bytes + size, "VALUE key:%u %u %zu %u\r\n", i, i, length, i + 1);
            memset(bytes + size, (int)('a' + i % 26), length);
            size += length;
            size += (size_t)sprintf(bytes + size, "\r\n");
        }
        if (i % NEAR__MEMCACHED_KEYS == NEAR__MEMCACHED_KEYS - 1 || i == N - 1)
            size += (size_t)sprintf(bytes + size, "END\r\n");
    }
    assert_int_equal(hear_in_steps(talk, bytes, size, 5000, &left, &why), NEAR__MEMCACHED_COMPLETE);
    for (unsigned i = 0; i < N; i++) {
        const struct near__memcached_record *r = &talk->records[i];

        assert_int_equal(r->word, i % 3 != 0 ? NEAR__MEMCACHED_DONE : NEAR__MEMCACHED_NO);
        if (r->word != NEAR__MEMCACHED_DONE)
            continue;
        assert_int_equal(r->flags, i);
        assert_int_equal(r->value.size, (i * 37u) % MAX_VALUE);
        for (size_t b = 0; b < r->value.size; b++)
            assert_int_equal(((const char *)r->value.data)[b], 'a' + i % 26);
    }
    free(bytes);
    talk_free(talk);
}

/* ---------------------------------------------------------------------------------------- several together */

/* Three callers' reads as one line: each has its own, also where two ask for the same key, and where a proxy
 * answers in another order; none is complete before the END. */
static void
test_reads_together(void **state)
{
    static const char *const first[] = { "a", "b" }, *const second[] = { "b" }, *const third[] = { "c", "a" };
    static const char *const orders[] = {
        "VALUE a 0 1 1\r\n1\r\nVALUE b 0 1 2\r\n2\r\nVALUE b 0 1 2\r\n2\r\nVALUE a 0 1 1\r\n1\r\n",
        "VALUE b 0 1 2\r\n2\r\nVALUE a 0 1 1\r\n1\r\nVALUE a 0 1 1\r\n1\r\nVALUE b 0 1 2\r\n2\r\n",
    };
    struct near__memcached_talk *one = reads(2, first), *two = reads(1, second), *three = reads(2, third);

    (void)state;
    for (size_t o = 0; o < NEAR_COUNT_OF(orders); o++) {
        char       words[256];
        near_error why = { 0 };
        size_t     used, size = (size_t)snprintf(words, sizeof(words), "%sEND\r\nSTORED\r\n", orders[o]);

        near__memcached_rewind(one);
        near__memcached_rewind(two);
        near__memcached_rewind(three);
        near__memcached_fuse(one, two);
        near__memcached_fuse(two, three);
        assert_int_equal(near__memcached_hear(one, words, size - 13, &used, &why), NEAR__MEMCACHED_WAITING);
        assert_false(one->complete || two->complete || three->complete);
        assert_int_equal(near__memcached_hear(one, words + used, size - used, &used, &why),
                         NEAR__MEMCACHED_COMPLETE);
        assert_int_equal(used, 5); /* what follows is another's */
        assert_true(one->complete && two->complete && three->complete);
        assert_true(near__bytes_equal(one->records[0].value, text("1")));
        assert_true(near__bytes_equal(one->records[1].value, text("2")));
        assert_true(near__bytes_equal(two->records[0].value, text("2")));
        assert_int_equal(three->records[0].word, NEAR__MEMCACHED_NO);
        assert_true(near__bytes_equal(three->records[1].value, text("1")));
    }
    /* the first may be freed before the others are read */
    talk_free(one);
    assert_true(near__bytes_equal(two->records[0].value, text("2")));
    assert_true(near__bytes_equal(three->records[1].value, text("1")));
    talk_free(two);
    talk_free(three);
}

/* A key that is said once for several: each has its own copy, and what is not there is there for nobody. */
static void
test_records_that_follow_hear_the_same(void **state)
{
    static const char *const first[] = { "a", "b" }, *const second[] = { "b" }, *const third[] = { "c", "b" };
    struct near__memcached_talk *one = reads(2, first), *two = reads(1, second), *three = reads(2, third);
    char                         words[] = "VALUE a 0 1 7\r\n1\r\nVALUE b 5 2 8\r\n22\r\nEND\r\n";
    near_error                   why     = { 0 };
    size_t                       used;

    (void)state;
    for (unsigned missing = 0; missing < 2; missing++) {
        const char *heard = missing ? "END\r\n" : words;

        near__memcached_rewind(one);
        near__memcached_rewind(two);
        near__memcached_rewind(three);
        near__memcached_fuse(one, two);
        near__memcached_fuse(two, three);
        near__memcached_follow(&one->records[1], two, &two->records[0]);
        near__memcached_follow(&one->records[1], three, &three->records[1]);
        assert_int_equal(near__memcached_hear(one, heard, strlen(heard), &used, &why),
                         NEAR__MEMCACHED_COMPLETE);
        assert_int_equal(two->records[0].word, missing ? NEAR__MEMCACHED_NO : NEAR__MEMCACHED_DONE);
        assert_int_equal(three->records[1].word, missing ? NEAR__MEMCACHED_NO : NEAR__MEMCACHED_DONE);
        assert_int_equal(three->records[0].word, NEAR__MEMCACHED_NO);
        if (missing)
            continue;
        assert_true(near__bytes_equal(two->records[0].value, text("22")));
        assert_true(near__bytes_equal(three->records[1].value, text("22")));
        assert_ptr_not_equal(two->records[0].value.data, one->records[1].value.data);
        assert_int_equal(two->records[0].unique, 8);
        assert_int_equal(three->records[1].flags, 5);
    }
    /* said once, it may be answered once */
    near__memcached_rewind(one);
    near__memcached_rewind(two);
    near__memcached_fuse(one, two);
    near__memcached_follow(&one->records[1], two, &two->records[0]);
    strcpy(words, "VALUE b 0 1 7\r\n1\r\nVALUE b 0 1 7\r\n1\r\n");
    assert_int_equal(near__memcached_hear(one, words, strlen(words), &used, &why), NEAR__MEMCACHED_NONSENSE);
    talk_free(one);
    talk_free(two);
    talk_free(three);
}

static void
test_version_and_settings(void **state)
{
    struct near__memcached_talk *talk = talk_new(NEAR__MEMCACHED_ASK_VERSION, 1, 0, 0);

    (void)state;
    near__memcached_talk_ready(talk);
    assert_int_equal(hear(talk, "VERSION 1.6.18\r\n"), NEAR__MEMCACHED_COMPLETE);
    assert_string_equal(talk->version, "1.6.18");
    assert_int_equal(hear(talk, "VERSION 0123456789012345678901234567890123456789\r\n"),
                     NEAR__MEMCACHED_COMPLETE);
    assert_int_equal(strlen(talk->version), 31);
    talk_free(talk);
    talk = talk_new(NEAR__MEMCACHED_ASK_SETTINGS, 1, 0, 0);
    near__memcached_talk_ready(talk);
    assert_int_equal(hear(talk, "STAT maxbytes 5\r\nSTAT item_size_max 1048576\r\nSTAT empty \r\nEND\r\n"),
                     NEAR__MEMCACHED_COMPLETE);
    assert_int_equal(talk->records[0].unique, 1048576);
    assert_int_equal(hear(talk, "STAT item_size_max 99999999999999999999999\r\nEND\r\n"),
                     NEAR__MEMCACHED_COMPLETE);
    assert_int_equal(talk->records[0].unique, 0);
    talk_free(talk);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_said),
        cmocka_unit_test(test_the_most_that_is_said),
        cmocka_unit_test(test_answers_in_pieces_of_every_size),
        cmocka_unit_test(test_answers_to_writes),
        cmocka_unit_test(test_L2_every_answer_to_every_command),
        cmocka_unit_test(test_L3_bad_values),
        cmocka_unit_test(test_L4_what_a_key_can_hold),
        cmocka_unit_test(test_a_byte_changed_anywhere),
        cmocka_unit_test(test_a_value_too_large_is_read_past),
        cmocka_unit_test(test_many_values),
        cmocka_unit_test(test_reads_together),
        cmocka_unit_test(test_records_that_follow_hear_the_same),
        cmocka_unit_test(test_version_and_settings),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
