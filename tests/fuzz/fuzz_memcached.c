/*
 * Fuzz target: what a memcached may answer, near__memcached_hear().
 *
 * Input: one byte that says what was asked (its low three bits: a kind of talk) and in pieces of what size the
 * answer comes (the others), then the answer.  Whatever it is: no more is used than was there, no more than a
 * line is held back, a talk that is complete has an answer in every record, a value stands under its own key
 * and is not larger than allowed, and pieces make no difference.
 *
 * With clang: -fsanitize=fuzzer,address -DFUZZ_ENGINE.  Without an engine the program replays the files named
 * on its command line, and `make check` runs it over the corpus.
 */
#include "l2/memcached_talk.h"

#include <string.h>

#include "tests/fuzz/fuzz.h"

#define MAX_VALUE 512
#define KEYS      5

static struct near__memcached_talk *
make(unsigned what)
{
    static const char *const       names[KEYS] = { "a", "key", "key:2", "nc:users:42", "zz" };
    enum near__memcached_talk_kind kind        = what == 0   ? NEAR__MEMCACHED_READS
                                                 : what == 1 ? NEAR__MEMCACHED_READS_NUMBERS
                                                 : what == 6 ? NEAR__MEMCACHED_ASK_VERSION
                                                 : what == 7 ? NEAR__MEMCACHED_ASK_SETTINGS
                                                             : NEAR__MEMCACHED_WRITES;
    struct near__memcached_talk   *talk = malloc(sizeof(*talk) + near__memcached_talk_size(KEYS, 64, 64));

    check(talk != NULL);
    near__memcached_talk_init(talk, kind, KEYS, 64, 64, MAX_VALUE);
    for (size_t i = 0; what < 6 && i < (what == 0 ? 1 : KEYS); i++) {
        near_bytes key = { names[i], strlen(names[i]) };

        if (what < 2)
            near__memcached_add_read(talk, key);
        else if (what == 5)
            near__memcached_add_delete(talk, key);
        else
            near__memcached_add_store(talk, (enum near__memcached_verb)(what - 2), key, 0, 0, key, 1);
    }
    near__memcached_talk_ready(talk);
    return talk;
}

static enum near__memcached_progress
hear(struct near__memcached_talk *talk, const uint8_t *data, size_t size, size_t step, size_t *end)
{
    enum near__memcached_progress progress = NEAR__MEMCACHED_WAITING;
    size_t                        from = 0, to = 0, used;

    while (progress == NEAR__MEMCACHED_WAITING && to < size) {
        near_error why = { 0 };
        char      *exact;

        to    = to + step < size ? to + step : size;
        exact = malloc(to - from);
        check(exact != NULL);
        memcpy(exact, data + from, to - from);
        progress = near__memcached_hear(talk, exact, to - from, &used, &why);
        free(exact);
        check(used <= to - from);
        from += used;
        check(progress != NEAR__MEMCACHED_WAITING || to - from < NEAR__MEMCACHED_LINE);
        check(progress != NEAR__MEMCACHED_NONSENSE || (why.code == NEAR_ERR_PROTOCOL && why.text[0] != '\0'));
    }
    *end = from;
    return progress;
}

static void
check_records(const struct near__memcached_talk *talk, bool complete)
{
    check(talk->complete == complete);
    for (size_t i = 0; i < talk->n; i++) {
        const struct near__memcached_record *r = &talk->records[i];

        check(!complete || r->word != NEAR__MEMCACHED_UNANSWERED);
        check(r->value.size <= MAX_VALUE);
        if ((talk->kind == NEAR__MEMCACHED_READS || talk->kind == NEAR__MEMCACHED_READS_NUMBERS) &&
            r->word == NEAR__MEMCACHED_DONE)
            check(r->value.data != NULL && (r->unique != 0) == (talk->kind == NEAR__MEMCACHED_READS_NUMBERS));
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct near__memcached_talk  *whole, *pieces;
    enum near__memcached_progress a, b;
    size_t                        end_a, end_b;

    if (size == 0)
        return 0;
    whole  = make(data[0] & 7);
    pieces = make(data[0] & 7);
    a      = hear(whole, data + 1, size - 1, size, &end_a);
    b      = hear(pieces, data + 1, size - 1, 1 + (size_t)(data[0] >> 3), &end_b);
    check(a == b);
    check_records(whole, a == NEAR__MEMCACHED_COMPLETE);
    check_records(pieces, b == NEAR__MEMCACHED_COMPLETE);
    if (a == NEAR__MEMCACHED_COMPLETE) {
        check(end_a == end_b);
        for (size_t i = 0; i < whole->n; i++)
            check(whole->records[i].word == pieces->records[i].word &&
                  near__bytes_equal(whole->records[i].value, pieces->records[i].value));
    }
    near__memcached_talk_fini(whole);
    near__memcached_talk_fini(pieces);
    free(whole);
    free(pieces);
    return 0;
}
