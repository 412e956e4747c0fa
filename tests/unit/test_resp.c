/* Commands as they go over the wire: what hiredis makes of the same arguments is the measure. */
#include "harness/test.h"

#include <hiredis/hiredis.h>
#include <stdlib.h>
#include <string.h>

#include "l2/resp.h"

enum { MOST = 40 };

static void
assert_same(size_t argc, const near_bytes *argv)
{
    const char *data[MOST];
    size_t      sizes[MOST], size;
    char       *theirs, *ours;
    long long   n;

    for (size_t i = 0; i < argc; i++) {
        data[i]  = argv[i].size == 0 ? "" : argv[i].data;
        sizes[i] = argv[i].size;
    }
    n = redisFormatCommandArgv(&theirs, (int)argc, data, sizes);
    assert_true(n > 0);
    assert_int_equal(near__resp_format(&ours, &size, argc, argv), NEAR_OK);
    assert_int_equal(size, n);
    assert_memory_equal(ours, theirs, size);
    free(ours);
    redisFreeCommand(theirs);
}

static void
commands_are_what_hiredis_makes_of_them(void **state)
{
    static char bytes[100001];
    uint64_t    random = 7;
    near_bytes  argv[MOST];

    (void)state;
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (char)test_random(&random);
    for (size_t round = 0; round < test_scale(3000); round++) {
        size_t argc = 1 + test_random(&random) % MOST;
        size_t most = round % 100 == 0 ? sizeof(bytes) : 120;

        for (size_t i = 0; i < argc; i++) {
            size_t at = test_random(&random) % (sizeof(bytes) - most + 1);
            argv[i]   = (near_bytes){ bytes + at, test_random(&random) % most };
        }
        assert_same(argc, argv);
    }
    for (size_t size = 0; size <= 100000; size = size < 20 ? size + 1 : size * 10 - size % 7) {
        argv[0] = (near_bytes){ bytes, size };
        assert_same(1, argv);
    }
    argv[0] = (near_bytes){ NULL, 0 };
    assert_same(1, argv);
}

/* Rule H4: nobody adds sizes that could overflow. */
static void
H4_too_much_is_refused(void **state)
{
    near_bytes argv[3] = { { "SET", 3 }, { "k", 1 }, { "v", NEAR__RESP_MAX - 10 } };
    char      *bytes;
    size_t     size;

    (void)state;
    assert_int_equal(near__resp_format(&bytes, &size, 3, argv), NEAR_ERR_TOO_LARGE);
    argv[2].size = SIZE_MAX;
    assert_int_equal(near__resp_format(&bytes, &size, 3, argv), NEAR_ERR_TOO_LARGE);
    argv[1].size = SIZE_MAX - 5;
    assert_int_equal(near__resp_format(&bytes, &size, 3, argv), NEAR_ERR_TOO_LARGE);
    assert_int_equal(near__resp_format(&bytes, &size, 0, argv), NEAR_ERR_TOO_LARGE);
    assert_int_equal(near__resp_format(&bytes, &size, SIZE_MAX / 2, argv), NEAR_ERR_TOO_LARGE);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_are_what_hiredis_makes_of_them),
        cmocka_unit_test(H4_too_much_is_refused),
    };
    return TEST_MAIN(tests, NULL, NULL);
}
