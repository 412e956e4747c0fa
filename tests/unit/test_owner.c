/*
 * near_owner(): the same owner everywhere and for ever (vectors made by another program, in exact decimal arithmetic), parts by weight,
 * and keys that move only from or to the member that changed: with what sharing by a remainder would do, as the control.
 */
#include "harness/test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/hash.h"
#include "nearcache.h"

#define MOST 40

struct fleet {
    near_member members[MOST];
    char        names[MOST][24];
    size_t      n;
};

static void
fleet_init(struct fleet *fleet, const char *format, int from, const uint32_t *weights, size_t n)
{
    fleet->n = n;
    for (size_t i = 0; i < n; i++) {
        snprintf(fleet->names[i], sizeof(fleet->names[i]), format, (int)i + from);
        fleet->members[i] = (near_member){ near_key(fleet->names[i]), weights != NULL ? weights[i] : 1 };
    }
}

static near_bytes
number(char text[32], size_t i)
{
    snprintf(text, 32, "entity:%zu", i);
    return near_key(text);
}

static const uint32_t six[] = { 100, 200, 50, 400, 1, 1000 };

static const struct vector {
    near_bytes key;
    size_t     even[3],
        weighted[3]; /* the first three of cache-0..7, and of 10.0.0.1:7000..6 with the weights above */
} vectors[] = {
    /* clang-format off */
    { { "", 0 }, { 1, 3, 6 }, { 3, 2, 5 } },
    { { "a", 1 }, { 7, 0, 6 }, { 3, 5, 1 } },
    { { "user:42", 7 }, { 0, 3, 6 }, { 0, 5, 3 } },
    { { "entity:0", 8 }, { 5, 6, 0 }, { 1, 3, 5 } },
    { { "entity:1", 8 }, { 0, 3, 2 }, { 5, 1, 2 } },
    { { "entity:2", 8 }, { 0, 2, 6 }, { 3, 5, 2 } },
    { { "item:123456789", 14 }, { 5, 2, 7 }, { 3, 5, 1 } },
    { { "\000\377\020", 3 }, { 6, 5, 4 }, { 3, 5, 2 } },
    { { "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", 31 }, { 2, 5, 7 }, { 0, 5, 3 } },
    { { "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", 32 }, { 2, 7, 1 }, { 5, 3, 1 } },
    { { "a key that is longer than thirty-two bytes, by far", 50 }, { 1, 5, 7 }, { 0, 5, 3 } },
    { { "k0", 2 }, { 4, 6, 3 }, { 5, 1, 3 } },
    { { "k1", 2 }, { 0, 5, 2 }, { 5, 2, 3 } },
    { { "k2", 2 }, { 7, 6, 2 }, { 5, 3, 1 } },
    { { "k3", 2 }, { 7, 5, 2 }, { 2, 5, 3 } },
    { { "k4", 2 }, { 6, 3, 1 }, { 3, 1, 5 } },
    { { "k5", 2 }, { 0, 1, 7 }, { 5, 1, 3 } },
    { { "k6", 2 }, { 3, 5, 4 }, { 5, 1, 3 } },
    { { "k7", 2 }, { 1, 4, 0 }, { 5, 3, 2 } },
    { { "k8", 2 }, { 6, 4, 0 }, { 1, 3, 5 } },
    { { "k9", 2 }, { 0, 4, 7 }, { 5, 1, 3 } },
    { { "k10", 3 }, { 2, 5, 1 }, { 5, 3, 0 } },
    { { "k11", 3 }, { 5, 0, 2 }, { 5, 3, 1 } },
    { { "k12", 3 }, { 7, 3, 1 }, { 1, 5, 3 } },
    /* clang-format on */
};

static void
test_owners_are_the_same_for_ever(void **state)
{
    struct fleet even, weighted;
    size_t       owners[3];

    (void)state;
    fleet_init(&even, "cache-%d", 0, NULL, 8);
    fleet_init(&weighted, "10.0.0.%d:7000", 1, six, 6);
    for (size_t i = 0; i < NEAR_COUNT_OF(vectors); i++) {
        const struct vector *v = &vectors[i];

        assert_int_equal(near_owner(even.members, 8, v->key), v->even[0]);
        assert_int_equal(near_owners(even.members, 8, v->key, owners, 3), 3);
        assert_memory_equal(owners, v->even, sizeof(owners));
        assert_int_equal(near_owner(weighted.members, 6, v->key), v->weighted[0]);
        assert_int_equal(near_owners(weighted.members, 6, v->key, owners, 3), 3);
        assert_memory_equal(owners, v->weighted, sizeof(owners));
    }
}

/* By the definition, in floating point: integers may differ from it only where two costs are as good as one. */
static void
test_the_logarithm_is_one(void **state)
{
    struct fleet fleet;
    size_t       rounds = test_scale(50000);

    (void)state;
    fleet_init(&fleet, "10.0.0.%d:7000", 1, six, 6);
    for (size_t i = 0; i < rounds; i++) {
        char     text[32];
        uint64_t seed  = near__hash_seeded(number(text, i), 0);
        size_t   best  = 0;
        double   least = INFINITY;

        for (size_t m = 0; m < fleet.n; m++) {
            double cost = -log((double)near__hash_seeded(fleet.members[m].name, seed) / 0x1p64) /
                          (double)fleet.members[m].weight;

            if (cost < least) {
                least = cost;
                best  = m;
            }
        }
        assert_int_equal(near_owner(fleet.members, fleet.n, near_key(text)), best);
    }
}

static void
test_places_in_the_list_do_not_count(void **state)
{
    struct fleet fleet, turned;

    (void)state;
    fleet_init(&fleet, "cache-%d", 0, six, 6);
    turned = fleet;
    for (size_t i = 0; i < 6; i++)
        turned.members[i] = fleet.members[5 - i];
    for (size_t i = 0; i < 2000; i++) {
        char       text[32];
        near_bytes key = number(text, i);

        assert_int_equal(near_owner(fleet.members, 6, key), 5 - near_owner(turned.members, 6, key));
    }
}

/* Within five standard deviations of what the weights say. */
static void
test_parts_are_as_the_weights(void **state)
{
    static const uint32_t weights[] = { 1, 1, 2, 4, 8, 0, 1000, UINT32_MAX };
    size_t                keys      = test_scale(100000);

    (void)state;
    for (size_t n = 5; n <= NEAR_COUNT_OF(weights); n++) {
        struct fleet fleet;
        size_t       got[NEAR_COUNT_OF(weights)] = { 0 };
        double       sum                         = 0;

        fleet_init(&fleet, "cache-%d", 0, weights, n);
        for (size_t i = 0; i < n; i++)
            sum += weights[i];
        for (size_t i = 0; i < keys; i++) {
            char text[32];

            got[near_owner(fleet.members, n, number(text, i))]++;
        }
        for (size_t i = 0; i < n; i++) {
            double part = weights[i] / sum, expected = part * (double)keys;

            assert_true(fabs((double)got[i] - expected) <= 5 * sqrt(expected * (1 - part)) + 1);
        }
    }
}

/* How many keys have another owner, told by name, and that none moved between two that are in both alike. */
static size_t
moved(const struct fleet *before, const struct fleet *after, near_bytes changed, size_t keys, bool remainder)
{
    size_t n = 0;

    for (size_t i = 0; i < keys; i++) {
        char       text[32];
        near_bytes key = number(text, i), from, to;

        if (remainder) {
            from = before->members[near__hash_fixed(key) % before->n].name;
            to   = after->members[near__hash_fixed(key) % after->n].name;
        } else {
            from = before->members[near_owner(before->members, before->n, key)].name;
            to   = after->members[near_owner(after->members, after->n, key)].name;
        }
        if (from.size == to.size && memcmp(from.data, to.data, from.size) == 0)
            continue;
        n++;
        if (!remainder)
            assert_true((from.size == changed.size && memcmp(from.data, changed.data, from.size) == 0) ||
                        (to.size == changed.size && memcmp(to.data, changed.data, to.size) == 0));
    }
    return n;
}

static void
test_only_keys_of_the_member_that_changed_move(void **state)
{
    size_t       keys = test_scale(50000), some;
    struct fleet ten, eleven, heavier;

    (void)state;
    fleet_init(&ten, "cache-%d", 0, NULL, 10);
    fleet_init(&eleven, "cache-%d", 0, NULL, 11);
    /* one comes: an eleventh of the keys; and goes again */
    some = moved(&ten, &eleven, eleven.members[10].name, keys, false);
    assert_in_range(some, keys / 11 * 8 / 10, keys / 11 * 12 / 10 + 1);
    assert_int_equal(moved(&eleven, &ten, eleven.members[10].name, keys, false), some);
    /* one in the middle goes */
    eleven.members[3] = eleven.members[10];
    eleven.n          = 10;
    fleet_init(&heavier, "cache-%d", 0, NULL, 11);
    some = moved(&heavier, &eleven, heavier.members[3].name, keys, false);
    assert_in_range(some, keys / 11 * 8 / 10, keys / 11 * 12 / 10 + 1);
    /* one gets twice the weight: from 1/10 to 2/11 */
    heavier                   = ten;
    heavier.members[4].weight = 2;
    some                      = moved(&ten, &heavier, ten.members[4].name, keys, false);
    assert_in_range(some, keys * 9 / 110 * 8 / 10, keys * 9 / 110 * 12 / 10 + 1);
    /* the control: a remainder moves nearly all */
    assert_in_range(moved(&ten, &heavier, ten.members[4].name, keys, true), 0, 0);
    fleet_init(&eleven, "cache-%d", 0, NULL, 11);
    assert_in_range(moved(&ten, &eleven, eleven.members[10].name, keys, true), keys * 8 / 10, keys);
}

static void
test_the_next_owner_is_the_one_without_the_first(void **state)
{
    struct fleet fleet, without;
    size_t       owners[8], rounds = test_scale(5000);

    (void)state;
    fleet_init(&fleet, "cache-%d", 0, six, 6);
    for (size_t i = 0; i < rounds; i++) {
        char       text[32];
        near_bytes key = number(text, i);

        assert_int_equal(near_owners(fleet.members, 6, key, owners, 8), 6);
        without = fleet;
        for (size_t k = 0; k < 6; k++) {
            assert_int_equal(near_owner(without.members, 6, key), owners[k]);
            without.members[owners[k]].weight = 0;
        }
    }
}

static void
test_nobody_and_no_weight(void **state)
{
    near_member nobody[2] = { { near_key("a"), 0 }, { near_key("b"), 0 } };
    size_t      owners[2] = { 7, 7 };

    (void)state;
    assert_int_equal(near_owner(NULL, 0, near_key("k")), 0);
    assert_int_equal(near_owner(nobody, 2, near_key("k")), 2);
    assert_int_equal(near_owners(nobody, 2, near_key("k"), owners, 2), 0);
    nobody[1].weight = 1;
    assert_int_equal(near_owner(nobody, 2, near_key("k")), 1);
    assert_int_equal(near_owners(nobody, 2, near_key("k"), owners, 2), 1);
    assert_int_equal(owners[0], 1);
    assert_int_equal(near_owners(nobody, 2, near_key("k"), NULL, 0), 0);
    /* no name, no key */
    nobody[0] = (near_member){ { NULL, 0 }, 1 };
    assert_in_range(near_owner(nobody, 2, (near_bytes){ NULL, 0 }), 0, 1);
    /* one name twice is one owner */
    nobody[0] = nobody[1];
    assert_int_equal(near_owners(nobody, 2, near_key("k"), owners, 2), 1);
}

static void
test_what_it_takes(void **state)
{
    struct fleet fleet;
    size_t       rounds = test_scale(100000), sum = 0;
    clock_t      began;

    (void)state;
    fleet_init(&fleet, "cache-%d", 0, NULL, 32);
    began = clock();
    for (size_t i = 0; i < rounds; i++)
        sum += near_owner(fleet.members, 32, (near_bytes){ &i, sizeof(i) });
    began = clock() - began;
    print_message("%.1f ns for each of 32 members\n",
                  (double)began / CLOCKS_PER_SEC * 1e9 / (double)rounds / 32);
    assert_true(sum > 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_owners_are_the_same_for_ever),
        cmocka_unit_test(test_the_logarithm_is_one),
        cmocka_unit_test(test_places_in_the_list_do_not_count),
        cmocka_unit_test(test_parts_are_as_the_weights),
        cmocka_unit_test(test_only_keys_of_the_member_that_changed_move),
        cmocka_unit_test(test_the_next_owner_is_the_one_without_the_first),
        cmocka_unit_test(test_nobody_and_no_weight),
        cmocka_unit_test(test_what_it_takes),
    };

    return TEST_MAIN(tests, NULL, NULL);
}
